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
//!                       +---------------------------> over ----> (gone; nothing is cached)
//!                          fenced, connection lost
//! ```
//!
//! A run that is over keeps its worker until the handler returns; when that takes too long the process is stuck.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::run::{Done, Run, RunMaps, RunStop};
use crate::clock::Timestamp;
use crate::job::{IdMap, JobId, Outcome, Version};
use crate::limits::PROGRESS_EVERY;
use crate::ports::{Commit, Lease, LeaseId, LeasedJob, OfLease, Progressed, Requests, Rules, StateAt};

/// Leases at once while jobs are short: enough that a round trip to the broker is shared by many.
const LEASES_OF_SHORT_JOBS: usize = 64;

/// When the runs of all workers are over, the process is replaced this soon: handlers that listen have returned by then.
const ALL_OVER_GRACE: Duration = Duration::from_millis(250);

/// A handler that says how it was stopped is waited for no longer than this: well before the broker gives the lease up
/// ([`LEASE_GRACE`](crate::limits::LEASE_GRACE)).
const REPORTS_WITHIN: Duration = Duration::from_secs(5);

struct Active {
    lane: LaneName,
    /// Those without an outcome: the first one runs.
    jobs: VecDeque<RunJob>,
    /// When that one started; `None` while the run waits for a worker.
    started: Option<Timestamp>,
    /// Before that, nothing more is told of how far it is.
    tells_at: Timestamp,
    version: Version,
    stop: Arc<RunStop>,
    /// `Some` iff nothing of it counts any more, since then.
    over_since: Option<Timestamp>,
    /// Its lane has a state, which can be trusted at its end.
    keeps_state: bool,
    /// Revoked, but its worker had started it before the outcome of the job before it was heard.
    doomed: Option<JobId>,
}

struct RunJob {
    id: JobId,
    /// Its place in the run as it came.
    place: usize,
    delivery: u32,
    fence: u64,
    timeout: Duration,
}

/// See the module.
pub struct Books {
    rules: Rules,
    workers: usize,
    active: IdMap<LeaseId, Active>,
    lanes: LaneCache,
    pub(super) requests: Requests,
    draining: bool,
    /// Outcomes that came after their run was over.
    pub late: u64,
    /// A run has begun here.
    pub has_worked: bool,
    /// Outcomes that counted.
    pub finished: u64,
}

impl Books {
    pub fn new(workers: usize, rules: Rules) -> Books {
        let lanes = LaneCache::new(2 * rules.lane_state_max);
        let (active, requests, draining, late, has_worked, finished) = Default::default();
        Books { rules, workers, active, lanes, requests, draining, late, has_worked, finished }
    }

    /// How many leases it takes at once: one for each worker that is free or has one, so that no lease waits here while
    /// another executor is idle. While jobs are short a few more: they wait for microseconds.
    pub fn room(&self, jobs_are_short: bool) -> usize {
        let most = if jobs_are_short { self.workers.max(LEASES_OF_SHORT_JOBS) } else { self.workers };
        let over = self.over().count();
        if self.draining || over >= self.workers { 0 } else { most - over }
    }

    /// Since when each run that is over should have given its worker back.
    fn over(&self) -> impl Iterator<Item = Timestamp> {
        self.active.values().filter_map(|active| Some(active.over_since?.plus(active.stop.stops_within())))
    }

    pub fn take_requests(&mut self) -> Requests {
        std::mem::take(&mut self.requests)
    }

    /// A lease came. `None`: it was given back.
    pub fn on_lease(&mut self, lease: Lease) -> Option<Run> {
        let key = lease.jobs.first().and_then(|job| job.spec.ordering_key.clone());
        let lane = (lease.handler.clone(), key);
        let keeps_state = lease.state != StateAt::Stateless;
        let maps = match lease.state {
            StateAt::Stateless => Some(RunMaps::default()),
            StateAt::Whole(version, entries) => Some(RunMaps::new(version, entries)),
            StateAt::Known(version) => self.lanes.take(&lane, version),
        };
        let Some(maps) = maps.filter(|_| !self.draining) else {
            self.requests.releases.push(lease.id);
            return None;
        };
        let run_job = |(place, job): (usize, &LeasedJob)| {
            let (id, timeout) = (job.spec.id, job.spec.timeout);
            RunJob { id, place, delivery: job.delivery, fence: job.fence, timeout }
        };
        let jobs = lease.jobs.iter().enumerate().map(run_job).collect();
        let (stop, version) = (Arc::new(RunStop::default()), maps.version);
        let run = Run { lease: lease.id, handler: lease.handler, jobs: lease.jobs, maps, stop: stop.clone() };
        let (started, tells_at, over_since, doomed) = Default::default();
        let active = Active { lane, jobs, started, tells_at, version, stop, over_since, keeps_state, doomed };
        self.active.insert(lease.id, active);
        self.has_worked = true;
        Some(run)
    }

    pub fn on_done(&mut self, done: Done) {
        let (lease, job, outcome, progress, builds_on, at) = match done {
            Done::Outcome { lease, job, outcome, progress, builds_on, at } => {
                (lease, job, outcome, progress, builds_on, at)
            }
            Done::End { lease, maps } => return self.on_end(lease, maps),
        };
        let Some(active) = self.active.get_mut(&lease).filter(|active| active.over_since.is_none()) else {
            self.late += 1;
            return;
        };
        // It counts when the handler ended, not when that was heard: this process may have been held up meanwhile.
        let is_late = active.running().is_some_and(|(_, _, deadline)| deadline < at);
        let outcome = if is_late { Outcome::TimedOut(active.report_of(outcome)) } else { outcome };
        let index = active.jobs.iter().position(|run_job| run_job.id == job);
        let said = index.and_then(|index| active.jobs.drain(..=index).next_back());
        let Some(RunJob { delivery, fence, .. }) = said else { return };
        active.started = Some(at);
        let changed = matches!(&outcome, Outcome::Succeeded(_, effects) if !effects.state.is_empty());
        active.version = if changed { Version(fence) } else { builds_on };
        active.keeps_state &= !matches!(outcome, Outcome::Retry(..) | Outcome::Crashed(_));
        self.requests.progress.extend(progress.map(|progress| Progressed { lease, job, progress }));
        self.requests.commits.push(Commit { lease, job, delivery, builds_on, outcome });
        self.finished += 1;
        if is_late {
            active.end(at);
        } else if active.doomed.is_some() && active.jobs.front().map(|next| next.id) == active.doomed {
            self.requests.releases.push(lease);
            active.end(at);
        }
    }

    fn on_end(&mut self, lease: LeaseId, maps: RunMaps) {
        let Some(active) = self.active.remove(&lease).filter(|active| active.over_since.is_none()) else {
            return;
        };
        if self.draining {
            self.requests.releases.push(lease);
        } else if active.keeps_state {
            self.lanes.put(active.lane, maps, lease);
        }
    }

    /// A commit did not hold: nothing of its run counts from here on, and what is known of its lane is wrong.
    pub fn on_fenced(&mut self, fenced: OfLease, now: Timestamp) {
        self.lanes.remove_of(fenced.lease);
        self.active.get_mut(&fenced.lease).into_iter().for_each(|active| active.end(now));
    }

    /// A job was cancelled or its handler paused.
    pub fn on_revoked(&mut self, revoked: OfLease, now: Timestamp) {
        let live = self.active.get_mut(&revoked.lease).filter(|active| active.over_since.is_none());
        let Some(active) = live else { return };
        match active.jobs.iter().position(|job| job.id == revoked.job) {
            None => {}
            Some(0) => {
                self.requests.releases.push(revoked.lease);
                active.end(now);
            }
            Some(later) if active.stop.leave_out(active.jobs[later].place) => drop(active.jobs.remove(later)),
            Some(_) => _ = active.doomed.get_or_insert(revoked.job),
        }
    }

    /// These runs have not begun, and should not wait here: other executors may be idle.
    pub fn give_back(&mut self, runs: Vec<Run>) {
        for run in runs {
            if self.active.remove(&run.lease).is_some_and(|active| active.over_since.is_none()) {
                self.requests.releases.push(run.lease);
            }
        }
    }

    /// Does what time alone does: a handler's timeout takes effect here, whatever its worker is doing.
    pub fn on_time(&mut self, now: Timestamp) {
        for (lease, active) in &mut self.active {
            if active.tells_at().is_some_and(|at| at <= now)
                && let Some((job, progress)) = active.stop.take_progress()
            {
                active.tells_at = now.plus(PROGRESS_EVERY);
                self.requests.progress.push(Progressed { lease: *lease, job, progress });
            }
            let due = active.running().filter(|(_, _, deadline)| *deadline <= now);
            let Some((job, delivery, deadline)) = due else { continue };
            if now < deadline.plus(active.reports_within()) {
                active.stop.end();
                continue;
            }
            let (builds_on, outcome) = (active.version, Outcome::TimedOut(String::new()));
            self.requests.commits.push(Commit { lease: *lease, job, delivery, builds_on, outcome });
            self.finished += 1;
            active.end(now);
        }
    }

    /// When [`Books::on_time`] has something to do, or [`Books::is_stuck`] may change.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let patience = self.patience();
        let deadline = |active: &Active| match active.over_since {
            Some(since) => Some(since.plus(patience + active.stop.stops_within())),
            None => active.running().map(|(_, _, deadline)| match active.stop.is_ended() {
                true => deadline.plus(active.reports_within()),
                false => deadline,
            }),
        };
        self.active.values().flat_map(|active| [deadline(active), active.tells_at()]).flatten().min()
    }

    /// True when a handler has ignored the end of its run for too long, or all workers are taken that way.
    pub fn is_stuck(&self, now: Timestamp) -> bool {
        let patience = self.patience();
        self.over().any(|since| since.plus(patience) <= now)
    }

    /// How long a run that is over may keep its worker.
    fn patience(&self) -> Duration {
        let all = self.over().count() >= self.workers;
        if all { self.rules.grace.min(ALL_OVER_GRACE) } else { self.rules.grace }
    }

    /// No more leases; running jobs finish, the rest of their runs and those that wait are given back.
    pub fn drain(&mut self, now: Timestamp) {
        self.draining = true;
        for (lease, active) in &mut self.active {
            if active.over_since.is_none() && active.stop.stop_after_this() {
                active.end(now);
                self.requests.releases.push(*lease);
            }
        }
    }

    /// What still runs is cut off: nothing of it counts, and its handlers are told.
    pub fn cut_off(&mut self, now: Timestamp) {
        self.active.values_mut().for_each(|active| active.end(now));
    }

    /// True once it drains and no run counts any more.
    pub fn is_drained(&self) -> bool {
        self.draining && self.requests.is_empty() && self.over().count() == self.active.len()
    }

    /// The broker is lost: every lease has ended, and no lane's state is known.
    pub fn abandon(&mut self, now: Timestamp) {
        self.requests = Requests::default();
        self.lanes = LaneCache::new(self.lanes.most_bytes);
        self.active.values_mut().for_each(|active| active.end(now));
    }
}

impl Active {
    /// Ends the run for good; its worker stays taken until its handler returns.
    fn end(&mut self, now: Timestamp) {
        self.over_since.get_or_insert(now);
        self.stop.end();
    }

    /// How long after its deadline its handler may still say how it was stopped.
    fn reports_within(&self) -> Duration {
        self.stop.stops_within().min(REPORTS_WITHIN)
    }

    /// When it is told how far it is, if it has said anything that counts.
    fn tells_at(&self) -> Option<Timestamp> {
        (self.over_since.is_none() && self.stop.has_progress()).then_some(self.tells_at)
    }

    /// What a handler that was stopped says of that.
    fn report_of(&self, outcome: Outcome) -> String {
        match outcome {
            Outcome::Failed(error) if !self.stop.stops_within().is_zero() => error.detail,
            _ => String::new(),
        }
    }

    /// The job that runs and its deadline; `None` if nothing of it counts or all jobs have outcomes.
    fn running(&self) -> Option<(JobId, u32, Timestamp)> {
        let job = self.jobs.front().filter(|_| self.over_since.is_none())?;
        let started = self.started.or_else(|| self.stop.started())?;
        Some((job.id, job.delivery, started.plus(job.timeout)))
    }
}

/// A handler, and the key of the lane.
type LaneName = (Arc<str>, Option<Arc<str>>);

/// What a lane costs beside its entries: its names, both tables' places.
const LANE_BYTES: usize = 256;

/// What is known of lanes whose last run was done here, so that their next lease need not bring the state. Bounded by what
/// it holds: the lanes that were used longest ago go first.
#[derive(Default)]
struct LaneCache {
    most_bytes: usize,
    bytes: usize,
    lanes: HashMap<LaneName, Cached>,
    /// The lanes in the order of their last uses.
    uses: BTreeMap<u64, LaneName>,
    last_use: u64,
}

struct Cached {
    maps: RunMaps,
    lease: LeaseId,
    used: u64,
}

impl LaneCache {
    fn new(most_bytes: usize) -> LaneCache {
        LaneCache { most_bytes, ..LaneCache::default() }
    }

    /// Takes out what is known of a lane in this version.
    fn take(&mut self, lane: &LaneName, version: Version) -> Option<RunMaps> {
        // The empty state of a lane that nobody has changed need not be kept.
        let known = self.remove(lane).map(|cached| cached.maps).unwrap_or_default();
        Some(known).filter(|maps| maps.version == version)
    }

    /// Enters a lane as this lease has left it.
    fn put(&mut self, lane: LaneName, maps: RunMaps, lease: LeaseId) {
        self.remove(&lane);
        if maps.version == Version::default() {
            return;
        }
        self.last_use += 1;
        self.bytes += LANE_BYTES + maps.state_bytes;
        self.uses.insert(self.last_use, lane.clone());
        self.lanes.insert(lane, Cached { maps, lease, used: self.last_use });
        while self.bytes > self.most_bytes
            && let Some((_, oldest)) = self.uses.pop_first()
        {
            self.remove(&oldest);
        }
    }

    fn remove_of(&mut self, lease: LeaseId) {
        let is_of_lease = |(_, cached): &(&LaneName, &Cached)| cached.lease == lease;
        if let Some(lane) = self.lanes.iter().find(is_of_lease).map(|(lane, _)| lane.clone()) {
            self.remove(&lane);
        }
    }

    fn remove(&mut self, lane: &LaneName) -> Option<Cached> {
        let cached = self.lanes.remove(lane)?;
        self.bytes -= LANE_BYTES + cached.maps.state_bytes;
        self.uses.remove(&cached.used);
        Some(cached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Entries;

    #[test]
    fn a_million_lanes_cost_neither_memory_without_bound_nor_time_that_grows() {
        let mut cache = LaneCache::new(1 << 20);
        let lane = |number: u32| (Arc::from("h"), Some(Arc::from(number.to_string())));
        let state = || Entries::from([(Arc::from("k"), Arc::from(*b"v"))]);
        for number in 0..1_000_000 {
            let version = Version(u64::from(number % 2));
            let state = if number % 2 == 1 { state() } else { Entries::new() };
            cache.put(lane(number), RunMaps::new(version, state), LeaseId(number.into()));
            assert!(cache.bytes <= 1 << 20);
        }
        assert_eq!(cache.lanes.len(), (1 << 20) / (LANE_BYTES + 2), "lanes without changes are not kept");
        assert_eq!(cache.lanes.len(), cache.uses.len());
        assert!(cache.take(&lane(1), Version(1)).is_none(), "it was used longest ago");
        assert!(cache.take(&lane(999_999), Version(1)).is_some());
        assert!(cache.take(&lane(999_998), Version(0)).is_some_and(|maps| maps.state.is_empty()));
    }
}
