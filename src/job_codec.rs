//! A job, its end and its changes as bytes: what the channel, Redis' envelopes and the journal share. Pure.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Timestamp, micros};
use crate::codec::{Cursor, Malformed, put_bytes, put_text};
use crate::job::{Change, Finished, JobId, JobSpec, JobStatus, MediaType, Payload, Trace};
use crate::problem::{Cause, Code, JobError};

/// All but the id.
pub fn put_spec(out: &mut Vec<u8>, spec: &JobSpec) {
    put_text(out, &spec.owner);
    put_text(out, &spec.handler);
    put_key(out, spec.ordering_key.as_deref());
    put_trace(out, &spec.trace, spec.tracestate.as_deref());
    out.push(u8::from(spec.trace.parent.is_some()));
    out.extend_from_slice(&spec.trace.parent.unwrap_or_default());
    out.extend_from_slice(&spec.submitted_at.0.to_be_bytes());
    out.extend_from_slice(&micros(spec.timeout).to_be_bytes());
    out.push(u8::from(spec.one_line));
}

/// What a handler may see of a trace.
pub fn put_trace(out: &mut Vec<u8>, trace: &Trace, tracestate: Option<&str>) {
    out.extend_from_slice(&trace.id);
    out.extend_from_slice(&trace.span);
    out.push(trace.flags);
    put_text(out, tracestate.unwrap_or_default());
}

/// Reads what [`put_trace`] writes.
///
/// # Errors
/// It has another shape.
pub fn trace(fields: &mut Cursor) -> Result<(Trace, Option<Arc<str>>), Malformed> {
    let (id, span, flags, parent) = (fields.array()?, fields.array()?, fields.u8()?, None);
    let text = Some(fields.text()?).filter(|text| !text.is_empty());
    Ok((Trace { id, span, flags, parent }, text.map(Arc::from)))
}

/// An ordering key, if there is one.
pub fn put_key(out: &mut Vec<u8>, key: Option<&str>) {
    out.push(u8::from(key.is_some()));
    put_text(out, key.unwrap_or_default());
}

/// A key, and its value if it is not removed.
pub fn put_change(out: &mut Vec<u8>, change: &Change) {
    put_text(out, &change.key);
    out.push(u8::from(change.value.is_some()));
    put_bytes(out, change.value.as_deref().unwrap_or_default());
}

/// Reads what [`put_spec`] writes.
///
/// # Errors
/// It has another shape.
pub fn spec(fields: &mut Cursor, id: JobId) -> Result<JobSpec, Malformed> {
    let (owner, handler) = (Arc::from(fields.text()?), Arc::from(fields.text()?));
    let keyed = fields.u8()? == 1;
    let key: &str = fields.text()?;
    let ordering_key = keyed.then(|| Arc::from(key));
    let (mut trace, tracestate) = trace(fields)?;
    let (has_parent, parent) = (fields.flag()?, fields.array()?);
    trace.parent = has_parent.then_some(parent);
    let submitted_at = Timestamp(fields.u64()?);
    let timeout = Duration::from_micros(fields.u64()?);
    let one_line = fields.u8()? == 1;
    Ok(JobSpec { id, owner, handler, ordering_key, trace, tracestate, submitted_at, timeout, one_line })
}

/// The result or the error; the status stands elsewhere.
pub fn put_result(out: &mut Vec<u8>, finished: &Finished) {
    match &finished.result {
        Ok(payload) => put_payload(out, payload),
        Err(error) => {
            put_text(out, error.code.as_str());
            put_text(out, &error.detail);
            put_text(out, error.cause.map_or("", Cause::as_str));
        }
    }
}

/// Reads what [`put_result`] writes of a job with this status.
///
/// # Errors
/// It has another shape.
pub fn finished(fields: &mut Cursor, status: JobStatus) -> Result<Finished, Malformed> {
    let result = if status == JobStatus::Succeeded {
        Ok(payload(fields)?)
    } else {
        let code = Code::parse(fields.text()?).ok_or(Malformed)?;
        let detail = fields.text()?.to_owned();
        Err(JobError { code, detail, cause: Cause::parse(fields.text()?) })
    };
    Ok(Finished { status, result })
}

/// Media type and bytes.
pub fn put_payload(out: &mut Vec<u8>, payload: &Payload) {
    put_text(out, payload.media_type.as_str());
    put_bytes(out, &payload.bytes);
}

/// Reads what [`put_payload`] writes.
///
/// # Errors
/// It has another shape.
pub fn payload(fields: &mut Cursor) -> Result<Payload, Malformed> {
    let media_type = MediaType::parse(fields.text()?).ok_or(Malformed)?;
    Ok(Payload { media_type, bytes: Arc::from(fields.bytes()?) })
}
