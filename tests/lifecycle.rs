//! Processes that are killed, or end by themselves; each test
//! named after its row.
//!
//! It guards what is promised about crashes with the real binary, and after each row what holds after every
//! fault (`support/aftermath.rs`). Times are generous: of several recoveries the best one is held to the row's limit, as
//! a loaded machine is late for reasons of its own.

#[path = "support/aftermath.rs"]
mod aftermath;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::collections::HashSet;
use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aftermath::{Trial, assert_counted, assert_ended, assert_text, counters, counting, payload};
use program::{Folder, cofferdam, command, example, wait};
use service::{
    Client, NoAnswer, PATIENCE, Service, Stopwatch, all_children, caller, free_address, is_alive, kill,
    running, sleeper, until, waiters,
};

const THREE: &str = r#"runtime.platform.process_groups=[{"name":"execution","processes":3}]"#;
/// A row's limit for a replacement; the fastest of several is held to it.
const REPLACED: Duration = Duration::from_millis(300);

#[test]
fn p1_an_idle_executor_that_is_killed_is_replaced_and_no_caller_notices() {
    let trial = Trial::start(&[]);
    let (mut killed, mut best) = (HashSet::new(), Duration::MAX);
    for number in 0..8 {
        let executor = trial.child("executor");
        assert!(killed.insert(executor), "each kill has another victim");
        kill(executor);
        let begun = Stopwatch::start();
        assert_eq!(trial.call(number, PATIENCE), Ok(()));
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(2), "it took {took:?}");
        best = best.min(took);
        until("the first one is gone", PATIENCE, || (!is_alive(executor)).then_some(()));
    }
    assert!(best < REPLACED, "the fastest of eight took {best:?}");
    // Ends after readiness do not count: it would have given up by now.
    assert_eq!(trial.metric("process_restarts_total{group=\"execution\",reason=\"killed\"}"), 8.0);
    trial.over();
}

#[test]
fn p1_an_executor_that_is_killed_before_it_is_ready_is_started_again_after_the_backoff() {
    let trial = Trial::start(&[]);
    let mut last = trial.child("executor");
    kill(last);
    // A kill says nothing about the child: more of them than the restart policy allows ends of its own.
    for _ in 0..8 {
        let next = until("a successor", PATIENCE, || {
            trial.children("executor").into_iter().find(|executor| *executor != last)
        });
        kill(next);
        last = next;
    }
    trial.over();
}

#[test]
fn p2_two_hundred_waiting_callers_survive_the_kill_of_their_executor_and_web_stays_alive() {
    const CALLERS: usize = 200;
    let trial = Trial::start(&[]);
    // The first ones hold every worker when the executor is killed.
    let mut callers: Vec<Client> = (0..8).map(|_| sleeper(&trial, 3_000)).collect();
    running(&trial, 8);
    callers.extend((8..CALLERS).map(|number| caller(&trial, "/v1/jobs/echo", payload(number))));
    waiters(&trial, CALLERS as f64);
    for _ in 0..50 {
        let begun = Stopwatch::start();
        assert_eq!(trial.get("/healthz").status, 200);
        assert!(begun.elapsed() < Duration::from_millis(500), "/healthz took {:?}", begun.elapsed());
    }
    let executor = trial.child("executor");
    kill(executor);
    for (number, caller) in callers.iter_mut().enumerate() {
        let expected = if number < 8 { r#"{"slept_ms":3000}"#.to_owned() } else { payload(number) };
        assert_text(&caller.read(), &expected);
    }
    waiters(&trial, 0.0);
    assert_ne!(trial.child("executor"), executor);
    assert_eq!(trial.metric("process_restarts_total{group=\"execution\",reason=\"killed\"}"), 1.0);
    assert_eq!(trial.metric("queue_redelivered_total"), 8.0);
    // Each answer is the only one on its connection.
    for caller in &mut callers {
        assert_eq!(caller.request("GET", "/healthz", &[], "").text(), r#"{"status":"alive"}"#);
    }
    drop(callers);
    trial.over();
}

#[test]
fn p2_each_effect_of_queued_and_running_jobs_is_there_once() {
    const CALLERS: usize = 60;
    let trial = counting(&["runtime.platform.queue.max_deliveries=1000"]);
    let mut callers = counters(&trial, CALLERS, 50);
    // Not "all wait": on a busy machine the first ones are answered before the last one is read.
    until("all are accepted", PATIENCE, || {
        (trial.metric("jobs_submitted_total{handler=\"count\"}") == CALLERS as f64).then_some(())
    });
    for _ in 0..5 {
        running(&trial, 1);
        kill(trial.child("executor"));
    }
    assert_counted(&mut callers, 1);
    drop(callers);
    // The lane's number went on from the last one.
    assert_text(&trial.post("/v1/jobs/count", "0"), &(CALLERS + 1).to_string());
    trial.over();
}

#[test]
fn p2_a_job_whose_executor_is_killed_is_counted_as_a_second_delivery() {
    let trial = Trial::start(&[]);
    let id = trial.submit("/v1/jobs/sleep", &[], r#"{"ms":3000}"#);
    trial.record_when(&id, "running");
    kill(trial.child("executor"));
    let record = trial.record_when(&id, "succeeded");
    assert_eq!(record["deliveries"], 2, "{record}");
    trial.over();
}

#[test]
fn p2_a_job_that_loses_every_executor_is_dead_with_its_cause() {
    let trial = Trial::start(&["handlers.sleep.max_deliveries=2"]);
    let mut caller = sleeper(&trial, 600_000);
    waiters(&trial, 1.0);
    let jobs = trial.get("/v1/jobs?handler=sleep").json();
    let id = jobs["jobs"][0]["id"].as_str().expect("an id");
    for delivery in 1..=2 {
        until("it runs", PATIENCE, || {
            let record = trial.record(id);
            (record["status"] == "running" && record["deliveries"] == delivery).then_some(())
        });
        kill(trial.child("executor"));
    }
    let answer = caller.read();
    assert_eq!((answer.status, answer.code().as_str()), (500, "dead_lettered"), "{answer:?}");
    assert_eq!(answer.json()["cause"], "executor_lost");
    assert_eq!(answer.header("cofferdam-job-id"), Some(id));
    assert_eq!(trial.metric("queue_dead_total"), 1.0);
    assert_eq!(trial.record(id)["status"], "dead");
    drop(caller);
    trial.recovered();
    assert_eq!(trial.post(&format!("/v1/jobs/{id}/retry"), "").status, 202, "a dead job can live again");
}

#[test]
fn p3_an_executor_killed_between_its_results_and_the_callers_reads_costs_no_answer_and_adds_none() {
    const CALLERS: usize = 100;
    let trial = Trial::start(&[]);
    let before = trial.metric("jobs_finished_total{handler=\"echo\",status=\"succeeded\"}");
    let mut callers: Vec<Client> =
        (0..CALLERS).map(|number| caller(&trial, "/v1/jobs/echo", payload(number))).collect();
    // Some results are on their way, some at the broker, some in the callers' sockets.
    until("some of the jobs are done", PATIENCE, || {
        let done = trial.metric("jobs_finished_total{handler=\"echo\",status=\"succeeded\"}");
        (done > before).then_some(())
    });
    kill(trial.child("executor"));
    until("all of the jobs are done", PATIENCE, || {
        let done = trial.metric("jobs_finished_total{handler=\"echo\",status=\"succeeded\"}");
        (done == before + CALLERS as f64).then_some(())
    });
    kill(trial.child("executor"));
    for (number, caller) in callers.iter_mut().enumerate() {
        assert_text(&caller.read(), &payload(number));
        // A second answer would stand before this one.
        assert_eq!(caller.request("GET", "/healthz", &[], "").text(), r#"{"status":"alive"}"#);
    }
    drop(callers);
    trial.over();
}

#[test]
fn p5_a_killed_web_refuses_no_connection_and_the_next_request_is_answered() {
    let trial = Trial::start(&[]);
    let executor = trial.child("executor");
    let mut best = Duration::MAX;
    for number in 0..5 {
        let web = trial.child("web");
        let mut waiting = sleeper(&trial, 600_000);
        waiters(&trial, 1.0);
        kill(web);
        let begun = Stopwatch::start();
        // This connection is made while nobody accepts.
        assert_eq!(trial.call(number, PATIENCE), Ok(()));
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(2), "it took {took:?}");
        best = best.min(took);
        assert_eq!(
            waiting.try_read(PATIENCE),
            Err(NoAnswer::Closed),
            "who waited there loses its connection"
        );
        assert_ne!(trial.child("web"), web);
    }
    assert!(best < REPLACED, "the fastest of five took {best:?}");
    assert_eq!(trial.child("executor"), executor, "executors outlive web and connect again");
    trial.over();
}

#[test]
fn p5_a_web_that_is_killed_under_load_refuses_no_connection_and_mixes_up_no_answers() {
    let trial = Trial::start(&[THREE]);
    let executors = trial.children("executor");
    let (best, load) = trial.under_load(8, |answered| {
        let recovery = |number| {
            let before = answered.load(Ordering::Relaxed);
            until("the callers are served", PATIENCE, || {
                (answered.load(Ordering::Relaxed) > before + 50).then_some(())
            });
            let web = trial.child("web");
            kill(web);
            let begun = Stopwatch::start();
            until("it is killed", PATIENCE, || (!is_alive(web)).then_some(()));
            assert_eq!(trial.call(number, PATIENCE), Ok(()));
            begun.elapsed()
        };
        (0..6).map(recovery).min().expect("six times")
    });
    assert!(best < Duration::from_secs(1), "the fastest of six took {best:?}");
    assert!(load.lost > 0, "{load:?}");
    assert_eq!(trial.children("executor"), executors, "executors outlive web and connect again");
    trial.over();
}

#[test]
fn p5_state_in_memory_goes_with_web_and_executors_drop_what_they_knew_of_it() {
    let trial = counting(&[]);
    let executor = trial.child("executor");
    assert_counted(&mut counters(&trial, 3, 0), 1);
    let id = trial.submit("/v1/jobs/count", &[], "0");
    trial.record_when(&id, "succeeded");
    kill(trial.child("web"));
    // The same executor, a new life: from one again, and nothing is known of the old one's jobs.
    assert_counted(&mut counters(&trial, 3, 0), 1);
    assert_eq!(trial.get(&format!("/v1/jobs/{id}")).code(), "unknown_job");
    assert_eq!(trial.child("executor"), executor);
    trial.over();
}

#[test]
fn p5_a_new_web_counts_from_its_own_start_and_its_executors_work_on_all_workers() {
    let trial = Trial::start(&[]);
    // What the old web's jobs held in the executor must not hold anything in the new one's life.
    let held: Vec<Client> = (0..8).map(|_| sleeper(&trial, 600_000)).collect();
    running(&trial, 8);
    kill(trial.child("web"));
    drop(held);
    let begun = Stopwatch::start();
    let mut callers: Vec<Client> = (0..8).map(|_| sleeper(&trial, 500)).collect();
    for caller in &mut callers {
        assert_text(&caller.read(), r#"{"slept_ms":500}"#);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    drop(callers);
    trial.over();
}

#[test]
fn p6_nothing_outlives_a_killed_supervisor_and_its_ports_are_free() {
    let free = free_address();
    let channel = format!("runtime.platform.execution_ipc.bind_port={}", free.port());
    let trial = Trial::start(&[THREE, &channel]);
    let mut busy = sleeper(&trial, 600_000);
    waiters(&trial, 1.0);
    let children = all_children(trial.pid);
    assert_eq!(children.len(), 4);
    kill(trial.pid);
    let begun = Stopwatch::start();
    until("every child is gone", Duration::from_secs(5), || {
        (!children.iter().any(|pid| is_alive(*pid))).then_some(())
    });
    assert!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
    assert_eq!(busy.try_read(PATIENCE), Err(NoAnswer::Closed));
    drop(busy);
    until("the channel's port is free", PATIENCE, || TcpListener::bind(free).ok());
    trial.ended(None);
}

#[test]
fn p6_a_supervisor_that_is_killed_at_any_instant_of_its_start_leaves_nothing() {
    for millis in (0..60).step_by(4) {
        let child = Service::spawn(&cofferdam(), &[THREE]);
        let pid = child.id();
        // How far it has come is what varies here.
        std::thread::sleep(Duration::from_millis(millis));
        let children = all_children(pid);
        kill(pid);
        let begun = Stopwatch::start();
        let output = wait(child);
        until("every child is gone", PATIENCE, || (!children.iter().any(|pid| is_alive(*pid))).then_some(()));
        assert!(begun.elapsed() < Duration::from_secs(2), "it took {:?} after {millis} ms", begun.elapsed());
        assert_ended(&output.status, &String::from_utf8_lossy(&output.stderr), None);
    }
}

#[test]
fn p8_random_kills_of_all_children_under_load_cost_no_more_than_the_connections_to_web() {
    const SECONDS: u64 = 6;
    let seed: u64 =
        std::env::var("COFFERDAM_SEED").map_or(1, |seed| seed.parse().expect("COFFERDAM_SEED is a number"));
    println!("seed {seed}");
    let trial = Trial::start(&[THREE, "runtime.platform.queue.max_deliveries=100000"]);
    let (recoveries, load) = trial.under_load(6, |_| {
        let mut random = seed;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        let (end, mut recoveries) = (Instant::now() + Duration::from_secs(SECONDS), Vec::new());
        while Instant::now() < end {
            let role = if draw(5) == 0 { "web" } else { "executor" };
            let victims = trial.children(role);
            if let Some(victim) = victims.get(draw(victims.len().max(1) as u64) as usize) {
                kill(*victim);
            }
            let begun = Stopwatch::start();
            // Its connection may be to the web that is being killed.
            until("it serves", PATIENCE, || trial.call(0, PATIENCE).ok());
            recoveries.push(begun.elapsed());
            std::thread::sleep(Duration::from_millis(20 + draw(230)));
        }
        recoveries.sort_unstable();
        recoveries
    });
    println!("{} kills, {load:?}, the slowest recoveries {:?}", recoveries.len(), recoveries.last());
    assert!(recoveries.len() > 10 && load.answered > 100, "seed {seed}: {load:?}");
    // Of ten recoveries nine; the machine's own pauses are in the rest.
    let (most, last) = (recoveries[recoveries.len() * 9 / 10], recoveries[recoveries.len() - 1]);
    assert!(most < Duration::from_secs(1) && last < Duration::from_secs(5), "seed {seed}: {recoveries:?}");
    trial.over();
}

/// A fault that a file switches on for each new child of the test embedder.
struct Fault(std::path::PathBuf);

impl Fault {
    fn trial(folder: &Folder, sets: &[&str]) -> (Trial, Fault) {
        let fault = Fault(folder.path("fault"));
        let path = fault.0.clone();
        let trial = Trial::of(&example("embedder"), sets, |command| {
            command.env("COFFERDAM_TEST_FAULT", path);
        });
        (trial, fault)
    }

    fn on(&self, role: &str, words: &str) {
        std::fs::write(&self.0, format!("{role} {words}")).expect("our own folder");
    }

    fn off(&self) {
        std::fs::remove_file(&self.0).expect("our own file");
    }
}

const FEW: &str = r#"runtime.platform.lifecycle.restart={"max_restarts":3,"backoff_ms":300}"#;

#[test]
fn p9_a_child_that_crashes_at_each_start_stops_everything_with_exit_1_and_its_last_words() {
    for role in ["executor", "web"] {
        let folder = Folder::new();
        let (trial, fault) = Fault::trial(&folder, &[FEW]);
        fault.on(role, "the disk is on fire");
        kill(trial.child(role));
        let begun = Instant::now();
        let ended = trial.ended(Some(1));
        let name = if role == "web" { "web" } else { "execution" };
        let says = format!(
            "cofferdam: {name} ended with exit code 7, and is not restarted again; its last words: the disk is on fire\n"
        );
        assert!(ended.stderr.contains(&says), "{}", ended.stderr);
        // 300, 600 and 1,200 ms of backoff lie between its four ends.
        assert!(begun.elapsed() >= Duration::from_millis(2_100), "after {:?}", begun.elapsed());
    }
}

#[test]
fn p9_without_an_executor_it_is_not_ready_and_says_why_and_jobs_wait_until_there_is_one() {
    let folder = Folder::new();
    let (trial, fault) =
        Fault::trial(&folder, &[r#"runtime.platform.lifecycle.restart={"max_restarts":20}"#]);
    fault.on("executor", "no");
    kill(trial.child("executor"));
    let unready = until("it is not ready", PATIENCE, || {
        Some(trial.get("/readyz")).filter(|answer| answer.status == 503)
    });
    assert_eq!(unready.json()["detail"], "no executor of group execution is connected", "{unready:?}");
    assert!(unready.header("retry-after").is_some(), "{unready:?}");
    assert_eq!(trial.get("/healthz").status, 200);
    // The memory profile queues: the queue's capacity is what refuses.
    let mut callers: Vec<Client> = counters(&trial, 5, 0);
    waiters(&trial, 5.0);
    let id = trial.submit("/v1/jobs/echo", &[], payload(1));
    assert_eq!(trial.record(&id)["waiting_for"]["reason"], "executor", "{}", trial.record(&id));
    fault.off();
    assert_counted(&mut callers, 1);
    drop(callers);
    trial.record_when(&id, "succeeded");
    trial.over();
}

#[test]
fn p9_a_child_that_crashes_at_the_first_start_is_exit_1_without_a_ready_line() {
    for role in ["executor", "web"] {
        let folder = Folder::new();
        let run = folder.path("run");
        std::fs::create_dir(&run).expect("a folder");
        let fault = folder.file("fault", format!("{role} no licence"));
        let sets = ["serve", "--set", "web.bind=127.0.0.1:0", "--set", FEW];
        let mut command = program::command(&example("embedder"), sets);
        command.env("RUNTIME_DIRECTORY", &run).env("COFFERDAM_TEST_FAULT", fault);
        let output = wait(command.spawn().expect("it starts"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_ended(&output.status, &stderr, Some(1));
        assert!(output.stdout.is_empty(), "{stderr}");
        assert!(stderr.contains("and is not restarted again; its last words: no licence\n"), "{stderr}");
        assert_eq!(std::fs::read_dir(&run).expect("our own folder").count(), 0);
    }
}

#[test]
fn children_are_told_what_suits_their_allocator_unless_an_operator_has_a_word_of_its_own() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root sees the environment of processes that let nobody else look at them");
        return;
    }
    for (given, expected) in [
        (None, "glibc.malloc.tcache_count=512"),
        (Some(""), ""),
        (Some("glibc.malloc.x=1"), "glibc.malloc.x=1"),
    ] {
        let mut command = command(&cofferdam(), ["serve", "--set", "web.bind=127.0.0.1:0"]);
        command.envs(given.map(|given| ("GLIBC_TUNABLES", given)));
        let service = Service::from(command.spawn().expect("the program can be started"));
        for child in all_children(service.pid) {
            let environment = std::fs::read(format!("/proc/{child}/environ")).expect("it lives");
            let mut variables = environment.split(|byte| *byte == 0);
            let told = variables.find_map(|variable| variable.strip_prefix(b"GLIBC_TUNABLES="));
            assert_eq!(told, Some(expected.as_bytes()), "{given:?}");
        }
        service.stop();
    }
}
