//! Lines of NDJSON: a result as a line, and results put back in the order of their lines. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::config::SinkMode;
use crate::job::Finished;
use crate::problem::{JobError, document};

/// Results by line number. Its size is bounded by the lines in flight, which its owner bounds.
#[derive(Debug)]
pub struct Sequencer {
    next: u64,
    /// Results that wait for an earlier line.
    early: BTreeMap<u64, Vec<u8>>,
    ready: VecDeque<Vec<u8>>,
    mode: SinkMode,
}

impl Sequencer {
    /// From line 0.
    pub fn new(mode: SinkMode) -> Sequencer {
        Sequencer { next: 0, early: BTreeMap::new(), ready: VecDeque::new(), mode }
    }

    /// Takes a line's result; each line has one.
    pub fn push(&mut self, line: u64, result: Vec<u8>) {
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
    pub fn next_ready(&mut self) -> Option<Vec<u8>> {
        self.ready.pop_front()
    }
}

/// A result as a line: the bytes as they came, or the problem object.
pub fn result_line(finished: &Finished) -> Vec<u8> {
    match &finished.result {
        Ok(payload) => [&payload.bytes, &b"\n"[..]].concat(),
        Err(error) => error_line(error),
    }
}

/// A failed line's answer.
pub fn error_line(error: &JobError) -> Vec<u8> {
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
}
