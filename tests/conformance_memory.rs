//! The memory backend under the conformance suites of the ports.

#[macro_use]
mod support {
    pub mod backends;
    #[macro_use]
    pub mod conformance;
}

conformance!(crate::support::backends::memory);
