//! What the gate asks the broker and the inner server, and what it is answered.

use std::sync::Arc;

use super::respond::Answer;
use super::routes::Inner;
use super::watch::News;
use crate::job::{InstanceId, JobId, JobRecord, Trace};
use crate::ports::{JobEnded, NewJob, Reached, Submitted, Viewer};
use crate::problem::Code;

/// Which request of which connection; what is asked for it carries this, and its answer goes there or nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    pub conn: usize,
    pub request: u64,
}

/// What a submission's answer comes back with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub asker: Asker,
    /// `Some` iff it is one request's only job, not lines of a batch.
    pub single: Option<Single>,
}

/// The job of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Single {
    pub job: JobId,
    pub trace: Trace,
    pub handler: Arc<str>,
}

/// A question of the gate.
#[derive(Debug)]
pub enum Question {
    /// Accept these jobs, in order.
    Submit(Ticket, Vec<NewJob>),
    /// A job's record, if this viewer may see it; with the instance, which is told of the job's end, if somebody is going to
    /// wait for that.
    Record(Asker, Viewer, JobId, Option<InstanceId>),
    /// Which of these have ended? It may have been told and lost.
    Ended(Vec<JobId>),
    /// Its last caller has hung up: cancel it, if it is of one of these handlers.
    Abandoned(JobId, Arc<[Arc<str>]>),
    /// The answer of a route that renders or may block.
    Page(PageRequest),
}

/// A request for the inner server.
#[derive(Debug)]
pub struct PageRequest {
    pub asker: Asker,
    pub route: Inner,
    pub method: &'static str,
    /// Path and query, checked to be visible ASCII.
    pub target: String,
    pub body: Arc<[u8]>,
    /// For problem documents.
    pub trace: Trace,
    /// Who asks.
    pub viewer: Viewer,
}

impl PageRequest {
    pub fn refused(&self, code: Code, detail: &str) -> Answered {
        Answered::Page(self.asker, Answer::refusal(code, detail, &self.trace))
    }
}

/// An answer to a question.
#[derive(Debug)]
pub enum Answered {
    /// One answer a job, in order.
    Submitted(Ticket, Reached<Vec<Submitted>>),
    Record(Asker, Reached<Option<JobRecord>>),
    /// These have ended; whether those have could not be found out.
    Ended(Vec<JobEnded>, Vec<JobId>),
    Page(Asker, Answer),
    /// For all who listen.
    News(Arc<News>),
}

/// Takes answers that come later, from any thread.
pub type Back = Arc<dyn Fn(Answered) + Send + Sync>;
