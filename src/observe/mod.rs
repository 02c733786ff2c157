//! What operators see: log events, and metrics.
//!
//! In scope: formatting, counting, and a writer that never blocks a worker. Not in scope: deciding what
//! happened. No payload, token or secret is ever passed in here.

pub mod log_writer;
pub mod metrics;

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use log::Level;

use crate::job::{JobId, Trace};
use crate::problem::json_text;

/// The target of events, so that the formatter knows that the message is a list of fields.
const EVENT_TARGET: &str = "cofferdam::event";

/// True: events are written as JSON objects.
static JSON: AtomicBool = AtomicBool::new(false);

fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// Begins an event of this name. Costs nothing while its level is filtered out.
pub fn event(level: Level, name: &str) -> Event {
    let line = || if is_json() { format!(r#""event":"{name}""#) } else { name.to_owned() };
    Event { level, line: log::log_enabled!(target: EVENT_TARGET, level).then(line) }
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
    pub fn field(self, name: &str, value: &str) -> Event {
        if value.is_empty() || self.line.is_none() {
            return self;
        }
        let is_plain = !is_json() && !value.contains([' ', '"', '\n']);
        if is_plain { self.put(name, value) } else { self.put(name, json_text(value)) }
    }

    /// Adds a number.
    pub fn number(self, name: &str, value: u64) -> Event {
        self.put(name, value)
    }

    fn put(mut self, name: &str, value: impl Display) -> Event {
        if let Some(line) = &mut self.line {
            let _ = match is_json() {
                true => write!(line, r#","{name}":{value}"#),
                false => write!(line, " {name}={value}"),
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
