//! `/v1/batch`: the lines of one body, so many of them in flight, their results streamed as they come.

use std::sync::Arc;
use std::time::Duration;

use super::batch::Batch;
use super::conn::{OUTPUT_BYTES, Phase};
use super::gate::Gate;
use super::http1::{Head, refused};
use super::questions::{Asker, Question};
use super::respond::{Answer, Body, write_chunk};
use super::routes::parameter;
use crate::clock::Timestamp;
use crate::config::SinkMode;
use crate::job::{JobId, Payload};
use crate::limits::{BATCH_LINES, BODY_BYTES};
use crate::ndjson::Pump;
use crate::ports::{BackendError, NewJob, Submitted};
use crate::problem::{Code, JobError};

impl Gate {
    /// A batch begins: its head goes out at once, its results as they come.
    pub(super) fn begin_batch(
        &mut self,
        number: u64,
        head: &Head,
        name: &str,
        body: Arc<[u8]>,
        now: Timestamp,
    ) {
        let Some(handler) = self.settings.handlers.get(name) else { return };
        let mode = match parameter(head.query(), "sink_mode") {
            None => Ok(self.settings.sink_mode),
            Some("source_seq") => Ok(SinkMode::SourceSeq),
            Some("completion") => Ok(SinkMode::Completion),
            Some(_) => Err((Code::BadRequest, "sink_mode is source_seq or completion")),
        };
        let running = self.clients.iter().map(|(_, conn)| match &conn.phase {
            Phase::Streaming(batch) => batch.body.len(),
            _ => 0,
        });
        let held: usize = running.sum();
        let refusal = match mode {
            Err(refusal) => Some(refusal),
            Ok(_) if self.waiters.is_full() => {
                Some((Code::TooManyWaiters, "web.max_inflight callers are waiting"))
            }
            Ok(_) if held > 0 && held + body.len() > BODY_BYTES => {
                Some((Code::Overloaded, "too many batches are running"))
            }
            Ok(_) => None,
        };
        if let Some((code, detail)) = refusal {
            return self.clients.refuse(number, refused(code, detail), now);
        }
        let pump =
            Pump::new(handler.options.ordering.clone(), mode.unwrap_or(SinkMode::SourceSeq), BATCH_LINES);
        let batch = Batch { handler: handler.name.clone(), body, at: 0, pump };
        let headers = "content-type: application/x-ndjson\r\n".into();
        let answer = Answer { status: 200, headers, body: Body::default() };
        self.clients.begin_chunks(number, answer, now);
        let Some(conn) = self.clients.get_mut(number) else { return };
        conn.deadline = Timestamp(u64::MAX);
        conn.phase = Phase::Streaming(Box::new(batch));
        // Whoever reads this request goes on with the next one, if this is done already.
        self.feed(number, now);
    }

    /// Sends the results that are next, and submits lines while there is room; goes on with the connection's next
    /// request after the last one.
    pub(super) fn feed_batch(&mut self, number: u64, now: Timestamp) {
        if self.feed(number, now) {
            self.advance(number, now);
        }
    }

    /// The same for one batch; true if it is done. There must be room for lines in the window, and for their answers in
    /// the output.
    fn feed(&mut self, number: u64, now: Timestamp) -> bool {
        let draining = self.clients.draining;
        loop {
            let Some(conn) = self.clients.get_mut(number) else { return false };
            let (trace, request, unsent) = (conn.current.trace, conn.request, conn.unsent().len());
            let Phase::Streaming(batch) = &mut conn.phase else { return false };
            let mut results = Vec::new();
            while unsent + results.len() < OUTPUT_BYTES
                && let Some(result) = batch.pump.next_result()
            {
                results.extend_from_slice(&result);
            }
            let is_done = batch.is_done();
            write_chunk(&mut conn.output, &results);
            if is_done {
                conn.output.extend_from_slice(b"0\r\n\r\n");
                let keeps_alive = conn.keep_alive && !conn.at_end;
                self.clients.next_request(number, keeps_alive, now);
                return true;
            }
            self.clients.expect_progress(number, now);
            if unsent + results.len() >= OUTPUT_BYTES {
                return false;
            }
            let Some(conn) = self.clients.get_mut(number) else { return false };
            let Phase::Streaming(batch) = &mut conn.phase else { return false };
            let (mut lines, mut jobs) = (Vec::new(), Vec::new());
            while !batch.pump.is_asking()
                && let Some(mut line) = batch.next_line(self.settings.max_body)
            {
                if draining {
                    let error = JobError::new(Code::Draining, "the service is shutting down");
                    batch.pump.refuse(line.number, &error);
                    continue;
                }
                let id = *line.job.get_or_insert_with(|| JobId(self.entropy.bytes()));
                jobs.push(NewJob {
                    id,
                    owner: self.nobody.clone(),
                    handler: batch.handler.clone(),
                    ordering_key: line.ordering_key.clone(),
                    payload: Payload::json(line.bytes.clone()),
                    trace,
                    delay: Duration::ZERO,
                    timeout: None,
                    idempotency: None,
                    awaited: true,
                    one_line: true,
                    instance: self.settings.instance,
                });
                lines.push(line);
            }
            if !lines.is_empty() {
                batch.pump.ask(lines);
                jobs.iter().for_each(|job| self.waiters.enter(number, job.id));
                self.questions.push(Question::Lines(Asker { conn: number, request }, jobs));
                return false;
            }
            if batch.pump.has_jobs() || batch.pump.is_asking() {
                return false;
            }
            // Every line so far was refused at once: their answers are ready now.
        }
    }

    /// Batches that waited for room go on.
    pub(super) fn resume_batches(&mut self, now: Timestamp) {
        if now < self.batches.resume_at {
            return;
        }
        self.batches.resume_at = Timestamp(u64::MAX);
        for number in std::mem::take(&mut self.batches.stalled) {
            self.feed_batch(number, now);
        }
    }

    /// What the broker said of the lines that it was asked to take.
    pub(super) fn lines_submitted(
        &mut self,
        asker: Asker,
        answers: Result<Vec<Submitted>, BackendError>,
        now: Timestamp,
    ) {
        const AWAY: Duration = Duration::from_millis(200);
        const FULL: Duration = Duration::from_millis(5);
        let number = asker.conn;
        let Some(conn) = self.clients.of(asker) else { return };
        let Phase::Streaming(batch) = &mut conn.phase else { return };
        let taken = batch.pump.answered(&answers);
        for job in taken.gone {
            self.waiters.withdraw(number, job);
        }
        if taken.is_full {
            self.batches.stall(number, now.plus(if answers.is_err() { AWAY } else { FULL }));
        } else {
            self.feed_batch(number, now);
        }
    }

    /// Nobody takes the results any more.
    pub(super) fn batch_hung_up(&mut self, number: u64, batch: &Batch) {
        let Some(trace) = self.clients.trace(number) else { return };
        for job in batch.pump.jobs() {
            if self.waiters.leave(number, job, trace) {
                self.abandon(job);
            }
        }
    }
}
