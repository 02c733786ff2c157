//! What an executor that knows the secret may say, and what it is told, at a [`BrokerEnd`] that no socket feeds: the
//! rules of docs/protocol.md, section 6, one by one.
//!
//! In scope: room, drains, outcomes, releases, parts, and frames that wait. Not in scope: what makes a connection a
//! stranger's or a liar's (security_ipc.rs), and the laws of a broker, whatever it is reached through
//! (conformance_*.rs).
//!
//! [`BrokerEnd`]: cofferdam::channel::BrokerEnd

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cofferdam::channel::Reject;
use cofferdam::channel::messages::{ToBroker, ToExecutor};
use cofferdam::clock::Timestamp;
use cofferdam::job::{
    Change, Effects, Entries, FollowUp, JobId, JobSpec, JobStatus, Outcome, Payload, Trace, Version,
};
use cofferdam::ports::{
    BackendError, Consumer, Lease, LeaseId, LeasedJob, Producer, Requests, StateAt, Step,
};
use cofferdam::problem::{Code, JobError};

use broker_side::{Half, MAX_LEASES, PARTS_MAX, Side, leases, sent};

#[path = "support/broker_side.rs"]
mod broker_side;
#[path = "support/wire.rs"]
mod wire;

fn done() -> Outcome {
    Outcome::Succeeded(Payload::json(*b"1"), Effects::default())
}

fn failed() -> Outcome {
    Outcome::Failed(JobError::new(Code::HandlerFailed, "no"))
}

fn setting(value: &[u8]) -> Effects {
    let change = Change { key: "a".into(), value: Some(value.into()) };
    Effects { state: vec![change], ..Effects::default() }
}

fn follow_ups(count: usize) -> Effects {
    let (handler, delay, payload) = ("free".into(), Duration::ZERO, Payload::json(*b""));
    let follow_up = FollowUp { handler, ordering_key: None, delay, payload };
    Effects { follow_ups: vec![follow_up; count], ..Effects::default() }
}

/// What was heard, without what it is about.
fn kinds(heard: &[(u64, ToExecutor)]) -> Vec<&'static str> {
    let kind = |(_, message): &(u64, ToExecutor)| match message {
        ToExecutor::Pong => "pong",
        ToExecutor::State { .. } => "state",
        ToExecutor::Lease(_) => "lease",
        ToExecutor::Fenced(_) => "fenced",
        ToExecutor::Cancel(_) => "cancel",
        ToExecutor::Drain => "drain",
    };
    heard.iter().map(kind).collect()
}

/// This and nothing else was heard: an outcome of this lease and job did not hold.
#[track_caller]
fn is_fenced(heard: &[(u64, ToExecutor)], lease: LeaseId, job: JobId) {
    let [(of, ToExecutor::Fenced(fenced))] = heard else { panic!("{heard:?}") };
    assert_eq!((*of, *fenced), (lease.0, job));
}

// --- Room ---

#[test]
fn room_is_a_level_of_live_leases_and_not_a_number_to_be_added() {
    let mut side = Side::new();
    let mut half = side.up();
    side.submit_some("free", 7);
    assert!(half.turn(&side).is_empty(), "without a word there is no room");
    let mut live = half.claim(&mut side, 2);
    assert_eq!(live.len(), 2);
    assert!(half.claim(&mut side, 2).is_empty(), "the same level again");
    live.extend(half.claim(&mut side, 3));
    assert_eq!(live.len(), 3, "a higher level");
    assert!(half.claim(&mut side, 1).is_empty());
    // A lower level ends no lease; there is none until enough are over.
    for (left, expected) in [(2, 0), (1, 0), (0, 1)] {
        let lease = live.remove(0);
        assert_eq!(half.answer(&mut side, &lease, 0, done()), Ok(()));
        let came = leases(half.turn(&side));
        assert_eq!(came.len(), expected, "{left} of them left");
        live.extend(came);
    }
    // One that is given back makes room like one that was done.
    assert_eq!(half.say(&mut side, live[0].id.0, &ToBroker::Release), Ok(()));
    assert_eq!(leases(half.turn(&side)).len(), 1);
}

#[test]
fn room_is_never_more_than_the_handshake_has_agreed() {
    let mut side = Side::new();
    let mut half = side.up();
    side.submit_some("free", MAX_LEASES + 5);
    assert_eq!(half.claim(&mut side, u32::MAX).len(), MAX_LEASES as usize);
    assert!(half.claim(&mut side, MAX_LEASES + 1).is_empty());
}

#[test]
fn room_0_is_answered_by_a_drain_behind_all_leases_and_none_follows_until_there_is_room() {
    let mut side = Side::new();
    let mut half = side.up();
    let none = || ToBroker::Room(0);
    assert_eq!(half.say(&mut side, 0, &none()), Ok(()));
    assert_eq!(kinds(&half.turn(&side)), ["drain"], "the answer to no room, even where there was none");
    assert!(half.turn(&side).is_empty(), "once");
    // A lease that was claimed before it has been written by then.
    side.submit_some("free", 3);
    assert_eq!(half.say(&mut side, 0, &ToBroker::Room(1)), Ok(()));
    half.end.turn().expect("the broker is there");
    assert_eq!(half.say(&mut side, 0, &none()), Ok(()));
    let heard = half.turn(&side);
    assert_eq!(kinds(&heard), ["lease", "drain"]);
    // The lease is over, the drain was said, and there is a job: it stays.
    let lease = leases(heard).pop().expect("a lease");
    assert_eq!(half.answer(&mut side, &lease, 0, done()), Ok(()));
    assert!(half.turn(&side).is_empty());
    assert_eq!(half.claim(&mut side, 1).len(), 1, "room is room again");
}

#[test]
fn a_drain_stands_behind_what_came_of_all_that_was_said_before() {
    let mut side = Side::new();
    let mut half = side.up();
    let jobs = [side.submit("free"), side.submit("free"), side.submit("free")];
    let held = half.claim(&mut side, 3);
    assert_eq!(half.answer(&mut side, &held[0], 0, done()), Ok(()));
    side.cancel(jobs[1]);
    assert_eq!(half.answer(&mut side, &held[1], 0, done()), Ok(()));
    assert_eq!(half.say(&mut side, 0, &ToBroker::Room(0)), Ok(()));
    let heard = half.turn(&side);
    assert_eq!(kinds(&heard), ["fenced", "cancel", "drain"]);
    let statuses = jobs.map(|job| side.status(job));
    assert_eq!(statuses, [JobStatus::Succeeded, JobStatus::Cancelled, JobStatus::Running]);
    // More that is said is answered if it is asked for, and not otherwise.
    assert_eq!(half.answer(&mut side, &held[2], 0, done()), Ok(()));
    assert!(half.turn(&side).is_empty());
    assert_eq!(half.say(&mut side, held[2].id.0, &ToBroker::Release), Ok(()));
    assert_eq!(half.say(&mut side, 0, &ToBroker::Room(0)), Ok(()));
    assert_eq!(kinds(&half.turn(&side)), ["drain"]);
}

#[test]
fn room_that_is_given_before_the_drain_was_said_takes_it_back() {
    let mut side = Side::new();
    let mut half = side.up();
    side.submit("free");
    for level in [0, 1] {
        assert_eq!(half.say(&mut side, 0, &ToBroker::Room(level)), Ok(()));
    }
    assert_eq!(kinds(&half.turn(&side)), ["lease"]);
    // Two in one turn have one answer.
    for _ in 0..2 {
        assert_eq!(half.say(&mut side, 0, &ToBroker::Room(0)), Ok(()));
    }
    assert_eq!(kinds(&half.turn(&side)), ["drain"]);
    assert!(half.turn(&side).is_empty());
}

// --- Outcomes ---

#[test]
fn an_outcome_that_holds_is_not_answered_and_each_other_one_of_a_live_lease_is_fenced_and_ends_it() {
    for (what, index, deliveries, builds_on, holds) in [
        ("as it must be", 0, 0, Version(0), true),
        ("a later job", 1, 0, Version(0), false),
        ("another delivery", 0, 1, Version(0), false),
        ("another version", 0, 0, Version(1), false),
    ] {
        let mut side = Side::new();
        let mut half = side.up();
        let jobs = [side.submit("serial"), side.submit("serial")];
        let lease = half.claim(&mut side, 1).pop().expect("a lease");
        assert_eq!(lease.jobs.len(), 2);
        let job = &lease.jobs[index];
        let (id, delivery) = (job.spec.id, job.delivery + deliveries);
        let outcome = ToBroker::Outcome { job: id, delivery, builds_on, outcome: failed() };
        assert_eq!(half.say(&mut side, 0, &ToBroker::Room(0)), Ok(()));
        assert_eq!(half.say(&mut side, lease.id.0, &outcome), Ok(()));
        let mut heard = half.turn(&side);
        assert_eq!(kinds(&heard).pop(), Some("drain"), "{what}");
        heard.pop();
        if holds {
            assert!(heard.is_empty(), "{what}: {heard:?}");
            assert_eq!(jobs.map(|job| side.status(job)), [JobStatus::Failed, JobStatus::Running]);
            assert_eq!(half.answer(&mut side, &lease, 1, done()), Ok(()));
            assert!(half.turn(&side).is_empty());
            continue;
        }
        is_fenced(&heard, lease.id, id);
        // All is queued again, under other numbers since it may have begun, and comes with the whole state.
        assert_eq!(jobs.map(|job| side.status(job)), [JobStatus::Queued; 2], "{what}");
        assert_eq!(half.answer(&mut side, &lease, 0, done()), Ok(()));
        is_fenced(&half.turn(&side), lease.id, jobs[0]);
        let again = half.claim(&mut side, 1).pop().expect("a lease");
        assert_eq!((again.jobs.len(), again.jobs[0].delivery), (2, 2), "{what}");
        assert_eq!(again.state, StateAt::Whole(Version(0), Entries::new()));
    }
}

#[test]
fn an_outcome_about_a_lease_that_is_not_live_here_is_fenced_and_nothing_else() {
    let mut side = Side::new();
    let (mut half, mut other) = (side.up(), side.up());
    let job = side.submit("serial");
    let lease = half.claim(&mut side, 1).pop().expect("a lease");
    let succeeded = || Outcome::Succeeded(Payload::json(*b"1"), setting(b"of a liar"));
    // One that was never given, and one that is live on another connection.
    let never = Lease { id: LeaseId(lease.id.0 + 1_000), ..lease.clone() };
    for of in [&never, &lease] {
        assert_eq!(other.answer(&mut side, of, 0, succeeded()), Ok(()));
        is_fenced(&other.turn(&side), of.id, job);
        assert_eq!(other.say(&mut side, of.id.0, &ToBroker::Release), Ok(()));
        assert!(other.turn(&side).is_empty(), "a release of it is not even answered");
    }
    assert_eq!(side.status(job), JobStatus::Running, "it is the other's still");
    // One that was given back, and one that was done.
    assert_eq!(half.say(&mut side, lease.id.0, &ToBroker::Release), Ok(()));
    let again = leases(half.turn(&side)).pop().expect("there is room");
    assert_eq!(again.state, StateAt::Whole(Version(0), Entries::new()), "nothing of all that took effect");
    assert_eq!(half.answer(&mut side, &lease, 0, succeeded()), Ok(()));
    is_fenced(&half.turn(&side), lease.id, job);
    assert_eq!(half.answer(&mut side, &again, 0, done()), Ok(()));
    assert_eq!(half.answer(&mut side, &again, 0, succeeded()), Ok(()));
    is_fenced(&half.turn(&side), again.id, job);
    assert_eq!(side.status(job), JobStatus::Succeeded);
}

#[test]
fn what_was_taken_before_the_end_of_a_connection_counts() {
    let mut side = Side::new();
    let mut half = side.up();
    let jobs = [side.submit("free"), side.submit("free")];
    let held = half.claim(&mut side, 2);
    assert_eq!(half.answer(&mut side, &held[0], 0, done()), Ok(()));
    half.end.settle();
    assert_eq!(side.status(jobs[0]), JobStatus::Succeeded);
    drop(half);
    assert_eq!(side.status(jobs[1]), JobStatus::Queued, "what it held comes again");
}

// --- Parts ---

/// What an executor may say of two leases that it holds.
#[derive(Clone, Copy, Debug)]
enum Says {
    Part(usize),
    Outcome(usize),
    Failed(usize),
    Release(usize),
    Progress(usize),
    Ping,
    Room,
}

#[test]
fn parts_stand_directly_before_their_outcome() {
    use Says::{Failed, Outcome as Done, Part, Ping, Progress, Release, Room};
    let allowed: [&[Says]; 9] = [
        &[Done(0)],
        &[Part(0), Done(0)],
        &[Part(0), Part(0), Part(0), Done(0)],
        &[Part(0), Ping, Done(0)],
        &[Part(0), Room, Part(0), Ping, Ping, Done(0)],
        &[Part(0), Done(0), Part(1), Done(1)],
        &[Part(0), Failed(0), Part(1), Part(1), Done(1)],
        &[Release(1), Part(0), Done(0)],
        // What is over makes no difference.
        &[Release(0), Part(0), Done(0), Part(1), Done(1)],
    ];
    let denied: [&[Says]; 9] = [
        &[Part(0), Part(1)],
        &[Part(0), Done(1)],
        &[Part(0), Failed(1)],
        &[Part(0), Release(0)],
        &[Part(0), Release(1)],
        &[Part(0), Progress(0)],
        &[Part(0), Ping, Release(0)],
        &[Part(0), Room, Part(1)],
        &[Part(0), Done(0), Part(1), Done(0)],
    ];
    let rows = allowed.into_iter().map(|says| (says, Ok(())));
    for (says, expected) in rows.chain(denied.into_iter().map(|says| (says, Err(Reject::Malformed)))) {
        let mut side = Side::new();
        let mut half = side.up();
        side.submit("serial");
        side.submit("free");
        let held = half.claim(&mut side, 2);
        for (at, word) in says.iter().enumerate() {
            let said = match *word {
                Part(of) => half.say(&mut side, held[of].id.0, &ToBroker::Part(Effects::default())),
                Done(of) => half.answer(&mut side, &held[of], 0, done()),
                Failed(of) => half.answer(&mut side, &held[of], 0, failed()),
                Release(of) => half.say(&mut side, held[of].id.0, &ToBroker::Release),
                Progress(of) => {
                    let progress = cofferdam::job::Progress::parse("1").expect("JSON");
                    let job = held[of].jobs[0].spec.id;
                    half.say(&mut side, held[of].id.0, &ToBroker::Progress(job, progress))
                }
                Ping => half.say(&mut side, 0, &ToBroker::Ping),
                Room => half.say(&mut side, 0, &ToBroker::Room(2)),
            };
            let expected = if at + 1 == says.len() { expected } else { Ok(()) };
            assert_eq!(said, expected, "{says:?} at {at}");
        }
        if expected.is_ok() {
            let jobs = held.iter().map(|lease| side.status(lease.jobs[0].spec.id)).collect::<Vec<_>>();
            assert!(jobs.contains(&JobStatus::Running), "nothing counts before the turn");
            half.turn(&side);
        } else {
            half.is_over(&mut side);
        }
    }
}

/// The lane's state after an outcome with these effects in parts.
#[track_caller]
fn state_after(parts: &[Effects], outcome: Outcome) -> Entries {
    let mut side = Side::new();
    let mut half = side.up();
    side.submit("serial");
    let lease = half.claim(&mut side, 1).pop().expect("a lease");
    for part in parts {
        assert_eq!(half.say(&mut side, lease.id.0, &ToBroker::Part(part.clone())), Ok(()));
    }
    assert_eq!(half.answer(&mut side, &lease, 0, outcome), Ok(()));
    assert!(half.turn(&side).is_empty());
    side.submit("serial");
    drop(half);
    let mut next = side.up();
    next.say(&mut side, 0, &ToBroker::Room(1)).expect("room may be given");
    let heard = next.turn(&side);
    let states = heard.iter().filter_map(|(_, message)| match message {
        ToExecutor::State { trace: None, entries } => Some(entries.clone()),
        _ => None,
    });
    states.flatten().collect()
}

#[test]
fn parts_come_before_the_outcomes_own_effects_in_their_order_and_only_if_it_succeeds() {
    let own = |value: &[u8]| Outcome::Succeeded(Payload::json(*b"1"), setting(value));
    let entry = |value: &[u8]| Entries::from([(Arc::from("a"), Arc::from(value))]);
    assert_eq!(state_after(&[setting(b"1"), setting(b"2")], own(b"3")), entry(b"3"));
    assert_eq!(state_after(&[setting(b"1"), setting(b"2")], done()), entry(b"2"));
    assert_eq!(state_after(&[setting(b"1")], failed()), Entries::new());
}

#[test]
fn parts_count_for_what_they_hold_once_they_are_read_and_each_outcome_for_its_own() {
    const EACH: usize = 1_024;
    const MOST: usize = PARTS_MAX / EACH;
    const { assert!(MOST * EACH == PARTS_MAX) };
    let mut side = Side::new();
    let mut half = side.up();
    side.submit_some("free", 3);
    let held = half.claim(&mut side, 3);
    let part = |effects| ToBroker::Part(effects);
    // Some twenty bytes of the wire each, and as much as is allowed; the outcome's own do not count.
    for (index, lease) in held.iter().take(2).enumerate() {
        for count in [1, MOST - 1] {
            assert_eq!(half.say(&mut side, lease.id.0, &part(follow_ups(count))), Ok(()));
        }
        let own = Outcome::Succeeded(Payload::json(*b"1"), follow_ups(10));
        assert_eq!(half.answer(&mut side, lease, 0, own), Ok(()));
        assert_eq!(half.say(&mut side, 0, &ToBroker::Room(0)), Ok(()));
        assert_eq!(kinds(&half.turn(&side)), ["drain"]);
        let queued = side.broker.stats().expect("the broker is there").handlers[0].queued;
        assert_eq!(queued, (index + 1) * (MOST + 10), "follow-ups of all parts and its own");
    }
    // A change counts for 64, its name and its value: up to the last byte, and one more.
    let lease = held[2].id.0;
    let change = |bytes: usize| Effects {
        context: vec![Change { key: "k".into(), value: Some(vec![7; bytes - 65].into()) }],
        ..Effects::default()
    };
    for bytes in [PARTS_MAX / 2, PARTS_MAX - PARTS_MAX / 2 - 65] {
        assert_eq!(half.say(&mut side, lease, &part(change(bytes))), Ok(()));
    }
    assert_eq!(half.say(&mut side, lease, &part(change(65))), Ok(()));
    let removal = Change { key: "".into(), value: None };
    let one_more = Effects { state: vec![removal], ..Effects::default() };
    assert_eq!(half.say(&mut side, lease, &part(one_more)), Err(Reject::Malformed));
    half.is_over(&mut side);
}

#[test]
fn parts_that_cross_the_end_of_their_lease_do_not_end_the_connection() {
    let mut side = Side::new();
    let mut half = side.up();
    let jobs = [side.submit("serial"), side.submit("serial")];
    let lease = half.claim(&mut side, 1).pop().expect("a lease");
    assert_eq!(lease.jobs.len(), 2);
    // Its running job is cancelled; the executor, which has not heard of it, goes on to the next one.
    assert_eq!(half.say(&mut side, 0, &ToBroker::Room(0)), Ok(()));
    side.cancel(jobs[0]);
    assert_eq!(half.answer(&mut side, &lease, 0, done()), Ok(()));
    let heard = half.turn(&side);
    assert_eq!(kinds(&heard), ["fenced", "cancel", "drain"]);
    let part = ToBroker::Part(setting(b"late"));
    assert_eq!(half.say(&mut side, lease.id.0, &part), Ok(()), "the same race, a frame later");
    assert_eq!(half.answer(&mut side, &lease, 1, done()), Ok(()));
    is_fenced(&half.turn(&side), lease.id, jobs[1]);
    assert_eq!(side.status(jobs[1]), JobStatus::Queued, "it comes again");
}

// --- Frames that wait ---

#[test]
fn pongs_and_cancels_overtake_what_waits_but_no_cancel_its_own_lease() {
    let mut side = Side::new();
    let mut half = side.up();
    let jobs = [side.submit("free"), side.submit("free")];
    let first = half.claim(&mut side, 1).pop().expect("a lease");
    assert_eq!(first.jobs[0].spec.id, jobs[0]);
    // The second lease waits to be written.
    assert_eq!(half.say(&mut side, 0, &ToBroker::Room(2)), Ok(()));
    half.end.turn().expect("the broker is there");
    jobs.iter().for_each(|job| side.cancel(*job));
    half.end.turn().expect("the broker is there");
    assert_eq!(half.say(&mut side, 0, &ToBroker::Ping), Ok(()));
    let heard = half.heard(&side);
    assert_eq!(kinds(&heard), ["pong", "cancel", "lease", "cancel"]);
    let second = heard[2].0;
    assert_eq!([heard[1].0, heard[3].0], [first.id.0, second]);
}

/// A consumer that lends as many large leases as there is room for, each time.
struct Lavish {
    rooms: Arc<Mutex<Vec<usize>>>,
    last: u64,
    is_settled: bool,
}

impl Consumer for Lavish {
    fn step(&mut self, requests: Requests, room: usize) -> Result<Step, BackendError> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner).push(room);
        // Its books are a step behind.
        self.is_settled = requests.is_empty();
        let lease = |number| {
            let spec = JobSpec {
                id: JobId([1; 16]),
                owner: "".into(),
                handler: "free".into(),
                ordering_key: None,
                trace: Trace { id: [2; 16], span: [3; 8], ..Trace::default() },
                tracestate: None,
                submitted_at: Timestamp(4),
                timeout: Duration::from_millis(5),
                one_line: false,
            };
            let payload = Payload::octets(vec![7; 64 << 10]);
            let (delivery, fence, context) = (1, 9, Entries::new());
            let job = LeasedJob { spec: Arc::new(spec), payload, delivery, fence, context };
            let (id, state) = (LeaseId(number), StateAt::Stateless);
            Lease { id, handler: "free".into(), state, jobs: vec![job] }
        };
        let first = self.last + 1;
        self.last += room as u64;
        Ok(Step { leases: (first..=self.last).map(lease).collect(), ..Step::default() })
    }

    fn extend(&mut self) {}

    fn is_settled(&self) -> bool {
        self.is_settled
    }
}

/// A connection that is up, with a lavish consumer; what room that was given.
fn lavish() -> (Side, Half, Arc<Mutex<Vec<usize>>>) {
    let (mut side, rooms) = (Side::new(), Arc::new(Mutex::new(Vec::new())));
    let seen = rooms.clone();
    side.connect =
        Some(Box::new(move || Box::new(Lavish { rooms: seen.clone(), last: 0, is_settled: true })));
    let half = side.up();
    (side, half, rooms)
}

#[test]
fn a_drain_waits_until_all_that_was_said_is_in_the_books() {
    let (mut side, mut half, _) = lavish();
    assert_eq!(half.say(&mut side, 1, &ToBroker::Release), Ok(()));
    assert_eq!(half.say(&mut side, 0, &ToBroker::Room(0)), Ok(()));
    assert!(half.turn(&side).is_empty(), "the books are a step behind");
    assert_eq!(kinds(&half.turn(&side)), ["drain"]);
}

#[test]
fn while_8_mib_wait_for_an_executor_it_is_given_no_lease_and_it_is_not_closed_for_them() {
    let (mut side, mut half, rooms) = lavish();
    let most = MAX_LEASES as usize;
    assert_eq!(half.say(&mut side, 0, &ToBroker::Room(MAX_LEASES)), Ok(()));
    // 64 leases of 64 KiB are 4 MiB.
    for _ in 0..4 {
        assert_eq!(half.end.turn(), Ok(()));
    }
    let rooms = || std::mem::take(&mut *rooms.lock().unwrap_or_else(PoisonError::into_inner));
    assert_eq!(rooms(), [most, most, 0, 0]);
    assert_eq!(half.say(&mut side, 0, &ToBroker::Ping), Ok(()));
    let heard = half.heard(&side);
    assert_eq!((kinds(&heard)[0], heard.len()), ("pong", 1 + 2 * most));
    assert_eq!(half.end.turn(), Ok(()));
    assert_eq!(rooms(), [most], "what was written makes room");
}

#[test]
fn a_peer_that_lets_more_than_1_mib_of_other_frames_gather_is_closed() {
    const PONGS: usize = (1 << 20) / wire::OVERHEAD;
    let (mut side, mut half, _) = lavish();
    // What waits of leases is not its fault.
    assert_eq!(half.say(&mut side, 0, &ToBroker::Room(MAX_LEASES)), Ok(()));
    assert_eq!(half.end.turn(), Ok(()));
    for _ in 0..PONGS {
        assert_eq!(half.say(&mut side, 0, &ToBroker::Ping), Ok(()));
    }
    assert_eq!(half.end.turn(), Ok(()), "as much as may wait");
    assert_eq!(half.say(&mut side, 0, &ToBroker::Ping), Ok(()));
    assert_eq!(half.end.turn(), Err(Some(Reject::PeerNotReading)));
    // One that reads may ping for ever.
    let (mut side, mut half, _) = lavish();
    for _ in 0..3 {
        for _ in 0..PONGS {
            assert_eq!(half.say(&mut side, 0, &ToBroker::Ping), Ok(()));
        }
        assert_eq!(half.end.turn(), Ok(()));
        while !sent(&mut half.end, side.now).is_empty() {}
    }
}
