//! libFuzzer at the target `head` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("head"), |bytes: &[u8]| fuzz::run("head", bytes));
