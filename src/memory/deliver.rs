//! Delivering: claims and commits.

use std::sync::Arc;
use std::time::Duration;

use log::Level;

use super::broker::{Broker, ConsumerEntry, ConsumerId, Lease};
use super::leases::Rest;
use crate::clock::{Timestamp, micros};
use crate::job::{AttemptOutcome, Effects, Entries, JobId, Outcome, Payload, Version, context_map};
use crate::job_status::JobEvent;
use crate::limits::{
    CONTEXT_BYTES, DELAY_MAX, LANE_AFFINITY, LEASE_GRACE, LOSSES_TO_BE_ALONE, PUT_OFF_DOUBLINGS,
    QUEUED_BYTES, RUN_JOBS,
};
use crate::negative_controls::{Control, is_off};
use crate::ports::{self, Commit, LeaseId, LeasedJob, NewJob, OfLease, Progressed, Requests, StateAt, Step};
use crate::problem::{Cause, Code, JobError};

/// Ready lanes looked at in one search: those before them are left to the executors that know them.
pub(super) const AFFINITY_SCAN: usize = 64;

impl Broker {
    /// An executor of this group is here.
    pub fn connect(&mut self, group: usize) -> ConsumerId {
        self.last_number += 1;
        let id = ConsumerId(self.last_number);
        let name = Arc::from(self.last_number.to_string());
        self.consumers.insert(id, ConsumerEntry { group, name, ..ConsumerEntry::default() });
        self.totals.consumers[group] += 1;
        id
    }

    /// It is gone: its leases end at once.
    pub fn disconnect(&mut self, id: ConsumerId, now: Timestamp) {
        let Some(consumer) = self.consumers.remove(&id) else { return };
        self.totals.consumers[consumer.group] -= 1;
        if consumer.waits_for.is_some() {
            // Another may take that lane.
            self.signals.groups.push(consumer.group);
        }
        let is_alone = self.holds_one_job(&consumer.leases);
        for number in consumer.leases {
            self.lose_lease(number, is_alone, now);
        }
    }

    /// True if these leases are one, of one job: when their executor is lost, nothing else can be the reason.
    pub(super) fn holds_one_job(&self, leases: &[u64]) -> bool {
        matches!(leases, [number] if self.leases[number].jobs.len() == 1) || is_off(Control::Suspects)
    }

    /// See [`ports::Consumer::step`].
    pub fn step(&mut self, id: ConsumerId, requests: Requests, room: usize, now: Timestamp) -> Step {
        let mut step = Step::default();
        for Progressed { lease, job, progress } in requests.progress {
            let lease = self.leases.get(&lease.0);
            let is_leased = lease.is_some_and(|lease| lease.consumer == id && lease.jobs.contains(&job));
            if let Some(entry) = self.jobs.get_mut(&job).filter(|_| is_leased) {
                entry.job.record.progress = Some(progress);
            }
        }
        for commit in requests.commits {
            let of_lease = OfLease { lease: commit.lease, job: commit.job };
            if !self.commit(id, commit, now) {
                step.fenced.push(of_lease);
            }
        }
        for lease in requests.releases {
            self.release(id, lease, now);
        }
        let Some(consumer) = self.consumers.get_mut(&id) else { return step };
        consumer.room = room;
        step.revoked = std::mem::take(&mut consumer.revoked);
        while !self.claims_nothing
            && self.consumers[&id].has_room()
            && let Some(lane) = self.next_lane(id, now)
        {
            step.leases.push(self.claim(id, lane, now));
        }
        let group = self.consumers[&id].group;
        if self.totals.consumers[group] == 1 {
            // Its only consumer has just looked.
            self.signals.groups.retain(|ready| *ready != group);
        }
        step
    }

    /// The lane to claim: of all that this consumer may take, the one that has been ready for longest.
    fn next_lane(&mut self, id: ConsumerId, now: Timestamp) -> Option<u64> {
        let consumer = self.consumers.get(&id)?;
        let is_free = consumer.leases.is_empty();
        if consumer.waits_for.is_some_and(|lane| !is_free && self.runs_alone(lane, now)) {
            return None;
        }
        // One executor of a group is kept free at a time: the others go on.
        let is_another_kept_free = || {
            let mut others = self.consumers.iter().filter(|(other, _)| **other != id);
            others.any(|(_, other)| other.group == consumer.group && other.waits_for.is_some())
        };
        let is_left = |lane: u64| !is_free && self.runs_alone(lane, now) && is_another_kept_free();
        let held = |handler: usize| {
            let lanes = consumer.leases.iter().map(|number| self.leases[number].lane);
            lanes.filter(|lane| self.lanes[lane].handler == handler).count()
        };
        let oldest = self.handlers.iter().enumerate().filter_map(|(index, queue)| {
            let limit = queue.spec.options.concurrency;
            let is_full = limit > 0 && held(index) >= limit;
            if queue.spec.group != consumer.group || queue.figures.paused || is_full {
                return None;
            }
            let mut due = queue.ready.range(..=(now, u64::MAX)).take(AFFINITY_SCAN);
            due.find(|(place, lane)| !self.left_to_another(**lane, place.0, id, now) && !is_left(**lane))
        });
        let lane = self.preferred(id, now).or_else(|| oldest.min().map(|(_, lane)| *lane));
        let runs_alone = lane.filter(|lane| self.runs_alone(*lane, now));
        let consumer = self.consumers.get_mut(&id)?;
        consumer.waits_for = runs_alone.filter(|_| !is_free);
        consumer.is_alone = runs_alone.is_some() && is_free;
        let leased = lane.filter(|_| consumer.waits_for.is_none());
        if leased.is_some() {
            consumer.prefers_alone = consumer.is_alone;
        }
        if consumer.is_alone {
            // Another may have waited for it.
            self.signals.groups.push(consumer.group);
        }
        leased
    }

    /// The next lane whose head runs alone, for an executor that has just run such a job.
    fn preferred(&self, id: ConsumerId, now: Timestamp) -> Option<u64> {
        let consumer = self.consumers.get(&id).filter(|it| it.prefers_alone && it.leases.is_empty())?;
        let of_group = self.handlers.iter().filter(|queue| queue.spec.group == consumer.group);
        let due = of_group.flat_map(|queue| queue.ready.range(..=(now, u64::MAX)).take(AFFINITY_SCAN));
        due.filter(|(_, lane)| self.runs_alone(**lane, now)).min().map(|(_, lane)| *lane)
    }

    /// True if the lane can be claimed, by an executor that has nothing else meanwhile.
    fn runs_alone(&self, lane: u64, now: Timestamp) -> bool {
        let Some(lane) = self.lanes.get(&lane).filter(|_| self.totals.suspects > 0) else { return false };
        let is_due = lane.ready.is_some_and(|place| place.0 <= now);
        let head = lane.jobs.front().filter(|_| is_due && !self.handlers[lane.handler].figures.paused);
        head.is_some_and(|job| self.jobs[job].job.losses >= LOSSES_TO_BE_ALONE)
    }

    /// True while the executor that knows the lane's state has room and may come for it.
    fn left_to_another(&self, lane: u64, ready_at: Timestamp, id: ConsumerId, now: Timestamp) -> bool {
        let maker = self.lanes[&lane].maker.filter(|maker| *maker != id);
        let maker = maker.and_then(|maker| self.consumers.get(&maker));
        let may_come = maker.is_some_and(|maker| maker.has_room() && maker.waits_for.is_none());
        may_come && now < ready_at.plus(LANE_AFFINITY)
    }

    /// Leases the first jobs of a ready lane.
    fn claim(&mut self, id: ConsumerId, lane_number: u64, now: Timestamp) -> ports::Lease {
        self.last_number += 1;
        let number = self.last_number;
        let run = self.run_of(lane_number, now);
        let lane = self.lanes.get_mut(&lane_number).expect("a ready lane exists");
        let handler = lane.handler;
        if let Some(place) = lane.ready.take() {
            self.handlers[handler].ready.remove(&place);
        }
        lane.lease = Some(number);
        let state = match &lane.map {
            None => StateAt::Stateless,
            Some(_) if lane.maker == Some(id) => StateAt::Known(lane.version),
            Some(map) => StateAt::Whole(lane.version, self.maps.load(map, None, now)),
        };
        let fences = (self.last_fence + 1).max(now.0);
        self.last_fence = fences + run.len() as u64 - 1;
        let mut jobs = Vec::with_capacity(run.len());
        for (fence, job) in (fences..).zip(&run) {
            let entry = self.jobs.get_mut(job).expect("a lane's job exists");
            entry.fence = fence;
            let (spec, delivery) = (entry.job.record.spec.clone(), entry.job.delivery + 1);
            let payload = entry.job.payload.clone().unwrap_or_else(|| Payload::octets(Vec::new()));
            let context = self.context_of(&spec, now);
            jobs.push(LeasedJob { spec, payload, delivery, fence, context });
        }
        run.iter().for_each(|job| self.touch(*job));
        let first = run[0];
        let (expires_at, deadline) = (now.plus(self.rules.visibility), self.deadline(first, now));
        let lease = Lease { consumer: id, lane: lane_number, jobs: run.into(), expires_at, deadline };
        self.leases.insert(number, lease);
        self.consumers.entry(id).and_modify(|consumer| consumer.leases.push(number));
        self.start(first, id, now);
        let handler = self.handlers[handler].spec.name.clone();
        ports::Lease { id: LeaseId(number), handler, state, jobs }
    }

    /// By when its executor must have said what came of this job, if that starts now.
    pub(super) fn deadline(&self, job: JobId, now: Timestamp) -> Timestamp {
        now.plus(self.jobs[&job].job.record.spec.timeout).plus(LEASE_GRACE)
    }

    /// The jobs of the next lease: how many depends on what fits a frame. One that is a suspect comes by itself, and so does
    /// one that is to be delivered once: none behind it can have begun when it is lost.
    fn run_of(&self, lane: u64, now: Timestamp) -> Vec<JobId> {
        let lane = &self.lanes[&lane];
        let max_deliveries = self.max_deliveries(lane.handler);
        let most = if max_deliveries == 1 { 1 } else { RUN_JOBS };
        let mut bytes = 0;
        let fits = |id: &&JobId| {
            let entry = &self.jobs[*id];
            bytes += entry.job.payload_bytes();
            entry.job.not_before <= now && bytes <= self.rules.max_payload && entry.job.losses == 0
        };
        let mut run: Vec<JobId> = lane.jobs.iter().take(most).take_while(fits).copied().collect();
        if run.is_empty() {
            run.extend(lane.jobs.front());
        }
        run
    }

    fn context_of(&mut self, spec: &crate::job::JobSpec, now: Timestamp) -> Entries {
        if self.maps.all_immortal() {
            return Entries::new();
        }
        let name = context_map(&spec.owner, &spec.trace);
        self.maps.load(&name, Some(self.rules.context_ttl), now)
    }

    pub(super) fn max_deliveries(&self, handler: usize) -> u32 {
        self.handlers[handler].spec.options.max_deliveries.unwrap_or(self.rules.max_deliveries)
    }

    /// A delivery counts when it starts.
    pub(super) fn start(&mut self, id: JobId, consumer: ConsumerId, now: Timestamp) {
        let executor = self.consumers.get(&consumer).map(|consumer| consumer.name.clone());
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        let Some(queue) = entry.on(JobEvent::Start, &mut self.handlers) else { return };
        entry.job.delivery += 1;
        let record = &mut entry.job.record;
        record.deliveries += 1;
        record.started_at = Some(now);
        record.executor = executor;
        if entry.job.delivery == 1 {
            queue.figures.queue_wait_seconds.observe(now.since(entry.job.not_before));
        } else {
            self.totals.redelivered += 1;
        }
        self.touch(id);
        self.note(Level::Debug, "queue.claimed", id, "");
    }

    /// Judges one commit, each check first, each change after all of them. False: fenced off, nothing took effect.
    fn commit(&mut self, id: ConsumerId, commit: Commit, now: Timestamp) -> bool {
        let LeaseId(number) = commit.lease;
        let is_holder = |lease: &&Lease| lease.consumer == id || is_off(Control::LeaseHolder);
        let Some(lease) = self.leases.get(&number).filter(is_holder) else {
            self.fence_off(&commit);
            return false;
        };
        let (lane_number, running) = (lease.lane, lease.jobs[0]);
        let lane = &self.lanes[&lane_number];
        let next =
            lease.jobs.front() == Some(&commit.job) && self.jobs[&commit.job].job.delivery == commit.delivery;
        let outdated = lane.map.is_some() && lane.version != commit.builds_on;
        if !next || (outdated && !is_off(Control::StateVersion)) {
            self.fence_off(&commit);
            self.disbelieve(number, "what its executor said did not hold", now);
            return false;
        }
        if self.has_no_room_for(&commit) {
            self.put_off(running, now);
            self.end_lease(number, Rest::MayHaveBegun, now);
            return true;
        }
        let refused = self.refuses(&commit, lane_number, now);
        let publishes = !matches!(commit.outcome, Outcome::Retry(..) | Outcome::Crashed(_));
        // An executor goes on with the run before it knows what became of an outcome, but not after these.
        let rest = if publishes { Rest::MayHaveBegun } else { Rest::NotBegun };
        if publishes {
            self.note(Level::Debug, "reply.published", commit.job, "");
        }
        let goes_on = match refused {
            None => self.apply(commit.job, commit.outcome, now),
            Some(error) => {
                // The executor has applied what is refused here, so its cached state is wrong: the run ends.
                self.finish(commit.job, JobEvent::Fail, Err(error), now);
                false
            }
        };
        if goes_on {
            self.next_of_run(number, now)
        } else {
            self.end_lease(number, rest, now)
        }
        true
    }

    /// True if what the outcome submits finds no room. The first job of an outcome always does, since it comes in the place of
    /// the one that submits it; so a chain goes on, and a lane that is full of its own followers.
    fn has_no_room_for(&self, commit: &Commit) -> bool {
        let Outcome::Succeeded(_, effects) = &commit.outcome else { return false };
        let jobs = &effects.follow_ups;
        let (.., waiting) = self.waiting();
        let bytes: usize = jobs.iter().map(|job| job.payload.bytes.len()).sum();
        let replaces = jobs.len() <= 1 && bytes <= self.jobs[&commit.job].job.payload_bytes();
        let fits = waiting.jobs + jobs.len() <= self.rules.capacity || jobs.len() <= 1;
        !(replaces || fits && waiting.bytes + bytes <= QUEUED_BYTES)
    }

    /// A delivery that succeeded, but whose outcome has no room now: again after a backoff, uncounted. The backoff grows with each
    /// start, for a while: room may come at any time.
    fn put_off(&mut self, job: JobId, now: Timestamp) {
        let backoff = self.backoff(job, self.jobs[&job].job.delivery.min(PUT_OFF_DOUBLINGS));
        self.end_attempt(job, AttemptOutcome::QueueFull, now);
        self.requeue(job, JobEvent::GiveBack, now.plus(backoff));
        self.jobs.entry(job).and_modify(|entry| entry.job.record.deliveries -= 1);
        // There may be thousands of them: one a second says it.
        if now >= self.full_said_at.plus(Duration::from_secs(1)) {
            self.full_said_at = now;
            self.retried(job, Code::QueueFull.as_str(), "", now);
        }
    }

    /// Ends a lease whose executor says what cannot hold, or nothing. The delivery counts: else such an executor could have
    /// the job again for ever.
    pub(super) fn disbelieve(&mut self, number: u64, why: &str, now: Timestamp) {
        let running = self.leases[&number].jobs[0];
        self.again(running, Cause::ExecutorLost, why.into(), None, now);
        self.end_lease(number, Rest::MayHaveBegun, now);
    }

    fn fence_off(&mut self, commit: &Commit) {
        self.totals.late += 1;
        self.note(Level::Info, "reply.late_dropped", commit.job, "fenced");
    }

    /// Why the effects cannot be applied, if they exceed a bound.
    fn refuses(&self, commit: &Commit, lane: u64, now: Timestamp) -> Option<JobError> {
        let Outcome::Succeeded(_, effects) = &commit.outcome else { return None };
        let entry = &self.jobs[&commit.job];
        let (spec, own) = (&entry.job.record.spec, &self.handlers[entry.handler].spec);
        let exceeds = commit.exceeds(spec, &self.rules);
        if exceeds.is_some() {
            return exceeds;
        }
        let context = (!effects.context.is_empty()).then(|| context_map(&spec.owner, &spec.trace));
        let map = self.lanes[&lane].map.as_deref();
        let maps = [(map, &effects.state), (context.as_deref(), &effects.context)];
        let [state, context] =
            maps.map(|(map, changes)| map.map_or(0, |map| self.maps.bytes_after(map, changes, now)));
        let growth = maps.map(|(map, changes)| map.map_or(0, |map| self.maps.growth(map, changes, now)));
        let (growth, jobs) = (growth[0] + growth[1], &effects.follow_ups);
        let (code, detail) = if map.is_none() && !effects.state.is_empty() {
            (Code::HandlerFailed, "a handler without ordering has no state")
        } else if state > self.rules.lane_state_max {
            (Code::StateTooLarge, "the lane's state would exceed kv.lane_state_max_bytes")
        } else if context > CONTEXT_BYTES {
            (Code::StateTooLarge, "the trace's context would exceed 1 MiB")
        } else if growth > 0 && self.maps.held_bytes() + growth > self.rules.states_max {
            (Code::StateTooLarge, "all states and contexts would exceed kv.total_max_bytes")
        } else if jobs.iter().any(|job| !self.handler_index.contains_key(&job.handler)) {
            (Code::HandlerFailed, "a follow-up names an unknown handler")
        } else if jobs.iter().any(|job| !own.may_submit_to(&job.handler)) {
            (Code::HandlerFailed, "a follow-up names a handler that this group may not submit to")
        } else {
            return None;
        };
        Some(JobError::new(code, detail))
    }

    /// Applies an outcome that holds; true if the run goes on.
    fn apply(&mut self, job: JobId, outcome: Outcome, now: Timestamp) -> bool {
        let (event, result) = match outcome {
            Outcome::Succeeded(payload, effects) => {
                self.apply_effects(job, effects, now);
                if is_off(Control::AtomicCommit) && self.jobs[&job].job.record.deliveries == 1 {
                    self.again(job, Cause::ExecutorLost, String::new(), None, now);
                    return false;
                }
                (JobEvent::Succeed, Ok(payload))
            }
            Outcome::Failed(error) => (JobEvent::Fail, Err(error)),
            Outcome::TimedOut(detail) => (JobEvent::TimeOut, Err(JobError::timed_out(&detail))),
            Outcome::Retry(detail, after) => {
                self.again(job, Cause::RetriesExhausted, detail, after, now);
                return false;
            }
            Outcome::Crashed(detail) => {
                self.again(job, Cause::HandlerCrashed, detail, None, now);
                return false;
            }
        };
        self.finish(job, event, result, now);
        // A handler that has no end of its own may still run.
        event != JobEvent::TimeOut
    }

    fn apply_effects(&mut self, job: JobId, effects: Effects, now: Timestamp) {
        let entry = &self.jobs[&job];
        let (spec, fence, instance) = (entry.job.record.spec.clone(), entry.fence, entry.instance);
        let lane = self.lanes.get_mut(&entry.lane).expect("a live job's lane exists");
        if let Some(map) = lane.map.as_ref().filter(|_| !effects.state.is_empty()) {
            lane.version = Version(fence);
            self.maps.apply(map, &effects.state, None, now);
        }
        if !effects.context.is_empty() {
            let name = context_map(&spec.owner, &spec.trace);
            self.maps.apply(&name, &effects.context, Some(self.rules.context_ttl), now);
        }
        for follow_up in effects.follow_ups {
            // Never refused: their parent's commit has accepted them.
            let Some(&handler) = self.handler_index.get(&follow_up.handler) else { continue };
            let new = NewJob::follow_up(&spec, follow_up, instance, &mut self.entropy);
            self.accept(handler, new, true, now);
        }
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
        let (deliveries, losses) = (entry.job.record.deliveries, entry.job.losses);
        let all_losses = losses + entry.job.seat_losses;
        let most = self.max_deliveries(entry.handler);
        let error = JobError { code: Code::DeadLettered, detail, cause: Some(cause) };
        if deliveries >= most || all_losses >= most.saturating_mul(2) {
            self.totals.dead += 1;
            self.finish(job, JobEvent::Exhaust, Err(error), now);
            self.note(Level::Debug, "queue.dead", job, cause.as_str());
            return;
        }
        let backoff = match cause {
            _ if after.is_some() => after.unwrap_or_default().min(DELAY_MAX),
            Cause::ExecutorLost if losses < LOSSES_TO_BE_ALONE => Duration::ZERO,
            Cause::ExecutorLost => self.backoff(job, losses - 1),
            Cause::RetriesExhausted | Cause::HandlerCrashed => self.backoff(job, deliveries),
        };
        let outcome = match cause {
            Cause::RetriesExhausted => AttemptOutcome::HandlerRetry,
            Cause::HandlerCrashed => AttemptOutcome::HandlerCrashed,
            Cause::ExecutorLost => AttemptOutcome::ExecutorLost,
        };
        self.end_attempt(job, outcome, now);
        self.requeue(job, JobEvent::Again, now.plus(backoff));
        self.retried(job, cause.so_far(), error.reason(), now);
    }

    fn backoff(&mut self, job: JobId, tries: u32) -> Duration {
        let retry = self.handlers[self.jobs[&job].handler].spec.options.retry.unwrap_or(self.rules.retry);
        Duration::from_micros(self.entropy.up_to(micros(retry.backoff(tries))))
    }

    pub(super) fn end_attempt(&mut self, job: JobId, outcome: AttemptOutcome, now: Timestamp) {
        self.jobs.entry(job).and_modify(|entry| entry.job.record.end_attempt(outcome, now));
    }

    /// A running job is queued again; it never left its lane.
    pub(super) fn requeue(&mut self, job: JobId, event: JobEvent, not_before: Timestamp) {
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        if entry.on(event, &mut self.handlers).is_some() {
            entry.job.not_before = not_before;
        }
        self.touch(job);
    }
}
