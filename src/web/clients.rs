//! All client connections: what is to be sent to each, when each is due, and how answers leave. Pure.

use std::sync::Arc;
use std::time::Duration;

use super::conn::{Conn, Phase};
use super::http1::Refused;
use super::questions::Asker;
use super::respond::{Answer, http_date, write_head};
use crate::clock::Timestamp;
use crate::config::WebLimits;
use crate::job::{IdMap, Trace};
use crate::observe::event;
use crate::observe::metrics::Counters;

/// After its last answer a client has this long to read it.
const LINGER_MS: u64 = 2_000;

/// See the module.
pub(super) struct Clients {
    pub(super) conns: IdMap<u64, Conn>,
    limits: WebLimits,
    pub(super) counters: Arc<Counters>,
    /// Connections with something to send or to close.
    pub(super) touched: Vec<u64>,
    pub(super) next_due: Timestamp,
    date: (u64, String),
    /// The service stops: each answer is its connection's last.
    pub(super) draining: bool,
}

impl Clients {
    pub(super) fn new(limits: WebLimits, counters: Arc<Counters>) -> Clients {
        Clients {
            conns: IdMap::default(),
            limits,
            counters,
            touched: Vec::new(),
            next_due: Timestamp(u64::MAX),
            date: (u64::MAX, String::new()),
            draining: false,
        }
    }

    /// The connection whose request asked, while that is the one under way.
    pub(super) fn of(&mut self, asker: Asker) -> Option<&mut Conn> {
        self.conns.get_mut(&asker.conn).filter(|conn| conn.asker == asker)
    }

    /// Something is due then.
    pub(super) fn due(&mut self, at: Timestamp) {
        self.next_due = self.next_due.min(at);
    }

    /// The phase of this connection may last until then.
    pub(super) fn set_deadline(&mut self, number: u64, deadline: Timestamp) {
        if let Some(conn) = self.conns.get_mut(&number) {
            conn.deadline = deadline;
        }
        self.due(deadline);
    }

    /// Those whose deadlines have passed. They are looked through only when one of them is due.
    pub(super) fn take_due(&mut self, now: Timestamp) -> Vec<u64> {
        if now < self.next_due {
            return Vec::new();
        }
        self.conns.iter().filter(|(_, conn)| conn.due() <= now).map(|(number, _)| *number).collect()
    }

    /// After [`Clients::take_due`] and what came of it.
    pub(super) fn find_next_due(&mut self, now: Timestamp) {
        if now >= self.next_due {
            self.next_due = self.conns.values().map(Conn::due).min().unwrap_or(Timestamp(u64::MAX));
        }
    }

    pub(super) fn trace(&self, number: u64) -> Option<Trace> {
        self.conns.get(&number).map(|conn| conn.current.trace)
    }

    /// Writes the answer to the request under way; without a `length` its head, and its body comes in chunks.
    pub(super) fn write(&mut self, number: u64, mut answer: Answer, length: Option<usize>, now: Timestamp) {
        let second = now.0 / 1_000_000;
        if self.date.0 != second {
            self.date = (second, http_date(now));
        }
        let Some(conn) = self.conns.get_mut(&number) else { return };
        conn.keep_alive &= !conn.at_end && !self.draining;
        answer = answer.with("traceparent", conn.current.trace);
        if conn.keep_alive && !conn.current.is_1_1 {
            answer.headers.push_str("connection: keep-alive\r\n");
        }
        write_head(&mut conn.output, &answer, length, conn.keep_alive, &self.date.1);
        if length.is_some() && conn.current.has_body {
            conn.output.extend_from_slice(&answer.body);
        }
        self.counters.request(conn.current.route, answer.status);
    }

    /// Answers the request under way; the next one may begin.
    pub(super) fn answer(&mut self, number: u64, answer: Answer, now: Timestamp) {
        let length = answer.body.len();
        self.write(number, answer, Some(length), now);
        self.next_request(number, now);
    }

    /// The client must take what is waiting for it within its time.
    pub(super) fn expect_progress(&mut self, number: u64, now: Timestamp) {
        let until = after(now, self.limits.write_timeout_ms);
        let Some(conn) = self.conns.get_mut(&number) else { return };
        if !conn.unsent().is_empty() && conn.write_deadline.is_none() {
            conn.write_deadline = Some(until);
            self.due(until);
        }
        self.touched.push(number);
    }

    /// The request is answered: the connection waits for another one, or closes.
    pub(super) fn next_request(&mut self, number: u64, now: Timestamp) {
        let Some(conn) = self.conns.get_mut(&number) else { return };
        let (phase, millis) = match (conn.keep_alive, conn.input.is_empty()) {
            (false, _) => (Phase::Closing, LINGER_MS),
            (true, true) => (Phase::Head, self.limits.idle_timeout_ms),
            (true, false) => (Phase::Head, self.limits.header_timeout_ms),
        };
        conn.phase = phase;
        conn.deadline = after(now, millis);
        conn.write_deadline = Some(after(now, self.limits.write_timeout_ms));
        let due = conn.due();
        self.due(due);
        self.touched.push(number);
    }

    /// Refuses the request; the connection goes on.
    pub(super) fn refuse(&mut self, number: u64, why: Refused, now: Timestamp) {
        let Refused { code, detail, allow } = why;
        event(log::Level::Debug, "ingress.rejected").field("code", code.as_str()).emit();
        let mut answer = Answer::refusal(code, detail, self.trace(number).as_ref());
        if let Some(allow) = allow {
            answer = answer.with("allow", allow);
        }
        self.answer(number, answer, now);
    }
}

pub(super) fn after(now: Timestamp, millis: u64) -> Timestamp {
    now.plus(Duration::from_millis(millis))
}
