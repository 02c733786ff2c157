//! A job's life as a table: (status, event) to status. Pure; every backend follows it.
//!
//! ```text
//!   status    | Start   | Succeed   | Fail   | TimeOut   | Exhaust | Again  | GiveBack | Cancel    | Resubmit
//!   ----------+---------+-----------+--------+-----------+---------+--------+----------+-----------+---------
//!   queued    | running |           |        |           |         |        |          | cancelled |
//!   running   |         | succeeded | failed | timed_out | dead    | queued | queued   | cancelled |
//!   succeeded |         |           |        |           |         |        |          |           |
//!   failed    |         |           |        |           |         |        |          |           | queued
//!   cancelled |         |           |        |           |         |        |          |           | queued
//!   timed_out |         |           |        |           |         |        |          |           | queued
//!   dead      |         |           |        |           |         |        |          |           | queued
//! ```
//!
//! An empty cell is an event that comes too late or is refused: it changes nothing. So in one life a job reaches
//! exactly one terminal status.

use crate::job::JobStatus;

/// What can happen to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEvent {
    /// A delivery starts; it counts.
    Start,
    /// A result was committed.
    Succeed,
    /// The handler said that it cannot be done.
    Fail,
    /// The handler's deadline passed.
    TimeOut,
    /// The delivery came to nothing, and it was the last one allowed.
    Exhaust,
    /// The delivery came to nothing: the job is delivered again.
    Again,
    /// The delivery was cut off by no fault of its own: it does not count.
    GiveBack,
    /// Somebody cancels it.
    Cancel,
    /// Somebody retries it: a new life.
    Resubmit,
}

impl JobStatus {
    /// The table. `None`: the event changes nothing.
    #[must_use]
    pub fn after(self, event: JobEvent) -> Option<JobStatus> {
        use {JobEvent as E, JobStatus as S};
        match (self, event) {
            (S::Queued, E::Start) => Some(S::Running),
            (S::Running, E::Succeed) => Some(S::Succeeded),
            (S::Running, E::Fail) => Some(S::Failed),
            (S::Running, E::TimeOut) => Some(S::TimedOut),
            (S::Running, E::Exhaust) => Some(S::Dead),
            (S::Running, E::Again | E::GiveBack) => Some(S::Queued),
            (S::Queued | S::Running, E::Cancel) => Some(S::Cancelled),
            (S::Failed | S::Cancelled | S::TimedOut | S::Dead, E::Resubmit) => Some(S::Queued),
            (
                S::Queued,
                E::Succeed | E::Fail | E::TimeOut | E::Exhaust | E::Again | E::GiveBack | E::Resubmit,
            )
            | (S::Running, E::Start | E::Resubmit)
            | (S::Succeeded, E::Resubmit)
            | (
                S::Succeeded | S::Failed | S::Cancelled | S::TimedOut | S::Dead,
                E::Start
                | E::Succeed
                | E::Fail
                | E::TimeOut
                | E::Exhaust
                | E::Again
                | E::GiveBack
                | E::Cancel,
            ) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl JobEvent {
        const ALL: [JobEvent; 9] = [
            JobEvent::Start,
            JobEvent::Succeed,
            JobEvent::Fail,
            JobEvent::TimeOut,
            JobEvent::Exhaust,
            JobEvent::Again,
            JobEvent::GiveBack,
            JobEvent::Cancel,
            JobEvent::Resubmit,
        ];
    }

    /// The drawing above is the table.
    #[test]
    fn the_drawing_and_the_table_are_the_same() {
        let drawing = include_str!("job_status.rs").lines().take_while(|line| line.starts_with("//!"));
        let rows: Vec<Vec<&str>> = drawing
            .filter(|line| line.matches('|').count() == JobEvent::ALL.len())
            .map(|row| row.trim_start_matches("//!").split('|').map(str::trim).collect())
            .collect();
        let events = rows[0][1..].iter().zip(JobEvent::ALL);
        assert!(events.into_iter().all(|(name, event)| *name == format!("{event:?}")), "{:?}", rows[0]);
        assert_eq!(rows.len(), 1 + JobStatus::ALL.len());
        for row in &rows[1..] {
            let status = JobStatus::parse(row[0]).expect("a status");
            for (cell, event) in row[1..].iter().zip(JobEvent::ALL) {
                assert_eq!(status.after(event), JobStatus::parse(cell), "{} {event:?}", row[0]);
            }
        }
    }

    #[test]
    fn nothing_leaves_a_terminal_status_but_a_new_life() {
        for status in JobStatus::ALL.into_iter().filter(|status| status.is_terminal()) {
            for event in JobEvent::ALL {
                assert!(event == JobEvent::Resubmit || status.after(event).is_none(), "{status:?} {event:?}");
            }
        }
    }
}
