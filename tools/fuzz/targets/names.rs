//! libFuzzer at the target `names` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("names"), |bytes: &[u8]| fuzz::run("names", bytes));
