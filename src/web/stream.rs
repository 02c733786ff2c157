//! `/v1/batch`: the lines of one body, so many of them in flight, their results in order. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use crate::batch::sequence::Sequencer;
use crate::batch::{error_line, result_line};
use crate::config::SinkMode;
use crate::handler::HandlerSpec;
use crate::job::{Finished, JobError, JobId};
use crate::limits::BATCH_LINES;
use crate::problem::Code;

/// See the module.
pub(super) struct Stream {
    pub(super) handler: HandlerSpec,
    body: Vec<u8>,
    /// Where the next line begins.
    at: usize,
    next_line: u64,
    in_flight: HashMap<JobId, u64>,
    sequencer: Sequencer,
    /// Lines read whose results have not left the sequencer.
    open: usize,
}

/// A line to submit.
pub(super) struct NextLine {
    pub(super) number: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) ordering_key: Option<Arc<str>>,
}

impl Stream {
    pub(super) fn new(handler: HandlerSpec, body: Vec<u8>, mode: SinkMode) -> Stream {
        Stream {
            handler,
            body,
            at: 0,
            next_line: 0,
            in_flight: HashMap::new(),
            sequencer: Sequencer::new(mode),
            open: 0,
        }
    }

    /// The next line that can become a job; `None` while the window is full, or at the end. Lines that cannot
    /// get their answers at once.
    pub(super) fn next_line(&mut self, max_payload: usize) -> Option<NextLine> {
        while self.open < BATCH_LINES && self.at < self.body.len() {
            let rest = &self.body[self.at..];
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            let bytes = rest[..end].to_vec();
            self.at += end + 1;
            let number = self.next_line;
            self.next_line += 1;
            self.open += 1;
            if bytes.len() > max_payload {
                self.refuse(
                    number,
                    &JobError::new(Code::PayloadTooLarge, "the line exceeds web.max_body_bytes"),
                );
                continue;
            }
            match self.handler.options.ordering.key(None, &bytes) {
                Ok(ordering_key) => return Some(NextLine { number, bytes, ordering_key }),
                Err(detail) => self.refuse(number, &JobError::new(Code::BadRequest, detail)),
            }
        }
        None
    }

    /// The line's job was accepted.
    pub(super) fn submitted(&mut self, job: JobId, line: u64) {
        self.in_flight.insert(job, line);
    }

    /// The line could not be accepted yet: it is the next one again.
    pub(super) fn put_back(&mut self, line: &NextLine) {
        self.at -= line.bytes.len() + 1;
        self.next_line -= 1;
        self.open -= 1;
    }

    /// The line is answered without a job.
    pub(super) fn refuse(&mut self, line: u64, error: &JobError) {
        self.sequencer.push(line, error_line(error));
    }

    /// A job of this batch has ended; false if it is none of them.
    pub(super) fn finished(&mut self, job: JobId, finished: &Finished) -> bool {
        let Some(line) = self.in_flight.remove(&job) else { return false };
        self.sequencer.push(line, result_line(finished));
        true
    }

    /// The next result in order.
    pub(super) fn next_result(&mut self) -> Option<Vec<u8>> {
        let result = self.sequencer.next_ready()?;
        self.open -= 1;
        Some(result)
    }

    /// Every line has its answer, and all of them were taken.
    pub(super) fn is_done(&self) -> bool {
        self.at >= self.body.len() && self.open == 0
    }

    /// Jobs that have not ended.
    pub(super) fn jobs(&self) -> Vec<JobId> {
        self.in_flight.keys().copied().collect()
    }
}
