//! A service whose workers are all blocked still answers at once whoever does not need a worker.
//!
//! It guards the separation of the gate from the work: probes, pages and submissions, accepted or refused, while
//! every worker sleeps and a thousand callers wait. Coarse, for a debug build on a loaded machine;
//! `tools/bench/run responsiveness` measures the same.

#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use service::{Answer, Client, PATIENCE, Service, Stopwatch, request, until};

const WORKERS: u64 = 8;
const WAITERS: usize = 1_000;
/// Some jobs more than the waiting callers', so that the queue can be filled.
const CAPACITY: usize = WAITERS + 50;
/// Loaded by others, a machine is so for a while: one quiet moment of so many is enough.
const ATTEMPTS: usize = 3;
/// Longer than everything here takes.
const ASLEEP_MS: u64 = 600_000;
const PROBES: usize = 300;
/// Below this a quantile says more about the machine's other work than about the service.
const NOISE: Duration = Duration::from_millis(20);
const SUBMISSION: Duration = Duration::from_millis(10);

/// How long each of so many calls took, from the shortest.
fn times(count: usize, mut call: impl FnMut()) -> Vec<Duration> {
    let mut times: Vec<Duration> = (0..count)
        .map(|_| {
            let begun = Stopwatch::start();
            call();
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    times
}

fn quantile(times: &[Duration], percent: usize) -> Duration {
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

/// A thousand connections here, and some more; the soft limit is often 1,024.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the hard limit");
}

/// `/healthz` on a connection that is kept, as a probe does.
fn health(service: &Service) -> Vec<Duration> {
    let mut client = service.connect();
    times(PROBES, || assert_eq!(client.request("GET", "/healthz", &[], "").status, 200))
}

/// An echo that nobody waits for; what it was answered.
fn submit(client: &mut Client) -> Answer {
    client.request("POST", "/v1/jobs/echo", &["Prefer: respond-async"], "x")
}

#[test]
fn with_every_worker_blocked_and_a_thousand_callers_waiting_everything_else_is_answered_at_once() {
    allow_descriptors();
    let capacity = format!("runtime.platform.queue.capacity={CAPACITY}");
    let patient = ["runtime.platform.reply.timeout_ms=600000", r#"handlers.sleep={"timeout_ms":600000}"#];
    let service = Service::start(&[&capacity, patient[0], patient[1]]);
    let idle = quantile(&health(&service), 99);

    let asleep = format!(r#"{{"ms":{ASLEEP_MS}}}"#);
    let sleepers: Vec<String> =
        (0..WORKERS).map(|_| service.submit("/v1/jobs/sleep", &[], &asleep)).collect();
    until("every worker sleeps", PATIENCE, || {
        (service.get("/v1/stats").json()["totals"]["running"] == WORKERS).then_some(())
    });
    let mut callers: Vec<Client> = (0..WAITERS).map(|_| service.connect()).collect();
    for (number, caller) in callers.iter_mut().enumerate() {
        caller.send(request("POST", "/v1/jobs/echo", &[], number.to_string()));
    }
    until("a thousand callers wait", PATIENCE, || {
        (service.metric("reply_waiters") == WAITERS as f64).then_some(())
    });

    let aim = NOISE.max(3 * idle);
    let blocked: Vec<Duration> = (0..ATTEMPTS).map(|_| quantile(&health(&service), 99)).collect();
    assert!(blocked.iter().any(|p99| *p99 <= aim), "/healthz takes {blocked:?}, idle {idle:?}");

    let mut client = service.connect();
    let accepted = times(CAPACITY - WAITERS, || {
        let answer = submit(&mut client);
        assert_eq!(answer.status, 202, "{answer:?}");
    });
    let refused = times(PROBES, || {
        let answer = submit(&mut client);
        assert_eq!((answer.status, answer.code().as_str()), (503, "queue_full"), "{answer:?}");
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    });
    for (what, times) in [("accepted", accepted), ("refused", refused)] {
        let median = quantile(&times, 50);
        assert!(median < SUBMISSION, "a submission is {what} after {median:?}");
    }
    for page in ["/metrics", "/", "/v1/stats", "/readyz"] {
        let (begun, answer) = (Stopwatch::start(), service.get(page));
        assert_eq!(answer.status, 200, "{page}: {answer:?}");
        // Coarse: what is meant is that it does not wait for a worker.
        assert!(begun.elapsed() < Duration::from_secs(2), "{page} took {:?}", begun.elapsed());
    }
    assert_eq!(service.metric("reply_waiters"), WAITERS as f64, "nobody has given up meanwhile");

    for id in sleepers {
        assert_eq!(service.request("DELETE", &format!("/v1/jobs/{id}"), &[], "").status, 200);
    }
    for (number, caller) in callers.iter_mut().enumerate() {
        let answer = caller.read();
        assert_eq!((answer.status, answer.text()), (200, number.to_string()), "{answer:?}");
    }
}
