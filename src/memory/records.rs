//! How long finished records are kept: by their time to live, and within a number and a size.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::config::Retain;
use crate::job::JobId;

/// Finished records in the order of their ends.
#[derive(Debug)]
pub(super) struct Retention {
    /// Of those that nobody awaited, and of the others: each has one time to live, so the order of the ends is
    /// that of the expiries.
    classes: [Class; 2],
    retain: Retain,
    /// How many have ended.
    ends: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Class {
    ttl: Duration,
    /// By the number of the end.
    kept: BTreeMap<u64, (JobId, Timestamp)>,
}

/// Where a job's record is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    awaited: bool,
    end: u64,
    bytes: usize,
}

impl Retention {
    pub(super) fn new(result_ttl: Duration, awaited_ttl: Duration, retain: Retain) -> Retention {
        let classes = [result_ttl, awaited_ttl].map(|ttl| Class { ttl, kept: BTreeMap::new() });
        Retention { classes, retain, ends: 0, bytes: 0 }
    }

    /// Enters a record of `bytes` that ended now.
    pub(super) fn keep(&mut self, job: JobId, awaited: bool, bytes: usize, now: Timestamp) -> Place {
        self.ends += 1;
        self.bytes += bytes;
        let class = &mut self.classes[usize::from(awaited)];
        class.kept.insert(self.ends, (job, now.plus(class.ttl)));
        Place { awaited, end: self.ends, bytes }
    }

    /// The record is no longer a finished one, or is gone.
    pub(super) fn forget(&mut self, place: Place) {
        self.classes[usize::from(place.awaited)].kept.remove(&place.end);
        self.bytes -= place.bytes;
    }

    /// The next record that has to go, if any.
    pub(super) fn due(&self, now: Timestamp) -> Option<JobId> {
        let records = self.len();
        // The newest stays however large it is: whoever ended it is still to be answered.
        let full = records > 1 && (records > self.retain.records || self.bytes > self.retain.bytes);
        let oldest = self.classes.iter().filter_map(|class| class.kept.first_key_value());
        let due = oldest.filter(|(_, (_, until))| full || *until <= now);
        due.min_by_key(|(end, _)| **end).map(|(_, (job, _))| *job)
    }

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.classes.iter().map(|class| class.kept.len()).sum()
    }
}
