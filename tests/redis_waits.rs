//! Who waits on Redis, and what strangers write there: thousands of waits of every kind leave nothing behind in web, and
//! what nobody of the deployment signed neither runs nor answers in the running service.

#[path = "support/deployment.rs"]
mod deployment;
#[path = "support/program.rs"]
mod program;
#[path = "support/redis.rs"]
mod redis;
#[path = "support/service.rs"]
mod service;

use std::time::Duration;

use ::redis::Connection;
use deployment::{Deployment, can_serve, resident_kib};
use program::cofferdam;
use serde_json::{Value, json};
use service::{Answer, Client, PATIENCE, Service, caller, request, until, waiters};

/// Callers of one kind in one round.
const CALLERS: usize = 400;
/// Beyond this, web has kept something of the waits. What it holds after its first round it may hold.
const GROWTH_KIB: u64 = 4 << 10;

fn pause(service: &Service, handler: &str, word: &str) {
    let answer = service.post(&format!("/v1/handlers/{handler}/{word}"), "");
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn many(count: usize, ask: impl Fn(usize) -> Client) -> Vec<Client> {
    (0..count).map(ask).collect()
}

fn sent(service: &Service, method: &str, target: &str, headers: &[&str], body: &str) -> Client {
    let mut client = service.connect();
    client.send(request(method, target, headers, body));
    client
}

fn answers(clients: Vec<Client>) -> Vec<Answer> {
    clients.into_iter().map(|mut client| client.read()).collect()
}

/// Until nothing is queued, runs, or waits.
fn settles(service: &Service) {
    until("all is done", PATIENCE, || {
        let stats = service.get("/v1/stats").json();
        let totals = &stats["totals"];
        (totals["queued"] == 0 && totals["running"] == 0 && stats["waiters"] == 0).then_some(())
    });
}

/// Waits that end by their reply, their deadline, a hang-up; for records, for others' jobs, for lines.
fn waits_of_every_kind(service: &Service) {
    let late = until("no end of an earlier wait is told any more", PATIENCE, || {
        let late = service.metric("reply_late_total");
        std::thread::sleep(Duration::from_millis(200));
        (service.metric("reply_late_total") == late).then_some(late)
    });
    let mut client = service.connect();
    for n in 0..CALLERS {
        let text = n.to_string();
        assert_eq!(client.request("POST", "/v1/jobs/echo", &[], &text).text(), text);
    }
    assert_eq!(service.metric("reply_late_total"), late, "whoever waits is not late");

    // While the handler is paused nothing ends but the waits.
    pause(service, "echo", "pause");
    let deadline = many(CALLERS, |_| caller(service, "/v1/jobs/echo", "1"));
    assert!(answers(deadline).iter().all(|answer| answer.code() == "reply_timeout"));
    let accepted = many(CALLERS, |_| sent(service, "POST", "/v1/jobs/echo", &["Prefer: wait=0"], "1"));
    assert!(answers(accepted).iter().all(|answer| answer.status == 202));
    let id = service.submit("/v1/jobs/echo", &[], "1");
    let target = format!("/v1/jobs/{id}?wait=1");
    let records = many(CALLERS, |_| sent(service, "GET", &target, &[], ""));
    assert!(answers(records).iter().all(|answer| answer.json()["status"] == "queued"));
    let gone = many(CALLERS, |_| caller(service, "/v1/jobs/echo", "1"));
    waiters(service, CALLERS as f64);
    drop(gone);
    waiters(service, 0.0);
    pause(service, "echo", "resume");
    settles(service);
    // One each: the deadline, the accepted, the hang-up, and the one whose record was waited for.
    let expected = late + (3 * CALLERS + 1) as f64;
    until("each late reply is counted, once", PATIENCE, || {
        (service.metric("reply_late_total") >= expected).then_some(())
    });
    assert_eq!(service.metric("reply_late_total"), expected);

    // Some of those who share a job leave before it ends, and batches whose callers go with lines under way.
    pause(service, "echo", "pause");
    let round = service.metric("jobs_submitted_total{handler=\"echo\"}");
    let joined = |n: usize| {
        let key = format!("Idempotency-Key: {round}-{}", n % 7);
        sent(service, "POST", "/v1/jobs/echo", &[&key], &(n % 7).to_string())
    };
    let (leave, stay) = (many(CALLERS / 2, joined), many(CALLERS / 2, joined));
    let record = many(CALLERS / 2, |_| sent(service, "GET", &format!("{target}00"), &[], ""));
    assert!(answers(record).iter().all(|answer| answer.json()["status"] == "succeeded"));
    waiters(service, CALLERS as f64);
    drop(leave);
    waiters(service, CALLERS as f64 / 2.0);
    let lines = "1\n".repeat(50);
    let batches = many(20, |_| caller(service, "/v1/batch/echo", &lines));
    until("lines of all batches wait", PATIENCE, || {
        (service.metric("queue_depth{queue=\"echo\"}") >= 20.0 * 50.0).then_some(())
    });
    drop(batches);
    pause(service, "echo", "resume");
    for (n, answer) in answers(stay).iter().enumerate() {
        assert_eq!((answer.status, answer.text()), (200, (n % 7).to_string()), "{answer:?}");
    }
    settles(service);
}

#[test]
fn thousands_of_waits_leave_nothing_behind_in_web() {
    if !can_serve() {
        return;
    }
    let deployment = Deployment::new("waits");
    let service = deployment.serve(
        &cofferdam(),
        &[
            "runtime.platform.reply.timeout_ms=3000",
            "runtime.platform.reply.result_ttl_seconds=60",
            "runtime.platform.lifecycle.graceful_timeout_ms=1500",
        ],
    );
    let web = service.child("web");
    // Each thread's allocator has taken what it takes.
    for _ in 0..3 {
        waits_of_every_kind(&service);
    }
    let before = resident_kib(web);
    for _ in 0..3 {
        waits_of_every_kind(&service);
    }
    let after = resident_kib(web);
    println!("web: {before} KiB, then {after} KiB");
    assert!(after < before + GROWTH_KIB, "web has grown from {before} to {after} KiB");
    assert_eq!(service.metric("reply_waiters"), 0.0);
    assert_eq!(service.child("web"), web, "it is the same process");

    // A drain ends those who wait, in time, and says why.
    pause(&service, "echo", "pause");
    let last = many(CALLERS, |_| sent(&service, "POST", "/v1/jobs/echo", &[], "1"));
    waiters(&service, CALLERS as f64);
    service.terminate();
    for answer in answers(last) {
        assert!(["draining", "reply_timeout"].contains(&answer.code().as_str()), "{answer:?}");
    }
    let ended = service.ended();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
}

/// A stranger at the keys of a deployment whose handlers are paused.
struct Stranger<'a> {
    deployment: &'a Deployment,
    raw: Connection,
}

impl Stranger<'_> {
    fn set(&mut self, id: &str, field: &str, value: &[u8]) {
        let key = format!("{{{}}}:job:{id}", self.deployment.prefix);
        let cmd = ::redis::cmd("HSET").arg(key).arg(field).arg(value).clone();
        cmd.exec(&mut self.raw).expect("the server is there");
    }

    fn field(&mut self, id: &str, field: &str) -> Vec<u8> {
        self.deployment.on_key(&mut self.raw, &["HGET", field], &format!("job:{id}"))
    }

    fn text(&mut self, id: &str, field: &str) -> String {
        String::from_utf8(self.field(id, field)).expect("text")
    }

    /// The next thing to claim.
    fn offer(&mut self, lane: &str, handler: &str) {
        let member = format!("0000000000000000:{lane}");
        let _: i64 =
            self.deployment.on_key(&mut self.raw, &["ZADD", "0", &member], &format!("ready:{handler}"));
    }
}

/// Job ids that events of this name have told.
fn told(service: &Service, event: &str) -> Vec<String> {
    let text = service.stderr();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of = lines.filter(|line| line["event"] == event);
    of.filter_map(|line| line["job_id"].as_str().map(str::to_owned)).collect()
}

const WATCHED: [&str; 4] = [
    "observability.log=json",
    r#"handlers.echo.ordering={"key":"/k"}"#,
    "runtime.platform.reply.timeout_ms=3000",
    "runtime.platform.queue.visibility_timeout_ms=1000",
];

/// Good jobs run whatever stands beside them.
#[track_caller]
fn goes_on(service: &Service) {
    for n in 0..20 {
        let body = format!(r#"{{"k":{n}}}"#);
        assert_eq!(service.post("/v1/jobs/echo", &body).text(), body);
        assert_eq!(service.post("/v1/jobs/sleep", r#"{"ms":0}"#).status, 200);
    }
}

#[test]
fn r8_what_a_stranger_altered_or_relabelled_neither_runs_nor_answers() {
    if !can_serve() {
        return;
    }
    let deployment = Deployment::new("forged");
    let service = deployment.serve(&cofferdam(), &WATCHED);
    let mut stranger = Stranger { deployment: &deployment, raw: deployment.raw() };
    for handler in ["echo", "sleep"] {
        pause(&service, handler, "pause");
    }
    let sleep = |ms: u32| service.submit("/v1/jobs/sleep", &[], format!(r#"{{"ms":{ms}}}"#));
    let echo = |key: &str| service.submit("/v1/jobs/echo", &[], format!(r#"{{"k":"{key}"}}"#));
    let (altered, swapped, good) = (sleep(1), sleep(2), sleep(3));
    let (relabelled, moved, mine) = (sleep(4), echo("a"), echo("b"));

    let mut env = stranger.field(&altered, "env");
    let at = env.len() - 40;
    env[at] ^= 1;
    stranger.set(&altered, "env", &env);
    let of_another = stranger.field(&good, "env");
    stranger.set(&swapped, "env", &of_another);
    // A signed job of another handler, at the head of echo's lane b.
    let lane = stranger.text(&mine, "l");
    stranger.set(&relabelled, "h", b"echo");
    stranger.set(&relabelled, "l", lane.as_bytes());
    let member = stranger.text(&relabelled, "rm");
    let _: i64 = deployment.on_key(&mut stranger.raw, &["ZREM", &member], "ready:sleep");
    let _: i64 = deployment.on_key(&mut stranger.raw, &["LPUSH", &relabelled], &format!("q:{lane}"));
    // A queued job that is said to have succeeded, with another one's result.
    stranger.set(&moved, "r", b"{\"paid\":true}");
    stranger.set(&moved, "s", b"succeeded");
    assert_ne!(service.get(&format!("/v1/jobs/{moved}/result")).status, 200);
    assert_ne!(service.get(&format!("/v1/jobs/{moved}")).json()["status"], "succeeded");
    stranger.set(&moved, "s", b"queued");

    for handler in ["echo", "sleep"] {
        pause(&service, handler, "resume");
    }
    service.record_when(&good, "succeeded");
    service.record_when(&mine, "succeeded");
    // Each is counted; the log hears of one a second at most.
    until("all three are counted", PATIENCE, || {
        (service.metric("forged_total{what=\"job\"}") == 3.0).then_some(())
    });
    until("one of them is told", PATIENCE, || {
        let named = told(&service, "queue.forged");
        [&altered, &swapped, &relabelled].iter().any(|id| named.contains(id)).then_some(())
    });
    for id in [&altered, &swapped, &relabelled] {
        let record = service.record(id);
        assert_eq!((&record["status"], &record["deliveries"]), (&json!("dead"), &json!(0)), "{record}");
        assert!(record["error"]["detail"].as_str().is_some_and(|text| text.contains("signed")), "{record}");
        let kept: i64 = deployment.on_key(&mut stranger.raw, &["EXISTS"], &format!("quarantine:{id}"));
        assert_eq!(kept, 1, "it is kept for whoever wants to look at it");
    }
    // A finished record whose result, or whose status, is another one.
    let paid = service.submit("/v1/jobs/echo", &[], r#"{"k":"c"}"#);
    service.record_when(&paid, "succeeded");
    let result = stranger.field(&paid, "r");
    let mut other = result.clone();
    other[result.len() / 2] ^= 1;
    for (field, value, before) in [("r", &other[..], &result[..]), ("s", b"failed", b"succeeded")] {
        stranger.set(&paid, field, value);
        assert_eq!(service.get(&format!("/v1/jobs/{paid}/result")).code(), "unknown_job", "{field}");
        stranger.set(&paid, field, before);
        assert_eq!(service.get(&format!("/v1/jobs/{paid}/result")).status, 200);
    }
    goes_on(&service);
    // The relabelled job has been counted under one handler and is gone under another: figures of who cannot be trusted.
    let stats = service.get("/v1/stats").json();
    assert_eq!((&stats["totals"]["running"], &stats["waiters"]), (&0.into(), &0.into()), "{stats}");
}

#[test]
fn r8_numbers_that_are_none_stop_nobody() {
    if !can_serve() {
        return;
    }
    let deployment = Deployment::new("numbers");
    let service = deployment.serve(&cofferdam(), &WATCHED);
    let mut stranger = Stranger { deployment: &deployment, raw: deployment.raw() };
    for handler in ["echo", "sleep"] {
        pause(&service, handler, "pause");
    }
    let mut jobs = Vec::new();
    for value in ["x", "nan", "-inf", "1e300", "-1", ""] {
        for field in ["d", "nb", "pb", "f", "st", "lx"] {
            for (handler, body) in [("sleep", r#"{"ms":1}"#), ("echo", r#"{"k":"a"}"#)] {
                let id = service.submit(&format!("/v1/jobs/{handler}"), &[], body);
                stranger.set(&id, field, value.as_bytes());
                assert_eq!(service.record(&id)["status"], "queued", "{handler}, {field} {value:?}");
                jobs.push(id);
            }
        }
    }
    let again = service.submit("/v1/jobs/sleep", &[], r#"{"ms":1}"#);
    assert_eq!(service.request("DELETE", &format!("/v1/jobs/{again}"), &[], "").status, 200);
    for field in ["pb", "kb", "d"] {
        stranger.set(&again, field, b"x");
    }
    assert_eq!(service.request("POST", &format!("/v1/jobs/{again}/retry"), &[], "").status, 202);
    jobs.push(again);
    let lane = stranger.text(&jobs[1], "l");
    let _: i64 = deployment.on_key(&mut stranger.raw, &["HSET", "v", "x"], &format!("lane:{lane}"));
    for handler in ["echo", "sleep"] {
        pause(&service, handler, "resume");
    }
    for id in &jobs {
        service.record_when(id, "succeeded");
    }
    goes_on(&service);
}

#[test]
fn r8_a_signed_job_in_the_lane_of_another_key_is_not_run_there() {
    if !can_serve() {
        return;
    }
    let deployment = Deployment::new("lanes");
    let service = deployment.serve(&cofferdam(), &WATCHED);
    let mut stranger = Stranger { deployment: &deployment, raw: deployment.raw() };
    pause(&service, "echo", "pause");
    let (moved, mine) = (
        service.submit("/v1/jobs/echo", &[], r#"{"k":"a"}"#),
        service.submit("/v1/jobs/echo", &[], r#"{"k":"b"}"#),
    );
    let (from, to) = (stranger.text(&moved, "l"), stranger.text(&mine, "l"));
    // Its own lane is still in the ready set, with nothing in it.
    let _: i64 = deployment.on_key(&mut stranger.raw, &["LREM", "1", &moved], &format!("q:{from}"));
    let _: i64 = deployment.on_key(&mut stranger.raw, &["LPUSH", &moved], &format!("q:{to}"));
    stranger.set(&moved, "l", to.as_bytes());
    pause(&service, "echo", "resume");
    service.record_when(&mine, "succeeded");
    let record = service.record_when(&moved, "dead");
    assert_eq!(record["deliveries"], 0, "it ran in a lane whose key it does not have: {record}");
}

/// The stream by which web of this deployment hears of ends.
fn inbox(raw: &mut ::redis::Connection, name: &str) -> String {
    until("web's inbox", PATIENCE, || {
        let pattern = format!("{{{name}}}:inbox:*");
        let keys: Vec<String> = ::redis::cmd("KEYS").arg(pattern).query(raw).expect("keys");
        keys.into_iter().next()
    })
}

#[test]
fn r8_forged_and_repeated_doorbells_answer_nobody() {
    if !can_serve() {
        return;
    }
    let deployment = Deployment::new("bells");
    let service = deployment.serve(&cofferdam(), &WATCHED);
    let mut raw = deployment.raw();
    let inbox = inbox(&mut raw, "bells");
    pause(&service, "sleep", "pause");
    let mut client = caller(&service, "/v1/jobs/sleep", r#"{"ms":0}"#);
    waiters(&service, 1.0);
    // It waits from when it asks, and is in the list once the server has answered.
    let id = until("its job", PATIENCE, || {
        service.get("/v1/jobs?status=queued").json()["jobs"][0]["id"].as_str().map(str::to_owned)
    });
    // The signed result of another job, with this one's name; and no result at all, for it is in the record.
    let mut stranger = Stranger { deployment: &deployment, raw: deployment.raw() };
    let other = service.submit("/v1/jobs/echo", &[], r#"{"k":"a"}"#);
    service.record_when(&other, "succeeded");
    let result = stranger.field(&other, "r");
    let mut ring = |job: &str, status: &str, result: &[u8]| {
        let add = ::redis::cmd("XADD")
            .arg(&inbox)
            .arg("*")
            .arg("j")
            .arg(job)
            .arg("s")
            .arg(status)
            .arg("r")
            .arg(result)
            .clone();
        add.exec(&mut raw).expect("the server is there");
    };
    ring(&id, "succeeded", &result);
    ring(&id, "succeeded", b"");
    ring(&id, "cancelled", b"x");
    ring("no id", "no status", &[0xFF; 3]);
    for _ in 0..50 {
        ring(&other, "succeeded", &result);
    }
    // One more doorbell, of a sound kind: what came before it has been heard.
    assert_eq!(service.post("/v1/jobs/echo", r#"{"k":"b"}"#).status, 200);
    assert_eq!(service.metric("reply_waiters"), 1.0, "it waits on");
    pause(&service, "sleep", "resume");
    assert_eq!(client.read().text(), r#"{"slept_ms":0}"#);
    goes_on(&service);
}

#[test]
fn s5_ten_thousand_forged_ends_are_counted_and_the_log_hears_of_one_a_second() {
    if !can_serve() {
        return;
    }
    let deployment = Deployment::new("flood");
    let service = deployment.serve(&cofferdam(), &WATCHED);
    let mut raw = deployment.raw();
    let inbox = inbox(&mut raw, "flood");
    let begun = std::time::Instant::now();
    let mut pipe = ::redis::pipe();
    for number in 0..10_000_u32 {
        let id = format!("{number:032x}");
        pipe.cmd("XADD").arg(&inbox).arg("*").arg(&["j", &id, "s", "succeeded", "r", "forged"]).ignore();
    }
    pipe.exec(&mut raw).expect("the server is there");
    // A listener that begins anew hears the last one again.
    let counted = until("each is counted", PATIENCE, || {
        Some(service.metric("forged_total{what=\"end\"}")).filter(|counted| *counted >= 10_000.0)
    });
    assert!(counted <= 10_002.0, "{counted}");
    assert_eq!(service.post("/v1/jobs/echo", r#"{"k":"b"}"#).status, 200, "others are served");
    let lines = service.stderr().matches("state.forged").count();
    let most = 2 + usize::try_from(begun.elapsed().as_secs()).expect("it is short");
    assert!((1..=most).contains(&lines), "{lines} lines, at most {most}");
    goes_on(&service);
}

#[test]
fn r8_what_is_no_job_holds_up_nobody() {
    if !can_serve() {
        return;
    }
    let deployment = Deployment::new("litter");
    let service = deployment.serve(&cofferdam(), &WATCHED);
    let mut stranger = Stranger { deployment: &deployment, raw: deployment.raw() };
    goes_on(&service);
    let litter =
        [("a place of no job", "none"), ("a text in a job's place", "string"), ("a bare hash", "hash")];
    for (n, (what, kind)) in litter.into_iter().enumerate() {
        let id = format!("{n:032x}");
        match kind {
            "string" => {
                let _: String = deployment.on_key(&mut stranger.raw, &["SET", "x"], &format!("job:{id}"));
            }
            "hash" => stranger.set(&id, "h", b"sleep"),
            _ => {}
        }
        stranger.offer(&id, "sleep");
        let answer = service.post("/v1/jobs/sleep", r#"{"ms":0}"#);
        assert_eq!(answer.status, 200, "{what} holds up the handler: {answer:?}");
    }
    goes_on(&service);
}

#[test]
fn r8_an_envelope_of_a_hundred_megabytes_is_not_read() {
    if !can_serve() {
        return;
    }
    const BYTES: usize = 100 << 20;
    let deployment = Deployment::new("huge");
    let service = deployment.serve(&cofferdam(), &WATCHED);
    goes_on(&service);
    let executor = service.child("executor");
    let before = peak_kib(executor);
    pause(&service, "sleep", "pause");
    let id = service.submit("/v1/jobs/sleep", &[], r#"{"ms":0}"#);
    let mut stranger = Stranger { deployment: &deployment, raw: deployment.raw() };
    stranger.raw.set_write_timeout(Some(Duration::from_secs(20))).expect("a socket");
    stranger.set(&id, "env", &vec![b'x'; BYTES]);
    pause(&service, "sleep", "resume");
    goes_on(&service);
    until("it is told", PATIENCE, || told(&service, "queue.forged").contains(&id).then_some(()));
    let answer = service.get(&format!("/v1/jobs/{id}"));
    assert_eq!(answer.status, 404, "{answer:?}");
    assert_eq!(service.child("executor"), executor, "it is the same process");
    let grown = peak_kib(executor).saturating_sub(before);
    assert!(grown < (BYTES as u64 >> 10) / 4, "the executor has read it: it grew by {grown} KiB");
}

#[test]
fn a_list_of_large_jobs_costs_web_little() {
    if !can_serve() {
        return;
    }
    const JOBS: usize = 50;
    let deployment = Deployment::new("list");
    let service = deployment.serve(&cofferdam(), &[]);
    let payload = vec![b'x'; 1 << 20];
    for _ in 0..JOBS {
        service.submit("/v1/jobs/echo", &[], &payload);
    }
    settles(&service);
    let web = service.child("web");
    let before = peak_kib(web);
    let list = service.get("/v1/jobs?limit=1000").json();
    assert_eq!(list["jobs"].as_array().map(Vec::len), Some(JOBS), "records, without results");
    let grown = peak_kib(web).saturating_sub(before);
    assert!(grown < 16 << 10, "a list that shows no payload has read them all: web grew by {grown} KiB");
}

/// The most memory that a process ever had, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|text| text.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}
