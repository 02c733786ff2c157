//! [`Seat`]: what a broker asks of the process that it sits in.

use crate::clock::Timestamp;
use crate::job::JobId;

/// Time, and a clean end.
pub trait Seat: Send + Sync {
    /// Does what time alone does, and says when to call again at the latest; `None`: it looks after time by itself. So many
    /// callers wait in this process.
    fn tick(&self, callers: usize) -> Option<Timestamp>;

    /// All that belongs together has been said: what waits for it to be written may be written.
    fn flush(&self) {}

    /// The service stops: said again until it is over; `callers_wait` while somebody here waits for a job. True once
    /// nothing runs for this process and nothing will before `deadline`.
    fn drain(&self, callers_wait: bool, deadline: Timestamp) -> bool;

    /// The drain's time is over: what still runs for this process, or is lost with it, is cut off and named.
    fn cut_off(&self) -> Vec<JobId>;

    /// The broker's name for this process, if it has one: who takes its place tells it to the broker.
    fn name(&self) -> String {
        String::new()
    }

    /// This process has taken the place of that one, whose leases are over.
    fn succeeds(&self, _predecessor: &str) {}

    /// This process ends: what becomes of its connections from now on is no fault of those who have them.
    fn close(&self) {}

    /// False once the seat cannot do its work any more, which is a bug of ours: the process should be replaced.
    fn is_sound(&self) -> bool {
        true
    }
}
