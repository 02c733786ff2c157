//! libFuzzer at the target `journal_segment` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("journal_segment"), |bytes: &[u8]| fuzz::run("journal_segment", bytes));
