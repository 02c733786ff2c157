//! The memory backend's consumers through the signed channel, under the same conformance suites.
//!
//! Each consumer is an [`ExecutorEnd`] whose bytes are copied to a [`BrokerEnd`] and back: a real handshake, real
//! frames, pieces of random sizes, no socket, and a clock that only the suite moves. Room that was granted on the
//! wire stands until its leases have come, while the suites take it back with each step; so the consumer behind a
//! broker's end claims for an executor only what its last step had room for. Not in scope: the event loops around
//! the two ends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cofferdam::bell::Bell;
use cofferdam::channel::handshake::{NonceCache, Terms};
use cofferdam::channel::keys::GroupSecret;
use cofferdam::channel::{BrokerEnd, Doorman, ExecutorEnd};
use cofferdam::clock::{Clock, Timestamp};
use cofferdam::entropy::Entropy;
use cofferdam::limits::FRAME_OVERHEAD_BYTES;
use cofferdam::memory::MemoryBroker;
use cofferdam::ports::{
    BackendError, Commit, Consumer, KeyValue, LeaseRef, Producer, ReleaseReason, Replies, Step, Upkeep,
};

use support::conformance::{Backend, Settings};

#[macro_use]
mod support {
    #[macro_use]
    pub mod conformance;
}

conformance!(crate::through_the_channel);

const TTL_MS: u64 = 30_000;

fn through_the_channel(settings: &Settings) -> Box<dyn Backend> {
    let (broker, clock) = settings.memory_broker();
    let seed = seed();
    eprintln!("pieces of random sizes: COFFERDAM_SEED={seed}");
    let max_frame = settings.max_payload + FRAME_OVERHEAD_BYTES;
    let wires = Wires {
        links: Vec::new(),
        secrets: (0..settings.groups).map(secret).collect(),
        nonces: NonceCache::new(4_096),
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
    Box::new(Channelled { broker, clock, wires: Mutex::new(wires) })
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
    broker: MemoryBroker,
    clock: Clock,
    wires: Mutex<Wires>,
}

/// What the broker's side of all connections shares, and what lies between the two sides.
struct Wires {
    links: Vec<Arc<Mutex<Link>>>,
    secrets: Vec<GroupSecret>,
    nonces: NonceCache,
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
    /// What the last step had room for and has not got.
    wanted: Arc<AtomicUsize>,
    is_closed: bool,
}

/// The executor's side of a connection, as the suite holds it. Dropping it closes the connection.
struct Plug(Arc<Mutex<Link>>);

/// The broker's side, as a [`BrokerEnd`] holds it.
struct Measured {
    consumer: Box<dyn Consumer>,
    wanted: Arc<AtomicUsize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A law that has failed unwinds through its consumers; they must not panic again.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Channelled {
    /// Copies bytes until none are left, then lets the broker's ends take their turns, until nothing moves.
    fn carry(&self) {
        let now_ms = self.clock.now().millis();
        let mut wires = lock(&self.wires);
        wires.links.retain(|link| !lock(link).is_closed);
        let links = wires.links.clone();
        loop {
            let mut moved = false;
            for link in &links {
                let link = &mut *lock(link);
                moved |= self.to_broker(&mut wires, link, now_ms);
                link.broker.turn().expect("the memory broker is there");
                moved |= to_executor(&mut wires, link, now_ms);
            }
            if !moved {
                return;
            }
        }
    }

    fn to_broker(&self, wires: &mut Wires, link: &mut Link, now_ms: u64) -> bool {
        let mut moved = false;
        let (broker, wanted) = (self.broker.clone(), link.wanted.clone());
        let mut connect = move |group| {
            let consumer = Box::new(broker.consumer(group, Bell::silent()));
            Box::new(Measured { consumer, wanted: wanted.clone() }) as Box<dyn Consumer>
        };
        loop {
            let bytes = link.executor.output(now_ms);
            if bytes.is_empty() {
                return moved;
            }
            // It reads no more than the next message of the handshake, however much there is.
            let piece = wires.pieces.piece(bytes.len()).min(link.broker.room());
            let mut doorman = Doorman {
                secrets: &wires.secrets,
                nonces: &mut wires.nonces,
                terms: wires.terms,
                entropy: &mut wires.entropy,
                connect: &mut connect,
            };
            link.broker.received(&bytes[..piece], &mut doorman, now_ms).expect("the broker's end takes it");
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
        &self.broker
    }

    fn replies(&self) -> &dyn Replies {
        &self.broker
    }

    fn key_value(&self) -> &dyn KeyValue {
        &self.broker
    }

    fn consumer(&self, group: usize, bell: Bell) -> Box<dyn Consumer> {
        let now_ms = self.clock.now().millis();
        let mut wires = lock(&self.wires);
        let nonce = wires.entropy.bytes();
        let index = u16::try_from(group).expect("few groups");
        let link = Arc::new(Mutex::new(Link {
            executor: ExecutorEnd::new(&wires.secrets[group], index, nonce, TTL_MS, now_ms),
            broker: BrokerEnd::new(now_ms, wires.parts_max),
            group,
            bell,
            wanted: Arc::default(),
            is_closed: false,
        }));
        wires.links.push(link.clone());
        Box::new(Plug(link))
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    fn tick(&self) {
        self.broker.tick();
    }

    fn settle(&self) {
        self.carry();
    }

    fn shows_tokens(&self) -> bool {
        false
    }

    fn sizes(&self) -> Vec<usize> {
        self.broker.inspect(|broker, _| broker.sizes().to_vec())
    }
}

impl Consumer for Plug {
    fn step(&mut self, commits: Vec<Commit>, room: usize) -> Result<Step, BackendError> {
        let link = &mut *lock(&self.0);
        let step = link.executor.step(commits, room)?;
        link.wanted.store(room.saturating_sub(step.leases.len()), Ordering::SeqCst);
        Ok(step)
    }

    fn release(&mut self, lease: LeaseRef, reason: ReleaseReason) -> Result<(), BackendError> {
        lock(&self.0).executor.release(lease, reason)
    }

    fn extend(&mut self) -> Result<(), BackendError> {
        lock(&self.0).executor.extend()
    }
}

impl Consumer for Measured {
    fn step(&mut self, commits: Vec<Commit>, room: usize) -> Result<Step, BackendError> {
        let wanted = self.wanted.load(Ordering::SeqCst);
        let step = self.consumer.step(commits, room.min(wanted))?;
        self.wanted.store(wanted - step.leases.len(), Ordering::SeqCst);
        Ok(step)
    }

    fn release(&mut self, lease: LeaseRef, reason: ReleaseReason) -> Result<(), BackendError> {
        self.consumer.release(lease, reason)
    }

    fn extend(&mut self) -> Result<(), BackendError> {
        self.consumer.extend()
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        // Its end of file reaches the broker's side with the next bytes, not before.
        lock(&self.0).is_closed = true;
    }
}
