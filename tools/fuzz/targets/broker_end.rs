//! libFuzzer at the target `broker_end` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("broker_end"), |bytes: &[u8]| fuzz::run("broker_end", bytes));
