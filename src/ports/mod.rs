//! The ports: what the web and worker code ask of the place where jobs, state and replies are kept.
//!
//! A backend is one folder that implements these traits ([`crate::memory`]); the channel carries
//! [`Consumer`] to another process ([`crate::channel`]). One conformance suite a port runs against each of
//! them. No call waits for a job; a call that cannot reach its backend says so in bounded time.

mod consumer;
mod error;
mod fitness;
mod forged;
mod key_value;
mod producer;
mod recent;
mod replies;
mod rules;
mod seat;

pub use consumer::{
    Commit, Consumer, Lease, LeaseId, LeasedJob, OfLease, Progressed, Requests, StateAt, Step,
};
pub use error::{BackendError, Reached};
pub use fitness::Fitness;
pub use forged::Forged;
pub use key_value::KeyValue;
pub use producer::{
    Filter, HandlerStats, Histogram, Idempotency, LaneStats, Listed, NewJob, NotRetried, Place, ProcessStats,
    Producer, Refusal, Retried, Share, Stats, Submitted, Then, Viewer,
};
pub use recent::{Looked, RecentEnd, RecentEnds, Traced};
pub use replies::{Ends, Inbox, JobEnded, Replies};
pub use rules::Rules;
pub use seat::Seat;
