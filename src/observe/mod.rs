//! What operators see: log events, and metrics.
//!
//! In scope: formatting, counting, and a writer that never blocks a worker. Not in scope: deciding what
//! happened. No payload, token or secret is ever passed in here.

pub mod log_writer;
pub mod metrics;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use log::Level;

use crate::job::{JobId, Trace};
use crate::problem::json_text;

/// The target of events, so that the formatter knows that the message is a list of fields.
pub(crate) const EVENT_TARGET: &str = "cofferdam::event";

/// True: events are written as JSON objects.
static JSON: AtomicBool = AtomicBool::new(false);

pub(crate) fn write_json(json: bool) {
    JSON.store(json, Ordering::Relaxed);
}

pub(crate) fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// Begins an event of this name. Costs nothing while its level is filtered out.
pub fn event(level: Level, name: &str) -> Event {
    if !log::log_enabled!(target: EVENT_TARGET, level) {
        return Event { level, line: None };
    }
    let line = if is_json() { format!(r#""event":"{name}""#) } else { name.to_owned() };
    Event { level, line: Some(line) }
}

/// The same of a job. Its ids are not even written down while its level is filtered out.
pub fn job_event<'a>(level: Level, name: &str, trace: impl Into<Option<&'a Trace>>, job: JobId) -> Event {
    let event = event(level, name);
    if event.line.is_none() {
        return event;
    }
    let trace = trace.into().map(Trace::id_text).unwrap_or_default();
    event.field("trace_id", &trace).field("job_id", &job.to_string())
}

/// An event that is being written.
#[must_use]
pub struct Event {
    level: Level,
    line: Option<String>,
}

impl Event {
    /// Adds a field; an empty value is left out.
    pub fn field(mut self, name: &str, value: &str) -> Event {
        if let Some(line) = self.line.as_mut().filter(|_| !value.is_empty()) {
            let _ = match (is_json(), value.contains([' ', '"', '\n'])) {
                (true, _) => write!(line, r#","{name}":{}"#, json_text(value)),
                (false, true) => write!(line, " {name}={}", json_text(value)),
                (false, false) => write!(line, " {name}={value}"),
            };
        }
        self
    }

    /// Adds a number.
    pub fn number(mut self, name: &str, value: u64) -> Event {
        if let Some(line) = &mut self.line {
            let _ = if is_json() {
                write!(line, r#","{name}":{value}"#)
            } else {
                write!(line, " {name}={value}")
            };
        }
        self
    }

    /// Writes it.
    pub fn emit(self) {
        if let Some(line) = self.line {
            log::log!(target: EVENT_TARGET, self.level, "{line}");
        }
    }
}
