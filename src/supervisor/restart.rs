//! When a child that ended is started again. Pure.

use std::collections::VecDeque;

use crate::config::Restart;

/// One child's history.
#[derive(Debug, Default)]
pub struct History {
    /// Its own ends, in ms, and whether it had worked before.
    failures: VecDeque<(u64, Work)>,
}

/// What a child had done when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It had begun a job: the end may be the job's fault.
    Begun,
    /// Nothing: it would end again.
    None,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Somebody killed it (SIGKILL): that says nothing about the child.
    Killed,
    /// By itself, or since it did not answer.
    Failed(Work),
}

impl History {
    /// It ended: when it is started again, in ms; `None`: never, and everything stops. Being ready once proves nothing: only the ends within a window count, each of them delays the next start,
    /// and too many that no job can have caused are the end.
    #[must_use]
    pub fn ended(&mut self, how: How, policy: &Restart, now_ms: u64) -> Option<u64> {
        let work = match how {
            _ if policy.policy == "never" => return None,
            How::Killed => return Some(now_ms),
            How::Failed(work) => work,
        };
        self.failures.retain(|(at_ms, _)| at_ms + policy.window_ms >= now_ms);
        self.failures.push_back((now_ms, work));
        let own = self.failures.iter().filter(|(_, work)| *work == Work::None).count();
        if own > policy.max_restarts {
            return None;
        }
        let doublings = u32::try_from(self.failures.len() - 1).unwrap_or(u32::MAX).min(16);
        Some(now_ms + policy.backoff_ms.saturating_mul(1 << doublings).min(policy.window_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str) -> Restart {
        Restart { policy: name.into(), max_restarts: 3, window_ms: 1_000, backoff_ms: 100 }
    }

    #[test]
    fn ends_of_its_own_back_off_and_then_stop_everything_ready_or_not() {
        let mut history = History::default();
        let on_failure = policy("on_failure");
        let failed = How::Failed(Work::None);
        for (now_ms, verdict) in
            [(0, Some(100)), (100, Some(300)), (300, Some(700)), (700, None), (5_000, Some(5_100))]
        {
            assert_eq!(history.ended(failed, &on_failure, now_ms), verdict, "at {now_ms}");
        }
        assert_eq!(history.ended(How::Killed, &on_failure, 5_000), Some(5_000));
        assert_eq!(history.ended(failed, &policy("never"), 0), None);
    }

    #[test]
    fn ends_that_a_job_may_have_caused_back_off_and_never_stop_everything() {
        let (mut history, on_failure) = (History::default(), policy("on_failure"));
        let verdicts: Vec<Option<u64>> =
            (0..6).map(|at| history.ended(How::Failed(Work::Begun), &on_failure, at)).collect();
        assert_eq!(verdicts[0], Some(100));
        assert_eq!(verdicts[5], Some(5 + 1_000), "no longer than the window");
        assert_eq!(history.ended(How::Failed(Work::None), &on_failure, 6), Some(6 + 1_000));
    }
}
