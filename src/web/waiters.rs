//! Who waits for which job, and what each of them waits for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::http1::{Refused, refused};
use super::respond::Answer;
use crate::clock::Timestamp;
use crate::job::{Finished, IdMap, JobId, Trace};
use crate::observe::job_event;
use crate::observe::metrics::Counters;
use crate::problem::Code;

/// The refusal of a caller who would wait.
pub const TOO_MANY_WAITERS: Refused = refused(Code::TooManyWaiters, "web.max_inflight callers are waiting");

/// Who waits for which job; a batch is entered once a line.
#[derive(Default)]
pub struct Waiters {
    pub by_job: IdMap<JobId, Vec<usize>>,
    /// Callers of single jobs.
    pub count: usize,
    /// Jobs that were accepted and whose last caller left before the reply: it will be late.
    pub left: IdMap<JobId, Late>,
    /// Jobs whose ends may have gone unheard, and could not be looked for; they are looked for again then.
    pub unsure: Vec<JobId>,
    /// When [`Gate::look_for_unsure`] has something to do.
    pub look_at: Option<Timestamp>,
    /// Handlers whose jobs are cancelled when their last caller hangs up.
    pub cancelling: Arc<[Arc<str>]>,
    pub counters: Arc<Counters>,
}

/// What is known of a job whose reply will be late: its trace and its handler.
pub type Late = (Trace, Arc<str>);

impl Waiters {
    /// Whether these have ended could not be found out.
    pub fn cannot_tell(&mut self, jobs: Vec<JobId>, now: Timestamp) {
        const AGAIN: Duration = Duration::from_secs(1);
        if !jobs.is_empty() {
            self.unsure.extend(jobs);
            self.look_at.get_or_insert(now.plus(AGAIN));
        }
    }

    /// The job's end is to be told to this connection.
    pub fn enter(&mut self, number: usize, job: JobId) {
        self.left.remove(&job);
        self.by_job.entry(job).or_default().push(number);
    }

    /// It is not, any more; true if nobody else wants to hear of it. `late`: it was accepted, and its reply will be late.
    pub fn withdraw(&mut self, number: usize, job: JobId, late: Option<Late>) -> bool {
        let Some(callers) = self.by_job.get_mut(&job) else { return false };
        callers.retain(|other| *other != number);
        let is_last = callers.is_empty();
        if is_last {
            self.by_job.remove(&job);
            self.left.extend(late.map(|late| (job, late)));
        }
        is_last
    }

    pub fn count(&mut self, by: isize) {
        self.count = self.count.saturating_add_signed(by);
        self.counters.waiters.store(self.count as u64, Ordering::Relaxed);
    }

    /// Takes out those who wait for a job that has ended.
    pub fn take(&mut self, job: JobId) -> Vec<usize> {
        let callers = self.by_job.remove(&job);
        if callers.is_none()
            && let Some((trace, handler)) = self.left.remove(&job)
        {
            self.counters.reply_late.fetch_add(1, Ordering::Relaxed);
            said("reply.late_dropped", job, &trace, &handler, "waiter_gone");
        }
        callers.unwrap_or_default()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_job.len() + self.left.len() + self.count
    }
}

/// A caller that waits for a job, or for its acceptance alone.
pub struct Waiting {
    pub job: JobId,
    /// Empty until it is known.
    pub handler: Arc<str>,
    pub kind: Kind,
    pub stage: Stage,
    /// When the wait is over.
    pub until: Timestamp,
    /// Where others tell of ends, the job's may be heard before it is known to be accepted.
    pub ended: Option<Arc<Finished>>,
    /// It joined another request's job.
    pub is_replayed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 202 as soon as the job is accepted (`Prefer: respond-async`): nobody here waits for its end.
    Acceptance,
    /// The handler's output; past the deadline 504.
    Result,
    /// The handler's output; past the deadline 202 (`Prefer: wait`, alone or with `respond-async`).
    ResultOrAccepted { seconds: u64, respond_async: bool },
    /// The record, as it is at the end or at the deadline.
    Record,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It is not known yet if there is such a job.
    Asked,
    /// There is.
    Accepted,
    /// The record is asked for, to be shown or since the time is up.
    Looking,
}

impl Waiting {
    /// Puts the headers of every answer about this job on one.
    pub fn with_headers(&self, mut answer: Answer) -> Answer {
        if self.is_replayed {
            answer = answer.with("idempotency-replayed", true);
        }
        answer = answer.with("cofferdam-job-id", self.job);
        match self.kind {
            Kind::Acceptance => answer.with("preference-applied", "respond-async"),
            Kind::ResultOrAccepted { seconds, respond_async } => {
                let first = if respond_async { "respond-async, " } else { "" };
                answer.with("preference-applied", format_args!("{first}wait={seconds}"))
            }
            Kind::Result | Kind::Record => answer,
        }
    }
}

/// A boundary event of a reply.
pub fn said(name: &str, job: JobId, trace: &Trace, handler: &str, cause: &str) {
    job_event(log::Level::Debug, name, trace, job, handler).field("cause", cause).emit();
}
