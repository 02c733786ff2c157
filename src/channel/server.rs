//! The broker's side with sockets: the listener and its connections, inside its process's event loop.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use super::broker_end::{BrokerEnd, Doorman};
use super::handshake::{NonceCache, Terms};
use super::keys::GroupSecret;
use super::reject::{RefusalLog, Reject};
use crate::config::Ipc;
use crate::entropy::Entropy;
use crate::limits::{
    ACCEPTS_A_TURN, CONTEXT_BYTES, FOLLOW_UPS_BYTES, FRAME_OVERHEAD_BYTES, HANDSHAKE_TIMEOUT,
    READ_A_TURN_BYTES, UNPROVEN_CONNECTIONS,
};
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
}

/// See the module.
pub struct ChannelServer {
    listener: TcpListener,
    links: HashMap<usize, Link>,
    secrets: Vec<GroupSecret>,
    nonces: NonceCache,
    terms: Terms,
    entropy: Entropy,
    connect: Box<dyn FnMut(usize) -> Box<dyn Consumer>>,
    counters: Arc<Counters>,
    heartbeat_ms: u64,
    parts_max: usize,
    /// Given up for a moment when there are no descriptors: accept, close, go on.
    spare: Option<std::fs::File>,
    refusals: RefusalLog,
}

struct Link {
    stream: TcpStream,
    end: BrokerEnd,
    accepted_ms: u64,
    readable: bool,
    frames: (u64, u64),
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
            links: HashMap::new(),
            secrets: config.secrets,
            nonces: NonceCache::new(config.ipc.auth.nonce_cache_size),
            terms,
            entropy,
            connect,
            counters,
            heartbeat_ms: config.ipc.heartbeat_ms,
            parts_max: 2 * (config.lane_state_max + CONTEXT_BYTES) + FOLLOW_UPS_BYTES + max_frame,
            spare: std::fs::File::open("/dev/null").ok(),
            refusals: RefusalLog::default(),
        })
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

    /// True if this token is one of its connections.
    #[must_use]
    pub fn owns(&self, token: usize) -> bool {
        self.links.contains_key(&token)
    }

    /// Accepts who is there; `next_token` is counted up for each. True if more may be waiting.
    pub fn accept(&mut self, registry: &Registry, next_token: &mut usize, now_ms: u64) -> bool {
        for _ in 0..ACCEPTS_A_TURN {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) if matches!(error.raw_os_error(), Some(23 | 24)) => {
                    // No descriptor is left: with the spare one, the connection is taken and closed.
                    self.spare = None;
                    let closed = self.listener.accept().is_ok();
                    self.spare = std::fs::File::open("/dev/null").ok();
                    self.reject(Reject::TooManyConnections, now_ms);
                    if closed { continue } else { return false }
                }
                Err(_) => continue,
            };
            let _ = stream.set_nodelay(true);
            *next_token += 1;
            let token = *next_token;
            let interest = Interest::READABLE | Interest::WRITABLE;
            if registry.register(&mut stream, Token(token), interest).is_err() {
                continue;
            }
            let end = BrokerEnd::new(now_ms, self.parts_max);
            self.links
                .insert(token, Link { stream, end, accepted_ms: now_ms, readable: true, frames: (0, 0) });
            self.bound_unproven(now_ms);
            // It reads as soon as it accepts.
            self.read(token, now_ms);
        }
        true
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
    pub fn on_event(&mut self, token: usize, readable: bool, now_ms: u64) {
        if let Some(link) = self.links.get_mut(&token) {
            link.readable |= readable;
            if link.readable {
                self.read(token, now_ms);
            }
        }
    }

    fn read(&mut self, token: usize, now_ms: u64) {
        let mut buffer = [0; 65_536];
        let mut total = 0;
        loop {
            let Some(link) = self.links.get_mut(&token) else { return };
            if total >= READ_A_TURN_BYTES {
                return; // It stays readable, and is read again in the next turn.
            }
            let was_fresh = link.end.is_fresh();
            let room = link.end.room().min(buffer.len());
            let read = match link.stream.read(&mut buffer[..room]) {
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
            // The turn may have begun long ago, in a process that was stopped: frames are judged as they are read.
            let now_ms = now_ms.max(crate::clock::monotonic_millis());
            let mut doorman = Doorman {
                secrets: &self.secrets,
                nonces: &mut self.nonces,
                terms: self.terms,
                entropy: &mut self.entropy,
                connect: &mut self.connect,
            };
            if let Err(reason) = link.end.received(&buffer[..read], &mut doorman, now_ms) {
                return self.close(token, Some(reason), now_ms);
            }
            let half_open = self.links.values().filter(|link| link.end.is_proven()).count();
            if was_fresh && half_open > UNPROVEN_CONNECTIONS {
                return self.close(token, Some(Reject::TooManyConnections), now_ms);
            }
        }
    }

    /// Commits, claims and writes for every connection; ends those that are past their deadlines.
    pub fn turn(&mut self, now_ms: u64) {
        let tokens: Vec<usize> = self.links.keys().copied().collect();
        for token in &tokens {
            if self.links.get(token).is_some_and(|link| link.readable) {
                self.read(*token, now_ms);
            }
        }
        for token in tokens {
            let Some(link) = self.links.get_mut(&token) else { continue };
            let late = now_ms.saturating_sub(link.accepted_ms) > HANDSHAKE_TIMEOUT.as_millis() as u64;
            let silent = now_ms.saturating_sub(link.end.last_heard_ms) > 4 * self.heartbeat_ms;
            match link.end.group() {
                None if late => self.close(token, Some(Reject::HandshakeTimeout), now_ms),
                Some(_) if silent => self.close(token, None, now_ms),
                None | Some(_) => {
                    if let Err(error) = link.end.turn() {
                        log::warn!("the backend is lost: {error}");
                        self.close(token, None, now_ms);
                    } else {
                        self.flush(token, now_ms);
                    }
                }
            }
        }
        self.count();
    }

    fn flush(&mut self, token: usize, now_ms: u64) {
        let Some(link) = self.links.get_mut(&token) else { return };
        loop {
            let bytes = link.end.output(now_ms);
            if bytes.is_empty() {
                return;
            }
            match link.stream.write(bytes) {
                Ok(written) => link.end.wrote(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.close(token, None, now_ms),
            }
        }
    }

    fn count(&mut self) {
        let mut busy = vec![0; self.secrets.len()];
        for link in self.links.values_mut() {
            let (before_in, before_out) = link.frames;
            link.frames = (link.end.frames_in, link.end.frames_out());
            self.counters.frames_in.fetch_add(link.frames.0 - before_in, Ordering::Relaxed);
            self.counters.frames_out.fetch_add(link.frames.1 - before_out, Ordering::Relaxed);
            if let Some(group) = link.end.group() {
                busy[group] += u64::from(link.end.busy);
            }
        }
        for (group, workers) in busy.into_iter().enumerate() {
            self.counters.busy(group, workers);
        }
    }

    /// When something is due by time alone, in ms from now; `None` without connections.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        let handshakes = self.links.values().any(|link| link.end.group().is_none());
        let readable = self.links.values().any(|link| link.readable);
        match (readable, handshakes, self.links.is_empty()) {
            (true, _, _) => Some(0),
            (_, true, _) => Some(100),
            (_, _, false) => Some(self.heartbeat_ms),
            (_, _, true) => None,
        }
    }

    /// Closes without a byte; dropping its consumer ends its leases.
    fn close(&mut self, token: usize, reason: Option<Reject>, now_ms: u64) {
        let was_up = self.links.remove(&token).is_some_and(|mut link| {
            link.end.settle();
            link.end.group().is_some()
        });
        if let Some(reason) = reason {
            self.reject(reason, now_ms);
        } else if was_up {
            log::info!("an executor's connection has ended");
        }
    }

    /// Counts every refusal, and logs some.
    fn reject(&mut self, reason: Reject, now_ms: u64) {
        self.counters.reject(reason);
        self.refusals.say(reason, now_ms);
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}
