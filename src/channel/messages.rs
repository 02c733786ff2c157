//! The bodies of frames, one type a direction, so that the wrong one cannot be sent. Pure.

use std::sync::Arc;
use std::time::Duration;

use super::reject::Reject;
use crate::clock::{Timestamp, millis};
use crate::codec::{Cursor, put_bytes, put_list, put_text};
use crate::job::{
    Change, Effects, Entries, FollowUp, JobId, JobSpec, MediaType, Outcome, Payload, Progress, Version,
};
use crate::job_codec::{self, put_change, put_key, put_payload, put_trace};
use crate::limits::{ERROR_DETAIL_BYTES, FOLLOW_UPS, MAP_NAME_BYTES};
use crate::ports::{Lease, LeaseId, LeasedJob, StateAt};
use crate::problem::{Code, JobError};

const PING: u8 = 0x01;
const ROOM: u8 = 0x10;
const OUTCOME: u8 = 0x11;
const RELEASE: u8 = 0x12;
const PART: u8 = 0x14;
const PROGRESS: u8 = 0x15;
const PONG: u8 = 0x81;
const STATE: u8 = 0x90;
const LEASE: u8 = 0x91;
const FENCED: u8 = 0x93;
const CANCEL: u8 = 0x94;
const DRAIN: u8 = 0xA0;

/// True for the kinds that an executor may send.
pub fn to_broker(kind: u8) -> bool {
    matches!(kind, PING | ROOM | OUTCOME | RELEASE | PROGRESS | PART)
}

/// True for the kinds that a broker may send.
pub fn to_executor(kind: u8) -> bool {
    matches!(kind, PONG | STATE | LEASE | FENCED | CANCEL | DRAIN)
}

/// From an executor. The lease is the frame's.
#[derive(Clone, Debug, PartialEq)]
pub enum ToBroker {
    /// It lives; its leases are renewed.
    Ping,
    /// At most so many leases at once; 0: none, and `Drain` answers.
    Room(u32),
    /// What came of the run's next job; the parts before it belong to its effects.
    Outcome {
        job: JobId,
        delivery: u32,
        /// The state version that its handler saw.
        builds_on: Version,
        outcome: Outcome,
    },
    /// The lease is given back.
    Release,
    /// How far a job of the lease is.
    Progress(JobId, Progress),
    /// Effects of the lease's next outcome that do not fit its frame.
    Part(Effects),
}

/// From the broker. The lease is the frame's.
#[derive(Clone, Debug)]
pub enum ToExecutor {
    /// Answers a ping.
    Pong,
    /// Entries of the next lease's state, or of the context of one of its traces.
    State {
        /// `None` is the lane's state.
        trace: Option<[u8; 16]>,
        /// More of the map.
        entries: Vec<(Arc<str>, Arc<[u8]>)>,
    },
    /// A lease; the states before it are its own.
    Lease(Lease),
    /// A commit did not hold; the lease is over.
    Fenced(JobId),
    /// Stop this job, or leave it out.
    Cancel(JobId),
    /// Answers `Room` 0: all that was said before is in the books or was fenced, and no lease follows.
    Drain,
}

impl ToBroker {
    /// The kind, and the body.
    pub fn encode(&self) -> (u8, Vec<u8>) {
        let mut out = Vec::with_capacity(match self {
            ToBroker::Outcome { outcome: Outcome::Succeeded(payload, _), .. } => 128 + payload.bytes.len(),
            _ => 0,
        });
        let kind = match self {
            ToBroker::Ping => PING,
            ToBroker::Room(leases) => {
                out.extend_from_slice(&leases.to_be_bytes());
                ROOM
            }
            ToBroker::Outcome { job, delivery, builds_on, outcome } => {
                out.extend_from_slice(&job.0);
                out.extend_from_slice(&delivery.to_be_bytes());
                out.extend_from_slice(&builds_on.0.to_be_bytes());
                put_outcome(&mut out, outcome);
                OUTCOME
            }
            ToBroker::Release => RELEASE,
            ToBroker::Progress(job, progress) => {
                out.extend_from_slice(&job.0);
                put_text(&mut out, progress.as_str());
                PROGRESS
            }
            ToBroker::Part(effects) => {
                put_effects(&mut out, effects);
                PART
            }
        };
        (kind, out)
    }

    /// Reads a body of this kind.
    ///
    /// # Errors
    /// It does not have the shape, or something is left over.
    pub fn decode(kind: u8, body: &[u8]) -> Result<ToBroker, Reject> {
        let mut fields = Cursor::new(body);
        let message = match kind {
            PING => ToBroker::Ping,
            ROOM => ToBroker::Room(fields.u32()?),
            OUTCOME => ToBroker::Outcome {
                job: JobId(fields.array()?),
                delivery: fields.u32()?,
                builds_on: Version(fields.u64()?),
                outcome: outcome(&mut fields)?,
            },
            RELEASE => ToBroker::Release,
            PROGRESS => ToBroker::Progress(JobId(fields.array()?), progress(fields.text()?)?),
            PART => ToBroker::Part(effects(&mut fields)?),
            _ => return Err(Reject::UnknownKind),
        };
        fields.finish()?;
        Ok(message)
    }
}

impl ToExecutor {
    /// The kind, and the body.
    pub fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            ToExecutor::Pong => (PONG, Vec::new()),
            ToExecutor::Drain => (DRAIN, Vec::new()),
            ToExecutor::State { trace, entries } => {
                let mut out = vec![u8::from(trace.is_some())];
                out.extend_from_slice(&trace.unwrap_or_default());
                put_list(&mut out, entries, |out, (key, value)| {
                    put_text(out, key);
                    put_bytes(out, value);
                });
                (STATE, out)
            }
            ToExecutor::Lease(lease) => encode_lease(lease),
            ToExecutor::Fenced(job) => (FENCED, job.0.to_vec()),
            ToExecutor::Cancel(job) => (CANCEL, job.0.to_vec()),
        }
    }

    /// Reads a body of this kind, about this lease.
    ///
    /// # Errors
    /// It does not have the shape, or something is left over.
    pub fn decode(kind: u8, lease: u64, body: &[u8]) -> Result<ToExecutor, Reject> {
        let mut fields = Cursor::new(body);
        let message = match kind {
            PONG => ToExecutor::Pong,
            DRAIN => ToExecutor::Drain,
            STATE => {
                let is_context = fields.flag()?;
                let trace = fields.array()?;
                if !is_context && trace != [0; 16] {
                    return Err(Reject::Malformed);
                }
                let entry = |fields: &mut Cursor| -> Result<_, Reject> {
                    Ok((Arc::from(name(fields)?), Arc::from(fields.bytes()?)))
                };
                ToExecutor::State { trace: is_context.then_some(trace), entries: fields.list(entry)? }
            }
            LEASE => {
                let handler: Arc<str> = Arc::from(fields.text()?);
                let (state, version) = (fields.u8()?, Version(fields.u64()?));
                let state = match state {
                    0 => StateAt::Stateless,
                    1 => StateAt::Known(version),
                    2 => StateAt::Whole(version, Entries::new()),
                    _ => return Err(Reject::Malformed),
                };
                let jobs = fields.list(|fields| job(fields, &handler))?;
                if jobs.is_empty() {
                    return Err(Reject::Malformed);
                }
                ToExecutor::Lease(Lease { id: LeaseId(lease), handler, state, jobs })
            }
            FENCED => ToExecutor::Fenced(JobId(fields.array()?)),
            CANCEL => ToExecutor::Cancel(JobId(fields.array()?)),
            _ => return Err(Reject::UnknownKind),
        };
        fields.finish()?;
        Ok(message)
    }
}

/// A lease without its maps, which go before it: see [`ToExecutor::State`].
pub fn encode_lease(lease: &Lease) -> (u8, Vec<u8>) {
    let payloads: usize = lease.jobs.iter().map(|job| 192 + job.payload.bytes.len()).sum();
    let mut out = Vec::with_capacity(64 + payloads);
    put_text(&mut out, &lease.handler);
    let (state, version) = match &lease.state {
        StateAt::Stateless => (0, Version::default()),
        StateAt::Known(version) => (1, *version),
        StateAt::Whole(version, _) => (2, *version),
    };
    out.push(state);
    out.extend_from_slice(&version.0.to_be_bytes());
    put_list(&mut out, &lease.jobs, put_job);
    (LEASE, out)
}

fn name<'a>(fields: &mut Cursor<'a>) -> Result<&'a str, Reject> {
    let name = fields.text()?;
    if name.len() > MAP_NAME_BYTES { Err(Reject::Malformed) } else { Ok(name) }
}

fn put_outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    match outcome {
        Outcome::Succeeded(payload, effects) => {
            out.push(0);
            put_payload(out, payload);
            put_effects(out, effects);
        }
        Outcome::Failed(error) => {
            out.push(1);
            put_text(out, error.code.as_str());
            put_text(out, &error.detail);
        }
        Outcome::Retry(detail, after) => {
            out.push(2);
            put_text(out, detail);
            out.extend_from_slice(&after.map_or(0, |after| millis(after).max(1)).to_be_bytes());
        }
        Outcome::Crashed(detail) => {
            out.push(3);
            put_text(out, detail);
        }
        Outcome::TimedOut(detail) => {
            out.push(4);
            put_text(out, detail);
        }
    }
}

fn outcome(fields: &mut Cursor) -> Result<Outcome, Reject> {
    let detail = |fields: &mut Cursor| {
        let text = fields.text()?;
        if text.len() > ERROR_DETAIL_BYTES { Err(Reject::Malformed) } else { Ok(text.to_owned()) }
    };
    Ok(match fields.u8()? {
        0 => Outcome::Succeeded(payload(fields)?, effects(fields)?),
        1 => {
            // What an executor may say of a job; the other codes are the broker's and the gate's own.
            let code = Code::parse(fields.text()?);
            let own = [Code::HandlerFailed, Code::StateTooLarge, Code::ResultTooLarge];
            let code = code.filter(|code| own.contains(code)).ok_or(Reject::Malformed)?;
            Outcome::Failed(JobError::new(code, detail(fields)?))
        }
        2 => Outcome::Retry(
            detail(fields)?,
            Some(fields.u64()?).filter(|ms| *ms > 0).map(Duration::from_millis),
        ),
        3 => Outcome::Crashed(detail(fields)?),
        4 => Outcome::TimedOut(detail(fields)?),
        _ => return Err(Reject::Malformed),
    })
}

fn progress(text: &str) -> Result<Progress, Reject> {
    Progress::parse(text).filter(|progress| progress.as_str() == text).ok_or(Reject::Malformed)
}

fn payload(fields: &mut Cursor) -> Result<Payload, Reject> {
    // A type that is none becomes plain bytes: nothing else may reach a client's header.
    let media_type = MediaType::parse(fields.text()?).unwrap_or(MediaType::BYTES);
    Ok(Payload { media_type, bytes: Arc::from(fields.bytes()?) })
}

fn put_changes(out: &mut Vec<u8>, changes: &[Change]) {
    put_list(out, changes, put_change);
}

fn change(fields: &mut Cursor) -> Result<Change, Reject> {
    let key = Arc::from(name(fields)?);
    let is_set = fields.flag()?;
    let value = fields.bytes()?;
    if !is_set && !value.is_empty() {
        return Err(Reject::Malformed);
    }
    Ok(Change { key, value: is_set.then(|| Arc::from(value)) })
}

fn key(fields: &mut Cursor) -> Result<Option<Arc<str>>, Reject> {
    let is_keyed = fields.flag()?;
    let key = fields.text()?;
    match (is_keyed, key) {
        (true, key) => Ok(Some(Arc::from(key))),
        (false, "") => Ok(None),
        (false, _) => Err(Reject::Malformed),
    }
}

fn put_effects(out: &mut Vec<u8>, effects: &Effects) {
    put_changes(out, &effects.state);
    put_changes(out, &effects.context);
    put_list(out, &effects.follow_ups, |out, job| {
        put_text(out, &job.handler);
        put_key(out, job.ordering_key.as_deref());
        out.extend_from_slice(&millis(job.delay).to_be_bytes());
        put_payload(out, &job.payload);
    });
}

fn effects(fields: &mut Cursor) -> Result<Effects, Reject> {
    let state = fields.list(change)?;
    let context = fields.list(change)?;
    let follow_ups = fields.list(|fields| -> Result<_, Reject> {
        Ok(FollowUp {
            handler: Arc::from(fields.text()?),
            ordering_key: key(fields)?,
            delay: Duration::from_millis(fields.u64()?),
            payload: payload(fields)?,
        })
    })?;
    if follow_ups.len() > FOLLOW_UPS {
        return Err(Reject::Malformed);
    }
    Ok(Effects { state, context, follow_ups })
}

fn put_job(out: &mut Vec<u8>, job: &LeasedJob) {
    let spec = &job.spec;
    out.extend_from_slice(&spec.id.0);
    out.extend_from_slice(&job.delivery.to_be_bytes());
    out.extend_from_slice(&job.fence.to_be_bytes());
    put_trace(out, &spec.trace, spec.tracestate.as_deref());
    out.extend_from_slice(&spec.submitted_at.0.to_be_bytes());
    out.extend_from_slice(&millis(spec.timeout).to_be_bytes());
    out.push(u8::from(spec.one_line));
    put_text(out, &spec.owner);
    put_key(out, spec.ordering_key.as_deref());
    put_payload(out, &job.payload);
}

fn job(fields: &mut Cursor, handler: &Arc<str>) -> Result<LeasedJob, Reject> {
    let id = JobId(fields.array()?);
    let (delivery, fence) = (fields.u32()?, fields.u64()?);
    let (trace, tracestate) = job_codec::trace(fields)?;
    let submitted_at = Timestamp(fields.u64()?);
    let timeout = Duration::from_millis(fields.u64()?);
    let one_line = fields.flag()?;
    let owner = Arc::from(fields.text()?);
    let ordering_key = key(fields)?;
    let payload = payload(fields)?;
    let handler = handler.clone();
    let spec =
        JobSpec { id, owner, handler, ordering_key, trace, tracestate, submitted_at, timeout, one_line };
    let spec = Arc::new(spec);
    Ok(LeasedJob { spec, payload, delivery, fence, context: Entries::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Trace;

    fn said(outcome: Outcome) -> ToBroker {
        ToBroker::Outcome { job: JobId([1; 16]), delivery: 2, builds_on: Version(3), outcome }
    }

    fn samples() -> Vec<ToBroker> {
        let change =
            |key: &str, value: Option<&[u8]>| Change { key: key.into(), value: value.map(Arc::from) };
        let follow_up = FollowUp {
            handler: "h".into(),
            ordering_key: Some("k".into()),
            delay: Duration::from_millis(5),
            payload: Payload::octets(*b"p"),
        };
        let effects = Effects {
            state: vec![change("a", Some(b"1")), change("b", None)],
            context: vec![change("c", Some(b""))],
            follow_ups: vec![follow_up],
        };
        vec![
            ToBroker::Ping,
            ToBroker::Room(8),
            said(Outcome::Succeeded(Payload::json(*b"{}"), effects.clone())),
            said(Outcome::Failed(JobError::new(Code::HandlerFailed, "no"))),
            said(Outcome::Retry("later".into(), None)),
            said(Outcome::Retry("later".into(), Some(Duration::from_millis(5_000)))),
            said(Outcome::Crashed("oh".into())),
            said(Outcome::TimedOut("killed".into())),
            ToBroker::Release,
            ToBroker::Progress(JobId([1; 16]), Progress::parse("[1,2]").unwrap()),
            ToBroker::Part(effects),
        ]
    }

    #[test]
    fn messages_come_back_as_they_were_and_no_prefix_or_longer_body_is_one() {
        for message in samples() {
            let (kind, body) = message.encode();
            assert_eq!(ToBroker::decode(kind, &body), Ok(message.clone()));
            for end in 0..body.len() {
                assert_eq!(ToBroker::decode(kind, &body[..end]), Err(Reject::Malformed), "{message:?} {end}");
            }
            assert_eq!(ToBroker::decode(kind, &[&body[..], b"x"].concat()), Err(Reject::Malformed));
            assert!(to_broker(kind) && !to_executor(kind));
        }
    }

    #[test]
    fn a_lease_comes_back_as_it_was() {
        let spec = JobSpec {
            id: JobId([1; 16]),
            owner: "o".into(),
            handler: "h".into(),
            ordering_key: Some("".into()),
            trace: Trace { id: [2; 16], span: [3; 8], flags: 1, parent: None },
            tracestate: Some("a=1".into()),
            submitted_at: Timestamp(4),
            timeout: Duration::from_millis(5),
            one_line: true,
        };
        let spec = Arc::new(spec);
        let job = LeasedJob {
            spec: spec.clone(),
            payload: Payload::json(*b"1"),
            delivery: 1,
            fence: 9,
            context: Entries::new(),
        };
        let state = StateAt::Known(Version(8));
        let (kind, body) =
            encode_lease(&Lease { id: LeaseId(3), handler: "h".into(), state, jobs: vec![job] });
        let ToExecutor::Lease(lease) = ToExecutor::decode(kind, 3, &body).unwrap() else { panic!() };
        assert_eq!((lease.id, lease.state), (LeaseId(3), StateAt::Known(Version(8))));
        assert_eq!((&lease.jobs[0].spec, lease.jobs[0].fence), (&spec, 9));
        for end in 0..body.len() {
            assert!(ToExecutor::decode(kind, 3, &body[..end]).is_err());
        }
    }
}
