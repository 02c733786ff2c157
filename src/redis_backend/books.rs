//! An executor's books in its web process: the leases that it holds, and what it said that was not judged yet. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::bell::Bell;
use crate::clock::Timestamp;
use crate::job::{JobId, JobSpec, JobStatus, Outcome};
use crate::observe::{event, job_event};
use crate::ports::{Commit, LeaseId, OfLease, Step};

/// A lease of a consumer; of an unordered job with its id.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) consumer: u64,
    pub(super) lease: LeaseId,
    pub(super) own: String,
    /// How it ends, as scripts/turn.lua takes it; `None`: none of its jobs has begun.
    pub(super) how: Option<&'static str>,
}

/// An outcome, with what is known of its job.
pub(super) struct Told {
    pub(super) consumer: u64,
    pub(super) commit: Commit,
    pub(super) spec: Option<Arc<JobSpec>>,
    /// The job of an unordered lease, or nothing.
    pub(super) own: String,
    /// Its lane's state.
    pub(super) map: String,
    /// It starts with this outcome.
    next: Option<Arc<JobSpec>>,
}

/// An executor that may get leases.
pub(super) struct Exec {
    pub(super) consumer: u64,
    pub(super) group: usize,
    pub(super) room: usize,
    /// Its leases, by handler.
    pub(super) used: BTreeMap<Arc<str>, usize>,
    pub(super) prefers_alone: bool,
}

/// See the module.
pub(super) struct Books {
    pub(super) group: usize,
    pub(super) bell: Bell,
    /// Leases at once.
    pub(super) room: usize,
    pub(super) held: BTreeMap<LeaseId, Held>,
    /// It said something that goes with the next call.
    pub(super) says: bool,
    /// The call under way says something of it, or may bring it leases.
    pub(super) waits: bool,
    pub(super) out: Step,
    /// The next call renews its leases.
    pub(super) renews: bool,
    /// Its last lease was of a job that ran alone.
    pub(super) prefers_alone: bool,
    pub(super) renewed_at: Timestamp,
    /// The server was away for so long that its leases are over.
    pub(super) is_lost: bool,
}

/// A live lease.
pub(super) struct Held {
    pub(super) handler: Arc<str>,
    /// The job of an unordered lease, or nothing.
    pub(super) own: String,
    /// Its lane's state.
    pub(super) map: String,
    pub(super) jobs: Vec<Arc<JobSpec>>,
    /// The one that runs.
    pub(super) at: usize,
    /// Its executor gets no other meanwhile.
    pub(super) is_alone: bool,
}

impl Held {
    pub(super) fn named(&self, consumer: u64, lease: LeaseId, how: Option<&'static str>) -> Named {
        Named { consumer, lease, own: self.own.clone(), how }
    }

    /// The job that runs, if any.
    pub(super) fn running(&self) -> Option<JobId> {
        self.jobs.get(self.at).map(|job| job.id)
    }
}

impl Told {
    /// How its job has ended with that, if it has for sure.
    pub(super) fn status(&self) -> Option<JobStatus> {
        match &self.commit.outcome {
            Outcome::Succeeded(..) => Some(JobStatus::Succeeded),
            Outcome::Failed(_) => Some(JobStatus::Failed),
            Outcome::TimedOut(_) => Some(JobStatus::TimedOut),
            Outcome::Retry(..) | Outcome::Crashed(_) => None,
        }
    }

    /// It held.
    pub(super) fn log(&self) {
        if !matches!(self.commit.outcome, Outcome::Retry(..) | Outcome::Crashed(_)) {
            self.spec.iter().for_each(|spec| log_job("reply.published", spec));
        }
        self.next.iter().for_each(|next| log_job("queue.claimed", next));
    }
}

impl Books {
    pub(super) fn new(group: usize, bell: Bell, now: Timestamp) -> Books {
        let (room, held, says, waits, out, renews, prefers_alone, is_lost) = Default::default();
        Books { group, bell, room, held, says, waits, out, renews, prefers_alone, renewed_at: now, is_lost }
    }

    pub(super) fn told(&mut self, consumer: u64, commit: Commit) -> Told {
        self.says = true;
        let (lease, job) = (commit.lease, commit.job);
        let goes_on = matches!(commit.outcome, Outcome::Succeeded(..) | Outcome::Failed(_));
        let (own, map) = (String::new(), String::new());
        let mut told = Told { consumer, commit, spec: None, own, map, next: None };
        if let Some(held) = self.held.get_mut(&lease) {
            let at = held.jobs.iter().position(|spec| spec.id == job).unwrap_or(held.jobs.len());
            told.spec = held.jobs.get(at).cloned();
            told.own.clone_from(&held.own);
            told.map.clone_from(&held.map);
            told.next = held.jobs.get(at + 1).filter(|_| goes_on).cloned();
            held.at = at + 1;
            if told.next.is_none() {
                self.held.remove(&lease);
            }
        }
        told
    }

    pub(super) fn is_fenced(&mut self, Commit { lease, job, .. }: &Commit) {
        self.held.remove(lease);
        self.out.fenced.push(OfLease { lease: *lease, job: *job });
    }

    /// Everything that it said is judged, and no lease is on its way.
    pub(super) fn is_settled(&self) -> bool {
        !self.says && !self.waits && self.out.leases.is_empty()
    }

    /// It could not be renewed.
    pub(super) fn is_over(&mut self, lease: LeaseId) {
        let Some(held) = self.held.remove(&lease) else { return };
        event(log::Level::Warn, "lease.lost").field("lease", &lease.0.to_string()).emit();
        let left = held.jobs.iter().skip(held.at);
        self.out.revoked.extend(left.map(|spec| OfLease { lease, job: spec.id }));
    }

    pub(super) fn revoke(&mut self, of: OfLease) {
        if let Some(held) = self.held.get_mut(&of.lease) {
            let before = held.jobs.iter().take(held.at).any(|spec| spec.id == of.job);
            held.jobs.retain(|spec| spec.id != of.job);
            held.at -= usize::from(before);
            if held.at >= held.jobs.len() {
                self.held.remove(&of.lease);
            }
        }
        self.out.revoked.push(of);
    }

    /// It holds one job: when it is lost, nothing else can be the reason.
    pub(super) fn has_one_job(&self) -> bool {
        self.held.values().map(|held| held.jobs.len() - held.at).sum::<usize>() == 1
    }

    pub(super) fn is_idle(&self) -> bool {
        self.held.is_empty() && !self.says && !self.waits
    }
}

pub(super) fn log_job(name: &str, spec: &JobSpec) {
    job_event(log::Level::Debug, name, &spec.trace, spec.id, &spec.handler).emit();
}
