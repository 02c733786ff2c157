//! The routes that render or may block: ordinary sync code over the ports, on tiny_http's threads.
//!
//! tiny_http never meets a stranger: its one client is the gate, over a private Unix socket, with requests that
//! the gate has rebuilt. What a client wrote frames nothing here.

use std::borrow::Cow;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tiny_http::{Header, Request, Response, Server, StatusCode};

use super::figures;
use super::respond::{Answer, Body, record_json, record_json_without_result};
use super::routes::{Inner, Route, parameter, route};
use super::submission::number;
use crate::job::{JobId, JobRecord, JobStatus, Trace};
use crate::limits::{INNER_CONNECTIONS, INNER_RESERVED, LIST_RECORDS};
use crate::observe::metrics::Counters;
use crate::ports::{BackendError, Filter, HandlerStats, Producer, Stats, Viewer};
use crate::problem::{Code, json_text};

/// The header that carries the request's trace inwards.
pub(super) const TRACE_HEADER: &str = "traceparent";

/// What the routes look at.
pub struct Pages {
    /// The broker's submitting side.
    pub producer: Arc<dyn Producer>,
    /// This process's counters.
    pub counters: Arc<Counters>,
    /// The names of the process groups.
    pub groups: Vec<String>,
    /// For the figures and the index page.
    pub profile: String,
    /// Where the service listens, for the index page.
    pub address: String,
}

/// Serves the pages on `socket` for the life of the process.
///
/// # Errors
/// The socket or the threads cannot be made.
pub fn serve(pages: &Arc<Pages>, socket: &Path) -> Result<(), String> {
    let at = socket.display();
    let listener = UnixListener::bind(socket).map_err(|error| format!("{at}: {error}"))?;
    let server = Server::from_listener(listener, None).map_err(|error| format!("{at}: {error}"))?;
    let server = Arc::new(server);
    for index in 0..INNER_CONNECTIONS + INNER_RESERVED {
        let (server, pages) = (server.clone(), pages.clone());
        let work = move || {
            while let Ok(request) = server.recv() {
                respond(request, &pages);
            }
        };
        let thread = std::thread::Builder::new().name(format!("pages-{index}")).spawn(work);
        thread.map_err(|error| format!("a thread for pages: {error}"))?;
    }
    Ok(())
}

fn respond(request: Request, pages: &Pages) {
    let trace = request.headers().iter().find(|header| header.field.equiv(TRACE_HEADER));
    let trace = trace.and_then(|header| Trace::parse(header.value.as_str()));
    let answer = match route(request.method().as_str(), request.url()) {
        Ok(Route::Inner(inner)) => {
            let query = request.url().split_once('?').map_or("", |(_, query)| query);
            pages.answer(&inner, query, trace.as_ref())
        }
        Ok(Route::Submit(_) | Route::Batch(_) | Route::Wait(_) | Route::Alive) | Err(_) => {
            Answer::refusal(Code::InternalError, "this request should not have come here", trace.as_ref())
        }
    };
    let mut response = Response::from_data(answer.body.to_vec())
        .with_status_code(StatusCode(answer.status))
        .with_chunked_threshold(usize::MAX);
    for (name, value) in answer.headers.lines().filter_map(|line| line.split_once(": ")) {
        if let Ok(header) = Header::from_bytes(name, value) {
            response.add_header(header);
        }
    }
    // The gate has gone: then so has the request.
    let _ = request.respond(response);
}

impl Pages {
    fn answer(&self, route: &Inner, query: &str, trace: Option<&Trace>) -> Answer {
        let answer = match route {
            Inner::Record(id) => self.record(*id),
            Inner::Result(id) => self.result(*id, trace),
            Inner::List => self.list(query),
            Inner::Cancel(id) => self.cancel(*id),
            Inner::Retry(id) => self.retry(*id),
            Inner::Pause(name, paused) => self.pause(name, *paused),
            Inner::Stats => self.stats(),
            Inner::Ready => self.ready(),
            Inner::Metrics => self.metrics(),
            Inner::Index => Ok(self.index()),
        };
        answer.unwrap_or_else(|Problem(code, detail)| Answer::refusal(code, &detail, trace))
    }

    fn record(&self, id: JobId) -> Result<Answer, Problem> {
        shown(self.producer.record(&Viewer::anonymous(), id)?)
    }

    fn result(&self, id: JobId, trace: Option<&Trace>) -> Result<Answer, Problem> {
        let record = self.producer.record(&Viewer::anonymous(), id)?.ok_or(UNKNOWN_JOB)?;
        let finished = record.finished.ok_or(Problem::refused(Code::NotFinished, "the job has not ended"))?;
        Ok(Answer::finished(&finished, trace).with("cofferdam-job-id", id))
    }

    fn list(&self, query: &str) -> Result<Answer, Problem> {
        const BAD_STATUS: Problem = Problem::refused(Code::BadRequest, "status is one of the job statuses");
        const BAD_LIMIT: Problem = Problem::refused(Code::BadRequest, "limit is a number from 1 to 1000");
        let status = match parameter(query, "status").filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => Some(JobStatus::parse(text).ok_or(BAD_STATUS)?),
        };
        let limit = match parameter(query, "limit").filter(|text| !text.is_empty()) {
            None => 100,
            Some(text) => number(text)
                .and_then(|limit| usize::try_from(limit).ok())
                .filter(|limit| (1..=LIST_RECORDS).contains(limit))
                .ok_or(BAD_LIMIT)?,
        };
        let handler = parameter(query, "handler").filter(|text| !text.is_empty()).map(str::to_owned);
        let records =
            self.producer.list(&Viewer::anonymous(), &Filter { status, handler, limit, bare: true })?;
        let records: Vec<String> = records.iter().map(record_json_without_result).collect();
        Ok(Answer::json(200, format!(r#"{{"jobs":[{}]}}"#, records.join(","))))
    }

    fn cancel(&self, id: JobId) -> Result<Answer, Problem> {
        shown(self.producer.cancel(&Viewer::anonymous(), id)?)
    }

    fn retry(&self, id: JobId) -> Result<Answer, Problem> {
        match self.producer.retry(&Viewer::anonymous(), id)?.ok_or(UNKNOWN_JOB)? {
            Ok(record) => {
                let answer = Answer::json(202, record_json(&record));
                Ok(answer.with("location", format_args!("/v1/jobs/{id}")).with("cofferdam-job-id", id))
            }
            Err(_) => Err(Problem::refused(
                Code::NotRetryable,
                "only a dead, failed, timed-out or cancelled job can be retried",
            )),
        }
    }

    fn pause(&self, name: &str, paused: bool) -> Result<Answer, Problem> {
        if !self.producer.pause(name, paused)? {
            return Err(Problem::refused(Code::UnknownHandler, "there is no handler of this name"));
        }
        Ok(Answer::json(200, format!(r#"{{"handler":{},"paused":{paused}}}"#, json_text(name))))
    }

    fn stats(&self) -> Result<Answer, Problem> {
        let stats = self.producer.stats()?;
        let body = figures::stats_json(&self.profile, &self.counters, &stats, &self.groups);
        Ok(Answer::json(200, body.to_string()))
    }

    /// Ready: every group has an executor, and the service is not stopping.
    fn ready(&self) -> Result<Answer, Problem> {
        let stats = self.producer.stats()?;
        if self.counters.draining.load(Ordering::Relaxed) {
            return Err(Problem::refused(Code::Draining, "the service is shutting down"));
        }
        if let Some(group) = missing_group(&stats, &self.groups) {
            return Err(Problem(
                Code::Overloaded,
                format!("no executor of group {group} is connected").into(),
            ));
        }
        Ok(Answer::json(200, r#"{"status":"ready"}"#.into()))
    }

    fn metrics(&self) -> Result<Answer, Problem> {
        let body = figures::metrics_text(&self.counters, &self.producer.stats()?, &self.groups);
        let headers = "content-type: text/plain; version=0.0.4\r\n".into();
        Ok(Answer { status: 200, headers, body: Body::Own(body.into_bytes()) })
    }

    fn index(&self) -> Answer {
        let rows = match self.producer.stats() {
            Ok(stats) => stats.handlers.iter().map(row).collect::<String>(),
            Err(error) => format!("<tr><td colspan=5>{}</td></tr>", error.0.replace('<', "&lt;")),
        };
        let body =
            format!(include_str!("index.html"), profile = self.profile, address = self.address, rows = rows);
        let headers = "content-type: text/html; charset=utf-8\r\nx-content-type-options: nosniff\r\n\
                       content-security-policy: default-src 'none'; style-src 'unsafe-inline'\r\n";
        Answer { status: 200, headers: headers.into(), body: Body::Own(body.into_bytes()) }
    }
}

fn shown(record: Option<JobRecord>) -> Result<Answer, Problem> {
    let record = record.ok_or(UNKNOWN_JOB)?;
    Ok(Answer::json(200, record_json(&record)).with("cofferdam-job-id", record.spec.id))
}

/// The first group without an executor.
fn missing_group<'a>(stats: &Stats, groups: &'a [String]) -> Option<&'a String> {
    groups.iter().zip(&stats.consumers).find(|(_, executors)| **executors == 0).map(|(name, _)| name)
}

fn row(handler: &HandlerStats) -> String {
    format!(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
        handler.handler,
        if handler.paused { "paused" } else { "open" },
        handler.queued,
        handler.running,
        handler.submitted,
    )
}

/// Why a page is not what was asked for.
struct Problem(Code, Cow<'static, str>);

impl Problem {
    const fn refused(code: Code, detail: &'static str) -> Problem {
        Problem(code, Cow::Borrowed(detail))
    }
}

const UNKNOWN_JOB: Problem = Problem::refused(Code::UnknownJob, "there is no job of this id");

impl From<BackendError> for Problem {
    fn from(error: BackendError) -> Problem {
        Problem(Code::BackendUnavailable, error.0.into())
    }
}
