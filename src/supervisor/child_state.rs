//! A child's life as a table: (state, event) to (state, action). Pure.
//!
//! ```text
//!   state    | Due   | Ready   | Ended                | Silent       | Leaves          | Stop
//!   ---------+-------+---------+----------------------+--------------+-----------------+------------------
//!   Waiting  | Spawn |         | Waiting or GiveUp    |              |                 | Gone
//!   Starting |       | Serving | Waiting or GiveUp    | Ending, Term | Waiting, Aside  | Stopping, SayStop
//!   Serving  |       | Serving | Waiting or GiveUp    | Ending, Term | Waiting, Aside  | Stopping, SayStop
//!   Ending   | Kill  | Ending  | Waiting or GiveUp    |              |                 | Stopping
//!   Aside    |       |         | Gone                 | Stopping,Term|                 | Stopping, SayStop
//!   Stopping | Kill  |         | Gone                 |              |                 |
//!   Gone     |       |         |                      |              |                 |
//! ```
//!
//! `Waiting` begins with the child's own beginning, and again when it was replaced. A child that leaves is put
//! aside: it finishes its jobs while its successor starts.

use std::collections::VecDeque;

use crate::config::Restart;
use crate::process::control_socket::{Leaving, Role, ToParent};

/// After SIGTERM, or after it was told to stop, a child has this long, and as long as what it runs may take to stop.
const KILL_AFTER_MS: u64 = 1_000;
/// A child that asks to be replaced within so many backoffs of its start has served only for a moment.
const SOON: u64 = 10;
/// A child whose jobs end it is followed within 2^3 backoffs, 800 ms with the defaults.
const DOUBLINGS_AT_WORK: u32 = 3;

/// Where a child is; times in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// To be started then.
    Waiting { start_at_ms: u64 },
    /// It runs and does not serve yet.
    Starting,
    /// It serves, since then.
    Serving { since_ms: u64 },
    /// It was silent and is being ended; then it is replaced.
    Ending { kill_at_ms: u64 },
    /// It finishes its jobs; its successor is on the way.
    Aside,
    /// It was told to stop.
    Stopping { kill_at_ms: u64 },
    /// It does not run and will not.
    Gone,
}

/// What can happen to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The time that its state names has come.
    Due,
    /// It says that it serves.
    Ready,
    /// Its process has ended, or could not be made; the word is for the metric.
    Ended(How, &'static str),
    /// It does not answer, or was not ready in time.
    Silent,
    /// It asks to be replaced.
    Leaves(Leaving),
    /// The service stops.
    Stop,
}

/// What the fleet does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Nothing.
    None,
    /// Make its process.
    Spawn,
    /// Tell it to stop.
    SayStop,
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
    /// It ended and is replaced, for this reason.
    Replaced(&'static str),
    /// It leaves for this reason: keep its process beside its successor's.
    SetAside(Leaving),
    /// It cannot be kept running.
    GiveUp,
}

/// Who may say what in which state. A child that says anything else is not what it was started as.
pub fn may_say(role: Role, state: State, message: &ToParent) -> bool {
    use {State as S, ToParent as M};
    let has_served = matches!(state, S::Serving { .. } | S::Stopping { .. } | S::Ending { .. });
    match (role, message) {
        // It may have been told to stop while it said so.
        (Role::Web | Role::Executor, M::Ready(_)) => !matches!(state, S::Serving { .. }),
        (Role::Web | Role::Executor, M::Pong) => true,
        // An executor's jobs are the broker's to name, and only web knows when a drain is over.
        (Role::Web, M::CutOff(_) | M::Drained(_)) => has_served,
        (Role::Executor, M::Leaving(_) | M::Worked) => has_served || state == S::Aside,
        (Role::Web, M::Leaving(_) | M::Worked) | (Role::Executor, M::CutOff(_) | M::Drained(_)) => false,
    }
}

/// One child's state and history.
pub struct Life {
    pub state: State,
    history: History,
    /// How long what it runs may take to stop.
    stops_within_ms: u64,
}

impl Life {
    /// To be started at once.
    pub fn new(stops_within_ms: u64) -> Life {
        Life { state: State::Waiting { start_at_ms: 0 }, history: History::default(), stops_within_ms }
    }

    /// Parts in two: a process that leaves, and its successor, to be started when this one's state says so.
    pub fn part(&mut self) -> Life {
        let history = std::mem::take(&mut self.history);
        Life { state: std::mem::replace(&mut self.state, State::Aside), history, ..*self }
    }

    /// When [`Event::Due`] comes; `None`: never by time alone.
    pub fn due_ms(&self) -> Option<u64> {
        match self.state {
            State::Waiting { start_at_ms } => Some(start_at_ms),
            State::Ending { kill_at_ms, .. } | State::Stopping { kill_at_ms } => Some(kill_at_ms),
            State::Starting | State::Serving { .. } | State::Aside | State::Gone => None,
        }
    }

    /// The table.
    pub fn on(&mut self, event: Event, policy: &Restart, now_ms: u64) -> Action {
        use {Event as E, State as S};
        let kill_at_ms = now_ms + KILL_AFTER_MS;
        let stopped_at_ms = kill_at_ms + self.stops_within_ms;
        // What comes late, or twice, changes nothing.
        let same = (self.state, Action::None);
        let (state, action) = match event {
            E::Due => match self.state {
                S::Waiting { .. } => (S::Starting, Action::Spawn),
                S::Ending { .. } | S::Stopping { .. } => (self.state, Action::Kill),
                S::Starting | S::Serving { .. } | S::Aside | S::Gone => same,
            },
            E::Ready if self.state == S::Starting => (S::Serving { since_ms: now_ms }, Action::None),
            E::Ready => same,
            E::Ended(how, reason) => match self.state {
                S::Waiting { .. } | S::Starting | S::Serving { .. } => {
                    self.again(how, reason, policy, now_ms)
                }
                S::Ending { .. } => self.again(how, "unresponsive", policy, now_ms),
                S::Aside | S::Stopping { .. } | S::Gone => (S::Gone, Action::None),
            },
            E::Silent => match self.state {
                S::Starting | S::Serving { .. } => (S::Ending { kill_at_ms }, Action::Terminate),
                S::Aside => (S::Stopping { kill_at_ms }, Action::Terminate),
                S::Waiting { .. } | S::Ending { .. } | S::Stopping { .. } | S::Gone => same,
            },
            E::Leaves(why) => match self.state {
                // One that served only for a moment would be followed by another of that kind: no faster than a backoff.
                S::Serving { since_ms } if now_ms - since_ms >= SOON * policy.backoff_ms => {
                    (S::Waiting { start_at_ms: now_ms }, Action::SetAside(why))
                }
                S::Starting | S::Serving { .. } => {
                    (S::Waiting { start_at_ms: now_ms + policy.backoff_ms }, Action::SetAside(why))
                }
                S::Waiting { .. } | S::Ending { .. } | S::Aside | S::Stopping { .. } | S::Gone => same,
            },
            E::Stop => match self.state {
                S::Waiting { .. } => (S::Gone, Action::None),
                S::Starting | S::Serving { .. } | S::Aside => {
                    (S::Stopping { kill_at_ms: stopped_at_ms }, Action::SayStop)
                }
                S::Ending { kill_at_ms } => (S::Stopping { kill_at_ms }, Action::None),
                S::Stopping { .. } | S::Gone => same,
            },
        };
        self.state = state;
        action
    }

    fn again(&mut self, how: How, reason: &'static str, policy: &Restart, now_ms: u64) -> (State, Action) {
        // What has not served is not started again at once, whoever ended it.
        let has_served = !matches!(self.state, State::Waiting { .. } | State::Starting);
        let not_before_ms = if has_served { now_ms } else { now_ms + policy.backoff_ms };
        match self.history.ended(how, policy, now_ms).map(|at_ms| at_ms.max(not_before_ms)) {
            Some(start_at_ms) => (State::Waiting { start_at_ms }, Action::Replaced(reason)),
            None => (State::Gone, Action::GiveUp),
        }
    }
}

/// One child's history.
#[derive(Default)]
pub struct History {
    /// When it ended other than by a kill, in ms, and how.
    ends: VecDeque<(u64, How)>,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Somebody killed it (SIGKILL): that says nothing about the child.
    Killed,
    /// By itself, or since it did not answer, and it had begun a job: that may be the job's fault, or the host's.
    FailedAtWork,
    /// The same without a job: it would end again.
    Failed,
    /// It says that who takes its place would fare no better.
    Final,
}

impl History {
    /// It ended: when it is started again, in ms; `None`: never, and everything stops. Being ready once proves nothing: only
    /// the ends within a window count. Each doubles the wait after the next of its kind, and too many that no job can have
    /// caused are the end. A few jobs that kill their executors must not take it from all others for long: the broker
    /// has a backoff for such jobs.
    pub fn ended(&mut self, how: How, policy: &Restart, now_ms: u64) -> Option<u64> {
        let most_doublings = match how {
            How::Final => return None,
            _ if policy.policy == "never" => return None,
            How::Killed => return Some(now_ms),
            How::FailedAtWork => DOUBLINGS_AT_WORK,
            How::Failed => 16,
        };
        self.ends.retain(|(at_ms, _)| at_ms + policy.window_ms >= now_ms);
        self.ends.push_back((now_ms, how));
        let of_its_kind = self.ends.iter().filter(|(_, other)| *other == how).count();
        if how == How::Failed && of_its_kind > policy.max_restarts {
            return None;
        }
        let doublings = u32::try_from(of_its_kind - 1).unwrap_or(u32::MAX).min(most_doublings);
        Some(now_ms + policy.backoff_ms.saturating_mul(1 << doublings).min(policy.window_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: Event = Event::Ready;
    const CRASHED: Event = Event::Ended(How::Failed, "crashed");

    fn short(name: &str) -> Restart {
        Restart { policy: name.into(), max_restarts: 1, window_ms: 9, backoff_ms: 5 }
    }

    /// A child after these events, one a ms, and what the last of them asks for.
    fn after(events: &[Event]) -> (State, Action) {
        let policy = short("on_failure");
        let mut life = Life::new(0);
        let actions: Vec<Action> =
            (0..).zip(events).map(|(now_ms, event)| life.on(*event, &policy, now_ms)).collect();
        (life.state, *actions.last().expect("an event"))
    }

    #[test]
    fn every_cell_of_the_table_that_does_something_does_that() {
        use Event::{Due, Leaves, Silent};
        const STOP: Event = Event::Stop;
        let leaves = Leaves(Leaving::MaxJobs);
        let waiting = |start_at_ms| State::Waiting { start_at_ms };
        let ending = |kill_at_ms| State::Ending { kill_at_ms };
        const KILLED: Event = Event::Ended(How::Killed, "killed");
        let stopping = |kill_at_ms| State::Stopping { kill_at_ms };
        for (events, state, action) in [
            (&[Due][..], State::Starting, Action::Spawn),
            (&[STOP], State::Gone, Action::None),
            (&[Due, READY], State::Serving { since_ms: 1 }, Action::None),
            (&[Due, CRASHED], waiting(6), Action::Replaced("crashed")),
            (&[Due, CRASHED, Due, CRASHED], State::Gone, Action::GiveUp),
            (&[Due, READY, CRASHED], waiting(7), Action::Replaced("crashed")),
            (&[Due, READY, KILLED], waiting(2), Action::Replaced("killed")),
            (&[Due, KILLED], waiting(6), Action::Replaced("killed")),
            (&[Due, Silent], ending(1_001), Action::Terminate),
            (&[Due, READY, Silent], ending(1_002), Action::Terminate),
            (&[Due, READY, Silent, Due], ending(1_002), Action::Kill),
            (&[Due, READY, Silent, Due, CRASHED], waiting(9), Action::Replaced("unresponsive")),
            (&[Due, Silent, CRASHED], waiting(7), Action::Replaced("unresponsive")),
            (&[Due, READY, leaves], waiting(7), Action::SetAside(Leaving::MaxJobs)),
            (&[Due, leaves], waiting(6), Action::SetAside(Leaving::MaxJobs)),
            (&[CRASHED], waiting(5), Action::Replaced("crashed")),
            (&[Due, CRASHED, Due, Silent, CRASHED], State::Gone, Action::GiveUp),
            (&[Due, STOP], stopping(1_001), Action::SayStop),
            (&[Due, READY, STOP], stopping(1_002), Action::SayStop),
            (&[Due, READY, Silent, STOP], stopping(1_002), Action::None),
            (&[Due, READY, STOP, Due], stopping(1_002), Action::Kill),
            (&[Due, READY, STOP, Due, CRASHED], State::Gone, Action::None),
        ] {
            assert_eq!(after(events), (state, action), "{events:?}");
        }
    }

    #[test]
    fn a_child_that_leaves_is_followed_at_once_if_it_has_served_for_a_while() {
        let policy = short("on_failure");
        for (after_ms, start_at_ms) in [(49, 54), (50, 50)] {
            let mut life = Life::new(0);
            let _ = life.on(Event::Due, &policy, 0);
            let _ = life.on(READY, &policy, 0);
            let action = life.on(Event::Leaves(Leaving::MaxRss), &policy, after_ms);
            assert_eq!(action, Action::SetAside(Leaving::MaxRss));
            assert_eq!(life.state, State::Waiting { start_at_ms });
        }
    }

    #[test]
    fn a_policy_of_never_gives_up_at_the_first_end() {
        let policy = short("never");
        let mut life = Life::new(0);
        for event in [Event::Due, READY] {
            let _ = life.on(event, &policy, 0);
        }
        assert_eq!((life.on(CRASHED, &policy, 1), life.state), (Action::GiveUp, State::Gone));
    }

    #[test]
    fn a_child_that_was_set_aside_is_never_replaced() {
        let policy = short("on_failure");
        for (event, state, action) in [
            (CRASHED, State::Gone, Action::None),
            (Event::Silent, State::Stopping { kill_at_ms: 1_000 }, Action::Terminate),
            (Event::Stop, State::Stopping { kill_at_ms: 1_000 }, Action::SayStop),
            (Event::Leaves(Leaving::Stuck), State::Aside, Action::None),
        ] {
            let mut life = Life::new(0);
            assert_eq!(life.part().state, State::Waiting { start_at_ms: 0 }, "its successor is started");
            assert_eq!((life.on(event, &policy, 0), life.state), (action, state), "{event:?}");
        }
    }

    #[test]
    fn what_comes_late_or_twice_changes_nothing() {
        use Event::{Due, Leaves, Silent};
        const STOP: Event = Event::Stop;
        for (before, late) in [
            (&[][..], &[READY, Silent, Leaves(Leaving::Stuck)][..]),
            (&[Due, READY], &[Due]),
            (&[Due, READY, Silent], &[READY, Silent, Leaves(Leaving::Stuck)]),
            (&[Due, READY, STOP], &[READY, Silent, Leaves(Leaving::Stuck), STOP]),
            (&[STOP], &[Due, READY, CRASHED, Silent, Leaves(Leaving::Stuck), STOP]),
        ] {
            for event in late {
                let state =
                    if before.is_empty() { State::Waiting { start_at_ms: 0 } } else { after(before).0 };
                assert_eq!(
                    after(&[before, &[*event]].concat()),
                    (state, Action::None),
                    "{before:?} {event:?}"
                );
            }
        }
    }

    #[test]
    fn each_role_says_what_is_its_own_to_say_and_when() {
        let (web, executor) = (Role::Web, Role::Executor);
        let (starting, serving) = (State::Starting, State::Serving { since_ms: 0 });
        for (message, of_web, of_executor) in [
            (ToParent::Ready(String::new()), [true, false], [true, false]),
            (ToParent::Pong, [true, true], [true, true]),
            (ToParent::CutOff(Vec::new()), [false, true], [false, false]),
            (ToParent::Drained(0), [false, true], [false, false]),
            (ToParent::Leaving(Leaving::Stuck), [false, false], [false, true]),
            (ToParent::Worked, [false, false], [false, true]),
        ] {
            let said = |role| [starting, serving].map(|state| may_say(role, state, &message));
            assert_eq!((said(web), said(executor)), (of_web, of_executor), "{message:?}");
        }
    }

    fn policy(name: &str) -> Restart {
        Restart { policy: name.into(), max_restarts: 3, window_ms: 1_000, backoff_ms: 100 }
    }

    #[test]
    fn ends_of_its_own_back_off_and_then_stop_everything_ready_or_not() {
        let mut history = History::default();
        let on_failure = policy("on_failure");
        let failed = How::Failed;
        for (now_ms, verdict) in
            [(0, Some(100)), (100, Some(300)), (300, Some(700)), (700, None), (5_000, Some(5_100))]
        {
            assert_eq!(history.ended(failed, &on_failure, now_ms), verdict, "at {now_ms}");
        }
        assert_eq!(history.ended(How::Killed, &on_failure, 5_000), Some(5_000));
        assert_eq!(history.ended(How::Final, &on_failure, 5_000), None);
        assert_eq!(history.ended(failed, &policy("never"), 0), None);
    }

    #[test]
    fn ends_that_a_job_may_have_caused_back_off_a_little_and_never_stop_everything() {
        let (mut history, on_failure) = (History::default(), policy("on_failure"));
        let verdicts: Vec<Option<u64>> =
            (0..6).map(|at| history.ended(How::FailedAtWork, &on_failure, at)).collect();
        assert_eq!(verdicts[0], Some(100));
        assert_eq!(verdicts[5], Some(5 + 800), "no longer than a few backoffs");
        assert_eq!(
            history.ended(How::Failed, &on_failure, 6),
            Some(6 + 100),
            "its own ends count by themselves"
        );
    }
}
