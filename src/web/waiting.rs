//! Callers that wait for a job: who waits for which, and the ways a wait ends: reply, deadline, hang-up, drain.
//!
//! ```text
//!             accepted                  ends            (its record is asked for where that is the answer,
//!    Asked -------------> Accepted -------------> answered                       or where time is up)
//!      |  ends meanwhile: answered once            ^
//!      |  it is known to be accepted     deadline  |
//!      +-- refused: answered              Looking -+
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::conn::Phase;
use super::gate::Gate;
use super::http1::{Head, refused};
use super::questions::{Asker, Question, Ticket};
use super::respond::{Answer, record_json};
use super::routes::{Inner, parameter};
use super::submission::{self, Prefer, Submission};
use super::waiters::{Asked, Callers, Kind, Stage, Waiting, said};
use crate::clock::Timestamp;
use crate::job::{Finished, JobId, JobRecord, Payload};
use crate::observe::{event, job_event};
use crate::ports::{BackendError, NewJob, Submitted};
use crate::problem::Code;

impl Gate {
    pub(super) fn submit(&mut self, number: u64, head: &Head, name: &str, body: Arc<[u8]>, now: Timestamp) {
        let Some(spec) = self.settings.handlers.get(name) else { return };
        let submission = match Submission::read(head, spec, &body) {
            Ok(submission) => submission,
            Err(refused) => return self.clients.refuse(number, refused, now),
        };
        let handler = spec.name.clone();
        let job = JobId(self.entropy.bytes());
        let most = self.settings.reply_timeout;
        let waiting = match submission.prefer {
            Prefer::Async => None,
            Prefer::Nothing => Some(Waiting::new(job, Kind::Result, now.plus(most))),
            Prefer::Wait(wait) => {
                let wait = wait.min(most);
                Some(Waiting::new(job, Kind::ResultOrAccepted(wait.as_secs()), now.plus(wait)))
            }
        };
        let awaited = waiting.is_some();
        if !self.begin_asking(number, job, waiting, now) {
            return;
        }
        let Some(conn) = self.clients.get(number) else { return };
        let trace = conn.current.trace;
        let ticket = Ticket { asker: Asker { conn: number, request: conn.request }, job, trace };
        let job = NewJob {
            id: job,
            owner: self.nobody.clone(),
            handler,
            ordering_key: submission.ordering_key,
            payload: Payload { media_type: submission.media_type, bytes: body },
            trace,
            delay: submission.delay,
            timeout: submission.timeout,
            idempotency: submission.idempotency,
            awaited,
            one_line: false,
            instance: self.settings.instance,
        };
        self.questions.push(Question::Submit(ticket, job));
    }

    pub(super) fn wait_for_record(&mut self, number: u64, head: &Head, job: JobId, now: Timestamp) {
        let Some(seconds) = parameter(head.query(), "wait").and_then(submission::number) else {
            return self.clients.refuse(number, refused(Code::BadRequest, "wait takes whole seconds"), now);
        };
        let wait = Duration::from_secs(seconds).min(self.settings.reply_timeout);
        if wait.is_zero() {
            return self.ask_pages(number, Inner::Record(job), String::new(), now);
        }
        let waiting = Waiting::new(job, Kind::Record, now.plus(wait));
        if self.begin_asking(number, job, Some(waiting), now) {
            self.ask_for_record(number, job, true);
        }
    }

    /// The request waits for the broker's answer. A caller who will wait for the job is entered at once: elsewhere
    /// it may have ended before the answer is here. False: it was refused.
    fn begin_asking(&mut self, number: u64, job: JobId, waiting: Option<Waiting>, now: Timestamp) -> bool {
        if waiting.is_some() && self.waiters.is_full() {
            let refused = refused(Code::TooManyWaiters, "web.max_inflight callers are waiting");
            self.clients.refuse(number, refused, now);
            return false;
        }
        let Some(conn) = self.clients.get_mut(number) else { return false };
        // The backend's own time-outs end this.
        conn.deadline = Timestamp(u64::MAX);
        conn.phase = match waiting {
            None => Phase::Asked(Asked { job }),
            Some(waiting) => {
                self.waiters.enter(number, job);
                self.waiters.count(1);
                Phase::Waiting(Box::new(waiting))
            }
        };
        true
    }

    fn ask_for_record(&mut self, number: u64, job: JobId, watches: bool) {
        let Some(conn) = self.clients.get(number) else { return };
        let asker = Asker { conn: number, request: conn.request };
        self.questions.push(Question::Record(asker, job, watches.then_some(self.settings.instance)));
    }

    /// Whoever waits, at its request's connection.
    fn waiting(&mut self, number: u64) -> Option<&mut Waiting> {
        match &mut self.clients.get_mut(number)?.phase {
            Phase::Waiting(waiting) => Some(waiting),
            _ => None,
        }
    }

    /// Takes a caller out, to be answered.
    fn end_wait(&mut self, number: u64) -> Option<Waiting> {
        let conn = self.clients.get_mut(number)?;
        let Phase::Waiting(waiting) = std::mem::replace(&mut conn.phase, Phase::Head) else { return None };
        self.waiters.count(-1);
        self.waiters.withdraw(number, waiting.job);
        Some(*waiting)
    }

    /// The caller is answered, and the next request of its connection may begin.
    fn answer_wait(&mut self, number: u64, waiting: &Waiting, answer: Answer, now: Timestamp) {
        self.clients.answer(number, waiting.with_headers(answer), now);
        self.advance(number, now);
    }

    fn answer_finished(&mut self, number: u64, waiting: &Waiting, finished: &Finished, now: Timestamp) {
        let trace = self.clients.trace(number);
        self.answer_wait(number, waiting, Answer::finished(finished, trace.as_ref()), now);
    }

    /// The broker has taken the job, or not.
    pub(super) fn submitted(
        &mut self,
        ticket: Ticket,
        answer: Result<Submitted, BackendError>,
        now: Timestamp,
    ) {
        let Ticket { asker, job, trace } = ticket;
        let number = asker.conn;
        if answer == Ok(Submitted::New) {
            job_event(log::Level::Debug, "ingress.accepted", &trace, job).emit();
        }
        let asks_still = |phase: &Phase| match phase {
            Phase::Asked(asked) => asked.job == job,
            Phase::Waiting(waiting) => waiting.job == job && waiting.stage == Stage::Asked,
            _ => false,
        };
        match self.clients.of(asker).map(|conn| &conn.phase).filter(|phase| asks_still(phase)) {
            // Who asked has hung up meanwhile: the reply will be late, or the job goes along.
            None if answer == Ok(Submitted::New) => {
                self.waiters.left.insert(job, trace);
                self.abandon(job);
            }
            None => {}
            Some(Phase::Asked(_)) => self.async_submitted(number, job, answer, now),
            Some(_) => self.awaited_submitted(number, answer, now),
        }
    }

    fn async_submitted(
        &mut self,
        number: u64,
        job: JobId,
        answer: Result<Submitted, BackendError>,
        now: Timestamp,
    ) {
        let (id, status, is_replayed) = match answer {
            Ok(Submitted::New) => (job, "queued", false),
            Ok(Submitted::Existing(record)) => (record.spec.id, record.status.as_str(), true),
            Ok(Submitted::Refused(refusal)) => return self.refuse_job(number, refusal.code(), now),
            Err(error) => return self.unavailable(number, job, &error, now),
        };
        let mut answer = Answer::accepted(id, status);
        if is_replayed {
            answer.headers.push_str("idempotency-replayed: true\r\n");
        }
        let answer = answer.with("cofferdam-job-id", id).with("preference-applied", "respond-async");
        self.clients.answer(number, answer, now);
        self.advance(number, now);
    }

    fn awaited_submitted(&mut self, number: u64, answer: Result<Submitted, BackendError>, now: Timestamp) {
        match answer {
            Ok(Submitted::New) => {}
            Ok(Submitted::Existing(record)) => {
                let id = record.spec.id;
                let Some(waiting) = self.waiting(number) else { return };
                let own = std::mem::replace(&mut waiting.job, id);
                (waiting.is_replayed, waiting.ended) = (true, record.finished);
                self.waiters.withdraw(number, own);
                self.waiters.enter(number, id);
                // The end of another request's job may have been told before this one was entered.
                self.questions.push(Question::Ended(vec![id]));
            }
            Ok(Submitted::Refused(refusal)) => {
                self.end_wait(number);
                return self.refuse_job(number, refusal.code(), now);
            }
            Err(error) => {
                let Some(waiting) = self.end_wait(number) else { return };
                return self.unavailable(number, waiting.job, &error, now);
            }
        }
        self.is_accepted(number, now);
    }

    /// There is such a job: its end is waited for, unless it has come.
    fn is_accepted(&mut self, number: u64, now: Timestamp) {
        let Some(waiting) = self.waiting(number) else { return };
        waiting.stage = Stage::Accepted;
        let (until, job, kind) = (waiting.until, waiting.job, waiting.kind);
        match waiting.ended.take() {
            None => self.clients.set_deadline(number, until),
            Some(_) if kind == Kind::Record => self.look_at_record(number, job),
            Some(finished) => {
                let trace = self.clients.trace(number);
                trace.iter().for_each(|trace| said("reply.delivered", job, trace, ""));
                if let Some(waiting) = self.end_wait(number) {
                    self.answer_finished(number, &waiting, &finished, now);
                }
            }
        }
    }

    fn look_at_record(&mut self, number: u64, job: JobId) {
        if let Some(waiting) = self.waiting(number) {
            waiting.stage = Stage::Looking;
        }
        if let Some(conn) = self.clients.get_mut(number) {
            conn.deadline = Timestamp(u64::MAX);
        }
        self.ask_for_record(number, job, false);
    }

    fn refuse_job(&mut self, number: u64, code: Code, now: Timestamp) {
        self.clients.refuse(number, refused(code, "the job was not accepted"), now);
        self.advance(number, now);
    }

    /// Nothing is known of what became of the submission; its id is told, so that it can be asked for.
    fn unavailable(&mut self, number: u64, job: JobId, error: &BackendError, now: Timestamp) {
        event(log::Level::Warn, "ingress.rejected")
            .field("code", Code::BackendUnavailable.as_str())
            .field("cause", &error.0)
            .emit();
        let detail = "the backend cannot be reached; the job may have been accepted: ask by its id, or repeat the request \
                      with the same Idempotency-Key";
        let answer = Answer::refusal(Code::BackendUnavailable, detail, self.clients.trace(number).as_ref());
        self.clients.answer(number, answer.with("cofferdam-job-id", job), now);
        self.advance(number, now);
    }

    /// A job has ended: all who wait for it get their answers.
    pub(super) fn reply(&mut self, job: JobId, finished: &Arc<Finished>, now: Timestamp) {
        match self.waiters.take(job) {
            None => {}
            Some(Callers::One(number)) => self.tell_end(number, job, finished, now),
            Some(Callers::Many(all)) => {
                all.iter().for_each(|number| self.tell_end(*number, job, finished, now))
            }
        }
    }

    fn tell_end(&mut self, number: u64, job: JobId, finished: &Arc<Finished>, now: Timestamp) {
        let Some(conn) = self.clients.get_mut(number) else { return };
        let trace = conn.current.trace;
        match &mut conn.phase {
            // Its caller is told first that it was accepted.
            Phase::Waiting(waiting) if waiting.stage == Stage::Asked => {
                waiting.ended = Some(finished.clone());
                return;
            }
            Phase::Waiting(waiting) if waiting.kind == Kind::Record => {
                if waiting.stage == Stage::Accepted {
                    self.look_at_record(number, job);
                }
            }
            Phase::Waiting(_) => {
                if let Some(waiting) = self.end_wait(number) {
                    self.answer_finished(number, &waiting, finished, now);
                }
            }
            Phase::Streaming(batch) => {
                batch.finished(job, finished);
                self.feed_batch(number, now);
            }
            Phase::Head | Phase::Body(_) | Phase::Asked(_) | Phase::Inner | Phase::Closing => return,
        }
        said("reply.delivered", job, &trace, "");
    }

    /// A record is there: of a job that is to be waited for, or whose wait is over.
    pub(super) fn record_is_there(
        &mut self,
        asker: Asker,
        record: Result<Option<JobRecord>, BackendError>,
        now: Timestamp,
    ) {
        if self.clients.of(asker).is_none() {
            return;
        }
        let number = asker.conn;
        let Some(waiting) = self.waiting(number) else { return };
        match (waiting.stage, waiting.kind, record) {
            (Stage::Asked, _, Ok(Some(record))) if !record.status.is_terminal() => {
                self.is_accepted(number, now)
            }
            (Stage::Asked | Stage::Looking, Kind::Record, record) => self.show_record(number, record, now),
            (Stage::Asked | Stage::Looking, Kind::Result | Kind::ResultOrAccepted(_), record) => {
                self.time_is_up(number, record, now);
            }
            // Its end has been told meanwhile, or another look is under way.
            (Stage::Accepted, ..) => {}
        }
    }

    /// The record is the answer, as it stands now.
    fn show_record(&mut self, number: u64, record: Result<Option<JobRecord>, BackendError>, now: Timestamp) {
        let Some(waiting) = self.end_wait(number) else { return };
        match record {
            Err(_) => {
                let refused = refused(Code::BackendUnavailable, "the backend cannot be reached");
                self.clients.refuse(number, refused, now);
                self.advance(number, now);
            }
            Ok(None) => {
                self.clients.refuse(number, refused(Code::UnknownJob, "there is no job of this id"), now);
                self.advance(number, now);
            }
            Ok(Some(record)) => {
                if !record.status.is_terminal() {
                    self.wait_timed_out(number, waiting.job);
                }
                self.answer_wait(number, &waiting, Answer::json(200, record_json(&record)), now);
            }
        }
    }

    /// A caller's time is up: with the result, if the job has ended unheard; else with what is known.
    fn time_is_up(&mut self, number: u64, record: Result<Option<JobRecord>, BackendError>, now: Timestamp) {
        let Some(waiting) = self.end_wait(number) else { return };
        let record = record.ok().flatten();
        if let Some(finished) = record.as_ref().and_then(|record| record.finished.clone()) {
            return self.answer_finished(number, &waiting, &finished, now);
        }
        self.wait_timed_out(number, waiting.job);
        let answer = match waiting.kind {
            Kind::ResultOrAccepted(_) => {
                Answer::accepted(waiting.job, record.map_or("queued", |record| record.status.as_str()))
            }
            Kind::Result | Kind::Record => {
                let detail = "the job goes on; its record tells when it ends";
                Answer::refusal(Code::ReplyTimeout, detail, self.clients.trace(number).as_ref())
            }
        };
        self.answer_wait(number, &waiting, answer, now);
    }

    /// A wait has ended without its reply, which will be late.
    fn wait_timed_out(&mut self, number: u64, job: JobId) {
        self.waiters.counters.reply_timeouts.fetch_add(1, Ordering::Relaxed);
        if let Some(trace) = self.clients.trace(number) {
            if !self.waiters.by_job.contains_key(&job) {
                self.waiters.left.insert(job, trace);
            }
            said("reply.timed_out", job, &trace, "");
        }
    }

    /// The deadline has passed. The job may have ended unheard: its record is the truth.
    pub(super) fn wait_is_over(&mut self, number: u64) {
        if let Some(job) = self.waiting(number).map(|waiting| waiting.job) {
            self.look_at_record(number, job);
        }
    }

    /// A caller has hung up. The last one may take the job along.
    pub(super) fn waiter_hung_up(&mut self, number: u64, waiting: &Waiting) {
        self.waiters.counters.reply_cancelled.fetch_add(1, Ordering::Relaxed);
        self.waiters.count(-1);
        match self.clients.trace(number).filter(|_| waiting.stage != Stage::Asked) {
            Some(trace) => {
                if self.waiters.leave(number, waiting.job, trace) {
                    self.abandon(waiting.job);
                }
            }
            // What was asked for may be refused, or be another job: the answer tells.
            None => drop(self.waiters.withdraw(number, waiting.job)),
        }
    }

    /// The last caller of a job has hung up.
    pub(super) fn abandon(&mut self, job: JobId) {
        if !self.waiters.cancelling.is_empty() {
            self.questions.push(Question::Abandoned(job, self.waiters.cancelling.clone()));
        }
    }

    /// Some ends were lost: the records are the truth.
    pub(super) fn look_again(&mut self) {
        self.waiters.left.clear();
        if !self.waiters.by_job.is_empty() {
            self.questions.push(Question::Ended(self.waiters.by_job.keys().copied().collect()));
        }
    }

    /// Looks again for those that could not be looked for.
    pub(super) fn look_for_unsure(&mut self, now: Timestamp) {
        if now >= self.waiters.look_at {
            self.waiters.look_at = Timestamp(u64::MAX);
            let mut jobs = std::mem::take(&mut self.waiters.unsure);
            jobs.retain(|job| self.waiters.by_job.contains_key(job));
            self.questions.push(Question::Ended(jobs));
        }
    }

    /// The drain's deadline has passed: who still waits is told what becomes of the job.
    pub fn cut_off(&mut self, now: Timestamp) {
        let waits = self.clients.iter().filter(|(_, conn)| matches!(conn.phase, Phase::Waiting(_)));
        let numbers: Vec<u64> = waits.map(|(number, _)| number).collect();
        let detail = match self.settings.jobs_survive_processes {
            true => {
                "the service has stopped before the job ended; it goes on elsewhere, or when the service is back"
            }
            false => "the service has stopped before the job ended; jobs in memory are gone with it",
        };
        for number in numbers {
            let Some(waiting) = self.end_wait(number) else { continue };
            let answer = Answer::refusal(Code::Draining, detail, self.clients.trace(number).as_ref());
            self.clients.answer(number, waiting.with_headers(answer), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::config::{SinkMode, WebLimits};
    use crate::entropy::Entropy;
    use crate::handler::{HandlerOptions, HandlerSpec};
    use crate::job::InstanceId;
    use crate::observe::metrics::Counters;
    use crate::ports::Refusal;
    use crate::web::gate::Settings;
    use crate::web::questions::Answered;

    fn gate() -> Gate {
        let spec = HandlerSpec { name: Arc::from("x"), group: 0, options: HandlerOptions::default() };
        let limits = WebLimits {
            header_timeout_ms: 10_000,
            body_timeout_ms: 10_000,
            idle_timeout_ms: 10_000,
            write_timeout_ms: 10_000,
            header_bytes: 4_096,
            connections: 10,
            connections_per_ip: 10,
        };
        let settings = Settings {
            limits,
            max_inflight: 10,
            max_body: 1_024,
            max_batch: 1_024,
            allowed_hosts: Vec::new(),
            reply_timeout: Duration::from_secs(10),
            sink_mode: SinkMode::SourceSeq,
            handlers: HashMap::from([("x".to_owned(), spec)]),
            instance: InstanceId(1),
            jobs_survive_processes: false,
        };
        Gate::new(settings, Arc::new(Counters::default()), Entropy::Seeded(1))
    }

    fn ask(gate: &mut Gate, number: u64, request: &str) -> Question {
        gate.open(number, Timestamp(0));
        gate.received(number, request.as_bytes(), Timestamp(0));
        gate.take_questions().pop().expect("the broker is asked")
    }

    const SUBMIT: &str = "POST /v1/jobs/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx";

    /// Whatever is answered to a caller who has hung up meanwhile, nothing of it is kept.
    #[test]
    fn who_hangs_up_before_the_answer_leaves_nothing_behind() {
        let away = || Err(BackendError("away".into()));
        for refused in [Ok(Submitted::Refused(Refusal::QueueFull)), away()] {
            let mut gate = gate();
            let Question::Submit(ticket, _) = ask(&mut gate, 1, SUBMIT) else { panic!("it submits") };
            gate.close(1, Timestamp(1));
            gate.answered(Answered::Submitted(ticket, refused), Timestamp(2));
            assert_eq!(gate.waiters.len(), 0);
        }
        for answer in [Ok(None), Err(BackendError("away".into()))] {
            let mut gate = gate();
            let get = format!("GET /v1/jobs/{}?wait=5 HTTP/1.1\r\nHost: localhost\r\n\r\n", "0a".repeat(16));
            let Question::Record(asker, ..) = ask(&mut gate, 1, &get) else { panic!("it looks") };
            gate.close(1, Timestamp(1));
            gate.answered(Answered::Record(asker, answer), Timestamp(2));
            assert_eq!(gate.waiters.len(), 0);
        }
    }

    /// One that was accepted is remembered until its end, which is counted as late.
    #[test]
    fn who_hangs_up_before_the_reply_is_counted_with_it() {
        let mut gate = gate();
        let Question::Submit(ticket, _) = ask(&mut gate, 1, SUBMIT) else { panic!("it submits") };
        gate.close(1, Timestamp(1));
        gate.answered(Answered::Submitted(ticket, Ok(Submitted::New)), Timestamp(2));
        assert_eq!(gate.waiters.len(), 1);
        let status = crate::job::JobStatus::Succeeded;
        let finished = Arc::new(Finished { status, result: Ok(Payload::json(*b"1")) });
        gate.reply(ticket.job, &finished, Timestamp(3));
        assert_eq!(gate.waiters.len(), 0);
        assert_eq!(gate.clients.counters.reply_late.load(Ordering::Relaxed), 1);
    }

    /// An end that is heard before the answer to the submission waits for it; both come out once.
    #[test]
    fn an_end_that_comes_first_is_answered_with_the_acceptance() {
        let mut gate = gate();
        let Question::Submit(ticket, _) = ask(&mut gate, 1, SUBMIT) else { panic!("it submits") };
        let status = crate::job::JobStatus::Succeeded;
        let finished = Arc::new(Finished { status, result: Ok(Payload::json(*b"17")) });
        gate.reply(ticket.job, &finished, Timestamp(1));
        assert!(gate.unsent(1).is_empty());
        gate.answered(Answered::Submitted(ticket, Ok(Submitted::New)), Timestamp(2));
        let answer = String::from_utf8_lossy(gate.unsent(1)).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n17"), "{answer}");
        assert_eq!(gate.waiters.len(), 0);
    }
}
