//! [`Rules`]: the bounds and times that brokers and executors follow.

use std::time::Duration;

use crate::config::{Config, Retain};
use crate::handler::Retry;

/// See the module.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Jobs waiting or delayed; beyond it submissions are refused.
    pub capacity: usize,
    /// A lease lives this long unless renewed.
    pub visibility: Duration,
    /// For handlers that do not say.
    pub max_deliveries: u32,
    /// The same.
    pub retry: Retry,
    /// How long a finished record is kept.
    pub result_ttl: Duration,
    /// The same where the caller waited.
    pub awaited_ttl: Duration,
    /// The same for jobs that did not succeed, whoever waited: they are looked at and retried later.
    pub failed_ttl: Duration,
    /// How many finished records, and bytes of them, at most; those that did not succeed have a budget of their own.
    pub retain: Retain,
    /// How long an idempotency key is kept, from its first use.
    pub idempotency_ttl: Duration,
    /// How many of them at most.
    pub idempotency_keys: usize,
    /// A trace's context lives this long after its last use.
    pub context_ttl: Duration,
    /// A lane's state at most.
    pub lane_state_max: usize,
    /// All states and contexts together at most.
    pub states_max: usize,
    /// A payload, a result, a value, and the payloads of one lease at most, so that each fits a frame.
    pub max_payload: usize,
    /// Ends of jobs that have spans of their own are kept until they are exported.
    pub exports_traces: bool,
    /// How long a handler may ignore that its run is over, before its process is replaced.
    pub grace: Duration,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules::from_config(&Config::default())
    }
}

impl Rules {
    /// True for a batch with a journal: records of its lines are kept in one budget, however they ended, and what they have submitted
    /// has another, of none. Records of a service would be dropped by this.
    pub fn keeps_lines(&self) -> bool {
        self.retain.records == 0
    }

    pub fn from_config(config: &Config) -> Rules {
        let platform = &config.runtime.platform;
        Rules {
            capacity: platform.queue.capacity,
            visibility: Duration::from_millis(platform.queue.visibility_timeout_ms),
            max_deliveries: platform.queue.max_deliveries,
            retry: platform.queue.retry,
            result_ttl: Duration::from_secs(platform.reply.result_ttl_seconds),
            awaited_ttl: Duration::from_secs(platform.reply.awaited_ttl_seconds),
            failed_ttl: Duration::from_secs(platform.reply.failed_ttl_seconds),
            retain: platform.reply.retain,
            idempotency_ttl: Duration::from_secs(platform.reply.idempotency_ttl_seconds),
            idempotency_keys: platform.reply.idempotency_keys,
            context_ttl: Duration::from_secs(platform.kv.context_ttl_seconds),
            lane_state_max: platform.kv.lane_state_max_bytes,
            states_max: platform.kv.total_max_bytes,
            max_payload: platform.execution_ipc.max_payload_bytes,
            exports_traces: config.observability.traces.file.is_some(),
            grace: Duration::from_millis(platform.lifecycle.graceful_timeout_ms),
        }
    }
}
