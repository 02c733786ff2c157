//! What nobody of the deployment signed: counted, and said at most once a second for each kind, whatever a stranger does.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::monotonic_millis;
use crate::observe::event;
use crate::ports::Forged;

/// Of this process.
#[derive(Default)]
pub(super) struct Forgeries {
    counts: [AtomicU64; Forged::ALL.len()],
    /// When each was said last, in ms; 0 is never.
    said_ms: [AtomicU64; Forged::ALL.len()],
}

impl Forgeries {
    /// One that this process has found by itself.
    pub(super) fn found(&self, what: Forged, job: &str) {
        self.counts[what as usize].fetch_add(1, Relaxed);
        self.say(what, job, "", what.as_str());
    }

    /// One that is counted where it was found.
    pub(super) fn say(&self, what: Forged, job: &str, handler: &str, cause: &str) {
        let (now_ms, said_ms) = (monotonic_millis().max(1), &self.said_ms[what as usize]);
        let before = said_ms.load(Relaxed);
        if before == 0 || now_ms.saturating_sub(before) >= 1_000 {
            said_ms.store(now_ms, Relaxed);
            let name = if what == Forged::Job { "queue.forged" } else { "state.forged" };
            let said = event(log::Level::Error, name).field("job_id", job).field("handler", handler);
            said.field("cause", cause).emit();
        }
    }

    pub(super) fn count(&self, what: Forged) -> u64 {
        self.counts[what as usize].load(Relaxed)
    }
}
