//! libFuzzer at the target `lines` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("lines"), |bytes: &[u8]| fuzz::run("lines", bytes));
