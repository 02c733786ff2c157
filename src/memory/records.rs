//! How long finished records are kept: by their time to live, and within a number and a size.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::config::Retain;
use crate::job::JobId;

/// Finished records in the order of their ends. There are two times to live, so two queues: in each, the
/// order of the ends is the order of the expiries.
#[derive(Debug)]
pub(super) struct Retention {
    classes: [Class; 2],
    retain: Retain,
    last_seq: u64,
    records: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Class {
    ttl: Duration,
    queue: VecDeque<Kept>,
}

#[derive(Debug)]
struct Kept {
    seq: u64,
    job: JobId,
    until: Timestamp,
}

/// Ties a job's entry to its place here: a record that was retried meanwhile has another, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    seq: u64,
    bytes: usize,
}

impl Retention {
    pub(super) fn new(result_ttl: Duration, awaited_ttl: Duration, retain: Retain) -> Retention {
        let class = |ttl| Class { ttl, queue: VecDeque::new() };
        Retention {
            classes: [class(result_ttl), class(awaited_ttl)],
            retain,
            last_seq: 0,
            records: 0,
            bytes: 0,
        }
    }

    /// Enters a record of `bytes` that ended now.
    pub(super) fn keep(&mut self, job: JobId, awaited: bool, bytes: usize, now: Timestamp) -> Place {
        self.last_seq += 1;
        self.records += 1;
        self.bytes += bytes;
        let class = &mut self.classes[usize::from(awaited)];
        class.queue.push_back(Kept { seq: self.last_seq, job, until: now.plus(class.ttl) });
        Place { seq: self.last_seq, bytes }
    }

    /// The record at `place` is no longer a finished one; its entry in the queue is stale from now on.
    pub(super) fn forget(&mut self, place: Place) {
        self.records -= 1;
        self.bytes -= place.bytes;
    }

    /// The next record that has to go, if any. `place_of` gives a job's present place; stale entries are
    /// dropped on the way. The caller removes the job and calls [`Retention::forget`].
    pub(super) fn due(&mut self, now: Timestamp, place_of: impl Fn(JobId) -> Option<Place>) -> Option<JobId> {
        let most = 2 * self.records + 64;
        for class in &mut self.classes {
            if class.queue.len() > most {
                // Records that were retried leave stale entries behind a younger one.
                class.queue.retain(|kept| place_of(kept.job).is_some_and(|place| place.seq == kept.seq));
            }
            while let Some(front) = class.queue.front() {
                if place_of(front.job).is_some_and(|place| place.seq == front.seq) {
                    break;
                }
                class.queue.pop_front();
            }
        }
        // The newest stays however large it is: whoever ended it is still to be answered.
        let full = self.records > 1 && (self.records > self.retain.records || self.bytes > self.retain.bytes);
        let due = |class: &Class| {
            let front = class.queue.front()?;
            (full || front.until <= now).then_some((front.seq, front.job))
        };
        let [a, b] = &self.classes;
        [due(a), due(b)].into_iter().flatten().min_by_key(|(seq, _)| *seq).map(|(_, job)| job)
    }
}
