//! libFuzzer at the target `config` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("config"), |bytes: &[u8]| fuzz::run("config", bytes));
