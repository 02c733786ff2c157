//! The executor's books: which run is where, what is due, what is known of lanes. Pure: time comes in, requests
//! and runs come out.
//!
//! Life of a lease here, and what moves it:
//!
//! ```text
//!             lease           outcome ... outcome        end
//!   (nothing) -----> running ------------------> running ----> (gone; the lane's state is cached)
//!                       |  timeout: commit timed_out
//!                       |  revoked running job: release        end
//!                       +---------------------------> held ----> (gone; nothing is cached)
//!                          fenced, connection lost
//! ```
//!
//! A held run keeps its worker until the handler returns; when that takes too long the process is stuck.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::context::Contexts;
use super::run::{Limits, RunControl};
use crate::clock::Timestamp;
use crate::job::{JobId, Verdict, Version};
use crate::ports::{
    Commit, CommitAnswer, CommitResult, Lease, LeaseRef, LeasedJob, ReleaseReason, Revoked, StateAt,
};

/// While a run has more than one job to go, outcomes may lie in the mailbox without a ring for this long.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Leases at once while jobs are short: enough that a round trip to the broker is shared by many.
const LEASES_OF_SHORT_JOBS: usize = 64;

/// When all workers are held, the process is replaced this soon: handlers that listen have returned by then.
const ALL_HELD_GRACE: Duration = Duration::from_millis(250);

/// A lease on its way through a worker.
pub struct Run {
    pub lease: u64,
    pub handler: Arc<str>,
    /// In order.
    pub jobs: Vec<LeasedJob>,
    pub contexts: Contexts,
    /// Shared with the core.
    pub control: Arc<RunControl>,
}

/// What a worker says.
pub enum Done {
    /// What came of one job.
    Outcome {
        lease: u64,
        job: JobId,
        verdict: Verdict,
        /// The state version that the handler saw.
        builds_on: Version,
        /// When it ended: the next job of the run starts then.
        at: Timestamp,
    },
    /// The run is over and the worker free; the state as the run left it.
    End { lease: u64, contexts: Contexts },
}

/// What the broker must be told.
#[derive(Debug, Default)]
pub struct Requests {
    pub commits: Vec<Commit>,
    /// To be told after the commits: a run's last outcome still holds under its lease.
    pub releases: Vec<(LeaseRef, ReleaseReason)>,
}

type LaneName = (Arc<str>, Option<Arc<str>>);

struct Active {
    lease: LeaseRef,
    lane: LaneName,
    jobs: Vec<RunJob>,
    /// The first job without an outcome: the one that runs.
    position: usize,
    /// When that one started; `None` while the run waits for a worker.
    started: Option<Timestamp>,
    version: Version,
    control: Arc<RunControl>,
    /// `Some` iff held: since when nothing of it counts any more.
    held: Option<Timestamp>,
    /// Its lane has a state, which can be trusted at its end.
    keeps_state: bool,
    /// Revoked, but its worker had started it before the outcome of the job before it was heard.
    doomed: Option<JobId>,
}

struct RunJob {
    id: JobId,
    delivery: u32,
    fence: u64,
    timeout: Duration,
}

struct Cached {
    contexts: Contexts,
    lease: u64,
    used: u64,
}

/// See the module.
pub struct Core {
    limits: Limits,
    workers: usize,
    active: HashMap<u64, Active>,
    lanes: HashMap<LaneName, Cached>,
    requests: Requests,
    draining: bool,
    uses: u64,
    /// Outcomes that came after their run had ended.
    pub late: u64,
}

impl Core {
    pub fn new(workers: usize, limits: Limits) -> Core {
        let (active, lanes, requests) = Default::default();
        Core { limits, workers, active, lanes, requests, draining: false, uses: 0, late: 0 }
    }

    /// How many leases more it takes: one a worker that is free, so that no lease waits here while another
    /// executor is idle. While jobs are short a few more: they wait for microseconds, and the broker knows that
    /// only the oldest, one a worker, can have started.
    pub fn room(&self, jobs_are_short: bool) -> usize {
        let most = if jobs_are_short { self.workers.max(LEASES_OF_SHORT_JOBS) } else { self.workers };
        let held = self.active.values().filter(|active| active.held.is_some()).count();
        if self.draining || held >= self.workers { 0 } else { most.saturating_sub(self.active.len()) }
    }

    /// Workers that have a run.
    pub fn busy(&self) -> usize {
        self.active.len()
    }

    pub fn take_requests(&mut self) -> Requests {
        std::mem::take(&mut self.requests)
    }

    /// A lease came. `None`: it was given back.
    pub fn on_lease(&mut self, lease: Lease) -> Option<Run> {
        let key = lease.jobs.first().and_then(|job| job.spec.ordering_key.clone());
        let lane = (lease.handler.clone(), key);
        let keeps_state = lease.state != StateAt::Stateless;
        let contexts = match lease.state {
            StateAt::Stateless => Some(Contexts::default()),
            StateAt::Whole(version, entries) => {
                self.lanes.remove(&lane);
                Some(Contexts::new(version, entries))
            }
            StateAt::Known(version) => {
                let cached = self.lanes.remove(&lane).map(|cached| cached.contexts);
                cached.filter(|contexts| contexts.version == version)
            }
        };
        let Some(contexts) = contexts else {
            self.requests.releases.push((lease.lease, ReleaseReason::NeedState));
            return None;
        };
        if self.draining {
            self.requests.releases.push((lease.lease, ReleaseReason::Draining));
            return None;
        }
        let run_job = |job: &LeasedJob| {
            let (id, timeout) = (job.spec.id, job.spec.timeout);
            RunJob { id, delivery: job.delivery, fence: job.fence, timeout }
        };
        let control = Arc::new(RunControl::default());
        let active = Active {
            lease: lease.lease,
            lane,
            jobs: lease.jobs.iter().map(run_job).collect(),
            position: 0,
            started: None,
            version: contexts.version,
            control: control.clone(),
            held: None,
            keeps_state,
            doomed: None,
        };
        self.active.insert(lease.lease.number, active);
        Some(Run { lease: lease.lease.number, handler: lease.handler, jobs: lease.jobs, contexts, control })
    }

    pub fn on_done(&mut self, done: Done) {
        match done {
            Done::Outcome { lease, job, verdict, builds_on, at } => {
                self.on_outcome(lease, job, verdict, builds_on, at)
            }
            Done::End { lease, contexts } => self.on_end(lease, contexts),
        }
    }

    fn on_outcome(&mut self, number: u64, job: JobId, verdict: Verdict, builds_on: Version, at: Timestamp) {
        let Some(active) = self.active.get_mut(&number).filter(|active| active.held.is_none()) else {
            self.late += 1;
            return;
        };
        let Some(index) = active.jobs.iter().position(|run_job| run_job.id == job) else { return };
        active.position = index + 1;
        active.started = Some(at);
        let RunJob { delivery, fence, .. } = active.jobs[index];
        let changed = matches!(&verdict, Verdict::Succeeded(_, effects) if !effects.state.is_empty());
        active.version = if changed { Version(fence) } else { builds_on };
        active.keeps_state &= !matches!(verdict, Verdict::Retry(_) | Verdict::Crashed(_));
        self.requests.commits.push(Commit { lease: active.lease, job, delivery, builds_on, verdict });
        if active.doomed.is_some() && active.jobs.get(index + 1).map(|next| next.id) == active.doomed {
            self.requests.releases.push((active.lease, ReleaseReason::RunEnded));
            active.hold(at);
        }
    }

    fn on_end(&mut self, number: u64, contexts: Contexts) {
        let Some(active) = self.active.remove(&number).filter(|active| active.held.is_none()) else { return };
        if self.draining {
            self.requests.releases.push((active.lease, ReleaseReason::Draining));
        } else if active.keeps_state {
            self.uses += 1;
            self.lanes.insert(active.lane, Cached { contexts, lease: number, used: self.uses });
            self.bound_cache();
        }
    }

    /// Forgets the lanes that were used longest ago; their next lease brings the whole map.
    fn bound_cache(&mut self) {
        let mut bytes: usize = self.lanes.values().map(|cached| cached.contexts.state_bytes).sum();
        while bytes > self.limits.lane_state_max * 2 {
            let oldest =
                self.lanes.iter().min_by_key(|(_, cached)| cached.used).map(|(lane, _)| lane.clone());
            let Some(cached) = oldest.and_then(|lane| self.lanes.remove(&lane)) else { return };
            bytes -= cached.contexts.state_bytes;
        }
    }

    pub fn on_answer(&mut self, answer: CommitAnswer, now: Timestamp) {
        match answer.result {
            CommitResult::Committed | CommitResult::AlreadyCommitted => {}
            CommitResult::Fenced => {
                // Nothing of this run counts from here on, and what we know of its lane is wrong.
                self.lanes.retain(|_, cached| cached.lease != answer.lease);
                if let Some(active) = self.active.get_mut(&answer.lease) {
                    active.hold(now);
                }
            }
        }
    }

    /// A job was cancelled or its handler paused.
    pub fn on_revoked(&mut self, revoked: Revoked, now: Timestamp) {
        let Some(active) = self.active.get_mut(&revoked.lease).filter(|active| active.held.is_none()) else {
            return;
        };
        let Some(index) = active.jobs.iter().position(|job| job.id == revoked.job) else { return };
        if index == active.position {
            self.requests.releases.push((active.lease, ReleaseReason::RunEnded));
            active.hold(now);
        } else if index > active.position {
            if active.control.leave_out(revoked.job) {
                active.jobs.remove(index);
            } else {
                active.doomed.get_or_insert(revoked.job);
            }
        }
    }

    /// Does what time alone does: a handler's timeout takes effect here, whatever its worker is doing.
    pub fn on_time(&mut self, now: Timestamp) {
        for active in self.active.values_mut() {
            if let Some((job, delivery, deadline)) = active.running()
                && deadline <= now
            {
                let (lease, builds_on, verdict) = (active.lease, active.version, Verdict::TimedOut);
                self.requests.commits.push(Commit { lease, job, delivery, builds_on, verdict });
                active.hold(now);
            }
        }
    }

    /// When [`Core::on_time`] has something to do, or [`Core::is_stuck`] may change.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let patience = self.patience();
        let deadline = |active: &Active| match active.held {
            Some(since) => Some(since.plus(patience)),
            None => active.running().map(|(_, _, deadline)| deadline),
        };
        self.active.values().filter_map(deadline).min()
    }

    /// True while outcomes may lie in the mailbox that nobody has rung for.
    pub(super) fn has_long_runs(&self) -> bool {
        self.active.values().any(|active| active.jobs.len() > 1 && active.held.is_none())
    }

    /// True when a handler has ignored the end of its run for too long, or all workers are held that way.
    pub fn is_stuck(&self, now: Timestamp) -> bool {
        let patience = self.patience();
        self.active.values().filter_map(|active| active.held).any(|since| since.plus(patience) <= now)
    }

    /// How long a held run may keep its worker.
    fn patience(&self) -> Duration {
        let all = self.active.values().filter(|active| active.held.is_some()).count() >= self.workers;
        if all { self.limits.grace.min(ALL_HELD_GRACE) } else { self.limits.grace }
    }

    /// No more leases; running jobs finish, the rest of their runs and those that wait are given back.
    pub fn drain(&mut self, now: Timestamp) {
        self.draining = true;
        for active in self.active.values_mut() {
            active.control.stop_after_this();
            if active.control.started().is_none() && active.held.is_none() {
                active.hold(now);
                self.requests.releases.push((active.lease, ReleaseReason::Draining));
            }
        }
    }

    /// The runs that still count are given back; the jobs that ran.
    pub fn cut_off(&mut self, now: Timestamp) -> Vec<JobId> {
        let mut cut_off = Vec::new();
        for active in self.active.values_mut().filter(|active| active.held.is_none()) {
            cut_off.extend(active.running().map(|(job, ..)| job));
            self.requests.releases.push((active.lease, ReleaseReason::Draining));
            active.hold(now);
        }
        cut_off
    }

    /// The job that each run which counts is at: it runs, or is the next to.
    pub fn live(&self) -> impl Iterator<Item = JobId> {
        let live = self.active.values().filter(|active| active.held.is_none());
        live.filter_map(|active| active.jobs.get(active.position).map(|job| job.id))
    }

    /// True once no run counts any more.
    pub fn is_drained(&self) -> bool {
        self.draining && self.requests.is_empty() && self.active.values().all(|active| active.held.is_some())
    }

    /// The broker is lost: every lease has ended, and no lane's state is known.
    pub fn abandon(&mut self, now: Timestamp) {
        self.requests = Requests::default();
        self.lanes.clear();
        self.active.values_mut().for_each(|active| active.hold(now));
    }
}

impl Requests {
    pub(super) fn is_empty(&self) -> bool {
        self.commits.is_empty() && self.releases.is_empty()
    }
}

impl Active {
    /// Ends the run for good; its worker stays taken until its handler returns.
    fn hold(&mut self, now: Timestamp) {
        self.held.get_or_insert(now);
        self.control.end();
    }

    /// The job that runs and its deadline; `None` if nothing of it counts or all jobs have outcomes.
    fn running(&self) -> Option<(JobId, u32, Timestamp)> {
        let job = self.jobs.get(self.position).filter(|_| self.held.is_none())?;
        let started = self.started.or_else(|| self.control.started())?;
        Some((job.id, job.delivery, started.plus(job.timeout)))
    }
}
