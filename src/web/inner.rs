//! The inner server, on tiny_http, for routes that render or may block; and the gate's connections to it.
//!
//! tiny_http never meets a stranger: its one client is the gate, over a private Unix socket, one whole request at a time on
//! each connection, as the gate has rebuilt it. What a client wrote frames nothing here.

use std::error::Error;
use std::io::{Cursor, ErrorKind, Result as IoResult, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::str::FromStr;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tiny_http::{Header, Request, Response, Server, StatusCode};
use zeroize::Zeroizing;

use super::by_name::ByName;
use super::pages::Pages;
use super::questions::{Answered, Back, PageRequest};
use super::respond::Answer;
use super::routes::{Inner, Route, route};
use crate::bell::lock;
use crate::codec::write_hex;
use crate::entropy::Entropy;
use crate::job::Trace;
use crate::limits::{INNER_CONNECTIONS, INNER_HANGS, INNER_QUEUE, INNER_RESERVED};
use crate::mac::MacKey;
use crate::ports::Viewer;
use crate::problem::{Code, JobError};

/// The header that carries the request's trace inwards.
const TRACE_HEADER: &str = "traceparent";

/// The header that tells the gate's requests from those of anybody else who finds the socket: other processes of our user.
const PASS_HEADER: &str = "cofferdam-gate";

/// The header that says who asks: `user` or `admin`, the name, and the handlers or `*`.
const VIEWER_HEADER: &str = "cofferdam-viewer";

/// What that header says: 32 random bytes of this process, as hex.
struct Pass(Zeroizing<String>);

impl Pass {
    fn new() -> Pass {
        let mut text = Zeroizing::new(String::with_capacity(64));
        let _ = write_hex(&mut *text, &Entropy::system().bytes::<32>());
        Pass(text)
    }

    /// In constant time: macs under a key that is this one are compared.
    fn is(&self, shown: &str) -> bool {
        let key = MacKey::new(self.0.as_bytes());
        key.verify(&[self.0.as_bytes()], &key.sign(&[shown.as_bytes()]))
    }
}

/// The connections, each with a thread of its own.
pub struct Pool {
    anyone: SyncSender<Turn>,
    /// Readiness and metrics have a connection each: they answer while the others are slow, and each other.
    ready: SyncSender<Turn>,
    metrics: SyncSender<Turn>,
    threads: Vec<JoinHandle<()>>,
    asked: Arc<Asked>,
}

/// Requests that wait or are being answered, by the name of who asks.
type Asked = Mutex<ByName>;

/// A request that is counted among those of its name for as long as this lives.
struct Turn {
    request: PageRequest,
    asked: Arc<Asked>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.asked).remove(&self.request.viewer.name);
    }
}

impl Pool {
    /// Serves the pages on `socket` for the life of the process, and connects.
    pub fn open(pages: Arc<Pages>, socket: &Path, back: &Back) -> Result<Pool, Box<dyn Error + Send + Sync>> {
        let server = Server::from_listener(UnixListener::bind(socket)?, None)?;
        let (server, pass) = (Arc::new(server), Arc::new(Pass::new()));
        for index in 0..INNER_CONNECTIONS + INNER_RESERVED {
            let (server, pages, pass) = (server.clone(), pages.clone(), pass.clone());
            let serve = move || {
                while let Ok(request) = server.recv() {
                    respond(request, &pages, &pass);
                }
            };
            Builder::new().name(format!("pages-{index}")).spawn(serve)?;
        }
        let mut threads = Vec::new();
        let mut start = |connections| {
            let (queue, requests) = sync_channel(INNER_QUEUE);
            let requests = Arc::new(Mutex::new(requests));
            for _ in 0..connections {
                // One after the other, each with a warm-up request: that avoids a race in tiny_http's pool which
                // starves connections that come together.
                let stream = connect(socket)?;
                let (requests, socket, back) = (requests.clone(), socket.to_owned(), back.clone());
                let pass = pass.clone();
                let work = move || work(stream, &requests, &socket, &pass, &back);
                threads.push(Builder::new().name("inner".into()).spawn(work)?);
            }
            IoResult::Ok(queue)
        };
        let (anyone, ready, metrics) = (start(INNER_CONNECTIONS)?, start(1)?, start(1)?);
        Ok(Pool { anyone, ready, metrics, threads, asked: Arc::default() })
    }

    /// Takes a request; 503 when too many wait, or too many of one token: a quarter.
    pub fn ask(&self, request: PageRequest) -> Option<Answered> {
        const FULL: &str = "too many pages are being made";
        let is_named = !request.viewer.name.is_empty();
        let own = lock(&self.asked).add(&request.viewer.name);
        let turn = Turn { request, asked: self.asked.clone() };
        let request = &turn.request;
        if is_named && own > INNER_QUEUE / 4 {
            return Some(request.refused(Code::Overloaded, FULL));
        }
        let queue = match request.route {
            Inner::Ready => &self.ready,
            Inner::Metrics => &self.metrics,
            _ => &self.anyone,
        };
        match queue.try_send(turn) {
            Ok(()) => None,
            Err(TrySendError::Full(turn) | TrySendError::Disconnected(turn)) => {
                Some(turn.request.refused(Code::Overloaded, FULL))
            }
        }
    }

    /// False once the inner server has not answered for too long: the process should be replaced.
    pub fn is_sound(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }
}

fn connect(socket: &Path) -> IoResult<UnixStream> {
    // A signal may come now: it is nothing that happened to this connection.
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            connected => break connected?,
        }
    };
    // Longer than a busy host stalls: nobody would serve better after another start.
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    exchange(&mut stream, b"GET /nothing HTTP/1.1\r\nHost: inner\r\nContent-Length: 0\r\n\r\n")?;
    stream.set_read_timeout(Some(INNER_HANGS))?;
    Ok(stream)
}

fn work(mut stream: UnixStream, requests: &Mutex<Receiver<Turn>>, socket: &Path, pass: &Pass, back: &Back) {
    loop {
        let Ok(turn) = lock(requests).recv() else { return };
        let request = &turn.request;
        let answered = match exchange(&mut stream, &rebuilt(request, pass)) {
            Ok(answer) => Answered::Page(request.asker, answer),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return log::error!("the inner server does not answer");
            }
            // A connection that broke off is our bug: another one takes its place.
            Err(_) => {
                log::error!("a connection to the inner server broke off");
                match connect(socket) {
                    Ok(new) => stream = new,
                    Err(error) => log::error!("the inner server cannot be reached: {error}"),
                }
                request.refused(Code::InternalError, "the page could not be made")
            }
        };
        back(answered);
    }
}

fn respond(mut request: Request, pages: &Pages, pass: &Pass) {
    let mut body = Vec::new();
    if request.as_reader().read_to_end(&mut body).is_err() {
        return;
    }
    let header = |name| {
        request.headers().iter().find(|header| header.field.equiv(name)).map(|header| header.value.as_str())
    };
    let trace = header(TRACE_HEADER).and_then(Trace::parse).unwrap_or_default();
    let is_of_the_gate = header(PASS_HEADER).is_some_and(|shown| pass.is(shown));
    let viewer = header(VIEWER_HEADER).and_then(viewer).filter(|_| is_of_the_gate);
    let answer = match (route(request.method().as_str(), request.url()), viewer) {
        (Ok((Route::Inner(inner), _)), Some(viewer)) => {
            let query = request.url().split_once('?').map_or("", |(_, query)| query);
            Ok(pages.answer(&inner, query, &body, &viewer, &trace))
        }
        _ => Err(JobError::new(Code::InternalError, "this request should not have come here")),
    };
    let answer = answer.unwrap_or_else(|error| Answer::problem(&error, &trace));
    let headers = answer.headers.lines().filter_map(|line| Header::from_str(line).ok()).collect();
    let (status, length) = (StatusCode(answer.status), answer.body.len());
    let response = Response::new(status, headers, Cursor::new(answer.body), Some(length), None);
    let response = response.with_chunked_threshold(usize::MAX);
    // The gate has gone: then so has the request.
    let _ = request.respond(response);
}

/// Reads what the gate wrote of who asks.
fn viewer(text: &str) -> Option<Viewer> {
    let [kind, name, handlers] = text.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let names = || handlers.split(',').map(str::to_owned).collect();
    let handlers = (handlers != "*").then(names);
    let admin = ["user", "admin"].iter().position(|known| *known == kind)? > 0;
    Some(Viewer { name: Arc::from(name), admin, handlers })
}

/// Says a request and reads its answer.
fn exchange(stream: &mut UnixStream, request: &[u8]) -> IoResult<Answer> {
    stream.write_all(request)?;
    Ok(Answer::read(stream)?.0)
}

/// The request as the gate understood it: nothing that the client wrote frames it.
fn rebuilt(request: &PageRequest, Pass(pass): &Pass) -> Zeroizing<Vec<u8>> {
    let PageRequest { method, target, body, trace, viewer, .. } = request;
    let kind = if viewer.admin { "admin" } else { "user" };
    let handlers = viewer.handlers.as_ref().map_or("*".into(), |names| names.join(","));
    let mut out = Zeroizing::new(Vec::with_capacity(512 + target.len() + body.len()));
    let _ = write!(
        *out,
        "{method} {target} HTTP/1.1\r\nHost: inner\r\n{TRACE_HEADER}: {trace}\r\n{PASS_HEADER}: {}\r\n\
         {VIEWER_HEADER}: {kind} {} {handlers}\r\nContent-Length: {}\r\n\r\n",
        **pass,
        viewer.name,
        body.len()
    );
    out.extend_from_slice(body);
    out
}
