//! A job's life as spans (OpenTelemetry), in the JSON that a collector reads. Pure.
//!
//! A job is a `SERVER` span: its parent is a caller's span of an HTTP request, a `CLIENT`, and tools pair the two. Each delivery
//! is a child of it, of the kind that the conventions for messaging give to `process`: `CONSUMER`. There is no payload, result,
//! key or owner in them, and not what a handler says went wrong.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::codec::hex;
use crate::job::{Attempt, AttemptOutcome, JobRecord, JobSpec, JobStatus};

const SERVER: u8 = 2;
const CONSUMER: u8 = 5;
/// The status of a span that failed.
const ERROR: u8 = 2;

/// Who exports.
pub struct Resource {
    /// Of this process alone.
    pub instance: String,
    pub pid: u32,
}

/// A span, but for what all spans of its job have.
struct Span {
    kind: u8,
    /// What is done there, for the span's name.
    does: &'static str,
    id: [u8; 8],
    /// Zeros: none.
    parent: [u8; 8],
    from: Timestamp,
    to: Timestamp,
    attributes: Vec<Value>,
    /// Why it failed.
    failure: Option<&'static str>,
}

/// The spans of jobs that have ended, and have spans of their own: an `ExportTraceServiceRequest` as a line.
#[must_use]
pub fn request(resource: &Resource, records: &[JobRecord]) -> String {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    let attributes = [
        text("service.name", "cofferdam"),
        text("service.version", VERSION),
        text("service.instance.id", &resource.instance),
        number("process.pid", resource.pid),
    ];
    let of_job = |record| spans(record).into_iter().map(|span| shown(span, &record.spec));
    let spans: Vec<Value> = records.iter().flat_map(of_job).collect();
    let scope = json!({ "scope": { "name": "cofferdam", "version": VERSION }, "spans": spans });
    let of_resource = json!({ "resource": { "attributes": attributes }, "scopeSpans": [scope] });
    json!({ "resourceSpans": [of_resource] }).to_string() + "\n"
}

/// The job's last life, and those of its deliveries that are remembered.
fn spans(record: &JobRecord) -> Vec<Span> {
    let JobRecord { spec, status, finished_at, .. } = record;
    let (Some(parent), Some(to)) = (spec.trace.parent, *finished_at) else { return Vec::new() };
    let mut attempts = attempts(record);
    let is_of_earlier_life = |it: &Attempt| AttemptOutcome::is_end(it.outcome) && it.ended_at < to;
    let earlier = attempts.iter().rposition(is_of_earlier_life);
    let earlier = earlier.and_then(|last| attempts.drain(..=last).next_back());
    // The caller was told the id of the first life.
    let id = earlier.as_ref().map_or(spec.trace.span, |it| derived(spec.trace.span, it.ended_at));
    let begun = attempts.first().filter(|_| earlier.is_some()).map(|first| first.started_at);
    let is_failure = matches!(status, JobStatus::Failed | JobStatus::TimedOut | JobStatus::Dead);
    let error = record.finished.as_ref().and_then(|finished| finished.result.as_ref().err());
    let failure = error.filter(|_| is_failure).map(|error| error.word());
    let attributes =
        vec![text("cofferdam.status", status.as_str()), number("cofferdam.deliveries", record.deliveries)];
    let from = begun.unwrap_or(spec.submitted_at);
    let mut out = vec![Span { kind: SERVER, does: "job", id, parent, from, to, attributes, failure }];
    for Attempt { started_at, ended_at, executor, outcome } in attempts {
        let attributes = vec![
            text("messaging.operation.name", "process"),
            text("messaging.operation.type", "process"),
            text("cofferdam.executor", &executor),
            text("cofferdam.outcome", outcome.as_str()),
        ];
        out.push(Span {
            kind: CONSUMER,
            does: "process",
            id: derived(id, started_at),
            parent: id,
            from: started_at,
            to: ended_at,
            attributes,
            failure: if outcome.is_end() { failure } else { again(outcome) },
        });
    }
    out
}

/// Its deliveries, oldest first.
fn attempts(record: &JobRecord) -> Vec<Attempt> {
    let times = record.started_at.zip(record.finished_at);
    let last = times.zip(record.executor.clone()).zip(AttemptOutcome::of(record.status));
    let last = last.map(|(((started_at, ended_at), executor), outcome)| Attempt {
        started_at,
        ended_at,
        executor,
        outcome,
    });
    record.past.iter().cloned().chain(last).collect()
}

/// Why a delivery failed that was not the last.
fn again(outcome: AttemptOutcome) -> Option<&'static str> {
    use AttemptOutcome as O;
    match outcome {
        O::HandlerRetry | O::HandlerCrashed | O::ExecutorLost => Some(outcome.as_str()),
        // Nobody's fault.
        O::GivenBack | O::QueueFull => None,
        O::Succeeded | O::Failed | O::Cancelled | O::TimedOut | O::Dead => None,
    }
}

/// The id of a span that nobody was told of: it is the same whoever exports it.
fn derived(span: [u8; 8], at: Timestamp) -> [u8; 8] {
    let digest = Sha256::digest([span, at.0.to_be_bytes()].concat());
    std::array::from_fn(|index| digest[index])
}

fn shown(span: Span, spec: &JobSpec) -> Value {
    let Span { kind, does, id, parent, from, to, mut attributes, failure } = span;
    attributes.push(text("messaging.system", "cofferdam"));
    attributes.push(text("messaging.destination.name", &spec.handler));
    attributes.push(text("messaging.message.id", &spec.id.to_string()));
    attributes.extend(failure.map(|word| text("error.type", word)));
    let mut out = Map::new();
    let mut set = |name: &str, value: Value| _ = out.insert(name.into(), value);
    set("traceId", spec.trace.id_text().into());
    set("spanId", hex(&id).into());
    if parent != [0; 8] {
        set("parentSpanId", hex(&parent).into());
    }
    spec.tracestate.iter().for_each(|state| set("traceState", (**state).into()));
    set("flags", spec.trace.flags.into());
    set("name", format!("{does} {}", spec.handler).into());
    set("kind", kind.into());
    set("startTimeUnixNano", nanos(from).into());
    // The clocks of two hosts may differ.
    set("endTimeUnixNano", nanos(to.max(from)).into());
    set("attributes", attributes.into());
    set("status", if failure.is_some() { json!({ "code": ERROR }) } else { json!({}) });
    out.into()
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

/// A 64-bit integer is a string in JSON (protobuf's mapping).
fn number(key: &str, value: u32) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}

fn nanos(Timestamp(micros): Timestamp) -> String {
    (u128::from(micros) * 1_000).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::job::{Finished, JobId, Trace};
    use crate::problem::{Cause, Code, JobError};

    /// A dead job of two lives: the first ended at 20, the second has two deliveries.
    fn record(past: &[(u64, u64, AttemptOutcome)]) -> JobRecord {
        let spec = JobSpec {
            id: JobId([1; 16]),
            owner: "alice".into(),
            handler: "h".into(),
            ordering_key: Some("secret".into()),
            trace: Trace { id: [2; 16], span: [3; 8], flags: 1, parent: Some([4; 8]) },
            tracestate: Some("a=\"1\"".into()),
            submitted_at: Timestamp(5),
            timeout: Duration::from_secs(1),
            one_line: false,
        };
        let attempt = |(from, to, outcome): &(u64, u64, AttemptOutcome)| Attempt {
            started_at: Timestamp(*from),
            ended_at: Timestamp(*to),
            executor: "9".into(),
            outcome: *outcome,
        };
        let cause = Some(Cause::HandlerCrashed);
        let error = JobError { cause, ..JobError::new(Code::DeadLettered, "secret") };
        JobRecord {
            status: JobStatus::Dead,
            deliveries: 2,
            started_at: Some(Timestamp(40)),
            finished_at: Some(Timestamp(50)),
            finished: Some(Arc::new(Finished { status: JobStatus::Dead, result: Err(error) })),
            executor: Some("9".into()),
            past: past.iter().map(attempt).collect(),
            ..JobRecord::queued(Arc::new(spec))
        }
    }

    /// Kind, id, parent, start, end and reason of each span.
    type Short = (u8, [u8; 8], [u8; 8], u64, u64, Option<&'static str>);

    fn short(record: &JobRecord) -> Vec<Short> {
        let of = |it: Span| (it.kind, it.id, it.parent, it.from.0, it.to.0, it.failure);
        spans(record).into_iter().map(of).collect()
    }

    #[test]
    fn a_job_has_a_span_and_each_of_its_deliveries_one_within_it() {
        let record = record(&[(10, 20, AttemptOutcome::HandlerRetry), (25, 30, AttemptOutcome::GivenBack)]);
        let [first, second, last] = [10, 25, 40].map(|at| derived([3; 8], Timestamp(at)));
        let crashed = Some("handler_crashed");
        let expected = [
            (SERVER, [3; 8], [4; 8], 5, 50, crashed),
            (CONSUMER, first, [3; 8], 10, 20, Some("handler_retry")),
            (CONSUMER, second, [3; 8], 25, 30, None),
            (CONSUMER, last, [3; 8], 40, 50, crashed),
        ];
        assert_eq!(short(&record), expected);
    }

    #[test]
    fn a_later_life_has_another_span_and_its_own_deliveries_alone() {
        let record = record(&[(10, 20, AttemptOutcome::Failed), (30, 35, AttemptOutcome::ExecutorLost)]);
        let life = derived([3; 8], Timestamp(20));
        let [first, last] = [30, 40].map(|at| derived(life, Timestamp(at)));
        let expected = [
            (SERVER, life, [4; 8], 30, 50, Some("handler_crashed")),
            (CONSUMER, first, life, 30, 35, Some("executor_lost")),
            (CONSUMER, last, life, 40, 50, Some("handler_crashed")),
        ];
        assert_eq!(short(&record), expected);
    }

    #[test]
    fn only_ended_jobs_with_spans_of_their_own_have_any_and_nothing_secret_is_in_them() {
        let mut record = record(&[]);
        let resource = Resource { instance: "i".into(), pid: 7 };
        let line = request(&resource, std::slice::from_ref(&record));
        assert!(line.ends_with("}\n") && !line.contains("secret") && !line.contains("alice"), "{line}");
        let read: Value = serde_json::from_str(&line).expect("JSON");
        let span = &read["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!((&span["traceState"], &span["flags"]), (&json!("a=\"1\""), &json!(1)));
        assert_eq!(span["startTimeUnixNano"], "5000");
        record.finished_at = None;
        assert!(spans(&record).is_empty());
        record.finished_at = Some(Timestamp(50));
        let spec = Arc::get_mut(&mut record.spec).expect("nobody else has it");
        spec.trace.parent = None;
        assert!(spans(&record).is_empty());
    }
}
