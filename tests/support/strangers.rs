//! Who speaks to a running broker without being an executor: strangers, and peers who know the secret.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use cofferdam::channel::handshake::{Initiator, Session};
use cofferdam::channel::keys::GroupSecret;
use cofferdam::channel::messages::{ToBroker, ToExecutor, to_executor};
use cofferdam::clock::monotonic_millis;
use cofferdam::entropy::Entropy;

use super::program::DEADLINE;
use super::wire::{OVERHEAD, data_keys};

/// A connection to the channel.
#[track_caller]
pub fn connect(channel: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(channel).expect("the channel listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    stream
}

/// A new first message of the first group, made at this time.
pub fn initiator(secret: &GroupSecret, time_ms: u64) -> Initiator {
    initiator_of(0, secret, time_ms)
}

fn initiator_of(group: u16, secret: &GroupSecret, time_ms: u64) -> Initiator {
    Initiator::start(secret, group, Entropy::system().bytes(), 30_000, time_ms)
}

/// All bytes until the end of file, or a reset: which of them, the kernel decides.
#[track_caller]
pub fn said_until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let (mut said, mut buffer) = (Vec::new(), [0; 4_096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return said,
            Ok(read) => said.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                assert!(
                    !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                    "it was not closed"
                );
                return said;
            }
        }
    }
}

/// A stranger that sends these bytes and gets none; says how long it was kept.
#[track_caller]
pub fn stranger(channel: SocketAddr, bytes: &[u8]) -> Duration {
    let mut stream = connect(channel);
    let started = Instant::now();
    // A connection that is closed meanwhile is the point of it.
    let _ = stream.write_all(bytes);
    assert_eq!(said_until_closed(&mut stream), b"", "a stranger gets not one byte");
    started.elapsed()
}

/// Who knows the secret.
pub struct Peer {
    pub stream: TcpStream,
    pub session: Session,
    pub m1: [u8; 80],
    pub m3: [u8; 40],
    pub to_broker: [u8; 32],
    pub to_executor: [u8; 32],
}

impl Peer {
    /// A connection of the first group that has its M2.
    #[track_caller]
    pub fn proven(channel: SocketAddr, secret: &GroupSecret) -> Peer {
        Peer::proven_of(0, channel, secret)
    }

    #[track_caller]
    fn proven_of(group: u16, channel: SocketAddr, secret: &GroupSecret) -> Peer {
        let mut stream = connect(channel);
        let initiator = initiator_of(group, secret, monotonic_millis());
        stream.write_all(initiator.m1()).expect("it reads");
        let mut m2 = [0; 104];
        stream.read_exact(&mut m2).expect("M2");
        let m1 = *initiator.m1();
        let keys = data_keys(secret, &m1, &m2);
        let (session, m3) = initiator.finish(&m2, secret, monotonic_millis()).expect("it is valid");
        Peer { stream, session, m1, m3, to_broker: keys.to_broker, to_executor: keys.to_executor }
    }

    /// A connection of the first group that is up, as its first pong shows.
    #[track_caller]
    pub fn up(channel: SocketAddr, secret: &GroupSecret) -> Peer {
        Peer::up_of(0, channel, secret)
    }

    /// The same of the group with this index.
    #[track_caller]
    pub fn up_of(group: u16, channel: SocketAddr, secret: &GroupSecret) -> Peer {
        let mut peer = Peer::proven_of(group, channel, secret);
        let m3 = peer.m3;
        peer.stream.write_all(&m3).expect("it reads");
        peer.ping();
        let mut pong = [0; OVERHEAD];
        peer.stream.read_exact(&mut pong).expect("a pong");
        let opened = peer.session.opener.open(&pong, monotonic_millis(), to_executor).expect("it is valid");
        let (frame, _) = opened.expect("it is whole");
        assert!(matches!(ToExecutor::decode(frame.kind, frame.lease, frame.body), Ok(ToExecutor::Pong)));
        peer
    }

    /// Says its third message and a ping, and gets no byte for them.
    #[track_caller]
    pub fn finds_no_place(mut self) {
        let bytes = [self.m3.to_vec(), self.sealed_ping()].concat();
        self.stream.write_all(&bytes).expect("it reads");
        assert_eq!(self.said_until_closed(), b"");
    }

    #[track_caller]
    pub fn ping(&mut self) {
        let ping = self.sealed_ping();
        self.stream.write_all(&ping).expect("it reads");
    }

    fn sealed_ping(&mut self) -> Vec<u8> {
        let ((kind, body), mut bytes) = (ToBroker::Ping.encode(), Vec::new());
        self.session.sealer.seal(kind, 0, &body, monotonic_millis(), &mut bytes);
        bytes
    }

    /// Pings and takes none of the pongs, until it is closed.
    #[track_caller]
    pub fn pings_without_reading(mut self) {
        let end = Instant::now() + DEADLINE;
        loop {
            let pings: Vec<u8> = (0..1_024).flat_map(|_| self.sealed_ping()).collect();
            if self.stream.write_all(&pings).is_err() {
                return;
            }
            assert!(Instant::now() < end, "it was not closed");
        }
    }

    /// What the other side says until it closes.
    #[track_caller]
    pub fn said_until_closed(mut self) -> Vec<u8> {
        said_until_closed(&mut self.stream)
    }
}
