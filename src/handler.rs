//! What a handler is to the rest of the house: its options, its errors, its name.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::limits::ORDERING_KEY_BYTES;

/// A handler's own word that a job did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandlerError {
    /// Try again later.
    Retry(String),
    /// Try again after this long (at most 7 days).
    RetryAfter(Duration, String),
    /// It cannot be done.
    Fail(String),
    /// This delivery came to nothing, as after a panic: delivered again by the rules, then dead as `handler_crashed`.
    Crash(String),
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandlerError::Retry(why) | HandlerError::Fail(why) | HandlerError::Crash(why) => f.write_str(why),
            HandlerError::RetryAfter(after, why) => write!(f, "after {} ms: {why}", after.as_millis()),
        }
    }
}

impl HandlerError {
    /// Try again after this long (at most 7 days), whatever the backoff would be; it counts as a delivery.
    pub fn retry_after(after: Duration, why: impl Into<String>) -> HandlerError {
        HandlerError::RetryAfter(after, why.into())
    }
}

/// What `?` makes of a message, such as those of [`crate::JobContext::submit`]: it cannot be done.
impl From<String> for HandlerError {
    fn from(why: String) -> HandlerError {
        HandlerError::Fail(why)
    }
}

impl From<&str> for HandlerError {
    fn from(why: &str) -> HandlerError {
        HandlerError::Fail(why.into())
    }
}

/// A payload that is not what the handler reads is not so the next time either.
impl From<serde_json::Error> for HandlerError {
    fn from(error: serde_json::Error) -> HandlerError {
        HandlerError::Fail(error.to_string())
    }
}

/// What the system refuses now, it may grant later.
impl From<std::io::Error> for HandlerError {
    fn from(error: std::io::Error) -> HandlerError {
        HandlerError::Retry(error.to_string())
    }
}

/// How a job comes again that did not work: exponential backoff with full jitter (Brooker, "Exponential Backoff And
/// Jitter", 2015).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Retry {
    /// The most that the first backoff takes; it doubles with each.
    pub base_ms: u64,
    /// The most that any takes.
    pub max_ms: u64,
}

impl Retry {
    /// The most that the backoff takes after so many tries.
    pub fn backoff(self, tries: u32) -> Duration {
        let doubled = self.base_ms.saturating_mul(1 << tries.saturating_sub(1).min(32));
        Duration::from_millis(doubled.min(self.max_ms))
    }
}

/// Options of a handler; `handlers.NAME` in the config overrides each.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct HandlerOptions {
    /// How long one delivery may take.
    #[serde(rename = "timeout_ms", deserialize_with = "from_millis", serialize_with = "as_millis")]
    pub timeout: Duration,
    /// Jobs at once in one process; 0 is no limit.
    pub concurrency: usize,
    /// Deliveries before a job is dead; `None` is the queue's setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_deliveries: Option<u32>,
    /// Its backoff; `None` is the queue's setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Cancel a job when its last waiting caller hangs up.
    pub cancel_on_disconnect: bool,
    /// Which jobs wait for each other.
    pub ordering: Ordering,
    /// What a dead job does to its lane.
    pub on_dead: OnDead,
}

/// The options that the handlers of a binary bring along, by name.
#[doc(hidden)]
pub type OwnOptions = BTreeMap<String, HandlerOptions>;

impl Default for HandlerOptions {
    fn default() -> HandlerOptions {
        HandlerOptions {
            timeout: Duration::from_secs(30),
            concurrency: 0,
            max_deliveries: None,
            retry: None,
            cancel_on_disconnect: false,
            ordering: Ordering::None,
            on_dead: OnDead::Continue,
        }
    }
}

impl HandlerOptions {
    /// One job at a time, in submission order, with one state.
    pub fn serial() -> HandlerOptions {
        HandlerOptions { ordering: Ordering::Serial, ..HandlerOptions::default() }
    }

    /// In submission order among jobs whose payload has the same value at this JSON pointer (RFC 6901).
    pub fn keyed(pointer: &str) -> HandlerOptions {
        HandlerOptions { ordering: Ordering::Keyed(pointer.to_owned()), ..HandlerOptions::default() }
    }
}

fn from_millis<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_millis)
}

fn as_millis<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(crate::clock::millis(*duration))
}

/// What a dead job does to its ordered lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDead {
    /// The lane goes on with the next job.
    #[default]
    Continue,
    /// The lane waits until the dead job is retried or deleted.
    Park,
}

/// Which jobs of a handler wait for each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ordering {
    /// None: each job is a lane of its own, without state.
    #[default]
    None,
    /// All: one lane.
    Serial,
    /// Those with the same ordering key: the request's `Ordering-Key`, else the value at this JSON pointer.
    #[serde(rename = "key")]
    Keyed(String),
}

impl Ordering {
    /// The ordering key of a job: what the request said, else what its payload holds; or why it has no usable one.
    pub fn key(&self, said: Option<&str>, payload: &[u8]) -> Result<Option<Arc<str>>, String> {
        let Ordering::Keyed(pointer) = self else { return Ok(None) };
        let key = match said {
            Some(said) => Cow::Borrowed(said),
            None => scalar_at(payload, pointer).ok_or_else(|| {
                format!("there is no ordering key: neither the header nor a scalar at {pointer}")
            })?,
        };
        let length = key.len();
        if length > ORDERING_KEY_BYTES {
            return Err(format!(
                "the ordering key has {length} bytes; at most {ORDERING_KEY_BYTES} are allowed"
            ));
        }
        Ok(Some(Arc::from(&*key)))
    }
}

/// The JSON scalar at `pointer`: a string's text, a number's or boolean's text as written.
fn scalar_at<'a>(payload: &'a [u8], pointer: &str) -> Option<Cow<'a, str>> {
    let mut value: &RawValue = serde_json::from_slice(payload).ok()?;
    for token in pointer.split('/').skip(1) {
        let token = token.replace("~1", "/").replace("~0", "~");
        let text = value.get();
        value = if text.starts_with('{') {
            serde_json::from_str::<HashMap<Cow<str>, &RawValue>>(text).ok()?.remove(token.as_str())?
        } else if text.starts_with('[') {
            let is_canonical = token == "0" || !token.starts_with(['0', '+']);
            let index = token.parse::<usize>().ok().filter(|_| is_canonical)?;
            serde_json::from_str::<Vec<&RawValue>>(text).ok()?.get(index).copied()?
        } else {
            return None;
        };
    }
    match value.get().as_bytes().first() {
        Some(b'"') => serde_json::from_str(value.get()).ok().map(Cow::Owned),
        Some(b'{' | b'[' | b'n') | None => None,
        Some(_) => Some(Cow::Borrowed(value.get())),
    }
}

/// What the broker and the worker code need to know of a handler.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct HandlerSpec {
    pub name: Arc<str>,
    /// The index of its group in `process_groups`.
    pub group: usize,
    /// The config's word included.
    pub options: HandlerOptions,
    /// Which handlers its group may submit to; `None`: all.
    pub follow_ups: Option<Arc<[String]>>,
}

impl HandlerSpec {
    /// One whose group may submit to all handlers.
    pub fn new(name: impl Into<Arc<str>>, group: usize, options: HandlerOptions) -> HandlerSpec {
        HandlerSpec { name: name.into(), group, options, follow_ups: None }
    }

    /// True if its jobs may submit jobs of this handler.
    pub fn may_submit_to(&self, handler: &str) -> bool {
        self.follow_ups.as_ref().is_none_or(|names| names.iter().any(|name| name == handler))
    }
}

/// Names that would hide a resource: `POST /v1/jobs/retry` retries jobs.
const TAKEN: [&str; 2] = ["retry", "cancel"];

/// True for a name that can stand in a URL, a metric label and a config path.
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// True for the name of a handler.
pub fn is_handler_name(name: &str) -> bool {
    is_name(name) && !TAKEN.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordering_keys_are_scalars_as_written_or_the_header() {
        let keyed = Ordering::Keyed("/a/b~1c/1".into());
        for (said, payload, key) in [
            (Some("x"), "garbage", Some("x")),
            (None, r#"{"a":{"b/c":[0,"x"]}}"#, Some("x")),
            (None, r#"{"a":{"b/c":[0,1.50]}}"#, Some("1.50")),
            (None, r#"{"a":{"b/c":[0,true]}}"#, Some("true")),
            (None, r#"{"a":{"b/c":[0,""]}}"#, Some("")),
            (None, r#"{"a":1,"a":{"b/c":[0,"last"]}}"#, Some("last")),
            (None, r#"{"a":{"b/c":[0,null]}}"#, None),
            (None, r#"{"a":{"b/c":[0,{}]}}"#, None),
            (None, r#"{"a":{"b/c":[0]}}"#, None),
            (None, "not json", None),
        ] {
            let found = keyed.key(said, payload.as_bytes());
            assert_eq!(found.ok().flatten().as_deref(), key, "{payload}");
        }
        assert!(keyed.key(Some(&"k".repeat(257)), b"").is_err());
        assert_eq!(Ordering::Serial.key(Some("ignored"), b"").unwrap(), None);
    }
}
