//! An executor's threads around its books: real workers, and a broker that says what a script says.
//!
//! What the books decide alone is the matter of `executor_books.rs`; what becomes of many jobs at a real
//! broker, that of `executor_load.rs`.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cofferdam::clock::Clock;
use cofferdam::execution::{Handler, Health, Job, JobContext};
use cofferdam::handler::HandlerSpec;
use cofferdam::job::Payload;
use cofferdam::ports::{BackendError, Consumer, Lease, LeaseId, OfLease, Requests, StateAt, Step};
use cofferdam::{HandlerError, HandlerOptions};

use support::crew::{Crew, Ended, PATIENCE, Seen, until};
use support::leases::{GRACE, START, TIMEOUT, fence, id, lease_of, number, rules, told, whole};

mod support {
    pub mod crew;
    pub mod leases;
}

const MICRO: Duration = Duration::from_micros(1);
/// Longer than a crew needs for anything that it does at once, shorter than [`LONG`].
const SOON: Duration = Duration::from_millis(150);
const LONG: Duration = Duration::from_millis(300);

/// The first of the jobs that make a crew expect short ones, and how many that takes.
const SHORT: u64 = 1_000_000;
const SHORT_JOBS: usize = 2_000;

/// See [`Scene::leases_and`].
const UNKNOWN: u64 = 99;

type Move = Box<dyn FnOnce() -> Result<Step, BackendError> + Send>;
type Answer = Result<Payload, HandlerError>;

/// A broker that says what the script says, and takes notes.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    moves: VecDeque<Move>,
    /// A list for each step in which something was said.
    steps: Vec<Vec<String>>,
    /// Something that was said is not in the books yet.
    is_unsettled: bool,
    /// A lease that is given back comes again at once, and nobody takes note of it. A worker may not be quite
    /// free when its last outcome is heard, and the script asks nobody for room.
    comes_again: bool,
    given: Vec<Lease>,
}

impl Script {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("whole")
    }

    fn steps(&self) -> Vec<Vec<String>> {
        self.state().steps.clone()
    }

    fn told(&self) -> Vec<String> {
        self.steps().concat()
    }
}

impl Consumer for Script {
    fn step(&mut self, mut requests: Requests, _: usize) -> Result<Step, BackendError> {
        let (next, again) = {
            let mut state = self.state();
            let releases = std::mem::take(&mut requests.releases);
            let is_again = |id: &LeaseId| state.given.iter().find(|lease| lease.id == *id).cloned();
            let again: Vec<Lease> = releases.iter().filter_map(is_again).collect();
            requests.releases =
                releases.into_iter().filter(|id| again.iter().all(|it| it.id != *id)).collect();
            state.steps.extend(Some(told(&requests)).filter(|said| !said.is_empty()));
            (state.moves.pop_front(), again)
        };
        let mut step = next.map_or_else(|| Ok(Step::default()), |next| next())?;
        step.leases.extend(again);
        let mut state = self.state();
        if state.comes_again {
            state.given.extend(step.leases.iter().cloned());
        }
        Ok(step)
    }

    fn extend(&mut self) {}

    fn is_settled(&self) -> bool {
        !self.state().is_unsettled
    }
}

/// A crew and its script.
struct Scene {
    crew: Crew,
    script: Script,
    clock: Clock,
}

/// One handler, `h`, which is ordered.
fn scene(workers: usize, clock: Clock, handler: impl Handler + 'static) -> Scene {
    let spec = HandlerSpec::new("h", 0, HandlerOptions::serial());
    let handlers: Vec<(HandlerSpec, Arc<dyn Handler>)> = vec![(spec, Arc::new(handler))];
    let script = Script::default();
    let consumer = script.clone();
    let crew = Crew::start(workers, rules(), &clock, handlers, |_| consumer);
    Scene { crew, script, clock }
}

impl Scene {
    /// The next step that finds nothing else to do makes this move.
    fn then(&self, next: impl FnOnce() -> Result<Step, BackendError> + Send + 'static) {
        self.script.state().moves.push_back(Box::new(next));
        self.crew.ring();
    }

    /// These leases come, and one more of which the state is not known here: so the same exchange has another
    /// step, to give that one back, and this is its move.
    fn leases_and(
        &self,
        leases: Vec<Lease>,
        next: impl FnOnce() -> Result<Step, BackendError> + Send + 'static,
    ) {
        let unknown = lease_of(UNKNOWN, "unknown", &[UNKNOWN], StateAt::Known(fence(UNKNOWN)));
        let leases = leases.into_iter().chain([unknown]).collect();
        let first: Move = Box::new(|| Ok(Step { leases, ..Step::default() }));
        self.script.state().moves.extend([first, Box::new(next)]);
        self.crew.ring();
    }

    /// These leases come, and are in the books.
    #[track_caller]
    fn leases(&self, leases: Vec<Lease>) {
        self.step(Step { leases, ..Step::default() });
    }

    /// A job is revoked, and the books know.
    #[track_caller]
    fn revoke(&self, lease: u64, job: u64) {
        self.step(Step { revoked: vec![of_lease(lease, job)], ..Step::default() });
    }

    #[track_caller]
    fn step(&self, step: Step) {
        self.then(move || Ok(step));
        self.crew.turn();
        assert!(self.script.state().moves.is_empty(), "it was taken");
    }

    /// Many short jobs in one run, and one more: from now on leases may wait here, and the leader runs them
    /// itself while another thread looks after the helm.
    #[track_caller]
    fn train(&self) {
        let before = self.script.told().len();
        for jobs in
            [SHORT..SHORT + SHORT_JOBS as u64 - 1, SHORT + SHORT_JOBS as u64 - 1..SHORT + SHORT_JOBS as u64]
        {
            // Who does not lead has gone to sleep.
            self.crew.turn();
            std::thread::sleep(Duration::from_millis(5));
            let said = before + (jobs.end - SHORT) as usize;
            let jobs: Vec<u64> = jobs.collect();
            self.then(move || Ok(Step { leases: vec![run_of(jobs[0], &jobs)], ..Step::default() }));
            self.told(said);
        }
        self.crew.turn();
    }

    /// The script's notes, once there are so many.
    #[track_caller]
    fn told(&self, notes: usize) -> Vec<String> {
        until("notes", || Some(self.script.told()).filter(|told| told.len() >= notes))
    }

    fn seen(&self) -> Seen {
        self.crew.seen()
    }
}

fn of_lease(lease: u64, job: u64) -> OfLease {
    OfLease { lease: LeaseId(lease), job: id(job) }
}

fn run_of(lease: u64, jobs: &[u64]) -> Lease {
    lease_of(lease, &lease.to_string(), jobs, whole(0))
}

fn done() -> Answer {
    Ok(Payload::json(*b"1"))
}

/// A handler that says which job it starts, and goes on when it is told to. Those of [`Scene::train`] just
/// end.
fn gated() -> (impl Handler, Receiver<u64>, Sender<()>) {
    let (started, starts) = channel();
    let (open, gate) = channel();
    let (started, gate) = (Mutex::new(started), Mutex::new(gate));
    let handler = move |job: &Job, _: &mut JobContext| {
        if number(job.id()) >= SHORT {
            return done();
        }
        // Who listens may have seen enough.
        let _ = started.lock().unwrap().send(number(job.id()));
        // Bounded, so that a test that fails leaves no thread.
        let _ = gate.lock().unwrap().recv_timeout(PATIENCE);
        done()
    };
    (handler, starts, open)
}

#[track_caller]
fn next_start(starts: &Receiver<u64>) -> u64 {
    starts.recv_timeout(PATIENCE).expect("a job starts")
}

#[test]
fn a_later_job_that_is_revoked_in_time_never_starts() {
    let (handler, starts, open) = gated();
    let s = scene(2, Clock::manual(START), handler);
    s.leases(vec![run_of(1, &[1, 2, 3])]);
    assert_eq!(next_start(&starts), 1);
    s.revoke(1, 2);
    open.send(()).unwrap();
    open.send(()).unwrap();
    assert_eq!(next_start(&starts), 3);
    assert_eq!(s.told(2), ["commit 1 1 succeeded on 5", "commit 1 3 succeeded on 5"]);
    s.crew.turn();
    assert_eq!((s.seen().health, s.script.told().len(), starts.try_recv().ok()), (Health::Working, 2, None));
}

#[test]
fn a_later_job_that_is_revoked_just_after_it_started_takes_no_neighbour_along() {
    let (handler, starts, open) = gated();
    let s = scene(2, Clock::manual(START), handler);
    s.leases(vec![run_of(1, &[1, 2, 3])]);
    let opens = open.clone();
    s.then(move || {
        // Between the engine's look at its workers and the broker's answer, job 1 ends and job 2 starts.
        assert_eq!(next_start(&starts), 1);
        opens.send(()).unwrap();
        assert_eq!(next_start(&starts), 2);
        Ok(Step { revoked: vec![of_lease(1, 2)], ..Step::default() })
    });
    s.told(2);
    let expected = [["commit 1 1 succeeded on 5", "release 1"]];
    assert_eq!(
        s.script.steps(),
        expected,
        "in one step, in this order; its run ends as with any running job"
    );
    open.send(()).unwrap();
    until("its handler returns", || (s.seen().late == 1).then_some(()));
    s.clock.advance(TIMEOUT);
    s.crew.turn();
    assert_eq!(s.script.steps(), expected, "neither job 2 nor job 3 comes to anything");
    assert_eq!((s.seen().room, s.seen().health), (2, Health::Working));
}

#[test]
fn a_revoked_job_is_told_at_once_and_its_worker_takes_the_next_lease() {
    let (started, starts) = channel();
    let started = Mutex::new(started);
    let handler = move |job: &Job, cx: &mut JobContext| {
        started.lock().unwrap().send(number(job.id())).expect("the test listens");
        let slept = number(job.id()) == 1 && cx.sleep(PATIENCE);
        assert!(!slept && (cx.is_cancelled() || number(job.id()) != 1));
        done()
    };
    let s = scene(1, Clock::manual(START), handler);
    s.leases(vec![run_of(1, &[1, 2])]);
    assert_eq!(next_start(&starts), 1);
    let begun = Instant::now();
    s.revoke(1, 1);
    until("its worker is free", || (s.seen().room == 1).then_some(()));
    s.leases(vec![run_of(2, &[3])]);
    assert_eq!(next_start(&starts), 3);
    assert!(begun.elapsed() < PATIENCE / 2, "it slept on");
    assert_eq!(s.told(2), ["release 1", "commit 2 3 succeeded on 5"]);
}

/// The whole process is held up for so long while job 2 of three runs, so that all of it is over before
/// anybody looks at the time. What is told of the jobs, and which of them ran.
fn held_up_for(takes: Duration) -> (Vec<String>, Vec<u64>) {
    let clock = Clock::manual(START);
    let (handlers_clock, ran) = (clock.clone(), Arc::new(Mutex::new(Vec::new())));
    let runs = ran.clone();
    let handler = move |job: &Job, cx: &mut JobContext| {
        assert_eq!(cx.deadline(), handlers_clock.now().plus(TIMEOUT));
        if number(job.id()) == 2 {
            handlers_clock.advance(takes);
        }
        runs.lock().unwrap().push(number(job.id()));
        done()
    };
    let s = scene(1, clock, handler);
    s.then(|| Ok(Step { leases: vec![run_of(1, &[1, 2, 3])], ..Step::default() }));
    // The leader hears nothing before this step ends.
    let all = ran.clone();
    s.then(move || {
        let begun = Instant::now();
        until("the run is over", || (all.lock().unwrap().len() == 3 || begun.elapsed() > SOON).then_some(()));
        Ok(Step::default())
    });
    s.told(2);
    until("its worker is free", || {
        s.crew.turn();
        (s.seen().room == 1 && s.script.state().moves.is_empty()).then_some(())
    });
    s.crew.turn();
    let ran = ran.lock().unwrap().clone();
    (s.script.told(), ran)
}

#[test]
fn a_handler_that_ends_after_its_deadline_is_timed_out_though_nobody_looked_in_between() {
    let in_time = [1, 2, 3].map(|job| format!("commit 1 {job} succeeded on 5"));
    assert_eq!(held_up_for(TIMEOUT), (in_time.to_vec(), vec![1, 2, 3]));
    let (told, _) = held_up_for(TIMEOUT + MICRO);
    assert_eq!(told, ["commit 1 1 succeeded on 5", "commit 1 2 timed_out on 5"]);
}

#[test]
fn what_stands_behind_a_job_that_ended_too_late_does_not_run_in_vain() {
    let (_, ran) = held_up_for(TIMEOUT + MICRO);
    assert_eq!(ran, [1, 2], "the rest of the run is leased again, and runs then");
}

#[test]
fn a_handler_past_its_deadline_is_told_and_the_process_is_stuck_if_it_does_not_listen() {
    let (handler, starts, open) = gated();
    let s = scene(2, Clock::manual(START), handler);
    s.leases(vec![run_of(1, &[1, 2])]);
    assert_eq!(next_start(&starts), 1);
    s.clock.advance(TIMEOUT);
    s.crew.turn();
    assert_eq!(s.told(1), ["commit 1 1 timed_out on 5"]);
    assert_eq!((s.seen().health, s.seen().room), (Health::Working, 1));
    s.clock.advance(GRACE);
    s.crew.turn();
    assert_eq!(s.seen().health, Health::Stuck);
    open.send(()).unwrap();
    until("its worker is free", || Some(s.seen()).filter(|seen| seen.room == 2));
    s.crew.turn();
    assert_eq!((s.seen().health, s.seen().late, s.script.told().len()), (Health::Working, 1, 1));
}

#[test]
fn a_panic_is_a_crash_of_that_job_and_the_crew_goes_on() {
    let handler = |job: &Job, cx: &mut JobContext| {
        cx.state().expect("it is ordered").set("k", *b"staged");
        match number(job.id()) % 4 {
            0 => panic!("text"),
            1 => std::panic::panic_any(7_u8),
            2 => panic!("{}", "formatted"),
            _ => done(),
        }
    };
    let s = scene(2, Clock::manual(START), handler);
    s.script.state().comes_again = true;
    // More panics than there are threads: none of them may be lost.
    s.leases((0..40).map(|job| run_of(job + 1, &[job, job + 100])).collect());
    // A crash ends its run: the job behind it does not start.
    let mut told = s.told(30 + 2 * 10);
    let mut expected: Vec<String> = Vec::new();
    for job in 0..40 {
        let lease = job + 1;
        match job % 4 {
            3 => {
                let jobs = [job, job + 100];
                expected.extend(jobs.map(|job| {
                    // Both have changed the state, each on the version before it.
                    let version = if job < 100 { 5 } else { 1_000 + job - 100 };
                    format!("commit {lease} {job} succeeded on {version}")
                }));
            }
            _ => expected.push(format!("commit {lease} {job} crashed on 5")),
        }
    }
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
    s.crew.turn();
    assert_eq!((s.seen().health, s.seen().room, s.seen().finished), (Health::Working, 2, 50));
}

#[test]
fn a_retry_ends_its_run_and_a_failure_does_not() {
    let handler = |job: &Job, _: &mut JobContext| match number(job.id()) {
        2 | 12 => Err(HandlerError::Fail("no".into())),
        3 => Err(HandlerError::Retry("later".into())),
        _ => done(),
    };
    let s = scene(1, Clock::manual(START), handler);
    s.script.state().comes_again = true;
    s.leases(vec![run_of(1, &[1, 2, 3, 4])]);
    let told = s.told(3);
    assert_eq!(told, ["commit 1 1 succeeded on 5", "commit 1 2 failed on 5", "commit 1 3 retry on 5"]);
    s.leases(vec![run_of(2, &[11, 12, 13])]);
    let told = s.told(6);
    assert_eq!(
        told[3..],
        ["commit 2 11 succeeded on 5", "commit 2 12 failed on 5", "commit 2 13 succeeded on 5"]
    );
}

#[test]
fn what_a_run_has_come_to_is_told_while_its_next_job_is_long() {
    let handler = |job: &Job, cx: &mut JobContext| {
        if number(job.id()) == 3 {
            assert!(cx.sleep(LONG));
        }
        done()
    };
    for is_trained in [false, true] {
        let s = scene(2, Clock::system(), handler);
        s.script.state().comes_again = true;
        if is_trained {
            s.train();
        }
        let before = s.script.told().len();
        let begun = Instant::now();
        s.then(|| Ok(Step { leases: vec![run_of(1, &[1, 2, 3, 4])], ..Step::default() }));
        let told = s.told(before + 2);
        assert!(begun.elapsed() < SOON, "they were told after {:?}", begun.elapsed());
        assert_eq!(told[before..], ["commit 1 1 succeeded on 5", "commit 1 2 succeeded on 5"]);
        assert_eq!(
            s.told(before + 4)[before + 2..],
            ["commit 1 3 succeeded on 5", "commit 1 4 succeeded on 5"]
        );
        assert!(begun.elapsed() >= LONG);
    }
}

#[test]
fn leases_begin_in_their_order_and_each_runs_its_jobs_in_order() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let begun = order.clone();
    let handler = move |job: &Job, _: &mut JobContext| {
        begun.lock().unwrap().push(number(job.id()));
        done()
    };
    let s = scene(1, Clock::manual(START), handler);
    // The clock stands, so jobs take no time.
    s.train();
    let jobs: Vec<u64> = (1..=100).collect();
    let leases = jobs.chunks(2).map(|jobs| run_of(jobs[0], jobs)).collect();
    s.then(|| Ok(Step { leases, ..Step::default() }));
    let told = s.told(SHORT_JOBS + jobs.len());
    assert_eq!(order.lock().unwrap()[SHORT_JOBS..], jobs);
    let told: Vec<&str> =
        told[SHORT_JOBS..].iter().map(|note| note.split(' ').nth(2).expect("a job")).collect();
    assert_eq!(told, jobs.iter().map(u64::to_string).collect::<Vec<String>>(), "nothing was given back");
}

#[test]
fn while_jobs_are_long_leases_beyond_the_workers_are_given_back() {
    let (handler, starts, open) = gated();
    let s = scene(2, Clock::manual(START), handler);
    s.leases((1..=5).map(|lease| run_of(lease, &[lease])).collect());
    let mut first = [next_start(&starts), next_start(&starts)];
    first.sort_unstable();
    assert_eq!(first, [1, 2]);
    assert_eq!(s.told(3), ["release 3", "release 4", "release 5"]);
    open.send(()).unwrap();
    open.send(()).unwrap();
    s.told(5);
    s.crew.turn();
    assert_eq!((starts.try_recv().ok(), s.seen().room), (None, 2), "what was given back does not run here");
}

/// Job 1 begins, and 2 and 3 wait for its worker; what comes of them after it has taken so long.
fn wait_behind_a_long_job(s: &Scene, starts: &Receiver<u64>, open: &Sender<()>) {
    assert_eq!(next_start(starts), 1);
    let before = s.script.told().len();
    s.clock.advance(LONG);
    // Nothing else happens: neither an event nor an outcome wakes anybody.
    let told = s.told(before + 2);
    assert_eq!(told[before..], ["release 2", "release 3"]);
    open.send(()).unwrap();
    assert_eq!(s.told(before + 3)[before + 2..], ["commit 1 1 succeeded on 5"]);
}

#[test]
fn what_waits_behind_a_job_that_turns_out_long_is_given_back_if_the_leader_has_taken_that_job() {
    let (handler, starts, open) = gated();
    let s = scene(1, Clock::manual(START), handler);
    s.train();
    s.then(|| Ok(Step { leases: (1..=3).map(|lease| run_of(lease, &[lease])).collect(), ..Step::default() }));
    wait_behind_a_long_job(&s, &starts, &open);
}

#[test]
fn what_waits_behind_a_job_that_turns_out_long_is_given_back_if_a_leader_waits_beside_it() {
    let (handler, starts, open) = gated();
    let (first, has_begun) = channel();
    let first = Mutex::new(first);
    let handler = move |job: &Job, cx: &mut JobContext| {
        if number(job.id()) == 1 {
            let _ = first.lock().unwrap().send(());
        }
        handler.handle(job, cx)
    };
    let s = scene(1, Clock::manual(START), handler);
    s.train();
    s.leases_and((1..=3).map(|lease| run_of(lease, &[lease])).collect(), move || {
        // The other thread has taken the first run. If it does not, the leader will, which is the other
        // test's matter.
        let _ = has_begun.recv_timeout(SOON);
        Ok(Step::default())
    });
    s.told(SHORT_JOBS + 1);
    wait_behind_a_long_job(&s, &starts, &open);
}

#[test]
fn a_lost_broker_ends_every_run_and_the_crew_serves_the_next_one() {
    let (started, starts) = channel();
    let started = Mutex::new(started);
    let handler = move |job: &Job, cx: &mut JobContext| {
        started.lock().unwrap().send(number(job.id())).expect("the test listens");
        let slept = number(job.id()) < 100 && cx.sleep(PATIENCE);
        assert!(!slept, "it is told");
        done()
    };
    let s = scene(2, Clock::manual(START), handler);
    s.leases(vec![run_of(1, &[1, 2]), run_of(2, &[3])]);
    let mut running = [next_start(&starts), next_start(&starts)];
    running.sort_unstable();
    assert_eq!(running, [1, 3]);
    s.then(|| Err(BackendError("gone".into())));
    until("both handlers have returned", || Some(s.seen()).filter(|seen| (seen.late, seen.room) == (2, 2)));
    assert_serves(&s);
    let mut ran: Vec<u64> = starts.try_iter().collect();
    ran.sort_unstable();
    assert_eq!(ran, [100, 101], "job 2 is another's now");
}

#[test]
fn a_lost_broker_takes_what_has_waited_for_a_worker_along_and_the_crew_serves_the_next_one() {
    for waiting in [1, 2, 60] {
        let s = scene(2, Clock::manual(START), |_: &Job, _: &mut JobContext| done());
        s.train();
        // While jobs are short these wait here.
        s.leases_and((1..=waiting).map(|lease| run_of(lease, &[lease])).collect(), || {
            Err(BackendError("gone".into()))
        });
        until("it is lost", || s.script.state().moves.is_empty().then_some(()));
        assert_serves(&s);
    }
}

/// Nothing that went with the broker is left: there is a worker for each new lease.
#[track_caller]
fn assert_serves(s: &Scene) {
    s.crew.turn();
    s.clock.advance(GRACE);
    s.crew.turn();
    assert_eq!((s.seen().health, s.seen().room), (Health::Working, 2));
    s.script.state().comes_again = true;
    let before = s.script.told().len();
    s.leases(vec![run_of(100, &[100]), run_of(101, &[101])]);
    let mut told = s.told(before + 2);
    told[before..].sort();
    assert_eq!(told[before..], ["commit 100 100 succeeded on 5", "commit 101 101 succeeded on 5"]);
}

#[test]
fn a_crew_is_drained_only_when_the_broker_knows_all_that_came_of_it() {
    let (handler, starts, open) = gated();
    let s = scene(2, Clock::manual(START), handler);
    s.script.state().is_unsettled = true;
    s.leases(vec![run_of(1, &[1, 2])]);
    assert_eq!(next_start(&starts), 1);
    s.crew.drain();
    s.crew.turn();
    assert_eq!((s.seen().health, s.seen().room), (Health::Working, 0));
    open.send(()).unwrap();
    assert_eq!(
        s.told(2),
        ["commit 1 1 succeeded on 5", "release 1"],
        "the job that runs ends, its run as well"
    );
    s.crew.turn();
    assert_eq!((s.seen().health, s.crew.ended.try_recv().ok()), (Health::Working, None), "it was only said");
    s.script.state().is_unsettled = false;
    s.crew.ring();
    assert_eq!(s.crew.ended.recv_timeout(PATIENCE), Ok(Ended::Drained));
    assert_eq!((s.seen().health, starts.try_recv().ok(), s.script.told().len()), (Health::Drained, None, 2));
}

#[test]
fn a_drained_crew_does_not_wait_for_a_handler_whose_run_is_over() {
    let (handler, starts, open) = gated();
    let s = scene(1, Clock::manual(START), handler);
    s.leases(vec![run_of(1, &[1, 2])]);
    assert_eq!(next_start(&starts), 1);
    s.crew.drain();
    s.clock.advance(TIMEOUT);
    s.crew.ring();
    assert_eq!(s.crew.ended.recv_timeout(PATIENCE), Ok(Ended::Drained));
    assert_eq!(s.script.told(), ["commit 1 1 timed_out on 5"]);
    open.send(()).unwrap();
}

#[test]
fn a_bug_of_ours_under_the_helm_ends_the_crew_without_a_word_whatever_handlers_do() {
    let (handler, starts, open) = gated();
    let s = scene(2, Clock::manual(START), handler);
    s.leases(vec![run_of(1, &[1])]);
    assert_eq!(next_start(&starts), 1);
    s.then(|| std::panic::resume_unwind(Box::new("a bug of ours")));
    let ended = s.crew.ended.recv_timeout(PATIENCE / 4);
    assert_eq!(ended, Err(RecvTimeoutError::Disconnected), "whoever waits for the crew hears of it");
    open.send(()).unwrap();
}
