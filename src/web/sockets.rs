//! The clients' sockets: accepted, read and written so far as the gate allows.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::time::Duration;

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use super::gate::Gate;
use crate::clock::Timestamp;
use crate::config::{Web, WebLimits};
use crate::job::IdMap;
use crate::limits::{ACCEPTS_A_TURN, READ_A_TURN_BYTES, READ_BYTES};

/// Descriptors that are not clients': the channel's, the inner server's, files, sockets to come.
const OWN_DESCRIPTORS: u64 = 128;

/// See the module.
pub struct ClientSockets {
    pub listener: TcpListener,
    clients: IdMap<usize, Client>,
    /// Those whose sockets may have bytes that were not read.
    unread: BTreeSet<usize>,
    limits: WebLimits,
    /// Their connections are those of many clients.
    proxies: Vec<IpAddr>,
    /// Somebody may be waiting to be accepted.
    pub accepting: bool,
    /// It was accepted beyond the limit.
    next: Option<(TcpStream, SocketAddr)>,
    /// Accepting is tried again then, after the kernel had nothing to give.
    accept_at: Timestamp,
    buffer: Box<[u8; READ_BYTES]>,
}

struct Client {
    stream: TcpStream,
    ip: IpAddr,
    /// The end of its side has come, behind bytes that may not have been read.
    ended: bool,
}

impl ClientSockets {
    pub fn new(listener: TcpListener, web: &Web) -> ClientSockets {
        let limits = &web.limits;
        let descriptors = crate::process::hygiene::raise_descriptor_limit();
        let allowed =
            usize::try_from(descriptors.saturating_sub(OWN_DESCRIPTORS).max(8)).unwrap_or(usize::MAX);
        if allowed < limits.connections {
            log::warn!("web.limits.connections is cut to {allowed}: the descriptor limit is {descriptors}");
        }
        ClientSockets {
            listener,
            clients: IdMap::default(),
            unread: BTreeSet::new(),
            limits: WebLimits { connections: limits.connections.min(allowed), ..*limits },
            proxies: web.trusted_proxies.iter().map(IpAddr::to_canonical).collect(),
            accepting: true,
            next: None,
            accept_at: Timestamp(0),
            buffer: Box::new([0; READ_BYTES]),
        }
    }

    /// One of the clients' sockets is ready; false if it is none of them.
    pub fn on_event(&mut self, token: usize, event: &Event, gate: &mut Gate) -> bool {
        let Some(client) = self.clients.get_mut(&token) else { return false };
        if event.is_read_closed() && !std::mem::replace(&mut client.ended, true) {
            // What it said before may have to wait for its turn to be read; that it has left need not.
            gate.left(token);
        }
        if event.is_error() {
            // A reset: nobody reads what is said now.
            self.close(token, gate);
            return true;
        }
        if event.is_readable() || event.is_read_closed() {
            self.unread.insert(token);
        }
        if event.is_writable() && !gate.unsent(token).is_empty() {
            gate.clients.touched.push(token);
        }
        true
    }

    /// Reads what there is.
    pub fn read_all(&mut self, gate: &mut Gate) {
        for token in std::mem::take(&mut self.unread) {
            if self.read(token, gate) {
                self.unread.insert(token);
            }
        }
    }

    /// Accepts nobody any more; others may have the same listener.
    pub fn retire(&mut self, registry: &Registry) {
        let _ = registry.deregister(&mut self.listener);
        self.accepting = false;
    }

    /// Accepts while there is room. Beyond the limit one waits here, and others in the kernel's backlog. `next_token` is counted up for
    /// each new connection.
    pub fn accept(&mut self, registry: &Registry, next_token: &mut usize, gate: &mut Gate, now: Timestamp) {
        const PAUSE: Duration = Duration::from_millis(100);
        for _ in 0..ACCEPTS_A_TURN {
            if !self.make_room(gate) {
                return;
            }
            let accepted = self.next.take().map(Ok);
            if accepted.is_none() && (!self.accepting || now < self.accept_at) {
                return;
            }
            let (mut stream, peer) = match accepted.unwrap_or_else(|| self.listener.accept()) {
                Ok(accepted) => accepted,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return self.accepting = false,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    _ => {
                        log::warn!("no connection can be accepted for now: {error}");
                        return self.accept_at = now.plus(PAUSE);
                    }
                },
            };
            let ip = peer.ip().to_canonical();
            let of_this_ip = || self.clients.values().filter(|client| client.ip == ip).count();
            let is_counted = !ip.is_loopback() && !self.proxies.contains(&ip);
            if is_counted && of_this_ip() >= self.limits.connections_per_ip {
                continue; // Dropped: closed without a word.
            }
            if self.clients.len() >= self.limits.connections {
                // The next round makes room, or it waits.
                self.next = Some((stream, peer));
                continue;
            }
            let _ = stream.set_nodelay(true);
            *next_token += 1;
            let token = *next_token;
            let interest = Interest::READABLE | Interest::WRITABLE;
            if registry.register(&mut stream, Token(token), interest).is_err() {
                continue;
            }
            self.clients.insert(token, Client { stream, ip, ended: false });
            gate.open(token, ip);
            self.unread.insert(token);
        }
    }

    /// Reads one socket; true if more may be there.
    fn read(&mut self, token: usize, gate: &mut Gate) -> bool {
        let mut total = 0;
        while let Some(client) = self.clients.get_mut(&token) {
            let room = gate.readable_bytes(token).min(self.buffer.len());
            if room == 0 || total >= READ_A_TURN_BYTES {
                return true; // Its turn comes when there is room, or in the next turn.
            }
            match client.stream.read(&mut self.buffer[..room]) {
                Ok(0) => {
                    gate.ended(token);
                    return false;
                }
                Ok(read) => {
                    total += read;
                    let ended = client.ended;
                    gate.received(token, &self.buffer[..read]);
                    if read < room && !ended {
                        // The socket is empty: the next bytes come with an event of their own.
                        return false;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.close(token, gate);
                    return false;
                }
            }
        }
        false
    }

    /// Sends what the gate has to say, and closes what is over.
    pub fn flush_touched(&mut self, gate: &mut Gate) {
        for token in std::mem::take(&mut gate.clients.touched) {
            self.flush(token, gate);
        }
    }

    fn flush(&mut self, token: usize, gate: &mut Gate) {
        gate.keep_budget(token);
        loop {
            let Some(client) = self.clients.get_mut(&token) else { return };
            let unsent = gate.unsent(token);
            if unsent.is_empty() {
                break;
            }
            match client.stream.write(unsent) {
                Ok(written) => gate.flushed(token, written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.close(token, gate),
            }
        }
        if gate.is_over(token) {
            self.close(token, gate);
        } else if gate.is_finished(token)
            && let Some(client) = self.clients.get(&token)
        {
            // A lingering close: what the client still sends is read and dropped, so that the answer arrives.
            let _ = client.stream.shutdown(Shutdown::Write);
        }
    }

    /// For a client that waits at the limit, another one goes. True unless it goes on waiting.
    fn make_room(&mut self, gate: &mut Gate) -> bool {
        if self.next.is_some() && self.clients.len() >= self.limits.connections {
            let mut idle = self.most_idle(gate);
            if let Some(slow) = idle.filter(|idle| !gate.unsent(*idle).is_empty()) {
                // It may have taken something since: a socket says that it has room only when it has much.
                self.flush(slow, gate);
                idle = self.most_idle(gate);
            }
            idle.into_iter().for_each(|idle| self.close(idle, gate));
            return idle.is_some();
        }
        true
    }

    fn most_idle(&self, gate: &Gate) -> Option<usize> {
        gate.clients.most_idle(|token| self.unread.contains(&token))
    }

    fn close(&mut self, token: usize, gate: &mut Gate) {
        gate.close(token);
        self.clients.remove(&token);
    }

    /// How long nothing need be done here, if no event comes.
    pub fn rests(&self, gate: &Gate, now: Timestamp) -> Duration {
        if self.unread.iter().any(|token| gate.readable_bytes(*token) > 0) {
            return Duration::ZERO;
        }
        match self.next {
            None if self.accepting => self.accept_at.since(now),
            Some(_) if self.clients.len() < self.limits.connections || self.most_idle(gate).is_some() => {
                Duration::ZERO
            }
            None | Some(_) => Duration::MAX,
        }
    }
}
