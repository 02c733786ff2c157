//! The Redis backend under the conformance suites of the ports, on a real server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cofferdam::bell::Bell;
use cofferdam::clock::{Clock, Timestamp};
use cofferdam::config::Retain;
use cofferdam::config::secret::Secret;
use cofferdam::ports::{Consumer, KeyValue, Producer, Replies, Rules};
use cofferdam::redis_backend::{RedisBroker, Settings as RedisSettings};

use support::conformance::{Backend, Settings};

#[path = "support/redis.rs"]
mod server;
#[macro_use]
mod support {
    #[macro_use]
    pub mod conformance;
}

conformance!(crate::redis);

struct Redis {
    broker: RedisBroker,
    clock: Clock,
}

fn redis(settings: &Settings) -> Box<dyn Backend> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let rules = Rules {
        capacity: settings.capacity,
        visibility: settings.visibility,
        max_deliveries: settings.max_deliveries,
        retry_base: settings.retry_base,
        retry_max: settings.retry_max,
        result_ttl: settings.result_ttl,
        awaited_ttl: settings.awaited_ttl,
        retain: Retain { records: settings.retain_records, bytes: settings.retain_bytes },
        context_ttl: settings.context_ttl,
        lane_state_max: settings.lane_state_max,
        max_payload: settings.max_payload,
    };
    let clock = Clock::manual(Timestamp(1_700_000_000_000_000));
    let settings = RedisSettings {
        url: server::url().to_owned(),
        prefix: format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed)),
        rules,
        handlers: settings.handlers.clone(),
        groups: (0..settings.groups).map(|group| Arc::from(format!("group{group}"))).collect(),
        connect_timeout: Duration::from_secs(2),
        response_timeout: Duration::from_secs(5),
        clock: Some(clock.clone()),
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
        Box::new(self.broker.consumer(group, 64, bell).expect("the server is there"))
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
            !["count", "place", "number", "fence", "ticked", "bell", "cons", "con", "inbox"]
                .contains(&kind.as_str())
        });
        vec![kinds.len()]
    }
}
