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
        const WEIGH_EVERY_MS: u64 = 500;
        if self.is_said {
            return None;
        }
        let group = &self.group;
        let why = if health == Health::Stuck {
            Leaving::Stuck
        } else if group.max_jobs > 0 && finished >= group.max_jobs {
            Leaving::MaxJobs
        } else if group.max_rss_mb > 0 && now_ms >= self.weighed_ms + WEIGH_EVERY_MS {
            self.weighed_ms = now_ms;
            hygiene::resident_mb().filter(|mb| *mb > group.max_rss_mb).map(|_| Leaving::MaxRss)?
        } else {
            return None;
        };
        self.is_said = true;
        log::info!("{}: this process finishes its jobs and is replaced", why.as_str());
        Some(why)
    }
}
