//! Same input, same output bytes: the fund-load challenge through `batch`, in every mode.
//!
//! It guards the promise that one input gives one output with the real input and its published output, and with generated inputs
//! against an oracle that shares no code with the handlers. A failure names its seed; `COFFERDAM_SEED=N`
//! replays that one.

#[path = "../tools/fund-load/generator.rs"]
mod generator;
#[path = "support/oracle.rs"]
mod oracle;
#[path = "support/parity.rs"]
mod parity;
#[path = "support/program.rs"]
mod program;

use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};

use oracle::Rules;
use parity::{asked_seed, assert_same, challenge};
use program::{command, example, run, shown};

/// The values of `runtime.platform.bootstrap.mode` that the same bytes must come out of.
const MODES: &[&str] = &["inline", "process_supervisor"];

const HANDLERS: [(&str, Rules); 2] = [("fund_load", Rules::Baseline), ("fund_load_exp", Rules::Experiment)];

/// As many programs at once: each has threads of its own.
const AT_ONCE: usize = 2;

fn fund_load(mode: &str, handler: &str, input: &[u8], options: &[&str]) -> Output {
    let mode = format!("runtime.platform.bootstrap.mode={mode}");
    let fixed = ["batch", "--progress", "never", "--set", &mode, "--handler", handler];
    let arguments = fixed.iter().chain(options);
    let output = run(&mut command(&example("fund-load"), arguments), input);
    assert!(output.status.success(), "{mode} {handler}: {}", shown(&output));
    output
}

/// The seeds `1..=count`, or the one that is asked for.
fn seeds(count: u64) -> Vec<u64> {
    asked_seed().map_or_else(|| (1..=count).collect(), |seed| vec![seed])
}

/// Does each of these, a few at a time; the first panic ends the test.
fn a_few_at_a_time<T: Sync>(items: &[T], check: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(item);
                }
            });
        }
    });
}

#[test]
fn the_published_input_gives_the_published_output_byte_for_byte() {
    let Some((input, expected)) = challenge() else { return };
    for mode in MODES {
        let output = fund_load(mode, "fund_load", &input, &[]);
        assert_same(&output.stdout, &expected, &format!("the real input, {mode}"));
    }
}

#[test]
fn the_published_output_is_the_oracles_too() {
    let Some((input, expected)) = challenge() else { return };
    assert_same(&oracle::decide(&input, Rules::Baseline), &expected, "the oracle");
}

#[test]
fn both_handlers_agree_with_the_oracle_on_fifty_generated_inputs() {
    const LINES: usize = 2_000;
    let seeds = seeds(50);
    println!("seeds {seeds:?}, {LINES} lines each, modes {MODES:?}");
    a_few_at_a_time(&seeds, |seed| {
        let input = generator::generate(*seed, LINES);
        for (handler, rules) in HANDLERS {
            let expected = oracle::decide(&input, rules);
            for mode in MODES {
                let output = fund_load(mode, handler, &input, &[]);
                assert_same(&output.stdout, &expected, &format!("seed {seed}, {handler}, {mode}"));
            }
        }
    });
}

#[test]
fn the_baseline_agrees_with_the_oracle_on_one_long_input() {
    const LINES: usize = 50_000;
    let seed = seeds(1)[0];
    println!("seed {seed}, {LINES} lines, modes {MODES:?}");
    let input = generator::generate(seed, LINES);
    let expected = oracle::decide(&input, Rules::Baseline);
    for mode in MODES {
        let output = fund_load(mode, "fund_load", &input, &[]);
        assert_same(&output.stdout, &expected, &format!("seed {seed}, {mode}"));
    }
}

#[test]
fn completion_order_of_a_serial_lane_is_the_source_order() {
    let input = generator::generate(7, 500);
    for mode in MODES {
        for (handler, rules) in HANDLERS {
            let output = fund_load(mode, handler, &input, &["--sink-mode", "completion"]);
            assert_same(&output.stdout, &oracle::decide(&input, rules), &format!("{handler}, {mode}"));
        }
    }
}

#[test]
fn a_second_run_starts_from_empty_state_and_gives_the_same_bytes() {
    let input = generator::generate(11, 1_000);
    for mode in MODES {
        let (first, second) =
            (fund_load(mode, "fund_load", &input, &[]), fund_load(mode, "fund_load", &input, &[]));
        assert_same(&second.stdout, &first.stdout, mode);
    }
}
