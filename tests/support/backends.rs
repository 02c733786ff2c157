//! The backends, as the conformance suites take them.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cofferdam::bell::Bell;
use cofferdam::clock::{Clock, Timestamp};
use cofferdam::config::secret::Secret;
use cofferdam::memory::MemoryBroker;
use cofferdam::ports::{Consumer, KeyValue, Producer, Replies, Upkeep};
use cofferdam::redis_backend::{RedisBroker, Settings as RedisSettings};

use super::conformance::{Backend, START, Settings};

struct Memory {
    broker: MemoryBroker,
    clock: Clock,
}

/// In this process.
pub fn memory(settings: &Settings) -> Box<dyn Backend> {
    let (broker, clock) = settings.memory_broker();
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
        self.broker.tick();
    }

    fn sizes(&self) -> Vec<usize> {
        self.broker.inspect(|broker, _| broker.sizes().to_vec())
    }
}

struct Redis {
    broker: RedisBroker,
    clock: Clock,
}

/// On a real server, apart from others by its prefix.
pub fn redis(settings: &Settings) -> Box<dyn Backend> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let clock = Clock::manual(START);
    let settings = RedisSettings {
        redis: super::redis::config(),
        prefix: format!("{{t{}}}:", COUNT.fetch_add(1, Ordering::Relaxed)),
        rules: settings.rules(),
        handlers: settings.handlers.clone(),
        groups: settings.groups(),
        clock: clock.clone(),
    };
    let secret = Secret::new(std::array::from_fn(|at| u8::try_from(at).expect("a byte"))).expect("a secret");
    let broker = RedisBroker::new(settings, &secret).expect("a sound address");
    Box::new(Redis { broker, clock })
}

impl Backend for Redis {
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
        let mut consumer = self.broker.consumer(group, 64, bell).expect("a thread");
        // It is known with its first step.
        consumer.step(Vec::new(), 0).expect("the server is there");
        Box::new(consumer)
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    fn tick(&self) {
        self.broker.sweep().expect("the server is there");
    }

    fn settle(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.broker.has_heard_all().expect("the server is there") {
            assert!(Instant::now() < deadline, "an ear is deaf");
            std::thread::yield_now();
        }
    }

    fn sizes(&self) -> Vec<usize> {
        let mut kinds: Vec<String> = self.broker.keys().expect("the server is there");
        kinds.retain(|kind| {
            !["count", "place", "fence", "ticked", "swept", "bell", "nodes", "node", "inbox"]
                .contains(&kind.as_str())
        });
        vec![kinds.len()]
    }
}
