//! What a child writes to its standard error: passed on line by line, the last one remembered.

use std::io::{ErrorKind, Read};
use std::process::ChildStderr as Pipe;

use mio::Interest;
use mio::unix::pipe::Receiver;

use crate::observe::log_writer;

/// A longer line is passed on in pieces.
const LINE_BYTES: usize = 16 << 10;
/// Bytes taken at once from one child, so that no child's words keep the supervisor from the others.
const TURN_BYTES: usize = 256 << 10;
/// Characters of the last words that a message quotes.
const LAST_CHARS: usize = 400;

/// One child's standard error.
pub struct ChildStderr {
    pipe: Receiver,
    line: Vec<u8>,
    last: Vec<u8>,
    /// More was there than one turn takes.
    more: bool,
}

impl ChildStderr {
    /// Around the pipe of a child.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(pipe: Pipe) -> std::io::Result<ChildStderr> {
        let pipe = Receiver::from(pipe);
        pipe.set_nonblocking(true)?;
        Ok(ChildStderr { pipe, line: Vec::new(), last: Vec::new(), more: false })
    }

    /// Watches it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn register(&mut self, registry: &mio::Registry, token: mio::Token) -> std::io::Result<()> {
        registry.register(&mut self.pipe, token, Interest::READABLE)
    }

    /// Passes on what has come.
    pub fn pass_on(&mut self) {
        let mut buffer = [0; 8_192];
        let mut taken = 0;
        self.more = false;
        while taken < TURN_BYTES {
            match self.pipe.read(&mut buffer) {
                Ok(0) => return self.end_line(),
                Ok(read) => {
                    taken += read;
                    self.take(&buffer[..read]);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
        self.more = true;
    }

    /// True while there may be more that no event will tell of.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.more
    }

    /// The last line that was not empty, for a message; what is not printable is replaced.
    #[must_use]
    pub fn last(&self) -> String {
        let text = String::from_utf8_lossy(&self.last);
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        text.trim().chars().take(LAST_CHARS).map(printable).collect()
    }

    fn take(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") || self.line.len() >= LINE_BYTES {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let mut line = std::mem::take(&mut self.line);
        if !line.trim_ascii().is_empty() {
            self.last.clone_from(&line);
        }
        if !line.is_empty() {
            if !line.ends_with(b"\n") {
                line.push(b'\n');
            }
            log_writer::pass_on(line);
        }
    }
}
