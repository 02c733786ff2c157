//! Log lines leave through a bounded buffer and one writer thread: a blocked pipe blocks nobody, a closed
//! one ends nothing, and lost lines are counted.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use env_logger::{Builder, Env, Target};

use super::{EVENT_TARGET, write_json};
use crate::clock::Clock;
use crate::config::LogFormat;
use crate::limits::LOG_LINES;
use crate::problem::json_text;

/// Sets up logging for this process, once; `role` is named in every line. `RUST_LOG` filters (default `info`).
pub fn start(format: LogFormat, role: &'static str) {
    write_json(format == LogFormat::Json);
    let (lines, inbox) = sync_channel::<Vec<u8>>(LOG_LINES);
    let lost = Arc::new(AtomicU64::new(0));
    let counter = lost.clone();
    let writer = std::thread::Builder::new().name("log".into()).spawn(move || write_lines(&inbox, &counter));
    if writer.is_err() {
        return; // No thread, no log: the service is worth more.
    }
    let clock = Clock::system();
    let mut builder = Builder::from_env(Env::default().default_filter_or("info"));
    builder.target(Target::Pipe(Box::new(Buffer { lines, lost }))).format(move |out, record| {
        let (ts, level, message) = (clock.now(), record.level(), record.args());
        let is_event = record.target() == EVENT_TARGET;
        match (format, is_event) {
            (LogFormat::Text, _) => writeln!(out, "{ts} {level:5} {role}[{}] {message}", std::process::id()),
            (LogFormat::Json, true) => writeln!(
                out,
                r#"{{"ts":"{ts}","level":"{}","process":"{role}","pid":{},{message}}}"#,
                level.as_str().to_ascii_lowercase(),
                std::process::id()
            ),
            (LogFormat::Json, false) => writeln!(
                out,
                r#"{{"ts":"{ts}","level":"{}","process":"{role}","pid":{},"event":"log","message":{}}}"#,
                level.as_str().to_ascii_lowercase(),
                std::process::id(),
                json_text(&message.to_string())
            ),
        }
    });
    // A second logger (an embedder's own) keeps what is there.
    let _ = builder.try_init();
}

struct Buffer {
    lines: SyncSender<Vec<u8>>,
    lost: Arc<AtomicU64>,
}

impl Write for Buffer {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        match self.lines.try_send(line.to_vec()) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write_lines(inbox: &Receiver<Vec<u8>>, lost: &AtomicU64) {
    let mut stderr = std::io::stderr();
    while let Ok(line) = inbox.recv() {
        // A sealed, closed or full standard error is not a reason to stop.
        let _ = stderr.write_all(&line);
        let missing = lost.swap(0, Ordering::Relaxed);
        if missing > 0 {
            let _ = writeln!(stderr, "{missing} log lines were lost: standard error was not read in time");
        }
    }
}

/// Gives the writer a moment to empty the buffer before the process ends. Bounded; a blocked pipe ends it.
pub fn settle() {
    log::logger().flush();
    std::thread::sleep(std::time::Duration::from_millis(20));
}
