//! The web process's one event loop: sockets around the gate's pure core, the channel's connections, the inner
//! server's, the doorbells, and whoever may tell it to stop.

use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream, UnixStream};
use mio::{Events, Interest, Poll, Token};

use super::core::{Core, Settings};
use super::desk::Desk;
use super::inner::{Answered, Pool};
use super::pages::{self, Pages};
use crate::bell::Bell;
use crate::channel::ChannelServer;
use crate::clock::{Clock, Timestamp, monotonic_millis};
use crate::deployment::{Backend, Setup};
use crate::entropy::Entropy;
use crate::exit::Exit;
use crate::job::InstanceId;
use crate::limits::{ACCEPTS_A_TURN, READ_A_TURN_BYTES};
use crate::observe::metrics::Counters;
use crate::ports::{Inbox, Upkeep};
use crate::process::control_socket::ControlSocket;
use crate::process::systemd::Notifier;

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
const MASTER: Token = Token(2);
const CHANNEL: Token = Token(3);
const FIRST_INNER: usize = 16;
/// Numbers from here on are connections, each used once in the process's life.
const FIRST_CONNECTION: usize = 1 << 10;
/// Descriptors that are not clients': the channel's, the inner server's, files, sockets to come.
const OWN_DESCRIPTORS: u64 = 128;

/// Who may tell it to stop.
pub enum Master {
    /// Signals of this process: a byte each.
    Signals(std::os::unix::net::UnixStream),
    /// A supervisor.
    Supervisor(ControlSocket),
}

/// The web process before it runs.
pub struct Front {
    pub(super) core: Core,
    pub(super) listener: TcpListener,
    pub(super) desk: Desk,
    inbox: Box<dyn Inbox>,
    pub(super) channel: Option<ChannelServer>,
    pub(super) master: MasterSocket,
    pub(super) counters: Arc<Counters>,
    bell: Bell,
    poll: Poll,
    pub(super) clock: Clock,
    pub(super) address: SocketAddr,
    clients: HashMap<usize, Client>,
    /// Clients whose sockets may have bytes that were not read.
    unread: HashSet<usize>,
    per_ip: HashMap<IpAddr, usize>,
    max_clients: usize,
    max_per_ip: usize,
    next_token: usize,
    accepting: bool,
    channel_accepting: bool,
    /// When accepting is tried again after the kernel had nothing to give.
    accept_at_ms: u64,
    wake_at: Option<Timestamp>,
    pub(super) drain: Option<Timestamp>,
    pub(super) graceful: Duration,
    pages: Option<Pages>,
    /// What lives in this process besides, and ends with it.
    pub(super) beside: Option<Box<dyn Upkeep>>,
    buffer: Box<[u8; 65_536]>,
}

/// [`Master`], as the loop watches it.
pub(super) enum MasterSocket {
    Signals(UnixStream, Notifier),
    Supervisor(ControlSocket),
}

struct Client {
    stream: TcpStream,
    ip: IpAddr,
    shut: bool,
    /// The end of its side has come, behind bytes that may not have been read.
    ended: bool,
}

impl Front {
    /// Around a listener that does not block.
    ///
    /// # Errors
    /// The kernel refuses what an event loop needs.
    pub fn new(
        setup: &Setup,
        listener: std::net::TcpListener,
        backend: &Backend,
        master: Master,
    ) -> Result<Front, String> {
        let io = |error: std::io::Error| error.to_string();
        let poll = Poll::new().map_err(io)?;
        let bell = Bell::for_poll(&poll, WAKER).map_err(io)?;
        let counters = Arc::new(Counters::default());
        let mut entropy = Entropy::system();
        let instance = InstanceId(u64::from_be_bytes(entropy.bytes()));
        let inbox = backend.replies().subscribe(instance, bell.clone()).map_err(|error| error.to_string())?;
        let config = &setup.config;
        let address = listener.local_addr().map_err(io)?;
        let graceful = config.runtime.platform.lifecycle.patience_ms();
        let settings = settings(setup, instance);
        let pages = Pages {
            producer: backend.producer(),
            counters: counters.clone(),
            groups: setup.groups().iter().map(ToString::to_string).collect(),
            profile: crate::config::profile(config),
            address: address.to_string(),
        };
        let limits = settings.limits;
        let core = Core::new(settings, counters.clone(), entropy);
        let waiting = counters.clone();
        let upkeep = backend.upkeep(move || waiting.waiters.load(Ordering::Relaxed));
        let desk = match backend.may_wait() {
            true => Desk::thread(backend.producer(), upkeep, bell.clone()).map_err(io)?,
            false => Desk::here(backend.producer(), upkeep),
        };
        let master = match master {
            Master::Signals(stream) => {
                MasterSocket::Signals(UnixStream::from_std(stream), Notifier::from_environment())
            }
            Master::Supervisor(control) => MasterSocket::Supervisor(control),
        };
        let descriptors = crate::process::hygiene::raise_descriptor_limit();
        let allowed =
            usize::try_from(descriptors.saturating_sub(OWN_DESCRIPTORS).max(8)).unwrap_or(usize::MAX);
        if allowed < limits.connections {
            log::warn!("web.limits.connections is cut to {allowed}: the descriptor limit is {descriptors}");
        }
        Ok(Front {
            core,
            listener: TcpListener::from_std(listener),
            desk,
            inbox,
            channel: None,
            master,
            counters,
            bell,
            poll,
            clock: setup.clock.clone(),
            address,
            clients: HashMap::new(),
            unread: HashSet::new(),
            per_ip: HashMap::new(),
            max_clients: limits.connections.min(allowed),
            max_per_ip: limits.connections_per_ip,
            next_token: FIRST_CONNECTION,
            accepting: true,
            channel_accepting: true,
            accept_at_ms: 0,
            wake_at: None,
            drain: None,
            graceful: Duration::from_millis(graceful),
            pages: Some(pages),
            beside: None,
            buffer: Box::new([0; 65_536]),
        })
    }

    /// Rings when the loop should look.
    #[must_use]
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// This process's counters.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// With what lives beside it. From its first question whether that is idle, a drain has begun.
    #[must_use]
    pub fn with_beside(mut self, beside: Option<Box<dyn Upkeep>>) -> Front {
        self.beside = beside;
        self
    }

    /// Executors reach the broker through this channel.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn with_channel(mut self, mut channel: ChannelServer) -> Result<Front, String> {
        channel.register(self.poll.registry(), CHANNEL).map_err(|error| error.to_string())?;
        self.channel = Some(channel);
        Ok(self)
    }

    /// Serves until it is told to stop. The inner server's socket is made in `socket_dir`.
    ///
    /// # Errors
    /// The inner server cannot be started, or the kernel ends the loop.
    pub fn run(mut self, socket_dir: &Path) -> Result<Exit, String> {
        let io = |error: std::io::Error| error.to_string();
        let socket = socket_dir.join(format!("web-{}.sock", std::process::id()));
        if let Some(pages) = self.pages.take() {
            pages::serve(pages, &socket)?;
        }
        let mut pool = Pool::open(socket, self.poll.registry(), FIRST_INNER).map_err(io)?;
        self.poll.registry().register(&mut self.listener, LISTENER, Interest::READABLE).map_err(io)?;
        let both = Interest::READABLE | Interest::WRITABLE;
        match &mut self.master {
            MasterSocket::Signals(stream, _) => {
                self.poll.registry().register(stream, MASTER, both).map_err(io)?
            }
            MasterSocket::Supervisor(control) => {
                self.poll.registry().register(control.stream(), MASTER, both).map_err(io)?;
            }
        }
        self.say_ready()?;
        let mut events = Events::with_capacity(1_024);
        loop {
            let wait = self.turn(&mut pool, &events)?;
            if let Some(exit) = self.drained() {
                return Ok(exit);
            }
            self.bell.wait(&mut self.poll, &mut events, wait)?;
        }
    }

    /// One turn: take what has come, decide, and send what is to be sent. Says how long to wait at most.
    fn turn(&mut self, pool: &mut Pool, events: &Events) -> Result<Duration, String> {
        let (now, now_ms) = (self.clock.now(), monotonic_millis());
        for event in events {
            let Token(number) = event.token();
            match event.token() {
                LISTENER => self.accepting = true,
                CHANNEL => self.channel_accepting = true,
                WAKER => {}
                MASTER => self.on_master(now)?,
                _ if number < FIRST_CONNECTION => {
                    let answered = pool.on_event(number, self.poll.registry(), now);
                    self.inner_answers(answered, now);
                }
                _ if self.clients.contains_key(&number) => {
                    if event.is_readable() || event.is_read_closed() {
                        self.unread.insert(number);
                    }
                    if let Some(client) = self.clients.get_mut(&number) {
                        client.ended |= event.is_read_closed();
                    }
                    if event.is_writable() {
                        self.flush(number, now);
                    }
                }
                _ => {
                    if let Some(channel) = &mut self.channel {
                        channel.on_event(number, event.is_readable() || event.is_read_closed(), now_ms);
                    }
                }
            }
        }
        if self.accepting && now_ms >= self.accept_at_ms {
            self.accept(now, now_ms);
        }
        for number in self.unread.iter().copied().collect::<Vec<_>>() {
            self.read(number, now);
        }
        self.consult(now);
        let is_woken = self.wake_at.is_some_and(|at| at <= now);
        self.exchange(now, now_ms);
        if now >= self.core.next_due() || is_woken {
            self.core.tick(now);
        }
        self.consult(now);
        for request in self.core.take_inner() {
            let answered = pool.ask(request, now);
            self.inner_answers(answered, now);
        }
        if !self.desk.is_staffed() {
            return Err("the thread that asks the broker has ended".into());
        }
        if pool.hangs(now) {
            return Err("the inner server does not answer".into());
        }
        for number in self.core.take_touched() {
            self.flush(usize::try_from(number).unwrap_or(usize::MAX), now);
        }
        Ok(self.wait(now, now_ms))
    }

    /// Questions to the broker, answers to who asked; until neither is left.
    fn consult(&mut self, now: Timestamp) {
        loop {
            let asks = self.core.take_asks();
            let is_quiet = asks.is_empty();
            self.desk.ask(asks);
            let told = self.desk.told();
            if is_quiet && told.is_empty() {
                return;
            }
            for told in told {
                self.core.told(told, now);
            }
        }
    }

    /// Jobs to executors, replies to callers.
    fn exchange(&mut self, now: Timestamp, now_ms: u64) {
        if let Some(channel) = &mut self.channel {
            if self.channel_accepting {
                self.channel_accepting = channel.accept(self.poll.registry(), &mut self.next_token, now_ms);
            }
            channel.turn(now_ms);
        }
        // After the turn: what it queued again may be due sooner than anything that was known before.
        let wake_at = self.desk.tick().unwrap_or(Timestamp(u64::MAX));
        self.wake_at = Some(wake_at.min(now.plus(Duration::from_secs(1))));
        match self.inbox.take(usize::MAX) {
            Ok(doorbells) => self.core.deliver(doorbells, now),
            Err(error) => log::warn!("replies cannot be read: {error}"),
        }
    }

    fn wait(&mut self, now: Timestamp, now_ms: u64) -> Duration {
        const LONGEST: Duration = Duration::from_secs(1);
        let watchdog = match &mut self.master {
            MasterSocket::Signals(_, notifier) => Duration::from_millis(notifier.tick(now_ms)),
            MasterSocket::Supervisor(_) => LONGEST,
        };
        if self.core.has_inner() || (self.channel.is_some() && self.channel_accepting) {
            return Duration::ZERO;
        }
        if self.unread.iter().any(|number| self.core.room(*number as u64) > 0) {
            return Duration::ZERO;
        }
        let mut wait = self.core.next_due().since(now).min(LONGEST).min(watchdog);
        if let Some(at) = self.wake_at {
            wait = wait.min(at.since(now));
        }
        if let Some(due) = self.channel.as_ref().and_then(ChannelServer::next_due_ms) {
            wait = wait.min(Duration::from_millis(due));
        }
        if self.accepting && self.clients.len() < self.max_clients {
            wait = wait.min(Duration::from_millis(self.accept_at_ms.saturating_sub(now_ms)));
        }
        if self.drain.is_some() || self.core.has_stalled() {
            wait = wait.min(Duration::from_millis(5));
        }
        wait
    }

    /// Accepts while there is room. Beyond the limit clients wait in the kernel's backlog.
    fn accept(&mut self, now: Timestamp, now_ms: u64) {
        const PAUSE_MS: u64 = 100;
        for _ in 0..ACCEPTS_A_TURN {
            if self.clients.len() >= self.max_clients {
                return;
            }
            let (mut stream, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.accepting = false;
                    return;
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) =>
                {
                    continue;
                }
                Err(error) => {
                    log::warn!("no connection can be accepted for now: {error}");
                    self.accept_at_ms = now_ms + PAUSE_MS;
                    return;
                }
            };
            let ip = peer.ip();
            let of_this_ip = self.per_ip.get(&ip).copied().unwrap_or(0);
            if !ip.is_loopback() && of_this_ip >= self.max_per_ip {
                continue; // Dropped: closed without a word.
            }
            let _ = stream.set_nodelay(true);
            self.next_token += 1;
            let number = self.next_token;
            let interest = Interest::READABLE | Interest::WRITABLE;
            if self.poll.registry().register(&mut stream, Token(number), interest).is_err() {
                continue;
            }
            *self.per_ip.entry(ip).or_default() += 1;
            self.clients.insert(number, Client { stream, ip, shut: false, ended: false });
            self.core.open(number as u64, now);
            self.unread.insert(number);
        }
    }

    fn read(&mut self, number: usize, now: Timestamp) {
        let mut total = 0;
        while let Some(client) = self.clients.get_mut(&number) {
            let room = self.core.room(number as u64).min(self.buffer.len());
            if room == 0 || total >= READ_A_TURN_BYTES {
                return; // It stays unread: its turn comes when there is room, or in the next turn.
            }
            match client.stream.read(&mut self.buffer[..room]) {
                Ok(0) => {
                    self.unread.remove(&number);
                    return self.core.hung_up(number as u64, now);
                }
                Ok(read) => {
                    total += read;
                    self.core.received(number as u64, &self.buffer[..read], now);
                    let ended = self.clients.get(&number).is_some_and(|client| client.ended);
                    if read < room && !ended {
                        // The socket is empty: the next bytes come with an event of their own.
                        self.unread.remove(&number);
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.unread.remove(&number);
                    return;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.unread.remove(&number);
                    return self.close(number, now);
                }
            }
        }
        self.unread.remove(&number);
    }

    pub(super) fn flush(&mut self, number: usize, now: Timestamp) {
        loop {
            let Some(client) = self.clients.get_mut(&number) else { return };
            let unsent = self.core.unsent(number as u64);
            if unsent.is_empty() {
                break;
            }
            match client.stream.write(unsent) {
                Ok(written) => self.core.flushed(number as u64, written, now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.close(number, now),
            }
        }
        if self.core.is_over(number as u64, now) {
            self.close(number, now);
        } else if self.core.is_finished(number as u64) {
            // A lingering close: what the client still sends is read and dropped, so that the answer arrives.
            if let Some(client) = self.clients.get_mut(&number).filter(|client| !client.shut) {
                client.shut = true;
                let _ = client.stream.shutdown(Shutdown::Write);
            }
        }
    }

    fn close(&mut self, number: usize, now: Timestamp) {
        self.core.close(number as u64, now);
        self.unread.remove(&number);
        let Some(client) = self.clients.remove(&number) else { return };
        if let Some(count) = self.per_ip.get_mut(&client.ip) {
            *count -= 1;
            if *count == 0 {
                self.per_ip.remove(&client.ip);
            }
        }
    }

    fn inner_answers(&mut self, answered: impl IntoIterator<Item = Answered>, now: Timestamp) {
        for Answered { conn, request, answer } in answered {
            self.core.inner_answered(conn, request, answer, now);
        }
    }
}

fn settings(setup: &Setup, instance: InstanceId) -> Settings {
    let config = &setup.config;
    Settings {
        limits: config.web.limits,
        max_inflight: config.web.max_inflight,
        max_body: config.web.max_body_bytes,
        max_batch: config.web.max_batch_bytes,
        allowed_hosts: config.web.allowed_hosts.clone(),
        reply_timeout: Duration::from_millis(config.runtime.platform.reply.timeout_ms),
        sink_mode: config.runtime.ordering.sink_mode,
        handlers: setup.specs.iter().map(|spec| (spec.name.to_string(), spec.clone())).collect(),
        instance,
    }
}
