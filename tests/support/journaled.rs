//! The memory backend with a journal on a simulated disk, as the conformance suites take it.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::time::Duration;

use cofferdam::bell::Bell;
use cofferdam::clock::{Clock, Timestamp};
use cofferdam::entropy::Entropy;
use cofferdam::journal::Log;
use cofferdam::mac::MacKey;
use cofferdam::memory::broker::Broker;
use cofferdam::memory::{Keeper, Keeping, MemoryBroker};
use cofferdam::ports::{Consumer, KeyValue, Producer, Replies, Seat};

use super::conformance::{Backend, START, Settings};
use super::sim_disk::SimDisk;

pub const SEGMENT_BYTES: u64 = 16 << 10;

pub fn keys() -> Vec<MacKey> {
    vec![MacKey::new(b"a test's own")]
}

pub fn open(disk: &SimDisk) -> Result<(Log, cofferdam::journal::Image, Option<String>), String> {
    Log::open(Box::new(disk.clone()), keys(), SEGMENT_BYTES)
}

pub struct Journaled {
    pub broker: MemoryBroker,
    pub keeper: Keeper,
    pub clock: Clock,
    pub disk: SimDisk,
}

pub fn journaled(settings: &Settings) -> Box<dyn Backend> {
    Box::new(Journaled::on(SimDisk::default(), settings, START))
}

impl Journaled {
    pub fn on(disk: SimDisk, settings: &Settings, now: Timestamp) -> Journaled {
        Journaled::that_syncs(None, disk, settings, now)
    }

    /// With such an interval, or always.
    pub fn that_syncs(
        interval: Option<Duration>,
        disk: SimDisk,
        settings: &Settings,
        now: Timestamp,
    ) -> Journaled {
        let clock = Clock::manual(now);
        let workers = vec![64; settings.groups];
        let mut broker =
            Broker::new(settings.rules(), settings.handlers.clone(), workers, Entropy::Seeded(1));
        let (log, image, _) = open(&disk).expect("the journal is whole");
        broker.keep_journal(image, clock.now()).expect("its handlers are there");
        broker.check_invariants();
        let keeping = Keeping { interval, is_inline: false };
        let kept = MemoryBroker::keep(broker, clock.clone(), settings.group_names(), log, keeping);
        let (broker, keeper) = kept.expect("there are threads");
        Journaled { broker, keeper, clock, disk }
    }
}

impl Drop for Journaled {
    /// The keeper's thread is waited for, also by a test that fails while syncs are held.
    fn drop(&mut self) {
        self.disk.hold_syncs(false);
    }
}

impl Backend for Journaled {
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
        Box::new(self.broker.consumer(group, bell))
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    fn tick(&self) {
        self.keeper.tick(0);
        self.settle();
    }

    /// What was changed is written.
    fn settle(&self) {
        self.broker.settle();
    }

    fn sizes(&self) -> Vec<usize> {
        self.broker.with(|broker, _| broker.sizes().to_vec())
    }
}
