//! The Redis backend behind the signed channel, as everywhere, under the conformance suites of the ports, on a real server.

#[macro_use]
mod support {
    pub mod channelled;
    #[macro_use]
    pub mod conformance;
    pub mod redis;
    pub mod redis_backend;
}

use support::channelled::behind_the_channel;
use support::redis_backend::redis;

conformance!(crate::redis_behind_the_channel);

fn redis_behind_the_channel(
    settings: &support::conformance::Settings,
) -> Box<dyn support::conformance::Backend> {
    behind_the_channel(redis(settings), settings)
}
