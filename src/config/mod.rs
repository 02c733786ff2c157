//! The configuration contract: read from every source, checked as a whole, then typed.
//!
//! In scope: the schema, merging sources with their origins, validation that reports everything in one run,
//! the normalised form, redaction. Not in scope: acting on any of it. Files are read in [`sources`] and
//! [`secret`] alone; the rest is pure.

mod issue;
mod key;
mod program;
mod reference;
mod schema;
pub mod secret;
pub mod sources;
pub mod tokens;
mod validate;

pub use issue::{Issue, Origin};
pub use program::{HandlerConfig, Limits, Program, ProgramMode};
pub use reference::reference;
pub use schema::{
    Config, Ipc, Journal, Kv, Lifecycle, LogFormat, Observability, Platform, ProcessGroup, Queue, Redis,
    Reply, Restart, Retain, SinkMode, Web, WebAuth, WebLimits,
};
pub use sources::{Loaded, Source, load};
pub use validate::{NO_REDIS, unbuilt};

use std::collections::BTreeMap;

use serde_json::{Value, json};

impl Default for Config {
    /// What holds where nothing is said.
    fn default() -> Config {
        let defaults = validate::normalise(&json!({}), &BTreeMap::new(), &mut Vec::new());
        serde_json::from_value(defaults).expect("each default has its key's type")
    }
}

impl Platform {
    /// The process groups, by index, that run this handler: those that name it, else those with `*`.
    pub fn groups_of(&self, handler: &str) -> Vec<usize> {
        let that_say = |word: &str| -> Vec<usize> {
            let groups = self.process_groups.iter().enumerate();
            groups
                .filter(|(_, group)| group.handlers.iter().any(|name| name == word))
                .map(|(at, _)| at)
                .collect()
        };
        let named = that_say(handler);
        if named.is_empty() { that_say("*") } else { named }
    }
}

impl Lifecycle {
    /// How long a drain lets jobs finish.
    pub fn patience_ms(&self) -> u64 {
        if self.drain_inflight { self.graceful_timeout_ms } else { 0 }
    }
}

/// The profile's name for `check`, logs and `/v1/stats`: how it runs, and where jobs are kept.
pub fn profile(config: &Config) -> String {
    let platform = &config.runtime.platform;
    let run = if platform.bootstrap.mode == "inline" { "inline" } else { "supervised" };
    let kept = match (platform.queue.backend.as_str(), platform.kv.backend.as_str()) {
        ("memory", "memory") => "memory",
        ("redis", _) => "redis",
        _ => "mixed",
    };
    format!("{run}-{kept}")
}

/// The normalised config as `check --json` prints it: every default filled in, secrets redacted, the profile added.
pub fn normalised(loaded: &Loaded) -> Value {
    let mut value = loaded.value.clone();
    if let Some(handlers) = value.get_mut("handlers").and_then(Value::as_object_mut) {
        // A program's environment is the one place of the file where people put secrets.
        for variables in handlers.values_mut().filter_map(|h| h.get_mut("env")?.as_object_mut()) {
            variables.values_mut().for_each(|value| *value = json!("<redacted>"));
        }
    }
    value["profile"] = json!(profile(&loaded.config));
    value
}

/// Values with their paths, and the kind of source that each is from.
type Values = Vec<(String, Value, &'static str)>;

/// Every value of the normalised config.
pub fn values(loaded: &Loaded) -> Values {
    let (mut value, mut found) = (normalised(loaded), Vec::new());
    value.as_object_mut().map(|config| config.remove("profile"));
    walk(loaded, "", &value, Some(&loaded.given), &mut found);
    found
}

fn walk(loaded: &Loaded, at: &str, value: &Value, given: Option<&Value>, found: &mut Values) {
    let members: Vec<(String, &Value)> = match value {
        Value::Object(map) if !map.is_empty() => map.iter().map(|(name, one)| (name.clone(), one)).collect(),
        Value::Array(list) if list.iter().any(Value::is_object) => {
            list.iter().enumerate().map(|(place, one)| (place.to_string(), one)).collect()
        }
        _ => {
            // What a source says that is the default has no origin; what it does not say inside a list has that of the list.
            let origin =
                given.filter(|given| !given.is_null()).and_then(|_| sources::origin_of(at, &loaded.origins));
            let kind = match origin {
                None => "default",
                Some(Origin::File) => "file",
                Some(Origin::Environment(_)) => "environment",
                Some(Origin::CommandLine) => "--set",
            };
            return found.push((at.to_owned(), value.clone(), kind));
        }
    };
    for (name, one) in members {
        let given =
            given.and_then(|given| given.get(&*name).or_else(|| given.get(name.parse::<usize>().ok()?)));
        walk(loaded, &issue::inside(at, &name), one, given, found);
    }
}

/// `check` for people: the profile, what it promises, and where each value that is not a default came from.
pub fn summary(loaded: &Loaded) -> String {
    let (config, value) = (&loaded.config, normalised(loaded));
    let profile = profile(config);
    let promise = match profile.rsplit('-').next() {
        Some("memory") => "jobs and state survive executors; they go with the web process",
        Some("mixed") => "weaker promise: state changes are kept first, the terminal status after them",
        _ => "jobs and state are as durable as Redis is set up",
    };
    let journal = config.runtime.platform.queue.journal.as_ref();
    let promise = journal.map_or_else(|| promise.to_owned(), Journal::promise);
    let mut lines = vec![format!("profile {profile}, listening on {}", config.web.bind), promise];
    for group in &config.runtime.platform.process_groups {
        let ProcessGroup { name, processes, workers, handlers, .. } = group;
        let handlers = handlers.join(" ");
        lines.push(format!("  group {name}: {processes} x {workers} workers, handlers {handlers}"));
    }
    for (path, origin) in &loaded.origins {
        let shown = value.pointer(&format!("/{}", path.replace('.', "/"))).map(Value::to_string);
        lines.push(format!("  {path} = {} (from {origin})", shown.unwrap_or_default()));
    }
    lines.join("\n") + "\n"
}
