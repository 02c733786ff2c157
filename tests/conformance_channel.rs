//! The memory backend's consumers through the signed channel, under the conformance suites of the ports.

#[macro_use]
mod support {
    pub mod backends;
    pub mod channelled;
    #[macro_use]
    pub mod conformance;
}

use support::backends::memory;
use support::channelled::behind_the_channel;

conformance!(crate::memory_behind_the_channel);
conformance!(crate::memory_behind_the_channel; bounds:
    all_states_and_contexts_together_are_bounded
    records_beyond_the_number_kept_go_oldest_first
    records_beyond_the_bytes_kept_go_oldest_first
    a_record_larger_than_all_that_is_kept_is_answered_and_goes_with_the_next_end
);

fn memory_behind_the_channel(
    settings: &support::conformance::Settings,
) -> Box<dyn support::conformance::Backend> {
    behind_the_channel(memory(settings), settings)
}
