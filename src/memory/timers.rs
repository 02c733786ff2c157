//! What time alone does: leases, records and maps expire, delayed lanes become ready.

use std::time::Duration;

use super::broker::{Broker, ConsumerId, Lease};
use super::deliver::AFFINITY_SCAN;
use super::idempotency::{Bound, Scope};
use crate::clock::{Timestamp, micros};
use crate::job::JobId;
use crate::limits::{LANE_AFFINITY, REVOKED_LEASES};

/// How often expired maps are freed.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

impl Broker {
    /// Does what time alone does: lost leases, old records, old contexts, executors that do not listen.
    pub fn tick(&mut self, now: Timestamp) {
        // Who has lost several at once has lost them together; so has who loses them one by one, within the time in which leases
        // are over that nobody renews any more.
        let is_alone = |lease: &Lease| {
            let consumer = &self.consumers[&lease.consumer];
            let lost_others = consumer.lost_at.is_some_and(|at| now.since(at) <= self.rules.visibility);
            self.holds_one_job(&consumer.leases) && !lost_others
        };
        let over = self.leases.iter().filter(|(_, lease)| lease.expires_at.min(lease.deadline) <= now);
        // In their order, so that the same schedule has the same outcome on every backend.
        let mut over: Vec<(bool, Timestamp, u64, bool)> = over
            .map(|(number, lease)| match lease.deadline <= now {
                false => (false, lease.expires_at, *number, is_alone(lease)),
                true => (true, lease.deadline, *number, false),
            })
            .collect();
        over.sort_unstable();
        for (is_overdue, _, number, is_alone) in over {
            self.revoke_all(number);
            if is_overdue {
                self.disbelieve(number, "its executor said nothing by its deadline", now);
            } else {
                if let Some(consumer) = self.consumers.get_mut(&self.leases[&number].consumer)
                    && !is_alone
                {
                    consumer.lost_at = Some(now);
                }
                self.lose_lease(number, is_alone, now);
            }
        }
        let deaf = self.consumers.iter().filter(|(_, consumer)| consumer.revoked.len() > REVOKED_LEASES);
        let deaf: Vec<ConsumerId> = deaf.map(|(id, _)| *id).collect();
        for id in deaf {
            self.disconnect(id, now);
        }
        self.drop_records(now);
        self.idempotency.expire(now, &self.jobs);
        // Expired maps are absent at once; freeing them looks at each, so it is done now and then.
        if now.since(self.swept_at) >= SWEEP_EVERY {
            self.swept_at = now;
            self.maps.sweep(now);
        }
        self.signal_due(now);
    }

    /// What an idempotency key is bound to now.
    pub(super) fn known_key(&mut self, scope: &Scope, now: Timestamp) -> Option<Bound> {
        self.idempotency.expire(now, &self.jobs);
        self.idempotency.get(scope)
    }

    /// Nothing of the lease counts any more: its executor is told.
    pub(super) fn revoke_all(&mut self, number: u64) {
        let jobs: Vec<JobId> = self.leases[&number].jobs.iter().copied().collect();
        jobs.into_iter().for_each(|job| self.revoke(number, job));
    }

    /// Wakes the groups of lanes whose delay or backoff, or whose time with their maker, has just passed.
    fn signal_due(&mut self, now: Timestamp) {
        let since = std::mem::replace(&mut self.ticked_at, now);
        let affinity = micros(LANE_AFFINITY);
        let left = |time: Timestamp| Timestamp(time.0.saturating_sub(affinity));
        for queue in self.handlers.iter().filter(|queue| !queue.figures.paused) {
            let came = |since, now| queue.ready.range((since, u64::MAX)..=(now, u64::MAX)).next().is_some();
            if came(since, now) || came(left(since), left(now)) {
                self.signals.groups.push(queue.spec.group);
            }
        }
    }

    /// When something becomes ready by time alone. `None`: only an event changes anything.
    #[must_use]
    pub fn next_wake(&self, now: Timestamp) -> Option<Timestamp> {
        let delayed = self.handlers.iter().filter(|queue| !queue.figures.paused).filter_map(|queue| {
            let (place, _) = queue.ready.range((now, u64::MAX)..).next()?;
            Some(place.0)
        });
        let left = self.handlers.iter().flat_map(|queue| {
            let known =
                queue.ready.iter().take(AFFINITY_SCAN).filter(|(_, lane)| self.lanes[*lane].maker.is_some());
            known.map(|(place, _)| place.0.plus(LANE_AFFINITY)).find(|until| now < *until)
        });
        let leases = self.leases.values().map(|lease| lease.expires_at.min(lease.deadline));
        delayed.chain(left).chain(leases).min()
    }
}
