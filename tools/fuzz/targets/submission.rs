//! libFuzzer at the target `submission` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("submission"), |bytes: &[u8]| fuzz::run("submission", bytes));
