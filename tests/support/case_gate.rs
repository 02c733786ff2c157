//! Cases of HTTP said to the gate alone, with a clock of its own: an hour takes as long as its events.
//!
//! It guards the gate's deadlines, which are met to the microsecond here. Jobs are done by a broker that runs `echo` at
//! once and `sleep` as long as it says; pages are not there, so cases that ask for one are left out.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cofferdam::clock::Timestamp;
use cofferdam::config::tokens::Token;
use cofferdam::config::{Config, SinkMode, Web};
use cofferdam::entropy::Entropy;
use cofferdam::handler::{HandlerOptions, HandlerSpec};
use cofferdam::job::{Finished, InstanceId, JobId, JobStatus};
use cofferdam::observe::metrics::Counters;
use cofferdam::ports::{Ends, JobEnded, NewJob, Refusal, Submitted};
use cofferdam::web::calls::answer;
use cofferdam::web::gate::{Gate, Settings};
use cofferdam::web::questions::{Answered, Question};
use cofferdam::web::respond::Answer;

use submits::Submits;

use super::cases::{Case, End, PROBE, Step, Talk};

#[path = "submits.rs"]
mod submits;

const START: Timestamp = Timestamp(1_700_000_000_000_000);
/// A deadline that has not come by then never will.
const PATIENCE: Duration = Duration::from_secs(600);

/// The gate with its clock, its broker, and the time that has come.
pub struct Side {
    pub gate: Gate,
    pub now: Timestamp,
    book: Book,
    asked_for_page: bool,
}

impl Side {
    pub fn new(web: Web, tokens: Vec<Token>) -> Side {
        let spec = |name: &str| (name.to_owned(), HandlerSpec::new(name, 0, HandlerOptions::default()));
        let settings = Settings {
            web,
            reply_timeout: Duration::from_secs(30),
            sink_mode: SinkMode::SourceSeq,
            handlers: HashMap::from([spec("echo"), spec("sleep")]),
            instance: InstanceId(1),
            exports_traces: false,
            jobs_survive_processes: false,
        };
        let mut gate = Gate::new(settings, tokens, Arc::new(Counters::default()), Entropy::Seeded(1));
        gate.begin_turn(START);
        Side { gate, now: START, book: Book::default(), asked_for_page: false }
    }

    pub fn open(&mut self, number: usize) {
        self.gate.open(number, [127, 0, 0, 1].into());
    }

    /// Time passes, and what is due in it happens at its moment; `each` is called after every one.
    pub fn advance(&mut self, by: Duration, mut each: impl FnMut(&mut Side)) {
        let until = self.now.plus(by);
        loop {
            let due = self.gate.next_due().min(self.book.next_end(self.now));
            let is_last = due > until;
            // Something that is due again and again at one moment must not stop the clock.
            let soonest = Timestamp(self.now.0 + 1);
            self.now = if is_last { until } else { due.max(soonest).min(until) };
            self.gate.begin_turn(self.now);
            self.gate.tick();
            self.settle();
            each(self);
            if is_last || self.now >= until {
                return;
            }
        }
    }

    /// Questions are answered and ends told, until there are none.
    pub fn settle(&mut self) {
        loop {
            let questions = self.gate.take_questions();
            let ended = self.book.take_ended(self.now);
            if questions.is_empty() && ended.is_empty() {
                return;
            }
            for question in questions {
                let answered = match question {
                    Question::Page(request) => {
                        self.asked_for_page = true;
                        let page = Answer::new(200, "text/plain", request.target.into_bytes());
                        Some(Answered::Page(request.asker, page))
                    }
                    other => {
                        let book = self.book.at(self.now);
                        answer(other, Ok(&Submits(|job| book.accept(job))))
                    }
                };
                answered.into_iter().for_each(|answered| self.gate.answered(answered));
            }
            self.gate.deliver(Ends { ended, lost: false });
        }
    }

    /// The client takes at most so many bytes of what there is.
    pub fn take(&mut self, number: usize, most: usize) -> Vec<u8> {
        let unsent = self.gate.unsent(number);
        let taken = unsent[..unsent.len().min(most)].to_vec();
        if !taken.is_empty() {
            self.gate.flushed(number, taken.len());
            self.settle();
        }
        taken
    }

    /// The client sees the end of the connection.
    pub fn is_closed(&self, number: usize) -> bool {
        self.gate.is_finished(number) || self.gate.is_over(number)
    }
}

/// Says a case in pieces of at most so many bytes; `None` if it asks for a page.
pub fn converse(case: &Case, web: &Web, tokens: &[Token], piece: usize) -> Option<Talk> {
    const NUMBER: usize = 1;
    let mut side = Side::new(web.clone(), tokens.to_vec());
    let mut talk = Talk::default();
    side.open(NUMBER);
    let look = |side: &mut Side, talk: &mut Talk| {
        let at = side.now.since(START);
        if at < case.unread || talk.closed.is_some() {
            return;
        }
        loop {
            let part = side.take(NUMBER, usize::MAX);
            if part.is_empty() {
                break;
            }
            talk.first.get_or_insert(at);
            talk.said.extend(part);
        }
        if side.is_closed(NUMBER) {
            talk.closed = Some(at);
        }
    };
    let send = |side: &mut Side, talk: &mut Talk, bytes: &[u8]| {
        let (mut at, mut waited) = (0, Duration::ZERO);
        while at < bytes.len() && talk.closed.is_none() && waited < PATIENCE {
            let room = side.gate.readable_bytes(NUMBER).min(piece).min(bytes.len() - at);
            if room == 0 {
                let while_full = Duration::from_millis(1);
                waited += while_full;
                side.advance(while_full, |side| look(side, talk));
                continue;
            }
            side.gate.received(NUMBER, &bytes[at..at + room]);
            at += room;
            side.settle();
            look(side, talk);
        }
    };
    for step in &case.steps {
        match step {
            Step::Send(bytes) => send(&mut side, &mut talk, bytes),
            Step::Wait(pause) => side.advance(*pause, |side| look(side, &mut talk)),
            // The gate has said already what it says to that.
            Step::Listen => {}
            Step::Shut => {
                side.gate.ended(NUMBER);
                side.settle();
                look(&mut side, &mut talk);
            }
        }
    }
    let is_answered = |talk: &Talk| case.expect.is_empty() || case.is_answered(&talk.said, true);
    let mut waited = Duration::ZERO;
    while talk.closed.is_none() && waited < PATIENCE && (case.end == End::Closed || !is_answered(&talk)) {
        let next = Duration::from_millis(1);
        waited += next;
        side.advance(next, |side| look(side, &mut talk));
    }
    if case.end == End::Open {
        send(&mut side, &mut talk, PROBE);
    }
    side.gate.close(NUMBER);
    side.settle();
    (!side.asked_for_page).then_some(talk)
}

/// The configuration of a group's service, as the gate takes it.
pub fn web(is_slow: bool, has_tokens: bool) -> Web {
    let mut web = Config::default().web;
    web.allowed_hosts = vec!["jobs.example".into()];
    (web.max_body_bytes, web.max_batch_bytes) = (65_536, 131_072);
    if is_slow {
        (web.limits.header_timeout_ms, web.limits.body_timeout_ms) = (600, 900);
        web.limits.idle_timeout_ms = 1_200;
    }
    if has_tokens {
        web.auth.mode = "bearer".into();
        web.trusted_proxies = vec![[127, 0, 0, 1].into()];
    }
    web
}

/// A broker that runs what it is given by itself, and knows the keys of one connection.
#[derive(Default)]
struct Book(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    now: Timestamp,
    ends: Vec<(Timestamp, JobEnded)>,
    keys: HashMap<String, ([u8; 32], JobId)>,
}

impl Book {
    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self, now: Timestamp) -> &Book {
        self.lock().now = now;
        self
    }

    /// When a job ends next.
    fn next_end(&self, now: Timestamp) -> Timestamp {
        let next = self.lock().ends.iter().map(|(at, _)| *at).min();
        next.map_or(Timestamp(u64::MAX), |at| Timestamp(at.0.max(now.0)))
    }

    fn take_ended(&self, now: Timestamp) -> Vec<JobEnded> {
        let mut book = self.lock();
        let (ended, later) = std::mem::take(&mut book.ends).into_iter().partition(|(at, _)| *at <= now);
        book.ends = later;
        let ended: Vec<(Timestamp, JobEnded)> = ended;
        ended.into_iter().map(|(_, ended)| ended).collect()
    }

    /// What becomes of a job.
    fn accept(&self, job: NewJob) -> Submitted {
        let mut book = self.lock();
        if let Some(idempotency) = job.idempotency {
            let first = (idempotency.fingerprint, job.id);
            let (fingerprint, id) = *book.keys.entry(idempotency.key.to_string()).or_insert(first);
            if fingerprint != first.0 {
                return Submitted::Refused(Refusal::IdempotencyMismatch(Some(id)));
            }
        }
        let text = String::from_utf8_lossy(&job.payload.bytes).into_owned();
        let millis =
            text.split_once(r#""ms":"#).and_then(|(_, rest)| rest.trim_end_matches('}').parse().ok());
        let millis = millis.filter(|_| &*job.handler == "sleep").unwrap_or(0);
        let finished = Finished { status: JobStatus::Succeeded, result: Ok(job.payload) };
        let at = book.now.plus(Duration::from_millis(millis));
        book.ends.push((at, JobEnded { job: job.id, finished: Arc::new(finished) }));
        Submitted::New
    }
}
