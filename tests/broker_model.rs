//! The memory broker under random schedules, step by step against a naive model of the laws.
//!
//! A schedule is a seed. One that fails prints its seed; `COFFERDAM_SEED=n` replays it alone, and
//! `COFFERDAM_SCHEDULES=n` runs more of them. What is compared after each operation: its answer, every job's
//! status and deliveries, the ends told, what is revoked, the figures, how many entries are kept, and that
//! everybody who could do something was woken; and the broker's own indices must agree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cofferdam::clock::Timestamp;
use cofferdam::config::{Config, Retain};
use cofferdam::entropy::Entropy;
use cofferdam::handler::{HandlerSpec, Retry};
use cofferdam::job::{
    Change, Effects, FollowUp, InstanceId, JobId, JobStatus, Outcome, Payload, Trace, Version,
};
use cofferdam::memory::broker::{Broker, ConsumerId};
use cofferdam::ports::{
    Commit, Idempotency, Lease, LeaseId, NewJob, OfLease, Requests, Rules, StateAt, Submitted, Viewer,
};
use cofferdam::problem::{Code, JobError};
use cofferdam::{HandlerOptions, OnDead};

use support::jobs::plain;
use support::model::{Accepted, Figures, Held, Job, Kind, Model};
use support::seeds::{TellSeed, seeds};

mod support {
    pub mod jobs;
    pub mod model;
    pub mod seeds;
}

const SCHEDULES: u64 = 300;
const OPERATIONS: usize = 200;
const INSTANCE: InstanceId = InstanceId(1);
const START: Timestamp = Timestamp(1_700_000_000_000_000);
const MAX_DELIVERIES: u32 = 3;
/// Fewer than the leases that an executor has at times.
const WORKERS: usize = 3;

const KINDS: [Kind; 6] = [
    Kind { name: "free", ordered: false, parks: false, max_deliveries: MAX_DELIVERIES, concurrency: 0 },
    Kind { name: "narrow", ordered: false, parks: false, max_deliveries: MAX_DELIVERIES, concurrency: 2 },
    Kind { name: "serial", ordered: true, parks: false, max_deliveries: MAX_DELIVERIES, concurrency: 0 },
    Kind { name: "keyed", ordered: true, parks: false, max_deliveries: 2, concurrency: 0 },
    Kind { name: "once", ordered: true, parks: false, max_deliveries: 1, concurrency: 0 },
    Kind { name: "parking", ordered: true, parks: true, max_deliveries: 2, concurrency: 3 },
];

#[test]
fn random_schedules_agree_with_the_naive_model() {
    let seeds = &seeds(SCHEDULES);
    let parts: u64 = 4;
    std::thread::scope(|scope| {
        for part in 0..parts {
            scope.spawn(move || seeds.clone().filter(|seed| seed % parts == part).for_each(run));
        }
    });
}

/// Of many the caches have none, so they go together; of few each goes by itself. Never is there one too many.
#[test]
fn beyond_their_number_a_256th_of_the_records_goes_at_once_oldest_first() {
    for (most, together) in [(1, 1), (10, 1), (255, 1), (256, 2), (1_000, 4)] {
        let mut rules = Rules::from_config(&Config::default());
        rules.retain.failed_records = most;
        let handlers = vec![HandlerSpec::new("free", 0, HandlerOptions::default())];
        let mut broker = Broker::new(rules, handlers, vec![1], Entropy::Seeded(1));
        let id = |number: usize| JobId((number as u128).to_be_bytes());
        let mut oldest = 0;
        for number in 0..3 * most {
            assert_eq!(broker.submit(plain(id(number), "free"), START), Submitted::New);
            broker.cancel(&Viewer::service(), id(number), START);
            oldest += if number + 1 - oldest > most { together } else { 0 };
            let is_kept = |number| broker.record(&Viewer::service(), id(number), START).is_some();
            let kept: Vec<usize> =
                (oldest.saturating_sub(together)..=number).filter(|number| is_kept(*number)).collect();
            assert_eq!(kept, (oldest..=number).collect::<Vec<_>>(), "at most {most} are kept");
        }
        broker.check_invariants();
    }
}

fn run(seed: u64) {
    let _told = TellSeed(seed);
    let mut schedule = Schedule::new(seed);
    for _ in 0..OPERATIONS {
        schedule.operate();
    }
    schedule.drain();
}

struct Schedule {
    broker: Broker,
    model: Model,
    random: Entropy,
    last_id: u64,
    /// Leases that were given at any time, for commits that come late.
    given: Vec<(ConsumerId, Lease)>,
    /// Commits that were made, to be repeated.
    made: Vec<(ConsumerId, Commit)>,
    /// Executors that are lost.
    gone: Vec<ConsumerId>,
    /// Those whose bell has rung since their last step.
    rung: BTreeSet<ConsumerId>,
    operations: usize,
}

impl Schedule {
    fn new(seed: u64) -> Schedule {
        let spec = |kind: &Kind| {
            let options = match (kind.name, kind.ordered) {
                (_, false) => HandlerOptions::default(),
                ("keyed", true) => HandlerOptions::keyed("/key"),
                (_, true) => HandlerOptions::serial(),
            };
            let on_dead = if kind.parks { OnDead::Park } else { OnDead::Continue };
            let max_deliveries = (kind.max_deliveries != MAX_DELIVERIES).then_some(kind.max_deliveries);
            let options =
                HandlerOptions { concurrency: kind.concurrency, max_deliveries, on_dead, ..options };
            HandlerSpec::new(kind.name, 0, options)
        };
        let rules = Rules {
            capacity: 60,
            visibility: Duration::from_secs(5),
            max_deliveries: MAX_DELIVERIES,
            retry: Retry { base_ms: 500, max_ms: 2_000 },
            result_ttl: Duration::from_secs(20),
            awaited_ttl: Duration::from_secs(20),
            failed_ttl: Duration::from_secs(20),
            retain: Retain {
                records: 1_000_000,
                bytes: 1 << 40,
                failed_records: 1_000_000,
                failed_bytes: 1 << 40,
            },
            idempotency_ttl: Duration::from_secs(25),
            idempotency_keys: 1_000_000,
            context_ttl: Duration::from_secs(60),
            lane_state_max: 1 << 20,
            states_max: 1 << 30,
            max_payload: 1 << 20,
            exports_traces: false,
            grace: Duration::from_secs(5),
        };
        let model = Model {
            kinds: KINDS.to_vec(),
            capacity: rules.capacity,
            visibility: rules.visibility,
            backoff: (rules.retry.backoff(1), rules.retry.backoff(30)),
            ttl: rules.result_ttl,
            key_ttl: rules.idempotency_ttl,
            now: START,
            ..Model::default()
        };
        let mut broker =
            Broker::new(rules, KINDS.iter().map(spec).collect(), vec![WORKERS], Entropy::Seeded(!seed));
        broker.subscribe(INSTANCE);
        let mut schedule = Schedule {
            broker,
            model,
            random: Entropy::Seeded(seed),
            last_id: 0,
            given: Vec::new(),
            made: Vec::new(),
            gone: Vec::new(),
            rung: BTreeSet::new(),
            operations: 0,
        };
        schedule.connect();
        schedule.connect();
        schedule
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.random.up_to(bound as u64 - 1)).expect("it is small")
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn pick<T: Clone>(&mut self, list: &[T]) -> Option<T> {
        if list.is_empty() { None } else { Some(list[self.below(list.len())].clone()) }
    }

    fn any_job(&mut self) -> JobId {
        let ids: Vec<JobId> = self.model.jobs.iter().map(|job| job.id).collect();
        self.pick(&ids).unwrap_or(JobId([0xEE; 16]))
    }

    fn any_consumer(&mut self) -> ConsumerId {
        let (id, _) = self.pick(&self.model.consumers.clone()).expect("there is always one");
        id
    }

    fn operate(&mut self) {
        match self.below(100) {
            0..25 => self.submit(),
            25..70 => self.step(),
            70..75 => self.cancel(),
            75..80 => self.retry(),
            80..84 => self.pause(),
            84..92 => self.pass(),
            92..94 => self.release(),
            94..96 => self.extend(),
            96..97 => self.connect(),
            97..98 => self.hear_of_the_dead(),
            _ => self.lose_an_executor(),
        }
        self.compare();
    }

    fn connect(&mut self) {
        if self.model.consumers.len() < 4 {
            self.model.consumers.push((self.broker.connect(0), 0));
        }
    }

    fn lose_an_executor(&mut self) {
        let id = self.any_consumer();
        self.broker.disconnect(id, self.model.now);
        self.model.die(id);
        self.gone.push(id);
        if self.model.consumers.is_empty() {
            self.connect();
        }
    }

    fn new_job(&mut self) -> NewJob {
        self.last_id += 1;
        let id = u128::from(self.last_id).to_be_bytes();
        let kind = KINDS[self.below(KINDS.len())];
        let key = ["a", "b", "c"][self.below(3)];
        let delays = [0, 0, 0, 0, 0, 1, 700, 4_000];
        let delay = Duration::from_millis(delays[self.below(delays.len())]);
        let fingerprint = [u8::from(self.one_in(4)); 32];
        let idempotency = self.one_in(6).then(|| Idempotency { key: Arc::from(key), fingerprint });
        NewJob {
            ordering_key: (kind.name == "keyed").then(|| Arc::from(key)),
            payload: Payload::json(self.last_id.to_string().into_bytes()),
            trace: Trace { id, span: [1; 8], ..Trace::default() },
            delay,
            idempotency,
            instance: INSTANCE,
            ..plain(JobId(id), kind.name)
        }
    }

    fn submit(&mut self) {
        // In bursts, so that runs are long at times.
        for _ in 0..if self.one_in(8) { 20 } else { 2 } {
            let new = self.new_job();
            let expected = self.model.submit(&new);
            let answer = match self.broker.submit(new, self.model.now) {
                Submitted::New => Accepted::New,
                Submitted::Existing(record) => Accepted::Existing(record.spec.id),
                Submitted::Refused(refusal) => Accepted::Refused(refusal),
            };
            assert_eq!(answer, expected);
        }
    }

    /// What an executor that is lost had still to say changes nothing.
    fn hear_of_the_dead(&mut self) {
        let Some(id) = self.pick(&self.gone.clone()) else { return };
        let own: Vec<Commit> = self.made.iter().filter(|(of, _)| *of == id).map(|(_, c)| c.clone()).collect();
        let commits: Vec<Commit> = self.pick(&own).into_iter().collect();
        let releases: Vec<LeaseId> = self.recent().into_iter().collect();
        let said: Vec<OfLease> = commits.iter().map(of_lease).collect();
        for commit in &commits {
            assert!(!self.model.commit(id, commit), "its leases ended with it");
        }
        let step =
            self.broker.step(id, Requests { commits, releases, ..Requests::default() }, 4, self.model.now);
        self.broker.extend(id, self.model.now);
        assert_eq!((step.fenced, step.leases.len(), step.revoked.len()), (said, 0, 0));
    }

    fn step(&mut self) {
        let id = self.any_consumer();
        let commits = self.commits(id);
        let releases = if self.one_in(8) { self.releases(id, &commits) } else { Vec::new() };
        let room = self.below(7);
        self.step_with(id, Requests { commits, releases, ..Requests::default() }, room);
    }

    fn step_with(&mut self, id: ConsumerId, requests: Requests, room: usize) {
        self.made.extend(requests.commits.iter().map(|commit| (id, commit.clone())));
        self.hear_bells();
        self.rung.remove(&id);
        let mut expected = Vec::new();
        for commit in &requests.commits {
            if !self.model.commit(id, commit) {
                expected.push(of_lease(commit));
            }
        }
        for lease in &requests.releases {
            self.model.release(id, *lease);
        }
        let step = self.broker.step(id, requests, room, self.model.now);
        assert_eq!(step.fenced, expected, "fenced");
        self.learn_follow_ups();
        let mut told: Vec<_> = step.revoked.iter().map(|revoked| (id, revoked.lease, revoked.job)).collect();
        let mut expected: Vec<_> = self.model.revoked.extract_if(.., |(to, _, _)| *to == id).collect();
        told.sort();
        expected.sort();
        assert_eq!(told, expected, "revoked");
        let claimed = step.leases.len();
        for lease in step.leases {
            self.given.push((id, lease.clone()));
            self.model.leased(id, lease);
        }
        self.model.stepped(id, room, claimed);
    }

    /// Their ids are the broker's own; there is at most one a step, so that it is clear which is which.
    fn learn_follow_ups(&mut self) {
        let unknown: Vec<JobId> =
            self.broker.unfinished().into_iter().filter(|id| self.model.job(*id).is_none()).collect();
        let expected = std::mem::take(&mut self.model.follow_ups);
        assert_eq!(unknown.len(), expected.len(), "follow-ups come with their commit, or not at all");
        for (id, new) in unknown.into_iter().zip(expected) {
            self.model.accept(&NewJob { id, ..new });
            self.model.known_follow_ups.push(id);
        }
    }

    /// Outcomes of some of this consumer's runs: mostly right, sometimes wrong in one way.
    fn commits(&mut self, id: ConsumerId) -> Vec<Commit> {
        let mine: Vec<Held> = self.model.held.iter().filter(|held| held.consumer == id).cloned().collect();
        let mut commits = Vec::new();
        let mut may_follow_up = true;
        for held in mine {
            if self.one_in(3) {
                continue;
            }
            let mut version = self.model.lane(&held.lane).map_or(Version::default(), |lane| lane.version);
            let jobs = held.left.clone();
            for job in jobs.iter().take(self.below(jobs.len()) + 1) {
                let leased = held.lease.jobs.iter().find(|l| l.spec.id == *job).expect("it was leased");
                let is_ordered = held.lease.state != StateAt::Stateless;
                let outcome = self.outcome(is_ordered, &mut may_follow_up);
                let changes = matches!(&outcome, Outcome::Succeeded(_, effects) if !effects.state.is_empty());
                let ends_run = !matches!(outcome, Outcome::Succeeded(..) | Outcome::Failed(_));
                commits.push(Commit {
                    lease: held.lease.id,
                    job: *job,
                    delivery: leased.delivery,
                    builds_on: version,
                    outcome,
                });
                version = if changes { Version(leased.fence) } else { version };
                if ends_run {
                    break;
                }
            }
        }
        self.spoil(id, &mut commits);
        commits
    }

    fn outcome(&mut self, is_ordered: bool, may_follow_up: &mut bool) -> Outcome {
        match self.below(20) {
            0 => Outcome::Failed(JobError::new(Code::HandlerFailed, "no")),
            1..3 => Outcome::Retry("later".into(), None),
            3 => Outcome::Crashed("oops".into()),
            4 => Outcome::TimedOut(String::new()),
            _ => {
                let mut effects = Effects::default();
                if is_ordered && !self.one_in(3) {
                    // One key stays, so that a lane that has a state keeps one.
                    let value = |text: &str| Some(Arc::from(text.as_bytes()));
                    let count = self.last_id.to_string();
                    effects.state.push(Change { key: Arc::from("stays"), value: value(&count) });
                    let coming = if self.one_in(2) { value("v") } else { None };
                    effects.state.push(Change { key: Arc::from("comes and goes"), value: coming });
                }
                if *may_follow_up && self.one_in(10) {
                    *may_follow_up = false;
                    let to_key = self.one_in(2);
                    effects.follow_ups.push(FollowUp {
                        handler: Arc::from(if to_key { "keyed" } else { "serial" }),
                        ordering_key: to_key.then(|| Arc::from("a")),
                        delay: Duration::from_millis(if self.one_in(3) { 300 } else { 0 }),
                        payload: Payload::json(*b"\"follow-up\""),
                    });
                }
                Outcome::Succeeded(Payload::json(*b"1"), effects)
            }
        }
    }

    /// What a confused, slow or hostile executor might send.
    fn spoil(&mut self, id: ConsumerId, commits: &mut Vec<Commit>) {
        if !self.one_in(4) {
            return;
        }
        let others: Vec<Held> = self.model.held.iter().filter(|held| held.consumer != id).cloned().collect();
        let mine: Vec<Held> = self.model.held.iter().filter(|held| held.consumer == id).cloned().collect();
        let place = if commits.is_empty() { 0 } else { self.below(commits.len()) };
        let spoiled = commits.get_mut(place);
        match (self.random.up_to(8), spoiled) {
            (0, Some(commit)) => commit.lease.0 ^= 1 << 40,
            (1, Some(commit)) => commit.delivery += 1,
            (2, Some(commit)) => commit.builds_on = Version(commit.builds_on.0 + 1),
            (3, Some(_)) => commits.reverse(),
            (4, Some(_)) => drop(commits.remove(place)),
            (5, Some(_)) => {
                // Without its effects, so that a step still has one follow-up at most.
                let outcome = Outcome::Succeeded(Payload::json(*b"2"), Effects::default());
                commits.push(Commit { outcome, ..commits[place].clone() });
            }
            // Under a live lease of its own, which is another lane's.
            (6, Some(commit)) => commit.lease = self.pick(&mine).expect("it has said something").lease.id,
            // All of it is right, but it is another's to say.
            (7, _) => commits.extend(self.pick(&others).map(|held| self.right(&held))),
            _ => {
                let late = self.pick(&self.given.clone());
                let repeated = self.pick(&self.made.clone());
                if let Some((_, lease)) = late {
                    let job = &lease.jobs[self.below(lease.jobs.len())];
                    commits.push(Commit {
                        lease: lease.id,
                        job: job.spec.id,
                        delivery: job.delivery,
                        builds_on: Version::default(),
                        outcome: Outcome::Succeeded(Payload::json(*b"\"late\""), Effects::default()),
                    });
                }
                commits.extend(repeated.filter(|(of, _)| *of == id).map(|(_, commit)| Commit {
                    outcome: Outcome::Failed(JobError::new(Code::HandlerFailed, "repeated")),
                    ..commit
                }));
            }
        }
    }

    /// The commit that holds, if the lease's own executor makes it.
    fn right(&self, held: &Held) -> Commit {
        let leased = held.lease.jobs.iter().find(|job| job.spec.id == held.left[0]).expect("it was leased");
        Commit {
            lease: held.lease.id,
            job: held.left[0],
            delivery: leased.delivery,
            builds_on: self.model.lane(&held.lane).map_or(Version::default(), |lane| lane.version),
            outcome: Outcome::Succeeded(Payload::json(*b"\"stolen\""), Effects::default()),
        }
    }

    fn cancel(&mut self) {
        let id = self.any_job();
        let expected = self.model.cancel(id);
        let record = self.broker.cancel(&Viewer::anonymous(), id, self.model.now);
        assert_eq!(record.map(|record| record.status), expected);
    }

    fn retry(&mut self) {
        let id = self.any_job();
        let expected = self.model.retry(id);
        let answer = self.broker.retry(&Viewer::anonymous(), id, self.model.now);
        assert_eq!(answer.map(|result| result.map(drop)), expected);
    }

    fn pause(&mut self) {
        let name = KINDS[self.below(KINDS.len())].name;
        let paused = self.one_in(2);
        assert!(self.broker.pause(name, paused));
        self.model.pause(name, paused);
    }

    fn pass(&mut self) {
        let times = [1, 10, 25, 100, 400, 1_000, 3_000, 6_000];
        let time = Duration::from_millis(times[self.below(times.len())]);
        self.tick_after(time);
    }

    fn tick_after(&mut self, time: Duration) {
        // Nobody is woken for the room that this makes: who has not renewed hears of it with its next commit,
        // and looks.
        self.rung.extend(self.model.pass(time));
        self.broker.tick(self.model.now);
    }

    fn release(&mut self) {
        let id = self.any_consumer();
        let releases = self.releases(id, &[]);
        let room = self.below(3);
        self.step_with(id, Requests { releases, ..Requests::default() }, room);
    }

    /// What an executor may give back: a run that it has just said something of, one that is over or
    /// another's, one that there never was, and one of them twice.
    fn releases(&mut self, id: ConsumerId, commits: &[Commit]) -> Vec<LeaseId> {
        let mine: Vec<Held> = self.model.held.iter().filter(|held| held.consumer == id).cloned().collect();
        let candidates = [
            self.pick(commits).map(|commit| commit.lease),
            self.pick(&mine).map(|held| held.lease.id),
            self.recent(),
            Some(LeaseId(self.random.up_to(u64::MAX))),
        ];
        let mut releases: Vec<LeaseId> =
            candidates.into_iter().flatten().filter(|_| self.one_in(2)).collect();
        releases.extend(self.pick(&releases.clone()).filter(|_| self.one_in(4)));
        releases
    }

    /// A lease that was given not long ago, to anybody.
    fn recent(&mut self) -> Option<LeaseId> {
        let recent = self.given[self.given.len().saturating_sub(6)..].to_vec();
        self.pick(&recent).map(|(_, lease)| lease.id)
    }

    fn extend(&mut self) {
        let id = self.any_consumer();
        self.broker.extend(id, self.model.now);
        self.model.extend(id);
    }

    /// Takes note of whose bell rings.
    fn hear_bells(&mut self) {
        let signals = self.broker.take_signals();
        self.rung.extend(signals.consumers);
        if signals.groups.contains(&0) {
            self.rung.extend(self.model.consumers.iter().map(|(id, _)| *id));
        }
    }

    fn compare(&mut self) {
        self.operations += 1;
        self.broker.check_invariants();
        let now = self.model.now;
        self.hear_bells();
        self.model.check_nobody_oversleeps(&self.rung);
        self.compare_figures();
        let ends = self.broker.take_ends(INSTANCE, usize::MAX, u64::MAX);
        assert!(!ends.lost, "none was lost");
        let mut told: Vec<_> = ends.ended.iter().map(|end| (end.job, end.finished.status)).collect();
        let mut expected = std::mem::take(&mut self.model.ended);
        // Leases that run out at one time do so in no order.
        told.sort_by_key(|(id, _)| *id);
        expected.sort_by_key(|(id, _)| *id);
        assert_eq!(told, expected, "each life ends once, and is told once");
        let [jobs, lanes, _, leases, keys, _] = self.broker.sizes();
        assert_eq!([jobs, lanes, leases, keys], self.model.sizes(), "jobs, lanes, leases, keys");
        for job in &self.model.jobs {
            let seldom = self.operations.is_multiple_of(8);
            if job.status.is_terminal() && !seldom {
                continue;
            }
            let record = self.broker.record(&Viewer::anonymous(), job.id, now).expect("it is kept");
            assert_eq!((record.status, record.deliveries), (job.status, job.deliveries), "{job:?}");
            assert_eq!(record.finished.map(|finished| finished.status), job.ended_at.map(|_| job.status));
        }
    }

    fn compare_figures(&self) {
        let stats = self.broker.stats(&[Arc::from("group")], self.model.now);
        let figures = Figures { redelivered: stats.redelivered, dead: stats.dead, late: stats.late };
        assert_eq!(figures, self.model.figures);
        let busy: usize = self.model.consumers.iter().map(|(id, _)| self.model.live(*id).min(WORKERS)).sum();
        assert_eq!((stats.consumers, stats.busy), (vec![self.model.consumers.len()], vec![busy]));
        for handler in stats.handlers {
            let count = |status| {
                let is = |job: &&Job| *job.kind.name == *handler.handler && job.status == status;
                self.model.jobs.iter().filter(is).count()
            };
            let expected = (count(JobStatus::Queued), count(JobStatus::Running));
            assert_eq!((handler.queued, handler.running), expected, "{}", handler.handler);
        }
    }

    /// Nothing hinders any more: everything must come to its end.
    fn drain(&mut self) {
        for kind in KINDS {
            assert!(self.broker.pause(kind.name, false));
            self.model.pause(kind.name, false);
        }
        for _ in 0..1_000 {
            self.tick_after(Duration::from_millis(500));
            for lane in self.model.lanes.clone().iter().filter(|lane| lane.parked) {
                assert_eq!(self.model.cancel(lane.jobs[0]), Some(JobStatus::Dead));
                let record = self.broker.cancel(&Viewer::anonymous(), lane.jobs[0], self.model.now);
                assert_eq!(record.map(|record| record.status), Some(JobStatus::Dead));
            }
            for (id, _) in self.model.consumers.clone() {
                let held: Vec<Held> = self.model.held.iter().filter(|h| h.consumer == id).cloned().collect();
                let finish = |held: &Held| {
                    let version = self.model.lane(&held.lane).map_or(Version::default(), |lane| lane.version);
                    let delivery: BTreeMap<JobId, u32> =
                        held.lease.jobs.iter().map(|job| (job.spec.id, job.delivery)).collect();
                    let commit = move |job: &JobId| Commit {
                        lease: held.lease.id,
                        job: *job,
                        delivery: delivery[job],
                        builds_on: version,
                        outcome: Outcome::Succeeded(Payload::json(*b"1"), Effects::default()),
                    };
                    held.left.iter().map(commit).collect::<Vec<_>>()
                };
                let commits = held.iter().flat_map(finish).collect();
                self.step_with(id, Requests { commits, ..Requests::default() }, 4);
            }
            self.compare();
            if self.broker.unfinished().is_empty() {
                break;
            }
        }
        assert_eq!(self.broker.unfinished(), [], "an accepted job reaches its end");
        assert!(self.model.jobs.iter().all(|job| job.status.is_terminal()));
        self.tick_after(Duration::from_secs(3_600));
        self.compare();
        let states = self.model.lanes.len();
        assert_eq!(
            self.broker.sizes(),
            [0, states, states, 0, 0, states],
            "only lanes with a state are kept"
        );
    }
}

fn of_lease(commit: &Commit) -> OfLease {
    OfLease { lease: commit.lease, job: commit.job }
}
