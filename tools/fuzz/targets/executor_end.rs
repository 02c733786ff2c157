//! libFuzzer at the target `executor_end` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("executor_end"), |bytes: &[u8]| fuzz::run("executor_end", bytes));
