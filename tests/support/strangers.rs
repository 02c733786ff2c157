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
    Initiator::start(secret, 0, Entropy::system().bytes(), 30_000, time_ms)
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
    /// A connection that has its M2.
    #[track_caller]
    pub fn proven(channel: SocketAddr, secret: &GroupSecret) -> Peer {
        let mut stream = connect(channel);
        let initiator = initiator(secret, monotonic_millis());
        stream.write_all(initiator.m1()).expect("it reads");
        let mut m2 = [0; 104];
        stream.read_exact(&mut m2).expect("M2");
        let m1 = *initiator.m1();
        let keys = data_keys(secret, &m1, &m2);
        let (session, m3) = initiator.finish(&m2, secret, monotonic_millis()).expect("it is valid");
        Peer { stream, session, m1, m3, to_broker: keys.to_broker, to_executor: keys.to_executor }
    }

    /// A connection that is up, as its first pong shows.
    #[track_caller]
    pub fn up(channel: SocketAddr, secret: &GroupSecret) -> Peer {
        let mut peer = Peer::proven(channel, secret);
        let m3 = peer.m3;
        let ping = ToBroker::Ping.encode();
        let mut bytes = m3.to_vec();
        peer.session.sealer.seal(ping.0, 0, &ping.1, monotonic_millis(), &mut bytes);
        peer.stream.write_all(&bytes).expect("it reads");
        let mut pong = [0; OVERHEAD];
        peer.stream.read_exact(&mut pong).expect("a pong");
        let opened = peer.session.opener.open(&pong, monotonic_millis(), to_executor).expect("it is valid");
        let (frame, _) = opened.expect("it is whole");
        assert!(matches!(ToExecutor::decode(frame.kind, frame.body), Ok(ToExecutor::Pong)));
        peer
    }

    /// What the other side says until it closes.
    #[track_caller]
    pub fn said_until_closed(mut self) -> Vec<u8> {
        said_until_closed(&mut self.stream)
    }
}
