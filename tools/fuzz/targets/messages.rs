//! libFuzzer at the target `messages` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("messages"), |bytes: &[u8]| fuzz::run("messages", bytes));
