//! What a job is: its identity, its bytes, its status, and what can come of it.
//!
//! Everything here is a plain value that any room may use; nothing here acts.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::codec::{hex, parse_hex, write_hex};
use crate::limits::{
    CHANGE_BYTES, FOLLOW_UP_OVERHEAD_BYTES, MEDIA_TYPE_BYTES, PAST_ATTEMPTS, PROGRESS_BYTES,
};
use crate::named::named;
use crate::problem::JobError;
pub use crate::trace::{Trace, tracestate};

/// 128 random bits, or with a journal the line of a batch, written as 32 lowercase hex digits.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId(pub [u8; 16]);

impl JobId {
    /// Reads 32 lowercase hex digits; anything else is no id.
    pub fn parse(text: &str) -> Option<JobId> {
        parse_hex(text.as_bytes()).map(JobId)
    }
}

/// As one number: a map of jobs is asked some forty times a job.
impl std::hash::Hash for JobId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_be_bytes(self.0));
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hashes ids that are random or counted by us, and names that an operator gives: their own bits are spread well enough, and
/// nobody outside can choose them to collide.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdHasher(u64);

impl std::hash::Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            self.write_u64(rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
        }
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_u128(&mut self, id: u128) {
        // A job's id: both halves count, since one of them may be the same in all ids of a batch.
        self.write_u64((id >> 64) as u64);
        self.write_u64(id as u64);
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// A map by an id of ours, or an operator's name.
pub type IdMap<K, V> = HashMap<K, V, std::hash::BuildHasherDefault<IdHasher>>;

/// A valid media type (RFC 9110, 8.3.1) of at most 256 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaType(Cow<'static, str>);

impl MediaType {
    /// `application/json`
    pub const JSON: MediaType = MediaType(Cow::Borrowed("application/json"));
    /// `application/octet-stream`, which is also what an invalid type becomes.
    pub const BYTES: MediaType = MediaType(Cow::Borrowed("application/octet-stream"));

    /// `text` if it is a media type: `token/token`, then visible ASCII parameters.
    pub fn parse(text: &str) -> Option<MediaType> {
        if text == "application/json" {
            return Some(MediaType::JSON);
        }
        let (essence, parameters) = text.split_once(';').unwrap_or((text, ""));
        let (kind, subtype) = essence.trim_end_matches([' ', '\t']).split_once('/')?;
        let is_name = |name: &str| !name.is_empty() && name.bytes().all(is_token_byte);
        let printable = parameters.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
        let valid = is_name(kind) && is_name(subtype) && printable && text.len() <= MEDIA_TYPE_BYTES;
        valid.then(|| MediaType(Cow::Owned(text.to_owned())))
    }

    /// The text as it goes into a header.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for `application/json`, with or without parameters, and for `+json` types.
    pub fn is_json(&self) -> bool {
        let essence = self.0.split(';').next().unwrap_or_default().trim_end();
        essence.eq_ignore_ascii_case("application/json") || essence.ends_with("+json")
    }
}

/// `tchar` of RFC 9110, 5.6.2.
pub(crate) fn is_token_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
}

/// Bytes with a content type: what goes into a handler and what comes out of it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// What the bytes are.
    pub media_type: MediaType,
    /// The bytes, as they came.
    pub bytes: Arc<[u8]>,
}

impl Payload {
    /// `application/json` bytes, unchecked: they travel as they are.
    pub fn json(bytes: impl Into<Arc<[u8]>>) -> Payload {
        Payload { media_type: MediaType::JSON, bytes: bytes.into() }
    }

    /// `application/octet-stream` bytes.
    pub fn octets(bytes: impl Into<Arc<[u8]>>) -> Payload {
        Payload { media_type: MediaType::BYTES, bytes: bytes.into() }
    }
}

/// A lane's state or a trace's context. It has no order, and handlers cannot walk it: nothing they decide can
/// depend on one.
pub type Entries = HashMap<Arc<str>, Arc<[u8]>>;

/// The map of a lane's state: `state:{handler}:{SHA-256 of the ordering key}`; a serial handler's key is empty.
pub fn state_map(handler: &str, key: Option<&str>) -> String {
    format!("state:{handler}:{}", hex(&Sha256::digest(key.unwrap_or_default().as_bytes())))
}

/// The map of a trace's context, of one owner: `ctx:{trace}`, and with authentication the owner's name.
pub fn context_map(owner: &str, trace: &Trace) -> String {
    let own = if owner.is_empty() { String::new() } else { format!(":{owner}") };
    format!("ctx:{}{own}", trace.id_text())
}

/// Bytes that an entry counts for against the limits.
pub fn entry_bytes(key: &str, value: &[u8]) -> usize {
    key.len() + value.len()
}

/// One change of a map: `None` removes the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// At most [`crate::limits::MAP_NAME_BYTES`].
    pub key: Arc<str>,
    pub value: Option<Arc<[u8]>>,
}

/// Names a version of a lane's state: the fence of the delivery that committed it; 0 is the empty state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64);

/// Which web or batch process wants to hear of a job's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InstanceId(pub u64);

/// 16 hex digits.
impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A job as it was accepted; never changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct JobSpec {
    /// Chosen by who submits, so that a repeated submission is the same job.
    pub id: JobId,
    /// The token name of the caller; empty without authentication.
    pub owner: Arc<str>,
    pub handler: Arc<str>,
    /// `Some` iff the handler is keyed.
    pub ordering_key: Option<Arc<str>>,
    pub trace: Trace,
    /// What came with the trace, as it came: see [`tracestate`].
    pub tracestate: Option<Arc<str>>,
    /// When it was accepted: the handler's `now`.
    pub submitted_at: Timestamp,
    /// The handler's timeout for this job.
    pub timeout: Duration,
    /// The result must be one line (`batch`).
    pub one_line: bool,
}

named! {
    /// Where a job is in its life, in the order of the metric's series.
    JobStatus {
        /// Waiting for its lane, its time, or a worker.
        Queued = "queued",
        /// A delivery has started.
        Running = "running",
        /// A result was committed.
        Succeeded = "succeeded",
        /// The handler said that it cannot be done.
        Failed = "failed",
        /// Somebody cancelled it.
        Cancelled = "cancelled",
        /// The handler took longer than its timeout.
        TimedOut = "timed_out",
        /// Every delivery was used up.
        Dead = "dead",
    }
}

impl JobStatus {
    /// True once nothing more happens to the job in this life.
    pub fn is_terminal(self) -> bool {
        !matches!(self, JobStatus::Queued | JobStatus::Running)
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Terminal.
    pub status: JobStatus,
    /// The result iff it succeeded, else the reason.
    pub result: Result<Payload, JobError>,
}

/// What came of one delivery, as its executor saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The handler's result; its effects take hold with it.
    Succeeded(Payload, Effects),
    /// Terminal at once.
    Failed(JobError),
    /// To be delivered again by the handler's own word: after a backoff, or after its own time, and why.
    Retry(String, Option<Duration>),
    /// The handler panicked or its program was killed.
    Crashed(String),
    /// The handler's deadline passed; what there is to say of that, or nothing.
    TimedOut(String),
}

/// What a successful delivery changes besides its result; all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    pub state: Vec<Change>,
    pub context: Vec<Change>,
    pub follow_ups: Vec<FollowUp>,
}

impl Effects {
    /// What they take of memory, at least: what a peer may make us hold is counted by this.
    pub fn held_bytes(&self) -> usize {
        let value = |change: &Change| change.value.as_ref().map_or(0, |value| value.len());
        let changes = self.state.iter().chain(&self.context);
        let changes = changes.map(|change| CHANGE_BYTES + change.key.len() + value(change));
        let jobs = self.follow_ups.iter().map(|job| FOLLOW_UP_OVERHEAD_BYTES + job.payload.bytes.len());
        changes.chain(jobs).sum()
    }

    /// Puts others behind these.
    pub fn append(&mut self, mut others: Effects) {
        self.state.append(&mut others.state);
        self.context.append(&mut others.context);
        self.follow_ups.append(&mut others.follow_ups);
    }
}

/// A job that a job submits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowUp {
    /// Which handler runs it.
    pub handler: Arc<str>,
    /// `Some` iff that handler is keyed.
    pub ordering_key: Option<Arc<str>>,
    /// Not before this long after the commit.
    pub delay: Duration,
    pub payload: Payload,
}

named! {
    /// What came of a delivery.
    AttemptOutcome {
        Succeeded = "succeeded",
        Failed = "failed",
        Cancelled = "cancelled",
        TimedOut = "timed_out",
        Dead = "dead",
        /// The handler asked for another try.
        HandlerRetry = "handler_retry",
        /// The handler panicked or its program was killed.
        HandlerCrashed = "handler_crashed",
        ExecutorLost = "executor_lost",
        /// It was cut off by no fault of its own.
        GivenBack = "given_back",
        /// It succeeded, but what it submits found no room.
        QueueFull = "queue_full",
    }
}

impl AttemptOutcome {
    /// True if it ended the job's life.
    pub fn is_end(self) -> bool {
        JobStatus::ALL.into_iter().any(|status| AttemptOutcome::of(status) == Some(self))
    }

    /// Of the delivery that ended the job's life; `None` before that.
    pub fn of(status: JobStatus) -> Option<AttemptOutcome> {
        match status {
            JobStatus::Queued | JobStatus::Running => None,
            JobStatus::Succeeded => Some(AttemptOutcome::Succeeded),
            JobStatus::Failed => Some(AttemptOutcome::Failed),
            JobStatus::Cancelled => Some(AttemptOutcome::Cancelled),
            JobStatus::TimedOut => Some(AttemptOutcome::TimedOut),
            JobStatus::Dead => Some(AttemptOutcome::Dead),
        }
    }
}

/// A delivery that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    /// The broker's name of who had it.
    pub executor: Arc<str>,
    pub outcome: AttemptOutcome,
}

/// Why a queued job is not running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitingFor {
    /// This job is before it in its lane.
    Lane(JobId),
    /// Its handler is paused.
    Paused,
    /// A retry's backoff lasts until then.
    Backoff(Timestamp),
    /// Its caller asked for a delay until then.
    Delay(Timestamp),
    /// All workers are busy.
    Workers,
    /// No executor of its group is connected.
    Executor,
}

/// How far a job is, as its handler says: any JSON, in one line and of at most [`PROGRESS_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress(Arc<str>);

impl Progress {
    /// `None`: it is no JSON, or too long.
    pub fn parse(text: &str) -> Option<Progress> {
        let short = Some(text).filter(|text| text.len() <= PROGRESS_BYTES)?;
        let json: &RawValue = serde_json::from_str(short).ok()?;
        // A line break in JSON stands between its values only.
        Some(Progress(json.get().replace(['\n', '\r'], " ").into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is known of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRecord {
    pub spec: Arc<JobSpec>,
    pub status: JobStatus,
    /// How often a delivery started in this life.
    pub deliveries: u32,
    /// The last start.
    pub started_at: Option<Timestamp>,
    /// `Some` iff the status is terminal.
    pub finished_at: Option<Timestamp>,
    /// `Some` iff the status is terminal.
    pub finished: Option<Arc<Finished>>,
    /// `Some` iff the status is queued.
    pub waiting_for: Option<WaitingFor>,
    /// What its last delivery has said of it. Nothing is built on that, and no journal has it.
    pub progress: Option<Progress>,
    /// Who had its last delivery; `None` once that is among the past ones.
    pub executor: Option<Arc<str>>,
    /// Its last deliveries but for that one, oldest first, of its earlier lives too: at most [`PAST_ATTEMPTS`].
    pub past: Vec<Attempt>,
}

impl JobRecord {
    /// A new job's.
    pub fn queued(spec: Arc<JobSpec>) -> JobRecord {
        JobRecord {
            spec,
            status: JobStatus::Queued,
            deliveries: 0,
            started_at: None,
            finished_at: None,
            finished: None,
            waiting_for: None,
            progress: None,
            executor: None,
            past: Vec::new(),
        }
    }

    /// Without its result, if it has one.
    #[must_use]
    pub fn without_result(mut self) -> JobRecord {
        self.finished = self.finished.filter(|finished| finished.result.is_err());
        self
    }

    /// Its last delivery is over. Of too many the oldest is forgotten.
    pub fn end_attempt(&mut self, outcome: AttemptOutcome, ended_at: Timestamp) {
        let Some(executor) = self.executor.take() else { return };
        if self.past.len() == PAST_ATTEMPTS {
            self.past.remove(0);
        }
        let started_at = self.started_at.unwrap_or(ended_at);
        self.past.push(Attempt { started_at, ended_at, executor, outcome });
    }

    /// The same, where its life is over and a new one begins.
    pub fn begin_again(&mut self) {
        let outcome = self.finished.as_ref().and_then(|finished| AttemptOutcome::of(finished.status));
        if let (Some(outcome), Some(at)) = (outcome, self.finished_at) {
            self.end_attempt(outcome, at);
        }
        let past = std::mem::take(&mut self.past);
        *self = JobRecord { past, ..JobRecord::queued(self.spec.clone()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_32_lowercase_hex_digits_and_nothing_else() {
        let id = JobId([0xA5; 16]);
        assert_eq!(JobId::parse(&id.to_string()), Some(id));
        for bad in ["", "a5", &"A5".repeat(16), &"g0".repeat(16), &"a5".repeat(17)] {
            assert_eq!(JobId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn media_types_are_checked_and_json_is_recognised() {
        for (text, valid, json) in [
            ("application/json", true, true),
            ("application/json; charset=utf-8", true, true),
            ("application/problem+json", true, true),
            ("text/plain;charset=utf-8", true, false),
            ("text", false, false),
            ("text/", false, false),
            ("te xt/plain", false, false),
            ("text/plain\r\nX: y", false, false),
        ] {
            let parsed = MediaType::parse(text);
            assert_eq!(parsed.is_some(), valid, "{text}");
            assert_eq!(parsed.is_some_and(|media_type| media_type.is_json()), json, "{text}");
        }
    }
}
