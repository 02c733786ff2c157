//! How long finished records are kept: by their time to live, and within a number and a size.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::job::JobId;
use crate::ports::Rules;

/// Which records are kept alike: each class has one time to live, so that the order of the ends is that of the expiries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// It succeeded.
    Succeeded,
    /// The same, and its caller waited.
    Awaited,
    /// It did not, whoever waited: it can be looked at and retried later.
    Failed,
}

/// Finished records in the order of their ends.
#[derive(Debug)]
pub(super) struct Retention {
    /// By class and the number of the end.
    kept: [BTreeMap<u64, (JobId, Timestamp)>; 3],
    ttls: [Duration; 3],
    /// Of those that succeeded, and of the others.
    budgets: [Budget; 2],
    /// How many have ended.
    ends: u64,
}

#[derive(Debug)]
struct Budget {
    records_max: usize,
    bytes_max: usize,
    bytes: usize,
    classes: &'static [Class],
}

/// Where a job's record is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    class: Class,
    end: u64,
    bytes: usize,
}

impl Retention {
    pub(super) fn new(rules: &Rules) -> Retention {
        let retain = rules.retain;
        let budget = |records_max, bytes_max, classes| Budget { records_max, bytes_max, bytes: 0, classes };
        Retention {
            kept: Default::default(),
            ttls: [rules.result_ttl, rules.awaited_ttl, rules.failed_ttl],
            budgets: [
                budget(retain.records, retain.bytes, &[Class::Succeeded, Class::Awaited]),
                budget(retain.failed_records, retain.failed_bytes, &[Class::Failed]),
            ],
            ends: 0,
        }
    }

    /// Enters a record of `bytes` that ended now.
    pub(super) fn keep(&mut self, job: JobId, class: Class, bytes: usize, now: Timestamp) -> Place {
        self.ends += 1;
        self.budget_of(class).bytes += bytes;
        self.kept[class as usize].insert(self.ends, (job, now.plus(self.ttls[class as usize])));
        Place { class, end: self.ends, bytes }
    }

    /// The record is no longer a finished one, or is gone.
    pub(super) fn forget(&mut self, place: Place) {
        self.kept[place.class as usize].remove(&place.end);
        self.budget_of(place.class).bytes -= place.bytes;
    }

    fn budget_of(&mut self, class: Class) -> &mut Budget {
        &mut self.budgets[usize::from(class == Class::Failed)]
    }

    /// The next record that has to go, if any.
    pub(super) fn due(&self, now: Timestamp) -> Option<JobId> {
        let oldest = |budget: &Budget| {
            let kept = budget.classes.iter().map(|class| &self.kept[*class as usize]);
            let records: usize = kept.clone().map(BTreeMap::len).sum();
            // The newest stays however large it is: whoever ended it is still to be answered.
            let is_full = records > 1 && (records > budget.records_max || budget.bytes > budget.bytes_max);
            let due =
                kept.filter_map(BTreeMap::first_key_value).filter(|(_, (_, until))| is_full || *until <= now);
            due.min_by_key(|(end, _)| **end).map(|(_, (job, _))| *job)
        };
        self.budgets.iter().find_map(oldest)
    }

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.kept.iter().map(BTreeMap::len).sum()
    }
}
