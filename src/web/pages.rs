//! The routes that render or may block: ordinary sync code over the ports.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::bulk::{self, read};
use super::figures;
use super::respond::{Answer, Made, lanes_json, record_json, record_json_without_result};
use super::routes::{Inner, OfJob, parameter, unescaped};
use super::submission::number;
use crate::clock::{Clock, Timestamp};
use crate::job::{JobId, JobRecord, JobStatus, Trace};
use crate::limits::{LIST_LANES, LIST_RECORDS};
use crate::observe::metrics::Counters;
use crate::ports::{BackendError, Filter, Listed, NotRetried, Place, ProcessStats, Producer, Stats, Viewer};
use crate::problem::{Code, JobError, json_text};
use crate::process_table;

/// What the routes look at.
pub struct Pages {
    /// The broker's submitting side.
    pub producer: Arc<dyn Producer>,
    /// This process's counters.
    pub counters: Arc<Counters>,
    /// The names of the process groups.
    pub groups: Vec<String>,
    /// Workers of one of their executors.
    pub workers: Vec<usize>,
    pub clock: Clock,
    /// For the figures.
    pub profile: String,
}

impl Pages {
    /// Whatever it says of a job that there is, or may be, carries that job's id.
    pub fn answer(&self, route: &Inner, query: &str, body: &[u8], viewer: &Viewer, trace: &Trace) -> Answer {
        let page = self.page(route, query, body, viewer, trace);
        let is_known = !matches!(&page, Err(JobError { code: Code::UnknownJob, .. }));
        let answer = page.unwrap_or_else(|error| Answer::problem(&error, trace));
        match route {
            Inner::Job(id, _) if is_known => answer.with("cofferdam-job-id", id.to_string()),
            _ => answer,
        }
    }

    fn page(&self, route: &Inner, query: &str, body: &[u8], viewer: &Viewer, trace: &Trace) -> Made {
        let producer = &self.producer;
        match route {
            Inner::Job(id, OfJob::Record) => shown(producer.record(viewer, *id)?),
            Inner::Job(id, OfJob::Cancel) => {
                self.may_act(viewer, *id)?;
                shown(producer.cancel(viewer, *id)?)
            }
            Inner::Job(id, OfJob::Result) => {
                let record = producer.record(viewer, *id)?.ok_or_else(unknown_job)?;
                let none = || JobError::new(Code::NotFinished, "the job has not ended");
                let finished = record.finished.ok_or_else(none)?;
                Ok(Answer::finished(&finished, trace))
            }
            Inner::Job(id, OfJob::Payload) => {
                let payload = producer.payload(viewer, *id)?.ok_or_else(unknown_job)?;
                let gone =
                    || JobError::new(Code::NotFound, "the payload of a job that succeeded is not kept");
                Ok(Answer::foreign(&payload.ok_or_else(gone)?))
            }
            Inner::List => {
                let Listed { records, next } = producer.list(viewer, &filter(query)?)?;
                let records: Vec<String> = records.iter().map(record_json_without_result).collect();
                let next = next.map_or("null".into(), |place| format!(r#""{place}""#));
                Ok(Answer::json(200, format!(r#"{{"jobs":[{}],"next":{next}}}"#, records.join(","))))
            }
            Inner::Bulk(bulk) => bulk::answer(*bulk, body, viewer, &**producer, || self.clock.now()),
            Inner::Lanes(name) => {
                let lanes = producer.lanes(viewer, name, LIST_LANES + 1)?;
                Ok(Answer::json(200, lanes_json(name, &lanes.ok_or_else(unknown_handler)?, self.clock.now())))
            }
            Inner::Job(id, OfJob::Retry) => {
                self.may_act(viewer, *id)?;
                let retried = producer.retry(viewer, *id)?.ok_or_else(unknown_job)?;
                let (has_no_failure, has_no_room) = (
                    "only what ended without success can be retried",
                    "the queue has no room: it stays as it is",
                );
                let record = retried.map_err(|why| match why {
                    NotRetried::Is(_) => JobError::new(Code::NotRetryable, has_no_failure),
                    NotRetried::QueueFull => JobError::new(Code::QueueFull, has_no_room),
                })?;
                let answer = Answer::json(202, record_json(&record));
                Ok(answer.with("location", format!("/v1/jobs/{id}")))
            }
            Inner::Pause(name, paused) => {
                if !producer.pause(name, *paused)? {
                    return Err(unknown_handler());
                }
                let body = format!(r#"{{"handler":{},"paused":{paused}}}"#, json_text(name));
                Ok(Answer::json(200, body))
            }
            Inner::Stats => {
                let mut body = self.figures(&producer.stats()?);
                body["viewer"] = json!({ "name": *viewer.name, "admin": viewer.admin });
                Ok(Answer::json(200, body.to_string()))
            }
            Inner::Ready => self.ready(&producer.stats()?),
            Inner::Metrics => {
                let body = figures::metrics_text(&self.counters, &producer.stats()?, &self.groups);
                Ok(Answer::new(200, "text/plain; version=0.0.4", body.into_bytes()))
            }
        }
    }

    /// Refuses who may know of this job, but not act on its handler's.
    fn may_act(&self, viewer: &Viewer, id: JobId) -> Result<(), JobError> {
        if viewer.handlers.is_some() {
            let record = self.producer.record(viewer, id)?.ok_or_else(unknown_job)?;
            if !viewer.is_for(&record.spec.handler) {
                return Err(JobError::new(Code::Forbidden, "the token is not for this handler"));
            }
        }
        Ok(())
    }

    /// What `/v1/stats` says.
    pub fn figures(&self, stats: &Stats) -> Value {
        let mut shown =
            figures::stats_json(&self.profile, &self.counters, stats, &self.groups, &self.workers);
        if stats.processes.is_empty() {
            shown["processes"] = local_processes().iter().map(figures::process_json).collect();
        }
        shown
    }

    /// Ready: every group has an executor, and the service is not stopping.
    fn ready(&self, stats: &Stats) -> Made {
        if self.counters.draining.load(Ordering::Relaxed) {
            return Err(JobError::new(Code::Draining, "the service is shutting down"));
        }
        if let Some(error) = stats.away.clone() {
            return Err(error.into());
        }
        if let Some(why) = &stats.full {
            return Err(JobError::new(Code::QueueFull, why.clone()));
        }
        let mut groups = self.groups.iter().zip(&stats.consumers);
        match groups.find(|(_, executors)| **executors == 0) {
            None => Ok(Answer::json(200, r#"{"status":"ready"}"#.into())),
            Some((group, _)) => {
                Err(JobError::new(Code::Overloaded, format!("no executor of group {group} is connected")))
            }
        }
    }
}

/// A service of one host, where no backend tells of processes: this one, and those that its supervisor has started.
fn local_processes() -> Vec<ProcessStats> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let role_of = |pid| {
        let word = process_table::second_word(pid)?;
        ["web", "executor"].into_iter().find(|role| *role == word)
    };
    let others = role_of(own).map(|_| process_table::siblings()).unwrap_or_default();
    let others = others.into_iter().filter(|pid| *pid != own).filter_map(|pid| Some((pid, role_of(pid)?)));
    let all = [(own, role_of(own).unwrap_or("inline"))].into_iter().chain(others);
    let stats = |(pid, role): (i32, &'static str)| {
        let rss_bytes = process_table::resident_kib(&pid.to_string()).map(|kib| kib * 1_024);
        ProcessStats { role, pid: u32::try_from(pid).ok(), rss_bytes, ..ProcessStats::default() }
    };
    all.map(stats).collect()
}

/// Which records a query asks for.
fn filter(query: &str) -> Result<Filter, JobError> {
    let bad = |detail| JobError::new(Code::BadRequest, detail);
    let given = |name| match parameter(query, name) {
        None => Ok(None),
        // As the first page says it.
        Some("") if name == "after" => Ok(None),
        Some(text) => unescaped(text).map(Some).ok_or_else(|| bad("an escape in the query is none of UTF-8")),
    };
    let (handler, key) = (given("handler")?, given("key")?);
    let status = read(given("status")?, JobStatus::parse, "status is one of the job statuses")?;
    let trace = read(given("trace")?, JobId::parse, "trace is 32 hexadecimal digits")?.map(|JobId(id)| id);
    let before = read(given("before")?, Timestamp::parse, "before is a time as records show it")?;
    let after = read(given("after")?, Place::parse, "after is the next of another page")?;
    let limit = |text: &str| number(text).and_then(|limit| usize::try_from(limit).ok());
    let limit = |text: &str| limit(text).filter(|limit| (1..=LIST_RECORDS).contains(limit));
    let limit = read(given("limit")?, limit, "limit is a number from 1 to 1000")?.unwrap_or(100);
    let statuses = status.into_iter().collect();
    Ok(Filter { statuses, handler, key, trace, before, limit, after, bare: true })
}

fn shown(record: Option<JobRecord>) -> Made {
    let record = record.ok_or_else(unknown_job)?;
    Ok(Answer::json(200, record_json(&record)))
}

fn unknown_handler() -> JobError {
    JobError::new(Code::UnknownHandler, "there is no handler of this name")
}

fn unknown_job() -> JobError {
    JobError::new(Code::UnknownJob, "there is no job of this id")
}

impl From<BackendError> for JobError {
    fn from(error: BackendError) -> JobError {
        JobError::new(Code::BackendUnavailable, error.0)
    }
}
