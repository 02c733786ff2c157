//! The Redis profile with real processes and real servers: its life, and rows R1 to R6, R9 and R10.
//!
//! It guards the promises of CONTRACT 5 for Redis: what was accepted is not lost by any process of ours, each effect is
//! once whatever is cut off, a server that is away is waited for in bounded time, and one that is unfit is refused.

#[path = "support/own_redis.rs"]
mod own_redis;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use own_redis::{DURABLE, Harm, Proxy, Server};
use program::{Folder, SECRET, cofferdam, command, example, on_redis, run, shown};
use rustix::process::Signal;
use serde_json::Value;
use service::{
    Client, PATIENCE, Service, is_alive, kill, processor_time, request, running, signal, sleeper, until,
    waiters,
};

/// Everything is as before by then.
const BACK: Duration = Duration::from_secs(5);
/// A call that fails is answered by then, with the time-outs below.
const BOUNDED: Duration = Duration::from_secs(4);

/// Settings of one deployment.
struct Deployment {
    _folder: Folder,
    sets: Vec<String>,
}

impl Deployment {
    fn new(url: &str, more: &[&str]) -> Deployment {
        let folder = Folder::new();
        let mut sets = on_redis(url, &folder, SECRET);
        sets.push("runtime.platform.redis.connect_timeout_ms=500".into());
        sets.push("runtime.platform.redis.response_timeout_ms=500".into());
        sets.extend(more.iter().map(ToString::to_string));
        Deployment { _folder: folder, sets }
    }

    fn words(&self, first: &[&str]) -> Vec<String> {
        let sets = self.sets.iter().flat_map(|set| ["--set".to_owned(), set.clone()]);
        first.iter().map(ToString::to_string).chain(sets).collect()
    }

    fn serve(&self) -> Service {
        self.serve_as(&cofferdam())
    }

    /// With the handlers of tests/support/embedder.rs.
    fn serve_as(&self, program: &Path) -> Service {
        Service::of(program, &self.sets.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// A web process alone.
    fn web(&self) -> Service {
        let words = self.words(&["web", "--set", "web.bind=127.0.0.1:0"]);
        Service::from(command(&example("embedder"), words).spawn().expect("it can be started"))
    }

    /// An executor alone, once it is ready.
    fn executor(&self) -> Executor {
        let mut child =
            command(&example("embedder"), self.words(&["executor"])).spawn().expect("it can be started");
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        stdout.read_line(&mut line).expect("it says that it is ready");
        assert!(line.starts_with("ready executor pid="), "{line:?}");
        Executor(child)
    }
}

/// An executor that ends with its value.
struct Executor(Child);

impl Executor {
    fn stop(&mut self) -> ExitStatus {
        signal(self.0.id(), Signal::TERM);
        until("the executor ends", PATIENCE, || self.0.try_wait().expect("our own child"))
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn embedder() -> PathBuf {
    example("embedder")
}

fn is_ready(service: &Service) {
    until("it is ready", BACK + Duration::from_secs(5), || {
        (service.get("/readyz").status == 200).then_some(())
    });
}

/// 503 with its code, and soon.
#[track_caller]
fn assert_unavailable(service: &Service) {
    let begun = Instant::now();
    let answer = service.post("/v1/jobs/echo", "1");
    assert_eq!((answer.status, answer.code().as_str()), (503, "backend_unavailable"), "{answer:?}");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(begun.elapsed() < BOUNDED, "{:?}", begun.elapsed());
    assert_eq!(service.get("/readyz").status, 503);
    assert_eq!(service.get("/healthz").status, 200);
}

/// A caller's answer to `count`, its lane's number.
fn counted(client: &mut Client, ms: u32) -> Option<u64> {
    let answer = client.request("POST", "/v1/jobs/count", &[], ms.to_string());
    (answer.status == 200).then(|| answer.text().parse().expect("a number"))
}

fn totals(service: &Service) -> Value {
    service.get("/v1/stats").json()["totals"].clone()
}

#[test]
fn the_interface_means_the_same_on_redis() {
    let server = Server::start(&[]);
    let service = Deployment::new(&server.url(), &[]).serve();
    assert_eq!(service.post("/v1/jobs/echo", "hello").text(), "hello");
    let key = ["Idempotency-Key: k"];
    let first = service.request("POST", "/v1/jobs/echo", &key, "1");
    let second = service.request("POST", "/v1/jobs/echo", &key, "1");
    assert_eq!(
        (first.header("idempotency-replayed"), second.header("idempotency-replayed")),
        (None, Some("true"))
    );
    assert_eq!(first.header("cofferdam-job-id"), second.header("cofferdam-job-id"));
    assert_eq!(service.request("POST", "/v1/jobs/echo", &key, "2").code(), "idempotency_mismatch");

    let id = service.submit("/v1/jobs/sleep?delay_ms=60000", &[], r#"{"ms":1}"#);
    assert_eq!(service.record(&id)["waiting_for"]["reason"], "delay", "{}", service.record(&id));
    assert_eq!(service.request("DELETE", &format!("/v1/jobs/{id}"), &[], "").json()["status"], "cancelled");
    assert_eq!(service.request("POST", &format!("/v1/jobs/{id}/retry"), &[], "").status, 202);
    let record = service.record_when(&id, "succeeded");
    assert_eq!((&record["deliveries"], &record["result"]), (&1.into(), &serde_json::json!({"slept_ms": 1})));
    assert_eq!(service.get(&format!("/v1/jobs/{id}/result")).text(), r#"{"slept_ms":1}"#);
    assert_eq!(service.request("POST", &format!("/v1/jobs/{id}/retry"), &[], "").code(), "not_retryable");

    assert_eq!(service.request("POST", "/v1/handlers/echo/pause", &[], "").status, 200);
    let held = service.submit("/v1/jobs/echo", &[], "3");
    let answer = service.request("POST", "/v1/jobs/echo", &["Prefer: wait=0"], "4");
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(service.record(&held)["waiting_for"]["reason"], "paused");
    assert_eq!(service.request("POST", "/v1/handlers/echo/resume", &[], "").status, 200);
    service.record_when(&held, "succeeded");

    let lines: String = (0..1_000).map(|line| format!("{line}\n")).collect();
    assert_eq!(service.post("/v1/batch/echo", &lines).text(), lines);
    // Larger than a doorbell carries, and as large as a body may be.
    let large = vec![b'x'; 1 << 20];
    assert_eq!(service.post("/v1/jobs/echo", &large).body, large);
    assert_eq!(service.post("/v1/jobs/nobody", "1").code(), "unknown_handler");
    assert_eq!(service.get(&format!("/v1/jobs/{}", "0".repeat(32))).code(), "unknown_job");
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains(SECRET), "{}", ended.stderr);
}

#[test]
fn p2_callers_of_an_executor_that_is_killed_get_their_answers_long_before_its_leases_end() {
    let server = Server::start(&[]);
    let deployment = Deployment::new(&server.url(), &[]);
    let service = deployment.serve_as(&embedder());
    let mut callers: Vec<Client> = (0..4).map(|_| sleeper(&service, 300)).collect();
    let mut counting = service.connect();
    counting.send(request("POST", "/v1/jobs/count", &[], "300"));
    running(&service, 5);
    let killed = Instant::now();
    kill(service.child("executor"));
    callers.iter_mut().for_each(|caller| assert_eq!(caller.read().status, 200));
    assert_eq!(counting.read().text(), "1", "its effect is once");
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}, and a lease is 30 s", killed.elapsed());
    assert_eq!(counted(&mut counting, 0), Some(2));
    assert_eq!(service.stop().status.code(), Some(0));
}

#[test]
fn p5_jobs_go_on_while_web_is_killed_and_can_be_read_afterwards() {
    let server = Server::start(&[]);
    let service = Deployment::new(&server.url(), &[]).serve();
    let id = service.submit("/v1/jobs/sleep", &[], r#"{"ms":500}"#);
    service.record_when(&id, "running");
    kill(service.child("web"));
    assert_eq!(service.record_when(&id, "succeeded")["deliveries"], 1);
    assert_eq!(service.post("/v1/jobs/echo", "1").text(), "1");
    assert_eq!(service.stop().status.code(), Some(0));
}

#[test]
fn p12_a_drain_finishes_what_runs_and_leaves_what_is_queued_to_the_next_start() {
    let server = Server::start(&[]);
    let group = r#"runtime.platform.process_groups=[{"name":"execution","workers":1}]"#;
    let deployment = Deployment::new(&server.url(), &[group]);
    let service = deployment.serve();
    let first = service.submit("/v1/jobs/sleep", &[], r#"{"ms":700}"#);
    let second = service.submit("/v1/jobs/sleep", &[], r#"{"ms":1}"#);
    service.record_when(&first, "running");
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    let service = deployment.serve();
    assert_eq!(service.record(&first)["status"], "succeeded");
    assert_eq!(service.record_when(&second, "succeeded")["deliveries"], 1);
    assert_eq!(service.stop().status.code(), Some(0));
}

#[test]
fn p12_what_a_drain_cuts_off_is_named_and_runs_again_uncounted() {
    let server = Server::start(&[]);
    let deployment = Deployment::new(&server.url(), &["runtime.platform.lifecycle.graceful_timeout_ms=200"]);
    let service = deployment.serve();
    let id = service.submit("/v1/jobs/sleep", &[], r#"{"ms":4000}"#);
    service.record_when(&id, "running");
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains(&format!("lifecycle.forced job_id={id}")), "{}", ended.stderr);
    let service = deployment.serve();
    assert_eq!(service.record_when(&id, "running")["deliveries"], 1, "a delivery cut off is not counted");
    assert_eq!(service.request("DELETE", &format!("/v1/jobs/{id}"), &[], "").json()["status"], "cancelled");
}

#[test]
fn any_web_process_knows_any_job_and_tells_its_end_to_who_waits() {
    let server = Server::start(&[]);
    let deployment = Deployment::new(&server.url(), &["runtime.platform.queue.visibility_timeout_ms=1000"]);
    let (one, other) = (deployment.web(), deployment.web());
    assert_eq!(one.get("/readyz").status, 503, "no executor is there");
    let (mut first, _second) = (deployment.executor(), deployment.executor());
    is_ready(&one);
    // Who waits elsewhere than where the job was taken.
    let id = one.submit("/v1/jobs/sleep", &[], r#"{"ms":400}"#);
    let waited = other.get(&format!("/v1/jobs/{id}?wait=20")).json();
    assert_eq!(waited["status"], "succeeded", "{waited}");
    // One key, two web processes, one run.
    let ask = |service: &Service| {
        let mut client = service.connect();
        client.send(request("POST", "/v1/jobs/count", &["Idempotency-Key: once"], "300"));
        client
    };
    let mut both = [ask(&one), ask(&other)];
    let answers = both.each_mut().map(|client| client.read());
    assert_eq!(answers.each_ref().map(|answer| answer.text()), ["1", "1"]);
    assert_eq!(answers[0].header("cofferdam-job-id"), answers[1].header("cofferdam-job-id"));
    // One executor less, with a job of the lane: the other one goes on from the last commit.
    let mut callers: Vec<Client> = (0..6).map(|_| sleeper(&one, 600)).collect();
    let mut counting = ask_count(&other, 600);
    until("all run", PATIENCE, || (totals(&one)["running"] == 7).then_some(()));
    first.0.kill().expect("our own child");
    callers.iter_mut().for_each(|caller| assert_eq!(caller.read().status, 200));
    assert_eq!(counting.read().text(), "2");
    let processes = one.get("/v1/stats").json()["processes"].clone();
    let roles =
        |role: &str| processes.as_array().map_or(0, |all| all.iter().filter(|p| p["role"] == role).count());
    assert_eq!(roles("web"), 2, "{processes}");
    let _ = first.0.wait();
}

fn ask_count(service: &Service, ms: u32) -> Client {
    let mut client = service.connect();
    client.send(request("POST", "/v1/jobs/count", &[], ms.to_string()));
    client
}

#[test]
fn an_executor_alone_finishes_what_runs_when_it_is_told_to_stop() {
    let server = Server::start(&[]);
    let deployment = Deployment::new(&server.url(), &[]);
    let (web, mut executor) = (deployment.web(), deployment.executor());
    is_ready(&web);
    let mut caller = sleeper(&web, 500);
    running(&web, 1);
    assert_eq!(executor.stop().code(), Some(0));
    assert_eq!(caller.read().text(), r#"{"slept_ms":500}"#);
    assert_eq!(web.get("/readyz").status, 503, "no executor is left");
    assert_eq!(totals(&web)["leases"], 0);
}

#[test]
fn deployments_of_other_prefixes_are_apart() {
    let server = Server::start(&[]);
    let of = |prefix: &str| {
        let prefix = format!("runtime.platform.redis.key_prefix={prefix}");
        Deployment::new(&server.url(), &[&prefix]).serve()
    };
    let (one, other) = (of("one"), of("other"));
    let id = one.submit("/v1/jobs/echo", &[], "1");
    one.record_when(&id, "succeeded");
    assert_eq!(other.get(&format!("/v1/jobs/{id}")).code(), "unknown_job");
    assert_eq!((&totals(&one)["submitted"], &totals(&other)["submitted"]), (&1.into(), &0.into()));
}

#[test]
fn a_mixed_set_keeps_states_when_web_is_killed_and_says_what_it_promises() {
    let server = Server::start(&[]);
    let memory = ["queue", "reply"].map(|port| format!("runtime.platform.{port}.backend=memory"));
    let deployment = Deployment::new(&server.url(), &[&memory[0], &memory[1]]);
    let checked = run(&mut command(&embedder(), deployment.words(&["check"])), b"");
    assert!(String::from_utf8_lossy(&checked.stdout).contains("weaker promise"), "{}", shown(&checked));
    let service = deployment.serve_as(&embedder());
    let mut client = service.connect();
    assert_eq!([counted(&mut client, 0), counted(&mut client, 0)], [Some(1), Some(2)]);
    kill(service.child("executor"));
    assert_eq!(counted(&mut client, 0), Some(3), "another executor reads what the first has written");
    kill(service.child("web"));
    let mut client = service.connect();
    assert_eq!(counted(&mut client, 0), Some(4), "and so after web, which has forgotten all");
    assert!(service.stderr().contains("mixed backends"), "{}", service.stderr());
    assert_eq!(service.stop().status.code(), Some(0));
}

#[test]
fn r1_a_server_that_is_down_at_the_start_is_waited_for() {
    let mut server = Server::absent(&[]);
    let deployment = Deployment::new(&server.url(), &[]);
    let checked = run(&mut command(&cofferdam(), deployment.words(&["check"])), b"");
    assert_eq!(checked.status.code(), Some(1), "{}", shown(&checked));
    let service = deployment.serve();
    assert_unavailable(&service);
    server.up();
    is_ready(&service);
    assert_eq!(service.post("/v1/jobs/echo", "1").text(), "1");
    assert_eq!(service.stop().status.code(), Some(0));
}

#[test]
fn r1_a_server_that_is_killed_under_load_loses_nothing_that_was_accepted() {
    let mut server = Server::start(&DURABLE);
    let service = Deployment::new(&server.url(), &[]).serve();
    let address = service.address;
    let submitters: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                let mut client = Client::to(address);
                let mut accepted = Vec::new();
                for _ in 0..150 {
                    let answer = client.request("POST", "/v1/jobs/echo", &["Prefer: respond-async"], "1");
                    match answer.status {
                        202 => accepted.push(answer.json()["id"].as_str().expect("an id").to_owned()),
                        503 => std::thread::sleep(Duration::from_millis(20)),
                        _ => panic!("{answer:?}"),
                    }
                }
                accepted
            })
        })
        .collect();
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(150));
        server.kill();
        server.up();
    }
    let accepted: Vec<String> =
        submitters.into_iter().flat_map(|one| one.join().expect("no panic")).collect();
    assert!(accepted.len() > 100, "only {} were accepted", accepted.len());
    is_ready(&service);
    for id in &accepted {
        service.record_when(id, "succeeded");
    }
    assert_eq!(service.stop().status.code(), Some(0));
}

#[test]
fn r1_a_server_that_stands_still_costs_bounded_time_and_no_processor() {
    let server = Server::start(&[]);
    let service = Deployment::new(&server.url(), &[]).serve();
    let mut caller = sleeper(&service, 300);
    running(&service, 1);
    server.freeze();
    let children = [service.child("web"), service.child("executor")];
    let (begun, before) = (Instant::now(), children.map(processor_time));
    for _ in 0..3 {
        assert_unavailable(&service);
    }
    until("3 s have passed", PATIENCE, || (begun.elapsed() > Duration::from_secs(3)).then_some(()));
    let after = children.map(processor_time);
    for (before, after) in before.iter().zip(after) {
        assert!((after - *before) < begun.elapsed() / 5, "{before:?} to {after:?} in {:?}", begun.elapsed());
    }
    server.thaw();
    assert_eq!(caller.read().text(), r#"{"slept_ms":300}"#, "what had finished was kept, and told later");
    is_ready(&service);
    assert_eq!(service.children("executor"), [children[1]], "no process was replaced for it");
    assert_eq!(service.stop().status.code(), Some(0));
}

#[test]
fn r1_connections_that_are_cut_again_and_again_fail_no_caller() {
    let server = Server::start(&[]);
    let service = Deployment::new(&server.url(), &[]).serve();
    let mut raw = server.connect();
    let mut client = service.connect();
    for number in 0..200 {
        if number % 10 == 0 {
            let cut = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").clone();
            cut.exec(&mut raw).expect("the server is there");
        }
        let answer = client.request("POST", "/v1/jobs/echo", &[], number.to_string());
        assert_eq!((answer.status, answer.text()), (200, number.to_string()), "{answer:?}");
    }
    until("reconnects are counted", PATIENCE, || {
        (service.metric("backend_reconnects_total") > 0.0).then_some(())
    });
    assert_eq!(service.stop().status.code(), Some(0));
}

#[test]
fn r1_a_black_hole_is_left_in_bounded_time() {
    let server = Server::start(&[]);
    let proxy = Proxy::before(&server);
    let service = Deployment::new(&proxy.url(), &[]).serve();
    assert_eq!(service.post("/v1/jobs/echo", "1").text(), "1");
    proxy.harm(Harm::Swallow);
    assert_unavailable(&service);
    proxy.harm(Harm::Nothing);
    is_ready(&service);
    assert_eq!(service.post("/v1/jobs/echo", "2").text(), "2");
    assert_eq!(service.stop().status.code(), Some(0));
}

#[test]
fn r2_calls_whose_answers_are_lost_are_repeated_and_take_effect_once() {
    let server = Server::start(&[]);
    let proxy = Proxy::before(&server);
    let service = Deployment::new(&proxy.url(), &[]).serve_as(&embedder());
    let mut client = service.connect();
    assert_eq!(counted(&mut client, 0), Some(1));
    proxy.harm(Harm::LoseAnswers(7));
    // A submission whose answer is lost twice is refused, and may have been accepted all the same.
    let (mut numbers, mut refused) = (Vec::new(), 0);
    for _ in 0..80 {
        match counted(&mut client, 0) {
            Some(number) => numbers.push(number),
            None => refused += 1,
        }
    }
    proxy.harm(Harm::Nothing);
    assert!(proxy.lost() > 20, "only {} answers were lost", proxy.lost());
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
    let last = counted(&mut client, 0).expect("nothing is in the way");
    let submitted = totals(&service)["submitted"].as_u64().expect("a number");
    assert_eq!(last, submitted, "each job that was accepted has counted once ({refused} refused)");
    assert_eq!(service.stop().status.code(), Some(0));
}

#[test]
fn r3_r4_an_executor_that_was_stopped_beyond_its_lease_can_deliver_nothing() {
    let server = Server::start(&[]);
    let deployment = Deployment::new(&server.url(), &["runtime.platform.queue.visibility_timeout_ms=600"]);
    let web = deployment.web();
    let first = deployment.executor();
    is_ready(&web);
    let mut client = web.connect();
    assert_eq!([counted(&mut client, 0), counted(&mut client, 0)], [Some(1), Some(2)]);
    let mut caught = ask_count(&web, 300);
    running(&web, 1);
    signal(first.0.id(), Signal::STOP);
    let second = deployment.executor();
    assert_eq!(caught.read().text(), "3", "the second one goes on from the last commit");
    assert_eq!(counted(&mut client, 0), Some(4));
    signal(first.0.id(), Signal::CONT);
    until("its late commit is counted", PATIENCE, || {
        (web.metric("reply_late_total") > 0.0 || web.metric("leases_expired_total") > 0.0).then_some(())
    });
    drop(second);
    // What it knew of the lane is not used again.
    assert_eq!(counted(&mut client, 0), Some(5));
    assert_eq!(totals(&web)["redelivered"], 1);
}

#[test]
fn r5_with_its_memory_used_up_submissions_are_refused_and_what_runs_still_ends() {
    let server = Server::start(&["--maxmemory", "64mb"]);
    let service = Deployment::new(&server.url(), &[]).serve();
    let mut caller = sleeper(&service, 800);
    running(&service, 1);
    let mut raw = server.connect();
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).exec(&mut raw).expect("the server is there");
    let answer = service.post("/v1/jobs/echo", "1");
    assert_eq!((answer.status, answer.code().as_str()), (503, "backend_unavailable"), "{answer:?}");
    assert_eq!(caller.read().text(), r#"{"slept_ms":800}"#);
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(0).exec(&mut raw).expect("the server is there");
    assert_eq!(service.post("/v1/jobs/echo", "2").text(), "2");
    let totals = totals(&service);
    assert_eq!(
        (&totals["submitted"], &totals["queued"], &totals["running"]),
        (&2.into(), &0.into(), &0.into())
    );
    assert_eq!(service.stop().status.code(), Some(0));
}

#[test]
fn r6_a_server_that_is_unfit_is_refused_with_what_to_change() {
    let refused = |url: &str, more: &[&str], what: &str| {
        let deployment = Deployment::new(url, more);
        for first in [&["serve", "--set", "web.bind=127.0.0.1:0"][..], &["check"], &["executor"]] {
            let output = run(&mut command(&cofferdam(), deployment.words(first)), b"");
            assert_eq!(output.status.code(), Some(2), "{first:?}: {}", shown(&output));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains(what), "{first:?}: {said}");
        }
    };
    let evicting = Server::start(&["--maxmemory-policy", "allkeys-lru"]);
    refused(&evicting.url(), &[], "maxmemory-policy noeviction");

    let locked = Server::start(&["--requirepass", "right"]);
    refused(&locked.url(), &[], "NOAUTH");
    let wrong = locked.file("wrong", "wrong\n");
    let file = format!("runtime.platform.redis.password_file={}", wrong.display());
    refused(&locked.url(), &[&file], "uthentication");
    std::fs::write(&wrong, "right\n").expect("a temporary file");
    let service = Deployment::new(&locked.url(), &[&file]).serve();
    assert_eq!(service.post("/v1/jobs/echo", "1").text(), "1");
    assert!(service.stderr().contains("appendfsync always"), "what it promises: {}", service.stderr());
    drop(service);

    let mut primary = Server::absent(&[]).with_tcp();
    primary.up();
    let replica = Server::start(&["--replicaof", "127.0.0.1", &primary.tcp().port().to_string()]);
    refused(&replica.url(), &[], "must name the primary");
}

#[test]
fn r9_scripts_that_are_forgotten_again_and_again_fail_no_caller() {
    let server = Server::start(&[]);
    let service = Deployment::new(&server.url(), &[]).serve();
    let (mut raw, mut client) = (server.connect(), service.connect());
    for number in 0..60 {
        redis::cmd("SCRIPT").arg("FLUSH").exec(&mut raw).expect("the server is there");
        assert_eq!(
            client.request("POST", "/v1/jobs/echo", &[], number.to_string()).text(),
            number.to_string()
        );
    }
}

#[test]
fn r10_keys_after_many_jobs_are_those_after_ten() {
    let server = Server::start(&[]);
    let ttl = ["result", "awaited"].map(|kind| format!("runtime.platform.reply.{kind}_ttl_seconds=1"));
    let service = Deployment::new(&server.url(), &[&ttl[0], &ttl[1]]).serve();
    let mut raw = server.connect();
    let mut after = |jobs: usize| {
        let lines = "1\n".repeat(jobs);
        assert_eq!(service.post("/v1/batch/echo", &lines).text(), lines);
        let id = service.submit("/v1/jobs/echo", &["Idempotency-Key: k"], "1");
        service.record_when(&id, "succeeded");
        until("all records have expired", PATIENCE, || (totals(&service)["records"] == 0).then_some(()));
        let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut raw).expect("the server is there");
        keys.sort_unstable();
        keys
    };
    let few = after(10);
    assert_eq!(after(20_000), few);
    assert!(few.len() < 16, "{few:?}");
}

#[test]
fn waits_of_every_kind_leave_nobody_in_the_table() {
    let server = Server::start(&[]);
    let service = Deployment::new(&server.url(), &[]).serve();
    let mut client = service.connect();
    let mut left = Vec::new();
    for round in 0..200 {
        // Replies, deadlines, and callers that hang up: asked, waiting, or with a batch under way.
        assert_eq!(client.request("POST", "/v1/jobs/echo", &[], "1").status, 200);
        let quick = client.request("POST", "/v1/jobs/sleep", &["Prefer: wait=0"], r#"{"ms":5}"#);
        assert_eq!(quick.status, 202, "{quick:?}");
        drop(sleeper(&service, 30));
        let mut batch = service.connect();
        batch.send(request("POST", "/v1/batch/sleep", &[], "{\"ms\":5}\n".repeat(20)));
        left.push(batch);
        if round % 2 == 0 {
            left.pop();
        }
    }
    waiters(&service, 0.0);
    drop(left);
    until("no job is left", PATIENCE, || {
        let totals = totals(&service);
        (totals["queued"] == 0 && totals["running"] == 0).then_some(())
    });
    assert_eq!(service.get("/v1/stats").json()["waiters"], 0);
    assert!(service.metric("reply_cancelled_total") > 0.0);
    let web = service.child("web");
    assert!(is_alive(web));
    assert_eq!(service.stop().status.code(), Some(0));
}
