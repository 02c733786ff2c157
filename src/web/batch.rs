//! The state of `/v1/batch` requests.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::job::{Finished, JobId};
use crate::ndjson::{Line, Pump};

/// What all batches share.
pub(super) struct Batches {
    /// Those that found the queue full or the backend away, once each; they are fed again then.
    pub(super) stalled: Vec<u64>,
    pub(super) resume_at: Timestamp,
}

impl Batches {
    pub(super) fn new() -> Batches {
        Batches { stalled: Vec::new(), resume_at: Timestamp(u64::MAX) }
    }

    /// When [`Gate::resume_batches`] has something to do.
    pub(super) fn resume_at(&self) -> Timestamp {
        self.resume_at
    }

    /// Jobs have ended: there may be room for others.
    pub(super) fn has_room(&mut self, now: Timestamp) {
        if !self.stalled.is_empty() {
            self.resume_at = now;
        }
    }

    pub(super) fn stall(&mut self, number: u64, until: Timestamp) {
        if !self.stalled.contains(&number) {
            self.stalled.push(number);
        }
        self.resume_at = self.resume_at.min(until);
    }
}

/// One request's lines.
pub(super) struct Batch {
    pub(super) handler: Arc<str>,
    pub(super) body: Arc<[u8]>,
    /// Where the next line begins.
    pub(super) at: usize,
    pub(super) pump: Pump,
}

impl Batch {
    /// The next line that can become a job; `None` while the window is full, or at the end.
    pub(super) fn next_line(&mut self, max_payload: usize) -> Option<Line> {
        if let Some(line) = self.pump.again() {
            return Some(line);
        }
        while self.pump.has_room() && self.at < self.body.len() {
            let rest = &self.body[self.at..];
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            self.at += end + 1;
            let fits = if end > max_payload { Err("web.max_body_bytes") } else { Ok(&rest[..end]) };
            if let Some(line) = self.pump.line(fits) {
                return Some(line);
            }
        }
        None
    }

    pub(super) fn is_done(&self) -> bool {
        self.at >= self.body.len() && self.pump.is_idle()
    }

    /// A job of this batch has ended.
    pub(super) fn finished(&mut self, job: JobId, finished: &Finished) {
        self.pump.finished(job, finished);
    }
}
