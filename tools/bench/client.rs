//! N connections on one mio loop: what each does next, and what is counted.
//!
//! A connection walks this circle; where it leaves it depends on the task.
//!
//!     Closed --connect--> Opening --writable--> Open --ask--> Asking --whole answer--> Open
//!       ^                    |                    |              |
//!       +------ refused -----+---- hung up -------+-- cut off ---+
//!
//! Readiness is edge-triggered. A read that leaves room in its buffer has taken all there was, and whatever
//! comes later is a new edge; so one read a turn is enough, unless the event said that the peer has closed.

use crate::answer::{self, Answer, Malformed, Parsed};
use crate::histogram::Histogram;
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Connections that may be on their way at once: below the backlog of 128 that the standard library gives to
/// servers, tiny_http's among them. A server that accepts slowly may still have its backlog filled; the
/// kernel then sends the SYN again after a second, which a warm-up of more than that hides.
const OPENING_MAX: usize = 64;
/// After an error, so that a server that is down is not hammered.
const REOPEN_AFTER: Duration = Duration::from_millis(10);
/// The loop looks at the clock at least this often.
const TICK: Duration = Duration::from_millis(10);
/// Doubled as needed: 10,000 callers should not cost more than the server that they wait for.
const FIRST_INPUT_BYTES: usize = 1 << 10;
/// Just above the largest answer that the parser takes.
const INPUT_BYTES_MAX: usize = 65 << 20;

/// What every connection is there to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Ask, wait for the answer, ask again.
    Repeat,
    /// The same, and the answer must be the request's body, its last `body_length` bytes.
    RepeatAndCompare { body_length: usize },
    /// Ask, wait, ask again; a refusal is an answer as good as any, and its time counts.
    RepeatWhatever,
    /// Once all connections are open, each asks once.
    Once,
}

/// Why a request was not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Connect,
    Write,
    Read,
    /// The connection ended before the whole answer was there.
    CutOff,
    /// The answer is no HTTP, or cannot be framed.
    Malformed,
    /// Bytes that answer no request, or more than one answer to one.
    Unasked,
    /// A whole answer whose status is not 2xx.
    Refused,
    /// A 2xx answer whose body is not the request's.
    Mismatch,
}

impl Failure {
    const ALL: [Failure; 8] = [
        Failure::Connect,
        Failure::Write,
        Failure::Read,
        Failure::CutOff,
        Failure::Malformed,
        Failure::Unasked,
        Failure::Refused,
        Failure::Mismatch,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Failure::Connect => "connect",
            Failure::Write => "write",
            Failure::Read => "read",
            Failure::CutOff => "cut_off",
            Failure::Malformed => "malformed",
            Failure::Unasked => "unasked",
            Failure::Refused => "refused",
            Failure::Mismatch => "mismatch",
        }
    }
}

/// What was counted.
pub struct Tally {
    /// Requests that got the answer they should.
    pub served: u64,
    /// Of the requests served.
    pub latencies: Histogram,
    /// Connections that were opened again, for whatever reason.
    pub reconnects: u64,
    by_status: [u64; 600],
    by_failure: [u64; Failure::ALL.len()],
}

impl Tally {
    fn new() -> Tally {
        Tally {
            served: 0,
            latencies: Histogram::new(),
            reconnects: 0,
            by_status: [0; 600],
            by_failure: [0; Failure::ALL.len()],
        }
    }

    fn clear(&mut self) {
        self.served = 0;
        self.latencies.clear();
        self.reconnects = 0;
        self.by_status = [0; 600];
        self.by_failure = [0; Failure::ALL.len()];
    }

    fn failed(&mut self, failure: Failure) {
        self.by_failure[failure as usize] += 1;
    }

    /// Whole answers of any status.
    pub fn answered(&self) -> u64 {
        self.by_status.iter().sum()
    }

    /// The statuses that were seen.
    pub fn statuses(&self) -> impl Iterator<Item = (usize, u64)> {
        self.by_status.iter().copied().enumerate().filter(|(_, count)| *count > 0)
    }

    /// The failures that were seen.
    pub fn failures(&self) -> impl Iterator<Item = (Failure, u64)> {
        Failure::ALL.into_iter().zip(self.by_failure).filter(|(_, count)| *count > 0)
    }
}

/// The loop, its connections and its counts.
pub struct Client {
    poll: Poll,
    target: SocketAddr,
    request: Vec<u8>,
    task: Task,
    connections: Vec<Connection>,
    /// Who is to be opened, and not before when; in order of time but for the 10 ms after an error.
    to_open: VecDeque<(Instant, usize)>,
    opening: usize,
    /// Connections whose part in `Task::Once` is over.
    finished: usize,
    asking: usize,
    peak_asking: usize,
    started: Instant,
    /// `Some` iff the callers of `Task::Once` have begun to ask.
    asking_since: Option<Instant>,
    last_end: Instant,
    tally: Tally,
}

impl Client {
    pub fn new(target: SocketAddr, request: Vec<u8>, connections: usize, task: Task) -> io::Result<Client> {
        let now = Instant::now();
        Ok(Client {
            poll: Poll::new()?,
            target,
            request,
            task,
            connections: (0..connections).map(|_| Connection::new(now)).collect(),
            to_open: (0..connections).map(|index| (now, index)).collect(),
            opening: 0,
            finished: 0,
            asking: 0,
            peak_asking: 0,
            started: now,
            asking_since: None,
            last_end: now,
            tally: Tally::new(),
        })
    }

    /// Turns the loop until the time has passed, or nobody has anything left to ask; returns how long that
    /// was.
    pub fn run_for(&mut self, time: Duration) -> io::Result<Duration> {
        let start = Instant::now();
        let mut now = start;
        let mut events = Events::with_capacity(1024);
        while now - start < time && self.finished < self.connections.len() {
            self.open_due(now)?;
            match self.poll.poll(&mut events, Some(TICK.min(time - (now - start)))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => other?,
            }
            for event in &events {
                self.on_event(event);
            }
            if self.task == Task::Once {
                self.ask_together();
            }
            now = Instant::now();
        }
        Ok(now - start)
    }

    /// Begins to count anew: what came before was the warm-up.
    pub fn forget_tally(&mut self) {
        self.tally.clear();
        for connection in &mut self.connections {
            connection.answers = 0;
        }
    }

    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    pub fn answers_by_connection(&self) -> impl Iterator<Item = u64> + Clone {
        self.connections.iter().map(|connection| connection.answers)
    }

    /// Connections that are not open, or not yet.
    pub fn unconnected(&self) -> usize {
        let is_open = |connection: &&Connection| matches!(connection.phase, Phase::Open | Phase::Asking);
        self.connections.len() - self.connections.iter().filter(is_open).count()
    }

    /// How long the oldest request without an answer has been waiting.
    pub fn longest_pending(&self) -> Option<Duration> {
        let asking = self.connections.iter().filter(|connection| connection.phase == Phase::Asking);
        asking.map(|connection| connection.asked_at.elapsed()).max()
    }

    /// The most requests that waited for their answers at one time.
    pub fn peak_waiting(&self) -> usize {
        self.peak_asking
    }

    /// Callers of `Task::Once` that neither got an answer nor failed.
    pub fn unanswered(&self) -> usize {
        self.connections.len() - self.finished
    }

    /// When the callers of `Task::Once` began to ask, from the start.
    pub fn asking_since(&self) -> Option<Duration> {
        self.asking_since.map(|since| since - self.started)
    }

    /// From the first question to the last answer or failure.
    pub fn last_end(&self) -> Duration {
        self.last_end.saturating_duration_since(self.asking_since.unwrap_or(self.started))
    }

    fn open_due(&mut self, now: Instant) -> io::Result<()> {
        while self.opening < OPENING_MAX && self.to_open.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, index)) = self.to_open.pop_front() else { break };
            // A token names a place, not a socket. A late event for the place's last socket cannot come,
            // because it is closed, and sockets are opened only here, between two polls.
            match TcpStream::connect(self.target) {
                Ok(mut stream) => {
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    self.poll.registry().register(&mut stream, Token(index), interest)?;
                    self.connections[index].stream = Some(stream);
                    self.connections[index].phase = Phase::Opening;
                    self.opening += 1;
                }
                Err(_) => self.end(index, Err(Failure::Connect)),
            }
        }
        Ok(())
    }

    fn on_event(&mut self, event: &Event) {
        let index = event.token().0;
        if self.connections[index].phase == Phase::Opening && !self.finish_opening(index, event) {
            return;
        }
        if self.connections[index].phase == Phase::Asking && event.is_writable() {
            self.write_rest(index);
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(index, event.is_read_closed() || event.is_error());
        }
    }

    /// Whether the connection is open now.
    fn finish_opening(&mut self, index: usize, event: &Event) -> bool {
        let Some(stream) = &self.connections[index].stream else { return false };
        let failed = event.is_error() || !matches!(stream.take_error(), Ok(None));
        if !failed && !event.is_writable() {
            return false;
        }
        if failed || stream.set_nodelay(true).is_err() {
            self.end(index, Err(Failure::Connect));
            return false;
        }
        self.opening -= 1;
        self.connections[index].phase = Phase::Open;
        if self.task != Task::Once {
            self.ask(index, Instant::now());
        }
        true
    }

    /// All callers that wait have connected before the first of them asks: what is measured is waiting, not
    /// connecting. It begins when each is open or has failed.
    fn ask_together(&mut self) {
        if self.asking_since.is_some() || self.opening > 0 || !self.to_open.is_empty() {
            return;
        }
        let now = Instant::now();
        self.asking_since = Some(now);
        for index in 0..self.connections.len() {
            if self.connections[index].phase == Phase::Open {
                self.ask(index, Instant::now());
            }
        }
    }

    fn ask(&mut self, index: usize, now: Instant) {
        let connection = &mut self.connections[index];
        connection.phase = Phase::Asking;
        connection.asked_at = now;
        connection.written = 0;
        connection.filled = 0;
        connection.parse_at = 1;
        self.asking += 1;
        self.peak_asking = self.peak_asking.max(self.asking);
        self.write_rest(index);
    }

    fn write_rest(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let Some(stream) = &mut connection.stream else { return };
        while connection.written < self.request.len() {
            match stream.write(&self.request[connection.written..]) {
                Ok(written) => connection.written += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.end(index, Err(Failure::Write)),
            }
        }
    }

    /// Reads what is there, which is one read unless the answer is larger than the buffer. With `to_the_end`
    /// there will be no further event, so it goes on to the end of the stream.
    fn read(&mut self, index: usize, to_the_end: bool) {
        loop {
            let connection = &mut self.connections[index];
            let Some(stream) = &mut connection.stream else { return };
            if connection.filled == connection.input.len() {
                if connection.input.len() >= INPUT_BYTES_MAX {
                    return self.end(index, Err(Failure::Malformed));
                }
                connection.input.resize((connection.input.len() * 2).max(FIRST_INPUT_BYTES), 0);
            }
            let room = connection.input.len() - connection.filled;
            let count = match stream.read(&mut connection.input[connection.filled..]) {
                // Between two requests a server may hang up; a caller that has not yet asked is let down.
                Ok(0) if connection.phase == Phase::Open && self.task != Task::Once => {
                    return self.end(index, Ok(()));
                }
                Ok(0) => return self.end(index, Err(Failure::CutOff)),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.end(index, Err(Failure::Read)),
            };
            connection.filled += count;
            self.look(index);
            if count < room && !to_the_end {
                return;
            }
        }
    }

    /// Looks for a whole answer in what was read.
    fn look(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if connection.phase != Phase::Asking {
            return self.end(index, Err(Failure::Unasked));
        }
        if connection.filled < connection.parse_at {
            return;
        }
        match answer::parse(&connection.input[..connection.filled]) {
            Ok(Parsed::Incomplete { at_least }) => connection.parse_at = at_least,
            Ok(Parsed::Whole(answer)) if answer.length < connection.filled => {
                self.end(index, Err(Failure::Unasked));
            }
            Ok(Parsed::Whole(answer)) => self.on_answer(index, &answer),
            Err(Malformed) => self.end(index, Err(Failure::Malformed)),
        }
    }

    fn on_answer(&mut self, index: usize, answer: &Answer) {
        let now = Instant::now();
        let connection = &mut self.connections[index];
        connection.phase = Phase::Open;
        connection.answers += 1;
        self.asking -= 1;
        self.tally.by_status[usize::from(answer.status)] += 1;

        let matches = match self.task {
            Task::Repeat | Task::RepeatWhatever | Task::Once => true,
            Task::RepeatAndCompare { body_length } => {
                let body = &self.request[self.request.len() - body_length..];
                answer.body_is(&connection.input[..connection.filled], body)
            }
        };
        if !(200..300).contains(&answer.status) && self.task != Task::RepeatWhatever {
            self.tally.failed(Failure::Refused);
        } else if !matches {
            self.tally.failed(Failure::Mismatch);
        } else {
            self.tally.served += 1;
            self.tally.latencies.record(now - connection.asked_at);
        }

        // An answer to half a request leaves a stream on which nothing more can be said.
        let reusable = answer.keep_alive && connection.written == self.request.len();
        if self.task == Task::Once || !reusable {
            self.end(index, Ok(()));
        } else {
            self.ask(index, now);
        }
    }

    /// Closes a connection, counts why, and has it opened again if there is more to ask.
    fn end(&mut self, index: usize, reason: Result<(), Failure>) {
        let now = Instant::now();
        let connection = &mut self.connections[index];
        match connection.phase {
            Phase::Opening => self.opening -= 1,
            Phase::Asking => self.asking -= 1,
            Phase::Closed | Phase::Open => {}
        }
        connection.phase = Phase::Closed;
        connection.stream = None;
        self.last_end = now;
        if let Err(failure) = reason {
            self.tally.failed(failure);
        }
        if self.task == Task::Once {
            self.finished += 1;
            return;
        }
        self.tally.reconnects += 1;
        match reason {
            Ok(()) => self.to_open.push_front((now, index)),
            Err(_) => self.to_open.push_back((now + REOPEN_AFTER, index)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    Opening,
    Open,
    Asking,
}

struct Connection {
    /// `None` iff `Closed`.
    stream: Option<TcpStream>,
    phase: Phase,
    asked_at: Instant,
    /// Bytes of the request that have been written.
    written: usize,
    input: Vec<u8>,
    /// Bytes of `input` that have been read.
    filled: usize,
    /// It is no use to parse before `filled` reaches this.
    parse_at: usize,
    answers: u64,
}

impl Connection {
    fn new(now: Instant) -> Connection {
        Connection {
            stream: None,
            phase: Phase::Closed,
            asked_at: now,
            written: 0,
            input: Vec::new(),
            filled: 0,
            parse_at: 1,
            answers: 0,
        }
    }
}
