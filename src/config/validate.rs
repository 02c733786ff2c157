//! Fills in the defaults and finds everything that is wrong, in one pass over the given values.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use super::model::Config;
use super::schema::{COMMAND_KEYS, COMMAND_LIMIT_KEYS, GROUP_KEYS, HANDLER_KEYS, KEYS, Key};
use crate::handler::{HandlerOptions, OnDead, Ordering, is_handler_name};

/// One thing that is wrong, as it is shown: `PATH: what is wrong (got X; expected Y)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// The dotted path.
    pub path: String,
    what: String,
    got: String,
    expected: String,
}

impl Issue {
    pub(super) fn new(path: &str, what: &str, got: &str, expected: &str) -> Issue {
        Issue { path: path.into(), what: what.into(), got: got.into(), expected: expected.into() }
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (got {}; expected {})", self.path, self.what, self.got, self.expected)
    }
}

/// The normalised value of what was given. Where it is wrong, the issue is added and the default stands in,
/// so that one run finds everything.
pub(super) fn normalise(
    mut given: Value,
    handlers: &BTreeMap<String, HandlerOptions>,
    issues: &mut Vec<Issue>,
) -> Value {
    let given_handlers = given.as_object_mut().and_then(|map| map.remove("handlers")).unwrap_or(json!({}));
    unknown_keys(&given, "", KEYS, issues);
    let mut out = Value::Object(Map::new());
    for key in KEYS {
        let value =
            given.pointer(&format!("/{}", key.path.replace('.', "/"))).filter(|value| !value.is_null());
        if let Some(value) = checked(key, key.path, value, issues) {
            put(&mut out, key.path, value);
        }
    }
    let auth = &mut out["runtime"]["platform"]["execution_ipc"]["auth"];
    if auth.get("secret_mode").is_none() {
        auth["secret_mode"] =
            if auth.get("secret_file").is_some() { json!("static") } else { json!("generated") };
    }
    out["runtime"]["platform"]["process_groups"] =
        groups(&out["runtime"]["platform"]["process_groups"], issues);
    out["handlers"] = all_handlers(&given_handlers, handlers, issues);
    cross_rules(&out, issues);
    out
}

/// The given value if it is allowed, else the default.
fn checked(key: &Key, path: &str, given: Option<&Value>, issues: &mut Vec<Issue>) -> Option<Value> {
    let Some(value) = given else { return key.default_value() };
    let Some(expected) = key.refuses(value) else { return Some(value.clone()) };
    // A URL may hold a password: what is wrong with it is said without showing it.
    let got = if path.ends_with("redis.url") { "another text".into() } else { shown(value) };
    issues.push(Issue::new(path, "is not allowed", &got, &expected));
    key.default_value()
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

fn put(out: &mut Value, path: &str, value: Value) {
    let mut slot = out;
    for part in path.split('.') {
        if !slot.is_object() {
            *slot = json!({});
        }
        slot = &mut slot[part];
    }
    *slot = value;
}

fn unknown_keys(given: &Value, prefix: &str, keys: &[Key], issues: &mut Vec<Issue>) {
    let Some(object) = given.as_object() else {
        issues.push(Issue::new(prefix, "is not allowed", kind_of(given), "an object"));
        return;
    };
    for (name, value) in object {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        // A name with a dot in it looks like a path and is none: `{"web.bind": …}` sets nothing.
        let is_name = !name.contains('.');
        if is_name && keys.iter().any(|key| key.path == path) {
            continue;
        }
        if is_name && keys.iter().any(|key| key.path.starts_with(&format!("{path}."))) {
            unknown_keys(value, &path, keys, issues);
        } else {
            issues.push(Issue::new(&path, "is an unknown key", kind_of(value), "no such key"));
        }
    }
}

/// Checks one flat object against its keys and fills in their defaults.
fn flat(given: &Value, at: &str, keys: &[Key], also: &[&str], issues: &mut Vec<Issue>) -> Value {
    let Some(object) = given.as_object() else {
        issues.push(Issue::new(at, "is not allowed", &shown(given), "an object"));
        return json!({});
    };
    for (name, value) in object {
        if !keys.iter().any(|key| key.path == name) && !also.contains(&name.as_str()) {
            issues.push(Issue::new(
                &format!("{at}.{name}"),
                "is an unknown key",
                kind_of(value),
                "no such key",
            ));
        }
    }
    let mut out = Map::new();
    for key in keys {
        let value = object.get(key.path).filter(|value| !value.is_null());
        if let Some(value) = checked(key, &format!("{at}.{}", key.path), value, issues) {
            out.insert(key.path.into(), value);
        }
    }
    Value::Object(out)
}

fn groups(given: &Value, issues: &mut Vec<Issue>) -> Value {
    let mut out: Vec<Value> = Vec::new();
    for (index, group) in given.as_array().into_iter().flatten().enumerate() {
        let at = format!("runtime.platform.process_groups.{index}");
        let mut group = flat(group, &at, GROUP_KEYS, &[], issues);
        let taken = |name: &Value| out.iter().any(|other| other.get("name") == Some(name));
        match group.get("name").cloned() {
            Some(name) if taken(&name) => {
                issues.push(Issue::new(&format!("{at}.name"), "is taken", &shown(&name), "a unique name"));
            }
            Some(_) => {}
            None => {
                issues.push(Issue::new(&format!("{at}.name"), "is missing", "nothing", "a name"));
                group["name"] = json!(format!("group-{index}"));
            }
        }
        out.push(group);
    }
    Value::Array(out)
}

fn all_handlers(
    given: &Value,
    registered: &BTreeMap<String, HandlerOptions>,
    issues: &mut Vec<Issue>,
) -> Value {
    let mut out = Map::new();
    let none = Map::new();
    let given = given.as_object().unwrap_or_else(|| {
        issues.push(Issue::new("handlers", "is not allowed", &shown(given), "an object"));
        &none
    });
    for (name, options) in registered {
        let own = own_options(options);
        let options = given.get(name).map_or(Ok(own.clone()), |given| one_handler(name, given, own, issues));
        out.insert(name.clone(), options.unwrap_or(json!({})));
    }
    for (name, options) in given.iter().filter(|(name, _)| !registered.contains_key(*name)) {
        let at = format!("handlers.{name}");
        if !is_handler_name(name) {
            issues.push(Issue::new(
                &at,
                "is not a handler's name",
                name,
                "1 to 64 of a-z, A-Z, 0-9, _ and -",
            ));
        } else if options.get("command").is_none() {
            let known = registered.keys().cloned().collect::<Vec<_>>().join(", ");
            let expected = format!("one of {known}, or a \"command\"");
            issues.push(Issue::new(&at, "is no known handler", kind_of(options), &expected));
        } else if let Ok(value) = one_handler(name, options, own_options(&HandlerOptions::default()), issues)
        {
            out.insert(name.clone(), value);
        }
    }
    Value::Object(out)
}

/// A registered handler's own options, in the form of the config.
fn own_options(options: &HandlerOptions) -> Value {
    let ordering = match &options.ordering {
        Ordering::None => json!("none"),
        Ordering::Serial => json!("serial"),
        Ordering::Keyed(pointer) => json!({ "key": pointer }),
    };
    let on_dead = match options.on_dead {
        OnDead::Continue => "continue",
        OnDead::Park => "park",
    };
    let mut own = json!({
        "timeout_ms": u64::try_from(options.timeout.as_millis()).unwrap_or(u64::MAX),
        "concurrency": options.concurrency,
        "cancel_on_disconnect": options.cancel_on_disconnect,
        "ordering": ordering,
        "on_dead": on_dead,
    });
    if let Some(max_deliveries) = options.max_deliveries {
        own["max_deliveries"] = json!(max_deliveries);
    }
    own
}

/// `own` with what the config says laid over it.
fn one_handler(name: &str, given: &Value, mut own: Value, issues: &mut Vec<Issue>) -> Result<Value, ()> {
    let at = format!("handlers.{name}");
    let is_command = given.get("command").is_some();
    let mut also = vec!["ordering"];
    if is_command {
        also.extend(["command", "env", "limits"]);
        also.extend(COMMAND_KEYS.iter().map(|key| key.path));
    }
    let before = issues.len();
    let checked = flat(given, &at, HANDLER_KEYS, &also, issues);
    for (key, value) in given.as_object().into_iter().flatten() {
        if let Some(good) = checked.get(key).filter(|_| !value.is_null()) {
            own[key] = good.clone();
        }
    }
    if let Some(ordering) = given.get("ordering") {
        own["ordering"] = ordering.clone();
        let pointer = ordering.as_object().filter(|map| map.len() == 1).and_then(|map| map.get("key"));
        let pointer =
            pointer.and_then(Value::as_str).is_some_and(|text| text.is_empty() || text.starts_with('/'));
        if !pointer && !matches!(ordering.as_str(), Some("none" | "serial")) {
            let expected = r#""none", "serial" or {"key":"/json/pointer"}"#;
            issues.push(Issue::new(&format!("{at}.ordering"), "is not allowed", &shown(ordering), expected));
        }
    }
    if is_command {
        command(given, &at, &mut own, issues);
    }
    if issues.len() == before { Ok(own) } else { Err(()) }
}

fn command(given: &Value, at: &str, own: &mut Value, issues: &mut Vec<Issue>) {
    let program = given["command"].as_array().filter(|list| {
        !list.is_empty()
            && list[0] != ""
            && list.iter().all(|word| word.as_str().is_some_and(|w| !w.contains('\0')))
    });
    if program.is_none() {
        let expected = "a list of strings: the program and its arguments";
        issues.push(Issue::new(
            &format!("{at}.command"),
            "is not allowed",
            &shown(&given["command"]),
            expected,
        ));
    }
    own["command"] = given["command"].clone();
    if let Some(env) = given.get("env") {
        let texts = env.as_object().is_some_and(|map| map.values().all(Value::is_string));
        if !texts {
            issues.push(Issue::new(
                &format!("{at}.env"),
                "is not allowed",
                "another kind",
                "an object of strings",
            ));
        }
        own["env"] = env.clone();
    }
    if let Some(limits) = given.get("limits") {
        own["limits"] = flat(limits, &format!("{at}.limits"), COMMAND_LIMIT_KEYS, &[], issues);
    }
    for key in COMMAND_KEYS {
        let value = given.get(key.path).filter(|value| !value.is_null());
        if let Some(value) = checked(key, &format!("{at}.{}", key.path), value, issues) {
            own[key.path] = value;
        }
    }
}

/// The rules between keys. Each looks at the normalised value, in which every key is of its type.
fn cross_rules(out: &Value, issues: &mut Vec<Issue>) {
    let platform = &out["runtime"]["platform"];
    let backend = |port: &str| platform[port]["backend"].as_str().unwrap_or_default();
    let auth = &platform["execution_ipc"]["auth"];
    let at = "runtime.platform.execution_ipc.auth";
    let mut rule = |broken: bool, path: &str, what: &str, got: &Value, expected: &str| {
        if broken {
            issues.push(Issue::new(path, what, &shown(got), expected));
        }
    };
    let redis = ["queue", "kv", "reply"].into_iter().any(|port| backend(port) == "redis");
    let is_static = auth["secret_mode"] == "static";
    rule(
        redis && !is_static,
        &format!("{at}.secret_mode"),
        "must be static with a Redis backend, where jobs are signed",
        &auth["secret_mode"],
        "\"static\": run `cofferdam keygen --output FILE`, then set secret_file to FILE",
    );
    let file = auth.get("secret_file").unwrap_or(&Value::Null);
    rule(
        is_static && file.is_null(),
        &format!("{at}.secret_file"),
        "is missing",
        file,
        "a file, as secret_mode is static",
    );
    rule(
        !is_static && !file.is_null(),
        &format!("{at}.secret_mode"),
        "contradicts secret_file",
        &auth["secret_mode"],
        "\"static\", or no secret_file",
    );
    rule(
        backend("queue") != backend("reply"),
        "runtime.platform.reply.backend",
        "must be that of the queue",
        &platform["reply"]["backend"],
        backend("queue"),
    );
    rule(
        backend("queue") == "redis" && backend("kv") != "redis",
        "runtime.platform.kv.backend",
        "must be redis when the queue is",
        &platform["kv"]["backend"],
        "redis",
    );
    let retry = &platform["queue"]["retry"];
    rule(
        retry["base_ms"].as_u64() > retry["max_ms"].as_u64(),
        "runtime.platform.queue.retry.base_ms",
        "is more than max_ms",
        &retry["base_ms"],
        "at most max_ms",
    );
    let web = &out["web"];
    let bind = web["bind"].as_str().and_then(|text| text.parse::<std::net::SocketAddr>().ok());
    let open = bind.is_some_and(|address| !address.ip().is_loopback());
    rule(
        open && web["auth"]["mode"] != "bearer",
        "web.bind",
        "is beyond loopback without authentication",
        &web["bind"],
        "a loopback address, or web.auth.mode=bearer",
    );
    let token_file = web["auth"].get("token_file").unwrap_or(&Value::Null);
    rule(
        web["auth"]["mode"] == "bearer" && token_file.is_null(),
        "web.auth.token_file",
        "is missing",
        token_file,
        "a file, as web.auth.mode is bearer",
    );
    let (body, batch) = (&web["max_body_bytes"], &web["max_batch_bytes"]);
    let payload = &platform["execution_ipc"]["max_payload_bytes"];
    rule(
        body.as_u64() > payload.as_u64(),
        "web.max_body_bytes",
        "is more than the channel carries",
        body,
        &format!("at most runtime.platform.execution_ipc.max_payload_bytes, {payload}"),
    );
    rule(
        batch.as_u64() < body.as_u64(),
        "web.max_batch_bytes",
        "is less than one body",
        batch,
        &format!("at least web.max_body_bytes, {body}"),
    );
    group_rules(out, issues);
}

fn group_rules(out: &Value, issues: &mut Vec<Issue>) {
    let platform = &out["runtime"]["platform"];
    let groups = platform["process_groups"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names = |group: &Value| -> Vec<String> {
        group["handlers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|n| n.as_str().map(str::to_owned))
            .collect()
    };
    for (index, group) in groups.iter().enumerate() {
        let at = format!("runtime.platform.process_groups.{index}");
        if platform["bootstrap"]["mode"] == "inline" && group["processes"].as_u64() > Some(1) {
            let got = shown(&group["processes"]);
            issues.push(Issue::new(&format!("{at}.processes"), "inline runs one process", &got, "1"));
        }
        for name in names(group) {
            if name != "*" && out["handlers"].get(&name).is_none() {
                issues.push(Issue::new(
                    &format!("{at}.handlers"),
                    "names no handler",
                    &name,
                    "a known handler or \"*\"",
                ));
            }
        }
    }
    for handler in out["handlers"].as_object().into_iter().flat_map(|map| map.keys()) {
        let count = groups
            .iter()
            .filter(|group| names(group).iter().any(|name| name == "*" || name == handler))
            .count();
        if count != 1 {
            let path = format!("handlers.{handler}");
            issues.push(Issue::new(
                &path,
                "must be in exactly one process group",
                &format!("{count} groups"),
                "1",
            ));
        }
    }
}

/// What is valid but not built yet: each refuses to start, never starts without it.
#[must_use]
pub fn unbuilt(config: &Config, value: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let platform = &config.runtime.platform;
    for (path, backend) in
        [("queue", &platform.queue.backend), ("kv", &platform.kv.backend), ("reply", &platform.reply.backend)]
    {
        if backend == "redis" {
            out.push(format!("runtime.platform.{path}.backend: redis is not built yet; use memory"));
        }
    }
    if config.web.auth.mode == "bearer" {
        out.push("web.auth.mode: bearer is not built yet; use none, on a loopback address".into());
    }
    for (name, options) in value["handlers"].as_object().into_iter().flatten() {
        if options.get("command").is_some() {
            out.push(format!("handlers.{name}.command: programs as handlers are not built yet"));
        }
    }
    for group in &platform.process_groups {
        if platform.bootstrap.mode == "inline" && (group.max_jobs > 0 || group.max_rss_mb > 0) {
            let name = &group.name;
            out.push(format!(
                "process group {name}: inline, no process can be replaced; use 0 for max_jobs, max_rss_mb"
            ));
        }
    }
    out
}
