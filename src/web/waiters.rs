//! Who waits for which job, and what each of them waits for.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::respond::Answer;
use crate::clock::Timestamp;
use crate::job::{Finished, IdMap, JobId, Trace};
use crate::observe::job_event;
use crate::observe::metrics::Counters;

/// Who waits for which job; a batch is entered once a line.
pub(super) struct Waiters {
    pub(super) by_job: IdMap<JobId, Callers>,
    /// Callers of single jobs.
    count: usize,
    most: usize,
    /// Jobs that were accepted and whose last caller left before the reply: it will be late.
    pub(super) left: IdMap<JobId, Trace>,
    /// Jobs whose ends may have gone unheard, and could not be looked for; they are looked for again then.
    pub(super) unsure: Vec<JobId>,
    pub(super) look_at: Timestamp,
    /// Handlers whose jobs are cancelled when their last caller hangs up.
    pub(super) cancelling: Arc<[Arc<str>]>,
    pub(super) counters: Arc<Counters>,
}

pub(super) enum Callers {
    One(u64),
    Many(Vec<u64>),
}

impl Waiters {
    pub(super) fn new(most: usize, cancelling: Arc<[Arc<str>]>, counters: Arc<Counters>) -> Waiters {
        let (by_job, left, unsure) = Default::default();
        let look_at = Timestamp(u64::MAX);
        Waiters { by_job, count: 0, most, left, unsure, look_at, cancelling, counters }
    }

    /// Whether these have ended could not be found out.
    pub(super) fn cannot_tell(&mut self, jobs: Vec<JobId>, now: Timestamp) {
        const AGAIN: Duration = Duration::from_secs(1);
        if !jobs.is_empty() {
            self.unsure.extend(jobs);
            self.look_at = self.look_at.min(now.plus(AGAIN));
        }
    }

    /// When [`Gate::look_for_unsure`] has something to do.
    pub(super) fn look_at(&self) -> Timestamp {
        self.look_at
    }

    pub(super) fn callers(&self) -> usize {
        self.count
    }

    pub(super) fn is_full(&self) -> bool {
        self.count >= self.most
    }

    /// The job's end is to be told to this connection.
    pub(super) fn enter(&mut self, number: u64, job: JobId) {
        self.left.remove(&job);
        self.by_job
            .entry(job)
            .and_modify(|callers| match callers {
                Callers::One(first) => *callers = Callers::Many(vec![*first, number]),
                Callers::Many(all) => all.push(number),
            })
            .or_insert(Callers::One(number));
    }

    /// It is not, any more; true if nobody else wants to hear of it.
    pub(super) fn withdraw(&mut self, number: u64, job: JobId) -> bool {
        let is_last = match self.by_job.get_mut(&job) {
            None => return false,
            Some(Callers::One(only)) => *only == number,
            Some(Callers::Many(all)) => {
                all.retain(|other| *other != number);
                all.is_empty()
            }
        };
        if is_last {
            self.by_job.remove(&job);
        }
        is_last
    }

    /// The same of a job that was accepted, before its reply.
    pub(super) fn leave(&mut self, number: u64, job: JobId, trace: Trace) -> bool {
        let is_last = self.withdraw(number, job);
        if is_last {
            self.left.insert(job, trace);
        }
        is_last
    }

    pub(super) fn count(&mut self, by: isize) {
        self.count = self.count.saturating_add_signed(by);
        self.counters.waiters.store(self.count as u64, Ordering::Relaxed);
    }

    /// Takes out those who wait for a job that has ended.
    pub(super) fn take(&mut self, job: JobId) -> Option<Callers> {
        let callers = self.by_job.remove(&job);
        if callers.is_none()
            && let Some(trace) = self.left.remove(&job)
        {
            self.counters.reply_late.fetch_add(1, Ordering::Relaxed);
            said("reply.late_dropped", job, &trace, "waiter_gone");
        }
        callers
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_job.len() + self.left.len() + self.count
    }
}

/// A request that asked the broker to take a job, for whose end nobody here waits.
pub(super) struct Asked {
    pub(super) job: JobId,
}

/// A caller that waits for a job.
#[derive(Clone)]
pub(super) struct Waiting {
    pub(super) job: JobId,
    pub(super) kind: Kind,
    pub(super) stage: Stage,
    /// When the wait is over.
    pub(super) until: Timestamp,
    /// Where others tell of ends, the job's may be heard before it is known to be accepted.
    pub(super) ended: Option<Arc<Finished>>,
    /// It joined another request's job.
    pub(super) is_replayed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The handler's output; past the deadline 504.
    Result,
    /// The handler's output; past the deadline 202 (`Prefer: wait`, so many seconds).
    ResultOrAccepted(u64),
    /// The record, as it is at the end or at the deadline.
    Record,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is not known yet if there is such a job.
    Asked,
    /// There is.
    Accepted,
    /// The record is asked for, to be shown or since the time is up.
    Looking,
}

impl Waiting {
    pub(super) fn new(job: JobId, kind: Kind, until: Timestamp) -> Waiting {
        Waiting { job, kind, stage: Stage::Asked, until, ended: None, is_replayed: false }
    }

    /// Puts the headers of every answer about this job on one.
    pub(super) fn with_headers(&self, mut answer: Answer) -> Answer {
        if self.is_replayed {
            answer.headers.push_str("idempotency-replayed: true\r\n");
        }
        let _ = write!(answer.headers, "cofferdam-job-id: {}\r\n", self.job);
        if let Kind::ResultOrAccepted(seconds) = self.kind {
            let _ = write!(answer.headers, "preference-applied: wait={seconds}\r\n");
        }
        answer
    }
}

/// A boundary event of a reply.
pub(super) fn said(name: &str, job: JobId, trace: &Trace, cause: &str) {
    job_event(log::Level::Debug, name, trace, job).field("cause", cause).emit();
}
