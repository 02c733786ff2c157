//! The gate's waiting half: who waits for which job, and the ways a wait ends: reply, deadline, hang-up, drain.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::conn::{Current, OUTPUT_BYTES, Phase, Wait, WaitKind};
use super::core::Core;
use super::http1::{Head, refused};
use super::respond::{Answer, record_json, write_chunk, write_head};
use super::routes::parameter;
use super::stream::Stream;
use crate::clock::Timestamp;
use crate::config::SinkMode;
use crate::job::{Finished, JobError, JobId, Payload, Trace};
use crate::limits::BODY_BYTES;
use crate::observe::event;
use crate::ports::{NewJob, Refusal, Submitted, Viewer};
use crate::problem::Code;

impl Core {
    /// The caller waits for a job, so long at most.
    pub(super) fn park(&mut self, number: u64, wait: Wait, at_most: Duration, now: Timestamp) {
        let Some(conn) = self.conns.get_mut(&number) else { return };
        self.left.remove(&wait.job);
        self.waiters.entry(wait.job).or_default().push(number);
        conn.phase = Phase::Waiting(wait);
        conn.deadline = now.plus(at_most);
        self.next_due = self.next_due.min(conn.deadline);
        self.count_waiting(1);
    }

    pub(super) fn count_waiting(&mut self, by: isize) {
        self.waiting = self.waiting.saturating_add_signed(by);
        self.counters.waiters.store(self.waiting as u64, Ordering::Relaxed);
    }

    /// A job has ended: all who wait for it get their answers.
    pub(super) fn reply(&mut self, job: JobId, finished: &Finished, now: Timestamp) {
        let Some(waiting) = self.waiters.remove(&job) else {
            if self.left.remove(&job) {
                self.counters.reply_late.fetch_add(1, Ordering::Relaxed);
                event(log::Level::Debug, "reply.late_dropped").field("job_id", &job.to_string()).emit();
            }
            return;
        };
        event(log::Level::Debug, "reply.delivered").field("job_id", &job.to_string()).emit();
        for number in waiting {
            let Some(conn) = self.conns.get_mut(&number) else { continue };
            match &mut conn.phase {
                Phase::Waiting(wait) => {
                    let headers = std::mem::take(&mut wait.headers);
                    let kind = wait.kind;
                    let trace = conn.current.trace;
                    self.count_waiting(-1);
                    let mut answer = match kind {
                        WaitKind::Result | WaitKind::ResultOrAccepted => {
                            Answer::finished(finished, trace.as_ref())
                        }
                        WaitKind::Record => self.record_answer(job),
                    };
                    answer.headers.push_str(&headers);
                    self.answer(number, answer, now);
                    self.advance(number, now);
                }
                Phase::Streaming(stream) => {
                    stream.finished(job, finished);
                    self.feed_stream(number, now);
                }
                Phase::Head | Phase::Body(_) | Phase::Inner | Phase::Closing => {}
            }
        }
    }

    fn record_answer(&self, job: JobId) -> Answer {
        match self.producer.record(&Viewer::anonymous(), job) {
            Ok(Some(record)) => Answer::json(200, record_json(&record, true)),
            Ok(None) => Answer::refusal(Code::UnknownJob, "there is no job of this id", None),
            Err(error) => Answer::refusal(Code::BackendUnavailable, &error.to_string(), None),
        }
    }

    /// Some doorbells were lost: the records are the truth.
    pub(super) fn look_again(&mut self, now: Timestamp) {
        self.left.clear();
        let waited: Vec<JobId> = self.waiters.keys().copied().collect();
        for job in waited {
            if let Ok(Some(record)) = self.producer.record(&Viewer::anonymous(), job)
                && let Some(finished) = record.finished
            {
                self.reply(job, &finished, now);
            }
        }
    }

    /// A caller no longer waits for a job, before the reply.
    pub(super) fn leave(&mut self, number: u64, job: JobId, hung_up: bool) {
        let Some(waiting) = self.waiters.get_mut(&job) else { return };
        waiting.retain(|other| *other != number);
        let was_last = waiting.is_empty();
        if was_last {
            self.waiters.remove(&job);
            self.left.insert(job);
        }
        if was_last && hung_up {
            self.cancel_if_wanted(job);
        }
    }

    /// `cancel_on_disconnect`: the last caller has hung up, so nobody wants the job.
    fn cancel_if_wanted(&mut self, job: JobId) {
        if !self.settings.handlers.values().any(|spec| spec.options.cancel_on_disconnect) {
            return;
        }
        let viewer = Viewer::anonymous();
        let Ok(Some(record)) = self.producer.record(&viewer, job) else { return };
        let handler = self.settings.handlers.get(&*record.spec.handler);
        if handler.is_some_and(|spec| spec.options.cancel_on_disconnect) {
            let _ = self.producer.cancel(&viewer, job);
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
        if now < self.next_due {
            return;
        }
        let due: Vec<u64> =
            self.conns.iter().filter(|(_, conn)| conn.due() <= now).map(|(n, _)| *n).collect();
        for number in due {
            self.on_deadline(number, now);
        }
        self.next_due = self.conns.values().map(super::conn::Conn::due).min().unwrap_or(Timestamp(u64::MAX));
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
                    let trace = Trace { id: self.entropy.bytes(), span: self.entropy.bytes() };
                    conn.current =
                        Current { route: "malformed", trace: Some(trace), with_body: true, is_1_1: true };
                }
                let refused = refused(Code::RequestTimeout, "the request did not arrive in time");
                self.refuse_and_close(number, &refused.into(), now);
            }
            Phase::Closing => self.hung_up(number, now),
            Phase::Inner | Phase::Streaming(_) => conn.deadline = Timestamp(u64::MAX),
        }
    }

    /// The reply did not come in time; the job goes on.
    fn wait_is_over(&mut self, number: u64, wait: &Wait, now: Timestamp) {
        self.counters.reply_timeouts.fetch_add(1, Ordering::Relaxed);
        self.count_waiting(-1);
        self.leave(number, wait.job, false);
        event(log::Level::Debug, "reply.timed_out").field("job_id", &wait.job.to_string()).emit();
        let trace = self.trace_of(number);
        let mut answer = match wait.kind {
            WaitKind::Result => {
                let detail = "the job goes on; its record tells when it ends";
                Answer::refusal(Code::ReplyTimeout, detail, Some(&trace))
            }
            WaitKind::ResultOrAccepted => {
                let record = self.producer.record(&Viewer::anonymous(), wait.job).ok().flatten();
                Answer::accepted(wait.job, record.map_or("queued", |record| record.status.as_str()))
            }
            WaitKind::Record => self.record_answer(wait.job),
        };
        answer.headers.push_str(&wait.headers);
        self.answer(number, answer, now);
        self.advance(number, now);
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
        let waiting = |conn: &super::conn::Conn| match &conn.phase {
            Phase::Waiting(wait) => Some(wait.job),
            _ => None,
        };
        let cut: Vec<(u64, JobId)> =
            self.conns.iter().filter_map(|(n, conn)| Some((*n, waiting(conn)?))).collect();
        for (number, job) in cut {
            self.count_waiting(-1);
            self.leave(number, job, false);
            self.refuse(
                number,
                &refused(Code::Draining, "the service has stopped before the job ended").into(),
                now,
            );
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
                return self.refuse(number, &refused.into(), now);
            }
        };
        if self.waiting >= self.settings.max_inflight {
            let refused = refused(Code::TooManyWaiters, "web.max_inflight callers are waiting");
            return self.refuse(number, &refused.into(), now);
        }
        let held = |conn: &super::conn::Conn| match &conn.phase {
            Phase::Streaming(stream) => stream.body_bytes(),
            _ => 0,
        };
        let held: usize = self.conns.values().map(held).sum();
        if held > 0 && held + body.len() > BODY_BYTES {
            let refused = refused(Code::Overloaded, "too many batches are running");
            return self.refuse(number, &refused.into(), now);
        }
        let trace = self.trace_of(number);
        let headers = format!("content-type: application/x-ndjson\r\ntraceparent: {trace}\r\n");
        let answer = Answer { status: 200, headers, body: Vec::new() };
        let date = super::respond::http_date(now);
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
        if unsent < OUTPUT_BYTES {
            while let Some(line) = stream.next_line(self.settings.max_body) {
                if self.draining {
                    stream
                        .refuse(line.number, &JobError::new(Code::Draining, "the service is shutting down"));
                    continue;
                }
                let id = JobId(self.entropy.bytes());
                jobs.push(NewJob {
                    id,
                    owner: "".into(),
                    handler: stream.handler.name.clone(),
                    ordering_key: line.ordering_key.clone(),
                    payload: Payload::json(line.bytes.clone()),
                    trace: trace.unwrap_or(crate::job::Trace { id: id.0, span: [1; 8] }),
                    delay: Duration::ZERO,
                    timeout: None,
                    idempotency: None,
                    awaited: true,
                    one_line: true,
                    instance: self.settings.instance,
                });
                lines.push((id, line));
            }
        }
        if lines.is_empty() {
            if !matches!(&conn.phase, Phase::Streaming(stream) if stream.jobs().is_empty()) {
                return;
            }
            // Every line so far was refused at once: their answers are ready now.
            self.stall(number);
            return;
        }
        self.submit_lines(number, lines, jobs);
    }

    /// Once, however often it is fed in a turn.
    fn stall(&mut self, number: u64) {
        if !self.stalled.contains(&number) {
            self.stalled.push(number);
        }
    }

    fn submit_lines(&mut self, number: u64, lines: Vec<(JobId, super::stream::NextLine)>, jobs: Vec<NewJob>) {
        let answers = self.producer.submit(jobs);
        let Some(conn) = self.conns.get_mut(&number) else { return };
        let Phase::Streaming(stream) = &mut conn.phase else { return };
        let mut back = Vec::new();
        for (index, (id, line)) in lines.into_iter().enumerate() {
            match answers.as_ref().map(|answers| answers.get(index)) {
                Ok(Some(Submitted::New | Submitted::Existing(_))) => {
                    stream.submitted(id, line.number);
                    self.waiters.entry(id).or_default().push(number);
                }
                Ok(Some(Submitted::Refused(Refusal::UnknownHandler | Refusal::IdempotencyMismatch))) => {
                    stream.refuse(
                        line.number,
                        &JobError::new(Code::UnknownHandler, "the line was not accepted"),
                    );
                }
                // The queue is full, or the backend away: this line and all after it wait for their turn.
                Ok(Some(Submitted::Refused(Refusal::QueueFull)) | None) | Err(_) => back.push(line),
            }
        }
        if !back.is_empty() {
            for line in back.into_iter().rev() {
                stream.put_back(line);
            }
            self.stall(number);
        }
    }
}
