//! The broker: where a job is while nobody runs it. A pure value; time and randomness come in as arguments.
//!
//! In scope: lanes, leases, fences, commits, records, idempotency, state, contexts, ends told. Not in
//! scope: locks, threads, clocks, sockets. Submitting is here, cancel, retry and pause in `commands`, delivering
//! in `deliver`, a job's end in `ending`, looking in `view`.
//!
//! Invariants: a job that is not terminal stands in exactly one lane's queue; a lane is in its handler's
//! ready set iff it has jobs, no lease, and is not parked; a lease's jobs are the first of its lane, and only
//! the first of them runs. `invariants` checks them.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use log::{Level, LevelFilter};

use super::entry::{Changed, Entry, HandlerQueue};
use super::idempotency::Keys;
use super::kv::Maps;
use super::records::Retention;
use crate::clock::Timestamp;
use crate::entropy::Entropy;
use crate::handler::{HandlerSpec, Ordering};
use crate::job::{IdMap, InstanceId, JobId, JobRecord, JobSpec, Version, state_map};
use crate::journal::facts::Job;
use crate::limits::QUEUED_BYTES;
use crate::negative_controls::{Control, is_off};
use crate::observe::Delivery;
use crate::ports::{
    HandlerStats, Idempotency, JobEnded, NewJob, OfLease, RecentEnds, Refusal, Rules, Stats, Submitted,
    Traced,
};
use crate::problem::JobError;

/// Names a connected executor; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConsumerId(pub u64);

/// What happened, for the log. Never a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub level: Level,
    /// The event's name.
    pub event: &'static str,
    /// Of which job.
    pub spec: Arc<JobSpec>,
    /// What led to it, in a word.
    pub cause: &'static str,
    /// `Some` iff a delivery has come to nothing.
    pub delivery: Option<Delivery>,
}

/// Who should look again.
#[derive(Debug, Default)]
pub struct Signals {
    /// Groups (by index) with work to claim.
    pub groups: Vec<usize>,
    /// Consumers with revoked jobs.
    pub consumers: Vec<ConsumerId>,
    /// Instances that were told of an end.
    pub instances: Vec<InstanceId>,
    /// What to log.
    pub notices: Vec<Notice>,
}

/// See the module.
#[derive(Debug)]
pub struct Broker {
    pub(super) rules: Rules,
    pub(super) entropy: Entropy,
    pub(super) handlers: Vec<HandlerQueue>,
    pub(super) handler_index: IdMap<Arc<str>, usize>,
    pub(super) jobs: IdMap<JobId, Box<Entry>>,
    /// Every job, in the order of submission.
    pub(super) submissions: BTreeSet<(Timestamp, JobId)>,
    pub(super) lanes: IdMap<u64, Lane>,
    /// The lanes of ordered handlers, by the names of their state maps.
    pub(super) ordered_lanes: HashMap<Arc<str>, u64>,
    pub(super) leases: IdMap<u64, Lease>,
    pub(super) consumers: BTreeMap<ConsumerId, ConsumerEntry>,
    pub(super) maps: Maps,
    pub(super) retention: Retention,
    pub(super) idempotency: Keys,
    pub(super) inboxes: IdMap<InstanceId, InboxBooks>,
    pub(super) signals: Signals,
    /// Source of lane, lease and consumer numbers and of the ready order.
    pub(super) last_number: u64,
    pub(super) last_fence: u64,
    /// Whose readiness by time alone has been signalled.
    pub(super) ticked_at: Timestamp,
    /// When an outcome that found no room was said last.
    pub(super) full_said_at: Timestamp,
    /// When expired maps were last freed.
    pub(super) swept_at: Timestamp,
    pub(super) totals: Stats,
    /// Workers of one executor, by group.
    pub(super) workers: Vec<usize>,
    /// Less important events are not collected.
    pub(super) log_level: LevelFilter,
    /// `Some` iff there is a journal: what it has to be told.
    pub(super) changed: Option<Box<Changed>>,
    pub(super) recent: RecentEnds,
    pub(super) traced: Traced<JobRecord>,
    /// The turn of the journal that gathers now; what came before it was told in earlier ones.
    pub(super) turn: u64,
    /// Bytes of all jobs' bases in the journal, about.
    pub(super) job_bytes: usize,
    /// Nothing is claimed: the service stops, and what is queued is kept.
    pub(super) claims_nothing: bool,
}

/// Jobs of one handler and key, in submission order.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) handler: usize,
    pub(super) jobs: VecDeque<JobId>,
    pub(super) lease: Option<u64>,
    /// Its place in the handler's ready set.
    pub(super) ready: Option<(Timestamp, u64)>,
    pub(super) version: Version,
    /// Who made this version and so knows the map.
    pub(super) maker: Option<ConsumerId>,
    /// A dead head holds it.
    pub(super) parked: bool,
    /// The state map's name; `Some` iff the handler is ordered.
    pub(super) map: Option<Arc<str>>,
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) consumer: ConsumerId,
    pub(super) lane: u64,
    /// Not yet committed; the first is running.
    pub(super) jobs: VecDeque<JobId>,
    /// Unless it is renewed.
    pub(super) expires_at: Timestamp,
    /// However often it is renewed: the running job's timeout, and a grace.
    pub(super) deadline: Timestamp,
}

#[derive(Debug, Default)]
pub(super) struct ConsumerEntry {
    pub(super) group: usize,
    /// As records name it.
    pub(super) name: Arc<str>,
    /// Leases that it takes at once.
    pub(super) room: usize,
    pub(super) leases: Vec<u64>,
    /// Its one lease is of a job that runs alone.
    pub(super) is_alone: bool,
    /// Its last lease was: it goes on with such jobs while there are any, so that others wait for its leases to end once.
    pub(super) prefers_alone: bool,
    /// A lane whose head runs alone: this executor takes no other lease, and that one once it has none.
    pub(super) waits_for: Option<u64>,
    /// When a lease of it was over beside which it had other jobs.
    pub(super) lost_at: Option<Timestamp>,
    pub(super) revoked: Vec<OfLease>,
}

/// What an instance is told, with the turn of the journal that says it.
#[derive(Debug, Default)]
pub(super) struct InboxBooks {
    pub(super) ended: VecDeque<(u64, JobEnded)>,
    pub(super) lost: bool,
}

impl ConsumerEntry {
    /// It takes one lease more.
    pub(super) fn has_room(&self) -> bool {
        self.leases.len() < self.room && !self.is_alone
    }
}

impl Broker {
    /// An empty broker. `workers` are those of one executor, by group.
    #[must_use]
    pub fn new(rules: Rules, handlers: Vec<HandlerSpec>, workers: Vec<usize>, entropy: Entropy) -> Broker {
        let retention = Retention::new(&rules);
        let idempotency = Keys::new(rules.idempotency_ttl, rules.idempotency_keys);
        let handler_index =
            handlers.iter().enumerate().map(|(index, spec)| (spec.name.clone(), index)).collect();
        let queue = |spec: HandlerSpec| {
            let figures = HandlerStats { handler: spec.name.clone(), ..HandlerStats::default() };
            let (ready, waiting, follow_ups, of_callers, owners) = Default::default();
            HandlerQueue { spec, ready, waiting, follow_ups, of_callers, owners, figures }
        };
        Broker {
            traced: Traced::new(rules.exports_traces),
            rules,
            entropy,
            handlers: handlers.into_iter().map(queue).collect(),
            handler_index,
            jobs: IdMap::default(),
            submissions: BTreeSet::new(),
            lanes: IdMap::default(),
            ordered_lanes: HashMap::new(),
            leases: IdMap::default(),
            consumers: BTreeMap::new(),
            maps: Maps::default(),
            retention,
            idempotency,
            inboxes: IdMap::default(),
            signals: Signals::default(),
            last_number: 0,
            last_fence: 0,
            ticked_at: Timestamp::default(),
            full_said_at: Timestamp::default(),
            swept_at: Timestamp::default(),
            totals: Stats {
                consumers: vec![0; workers.len()],
                busy: vec![0; workers.len()],
                ..Stats::default()
            },
            workers,
            log_level: log::max_level(),
            changed: None,
            recent: RecentEnds::default(),
            turn: 0,
            job_bytes: 0,
            claims_nothing: false,
        }
    }

    /// Who should look since the last call.
    pub fn take_signals(&mut self) -> Signals {
        std::mem::take(&mut self.signals)
    }

    /// The maps of states and contexts.
    pub fn maps(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// Accepts or refuses one job.
    pub fn submit(&mut self, new: NewJob, now: Timestamp) -> Submitted {
        let Some(&handler) = self.handler_index.get(&new.handler) else {
            return Submitted::Refused(Refusal::UnknownHandler);
        };
        if let Some(existing) = self.jobs.get(&new.id) {
            debug_assert_eq!(existing.job.record.spec.handler, new.handler);
            // The call was repeated: the job is there already.
            if existing.instance == new.instance {
                return Submitted::New;
            }
            // Or it is a line of a batch, which the journal has kept.
            self.tell_also(new.id, new.instance);
            return Submitted::Existing(Box::new(self.record_of(new.id, now)));
        }
        if let Some(Idempotency { key, fingerprint }) = &new.idempotency
            && let scope = (new.owner.clone(), new.handler.clone(), key.clone())
            && let Some(bound) = self.known_key(&scope, now)
        {
            return if bound.fingerprint != *fingerprint {
                Submitted::Refused(Refusal::IdempotencyMismatch(Some(bound.job)))
            } else if self.jobs.contains_key(&bound.job) {
                self.tell_also(bound.job, new.instance);
                Submitted::Existing(Box::new(self.record_of(bound.job, now)))
            } else {
                Submitted::Refused(Refusal::ResultGone(bound.job))
            };
        }
        if self.is_full_for(&new.owner, new.payload.bytes.len(), false) {
            return Submitted::Refused(Refusal::QueueFull);
        }
        self.accept(handler, new, false, now);
        Submitted::New
    }

    /// There is no room for one more job with so many bytes of payload, or none in its owner's share.
    pub(super) fn is_full_for(&self, owner: &str, more: usize, is_follow_up: bool) -> bool {
        let (queued, all, follow_ups) = self.waiting();
        let capacity = self.rules.capacity;
        if is_follow_up {
            return follow_ups.jobs >= capacity || follow_ups.bytes + more > QUEUED_BYTES;
        }
        let queued = queued.saturating_sub(follow_ups.jobs);
        // While all of them have less than one may, nobody's share is looked up.
        let matters = all.jobs + 1 > capacity / 4 || all.bytes + more > QUEUED_BYTES / 4;
        let is_beyond = || self.share(owner).is_beyond(more, all, queued, capacity);
        queued >= capacity || all.bytes + more > QUEUED_BYTES || matters && !owner.is_empty() && is_beyond()
    }

    pub(super) fn accept(&mut self, handler: usize, new: NewJob, is_follow_up: bool, now: Timestamp) {
        let queue = &mut self.handlers[handler];
        let not_before = now.plus(new.delay);
        let spec = JobSpec {
            id: new.id,
            owner: new.owner,
            handler: queue.spec.name.clone(),
            ordering_key: new.ordering_key,
            trace: new.trace,
            tracestate: new.tracestate,
            submitted_at: now,
            timeout: new.timeout.unwrap_or(queue.spec.options.timeout),
            one_line: new.one_line,
        };
        let job = Job {
            payload: Some(new.payload),
            is_follow_up,
            awaited: new.awaited && new.idempotency.is_none(),
            not_before,
            waits_since: not_before,
            ..Job::queued(Arc::new(spec))
        };
        queue.figures.submitted += 1;
        queue.count_status(&job, true);
        queue.count_live(&job, true);
        let lane = self.lane_for(handler, job.record.spec.ordering_key.as_deref());
        let entry = Entry::new(job, handler, lane, new.instance);
        let mut evicts = false;
        if let Some(Idempotency { key, fingerprint }) = new.idempotency {
            let JobSpec { owner, handler, .. } = &*entry.job.record.spec;
            let scope = (owner.clone(), handler.clone(), key);
            evicts = self.idempotency.bind(scope, new.id, fingerprint, now, &self.jobs);
        }
        self.jobs.insert(new.id, Box::new(entry));
        if evicts {
            self.note(Level::Warn, "idempotency.evicted", new.id, "more than reply.idempotency_keys");
        }
        self.note(Level::Debug, "queue.pushed", new.id, "");
        self.submissions.insert((now, new.id));
        self.enqueue(lane, new.id, now);
    }

    /// Enters a queued job at the tail of its lane.
    pub(super) fn enqueue(&mut self, lane: u64, id: JobId, now: Timestamp) {
        self.last_number += 1;
        let order = self.last_number;
        self.jobs.entry(id).and_modify(|entry| entry.job.order = order);
        self.touch(id);
        self.lanes.entry(lane).and_modify(|lane| match is_off(Control::LaneOrder) {
            false => lane.jobs.push_back(id),
            true => lane.jobs.push_front(id),
        });
        self.make_ready(lane, now);
    }

    /// The lane of the handler's jobs with this key; a job of a handler without ordering is one by itself.
    pub(super) fn lane_for(&mut self, handler: usize, key: Option<&str>) -> u64 {
        let queue = &self.handlers[handler];
        let is_ordered = queue.spec.options.ordering != Ordering::None;
        let map: Option<Arc<str>> = is_ordered.then(|| Arc::from(state_map(&queue.spec.name, key)));
        self.lane_of(handler, map)
    }

    /// The lane of this state map, or a new one.
    pub(super) fn lane_of(&mut self, handler: usize, map: Option<Arc<str>>) -> u64 {
        let queue = &mut self.handlers[handler];
        if let Some(&lane) = map.as_ref().and_then(|map| self.ordered_lanes.get(map)) {
            return lane;
        }
        self.last_number += 1;
        let number = self.last_number;
        queue.figures.lanes += 1;
        self.ordered_lanes.extend(map.clone().map(|map| (map, number)));
        let jobs = VecDeque::with_capacity(1);
        self.lanes.insert(number, Lane { handler, jobs, map, ..Lane::default() });
        number
    }

    /// Puts the lane into its handler's ready set if it belongs there, takes it out if not, and removes a
    /// lane with neither jobs nor state.
    pub(super) fn make_ready(&mut self, number: u64, now: Timestamp) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        let queue = &mut self.handlers[lane.handler];
        let can_run = lane.lease.is_none() && !lane.parked;
        let head = lane.jobs.front().filter(|_| can_run).and_then(|id| self.jobs.get(id));
        let Some(head) = head else {
            if let Some(place) = lane.ready.take() {
                queue.ready.remove(&place);
            }
            let has_state = lane.map.as_ref().is_some_and(|map| self.maps.contains(map));
            if lane.jobs.is_empty() && lane.lease.is_none() && !has_state {
                if let Some(map) = &lane.map {
                    self.ordered_lanes.remove(map);
                }
                queue.figures.lanes -= 1;
                self.lanes.remove(&number);
            }
            return;
        };
        if let Some(place) = lane.ready {
            // Ready before: it keeps its place in the order, unless another head has another time.
            if place.0 >= head.job.not_before && (place.0 <= now || place.0 == head.job.not_before) {
                return;
            }
            queue.ready.remove(&place);
        }
        self.last_number += 1;
        let place = (head.job.not_before.max(now), self.last_number);
        lane.ready = Some(place);
        queue.ready.insert(place, number);
        let group = queue.spec.group;
        if !queue.figures.paused && !self.signals.groups.contains(&group) {
            self.signals.groups.push(group);
        }
    }

    pub(super) fn note(&mut self, level: Level, event: &'static str, job: JobId, cause: &'static str) {
        self.tell(level, event, job, cause, None);
    }

    /// A delivery has come to nothing: the job is to run again.
    pub(super) fn retried(&mut self, job: JobId, cause: &'static str, reason: &str, now: Timestamp) {
        self.note(Level::Debug, "queue.redelivered", job, cause);
        self.tell(Level::Info, "job.retried", job, cause, Some((reason, now)));
    }

    pub(super) fn failed(&mut self, job: JobId, error: &JobError, now: Timestamp) {
        self.tell(Level::Warn, "job.failed", job, error.word(), Some((error.reason(), now)));
    }

    fn tell(
        &mut self,
        level: Level,
        event: &'static str,
        job: JobId,
        cause: &'static str,
        failure: Option<(&str, Timestamp)>,
    ) {
        if level <= self.log_level
            && let Some(entry) = self.jobs.get(&job)
        {
            let started_at = |now| entry.job.record.started_at.unwrap_or(now);
            let delivery = failure.map(|(reason, now)| Delivery {
                number: entry.job.delivery,
                took: now.since(started_at(now)),
                reason: reason.to_owned(),
            });
            let spec = entry.job.record.spec.clone();
            self.signals.notices.push(Notice { level, event, spec, cause, delivery });
        }
    }
}
