//! Log lines leave through a bounded buffer and one writer thread: a blocked pipe blocks nobody, a closed
//! one ends nothing, and lost lines are counted.

use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use env_logger::{Builder, Env, Target};

use super::{EVENT_TARGET, write_json};
use crate::clock::Clock;
use crate::config::LogFormat;
use crate::limits::LOG_LINES;
use crate::problem::json_text;

/// This process's buffer, once there is a writer.
static BUFFER: OnceLock<Buffer> = OnceLock::new();
/// Lines that found the buffer full.
static LOST: AtomicU64 = AtomicU64::new(0);
/// Lines that are not written yet.
static PENDING: AtomicU64 = AtomicU64::new(0);

/// Sets up logging for this process, once; `role` is named in every line. `RUST_LOG` filters (default `info`).
pub fn start(format: LogFormat, role: &'static str) {
    write_json(format == LogFormat::Json);
    let (lines, inbox) = sync_channel::<Vec<u8>>(LOG_LINES);
    let writer = std::thread::Builder::new().name("log".into()).spawn(move || write_lines(&inbox));
    if writer.is_err() {
        return; // No thread, no log: the service is worth more.
    }
    let buffer = BUFFER.get_or_init(|| Buffer(lines));
    let clock = Clock::system();
    let mut builder = Builder::from_env(Env::default().default_filter_or("info"));
    builder.target(Target::Pipe(Box::new(buffer.clone()))).format(move |out, record| {
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

/// Passes on a line that another process has written: it leaves as it came.
pub fn pass_on(line: Vec<u8>) {
    match BUFFER.get() {
        Some(buffer) => buffer.push(line),
        // No thread could be made: better in our way than lost.
        None => drop(std::io::stderr().write_all(&line)),
    }
}

#[derive(Clone)]
struct Buffer(SyncSender<Vec<u8>>);

impl Buffer {
    fn push(&self, line: Vec<u8>) {
        PENDING.fetch_add(1, Ordering::AcqRel);
        if self.0.try_send(line).is_err() {
            PENDING.fetch_sub(1, Ordering::AcqRel);
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Write for Buffer {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write_lines(inbox: &Receiver<Vec<u8>>) {
    let mut stderr = std::io::stderr();
    while let Ok(line) = inbox.recv() {
        // A sealed, closed or full standard error is not a reason to stop.
        let _ = stderr.write_all(&line);
        PENDING.fetch_sub(1, Ordering::AcqRel);
        let missing = LOST.swap(0, Ordering::Relaxed);
        if missing > 0 {
            let _ = writeln!(stderr, "{missing} log lines were lost: standard error was not read in time");
        }
    }
}

/// Waits until the buffer is written, before the process ends; a blocked pipe is not waited for.
pub fn settle() {
    let mut looks = 0..200;
    while PENDING.load(Ordering::Acquire) > 0 && looks.next().is_some() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
