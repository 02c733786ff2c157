//! libFuzzer at the target `handshake` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("handshake"), |bytes: &[u8]| fuzz::run("handshake", bytes));
