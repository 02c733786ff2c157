//! SIGHUP and the secret on Redis, where all that is kept is signed: one host and several, under load, and all that may go
//! wrong with a file, with what Redis knows, and with the processes meanwhile.
//!
//! It guards jobs that were signed before: each is run once by whoever knows another secret by then.

#[path = "support/aftermath.rs"]
mod aftermath;
#[path = "support/own_redis.rs"]
mod own_redis;
#[path = "support/program.rs"]
mod program;
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "support/secret_file.rs"]
mod secret_file;
#[path = "support/service.rs"]
mod service;

use std::process::Output;
use std::time::Duration;

use aftermath::{assert_counted, assert_text, counters};
use program::{cofferdam, example, run};
use redis_server::{Deployment, Server, answered_more, under_load};
use rustix::process::Signal;
use secret_file::{
    ANOTHER, AS_BEFORE, NEW, NEWER, OLD, REFUSED, SecretFile, THE_SAME, assert_nothing_refused, assert_over,
    replaced,
};
use service::{PATIENCE, Service, Stopwatch, all_children, caller, kill, running, signal, until};

const KEY: &str = "{cofferdam}:key";

/// What `check` says of these secrets.
fn check(deployment: &Deployment, secrets: &[&str]) -> Output {
    let file = SecretFile::of(secrets);
    run(&mut deployment.command(&cofferdam(), "check", &[&file.set()]), b"")
}

/// Until the check value is that of the first of these: whoever has the others alone is refused.
#[track_caller]
fn until_signed_with(deployment: &Deployment, secrets: &[&str]) {
    until("the check value is set anew", PATIENCE, || {
        let codes = secrets.iter().map(|secret| check(deployment, &[secret]).status.code());
        let as_wanted = [Some(0), Some(2)].into_iter().cycle();
        codes.zip(as_wanted).all(|(code, wanted)| code == wanted).then_some(())
    });
}

#[test]
fn on_one_host_another_secret_takes_over_under_load_and_nothing_is_lost_or_comes_twice() {
    let server = Server::start(&[]);
    let (deployment, file) = (Deployment::on(&server), SecretFile::of(&[OLD]));
    let service = deployment.serve_of(&example("embedder"), &[&file.set()]);
    let (web, first) = (service.child("web"), service.children("executor"));
    assert_counted(&mut counters(&service, 2, 0), 1);
    // Jobs that are queued, delayed, running and done when it happens.
    let done = service.submit("/v1/jobs/echo", &["Idempotency-Key: once"], "7");
    service.record_when(&done, "succeeded");
    assert_eq!(service.post("/v1/handlers/flaky/pause", "").status, 200);
    let paused: Vec<String> = (0..5).map(|_| service.submit("/v1/jobs/flaky", &[], "1")).collect();
    let delayed = service.submit("/v1/jobs/echo?delay_ms=2000", &[], "1");
    let mut counting = counters(&service, 4, 300);
    running(&service, 1);
    let ((), ends) = under_load(&service, 3, |answered| {
        answered_more(answered, 30);
        file.rotate(&service, &[NEW, OLD], ANOTHER);
        replaced(&service, &first);
        answered_more(answered, 30);
        until_signed_with(&deployment, &[NEW, OLD]);
    });
    assert_eq!(ends.keys().collect::<Vec<_>>(), ["200"], "{ends:?}");
    assert_counted(&mut counting, 3);
    assert_eq!(service.post("/v1/handlers/flaky/resume", "").status, 200);
    for id in paused.iter().chain([&delayed]) {
        assert_eq!(service.record_when(id, "succeeded")["deliveries"], 1);
    }
    let again = service.request("POST", "/v1/jobs/echo", &["Idempotency-Key: once"], "7");
    assert_eq!((again.text().as_str(), again.header("idempotency-replayed")), ("7", Some("true")));
    // Everything that the old one has signed is over, but for that record; and the lane has changed since.
    assert_counted(&mut counters(&service, 1, 0), 7);
    let second = service.children("executor");
    file.rotate(&service, &[NEW], THE_SAME);
    assert_eq!(service.children("executor"), second, "no executor has another secret by that");
    assert_counted(&mut counters(&service, 2, 0), 8);
    until("the old one is not known", PATIENCE, || {
        (service.get(&format!("/v1/jobs/{done}")).status == 404).then_some(())
    });
    assert_eq!((service.child("web"), service.metric("queue_redelivered_total")), (web, 0.0));
    assert_nothing_refused(&service);
    assert_over(service);
}

#[test]
fn a_job_that_runs_meanwhile_commits_its_state_and_its_lane_goes_on_without_the_old_one() {
    let server = Server::start(&[]);
    let (deployment, file) = (Deployment::on(&server), SecretFile::of(&[OLD]));
    let service = deployment.serve_of(&example("embedder"), &[&file.set()]);
    let pairs = |callers: usize, ms: u64| -> Vec<service::Client> {
        (0..callers).map(|_| caller(&service, "/v1/jobs/pair", ms.to_string())).collect()
    };
    assert_counted(&mut pairs(1, 0), 1);
    let mut long = pairs(1, 2_500);
    running(&service, 1);
    let first = service.children("executor");
    file.rotate(&service, &[NEW, OLD], ANOTHER);
    replaced_or_aside(&service, &first);
    let mut next = pairs(2, 0);
    // What it began on was signed with the old one, and so is what it makes of it: no signature is of both.
    assert_counted(&mut long, 2);
    assert_counted(&mut next, 3);
    file.rotate(&service, &[NEW], THE_SAME);
    assert_counted(&mut pairs(3, 0), 5);
    replaced(&service, &first);
    file.rotate(&service, &[NEWER, NEW], ANOTHER);
    assert_counted(&mut pairs(3, 0), 8);
    assert_eq!(service.metric("queue_redelivered_total"), 0.0);
    assert_nothing_refused(&service);
    assert_over(service);
}

/// Until each has a successor, beside which it may still run.
#[track_caller]
fn replaced_or_aside(service: &Service, before: &[u32]) {
    until("successors are there", PATIENCE, || {
        let now = service.children("executor");
        (now.iter().filter(|pid| !before.contains(pid)).count() == before.len()).then_some(())
    });
}

#[test]
fn states_that_alone_are_in_redis_are_signed_with_another_secret_from_then_on() {
    let server = Server::start(&[]);
    let mut deployment = Deployment::on(&server);
    for port in ["queue", "reply"] {
        deployment = deployment.with(&format!("runtime.platform.{port}.backend=memory"));
    }
    let file = SecretFile::of(&[OLD]);
    let service = deployment.serve_of(&example("embedder"), &[&file.set()]);
    assert_counted(&mut counters(&service, 2, 0), 1);
    file.rotate(&service, &[NEW], REFUSED);
    let first = service.children("executor");
    file.rotate(&service, &[NEW, OLD], ANOTHER);
    assert_counted(&mut counters(&service, 3, 50), 3);
    replaced(&service, &first);
    until_signed_with(&deployment, &[NEW, OLD]);
    file.rotate(&service, &[NEW], THE_SAME);
    assert_counted(&mut counters(&service, 2, 0), 6);
    assert_nothing_refused(&service);
    assert_over(service);
}

#[test]
fn a_file_that_would_lose_jobs_or_that_redis_does_not_know_is_refused_and_changes_nothing() {
    let mut server = Server::start(&[]);
    let (deployment, file) = (Deployment::on(&server), SecretFile::of(&[OLD]));
    for mode in ["process_supervisor", "inline"] {
        file.write(&[OLD]);
        let service = deployment.serve(&[&file.set(), &format!("runtime.platform.bootstrap.mode={mode}")]);
        let children = all_children(service.pid);
        let id = service.submit("/v1/jobs/echo?delay_ms=1000", &[], "1");
        let key: String = server.ask(&["GET", KEY]);
        for secrets in [&[NEW][..], &[NEW, NEWER]] {
            file.rotate(&service, secrets, REFUSED);
            assert!(service.stderr().contains("it lacks the one that jobs are signed with"), "{mode}");
        }
        file.write_text("neither\n");
        file.hang_up(&service, REFUSED);
        file.write(&[NEW, OLD]);
        file.set_mode(0o644);
        file.hang_up(&service, "others can read or write it");
        // Another host is further than this one: what it signs would be nobody's here.
        server.tell(&["SET", KEY, "0123"]);
        file.rotate(&service, &[NEW, OLD], "its jobs are signed with another secret than that of");
        server.tell(&["SET", KEY, &key]);
        assert_text(&service.post("/v1/jobs/echo", "2"), "2");
        service.record_when(&id, "succeeded");
        // One that does not answer is not waited for: nothing else is done meanwhile.
        server.freeze();
        let begun = Stopwatch::start();
        file.hang_up(&service, "Redis does not answer");
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        server.thaw();
        // One that cannot be asked is as good as one that says no.
        server.kill();
        file.hang_up(&service, REFUSED);
        server.up();
        until("it is back", PATIENCE, || (service.get("/readyz").status == 200).then_some(()));
        assert_eq!(all_children(service.pid), children, "{mode}: nobody was replaced");
        // It is empty: whoever comes first says whose it is.
        file.hang_up(&service, ANOTHER);
        assert_text(&service.post("/v1/jobs/echo", "3"), "3");
        until_signed_with(&deployment, &[NEW, OLD]);
        assert_over(service);
        server.tell(&["FLUSHALL"]);
    }
}

#[test]
fn hosts_with_web_and_executors_of_their_own_rotate_one_after_the_other_and_nothing_is_refused() {
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server);
    let files = [SecretFile::of(&[OLD]), SecretFile::of(&[OLD])];
    let web = deployment.web(&example("embedder"), &[&files[0].set()]);
    let executor = deployment.executor(&example("embedder"), &[&files[1].set()]);
    let mut counted = 1;
    let mut delayed: Vec<String> = Vec::new();
    let ((), ends) = under_load(&web, 2, |answered| {
        for (secrets, says) in [(&[OLD, NEW][..], THE_SAME), (&[NEW, OLD], ANOTHER), (&[NEW], THE_SAME)] {
            if secrets == [NEW] {
                // What is left of the old one is over; and the lane has changed.
                delayed.iter().for_each(|id| _ = web.record_when(id, "succeeded"));
            }
            delayed.push(web.submit("/v1/jobs/echo?delay_ms=300", &[], "1"));
            let mut waiting = counters(&web, 3, 30);
            files[0].rotate(&web, secrets, says);
            answered_more(answered, 10);
            assert_counted(&mut waiting, counted);
            let (mut waiting, before) = (counters(&web, 3, 30), executor.children("executor"));
            files[1].rotate(&executor, secrets, says);
            if says == ANOTHER {
                replaced(&executor, &before);
            }
            answered_more(answered, 10);
            assert_counted(&mut waiting, counted + 3);
            counted += 6;
        }
    });
    assert_eq!(ends.keys().collect::<Vec<_>>(), ["200"], "{ends:?}");
    until_signed_with(&deployment, &[NEW, OLD]);
    assert_counted(&mut counters(&web, 1, 0), counted);
    assert_nothing_refused(&web);
    assert_eq!(web.metric("queue_redelivered_total"), 0.0);
    executor.terminate();
    let ended = executor.ended();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains(&OLD[..16]) && !ended.stderr.contains(&NEW[..16]), "{}", ended.stderr);
    assert_over(web);
}

#[test]
fn processes_that_are_killed_in_the_middle_of_many_rotations_lose_no_job() {
    let server = Server::start(&[]);
    let (deployment, file) = (Deployment::on(&server), SecretFile::of(&[OLD]));
    let service = deployment.serve_of(&example("embedder"), &[&file.set()]);
    let mut ids = Vec::new();
    for (round, secrets) in [[NEW, OLD], [OLD, NEW], [NEW, OLD], [OLD, NEW]].iter().enumerate() {
        ids.extend(
            (0..10).map(|at| service.submit(&format!("/v1/jobs/echo?delay_ms={}", 100 * at), &[], "1")),
        );
        let victims = service.children(["executor", "web"][round % 2]);
        file.write(secrets);
        signal(service.pid, Signal::HUP);
        victims.iter().for_each(|pid| kill(*pid));
        until("it serves", PATIENCE, || {
            let mut client = service::Client::try_to(service.address).ok()?;
            client.send(service::request("GET", "/readyz", &[], ""));
            client.try_read(PATIENCE).ok().filter(|answer| answer.status == 200).map(drop)
        });
    }
    ids.iter().for_each(|id| _ = service.record_when(id, "succeeded"));
    file.hang_up(&service, AS_BEFORE);
    until_signed_with(&deployment, &[OLD, NEW]);
    assert_nothing_refused_at_rest(&service);
    assert_over(service);
}

/// An executor whose web process was killed may come once more with the secret before.
#[track_caller]
fn assert_nothing_refused_at_rest(service: &Service) {
    for what in ["job", "state", "key", "end"] {
        assert_eq!(service.metric(&format!("forged_total{{what=\"{what}\"}}")), 0.0, "{what}");
    }
}
