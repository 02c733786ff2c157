//! All client connections: what is to be sent to each, when each is due, and how answers leave. Pure.

use std::sync::Arc;
use std::time::Duration;

use super::conn::{Conn, Phase};
use super::http1::Refused;
use super::questions::Asker;
use super::respond::{Answer, Manner, http_date, write_answer, write_head};
use super::routes::NoRoute;
use crate::clock::Timestamp;
use crate::config::WebLimits;
use crate::job::{IdMap, Trace};
use crate::observe::event;
use crate::observe::metrics::Counters;

/// After its last answer a client has this long to read it.
const LINGER: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Clients {
    conns: IdMap<u64, Conn>,
    limits: WebLimits,
    pub(super) counters: Arc<Counters>,
    /// Connections with something to send or to close.
    touched: Vec<u64>,
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

    pub(super) fn open(&mut self, number: u64, now: Timestamp) {
        self.conns.insert(number, Conn::new(now.plus(self.idle_timeout())));
        self.due(now.plus(self.idle_timeout()));
    }

    pub(super) fn remove(&mut self, number: u64) {
        self.conns.remove(&number);
    }

    pub(super) fn get(&self, number: u64) -> Option<&Conn> {
        self.conns.get(&number)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Conn> {
        self.conns.get_mut(&number)
    }

    /// The connection whose request asked, while that is the one under way.
    pub(super) fn of(&mut self, asker: Asker) -> Option<&mut Conn> {
        self.conns.get_mut(&asker.conn).filter(|conn| conn.request == asker.request)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Conn)> {
        self.conns.iter().map(|(number, conn)| (*number, conn))
    }

    fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.limits.idle_timeout_ms)
    }

    pub(super) fn header_timeout(&self) -> Duration {
        Duration::from_millis(self.limits.header_timeout_ms)
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
        self.iter().filter(|(_, conn)| conn.due() <= now).map(|(number, _)| number).collect()
    }

    /// After [`Clients::take_due`] and what came of it.
    pub(super) fn find_next_due(&mut self, now: Timestamp) {
        if now >= self.next_due {
            self.next_due = self.conns.values().map(Conn::due).min().unwrap_or(Timestamp(u64::MAX));
        }
    }

    pub(super) fn touch(&mut self, number: u64) {
        self.touched.push(number);
    }

    /// Connections with something to send, or to close, since the last call.
    pub(super) fn take_touched(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.touched)
    }

    /// The client took so many bytes.
    pub(super) fn sent(&mut self, number: u64, bytes: usize, now: Timestamp) {
        let until = now.plus(Duration::from_millis(self.limits.write_timeout_ms));
        if let Some(conn) = self.conns.get_mut(&number) {
            conn.sent(bytes, until);
        }
    }

    pub(super) fn trace(&self, number: u64) -> Option<Trace> {
        self.conns.get(&number).map(|conn| conn.current.trace)
    }

    fn date(&mut self, now: Timestamp) {
        let second = now.0 / 1_000_000;
        if self.date.0 != second {
            self.date = (second, http_date(now));
        }
    }

    /// Writes the answer to the request under way; the next one may begin.
    pub(super) fn answer(&mut self, number: u64, mut answer: Answer, now: Timestamp) {
        self.date(now);
        let Some(conn) = self.conns.get_mut(&number) else { return };
        let keeps_alive = conn.keep_alive && !conn.at_end && !self.draining;
        answer = answer.with("traceparent", conn.current.trace);
        if keeps_alive && !conn.current.is_1_1 {
            answer.headers.push_str("connection: keep-alive\r\n");
        }
        let manner = Manner { date: &self.date.1, keeps_alive, has_body: conn.current.has_body };
        write_answer(&mut conn.output, &answer, &manner);
        self.counters.request(conn.current.route, answer.status);
        self.next_request(number, keeps_alive, now);
    }

    /// Begins an answer whose body comes in chunks.
    pub(super) fn begin_chunks(&mut self, number: u64, answer: Answer, now: Timestamp) {
        self.date(now);
        let draining = self.draining;
        let Some(conn) = self.conns.get_mut(&number) else { return };
        conn.keep_alive &= !draining;
        let answer = answer.with("traceparent", conn.current.trace);
        let manner = Manner { date: &self.date.1, keeps_alive: conn.keep_alive, has_body: true };
        write_head(&mut conn.output, &answer, &manner, None);
        self.counters.request(conn.current.route, answer.status);
    }

    /// The client must take what is waiting for it within its time.
    pub(super) fn expect_progress(&mut self, number: u64, now: Timestamp) {
        let until = now.plus(Duration::from_millis(self.limits.write_timeout_ms));
        let Some(conn) = self.conns.get_mut(&number) else { return };
        if !conn.unsent().is_empty() && conn.write_deadline.is_none() {
            conn.write_deadline = Some(until);
            self.due(until);
        }
        self.touched.push(number);
    }

    /// The request is answered: the connection waits for another one, or closes.
    pub(super) fn next_request(&mut self, number: u64, keeps_alive: bool, now: Timestamp) {
        let (idle, header) = (self.idle_timeout(), self.header_timeout());
        let Some(conn) = self.conns.get_mut(&number) else { return };
        let (phase, time) = match (keeps_alive, conn.input.is_empty()) {
            (false, _) => (Phase::Closing, LINGER),
            (true, true) => (Phase::Head, idle),
            (true, false) => (Phase::Head, header),
        };
        conn.phase = phase;
        conn.deadline = now.plus(time);
        conn.write_deadline = Some(now.plus(Duration::from_millis(self.limits.write_timeout_ms)));
        let due = conn.due();
        self.due(due);
        self.touched.push(number);
    }

    /// Refuses the request; the connection goes on.
    pub(super) fn refuse(&mut self, number: u64, why: impl Into<NoRoute>, now: Timestamp) {
        let NoRoute { refused: Refused { code, detail }, allow } = why.into();
        event(log::Level::Debug, "ingress.rejected").field("code", code.as_str()).emit();
        let mut answer = Answer::refusal(code, detail, self.trace(number).as_ref());
        if let Some(allow) = allow {
            answer = answer.with("allow", allow);
        }
        self.answer(number, answer, now);
    }
}
