//! Leases as a broker gives them, and what an executor asks of it as short texts.
//!
//! It guards the tests of the executor against telling jobs apart by anything but their numbers: a job's
//! number is in its id, its trace, its payload and its fence.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::sync::Arc;
use std::time::Duration;

use cofferdam::clock::Timestamp;
use cofferdam::job::{Change, Effects, Entries, JobId, JobSpec, Outcome, Payload, Trace, Version};
use cofferdam::ports::{Commit, Lease, LeaseId, LeasedJob, Progressed, Requests, Rules, StateAt};
use cofferdam::problem::{Code, JobError};

pub const START: Timestamp = Timestamp(1_000_000_000);
/// Every job's.
pub const TIMEOUT: Duration = Duration::from_secs(30);
pub const GRACE: Duration = Duration::from_secs(10);

pub fn rules() -> Rules {
    Rules {
        capacity: 100_000,
        visibility: Duration::from_secs(30),
        max_deliveries: 3,
        // A job that comes again comes at once: nobody need look after time.
        retry: cofferdam::handler::Retry { base_ms: 0, max_ms: 0 },
        result_ttl: Duration::from_secs(600),
        awaited_ttl: Duration::from_secs(600),
        context_ttl: Duration::from_secs(60),
        lane_state_max: 1_000,
        max_payload: 1 << 20,
        grace: GRACE,
        ..Rules::default()
    }
}

pub fn id(job: u64) -> JobId {
    JobId(u128::from(job).to_be_bytes())
}

pub fn number(id: JobId) -> u64 {
    u128::from_be_bytes(id.0).try_into().expect("an id of these tests")
}

/// The fence of a job, and so the version that its changes make.
pub fn fence(job: u64) -> Version {
    Version(1_000 + job)
}

pub fn leased(job: u64, lane: &str) -> LeasedJob {
    let spec = JobSpec {
        id: id(job),
        owner: Arc::from(""),
        handler: Arc::from("h"),
        ordering_key: Some(Arc::from(lane)),
        trace: Trace { id: id(job).0, span: [1; 8], ..Trace::default() },
        tracestate: None,
        submitted_at: START,
        timeout: TIMEOUT,
        one_line: false,
    };
    let payload = Payload::json(job.to_string().into_bytes());
    LeasedJob { spec: Arc::new(spec), payload, delivery: 1, fence: fence(job).0, context: Entries::new() }
}

pub fn lease_of(lease: u64, lane: &str, jobs: &[u64], state: StateAt) -> Lease {
    let jobs = jobs.iter().map(|job| leased(*job, lane)).collect();
    Lease { id: LeaseId(lease), handler: Arc::from("h"), state, jobs }
}

/// A state of one entry with a value of this length, in version 5.
pub fn whole(bytes: usize) -> StateAt {
    StateAt::Whole(Version(5), entries(&vec![b'x'; bytes]))
}

/// One entry.
pub fn entries(value: &[u8]) -> Entries {
    Entries::from([(Arc::from("k"), Arc::from(value))])
}

pub fn succeeded() -> Outcome {
    Outcome::Succeeded(Payload::json(*b"1"), Effects::default())
}

/// It succeeded, and has changed the lane's state.
pub fn changed() -> Outcome {
    let state = vec![Change { key: Arc::from("k"), value: Some(Arc::from(*b"v")) }];
    Outcome::Succeeded(Payload::json(*b"1"), Effects { state, ..Effects::default() })
}

pub fn failed() -> Outcome {
    Outcome::Failed(JobError::new(Code::HandlerFailed, "no"))
}

pub fn retry() -> Outcome {
    Outcome::Retry("later".into(), None)
}

pub fn crashed() -> Outcome {
    Outcome::Crashed("oops".into())
}

/// `commit LEASE JOB OUTCOME on VERSION` for each commit, then `release LEASE` for each lease given back.
pub fn told(requests: &Requests) -> Vec<String> {
    let released = requests.releases.iter().map(|LeaseId(lease)| format!("release {lease}"));
    let progress = requests.progress.iter().map(|Progressed { lease, job, progress }| {
        format!("progress {} {} {}", lease.0, number(*job), progress.as_str())
    });
    progress.chain(requests.commits.iter().map(told_commit)).chain(released).collect()
}

fn told_commit(commit: &Commit) -> String {
    assert_eq!(commit.delivery, 1);
    let outcome = match &commit.outcome {
        Outcome::Succeeded(..) => "succeeded",
        Outcome::Failed(_) => "failed",
        Outcome::Retry(..) => "retry",
        Outcome::Crashed(_) => "crashed",
        Outcome::TimedOut(_) => "timed_out",
    };
    format!("commit {} {} {outcome} on {}", commit.lease.0, number(commit.job), commit.builds_on.0)
}
