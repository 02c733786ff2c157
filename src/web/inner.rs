//! The gate's side of the private socket: a few connections, one whole request at a time on each.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::time::Duration;

use mio::net::UnixStream;
use mio::{Interest, Registry, Token};

use super::pages::TRACE_HEADER;
use super::questions::{Asker, InnerRequest};
use super::respond::{Answer, Body};
use super::routes::Inner;
use crate::clock::Timestamp;
use crate::limits::{INNER_CONNECTIONS, INNER_HANGS, INNER_QUEUE, INNER_RESERVED};
use crate::problem::Code;

/// See the module.
pub struct Pool {
    socket: PathBuf,
    links: Vec<Link>,
    first_token: usize,
    queue: VecDeque<InnerRequest>,
    answers: Vec<(Asker, Answer)>,
}

struct Link {
    stream: UnixStream,
    busy: Option<Busy>,
}

struct Busy {
    request: InnerRequest,
    output: Vec<u8>,
    input: Vec<u8>,
    since: Timestamp,
}

impl Pool {
    /// How many tokens it takes.
    pub const LINKS: usize = INNER_CONNECTIONS + INNER_RESERVED;

    /// Opens the connections, one after the other, each with a warm-up request: that avoids a race in
    /// tiny_http's pool which starves connections that come together.
    ///
    /// # Errors
    /// The socket cannot be reached.
    pub fn open(socket: PathBuf, registry: &Registry, first_token: usize) -> std::io::Result<Pool> {
        let (queue, answers) = Default::default();
        let mut pool = Pool { socket, links: Vec::new(), first_token, queue, answers };
        for link in 0..Pool::LINKS {
            let stream = pool.connect(registry, link)?;
            pool.links.push(Link { stream, busy: None });
        }
        Ok(pool)
    }

    fn connect(&self, registry: &Registry, link: usize) -> std::io::Result<UnixStream> {
        // A signal may come now: it is nothing that happened to this connection.
        let mut stream = retry(|| StdStream::connect(&self.socket))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /nothing HTTP/1.1\r\nHost: inner\r\nContent-Length: 0\r\n\r\n")?;
        let mut input = Vec::new();
        while parse_answer(&input).is_none() {
            let mut part = [0; 1_024];
            match retry(|| stream.read(&mut part))? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => input.extend_from_slice(&part[..read]),
            }
        }
        stream.set_nonblocking(true)?;
        let mut stream = UnixStream::from_std(stream);
        let token = Token(self.first_token + link);
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(stream)
    }

    /// The answers that have come since the last call.
    pub fn take_answers(&mut self) -> Vec<(Asker, Answer)> {
        std::mem::take(&mut self.answers)
    }

    /// Takes a request; 503 when too many wait.
    pub fn ask(&mut self, request: InnerRequest, now: Timestamp) {
        self.queue.push_back(request);
        self.begin_next(now);
        if self.queue.len() > INNER_QUEUE
            && let Some(request) = self.queue.pop_back()
        {
            self.refuse(&request, Code::Overloaded, "too many pages are being made");
        }
    }

    fn refuse(&mut self, request: &InnerRequest, code: Code, detail: &str) {
        self.answers.push((request.asker, Answer::refusal(code, detail, Some(&request.trace))));
    }

    /// Readiness and metrics have connections of their own: they answer while the others are slow.
    fn free_link(&self, route: &Inner) -> Option<usize> {
        let usable =
            if matches!(route, Inner::Ready | Inner::Metrics) { Pool::LINKS } else { INNER_CONNECTIONS };
        (0..usable).rev().find(|link| self.links[*link].busy.is_none())
    }

    /// The first request that has a free connection begins.
    fn begin_next(&mut self, now: Timestamp) {
        for at in 0..self.queue.len() {
            if let Some(link) = self.free_link(&self.queue[at].route)
                && let Some(request) = self.queue.remove(at)
            {
                let output = rebuilt(&request).into_bytes();
                self.links[link].busy = Some(Busy { request, output, input: Vec::new(), since: now });
                return self.go_on(link);
            }
        }
    }

    /// Its socket is ready: sends, reads, and goes on to the next request.
    pub fn on_event(&mut self, token: usize, registry: &Registry, now: Timestamp) {
        let link = token - self.first_token;
        self.go_on(link);
        if self.links[link].busy.is_none() {
            self.begin_next(now);
        }
        self.mend(link, registry);
    }

    /// Writes and reads until the socket would block; an answer if it is whole.
    fn go_on(&mut self, link: usize) {
        let Link { stream, busy } = &mut self.links[link];
        let Some(working) = busy else { return };
        while !working.output.is_empty() {
            match retry(|| stream.write(&working.output)) {
                Ok(written) => drop(working.output.drain(..written)),
                Err(_) => break,
            }
        }
        let mut part = [0; 16_384];
        while let Ok(read @ 1..) = retry(|| stream.read(&mut part)) {
            working.input.extend_from_slice(&part[..read]);
        }
        if let Some(answer) = parse_answer(&working.input) {
            self.answers.push((working.request.asker, answer));
            *busy = None;
        }
    }

    /// A connection that broke off is our bug: its request gets 500, and another connection takes its place.
    fn mend(&mut self, link: usize, registry: &Registry) {
        let stream = &mut self.links[link].stream;
        if !matches!(stream.take_error(), Ok(Some(_))) && peek(stream) != Some(0) {
            return;
        }
        log::error!("a connection to the inner server broke off");
        let _ = registry.deregister(stream);
        match self.connect(registry, link) {
            Ok(stream) => self.links[link].stream = stream,
            Err(error) => log::error!("the inner server cannot be reached: {error}"),
        }
        if let Some(lost) = self.links[link].busy.take() {
            self.refuse(&lost.request, Code::InternalError, "the page could not be made");
        }
    }

    /// True if an inner request has been under way for too long: the process should be replaced.
    #[must_use]
    pub fn hangs(&self, now: Timestamp) -> bool {
        let mut busy = self.links.iter().filter_map(|link| link.busy.as_ref());
        busy.any(|busy| now.since(busy.since) > INNER_HANGS)
    }
}

fn peek(stream: &UnixStream) -> Option<usize> {
    let mut byte = [0; 1];
    rustix::net::recv(stream, &mut byte, rustix::net::RecvFlags::PEEK).ok().map(|(read, _)| read)
}

/// The request as the gate understood it: nothing that the client wrote frames it.
fn rebuilt(request: &InnerRequest) -> String {
    let (method, path) = match &request.route {
        Inner::Record(id) => ("GET", format!("/v1/jobs/{id}")),
        Inner::Result(id) => ("GET", format!("/v1/jobs/{id}/result")),
        Inner::List => ("GET", "/v1/jobs".into()),
        Inner::Cancel(id) => ("DELETE", format!("/v1/jobs/{id}")),
        Inner::Retry(id) => ("POST", format!("/v1/jobs/{id}/retry")),
        Inner::Pause(name, true) => ("POST", format!("/v1/handlers/{name}/pause")),
        Inner::Pause(name, false) => ("POST", format!("/v1/handlers/{name}/resume")),
        Inner::Stats => ("GET", "/v1/stats".into()),
        Inner::Ready => ("GET", "/readyz".into()),
        Inner::Metrics => ("GET", "/metrics".into()),
        Inner::Index => ("GET", "/".into()),
    };
    let mut out = format!("{method} {path}");
    if !request.query.is_empty() {
        let _ = write!(out, "?{}", request.query);
    }
    let _ = write!(
        out,
        " HTTP/1.1\r\nHost: inner\r\n{TRACE_HEADER}: {}\r\nContent-Length: 0\r\n\r\n",
        request.trace
    );
    out
}

/// tiny_http's answer, once it is whole: always with a Content-Length, as we never let it choose chunks.
#[doc(hidden)]
pub fn parse_answer(input: &[u8]) -> Option<Answer> {
    let end = input.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&input[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let (mut headers, mut length) = (String::new(), 0);
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            // The gate frames and dates its own answers.
            "server" | "date" | "connection" | "transfer-encoding" => {}
            name => {
                let _ = write!(headers, "{name}: {value}\r\n");
            }
        }
    }
    let body = Body::Own(input[end + 4..].get(..length)?.to_vec());
    Some(Answer { status, headers, body })
}

/// The same call again for as long as signals interrupt it.
fn retry<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
