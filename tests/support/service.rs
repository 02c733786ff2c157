//! A running service in tests: the real binary, its processes, and a raw HTTP client for it.
//!
//! It guards the suite against two things: a process that outlives its test (the supervisor is killed by its
//! pid when a [`Service`] is dropped, also by a panic, and its children end with it), and a client that is
//! kinder than a socket: it sends the bytes that it is given and reads one answer as RFC 9112 frames it.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::program::{cofferdam, command};

#[path = "stopwatch.rs"]
mod stopwatch;
pub use stopwatch::Stopwatch;

/// Nothing in these tests takes so long, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(3);

/// Looks until there is something, and fails by name if there is nothing in time.
#[track_caller]
pub fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Stopwatch::start();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// An address that nobody has, below the ports that Linux gives out by itself: nobody is given it meanwhile.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let ports = std::iter::repeat_with(|| {
        let at = 50 * std::process::id() + NEXT.fetch_add(1, Ordering::Relaxed);
        SocketAddr::from(([127, 0, 0, 1], 10_000 + (at % 22_000) as u16))
    });
    ports.take(22_000).find(|address| TcpListener::bind(address).is_ok()).expect("a free port")
}

/// Sends a signal to one process, by its pid. One that has ended is none of our concern.
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    let _ = kill_process(pid, signal);
}

/// `kill -9`
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// One field of `/proc/PID/stat` after the name: 0 is the state, 1 the parent.
fn stat(pid: u32, field: usize) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = text.rsplit_once(") ")?;
    after.split(' ').nth(field).map(str::to_owned)
}

/// True while a process runs; one that has ended and is not waited for yet does not.
pub fn is_alive(pid: u32) -> bool {
    stat(pid, 0).is_some_and(|state| state != "Z" && state != "X")
}

/// True if this signal waits for the process, which is stopped.
pub fn has_pending(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("ShdPnd:\t"));
    set.and_then(|set| u64::from_str_radix(set, 16).ok())
        .is_some_and(|set| set >> (signal.as_raw() - 1) & 1 > 0)
}

/// The words of a process's command line.
pub fn words(pid: u32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The children of a process, whatever they are.
pub fn all_children(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |pid: &u32| {
        stat(*pid, 1).is_some_and(|of| of == parent.to_string()) && stat(*pid, 0) != Some("Z".into())
    };
    let mut found: Vec<u32> = pids.filter(is_child).collect();
    found.sort_unstable();
    found
}

/// Those that run in a role, `web` or `executor`: the second word of their command line.
pub fn children(parent: u32, role: &str) -> Vec<u32> {
    let is_in = |pid: &u32| words(*pid).get(1).is_some_and(|word| word == role);
    all_children(parent).into_iter().filter(is_in).collect()
}

/// How many descriptors and threads a process has; none of those that only root may count, or of one that is gone.
pub fn holdings(pid: u32) -> (usize, usize) {
    let count = |of: &str| std::fs::read_dir(format!("/proc/{pid}/{of}")).map_or(0, Iterator::count);
    (count("fd"), count("task"))
}

/// Processor time that a process has taken.
pub fn processor_time(pid: u32) -> Duration {
    // Linux counts these in hundredths of a second for every program (`USER_HZ`).
    let ticks = |field| stat(pid, field).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

/// How a service ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stderr: String,
}

/// A running `serve`.
pub struct Service {
    child: Child,
    pub address: SocketAddr,
    pub pid: u32,
    stderr: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Service {
    /// The package's own binary on a free port, with these `PATH=VALUE`s.
    #[track_caller]
    pub fn start(sets: &[&str]) -> Service {
        Service::of(&cofferdam(), sets)
    }

    /// The same with an embedder's binary.
    #[track_caller]
    pub fn of(program: &Path, sets: &[&str]) -> Service {
        Service::from(Service::spawn(program, sets))
    }

    /// Around a `serve` that was just started with piped streams.
    #[track_caller]
    pub fn from(mut child: Child) -> Service {
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let reader = collect(child.stderr.take().expect("stderr is piped"), stderr.clone());
        let lines = lines(child.stdout.take().expect("stdout is piped"));
        let pid = child.id();
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        // From here on a panic ends the child.
        let mut service = Service { child, address: unknown, pid, stderr, reader: Some(reader) };
        let line = lines.recv_timeout(PATIENCE);
        let line = line.unwrap_or_else(|_| panic!("no ready line; stderr: {}", service.stderr()));
        let said = line.strip_prefix("ready http://").and_then(|rest| rest.split_once(" pid="));
        let (address, said_pid) = said.unwrap_or_else(|| panic!("{line:?} is no ready line"));
        assert_eq!(said_pid, pid.to_string(), "the ready line names the process that was started");
        service.address = address.parse().unwrap_or_else(|_| panic!("{address:?} is no address"));
        service
    }

    /// Starts the program without waiting for it.
    pub fn spawn(program: &Path, sets: &[&str]) -> Child {
        Service::command(program, sets).spawn().expect("the program can be started")
    }

    /// One whose listener is a service manager's, which keeps it.
    #[track_caller]
    pub fn lent(listener: &TcpListener, sets: &[&str]) -> Service {
        let mut command = Service::command(&cofferdam(), sets);
        command.stdin(OwnedFd::from(listener.try_clone().expect("a socket")));
        Service::from(command.spawn().expect("the program can be started"))
    }

    fn command(program: &Path, sets: &[&str]) -> Command {
        let mut arguments = vec!["serve".to_owned(), "--set".into(), "web.bind=127.0.0.1:0".into()];
        for set in sets {
            arguments.extend(["--set".into(), (*set).to_owned()]);
        }
        command(program, &arguments)
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Its children in a role, now.
    pub fn children(&self, role: &str) -> Vec<u32> {
        children(self.pid, role)
    }

    /// Its only child in a role; waits for one that is being replaced.
    #[track_caller]
    pub fn child(&self, role: &str) -> u32 {
        until(role, PATIENCE, || match self.children(role)[..] {
            [pid] => Some(pid),
            _ => None,
        })
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        signal(self.pid, Signal::TERM);
    }

    /// SIGTERM, and how it ended.
    #[track_caller]
    pub fn stop(self) -> Ended {
        self.terminate();
        self.ended()
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub fn ended(mut self) -> Ended {
        let child = &mut self.child;
        let status = until("the service ends", PATIENCE, || {
            child.try_wait().expect("our own child can be waited for")
        });
        if let Some(reader) = self.reader.take() {
            // Its pipe ends with the last process that has it.
            until("its stderr ends", PATIENCE, || reader.is_finished().then_some(()));
        }
        Ended { status, stderr: self.stderr() }
    }

    /// A new connection.
    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::to(self.address)
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn request(&self, method: &str, target: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Answer {
        let mut client = self.connect();
        client.request(method, target, headers, body)
    }

    #[track_caller]
    pub fn get(&self, target: &str) -> Answer {
        let mut client = self.connect();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        client.read()
    }

    #[track_caller]
    pub fn post(&self, target: &str, body: impl AsRef<[u8]>) -> Answer {
        self.request("POST", target, &[], body)
    }

    /// Submits without waiting; the job's id.
    #[track_caller]
    pub fn submit(&self, target: &str, headers: &[&str], body: impl AsRef<[u8]>) -> String {
        let headers: Vec<&str> = headers.iter().copied().chain(["Prefer: respond-async"]).collect();
        let answer = self.request("POST", target, &headers, body);
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.json()["id"].as_str().expect("an id").to_owned()
    }

    /// A job's record, now.
    #[track_caller]
    pub fn record(&self, id: &str) -> Value {
        let answer = self.get(&format!("/v1/jobs/{id}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// A job's record once it has this status.
    #[track_caller]
    pub fn record_when(&self, id: &str, status: &str) -> Value {
        until(&format!("{id} is {status}"), PATIENCE, || {
            Some(self.record(id)).filter(|record| record["status"] == status)
        })
    }

    /// The value of one line of `/metrics`, named with its labels and without the prefix.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let answer = self.get("/metrics");
        let line = format!("cofferdam_{name} ");
        let text = answer.text();
        let value = text.lines().find_map(|candidate| candidate.strip_prefix(&line));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no metric {name} in:\n{text}"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Without its supervisor no child lives on; a test of its own checks that.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("the service's stderr:\n{}", self.stderr());
        }
    }
}

/// Until so many callers wait.
#[track_caller]
pub fn waiters(service: &Service, count: f64) {
    until(&format!("{count} callers wait"), PATIENCE, || {
        (service.metric("reply_waiters") == count).then_some(())
    });
}

/// Until so many jobs run.
#[track_caller]
pub fn running(service: &Service, count: u64) {
    until(&format!("{count} jobs run"), PATIENCE, || {
        (service.get("/v1/stats").json()["totals"]["running"] == count).then_some(())
    });
}

/// A caller that waits for a handler's answer.
pub fn caller(service: &Service, target: &str, body: impl AsRef<[u8]>) -> Client {
    let mut client = service.connect();
    client.send(request("POST", target, &[], body));
    client
}

/// Tells other threads that the work is done, also when it panics.
pub struct Done<'a>(pub &'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does `harm` again and again beside the work, until that is done; says how often. `harm` says if it did any, and how
/// long to wait for the next.
pub fn with_harm<T>(
    mut harm: impl FnMut() -> (bool, Duration) + Send,
    work: impl FnOnce() -> T,
) -> (T, usize) {
    let (done, times) = (AtomicBool::new(false), AtomicUsize::new(0));
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = Instant::now() + Duration::from_millis(20);
            while !done.load(Ordering::Relaxed) {
                if Instant::now() >= next {
                    let (is_done, pause) = harm();
                    next = Instant::now() + pause;
                    times.fetch_add(usize::from(is_done), Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let _done = Done(&done);
        work()
    });
    (result, times.into_inner())
}

/// A caller that waits for a sleep of so many ms.
pub fn sleeper(service: &Service, ms: u64) -> Client {
    caller(service, "/v1/jobs/sleep", format!("{{\"ms\":{ms}}}"))
}

/// As `Read::read`, also where this process was stopped and goes on: a read with a deadline is interrupted then (signal(7)).
pub fn read(from: &mut impl Read, part: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match from.read(part) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

fn collect(mut pipe: impl Read + Send + 'static, into: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut part = [0; 4_096];
        while let Ok(read @ 1..) = pipe.read(&mut part) {
            into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&part[..read]);
        }
    })
}

fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    lines
}

/// One answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name);
        let first = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} is there twice: {self:?}");
        first
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The problem's code; empty for an answer that is none.
    pub fn code(&self) -> String {
        let json: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(&self.body[..self.body.len().min(600)]);
        write!(f, "{} {:?} {text:?}", self.status, self.headers)
    }
}

/// One connection.
pub struct Client {
    pub stream: TcpStream,
    /// What was read beyond the last answer.
    input: Vec<u8>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The connection was closed before a byte of one.
    Closed,
    /// It broke off inside one.
    Broken,
    /// Nothing, or too little, came in time.
    Late,
}

impl Client {
    #[track_caller]
    pub fn to(address: SocketAddr) -> Client {
        Client::try_to(address).expect("the service accepts")
    }

    /// The same where a refused connection is one of the possible ends.
    pub fn try_to(address: SocketAddr) -> std::io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client { stream, input: Vec::new() })
    }

    /// Exactly these bytes. A service that has closed already is seen when its answer is read.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// A request with a `Host` and the body's length, and its answer, which must come.
    #[track_caller]
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[&str],
        body: impl AsRef<[u8]>,
    ) -> Answer {
        self.send(request(method, target, headers, body));
        self.read_framed(PATIENCE, method != "HEAD")
            .unwrap_or_else(|why| panic!("no answer: {why:?}, after {:?}", self.input))
    }

    /// One answer, which must come.
    #[track_caller]
    pub fn read(&mut self) -> Answer {
        self.try_read(PATIENCE).unwrap_or_else(|why| panic!("no answer: {why:?}, after {:?}", self.input))
    }

    /// One answer.
    pub fn try_read(&mut self, patience: Duration) -> Result<Answer, NoAnswer> {
        self.read_framed(patience, true)
    }

    /// The answer to `HEAD`: a length and no body.
    #[track_caller]
    pub fn read_without_body(&mut self) -> Answer {
        self.read_framed(PATIENCE, false).unwrap_or_else(|why| panic!("no answer: {why:?}"))
    }

    fn read_framed(&mut self, patience: Duration, with_body: bool) -> Result<Answer, NoAnswer> {
        let deadline = Instant::now() + patience;
        let end = loop {
            match self.input.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None => self.more(deadline)?,
            }
        };
        let head: Vec<u8> = self.input.drain(..end).collect();
        let head = std::str::from_utf8(&head).expect("an answer's head is ASCII");
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line in {head:?}"));
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("{line:?} is no header"));
            (name.to_ascii_lowercase(), value.to_owned())
        });
        let mut answer = Answer { status, headers: headers.collect(), body: Vec::new() };
        if status >= 200 && with_body {
            match (answer.header("content-length"), answer.header("transfer-encoding")) {
                (Some(length), None) => {
                    let length = length.parse().expect("a length");
                    answer.body = self.take(length, deadline)?;
                }
                (None, Some("chunked")) => answer.body = self.chunks(deadline)?,
                other => panic!("an answer is framed by exactly one header, not {other:?}"),
            }
        }
        Ok(answer)
    }

    fn chunks(&mut self, deadline: Instant) -> Result<Vec<u8>, NoAnswer> {
        let mut body = Vec::new();
        loop {
            let at = loop {
                match self.input.windows(2).position(|window| window == b"\r\n") {
                    Some(at) => break at,
                    None => self.more(deadline).map_err(broken)?,
                }
            };
            let line: Vec<u8> = self.input.drain(..at + 2).collect();
            let size = std::str::from_utf8(&line[..at]).expect("a chunk's size is ASCII");
            let size = usize::from_str_radix(size, 16).expect("a chunk's size is hexadecimal");
            let chunk = self.take(size + 2, deadline)?;
            assert!(chunk.ends_with(b"\r\n"), "a chunk ends with CR LF");
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn take(&mut self, length: usize, deadline: Instant) -> Result<Vec<u8>, NoAnswer> {
        while self.input.len() < length {
            self.more(deadline).map_err(broken)?;
        }
        Ok(self.input.drain(..length).collect())
    }

    fn more(&mut self, deadline: Instant) -> Result<(), NoAnswer> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(left)).expect("a TCP socket");
        let mut part = [0; 65_536];
        let ended = if self.input.is_empty() { NoAnswer::Closed } else { NoAnswer::Broken };
        match read(&mut self.stream, &mut part) {
            Ok(0) => Err(ended),
            Ok(read) => {
                self.input.extend_from_slice(&part[..read]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(NoAnswer::Late)
            }
            Err(_) => Err(ended),
        }
    }

    /// All that comes until the service closes the connection.
    #[track_caller]
    pub fn read_to_end(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        let why = loop {
            if let Err(why) = self.more(deadline) {
                break why;
            }
        };
        assert_ne!(why, NoAnswer::Late, "the connection is not closed");
        String::from_utf8(std::mem::take(&mut self.input)).expect("UTF-8")
    }

    /// Fails unless the service closes the connection without a further byte.
    #[track_caller]
    pub fn assert_closed(&mut self) {
        let after = self.try_read(PATIENCE);
        assert_eq!(after, Err(NoAnswer::Closed), "the connection is closed after it");
    }
}

/// Inside an answer an end is never a clean one.
fn broken(why: NoAnswer) -> NoAnswer {
    if why == NoAnswer::Closed { NoAnswer::Broken } else { why }
}

/// The bytes of a request with a `Host` and the body's length.
pub fn request(method: &str, target: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
    for header in headers {
        bytes += &format!("{header}\r\n");
    }
    bytes += &format!("Content-Length: {}\r\n\r\n", body.len());
    [bytes.as_bytes(), body].concat()
}
