//! An executor's threads with memory's broker: what becomes of many jobs, short and long, that succeed, fail
//! and panic.
//!
//! It guards what callers see: nobody waits for another's job while a worker is free, nothing runs beside
//! more than it should, and whatever happens between, changes take effect once and in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cofferdam::bell::Bell;
use cofferdam::clock::{Clock, Timestamp};
use cofferdam::entropy::Entropy;
use cofferdam::execution::{Handler, Handlers, Job, JobContext};
use cofferdam::handler::HandlerSpec;
use cofferdam::job::{InstanceId, JobId, JobRecord, JobStatus, Payload, Trace};
use cofferdam::memory::MemoryBroker;
use cofferdam::memory::broker::Broker;
use cofferdam::ports::{NewJob, Producer, Replies, Rules, Stats, Submitted, Viewer};
use cofferdam::problem::{Cause, Code};
use cofferdam::{HandlerError, HandlerOptions};

use support::crew::{Crew, Ended, PATIENCE, until};
use support::jobs::plain;
use support::leases::{id, number, rules};
use support::stopwatch::Stopwatch;

mod support {
    pub mod crew;
    pub mod jobs;
    pub mod leases;
    pub mod stopwatch;
}

const LONG: Duration = Duration::from_secs(1);
const TRACE: Trace = Trace { id: [7; 16], span: [7; 8], flags: 1, parent: None };
/// So many short jobs make a crew expect the next ones to be short.
const SHORT_JOBS: usize = 2_000;

type Answer = Result<Payload, HandlerError>;

/// A broker, its crews, and the jobs that were submitted.
struct Scene {
    broker: MemoryBroker,
    clock: Clock,
    rules: Rules,
    handlers: Handlers,
    last_id: u64,
}

/// Three handlers with the same code: `free`, `serial`, and `keyed`.
fn scene(handler: impl Handler + 'static) -> Scene {
    let code: Arc<dyn Handler> = Arc::new(handler);
    let spec = |(name, options)| HandlerSpec::new(name, 0, options);
    let kinds = [
        ("free", HandlerOptions::default()),
        ("serial", HandlerOptions::serial()),
        ("keyed", HandlerOptions::keyed("/key")),
    ];
    let handlers: Handlers = kinds.map(spec).map(|spec| (spec, code.clone())).into();
    let rules = Rules { lane_state_max: 1 << 20, ..rules() };
    let specs = handlers.iter().map(|(spec, _)| spec.clone()).collect();
    let clock = Clock::system();
    let broker = Broker::new(rules.clone(), specs, vec![2], Entropy::Seeded(1));
    let broker = MemoryBroker::new(broker, clock.clone(), vec![Arc::from("group")]);
    Scene { broker, clock, rules, handlers, last_id: 0 }
}

impl Scene {
    fn crew(&self, workers: usize) -> Crew {
        let consumer = |bell: Bell| self.broker.consumer(0, bell);
        Crew::start(workers, self.rules.clone(), &self.clock, self.handlers.clone(), consumer)
    }

    fn job(&mut self, handler: &str, key: Option<&str>) -> NewJob {
        self.last_id += 1;
        NewJob {
            ordering_key: key.map(Arc::from),
            payload: Payload::json(*b"null"),
            trace: TRACE,
            ..plain(id(self.last_id), handler)
        }
    }

    /// All in one call.
    #[track_caller]
    fn submit(&self, jobs: Vec<NewJob>) -> Vec<JobId> {
        let ids = jobs.iter().map(|job| job.id).collect();
        let answers = self.broker.submit(jobs).expect("it is in this process");
        assert!(answers.iter().all(|answer| *answer == Submitted::New));
        ids
    }

    #[track_caller]
    fn submit_free(&mut self, count: usize) -> Vec<JobId> {
        let jobs = (0..count).map(|_| self.job("free", None)).collect();
        self.submit(jobs)
    }

    fn record(&self, id: JobId) -> JobRecord {
        let record = self.broker.record(&Viewer::anonymous(), id).expect("it is in this process");
        record.expect("it was submitted, and nothing is forgotten yet")
    }

    /// Their records, once all have ended.
    #[track_caller]
    fn ended(&self, jobs: &[JobId]) -> Vec<JobRecord> {
        let has_ended = |id: &&JobId| self.record(**id).status.is_terminal();
        until("all have ended", || (jobs.iter().take_while(has_ended).count() == jobs.len()).then_some(()));
        jobs.iter().map(|id| self.record(*id)).collect()
    }

    #[track_caller]
    fn succeeded(&self, jobs: &[JobId]) -> Vec<JobRecord> {
        let records = self.ended(jobs);
        assert!(records.iter().all(|record| record.status == JobStatus::Succeeded), "{records:?}");
        records
    }

    fn stats(&self) -> Stats {
        self.broker.stats().expect("it is in this process")
    }
}

/// The result's text.
fn result(record: &JobRecord) -> Option<String> {
    let finished = record.finished.as_ref().expect("it has ended");
    finished.result.as_ref().ok().map(|payload| String::from_utf8_lossy(&payload.bytes).into_owned())
}

fn done() -> Answer {
    Ok(Payload::json(*b"1"))
}

/// A panic that does not fill the test's output.
fn quiet_panic(message: &'static str) -> Answer {
    std::panic::resume_unwind(Box::new(message))
}

/// Jobs of these numbers are long.
fn sleeper(long: Arc<Mutex<BTreeSet<u64>>>) -> impl Handler {
    move |job: &Job, cx: &mut JobContext| {
        let is_long = long.lock().expect("whole").contains(&number(job.id()));
        assert!(!is_long || cx.sleep(LONG), "nobody ends it");
        done()
    }
}

#[test]
fn a_long_job_delays_nobody_while_another_worker_is_free() {
    for is_trained in [false, true] {
        for handler in ["free", "keyed", "serial"] {
            let long = Arc::new(Mutex::new(BTreeSet::new()));
            let mut s = scene(sleeper(long.clone()));
            let _crew = s.crew(2);
            if is_trained {
                let short = s.submit_free(SHORT_JOBS);
                s.succeeded(&short);
            }
            // Three to begin with, one in the middle of a lane's run where there are lanes, and many beside
            // it.
            let key = (handler == "keyed").then_some("a");
            let mut jobs: Vec<NewJob> = (0..3).map(|_| s.job(handler, key)).collect();
            let before: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
            jobs.push(s.job(handler, key));
            let a = s.last_id;
            long.lock().unwrap().insert(a);
            jobs.extend((0..20).map(|_| s.job("free", None)));
            jobs.extend((0..5).map(|n| s.job("keyed", Some(&format!("b{n}")))));
            let others: Vec<JobId> =
                jobs.iter().map(|job| job.id).filter(|job| *job != id(a) && !before.contains(job)).collect();
            let submitted = s.clock.now();
            s.submit(jobs);
            let others = s.succeeded(&[before, others].concat());
            let last = others.iter().filter_map(|record| record.finished_at).max().expect("they have ended");
            let long = s.succeeded(&[id(a)]).remove(0);
            let end = long.finished_at.expect("it has ended");
            assert!(end.since(submitted) >= LONG);
            assert!(
                last.since(submitted) < LONG / 2,
                "{handler}, trained {is_trained}: the others took {:?}",
                last.since(submitted)
            );
            assert_eq!(s.stats().redelivered, 0);
        }
    }
}

#[test]
fn what_waits_behind_jobs_that_turn_out_long_goes_to_another_executor() {
    for workers in [1, 2] {
        let long = Arc::new(Mutex::new(BTreeSet::new()));
        let mut s = scene(sleeper(long.clone()));
        let _busy = s.crew(workers);
        let short = s.submit_free(SHORT_JOBS);
        s.succeeded(&short);
        // It expects short jobs, so it takes all of these; the first ones keep its workers.
        long.lock().unwrap().extend((s.last_id + 1..).take(workers));
        let jobs = s.submit_free(workers + 10);
        let (slow, others) = jobs.split_at(workers);
        until("they run", || slow.iter().all(|id| s.record(*id).status == JobStatus::Running).then_some(()));
        let _idle = s.crew(1);
        let last = s.succeeded(others).iter().filter_map(|record| record.finished_at).max();
        let first = s.succeeded(slow).iter().filter_map(|record| record.finished_at).min();
        assert!(last < first, "they waited until {last:?}, for what ended at {first:?}");
        let stats = s.stats();
        assert_eq!((stats.redelivered, stats.late), (0, 0), "what is given back is not counted");
    }
}

#[test]
fn a_crew_never_runs_more_at_once_than_it_has_workers_and_as_many_where_it_can() {
    for workers in 1..=3 {
        let (running, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let runs = Arc::new(Mutex::new(BTreeMap::<u64, u32>::new()));
        let (now, most, ran) = (running.clone(), peak.clone(), runs.clone());
        let handler = move |job: &Job, _: &mut JobContext| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            *ran.lock().unwrap().entry(number(job.id())).or_default() += 1;
            match number(job.id()) {
                // Longer than its timeout, and deaf.
                id if id % 100 == 95 => std::thread::sleep(Duration::from_millis(15)),
                id if id % 10 == 3 => std::thread::sleep(Duration::from_millis(2)),
                id if id > 1_000 => std::thread::sleep(Duration::from_millis(30)),
                _ => {}
            }
            now.fetch_sub(1, Ordering::SeqCst);
            done()
        };
        let mut s = scene(handler);
        let crew = s.crew(workers);
        let kinds =
            [("free", None), ("keyed", Some("a")), ("serial", None), ("keyed", Some("b")), ("free", None)];
        let mixed: Vec<NewJob> = (0..1_000)
            .map(|n| {
                let (handler, key) = kinds[n % kinds.len()];
                let job = s.job(handler, key);
                let timeout = (number(job.id) % 100 == 95).then_some(Duration::from_millis(5));
                NewJob { timeout, ..job }
            })
            .collect();
        // Some at a time, so that it takes them as they come, too.
        let mut jobs = Vec::new();
        for some in mixed.chunks(50) {
            jobs.extend(s.submit(some.to_vec()));
            std::thread::sleep(Duration::from_millis(3));
        }
        let records = s.ended(&jobs);
        let times_out = |record: &JobRecord| number(record.spec.id) % 100 == 95;
        for record in &records {
            let expected = if times_out(record) { JobStatus::TimedOut } else { JobStatus::Succeeded };
            assert_eq!(record.status, expected, "{record:?}");
        }
        assert!(peak.load(Ordering::SeqCst) <= workers, "{} at once", peak.load(Ordering::SeqCst));

        peak.store(0, Ordering::SeqCst);
        let long = s.submit_free(3 * workers);
        s.succeeded(&long);
        assert_eq!(peak.load(Ordering::SeqCst), workers, "all of them, and no more");
        let runs = runs.lock().unwrap().clone();
        let all = [jobs, long].concat();
        let again: Vec<&JobId> = all.iter().filter(|job| runs[&number(**job)] != 1).collect();
        assert!(again.is_empty(), "each runs once, but not {again:?}");
        until("all handlers have returned", || (running.load(Ordering::SeqCst) == 0).then_some(()));
        crew.turn();
        assert_eq!((crew.seen().room, s.stats().leases), (workers, 0));
    }
}

#[test]
fn panics_are_crashes_of_their_jobs_and_cost_the_crew_nothing() {
    const WORKERS: usize = 2;
    let peak = Arc::new(AtomicUsize::new(0));
    let (running, most) = (AtomicUsize::new(0), peak.clone());
    let handler = move |job: &Job, cx: &mut JobContext| match number(job.id()) {
        // The first delivery panics, or each one.
        id if id % 3 == 0 && cx.delivery() == 1 => quiet_panic("not yet"),
        id if id % 3 == 1 => quiet_panic("never"),
        id if id > 600 => {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(30));
            running.fetch_sub(1, Ordering::SeqCst);
            done()
        }
        _ => done(),
    };
    let mut s = scene(handler);
    let _crew = s.crew(WORKERS);
    let mut jobs = Vec::new();
    for n in 0..600 {
        let key = ["a", "b"][n % 2];
        jobs.push(if n % 5 == 0 { s.job("keyed", Some(key)) } else { s.job("free", None) });
    }
    let jobs = s.submit(jobs);
    for record in s.ended(&jobs) {
        let (status, deliveries) = match number(record.spec.id) % 3 {
            0 => (JobStatus::Succeeded, 2),
            1 => (JobStatus::Dead, 3),
            _ => (JobStatus::Succeeded, 1),
        };
        assert_eq!((record.status, record.deliveries), (status, deliveries), "{record:?}");
        if let Err(error) = &record.finished.as_ref().expect("it has ended").result {
            assert_eq!((error.code, error.cause), (Code::DeadLettered, Some(Cause::HandlerCrashed)));
            assert!(error.detail.contains("never"), "{error:?}");
        }
    }
    let late: Vec<JobId> = s.submit_free(30).into_iter().filter(|id| number(*id) % 3 == 2).collect();
    s.succeeded(&late);
    assert_eq!(peak.load(Ordering::SeqCst), WORKERS, "all workers are still there");
}

#[test]
fn no_job_waits_for_time_to_pass_while_a_worker_is_free() {
    let mut s = scene(|_: &Job, _: &mut JobContext| done());
    let _crew = s.crew(2);
    let bell = Bell::for_this_thread();
    let mut inbox = s.broker.subscribe(InstanceId(1), bell.clone()).expect("it is in this process");
    // Around the times at which threads look, take turns, and fall asleep.
    let pauses = [0, 0, 0, 50, 500, 900, 1_000, 1_100, 2_000, 5_000, 49_000, 50_000, 51_000];
    for round in 0..200 {
        let mut waiting: BTreeSet<JobId> = s.submit_free(1 + round % 4).into_iter().collect();
        let begun = Stopwatch::start();
        while !waiting.is_empty() {
            for end in inbox.take(usize::MAX).ended {
                waiting.remove(&end.job);
            }
            assert!(begun.elapsed() < Duration::from_secs(2), "round {round}: still waiting for {waiting:?}");
            if !waiting.is_empty() && bell.asleep() {
                std::thread::park_timeout(Duration::from_secs(1));
            }
            bell.answer();
        }
        std::thread::sleep(Duration::from_micros(pauses[round % pauses.len()]));
    }
}

#[test]
fn a_drained_crew_has_told_all_that_it_began_and_given_back_all_that_it_did_not() {
    for round in 0..30 {
        let (begun, returned) = (Arc::new(Mutex::new(BTreeMap::new())), Arc::new(AtomicUsize::new(0)));
        let (begins, returns) = (begun.clone(), returned.clone());
        let handler = move |job: &Job, cx: &mut JobContext| {
            *begins.lock().unwrap().entry(job.id()).or_insert(0_u32) += 1;
            let pause = Duration::from_micros([0, 0, 0, 0, 200, 3_000][number(job.id()) as usize % 6]);
            assert!(pause.is_zero() || cx.sleep(pause), "a drain ends no run");
            returns.fetch_add(1, Ordering::SeqCst);
            done()
        };
        let mut s = scene(handler);
        let crew = s.crew(2);
        let kinds = [("free", None), ("keyed", Some("a")), ("keyed", Some("b")), ("serial", None)];
        let jobs = (0..400).map(|n| s.job(kinds[n % 4].0, kinds[n % 4].1)).collect();
        let jobs = s.submit(jobs);
        std::thread::sleep(Duration::from_micros(500 * round));
        crew.drain();
        assert_eq!(crew.ended.recv_timeout(PATIENCE), Ok(Ended::Drained));
        let began = begun.lock().unwrap().clone();
        assert_eq!(returned.load(Ordering::SeqCst), began.len(), "no handler runs any more");
        for job in &jobs {
            let record = s.record(*job);
            let expected =
                if began.contains_key(job) { (JobStatus::Succeeded, 1) } else { (JobStatus::Queued, 0) };
            assert_eq!((record.status, record.deliveries), expected, "round {round}: {record:?}");
        }
        let stats = s.stats();
        assert_eq!((stats.leases, stats.late, stats.redelivered), (0, 0, 0));
        drop(crew);
        let _next = s.crew(2);
        s.succeeded(&jobs);
        let runs = begun.lock().unwrap().clone();
        assert!(
            runs.len() == jobs.len() && runs.values().all(|runs| *runs == 1),
            "round {round}: each ran once"
        );
    }
}

/// Adds one to a counter of the handler's lane and to one of the trace, and then comes to what its number
/// says.
fn counter() -> impl Handler {
    let starts = Mutex::new(BTreeSet::new());
    move |job: &Job, cx: &mut JobContext| {
        if job.handler() == "free" {
            return done();
        }
        let count = |bytes: Option<&[u8]>| -> u64 {
            bytes.map_or(0, |bytes| String::from_utf8_lossy(bytes).parse().expect("a number"))
        };
        let mut state = cx.state().expect("it is ordered");
        let in_lane = count(state.get("count")) + 1;
        state.set("count", in_lane.to_string().into_bytes());
        // An entry that comes and goes.
        if in_lane.is_multiple_of(2) {
            state.remove("even")
        } else {
            state.set("even", *b"no")
        }
        assert_eq!(cx.state().expect("it is ordered").get("even").is_some(), in_lane % 2 == 1);
        let lane = job.ordering_key().unwrap_or("serial").to_owned();
        let in_trace = count(cx.context().get(&lane)) + 1;
        cx.context().set(&lane, in_trace.to_string().into_bytes());
        cx.submit("free", Payload::json(*b"null"), None, Duration::ZERO).expect("it may");
        let is_first = cx.delivery() == 1;
        let start = (number(job.id()), cx.delivery());
        assert!(starts.lock().expect("sound").insert(start), "no start's number is told twice: {start:?}");
        match number(job.id()) % 11 {
            1 if is_first => Err(HandlerError::Retry("later".into())),
            3 if is_first => quiet_panic("oops"),
            5 => Err(HandlerError::Fail("no".into())),
            7 => quiet_panic("always"),
            9 => {
                assert!(!cx.sleep(PATIENCE), "its time is short");
                done()
            }
            _ => Ok(Payload::json(format!("{in_lane} {in_trace}").into_bytes())),
        }
    }
}

#[test]
fn changes_take_effect_once_and_in_order_whatever_happens_between() {
    for (crews, workers) in [(1, 1), (1, 3), (3, 2)] {
        let mut s = scene(counter());
        let _crews: Vec<Crew> = (0..crews).map(|_| s.crew(workers)).collect();
        let lanes = [("serial", None), ("keyed", Some("a")), ("keyed", Some("b"))];
        let new: Vec<NewJob> = (0..330)
            .map(|n| {
                let job = s.job(lanes[n % 3].0, lanes[n % 3].1);
                let timeout = (number(job.id) % 11 == 9).then_some(Duration::from_millis(4));
                NewJob { timeout, ..job }
            })
            .collect();
        let jobs = s.submit(new);
        let records = s.ended(&jobs);
        let mut succeeded = 0;
        for (handler, key) in lanes {
            let is_of_lane = |record: &&JobRecord| {
                *record.spec.handler == *handler && record.spec.ordering_key.as_deref() == key
            };
            let of_lane: Vec<&JobRecord> = records.iter().filter(is_of_lane).collect();
            let counts: Vec<String> = of_lane.iter().filter_map(|record| result(record)).collect();
            succeeded += counts.len();
            let expected: Vec<String> = (1..=counts.len()).map(|n| format!("{n} {n}")).collect();
            assert_eq!(counts, expected, "{crews} crews of {workers}: {handler} {key:?}");
            let mut ends: Vec<Timestamp> = of_lane.iter().filter_map(|record| record.finished_at).collect();
            assert_eq!(ends.len(), of_lane.len());
            let in_order = ends.clone();
            ends.sort_unstable();
            assert_eq!(ends, in_order, "a lane's jobs end in their order");
        }
        for record in &records {
            let expected = match number(record.spec.id) % 11 {
                // One that has begun behind a job that timed out was its first, and is not counted.
                1 | 3 => (JobStatus::Succeeded, record.deliveries.clamp(1, 2)),
                5 => (JobStatus::Failed, 1),
                7 => (JobStatus::Dead, 3),
                9 => (JobStatus::TimedOut, 1),
                _ => (JobStatus::Succeeded, 1),
            };
            assert_eq!((record.status, record.deliveries), expected, "{record:?}");
        }
        let follow_ups = until("the follow-ups have ended", || {
            let free = s.stats().handlers.into_iter().find(|stats| *stats.handler == *"free").expect("known");
            Some(free).filter(|free| free.queued + free.running == 0)
        });
        assert_eq!(follow_ups.submitted, succeeded as u64, "one for each success");
        assert_eq!((s.stats().leases, s.stats().late), (0, 0));
    }
}

#[test]
fn a_run_sees_what_others_have_made_of_its_traces_context_since_its_lanes_last_one() {
    let handler = |_: &Job, cx: &mut JobContext| {
        let count = |bytes: Option<&[u8]>| bytes.map_or(0, |bytes| bytes[0]) + 1;
        // The lane's state is known here from one run to the next; the context is not only the lane's.
        let in_lane = count(cx.state().expect("it is ordered").get("count"));
        cx.state().expect("it is ordered").set("count", [in_lane]);
        let in_trace = count(cx.context().get("count"));
        cx.context().set("count", [in_trace]);
        Ok(Payload::octets([in_lane, in_trace]))
    };
    let mut s = scene(handler);
    let _crew = s.crew(2);
    for round in 1..=20 {
        for (place, (handler, key)) in
            (1..).zip([("serial", None), ("keyed", Some("a")), ("keyed", Some("b"))])
        {
            let job = s.job(handler, key);
            let job = s.submit(vec![job]);
            let ended = s.succeeded(&job).remove(0).finished.expect("it has ended");
            let counts = ended.result.as_ref().expect("it has succeeded").bytes.to_vec();
            assert_eq!(counts, [round, 3 * (round - 1) + place], "{handler} {key:?}");
        }
    }
}
