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

use super::clients::{NEVER, Phase};
use super::gate::Gate;
use super::http1::{Head, refused};
use super::questions::{Asker, Question, Single, Ticket};
use super::respond::{Answer, record_json};
use super::routes::{Inner, OfJob, parameter};
use super::submission;
use super::waiters::{Kind, Late, Stage, TOO_MANY_WAITERS, Waiting, said};
use crate::job::{Finished, JobId, JobRecord, Trace};
use crate::observe::job_event;
use crate::ports::{BackendError, Reached, Refusal, Submitted};
use crate::problem::Code;

impl Gate {
    pub(super) fn submit(&mut self, number: usize, head: &Head, name: &str, body: Arc<[u8]>) {
        let Some(spec) = self.settings.handlers.get(name) else { return };
        let Some(conn) = self.clients.conns.get(&number) else { return };
        let (id, asker) = (JobId(self.entropy.bytes()), conn.asker);
        let trace = conn.current.trace.of_job(self.settings.exports_traces, &mut self.entropy);
        let owner = conn.current.caller.viewer.name.clone();
        let traced = (trace, conn.current.tracestate.clone());
        let (kind, job) = match submission::read(head, spec, body, id, traced, owner, self.settings.instance)
        {
            Ok(read) => read,
            Err(refused) => return self.clients.refuse(number, refused),
        };
        let most = self.settings.reply_timeout;
        let (kind, wait) = match kind {
            Kind::ResultOrAccepted { seconds, respond_async } => {
                let wait = Duration::from_secs(seconds).min(most);
                (Kind::ResultOrAccepted { seconds: wait.as_secs(), respond_async }, wait)
            }
            Kind::Acceptance | Kind::Result | Kind::Record => (kind, most),
        };
        let handler = job.handler.clone();
        if self.begin_asking(number, id, handler.clone(), kind, wait) {
            let single = Some(Single { job: id, trace, handler });
            self.questions.push(Question::Submit(Ticket { asker, single }, vec![job]));
        }
    }

    pub(super) fn wait_for_record(&mut self, number: usize, head: &Head, job: JobId) {
        let Some(seconds) = parameter(head.query(), "wait").and_then(submission::seconds) else {
            return self.clients.refuse(number, refused(Code::BadRequest, "wait takes whole seconds"));
        };
        let wait = Duration::from_secs(seconds).min(self.settings.reply_timeout);
        if wait.is_zero() {
            return self.ask_pages(
                number,
                Inner::Job(job, OfJob::Record),
                "GET",
                format!("/v1/jobs/{job}"),
                [].into(),
            );
        }
        if self.begin_asking(number, job, Arc::default(), Kind::Record, wait) {
            self.ask_for_record(number, Stage::Asked);
        }
    }

    /// The request waits for the broker's answer. A caller who will wait for the job is entered at once: elsewhere
    /// it may have ended before the answer is here. False: it was refused.
    fn begin_asking(
        &mut self,
        number: usize,
        job: JobId,
        handler: Arc<str>,
        kind: Kind,
        wait: Duration,
    ) -> bool {
        let is_counted = kind != Kind::Acceptance;
        let Some(conn) = self.clients.conns.get_mut(&number) else { return false };
        let (most, now) = (self.settings.web.max_inflight, self.clients.now);
        if is_counted && !self.waiters.admits(&conn.current.caller, most, now) {
            self.clients.refuse(number, TOO_MANY_WAITERS);
            return false;
        }
        let owner = conn.current.caller.viewer.name.clone();
        if is_counted {
            self.waiters.enter(number, job, kind.takes_along());
            self.waiters.count(&owner, 1);
        }
        // The backend's own time-outs end this.
        conn.deadline = NEVER;
        let until = self.clients.now.plus(wait);
        let (stage, ended, is_replayed) = (Stage::Asked, None, false);
        let waiting = Waiting { job, owner, is_counted, handler, kind, stage, until, ended, is_replayed };
        conn.phase = Phase::Waiting(Box::new(waiting));
        true
    }

    /// Asks for the record of the job that is waited for: whether there is one, or, at the end, to look at it.
    pub(super) fn ask_for_record(&mut self, number: usize, stage: Stage) {
        let Some(conn) = self.clients.conns.get_mut(&number) else { return };
        let Phase::Waiting(waiting) = &mut conn.phase else { return };
        waiting.stage = stage;
        conn.deadline = NEVER;
        let watches = (stage == Stage::Asked).then_some(self.settings.instance);
        // Whoever submitted the job may know how it ended, whatever else its token lets it look at.
        let viewer = conn.current.caller.viewer.clone();
        self.questions.push(Question::Record(conn.asker, viewer, waiting.job, watches));
    }

    /// The caller whose request asked, while it waits.
    fn waiting(&mut self, asker: Asker) -> Option<&mut Waiting> {
        match &mut self.clients.of(asker)?.phase {
            Phase::Waiting(waiting) => Some(waiting),
            _ => None,
        }
    }

    /// Takes a caller out, to be answered.
    fn end_wait(&mut self, number: usize, end: End) -> Option<(Waiting, Trace)> {
        let conn = self.clients.conns.get_mut(&number)?;
        let Phase::Waiting(waiting) = std::mem::replace(&mut conn.phase, Phase::Head) else { return None };
        let trace = conn.current.trace;
        // One that is not counted has been told of as gone.
        let late = (end == End::TimedOut && waiting.is_counted).then(|| (trace, waiting.handler.clone()));
        let is_late = late.is_some();
        if waiting.is_counted {
            self.waiters.count(&waiting.owner, -1);
            self.waiters.withdraw(number, waiting.job, late);
        } else {
            self.waiters.forget_half_closed(number, waiting.job);
        }
        if is_late {
            self.waiters.counters.reply_timeouts.fetch_add(1, Ordering::Relaxed);
            said("reply.timed_out", waiting.job, &trace, &waiting.handler, "");
        }
        Some((*waiting, trace))
    }

    fn answer_finished(&mut self, number: usize, finished: &Finished) {
        let Some((waiting, trace)) = self.end_wait(number, End::Answered) else { return };
        self.clients.answer(number, &waiting.with_headers(Answer::finished(finished, &trace)));
    }

    /// The broker has taken the job, or not.
    pub(super) fn submitted(&mut self, asker: Asker, single: &Single, answers: Reached<Vec<Submitted>>) {
        let (number, Single { job, trace, handler }) = (asker.conn, single);
        let job = *job;
        let no_answer = || BackendError("the broker gave no answer".into());
        let answer = answers.and_then(|mut answers| answers.pop().ok_or_else(no_answer));
        let is_new = answer == Ok(Submitted::New);
        if is_new {
            // Its span is exported, where it has one; the request's own is not.
            self.clients.of(asker).into_iter().for_each(|conn| conn.current.trace = *trace);
            job_event(log::Level::Debug, "ingress.accepted", trace, job, handler).emit();
        }
        let asks_still = |waiting: &&mut Waiting| waiting.job == job && waiting.stage == Stage::Asked;
        let Some(waiting) = self.waiting(asker).filter(asks_still) else {
            // Who asked has hung up meanwhile: the reply will be late, or the job goes along.
            if is_new {
                self.waiters.left.insert(job, (*trace, handler.clone()));
                self.abandon(job);
            }
            return;
        };
        let is_awaited = waiting.is_counted;
        let status = match answer {
            Ok(Submitted::New) => "queued",
            Ok(Submitted::Existing(record)) => {
                let id = record.spec.id;
                (waiting.job, waiting.is_replayed, waiting.ended) = (id, true, record.finished);
                if is_awaited {
                    self.waiters.withdraw(number, job, None);
                    self.waiters.enter(number, id, true);
                    // The end of another request's job may have been told before this one was entered.
                    self.questions.push(Question::Ended(vec![id]));
                }
                record.status.as_str()
            }
            Ok(Submitted::Refused(refusal)) => {
                let (named, detail) = match refusal {
                    Refusal::ResultGone(job) => (
                        Some(job),
                        "the job of this Idempotency-Key has ended and its result is gone; it does not run again",
                    ),
                    Refusal::IdempotencyMismatch(job) => (
                        job,
                        "the key belongs to another payload, that of an earlier job; this one was not accepted",
                    ),
                    Refusal::UnknownHandler | Refusal::QueueFull => (None, "the job was not accepted"),
                    Refusal::DiskFull => {
                        (None, "the job was not accepted: the disk that jobs are kept on is full")
                    }
                };
                self.end_wait(number, End::Answered);
                return self.clients.refuse_about(number, refused(refusal.code(), detail), named);
            }
            Err(error) => {
                let code = Code::BackendUnavailable;
                let rejected = job_event(log::Level::Warn, "ingress.rejected", trace, job, handler);
                rejected.field("code", code.as_str()).field("cause", &error.0).emit();
                self.end_wait(number, End::Answered);
                // Nothing is known of what became of the submission; its id is told, so that it can be asked for.
                let detail = "the backend cannot be reached; the job may have been accepted: ask by its id, or repeat the \
                              request with the same Idempotency-Key";
                let answer = Answer::refusal(code, detail, trace).with("cofferdam-job-id", job.to_string());
                return self.clients.answer(number, &answer);
            }
        };
        if is_awaited {
            self.is_accepted(number);
        } else if let Some((waiting, _)) = self.end_wait(number, End::Answered) {
            self.clients.answer(number, &waiting.with_headers(Answer::accepted(waiting.job, status)));
        }
    }

    /// There is such a job: its end is waited for, unless it has come.
    fn is_accepted(&mut self, number: usize) {
        let Some(conn) = self.clients.conns.get_mut(&number) else { return };
        let Phase::Waiting(waiting) = &mut conn.phase else { return };
        waiting.stage = Stage::Accepted;
        let until = waiting.until;
        let has_left = conn.has_left;
        match waiting.ended.take() {
            None => {
                self.clients.set_deadline(number, until);
                if has_left {
                    self.count_out(number);
                }
            }
            Some(_) if waiting.kind == Kind::Record => self.ask_for_record(number, Stage::Looking),
            Some(finished) => {
                said("reply.delivered", waiting.job, &conn.current.trace, &waiting.handler, "");
                self.answer_finished(number, &finished);
            }
        }
    }

    /// A job has ended: all who wait for it get their answers.
    pub(super) fn reply(&mut self, job: JobId, finished: &Arc<Finished>) {
        for number in self.waiters.take(job) {
            self.tell_end(number, job, finished);
        }
    }

    fn tell_end(&mut self, number: usize, job: JobId, finished: &Arc<Finished>) {
        let Some(conn) = self.clients.conns.get_mut(&number) else { return };
        let told = |handler: &Arc<str>| said("reply.delivered", job, &conn.current.trace, handler, "");
        match &mut conn.phase {
            // Its caller is told first that it was accepted.
            Phase::Waiting(waiting) if waiting.stage == Stage::Asked => {
                waiting.ended = Some(finished.clone())
            }
            Phase::Waiting(waiting) => {
                told(&waiting.handler);
                match (waiting.kind, waiting.stage) {
                    (Kind::Record, Stage::Accepted) => self.ask_for_record(number, Stage::Looking),
                    (Kind::Record, Stage::Asked | Stage::Looking) => {}
                    (Kind::Acceptance | Kind::Result | Kind::ResultOrAccepted { .. }, _) => {
                        self.answer_finished(number, finished);
                    }
                }
            }
            Phase::Streaming(batch) => {
                told(batch.pump.handler());
                batch.pump.finished(job, finished);
                self.feed_batch(number);
            }
            Phase::Head | Phase::Body(_) | Phase::Inner | Phase::Listening(_) | Phase::Closing => {}
        }
    }

    /// A record is there: of a job that is to be waited for, or whose wait is over.
    pub(super) fn record_is_there(&mut self, asker: Asker, record: Reached<Option<JobRecord>>) {
        let number = asker.conn;
        let Some(waiting) = self.waiting(asker) else { return };
        if let Ok(Some(record)) = &record {
            waiting.handler.clone_from(&record.spec.handler);
        }
        let goes_on = matches!(&record, Ok(Some(record)) if !record.status.is_terminal());
        match (waiting.stage, waiting.kind) {
            // Its end has been told meanwhile, or another look is under way.
            (Stage::Accepted, _) => {}
            (Stage::Asked, _) if goes_on => self.is_accepted(number),
            (Stage::Asked | Stage::Looking, Kind::Record) => self.show_record(number, record),
            (
                Stage::Asked | Stage::Looking,
                Kind::Acceptance | Kind::Result | Kind::ResultOrAccepted { .. },
            ) => self.time_is_up(number, record),
        }
    }

    /// The record is the answer, as it stands now.
    fn show_record(&mut self, number: usize, record: Reached<Option<JobRecord>>) {
        let goes_on = matches!(&record, Ok(Some(record)) if !record.status.is_terminal());
        let end = if goes_on { End::TimedOut } else { End::Answered };
        let Some((waiting, trace)) = self.end_wait(number, end) else { return };
        let answer = match record {
            Ok(Some(record)) => Answer::json(200, record_json(&record)),
            Ok(None) => {
                let refused = refused(Code::UnknownJob, "there is no job of this id");
                return self.clients.refuse(number, refused);
            }
            Err(_) => Answer::refusal(Code::BackendUnavailable, "the backend cannot be reached", &trace),
        };
        self.clients.answer(number, &waiting.with_headers(answer));
    }

    /// A caller's time is up: with the result, if the job has ended unheard; else with what is known.
    fn time_is_up(&mut self, number: usize, record: Reached<Option<JobRecord>>) {
        if let Ok(Some(JobRecord { finished: Some(finished), .. })) = &record {
            return self.answer_finished(number, finished);
        }
        let Some((waiting, trace)) = self.end_wait(number, End::TimedOut) else { return };
        let answer = match (waiting.kind, record) {
            (Kind::ResultOrAccepted { .. }, record) => {
                let record = record.ok().flatten();
                Answer::accepted(waiting.job, record.map_or("queued", |record| record.status.as_str()))
            }
            (Kind::Acceptance | Kind::Result | Kind::Record, record) => {
                let detail = match record {
                    Ok(Some(_)) => {
                        "the job was accepted and goes on: ask by its id, or repeat with the same key"
                    }
                    Ok(None) => "the job was accepted, and there is no record of it any more",
                    Err(_) => {
                        "the job was accepted; what became of it cannot be found out now: ask by its id"
                    }
                };
                Answer::refusal(Code::ReplyTimeout, detail, &trace)
            }
        };
        self.clients.answer(number, &waiting.with_headers(answer));
    }

    /// A caller has closed its side. It is a waiter no longer, and told the end of its job if it can still be told. Where that
    /// cancels the job, it is gone. Nothing is done before it is known what it waits for.
    pub(super) fn count_out(&mut self, number: usize) {
        let Some(conn) = self.clients.conns.get_mut(&number) else { return };
        let cancelling = self.waiters.cancelling.clone();
        match &mut conn.phase {
            Phase::Waiting(waiting) if waiting.is_counted && waiting.stage == Stage::Accepted => {
                if waiting.kind.takes_along() && cancelling.contains(&waiting.handler) {
                    return self.hung_up(number);
                }
                let job = waiting.job;
                if !self.waiters.half_close(number, job, &conn.current.caller, self.settings.web.max_inflight)
                {
                    return self.hung_up(number);
                }
                waiting.is_counted = false;
                let owner = waiting.owner.clone();
                let late = (conn.current.trace, waiting.handler.clone());
                self.leave(number, job, &owner, Some(late));
            }
            Phase::Streaming(batch) if cancelling.contains(batch.pump.handler()) => self.hung_up(number),
            // Most likely it is gone: its place is another's.
            Phase::Listening(_) => self.hung_up(number),
            Phase::Head
            | Phase::Body(_)
            | Phase::Waiting(_)
            | Phase::Inner
            | Phase::Streaming(_)
            | Phase::Closing => {}
        }
    }

    /// A caller has hung up. The last one may take the job along.
    pub(super) fn waiter_hung_up(&mut self, number: usize, waiting: &Waiting, trace: Trace) {
        if !waiting.is_counted {
            return self.waiters.forget_half_closed(number, waiting.job);
        }
        // Of a job that was asked for nothing is known: it may be refused, or be another one. The answer tells.
        let late = (waiting.stage != Stage::Asked).then(|| (trace, waiting.handler.clone()));
        self.leave(number, waiting.job, &waiting.owner, late);
    }

    /// A caller waits no longer; `late`: its job was accepted, and its reply will be late.
    fn leave(&mut self, number: usize, job: JobId, owner: &Arc<str>, late: Option<Late>) {
        self.waiters.counters.reply_cancelled.fetch_add(1, Ordering::Relaxed);
        self.waiters.count(owner, -1);
        let is_accepted = late.is_some();
        if self.waiters.withdraw(number, job, late) && is_accepted {
            self.abandon(job);
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
    pub(super) fn look_for_unsure(&mut self) {
        self.waiters.look_at = None;
        let mut jobs = std::mem::take(&mut self.waiters.unsure);
        jobs.retain(|job| self.waiters.by_job.contains_key(job));
        self.questions.push(Question::Ended(jobs));
    }

    /// The drain's deadline has passed: who still waits is told what becomes of the job.
    pub fn cut_off(&mut self) {
        let fate = match self.settings.jobs_survive_processes {
            true => "it goes on elsewhere, or when the service is back",
            false => "jobs in memory are gone with it",
        };
        for number in self.clients.in_phase(|phase| matches!(phase, Phase::Waiting(_))) {
            let Some((waiting, trace)) = self.end_wait(number, End::Answered) else { continue };
            let before = match (waiting.stage, waiting.kind) {
                (Stage::Asked, Kind::Acceptance | Kind::Result | Kind::ResultOrAccepted { .. }) => {
                    "it was known if the job was accepted; if so,"
                }
                (Stage::Asked, Kind::Record) | (Stage::Accepted | Stage::Looking, _) => "the job ended;",
            };
            let detail = format!("the service has stopped before {before} {fate}");
            let answer = Answer::refusal(Code::Draining, &detail, &trace);
            self.clients.answer(number, &waiting.with_headers(answer));
        }
    }
}

/// How a wait has ended.
#[derive(PartialEq, Eq)]
enum End {
    Answered,
    /// Without its reply, which will be late.
    TimedOut,
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::clock::Timestamp;
    use crate::config::{Config, SinkMode};
    use crate::entropy::Entropy;
    use crate::handler::{HandlerOptions, HandlerSpec};
    use crate::job::{InstanceId, Payload};
    use crate::observe::metrics::Counters;
    use crate::ports::Refusal;
    use crate::web::gate::Settings;
    use crate::web::questions::Answered;

    fn gate() -> Gate {
        let spec = HandlerSpec::new("x", 0, HandlerOptions::default());
        let mut web = Config::default().web;
        (web.max_inflight, web.limits.connections) = (10, 10);
        web.limits.header_timeout_ms = 10_000;
        let settings = Settings {
            web,
            reply_timeout: Duration::from_secs(10),
            sink_mode: SinkMode::SourceSeq,
            handlers: HashMap::from([("x".to_owned(), spec)]),
            instance: InstanceId(1),
            exports_traces: false,
            jobs_survive_processes: false,
        };
        Gate::new(settings, Vec::new(), Arc::new(Counters::default()), Entropy::Seeded(1))
    }

    fn ask(gate: &mut Gate, number: usize, request: &str) -> Question {
        gate.open(number, [127, 0, 0, 1].into());
        gate.received(number, request.as_bytes());
        gate.take_questions().pop().expect("the broker is asked")
    }

    fn job(ticket: Ticket) -> JobId {
        ticket.single.expect("it is a single job").job
    }

    const SUBMIT: &str = "POST /v1/jobs/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx";

    /// Whatever is answered to a caller who has hung up meanwhile, nothing of it is kept.
    #[test]
    fn who_hangs_up_before_the_answer_leaves_nothing_behind() {
        let away = || Err(BackendError("away".into()));
        for refused in [Ok(vec![Submitted::Refused(Refusal::QueueFull)]), away()] {
            let mut gate = gate();
            let Question::Submit(ticket, _) = ask(&mut gate, 1, SUBMIT) else { panic!("it submits") };
            gate.close(1);
            gate.answered(Answered::Submitted(ticket, refused));
            assert_eq!(gate.waiters.len(), 0);
        }
        for answer in [Ok(None), Err(BackendError("away".into()))] {
            let mut gate = gate();
            let get = format!("GET /v1/jobs/{}?wait=5 HTTP/1.1\r\nHost: localhost\r\n\r\n", "0a".repeat(16));
            let Question::Record(asker, ..) = ask(&mut gate, 1, &get) else { panic!("it looks") };
            gate.close(1);
            gate.answered(Answered::Record(asker, answer));
            assert_eq!(gate.waiters.len(), 0);
        }
    }

    /// One that was accepted is remembered until its end, which is counted as late.
    #[test]
    fn who_hangs_up_before_the_reply_is_counted_with_it() {
        let mut gate = gate();
        let Question::Submit(ticket, _) = ask(&mut gate, 1, SUBMIT) else { panic!("it submits") };
        gate.close(1);
        gate.answered(Answered::Submitted(ticket.clone(), Ok(vec![Submitted::New])));
        assert_eq!(gate.waiters.len(), 1);
        let status = crate::job::JobStatus::Succeeded;
        let finished = Arc::new(Finished { status, result: Ok(Payload::json(*b"1")) });
        gate.reply(job(ticket), &finished);
        assert_eq!(gate.waiters.len(), 0);
        assert_eq!(gate.clients.counters.reply_late.load(Ordering::Relaxed), 1);
    }

    /// Nobody lingers for a client that has read its last answer and left.
    #[test]
    fn who_closes_after_the_last_answer_is_let_go_at_once() {
        let mut gate = gate();
        gate.open(1, [127, 0, 0, 1].into());
        gate.received(1, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = gate.unsent(1).len();
        assert!(answer > 0);
        gate.flushed(1, answer);
        assert!(gate.is_finished(1) && !gate.is_over(1), "it may still be read");
        gate.clients.touched.clear();
        gate.ended(1);
        assert!(gate.is_over(1) && gate.clients.touched == [1]);
    }

    /// Whatever can be said of it, the id of a job that was or may have been accepted is told, and so is what is known.
    #[test]
    fn answers_that_leave_a_job_in_doubt_name_it_and_say_so() {
        let assert_told = |gate: &Gate, status: &str, job: JobId, words: &str| {
            let answer = String::from_utf8_lossy(gate.unsent(1)).into_owned();
            let id = format!("\r\ncofferdam-job-id: {job}\r\n");
            assert!(answer.starts_with(status) && answer.contains(&id) && answer.contains(words), "{answer}");
        };
        let away = || BackendError("away".into());
        for (record, words) in
            [(Ok(None), "no record of it any more"), (Err(away()), "cannot be found out now")]
        {
            let mut gate = gate();
            let Question::Submit(ticket, _) = ask(&mut gate, 1, SUBMIT) else { panic!("it submits") };
            gate.answered(Answered::Submitted(ticket.clone(), Ok(vec![Submitted::New])));
            gate.begin_turn(Timestamp(11_000_000));
            gate.tick();
            let Some(Question::Record(asker, ..)) = gate.take_questions().pop() else { panic!("it looks") };
            gate.answered(Answered::Record(asker, record));
            assert_told(&gate, "HTTP/1.1 504 ", job(ticket), words);
        }
        for prefer in ["", "Prefer: respond-async\r\n", "Prefer: wait=9\r\n"] {
            let submit = SUBMIT.replace("Content-Length", &format!("{prefer}Content-Length"));
            let mut away_gate = gate();
            let Question::Submit(ticket, _) = ask(&mut away_gate, 1, &submit) else { panic!("it submits") };
            away_gate.answered(Answered::Submitted(ticket.clone(), Err(away())));
            assert_told(&away_gate, "HTTP/1.1 503 ", job(ticket), "may have been accepted");
            let mut gate = gate();
            let Question::Submit(ticket, _) = ask(&mut gate, 1, &submit) else { panic!("it submits") };
            gate.drain();
            gate.cut_off();
            assert_told(&gate, "HTTP/1.1 503 ", job(ticket), "before it was known if the job was accepted");
        }
    }

    /// An end that is heard before the answer to the submission waits for it; both come out once.
    #[test]
    fn an_end_that_comes_first_is_answered_with_the_acceptance() {
        let mut gate = gate();
        let Question::Submit(ticket, _) = ask(&mut gate, 1, SUBMIT) else { panic!("it submits") };
        let status = crate::job::JobStatus::Succeeded;
        let finished = Arc::new(Finished { status, result: Ok(Payload::json(*b"17")) });
        gate.reply(job(ticket.clone()), &finished);
        assert!(gate.unsent(1).is_empty());
        gate.answered(Answered::Submitted(ticket, Ok(vec![Submitted::New])));
        let answer = String::from_utf8_lossy(gate.unsent(1)).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n17"), "{answer}");
        assert_eq!(gate.waiters.len(), 0);
    }
}
