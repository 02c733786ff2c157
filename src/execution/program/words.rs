//! What a program writes to standard error: each line goes to the log with its job, and the last of it stands in the job's
//! error.

use std::sync::Arc;

use crate::job::JobSpec;
use crate::limits::WORDS_BYTES;
use crate::observe::job_event;

/// A longer line is told in pieces.
const LINE_BYTES: usize = 4 << 10;

/// See the module.
#[derive(Default)]
pub(super) struct Words {
    /// How many bytes it was, of one job.
    pub(super) bytes: usize,
    line: Vec<u8>,
    tail: Vec<u8>,
    job: Option<Arc<JobSpec>>,
}

impl Words {
    /// What follows is said of this job.
    pub(super) fn begin(&mut self, job: &Arc<JobSpec>) {
        self.end();
        (self.bytes, self.job) = (0, Some(job.clone()));
        self.tail.clear();
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.tail.extend_from_slice(bytes);
        self.tail.drain(..self.tail.len().saturating_sub(WORDS_BYTES));
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.line.len() >= LINE_BYTES {
                self.end();
            }
        }
    }

    /// Tells the line that is under way.
    pub(super) fn end(&mut self) {
        let line = std::mem::take(&mut self.line);
        let (text, Some(job)) = (line.trim_ascii_end(), &self.job) else { return };
        if !text.is_empty() {
            let said = job_event(log::Level::Info, "process.stderr", &job.trace, job.id, &job.handler);
            said.field("text", &String::from_utf8_lossy(text)).emit();
        }
    }

    /// The last of it.
    pub(super) fn tail(&self) -> String {
        String::from_utf8_lossy(&self.tail).trim().to_owned()
    }
}
