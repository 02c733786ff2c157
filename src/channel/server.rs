//! The broker's side with sockets: the listener and its connections, inside its process's event loop.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use super::broker_end::{Admission, BrokerEnd};
use super::handshake::{Nonces, Terms};
use super::keys::GroupSecret;
use super::reject::{RefusalLog, Reject};
use crate::config::Ipc;
use crate::entropy::Entropy;
use crate::job::IdMap;
use crate::limits::{
    ACCEPTS_A_TURN, FRAME_OVERHEAD_BYTES, HANDSHAKE_TIMEOUT, READ_A_TURN_BYTES, READ_BYTES,
    UNPROVEN_CONNECTIONS, effects_bytes,
};
use crate::mac::wipe_stack;
use crate::observe::metrics::Counters;
use crate::ports::Consumer;

/// Leases at once of one executor.
const MAX_LEASES: u32 = 65_536;

/// What the server follows.
pub struct ServerConfig {
    /// Of each group, by index.
    pub secrets: Vec<GroupSecret>,
    /// `execution_ipc`
    pub ipc: Ipc,
    /// `kv.lane_state_max_bytes`: effects in parts are at most that and one frame.
    pub lane_state_max: usize,
    /// Executors of each group, by index; while they are replaced there are more connections for a moment.
    pub processes: Vec<usize>,
}

/// See the module.
pub struct ChannelServer {
    listener: TcpListener,
    links: IdMap<usize, Link>,
    secrets: Vec<GroupSecret>,
    nonces: Vec<Nonces>,
    /// Connections of each group at most.
    connections_max: Vec<usize>,
    terms: Terms,
    entropy: Entropy,
    connect: Box<dyn FnMut(usize) -> Box<dyn Consumer>>,
    counters: Arc<Counters>,
    heartbeat_ms: u64,
    parts_max: usize,
    /// Given up for a moment when there are no descriptors: accept, close, go on.
    spare: Option<std::fs::File>,
    /// Somebody may be waiting to be accepted.
    accepting: bool,
    /// Accepting is tried again then, after the kernel had nothing to give.
    accept_at_ms: u64,
    refusals: RefusalLog,
    buffer: Box<[u8; READ_BYTES]>,
}

struct Link {
    stream: TcpStream,
    end: BrokerEnd,
    accepted_ms: u64,
    readable: bool,
    /// The end of the peer's side has come, behind bytes that may not have been read.
    ended: bool,
    /// Frames in and out that were counted.
    counted: (u64, u64),
}

impl ChannelServer {
    /// Listens. `connect` makes the consumer of a group for each executor that has proved itself.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn bind(
        config: ServerConfig,
        counters: Arc<Counters>,
        connect: Box<dyn FnMut(usize) -> Box<dyn Consumer>>,
    ) -> Result<ChannelServer, String> {
        let address = format!("{}:{}", bracketed(&config.ipc.bind_host), config.ipc.bind_port);
        let parsed: SocketAddr = address.parse().map_err(|error| format!("{address}: {error}"))?;
        let listener =
            TcpListener::bind(parsed).map_err(|error| format!("the channel's address {address}: {error}"))?;
        let mut entropy = Entropy::system();
        let max_frame = config.ipc.max_payload_bytes + FRAME_OVERHEAD_BYTES;
        let terms = Terms {
            boot_id: entropy.bytes(),
            max_frame: u32::try_from(max_frame).unwrap_or(u32::MAX),
            max_leases: MAX_LEASES,
            ttl_ms: config.ipc.auth.ttl_seconds * 1_000,
        };
        Ok(ChannelServer {
            listener,
            links: IdMap::default(),
            nonces: config.secrets.iter().map(|_| Nonces::new(config.ipc.auth.nonce_cache_size)).collect(),
            connections_max: config.processes.iter().map(|processes| 2 * (processes + 2)).collect(),
            secrets: config.secrets,
            terms,
            entropy,
            connect,
            counters,
            heartbeat_ms: config.ipc.heartbeat_ms,
            parts_max: effects_bytes(config.lane_state_max) + max_frame,
            spare: std::fs::File::open("/dev/null").ok(),
            accepting: true,
            accept_at_ms: 0,
            refusals: RefusalLog::default(),
            buffer: Box::new([0; READ_BYTES]),
        })
    }

    /// Handshakes are with these secrets from now on; connections that are up go on.
    pub fn set_secrets(&mut self, secrets: Vec<GroupSecret>) {
        self.secrets = secrets;
    }

    /// How many groups have a secret.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.secrets.len()
    }

    /// Where executors connect.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Registers the listener.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn register(&mut self, registry: &Registry, token: Token) -> std::io::Result<()> {
        registry.register(&mut self.listener, token, Interest::READABLE)
    }

    /// Somebody wants to connect.
    pub fn on_connect(&mut self) {
        self.accepting = true;
    }

    /// Accepts who is there; `next_token` is counted up for each.
    fn accept(&mut self, registry: &Registry, next_token: &mut usize, now_ms: u64) {
        const PAUSE_MS: u64 = 100;
        for _ in 0..ACCEPTS_A_TURN {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.accepting = false;
                    return;
                }
                Err(error) if matches!(error.raw_os_error(), Some(23 | 24)) => {
                    // No descriptor is left: with the spare one, the connection is taken and closed.
                    self.spare = None;
                    let closed = self.listener.accept().is_ok();
                    self.spare = std::fs::File::open("/dev/null").ok();
                    self.reject(Reject::TooManyConnections, now_ms);
                    self.accepting = closed;
                    if closed { continue } else { return }
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) =>
                {
                    continue;
                }
                Err(error) => {
                    log::warn!("no connection of an executor can be accepted for now: {error}");
                    self.accept_at_ms = now_ms + PAUSE_MS;
                    return;
                }
            };
            let _ = stream.set_nodelay(true);
            *next_token += 1;
            let token = *next_token;
            let interest = Interest::READABLE | Interest::WRITABLE;
            if registry.register(&mut stream, Token(token), interest).is_err() {
                continue;
            }
            let end = BrokerEnd::new(now_ms, self.parts_max);
            let link =
                Link { stream, end, accepted_ms: now_ms, readable: true, ended: false, counted: (0, 0) };
            self.links.insert(token, link);
            self.bound_unproven(now_ms);
            // It reads as soon as it accepts.
            self.read(token, now_ms);
        }
    }

    /// Strangers share a few places: the oldest of them goes, never an executor.
    fn bound_unproven(&mut self, now_ms: u64) {
        let fresh = |link: &Link| link.end.is_fresh();
        if self.links.values().filter(|link| fresh(link)).count() > UNPROVEN_CONNECTIONS {
            let unproven = self.links.iter().filter(|(_, link)| fresh(link));
            if let Some(oldest) = unproven.map(|(token, link)| (link.accepted_ms, *token)).min() {
                self.close(oldest.1, Some(Reject::TooManyConnections), now_ms);
            }
        }
    }

    /// A connection's socket is ready.
    pub fn on_event(&mut self, token: usize, event: &Event, now_ms: u64) {
        if let Some(link) = self.links.get_mut(&token) {
            link.ended |= event.is_read_closed();
            link.readable |= event.is_readable() || link.ended;
            self.read(token, now_ms);
        }
    }

    fn read(&mut self, token: usize, now_ms: u64) {
        let mut total = 0;
        while let Some(link) = self.links.get_mut(&token).filter(|link| link.readable) {
            if total >= READ_A_TURN_BYTES {
                return; // It stays readable, and is read again in the next turn.
            }
            let (was_fresh, was_up) = (link.end.is_fresh(), link.end.group().is_some());
            let most = link.end.readable_bytes().min(self.buffer.len());
            let read = match link.stream.read(&mut self.buffer[..most]) {
                Ok(0) => {
                    let reason = link.end.at_end_of_file();
                    return self.close(token, reason, now_ms);
                }
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    link.readable = false;
                    return;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return self.close(token, None, now_ms),
            };
            total += read;
            // After a short read the socket is empty (epoll(7)): what comes next brings an event of its own.
            link.readable = read == most || link.ended;
            // The turn may have begun long ago, in a process that was stopped: frames are judged as they are read.
            let now_ms = now_ms.max(crate::clock::monotonic_millis());
            let mut admission = Admission {
                secrets: &self.secrets,
                nonces: &mut self.nonces,
                terms: self.terms,
                entropy: &mut self.entropy,
                connect: &mut self.connect,
            };
            if let Err(reason) = link.end.received(&self.buffer[..read], &mut admission, now_ms) {
                return self.close(token, Some(reason), now_ms);
            }
            let group = link.end.group().filter(|_| !was_up);
            let half_open = || self.links.values().filter(|link| link.end.is_proven()).count();
            let of_group = |group| self.links.values().filter(|link| link.end.group() == Some(group)).count();
            if was_fresh && half_open() > UNPROVEN_CONNECTIONS
                || group.is_some_and(|group| of_group(group) > self.connections_max[group])
            {
                return self.close(token, Some(Reject::TooManyConnections), now_ms);
            }
        }
    }

    /// Accepts, then commits, claims and writes for every connection; ends those that are past their deadlines.
    /// `next_token` is counted up for each new connection.
    pub fn turn(&mut self, registry: &Registry, next_token: &mut usize, now_ms: u64) {
        if self.accepting && now_ms >= self.accept_at_ms {
            self.accept(registry, next_token, now_ms);
        }
        let (mut unread, mut over) = (Vec::new(), Vec::new());
        unread.extend(self.links.iter().filter(|(_, link)| link.readable).map(|(token, _)| *token));
        for token in unread {
            self.read(token, now_ms);
        }
        for (token, link) in &mut self.links {
            let late = now_ms.saturating_sub(link.accepted_ms) > HANDSHAKE_TIMEOUT.as_millis() as u64;
            let silent = now_ms.saturating_sub(link.end.last_heard_ms) > 4 * self.heartbeat_ms;
            let turned = match link.end.group() {
                None if late => Err(Some(Reject::HandshakeTimeout)),
                Some(_) if silent => Err(None),
                None | Some(_) => link.end.turn(),
            };
            let turned = turned.and_then(|()| link.flush(now_ms).map_err(|_| None));
            if let Err(reason) = turned {
                over.push((*token, reason));
            }
            let frames = (link.end.frames_in, link.end.frames_out());
            if frames != link.counted {
                self.counters.frames_in.fetch_add(frames.0 - link.counted.0, Ordering::Relaxed);
                self.counters.frames_out.fetch_add(frames.1 - link.counted.1, Ordering::Relaxed);
                link.counted = frames;
            }
        }
        for (token, reason) in over {
            self.close(token, reason, now_ms);
        }
    }

    /// When something is due by time alone, in ms from now; `None` without connections.
    #[must_use]
    pub fn next_due_ms(&self, now_ms: u64) -> Option<u64> {
        let handshakes = self.links.values().any(|link| link.end.group().is_none());
        let readable = self.links.values().any(|link| link.readable);
        let accept_ms = self.accepting.then(|| self.accept_at_ms.saturating_sub(now_ms));
        let links_ms = match (readable, handshakes, self.links.is_empty()) {
            (true, _, _) => Some(0),
            (_, true, _) => Some(100),
            (_, _, false) => Some(self.heartbeat_ms),
            (_, _, true) => None,
        };
        accept_ms.into_iter().chain(links_ms).min()
    }

    /// Closes without a byte; dropping its consumer ends its leases.
    fn close(&mut self, token: usize, reason: Option<Reject>, now_ms: u64) {
        let was_up = self.links.remove(&token).is_some_and(|mut link| {
            link.end.settle();
            link.end.group().is_some()
        });
        wipe_stack();
        if let Some(reason) = reason {
            self.reject(reason, now_ms);
        } else if was_up {
            log::info!("an executor's connection has ended");
        }
    }

    /// Counts every refusal, and logs some.
    fn reject(&mut self, reason: Reject, now_ms: u64) {
        self.counters.rejected.add(reason.as_str(), 1);
        self.refusals.say(reason, now_ms);
    }
}

impl Link {
    /// Writes until the socket takes no more. An error: the connection is over.
    fn flush(&mut self, now_ms: u64) -> std::io::Result<()> {
        loop {
            let bytes = self.end.output(now_ms);
            if bytes.is_empty() {
                return Ok(());
            }
            match self.stream.write(bytes) {
                Ok(written) => self.end.wrote(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}
