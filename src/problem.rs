//! The codes of every refusal, and the problem documents that carry them (RFC 9457).

use std::fmt::Write as _;

use crate::named::named;

macro_rules! codes {
    ($($code:ident $name:literal $status:literal $title:literal,)*) => {
        named! {
            /// Every refusal has one name: problem code, event code and test name.
            Code { $($code = $name,)* }
        }

        impl Code {
            /// The HTTP status.
            pub fn status(self) -> u16 {
                match self { $(Code::$code => $status,)* }
            }

            /// A short summary, the same for every occurrence.
            pub fn title(self) -> &'static str {
                match self { $(Code::$code => $title,)* }
            }
        }
    };
}

codes! {
    BadRequest "bad_request" 400 "The request is malformed",
    Unauthorized "unauthorized" 401 "A valid token is needed",
    Forbidden "forbidden" 403 "The token does not allow this",
    ForeignOrigin "foreign_origin" 403 "Requests from other origins are refused",
    UnknownHandler "unknown_handler" 404 "There is no such handler",
    UnknownJob "unknown_job" 404 "There is no such job",
    NotFound "not_found" 404 "There is no such resource",
    MethodNotAllowed "method_not_allowed" 405 "The resource does not support this method",
    RequestTimeout "request_timeout" 408 "The request did not arrive in time",
    Cancelled "cancelled" 409 "The job was cancelled",
    NotRetryable "not_retryable" 409 "The job cannot be retried",
    NotFinished "not_finished" 409 "The job has not finished",
    ResultGone "result_gone" 409 "The job ran, and its result is no longer kept",
    LengthRequired "length_required" 411 "The request needs a length",
    PayloadTooLarge "payload_too_large" 413 "The payload is too large",
    UriTooLong "uri_too_long" 414 "The request target is too long",
    UnsupportedMediaType "unsupported_media_type" 415 "The content coding is not supported",
    ExpectationFailed "expectation_failed" 417 "The expectation cannot be met",
    MisdirectedHost "misdirected_host" 421 "This host name is not served here",
    IdempotencyMismatch "idempotency_mismatch" 422 "The idempotency key belongs to another payload",
    HandlerFailed "handler_failed" 422 "The handler failed",
    StateTooLarge "state_too_large" 422 "The state would become too large",
    ResultTooLarge "result_too_large" 422 "The result is too large",
    TooManyWaiters "too_many_waiters" 429 "Too many callers are waiting",
    TooManyRequests "too_many_requests" 429 "Too many requests",
    HeadersTooLarge "headers_too_large" 431 "The header section is too large",
    InternalError "internal_error" 500 "Something failed inside",
    DeadLettered "dead_lettered" 500 "The job used up its deliveries",
    NotImplemented "not_implemented" 501 "The server does not support this",
    QueueFull "queue_full" 503 "The queue is full",
    Overloaded "overloaded" 503 "The server is overloaded",
    Draining "draining" 503 "The server is shutting down",
    BackendUnavailable "backend_unavailable" 503 "The backend cannot be reached",
    HandlerTimedOut "handler_timed_out" 504 "The handler took too long",
    ReplyTimeout "reply_timeout" 504 "The reply did not come in time",
    HttpVersionNotSupported "http_version_not_supported" 505 "The HTTP version is not supported",
}

impl Code {
    /// Seconds for `Retry-After`; `Some` for every 429 and 503.
    pub fn retry_after(self) -> Option<u32> {
        matches!(self.status(), 429 | 503).then_some(1)
    }
}

named! {
    /// Why a job is dead.
    Cause {
        /// The handler asked for another try too often.
        RetriesExhausted = "retries_exhausted",
        /// The handler panicked or its program was killed, at its last delivery.
        HandlerCrashed = "handler_crashed",
        /// Its executor was lost at its last delivery.
        ExecutorLost = "executor_lost",
    }
}

impl Cause {
    /// Its name where the delivery was not the last one.
    pub fn so_far(self) -> &'static str {
        match self {
            Cause::RetriesExhausted => "handler_retry",
            Cause::HandlerCrashed | Cause::ExecutorLost => self.as_str(),
        }
    }
}

/// Why a job has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobError {
    /// What its waiting caller is told.
    pub code: Code,
    pub detail: String,
    /// `Some` iff the code is `dead_lettered`.
    pub cause: Option<Cause>,
}

impl JobError {
    pub fn new(code: Code, detail: impl Into<String>) -> JobError {
        JobError { code, detail: detail.into(), cause: None }
    }

    /// That a handler's time is over, and what there is to say of it.
    pub fn timed_out(detail: &str) -> JobError {
        let passed = "the handler's timeout passed";
        let detail = if detail.is_empty() { passed.into() } else { format!("{passed}: {detail}") };
        JobError::new(Code::HandlerTimedOut, detail)
    }

    /// In a word.
    pub fn word(&self) -> &'static str {
        self.cause.map_or(self.code.as_str(), Cause::as_str)
    }

    /// What the log may be told of the detail: not what a panic says, which may hold a payload.
    pub fn reason(&self) -> &str {
        if self.cause == Some(Cause::HandlerCrashed) { "" } else { &self.detail }
    }
}

/// A problem document, one line, no line break in it. `trace_id` is left out where there is none.
pub fn document(error: &JobError, trace_id: Option<&str>) -> String {
    let code = error.code;
    let mut out = String::with_capacity(256);
    let _ = write!(
        out,
        r#"{{"type":"urn:cofferdam:error:{0}","code":"{0}","title":"{1}","status":{2},"detail":"#,
        code.as_str(),
        code.title(),
        code.status(),
    );
    out.push_str(&json_text(&error.detail));
    if let Some(cause) = error.cause {
        let _ = write!(out, r#","cause":"{}""#, cause.as_str());
    }
    if let Some(trace_id) = trace_id {
        let _ = write!(out, r#","trace_id":"{trace_id}""#);
    }
    out.push('}');
    out
}

/// The same of one line of many: its number tells which, in whatever order the answers come.
pub fn document_of_line(error: &JobError, line: u64) -> String {
    let mut out = document(error, None);
    out.pop();
    let _ = write!(out, r#","line":{line}}}"#);
    out
}

/// True if that has written it.
pub fn is_document_of_line(text: &[u8], line: u64) -> bool {
    text.starts_with(br#"{"type":"urn:cofferdam:error:"#)
        && text.ends_with(format!(",\"line\":{line}}}").as_bytes())
}

/// `text` as a JSON string.
pub fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_document_is_one_line_of_valid_json() {
        for code in Code::ALL {
            let error = JobError { code, detail: "a \"b\"\nc".into(), cause: Some(Cause::ExecutorLost) };
            let text = document(&error, Some("00ff"));
            assert!(!text.contains('\n'));
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["code"], code.as_str());
            assert_eq!(value["status"], code.status());
            assert_eq!(value["detail"], "a \"b\"\nc");
            assert_eq!(value["cause"], "executor_lost");
            assert_eq!(Code::parse(code.as_str()), Some(code));
            assert_eq!(code.retry_after().is_some(), matches!(code.status(), 429 | 503));
        }
    }
}
