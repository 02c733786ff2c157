//! Every way a lease ends before its last commit, and what its jobs come to.

use std::time::Duration;

use log::Level;

use super::broker::{Broker, ConsumerId, Lease};
use crate::clock::{Timestamp, micros};
use crate::job::{JobId, JobStatus};
use crate::job_status::JobEvent;
use crate::limits::{DELAY_MAX, LOSSES_TO_BE_ALONE};
use crate::negative_controls::{Control, is_off};
use crate::ports::LeaseId;
use crate::problem::{Cause, Code, JobError};

/// What is known of the jobs of a run that ends before their outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// The executor did not start them.
    NotBegun,
    /// It may have.
    MayHaveBegun,
}

impl Broker {
    /// True if these leases are one, of one job: when their executor is lost, nothing else can be the reason.
    pub(super) fn holds_one_job(&self, leases: &[u64]) -> bool {
        matches!(leases, [number] if self.leases[number].jobs.len() == 1) || is_off(Control::Suspects)
    }

    /// A delivery that succeeded, but whose outcome has no room now: again after a backoff, uncounted.
    pub(super) fn put_off(&mut self, job: JobId, now: Timestamp) {
        let entry = &self.jobs[&job];
        let (deliveries, trace) = (entry.record.deliveries, entry.record.spec.trace);
        let backoff = self.backoff(job, deliveries);
        self.requeue(job, JobEvent::GiveBack, now.plus(backoff));
        self.jobs.entry(job).and_modify(|entry| entry.record.deliveries -= 1);
        self.note(Level::Info, "queue.redelivered", job, trace, Code::QueueFull.as_str());
    }

    /// Ends a lease whose executor says what cannot hold, or nothing. The delivery counts: else such an executor could have
    /// the job again for ever.
    pub(super) fn disbelieve(&mut self, number: u64, why: &str, now: Timestamp) {
        let running = self.leases[&number].jobs[0];
        self.again(running, Cause::ExecutorLost, why.into(), None, now);
        self.end_lease(number, Rest::MayHaveBegun, now);
    }

    /// A delivery that came to nothing: queued again after a backoff or its own time, or dead.
    pub(super) fn again(
        &mut self,
        job: JobId,
        cause: Cause,
        detail: String,
        after: Option<Duration>,
        now: Timestamp,
    ) {
        let entry = &self.jobs[&job];
        let (deliveries, losses, trace) = (entry.record.deliveries, entry.losses, entry.record.spec.trace);
        let most = self.max_deliveries(entry.handler);
        if deliveries >= most || losses >= most.saturating_mul(2) {
            self.totals.dead += 1;
            let error = JobError { code: Code::DeadLettered, detail, cause: Some(cause) };
            self.finish(job, JobEvent::Exhaust, Err(error), now);
            self.note(Level::Warn, "queue.dead", job, trace, cause.as_str());
            return;
        }
        let backoff = match cause {
            _ if after.is_some() => after.unwrap_or_default().min(DELAY_MAX),
            Cause::ExecutorLost if losses < LOSSES_TO_BE_ALONE => Duration::ZERO,
            Cause::ExecutorLost => self.backoff(job, losses - 1),
            Cause::RetriesExhausted | Cause::HandlerCrashed => self.backoff(job, deliveries),
        };
        self.requeue(job, JobEvent::Again, now.plus(backoff));
        self.note(Level::Info, "queue.redelivered", job, trace, cause.as_str());
    }

    pub(super) fn backoff(&mut self, job: JobId, tries: u32) -> Duration {
        let retry = self.handlers[self.jobs[&job].handler].spec.options.retry.unwrap_or(self.rules.retry);
        Duration::from_micros(self.entropy.up_to(micros(retry.backoff(tries))))
    }

    /// A running job is queued again; it never left its lane.
    pub(super) fn requeue(&mut self, job: JobId, event: JobEvent, not_before: Timestamp) {
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        if entry.on(event, &mut self.handlers).is_some() {
            entry.not_before = not_before;
        }
    }

    /// Takes the lease out of the books; says which jobs it had left.
    pub(super) fn remove_lease(&mut self, number: u64) -> Option<Lease> {
        let lease = self.leases.remove(&number)?;
        self.lanes.entry(lease.lane).and_modify(|lane| lane.lease = None);
        if let Some(consumer) = self.consumers.get_mut(&lease.consumer) {
            consumer.leases.retain(|held| *held != number);
            consumer.is_alone = false;
        }
        Some(lease)
    }

    /// Ends a lease before its last commit, whatever its running job came to. Nobody knows the lane's state now.
    pub(super) fn end_lease(&mut self, number: u64, rest: Rest, now: Timestamp) {
        let Some(lease) = self.remove_lease(number) else { return };
        self.lanes.entry(lease.lane).and_modify(|lane| lane.maker = None);
        let running = lease.jobs.front().filter(|job| self.jobs[*job].record.status == JobStatus::Running);
        if let Some(job) = running {
            // Cut off by a release, not by its own fault: not counted.
            self.requeue(*job, JobEvent::GiveBack, now);
            self.jobs.entry(*job).and_modify(|entry| {
                entry.record.deliveries -= 1;
                entry.delivery -= u32::from(rest == Rest::NotBegun);
            });
        }
        if rest == Rest::MayHaveBegun {
            lease.jobs.iter().skip(1).for_each(|job| self.may_have_begun(*job));
        }
        self.make_ready(lease.lane, now);
    }

    /// A later job of a run that ends: the number that its handler may have been told is not told again.
    pub(super) fn may_have_begun(&mut self, job: JobId) {
        self.jobs.entry(job).and_modify(|entry| entry.delivery += 1);
    }

    /// Gives a lease back. One that is over, or another's, is ignored.
    pub(super) fn release(&mut self, id: ConsumerId, lease: LeaseId, now: Timestamp) {
        if self.leases.get(&lease.0).is_some_and(|held| held.consumer == id) {
            self.end_lease(lease.0, Rest::NotBegun, now);
        }
    }

    /// The lease's executor is lost. Each of its jobs may have been running, and so may have been the reason: of an
    /// executor that had no other job it was, and counts as delivered; of others it is a suspect.
    pub(super) fn lose_lease(&mut self, number: u64, is_alone: bool, now: Timestamp) {
        let Some(lease) = self.remove_lease(number) else { return };
        self.lanes.entry(lease.lane).and_modify(|lane| lane.maker = None);
        for job in lease.jobs {
            let Some(entry) = self.jobs.get_mut(&job).filter(|entry| !entry.record.status.is_terminal())
            else {
                continue;
            };
            entry.losses += 1;
            self.totals.suspects += usize::from(entry.losses == 1);
            if entry.record.status == JobStatus::Queued {
                self.may_have_begun(job);
                continue;
            }
            entry.record.deliveries -= u32::from(!is_alone);
            let (losses, trace) = (entry.losses, entry.record.spec.trace);
            if losses == LOSSES_TO_BE_ALONE {
                self.note(Level::Info, "job.suspect", job, trace, Cause::ExecutorLost.as_str());
            }
            self.again(job, Cause::ExecutorLost, "its executor was lost".into(), None, now);
        }
        self.make_ready(lease.lane, now);
    }
}
