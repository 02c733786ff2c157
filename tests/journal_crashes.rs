//! A journal on a disk that loses what was not synced, tears what it writes, fails and fills up: what is read back after each crash
//! is what the broker knew, as far as that was answered.
//!
//! A schedule is a seed. One that fails prints its seed; `COFFERDAM_SEED=n` replays it alone, and `COFFERDAM_SCHEDULES=n` runs
//! more of them. The reference is the memory broker itself, written whole after each turn.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cofferdam::clock::Timestamp;
use cofferdam::entropy::Entropy;
use cofferdam::job::{Change, Effects, FollowUp, JobId, Outcome, Payload, Trace, Version};
use cofferdam::journal::facts::{Job, read_all};
use cofferdam::journal::image::Map;
use cofferdam::journal::{Failure, Image, Log};
use cofferdam::memory::broker::{Broker, ConsumerId};
use cofferdam::ports::{Commit, Idempotency, Lease, NewJob, Requests, StateAt, Viewer};
use cofferdam::problem::{Code, JobError};

use support::conformance::{START, Settings, plain};
use support::journaled::{SEGMENT_BYTES, open};
use support::seeds::{TellSeed, seeds};
use support::sim_disk::SimDisk;

mod support {
    pub mod seeds;
    #[allow(dead_code, unused_macros, reason = "the laws themselves are not run here")]
    #[macro_use]
    pub mod conformance;
    pub mod journaled;
    pub mod sim_disk;
}

const SCHEDULES: u64 = 10_000;
const TURNS: usize = 40;
const HANDLERS: [&str; 7] = ["free", "narrow", "serial", "serial2", "keyed", "once", "parking"];

#[test]
fn what_is_read_back_after_a_crash_is_what_was_answered() {
    let seeds = &seeds(SCHEDULES);
    let parts: u64 = 4;
    let seen = std::thread::scope(|scope| {
        let part = |part| {
            scope
                .spawn(move || seeds.clone().filter(|seed| seed % parts == part).map(run).collect::<Vec<_>>())
        };
        let parts: Vec<_> = (0..parts).map(part).collect();
        parts.into_iter().flat_map(|part| part.join().expect("each schedule holds")).collect::<Vec<_>>()
    });
    let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>();
    println!(
        "{} schedules: {} turns, {} crashes of which {} lost a turn, {} times no room, {} failed, {} segments, {} jobs",
        seen.len(),
        sum(|seen| seen.turns),
        sum(|seen| seen.crashes),
        sum(|seen| seen.lost),
        sum(|seen| seen.full),
        sum(|seen| seen.failed),
        sum(|seen| seen.segments),
        sum(|seen| seen.jobs),
    );
    if seeds.start == 0 && seeds.end >= SCHEDULES {
        let all: [fn(&Seen) -> u64; 5] = [
            |seen| seen.crashes,
            |seen| seen.lost,
            |seen| seen.full,
            |seen| seen.failed,
            |seen| seen.segments,
        ];
        assert!(all.into_iter().all(|of| sum(of) > 100), "each of it happens");
    }
}

#[derive(Default)]
struct Seen {
    turns: u64,
    crashes: u64,
    lost: u64,
    full: u64,
    failed: u64,
    segments: u64,
    jobs: u64,
}

fn run(seed: u64) -> Seen {
    let _told = TellSeed(seed);
    let mut schedule = Schedule::new(seed);
    for _ in 0..TURNS {
        for _ in 0..1 + schedule.below(6) {
            schedule.act();
        }
        schedule.turn();
    }
    schedule.seen
}

/// A map's entries, version and expiry.
type Sorted = (BTreeMap<Arc<str>, Arc<[u8]>>, u64, Option<Timestamp>);

/// How things stand, comparably: what time ends by itself is left out.
#[derive(Clone, PartialEq, Debug)]
struct Stand {
    jobs: BTreeMap<JobId, Box<Job>>,
    maps: BTreeMap<Arc<str>, Sorted>,
    keys: BTreeMap<String, (JobId, Timestamp)>,
    paused: Vec<Arc<str>>,
}

impl Stand {
    fn of(image: Image) -> Stand {
        let keys = image.keys.iter().map(|(scope, key)| (format!("{scope:?}"), (key.job, key.until)));
        let keys = keys.collect();
        let entries = |map: Map| (map.entries.into_iter().collect(), map.version, map.expires_at);
        let maps = image.maps.into_iter().map(|(name, map)| (name, entries(map))).collect();
        let mut paused: Vec<_> =
            image.paused.into_iter().filter(|(_, paused)| *paused).map(|of| of.0).collect();
        paused.sort();
        Stand { maps, keys, paused, jobs: image.jobs.into_iter().collect() }
    }

    /// The same without maps whose time is over.
    fn at(mut self, now: Timestamp) -> Stand {
        self.maps.retain(|_, (.., until)| until.is_none_or(|until| until > now));
        self
    }
}

struct Schedule {
    entropy: Entropy,
    settings: Settings,
    disk: SimDisk,
    log: Log,
    broker: Broker,
    now: Timestamp,
    executors: Vec<ConsumerId>,
    leases: Vec<(ConsumerId, Lease, usize, Version)>,
    last_id: u64,
    ids: Vec<JobId>,
    /// What may be found: how it stood when the disk had all of it for certain, and after each turn since.
    possible: Vec<Stand>,
    syncs_turns: bool,
    seen: Seen,
}

impl Schedule {
    fn new(seed: u64) -> Schedule {
        let settings = Settings {
            retry_base: Duration::from_secs(1),
            capacity: 30,
            visibility: Duration::from_secs(20),
            result_ttl: Duration::from_secs(100),
            awaited_ttl: Duration::from_secs(10),
            failed_ttl: Duration::from_secs(60),
            idempotency_ttl: Duration::from_secs(50),
            ..Settings::default()
        };
        let disk = SimDisk::default();
        let syncs_turns = !seed.is_multiple_of(4);
        let (log, image, _) = open(&disk).expect("an empty disk");
        let broker = broker(&settings, image, START, seed);
        let executors = Vec::new();
        let possible = vec![Stand::of(Image::default())];
        let mut schedule = Schedule {
            entropy: Entropy::Seeded(seed),
            settings,
            disk,
            log,
            broker,
            now: START,
            executors,
            leases: Vec::new(),
            last_id: 0,
            ids: Vec::new(),
            possible,
            syncs_turns,
            seen: Seen::default(),
        };
        schedule.executors = (0..3).map(|_| schedule.broker.connect(0)).collect();
        schedule
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.entropy.up_to(end as u64 - 1)).expect("a small number")
    }

    fn any_job(&mut self) -> Option<JobId> {
        let count = self.ids.len();
        (count > 0).then(|| self.below(count)).map(|index| self.ids[index])
    }

    fn act(&mut self) {
        match self.below(16) {
            0..=5 => self.submit(),
            6..=8 => self.claim(),
            9..=11 => self.finish(),
            12 => {
                let (index, now) = (self.below(3), self.now);
                self.broker.disconnect(self.executors[index], now);
                self.leases.retain(|(executor, ..)| *executor != self.executors[index]);
                self.executors[index] = self.broker.connect(0);
            }
            13 => {
                let Some(id) = self.any_job() else { return };
                let (viewer, now) = (Viewer::anonymous(), self.now);
                if self.below(2) == 0 {
                    self.broker.cancel(&viewer, id, now);
                } else {
                    self.broker.retry(&viewer, id, now);
                }
            }
            14 => {
                let (handler, paused) = (HANDLERS[self.below(HANDLERS.len())], self.below(3) == 0);
                self.broker.pause(handler, paused);
            }
            _ => {
                let seconds = [1, 3, 25][self.below(3)];
                self.now = self.now.plus(Duration::from_secs(seconds));
                self.broker.tick(self.now);
            }
        }
        self.broker.check_invariants();
    }

    fn submit(&mut self) {
        let handler = HANDLERS[self.below(HANDLERS.len())];
        self.last_id += 1;
        let id = JobId(u128::from(self.last_id).to_be_bytes());
        let mut job = NewJob {
            trace: Trace { id: [self.below(3) as u8 + 1; 16], span: [2; 8], ..Trace::default() },
            ..plain(id, handler)
        };
        if handler == "keyed" {
            job.ordering_key = Some(["a", "b", "c"][self.below(3)].into());
        }
        if self.below(4) == 0 {
            job.delay = Duration::from_secs(2);
        }
        if self.below(3) == 0 {
            let key = ["k1", "k2", "k3"][self.below(3)];
            job.idempotency = Some(Idempotency { key: key.into(), fingerprint: [1; 32] });
        }
        job.awaited = self.below(2) == 0;
        job.payload = Payload::json(vec![b'1'; self.below(300)]);
        if self.below(40) == 0 {
            job.payload = Payload::octets(vec![0; SEGMENT_BYTES as usize + 100]);
        }
        let _ = self.broker.submit(job, self.now);
        self.ids.push(id);
    }

    fn claim(&mut self) {
        let index = self.below(3);
        let executor = self.executors[index];
        let room = self.leases.iter().filter(|(of, ..)| *of == executor).count() + 1;
        self.step(executor, Requests::default(), room);
    }

    fn step(&mut self, executor: ConsumerId, requests: Requests, room: usize) {
        let step = self.broker.step(executor, requests, room, self.now);
        for of in step.fenced.iter().chain(&step.revoked) {
            self.leases.retain(|(_, lease, ..)| lease.id != of.lease);
        }
        for lease in step.leases {
            let version = match lease.state {
                StateAt::Stateless => Version::default(),
                StateAt::Known(version) | StateAt::Whole(version, _) => version,
            };
            self.leases.push((executor, lease, 0, version));
        }
    }

    fn finish(&mut self) {
        if self.leases.is_empty() {
            return;
        }
        let index = self.below(self.leases.len());
        let (executor, lease, at, builds_on) = self.leases.swap_remove(index);
        if self.below(8) == 0 {
            return self.step(executor, Requests { releases: vec![lease.id], ..Requests::default() }, 0);
        }
        let job = lease.jobs[at].clone();
        let is_ordered = !matches!(lease.state, StateAt::Stateless);
        let value = |random: usize| (random > 0).then(|| Arc::from(vec![b'v'; random]));
        let (state, context, follow) = (self.below(60), self.below(40), self.below(4) == 0);
        let change = |key: usize, value| vec![Change { key: format!("key{key}").into(), value }];
        let keys = (self.below(3), self.below(2));
        let effects = Effects {
            state: if is_ordered { change(keys.0, value(state)) } else { Vec::new() },
            context: if context > 20 { change(keys.1, value(context)) } else { Vec::new() },
            follow_ups: if follow {
                let payload = Payload::json(*b"2");
                vec![FollowUp { handler: "free".into(), ordering_key: None, delay: Duration::ZERO, payload }]
            } else {
                Vec::new()
            },
        };
        let (outcome, goes_on) = match self.below(8) {
            0 => (Outcome::Failed(JobError::new(Code::HandlerFailed, "no")), true),
            1 => (Outcome::Retry("later".into(), None), false),
            2 => (Outcome::Crashed("oh".into()), false),
            3 => (Outcome::TimedOut(String::new()), false),
            _ => (Outcome::Succeeded(Payload::json(*b"3"), effects), true),
        };
        let changes = matches!(&outcome, Outcome::Succeeded(_, effects) if !effects.state.is_empty());
        let commit = Commit { lease: lease.id, job: job.spec.id, delivery: job.delivery, builds_on, outcome };
        let builds_on = if changes { Version(job.fence) } else { builds_on };
        if goes_on && at + 1 < lease.jobs.len() {
            self.leases.push((executor, lease, at + 1, builds_on));
        }
        self.step(executor, Requests { commits: vec![commit], ..Requests::default() }, 0);
    }

    /// Writes what has changed. The power may fail, the disk may be full.
    fn turn(&mut self) {
        for _ in 0..8 {
            let thing = self.log.outdated(self.broker.live_bytes() / 4);
            thing.iter().for_each(|thing| self.broker.write_again(thing));
        }
        if self.broker.seen_turn() == self.broker.taken_turns() {
            return;
        }
        let mut facts = self.broker.take_facts();
        let after = self.stand();
        match self.below(12) {
            0 => {
                let operations = self.below(6) as u64;
                self.disk.fail_power_after(operations);
            }
            1 => self.disk.set_capacity(Some(self.disk.used())),
            2 => self.disk.set_capacity(None),
            3 => self.disk.fail_sync_after(self.entropy.up_to(2)),
            _ => {}
        }
        self.seen.turns += 1;
        // What was written before may be synced while this is written.
        let early = (self.below(4) == 0).then(|| self.log.to_sync().expect("the file is there"));
        let early = early.map(|(sync, sequence)| sync().map(|()| sequence)).transpose();
        let early = early.map_err(|error| Failure::Broken(error.to_string()));
        let mut written = early.and_then(|early| {
            self.log.append(self.now, facts.last_fence, &facts.bytes, &mut facts.bases)?;
            early.into_iter().for_each(|sequence| self.log.set_synced(sequence));
            Ok(())
        });
        if let Err(Failure::NoRoom(_)) = written {
            self.seen.full += 1;
            // There is none: or the power fails before there is, or there is some at last.
            if self.below(2) == 0 {
                self.disk.set_capacity(None);
                let bases = &mut facts.bases;
                written = self.log.append(self.now, facts.last_fence, &facts.bytes, bases);
            }
        }
        self.possible.push(after);
        if written.is_ok() && (self.syncs_turns || self.below(3) == 0) {
            written = self.log.sync();
        }
        if written.is_ok() && self.log.is_synced() {
            self.possible.drain(..self.possible.len() - 1);
        }
        if written.is_err() && !self.disk.is_off() && self.below(2) == 0 {
            // A sync has failed, or there is no room, and our process ends: what comes next reads what the kernel still has.
            self.seen.failed += 1;
            self.restart(self.disk.clone());
        } else if written.is_err() || self.disk.is_off() {
            let left = self.disk.crash(&mut self.entropy);
            self.restart(left);
        } else if self.below(20) == 0 {
            // Only our process: all that was written is there.
            self.possible.drain(..self.possible.len() - 1);
            let left = self.disk.kill();
            self.restart(left);
        }
    }

    /// All of it, written whole.
    fn stand(&mut self) -> Stand {
        for thing in self.broker.things() {
            self.broker.write_again(&thing);
        }
        let facts = self.broker.take_facts();
        let mut image = Image::default();
        read_all(&facts.bytes, |fact| {
            image.apply(fact);
            Ok(())
        })
        .expect("it was just written");
        Stand::of(image)
    }

    fn restart(&mut self, left: SimDisk) {
        self.seen.crashes += 1;
        left.heal();
        if self.below(4) == 0 {
            left.set_capacity(Some(left.used()));
        }
        let read = |left: &SimDisk| match open(left) {
            Ok((log, image, _)) => (log, image),
            Err(why) => panic!("it cannot be read: {why}"),
        };
        let found = Stand::of(read(&left).1).at(self.now);
        // What it has read it reads again.
        let again = Stand::of(read(&left).1).at(self.now);
        if again != found {
            difference(&again, &found);
            panic!("what was read once is read otherwise the next time");
        }
        let possible: Vec<Stand> =
            std::mem::take(&mut self.possible).into_iter().map(|stand| stand.at(self.now)).collect();
        let latest = &possible[possible.len() - 1];
        if !possible.contains(&found) {
            difference(&found, latest);
            panic!("this was never so, or what was answered is lost");
        }
        self.seen.lost += u64::from(found != *latest);
        self.seen.segments += left.contents().len() as u64;
        self.seen.jobs += found.jobs.len() as u64;
        let (log, image) = read(&left);
        (self.log, self.disk) = (log, left);
        // Follow-ups have ids that were never there.
        let seed = self.entropy.up_to(u64::MAX);
        self.broker = broker(&self.settings, image, self.now, seed);
        self.leases.clear();
        self.executors = (0..3).map(|_| self.broker.connect(0)).collect();
        self.possible = vec![found];
    }
}

fn difference(found: &Stand, expected: &Stand) {
    for (id, job) in &expected.jobs {
        if found.jobs.get(id) != Some(job) {
            println!("job {id}: {:?}\nexpected {job:?}", found.jobs.get(id));
        }
    }
    for id in found.jobs.keys().filter(|id| !expected.jobs.contains_key(*id)) {
        println!("job {id} should not be there: {:?}", found.jobs[id]);
    }
    println!("maps {:?}\nexpected {:?}", found.maps, expected.maps);
    println!("keys {:?}\nexpected {:?}", found.keys, expected.keys);
    println!("paused {:?}\nexpected {:?}", found.paused, expected.paused);
}

fn broker(settings: &Settings, image: Image, now: Timestamp, seed: u64) -> Broker {
    let workers = vec![64; settings.groups];
    let mut broker = Broker::new(settings.rules(), settings.handlers.clone(), workers, Entropy::Seeded(seed));
    broker.keep_journal(image, now).expect("its handlers are there");
    broker.check_invariants();
    broker
}
