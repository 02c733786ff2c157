//! [`Consumer`]: how an executor gets jobs and says what came of them.

use std::sync::Arc;

use super::BackendError;
use crate::job::{Entries, JobId, JobSpec, Payload, Verdict, Version};

/// An executor's side of the broker. Dropping it ends its leases, where the backend can see that. After an error
/// every lease of it must be taken as ended.
///
/// Laws: a lane has at most one live lease; its jobs come in submission order; a retried or delayed head
/// stays the head; ready lanes are served oldest first; a commit holds only under a live lease, for the run's
/// next job, on the lane's current state version; one call's commits are judged one by one.
pub trait Consumer: Send {
    /// Commits what is finished, then claims up to `room` leases. Never waits: answers and leases that are
    /// not there yet come with a later step, after the bell rang.
    fn step(&mut self, commits: Vec<Commit>, room: usize) -> Result<Step, BackendError>;

    /// Gives a lease back: its jobs are queued again in their order, uncounted. One that is over is ignored.
    fn release(&mut self, lease: LeaseRef, reason: ReleaseReason) -> Result<(), BackendError>;

    /// Renews all live leases of this consumer.
    fn extend(&mut self) -> Result<(), BackendError>;

    /// Jobs whose outcomes were committed here and are not known to be heard by the broker.
    fn owed(&self) -> Vec<JobId> {
        Vec::new()
    }
}

impl Consumer for Box<dyn Consumer> {
    fn step(&mut self, commits: Vec<Commit>, room: usize) -> Result<Step, BackendError> {
        (**self).step(commits, room)
    }

    fn release(&mut self, lease: LeaseRef, reason: ReleaseReason) -> Result<(), BackendError> {
        (**self).release(lease, reason)
    }

    fn extend(&mut self) -> Result<(), BackendError> {
        (**self).extend()
    }

    fn owed(&self) -> Vec<JobId> {
        (**self).owed()
    }
}

/// Names a live lease to its broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRef {
    /// From 1; never used again by this consumer's broker.
    pub number: u64,
    /// Unguessable. Behind the channel it stays at the broker's end, bound to the connection, and is zero here.
    pub token: [u8; 16],
}

/// A lane with a run of its first jobs, for one worker, in order.
#[derive(Clone, Debug)]
pub struct Lease {
    pub lease: LeaseRef,
    /// The handler of all its jobs.
    pub handler: Arc<str>,
    /// The lane's state before the first job.
    pub state: StateAt,
    /// At least one; the first has started.
    pub jobs: Vec<LeasedJob>,
}

/// The state that a lease builds on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateAt {
    /// The handler is not ordered: there is no state.
    Stateless,
    /// This consumer made that version itself and knows the map.
    Known(Version),
    /// The whole map at that version.
    Whole(Version, Entries),
}

/// One job of a lease.
#[derive(Clone, Debug)]
pub struct LeasedJob {
    pub spec: Arc<JobSpec>,
    pub payload: Payload,
    /// 1 for the first delivery of this life.
    pub delivery: u32,
    /// Grows with every delivery of the whole deployment.
    pub fence: u64,
    /// The trace's context as it was at the claim.
    pub context: Entries,
}

/// What came of the run's next uncommitted job.
#[derive(Clone, Debug)]
pub struct Commit {
    pub lease: LeaseRef,
    pub job: JobId,
    /// The delivery that this is the outcome of.
    pub delivery: u32,
    /// The state version that the handler saw.
    pub builds_on: Version,
    pub verdict: Verdict,
}

/// The broker's word on one commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum CommitResult {
    /// All of it took effect.
    Committed,
    /// A repeated call: the same token said the same before.
    AlreadyCommitted,
    /// Nothing took effect, and the lease is over.
    Fenced,
}

/// Which commit an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitAnswer {
    pub lease: u64,
    pub job: JobId,
    pub result: CommitResult,
}

/// A job of a lease that the consumer should not run, or should stop running: it was cancelled, or its
/// handler was paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoked {
    pub lease: u64,
    pub job: JobId,
}

/// What a step brought.
#[derive(Debug, Default)]
pub struct Step {
    /// Answers to commits, of this step or of earlier ones; each commit gets one.
    pub results: Vec<CommitAnswer>,
    /// New leases, at most as many as there was room for.
    pub leases: Vec<Lease>,
    pub revoked: Vec<Revoked>,
}

/// Why a lease is given back. None of these counts the running job's delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseReason {
    /// The state that it builds on is not here any more.
    NeedState,
    /// This executor stops.
    Draining,
    /// The run ended early: its running job was cancelled here.
    RunEnded,
}
