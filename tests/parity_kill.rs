//! Same input, same output bytes, with executors killed at any instant.
//!
//! It guards that promise under kills: `batch` and `/v1/batch` give the oracle's bytes while an executor
//! child of the run is killed with -9 every 100 ms. The choice of the child follows a seed, which a failure
//! shows; `COFFERDAM_SEED=N` replays it.

#[path = "../tools/fund-load/generator.rs"]
mod generator;
#[path = "support/oracle.rs"]
mod oracle;
#[path = "support/parity.rs"]
mod parity;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::time::Duration;

use oracle::Rules;
use parity::{RUN, UNDYING, assert_same, challenge, seed, turn};
use program::{Folder, cofferdam, command, example, shown, wait};
use service::{Client, Service, Stopwatch, children, kill, request, until, with_harm};

const LINES: usize = 20_000;
const EVERY: Duration = Duration::from_millis(100);
const TWO_EXECUTORS: &str = r#"runtime.platform.process_groups=[{"name":"execution","processes":2}]"#;
/// Kills one executor child of `parent` every [`EVERY`].
fn killer(parent: u32, seed: u64) -> impl FnMut() -> (bool, Duration) + Send {
    let mut random = seed;
    move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let executors = children(parent, "executor");
        if !executors.is_empty() {
            kill(executors[(random >> 33) as usize % executors.len()]);
        }
        (!executors.is_empty(), EVERY)
    }
}

#[test]
fn a_batch_whose_executors_are_killed_gives_the_oracles_bytes() {
    let (_turn, seed) = (turn(), seed());
    let input = generator::generate(seed, LINES);
    let folder = Folder::new();
    let file = folder.file("input.ndjson", &input);
    let file = file.to_str().expect("a path that is text");
    let arguments = ["batch", "--progress", "never", "--handler", "fund_load", "--input", file];
    let sets = ["--set", TWO_EXECUTORS, "--set", UNDYING];
    let child = command(&example("fund-load"), arguments.iter().chain(&sets)).spawn();
    let child = child.expect("the example can be started");
    let pid = child.id();
    // `wait` kills it at its own deadline.
    let (output, kills) = with_harm(killer(pid, seed), || wait(child));
    println!("{kills} kills");
    assert!(output.status.success(), "seed {seed}, {kills} kills: {}", shown(&output));
    assert_same(&output.stdout, &oracle::decide(&input, Rules::Baseline), &format!("seed {seed}"));
    assert!(kills > 0, "the batch ended before the first kill: give it more lines");
}

#[test]
fn an_executor_of_a_batch_that_is_killed_while_nothing_else_happens_is_replaced_at_once() {
    let _turn = turn();
    let folder = Folder::new();
    let file = folder.file("input.ndjson", "{\"ms\":2000}\n");
    let arguments = ["batch", "--progress", "never", "--handler", "sleep", "--input"];
    let arguments = arguments.iter().map(|word| (*word).to_owned()).chain([file.display().to_string()]);
    let sets = ["--set".to_owned(), UNDYING.to_owned()];
    let child = command(&cofferdam(), arguments.chain(sets)).spawn().expect("it can be started");
    let pid = child.id();
    let mut last = None;
    // Few, as each end before readiness doubles the pause that follows it.
    for _ in 0..8 {
        let killed = Stopwatch::start();
        let executor = until("an executor is there", RUN, || {
            children(pid, "executor").into_iter().find(|executor| Some(*executor) != last)
        });
        // With the time that a loaded machine needs to start one.
        let took = killed.elapsed();
        assert!(last.is_none() || took < Duration::from_millis(1_500), "replaced after {took:?}");
        kill(executor);
        last = Some(executor);
    }
    let output = wait(child);
    assert!(output.status.success(), "{}", shown(&output));
    assert_eq!(output.stdout, b"{\"slept_ms\":2000}\n");
}

fn batch(service: &Service, input: &[u8]) -> Vec<u8> {
    let mut client = service.connect();
    client.send(request("POST", "/v1/batch/fund_load", &["Content-Type: application/x-ndjson"], input));
    let answer = client.try_read(RUN).unwrap_or_else(|why| panic!("no answer: {why:?}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    answer.body
}

#[test]
fn a_batch_over_http_whose_executors_are_killed_gives_the_oracles_bytes() {
    let (_turn, seed) = (turn(), seed());
    let input = generator::generate(seed, LINES);
    let service = Service::of(&example("fund-load"), &[TWO_EXECUTORS, UNDYING]);
    let (output, kills) = with_harm(killer(service.pid, seed), || batch(&service, &input));
    println!("{kills} kills");
    assert_same(&output, &oracle::decide(&input, Rules::Baseline), &format!("seed {seed}, {kills} kills"));
    assert!(kills > 0, "the batch ended before the first kill: give it more lines");
    // Once the fault is gone, everything is as before.
    until("two executors are there", Duration::from_secs(5), || {
        (service.children("executor").len() == 2).then_some(())
    });
    until("it is ready", Duration::from_secs(5), || (service.get("/readyz").status == 200).then_some(()));
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
}

#[test]
fn waiting_callers_get_their_own_answers_while_executors_are_killed() {
    const CALLERS: usize = 16;
    const CALLS: usize = 150;
    let (_turn, seed) = (turn(), seed());
    let service = Service::of(&example("fund-load"), &[TWO_EXECUTORS, UNDYING]);
    let call = |caller: usize| {
        let mut client = Client::to(service.address);
        for number in 0..CALLS {
            let payload = format!("{caller} {number}");
            // Long enough that some of them are running when their executor is killed.
            let sleep = format!(r#"{{"ms":{}}}"#, 1 + (caller + number) % 7);
            let slept = client.request("POST", "/v1/jobs/sleep", &[], &sleep);
            assert_eq!(slept.status, 200, "{slept:?}");
            let answer = client.request("POST", "/v1/jobs/echo", &[], &payload);
            assert_eq!((answer.status, answer.text()), (200, payload), "{answer:?}");
        }
    };
    let ((), kills) = with_harm(killer(service.pid, seed), || {
        std::thread::scope(|scope| {
            for caller in 0..CALLERS {
                scope.spawn(move || call(caller));
            }
        });
    });
    println!("{kills} kills");
    assert!(kills > 0, "the calls ended before the first kill");
    let stats = service.get("/v1/stats").json();
    assert_eq!(stats["totals"]["queued"], 0, "{stats}");
    assert_eq!(stats["totals"]["running"], 0, "{stats}");
    assert_eq!(stats["waiters"], 0, "{stats}");
}

#[test]
fn the_published_input_over_http_gives_the_published_output_byte_for_byte() {
    let Some((input, expected)) = challenge() else { return };
    for mode in ["inline", "process_supervisor"] {
        let mode = format!("runtime.platform.bootstrap.mode={mode}");
        let service = Service::of(&example("fund-load"), &[&mode]);
        assert_same(&batch(&service, &input), &expected, &mode);
    }
}
