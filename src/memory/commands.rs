//! Commands: cancel, retry, pause. What an operator or a caller does to jobs that were accepted.

use super::broker::Broker;
use super::leases::Rest;
use crate::clock::Timestamp;
use crate::job::{JobId, JobRecord, JobStatus};
use crate::job_status::JobEvent;
use crate::ports::{LeaseId, NotRetried, OfLease, Retried, Viewer};
use crate::problem::{Code, JobError};

impl Broker {
    /// Cancels a job that has not ended; unparks the lane of a dead head. `None`: the viewer knows no such job.
    pub fn cancel(&mut self, viewer: &Viewer, id: JobId, now: Timestamp) -> Option<JobRecord> {
        let entry = self.seen(viewer, id)?;
        let (number, status) = (entry.lane, entry.job.record.status);
        if status.is_terminal() {
            if self.unpark(number, id) {
                self.lanes.entry(number).and_modify(|lane| lane.jobs.retain(|job| *job != id));
                self.keep_record(id, now);
            }
        } else {
            let lease = self.lanes.get(&number).and_then(|lane| lane.lease);
            let lease = lease.filter(|lease| self.leases[lease].jobs.contains(&id));
            let error = JobError::new(Code::Cancelled, "the job was cancelled");
            self.finish(id, JobEvent::Cancel, Err(error), now);
            if let Some(lease) = lease {
                self.revoke(lease, id);
                if status == JobStatus::Running {
                    self.end_lease(lease, Rest::MayHaveBegun, now);
                } else {
                    self.leases.entry(lease).and_modify(|lease| lease.jobs.retain(|job| *job != id));
                }
            }
        }
        self.make_ready(number, now);
        Some(self.record_of(id, now))
    }

    /// True if the job is the dead head that has held its lane until now.
    fn unpark(&mut self, number: u64, id: JobId) -> bool {
        let lane = self.lanes.get_mut(&number).filter(|lane| lane.parked && lane.jobs.front() == Some(&id));
        let Some(lane) = lane else { return false };
        lane.parked = false;
        self.handlers[lane.handler].figures.parked -= 1;
        true
    }

    /// Queues a dead, failed, timed-out or cancelled job again: a new life.
    pub fn retry(&mut self, viewer: &Viewer, id: JobId, now: Timestamp) -> Option<Retried> {
        let entry = self.seen(viewer, id)?;
        if entry.job.record.status.after(JobEvent::Resubmit).is_none() {
            return Some(Err(NotRetried::Is(entry.job.record.status)));
        }
        if self.is_full_for(&entry.job.record.spec.owner, entry.job.payload_bytes(), entry.job.is_follow_up) {
            return Some(Err(NotRetried::QueueFull));
        }
        let entry = self.jobs.get_mut(&id)?;
        entry.job.waits_since = now;
        entry.on(JobEvent::Resubmit, &mut self.handlers);
        entry.job.record.begin_again();
        (entry.job.delivery, entry.job.seat_losses) = (0, 0);
        entry.job.not_before = now;
        entry.job.awaited = false;
        if let Some(place) = entry.place.take() {
            self.retention.forget(place);
        }
        let (number, handler, spec) = (entry.lane, entry.handler, entry.job.record.spec.clone());
        self.touch(id);
        if self.unpark(number, id) {
            // The parked head never left its place.
            self.make_ready(number, now);
        } else {
            let number = self.lane_for(handler, spec.ordering_key.as_deref());
            self.jobs.entry(id).and_modify(|entry| entry.lane = number);
            self.enqueue(number, id, now);
        }
        Some(Ok(self.record_of(id, now)))
    }

    /// Holds or lets go a handler's queued jobs; false if there is no such handler.
    pub fn pause(&mut self, handler: &str, paused: bool) -> bool {
        let Some(&index) = self.handler_index.get(handler) else { return false };
        self.handlers[index].figures.paused = paused;
        self.changed.iter_mut().for_each(|changed| changed.handlers.push(index));
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
                self.may_have_begun(job);
                self.leases.entry(number).and_modify(|lease| lease.jobs.truncate(1));
            }
        }
        // Of one that is paused an executor may have been kept free for a lane.
        if !paused || self.totals.suspects > 0 {
            self.signals.groups.push(self.handlers[index].spec.group);
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
