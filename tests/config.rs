//! The configuration contract, row by row and rule by rule.
//!
//! It guards names, defaults, ranges and refusals that operators rely on. The table below is written from the
//! document, not from the code: where they differ, one of them is wrong.

#[path = "support/program.rs"]
mod program;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cofferdam::config::secret::{Secret, keygen};
use cofferdam::config::{self, Issue, Loaded, LogFormat, Origin, SinkMode, Source};
use cofferdam::{App, HandlerOptions, OnDead, Ordering};
use program::Folder;
use serde_json::{Value, json};

const PLATFORM: &str = "runtime.platform";

/// One key of the table: its default, values that are allowed beside it, and values that are not.
struct Row {
    path: String,
    /// `null`: there is none.
    default: Value,
    good: Vec<Value>,
    bad: Vec<Value>,
}

/// A whole number from `min` up; `good` lies within.
fn int(path: &str, default: u64, min: i64, good: u64) -> Row {
    let mut bad = vec![json!("7"), json!(true), json!([]), json!({}), json!(min as f64 + 0.5), json!(-1)];
    bad.push(json!(min - 1));
    bad.push(json!(1e30));
    Row { path: path.into(), default: json!(default), good: vec![json!(min), json!(good)], bad }
}

/// The same with an upper end.
fn int_to(path: &str, default: u64, min: i64, max: u64) -> Row {
    let mut row = int(path, default, min, max);
    row.bad.push(json!(max + 1));
    row
}

fn boolean(path: &str, default: bool) -> Row {
    let bad = vec![json!("yes"), json!("true "), json!(0), json!([])];
    Row { path: path.into(), default: json!(default), good: vec![json!(true), json!(false)], bad }
}

/// One of `words`, the first of which is the default.
fn word(path: &str, words: &[&str]) -> Row {
    let other_case = words[0].to_uppercase();
    let bad = vec![json!("other"), json!(""), json!(other_case), json!(1), json!(true), json!([words[0]])];
    Row { path: path.into(), default: json!(words[0]), good: words.iter().map(|w| json!(w)).collect(), bad }
}

fn text(path: &str, default: Option<&str>, good: &[&str], bad: &[&str]) -> Row {
    // Digits and words are texts where they stand behind `--set`: u10_digits….
    let wrong_types = [json!(["a"]), json!({"a": 1}), json!("")];
    Row {
        path: path.into(),
        default: json!(default),
        good: good.iter().map(|text| json!(text)).collect(),
        bad: bad.iter().map(|text| json!(text)).chain(wrong_types).collect(),
    }
}

/// Every key, in the order of the table. Keys that need another one beside them have their good values in the tests of
/// the rules between keys; here they have those that stand alone.
fn table() -> Vec<Row> {
    let mut rows = vec![int_to("version", 1, 1, 1)];
    rows.extend(
        platform_rows().into_iter().map(|row| Row { path: format!("{PLATFORM}.{}", row.path), ..row }),
    );
    rows.extend(
        ipc_rows()
            .into_iter()
            .map(|row| Row { path: format!("{PLATFORM}.execution_ipc.{}", row.path), ..row }),
    );
    rows.extend(web_rows().into_iter().map(|row| Row { path: format!("web.{}", row.path), ..row }));
    rows.push(word("runtime.ordering.sink_mode", &["source_seq", "completion"]));
    rows.push(word("observability.log", &["text", "json"]));
    rows.push(text("observability.traces.file", None, &["/run/traces.jsonl"], &[]));
    rows
}

fn platform_rows() -> Vec<Row> {
    let backend = |path| Row { good: vec![json!("memory")], ..word(path, &["memory", "redis"]) };
    vec![
        Row {
            default: json!("process_supervisor"),
            ..word("bootstrap.mode", &["inline", "process_supervisor"])
        },
        backend("queue.backend"),
        int("queue.capacity", 10_000, 1, 1_000_000),
        int("queue.visibility_timeout_ms", 30_000, 100, 3_600_000),
        int("queue.max_deliveries", 16, 1, 1_000),
        int("queue.retry.base_ms", 1_000, 1, 60_000),
        Row { good: vec![json!(1_000), json!(86_400_000)], ..int("queue.retry.max_ms", 3_600_000, 1, 1) },
        backend("kv.backend"),
        int("kv.context_ttl_seconds", 3_600, 1, 864_000),
        backend("reply.backend"),
        int("reply.timeout_ms", 30_000, 1, 3_600_000),
        int("reply.result_ttl_seconds", 600, 1, 864_000),
        int("reply.awaited_ttl_seconds", 30, 1, 864_000),
        int("reply.failed_ttl_seconds", 604_800, 1, 8_640_000),
        int("reply.idempotency_ttl_seconds", 86_400, 1, 864_000),
        int("reply.idempotency_keys", 200_000, 1, 10_000_000),
        int("reply.retain.records", 10_000, 1, 10_000_000),
        int("reply.retain.bytes", 67_108_864, 1, 8 << 30),
        int("reply.retain.failed_records", 10_000, 1, 10_000_000),
        int("reply.retain.failed_bytes", 67_108_864, 1, 8 << 30),
        int("kv.total_max_bytes", 268_435_456, 1_024, 8 << 30),
        int("kv.lane_state_max_bytes", 67_108_864, 1_024, 8 << 30),
        text(
            "redis.url",
            Some("redis://127.0.0.1:6379/0"),
            &["redis://redis.example:6380/3", "redis+unix:///run/redis.sock", "rediss://redis.example/0"],
            &["http://127.0.0.1", "127.0.0.1:6379", "redis://", "REDIS://h", "redis://a:b@h", "redis://:b@h"],
        ),
        text("redis.username", None, &["web"], &[]),
        text("redis.password_file", None, &["/run/secrets/redis"], &[]),
        text(
            "redis.key_prefix",
            Some("cofferdam"),
            &["a", "a-b_9", &"p".repeat(32)],
            &["A", "a b", "a:b", "a.b", "ä", "a\n", "{a}", &"p".repeat(33)],
        ),
        int("redis.connect_timeout_ms", 2_000, 1, 60_000),
        int("redis.response_timeout_ms", 5_000, 1, 60_000),
        int("lifecycle.ready_timeout_ms", 10_000, 1, 600_000),
        int("lifecycle.graceful_timeout_ms", 10_000, 0, 600_000),
        boolean("lifecycle.drain_inflight", true),
        word("lifecycle.restart.policy", &["on_failure", "never"]),
        int("lifecycle.restart.max_restarts", 5, 0, 1_000),
        int("lifecycle.restart.window_ms", 60_000, 1, 3_600_000),
        int("lifecycle.restart.backoff_ms", 100, 1, 60_000),
        Row {
            path: "process_groups".into(),
            default: json!([{"name": "execution", "processes": 1, "workers": 8, "handlers": ["*"],
                             "max_jobs": 0, "max_rss_mb": 0, "follow_ups": ["*"]}]),
            good: Vec::new(),
            bad: vec![json!([]), json!({}), json!("execution"), json!(1)],
        },
    ]
}

fn ipc_rows() -> Vec<Row> {
    let payload = int_to("max_payload_bytes", 1_048_576, 1_024, 67_108_864);
    vec![
        word("transport", &["tcp_local"]),
        text(
            "bind_host",
            Some("127.0.0.1"),
            &["127.0.0.1", "127.255.255.254", "::1"],
            &["0.0.0.0", "::", "10.0.0.1", "192.168.1.1", "128.0.0.1", "localhost", "127.0.0.1:0", "[::1]"],
        ),
        int_to("bind_port", 0, 0, 65_535),
        // Less than the default needs `web.max_body_bytes` beside it.
        Row { good: vec![json!(1_048_576), json!(67_108_864)], ..payload },
        word("auth.mode", &["hmac"]),
        // `static` needs `secret_file` beside it.
        Row { good: vec![json!("generated")], ..word("auth.secret_mode", &["generated", "static"]) },
        text("auth.secret_file", None, &["/run/secrets/cofferdam"], &[]),
        word("auth.kdf", &["hkdf_sha256"]),
        int_to("auth.ttl_seconds", 30, 1, 3_600),
        int("auth.nonce_cache_size", 4_096, 16, 65_536),
        int("heartbeat_ms", 2_000, 100, 60_000),
    ]
}

fn web_rows() -> Vec<Row> {
    vec![
        text(
            "bind",
            Some("127.0.0.1:8080"),
            &["127.0.0.1:0", "127.0.0.9:65535", "[::1]:80"],
            &[
                "127.0.0.1",
                ":8080",
                "localhost:80",
                "127.0.0.1:65536",
                "127.0.0.1:-1",
                "8080",
                "http://[::1]:1",
            ],
        ),
        int("max_inflight", 4_096, 1, 100_000),
        int("max_body_bytes", 1_048_576, 1, 1_048_576),
        Row { good: vec![json!(1_048_576), json!(1 << 30)], ..int("max_batch_bytes", 16_777_216, 1, 1) },
        Row {
            path: "allowed_hosts".into(),
            default: json!([]),
            good: vec![json!(["jobs.example", "jobs"])],
            bad: vec![
                json!("jobs.example"),
                json!([1]),
                json!([""]),
                json!({"a": 1}),
                json!(true),
                // A request's port is not looked at: one here would be a rule that never holds.
                json!(["jobs.example:8080"]),
                json!(["[::1]:80"]),
            ],
        },
        boolean("behind_tls", false),
        Row {
            path: "trusted_proxies".into(),
            default: json!([]),
            good: vec![json!(["192.0.2.1", "2001:db8::1"])],
            bad: vec![json!("192.0.2.1"), json!(["192.0.2.0/24"]), json!(["proxy"]), json!([1]), json!(true)],
        },
        // `bearer` needs `token_file` beside it.
        Row { good: vec![json!("none")], ..word("auth.mode", &["none", "bearer"]) },
        text("auth.token_file", None, &["/run/secrets/tokens"], &[]),
        boolean("auth.open_metrics", false),
        int("limits.connections", 4_096, 1, 100_000),
        int("limits.connections_per_ip", 256, 1, 100_000),
        int("limits.header_bytes", 16_384, 1, 65_536),
        int("limits.header_timeout_ms", 5_000, 1, 60_000),
        int("limits.body_timeout_ms", 15_000, 1, 600_000),
        int("limits.idle_timeout_ms", 75_000, 1, 600_000),
        int("limits.write_timeout_ms", 30_000, 1, 600_000),
    ]
}

// --- Ways in ---

/// The options of the built-in handlers.
fn built_in() -> BTreeMap<String, HandlerOptions> {
    ["echo", "sleep"].map(|name| (name.to_owned(), HandlerOptions::default())).into()
}

fn load(source: &Source) -> Result<Loaded, Vec<Issue>> {
    config::load(source, &built_in())
}

fn sets<S: ToString>(sets: impl IntoIterator<Item = S>) -> Source {
    Source { sets: sets.into_iter().map(|set| set.to_string()).collect(), ..Source::default() }
}

fn set(path: &str, value: &Value) -> String {
    format!("{path}={value}")
}

/// Loads one config file that holds this.
fn load_file(contents: &str) -> Result<Loaded, Vec<Issue>> {
    let folder = Folder::new();
    load(&Source { file: Some(folder.file("config.json", contents)), ..Source::default() })
}

fn accepted(source: &Source) -> Loaded {
    load(source).unwrap_or_else(|issues| panic!("{source:?} is refused: {issues:?}"))
}

/// The messages of a refusal.
fn refused(source: &Source) -> Vec<String> {
    let issues = load(source).err().unwrap_or_else(|| panic!("{source:?} is not refused"));
    issues.iter().map(ToString::to_string).collect()
}

fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    value.pointer(&format!("/{}", path.replace('.', "/"))).unwrap_or(&Value::Null)
}

/// `PATH: what is wrong (got X; expected Y)`, on one line, nothing empty.
fn is_well_formed(message: &str) -> bool {
    let Some((path, rest)) = message.split_once(": ") else { return false };
    let Some((what, rest)) = rest.split_once(" (got ") else { return false };
    let Some((got, expected)) = rest.split_once("; expected ") else { return false };
    let parts = [path, what, got, expected.strip_suffix(')').unwrap_or_default()];
    !message.contains('\n') && !path.contains(' ') && parts.iter().all(|part| !part.is_empty())
}

/// Fails unless the only thing wrong with these is at this path.
fn assert_refused_at(path: &str, given: &[&str]) {
    let messages = refused(&sets(given));
    assert_eq!(messages.len(), 1, "{given:?}: {messages:#?}");
    assert!(messages[0].starts_with(&format!("{path}: ")), "{given:?}: {messages:?}");
    assert!(is_well_formed(&messages[0]), "{messages:?}");
}

// --- The table ---

#[test]
fn every_key_has_the_default_of_the_table_and_there_are_no_others() {
    // No key of this section has a default.
    let mut expected = json!({"observability": {"traces": {}}});
    for row in table().into_iter().filter(|row| !row.default.is_null()) {
        let mut slot = &mut expected;
        for part in row.path.split('.') {
            slot = &mut slot[part];
        }
        *slot = row.default;
    }
    let loaded = accepted(&Source::default());
    let mut value = loaded.value;
    value.as_object_mut().expect("an object").remove("handlers");
    assert_eq!(value, expected);
    assert!(loaded.origins.is_empty(), "{:?}", loaded.origins);
}

#[test]
fn every_key_takes_its_good_values_and_keeps_them() {
    for row in table() {
        for good in &row.good {
            let loaded = accepted(&sets([set(&row.path, good)]));
            assert_eq!(at(&loaded.value, &row.path), good, "{}", row.path);
            if row.path.ends_with("secret_mode") {
                continue; // Its default depends on another key, so saying it is never nothing.
            }
            let expected = (*good != row.default).then_some(&Origin::CommandLine);
            assert_eq!(loaded.origins.get(&row.path), expected, "{} {good}", row.path);
        }
    }
}

#[test]
fn every_key_refuses_its_bad_values_by_its_path() {
    for row in table() {
        for bad in &row.bad {
            let messages = refused(&sets([set(&row.path, bad)]));
            let own = messages.iter().filter(|m| m.starts_with(&format!("{}: ", row.path))).count();
            assert_eq!(own, 1, "{} {bad}: {messages:#?}", row.path);
            assert!(messages.iter().all(|message| is_well_formed(message)), "{messages:#?}");
        }
    }
}

#[test]
fn an_unknown_key_beside_every_known_one_is_refused() {
    for row in table() {
        let beside = format!("{}_", row.path);
        assert_refused_at(&beside, &[&set(&beside, &json!(1))]);
        if row.default.is_array() {
            continue;
        }
        // Nor is there anything inside a plain value.
        let inside = format!("{}.inside", row.path);
        assert_refused_at(&row.path, &[&set(&inside, &json!(1))]);
    }
}

#[test]
fn a_section_that_is_no_object_is_refused_by_its_path() {
    let sections: BTreeSet<String> = table()
        .iter()
        .flat_map(|row| {
            row.path.match_indices('.').map(|(at, _)| row.path[..at].to_owned()).collect::<Vec<_>>()
        })
        .chain(["handlers".into(), "handlers.echo".into()])
        .collect();
    assert!(sections.contains("web.limits"));
    for section in &sections {
        for bad in [json!(5), json!("text"), json!([]), json!(true)] {
            assert_refused_at(section, &[&set(section, &bad)]);
        }
    }
}

#[test]
fn a_key_with_dots_in_its_name_is_an_unknown_key_and_never_a_path() {
    for (file, path) in [
        (r#"{"web.bind":"127.0.0.1:1"}"#, "web.bind"),
        (r#"{"web":{"limits.connections":1}}"#, "web.limits.connections"),
        (r#"{"runtime.platform":{"queue":{"capacity":1}}}"#, "runtime.platform"),
    ] {
        match load_file(file) {
            Ok(loaded) => {
                panic!("{file} is accepted, with {path} = {} for its effect", at(&loaded.value, path));
            }
            Err(issues) => assert_eq!(issues[0].path, path, "{issues:?}"),
        }
    }
}

#[test]
fn no_refusal_of_a_number_claims_that_a_number_within_the_stated_range_was_expected() {
    for row in table().iter().filter(|row| row.default.is_u64()) {
        for power in [32, 41, 63] {
            let number = 1_u64 << power;
            let Err(issues) = load(&sets([set(&row.path, &json!(number))])) else { continue };
            for message in issues.iter().map(ToString::to_string).filter(|m| m.contains("is not allowed")) {
                assert!(!message.contains("at least"), "{number} is at least that: {message}");
            }
        }
    }
}

#[test]
fn the_three_backends_are_memory_or_redis_and_nothing_else() {
    for port in ["queue", "kv", "reply"] {
        let path = format!("{PLATFORM}.{port}.backend");
        for bad in ["postgres", "Memory", "REDIS", "valkey", "redis ", "none", "null ", "in_memory"] {
            assert_refused_at(&path, &[&set(&path, &json!(bad))]);
        }
    }
    let all_redis = accepted(&sets(redis()));
    let all_memory = accepted(&Source::default());
    for port in ["queue", "kv", "reply"] {
        let path = format!("{PLATFORM}.{port}.backend");
        assert_eq!(*at(&all_redis.value, &path), "redis");
        assert_eq!(*at(&all_memory.value, &path), "memory");
    }
}

#[test]
fn the_channels_security_keys_have_no_weaker_choice() {
    for (key, weaker) in [
        ("transport", &["tcp", "udp", "unix", "tls", "none", "tcp_remote"][..]),
        ("bind_host", &["0.0.0.0", "::", "10.1.2.3", "example.com", "::ffff:10.0.0.1", "169.254.0.1"]),
        ("auth.mode", &["none", "off", "plain", "hmac_sha1", "bearer"]),
        ("auth.secret_mode", &["none", "env", "inline", "off"]),
        ("auth.kdf", &["none", "sha256", "pbkdf2", "hkdf"]),
    ] {
        for weak in weaker {
            let path = format!("{PLATFORM}.execution_ipc.{key}");
            assert_refused_at(&path, &[&set(&path, &json!(weak))]);
        }
    }
    for (key, outside) in [
        ("auth.ttl_seconds", &["0", "3601"][..]),
        ("auth.nonce_cache_size", &["0", "15"]),
        ("max_payload_bytes", &["0", "67108865"]),
    ] {
        for value in outside {
            let path = format!("{PLATFORM}.execution_ipc.{key}");
            assert_refused_at(&path, &[&format!("{path}={value}")]);
        }
    }
    // Below the default of `web.max_body_bytes` that rule speaks too, so the lower end has its own line.
    let messages = refused(&sets([format!("{PLATFORM}.execution_ipc.max_payload_bytes=1023")]));
    assert!(messages.iter().any(|message| message.contains("1024")), "{messages:?}");
}

// --- Rules between keys ---

const SECRET_FILE: &str = "runtime.platform.execution_ipc.auth.secret_file=/run/secrets/cofferdam";
const STATIC: &str = "runtime.platform.execution_ipc.auth.secret_mode=static";
const OPEN: &str = "web.bind=0.0.0.0:8080";
const BEARER: &str = "web.auth.mode=bearer";
const GENERATED: &str = "runtime.platform.execution_ipc.auth.secret_mode=generated";
const QUEUE_REDIS: &str = "runtime.platform.queue.backend=redis";
const REPLY_REDIS: &str = "runtime.platform.reply.backend=redis";
const KV_REDIS: &str = "runtime.platform.kv.backend=redis";

fn redis() -> [&'static str; 4] {
    [QUEUE_REDIS, REPLY_REDIS, KV_REDIS, SECRET_FILE]
}

#[test]
fn every_rule_between_keys_allows_one_side_and_refuses_the_other() {
    let secret_mode = "runtime.platform.execution_ipc.auth.secret_mode";
    let secret_file = "runtime.platform.execution_ipc.auth.secret_file";
    let payload = "runtime.platform.execution_ipc.max_payload_bytes";
    let inline = "runtime.platform.bootstrap.mode=inline";
    let two = r#"runtime.platform.process_groups=[{"name":"a","processes":2}]"#;
    let rows: &[(&[&str], Option<&str>)] = &[
        // A secret file makes the mode static; the mode alone does not.
        (&[SECRET_FILE], None),
        (&[SECRET_FILE, STATIC], None),
        (&[STATIC], Some(secret_file)),
        (&[SECRET_FILE, GENERATED], Some(secret_mode)),
        (&[GENERATED], None),
        // Any Redis backend needs a static secret.
        (&redis(), None),
        (&[QUEUE_REDIS, REPLY_REDIS, KV_REDIS], Some(secret_mode)),
        (&[KV_REDIS], Some(secret_mode)),
        (&[KV_REDIS, SECRET_FILE], None),
        // Queue and reply go together.
        (&[QUEUE_REDIS, KV_REDIS, SECRET_FILE], Some("runtime.platform.reply.backend")),
        (&[REPLY_REDIS, KV_REDIS, SECRET_FILE], Some("runtime.platform.reply.backend")),
        (&[REPLY_REDIS, SECRET_FILE], Some("runtime.platform.reply.backend")),
        // A queue in Redis needs its state there.
        (&[QUEUE_REDIS, REPLY_REDIS, SECRET_FILE], Some("runtime.platform.kv.backend")),
        // Beyond loopback callers must say who they are.
        (&[OPEN], Some("web.bind")),
        (&["web.bind=[::]:8080"], Some("web.bind")),
        (&["web.bind=10.0.0.1:8080"], Some("web.bind")),
        (&["web.bind=127.3.2.1:8080"], None),
        (&[OPEN, BEARER, "web.auth.token_file=/t"], Some("web.behind_tls")),
        (&[OPEN, BEARER, "web.auth.token_file=/t", "web.behind_tls=true"], None),
        (&[OPEN, "web.behind_tls=true"], Some("web.bind")),
        (
            &[OPEN, BEARER, "web.auth.token_file=/t", "web.behind_tls=true", "web.auth.open_metrics=true"],
            Some("web.auth.open_metrics"),
        ),
        (&[BEARER, "web.auth.token_file=/t", "web.auth.open_metrics=true"], None),
        (&[BEARER, "web.auth.token_file=/t"], None),
        (&[BEARER], Some("web.auth.token_file")),
        // A body fits the channel and the batch.
        (&["web.max_body_bytes=1048577"], Some("web.max_body_bytes")),
        (&["web.max_body_bytes=1048577", &format!("{payload}=1048577")], None),
        (&[&format!("{payload}=1024")], Some("web.max_body_bytes")),
        (&[&format!("{payload}=1024"), "web.max_body_bytes=1024"], None),
        (&["web.max_batch_bytes=1048575"], Some("web.max_batch_bytes")),
        (&["web.max_batch_bytes=1048576"], None),
        // The first backoff is not beyond the last.
        (&["runtime.platform.queue.retry.base_ms=3600001"], Some("runtime.platform.queue.retry.base_ms")),
        (&["runtime.platform.queue.retry.base_ms=3600000"], None),
        (&[r#"handlers.echo.retry={"base_ms":3,"max_ms":2}"#], Some("handlers.echo.retry.base_ms")),
        (&[r#"handlers.echo.retry={"base_ms":2,"max_ms":2}"#], None),
        // Inline is one process.
        (&[two], None),
        (&[inline, two], Some("runtime.platform.process_groups.0.processes")),
        (&[inline], None),
    ];
    for (given, refused_at) in rows {
        match refused_at {
            None => drop(accepted(&sets(*given))),
            Some(path) => assert_refused_at(path, given),
        }
    }
}

#[test]
fn a_redis_backend_without_a_static_secret_is_told_how_to_get_one() {
    let messages = refused(&sets([QUEUE_REDIS, REPLY_REDIS, KV_REDIS]));
    assert!(messages[0].contains("cofferdam keygen --output FILE"), "{messages:?}");
    assert!(messages[0].contains("secret_file"), "{messages:?}");
}

#[test]
fn a_journal_has_a_directory_and_is_for_the_memory_backends() {
    let path = format!("{PLATFORM}.queue.journal");
    let accepted = accepted(&sets([format!(r#"{path}={{"dir":"/j"}}"#)]));
    let whole = json!({"dir": "/j", "sync": "always", "interval_ms": 100, "segment_mb": 64});
    assert_eq!(*at(&accepted.value, &path), whole);
    assert_refused_at(&format!("{path}.dir"), &[&format!("{path}={{}}")]);
    for (key, bad) in [("sync", "never"), ("interval_ms", "0"), ("segment_mb", "0"), ("segment_mb", "1025")] {
        let dir = format!("{path}.dir=/j");
        assert_refused_at(&format!("{path}.{key}"), &[&dir, &format!("{path}.{key}={bad}")]);
    }
    let dir = format!("{path}.dir=/j");
    assert_refused_at(&path, &[&dir, KV_REDIS, SECRET_FILE]);
    assert_refused_at(&path, &[&[&*dir], &redis()[..]].concat());
    let (summary, text) =
        (config::summary(&accepted), "what was answered survives whatever the disk survives");
    assert!(summary.contains(text) && !summary.contains("they go with the web process"), "{summary}");
}

#[test]
fn process_groups_are_named_once_and_every_handler_is_in_exactly_one() {
    let path = "runtime.platform.process_groups";
    let rows: &[(&str, &[&str])] = &[
        (r#"[{"name":"a"}]"#, &[]),
        (r#"[{"name":"a","handlers":["echo"]},{"name":"b","handlers":["sleep"]}]"#, &[]),
        (r#"[{"name":"a","handlers":["echo","sleep"],"max_jobs":9,"max_rss_mb":9}]"#, &[]),
        (r#"[{"name":"a"},{"name":"a","handlers":[]}]"#, &[".1.name"]),
        (r#"[{}]"#, &[".0.name"]),
        (r#"[{"name":""}]"#, &[".0.name", ".0.name"]),
        (r#"[{"name":"a b"}]"#, &[".0.name", ".0.name"]),
        (r#"[{"name":"a","processes":0}]"#, &[".0.processes"]),
        (r#"[{"name":"a","workers":0}]"#, &[".0.workers"]),
        (r#"[{"name":"a","workers":"8"}]"#, &[".0.workers"]),
        (r#"[{"name":"a","max_jobs":-1}]"#, &[".0.max_jobs"]),
        (r#"[{"name":"a","max_rss_mb":1.5}]"#, &[".0.max_rss_mb"]),
        (r#"[{"name":"a","user":"nobody"}]"#, &[]),
        (r#"[{"name":"a","user":65534}]"#, &[]),
        (r#"[{"name":"a","user":""}]"#, &[".0.user"]),
        (r#"[{"name":"a","user":-1}]"#, &[".0.user"]),
        (r#"[{"name":"a","handlers":"*"}]"#, &[".0.handlers"]),
        (r#"[{"name":"a","threads":8}]"#, &[".0.threads"]),
        (r#"[{"name":"a","handlers":["*","nobody"]}]"#, &[".0.handlers"]),
        (r#"[{"name":"a","follow_ups":["*","echo"]}]"#, &[]),
        (r#"[{"name":"a","follow_ups":["echo","nobody"]}]"#, &[".0.follow_ups"]),
        (r#"[{"name":"a","handlers":["echo"]}]"#, &["handlers.sleep"]),
        (r#"[{"name":"a"},{"name":"b","handlers":["echo"]}]"#, &[]),
        (
            r#"[{"name":"a","handlers":["echo"]},{"name":"b","handlers":["echo"]}]"#,
            &["handlers.echo", "handlers.sleep"],
        ),
        (r#"[{"name":"a"},{"name":"b"}]"#, &["handlers.echo", "handlers.sleep"]),
    ];
    for (groups, expected) in rows {
        let found: Vec<String> = match load(&sets([format!("{path}={groups}")])) {
            Ok(_) => Vec::new(),
            Err(issues) => issues.into_iter().map(|issue| issue.path).collect(),
        };
        let whole =
            |end: &&str| if end.starts_with('.') { format!("{path}{end}") } else { (*end).to_owned() };
        let found: BTreeSet<String> = found.into_iter().collect();
        assert_eq!(found, expected.iter().map(whole).collect(), "{groups}");
    }
}

#[test]
fn a_group_says_what_it_runs() {
    let groups = r#"[{"name":"a","handlers":["echo"],"workers":2},{"name":"b","handlers":["sleep"]}]"#;
    let loaded = accepted(&sets([format!("runtime.platform.process_groups={groups}")]));
    let platform = &loaded.config.runtime.platform;
    let [a, b] = &platform.process_groups[..] else { panic!("two groups") };
    assert_eq!((a.workers, a.processes, b.workers, b.max_jobs), (2, 1, 8, 0));
    assert_eq!(["echo", "sleep"].map(|name| platform.groups_of(name)), [[0], [1]]);
    // What no other group names.
    let groups = r#"[{"name":"a"},{"name":"b","handlers":["sleep"]}]"#;
    let loaded = accepted(&sets([format!("runtime.platform.process_groups={groups}")]));
    assert_eq!(["echo", "sleep"].map(|name| loaded.config.runtime.platform.groups_of(name)), [[0], [1]]);
}

// --- All at once ---

#[test]
fn everything_that_is_wrong_is_reported_in_one_run() {
    let folder = Folder::new();
    let file = folder.file(
        "config.json",
        r#"{"version":2,"web":{"bind":"nowhere","limits":{"connections":0}},"extra":1,
            "handlers":{"echo":{"timeout_ms":0},"nobody":{}}}"#,
    );
    let environment = vec![("COFFERDAM_OBSERVABILITY__LOG".into(), "xml".into())];
    let set_them = ["runtime.platform.queue.capacity=none", "no-equals-sign", "web.max_batch_bytes=1"];
    let source = Source { file: Some(file), environment, ..sets(set_them) };
    let messages = refused(&source);
    for path in [
        "--set",
        "extra",
        "version",
        "web.bind",
        "web.limits.connections",
        "handlers.echo.timeout_ms",
        "handlers.nobody",
        "observability.log",
        "runtime.platform.queue.capacity",
        "web.max_batch_bytes",
    ] {
        let count = messages.iter().filter(|message| message.starts_with(&format!("{path}: "))).count();
        assert_eq!(count, 1, "{path}: {messages:#?}");
    }
    assert_eq!(messages.len(), 10, "{messages:#?}");
    assert!(messages.iter().all(|message| is_well_formed(message)), "{messages:#?}");
}

#[test]
fn a_long_wrong_value_is_cut_in_its_message() {
    let messages = refused(&sets([format!("web.bind={}", "é".repeat(100_000))]));
    assert!(messages[0].len() < 1_000, "{} bytes", messages[0].len());
}

// --- Sources ---

#[test]
fn later_sources_win_and_the_origin_of_each_value_is_known() {
    let folder = Folder::new();
    let file =
        folder.file("config.json", r#"{"web":{"bind":"127.0.0.1:1","max_inflight":1,"max_body_bytes":1}}"#);
    let environment = vec![
        ("COFFERDAM_WEB__BIND".to_owned(), "127.0.0.1:2".to_owned()),
        ("COFFERDAM_WEB__MAX_INFLIGHT".to_owned(), "2".to_owned()),
    ];
    let source = Source { file: Some(file), environment, sets: vec!["web.bind=127.0.0.1:3".into()] };
    let loaded = accepted(&source);
    let web = &loaded.config.web;
    assert_eq!((web.bind.as_str(), web.max_inflight, web.max_body_bytes), ("127.0.0.1:3", 2, 1));
    let origins = BTreeMap::from([
        ("web.bind".to_owned(), Origin::CommandLine),
        ("web.max_body_bytes".to_owned(), Origin::File),
        ("web.max_inflight".to_owned(), Origin::Environment("COFFERDAM_WEB__MAX_INFLIGHT".into())),
    ]);
    assert_eq!(loaded.origins, origins);
    let summary = config::summary(&loaded);
    assert!(summary.contains("web.bind = \"127.0.0.1:3\" (from --set)"), "{summary}");
    assert!(summary.contains("web.max_inflight = 2 (from COFFERDAM_WEB__MAX_INFLIGHT)"), "{summary}");
    assert!(summary.contains("web.max_body_bytes = 1 (from the file)"), "{summary}");
    assert!(!summary.contains("web.max_batch_bytes"), "{summary}");
}

#[test]
fn a_later_source_that_sets_the_default_again_leaves_no_origin() {
    let folder = Folder::new();
    let file = folder.file("config.json", r#"{"observability":{"log":"json"}}"#);
    let source = Source { file: Some(file), ..sets(["observability.log=text"]) };
    let loaded = accepted(&source);
    assert_eq!(loaded.config.observability.log, LogFormat::Text);
    assert!(loaded.origins.is_empty(), "{:?}", loaded.origins);
}

#[test]
fn null_takes_back_a_journal_and_all_that_was_said_of_it() {
    let folder = Folder::new();
    let file = folder.file("config.json", r#"{"runtime":{"platform":{"queue":{"journal":{"dir":"/j"}}}}}"#);
    let queue = "runtime.platform.queue";
    let loaded = accepted(&Source { file: Some(file), ..sets([&*format!("{queue}.journal=null")]) });
    assert!(loaded.config.runtime.platform.queue.journal.is_none());
    assert_eq!(loaded.origins.into_keys().collect::<Vec<_>>(), [format!("{queue}.journal")]);
}

#[test]
fn sources_are_merged_key_by_key_and_lists_replace_lists() {
    let folder = Folder::new();
    let file = folder.file(
        "config.json",
        r#"{"runtime":{"platform":{"queue":{"retry":{"base_ms":7}}}},"web":{"allowed_hosts":["a","b"]}}"#,
    );
    let given = [r#"runtime.platform.queue.retry={"max_ms":9}"#, r#"web.allowed_hosts=["c"]"#];
    let loaded = accepted(&Source { file: Some(file), ..sets(given) });
    let retry = loaded.config.runtime.platform.queue.retry;
    assert_eq!((retry.base_ms, retry.max_ms), (7, 9));
    assert_eq!(loaded.config.web.allowed_hosts, ["c"]);
}

#[test]
fn environment_names_are_paths_in_capitals_and_those_without_two_underscores_are_ignored() {
    let environment = |name: &str, value: &str| Source {
        environment: vec![(name.to_owned(), value.to_owned())],
        ..Source::default()
    };
    for (name, value) in [
        ("COFFERDAM_CONFIG", "/nowhere.json"),
        ("COFFERDAM_BIND", "x"),
        ("COFFERDAM_WEB_BIND", "x"),
        ("COFFERDAM", "x"),
        ("WEB__BIND", "x"),
        ("OTHER_WEB__BIND", "x"),
        ("XCOFFERDAM_WEB__BIND", "x"),
    ] {
        let loaded = accepted(&environment(name, value));
        assert!(loaded.origins.is_empty(), "{name} is not ignored");
    }
    let deep = accepted(&environment("COFFERDAM_RUNTIME__PLATFORM__QUEUE__RETRY__BASE_MS", "5"));
    assert_eq!(deep.config.runtime.platform.queue.retry.base_ms, 5);
    let handler = accepted(&environment("COFFERDAM_HANDLERS__ECHO__TIMEOUT_MS", "5"));
    assert_eq!(handler.config.handlers["echo"].options.timeout.as_millis(), 5);
    for (name, value, path) in [
        ("COFFERDAM_WEB__BINT", "127.0.0.1:1", "web.bint"),
        ("COFFERDAM_WEB__BIND", "x", "web.bind"),
        ("COFFERDAM_WEB__MAX_INFLIGHT", "many", "web.max_inflight"),
    ] {
        let messages = refused(&environment(name, value));
        assert!(messages[0].starts_with(&format!("{path}: ")), "{name}: {messages:?}");
    }
}

#[test]
fn set_takes_a_json_value_or_a_bare_word_and_the_last_one_wins() {
    for (given, log) in [
        (&["observability.log=json"][..], LogFormat::Json),
        (&[r#"observability.log="json""#], LogFormat::Json),
        (&["observability.log=json", "observability.log=text"], LogFormat::Text),
        (&[r#"observability={"log":"json"}"#], LogFormat::Json),
    ] {
        assert_eq!(accepted(&sets(given)).config.observability.log, log, "{given:?}");
    }
    let loaded = accepted(&sets(["runtime.ordering.sink_mode=completion", "web.max_inflight=12"]));
    assert_eq!(loaded.config.runtime.ordering.sink_mode, SinkMode::Completion);
    assert_eq!(loaded.config.web.max_inflight, 12);
    // What follows the first equals sign is the value, whatever is in it.
    let loaded = accepted(&sets(["runtime.platform.redis.username=a=b"]));
    assert_eq!(*at(&loaded.value, "runtime.platform.redis.username"), "a=b");
}

#[test]
fn a_malformed_set_is_refused_as_such() {
    for bad in ["web.bind", "", "=1", ".=1", "web.=1", ".web=1", "web..bind=1"] {
        let messages = refused(&sets([bad]));
        assert!(messages[0].starts_with("--set: "), "{bad:?}: {messages:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_or_is_no_json_object_is_refused_by_its_name() {
    let folder = Folder::new();
    for (file, what) in [
        (folder.path("missing.json"), "cannot be read"),
        (folder.path(""), "cannot be read"),
        (folder.file("text.json", [0xff, 0xfe]), "cannot be read"),
        (folder.file("empty.json", ""), "is not JSON"),
        (folder.file("broken.json", "{\"web\":"), "is not JSON"),
        (folder.file("two.json", "{} {}"), "is not JSON"),
        (folder.file("marks.json", "\u{feff}\u{feff}{}"), "is not JSON"),
        (folder.file("list.json", "[]"), "is not an object"),
        (folder.file("null.json", "null"), "is not an object"),
    ] {
        let messages = refused(&Source { file: Some(file.clone()), ..Source::default() });
        assert_eq!(messages.len(), 1, "{messages:?}");
        assert!(messages[0].starts_with(&format!("{}: {what}", file.display())), "{messages:?}");
    }
    drop(load_file("{}").expect("an empty object is a config"));
    drop(load_file("\u{feff}{}\r\n").expect("so is one of an editor that marks its files"));
}

#[test]
fn u10_a_key_that_stands_twice_is_refused_by_its_path_wherever_it_stands() {
    for (file, path) in [
        (r#"{"web":{"max_inflight":7},"web":{"bind":"127.0.0.1:9"}}"#, "web"),
        (r#"{"web":{"bind":"127.0.0.1:9","bind":"127.0.0.1:9"}}"#, "web.bind"),
        (r#"{"web":{"bind":"127.0.0.1:9","b\u0069nd":"127.0.0.1:8"}}"#, "web.bind"),
        (r#"{"handlers":{"echo":{"timeout_ms":1},"echo":{}}}"#, "handlers.echo"),
        (
            r#"{"runtime":{"platform":{"process_groups":[{"name":"a"},{"name":"b","name":"c","handlers":[]}]}}}"#,
            "runtime.platform.process_groups.1.name",
        ),
    ] {
        let issues = load_file(file).err().unwrap_or_else(|| panic!("{file} is accepted"));
        let messages: Vec<String> = issues.iter().map(ToString::to_string).collect();
        assert_eq!(issues.len(), 1, "{messages:?}");
        assert!(messages[0].starts_with(&format!("{path}: stands twice (got")), "{messages:?}");
        assert!(messages[0].contains("from the file"), "{messages:?}");
        assert!(is_well_formed(&messages[0]), "{messages:?}");
    }
    assert_refused_at("web.limits.connections", &[r#"web.limits={"connections":1,"connections":2}"#]);
    drop(load_file(r#"{"web":{"bind":"127.0.0.1:9"},"observability":{"log":"json"}}"#).expect("one each"));
}

#[test]
fn u10_an_unknown_key_names_the_nearest_known_one_and_everything_wrong_where_it_came_from() {
    let folder = Folder::new();
    let file = folder.file("config.json", r#"{"web":{"bnd":"x"},"queue":{},"version":2}"#);
    let environment = vec![("COFFERDAM_WEB__MAX_INFLGHT".into(), "9".into())];
    let source = Source { file: Some(file), environment, ..sets(["colour=red", "handlers.echo.timeout=1"]) };
    let messages = refused(&source);
    for (start, parts) in [
        ("web.bnd: ", ["a string from the file;", "web.bind or another known key"]),
        ("queue: ", ["an object from the file;", "runtime.platform.queue or another known key"]),
        ("version: ", ["got 2 from the file;", "expected 1"]),
        ("web.max_inflght: ", ["a number from COFFERDAM_WEB__MAX_INFLGHT;", "web.max_inflight or another"]),
        ("colour: ", ["a string from --set;", "expected no such key"]),
        ("handlers.echo.timeout: ", ["a number from --set;", "handlers.echo.timeout_ms or another"]),
    ] {
        let found = messages.iter().find(|message| message.starts_with(start));
        let found = found.unwrap_or_else(|| panic!("no {start} in {messages:#?}"));
        assert!(parts.iter().all(|part| found.contains(part)), "{found}");
        assert!(is_well_formed(found), "{found}");
    }
    assert_eq!(messages.len(), 6, "{messages:#?}");
}

#[test]
fn u10_digits_true_and_null_given_for_a_text_are_that_text() {
    for path in ["runtime.platform.redis.username", "runtime.platform.redis.key_prefix"] {
        for text in ["123", "007", "1e3", "true", "null", "18446744073709551616"] {
            let loaded = accepted(&sets([format!("{path}={text}")]));
            assert_eq!(*at(&loaded.value, path), text, "{path}");
            let name = format!("COFFERDAM_{}", path.to_uppercase().replace('.', "__"));
            let source = Source { environment: vec![(name, text.into())], ..Source::default() };
            assert_eq!(*at(&accepted(&source).value, path), text, "{path}");
        }
        // A text that is quoted is what is quoted; a list is none.
        let loaded = accepted(&sets([format!(r#"{path}="12""#)]));
        assert_eq!(*at(&loaded.value, path), "12");
        assert_refused_at(path, &[&format!("{path}=[1]")]);
    }
    // The variables of a program are texts, whatever their names are.
    let given = [r#"handlers.x={"command":["cat"]}"#, "handlers.x.env.PORT=8080", "handlers.x.env.ON=true"];
    let env = accepted(&sets(given)).value["handlers"]["x"]["env"].clone();
    assert_eq!(env, json!({"PORT": "8080", "ON": "true"}));
    // A file says what it means, and numbers stay numbers.
    let issues = load_file(r#"{"runtime":{"platform":{"redis":{"username":1}}}}"#).expect_err("a number");
    assert_eq!(issues[0].path, "runtime.platform.redis.username");
    assert_eq!(accepted(&sets(["web.max_inflight=7"])).config.web.max_inflight, 7);
}

#[test]
fn u10_paths_in_a_file_are_relative_to_it_and_others_are_as_they_are_given() {
    let folder = Folder::new();
    let file = folder.file(
        "config.json",
        r#"{"runtime":{"platform":{"redis":{"password_file":"p"},"execution_ipc":{"auth":{"secret_file":"../s"}}}},
            "web":{"auth":{"token_file":"/etc/t"}},"handlers":{"prog":{"command":["x","a/b"],"dir":"d"},"own":{"command":["bin/own","a/b"]}}}"#,
    );
    let loaded = accepted(&Source { file: Some(file.clone()), ..Source::default() });
    let command = |name: &str| loaded.config.handlers[name].program.clone().expect("it is one").command;
    assert_eq!(command("prog"), ["x", "a/b"], "that is looked for in PATH");
    assert_eq!(command("own"), [folder.path("bin/own").to_str().expect("text"), "a/b"]);
    let platform = &loaded.config.runtime.platform;
    let is_at = |path: &Option<String>, name: &str| path.as_deref() == folder.path(name).to_str();
    assert!(is_at(&platform.redis.password_file, "p"), "{:?}", platform.redis.password_file);
    assert!(is_at(&platform.execution_ipc.auth.secret_file, "../s"));
    assert_eq!(loaded.config.web.auth.token_file.as_deref(), Some("/etc/t"));
    assert_eq!(loaded.value["handlers"]["prog"]["dir"].as_str(), folder.path("d").to_str());
    let over = Source { file: Some(file), ..sets(["runtime.platform.redis.password_file=here"]) };
    let password = accepted(&over).config.runtime.platform.redis.password_file;
    assert_eq!(password.as_deref(), Some("here"), "relative to the working directory");
}

#[test]
fn u10_a_variable_that_is_a_key_but_for_its_underscores_is_told() {
    let environment = |name: &str| Source {
        environment: vec![(name.to_owned(), "127.0.0.1:1".to_owned())],
        ..Source::default()
    };
    let warnings = accepted(&environment("COFFERDAM_WEB_BIND")).warnings;
    assert_eq!(warnings, ["COFFERDAM_WEB_BIND means nothing; COFFERDAM_WEB__BIND would set web.bind"]);
    let deep = accepted(&environment("COFFERDAM_RUNTIME_PLATFORM_QUEUE_RETRY_BASE_MS")).warnings;
    assert!(deep[0].contains("COFFERDAM_RUNTIME__PLATFORM__QUEUE__RETRY__BASE_MS"), "{deep:?}");
    for name in ["COFFERDAM_CONIFG", "COFFERDAM_FOO", "COFFERDAM_", "COFFERDAM_WEB"] {
        assert_eq!(accepted(&environment(name)).warnings, [format!("{name} means nothing")]);
    }
    for name in ["COFFERDAM_WEB__BIND", "COFFERDAM_CONFIG", "COFFERDAM_JOB_ID", "OTHER_WEB_BIND"] {
        assert_eq!(accepted(&environment(name)).warnings, [""; 0], "{name}");
    }
}

// --- Handlers ---

#[test]
fn a_registered_handlers_own_options_are_the_defaults_and_the_config_lays_over_them() {
    let own = HandlerOptions {
        concurrency: 3,
        max_deliveries: Some(2),
        on_dead: OnDead::Park,
        ..HandlerOptions::keyed("/account")
    };
    let handlers =
        BTreeMap::from([("ledger".to_owned(), own.clone()), ("plain".into(), HandlerOptions::default())]);
    let loaded = config::load(&Source::default(), &handlers).expect("defaults");
    assert_eq!(loaded.config.handlers["ledger"].options, own);
    assert_eq!(loaded.config.handlers["plain"].options, HandlerOptions::default());
    let source = sets([
        r#"handlers.ledger={"timeout_ms":5,"on_dead":"continue","cancel_on_disconnect":true}"#,
        "handlers.plain.ordering=serial",
    ]);
    let loaded = config::load(&source, &handlers).expect("valid options");
    let ledger = &loaded.config.handlers["ledger"];
    assert_eq!(ledger.options.timeout.as_millis(), 5);
    assert_eq!((ledger.options.on_dead, ledger.options.cancel_on_disconnect), (OnDead::Continue, true));
    assert_eq!((ledger.options.concurrency, ledger.options.max_deliveries), (3, Some(2)));
    assert_eq!(ledger.options.ordering, Ordering::Keyed("/account".into()));
    assert_eq!(loaded.config.handlers["plain"].options.ordering, Ordering::Serial);
    assert_eq!(loaded.value["handlers"]["ledger"]["ordering"], json!({"key": "/account"}));
}

#[test]
fn every_handler_option_has_its_range() {
    let rows = [
        ("timeout_ms", vec!["1", "86400000"], vec!["0", "-1", "x", "1.5", "[]"]),
        ("concurrency", vec!["0", "8"], vec!["-1", "all", "true"]),
        ("max_deliveries", vec!["1", "9"], vec!["0", "x"]),
        ("cancel_on_disconnect", vec!["true", "false"], vec!["1", "yes"]),
        ("on_dead", vec!["continue", "park"], vec!["stop", "1", "Park"]),
        (
            "ordering",
            vec!["none", "serial", r#"{"key":"/a/b"}"#, r#"{"key":""}"#],
            vec![
                "keyed",
                "Serial",
                "1",
                "{}",
                r#"{"key":"a"}"#,
                r#"{"key":1}"#,
                r#"{"key":"/a","x":1}"#,
                "[]",
            ],
        ),
    ];
    for (option, good, bad) in rows {
        let path = format!("handlers.echo.{option}");
        for value in good {
            accepted(&sets([format!("{path}={value}")]));
        }
        for value in bad {
            assert_refused_at(&path, &[&format!("{path}={value}")]);
        }
    }
    assert_refused_at("handlers.echo.retries", &["handlers.echo.retries=1"]);
    assert_refused_at("handlers.echo.mode", &["handlers.echo.mode=once"]);
}

#[test]
fn a_handler_that_is_neither_registered_nor_a_program_is_refused() {
    assert_refused_at("handlers.nobody", &["handlers.nobody.timeout_ms=5"]);
    assert_refused_at("handlers.no/body", &[r#"handlers.no/body={"command":["true"]}"#]);
    let long = "n".repeat(65);
    assert_refused_at(&format!("handlers.{long}"), &[&format!(r#"handlers.{long}={{"command":["true"]}}"#)]);
}

#[test]
fn a_programs_options_have_their_ranges_and_defaults() {
    let whole = json!({"command": ["prog", "arg"], "mode": "worker", "timeout_ms": 5, "env": {"K": "V"}, "dir": "/",
        "max_output_bytes": 1, "stop_grace_ms": 0, "user": "nobody", "max_jobs": 9, "idle_ms": 1,
        "ordering": "serial", "limits": {"memory_mb": 1, "cpu_seconds": 1, "processes": 1, "open_files": 3}});
    let loaded = accepted(&sets([set("handlers.prog", &whole)]));
    let program = loaded.config.handlers["prog"].program.clone().expect("it is one");
    assert_eq!((program.mode, program.limits.open_files), (config::ProgramMode::Worker, Some(3)));
    assert_eq!(loaded.config.handlers["prog"].options.ordering, Ordering::Serial);
    let loaded = accepted(&sets([r#"handlers.prog.command=["prog"]"#]));
    assert_eq!(loaded.config.handlers["echo"].program, None);
    let prog = &loaded.value["handlers"]["prog"];
    assert_eq!((&prog["mode"], &prog["timeout_ms"]), (&json!("once"), &json!(30_000)));
    assert_eq!((&prog["max_output_bytes"], &prog["stop_grace_ms"]), (&json!(1_048_576), &json!(2_000)));
    for (option, bad) in [
        ("command", vec![r#"[]"#, r#"[""]"#, r#"["a",1]"#, r#""prog""#, "{}", r#"["a\u0000b"]"#]),
        ("mode", vec!["twice", "1"]),
        ("env", vec![r#"["K=V"]"#, r#"{"K":1}"#, "K=V", r#"{"K=":"V"}"#, r#"{"":"V"}"#, r#"{"K":"\u0000"}"#]),
        ("dir", vec!["[1]", r#""""#]),
        ("max_output_bytes", vec!["0", "x"]),
        ("stop_grace_ms", vec!["-1"]),
        ("user", vec![r#""""#, "-1", "[1]"]),
        ("idle_ms", vec!["0"]),
        ("max_jobs", vec!["-1"]),
        ("limits.memory_mb", vec!["0"]),
        ("limits.open_files", vec!["x", "2"]),
        ("limits.disk", vec!["1"]),
        ("shell", vec!["true"]),
    ] {
        let path = format!("handlers.prog.{option}");
        for value in bad {
            assert_refused_at(&path, &[r#"handlers.prog.command=["prog"]"#, &format!("{path}={value}")]);
        }
    }
}

// --- What is valid but not built yet, or cannot be ---

#[test]
fn limits_that_replace_processes_need_processes() {
    for limit in ["max_jobs", "max_rss_mb"] {
        let groups = format!(r#"runtime.platform.process_groups=[{{"name":"g","{limit}":1}}]"#);
        for (mode, refused) in [("inline", 1), ("process_supervisor", 0)] {
            let loaded = accepted(&sets([groups.clone(), format!("runtime.platform.bootstrap.mode={mode}")]));
            let messages = config::unbuilt(&loaded.config);
            assert_eq!(messages.len(), refused, "{messages:?}");
            assert!(messages.iter().all(|message| message.contains("process group g")), "{messages:?}");
        }
    }
}

#[test]
fn what_is_not_built_is_valid_and_named_by_its_path() {
    let unbuilt = |given: &[&str]| {
        let loaded = accepted(&sets(given));
        config::unbuilt(&loaded.config)
    };
    assert_eq!(unbuilt(&[]), [""; 0]);
    assert_eq!(unbuilt(&[SECRET_FILE]), [""; 0]);
    #[cfg(feature = "redis")]
    for given in [&redis()[..], &[KV_REDIS, SECRET_FILE]] {
        assert_eq!(unbuilt(given), [""; 0]);
    }
    // Without it each backend is named, with how the binary was built.
    #[cfg(not(feature = "redis"))]
    for (given, paths) in [(&redis()[..], &["queue", "kv"][..]), (&[KV_REDIS, SECRET_FILE], &["kv"])] {
        let messages = unbuilt(given);
        assert_eq!(messages.len(), paths.len(), "{messages:?}");
        for path in paths {
            let path = format!("runtime.platform.{path}.backend: ");
            let named = messages.iter().any(|m| m.starts_with(&path) && m.contains("--no-default-features"));
            assert!(named, "{path}: {messages:?}");
        }
    }
    #[cfg(feature = "redis")]
    {
        let messages = unbuilt(&[&redis()[..], &["runtime.platform.redis.url=rediss://h"]].concat());
        let is_named = |message: &String| {
            message.starts_with("runtime.platform.redis.url") && message.contains("not built")
        };
        assert!(messages.len() == 1 && messages.iter().all(is_named), "{messages:?}");
    }
}

#[test]
fn the_profile_names_how_it_runs_and_where_jobs_are_kept() {
    let inline = "runtime.platform.bootstrap.mode=inline";
    for (given, name) in [
        (&[][..], "supervised-memory"),
        (&[inline][..], "inline-memory"),
        (&redis(), "supervised-redis"),
        (&[&[inline][..], &redis()].concat(), "inline-redis"),
        (&[KV_REDIS, SECRET_FILE], "supervised-mixed"),
        (&[inline, KV_REDIS, SECRET_FILE], "inline-mixed"),
    ] {
        let loaded = accepted(&sets(given));
        assert_eq!(config::profile(&loaded.config), name);
        assert_eq!(config::normalised(&loaded)["profile"], name);
    }
    let mixed = config::summary(&accepted(&sets([KV_REDIS, SECRET_FILE])));
    assert!(mixed.contains("weaker promise"), "{mixed}");
}

// --- Secrets ---

#[test]
fn a_programs_environment_is_redacted_wherever_a_config_is_shown() {
    let given = [
        r#"handlers.prog={"command":["prog"],"env":{"TOKEN":"hunter2","EMPTY":""}}"#,
        r#"handlers.echo={"command":["prog"],"env":{"PASSWORD":"hunter2"}}"#,
    ];
    let loaded = accepted(&sets(given));
    let shown = config::normalised(&loaded);
    assert_eq!(shown["handlers"]["prog"]["env"], json!({"TOKEN": "<redacted>", "EMPTY": "<redacted>"}));
    assert_eq!(shown["handlers"]["echo"]["env"], json!({"PASSWORD": "<redacted>"}));
    assert!(!shown.to_string().contains("hunter2"));
    let summary = config::summary(&loaded);
    assert!(!summary.contains("hunter2"), "{summary}");
    // The program itself is given what was written.
    assert_eq!(loaded.value["handlers"]["prog"]["env"]["TOKEN"], "hunter2");
}

#[test]
fn a_redis_url_with_a_password_is_refused_without_showing_it() {
    for url in [
        "redis://:hunter2@127.0.0.1:6379/0",
        "redis://user:hunter2@127.0.0.1",
        "redis://hunter2@127.0.0.1",
        "rediss://user:hunter2@127.0.0.1",
        "redis+unix://user:hunter2@/run/redis.sock",
        "http://user:hunter2@127.0.0.1",
        "hunter2",
    ] {
        let messages = refused(&sets([set("runtime.platform.redis.url", &json!(url))]));
        assert_eq!(messages.len(), 1, "{messages:?}");
        assert!(messages[0].starts_with("runtime.platform.redis.url: "), "{messages:?}");
        assert!(!messages[0].contains("hunter2"), "{messages:?}");
    }
}

#[test]
fn a_redis_url_with_a_password_in_its_query_is_refused_too() {
    for url in [
        "redis+unix:///run/redis.sock?pass=hunter2",
        "redis+unix:///run/redis.sock?db=1&user=web&pass=hunter2",
        "redis+unix:///run/redis.sock?user=hunter2",
    ] {
        let messages = refused(&sets([set("runtime.platform.redis.url", &json!(url))]));
        assert!(messages.iter().all(|message| !message.contains("hunter2")), "{messages:?}");
    }
    accepted(&sets([set("runtime.platform.redis.url", &json!("redis+unix:///run/redis.sock?db=1"))]));
}

#[test]
fn a_secret_under_a_key_that_does_not_exist_is_refused_without_showing_it() {
    for given in [
        "runtime.platform.redis.password=hunter2",
        "runtime.platform.execution_ipc.auth.secret=hunter2",
        "runtime.platform.redis=redis://:hunter2@127.0.0.1",
        "web.auth.token=hunter2",
        r#"handlers.echo.env={"TOKEN":"hunter2"}"#,
        r#"handlers.nobody={"env":{"TOKEN":"hunter2"}}"#,
        r#"handlers.echo={"command":["prog"],"env":{"TOKEN":["hunter2"]}}"#,
        r#"handlers.echo={"command":["prog"],"environment":{"TOKEN":"hunter2"}}"#,
    ] {
        let messages = refused(&sets([given]));
        assert!(messages.iter().all(|message| !message.contains("hunter2")), "{messages:?}");
    }
}

const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn secret_file(folder: &Folder, contents: impl AsRef<[u8]>, mode: u32) -> PathBuf {
    let path = folder.file("secret", contents);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a file of ours");
    path
}

/// Why a file is no secret.
fn secret_refused(path: &Path) -> String {
    Secret::read_all(path).err().unwrap_or_else(|| panic!("{} is accepted", path.display()))
}

#[test]
fn a_secret_file_is_64_hex_digits_and_on_a_second_line_those_of_the_secret_before() {
    let folder = Folder::new();
    let bytes: [u8; 32] = std::array::from_fn(|index| index as u8);
    for good in [HEX.to_owned(), format!("{HEX}\n"), HEX.to_uppercase()] {
        let secrets = Secret::read_all(&secret_file(&folder, &good, 0o600));
        let secrets = secrets.unwrap_or_else(|e| panic!("{good:?}: {e}"));
        assert_eq!((*secrets[0].expose(), secrets.len()), (bytes, 1));
    }
    let old = "0123456789abcdef".repeat(4);
    for good in [format!("{HEX}\n{old}"), format!("{HEX}\n{old}\n")] {
        let secrets = Secret::read_all(&secret_file(&folder, &good, 0o600)).expect("two lines");
        assert_eq!((*secrets[0].expose(), secrets.len()), (bytes, 2));
        assert_eq!(secrets[1].expose()[..4], [0x01, 0x23, 0x45, 0x67]);
    }
    let one_byte = "ab".repeat(32);
    for (bad, why) in [
        (String::new(), "64 hex digits"),
        ("\n".into(), "64 hex digits"),
        (HEX[1..].into(), "64 hex digits"),
        (HEX[2..].into(), "64 hex digits"),
        (format!("{HEX}0"), "64 hex digits"),
        (format!("{HEX}00"), "64 hex digits"),
        (format!("{HEX}{HEX}"), "64 hex digits"),
        (format!("{HEX}\n\n"), "64 hex digits"),
        (format!("\n{HEX}"), "64 hex digits"),
        (format!("{HEX}\n{HEX}\n{HEX}"), "64 hex digits"),
        (format!("{HEX}\n{}", "0".repeat(64)), "one byte repeated"),
        (format!("{HEX}\r\n"), "64 hex digits"),
        (format!("{HEX} "), "64 hex digits"),
        (format!(" {HEX}"), "64 hex digits"),
        (format!("{HEX}\n{}", " ".repeat(100)), "64 hex digits"),
        (format!("0x{}", &HEX[2..]), "64 hex digits"),
        (HEX.replace('f', "g"), "64 hex digits"),
        (HEX.replacen("00", "é", 1), "64 hex digits"),
        ("0".repeat(64), "one byte repeated"),
        ("f".repeat(64), "one byte repeated"),
        (one_byte, "one byte repeated"),
    ] {
        let path = secret_file(&folder, &bad, 0o600);
        let message = secret_refused(&path);
        assert!(message.contains(why), "{bad:?}: {message}");
        assert!(message.contains(&path.display().to_string()), "{message}");
        assert!(bad.trim().is_empty() || !message.contains(bad.trim()), "it shows the secret: {message}");
    }
}

#[test]
fn a_secret_file_that_others_can_touch_is_refused() {
    let folder = Folder::new();
    for mode in [0o600, 0o400, 0o700] {
        drop(Secret::read_all(&secret_file(&folder, HEX, mode)).unwrap_or_else(|e| panic!("{mode:o}: {e}")));
    }
    for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666, 0o777] {
        let message = secret_refused(&secret_file(&folder, HEX, mode));
        assert!(message.contains(&format!("{mode:o}")) && message.contains("chmod 600"), "{message}");
        std::fs::remove_file(folder.path("secret")).expect("a file of ours");
    }
    assert!(secret_refused(&folder.path("missing")).contains("cannot be read"));
    std::fs::create_dir(folder.path("folder")).expect("a folder of ours");
    secret_refused(&folder.path("folder"));
}

#[test]
fn a_new_secret_is_written_once_for_its_owner_alone_and_can_be_read_back() {
    let folder = Folder::new();
    let [first, second] = ["first", "second"].map(|name| {
        let path = folder.path(name);
        keygen(Some(&path)).expect("a new secret");
        let mode = std::fs::metadata(&path).expect("its file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        *Secret::read_all(&path).expect("what keygen writes")[0].expose()
    });
    assert_ne!(first, second);
    assert!(keygen(Some(&folder.path("first"))).is_err());
    assert_eq!(*Secret::read_all(&folder.path("first")).expect("it is as it was")[0].expose(), first);
}

#[test]
fn an_embedders_handler_name_that_no_config_path_can_hold_is_refused_at_once() {
    let echo = |job: &cofferdam::Job, _: &mut cofferdam::JobContext| Ok(job.payload().clone());
    for bad in ["", "a.b", "a/b", "a b", "ä", &"n".repeat(65)] {
        let refused = std::panic::catch_unwind(|| drop(App::new().handler(bad, echo)));
        assert!(refused.is_err(), "{bad:?}");
    }
    drop(App::new().handler("a-B_9", echo));
}

#[test]
fn a_path_of_thousands_of_parts_is_an_unknown_key_and_no_stack_overflow() {
    let path = "a.".repeat(60_000) + "a";
    assert_eq!(refused(&sets([format!("{path}=1")])).len(), 1);
    let name = format!("COFFERDAM_{}A", "A__".repeat(60_000));
    let environment = vec![(name, "1".to_owned())];
    assert_eq!(refused(&Source { environment, ..Source::default() }).len(), 1);
}
