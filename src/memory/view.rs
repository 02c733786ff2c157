//! Looking at the broker: records, lists, figures. Nothing here changes anything.

use std::time::Duration;

use super::broker::Broker;
use crate::clock::Timestamp;
use crate::job::{JobId, JobRecord, JobStatus, WaitingFor};
use crate::ports::{Filter, HandlerStats, Stats, Viewer};

impl Broker {
    /// The record of a job that the viewer may see.
    #[must_use]
    pub fn record(&self, viewer: &Viewer, id: JobId, now: Timestamp) -> Option<JobRecord> {
        let entry = self.jobs.get(&id)?;
        viewer.sees(&entry.spec.owner).then(|| self.record_of(id, now))
    }

    pub(super) fn record_of(&self, id: JobId, now: Timestamp) -> JobRecord {
        let entry = &self.jobs[&id];
        JobRecord {
            spec: entry.spec.clone(),
            status: entry.status,
            deliveries: entry.deliveries,
            started_at: entry.started_at,
            finished_at: entry.finished_at,
            finished: entry.finished.clone(),
            waiting_for: (entry.status == JobStatus::Queued).then(|| self.waiting_for(id, now)),
        }
    }

    fn waiting_for(&self, id: JobId, now: Timestamp) -> WaitingFor {
        let entry = &self.jobs[&id];
        let queue = &self.handlers[entry.handler];
        if queue.paused {
            return WaitingFor::Paused;
        }
        match self.lanes.get(&entry.lane).and_then(|lane| lane.jobs.front()) {
            Some(head) if *head != id => return WaitingFor::Lane(*head),
            Some(_) | None => {}
        }
        if entry.not_before > now {
            let until = entry.not_before;
            return if entry.deliveries > 0 { WaitingFor::Backoff(until) } else { WaitingFor::Delay(until) };
        }
        if self.totals.consumers[queue.spec.group] == 0 { WaitingFor::Executor } else { WaitingFor::Workers }
    }

    /// Records that the viewer may see, newest submission first.
    #[must_use]
    pub fn list(&self, viewer: &Viewer, filter: &Filter, now: Timestamp) -> Vec<JobRecord> {
        let mut found: Vec<(Timestamp, JobId)> = self
            .jobs
            .values()
            .filter(|entry| viewer.sees(&entry.spec.owner))
            .filter(|entry| filter.status.is_none_or(|status| status == entry.status))
            .filter(|entry| filter.handler.as_ref().is_none_or(|handler| **handler == *entry.spec.handler))
            .map(|entry| (entry.spec.submitted_at, entry.spec.id))
            .collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.truncate(filter.limit);
        found.into_iter().map(|(_, id)| self.record_of(id, now)).collect()
    }

    /// The figures now.
    #[must_use]
    pub fn stats(&self, groups: &[std::sync::Arc<str>], now: Timestamp) -> Stats {
        let mut stats = self.totals.clone();
        stats.records = self.jobs.len();
        stats.leases = self.leases.len();
        for consumer in self.consumers.values() {
            stats.busy[consumer.group] += consumer.leases.len().min(self.workers[consumer.group]);
        }
        let mut lanes = vec![0; self.handlers.len()];
        for lane in self.lanes.values() {
            lanes[lane.handler] += 1;
        }
        stats.handlers = self
            .handlers
            .iter()
            .zip(lanes)
            .map(|(queue, lanes)| HandlerStats {
                handler: queue.spec.name.clone(),
                group: groups[queue.spec.group].clone(),
                paused: queue.paused,
                queued: queue.queued,
                running: queue.running,
                lanes,
                oldest: queue.ready.first_key_value().map_or(Duration::ZERO, |(place, _)| now.since(place.0)),
                submitted: queue.submitted,
                finished: queue.finished,
                job_seconds: queue.job_seconds.clone(),
                queue_wait_seconds: queue.queue_wait_seconds.clone(),
            })
            .collect();
        stats
    }

    /// Entries of every table: the same after any number of finished and expired jobs.
    #[must_use]
    pub fn sizes(&self) -> [usize; 6] {
        let maps = self.maps.len();
        [
            self.jobs.len(),
            self.lanes.len(),
            self.keyed_lanes.len(),
            self.leases.len(),
            self.idempotency.len(),
            maps,
        ]
    }

    /// Jobs that have not ended.
    #[must_use]
    pub fn unfinished(&self) -> Vec<JobId> {
        self.jobs.values().filter(|entry| !entry.status.is_terminal()).map(|entry| entry.spec.id).collect()
    }

    /// True once nothing runs and nothing can start before `deadline`.
    #[must_use]
    pub fn is_idle(&self, deadline: Timestamp) -> bool {
        let can_start = |queue: &super::broker::HandlerQueue| {
            !queue.paused && queue.ready.first_key_value().is_some_and(|(place, _)| place.0 < deadline)
        };
        self.leases.is_empty() && !self.handlers.iter().any(can_start)
    }
}
