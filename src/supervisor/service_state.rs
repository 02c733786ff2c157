//! The supervisor's own life as a table: (phase, event) to (phase, action). Pure.
//!
//! ```text
//!   phase     | AllReady | Signal            | Drained       | ExecutorsGone | WebGone | Due            | GaveUp
//!   ----------+----------+-------------------+---------------+---------------+---------+----------------+-------
//!   Starting  | Serving  | Draining          |               |               |         | Over: NotReady | Over: Failed
//!   Serving   |          | Draining          |               |               |         |                | Over: Failed
//!   Draining  |          | Forced            | Executors     |               |         | Over: CutOff   | Over: Failed
//!   Forced    |          | Over: CutOff      | Executors     |               |         | Over: CutOff   | Over: Failed
//!   Executors |          | Over              |               | Web           |         |                | Over: Failed
//!   Web       |          | Over              |               |               | Over    |                | Over: Failed
//!   Over      |          |                   |               |               |         |                |
//! ```
//!
//! `WebLost` changes no phase; in `Draining` and `Forced` jobs went with it, so the exit will be `CutOff`, as after
//! `Drained` with jobs that were cut off, and after `CutOff`, which changes no phase either.
//!
//! Term, deadline and kill are phases, not sleeps. In `Draining` web finishes the jobs, in `Executors` the executors
//! end, in `Web` web does, the last. `Over` ends whatever still runs.

use crate::exit::Exit;

/// Web keeps the deadline of a drain itself; this is for a web that does not.
const SLACK_MS: u64 = 1_500;
/// Told that its deadline is now, web answers within a turn of its loop, unless it hangs.
const FORCED_MS: u64 = 500;

/// Where the service is; times in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Some child does not serve yet; until then it may.
    Starting { until_ms: u64 },
    /// All have served.
    Serving,
    /// Web finishes the jobs.
    Draining { until_ms: u64 },
    /// Web names what it cuts off.
    Forced { until_ms: u64 },
    /// The executors end.
    Executors,
    /// Web ends.
    Web,
    /// Nothing is left to do.
    Over(Exit),
}

/// What can happen to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Every child serves.
    AllReady,
    /// SIGTERM or SIGINT.
    Signal,
    /// Web's drain is over, with so many jobs cut off.
    Drained(u64),
    /// Web has ended by itself, and jobs in memory with it.
    WebLost,
    /// An executor has given jobs back by force, or has died with them.
    CutOff,
    /// No executor runs.
    ExecutorsGone,
    /// No child runs.
    WebGone,
    /// The time that the phase names has come.
    Due,
    /// A child cannot be kept running.
    GaveUp,
}

/// What the supervisor does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Nothing.
    None,
    /// Print the ready line.
    SayReady,
    /// Say who is late.
    SayLate,
    /// Tell web to finish within so many ms.
    Drain(u64),
    /// The same, by force: its deadline is now.
    Force,
    /// Tell the executors to stop.
    StopExecutors,
    /// Tell web to stop.
    StopWeb,
    /// Say that what still runs is cut off.
    SayCutOff,
}

/// The phase, and how it will end.
pub struct Phases {
    pub phase: Phase,
    /// How long jobs may take to finish once told to stop.
    patience_ms: u64,
    exit: Exit,
}

impl Phases {
    /// At the start; the children are ready by then, or it is over.
    pub fn new(ready_until_ms: u64, patience_ms: u64) -> Phases {
        Phases { phase: Phase::Starting { until_ms: ready_until_ms }, patience_ms, exit: Exit::Done }
    }

    /// When [`Event::Due`] comes; `None`: never by time alone.
    pub fn due_ms(&self) -> Option<u64> {
        match self.phase {
            Phase::Starting { until_ms } | Phase::Draining { until_ms } | Phase::Forced { until_ms } => {
                Some(until_ms)
            }
            Phase::Serving | Phase::Executors | Phase::Web | Phase::Over(_) => None,
        }
    }

    /// The table.
    pub fn on(&mut self, event: Event, now_ms: u64) -> Action {
        use {Event as E, Phase as P};
        // What comes late, or too soon, changes nothing.
        let same = (self.phase, Action::None);
        let over = |exit| (P::Over(exit), Action::None);
        let (phase, action) = match event {
            E::AllReady if matches!(self.phase, P::Starting { .. }) => (P::Serving, Action::SayReady),
            E::Signal => match self.phase {
                // Web may have accepted jobs before the last executor served.
                P::Starting { .. } | P::Serving => {
                    let until_ms = now_ms + self.patience_ms + SLACK_MS;
                    (P::Draining { until_ms }, Action::Drain(self.patience_ms))
                }
                P::Draining { .. } => (P::Forced { until_ms: now_ms + FORCED_MS }, Action::Force),
                P::Forced { .. } => (P::Over(Exit::CutOff), Action::SayCutOff),
                // The jobs are done, or named: only processes are left to be ended.
                P::Executors | P::Web => over(self.exit),
                P::Over(_) => same,
            },
            E::Drained(cut_off) => match self.phase {
                P::Draining { .. } | P::Forced { .. } => {
                    self.exit = if cut_off > 0 { Exit::CutOff } else { self.exit };
                    (P::Executors, Action::StopExecutors)
                }
                P::Starting { .. } | P::Serving | P::Executors | P::Web | P::Over(_) => same,
            },
            E::WebLost | E::CutOff => {
                let cuts_off = match self.phase {
                    P::Draining { .. } | P::Forced { .. } => true,
                    P::Executors | P::Web => event == E::CutOff,
                    P::Starting { .. } | P::Serving | P::Over(_) => false,
                };
                self.exit = if cuts_off { Exit::CutOff } else { self.exit };
                same
            }
            E::ExecutorsGone if self.phase == P::Executors => (P::Web, Action::StopWeb),
            E::WebGone if self.phase == P::Web => over(self.exit),
            E::AllReady | E::ExecutorsGone | E::WebGone => same,
            E::Due => match self.phase {
                P::Starting { .. } => (P::Over(Exit::NotReady), Action::SayLate),
                P::Draining { .. } | P::Forced { .. } => (P::Over(Exit::CutOff), Action::SayCutOff),
                P::Serving | P::Executors | P::Web | P::Over(_) => same,
            },
            E::GaveUp => {
                if matches!(self.phase, P::Over(_)) {
                    same
                } else {
                    over(Exit::Failed)
                }
            }
        };
        self.phase = phase;
        action
    }
}

#[cfg(test)]
mod tests {
    use super::Event::{AllReady, CutOff, Drained, Due, ExecutorsGone, GaveUp, Signal, WebGone, WebLost};
    use super::*;

    /// The service after these events, one a ms, and what the last of them asks for.
    fn after(events: &[Event]) -> (Phase, Action) {
        let mut phases = Phases::new(50, 100);
        let actions: Vec<Action> =
            (0..).zip(events).map(|(now_ms, event)| phases.on(*event, now_ms)).collect();
        (phases.phase, *actions.last().expect("an event"))
    }

    #[test]
    fn every_cell_of_the_table_that_does_something_does_that() {
        let (draining, forced) = (Phase::Draining { until_ms: 1_601 }, Phase::Forced { until_ms: 502 });
        let over = Phase::Over;
        for (events, phase, action) in [
            (&[AllReady][..], Phase::Serving, Action::SayReady),
            (&[Due], over(Exit::NotReady), Action::SayLate),
            (&[Signal], Phase::Draining { until_ms: 1_600 }, Action::Drain(100)),
            (&[AllReady, Signal], draining, Action::Drain(100)),
            (&[AllReady, Signal, Due], over(Exit::CutOff), Action::SayCutOff),
            (&[AllReady, Signal, Signal], forced, Action::Force),
            (&[AllReady, Signal, Signal, Due], over(Exit::CutOff), Action::SayCutOff),
            (&[AllReady, Signal, Signal, Signal], over(Exit::CutOff), Action::SayCutOff),
            (&[AllReady, Signal, Drained(0)], Phase::Executors, Action::StopExecutors),
            (&[AllReady, Signal, Drained(0), ExecutorsGone], Phase::Web, Action::StopWeb),
            (&[AllReady, Signal, Drained(0), ExecutorsGone, WebGone], over(Exit::Done), Action::None),
            (&[AllReady, Signal, Drained(1), ExecutorsGone, WebGone], over(Exit::CutOff), Action::None),
            (&[AllReady, Signal, Signal, Drained(0), ExecutorsGone, WebGone], over(Exit::Done), Action::None),
            (
                &[AllReady, Signal, Signal, Drained(1), ExecutorsGone, WebGone],
                over(Exit::CutOff),
                Action::None,
            ),
            (&[AllReady, Signal, Drained(0), Signal], over(Exit::Done), Action::None),
            (&[AllReady, Signal, Drained(1), Signal], over(Exit::CutOff), Action::None),
            (&[AllReady, Signal, Drained(0), ExecutorsGone, Signal], over(Exit::Done), Action::None),
            (&[AllReady, Signal, WebLost], draining, Action::None),
            (
                &[AllReady, Signal, CutOff, Drained(0), ExecutorsGone, WebGone],
                over(Exit::CutOff),
                Action::None,
            ),
            (
                &[AllReady, Signal, Drained(0), CutOff, ExecutorsGone, WebGone],
                over(Exit::CutOff),
                Action::None,
            ),
            (
                &[AllReady, Signal, WebLost, Drained(0), ExecutorsGone, WebGone],
                over(Exit::CutOff),
                Action::None,
            ),
            (&[AllReady, Signal, Signal, WebLost], forced, Action::None),
            (&[AllReady, Signal, Signal, GaveUp], over(Exit::Failed), Action::None),
            (&[AllReady, Signal, Drained(0), GaveUp], over(Exit::Failed), Action::None),
            (&[AllReady, Signal, Drained(0), ExecutorsGone, GaveUp], over(Exit::Failed), Action::None),
            (&[GaveUp], over(Exit::Failed), Action::None),
            (&[AllReady, GaveUp], over(Exit::Failed), Action::None),
            (&[AllReady, Signal, GaveUp], over(Exit::Failed), Action::None),
        ] {
            assert_eq!(after(events), (phase, action), "{events:?}");
        }
    }

    #[test]
    fn what_comes_late_or_too_soon_changes_nothing() {
        for (before, others) in [
            (&[AllReady][..], &[AllReady, Drained(1), ExecutorsGone, WebGone, Due][..]),
            (&[AllReady, Signal], &[AllReady, ExecutorsGone, WebGone]),
            (&[AllReady, Signal, Signal], &[AllReady, ExecutorsGone, WebGone]),
            (&[Signal, Drained(0)], &[AllReady, Drained(1), WebLost, WebGone, Due]),
            (&[Signal, Drained(0), ExecutorsGone], &[AllReady, Drained(1), WebLost, ExecutorsGone, Due]),
            (&[GaveUp], &[AllReady, Signal, Drained(1), ExecutorsGone, WebGone, Due, GaveUp]),
        ] {
            for event in others {
                assert_eq!(
                    after(&[before, &[*event]].concat()),
                    (after(before).0, Action::None),
                    "{before:?} {event:?}"
                );
            }
        }
    }
}
