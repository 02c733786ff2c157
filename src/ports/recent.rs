//! The last jobs that ended, for whoever looks on: a bounded number, so that nobody who looks slowly costs memory.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::job::{JobSpec, JobStatus};
use crate::limits::TRACED_ENDS;

/// How many are kept.
const KEPT: usize = 256;

/// Ends that wait to be exported, a bounded number.
#[derive(Debug)]
pub struct Traced<T> {
    /// Else none are kept.
    is_on: bool,
    waiting: Vec<T>,
    lost: u64,
}

impl<T> Default for Traced<T> {
    fn default() -> Traced<T> {
        Traced::new(false)
    }
}

impl<T> Traced<T> {
    /// None, if it is not on, and there never will be.
    pub fn new(is_on: bool) -> Traced<T> {
        Traced { is_on, waiting: Vec::new(), lost: 0 }
    }

    pub fn push(&mut self, end: T) {
        match self.waiting.len() {
            _ if !self.is_on => {}
            TRACED_ENDS.. => self.lost += 1,
            _ => self.waiting.push(end),
        }
    }

    /// All of them, and how many were too many.
    pub fn take(&mut self) -> (Vec<T>, u64) {
        (std::mem::take(&mut self.waiting), std::mem::take(&mut self.lost))
    }
}

/// A job that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecentEnd {
    pub spec: Arc<JobSpec>,
    pub status: JobStatus,
    pub finished_at: Timestamp,
}

/// The last of them, oldest first.
#[derive(Debug, Default)]
pub struct RecentEnds {
    kept: VecDeque<RecentEnd>,
    /// How many there were.
    count: u64,
}

/// What one look has found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Looked {
    pub ends: Vec<RecentEnd>,
    /// Ends since the look before that are not kept any more.
    pub lost: u64,
    /// What the next look says.
    pub count: u64,
}

impl RecentEnds {
    pub fn push(&mut self, spec: Arc<JobSpec>, status: JobStatus, finished_at: Timestamp) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(RecentEnd { spec, status, finished_at });
        self.count += 1;
    }

    /// Those after the first so many.
    #[must_use]
    pub fn since(&self, count: u64) -> Looked {
        let new = usize::try_from(self.count.saturating_sub(count)).unwrap_or(usize::MAX);
        let shown = new.min(self.kept.len());
        let ends = self.kept.iter().skip(self.kept.len() - shown).cloned().collect();
        Looked { ends, lost: (new - shown) as u64, count: self.count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{JobId, Trace};

    #[test]
    fn ends_beyond_the_bound_are_counted_and_none_are_kept_for_nobody() {
        let mut traced = Traced::new(true);
        (0..TRACED_ENDS + 3).for_each(|end| traced.push(end));
        let (ends, lost) = traced.take();
        assert_eq!((ends.len(), ends[0], lost), (TRACED_ENDS, 0, 3));
        traced.push(7);
        assert_eq!((traced.take(), traced.take()), ((vec![7], 0), (vec![], 0)));
        let mut off = Traced::default();
        off.push(7);
        assert_eq!(off.take(), (vec![], 0));
    }

    #[test]
    fn a_slow_look_is_told_how_many_it_has_missed() {
        let spec = |number: u8| {
            Arc::new(JobSpec {
                id: JobId([number; 16]),
                owner: "".into(),
                handler: "h".into(),
                ordering_key: None,
                trace: Trace::default(),
                tracestate: None,
                submitted_at: Timestamp(0),
                timeout: std::time::Duration::ZERO,
                one_line: false,
            })
        };
        let mut recent = RecentEnds::default();
        assert_eq!(recent.since(0), Looked::default());
        for number in 0..=u8::MAX {
            recent.push(spec(number), JobStatus::Succeeded, Timestamp(number.into()));
        }
        let all = recent.since(0);
        assert_eq!((all.ends.len(), all.lost, all.count), (256, 0, 256));
        recent.push(spec(7), JobStatus::Failed, Timestamp(9));
        let one = recent.since(all.count);
        assert_eq!((one.ends.len(), one.ends[0].status, one.lost, one.count), (1, JobStatus::Failed, 0, 257));
        let late = recent.since(0);
        assert_eq!((late.ends.len(), late.lost, late.ends[0].finished_at), (256, 1, Timestamp(1)));
        assert_eq!(recent.since(257), Looked { count: 257, ..Looked::default() });
    }
}
