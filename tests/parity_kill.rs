//! Same input, same output bytes, with executors killed at any instant.
//!
//! It guards the last row of CONTRACT 5: `batch` and `/v1/batch` give the oracle's bytes while an executor
//! child of the run is killed with -9 every 100 ms. The choice of the child follows a seed, which a failure
//! shows; `COFFERDAM_SEED=N` replays it.

#[path = "../tools/fund-load/generator.rs"]
mod generator;
#[path = "support/oracle.rs"]
mod oracle;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use oracle::Rules;
use program::{Folder, cofferdam, command, example, shown, wait};
use service::{Client, Service, children, kill, request, until};

const LINES: usize = 20_000;
const EVERY: Duration = Duration::from_millis(100);
const TWO_EXECUTORS: &str = r#"runtime.platform.process_groups=[{"name":"execution","processes":2}]"#;
/// A delivery is charged when its lease goes out, and here kills come faster than a debug build on a loaded machine
/// can send a lane's state: a job must not be dead because of that. The restart policy stays as it is.
const UNDYING: &str = "runtime.platform.queue.max_deliveries=100000";
/// One at a time: each of them needs the whole machine.
static TURN: Mutex<()> = Mutex::new(());

/// A run with kills takes longer than one without; one that has lost something never ends.
const RUN: Duration = Duration::from_secs(100);

fn seed() -> u64 {
    let seed = match std::env::var("COFFERDAM_SEED") {
        Ok(text) => text.parse().expect("COFFERDAM_SEED is a number"),
        Err(_) => 1,
    };
    println!("seed {seed}");
    seed
}

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails with the first line that differs.
#[track_caller]
fn assert_same(output: &[u8], expected: &[u8], what: &str) {
    let lines = |bytes: &[u8]| bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let (output, expected): (Vec<Vec<u8>>, Vec<Vec<u8>>) = (lines(output), lines(expected));
    let at = output.iter().zip(&expected).take_while(|(a, b)| a == b).count();
    let shown = |lines: &[Vec<u8>]| lines.get(at).map(|line| String::from_utf8_lossy(line).into_owned());
    let same = output.len() == expected.len() && at == output.len();
    assert!(
        same,
        "{what}: {} lines instead of {}; line {} is {:?} instead of {:?}",
        output.len(),
        expected.len(),
        at + 1,
        shown(&output),
        shown(&expected),
    );
}

/// Kills one executor child of `parent` every [`EVERY`] until the work is done; says how many.
fn with_kills<T>(parent: u32, seed: u64, work: impl FnOnce() -> T) -> (T, usize) {
    let (done, kills) = (AtomicBool::new(false), AtomicUsize::new(0));
    /// The killer stops also when the work panics.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = seed;
            let mut next = Instant::now() + EVERY;
            while !done.load(Ordering::Relaxed) {
                if Instant::now() >= next {
                    next += EVERY;
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let executors = children(parent, "executor");
                    if !executors.is_empty() {
                        kill(executors[(random >> 33) as usize % executors.len()]);
                        kills.fetch_add(1, Ordering::Relaxed);
                    }
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let _done = Done(&done);
        work()
    });
    (result, kills.into_inner())
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
    let (output, kills) = with_kills(pid, seed, || wait(child));
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
        let killed = Instant::now();
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
    let (output, kills) = with_kills(service.pid, seed, || batch(&service, &input));
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
    let ((), kills) = with_kills(service.pid, seed, || {
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

/// The folder of the published input and output, if it is on this machine.
fn challenge() -> Option<PathBuf> {
    let said = std::env::var_os("COFFERDAM_CHALLENGE_DIR").map(PathBuf::from);
    let folder = said.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/challenge"));
    let is_there = ["input.txt", "output.txt"].iter().all(|name| folder.join(name).is_file());
    if !is_there {
        // Not by `println!`, which is shown only where a test fails.
        let at = folder.display();
        let _ =
            writeln!(std::io::stderr(), "SKIPPED: nothing at {at}; COFFERDAM_CHALLENGE_DIR says where it is");
    }
    is_there.then_some(folder)
}

#[test]
fn the_published_input_over_http_gives_the_published_output_byte_for_byte() {
    let Some(folder) = challenge() else { return };
    let read = |name: &str| std::fs::read(folder.join(name)).expect("a readable challenge file");
    for mode in ["inline", "process_supervisor"] {
        let mode = format!("runtime.platform.bootstrap.mode={mode}");
        let service = Service::of(&example("fund-load"), &[&mode]);
        assert_same(&batch(&service, &read("input.txt")), &read("output.txt"), &mode);
    }
}
