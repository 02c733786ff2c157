//! What a journal is told of the broker, and how the broker is made again from it.
//!
//! A turn says how things stand at its end, whatever happened in between: so what was changed is only noted, and written
//! down once. What ends by time alone is not written: it ends again.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::broker::{Broker, Lane};
use super::entry::{Changed, Entry, Written};
use crate::clock::Timestamp;
use crate::job::{Change, InstanceId, JobId, JobStatus, Version};
use crate::journal::Image;
use crate::journal::facts::{self, Fact, Job, Thing};
use crate::journal::image::Map;
use crate::ports::{HandlerStats, Viewer};
use crate::problem::Cause;

/// What an idempotency key takes, about.
const KEY_BYTES: usize = 256;

/// What is said of a job in a turn, about.
const JOB_BYTES: usize = 512;

/// What a turn says.
#[derive(Debug, Default)]
pub struct Facts {
    pub bytes: Vec<u8>,
    /// What of that are bases.
    pub bases: Vec<Thing>,
    pub last_fence: u64,
}

impl Facts {
    fn put(&mut self, fact: &Fact) {
        facts::put(&mut self.bytes, fact);
        self.bases.extend(fact.base());
    }
}

impl Broker {
    /// From now on what changes is noted; with what a journal has kept, if this broker is new.
    ///
    /// # Errors
    /// Jobs that have not ended are of handlers that are not there.
    pub fn keep_journal(&mut self, image: Image, now: Timestamp) -> Result<(), String> {
        self.changed = Some(Box::default());
        let lost = self.restore(image, now)?;
        if let Some(changed) = &mut self.changed {
            // What stands as it was written is not written again; what has gone is.
            let jobs = &mut self.jobs;
            changed.jobs.retain(|id| jobs.get_mut(id).map(|it| it.written.is_outdated = false).is_none());
        }
        self.maps.changed = Some(Default::default());
        self.idempotency.changed = Some(Vec::new());
        lost.into_iter().for_each(|id| self.lose_with_seat(id, now));
        // In the order in which their heads came, as they would have been ready.
        let head =
            |lane: &Lane| lane.jobs.front().map(|id| (self.jobs[id].job.not_before, self.jobs[id].job.order));
        let mut lanes: Vec<_> = self.lanes.iter().map(|(number, lane)| (head(lane), *number)).collect();
        lanes.sort_unstable();
        lanes.into_iter().for_each(|(_, lane)| self.make_ready(lane, now));
        self.drop_records(now);
        Ok(())
    }

    /// The job has changed.
    pub(super) fn touch(&mut self, id: JobId) {
        if let Some(changed) = &mut self.changed
            && let Some(entry) = self.jobs.get_mut(&id)
            && !std::mem::replace(&mut entry.written.is_outdated, true)
        {
            changed.jobs.push(id);
        }
    }

    /// The turn whose end whoever learns how things stand now must wait for.
    #[must_use]
    pub fn seen_turn(&self) -> u64 {
        let Some(Changed { jobs, handlers }) = self.changed.as_deref() else { return 0 };
        let is_quiet = jobs.is_empty() && handlers.is_empty();
        let maps = self.maps.changed.as_ref().is_none_or(|changed| changed.is_empty());
        let keys = self.idempotency.changed.as_ref().is_none_or(Vec::is_empty);
        if is_quiet && maps && keys { self.turn } else { self.turn + 1 }
    }

    /// How many turns were taken.
    #[must_use]
    pub fn taken_turns(&self) -> u64 {
        self.turn
    }

    /// What a base of this takes, about; 0 if it is over.
    #[must_use]
    pub fn bytes_of(&self, thing: &Thing) -> usize {
        match thing {
            Thing::Job(id) => self.jobs.get(id).map_or(0, |entry| entry.job.base_bytes()),
            Thing::Map(name) => self.maps.bytes_of(name),
            Thing::Key(scope) => self.idempotency.get(scope).map_or(0, |_| KEY_BYTES),
            Thing::Paused(handler) => KEY_BYTES * usize::from(self.paused(handler).is_some()),
        }
    }

    /// Its number, if this handler is paused.
    fn paused(&self, handler: &str) -> Option<usize> {
        let index = self.handler_index.get(handler).copied();
        index.filter(|index| self.handlers[*index].figures.paused)
    }

    /// This, if it is not over, is written whole with the next turn.
    pub fn write_again(&mut self, thing: &Thing) {
        match thing {
            Thing::Job(id) => {
                self.touch(*id);
                self.jobs.entry(*id).and_modify(|entry| entry.written.has_base = false);
            }
            Thing::Map(name) => self.maps.forget_base(name),
            Thing::Key(scope) => self.idempotency.touch(scope),
            Thing::Paused(handler) => {
                let paused = self.paused(handler);
                self.changed.iter_mut().for_each(|changed| changed.handlers.extend(paused));
            }
        }
    }

    /// Bytes of all that is not over, about.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        (self.job_bytes + self.maps.held_bytes() + KEY_BYTES * self.idempotency.len()) as u64
    }

    /// Takes what there is to be written. It is the next turn's.
    pub fn take_facts(&mut self) -> Facts {
        let mut facts = Facts { last_fence: self.last_fence, ..Facts::default() };
        let has_news = self.seen_turn() > self.turn;
        let changed = self.changed.as_deref_mut().filter(|_| has_news).map(std::mem::take);
        let Some(changed) = changed else { return facts };
        self.turn += 1;
        facts.bytes.reserve(JOB_BYTES * changed.jobs.len());
        for id in changed.jobs {
            let Some(entry) = self.jobs.get_mut(&id) else {
                facts.put(&Fact::Gone(id));
                continue;
            };
            let lane = self.lanes.get(&entry.lane).filter(|_| entry.place.is_none());
            let lease = lane.and_then(|lane| self.leases.get(&lane.lease?));
            entry.job.is_leased = lease.is_some_and(|lease| lease.jobs.contains(&id));
            entry.job.parks = lane.is_some_and(|lane| lane.parked && lane.jobs.front() == Some(&id));
            let now = Written { has_base: true, is_outdated: false, bytes: entry.job.base_bytes() };
            let written = std::mem::replace(&mut entry.written, now);
            self.job_bytes = self.job_bytes + now.bytes - written.bytes;
            facts::put_job(&mut facts.bytes, &entry.job, !written.has_base);
            facts.bases.extend((!written.has_base).then_some(Thing::Job(id)));
        }
        for (name, keys) in self.maps.changed.as_mut().map(std::mem::take).unwrap_or_default() {
            let version = self.ordered_lanes.get(&name).map_or(0, |lane| self.lanes[lane].version.0);
            let Some(map) = self.maps.get_mut(&name) else {
                facts.put(&Fact::MapGone(name));
                continue;
            };
            let is_whole = !std::mem::replace(&mut map.has_base, true);
            let keys = if is_whole { map.entries.keys().cloned().collect() } else { keys };
            let change = |key: Arc<str>| Change { value: map.entries.get(&key).cloned(), key };
            let changes = keys.into_iter().map(change).collect();
            facts.put(&Fact::Map { name, is_whole, version, expires_at: map.expires_at, changes });
        }
        for scope in self.idempotency.changed.as_mut().map(std::mem::take).unwrap_or_default() {
            facts.put(&match self.idempotency.get(&scope) {
                Some(bound) => Fact::Key(scope, bound),
                None => Fact::KeyGone(scope),
            });
        }
        for index in changed.handlers {
            let HandlerStats { handler, paused, .. } = &self.handlers[index].figures;
            facts.put(&Fact::Paused(handler.clone(), *paused));
        }
        facts
    }

    /// What was taken could not be written: it is to be written with the next turn.
    pub fn put_back_facts(&mut self, facts: &Facts) {
        facts.bases.iter().for_each(|thing| self.write_again(thing));
        let again = facts::read_all(&facts.bytes, |fact| {
            match fact {
                Fact::Stands(job) => self.touch(job.record.spec.id),
                Fact::Gone(id) => self.changed.iter_mut().for_each(|changed| changed.jobs.push(id)),
                Fact::Map { name, changes, .. } => self.maps.touch(&name, &changes),
                Fact::MapGone(name) => self.maps.touch(&name, &[]),
                Fact::KeyGone(scope) => self.idempotency.touch(&scope),
                // Of these it is the base.
                Fact::Job(_) | Fact::Key(..) | Fact::Paused(..) => {}
            }
            Ok(())
        });
        debug_assert!(again.is_ok(), "it was just written");
    }

    /// Jobs that nobody was told of are as if they had never come.
    pub fn take_back(&mut self, jobs: &[JobId], now: Timestamp) {
        for id in jobs {
            self.cancel(&Viewer::service(), *id, now);
            if let Some(place) = self.jobs.get(id).and_then(|entry| entry.place) {
                self.retention.forget(place);
            }
            self.forget(&[*id]);
        }
        self.idempotency.unbind(jobs);
    }

    /// Says which jobs may have been running.
    fn restore(&mut self, image: Image, now: Timestamp) -> Result<Vec<JobId>, String> {
        self.last_fence = image.last_fence;
        for (name, is_paused) in image.paused {
            if let Some(index) = self.handler_index.get(&name) {
                self.handlers[*index].figures.paused = is_paused;
            }
        }
        // No frame could carry them: each try would end an executor's connection.
        let most = self.rules.max_payload;
        let large = |map: &Map| map.entries.values().any(|value| value.len() > most);
        let large =
            image.maps.iter().find(|(_, map)| large(map)).map(|(name, _)| format!("{name} has a value"));
        let is_large = |job: &Job| !job.record.status.is_terminal() && job.payload_bytes() > most;
        let job = image.jobs.values().find(|job| is_large(job));
        let job = job.map(|job| format!("job {} has a payload", job.record.spec.id));
        if let Some(what) = large.or(job) {
            return Err(format!(
                "{what} beyond runtime.platform.execution_ipc.max_payload_bytes, which was larger"
            ));
        }
        for (name, map) in image.maps {
            let handler = name.strip_prefix("state:").and_then(|rest| rest.split_once(':'));
            if let Some(index) = handler.and_then(|(handler, _)| self.handler_index.get(handler)) {
                let lane = self.lane_of(*index, Some(name.clone()));
                self.lanes.entry(lane).and_modify(|lane| lane.version = Version(map.version));
            }
            self.maps.restore(name, map.entries, map.expires_at);
        }
        let mut jobs: Vec<Box<Job>> = image.jobs.into_values().collect();
        jobs.sort_unstable_by_key(|job| job.order);
        let (mut ended, mut lost, mut unknown) = (Vec::new(), Vec::new(), BTreeMap::<Arc<str>, usize>::new());
        for job in jobs {
            let record = &job.record;
            let (id, finished_at, is_live) =
                (record.spec.id, record.finished_at, !record.status.is_terminal());
            let Some(&handler) = self.handler_index.get(&record.spec.handler) else {
                *unknown.entry(record.spec.handler.clone()).or_default() += usize::from(is_live);
                continue;
            };
            lost.extend((is_live && job.is_leased).then_some(id));
            let parks = self.put_back(handler, *job);
            ended.extend((!is_live && !parks).then_some((finished_at, id)));
        }
        if let Some((handler, count)) = unknown.into_iter().find(|(_, count)| *count > 0) {
            return Err(format!(
                "it has {count} jobs that have not ended of {handler}, which is no known handler"
            ));
        }
        ended.sort_unstable();
        ended.into_iter().for_each(|(finished_at, id)| self.keep_record(id, finished_at.unwrap_or(now)));
        let mut keys: Vec<_> = image.keys.into_iter().collect();
        keys.sort_unstable_by_key(|(_, bound)| bound.until);
        keys.into_iter().for_each(|(scope, bound)| self.idempotency.restore(scope, bound));
        Ok(lost)
    }

    /// A job as it stood, at the end of its lane if it has one. True if it holds that, being dead.
    fn put_back(&mut self, handler: usize, mut job: Job) -> bool {
        let spec = job.record.spec.clone();
        let is_live = !job.record.status.is_terminal();
        let has_lane = is_live || job.parks;
        let lane = if has_lane { self.lane_for(handler, spec.ordering_key.as_deref()) } else { 0 };
        self.last_number = self.last_number.max(job.order);
        self.submissions.insert((spec.submitted_at, spec.id));
        let queue = &mut self.handlers[handler];
        if is_live {
            queue.count_status(&job, true);
            queue.count_live(&job, true);
            self.totals.suspects += usize::from(job.losses > 0);
        }
        if let Some(lane) = self.lanes.get_mut(&lane) {
            // With other settings than before it may not be the first of a lane, or have none.
            job.parks &= lane.map.is_some() && lane.jobs.is_empty();
            lane.jobs.extend((is_live || job.parks).then_some(spec.id));
            lane.parked |= job.parks;
            queue.figures.parked += usize::from(job.parks);
        }
        let (parks, bytes) = (job.parks, job.base_bytes());
        let written = Written { has_base: true, is_outdated: false, bytes };
        self.job_bytes += bytes;
        let entry = Entry { written, ..Entry::new(job, handler, lane, InstanceId(0)) };
        self.jobs.insert(spec.id, Box::new(entry));
        parks
    }

    /// The process of the job's broker has gone while the job may have been running: given back uncounted, and nothing is
    /// said of the job by that; but a job that takes its host along each time must end somewhere.
    fn lose_with_seat(&mut self, id: JobId, now: Timestamp) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        entry.job.seat_losses += 1;
        if entry.job.record.status == JobStatus::Queued {
            return self.may_have_begun(id);
        }
        entry.job.record.deliveries -= 1;
        self.again(id, Cause::ExecutorLost, "its broker's process was lost".into(), None, now);
    }
}
