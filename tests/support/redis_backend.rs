//! The Redis backend, as the conformance suites take it: behind the channel, as everywhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cofferdam::bell::Bell;
use cofferdam::clock::{Clock, Timestamp};
use cofferdam::config::secret::Secret;
use cofferdam::ports::{Consumer, KeyValue, Producer, Replies};
use cofferdam::redis_backend::{RedisBroker, Settings as RedisSettings};

use super::conformance::{Backend, START, Settings};

struct Redis {
    broker: RedisBroker,
    clock: Clock,
    prefix: String,
}

/// On a real server, apart from others by its prefix.
pub fn redis(settings: &Settings) -> Box<dyn Backend> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let clock = Clock::manual(START);
    let prefix = format!("{{t{}}}:", COUNT.fetch_add(1, Ordering::Relaxed));
    let settings = RedisSettings {
        redis: super::redis::config(),
        prefix: prefix.clone(),
        rules: settings.rules(),
        handlers: settings.handlers.clone(),
        groups: settings.group_names(),
        clock: clock.clone(),
        keep: None,
        workers: vec![64; settings.groups],
    };
    let secret = Secret::new(std::array::from_fn(|at| u8::try_from(at).expect("a byte"))).expect("a secret");
    let broker = RedisBroker::new(settings, &[&secret]).expect("a sound address");
    Box::new(Redis { broker, clock, prefix })
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
        Box::new(self.broker.consumer(group, bell))
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    fn tick(&self) {
        self.broker.sweep();
    }

    fn settle(&self) {
        self.broker.settle().expect("the server is there");
    }

    fn sizes(&self) -> Vec<usize> {
        let server = ::redis::Client::open(super::redis::url()).expect("a sound address");
        let mut raw = server.get_connection().expect("the server is there");
        let keys = ::redis::cmd("KEYS").arg(format!("{}*", self.prefix)).query(&mut raw);
        let mut kinds: Vec<String> = keys.expect("the server is there");
        kinds.retain(|key| {
            let kind = key[self.prefix.len()..].split(':').next().expect("a kind");
            !["count", "wake", "idle", "nodes", "node", "inbox", "key"].contains(&kind)
        });
        vec![kinds.len()]
    }
}
