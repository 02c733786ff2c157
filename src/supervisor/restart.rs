//! When a child that ended is started again. Pure.

use std::collections::VecDeque;

use crate::config::Restart;

/// One child's history.
#[derive(Debug, Default)]
pub struct History {
    /// Ends before readiness, in ms.
    failures: VecDeque<u64>,
}

/// What a child was when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It served, or asked to be replaced.
    Ready,
    /// It did not serve yet, and somebody killed it (SIGKILL): that says nothing about the child.
    Killed,
    /// It did not serve yet.
    Unready,
}

/// What to do about an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Start it again at this time, in ms.
    Again(u64),
    /// Stop everything.
    GiveUp,
}

impl History {
    /// It became ready: what was before does not count any more.
    pub fn ready(&mut self) {
        self.failures.clear();
    }

    /// It ended. Only its own ends before readiness count; a running child's end is followed at once.
    pub fn ended(&mut self, how: How, policy: &Restart, now_ms: u64) -> Verdict {
        if policy.policy == "never" {
            return Verdict::GiveUp;
        }
        match how {
            How::Ready => return Verdict::Again(now_ms),
            How::Killed => return Verdict::Again(now_ms + policy.backoff_ms),
            How::Unready => {}
        }
        while self.failures.front().is_some_and(|at| at + policy.window_ms < now_ms) {
            self.failures.pop_front();
        }
        if self.failures.len() >= policy.max_restarts {
            return Verdict::GiveUp;
        }
        self.failures.push_back(now_ms);
        let doublings = u32::try_from(self.failures.len() - 1).unwrap_or(u32::MAX).min(16);
        Verdict::Again(now_ms + policy.backoff_ms.saturating_mul(1 << doublings).min(policy.window_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str) -> Restart {
        Restart { policy: name.into(), max_restarts: 3, window_ms: 1_000, backoff_ms: 100 }
    }

    #[test]
    fn ends_before_readiness_back_off_and_then_stop_everything() {
        let mut history = History::default();
        let on_failure = policy("on_failure");
        assert_eq!(history.ended(How::Ready, &on_failure, 0), Verdict::Again(0));
        assert_eq!(history.ended(How::Unready, &on_failure, 0), Verdict::Again(100));
        assert_eq!(history.ended(How::Unready, &on_failure, 100), Verdict::Again(300));
        assert_eq!(history.ended(How::Unready, &on_failure, 300), Verdict::Again(700));
        assert_eq!(history.ended(How::Unready, &on_failure, 700), Verdict::GiveUp);
        assert_eq!(
            history.ended(How::Killed, &on_failure, 700),
            Verdict::Again(800),
            "no failure of its own"
        );
        history.ready();
        assert_eq!(history.ended(How::Unready, &on_failure, 800), Verdict::Again(900));
        assert_eq!(
            history.ended(How::Unready, &on_failure, 5_000),
            Verdict::Again(5_100),
            "the window has passed"
        );
        assert_eq!(history.ended(How::Ready, &policy("never"), 0), Verdict::GiveUp);
    }
}
