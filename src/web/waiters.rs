//! The gate's waiting half: who waits for which job, and the ways a wait ends: reply, deadline, hang-up, drain.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::conn::{Asked, Conn, Current, OUTPUT_BYTES, Phase, Wait, WaitKind};
use super::core::Core;
use super::desk::{Ask, From};
use super::http1::{Head, refused};
use super::respond::{Answer, http_date, write_chunk, write_head};
use super::routes::parameter;
use super::stream::Stream;
use crate::clock::Timestamp;
use crate::config::SinkMode;
use crate::job::{Finished, JobId, Payload, Trace};
use crate::limits::BODY_BYTES;
use crate::observe::job_event;
use crate::ports::{BackendError, NewJob, Refusal, Submitted};
use crate::problem::{Code, JobError};

impl Core {
    /// The caller waits for a job, until then at most.
    pub(super) fn park(&mut self, number: u64, wait: Wait, until: Timestamp) {
        let Some(conn) = self.conns.get_mut(&number) else { return };
        let job = wait.job;
        conn.phase = Phase::Waiting(wait);
        conn.deadline = until;
        self.next_due = self.next_due.min(until);
        self.enter(number, job);
        self.count_waiting(1);
    }

    /// The job's end is to be told to this connection.
    pub(super) fn enter(&mut self, number: u64, job: JobId) {
        self.left.remove(&job);
        self.waiters.entry(job).or_default().push(number);
    }

    /// It is not, any more; true if nobody else wants to hear of it.
    pub(super) fn withdraw(&mut self, number: u64, job: JobId) -> bool {
        let Some(waiting) = self.waiters.get_mut(&job) else { return false };
        waiting.retain(|other| *other != number);
        let was_last = waiting.is_empty();
        if was_last {
            self.waiters.remove(&job);
        }
        was_last
    }

    pub(super) fn count_waiting(&mut self, by: isize) {
        self.waiting = self.waiting.saturating_add_signed(by);
        self.counters.waiters.store(self.waiting as u64, Ordering::Relaxed);
    }

    /// A job has ended: all who wait for it get their answers.
    pub(super) fn reply(&mut self, job: JobId, finished: &Arc<Finished>, now: Timestamp) {
        let Some(waiting) = self.waiters.remove(&job) else {
            if let Some(trace) = self.left.remove(&job) {
                self.counters.reply_late.fetch_add(1, Ordering::Relaxed);
                said("reply.late_dropped", job, Some(&trace), "waiter_gone");
            }
            return;
        };
        for number in waiting {
            let Some(conn) = self.conns.get_mut(&number) else { continue };
            // Who is not known to be accepted yet is told so first.
            if !matches!(conn.phase, Phase::Asked(_)) {
                said("reply.delivered", job, conn.current.trace.as_ref(), "");
            }
            match &mut conn.phase {
                Phase::Asked(asked) => asked.ended = Some(finished.clone()),
                Phase::Waiting(wait) => {
                    let headers = std::mem::take(&mut wait.headers);
                    let kind = wait.kind;
                    self.count_waiting(-1);
                    match kind {
                        WaitKind::Result | WaitKind::ResultOrAccepted => {
                            self.answer_finished(number, finished, &headers, now);
                            self.advance(number, now);
                        }
                        WaitKind::Record => self.ask_to_show(number, job, kind, headers, now),
                    }
                }
                Phase::Streaming(stream) => {
                    stream.finished(job, finished);
                    self.feed_stream(number, now);
                }
                Phase::Head | Phase::Body(_) | Phase::Inner | Phase::Closing => {}
            }
        }
    }

    /// Some doorbells were lost: the records are the truth.
    pub(super) fn look_again(&mut self) {
        self.left.clear();
        if !self.waiters.is_empty() {
            self.asks.push(Ask::Ended(self.waiters.keys().copied().collect()));
        }
    }

    /// A caller no longer waits for a job, before the reply. The last one to hang up may take the job along.
    pub(super) fn leave(&mut self, number: u64, job: JobId, hung_up: bool) {
        if self.withdraw(number, job) {
            let trace = self.trace_of(number);
            self.left.insert(job, trace);
            if hung_up && !self.cancelling.is_empty() {
                self.asks.push(Ask::Abandoned(job, self.cancelling.clone()));
            }
        }
    }

    /// When [`Core::tick`] has something to do.
    #[must_use]
    pub fn next_due(&self) -> Timestamp {
        self.next_due
    }

    /// True while streams wait for room in the queue.
    #[must_use]
    pub fn has_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// Ends what is past its deadline. Connections are looked through only when one of them is due.
    pub fn tick(&mut self, now: Timestamp) {
        for number in std::mem::take(&mut self.stalled) {
            self.feed_stream(number, now);
        }
        if !self.unsure.is_empty() {
            let jobs = std::mem::take(&mut self.unsure);
            self.asks
                .push(Ask::Ended(jobs.into_iter().filter(|job| self.waiters.contains_key(job)).collect()));
        }
        if now < self.next_due {
            return;
        }
        let due: Vec<u64> =
            self.conns.iter().filter(|(_, conn)| conn.due() <= now).map(|(n, _)| *n).collect();
        for number in due {
            self.on_deadline(number, now);
        }
        self.next_due = self.conns.values().map(Conn::due).min().unwrap_or(Timestamp(u64::MAX));
    }

    fn on_deadline(&mut self, number: u64, now: Timestamp) {
        let Some(conn) = self.conns.get_mut(&number) else { return };
        if conn.write_deadline.is_some_and(|deadline| deadline <= now) {
            // The client has stopped reading: nothing more can be said to it.
            conn.output.clear();
            conn.sent = 0;
            return self.hung_up(number, now);
        }
        match &conn.phase {
            Phase::Waiting(wait) => {
                let wait = wait.clone();
                self.wait_is_over(number, &wait, now);
            }
            Phase::Head if conn.input.is_empty() => self.hung_up(number, now),
            Phase::Head | Phase::Body(_) => {
                if matches!(conn.phase, Phase::Head) {
                    // Nothing is known of this request; what `current` says is about the one before it.
                    conn.current = Current::malformed(&mut self.entropy);
                }
                let refused = refused(Code::RequestTimeout, "the request did not arrive in time");
                self.refuse_and_close(number, refused, now);
            }
            Phase::Closing => self.hung_up(number, now),
            Phase::Asked(_) | Phase::Inner | Phase::Streaming(_) => conn.deadline = Timestamp(u64::MAX),
        }
    }

    /// The reply did not come in time; the job goes on.
    fn wait_is_over(&mut self, number: u64, wait: &Wait, now: Timestamp) {
        self.counters.reply_timeouts.fetch_add(1, Ordering::Relaxed);
        self.count_waiting(-1);
        self.leave(number, wait.job, false);
        let trace = self.trace_of(number);
        said("reply.timed_out", wait.job, Some(&trace), "");
        match wait.kind {
            WaitKind::Result => {
                let detail = "the job goes on; its record tells when it ends";
                let mut answer = Answer::refusal(Code::ReplyTimeout, detail, Some(&trace));
                answer.headers.push_str(&wait.headers);
                self.answer(number, answer, now);
                self.advance(number, now);
            }
            WaitKind::ResultOrAccepted | WaitKind::Record => {
                self.ask_to_show(number, wait.job, wait.kind, wait.headers.clone(), now);
            }
        }
    }

    /// The service stops: new jobs are refused, those who wait go on waiting.
    pub fn drain(&mut self) {
        self.draining = true;
        self.counters.draining.store(true, Ordering::Relaxed);
    }

    /// True once nobody waits and everything said was sent.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.conns
            .values()
            .all(|conn| matches!(conn.phase, Phase::Head | Phase::Closing) && conn.unsent().is_empty())
    }

    /// The drain's deadline has passed: who still waits is told.
    pub fn cut_off(&mut self, now: Timestamp) {
        let waiting = |conn: &Conn| match &conn.phase {
            Phase::Waiting(Wait { job, .. }) | Phase::Asked(Asked { job, waits: true, .. }) => Some(*job),
            _ => None,
        };
        let cut: Vec<(u64, JobId)> =
            self.conns.iter().filter_map(|(n, conn)| Some((*n, waiting(conn)?))).collect();
        for (number, job) in cut {
            self.count_waiting(-1);
            self.leave(number, job, false);
            let refused = refused(Code::Draining, "the service has stopped before the job ended");
            self.refuse(number, refused, now);
        }
    }

    /// A batch begins: its head goes out at once, its results as they come.
    pub(super) fn begin_stream(
        &mut self,
        number: u64,
        head: &Head,
        name: &str,
        body: Vec<u8>,
        now: Timestamp,
    ) {
        let Some(handler) = self.settings.handlers.get(name).cloned() else { return };
        let query = head.target.split_once('?').map_or("", |(_, query)| query);
        let mode = match parameter(query, "sink_mode") {
            None => self.settings.sink_mode,
            Some("source_seq") => SinkMode::SourceSeq,
            Some("completion") => SinkMode::Completion,
            Some(_) => {
                let refused = refused(Code::BadRequest, "sink_mode is source_seq or completion");
                return self.refuse(number, refused, now);
            }
        };
        if self.waiting >= self.settings.max_inflight {
            let refused = refused(Code::TooManyWaiters, "web.max_inflight callers are waiting");
            return self.refuse(number, refused, now);
        }
        let held = |conn: &Conn| match &conn.phase {
            Phase::Streaming(stream) => stream.body_bytes(),
            _ => 0,
        };
        let held: usize = self.conns.values().map(held).sum();
        if held > 0 && held + body.len() > BODY_BYTES {
            let refused = refused(Code::Overloaded, "too many batches are running");
            return self.refuse(number, refused, now);
        }
        let trace = self.trace_of(number);
        let headers = format!("content-type: application/x-ndjson\r\ntraceparent: {trace}\r\n");
        let answer = Answer { status: 200, headers, body: Vec::new() };
        let date = http_date(now);
        let keep = !self.draining;
        let Some(conn) = self.conns.get_mut(&number) else { return };
        conn.keep_alive &= keep;
        write_head(&mut conn.output, &answer, &date, conn.keep_alive, None);
        self.counters.request(conn.current.route, 200);
        conn.deadline = Timestamp(u64::MAX);
        conn.phase = Phase::Streaming(Box::new(Stream::new(handler, body, mode)));
        self.feed_stream(number, now);
    }

    /// Sends the results that are next, and submits lines while there is room: for them in the window, for
    /// their answers in the output.
    pub(super) fn feed_stream(&mut self, number: u64, now: Timestamp) {
        let write_timeout = Duration::from_millis(self.settings.limits.write_timeout_ms);
        let Some(conn) = self.conns.get_mut(&number) else { return };
        let trace = conn.current.trace;
        let Phase::Streaming(stream) = &mut conn.phase else { return };
        let mut results = Vec::new();
        while conn.output.len() - conn.sent + results.len() < OUTPUT_BYTES {
            match stream.next_result() {
                Some(result) => results.extend_from_slice(&result),
                None => break,
            }
        }
        write_chunk(&mut conn.output, &results);
        let unsent = conn.output.len() - conn.sent;
        if unsent > 0 && conn.write_deadline.is_none() {
            conn.write_deadline = Some(now.plus(write_timeout));
            self.next_due = self.next_due.min(now.plus(write_timeout));
        }
        self.touched.push(number);
        if stream.is_done() {
            conn.output.extend_from_slice(b"0\r\n\r\n");
            let keep = conn.keep_alive && !conn.at_end;
            self.next_request(number, keep, now);
            return self.advance(number, now);
        }
        let (mut lines, mut jobs) = (Vec::new(), Vec::new());
        if unsent < OUTPUT_BYTES && !stream.is_asking() {
            while let Some(mut line) = stream.next_line(self.settings.max_body) {
                if self.draining {
                    stream
                        .refuse(line.number, &JobError::new(Code::Draining, "the service is shutting down"));
                    continue;
                }
                // A line that is submitted again is the same job: it runs once.
                let id = *line.job.get_or_insert_with(|| JobId(self.entropy.bytes()));
                jobs.push(NewJob {
                    id,
                    owner: "".into(),
                    handler: stream.handler.name.clone(),
                    ordering_key: line.ordering_key.clone(),
                    payload: Payload::json(line.bytes.clone()),
                    trace: trace.unwrap_or(Trace { id: id.0, span: [1; 8] }),
                    delay: Duration::ZERO,
                    timeout: None,
                    idempotency: None,
                    awaited: true,
                    one_line: true,
                    instance: self.settings.instance,
                });
                stream.submitted(id, line.number);
                lines.push(line);
            }
        }
        if !lines.is_empty() {
            stream.ask(lines);
            let from = From { conn: number, request: conn.request };
            for job in &jobs {
                self.enter(number, job.id);
            }
            self.asks.push(Ask::Submit(from, jobs));
        } else if stream.jobs().is_empty() && !stream.is_asking() {
            // Every line so far was refused at once: their answers are ready now.
            self.stall(number);
        }
    }

    /// Once, however often it is fed in a turn.
    fn stall(&mut self, number: u64) {
        if !self.stalled.contains(&number) {
            self.stalled.push(number);
        }
    }

    /// What the broker said of the lines that it was asked to take.
    pub(super) fn lines_submitted(
        &mut self,
        number: u64,
        answers: Result<Vec<Submitted>, BackendError>,
        now: Timestamp,
    ) {
        let Some(conn) = self.conns.get_mut(&number) else { return };
        let Phase::Streaming(stream) = &mut conn.phase else { return };
        let (mut back, mut gone) = (Vec::new(), Vec::new());
        for (index, line) in stream.asked().into_iter().enumerate() {
            match answers.as_ref().map(|answers| answers.get(index)) {
                Ok(Some(Submitted::New | Submitted::Existing(_))) => {}
                Ok(Some(Submitted::Refused(Refusal::UnknownHandler | Refusal::IdempotencyMismatch))) => {
                    gone.extend(line.job.filter(|job| stream.withdraw(*job)));
                    stream.refuse(
                        line.number,
                        &JobError::new(Code::UnknownHandler, "the line was not accepted"),
                    );
                }
                // The queue is full, or the backend away: this line and all after it wait for their turn, unless it
                // was accepted all the same and has ended.
                Ok(Some(Submitted::Refused(Refusal::QueueFull)) | None) | Err(_) => {
                    if let Some(job) = line.job.filter(|job| stream.withdraw(*job)) {
                        gone.push(job);
                        back.push(line);
                    }
                }
            }
        }
        let is_full = !back.is_empty();
        back.into_iter().rev().for_each(|line| stream.put_back(line));
        for job in gone {
            self.withdraw(number, job);
        }
        if is_full {
            self.stall(number);
        } else {
            self.feed_stream(number, now);
        }
    }
}

/// A boundary event of a reply.
pub(super) fn said(name: &str, job: JobId, trace: Option<&Trace>, cause: &str) {
    job_event(log::Level::Debug, name, trace, job).field("cause", cause).emit();
}
