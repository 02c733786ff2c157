//! `facts`: what this binary is, listens on, reads, writes and is bounded by, for an auditor who has its configuration.
//!
//! In scope: what our own code does, in any of a service's processes. Not in scope: what handlers and programs do, and whether
//! the configuration works, which `check` says. Nothing is started or opened here, and no secret is read.

use std::path::Path;

use serde_json::{Value, json};

use crate::config::{self, Config, Loaded};
use crate::execution::Registry;
use crate::limits as fixed;
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
            section("listeners", &["name", "address", "processes", "about"], listeners(&loaded.config)),
            section("connections", &["name", "address", "processes", "about"], connections(&loaded.config)),
            section("files", &["path", "access", "named_by", "about"], files(loaded)),
            section("environment", &["name", "about"], environment()),
            section("signals", &["name", "about"], table("signals")),
            section("limits", &["name", "value", "unit", "about"], limits()),
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
        Some(text) if !text.contains(char::is_control) => text.to_owned(),
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

fn is_inline(config: &Config) -> bool {
    config.runtime.platform.bootstrap.mode == "inline"
}

fn uses_redis(config: &Config) -> bool {
    !config::profile(config).ends_with("-memory")
}

fn channel(config: &Config) -> String {
    let ipc = &config.runtime.platform.execution_ipc;
    let is_v6 = ipc.bind_host.contains(':');
    let host = if is_v6 { format!("[{}]", ipc.bind_host) } else { ipc.bind_host.clone() };
    format!("{host}:{}", ipc.bind_port)
}

fn pages() -> String {
    let place = PrivateDir::likely_place().unwrap_or_default();
    place.join(format!("{PREFIX}*/web-*.sock")).display().to_string()
}

fn listeners(config: &Config) -> Vec<Row> {
    let public = "HTTP; port 0 is any free one. A listening socket as standard input takes its place; \
                  `executor` has 127.0.0.1:0 unless web.bind is set. With --handover the supervisor listens at \
                  the abstract socket @cofferdam-handover-UID-ADDRESS, too";
    let mut rows = vec![
        row!["http", config.web.bind, "supervisor web", public],
        row!["pages", pages(), "web", "a Unix socket in the private directory, for the gate of this process"],
    ];
    let about = "signed frames of executors, loopback alone; port 0 is any free one. A batch has it, too";
    rows.extend((!is_inline(config)).then(|| row!["channel", channel(config), "web", about]));
    rows
}

fn connections(config: &Config) -> Vec<Row> {
    let redis = &config.runtime.platform.redis;
    let mut rows = vec![row!["pages", pages(), "web", "its own private socket"]];
    rows.extend(
        (!is_inline(config)).then(|| row!["channel", channel(config), "executor", "its web process"]),
    );
    if uses_redis(config) {
        let about = "the backend; a host's name is resolved by the C library, as resolv.conf(5) says";
        rows.push(row!["redis", redis.url, "supervisor web check", about]);
    }
    rows.push(row![
        "systemd",
        "$NOTIFY_SOCKET",
        "supervisor",
        "sd_notify(3), a Unix datagram; none: nothing"
    ]);
    let about = "with --handover, once: the process that serves web.bind";
    rows.push(row!["handover", "@cofferdam-handover-UID-ADDRESS", "supervisor", about]);
    rows.push(row!["health", config.web.bind, "health", "or --url: asks a running service"]);
    let about = "or --url; none: http://127.0.0.1:8080. The C library resolves a host's name";
    rows.push(row!["console", "$COFFERDAM_URL", "jobs lanes handlers top", about]);
    rows
}

fn files(loaded: &Loaded) -> Vec<Row> {
    let (config, platform) = (&loaded.config, &loaded.config.runtime.platform);
    let mut rows = Vec::new();
    let shown = |path: &Path| std::path::absolute(path).unwrap_or(path.into()).display().to_string();
    let mut configured = |path: &Path, access: &str, named_by: &str, about: &str| {
        rows.push(row![shown(path), access, named_by, about]);
    };
    if let Some(file) = &loaded.file {
        configured(file, "read", "--config", "the configuration");
    }
    let (auth, bearer) = (&config.web.auth, config.web.auth.mode == "bearer");
    for (file, named_by, about) in [
        (
            &platform.execution_ipc.auth.secret_file,
            "runtime.platform.execution_ipc.auth.secret_file",
            "the root secret",
        ),
        (
            &auth.token_file.clone().filter(|_| bearer),
            "web.auth.token_file",
            "hashes of tokens; again on SIGHUP",
        ),
        (
            &platform.redis.password_file.clone().filter(|_| uses_redis(config)),
            "runtime.platform.redis.password_file",
            "the password of Redis",
        ),
    ] {
        file.iter().for_each(|file| configured(Path::new(file), "read", named_by, about));
    }
    if let Some(file) = &config.observability.traces.file {
        configured(Path::new(file), "append", "observability.traces.file", "spans; web and batch");
    }
    if let Some(journal) = &platform.queue.journal {
        let (dir, named_by) = (Path::new(journal.dir()), "runtime.platform.queue.journal.dir");
        let dir = std::path::absolute(dir).unwrap_or(dir.into());
        configured(&dir.join(""), "read write", named_by, "the journal, its lock and its key");
        configured(dir.parent().unwrap_or(&dir), "list", named_by, "synced once the directory is made");
    }
    for (name, program) in config.handlers.iter().filter_map(|(name, of)| Some((name, of.program.as_ref()?)))
    {
        let found = program_vet::locate(program).unwrap_or_else(|_| program.command[0].clone().into());
        let named_by = format!("handlers.{name}.command");
        configured(
            &found,
            "execute",
            &named_by,
            "a handler; its first line is read, its interpreter looked at",
        );
        if let Some(dir) = &program.dir {
            configured(Path::new(dir), "enter", &format!("handlers.{name}.dir"), "its working directory");
        }
    }
    for place in PrivateDir::places() {
        configured(
            &place,
            "list",
            "built in",
            "place of the private directory: the first that can be written",
        );
        let own = place.join(format!("{PREFIX}*")).join("");
        configured(&own, "read write", "built in", "the private directory; leftovers are removed");
    }
    rows.extend(table("files"));
    let has_user = platform.process_groups.iter().any(|group| group.user.is_some())
        || config
            .handlers
            .values()
            .any(|of| of.program.as_ref().is_some_and(|program| program.user.is_some()));
    rows.extend(
        has_user.then(|| row!["/etc/passwd", "read", "user", "users and their groups; only as root"]),
    );
    rows.extend(if uses_redis(config) { table("files of the resolver") } else { Vec::new() });
    let is_static = cfg!(target_feature = "crt-static");
    rows.extend(if is_static { Vec::new() } else { table("files of a dynamic build") });
    rows
}

fn environment() -> Vec<Row> {
    let mut rows = table("environment");
    let off =
        || row!["COFFERDAM_DANGEROUS_OFF", "checks that are switched off: never in a build that serves"];
    rows.extend(cfg!(feature = "dangerous-negative-controls").then(off));
    rows
}

/// The rows that are the same in every build and with every configuration.
fn table(name: &str) -> Vec<Row> {
    let mut sections = include_str!("facts.txt").trim_start_matches("== ").split("\n== ");
    let lines =
        sections.find_map(|section| section.strip_prefix(name)?.strip_prefix('\n')).unwrap_or_default();
    lines.lines().map(|line| line.split(" | ").map(Value::from).collect()).collect()
}

/// Those of the fixed limits that callers, handlers and operators meet.
fn limits() -> Vec<Row> {
    macro_rules! limit {
        ($name:ident, $unit:literal, $about:literal) => {
            row![stringify!($name).to_ascii_lowercase(), fixed::$name, $unit, $about]
        };
    }
    vec![
        row!["delay_max", fixed::DELAY_MAX.as_secs(), "seconds", "the longest delay of a job"],
        limit!(QUEUED_BYTES, "bytes", "payloads of queued jobs of callers; of follow-ups as much again"),
        limit!(BODY_BYTES, "bytes", "request bodies that are being read, over all connections"),
        limit!(UNREAD_BYTES, "bytes", "answers that were not read yet, over all connections"),
        limit!(TARGET_BYTES, "bytes", "a request's target"),
        limit!(AUTHORIZATION_BYTES, "bytes", "the value of Authorization"),
        limit!(UNAUTHORIZED_A_SECOND, "count", "requests without a valid token of one address in a second"),
        limit!(ORDERING_KEY_BYTES, "bytes", "an ordering key"),
        limit!(IDEMPOTENCY_KEY_BYTES, "bytes", "an idempotency key"),
        limit!(MEDIA_TYPE_BYTES, "bytes", "a media type"),
        limit!(BATCH_LINES, "count", "lines of one /v1/batch in flight"),
        limit!(LIST_RECORDS, "count", "records of one list"),
        limit!(LISTENERS, "count", "listeners to /v1/events at once"),
        limit!(MAP_NAME_BYTES, "bytes", "a name in a state or context"),
        limit!(CONTEXT_BYTES, "bytes", "the context of a trace"),
        limit!(FOLLOW_UPS, "count", "follow-up jobs of one outcome"),
        limit!(FOLLOW_UPS_BYTES, "bytes", "their payloads"),
        limit!(ERROR_DETAIL_BYTES, "bytes", "a handler's words about an error; the rest is cut off"),
        limit!(WORDS_BYTES, "bytes", "of a program's standard error, the last"),
        limit!(SECRET_FILE_BYTES, "bytes", "a secret or password file"),
        limit!(TOKEN_FILE_BYTES, "bytes", "a token file"),
        limit!(LOG_LINES, "count", "log lines that are not written yet; beyond it they are lost and counted"),
        limit!(LISTEN_BACKLOG, "count", "connections that wait to be accepted"),
    ]
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
