//! Steering: cancel, retry, pause. What an operator or a caller does to jobs that were accepted.

use super::broker::Broker;
use crate::clock::Timestamp;
use crate::job::{JobId, JobRecord, JobStatus};
use crate::job_status::JobEvent;
use crate::ports::{LeaseId, OfLease, Viewer};
use crate::problem::{Code, JobError};

impl Broker {
    /// Cancels a job that has not ended; unparks the lane of a dead head. `None`: the viewer knows no such job.
    pub fn cancel(&mut self, viewer: &Viewer, id: JobId, now: Timestamp) -> Option<JobRecord> {
        let entry = self.jobs.get(&id).filter(|entry| viewer.sees(&entry.spec.owner))?;
        let (lane, lease, status) = (entry.lane, entry.lease, entry.status);
        if status.after(JobEvent::Cancel).is_none() {
            self.unpark(lane, id, now);
            return Some(self.record_of(id, now));
        }
        let error = JobError::new(Code::Cancelled, "the job was cancelled");
        self.finish(id, JobEvent::Cancel, Err(error), now);
        if let Some(number) = lease {
            self.revoke(number, id);
            if status == JobStatus::Running {
                self.end_lease(number, now);
            } else if let Some(lease) = self.leases.get_mut(&number) {
                lease.jobs.retain(|job| *job != id);
            }
        }
        self.make_ready(lane, now);
        Some(self.record_of(id, now))
    }

    fn unpark(&mut self, lane: u64, id: JobId, now: Timestamp) {
        let Some(parked) =
            self.lanes.get_mut(&lane).filter(|lane| lane.parked && lane.jobs.front() == Some(&id))
        else {
            return;
        };
        parked.parked = false;
        parked.jobs.pop_front();
        self.keep_record(id, now);
        self.make_ready(lane, now);
    }

    /// Queues a dead, failed, timed-out or cancelled job again: a new life.
    pub fn retry(
        &mut self,
        viewer: &Viewer,
        id: JobId,
        now: Timestamp,
    ) -> Option<Result<JobRecord, JobStatus>> {
        let entry = self.jobs.get_mut(&id).filter(|entry| viewer.sees(&entry.spec.owner))?;
        let Some(status) = entry.status.after(JobEvent::Resubmit) else {
            return Some(Err(entry.status));
        };
        entry.status = status;
        entry.deliveries = 0;
        entry.not_before = now;
        (entry.started_at, entry.finished_at, entry.finished) = (None, None, None);
        entry.awaited = false;
        if let Some(place) = entry.place.take() {
            self.retention.forget(place);
        }
        let (number, handler) = (entry.lane, entry.handler);
        let bytes = entry.payload.as_ref().map_or(0, |payload| payload.bytes.len());
        match self.lanes.get_mut(&number).filter(|lane| lane.parked && lane.jobs.front() == Some(&id)) {
            Some(lane) => {
                // The parked head never left its place.
                lane.parked = false;
                self.queued += 1;
                self.handlers[handler].queued += 1;
                self.live_bytes += bytes;
                self.make_ready(number, now);
            }
            None => self.enqueue(id, now),
        }
        Some(Ok(self.record_of(id, now)))
    }

    /// Holds or lets go a handler's queued jobs; false if there is no such handler.
    pub fn pause(&mut self, handler: &str, paused: bool) -> bool {
        let Some(&index) = self.handler_index.get(handler) else { return false };
        self.handlers[index].paused = paused;
        if paused {
            // Of each run only the running job goes on.
            let held: Vec<(u64, JobId)> = self
                .leases
                .iter()
                .filter(|(_, lease)| self.lanes[&lease.lane].handler == index)
                .flat_map(|(number, lease)| lease.jobs.iter().skip(1).map(|job| (*number, *job)))
                .collect();
            for (number, job) in held {
                self.revoke(number, job);
                self.jobs.entry(job).and_modify(|entry| entry.lease = None);
                self.leases.entry(number).and_modify(|lease| lease.jobs.truncate(1));
            }
        } else {
            let group = self.handlers[index].spec.group;
            self.signals.groups.push(group);
        }
        true
    }

    /// Tells a lease's consumer to stop or leave out a job.
    pub(super) fn revoke(&mut self, number: u64, job: JobId) {
        let Some(lease) = self.leases.get(&number) else { return };
        if let Some(consumer) = self.consumers.get_mut(&lease.consumer) {
            consumer.revoked.push(OfLease { lease: LeaseId(number), job });
            self.signals.consumers.push(lease.consumer);
        }
    }
}
