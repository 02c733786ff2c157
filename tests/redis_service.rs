//! The Redis profile with real processes and a real server: `serve`, `web`, `executor`, `batch` and `check`, what
//! survives whom, and how they stop.
//!
//! It guards the promises that memory cannot give: whoever is killed, accepted jobs end once, and any web process of
//! the deployment knows them.

#[path = "support/aftermath.rs"]
mod aftermath;
#[path = "support/own_redis.rs"]
mod own_redis;
#[path = "support/program.rs"]
mod program;
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "support/service.rs"]
mod service;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::Output;
use std::time::{Duration, Instant};

use aftermath::{assert_counted, assert_ended, assert_text, counters};
use program::{SECRET, cofferdam, example, run, shown};
use redis_server::{Deployment, Server, Sound, running_and_heard, shows, under_load};
use rustix::process::Signal;
use serde_json::{Value, json};
use service::{
    Answer, Client, NoAnswer, PATIENCE, Service, Stopwatch, all_children, caller, is_alive, kill, request,
    running, signal, sleeper, until, waiters,
};

const ONE_WORKER: &str = r#"runtime.platform.process_groups=[{"name":"execution","workers":1}]"#;
const SHORT_LEASE: &str = "runtime.platform.queue.visibility_timeout_ms=1000";

/// Words on stderr and the exit code.
#[track_caller]
fn assert_said(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{}", shown(output));
    let stderr = String::from_utf8_lossy(&output.stderr);
    for word in words {
        assert!(stderr.contains(word), "no {word:?} in {stderr}");
    }
}

#[test]
fn serve_on_redis_is_ready_when_it_says_so() {
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server);
    for _ in 0..5 {
        let service = deployment.serve(&[]);
        let answer = service.get("/readyz");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_ended_well(service);
    }
}

#[test]
fn serve_on_redis_answers_replays_and_records() {
    let server = Server::start(&[]);
    let service = Deployment::on(&server).serve(&[]);
    let sound = Sound::before(&service);
    assert_text(&service.post("/v1/jobs/echo", "\"hello\""), "\"hello\"");

    let key = ["Idempotency-Key: k1"];
    let first = service.request("POST", "/v1/jobs/echo", &key, "1");
    let second = service.request("POST", "/v1/jobs/echo", &key, "1");
    assert_text(&first, "1");
    assert_text(&second, "1");
    assert_eq!(first.header("idempotency-replayed"), None);
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
    assert_eq!(first.header("cofferdam-job-id"), second.header("cofferdam-job-id"));
    assert_eq!(service.request("POST", "/v1/jobs/echo", &key, "2").code(), "idempotency_mismatch");

    // Larger than a doorbell carries, and as large as a body may be.
    let large = vec![b'x'; 1 << 20];
    assert!(service.post("/v1/jobs/echo", &large).body == large);

    let id = service.submit("/v1/jobs/echo", &["Content-Type: application/json"], "{\"a\":1}");
    let record = service.record_when(&id, "succeeded");
    assert_eq!((&record["result"], &record["deliveries"]), (&json!({"a": 1}), &json!(1)), "{record}");
    assert_text(&service.get(&format!("/v1/jobs/{id}/result")), "{\"a\":1}");
    let listed = service.get("/v1/jobs?handler=echo&status=succeeded&limit=2").json();
    assert_eq!(listed["jobs"][0]["id"], *id, "newest first: {listed}");
    assert_eq!(listed["jobs"].as_array().map(Vec::len), Some(2));
    let unknown = service.get("/v1/jobs/00000000000000000000000000000000");
    assert_eq!(unknown.code(), "unknown_job");
    assert_eq!(service.metric("jobs_finished_total{handler=\"echo\",status=\"succeeded\"}"), 5.0);
    sound.over(service);
}

#[test]
fn serve_on_redis_cancels_retries_pauses_and_delays() {
    let server = Server::start(&[]);
    let service = Deployment::on(&server).serve(&[ONE_WORKER]);
    let sound = Sound::before(&service);

    let runs = service.submit("/v1/jobs/sleep", &[], r#"{"ms":600000}"#);
    service.record_when(&runs, "running");
    let waits = service.submit("/v1/jobs/echo", &[], "2");
    let record = service.record(&waits);
    assert_eq!(
        (&record["status"], &record["waiting_for"]["reason"]),
        (&json!("queued"), &json!("workers")),
        "{record}"
    );
    for id in [&waits, &runs] {
        let cancelled = service.request("DELETE", &format!("/v1/jobs/{id}"), &[], "");
        assert_eq!(
            (cancelled.status, &cancelled.json()["status"]),
            (200, &json!("cancelled")),
            "{cancelled:?}"
        );
    }
    // The worker is free at once, so this one runs.
    assert_text(&service.post("/v1/jobs/echo", "3"), "3");
    let again = service.request("POST", &format!("/v1/jobs/{waits}/retry"), &[], "");
    assert_eq!(again.status, 202, "{again:?}");
    assert_eq!(service.record_when(&waits, "succeeded")["deliveries"], 1);
    let again = service.request("POST", &format!("/v1/jobs/{waits}/retry"), &[], "");
    assert_eq!(again.code(), "not_retryable");

    assert_eq!(
        service.post("/v1/handlers/echo/pause", "").json(),
        json!({"handler": "echo", "paused": true})
    );
    let held = service.submit("/v1/jobs/echo", &[], "4");
    assert_eq!(service.record(&held)["waiting_for"]["reason"], "paused");
    assert_text(&service.post("/v1/jobs/sleep", r#"{"ms":1}"#), r#"{"slept_ms":1}"#);
    assert_eq!(service.record(&held)["status"], "queued");
    assert_eq!(
        service.post("/v1/handlers/echo/resume", "").json(),
        json!({"handler": "echo", "paused": false})
    );
    let resumed = Stopwatch::start();
    service.record_when(&held, "succeeded");
    assert!(resumed.elapsed() < Duration::from_secs(1), "it was woken after {:?}", resumed.elapsed());

    let (begun, watch) = (Instant::now(), Stopwatch::start());
    let delayed = service.submit("/v1/jobs/echo?delay_ms=2000", &[], "5");
    assert_eq!(service.record(&delayed)["waiting_for"]["reason"], "delay");
    service.record_when(&delayed, "succeeded");
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(watch.elapsed() < Duration::from_millis(3_500), "{:?}", watch.elapsed());
    sound.over(service);
}

#[test]
fn serve_on_redis_answers_a_batch_line_by_line_in_order() {
    let server = Server::start(&[]);
    let service = Deployment::on(&server).serve(&[]);
    let sound = Sound::before(&service);
    let lines: String = (0..3_000).map(|line| format!("{{\"line\":{line}}}\n")).collect();
    assert_text(&service.post("/v1/batch/echo", &lines), &lines);
    let by_completion = service.post("/v1/batch/echo?sink_mode=completion", &lines).text();
    let sorted = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<String>>();
    assert_eq!(sorted(&by_completion), sorted(&lines));
    let stats = service.get("/v1/stats").json();
    assert_eq!(stats["groups"][0]["executors"], 1, "{stats}");
    sound.over(service);
}

#[test]
fn p2_callers_keep_waiting_when_the_executor_of_serve_is_killed_and_each_effect_is_once() {
    let server = Server::start(&[]);
    // The lease is 30 s: nobody waits for its end, as the supervisor says who died.
    let service = Deployment::on(&server).serve_of(&example("embedder"), &[]);
    let sound = Sound::before(&service);
    let mut callers = counters(&service, 8, 1_000);
    let mut sleepers: Vec<Client> = (0..5).map(|_| sleeper(&service, 3_000)).collect();
    running(&service, 6);
    let begun = Stopwatch::start();
    kill(service.child("executor"));
    assert_counted(&mut callers, 1);
    for sleeper in &mut sleepers {
        assert_text(&sleeper.read(), r#"{"slept_ms":3000}"#);
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    drop((callers, sleepers));
    assert!(service.metric("queue_redelivered_total") >= 1.0);
    sound.over(service);
}

#[test]
fn p5_jobs_outlive_the_web_process_that_took_them_and_can_be_read_from_the_next_one() {
    let server = Server::start(&[]);
    let service = Deployment::on(&server).serve(&[]);
    let sound = Sound::before(&service);
    let jobs: Vec<String> =
        (0..12).map(|_| service.submit("/v1/jobs/sleep", &[], r#"{"ms":1500}"#)).collect();
    let mut waiting = sleeper(&service, 1_500);
    waiters(&service, 1.0);
    let (web, executor) = (service.child("web"), service.child("executor"));
    let begun = Stopwatch::start();
    kill(web);
    assert_eq!(waiting.try_read(PATIENCE), Err(NoAnswer::Closed));
    for id in &jobs {
        let record = service.record_when(id, "succeeded");
        assert_eq!(record["deliveries"], 1, "nobody was interrupted: {record}");
    }
    assert!(begun.elapsed() < Duration::from_secs(7), "it took {:?}", begun.elapsed());
    assert_eq!(service.child("executor"), executor, "executors need no web");
    assert_ne!(service.child("web"), web);
    drop(waiting);
    sound.over(service);
}

#[test]
fn p5_an_idempotency_key_is_known_after_the_web_process_was_killed_and_joins_the_running_job() {
    let server = Server::start(&[]);
    let service = Deployment::on(&server).serve_of(&example("embedder"), &[]);
    let sound = Sound::before(&service);
    let key = ["Idempotency-Key: \"pay-1\""];
    let mut first = service.connect();
    first.send(request("POST", "/v1/jobs/count", &key, "2500"));
    running(&service, 1);
    kill(service.child("web"));
    assert_eq!(first.try_read(PATIENCE), Err(NoAnswer::Closed));
    let again = service.request("POST", "/v1/jobs/count", &key, "2500");
    assert_text(&again, "1");
    assert_eq!(again.header("idempotency-replayed"), Some("true"), "{again:?}");
    assert_counted(&mut counters(&service, 1, 0), 2);
    drop(first);
    sound.over(service);
}

#[test]
fn p6_a_killed_supervisor_takes_all_with_it_and_the_next_one_finishes_its_jobs() {
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server).with(SHORT_LEASE);
    let service = deployment.serve(&[]);
    let jobs: Vec<String> = (0..3).map(|_| service.submit("/v1/jobs/sleep", &[], r#"{"ms":2000}"#)).collect();
    running(&service, 3);
    let children = all_children(service.pid);
    assert_eq!(children.len(), 2);
    let begun = Stopwatch::start();
    kill(service.pid);
    until("its children are gone", PATIENCE, || (!children.iter().any(|pid| is_alive(*pid))).then_some(()));
    assert!(begun.elapsed() < Duration::from_secs(2), "it took {:?}", begun.elapsed());
    assert_eq!(service.ended().status.code(), None);
    let next = deployment.serve(&[]);
    for id in &jobs {
        let record = next.record_when(id, "succeeded");
        assert_eq!(
            record["deliveries"], 1,
            "that their whole service was lost says nothing about them: {record}"
        );
    }
    assert_ended_well(next);
}

#[track_caller]
fn assert_ended_well(service: Service) {
    let ended = service.stop();
    assert_ended(&ended.status, &ended.stderr, Some(0));
}

#[test]
fn p12_a_drain_finishes_what_runs_and_leaves_what_is_queued_for_the_next_start() {
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server).with(ONE_WORKER);
    let service = deployment.serve(&[]);
    let mut waiting = sleeper(&service, 2_500);
    running(&service, 1);
    let queued: Vec<String> =
        (0..5).map(|_| service.submit("/v1/jobs/sleep", &[], r#"{"ms":2000}"#)).collect();
    let begun = Stopwatch::start();
    service.terminate();
    assert_text(&waiting.read(), r#"{"slept_ms":2500}"#);
    drop(waiting);
    let ended = service.ended();
    assert_ended(&ended.status, &ended.stderr, Some(0));
    // While a caller waits its executor goes on: one of them may begin before it hears that nobody does.
    assert!(
        begun.elapsed() < Duration::from_millis(6_000),
        "queued ones hold up nobody: {:?}",
        begun.elapsed()
    );
    let next = deployment.serve(&[r#"runtime.platform.process_groups=[{"name":"execution","workers":5}]"#]);
    for id in &queued {
        let record = next.record_when(id, "succeeded");
        assert_eq!(record["deliveries"], 1, "{record}");
    }
    assert_ended_well(next);
}

#[test]
fn p12_a_job_that_is_cut_off_is_named_and_run_again_by_the_next_start_uncounted() {
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server);
    let short = "runtime.platform.lifecycle.graceful_timeout_ms=200";
    for set in [short, "runtime.platform.lifecycle.drain_inflight=false"] {
        let service = deployment.serve(&[set]);
        let mut waiting = sleeper(&service, 4_000);
        running_and_heard(&service, 1);
        let jobs = service.get("/v1/jobs?handler=sleep&status=running").json();
        let id = jobs["jobs"][0]["id"].as_str().expect("an id").to_owned();
        let begun = Stopwatch::start();
        service.terminate();
        let answer = waiting.read();
        assert_eq!((answer.status, answer.code().as_str()), (503, "draining"), "{set}: {answer:?}");
        drop(waiting);
        let ended = service.ended();
        assert_ended(&ended.status, &ended.stderr, Some(4));
        assert!(begun.elapsed() < Duration::from_secs(4), "{set}: it took {:?}", begun.elapsed());
        assert!(ended.stderr.contains(&id), "{set} does not name {id}: {}", ended.stderr);
        // Long before its lease would have ended, and as if it had not been started.
        let begun = Stopwatch::start();
        let next = deployment.serve(&[]);
        let record = next.record_when(&id, "running");
        assert_eq!(record["deliveries"], 1, "{set}: {record}");
        assert!(begun.elapsed() < Duration::from_secs(4), "{set}: it took {:?}", begun.elapsed());
        next.record_when(&id, "succeeded");
        assert_ended_well(next);
    }
}

/// Supervisor and web have been told to stop; the executor is, once web has finished.
#[track_caller]
fn all_drain(service: &Service) {
    until("all drain", PATIENCE, || {
        (service.stderr().matches("lifecycle.draining").count() == 2).then_some(())
    });
}

#[test]
fn p12_a_supervisor_that_looks_late_names_what_web_has_cut_off() {
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server).with("runtime.platform.lifecycle.graceful_timeout_ms=2500");
    for is_web_killed in [false, true] {
        let service = deployment.serve(&[]);
        let id = service.submit("/v1/jobs/sleep", &[], r#"{"ms":600000}"#);
        service.record_when(&id, "running");
        let web = service.child("web");
        service.terminate();
        all_drain(&service);
        signal(service.pid, Signal::STOP);
        // At its deadline web gives the job back, and names it to whoever listens.
        until("the job is queued again", PATIENCE, || {
            (service.get(&format!("/v1/jobs/{id}")).json()["status"] == "queued").then_some(())
        });
        if is_web_killed {
            kill(web);
        }
        signal(service.pid, Signal::CONT);
        let ended = service.ended();
        assert_ended(&ended.status, &ended.stderr, Some(4));
        assert!(ended.stderr.contains(&id), "{id} is not named: {}", ended.stderr);
    }
}

#[test]
fn p12_a_drain_whose_executor_is_killed_exits_4_and_the_next_start_runs_its_job_again() {
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server).with(SHORT_LEASE);
    let service = deployment.serve(&[]);
    let id = service.submit("/v1/jobs/sleep", &[], r#"{"ms":1500}"#);
    service.record_when(&id, "running");
    service.terminate();
    all_drain(&service);
    kill(service.child("executor"));
    let ended = service.ended();
    assert_ended(&ended.status, &ended.stderr, Some(4));
    assert!(ended.stderr.contains("lifecycle.crashed process_group=execution"), "{}", ended.stderr);
    assert!(ended.stderr.contains(&format!("lifecycle.forced job_id={id}")), "{}", ended.stderr);
    let next = deployment.serve(&[]);
    assert_eq!(next.record_when(&id, "succeeded")["deliveries"], 1, "what a stop cuts off is not counted");
    assert_ended_well(next);
}

#[test]
fn p12_in_one_process_a_drain_finishes_what_runs_or_names_what_it_cuts_off() {
    let server = Server::start(&[]);
    let inline = "runtime.platform.bootstrap.mode=inline";
    let deployment = Deployment::on(&server).with(inline).with(ONE_WORKER);
    let service = deployment.serve(&[]);
    let runs = service.submit("/v1/jobs/sleep", &[], r#"{"ms":3000}"#);
    service.record_when(&runs, "running");
    let waits = service.submit("/v1/jobs/sleep", &[], r#"{"ms":600000}"#);
    // Nobody waits for either.
    assert_ended_well(service);
    let service = deployment.serve(&["runtime.platform.lifecycle.graceful_timeout_ms=300"]);
    let record = service.record(&runs);
    assert_eq!((&record["status"], &record["deliveries"]), (&json!("succeeded"), &json!(1)), "{record}");
    service.record_when(&waits, "running");
    // Claimed is not started: what no worker has begun is given back, and nothing is cut off.
    std::thread::sleep(Duration::from_millis(1_500));
    let ended = service.stop();
    assert_ended(&ended.status, &ended.stderr, Some(4));
    assert!(ended.stderr.contains(&waits), "{waits} is not named: {}", ended.stderr);
    let web = deployment.web(&cofferdam(), &["runtime.platform.bootstrap.mode=process_supervisor"]);
    let record = web.record(&waits);
    assert_eq!((&record["status"], &record["deliveries"]), (&json!("queued"), &json!(0)), "{record}");
    assert_ended_well(web);
}

#[test]
fn p2_an_executor_that_was_recycled_is_followed_at_once_when_it_is_killed_with_its_last_jobs() {
    let server = Server::start(&[]);
    let group = r#"runtime.platform.process_groups=[{"name":"execution","workers":2,"max_jobs":1}]"#;
    let service = Deployment::on(&server).with(group).serve(&[]);
    let long = service.submit("/v1/jobs/sleep", &[], r#"{"ms":3000}"#);
    service.record_when(&long, "running");
    let first = service.child("executor");
    assert_text(&service.post("/v1/jobs/sleep", r#"{"ms":1}"#), r#"{"slept_ms":1}"#);
    until("its successor serves beside it", PATIENCE, || {
        (service.children("executor").len() == 2 && service.get("/readyz").status == 200).then_some(())
    });
    let begun = Stopwatch::start();
    kill(first);
    let record = service.record_when(&long, "succeeded");
    assert_eq!(record["deliveries"], 2, "{record}");
    assert!(begun.elapsed() < Duration::from_secs(12), "a lease is 30 s: {:?}", begun.elapsed());
    assert_ended_well(service);
}

#[test]
fn p12_a_second_signal_forces_the_stop_and_exits_4() {
    let server = Server::start(&[]);
    let service = Deployment::on(&server).serve(&[]);
    let id = service.submit("/v1/jobs/sleep", &[], r#"{"ms":600000}"#);
    service.record_when(&id, "running");
    service.terminate();
    until("it drains", PATIENCE, || service.stderr().contains("lifecycle.draining").then_some(()));
    // Whoever has nothing left to do has time to say so.
    std::thread::sleep(Duration::from_millis(100));
    let begun = Stopwatch::start();
    service.terminate();
    let ended = service.ended();
    assert_ended(&ended.status, &ended.stderr, Some(4));
    assert!(begun.elapsed() < Duration::from_secs(3), "it took {:?}", begun.elapsed());
    assert!(ended.stderr.contains(&id), "{id} is not named: {}", ended.stderr);
}

#[test]
fn any_web_process_knows_any_job_and_wakes_whoever_waits_for_it() {
    // As on hosts of their own: each has an address, and they meet at a server's port.
    let mut server = Server::absent(&[]).with_tcp();
    server.up();
    let deployment = Deployment::at(&server.tcp_url()).with(ONE_WORKER);
    let program = example("embedder");
    let here = deployment.web(&program, &["web.bind=127.0.0.2:0"]);
    let there = deployment.web(&program, &["web.bind=127.0.0.3:0"]);
    assert_ne!(here.address.ip(), there.address.ip());
    // Nobody can run it yet, and the record says so.
    let early = here.submit("/v1/jobs/echo", &[], "1");
    assert_eq!(there.record(&early)["waiting_for"]["reason"], "executor");
    let executors = [deployment.executor(&program, &[]), deployment.executor(&program, &[])];
    here.record_when(&early, "succeeded");

    // Two executors of one worker each: two at once.
    let ids: Vec<String> = (0..2).map(|_| here.submit("/v1/jobs/sleep", &[], r#"{"ms":2500}"#)).collect();
    running(&there, 2);
    let mut waits: Vec<Client> = ids
        .iter()
        .map(|id| {
            let mut client = there.connect();
            client.send(request("GET", &format!("/v1/jobs/{id}?wait=20"), &[], ""));
            client
        })
        .collect();
    let begun = Stopwatch::start();
    for wait in &mut waits {
        let record = wait.read().json();
        assert_eq!(record["status"], "succeeded", "{record}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "they are told at the end: {:?}", begun.elapsed());

    // One key in both: one run, and both get its answer.
    let key = ["Idempotency-Key: both"];
    let mut both: Vec<Client> = [&here, &there].iter().map(|web| web.connect()).collect();
    for client in &mut both {
        client.send(request("POST", "/v1/jobs/count", &key, "500"));
    }
    let answers: Vec<Answer> = both.iter_mut().map(Client::read).collect();
    answers.iter().for_each(|answer| assert_text(answer, "1"));
    let replayed = answers.iter().filter(|answer| answer.header("idempotency-replayed").is_some());
    assert_eq!(replayed.count(), 1);
    assert_counted(&mut counters(&there, 1, 0), 2);

    let stats = there.get("/v1/stats").json();
    assert_eq!(stats["groups"][0]["executors"], 2, "{stats}");
    let roles = stats["processes"].as_array().expect("processes").iter().map(|process| &process["role"]);
    assert_eq!(roles.clone().filter(|role| *role == "web").count(), 4, "each has its own: {stats}");
    assert_eq!(roles.filter(|role| *role == "executor").count(), 2, "{stats}");
    for service in [here, there] {
        assert_ended_well(service);
    }
    for executor in executors {
        executor.terminate();
        let ended = executor.ended();
        assert_ended(&ended.status, &ended.stderr, Some(0));
    }
}

#[test]
fn p2_the_jobs_of_a_lone_executor_that_is_killed_come_again_after_its_lease() {
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server).with(SHORT_LEASE);
    let program = example("embedder");
    let web = deployment.web(&program, &[]);
    let first = deployment.executor(&program, &[]);
    let id = web.submit("/v1/jobs/count", &[], "2000");
    web.record_when(&id, "running");
    let begun = Stopwatch::start();
    // At once: the job is over soon, and a second executor takes its time to start.
    drop(first);
    let second = deployment.executor(&program, &[]);
    let record = web.record_when(&id, "succeeded");
    let took = begun.elapsed();
    assert_eq!((&record["deliveries"], &record["result"]), (&json!(2), &json!(1)), "{record}");
    assert!(took < Duration::from_secs(6), "a lease of a second: {took:?}");
    assert_counted(&mut counters(&web, 1, 0), 2);
    assert_ended_well(web);
    second.terminate();
    assert_eq!(second.ended().status.code(), Some(0));
}

#[test]
fn p12_a_lone_executor_drains_and_exits_0_or_names_what_it_cut_off_and_exits_4() {
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server).with(ONE_WORKER);
    let web = deployment.web(&cofferdam(), &[]);
    let executor = deployment.executor(&cofferdam(), &[]);
    let runs = web.submit("/v1/jobs/sleep", &[], r#"{"ms":2500}"#);
    web.record_when(&runs, "running");
    let waits = web.submit("/v1/jobs/echo", &[], "2");
    executor.terminate();
    let ended = executor.ended();
    assert_ended(&ended.status, &ended.stderr, Some(0));
    assert_eq!(web.record(&runs)["status"], "succeeded");
    assert_eq!(web.record(&waits)["status"], "queued");

    let short = "runtime.platform.lifecycle.graceful_timeout_ms=100";
    let executor = deployment.executor(&cofferdam(), &[short]);
    web.record_when(&waits, "succeeded");
    let runs = web.submit("/v1/jobs/sleep", &[], r#"{"ms":600000}"#);
    web.record_when(&runs, "running");
    shows(&executor, "workers_busy{group=\"execution\"} 1");
    executor.terminate();
    let ended = executor.ended();
    assert_ended(&ended.status, &ended.stderr, Some(4));
    assert!(ended.stderr.contains(&runs), "{runs} is not named: {}", ended.stderr);
    let record = web.record(&runs);
    assert_eq!((&record["status"], &record["deliveries"]), (&json!("queued"), &json!(0)), "{record}");
    assert_ended_well(web);
}

#[test]
fn p15_deployments_with_other_prefixes_in_one_server_do_not_see_each_other() {
    let server = Server::start(&[]);
    let deployment =
        |prefix: &str| Deployment::on(&server).with(&format!("runtime.platform.redis.key_prefix={prefix}"));
    let (one, other) = (deployment("one"), deployment("other"));
    let web = one.web(&cofferdam(), &[]);
    let serves = other.serve(&[]);
    let key = ["Idempotency-Key: same"];
    let id = web.submit("/v1/jobs/echo", &key, "1");
    assert_text(&serves.request("POST", "/v1/jobs/echo", &key, "2"), "2");
    assert_eq!(serves.get(&format!("/v1/jobs/{id}")).code(), "unknown_job");
    assert_eq!(serves.get("/v1/jobs").json()["jobs"].as_array().map(Vec::len), Some(1));
    // The other one's executor has been idle meanwhile, and has not taken it.
    let record = web.record(&id);
    assert_eq!((&record["status"], &record["waiting_for"]["reason"]), (&json!("queued"), &json!("executor")));
    let keys = server.keys();
    let is_of = |key: &&String| key.starts_with("{one}:") || key.starts_with("{other}:");
    assert_eq!(keys.iter().filter(is_of).count(), keys.len(), "{keys:?}");
    assert_ended_well(serves);
    assert_ended_well(web);
}

#[test]
fn with_kv_in_redis_alone_a_lanes_state_outlives_the_web_process() {
    let server = Server::start(&[]);
    let mixed = ["runtime.platform.queue.backend=memory", "runtime.platform.reply.backend=memory"];
    let deployment = mixed.iter().fold(Deployment::on(&server), |deployment, set| deployment.with(set));
    let output = run(&mut deployment.command(&example("embedder"), "check", &[]), b"");
    assert!(String::from_utf8_lossy(&output.stdout).contains("weaker promise"), "{}", shown(&output));
    let service = deployment.serve_of(&example("embedder"), &[]);
    assert!(service.stderr().contains("mixed backends"), "{}", service.stderr());
    let sound = Sound::before(&service);
    assert_counted(&mut counters(&service, 3, 0), 1);
    let web = service.child("web");
    kill(web);
    assert_counted(&mut counters(&service, 2, 0), 4);
    assert_ne!(service.child("web"), web);
    kill(service.child("executor"));
    assert_counted(&mut counters(&service, 1, 0), 6);
    sound.over(service);
    let next = deployment.serve_of(&example("embedder"), &[]);
    assert_counted(&mut counters(&next, 1, 0), 7);
    assert_ended_well(next);
}

#[test]
fn batch_on_redis_gives_the_lines_in_order_and_leaves_no_key() {
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server);
    let lines: String = (0..500).map(|line| format!("{{\"line\":{line}}}\n")).collect();
    let batch = |program: &std::path::Path, handler: &str, input: &str| {
        let mut command = deployment.command(program, "batch", &[]);
        run(command.args(["--handler", handler]), input.as_bytes())
    };
    let output = batch(&cofferdam(), "echo", &lines);
    assert_said(&output, 0, &[]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), lines);
    assert_eq!(server.keys(), [""; 0], "it leaves nothing");
    // A lane's state begins empty each time, and a failed line leaves nothing either.
    for _ in 0..2 {
        let output = batch(&example("embedder"), "count", "0\n0\nx\n0\n");
        assert_said(&output, 1, &["1 of 4"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines[1], lines[3]), ("1", "2", "3"), "{text}");
        assert_eq!(server.keys(), [""; 0], "it leaves nothing");
    }
}

#[test]
fn u7_what_a_batch_has_on_redis_goes_with_it_however_it_ends() {
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server);
    let inline = "runtime.platform.bootstrap.mode=inline";
    let supervised = "runtime.platform.bootstrap.mode=process_supervisor";
    for mode in [inline, supervised] {
        for end in [Signal::TERM, Signal::KILL] {
            let mut command = deployment.command(&cofferdam(), "batch", &[mode]);
            let mut child = command.args(["--handler", "sleep"]).spawn().expect("the binary");
            let mut stdin = child.stdin.take().expect("its input");
            stdin.write_all(&b"{\"ms\":1}\n{\"ms\":500}\n".repeat(20)).expect("it reads");
            let mut first = [0; 15];
            child.stdout.as_mut().expect("its output").read_exact(&mut first).expect("the first result");
            let keys = server.keys();
            assert!(keys.len() > 20, "{keys:?}");
            signal(child.id(), end);
            drop(stdin);
            let output = program::wait(child);
            match end {
                Signal::TERM => {
                    // What ran is done, and nothing else began.
                    assert_said(&output, 1, &["stopped: line ", " was the last that is done"]);
                    assert_eq!(server.keys(), [""; 0], "it leaves nothing");
                }
                _ => {
                    // Nobody was there to remove them: each has a life, and none is longer than an hour.
                    let lives: Vec<(String, i64)> = server.lives();
                    assert!(lives.len() > 20, "{lives:?}");
                    let ends = |life: i64| (1..=3_600_000).contains(&life);
                    assert!(lives.iter().all(|(_, life)| ends(*life)), "{lives:?}");
                    let _: () = server.ask(&["FLUSHALL"]);
                }
            }
        }
    }
}

/// What is done to the server that a batch works with.
type Harm = dyn Fn(&Server) + Sync;

fn a_batch_ends_with_its_reason(harm: &Harm, words: &[&str]) {
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server);
    let mut command = deployment.command(&cofferdam(), "batch", &[]);
    let mut child = command.args(["--handler", "sleep"]).spawn().expect("the binary");
    let mut stdin = child.stdin.take().expect("its input");
    stdin.write_all(&b"{\"ms\":1}\n{\"ms\":200}\n".repeat(500)).expect("it reads");
    let mut first = [0; 15];
    child.stdout.as_mut().expect("its output").read_exact(&mut first).expect("the first result");
    // Everything is submitted by now, so that nothing but the silence tells.
    harm(&server);
    let begun = Stopwatch::start();
    let output = program::wait(child);
    drop(stdin);
    assert_said(&output, 1, words);
    assert!(begun.elapsed() < Duration::from_secs(25), "it took {:?}", begun.elapsed());
}

#[test]
fn u7_a_backend_that_refuses_for_good_ends_a_batch_with_its_reason() {
    let harms: [(&Harm, &[&str]); 3] = [
        (
            &|server| server.tell(&["CONFIG", "SET", "requirepass", "changed"]),
            &["cofferdam: the backend: redis: ", "password_file"],
        ),
        (
            &|server| server.tell(&["ACL", "SETUSER", "default", "-fcall"]),
            &["cofferdam: the backend: redis: ", "fcall", "ACL line"],
        ),
        (
            &|server| server.tell(&["FLUSHALL"]),
            &["cofferdam: the backend: it has lost jobs that it had accepted"],
        ),
    ];
    std::thread::scope(|scope| {
        for (harm, words) in harms {
            scope.spawn(|| a_batch_ends_with_its_reason(harm, words));
        }
    });
}

#[test]
fn r10_keys_after_a_hundred_thousand_jobs_are_those_after_ten() {
    const AT_ONCE: usize = 10_000;
    let server = Server::start(&[]);
    let ttl = ["result", "awaited"].map(|kind| format!("runtime.platform.reply.{kind}_ttl_seconds=1"));
    let service = Deployment::on(&server).serve(&[
        &ttl[0],
        &ttl[1],
        "runtime.platform.reply.idempotency_ttl_seconds=1",
    ]);
    let after = |jobs: usize| {
        for begun in (0..jobs).step_by(AT_ONCE) {
            let lines = "1\n".repeat(AT_ONCE.min(jobs - begun));
            assert!(service.post("/v1/batch/echo", &lines).text() == lines);
        }
        let id = service.submit("/v1/jobs/echo", &["Idempotency-Key: k"], "1");
        service.record_when(&id, "succeeded");
        until("all records have expired", PATIENCE, || {
            let keys = server.keys();
            let are_gone = |kind: &str| !keys.iter().any(|key| key.contains(kind));
            (are_gone(":job:") && are_gone(":idem")).then_some(())
        });
        server.keys()
    };
    let few = after(10);
    assert_eq!(after(100_000), few);
    assert!(few.len() < 16, "{few:?}");
    assert_ended_well(service);
}

#[test]
fn check_says_what_the_server_promises_and_where_each_value_came_from() {
    let server = Server::start(&redis_server::DURABLE);
    let deployment = Deployment::on(&server);
    let output = run(&mut deployment.command(&cofferdam(), "check", &[]), b"");
    assert_said(&output, 0, &[]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for words in ["what is kept there survives a crash of the server", "supervised-redis", "--set"] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    assert!(!said.contains(aftermath::SECRET));
    let output = run(deployment.command(&cofferdam(), "check", &[]).arg("--json"), b"");
    assert_said(&output, 0, &[]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(
        (&json["profile"], &json["runtime"]["platform"]["queue"]["backend"]),
        (&json!("supervised-redis"), &json!("redis"))
    );
}

#[test]
fn a_config_that_redis_cannot_serve_is_refused_with_exit_2() {
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server);
    for (set, word) in [
        ("runtime.platform.redis.url=rediss://127.0.0.1:6379", "rediss"),
        ("runtime.platform.redis.url=redis://user:pass@127.0.0.1:6379", "runtime.platform.redis.url"),
        ("runtime.platform.kv.backend=memory", "kv.backend"),
        ("runtime.platform.reply.backend=memory", "reply"),
        ("runtime.platform.execution_ipc.auth.secret_mode=generated", "keygen"),
    ] {
        for role in ["serve", "check"] {
            let output = run(&mut deployment.command(&cofferdam(), role, &[set]), b"");
            assert_said(&output, 2, &[word]);
        }
    }
    for role in ["web", "executor"] {
        let memory = ["queue", "kv", "reply"].map(|part| format!("runtime.platform.{part}.backend=memory"));
        let sets: Vec<&str> = memory.iter().map(String::as_str).collect();
        assert_said(&run(&mut deployment.command(&cofferdam(), role, &sets), b""), 2, &["redis"]);
    }
}

#[test]
fn p5_no_caller_is_refused_while_executors_come_and_go() {
    let server = Server::start(&[]);
    let service = Deployment::on(&server).serve(&[]);
    let sound = Sound::before(&service);
    let ((), ends) = under_load(&service, 4, |answered| {
        for _ in 0..3 {
            kill(service.child("executor"));
            redis_server::answered_more(answered, 20);
        }
    });
    assert_eq!(ends.keys().collect::<Vec<_>>(), ["200"], "{ends:?}");
    sound.over(service);
}

#[test]
fn s7_a_secret_and_a_password_are_rotated_host_by_host_and_nothing_is_lost_or_refused() {
    const NEW: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    let server = Server::start(&[]);
    server.tell(&["ACL", "SETUSER", "app", "on", ">one", "~*", "&*", "+@all"]);
    let deployment = Deployment::on(&server).with("runtime.platform.redis.username=app");
    let start = |host: usize, (secrets, password): (&[&str], &str)| {
        let secrets = deployment.file(&format!("secret-{host}"), &(secrets.join("\n") + "\n"));
        let password = deployment.file(&format!("password-{host}"), password);
        let sets = [
            format!("runtime.platform.execution_ipc.auth.secret_file={}", secrets.display()),
            format!("runtime.platform.redis.password_file={}", password.display()),
        ];
        deployment.serve_of(&example("embedder"), &[&sets[0], &sets[1]])
    };
    let mut hosts = [0, 1].map(|host| Some(start(host, (&[SECRET], "one"))));
    let (mut counted, mut delayed) = (1, Vec::new());
    let steps: [(&[&str], &str); 3] = [(&[SECRET, NEW], "one"), (&[NEW, SECRET], "two"), (&[NEW], "two")];
    server.tell(&["ACL", "SETUSER", "app", ">two"]);
    for (at, step) in steps.into_iter().enumerate() {
        for host in 0..2 {
            let [leaves, stays] = [host, 1 - host].map(|host| hosts[host].as_ref().expect("it runs"));
            delayed.push(leaves.submit(
                "/v1/jobs/echo?delay_ms=500",
                &["Content-Type: application/json"],
                "1",
            ));
            let mut waiting = counters(stays, 3, 30);
            assert_ended_well(hosts[host].take().expect("it runs"));
            hosts[host] = Some(start(host, step));
            assert_counted(&mut waiting, counted);
            assert_counted(&mut counters(hosts[host].as_ref().expect("it runs"), 1, 0), counted + 3);
            counted += 4;
        }
        let knows = hosts[at % 2].as_ref().expect("it runs");
        delayed.iter().for_each(|id| _ = knows.record_when(id, "succeeded"));
        if at == 1 {
            // Whatever the last step forgets has ended; and its records go with their signatures.
            delayed.clear();
            server.tell(&["ACL", "SETUSER", "app", "<one"]);
        }
    }
    for host in hosts.into_iter().flatten() {
        for what in ["job", "state", "key", "end"] {
            assert_eq!(host.metric(&format!("forged_total{{what=\"{what}\"}}")), 0.0, "{what}");
        }
        assert_ended_well(host);
    }
}

#[test]
fn s7_a_password_is_changed_under_a_service_that_runs() {
    let server = Server::start(&[]);
    server.tell(&["ACL", "SETUSER", "app", "on", ">one", "~*", "&*", "+@all"]);
    let deployment = Deployment::on(&server).with("runtime.platform.redis.username=app");
    let write = |word: &str| deployment.file("password", word);
    let set = format!("runtime.platform.redis.password_file={}", write("one").display());
    let service = deployment.serve(&[&set]);
    assert_eq!(service.post("/v1/jobs/echo", "1").text(), "1");
    server.tell(&["ACL", "SETUSER", "app", ">two"]);
    let says = |words: &str| {
        signal(service.pid, Signal::HUP);
        until(words, PATIENCE, || service.stderr().contains(words).then_some(()));
    };
    let file = write("two\n").display().to_string();
    says(&format!("SIGHUP: each new connection has the password that {file} holds by then"));
    server.tell(&["ACL", "SETUSER", "app", "<one"]);
    // Connections that are there stay; those that must be made anew are let in.
    server.tell(&["CLIENT", "KILL", "USER", "app"]);
    assert_eq!(service.post("/v1/jobs/echo", "2").text(), "2");
    // While the file cannot be read it is as at the start, which does not help here; and then it does again.
    std::fs::remove_file(write("two")).expect("our own file");
    says(&format!("SIGHUP: new connections have the password of the start: {file}: cannot be read"));
    server.tell(&["CLIENT", "KILL", "USER", "app"]);
    until("it is told", PATIENCE, || (service.get("/readyz").status == 503).then_some(()));
    write("two");
    until("it is back", PATIENCE, || (service.get("/readyz").status == 200).then_some(()));
    assert_eq!(service.post("/v1/jobs/echo", "3").text(), "3");
    assert_ended_well(service);
}

#[test]
fn cancelling_in_one_web_process_frees_the_caller_in_another() {
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server);
    let (here, there) = (deployment.web(&cofferdam(), &[]), deployment.web(&cofferdam(), &[]));
    let executor = deployment.executor(&cofferdam(), &[]);
    let mut waiting = caller(&here, "/v1/jobs/sleep", r#"{"ms":600000}"#);
    running(&there, 1);
    let jobs = there.get("/v1/jobs?status=running").json();
    let id = jobs["jobs"][0]["id"].as_str().expect("an id").to_owned();
    let cancelled = there.request("DELETE", &format!("/v1/jobs/{id}"), &[], "");
    assert_eq!(cancelled.json()["status"], "cancelled");
    let answer = waiting.read();
    assert_eq!((answer.status, answer.code().as_str()), (409, "cancelled"), "{answer:?}");
    // Its worker stops, too: the executor is idle and drains at once.
    let begun = Stopwatch::start();
    executor.terminate();
    assert_eq!(executor.ended().status.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(3), "it took {:?}", begun.elapsed());
    assert_ended_well(here);
    assert_ended_well(there);
}
