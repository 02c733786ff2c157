//! Jobs that end their process, beside others that do nothing wrong; each test is named after its row.
//!
//! It guards the innocent: they succeed, with no delivery counted but their own, whatever runs beside them, however many
//! processes there are, and wherever jobs are kept. Only the job that does it each time is dead.

#[cfg(feature = "redis")]
#[path = "support/deployment.rs"]
mod deployment;
#[path = "support/program.rs"]
mod program;
#[cfg(feature = "redis")]
#[path = "support/redis.rs"]
mod redis;
#[path = "support/service.rs"]
mod service;

#[cfg(feature = "redis")]
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

#[cfg(feature = "redis")]
use deployment::{Deployment, can_serve};
use program::{command, example, run, shown};
use serde_json::Value;
use service::{Client, Service, caller, kill, with_harm};

/// So that a poisonous job's end comes soon: its own deliveries, each after a short backoff.
const SOON: [&str; 4] = [
    "handlers.poison.max_deliveries=2",
    r#"handlers.poison.retry={"base_ms":50,"max_ms":100}"#,
    "handlers.poison-lane.max_deliveries=2",
    r#"handlers.poison-lane.retry={"base_ms":50,"max_ms":100}"#,
];

fn processes(count: usize) -> String {
    format!(
        r#"runtime.platform.process_groups=[{{"name":"execution","processes":{count},"workers":8,"handlers":["*"]}}]"#
    )
}

/// `serve` with so many executors, its jobs in memory and, where there is one, in Redis: both at once, since each of them waits.
fn each_backend(count: usize, own: &[&str], check: impl Fn(&str, &Service) + Sync) {
    /// Deployments of tests that run at once are apart.
    #[cfg(feature = "redis")]
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let processes = processes(count);
    let sets = [own, &[processes.as_str()]].concat();
    std::thread::scope(|scope| {
        scope.spawn(|| check("memory", &Service::of(&example("embedder"), &sets)));
        #[cfg(feature = "redis")]
        if can_serve() {
            let deployment = Deployment::new(&format!("poison-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
            check("redis", &deployment.serve(&example("embedder"), &sets));
        }
    });
}

/// Six callers wait for a sleep, three of them for 3 s; one more, or so many, for a job that ends its process.
fn six_beside(service: &Service, what: &str, poisonous: usize, name: &str) {
    let replaced = || {
        ["killed", "crashed"]
            .iter()
            .map(|reason| {
                service.metric(&format!(r#"process_restarts_total{{group="execution",reason="{reason}"}}"#))
            })
            .sum::<f64>()
    };
    let before = replaced();
    let sleeps = [3_000, 3_000, 3_000, 2_000, 2_000, 2_000];
    let mut six: Vec<Client> =
        sleeps.iter().map(|ms| caller(service, "/v1/jobs/poison", ms.to_string())).collect();
    service::running(service, 6);
    let seventh: Vec<Client> = (0..poisonous).map(|_| caller(service, "/v1/jobs/poison", what)).collect();
    for (client, ms) in six.iter_mut().zip(sleeps) {
        let answer = client.read();
        assert_eq!((answer.status, answer.text()), (200, ms.to_string()), "{name} {what}: {answer:?}");
        let record = service.record(answer.header("cofferdam-job-id").expect("an id"));
        assert_eq!(record["deliveries"], 1, "{name} {what}: {record}");
    }
    for mut client in seventh {
        let answer = client.read();
        assert_eq!((answer.status, &*answer.code()), (500, "dead_lettered"), "{name} {what}: {answer:?}");
        assert_eq!(answer.json()["cause"], "executor_lost", "{name} {what}: {answer:?}");
    }
    // Two that others may feel, and two alone, each.
    let crashes = replaced() - before;
    println!("{name} {what}: {crashes} processes lost to {poisonous} jobs");
    assert!(crashes <= 4.0 * poisonous as f64, "{name} {what}: {crashes}");
    assert_eq!(service.post("/v1/jobs/echo", "1").text(), "1");
}

#[test]
fn q1_a_job_that_aborts_its_process_is_dead_alone_and_six_beside_it_succeed_with_one_delivery() {
    each_backend(1, &SOON, |name, service| six_beside(service, "abort", 1, name));
}

#[test]
fn q2_the_same_with_two_and_four_executors_and_with_two_such_jobs_at_once() {
    for (count, poisonous) in [(2, 1), (4, 1), (2, 2)] {
        each_backend(count, &SOON, |name, service| {
            six_beside(service, "abort", poisonous, &format!("{name} {count}"))
        });
    }
}

#[test]
fn q5_an_allocation_without_end_a_stack_overflow_and_an_exit_are_as_an_abort() {
    std::thread::scope(|scope| {
        for what in ["hog", "overflow", "exit"] {
            scope.spawn(move || each_backend(1, &SOON, |name, service| six_beside(service, what, 1, name)));
        }
    });
}

/// The lines of a batch, of which one aborts its process.
fn batch(handler: &str, poisonous: bool, more: &[String]) -> (Option<i32>, Vec<u8>) {
    let line =
        |number: usize| if poisonous && number == 37 { "abort".into() } else { (number % 5).to_string() };
    let input: String = (0..100).map(|number| line(number) + "\n").collect();
    let sets = SOON.iter().map(ToString::to_string).chain(more.iter().cloned());
    let words = ["batch", "--handler", handler, "--progress", "never"].map(str::to_owned);
    let words = words.into_iter().chain(sets.flat_map(|set| ["--set".to_owned(), set]));
    let output = run(&mut command(&example("embedder"), words), input.as_bytes());
    assert!(output.status.code().is_some_and(|code| code <= 1), "{handler}: {}", shown(&output));
    (output.status.code(), output.stdout)
}

#[test]
fn q3_a_line_that_aborts_is_its_problem_object_and_the_other_bytes_are_as_without_it_in_each_run() {
    let memory = vec![processes(2)];
    #[cfg(feature = "redis")]
    let deployment = can_serve().then(|| Deployment::new("poison-batch"));
    #[cfg(feature = "redis")]
    let redis = deployment.as_ref().map(|own| own.sets(&[&processes(2)]));
    #[cfg(not(feature = "redis"))]
    let redis = None;
    let profiles: Vec<Vec<String>> = [Some(memory), redis].into_iter().flatten().collect();
    for (more, handler) in
        profiles.iter().flat_map(|more| ["poison", "poison-lane"].map(|handler| (more, handler)))
    {
        let (code, without) = batch(handler, false, more);
        assert_eq!(code, Some(0));
        let (code, first) = batch(handler, true, more);
        assert_eq!(code, Some(1), "{handler}");
        let lines =
            |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect::<Vec<_>>();
        let (without, with) = (lines(&without), lines(&first));
        assert_eq!(without.len(), with.len(), "{handler}");
        for (number, (before, after)) in without.iter().zip(&with).enumerate() {
            if number == 37 {
                let problem: Value = serde_json::from_str(after).expect("a problem object");
                assert_eq!(
                    (&problem["code"], &problem["cause"]),
                    (&"dead_lettered".into(), &"executor_lost".into())
                );
            } else {
                assert_eq!(before, after, "{handler}: line {number}");
            }
        }
        let (_, again) = batch(handler, true, more);
        assert_eq!(lines(&again), with, "{handler}: the same bytes in each run");
    }
}

#[test]
fn q4_executors_that_are_killed_from_outside_every_100_ms_make_nobody_dead() {
    // Who is lost alone has a delivery counted and waits: not for longer than its caller.
    let soon = [r#"handlers.poison.retry={"base_ms":20,"max_ms":100}"#];
    each_backend(2, &soon, |name, service| {
        let kill_all = || service.children("executor").into_iter().map(kill).count();
        // An executor lives for 100 ms beyond its start, which takes longer than that on a machine that is busy.
        let start = |_| {
            kill_all();
            let begun = Instant::now();
            assert_eq!(service.post("/v1/jobs/poison", "1").text(), "1");
            begun.elapsed()
        };
        let life = (0..3).map(start).max().unwrap_or_default() + Duration::from_millis(100);
        let (finished, kills) = with_harm(
            || (kill_all() > 0, life),
            || {
                let until = Instant::now() + Duration::from_secs(10);
                std::thread::scope(|scope| {
                    let callers: Vec<_> = (0..8)
                        .map(|_| {
                            scope.spawn(|| {
                                let (mut client, mut finished) = (service.connect(), 0);
                                while Instant::now() < until {
                                    let answer = client.request("POST", "/v1/jobs/poison", &[], "20");
                                    assert_eq!(
                                        (answer.status, &*answer.text()),
                                        (200, "20"),
                                        "{name}: {answer:?}"
                                    );
                                    finished += 1;
                                }
                                finished
                            })
                        })
                        .collect();
                    callers.into_iter().map(|caller| caller.join().expect("nobody is dead")).sum::<usize>()
                })
            },
        );
        println!("{name}: {finished} jobs beside {kills} kills, {life:?} apart");
        let most = 10_000 / life.as_millis() as usize;
        assert!(
            finished > 100 && kills > 5.max(most / 2),
            "{name}: {finished} jobs beside {kills} kills, {life:?} apart"
        );
    });
}
