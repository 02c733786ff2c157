//! What operators see: log events, and metrics.
//!
//! In scope: formatting, counting, and a writer that never blocks a worker. Not in scope: deciding what
//! happened. No payload, token or secret is ever passed in here.

pub mod exporter;
pub mod log_writer;
pub mod metrics;
pub mod spans;

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use log::Level;

use crate::clock::millis;
use crate::job::{JobId, Trace};
use crate::problem::json_text;

/// True if a text can stand in a line as it is: visible ASCII, no quote.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"')
}

/// True for what a terminal does not show, or obeys: control characters, and those that turn the direction of writing.
pub(crate) fn is_hidden(c: char) -> bool {
    let is_format = matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    c.is_control() || is_format
}

/// The same text, in which everything hidden is an escape: nothing in it does more to a terminal.
pub(crate) fn visible(text: &str) -> String {
    let show = |c: char| if is_hidden(c) { c.escape_default().to_string() } else { c.into() };
    text.chars().map(show).collect()
}

/// As a JSON string, in which everything hidden is an escape.
fn quoted(text: &str) -> String {
    let json = json_text(text);
    if !json.contains(is_hidden) {
        return json;
    }
    json.chars().map(|c| if is_hidden(c) { format!("\\u{:04x}", u32::from(c)) } else { c.into() }).collect()
}

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
pub fn job_event(level: Level, name: &str, trace: &Trace, job: JobId, handler: &str) -> Event {
    let event = event(level, name);
    if event.line.is_none() {
        return event;
    }
    event.field("trace_id", &trace.id_text()).field("job_id", &job.to_string()).field("handler", handler)
}

/// What is told of a delivery that brought no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// As the handler was told.
    pub number: u32,
    /// From its start.
    pub took: Duration,
    /// In the handler's own words, or ours. Nothing of a panic, whose words may hold a payload.
    pub reason: String,
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
        if is_json() || !is_plain(value) { self.put(name, quoted(value)) } else { self.put(name, value) }
    }

    /// Adds a number.
    pub fn number(self, name: &str, value: u64) -> Event {
        self.put(name, value)
    }

    /// Adds what is known of a delivery that brought no result.
    pub fn delivery(self, of: &Delivery) -> Event {
        const REASON_CHARS: usize = 256;
        let reason: String = of.reason.chars().take(REASON_CHARS).collect();
        let event = self.number("delivery", of.number.into()).number("duration_ms", millis(of.took));
        event.field("reason", &reason)
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
