//! [`Rules`]: the bounds and times that brokers and executors follow.

use std::time::Duration;

use crate::config::{Config, Retain};

/// See the module.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Jobs waiting or delayed; beyond it submissions are refused.
    pub capacity: usize,
    /// A lease lives this long unless renewed.
    pub visibility: Duration,
    /// For handlers that do not say.
    pub max_deliveries: u32,
    /// Backoff of the first retry, doubling.
    pub retry_base: Duration,
    /// Backoff at most.
    pub retry_max: Duration,
    /// How long a finished record is kept.
    pub result_ttl: Duration,
    /// The same where the caller waited.
    pub awaited_ttl: Duration,
    /// How many finished records, and bytes of them, at most.
    pub retain: Retain,
    /// A trace's context lives this long after its last use.
    pub context_ttl: Duration,
    /// A lane's state at most.
    pub lane_state_max: usize,
    /// A payload, a result, a value, and the payloads of one lease at most, so that each fits a frame.
    pub max_payload: usize,
    /// How long a handler may ignore that its run is over, before its process is replaced.
    pub grace: Duration,
}

impl Rules {
    pub fn from_config(config: &Config) -> Rules {
        let platform = &config.runtime.platform;
        Rules {
            capacity: platform.queue.capacity,
            visibility: Duration::from_millis(platform.queue.visibility_timeout_ms),
            max_deliveries: platform.queue.max_deliveries,
            retry_base: Duration::from_millis(platform.queue.retry.base_ms),
            retry_max: Duration::from_millis(platform.queue.retry.max_ms),
            result_ttl: Duration::from_secs(platform.reply.result_ttl_seconds),
            awaited_ttl: Duration::from_secs(platform.reply.awaited_ttl_seconds),
            retain: platform.reply.retain,
            context_ttl: Duration::from_secs(platform.kv.context_ttl_seconds),
            lane_state_max: platform.kv.lane_state_max_bytes,
            max_payload: platform.execution_ipc.max_payload_bytes,
            grace: Duration::from_millis(platform.lifecycle.graceful_timeout_ms),
        }
    }
}
