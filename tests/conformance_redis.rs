//! The Redis backend under the conformance suites of the ports, on a real server.

#[macro_use]
mod support {
    pub mod backends;
    #[macro_use]
    pub mod conformance;
    pub mod redis;
}

conformance!(crate::support::backends::redis);
