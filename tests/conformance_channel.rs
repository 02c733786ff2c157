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

fn memory_behind_the_channel(
    settings: &support::conformance::Settings,
) -> Box<dyn support::conformance::Backend> {
    behind_the_channel(memory(settings), settings)
}
