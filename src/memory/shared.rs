//! The shell around the broker: one lock, the clock, the bells, and the ports.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::broker::{Broker, ConsumerId, Notice};
use crate::bell::Bell;
use crate::clock::{Clock, Timestamp};
use crate::job::{Change, Entries, InstanceId, JobId, JobRecord, Payload};
use crate::observe::job_event;
use crate::ports::{
    BackendError, Consumer, Ends, Filter, Inbox, KeyValue, LaneStats, Lease, Listed, Looked, NewJob,
    NotRetried, OfLease, Producer, Reached, Refusal, Replies, Requests, Retried, Seat, Stats, Step,
    Submitted, Then, Viewer,
};

/// A handle to the memory backend; all clones are one broker.
#[derive(Clone)]
pub struct MemoryBroker(pub(super) Arc<Shared>);

pub(super) struct Shared {
    state: Mutex<State>,
    pub(super) clock: Clock,
    groups: Vec<Arc<str>>,
    /// Rings when there is something for the journal, and when it has been written.
    pub(super) filled: Condvar,
    pub(super) written: Condvar,
}

pub(super) struct State {
    pub(super) broker: Broker,
    consumers: HashMap<ConsumerId, (usize, Bell)>,
    instances: HashMap<InstanceId, Bell>,
    pub(super) pages: Pages,
}

impl State {
    /// What was held back may go: the bells of those who wait for it.
    pub(super) fn bells(&mut self) -> Vec<Bell> {
        let consumers = std::mem::take(&mut self.pages.holding);
        let consumers = consumers.iter().filter_map(|id| self.consumers.get(id)).map(|(_, bell)| bell);
        let told = self.broker.told(self.pages.written);
        let instances = told.filter_map(|instance| self.instances.get(&instance));
        consumers.chain(instances).cloned().collect()
    }
}

/// How turns are kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keeping {
    /// Turns are synced so long after they were written; `None`: before anybody is told.
    pub interval: Option<Duration>,
    /// Executors are threads of this process, and nobody says when all of a turn is there.
    pub is_inline: bool,
}

/// How far the journal is; without one it is as far as can be.
#[derive(Default)]
pub(super) struct Pages {
    /// What turns up to this one say is as safe as was promised.
    pub(super) written: u64,
    /// Turns up to this one were written.
    pub(super) appended: u64,
    /// When the journal's thread syncs what was written and is not synced yet.
    pub(super) sync_at: Option<Instant>,
    /// Answers that wait for a turn, to the submission of these jobs.
    pub(super) answers: VecDeque<Waiting>,
    /// Executors that wait for a turn.
    pub(super) holding: Vec<ConsumerId>,
    /// What has changed is to be written now.
    pub(super) is_due: bool,
    /// Why nothing new is taken.
    pub(super) full: Option<String>,
    /// Why nothing will be written any more.
    pub(super) failed: Option<String>,
    pub(super) is_closed: bool,
    pub(super) keeping: Keeping,
}

/// See [`Pages::answers`].
pub(super) struct Waiting {
    pub(super) turn: u64,
    pub(super) then: Then,
    pub(super) jobs: Vec<JobId>,
    pub(super) answers: Vec<Submitted>,
}

impl MemoryBroker {
    /// Takes the broker over. `groups` are the names of the process groups, in the order of their indices.
    #[must_use]
    pub fn new(broker: Broker, clock: Clock, groups: Vec<Arc<str>>) -> MemoryBroker {
        let (consumers, instances) = Default::default();
        let pages = Pages { written: u64::MAX, ..Pages::default() };
        let state = Mutex::new(State { broker, consumers, instances, pages });
        let (filled, written) = Default::default();
        MemoryBroker(Arc::new(Shared { state, clock, groups, filled, written }))
    }

    /// A panic under the lock leaves the books in doubt: everything after it panics too, and the process is replaced.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("the broker's books are whole")
    }

    /// Runs one operation, then rings those who should look.
    pub fn with<R>(&self, operation: impl FnOnce(&mut Broker, Timestamp) -> R) -> R {
        self.with_turn(|state, now| operation(&mut state.broker, now)).0
    }

    /// The same; with the turn of the journal after which the answer may be told.
    pub(super) fn with_turn<R>(&self, operation: impl FnOnce(&mut State, Timestamp) -> R) -> (R, u64) {
        let mut state = self.lock();
        let now = self.0.clock.now();
        let answer = operation(&mut state, now);
        let turn = state.broker.seen_turn();
        let signals = state.broker.take_signals();
        let State { consumers, instances, .. } = &*state;
        let of_groups = consumers.values().filter(|(group, _)| signals.groups.contains(group));
        let revoked = signals.consumers.iter().filter_map(|id| consumers.get(id));
        let told = signals.instances.iter().filter_map(|id| instances.get(id));
        let due: Vec<Bell> = of_groups.chain(revoked).map(|(_, bell)| bell).chain(told).cloned().collect();
        // Nobody is woken into a lock that is still held.
        drop(state);
        due.iter().for_each(Bell::ring);
        for Notice { level, event, spec, cause, delivery } in signals.notices {
            let said = job_event(level, event, &spec.trace, spec.id, &spec.handler).field("cause", cause);
            match delivery {
                Some(delivery) => said.delivery(&delivery).emit(),
                None => said.emit(),
            }
        }
        (answer, turn)
    }

    /// The same; returns once the answer may be told.
    fn settled<R>(&self, operation: impl FnOnce(&mut Broker, Timestamp) -> R) -> Reached<R> {
        let (answer, turn) = self.with_turn(|state, now| operation(&mut state.broker, now));
        self.wait_for(turn).map(|()| answer)
    }

    fn submit_all(&self, jobs: Vec<NewJob>) -> (Vec<Submitted>, u64) {
        let full = Submitted::Refused(Refusal::QueueFull);
        let mut refused: Vec<Arc<str>> = Vec::new();
        self.with_turn(|state, now| {
            if state.pages.full.is_some() {
                return vec![Submitted::Refused(Refusal::DiskFull); jobs.len()];
            }
            let submit = |job: NewJob| {
                // Nothing overtakes: a smaller job behind one of its owner that found no room finds none either.
                let owner = job.owner.clone();
                if refused.contains(&owner) {
                    return full.clone();
                }
                let answer = state.broker.submit(job, now);
                refused.extend(Some(owner).filter(|_| answer == full));
                answer
            };
            jobs.into_iter().map(submit).collect()
        })
    }

    /// An executor of this group; `bell` rings when a step would bring something.
    #[must_use]
    pub fn consumer(&self, group: usize, bell: Bell) -> MemoryConsumer {
        let mut state = self.lock();
        let id = state.broker.connect(group);
        state.consumers.insert(id, (group, bell));
        MemoryConsumer { broker: self.clone(), id, held: VecDeque::new(), said: 0 }
    }
}

impl Seat for MemoryBroker {
    fn tick(&self, _callers: usize) -> Option<Timestamp> {
        self.with(|broker, now| {
            broker.tick(now);
            broker.next_wake(now)
        })
    }

    /// What is queued goes with this process, so it is run, whether somebody waits for it or not.
    fn drain(&self, _callers_wait: bool, deadline: Timestamp) -> bool {
        self.with(|broker, _| broker.is_idle(deadline))
    }

    fn cut_off(&self) -> Vec<JobId> {
        self.with(|broker, _| broker.unfinished())
    }
}

impl Producer for MemoryBroker {
    fn submit(&self, jobs: Vec<NewJob>) -> Reached<Vec<Submitted>> {
        let (answers, turn) = self.submit_all(jobs);
        self.wait_for(turn).map(|()| answers)
    }

    fn submit_later(&self, jobs: Vec<NewJob>, then: Then) {
        let ids = jobs.iter().map(|job| job.id).collect();
        let (answers, turn) = self.submit_all(jobs);
        // What is refused tells nothing that might be lost.
        let is_refused = |answer: &Submitted| *answer == Submitted::Refused(Refusal::DiskFull);
        let turn = if answers.iter().all(is_refused) { 0 } else { turn };
        self.answer_after(Waiting { turn, then, jobs: ids, answers });
    }

    fn record(&self, viewer: &Viewer, id: JobId) -> Reached<Option<JobRecord>> {
        self.settled(|broker, now| broker.record(viewer, id, now))
    }

    fn watch(&self, viewer: &Viewer, id: JobId, instance: InstanceId) -> Reached<Option<JobRecord>> {
        self.settled(|broker, now| broker.watch(viewer, id, instance, now))
    }

    fn cancel(&self, viewer: &Viewer, id: JobId) -> Reached<Option<JobRecord>> {
        self.settled(|broker, now| broker.cancel(viewer, id, now))
    }

    fn retry(&self, viewer: &Viewer, id: JobId) -> Reached<Option<Retried>> {
        if self.lock().pages.full.is_some() {
            return Ok(Some(Err(NotRetried::QueueFull)));
        }
        self.settled(|broker, now| broker.retry(viewer, id, now))
    }

    fn pause(&self, handler: &str, paused: bool) -> Reached<bool> {
        self.settled(|broker, _| broker.pause(handler, paused))
    }

    fn payload(&self, viewer: &Viewer, id: JobId) -> Reached<Option<Option<Payload>>> {
        self.settled(|broker, _| broker.payload(viewer, id))
    }

    fn list(&self, viewer: &Viewer, filter: &Filter) -> Reached<Listed> {
        self.settled(|broker, now| broker.list(viewer, filter, now))
    }

    fn lanes(&self, viewer: &Viewer, handler: &str, most: usize) -> Reached<Option<Vec<LaneStats>>> {
        self.settled(|broker, now| broker.lanes(viewer, handler, most, now))
    }

    fn recent_ends(&self, count: u64) -> Looked {
        let (looked, turn) = self.with_turn(|state, _| state.broker.recent.since(count));
        // What may still be lost is told by the next look.
        if self.wait_for(turn).is_ok() { looked } else { Looked { count, ..Looked::default() } }
    }

    fn take_traced(&self) -> (Vec<JobRecord>, u64) {
        let ((records, lost), turn) = self.with_turn(|state, _| state.broker.traced.take());
        // What the journal could not keep has not happened.
        if self.wait_for(turn).is_ok() { (records, lost) } else { (Vec::new(), lost + records.len() as u64) }
    }

    fn stats(&self) -> Reached<Stats> {
        let stats = |state: &mut State, now| Stats {
            full: state.pages.full.clone(),
            ..state.broker.stats(&self.0.groups, now)
        };
        Ok(self.with_turn(stats).0)
    }
}

impl KeyValue for MemoryBroker {
    fn load(&self, map: &str, ttl: Option<Duration>) -> Reached<Entries> {
        self.settled(|broker, now| broker.maps().load(map, ttl, now))
    }

    fn apply(&self, map: &str, changes: &[Change], ttl: Option<Duration>) -> Reached<()> {
        self.settled(|broker, now| broker.maps().apply(map, changes, ttl, now))
    }
}

impl Replies for MemoryBroker {
    fn subscribe(&self, instance: InstanceId, bell: Bell) -> Reached<Box<dyn Inbox>> {
        let mut state = self.lock();
        state.broker.subscribe(instance);
        state.instances.insert(instance, bell);
        Ok(Box::new(MemoryInbox { broker: self.clone(), instance }))
    }
}

struct MemoryInbox {
    broker: MemoryBroker,
    instance: InstanceId,
}

impl Inbox for MemoryInbox {
    fn take(&mut self, most: usize) -> Ends {
        let mut state = self.broker.lock();
        let written = state.pages.written;
        state.broker.take_ends(self.instance, most, written)
    }
}

impl Drop for MemoryInbox {
    fn drop(&mut self) {
        let mut state = self.broker.lock();
        state.broker.unsubscribe(self.instance);
        state.instances.remove(&self.instance);
    }
}

/// An executor in this process. Dropping it ends its leases.
pub struct MemoryConsumer {
    broker: MemoryBroker,
    id: ConsumerId,
    /// Leases that may not leave before a turn of the journal is written.
    held: VecDeque<(u64, Lease)>,
    /// The turn that says what was said here last.
    said: u64,
}

impl MemoryConsumer {
    /// Keeps leases back until the turn that says them is written.
    fn hold(&mut self, mut step: Step, State { broker, pages, .. }: &mut State, now: Timestamp) -> Step {
        step.revoked.retain(|of| !self.leave_out(of));
        step.leases.iter().for_each(|lease| broker.hold_back(lease.id));
        self.held.extend(step.leases.drain(..).map(|lease| (self.said, lease)));
        let may_go = self.held.iter().take_while(|(turn, _)| *turn <= pages.written).count();
        step.leases.extend(self.held.drain(..may_go).map(|(_, lease)| lease));
        step.leases.iter().for_each(|lease| broker.let_go(lease.id, now));
        if !pages.holding.contains(&self.id) {
            pages.holding.push(self.id);
        }
        if pages.keeping.is_inline {
            pages.is_due = true;
            self.broker.0.filled.notify_one();
        }
        step
    }

    /// A job of a lease that nobody was given yet is left out, and all of the lease if that was to begin with it.
    fn leave_out(&mut self, of: &OfLease) -> bool {
        let Some((_, lease)) = self.held.iter_mut().find(|(_, lease)| lease.id == of.lease) else {
            return false;
        };
        let is_first = lease.jobs.first().is_some_and(|job| job.spec.id == of.job);
        lease.jobs.retain(|job| !is_first && job.spec.id != of.job);
        self.held.retain(|(_, lease)| !lease.jobs.is_empty());
        true
    }
}

impl Consumer for MemoryConsumer {
    fn step(&mut self, requests: Requests, room: usize) -> Reached<Step> {
        let broker = self.broker.clone();
        let step = |state: &mut State, now| {
            let is_known = state.broker.consumers.contains_key(&self.id);
            let step = is_known.then(|| state.broker.step(self.id, requests, room, now))?;
            self.said = state.broker.seen_turn();
            let is_written = self.said <= state.pages.written && self.held.is_empty();
            Some(if is_written { step } else { self.hold(step, state, now) })
        };
        let step = broker.with_turn(step).0;
        step.ok_or_else(|| BackendError("the broker has given this executor up".into()))
    }

    fn extend(&mut self) {
        self.broker.with(|broker, now| broker.extend(self.id, now));
    }

    fn is_settled(&self) -> bool {
        self.held.is_empty() && self.said <= self.broker.lock().pages.written
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.broker.lock().consumers.remove(&self.id);
        self.broker.with(|broker, now| {
            // What never left was not begun.
            self.held.iter().for_each(|(_, lease)| broker.release(self.id, lease.id, now));
            broker.disconnect(self.id, now);
        });
    }
}
