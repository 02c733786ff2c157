//! Answers as bytes. Pure. Every answer has a length or is chunked, is not stored, and says what it is about.

use std::fmt::{Display, Write as _};
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::codec::base64;
use crate::job::{AttemptOutcome, Finished, JobId, JobRecord, JobStatus, Payload, Trace, WaitingFor};
use crate::limits::{LIST_LANES, PAST_ATTEMPTS};
use crate::ports::LaneStats;
use crate::problem::{Code, JobError, document};

/// An answer before it is framed.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Header lines, each with its CR LF.
    pub headers: String,
    /// A result's bytes are those that the broker holds as well.
    pub body: Arc<[u8]>,
}

impl Answer {
    pub fn new(status: u16, media_type: &str, body: impl Into<Arc<[u8]>>) -> Answer {
        // All headers that may be added fit.
        let answer = Answer { status, headers: String::with_capacity(256), body: body.into() };
        answer.with("content-type", media_type)
    }

    pub fn json(status: u16, body: String) -> Answer {
        Answer::new(status, "application/json", body.into_bytes())
    }

    /// A problem document.
    pub fn problem(error: &JobError, trace: &Trace) -> Answer {
        let body = document(error, Some(&trace.id_text()));
        let answer = Answer::new(error.code.status(), "application/problem+json", body.into_bytes());
        match error.code.retry_after() {
            Some(seconds) => answer.with("retry-after", seconds),
            None => answer,
        }
    }

    /// A problem in a few words.
    pub fn refusal(code: Code, detail: &str, trace: &Trace) -> Answer {
        Answer::problem(&JobError::new(code, detail), trace)
    }

    /// The dashboard: the same for everybody. Its own script and style run, and no others; what it shows it asks for.
    pub fn dashboard() -> Answer {
        const CSS: &str = include_str!("page/style.css");
        const SCRIPT: &str = include_str!("page/app.js");
        let page = include_str!("page/index.html");
        let page = page.replace("<!-- style -->", &format!("<style>{CSS}</style>"));
        let page = page.replace("<!-- script -->", &format!("<script>{SCRIPT}</script>"));
        let digest = |part| base64(&Sha256::digest(part));
        let policy = format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
             form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
            digest(SCRIPT),
            digest(CSS)
        );
        Answer::new(200, "text/html; charset=utf-8", page.into_bytes())
            .with("x-content-type-options", "nosniff")
            .with("referrer-policy", "no-referrer")
            .with("content-security-policy", policy)
    }

    /// This interface as OpenAPI has it.
    pub fn openapi() -> Answer {
        let text = include_str!("openapi.json").replace("{version}", env!("CARGO_PKG_VERSION"));
        Answer::json(200, text)
    }

    /// How a job ended, for the caller who waited for it.
    pub fn finished(finished: &Finished, trace: &Trace) -> Answer {
        match &finished.result {
            Ok(payload) => Answer::foreign(payload),
            Err(error) => Answer::problem(error, trace),
        }
    }

    /// Bytes of a handler or a caller: no browser may guess their type or run them.
    pub fn foreign(payload: &Payload) -> Answer {
        Answer::new(200, payload.media_type.as_str(), payload.bytes.clone())
            .with("x-content-type-options", "nosniff")
            .with("content-security-policy", "sandbox")
    }

    /// 202: accepted, not waited for.
    pub fn accepted(id: JobId, status: &str) -> Answer {
        let answer = Answer::json(202, format!(r#"{{"id":"{id}","status":"{status}"}}"#));
        answer.with("location", format_args!("/v1/jobs/{id}"))
    }

    /// Adds a header. Name and value are ours or validated.
    pub fn with(mut self, name: &str, value: impl Display) -> Answer {
        let _ = write!(self.headers, "{name}: {value}\r\n");
        self
    }
}

pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

/// `Date` in the preferred format (RFC 9110, 5.6.7).
pub fn http_date(now: Timestamp) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let text = now.to_string();
    let weekday = DAYS[usize::try_from(now.0 / 86_400_000_000 % 7).unwrap_or(0)];
    let month = text[5..7].parse::<usize>().map_or("Jan", |month| MONTHS[(month - 1) % 12]);
    format!("{weekday}, {} {month} {} {} GMT", &text[8..10], &text[..4], &text[11..19])
}

/// A job record as JSON.
pub fn record_json(record: &JobRecord) -> String {
    let result = record.finished.as_ref().and_then(|finished| finished.result.as_ref().ok());
    json_of(record, Some(result.map(payload_json)))
}

/// The same without the result, as lists show it.
pub fn record_json_without_result(record: &JobRecord) -> String {
    json_of(record, None)
}

/// Lanes in which jobs wait: so many as are shown at once, and whether there are more.
pub fn lanes_json(handler: &str, lanes: &[LaneStats], now: Timestamp) -> String {
    let shown = lanes.iter().take(LIST_LANES).map(|LaneStats { head, jobs }| {
        let mut lane = match (&head.waiting_for, head.status) {
            (Some(why), _) => waiting(why),
            (None, JobStatus::Running) => json!({ "reason": "running" }),
            (None, _) => json!({ "reason": "parked" }),
        };
        let spec = &head.spec;
        lane["head"] = spec.id.to_string().into();
        lane["ordering_key"] = spec.ordering_key.as_deref().into();
        lane["length"] = (*jobs).into();
        lane["oldest_seconds"] = now.since(spec.submitted_at).as_secs_f64().into();
        lane
    });
    let (lanes, more): (Vec<Value>, bool) = (shown.collect(), lanes.len() > LIST_LANES);
    json!({ "handler": handler, "lanes": lanes, "more": more }).to_string()
}

fn json_of(record: &JobRecord, result: Option<Option<Box<RawValue>>>) -> String {
    let spec = &record.spec;
    let error = record.finished.as_ref().and_then(|finished| finished.result.as_ref().err());
    let error = error.map(|error| document(error, Some(&spec.trace.id_text())));
    let progress = record.progress.as_ref().and_then(|progress| serde_json::from_str(progress.as_str()).ok());
    let progress = result.is_some().then_some(progress);
    let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
    let shown = Shown {
        id: spec.id.to_string(),
        handler: &spec.handler,
        status: record.status.as_str(),
        deliveries: record.deliveries,
        ordering_key: spec.ordering_key.as_deref(),
        submitted_at: spec.submitted_at.to_string(),
        started_at: time(record.started_at),
        finished_at: time(record.finished_at),
        result,
        error: error.and_then(|text| RawValue::from_string(text).ok()),
        waiting_for: record.waiting_for.as_ref().map(waiting),
        progress,
        trace_id: spec.trace.id_text(),
        attempts: attempts(record),
    };
    serde_json::to_string(&shown).unwrap_or_default()
}

/// The fields of a record, in their order.
#[derive(Serialize)]
struct Shown<'a> {
    id: String,
    handler: &'a str,
    status: &'static str,
    deliveries: u32,
    ordering_key: Option<&'a str>,
    submitted_at: String,
    started_at: Option<String>,
    finished_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Option<Box<RawValue>>>,
    error: Option<Box<RawValue>>,
    waiting_for: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Option<&'a RawValue>>,
    trace_id: String,
    attempts: Vec<Value>,
}

/// The last deliveries, oldest first; the last of them may be under way.
fn attempts(record: &JobRecord) -> Vec<Value> {
    let shown = |started: Timestamp,
                 ended: Option<Timestamp>,
                 executor: &str,
                 outcome: Option<AttemptOutcome>| {
        let ended = ended.map(|at| at.to_string());
        let outcome = outcome.map(AttemptOutcome::as_str);
        json!({ "started_at": started.to_string(), "ended_at": ended, "executor": executor, "outcome": outcome })
    };
    let past =
        record.past.iter().map(|it| shown(it.started_at, Some(it.ended_at), &it.executor, Some(it.outcome)));
    let last = record.started_at.zip(record.executor.as_ref());
    let last = last.map(|(at, by)| shown(at, record.finished_at, by, AttemptOutcome::of(record.status)));
    let all: Vec<Value> = past.chain(last).collect();
    all[all.len().saturating_sub(PAST_ATTEMPTS)..].to_vec()
}

/// JSON stands as JSON, anything else as base64.
pub fn payload_json(payload: &Payload) -> Box<RawValue> {
    let text = std::str::from_utf8(&payload.bytes).ok().filter(|_| payload.media_type.is_json());
    let raw = text.and_then(|text| serde_json::from_str(text).ok());
    raw.unwrap_or_else(|| {
        let text = format!(r#"{{"base64":"{}"}}"#, base64(&payload.bytes));
        RawValue::from_string(text).unwrap_or_default()
    })
}

fn waiting(waiting: &WaitingFor) -> Value {
    match waiting {
        WaitingFor::Lane(id) => json!({ "reason": "lane", "head": id.to_string() }),
        WaitingFor::Paused => json!({ "reason": "paused" }),
        WaitingFor::Backoff(until) => json!({ "reason": "backoff", "until": until.to_string() }),
        WaitingFor::Delay(until) => json!({ "reason": "delay", "until": until.to_string() }),
        WaitingFor::Workers => json!({ "reason": "workers" }),
        WaitingFor::Executor => json!({ "reason": "executor" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_their_rfc() {
        assert_eq!(http_date(Timestamp(784_111_777_000_000)), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
