//! A naive broker: lists, walked from the front, and nothing else. It knows the laws and none of the tricks.
//!
//! It cannot draw the jitter of a backoff, so a retried job is due between two times; and it learns the ids
//! of follow-ups from who asks. All else it predicts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::jobs::plain;
use cofferdam::clock::Timestamp;
use cofferdam::job::{Change, Entries, FollowUp, InstanceId, JobId, JobStatus, Outcome, Payload, Version};
use cofferdam::memory::broker::ConsumerId;
use cofferdam::ports::{Commit, Idempotency, Lease, LeaseId, NewJob, NotRetried, Refusal, StateAt};

/// How a handler of the model behaves.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub name: &'static str,
    pub ordered: bool,
    pub parks: bool,
    pub max_deliveries: u32,
    /// 0 is no limit.
    pub concurrency: usize,
}

#[derive(Clone, Debug)]
pub struct Job {
    pub id: JobId,
    pub kind: Kind,
    pub lane: String,
    pub payload: Payload,
    pub status: JobStatus,
    pub deliveries: u32,
    /// The number of its last start, counted or not.
    pub told: u32,
    /// How often its executor was lost while it may have been running.
    pub losses: u32,
    /// Not delivered before the first of these, deliverable from the second on.
    pub due: (Timestamp, Timestamp),
    pub ended_at: Option<Timestamp>,
}

#[derive(Clone, Debug)]
pub struct Lane {
    pub name: String,
    pub kind: Kind,
    pub jobs: Vec<JobId>,
    pub parked: bool,
    pub state: Entries,
    pub version: Version,
    pub maker: Option<ConsumerId>,
}

#[derive(Clone, Debug)]
pub struct Held {
    pub lease: Lease,
    pub consumer: ConsumerId,
    pub lane: String,
    /// Not committed yet; the first one runs.
    pub left: Vec<JobId>,
    pub expires_at: Timestamp,
}

#[derive(Default)]
pub struct Model {
    pub kinds: Vec<Kind>,
    pub capacity: usize,
    pub visibility: Duration,
    pub backoff: (Duration, Duration),
    pub ttl: Duration,
    /// How long an idempotency key is kept.
    pub key_ttl: Duration,
    /// Key by handler and name: the job that it is bound to, with the payload's fingerprint, until when.
    pub keys: Vec<(&'static str, Idempotency, JobId, Timestamp)>,
    pub now: Timestamp,
    pub jobs: Vec<Job>,
    pub lanes: Vec<Lane>,
    pub held: Vec<Held>,
    pub paused: Vec<&'static str>,
    /// Each consumer, and how many leases it takes at once, as of its last step.
    pub consumers: Vec<(ConsumerId, usize)>,
    /// What each consumer has not been told yet.
    pub revoked: Vec<(ConsumerId, LeaseId, JobId)>,
    /// When a lease of each was over beside which it had other jobs.
    pub lost_at: BTreeMap<ConsumerId, Timestamp>,
    /// Ends since they were last looked at.
    pub ended: Vec<(JobId, JobStatus)>,
    /// Follow-ups of commits, whose ids are not known yet; they are in their lanes already.
    pub follow_ups: Vec<NewJob>,
    /// Those whose ids are known.
    pub known_follow_ups: Vec<JobId>,
    pub last_fence: u64,
    /// All that were ever given: none is given again.
    pub given: BTreeSet<LeaseId>,
    pub figures: Figures,
}

/// What is counted over the broker's whole life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Deliveries beyond a job's first.
    pub redelivered: u64,
    pub dead: u64,
    /// Commits that were fenced.
    pub late: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Accepted {
    New,
    Existing(JobId),
    Refused(Refusal),
}

impl Model {
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.iter().find(|job| job.id == id)
    }

    fn job_mut(&mut self, id: JobId) -> &mut Job {
        self.jobs.iter_mut().find(|job| job.id == id).expect("the model knows the job")
    }

    fn lane_mut(&mut self, name: &str) -> &mut Lane {
        self.lanes.iter_mut().find(|lane| lane.name == name).expect("the model knows the lane")
    }

    pub fn lane(&self, name: &str) -> Option<&Lane> {
        self.lanes.iter().find(|lane| lane.name == name)
    }

    fn is_held(&self, lane: &str) -> bool {
        self.held.iter().any(|held| held.lane == lane)
    }

    pub fn queued(&self) -> usize {
        self.jobs.iter().filter(|job| job.status == JobStatus::Queued).count()
    }

    /// They take no caller's place.
    fn live_follow_ups(&self) -> usize {
        let is_live = |id: &&JobId| self.job(**id).is_some_and(|job| !job.status.is_terminal());
        self.known_follow_ups.iter().filter(is_live).count()
    }

    /// How many entries of jobs, lanes, leases and idempotency keys there should be.
    pub fn sizes(&self) -> [usize; 4] {
        [self.jobs.len(), self.lanes.len(), self.held.len(), self.keys.len()]
    }

    pub fn submit(&mut self, new: &NewJob) -> Accepted {
        let ours = new.idempotency.as_ref();
        if ours.is_some() {
            self.forget_keys();
        }
        let is_same = |(handler, key, ..): &&(&str, Idempotency, JobId, Timestamp)| {
            **handler == *new.handler && ours.is_some_and(|ours| ours.key == key.key)
        };
        if let Some((_, key, job, _)) = self.keys.iter().find(is_same) {
            return match (Some(key) == ours, self.job(*job)) {
                (false, _) => Accepted::Refused(Refusal::IdempotencyMismatch(Some(*job))),
                (true, Some(_)) => Accepted::Existing(*job),
                (true, None) => Accepted::Refused(Refusal::ResultGone(*job)),
            };
        }
        if self.queued() >= self.capacity + self.live_follow_ups() {
            return Accepted::Refused(Refusal::QueueFull);
        }
        self.accept(new);
        Accepted::New
    }

    pub fn accept(&mut self, new: &NewJob) {
        let kind = *self.kinds.iter().find(|kind| *kind.name == *new.handler).expect("a known handler");
        let lane = lane_name(new, kind);
        let due = self.now.plus(new.delay);
        self.jobs.push(Job {
            id: new.id,
            kind,
            lane: lane.clone(),
            payload: new.payload.clone(),
            status: JobStatus::Queued,
            deliveries: 0,
            told: 0,
            losses: 0,
            due: (due, due),
            ended_at: None,
        });
        let until = self.now.plus(self.key_ttl);
        self.keys.extend(new.idempotency.clone().map(|key| (kind.name, key, new.id, until)));
        self.enter(&lane, kind, new.id);
    }

    fn enter(&mut self, name: &str, kind: Kind, id: JobId) {
        if self.lane(name).is_none() {
            self.lanes.push(Lane {
                name: name.to_owned(),
                kind,
                jobs: Vec::new(),
                parked: false,
                state: Entries::new(),
                version: Version::default(),
                maker: None,
            });
        }
        self.lane_mut(name).jobs.push(id);
    }

    /// Lanes without jobs, lease and state are not there.
    fn forget_drained(&mut self) {
        let mut held: Vec<String> = self.held.iter().map(|held| held.lane.clone()).collect();
        let kind = |new: &NewJob| *self.kinds.iter().find(|kind| *kind.name == *new.handler).expect("known");
        held.extend(self.follow_ups.iter().map(|new| lane_name(new, kind(new))));
        self.lanes
            .retain(|lane| !lane.jobs.is_empty() || held.contains(&lane.name) || !lane.state.is_empty());
    }

    fn forget_keys(&mut self) {
        let (now, ttl, jobs) = (self.now, self.key_ttl, &self.jobs);
        let is_live = |id: JobId| jobs.iter().any(|job| job.id == id && !job.status.is_terminal());
        for (.., job, until) in &mut self.keys {
            if *until <= now && is_live(*job) {
                *until = now.plus(ttl);
            }
        }
        self.keys.retain(|(.., until)| now < *until);
    }

    fn forget_old(&mut self) {
        let (now, ttl, lanes) = (self.now, self.ttl, &self.lanes);
        let parked = |id: &JobId| lanes.iter().any(|lane| lane.parked && lane.jobs.first() == Some(id));
        // A parked head's time begins when it is let go; `unpark` sets it again.
        self.jobs.retain(|job| job.ended_at.is_none_or(|at| parked(&job.id) || now < at.plus(ttl)));
    }

    /// The jobs that a lease of this lane must have now; none if it must not be leased.
    fn run(&self, lane: &Lane, due: impl Fn(&Job) -> bool) -> Vec<JobId> {
        let blocked = self.is_held(&lane.name) || lane.parked || self.paused.contains(&lane.kind.name);
        let is_suspect = |id: &JobId| self.job(*id).is_some_and(|job| job.losses > 0);
        let most = match lane.jobs.first() {
            _ if blocked => 0,
            Some(head) if is_suspect(head) => 1,
            _ if lane.kind.max_deliveries == 1 => 1,
            _ => lane.jobs.iter().position(is_suspect).unwrap_or(32).min(32),
        };
        let is_due = |id: &&JobId| self.job(**id).is_some_and(&due);
        lane.jobs.iter().take(most).take_while(is_due).copied().collect()
    }

    /// Takes note of a lease, which must be one that the laws allow.
    pub fn leased(&mut self, consumer: ConsumerId, lease: Lease) {
        let first = &lease.jobs[0];
        let name = self.job(first.spec.id).expect("a leased job is known").lane.clone();
        let lane = self.lane(&name).expect("a leased job's lane is known").clone();
        let expected = self.run(&lane, |job| job.due.0 <= self.now);
        let ids: Vec<JobId> = lease.jobs.iter().map(|job| job.spec.id).collect();
        assert_eq!(ids, expected, "the run is its lane's first jobs: {lane:?}");
        let limit = lane.kind.concurrency;
        assert!(
            limit == 0 || self.running(consumer, lane.kind.name) < limit,
            "concurrency of {}",
            lane.kind.name
        );
        assert!(self.given.insert(lease.id), "the id of an earlier lease");
        for leased in &lease.jobs {
            let job = self.job(leased.spec.id).expect("known");
            assert_eq!((leased.delivery, &leased.payload), (job.told + 1, &job.payload));
            assert!(leased.fence > self.last_fence, "fences grow");
            self.last_fence = leased.fence;
        }
        let state = match () {
            () if !lane.kind.ordered => StateAt::Stateless,
            () if lane.maker == Some(consumer) => StateAt::Known(lane.version),
            () => StateAt::Whole(lane.version, lane.state.clone()),
        };
        assert_eq!(lease.state, state);
        let live = self.live(consumer);
        assert!(live == 0 || !self.runs_alone(&lane), "who runs alone was given to a busy executor");
        assert!(!self.is_alone(consumer), "an executor of a job that runs alone was given another");
        let expires_at = self.now.plus(self.visibility);
        self.held.push(Held { lease, consumer, lane: name, left: ids, expires_at });
        self.start(expected[0]);
    }

    /// Takes note of a step's end: the consumer takes `room` leases at once, no more may have come, and if
    /// there is room left, nothing that it could have claimed may be left, except what is left to the
    /// executor that knows the lane's state and has room itself.
    pub fn stepped(&mut self, consumer: ConsumerId, room: usize, claimed: usize) {
        self.consumers.iter_mut().filter(|(id, _)| *id == consumer).for_each(|(_, known)| *known = room);
        let live = self.live(consumer);
        assert!(claimed == 0 || live <= room, "{live} leases, where there is room for {room}");
        if live >= room || self.may_be_kept_free(consumer) {
            return;
        }
        for lane in &self.lanes {
            let knows = |(id, _): &(ConsumerId, usize)| lane.maker == Some(*id) && *id != consumer;
            let is_left = |it: &(ConsumerId, usize)| knows(it) && self.has_room(it.0);
            let left = !self.may_claim(consumer, lane) || self.consumers.iter().any(is_left);
            assert!(left, "a free lane was left: {lane:?}");
        }
    }

    /// True if nothing but the room of others hinders this consumer to lease this lane now.
    fn may_claim(&self, consumer: ConsumerId, lane: &Lane) -> bool {
        let limit = lane.kind.concurrency;
        let full = limit > 0 && self.running(consumer, lane.kind.name) >= limit;
        !full && !self.run(lane, |job| job.due.1 <= self.now).is_empty()
    }

    fn runs_alone(&self, lane: &Lane) -> bool {
        let head = lane.jobs.first().and_then(|id| self.job(*id));
        head.is_some_and(|job| job.losses >= 2)
    }

    /// True if its lease is of a job that runs alone.
    fn is_alone(&self, consumer: ConsumerId) -> bool {
        let alone = |held: &Held| self.job(held.left[0]).is_some_and(|job| job.losses >= 2);
        self.held.iter().any(|held| held.consumer == consumer && alone(held))
    }

    /// True if it runs a job that runs alone, or is busy and may be told to wait until it can take one: which of several
    /// does is the broker's choice.
    fn may_be_kept_free(&self, consumer: ConsumerId) -> bool {
        // It may be due already: only the broker knows its backoff.
        let is_ready = |lane: &Lane| !self.run(lane, |job| job.due.0 <= self.now).is_empty();
        let waits = |lane: &Lane| self.runs_alone(lane) && is_ready(lane);
        self.is_alone(consumer) || self.live(consumer) > 0 && self.lanes.iter().any(waits)
    }

    /// A consumer that has room, and whose bell has not rung since its last step, sleeps: there must be
    /// nothing for it. What another one has the state of is not looked at, since that one's time to come for
    /// it is the broker's secret.
    pub fn check_nobody_oversleeps(&self, rung: &BTreeSet<ConsumerId>) {
        for (id, _) in self.consumers.iter().filter(|(id, _)| !rung.contains(id) && self.has_room(*id)) {
            let is_free = |lane: &&Lane| lane.maker.is_none_or(|maker| maker == *id);
            let claimable = self.lanes.iter().filter(is_free).find(|lane| self.may_claim(*id, lane));
            let claimable = claimable.filter(|_| !self.may_be_kept_free(*id));
            assert!(claimable.is_none(), "{id:?} was not woken for {claimable:?}");
        }
    }

    pub fn live(&self, consumer: ConsumerId) -> usize {
        self.held.iter().filter(|held| held.consumer == consumer).count()
    }

    fn has_room(&self, consumer: ConsumerId) -> bool {
        let room = self.consumers.iter().find(|(id, _)| *id == consumer).map_or(0, |(_, room)| *room);
        self.live(consumer) < room
    }

    fn running(&self, consumer: ConsumerId, kind: &str) -> usize {
        let of = |held: &&Held| held.consumer == consumer && *held.lease.handler == *kind;
        self.held.iter().filter(of).count()
    }

    fn start(&mut self, id: JobId) {
        let job = self.job_mut(id);
        job.status = JobStatus::Running;
        job.deliveries += 1;
        job.told += 1;
        self.figures.redelivered += u64::from(self.job(id).is_some_and(|job| job.told > 1));
    }

    /// Judges a commit; what it changes, changes here too. False: it is fenced.
    #[must_use]
    pub fn commit(&mut self, consumer: ConsumerId, commit: &Commit) -> bool {
        let is_live = |held: &&Held| held.lease.id == commit.lease && held.consumer == consumer;
        let Some(held) = self.held.iter().find(is_live).cloned() else {
            self.figures.late += 1;
            return false;
        };
        let lane = self.lane(&held.lane).expect("a lease's lane is known");
        let told = self.job(commit.job).map(|job| job.told);
        let in_order = held.left[0] == commit.job && told == Some(commit.delivery);
        if !in_order || (lane.kind.ordered && lane.version != commit.builds_on) {
            self.figures.late += 1;
            if self.job(held.left[0]).is_some_and(|job| job.status == JobStatus::Running) {
                self.again(held.left[0], self.backoff_of_losses(held.left[0]));
            }
            self.end(commit.lease, true);
            return false;
        }
        let fence = held.lease.jobs.iter().find(|job| job.spec.id == commit.job).expect("leased").fence;
        self.apply(&held, commit.job, fence, &commit.outcome);
        self.forget_drained();
        true
    }

    fn apply(&mut self, held: &Held, job: JobId, fence: u64, outcome: &Outcome) {
        let lease = held.lease.id;
        match outcome {
            Outcome::Succeeded(_, effects) => {
                self.follow_ups.extend(effects.follow_ups.iter().map(as_new));
                let lane = self.lane_mut(&held.lane);
                change(&mut lane.state, &effects.state);
                if !effects.state.is_empty() {
                    lane.version = Version(fence);
                }
                self.finish(job, JobStatus::Succeeded);
                self.go_on(lease);
            }
            Outcome::Failed(_) => {
                self.finish(job, JobStatus::Failed);
                self.go_on(lease);
            }
            Outcome::Retry(..) | Outcome::Crashed(_) => {
                let (base, cap) = self.backoff;
                let doubled = base * 2_u32.pow(self.job(job).expect("known").deliveries - 1);
                self.again(job, doubled.min(cap));
                self.end(lease, false);
            }
            Outcome::TimedOut(_) => {
                self.finish(job, JobStatus::TimedOut);
                self.end(lease, true);
            }
        }
    }

    fn go_on(&mut self, lease: LeaseId) {
        let until = self.now.plus(self.visibility);
        let held = self.held.iter_mut().find(|held| held.lease.id == lease).expect("live");
        held.left.remove(0);
        held.expires_at = until;
        match held.left.first().copied() {
            Some(next) => self.start(next),
            None => {
                let (lane, consumer) = (held.lane.clone(), held.consumer);
                self.held.retain(|held| held.lease.id != lease);
                self.lane_mut(&lane).maker = Some(consumer);
            }
        }
    }

    /// A job that is not done: queued again, or dead.
    fn again(&mut self, id: JobId, backoff: Duration) {
        let due = (self.now, self.now.plus(backoff));
        let job = self.job_mut(id);
        if job.deliveries >= job.kind.max_deliveries || job.losses >= 2 * job.kind.max_deliveries {
            self.figures.dead += 1;
            return self.finish(id, JobStatus::Dead);
        }
        (job.status, job.due) = (JobStatus::Queued, due);
    }

    fn finish(&mut self, id: JobId, status: JobStatus) {
        let now = self.now;
        let job = self.job_mut(id);
        (job.status, job.ended_at, job.losses) = (status, Some(now), 0);
        let (lane, parks) = (job.lane.clone(), job.kind.parks && status == JobStatus::Dead);
        self.ended.push((id, status));
        let lane = self.lane_mut(&lane);
        if parks {
            lane.parked = true;
        } else {
            lane.jobs.retain(|other| *other != id);
        }
        self.forget_old();
    }

    /// The lease ends, by nobody's fault; its jobs may have begun, or not.
    fn end(&mut self, lease: LeaseId, begun: bool) {
        let now = self.now;
        let Some(place) = self.held.iter().position(|held| held.lease.id == lease) else { return };
        let held = self.held.remove(place);
        self.lane_mut(&held.lane).maker = None;
        for (index, id) in held.left.into_iter().enumerate() {
            let job = self.job_mut(id);
            if job.status == JobStatus::Running {
                (job.status, job.due) = (JobStatus::Queued, (now, now));
                job.deliveries -= 1;
                job.told -= u32::from(!begun);
            } else if begun && index > 0 {
                job.told += 1;
            }
        }
        self.forget_drained();
    }

    /// The lease's executor is gone, which had this job alone, or others besides.
    fn lose(&mut self, lease: LeaseId, alone: bool) {
        let Some(place) = self.held.iter().position(|held| held.lease.id == lease) else { return };
        let held = self.held.remove(place);
        self.lane_mut(&held.lane).maker = None;
        for id in held.left {
            let job = self.job_mut(id);
            job.losses += 1;
            match job.status {
                JobStatus::Running => {
                    job.deliveries -= u32::from(!alone);
                    self.again(id, self.backoff_of_losses(id));
                }
                _ => job.told += 1,
            }
        }
        self.forget_drained();
    }

    fn backoff_of_losses(&self, id: JobId) -> Duration {
        let (base, cap) = self.backoff;
        match self.job(id).map_or(0, |job| job.losses) {
            0 | 1 => Duration::ZERO,
            losses => (base * 2_u32.pow(losses - 2)).min(cap),
        }
    }

    pub fn release(&mut self, consumer: ConsumerId, lease: LeaseId) {
        if self.held.iter().any(|held| held.lease.id == lease && held.consumer == consumer) {
            self.end(lease, false);
        }
    }

    pub fn extend(&mut self, consumer: ConsumerId) {
        let until = self.now.plus(self.visibility);
        self.held
            .iter_mut()
            .filter(|held| held.consumer == consumer)
            .for_each(|held| held.expires_at = until);
    }

    pub fn die(&mut self, consumer: ConsumerId) {
        self.consumers.retain(|(id, _)| *id != consumer);
        self.revoked.retain(|(id, _, _)| *id != consumer);
        let lost: Vec<LeaseId> =
            self.held.iter().filter(|h| h.consumer == consumer).map(|h| h.lease.id).collect();
        let alone = self.has_one_job(consumer);
        lost.into_iter().for_each(|lease| self.lose(lease, alone));
    }

    fn has_one_job(&self, consumer: ConsumerId) -> bool {
        let left = self.held.iter().filter(|held| held.consumer == consumer).map(|held| held.left.len());
        left.sum::<usize>() == 1
    }

    /// Nor has it lost another just before.
    fn loses_one_job(&self, consumer: ConsumerId) -> bool {
        let before = self.lost_at.get(&consumer);
        self.has_one_job(consumer) && before.is_none_or(|at| self.now.since(*at) > self.visibility)
    }

    /// Time passes; the consumers whose leases ran out.
    pub fn pass(&mut self, time: Duration) -> Vec<ConsumerId> {
        self.now = self.now.plus(time);
        let now = self.now;
        let ran_out = self.held.iter().filter(|h| h.expires_at <= now);
        let (lost, losers): (Vec<(LeaseId, bool)>, Vec<ConsumerId>) =
            ran_out.map(|h| ((h.lease.id, self.loses_one_job(h.consumer)), h.consumer)).unzip();
        for (lease, alone) in lost {
            // Whoever had it is told to stop.
            let held = self.held.iter().find(|held| held.lease.id == lease).expect("live");
            if !alone {
                self.lost_at.insert(held.consumer, now);
            }
            let told: Vec<_> = held.left.iter().map(|job| (held.consumer, lease, *job)).collect();
            self.revoked.extend(told);
            self.lose(lease, alone);
        }
        self.forget_old();
        self.forget_keys();
        losers
    }

    pub fn cancel(&mut self, id: JobId) -> Option<JobStatus> {
        let job = self.job(id)?.clone();
        if job.status.is_terminal() {
            if let Some(lane) = self.lanes.iter_mut().find(|l| l.parked && l.jobs.first() == Some(&id)) {
                lane.parked = false;
                lane.jobs.remove(0);
                // Kept from now on: the visible end stays, the time to live begins.
                let now = self.now;
                self.job_mut(id).ended_at = Some(now);
                self.forget_old();
                self.forget_drained();
            }
            return Some(job.status);
        }
        let lease = self.held.iter().find(|held| held.left.contains(&id)).map(|held| held.lease.id);
        self.finish(id, JobStatus::Cancelled);
        if let Some(lease) = lease {
            let held = self.held.iter_mut().find(|held| held.lease.id == lease).expect("live");
            self.revoked.push((held.consumer, lease, id));
            if job.status == JobStatus::Running {
                self.end(lease, true);
            } else {
                held.left.retain(|other| *other != id);
            }
        }
        self.forget_drained();
        Some(JobStatus::Cancelled)
    }

    pub fn retry(&mut self, id: JobId) -> Option<Result<(), NotRetried>> {
        let now = self.now;
        let job = self.job(id)?.clone();
        match job.status {
            JobStatus::Queued | JobStatus::Running | JobStatus::Succeeded => {
                return Some(Err(NotRetried::Is(job.status)));
            }
            JobStatus::Dead | JobStatus::Failed | JobStatus::TimedOut | JobStatus::Cancelled => {}
        }
        let is_full = match self.known_follow_ups.contains(&id) {
            true => self.live_follow_ups() >= self.capacity,
            false => self.queued() >= self.capacity + self.live_follow_ups(),
        };
        if is_full {
            return Some(Err(NotRetried::QueueFull));
        }
        let due = (now, now);
        let new = Job { status: JobStatus::Queued, deliveries: 0, told: 0, due, ended_at: None, ..job };
        let (lane, kind) = (new.lane.clone(), new.kind);
        *self.job_mut(id) = new;
        match self.lanes.iter_mut().find(|lane| lane.parked && lane.jobs.first() == Some(&id)) {
            Some(lane) => lane.parked = false,
            None => self.enter(&lane, kind, id),
        }
        Some(Ok(()))
    }

    pub fn pause(&mut self, handler: &'static str, paused: bool) {
        self.paused.retain(|name| *name != handler);
        if paused {
            self.paused.push(handler);
            for held in self.held.iter_mut().filter(|held| *held.lease.handler == *handler) {
                let cut: Vec<JobId> = held.left.drain(1..).collect();
                for job in self.jobs.iter_mut().filter(|job| cut.contains(&job.id)) {
                    job.told += 1;
                }
                self.revoked.extend(cut.into_iter().map(|id| (held.consumer, held.lease.id, id)));
            }
        }
    }
}

fn lane_name(new: &NewJob, kind: Kind) -> String {
    match (&new.ordering_key, kind.ordered) {
        (_, false) => new.id.to_string(),
        (key, true) => format!("{}/{}", kind.name, key.as_deref().unwrap_or_default()),
    }
}

/// A follow-up as if somebody submitted it; its id is learned later.
fn as_new(job: &FollowUp) -> NewJob {
    NewJob {
        ordering_key: job.ordering_key.clone(),
        payload: job.payload.clone(),
        delay: job.delay,
        instance: InstanceId(0),
        ..plain(JobId([0; 16]), &job.handler)
    }
}

fn change(state: &mut Entries, changes: &[Change]) {
    for change in changes {
        match &change.value {
            Some(value) => state.insert(change.key.clone(), value.clone()),
            None => state.remove(&change.key),
        };
    }
}
