//! A job's end: out of its lane, into the records, told; and the inboxes that ends wait in.

use std::sync::Arc;

use super::broker::{Broker, InboxBooks};
use super::records::Class;
use crate::clock::Timestamp;
use crate::handler::OnDead;
use crate::job::{Finished, InstanceId, JobId, JobRecord, JobStatus, Payload};
use crate::job_status::JobEvent;
use crate::limits::INBOX_ENDS;
use crate::ports::{Ends, JobEnded, Viewer};
use crate::problem::JobError;

impl Broker {
    /// Opens an inbox; an earlier one of this instance goes on.
    pub fn subscribe(&mut self, instance: InstanceId) {
        self.inboxes.entry(instance).or_default();
    }

    /// Closes an inbox.
    pub fn unsubscribe(&mut self, instance: InstanceId) {
        self.inboxes.remove(&instance);
    }

    /// The record of a job that the viewer may see; `instance` hears of its end.
    pub fn watch(
        &mut self,
        viewer: &Viewer,
        id: JobId,
        instance: InstanceId,
        now: Timestamp,
    ) -> Option<JobRecord> {
        let record = self.record(viewer, id, now)?;
        self.tell_also(id, instance);
        Some(record)
    }

    /// This instance hears of the job's end as well.
    pub(super) fn tell_also(&mut self, id: JobId, instance: InstanceId) {
        self.jobs.entry(id).and_modify(|entry| {
            if entry.instance != instance && !entry.watchers.contains(&instance) {
                entry.watchers.push(instance);
            }
        });
    }

    /// Takes ends out of an inbox: those of turns up to this one.
    pub fn take_ends(&mut self, instance: InstanceId, most: usize, turn: u64) -> Ends {
        let Some(inbox) = self.inboxes.get_mut(&instance) else { return Ends::default() };
        let may_go = |(of, _): &&(u64, JobEnded)| *of <= turn;
        let take = inbox.ended.iter().take(most).take_while(may_go).count();
        let ended = inbox.ended.drain(..take).map(|(_, ended)| ended).collect();
        Ends { ended, lost: std::mem::take(&mut inbox.lost) }
    }

    /// Instances that may be told of an end, up to this turn.
    pub(super) fn told(&self, turn: u64) -> impl Iterator<Item = InstanceId> {
        let is_told = move |inbox: &InboxBooks| inbox.ended.front().is_some_and(|(of, _)| *of <= turn);
        self.inboxes.iter().filter(move |(_, inbox)| is_told(inbox)).map(|(instance, _)| *instance)
    }

    /// Ends a job's life: out of its lane, into the records, told to whoever waits. The caller looks after the
    /// lease and calls [`Broker::make_ready`].
    pub(super) fn finish(
        &mut self,
        id: JobId,
        event: JobEvent,
        result: Result<Payload, JobError>,
        now: Timestamp,
    ) {
        if let Err(error) = &result
            && let Some(entry) = self.jobs.get(&id)
            && let Some(JobStatus::Failed | JobStatus::TimedOut | JobStatus::Dead) =
                entry.job.record.status.after(event)
        {
            self.failed(id, error, now);
        }
        self.touch(id);
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        let before = entry.job.record.status;
        let Some(queue) = entry.on(event, &mut self.handlers) else { return };
        let record = &mut entry.job.record;
        let status = record.status;
        if before == JobStatus::Running {
            queue.figures.job_seconds.observe(now.since(record.started_at.unwrap_or(now)));
        }
        record.finished_at = Some(now);
        if std::mem::take(&mut entry.job.losses) > 0 {
            self.totals.suspects -= 1;
            // An executor may have been kept free for it.
            self.signals.groups.push(queue.spec.group);
        }
        if status == JobStatus::Succeeded {
            entry.job.payload = None;
        }
        self.recent.push(record.spec.clone(), status, now);
        let finished = Arc::new(Finished { status, result });
        record.finished = Some(finished.clone());
        if self.rules.exports_traces && record.spec.trace.parent.is_some() {
            self.traced.push(record.clone().without_result());
        }
        for instance in [&entry.instance].into_iter().chain(&entry.watchers) {
            let Some(inbox) = self.inboxes.get_mut(instance) else { continue };
            if inbox.ended.len() < INBOX_ENDS {
                inbox.ended.push_back((self.turn + 1, JobEnded { job: id, finished: finished.clone() }));
            } else {
                inbox.lost = true;
            }
            if !self.signals.instances.contains(instance) {
                self.signals.instances.push(*instance);
            }
        }
        let number = entry.lane;
        let parks = status == JobStatus::Dead && queue.spec.options.on_dead == OnDead::Park;
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        if parks && lane.map.is_some() {
            lane.parked = true;
            queue.figures.parked += 1;
            return;
        }
        if lane.jobs.front() == Some(&id) {
            lane.jobs.pop_front();
        } else {
            lane.jobs.retain(|job| *job != id);
        }
        self.keep_record(id, now);
    }

    pub(super) fn keep_record(&mut self, id: JobId, now: Timestamp) {
        const ENTRY_BYTES: usize = 512;
        self.touch(id);
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        let progress = entry.job.record.progress.as_ref().map_or(0, |progress| progress.as_str().len());
        let bytes = ENTRY_BYTES + entry.job.result_bytes() + entry.job.payload_bytes() + progress;
        let class = match (entry.job.record.status, entry.job.awaited) {
            (_, is_line) if self.rules.keeps_lines() => {
                [Class::Succeeded, Class::Failed][usize::from(is_line)]
            }
            (JobStatus::Succeeded, true) => Class::Awaited,
            (JobStatus::Succeeded, false) => Class::Succeeded,
            (_, _) => Class::Failed,
        };
        entry.place = Some(self.retention.keep(id, class, bytes, now));
        self.drop_records(now);
    }

    /// Removes the records whose time is up, or that there is no more room for.
    pub(super) fn drop_records(&mut self, now: Timestamp) {
        let due = self.retention.take_due(now);
        self.forget(&due);
    }

    /// Removes records that are not kept any more. Each step is taken for all of them, so that the memory of one is waited for
    /// together with that of the others.
    pub(super) fn forget(&mut self, ids: &[JobId]) {
        ids.iter().for_each(|id| self.touch(*id));
        let gone: Vec<_> = ids.iter().filter_map(|id| self.jobs.remove(id)).collect();
        let specs = gone.iter().map(|entry| &entry.job.record.spec);
        let submissions: Vec<_> = specs.map(|spec| (spec.submitted_at, spec.id)).collect();
        for (entry, submission) in gone.iter().zip(&submissions) {
            self.submissions.remove(submission);
            self.job_bytes -= entry.written.bytes;
        }
    }
}
