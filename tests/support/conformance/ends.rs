//! Laws of leases that end: lost, given back, failed, timed out; and of dead jobs.

use std::time::Duration;

use cofferdam::job::{JobStatus, Outcome, WaitingFor};
use cofferdam::ports::{Rules, StateAt};
use cofferdam::problem::{Cause, Code};

use super::{
    Bench, CommitResult, Executor, Make, commit_of, crashed, entries, failed, ids, retry, set, state,
    succeeded, version_of,
};

const COMMITTED: CommitResult = CommitResult::Committed;
const SECOND: Duration = Duration::from_secs(1);
const FOR_EVER: Duration = Duration::from_secs(3600);
const RETRY_BASE: Duration = Duration::from_millis(200);

pub fn jobs_that_were_lost_together_come_again_at_once_uncounted(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 4);
    let free = bench.submit_many("free", 2);
    let mut doomed = bench.executor();
    let leases = doomed.leases(3);
    assert_eq!(doomed.say(&leases[0], 0, succeeded()), COMMITTED);
    doomed.die();
    let deliveries: Vec<_> = jobs.iter().chain(&free).map(|id| bench.record(*id).deliveries).collect();
    assert_eq!(deliveries, [1, 0, 0, 0, 0, 0], "any of the others may have been the reason");
    assert_eq!(bench.backend.producer().stats().unwrap().suspects, 5);
    let mut executor = bench.executor();
    let leases = executor.leases(10);
    let again: Vec<_> = leases.iter().map(|lease| (ids(lease), lease.jobs[0].delivery)).collect();
    assert_eq!(again, [(vec![jobs[1]], 2), (vec![free[0]], 2), (vec![free[1]], 2)]);
    leases.iter().for_each(|lease| executor.finish(lease));
    for job in &jobs[2..] {
        let lease = executor.lease();
        assert_eq!(
            (ids(&lease), lease.jobs[0].delivery),
            (vec![*job], 2),
            "it may have begun behind the others"
        );
        executor.finish(&lease);
    }
    assert!(jobs.iter().chain(&free).all(|id| bench.record(*id).deliveries == 1));
    assert_eq!(bench.backend.producer().stats().unwrap().suspects, 0, "an end clears a job");
}

pub fn a_job_that_is_lost_alone_is_counted_and_comes_again_at_once_the_first_time(make: Make) {
    let bench = Bench::new(make);
    let job = bench.submit_to("free");
    let mut doomed = bench.executor();
    doomed.lease();
    doomed.die();
    let mut executor = bench.executor();
    let lease = executor.lease();
    assert_eq!((ids(&lease), lease.jobs[0].delivery, bench.record(job).deliveries), (vec![job], 2, 2));
    executor.die();
    let waits = bench.record(job).waiting_for;
    assert!(
        matches!(waits, Some(WaitingFor::Backoff(until)) if until <= bench.now().plus(RETRY_BASE)),
        "{waits:?}"
    );
    bench.pass(RETRY_BASE);
    assert_eq!(bench.executor().finish_everything(), [job]);
    assert_eq!(bench.record(job).deliveries, 3);
}

pub fn leases_of_one_executor_that_are_over_one_after_the_other_are_lost_together(make: Make) {
    let bench = Bench::with(make, |settings| settings.visibility = 10 * SECOND);
    let (mut slow, mut other) = (bench.executor(), bench.executor());
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(bench.submit_to("free"));
        slow.lease();
        bench.pass(2 * SECOND);
    }
    // Nobody renews them: each is found over by itself.
    bench.pass(2 * SECOND);
    for lost in 1..=3 {
        bench.pass(2 * SECOND);
        assert_eq!(bench.backend.producer().stats().unwrap().suspects, lost);
    }
    let deliveries: Vec<_> = jobs.iter().map(|id| bench.record(*id).deliveries).collect();
    assert_eq!(deliveries, [0, 0, 0], "any of them may have been the reason");
    other.finish_everything();
    // What it is given long afterwards it loses alone.
    bench.pass(10 * SECOND);
    let job = bench.submit_to("free");
    slow.lease();
    bench.pass(10 * SECOND);
    assert_eq!(bench.record(job).deliveries, 1);
}

pub fn a_suspect_runs_by_itself_and_those_behind_it_as_before(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 2);
    let mut doomed = bench.executor();
    doomed.lease();
    doomed.die();
    let later = bench.submit_many("serial", 3);
    let mut executor = bench.executor();
    for outcome in [succeeded(), failed()] {
        let lease = executor.lease();
        assert_eq!(lease.jobs.len(), 1);
        executor.release(&lease);
        let lease = executor.lease();
        assert_eq!((lease.jobs.len(), lease.jobs[0].delivery), (1, 2), "a release is no end");
        assert_eq!(executor.say(&lease, 0, outcome), COMMITTED);
    }
    let lease = executor.lease();
    assert_eq!((ids(&lease), lease.jobs[0].delivery), (later, 1), "runs are long again");
    executor.finish(&lease);
    assert!(jobs.iter().all(|id| bench.record(*id).deliveries == 1));
}

/// Six jobs, of which the executor of all was lost twice.
fn lost_twice(bench: &Bench) -> Vec<cofferdam::job::JobId> {
    let jobs = bench.submit_many("free", 6);
    for _ in 0..2 {
        let mut doomed = bench.executor();
        assert_eq!(doomed.leases(10).len(), 6);
        doomed.die();
    }
    assert!(jobs.iter().all(|id| bench.record(*id).deliveries == 0));
    jobs
}

pub fn a_job_that_was_lost_twice_with_others_runs_alone(make: Make) {
    let bench = Bench::new(make);
    let jobs = lost_twice(&bench);
    let within = bench.now().plus(RETRY_BASE);
    for job in &jobs {
        let waits = bench.record(*job).waiting_for;
        assert!(matches!(waits, Some(WaitingFor::Backoff(until)) if until <= within), "{waits:?}");
    }
    bench.pass(RETRY_BASE);
    bench.submit_to("serial");
    let (mut a, mut b) = (bench.executor(), bench.executor());
    let (killer, innocent) = (a.leases(10), b.leases(10));
    assert_eq!((killer.len(), innocent.len()), (1, 1), "each executor gets nothing else meanwhile");
    a.claims_nothing();
    a.die();
    let killer = ids(&killer[0])[0];
    assert_eq!(bench.record(killer).deliveries, 1, "lost alone, and so counted");
    b.finish(&innocent[0]);
    bench.pass(FOR_EVER / 100);
    assert_eq!(
        b.finish_everything().len(),
        jobs.len(),
        "the others, one after the other, and the serial one"
    );
    for job in jobs {
        let deliveries = if job == killer { 2 } else { 1 };
        assert_eq!((bench.status(job), bench.record(job).deliveries), (JobStatus::Succeeded, deliveries));
    }
}

pub fn an_executor_is_kept_free_for_a_job_that_runs_alone(make: Make) {
    let bench = Bench::new(make);
    let (mut a, mut b) = (bench.executor(), bench.executor());
    let long = bench.submit_many("serial2", 1);
    let held = a.leases(1);
    assert_eq!(ids(&held[0]), long);
    let elsewhere = bench.submit(cofferdam::ports::NewJob {
        ordering_key: Some(std::sync::Arc::from("k")),
        ..bench.job("keyed")
    });
    let theirs = b.leases(1);
    assert_eq!(ids(&theirs[0]), [elsewhere]);
    lost_twice(&bench);
    bench.pass(RETRY_BASE);
    let innocent = bench.submit_to("serial");
    a.claims_nothing();
    // The other one goes on; it is the first that is kept free.
    let next = b.leases(1);
    assert_eq!(next.iter().flat_map(ids).collect::<Vec<_>>(), [innocent]);
    a.finish(&held[0]);
    let alone = a.leases(10);
    assert_eq!(alone.len(), 1);
    a.claims_nothing();
    a.finish(&alone[0]);
    b.finish(&theirs[0]);
    b.finish(&next[0]);
}

pub fn losses_are_bounded_whoever_is_lost_with_them(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("free", 2);
    // Together twice, then each alone: three deliveries that count are the end.
    for _ in 0..20 {
        let mut doomed = bench.executor();
        doomed.leases(10);
        doomed.die();
        bench.pass(FOR_EVER / 100);
    }
    for job in jobs {
        let record = bench.record(job);
        assert_eq!((record.status, record.deliveries), (JobStatus::Dead, 3));
        assert_eq!(bench.error(job).cause, Some(Cause::ExecutorLost));
    }
}

pub fn an_outcome_that_does_not_hold_counts_the_delivery(make: Make) {
    let bench = Bench::new(make);
    let job = bench.submit_to("free");
    let mut executor = bench.executor();
    for delivery in 1..=3 {
        let lease = executor.lease();
        assert_eq!((ids(&lease), lease.jobs[0].delivery), (vec![job], delivery));
        let mut wrong = commit_of(&lease, 0, version_of(&lease), succeeded());
        wrong.delivery += 1;
        assert_eq!(executor.commit(wrong), CommitResult::Fenced);
    }
    let record = bench.record(job);
    assert_eq!((record.status, record.deliveries), (JobStatus::Dead, 3), "not for ever");
}

pub fn a_handler_with_one_delivery_gets_runs_of_one(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("once", 3);
    let mut executor = bench.executor();
    for job in jobs {
        let lease = executor.lease();
        assert_eq!(ids(&lease), [job]);
        executor.finish(&lease);
    }
}

pub fn a_job_that_kills_its_executor_takes_no_neighbour_along(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 5);
    let killer = jobs[1];
    for _ in 0..20 {
        bench.pass(FOR_EVER / 100);
        let mut executor = bench.executor();
        let Some(lease) = executor.leases(1).pop() else { break };
        for index in 0..lease.jobs.len() {
            if lease.jobs[index].spec.id == killer {
                break;
            }
            assert_eq!(executor.say(&lease, index, succeeded()), COMMITTED);
        }
        executor.die();
    }
    let ends: Vec<_> = jobs.iter().map(|id| bench.record(*id)).map(|r| (r.status, r.deliveries)).collect();
    let well = (JobStatus::Succeeded, 1);
    assert_eq!(ends, [well, (JobStatus::Dead, 3), well, well, well]);
    assert_eq!(bench.error(killer).cause, Some(Cause::ExecutorLost));
}

pub fn used_up_deliveries_make_a_job_dead_with_its_cause(make: Make) {
    for (handler, outcome, cause) in [
        ("free", Some(retry()), Cause::RetriesExhausted),
        ("serial", Some(retry()), Cause::RetriesExhausted),
        ("free", Some(crashed()), Cause::HandlerCrashed),
        ("serial", Some(crashed()), Cause::HandlerCrashed),
        ("free", None, Cause::ExecutorLost),
        ("once", None, Cause::ExecutorLost),
        ("once", Some(crashed()), Cause::HandlerCrashed),
    ] {
        let bench = Bench::new(make);
        let job = bench.submit_to(handler);
        let next = (handler != "free").then(|| bench.submit_to(handler));
        let deliveries = if handler == "once" { 1 } else { 3 };
        for delivery in 1..=deliveries {
            assert_eq!(bench.status(job), JobStatus::Queued);
            let mut executor = bench.executor();
            let lease = executor.lease();
            assert_eq!((lease.jobs[0].spec.id, lease.jobs[0].delivery), (job, delivery));
            match &outcome {
                Some(outcome) => assert_eq!(executor.say(&lease, 0, outcome.clone()), COMMITTED),
                None => executor.die(),
            }
            bench.pass(FOR_EVER / 100);
        }
        let record = bench.record(job);
        assert_eq!((record.status, record.deliveries), (JobStatus::Dead, deliveries), "{handler} {cause:?}");
        let error = bench.error(job);
        assert_eq!((error.code, error.cause), (Code::DeadLettered, Some(cause)), "{handler}");
        assert_eq!(bench.backend.producer().stats().unwrap().dead, 1);
        let done = bench.executor().finish_everything();
        assert_eq!(done, next.into_iter().collect::<Vec<_>>(), "the lane goes on");
    }
}

pub fn the_backoff_is_between_nothing_and_its_doubling_capped_bound(make: Make) {
    let (base, cap) = (Duration::from_millis(100), Duration::from_millis(500));
    let bench = Bench::with(make, |settings| {
        (settings.retry_base, settings.retry_max, settings.max_deliveries) = (base, cap, 7);
    });
    let jobs = bench.submit_many("free", 200);
    let mut executor = bench.executor();
    for delivery in 1..=6 {
        let bound = (base * (1 << (delivery - 1))).min(cap);
        let leases = executor.leases(jobs.len());
        assert_eq!(leases.len(), jobs.len());
        for (index, lease) in leases.iter().enumerate() {
            let outcome = if index % 2 == 0 { retry() } else { crashed() };
            assert_eq!(executor.say(lease, 0, outcome), COMMITTED);
        }
        let now = bench.now();
        let mut waits: Vec<Duration> = Vec::new();
        for job in &jobs {
            waits.push(match bench.record(*job).waiting_for {
                Some(WaitingFor::Backoff(until)) => until.since(now),
                _ => Duration::ZERO,
            });
        }
        waits.sort();
        assert!(waits[waits.len() - 1] <= bound, "delivery {delivery}: {waits:?}");
        assert!(waits[20] < bound / 3 && waits[180] > bound / 3 * 2, "full jitter: {waits:?}");
        bench.pass(bound);
    }
}

pub fn u3_default_retries_outlast_an_upstream_that_is_away_for_ten_minutes(make: Make) {
    let rules = Rules::default();
    let bench = Bench::with(make, |settings| {
        settings.max_deliveries = rules.max_deliveries;
        settings.retry_base = Duration::from_millis(rules.retry.base_ms);
        settings.retry_max = Duration::from_millis(rules.retry.max_ms);
    });
    let jobs = [bench.submit_to("free"), bench.submit_to("serial")];
    let back_at = bench.now().plus(Duration::from_secs(600));
    let mut executor = bench.executor();
    while bench.now() < back_at {
        for lease in executor.leases(jobs.len()) {
            assert_eq!(executor.say(&lease, 0, retry()), COMMITTED);
        }
        bench.pass(5 * SECOND);
    }
    assert!(jobs.iter().all(|id| bench.status(*id) == JobStatus::Queued), "none is given up");
    bench.pass(Duration::from_millis(rules.retry.max_ms));
    executor.finish_everything();
    assert!(jobs.iter().all(|id| bench.status(*id) == JobStatus::Succeeded));
}

pub fn a_released_lease_is_uncounted_and_keeps_its_order(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 4);
    let free = bench.submit_to("free");
    let mut executor = bench.executor();
    for _ in 0..12 {
        for lease in executor.leases(2) {
            executor.release(&lease);
        }
    }
    let leases = executor.leases(2);
    assert!(leases.iter().all(|lease| lease.jobs[0].delivery == 1), "12 releases counted for nothing");
    let serial = leases.iter().find(|lease| *lease.handler == *"serial").expect("its lane is ready");
    assert_eq!(ids(serial), jobs);
    // In the middle of a run the committed part stays committed.
    assert_eq!(executor.say(serial, 0, succeeded()), COMMITTED);
    executor.release(serial);
    let record = bench.record(jobs[1]);
    assert_eq!((record.status, record.deliveries), (JobStatus::Queued, 0));
    assert_eq!(executor.finish_everything(), jobs[1..]);
    let lease = leases.iter().find(|lease| *lease.handler == *"free").expect("claimed");
    executor.finish(lease);
    assert_eq!(bench.record(free).deliveries, 1);
}

pub fn a_release_of_a_lease_that_is_over_is_ignored(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 2);
    let mut executor = bench.executor();
    let old = executor.lease();
    executor.release(&old);
    let lease = executor.lease();
    executor.release(&old);
    executor.claims_nothing();
    executor.finish(&lease);
    executor.release(&lease);
    assert!(jobs.iter().all(|id| bench.status(*id) == JobStatus::Succeeded));
}

pub fn a_lease_that_is_not_renewed_is_lost_and_one_that_is_renewed_lives(make: Make) {
    let bench = Bench::with(make, |settings| settings.visibility = 10 * SECOND);
    let jobs = [bench.submit_to("serial"), bench.submit_to("free")];
    let (mut slow, mut other) = (bench.executor(), bench.executor());
    let leases = slow.leases(2);
    for _ in 0..2 {
        bench.pass(9 * SECOND);
        slow.extend();
        other.extend();
        other.claims_nothing();
    }
    bench.pass(10 * SECOND - Duration::from_micros(1));
    other.claims_nothing();
    assert!(jobs.iter().all(|id| bench.status(*id) == JobStatus::Running));
    bench.pass(Duration::from_micros(1));
    let again = other.leases(10);
    assert_eq!(again.len(), 2);
    assert!(again.iter().all(|lease| lease.jobs[0].delivery == 2), "no number is told twice");
    slow.extend();
    assert!(leases.iter().all(|lease| slow.say(lease, 0, succeeded()) == CommitResult::Fenced));
    again.iter().for_each(|lease| other.finish(lease));
}

pub fn a_commit_renews_its_lease(make: Make) {
    let bench = Bench::with(make, |settings| settings.visibility = 10 * SECOND);
    bench.submit_many("serial", 5);
    let mut executor = bench.executor();
    let lease = executor.lease();
    for index in 0..5 {
        bench.pass(9 * SECOND);
        assert_eq!(executor.say(&lease, index, succeeded()), COMMITTED);
    }
}

pub fn a_lease_is_over_at_its_jobs_deadline_however_often_it_is_renewed(make: Make) {
    let bench = Bench::new(make);
    let job = bench.submit(cofferdam::ports::NewJob { timeout: Some(5 * SECOND), ..bench.job("free") });
    let mut hostile = bench.executor();
    let lease = hostile.lease();
    for _ in 0..14 {
        bench.pass(SECOND);
        hostile.extend();
    }
    assert_eq!(bench.status(job), JobStatus::Running, "its timeout, and a grace");
    bench.pass(SECOND);
    hostile.extend();
    assert_eq!((bench.status(job), bench.record(job).deliveries), (JobStatus::Queued, 1), "counted");
    assert_eq!(hostile.revoked().len(), 1);
    assert_eq!(hostile.say(&lease, 0, succeeded()), CommitResult::Fenced);
    assert_eq!(bench.executor().finish_everything(), [job]);
}

pub fn a_timeout_ends_the_run_and_its_rest_is_uncounted(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 3);
    let mut executor = bench.executor();
    let lease = executor.lease();
    let v1 = cofferdam::job::Version(lease.jobs[0].fence);
    let first = commit_of(&lease, 0, version_of(&lease), state(vec![set("k", "1")]));
    let second = commit_of(&lease, 1, v1, Outcome::TimedOut(String::new()));
    let third = commit_of(&lease, 2, v1, succeeded());
    assert_eq!(executor.commits(vec![first, second, third]), [COMMITTED, COMMITTED, CommitResult::Fenced]);
    assert_eq!(
        (bench.status(jobs[1]), bench.error(jobs[1]).code),
        (JobStatus::TimedOut, Code::HandlerTimedOut)
    );
    assert_eq!(bench.record(jobs[2]).deliveries, 0);
    let rest = executor.lease();
    assert_eq!((ids(&rest), rest.jobs[0].delivery), (jobs[2..].to_vec(), 2), "it may have begun");
    assert_eq!(
        rest.state,
        StateAt::Whole(v1, entries([("k", "1")])),
        "the run's end was not its last commit"
    );
    executor.finish(&rest);
}

pub fn a_failed_job_lets_its_run_go_on(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 2);
    let mut executor = bench.executor();
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, failed()), COMMITTED);
    assert_eq!(executor.say(&lease, 1, succeeded()), COMMITTED);
    assert_eq!((bench.status(jobs[0]), bench.error(jobs[0]).code), (JobStatus::Failed, Code::HandlerFailed));
    assert_eq!(bench.error(jobs[0]).detail, "it cannot be done");
}

/// A parked lane: its dead head, and what waits behind it.
fn parked(bench: &Bench, executor: &mut Executor) -> [cofferdam::job::JobId; 3] {
    let jobs = [(); 3].map(|()| bench.submit_to("parking"));
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, crashed()), COMMITTED);
    assert_eq!(bench.status(jobs[0]), JobStatus::Dead);
    bench.pass(FOR_EVER / 100);
    executor.claims_nothing();
    assert_eq!(bench.record(jobs[1]).waiting_for, Some(WaitingFor::Lane(jobs[0])));
    jobs
}

pub fn a_parked_lane_waits_until_its_dead_head_is_retried(make: Make) {
    let bench = Bench::new(make);
    let mut executor = bench.executor();
    let jobs = parked(&bench, &mut executor);
    let record = bench.retry(jobs[0]).expect("a dead job can be retried");
    assert_eq!((record.status, record.deliveries), (JobStatus::Queued, 0));
    assert_eq!(executor.finish_everything(), jobs, "a parked job is its lane's head again");
    assert!(jobs.iter().all(|id| bench.status(*id) == JobStatus::Succeeded));
}

pub fn a_parked_lane_goes_on_once_its_dead_head_is_deleted(make: Make) {
    let bench = Bench::new(make);
    let mut executor = bench.executor();
    let jobs = parked(&bench, &mut executor);
    bench.cancel(jobs[2]);
    executor.claims_nothing();
    assert_eq!(bench.cancel(jobs[0]).status, JobStatus::Dead, "it stays what it is");
    assert_eq!(executor.finish_everything(), jobs[1..2]);
    // A second time it is a record like others: retried, it goes to the tail.
    let tail = bench.submit_to("parking");
    bench.cancel(jobs[0]);
    assert!(bench.retry(jobs[0]).is_ok());
    assert_eq!(executor.finish_everything(), [tail, jobs[0]]);
}

pub fn a_parked_dead_job_outlives_its_time(make: Make) {
    let bench = Bench::with(make, |settings| (settings.retain_records, settings.retain_bytes) = (1, 1 << 20));
    let mut executor = bench.executor();
    let jobs = parked(&bench, &mut executor);
    bench.submit_many("free", 5);
    executor.finish_everything();
    bench.pass(FOR_EVER);
    assert_eq!(bench.status(jobs[0]), JobStatus::Dead, "until someone acts");
    bench.cancel(jobs[0]);
    bench.pass(FOR_EVER);
    assert_eq!(bench.find(jobs[0]), None);
}
