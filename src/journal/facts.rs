//! Facts: how things stand, never what was called, so that a newer version reads them. Pure.
//!
//! A *base* says all of a thing, and replaces what was known of it; the others change what a base has said, and are
//! nothing without one.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::codec::{Cursor, Malformed, put_text};
use crate::job::{Attempt, AttemptOutcome, Change, JobId, JobRecord, JobSpec, JobStatus, Payload};
use crate::job_codec::{self, put_change, put_payload, put_result, put_spec};

/// Owner, handler, key.
pub type Scope = (Arc<str>, Arc<str>, Arc<str>);

/// What a base is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Thing {
    Job(JobId),
    /// A lane's state, or a context.
    Map(Arc<str>),
    Key(Box<Scope>),
    /// A handler that is paused.
    Paused(Arc<str>),
}

/// A job and how it stands: what a broker knows of it and a journal keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// As it is told, but for what it waits for.
    pub record: JobRecord,
    /// `None` once it succeeded: only then is it never needed again.
    pub payload: Option<Payload>,
    /// Another job has submitted it.
    pub is_follow_up: bool,
    pub awaited: bool,
    /// The number that its last start was told. A start that may have happened never shares its number, counted or not.
    pub delivery: u32,
    /// How often its executor was lost while it may have been running, in this life: see
    /// [`LOSSES_TO_BE_ALONE`](crate::limits::LOSSES_TO_BE_ALONE).
    pub losses: u32,
    /// The same of its broker's process, which says nothing about the job; but that must end somewhere.
    pub seat_losses: u32,
    /// Its place among all jobs of its lane: who entered it first has the smaller one.
    pub order: u64,
    pub not_before: Timestamp,
    /// When it could have run first: accepted, and after its caller's own delay.
    pub waits_since: Timestamp,
    /// When it was written, it was of a lease.
    pub is_leased: bool,
    /// The same: it was dead and held its lane.
    pub parks: bool,
}

impl Job {
    /// A new one, which nothing has happened to.
    pub fn queued(spec: Arc<JobSpec>) -> Job {
        Job {
            record: JobRecord::queued(spec),
            payload: None,
            is_follow_up: false,
            awaited: false,
            delivery: 0,
            losses: 0,
            seat_losses: 0,
            order: 0,
            not_before: Timestamp(0),
            waits_since: Timestamp(0),
            is_leased: false,
            parks: false,
        }
    }

    /// Bytes of its payload.
    pub fn payload_bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, |payload| payload.bytes.len())
    }

    /// Bytes of its result.
    pub fn result_bytes(&self) -> usize {
        self.record.finished.as_ref().map_or(0, |finished| match &finished.result {
            Ok(payload) => payload.bytes.len(),
            Err(error) => error.detail.len(),
        })
    }

    /// What a base of it takes, about.
    pub fn base_bytes(&self) -> usize {
        const FIXED: usize = 192;
        let spec = &self.record.spec;
        let key = spec.ordering_key.as_ref().map_or(0, |key| key.len());
        let state = spec.tracestate.as_ref().map_or(0, |state| state.len());
        let texts = spec.owner.len() + spec.handler.len() + key + state;
        FIXED + texts + self.result_bytes() + self.payload_bytes()
    }
}

/// What an idempotency key is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub job: JobId,
    /// Of the payload that it was first used with.
    pub fingerprint: [u8; 32],
    /// When it goes, if its job has ended by then.
    pub until: Timestamp,
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A base.
    Job(Box<Job>),
    /// How a job stands, whose base says the rest: here its spec has the id alone, and there is no payload.
    Stands(Box<Job>),
    /// Its record is not kept any more.
    Gone(JobId),
    /// A base iff it is the whole of the map.
    Map {
        name: Arc<str>,
        is_whole: bool,
        version: u64,
        expires_at: Option<Timestamp>,
        changes: Vec<Change>,
    },
    MapGone(Arc<str>),
    /// A base: an idempotency key is bound.
    Key(Scope, Bound),
    KeyGone(Scope),
    /// A base.
    Paused(Arc<str>, bool),
}

impl Fact {
    /// What it is the base of.
    pub fn base(&self) -> Option<Thing> {
        match self {
            Fact::Job(job) => Some(Thing::Job(job.record.spec.id)),
            Fact::Map { name, is_whole: true, .. } => Some(Thing::Map(name.clone())),
            Fact::Key(scope, _) => Some(Thing::Key(Box::new(scope.clone()))),
            Fact::Paused(handler, _) => Some(Thing::Paused(handler.clone())),
            Fact::Stands(_) | Fact::Gone(_) | Fact::Map { .. } | Fact::MapGone(_) | Fact::KeyGone(_) => None,
        }
    }
}

const JOB: u8 = 1;
const STANDS: u8 = 2;
const GONE: u8 = 3;
const MAP: u8 = 4;
const MAP_GONE: u8 = 5;
const KEY: u8 = 6;
const KEY_GONE: u8 = 7;
const PAUSED: u8 = 8;

/// Writes a fact.
pub fn put(out: &mut Vec<u8>, fact: &Fact) {
    match fact {
        Fact::Job(job) => put_job(out, job, true),
        Fact::Stands(job) => put_job(out, job, false),
        Fact::Gone(id) => {
            out.push(GONE);
            out.extend_from_slice(&id.0);
        }
        Fact::Map { name, is_whole, version, expires_at, changes } => {
            out.push(MAP);
            put_text(out, name);
            out.push(u8::from(*is_whole));
            out.extend_from_slice(&version.to_be_bytes());
            put_time(out, *expires_at);
            out.extend_from_slice(&u32::try_from(changes.len()).unwrap_or(u32::MAX).to_be_bytes());
            changes.iter().for_each(|change| put_change(out, change));
        }
        Fact::MapGone(name) => {
            out.push(MAP_GONE);
            put_text(out, name);
        }
        Fact::Key(scope, Bound { job, fingerprint, until }) => {
            out.push(KEY);
            put_scope(out, scope);
            out.extend_from_slice(&job.0);
            out.extend_from_slice(fingerprint);
            put_time(out, Some(*until));
        }
        Fact::KeyGone(scope) => {
            out.push(KEY_GONE);
            put_scope(out, scope);
        }
        Fact::Paused(handler, is_paused) => {
            out.push(PAUSED);
            put_text(out, handler);
            out.push(u8::from(*is_paused));
        }
    }
}

/// Writes a base of a job, or only how it stands.
pub fn put_job(out: &mut Vec<u8>, job: &Job, is_base: bool) {
    let Job { record, payload, .. } = job;
    out.push(if is_base { JOB } else { STANDS });
    out.extend_from_slice(&record.spec.id.0);
    if is_base {
        put_spec(out, &record.spec);
        out.push(u8::from(job.is_follow_up));
        out.push(u8::from(payload.is_some()));
        payload.iter().for_each(|payload| put_payload(out, payload));
    }
    out.push(record.status as u8);
    out.push(u8::from(job.is_leased) | u8::from(job.parks) << 1 | u8::from(job.awaited) << 2);
    for count in [record.deliveries, job.delivery, job.losses, job.seat_losses] {
        out.extend_from_slice(&count.to_be_bytes());
    }
    out.extend_from_slice(&job.order.to_be_bytes());
    let times = [Some(job.not_before), Some(job.waits_since), record.started_at, record.finished_at];
    times.into_iter().for_each(|time| put_time(out, time));
    record.finished.iter().for_each(|finished| put_result(out, finished));
    put_text(out, record.executor.as_deref().unwrap_or_default());
    out.push(u8::try_from(record.past.len()).unwrap_or(u8::MAX));
    for attempt in &record.past {
        put_time(out, Some(attempt.started_at));
        put_time(out, Some(attempt.ended_at));
        put_text(out, &attempt.executor);
        put_text(out, attempt.outcome.as_str());
    }
}

fn put_scope(out: &mut Vec<u8>, scope: &Scope) {
    [&scope.0, &scope.1, &scope.2].iter().for_each(|part| put_text(out, part));
}

/// 0 is no time.
fn put_time(out: &mut Vec<u8>, time: Option<Timestamp>) {
    out.extend_from_slice(&time.map_or(0, |time| time.0).to_be_bytes());
}

fn time(fields: &mut Cursor) -> Result<Option<Timestamp>, Malformed> {
    Ok(Some(fields.u64()?).filter(|time| *time > 0).map(Timestamp))
}

fn job(fields: &mut Cursor, is_base: bool) -> Result<Box<Job>, Malformed> {
    let id = JobId(fields.array()?);
    let spec = if is_base { job_codec::spec(fields, id)? } else { JobSpec { id, ..JobSpec::default() } };
    let mut job = Box::new(Job::queued(Arc::new(spec)));
    if is_base {
        job.is_follow_up = fields.flag()?;
        job.payload = fields.flag()?.then(|| job_codec::payload(fields)).transpose()?;
    }
    let status = *JobStatus::ALL.get(usize::from(fields.u8()?)).ok_or(Malformed)?;
    let flags = fields.u8().and_then(|flags| if flags < 8 { Ok(flags) } else { Err(Malformed) })?;
    (job.is_leased, job.parks, job.awaited) = (flags & 1 > 0, flags & 2 > 0, flags & 4 > 0);
    let record = &mut job.record;
    (record.status, record.deliveries) = (status, fields.u32()?);
    (job.delivery, job.losses, job.seat_losses) = (fields.u32()?, fields.u32()?, fields.u32()?);
    job.order = fields.u64()?;
    (job.not_before, job.waits_since) = (Timestamp(fields.u64()?), Timestamp(fields.u64()?));
    (record.started_at, record.finished_at) = (time(fields)?, time(fields)?);
    let ended = status.is_terminal().then(|| job_codec::finished(fields, status)).transpose()?;
    record.finished = ended.map(Arc::new);
    record.executor = Some(fields.text()?).filter(|name| !name.is_empty()).map(Arc::from);
    record.past = (0..fields.u8()?).map(|_| attempt(fields)).collect::<Result<_, _>>()?;
    Ok(job)
}

fn attempt(fields: &mut Cursor) -> Result<Attempt, Malformed> {
    let (started_at, ended_at) = (Timestamp(fields.u64()?), Timestamp(fields.u64()?));
    let (executor, outcome) = (Arc::from(fields.text()?), AttemptOutcome::parse(fields.text()?));
    Ok(Attempt { started_at, ended_at, executor, outcome: outcome.ok_or(Malformed)? })
}

/// Reads the facts of a turn.
///
/// # Errors
/// They do not have the shape, or one of these says so.
pub fn read_all(facts: &[u8], mut each: impl FnMut(Fact) -> Result<(), Malformed>) -> Result<(), Malformed> {
    let mut fields = Cursor::new(facts);
    while !fields.is_empty() {
        each(read(&mut fields)?)?;
    }
    Ok(())
}

fn read(fields: &mut Cursor) -> Result<Fact, Malformed> {
    let text = |fields: &mut Cursor| fields.text().map(Arc::<str>::from);
    let scope = |fields: &mut Cursor| Ok((text(fields)?, text(fields)?, text(fields)?));
    Ok(match fields.u8()? {
        JOB => Fact::Job(job(fields, true)?),
        STANDS => Fact::Stands(job(fields, false)?),
        GONE => Fact::Gone(JobId(fields.array()?)),
        MAP => {
            let (name, is_whole, version, expires_at) =
                (text(fields)?, fields.flag()?, fields.u64()?, time(fields)?);
            let change = |fields: &mut Cursor| {
                let (key, is_set) = (text(fields)?, fields.flag()?);
                let value = fields.bytes()?;
                Ok(Change { key, value: is_set.then(|| Arc::from(value)) })
            };
            // No room is taken for what has not come.
            let changes = (0..fields.u32()?).map(|_| change(fields)).collect::<Result<_, _>>()?;
            Fact::Map { name, is_whole, version, expires_at, changes }
        }
        MAP_GONE => Fact::MapGone(text(fields)?),
        KEY => {
            let scope = scope(fields)?;
            let (job, fingerprint) = (JobId(fields.array()?), fields.array()?);
            Fact::Key(scope, Bound { job, fingerprint, until: Timestamp(fields.u64()?) })
        }
        KEY_GONE => Fact::KeyGone(scope(fields)?),
        PAUSED => Fact::Paused(text(fields)?, fields.flag()?),
        _ => return Err(Malformed),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::job::{Finished, Trace};
    use crate::problem::{Code, JobError};

    #[test]
    fn facts_come_back_as_they_were_and_no_part_of_one_is_another() {
        let spec = JobSpec {
            id: JobId([1; 16]),
            owner: "o".into(),
            handler: "h".into(),
            ordering_key: Some("k".into()),
            trace: Trace { id: [2; 16], span: [3; 8], flags: 1, parent: Some([4; 8]) },
            tracestate: Some("a=1".into()),
            submitted_at: Timestamp(4),
            timeout: Duration::from_millis(5),
            one_line: true,
        };
        let error = JobError::new(Code::HandlerFailed, "no");
        let record = JobRecord {
            status: JobStatus::Failed,
            deliveries: 1,
            started_at: Some(Timestamp(8)),
            finished: Some(Arc::new(Finished { status: JobStatus::Failed, result: Err(error) })),
            executor: Some("12".into()),
            past: vec![Attempt {
                started_at: Timestamp(13),
                ended_at: Timestamp(14),
                executor: "15".into(),
                outcome: AttemptOutcome::GivenBack,
            }],
            ..JobRecord::queued(Arc::new(spec))
        };
        let payload = Some(Payload::json(*b"{}"));
        let scope: Scope = ("o".into(), "h".into(), "k".into());
        let change =
            |key: &str, value: Option<&[u8]>| Change { key: key.into(), value: value.map(Arc::from) };
        let job = Job {
            record,
            payload,
            is_follow_up: true,
            awaited: true,
            delivery: 2,
            losses: 3,
            seat_losses: 4,
            order: 5,
            not_before: Timestamp(6),
            waits_since: Timestamp(7),
            is_leased: false,
            parks: true,
        };
        let id = job.record.spec.id;
        let spec = Arc::new(JobSpec { id, ..JobSpec::default() });
        let record = JobRecord { spec, ..job.record.clone() };
        let stands = Job { record, payload: None, is_follow_up: false, ..job.clone() };
        let facts = [
            Fact::Job(Box::new(job)),
            Fact::Stands(Box::new(stands)),
            Fact::Gone(id),
            Fact::Map {
                name: "m".into(),
                is_whole: true,
                version: 9,
                expires_at: Some(Timestamp(10)),
                changes: vec![change("a", Some(b"v")), change("b", None)],
            },
            Fact::MapGone("m".into()),
            Fact::Key(scope.clone(), Bound { job: id, fingerprint: [11; 32], until: Timestamp(12) }),
            Fact::KeyGone(scope),
            Fact::Paused("h".into(), true),
        ];
        let (mut out, mut ends) = (Vec::new(), Vec::new());
        for fact in &facts {
            put(&mut out, fact);
            ends.push(out.len());
        }
        let mut read = Vec::new();
        let keep = |fact| {
            read.push(fact);
            Ok(())
        };
        assert_eq!(read_all(&out, keep), Ok(()));
        assert_eq!(read, facts);
        for end in 0..out.len() {
            let is_whole = end == 0 || ends.contains(&end);
            assert_eq!(read_all(&out[..end], |_| Ok(())).is_ok(), is_whole, "{end}");
        }
    }
}
