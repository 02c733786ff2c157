//! NDJSON through the queue: lines become jobs, so many of them in flight, and their results come back in order. Pure;
//! who reads lines, submits jobs and writes results is not in scope.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::config::SinkMode;
use crate::handler::Ordering;
use crate::job::{Finished, IdMap, JobId};
use crate::ports::{BackendError, Refusal, Submitted};
use crate::problem::{Code, JobError, document};

/// A line to submit.
#[derive(Clone, Debug)]
pub struct Line {
    pub number: u64,
    /// `Some` once it was submitted: one that comes again is the same job.
    pub job: Option<JobId>,
    pub bytes: Arc<[u8]>,
    pub ordering_key: Option<Arc<str>>,
}

/// The lines of one input.
#[derive(Debug)]
pub struct Pump {
    ordering: Ordering,
    /// Lines at once whose results have not left.
    window: usize,
    next_number: u64,
    /// Lines that found no room: they go first.
    again: VecDeque<Line>,
    in_flight: IdMap<JobId, u64>,
    /// Lines that the broker was asked to take, until it answers: the next ones wait, so that their order is kept.
    asked: Vec<Line>,
    sequencer: Sequencer,
    open: usize,
    /// Lines whose answer is a problem object.
    pub failed: u64,
}

/// What came of a submission.
#[derive(Debug, Default)]
pub struct Taken {
    /// Jobs that were not accepted: nobody waits for them.
    pub gone: Vec<JobId>,
    /// Some lines found no room, or the backend was away: they come again.
    pub is_full: bool,
}

impl Pump {
    pub fn new(ordering: Ordering, mode: SinkMode, window: usize) -> Pump {
        let (again, in_flight, asked) = Default::default();
        let sequencer = Sequencer::new(mode);
        Pump { ordering, window, next_number: 0, again, in_flight, asked, sequencer, open: 0, failed: 0 }
    }

    /// True if another line may be read.
    pub fn has_room(&self) -> bool {
        self.open < self.window
    }

    /// The next line that must be submitted again.
    pub fn again(&mut self) -> Option<Line> {
        self.again.pop_front()
    }

    /// Enters the next line of the input; `None` for one that is too long, with what it exceeds. A line that can be no
    /// job gets its answer at once.
    pub fn line(&mut self, bytes: Result<&[u8], &str>) -> Option<Line> {
        let number = self.next_number;
        self.next_number += 1;
        self.open += 1;
        let key = match bytes {
            Ok(bytes) => self.ordering.key(None, bytes).map_err(|detail| (Code::BadRequest, detail)),
            Err(bound) => Err((Code::PayloadTooLarge, format!("the line exceeds {bound}"))),
        };
        match (key, bytes) {
            (Ok(ordering_key), Ok(bytes)) => {
                Some(Line { number, job: None, bytes: bytes.into(), ordering_key })
            }
            (Err((code, detail)), _) => {
                self.refuse(number, &JobError::new(code, detail));
                None
            }
            (Ok(_), Err(_)) => None,
        }
    }

    /// The broker is asked to take these lines, each of which is a job by now: any may end at any time.
    pub fn ask(&mut self, lines: Vec<Line>) {
        self.in_flight.extend(lines.iter().filter_map(|line| Some((line.job?, line.number))));
        self.asked = lines;
    }

    pub fn is_asking(&self) -> bool {
        !self.asked.is_empty()
    }

    /// The broker has answered, a line each.
    pub fn answered(&mut self, answers: &Result<Vec<Submitted>, BackendError>) -> Taken {
        let mut taken = Taken::default();
        let mut back = VecDeque::new();
        for (index, line) in std::mem::take(&mut self.asked).into_iter().enumerate() {
            match answers.as_ref().map(|answers| answers.get(index)) {
                Ok(Some(Submitted::New | Submitted::Existing(_))) => {}
                Ok(Some(Submitted::Refused(Refusal::UnknownHandler | Refusal::IdempotencyMismatch))) => {
                    taken.gone.extend(line.job.filter(|job| self.in_flight.remove(job).is_some()));
                    self.refuse(
                        line.number,
                        &JobError::new(Code::UnknownHandler, "the line was not accepted"),
                    );
                }
                // The queue is full, or the backend away: this line and all after it wait for their turn, unless it
                // was accepted all the same and has ended.
                Ok(Some(Submitted::Refused(Refusal::QueueFull)) | None) | Err(_) => {
                    if let Some(job) = line.job.filter(|job| self.in_flight.remove(job).is_some()) {
                        taken.gone.push(job);
                        back.push_back(line);
                    }
                }
            }
        }
        taken.is_full = !back.is_empty();
        back.append(&mut self.again);
        self.again = back;
        taken
    }

    /// The line is answered without a job.
    pub fn refuse(&mut self, line: u64, error: &JobError) {
        self.failed += 1;
        self.sequencer.push(line, error_line(error));
    }

    /// A job has ended; false if it is none of these lines, or was heard of before.
    pub fn finished(&mut self, job: JobId, finished: &Finished) -> bool {
        let Some(line) = self.in_flight.remove(&job) else { return false };
        self.failed += u64::from(finished.result.is_err());
        self.sequencer.push(line, result_line(finished));
        true
    }

    /// The next result in order.
    pub fn next_result(&mut self) -> Option<Vec<u8>> {
        let result = self.sequencer.next_ready()?;
        self.open -= 1;
        Some(result)
    }

    /// True if every line so far has its answer, and all of them were taken.
    pub fn is_idle(&self) -> bool {
        self.open == 0
    }

    /// Jobs that have not ended.
    pub fn jobs(&self) -> Vec<JobId> {
        self.in_flight.keys().copied().collect()
    }

    pub fn has_jobs(&self) -> bool {
        !self.in_flight.is_empty()
    }
}

/// Results by line number. Its size is bounded by the lines in flight, which its owner bounds.
#[derive(Debug)]
struct Sequencer {
    next: u64,
    /// Results that wait for an earlier line.
    early: BTreeMap<u64, Vec<u8>>,
    ready: VecDeque<Vec<u8>>,
    mode: SinkMode,
}

impl Sequencer {
    /// From line 0.
    fn new(mode: SinkMode) -> Sequencer {
        Sequencer { next: 0, early: BTreeMap::new(), ready: VecDeque::new(), mode }
    }

    /// Takes a line's result; each line has one.
    fn push(&mut self, line: u64, result: Vec<u8>) {
        match self.mode {
            SinkMode::Completion => self.ready.push_back(result),
            SinkMode::SourceSeq if line == self.next => {
                self.ready.push_back(result);
                self.next += 1;
                while let Some(result) = self.early.remove(&self.next) {
                    self.ready.push_back(result);
                    self.next += 1;
                }
            }
            SinkMode::SourceSeq => {
                self.early.insert(line, result);
            }
        }
    }

    /// The next result to write, if it is there.
    fn next_ready(&mut self) -> Option<Vec<u8>> {
        self.ready.pop_front()
    }
}

/// A result as a line: the bytes as they came, or the problem object.
fn result_line(finished: &Finished) -> Vec<u8> {
    match &finished.result {
        Ok(payload) => [&payload.bytes, &b"\n"[..]].concat(),
        Err(error) => error_line(error),
    }
}

/// A failed line's answer.
fn error_line(error: &JobError) -> Vec<u8> {
    let mut line = document(error, None).into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_order_is_restored_and_completion_order_is_kept() {
        for (mode, expected) in [(SinkMode::SourceSeq, [0, 1, 2, 3]), (SinkMode::Completion, [2, 0, 1, 3])] {
            let mut sequencer = Sequencer::new(mode);
            let mut out = Vec::new();
            for line in [2_u8, 0, 1, 3] {
                sequencer.push(line.into(), vec![line]);
                out.extend(std::iter::from_fn(|| sequencer.next_ready()).flatten());
            }
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn lines_that_found_no_room_come_again_beside_one_that_was_refused_at_once() {
        let mut pump = Pump::new(Ordering::Keyed("/k".into()), SinkMode::SourceSeq, 4);
        let input = ["{\"k\":1}", "{}", "{\"k\":2}", "{\"k\":3}"];
        let mut lines: Vec<Line> = input.iter().filter_map(|line| pump.line(Ok(line.as_bytes()))).collect();
        let numbers = |lines: &[Line]| lines.iter().map(|line| line.number).collect::<Vec<_>>();
        assert_eq!(numbers(&lines), [0, 2, 3], "line 1 has no key and is answered at once");
        assert!(!pump.has_room());
        for line in &mut lines {
            line.job = Some(JobId([line.number as u8; 16]));
        }
        pump.ask(lines);
        let full = Submitted::Refused(Refusal::QueueFull);
        let taken = pump.answered(&Ok(vec![Submitted::New, full.clone(), full]));
        assert!(taken.is_full && taken.gone == [JobId([2; 16]), JobId([3; 16])]);
        let again: Vec<Line> = std::iter::from_fn(|| pump.again()).collect();
        assert_eq!((numbers(&again), &*again[0].bytes), (vec![2, 3], &b"{\"k\":2}"[..]));
        assert!(pump.next_result().is_none(), "line 0 comes first");
        let error = JobError::new(Code::Draining, "");
        again.iter().for_each(|line| pump.refuse(line.number, &error));
        let finished = Finished { status: crate::job::JobStatus::Failed, result: Err(error) };
        assert!(pump.finished(JobId([0; 16]), &finished) && !pump.finished(JobId([0; 16]), &finished));
        assert_eq!(std::iter::from_fn(|| pump.next_result()).count(), 4);
        assert!(pump.is_idle() && pump.failed == 4);
    }
}
