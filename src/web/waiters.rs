//! Who waits for which job, and what each of them waits for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::by_name::ByName;
use super::guard::Caller;
use super::http1::{Refused, refused};
use super::respond::Answer;
use crate::clock::Timestamp;
use crate::job::{Finished, IdMap, JobId, Trace};
use crate::observe::job_event;
use crate::observe::metrics::Counters;
use crate::problem::Code;

/// The refusal of a caller who would wait.
pub const TOO_MANY_WAITERS: Refused =
    refused(Code::TooManyWaiters, "as many callers wait as may, of web.max_inflight or of this token");

/// Who waits for which job; a batch is entered once a line.
#[derive(Default)]
pub struct Waiters {
    pub by_job: IdMap<JobId, Vec<Entered>>,
    /// Callers who have closed their side, and are told the end of their job if they are there still. They are not counted.
    pub half_closed: IdMap<JobId, Vec<(usize, Arc<str>)>>,
    /// How many of these there are, by the names of their tokens.
    pub half_closed_by: ByName,
    /// Callers of single jobs.
    pub count: usize,
    /// The same and batches, by the name of their tokens.
    pub by_owner: ByName,
    /// When each name asked last to wait, where there are tokens.
    pub asked: HashMap<Arc<str>, Timestamp>,
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

/// A connection that is told the end of a job, and whether it is one of the job's callers, who take it along by hanging up, or
/// only looks on.
type Entered = (usize, bool);

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
    pub fn enter(&mut self, number: usize, job: JobId, is_caller: bool) {
        self.left.remove(&job);
        self.by_job.entry(job).or_default().push((number, is_caller));
    }

    /// It is not, any more; true if it was the last of the job's callers. `late`: it was accepted, and its reply will be late.
    pub fn withdraw(&mut self, number: usize, job: JobId, late: Option<Late>) -> bool {
        let Some(entered) = self.by_job.get_mut(&job) else { return false };
        let was_caller = entered.contains(&(number, true));
        entered.retain(|(other, _)| *other != number);
        let is_last = was_caller && !entered.iter().any(|(_, is_caller)| *is_caller);
        let is_empty = entered.is_empty();
        if is_empty {
            self.by_job.remove(&job);
        }
        if is_last || is_empty {
            self.left.extend(late.map(|late| (job, late)));
        }
        is_last
    }

    pub fn count(&mut self, owner: &Arc<str>, by: isize) {
        self.count = self.count.saturating_add_signed(by);
        self.counters.waiters.store(self.count as u64, Ordering::Relaxed);
        self.count_owner(owner, by);
    }

    /// Callers and batches of this name are one more, or one less.
    pub fn count_owner(&mut self, owner: &Arc<str>, by: isize) {
        match by {
            // Without tokens there is one name.
            _ if owner.is_empty() => {}
            1.. => _ = self.by_owner.add(owner),
            _ => self.by_owner.remove(owner),
        }
    }

    /// Whether one more caller may wait, of `most` in all. A name has a quarter of the places; more while nobody else wants
    /// them, but for a last quarter, so that whoever comes next finds one.
    pub fn admits(&mut self, caller: &Caller, most: usize, now: Timestamp) -> bool {
        const WANTS: Duration = Duration::from_secs(1);
        let owner = caller.viewer.name.clone();
        if owner.is_empty() {
            return self.count < most;
        }
        let own = self.by_owner.of(&owner);
        let quarter = (most / 4).max(1);
        // While there are places for everybody it does not matter who wants them.
        if self.count >= quarter {
            self.asked.insert(owner.clone(), now);
        }
        if self.count >= most || caller.max_inflight.is_some_and(|most| own >= most) {
            return false;
        }
        let asks = |(name, at): (&Arc<str>, &Timestamp)| *name != owner && now < at.plus(WANTS);
        let others_want = || self.by_owner.names() > 1 || self.asked.iter().any(asks);
        own < quarter || self.count < most - quarter && !others_want()
    }

    /// The caller has closed its side: it is counted no longer. False: there are as many of these as there may be waiters of its
    /// name, so it is told nothing any more.
    pub fn half_close(&mut self, number: usize, job: JobId, caller: &Caller, most: usize) -> bool {
        let owner = caller.viewer.name.clone();
        let share = if owner.is_empty() { most } else { (most / 4).max(1) };
        let own_most = caller.max_inflight.unwrap_or(share);
        if self.half_closed_by.all() >= most || self.half_closed_by.of(&owner) >= own_most {
            return false;
        }
        self.half_closed_by.add(&owner);
        self.half_closed.entry(job).or_default().push((number, owner));
        true
    }

    /// One of these is answered, or gone.
    pub fn forget_half_closed(&mut self, number: usize, job: JobId) {
        let callers = self.half_closed.remove(&job).unwrap_or_default();
        let (gone, left): (Vec<_>, Vec<_>) = callers.into_iter().partition(|(other, _)| *other == number);
        if !left.is_empty() {
            self.half_closed.insert(job, left);
        }
        gone.iter().for_each(|(_, owner)| self.half_closed_by.remove(owner));
    }

    /// Takes out those who wait for a job that has ended.
    pub fn take(&mut self, job: JobId) -> Vec<usize> {
        let callers = self.by_job.remove(&job);
        let half_closed = self.half_closed.remove(&job).unwrap_or_default();
        half_closed.iter().for_each(|(_, owner)| self.half_closed_by.remove(owner));
        if let Some((trace, handler)) = self.left.remove(&job) {
            self.counters.reply_late.fetch_add(1, Ordering::Relaxed);
            said("reply.late_dropped", job, &trace, &handler, "waiter_gone");
        }
        let half_closed = half_closed.into_iter().map(|(number, _)| number);
        callers.into_iter().flatten().map(|(number, _)| number).chain(half_closed).collect()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_job.len() + self.half_closed.len() + self.by_owner.names() + self.left.len() + self.count
    }
}

/// A caller that waits for a job, or for its acceptance alone.
pub struct Waiting {
    pub job: JobId,
    /// The name of its token.
    pub owner: Arc<str>,
    /// It is in the count of waiters.
    pub is_counted: bool,
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

impl Kind {
    /// A caller of the job, who may take it along by hanging up; who asks for its record only looks on.
    pub fn takes_along(self) -> bool {
        self != Kind::Record
    }
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
            answer = answer.with("idempotency-replayed", "true");
        }
        answer = answer.with("cofferdam-job-id", self.job.to_string());
        match self.kind {
            Kind::Acceptance => answer.with("preference-applied", "respond-async"),
            Kind::ResultOrAccepted { seconds, respond_async } => {
                let first = if respond_async { "respond-async, " } else { "" };
                answer.with("preference-applied", format!("{first}wait={seconds}"))
            }
            Kind::Result | Kind::Record => answer,
        }
    }
}

/// A boundary event of a reply.
pub fn said(name: &str, job: JobId, trace: &Trace, handler: &str, cause: &str) {
    job_event(log::Level::Debug, name, trace, job, handler).field("cause", cause).emit();
}
