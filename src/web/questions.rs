//! What the gate asks the broker and the inner server, and what it is answered.

use std::sync::Arc;

use super::routes::Inner;
use crate::job::{InstanceId, JobId, JobRecord, Trace};
use crate::ports::{BackendError, JobEnded, NewJob, Submitted};

/// Which request of which connection; what is asked for it carries this, and its answer goes there or nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    pub conn: u64,
    pub request: u64,
}

/// What a single submission's answer comes back with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub asker: Asker,
    pub job: JobId,
    pub trace: Trace,
}

/// A question of the gate.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a submission is by far the usual question, and a box an allocation each"
)]
pub enum Question {
    /// Accept this job.
    Submit(Ticket, NewJob),
    /// Accept these lines of a batch, in order.
    Lines(Asker, Vec<NewJob>),
    /// A job's record; with the instance, which is told of the job's end, if somebody is going to wait for that.
    Record(Asker, JobId, Option<InstanceId>),
    /// Which of these have ended? It may have been told and lost.
    Ended(Vec<JobId>),
    /// Its last caller has hung up: cancel it, if it is of one of these handlers.
    Abandoned(JobId, Arc<[Arc<str>]>),
}

/// An answer to a question.
#[derive(Debug)]
pub enum Answered {
    Submitted(Ticket, Result<Submitted, BackendError>),
    /// One answer a line, in order.
    Lines(Asker, Result<Vec<Submitted>, BackendError>),
    Record(Asker, Result<Option<JobRecord>, BackendError>),
    Ended(Vec<JobEnded>),
    /// Whether these have ended could not be found out.
    Unsure(Vec<JobId>),
}

/// A request for a route that renders or may block.
#[derive(Debug)]
pub struct InnerRequest {
    pub asker: Asker,
    /// The route.
    pub route: Inner,
    /// The query, checked to be visible ASCII.
    pub query: String,
    /// For problem documents.
    pub trace: Trace,
}
