//! libFuzzer at the target `inner_answer` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("inner_answer"), |bytes: &[u8]| fuzz::run("inner_answer", bytes));
