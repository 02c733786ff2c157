//! Answers as bytes. Pure. Every answer has a length or is chunked, is not stored, and says what it is about.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read};
use std::sync::{Arc, LazyLock};

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::chunked::Chunked;
use crate::clock::Timestamp;
use crate::codec::{Malformed, base64};
use crate::job::{AttemptOutcome, Finished, JobId, JobRecord, JobStatus, Payload, Trace, WaitingFor};
use crate::limits::{LIST_LANES, PAST_ATTEMPTS};
use crate::ports::LaneStats;
use crate::problem::{Code, JobError, document};

/// What a route that renders comes to.
pub type Made = Result<Answer, JobError>;

/// The most that is read as one: as large as anything that a service may keep.
const ANSWER_BYTES: usize = 256 << 20;

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
            Some(seconds) => answer.with("retry-after", seconds.to_string()),
            None => answer,
        }
    }

    /// A problem in a few words.
    pub fn refusal(code: Code, detail: &str, trace: &Trace) -> Answer {
        Answer::problem(&JobError::new(code, detail), trace)
    }

    /// The dashboard: the same for everybody, so made once. Its own script and style run, and no others; what it shows it asks for.
    pub fn dashboard() -> &'static Answer {
        const CSS: &str = include_str!("page/style.css");
        const SCRIPT: &str = include_str!("page/app.js");
        static PAGE: LazyLock<Answer> = LazyLock::new(|| {
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
        });
        &PAGE
    }

    /// This interface as OpenAPI has it, made once as well.
    pub fn openapi() -> &'static Answer {
        static DOCUMENT: LazyLock<Answer> = LazyLock::new(|| {
            let text = include_str!("openapi.json").replace("{version}", env!("CARGO_PKG_VERSION"));
            Answer::json(200, text)
        });
        &DOCUMENT
    }

    /// How a job ended, for the caller who waited for it.
    pub fn finished(finished: &Finished, trace: &Trace) -> Answer {
        finished.result.as_ref().map_or_else(|error| Answer::problem(error, trace), Answer::foreign)
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
        answer.with("location", format!("/v1/jobs/{id}"))
    }

    /// An answer of a server (RFC 9112), once it is whole, and whether another may follow: with a length, in chunks, or all that
    /// comes until `is_end`. Its headers are in lower case, and without those that frame and date it.
    ///
    /// # Errors
    /// The bytes can never become one, or one that is too large.
    pub fn parse(input: &[u8], is_end: bool) -> Result<Option<(Answer, bool)>, Malformed> {
        let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") else {
            let is_http = input.iter().zip(b"HTTP/1.").all(|(byte, of)| byte == of) && input.len() < 1 << 20;
            return if is_http { Ok(None) } else { Err(Malformed) };
        };
        let (head, rest) = (String::from_utf8_lossy(&input[..end]), &input[end + 4..]);
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
        let status = status.ok_or(Malformed)?;
        let (mut headers, mut length, mut is_chunked, mut is_kept) = (String::new(), None, false, true);
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            match (name.to_ascii_lowercase().as_str(), value.trim()) {
                ("content-length", value) => {
                    let given = value.parse().ok().filter(|length| *length <= ANSWER_BYTES);
                    length = Some(given.ok_or(Malformed)?);
                }
                ("transfer-encoding", value) => is_chunked = value.eq_ignore_ascii_case("chunked"),
                ("connection", value) => is_kept = !value.eq_ignore_ascii_case("close"),
                ("server" | "date", _) => {}
                (name, value) => _ = write!(headers, "{name}: {value}\r\n"),
            }
        }
        let body: Option<Arc<[u8]>> = match length {
            // Not read again with each piece that comes: an empty line ends the last one.
            _ if is_chunked && !rest.ends_with(b"\r\n\r\n") => None,
            _ if is_chunked => {
                let mut body = Vec::new();
                let read = Chunked::default().read(rest, &mut body, ANSWER_BYTES).map_err(|_| Malformed)?;
                read.1.then(|| body.into())
            }
            Some(length) => rest.get(..length).map(Arc::from),
            None => is_end.then(|| rest.into()),
        };
        is_kept &= is_chunked || length.is_some();
        Ok(body.map(|body| (Answer { status, headers, body }, is_kept)))
    }

    /// Reads one, as [`Answer::parse`] does.
    ///
    /// # Errors
    /// The stream's own; `UnexpectedEof`: it ended first; `InvalidData`: this is none, or one that is too large.
    pub fn read(stream: &mut impl Read) -> std::io::Result<(Answer, bool)> {
        let (mut input, mut part) = (Vec::new(), [0; 16_384]);
        loop {
            let read = match stream.read(&mut part) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read?,
            };
            input.extend_from_slice(&part[..read]);
            match Answer::parse(&input, read == 0).map_err(|_| ErrorKind::InvalidData)? {
                Some(answer) => return Ok(answer),
                None if read == 0 => return Err(ErrorKind::UnexpectedEof.into()),
                None if input.len() > ANSWER_BYTES => return Err(ErrorKind::InvalidData.into()),
                None => {}
            }
        }
    }

    /// Adds a header. Name and value are ours or validated.
    pub fn with(mut self, name: &str, value: impl AsRef<str>) -> Answer {
        self.headers.extend([name, ": ", value.as_ref(), "\r\n"]);
        self
    }
}

/// A status line's status and reason.
pub fn status_text(status: u16) -> &'static str {
    match status {
        200 => "200 OK",
        202 => "202 Accepted",
        400 => "400 Bad Request",
        401 => "401 Unauthorized",
        403 => "403 Forbidden",
        404 => "404 Not Found",
        405 => "405 Method Not Allowed",
        408 => "408 Request Timeout",
        409 => "409 Conflict",
        411 => "411 Length Required",
        413 => "413 Content Too Large",
        414 => "414 URI Too Long",
        415 => "415 Unsupported Media Type",
        417 => "417 Expectation Failed",
        421 => "421 Misdirected Request",
        422 => "422 Unprocessable Content",
        429 => "429 Too Many Requests",
        431 => "431 Request Header Fields Too Large",
        501 => "501 Not Implemented",
        503 => "503 Service Unavailable",
        504 => "504 Gateway Timeout",
        505 => "505 HTTP Version Not Supported",
        // Another one would be a mistake of ours.
        _ => "500 Internal Server Error",
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
    let past =
        record.past.iter().map(|it| (it.started_at, Some(it.ended_at), &it.executor, Some(it.outcome)));
    let last = record.started_at.zip(record.executor.as_ref());
    let last = last.map(|(at, by)| (at, record.finished_at, by, AttemptOutcome::of(record.status)));
    let shown = past.chain(last).map(|(started, ended, executor, outcome)| {
        let (started, ended) = (started.to_string(), ended.map(|at| at.to_string()));
        let outcome = outcome.map(AttemptOutcome::as_str);
        json!({ "started_at": started, "ended_at": ended, "executor": **executor, "outcome": outcome })
    });
    let all: Vec<Value> = shown.collect();
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

    #[test]
    fn an_answer_is_read_once_it_is_whole_however_it_is_framed() {
        for (text, body, is_kept) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "abc", true),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
                "abc",
                true,
            ),
            ("HTTP/1.1 204 No\r\ncontent-length:0\r\nConnection: close\r\n\r\n", "", false),
        ] {
            for end in 0..text.len() {
                assert!(matches!(Answer::parse(&text.as_bytes()[..end], false), Ok(None)), "{end} of {text}");
            }
            let (reply, kept) = Answer::parse(text.as_bytes(), false).unwrap().unwrap();
            assert_eq!((&*String::from_utf8_lossy(&reply.body), kept), (body, is_kept), "{text}");
        }
        let until_the_end = b"HTTP/1.0 200 OK\r\n\r\nabc";
        assert!(Answer::parse(until_the_end, false).unwrap().is_none());
        assert_eq!(Answer::parse(until_the_end, true).unwrap().unwrap().0.body[..], b"abc"[..]);
        for bad in ["SSH-2.0-x\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"] {
            assert!(Answer::parse(bad.as_bytes(), true).is_err(), "{bad}");
        }
    }
}
