//! Looking at the broker: records, lists, figures. Nothing here changes anything.

use super::broker::Broker;
use super::entry::{Entry, HandlerQueue};
use crate::clock::Timestamp;
use crate::job::{JobId, JobRecord, JobStatus, Payload, WaitingFor};
use crate::ports::{Filter, HandlerStats, LaneStats, Listed, Place, Share, Stats, Viewer};

impl Broker {
    /// Jobs that wait; what jobs of callers take that have not ended; and what follow-ups do. Each kind has room of its own, so that
    /// jobs that follow themselves up keep no caller out.
    pub(super) fn waiting(&self) -> (usize, Share, Share) {
        self.handlers.iter().fold(Default::default(), |(queued, of_callers, follow_ups), queue| {
            (queued + queue.figures.queued, of_callers + queue.of_callers, follow_ups + queue.follow_ups)
        })
    }

    /// What this owner's jobs take that have not ended, but for follow-ups.
    pub(super) fn share(&self, owner: &str) -> Share {
        let own = self.handlers.iter().filter_map(|queue| queue.owners.get(owner));
        own.fold(Share::default(), |sum, own| sum + *own)
    }

    /// A job that the viewer may see.
    pub(super) fn seen(&self, viewer: &Viewer, id: JobId) -> Option<&Entry> {
        let entry = self.jobs.get(&id)?;
        viewer.sees(&entry.job.record.spec.owner).then_some(entry)
    }

    /// The record of a job that the viewer may see.
    #[must_use]
    pub fn record(&self, viewer: &Viewer, id: JobId, now: Timestamp) -> Option<JobRecord> {
        self.seen(viewer, id).map(|_| self.record_of(id, now))
    }

    pub(super) fn record_of(&self, id: JobId, now: Timestamp) -> JobRecord {
        let entry = &self.jobs[&id];
        let waits = entry.job.record.status == JobStatus::Queued;
        JobRecord { waiting_for: waits.then(|| self.waiting_for(id, now)), ..entry.job.record.clone() }
    }

    fn waiting_for(&self, id: JobId, now: Timestamp) -> WaitingFor {
        let Entry { job, handler, lane, .. } = &*self.jobs[&id];
        let queue = &self.handlers[*handler];
        if queue.figures.paused {
            return WaitingFor::Paused;
        }
        let head = self.lanes.get(lane).and_then(|lane| lane.jobs.front());
        if let Some(head) = head.filter(|head| **head != id) {
            return WaitingFor::Lane(*head);
        }
        let until = job.not_before;
        if until > now {
            return if job.delivery > 0 { WaitingFor::Backoff(until) } else { WaitingFor::Delay(until) };
        }
        if self.totals.consumers[queue.spec.group] == 0 { WaitingFor::Executor } else { WaitingFor::Workers }
    }

    /// See [`crate::ports::Producer::payload`].
    #[must_use]
    pub fn payload(&self, viewer: &Viewer, id: JobId) -> Option<Option<Payload>> {
        self.seen(viewer, id).map(|entry| entry.job.payload.clone())
    }

    /// Records that the viewer may see, newest submission first.
    #[must_use]
    pub fn list(&self, viewer: &Viewer, filter: &Filter, now: Timestamp) -> Listed {
        let after = filter.after.map_or((Timestamp(u64::MAX), JobId([u8::MAX; 16])), |place| {
            (Timestamp(place.number), place.job)
        });
        let newest = self.submissions.range(..after).rev().map(|(_, id)| (*id, &self.jobs[id].job.record));
        let records: Vec<JobRecord> = newest
            .filter(|(_, record)| viewer.sees(&record.spec.owner))
            .filter(|(_, record)| filter.matches(record.status, &record.spec))
            .take(filter.limit)
            .map(|(id, _)| self.record_of(id, now))
            .collect();
        let last = records.last().filter(|_| records.len() == filter.limit).map(|record| &record.spec);
        let next = last.map(|spec| Place { number: spec.submitted_at.0, job: spec.id });
        Listed { records, next }
    }

    /// See [`crate::ports::Producer::lanes`].
    #[must_use]
    pub fn lanes(
        &self,
        viewer: &Viewer,
        handler: &str,
        most: usize,
        now: Timestamp,
    ) -> Option<Vec<LaneStats>> {
        let index = *self.handler_index.get(handler)?;
        let lanes = self.lanes.values().filter(|lane| lane.handler == index);
        let mut waiting: Vec<_> = lanes
            .filter_map(|lane| {
                let head = &self.jobs[lane.jobs.front()?].job;
                // Behind a head that runs the next one waits.
                let waits = lane.parked || head.record.status == JobStatus::Queued || lane.jobs.len() > 1;
                let is_seen = waits && viewer.sees(&head.record.spec.owner);
                is_seen.then(|| (head.waits_since, head.order, head.record.spec.id, lane.jobs.len()))
            })
            .collect();
        waiting.sort_unstable();
        let shown = waiting.into_iter().take(most);
        Some(shown.map(|(_, _, head, jobs)| LaneStats { head: self.record_of(head, now), jobs }).collect())
    }

    /// The figures now.
    #[must_use]
    pub fn stats(&self, groups: &[std::sync::Arc<str>], now: Timestamp) -> Stats {
        let mut stats = self.totals.clone();
        stats.records = self.jobs.len();
        stats.leases = self.leases.len();
        stats.idempotency_keys = self.idempotency.len();
        stats.idempotency_evicted = self.idempotency.evicted;
        stats.state_bytes = self.maps.held_bytes();
        for consumer in self.consumers.values() {
            stats.busy[consumer.group] += consumer.leases.len().min(self.workers[consumer.group]);
        }
        let oldest = |queue: &HandlerQueue| queue.waiting.first().map(|(since, _)| now.since(*since));
        let handlers = self.handlers.iter().map(|queue| HandlerStats {
            group: groups[queue.spec.group].clone(),
            oldest: oldest(queue).unwrap_or_default(),
            ..queue.figures.clone()
        });
        stats.handlers = handlers.collect();
        stats
    }

    /// Entries of every table: the same after any number of finished and expired jobs.
    #[must_use]
    pub fn sizes(&self) -> [usize; 6] {
        [
            self.jobs.len(),
            self.lanes.len(),
            self.ordered_lanes.len(),
            self.leases.len(),
            self.idempotency.len(),
            self.maps.len(),
        ]
    }

    /// Jobs that have not ended.
    #[must_use]
    pub fn unfinished(&self) -> Vec<JobId> {
        let live = self.jobs.iter().filter(|(_, entry)| !entry.job.record.status.is_terminal());
        live.map(|(id, _)| *id).collect()
    }

    /// True once nothing runs and nothing can start before `deadline`.
    #[must_use]
    pub fn is_idle(&self, deadline: Timestamp) -> bool {
        let can_start = |queue: &HandlerQueue| {
            !queue.figures.paused
                && queue.ready.first_key_value().is_some_and(|(place, _)| place.0 < deadline)
        };
        self.leases.is_empty() && !self.handlers.iter().any(can_start)
    }
}
