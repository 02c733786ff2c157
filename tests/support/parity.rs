//! What the parity tests share: the seed, the published challenge, and how two outputs are compared.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A delivery is charged when its lease goes out, and kills come faster than a lane's state may travel in a debug build
/// on a loaded machine: a job must not be dead because of that. The restart policy stays as it is.
pub const UNDYING: &str = "runtime.platform.queue.max_deliveries=100000";
/// A run with faults takes longer than one without; one that has lost something never ends.
pub const RUN: Duration = Duration::from_secs(100);

/// One at a time: each of them needs the whole machine.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The seed that is asked for.
pub fn asked_seed() -> Option<u64> {
    let text = std::env::var("COFFERDAM_SEED").ok()?;
    Some(text.parse().expect("COFFERDAM_SEED is a number"))
}

/// The same, or 1; said, so that a failure shows it.
pub fn seed() -> u64 {
    let seed = asked_seed().unwrap_or(1);
    println!("seed {seed}");
    seed
}

/// Fails with the first line that differs, since a diff of thousands of lines tells nothing.
#[track_caller]
pub fn assert_same(output: &[u8], expected: &[u8], what: &str) {
    if output == expected {
        return;
    }
    let lines = |bytes: &[u8]| -> Vec<String> {
        let lines = bytes.split_inclusive(|byte| *byte == b'\n');
        lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    };
    let (output, expected) = (lines(output), lines(expected));
    let at = output.iter().zip(&expected).take_while(|(a, b)| a == b).count();
    panic!(
        "{what}: {} lines instead of {}; line {} is {:?} instead of {:?}",
        output.len(),
        expected.len(),
        at + 1,
        output.get(at),
        expected.get(at)
    );
}

/// The published input and output, if they are on this machine.
pub fn challenge() -> Option<(Vec<u8>, Vec<u8>)> {
    let said = std::env::var_os("COFFERDAM_CHALLENGE_DIR").map(PathBuf::from);
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/challenge");
    let folder = said.clone().unwrap_or_else(beside);
    let is_there = ["input.txt", "output.txt"].iter().all(|name| folder.join(name).is_file());
    assert!(is_there || said.is_none(), "COFFERDAM_CHALLENGE_DIR has no input.txt and output.txt");
    if !is_there {
        // Not by `println!`, which is shown only where a test fails.
        let at = folder.display();
        let _ =
            writeln!(std::io::stderr(), "SKIPPED: nothing at {at}; COFFERDAM_CHALLENGE_DIR says where it is");
        return None;
    }
    let read = |name: &str| std::fs::read(folder.join(name)).expect("a readable challenge file");
    Some((read("input.txt"), read("output.txt")))
}
