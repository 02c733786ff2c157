//! The table of CONTRACT 2: each key's path, default and allowed values.

use serde_json::{Value, json};

/// What a key's value must be.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A whole number in this range.
    Int(u64, u64),
    /// `true` or `false`.
    Bool,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A text that this accepts; the error says what it expects.
    Text(fn(&str) -> Result<(), &'static str>),
    /// A list of such texts.
    Texts,
    /// `process_groups`: checked in the validator.
    Groups,
}

/// One key. `default` is JSON text; `"null"` where the key may be absent.
pub(super) struct Key {
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    pub(super) default: &'static str,
}

const fn key(path: &'static str, kind: Kind, default: &'static str) -> Key {
    Key { path, kind, default }
}

const MAX: u64 = u32::MAX as u64;
const BACKENDS: Kind = Kind::OneOf(&["memory", "redis"]);
const COUNT: Kind = Kind::Int(1, MAX);
const MILLIS: Kind = Kind::Int(1, MAX);

/// Every key that is not inside `handlers`.
pub(super) const KEYS: &[Key] = &[
    key("version", Kind::Int(1, 1), "1"),
    key(
        "runtime.platform.bootstrap.mode",
        Kind::OneOf(&["inline", "process_supervisor"]),
        r#""process_supervisor""#,
    ),
    key("runtime.platform.queue.backend", BACKENDS, r#""memory""#),
    key("runtime.platform.queue.capacity", COUNT, "10000"),
    key("runtime.platform.queue.visibility_timeout_ms", Kind::Int(100, MAX), "30000"),
    key("runtime.platform.queue.max_deliveries", COUNT, "5"),
    key("runtime.platform.queue.retry.base_ms", MILLIS, "200"),
    key("runtime.platform.queue.retry.max_ms", MILLIS, "60000"),
    key("runtime.platform.kv.backend", BACKENDS, r#""memory""#),
    key("runtime.platform.kv.context_ttl_seconds", COUNT, "3600"),
    key("runtime.platform.kv.lane_state_max_bytes", Kind::Int(1_024, 1 << 40), "67108864"),
    key("runtime.platform.reply.backend", BACKENDS, r#""memory""#),
    key("runtime.platform.reply.timeout_ms", MILLIS, "30000"),
    key("runtime.platform.reply.result_ttl_seconds", COUNT, "600"),
    key("runtime.platform.reply.awaited_ttl_seconds", COUNT, "30"),
    key("runtime.platform.reply.retain.records", COUNT, "10000"),
    key("runtime.platform.reply.retain.bytes", Kind::Int(1, 1 << 40), "67108864"),
    key("runtime.platform.redis.url", Kind::Text(redis_url), r#""redis://127.0.0.1:6379/0""#),
    key("runtime.platform.redis.username", Kind::Text(not_empty), "null"),
    key("runtime.platform.redis.password_file", Kind::Text(not_empty), "null"),
    key("runtime.platform.redis.key_prefix", Kind::Text(key_prefix), r#""cofferdam""#),
    key("runtime.platform.redis.connect_timeout_ms", MILLIS, "2000"),
    key("runtime.platform.redis.response_timeout_ms", MILLIS, "5000"),
    key("runtime.platform.execution_ipc.transport", Kind::OneOf(&["tcp_local"]), r#""tcp_local""#),
    key("runtime.platform.execution_ipc.bind_host", Kind::Text(loopback), r#""127.0.0.1""#),
    key("runtime.platform.execution_ipc.bind_port", Kind::Int(0, 65_535), "0"),
    key("runtime.platform.execution_ipc.max_payload_bytes", Kind::Int(1_024, 67_108_864), "1048576"),
    key("runtime.platform.execution_ipc.auth.mode", Kind::OneOf(&["hmac"]), r#""hmac""#),
    key("runtime.platform.execution_ipc.auth.secret_mode", Kind::OneOf(&["generated", "static"]), "null"),
    key("runtime.platform.execution_ipc.auth.secret_file", Kind::Text(not_empty), "null"),
    key("runtime.platform.execution_ipc.auth.kdf", Kind::OneOf(&["hkdf_sha256"]), r#""hkdf_sha256""#),
    key("runtime.platform.execution_ipc.auth.ttl_seconds", Kind::Int(1, 3_600), "30"),
    key("runtime.platform.execution_ipc.auth.nonce_cache_size", Kind::Int(16, 1 << 20), "4096"),
    key("runtime.platform.execution_ipc.heartbeat_ms", Kind::Int(100, 3_600_000), "2000"),
    key("runtime.platform.process_groups", Kind::Groups, r#"[{"name":"execution"}]"#),
    key("runtime.platform.lifecycle.ready_timeout_ms", MILLIS, "10000"),
    key("runtime.platform.lifecycle.graceful_timeout_ms", Kind::Int(0, MAX), "10000"),
    key("runtime.platform.lifecycle.drain_inflight", Kind::Bool, "true"),
    key(
        "runtime.platform.lifecycle.restart.policy",
        Kind::OneOf(&["on_failure", "never"]),
        r#""on_failure""#,
    ),
    key("runtime.platform.lifecycle.restart.max_restarts", Kind::Int(0, MAX), "5"),
    key("runtime.platform.lifecycle.restart.window_ms", MILLIS, "60000"),
    key("runtime.platform.lifecycle.restart.backoff_ms", MILLIS, "100"),
    key("runtime.ordering.sink_mode", Kind::OneOf(&["source_seq", "completion"]), r#""source_seq""#),
    key("web.bind", Kind::Text(socket_address), r#""127.0.0.1:8080""#),
    key("web.max_inflight", COUNT, "4096"),
    key("web.max_body_bytes", COUNT, "1048576"),
    key("web.max_batch_bytes", COUNT, "16777216"),
    key("web.allowed_hosts", Kind::Texts, "[]"),
    key("web.auth.mode", Kind::OneOf(&["none", "bearer"]), r#""none""#),
    key("web.auth.token_file", Kind::Text(not_empty), "null"),
    key("web.limits.connections", COUNT, "4096"),
    key("web.limits.connections_per_ip", COUNT, "256"),
    key("web.limits.header_bytes", COUNT, "16384"),
    key("web.limits.header_timeout_ms", MILLIS, "5000"),
    key("web.limits.body_timeout_ms", MILLIS, "15000"),
    key("web.limits.idle_timeout_ms", MILLIS, "60000"),
    key("web.limits.write_timeout_ms", MILLIS, "30000"),
    key("observability.log", Kind::OneOf(&["text", "json"]), r#""text""#),
];

/// Keys of one process group, with the groups' own defaults.
pub(super) const GROUP_KEYS: &[Key] = &[
    key("name", Kind::Text(group_name), "null"),
    key("processes", Kind::Int(1, 1_024), "1"),
    key("workers", Kind::Int(1, 4_096), "8"),
    key("handlers", Kind::Texts, r#"["*"]"#),
    key("max_jobs", Kind::Int(0, 1 << 40), "0"),
    key("max_rss_mb", Kind::Int(0, MAX), "0"),
];

/// Options of any handler; their defaults are the handler's own. `ordering` is checked in the validator.
pub(super) const HANDLER_KEYS: &[Key] = &[
    key("timeout_ms", MILLIS, "30000"),
    key("concurrency", Kind::Int(0, MAX), "0"),
    key("max_deliveries", COUNT, "null"),
    key("cancel_on_disconnect", Kind::Bool, "false"),
    key("on_dead", Kind::OneOf(&["continue", "park"]), r#""continue""#),
];

/// Options of a handler that is a program. `command`, `env` and `limits` are checked in the validator.
pub(super) const COMMAND_KEYS: &[Key] = &[
    key("mode", Kind::OneOf(&["once", "worker"]), r#""once""#),
    key("dir", Kind::Text(not_empty), "null"),
    key("max_output_bytes", Kind::Int(1, 67_108_864), "1048576"),
    key("stop_grace_ms", Kind::Int(0, MAX), "2000"),
    key("uid", Kind::Int(0, MAX), "null"),
    key("gid", Kind::Int(0, MAX), "null"),
];

/// Keys of a program's `limits`.
pub(super) const COMMAND_LIMIT_KEYS: &[Key] = &[
    key("memory_mb", COUNT, "null"),
    key("cpu_seconds", COUNT, "null"),
    key("processes", COUNT, "null"),
    key("open_files", COUNT, "null"),
];

impl Key {
    /// The default; `None` where the key may be absent.
    pub(super) fn default_value(&self) -> Option<Value> {
        let value: Value = serde_json::from_str(self.default).expect("the schema's defaults are JSON");
        (!value.is_null()).then_some(value)
    }

    /// What a refusal says was expected; `None` if the value is allowed.
    pub(super) fn refuses(&self, value: &Value) -> Option<String> {
        match self.kind {
            Kind::Int(min, max) => {
                let expected = match max {
                    _ if min == max => format!("{min}"),
                    _ => format!("a whole number from {min} to {max}"),
                };
                let fits = value.as_u64().is_some_and(|number| (min..=max).contains(&number));
                (!fits).then_some(expected)
            }
            Kind::Bool => (!value.is_boolean()).then(|| "true or false".into()),
            Kind::OneOf(words) => {
                let known = value.as_str().is_some_and(|word| words.contains(&word));
                (!known).then(|| {
                    words.iter().map(|word| json!(word).to_string()).collect::<Vec<_>>().join(" or ")
                })
            }
            Kind::Text(check) => match value.as_str() {
                Some(text) => check(text).err().map(str::to_owned),
                None => Some("a string".into()),
            },
            Kind::Texts => {
                let texts = value.as_array().is_some_and(|list| {
                    list.iter().all(|text| text.as_str().is_some_and(|text| !text.is_empty()))
                });
                (!texts).then(|| "a list of strings, none empty".into())
            }
            Kind::Groups => {
                let groups = value.as_array().is_some_and(|list| !list.is_empty());
                (!groups).then(|| "a list of at least one process group".into())
            }
        }
    }
}

fn not_empty(text: &str) -> Result<(), &'static str> {
    if text.is_empty() { Err("a string that is not empty") } else { Ok(()) }
}

fn socket_address(text: &str) -> Result<(), &'static str> {
    match text.parse::<std::net::SocketAddr>() {
        Ok(_) => Ok(()),
        Err(_) => Err("an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080"),
    }
}

fn loopback(text: &str) -> Result<(), &'static str> {
    match text.parse::<std::net::IpAddr>() {
        Ok(address) if address.is_loopback() => Ok(()),
        Ok(_) | Err(_) => Err("a loopback address: the channel never leaves the host"),
    }
}

fn key_prefix(text: &str) -> Result<(), &'static str> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    let fits = (1..=32).contains(&text.len()) && text.bytes().all(allowed);
    if fits { Ok(()) } else { Err("1 to 32 of a-z, 0-9, _ and -") }
}

fn group_name(text: &str) -> Result<(), &'static str> {
    if crate::handler::is_handler_name(text) { Ok(()) } else { Err("1 to 64 of a-z, A-Z, 0-9, _ and -") }
}

fn redis_url(text: &str) -> Result<(), &'static str> {
    const EXPECTED: &str = "redis://HOST:PORT/DB, rediss://… or redis+unix://PATH, without user and password";
    let rest = ["redis://", "rediss://", "redis+unix://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    // A `redis+unix` URL takes them in its query.
    let query = text.split_once('?').map_or("", |(_, query)| query);
    let in_query = query.split('&').any(|part| part.starts_with("user=") || part.starts_with("pass="));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.contains('@') && !in_query => Ok(()),
        Some(_) | None => Err(EXPECTED),
    }
}
