//! Log lines leave through a bounded buffer and one writer thread: a blocked pipe blocks nobody, a closed
//! one ends nothing, and lost lines are counted.

use std::io::{ErrorKind, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use env_logger::{Builder, Env, Target};

use super::{EVENT_TARGET, JSON};
use crate::clock::Clock;
use crate::config::LogFormat;
use crate::job::JobId;
use crate::limits::{LOG_BYTES, LOG_LINES};
use crate::problem::json_text;

/// This process's buffer, once there is a writer.
static BUFFER: OnceLock<SyncSender<Vec<u8>>> = OnceLock::new();
/// Lines that found the buffer full, or that could not be written.
static LOST: AtomicU64 = AtomicU64::new(0);
/// Lines that are not written yet, and their bytes.
static PENDING: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// Sets up logging for this process, once; `role` is named in every line. `RUST_LOG` filters (default `info`).
pub fn start(format: LogFormat, role: &'static str) {
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    let (lines, inbox) = sync_channel::<Vec<u8>>(LOG_LINES);
    let writer = std::thread::Builder::new().name("log".into()).spawn(move || write_lines(&inbox));
    if writer.is_err() {
        return; // No thread, no log: the service is worth more.
    }
    BUFFER.get_or_init(|| lines);
    let clock = Clock::system();
    let mut builder = Builder::from_env(Env::default().default_filter_or("info"));
    builder.target(Target::Pipe(Box::new(Buffer))).format(move |out, record| {
        let (ts, level, pid, message) = (clock.now(), record.level(), std::process::id(), record.args());
        if format == LogFormat::Text {
            return writeln!(out, "{ts} {level:5} {role}[{pid}] {message}");
        }
        let level = level.as_str().to_ascii_lowercase();
        write!(out, r#"{{"ts":"{ts}","level":"{level}","process":"{role}","pid":{pid},"#)?;
        match record.target() {
            EVENT_TARGET => writeln!(out, "{message}}}"),
            _ => writeln!(out, r#""event":"log","message":{}}}"#, json_text(&message.to_string())),
        }
    });
    // A second logger (an embedder's own) keeps what is there.
    let _ = builder.try_init();
}

/// Says a line of our own to standard error, as it is: a blocked one must not keep a process from its end.
pub fn say(line: String) {
    push(line.into_bytes(), 1);
}

/// Passes on a line that another process has written. Half of the buffer stays for our own.
pub fn pass_on(line: Vec<u8>) {
    push(line, 2);
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

fn write_lines(inbox: &Receiver<Vec<u8>>) {
    while let Ok(line) = inbox.recv() {
        let is_written = write(&line);
        PENDING.fetch_sub(1, Ordering::AcqRel);
        BYTES.fetch_sub(line.len() as u64, Ordering::AcqRel);
        let lost = LOST.load(Ordering::Relaxed);
        if !is_written {
            LOST.fetch_add(1, Ordering::Relaxed);
        } else if lost > 0
            && write(format!("{lost} log lines were lost: standard error was not read in time\n").as_bytes())
        {
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
