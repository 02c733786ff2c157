//! The gate's asking half: a whole request becomes a question to the broker, a stream, or a request for the inner
//! server; and what the broker says becomes an answer or a wait.

use std::sync::Arc;
use std::time::Duration;

use super::conn::{Asked, Conn, Incoming, Phase, Then, Wait, WaitKind};
use super::core::{Core, InnerRequest};
use super::desk::{Ask, From, Told};
use super::http1::{Head, refused};
use super::respond::{Answer, record_json};
use super::routes::{Route, parameter};
use super::submission::{Prefer, Submission, number};
use super::waiters::said;
use crate::clock::Timestamp;
use crate::job::{Finished, JobId, JobRecord, Payload, Trace};
use crate::observe::{event, job_event};
use crate::ports::{BackendError, Doorbells, NewJob, Submitted};
use crate::problem::Code;

impl Core {
    /// What the broker is asked.
    pub fn take_asks(&mut self) -> Vec<Ask> {
        std::mem::take(&mut self.asks)
    }

    /// The broker has answered.
    pub fn told(&mut self, told: Told, now: Timestamp) {
        match told {
            Told::Submitted(from, answers) => self.submitted(from, answers, now),
            Told::Record(from, record) => self.record_is_there(from, record, now),
            Told::Ended(rang) => self.deliver(Doorbells { rang, lost: false }, now),
            Told::Unsure(jobs) => self.unsure.extend(jobs),
        }
    }

    /// Whose question it is, while its request is the one under way.
    pub(super) fn asker(&mut self, from: From) -> Option<&mut Conn> {
        self.conns.get_mut(&from.conn).filter(|conn| conn.request == from.request)
    }

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
            Err(refused) => return self.refuse(number, refused, now),
        };
        let waits = submission.prefer != Prefer::Async;
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
        if let Some(from) = self.begin_asking(number, id, Then::Follow(submission.prefer), waits, now) {
            self.asks.push(Ask::Submit(from, vec![job]));
        }
    }

    fn wait_for_record(&mut self, number: u64, head: &Head, id: JobId, now: Timestamp) {
        let query = head.target.split_once('?').map_or("", |(_, query)| query);
        let Some(seconds) = parameter(query, "wait").and_then(self::number) else {
            return self.refuse(number, refused(Code::BadRequest, "wait takes whole seconds"), now);
        };
        let wait = Duration::from_secs(seconds).min(self.settings.reply_timeout);
        let waits = !wait.is_zero();
        if let Some(from) = self.begin_asking(number, id, Then::Wait(wait), waits, now) {
            let watches = waits.then_some(self.settings.instance);
            self.asks.push(Ask::Record(from, id, watches));
        }
    }

    /// The request waits for the broker's answer. A caller who will wait for the job is entered at once: elsewhere
    /// it may have ended before the answer is here.
    pub(super) fn begin_asking(
        &mut self,
        number: u64,
        job: JobId,
        then: Then,
        waits: bool,
        now: Timestamp,
    ) -> Option<From> {
        if waits && self.waiting >= self.settings.max_inflight {
            let refused = refused(Code::TooManyWaiters, "web.max_inflight callers are waiting");
            self.refuse(number, refused, now);
            return None;
        }
        let conn = self.conns.get_mut(&number)?;
        // The backend's own time-outs end this.
        conn.deadline = Timestamp(u64::MAX);
        conn.phase = Phase::Asked(Asked { since: now, job, then, ended: None, waits });
        let from = From { conn: number, request: conn.request };
        if waits {
            self.enter(number, job);
            self.count_waiting(1);
        }
        Some(from)
    }

    /// What was asked, if its request is the one under way; nobody waits for it any more.
    fn end_asking(&mut self, from: From) -> Option<Asked> {
        let conn = self.asker(from).filter(|conn| matches!(conn.phase, Phase::Asked(_)))?;
        let Phase::Asked(asked) = std::mem::replace(&mut conn.phase, Phase::Head) else { return None };
        if asked.waits {
            self.count_waiting(-1);
            self.withdraw(from.conn, asked.job);
        }
        Some(asked)
    }

    pub(super) fn submitted(
        &mut self,
        from: From,
        answers: Result<Vec<Submitted>, BackendError>,
        now: Timestamp,
    ) {
        if self.asker(from).is_some_and(|conn| matches!(conn.phase, Phase::Streaming(_))) {
            return self.lines_submitted(from.conn, answers, now);
        }
        let Some(asked) = self.end_asking(from) else { return };
        let (number, Then::Follow(prefer)) = (from.conn, &asked.then) else { return };
        match answers.map(|mut answers| answers.pop()) {
            Ok(Some(Submitted::New)) => {
                let trace = self.trace_of(number);
                job_event(log::Level::Debug, "ingress.accepted", &trace, asked.job).emit();
                self.follow(number, *prefer, &asked, None, now);
            }
            Ok(Some(Submitted::Existing(record))) => {
                self.follow(number, *prefer, &asked, Some(&record), now);
            }
            Ok(Some(Submitted::Refused(refusal))) => {
                self.refuse(number, refused(refusal.code(), "the job was not accepted"), now);
            }
            Ok(None) => self.unavailable(number, "the broker gave no answer", now),
            Err(error) => self.unavailable(number, &error.to_string(), now),
        }
        self.advance(number, now);
    }

    /// Answers a submission as its caller wants: at once, or when the job ends.
    fn follow(
        &mut self,
        number: u64,
        prefer: Prefer,
        asked: &Asked,
        joined: Option<&JobRecord>,
        now: Timestamp,
    ) {
        let id = joined.map_or(asked.job, |record| record.spec.id);
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
        if asked.ended.is_some() {
            let trace = self.trace_of(number);
            said("reply.delivered", id, Some(&trace), "");
        }
        let ended = asked.ended.clone().or_else(|| joined.and_then(|record| record.finished.clone()));
        let wait_for = Wait { job: id, kind, headers };
        match ended {
            Some(finished) => self.answer_finished(number, &finished, &wait_for.headers, now),
            None => {
                if joined.is_some() {
                    // The end of another request's job may have been told before this one was entered.
                    self.asks.push(Ask::Ended(vec![id]));
                }
                self.park(number, wait_for, asked.since.plus(wait));
            }
        }
    }

    pub(super) fn answer_finished(
        &mut self,
        number: u64,
        finished: &Finished,
        headers: &str,
        now: Timestamp,
    ) {
        let trace = self.trace_of(number);
        self.show(number, Answer::finished(finished, Some(&trace)), headers, now);
    }

    pub(super) fn record_is_there(
        &mut self,
        from: From,
        record: Result<Option<JobRecord>, BackendError>,
        now: Timestamp,
    ) {
        let Some(asked) = self.end_asking(from) else { return };
        let number = from.conn;
        match (record, asked.then) {
            (Err(error), _) => self.unavailable(number, &error.to_string(), now),
            // It was accepted, and its record is gone already.
            (Ok(None), Then::Show(WaitKind::ResultOrAccepted, headers)) => {
                self.show(number, Answer::accepted(asked.job, "queued"), &headers, now);
            }
            (Ok(None), _) => {
                self.refuse(number, refused(Code::UnknownJob, "there is no job of this id"), now);
            }
            (Ok(Some(record)), Then::Show(WaitKind::ResultOrAccepted, headers)) => {
                self.show(number, Answer::accepted(asked.job, record.status.as_str()), &headers, now);
            }
            (Ok(Some(record)), Then::Show(_, headers)) => {
                self.show(number, Answer::json(200, record_json(&record, true)), &headers, now);
            }
            (Ok(Some(record)), Then::Wait(wait)) => {
                let headers = format!("cofferdam-job-id: {}\r\n", asked.job);
                if record.status.is_terminal() || wait.is_zero() {
                    self.show(number, Answer::json(200, record_json(&record, true)), &headers, now);
                } else if asked.ended.is_some() {
                    // It has ended since: the record that tells so is the next one.
                    self.ask_to_show(number, asked.job, WaitKind::Record, headers, now);
                } else {
                    let wait_for = Wait { job: asked.job, kind: WaitKind::Record, headers };
                    self.park(number, wait_for, asked.since.plus(wait));
                }
            }
            (Ok(Some(_)), Then::Follow(_)) => {}
        }
        self.advance(number, now);
    }

    /// The caller is to be told how the job stands now.
    pub(super) fn ask_to_show(
        &mut self,
        number: u64,
        job: JobId,
        kind: WaitKind,
        headers: String,
        now: Timestamp,
    ) {
        if let Some(from) = self.begin_asking(number, job, Then::Show(kind, headers), false, now) {
            self.asks.push(Ask::Record(from, job, None));
        }
    }

    fn show(&mut self, number: u64, mut answer: Answer, headers: &str, now: Timestamp) {
        answer.headers.push_str(headers);
        self.answer(number, answer, now);
    }

    fn unavailable(&mut self, number: u64, cause: &str, now: Timestamp) {
        event(log::Level::Warn, "ingress.rejected")
            .field("code", Code::BackendUnavailable.as_str())
            .field("cause", cause)
            .emit();
        self.refuse(number, refused(Code::BackendUnavailable, "the backend cannot be reached"), now);
    }
}
