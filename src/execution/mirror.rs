//! The mixed set of backends: the queue elsewhere, lane states and contexts in a store of their own. A consumer around
//! another one: maps are read with the lease, and changes are written before the outcome is told.
//!
//! The weaker promise that follows: when an executor is lost between the two, its job runs again on a state that it has
//! changed already.

use std::sync::Arc;
use std::time::Duration;

use crate::job::{JobId, Verdict, context_map, state_map};
use crate::ports::{
    BackendError, Commit, CommitResult, Consumer, KeyValue, Lease, LeaseRef, ReleaseReason, StateAt, Step,
};

/// See the module. Without a store it is the other consumer.
pub struct Mirror<C> {
    inner: C,
    store: Option<Arc<dyn KeyValue>>,
    context_ttl: Duration,
    /// Of each lease that came: its lane's map, and its jobs' contexts.
    maps: Vec<Maps>,
    /// Outcomes whose changes could not be written yet, and all behind them: their order is kept.
    unwritten: Vec<Commit>,
    is_away: bool,
}

struct Maps {
    lease: u64,
    state: String,
    contexts: Vec<(JobId, String)>,
}

impl<C: Consumer> Mirror<C> {
    pub fn new(inner: C, store: Option<Arc<dyn KeyValue>>, context_ttl: Duration) -> Mirror<C> {
        Mirror { inner, store, context_ttl, maps: Vec::new(), unwritten: Vec::new(), is_away: false }
    }

    /// The consumer inside, for those who do its I/O.
    pub fn inner(&mut self) -> &mut C {
        &mut self.inner
    }

    fn write(&self, store: &dyn KeyValue, commit: &Commit) -> Result<(), BackendError> {
        let Verdict::Succeeded(_, effects) = &commit.verdict else { return Ok(()) };
        let Some(maps) = self.maps.iter().find(|maps| maps.lease == commit.lease.number) else {
            return Ok(());
        };
        if !effects.state.is_empty() {
            store.apply(&maps.state, &effects.state, None)?;
        }
        let context = maps.contexts.iter().find(|(job, _)| *job == commit.job);
        if let Some((_, context)) = context.filter(|_| !effects.context.is_empty()) {
            store.apply(context, &effects.context, Some(self.context_ttl))?;
        }
        Ok(())
    }

    /// What the store knows takes the place of what the queue's own broker does.
    fn read(&mut self, store: &dyn KeyValue, lease: &mut Lease) -> Result<(), BackendError> {
        let key = lease.jobs.first().and_then(|job| job.spec.ordering_key.clone());
        let state = state_map(&lease.handler, key.as_deref());
        if let StateAt::Whole(_, entries) = &mut lease.state {
            *entries = store.load(&state, None)?;
        }
        let mut contexts = Vec::new();
        for job in &mut lease.jobs {
            let context = context_map(&job.spec.owner, &job.spec.trace);
            job.context = store.load(&context, Some(self.context_ttl))?;
            contexts.push((job.spec.id, context));
        }
        self.maps.push(Maps { lease: lease.lease.number, state, contexts });
        Ok(())
    }

    fn said(&mut self, failure: Option<&BackendError>) {
        match failure {
            Some(error) if !self.is_away => log::warn!("states and contexts cannot be reached: {error}"),
            None if self.is_away => log::info!("states and contexts can be reached again"),
            Some(_) | None => {}
        }
        self.is_away = failure.is_some();
    }
}

impl<C: Consumer> Consumer for Mirror<C> {
    fn step(&mut self, commits: Vec<Commit>, room: usize) -> Result<Step, BackendError> {
        let Some(store) = self.store.clone() else { return self.inner.step(commits, room) };
        let mut waiting = std::mem::take(&mut self.unwritten);
        waiting.extend(commits);
        let mut failure = None;
        let written = waiting.iter().take_while(|commit| {
            failure = self.write(&*store, commit).err();
            failure.is_none()
        });
        let written = written.count();
        self.unwritten = waiting.split_off(written);
        let room = if failure.is_some() { 0 } else { room };
        let mut step = match self.inner.step(waiting, room) {
            Ok(step) => step,
            Err(error) => {
                self.unwritten.clear();
                self.maps.clear();
                return Err(error);
            }
        };
        let mut leases = Vec::new();
        for mut lease in std::mem::take(&mut step.leases) {
            match self.read(&*store, &mut lease) {
                Ok(()) => leases.push(lease),
                Err(error) => {
                    failure = Some(error);
                    self.inner.release(lease.lease, ReleaseReason::NeedState)?;
                }
            }
        }
        step.leases = leases;
        // A run's last outcome was judged: nobody asks for its maps again.
        for answer in &step.results {
            self.maps.retain(|maps| {
                maps.lease != answer.lease
                    || maps.contexts.last().is_some_and(|(job, _)| *job != answer.job)
                        && answer.result != CommitResult::Fenced
            });
        }
        self.said(failure.as_ref());
        Ok(step)
    }

    fn release(&mut self, lease: LeaseRef, reason: ReleaseReason) -> Result<(), BackendError> {
        self.maps.retain(|maps| maps.lease != lease.number);
        self.inner.release(lease, reason)
    }

    fn extend(&mut self) -> Result<(), BackendError> {
        self.inner.extend()
    }

    fn owed(&self) -> Vec<JobId> {
        self.unwritten.iter().map(|commit| commit.job).chain(self.inner.owed()).collect()
    }
}
