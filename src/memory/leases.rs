//! How a lease goes on, and every way it can end.

use log::Level;

use super::broker::{Broker, ConsumerId, Lease};
use crate::clock::Timestamp;
use crate::job::{AttemptOutcome, JobId, JobStatus};
use crate::job_status::JobEvent;
use crate::limits::LOSSES_TO_BE_ALONE;
use crate::ports::LeaseId;
use crate::problem::Cause;

/// What is known of the jobs of a run that ends before their outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// The executor did not start them.
    NotBegun,
    /// It may have.
    MayHaveBegun,
}

impl Broker {
    /// The run's first job is done: its next one starts, or the lease is complete.
    pub(super) fn next_of_run(&mut self, number: u64, now: Timestamp) {
        let Some(lease) = self.leases.get_mut(&number) else { return };
        lease.jobs.pop_front();
        lease.expires_at = now.plus(self.rules.visibility);
        let consumer = lease.consumer;
        match lease.jobs.front().copied() {
            Some(next) => {
                let deadline = self.deadline(next, now);
                self.leases.entry(number).and_modify(|lease| lease.deadline = deadline);
                self.start(next, consumer, now);
            }
            None => {
                let Some(lease) = self.remove_lease(number) else { return };
                // Complete: whoever ran it holds the lane's state as it is now.
                self.lanes.entry(lease.lane).and_modify(|lane| lane.maker = Some(lease.consumer));
                self.make_ready(lease.lane, now);
            }
        }
    }

    /// Takes the lease out of the books; says which jobs it had left. Nobody is known to know the lane's state now.
    fn remove_lease(&mut self, number: u64) -> Option<Lease> {
        let lease = self.leases.remove(&number)?;
        self.lanes.entry(lease.lane).and_modify(|lane| (lane.lease, lane.maker) = (None, None));
        if let Some(consumer) = self.consumers.get_mut(&lease.consumer) {
            consumer.leases.retain(|held| *held != number);
            consumer.is_alone = false;
        }
        Some(lease)
    }

    /// Ends a lease before its last commit, whatever its running job came to.
    pub(super) fn end_lease(&mut self, number: u64, rest: Rest, now: Timestamp) {
        let Some(lease) = self.remove_lease(number) else { return };
        let running =
            lease.jobs.front().filter(|job| self.jobs[*job].job.record.status == JobStatus::Running);
        if let Some(job) = running {
            if rest == Rest::MayHaveBegun {
                self.end_attempt(*job, AttemptOutcome::GivenBack, now);
            }
            // Cut off by a release, not by its own fault: not counted.
            self.requeue(*job, JobEvent::GiveBack, now);
            self.jobs.entry(*job).and_modify(|entry| {
                entry.job.record.deliveries -= 1;
                entry.job.record.executor = None;
                entry.job.delivery -= u32::from(rest == Rest::NotBegun);
            });
        }
        if rest == Rest::MayHaveBegun {
            lease.jobs.iter().skip(1).for_each(|job| self.may_have_begun(*job));
        }
        lease.jobs.iter().for_each(|job| self.touch(*job));
        self.make_ready(lease.lane, now);
    }

    /// A lease may not leave yet: none of its time passes.
    pub(super) fn hold_back(&mut self, lease: LeaseId) {
        let never = Timestamp(u64::MAX);
        self.leases.entry(lease.0).and_modify(|lease| (lease.expires_at, lease.deadline) = (never, never));
    }

    /// Now it leaves, and its time begins.
    pub(super) fn let_go(&mut self, lease: LeaseId, now: Timestamp) {
        let Some(running) = self.leases.get(&lease.0).and_then(|lease| lease.jobs.front()) else { return };
        let times = (now.plus(self.rules.visibility), self.deadline(*running, now));
        self.leases.entry(lease.0).and_modify(|lease| (lease.expires_at, lease.deadline) = times);
    }

    /// A later job of a run that ends: the number that its handler may have been told is not told again.
    pub(super) fn may_have_begun(&mut self, job: JobId) {
        self.jobs.entry(job).and_modify(|entry| entry.job.delivery += 1);
        self.touch(job);
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
        for job in lease.jobs {
            self.touch(job);
            let Some(entry) = self.jobs.get_mut(&job).filter(|entry| !entry.job.record.status.is_terminal())
            else {
                continue;
            };
            entry.job.losses += 1;
            self.totals.suspects += usize::from(entry.job.losses == 1);
            if entry.job.record.status == JobStatus::Queued {
                self.may_have_begun(job);
                continue;
            }
            entry.job.record.deliveries -= u32::from(!is_alone);
            if entry.job.losses == LOSSES_TO_BE_ALONE {
                self.note(Level::Info, "job.suspect", job, Cause::ExecutorLost.as_str());
            }
            self.again(job, Cause::ExecutorLost, "its executor was lost".into(), None, now);
        }
        self.make_ready(lease.lane, now);
    }

    /// The service stops; `claims_nothing`: what is queued stays so. True once nothing runs.
    pub fn drain(&mut self, claims_nothing: bool) -> bool {
        if self.claims_nothing && !claims_nothing {
            self.signals.groups.extend(0..self.workers.len());
        }
        self.claims_nothing = claims_nothing;
        self.leases.is_empty()
    }

    /// Gives all leases back, uncounted; says which jobs were running.
    pub fn cut_off(&mut self, now: Timestamp) -> Vec<JobId> {
        self.claims_nothing = true;
        let running: Vec<JobId> =
            self.leases.values().filter_map(|lease| lease.jobs.front()).copied().collect();
        let leases: Vec<u64> = self.leases.keys().copied().collect();
        for number in leases {
            self.revoke_all(number);
            self.end_lease(number, Rest::MayHaveBegun, now);
        }
        running
    }

    /// See [`ports::Consumer::extend`].
    pub fn extend(&mut self, id: ConsumerId, now: Timestamp) {
        let Some(consumer) = self.consumers.get(&id) else { return };
        for number in &consumer.leases {
            let expires_at = now.plus(self.rules.visibility);
            self.leases.entry(*number).and_modify(|lease| lease.expires_at = expires_at);
        }
    }
}
