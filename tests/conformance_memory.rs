//! The memory backend under the conformance suites of the ports.

use std::sync::Arc;
use std::time::Duration;

use cofferdam::bell::Bell;
use cofferdam::clock::{Clock, Timestamp};
use cofferdam::config::Retain;
use cofferdam::entropy::Entropy;
use cofferdam::memory::MemoryBroker;
use cofferdam::memory::broker::Broker;
use cofferdam::ports::Rules;
use cofferdam::ports::{Consumer, KeyValue, Producer, Replies, Upkeep};

use support::conformance::{Backend, Settings};

#[macro_use]
mod support {
    #[macro_use]
    pub mod conformance;
}

conformance!(crate::memory);

struct Memory {
    broker: MemoryBroker,
    clock: Clock,
}

fn memory(settings: &Settings) -> Box<dyn Backend> {
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
    let broker = Broker::new(rules, settings.handlers.clone(), vec![64; settings.groups], Entropy::Seeded(1));
    let groups = (0..settings.groups).map(|group| Arc::from(format!("group{group}"))).collect();
    Box::new(Memory { broker: MemoryBroker::new(broker, clock.clone(), groups), clock })
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
