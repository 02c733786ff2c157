//! libFuzzer at the target `ordering_key` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("ordering_key"), |bytes: &[u8]| fuzz::run("ordering_key", bytes));
