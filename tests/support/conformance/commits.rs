//! Laws of commits: what holds, what is fenced, and what an outcome changes.

use std::sync::Arc;
use std::time::Duration;

use cofferdam::job::{Effects, Entries, JobId, JobStatus, Outcome, Payload, Trace, Version};
use cofferdam::ports::{Commit, Lease, LeaseId, NewJob, StateAt, Viewer};
use cofferdam::problem::Code;

use super::{
    Bench, CommitResult, Executor, Make, commit_of, entries, failed, follow_up, ids, retry, set, state,
    succeeded, succeeded_with, unset, version_of,
};

const FENCED: CommitResult = CommitResult::Fenced;
const COMMITTED: CommitResult = CommitResult::Committed;

pub fn a_commit_holds_and_a_repeated_one_is_fenced(make: Make) {
    let bench = Bench::new(make);
    for (handler, jobs) in [("free", 1), ("serial", 1), ("serial", 2)] {
        let jobs = bench.submit_many(handler, jobs);
        let mut executor = bench.executor();
        let lease = executor.lease();
        let commit = commit_of(&lease, 0, version_of(&lease), state_if_ordered(&lease));
        assert_eq!(executor.commit(commit.clone()), COMMITTED);
        let before = bench.record(commit.job);
        assert_eq!(executor.commit(commit.clone()), FENCED);
        assert_eq!(bench.record(commit.job), before);
        // It is out of order, which ended the run; the rest of it comes again.
        assert_eq!(executor.finish_everything(), jobs[1..]);
        assert_eq!(executor.commit(commit), FENCED);
    }
}

fn state_if_ordered(lease: &Lease) -> Outcome {
    if lease.state == StateAt::Stateless { succeeded() } else { state(vec![set("k", "v")]) }
}

pub fn a_retry_that_is_committed_again_is_fenced(make: Make) {
    let bench = Bench::new(make);
    let job = bench.submit_to("serial");
    let mut executor = bench.executor();
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, retry()), COMMITTED);
    assert_eq!(executor.say(&lease, 0, retry()), FENCED);
    assert_eq!(bench.record(job).deliveries, 1);
    bench.pass(Duration::from_secs(60));
    let again = executor.lease();
    assert_eq!(executor.say(&lease, 0, retry()), FENCED);
    executor.finish(&again);
}

pub fn commits_of_one_call_are_judged_one_by_one(make: Make) {
    let bench = Bench::new(make);
    bench.submit_many("serial", 3);
    bench.submit_many("free", 1);
    let mut executor = bench.executor();
    let leases = executor.leases(2);
    let (run, free) = (&leases[0], &leases[1]);
    let v = Version(run.jobs[0].fence);
    let results = executor.commits(vec![
        commit_of(run, 0, Version::default(), state(vec![set("k", "1")])),
        commit_of(run, 1, v, failed()),
        commit_of(run, 2, Version::default(), state(vec![set("k", "2")])),
        commit_of(free, 0, Version::default(), succeeded()),
    ]);
    assert_eq!(results, [COMMITTED, COMMITTED, FENCED, COMMITTED]);
    assert_eq!(executor.lease_ids(), [run.jobs[2].spec.id]);
}

pub fn an_unknown_lease_is_fenced_and_changes_nothing(make: Make) {
    let bench = Bench::new(make);
    for handler in ["free", "serial"] {
        let job = bench.submit_to(handler);
        let mut executor = bench.executor();
        let lease = executor.lease();
        let LeaseId(id) = lease.id;
        for unknown in [id + 1, id ^ (1 << 32), u64::MAX, 0] {
            let mut wrong = lease.clone();
            wrong.id = LeaseId(unknown);
            assert_eq!(executor.succeed(&wrong), [FENCED]);
            assert_eq!(bench.status(job), JobStatus::Running, "a guess ends no lease");
            executor.release(&wrong);
            assert_eq!(bench.status(job), JobStatus::Running, "nor does a release of it");
        }
        executor.finish(&lease);
    }
}

pub fn the_lease_of_another_executor_is_fenced(make: Make) {
    let bench = Bench::new(make);
    let job = bench.submit_to("serial");
    let (mut owner, mut thief) = (bench.executor(), bench.executor());
    let lease = owner.lease();
    assert_eq!(thief.say(&lease, 0, succeeded()), FENCED);
    thief.release(&lease);
    thief.claims_nothing();
    assert_eq!(bench.status(job), JobStatus::Running);
    owner.finish(&lease);
}

pub fn a_lease_that_ran_out_is_fenced(make: Make) {
    let bench = Bench::new(make);
    let job = bench.submit_to("serial");
    let (mut slow, mut next) = (bench.executor(), bench.executor());
    let stale = slow.lease();
    bench.pass(Duration::from_secs(30));
    assert_eq!(slow.say(&stale, 0, state(vec![set("k", "stale")])), FENCED);
    let lease = next.lease();
    assert_eq!((ids(&lease), lease.jobs[0].delivery), (vec![job], 2));
    assert_eq!(slow.say(&stale, 0, state(vec![set("k", "stale")])), FENCED);
    assert_eq!(next.say(&lease, 0, state(vec![set("k", "fresh")])), COMMITTED);
    assert_eq!(slow.say(&stale, 0, state(vec![set("k", "stale")])), FENCED);
    assert_eq!(bench.state_seen_by_a_new_executor("serial").1, entries([("k", "fresh")]));
    assert!(bench.backend.producer().stats().unwrap().late >= 3, "what came too late is counted");
}

pub fn a_commit_out_of_order_is_fenced_and_ends_the_lease(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 3);
    let mut executor = bench.executor();
    // Also with the number of deliveries that the broker has counted for a job that has not started.
    for delivery in [1, 0] {
        let lease = executor.lease();
        let early = commit_of(&lease, 1, version_of(&lease), state(vec![set("k", "v")]));
        assert_eq!(executor.commit(Commit { delivery, ..early }), FENCED);
        assert_eq!(executor.say(&lease, 0, succeeded()), FENCED, "the lease is over");
    }
    let again = executor.lease();
    assert_eq!(ids(&again), jobs);
    assert_eq!(again.jobs[0].delivery, 3, "each may have begun");
    assert_eq!(again.state, StateAt::Whole(Version::default(), Entries::new()));
    executor.finish(&again);
}

pub fn an_outcome_of_a_job_that_its_lease_does_not_have_ends_the_lease(make: Make) {
    let bench = Bench::new(make);
    let queued = bench.submit_to("serial");
    let mut holder = bench.executor();
    let kept = holder.lease();
    assert_eq!(ids(&kept), [queued]);
    for named in [JobId([9; 16]), queued] {
        let job = bench.submit_to("free");
        let mut executor = bench.executor();
        let lease = executor.lease();
        let commit = commit_of(&lease, 0, version_of(&lease), succeeded());
        assert_eq!(executor.commit(Commit { job: named, ..commit }), FENCED);
        assert_eq!(executor.finish_everything(), [job], "its own job comes again at once");
        assert_eq!(bench.status(queued), JobStatus::Running, "the other job's lease goes on");
    }
    holder.finish(&kept);
}

pub fn a_commit_of_another_delivery_is_fenced(make: Make) {
    let bench = Bench::new(make);
    for handler in ["free", "serial"] {
        let job = bench.submit_to(handler);
        let mut executor = bench.executor();
        let lease = executor.lease();
        let commit = commit_of(&lease, 0, version_of(&lease), succeeded());
        assert_eq!(executor.commit(Commit { delivery: 2, ..commit }), FENCED);
        assert_eq!(executor.finish_everything(), [job]);
    }
}

pub fn a_commit_on_another_version_is_fenced_and_applies_nothing(make: Make) {
    let bench = Bench::with(make, |settings| settings.max_deliveries = 9);
    bench.submit_many("serial", 2);
    let mut executor = bench.executor();
    let lease = executor.lease();
    let v1 = Version(lease.jobs[0].fence);
    let first = commit_of(&lease, 0, Version::default(), state(vec![set("k", "1")]));
    assert_eq!(executor.commit(first), COMMITTED);
    let (mut run, mut index) = (lease, 1);
    for wrong in [Version::default(), Version(v1.0 - 1), Version(v1.0 + 1), Version(u64::MAX)] {
        assert_eq!(executor.commit(commit_of(&run, index, wrong, state(vec![set("k", "bad")]))), FENCED);
        let again = executor.lease();
        assert_eq!(again.state, StateAt::Whole(v1, entries([("k", "1")])), "from the last commit");
        assert_eq!(again.jobs[0].spec.id, run.jobs[index].spec.id);
        (run, index) = (again, 0);
    }
    executor.finish(&run);
}

/// What one job is to change, of every kind.
fn everything() -> Effects {
    let (state, context) = (vec![set("s", "1")], vec![set("c", "1")]);
    Effects { state, context, follow_ups: vec![follow_up("free"), follow_up("serial2")] }
}

/// How much of [`everything`] has taken hold: state, context, follow-ups, doorbells.
fn what_took_hold(bench: &Bench, inbox: &mut dyn cofferdam::ports::Inbox, lease: &Lease) -> [usize; 4] {
    let follow_ups = all(bench).into_iter().filter(|r| r.spec.trace.id == lease.jobs[0].spec.trace.id);
    let follow_ups = follow_ups.count() - 1;
    let context = {
        let trace = lease.jobs[0].spec.trace;
        bench.submit(NewJob { trace, ..bench.job("elsewhere") });
        let mut probe = bench.executor_of(1);
        let lease = probe.lease();
        probe.finish(&lease);
        lease.jobs[0].context.len()
    };
    let state = bench.state_seen_by_a_new_executor("serial").1.len();
    bench.backend.settle();
    let rang = inbox.take(100).ended;
    let rang = rang.iter().filter(|bell| bell.job == lease.jobs[0].spec.id).count();
    [state, context, follow_ups, rang]
}

fn all(bench: &Bench) -> Vec<cofferdam::job::JobRecord> {
    let filter = cofferdam::ports::Filter { limit: 1000, ..cofferdam::ports::Filter::default() };
    bench.backend.producer().list(&Viewer::anonymous(), &filter).expect("the backend is there").records
}

fn subscribed(bench: &Bench) -> Box<dyn cofferdam::ports::Inbox> {
    let bell = cofferdam::bell::Bell::silent();
    bench.backend.replies().subscribe(cofferdam::job::InstanceId(1), bell).expect("the backend is there")
}

pub fn a_commit_takes_hold_as_a_whole(make: Make) {
    let bench = Bench::new(make);
    let mut inbox = subscribed(&bench);
    let job = bench.submit_to("serial");
    let mut executor = bench.executor();
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, succeeded_with(everything())), COMMITTED);
    let record = bench.record(job);
    assert_eq!(record.finished.unwrap().result, Ok(Payload::json(*b"1")));
    assert_eq!(executor.finish_everything().len(), 2);
    assert_eq!(what_took_hold(&bench, &mut *inbox, &lease), [1, 1, 2, 1]);
}

pub fn a_late_commit_takes_hold_in_no_part(make: Make) {
    type End = fn(&Bench, &mut Executor, &Lease);
    let ways: [(&str, End); 6] = [
        ("cancelled", |bench, _, lease| drop(bench.cancel(lease.jobs[0].spec.id))),
        ("ran out", |bench, _, _| bench.pass(Duration::from_secs(30))),
        ("released", |_, executor, lease| executor.release(lease)),
        ("timed out", |_, executor, lease| {
            assert_eq!(executor.say(lease, 0, Outcome::TimedOut(String::new())), COMMITTED);
        }),
        ("out of order", |_, executor, lease| {
            let wrong = Commit { delivery: 9, ..commit_of(lease, 0, version_of(lease), succeeded()) };
            assert_eq!(executor.commit(wrong), FENCED);
        }),
        ("another version", |_, executor, lease| {
            assert_eq!(executor.commit(commit_of(lease, 0, Version(1), succeeded())), FENCED);
        }),
    ];
    for (way, end) in ways {
        let bench = Bench::new(make);
        let mut inbox = subscribed(&bench);
        let job = bench.submit_to("serial");
        let mut executor = bench.executor();
        let lease = executor.lease();
        end(&bench, &mut executor, &lease);
        let ended = bench.record(job).finished.is_some();
        let late = commit_of(&lease, 0, version_of(&lease), succeeded_with(everything()));
        assert_eq!(executor.commit(late), FENCED, "{way}");
        assert_eq!(bench.record(job).finished.is_some(), ended, "{way}");
        if !ended {
            bench.cancel(job);
        }
        assert_eq!(what_took_hold(&bench, &mut *inbox, &lease), [0, 0, 0, 1], "{way}");
    }
}

pub fn a_commit_beyond_the_state_limit_fails_the_job_and_applies_nothing(make: Make) {
    let bench = Bench::with(make, |settings| settings.lane_state_max = 2048);
    let mut inbox = subscribed(&bench);
    let jobs = bench.submit_many("serial", 2);
    let mut executor = bench.executor();
    let lease = executor.lease();
    let fits = Effects { state: vec![set("a", &"x".repeat(2047))], ..everything() };
    let too_much = Effects { state: vec![set("a", &"x".repeat(2048))], ..everything() };
    assert_eq!(executor.say(&lease, 0, succeeded_with(too_much)), COMMITTED);
    assert_eq!(bench.status(jobs[0]), JobStatus::Failed);
    assert_eq!(bench.error(jobs[0]).code, Code::StateTooLarge);
    let rest = executor.lease();
    assert_eq!(ids(&rest), jobs[1..], "its executor has a wrong state, so the run ends");
    assert_eq!(rest.state, StateAt::Whole(Version::default(), Entries::new()));
    executor.finish(&rest);
    assert_eq!(what_took_hold(&bench, &mut *inbox, &lease), [0, 0, 0, 1]);
    bench.submit_to("serial");
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, succeeded_with(fits)), COMMITTED);
    assert_eq!(bench.status(lease.jobs[0].spec.id), JobStatus::Succeeded, "up to the limit it holds");
}

pub fn a_commit_with_an_unknown_follow_up_fails_the_job_and_applies_nothing(make: Make) {
    let bench = Bench::new(make);
    let mut inbox = subscribed(&bench);
    let job = bench.submit_to("serial");
    let mut executor = bench.executor();
    let lease = executor.lease();
    let mut effects = everything();
    effects.follow_ups.push(follow_up("unheard of"));
    assert_eq!(executor.say(&lease, 0, succeeded_with(effects)), COMMITTED);
    assert_eq!((bench.status(job), bench.error(job).code), (JobStatus::Failed, Code::HandlerFailed));
    assert_eq!(what_took_hold(&bench, &mut *inbox, &lease), [0, 0, 0, 1]);
}

pub fn a_group_submits_to_the_handlers_that_it_may_name_alone(make: Make) {
    let bench = Bench::with(make, |settings| {
        let serial = settings.handlers.iter_mut().find(|spec| *spec.name == *"serial").expect("it is there");
        serial.follow_ups = Some(Arc::from(["free".to_owned()]));
    });
    let to = |handler: &str| Effects { follow_ups: vec![follow_up(handler)], ..Effects::default() };
    let jobs = bench.submit_many("serial", 2);
    let mut executor = bench.executor();
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, succeeded_with(to("serial2"))), COMMITTED);
    assert_eq!((bench.status(jobs[0]), bench.error(jobs[0]).code), (JobStatus::Failed, Code::HandlerFailed));
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, succeeded_with(to("free"))), COMMITTED);
    assert_eq!(bench.status(jobs[1]), JobStatus::Succeeded);
    assert_eq!(executor.finish_everything().len(), 1);
}

pub fn a_retry_after_a_time_of_its_own_comes_then(make: Make) {
    let bench = Bench::with(make, |settings| settings.max_deliveries = 9);
    let job = bench.submit_to("free");
    let mut executor = bench.executor();
    let week = Duration::from_secs(7 * 24 * 3600);
    for (said, waits) in [(Duration::from_secs(90), Duration::from_secs(90)), (8 * week, week)] {
        let lease = executor.lease();
        assert_eq!(executor.say(&lease, 0, Outcome::Retry("not yet".into(), Some(said))), COMMITTED);
        let until = bench.now().plus(waits);
        assert_eq!(bench.record(job).waiting_for, Some(cofferdam::job::WaitingFor::Backoff(until)));
        bench.pass(waits - Duration::from_millis(1));
        executor.claims_nothing();
        bench.pass(Duration::from_millis(1));
    }
    assert_eq!(bench.record(job).deliveries, 2, "each counts");
    executor.finish_everything();
}

pub fn an_unordered_job_has_no_state(make: Make) {
    let bench = Bench::new(make);
    let job = bench.submit_to("free");
    let mut executor = bench.executor();
    let lease = executor.lease();
    assert_eq!(lease.state, StateAt::Stateless);
    assert_eq!(executor.say(&lease, 0, state(vec![set("k", "v")])), COMMITTED);
    assert_eq!((bench.status(job), bench.error(job).code), (JobStatus::Failed, Code::HandlerFailed));
}

pub fn the_state_comes_whole_and_then_is_known(make: Make) {
    let bench = Bench::new(make);
    let mut executor = bench.executor();
    let mut version = Version::default();
    for round in 0..4 {
        bench.submit_many("serial", 2);
        let lease = executor.lease();
        let expected = match round {
            0 => StateAt::Whole(version, Entries::new()),
            _ => StateAt::Known(version),
        };
        assert_eq!(lease.state, expected, "round {round}");
        let first = commit_of(&lease, 0, version, state(vec![set("k", "v")]));
        version = Version(lease.jobs[0].fence);
        let second = commit_of(&lease, 1, version, state(vec![set("l", "w")]));
        version = Version(lease.jobs[1].fence);
        assert_eq!(executor.commits(vec![first, second]), [COMMITTED, COMMITTED]);
    }
}

pub fn a_lease_whose_state_was_forgotten_comes_again_with_the_whole_map(make: Make) {
    let bench = Bench::new(make);
    let mut executor = bench.executor();
    bench.submit_to("serial");
    let lease = executor.lease();
    let version = Version(lease.jobs[0].fence);
    assert_eq!(executor.say(&lease, 0, state(vec![set("k", "v")])), COMMITTED);
    let job = bench.submit_to("serial");
    let lease = executor.lease();
    assert_eq!(lease.state, StateAt::Known(version));
    executor.release(&lease);
    let again = executor.lease();
    assert_eq!(again.state, StateAt::Whole(version, entries([("k", "v")])));
    assert_eq!((ids(&again), again.jobs[0].delivery), (vec![job], 1), "uncounted");
    executor.finish(&again);
}

pub fn another_executor_gets_the_state_as_last_committed(make: Make) {
    let bench = Bench::new(make);
    let (mut a, mut b) = (bench.executor(), bench.executor());
    bench.submit_to("serial");
    let lease = a.lease();
    let v1 = Version(lease.jobs[0].fence);
    assert_eq!(a.say(&lease, 0, state(vec![set("k", "1"), set("l", "1")])), COMMITTED);
    bench.submit_to("serial");
    let lease = b.lease();
    assert_eq!(lease.state, StateAt::Whole(v1, entries([("k", "1"), ("l", "1")])));
    let v2 = Version(lease.jobs[0].fence);
    assert_eq!(b.say(&lease, 0, state(vec![set("k", "2"), unset("l")])), COMMITTED);
    // What a knew is old by now; it is not called known again.
    bench.submit_to("serial");
    let lease = a.lease();
    assert_eq!(lease.state, StateAt::Whole(v2, entries([("k", "2")])));
    a.finish(&lease);
    // Lanes are apart from each other.
    assert_eq!(bench.state_seen_by_a_new_executor("serial2").1, Entries::new());
}

pub fn jobs_without_changes_keep_the_version(make: Make) {
    let bench = Bench::new(make);
    let mut executor = bench.executor();
    bench.submit_many("serial", 4);
    let lease = executor.lease();
    let v1 = Version(lease.jobs[0].fence);
    let results = executor.commits(vec![
        commit_of(&lease, 0, Version::default(), state(vec![set("k", "1")])),
        commit_of(&lease, 1, v1, succeeded()),
        commit_of(&lease, 2, v1, failed()),
        commit_of(&lease, 3, v1, succeeded()),
    ]);
    assert_eq!(results, [COMMITTED; 4]);
    bench.submit_to("serial");
    assert_eq!(executor.lease().state, StateAt::Known(v1));
}

pub fn fences_grow_with_every_delivery(make: Make) {
    let bench = Bench::new(make);
    let mut executor = bench.executor();
    let mut last = bench.now().0 - 1;
    let mut grows = |lease: &Lease| {
        for job in &lease.jobs {
            assert!(job.fence > last, "{} after {last}", job.fence);
            last = job.fence;
        }
    };
    for handler in ["serial", "free", "serial2", "serial"] {
        bench.submit_many(handler, 5);
        for lease in executor.leases(5) {
            grows(&lease);
            executor.release(&lease);
        }
        for lease in executor.leases(5) {
            grows(&lease);
            executor.finish(&lease);
        }
        bench.pass(Duration::from_micros(1));
    }
}

pub fn follow_ups_enter_at_the_tail_and_keep_owner_and_trace(make: Make) {
    let bench = Bench::new(make);
    let owner: Arc<str> = Arc::from("ann");
    let parent = bench.job("serial");
    let trace = Trace { flags: 1, parent: Some([9; 8]), ..parent.trace };
    let tracestate: Option<Arc<str>> = Some(Arc::from("a=1,b=2"));
    bench.submit(NewJob { owner: owner.clone(), trace, tracestate: tracestate.clone(), ..parent });
    let before = bench.submit_to("serial");
    let mut executor = bench.executor();
    let lease = executor.lease();
    let seen = &lease.jobs[0].spec;
    assert_eq!((seen.trace.to_string(), &seen.tracestate), (trace.to_string(), &tracestate));
    let behind = bench.submit_to("serial");
    let key: Option<Arc<str>> = Some(Arc::from("k"));
    let mut delayed = follow_up("keyed");
    (delayed.ordering_key, delayed.delay) = (key.clone(), Duration::from_secs(5));
    let effects =
        Effects { follow_ups: vec![follow_up("serial"), follow_up("serial"), delayed], ..Effects::default() };
    assert_eq!(executor.say(&lease, 0, succeeded_with(effects)), COMMITTED);
    assert_eq!(executor.say(&lease, 1, succeeded()), COMMITTED);
    assert_eq!(ids(&lease)[1], before);
    let next = executor.lease();
    assert_eq!((next.jobs.len(), next.jobs[0].spec.id), (3, behind), "never the present run");
    for job in &next.jobs[1..] {
        assert_eq!((&job.spec.owner, job.spec.trace.id), (&owner, trace.id));
        assert_eq!((job.spec.trace.flags, &job.spec.tracestate), (1, &tracestate));
        let kept = bench.record(job.spec.id).spec.trace;
        assert_eq!(
            (kept.span, kept.parent),
            (job.spec.trace.span, Some(trace.span)),
            "a child of its parent"
        );
        assert_ne!(kept.span, trace.span);
        assert_eq!(job.payload, follow_up("serial").payload);
        assert_eq!(job.spec.submitted_at, bench.now());
    }
    executor.finish(&next);
    executor.claims_nothing();
    bench.pass(Duration::from_secs(5));
    let lease = executor.lease();
    assert_eq!((&*lease.handler, &lease.jobs[0].spec.ordering_key), ("keyed", &key));
}

pub fn a_context_is_shared_by_its_trace_and_owner_only(make: Make) {
    let bench = Bench::new(make);
    let mut executor = bench.executor();
    let first = bench.job("free");
    let trace = first.trace;
    let ann: Arc<str> = Arc::from("ann");
    bench.submit(NewJob { owner: ann.clone(), ..first });
    let lease = executor.lease();
    let effects = Effects { context: vec![set("c", "1")], ..Effects::default() };
    assert_eq!(executor.say(&lease, 0, succeeded_with(effects)), COMMITTED);
    let theirs = entries([("c", "1")]);
    for (what, owner, trace, context) in [
        ("another handler of the trace", ann.clone(), trace, theirs),
        ("another owner", Arc::from("bob"), trace, Entries::new()),
        ("nobody", Arc::from(""), trace, Entries::new()),
        ("another trace", ann, bench.job("free").trace, Entries::new()),
    ] {
        bench.submit(NewJob { owner, trace, ..bench.job("serial") });
        let lease = executor.lease();
        assert_eq!(lease.jobs[0].context, context, "{what}");
        executor.finish(&lease);
    }
}

pub fn a_context_lives_for_its_time_after_its_last_use(make: Make) {
    let bench = Bench::with(make, |settings| settings.context_ttl = Duration::from_secs(60));
    let mut executor = bench.executor();
    let first = bench.job("free");
    let trace = first.trace;
    bench.submit(first);
    let lease = executor.lease();
    let effects = Effects { context: vec![set("c", "1")], ..Effects::default() };
    assert_eq!(executor.say(&lease, 0, succeeded_with(effects)), COMMITTED);
    let mut context_after = |time| {
        bench.pass(time);
        bench.submit(NewJob { trace, ..bench.job("free") });
        let lease = executor.lease();
        executor.finish(&lease);
        lease.jobs[0].context.clone()
    };
    for _ in 0..3 {
        assert_eq!(context_after(Duration::from_secs(59)), entries([("c", "1")]), "each use renews it");
    }
    assert_eq!(context_after(Duration::from_secs(60)), Entries::new());
}
