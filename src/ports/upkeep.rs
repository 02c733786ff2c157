//! [`Upkeep`]: what a broker in this process asks of its host: time, and a clean end.

use crate::clock::Timestamp;
use crate::job::JobId;

/// A broker that has no process of its own.
pub trait Upkeep: Send + Sync {
    /// Does what time alone does, and says when to call again at the latest; `None`: after the next event.
    fn tick(&self) -> Option<Timestamp>;

    /// True once nothing runs and nothing can start before `deadline`.
    fn is_idle(&self, deadline: Timestamp) -> bool;

    /// Jobs that have not ended.
    fn unfinished(&self) -> Vec<JobId>;
}
