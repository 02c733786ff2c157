//! libFuzzer at the target `control` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("control"), |bytes: &[u8]| fuzz::run("control", bytes));
