//! Laws of what is kept in memory: within a number and a size.

use cofferdam::job::{Effects, JobStatus, Outcome, Payload};
use cofferdam::ports::NewJob;

use super::{Bench, CommitResult, Make, crashed, failed, set, state, succeeded_with};

const COMMITTED: CommitResult = CommitResult::Committed;

pub fn all_states_and_contexts_together_are_bounded(make: Make) {
    let bench = Bench::with(make, |settings| settings.states_max = 100_000);
    let mut executor = bench.executor();
    let large = "x".repeat(30_000);
    let mut ends = Vec::new();
    for key in ["a", "b", "c", "d", "e"] {
        let job = bench.submit_keyed(key);
        let lease = executor.lease();
        assert_eq!(executor.say(&lease, 0, state(vec![set("k", &large)])), COMMITTED);
        ends.push(bench.status(job));
    }
    use JobStatus::{Failed, Succeeded};
    assert_eq!(ends, [Succeeded, Succeeded, Succeeded, Failed, Failed]);
    // What is there can change and shrink, and makes room.
    let mut change = |key, outcome| {
        let job = bench.submit_keyed(key);
        let lease = executor.lease();
        assert_eq!(executor.say(&lease, 0, outcome), COMMITTED);
        bench.status(job)
    };
    assert_eq!(change("a", state(vec![set("k", "small")])), Succeeded);
    assert_eq!(change("d", state(vec![set("k", &large)])), Succeeded);
    let context = vec![set("k", &large)];
    assert_eq!(change("e", succeeded_with(Effects { context, ..Effects::default() })), Failed);
}

pub fn records_beyond_the_number_kept_go_oldest_first(make: Make) {
    let bench = Bench::with(make, |settings| settings.retain_records = 3);
    let jobs = bench.submit_many("serial", 5);
    let waiting = bench.submit_many("serial2", 2);
    bench.pause("serial2", true);
    bench.executor().finish_everything();
    let kept: Vec<bool> = jobs.iter().map(|id| bench.find(*id).is_some()).collect();
    assert_eq!(kept, [false, false, true, true, true]);
    // Two times to live make one order, that of the ends; and a job that has not ended is never dropped.
    bench.submit(NewJob { awaited: true, ..bench.job("free") });
    bench.executor().finish_everything();
    assert!(bench.find(jobs[2]).is_none() && bench.find(jobs[3]).is_some());
    assert!(waiting.iter().all(|id| bench.status(*id) == JobStatus::Queued));
}

pub fn records_beyond_the_bytes_kept_go_oldest_first(make: Make) {
    let bench = Bench::with(make, |settings| settings.retain_bytes = 100_000);
    let mut executor = bench.executor();
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(bench.submit_to("free"));
        let lease = executor.lease();
        let result = Outcome::Succeeded(Payload::octets(vec![b'x'; 30_000]), Effects::default());
        assert_eq!(executor.say(&lease, 0, result), COMMITTED);
    }
    let kept: Vec<bool> = jobs.iter().map(|id| bench.find(*id).is_some()).collect();
    assert_eq!(kept, [false, true, true, true]);
}

pub fn a_record_larger_than_all_that_is_kept_is_answered_and_goes_with_the_next_end(make: Make) {
    let bench = Bench::with(make, |settings| settings.retain_bytes = 10_000);
    let large =
        |handler| bench.submit(NewJob { payload: Payload::octets(vec![b'x'; 20_000]), ..bench.job(handler) });
    let cancelled = large("serial");
    assert_eq!(bench.cancel(cancelled).status, JobStatus::Cancelled, "who cancels it still sees it");
    let failing = large("free");
    let mut executor = bench.executor();
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, failed()), COMMITTED);
    let parked = large("parking");
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, crashed()), COMMITTED);
    assert_eq!(bench.status(parked), JobStatus::Dead, "parked until someone acts");
    executor.die();
    assert_eq!(bench.cancel(parked).status, JobStatus::Dead);
    bench.submit_to("free");
    let mut executor = bench.executor();
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, failed()), COMMITTED);
    assert!([cancelled, failing, parked].iter().all(|id| bench.find(*id).is_none()));
}
