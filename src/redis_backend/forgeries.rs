//! What nobody of the deployment signed: counted, and said at most once a second for each kind, whatever a stranger does.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::monotonic_millis;
use crate::observe::event;
use crate::ports::Forged;

/// Of this process.
#[derive(Default)]
pub struct Forgeries {
    counts: [AtomicU64; Forged::ALL.len()],
    /// Those that park a handler's lane are said beside those that concern all.
    said: [[Seldom; 2]; Forged::ALL.len()],
}

/// Something that is said once a second at most.
#[derive(Default)]
pub struct Seldom {
    /// When it was said last, in ms; 0 is never.
    said_ms: AtomicU64,
}

impl Seldom {
    /// True if it is to be said now.
    pub fn is_due(&self) -> bool {
        let (now, before) = (monotonic_millis().max(1), self.said_ms.load(Relaxed));
        let is_due = before == 0 || now.saturating_sub(before) >= 1_000;
        if is_due {
            self.said_ms.store(now, Relaxed);
        }
        is_due
    }
}

impl Forgeries {
    /// One that this process has found by itself.
    pub fn found(&self, what: Forged, job: &str) {
        self.counts[what as usize].fetch_add(1, Relaxed);
        self.say(what, job, "", what.as_str());
    }

    /// One that is counted where it was found.
    pub fn say(&self, what: Forged, job: &str, handler: &str, cause: &str) {
        if self.said[what as usize][usize::from(!handler.is_empty())].is_due() {
            let name = if what == Forged::Job { "queue.forged" } else { "state.forged" };
            let said = event(log::Level::Error, name).field("job_id", job).field("handler", handler);
            said.field("cause", cause).emit();
        }
    }

    pub fn count(&self, what: Forged) -> u64 {
        self.counts[what as usize].load(Relaxed)
    }
}
