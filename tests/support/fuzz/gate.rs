//! The whole gate under one connection's bytes: what it accepts, what it answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cofferdam::clock::Timestamp;
use cofferdam::config::{Config, SinkMode};
use cofferdam::entropy::Entropy;
use cofferdam::handler::{HandlerOptions, HandlerSpec};
use cofferdam::job::{Finished, InstanceId, JobId, JobStatus};
use cofferdam::limits::{DELAY_MAX, IDEMPOTENCY_KEY_BYTES, MEDIA_TYPE_BYTES, ORDERING_KEY_BYTES};
use cofferdam::observe::metrics::Counters;
use cofferdam::ports::{Ends, JobEnded, NewJob, Refusal, Submitted};
use cofferdam::web::calls::answer;
use cofferdam::web::gate::{Gate, Settings};
use cofferdam::web::questions::{Answered, Question};
use cofferdam::web::respond::Answer;

use super::{piece, pieces, texts};
use submits::Submits;

#[path = "../submits.rs"]
mod submits;

const MAX_BODY: usize = 256;
const CONNECTION: usize = 1;
const NOW: Timestamp = Timestamp(1_700_000_000_000_000);
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Any segmentation of a connection's bytes has the same jobs and the same answers, and no connection is left that
/// neither reads nor ends.
pub fn gate(bytes: &[u8]) {
    let whole = converse(bytes, |left| left);
    let mut sizes = pieces(bytes);
    let in_pieces = converse(bytes, |left| piece(&mut sizes, left));
    assert_eq!(in_pieces.accepted, whole.accepted);
    assert_eq!(in_pieces.said.escape_ascii().to_string(), whole.said.escape_ascii().to_string());
}

/// A first line with the query, then headers, an empty line, a body: around them a head that is always whole.
pub fn submission(bytes: &[u8]) {
    let end = bytes.windows(2).position(|window| window == b"\n\n").unwrap_or(bytes.len());
    let body = bytes.get(end + 2..).unwrap_or_default();
    let head = String::from_utf8_lossy(&bytes[..end]);
    let (query, headers) = head.split_once('\n').unwrap_or((&head, ""));
    for handler in ["echo", "keyed"] {
        let length = body.len();
        let mut request = format!(
            "POST /v1/jobs/{handler}?{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
        );
        let headers = headers.lines().filter(|line| !line.is_empty());
        headers.for_each(|line| request.extend([line, "\r\n"]));
        request.push_str("\r\n");
        let talk = converse(&[request.as_bytes(), body].concat(), |left| left);
        assert!(talk.said.starts_with(b"HTTP/1.1 ") && talk.accepted.len() <= 1);
        let taken = talk.accepted.first().is_some_and(|job| job.bytes == body);
        assert_eq!(taken, talk.said.starts_with(b"HTTP/1.1 20"), "a job is accepted or its caller refused");
    }
}

/// What came of one connection.
#[derive(Default)]
struct Talk {
    accepted: Vec<Accepted>,
    said: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq)]
struct Accepted {
    id: JobId,
    bytes: Vec<u8>,
    rest: String,
}

fn converse(bytes: &[u8], mut size: impl FnMut(usize) -> usize) -> Talk {
    let book = Arc::new(Book::default());
    let mut gate = Gate::new(settings(), Vec::new(), Arc::new(Counters::default()), Entropy::Seeded(1));
    let (mut talk, mut at) = (Talk::default(), 0);
    gate.begin_turn(NOW);
    gate.open(CONNECTION, [127, 0, 0, 1].into());
    while at < bytes.len() && !gate.is_finished(CONNECTION) {
        let room = gate.readable_bytes(CONNECTION);
        assert!(room > 0, "the connection neither reads nor ends");
        let end = at + size(bytes.len() - at).min(room);
        gate.received(CONNECTION, &bytes[at..end]);
        at = end;
        while go_on(&mut gate, &book, &mut talk.said) {}
    }
    // What a client is told before its body depends on when the body comes.
    while let Some(at) = talk.said.windows(CONTINUE.len()).position(|window| window == CONTINUE) {
        talk.said.drain(at..at + CONTINUE.len());
    }
    gate.close(CONNECTION);
    assert!(gate.take_questions().is_empty());
    talk.accepted = std::mem::take(&mut book.lock().accepted);
    talk
}

/// Every job succeeds with its own input, the inner server answers with the target, the client reads everything.
fn go_on(gate: &mut Gate, book: &Book, said: &mut Vec<u8>) -> bool {
    let questions = gate.take_questions();
    let asked = !questions.is_empty();
    for question in questions {
        let answered = match question {
            Question::Page(request) => {
                assert!(request.target.bytes().all(|byte| byte.is_ascii_graphic()));
                Some(Answered::Page(
                    request.asker,
                    Answer::new(200, "text/plain", request.target.into_bytes()),
                ))
            }
            other => answer(other, Ok(&Submits(|job| book.accept(job)))),
        };
        answered.into_iter().for_each(|answered| gate.answered(answered));
    }
    let ended = std::mem::take(&mut book.lock().ended);
    let went_on = asked || !ended.is_empty();
    gate.deliver(Ends { ended, lost: false });
    let unsent = gate.unsent(CONNECTION);
    said.extend_from_slice(unsent);
    let sent = unsent.len();
    gate.flushed(CONNECTION, sent);
    went_on || sent > 0
}

fn settings() -> Settings {
    let spec = |name: &str, options| (name.to_owned(), HandlerSpec::new(name, 0, options));
    let mut web = Config::default().web;
    (web.max_inflight, web.max_body_bytes, web.max_batch_bytes) = (8, MAX_BODY, 2 * MAX_BODY);
    web.limits.header_bytes = 512;
    Settings {
        web,
        reply_timeout: Duration::from_secs(30),
        sink_mode: SinkMode::SourceSeq,
        handlers: HashMap::from([
            spec("echo", HandlerOptions::default()),
            spec("keyed", HandlerOptions::keyed("/k")),
        ]),
        instance: InstanceId(1),
        exports_traces: false,
        jobs_survive_processes: false,
    }
}

/// A broker that accepts everything, ends it at once, and looks at what it was given.
#[derive(Default)]
struct Book(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    accepted: Vec<Accepted>,
    ended: Vec<JobEnded>,
}

impl Book {
    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of a job.
    fn accept(&self, job: NewJob) -> Submitted {
        let mut book = self.lock();
        let NewJob { id, handler, ordering_key, payload, trace, delay, timeout, idempotency, .. } = job;
        assert_eq!(ordering_key.is_some(), &*handler == "keyed");
        assert!(ordering_key.as_ref().is_none_or(|key| key.len() <= ORDERING_KEY_BYTES));
        assert!(payload.bytes.len() <= MAX_BODY && payload.media_type.as_str().len() <= MEDIA_TYPE_BYTES);
        assert!(delay <= DELAY_MAX && trace.id != [0; 16]);
        assert!(timeout.is_none_or(|timeout| !timeout.is_zero() && timeout <= Duration::from_secs(30)));
        if let Some(key) = idempotency.as_ref().map(|idempotency| &idempotency.key) {
            assert!((1..=IDEMPOTENCY_KEY_BYTES).contains(&key.len()));
            assert!(key.bytes().all(|byte| byte.is_ascii_graphic()));
            // A word that a mutation finds: the broker's other answer.
            if &**key == "full" {
                return Submitted::Refused(Refusal::QueueFull);
            }
        }
        let rest = format!("{handler} {ordering_key:?} {trace} {delay:?} {timeout:?} {idempotency:?}");
        book.accepted.push(Accepted { id, bytes: payload.bytes.to_vec(), rest });
        let finished = Finished { status: JobStatus::Succeeded, result: Ok(payload) };
        book.ended.push(JobEnded { job: id, finished: Arc::new(finished) });
        Submitted::New
    }
}

pub fn conversations() -> Vec<Vec<u8>> {
    let post = "POST /v1/jobs/echo HTTP/1.1\r\nHost: localhost\r\n";
    let batch = "POST /v1/batch/keyed?sink_mode=completion HTTP/1.1\r\nHost: [::1]:1\r\n";
    let get = "GET /v1/jobs?limit=2 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    let lines = "{\"k\":1}\nno\n\n{\"k\":2}";
    texts(&[
        &format!("{post}Content-Length: 3\r\n\r\nabc{get}"),
        &format!(
            "{post}Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n3\r\nabc\r\n0\r\n\r\n{get}{get}"
        ),
        &format!("{post}Prefer: respond-async\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx{get}"),
        &format!("{batch}Content-Length: {}\r\n\r\n{lines}GET /healthz HTTP/1.0\r\n\r\n", lines.len()),
        &format!(
            "{batch}Transfer-Encoding: chunked\r\n\r\n5\r\n{{\"k\":\r\n3\r\n1}}\n\r\n0\r\nA: b\r\n\r\n{post}"
        ),
        &format!("HEAD /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n{post}Content-Length: 999\r\n\r\n"),
        "PUT / HTTP/1.1\r\nHost: localhost\r\n\r\nGET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/2.0\r\n",
    ])
}

pub fn submissions() -> Vec<Vec<u8>> {
    texts(&[
        "delay_ms=5&timeout_ms=30000\nOrdering-Key: k\nPrefer: wait=3, x\n\n{\"k\":1}",
        "\nIdempotency-Key: \"a\\\"b\\\\\"\nContent-Type: text/plain; charset=utf-8\n\nx",
        "x=1\nIdempotency-Key: full\nPrefer: respond-async\n\n{\"k\":true}",
        "timeout_ms=1\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n\n",
        "delay_ms=604800000\nPrefer: wait=\"0\"\nContent-Type: application/json\n\n{\"k\":\"\\u00e4\"}",
    ])
}
