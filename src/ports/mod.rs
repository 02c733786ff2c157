//! The ports: what the web and worker code ask of the place where jobs, state and replies are kept.
//!
//! A backend is one folder that implements these traits ([`crate::memory`]); the channel carries
//! [`Consumer`] to another process ([`crate::channel`]). One conformance suite a port runs against each of
//! them. No call waits for a job; a call that cannot reach its backend says so in bounded time.

mod consumer;
mod key_value;
mod producer;
mod replies;
mod rules;
mod upkeep;

pub use consumer::{
    Commit, CommitAnswer, CommitResult, Consumer, Lease, LeaseRef, LeasedJob, ReleaseReason, Revoked,
    StateAt, Step,
};
pub use key_value::KeyValue;
pub use producer::{
    Filter, HandlerStats, Histogram, Idempotency, NewJob, Producer, Refusal, Stats, Submitted, Viewer,
};
pub use replies::{Doorbell, Doorbells, Inbox, Replies};
pub use rules::Rules;
pub use upkeep::Upkeep;

use std::fmt;

/// The backend could not be reached or broke off; nothing is known of what the call did, and every call is
/// safe to repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendError(pub String);

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BackendError {}
