//! A run: a lease on its way through a worker; what a worker says of it; and how its end is told to whoever runs it, and
//! what it has begun, and how far that is, to whoever keeps the books.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::bell::{Bell, lock};
use crate::clock::{Timestamp, millis};
use crate::job::{Entries, JobId, Outcome, Progress, Version, entry_bytes};
use crate::ports::{LeaseId, LeasedJob};

/// See the module.
pub struct Run {
    pub lease: LeaseId,
    pub handler: Arc<str>,
    /// In order.
    pub jobs: Vec<LeasedJob>,
    pub maps: RunMaps,
    /// Shared with the books.
    pub stop: Arc<RunStop>,
}

/// The maps of a run: the lane's state, and the context of each trace in it.
#[derive(Debug, Default)]
pub struct RunMaps {
    /// Names the state; grows with each committed change.
    pub version: Version,
    /// The lane's state as of the last success.
    pub state: Entries,
    pub state_bytes: usize,
    /// By trace, as of the claim, with this run's own changes.
    pub(super) traces: HashMap<[u8; 16], Entries>,
}

impl RunMaps {
    pub fn new(version: Version, state: Entries) -> RunMaps {
        RunMaps { version, state_bytes: bytes_of(&state), state, traces: HashMap::new() }
    }
}

pub(super) fn bytes_of(map: &Entries) -> usize {
    map.iter().map(|(key, value)| entry_bytes(key, value)).sum()
}

/// What a worker says.
pub enum Done {
    /// What came of one job.
    Outcome {
        lease: LeaseId,
        job: JobId,
        outcome: Outcome,
        /// What its handler said of it, and nobody has told the books.
        progress: Option<Progress>,
        /// The state version that the handler saw.
        builds_on: Version,
        /// When it ended: the next job of the run starts then.
        at: Timestamp,
    },
    /// The run is over and the worker free; the maps as the run left them.
    End { lease: LeaseId, maps: RunMaps },
}

/// Shared between the books and the worker that has the run.
#[derive(Debug, Default)]
pub struct RunStop {
    ended: AtomicBool,
    /// When its first job started, in microseconds; 0 before.
    started: AtomicU64,
    /// How long its handler may take to stop, in ms.
    stops_within: AtomicU64,
    has_progress: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    left_out: Vec<usize>,
    /// Jobs that have begun, the first of the run first.
    begun: usize,
    is_last: bool,
    /// Who waits for the end.
    bell: Option<Bell>,
    /// The last that the handler of this job said of it, unless that was taken.
    progress: Option<(JobId, Progress)>,
}

impl RunStop {
    /// Nothing of the run takes effect any more: its handler should stop, no other job starts.
    pub fn end(&self) {
        let state = lock(&self.state);
        self.ended.store(true, Ordering::SeqCst);
        state.bell.iter().for_each(Bell::ring);
        drop(state);
        self.changed.notify_all();
    }

    /// The bell rings when the run ends; its handler takes so long at most to stop then.
    pub(super) fn tell(&self, bell: Bell, stops_within: Duration) {
        lock(&self.state).bell = Some(bell);
        self.stops_within.store(millis(stops_within), Ordering::SeqCst);
    }

    /// How long the handler may take to stop.
    pub fn stops_within(&self) -> Duration {
        Duration::from_millis(self.stops_within.load(Ordering::SeqCst))
    }

    /// This job is so far. True: what was said before was taken, so that the books should look again.
    pub fn set_progress(&self, job: JobId, progress: Progress) -> bool {
        let mut state = lock(&self.state);
        self.has_progress.store(true, Ordering::SeqCst);
        state.progress.replace((job, progress)).is_none()
    }

    pub fn has_progress(&self) -> bool {
        self.has_progress.load(Ordering::SeqCst)
    }

    pub fn take_progress(&self) -> Option<(JobId, Progress)> {
        let mut state = self.has_progress().then(|| lock(&self.state))?;
        self.has_progress.store(false, Ordering::SeqCst);
        state.progress.take()
    }

    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// A worker has taken the run.
    pub fn start(&self, at: Timestamp) {
        let _state = lock(&self.state);
        self.started.store(at.0, Ordering::SeqCst);
    }

    /// When a worker took the run; `None` while it waits for one.
    pub fn started(&self) -> Option<Timestamp> {
        Some(Timestamp(self.started.load(Ordering::SeqCst))).filter(|at| at.0 > 0)
    }

    /// The job at this place of the run should not start. False: it has started already.
    #[must_use]
    pub fn leave_out(&self, place: usize) -> bool {
        let mut state = lock(&self.state);
        let in_time = place >= state.begun;
        state.left_out.extend(in_time.then_some(place));
        in_time
    }

    /// The running job is the run's last. True: none runs, and none will.
    #[must_use]
    pub fn stop_after_this(&self) -> bool {
        let mut state = lock(&self.state);
        state.is_last = true;
        let is_unbegun = self.started().is_none();
        self.ended.fetch_or(is_unbegun, Ordering::SeqCst);
        is_unbegun
    }

    /// The job at this place is about to start. False: it is left out.
    pub(super) fn begin(&self, place: usize) -> bool {
        let mut state = lock(&self.state);
        let is_over = self.is_ended() || (state.is_last && state.begun > 0);
        let begins = !is_over && !state.left_out.contains(&place);
        state.begun = if begins { place + 1 } else { state.begun };
        begins
    }

    /// Waits; false as soon as the run has ended.
    pub(super) fn sleep(&self, duration: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(lock(&self.state), duration, |_| !self.is_ended());
        drop(waited);
        !self.is_ended()
    }
}
