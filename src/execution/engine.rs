//! The engine: core, workers and consumer in one turn of a loop. Thin: every decision is the core's.

use super::core::{Core, LOOK_EVERY, Requests, Run};
use super::run::Limits;
use super::worker::WorkerPool;
use crate::clock::Timestamp;
use crate::job::JobId;
use crate::ports::{BackendError, Consumer};

/// One process's execution of one group.
pub struct Engine<C> {
    core: Core,
    pool: WorkerPool,
    consumer: C,
    limits: Limits,
    renew_at: Timestamp,
    finished: u64,
}

/// How the engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It takes jobs.
    Working,
    /// Handlers ignore that their time is over: the process should be replaced.
    Stuck,
    /// It was told to stop, nothing of its runs is left, and the broker knows what came of them.
    Drained,
}

impl<C: Consumer> Engine<C> {
    pub fn new(pool: WorkerPool, workers: usize, consumer: C, limits: Limits) -> Engine<C> {
        let (core, renew_at) = (Core::new(workers, limits), Timestamp::default());
        Engine { core, pool, consumer, limits, renew_at, finished: 0 }
    }

    /// The consumer, for those who do its I/O.
    pub fn consumer(&mut self) -> &mut C {
        &mut self.consumer
    }

    /// Does all there is to do now; says when to come again at the latest. An error: the broker is lost, and every
    /// run has been abandoned.
    pub fn turn(&mut self, now: Timestamp) -> Result<Option<Timestamp>, BackendError> {
        let answer = self.try_turn(now);
        if answer.is_err() {
            self.core.abandon(now);
        }
        answer
    }

    fn try_turn(&mut self, now: Timestamp) -> Result<Option<Timestamp>, BackendError> {
        let waits = self.pool.nudge();
        for done in self.pool.take() {
            self.core.on_done(done);
        }
        self.core.on_time(now);
        if now >= self.renew_at {
            self.consumer.extend()?;
            self.renew_at = now.plus(self.limits.visibility / 3);
        }
        let mut requests = self.core.take_requests();
        let mut pushed = false;
        loop {
            let Requests { commits, releases } = requests;
            self.finished += commits.len() as u64;
            let step = self.consumer.step(commits, self.core.room(self.pool.jobs_are_short()))?;
            for (lease, reason) in releases {
                self.consumer.release(lease, reason)?;
            }
            step.results.into_iter().for_each(|answer| self.core.on_answer(answer, now));
            let runs: Vec<Run> =
                step.leases.into_iter().filter_map(|lease| self.core.on_lease(lease)).collect();
            step.revoked.into_iter().for_each(|revoked| self.core.on_revoked(revoked, now));
            if !runs.is_empty() {
                pushed = true;
                self.pool.push(runs);
            }
            requests = self.core.take_requests();
            if requests.is_empty() {
                break;
            }
        }
        let look = (waits || pushed || self.core.has_long_runs()).then(|| now.plus(LOOK_EVERY));
        Ok([self.core.next_deadline(), look, Some(self.renew_at)].into_iter().flatten().min())
    }

    pub fn health(&self, now: Timestamp) -> Health {
        if self.core.is_drained() && self.consumer.owed().is_empty() {
            Health::Drained
        } else if self.core.is_stuck(now) {
            Health::Stuck
        } else {
            Health::Working
        }
    }

    /// No more leases; what runs finishes, the rest is given back.
    pub fn drain(&mut self, now: Timestamp) {
        self.core.drain(now);
    }

    /// Gives back what still runs; the jobs whose deliveries are cut off.
    pub fn cut_off(&mut self, now: Timestamp) -> Vec<JobId> {
        self.core.cut_off(now)
    }

    /// Jobs that run here or are the next to, and those whose outcome the broker may not know.
    pub fn open(&self) -> Vec<JobId> {
        self.core.live().chain(self.consumer.owed()).collect()
    }

    /// Workers that have a run.
    pub fn busy(&self) -> usize {
        self.core.busy()
    }

    /// Deliveries that came to an outcome here.
    pub fn finished(&self) -> u64 {
        self.finished
    }
}
