//! The executor's books: what is asked of the broker when time passes, leases end, and workers speak.
//!
//! Most scenarios drive [`Core`] alone, a pure value. Those at the end put real workers and a scripted broker
//! around it, for what happens between a worker's word and its being heard.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cofferdam::HandlerOptions;
use cofferdam::bell::Bell;
use cofferdam::clock::{Clock, Timestamp};
use cofferdam::execution::{
    Contexts, Core, Done, Engine, Health, Job, JobContext, Limits, Requests, Run, WorkerPool,
};
use cofferdam::handler::HandlerSpec;
use cofferdam::job::{Change, Effects, Entries, JobId, JobSpec, Payload, Trace, Verdict, Version};
use cofferdam::ports::{
    BackendError, Commit, CommitAnswer, CommitResult, Consumer, Lease, LeaseRef, LeasedJob, ReleaseReason,
    Revoked, StateAt, Step,
};
use cofferdam::problem::{Code, JobError};

const START: Timestamp = Timestamp(1_000_000_000);
const TIMEOUT: Duration = Duration::from_secs(30);
const LIMITS: Limits = Limits {
    max_payload: 1 << 20,
    lane_state_max: 1_000,
    grace: Duration::from_secs(10),
    visibility: Duration::from_secs(30),
};

/// The core, a clock, and what it has asked for as short texts.
struct Scene {
    core: Core,
    now: Timestamp,
}

fn scene(workers: usize) -> Scene {
    Scene { core: Core::new(workers, LIMITS), now: START }
}

fn id(job: u8) -> JobId {
    JobId([job; 16])
}

fn leased(job: u8, lane: &str) -> LeasedJob {
    let spec = JobSpec {
        id: id(job),
        owner: Arc::from(""),
        handler: Arc::from("h"),
        ordering_key: Some(Arc::from(lane)),
        trace: Trace { id: [job; 16], span: [1; 8] },
        submitted_at: START,
        timeout: TIMEOUT,
        one_line: false,
    };
    let payload = Payload::json([job]);
    LeasedJob { spec: Arc::new(spec), payload, delivery: 1, fence: fence(job).0, context: Entries::new() }
}

fn fence(job: u8) -> Version {
    Version(1_000 + u64::from(job))
}

fn lease_of(number: u64, lane: &str, jobs: &[u8], state: StateAt) -> Lease {
    let lease = LeaseRef { number, token: [7; 16] };
    let jobs = jobs.iter().map(|job| leased(*job, lane)).collect();
    Lease { lease, handler: Arc::from("h"), state, jobs }
}

fn whole(bytes: usize) -> StateAt {
    let state = Entries::from([(Arc::from("k"), Arc::from(vec![b'x'; bytes]))]);
    StateAt::Whole(Version(5), state)
}

fn succeeded() -> Verdict {
    Verdict::Succeeded(Payload::json(*b"1"), Effects::default())
}

fn changed() -> Verdict {
    let state = vec![Change { key: Arc::from("k"), value: Some(Arc::from(*b"v")) }];
    Verdict::Succeeded(Payload::json(*b"1"), Effects { state, ..Effects::default() })
}

fn failed() -> Verdict {
    Verdict::Failed(JobError::new(Code::HandlerFailed, "no"))
}

/// A free worker takes the run at once.
fn started(task: Option<Run>, now: Timestamp) -> Option<Run> {
    if let Some(task) = &task {
        task.control.start(now);
    }
    task
}

impl Scene {
    fn lease(&mut self, number: u64, lane: &str, jobs: &[u8], state: StateAt) -> Option<Run> {
        started(self.core.on_lease(lease_of(number, lane, jobs, state)), self.now)
    }

    fn outcome(&mut self, lease: u64, job: u8, verdict: Verdict, builds_on: Version) {
        self.core.on_done(Done::Outcome { lease, job: id(job), verdict, builds_on, at: self.now });
    }

    fn end(&mut self, lease: u64, version: Version) {
        self.end_with(lease, Contexts::new(version, Entries::new()));
    }

    fn end_with(&mut self, lease: u64, contexts: Contexts) {
        self.core.on_done(Done::End { lease, contexts });
    }

    fn fenced(&mut self, lease: u64, job: u8) {
        let answer = CommitAnswer { lease, job: id(job), result: CommitResult::Fenced };
        self.core.on_answer(answer, self.now);
    }

    fn revoked(&mut self, lease: u64, job: u8) {
        self.core.on_revoked(Revoked { lease, job: id(job) }, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.core.on_time(self.now);
    }

    fn next_deadline(&self) -> Option<Timestamp> {
        self.core.next_deadline()
    }

    /// `commit LEASE JOB VERDICT on VERSION`, `release LEASE REASON`.
    fn asked(&mut self) -> Vec<String> {
        let Requests { commits, releases } = self.core.take_requests();
        let released = releases.iter().map(|(lease, reason)| format!("release {} {reason:?}", lease.number));
        commits.iter().map(told_commit).chain(released).collect()
    }
}

fn told_commit(commit: &Commit) -> String {
    assert_eq!((commit.lease.token, commit.delivery), ([7; 16], 1));
    let verdict = match &commit.verdict {
        Verdict::Succeeded(..) => "succeeded",
        Verdict::Failed(_) => "failed",
        Verdict::Retry(_) => "retry",
        Verdict::Crashed(_) => "crashed",
        Verdict::TimedOut => "timed_out",
    };
    format!("commit {} {} {verdict} on {}", commit.lease.number, commit.job.0[0], commit.builds_on.0)
}

#[test]
fn there_is_room_for_one_lease_a_free_worker() {
    let mut s = scene(2);
    assert_eq!((s.core.room(false), s.core.busy()), (2, 0));
    s.lease(1, "a", &[1], StateAt::Stateless).expect("a task");
    s.lease(2, "b", &[2, 3], whole(0)).expect("a task");
    assert_eq!((s.core.room(false), s.core.busy()), (0, 2));
    s.outcome(2, 2, succeeded(), Version(5));
    assert_eq!(s.core.room(false), 0, "the run goes on");
    s.outcome(1, 1, succeeded(), Version(0));
    s.end(1, Version(0));
    assert_eq!((s.core.room(false), s.core.busy()), (1, 1));
}

#[test]
fn a_task_carries_the_lease_and_its_state() {
    let mut s = scene(1);
    let task = s.lease(1, "a", &[1, 2], whole(3)).expect("a task");
    assert_eq!((task.lease, &*task.handler, task.contexts.version), (1, "h", Version(5)));
    assert_eq!(task.jobs.iter().map(|job| job.spec.id).collect::<Vec<_>>(), [id(1), id(2)]);
    assert_eq!((task.contexts.state.len(), task.contexts.state_bytes), (1, 4));
    assert!(!task.control.is_ended());
}

#[test]
fn outcomes_are_committed_in_order_on_the_version_that_the_handler_saw() {
    let mut s = scene(1);
    s.lease(1, "a", &[1, 2, 3, 4], whole(0));
    s.outcome(1, 1, succeeded(), Version(5));
    s.outcome(1, 2, changed(), Version(5));
    s.outcome(1, 3, failed(), fence(2));
    s.outcome(1, 4, Verdict::Retry("later".into()), fence(2));
    s.end(1, fence(2));
    let expected = [
        "commit 1 1 succeeded on 5",
        "commit 1 2 succeeded on 5",
        "commit 1 3 failed on 1002",
        "commit 1 4 retry on 1002",
    ];
    assert_eq!(s.asked(), expected);
    assert!(s.asked().is_empty(), "each request is asked once");
}

#[test]
fn a_known_state_is_used_only_if_it_is_here_in_that_version() {
    let known = |version| StateAt::Known(version);
    // What ended the run before, and whether its state may be built on.
    type Before = fn(&mut Scene);
    let cases: [(&str, Before, bool); 9] = [
        ("nothing", |_| {}, false),
        ("success", |s| s.outcome(1, 1, changed(), Version(5)), true),
        ("failure", |s| s.outcome(1, 1, failed(), Version(5)), true),
        ("retry", |s| s.outcome(1, 1, Verdict::Retry("".into()), Version(5)), false),
        ("crash", |s| s.outcome(1, 1, Verdict::Crashed("".into()), Version(5)), false),
        ("timeout", |s| s.pass(TIMEOUT), false),
        ("cancel", |s| s.revoked(1, 1), false),
        (
            "fence",
            |s| {
                s.outcome(1, 1, changed(), Version(5));
                s.fenced(1, 1);
            },
            false,
        ),
        ("lost broker", |s| s.core.abandon(s.now), false),
    ];
    for (before, end, is_kept) in cases {
        let mut s = scene(1);
        let version = fence(1);
        if before != "nothing" {
            s.lease(1, "a", &[1], whole(3));
            end(&mut s);
            s.end_with(1, Contexts::new(version, Entries::from([(Arc::from("k"), Arc::from(*b"new"))])));
            s.asked();
        }
        let task = s.lease(2, "a", &[2], known(version));
        let state = task.and_then(|task| task.contexts.state.get("k").cloned());
        assert_eq!(state.as_deref(), is_kept.then_some(&b"new"[..]), "{before}");
        let asked = if is_kept { vec![] } else { vec!["release 2 NeedState"] };
        assert_eq!(s.asked(), asked, "{before}");
        assert_eq!(s.core.busy(), usize::from(is_kept), "{before}");
    }
    for (lane, version) in [("a", Version(6)), ("b", Version(5))] {
        let mut s = scene(1);
        s.lease(1, "a", &[1], whole(3));
        s.outcome(1, 1, succeeded(), Version(5));
        s.end(1, Version(5));
        s.asked();
        assert!(s.lease(2, lane, &[2], known(version)).is_none(), "another lane, another version");
        assert_eq!(s.asked(), ["release 2 NeedState"]);
    }
}

#[test]
fn a_fence_that_comes_after_the_run_forgets_its_state_and_no_other() {
    let mut s = scene(2);
    for (number, lane) in [(1, "a"), (2, "b")] {
        s.lease(number, lane, &[number as u8], whole(0));
        s.outcome(number, number as u8, succeeded(), Version(5));
        s.end(number, Version(5));
    }
    s.fenced(1, 1);
    s.asked();
    assert!(s.lease(3, "a", &[3], StateAt::Known(Version(5))).is_none());
    assert!(s.lease(4, "b", &[4], StateAt::Known(Version(5))).is_some());
}

#[test]
fn a_whole_state_replaces_what_was_known() {
    let mut s = scene(1);
    s.lease(1, "a", &[1], whole(3));
    s.outcome(1, 1, changed(), Version(5));
    s.end(1, fence(1));
    let other = StateAt::Whole(Version(9), Entries::new());
    let task = s.lease(2, "a", &[2], other).expect("a task");
    assert_eq!((task.contexts.version, task.contexts.state.len()), (Version(9), 0));
}

#[test]
fn states_beyond_twice_a_lanes_bound_are_forgotten_longest_unused_first() {
    // Two of these fit into 2,000 bytes.
    let contexts = || Contexts::new(Version(5), Entries::from([(Arc::from("k"), Arc::from(vec![0; 699]))]));
    let mut s = scene(1);
    let mut number = 0;
    let mut is_known = |lane: &str, state: StateAt| {
        number += 1;
        let is_known = s.lease(number, lane, &[1], state).is_some();
        s.end_with(number, contexts());
        is_known
    };
    is_known("a", whole(0));
    is_known("b", whole(0));
    assert!(is_known("a", StateAt::Known(Version(5))), "used again");
    is_known("c", whole(0));
    let known = ["a", "b", "c"].map(|lane| is_known(lane, StateAt::Known(Version(5))));
    assert_eq!(known, [true, false, true]);
}

#[test]
fn a_handler_past_its_time_is_timed_out_whatever_its_worker_does() {
    let mut s = scene(2);
    let task = s.lease(1, "a", &[1, 2, 3], whole(0)).expect("a task");
    s.outcome(1, 1, changed(), Version(5));
    s.asked();
    s.pass(TIMEOUT - Duration::from_micros(1));
    assert!(s.asked().is_empty() && !task.control.is_ended());
    s.pass(Duration::from_micros(1));
    assert_eq!(s.asked(), [format!("commit 1 2 timed_out on {}", fence(1).0)]);
    assert!(task.control.is_ended(), "its handler is told");
    assert_eq!(s.core.room(false), 1, "its worker stays taken");
    s.outcome(1, 2, changed(), fence(1));
    s.outcome(1, 3, changed(), fence(2));
    s.pass(TIMEOUT);
    assert!(s.asked().is_empty(), "what comes later is dropped, and time strikes once");
    assert_eq!(s.core.late, 2);
    s.end(1, fence(3));
    assert_eq!((s.core.room(false), s.asked()), (2, vec![]));
}

#[test]
fn each_job_of_a_run_has_its_own_time_from_its_own_start() {
    let mut s = scene(1);
    s.lease(1, "a", &[1, 2, 3], whole(0));
    for job in [1, 2] {
        s.pass(TIMEOUT - Duration::from_millis(1));
        assert!(s.next_deadline().is_some_and(|at| at <= s.now.plus(Duration::from_millis(1))));
        s.outcome(1, job, succeeded(), Version(5));
        assert_eq!(s.asked().len(), 1);
    }
    s.pass(TIMEOUT - Duration::from_millis(1));
    assert!(s.asked().is_empty());
    s.outcome(1, 3, succeeded(), Version(5));
    s.pass(TIMEOUT);
    assert_eq!(s.asked(), ["commit 1 3 succeeded on 5"]);
}

#[test]
fn a_shorter_timeout_of_one_job_is_its_own() {
    let mut s = scene(2);
    let mut lease = lease_of(1, "a", &[1], StateAt::Stateless);
    let spec = Arc::get_mut(&mut lease.jobs[0].spec).expect("its only owner");
    spec.timeout = Duration::from_millis(5);
    started(s.core.on_lease(lease), s.now);
    s.lease(2, "b", &[2], StateAt::Stateless);
    assert_eq!(s.next_deadline(), Some(START.plus(Duration::from_millis(5))));
    s.pass(Duration::from_millis(5));
    assert_eq!(s.asked(), ["commit 1 1 timed_out on 0"]);
}

#[test]
fn a_fenced_run_counts_no_more() {
    let mut s = scene(2);
    let task = s.lease(1, "a", &[1, 2], whole(0)).expect("a task");
    s.outcome(1, 1, succeeded(), Version(5));
    s.asked();
    s.fenced(1, 1);
    assert!(task.control.is_ended());
    s.outcome(1, 2, succeeded(), Version(5));
    s.pass(TIMEOUT);
    s.revoked(1, 2);
    s.end(1, Version(5));
    assert_eq!((s.asked(), s.core.late, s.core.room(false)), (vec![], 1, 2), "neither commit nor release");
}

#[test]
fn a_repeated_commits_answer_changes_nothing() {
    let mut s = scene(1);
    let task = s.lease(1, "a", &[1, 2], whole(0)).expect("a task");
    s.outcome(1, 1, succeeded(), Version(5));
    for result in [CommitResult::Committed, CommitResult::AlreadyCommitted] {
        s.core.on_answer(CommitAnswer { lease: 1, job: id(1), result }, s.now);
    }
    assert!(!task.control.is_ended());
    s.outcome(1, 2, succeeded(), Version(5));
    assert_eq!(s.asked().len(), 2);
}

#[test]
fn a_revoked_running_job_ends_its_run_and_gives_back_the_rest() {
    let mut s = scene(1);
    let task = s.lease(1, "a", &[1, 2, 3], whole(0)).expect("a task");
    s.outcome(1, 1, succeeded(), Version(5));
    s.revoked(1, 2);
    assert_eq!(s.asked(), ["commit 1 1 succeeded on 5", "release 1 RunEnded"]);
    assert!(task.control.is_ended());
    s.revoked(1, 2);
    s.outcome(1, 2, succeeded(), Version(5));
    s.end(1, Version(5));
    assert_eq!((s.asked(), s.core.late), (vec![], 1));
}

#[test]
fn a_revoked_later_job_is_left_out_and_the_run_goes_on() {
    let mut s = scene(1);
    let task = s.lease(1, "a", &[1, 2, 3], whole(0)).expect("a task");
    s.revoked(1, 2);
    assert!(!task.control.is_ended());
    s.outcome(1, 1, succeeded(), Version(5));
    s.outcome(1, 3, succeeded(), Version(5));
    s.end(1, Version(5));
    assert_eq!(s.asked(), ["commit 1 1 succeeded on 5", "commit 1 3 succeeded on 5"]);
}

#[test]
fn what_is_revoked_but_not_here_any_more_is_ignored() {
    let mut s = scene(1);
    s.lease(1, "a", &[1, 2], whole(0));
    s.outcome(1, 1, succeeded(), Version(5));
    s.asked();
    s.revoked(1, 1);
    s.revoked(1, 9);
    s.revoked(9, 1);
    s.outcome(1, 2, succeeded(), Version(5));
    s.revoked(1, 2);
    assert_eq!(s.asked(), ["commit 1 2 succeeded on 5"]);
}

#[test]
fn a_drain_finishes_what_runs_and_gives_back_the_rest() {
    let mut s = scene(3);
    s.lease(1, "a", &[1, 2, 3], whole(0));
    s.core.drain(s.now);
    assert_eq!(s.core.room(false), 0);
    assert!(!s.core.is_drained());
    assert!(s.lease(2, "b", &[4], whole(0)).is_none(), "a lease that was on its way");
    assert_eq!(s.asked(), ["release 2 Draining"]);
    s.outcome(1, 1, succeeded(), Version(5));
    s.end(1, Version(5));
    assert!(!s.core.is_drained(), "the broker must still be told");
    assert_eq!(s.asked(), ["commit 1 1 succeeded on 5", "release 1 Draining"]);
    assert!(s.core.is_drained());
}

#[test]
fn a_drain_does_not_wait_for_handlers_whose_run_has_ended() {
    let mut s = scene(2);
    assert!(!s.core.is_drained(), "nobody asked for it");
    s.lease(1, "a", &[1, 2], whole(0));
    s.core.drain(s.now);
    s.pass(TIMEOUT);
    assert_eq!(s.asked(), ["commit 1 1 timed_out on 5"]);
    assert!(s.core.is_drained() && s.core.busy() == 1);
    let mut idle = scene(2);
    idle.core.drain(idle.now);
    assert!(idle.core.is_drained());
}

#[test]
fn a_lost_broker_ends_every_run_and_every_state() {
    let mut s = scene(3);
    s.lease(1, "a", &[1], whole(0));
    s.outcome(1, 1, succeeded(), Version(5));
    s.end(1, Version(5));
    let tasks =
        [2, 3].map(|n| s.lease(n, &n.to_string(), &[n as u8, n as u8 + 10], whole(0)).expect("a task"));
    s.outcome(2, 2, succeeded(), Version(5));
    s.core.abandon(s.now);
    assert!(s.asked().is_empty(), "nobody is there to be told");
    assert!(tasks.iter().all(|task| task.control.is_ended()));
    assert_eq!(s.core.room(false), 1, "workers are free when their handlers return");
    s.outcome(3, 3, succeeded(), Version(5));
    s.end(2, Version(5));
    s.end(3, Version(5));
    assert_eq!((s.asked(), s.core.room(false)), (vec![], 3));
    assert!(s.lease(4, "a", &[4], StateAt::Known(Version(5))).is_none());
}

#[test]
fn a_handler_that_ignores_its_end_makes_the_process_stuck_after_the_grace() {
    let mut s = scene(3);
    s.lease(1, "a", &[1], StateAt::Stateless);
    s.lease(2, "b", &[2], StateAt::Stateless);
    s.revoked(1, 1);
    assert_eq!(s.next_deadline(), Some(START.plus(LIMITS.grace)));
    s.pass(LIMITS.grace - Duration::from_micros(1));
    assert!(!s.core.is_stuck(s.now));
    s.pass(Duration::from_micros(1));
    assert!(s.core.is_stuck(s.now));
    s.end(1, Version(0));
    assert!(!s.core.is_stuck(s.now), "it returned after all");
    assert_eq!(s.next_deadline(), Some(START.plus(TIMEOUT)));
}

#[test]
fn a_process_whose_workers_are_all_held_is_stuck_after_a_moment() {
    let mut s = scene(2);
    for lease in [1, 2] {
        assert!(!s.core.is_stuck(s.now));
        s.lease(lease, &lease.to_string(), &[lease as u8], StateAt::Stateless);
        s.fenced(lease, lease as u8);
    }
    assert!(!s.core.is_stuck(s.now), "a handler that listens is given the time to return");
    s.pass(Duration::from_millis(250));
    assert!(s.core.is_stuck(s.now));
    s.end(2, Version(0));
    assert!(!s.core.is_stuck(s.now));
}

// Real workers from here on; the broker is a script.

type Move = Box<dyn FnOnce() -> Step + Send>;

/// A broker that says what the script says, and takes notes.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<(VecDeque<Move>, Vec<String>)>>);

impl Script {
    fn then(self, next: impl FnOnce() -> Step + Send + 'static) -> Script {
        self.0.lock().unwrap().0.push_back(Box::new(next));
        self
    }

    fn told(&self) -> Vec<String> {
        self.0.lock().unwrap().1.clone()
    }
}

impl Consumer for Script {
    fn step(&mut self, commits: Vec<Commit>, _: usize) -> Result<Step, BackendError> {
        self.0.lock().unwrap().1.extend(commits.iter().map(told_commit));
        let next = self.0.lock().unwrap().0.pop_front();
        let mut step = next.map_or_else(Step::default, |next| next());
        let result = CommitResult::Committed;
        step.results =
            commits.iter().map(|c| CommitAnswer { lease: c.lease.number, job: c.job, result }).collect();
        Ok(step)
    }

    fn release(&mut self, lease: LeaseRef, reason: ReleaseReason) -> Result<(), BackendError> {
        self.0.lock().unwrap().1.push(format!("release {} {reason:?}", lease.number));
        Ok(())
    }

    fn extend(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
}

/// A handler that says which job it starts, and goes on when it is told to.
fn gated() -> (impl cofferdam::Handler, Receiver<u8>, Sender<()>) {
    let (started, starts) = channel();
    let (open, gate) = channel();
    let (started, gate) = (Mutex::new(started), Mutex::new(gate));
    let handler = move |job: &Job, _: &mut JobContext| {
        started.lock().unwrap().send(job.id().0[0]).expect("the test listens");
        // Bounded, so that a test that fails leaves no thread.
        let _ = gate.lock().unwrap().recv_timeout(Duration::from_secs(20));
        Ok(Payload::json(*b"1"))
    };
    (handler, starts, open)
}

fn next_start(starts: &Receiver<u8>) -> u8 {
    starts.recv_timeout(Duration::from_secs(10)).expect("a job starts")
}

/// Turns until the broker was told this much, or ten seconds have passed.
fn turn_until(engine: &mut Engine<Script>, clock: &Clock, script: &Script, told: usize) {
    let until = Instant::now() + Duration::from_secs(10);
    while script.told().len() < told && Instant::now() < until {
        engine.turn(clock.now()).expect("a script is never lost");
        std::thread::yield_now();
    }
}

fn engine(script: &Script, handler: impl cofferdam::Handler + 'static, clock: &Clock) -> Engine<Script> {
    let options = HandlerOptions::serial();
    let spec = HandlerSpec { name: Arc::from("h"), group: 0, options };
    let handlers: Vec<(HandlerSpec, Arc<dyn cofferdam::Handler>)> = vec![(spec, Arc::new(handler))];
    let pool = WorkerPool::start(2, handlers, LIMITS, clock.clone(), Bell::silent()).expect("threads");
    Engine::new(pool, 2, script.clone(), LIMITS)
}

fn lease_step(jobs: &[u8]) -> Step {
    Step { leases: vec![lease_of(1, "a", jobs, whole(0))], ..Step::default() }
}

#[test]
fn a_later_job_that_is_revoked_in_time_never_starts() {
    let (handler, starts, open) = gated();
    let clock = Clock::manual(START);
    let revoked = || Step { revoked: vec![Revoked { lease: 1, job: id(2) }], ..Step::default() };
    let script = Script::default().then(|| lease_step(&[1, 2, 3])).then(revoked);
    let mut engine = engine(&script, handler, &clock);
    engine.turn(clock.now()).unwrap();
    assert_eq!(next_start(&starts), 1);
    engine.turn(clock.now()).unwrap();
    open.send(()).unwrap();
    open.send(()).unwrap();
    assert_eq!(next_start(&starts), 3);
    turn_until(&mut engine, &clock, &script, 2);
    assert_eq!(script.told(), ["commit 1 1 succeeded on 5", "commit 1 3 succeeded on 5"]);
    assert_eq!(engine.health(clock.now()), Health::Working);
}

#[test]
fn a_later_job_that_is_revoked_just_after_it_started_takes_no_neighbour_along() {
    let (handler, starts, open) = gated();
    let clock = Clock::manual(START);
    let opens = open.clone();
    let script = Script::default().then(|| lease_step(&[1, 2, 3])).then(move || {
        // Between the engine's look at its workers and the broker's answer, job 1 ends and job 2 starts.
        assert_eq!(next_start(&starts), 1);
        opens.send(()).unwrap();
        assert_eq!(next_start(&starts), 2);
        Step { revoked: vec![Revoked { lease: 1, job: id(2) }], ..Step::default() }
    });
    let mut engine = engine(&script, handler, &clock);
    engine.turn(clock.now()).unwrap();
    engine.turn(clock.now()).unwrap();
    turn_until(&mut engine, &clock, &script, 1);
    clock.advance(TIMEOUT);
    engine.turn(clock.now()).unwrap();
    engine.turn(clock.now()).unwrap();
    let told = script.told();
    assert_eq!(told[0], "commit 1 1 succeeded on 5");
    assert!(!told.iter().any(|said| said.starts_with("commit 1 3")), "job 3 never started: {told:?}");
    assert!(
        told.contains(&"release 1 RunEnded".to_owned()),
        "its run ends as with any running job: {told:?}"
    );
    open.send(()).unwrap();
}
