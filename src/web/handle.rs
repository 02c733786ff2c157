//! The gate's asking half: a whole request becomes a job, a wait, a stream, or a question to the inner server.

use std::sync::Arc;
use std::time::Duration;

use super::conn::{Incoming, Phase, Wait, WaitKind};
use super::core::{Core, InnerRequest};
use super::http1::{Head, refused};
use super::respond::{Answer, record_json};
use super::routes::{Route, parameter};
use super::submission::{Prefer, Submission, number};
use crate::clock::Timestamp;
use crate::job::{JobId, JobRecord, Payload, Trace};
use crate::observe::event;
use crate::ports::{NewJob, Submitted, Viewer};
use crate::problem::Code;

impl Core {
    pub(super) fn handle(&mut self, number: u64, incoming: Incoming, now: Timestamp) {
        let Incoming { head, route, body, .. } = incoming;
        let trace = self.trace_of(number);
        match route {
            Route::Alive => {
                let answer = Answer::json(200, r#"{"status":"alive"}"#.into());
                self.answer(number, answer, now);
            }
            Route::Submit(name) => self.submit(number, &head, &name, body, trace, now),
            Route::Batch(name) => self.begin_stream(number, &head, &name, body, now),
            Route::Wait(id) => self.wait_for_record(number, &head, id, now),
            Route::Inner(route) => {
                let Some(conn) = self.conns.get_mut(&number) else { return };
                conn.phase = Phase::Inner;
                conn.deadline = Timestamp(u64::MAX);
                let query = head.target.split_once('?').map_or("", |(_, query)| query).to_owned();
                self.inner.push(InnerRequest { conn: number, request: conn.request, route, query, trace });
            }
        }
    }

    pub(super) fn trace_of(&mut self, number: u64) -> Trace {
        let known = self.conns.get(&number).and_then(|conn| conn.current.trace);
        known.unwrap_or_else(|| Trace { id: self.entropy.bytes(), span: self.entropy.bytes() })
    }

    fn submit(&mut self, number: u64, head: &Head, name: &str, body: Vec<u8>, trace: Trace, now: Timestamp) {
        let Some(spec) = self.settings.handlers.get(name) else { return };
        let submission = match Submission::read(head, spec, &body) {
            Ok(submission) => submission,
            Err(refused) => return self.refuse(number, &refused.into(), now),
        };
        let waits = submission.prefer != Prefer::Async;
        if waits && self.waiting >= self.settings.max_inflight {
            let refused = refused(Code::TooManyWaiters, "web.max_inflight callers are waiting");
            return self.refuse(number, &refused.into(), now);
        }
        let id = JobId(self.entropy.bytes());
        let job = NewJob {
            id,
            owner: Arc::from(""),
            handler: spec.name.clone(),
            ordering_key: submission.ordering_key,
            payload: Payload { media_type: submission.media_type, bytes: body.into() },
            trace,
            delay: submission.delay,
            timeout: submission.timeout,
            idempotency: submission.idempotency,
            awaited: waits,
            one_line: false,
            instance: self.settings.instance,
        };
        let submitted = match self.producer.submit(vec![job]) {
            Ok(mut answers) => answers.pop(),
            Err(error) => return self.unavailable(number, &error.to_string(), now),
        };
        match submitted {
            Some(Submitted::New) => {
                event(log::Level::Debug, "ingress.accepted")
                    .field("job_id", &id.to_string())
                    .field("trace_id", &trace.id_text())
                    .emit();
                self.follow(number, id, submission.prefer, None, now);
            }
            Some(Submitted::Existing(record)) => {
                self.follow(number, record.spec.id, submission.prefer, Some(&record), now);
            }
            Some(Submitted::Refused(refusal)) => {
                let refused = refused(refusal.code(), "the job was not accepted");
                self.refuse(number, &refused.into(), now);
            }
            None => self.unavailable(number, "the broker gave no answer", now),
        }
    }

    /// Answers a submission as its caller wants: at once, or when the job ends.
    fn follow(&mut self, number: u64, id: JobId, prefer: Prefer, joined: Option<&JobRecord>, now: Timestamp) {
        let mut headers = String::new();
        if joined.is_some() {
            headers.push_str("idempotency-replayed: true\r\n");
        }
        headers.push_str(&format!("cofferdam-job-id: {id}\r\n"));
        let (kind, wait) = match prefer {
            Prefer::Async => {
                let mut answer =
                    Answer::accepted(id, joined.map_or("queued", |record| record.status.as_str()));
                answer.headers.push_str(&headers);
                return self.answer(number, answer.with("preference-applied", "respond-async"), now);
            }
            Prefer::Wait(wait) => {
                let wait = wait.min(self.settings.reply_timeout);
                headers.push_str(&format!("preference-applied: wait={}\r\n", wait.as_secs()));
                (WaitKind::ResultOrAccepted, wait)
            }
            Prefer::Nothing => (WaitKind::Result, self.settings.reply_timeout),
        };
        let wait_for = Wait { job: id, kind, headers };
        match joined.and_then(|record| record.finished.clone()) {
            Some(finished) => {
                let trace = self.trace_of(number);
                let mut answer = Answer::finished(&finished, Some(&trace));
                answer.headers.push_str(&wait_for.headers);
                self.answer(number, answer, now);
            }
            None => self.park(number, wait_for, wait, now),
        }
    }

    fn wait_for_record(&mut self, conn: u64, head: &Head, id: JobId, now: Timestamp) {
        let query = head.target.split_once('?').map_or("", |(_, query)| query);
        let Some(seconds) = parameter(query, "wait").and_then(number) else {
            return self.refuse(conn, &refused(Code::BadRequest, "wait takes whole seconds").into(), now);
        };
        let wait = Duration::from_secs(seconds).min(self.settings.reply_timeout);
        match self.producer.record(&Viewer::anonymous(), id) {
            Err(error) => self.unavailable(conn, &error.to_string(), now),
            Ok(None) => {
                self.refuse(conn, &refused(Code::UnknownJob, "there is no job of this id").into(), now);
            }
            Ok(Some(record)) if record.status.is_terminal() || wait.is_zero() => {
                self.answer_record(conn, &record, now);
            }
            Ok(Some(_)) if self.waiting >= self.settings.max_inflight => {
                let refused = refused(Code::TooManyWaiters, "web.max_inflight callers are waiting");
                self.refuse(conn, &refused.into(), now);
            }
            Ok(Some(_)) => {
                let headers = format!("cofferdam-job-id: {id}\r\n");
                self.park(conn, Wait { job: id, kind: WaitKind::Record, headers }, wait, now);
            }
        }
    }

    pub(super) fn answer_record(&mut self, number: u64, record: &JobRecord, now: Timestamp) {
        let answer = Answer::json(200, record_json(record, true));
        let id = record.spec.id.to_string();
        self.answer(number, answer.with("cofferdam-job-id", &id), now);
    }

    fn unavailable(&mut self, number: u64, cause: &str, now: Timestamp) {
        log::warn!("the backend is unavailable: {cause}");
        self.refuse(number, &refused(Code::BackendUnavailable, "the backend cannot be reached").into(), now);
    }
}
