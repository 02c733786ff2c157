//! libFuzzer at the target `frame` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("frame"), |bytes: &[u8]| fuzz::run("frame", bytes));
