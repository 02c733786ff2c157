//! libFuzzer at the target `chunked` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("chunked"), |bytes: &[u8]| fuzz::run("chunked", bytes));
