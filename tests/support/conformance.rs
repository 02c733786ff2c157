//! The conformance suites of the ports: one law a function, the same for each backend.
//!
//! A backend is handed over as a function from [`Settings`] to a [`Backend`]; `conformance!(path::to::make)` turns
//! each law into a test. The clock is the test's own: time moves when a law says so. Answers and leases may come
//! with a later step than the one that asked, so laws speak to consumers through [`Executor`], which steps until
//! what it waits for is there, or until nothing has come for [`QUIET_STEPS`] steps. Not in scope: how fast, and
//! what happens to a backend whose process dies.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use cofferdam::bell::Bell;
use cofferdam::clock::Timestamp;
use cofferdam::config::Retain;
use cofferdam::handler::HandlerSpec;
use cofferdam::job::{
    Change, Effects, Entries, FollowUp, JobId, JobRecord, JobStatus, Outcome, Payload, Progress, Trace,
    Version,
};
use cofferdam::ports::{
    Commit, Consumer, KeyValue, Lease, LeaseId, NewJob, OfLease, Producer, Progressed, Replies, Requests,
    Retried, Rules, StateAt, Submitted, Viewer,
};
use cofferdam::problem::{Code, JobError};
use cofferdam::{HandlerOptions, OnDead};
pub use jobs::plain;

#[path = "jobs.rs"]
mod jobs;

#[allow(dead_code, reason = "what is kept in memory alone")]
pub mod bounds;
pub mod commits;
pub mod ends;
pub mod lanes;
pub mod lives;
pub mod maps;
pub mod records;

/// When the clock of every backend begins.
pub const START: Timestamp = Timestamp(1_700_000_000_000_000);
/// Steps in a row that bring nothing, after which nothing more is expected.
const QUIET_STEPS: usize = 3;

/// A deployment under test.
pub trait Backend {
    /// The submitting side.
    fn producer(&self) -> &dyn Producer;
    /// The waiting side.
    fn replies(&self) -> &dyn Replies;
    /// The maps.
    fn key_value(&self) -> &dyn KeyValue;
    /// An executor of this group; `bell` rings when a step would bring something.
    fn consumer(&self, group: usize, bell: Bell) -> Box<dyn Consumer>;
    /// The injected clock.
    fn now(&self) -> Timestamp;
    /// Moves the injected clock; nothing acts on it before [`Backend::tick`].
    fn advance(&self, by: Duration);
    /// Does what time alone does.
    fn tick(&self);
    /// Lets what is under way between two ends arrive.
    fn settle(&self) {}
    /// Entries of each table, or keys of each kind.
    fn sizes(&self) -> Vec<usize>;
}

/// What became of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitResult {
    /// It holds: nothing was said against it.
    Committed,
    /// Nothing of it took effect.
    Fenced,
}

/// How a suite gets its backend.
pub type Make = fn(&Settings) -> Box<dyn Backend>;

/// What a law may set.
#[derive(Clone, Debug)]
pub struct Settings {
    pub capacity: usize,
    pub visibility: Duration,
    pub max_deliveries: u32,
    pub retry_base: Duration,
    pub retry_max: Duration,
    pub result_ttl: Duration,
    pub awaited_ttl: Duration,
    pub failed_ttl: Duration,
    pub idempotency_ttl: Duration,
    pub idempotency_keys: usize,
    pub retain_records: usize,
    pub retain_bytes: usize,
    pub context_ttl: Duration,
    pub lane_state_max: usize,
    pub states_max: usize,
    pub max_payload: usize,
    pub handlers: Vec<HandlerSpec>,
    pub groups: usize,
}

impl Settings {
    /// As a broker follows them.
    pub fn rules(&self) -> Rules {
        Rules {
            capacity: self.capacity,
            visibility: self.visibility,
            max_deliveries: self.max_deliveries,
            retry: cofferdam::handler::Retry {
                base_ms: self.retry_base.as_millis() as u64,
                max_ms: self.retry_max.as_millis() as u64,
            },
            result_ttl: self.result_ttl,
            awaited_ttl: self.awaited_ttl,
            failed_ttl: self.failed_ttl,
            retain: Retain {
                records: self.retain_records,
                bytes: self.retain_bytes,
                failed_records: self.retain_records,
                failed_bytes: self.retain_bytes,
            },
            idempotency_ttl: self.idempotency_ttl,
            idempotency_keys: self.idempotency_keys,
            context_ttl: self.context_ttl,
            lane_state_max: self.lane_state_max,
            states_max: self.states_max,
            max_payload: self.max_payload,
            exports_traces: true,
            grace: Duration::from_secs(5),
        }
    }

    /// The names of the groups.
    pub fn group_names(&self) -> Vec<Arc<str>> {
        (0..self.groups).map(|group| Arc::from(format!("group{group}"))).collect()
    }
}

impl Default for Settings {
    /// Handlers named for what they are: see the table inside.
    fn default() -> Settings {
        let spec = |(name, group, options): (&str, usize, _)| HandlerSpec::new(name, group, options);
        let free = HandlerOptions::default;
        let serial = HandlerOptions::serial;
        let handlers = [
            ("free", 0, free()),
            ("narrow", 0, HandlerOptions { concurrency: 2, ..free() }),
            ("serial", 0, serial()),
            ("serial2", 0, serial()),
            ("keyed", 0, HandlerOptions::keyed("/key")),
            ("once", 0, HandlerOptions { max_deliveries: Some(1), ..serial() }),
            ("parking", 0, HandlerOptions { on_dead: OnDead::Park, max_deliveries: Some(1), ..serial() }),
            ("elsewhere", 1, free()),
        ];
        Settings {
            capacity: 100_000,
            visibility: Duration::from_secs(30),
            max_deliveries: 3,
            retry_base: Duration::from_millis(200),
            retry_max: Duration::from_secs(2),
            result_ttl: Duration::from_secs(600),
            awaited_ttl: Duration::from_secs(30),
            failed_ttl: Duration::from_secs(1200),
            idempotency_ttl: Duration::from_secs(1800),
            idempotency_keys: 1_000,
            retain_records: 100_000,
            retain_bytes: 64 << 20,
            context_ttl: Duration::from_secs(60),
            lane_state_max: 1 << 20,
            states_max: 64 << 20,
            max_payload: 1 << 20,
            handlers: handlers.into_iter().map(spec).collect(),
            groups: 2,
        }
    }
}

/// A backend with what laws need around it.
pub struct Bench {
    pub backend: Box<dyn Backend>,
    last: Cell<u64>,
}

impl Bench {
    pub fn new(make: Make) -> Bench {
        Bench::with(make, |_| {})
    }

    pub fn with(make: Make, change: impl FnOnce(&mut Settings)) -> Bench {
        let mut settings = Settings::default();
        change(&mut settings);
        Bench { backend: make(&settings), last: Cell::new(0) }
    }

    /// A job that can be changed before it is submitted. Its id and trace are fresh.
    pub fn job(&self, handler: &str) -> NewJob {
        self.last.set(self.last.get() + 1);
        let id = u128::from(self.last.get()).to_be_bytes();
        NewJob {
            payload: Payload::json(self.last.get().to_string().into_bytes()),
            trace: Trace { id, span: [7; 8], ..Trace::default() },
            ..plain(JobId(id), handler)
        }
    }

    pub fn try_submit(&self, job: NewJob) -> Submitted {
        let mut answers = self.backend.producer().submit(vec![job]).expect("the backend is there");
        assert_eq!(answers.len(), 1, "one answer a job");
        self.backend.settle();
        answers.remove(0)
    }

    pub fn submit(&self, job: NewJob) -> JobId {
        let id = job.id;
        assert_eq!(self.try_submit(job), Submitted::New);
        id
    }

    pub fn submit_to(&self, handler: &str) -> JobId {
        self.submit(self.job(handler))
    }

    pub fn submit_many(&self, handler: &str, count: usize) -> Vec<JobId> {
        (0..count).map(|_| self.submit_to(handler)).collect()
    }

    pub fn submit_keyed(&self, key: &str) -> JobId {
        self.submit(NewJob { ordering_key: Some(Arc::from(key)), ..self.job("keyed") })
    }

    pub fn find(&self, id: JobId) -> Option<JobRecord> {
        self.backend.producer().record(&Viewer::anonymous(), id).expect("the backend is there")
    }

    pub fn record(&self, id: JobId) -> JobRecord {
        self.find(id).expect("the job has a record")
    }

    pub fn status(&self, id: JobId) -> JobStatus {
        self.record(id).status
    }

    /// Why the job ended without a result: code and cause.
    pub fn error(&self, id: JobId) -> JobError {
        let finished = self.record(id).finished.expect("it has ended");
        finished.result.clone().expect_err("it has no result")
    }

    pub fn cancel(&self, id: JobId) -> JobRecord {
        let record = self.backend.producer().cancel(&Viewer::anonymous(), id).expect("the backend is there");
        self.backend.settle();
        record.expect("the job has a record")
    }

    pub fn retry(&self, id: JobId) -> Retried {
        let answer = self.backend.producer().retry(&Viewer::anonymous(), id).expect("the backend is there");
        self.backend.settle();
        answer.expect("the job has a record")
    }

    pub fn pause(&self, handler: &str, paused: bool) {
        assert!(self.backend.producer().pause(handler, paused).expect("the backend is there"));
        self.backend.settle();
    }

    pub fn now(&self) -> Timestamp {
        self.backend.now()
    }

    pub fn pass(&self, time: Duration) {
        self.backend.advance(time);
        self.backend.tick();
        self.backend.settle();
    }

    pub fn executor(&self) -> Executor<'_> {
        self.executor_of(0)
    }

    pub fn executor_of(&self, group: usize) -> Executor<'_> {
        let bell = Bell::silent();
        let consumer = self.backend.consumer(group, bell.clone());
        self.backend.settle();
        let (leases, fenced, revoked) = (VecDeque::new(), Vec::new(), Vec::new());
        Executor {
            bench: self,
            consumer: Some(consumer),
            bell,
            live: BTreeMap::new(),
            leases,
            fenced,
            revoked,
        }
    }

    /// The state of a lane, as the next lease on it would see it.
    pub fn state_seen_by_a_new_executor(&self, handler: &str) -> (Version, Entries) {
        let probe = self.submit_to(handler);
        let mut executor = self.executor();
        let lease = executor.lease();
        assert_eq!(ids(&lease), [probe], "the probe is the lane's only job");
        let StateAt::Whole(version, state) = lease.state.clone() else {
            panic!("a new executor knows no state: {:?}", lease.state);
        };
        assert_eq!(executor.succeed(&lease), [CommitResult::Committed]);
        (version, state)
    }
}

/// A consumer whose leases and refusals are waited for.
pub struct Executor<'a> {
    bench: &'a Bench,
    consumer: Option<Box<dyn Consumer>>,
    /// Given to the backend with the consumer.
    pub bell: Bell,
    /// Its leases with the jobs that were not spoken of, as far as is known here: some may have run out.
    live: BTreeMap<LeaseId, usize>,
    leases: VecDeque<Lease>,
    fenced: Vec<OfLease>,
    revoked: Vec<OfLease>,
}

impl Executor<'_> {
    fn consumer(&mut self) -> &mut dyn Consumer {
        self.consumer.as_deref_mut().expect("it lives")
    }

    /// One step with room for so many leases at once; true if it brought something.
    fn step(&mut self, requests: Requests, room: usize) -> bool {
        let step = self.consumer().step(requests, room).expect("the backend is there");
        let news = !step.is_empty();
        self.live.extend(step.leases.iter().map(|lease| (lease.id, lease.jobs.len())));
        step.revoked.iter().for_each(|of| self.is_over(of.lease, 1));
        self.leases.extend(step.leases);
        self.fenced.extend(step.fenced);
        self.revoked.extend(step.revoked);
        self.bench.backend.settle();
        news
    }

    /// So many of the lease's jobs were spoken of.
    fn is_over(&mut self, lease: LeaseId, jobs: usize) {
        if let Some(left) = self.live.get_mut(&lease) {
            *left = left.saturating_sub(jobs);
            if *left == 0 {
                self.live.remove(&lease);
            }
        }
    }

    /// Steps with this room until nothing more comes.
    fn quiet(&mut self, room: usize) {
        let mut quiet = 0;
        while quiet < QUIET_STEPS {
            quiet = if self.step(Requests::default(), room) { 0 } else { quiet + 1 };
        }
    }

    /// Says that there is no room, until nothing more comes.
    pub fn busy(&mut self) {
        self.quiet(0);
    }

    /// Up to `most` leases more, as many as there are. Says that there is no room left afterwards.
    pub fn leases(&mut self, most: usize) -> Vec<Lease> {
        // How many of its leases live is the broker's to know: room grows by one until enough have come.
        let mut room = 0;
        while self.leases.len() < most && room < self.live.len() + most {
            room += 1;
            // One step says so, the other takes what it brought.
            self.step(Requests::default(), room);
            if self.leases.len() < most {
                self.step(Requests::default(), room);
            }
        }
        self.busy();
        assert!(self.leases.len() <= most, "more leases than there was room for");
        self.leases.drain(..).collect()
    }

    /// The lease that must come.
    pub fn lease(&mut self) -> Lease {
        self.leases(1).pop().expect("there is something to claim")
    }

    /// The jobs of the lease that must come.
    pub fn lease_ids(&mut self) -> Vec<JobId> {
        ids(&self.lease())
    }

    /// There must be nothing to claim.
    pub fn claims_nothing(&mut self) {
        self.quiet(100_000);
        assert!(self.leases.is_empty(), "nothing should be claimed, but {:?}", self.leases);
        self.busy();
    }

    /// There is nothing to claim, and its room stands; what rang so far is answered.
    pub fn waits_with_room(&mut self) {
        self.quiet(self.live.len() + 8);
        assert!(self.leases.is_empty(), "nothing should be claimed, but {:?}", self.leases);
        self.bell.answer();
    }

    /// One call with these commits; what became of each, in order.
    pub fn commits(&mut self, commits: Vec<Commit>) -> Vec<CommitResult> {
        let said: Vec<OfLease> = commits.iter().map(|c| OfLease { lease: c.lease, job: c.job }).collect();
        for commit in &commits {
            let goes_on = matches!(commit.outcome, Outcome::Succeeded(..) | Outcome::Failed(_));
            self.is_over(commit.lease, if goes_on { 1 } else { usize::MAX });
        }
        self.step(Requests { commits, ..Requests::default() }, 0);
        self.busy();
        assert!(self.consumer().is_settled(), "what was not fenced is in the books");
        let result = |of| match self.fenced.iter().position(|fenced| *fenced == of) {
            Some(at) => {
                self.fenced.remove(at);
                CommitResult::Fenced
            }
            None => CommitResult::Committed,
        };
        // A refusal ends its lease: of two that look the same it is the later one's.
        let mut results: Vec<CommitResult> = said.into_iter().rev().map(result).collect();
        results.reverse();
        assert!(self.fenced.is_empty(), "refusals of what nobody said: {:?}", self.fenced);
        results
    }

    pub fn commit(&mut self, commit: Commit) -> CommitResult {
        self.commits(vec![commit])[0]
    }

    /// The lease's job of this index came to `outcome`; nothing before it changed the state.
    pub fn say(&mut self, lease: &Lease, index: usize, outcome: Outcome) -> CommitResult {
        self.commit(commit_of(lease, index, version_of(lease), outcome))
    }

    /// All jobs of the lease succeed, without changes.
    pub fn succeed(&mut self, lease: &Lease) -> Vec<CommitResult> {
        let version = version_of(lease);
        self.commits(
            (0..lease.jobs.len()).map(|index| commit_of(lease, index, version, succeeded())).collect(),
        )
    }

    /// The same, and all of it must hold.
    pub fn finish(&mut self, lease: &Lease) {
        let results = self.succeed(lease);
        assert!(results.iter().all(|result| *result == CommitResult::Committed), "{results:?}");
    }

    /// Claims and finishes until there is nothing more; the jobs in the order of their leases.
    pub fn finish_everything(&mut self) -> Vec<JobId> {
        let mut done = Vec::new();
        loop {
            let leases = self.leases(8);
            if leases.is_empty() {
                return done;
            }
            for lease in leases {
                self.finish(&lease);
                done.extend(ids(&lease));
            }
        }
    }

    /// Says how far the lease's job of this index is; a broker takes that within a second.
    pub fn progress(&mut self, lease: &Lease, index: usize, text: &str) {
        let progress = Progress::parse(text).expect("it is JSON");
        let said = Progressed { lease: lease.id, job: lease.jobs[index].spec.id, progress };
        self.step(Requests { progress: vec![said], ..Requests::default() }, 0);
        self.busy();
        self.bench.pass(Duration::from_secs(1));
    }

    pub fn release(&mut self, lease: &Lease) {
        self.is_over(lease.id, usize::MAX);
        self.step(Requests { releases: vec![lease.id], ..Requests::default() }, 0);
        self.busy();
    }

    pub fn extend(&mut self) {
        self.consumer().extend();
        self.bench.backend.settle();
    }

    /// What it was told to stop or leave out since the last call.
    pub fn revoked(&mut self) -> Vec<OfLease> {
        self.busy();
        std::mem::take(&mut self.revoked)
    }

    /// The process dies.
    pub fn die(mut self) {
        self.consumer = None;
        self.bench.backend.settle();
    }
}

pub fn ids(lease: &Lease) -> Vec<JobId> {
    lease.jobs.iter().map(|job| job.spec.id).collect()
}

/// The version that the lease's first job builds on.
pub fn version_of(lease: &Lease) -> Version {
    match &lease.state {
        StateAt::Stateless => Version::default(),
        StateAt::Known(version) | StateAt::Whole(version, _) => *version,
    }
}

pub fn commit_of(lease: &Lease, index: usize, builds_on: Version, outcome: Outcome) -> Commit {
    let job = &lease.jobs[index];
    Commit { lease: lease.id, job: job.spec.id, delivery: job.delivery, builds_on, outcome }
}

pub fn succeeded() -> Outcome {
    succeeded_with(Effects::default())
}

pub fn succeeded_with(effects: Effects) -> Outcome {
    Outcome::Succeeded(Payload::json(*b"1"), effects)
}

pub fn failed() -> Outcome {
    Outcome::Failed(JobError::new(Code::HandlerFailed, "it cannot be done"))
}

pub fn retry() -> Outcome {
    Outcome::Retry("not yet".into(), None)
}

pub fn crashed() -> Outcome {
    Outcome::Crashed("it panicked".into())
}

pub fn set(key: &str, value: &str) -> Change {
    Change { key: Arc::from(key), value: Some(Arc::from(value.as_bytes())) }
}

pub fn unset(key: &str) -> Change {
    Change { key: Arc::from(key), value: None }
}

pub fn entries<const N: usize>(pairs: [(&str, &str); N]) -> Entries {
    pairs.into_iter().map(|(key, value)| (Arc::from(key), Arc::from(value.as_bytes()))).collect()
}

pub fn follow_up(handler: &str) -> FollowUp {
    FollowUp {
        handler: Arc::from(handler),
        ordering_key: None,
        delay: Duration::ZERO,
        payload: Payload::json(*b"\"follow-up\""),
    }
}

pub fn state(changes: Vec<Change>) -> Outcome {
    succeeded_with(Effects { state: changes, ..Effects::default() })
}

/// One test a law, in a module a room. `$make` is an absolute path to a [`Make`].
macro_rules! conformance {
    ($make:path) => {
        conformance!($make; lanes:
            jobs_of_a_serial_handler_come_in_submission_order
            a_lane_has_one_live_lease
            keyed_lanes_keep_their_order_and_do_not_wait_for_each_other
            unordered_jobs_are_leased_one_by_one_and_side_by_side
            a_run_has_at_most_32_jobs
            a_run_is_cut_where_its_payloads_exceed_a_frame
            only_the_first_job_of_a_run_has_started
            the_next_job_of_a_run_starts_with_the_commit_before_it
            a_retried_head_holds_its_lane
            a_delayed_head_holds_its_lane
            a_delayed_job_in_the_middle_cuts_the_run
            an_unordered_job_is_delayed_until_its_time
            ready_lanes_are_served_oldest_first
            concurrency_is_kept_by_each_executor
            a_group_gets_its_own_jobs_only
            no_more_leases_than_there_is_room
            a_bell_rings_when_a_step_would_bring_a_lease
            a_bell_rings_when_a_delay_is_over
        );
        conformance!($make; commits:
            a_commit_holds_and_a_repeated_one_is_fenced
            a_retry_that_is_committed_again_is_fenced
            commits_of_one_call_are_judged_one_by_one
            an_unknown_lease_is_fenced_and_changes_nothing
            the_lease_of_another_executor_is_fenced
            a_lease_that_ran_out_is_fenced
            a_commit_out_of_order_is_fenced_and_ends_the_lease
            an_outcome_of_a_job_that_its_lease_does_not_have_ends_the_lease
            a_commit_of_another_delivery_is_fenced
            a_commit_on_another_version_is_fenced_and_applies_nothing
            a_commit_takes_hold_as_a_whole
            a_late_commit_takes_hold_in_no_part
            a_commit_beyond_the_state_limit_fails_the_job_and_applies_nothing
            a_commit_with_an_unknown_follow_up_fails_the_job_and_applies_nothing
            a_group_submits_to_the_handlers_that_it_may_name_alone
            a_retry_after_a_time_of_its_own_comes_then
            an_unordered_job_has_no_state
            the_state_comes_whole_and_then_is_known
            a_lease_whose_state_was_forgotten_comes_again_with_the_whole_map
            another_executor_gets_the_state_as_last_committed
            jobs_without_changes_keep_the_version
            fences_grow_with_every_delivery
            follow_ups_enter_at_the_tail_and_keep_owner_and_trace
            a_context_is_shared_by_its_trace_and_owner_only
            a_context_lives_for_its_time_after_its_last_use
        );
        conformance!($make; ends:
            jobs_that_were_lost_together_come_again_at_once_uncounted
            a_job_that_is_lost_alone_is_counted_and_comes_again_at_once_the_first_time
            leases_of_one_executor_that_are_over_one_after_the_other_are_lost_together
            a_suspect_runs_by_itself_and_those_behind_it_as_before
            a_job_that_was_lost_twice_with_others_runs_alone
            an_executor_is_kept_free_for_a_job_that_runs_alone
            losses_are_bounded_whoever_is_lost_with_them
            an_outcome_that_does_not_hold_counts_the_delivery
            a_handler_with_one_delivery_gets_runs_of_one
            a_job_that_kills_its_executor_takes_no_neighbour_along
            used_up_deliveries_make_a_job_dead_with_its_cause
            the_backoff_is_between_nothing_and_its_doubling_capped_bound
            u3_default_retries_outlast_an_upstream_that_is_away_for_ten_minutes
            a_released_lease_is_uncounted_and_keeps_its_order
            a_release_of_a_lease_that_is_over_is_ignored
            a_lease_that_is_not_renewed_is_lost_and_one_that_is_renewed_lives
            a_commit_renews_its_lease
            a_lease_is_over_at_its_jobs_deadline_however_often_it_is_renewed
            a_timeout_ends_the_run_and_its_rest_is_uncounted
            a_failed_job_lets_its_run_go_on
            a_parked_lane_waits_until_its_dead_head_is_retried
            a_parked_lane_goes_on_once_its_dead_head_is_deleted
            a_parked_dead_job_outlives_its_time
        );
        conformance!($make; lives:
            a_queued_job_is_cancelled_and_never_delivered
            a_cancelled_running_job_frees_its_lane_at_once
            a_cancelled_later_job_leaves_its_run
            a_cancelled_delayed_head_frees_its_lane
            a_result_later_than_a_cancel_takes_no_effect
            a_cancel_of_an_ended_job_changes_nothing
            a_paused_handler_waits_and_takes_submissions
            a_pause_cuts_a_run_after_the_running_job
            a_pause_of_an_unknown_handler_is_refused
            a_retry_is_a_new_life_at_the_lanes_tail
            a_record_tells_of_its_last_deliveries
            a_record_tells_how_far_its_last_delivery_is_or_was
            only_ended_jobs_without_a_result_are_retried
            a_late_commit_of_an_earlier_life_is_fenced
            each_life_has_one_end_and_one_doorbell
            a_doorbell_goes_to_its_instance_with_the_result
            an_inbox_gives_no_more_than_asked_for
            ends_of_traced_jobs_are_told_once_with_their_deliveries
            a_bell_rings_for_a_doorbell
            a_bell_rings_for_a_revoked_job
        );
        conformance!($make; records:
            an_idempotency_key_joins_its_job_in_every_status
            another_payload_under_an_idempotency_key_is_refused
            an_idempotency_key_is_its_owners_and_its_handlers
            an_idempotency_key_lives_for_its_own_time_and_while_its_job_does
            failures_outlive_successes_with_their_payload
            a_submission_that_is_repeated_is_one_job
            an_unknown_handler_is_refused
            a_full_queue_refuses_but_not_follow_ups_and_redeliveries
            an_owner_leaves_others_their_share_of_the_queue
            a_small_queue_has_a_place_for_each_owner
            follow_ups_find_room_up_to_twice_the_capacity_and_the_first_always
            follow_ups_take_no_callers_place_and_give_their_own_back
            a_result_that_must_be_one_line_is_one
            the_age_of_what_waits_is_seen_behind_a_head_that_is_delayed_or_parked
            jobs_of_one_call_are_accepted_or_refused_each
            an_awaited_record_goes_earlier_unless_it_has_a_key
            nothing_is_kept_for_ever
            a_lane_whose_state_was_removed_is_not_kept
            others_jobs_are_not_there
            a_list_is_newest_first_filtered_and_limited
            a_list_is_of_a_key_a_trace_and_a_time
            a_list_finds_what_lies_far_back
            lanes_say_who_waits_and_why
            pages_of_a_list_follow_one_another_whatever_comes_and_goes_between_them
            a_payload_is_there_until_its_job_has_succeeded
            a_record_says_what_its_job_waits_for
            a_record_carries_the_job_as_submitted_and_its_times
            figures_agree_with_what_happened
        );
        conformance!($make; maps:
            a_map_holds_what_was_applied
            changes_replace_and_remove
            an_emptied_map_is_absent
            a_map_lives_exactly_for_its_time
            a_use_renews_a_maps_time
            a_map_without_a_time_stays
            changes_after_a_maps_time_start_from_nothing
        );
    };
    ($make:path; $room:ident: $($law:ident)*) => {
        mod $room {
            $(#[test]
            fn $law() {
                crate::support::conformance::$room::$law($make);
            })*
        }
    };
}
