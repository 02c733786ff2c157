//! How a run ends: its exit code, and its last words on a standard stream.

use std::io::Write;

use crate::observe::log_writer;

/// How a run ended; the numbers are the exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done or stopped cleanly.
    Done = 0,
    /// Failed while running.
    Failed = 1,
    /// Bad usage or bad config. Of a child: who takes its place would fare no better.
    Usage = 2,
    /// A child was not ready in time.
    NotReady = 3,
    /// Stopped, but the drain deadline passed and work was cut off.
    CutOff = 4,
}

/// Prints what was asked for; that it cannot be written is a failure.
pub(crate) fn answer(text: &str) -> Exit {
    let mut out = std::io::stdout();
    written_out(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// What became of it. A reader that has seen enough is no failure.
pub(crate) fn written_out(written: std::io::Result<()>) -> Exit {
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            ended(Err(format!("standard output: {error}")))
        }
        _ => Exit::Done,
    }
}

/// Prints to a standard stream; a closed one is no reason to panic.
pub(crate) fn say(mut out: impl Write, text: &str) {
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

pub(crate) fn complain(text: &str) {
    log_writer::say(format!("cofferdam: {text}\n"));
}

/// How a command that may fail while it runs has ended.
pub fn ended(outcome: Result<Exit, String>) -> Exit {
    outcome.unwrap_or_else(|message| {
        complain(&message);
        Exit::Failed
    })
}
