//! Idempotency keys: kept for a time of their own, however soon the records of their jobs go.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::entry::Entry;
use crate::clock::Timestamp;
use crate::job::{IdMap, JobId};
pub(super) use crate::journal::facts::{Bound, Scope};

type Jobs = IdMap<JobId, Box<Entry>>;

/// All keys. Each lives equally long from its first use, so they go in the order in which they came; one whose job has not
/// ended is kept for as long again.
#[derive(Debug)]
pub(super) struct Keys {
    bound: HashMap<Scope, Bound>,
    order: VecDeque<(Timestamp, Scope)>,
    ttl: Duration,
    most: usize,
    /// How many went before their time.
    pub(super) evicted: u64,
    /// When that was last said.
    said_at: Option<Timestamp>,
    /// `Some` iff there is a journal: keys that it has to be told.
    pub(super) changed: Option<Vec<Scope>>,
}

impl Keys {
    pub(super) fn new(ttl: Duration, most: usize) -> Keys {
        let (bound, order) = Default::default();
        Keys { bound, order, ttl, most, evicted: 0, said_at: None, changed: None }
    }

    pub(super) fn len(&self) -> usize {
        self.bound.len()
    }

    pub(super) fn scopes(&self) -> impl Iterator<Item = &Scope> {
        self.bound.keys()
    }

    /// What the key is bound to.
    pub(super) fn get(&self, scope: &Scope) -> Option<Bound> {
        self.bound.get(scope).copied()
    }

    /// Binds a key that is not bound. True: it took the place of the oldest one whose job has ended, which should be said.
    pub(super) fn bind(
        &mut self,
        scope: Scope,
        job: JobId,
        fingerprint: [u8; 32],
        now: Timestamp,
        jobs: &Jobs,
    ) -> bool {
        const SAY_EVERY: Duration = Duration::from_secs(60);
        let is_evicted = self.bound.len() >= self.most && self.drop_oldest(now, jobs);
        self.keep(scope, Bound { job, fingerprint, until: now.plus(self.ttl) });
        if !is_evicted {
            return false;
        }
        self.evicted += 1;
        let is_to_be_said = self.said_at.is_none_or(|at| now.since(at) >= SAY_EVERY);
        self.said_at = if is_to_be_said { Some(now) } else { self.said_at };
        is_to_be_said
    }

    /// The journal is to be told of this key.
    pub(super) fn touch(&mut self, scope: &Scope) {
        self.changed.iter_mut().for_each(|changed| changed.push(scope.clone()));
    }

    fn keep(&mut self, scope: Scope, bound: Bound) {
        self.touch(&scope);
        self.restore(scope, bound);
    }

    /// Puts back what a journal has kept, oldest first.
    pub(super) fn restore(&mut self, scope: Scope, bound: Bound) {
        self.order.push_back((bound.until, scope.clone()));
        self.bound.insert(scope, bound);
    }

    /// Frees those that are bound to one of these.
    pub(super) fn unbind(&mut self, jobs: &[JobId]) {
        let freed = self.bound.extract_if(|_, bound| jobs.contains(&bound.job)).map(|(scope, _)| scope);
        let freed: Vec<Scope> = freed.collect();
        self.order.retain(|(_, scope)| !freed.contains(scope));
        self.changed.iter_mut().for_each(|changed| changed.extend(freed.iter().cloned()));
    }

    /// Frees those whose time is up and whose job has ended.
    pub(super) fn expire(&mut self, now: Timestamp, jobs: &Jobs) {
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            self.free_first(now, jobs);
        }
    }

    /// A key whose job has not ended is kept, beyond the bound too: there are no more of those than jobs may wait and run.
    fn drop_oldest(&mut self, now: Timestamp, jobs: &Jobs) -> bool {
        const LOOKS: usize = 64;
        (0..LOOKS.min(self.order.len())).any(|_| self.free_first(now, jobs))
    }

    /// Frees the first one, unless its job has not ended: then it is kept for as long again.
    fn free_first(&mut self, now: Timestamp, jobs: &Jobs) -> bool {
        let Some((_, scope)) = self.order.pop_front() else { return false };
        let is_live = |id| jobs.get(id).is_some_and(|entry| !entry.job.record.status.is_terminal());
        match self.bound.remove(&scope) {
            Some(bound) if is_live(&bound.job) => {
                self.keep(scope, Bound { until: now.plus(self.ttl), ..bound });
                false
            }
            bound => {
                self.touch(&scope);
                bound.is_some()
            }
        }
    }
}
