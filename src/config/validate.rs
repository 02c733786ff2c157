//! Fills in the defaults and finds everything that is wrong, in one pass over the given values.

use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use super::issue::{Issue, inside};
use super::key::{Key, Kind};
use super::program::COMMAND_KEYS;
use super::reference::meant;
use super::schema::{Config, HANDLER_KEYS, ProcessGroup};
use crate::handler::{HandlerOptions, OwnOptions, Retry, is_handler_name};

/// The normalised value of what was given. Where it is wrong, the issue is added and the default stands in,
/// so that one run finds everything.
pub(super) fn normalise(given: &Value, registered: &OwnOptions, issues: &mut Vec<Issue>) -> Value {
    let mut out = section(Some(given), "", Config::KEYS, issues);
    let platform = &mut out["runtime"]["platform"];
    let auth = &mut platform["execution_ipc"]["auth"];
    if auth.get("secret_mode").is_none() {
        auth["secret_mode"] = json!(if auth.get("secret_file").is_some() { "static" } else { "generated" });
    }
    platform["process_groups"] = groups(&platform["process_groups"], issues);
    out["handlers"] = handlers(&out["handlers"], registered, issues);
    out
}

/// A section's keys: of each what was given if that is allowed, else the default; and nothing that the table does not have.
fn section(given: Option<&Value>, at: &str, keys: &[Key], issues: &mut Vec<Issue>) -> Value {
    if let Some(other) = given.filter(|given| !given.is_object()) {
        issues.push(Issue::new(at, "is not allowed", kind_of(other), "an object"));
    }
    let given = given.and_then(Value::as_object);
    for (name, value) in given.into_iter().flatten() {
        if keys.iter().all(|key| key.name != name) {
            let expected = meant(at, name, keys).map(|meant| format!("{meant} or another known key"));
            let expected = expected.as_deref().unwrap_or("no such key");
            issues.push(Issue::new(&inside(at, name), "is an unknown key", kind_of(value), expected));
        }
    }
    let mut out = Map::new();
    for key in keys {
        let path = inside(at, key.name);
        let judges_null = matches!(key.kind, Kind::Section(_) | Kind::Shape(..) | Kind::Optional(_));
        let given = given.and_then(|given| given.get(key.name));
        let value = match (key.kind, given.filter(|value| judges_null || !value.is_null())) {
            (Kind::Section(keys), given) => section(given, &path, keys, issues),
            (Kind::Optional(keys), Some(given)) => object(given, &path, keys, issues),
            (_, Some(given)) => checked(key, &path, given, issues),
            (_, None) => (key.default)(),
        };
        if !value.is_null() {
            out.insert(key.name.into(), value);
        }
    }
    Value::Object(out)
}

fn checked(key: &Key, path: &str, given: &Value, issues: &mut Vec<Issue>) -> Value {
    let Some(expected) = key.refuses(given) else { return given.clone() };
    // Where people put passwords, what is wrong is said without showing it.
    let got = match key.name {
        "url" => "another text".into(),
        "env" => "another kind".into(),
        _ => shown(given),
    };
    issues.push(Issue::new(path, "is not allowed", &got, &expected));
    (key.default)()
}

/// The same for an object of the lists and maps in the table.
fn object(given: &Value, at: &str, keys: &[Key], issues: &mut Vec<Issue>) -> Value {
    if !given.is_object() {
        issues.push(Issue::new(at, "is not allowed", &shown(given), "an object"));
    }
    section(Some(given).filter(|given| given.is_object()), at, keys, issues)
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// What may be shown of a value that nobody knows: it may be a secret in the wrong place.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn groups(given: &Value, issues: &mut Vec<Issue>) -> Value {
    let mut out: Vec<Value> = Vec::new();
    for (index, group) in given.as_array().into_iter().flatten().enumerate() {
        let at = format!("runtime.platform.process_groups.{index}");
        let mut group = object(group, &at, ProcessGroup::KEYS, issues);
        if group.get("name").is_none() {
            issues.push(Issue::new(&format!("{at}.name"), "is missing", "nothing", "a name"));
            group["name"] = json!(format!("group-{index}"));
        } else if out.iter().any(|other| other["name"] == group["name"]) {
            let name = shown(&group["name"]);
            issues.push(Issue::new(&format!("{at}.name"), "is taken", &name, "a unique name"));
        }
        out.push(group);
    }
    Value::Array(out)
}

fn handlers(given: &Value, registered: &OwnOptions, issues: &mut Vec<Issue>) -> Value {
    let own = registered.iter().map(|(name, own)| (name.clone(), json!(own)));
    let mut out: Map<String, Value> = own.collect();
    for (name, options) in given.as_object().into_iter().flatten() {
        let at = format!("handlers.{name}");
        let own = registered.get(name);
        if own.is_none() && !is_handler_name(name) {
            let expected = "1 to 64 of a-z, A-Z, 0-9, _ and -, and not retry or cancel";
            issues.push(Issue::new(&at, "is not a handler's name", name, expected));
        } else if own.is_none() && options.get("command").is_none() {
            let known = registered.keys().cloned().collect::<Vec<_>>().join(", ");
            let expected = format!("one of {known}, or a \"command\"");
            issues.push(Issue::new(&at, "is no known handler", kind_of(options), &expected));
        } else {
            out.insert(name.clone(), handler(&at, options, own.cloned().unwrap_or_default(), issues));
        }
    }
    Value::Object(out)
}

/// A handler's own options with what the config says, as far as that is right, laid over them.
fn handler(at: &str, given: &Value, own: HandlerOptions, issues: &mut Vec<Issue>) -> Value {
    let mut keys = HANDLER_KEYS.to_vec();
    if given.get("command").is_some() {
        keys.extend_from_slice(COMMAND_KEYS);
    }
    let mut options = json!(own);
    let said = object(given, at, &keys, issues);
    for (key, value) in said.as_object().into_iter().flatten() {
        options[key] = value.clone();
    }
    options
}

/// The rules between keys.
pub(super) fn cross_rules(config: &Config, issues: &mut Vec<Issue>) {
    let (platform, web) = (&config.runtime.platform, &config.web);
    let (queue, kv, reply) = (&*platform.queue.backend, &*platform.kv.backend, &*platform.reply.backend);
    let auth = &platform.execution_ipc.auth;
    let is_static = auth.secret_mode == "static";
    let mut rule = |is_broken: bool, path: &str, what: &str, got: Value, expected: &str| {
        issues.extend(is_broken.then(|| Issue::new(path, what, &shown(&got), expected)));
    };
    let mut of_platform = |is_broken: bool, path: &str, what: &str, got: Value, expected: &str| {
        rule(is_broken, &format!("runtime.platform.{path}"), what, got, expected);
    };
    let (mode, got) = ("execution_ipc.auth.secret_mode", json!(auth.secret_mode));
    let needs_static = [queue, kv, reply].contains(&"redis") && !is_static;
    let what = "must be static with a Redis backend, where jobs are signed";
    let expected = "\"static\": run `cofferdam keygen --output FILE`, then set secret_file to FILE";
    of_platform(needs_static, mode, what, got.clone(), expected);
    let (file, missing) = ("execution_ipc.auth.secret_file", is_static && auth.secret_file.is_none());
    of_platform(missing, file, "is missing", Value::Null, "a file, as secret_mode is static");
    let contradicts = !is_static && auth.secret_file.is_some();
    of_platform(contradicts, mode, "contradicts secret_file", got, "\"static\", or no secret_file");
    of_platform(queue != reply, "reply.backend", "must be that of the queue", json!(reply), queue);
    let (is_apart, what) = (queue == "redis" && kv != "redis", "must be redis when the queue is");
    of_platform(is_apart, "kv.backend", what, json!(kv), "redis");
    if let Some(journal) = &platform.queue.journal {
        let (at, what) = ("queue.journal", "is for the memory backends alone");
        of_platform(
            [queue, kv].contains(&"redis"),
            at,
            what,
            json!(queue),
            "no journal: Redis keeps its own",
        );
        let expected = "the path of a directory";
        of_platform(journal.dir.is_none(), "queue.journal.dir", "is missing", Value::Null, expected);
    }
    let is_open = web.bind.parse::<SocketAddr>().is_ok_and(|address| !address.ip().is_loopback());
    let has_bearer = web.auth.mode == "bearer";
    let expected = "a loopback address, or web.auth.mode=bearer";
    let what = "is beyond loopback without authentication";
    rule(is_open && !has_bearer, "web.bind", what, json!(web.bind), expected);
    let expected =
        "true: a proxy on the way speaks TLS, so that nobody reads tokens; or a loopback address in web.bind";
    let what = "must be true beyond loopback";
    rule(is_open && has_bearer && !web.behind_tls, "web.behind_tls", what, json!(false), expected);
    let expected = "false, or a loopback address in web.bind";
    rule(
        is_open && web.auth.open_metrics,
        "web.auth.open_metrics",
        "is for loopback alone",
        json!(true),
        expected,
    );
    let missing = has_bearer && web.auth.token_file.is_none();
    let expected = "a file, as web.auth.mode is bearer";
    rule(missing, "web.auth.token_file", "is missing", Value::Null, expected);
    let (body, batch) = (web.max_body_bytes, web.max_batch_bytes);
    let payload = platform.execution_ipc.max_payload_bytes;
    let expected = format!("at most runtime.platform.execution_ipc.max_payload_bytes, {payload}");
    let what = "is more than the channel carries";
    rule(body > payload, "web.max_body_bytes", what, json!(body), &expected);
    let expected = format!("at least web.max_body_bytes, {body}");
    rule(batch < body, "web.max_batch_bytes", "is less than one body", json!(batch), &expected);
    let of_handlers =
        config.handlers.iter().map(|(name, own)| (format!("handlers.{name}"), own.options.retry));
    let of_queue = ("runtime.platform.queue".to_owned(), Some(platform.queue.retry));
    for (at, retry) in of_handlers.chain([of_queue]) {
        let Some(Retry { base_ms, max_ms }) = retry else { continue };
        let (path, expected) = (format!("{at}.retry.base_ms"), format!("at most max_ms, {max_ms}"));
        rule(base_ms > max_ms, &path, "is more than max_ms", json!(base_ms), &expected);
    }
    group_rules(config, issues);
}

fn group_rules(config: &Config, issues: &mut Vec<Issue>) {
    let groups = &config.runtime.platform.process_groups;
    let is_inline = config.runtime.platform.bootstrap.mode == "inline";
    for (index, group) in groups.iter().enumerate() {
        let at = format!("runtime.platform.process_groups.{index}");
        if is_inline && group.processes > 1 {
            let got = group.processes.to_string();
            issues.push(Issue::new(&format!("{at}.processes"), "inline runs one process", &got, "1"));
        }
        let handlers = group.handlers.iter().map(|name| ("handlers", name));
        for (key, name) in handlers.chain(group.follow_ups.iter().map(|name| ("follow_ups", name))) {
            if name != "*" && !config.handlers.contains_key(name) {
                let expected = "a known handler or \"*\"";
                issues.push(Issue::new(&format!("{at}.{key}"), "names no handler", name, expected));
            }
        }
    }
    for handler in config.handlers.keys() {
        let count = config.runtime.platform.groups_of(handler).len();
        if count != 1 {
            let (path, got) = (format!("handlers.{handler}"), format!("{count} groups"));
            issues.push(Issue::new(&path, "must be in exactly one process group", &got, "1"));
        }
    }
}

/// Why a build without the feature `redis` refuses a Redis backend.
pub const NO_REDIS: &str = "redis is not in this build, which was made with `--no-default-features`; \
     build it with the feature `redis` (the default), or use memory";

/// What is valid but not built: each refuses to start, never starts without it.
pub fn unbuilt(config: &Config) -> Vec<String> {
    let platform = &config.runtime.platform;
    let mut out = Vec::new();
    let mut refuse = |is_so: bool, what: String| out.extend(is_so.then_some(what));
    for (name, backend) in [("queue", &platform.queue.backend), ("kv", &platform.kv.backend)] {
        let what = format!("runtime.platform.{name}.backend: {NO_REDIS}");
        refuse(backend == "redis" && !cfg!(feature = "redis"), what);
    }
    let what = "runtime.platform.redis.url: rediss:// is not built in; use a TLS tunnel on this host (docs/operations.md)";
    refuse(platform.redis.url.starts_with("rediss://"), what.into());
    for ProcessGroup { name, max_jobs, max_rss_mb, user, .. } in &platform.process_groups {
        let what = "inline, no process can be replaced; use 0 for max_jobs, max_rss_mb";
        let recycles = platform.bootstrap.mode == "inline" && (*max_jobs > 0 || *max_rss_mb > 0);
        refuse(recycles, format!("process group {name}: {what}"));
        let what = "inline, executors are threads of this process and run as its user";
        let is_another = platform.bootstrap.mode == "inline" && user.is_some();
        refuse(is_another, format!("process group {name}: user: {what}"));
    }
    out
}
