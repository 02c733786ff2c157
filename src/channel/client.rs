//! The executor's side with a socket: connects, reconnects with backoff, and is a [`Consumer`] all the while.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::executor_end::ExecutorEnd;
use super::keys::GroupSecret;
use super::reject::RefusalLog;
use crate::entropy::Entropy;
use crate::limits::{HANDSHAKE_TIMEOUT, READ_A_TURN_BYTES, READ_BYTES};
use crate::mac::wipe_stack;
use crate::ports::{BackendError, Consumer, Requests, Step};

const BACKOFF_MIN_MS: u64 = 10;
const BACKOFF_MAX_MS: u64 = 1_000;

/// See the module.
pub struct ChannelClient {
    secret: GroupSecret,
    group: u16,
    ttl_ms: u64,
    heartbeat_ms: u64,
    entropy: Entropy,
    address: Option<SocketAddr>,
    token: Token,
    link: Option<Link>,
    backoff_ms: u64,
    retry_at_ms: u64,
    /// The connection was lost since the last step.
    lost: bool,
    refusals: RefusalLog,
    buffer: Box<[u8; READ_BYTES]>,
}

struct Link {
    stream: TcpStream,
    end: ExecutorEnd,
    since_ms: u64,
    readable: bool,
    /// The end of the broker's side has come, behind bytes that may not have been read.
    ended: bool,
}

impl ChannelClient {
    /// For one group; connects once it is told where.
    #[must_use]
    pub fn new(
        secret: GroupSecret,
        group: u16,
        ttl_ms: u64,
        heartbeat_ms: u64,
        token: Token,
    ) -> ChannelClient {
        ChannelClient {
            secret,
            group,
            ttl_ms,
            heartbeat_ms,
            entropy: Entropy::system(),
            address: None,
            token,
            link: None,
            backoff_ms: BACKOFF_MIN_MS,
            retry_at_ms: 0,
            lost: false,
            refusals: RefusalLog::default(),
            buffer: Box::new([0; READ_BYTES]),
        }
    }

    /// Where the broker listens now; an earlier connection is dropped if that has changed.
    pub fn set_address(&mut self, address: SocketAddr, now_ms: u64) {
        if self.address != Some(address) {
            self.address = Some(address);
            self.disconnect(now_ms);
            (self.backoff_ms, self.retry_at_ms) = (BACKOFF_MIN_MS, now_ms);
        }
    }

    /// True once a frame of the broker was verified.
    pub fn is_up(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.end.is_up)
    }

    /// Does what time asks for: connects, pings, gives up. Then reads what is there.
    pub fn tick(&mut self, registry: &Registry, now_ms: u64) {
        if self.link.is_none() && now_ms >= self.retry_at_ms {
            self.connect(registry, now_ms);
        }
        let Some(link) = &mut self.link else { return };
        let in_handshake = link.end.in_handshake();
        let late =
            in_handshake && now_ms.saturating_sub(link.since_ms) > HANDSHAKE_TIMEOUT.as_millis() as u64;
        let silence = now_ms.saturating_sub(link.end.last_heard_ms);
        if late || (!in_handshake && silence > 3 * self.heartbeat_ms + self.heartbeat_ms / 2) {
            return self.disconnect(now_ms);
        }
        if now_ms.saturating_sub(link.end.last_said_ms) >= self.heartbeat_ms {
            link.end.ping(now_ms);
        }
        if link.readable {
            self.read(now_ms);
        }
    }

    fn connect(&mut self, registry: &Registry, now_ms: u64) {
        let Some(address) = self.address else { return };
        let Ok(mut stream) = TcpStream::connect(address) else { return self.back_off(now_ms) };
        let _ = stream.set_nodelay(true);
        if registry.register(&mut stream, self.token, Interest::READABLE | Interest::WRITABLE).is_err() {
            return self.back_off(now_ms);
        }
        let end = ExecutorEnd::new(&self.secret, self.group, self.entropy.bytes(), self.ttl_ms, now_ms);
        self.link = Some(Link { stream, end, since_ms: now_ms, readable: false, ended: false });
    }

    /// Its socket is ready.
    pub fn on_event(&mut self, event: &Event, now_ms: u64) {
        if let Some(link) = &mut self.link {
            link.ended |= event.is_read_closed();
            link.readable |= event.is_readable() || link.ended;
            self.read(now_ms);
        }
    }

    fn read(&mut self, now_ms: u64) {
        let mut total = 0;
        while let Some(link) = self.link.as_mut().filter(|link| link.readable && total < READ_A_TURN_BYTES) {
            match link.stream.read(&mut self.buffer[..]) {
                Ok(0) => {
                    if let Some(reason) = link.end.at_end_of_file() {
                        self.refusals.say(reason, now_ms);
                    }
                    return self.disconnect(now_ms);
                }
                Ok(read) => {
                    total += read;
                    // After a short read the socket is empty (epoll(7)): what comes next brings an event of its own.
                    link.readable = read == self.buffer.len() || link.ended;
                    if let Err(reason) = link.end.received(&self.buffer[..read], &self.secret, now_ms) {
                        self.refusals.say(reason, now_ms);
                        return self.disconnect(now_ms);
                    }
                    if link.end.is_up {
                        self.backoff_ms = BACKOFF_MIN_MS;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => link.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.disconnect(now_ms),
            }
        }
    }

    /// Writes what is queued, once a turn.
    pub fn flush(&mut self, now_ms: u64) {
        while let Some(link) = &mut self.link {
            let bytes = link.end.output(now_ms);
            if bytes.is_empty() {
                return;
            }
            match link.stream.write(bytes) {
                Ok(written) => link.end.wrote(written),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.disconnect(now_ms),
            }
        }
    }

    fn disconnect(&mut self, now_ms: u64) {
        if self.link.take().is_some() {
            wipe_stack();
            self.lost = true;
            self.back_off(now_ms);
        }
    }

    /// 10 ms, doubling to 1 s, with jitter so that many executors do not come at once.
    fn back_off(&mut self, now_ms: u64) {
        self.retry_at_ms = now_ms + self.backoff_ms / 2 + self.entropy.up_to(self.backoff_ms / 2);
        self.backoff_ms = (self.backoff_ms * 2).min(BACKOFF_MAX_MS);
    }

    /// When [`ChannelClient::tick`] has something to do, in ms from now.
    #[must_use]
    pub fn next_due_ms(&self, now_ms: u64) -> u64 {
        match &self.link {
            None if self.address.is_none() => self.heartbeat_ms,
            None => self.retry_at_ms.saturating_sub(now_ms),
            Some(link) if link.readable => 0,
            Some(link) => (link.end.last_said_ms + self.heartbeat_ms).saturating_sub(now_ms),
        }
    }
}

impl Consumer for ChannelClient {
    fn step(&mut self, requests: Requests, room: usize) -> Result<Step, BackendError> {
        if std::mem::take(&mut self.lost) {
            return Err(BackendError("the channel was closed".into()));
        }
        match &mut self.link {
            Some(link) => link.end.step(requests, room),
            None => Ok(Step::default()),
        }
    }

    fn extend(&mut self) {
        if let Some(link) = &mut self.link {
            link.end.extend();
        }
    }

    /// Without a connection nothing of what was said counts any more.
    fn is_settled(&self) -> bool {
        self.link.as_ref().is_none_or(|link| link.end.in_handshake() || link.end.is_settled())
    }
}
