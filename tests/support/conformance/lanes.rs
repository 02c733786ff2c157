//! Laws of delivery: lanes, runs, order, room.

use std::time::Duration;

use cofferdam::job::{JobStatus, Payload};
use cofferdam::ports::{NewJob, StateAt};

use super::{Bench, CommitResult, Make, ids, retry, succeeded};

const RUN: usize = 32;
const SECOND: Duration = Duration::from_secs(1);

pub fn jobs_of_a_serial_handler_come_in_submission_order(make: Make) {
    let bench = Bench::new(make);
    let mut submitted = bench.submit_many("serial", 40);
    let mut executor = bench.executor();
    let lease = executor.lease();
    submitted.extend(bench.submit_many("serial", 40));
    executor.finish(&lease);
    let mut done = ids(&lease);
    done.extend(executor.finish_everything());
    assert_eq!(done, submitted);
}

pub fn a_lane_has_one_live_lease(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 3);
    let (mut a, mut b) = (bench.executor(), bench.executor());
    let lease = a.lease();
    bench.submit_to("serial");
    a.claims_nothing();
    b.claims_nothing();
    assert_eq!(a.say(&lease, 0, succeeded()), CommitResult::Committed);
    b.claims_nothing();
    assert_eq!(a.say(&lease, 1, succeeded()), CommitResult::Committed);
    assert_eq!(a.say(&lease, 2, succeeded()), CommitResult::Committed);
    assert_eq!(ids(&lease), jobs);
    assert_eq!(b.leases(10).len(), 1, "complete: the lane is free");
    a.claims_nothing();
}

pub fn keyed_lanes_keep_their_order_and_do_not_wait_for_each_other(make: Make) {
    let bench = Bench::new(make);
    let (a1, b1) = (bench.submit_keyed("a"), bench.submit_keyed("b"));
    let (a2, b2) = (bench.submit_keyed("a"), bench.submit_keyed("b"));
    let mut executor = bench.executor();
    let leases = executor.leases(10);
    assert_eq!(leases.iter().map(ids).collect::<Vec<_>>(), [vec![a1, a2], vec![b1, b2]]);
    // Lane a is stuck behind its head; lane b goes on, and a third one too.
    executor.finish(&leases[1]);
    let c = bench.submit_keyed("c");
    let b3 = bench.submit_keyed("b");
    assert_eq!(executor.finish_everything(), [c, b3]);
    executor.finish(&leases[0]);
}

pub fn unordered_jobs_are_leased_one_by_one_and_side_by_side(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("free", 5);
    let mut executor = bench.executor();
    let leases = executor.leases(10);
    assert_eq!(
        leases.iter().map(ids).collect::<Vec<_>>(),
        jobs.iter().map(|id| vec![*id]).collect::<Vec<_>>()
    );
    assert!(leases.iter().all(|lease| lease.state == StateAt::Stateless && *lease.handler == *"free"));
    // They may end in any order.
    leases.iter().rev().for_each(|lease| executor.finish(lease));
    assert!(jobs.iter().all(|id| bench.status(*id) == JobStatus::Succeeded));
}

pub fn a_run_has_at_most_32_jobs(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 2 * RUN + 1);
    let mut executor = bench.executor();
    for expected in [&jobs[..RUN], &jobs[RUN..2 * RUN], &jobs[2 * RUN..]] {
        let lease = executor.lease();
        assert_eq!(ids(&lease), expected);
        executor.finish(&lease);
    }
}

pub fn a_run_is_cut_where_its_payloads_exceed_a_frame(make: Make) {
    let bench = Bench::with(make, |settings| settings.max_payload = 4096);
    let jobs: Vec<_> = [2000, 2096, 1, 4096, 1]
        .into_iter()
        .map(|size| {
            bench.submit(NewJob { payload: Payload::octets(vec![b'x'; size]), ..bench.job("serial") })
        })
        .collect();
    let mut executor = bench.executor();
    for expected in [&jobs[..2], &jobs[2..3], &jobs[3..4], &jobs[4..]] {
        let lease = executor.lease();
        assert_eq!(ids(&lease), expected);
        executor.finish(&lease);
    }
}

pub fn only_the_first_job_of_a_run_has_started(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 3);
    let mut executor = bench.executor();
    executor.lease();
    let seen: Vec<_> = jobs.iter().map(|id| bench.record(*id)).map(|r| (r.status, r.deliveries)).collect();
    assert_eq!(seen, [(JobStatus::Running, 1), (JobStatus::Queued, 0), (JobStatus::Queued, 0)]);
}

pub fn the_next_job_of_a_run_starts_with_the_commit_before_it(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 3);
    let mut executor = bench.executor();
    let lease = executor.lease();
    bench.pass(SECOND);
    assert_eq!(executor.say(&lease, 0, succeeded()), CommitResult::Committed);
    let seen: Vec<_> = jobs.iter().map(|id| bench.record(*id)).map(|r| (r.status, r.deliveries)).collect();
    assert_eq!(seen, [(JobStatus::Succeeded, 1), (JobStatus::Running, 1), (JobStatus::Queued, 0)]);
    assert_eq!(bench.record(jobs[1]).started_at, Some(bench.now()));
}

pub fn a_retried_head_holds_its_lane(make: Make) {
    let bench = Bench::with(make, |settings| settings.retry_base = Duration::from_secs(3600));
    let jobs = bench.submit_many("serial", 3);
    let other = bench.submit_to("serial2");
    let mut executor = bench.executor();
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, retry()), CommitResult::Committed);
    assert_eq!(executor.finish_everything(), [other], "only the lane of the retried job waits");
    bench.pass(Duration::from_secs(3600));
    let lease = executor.lease();
    assert_eq!((ids(&lease), lease.jobs[0].delivery), (jobs, 2));
    executor.finish(&lease);
}

pub fn a_delayed_head_holds_its_lane(make: Make) {
    let bench = Bench::new(make);
    let first = bench.submit(NewJob { delay: 5 * SECOND, ..bench.job("serial") });
    let second = bench.submit_to("serial");
    let mut executor = bench.executor();
    executor.claims_nothing();
    bench.pass(5 * SECOND - Duration::from_micros(1));
    executor.claims_nothing();
    bench.pass(Duration::from_micros(1));
    assert_eq!(executor.finish_everything(), [first, second]);
}

pub fn a_delayed_job_in_the_middle_cuts_the_run(make: Make) {
    let bench = Bench::new(make);
    let first = bench.submit_to("serial");
    let second = bench.submit(NewJob { delay: 5 * SECOND, ..bench.job("serial") });
    let third = bench.submit_to("serial");
    let mut executor = bench.executor();
    assert_eq!(executor.finish_everything(), [first]);
    bench.pass(5 * SECOND);
    assert_eq!(executor.finish_everything(), [second, third]);
}

pub fn an_unordered_job_is_delayed_until_its_time(make: Make) {
    let bench = Bench::new(make);
    let late = bench.submit(NewJob { delay: 2 * SECOND, ..bench.job("free") });
    let later = bench.submit(NewJob { delay: 3 * SECOND, ..bench.job("free") });
    let now = bench.submit_to("free");
    let mut executor = bench.executor();
    assert_eq!(executor.finish_everything(), [now]);
    bench.pass(2 * SECOND);
    assert_eq!(executor.finish_everything(), [late]);
    bench.pass(SECOND);
    assert_eq!(executor.finish_everything(), [later]);
}

pub fn ready_lanes_are_served_oldest_first(make: Make) {
    let bench = Bench::new(make);
    // The order of readiness, not of submission, of handlers, or of keys.
    let delayed = bench.submit(NewJob { delay: 5 * SECOND, ..bench.job("free") });
    bench.pass(SECOND);
    let z = bench.submit_keyed("z");
    bench.pass(SECOND);
    let serial = bench.submit_to("serial");
    bench.pass(SECOND);
    let free = bench.submit_to("free");
    bench.pass(SECOND);
    let a = bench.submit_keyed("a");
    // A second job does not make lane z younger.
    let z2 = bench.submit_keyed("z");
    bench.pass(2 * SECOND);
    let newest = bench.submit_to("free");
    let mut executor = bench.executor();
    let served: Vec<_> = (0..6).flat_map(|_| executor.lease_ids()).collect();
    assert_eq!(served, [z, z2, serial, free, a, delayed, newest]);
}

pub fn concurrency_is_kept_by_each_executor(make: Make) {
    let bench = Bench::new(make);
    bench.submit_many("narrow", 6);
    let free = bench.submit_to("free");
    let (mut a, mut b) = (bench.executor(), bench.executor());
    let held = a.leases(10);
    let handlers: Vec<&str> = held.iter().map(|lease| &*lease.handler).collect();
    assert_eq!(handlers, ["narrow", "narrow", "free"], "two at once, and others pass by");
    assert_eq!(ids(&held[2]), [free]);
    assert_eq!(b.leases(10).len(), 2, "the limit is one of each process");
    a.finish(&held[0]);
    assert_eq!(a.leases(10).len(), 1, "one ended, one follows");
}

pub fn a_group_gets_its_own_jobs_only(make: Make) {
    let bench = Bench::new(make);
    let (here, there) = (bench.submit_to("free"), bench.submit_to("elsewhere"));
    let (mut zero, mut one) = (bench.executor_of(0), bench.executor_of(1));
    assert_eq!(zero.finish_everything(), [here]);
    assert_eq!(one.finish_everything(), [there]);
}

pub fn no_more_leases_than_there_is_room(make: Make) {
    let bench = Bench::new(make);
    bench.submit_many("free", 10);
    let mut executor = bench.executor();
    assert!(executor.leases(0).is_empty());
    assert_eq!(executor.leases(3).len(), 3);
    assert_eq!(executor.leases(10).len(), 7);
}

pub fn a_bell_rings_when_a_step_would_bring_a_lease(make: Make) {
    let bench = Bench::new(make);
    let (mut executor, mut other) = (bench.executor(), bench.executor());
    executor.waits_with_room();
    bench.submit_to("free");
    assert!(executor.bell.answer(), "a submission");
    executor.finish_everything();

    bench.submit_to("serial");
    let held = other.lease();
    bench.submit_to("serial");
    executor.waits_with_room();
    other.finish(&held);
    assert!(executor.bell.answer(), "a lane that is free again");
    executor.finish_everything();

    bench.pause("serial", true);
    bench.submit_to("serial");
    executor.waits_with_room();
    bench.pause("serial", false);
    assert!(executor.bell.answer(), "a resumed handler");
    executor.finish_everything();

    bench.submit_to("serial");
    other.lease();
    executor.waits_with_room();
    other.die();
    assert!(executor.bell.answer(), "a lost executor's lane");
    assert_eq!(executor.finish_everything().len(), 1);
}

pub fn a_bell_rings_when_a_delay_is_over(make: Make) {
    let bench = Bench::new(make);
    let mut executor = bench.executor();
    let job = bench.submit(NewJob { delay: 5 * SECOND, ..bench.job("free") });
    executor.waits_with_room();
    bench.pass(5 * SECOND);
    assert!(executor.bell.answer(), "a step would bring a lease now");
    assert_eq!(executor.finish_everything(), [job]);

    let job = bench.submit_to("serial");
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, retry()), CommitResult::Committed);
    executor.waits_with_room();
    bench.pass(SECOND);
    assert!(executor.bell.answer(), "the same after a backoff");
    assert_eq!(executor.finish_everything(), [job]);
}
