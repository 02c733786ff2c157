//! Processes that are stopped, and a service that is told to stop; each test named
//! after its row.
//!
//! It guards that a pause of any process costs time and nothing else, that one which is taken for dead stays it, and how
//! a service ends: what is finished, what is cut off and named, and with which exit code.

#[path = "support/aftermath.rs"]
mod aftermath;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::time::{Duration, Instant};

use aftermath::{Trial, assert_counted, assert_ended, assert_text, call, counters, counting, payload};
use program::{Folder, cofferdam, wait};
use rustix::process::Signal;
use service::{
    Client, NoAnswer, PATIENCE, Service, Stopwatch, all_children, caller, has_pending, is_alive, kill,
    request, running, signal, sleeper, until, waiters,
};

const INLINE: &str = "runtime.platform.bootstrap.mode=inline";
const SUPERVISED: &str = "runtime.platform.bootstrap.mode=process_supervisor";
const LONG_SLEEP: &str = r#"{"ms":600000}"#;

#[test]
fn p10_an_executor_that_is_stopped_for_three_seconds_costs_latency_only() {
    let trial = counting(&[]);
    let executor = trial.child("executor");
    let mut callers = counters(&trial, 10, 200);
    running(&trial, 1);
    signal(executor, Signal::STOP);
    callers.extend(counters(&trial, 10, 0));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(callers[19].try_read(Duration::from_millis(1)), Err(NoAnswer::Late));
    signal(executor, Signal::CONT);
    assert_counted(&mut callers, 1);
    drop(callers);
    assert_eq!(trial.child("executor"), executor);
    assert_eq!(trial.metric("queue_redelivered_total"), 0.0);
    trial.over();
}

#[test]
fn p10_an_executor_that_is_stopped_for_good_is_replaced_and_its_callers_are_served_by_the_next_one() {
    let trial = counting(&["runtime.platform.execution_ipc.heartbeat_ms=200"]);
    let executor = trial.child("executor");
    let mut callers = counters(&trial, 5, 400);
    running(&trial, 1);
    signal(executor, Signal::STOP);
    assert_counted(&mut callers, 1);
    drop(callers);
    assert!(!is_alive(executor));
    assert_ne!(trial.child("executor"), executor);
    trial.over();
}

#[test]
fn p10_an_executor_that_continues_after_it_was_taken_for_dead_delivers_nothing() {
    // On a machine that lets nobody look for a second it is killed before it can continue.
    let has_continued = (0..3).any(|_| {
        let trial = counting(&["runtime.platform.execution_ipc.heartbeat_ms=150"]);
        let executor = trial.child("executor");
        let mut callers = counters(&trial, 5, 300);
        running(&trial, 1);
        signal(executor, Signal::STOP);
        let is_over = until("its connection is closed, and its SIGTERM waits for it", PATIENCE, || {
            let is_closed = trial.get("/v1/stats").json()["groups"][0]["executors"] == 0;
            let is_over = is_closed && has_pending(executor, Signal::TERM);
            (is_over || !is_alive(executor)).then_some(is_over)
        });
        // It goes on with what it was doing until SIGKILL comes a second later.
        if is_over {
            signal(executor, Signal::CONT);
        }
        assert_counted(&mut callers, 1);
        drop(callers);
        until("it is ended all the same", PATIENCE, || (!is_alive(executor)).then_some(()));
        assert_ne!(trial.child("executor"), executor);
        assert_eq!(trial.metric("process_restarts_total{group=\"execution\",reason=\"unresponsive\"}"), 1.0);
        // Nothing of what it did came through: the number is what the callers were told.
        assert_text(&trial.post("/v1/jobs/count", "0"), "6");
        trial.over();
        is_over
    });
    assert!(has_continued, "it was always killed at once");
}

#[test]
fn p11_deadlines_that_passed_while_web_was_stopped_are_answered_as_passed() {
    let trial = Trial::start(&["runtime.platform.queue.max_deliveries=1"]);
    let web = trial.child("web");
    let mut timed_out = caller(&trial, "/v1/jobs/sleep?timeout_ms=1500", LONG_SLEEP);
    let mut waited = trial.connect();
    waited.send(request("POST", "/v1/jobs/sleep", &["Prefer: wait=2"], r#"{"ms":1600}"#));
    let mut gave_up = trial.connect();
    gave_up.send(request("POST", "/v1/jobs/sleep", &["Prefer: wait=1"], r#"{"ms":6000}"#));
    running(&trial, 3);
    signal(web, Signal::STOP);
    std::thread::sleep(Duration::from_millis(2_500));
    signal(web, Signal::CONT);
    let begun = Stopwatch::start();
    let answer = timed_out.read();
    assert_eq!((answer.status, answer.code().as_str()), (504, "handler_timed_out"), "{answer:?}");
    // Its job was done in time by an executor that nobody had stopped; either answer is true.
    let answer = waited.read();
    assert!(matches!(answer.status, 200 | 202), "{answer:?}");
    let answer = gave_up.read();
    assert_eq!(answer.status, 202, "{answer:?}");
    assert!(
        begun.elapsed() < Duration::from_millis(900),
        "a stop prolongs no deadline: {:?}",
        begun.elapsed()
    );
    drop((timed_out, waited, gave_up));
    assert_eq!(trial.child("web"), web);
    trial.over();
}

#[test]
fn p11_a_job_whose_time_passed_while_web_was_stopped_does_not_run_on() {
    let trial = counting(&["handlers.count.timeout_ms=1500", "runtime.platform.queue.max_deliveries=1"]);
    let (web, mut late) = (trial.child("web"), counters(&trial, 1, 60_000));
    running(&trial, 1);
    signal(web, Signal::STOP);
    std::thread::sleep(Duration::from_millis(2_500));
    signal(web, Signal::CONT);
    assert_eq!(late[0].read().code(), "handler_timed_out");
    // It took no effect, and holds its lane no longer.
    let begun = Stopwatch::start();
    assert_counted(&mut counters(&trial, 1, 0), 1);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    drop(late);
    trial.over();
}

#[test]
fn p11_a_web_that_is_stopped_for_good_is_replaced_and_connections_wait_for_the_next_one() {
    let trial = Trial::start(&["runtime.platform.execution_ipc.heartbeat_ms=150"]);
    let web = trial.child("web");
    let mut waiting = sleeper(&trial, 600_000);
    waiters(&trial, 1.0);
    signal(web, Signal::STOP);
    assert_eq!(trial.call(1, PATIENCE), Ok(()));
    assert_eq!(waiting.try_read(PATIENCE), Err(NoAnswer::Closed));
    assert!(!is_alive(web));
    drop(waiting);
    trial.over();
}

#[test]
fn p11_a_supervisor_that_is_stopped_is_missed_by_nobody_and_misses_nobody_afterwards() {
    for heartbeat_ms in [300, 2_000] {
        let trial = Trial::start(&[&format!("runtime.platform.execution_ipc.heartbeat_ms={heartbeat_ms}")]);
        let children = all_children(trial.pid);
        signal(trial.pid, Signal::STOP);
        let end = Instant::now() + Duration::from_millis(2_500);
        let mut client = trial.connect();
        for number in (0..).take_while(|_| Instant::now() < end) {
            assert_eq!(call(&mut client, number, PATIENCE), Ok(()));
        }
        signal(trial.pid, Signal::CONT);
        drop(client);
        assert_kept(&trial, &children);
        trial.over();
    }
}

#[test]
fn p11_a_service_that_is_stopped_as_a_whole_goes_on_with_the_same_processes() {
    let trial = counting(&["runtime.platform.execution_ipc.heartbeat_ms=300"]);
    let children = all_children(trial.pid);
    let mut callers = counters(&trial, 5, 300);
    running(&trial, 1);
    // As when its host is suspended.
    let all = [children.clone(), vec![trial.pid]].concat();
    all.iter().for_each(|pid| signal(*pid, Signal::STOP));
    std::thread::sleep(Duration::from_secs(2));
    all.iter().for_each(|pid| signal(*pid, Signal::CONT));
    assert_counted(&mut callers, 1);
    drop(callers);
    assert_kept(&trial, &children);
    trial.over();
}

/// For longer than it takes to end a child that does not answer (3.5 heartbeats of 300 ms, and a second).
#[track_caller]
fn assert_kept(service: &Service, children: &[u32]) {
    let end = Instant::now() + Duration::from_millis(2_300);
    while Instant::now() < end {
        assert_eq!(all_children(service.pid), children, "{}", service.stderr());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn p12_sigterm_lets_running_and_queued_jobs_finish_and_exits_0() {
    for mode in [INLINE, SUPERVISED] {
        for stop in [Signal::TERM, Signal::INT] {
            let trial = Trial::start(&[mode]);
            let mut callers: Vec<Client> = (0..12).map(|_| sleeper(&trial, 1_200)).collect();
            until("all are accepted", PATIENCE, || {
                (trial.metric("jobs_submitted_total{handler=\"sleep\"}") == 12.0).then_some(())
            });
            signal(trial.pid, stop);
            for caller in &mut callers {
                assert_text(&caller.read(), r#"{"slept_ms":1200}"#);
            }
            drop(callers);
            trial.ended(Some(0));
        }
    }
}

#[test]
fn p12_an_idle_service_ends_at_once() {
    for mode in [INLINE, SUPERVISED] {
        let trial = Trial::start(&[mode]);
        // A connection that is kept alive holds nobody up.
        let mut idle = trial.connect();
        assert_eq!(call(&mut idle, 1, PATIENCE), Ok(()));
        let begun = Stopwatch::start();
        trial.terminate();
        trial.ended(Some(0));
        assert!(begun.elapsed() < Duration::from_secs(2), "{mode} took {:?}", begun.elapsed());
    }
}

#[test]
fn p12_a_second_signal_forces_the_stop_and_names_what_was_cut_off() {
    for mode in [INLINE, SUPERVISED] {
        let trial = Trial::start(&[mode]);
        let id = trial.submit("/v1/jobs/sleep", &[], LONG_SLEEP);
        trial.record_when(&id, "running");
        trial.terminate();
        until("it drains", PATIENCE, || (trial.get("/readyz").status == 503).then_some(()));
        let begun = Stopwatch::start();
        trial.terminate();
        let ended = trial.ended(Some(4));
        assert!(begun.elapsed() < Duration::from_secs(3), "{mode} took {:?}", begun.elapsed());
        assert!(ended.stderr.contains(&id), "{mode} does not name {id}: {}", ended.stderr);
    }
}

#[test]
fn p12_past_the_drains_deadline_it_exits_4_names_the_jobs_and_tells_the_callers() {
    for mode in [INLINE, SUPERVISED] {
        for deadline in [
            "runtime.platform.lifecycle.graceful_timeout_ms=300",
            "runtime.platform.lifecycle.drain_inflight=false",
        ] {
            let trial = Trial::start(&[mode, deadline]);
            let mut caller = sleeper(&trial, 600_000);
            waiters(&trial, 1.0);
            let jobs = trial.get("/v1/jobs?handler=sleep").json();
            let job = jobs["jobs"][0]["id"].as_str().expect("an id");
            let begun = Stopwatch::start();
            trial.terminate();
            let answer = caller.read();
            assert_eq!((answer.status, answer.code().as_str()), (503, "draining"), "{mode}: {answer:?}");
            drop(caller);
            let ended = trial.ended(Some(4));
            assert!(ended.stderr.contains(job), "{mode} {deadline} does not name {job}: {}", ended.stderr);
            assert!(begun.elapsed() < Duration::from_secs(5), "{mode} took {:?}", begun.elapsed());
        }
    }
}

#[test]
fn p12_a_delayed_job_that_cannot_start_in_time_does_not_hold_up_the_drain() {
    for mode in [INLINE, SUPERVISED] {
        let trial = Trial::start(&[mode]);
        let id = trial.submit("/v1/jobs/echo?delay_ms=600000", &[], payload(1));
        let begun = Stopwatch::start();
        trial.terminate();
        // In memory it is lost, so it is named.
        let ended = trial.ended(Some(4));
        assert!(ended.stderr.contains(&id), "{mode} does not name {id}: {}", ended.stderr);
        assert!(begun.elapsed() < Duration::from_secs(3), "{mode} took {:?}", begun.elapsed());
    }
}

/// Whoever has sent half a body, before the drain or in it, is answered and holds it up no longer.
#[test]
fn p12_half_a_body_is_answered_and_does_not_hold_up_the_drain() {
    for mode in [INLINE, SUPERVISED] {
        let service = Service::start(&[mode, "runtime.platform.lifecycle.graceful_timeout_ms=9000"]);
        let half = |target: &str| {
            let mut client = service.connect();
            client.send(format!("{target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf"));
            client
        };
        let mut chunked = service.connect();
        chunked.send(
            "POST /v1/jobs/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nha",
        );
        let mut clients = vec![half("POST /v1/jobs/echo"), half("GET /healthz"), chunked];
        let mut working = sleeper(&service, 3_000);
        waiters(&service, 1.0);
        let begun = Stopwatch::start();
        service.terminate();
        until("it drains", PATIENCE, || (service.get("/readyz").status == 503).then_some(()));
        clients.extend([half("POST /v1/jobs/echo"), half("GET /v1/stats"), half("DELETE /v1/jobs/echo")]);
        for client in &mut clients[..5] {
            let answer = client.read();
            assert_eq!((answer.status, answer.code().as_str()), (503, "draining"), "{answer:?}");
            client.assert_closed();
        }
        assert_eq!(clients[5].read().code(), "unknown_job", "what the head alone decides is said first");
        assert_eq!(working.read().status, 200);
        let ended = service.ended();
        assert_ended(&ended.status, &ended.stderr, Some(0));
        assert!(begun.elapsed() < Duration::from_secs(7), "{mode}: {:?}", begun.elapsed());
    }
}

#[test]
fn p12_an_executor_killed_during_the_drain_is_replaced_and_its_job_finishes() {
    let trial = Trial::start(&[]);
    let mut caller = sleeper(&trial, 3_000);
    running(&trial, 1);
    trial.terminate();
    until("it drains", PATIENCE, || (trial.get("/readyz").status == 503).then_some(()));
    kill(trial.child("executor"));
    assert_text(&caller.read(), r#"{"slept_ms":3000}"#);
    drop(caller);
    trial.ended(Some(0));
}

#[test]
fn p12_a_web_killed_during_the_drain_is_exit_4_as_jobs_went_with_it() {
    let trial = Trial::start(&[]);
    let mut caller = sleeper(&trial, 600_000);
    running(&trial, 1);
    trial.terminate();
    until("it drains", PATIENCE, || (trial.get("/readyz").status == 503).then_some(()));
    let begun = Stopwatch::start();
    kill(trial.child("web"));
    assert_eq!(caller.try_read(PATIENCE), Err(NoAnswer::Closed));
    drop(caller);
    trial.ended(Some(4));
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
}

#[test]
fn p12_a_signal_before_it_is_ready_ends_it_with_exit_0_and_leaves_nothing() {
    for mode in [INLINE, SUPERVISED] {
        let folder = Folder::new();
        let run = folder.path("run");
        std::fs::create_dir(&run).expect("a folder");
        let sets = ["serve", "--set", mode, "--set", "web.bind=127.0.0.1:0"];
        let mut command = program::command(&cofferdam(), sets);
        let child = command.env("RUNTIME_DIRECTORY", &run).spawn().expect("it starts");
        let pid = child.id();
        // Its socket's folder is made after it has taken its signals.
        until("it has begun", PATIENCE, || {
            (std::fs::read_dir(&run).expect("our own folder").count() > 0).then_some(())
        });
        signal(pid, Signal::TERM);
        let output = wait(child);
        assert_ended(&output.status, &String::from_utf8_lossy(&output.stderr), Some(0));
        assert_eq!(std::fs::read_dir(&run).expect("our own folder").count(), 0);
    }
}

#[test]
fn p11_a_supervisor_that_is_stopped_across_the_end_of_a_drain_ends_with_exit_0() {
    let service = Service::start(&["runtime.platform.lifecycle.graceful_timeout_ms=4000"]);
    let mut caller = sleeper(&service, 1_500);
    running(&service, 1);
    service.terminate();
    until("it drains", PATIENCE, || (service.get("/readyz").status == 503).then_some(()));
    signal(service.pid, Signal::STOP);
    assert_eq!(caller.read().status, 200);
    drop(caller);
    // Beyond the deadline that it would judge by, and its slack.
    std::thread::sleep(Duration::from_secs(6));
    signal(service.pid, Signal::CONT);
    let ended = service.ended();
    assert_ended(&ended.status, &ended.stderr, Some(0));
}

#[test]
fn p12_each_of_many_jobs_that_are_cut_off_is_named() {
    const JOBS: usize = 6_000;
    for mode in [INLINE, SUPERVISED] {
        let service = Service::start(&[mode, "runtime.platform.lifecycle.drain_inflight=false"]);
        let mut client = service.connect();
        let one = request("POST", "/v1/jobs/echo?delay_ms=600000", &["Prefer: respond-async"], "1");
        for _ in 0..JOBS / 100 {
            client.send(one.repeat(100));
            (0..100).for_each(|_| assert_eq!(client.read().status, 202));
        }
        let ended = service.stop();
        assert_eq!(ended.status.code(), Some(4));
        let named =
            ended.stderr.lines().filter(|line| line.contains("lifecycle.forced") && line.contains("job_id"));
        let ids: std::collections::HashSet<&str> =
            named.filter_map(|line| line.split("job_id=").nth(1)).collect();
        assert_eq!(ids.len(), JOBS);
    }
}

#[test]
fn p12_a_second_signal_after_the_jobs_are_done_is_exit_0() {
    let service = Service::start(&["runtime.platform.execution_ipc.heartbeat_ms=5000"]);
    assert_eq!(service.post("/v1/jobs/echo", "1").status, 200);
    // Nothing but this process is left to be ended, and it does not listen.
    signal(service.child("executor"), Signal::STOP);
    service.terminate();
    // The supervisor says that it drains, and then web, which has no jobs and ends with that.
    until("its web drains", PATIENCE, || {
        (service.stderr().matches("lifecycle.draining").count() == 2).then_some(())
    });
    service.terminate();
    let ended = service.ended();
    assert_ended(&ended.status, &ended.stderr, Some(0));
}
