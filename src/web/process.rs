//! The web process's one event loop around the gate: clients, the broker, the channel's connections, and the commander.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mio::Token;
use mio::net::TcpListener;

use super::calls::Calls;
use super::commander::Commander;
use super::gate::{Gate, Settings};
use super::pages::Pages;
use super::sockets::ClientSockets;
use crate::channel::ChannelServer;
use crate::clock::{Clock, Timestamp, monotonic_millis};
use crate::config::tokens;
use crate::deployment::{Backend, Deployment, Rekey};
use crate::entropy::Entropy;
use crate::exit::Exit;
use crate::job::InstanceId;
use crate::mac::wipe_stack;
use crate::observe::event;
use crate::observe::metrics::Counters;
use crate::ports::{Inbox, Seat};
use crate::process::control_socket::{Bundle, ToChild};
use crate::process::reactor::Reactor;

const LISTENER: Token = Token(0);
const COMMANDER: Token = Token(1);
const CHANNEL: Token = Token(2);
/// Numbers from here on are connections, each used once in the process's life.
const FIRST_CONNECTION: usize = 1 << 10;
/// A client that keeps its connection and asks now and then is to hear that an answer is its last.
const LINGER: Duration = Duration::from_secs(1);
/// Nothing is left alone for longer.
const LONGEST: Duration = Duration::from_secs(1);

/// The web process before it runs.
pub struct WebProcess {
    gate: Gate,
    sockets: ClientSockets,
    calls: Calls,
    seat: Arc<dyn Seat>,
    rekey: Rekey,
    inbox: Box<dyn Inbox>,
    /// Where executors reach the broker; `None`: they are threads of this process.
    pub channel: Option<ChannelServer>,
    commander: Commander,
    clock: Clock,
    /// Until when callers are waited for, once the service stops.
    drain: Option<Timestamp>,
    /// Until when clients may find out that the listener is left to others: their connections are kept so long.
    lingers: Timestamp,
    /// When jobs are refused, where the listener is left to others.
    refuses: Option<Timestamp>,
    /// What this process counts.
    pub counters: Arc<Counters>,
    address: String,
    /// What else this process cannot be without; it ends with this.
    pub is_sound: Box<dyn Fn() -> bool>,
    next_token: usize,
    /// Its bell rings when the loop should look.
    pub reactor: Reactor,
}

impl WebProcess {
    /// Around a listener that does not block. The inner server's socket is made in `socket_dir`.
    ///
    /// # Errors
    /// The kernel refuses what an event loop needs, or the backend cannot be used.
    pub fn new(
        deployment: &Deployment,
        listener: std::net::TcpListener,
        backend: &Backend,
        commander: Commander,
        socket_dir: &Path,
    ) -> Result<WebProcess, String> {
        let io = |error: std::io::Error| error.to_string();
        let reactor = Reactor::new(1_024)?;
        let counters = Arc::new(Counters::default());
        let mut entropy = Entropy::system();
        let instance = InstanceId(u64::from_be_bytes(entropy.bytes()));
        let inbox = backend.replies.subscribe(instance, reactor.bell()).map_err(|error| error.to_string())?;
        let config = &deployment.config;
        let address = listener.local_addr().map_err(io)?.to_string();
        let pages = Pages {
            producer: backend.producer.clone(),
            counters: counters.clone(),
            groups: deployment.groups().iter().map(ToString::to_string).collect(),
            workers: deployment.workers(),
            clock: deployment.clock.clone(),
            profile: crate::config::profile(config),
        };
        let socket = socket_dir.join(format!("web-{}.sock", std::process::id()));
        let calls = Calls::new(pages, &socket, backend.calls_may_wait, reactor.bell())?;
        let settings = Settings {
            web: config.web.clone(),
            reply_timeout: Duration::from_millis(config.runtime.platform.reply.timeout_ms),
            sink_mode: config.runtime.ordering.sink_mode,
            handlers: deployment.specs.iter().map(|spec| (spec.name.to_string(), spec.clone())).collect(),
            instance,
            exports_traces: config.observability.traces.file.is_some(),
            jobs_survive_processes: deployment.jobs_survive_processes(),
        };
        Ok(WebProcess {
            gate: Gate::new(settings, tokens::parse(&deployment.tokens)?, counters.clone(), entropy),
            sockets: ClientSockets::new(TcpListener::from_std(listener), &config.web),
            calls,
            seat: backend.seat.clone(),
            rekey: backend.rekey.clone(),
            inbox,
            channel: None,
            commander,
            clock: deployment.clock.clone(),
            drain: None,
            lingers: Timestamp(0),
            refuses: None,
            counters,
            address,
            is_sound: Box::new(|| true),
            next_token: FIRST_CONNECTION,
            reactor,
        })
    }

    /// Serves until it is told to stop.
    ///
    /// # Errors
    /// The kernel ends the loop, or something that this process cannot be without has ended.
    pub fn run(mut self) -> Result<Exit, String> {
        self.reactor.watch(&mut self.sockets.listener, LISTENER)?;
        self.commander.watch(&self.reactor, COMMANDER)?;
        let mut channel = String::new();
        if let Some(server) = &mut self.channel {
            let registered = server.register(self.reactor.registry(), CHANNEL);
            channel =
                registered.and_then(|()| server.address()).map_err(|error| error.to_string())?.to_string();
        }
        self.commander.say_ready(&self.address, &channel, &self.seat.name());
        let exit = self.serve();
        self.seat.close();
        exit
    }

    fn serve(&mut self) -> Result<Exit, String> {
        loop {
            let rest = match self.turn()? {
                ControlFlow::Continue(rest) => rest,
                ControlFlow::Break(exit) => return Ok(exit),
            };
            self.reactor.wait(rest)?;
        }
    }

    /// One turn: take what has come, decide, and send what is to be sent. Says how long to wait at most.
    fn turn(&mut self) -> Result<ControlFlow<Exit, Duration>, String> {
        let (now, now_ms) = (self.clock.now(), monotonic_millis());
        self.gate.begin_turn(now);
        let mut is_commanded = false;
        for event in self.reactor.events() {
            let token = event.token();
            match token {
                LISTENER => self.sockets.accepting = true,
                CHANNEL => self.channel.iter_mut().for_each(ChannelServer::on_connect),
                COMMANDER => is_commanded = true,
                Token(token) if self.sockets.on_event(token, event, &mut self.gate) => {}
                Token(token) => {
                    if let Some(channel) = &mut self.channel {
                        channel.on_event(token, event, now_ms);
                    }
                }
            }
        }
        if is_commanded {
            let (commands, bundle) = self.commander.hear()?;
            bundle.map_or(Ok(()), |bundle| self.set_secrets(bundle))?;
            for command in commands {
                match command {
                    ToChild::Drain(patience_ms) => {
                        event(log::Level::Info, "lifecycle.draining").emit();
                        self.gate.drain();
                        (self.lingers, self.refuses) = (now, None);
                        self.drain = Some(now.plus(Duration::from_millis(patience_ms)));
                    }
                    ToChild::Retire(patience_ms) => {
                        event(log::Level::Info, "lifecycle.draining")
                            .field("cause", "the listener is left to others")
                            .emit();
                        self.sockets.retire(self.reactor.registry());
                        self.gate.retire();
                        let patience = Duration::from_millis(patience_ms);
                        self.lingers = now.plus(LINGER.min(patience));
                        // Long batches are told so in time for their last lines.
                        self.refuses = Some(now.plus(patience / 2));
                        self.drain = Some(now.plus(patience));
                    }
                    ToChild::Stop => return Ok(ControlFlow::Break(Exit::Done)),
                    ToChild::Replaced(group, reason, count) => {
                        self.counters.replaced.set((group, reason), count);
                    }
                    ToChild::Succeeds(name) => self.seat.succeeds(&name),
                    // They were judged when they were read.
                    ToChild::Tokens(text) => {
                        tokens::parse(&text).into_iter().for_each(|tokens| self.gate.set_tokens(tokens))
                    }
                    ToChild::Ping | ToChild::Channel(_) | ToChild::Leave => {}
                }
            }
        }
        if self.refuses.take_if(|at| *at <= now).is_some() {
            self.gate.drain();
        }
        let next_token = &mut self.next_token;
        self.sockets.accept(self.reactor.registry(), next_token, &mut self.gate, now);
        self.sockets.read_all(&mut self.gate);
        self.exchange(now_ms);
        self.sockets.flush_touched(&mut self.gate);
        // Callers have their answers; now what can wait for them.
        let seat_due = self.seat.tick(self.gate.waiters.count);
        self.gate.touch_slow();
        self.sockets.flush_touched(&mut self.gate);
        self.gate.tick();
        self.sockets.flush_touched(&mut self.gate);
        if !self.calls.is_sound() || !self.seat.is_sound() || !(self.is_sound)() {
            return Err("a thread that this process cannot be without has ended".into());
        }
        if let Some(exit) = self.end_drain() {
            return Ok(ControlFlow::Break(exit));
        }
        Ok(ControlFlow::Continue(self.rests(seat_due, now, now_ms)))
    }

    /// Other secrets: of the groups, and what is signed with at rest.
    fn set_secrets(&mut self, mut bundle: Bundle) -> Result<(), String> {
        if let Some(channel) = &mut self.channel {
            let at_rest = bundle.take_at_rest(channel.groups())?;
            channel.set_secrets(bundle.secrets);
            (self.rekey)(&at_rest);
            drop(at_rest);
            wipe_stack();
        }
        Ok(())
    }

    /// `Some` once the drain is over and there is no supervisor to tell.
    fn end_drain(&mut self) -> Option<Exit> {
        let deadline = self.drain?;
        let now = self.clock.now();
        let is_drained = self.seat.drain(self.gate.callers_wait(), deadline);
        let may_go = now >= self.lingers || self.gate.is_alone();
        if now < deadline && !(is_drained && may_go && self.gate.is_quiet()) {
            return None;
        }
        let cut_off = self.seat.cut_off();
        self.gate.begin_turn(now);
        // Who comes on an open connection until this process ends is refused.
        self.refuses = None;
        self.gate.drain();
        self.gate.cut_off();
        self.sockets.flush_touched(&mut self.gate);
        self.drain = None;
        self.commander.say_drained(&cut_off)
    }

    /// Jobs to the broker and on to executors, ends and answers to callers, until nothing moves; a loop that rings its
    /// own bell need not be woken by it.
    fn exchange(&mut self, now_ms: u64) {
        const ROUNDS: usize = 4;
        for _ in 0..ROUNDS {
            for answered in self.calls.ask(self.gate.take_questions()) {
                self.gate.answered(answered);
            }
            if let Some(channel) = &mut self.channel {
                channel.turn(self.reactor.registry(), &mut self.next_token, now_ms);
            }
            self.seat.flush();
            self.gate.deliver(self.inbox.take(usize::MAX));
            if !self.reactor.is_rung() && self.gate.questions.is_empty() {
                break;
            }
        }
    }

    /// How long nothing need be done here, if no event comes.
    fn rests(&mut self, seat_due: Option<Timestamp>, now: Timestamp, now_ms: u64) -> Duration {
        if !self.gate.questions.is_empty() {
            return Duration::ZERO;
        }
        let mut rest = self.gate.next_due().since(now).min(self.sockets.rests(&self.gate, now));
        let lingers = Some(self.lingers).filter(|at| *at > now);
        for due in [seat_due, self.drain, self.refuses, lingers].into_iter().flatten() {
            rest = rest.min(due.since(now));
        }
        let channel_ms = self.channel.as_ref().and_then(|channel| channel.next_due_ms(now_ms));
        rest.min(channel_ms.map_or(LONGEST, Duration::from_millis)).min(self.commander.tick(now_ms))
    }
}
