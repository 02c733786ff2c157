//! The same schedule on memory and on Redis gives the same trace.
//!
//! Seeded random schedules of everything that can happen to jobs: submissions to every kind of handler, delays, claims by
//! several executors, outcomes of every outcome, releases, lost executors, leases that run out, cancels, retries, pauses.
//! What cannot be the same is left out of the trace: fences, lease numbers. Retries have no backoff, since its
//! jitter is random.

use std::fmt::Write;
use std::time::Duration;

use cofferdam::bell::Bell;
use cofferdam::entropy::Entropy;
use cofferdam::job::{JobId, JobStatus, Version};
use cofferdam::ports::{Commit, Consumer, Filter, Lease, NewJob, Requests, StateAt, Viewer};

use support::conformance::{
    Bench, CommitResult, Make, commit_of, crashed, failed, ids, retry, set, state, succeeded, unset,
    version_of,
};

#[macro_use]
mod support {
    pub mod backends;
    #[allow(dead_code, unused_macros, reason = "the laws themselves are not run here")]
    pub mod conformance;
    pub mod redis;
    pub mod redis_backend;
}

const STEPS: u64 = 400;
const SCHEDULES: u64 = 30;
const EXECUTORS: usize = 3;
const HANDLERS: [&str; 7] = ["free", "narrow", "serial", "serial2", "keyed", "once", "parking"];

/// An executor and what it holds: each lease with the index of its next job and the version that this builds on.
struct Held {
    consumer: Box<dyn Consumer>,
    leases: Vec<(Lease, usize, Version)>,
}

struct Run {
    bench: Bench,
    entropy: Entropy,
    executors: Vec<Held>,
    jobs: Vec<JobId>,
    trace: String,
}

impl Run {
    fn new(make: Make, seed: u64) -> Run {
        let bench = Bench::with(make, |settings| {
            settings.retry_base = Duration::ZERO;
            settings.capacity = 40;
            settings.visibility = Duration::from_secs(20);
            settings.result_ttl = Duration::from_secs(100);
            settings.failed_ttl = Duration::from_secs(60);
        });
        let held = |_| Held { consumer: bench.backend.consumer(0, Bell::silent()), leases: Vec::new() };
        let executors = (0..EXECUTORS).map(held).collect();
        Run { bench, entropy: Entropy::Seeded(seed), executors, jobs: Vec::new(), trace: String::new() }
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.entropy.up_to(end as u64 - 1)).expect("a small number")
    }

    fn any_job(&mut self) -> Option<JobId> {
        let count = self.jobs.len();
        (count > 0).then(|| self.below(count)).map(|index| self.jobs[index])
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.trace, "{what}");
    }

    fn act(&mut self) {
        match self.below(20) {
            0..=6 => self.submit(),
            7..=10 => self.claim(),
            11..=14 => self.finish(),
            15 => self.release(),
            16 => self.steer(),
            17 => self.lose(),
            18 => {
                let seconds = [1, 3, 25][self.below(3)];
                self.bench.pass(Duration::from_secs(seconds));
                self.note(format_args!("time +{seconds}"));
                // A silent executor is forgotten where no connection stands for it.
                (0..EXECUTORS).for_each(|executor| drop(self.step(executor, Vec::new(), 0)));
            }
            _ => self.look(),
        }
    }

    fn submit(&mut self) {
        let handler = HANDLERS[self.below(HANDLERS.len())];
        let mut job = self.bench.job(handler);
        if handler == "keyed" {
            job.ordering_key = Some(["a", "b", "c"][self.below(3)].into());
        }
        if self.below(8) == 0 {
            job.delay = Duration::from_secs(2);
        }
        let job = NewJob { awaited: self.below(2) == 0, ..job };
        let id = job.id;
        let answer = self.bench.try_submit(job);
        self.note(format_args!("submit {handler} {id}: {answer:?}"));
        self.jobs.push(id);
    }

    fn claim(&mut self) {
        let (executor, more) = (self.below(EXECUTORS), self.below(4));
        self.claim_more(executor, more);
    }

    /// So many leases more, as far as there are any; then it has no room.
    fn claim_more(&mut self, executor: usize, more: usize) {
        // Of those that it had some may have run out: room grows by one until enough have come.
        let wanted = self.executors[executor].leases.len() + more;
        for room in 1..=wanted {
            if self.executors[executor].leases.len() < wanted {
                self.step(executor, Vec::new(), room);
            }
        }
        self.step(executor, Vec::new(), 0);
    }

    fn step(&mut self, executor: usize, commits: Vec<Commit>, room: usize) -> Vec<CommitResult> {
        self.say(executor, Requests { commits, ..Requests::default() }, room)
    }

    fn say(&mut self, executor: usize, requests: Requests, room: usize) -> Vec<CommitResult> {
        let said: Vec<JobId> = requests.commits.iter().map(|commit| commit.job).collect();
        let consumer = &mut self.executors[executor].consumer;
        // What it says is judged, and what it has room for claimed, before the next step tells.
        let mut step = consumer.step(requests, room).expect("it is there");
        self.bench.backend.settle();
        let more = consumer.step(Requests::default(), room).expect("it is there");
        step.fenced.extend(more.fenced);
        step.leases.extend(more.leases);
        step.revoked.extend(more.revoked);
        for lease in step.leases {
            let kind = match &lease.state {
                StateAt::Stateless => "stateless".to_owned(),
                StateAt::Known(_) => "known".to_owned(),
                StateAt::Whole(_, entries) => {
                    let mut entries: Vec<_> =
                        entries.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
                    entries.sort();
                    format!("{entries:?}")
                }
            };
            let deliveries: Vec<u32> = lease.jobs.iter().map(|job| job.delivery).collect();
            self.note(format_args!(
                "{executor} leases {} {:?} {deliveries:?} {kind}",
                lease.handler,
                ids(&lease)
            ));
            let version = version_of(&lease);
            self.executors[executor].leases.push((lease, 0, version));
        }
        let mut revoked: Vec<JobId> = step.revoked.iter().map(|revoked| revoked.job).collect();
        revoked.sort_unstable();
        if !revoked.is_empty() {
            self.note(format_args!("{executor} is told to leave {revoked:?}"));
        }
        let is_fenced = |job: &JobId| step.fenced.iter().any(|fenced| fenced.job == *job);
        let result = |job| if is_fenced(job) { CommitResult::Fenced } else { CommitResult::Committed };
        let results: Vec<CommitResult> = said.iter().map(result).collect();
        if !results.is_empty() {
            self.note(format_args!("{executor} commits: {results:?}"));
        }
        results
    }

    /// The outcome of the next job of some lease.
    fn finish(&mut self) {
        let executor = self.below(EXECUTORS);
        let count = self.executors[executor].leases.len();
        if count == 0 {
            return;
        }
        let at = self.below(count);
        let (choice, value) = (self.below(12), self.below(100));
        let (lease, index, version) = &self.executors[executor].leases[at];
        let ordered = lease.state != StateAt::Stateless;
        let (outcome, ends) = match choice {
            0 => (failed(), false),
            1 => (retry(), true),
            2 => (crashed(), true),
            3 => (cofferdam::job::Outcome::TimedOut(String::new()), true),
            4 if ordered => (state(vec![unset("k")]), false),
            5..=8 if ordered => (state(vec![set("k", &value.to_string())]), false),
            _ => (succeeded(), false),
        };
        let changes =
            matches!(&outcome, cofferdam::job::Outcome::Succeeded(_, effects) if !effects.state.is_empty());
        let (fence, jobs) = (lease.jobs[*index].fence, lease.jobs.len());
        let commit = commit_of(lease, *index, *version, outcome);
        let held = self.step(executor, vec![commit], 0)[0] == CommitResult::Committed;
        let (_, index, version) = &mut self.executors[executor].leases[at];
        *index += 1;
        if changes {
            *version = Version(fence);
        }
        if !held || ends || *index == jobs {
            self.executors[executor].leases.remove(at);
        }
    }

    fn release(&mut self) {
        let executor = self.below(EXECUTORS);
        let count = self.executors[executor].leases.len();
        if count > 0 {
            let at = self.below(count);
            let (lease, ..) = self.executors[executor].leases.remove(at);
            self.say(executor, Requests { releases: vec![lease.id], ..Requests::default() }, 0);
            self.note(format_args!("{executor} releases {:?}", ids(&lease)));
        }
    }

    fn steer(&mut self) {
        let (choice, handler) = (self.below(4), HANDLERS[self.below(HANDLERS.len())]);
        let said = match choice {
            0 | 1 => {
                let paused = choice == 0 && self.below(2) == 0;
                let answer = self.bench.backend.producer().pause(handler, paused);
                format!("pause {handler} {paused}: {answer:?}")
            }
            _ => {
                let Some(id) = self.any_job() else { return };
                let (producer, viewer) = (self.bench.backend.producer(), Viewer::anonymous());
                match choice {
                    2 => {
                        let record = producer.cancel(&viewer, id).expect("the backend is there");
                        format!("cancel {id}: {:?}", record.map(|record| record.status))
                    }
                    _ => {
                        let answer = producer.retry(&viewer, id).expect("the backend is there");
                        format!("retry {id}: {:?}", answer.map(|answer| answer.map(|record| record.status)))
                    }
                }
            }
        };
        self.note(format_args!("{said}"));
        // Who has to stop something hears of it.
        (0..EXECUTORS).for_each(|executor| drop(self.step(executor, Vec::new(), 0)));
    }

    /// An executor's process dies; another one comes.
    fn lose(&mut self) {
        let executor = self.below(EXECUTORS);
        self.executors.remove(executor);
        self.bench.backend.settle();
        let consumer = self.bench.backend.consumer(0, Bell::silent());
        self.executors.insert(executor, Held { consumer, leases: Vec::new() });
        self.note(format_args!("{executor} is lost"));
    }

    fn look(&mut self) {
        let Some(id) = self.any_job() else { return };
        let record = self.bench.find(id).map(|record| {
            (
                record.status,
                record.deliveries,
                record.waiting_for,
                record.finished.map(|end| end.result.clone()),
            )
        });
        self.note(format_args!("{id} is {record:?}"));
    }

    /// Everything that is still to be done, and every record.
    fn end(&mut self) {
        for handler in HANDLERS {
            assert!(self.bench.backend.producer().pause(handler, false).expect("the backend is there"));
        }
        self.bench.pass(Duration::from_secs(30));
        for _ in 0..200 {
            self.claim_more(0, 8);
            while let Some((lease, index, version)) = self.executors[0].leases.pop() {
                let rest =
                    (index..lease.jobs.len()).map(|index| commit_of(&lease, index, version, succeeded()));
                self.step(0, rest.collect(), 0);
            }
        }
        let filter = Filter { limit: 1_000, ..Filter::default() };
        let records = self.bench.backend.producer().list(&Viewer::anonymous(), &filter);
        for record in records.expect("the backend is there").records {
            self.note(format_args!(
                "{} {:?} {} {:?}",
                record.spec.id, record.status, record.deliveries, record.waiting_for
            ));
        }
        let stats = self.bench.backend.producer().stats().expect("the backend is there");
        let figures = |handler: &cofferdam::ports::HandlerStats| {
            let ended: u64 = JobStatus::ALL.map(|status| handler.finished[status as usize]).iter().sum();
            format!(
                "{} {} {} {ended} {:?}",
                handler.handler, handler.queued, handler.running, handler.finished
            )
        };
        let all: Vec<String> = stats.handlers.iter().map(figures).collect();
        self.note(format_args!("{all:?} {} {} {}", stats.redelivered, stats.dead, stats.leases));
    }
}

fn trace(make: Make, seed: u64) -> String {
    let mut run = Run::new(make, seed);
    (0..STEPS).for_each(|_| run.act());
    run.end();
    run.trace
}

#[test]
fn the_same_schedule_gives_the_same_trace_on_memory_and_on_redis() {
    let first =
        std::env::var("COFFERDAM_SEED").ok().map(|text| text.parse().expect("COFFERDAM_SEED is a number"));
    let seeds = first.map_or(1..=SCHEDULES, |seed| seed..=seed);
    for seed in seeds {
        println!("COFFERDAM_SEED={seed}");
        let (memory, redis) =
            (trace(support::backends::memory, seed), trace(support::redis_backend::redis, seed));
        let differs = memory.lines().zip(redis.lines()).position(|(a, b)| a != b);
        if let Some(at) = differs.or((memory.len() != redis.len()).then_some(usize::MAX)) {
            let before: Vec<&str> = memory.lines().take(at).collect();
            let before = &before[before.len().saturating_sub(25)..];
            panic!(
                "seed {seed}, line {at}\n{}\nmemory: {:?}\nredis:  {:?}",
                before.join("\n"),
                memory.lines().nth(at),
                redis.lines().nth(at)
            );
        }
        assert!(
            memory.contains("leases") && memory.contains("Fenced"),
            "a schedule in which something happens"
        );
    }
}
