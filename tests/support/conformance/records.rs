//! Laws of acceptance and of what is kept: idempotency, capacity, records, figures.

use std::sync::Arc;
use std::time::Duration;

use cofferdam::job::{Effects, InstanceId, JobId, JobStatus, Outcome, Payload, Trace, WaitingFor};
use cofferdam::ports::{Filter, Idempotency, NewJob, NotRetried, Refusal, Submitted, Viewer};

use super::{
    Bench, CommitResult, Make, crashed, entries, failed, follow_up, ids, retry, set, state, succeeded,
    succeeded_with, unset,
};

const COMMITTED: CommitResult = CommitResult::Committed;
const SECOND: Duration = Duration::from_secs(1);

fn with_key(job: NewJob, key: &str, payload: u8) -> NewJob {
    NewJob { idempotency: Some(Idempotency { key: Arc::from(key), fingerprint: [payload; 32] }), ..job }
}

fn existing(answer: Submitted) -> (JobId, JobStatus) {
    match answer {
        Submitted::Existing(record) => (record.spec.id, record.status),
        Submitted::New | Submitted::Refused(_) => panic!("{answer:?}"),
    }
}

pub fn an_idempotency_key_joins_its_job_in_every_status(make: Make) {
    let bench = Bench::new(make);
    let again = || existing(bench.try_submit(with_key(bench.job("serial"), "k", 1)));
    let job = bench.submit(with_key(bench.job("serial"), "k", 1));
    assert_eq!(again(), (job, JobStatus::Queued));
    let mut executor = bench.executor();
    let lease = executor.lease();
    assert_eq!(ids(&lease), [job], "one job");
    assert_eq!(again(), (job, JobStatus::Running));
    assert_eq!(executor.say(&lease, 0, failed()), COMMITTED);
    assert_eq!(again(), (job, JobStatus::Failed));
    assert!(bench.retry(job).is_ok());
    assert_eq!(again(), (job, JobStatus::Queued));
    assert_eq!(executor.finish_everything(), [job]);
    assert_eq!(again(), (job, JobStatus::Succeeded));
    executor.claims_nothing();
}

pub fn another_payload_under_an_idempotency_key_is_refused(make: Make) {
    let bench = Bench::new(make);
    let job = bench.submit(with_key(bench.job("free"), "k", 1));
    let other = with_key(bench.job("free"), "k", 2);
    assert_eq!(bench.try_submit(other.clone()), Submitted::Refused(Refusal::IdempotencyMismatch(Some(job))));
    assert_eq!(bench.find(other.id), None, "a refusal changes nothing");
    assert_eq!(bench.executor().finish_everything(), [job]);
    assert_eq!(bench.try_submit(other), Submitted::Refused(Refusal::IdempotencyMismatch(Some(job))));
}

pub fn an_idempotency_key_is_its_owners_and_its_handlers(make: Make) {
    let bench = Bench::new(make);
    let job = |owner: &str, handler| {
        with_key(NewJob { owner: Arc::from(owner), ..bench.job(handler) }, "k", handler.len() as u8)
    };
    let first = bench.submit(job("ann", "free"));
    bench.submit(job("bob", "free"));
    bench.submit(job("ann", "serial"));
    bench.submit(job("", "free"));
    assert_eq!(existing(bench.try_submit(job("ann", "free"))).0, first);
    assert_eq!(bench.executor().finish_everything().len(), 4);
}

pub fn an_idempotency_key_lives_for_its_own_time_and_while_its_job_does(make: Make) {
    let bench = Bench::new(make);
    let again = |key| bench.try_submit(with_key(bench.job("free"), key, 1));
    let job = bench.submit(with_key(bench.job("free"), "k", 1));
    bench.executor().finish_everything();
    assert_eq!(existing(again("k")), (job, JobStatus::Succeeded));
    // However soon its result goes: no second run.
    bench.pass(600 * SECOND);
    assert_eq!(bench.find(job), None);
    assert_eq!(again("k"), Submitted::Refused(Refusal::ResultGone(job)));
    let other = with_key(bench.job("free"), "k", 2);
    assert_eq!(bench.try_submit(other), Submitted::Refused(Refusal::IdempotencyMismatch(Some(job))));
    bench.pass(1200 * SECOND - Duration::from_micros(1));
    assert_eq!(again("k"), Submitted::Refused(Refusal::ResultGone(job)));
    bench.pass(SECOND);
    assert_eq!(again("k"), Submitted::New);
    // While its job has not ended it lives however long that takes.
    bench.executor().finish_everything();
    let slow = bench.submit(with_key(bench.job("free"), "slow", 1));
    bench.pass(4000 * SECOND);
    assert_eq!(existing(again("slow")), (slow, JobStatus::Queued));
}

pub fn failures_outlive_successes_with_their_payload(make: Make) {
    let bench = Bench::new(make);
    let mut executor = bench.executor();
    let original = NewJob { awaited: true, ..bench.job("free") };
    let failing = bench.submit(original.clone());
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, failed()), COMMITTED);
    bench.submit_many("free", 20);
    executor.finish_everything();
    bench.pass(1200 * SECOND - Duration::from_micros(1));
    assert_eq!(bench.status(failing), JobStatus::Failed, "whoever waited for it");
    assert!(bench.retry(failing).is_ok());
    let lease = executor.lease();
    assert_eq!((ids(&lease), &lease.jobs[0].payload), (vec![failing], &original.payload));
    assert_eq!(executor.say(&lease, 0, failed()), COMMITTED);
    bench.pass(1200 * SECOND);
    assert_eq!(bench.find(failing), None);
}

pub fn follow_ups_find_room_up_to_twice_the_capacity_and_the_first_always(make: Make) {
    let bench = Bench::with(make, |settings| settings.capacity = 10);
    let following = |count| {
        let follow_ups = vec![follow_up("free"); count];
        succeeded_with(Effects { follow_ups, ..Effects::default() })
    };
    let parent = bench.submit_to("serial2");
    let mut executor = bench.executor();
    let lease = executor.lease();
    bench.submit_many("free", 10);
    // More than there is room for: nothing of the outcome took hold, and it was nobody's fault.
    assert_eq!(executor.say(&lease, 0, following(11)), COMMITTED);
    assert_eq!((bench.status(parent), bench.record(parent).deliveries), (JobStatus::Queued, 0));
    assert!(matches!(bench.record(parent).waiting_for, Some(WaitingFor::Backoff(_))));
    bench.pass(SECOND);
    bench.pause("free", true);
    let lease = executor.lease();
    assert_eq!((ids(&lease), lease.jobs[0].delivery), (vec![parent], 2));
    assert_eq!(executor.say(&lease, 0, following(10)), COMMITTED);
    assert_eq!(bench.status(parent), JobStatus::Succeeded);
    bench.pause("free", false);
    let mut chain = bench.executor();
    let lease = chain.lease();
    assert_eq!(chain.say(&lease, 0, following(1)), COMMITTED, "a chain goes on");
    assert_eq!(bench.status(ids(&lease)[0]), JobStatus::Succeeded);
    let lease = chain.lease();
    assert_eq!(chain.say(&lease, 0, following(2)), COMMITTED);
    assert_eq!(bench.status(ids(&lease)[0]), JobStatus::Queued, "but does not fork");
}

pub fn follow_ups_take_no_callers_place_and_give_their_own_back(make: Make) {
    let bench = Bench::with(make, |settings| settings.capacity = 4);
    let follow_ups = vec![follow_up("free"); 4];
    let parent = bench.submit_to("serial2");
    let mut executor = bench.executor();
    let lease = executor.lease();
    bench.pause("free", true);
    let four = || succeeded_with(Effects { follow_ups: follow_ups.clone(), ..Effects::default() });
    assert_eq!(executor.say(&lease, 0, four()), COMMITTED);
    let full = || bench.try_submit(bench.job("free")) == Submitted::Refused(Refusal::QueueFull);
    let callers = bench.submit_many("serial", 4);
    assert!(full(), "callers have the whole capacity, and no more");
    // Those of a second outcome find room once the first ones have ended, not sooner.
    bench.cancel(callers[3]);
    let second = bench.submit_to("serial2");
    let lease = executor.leases(2).into_iter().find(|lease| ids(lease) == [second]).expect("it is leased");
    assert_eq!(executor.say(&lease, 0, four()), COMMITTED);
    assert_eq!((bench.status(parent), bench.status(second)), (JobStatus::Succeeded, JobStatus::Queued));
    bench.pause("free", false);
    executor.finish_everything();
    bench.pass(SECOND);
    executor.finish_everything();
    let third = bench.submit_to("serial2");
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, four()), COMMITTED);
    assert_eq!(bench.status(third), JobStatus::Succeeded);
}

pub fn an_owner_leaves_others_their_share_of_the_queue(make: Make) {
    let bench = Bench::with(make, |settings| settings.capacity = 16);
    let full = Submitted::Refused(Refusal::QueueFull);
    let of = |owner: &str| NewJob { owner: Arc::from(owner), ..bench.job("free") };
    let fill = |owner| (0..20).filter(|_| bench.try_submit(of(owner)) == Submitted::New).count();
    // Alone it has all but a quarter, which is there for whoever comes.
    assert_eq!(fill("ann"), 12);
    assert_eq!(fill("bob"), 4);
    bench.executor().finish_everything();
    // Next to others it has a quarter, as have they.
    let bobs = bench.submit(of("bob"));
    let anns: Vec<JobId> = (0..4).map(|_| bench.submit(of("ann"))).collect();
    assert_eq!(bench.try_submit(of("ann")), full);
    let refused = bench.backend.producer().submit(vec![of("ann"), of("bob"), of("ann")]).unwrap();
    assert_eq!(refused, [full.clone(), Submitted::New, full.clone()]);
    // What has ended is counted no longer, and what begins a new life is.
    bench.cancel(anns[0]);
    bench.cancel(anns[1]);
    assert!(bench.retry(anns[0]).is_ok());
    assert_eq!(fill("ann"), 1);
    assert_eq!(fill("bob"), 2);
    assert_eq!(fill("cy"), 4);
    bench.cancel(bobs);
    bench.executor().finish_everything();
    // Without authentication nobody has a share: there is one user.
    assert_eq!(fill(""), 16);
    bench.executor().finish_everything();
    assert_eq!(fill("ann"), 12, "nothing is left of what has ended");
    // A new life needs room as a new job does, and takes it.
    let dead: Vec<JobId> = bench
        .backend
        .producer()
        .list(
            &Viewer { name: Arc::from("ann"), ..Viewer::default() },
            &Filter { statuses: vec![JobStatus::Queued], limit: 12, ..Filter::default() },
        )
        .unwrap()
        .records
        .iter()
        .map(|record| record.spec.id)
        .collect();
    dead.iter().for_each(|job| drop(bench.cancel(*job)));
    bench.submit(of("bob"));
    let retried: Vec<bool> = dead.iter().map(|job| bench.retry(*job).is_ok()).collect();
    assert_eq!(retried.iter().filter(|retried| **retried).count(), 4);
    assert_eq!(bench.retry(dead[11]), Err(NotRetried::QueueFull));
    assert_eq!(bench.status(dead[11]), JobStatus::Cancelled);
    // What runs counts as what waits does.
    let mut executor = bench.executor();
    let _leases = executor.leases(5);
    assert_eq!(bench.try_submit(of("ann")), full);
}

pub fn a_small_queue_has_a_place_for_each_owner(make: Make) {
    let bench = Bench::with(make, |settings| settings.capacity = 3);
    let of = |owner: &str| NewJob { owner: Arc::from(owner), ..bench.job("free") };
    bench.submit(NewJob { delay: 1000 * SECOND, ..of("ann") });
    bench.submit(of("bob"));
    assert_eq!(bench.try_submit(of("ann")), Submitted::Refused(Refusal::QueueFull));
    bench.submit(of("cy"));
    assert_eq!(bench.executor().finish_everything().len(), 2);
    bench.cancel(bench.submit(of("cy")));
}

pub fn a_result_that_must_be_one_line_is_one(make: Make) {
    let bench = Bench::new(make);
    let job = bench.submit(NewJob { one_line: true, ..bench.job("free") });
    let mut executor = bench.executor();
    let lease = executor.lease();
    let lines = Outcome::Succeeded(Payload::json(*b"1\n\"forged\""), Effects::default());
    assert_eq!(executor.say(&lease, 0, lines), COMMITTED);
    assert_eq!(bench.error(job).code, cofferdam::problem::Code::HandlerFailed);
}

pub fn the_age_of_what_waits_is_seen_behind_a_head_that_is_delayed_or_parked(make: Make) {
    let bench = Bench::new(make);
    let oldest = |handler: &str| {
        let stats = bench.backend.producer().stats().unwrap();
        stats.handlers.iter().find(|figures| *figures.handler == *handler).unwrap().oldest
    };
    bench.submit(NewJob { delay: 1000 * SECOND, ..bench.job("serial") });
    bench.submit_to("serial");
    bench.pass(10 * SECOND);
    assert_eq!(oldest("serial"), 10 * SECOND, "its own delay does not count, that of the head does");
    let dead = bench.submit_to("parking");
    let mut executor = bench.executor();
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, crashed()), COMMITTED);
    assert_eq!(bench.status(dead), JobStatus::Dead);
    bench.submit_to("parking");
    bench.pass(5 * SECOND);
    assert_eq!(oldest("parking"), 5 * SECOND);
    assert_eq!(oldest("free"), Duration::ZERO);
}

pub fn a_submission_that_is_repeated_is_one_job(make: Make) {
    let bench = Bench::new(make);
    let job = bench.job("serial");
    for _ in 0..3 {
        assert_eq!(bench.try_submit(job.clone()), Submitted::New);
    }
    assert_eq!(bench.executor().finish_everything(), [job.id]);
    assert_eq!(bench.try_submit(job.clone()), Submitted::New, "the answer that was lost");
    assert_eq!(bench.status(job.id), JobStatus::Succeeded);
    bench.executor().claims_nothing();
}

pub fn an_unknown_handler_is_refused(make: Make) {
    let bench = Bench::new(make);
    let job = bench.job("unheard of");
    assert_eq!(bench.try_submit(job.clone()), Submitted::Refused(Refusal::UnknownHandler));
    assert_eq!(bench.find(job.id), None);
}

pub fn a_full_queue_refuses_but_not_follow_ups_and_redeliveries(make: Make) {
    let bench = Bench::with(make, |settings| settings.capacity = 4);
    let full = || bench.try_submit(bench.job("free")) == Submitted::Refused(Refusal::QueueFull);
    bench.submit_many("serial", 3);
    bench.submit(NewJob { delay: SECOND, ..bench.job("free") });
    assert!(full(), "delayed jobs count");
    let key = with_key(bench.job("free"), "k", 1);
    let mut executor = bench.executor();
    let lease = executor.lease();
    assert_eq!(lease.jobs.len(), 3);
    bench.submit(key.clone());
    assert!(full(), "jobs of a lease that have not started count");
    assert_eq!(
        existing(bench.try_submit(with_key(bench.job("free"), "k", 1))).0,
        key.id,
        "to join is no job"
    );
    let follow_ups = vec![follow_up("free"); 4];
    let effects = Effects { follow_ups, ..Effects::default() };
    assert_eq!(executor.say(&lease, 0, succeeded_with(effects)), COMMITTED);
    assert_eq!(executor.say(&lease, 1, retry()), COMMITTED);
    assert!(full());
    bench.pass(SECOND);
    // 4 follow-ups, 1 redelivery and its neighbour, the delayed one, the one with the key.
    assert_eq!(executor.finish_everything().len(), 8);
    assert!(!full());
    let jobs = bench.submit_many("serial", 3);
    assert!(full());
    bench.cancel(jobs[2]);
    assert!(!full(), "a cancelled job leaves room");
    assert!(full());
    assert_eq!(executor.leases(2).len(), 2);
    assert!(!full(), "a started one too");
}

pub fn jobs_of_one_call_are_accepted_or_refused_each(make: Make) {
    let bench = Bench::with(make, |settings| settings.capacity = 2);
    let jobs = ["free", "unheard of", "serial", "free"].map(|handler| bench.job(handler));
    let answers = bench.backend.producer().submit(jobs.to_vec()).unwrap();
    let refused = Submitted::Refused;
    let expected =
        [Submitted::New, refused(Refusal::UnknownHandler), Submitted::New, refused(Refusal::QueueFull)];
    assert_eq!(answers, expected);
    assert_eq!(bench.executor().finish_everything(), [jobs[0].id, jobs[2].id]);
}

pub fn an_awaited_record_goes_earlier_unless_it_has_a_key(make: Make) {
    let bench = Bench::new(make);
    let awaited = |job| bench.submit(NewJob { awaited: true, ..job });
    let plain = bench.submit_to("free");
    let waited = awaited(bench.job("free"));
    let keyed = awaited(with_key(bench.job("free"), "k", 1));
    let cancelled = awaited(bench.job("free"));
    let retried = awaited(bench.job("free"));
    bench.pass(1000 * SECOND);
    bench.cancel(cancelled);
    bench.cancel(retried);
    assert!(bench.retry(retried).is_ok());
    bench.executor().finish_everything();
    let kept = || [plain, waited, keyed, cancelled, retried].map(|id| bench.find(id).is_some());
    bench.pass(30 * SECOND - Duration::from_micros(1));
    assert_eq!(kept(), [true; 5], "counted from the end");
    bench.pass(Duration::from_micros(1));
    assert_eq!(kept(), [true, false, true, true, true], "who retries does not wait any more");
    bench.pass(570 * SECOND - Duration::from_micros(1));
    assert_eq!(kept(), [true, false, true, true, true]);
    bench.pass(Duration::from_micros(1));
    assert_eq!(
        kept(),
        [false, false, false, true, false],
        "what did not succeed is kept for a time of its own"
    );
    bench.pass(600 * SECOND);
    assert_eq!(kept(), [false; 5]);
}

pub fn nothing_is_kept_for_ever(make: Make) {
    let sizes = |jobs: usize| {
        let bench = Bench::new(make);
        let mut inbox =
            bench.backend.replies().subscribe(InstanceId(1), cofferdam::bell::Bell::silent()).unwrap();
        let mut executor = bench.executor();
        for number in 0..jobs {
            let key = Some(Arc::from(format!("key {number}")));
            let awaited = number % 3 == 0;
            match number % 5 {
                0 => drop(bench.submit(with_key(bench.job("free"), &number.to_string(), 1))),
                1 => drop(bench.submit(NewJob { ordering_key: key, awaited, ..bench.job("keyed") })),
                2 => drop(bench.submit(NewJob { awaited, ..bench.job("serial") })),
                3 => drop(bench.cancel(bench.submit(NewJob { ordering_key: key, ..bench.job("keyed") }))),
                _ => drop(bench.submit_to("parking")),
            }
            if number % 10 < 9 {
                continue;
            }
            for lease in executor.leases(20) {
                for (index, job) in lease.jobs.iter().enumerate() {
                    let context = vec![set("k", "v")];
                    let effects = Effects { context, ..Effects::default() };
                    let outcome = match &*job.spec.handler {
                        "parking" => crashed(),
                        "free" => succeeded_with(effects),
                        _ => succeeded(),
                    };
                    assert_eq!(executor.say(&lease, index, outcome), COMMITTED);
                    if &*job.spec.handler == "parking" {
                        bench.cancel(job.spec.id);
                    }
                }
            }
            executor.finish_everything();
            inbox.take(100);
        }
        bench.pass(4000 * SECOND);
        executor.claims_nothing();
        bench.backend.sizes()
    };
    let few = sizes(10);
    assert_eq!(few, sizes(10_000));
    assert_eq!(few.iter().sum::<usize>(), 0, "and that is nothing: {few:?}");
}

pub fn a_lane_whose_state_was_removed_is_not_kept(make: Make) {
    let bench = Bench::new(make);
    let mut executor = bench.executor();
    let empty = bench.backend.sizes();
    for key in ["a", "b", "c"] {
        bench.submit_keyed(key);
        let lease = executor.lease();
        assert_eq!(executor.say(&lease, 0, state(vec![set("k", "v")])), COMMITTED);
        bench.submit_keyed(key);
        let lease = executor.lease();
        assert_eq!(executor.say(&lease, 0, state(vec![unset("k")])), COMMITTED);
        // Whatever the lane's version is now, its next job must find it and an empty state.
        bench.submit_keyed(key);
        let lease = executor.lease();
        assert_eq!(executor.say(&lease, 0, state(vec![set("l", "v")])), COMMITTED);
        bench.submit_keyed(key);
        let mut other = bench.executor();
        let lease = other.lease();
        let cofferdam::ports::StateAt::Whole(_, map) = &lease.state else { panic!("{:?}", lease.state) };
        assert_eq!(*map, entries([("l", "v")]));
        assert_eq!(other.say(&lease, 0, state(vec![unset("l")])), COMMITTED);
    }
    bench.pass(1000 * SECOND);
    assert_eq!(bench.backend.sizes(), empty);
}

pub fn others_jobs_are_not_there(make: Make) {
    let bench = Bench::new(make);
    let viewer = |name: &str, admin| Viewer { name: Arc::from(name), admin, ..Viewer::default() };
    let producer = bench.backend.producer();
    let filter = Filter { limit: 10, ..Filter::default() };
    let job = bench.submit(NewJob { owner: Arc::from("ann"), ..bench.job("free") });
    for (viewer, sees) in [
        (viewer("ann", false), true),
        (viewer("bob", false), false),
        (viewer("", false), false),
        (viewer("an", false), false),
        (viewer("bob", true), true),
        (Viewer::anonymous(), true),
    ] {
        assert_eq!(producer.record(&viewer, job).unwrap().is_some(), sees, "{viewer:?}");
        assert_eq!(producer.list(&viewer, &filter).unwrap().records.len(), usize::from(sees), "{viewer:?}");
        assert_eq!(producer.payload(&viewer, job).unwrap().is_some(), sees, "{viewer:?}");
        assert_eq!(producer.retry(&viewer, job).unwrap().is_some(), sees, "{viewer:?}");
        if !sees {
            assert_eq!(producer.cancel(&viewer, job).unwrap(), None, "{viewer:?}");
            assert_eq!(bench.status(job), JobStatus::Queued, "{viewer:?}");
        }
    }
    assert!(producer.cancel(&viewer("ann", false), job).unwrap().is_some());
}

pub fn a_list_is_newest_first_filtered_and_limited(make: Make) {
    let bench = Bench::new(make);
    let submit = |handler| {
        bench.pass(SECOND);
        bench.submit_to(handler)
    };
    let (a, b, c) = (submit("free"), submit("serial"), submit("free"));
    bench.executor().finish_everything();
    let d = submit("free");
    let list = |status, handler: Option<&str>, limit| -> Vec<JobId> {
        let handler = handler.map(str::to_owned);
        let statuses = Option::into_iter(status).collect();
        let filter = Filter { statuses, handler, limit, ..Filter::default() };
        let records = bench.backend.producer().list(&Viewer::anonymous(), &filter).unwrap().records;
        records.iter().for_each(|record| assert_eq!(*record, bench.record(record.spec.id)));
        records.iter().map(|record| record.spec.id).collect()
    };
    assert_eq!(list(None, None, 10), [d, c, b, a]);
    assert_eq!(list(None, None, 2), [d, c]);
    assert_eq!(list(None, None, 0), []);
    assert_eq!(list(Some(JobStatus::Succeeded), None, 10), [c, b, a]);
    assert_eq!(list(Some(JobStatus::Succeeded), Some("free"), 10), [c, a]);
    assert_eq!(list(Some(JobStatus::Dead), None, 10), []);
    assert_eq!(list(None, Some("unheard of"), 10), []);
}

pub fn a_list_is_of_a_key_a_trace_and_a_time(make: Make) {
    let bench = Bench::new(make);
    let trace = |number: u8| Trace { id: [number; 16], span: [7; 8], ..Trace::default() };
    let mut times = Vec::new();
    let mut submit = |key: &str, number| {
        bench.pass(SECOND);
        let new = bench.job(if key.is_empty() { "free" } else { "keyed" });
        let ordering_key = Some(Arc::from(key)).filter(|_| !key.is_empty());
        let id = bench.submit(NewJob { ordering_key, trace: trace(number), ..new });
        times.push(bench.record(id).spec.submitted_at);
        id
    };
    let jobs = [submit("a", 1), submit("b", 2), submit("", 1), submit("a", 3)];
    let list = |filter: Filter| -> Vec<JobId> {
        let filter = Filter { limit: 10, ..filter };
        let listed = bench.backend.producer().list(&Viewer::anonymous(), &filter).unwrap();
        listed.records.iter().map(|record| record.spec.id).collect()
    };
    let all = Filter::default;
    let of_key = |key: &str| Filter { key: Some(key.into()), ..all() };
    assert_eq!(list(of_key("a")), [jobs[3], jobs[0]]);
    assert_eq!(list(of_key("b")), [jobs[1]]);
    assert_eq!(list(of_key("")), []);
    assert_eq!(list(Filter { trace: Some([1; 16]), ..all() }), [jobs[2], jobs[0]]);
    assert_eq!(list(Filter { trace: Some([1; 16]), ..of_key("a") }), [jobs[0]]);
    assert_eq!(list(Filter { before: Some(times[2]), ..all() }), [jobs[1], jobs[0]]);
    assert_eq!(list(Filter { before: Some(times[0]), ..all() }), []);
    bench.cancel(jobs[0]);
    bench.cancel(jobs[1]);
    let statuses = vec![JobStatus::Cancelled, JobStatus::Queued];
    assert_eq!(list(Filter { statuses, before: Some(times[3]), ..all() }), [jobs[2], jobs[1], jobs[0]]);
}

pub fn a_list_finds_what_lies_far_back(make: Make) {
    let bench = Bench::with(make, |settings| settings.capacity = 6_000);
    let old = [bench.submit_keyed("a"), bench.submit_keyed("a")];
    // More than one look of a list goes through.
    bench.submit_many("free", 5_000);
    let new = bench.submit_keyed("a");
    let list = |limit, after| {
        let filter = Filter { key: Some("a".into()), limit, after, ..Filter::default() };
        let listed = bench.backend.producer().list(&Viewer::anonymous(), &filter).unwrap();
        (listed.records.iter().map(|record| record.spec.id).collect::<Vec<_>>(), listed.next)
    };
    assert_eq!(list(10, None), (vec![new, old[1], old[0]], None));
    let (first, next) = list(2, None);
    assert_eq!(first, [new, old[1]]);
    assert_eq!(list(2, next), (vec![old[0]], None));
}

pub fn lanes_say_who_waits_and_why(make: Make) {
    let bench = Bench::new(make);
    let lanes = |viewer: &Viewer, handler: &str, most| -> Vec<(JobId, JobStatus, usize)> {
        let lanes = bench.backend.producer().lanes(viewer, handler, most).unwrap().expect("a handler");
        lanes.iter().map(|lane| (lane.head.spec.id, lane.head.status, lane.jobs)).collect()
    };
    let all = Viewer::anonymous();
    assert_eq!(bench.backend.producer().lanes(&all, "unheard of", 9), Ok(None));
    assert_eq!(lanes(&all, "keyed", 9), []);
    let submit = |key| {
        bench.pass(SECOND);
        bench.submit_keyed(key)
    };
    let (a, b, _, c) = (submit("a"), submit("b"), submit("b"), submit("c"));
    use JobStatus::{Queued, Running};
    assert_eq!(lanes(&all, "keyed", 9), [(a, Queued, 1), (b, Queued, 2), (c, Queued, 1)]);
    assert_eq!(lanes(&all, "keyed", 2), [(a, Queued, 1), (b, Queued, 2)]);
    assert_eq!(lanes(&Viewer { name: "ann".into(), ..Viewer::default() }, "keyed", 9), []);
    // What runs waits for nothing; who is behind it does.
    let mut executor = bench.executor();
    let first = executor.lease();
    assert_eq!(ids(&first), [a]);
    let second = executor.lease();
    assert_eq!(lanes(&all, "keyed", 9), [(b, Running, 2), (c, Queued, 1)]);
    executor.finish(&first);
    executor.finish(&second);
    executor.finish_everything();
    assert_eq!(lanes(&all, "keyed", 9), []);
}

pub fn pages_of_a_list_follow_one_another_whatever_comes_and_goes_between_them(make: Make) {
    let bench = Bench::new(make);
    for _ in 0..4 {
        bench.pass(SECOND);
        // Some come at the same time.
        bench.submit_many("free", 2);
        bench.submit_to("serial");
    }
    let list = |after, limit| {
        let filter = Filter { handler: Some("free".into()), limit, after, ..Filter::default() };
        let listed = bench.backend.producer().list(&Viewer::anonymous(), &filter).unwrap();
        let jobs: Vec<JobId> = listed.records.iter().map(|record| record.spec.id).collect();
        (jobs, listed.next)
    };
    let (all, next) = list(None, 100);
    assert_eq!((all.len(), next), (8, None), "there are no more");
    let (first, next) = list(None, 3);
    assert_eq!(first, all[..3]);
    // The record that the next page follows goes meanwhile, and others come.
    bench.cancel(first[2]);
    bench.pass(1200 * SECOND);
    assert_eq!(bench.find(first[2]), None);
    bench.submit_to("free");
    let (second, next) = list(next, 3);
    assert_eq!(second, all[3..6]);
    let (third, next) = list(next, 2);
    assert_eq!(third, all[6..]);
    assert_eq!(list(next, 2), (Vec::new(), None));
}

pub fn a_payload_is_there_until_its_job_has_succeeded(make: Make) {
    let bench = Bench::new(make);
    let payload = |job| bench.backend.producer().payload(&Viewer::anonymous(), job).unwrap();
    let new = bench.job("free");
    let job = bench.submit(new.clone());
    assert_eq!(payload(job), Some(Some(new.payload.clone())));
    let mut executor = bench.executor();
    let lease = executor.lease();
    assert_eq!(payload(job), Some(Some(new.payload.clone())));
    assert_eq!(executor.say(&lease, 0, failed()), COMMITTED);
    assert_eq!(payload(job), Some(Some(new.payload)));
    assert!(bench.retry(job).is_ok());
    assert_eq!(executor.finish_everything(), [job]);
    assert_eq!(payload(job), Some(None));
    assert_eq!(payload(JobId([7; 16])), None);
}

pub fn a_record_says_what_its_job_waits_for(make: Make) {
    let bench = Bench::new(make);
    let waits = |id| bench.record(id).waiting_for;
    let head = bench.submit_to("serial");
    let next = bench.submit_to("serial");
    assert_eq!(waits(head), Some(WaitingFor::Executor));
    assert_eq!(waits(next), Some(WaitingFor::Lane(head)));
    let mut executor = bench.executor();
    assert_eq!(waits(head), Some(WaitingFor::Workers));
    let delayed = bench.submit(NewJob { delay: SECOND, ..bench.job("free") });
    let until = bench.now().plus(SECOND);
    assert_eq!(waits(delayed), Some(WaitingFor::Delay(until)));
    let lease = executor.lease();
    assert_eq!((waits(head), waits(next)), (None, Some(WaitingFor::Lane(head))));
    bench.pause("serial2", true);
    assert_eq!(waits(bench.submit_to("serial2")), Some(WaitingFor::Paused));
    executor.finish(&lease);
    assert_eq!(waits(head), None);
    let bench = Bench::with(make, |settings| settings.retry_base = SECOND * 1000);
    let jobs = bench.submit_many("free", 4);
    let mut executor = bench.executor();
    for lease in executor.leases(4) {
        assert_eq!(executor.say(&lease, 0, retry()), COMMITTED);
    }
    let backoffs = jobs.iter().filter(|id| {
        let waiting = bench.record(**id).waiting_for;
        matches!(waiting, Some(WaitingFor::Backoff(until)) if until <= bench.now().plus(SECOND * 2))
    });
    assert!(backoffs.count() > 0);
}

pub fn a_record_carries_the_job_as_submitted_and_its_times(make: Make) {
    let bench = Bench::new(make);
    let new = NewJob {
        owner: Arc::from("ann"),
        ordering_key: Some(Arc::from("key")),
        timeout: Some(SECOND * 3),
        one_line: true,
        ..bench.job("keyed")
    };
    let submitted_at = bench.now();
    let job = bench.submit(new.clone());
    let mut executor = bench.executor();
    bench.pass(SECOND);
    let lease = executor.lease();
    let (leased, started_at) = (&lease.jobs[0], bench.now());
    bench.pass(SECOND);
    executor.finish(&lease);
    let record = bench.record(job);
    assert_eq!((record.started_at, record.finished_at), (Some(started_at), Some(bench.now())));
    assert_eq!((&leased.spec, &leased.payload), (&record.spec, &new.payload));
    let spec = &record.spec;
    assert_eq!((spec.id, &spec.owner, &spec.handler), (new.id, &new.owner, &new.handler));
    assert_eq!((&spec.ordering_key, spec.trace, spec.one_line), (&new.ordering_key, new.trace, true));
    assert_eq!((spec.timeout, spec.submitted_at), (SECOND * 3, submitted_at));
    let plain = bench.record(bench.submit_to("free"));
    assert_eq!(plain.spec.timeout, SECOND * 30, "the handler's own");
}

pub fn figures_agree_with_what_happened(make: Make) {
    let bench = Bench::new(make);
    bench.submit_many("serial", 6);
    bench.submit(NewJob { delay: SECOND, ..bench.job("free") });
    bench.pause("free", true);
    let mut executor = bench.executor();
    let lease = executor.lease();
    for (index, outcome) in [succeeded(), failed(), succeeded(), retry()].into_iter().enumerate() {
        assert_eq!(executor.say(&lease, index, outcome), COMMITTED);
    }
    bench.pass(2 * SECOND);
    let lease = executor.lease();
    assert_eq!(lease.jobs.len(), 3);
    let stats = bench.backend.producer().stats().unwrap();
    let of = |name: &str| stats.handlers.iter().find(|handler| *handler.handler == *name).unwrap();
    let (serial, free) = (of("serial"), of("free"));
    assert_eq!((serial.submitted, serial.queued, serial.running, serial.lanes), (6, 2, 1, 1));
    assert_eq!(serial.finished, [0, 0, 2, 1, 0, 0, 0]);
    assert_eq!((free.submitted, free.queued, free.running, free.paused), (1, 1, 0, true));
    assert_eq!((stats.records, stats.leases, stats.redelivered, stats.dead), (7, 1, 1, 0));
    assert_eq!(stats.consumers, [1, 0]);
    assert_eq!(serial.job_seconds.buckets.iter().sum::<u64>(), 3);
    assert_eq!(serial.queue_wait_seconds.buckets.iter().sum::<u64>(), 4);
    assert_eq!((&*serial.group, stats.handlers.len()), ("group0", 8));
    executor.die();
    let stats = bench.backend.producer().stats().unwrap();
    assert_eq!((stats.consumers, stats.leases), (vec![0, 0], 0));
}
