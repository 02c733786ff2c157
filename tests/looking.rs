//! What a dashboard and a command line look at, over HTTP and on both backends: attempts, lists, lanes, jobs in bulk, and the
//! stream of events.
//!
//! It guards the truth of what is shown: each delivery with its end, each lane with why it waits, no job of somebody else; and
//! that who looks on costs nothing that stays: no place, no descriptor, no time at a stop.

#[cfg(feature = "redis")]
#[path = "support/aftermath.rs"]
mod aftermath;
#[path = "support/bearer.rs"]
mod bearer;
#[cfg(feature = "redis")]
#[path = "support/own_redis.rs"]
mod own_redis;
#[path = "support/program.rs"]
mod program;
#[cfg(feature = "redis")]
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "support/service.rs"]
mod service;

use std::collections::{BTreeSet, VecDeque};
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bearer::{Token, TokenFile};
use program::{Folder, cofferdam, wait};
use rustix::process::Signal;
use serde_json::{Value, json};
use service::{Answer, PATIENCE, Service, holdings, kill, request, signal, until};

/// A service on the backend that is looked at, with these settings.
type Start<'a> = &'a dyn Fn(&[&str]) -> Service;

/// Each check on each backend.
macro_rules! on_each_backend {
    ($($check:ident)*) => {
        mod in_memory {
            $(#[test]
            fn $check() {
                super::$check(&|sets| super::Service::start(sets));
            })*
        }

        #[cfg(feature = "redis")]
        mod on_redis {
            $(#[test]
            fn $check() {
                let server = super::redis_server::Server::start(&[]);
                let deployment = super::redis_server::Deployment::on(&server);
                super::$check(&|sets| deployment.serve(sets));
            })*
        }
    };
}

on_each_backend! {
    each_delivery_is_an_attempt_with_its_end
    a_list_is_by_key_trace_and_time
    a_list_refuses_what_is_no_value
    each_lane_says_why_it_waits
    lanes_beyond_a_hundred_are_more
    jobs_are_retried_and_cancelled_in_bulk
    a_bulk_request_that_is_not_understood_is_refused
    bulk_is_for_an_admin
    a_listener_is_told_the_past_the_figures_and_each_end
    a_listener_is_told_of_jobs_that_its_token_may_see
    more_ends_than_are_kept_are_told_as_lost
    there_are_sixteen_listeners_and_one_that_closes_makes_room
    a_drain_ends_the_stream_properly_and_waits_for_no_listener
}

/// To Redis, that a process keeps for its next call; they come with its first load.
const KEPT_CONNECTIONS: usize = 4;
const JSON: &str = "Content-Type: application/json";
const HOUR: &str = r#"{"ms":3600000}"#;

/// Handlers that are programs: `again` asks for another try, `dies`, `no` fails, `kept` waits in lanes by key.
fn handlers(more: &Value) -> String {
    let sh = |script: &str| json!({"command": ["sh", "-c", script], "retry": {"base_ms": 1, "max_ms": 1}});
    let mut all = json!({
        "again": sh("exit 75"), "dies": sh("kill -9 $$"), "no": sh("exit 1"), "kept": sh("exec sleep 300"),
    });
    all["kept"]["ordering"] = json!({"key": "/k"});
    all["kept"]["timeout_ms"] = json!(3_600_000);
    all["sleep"] = json!({"timeout_ms": 3_600_000});
    for (name, options) in more.as_object().expect("handlers") {
        for (option, value) in options.as_object().expect("options") {
            all[name][option] = value.clone();
        }
    }
    format!("handlers={all}")
}

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, &*answer.code()), (status, code), "{answer:?}");
}

/// The outcomes of a record's attempts, each of which is whole.
#[track_caller]
fn outcomes(record: &Value) -> Vec<Value> {
    let attempts = record["attempts"].as_array().expect("attempts");
    for attempt in attempts {
        let [started, ended] = ["started_at", "ended_at"].map(|name| attempt[name].as_str());
        assert!(
            started.is_some() && attempt["executor"].as_str().is_some_and(|it| !it.is_empty()),
            "{record}"
        );
        assert_eq!(ended.is_none(), attempt["outcome"].is_null(), "{record}");
        assert!(ended.is_none_or(|ended| started <= Some(ended)), "{record}");
    }
    let starts: Vec<&str> = attempts.iter().filter_map(|attempt| attempt["started_at"].as_str()).collect();
    assert!(starts.is_sorted(), "the oldest first: {record}");
    attempts.iter().map(|attempt| attempt["outcome"].clone()).collect()
}

/// Of a record once it has so many attempts.
#[track_caller]
fn attempts_of(service: &Service, id: &str, count: usize) -> Value {
    until(&format!("{id} has {count} attempts"), PATIENCE, || {
        Some(service.record(id)).filter(|record| record["attempts"].as_array().map(Vec::len) == Some(count))
    })
}

// ---- records ----

fn each_delivery_is_an_attempt_with_its_end(start: Start) {
    let service =
        start(&[&handlers(&json!({"again": {"max_deliveries": 10}, "dies": {"max_deliveries": 2}}))]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let header = format!("traceparent: 00-{trace}-00f067aa0ba902b7-01");
    let [again, dies, no, echo, long] =
        [("again", "1"), ("dies", "1"), ("no", "1"), ("echo", "1"), ("sleep", HOUR)]
            .map(|(name, body)| service.submit(&format!("/v1/jobs/{name}"), &[&header], body));
    // The last eight of ten.
    let record = service.record_when(&again, "dead");
    assert_eq!((&record["deliveries"], &record["trace_id"]), (&json!(10), &json!(trace)), "{record}");
    let mut expected = vec![json!("handler_retry"); 7];
    expected.push(json!("dead"));
    assert_eq!(outcomes(&record), expected);
    let record = service.record_when(&dies, "dead");
    assert_eq!(outcomes(&record), ["handler_crashed", "dead"]);
    assert_eq!(record["error"]["cause"], "handler_crashed", "{record}");
    assert_eq!(outcomes(&service.record_when(&echo, "succeeded")), ["succeeded"]);
    // Of the life before a retry, too.
    assert_eq!(outcomes(&service.record_when(&no, "failed")), ["failed"]);
    assert_eq!(service.post(&format!("/v1/jobs/{no}/retry"), "").status, 202);
    attempts_of(&service, &no, 2);
    let record = service.record_when(&no, "failed");
    assert_eq!(outcomes(&record), ["failed", "failed"]);
    assert_eq!((&record["deliveries"], &record["trace_id"]), (&json!(1), &json!(trace)), "{record}");
    // An executor that is lost, by no fault of anything but a kill.
    let running = service.record_when(&long, "running");
    assert_eq!(outcomes(&running), [Value::Null]);
    kill(service.child("executor"));
    let record = attempts_of(&service, &long, 2);
    assert_eq!(outcomes(&record), [json!("executor_lost"), Value::Null]);
    let executors: BTreeSet<&str> = ["0", "1"]
        .iter()
        .filter_map(|at| record.pointer(&format!("/attempts/{at}/executor"))?.as_str())
        .collect();
    assert_eq!(executors.len(), 2, "another one has it: {record}");
    let cancelled = service.request("DELETE", &format!("/v1/jobs/{long}"), &[], "").json();
    assert_eq!(outcomes(&cancelled), ["executor_lost", "cancelled"]);
}

/// What a service cuts off when it stops is given back, and what a web process had given out when it was killed is lost with it;
/// neither counts. On Redis, and in memory with a journal.
fn assert_not_counted(start: Start) {
    let service = start(&["runtime.platform.lifecycle.graceful_timeout_ms=0"]);
    let id = service.submit("/v1/jobs/sleep", &[], HOUR);
    service.record_when(&id, "running");
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(4), "work was cut off: {}", ended.stderr);
    let service = start(&[]);
    let record = attempts_of(&service, &id, 2);
    assert_eq!(outcomes(&record), [json!("given_back"), Value::Null]);
    assert_eq!(record["deliveries"], 1, "{record}");
    kill(service.child("web"));
    let at = service.address;
    until("a successor answers", PATIENCE, || {
        let mut client = service::Client::try_to(at).ok()?;
        client.send(request("GET", "/readyz", &[], ""));
        client.try_read(PATIENCE).ok().filter(|answer| answer.status == 200)
    });
    let record = attempts_of(&service, &id, 3);
    assert_eq!(outcomes(&record), [json!("given_back"), json!("executor_lost"), Value::Null]);
    assert_eq!(record["deliveries"], 1, "{record}");
}

#[test]
fn what_is_cut_off_does_not_count_says_the_journal() {
    let folder = Folder::new();
    let journal =
        format!(r#"runtime.platform.queue.journal={{"dir":"{}"}}"#, folder.path("journal").display());
    assert_not_counted(&|sets| {
        // Where it is found again.
        let at = format!("web.bind={}", service::free_address());
        Service::start(&[sets, &[&journal, &at]].concat())
    });
}

#[cfg(feature = "redis")]
#[test]
fn what_is_cut_off_does_not_count_says_redis() {
    let server = redis_server::Server::start(&[]);
    let deployment = redis_server::Deployment::on(&server);
    assert_not_counted(&|sets| deployment.serve(sets));
}

// ---- lists ----

/// The ids of a list, as they are listed.
#[track_caller]
fn listed(service: &Service, query: &str) -> Vec<String> {
    let answer = service.get(&format!("/v1/jobs?{query}"));
    assert_eq!(answer.status, 200, "{query}: {answer:?}");
    let page = answer.json();
    let ids = page["jobs"].as_array().expect("a list").iter();
    ids.map(|job| job["id"].as_str().expect("an id").to_owned()).collect()
}

/// Every byte of a value as an escape.
fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

fn a_list_is_by_key_trace_and_time(start: Start) {
    let service = start(&[&handlers(&json!({}))]);
    assert_eq!(service.post("/v1/handlers/kept/pause", "").status, 200);
    let keys = ["plain", "a b/ü&=%+?#", "x%20y", ""];
    let trace = |number: usize| format!("{:032x}", 0xabc0 + number);
    let mut ids = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        let header = format!("traceparent: 00-{}-00f067aa0ba902b7-01", trace(number));
        let body = json!({"k": key}).to_string();
        ids.push(service.submit("/v1/jobs/kept", &[JSON, &header], body));
    }
    for (number, (key, id)) in keys.iter().zip(&ids).enumerate() {
        assert_eq!(listed(&service, &format!("key={}", escaped(key))), [&**id], "{key:?}");
        assert_eq!(listed(&service, &format!("key={}&handler=kept&status=queued", escaped(key))), [&**id]);
        assert_eq!(listed(&service, &format!("trace={}", trace(number))), [&**id]);
        assert_eq!(listed(&service, &format!("trace={}", escaped(&trace(number)))), [&**id]);
        assert_eq!(service.record(id)["trace_id"], trace(number));
    }
    assert_eq!(listed(&service, "key=plain"), [&*ids[0]]);
    assert_eq!(listed(&service, "key=x%2520y"), [&*ids[2]]);
    for none in ["key=x%20y", "key=PLAIN", "key=plain&handler=echo", "key=plain&status=dead", "handler=%6Bep"]
    {
        assert!(listed(&service, none).is_empty(), "{none}");
    }
    let all: Vec<&String> = ids.iter().rev().collect();
    assert_eq!(listed(&service, "handler=%6Bept&status=%71ueued").iter().collect::<Vec<_>>(), all);
    // Before a time: not at it. What is told has whole milliseconds, so a later job must have another one.
    let time_of = |id: &str| service.record(id)["submitted_at"].as_str().expect("a time").to_owned();
    let newest = time_of(&ids[3]);
    let (later, at) = until("a job has a later time", PATIENCE, || {
        let id = service.submit("/v1/jobs/kept", &[JSON], r#"{"k":"later"}"#);
        let at = time_of(&id);
        (at > newest).then_some((id, at))
    });
    let before = listed(&service, &format!("before={at}&limit=1000"));
    assert!(!before.contains(&later) && ids.iter().all(|id| before.contains(id)), "{before:?}");
    assert_eq!(listed(&service, &format!("before={}", escaped(&at))), before);
    assert!(
        listed(&service, &format!("before={}", time_of(&ids[0]))).is_empty(),
        "nothing was before the first"
    );
    assert_eq!(listed(&service, &format!("before={at}&key=plain")), [&*ids[0]]);
    // Pages of a filtered list are of it alone.
    let (mut paged, mut after) = (Vec::new(), String::new());
    loop {
        let page = service.get(&format!("/v1/jobs?before={at}&limit=2&after={after}")).json();
        let jobs = page["jobs"].as_array().expect("a list");
        paged.extend(jobs.iter().map(|job| job["id"].as_str().expect("an id").to_owned()));
        assert!(jobs.iter().all(|job| job.get("result").is_none()), "{page}");
        match page["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(paged, before);
}

fn a_list_refuses_what_is_no_value(start: Start) {
    let service = start(&[]);
    for query in [
        "key=%ff",
        "key=%zz",
        "key=%4",
        "key=%",
        "handler=%c3%28",
        "trace=abc",
        "trace=",
        "trace=0123456789ABCDEF0123456789ABCDEF",
        "before=yesterday",
        "before=",
        "before=2026-01-31",
        "before=2026-01-31T09:00:00%2B01:00",
        "before=2026-13-31T09:00:00Z",
        "status=lost",
        "status=",
        "limit=0",
        "limit=1001",
        "limit=%2D1",
        "after=1",
        "after=1-xyz",
        "key=a&key=b",
        "trace_id=0123456789abcdef0123456789abcdef",
    ] {
        assert_refused(&service.get(&format!("/v1/jobs?{query}")), 400, "bad_request");
    }
    assert!(listed(&service, "key=nobody&trace=0123456789abcdef0123456789abcdef&after=").is_empty());
}

// ---- lanes ----

#[track_caller]
fn lanes(service: &Service, handler: &str) -> Vec<Value> {
    let answer = service.get(&format!("/v1/lanes/{handler}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    let page = answer.json();
    assert_eq!((&page["handler"], &page["more"]), (&json!(handler), &json!(false)), "{page}");
    let lanes = page["lanes"].as_array().expect("lanes").clone();
    for lane in &lanes {
        assert!(lane["oldest_seconds"].as_f64().is_some_and(|age| (0.0..3_600.0).contains(&age)), "{lane}");
        let has_time = matches!(lane["reason"].as_str(), Some("backoff" | "delay"));
        assert_eq!(lane["until"].is_string(), has_time, "{lane}");
    }
    lanes
}

/// Head, key, length and reason of a handler's only lane, once it has this reason.
#[track_caller]
fn only_lane(service: &Service, handler: &str, reason: &str) -> (String, Value, u64) {
    let lane =
        until(
            &format!("the lane of {handler} is {reason}"),
            PATIENCE,
            || match &lanes(service, handler)[..] {
                [lane] if lane["reason"] == reason => Some(lane.clone()),
                [] | [_] => None,
                more => panic!("{more:?}"),
            },
        );
    let head = lane["head"].as_str().expect("an id").to_owned();
    (head, lane["ordering_key"].clone(), lane["length"].as_u64().expect("a number"))
}

fn each_lane_says_why_it_waits(start: Start) {
    let park = json!({
        "kept": {},
        "parks": {"command": ["sh", "-c", "exit 75"], "ordering": "serial", "on_dead": "park", "max_deliveries": 1},
        "backs": {"command": ["sh", "-c", "exit 75"], "ordering": "serial", "retry": {"base_ms": 4_000_000_000_u64, "max_ms": 4_000_000_000_u64}},
        "late": {"command": ["cat"], "ordering": {"key": "/k"}},
        "held": {"command": ["cat"], "ordering": {"key": "/k"}},
    });
    let service = start(&[&handlers(&park)]);
    let submit = |target: &str, key: &str| {
        service.submit(&format!("/v1/jobs/{target}"), &[JSON], json!({"k": key}).to_string())
    };
    assert_refused(&service.get("/v1/lanes/nobody"), 404, "unknown_handler");
    assert!(lanes(&service, "kept").is_empty());
    // A head that runs is no matter, unless others wait behind it.
    let first = submit("kept", "a");
    service.record_when(&first, "running");
    assert!(lanes(&service, "kept").is_empty());
    let second = submit("kept", "a");
    assert_eq!(only_lane(&service, "kept", "running"), (first.clone(), json!("a"), 2));
    assert_eq!(service.record(&second)["waiting_for"], json!({"reason": "lane", "head": first}));
    assert_eq!(service.post("/v1/handlers/held/pause", "").status, 200);
    let held = [submit("held", "x"), submit("held", "x")];
    assert_eq!(only_lane(&service, "held", "paused"), (held[0].clone(), json!("x"), 2));
    let other = submit("held", "y");
    let both = lanes(&service, "held");
    let heads: Vec<&Value> = both.iter().map(|lane| &lane["head"]).collect();
    assert_eq!(heads, [&json!(held[0]), &json!(other)], "the one that has waited longest first");
    let late = [submit("late?delay_ms=600000", "z"), submit("late", "z")];
    assert_eq!(only_lane(&service, "late", "delay"), (late[0].clone(), json!("z"), 2));
    let back = submit("backs", "");
    assert_eq!(only_lane(&service, "backs", "backoff"), (back.clone(), Value::Null, 1));
    assert_eq!(service.record(&back)["waiting_for"]["reason"], "backoff");
    // A dead head holds its lane until it is cancelled.
    let dead = submit("parks", "");
    service.record_when(&dead, "dead");
    assert_eq!(only_lane(&service, "parks", "parked"), (dead.clone(), Value::Null, 1));
    let behind = submit("parks", "");
    assert_eq!(only_lane(&service, "parks", "parked"), (dead.clone(), Value::Null, 2));
    assert_eq!(service.request("DELETE", &format!("/v1/jobs/{dead}"), &[], "").status, 200);
    service.record_when(&behind, "dead");
    assert_eq!(only_lane(&service, "parks", "parked"), (behind, Value::Null, 1));
}

fn lanes_beyond_a_hundred_are_more(start: Start) {
    let one_worker = r#"runtime.platform.process_groups=[{"name":"execution","workers":1}]"#;
    let service = start(&[&handlers(&json!({})), one_worker]);
    let submit =
        |key: usize| service.submit("/v1/jobs/kept", &[JSON], json!({"k": key.to_string()}).to_string());
    let running = submit(0);
    service.record_when(&running, "running");
    let waits: Vec<String> = (1..=100).map(submit).collect();
    let shown = until("all wait for a worker", PATIENCE, || {
        let all = lanes(&service, "kept");
        all.iter().all(|lane| lane["reason"] == "workers").then_some(all)
    });
    let heads: Vec<&str> = shown.iter().filter_map(|lane| lane["head"].as_str()).collect();
    assert_eq!(heads, waits.iter().map(String::as_str).collect::<Vec<_>>(), "each once, in their order");
    submit(101);
    let page = service.get("/v1/lanes/kept").json();
    assert_eq!((&page["more"], page["lanes"].as_array().map(Vec::len)), (&json!(true), Some(100)));
    let stats = service.get("/v1/stats").json();
    let handlers = stats["handlers"].as_array().expect("handlers");
    let kept = handlers.iter().find(|handler| handler["name"] == "kept").expect("it is there");
    assert_eq!(
        (&kept["queued"], &kept["running"], &kept["lanes"]),
        (&json!(101), &json!(1), &json!(102)),
        "{kept}"
    );
}

// ---- bulk ----

/// What a bulk request has done; asked again while there is more, as a slow service may say.
#[track_caller]
fn bulk(service: &Service, what: &str, body: &Value) -> (u64, u64, u64) {
    let deadline = Instant::now() + 4 * PATIENCE;
    let (mut first, mut done, mut refused) = (None, 0, 0);
    loop {
        let answer = service.post(&format!("/v1/jobs/{what}"), body.to_string());
        assert_eq!(answer.status, 200, "{what} {body}: {answer:?}");
        let said = answer.json();
        let [matched, did, not] =
            ["matched", "done", "refused"].map(|name| said[name].as_u64().expect("a number"));
        assert_eq!(said["dry_run"].as_bool(), Some(body["dry_run"] == true), "{said}");
        first.get_or_insert(matched);
        (done, refused) = (done + did, refused + not);
        if said["more"] == false {
            return (first.unwrap_or(0), done, refused);
        }
        assert!(Instant::now() < deadline, "it has never done all: {said}");
    }
}

/// Submits many on one connection; their ids.
#[track_caller]
fn submit_many(service: &Service, target: &str, count: usize) -> Vec<String> {
    let mut client = service.connect();
    let one = request("POST", target, &["Prefer: respond-async"], "1");
    let mut ids = Vec::new();
    for part in (0..count).collect::<Vec<_>>().chunks(100) {
        client.send(one.repeat(part.len()));
        ids.extend(part.iter().map(|_| {
            let answer = client.read();
            assert_eq!(answer.status, 202, "{answer:?}");
            answer.json()["id"].as_str().expect("an id").to_owned()
        }));
    }
    ids
}

fn count(service: &Service, status: &str) -> usize {
    let (mut count, mut after) = (0, String::new());
    loop {
        let page = service.get(&format!("/v1/jobs?limit=1000&status={status}&after={after}")).json();
        count += page["jobs"].as_array().expect("a list").len();
        match page["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => return count,
        }
    }
}

fn jobs_are_retried_and_cancelled_in_bulk(start: Start) {
    const MANY: usize = 2_500;
    let service = start(&[&handlers(&json!({"again": {"max_deliveries": 1}}))]);
    // Each end that can be retried, and one that cannot.
    let [no, again, echo, long] = [("no", "1"), ("again", "1"), ("echo", "1"), ("sleep", HOUR)]
        .map(|(name, body)| service.submit(&format!("/v1/jobs/{name}"), &[], body));
    for (id, status) in [(&no, "failed"), (&again, "dead"), (&echo, "succeeded"), (&long, "running")] {
        service.record_when(id, status);
    }
    for name in ["echo", "kept", "no", "again"] {
        assert_eq!(service.post(&format!("/v1/handlers/{name}/pause"), "").status, 200);
    }
    let keyed = service.submit("/v1/jobs/kept", &[JSON], r#"{"k":"a b"}"#);
    let many = submit_many(&service, "/v1/jobs/echo", MANY);
    let (many_u64, queued) = (MANY as u64, MANY + 1);
    // Counted first, and nothing changes by it.
    assert_eq!(bulk(&service, "cancel", &json!({"handler": "echo", "dry_run": true})), (many_u64, 0, 0));
    assert_eq!(bulk(&service, "cancel", &json!({"status": "queued", "dry_run": true})), (many_u64 + 1, 0, 0));
    assert_eq!(bulk(&service, "cancel", &json!({"key": "a b", "dry_run": true})), (1, 0, 0));
    assert_eq!(
        bulk(&service, "cancel", &json!({"before": "1999-01-01T00:00:00Z", "dry_run": true})),
        (0, 0, 0)
    );
    assert_eq!(
        bulk(&service, "retry", &json!({"before": "2999-01-01T00:00:00Z", "dry_run": true})),
        (2, 0, 0)
    );
    assert_eq!((count(&service, "queued"), count(&service, "cancelled")), (queued, 0));
    // Each filter alone, and together.
    assert_eq!(bulk(&service, "cancel", &json!({"key": "a b", "handler": "echo"})), (0, 0, 0));
    assert_eq!(bulk(&service, "cancel", &json!({"key": "a b"})), (1, 1, 0));
    assert_eq!(service.record(&keyed)["status"], "cancelled");
    assert_eq!(bulk(&service, "cancel", &json!({"status": "running"})), (1, 1, 0));
    assert_eq!(outcomes(&service.record(&long)), ["cancelled"]);
    assert_eq!(
        bulk(&service, "cancel", &json!({"handler": "echo", "status": null})),
        (many_u64, many_u64, 0)
    );
    assert_eq!((count(&service, "queued"), count(&service, "cancelled")), (0, queued + 1));
    assert_eq!(bulk(&service, "cancel", &json!({"handler": "echo"})), (0, 0, 0), "they have ended");
    // Retried: the others wait, as their handlers are paused.
    assert_eq!(bulk(&service, "retry", &json!({"status": "failed"})), (1, 1, 0));
    assert_eq!(service.record(&no)["status"], "queued");
    assert_eq!(bulk(&service, "retry", &json!({"handler": "again"})), (1, 1, 0));
    assert_eq!(
        bulk(&service, "retry", &json!({"handler": "echo"})),
        (many_u64, many_u64, 0),
        "not what has succeeded"
    );
    assert_eq!(count(&service, "queued"), MANY + 2);
    assert_eq!(service.record(&echo)["status"], "succeeded");
    // They go on in the order in which they came.
    let shown = service.get("/v1/lanes/echo").json();
    let heads: Vec<&str> =
        shown["lanes"].as_array().expect("lanes").iter().filter_map(|lane| lane["head"].as_str()).collect();
    assert_eq!(heads, many[..heads.len()].iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(service.post("/v1/handlers/echo/resume", "").status, 200);
    until("all have run", 4 * PATIENCE, || (count(&service, "succeeded") > MANY).then_some(()));
}

fn a_bulk_request_that_is_not_understood_is_refused(start: Start) {
    let service = start(&[]);
    let waits = service.submit("/v1/jobs/echo?delay_ms=600000", &[], "1");
    for what in ["retry", "cancel"] {
        let target = format!("/v1/jobs/{what}");
        let others = if what == "retry" { ["queued", "running"] } else { ["failed", "dead"] };
        let mut bodies: Vec<String> = [&others[..], &["succeeded", "lost", ""]]
            .concat()
            .iter()
            .map(|status| json!({ "status": status }).to_string())
            .collect();
        bodies.extend(
            [
                "",
                "{",
                "[]",
                "null",
                "{}",
                r#"{"dry_run":true}"#,
                r#"{"status":null,"key":null}"#,
                r#"{"handler":"echo","limit":1}"#,
                r#"{"handler":"echo","dryrun":true}"#,
                r#"{"handler":"echo","dry_run":"true"}"#,
                r#"{"handler":"echo","dry_run":null}"#,
                r#"{"handler":7}"#,
                r#"[null,"echo",null,null,true]"#,
                r#"{"handler":"echo","handler":"sleep"}"#,
                r#"{"handler":"echo"} {}"#,
                r#"{"before":"yesterday"}"#,
                "\u{0}",
            ]
            .map(String::from),
        );
        for body in bodies {
            assert_refused(&service.post(&target, &body), 400, "bad_request");
        }
        assert_refused(&service.request("POST", &target, &[], b"{\"handler\":\"\xff\"}"), 400, "bad_request");
        // No more than asks for something: with a length, and in chunks.
        let long = json!({ "handler": "echo", "key": "x".repeat(4 << 10) }).to_string();
        assert_refused(&service.post(&target, &long), 413, "payload_too_large");
        let mut client = service.connect();
        client.send(format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
            long.len()
        ));
        assert_refused(&client.read(), 413, "payload_too_large");
        assert_refused(&service.post(&format!("{target}?dry_run=true"), "{}"), 400, "bad_request");
        assert_refused(&service.get(&target), 405, "method_not_allowed");
    }
    assert_eq!(service.record(&waits)["status"], "queued", "nothing was done by any of it");
}

fn bulk_is_for_an_admin(start: Start) {
    let [ann, root] =
        [("ann", "submit,read"), ("root", "admin")].map(|(name, scopes)| Token::new(name, scopes));
    let file = TokenFile::new(&[&ann.line, &root.line]);
    let [mode, path] = file.sets();
    let service = start(&[&mode, &path]);
    let id = ann.submit(&service, "/v1/jobs/echo?delay_ms=600000", &[], "1");
    for what in ["cancel", "retry"] {
        let ask = |token: &Token| {
            token.ask(&service, "POST", &format!("/v1/jobs/{what}"), &[], r#"{"handler":"echo"}"#)
        };
        assert_refused(&ask(&ann), 403, "forbidden");
        let status =
            |word: &str| assert_eq!(ann.get(&service, &format!("/v1/jobs/{id}")).json()["status"], word);
        status(if what == "cancel" { "queued" } else { "cancelled" });
        let answer = ask(&root);
        assert_eq!((answer.status, &answer.json()["done"]), (200, &json!(1)), "{answer:?}");
    }
    assert_refused(&service.post("/v1/jobs/cancel", r#"{"handler":"echo"}"#), 401, "unauthorized");
}

#[test]
fn a_handler_is_not_named_as_what_is_done_in_bulk() {
    for name in ["retry", "cancel"] {
        let set = format!(r#"handlers.{name}={{"command":["cat"]}}"#);
        let output = wait(Service::spawn(&cofferdam(), &[&set]));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(name) && said.contains("and not retry or cancel"), "{said}");
    }
}

// ---- events ----

/// Who listens: the head of the answer, and its events as they come.
struct Listener {
    stream: TcpStream,
    head: String,
    is_chunked: bool,
    input: Vec<u8>,
    text: Vec<u8>,
    events: VecDeque<(String, Value)>,
    /// The last chunk was read, or, of HTTP/1.0, the end of the connection.
    has_ended: bool,
}

impl Listener {
    fn of(service: &Service) -> Listener {
        Listener::asking(service, "HTTP/1.1", "")
    }

    #[track_caller]
    fn asking(service: &Service, version: &str, header: &str) -> Listener {
        let mut stream = service.connect().stream;
        let lines = [format!("GET /v1/events {version}"), "Host: localhost".into(), header.into()];
        let lines: Vec<&str> = lines.iter().map(String::as_str).filter(|line| !line.is_empty()).collect();
        write!(stream, "{}\r\n\r\n", lines.join("\r\n")).expect("the service is there");
        let mut listener = Listener {
            stream,
            head: String::new(),
            is_chunked: false,
            input: Vec::new(),
            text: Vec::new(),
            events: VecDeque::new(),
            has_ended: false,
        };
        let deadline = Instant::now() + PATIENCE;
        let end = loop {
            if let Some(at) = listener.input.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(listener.read(deadline), "it ends inside its head: {:?}", listener.input);
        };
        listener.head =
            String::from_utf8(listener.input.drain(..end).collect()).expect("text").to_lowercase();
        listener.is_chunked = listener.head.contains("\r\ntransfer-encoding: chunked\r\n");
        listener
    }

    /// The status of its answer.
    fn status(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// More bytes; false at the connection's end.
    #[track_caller]
    fn read(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(left)).expect("a TCP socket");
        let mut part = [0; 65_536];
        let read = service::read(&mut self.stream, &mut part)
            .unwrap_or_else(|error| panic!("nothing comes: {error}"));
        self.input.extend_from_slice(&part[..read]);
        read > 0
    }

    /// Takes what has come out of its chunks, and the events out of that.
    fn take_in(&mut self) {
        if self.is_chunked {
            while let Some(at) = self.input.windows(2).position(|window| window == b"\r\n") {
                let size = std::str::from_utf8(&self.input[..at]).expect("a size is ASCII");
                let size = usize::from_str_radix(size, 16).expect("a size is hexadecimal");
                if self.input.len() < at + 2 + size + 2 {
                    break;
                }
                let chunk: Vec<u8> = self.input.drain(..at + 2 + size + 2).collect();
                assert!(chunk.ends_with(b"\r\n"), "a chunk ends with CR LF");
                self.text.extend_from_slice(&chunk[at + 2..at + 2 + size]);
                self.has_ended = size == 0;
            }
        } else {
            self.text.append(&mut self.input);
        }
        while let Some(at) = self.text.windows(2).position(|window| window == b"\n\n") {
            let event: Vec<u8> = self.text.drain(..at + 2).collect();
            let event = String::from_utf8(event).expect("an event is UTF-8");
            let lines: Vec<&str> = event.trim_end().split('\n').collect();
            let [name, data] = lines[..] else { panic!("{event:?} is not two lines") };
            let name = name.strip_prefix("event: ").unwrap_or_else(|| panic!("{event:?}"));
            let data = data.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}"));
            let data = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {event:?}"));
            self.events.push_back((name.to_owned(), data));
        }
    }

    /// The next event, which must come.
    #[track_caller]
    fn next(&mut self) -> (String, Value) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            assert!(self.read(deadline), "it ends: {:?}", self.text);
            self.take_in();
        }
    }

    /// The next event of this name.
    #[track_caller]
    fn next_of(&mut self, name: &str) -> Value {
        until(name, PATIENCE, || Some(self.next()).filter(|(known, _)| known == name)).1
    }

    /// Reads until this is seen in all `ended` and `lost` so far: the jobs, and how many events were lost.
    #[track_caller]
    fn ends_until(&mut self, mut is_enough: impl FnMut(&[Value], u64) -> bool) -> (Vec<Value>, u64) {
        let (mut ended, mut lost) = (Vec::new(), 0);
        until("the ends are told", 2 * PATIENCE, || {
            let (name, data) = self.next();
            match name.as_str() {
                "ended" => ended.extend(data.as_array().expect("a list").iter().cloned()),
                "lost" => lost += data["events"].as_u64().expect("a number"),
                _ => {}
            }
            is_enough(&ended, lost).then_some(())
        });
        (ended, lost)
    }

    /// Reads to the end of the connection.
    #[track_caller]
    fn read_to_end(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.read(deadline) {}
        self.take_in();
    }
}

fn ids(ended: &[Value]) -> BTreeSet<&str> {
    ended.iter().map(|job| job["id"].as_str().expect("an id")).collect()
}

fn a_listener_is_told_the_past_the_figures_and_each_end(start: Start) {
    let service = start(&[&handlers(&json!({}))]);
    let begun = Instant::now();
    let mut listener = Listener::of(&service);
    assert_eq!(listener.status(), "200");
    for line in ["content-type: text/event-stream", "cache-control: no-store", "transfer-encoding: chunked"] {
        assert!(listener.head.contains(&format!("\r\n{line}\r\n")), "{}", listener.head);
    }
    let (name, history) = listener.next();
    assert_eq!((&*name, &history["interval_seconds"]), ("history", &json!(5)), "{history}");
    assert!(history["samples"].is_array(), "{history}");
    // The figures are those of the page, without who asks; and they come again and again.
    let figures = listener.next_of("figures");
    let stats = service.get("/v1/stats").json();
    let names = |of: &Value| of.as_object().expect("an object").keys().cloned().collect::<BTreeSet<_>>();
    let mut expected = names(&stats);
    assert!(expected.remove("viewer"));
    assert_eq!(names(&figures), expected);
    (0..3).for_each(|_| drop(listener.next_of("figures")));
    assert!(begun.elapsed() > Duration::from_secs(2), "four of them, a second apart: {:?}", begun.elapsed());
    // Ends of each kind, with what a list would say of them.
    let [echo, no, long] = [("echo", "1"), ("no", "1"), ("sleep", HOUR)]
        .map(|(name, body)| service.submit(&format!("/v1/jobs/{name}"), &[], body));
    service.record_when(&long, "running");
    let late = service.submit("/v1/jobs/echo?delay_ms=600000", &[], "1");
    for id in [&long, &late] {
        assert_eq!(service.request("DELETE", &format!("/v1/jobs/{id}"), &[], "").status, 200);
    }
    let (ended, lost) = listener.ends_until(|ended, _| ended.len() >= 4);
    assert_eq!((ended.len(), lost), (4, 0), "{ended:?}");
    assert_eq!(ids(&ended), [&echo, &no, &long, &late].map(|id| &**id).into());
    for job in &ended {
        let record = service.record(job["id"].as_str().expect("an id"));
        for field in ["handler", "status"] {
            assert_eq!(job[field], record[field], "{field}: {job} {record}");
        }
        // On Redis it is when this process heard of it.
        let [told, recorded] = [job, &record].map(|of| of["finished_at"].as_str().map(str::to_owned));
        assert!(told.is_some() && told >= recorded, "{job} {record}");
        assert_eq!(names(job).len(), 4, "{job}");
    }
    // A sample of more comes, and whoever listens later is told that first.
    let sample = until("a sample has jobs in it", PATIENCE, || {
        service.submit("/v1/jobs/echo", &[], "1");
        Some(listener.next_of("sample")).filter(|sample| sample["submitted"].as_u64() > Some(0))
    });
    for name in
        ["at", "submitted", "succeeded", "failed", "queued", "running", "oldest_seconds", "p50", "p99"]
    {
        assert!(sample.get(name).is_some(), "{name}: {sample}");
    }
    let (name, history) = Listener::of(&service).next();
    assert_eq!(name, "history");
    assert!(
        history["samples"].as_array().is_some_and(|samples| samples.contains(&sample)),
        "{sample} in {history}"
    );
}

fn a_listener_is_told_of_jobs_that_its_token_may_see(start: Start) {
    let [ann, bob] = ["ann", "bob"].map(|name| Token::new(name, "submit,read"));
    let root = Token::new("root", "admin");
    let file = TokenFile::new(&[&ann.line, &bob.line, &root.line]);
    let [mode, path] = file.sets();
    let service = start(&[&mode, &path]);
    let mut listeners = [&ann, &bob, &root].map(|token| {
        let mut listener = Listener::asking(&service, "HTTP/1.1", &token.header());
        listener.next_of("figures");
        listener
    });
    let run = |token: &Token| {
        let answer = token.ask(&service, "POST", "/v1/jobs/echo", &[], "1");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.header("cofferdam-job-id").expect("an id").to_owned()
    };
    // Alternating, so that the last one of each comes behind all of the others.
    let (mut anns, mut bobs) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        bobs.push(run(&bob));
        anns.push(run(&ann));
    }
    bobs.push(run(&bob));
    for (listener, own) in listeners[..2].iter_mut().zip([&anns, &bobs]) {
        let (ended, lost) = listener.ends_until(|ended, _| ended.len() >= own.len());
        assert_eq!((ids(&ended), lost), (own.iter().map(String::as_str).collect(), 0));
    }
    let all = anns.len() + bobs.len();
    let (ended, _) = listeners[2].ends_until(|ended, _| ended.len() >= all);
    assert_eq!(ids(&ended), anns.iter().chain(&bobs).map(String::as_str).collect());
    assert_refused(&service.get("/v1/events"), 401, "unauthorized");
    // A name has a quarter of all places; and whose token has gone hears nothing more.
    let _three = [(); 3].map(|()| Listener::asking(&service, "HTTP/1.1", &ann.header()));
    assert_eq!(Listener::asking(&service, "HTTP/1.1", &ann.header()).status(), "503");
    assert_eq!(Listener::asking(&service, "HTTP/1.1", &bob.header()).status(), "200");
    file.write(&[&bob.line, &root.line]);
    signal(service.pid, Signal::HUP);
    for listener in &mut listeners {
        listener.read_to_end();
        assert!(listener.has_ended, "all are to say again who they are");
    }
    assert_eq!(Listener::asking(&service, "HTTP/1.1", &ann.header()).status(), "401");
    assert_eq!(Listener::asking(&service, "HTTP/1.1", &root.header()).status(), "200");
}

fn more_ends_than_are_kept_are_told_as_lost(start: Start) {
    const JOBS: usize = 3_000;
    let service = start(&[]);
    let mut listener = Listener::of(&service);
    listener.next_of("figures");
    // It reads nothing while they end.
    assert_eq!(service.post("/v1/handlers/echo/pause", "").status, 200);
    let sent: BTreeSet<String> = submit_many(&service, "/v1/jobs/echo", JOBS).into_iter().collect();
    // All of them end in bulk: faster than a second's worth is kept.
    assert_eq!(bulk(&service, "cancel", &json!({"handler": "echo"})), (JOBS as u64, JOBS as u64, 0));
    let (ended, lost) = listener.ends_until(|ended, lost| ended.len() as u64 + lost >= JOBS as u64);
    assert_eq!(ended.len() as u64 + lost, JOBS as u64, "each is told or counted");
    assert!(lost > 0, "{} were told", ended.len());
    let told = ids(&ended);
    assert_eq!(told.len(), ended.len(), "none twice");
    assert!(told.iter().all(|id| sent.contains(*id)));
    // Afterwards all is well.
    assert_eq!(service.post("/v1/handlers/echo/resume", "").status, 200);
    let id = service.submit("/v1/jobs/echo", &[], "1");
    let (ended, lost) = listener.ends_until(|ended, _| !ended.is_empty());
    assert_eq!((ids(&ended), lost), ([&*id].into(), 0));
}

/// What waits in the kernel for the listener to read it, as the service's end has it.
fn unread(service: &Service, listener: &Listener) -> u64 {
    let port = |port: u16| format!(":{port:04X}");
    let own = listener.stream.local_addr().expect("a TCP socket").port();
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux says");
    let queue = table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, _, queues, ..] = words[..] else { return None };
        let is_it = local.ends_with(&port(service.address.port())) && remote.ends_with(&port(own));
        is_it.then(|| u64::from_str_radix(queues.split(':').next()?, 16).ok()).flatten()
    });
    queue.expect("the connection is there")
}

#[test]
fn who_reads_nothing_is_told_how_much_it_has_missed() {
    // Many handlers, so that the figures of a few seconds fill what the kernel holds.
    let mut many = json!({});
    for number in 0..900 {
        many[format!("{number:0>64}")] = json!({"command": ["true"]});
    }
    let patient = r#"web.limits={"write_timeout_ms":600000}"#;
    let service = Service::start(&[&format!("handlers={many}"), patient]);
    let mut listener = Listener::of(&service);
    let mut seen = (0, Instant::now());
    until("the kernel takes no more", 4 * PATIENCE, || {
        let now = unread(&service, &listener);
        if now != seen.0 {
            seen = (now, Instant::now());
        }
        (now > 0 && seen.1.elapsed() > Duration::from_secs(4)).then_some(())
    });
    let missed: BTreeSet<String> = submit_many(&service, "/v1/jobs/echo", 10).into_iter().collect();
    missed.iter().for_each(|id| drop(service.record_when(id, "succeeded")));
    let mut others = Listener::of(&service);
    // These have ended, and whoever has come since is told the next figures: so the slow one was passed over.
    (0..3).for_each(|_| drop(others.next_of("figures")));
    let (ended, lost) = listener.ends_until(|_, lost| lost > 0);
    assert!(ended.is_empty(), "{ended:?}");
    // The jobs, and the seconds without figures.
    assert!(lost > missed.len() as u64, "{lost}");
    // From now on it hears all again.
    let id = service.submit("/v1/jobs/echo", &[], "1");
    let (ended, _) = listener.ends_until(|ended, _| !ended.is_empty());
    assert_eq!(ids(&ended), [&*id].into());
}

fn there_are_sixteen_listeners_and_one_that_closes_makes_room(start: Start) {
    let service = start(&[]);
    let descriptors = || holdings(service.child("web")).0;
    assert_eq!(service.get("/v1/stats").status, 200);
    let before = descriptors();
    let mut all: Vec<Listener> = (0..16).map(|_| Listener::of(&service)).collect();
    assert!(all.iter().all(|listener| listener.status() == "200"));
    let refused = service.get("/v1/events");
    assert_refused(&refused, 503, "overloaded");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    // The other pages are as they were, and HEAD is answered as GET is.
    assert_eq!(service.get("/v1/stats").status, 200);
    let mut client = service.connect();
    assert_eq!(client.request("HEAD", "/v1/events", &[], "").status, 503);
    // One that closes makes room for one more, and HEAD takes no place.
    drop(all.pop());
    until("HEAD finds room", PATIENCE, || {
        (client.request("HEAD", "/v1/events", &[], "").status == 200).then_some(())
    });
    for _ in 0..3 {
        let head = client.request("HEAD", "/v1/events", &[], "");
        assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")), "{head:?}");
    }
    assert_eq!(client.request("GET", "/livez", &[], "").status, 200, "the connection goes on");
    drop(client);
    let mut next = until("there is room again", PATIENCE, || {
        Some(Listener::of(&service)).filter(|listener| listener.status() == "200")
    });
    assert_eq!(next.next().0, "history");
    all.iter_mut().for_each(|listener| drop(listener.next_of("figures")));
    drop((all, next));
    // To HTTP/1.0 it has no chunks, and ends with the connection.
    let mut old = until("there is room again", PATIENCE, || {
        Some(Listener::asking(&service, "HTTP/1.0", "")).filter(|listener| listener.status() == "200")
    });
    assert!(!old.is_chunked && !old.head.contains("content-length"), "{}", old.head);
    old.take_in();
    assert_eq!(old.next().0, "history");
    old.next_of("figures");
    drop(old);
    until("no descriptor is left", PATIENCE, || (descriptors() <= before + KEPT_CONNECTIONS).then_some(()));
}

fn a_drain_ends_the_stream_properly_and_waits_for_no_listener(start: Start) {
    // Were they waited for, it would take this long.
    let service = start(&["runtime.platform.lifecycle.graceful_timeout_ms=600000"]);
    let mut listeners = [Listener::of(&service), Listener::of(&service)];
    let mut old = Listener::asking(&service, "HTTP/1.0", "");
    listeners.iter_mut().for_each(|listener| drop(listener.next_of("figures")));
    // This one does not even read.
    let silent = Listener::of(&service);
    service.terminate();
    for listener in &mut listeners {
        listener.read_to_end();
        assert!(listener.has_ended && listener.text.is_empty(), "with the last chunk, between two events");
    }
    old.read_to_end();
    assert!(old.text.is_empty(), "between two events");
    drop(silent);
    let ended = service.ended();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
}
