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
pub struct Named {
    pub consumer: u64,
    pub lease: LeaseId,
    pub own: String,
    /// How it ends, as scripts/turn.lua takes it; `None`: none of its jobs has begun.
    pub how: Option<&'static str>,
}

/// An outcome, with what is known of its job.
pub struct Told {
    pub consumer: u64,
    pub commit: Commit,
    pub spec: Option<Arc<JobSpec>>,
    /// The job of an unordered lease, or nothing.
    pub own: String,
    /// Its lane's state.
    pub map: String,
    /// It starts with this outcome.
    next: Option<Arc<JobSpec>>,
}

/// An executor that may get leases.
pub struct Exec {
    pub consumer: u64,
    pub group: usize,
    pub room: usize,
    /// Its leases, by handler.
    pub used: BTreeMap<Arc<str>, usize>,
    pub prefers_alone: bool,
}

/// See the module.
pub struct Books {
    pub group: usize,
    pub bell: Bell,
    /// Leases at once.
    pub room: usize,
    pub held: BTreeMap<LeaseId, Held>,
    /// It said something that goes with the next call.
    pub says: bool,
    /// The call under way says something of it, or may bring it leases.
    pub waits: bool,
    pub out: Step,
    /// The next call renews its leases.
    pub renews: bool,
    /// Its last lease was of a job that ran alone.
    pub prefers_alone: bool,
    pub renewed_at: Timestamp,
    /// The server was away for so long that its leases are over.
    pub is_lost: bool,
}

/// A live lease.
pub struct Held {
    pub handler: Arc<str>,
    /// The job of an unordered lease, or nothing.
    pub own: String,
    /// Its lane's state.
    pub map: String,
    pub jobs: Vec<Arc<JobSpec>>,
    /// The one that runs.
    pub at: usize,
    /// Its executor gets no other meanwhile.
    pub is_alone: bool,
}

impl Held {
    pub fn named(&self, consumer: u64, lease: LeaseId, how: Option<&'static str>) -> Named {
        Named { consumer, lease, own: self.own.clone(), how }
    }

    /// The job that runs, if any.
    pub fn running(&self) -> Option<JobId> {
        self.jobs.get(self.at).map(|job| job.id)
    }
}

impl Told {
    /// How its job has ended with that, if it has for sure.
    pub fn status(&self) -> Option<JobStatus> {
        match &self.commit.outcome {
            Outcome::Succeeded(..) => Some(JobStatus::Succeeded),
            Outcome::Failed(_) => Some(JobStatus::Failed),
            Outcome::TimedOut(_) => Some(JobStatus::TimedOut),
            Outcome::Retry(..) | Outcome::Crashed(_) => None,
        }
    }

    /// It held.
    pub fn log(&self) {
        if !matches!(self.commit.outcome, Outcome::Retry(..) | Outcome::Crashed(_)) {
            self.spec.iter().for_each(|spec| log_job("reply.published", spec));
        }
        self.next.iter().for_each(|next| log_job("queue.claimed", next));
    }
}

impl Books {
    pub fn new(group: usize, bell: Bell, now: Timestamp) -> Books {
        let (room, held, says, waits, out, renews, prefers_alone, is_lost) = Default::default();
        Books { group, bell, room, held, says, waits, out, renews, prefers_alone, renewed_at: now, is_lost }
    }

    pub fn told(&mut self, consumer: u64, commit: Commit) -> Told {
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

    pub fn is_fenced(&mut self, Commit { lease, job, .. }: &Commit) {
        self.held.remove(lease);
        self.out.fenced.push(OfLease { lease: *lease, job: *job });
    }

    /// Everything that it said is judged, and no lease is on its way.
    pub fn is_settled(&self) -> bool {
        !self.says && !self.waits && self.out.leases.is_empty()
    }

    /// It could not be renewed.
    pub fn is_over(&mut self, lease: LeaseId) {
        let Some(held) = self.held.remove(&lease) else { return };
        event(log::Level::Warn, "lease.lost").field("lease", &lease.0.to_string()).emit();
        let left = held.jobs.iter().skip(held.at);
        self.out.revoked.extend(left.map(|spec| OfLease { lease, job: spec.id }));
    }

    pub fn revoke(&mut self, of: OfLease) {
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
    pub fn has_one_job(&self) -> bool {
        self.held.values().map(|held| held.jobs.len() - held.at).sum::<usize>() == 1
    }

    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && !self.says && !self.waits
    }
}

pub fn log_job(name: &str, spec: &JobSpec) {
    job_event(log::Level::Debug, name, &spec.trace, spec.id, &spec.handler).emit();
}
