//! What the broker knows of one handler and of one job, and how a job's step through its life is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::records::Place;
use crate::clock::Timestamp;
use crate::handler::HandlerSpec;
use crate::job::{IdMap, InstanceId, JobId, JobRecord, JobStatus, Payload};
use crate::job_status::JobEvent;
use crate::ports::{HandlerStats, Share};

/// A handler's share of the broker.
#[derive(Debug)]
pub(super) struct HandlerQueue {
    pub(super) spec: HandlerSpec,
    /// Lanes that can be claimed from that time on, oldest first.
    pub(super) ready: BTreeMap<(Timestamp, u64), u64>,
    /// Its queued jobs, by the time since when they could have run but for what hinders them.
    pub(super) waiting: BTreeSet<(Timestamp, JobId)>,
    /// Its jobs that have not ended, and their payload bytes.
    pub(super) live_jobs: usize,
    pub(super) live_bytes: usize,
    /// Its follow-ups that have not ended, and their payload bytes.
    pub(super) follow_ups: (usize, usize),
    /// What each owner has of its other jobs that have not ended; nobody without authentication.
    pub(super) owners: IdMap<Arc<str>, Share>,
    /// As they are told, but for the group's name and the oldest job.
    pub(super) figures: HandlerStats,
}

/// A job and all that is known of it.
#[derive(Debug)]
pub(super) struct Entry {
    /// As it is told, but for what it waits for.
    pub(super) record: JobRecord,
    /// `None` once it succeeded: only then is it never needed again.
    pub(super) payload: Option<Payload>,
    pub(super) handler: usize,
    pub(super) lane: u64,
    pub(super) fence: u64,
    /// The number that its last start was told. A start that may have happened never shares its number, counted or not.
    pub(super) delivery: u32,
    /// How often its executor was lost while it may have been running, in this life: see [`LOSSES_TO_BE_ALONE`].
    pub(super) losses: u32,
    /// The same of its broker's process, which says nothing about the job; but that must end somewhere.
    pub(super) seat_losses: u32,
    /// Its place among all jobs of its lane.
    pub(super) order: u64,
    pub(super) not_before: Timestamp,
    /// When it could have run first: accepted, and after its caller's own delay.
    pub(super) waits_since: Timestamp,
    pub(super) awaited: bool,
    /// Another job has submitted it.
    pub(super) is_follow_up: bool,
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
    pub(super) jobs: Vec<JobId>,
    pub(super) gone: Vec<JobId>,
    /// That were paused or resumed.
    pub(super) handlers: Vec<usize>,
}

impl HandlerQueue {
    /// A job with so many bytes of payload begins a life, or ends it.
    pub(super) fn count_live(&mut self, owner: &Arc<str>, bytes: usize, is_follow_up: bool, begins: bool) {
        let count = |to: &mut usize, by| *to = if begins { *to + by } else { *to - by };
        count(&mut self.live_jobs, 1);
        count(&mut self.live_bytes, bytes);
        if is_follow_up {
            count(&mut self.follow_ups.0, 1);
            count(&mut self.follow_ups.1, bytes);
        } else if !owner.is_empty() {
            let share = self.owners.entry(owner.clone()).or_default();
            count(&mut share.jobs, 1);
            count(&mut share.bytes, bytes);
            if *share == Share::default() {
                self.owners.remove(owner);
            }
        }
    }
}

impl Entry {
    pub(super) fn payload_bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, |payload| payload.bytes.len())
    }

    /// What a base of it takes in a journal, about.
    pub(super) fn base_bytes(&self) -> usize {
        const FIXED: usize = 192;
        let spec = &self.record.spec;
        let key = spec.ordering_key.as_ref().map_or(0, |key| key.len());
        let state = spec.tracestate.as_ref().map_or(0, |state| state.len());
        let texts = spec.owner.len() + spec.handler.len() + key + state;
        FIXED + texts + self.result_bytes() + self.payload_bytes()
    }

    pub(super) fn result_bytes(&self) -> usize {
        self.record.finished.as_ref().map_or(0, |finished| match &finished.result {
            Ok(payload) => payload.bytes.len(),
            Err(error) => error.detail.len(),
        })
    }

    pub(super) fn progress_bytes(&self) -> usize {
        self.record.progress.as_ref().map_or(0, |progress| progress.as_str().len())
    }

    /// Takes the job to its next status, and counts it there. `None`: the event changes nothing.
    pub(super) fn on<'a>(
        &mut self,
        event: JobEvent,
        handlers: &'a mut [HandlerQueue],
    ) -> Option<&'a mut HandlerQueue> {
        use JobStatus as S;
        let after = self.record.status.after(event)?;
        let before = std::mem::replace(&mut self.record.status, after);
        let queue = &mut handlers[self.handler];
        let waiting = (self.waits_since, self.record.spec.id);
        match before {
            S::Queued => {
                queue.figures.queued -= 1;
                queue.waiting.remove(&waiting);
            }
            S::Running => queue.figures.running -= 1,
            S::Succeeded | S::Failed | S::Cancelled | S::TimedOut | S::Dead => {
                let owner = &self.record.spec.owner;
                queue.count_live(owner, self.payload_bytes(), self.is_follow_up, true);
            }
        }
        match after {
            S::Queued => {
                self.record.progress = None;
                queue.figures.queued += 1;
                queue.waiting.insert(waiting);
            }
            S::Running => queue.figures.running += 1,
            S::Succeeded | S::Failed | S::Cancelled | S::TimedOut | S::Dead => {
                let owner = &self.record.spec.owner;
                queue.count_live(owner, self.payload_bytes(), self.is_follow_up, false);
                queue.figures.finished[after as usize] += 1;
            }
        }
        Some(queue)
    }
}
