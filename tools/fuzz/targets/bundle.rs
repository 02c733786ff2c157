//! libFuzzer at the target `bundle` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("bundle"), |bytes: &[u8]| fuzz::run("bundle", bytes));
