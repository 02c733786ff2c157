//! `/v1/batch`: the lines of one body, so many of them in flight, their results streamed as they come.

use std::sync::Arc;
use std::time::Duration;

use super::clients::{Batch, OUTPUT_BYTES, Phase};
use super::gate::Gate;
use super::http1::{Head, refused};
use super::questions::{Asker, Question, Ticket};
use super::respond::Answer;
use super::routes::parameter;
use super::waiters::TOO_MANY_WAITERS;
use crate::config::SinkMode;
use crate::entropy::Entropy;
use crate::job::Trace;
use crate::limits::{BATCH_HEAD_WAITS, BATCH_LINES, BODY_BYTES};
use crate::ndjson::Pump;
use crate::ports::{NewJob, Reached, Submitted};
use crate::problem::{Code, JobError};

impl Gate {
    /// A batch begins: its results go out as they come.
    pub(super) fn begin_batch(&mut self, number: usize, head: &Head, name: &str, body: Arc<[u8]>) {
        let Some(handler) = self.settings.handlers.get(name) else { return };
        let asked = parameter(head.query(), "sink_mode");
        let Some(mode) = asked.map_or(Some(self.settings.sink_mode), SinkMode::parse) else {
            let refused = refused(Code::BadRequest, "sink_mode is source_seq or completion");
            return self.clients.refuse(number, refused);
        };
        let Some(conn) = self.clients.conns.get(&number) else { return };
        let (most, now) = (self.settings.web.max_inflight, self.clients.now);
        let (owner, trace) = (conn.current.caller.viewer.name.clone(), conn.current.trace);
        let tracestate = conn.current.tracestate.clone();
        if !self.waiters.admits(&conn.current.caller, most, now) {
            return self.clients.refuse(number, TOO_MANY_WAITERS);
        }
        let (mut held, mut own) = (0, 0);
        for conn in self.clients.conns.values() {
            if let Phase::Streaming(batch) = &conn.phase {
                held += batch.body.len();
                own += if batch.owner == owner && !owner.is_empty() { batch.body.len() } else { 0 };
            }
        }
        // A name has a quarter.
        let is_over = |held: usize, most: usize| held > 0 && held + body.len() > most;
        if is_over(held, BODY_BYTES) || is_over(own, BODY_BYTES / 4) {
            let refused = refused(Code::Overloaded, "too many batches are running");
            return self.clients.refuse(number, refused);
        }
        let mut pump = Pump::new(handler.clone(), mode, BATCH_LINES, trace, self.settings.instance);
        pump.owner.clone_from(&owner);
        pump.set_traces(tracestate, self.settings.exports_traces);
        self.waiters.count_owner(&owner, 1);
        let head_at = now.plus(BATCH_HEAD_WAITS);
        let batch = Batch { owner, head_at: Some(head_at), body, at: 0, pump };
        let Some(conn) = self.clients.conns.get_mut(&number) else { return };
        conn.phase = Phase::Streaming(Box::new(batch));
        let has_left = conn.has_left;
        self.clients.set_deadline(number, head_at);
        self.feed_batch(number);
        if has_left {
            self.count_out(number);
        }
    }

    /// Sends the results that are next, and submits lines while there is room for them in the window, and for their
    /// answers in the output.
    pub(super) fn feed_batch(&mut self, number: usize) {
        loop {
            let (is_draining, now) = (self.clients.draining, self.clients.now);
            let Some(conn) = self.clients.conns.get_mut(&number) else { return };
            let unsent = conn.output.len();
            let asker = conn.asker;
            let Phase::Streaming(batch) = &mut conn.phase else { return };
            let mut results = Vec::new();
            while unsent + results.len() < OUTPUT_BYTES
                && let Some(result) = batch.pump.next_result()
            {
                results.extend_from_slice(&result);
            }
            let is_done = batch.is_done();
            let says_head = batch.head_at.is_some_and(|at| is_done || !results.is_empty() || at <= now);
            if says_head {
                batch.head_at = None;
                self.clients.write(number, &Answer::new(200, "application/x-ndjson", []), None);
            }
            let Some(conn) = self.clients.conns.get_mut(&number) else { return };
            conn.write_part(&results);
            if is_done {
                conn.end_parts();
            }
            let Phase::Streaming(batch) = &mut conn.phase else { return };
            if is_done {
                self.waiters.count_owner(&batch.owner, -1);
                return self.clients.next_request(number);
            }
            let has_room = unsent + results.len() < OUTPUT_BYTES;
            let mut jobs = Vec::new();
            if has_room {
                jobs = batch.jobs(self.settings.web.max_body_bytes, &mut self.entropy);
            }
            if is_draining && !jobs.is_empty() {
                batch.pump.refuse_asked(&JobError::new(Code::Draining, "the service is shutting down"));
                jobs.clear();
            }
            let waits = batch.pump.waits();
            self.clients.expect_progress(number);
            if !jobs.is_empty() {
                jobs.iter().for_each(|job| self.waiters.enter(number, job.id, true));
                self.questions.push(Question::Submit(Ticket { asker, single: None }, jobs));
            }
            if waits || !has_room {
                return;
            }
            // Every line so far was refused at once: their answers are ready now.
        }
    }

    /// What the broker said of the lines that it was asked to take.
    pub(super) fn lines_submitted(&mut self, asker: Asker, answers: Reached<Vec<Submitted>>) {
        const AWAY: Duration = Duration::from_millis(200);
        const FULL: Duration = Duration::from_millis(5);
        let number = asker.conn;
        let Some(conn) = self.clients.of(asker) else { return };
        let Phase::Streaming(batch) = &mut conn.phase else { return };
        let gone = batch.pump.answered(&answers);
        let is_stalled = batch.pump.is_stalled();
        for job in gone {
            self.waiters.withdraw(number, job, None);
        }
        if is_stalled {
            self.clients
                .set_deadline(number, self.clients.now.plus(if answers.is_err() { AWAY } else { FULL }));
        } else {
            self.feed_batch(number);
        }
    }

    /// Nobody takes the results any more.
    pub(super) fn batch_hung_up(&mut self, number: usize, batch: &Batch, trace: Trace) {
        self.waiters.count_owner(&batch.owner, -1);
        for job in batch.pump.jobs_in_flight() {
            if self.waiters.withdraw(number, job, Some((trace, batch.pump.handler().clone()))) {
                self.abandon(job);
            }
        }
    }
}

impl Batch {
    /// The jobs to submit next: none while the window is full, the broker is asked, or at the end.
    fn jobs(&mut self, max_payload: usize, entropy: &mut Entropy) -> Vec<NewJob> {
        let (body, at) = (&self.body, &mut self.at);
        self.pump.jobs(BATCH_LINES, entropy, || {
            let rest = body.get(*at..).filter(|rest| !rest.is_empty())?;
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            *at += end + 1;
            Some(if end > max_payload { Err("web.max_body_bytes") } else { Ok(&rest[..end]) })
        })
    }

    fn is_done(&self) -> bool {
        self.at >= self.body.len() && self.pump.is_idle()
    }
}
