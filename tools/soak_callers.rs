//! Callers in closed loops: each asks, checks what comes back against what it asked, and asks again.
//!
//! Well-behaved and other ones: some hang up, cancel, ask twice under one key, or send a byte now and then. The
//! dawdlers never finish their request, and must be closed for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::service::{Answer, Client, NoAnswer, request};
use super::soak_ledger::{ANSWERED, DOCUMENTED, ONCE, OWN_ANSWER, Random, Round, TERMINAL};

pub const CALLERS: usize = 12;
const SHARED_LANES: u64 = 8;
/// What `reply.timeout_ms` is set to.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// What `web.limits.header_timeout_ms` and `.body_timeout_ms` are set to.
pub const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// On top of a deadline: the machine is loaded, and web may be stopped for a while by us.
const GRACE: Duration = Duration::from_secs(8);
/// An accepted job of a few milliseconds has ended by then, whatever was killed meanwhile.
const END_OF_A_JOB: Duration = Duration::from_secs(25);
/// Longer than any drain.
pub const LONG_MS: u64 = 60_000;
const BATCH_LINES: u64 = 60;

/// Every lane of `count` that a round uses.
pub fn lanes() -> impl Iterator<Item = String> {
    (0..SHARED_LANES).map(|lane| format!("s{lane}")).chain((0..CALLERS).map(|caller| format!("b{caller}")))
}

/// Runs until the round is over; what it finds broken is in the ledger, its own panics too.
pub fn call(round: &Round, number: usize, seed: u64) {
    contained(round, || Caller::new(round, number, seed).run());
}

/// An answer that is not HTTP panics in the client.
fn contained(round: &Round, work: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        round.ledger.broken(OWN_ANSWER, &format!("an answer was not understood: {said:?}"));
    }
}

/// A new connection; `None` where that is no wonder, as the service ends.
pub fn connect(round: &Round) -> Option<Client> {
    let begun = Instant::now();
    let error = match Client::try_to(round.address) {
        Ok(client) => return Some(client),
        Err(error) => error,
    };
    if round.ending().is_none() {
        // A killed web refuses nobody: its listener is the supervisor's.
        round.ledger.broken(ANSWERED, &format!("no connection after {:?}: {error}", begun.elapsed()));
    }
    std::thread::sleep(Duration::from_millis(20));
    None
}

/// True for an answer to look at; a refusal that the service may give at any time is counted.
fn is_allowed(round: &Round, answer: &Answer, what: &str, took: Duration) -> bool {
    let code = answer.code();
    match (answer.status, code.as_str()) {
        (200 | 202 | 404 | 409, _) => return true,
        (503, "draining") if round.ending().is_some() => {}
        (503, "queue_full" | "overloaded") => {}
        (status, code) => {
            let case = format!("{what} after {took:?}: {status} {code} {:?}", answer.text());
            round.ledger.broken(DOCUMENTED, &case);
            return false;
        }
    }
    if answer.header("retry-after").is_none() {
        round.ledger.broken(DOCUMENTED, &format!("{what}: {code} without Retry-After"));
    }
    round.ledger.count(&format!("refused {code}"));
    false
}

pub struct Caller<'a> {
    round: &'a Round<'a>,
    number: usize,
    random: Random,
    /// Kept from one exchange to the next, with the time when it was opened.
    client: Option<(Client, Instant)>,
    asked: u64,
}

impl<'a> Caller<'a> {
    pub fn new(round: &'a Round<'a>, number: usize, seed: u64) -> Caller<'a> {
        Caller { round, number, random: Random::new(seed), client: None, asked: 0 }
    }

    fn run(&mut self) {
        while !self.round.is_over() {
            match self.random.within(0, 100) {
                0..36 => self.echo(),
                36..56 => self.count("count"),
                56..64 => self.count("tally"),
                64..69 => self.flaky(),
                69..75 => self.asynchronous(),
                75..79 => self.cancelled_and_retried(),
                79..81 => self.cancelled_in_a_race(),
                81..85 => self.asked_twice(),
                85..88 => self.hangs_up(),
                88..91 => self.batch(),
                91..94 => self.looks_around(),
                94..99 => self.sleeps(),
                _ => self.dribbles(),
            }
            std::thread::sleep(self.random.millis(0, 12));
        }
    }

    /// Unlike any other of the whole run.
    fn id(&mut self) -> String {
        self.asked += 1;
        format!("{}-{}-{}", self.round.marker, self.number, self.asked)
    }

    /// The connection of before, or a new one.
    fn connection(&mut self) -> Option<(Client, Instant)> {
        let now = Instant::now();
        self.client.take().or_else(|| Some((connect(self.round)?, now)))
    }

    /// One whole exchange. `None`: it was cut off, or refused, by a right of the service; else it is broken.
    pub fn ask(&mut self, method: &str, target: &str, headers: &[&str], body: &str) -> Option<Answer> {
        let sent = Instant::now();
        let (mut client, opened) = self.connection()?;
        self.round.ledger.count("requests");
        client.send(request(method, target, headers, body));
        self.answer((client, opened), sent, &format!("{method} {target}"))
    }

    /// Reads one answer, and keeps the connection if the service does.
    fn answer(&mut self, connection: (Client, Instant), sent: Instant, what: &str) -> Option<Answer> {
        let (mut client, opened) = connection;
        let answer = client.try_read(REPLY_TIMEOUT + GRACE);
        let (round, took) = (self.round, sent.elapsed());
        match answer {
            Ok(answer) => {
                if answer.header("connection") != Some("close") {
                    self.client = Some((client, opened));
                }
                is_allowed(round, &answer, what, took).then_some(answer)
            }
            Err(why) => {
                if why != NoAnswer::Late && round.may_be_cut(opened, sent) {
                    round.ledger.count("cut off");
                } else {
                    round.ledger.broken(ANSWERED, &format!("{what}: {why:?} after {took:?}"));
                }
                None
            }
        }
    }

    /// A waiting caller's answer is its job's end.
    fn succeeded(&mut self, answer: Option<Answer>, what: &str) -> Option<Answer> {
        let answer = answer?;
        let ledger = self.round.ledger;
        if answer.status == 200 {
            ledger.count("accepted");
            ledger.count("finished succeeded");
            return Some(answer);
        }
        ledger.broken(DOCUMENTED, &format!("{what}: {} {}", answer.status, answer.text()));
        None
    }

    fn echo(&mut self) {
        let length = if self.random.within(0, 50) == 0 { 100_000 } else { self.random.within(0, 2_000) };
        let body = format!("{}{}", self.id(), "x".repeat(length as usize));
        // No scheme of ours, and never to be seen in a log either.
        let token = format!("Authorization: Bearer {}", self.round.marker);
        // The same by a program, a process a job.
        let handler = if self.random.within(0, 8) == 0 { "cat" } else { "echo" };
        let answer = self.ask("POST", &format!("/v1/jobs/{handler}"), &[&token], &body);
        if let Some(answer) = self.succeeded(answer, handler)
            && answer.body != body.as_bytes()
        {
            let got: String = answer.text().chars().take(60).collect();
            self.round
                .ledger
                .broken(OWN_ANSWER, &format!("asked {}, got {got}", &body[..40.min(body.len())]));
        }
    }

    fn lane(&mut self) -> String {
        format!("s{}", self.random.within(0, SHARED_LANES))
    }

    fn count(&mut self, handler: &str) {
        let (lane, id) = (if handler == "count" { self.lane() } else { "tally".into() }, self.id());
        let life = self.round.life();
        let body = json!({"key": lane, "id": id}).to_string();
        let json = "Content-Type: application/json";
        let answer = self.ask("POST", &format!("/v1/jobs/{handler}"), &[json], &body);
        if let Some(answer) = self.succeeded(answer, handler) {
            self.check_count(life, &lane, &id, &answer.json());
        }
    }

    fn check_count(&mut self, life: Option<usize>, lane: &str, id: &str, said: &Value) {
        if said["id"] != id {
            self.round.ledger.broken(OWN_ANSWER, &format!("asked as {id}, got {said}"));
        }
        self.round.given(life, lane, said["n"].as_u64().unwrap_or(0));
    }

    fn flaky(&mut self) {
        let id = self.id();
        let (failures, panics) = (self.random.within(0, 3), self.random.within(0, 4) == 0);
        let body = json!({"id": id, "failures": failures, "panics": panics}).to_string();
        let answer = self.ask("POST", "/v1/jobs/flaky", &[], &body);
        if let Some(answer) = self.succeeded(answer, "flaky")
            && answer.json()["id"] != id.as_str()
        {
            self.round.ledger.broken(OWN_ANSWER, &format!("asked as {id}, got {}", answer.text()));
        }
    }

    fn sleeps(&mut self) {
        let ms = self.random.within(1, 300);
        let answer = self.ask("POST", "/v1/jobs/sleep", &[], &json!({"ms": ms}).to_string());
        self.succeeded(answer, "sleep");
    }

    /// Submits without waiting; the job's id.
    pub fn submit(&mut self, handler: &str, headers: &[&str], body: &Value) -> Option<String> {
        let headers: Vec<&str> = headers.iter().copied().chain(["Prefer: respond-async"]).collect();
        let answer = self.ask("POST", &format!("/v1/jobs/{handler}"), &headers, &body.to_string())?;
        let id = answer.json()["id"].as_str().map(str::to_owned);
        if answer.status != 202 || id.is_none() {
            self.round.ledger.broken(DOCUMENTED, &format!("async {handler}: {answer:?}"));
        }
        self.round.ledger.count("accepted");
        id
    }

    /// Looks at an accepted job until it has ended. `None`: it went with its web process, or with the service.
    pub fn follow(&mut self, id: &str, sent: Instant) -> Option<Value> {
        let ledger = self.round.ledger;
        while sent.elapsed() < END_OF_A_JOB {
            let Some(answer) = self.ask("GET", &format!("/v1/jobs/{id}?wait=5"), &[], "") else {
                if self.round.ending().is_some() {
                    ledger.count("finished unseen at the end");
                    return None;
                }
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            if answer.status == 404 {
                if self.round.died_since(sent) {
                    ledger.count("finished lost with a web process");
                } else {
                    ledger.broken(TERMINAL, &format!("nobody knows {id}, accepted {:?} ago", sent.elapsed()));
                }
                return None;
            }
            let record = answer.json();
            let status = record["status"].as_str().unwrap_or_default();
            if !matches!(status, "queued" | "running") {
                ledger.count(&format!("finished {status}"));
                return Some(record);
            }
        }
        ledger.broken(TERMINAL, &format!("{id} has not ended after {:?}", sent.elapsed()));
        None
    }

    fn asynchronous(&mut self) {
        let (lane, id, life, sent) = (self.lane(), self.id(), self.round.life(), Instant::now());
        let Some(job) = self.submit("count", &[], &json!({"key": lane, "id": id})) else { return };
        let Some(record) = self.follow(&job, sent) else { return };
        if record["status"] != "succeeded" {
            return self.round.ledger.broken(TERMINAL, &format!("count ended as {record}"));
        }
        self.check_count(life, &lane, &id, &record["result"]);
    }

    /// A job that has begun or waits is cancelled, and run after all.
    fn cancelled_and_retried(&mut self) {
        let sent = Instant::now();
        let ms = self.random.within(50, 400);
        let Some(job) = self.submit("sleep", &[], &json!({"ms": ms})) else { return };
        self.round.ledger.log(&format!("cancel {job}"));
        self.ask("DELETE", &format!("/v1/jobs/{job}"), &[], "");
        let Some(first) = self.follow(&job, sent) else { return };
        let retried_at = Instant::now();
        let retried = self.ask("POST", &format!("/v1/jobs/{job}/retry"), &[], "");
        let may_run_again = first["status"] == "cancelled";
        match retried.as_ref().map(|answer| answer.status) {
            Some(202) if may_run_again => {
                self.round.ledger.count("retried");
                self.round.ledger.count("accepted");
                let again = self.follow(&job, retried_at);
                if let Some(record) = again.filter(|record| record["status"] != "succeeded") {
                    self.round.ledger.broken(TERMINAL, &format!("retried, it ended as {record}"));
                }
            }
            Some(409) if !may_run_again => {}
            Some(404) if self.round.died_since(sent) => {}
            None => {}
            Some(status) => {
                self.round
                    .ledger
                    .broken(DOCUMENTED, &format!("a retry of {first} was answered with {status}"));
            }
        }
    }

    /// Either it counted, or it was cancelled: the lane's number at the end tells.
    fn cancelled_in_a_race(&mut self) {
        let (lane, id, sent) = (self.lane(), self.id(), Instant::now());
        let Some(job) = self.submit("count", &[], &json!({"key": lane, "id": id})) else { return };
        self.round.ledger.log(&format!("cancel {job}"));
        self.ask("DELETE", &format!("/v1/jobs/{job}"), &[], "");
        self.follow(&job, sent);
    }

    /// Two requests at a time under one key are one job, with one answer; so is a third one later.
    fn asked_twice(&mut self) {
        let (lane, id, life, sent) = (self.lane(), self.id(), self.round.life(), Instant::now());
        let key = format!("Idempotency-Key: {id}");
        let body = json!({"key": lane, "id": id}).to_string();
        let (Some(mut one), Some(other)) = (self.connection(), connect(self.round)) else { return };
        let mut other = (other, sent);
        for (client, _) in [&mut one, &mut other] {
            client.send(request("POST", "/v1/jobs/count", &[&key], &body));
        }
        self.round.ledger.add("requests", 2);
        let first = self.answer(other, sent, "the first of two under a key");
        let second = self.answer(one, sent, "the second of two under a key");
        let third = self.ask("POST", "/v1/jobs/count", &[&key], &body);
        let answers: Vec<Answer> = [first, second, third].into_iter().flatten().collect();
        let is_one_life = life.is_some() && life == self.round.life();
        let Some(first) = self.succeeded(answers.first().cloned(), "an idempotent one") else { return };
        if is_one_life {
            self.check_count(life, &lane, &id, &first.json());
            let is_other = |answer: &&Answer| answer.body != first.body;
            if let Some(other) = answers.iter().find(is_other) {
                let case = format!("one key, two answers: {} and {}", first.text(), other.text());
                self.round.ledger.broken(ONCE, &case);
            }
            let replayed = answers.iter().filter(|answer| answer.header("idempotency-replayed").is_some());
            if answers.len() - replayed.count() > 1 {
                self.round.ledger.broken(ONCE, &format!("key {id} made more than one job"));
            }
        }
    }

    /// The job goes on, or was never seen.
    fn hangs_up(&mut self) {
        let (lane, id) = (self.lane(), self.id());
        self.round.ledger.log(&format!("hang up on {id}"));
        let Some(mut client) = connect(self.round) else { return };
        client.send(request("POST", "/v1/jobs/count", &[], json!({"key": lane, "id": id}).to_string()));
        std::thread::sleep(self.random.millis(0, 4));
        self.round.ledger.count("hang-ups");
    }

    /// Lines of a lane that is this caller's alone: they come back in order, and count on without a gap.
    fn batch(&mut self) {
        let (lane, id, sent) = (format!("b{}", self.number), self.id(), Instant::now());
        let lines =
            (0..BATCH_LINES).map(|line| json!({"key": lane, "id": format!("{id}-{line}")}).to_string());
        let body = lines.map(|line| line + "\n").collect::<String>();
        let Some(answer) = self.ask("POST", "/v1/batch/count", &[], &body) else { return };
        let results: Vec<Value> =
            answer.text().lines().map(|line| serde_json::from_str(line).unwrap_or_default()).collect();
        let ledger = self.round.ledger;
        ledger.add("accepted", results.len() as u64);
        ledger.add("finished succeeded", results.len() as u64);
        ledger.count("batches");
        if results.len() as u64 != BATCH_LINES {
            ledger.broken(TERMINAL, &format!("a batch of {BATCH_LINES} lines has {} results", results.len()));
        }
        let first = results.first().and_then(|first| first["n"].as_u64());
        for (at, result) in (0..).zip(&results) {
            if result["id"] == format!("{id}-{at}") && result["n"].as_u64() == first.map(|first| first + at) {
                continue;
            }
            // The drain's deadline cuts a batch off line by line.
            if self.round.ending().is_none() {
                let case = format!("line {at} of {id}, {:?} old: {result}", sent.elapsed());
                ledger.broken(if result["id"].is_null() { DOCUMENTED } else { ONCE }, &case);
            }
            return;
        }
    }

    fn looks_around(&mut self) {
        let pages = ["/v1/stats", "/metrics", "/", "/healthz", "/v1/jobs?limit=20"];
        let page = pages[self.random.within(0, pages.len() as u64) as usize];
        if let Some(answer) = self.ask("GET", page, &[], "")
            && answer.status != 200
        {
            self.round.ledger.broken(DOCUMENTED, &format!("{page}: {answer:?}"));
        }
    }

    /// A whole request, some bytes at a time, is as good as any other.
    fn dribbles(&mut self) {
        let (body, sent) = (self.id(), Instant::now());
        let Some(mut client) = connect(self.round) else { return };
        self.round.ledger.count("requests");
        self.round.ledger.count("slow clients");
        let bytes = request("POST", "/v1/jobs/echo", &[], &body);
        for part in bytes.chunks(bytes.len() / 8) {
            client.send(part);
            std::thread::sleep(READ_TIMEOUT / 60);
        }
        let answer = self.answer((client, sent), sent, "a slow client");
        if let Some(answer) = self.succeeded(answer, "echo")
            && answer.body != body.as_bytes()
        {
            self.round.ledger.broken(OWN_ANSWER, &format!("asked {body}, got {}", answer.text()));
        }
    }
}

/// Half a head, half a body, and answers that nobody reads: each is closed at its deadline.
pub fn dawdle(round: &Round) {
    contained(round, || {
        while !round.is_over() {
            let half_requests = [
                "GET /he",
                "POST /v1/jobs/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf",
            ];
            let mut clients = Vec::new();
            for half in half_requests.iter().cycle().take(6) {
                let Some(mut client) = connect(round) else { return };
                client.send(half);
                clients.push(client);
            }
            round.ledger.log("dawdlers begin");
            round.ledger.add("slow clients", clients.len() as u64);
            let sent = Instant::now();
            for client in &mut clients {
                let left = (READ_TIMEOUT + GRACE).saturating_sub(sent.elapsed());
                match client.try_read(left) {
                    Ok(answer) if answer.status == 408 => {}
                    Ok(answer) if answer.code() == "draining" && round.ending().is_some() => {}
                    Err(NoAnswer::Closed) => {}
                    Err(_) if round.may_be_cut(sent, sent) => {}
                    other => {
                        let case = format!("a dawdler after {:?}: {other:?}", sent.elapsed());
                        round.ledger.broken(ANSWERED, &case);
                    }
                }
            }
        }
    });
}

/// Submissions without a pause, more than the queue holds: each is accepted and ends, or is refused.
pub fn burst(round: &Round, number: usize, jobs: usize) {
    contained(round, || {
        let sent = Instant::now();
        let Some(mut client) = connect(round) else { return };
        let one = request("POST", "/v1/jobs/sleep", &["Prefer: respond-async"], r#"{"ms":30}"#);
        client.send(one.repeat(jobs));
        round.ledger.add("requests", jobs as u64);
        let mut accepted = Vec::new();
        for _ in 0..jobs {
            match client.try_read(REPLY_TIMEOUT + GRACE) {
                Ok(answer) if answer.status == 202 => {
                    accepted.push(answer.json()["id"].as_str().map(str::to_owned))
                }
                Ok(answer) => drop(is_allowed(round, &answer, "a burst", sent.elapsed())),
                Err(why) => return round.ledger.broken(ANSWERED, &format!("a burst: {why:?}")),
            }
        }
        round.ledger.add("accepted", accepted.len() as u64);
        let mut caller = Caller::new(round, number, 0);
        for id in accepted.into_iter().flatten() {
            caller.follow(&id, sent);
        }
    });
}
