//! [`Consumer`]: how an executor gets jobs and says what came of them.

use std::sync::Arc;

use super::error::Reached;
use super::rules::Rules;
use crate::job::{Entries, FollowUp, JobId, JobSpec, Outcome, Payload, Progress, Version};
use crate::limits::{DELAY_MAX, FOLLOW_UPS, ORDERING_KEY_BYTES};
use crate::problem::{Code, JobError};

/// An executor's side of the broker. Dropping it ends its leases at once. After an error every lease of it must be
/// taken as ended.
///
/// Laws: a lane has at most one live lease; its jobs come in submission order; a retried or delayed head
/// stays the head; ready lanes are served oldest first; a commit holds only under a live lease of this consumer, for
/// the run's next job, on the lane's current state version; one call's commits are judged one by one.
pub trait Consumer: Send {
    /// Says what came of runs, then claims until `room` leases are live. Never waits: refusals and leases that are
    /// not there yet come with a later step, after the bell rang.
    fn step(&mut self, requests: Requests, room: usize) -> Reached<Step>;

    /// The executor lives: its leases are renewed.
    fn extend(&mut self);

    /// True once all that was said here is in the books or was fenced.
    fn is_settled(&self) -> bool {
        true
    }
}

/// Names a lease to its broker; never used again by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// A lane with a run of its first jobs, for one worker, in order.
#[derive(Clone, Debug)]
pub struct Lease {
    pub id: LeaseId,
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

/// What an executor says in one step.
#[derive(Debug, Default)]
pub struct Requests {
    /// Told before the commits: the last of a job's may come with its outcome.
    pub progress: Vec<Progressed>,
    pub commits: Vec<Commit>,
    /// Leases that are given back: their jobs are queued again in their order, uncounted. Told after the commits, since
    /// a run's last outcome still holds under its lease. One that is over is ignored.
    pub releases: Vec<LeaseId>,
}

impl Requests {
    pub fn is_empty(&self) -> bool {
        self.progress.is_empty() && self.commits.is_empty() && self.releases.is_empty()
    }
}

/// How far a job of a lease is. It is for people who look on: it may be lost, and of several the last counts. One of a lease
/// that is over is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progressed {
    pub lease: LeaseId,
    pub job: JobId,
    pub progress: Progress,
}

/// What came of the run's next uncommitted job.
#[derive(Clone, Debug)]
pub struct Commit {
    pub lease: LeaseId,
    pub job: JobId,
    /// The delivery that this is the outcome of.
    pub delivery: u32,
    /// The state version that the handler saw.
    pub builds_on: Version,
    pub outcome: Outcome,
}

impl Commit {
    /// Why its effects cannot be applied, where that can be seen from them alone. Executors check the same before they
    /// commit, so this catches only one that does not. What does not fit a frame would end each connection that is given it.
    pub fn exceeds(&self, spec: &JobSpec, rules: &Rules) -> Option<JobError> {
        let Outcome::Succeeded(payload, effects) = &self.outcome else { return None };
        let most = rules.max_payload;
        let mut values = effects.state.iter().chain(&effects.context).filter_map(|it| it.value.as_ref());
        let too_long = |job: &FollowUp| {
            let key = job.ordering_key.as_ref().map_or(0, |key| key.len());
            key > ORDERING_KEY_BYTES || job.payload.bytes.len() > most || job.delay > DELAY_MAX
        };
        let jobs = &effects.follow_ups;
        let (code, detail) = if payload.bytes.len() > most {
            (Code::ResultTooLarge, "the result exceeds max_payload_bytes")
        } else if spec.one_line && payload.bytes.contains(&b'\n') {
            (Code::HandlerFailed, "the result has a line break, where it must be one line")
        } else if values.any(|value| value.len() > most) {
            (Code::StateTooLarge, "a value exceeds max_payload_bytes")
        } else if jobs.len() > FOLLOW_UPS || jobs.iter().any(too_long) {
            (Code::HandlerFailed, "the follow-ups exceed their bounds")
        } else {
            return None;
        };
        Some(JobError::new(code, detail))
    }
}

/// A job of a lease, as the broker speaks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfLease {
    pub lease: LeaseId,
    pub job: JobId,
}

/// What a step brought.
#[derive(Debug, Default)]
pub struct Step {
    /// Commits, of this step or of earlier ones, of which nothing took effect: their leases are over. The others held.
    pub fenced: Vec<OfLease>,
    pub leases: Vec<Lease>,
    /// Jobs that the consumer should not run, or should stop running: they were cancelled, or their handler was paused.
    pub revoked: Vec<OfLease>,
}

impl Step {
    pub fn is_empty(&self) -> bool {
        self.fenced.is_empty() && self.leases.is_empty() && self.revoked.is_empty()
    }
}
