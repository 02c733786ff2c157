//! What an embedder writes: [`Handler`]; and what it sees: a job, and a context whose changes are staged until it succeeds.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::run::{RunMaps, RunStop, bytes_of};
use crate::clock::Timestamp;
use crate::handler::{HandlerError, HandlerOptions, HandlerSpec, Ordering};
use crate::job::{Change, Effects, Entries, FollowUp, JobId, Payload, Progress, Trace, Version, entry_bytes};
use crate::limits::{
    CONTEXT_BYTES, DELAY_MAX, FOLLOW_UP_OVERHEAD_BYTES, FOLLOW_UPS, FOLLOW_UPS_BYTES, MAP_NAME_BYTES,
    effects_bytes,
};
use crate::observe::job_event;
use crate::ports::{LeasedJob, Rules};
use crate::problem::{Code, JobError};

/// A function that does jobs. It runs on a worker thread and may block.
///
/// The same job may be delivered again after a crash, so effects outside of the system should carry
/// [`JobContext::fence`] or be idempotent; effects through the context happen once.
pub trait Handler: Send + Sync {
    /// Does one job.
    ///
    /// # Errors
    /// [`HandlerError::Retry`] is delivered again after a backoff, [`HandlerError::Fail`] is final. A panic
    /// counts as a crash of this delivery.
    fn handle(&self, job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError>;

    /// The options that hold where the config says nothing.
    fn options(&self) -> HandlerOptions {
        HandlerOptions::default()
    }
}

impl<F> Handler for F
where
    F: Fn(&Job, &mut JobContext) -> Result<Payload, HandlerError> + Send + Sync,
{
    fn handle(&self, job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
        self(job, cx)
    }
}

/// Handlers with their code, for a pool of workers.
pub type Handlers = Vec<(HandlerSpec, Arc<dyn Handler>)>;

/// The handlers of a binary with their own options, by name. A name is 1 to 64 of `a-z A-Z 0-9 _ -`.
pub type Registry = BTreeMap<String, (HandlerOptions, Arc<dyn Handler>)>;

/// What a process does before its first job.
pub type WorkerStart = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The job that a handler does.
#[derive(Clone, Debug)]
pub struct Job(pub(super) LeasedJob);

impl Job {
    /// Its id; the same in every delivery.
    pub fn id(&self) -> JobId {
        self.0.spec.id
    }

    /// The handler's name.
    pub fn handler(&self) -> &str {
        &self.0.spec.handler
    }

    /// The input, as it came.
    pub fn payload(&self) -> &Payload {
        &self.0.payload
    }

    /// `Some` iff the handler is keyed.
    pub fn ordering_key(&self) -> Option<&str> {
        self.0.spec.ordering_key.as_deref()
    }

    /// The request's trace.
    pub fn trace(&self) -> Trace {
        self.0.spec.trace
    }

    /// The `tracestate` that came with it, to be passed on as it is.
    pub fn tracestate(&self) -> Option<&str> {
        self.0.spec.tracestate.as_deref()
    }
}

/// A lane's state, or a trace's context: reads see the handler's own changes; changes take effect with success.
pub struct StagedMap<'a> {
    committed: &'a Entries,
    staged: &'a mut Staged,
}

type Staged = HashMap<Arc<str>, Option<Arc<[u8]>>>;

impl StagedMap<'_> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        match self.staged.get(key) {
            Some(staged) => staged.as_deref(),
            None => self.committed.get(key).map(|value| &**value),
        }
    }

    /// Sets a key.
    pub fn set(&mut self, key: &str, value: impl Into<Arc<[u8]>>) {
        self.staged.insert(Arc::from(key), Some(value.into()));
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &str) {
        self.staged.insert(Arc::from(key), None);
    }
}

/// What a handler may ask and change besides returning a result.
pub struct JobContext<'a> {
    pub(super) job: &'a LeasedJob,
    pub(super) maps: &'a mut RunMaps,
    pub(super) stop: &'a RunStop,
    pub(super) deadline: Timestamp,
    pub(super) spec: &'a HandlerSpec,
    pub(super) handlers: &'a Handlers,
    pub(super) staging: Staging,
    /// Who is told how far it is.
    pub(super) progress: &'a dyn Fn(Progress),
}

/// What takes effect with success.
#[derive(Default)]
pub(super) struct Staging {
    state: Staged,
    context: Staged,
    follow_ups: Vec<FollowUp>,
    /// It has said something of how far it is that cannot be told; the log knows.
    has_no_progress: bool,
}

impl JobContext<'_> {
    /// The lane's state; `None` if the handler is not ordered. Already loaded: reads never wait or fail.
    pub fn state(&mut self) -> Option<StagedMap<'_>> {
        let (committed, staged) = (&self.maps.state, &mut self.staging.state);
        let is_ordered = self.spec.options.ordering != Ordering::None;
        is_ordered.then_some(StagedMap { committed, staged })
    }

    /// The trace's context: shared by all jobs of one trace, for `kv.context_ttl_seconds` after its last use.
    pub fn context(&mut self) -> StagedMap<'_> {
        let own = self.maps.traces.get(&self.job.spec.trace.id);
        StagedMap { committed: own.unwrap_or(&self.job.context), staged: &mut self.staging.context }
    }

    /// Submits a job of the same trace when this one succeeds. Its ordering key is taken from its payload
    /// unless given.
    ///
    /// # Errors
    /// The handler is unknown, or not one that this group may submit to, the payload has no ordering key where one is needed, the delay is longer than 7 days, or
    /// there are too many.
    pub fn submit(
        &mut self,
        handler: &str,
        payload: Payload,
        key: Option<&str>,
        delay: Duration,
    ) -> Result<(), String> {
        let known = self.handlers.iter().find(|(spec, _)| *spec.name == *handler);
        let (spec, _) = known.ok_or_else(|| format!("there is no handler {handler}"))?;
        if !self.spec.may_submit_to(handler) {
            return Err(format!("the group of {} may not submit to {handler}", self.spec.name));
        }
        if self.staging.follow_ups.len() == FOLLOW_UPS {
            return Err(format!("a job submits at most {FOLLOW_UPS} follow-ups"));
        }
        if delay > DELAY_MAX {
            return Err("a follow-up's delay is at most 7 days".into());
        }
        let ordering_key = spec.options.ordering.key(key, &payload.bytes)?;
        self.staging.follow_ups.push(FollowUp { handler: spec.name.clone(), ordering_key, delay, payload });
        Ok(())
    }

    /// Says how far the job is, as any JSON of at most 1 KiB: whoever looks at it sees the last of that, some seconds later at most.
    /// Nothing is built on it, so it never fails: more than the rest is left out, which the log says once a job.
    pub fn progress(&mut self, value: impl Serialize) {
        self.progress_json(&serde_json::to_string(&value).unwrap_or_default());
    }

    pub(super) fn progress_json(&mut self, text: &str) {
        let Some(progress) = Progress::parse(text) else {
            if !std::mem::replace(&mut self.staging.has_no_progress, true) {
                let spec = &self.job.spec;
                let said =
                    job_event(log::Level::Warn, "progress.refused", &spec.trace, spec.id, &spec.handler);
                said.number("bytes", text.len() as u64).emit();
            }
            return;
        };
        if !self.is_cancelled() {
            (self.progress)(progress);
        }
    }

    /// When the handler's timeout passes.
    pub fn deadline(&self) -> Timestamp {
        self.deadline
    }

    /// True once the job was cancelled or has timed out: whatever comes now takes no effect.
    pub fn is_cancelled(&self) -> bool {
        self.stop.is_ended()
    }

    /// Waits; false as soon as the job is cancelled or has timed out.
    #[must_use]
    pub fn sleep(&self, duration: Duration) -> bool {
        self.stop.sleep(duration)
    }

    /// 1 for the first delivery.
    pub fn delivery(&self) -> u32 {
        self.job.delivery
    }

    /// Grows with every delivery of the whole deployment: outside systems can refuse smaller ones.
    pub fn fence(&self) -> u64 {
        self.job.fence
    }

    /// The submission time, the same in every delivery.
    pub fn now(&self) -> Timestamp {
        self.job.spec.submitted_at
    }

    /// The lane's state, if it has one, and the trace's context, as they were committed.
    pub(super) fn entries(&self) -> (Option<&Entries>, &Entries) {
        let is_ordered = self.spec.options.ordering != Ordering::None;
        let context = self.maps.traces.get(&self.job.spec.trace.id).unwrap_or(&self.job.context);
        (is_ordered.then_some(&self.maps.state), context)
    }

    /// Takes the staged changes over into the run's maps and gives them for the commit.
    pub(super) fn commit(self, rules: &Rules) -> Result<Effects, JobError> {
        let JobContext { job, maps, staging, .. } = self;
        let (state, context) = (in_order(staging.state), in_order(staging.context));
        let effects = Effects { state, context, follow_ups: staging.follow_ups };
        let too_large = |detail: &str| Err(JobError::new(Code::StateTooLarge, detail));
        let failed = |detail| Err(JobError::new(Code::HandlerFailed, detail));
        let max = rules.max_payload;
        let is_too_long = |Change { key, value }: &Change| {
            key.len() > MAP_NAME_BYTES || value.as_ref().is_some_and(|value| value.len() > max)
        };
        if effects.state.iter().chain(&effects.context).any(is_too_long) {
            return too_large(&format!(
                "a key is at most {MAP_NAME_BYTES} bytes, a value at most max_payload_bytes"
            ));
        }
        let follow_ups = || effects.follow_ups.iter().map(|job| job.payload.bytes.len());
        if follow_ups().any(|bytes| bytes > max) {
            return failed("a follow-up's payload exceeds max_payload_bytes");
        }
        if follow_ups().map(|bytes| bytes + FOLLOW_UP_OVERHEAD_BYTES).sum::<usize>() > FOLLOW_UPS_BYTES {
            return failed("the follow-ups' payloads exceed 65 MiB together");
        }
        if effects.held_bytes() > effects_bytes(rules.lane_state_max) {
            return too_large("the changes of one job would exceed what a commit may hold");
        }
        let bytes = bytes_after(&maps.state, maps.state_bytes, &effects.state);
        if bytes > rules.lane_state_max {
            return too_large("the lane's state would exceed kv.lane_state_max_bytes");
        }
        if !effects.context.is_empty() {
            let map = maps.traces.entry(job.spec.trace.id).or_insert_with(|| job.context.clone());
            if bytes_after(map, bytes_of(map), &effects.context) > CONTEXT_BYTES {
                return too_large("the trace's context would exceed 1 MiB");
            }
            apply(map, &effects.context);
        }
        if !effects.state.is_empty() {
            maps.version = Version(job.fence);
            maps.state_bytes = bytes;
            apply(&mut maps.state, &effects.state);
        }
        Ok(effects)
    }
}

fn bytes_after(map: &Entries, bytes: usize, changes: &[Change]) -> usize {
    changes.iter().fold(bytes, |bytes, Change { key, value }| {
        let less = map.get(key).map_or(0, |old| entry_bytes(key, old));
        (bytes + value.as_ref().map_or(0, |value| entry_bytes(key, value))).saturating_sub(less)
    })
}

/// Staged changes in key order, so that the same job commits the same bytes.
fn in_order(staged: Staged) -> Vec<Change> {
    let mut changes: Vec<Change> = staged.into_iter().map(|(key, value)| Change { key, value }).collect();
    changes.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    changes
}

fn apply(map: &mut Entries, changes: &[Change]) {
    for Change { key, value } in changes {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
}
