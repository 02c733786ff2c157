//! libFuzzer at the target `journal_facts` of tests/support/fuzz.
#![no_main]

#[path = "../../../tests/support/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(init: fuzz::fill_corpus("journal_facts"), |bytes: &[u8]| fuzz::run("journal_facts", bytes));
