//! `/v1/batch`: the lines of one body, so many of them in flight, their results in order. Pure.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::config::SinkMode;
use crate::handler::HandlerSpec;
use crate::job::{Finished, JobId};
use crate::limits::BATCH_LINES;
use crate::ndjson::{Sequencer, error_line, result_line};
use crate::problem::{Code, JobError};

/// See the module.
pub(super) struct Stream {
    pub(super) handler: HandlerSpec,
    body: Vec<u8>,
    /// Where the next line begins.
    at: usize,
    next_line: u64,
    /// Lines that found no room: they go first, and stay counted in `open`.
    again: VecDeque<NextLine>,
    in_flight: HashMap<JobId, u64>,
    /// Lines that the broker was asked to take, until it answers: the next ones wait, so that their order is kept.
    asked: Vec<NextLine>,
    sequencer: Sequencer,
    /// Lines read whose results have not left the sequencer.
    open: usize,
}

/// A line to submit.
pub(super) struct NextLine {
    pub(super) number: u64,
    /// `Some` once it was submitted.
    pub(super) job: Option<JobId>,
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
            again: VecDeque::new(),
            in_flight: HashMap::new(),
            asked: Vec::new(),
            sequencer: Sequencer::new(mode),
            open: 0,
        }
    }

    /// The next line that can become a job; `None` while the window is full, or at the end. Lines that cannot
    /// get their answers at once.
    pub(super) fn next_line(&mut self, max_payload: usize) -> Option<NextLine> {
        if let Some(line) = self.again.pop_front() {
            return Some(line);
        }
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
                Ok(ordering_key) => return Some(NextLine { number, job: None, bytes, ordering_key }),
                Err(detail) => self.refuse(number, &JobError::new(Code::BadRequest, detail)),
            }
        }
        None
    }

    /// The line's job is being submitted: it may end at any time.
    pub(super) fn submitted(&mut self, job: JobId, line: u64) {
        self.in_flight.insert(job, line);
    }

    /// The broker is asked to take these lines.
    pub(super) fn ask(&mut self, lines: Vec<NextLine>) {
        self.asked = lines;
    }

    pub(super) fn is_asking(&self) -> bool {
        !self.asked.is_empty()
    }

    /// The broker has answered; the lines that it was asked to take.
    pub(super) fn asked(&mut self) -> Vec<NextLine> {
        std::mem::take(&mut self.asked)
    }

    /// The job was not accepted; false if it has ended, so that it was.
    pub(super) fn withdraw(&mut self, job: JobId) -> bool {
        self.in_flight.remove(&job).is_some()
    }

    /// The line could not be accepted yet: it is the next one again.
    pub(super) fn put_back(&mut self, line: NextLine) {
        self.again.push_front(line);
    }

    /// What it holds for the budget of bodies.
    pub(super) fn body_bytes(&self) -> usize {
        self.body.len()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::HandlerOptions;

    #[test]
    fn lines_that_found_no_room_come_again_beside_one_that_was_refused_at_once() {
        let handler = HandlerSpec { name: Arc::from("h"), group: 0, options: HandlerOptions::keyed("/k") };
        let body = b"{\"k\":1}\n{}\n{\"k\":2}\n{\"k\":3}".to_vec();
        let mut stream = Stream::new(handler, body, SinkMode::SourceSeq);
        let numbers = |lines: &[NextLine]| lines.iter().map(|line| line.number).collect::<Vec<_>>();
        let lines: Vec<NextLine> = std::iter::from_fn(|| stream.next_line(100)).collect();
        assert_eq!(numbers(&lines), [0, 2, 3], "line 1 has no key and is answered at once");
        lines.into_iter().rev().for_each(|line| stream.put_back(line));
        let lines: Vec<NextLine> = std::iter::from_fn(|| stream.next_line(100)).collect();
        assert_eq!(numbers(&lines), [0, 2, 3]);
        assert_eq!(lines[1].bytes, b"{\"k\":2}");
        assert!(stream.next_result().is_none(), "line 0 comes first");
        let error = JobError::new(Code::Draining, "");
        lines.iter().for_each(|line| stream.refuse(line.number, &error));
        assert_eq!(std::iter::from_fn(|| stream.next_result()).count(), 4);
        assert!(stream.is_done());
    }
}
