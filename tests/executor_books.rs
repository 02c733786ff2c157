//! The executor's books: what is asked of the broker when time passes, leases end, and workers speak.
//!
//! Every scenario drives [`Books`] alone, a pure value. What happens between a worker's word and its being
//! heard is the matter of `executor_crew.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam::clock::Timestamp;
use cofferdam::execution::{Books, Done, Run, RunMaps};
use cofferdam::job::{Entries, Outcome, Progress, Version};
use cofferdam::ports::{LeaseId, OfLease, Rules, StateAt};

use support::leases::{
    GRACE, START, TIMEOUT, changed, crashed, entries, failed, fence, id, lease_of, retry, rules, succeeded,
    told, whole,
};

mod support {
    pub mod leases;
}

/// When all workers are held by runs that are over, the process is stuck so soon.
const ALL_OVER_GRACE: Duration = Duration::from_millis(250);
const MICRO: Duration = Duration::from_micros(1);

/// The books and a clock.
struct Scene {
    books: Books,
    now: Timestamp,
}

fn scene(workers: usize) -> Scene {
    Scene { books: Books::new(workers, rules()), now: START }
}

impl Scene {
    /// A lease comes, and a free worker takes its run at once.
    fn lease(&mut self, lease: u64, lane: &str, jobs: &[u64], state: StateAt) -> Option<Run> {
        let run = self.lease_that_waits(lease, lane, jobs, state);
        run.iter().for_each(|run| run.stop.start(self.now));
        run
    }

    /// A lease comes, and no worker is free.
    fn lease_that_waits(&mut self, lease: u64, lane: &str, jobs: &[u64], state: StateAt) -> Option<Run> {
        self.books.on_lease(lease_of(lease, lane, jobs, state))
    }

    fn outcome(&mut self, lease: u64, job: u64, outcome: Outcome, builds_on: Version) {
        self.outcome_at(lease, job, outcome, builds_on, self.now);
    }

    /// The handler ended at this time; it is heard now.
    fn outcome_at(&mut self, lease: u64, job: u64, outcome: Outcome, builds_on: Version, at: Timestamp) {
        let (lease, job, progress) = (LeaseId(lease), id(job), None);
        self.books.on_done(Done::Outcome { lease, job, outcome, progress, builds_on, at });
    }

    fn end(&mut self, lease: u64, version: Version) {
        self.end_with(lease, RunMaps::new(version, Entries::new()));
    }

    fn end_with(&mut self, lease: u64, maps: RunMaps) {
        self.books.on_done(Done::End { lease: LeaseId(lease), maps });
    }

    fn fenced(&mut self, lease: u64, job: u64) {
        self.books.on_fenced(OfLease { lease: LeaseId(lease), job: id(job) }, self.now);
    }

    fn revoked(&mut self, lease: u64, job: u64) {
        self.books.on_revoked(OfLease { lease: LeaseId(lease), job: id(job) }, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.books.on_time(self.now);
    }

    fn is_stuck(&self) -> bool {
        self.books.is_stuck(self.now)
    }

    /// What is to be told in the next step.
    fn asked(&mut self) -> Vec<String> {
        told(&self.books.take_requests())
    }
}

#[test]
fn room_is_for_one_lease_a_worker_that_no_run_holds_past_its_end() {
    let mut s = scene(2);
    assert_eq!(s.books.room(false), 2);
    s.lease(1, "a", &[1], StateAt::Stateless).expect("a run");
    s.lease(2, "b", &[2, 3], whole(0)).expect("a run");
    assert_eq!(s.books.room(false), 2, "leases at once, those that it has included");
    s.outcome(2, 2, succeeded(), Version(5));
    s.fenced(1, 1);
    assert_eq!(s.books.room(false), 1, "the broker has its lease back, its worker is not free yet");
    s.revoked(2, 3);
    assert_eq!(s.books.room(false), 0);
    s.end(1, Version(0));
    assert_eq!(s.books.room(false), 1);
    s.end(2, Version(5));
    assert_eq!(s.books.room(false), 2);
}

#[test]
fn while_jobs_are_short_there_is_room_for_more_leases_than_workers() {
    for (workers, most) in [(1, 64), (2, 64), (64, 64), (100, 100)] {
        let mut s = scene(workers);
        assert_eq!((s.books.room(false), s.books.room(true)), (workers, most));
        s.lease(1, "a", &[1], StateAt::Stateless).expect("a run");
        s.fenced(1, 1);
        let left = if workers == 1 { 0 } else { most - 1 };
        assert_eq!(s.books.room(true), left, "without a free worker nothing is short");
        s.end(1, Version(0));
        s.books.drain(s.now);
        assert_eq!((s.books.room(false), s.books.room(true)), (0, 0));
    }
}

#[test]
fn a_run_carries_the_lease_and_its_state() {
    let mut s = scene(1);
    assert!(!s.books.has_worked);
    let run = s.lease(1, "a", &[1, 2], whole(3)).expect("a run");
    assert_eq!((run.lease, &*run.handler, run.maps.version), (LeaseId(1), "h", Version(5)));
    assert_eq!(run.jobs.iter().map(|job| job.spec.id).collect::<Vec<_>>(), [id(1), id(2)]);
    assert_eq!((run.maps.state.len(), run.maps.state_bytes), (1, 4));
    assert!(!run.stop.is_ended() && s.books.has_worked);
}

#[test]
fn outcomes_are_committed_in_order_on_the_version_that_the_handler_saw() {
    let mut s = scene(1);
    s.lease(1, "a", &[1, 2, 3, 4], whole(0));
    s.outcome(1, 1, succeeded(), Version(5));
    s.outcome(1, 2, changed(), Version(5));
    s.outcome(1, 3, failed(), fence(2));
    s.outcome(1, 4, retry(), fence(2));
    s.end(1, fence(2));
    let expected = [
        "commit 1 1 succeeded on 5",
        "commit 1 2 succeeded on 5",
        "commit 1 3 failed on 1002",
        "commit 1 4 retry on 1002",
    ];
    assert_eq!(s.asked(), expected);
    assert_eq!((s.books.finished, s.books.late), (4, 0));
    assert!(s.asked().is_empty(), "each request is asked once");
}

/// What ended a run, or a job inside of one, and whether the lane's state may be built on afterwards.
type Ending = (&'static str, fn(&mut Scene, u64, Version), bool);

/// Each for the job of this number of lease 1, on this version.
const ENDINGS: [Ending; 9] = [
    ("success", |s, job, version| s.outcome(1, job, changed(), version), true),
    ("failure", |s, job, version| s.outcome(1, job, failed(), version), true),
    ("retry", |s, job, version| s.outcome(1, job, retry(), version), false),
    ("crash", |s, job, version| s.outcome(1, job, crashed(), version), false),
    ("timeout", |s, _, _| s.pass(TIMEOUT), false),
    (
        "timeout that nobody saw",
        |s, job, version| s.outcome_at(1, job, changed(), version, s.now.plus(TIMEOUT + MICRO)),
        false,
    ),
    ("cancel", |s, job, _| s.revoked(1, job), false),
    (
        "fence",
        |s, job, version| {
            s.outcome(1, job, changed(), version);
            s.fenced(1, job);
        },
        false,
    ),
    ("lost broker", |s, _, _| s.books.abandon(s.now), false),
];

#[test]
fn a_known_state_is_used_only_if_it_is_here_in_that_version() {
    for (ending, end, is_kept) in ENDINGS {
        let mut s = scene(1);
        s.lease(1, "a", &[1], whole(3));
        end(&mut s, 1, Version(5));
        s.end_with(1, RunMaps::new(fence(1), entries(b"new")));
        s.asked();
        assert_known(&mut s, fence(1), is_kept.then_some(&b"new"[..]), ending);
    }
    for (lane, version) in [("a", Version(6)), ("b", Version(5)), ("c", Version(5))] {
        let mut s = scene(1);
        s.lease(1, "a", &[1], whole(3));
        s.outcome(1, 1, succeeded(), Version(5));
        s.end_with(1, RunMaps::new(Version(5), entries(b"xxx")));
        s.asked();
        assert!(s.lease(2, lane, &[2], StateAt::Known(version)).is_none(), "another lane, another version");
        assert_eq!(s.asked(), ["release 2"]);
    }
}

#[test]
fn what_ends_a_run_after_a_change_forgets_the_whole_runs_maps() {
    for (ending, end, is_kept) in ENDINGS {
        // As it was before the run, after its first job, and after its last.
        for version in [Version(5), fence(1), fence(2)] {
            let mut s = scene(1);
            s.lease(1, "a", &[1, 2], whole(3));
            s.outcome(1, 1, changed(), Version(5));
            end(&mut s, 2, fence(1));
            s.end_with(1, RunMaps::new(fence(2), entries(b"new")));
            s.asked();
            let is_known = is_kept && version == fence(2);
            assert_known(&mut s, version, is_known.then_some(&b"new"[..]), ending);
        }
    }
}

/// A lease that builds on a known version gets this state, or is given back for the whole one.
#[track_caller]
fn assert_known(s: &mut Scene, version: Version, expected: Option<&[u8]>, ending: &str) {
    let run = s.lease(2, "a", &[9], StateAt::Known(version));
    let state = run.and_then(|run| run.maps.state.get("k").cloned());
    assert_eq!(state.as_deref(), expected, "{ending}");
    let asked = if expected.is_some() { vec![] } else { vec!["release 2"] };
    assert_eq!(s.asked(), asked, "{ending}");
}

#[test]
fn the_empty_state_that_nobody_has_changed_is_always_known() {
    let mut s = scene(1);
    let untouched = StateAt::Known(Version::default());
    let run = s.lease(1, "a", &[1], untouched.clone()).expect("there is nothing to know");
    assert_eq!((run.maps.version, run.maps.state.len()), (Version::default(), 0));
    s.outcome(1, 1, succeeded(), Version::default());
    s.end(1, Version::default());
    assert!(s.lease(2, "a", &[2], untouched.clone()).is_some());
    s.outcome(2, 2, changed(), Version::default());
    s.end_with(2, RunMaps::new(fence(2), entries(b"v")));
    assert_eq!(s.asked().len(), 2);
    assert!(s.lease(3, "a", &[3], untouched).is_none(), "here is another version");
    assert_eq!(s.asked(), ["release 3"]);
}

#[test]
fn a_run_that_has_no_state_leaves_none() {
    let mut s = scene(1);
    s.lease(1, "a", &[1], StateAt::Stateless);
    s.outcome(1, 1, succeeded(), Version::default());
    s.end_with(1, RunMaps::new(Version(5), entries(b"v")));
    assert!(s.lease(2, "a", &[2], StateAt::Known(Version(5))).is_none());
}

#[test]
fn silence_is_consent() {
    let mut s = scene(1);
    let run = s.lease(1, "a", &[1, 2], whole(0)).expect("a run");
    s.outcome(1, 1, changed(), Version(5));
    assert_eq!(s.asked(), ["commit 1 1 succeeded on 5"]);
    assert!(!run.stop.is_ended(), "nobody has answered, and nobody need");
    s.outcome(1, 2, changed(), fence(1));
    s.end_with(1, RunMaps::new(fence(2), entries(b"v")));
    assert_eq!(s.asked(), ["commit 1 2 succeeded on 1001"]);
    assert!(s.lease(2, "a", &[3], StateAt::Known(fence(2))).is_some());
}

#[test]
fn a_fence_that_comes_after_the_run_forgets_its_state_and_no_other() {
    let mut s = scene(2);
    for (lease, lane) in [(1, "a"), (2, "b")] {
        s.lease(lease, lane, &[lease], whole(0));
        s.outcome(lease, lease, succeeded(), Version(5));
        s.end(lease, Version(5));
    }
    s.fenced(1, 1);
    s.fenced(9, 9);
    s.asked();
    assert!(s.lease(3, "a", &[3], StateAt::Known(Version(5))).is_none());
    assert!(s.lease(4, "b", &[4], StateAt::Known(Version(5))).is_some());
}

#[test]
fn a_fence_of_an_earlier_lease_leaves_the_lanes_later_state_alone() {
    let mut s = scene(1);
    for lease in [1, 2] {
        s.lease(lease, "a", &[lease], whole(0));
        s.outcome(lease, lease, changed(), Version(5));
        s.end(lease, fence(lease));
    }
    s.fenced(1, 1);
    assert!(s.lease(3, "a", &[3], StateAt::Known(fence(2))).is_some());
}

#[test]
fn a_whole_state_replaces_what_was_known() {
    let mut s = scene(1);
    s.lease(1, "a", &[1], whole(3));
    s.outcome(1, 1, changed(), Version(5));
    s.end(1, fence(1));
    let other = StateAt::Whole(Version(9), Entries::new());
    let run = s.lease(2, "a", &[2], other).expect("a run");
    assert_eq!((run.maps.version, run.maps.state.len()), (Version(9), 0));
    s.outcome(2, 2, succeeded(), Version(9));
    s.end(2, Version(9));
    assert!(s.lease(3, "a", &[3], StateAt::Known(Version(9))).is_some());
}

#[test]
fn states_beyond_twice_a_lanes_bound_are_forgotten_longest_unused_first() {
    // Two of these fit into 2,000 bytes, with what a lane costs beside its entries.
    let maps = || RunMaps::new(Version(5), entries(&[0; 699]));
    let mut s = scene(1);
    let mut lease = 0;
    let mut is_known = |lane: &str, state: StateAt| {
        lease += 1;
        let is_known = s.lease(lease, lane, &[1], state).is_some();
        s.end_with(lease, maps());
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
fn a_million_short_lived_lanes_cost_neither_memory_without_bound_nor_time_that_grows() {
    const LANES: u64 = 1_000_000;
    const BATCH: u64 = 100_000;
    const STATE_MAX: usize = 1 << 20;
    let mut s = scene(1);
    s.books = Books::new(1, Rules { lane_state_max: STATE_MAX, ..rules() });
    let (mut times, mut resident) = (Vec::new(), Vec::new());
    for first in (1..=LANES).step_by(BATCH as usize) {
        let begun = Instant::now();
        for job in first..first + BATCH {
            let lane = job.to_string();
            // A lane in three is not changed, one has a state already, the others get their first.
            let (state, outcome, version) = match job % 3 {
                0 => (StateAt::Whole(Version::default(), Entries::new()), succeeded(), Version::default()),
                1 => (StateAt::Whole(Version::default(), Entries::new()), changed(), fence(job)),
                _ => (whole(1), changed(), fence(job)),
            };
            let run = s.lease(job, &lane, &[job], state).expect("a run");
            s.outcome(job, job, outcome, run.maps.version);
            let state = if job % 3 == 0 { Entries::new() } else { entries(b"v") };
            s.end_with(job, RunMaps::new(version, state));
            assert_eq!(s.books.take_requests().commits.len(), 1);
        }
        times.push(begun.elapsed());
        resident.push(resident_kib());
    }
    assert_eq!((s.books.finished, s.books.next_deadline()), (LANES, None), "no run is left");
    // The cache is full after the first batch.
    let grown = resident[resident.len() - 1].saturating_sub(resident[0]);
    assert!(grown < 32 << 10, "{grown} KiB more: {resident:?}");
    // The quickest of each half: what else the machine does makes a batch slower, never quicker.
    let (early, late) = times.split_at(times.len() / 2);
    let (early, late) = (early.iter().min().expect("batches"), late.iter().min().expect("batches"));
    assert!(*late < *early * 5, "a batch takes longer and longer: {times:?}");

    let changed = (1..=LANES).rev().filter(|job| job % 3 != 0);
    let mut is_known = |job: &u64| s.lease(LANES + job, &job.to_string(), &[1], StateAt::Known(fence(*job)));
    let known = changed.map(|job| (job, is_known(&job).is_some())).collect::<BTreeMap<u64, bool>>();
    let kept = known.values().filter(|is_known| **is_known).count();
    // Its names and its places cost a lane more than its two bytes of state.
    assert!((1..=2 * STATE_MAX / 100).contains(&kept), "{kept} lanes are known");
    let oldest = known.iter().find(|(_, is_known)| **is_known).map(|(job, _)| *job).expect("one is known");
    assert!(known.range(oldest..).all(|(_, is_known)| *is_known), "those used last are kept");
}

/// Resident memory of this process, in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc_pid_status(5)");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_handler_past_its_time_is_timed_out_whatever_its_worker_does() {
    let mut s = scene(2);
    let run = s.lease(1, "a", &[1, 2, 3], whole(0)).expect("a run");
    s.outcome(1, 1, changed(), Version(5));
    s.asked();
    s.pass(TIMEOUT - MICRO);
    assert!(s.asked().is_empty() && !run.stop.is_ended());
    s.pass(MICRO);
    assert_eq!(s.asked(), [format!("commit 1 2 timed_out on {}", fence(1).0)]);
    assert!(run.stop.is_ended(), "its handler is told");
    assert_eq!(s.books.room(false), 1, "its worker stays taken");
    s.outcome(1, 2, changed(), fence(1));
    s.outcome(1, 3, changed(), fence(2));
    s.pass(TIMEOUT);
    assert!(s.asked().is_empty(), "what comes later is dropped, and time strikes once");
    assert_eq!((s.books.finished, s.books.late), (2, 2));
    s.end(1, fence(3));
    assert_eq!((s.books.room(false), s.asked()), (2, vec![]));
}

#[test]
fn a_handler_that_ends_after_its_deadline_is_timed_out_though_nobody_looked_in_between() {
    let deadline = START.plus(TIMEOUT);
    let outcomes = [succeeded, changed, failed, retry, crashed];
    for outcome in outcomes {
        let mut s = scene(1);
        let run = s.lease(1, "a", &[1, 2], whole(0)).expect("a run");
        s.outcome_at(1, 1, outcome(), Version(5), deadline.plus(MICRO));
        assert_eq!(s.asked(), ["commit 1 1 timed_out on 5"]);
        assert!(run.stop.is_ended(), "the run ends with it");
        s.outcome_at(1, 2, succeeded(), fence(1), deadline.plus(TIMEOUT));
        s.end(1, fence(1));
        assert_eq!((s.asked(), s.books.finished, s.books.late), (vec![], 1, 1));
    }
}

#[test]
fn a_handler_that_ended_in_time_has_succeeded_however_late_that_is_heard() {
    let mut s = scene(1);
    s.lease(1, "a", &[1, 2, 3], whole(0));
    s.now = START.plus(10 * TIMEOUT);
    // Each job's time runs from the end of the one before it.
    let ends = [START.plus(TIMEOUT), START.plus(2 * TIMEOUT), START.plus(3 * TIMEOUT + MICRO)];
    s.outcome_at(1, 1, succeeded(), Version(5), ends[0]);
    s.outcome_at(1, 2, changed(), Version(5), ends[1]);
    s.outcome_at(1, 3, changed(), fence(2), ends[2]);
    s.books.on_time(s.now);
    let expected = ["commit 1 1 succeeded on 5", "commit 1 2 succeeded on 5", "commit 1 3 timed_out on 1002"];
    assert_eq!(s.asked(), expected);
}

#[test]
fn each_job_of_a_run_has_its_own_time_from_its_own_start() {
    let mut s = scene(1);
    s.lease(1, "a", &[1, 2, 3], whole(0));
    for job in [1, 2] {
        s.pass(TIMEOUT - Duration::from_millis(1));
        assert_eq!(s.books.next_deadline(), Some(s.now.plus(Duration::from_millis(1))));
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
fn a_run_that_waits_for_a_worker_has_all_its_time_before_it() {
    let mut s = scene(1);
    let run = s.lease_that_waits(1, "a", &[1], whole(0)).expect("a run");
    s.pass(10 * TIMEOUT);
    assert_eq!((s.asked(), s.books.next_deadline()), (vec![], None));
    run.stop.start(s.now);
    assert_eq!(s.books.next_deadline(), Some(s.now.plus(TIMEOUT)));
    s.pass(TIMEOUT);
    assert_eq!(s.asked(), ["commit 1 1 timed_out on 5"]);
}

#[test]
fn a_shorter_timeout_of_one_job_is_its_own() {
    let mut s = scene(2);
    let mut lease = lease_of(1, "a", &[1], StateAt::Stateless);
    let spec = Arc::get_mut(&mut lease.jobs[0].spec).expect("its only owner");
    spec.timeout = Duration::from_millis(5);
    s.books.on_lease(lease).expect("a run").stop.start(s.now);
    s.lease(2, "b", &[2], StateAt::Stateless);
    assert_eq!(s.books.next_deadline(), Some(START.plus(Duration::from_millis(5))));
    s.pass(Duration::from_millis(5));
    assert_eq!(s.asked(), ["commit 1 1 timed_out on 0"]);
}

#[test]
fn a_fenced_run_counts_no_more() {
    let mut s = scene(2);
    let run = s.lease(1, "a", &[1, 2], whole(0)).expect("a run");
    s.outcome(1, 1, succeeded(), Version(5));
    s.asked();
    s.fenced(1, 1);
    assert!(run.stop.is_ended());
    s.outcome(1, 2, succeeded(), Version(5));
    s.pass(TIMEOUT);
    s.revoked(1, 2);
    s.end(1, Version(5));
    assert_eq!((s.asked(), s.books.late, s.books.room(false)), (vec![], 1, 2), "neither commit nor release");
}

#[test]
fn a_revoked_running_job_ends_its_run_and_gives_back_the_rest() {
    let mut s = scene(1);
    let run = s.lease(1, "a", &[1, 2, 3], whole(0)).expect("a run");
    s.outcome(1, 1, succeeded(), Version(5));
    s.revoked(1, 2);
    assert_eq!(s.asked(), ["commit 1 1 succeeded on 5", "release 1"], "in one step, in this order");
    assert!(run.stop.is_ended());
    s.revoked(1, 2);
    s.outcome(1, 2, succeeded(), Version(5));
    s.end(1, Version(5));
    assert_eq!((s.asked(), s.books.late), (vec![], 1));
}

#[test]
fn a_revoked_later_job_is_left_out_and_the_run_goes_on() {
    let mut s = scene(1);
    let run = s.lease(1, "a", &[1, 2, 3], whole(0)).expect("a run");
    s.revoked(1, 2);
    assert!(!run.stop.is_ended());
    s.outcome(1, 1, succeeded(), Version(5));
    s.outcome(1, 3, succeeded(), Version(5));
    s.end(1, Version(5));
    assert_eq!(s.asked(), ["commit 1 1 succeeded on 5", "commit 1 3 succeeded on 5"]);
}

#[test]
fn the_job_behind_one_that_was_left_out_has_its_own_time() {
    let mut s = scene(1);
    s.lease(1, "a", &[1, 2, 3], whole(0));
    s.revoked(1, 2);
    s.pass(TIMEOUT - MICRO);
    s.outcome(1, 1, succeeded(), Version(5));
    s.asked();
    s.pass(TIMEOUT - MICRO);
    assert!(s.asked().is_empty());
    s.pass(MICRO);
    assert_eq!(s.asked(), ["commit 1 3 timed_out on 5"]);
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
fn what_waits_is_given_back_once_and_leaves_nothing_behind() {
    let mut s = scene(1);
    s.lease(1, "a", &[1], whole(0)).expect("a run");
    let waiting: Vec<Run> = [2, 3, 4]
        .map(|lease| s.lease_that_waits(lease, &lease.to_string(), &[lease], whole(0)).expect("a run"))
        .into();
    s.outcome(1, 1, succeeded(), Version(5));
    // The broker has this one back already.
    s.revoked(3, 3);
    s.books.give_back(waiting);
    assert_eq!(s.asked(), ["commit 1 1 succeeded on 5", "release 3", "release 2", "release 4"]);
    s.end(1, Version(5));
    assert_eq!((s.books.room(false), s.books.next_deadline()), (1, None));
    assert!(s.lease(5, "2", &[2], whole(0)).is_some(), "it may come again");
}

#[test]
fn a_drain_finishes_what_runs_and_gives_back_the_rest() {
    let mut s = scene(3);
    s.lease(1, "a", &[1, 2, 3], whole(0));
    let waiting = s.lease_that_waits(2, "b", &[4], whole(0)).expect("a run");
    s.books.drain(s.now);
    assert!(waiting.stop.is_ended(), "who takes it now does nothing with it");
    assert_eq!((s.asked(), s.books.room(false)), (vec!["release 2".to_owned()], 0));
    assert!(!s.books.is_drained());
    assert!(s.lease(3, "c", &[5], whole(0)).is_none(), "a lease that was on its way");
    assert_eq!(s.asked(), ["release 3"]);
    s.books.drain(s.now);
    s.outcome(1, 1, succeeded(), Version(5));
    s.end(1, Version(5));
    assert!(!s.books.is_drained(), "the broker must still be told");
    assert_eq!(s.asked(), ["commit 1 1 succeeded on 5", "release 1"], "in one step, in this order");
    assert!(s.books.is_drained());
}

#[test]
fn a_drain_does_not_wait_for_handlers_whose_run_is_over() {
    let mut s = scene(2);
    assert!(!s.books.is_drained(), "nobody asked for it");
    s.lease(1, "a", &[1, 2], whole(0));
    s.books.drain(s.now);
    s.pass(TIMEOUT);
    assert!(!s.books.is_drained());
    assert_eq!(s.asked(), ["commit 1 1 timed_out on 5"]);
    assert!(s.books.is_drained() && s.books.next_deadline().is_some(), "its handler has not returned");
    let mut idle = scene(2);
    idle.books.drain(idle.now);
    assert!(idle.books.is_drained());
}

#[test]
fn a_lost_broker_ends_every_run_and_every_state() {
    let mut s = scene(3);
    s.lease(1, "a", &[1], whole(0));
    s.outcome(1, 1, succeeded(), Version(5));
    s.end(1, Version(5));
    let runs = [2, 3].map(|n| s.lease(n, &n.to_string(), &[n, n + 10], whole(0)).expect("a run"));
    s.outcome(2, 2, succeeded(), Version(5));
    s.books.abandon(s.now);
    assert!(s.asked().is_empty(), "nobody is there to be told");
    assert!(runs.iter().all(|run| run.stop.is_ended()));
    assert_eq!(s.books.room(false), 1, "workers are free when their handlers return");
    s.outcome(3, 3, succeeded(), Version(5));
    s.end(2, Version(5));
    s.end(3, Version(5));
    assert_eq!((s.asked(), s.books.room(false)), (vec![], 3));
    assert!(s.lease(4, "a", &[4], StateAt::Known(Version(5))).is_none());
}

#[test]
fn a_handler_that_ignores_its_end_makes_the_process_stuck_after_the_grace() {
    let mut s = scene(3);
    s.lease(1, "a", &[1], StateAt::Stateless);
    s.lease(2, "b", &[2], StateAt::Stateless);
    s.revoked(1, 1);
    assert_eq!(s.books.next_deadline(), Some(START.plus(GRACE)));
    s.pass(GRACE - MICRO);
    assert!(!s.is_stuck());
    s.pass(MICRO);
    assert!(s.is_stuck());
    s.end(1, Version(0));
    assert!(!s.is_stuck(), "it returned after all");
    assert_eq!(s.books.next_deadline(), Some(START.plus(TIMEOUT)));
}

#[test]
fn a_process_whose_workers_are_all_held_is_stuck_after_a_moment() {
    let mut s = scene(2);
    for lease in [1, 2] {
        assert!(!s.is_stuck());
        s.lease(lease, &lease.to_string(), &[lease], StateAt::Stateless);
        s.fenced(lease, lease);
    }
    assert!(!s.is_stuck(), "a handler that listens is given the time to return");
    s.pass(ALL_OVER_GRACE - MICRO);
    assert!(!s.is_stuck());
    s.pass(MICRO);
    assert!(s.is_stuck());
    s.end(2, Version(0));
    assert!(!s.is_stuck());
}

#[test]
fn progress_is_told_once_a_second_the_last_of_it_and_the_rest_with_the_outcome() {
    let mut s = scene(1);
    let run = s.lease(1, "a", &[1, 2], whole(0)).expect("a run");
    let deadline = s.books.next_deadline();
    let says = |job, text: &str| run.stop.set_progress(id(job), Progress::parse(text).expect("JSON"));
    assert!(says(1, "1"), "the leader is woken");
    assert!(s.books.next_deadline() <= Some(s.now), "it is told at once");
    s.pass(Duration::ZERO);
    assert_eq!(s.asked(), ["progress 1 1 1"]);
    assert_eq!(s.books.next_deadline(), deadline);
    // A flood wakes the leader once, and tells its last.
    assert!(says(1, "2"));
    assert!((3..1_000).all(|number: u32| !says(1, &number.to_string())));
    assert_eq!(s.books.next_deadline(), Some(s.now.plus(Duration::from_secs(1))));
    s.pass(Duration::from_millis(999));
    assert!(s.asked().is_empty());
    s.pass(Duration::from_millis(1));
    assert_eq!(s.asked(), ["progress 1 1 999"]);
    // What comes between is told of the job that said it, though the outcome before was not heard yet.
    assert!(says(2, "\"next\""));
    s.outcome(1, 1, succeeded(), Version(0));
    s.pass(Duration::from_secs(1));
    assert_eq!(s.asked(), ["progress 1 2 \"next\"", "commit 1 1 succeeded on 0"]);
    let (lease, job, outcome, at) = (LeaseId(1), id(2), succeeded(), s.now);
    let progress = Progress::parse("[100]");
    s.books.on_done(Done::Outcome { lease, job, outcome, progress, builds_on: Version(0), at });
    assert_eq!(s.asked(), ["progress 1 2 [100]", "commit 1 2 succeeded on 0"]);
}

#[test]
fn what_a_run_that_is_over_says_of_its_progress_is_nothing() {
    let mut s = scene(1);
    let run = s.lease(1, "a", &[1], whole(0)).expect("a run");
    s.fenced(1, 1);
    let over = s.books.next_deadline();
    assert!(run.stop.set_progress(id(1), Progress::parse("1").expect("JSON")));
    assert_eq!(s.books.next_deadline(), over, "nobody is woken for it");
    s.pass(Duration::from_secs(5));
    let (lease, job, progress) = (LeaseId(1), id(1), Progress::parse("2"));
    let (outcome, builds_on, at) = (succeeded(), Version(0), s.now);
    s.books.on_done(Done::Outcome { lease, job, outcome, progress, builds_on, at });
    assert!(s.asked().is_empty());
}
