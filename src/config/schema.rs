//! The configuration's keys as a table: each once, with its type, default and allowed values. The typed configuration and
//! what the validator walks are both made of it.
#![allow(missing_docs, reason = "each field is named as its key")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::handler::{HandlerOptions, Retry, is_handler_name};

/// What a key's value must be; in words where it is a check.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A whole number in this range.
    Int(u64, u64),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A text that passes.
    Text(fn(&str) -> bool, &'static str),
    /// Any value that passes.
    Is(fn(&Value) -> bool, &'static str),
    /// The same for what has no default: its `null` is judged, where other keys take it for "not given".
    Shape(fn(&Value) -> bool, &'static str),
    /// An object that is always there.
    Section(&'static [Key]),
    /// An object that may be absent.
    Optional(&'static [Key]),
}
use Kind::{Int, Is, OneOf, Optional, Section, Shape, Text};

#[derive(Clone, Copy)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// `null` where the key may be absent.
    pub(super) default: fn() -> Value,
    pub(super) kind: Kind,
}

macro_rules! keys {
    ($($name:ident = $default:tt, $kind:expr;)*) => {
        &[$(Key { name: stringify!($name), default: || json!($default), kind: $kind },)*]
    };
}

/// A typed section of the configuration, whose fields are in their ranges once the validator has passed them.
macro_rules! section {
    ($(#[$attribute:meta])* $section:ident { $($name:ident: $type:ty = $default:tt, $kind:expr;)* }) => {
        #[derive(Clone, Debug, Deserialize)]
        $(#[$attribute])*
        pub struct $section { $(pub $name: $type,)* }

        impl $section {
            pub(super) const KEYS: &[Key] = keys! { $($name = $default, $kind;)* };
        }
    };
}

const MAX: u64 = u32::MAX as u64;
const COUNT: Kind = Int(1, MAX);
const MILLIS: Kind = COUNT;
const FROM_0: Kind = Int(0, MAX);
const BACKEND: Kind = OneOf(&["memory", "redis"]);
const BOOL: Kind = Is(Value::is_boolean, "true or false");
const TEXTS: Kind = Is(are_texts, "a list of strings, none empty");
const FILE: Kind = Text(|text| !text.is_empty(), "a string that is not empty");
const ADDRESS: Kind = Text(
    |text| text.parse::<SocketAddr>().is_ok(),
    "an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080",
);
const LOOPBACK: Kind = Text(
    |text| text.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
    "a loopback address: the channel never leaves the host",
);
const PREFIX: Kind = Text(is_key_prefix, "1 to 32 of a-z, 0-9, _ and -");
const NAME: Kind = Text(is_handler_name, "1 to 64 of a-z, A-Z, 0-9, _ and -");
const REDIS_URL: Kind =
    Text(is_redis_url, "redis://HOST:PORT/DB, rediss://… or redis+unix://PATH, without user and password");
const USER: Kind = Is(is_user, "a user's name or number");
const GROUPS: Kind =
    Is(|value| value.as_array().is_some_and(|list| !list.is_empty()), "a list of at least one process group");
const OBJECT: Kind = Shape(Value::is_object, "an object");
const ORDERING: Kind = Shape(is_ordering, r#""none", "serial" or {"key":"/json/pointer"}"#);
const COMMAND: Kind = Shape(is_command, "a list of strings: the program and its arguments");
const TEXT_MAP: Kind = Shape(
    |value| value.as_object().is_some_and(|map| map.values().all(Value::is_string)),
    "an object of strings",
);

section! { Config {
    version: u32 = 1, Int(1, 1);
    runtime: Runtime = {}, Section(Runtime::KEYS);
    web: Web = {}, Section(Web::KEYS);
    observability: Observability = {}, Section(Observability::KEYS);
    handlers: BTreeMap<String, HandlerOptions> = {}, OBJECT;
}}
section! { Runtime {
    platform: Platform = {}, Section(Platform::KEYS);
    ordering: Sink = {}, Section(Sink::KEYS);
}}
section! { Sink {
    sink_mode: SinkMode = "source_seq", OneOf(&["source_seq", "completion"]);
}}
section! { Platform {
    bootstrap: Bootstrap = {}, Section(Bootstrap::KEYS);
    queue: Queue = {}, Section(Queue::KEYS);
    kv: Kv = {}, Section(Kv::KEYS);
    reply: Reply = {}, Section(Reply::KEYS);
    redis: Redis = {}, Section(Redis::KEYS);
    execution_ipc: Ipc = {}, Section(Ipc::KEYS);
    process_groups: Vec<ProcessGroup> = [{"name": "execution"}], GROUPS;
    lifecycle: Lifecycle = {}, Section(Lifecycle::KEYS);
}}
section! { Bootstrap {
    mode: String = "process_supervisor", OneOf(&["inline", "process_supervisor"]);
}}
section! { Queue {
    backend: String = "memory", BACKEND;
    capacity: usize = 10_000, COUNT;
    visibility_timeout_ms: u64 = 30_000, Int(100, MAX);
    max_deliveries: u32 = 16, COUNT;
    retry: Retry = {}, Section(RETRY_KEYS);
}}
section! { Kv {
    backend: String = "memory", BACKEND;
    context_ttl_seconds: u64 = 3_600, COUNT;
    lane_state_max_bytes: usize = 67_108_864, Int(1_024, 1 << 40);
    total_max_bytes: usize = 268_435_456, Int(1_024, 1 << 40);
}}
section! { Reply {
    backend: String = "memory", BACKEND;
    timeout_ms: u64 = 30_000, MILLIS;
    result_ttl_seconds: u64 = 600, COUNT;
    awaited_ttl_seconds: u64 = 30, COUNT;
    failed_ttl_seconds: u64 = 604_800, COUNT;
    idempotency_ttl_seconds: u64 = 86_400, COUNT;
    idempotency_keys: usize = 200_000, COUNT;
    retain: Retain = {}, Section(Retain::KEYS);
}}
section! { #[derive(Copy)] Retain {
    records: usize = 10_000, COUNT;
    bytes: usize = 67_108_864, Int(1, 1 << 40);
    failed_records: usize = 10_000, COUNT;
    failed_bytes: usize = 67_108_864, Int(1, 1 << 40);
}}
section! { Redis {
    url: String = "redis://127.0.0.1:6379/0", REDIS_URL;
    username: Option<String> = null, FILE;
    password_file: Option<String> = null, FILE;
    key_prefix: String = "cofferdam", PREFIX;
    connect_timeout_ms: u64 = 2_000, MILLIS;
    response_timeout_ms: u64 = 5_000, MILLIS;
}}
section! { Ipc {
    transport: String = "tcp_local", OneOf(&["tcp_local"]);
    bind_host: String = "127.0.0.1", LOOPBACK;
    bind_port: u16 = 0, Int(0, 65_535);
    max_payload_bytes: usize = 1_048_576, Int(1_024, 67_108_864);
    auth: IpcAuth = {}, Section(IpcAuth::KEYS);
    heartbeat_ms: u64 = 2_000, Int(100, 3_600_000);
}}
section! { IpcAuth {
    mode: String = "hmac", OneOf(&["hmac"]);
    secret_mode: String = null, OneOf(&["generated", "static"]);
    secret_file: Option<String> = null, FILE;
    kdf: String = "hkdf_sha256", OneOf(&["hkdf_sha256"]);
    ttl_seconds: u64 = 30, Int(1, 3_600);
    nonce_cache_size: usize = 4_096, Int(16, 1 << 20);
}}
section! { ProcessGroup {
    name: String = null, NAME;
    processes: usize = 1, Int(1, 1_024);
    workers: usize = 8, Int(1, 4_096);
    handlers: Vec<String> = ["*"], TEXTS;
    max_jobs: u64 = 0, Int(0, 1 << 40);
    max_rss_mb: u64 = 0, FROM_0;
    user: Option<Value> = null, USER;
    follow_ups: Vec<String> = ["*"], TEXTS;
}}
section! { Lifecycle {
    ready_timeout_ms: u64 = 10_000, MILLIS;
    graceful_timeout_ms: u64 = 10_000, FROM_0;
    drain_inflight: bool = true, BOOL;
    restart: Restart = {}, Section(Restart::KEYS);
}}
section! { Restart {
    policy: String = "on_failure", OneOf(&["on_failure", "never"]);
    max_restarts: usize = 5, FROM_0;
    window_ms: u64 = 60_000, MILLIS;
    backoff_ms: u64 = 100, MILLIS;
}}
section! { Web {
    bind: String = "127.0.0.1:8080", ADDRESS;
    max_inflight: usize = 4_096, COUNT;
    max_body_bytes: usize = 1_048_576, COUNT;
    max_batch_bytes: usize = 16_777_216, COUNT;
    allowed_hosts: Vec<String> = [], TEXTS;
    auth: WebAuth = {}, Section(WebAuth::KEYS);
    limits: WebLimits = {}, Section(WebLimits::KEYS);
}}
section! { WebAuth {
    mode: String = "none", OneOf(&["none", "bearer"]);
    token_file: Option<String> = null, FILE;
}}
section! { #[derive(Copy)] WebLimits {
    connections: usize = 4_096, COUNT;
    connections_per_ip: usize = 256, COUNT;
    header_bytes: usize = 16_384, COUNT;
    header_timeout_ms: u64 = 5_000, MILLIS;
    body_timeout_ms: u64 = 15_000, MILLIS;
    idle_timeout_ms: u64 = 75_000, MILLIS;
    write_timeout_ms: u64 = 30_000, MILLIS;
}}
section! { Observability {
    log: LogFormat = "text", OneOf(&["text", "json"]);
}}

const RETRY_KEYS: &[Key] = keys! {
    base_ms = 1_000, MILLIS;
    max_ms = 3_600_000, MILLIS;
};

/// Options of any handler. None has a default here: a handler brings its own ([`HandlerOptions`]).
pub(super) const HANDLER_KEYS: &[Key] = keys! {
    timeout_ms = null, MILLIS;
    concurrency = null, FROM_0;
    max_deliveries = null, COUNT;
    retry = null, Optional(RETRY_KEYS);
    cancel_on_disconnect = null, BOOL;
    on_dead = null, OneOf(&["continue", "park"]);
    ordering = null, ORDERING;
};

/// Options of a handler that is a program, beside those.
pub(super) const COMMAND_KEYS: &[Key] = keys! {
    command = null, COMMAND;
    env = null, TEXT_MAP;
    limits = null, Optional(COMMAND_LIMIT_KEYS);
    mode = "once", OneOf(&["once", "worker"]);
    dir = null, FILE;
    max_output_bytes = 1_048_576, Int(1, 67_108_864);
    stop_grace_ms = 2_000, FROM_0;
    uid = null, FROM_0;
    gid = null, FROM_0;
};
const COMMAND_LIMIT_KEYS: &[Key] = keys! {
    memory_mb = null, COUNT;
    cpu_seconds = null, COUNT;
    processes = null, COUNT;
    open_files = null, COUNT;
};

/// Which order results of a batch come in: that of the input lines, or as they finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkMode {
    SourceSeq,
    Completion,
}

/// How log lines are written: for people, or one object a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

impl ProcessGroup {
    pub fn runs(&self, handler: &str) -> bool {
        self.handlers.iter().any(|name| name == "*" || name == handler)
    }
}

impl Lifecycle {
    /// How long a drain lets jobs finish.
    pub fn patience_ms(&self) -> u64 {
        if self.drain_inflight { self.graceful_timeout_ms } else { 0 }
    }
}

impl Key {
    /// The key at a dotted path.
    pub(super) fn at(path: &str) -> Option<&'static Key> {
        let (mut keys, mut found) = (Config::KEYS, None);
        for name in path.split('.') {
            let key = keys.iter().find(|key| key.name == name)?;
            keys = if let Section(keys) = key.kind { keys } else { &[] };
            found = Some(key);
        }
        found
    }

    /// What a refusal says was expected; `None` if the value is allowed.
    pub(super) fn refuses(&self, value: &Value) -> Option<String> {
        let (is_allowed, expected) = match self.kind {
            Int(min, max) => {
                let range =
                    if min == max { format!("{min}") } else { format!("a whole number from {min} to {max}") };
                (value.as_u64().is_some_and(|number| (min..=max).contains(&number)), range)
            }
            OneOf(words) => {
                let quoted: Vec<String> = words.iter().map(|word| json!(word).to_string()).collect();
                (value.as_str().is_some_and(|word| words.contains(&word)), quoted.join(" or "))
            }
            Text(passes, expected) => match value.as_str() {
                Some(text) => (passes(text), expected.into()),
                None => (false, "a string".into()),
            },
            Is(passes, expected) | Shape(passes, expected) => (passes(value), expected.into()),
            Section(_) | Optional(_) => (value.is_object(), "an object".into()),
        };
        (!is_allowed).then_some(expected)
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

fn are_texts(value: &Value) -> bool {
    let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    value.as_array().is_some_and(|list| list.iter().all(is_text))
}

fn is_user(value: &Value) -> bool {
    let is_name = |name: &str| !name.is_empty() && !name.contains([':', '\n']);
    value.as_str().is_some_and(is_name) || value.as_u64().is_some_and(|number| number < MAX)
}

fn is_ordering(value: &Value) -> bool {
    let pointer = value.as_object().filter(|map| map.len() == 1).and_then(|map| map.get("key")?.as_str());
    pointer.is_some_and(|pointer| pointer.is_empty() || pointer.starts_with('/'))
        || matches!(value.as_str(), Some("none" | "serial"))
}

fn is_command(value: &Value) -> bool {
    let is_word = |word: &Value| word.as_str().is_some_and(|word| !word.contains('\0'));
    value.as_array().is_some_and(|list| !list.is_empty() && list[0] != "" && list.iter().all(is_word))
}
