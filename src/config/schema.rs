//! The configuration's keys as a table: each once, with its type, default and allowed values. The typed configuration and
//! what the validator walks are both made of it.
#![allow(missing_docs, reason = "a section says what it is by its keys")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use serde_json::Value;

use super::key::Kind::{Int, Is, OneOf, Optional, Path, Section, Shape, Text};
use super::key::{COUNT, FROM_0, Key, Kind, MAX, MILLIS, USER, keys};
use super::program::{COMMAND_KEYS, HandlerConfig};
use crate::handler::{Retry, is_name};
use crate::named::named;

/// A typed section of the configuration, whose fields are in their ranges once the validator has passed them.
macro_rules! section {
    ($(#[$attribute:meta])* $section:ident {
        $($(#[doc = $meaning:literal])* $name:ident: $type:ty = $default:tt, $kind:expr;)*
    }) => {
        #[derive(Clone, Debug, Deserialize)]
        $(#[$attribute])*
        pub struct $section { $($(#[doc = $meaning])* pub $name: $type,)* }

        impl $section {
            pub(super) const KEYS: &[Key] = keys! { $($(#[doc = $meaning])* $name = $default, $kind;)* };
        }
    };
}

const BACKEND: Kind = OneOf(&["memory", "redis"]);
const BOOL: Kind = Is("bool", Value::is_boolean, "true or false");
const TEXTS: Kind = Is("list", |value| are(value, |text| !text.is_empty()), "a list of strings, none empty");
const HOSTS: Kind = Is("list", are_hosts, "a list of host names without a port");
const ADDRESSES: Kind = Is("list", |value| are(value, is_address), "a list of IP addresses");
const WORD: Kind = Text(|text| !text.is_empty(), "a string that is not empty");
const ADDRESS: Kind = Text(
    |text| text.parse::<SocketAddr>().is_ok(),
    "an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080",
);
const LOOPBACK: Kind = Text(
    |text| text.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
    "a loopback address: the channel never leaves the host",
);
const PREFIX: Kind = Text(is_key_prefix, "1 to 32 of a-z, 0-9, _ and -");
const NAME: Kind = Text(is_name, "1 to 64 of a-z, A-Z, 0-9, _ and -");
const REDIS_URL: Kind =
    Text(is_redis_url, "redis://HOST:PORT/DB, rediss://… or redis+unix://PATH, without user and password");
const GROUPS: Kind = Is(
    "list",
    |value| value.as_array().is_some_and(|list| !list.is_empty()),
    "a list of at least one process group",
);
const OBJECT: Kind = Shape("object", Value::is_object, "an object");
const ORDERING: Kind =
    Shape("string or object", is_ordering, r#""none", "serial" or {"key":"/json/pointer"}"#);

section! { Config {
    /// The version of this format.
    version: u32 = 1, Int(1, 1);
    runtime: Runtime = {}, Section(Runtime::KEYS);
    web: Web = {}, Section(Web::KEYS);
    observability: Observability = {}, Section(Observability::KEYS);
    /// Options of each handler by its name; a name that is not registered needs a `command`.
    handlers: BTreeMap<String, HandlerConfig> = {}, OBJECT;
}}
section! { Runtime {
    platform: Platform = {}, Section(Platform::KEYS);
    ordering: Sink = {}, Section(Sink::KEYS);
}}
section! { Sink {
    /// Which order the results of a batch come in: that of its lines, or as they finish.
    sink_mode: SinkMode = "source_seq", OneOf(&["source_seq", "completion"]);
}}
section! { Platform {
    bootstrap: Bootstrap = {}, Section(Bootstrap::KEYS);
    queue: Queue = {}, Section(Queue::KEYS);
    kv: Kv = {}, Section(Kv::KEYS);
    reply: Reply = {}, Section(Reply::KEYS);
    redis: Redis = {}, Section(Redis::KEYS);
    execution_ipc: Ipc = {}, Section(Ipc::KEYS);
    /// Groups of executor processes; every handler is in exactly one.
    process_groups: Vec<ProcessGroup> = [{"name": "execution"}], GROUPS;
    lifecycle: Lifecycle = {}, Section(Lifecycle::KEYS);
}}
section! { Bootstrap {
    /// Supervisor, web and executors as processes; or all of it in one process, without a supervisor.
    mode: String = "process_supervisor", OneOf(&["inline", "process_supervisor"]);
}}
section! { Queue {
    /// Where jobs are kept.
    backend: String = "memory", BACKEND;
    /// Jobs that wait or are delayed; beyond it submissions are refused. Redeliveries never are, and follow-ups may use as much again.
    capacity: usize = 10_000, COUNT;
    /// How long the lease of a running job lives; its process renews it, so it limits no job.
    visibility_timeout_ms: u64 = 30_000, Int(100, MAX);
    /// Deliveries of a job before it is dead, for handlers that do not say.
    max_deliveries: u32 = 16, COUNT;
    retry: Retry = {}, Section(RETRY_KEYS);
    /// Memory only: where what is kept is written down, so that it outlives our processes and the host.
    journal: Option<Journal> = null, Optional(Journal::KEYS);
}}
section! { Journal {
    /// A directory that is ours alone; it is made if it is not there.
    dir: Option<String> = null, Path;
    /// Whether each answer waits for the disk, or the disk is told each `interval_ms`: then a power cut loses as much, a crash of our processes nothing.
    sync: String = "always", OneOf(&["always", "interval"]);
    /// See `sync`.
    interval_ms: u64 = 100, Int(1, 60_000);
    /// The size of its files; two of them are there in any case.
    segment_mb: u64 = 64, Int(1, 1_024);
}}
impl Journal {
    /// Where it is; the validator has seen that it is somewhere.
    pub fn dir(&self) -> &str {
        self.dir.as_deref().unwrap_or_default()
    }

    /// What it promises.
    pub fn promise(&self) -> String {
        let (dir, interval_ms) = (self.dir(), self.interval_ms);
        match &*self.sync {
            "always" => {
                format!("journal {dir}, sync always: what was answered survives whatever the disk survives")
            }
            _ => format!(
                "journal {dir}, sync interval: a crash of our processes loses nothing, a power cut at most {interval_ms} ms"
            ),
        }
    }
}
section! { Kv {
    /// Where lane states and contexts are kept.
    backend: String = "memory", BACKEND;
    /// How long a trace's context is kept after its last use.
    context_ttl_seconds: u64 = 3_600, COUNT;
    /// The most that the state of one lane takes; a job that would exceed it fails.
    lane_state_max_bytes: usize = 67_108_864, Int(1_024, 1 << 40);
    /// Memory only: the most that all states and contexts take together; a job that would exceed it fails.
    total_max_bytes: usize = 268_435_456, Int(1_024, 1 << 40);
}}
section! { Reply {
    /// Where records and results are kept: the backend of the queue.
    backend: String = "memory", BACKEND;
    /// How long a caller waits for a result, from the arrival of its request; also the most that `wait` gives.
    timeout_ms: u64 = 30_000, MILLIS;
    /// How long the record of a job that succeeded is kept.
    result_ttl_seconds: u64 = 600, COUNT;
    /// The same where the caller waited and gave no idempotency key.
    awaited_ttl_seconds: u64 = 30, COUNT;
    /// How long a failed, dead, timed-out or cancelled record is kept, with its payload.
    failed_ttl_seconds: u64 = 604_800, COUNT;
    /// How long an idempotency key is kept, from its first use.
    idempotency_ttl_seconds: u64 = 86_400, COUNT;
    /// Memory only: keys that are kept; beyond it the oldest go, counted and logged.
    idempotency_keys: usize = 200_000, COUNT;
    retain: Retain = {}, Section(Retain::KEYS);
}}
section! { #[derive(Copy)] Retain {
    /// Memory only: records of jobs that succeeded; beyond it the oldest go.
    records: usize = 10_000, COUNT;
    /// The same in bytes.
    bytes: usize = 67_108_864, Int(1, 1 << 40);
    /// Memory only: records of jobs that did not succeed; beyond it the oldest go.
    failed_records: usize = 10_000, COUNT;
    /// The same in bytes.
    failed_bytes: usize = 67_108_864, Int(1, 1 << 40);
}}
section! { Redis {
    /// The server, without user and password. `rediss://` is not built in: use a TLS tunnel.
    url: String = "redis://127.0.0.1:6379/0", REDIS_URL;
    /// The user of the server's access list; none is the default user.
    username: Option<String> = null, WORD;
    /// A file with the password, one line.
    password_file: Option<String> = null, Path;
    /// What every key begins with: one deployment, one prefix.
    key_prefix: String = "cofferdam", PREFIX;
    /// How long a connection may take.
    connect_timeout_ms: u64 = 2_000, MILLIS;
    /// How long an answer may take.
    response_timeout_ms: u64 = 5_000, MILLIS;
}}
section! { Ipc {
    /// How executors reach web.
    transport: String = "tcp_local", OneOf(&["tcp_local"]);
    /// The address of the channel's listener.
    bind_host: String = "127.0.0.1", LOOPBACK;
    /// Its port; 0 is any free one.
    bind_port: u16 = 0, Int(0, 65_535);
    /// The most that a payload, a result or a value of a state takes.
    max_payload_bytes: usize = 1_048_576, Int(1_024, 67_108_864);
    auth: IpcAuth = {}, Section(IpcAuth::KEYS);
    /// How often processes say that they live; one that misses three is lost.
    heartbeat_ms: u64 = 2_000, Int(100, 3_600_000);
}}
section! { IpcAuth {
    /// Every frame is signed.
    mode: String = "hmac", OneOf(&["hmac"]);
    /// A secret for this run alone, or the one of `secret_file`. The default is `static` where there is a file.
    secret_mode: String = null, OneOf(&["generated", "static"]);
    /// 64 hex digits, as `keygen` writes them; on a second line the secret before, which verifies and does not sign; read again on SIGHUP. Others must not be able to read it.
    secret_file: Option<String> = null, Path;
    /// How each connection's keys are derived.
    kdf: String = "hkdf_sha256", OneOf(&["hkdf_sha256"]);
    /// How old a frame may be.
    ttl_seconds: u64 = 30, Int(1, 3_600);
    /// Handshake nonces of the last 10 seconds that a group remembers; while it is full handshakes are refused.
    nonce_cache_size: usize = 4_096, Int(16, 1 << 20);
}}
section! { ProcessGroup {
    /// Unique, and needed.
    name: String = null, NAME;
    /// Executor processes.
    processes: usize = 1, Int(1, 1_024);
    /// Worker threads of each: so many handlers run at once.
    workers: usize = 8, Int(1, 4_096);
    /// Names of handlers that the group runs, or `*` for all that no other group names.
    handlers: Vec<String> = ["*"], TEXTS;
    /// A process is replaced after so many jobs; 0 is never.
    max_jobs: u64 = 0, Int(0, 1 << 40);
    /// A process is replaced when it holds more memory; 0 is never.
    max_rss_mb: u64 = 0, FROM_0;
    /// The user whose executors they are, a name or a number; another than ours needs root.
    user: Option<Value> = null, USER;
    /// Names of handlers that its jobs may submit to, or `*` for all.
    follow_ups: Vec<String> = ["*"], TEXTS;
}}
section! { Lifecycle {
    /// How long all processes may take to be ready; else exit 3.
    ready_timeout_ms: u64 = 10_000, MILLIS;
    /// How long a drain lets jobs finish; what is cut off is named, exit 4.
    graceful_timeout_ms: u64 = 10_000, FROM_0;
    /// False is a drain of no time.
    drain_inflight: bool = true, BOOL;
    restart: Restart = {}, Section(Restart::KEYS);
}}
section! { Restart {
    /// Whether a process that ends is replaced.
    policy: String = "on_failure", OneOf(&["on_failure", "never"]);
    /// Ends within the window that no job can have caused; more of them end everything with exit 1.
    max_restarts: usize = 5, FROM_0;
    /// How long an end counts; also the longest backoff.
    window_ms: u64 = 60_000, MILLIS;
    /// The wait before a process is replaced that ended by itself; doubled for each of its ends within the window, at most three times for those that a job may have caused.
    backoff_ms: u64 = 100, MILLIS;
}}
section! { Web {
    /// The public address; port 0 is any free one, and the ready line says which.
    bind: String = "127.0.0.1:8080", ADDRESS;
    /// Callers that wait for a result; beyond it 429.
    max_inflight: usize = 4_096, COUNT;
    /// The most that a request's body takes; at most `max_payload_bytes`.
    max_body_bytes: usize = 1_048_576, COUNT;
    /// The most that the body of a batch takes; at least `max_body_bytes`.
    max_batch_bytes: usize = 16_777_216, COUNT;
    /// Names accepted in `Host` besides IP addresses and `localhost`, at any port.
    allowed_hosts: Vec<String> = [], HOSTS;
    /// True says that a proxy on the way to us speaks TLS with clients; beyond loopback it must be.
    behind_tls: bool = false, BOOL;
    /// Addresses that may say in `Forwarded` or `X-Forwarded-For` who the client is; for limits and logs alone.
    trusted_proxies: Vec<IpAddr> = [], ADDRESSES;
    auth: WebAuth = {}, Section(WebAuth::KEYS);
    limits: WebLimits = {}, Section(WebLimits::KEYS);
}}
section! { WebAuth {
    /// `none` is for loopback alone; with `bearer` each request brings a token.
    mode: String = "none", OneOf(&["none", "bearer"]);
    /// A line a token: `NAME SHA256HEX SCOPES [HANDLERS] [max_inflight=N] [rate_per_second=N]`; ours and closed to others. `bearer` needs it.
    token_file: Option<String> = null, Path;
    /// `/metrics` and `/readyz` need no token; on loopback only.
    open_metrics: bool = false, BOOL;
}}
section! { #[derive(Copy)] WebLimits {
    /// Connections at once; cut to what the limit of descriptors allows.
    connections: usize = 4_096, COUNT;
    /// The same for one address; loopback is not counted.
    connections_per_ip: usize = 256, COUNT;
    /// The most that a request's head takes.
    header_bytes: usize = 16_384, COUNT;
    /// How long a head may take, and the first byte of a connection.
    header_timeout_ms: u64 = 5_000, MILLIS;
    /// How long a body may take.
    body_timeout_ms: u64 = 15_000, MILLIS;
    /// How long a connection may be idle between requests.
    idle_timeout_ms: u64 = 75_000, MILLIS;
    /// How long a client may read nothing of its answer.
    write_timeout_ms: u64 = 30_000, MILLIS;
}}
section! { Observability {
    /// Log lines for people, or a JSON object a line; on standard error.
    log: LogFormat = "text", OneOf(&["text", "json"]);
    traces: Traces = {}, Section(Traces::KEYS);
}}
section! { Traces {
    /// A file that spans of jobs are appended to, in the format of OpenTelemetry's file exporter; none: they are not exported.
    file: Option<String> = null, Path;
}}

const RETRY_KEYS: &[Key] = keys! {
    /// The most that the first backoff takes; it doubles with each delivery. The backoff is drawn from 0 to that.
    base_ms = 1_000, MILLIS;
    /// The most that any backoff takes.
    max_ms = 3_600_000, MILLIS;
};

/// Options of any handler. None has a default here: a handler brings its own ([`HandlerOptions`]).
pub(super) const HANDLER_KEYS: &[Key] = keys! {
    /// How long one delivery may take.
    timeout_ms = null, MILLIS;
    /// Jobs at once in one process; 0 is no limit.
    concurrency = null, FROM_0;
    /// Deliveries before a job is dead; none: `queue.max_deliveries`.
    max_deliveries = null, COUNT;
    retry = null, Optional(RETRY_KEYS);
    /// Cancel a job when its last waiting caller hangs up.
    cancel_on_disconnect = null, BOOL;
    /// What a dead job does to its ordered lane: the next job goes on, or the lane waits until the dead one is retried or deleted.
    on_dead = null, OneOf(&["continue", "park"]);
    /// Which jobs wait for each other: none, all, or those whose payload has the same value at a JSON pointer.
    ordering = null, ORDERING;
};

named! {
    /// Which order results of a batch come in: that of the input lines, or as they finish.
    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    SinkMode { SourceSeq = "source_seq", Completion = "completion", }
}

/// How log lines are written: for people, or one object a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

/// What a path in prose says for a handler's name and for a group's place.
pub(super) const ANY_NAME: &str = ".NAME";
const ANY_PLACE: &str = "[]";

impl Key {
    /// The key at a dotted path.
    pub(super) fn at(path: &str) -> Option<&'static Key> {
        let (mut keys, mut found) = (Config::KEYS.iter().collect::<Vec<_>>(), None);
        let mut parts = path.split('.');
        while let Some(name) = parts.next() {
            let key = keys.into_iter().find(|key| key.name == name)?;
            if !key.behind().is_empty() {
                parts.next();
            }
            (keys, found) = (key.members(), Some(key));
        }
        found
    }

    /// The keys inside.
    pub(super) fn members(&self) -> Vec<&'static Key> {
        match (self.kind, self.name) {
            (Section(keys) | Optional(keys), _) => keys.iter().collect(),
            (_, "handlers") if self.behind() == ANY_NAME => HANDLER_KEYS.iter().chain(COMMAND_KEYS).collect(),
            (_, "process_groups") => ProcessGroup::KEYS.iter().collect(),
            _ => Vec::new(),
        }
    }

    /// What stands between its path and that of a member.
    pub(super) fn behind(&self) -> &'static str {
        match (self.kind, self.name) {
            (Shape(..), "handlers") => ANY_NAME,
            (_, "process_groups") => ANY_PLACE,
            _ => "",
        }
    }
}

fn is_key_prefix(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    (1..=32).contains(&text.len()) && text.bytes().all(is_allowed)
}

fn is_redis_url(text: &str) -> bool {
    let rest = ["redis://", "rediss://", "redis+unix://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    // A `redis+unix` URL takes user and password in its query.
    let query = text.split_once('?').map_or("", |(_, query)| query);
    let in_query = query.split('&').any(|part| part.starts_with("user=") || part.starts_with("pass="));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.contains('@')) && !in_query
}

/// True for a list of strings that all pass.
fn are(value: &Value, passes: impl Fn(&str) -> bool) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(|value| value.as_str().is_some_and(&passes)))
}

/// Names as they stand in `Host`: a port is not theirs, and one that has it would match nothing.
fn are_hosts(value: &Value) -> bool {
    let may_stand = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    are(value, |text| !text.is_empty() && text.bytes().all(may_stand))
}

fn is_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

fn is_ordering(value: &Value) -> bool {
    let pointer = value.as_object().filter(|map| map.len() == 1).and_then(|map| map.get("key")?.as_str());
    pointer.is_some_and(|pointer| pointer.is_empty() || pointer.starts_with('/'))
        || matches!(value.as_str(), Some("none" | "serial"))
}
