//! What a handler process may try that somebody has taken over: it has its group's secret, and it says what it likes. Each
//! test is named after its row.
//!
//! It guards everybody else: the other group's callers are answered meanwhile, the web process holds no more memory than is
//! stated, and each attempt ends by name. The first group's own executor is busy with a `sleep`, so that its jobs are the
//! hostile peer's (`tests/peer/hostile.py`).

#[cfg(feature = "redis")]
#[path = "support/own_redis.rs"]
mod own_redis;
#[path = "support/peer.rs"]
mod peer;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use peer::{Known, Peer, succeeded};
use program::example;
use serde_json::{Value, json};
use service::{Answer, Client, Done, PATIENCE, Stopwatch, kill, until};

/// `flaky` and `sleep` are the hostile group's; all else is the other's.
const GROUPS: &str = r#"runtime.platform.process_groups=[{"name":"main","workers":1,"handlers":["sleep","flaky"],"follow_ups":["*"]},{"name":"other","workers":2,"handlers":["*"]}]"#;
const OWN: [&str; 4] = [
    GROUPS,
    "handlers.sleep.timeout_ms=600000",
    "handlers.flaky.max_deliveries=3",
    r#"handlers.flaky.retry={"base_ms":1,"max_ms":2}"#,
];
const MIB: u64 = 1 << 20;
/// What a web process may hold beside what a row states: buffers, and what an allocator has not given back.
const SLACK: u64 = 48 * MIB;

fn start(more: &[&str]) -> Known {
    started(more).0
}

/// The same, and the id of the `sleep`.
fn started(more: &[&str]) -> (Known, String) {
    let known = Known::start(&example("embedder"), 2_000, &[&OWN[..], more].concat());
    let sleep = known.occupy();
    (known, sleep)
}

/// The most memory that the web process ever had.
fn peak(known: &Known) -> u64 {
    let pid = known.service.child("web");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1_024
}

/// The other group's callers are answered while this is done, nearly always within the bound, and never much later.
fn others_go_on<T>(known: &Known, bound: Duration, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    let (result, mut took) = std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let mut took = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let begun = Stopwatch::start();
                let answer = known.service.post("/v1/jobs/echo", "1");
                assert_eq!((answer.status, &*answer.text()), (200, "1"), "{answer:?}");
                took.push(begun.elapsed());
                std::thread::sleep(Duration::from_millis(5));
            }
            took
        });
        let _done = Done(&done);
        let result = work();
        done.store(true, Ordering::Relaxed);
        (result, caller.join().expect("every caller is answered"))
    });
    took.sort_unstable();
    let (most, worst) = (took[took.len() * 95 / 100], took[took.len() - 1]);
    println!("{} callers beside it: 95 % within {most:?}, all within {worst:?}", took.len());
    assert!(
        most <= bound && worst <= bound + Duration::from_secs(1),
        "95 % within {most:?}, all within {worst:?}"
    );
    result
}

/// A caller of the hostile group's handler, and the lease that the peer gets for it.
fn lease(known: &Known, peer: &mut Peer, headers: &[&str], body: &str) -> (Client, Value) {
    let caller = known.caller("/v1/jobs/flaky", headers, body);
    (caller, peer.take_run())
}

/// It is answered by this problem, once, in one frame.
fn failed(mut caller: Client, status: u16, code: &str) -> Answer {
    let answer = caller.read();
    assert_eq!((answer.status, &*answer.code()), (status, code), "{answer:?}");
    answer
}

/// From now on it answers every lease with this.
fn auto(peer: &mut Peer, mut outcome: Value) {
    outcome["do"] = "auto".into();
    peer.tell(outcome);
    while peer.next()["event"] != "auto" {}
}

fn count(known: &Known) -> String {
    let answer = known.service.post("/v1/jobs/count", "0");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text()
}

fn with_follow_ups(follow_ups: Value) -> Value {
    json!({"outcome": "succeeded", "result": "1", "follow_ups": follow_ups})
}

/// Rows E1: a lane of another group is not its to hold.
fn a_lane_of_another_group_goes_on(known: &Known) {
    let mut peer = known.hostile(&[]);
    assert_eq!(count(known), "1");
    for (handler, delay_ms) in [("count", u64::MAX), ("count", 7 * 24 * 3_600 * 1_000 + 1), ("nobody", 0)] {
        let (caller, lease) = lease(known, &mut peer, &[], "1");
        peer.answer(
            &lease,
            with_follow_ups(json!([{"handler": handler, "payload": "0", "delay_ms": delay_ms}])),
        );
        let answer = failed(caller, 422, "handler_failed");
        assert!(
            answer.json()["detail"].as_str().is_some_and(|detail| detail.contains("follow-up")),
            "{answer:?}"
        );
    }
    assert_eq!((count(known), count(known)), ("2".into(), "3".into()));
}

#[test]
fn e1_a_follow_up_that_would_hold_another_groups_lane_for_ever_fails_its_outcome_by_name() {
    a_lane_of_another_group_goes_on(&start(&[]));
    let held = GROUPS.replace(r#""follow_ups":["*"]"#, r#""follow_ups":["flaky"]"#);
    let known = start(&[&held]);
    let mut peer = known.hostile(&[]);
    let (caller, lease) = lease(&known, &mut peer, &[], "1");
    peer.answer(&lease, with_follow_ups(json!([{"handler": "count", "payload": "0"}])));
    let answer = failed(caller, 422, "handler_failed");
    assert!(answer.text().contains("may not submit to"), "{answer:?}");
    assert_eq!(count(&known), "1");
}

fn queued(known: &Known) -> u64 {
    known.service.get("/v1/stats").json()["totals"]["queued"].as_u64().expect("a number")
}

/// The most jobs that were queued while this was looked at.
fn most_queued(known: &Known, look_for: Duration) -> u64 {
    let until = Instant::now() + look_for;
    std::iter::from_fn(|| (Instant::now() < until).then(|| queued(known))).max().expect("a look")
}

#[test]
fn e2_follow_ups_without_end_stay_within_their_room_and_keep_no_caller_out() {
    const CAPACITY: u64 = 2_000;
    let (known, sleep) = started(&["runtime.platform.queue.capacity=2000"]);
    let before = peak(&known);
    // Each outcome of 500 has a thousand, and each of these another thousand behind it.
    let mut peer = known.hostile(&["--room=16"]);
    let follow_ups = json!([{"handler": "flaky", "payload": {"fill": 1_000}}]);
    auto(&mut peer, json!({"outcome": "succeeded", "result": "1", "times": 1_000, "follow_ups": follow_ups}));
    let work = || {
        (0..500).for_each(|_| {
            _ = known.service.request("POST", "/v1/jobs/flaky", &["Prefer: respond-async"], "1")
        });
        most_queued(&known, Duration::from_secs(5))
    };
    let most = others_go_on(&known, Duration::from_millis(250), work);
    // Every first follow-up has its place: one for each lease that the peer has at once.
    assert!(most > CAPACITY / 2 && most <= 2 * CAPACITY + 16, "{most} queued");
    let grown = peak(&known) - before;
    println!("{most} queued, {} MiB more", grown / MIB);
    assert!(grown <= 2 * CAPACITY * 4_096 + SLACK, "{grown} bytes more");
    // Once the hostile one is gone, what it has left runs like any other, as everybody else's.
    drop(peer);
    let cancelled = known.service.request("DELETE", &format!("/v1/jobs/{sleep}"), &[], "");
    assert_eq!(cancelled.status, 200, "{cancelled:?}");
    until("the queue is empty", PATIENCE, || (queued(&known) == 0).then_some(()));
    assert_eq!((count(&known), count(&known)), ("1".into(), "2".into()));
}

/// Rows E2, of a capacity of 500.
fn follow_ups_fill_their_own_room_alone(known: &Known) {
    const CAPACITY: u64 = 500;
    assert_eq!(count(known), "1");
    known.service.submit("/v1/jobs/twice", &[], "1");
    let look = || most_queued(known, Duration::from_secs(4));
    let most = others_go_on(known, Duration::from_millis(500), look);
    // What an executor had at once, 64 short jobs, is put back where it was.
    assert!(most > CAPACITY / 2 && most <= CAPACITY + 64, "{most} queued");
}

const SMALL_QUEUE: &str = "runtime.platform.queue.capacity=500";

#[test]
fn e2_a_handler_that_follows_itself_up_twice_fills_the_room_of_follow_ups_and_keeps_no_caller_out() {
    follow_ups_fill_their_own_room_alone(&start(&[SMALL_QUEUE]));
}

#[test]
fn e3_contexts_and_states_beyond_the_budget_fail_their_jobs_and_others_keep_theirs() {
    const TOTAL: u64 = 64 * MIB;
    let known =
        start(&["runtime.platform.kv.total_max_bytes=67108864", r#"handlers.flaky.ordering={"key":"/k"}"#]);
    assert_eq!(count(&known), "1");
    let before = peak(&known);
    let mut peer = known.hostile(&["--room=16"]);
    let ended = |known: &Known, what: Value, jobs: usize, peer: &mut Peer| -> (f64, f64) {
        let of = |status: &str| {
            known.service.metric(&format!(r#"jobs_finished_total{{handler="flaky",status="{status}"}}"#))
        };
        let start = (of("succeeded"), of("failed"));
        peer.tell(what);
        for number in 0..jobs {
            let trace = format!("traceparent: 00-{:032x}-b7ad6b7169203331-01", number + 1);
            known.service.submit("/v1/jobs/flaky", &[&trace], format!(r#"{{"k":{number}}}"#));
        }
        until("all have ended", PATIENCE, || {
            (of("succeeded") + of("failed") == start.0 + start.1 + jobs as f64).then_some(())
        });
        (of("succeeded") - start.0, of("failed") - start.1)
    };
    others_go_on(&known, Duration::from_millis(250), || {
        let context = json!({"do": "auto", "outcome": "succeeded", "result": "1", "context": {"x": {"fill": 1_000_000}}});
        let (kept, refused) = ended(&known, context, 200, &mut peer);
        println!("contexts: {kept} kept, {refused} refused");
        assert!((40.0..=67.0).contains(&kept) && kept + refused == 200.0, "{kept} kept");
        let names: Vec<String> = (0..8).map(|name| format!("v{name}")).collect();
        let map: serde_json::Map<String, Value> =
            names.into_iter().map(|name| (name, json!({"fill": 1_000_000}))).collect();
        let state = json!({"do": "auto", "outcome": "succeeded", "result": "1", "state": map});
        assert_eq!(ended(&known, state, 12, &mut peer), (0.0, 12.0), "nothing is left of the budget");
    });
    // A commit that takes no more than it had holds, and what was there is there.
    assert_eq!((count(&known), count(&known)), ("2".into(), "3".into()));
    let grown = peak(&known) - before;
    println!("{} MiB more", grown / MIB);
    assert!(grown <= TOTAL + SLACK, "{grown} bytes more");
    failed(known.caller("/v1/jobs/flaky", &[], r#"{"k":"last"}"#), 422, "state_too_large");
}

/// Rows E4, of a lane's state of 16 MiB.
fn floods_are_closed_by_name_within_a_bound(known: &Known) {
    for (command, reason, bound) in [
        // Twice a state and a context, the follow-ups of an outcome, and a frame: `limits.rs`.
        (json!({"do": "tiny_parts", "frames": 450}), "malformed", (2 * 17 + 65 + 2) * MIB),
        (json!({"do": "fault", "which": "deaf"}), "peer_not_reading", 4 * MIB),
    ] {
        let (before, rejected) = (peak(known), known.rejected());
        let begun = Instant::now();
        others_go_on(known, Duration::from_millis(100), || {
            let mut peer = known.hostile(&[]);
            peer.tell(command);
            peer.expect("closed");
        });
        println!("{reason} after {:?}", begun.elapsed());
        known.counted(&rejected, reason);
        let grown = peak(known) - before;
        println!("{} MiB more", grown / MIB);
        assert!(grown <= bound + SLACK, "{reason}: {grown} bytes more");
    }
    // Pings that are answered and read cost nobody anything.
    count(known);
}

const SMALL_STATE: &str = "runtime.platform.kv.lane_state_max_bytes=16777216";

#[test]
fn e4_parts_without_an_end_and_answers_that_nobody_reads_are_closed_by_name_within_a_bound() {
    floods_are_closed_by_name_within_a_bound(&start(&[SMALL_STATE]));
}

/// Rows E5.
fn a_group_takes_its_own_places_alone(known: &Known) {
    let mut peer = known.hostile(&[]);
    let connected = others_go_on(known, Duration::from_millis(250), || {
        peer.tell(json!({"do": "connect", "count": 5_000}));
        loop {
            let event = peer.next_within(Duration::from_secs(60));
            if event["event"] == "connected" {
                return event;
            }
        }
    });
    // Twice the group's processes and two; its own executor and this peer have two of them.
    let open = connected["open"].as_u64().expect("a number");
    assert!(open <= 4, "{open} of 5,000 are open");
    // Beyond the group's places, and beyond its table of nonces: each under its reason.
    let refused: f64 = known.rejected().iter().map(|(_, count)| count).sum();
    assert!(refused >= 4_990.0, "{:?}", known.rejected());
    peer.tell(json!({"do": "first_messages", "ms": 4_000, "count": 4_200}));
    std::thread::sleep(Duration::from_millis(1_500));
    // Executors are started in the order of their groups.
    kill(*known.service.children("executor").last().expect("one of the other group"));
    let begun = Stopwatch::start();
    assert_eq!(known.service.post("/v1/jobs/echo", "2").text(), "2");
    println!("another group's executor is back after {:?}", begun.elapsed());
    // Of a full backlog the kernel drops a connection, and tries again after a second.
    assert!(begun.elapsed() < Duration::from_millis(2_500), "{:?}", begun.elapsed());
    let sent = peer.next_within(Duration::from_secs(40));
    println!("{sent} first messages");
    assert_eq!(sent["event"], "sent", "{sent}");
    assert!(sent["count"].as_u64().is_some_and(|count| count > 4_096), "{sent}: too few to fill the table");
}

#[test]
fn e5_connections_and_first_messages_of_one_group_take_only_its_own_places() {
    a_group_takes_its_own_places_alone(&start(&[]));
}

/// Rows E6: what a handler says stands inside one line, one field, one header.
fn framing_holds(known: &Known) {
    let mut peer = known.hostile(&["--room=4"]);
    let breaks = "x\r\nSet-Cookie: stolen=1\r\n\r\n\u{1b}[2J\u{0}\u{9b}";
    for result in ["1\n{\"code\":\"forged\"}", "\n", "1\r\n2"] {
        auto(&mut peer, succeeded(result));
        let answer = known.service.post("/v1/batch/flaky", "1\n2\n");
        let lines: Vec<Value> =
            answer.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 2, "{answer:?}");
        assert!(lines.iter().all(|line| line["code"] == "handler_failed"), "{answer:?}");
    }
    auto(&mut peer, json!({"outcome": "failed", "code": "handler_failed", "detail": breaks}));
    let answer = known.service.post("/v1/jobs/flaky", "1");
    assert_eq!((answer.status, answer.header("set-cookie")), (422, None), "{answer:?}");
    assert!(
        answer.json()["detail"].as_str().is_some_and(|detail| detail.contains("Set-Cookie")),
        "{answer:?}"
    );
    let answer = known.service.post("/v1/batch/flaky", "1\n");
    assert_eq!(answer.text().lines().count(), 1, "{answer:?}");
    // A key with control characters is a lane like any other; only its own group's list says it, as JSON.
    auto(&mut peer, with_follow_ups(json!([{"handler": "count", "payload": "0", "key": breaks}])));
    let answer = known.service.post("/v1/jobs/flaky", "1");
    assert_eq!(answer.header("set-cookie"), None, "{answer:?}");
    for media in [breaks, "a/b\r\nSet-Cookie: stolen=1", "text/\u{0}"] {
        auto(&mut peer, json!({"outcome": "succeeded", "result": "1", "media": media}));
        let answer = known.service.post("/v1/jobs/flaky", "1");
        // A media type that is none is plain bytes.
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"), "{answer:?}");
        assert_eq!((answer.header("set-cookie"), &*answer.text()), (None, "1"), "{answer:?}");
    }
    let metrics = known.service.get("/metrics").text();
    assert!(!metrics.contains("stolen") && !metrics.contains('\u{1b}'), "{metrics}");
    let log = known.service.stderr();
    assert!(!log.contains(|c: char| c.is_control() && c != '\n'), "{log:?}");
    assert!(log.lines().all(|line| line.starts_with("20")), "{log}");
}

#[test]
fn e6_line_breaks_and_control_characters_frame_nothing_in_http_ndjson_logs_and_metrics() {
    framing_holds(&start(&[]));
}

/// Rows E7: what is not so is fenced off and counted, and a job has its bound of deliveries.
fn false_outcomes_are_fenced(known: &Known) {
    let mut peer = known.hostile(&[]);
    let late = known.service.metric("reply_late_total");
    let (mut caller, lease) = lease(known, &mut peer, &[], "1");
    let sent = others_go_on(known, Duration::from_millis(100), || {
        peer.tell(json!({"do": "others", "leases": 1_000}));
        let sent = peer.expect("sent")["count"].as_u64().expect("a number");
        (0..sent).for_each(|_| _ = peer.expect("fenced"));
        sent
    });
    assert!(sent >= 999, "{sent}");
    // Its own job was touched by none of these; told twice, it has ended once.
    peer.answer(&lease, succeeded("right"));
    assert_eq!(caller.read().text(), "right");
    peer.tell(json!({"do": "late", "lease": lease["lease"], "job": lease["jobs"][0]["id"]}));
    peer.expect("fenced");
    until("each is counted", PATIENCE, || {
        (known.service.metric("reply_late_total") >= late + 1_000.0).then_some(())
    });
    auto(&mut peer, json!({"outcome": "succeeded", "result": "wrong", "delivery_off": 1}));
    let id = known.service.submit("/v1/jobs/flaky", &[], "1");
    peer.room(1);
    let record = known.service.record_when(&id, "dead");
    assert_eq!(record["deliveries"], 3, "{record}");
    assert_eq!(record["error"]["cause"], "executor_lost", "{record}");
}

#[test]
fn e7_outcomes_that_are_not_its_to_say_are_fenced_and_counted_and_deliveries_have_their_bound() {
    false_outcomes_are_fenced(&start(&[]));
}

/// Rows E8: pings do not hold a lease.
fn a_lease_has_an_end(known: &Known) {
    let mut peer = known.hostile(&[]);
    let begun = Instant::now();
    let (mut caller, _lease) = lease(known, &mut peer, &[], "1");
    let answer = caller.read();
    let took = begun.elapsed();
    println!("{answer:?} after {took:?}");
    assert!(["handler_timed_out", "dead_lettered"].contains(&&*answer.code()), "{answer:?}");
    // The job's timeout and ten seconds: `limits.rs`.
    assert!((10_000..14_000).contains(&took.as_millis()), "{took:?}");
    let job = answer.header("cofferdam-job-id").expect("an id").to_owned();
    assert_eq!(known.service.record(&job)["deliveries"], 1);
}

const SHORT: [&str; 2] = ["handlers.flaky.timeout_ms=300", "handlers.flaky.max_deliveries=1"];

#[test]
fn e8_a_lease_that_only_pings_hold_ends_with_its_jobs_deadline_and_a_grace() {
    a_lease_has_an_end(&start(&SHORT));
}

/// Row E9 is in `processes.rs`, where it needs no peer: what a handler's process can reach on its host.
#[cfg(feature = "redis")]
#[test]
fn e10_on_redis_it_can_do_no_more_and_has_no_connection_and_no_key_there() {
    let server = own_redis::Server::start(&["--requirepass", "a-password-of-redis"]);
    let password = server.file("password", "a-password-of-redis\n");
    std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("our own file");
    let backends = ["queue", "kv", "reply"].map(|port| format!("runtime.platform.{port}.backend=redis"));
    let url = format!("runtime.platform.redis.url={}", server.url());
    let file = format!("runtime.platform.redis.password_file={}", password.display());
    let on_redis: Vec<&str> = backends.iter().chain([&url, &file]).map(String::as_str).collect();
    let start = |more: &[&str]| start(&[&on_redis, more].concat());
    follow_ups_fill_their_own_room_alone(&start(&[SMALL_QUEUE]));
    let known = start(&[SMALL_STATE, "runtime.platform.redis.key_prefix=second"]);
    floods_are_closed_by_name_within_a_bound(&known);
    a_group_takes_its_own_places_alone(&known);
    drop(known);
    // What the first has left in the queue goes on with whoever comes to its prefix.
    let known = start(&[SHORT[0], SHORT[1], "runtime.platform.redis.key_prefix=fourth"]);
    a_lease_has_an_end(&known);
    drop(known);
    let known = start(&["runtime.platform.redis.key_prefix=third"]);
    a_lane_of_another_group_goes_on(&known);
    framing_holds(&known);
    false_outcomes_are_fenced(&known);
    // Its bundle names no password, and of its descriptors two are sockets: its supervisor's and the broker's.
    for pid in known.service.children("executor") {
        let links = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").flatten();
        let targets = links.filter_map(|link| std::fs::read_link(link.path()).ok());
        let sockets = targets.filter(|target| target.to_string_lossy().starts_with("socket:"));
        assert_eq!(sockets.count(), 2, "{pid}");
    }
    let wish = format!("connect {} nothing", server.socket().display());
    let answer = known.service.post("/v1/jobs/look", &wish);
    // Whom it meets there without the password is a stranger.
    assert!(!answer.text().contains("PONG") && answer.status == 200, "{answer:?}");
}
