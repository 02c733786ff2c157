//! Log lines leave through a bounded buffer and one writer thread: a blocked pipe blocks nobody, a closed
//! one ends nothing, and lost lines are counted.

use std::io::{ErrorKind, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use env_logger::{Builder, Env, Target};

use log::Level;
use serde_json::{Map, Value};

use super::{EVENT_TARGET, JSON, is_hidden, is_json, is_plain, quoted};
use crate::clock::Clock;
use crate::config::LogFormat;
use crate::job::JobId;
use crate::limits::{LOG_BYTES, LOG_LINES};

const WHY: &str = "standard error was not read in time";

/// This process's buffer, once there is a writer.
static BUFFER: OnceLock<SyncSender<Vec<u8>>> = OnceLock::new();
/// Lines that found the buffer full, or that could not be written.
static LOST: AtomicU64 = AtomicU64::new(0);
/// Lines that are not written yet, and their bytes.
static PENDING: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// Sets up logging for this process, once; `role` is named in every line. `RUST_LOG` filters (default `info`). Each line
/// begins with the mark, by which a supervisor tells it from other words of this process; its own lines have none.
pub fn start(format: LogFormat, role: &'static str, mark: &str) {
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    let mark = mark.to_owned();
    let our_line = move |level, message: &str| mark.clone() + &line(level, role, std::process::id(), message);
    let (lines, inbox) = sync_channel::<Vec<u8>>(LOG_LINES);
    let say_lost = our_line.clone();
    let writer = std::thread::Builder::new().name("log".into()).spawn(move || {
        let lost =
            |count| say_lost(Level::Warn, &log_message(&format!("{count} log lines were lost: {WHY}")));
        write_lines(&inbox, lost);
    });
    if writer.is_err() {
        return; // No thread, no log: the service is worth more.
    }
    BUFFER.get_or_init(|| lines);
    let mut builder = Builder::from_env(Env::default().default_filter_or("info"));
    builder.target(Target::Pipe(Box::new(Buffer))).format(move |out, record| {
        let message = record.args().to_string();
        let message = if record.target() == EVENT_TARGET { message } else { log_message(&message) };
        out.write_all(our_line(record.level(), &message).as_bytes())
    });
    // A second logger (an embedder's own) keeps what is there.
    let _ = builder.try_init();
}

/// A line of the log; the message is an event's.
fn line(level: Level, process: &str, pid: u32, message: &str) -> String {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    let ts = CLOCK.get_or_init(Clock::system).now();
    if !is_json() {
        return format!("{ts} {level:5} {process}[{pid}] {message}\n");
    }
    let level = level.as_str().to_ascii_lowercase();
    format!(r#"{{"ts":"{ts}","level":"{level}","process":"{process}","pid":{pid},{message}}}"#) + "\n"
}

/// A message that is no event's: as it is for people, unless it would do more in a terminal than be read.
fn log_message(text: &str) -> String {
    match is_json() {
        true => format!(r#""event":"log","message":{}"#, quoted(text)),
        false if text.contains(is_hidden) => quoted(text),
        false => text.to_owned(),
    }
}

/// Says a line of our own to standard error, as it is: a blocked one must not keep a process from its end.
pub fn say(line: String) {
    push(line.into_bytes(), 1);
}

/// Passes on a line of a child. Half of the buffer stays for our own. What its own logger has marked, and what says that it
/// is of this process, goes on as it is; all else is quoted, under the child's name: no line can pose as another process's.
pub fn pass_on(text: &str, is_marked: bool, process: &str, pid: u32) {
    let is_its = is_marked && !text.contains(is_hidden) && says_its_name(text, process, pid);
    let line = if is_its { format!("{text}\n") } else { line(Level::Info, process, pid, &said(text)) };
    push(line.into_bytes(), 2);
}

fn said(text: &str) -> String {
    match is_json() {
        true => format!(r#""event":"process.stderr","text":{}"#, quoted(text)),
        false if is_plain(text) => format!("process.stderr text={text}"),
        false => format!("process.stderr text={}", quoted(text)),
    }
}

/// Both the first and the last time that it names a process, in an object: parsers differ in what they take.
fn says_its_name(text: &str, process: &str, pid: u32) -> bool {
    /// A time, a level, and the spaces behind them.
    const BEFORE_THE_NAME: usize = 31;
    if !is_json() {
        let name = text.get(BEFORE_THE_NAME..).and_then(|rest| rest.strip_prefix(process)?.strip_prefix('['));
        return name.is_some_and(|rest| rest.starts_with(&format!("{pid}] ")));
    }
    let names = format!(r#""process":"{process}","pid":{pid},"#);
    let is_first = text.find(r#""process":"#).is_some_and(|at| text[at..].starts_with(&names));
    let last: Option<Map<String, Value>> = serde_json::from_str(text).ok();
    is_first && last.is_some_and(|fields| fields["process"] == process && fields["pid"] == pid)
}

/// Takes a line if `share`, a half or all of the buffer, has room for it.
fn push(line: Vec<u8>, share: u64) {
    let Some(buffer) = BUFFER.get() else {
        // Before the log is set up, or without a thread: better in our way than lost.
        return drop(std::io::stderr().write_all(&line));
    };
    let length = line.len() as u64;
    let lines = PENDING.fetch_add(1, Ordering::AcqRel);
    let bytes = BYTES.fetch_add(length, Ordering::AcqRel) + length;
    let is_full = lines >= LOG_LINES as u64 / share || bytes > LOG_BYTES / share;
    if is_full || buffer.try_send(line).is_err() {
        PENDING.fetch_sub(1, Ordering::AcqRel);
        BYTES.fetch_sub(length, Ordering::AcqRel);
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

/// Names jobs that were cut off, a line each; as many at once as the buffer takes.
pub fn name_cut_off(jobs: &[JobId]) {
    for some in jobs.chunks(LOG_LINES / 4) {
        for job in some {
            super::event(log::Level::Warn, "lifecycle.forced").field("job_id", &job.to_string()).emit();
        }
        settle();
    }
}

/// What the logger writes into.
struct Buffer;

impl Write for Buffer {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        push(line.to_vec(), 1);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write_lines(inbox: &Receiver<Vec<u8>>, say_lost: impl Fn(u64) -> String) {
    while let Ok(line) = inbox.recv() {
        let is_written = write(&line);
        PENDING.fetch_sub(1, Ordering::AcqRel);
        BYTES.fetch_sub(line.len() as u64, Ordering::AcqRel);
        let lost = LOST.load(Ordering::Relaxed);
        if !is_written {
            LOST.fetch_add(1, Ordering::Relaxed);
        } else if lost > 0 && write(say_lost(lost).as_bytes()) {
            LOST.fetch_sub(lost, Ordering::Relaxed);
        }
    }
}

/// A sealed, closed or full standard error is no reason to stop; one that does not block is waited for.
fn write(line: &[u8]) -> bool {
    const AGAIN: std::time::Duration = std::time::Duration::from_millis(5);
    let (mut stderr, mut rest) = (std::io::stderr(), line);
    while !rest.is_empty() {
        match stderr.write(rest) {
            Ok(0) => return false,
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(AGAIN),
            Err(_) => return false,
        }
    }
    true
}

/// Waits until the buffer is written, before the process ends; a blocked pipe is not waited for.
pub fn settle() {
    let mut looks = 0..200;
    while PENDING.load(Ordering::Acquire) > 0 && looks.next().is_some() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
