//! Answers as bytes. Pure. Every answer has a length or is chunked, is not stored, and says what it is about.

use std::fmt::Write as _;

use crate::clock::Timestamp;
use crate::job::{Finished, JobId, JobRecord, MediaType, Trace, WaitingFor};
use crate::problem::{Code, JobError, document, json_text};

/// An answer before it is framed.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Header lines, each with its CR LF.
    pub headers: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// With a JSON body.
    #[must_use]
    pub fn json(status: u16, body: String) -> Answer {
        Answer { status, headers: "content-type: application/json\r\n".into(), body: body.into_bytes() }
    }

    /// A problem document.
    #[must_use]
    pub fn problem(error: &JobError, trace: Option<&Trace>) -> Answer {
        let body = document(error, trace.map(Trace::id_text).as_deref());
        let mut headers = String::from("content-type: application/problem+json\r\n");
        if let Some(seconds) = error.code.retry_after() {
            let _ = write!(headers, "retry-after: {seconds}\r\n");
        }
        Answer { status: error.code.status(), headers, body: body.into_bytes() }
    }

    /// A problem in a few words.
    #[must_use]
    pub fn refusal(code: Code, detail: &str, trace: Option<&Trace>) -> Answer {
        Answer::problem(&JobError::new(code, detail), trace)
    }

    /// How a job ended, for the caller who waited for it.
    #[must_use]
    pub fn finished(finished: &Finished, trace: Option<&Trace>) -> Answer {
        match &finished.result {
            Ok(payload) => Answer {
                status: 200,
                headers: result_headers(&payload.media_type),
                body: payload.bytes.to_vec(),
            },
            Err(error) => Answer::problem(error, trace),
        }
    }

    /// 202: accepted, not waited for.
    #[must_use]
    pub fn accepted(id: JobId, status: &str) -> Answer {
        let mut answer = Answer::json(202, format!(r#"{{"id":"{id}","status":"{status}"}}"#));
        let _ = write!(answer.headers, "location: /v1/jobs/{id}\r\n");
        answer
    }

    /// Adds a header. Name and value are ours or validated.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Answer {
        let _ = write!(self.headers, "{name}: {value}\r\n");
        self
    }
}

/// A handler's bytes are foreign: no browser may guess their type or run them.
#[must_use]
pub fn result_headers(media_type: &MediaType) -> String {
    format!(
        "content-type: {}\r\nx-content-type-options: nosniff\r\ncontent-security-policy: sandbox\r\n",
        media_type.as_str()
    )
}

/// Writes the whole answer; `with_body` is false for `HEAD`.
pub fn write_answer(out: &mut Vec<u8>, answer: &Answer, date: &str, keep_alive: bool, with_body: bool) {
    write_head(out, answer, date, keep_alive, Some(answer.body.len()));
    if with_body {
        out.extend_from_slice(&answer.body);
    }
}

/// Writes status line and headers; without a `length` the body is chunked.
pub fn write_head(out: &mut Vec<u8>, answer: &Answer, date: &str, keep_alive: bool, length: Option<usize>) {
    use std::io::Write as _;
    let _ = write!(out, "HTTP/1.1 {} {}\r\n{}", answer.status, reason(answer.status), answer.headers);
    let _ = match length {
        Some(length) => write!(out, "content-length: {length}\r\n"),
        None => write!(out, "transfer-encoding: chunked\r\n"),
    };
    if !keep_alive {
        out.extend_from_slice(b"connection: close\r\n");
    }
    let _ = write!(out, "cache-control: no-store\r\ndate: {date}\r\n\r\n");
}

/// One chunk of a chunked body; an empty one would end it.
pub fn write_chunk(out: &mut Vec<u8>, data: &[u8]) {
    use std::io::Write as _;
    if !data.is_empty() {
        let _ = write!(out, "{:x}\r\n", data.len());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
}

fn reason(status: u16) -> &'static str {
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
#[must_use]
pub fn http_date(now: Timestamp) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let text = now.to_string();
    let weekday = DAYS[usize::try_from(now.0 / 86_400_000_000 % 7).unwrap_or(0)];
    let month = text[5..7].parse::<usize>().map_or("Jan", |month| MONTHS[(month - 1) % 12]);
    format!("{weekday}, {} {month} {} {} GMT", &text[8..10], &text[..4], &text[11..19])
}

/// A job record as JSON (CONTRACT 3). Lists leave the result out.
#[must_use]
pub fn record_json(record: &JobRecord, with_result: bool) -> String {
    let spec = &record.spec;
    let text = |value: Option<&str>| value.map_or("null".into(), json_text);
    let time = |value: Option<Timestamp>| value.map_or("null".into(), |time| format!("\"{time}\""));
    let mut out = format!(
        r#"{{"id":"{}","handler":{},"status":"{}","deliveries":{},"ordering_key":{},"submitted_at":"{}","started_at":{},"finished_at":{}"#,
        spec.id,
        json_text(&spec.handler),
        record.status.as_str(),
        record.deliveries,
        text(spec.ordering_key.as_deref()),
        spec.submitted_at,
        time(record.started_at),
        time(record.finished_at),
    );
    let (result, error) = match record.finished.as_ref().map(|finished| &finished.result) {
        Some(Ok(payload)) if with_result => (result_json(payload), "null".into()),
        Some(Err(error)) => ("null".into(), document(error, Some(&spec.trace.id_text()))),
        Some(Ok(_)) | None => ("null".into(), "null".into()),
    };
    if with_result {
        let _ = write!(out, r#","result":{result}"#);
    }
    let waiting = record.waiting_for.as_ref().map_or("null".into(), waiting_json);
    let _ = write!(out, r#","error":{error},"waiting_for":{waiting}}}"#);
    out
}

/// JSON stands as JSON, anything else as base64.
fn result_json(payload: &crate::Payload) -> String {
    if payload.media_type.is_json()
        && let Ok(text) = std::str::from_utf8(&payload.bytes)
        && serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok()
    {
        return text.trim().to_owned();
    }
    format!(r#"{{"base64":"{}"}}"#, base64(&payload.bytes))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let value = (word >> (18 - 6 * digit)) & 63;
            let shown = digit <= chunk.len();
            out.push(if shown { char::from(ALPHABET[value as usize]) } else { '=' });
        }
    }
    out
}

fn waiting_json(waiting: &WaitingFor) -> String {
    match waiting {
        WaitingFor::Lane(id) => format!(r#"{{"reason":"lane","head":"{id}"}}"#),
        WaitingFor::Paused => r#"{"reason":"paused"}"#.into(),
        WaitingFor::Backoff(until) => format!(r#"{{"reason":"backoff","until":"{until}"}}"#),
        WaitingFor::Delay(until) => format!(r#"{{"reason":"delay","until":"{until}"}}"#),
        WaitingFor::Workers => r#"{"reason":"workers"}"#.into(),
        WaitingFor::Executor => r#"{"reason":"executor"}"#.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_base64_follow_their_rfcs() {
        assert_eq!(http_date(Timestamp(784_111_777_000_000)), "Sun, 06 Nov 1994 08:49:37 GMT");
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
