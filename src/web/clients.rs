//! All client connections: buffers, where each stands and until when it may, and how answers leave. Pure.
//!
//! ```text
//!            head whole       body whole                            answer
//!    Head ---------------> Body ---------> Waiting | Inner ----------------> Head
//!      |                     |             | Streaming | Listening
//!      |                     |                                (keep-alive)     |
//!      | refused, closing    |                                                 |
//!      +---------------------+-------------> Closing <-------------------------+
//! ```

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::chunked::Chunked;
use super::guard::{Caller, Known};
use super::http1::{Head, Refused, refused};
use super::output::Output;
use super::questions::Asker;
use super::respond::{Answer, http_date, status_text};
use super::routes::Route;
use super::waiters::Waiting;
use crate::clock::Timestamp;
use crate::config::WebLimits;
use crate::entropy::Entropy;
use crate::job::{IdMap, JobId, Trace};
use crate::ndjson::Pump;
use crate::observe::event;
use crate::observe::metrics::Counters;
use crate::ports::Viewer;
use crate::problem::Code;

/// Answers that a client has not read yet; beyond it no further request of the connection is begun.
pub const OUTPUT_BYTES: usize = 256 << 10;
/// What is read ahead while a request is being answered: a pipeline, or nothing.
const READ_AHEAD_BYTES: usize = 64 << 10;
/// After its last answer a client has this long to read it.
const LINGER_MS: u64 = 2_000;
/// What is waited for without a deadline of ours.
pub const NEVER: Timestamp = Timestamp(u64::MAX);

/// While the service stops no job is accepted, and nobody waits for the rest of a request.
pub const DRAINING: Refused = refused(Code::Draining, "the service is shutting down");

/// One connection.
pub struct Conn {
    /// The client's address, or its proxy's.
    pub peer: IpAddr,
    /// What has arrived and was not used.
    pub input: Vec<u8>,
    /// What was not sent yet.
    pub output: Output,
    /// Bytes of the output in the budget of all outputs.
    counted: usize,
    /// When the client took something last, or had nothing to take.
    pub took_at: Timestamp,
    /// When it had no request last.
    pub rests_since: Timestamp,
    pub phase: Phase,
    /// The phase's absolute deadline. Between requests, and after the last one, it begins when what was said is sent.
    pub deadline: Timestamp,
    /// `Some` while output is waiting: renewed by progress alone.
    pub write_deadline: Option<Timestamp>,
    /// Another request may follow.
    pub keep_alive: bool,
    /// An empty line before the next request.
    pub has_skipped: bool,
    /// The client has closed its side. It may be gone altogether, or still read.
    pub has_left: bool,
    /// So it has, and all that it said before is here.
    pub at_end: bool,
    /// Who its last request was from, where requests bring tokens.
    pub known: Option<Known>,
    /// The request under way.
    pub asker: Asker,
    pub current: Current,
}

/// The request that is being answered.
#[derive(Default)]
pub struct Current {
    pub route: &'static str,
    /// The request's, or once it has submitted a job, that of the job.
    pub trace: Trace,
    pub tracestate: Option<Arc<str>>,
    pub caller: Caller,
    /// Its answer has content: it is no HEAD.
    pub has_body: bool,
    /// An HTTP/1.0 client must be told that its connection is kept, and knows no chunks.
    pub is_1_1: bool,
}

impl Current {
    /// Of a request of which only the first bytes are known.
    pub fn malformed(entropy: &mut Entropy, input: &[u8]) -> Current {
        let (trace, tracestate) = (Trace::begin(entropy), None);
        let has_body = !input.starts_with(b"HEAD ");
        let caller = Caller::default();
        Current { route: "malformed", trace, tracestate, caller, has_body, is_1_1: true }
    }
}

#[derive(Default)]
pub enum Phase {
    /// Between requests, or inside a head.
    #[default]
    Head,
    /// The head was accepted, the body is arriving.
    Body(Box<Incoming>),
    /// The caller waits for a job, or for its acceptance.
    Waiting(Box<Waiting>),
    /// A route that renders is at it.
    Inner,
    /// A batch's results are streaming.
    Streaming(Box<Batch>),
    /// It is told what happens.
    Listening(Box<Listening>),
    /// The answer is the last one; after it the client is given a moment to read it.
    Closing,
}

/// A request whose body is arriving.
pub struct Incoming {
    pub head: Head,
    pub route: Route,
    /// Of a chunked body, so far.
    pub body: Vec<u8>,
    pub chunked: Chunked,
    pub max: usize,
    pub since: Timestamp,
    /// Bytes of it in the budget of all bodies.
    pub counted: usize,
}

/// Who listens to `/v1/events`.
pub struct Listening {
    pub viewer: Viewer,
    /// It has been told nothing.
    pub is_new: bool,
    /// Events that it was too slow for.
    pub lost: u64,
}

/// The lines of one `/v1/batch` request.
pub struct Batch {
    pub owner: Arc<str>,
    /// When the answer's head is sent without a result; `None`: it was sent.
    pub head_at: Option<Timestamp>,
    pub body: Arc<[u8]>,
    /// Where the next line begins.
    pub at: usize,
    pub pump: Pump,
}

impl Conn {
    /// How many bytes may be read now.
    pub fn readable_bytes(&self, head_bytes: usize) -> usize {
        let most = match &self.phase {
            Phase::Head => head_bytes,
            Phase::Body(incoming) => incoming.head.length.unwrap_or(READ_AHEAD_BYTES),
            Phase::Waiting(_) | Phase::Inner | Phase::Streaming(_) | Phase::Listening(_) => READ_AHEAD_BYTES,
            // What comes after the last request is thrown away.
            Phase::Closing => usize::MAX,
        };
        most.saturating_sub(self.input.len())
    }

    /// One empty line before a request is ignored (RFC 9112, 2.2), and begins none.
    pub fn skip_empty_line(&mut self) {
        if matches!(self.phase, Phase::Head) && !self.has_skipped && self.input.starts_with(b"\r\n") {
            self.input.drain(..2);
            self.has_skipped = true;
        }
    }

    /// Part of an answer without a length: to HTTP/1.1 a chunk. One without data would end the answer.
    pub fn write_part(&mut self, part: &[u8]) {
        match self.current.is_1_1 {
            _ if part.is_empty() => {}
            true => self.output.text(&[format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"]),
            false => self.output.text(&[part]),
        }
    }

    /// Ends such an answer; to HTTP/1.0 it ends with the connection.
    pub fn end_parts(&mut self) {
        if self.current.is_1_1 {
            self.output.text(&[b"0\r\n\r\n"]);
        }
    }

    /// The client took so many bytes.
    pub fn sent(&mut self, bytes: usize, now: Timestamp, write_deadline: Timestamp) {
        self.output.sent(bytes);
        self.took_at = now;
        self.write_deadline = Some(write_deadline).filter(|_| !self.output.is_empty());
    }

    /// Nothing more is read: what came behind the last request goes.
    pub fn close(&mut self) -> Phase {
        self.input = Vec::new();
        std::mem::replace(&mut self.phase, Phase::Closing)
    }

    pub fn clear_output(&mut self) {
        self.output.clear();
        self.write_deadline = None;
    }

    /// The earliest of its deadlines.
    pub fn due(&self) -> Timestamp {
        let write = self.write_deadline.unwrap_or(NEVER);
        if self.is_sending() { write } else { write.min(self.deadline) }
    }

    /// The client is still taking an answer, and nothing else is under way.
    fn is_sending(&self) -> bool {
        matches!(self.phase, Phase::Head | Phase::Closing) && !self.output.is_empty()
    }

    /// True if nothing more will be said, and the client has closed its side or its moment to read the last answer has passed.
    pub fn is_over(&self, now: Timestamp) -> bool {
        matches!(self.phase, Phase::Closing) && !self.is_sending() && (self.at_end || self.deadline <= now)
    }
}

/// See the module.
pub struct Clients {
    pub conns: IdMap<usize, Conn>,
    pub limits: WebLimits,
    pub counters: Arc<Counters>,
    /// Bytes of all outputs.
    pub output_bytes: usize,
    /// The time of this turn.
    pub now: Timestamp,
    /// Connections with something to send or to close.
    pub touched: Vec<usize>,
    pub next_due: Timestamp,
    date: (u64, String),
    /// The service stops: new jobs are refused.
    pub draining: bool,
    /// Each answer is its connection's last.
    pub are_last: bool,
}

impl Clients {
    pub fn new(limits: WebLimits, counters: Arc<Counters>) -> Clients {
        Clients {
            conns: IdMap::default(),
            limits,
            counters,
            output_bytes: 0,
            now: Timestamp(0),
            touched: Vec::new(),
            next_due: NEVER,
            date: (u64::MAX, String::new()),
            draining: false,
            are_last: false,
        }
    }

    pub fn open(&mut self, number: usize, peer: IpAddr) {
        // Whoever connects has something to say: the silent ones must not keep the places of others for long.
        let deadline = self.after(self.limits.header_timeout_ms);
        let (asker, now) = (Asker { conn: number, request: 0 }, self.now);
        let (input, output, counted, phase, write_deadline, current) = Default::default();
        let (keep_alive, has_skipped, has_left, at_end) = (true, false, false, false);
        let conn = Conn {
            peer,
            input,
            output,
            counted,
            took_at: now,
            rests_since: now,
            phase,
            deadline,
            write_deadline,
            keep_alive,
            has_skipped,
            has_left,
            at_end,
            known: None,
            asker,
            current,
        };
        self.conns.insert(number, conn);
        self.due(deadline);
    }

    /// Forgets the connection.
    pub fn remove(&mut self, number: usize) {
        if let Some(conn) = self.conns.remove(&number) {
            self.output_bytes -= conn.counted;
        }
    }

    /// Counts what this client's output holds.
    pub fn count_output(&mut self, number: usize) {
        if let Some(conn) = self.conns.get_mut(&number) {
            let held = conn.output.held();
            self.output_bytes = self.output_bytes - std::mem::replace(&mut conn.counted, held) + held;
        }
    }

    /// The connection whose request asked, while that is the one under way.
    pub fn of(&mut self, asker: Asker) -> Option<&mut Conn> {
        self.conns.get_mut(&asker.conn).filter(|conn| conn.asker == asker)
    }

    /// Connections that stand there.
    pub fn in_phase(&self, is_it: impl Fn(&Phase) -> bool) -> Vec<usize> {
        let there = self.conns.iter().filter(|(_, conn)| is_it(&conn.phase));
        there.map(|(number, _)| *number).collect()
    }

    pub fn after(&self, millis: u64) -> Timestamp {
        self.now.plus(Duration::from_millis(millis))
    }

    /// Something is due then.
    fn due(&mut self, at: Timestamp) {
        self.next_due = self.next_due.min(at);
    }

    /// The phase of this connection may last until then.
    pub fn set_deadline(&mut self, number: usize, deadline: Timestamp) {
        if let Some(conn) = self.conns.get_mut(&number) {
            conn.deadline = deadline;
        }
        self.due(deadline);
    }

    /// Of the request under way.
    pub fn trace(&self, number: usize) -> Trace {
        self.conns.get(&number).map_or(Trace::default(), |conn| conn.current.trace)
    }

    /// Writes the answer to the request under way; without a `length` its head, and its body comes in chunks.
    pub fn write(&mut self, number: usize, answer: &Answer, length: Option<usize>) {
        let second = self.now.0 / 1_000_000;
        if self.date.0 != second {
            self.date = (second, http_date(self.now));
        }
        let Some(conn) = self.conns.get_mut(&number) else { return };
        conn.keep_alive &= !(self.are_last || conn.at_end && conn.input.is_empty());
        // To HTTP/1.0 a body without a length ends with the connection.
        conn.keep_alive &= length.is_some() || conn.current.is_1_1;
        let Answer { status, headers, body } = answer;
        let Current { trace, tracestate, is_1_1, .. } = &conn.current;
        let text = length.map(|length| length.to_string());
        let (state_is, state) = tracestate.as_deref().map_or(("", ""), |state| ("\r\ntracestate: ", state));
        let (framed, by) = match &text {
            Some(length) => ("\r\ncontent-length: ", &**length),
            None if *is_1_1 => ("\r\ntransfer-encoding: chunked", ""),
            None => ("", ""),
        };
        let connection = match conn.keep_alive {
            true if *is_1_1 => "",
            true => "\r\nconnection: keep-alive",
            false => "\r\nconnection: close",
        };
        let (status_line, trace, date) = (status_text(*status), trace.header(), &*self.date.1);
        // Not by a formatter, which judges each piece that it is given.
        let head =
            ["HTTP/1.1 ", status_line, "\r\n", headers, "traceparent: ", &trace, state_is, state, framed, by];
        let end = [connection, "\r\ncache-control: no-store\r\ndate: ", date, "\r\n\r\n"];
        conn.output.text(&head.map(str::as_bytes));
        conn.output.text(&end.map(str::as_bytes));
        if length.is_some() && conn.current.has_body {
            conn.output.body(body);
        }
        self.counters.requests.add((conn.current.route, *status), 1);
    }

    /// Answers the request under way; the next one may begin.
    pub fn answer(&mut self, number: usize, answer: &Answer) {
        self.write(number, answer, Some(answer.body.len()));
        self.next_request(number);
    }

    /// The client must take what is waiting for it within its time.
    pub fn expect_progress(&mut self, number: usize) {
        let until = self.after(self.limits.write_timeout_ms);
        let Some(conn) = self.conns.get_mut(&number) else { return };
        if !conn.output.is_empty() && conn.write_deadline.is_none() {
            (conn.write_deadline, conn.took_at) = (Some(until), self.now);
            self.due(until);
        }
        self.touched.push(number);
    }

    /// The request is answered: the connection waits for another one, or closes.
    pub fn next_request(&mut self, number: usize) {
        let Some(conn) = self.conns.get_mut(&number) else { return };
        conn.phase = Phase::Head;
        if !conn.keep_alive {
            conn.close();
        }
        // Renewed: the client has just been sent something.
        conn.write_deadline = None;
        self.begin_rest(number);
        self.expect_progress(number);
    }

    /// From now on a request may be waited for, or the client be given a moment to read the last answer.
    pub fn begin_rest(&mut self, number: usize) {
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&number) else { return };
        conn.rests_since = now;
        conn.skip_empty_line();
        let millis = match (&conn.phase, conn.input.is_empty()) {
            (Phase::Closing, _) => LINGER_MS,
            (Phase::Head, true) => self.limits.idle_timeout_ms,
            (Phase::Head, false) => self.limits.header_timeout_ms,
            _ => return,
        };
        self.set_deadline(number, self.after(millis));
    }

    /// Refuses the request; the connection goes on.
    pub fn refuse(&mut self, number: usize, why: Refused) {
        self.refuse_about(number, why, None);
    }

    /// The same, where a job is the reason.
    pub fn refuse_about(&mut self, number: usize, why: Refused, job: Option<JobId>) {
        let Refused { code, detail, header } = why;
        self.counters.http_rejected.add(code.as_str(), 1);
        event(log::Level::Debug, "ingress.rejected").field("code", code.as_str()).emit();
        let mut answer = Answer::refusal(code, detail, &self.trace(number));
        if let Some((name, value)) = header {
            answer = answer.with(name, value);
        }
        if let Some(job) = job {
            answer = answer.with("cofferdam-job-id", job.to_string());
        }
        self.answer(number, &answer);
    }
}
