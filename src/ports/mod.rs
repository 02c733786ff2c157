//! The ports: what the web and worker code ask of the place where jobs, state and replies are kept.
//!
//! A backend is one folder that implements these traits ([`crate::memory`]); the channel carries
//! [`Consumer`] to another process ([`crate::channel`]). One conformance suite a port runs against each of
//! them. No call waits for a job; a call that cannot reach its backend says so in bounded time.

mod consumer;
mod producer;
mod rules;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::bell::Bell;
use crate::clock::Timestamp;
use crate::job::{Change, Entries, Finished, InstanceId, JobId, JobRecord};
pub use consumer::{
    Commit, CommitAnswer, CommitResult, Consumer, Lease, LeaseRef, LeasedJob, ReleaseReason, Revoked,
    StateAt, Step,
};
pub use producer::{
    Filter, HandlerStats, Histogram, Idempotency, NewJob, ProcessStats, Producer, Refusal, Stats, Submitted,
    Viewer,
};
pub use rules::Rules;

/// The backend could not be reached or broke off: the only error of every port. Nothing is known of what the call
/// did, and every call is safe to repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendError(pub String);

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BackendError {}

/// Named maps of key to bytes, for lane states and trace contexts, each with an optional time to live that is exact
/// to the backend's clock.
///
/// Laws: `apply` takes hold as a whole; a map that is empty or past its time is absent; using a map with a
/// time to live renews it.
pub trait KeyValue: Send + Sync {
    /// The whole map; empty if there is none. A `ttl` given renews the map's time.
    fn load(&self, map: &str, ttl: Option<Duration>) -> Result<Entries, BackendError>;

    fn get(&self, map: &str, key: &str) -> Result<Option<Arc<[u8]>>, BackendError>;

    /// All changes at once; with `ttl` the map lives that long from now, without it for ever.
    fn apply(&self, map: &str, changes: &[Change], ttl: Option<Duration>) -> Result<(), BackendError>;

    fn delete(&self, map: &str) -> Result<(), BackendError>;
}

/// How a waiting process hears that a job has ended. A doorbell is published as a part of the job's commit; it may
/// be lost or doubled, the job's record is the truth.
pub trait Replies: Send + Sync {
    /// Opens the inbox of `instance`; `bell` rings when there is something in it.
    fn subscribe(&self, instance: InstanceId, bell: Bell) -> Result<Box<dyn Inbox>, BackendError>;
}

/// One process's doorbells.
pub trait Inbox: Send {
    /// Takes up to `most` of those that have rung; never waits.
    fn take(&mut self, most: usize) -> Result<Doorbells, BackendError>;
}

/// What rang since the last look.
#[derive(Debug, Default)]
pub struct Doorbells {
    /// In the order of the commits.
    pub rang: Vec<Doorbell>,
    /// Some were lost for want of room: look at the records of all jobs that are waited for.
    pub lost: bool,
}

/// A job that a process waits for has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doorbell {
    pub job: JobId,
    pub finished: Arc<Finished>,
}

impl Doorbell {
    /// What rang, or should have, for this record; `None` if it has not ended.
    #[must_use]
    pub fn of(record: JobRecord) -> Option<Doorbell> {
        Some(Doorbell { job: record.spec.id, finished: record.finished? })
    }
}

/// What a broker that has no process of its own asks of its host: time, and a clean end.
pub trait Upkeep: Send + Sync {
    /// Does what time alone does, and says when to call again at the latest; `None`: after the next event.
    fn tick(&self) -> Option<Timestamp>;

    /// An executor's process is known to have ended: its name at the broker, a space, and how many workers it had.
    fn lost(&self, _consumer: &str) {}

    /// True once nothing runs and nothing can start before `deadline`.
    fn is_idle(&self, deadline: Timestamp) -> bool;

    /// Jobs that have not ended.
    fn unfinished(&self) -> Vec<JobId>;
}
