//! The backends, as the conformance suites take them.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::time::Duration;

use cofferdam::bell::Bell;
use cofferdam::clock::{Clock, Timestamp};
use cofferdam::entropy::Entropy;
use cofferdam::memory::MemoryBroker;
use cofferdam::memory::broker::Broker;
use cofferdam::ports::{Consumer, KeyValue, Producer, Replies, Seat};

use super::conformance::{Backend, START, Settings};

struct Memory {
    broker: MemoryBroker,
    clock: Clock,
}

/// In this process.
pub fn memory(settings: &Settings) -> Box<dyn Backend> {
    let clock = Clock::manual(START);
    let workers = vec![64; settings.groups];
    let broker = Broker::new(settings.rules(), settings.handlers.clone(), workers, Entropy::Seeded(1));
    let broker = MemoryBroker::new(broker, clock.clone(), settings.group_names());
    Box::new(Memory { broker, clock })
}

impl Backend for Memory {
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
        self.broker.tick(0);
    }

    fn sizes(&self) -> Vec<usize> {
        self.broker.with(|broker, _| broker.sizes().to_vec())
    }
}
