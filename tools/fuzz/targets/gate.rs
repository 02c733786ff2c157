//! libFuzzer at the target `gate` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("gate"), |bytes: &[u8]| fuzz::run("gate", bytes));
