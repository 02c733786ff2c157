//! Facts: how things stand, never what was called, so that a newer version reads them. Pure.
//!
//! A *base* says all of a thing, and replaces what was known of it; the others change what a base has said, and are
//! nothing without one.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::codec::{Cursor, Malformed, put_text};
use crate::job::{Attempt, AttemptOutcome, Change, Finished, JobId, JobRecord, JobSpec, JobStatus, Payload};
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

/// A job as a base has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub spec: Arc<JobSpec>,
    pub is_follow_up: bool,
    /// `None` once it succeeded.
    pub payload: Option<Payload>,
    pub stands: Standing,
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub status: JobStatus,
    /// It is of a lease that is not over.
    pub is_leased: bool,
    /// It is dead and holds its lane.
    pub parks: bool,
    pub awaited: bool,
    /// Starts that count, starts of any kind, and how often its executor, or its broker's process, was lost with it.
    pub deliveries: u32,
    pub delivery: u32,
    pub losses: u32,
    pub seat_losses: u32,
    /// Its place among all jobs of its lane: who entered it first has the smaller one.
    pub order: u64,
    pub not_before: Timestamp,
    pub waits_since: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// `Some` iff the status is terminal.
    pub finished: Option<Arc<Finished>>,
    /// Who had its last delivery, unless that is among the past ones.
    pub executor: Option<Arc<str>>,
    pub past: Vec<Attempt>,
}

impl Standing {
    /// The record of a job that stands so.
    pub fn record(&self, spec: Arc<JobSpec>) -> JobRecord {
        let Standing { status, deliveries, started_at, finished_at, .. } = *self;
        let (finished, executor, past) = (self.finished.clone(), self.executor.clone(), self.past.clone());
        let stands = JobRecord { status, deliveries, started_at, finished_at, ..JobRecord::queued(spec) };
        JobRecord { finished, executor, past, ..stands }
    }
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A base.
    Job(Box<Job>),
    Stands(JobId, Standing),
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
    Key {
        scope: Scope,
        job: JobId,
        fingerprint: [u8; 32],
        until: Timestamp,
    },
    KeyGone(Scope),
    /// A base.
    Paused(Arc<str>, bool),
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
        Fact::Job(job) => {
            out.push(JOB);
            out.extend_from_slice(&job.spec.id.0);
            put_spec(out, &job.spec);
            out.push(u8::from(job.is_follow_up));
            out.push(u8::from(job.payload.is_some()));
            job.payload.iter().for_each(|payload| put_payload(out, payload));
            put_standing(out, &job.stands);
        }
        Fact::Stands(id, stands) => {
            out.push(STANDS);
            out.extend_from_slice(&id.0);
            put_standing(out, stands);
        }
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
        Fact::Key { scope, job, fingerprint, until } => {
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

fn put_standing(out: &mut Vec<u8>, stands: &Standing) {
    out.push(stands.status as u8);
    out.push(u8::from(stands.is_leased) | u8::from(stands.parks) << 1 | u8::from(stands.awaited) << 2);
    for count in [stands.deliveries, stands.delivery, stands.losses, stands.seat_losses] {
        out.extend_from_slice(&count.to_be_bytes());
    }
    out.extend_from_slice(&stands.order.to_be_bytes());
    let times = [Some(stands.not_before), Some(stands.waits_since), stands.started_at, stands.finished_at];
    times.into_iter().for_each(|time| put_time(out, time));
    stands.finished.iter().for_each(|finished| put_result(out, finished));
    put_text(out, stands.executor.as_deref().unwrap_or_default());
    out.push(u8::try_from(stands.past.len()).unwrap_or(u8::MAX));
    for attempt in &stands.past {
        put_time(out, Some(attempt.started_at));
        put_time(out, Some(attempt.ended_at));
        put_text(out, &attempt.executor);
        put_text(out, attempt.outcome.as_str());
    }
}

fn standing(fields: &mut Cursor) -> Result<Standing, Malformed> {
    let status = *JobStatus::ALL.get(usize::from(fields.u8()?)).ok_or(Malformed)?;
    let flags = fields.u8().and_then(|flags| if flags < 8 { Ok(flags) } else { Err(Malformed) })?;
    let (deliveries, delivery, losses, seat_losses) =
        (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
    let order = fields.u64()?;
    let (not_before, waits_since) = (Timestamp(fields.u64()?), Timestamp(fields.u64()?));
    let (started_at, finished_at) = (time(fields)?, time(fields)?);
    let ended = status.is_terminal().then(|| job_codec::finished(fields, status)).transpose()?;
    let executor = Some(fields.text()?).filter(|name| !name.is_empty()).map(Arc::from);
    let past = (0..fields.u8()?).map(|_| attempt(fields)).collect::<Result<_, _>>()?;
    Ok(Standing {
        status,
        is_leased: flags & 1 > 0,
        parks: flags & 2 > 0,
        awaited: flags & 4 > 0,
        deliveries,
        delivery,
        losses,
        seat_losses,
        order,
        not_before,
        waits_since,
        started_at,
        finished_at,
        finished: ended.map(Arc::new),
        executor,
        past,
    })
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
        JOB => {
            let id = JobId(fields.array()?);
            let spec = Arc::new(job_codec::spec(fields, id)?);
            let is_follow_up = fields.flag()?;
            let payload = fields.flag()?.then(|| job_codec::payload(fields)).transpose()?;
            Fact::Job(Box::new(Job { spec, is_follow_up, payload, stands: standing(fields)? }))
        }
        STANDS => Fact::Stands(JobId(fields.array()?), standing(fields)?),
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
            Fact::Key { scope, job, fingerprint, until: Timestamp(fields.u64()?) }
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
    use crate::job::Trace;
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
        let stands = Standing {
            status: JobStatus::Failed,
            is_leased: false,
            parks: true,
            awaited: true,
            deliveries: 1,
            delivery: 2,
            losses: 3,
            seat_losses: 4,
            order: 5,
            not_before: Timestamp(6),
            waits_since: Timestamp(7),
            started_at: Some(Timestamp(8)),
            finished_at: None,
            finished: Some(Arc::new(Finished { status: JobStatus::Failed, result: Err(error) })),
            executor: Some("12".into()),
            past: vec![Attempt {
                started_at: Timestamp(13),
                ended_at: Timestamp(14),
                executor: "15".into(),
                outcome: AttemptOutcome::GivenBack,
            }],
        };
        let payload = Some(Payload::json(*b"{}"));
        let scope: Scope = ("o".into(), "h".into(), "k".into());
        let change =
            |key: &str, value: Option<&[u8]>| Change { key: key.into(), value: value.map(Arc::from) };
        let job = Job { spec: Arc::new(spec), is_follow_up: true, payload, stands: stands.clone() };
        let id = job.spec.id;
        let facts = [
            Fact::Job(Box::new(job)),
            Fact::Stands(id, stands),
            Fact::Gone(id),
            Fact::Map {
                name: "m".into(),
                is_whole: true,
                version: 9,
                expires_at: Some(Timestamp(10)),
                changes: vec![change("a", Some(b"v")), change("b", None)],
            },
            Fact::MapGone("m".into()),
            Fact::Key { scope: scope.clone(), job: id, fingerprint: [11; 32], until: Timestamp(12) },
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
