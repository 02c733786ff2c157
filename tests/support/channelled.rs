//! A backend's consumers through the signed channel, so that the conformance suites see them as executors do.
//!
//! Each consumer is an [`ExecutorEnd`] whose bytes are copied to a [`BrokerEnd`] and back: a real handshake, real
//! frames, pieces of random sizes, no socket, and a clock that only the suite moves. Not in scope: the event loops
//! around the two ends.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cofferdam::bell::Bell;
use cofferdam::channel::handshake::{Nonces, Terms};
use cofferdam::channel::keys::GroupSecret;
use cofferdam::channel::{Admission, BrokerEnd, ExecutorEnd};
use cofferdam::clock::Timestamp;
use cofferdam::entropy::Entropy;
use cofferdam::limits::FRAME_OVERHEAD_BYTES;
use cofferdam::ports::{BackendError, Consumer, KeyValue, Producer, Replies, Requests, Step};

use super::conformance::{Backend, Settings};

const TTL_MS: u64 = 30_000;

/// The consumers of this backend behind the channel; the rest of it as it is.
pub fn behind_the_channel(inner: Box<dyn Backend>, settings: &Settings) -> Box<dyn Backend> {
    let seed = seed();
    eprintln!("pieces of random sizes: COFFERDAM_SEED={seed}");
    let max_frame = settings.max_payload + FRAME_OVERHEAD_BYTES;
    let wires = Wires {
        links: Vec::new(),
        secrets: (0..settings.groups).map(secret).collect(),
        nonces: (0..settings.groups).map(|_| Nonces::new(4_096)).collect(),
        terms: Terms {
            boot_id: [9; 16],
            max_frame: u32::try_from(max_frame).expect("a frame's length is a u32"),
            max_leases: 65_536,
            ttl_ms: TTL_MS,
        },
        parts_max: settings.lane_state_max + max_frame,
        entropy: Entropy::Seeded(2),
        pieces: Entropy::Seeded(seed),
    };
    Box::new(Channelled { inner, wires: Mutex::new(wires) })
}

/// `COFFERDAM_SEED`, or a new one.
fn seed() -> u64 {
    match std::env::var("COFFERDAM_SEED") {
        Ok(text) => text.parse().expect("COFFERDAM_SEED is a number"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64,
    }
}

/// Any 32 bytes that differ from group to group.
fn secret(group: usize) -> GroupSecret {
    GroupSecret::from_bytes([0x40 + u8::try_from(group).expect("few groups"); 32])
}

struct Channelled {
    inner: Box<dyn Backend>,
    wires: Mutex<Wires>,
}

/// What the broker's side of all connections shares, and what lies between the two sides.
struct Wires {
    links: Vec<Arc<Mutex<Link>>>,
    secrets: Vec<GroupSecret>,
    nonces: Vec<Nonces>,
    terms: Terms,
    parts_max: usize,
    entropy: Entropy,
    /// How many bytes arrive at once.
    pieces: Entropy,
}

/// One connection.
struct Link {
    executor: ExecutorEnd,
    broker: BrokerEnd,
    group: usize,
    bell: Bell,
    is_closed: bool,
}

/// The executor's side of a connection, as the suite holds it. Dropping it closes the connection.
struct Plug(Arc<Mutex<Link>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A law that has failed unwinds through its consumers; they must not panic again.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Channelled {
    /// Copies bytes until none are left, then lets the broker's ends take their turns, until nothing moves; true if
    /// something did.
    fn carry(&self) -> bool {
        let now_ms = self.now().millis();
        let mut wires = lock(&self.wires);
        let open = wires.links.len();
        wires.links.retain(|link| !lock(link).is_closed);
        let links = wires.links.clone();
        let mut has_moved = links.len() < open;
        loop {
            let mut moved = false;
            for link in &links {
                let link = &mut *lock(link);
                moved |= self.to_broker(&mut wires, link, now_ms);
                link.broker.turn().expect("the memory broker is there");
                moved |= to_executor(&mut wires, link, now_ms);
            }
            if !moved {
                return has_moved;
            }
            has_moved = true;
        }
    }

    fn to_broker(&self, wires: &mut Wires, link: &mut Link, now_ms: u64) -> bool {
        let mut moved = false;
        let mut connect = |group| self.inner.consumer(group, Bell::silent());
        loop {
            let bytes = link.executor.output(now_ms);
            if bytes.is_empty() {
                return moved;
            }
            // It reads no more than the next message of the handshake, however much there is.
            let piece = wires.pieces.piece(bytes.len()).min(link.broker.readable_bytes());
            let mut admission = Admission {
                secrets: &wires.secrets,
                nonces: &mut wires.nonces,
                terms: wires.terms,
                entropy: &mut wires.entropy,
                connect: &mut connect,
            };
            link.broker.received(&bytes[..piece], &mut admission, now_ms).expect("the broker's end takes it");
            link.executor.wrote(piece);
            moved = true;
        }
    }
}

fn to_executor(wires: &mut Wires, link: &mut Link, now_ms: u64) -> bool {
    let mut moved = false;
    loop {
        let bytes = link.broker.output(now_ms);
        if bytes.is_empty() {
            break;
        }
        let piece = wires.pieces.piece(bytes.len());
        let secret = &wires.secrets[link.group];
        link.executor.received(&bytes[..piece], secret, now_ms).expect("the executor's end takes it");
        link.broker.wrote(piece);
        moved = true;
    }
    if moved {
        // As the event loop would: bytes have come, so look.
        link.bell.ring();
    }
    moved
}

trait Pieces {
    fn piece(&mut self, available: usize) -> usize;
}

impl Pieces for Entropy {
    /// One byte, a few, or all there is: the edges of frames are met from every side.
    fn piece(&mut self, available: usize) -> usize {
        let most = match self.up_to(3) {
            0 => 1,
            1 => 100,
            _ => available,
        };
        1 + self.up_to(most.min(available) as u64 - 1) as usize
    }
}

impl Backend for Channelled {
    fn producer(&self) -> &dyn Producer {
        self.inner.producer()
    }

    fn replies(&self) -> &dyn Replies {
        self.inner.replies()
    }

    fn key_value(&self) -> &dyn KeyValue {
        self.inner.key_value()
    }

    fn consumer(&self, group: usize, bell: Bell) -> Box<dyn Consumer> {
        let now_ms = self.now().millis();
        let mut wires = lock(&self.wires);
        let nonce = wires.entropy.bytes();
        let index = u16::try_from(group).expect("few groups");
        let link = Arc::new(Mutex::new(Link {
            executor: ExecutorEnd::new(&wires.secrets[group], index, nonce, TTL_MS, now_ms),
            broker: BrokerEnd::new(now_ms, wires.parts_max),
            group,
            bell,
            is_closed: false,
        }));
        wires.links.push(link.clone());
        Box::new(Plug(link))
    }

    fn now(&self) -> Timestamp {
        self.inner.now()
    }

    fn advance(&self, by: Duration) {
        self.inner.advance(by);
    }

    fn tick(&self) {
        self.inner.tick();
    }

    fn settle(&self) {
        loop {
            self.inner.settle();
            if !self.carry() {
                return;
            }
        }
    }

    fn sizes(&self) -> Vec<usize> {
        self.inner.sizes()
    }
}

impl Consumer for Plug {
    fn step(&mut self, requests: Requests, room: usize) -> Result<Step, BackendError> {
        lock(&self.0).executor.step(requests, room)
    }

    fn extend(&mut self) {
        lock(&self.0).executor.extend();
    }

    fn is_settled(&self) -> bool {
        lock(&self.0).executor.is_settled()
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        // Its end of file reaches the broker's side with the next bytes, not before.
        lock(&self.0).is_closed = true;
    }
}
