//! What operators read: the boundary events of whole scenarios, and `/metrics`, the same in memory and on
//! Redis.
//!
//! It guards the names of events: each scenario gives exactly its events, found by trace id over all processes, in an
//! order that their times allow; the two profiles differ only in which process says it. No payload, secret or
//! token is in a line.

#[cfg(feature = "redis")]
#[path = "support/deployment.rs"]
mod deployment;
#[path = "support/program.rs"]
mod program;
#[cfg(feature = "redis")]
#[path = "support/redis.rs"]
mod redis;
#[path = "support/service.rs"]
mod service;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[cfg(feature = "redis")]
use deployment::{Deployment, can_serve};
use program::{SECRET, command, example};
use serde_json::Value;
use service::{Client, PATIENCE, Service, kill, request, until};

/// In payloads, and so in no line.
const MARKER: &str = "nobody-else-may-read-this";
/// Lines of different processes reach the log by different ways; their times tell the order this exactly.
const TOLERANCE_MS: i64 = 150;

const SETS: [&str; 3] = [
    "observability.log=json",
    "runtime.platform.queue.max_deliveries=3",
    r#"runtime.platform.queue.retry={"base_ms":1,"max_ms":2}"#,
];

struct Profile {
    service: Service,
    traces: u32,
}

impl Profile {
    /// With these `PATH=VALUE`s of its own.
    fn start(own: Vec<String>) -> Profile {
        let mut words = vec!["serve".to_owned(), "--set".into(), "web.bind=127.0.0.1:0".into()];
        for set in SETS.iter().map(ToString::to_string).chain(own) {
            words.extend(["--set".to_owned(), set]);
        }
        let child = command(&example("embedder"), words).env("RUST_LOG", "debug").spawn();
        let service = Service::from(child.expect("it can be started"));
        Profile { service, traces: 0 }
    }

    /// A caller's request under a trace of its own.
    fn ask(&mut self, target: &str, headers: &[&str], body: &str) -> (String, Client) {
        self.traces += 1;
        let trace = format!("{:032x}", self.traces);
        let parent = format!("traceparent: 00-{trace}-00f067aa0ba902b7-01");
        let headers: Vec<&str> = headers.iter().copied().chain([parent.as_str()]).collect();
        let mut client = self.service.connect();
        client.send(request("POST", target, &headers, body));
        (trace, client)
    }

    /// The events of a trace, once as many are there as are expected, and the last of them: names with causes, and times in ms.
    fn events(&self, trace: &str, expected: &[&str]) -> Vec<(String, i64)> {
        let of_trace = || -> Vec<(String, i64)> {
            let text = self.service.stderr();
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let ours = lines.filter(|line| line["trace_id"] == trace && line["event"] != "log");
            ours.map(|line| {
                assert!(line["job_id"].as_str().is_some_and(|id| id.len() == 32), "{line}");
                assert!(line["handler"].as_str().is_some_and(|name| !name.is_empty()), "{line}");
                let name = line["event"].as_str().expect("a name").to_owned();
                let cause = line["cause"].as_str().map_or(String::new(), |cause| format!(" {cause}"));
                (name + &cause, millis(line["ts"].as_str().expect("a time")))
            })
            .collect()
        };
        let last = expected.last().expect("an event");
        until(&format!("{last} of {trace}"), PATIENCE, || {
            Some(of_trace()).filter(|events| events.iter().any(|(name, _)| name == last))
        });
        // What comes behind the last one by another way, and then what nobody expects.
        let end = Instant::now() + Duration::from_secs(2);
        while of_trace().len() < expected.len() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(60));
        of_trace()
    }

    /// At info and above nothing else is told of a trace's job than these: level, event, delivery, cause, reason.
    #[track_caller]
    fn assert_told(&self, trace: &str, handler: &str, expected: &[(&str, &str, u64, &str, Option<&str>)]) {
        let text = self.service.stderr();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let told = lines.filter(|line| {
            line["trace_id"] == trace && line["level"] != "debug" && line["event"] != "job.panicked"
        });
        let told: Vec<Value> = told.collect();
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (line, (level, event, delivery, cause, reason)) in told.iter().zip(expected) {
            let words = ["level", "event", "handler", "cause"].map(|name| line[name].as_str());
            assert_eq!(words, [Some(*level), Some(event), Some(handler), Some(cause)], "{line}");
            assert_eq!(
                (line["delivery"].as_u64(), line["reason"].as_str()),
                (Some(*delivery), *reason),
                "{line}"
            );
            assert!(line["duration_ms"].as_u64().is_some_and(|ms| ms < 5_000), "{line}");
        }
    }

    /// Exactly these, in an order that their times allow.
    #[track_caller]
    fn assert_events(&self, trace: &str, expected: &[&str]) {
        let mut found = self.events(trace, expected);
        let shown = format!("{found:?}");
        let mut latest = i64::MIN;
        for name in expected {
            let matching = found.iter().enumerate().filter(|(_, (known, _))| known == name);
            let (at, time) = matching
                .map(|(at, (_, time))| (*time, at))
                .min()
                .map(|(time, at)| (at, time))
                .unwrap_or_else(|| {
                    panic!("{name} is missing: {shown}");
                });
            assert!(time + TOLERANCE_MS >= latest, "{name} comes too soon: {shown}");
            latest = latest.max(time);
            found.remove(at);
        }
        assert!(found.is_empty(), "more than was expected: {found:?} of {shown}");
    }
}

/// The time of day of an RFC 3339 text.
fn millis(text: &str) -> i64 {
    let clock = text.split_once('T').expect("a time").1.trim_end_matches('Z');
    let (clock, millis) = clock.split_once('.').expect("milliseconds");
    let seconds = clock.split(':').fold(0, |sum, part| sum * 60 + part.parse::<i64>().expect("a number"));
    seconds * 1_000 + millis.parse::<i64>().expect("a number")
}

fn scenarios(profile: &mut Profile) {
    const TAKEN: [&str; 2] = ["queue.pushed", "ingress.accepted"];
    let and = |rest: &[&'static str]| [&TAKEN[..], rest].concat();

    let (trace, mut client) = profile.ask("/v1/jobs/echo", &[], MARKER);
    assert_eq!(client.read().text(), MARKER);
    let success = and(&["queue.claimed", "reply.published", "reply.delivered"]);
    profile.assert_events(&trace, &success);

    let (trace, mut client) = profile.ask("/v1/jobs/flaky", &[], "2");
    assert_eq!(client.read().text(), "2");
    let again = ["queue.claimed", "queue.redelivered handler_retry", "job.retried handler_retry"];
    let ends = ["queue.claimed", "reply.published", "reply.delivered"];
    profile.assert_events(&trace, &and(&[&again[..], &ends].concat()));
    profile.assert_told(&trace, "flaky", &[("info", "job.retried", 1, "handler_retry", Some("not yet"))]);

    let (trace, mut client) = profile.ask("/v1/jobs/flaky", &[], "9");
    assert_eq!(client.read().code(), "dead_lettered");
    let exhausted = ["job.failed retries_exhausted", "queue.dead retries_exhausted"];
    let dies = [&["queue.claimed"][..], &exhausted, &["reply.delivered"]].concat();
    profile.assert_events(&trace, &and(&[&again[..], &again, &dies].concat()));
    let not_yet = Some("not yet");
    let told = [
        ("info", "job.retried", 1, "handler_retry", not_yet),
        ("info", "job.retried", 2, "handler_retry", not_yet),
        ("warn", "job.failed", 3, "retries_exhausted", not_yet),
    ];
    profile.assert_told(&trace, "flaky", &told);

    let (trace, mut client) = profile.ask("/v1/jobs/sleep", &[], MARKER);
    assert_eq!(client.read().code(), "handler_failed");
    let fails = ["queue.claimed", "reply.published", "job.failed handler_failed", "reply.delivered"];
    profile.assert_events(&trace, &and(&fails));
    let why = Some(r#"sleep takes {"ms":N}"#);
    profile.assert_told(&trace, "sleep", &[("warn", "job.failed", 1, "handler_failed", why)]);

    // What a panic says may hold a payload.
    let (trace, mut client) = profile.ask("/v1/jobs/panics", &[], MARKER);
    assert_eq!(client.read().code(), "dead_lettered");
    let again = ["queue.claimed", "job.panicked", "queue.redelivered handler_crashed"];
    let again = [&again[..], &["job.retried handler_crashed"]].concat();
    let dies = ["queue.claimed", "job.panicked", "job.failed handler_crashed", "queue.dead handler_crashed"];
    let dies = [&dies[..], &["reply.delivered"]].concat();
    profile.assert_events(&trace, &and(&[&again[..], &again, &dies].concat()));
    let told = [1, 2].map(|number| ("info", "job.retried", number, "handler_crashed", None));
    profile.assert_told(
        &trace,
        "panics",
        &[&told[..], &[("warn", "job.failed", 3, "handler_crashed", None)]].concat(),
    );

    let (trace, mut client) = profile.ask("/v1/jobs/sleep?timeout_ms=100", &[], r#"{"ms":5000}"#);
    assert_eq!(client.read().code(), "handler_timed_out");
    let times_out = ["queue.claimed", "reply.published", "job.failed handler_timed_out", "reply.delivered"];
    profile.assert_events(&trace, &and(&times_out));
    let why = Some("the handler's timeout passed");
    profile.assert_told(&trace, "sleep", &[("warn", "job.failed", 1, "handler_timed_out", why)]);

    // The executor is lost while it runs.
    let (trace, mut client) = profile.ask("/v1/jobs/sleep", &[], r#"{"ms":2000}"#);
    service::running(&profile.service, 1);
    kill(profile.service.child("executor"));
    assert_eq!(client.read().status, 200);
    let lost = ["queue.claimed", "queue.redelivered executor_lost", "job.retried executor_lost"];
    profile.assert_events(&trace, &and(&[&lost[..], &ends].concat()));

    // The caller's time passes before the job's.
    let (trace, mut client) = profile.ask("/v1/jobs/sleep", &["Prefer: wait=0"], r#"{"ms":1500}"#);
    assert_eq!(client.read().status, 202);
    let late = ["queue.claimed", "reply.timed_out", "reply.published", "reply.late_dropped waiter_gone"];
    profile.assert_events(&trace, &and(&late));

    let (trace, mut client) = profile.ask("/v1/jobs/sleep", &[], r#"{"ms":60000}"#);
    service::running(&profile.service, 1);
    let list = profile.service.get("/v1/jobs?status=running").json();
    let id = list["jobs"][0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(profile.service.request("DELETE", &format!("/v1/jobs/{id}"), &[], "").status, 200);
    assert_eq!(client.read().code(), "cancelled");
    profile.assert_events(&trace, &and(&["queue.claimed", "reply.delivered"]));
}

fn ends_well(profile: Profile) {
    let ended = profile.service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    for event in ["lifecycle.starting", "lifecycle.ready", "lifecycle.draining", "lifecycle.stopped"] {
        assert!(ended.stderr.contains(&format!(r#""event":"{event}""#)), "{event}: {}", ended.stderr);
    }
    for secret in [MARKER, SECRET] {
        assert!(!ended.stderr.contains(secret), "{secret}: {}", ended.stderr);
    }
    for line in ended.stderr.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "no JSON object: {line}");
    }
}

#[test]
fn each_scenario_gives_its_events_in_memory() {
    let mut profile = Profile::start(Vec::new());
    scenarios(&mut profile);
    ends_well(profile);
}

#[cfg(feature = "redis")]
#[test]
fn each_scenario_gives_the_same_events_on_redis() {
    if !can_serve() {
        return;
    }
    // Its folder holds the secret, and goes with it.
    let deployment = Deployment::new("events");
    let mut profile = Profile::start(deployment.sets(&[]));
    scenarios(&mut profile);
    ends_well(profile);
}

#[test]
fn a_parser_of_prometheus_reads_the_metrics_of_each_profile() {
    const PYTHON: &str = "/usr/bin/python3";
    let program = "import sys\n\
        from prometheus_client.parser import text_string_to_metric_families as read\n\
        families = {f.name: f for f in read(sys.stdin.read())}\n\
        assert families['cofferdam_queue_depth'].type == 'gauge', families\n\
        assert families['cofferdam_job_seconds'].type == 'histogram', families\n\
        print(len(families), sum(len(f.samples) for f in families.values()))";
    let there = Command::new(PYTHON).args(["-c", "import prometheus_client"]).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        let _ = writeln!(std::io::stderr(), "SKIPPED: no prometheus_client (tools/test installs it)");
        return;
    }
    let read = |service: &Service| {
        assert_eq!(service.post("/v1/jobs/echo", "1").text(), "1");
        let text = service.get("/metrics").text();
        let output = program::run(
            Command::new(PYTHON)
                .args(["-c", program])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
            text.as_bytes(),
        );
        assert!(output.status.success(), "{}", program::shown(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let in_memory = read(&Service::start(&[]));
    assert_ne!(in_memory.trim(), "", "families and samples are counted");
    #[cfg(feature = "redis")]
    if can_serve() {
        let deployment = Deployment::new("metrics");
        // Every series is there from the start, in both.
        assert_eq!(in_memory, read(&deployment.serve(&program::cofferdam(), &[])));
    }
}
