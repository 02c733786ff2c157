//! `batch`: NDJSON in, NDJSON out, in order, in both modes.
//!
//! A reader thread submits lines, this thread writes results; between them stands the window: so many lines
//! are in flight at most, and when it is full, reading stops. In scope: lines, order, progress. Not in scope:
//! who runs the jobs.

mod input;
mod progress;

use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

#[doc(hidden)]
pub use input::fuzz_lines;

use crate::bell::{Bell, lock};
use crate::config::SinkMode;
use crate::deployment::{Backend, Setup};
use crate::entropy::Entropy;
use crate::handler::HandlerSpec;
use crate::job::{IdMap, InstanceId, JobId, Payload, Trace};
use crate::limits::BATCH_COMMAND_LINES;
use crate::ndjson::{Sequencer, error_line, result_line};
use crate::ports::{Doorbell, Doorbells, NewJob, Producer, Refusal, Submitted};
use crate::problem::{Code, JobError};
use crate::redis_backend::RedisBroker;
use crate::roles::executor_host::ExecutionHost;
use input::{Line, Lines};
use progress::Progress;

/// The command's own options. `-` or nothing is standard input or output.
#[derive(Clone, Debug)]
pub struct BatchOptions {
    pub handler: String,
    pub input: Option<PathBuf>,
    pub output: Option<PathBuf>,
    /// Overrides `runtime.ordering.sink_mode`.
    pub sink_mode: Option<SinkMode>,
    pub shows_progress: bool,
}

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Lines with an answer.
    pub done: u64,
    /// Of them, those whose answer is a problem object.
    pub failed: u64,
}

/// What went wrong with the batch itself.
#[derive(Debug)]
pub enum BatchError {
    /// The user's fault: exit 2.
    Usage(String),
    /// Ours or the machine's: exit 1.
    Failed(String),
}

/// Runs a whole batch.
pub fn run(setup: &Setup, options: &BatchOptions) -> Result<Summary, BatchError> {
    let handler = setup.specs.iter().find(|spec| *spec.name == *options.handler).cloned();
    let unknown = || BatchError::Usage(format!("--handler: there is no handler {}", options.handler));
    let handler = handler.ok_or_else(unknown)?;
    let max_payload = setup.config.runtime.platform.execution_ipc.max_payload_bytes;
    let lines = Lines::open(options.input.as_deref(), max_payload).map_err(BatchError::Usage)?;
    if let (Some(from), Some(to)) = (&options.input, &options.output)
        && is_same_file(from, to)
    {
        return Err(BatchError::Usage(format!("--output {}: is the input", to.display())));
    }
    let mut output = open_output(options.output.as_deref())?;

    let window = BATCH_COMMAND_LINES.min(setup.config.runtime.platform.queue.capacity);
    let setup = &setup.for_batch(window).map_err(BatchError::Failed)?;
    let batch: [u8; 8] = Entropy::system().bytes();
    let inside = format!("batch-{:016x}:", u64::from_be_bytes(batch));
    let backend = &setup.backend(&inside).map_err(BatchError::Failed)?;
    let _place = Place(match backend {
        Backend::Memory(_) => setup.mixed_store(&inside).map_err(BatchError::Failed)?,
        Backend::Redis(broker) => Some(broker.clone()),
    });
    // Who runs the jobs: threads here, or executor processes.
    let (mut _threads, mut processes) = (None, None);
    if setup.is_inline() {
        _threads = Some(setup.inline_executors(backend, &inside).map_err(BatchError::Failed)?);
    } else {
        processes = Some(ExecutionHost::start(setup, backend, &inside).map_err(BatchError::Failed)?);
    }
    let bell = Bell::for_this_thread();
    let failed = |error: crate::ports::BackendError| BatchError::Failed(error.to_string());
    let mut inbox = backend.replies().subscribe(INSTANCE, bell.clone()).map_err(failed)?;

    let mut progress = Progress::new(options.shows_progress, lines.size);
    let (room, shared) = Default::default();
    let producer = backend.producer();
    let source = Arc::new(Source { batch, handler, producer, bell: bell.clone(), window, room, shared });
    let reader = source.clone();
    std::thread::Builder::new()
        .name("reader".into())
        .spawn(move || reader.read(lines))
        .map_err(|error| BatchError::Failed(format!("the reader's thread: {error}")))?;

    let mode = options.sink_mode.unwrap_or(setup.config.runtime.ordering.sink_mode);
    let mut sequencer = Sequencer::new(mode);
    let mut summary = Summary { done: 0, failed: 0 };
    let mut is_unsure = false;
    loop {
        bell.answer();
        let Doorbells { mut rang, lost } = inbox.take(usize::MAX).map_err(failed)?;
        is_unsure = (lost || is_unsure) && !source.look_again(&mut rang);
        let refused = std::mem::take(&mut lock(&source.shared).refused);
        let is_quiet = rang.is_empty() && refused.is_empty();
        for (line, text) in refused {
            summary.failed += 1;
            sequencer.push(line, text);
        }
        for doorbell in source.of_lines(rang) {
            summary.failed += u64::from(doorbell.finished.result.is_err());
            sequencer.push(line_of(doorbell.job), result_line(&doorbell.finished));
        }
        let mut written = 0;
        while let Some(line) = sequencer.next_ready() {
            written += 1;
            if let Err(error) = output.write_all(&line) {
                return broken(&error, summary);
            }
        }
        summary.done += written;
        let ReadSoFar { lines, bytes, ended } = source.give_back(written);
        let is_over = ended.is_some() && summary.done == lines;
        if (is_over || is_quiet)
            && let Err(error) = output.flush()
        {
            return broken(&error, summary);
        }
        progress.draw(&summary, bytes, is_over);
        if let Some(ended) = ended.filter(|_| is_over) {
            return ended.map(|()| summary).map_err(BatchError::Failed);
        }
        if let Some(reason) = processes.as_ref().and_then(ExecutionHost::failed) {
            return Err(BatchError::Failed(reason));
        }
        if is_quiet && bell.asleep() {
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }
}

/// Where the batch's keys are, if it has some; none of them is left behind.
struct Place(Option<RedisBroker>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.as_ref().map(RedisBroker::remove_all) {
            log::warn!("the batch's keys are left behind: {error}");
        }
    }
}

const INSTANCE: InstanceId = InstanceId(1);

/// A reader that has seen enough, such as `head`, is no failure.
fn broken(error: &std::io::Error, summary: Summary) -> Result<Summary, BatchError> {
    match error.kind() {
        ErrorKind::BrokenPipe => {
            // What runs is cut off on purpose: a line a job about lost leases would tell nobody anything.
            log::set_max_level(log::LevelFilter::Off);
            Ok(summary)
        }
        _ => Err(BatchError::Failed(format!("the output cannot be written: {error}"))),
    }
}

/// True if opening one for writing would empty the other.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let key = |path: &Path| {
        let meta = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        Some((meta.dev(), meta.ino()))
    };
    key(one).is_some_and(|one| key(other) == Some(one))
}

fn open_output(path: Option<&Path>) -> Result<impl Write, BatchError> {
    const BUFFER_BYTES: usize = 256 << 10;
    let output: Box<dyn Write> = match path.filter(|path| *path != Path::new("-")) {
        None => Box::new(std::io::stdout().lock()),
        Some(path) => {
            let failed = |error| BatchError::Usage(format!("--output {}: {error}", path.display()));
            Box::new(std::fs::File::create(path).map_err(failed)?)
        }
    };
    Ok(BufWriter::with_capacity(BUFFER_BYTES, output))
}

/// The reading half: lines become jobs.
struct Source {
    /// The high half of its jobs' ids: what has another is no line.
    batch: [u8; 8],
    handler: HandlerSpec,
    producer: Arc<dyn Producer>,
    bell: Bell,
    window: usize,
    /// Rings when a line leaves the window.
    room: Condvar,
    shared: Mutex<Shared>,
}

/// What the reader and the writer tell each other.
#[derive(Default)]
struct Shared {
    /// Lines read whose results are not written.
    in_flight: usize,
    /// Those whose jobs have not ended, as far as we know.
    running: IdMap<u64, ()>,
    /// Lines that were never a job, with their answers.
    refused: Vec<(u64, Vec<u8>)>,
    read: ReadSoFar,
}

#[derive(Clone, Default)]
struct ReadSoFar {
    lines: u64,
    bytes: u64,
    /// `Some` iff there is nothing more to read.
    ended: Option<Result<(), String>>,
}

/// A line's number is the low half of its job's id: the id needs no table.
fn line_of(id: JobId) -> u64 {
    id.0[8..].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Source {
    fn read(&self, mut lines: Lines) {
        /// Lines a submission at most: the broker's lock is taken once for them.
        const CHUNK: usize = 64;
        let mut entropy = Entropy::system();
        let trace = Trace { id: entropy.bytes(), span: entropy.bytes() };
        let mut chunk = Vec::with_capacity(CHUNK);
        let mut number = 0;
        let ended = loop {
            let payload = match lines.next_line() {
                Ok(Line::Whole(bytes)) => Ok(bytes),
                Ok(Line::TooLong) => {
                    Err(JobError::new(Code::PayloadTooLarge, "the line exceeds max_payload_bytes"))
                }
                Ok(Line::End) => break Ok(()),
                Err(error) => break Err(format!("the input: {error}")),
            };
            self.take_place(&mut chunk, lines.consumed());
            let key = payload.and_then(|bytes| match self.handler.options.ordering.key(None, &bytes) {
                Ok(key) => Ok((bytes, key)),
                Err(detail) => Err(JobError::new(Code::BadRequest, detail)),
            });
            match key {
                Ok((bytes, ordering_key)) => chunk.push(self.job(number, bytes, ordering_key, trace)),
                Err(error) => {
                    lock(&self.shared).refused.push((number, error_line(&error)));
                    self.bell.ring();
                }
            }
            number += 1;
            if chunk.len() == CHUNK || !lines.has_buffered_line() {
                self.submit(std::mem::take(&mut chunk));
            }
        };
        self.submit(chunk);
        let mut shared = lock(&self.shared);
        shared.read.bytes = lines.consumed();
        shared.read.ended = Some(ended);
        self.bell.ring();
    }

    fn job(&self, line: u64, bytes: Vec<u8>, ordering_key: Option<Arc<str>>, trace: Trace) -> NewJob {
        NewJob {
            id: self.id_of(line),
            owner: Arc::from(""),
            handler: self.handler.name.clone(),
            ordering_key,
            payload: Payload::json(bytes),
            trace,
            delay: Duration::ZERO,
            timeout: None,
            idempotency: None,
            awaited: true,
            one_line: true,
            instance: INSTANCE,
        }
    }

    /// The ends of lines, each once. A follow-up of a line has no line of its own.
    fn of_lines(&self, rang: Vec<Doorbell>) -> Vec<Doorbell> {
        let mut shared = lock(&self.shared);
        let mut is_first = |doorbell: &Doorbell| {
            doorbell.job.0[..8] == self.batch && shared.running.remove(&line_of(doorbell.job)).is_some()
        };
        rang.into_iter().filter(|doorbell| is_first(doorbell)).collect()
    }

    /// Doorbells were lost: the records tell which lines have ended. False if some could not be looked at.
    fn look_again(&self, rang: &mut Vec<Doorbell>) -> bool {
        let jobs: Vec<JobId> = lock(&self.shared).running.keys().map(|line| self.id_of(*line)).collect();
        let (ended, unsure) = self.producer.ended(&jobs);
        rang.extend(ended);
        unsure.is_empty()
    }

    fn id_of(&self, line: u64) -> JobId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.batch);
        id[8..].copy_from_slice(&line.to_be_bytes());
        JobId(id)
    }

    /// Takes a place in the window for the line just read, before anyone can give it back; waits for one.
    fn take_place(&self, chunk: &mut Vec<NewJob>, bytes: u64) {
        let mut shared = lock(&self.shared);
        if shared.in_flight >= self.window && !chunk.is_empty() {
            // What is waited for must have been submitted.
            drop(shared);
            self.submit(std::mem::take(chunk));
            shared = lock(&self.shared);
        }
        let is_full = |shared: &mut Shared| shared.in_flight >= self.window;
        let mut shared = self.room.wait_while(shared, is_full).unwrap_or_else(PoisonError::into_inner);
        shared.in_flight += 1;
        shared.read.lines += 1;
        shared.read.bytes = bytes;
    }

    /// Results of so many lines have been written; says how far the reader is.
    fn give_back(&self, lines: u64) -> ReadSoFar {
        let mut shared = lock(&self.shared);
        if lines > 0 {
            shared.in_flight -= usize::try_from(lines).expect("no more lines than fit the window");
            self.room.notify_one();
        }
        shared.read.clone()
    }

    /// A full queue (by bytes) is waited out, and so is a backend that is away: a batch never gets `queue_full`, and
    /// every call is safe to repeat.
    fn submit(&self, mut jobs: Vec<NewJob>) {
        const AGAIN: Duration = Duration::from_millis(1);
        let lines = jobs.iter().map(|job| (line_of(job.id), ()));
        lock(&self.shared).running.extend(lines);
        while !jobs.is_empty() {
            let Ok(answers) = self.producer.submit(jobs.clone()) else {
                std::thread::park_timeout(AGAIN);
                continue;
            };
            let mut again = Vec::new();
            for (job, answer) in jobs.into_iter().zip(answers) {
                match answer {
                    Submitted::New | Submitted::Existing(_) => {}
                    Submitted::Refused(Refusal::QueueFull) => again.push(job),
                    Submitted::Refused(
                        refusal @ (Refusal::UnknownHandler | Refusal::IdempotencyMismatch),
                    ) => {
                        let error = JobError::new(refusal.code(), "the line was not accepted");
                        let mut shared = lock(&self.shared);
                        shared.running.remove(&line_of(job.id));
                        shared.refused.push((line_of(job.id), error_line(&error)));
                    }
                }
            }
            jobs = again;
            if !jobs.is_empty() {
                std::thread::park_timeout(AGAIN);
            }
        }
    }
}
