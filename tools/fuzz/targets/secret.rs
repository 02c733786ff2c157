//! libFuzzer at the target `secret` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("secret"), |bytes: &[u8]| fuzz::run("secret", bytes));
