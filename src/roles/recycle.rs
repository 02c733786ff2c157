//! When an executor process should be replaced: it has done its jobs, holds too much memory, or is stuck.

use crate::config::ProcessGroup;
use crate::execution::Health;
use crate::process::control_socket::Leaving;
use crate::process::hygiene;

/// See the module.
pub(super) struct RecyclePolicy {
    group: ProcessGroup,
    /// When it last looked how much memory it holds.
    weighed_ms: u64,
    /// It has been said.
    is_said: bool,
}

impl RecyclePolicy {
    pub(super) fn new(group: ProcessGroup) -> RecyclePolicy {
        RecyclePolicy { group, weighed_ms: 0, is_said: false }
    }

    /// Why this process should be replaced, if it should; said once.
    pub(super) fn asks(&mut self, health: Health, finished: u64, now_ms: u64) -> Option<Leaving> {
        if self.is_said {
            return None;
        }
        let why = self.is_due(health, finished, now_ms)?;
        log::info!("{}: this process finishes its jobs and is replaced", why.as_str());
        self.is_said = true;
        Some(why)
    }

    fn is_due(&mut self, health: Health, finished: u64, now_ms: u64) -> Option<Leaving> {
        const WEIGH_EVERY_MS: u64 = 500;
        if health == Health::Stuck {
            return Some(Leaving::Stuck);
        }
        if self.group.max_jobs > 0 && finished >= self.group.max_jobs {
            return Some(Leaving::MaxJobs);
        }
        if self.group.max_rss_mb > 0 && now_ms >= self.weighed_ms + WEIGH_EVERY_MS {
            self.weighed_ms = now_ms;
            let is_heavy = hygiene::resident_mb().is_some_and(|mb| mb > self.group.max_rss_mb);
            return is_heavy.then_some(Leaving::MaxRss);
        }
        None
    }
}
