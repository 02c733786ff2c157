//! `facts`: what this binary is, listens on, reads, writes and is bounded by, for an auditor who has its configuration.
//!
//! In scope: what our own code does, in any of a service's processes. Not in scope: what handlers and programs do, and whether
//! the configuration works, which `check` says. Nothing is started or opened here, and no secret is read.

use std::path::Path;

use serde_json::{Value, json};

use crate::config::{self, Config, Loaded};
use crate::execution::Registry;
use crate::limits as fixed;
use crate::observe::is_hidden;
use crate::process::private_dir::{PREFIX, PrivateDir};
use crate::process::program_vet;

/// All that is told, in the order in which people read it.
pub struct Facts(Vec<Section>);

struct Section {
    name: &'static str,
    /// The names of a row's cells; where there are none, a row is a name and its value.
    columns: &'static [&'static str],
    rows: Vec<Row>,
}

type Row = Vec<Value>;

macro_rules! row {
    ($($cell:expr),*) => { vec![$(json!($cell)),*] };
}

impl Facts {
    /// Of a binary by this name with these handlers, and a configuration that passed.
    pub fn of(name: &str, version: &str, registry: &Registry, loaded: &Loaded) -> Facts {
        let section = |name, columns, rows| Section { name, columns, rows };
        Facts(vec![
            section("binary", &[], binary(name, version, &loaded.config)),
            section("handlers", &["name", "kind", "groups"], handlers(registry, &loaded.config)),
            section("listeners", &["name", "address", "processes", "about"], table("listeners", loaded)),
            section("connections", &["name", "address", "processes", "about"], table("connections", loaded)),
            section("files", &["path", "access", "named_by", "about"], files(loaded)),
            section("environment", &["name", "about"], environment(loaded)),
            section("signals", &["name", "about"], table("signals", loaded)),
            section("limits", &["name", "value", "unit", "about"], table("limits", loaded)),
            section("configuration", &["path", "value", "unit", "origin"], configuration(loaded)),
            section("crates", &["name", "version", "feature", "used_at"], crates()),
        ])
    }

    /// For scripts: an object of sections, each a list of objects.
    pub fn json(&self) -> Value {
        let sections = self.0.iter().map(|Section { name, columns, rows }| {
            let object = |row: &Row| -> Value {
                columns.iter().zip(row).map(|(name, cell)| (*name, cell.clone())).collect()
            };
            let pair = |row: &Row| (row[0].as_str().unwrap_or_default().to_owned(), row[1].clone());
            let is_map = columns.is_empty();
            let value: Value =
                if is_map { rows.iter().map(pair).collect() } else { rows.iter().map(object).collect() };
            (*name, value)
        });
        sections.collect()
    }

    /// For people: a title and a line a row, empty cells left out.
    pub fn text(&self) -> String {
        const WIDEST: usize = 44;
        let mut out = String::new();
        for Section { name, rows, .. } in &self.0 {
            let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(plain).collect()).collect();
            let width =
                rows.iter().map(|row| row[0].len()).filter(|width| *width <= WIDEST).max().unwrap_or(0);
            out += &format!("{}{name}\n", if out.is_empty() { "" } else { "\n" });
            for row in &rows {
                let rest: Vec<&str> =
                    row[1..].iter().map(String::as_str).filter(|cell| !cell.is_empty()).collect();
                out += &format!("  {:width$}  {}\n", row[0], rest.join("  "));
            }
        }
        out
    }
}

/// A cell as people read it; nothing in it does more to a terminal.
fn plain(cell: &Value) -> String {
    match cell.as_str() {
        Some(text) if !text.contains(is_hidden) => text.to_owned(),
        Some(_) | None => cell.to_string(),
    }
}

fn binary(name: &str, version: &str, config: &Config) -> Vec<Row> {
    let features = [
        ("redis", cfg!(feature = "redis")),
        ("dangerous-negative-controls", cfg!(feature = "dangerous-negative-controls")),
    ];
    let features: Vec<&str> =
        features.into_iter().filter(|(_, is_on)| *is_on).map(|(name, _)| name).collect();
    let library = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
    vec![
        row!["name", name],
        row!["version", version],
        row!["library", library],
        row!["crates_of", format!("the Cargo.lock of {library}; an embedder's may have others")],
        row!["build", if cfg!(debug_assertions) { "debug" } else { "release" }],
        row!["linking", if cfg!(target_feature = "crt-static") { "static" } else { "dynamic" }],
        row!["features", features],
        row!["profile", config::profile(config)],
        row!["cannot_start", config::unbuilt(config)],
    ]
}

/// Of this binary, and programs.
fn handlers(registry: &Registry, config: &Config) -> Vec<Row> {
    let platform = &config.runtime.platform;
    let all = config.handlers.iter().map(|(name, handler)| {
        let kind = match &handler.program {
            Some(_) => "program",
            None if registry.contains_key(name) => "function",
            None => "none",
        };
        let groups = platform.groups_of(name).into_iter().map(|group| &*platform.process_groups[group].name);
        row![name, kind, groups.collect::<Vec<_>>()]
    });
    all.collect()
}

fn environment(loaded: &Loaded) -> Vec<Row> {
    let mut rows = table("environment", loaded);
    // No other build has the name in it.
    let off =
        || row!["COFFERDAM_DANGEROUS_OFF", "checks that are switched off: never in a build that serves"];
    rows.extend(cfg!(feature = "dangerous-negative-controls").then(off));
    rows
}

fn shown(path: &Path) -> String {
    std::path::absolute(path).unwrap_or(path.into()).display().to_string()
}

fn files(loaded: &Loaded) -> Vec<Row> {
    let config = &loaded.config;
    let mut rows = table("configured files", loaded);
    let mut named = |path: &Path, access: &str, by: &str, about: &str| {
        rows.push(row![shown(path), access, by, about]);
    };
    if let Some(journal) = &config.runtime.platform.queue.journal {
        let (dir, by) = (Path::new(journal.dir()), "runtime.platform.queue.journal.dir");
        let dir = std::path::absolute(dir).unwrap_or(dir.into());
        named(&dir.join(""), "read write", by, "the journal, its lock and its key");
        named(dir.parent().unwrap_or(&dir), "list", by, "synced once the directory is made");
    }
    for (name, program) in config.handlers.iter().filter_map(|(name, of)| Some((name, of.program.as_ref()?)))
    {
        let found = program_vet::locate(program).unwrap_or_else(|_| program.command[0].clone().into());
        let about = "a handler; its first line is read, its interpreter looked at";
        named(&found, "execute", &format!("handlers.{name}.command"), about);
        if let Some(dir) = &program.dir {
            named(Path::new(dir), "enter", &format!("handlers.{name}.dir"), "its working directory");
        }
    }
    for place in PrivateDir::places() {
        let about = "place of the private directory: the first that can be written";
        named(&place, "list", "built in", about);
        let own = place.join(format!("{PREFIX}*")).join("");
        named(&own, "read write", "built in", "the private directory; leftovers are removed");
    }
    rows.extend(table("files", loaded));
    rows
}

/// The rows of a section of facts.txt that are true here: one behind a `[word]` only where that [`holds`]. A cell `{name}`
/// stands for a [`value`]; where there is none, there is no row.
fn table(name: &str, loaded: &Loaded) -> Vec<Row> {
    let mut sections = include_str!("facts.txt").trim_start_matches("== ").split("\n== ");
    let lines =
        sections.find_map(|section| section.strip_prefix(name)?.strip_prefix('\n')).unwrap_or_default();
    let cell = |cell: &str| match cell.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
        Some(name) => Some(value(name, loaded)).filter(|value| !value.is_null()),
        None => Some(cell.into()),
    };
    let row = |line: &str| {
        let marked = line.strip_prefix('[').and_then(|line| line.split_once("] "));
        let (only, line) = marked.unwrap_or(("", line));
        holds(only, &loaded.config).then(|| line.split(" | ").map(cell).collect())?
    };
    lines.lines().filter_map(row).collect()
}

fn holds(only: &str, config: &Config) -> bool {
    let has_user = || {
        let mut programs = config.handlers.values().filter_map(|of| of.program.as_ref());
        config.runtime.platform.process_groups.iter().any(|group| group.user.is_some())
            || programs.any(|program| program.user.is_some())
    };
    match only {
        "processes" => config.runtime.platform.bootstrap.mode != "inline",
        "redis" => !config::profile(config).ends_with("-memory"),
        "bearer" => config.web.auth.mode == "bearer",
        "users" => has_user(),
        "dynamic" => !cfg!(target_feature = "crt-static"),
        _ => true,
    }
}

/// A place, a fixed limit, or what the configuration has at a path; behind `path` as a file's.
fn value(name: &str, loaded: &Loaded) -> Value {
    macro_rules! limits {
        ($($name:ident)*) => { [$((stringify!($name), json!(fixed::$name))),*] };
    }
    if let Some(name) = name.strip_prefix("path ") {
        return value(name, loaded).as_str().map(|path| shown(Path::new(path))).into();
    }
    let ipc = &loaded.config.runtime.platform.execution_ipc;
    match name {
        "config" => loaded.file.as_ref().map(|file| file.display().to_string()).into(),
        "pages" => {
            let place = PrivateDir::likely_place().unwrap_or_default();
            place.join(format!("{PREFIX}*/web-*.sock")).display().to_string().into()
        }
        "channel" if ipc.bind_host.contains(':') => format!("[{}]:{}", ipc.bind_host, ipc.bind_port).into(),
        "channel" => format!("{}:{}", ipc.bind_host, ipc.bind_port).into(),
        "DELAY_MAX" => fixed::DELAY_MAX.as_secs().into(),
        _ => {
            // Those that callers, handlers and operators meet.
            let limits = limits! {
                QUEUED_BYTES BODY_BYTES UNREAD_BYTES TARGET_BYTES AUTHORIZATION_BYTES UNAUTHORIZED_A_SECOND
                ORDERING_KEY_BYTES IDEMPOTENCY_KEY_BYTES MEDIA_TYPE_BYTES BATCH_LINES LIST_RECORDS LISTENERS
                MAP_NAME_BYTES CONTEXT_BYTES FOLLOW_UPS FOLLOW_UPS_BYTES ERROR_DETAIL_BYTES WORDS_BYTES
                SECRET_FILE_BYTES TOKEN_FILE_BYTES LOG_LINES LISTEN_BACKLOG
            };
            let limit = limits.into_iter().find(|(limit, _)| *limit == name).map(|(_, value)| value);
            let at = || loaded.value.pointer(&format!("/{}", name.replace('.', "/"))).cloned();
            limit.or_else(at).unwrap_or_default()
        }
    }
}

/// Every value; a number that is a limit has a unit.
fn configuration(loaded: &Loaded) -> Vec<Row> {
    let row = |(path, value, origin): (String, Value, &'static str)| {
        let name = path.rsplit('.').next().unwrap_or_default();
        let unit = match name.rsplit('_').next() {
            _ if !value.is_number() || matches!(name, "version" | "bind_port" | "user") => "",
            Some("ms") => "ms",
            Some("seconds") => "seconds",
            Some("bytes") => "bytes",
            Some("mb") => "MiB",
            _ => "count",
        };
        row![path, value, unit, origin]
    };
    config::values(loaded).into_iter().map(row).collect()
}

/// Of this build.
fn crates() -> Vec<Row> {
    let lines = include_str!("crates.txt").lines().filter(|line| !line.starts_with('#'));
    let row = |line: &str| {
        let mut words = line.split(' ');
        let (name, version, marks) = (words.next()?, words.next()?, words.collect::<Vec<_>>());
        let is_of_redis = marks.contains(&"redis");
        let used_at = if marks.contains(&"build") { "build" } else { "run" };
        let feature = if is_of_redis { "redis" } else { "" };
        (cfg!(feature = "redis") || !is_of_redis).then(|| row![name, version, feature, used_at])
    };
    lines.filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    #[test]
    fn every_value_and_every_mark_of_the_table_is_known() {
        let loaded = config::load(&Source::default(), &Default::default()).expect("defaults pass");
        let (text, keys) = (include_str!("facts.txt"), config::reference());
        let names: Vec<&str> = text.split('{').skip(1).filter_map(|rest| rest.split('}').next()).collect();
        assert!(names.len() > 30, "{names:?}");
        for name in names {
            let path = name.strip_prefix("path ").unwrap_or(name);
            let is_known = path == "config" || !value(path, &loaded).is_null();
            assert!(is_known || keys.contains(&format!("| `{path}` |")), "{name}");
        }
        let marks = text.lines().filter_map(|line| line.strip_prefix('[')?.split_once("] "));
        for (mark, line) in marks {
            let known = ["processes", "redis", "bearer", "users", "dynamic"];
            assert!(known.contains(&mark), "[{mark}] {line}");
        }
    }
}
