//! The lines between an executor and a worker program: a question a job, an answer. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::clock::Timestamp;
use crate::codec::{base64, from_base64};
use crate::execution::context::{Job, JobContext};
use crate::handler::HandlerError;
use crate::job::{Entries, JobId, MediaType, Payload};
use crate::problem::json_text;

/// A job as a line, with its line break.
pub(super) fn question(job: &Job, cx: &JobContext) -> String {
    let payload = job.payload();
    let mut out = String::with_capacity(512 + payload.bytes.len());
    let or_null = |text: Option<&str>| text.map_or_else(|| "null".into(), json_text);
    let (key, tracestate) = (or_null(job.ordering_key()), or_null(job.tracestate()));
    let Timestamp(deadline) = cx.deadline();
    let _ = write!(
        out,
        r#"{{"id":"{}","delivery":{},"fence":{},"handler":{},"key":{key},"trace":"{}","tracestate":{tracestate},"deadline_ms":{},"media_type":{},"#,
        job.id(),
        cx.delivery(),
        cx.fence(),
        json_text(job.handler()),
        job.trace(),
        deadline / 1_000,
        json_text(payload.media_type.as_str()),
    );
    let text = std::str::from_utf8(&payload.bytes).ok().filter(|_| payload.media_type.is_json());
    match text.filter(|text| serde_json::from_str::<&RawValue>(text).is_ok()) {
        // A line break in JSON stands between its values only.
        Some(text) => _ = write!(out, r#""payload":{}"#, text.replace(['\n', '\r'], " ")),
        None => _ = write!(out, r#""payload_base64":"{}""#, base64(&payload.bytes)),
    }
    let (state, context) = cx.entries();
    for (name, map) in [("state", state), ("context", Some(context))] {
        if let Some(map) = map {
            let _ = write!(out, r#","{name}":"#);
            put_map(map, &mut out);
        }
    }
    out.push_str("}\n");
    out
}

/// Values are text; what is none, which only other handlers of a trace can have written, stands as base64 in an object.
fn put_map(map: &Entries, out: &mut String) {
    let in_order: BTreeMap<_, _> = map.iter().collect();
    for (place, (key, value)) in in_order.into_iter().enumerate() {
        out.push(if place == 0 { '{' } else { ',' });
        let value = std::str::from_utf8(value)
            .map_or_else(|_| format!(r#"{{"base64":"{}"}}"#, base64(value)), json_text);
        let _ = write!(out, "{}:{value}", json_text(key));
    }
    out.push_str(if map.is_empty() { "{}" } else { "}" });
}

/// What a worker says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Said<'a> {
    id: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "some")]
    ok: Option<&'a RawValue>,
    ok_base64: Option<Cow<'a, str>>,
    media_type: Option<Cow<'a, str>>,
    #[serde(default)]
    set: BTreeMap<String, String>,
    #[serde(default)]
    remove: Vec<String>,
    #[serde(default)]
    context_set: BTreeMap<String, String>,
    #[serde(borrow, default)]
    submit: Vec<Submit<'a>>,
    error: Option<String>,
    retry: Option<bool>,
    retry_after_ms: Option<u64>,
    #[serde(borrow, default, deserialize_with = "some")]
    pub(super) progress: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Submit<'a> {
    handler: String,
    key: Option<String>,
    #[serde(default)]
    delay_ms: u64,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// A value that stands there, `null` too.
fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Why a line is none that the protocol has.
pub(super) enum Bad {
    /// It cannot be an answer: the same program would say it again.
    Line(String),
    /// It answers another job, of this id.
    Id(String),
}

/// What a line says of this job.
pub(super) fn read(line: &[u8], id: JobId) -> Result<Said<'_>, Bad> {
    let text = std::str::from_utf8(line).map_err(|_| Bad::Line("its line is not UTF-8".into()))?;
    // An array could be one as well, in our parser's eyes.
    if !text.trim_start().starts_with('{') {
        return Err(Bad::Line("its line is no answer: no object".into()));
    }
    let said: Said =
        serde_json::from_str(text).map_err(|error| Bad::Line(format!("its line is no answer: {error}")))?;
    if said.id != id.to_string() {
        return Err(Bad::Id(said.id.into_owned()));
    }
    let kinds = [said.ok.is_some(), said.ok_base64.is_some(), said.error.is_some(), said.progress.is_some()];
    if kinds.into_iter().filter(|is_there| *is_there).count() != 1 {
        return Err(Bad::Line("its line needs one of ok, ok_base64, error, progress".into()));
    }
    let [has_ok, has_bytes, has_error, _] = kinds;
    let has_retry = said.retry.is_some() || said.retry_after_ms.is_some();
    let has_state = !(said.set.is_empty() && said.remove.is_empty());
    let has_effects = has_state || !said.context_set.is_empty() || !said.submit.is_empty();
    if has_retry && !has_error
        || said.media_type.is_some() && !has_bytes
        || has_effects && !(has_ok || has_bytes)
    {
        return Err(Bad::Line("its line has members that do not go together".into()));
    }
    Ok(said)
}

impl Said<'_> {
    /// The result, its changes staged; or why there is none.
    pub(super) fn end(self, cx: &mut JobContext) -> Result<Payload, HandlerError> {
        if let Some(error) = self.error {
            return Err(match (self.retry_after_ms, self.retry.unwrap_or(self.retry_after_ms.is_some())) {
                (_, false) => HandlerError::Fail(error),
                (None, true) => HandlerError::Retry(error),
                (Some(ms), true) => HandlerError::retry_after(Duration::from_millis(ms), error),
            });
        }
        if !(self.set.is_empty() && self.remove.is_empty()) {
            let mut state = cx.state().ok_or("it sets a state, and only an ordered handler has one")?;
            self.set.into_iter().for_each(|(key, value)| state.set(&key, value.into_bytes()));
            self.remove.iter().for_each(|key| state.remove(key));
        }
        let mut context = cx.context();
        self.context_set.into_iter().for_each(|(key, value)| context.set(&key, value.into_bytes()));
        for Submit { handler, key, delay_ms, payload } in self.submit {
            let payload = Payload::json(payload.get().as_bytes());
            cx.submit(&handler, payload, key.as_deref(), Duration::from_millis(delay_ms))?;
        }
        match (self.ok, self.ok_base64) {
            (Some(ok), _) => Ok(Payload::json(ok.get().as_bytes())),
            (None, text) => {
                let bytes = from_base64(&text.unwrap_or_default()).ok_or("its ok_base64 is not base64")?;
                let media_type = match self.media_type.as_deref() {
                    Some(text) => MediaType::parse(text).ok_or("its media_type is none")?,
                    None => MediaType::BYTES,
                };
                Ok(Payload { media_type, bytes: bytes.into() })
            }
        }
    }
}
