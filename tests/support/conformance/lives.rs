//! Laws of steering: cancel, pause, retry; and of doorbells.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cofferdam::bell::Bell;
use cofferdam::job::{AttemptOutcome, InstanceId, JobId, JobRecord, JobStatus, Outcome, Payload, Trace};
use cofferdam::limits::PAST_ATTEMPTS;
use cofferdam::ports::{Inbox, NewJob, NotRetried, OfLease, StateAt};
use cofferdam::problem::{Cause, Code, JobError};

use super::{
    Bench, CommitResult, Make, crashed, entries, failed, ids, retry, set, state, succeeded, version_of,
};

const COMMITTED: CommitResult = CommitResult::Committed;
const FENCED: CommitResult = CommitResult::Fenced;

pub fn a_queued_job_is_cancelled_and_never_delivered(make: Make) {
    let bench = Bench::new(make);
    for handler in ["free", "serial"] {
        let jobs = bench.submit_many(handler, 3);
        let record = bench.cancel(jobs[1]);
        assert_eq!((record.status, record.finished_at), (JobStatus::Cancelled, Some(bench.now())));
        assert_eq!(bench.error(jobs[1]).code, Code::Cancelled);
        assert_eq!(bench.executor().finish_everything(), [jobs[0], jobs[2]]);
        assert_eq!(bench.record(jobs[1]).deliveries, 0);
    }
}

pub fn a_cancelled_running_job_frees_its_lane_at_once(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 3);
    let (mut a, mut b) = (bench.executor(), bench.executor());
    let lease = a.lease();
    assert_eq!(bench.cancel(jobs[0]).status, JobStatus::Cancelled);
    assert_eq!(a.revoked(), [OfLease { lease: lease.id, job: jobs[0] }]);
    let next = b.lease();
    assert_eq!((ids(&next), next.jobs[0].delivery), (jobs[1..].to_vec(), 2), "the rest may have begun");
    assert_eq!(bench.record(jobs[1]).deliveries, 1, "and is uncounted");
    assert!(matches!(next.state, StateAt::Whole(..)));
    assert_eq!(a.say(&lease, 0, succeeded()), FENCED);
    assert_eq!(a.say(&lease, 1, succeeded()), FENCED);
    b.finish(&next);
    assert_eq!(bench.status(jobs[0]), JobStatus::Cancelled);
}

pub fn a_cancelled_later_job_leaves_its_run(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 4);
    let mut executor = bench.executor();
    let lease = executor.lease();
    bench.cancel(jobs[2]);
    assert_eq!(executor.revoked(), [OfLease { lease: lease.id, job: jobs[2] }]);
    for index in [0, 1, 3] {
        assert_eq!(executor.say(&lease, index, succeeded()), COMMITTED);
    }
    assert_eq!(bench.status(jobs[2]), JobStatus::Cancelled);
    // One that ran it before it was told is fenced there, and the rest comes again.
    let jobs = bench.submit_many("serial", 3);
    let lease = executor.lease();
    bench.cancel(jobs[1]);
    assert_eq!(executor.succeed(&lease), [COMMITTED, FENCED, FENCED]);
    let rest = executor.lease();
    assert_eq!((ids(&rest), rest.jobs[0].delivery), (jobs[2..].to_vec(), 2));
    executor.finish(&rest);
}

pub fn a_cancelled_delayed_head_frees_its_lane(make: Make) {
    let bench = Bench::new(make);
    let head = bench.submit(NewJob { delay: Duration::from_secs(3600), ..bench.job("serial") });
    let next = bench.submit_to("serial");
    let mut executor = bench.executor();
    executor.claims_nothing();
    bench.cancel(head);
    assert_eq!(executor.finish_everything(), [next]);
    // The other way round: what comes to the head waits for its own time.
    let head = bench.submit_to("serial");
    let next = bench.submit(NewJob { delay: Duration::from_secs(60), ..bench.job("serial") });
    bench.cancel(head);
    executor.claims_nothing();
    bench.pass(Duration::from_secs(60));
    assert_eq!(executor.finish_everything(), [next]);
}

pub fn a_result_later_than_a_cancel_takes_no_effect(make: Make) {
    let bench = Bench::new(make);
    let mut inbox = subscribe(&bench, 1);
    for outcome in
        [state(vec![set("k", "late")]), failed(), retry(), crashed(), Outcome::TimedOut(String::new())]
    {
        let job = bench.submit_to("serial");
        let mut executor = bench.executor();
        let lease = executor.lease();
        let cancelled = bench.cancel(job);
        assert_eq!(executor.say(&lease, 0, outcome), FENCED);
        assert_eq!(bench.record(job), cancelled);
        executor.claims_nothing();
        assert_eq!(rang(&bench, &mut *inbox), [(job, JobStatus::Cancelled)]);
    }
    assert_eq!(bench.state_seen_by_a_new_executor("serial").1, entries([]));
}

pub fn a_cancel_of_an_ended_job_changes_nothing(make: Make) {
    let bench = Bench::new(make);
    let mut executor = bench.executor();
    for outcome in [succeeded(), failed(), Outcome::TimedOut(String::new())] {
        let job = bench.submit_to("serial");
        let lease = executor.lease();
        assert_eq!(executor.say(&lease, 0, outcome), COMMITTED);
        let ended = bench.record(job);
        bench.pass(Duration::from_secs(1));
        assert_eq!(bench.cancel(job), ended);
        assert_eq!(bench.record(job), ended);
    }
    let viewer = cofferdam::ports::Viewer::anonymous();
    assert_eq!(
        bench.backend.producer().cancel(&viewer, JobId([9; 16])),
        Ok(None),
        "nor is an unknown one made"
    );
}

pub fn a_paused_handler_waits_and_takes_submissions(make: Make) {
    let bench = Bench::new(make);
    let mut executor = bench.executor();
    for handler in ["free", "serial"] {
        let before = bench.submit_to(handler);
        bench.pause(handler, true);
        bench.pause(handler, true);
        let after = bench.submit_to(handler);
        let other = bench.submit_to("serial2");
        assert_eq!(executor.finish_everything(), [other], "others go on");
        assert_eq!(bench.cancel(bench.submit_to(handler)).status, JobStatus::Cancelled);
        bench.pause(handler, false);
        assert_eq!(executor.finish_everything(), [before, after]);
    }
}

pub fn a_pause_cuts_a_run_after_the_running_job(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 4);
    let mut executor = bench.executor();
    let lease = executor.lease();
    assert_eq!(executor.say(&lease, 0, succeeded()), COMMITTED);
    bench.pause("serial", true);
    let revoked = executor.revoked();
    assert_eq!(revoked, [2, 3].map(|index: usize| OfLease { lease: lease.id, job: jobs[index] }));
    assert_eq!(executor.say(&lease, 1, succeeded()), COMMITTED, "the running one goes on");
    assert_eq!(executor.say(&lease, 2, succeeded()), FENCED);
    executor.claims_nothing();
    assert_eq!(bench.record(jobs[2]).deliveries, 0);
    bench.pause("serial", false);
    assert_eq!(executor.finish_everything(), jobs[2..]);
}

pub fn a_pause_of_an_unknown_handler_is_refused(make: Make) {
    let bench = Bench::new(make);
    assert_eq!(bench.backend.producer().pause("unheard of", true), Ok(false));
}

pub fn a_retry_is_a_new_life_at_the_lanes_tail(make: Make) {
    let bench = Bench::new(make);
    let mut executor = bench.executor();
    let original = bench.job("serial");
    let job = bench.submit(original.clone());
    for end in [None, Some(failed()), Some(Outcome::TimedOut(String::new())), Some(crashed())] {
        // A crash three times over, so that it is dead.
        for _ in 0..if end == Some(crashed()) { 3 } else { 1 } {
            bench.pass(Duration::from_secs(10));
            let lease = executor.lease();
            assert_eq!(ids(&lease), [job]);
            match &end {
                Some(outcome) => assert_eq!(executor.say(&lease, 0, outcome.clone()), COMMITTED),
                None => assert_eq!(bench.cancel(job).status, JobStatus::Cancelled),
            }
        }
        assert!(bench.status(job).is_terminal());
        let before = bench.submit_to("serial");
        let record = bench.retry(job).expect("it can be retried");
        assert_eq!((record.status, record.deliveries, record.finished), (JobStatus::Queued, 0, None));
        assert_eq!((record.started_at, record.finished_at), (None, None));
        let lease = executor.lease();
        assert_eq!((ids(&lease), lease.jobs[1].delivery), (vec![before, job], 1));
        assert_eq!(lease.jobs[1].payload, original.payload);
        assert_eq!(executor.say(&lease, 0, succeeded()), COMMITTED);
        executor.release(&lease);
    }
    let lease = executor.lease();
    executor.finish(&lease);
    assert_eq!(bench.status(job), JobStatus::Succeeded);
}

pub fn a_record_tells_how_far_its_last_delivery_is_or_was(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 3);
    let shown = |job: usize| bench.record(jobs[job]).progress.map(|progress| progress.as_str().to_owned());
    let (mut a, mut b) = (bench.executor(), bench.executor());
    let lease = a.lease();
    assert_eq!(shown(0), None);
    a.progress(&lease, 0, r#"{"done":1}"#);
    a.progress(&lease, 0, "2");
    assert_eq!(shown(0).as_deref(), Some("2"), "the last one");
    b.progress(&lease, 0, "3");
    assert_eq!(shown(0).as_deref(), Some("2"), "only who holds the lease says it");
    assert_eq!(a.say(&lease, 0, succeeded()), COMMITTED);
    a.progress(&lease, 0, "4");
    assert_eq!(
        shown(0).as_deref(),
        Some("2"),
        "nothing is said of a job that has ended, and it stays as it was"
    );
    a.progress(&lease, 1, "5");
    assert_eq!((shown(1).as_deref(), shown(2)), (Some("5"), None));
    assert_eq!(a.say(&lease, 1, retry()), COMMITTED);
    a.progress(&lease, 1, "6");
    assert_eq!(shown(1), None, "it begins anew");
    bench.pass(Duration::from_secs(60));
    let lease = b.lease();
    a.progress(&lease, 0, "7");
    assert_eq!((ids(&lease)[0], shown(1)), (jobs[1], None));
    b.progress(&lease, 0, "8");
    bench.cancel(jobs[1]);
    b.progress(&lease, 0, "9");
    assert_eq!(shown(1).as_deref(), Some("8"));
    bench.retry(jobs[1]).expect("it was cancelled");
    assert_eq!(shown(1), None, "a new life");
}

pub fn a_record_tells_of_its_last_deliveries(make: Make) {
    use AttemptOutcome::{Dead, ExecutorLost, HandlerCrashed, HandlerRetry};
    let bench = Bench::with(make, |settings| settings.max_deliveries = 4);
    for handler in ["free", "serial"] {
        let job = bench.submit_to(handler);
        let told = || {
            let record = bench.record(job);
            let outcomes: Vec<_> = record.past.iter().map(|attempt| attempt.outcome).collect();
            (record.executor.is_some(), outcomes)
        };
        assert_eq!(told(), (false, vec![]));
        let mut executor = bench.executor();
        let lease = executor.lease();
        assert_eq!(told(), (true, vec![]));
        // What has not begun is nothing to tell of.
        executor.release(&lease);
        assert_eq!(told(), (false, vec![]));
        for outcome in [retry(), crashed()] {
            bench.pass(Duration::from_secs(10));
            let lease = executor.lease();
            assert_eq!(executor.say(&lease, 0, outcome), COMMITTED);
        }
        assert_eq!(told(), (false, vec![HandlerRetry, HandlerCrashed]));
        bench.pass(Duration::from_secs(10));
        let _ = executor.lease();
        let (first, started) = (bench.record(job).executor, bench.record(job).started_at);
        bench.pass(Duration::from_millis(3));
        executor.die();
        assert_eq!(told(), (false, vec![HandlerRetry, HandlerCrashed, ExecutorLost]));
        let lost = bench.record(job).past.pop().expect("three");
        assert_eq!((Some(lost.executor.clone()), Some(lost.started_at)), (first, started));
        assert_eq!(lost.ended_at.since(lost.started_at), Duration::from_millis(3));
        bench.pass(Duration::from_secs(10));
        let mut executor = bench.executor();
        let lease = executor.lease();
        assert_ne!(bench.record(job).executor, Some(lost.executor), "another executor, another name");
        assert_eq!(executor.say(&lease, 0, crashed()), COMMITTED);
        assert_eq!(bench.status(job), JobStatus::Dead);
        assert_eq!(told(), (true, vec![HandlerRetry, HandlerCrashed, ExecutorLost]));
        // A new life goes on with the story; of too many the oldest are forgotten.
        assert!(bench.retry(job).is_ok());
        assert_eq!(told(), (false, vec![HandlerRetry, HandlerCrashed, ExecutorLost, Dead]));
        for _ in 0..6 {
            assert!(bench.retry(job).is_err());
            let lease = executor.lease();
            assert_eq!(executor.say(&lease, 0, failed()), COMMITTED);
            assert!(bench.retry(job).is_ok());
        }
        let lease = executor.lease();
        executor.finish(&lease);
        let mut expected = vec![AttemptOutcome::Failed; PAST_ATTEMPTS];
        expected[..2].copy_from_slice(&[ExecutorLost, Dead]);
        assert_eq!(told(), (true, expected));
    }
}

pub fn only_ended_jobs_without_a_result_are_retried(make: Make) {
    let bench = Bench::new(make);
    let job = bench.submit_to("free");
    assert_eq!(bench.retry(job), Err(NotRetried::Is(JobStatus::Queued)));
    let mut executor = bench.executor();
    let lease = executor.lease();
    assert_eq!(bench.retry(job), Err(NotRetried::Is(JobStatus::Running)));
    executor.finish(&lease);
    assert_eq!(bench.retry(job), Err(NotRetried::Is(JobStatus::Succeeded)));
    let viewer = cofferdam::ports::Viewer::anonymous();
    assert_eq!(bench.backend.producer().retry(&viewer, JobId([9; 16])), Ok(None));
    executor.claims_nothing();
}

pub fn a_late_commit_of_an_earlier_life_is_fenced(make: Make) {
    let bench = Bench::new(make);
    for handler in ["free", "serial"] {
        let job = bench.submit_to(handler);
        let (mut old, mut new) = (bench.executor(), bench.executor());
        let stale = old.lease();
        bench.cancel(job);
        assert!(bench.retry(job).is_ok());
        assert_eq!(old.say(&stale, 0, succeeded()), FENCED, "queued");
        let lease = new.lease();
        assert_eq!(lease.jobs[0].delivery, stale.jobs[0].delivery, "the same number in another life");
        assert_eq!(old.say(&stale, 0, succeeded()), FENCED, "running");
        assert_eq!(new.say(&lease, 0, failed()), COMMITTED);
        assert_eq!(old.say(&stale, 0, succeeded()), FENCED, "ended");
        // Also where the earlier life ended by the very commit that comes again.
        assert!(bench.retry(job).is_ok());
        assert_eq!(new.say(&lease, 0, failed()), FENCED);
        assert_eq!(new.finish_everything(), [job]);
    }
}

pub fn each_life_has_one_end_and_one_doorbell(make: Make) {
    let bench = Bench::new(make);
    let mut inbox = subscribe(&bench, 1);
    let job = bench.submit_to("serial");
    let mut executor = bench.executor();
    let mut ends = Vec::new();
    for outcome in [failed(), Outcome::TimedOut(String::new()), succeeded()] {
        let lease = executor.lease();
        let commit = super::commit_of(&lease, 0, version_of(&lease), outcome);
        let results = executor.commits(vec![commit.clone(), commit.clone(), commit]);
        assert_eq!(results, [COMMITTED, FENCED, FENCED]);
        bench.cancel(job);
        bench.pass(Duration::from_secs(60));
        ends.extend(rang(&bench, &mut *inbox));
        let _ = bench.retry(job);
    }
    let statuses = [JobStatus::Failed, JobStatus::TimedOut, JobStatus::Succeeded];
    assert_eq!(ends, statuses.map(|status| (job, status)));
}

fn subscribe(bench: &Bench, instance: u64) -> Box<dyn Inbox> {
    let inbox = bench.backend.replies().subscribe(InstanceId(instance), Bell::silent());
    bench.backend.settle();
    inbox.expect("the backend is there")
}

fn rang(bench: &Bench, inbox: &mut dyn Inbox) -> Vec<(JobId, JobStatus)> {
    bench.backend.settle();
    let doorbells = inbox.take(1000);
    assert!(!doorbells.lost);
    doorbells.ended.iter().map(|bell| (bell.job, bell.finished.status)).collect()
}

pub fn a_doorbell_goes_to_its_instance_with_the_result(make: Make) {
    let bench = Bench::new(make);
    let (mut one, mut two) = (subscribe(&bench, 1), subscribe(&bench, 2));
    let to = |instance| NewJob { instance: InstanceId(instance), ..bench.job("free") };
    let (first, second, nobodys) = (bench.submit(to(1)), bench.submit(to(2)), bench.submit(to(3)));
    let mut executor = bench.executor();
    let leases = executor.leases(3);
    let result = Payload::octets(*b"\0 any bytes \xff");
    let said = Outcome::Succeeded(result.clone(), Default::default());
    assert_eq!(executor.say(&leases[0], 0, said), COMMITTED);
    assert_eq!(executor.say(&leases[1], 0, failed()), COMMITTED);
    executor.finish(&leases[2]);
    let take = |inbox: &mut Box<dyn Inbox>| inbox.take(10).ended;
    let (at_one, at_two) = (take(&mut one), take(&mut two));
    assert_eq!((at_one.len(), at_one[0].job, &at_one[0].finished.result), (1, first, &Ok(result)));
    let error = JobError::new(Code::HandlerFailed, "it cannot be done");
    assert_eq!((at_two.len(), at_two[0].job, &at_two[0].finished.result), (1, second, &Err(error)));
    assert_eq!(bench.status(nobodys), JobStatus::Succeeded, "with or without anybody to hear of it");
    // Whoever has closed its inbox hears nothing, and a new one starts empty.
    drop(one);
    bench.submit(to(1));
    executor.finish_everything();
    assert_eq!(rang(&bench, &mut *subscribe(&bench, 1)), []);
}

pub fn an_inbox_gives_no_more_than_asked_for(make: Make) {
    let bench = Bench::new(make);
    let mut inbox = subscribe(&bench, 1);
    let jobs = bench.submit_many("serial", 10);
    bench.executor().finish_everything();
    let mut heard = Vec::new();
    for expected in [0, 4, 4, 2, 0] {
        let doorbells = inbox.take(if heard.is_empty() && expected == 0 { 0 } else { 4 });
        assert_eq!(doorbells.ended.len(), expected);
        heard.extend(doorbells.ended.iter().map(|bell| bell.job));
    }
    assert_eq!(heard, jobs, "in the order of the commits");
}

pub fn a_bell_rings_for_a_doorbell(make: Make) {
    let bench = Bench::new(make);
    let woken = Arc::new(AtomicUsize::new(0));
    let seen = woken.clone();
    let bell = Bell::new(move || {
        seen.fetch_add(1, Ordering::SeqCst);
    });
    let _inbox = bench.backend.replies().subscribe(InstanceId(1), bell.clone()).expect("it is there");
    let job = bench.submit_to("free");
    assert!(bell.asleep(), "nothing has rung yet");
    bench.executor().finish_everything();
    assert_eq!((bench.status(job), woken.load(Ordering::SeqCst)), (JobStatus::Succeeded, 1));
}

pub fn a_bell_rings_for_a_revoked_job(make: Make) {
    let bench = Bench::new(make);
    let jobs = bench.submit_many("serial", 2);
    let mut executor = bench.executor();
    executor.lease();
    executor.bell.answer();
    bench.cancel(jobs[1]);
    assert!(executor.bell.answer());
    assert_eq!(executor.revoked().len(), 1);
}

/// What is exported: each end once, as the job stood then, of jobs with spans of their own alone.
pub fn ends_of_traced_jobs_are_told_once_with_their_deliveries(make: Make) {
    use AttemptOutcome as A;
    let bench = Bench::with(make, |settings| settings.max_deliveries = 2);
    let submit = |parent| {
        let job = bench.job("free");
        let trace = Trace { flags: 1, parent, ..job.trace };
        bench.submit(NewJob { trace, ..job })
    };
    let traced = || submit(Some([0; 8]));
    let told = || {
        let (records, lost) = bench.backend.producer().take_traced();
        assert_eq!(lost, 0);
        let last = |record: &JobRecord| record.executor.as_ref().and(AttemptOutcome::of(record.status));
        let attempts = |it: &JobRecord| it.past.iter().map(|it| it.outcome).chain(last(it)).collect();
        let mut told: Vec<(JobId, JobStatus, Vec<A>)> =
            records.iter().map(|it| (it.spec.id, it.status, attempts(it))).collect();
        told.sort_by_key(|(id, ..)| *id);
        (told, records)
    };
    let mut executor = bench.executor();
    let mut run = |outcome| {
        let lease = executor.lease();
        assert_eq!(executor.say(&lease, 0, outcome), COMMITTED);
        bench.pass(Duration::from_secs(2));
    };
    traced();
    run(Outcome::Succeeded(Payload::octets(*b"secret"), Default::default()));
    let failing = traced();
    run(failed());
    traced();
    run(Outcome::TimedOut(String::new()));
    let dying = traced();
    run(retry());
    assert_eq!(told().0.len(), 3, "it has not ended");
    run(crashed());
    let (dead, records) = told();
    assert_eq!(dead, [(dying, JobStatus::Dead, vec![A::HandlerRetry, A::Dead])]);
    let error = records[0].finished.as_ref().map(|finished| finished.result.clone().map(|_| ()));
    assert_eq!(error.and_then(Result::err).and_then(|error| error.cause), Some(Cause::HandlerCrashed));
    submit(None);
    run(succeeded());
    submit(None);
    run(failed());
    let cancelled = submit(Some([7; 8]));
    bench.cancel(cancelled);
    bench.cancel(cancelled);
    let (told_now, records) = told();
    assert_eq!(told_now, [(cancelled, JobStatus::Cancelled, vec![])]);
    assert_eq!(records[0].spec.trace.parent, Some([7; 8]));
    assert!(bench.retry(failing).is_ok());
    run(Outcome::Succeeded(Payload::octets(*b"secret"), Default::default()));
    let (told_now, records) = told();
    assert_eq!(told_now, [(failing, JobStatus::Succeeded, vec![A::Failed, A::Succeeded])]);
    assert!(records[0].finished.is_none(), "its result stays here");
    drop(executor);
    let lost = traced();
    for _ in 0..2 {
        let mut executor = bench.executor();
        executor.lease();
        executor.die();
        bench.pass(Duration::from_secs(2));
    }
    bench.pass(Duration::from_secs(2));
    let (told_now, _) = told();
    assert_eq!((told_now[0].0, told_now[0].1, told_now.len()), (lost, JobStatus::Dead, 1));
    assert_eq!(told_now[0].2[0], A::ExecutorLost);
    assert_eq!(told().0, []);
}
