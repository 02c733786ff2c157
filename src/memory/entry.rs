//! What the broker knows of one handler and of one job, and how a job's step through its life is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::records::Place;
use crate::clock::Timestamp;
use crate::handler::HandlerSpec;
use crate::job::{IdMap, InstanceId, JobId, JobStatus};
use crate::job_status::JobEvent;
use crate::journal::facts::Job;
use crate::ports::{HandlerStats, Share};

/// A handler's share of the broker.
#[derive(Debug)]
pub(super) struct HandlerQueue {
    pub(super) spec: HandlerSpec,
    /// Lanes that can be claimed from that time on, oldest first.
    pub(super) ready: BTreeMap<(Timestamp, u64), u64>,
    /// Its queued jobs, by the time since when they could have run but for what hinders them.
    pub(super) waiting: BTreeSet<(Timestamp, JobId)>,
    /// What its follow-ups take that have not ended.
    pub(super) follow_ups: Share,
    /// The same of its other jobs, and of those what each owner has; nobody without authentication.
    pub(super) of_callers: Share,
    pub(super) owners: IdMap<Arc<str>, Share>,
    /// As they are told, but for the group's name and the oldest job.
    pub(super) figures: HandlerStats,
}

/// A job and all that is known of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) job: Job,
    pub(super) handler: usize,
    pub(super) lane: u64,
    pub(super) fence: u64,
    /// Who submitted it, and hears of its end.
    pub(super) instance: InstanceId,
    /// Who else hears of it.
    pub(super) watchers: Vec<InstanceId>,
    /// `Some` iff it is kept as a finished record.
    pub(super) place: Option<Place>,
    pub(super) written: Written,
}

/// What a journal knows of a thing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    /// It has a base.
    pub(super) has_base: bool,
    /// It has changed since the last turn.
    pub(super) is_outdated: bool,
    /// What it counts for in the bytes of all jobs.
    pub(super) bytes: usize,
}

/// What has changed since the last turn.
#[derive(Debug, Default)]
pub(super) struct Changed {
    /// There, or gone.
    pub(super) jobs: Vec<JobId>,
    /// That were paused or resumed.
    pub(super) handlers: Vec<usize>,
}

impl HandlerQueue {
    /// A job begins a life, or ends it.
    pub(super) fn count_live(&mut self, job: &Job, begins: bool) {
        let count = |to: &mut usize, by| *to = if begins { *to + by } else { *to - by };
        let count = |share: &mut Share| {
            count(&mut share.jobs, 1);
            count(&mut share.bytes, job.payload_bytes());
        };
        if job.is_follow_up {
            return count(&mut self.follow_ups);
        }
        count(&mut self.of_callers);
        let owner = &job.record.spec.owner;
        if !owner.is_empty() {
            let share = self.owners.entry(owner.clone()).or_default();
            count(share);
            if *share == Share::default() {
                self.owners.remove(owner);
            }
        }
    }

    /// A job comes to the status that it has, or leaves it.
    pub(super) fn count_status(&mut self, job: &Job, comes: bool) {
        let count = |to: &mut usize| *to = if comes { *to + 1 } else { *to - 1 };
        let place = (job.waits_since, job.record.spec.id);
        if job.record.status == JobStatus::Queued {
            count(&mut self.figures.queued);
            _ = if comes { self.waiting.insert(place) } else { self.waiting.remove(&place) };
        } else if job.record.status == JobStatus::Running {
            count(&mut self.figures.running);
        }
    }
}

impl Entry {
    /// One that has just come here.
    pub(super) fn new(job: Job, handler: usize, lane: u64, instance: InstanceId) -> Entry {
        let (watchers, place, written) = Default::default();
        Entry { job, handler, lane, fence: 0, instance, watchers, place, written }
    }

    /// Takes the job to its next status, and counts it there. `None`: the event changes nothing.
    pub(super) fn on<'a>(
        &mut self,
        event: JobEvent,
        handlers: &'a mut [HandlerQueue],
    ) -> Option<&'a mut HandlerQueue> {
        let after = self.job.record.status.after(event)?;
        let queue = &mut handlers[self.handler];
        queue.count_status(&self.job, false);
        let before = std::mem::replace(&mut self.job.record.status, after);
        queue.count_status(&self.job, true);
        if before.is_terminal() != after.is_terminal() {
            queue.count_live(&self.job, before.is_terminal());
        }
        if after.is_terminal() {
            queue.figures.finished[after as usize] += 1;
        } else if after == JobStatus::Queued {
            self.job.record.progress = None;
        }
        Some(queue)
    }
}
