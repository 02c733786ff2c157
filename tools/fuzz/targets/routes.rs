//! libFuzzer at the target `routes` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("routes"), |bytes: &[u8]| fuzz::run("routes", bytes));
