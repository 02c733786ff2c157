//! What the threads of an executor share beside the helm: runs that wait, outcomes that nobody has said yet, who is
//! parked, and how long jobs take of late.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::Thread;
use std::time::Duration;

use super::run::{Done, Run};
use crate::bell::lock;
use crate::clock::{Timestamp, micros};

/// Jobs that take less than this are not worth a wake-up of another thread each.
const SHORT_JOB_MICROS: u64 = 50;
/// Outcomes of short jobs are said together, none later than this.
const SAY_EVERY: Duration = Duration::from_micros(100);
/// While runs are begun and nobody leads, the mate looks this often; so a long job delays nobody by more.
pub const LOOK_EVERY: Duration = Duration::from_millis(1);
/// So long after the last run the mate parks for good.
const WATCH_FOR: Duration = Duration::from_millis(50);

/// See the module.
pub struct Deck {
    workers: usize,
    books: Mutex<State>,
    /// How long jobs take of late, in microseconds: a moving average.
    job_micros: AtomicU64,
}

#[derive(Default)]
struct State {
    /// In the order of their leases.
    runs: VecDeque<Run>,
    done: Vec<Done>,
    /// When the first of those was said.
    done_since: Timestamp,
    /// The last to park is woken first, so that few threads stay warm.
    parked: Vec<Thread>,
    /// Handlers under way, those whose run is over too.
    running: usize,
    /// A run was begun since the leader last took what was said: it may not know that run's deadline.
    has_begun: bool,
    /// Somebody has the helm and will look at all this before waiting.
    is_led: bool,
    /// Since when it is not, or when the last run was begun.
    left_at: Timestamp,
    /// Who looks after the helm while its last holder runs something.
    mate: Option<Thread>,
    is_over: bool,
}

/// What a thread does next.
pub enum Next {
    /// A run for it.
    Run(Run),
    /// Try the helm.
    Lead,
    /// Sleep until somebody wakes it.
    Park,
    /// Look again after this.
    Watch(Duration),
    End,
}

impl Deck {
    pub fn new(workers: usize) -> Deck {
        Deck { workers, books: Mutex::default(), job_micros: AtomicU64::new(u64::MAX / 16) }
    }

    /// True if jobs are so short of late that a thread's wake-up costs more than a job.
    pub fn jobs_are_short(&self) -> bool {
        self.job_micros.load(Ordering::Relaxed) < SHORT_JOB_MICROS
    }

    /// Jobs become "short" slowly and "long" at once: a wrong guess costs the others up to a millisecond.
    pub fn count_job(&self, took: Duration) {
        let (took, average) = (micros(took), self.job_micros.load(Ordering::Relaxed));
        let next = if took > average { took } else { average - (average - took).div_ceil(16) };
        self.job_micros.store(next, Ordering::Relaxed);
    }

    /// Runs for whoever is free, in their order.
    pub fn put_runs(&self, runs: impl IntoIterator<Item = Run>) {
        lock(&self.books).runs.extend(runs);
    }

    /// Takes back the runs for which there is no free worker: while jobs are long they should not wait here.
    pub fn take_waiting(&self) -> Vec<Run> {
        let mut state = lock(&self.books);
        let kept = state.startable(self.workers);
        state.runs.split_off(kept).into()
    }

    /// Takes back all that has not begun.
    pub fn take_all_waiting(&self) -> Vec<Run> {
        std::mem::take(&mut lock(&self.books).runs).into()
    }

    /// What was said since the last call.
    pub fn take_done(&self) -> Vec<Done> {
        let mut state = lock(&self.books);
        state.has_begun = false;
        std::mem::take(&mut state.done)
    }

    /// Something came of a run at that time; at its end its handler has returned. True if the leader should be woken for it.
    pub fn put_done(&self, done: Done, at: Timestamp) -> bool {
        let mut state = lock(&self.books);
        let is_end = matches!(done, Done::End { .. });
        state.running -= usize::from(is_end);
        let is_first = state.done.is_empty();
        if is_first {
            state.done_since = at;
        }
        state.done.push(done);
        state.is_led && (is_first || is_end || at.since(state.done_since) >= SAY_EVERY)
    }

    /// True if outcomes have waited for long enough, and nobody leads who would say them.
    pub fn must_say(&self, now: Timestamp) -> bool {
        lock(&self.books).must_say(now)
    }

    /// What the thread that asks does next: a run goes before the helm, unless outcomes have waited for too long.
    pub fn next(&self, me: &Thread, now: Timestamp) -> Next {
        let mut state = lock(&self.books);
        state.parked.retain(|thread| thread.id() != me.id());
        if state.is_over {
            return Next::End;
        }
        let is_mate = state.mate.as_ref().is_some_and(|mate| mate.id() == me.id());
        if !state.must_say(now)
            && let Some(run) = state.begin_run(self.workers, now)
        {
            state.mate.take_if(|_| is_mate);
            state.appoint_mate();
            return Next::Run(run);
        }
        if is_mate {
            return state.watch(now, self);
        }
        if !state.is_led {
            return Next::Lead;
        }
        state.parked.push(me.clone());
        Next::Park
    }

    /// Somebody has the helm, or not any more.
    pub fn set_led(&self, is_led: bool, now: Timestamp) {
        let mut state = lock(&self.books);
        (state.is_led, state.left_at) = (is_led, now);
        state.appoint_mate();
    }

    /// What the leader does after a turn: while jobs are short it leaves the helm and runs one itself; else it wakes a
    /// thread for each, and stays.
    pub fn run_of_leader(&self, now: Timestamp) -> Option<Run> {
        let mut state = lock(&self.books);
        if self.jobs_are_short() {
            let run = state.begin_run(self.workers, now)?;
            (state.is_led, state.left_at) = (false, now);
            state.appoint_mate();
            return Some(run);
        }
        let wanted = state.startable(self.workers);
        let others = state.parked.len().saturating_sub(wanted);
        let mut woken = state.parked.split_off(others);
        if woken.len() < wanted {
            // It looks by itself, but not at once.
            woken.extend(state.mate.clone());
        }
        // Not under the lock, which is the first thing that each of them wants.
        drop(state);
        woken.iter().rev().for_each(Thread::unpark);
        None
    }

    /// How long the leader may wait: not long where runs wait behind jobs that are taken for short, or one has begun whose
    /// deadline it has not heard of.
    pub fn rest(&self, most: Duration) -> Duration {
        let state = lock(&self.books);
        if state.runs.is_empty() && !state.has_begun { most } else { most.min(LOOK_EVERY) }
    }

    /// Have jobs behind which runs wait turned out long?
    pub fn look(&self, now: Timestamp) {
        let state = lock(&self.books);
        let since = now.since(state.left_at);
        let is_long = !state.runs.is_empty() && state.running >= self.workers && since >= LOOK_EVERY;
        if is_long {
            self.count_job(since);
        }
    }

    /// All threads end, each after what it is at.
    pub fn end(&self) {
        let mut state = lock(&self.books);
        state.is_over = true;
        // Whoever watches looks again by itself.
        state.parked.drain(..).for_each(|thread| thread.unpark());
    }

    pub fn is_over(&self) -> bool {
        lock(&self.books).is_over
    }
}

impl State {
    /// Runs for which there is a free worker.
    fn startable(&self, workers: usize) -> usize {
        self.runs.len().min(workers.saturating_sub(self.running))
    }

    fn begin_run(&mut self, workers: usize, now: Timestamp) -> Option<Run> {
        if self.running >= workers {
            return None;
        }
        let run = self.runs.pop_front()?;
        self.running += 1;
        self.has_begun = true;
        self.left_at = now;
        Some(run)
    }

    /// Nobody leads while somebody runs: one of the parked looks after the helm.
    fn appoint_mate(&mut self) {
        if !self.is_led && self.mate.is_none() {
            self.mate = self.parked.pop();
            self.mate.iter().for_each(Thread::unpark);
        }
    }

    fn must_say(&self, now: Timestamp) -> bool {
        !self.is_led && !self.done.is_empty() && now.since(self.done_since) >= SAY_EVERY
    }

    /// What the mate does.
    fn watch(&mut self, now: Timestamp, deck: &Deck) -> Next {
        let since = now.since(self.left_at);
        if since < if self.is_led { WATCH_FOR } else { LOOK_EVERY } {
            return Next::Watch(if self.is_led { LOOK_EVERY } else { LOOK_EVERY.saturating_sub(since) });
        }
        self.mate = None;
        if !self.is_led {
            // What was taken for a short job is a long one.
            deck.count_job(since);
        }
        Next::Lead
    }
}
