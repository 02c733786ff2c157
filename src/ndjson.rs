//! NDJSON through the queue: lines become jobs, so many of them in flight, and their results come back in order. Pure;
//! who reads lines, submits jobs and writes results is not in scope.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::config::SinkMode;
use crate::entropy::Entropy;
use crate::handler::HandlerSpec;
use crate::job::{Finished, IdMap, InstanceId, JobId, Payload, Trace};
use crate::journal::Image;
use crate::ports::{BackendError, NewJob, Refusal, Submitted};
use crate::problem::{Code, JobError, document_of_line};

/// A line's number and the job that it is, also when it is submitted again.
type Line = (u64, NewJob);

/// Ids of the lines of one input: each is the line's number, and says all of the input up to it, and who does it.
#[derive(Clone, Debug)]
pub struct LineIds {
    last: u64,
    hash: [u8; 32],
}

impl LineIds {
    pub fn new(handler: &str) -> LineIds {
        LineIds { last: 0, hash: Sha256::digest(handler).into() }
    }

    /// The next line's; `None`: it is too long.
    pub fn next(&mut self, line: Option<&[u8]>) -> JobId {
        let of = [&self.hash[..], &[u8::from(line.is_some())], line.unwrap_or_default()].concat();
        (self.last, self.hash) = (self.last + 1, Sha256::digest(of).into());
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.last.to_be_bytes());
        id[8..].copy_from_slice(&self.hash[..8]);
        JobId(id)
    }

    /// What a journal holds, where that is not for a batch, or for anything else.
    pub fn misplaced(image: &Image, is_batch: bool) -> Option<&'static str> {
        match (is_batch, LineIds::are_of_all(image)) {
            (true, false) => Some("other jobs than a batch's"),
            // Their results would go in their time, and the batch could not go on.
            (false, true) if !image.jobs.is_empty() => Some("a batch, for `batch --resume`"),
            _ => None,
        }
    }

    /// True if a journal holds a run, which is lines and what they have submitted, or nothing.
    fn are_of_all(image: &Image) -> bool {
        let mut lines = image.jobs.values().filter(|job| !job.is_follow_up).peekable();
        let is_run = lines.peek().is_some() || image.jobs.is_empty() && image.maps.is_empty();
        // A random id is hardly ever so small.
        is_run && image.keys.is_empty() && lines.all(|job| LineIds::number(job.record.spec.id) < 1 << 40)
    }

    /// The number of the line whose id this is; the first is 1.
    pub fn number(JobId(id): JobId) -> u64 {
        u64::from_be_bytes(std::array::from_fn(|at| id[at]))
    }
}

/// The lines of one input.
#[derive(Debug)]
pub struct Pump {
    handler: HandlerSpec,
    mode: SinkMode,
    /// Lines at once whose results have not left.
    window: usize,
    /// Of all jobs.
    trace: Trace,
    tracestate: Option<Arc<str>>,
    exports_traces: bool,
    /// Whose all jobs are.
    pub owner: Arc<str>,
    instance: InstanceId,
    next_number: u64,
    /// Lines that found no room: they go first.
    again: Vec<Line>,
    in_flight: IdMap<JobId, u64>,
    /// Lines that the broker was asked to take, until it answers: the next ones wait, so that their order is kept.
    asked: Vec<Line>,
    /// Those that have not left, by place in the output.
    results: IdMap<u64, Vec<u8>>,
    /// Lines whose results have left.
    pub done: u64,
    /// Lines whose answer is a problem object.
    pub failed: u64,
    /// The number of the first of them; the lowest, not the one that was told first.
    pub first_failed: Option<u64>,
    /// The number of the first line, for people.
    pub first_number: u64,
    /// `None`: the ids of jobs are random.
    pub ids: Option<LineIds>,
}

impl Pump {
    pub fn new(
        handler: HandlerSpec,
        mode: SinkMode,
        window: usize,
        trace: Trace,
        instance: InstanceId,
    ) -> Pump {
        Pump {
            handler,
            mode,
            window,
            trace,
            tracestate: None,
            exports_traces: false,
            owner: Arc::default(),
            instance,
            next_number: 0,
            again: Vec::new(),
            in_flight: IdMap::default(),
            asked: Vec::new(),
            results: IdMap::default(),
            done: 0,
            failed: 0,
            first_failed: None,
            first_number: 1,
            ids: None,
        }
    }

    /// What came with the trace of all jobs, and whether each has a span of its own.
    pub fn set_traces(&mut self, tracestate: Option<Arc<str>>, exports_traces: bool) {
        (self.tracestate, self.exports_traces) = (tracestate, exports_traces);
    }

    /// The jobs to submit next: those that found no room, then those of lines from `next`, some `most` in all; none
    /// while the broker has not answered for the last ones. For a line that is too long `next` says what it exceeds.
    pub fn jobs<B: AsRef<[u8]>>(
        &mut self,
        most: usize,
        entropy: &mut Entropy,
        mut next: impl FnMut() -> Option<Result<B, &'static str>>,
    ) -> Vec<NewJob> {
        if !self.asked.is_empty() {
            return Vec::new();
        }
        let too_long = |bound| JobError::new(Code::PayloadTooLarge, format!("the line exceeds {bound}"));
        self.asked = std::mem::take(&mut self.again);
        while self.asked.len() < most
            && self.next_number - self.done < self.window as u64
            && let Some(bytes) = next()
        {
            let number = self.next_number;
            self.next_number += 1;
            let line = bytes.as_ref().ok().map(AsRef::as_ref);
            let id = self.ids.as_mut().map_or_else(|| JobId(entropy.bytes()), |ids| ids.next(line));
            let trace = self.trace.of_job(self.exports_traces, entropy);
            match bytes.map_err(too_long).and_then(|bytes| self.job(id, trace, bytes.as_ref())) {
                Ok(job) => self.asked.push((number, job)),
                Err(error) => self.refuse(number, &error),
            }
        }
        // From now on any may end at any time.
        self.in_flight.extend(self.asked.iter().map(|(number, job)| (job.id, *number)));
        self.asked.iter().map(|(_, job)| job.clone()).collect()
    }

    fn job(&self, id: JobId, trace: Trace, bytes: &[u8]) -> Result<NewJob, JobError> {
        let key = self.handler.options.ordering.key(None, bytes);
        Ok(NewJob {
            id,
            owner: self.owner.clone(),
            handler: self.handler.name.clone(),
            ordering_key: key.map_err(|detail| JobError::new(Code::BadRequest, detail))?,
            payload: Payload::json(bytes),
            trace,
            tracestate: self.tracestate.clone(),
            delay: Duration::ZERO,
            timeout: None,
            idempotency: None,
            awaited: true,
            one_line: true,
            instance: self.instance,
        })
    }

    /// The broker has answered, a line each. Says which jobs were not accepted: nobody waits for them.
    pub fn answered(&mut self, answers: &Result<Vec<Submitted>, BackendError>) -> Vec<JobId> {
        let mut gone = Vec::new();
        for (index, (number, job)) in std::mem::take(&mut self.asked).into_iter().enumerate() {
            let answer = answers.as_ref().ok().and_then(|answers| answers.get(index));
            if let Some(Submitted::Existing(record)) = answer {
                record.finished.iter().for_each(|finished| self.finished(job.id, finished));
                continue;
            }
            if let Some(Submitted::New) = answer {
                continue;
            }
            // A job that has ended was accepted all the same.
            if self.in_flight.remove(&job.id).is_none() {
                continue;
            }
            gone.push(job.id);
            match answer {
                Some(Submitted::Refused(Refusal::UnknownHandler | Refusal::IdempotencyMismatch(_))) => {
                    self.refuse(number, &JobError::new(Code::UnknownHandler, "the line was not accepted"));
                }
                // The queue is full, or the backend away: this line and all after it wait for their turn.
                Some(_) | None => self.again.push((number, job)),
            }
        }
        gone
    }

    /// Some lines found no room, or the backend was away: they come again.
    pub fn is_stalled(&self) -> bool {
        !self.again.is_empty()
    }

    /// The lines of the last jobs are answered without the broker.
    pub fn refuse_asked(&mut self, error: &JobError) {
        for (number, job) in std::mem::take(&mut self.asked) {
            self.in_flight.remove(&job.id);
            self.refuse(number, error);
        }
    }

    fn refuse(&mut self, line: u64, error: &JobError) {
        self.failed += 1;
        let number = self.first_number + line;
        self.first_failed = Some(self.first_failed.map_or(number, |first| first.min(number)));
        self.push(line, format!("{}\n", document_of_line(error, number)).into_bytes());
    }

    /// A job has ended; one that is none of these lines, or was heard of before, changes nothing.
    pub fn finished(&mut self, job: JobId, finished: &Finished) {
        let Some(line) = self.in_flight.remove(&job) else { return };
        match &finished.result {
            Ok(payload) => self.push(line, [&payload.bytes, &b"\n"[..]].concat()),
            Err(error) => self.refuse(line, error),
        }
    }

    /// Each line has one result.
    fn push(&mut self, line: u64, result: Vec<u8>) {
        let place = match self.mode {
            SinkMode::Completion => self.done + self.results.len() as u64,
            SinkMode::SourceSeq => line,
        };
        self.results.insert(place, result);
    }

    /// The next result in order.
    pub fn next_result(&mut self) -> Option<Vec<u8>> {
        let result = self.results.remove(&self.done)?;
        self.done += 1;
        Some(result)
    }

    /// True if every line so far has its answer, and all of them were taken.
    pub fn is_idle(&self) -> bool {
        self.done == self.next_number
    }

    /// The handler of all lines.
    pub fn handler(&self) -> &Arc<str> {
        &self.handler.name
    }

    /// Jobs that have not ended.
    pub fn jobs_in_flight(&self) -> Vec<JobId> {
        self.in_flight.keys().copied().collect()
    }

    /// True while a job may end, or the broker is to answer.
    pub fn waits(&self) -> bool {
        !self.in_flight.is_empty() || !self.asked.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::HandlerOptions;
    use crate::job::JobStatus;

    fn pump(options: HandlerOptions, mode: SinkMode, window: usize) -> Pump {
        let handler = HandlerSpec::new("x", 0, options);
        Pump::new(
            handler,
            mode,
            window,
            Trace { id: [1; 16], span: [1; 8], ..Trace::default() },
            InstanceId(1),
        )
    }

    #[test]
    fn source_order_is_restored_and_completion_order_is_kept() {
        for (mode, expected) in
            [(SinkMode::SourceSeq, "0\n1\n2\n3\n"), (SinkMode::Completion, "2\n0\n1\n3\n")]
        {
            let mut pump = pump(HandlerOptions::default(), mode, 4);
            let mut input = ["0", "1", "2", "3"].into_iter();
            let jobs = pump.jobs(4, &mut Entropy::Seeded(1), || input.next().map(Ok));
            let mut out = Vec::new();
            for line in [2, 0, 1, 3] {
                let result = Ok(Payload::json(jobs[line].payload.bytes.clone()));
                pump.finished(jobs[line].id, &Finished { status: JobStatus::Succeeded, result });
                out.extend(std::iter::from_fn(|| pump.next_result()).flatten());
            }
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
    }

    #[test]
    fn the_id_of_a_line_is_its_number_and_says_all_before_it() {
        let ids = |handler: &str, lines: &[Option<&[u8]>]| -> Vec<JobId> {
            let mut ids = LineIds::new(handler);
            lines.iter().map(|line| ids.next(*line)).collect()
        };
        let [a, b]: [Option<&[u8]>; 2] = [Some(b"a"), Some(b"b")];
        let all = ids("x", &[a, b, None]);
        assert_eq!(all.iter().map(|id| LineIds::number(*id)).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(all, ids("x", &[a, b, None]));
        for other in [ids("y", &[a, b, None]), ids("x", &[b, b, None]), ids("x", &[None, b, None])] {
            assert!(all.iter().zip(&other).all(|(one, other)| one != other), "{all:?} {other:?}");
        }
        assert_eq!(all[..2], ids("x", &[a, b, Some(b"")])[..2]);
        assert_ne!(all[2], ids("x", &[a, b, Some(b"")])[2], "a line that is too long is no empty one");
    }

    #[test]
    fn lines_that_found_no_room_come_again_beside_one_that_was_refused_at_once() {
        let mut pump = pump(HandlerOptions::keyed("/k"), SinkMode::SourceSeq, 4);
        let mut entropy = Entropy::Seeded(1);
        let mut input = ["{\"k\":1}", "{}", "{\"k\":2}", "{\"k\":3}", "{\"k\":4}"].into_iter();
        let jobs = pump.jobs(9, &mut entropy, || input.next().map(Ok));
        assert_eq!(jobs.len(), 3, "line 1 has no key and is answered at once");
        assert_eq!(input.len(), 1, "the window is full");
        let full = Submitted::Refused(Refusal::QueueFull);
        let gone = pump.answered(&Ok(vec![Submitted::New, full.clone(), full]));
        assert!(pump.is_stalled() && gone == [jobs[1].id, jobs[2].id]);
        let again = pump.jobs(9, &mut entropy, || input.next().map(Ok));
        assert_eq!(again.iter().map(|job| job.id).collect::<Vec<_>>(), gone);
        assert_eq!(&*again[0].payload.bytes, b"{\"k\":2}");
        assert!(pump.next_result().is_none(), "line 0 comes first");
        let error = JobError::new(Code::Draining, "");
        pump.refuse_asked(&error);
        let finished = Finished { status: JobStatus::Failed, result: Err(error) };
        pump.finished(jobs[0].id, &finished);
        pump.finished(jobs[0].id, &finished);
        assert_eq!(std::iter::from_fn(|| pump.next_result()).count(), 4);
        assert!(pump.is_idle() && pump.failed == 4);
    }
}
