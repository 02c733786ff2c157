//! The gate: connections, requests, waiters and batches, as one value. Bytes, ends of jobs, answers and time come in;
//! bytes to send and questions come out. All that happens in one turn happens at one time.
//!
//! `requests` reads and judges them, `waiting` has those that wait for a job, `streaming` the batches, `listening` who looks on. Invariants: a
//! caller is in the table of waiters iff its connection's phase says that it waits; exactly one of reply, deadline,
//! hang-up and drain takes it out; an answer goes to the request that asked, or nowhere.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::clients::{Clients, Conn, Current, DRAINING, Incoming, NEVER, Phase};
use super::guard::Guard;
use super::http1::refused;
use super::questions::{Answered, Question, Ticket};
use super::routes::LABELS;
use super::waiters::{Stage, Waiters};
use crate::clock::Timestamp;
use crate::config::tokens::Token;
use crate::config::{SinkMode, Web};
use crate::entropy::Entropy;
use crate::handler::HandlerSpec;
use crate::job::InstanceId;
use crate::limits::TARGET_BYTES;
use crate::negative_controls::{Control, is_off};
use crate::observe::metrics::Counters;
use crate::ports::Ends;
use crate::problem::Code;

/// What the gate follows.
#[derive(Clone, Debug)]
pub struct Settings {
    pub web: Web,
    /// `reply.timeout_ms`
    pub reply_timeout: Duration,
    /// `ordering.sink_mode`
    pub sink_mode: SinkMode,
    /// By name.
    pub handlers: HashMap<String, HandlerSpec>,
    /// Who is told of ends.
    pub instance: InstanceId,
    /// Spans of jobs are exported.
    pub exports_traces: bool,
    /// What becomes of jobs that have not ended when the service stops.
    pub jobs_survive_processes: bool,
}

/// See the module.
pub struct Gate {
    pub(super) settings: Settings,
    pub(super) entropy: Entropy,
    pub(super) guard: Guard,
    pub(super) clients: Clients,
    pub(super) waiters: Waiters,
    pub(super) questions: Vec<Question>,
    /// Bytes of bodies that are being read, over all connections.
    pub(super) body_bytes: usize,
}

impl Gate {
    /// Without connections.
    pub fn new(
        settings: Settings,
        tokens: Vec<Token>,
        counters: Arc<Counters>,
        mut entropy: Entropy,
    ) -> Gate {
        // A series that appears with its first request has no rate before its second.
        LABELS.split(' ').for_each(|route| counters.requests.add((route, 200), 0));
        let cancelling = settings.handlers.values().filter(|spec| spec.options.cancel_on_disconnect);
        let cancelling = cancelling.map(|spec| spec.name.clone()).collect();
        Gate {
            clients: Clients::new(settings.web.limits, counters.clone()),
            waiters: Waiters { cancelling, counters, ..Waiters::default() },
            guard: Guard::new(&settings.web, tokens, &mut entropy),
            settings,
            entropy,
            questions: Vec::new(),
            body_bytes: 0,
        }
    }

    /// It is that time, for all that happens until the next call.
    pub fn begin_turn(&mut self, now: Timestamp) {
        self.clients.now = now;
    }

    /// A client of this address has connected.
    pub fn open(&mut self, number: usize, peer: IpAddr) {
        self.clients.open(number, peer);
    }

    /// These tokens hold from now on, for requests to come.
    pub fn set_tokens(&mut self, tokens: Vec<Token>) {
        log::info!("tokens are read again: {}", self.guard.replace(tokens));
        // Who listens was let in by a token that may be gone.
        self.end_listening();
    }

    /// How many bytes may be read from this client now.
    pub fn readable_bytes(&self, number: usize) -> usize {
        let head = self.clients.limits.header_bytes + TARGET_BYTES + 128;
        self.clients.conns.get(&number).map_or(0, |conn| conn.readable_bytes(head))
    }

    /// Bytes have arrived.
    pub fn received(&mut self, number: usize, bytes: &[u8]) {
        let Some(conn) = self.clients.conns.get_mut(&number) else { return };
        let is_first = matches!(conn.phase, Phase::Head) && conn.input.is_empty();
        if matches!(conn.phase, Phase::Closing) {
            return;
        }
        conn.input.extend_from_slice(bytes);
        if is_first {
            conn.skip_empty_line();
            if conn.input.is_empty() {
                return;
            }
            // The head's deadline counts from its first byte and is not moved by later ones.
            let deadline = self.clients.after(self.clients.limits.header_timeout_ms);
            self.clients.set_deadline(number, deadline);
        }
        self.advance(number);
    }

    /// The client has closed its side, behind bytes that may still be there to read. Most likely it is gone: it counts as a
    /// waiter no longer, and takes its job along where that is wanted. But it may read on, and is sent what it asked for.
    pub fn left(&mut self, number: usize) {
        let is_seen = !is_off(Control::Waiters);
        if let Some(conn) = self.clients.conns.get_mut(&number).filter(|conn| is_seen && !conn.has_left) {
            conn.has_left = true;
            self.count_out(number);
        }
    }

    /// It has, and all its bytes are here: whole requests among them are answered.
    pub fn ended(&mut self, number: usize) {
        self.left(number);
        let Some(conn) = self.clients.conns.get_mut(&number).filter(|conn| conn.has_left) else { return };
        conn.at_end = true;
        self.advance(number);
    }

    /// The client is gone: nobody reads an answer any more.
    pub fn hung_up(&mut self, number: usize) {
        self.clients.touched.push(number);
        let Some(conn) = self.clients.conns.get_mut(&number).filter(|_| !is_off(Control::Waiters)) else {
            return;
        };
        let trace = conn.current.trace;
        (conn.has_left, conn.at_end) = (true, true);
        conn.deadline = self.clients.now;
        conn.clear_output();
        match conn.close() {
            Phase::Waiting(waiting) => self.waiter_hung_up(number, &waiting, trace),
            Phase::Streaming(batch) => self.batch_hung_up(number, &batch, trace),
            Phase::Body(incoming) => self.drop_body(&incoming),
            Phase::Listening(_) => self.listener_left(),
            Phase::Head | Phase::Inner | Phase::Closing => {}
        }
    }

    pub(super) fn drop_body(&mut self, incoming: &Incoming) {
        self.body_bytes = self.body_bytes.saturating_sub(incoming.counted);
    }

    /// The client took so many bytes: what waited for room in its output goes on.
    pub fn flushed(&mut self, number: usize, bytes: usize) {
        let write_deadline = self.clients.after(self.clients.limits.write_timeout_ms);
        let now = self.clients.now;
        let Some(conn) = self.clients.conns.get_mut(&number) else { return };
        conn.sent(bytes, now, write_deadline);
        if conn.output.is_empty() {
            self.clients.begin_rest(number);
        }
        self.clients.count_output(number);
        self.advance(number);
    }

    /// This client has been told something: answers that nobody takes must not fill the memory.
    pub fn keep_budget(&mut self, number: usize) {
        self.clients.count_output(number);
        while let Some(slowest) = self.clients.over_budget() {
            log::debug!("too many answers are not read: the slowest client is closed");
            self.hung_up(slowest);
            self.clients.count_output(slowest);
        }
    }

    /// What is to be sent to this client next; empty iff nothing is. More may follow.
    pub fn unsent(&self, number: usize) -> &[u8] {
        self.clients.conns.get(&number).map_or(&[], |conn| conn.output.next())
    }

    /// True once everything was said and no request can follow.
    pub fn is_finished(&self, number: usize) -> bool {
        let conn = self.clients.conns.get(&number);
        conn.is_some_and(|conn| matches!(conn.phase, Phase::Closing) && conn.output.is_empty())
    }

    /// True if the client cannot read any more, or its moment to read the last answer has passed.
    pub fn is_over(&self, number: usize) -> bool {
        self.clients.conns.get(&number).is_none_or(|conn| conn.is_over(self.clients.now))
    }

    /// The connection is gone; nothing of it is left.
    pub fn close(&mut self, number: usize) {
        self.hung_up(number);
        self.clients.remove(number);
    }

    /// What is asked since the last call.
    pub fn take_questions(&mut self) -> Vec<Question> {
        std::mem::take(&mut self.questions)
    }

    /// A question was answered. An answer that nobody waits for any more is dropped.
    pub fn answered(&mut self, answered: Answered) {
        match answered {
            Answered::Submitted(Ticket { asker, single }, answers) => match single {
                Some(single) => self.submitted(asker, &single, answers),
                None => self.lines_submitted(asker, answers),
            },
            Answered::Record(asker, record) => self.record_is_there(asker, record),
            Answered::Ended(ended, unsure) => {
                self.deliver(Ends { ended, lost: false });
                self.waiters.cannot_tell(unsure, self.clients.now);
            }
            Answered::News(news) => self.tell(&news),
            Answered::Page(asker, answer) => {
                if self.clients.of(asker).is_some_and(|conn| matches!(conn.phase, Phase::Inner)) {
                    self.clients.answer(asker.conn, &answer);
                }
            }
        }
    }

    /// Jobs have ended: callers get their replies, batches their lines.
    pub fn deliver(&mut self, ends: Ends) {
        for ended in ends.ended {
            self.reply(ended.job, &ended.finished);
        }
        if ends.lost {
            self.look_again();
        }
    }

    /// When [`Gate::tick`] has something to do.
    pub fn next_due(&self) -> Timestamp {
        self.waiters.look_at.map_or(self.clients.next_due, |at| at.min(self.clients.next_due))
    }

    /// Who seems to take nothing is to be offered what waits once more: a socket says that it has room only when it has much.
    pub fn touch_slow(&mut self) {
        let is_late = |conn: &Conn| conn.write_deadline.is_some_and(|deadline| deadline <= self.clients.now);
        if self.clients.now >= self.clients.next_due {
            let late = self.clients.conns.iter().filter(|(_, conn)| is_late(conn));
            self.clients.touched.extend(late.map(|(number, _)| *number));
        }
    }

    /// Ends what is past its deadline, and goes on with what had to wait.
    pub fn tick(&mut self) {
        let now = self.clients.now;
        if self.waiters.look_at.is_some_and(|at| now >= at) {
            self.look_for_unsure();
        }
        // They are looked through only when one of them is due.
        if now >= self.clients.next_due {
            let due = self.clients.conns.iter().filter(|(_, conn)| conn.due() <= now);
            for number in due.map(|(number, _)| *number).collect::<Vec<_>>() {
                self.on_deadline(number);
            }
            self.clients.next_due = self.clients.conns.values().map(Conn::due).min().unwrap_or(NEVER);
        }
    }

    fn on_deadline(&mut self, number: usize) {
        let Some(conn) = self.clients.conns.get_mut(&number) else { return };
        if conn.write_deadline.is_some_and(|deadline| deadline <= self.clients.now) {
            // The client has stopped reading: nothing more can be said to it.
            return self.hung_up(number);
        }
        match &conn.phase {
            // The job may have ended unheard: its record is the truth.
            Phase::Waiting(_) => self.ask_for_record(number, Stage::Looking),
            Phase::Head if conn.input.is_empty() => self.hung_up(number),
            Phase::Head | Phase::Body(_) => {
                if matches!(conn.phase, Phase::Head) {
                    // Nothing is known of this request; what `current` says is about the one before it.
                    conn.current = Current::malformed(&mut self.entropy, &conn.input);
                }
                let refused = refused(Code::RequestTimeout, "the request did not arrive in time");
                self.refuse_and_close(number, refused);
            }
            Phase::Closing | Phase::Listening(_) => self.hung_up(number),
            Phase::Inner => {
                let refused = refused(Code::BackendUnavailable, "the answer could not be found out in time");
                self.clients.refuse(number, refused);
            }
            Phase::Streaming(batch) => {
                // Its head may still have to wait.
                conn.deadline = batch.head_at.filter(|at| *at > self.clients.now).unwrap_or(NEVER);
                self.feed_batch(number);
            }
        }
    }

    /// Others accept who comes: those who are here are served once more.
    pub fn retire(&mut self) {
        self.clients.are_last = true;
        self.end_listening();
    }

    /// True once no client is connected.
    pub fn is_alone(&self) -> bool {
        self.clients.conns.is_empty()
    }

    /// The service stops: new jobs are refused, those who wait go on waiting.
    pub fn drain(&mut self) {
        (self.clients.draining, self.clients.are_last) = (true, true);
        self.clients.counters.draining.store(true, std::sync::atomic::Ordering::Relaxed);
        // Half a body can only be refused: nobody waits for the rest of it.
        for number in self.clients.in_phase(|phase| matches!(phase, Phase::Body(_))) {
            self.refuse_and_close(number, DRAINING);
        }
        self.end_listening();
    }

    /// True while somebody waits for a job, or for the answer to a submission.
    pub fn callers_wait(&self) -> bool {
        self.clients.conns.values().any(|conn| match &conn.phase {
            Phase::Waiting(waiting) => waiting.is_counted || !conn.has_left,
            Phase::Streaming(_) => true,
            Phase::Head | Phase::Body(_) | Phase::Inner | Phase::Listening(_) | Phase::Closing => false,
        })
    }

    /// True once nobody waits and everything said was sent.
    pub fn is_quiet(&self) -> bool {
        self.clients.conns.values().all(|conn| match &conn.phase {
            Phase::Head | Phase::Closing => conn.output.is_empty(),
            Phase::Waiting(waiting) => conn.has_left && !waiting.is_counted,
            Phase::Body(_) | Phase::Inner | Phase::Streaming(_) | Phase::Listening(_) => false,
        })
    }
}
