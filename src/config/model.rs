//! The typed configuration. It is made from a normalised value that the validator has passed, so every
//! field is in its range; names and meanings are those of CONTRACT 2.
#![allow(missing_docs, reason = "CONTRACT 2 documents each key under the same name")]

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::handler::HandlerOptions;

#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    pub runtime: Runtime,
    pub web: Web,
    pub handlers: BTreeMap<String, HandlerOptions>,
    pub observability: Observability,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Runtime {
    pub platform: Platform,
    pub ordering: OrderingConfig,
}

#[derive(Clone, Debug, Deserialize)]
pub struct OrderingConfig {
    pub sink_mode: SinkMode,
}

/// Which order results of a batch come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkMode {
    /// The order of the input lines.
    SourceSeq,
    /// The order in which they finish.
    Completion,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Platform {
    pub bootstrap: Bootstrap,
    pub queue: Queue,
    pub kv: Kv,
    pub reply: Reply,
    pub execution_ipc: Ipc,
    pub process_groups: Vec<ProcessGroup>,
    pub lifecycle: Lifecycle,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Bootstrap {
    pub mode: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Queue {
    pub backend: String,
    pub capacity: usize,
    pub visibility_timeout_ms: u64,
    pub max_deliveries: u32,
    pub retry: Retry,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Retry {
    pub base_ms: u64,
    pub max_ms: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Kv {
    pub backend: String,
    pub context_ttl_seconds: u64,
    pub lane_state_max_bytes: usize,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Reply {
    pub backend: String,
    pub timeout_ms: u64,
    pub result_ttl_seconds: u64,
    pub awaited_ttl_seconds: u64,
    pub retain: Retain,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Retain {
    pub records: usize,
    pub bytes: usize,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Ipc {
    pub bind_host: String,
    pub bind_port: u16,
    pub max_payload_bytes: usize,
    pub auth: IpcAuth,
    pub heartbeat_ms: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct IpcAuth {
    pub secret_mode: String,
    pub secret_file: Option<String>,
    pub ttl_seconds: u64,
    pub nonce_cache_size: usize,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ProcessGroup {
    pub name: String,
    pub processes: usize,
    pub workers: usize,
    pub handlers: Vec<String>,
    pub max_jobs: u64,
    pub max_rss_mb: u64,
}

impl ProcessGroup {
    /// True if the group runs this handler.
    #[must_use]
    pub fn runs(&self, handler: &str) -> bool {
        self.handlers.iter().any(|name| name == "*" || name == handler)
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct Lifecycle {
    pub ready_timeout_ms: u64,
    pub graceful_timeout_ms: u64,
    pub drain_inflight: bool,
    pub restart: Restart,
}

impl Lifecycle {
    /// How long a drain lets jobs finish.
    #[must_use]
    pub fn patience_ms(&self) -> u64 {
        if self.drain_inflight { self.graceful_timeout_ms } else { 0 }
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct Restart {
    pub policy: String,
    pub max_restarts: usize,
    pub window_ms: u64,
    pub backoff_ms: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Web {
    pub bind: String,
    pub max_inflight: usize,
    pub max_body_bytes: usize,
    pub max_batch_bytes: usize,
    pub allowed_hosts: Vec<String>,
    pub auth: WebAuth,
    pub limits: WebLimits,
}

#[derive(Clone, Debug, Deserialize)]
pub struct WebAuth {
    pub mode: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct WebLimits {
    pub connections: usize,
    pub connections_per_ip: usize,
    pub header_bytes: usize,
    pub header_timeout_ms: u64,
    pub body_timeout_ms: u64,
    pub idle_timeout_ms: u64,
    pub write_timeout_ms: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Observability {
    pub log: LogFormat,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// What a dead job does to its ordered lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDeadChoice {
    /// The lane goes on with the next job.
    #[default]
    Continue,
    /// The lane waits until the dead job is retried or deleted.
    Park,
}
