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

/// Beyond the number of records that may be kept, this part of it goes at once: the caches have none of a record that old, and
/// to wait for many of them together takes little longer than to wait for one.
const TOGETHER: usize = 256;

/// Finished records in the order of their ends.
#[derive(Debug)]
pub(super) struct Retention {
    /// By class and the number of the end.
    kept: [BTreeMap<u64, Kept>; 3],
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

#[derive(Debug)]
struct Kept {
    job: JobId,
    until: Timestamp,
    bytes: usize,
}

/// Where a job's record is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    class: Class,
    end: u64,
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
        let until = now.plus(self.ttls[class as usize]);
        self.kept[class as usize].insert(self.ends, Kept { job, until, bytes });
        Place { class, end: self.ends }
    }

    /// The record is no longer a finished one, or is gone.
    pub(super) fn forget(&mut self, Place { class, end }: Place) -> Option<JobId> {
        let kept = self.kept[class as usize].remove(&end)?;
        self.budget_of(class).bytes -= kept.bytes;
        Some(kept.job)
    }

    fn budget_of(&mut self, class: Class) -> &mut Budget {
        &mut self.budgets[usize::from(class == Class::Failed)]
    }

    /// Takes out the records that have to go. Where there are too many, some more go with them: see [`TOGETHER`].
    pub(super) fn take_due(&mut self, now: Timestamp) -> Vec<JobId> {
        let mut due = Vec::new();
        for budget in 0..self.budgets.len() {
            let records_max = self.budgets[budget].records_max;
            let mut most = records_max;
            while let Some((place, is_beyond)) = self.next_due(&self.budgets[budget], most, now) {
                if is_beyond {
                    most = records_max - records_max / TOGETHER;
                }
                due.extend(self.forget(place));
            }
        }
        due
    }

    /// The oldest record of this budget if it has to go, and whether since there are more than `most`.
    fn next_due(&self, budget: &Budget, most: usize, now: Timestamp) -> Option<(Place, bool)> {
        let kept = budget.classes.iter().map(|class| (*class, &self.kept[*class as usize]));
        let records: usize = kept.clone().map(|(_, kept)| kept.len()).sum();
        // The newest stays however large it is: whoever ended it is still to be answered.
        let is_beyond = records > most.max(1);
        let is_full = is_beyond || records > 1 && budget.bytes > budget.bytes_max;
        let oldest = kept.filter_map(|(class, kept)| Some((class, kept.first_key_value()?)));
        let due = oldest.filter(|(_, (_, kept))| is_full || kept.until <= now);
        due.min_by_key(|(_, (end, _))| **end).map(|(class, (end, _))| (Place { class, end: *end }, is_beyond))
    }

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.kept.iter().map(BTreeMap::len).sum()
    }
}
