//! The memory backend under the conformance suites of the ports.

#[macro_use]
mod support {
    pub mod backends;
    #[macro_use]
    pub mod conformance;
}

conformance!(crate::support::backends::memory);
conformance!(crate::support::backends::memory; bounds:
    all_states_and_contexts_together_are_bounded
    records_beyond_the_number_kept_go_oldest_first
    records_beyond_the_bytes_kept_go_oldest_first
    a_record_larger_than_all_that_is_kept_is_answered_and_goes_with_the_next_end
);
