//! The gate: connections, requests, waiters and streams, as one value. Bytes, doorbells, the broker's answers and
//! time come in; bytes to send, questions to the broker and requests for the inner server come out.
//!
//! Invariants: a waiter is in the table iff its connection's phase says that it waits; exactly one of reply,
//! deadline, hang-up and drain takes it out; an answer goes to the request that asked, or nowhere.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::conn::{Asked, Conn, Current, Incoming, OUTPUT_BYTES, Phase, Wait};
use super::desk::Ask;
use super::http1::{Framing, Head, Refused, parse_head, refused};
use super::respond::{Answer, http_date, write_answer};
use super::routes::{self, Inner, Route, check_browser};
use super::submission::{self};
use crate::clock::Timestamp;
use crate::config::{SinkMode, WebLimits};
use crate::entropy::Entropy;
use crate::handler::HandlerSpec;
use crate::job::{InstanceId, JobId, Trace};
use crate::limits::{BODY_BYTES, TARGET_BYTES};
use crate::negative_controls::{Control, is_off};
use crate::observe::event;
use crate::observe::metrics::Counters;
use crate::ports::Doorbells;
use crate::problem::Code;

/// What the gate follows.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `web.limits`
    pub limits: WebLimits,
    /// `web.max_inflight`
    pub max_inflight: usize,
    /// `web.max_body_bytes`
    pub max_body: usize,
    /// `web.max_batch_bytes`
    pub max_batch: usize,
    /// `web.allowed_hosts`
    pub allowed_hosts: Vec<String>,
    /// `reply.timeout_ms`
    pub reply_timeout: Duration,
    /// `ordering.sink_mode`
    pub sink_mode: SinkMode,
    /// By name.
    pub handlers: HashMap<String, HandlerSpec>,
    /// Whose doorbells these are.
    pub instance: InstanceId,
}

/// A request for a route that renders or may block.
#[derive(Debug)]
pub struct InnerRequest {
    /// Which connection waits for it.
    pub conn: u64,
    /// And which of its requests.
    pub request: u64,
    /// The route.
    pub route: Inner,
    /// The query, checked to be visible ASCII.
    pub query: String,
    /// For problem documents.
    pub trace: Trace,
}

/// See the module.
pub struct Core {
    pub(super) settings: Settings,
    pub(super) counters: Arc<Counters>,
    pub(super) entropy: Entropy,
    pub(super) conns: HashMap<u64, Conn>,
    /// Who waits for which job; a stream is entered once a line.
    pub(super) waiters: HashMap<JobId, Vec<u64>>,
    /// Jobs whose last waiter left before the reply: it will be late.
    pub(super) left: HashMap<JobId, Trace>,
    pub(super) waiting: usize,
    /// Streams that found the queue full.
    pub(super) stalled: Vec<u64>,
    pub(super) inner: Vec<InnerRequest>,
    pub(super) asks: Vec<Ask>,
    /// Jobs whose ends may have gone unheard, and could not be looked for.
    pub(super) unsure: Vec<JobId>,
    /// Handlers whose jobs are cancelled when their last caller hangs up.
    pub(super) cancelling: Arc<[Arc<str>]>,
    /// Connections with something to send or to close.
    pub(super) touched: Vec<u64>,
    body_bytes: usize,
    pub(super) next_due: Timestamp,
    pub(super) date: (u64, String),
    pub(super) draining: bool,
}

impl Core {
    /// Without connections.
    #[must_use]
    pub fn new(settings: Settings, counters: Arc<Counters>, entropy: Entropy) -> Core {
        // A series that appears with its first request has no rate before its second.
        Route::LABELS.into_iter().for_each(|route| counters.request_series(route, 200));
        let cancelling = settings.handlers.values().filter(|spec| spec.options.cancel_on_disconnect);
        Core {
            cancelling: cancelling.map(|spec| spec.name.clone()).collect(),
            settings,
            counters,
            entropy,
            conns: HashMap::new(),
            waiters: HashMap::new(),
            left: HashMap::new(),
            waiting: 0,
            stalled: Vec::new(),
            inner: Vec::new(),
            asks: Vec::new(),
            unsure: Vec::new(),
            touched: Vec::new(),
            body_bytes: 0,
            next_due: Timestamp(u64::MAX),
            date: (u64::MAX, String::new()),
            draining: false,
        }
    }

    /// A client has connected.
    pub fn open(&mut self, number: u64, now: Timestamp) {
        let deadline = now.plus(Duration::from_millis(self.settings.limits.idle_timeout_ms));
        self.next_due = self.next_due.min(deadline);
        self.conns.insert(number, Conn::new(deadline));
    }

    /// How many bytes may be read from this client now.
    #[must_use]
    pub fn room(&self, number: u64) -> usize {
        let head = self.settings.limits.header_bytes + TARGET_BYTES + 128;
        self.conns.get(&number).map_or(0, |conn| conn.room(head))
    }

    /// Bytes have arrived.
    pub fn received(&mut self, number: u64, bytes: &[u8], now: Timestamp) {
        let Some(conn) = self.conns.get_mut(&number) else { return };
        match &mut conn.phase {
            Phase::Closing => return,
            Phase::Head if conn.input.is_empty() => {
                // The head's deadline counts from its first byte and is not moved by later ones.
                conn.deadline = now.plus(Duration::from_millis(self.settings.limits.header_timeout_ms));
                self.next_due = self.next_due.min(conn.deadline);
            }
            Phase::Head | Phase::Asked(_) | Phase::Waiting(_) | Phase::Inner | Phase::Streaming(_) => {}
            Phase::Body(incoming) => {
                incoming.counted += bytes.len();
                self.body_bytes += bytes.len();
            }
        }
        conn.input.extend_from_slice(bytes);
        self.advance(number, now);
    }

    /// The client has closed its side: nobody reads an answer any more.
    pub fn hung_up(&mut self, number: u64, now: Timestamp) {
        let Some(conn) = self.conns.get_mut(&number).filter(|_| !is_off(Control::Waiters)) else { return };
        conn.at_end = true;
        self.touched.push(number);
        let phase = std::mem::replace(&mut conn.phase, Phase::Closing);
        conn.deadline = now;
        match phase {
            Phase::Waiting(Wait { job, .. }) | Phase::Asked(Asked { job, waits: true, .. }) => {
                self.counters.reply_cancelled.fetch_add(1, Ordering::Relaxed);
                self.count_waiting(-1);
                self.leave(number, job, true);
            }
            Phase::Streaming(stream) => {
                for job in stream.jobs() {
                    self.leave(number, job, true);
                }
            }
            Phase::Body(incoming) => self.drop_body(&incoming),
            Phase::Head | Phase::Asked(_) | Phase::Inner | Phase::Closing => {}
        }
    }

    fn drop_body(&mut self, incoming: &Incoming) {
        self.body_bytes = self.body_bytes.saturating_sub(incoming.counted);
    }

    /// The client took so many bytes: what waited for room in its output goes on.
    pub fn flushed(&mut self, number: u64, bytes: usize, now: Timestamp) {
        let write_timeout = Duration::from_millis(self.settings.limits.write_timeout_ms);
        let Some(conn) = self.conns.get_mut(&number) else { return };
        conn.sent(bytes, now.plus(write_timeout));
        match &conn.phase {
            Phase::Streaming(_) if conn.unsent().len() < OUTPUT_BYTES => self.feed_stream(number, now),
            Phase::Head if !conn.input.is_empty() => self.advance(number, now),
            Phase::Head
            | Phase::Body(_)
            | Phase::Asked(_)
            | Phase::Waiting(_)
            | Phase::Inner
            | Phase::Streaming(_)
            | Phase::Closing => {}
        }
    }

    /// What is to be sent to this client.
    #[must_use]
    pub fn unsent(&self, number: u64) -> &[u8] {
        self.conns.get(&number).map_or(&[], Conn::unsent)
    }

    /// True once everything was said and no request can follow.
    #[must_use]
    pub fn is_finished(&self, number: u64) -> bool {
        let finished = |conn: &Conn| matches!(conn.phase, Phase::Closing) && conn.unsent().is_empty();
        self.conns.get(&number).is_some_and(finished)
    }

    /// True if the client cannot read any more, or its moment to read the last answer has passed.
    #[must_use]
    pub fn is_over(&self, number: u64, now: Timestamp) -> bool {
        let over =
            |conn: &Conn| matches!(conn.phase, Phase::Closing) && (conn.at_end || conn.deadline <= now);
        self.conns.get(&number).is_none_or(over)
    }

    /// Connections with something to send, or to close, since the last call.
    pub fn take_touched(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.touched)
    }

    /// The connection is gone; nothing of it is left.
    pub fn close(&mut self, number: u64, now: Timestamp) {
        self.hung_up(number, now);
        self.conns.remove(&number);
    }

    /// Goes as far as the bytes allow: many requests of a pipeline, one after the other.
    pub(super) fn advance(&mut self, number: u64, now: Timestamp) {
        loop {
            let Some(conn) = self.conns.get_mut(&number) else { return };
            let full = conn.unsent().len() >= OUTPUT_BYTES;
            let went_on = match &conn.phase {
                Phase::Head if full || conn.input.is_empty() => false,
                Phase::Head => self.advance_head(number, now),
                Phase::Body(_) => self.advance_body(number, now),
                Phase::Asked(_) | Phase::Waiting(_) | Phase::Inner | Phase::Streaming(_) | Phase::Closing => {
                    false
                }
            };
            if !went_on {
                return;
            }
        }
    }

    fn advance_head(&mut self, number: u64, now: Timestamp) -> bool {
        let header_bytes = self.settings.limits.header_bytes;
        let Some(conn) = self.conns.get_mut(&number) else { return false };
        let (head, length) = match parse_head(&conn.input, header_bytes) {
            Ok(None) => return false,
            Ok(Some(found)) => found,
            Err(refused) => {
                conn.current = Current::malformed(&mut self.entropy);
                self.refuse_and_close(number, refused, now);
                return false;
            }
        };
        conn.input.drain(..length);
        conn.keep_alive = head.keep_alive;
        let trace = submission::trace(&head, &mut self.entropy);
        conn.current = Current {
            route: "none",
            trace: Some(trace),
            with_body: head.method != "HEAD",
            is_1_1: head.is_1_1,
        };
        match self.judge(&head) {
            Ok((route, max)) => self.accept_head(number, head, route, max, now),
            Err(no_route) => {
                // A body that was announced is not read: the connection cannot go on after it.
                if head.framing == Framing::None || head.framing == Framing::Length(0) {
                    self.refuse(number, no_route, now);
                    return true;
                }
                self.refuse_and_close(number, no_route, now);
                false
            }
        }
    }

    /// Everything that can be said on the head alone: the route, and how large the body may be.
    fn judge(&self, head: &Head) -> Result<(Route, usize), routes::NoRoute> {
        check_browser(head, &self.settings.allowed_hosts)?;
        let route = routes::route(&head.method, &head.target)?;
        let max = match &route {
            Route::Submit(name) | Route::Batch(name) => {
                if !self.settings.handlers.contains_key(name) {
                    return Err(refused(Code::UnknownHandler, "there is no handler of this name").into());
                }
                if head.framing == Framing::None {
                    return Err(
                        refused(Code::LengthRequired, "a submission needs Content-Length or chunks").into()
                    );
                }
                if self.draining {
                    return Err(refused(Code::Draining, "the service is shutting down").into());
                }
                if matches!(route, Route::Batch(_)) {
                    if !head.is_1_1 {
                        let detail = "a batch's results are chunked, which needs HTTP/1.1";
                        return Err(refused(Code::HttpVersionNotSupported, detail).into());
                    }
                    self.settings.max_batch
                } else {
                    self.settings.max_body
                }
            }
            Route::Wait(_) | Route::Alive | Route::Inner(_) => self.settings.max_body,
        };
        match head.framing {
            Framing::Length(length) if length > max as u64 => {
                Err(refused(Code::PayloadTooLarge, "the body exceeds its limit").into())
            }
            Framing::None | Framing::Length(_) | Framing::Chunked => Ok((route, max)),
        }
    }

    fn accept_head(&mut self, number: u64, head: Head, route: Route, max: usize, now: Timestamp) -> bool {
        let Some(conn) = self.conns.get_mut(&number) else { return false };
        conn.current.route = route.label();
        conn.request += 1;
        conn.deadline = now.plus(Duration::from_millis(self.settings.limits.body_timeout_ms));
        self.next_due = self.next_due.min(conn.deadline);
        let counted = conn.input.len();
        self.body_bytes += counted;
        if head.expects_continue && conn.input.is_empty() {
            conn.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            self.touched.push(number);
        }
        let (body, chunked) = (Vec::new(), super::chunked::Chunked::default());
        conn.phase = Phase::Body(Box::new(Incoming { head, route, body, chunked, max, since: now, counted }));
        true
    }

    fn advance_body(&mut self, number: u64, now: Timestamp) -> bool {
        self.make_body_room(number, now);
        let Some(conn) = self.conns.get_mut(&number) else { return false };
        let Phase::Body(incoming) = &mut conn.phase else { return false };
        let whole = match incoming.head.framing {
            Framing::None => Ok(true),
            Framing::Length(length) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                let whole = conn.input.len() >= length;
                if whole {
                    let rest = conn.input.split_off(length);
                    incoming.body = std::mem::replace(&mut conn.input, rest);
                }
                Ok(whole)
            }
            Framing::Chunked => {
                let read = incoming.chunked.read(&conn.input, &mut incoming.body, incoming.max);
                read.map(|(used, whole)| {
                    conn.input.drain(..used);
                    whole
                })
            }
        };
        match whole {
            Ok(false) => false,
            Ok(true) => {
                let Phase::Body(incoming) = std::mem::replace(&mut conn.phase, Phase::Head) else {
                    return false;
                };
                self.drop_body(&incoming);
                self.handle(number, *incoming, now);
                true
            }
            Err(refused) => {
                self.refuse_and_close(number, refused, now);
                false
            }
        }
    }

    /// Over the budget of all bodies, the oldest incomplete one gives way.
    fn make_body_room(&mut self, number: u64, now: Timestamp) {
        if self.body_bytes <= BODY_BYTES {
            return;
        }
        let since = |conn: &Conn| match &conn.phase {
            Phase::Body(incoming) => Some(incoming.since),
            _ => None,
        };
        let others = self.conns.iter().filter(|(other, _)| **other != number);
        let oldest = others.filter_map(|(other, conn)| Some((since(conn)?, *other))).min();
        if let Some((_, oldest)) = oldest {
            let refused = refused(Code::Overloaded, "too many bodies are being received");
            self.refuse_and_close(oldest, refused, now);
        }
    }

    /// The inner server's answer to a request; one that nobody waits for any more is dropped.
    pub fn inner_answered(&mut self, number: u64, request: u64, answer: Answer, now: Timestamp) {
        let asked = |conn: &&mut Conn| conn.request == request && matches!(conn.phase, Phase::Inner);
        if self.conns.get_mut(&number).filter(asked).is_some() {
            self.answer(number, answer, now);
            self.advance(number, now);
        }
    }

    /// True if there is something for the inner server to do.
    #[must_use]
    pub fn has_inner(&self) -> bool {
        !self.inner.is_empty()
    }

    /// What the inner server is to do.
    pub fn take_inner(&mut self) -> Vec<InnerRequest> {
        std::mem::take(&mut self.inner)
    }

    /// Refuses the request; the connection goes on.
    pub(super) fn refuse(&mut self, number: u64, why: impl Into<routes::NoRoute>, now: Timestamp) {
        let Some(conn) = self.conns.get(&number) else { return };
        let routes::NoRoute { refused: Refused { code, detail }, allow } = why.into();
        event(log::Level::Debug, "ingress.rejected").field("code", code.as_str()).emit();
        let mut answer = Answer::refusal(code, detail, conn.current.trace.as_ref());
        if let Some(allow) = allow {
            answer = answer.with("allow", allow);
        }
        self.answer(number, answer, now);
    }

    /// Refuses the request and whatever comes after it.
    pub(super) fn refuse_and_close(&mut self, number: u64, why: impl Into<routes::NoRoute>, now: Timestamp) {
        let Some(conn) = self.conns.get_mut(&number) else { return };
        conn.keep_alive = false;
        if let Phase::Body(incoming) = std::mem::replace(&mut conn.phase, Phase::Head) {
            self.drop_body(&incoming);
        }
        self.refuse(number, why, now);
    }

    /// Writes the answer to the request under way; the next one may begin.
    pub(super) fn answer(&mut self, number: u64, mut answer: Answer, now: Timestamp) {
        let draining = self.draining;
        let second = now.0 / 1_000_000;
        if self.date.0 != second {
            self.date = (second, http_date(now));
        }
        let Some(conn) = self.conns.get_mut(&number) else { return };
        let keep = conn.keep_alive && !conn.at_end && !draining;
        if let Some(trace) = &conn.current.trace {
            let _ = write!(answer.headers, "traceparent: {trace}\r\n");
        }
        if keep && !conn.current.is_1_1 {
            answer.headers.push_str("connection: keep-alive\r\n");
        }
        write_answer(&mut conn.output, &answer, &self.date.1, keep, conn.current.with_body);
        self.counters.request(conn.current.route, answer.status);
        self.next_request(number, keep, now);
    }

    /// The request is answered: the connection waits for another one, or closes.
    pub(super) fn next_request(&mut self, number: u64, keep: bool, now: Timestamp) {
        const LINGER: Duration = Duration::from_secs(2);
        let limits = &self.settings.limits;
        let Some(conn) = self.conns.get_mut(&number) else { return };
        let (phase, deadline) = if !keep {
            (Phase::Closing, now.plus(LINGER))
        } else if conn.input.is_empty() {
            (Phase::Head, now.plus(Duration::from_millis(limits.idle_timeout_ms)))
        } else {
            (Phase::Head, now.plus(Duration::from_millis(limits.header_timeout_ms)))
        };
        conn.phase = phase;
        conn.deadline = deadline;
        conn.write_deadline = Some(now.plus(Duration::from_millis(limits.write_timeout_ms)));
        self.next_due = self.next_due.min(conn.due());
        self.touched.push(number);
    }

    /// Doorbells rang: callers get their replies, streams their lines.
    pub fn deliver(&mut self, doorbells: Doorbells, now: Timestamp) {
        for doorbell in doorbells.rang {
            self.reply(doorbell.job, &doorbell.finished, now);
        }
        if doorbells.lost {
            self.look_again();
        }
        for number in std::mem::take(&mut self.stalled) {
            self.feed_stream(number, now);
        }
    }
}
