//! Executors that have done enough, hold too much, or are stuck are replaced between jobs: no job is lost or counted
//! twice, and nobody waits for the old process to finish.

use std::collections::HashSet;
use std::time::Duration;

use service::{Client, PATIENCE, Service, Stopwatch, is_alive, request, until};

#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

fn group(limits: &str) -> String {
    format!(r#"runtime.platform.process_groups=[{{"name":"execution","workers":4,{limits}}}]"#)
}

fn recycled(service: &Service, reason: &str) -> f64 {
    service.metric(&format!("process_recycled_total{{group=\"execution\",reason=\"{reason}\"}}"))
}

#[test]
fn after_max_jobs_an_executor_is_replaced_and_no_job_is_lost_or_delivered_twice() {
    let service = Service::start(&[&group(r#""max_jobs":20"#)]);
    let first = service.child("executor");
    std::thread::scope(|scope| {
        for caller in 0..4 {
            let service = &service;
            scope.spawn(move || {
                let mut client = service.connect();
                for n in 0..100 {
                    let body = format!("[{caller},{n}]");
                    let answer = client.request("POST", "/v1/jobs/echo", &[], &body);
                    assert_eq!((answer.status, answer.text()), (200, body));
                }
            });
        }
    });
    // While jobs are short an executor holds more leases than it has left: fewer than 400 / 20, never just one.
    let count =
        until("recycled", PATIENCE, || Some(recycled(&service, "max_jobs")).filter(|count| *count >= 3.0));
    assert!(count <= 20.0, "{count} processes for 400 jobs of 20 each");
    assert_eq!(
        service.metric("queue_redelivered_total"),
        0.0,
        "a delivery that was given back does not count"
    );
    assert!(!is_alive(first));
    until("one executor is left", PATIENCE, || (service.children("executor").len() == 1).then_some(()));
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("reason=max_jobs"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("lifecycle.crashed"), "{}", ended.stderr);
}

#[test]
fn a_long_job_neither_is_cut_off_by_recycling_nor_holds_up_the_successor() {
    let service = Service::start(&[&group(r#""max_jobs":1"#)]);
    let first = service.child("executor");
    let mut long = sleeper(&service, 3_000);
    until("it runs", PATIENCE, || (service.metric("workers_busy{group=\"execution\"}") == 1.0).then_some(()));
    // The executor that runs it has done enough with this one; the next one is served by its successor.
    assert_eq!(service.post("/v1/jobs/echo", "1").text(), "1");
    assert_eq!(service.post("/v1/jobs/echo", "2").text(), "2");
    assert!(is_alive(first), "it finishes its job");
    until("its successor", PATIENCE, || {
        service.children("executor").iter().find(|pid| **pid != first).copied()
    });
    let answer = long.read();
    assert_eq!((answer.status, answer.text().contains("3000")), (200, true), "{answer:?}");
    until("it has ended", PATIENCE, || (!is_alive(first)).then_some(()));
    assert_eq!(service.metric("queue_redelivered_total"), 0.0);
}

#[test]
fn only_so_many_processes_finish_their_jobs_beside_their_successor() {
    let service = Service::start(&[&group(r#""max_jobs":1"#)]);
    let mut long: Vec<Client> = Vec::new();
    let mut seen = HashSet::new();
    for _ in 0..3 {
        let before = service.metric("jobs_submitted_total{handler=\"sleep\"}");
        long.push(sleeper(&service, 8_000));
        until("accepted", PATIENCE, || {
            (service.metric("jobs_submitted_total{handler=\"sleep\"}") > before).then_some(())
        });
        seen.extend(service.children("executor"));
        // However many finish their jobs: somebody takes the next one.
        let begun = Stopwatch::start();
        assert_eq!(service.post("/v1/jobs/echo", "1").status, 200);
        assert!(begun.elapsed() < Duration::from_secs(5), "it waited {:?}", begun.elapsed());
    }
    let running = service.children("executor");
    assert!(running.len() <= 3, "{running:?}");
    for client in &mut long {
        assert_eq!(client.read().status, 200);
    }
    assert_eq!(service.metric("queue_redelivered_total"), 0.0);
    assert_eq!(service.stop().status.code(), Some(0), "{seen:?}");
}

#[test]
fn an_executor_that_holds_too_much_memory_is_replaced() {
    // No process of ours is this small, so each is replaced as soon as it is weighed.
    let service = Service::start(&[&group(r#""max_rss_mb":1"#)]);
    until("recycled", PATIENCE, || (recycled(&service, "max_rss") >= 2.0).then_some(()));
    for n in 0..20 {
        assert_eq!(service.post("/v1/jobs/echo", n.to_string()).text(), n.to_string());
    }
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("reason=max_rss"), "{}", ended.stderr);
}

#[test]
fn a_drain_waits_for_the_jobs_of_a_process_that_was_set_aside() {
    let service = Service::start(&[&group(r#""max_jobs":1"#)]);
    let mut long = sleeper(&service, 1_500);
    until("it runs", PATIENCE, || (service.metric("workers_busy{group=\"execution\"}") == 1.0).then_some(()));
    assert_eq!(service.post("/v1/jobs/echo", "1").text(), "1");
    until("its process leaves", PATIENCE, || (recycled(&service, "max_jobs") == 1.0).then_some(()));
    service.terminate();
    assert_eq!(long.read().status, 200);
    let ended = service.ended();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
}

fn sleeper(service: &Service, ms: u64) -> Client {
    let mut client = service.connect();
    client.stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    client.send(request("POST", "/v1/jobs/sleep", &[], format!("{{\"ms\":{ms}}}")));
    client
}
