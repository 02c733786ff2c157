//! What bounds a run, and how its end is told to whoever runs it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::bell::lock;
use crate::clock::Timestamp;
use crate::job::JobId;

/// What bounds the executor.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A result, a value, a follow-up's payload.
    pub max_payload: usize,
    /// A lane's state; cached states of all lanes are bounded by twice that.
    pub lane_state_max: usize,
    /// How long a handler may ignore that its run has ended.
    pub grace: Duration,
    /// Leases are renewed after a third of this.
    pub visibility: Duration,
}

/// The core's hold on a run that a worker has.
#[derive(Debug, Default)]
pub struct RunControl {
    ended: AtomicBool,
    /// When its first job started, in microseconds; 0 before.
    started: AtomicU64,
    state: Mutex<ControlState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct ControlState {
    left_out: Vec<JobId>,
    begun: Vec<JobId>,
    last: bool,
}

pub(super) enum Begin {
    Go,
    LeaveOut,
    Stop,
}

impl RunControl {
    /// Nothing of the run takes effect any more: its handler should stop, no other job starts.
    pub fn end(&self) {
        let state = lock(&self.state);
        self.ended.store(true, Ordering::SeqCst);
        drop(state);
        self.changed.notify_all();
    }

    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// A worker has taken the run.
    pub fn start(&self, at: Timestamp) {
        self.started.store(at.0, Ordering::SeqCst);
    }

    /// When a worker took the run; `None` while it waits for one.
    pub fn started(&self) -> Option<Timestamp> {
        Some(Timestamp(self.started.load(Ordering::SeqCst))).filter(|at| at.0 > 0)
    }

    /// This later job of the run should not start. False: it has started already.
    #[must_use]
    pub fn leave_out(&self, job: JobId) -> bool {
        let mut state = lock(&self.state);
        if state.begun.contains(&job) {
            return false;
        }
        state.left_out.push(job);
        true
    }

    /// The running job is the run's last.
    pub fn stop_after_this(&self) {
        lock(&self.state).last = true;
    }

    pub(super) fn begin(&self, job: JobId, is_first: bool) -> Begin {
        let mut state = lock(&self.state);
        if self.is_ended() || (state.last && !is_first) {
            Begin::Stop
        } else if state.left_out.contains(&job) {
            Begin::LeaveOut
        } else {
            state.begun.push(job);
            Begin::Go
        }
    }

    /// Waits; false as soon as the run has ended.
    pub(super) fn sleep(&self, duration: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(lock(&self.state), duration, |_| !self.is_ended());
        drop(waited);
        !self.is_ended()
    }
}
