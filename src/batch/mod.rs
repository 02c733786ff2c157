//! `batch`: NDJSON in, NDJSON out, in order, in both modes.
//!
//! A reader thread submits lines, this thread writes results; between them stands the window: so many lines
//! are in flight at most, and when it is full, reading stops. In scope: lines, order, progress. Not in scope:
//! who runs the jobs.

mod input;
mod progress;
pub mod sequence;

use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

#[doc(hidden)]
pub use input::fuzz_lines;

use crate::app::Setup;
use crate::bell::Bell;
use crate::config::{Retain, SinkMode};
use crate::entropy::Entropy;
use crate::execution::InlineExecutor;
use crate::handler::HandlerSpec;
use crate::job::{Finished, InstanceId, JobError, JobId, Payload, Trace};
use crate::limits::BATCH_COMMAND_LINES;
use crate::memory::MemoryBroker;
use crate::ports::{NewJob, Producer, Refusal, Replies, Submitted};
use crate::problem::{self, Code};
use crate::supervisor::ExecutionHost;
use input::{Line, Lines};
use progress::Progress;
use sequence::Sequencer;

/// When a progress bar is drawn on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShowProgress {
    /// If standard error is a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The command's own options. `-` or nothing is standard input or output.
#[derive(Clone, Debug)]
pub struct BatchOptions {
    /// Which handler does the lines.
    pub handler: String,
    /// NDJSON.
    pub input: Option<PathBuf>,
    /// NDJSON.
    pub output: Option<PathBuf>,
    /// Overrides `runtime.ordering.sink_mode`.
    pub sink_mode: Option<SinkMode>,
    /// The progress bar.
    pub progress: ShowProgress,
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
///
/// # Errors
/// The handler is unknown, a file cannot be opened or read, executors cannot be kept running.
pub fn run(setup: &Setup, options: &BatchOptions) -> Result<Summary, BatchError> {
    let handler = setup.specs.iter().find(|spec| *spec.name == *options.handler).cloned();
    let unknown = || BatchError::Usage(format!("--handler: there is no handler {}", options.handler));
    let handler = handler.ok_or_else(unknown)?;
    let input = input::open(options.input.as_deref()).map_err(BatchError::Usage)?;
    if let (Some(from), Some(to)) = (&options.input, &options.output)
        && is_same_file(from, to)
    {
        return Err(BatchError::Usage(format!("--output {}: is the input", to.display())));
    }
    let mut output = open_output(options.output.as_deref())?;

    let window = BATCH_COMMAND_LINES.min(setup.config.runtime.platform.queue.capacity);
    // Nobody reads records of a batch: those that are in flight are enough.
    let retain = Retain { records: window, bytes: usize::MAX };
    let broker = setup.broker_with(|rules| rules.retain = retain);
    let executors = Executors::start(setup, &broker).map_err(BatchError::Failed)?;
    let bell = Bell::for_this_thread();
    let failed = |error: crate::ports::BackendError| BatchError::Failed(error.to_string());
    let mut inbox = broker.subscribe(INSTANCE, bell.clone()).map_err(failed)?;

    let source = Arc::new(Source::new(handler, broker.clone(), bell.clone(), window));
    let reader = source.clone();
    let size = input.size;
    let lines = Lines::new(input, setup.config.runtime.platform.execution_ipc.max_payload_bytes);
    std::thread::Builder::new()
        .name("reader".into())
        .spawn(move || reader.read(lines))
        .map_err(|error| BatchError::Failed(format!("the reader's thread: {error}")))?;

    let mode = options.sink_mode.unwrap_or(setup.config.runtime.ordering.sink_mode);
    let mut sequencer = Sequencer::new(mode);
    let mut summary = Summary { done: 0, failed: 0 };
    let mut progress = Progress::new(options.progress, size);
    loop {
        bell.answer();
        let ended = source.ended.load(Ordering::SeqCst);
        let rang = inbox.take(usize::MAX).map_err(failed)?.rang;
        let refused = std::mem::take(&mut *source.refused.lock().unwrap_or_else(PoisonError::into_inner));
        let is_quiet = rang.is_empty() && refused.is_empty();
        for (line, text) in refused {
            summary.failed += 1;
            sequencer.push(line, text);
        }
        // A follow-up of a line has no line of its own.
        let of_lines = rang.into_iter().filter(|doorbell| doorbell.job.0[..8] == source.batch);
        for doorbell in of_lines {
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
        source.give_back(written);
        if ended && summary.done == source.lines.load(Ordering::SeqCst) {
            break;
        }
        if let Some(reason) = executors.failed() {
            return Err(BatchError::Failed(reason));
        }
        progress.draw(&summary, source.bytes.load(Ordering::Relaxed), false);
        if is_quiet {
            if let Err(error) = output.flush() {
                return broken(&error, summary);
            }
            if bell.asleep() {
                std::thread::park_timeout(Duration::from_millis(100));
            }
        }
    }
    if let Err(error) = output.flush() {
        return broken(&error, summary);
    }
    progress.draw(&summary, source.bytes.load(Ordering::Relaxed), true);
    let read_error = source.error.lock().unwrap_or_else(PoisonError::into_inner).take();
    read_error.map_or(Ok(summary), |error| Err(BatchError::Failed(error)))
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

fn open_output(path: Option<&Path>) -> Result<Box<dyn Write>, BatchError> {
    const BUFFER_BYTES: usize = 256 << 10;
    match path.filter(|path| *path != Path::new("-")) {
        None => Ok(Box::new(BufWriter::with_capacity(BUFFER_BYTES, std::io::stdout().lock()))),
        Some(path) => match std::fs::File::create(path) {
            Ok(file) => Ok(Box::new(BufWriter::with_capacity(BUFFER_BYTES, file))),
            Err(error) => Err(BatchError::Usage(format!("--output {}: {error}", path.display()))),
        },
    }
}

/// A result as a line: the bytes as they came, or the problem object.
pub(crate) fn result_line(finished: &Finished) -> Vec<u8> {
    match &finished.result {
        Ok(payload) => [&payload.bytes, &b"\n"[..]].concat(),
        Err(error) => error_line(error),
    }
}

/// A failed line's answer.
pub(crate) fn error_line(error: &JobError) -> Vec<u8> {
    let mut line = problem::document(error, None).into_bytes();
    line.push(b'\n');
    line
}

/// Who runs the jobs: threads here, or executor processes.
enum Executors {
    Inline { _executors: Vec<InlineExecutor> },
    Processes(ExecutionHost),
}

impl Executors {
    fn start(setup: &Setup, broker: &MemoryBroker) -> Result<Executors, String> {
        if setup.is_inline() {
            Ok(Executors::Inline { _executors: setup.inline_executors(broker)? })
        } else {
            ExecutionHost::start(setup, broker).map(Executors::Processes)
        }
    }

    fn failed(&self) -> Option<String> {
        match self {
            Executors::Inline { .. } => None,
            Executors::Processes(host) => host.failed(),
        }
    }
}

/// The reading half: lines become jobs.
struct Source {
    /// The high half of its jobs' ids: what has another is no line.
    batch: [u8; 8],
    handler: HandlerSpec,
    broker: MemoryBroker,
    bell: Bell,
    window: usize,
    /// Lines read whose results are not written.
    in_flight: Mutex<usize>,
    room: Condvar,
    /// Lines that were never a job, with their answers.
    refused: Mutex<Vec<(u64, Vec<u8>)>>,
    lines: AtomicU64,
    bytes: AtomicU64,
    ended: AtomicBool,
    error: Mutex<Option<String>>,
}

/// A line's number is the low half of its job's id: the id needs no table.
fn line_of(id: JobId) -> u64 {
    id.0[8..].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Source {
    fn new(handler: HandlerSpec, broker: MemoryBroker, bell: Bell, window: usize) -> Source {
        Source {
            batch: Entropy::system().bytes(),
            handler,
            broker,
            bell,
            window,
            in_flight: Mutex::new(0),
            room: Condvar::new(),
            refused: Mutex::default(),
            lines: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            error: Mutex::default(),
        }
    }

    fn read(&self, mut lines: Lines) {
        /// Lines a submission at most: the broker's lock is taken once for them.
        const CHUNK: usize = 64;
        let mut entropy = Entropy::system();
        let trace = Trace { id: entropy.bytes(), span: entropy.bytes() };
        let mut number: u64 = 0;
        let mut chunk = Vec::with_capacity(CHUNK);
        loop {
            let line = lines.next_line();
            self.bytes.store(lines.consumed(), Ordering::Relaxed);
            let payload = match line {
                Ok(Line::Whole(bytes)) => Ok(bytes),
                Ok(Line::TooLong) => {
                    Err(JobError::new(Code::PayloadTooLarge, "the line exceeds max_payload_bytes"))
                }
                Ok(Line::End) => break,
                Err(error) => {
                    *self.error.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(format!("the input: {error}"));
                    break;
                }
            };
            self.take_place(&mut chunk);
            let key = payload.and_then(|bytes| match self.handler.options.ordering.key(None, &bytes) {
                Ok(key) => Ok((bytes, key)),
                Err(detail) => Err(JobError::new(Code::BadRequest, detail)),
            });
            match key {
                Ok((bytes, ordering_key)) => {
                    let mut id = [0; 16];
                    id[..8].copy_from_slice(&self.batch);
                    id[8..].copy_from_slice(&number.to_be_bytes());
                    chunk.push(self.job(JobId(id), bytes, ordering_key, trace));
                }
                Err(error) => {
                    self.refused
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((number, error_line(&error)));
                    self.bell.ring();
                }
            }
            number += 1;
            self.lines.store(number, Ordering::SeqCst);
            if chunk.len() == CHUNK || !lines.has_buffered_line() {
                self.submit(std::mem::take(&mut chunk));
            }
        }
        self.submit(chunk);
        self.ended.store(true, Ordering::SeqCst);
        self.bell.ring();
    }

    fn job(&self, id: JobId, bytes: Vec<u8>, ordering_key: Option<Arc<str>>, trace: Trace) -> NewJob {
        NewJob {
            id,
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

    /// Takes a place in the window for the line just read, before anyone can give it back; waits for one.
    fn take_place(&self, chunk: &mut Vec<NewJob>) {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if *in_flight >= self.window && !chunk.is_empty() {
            // What is waited for must have been submitted.
            drop(in_flight);
            self.submit(std::mem::take(chunk));
            in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        }
        while *in_flight >= self.window {
            in_flight = self.room.wait(in_flight).unwrap_or_else(PoisonError::into_inner);
        }
        *in_flight += 1;
    }

    fn give_back(&self, lines: u64) {
        if lines > 0 {
            let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
            *in_flight -= usize::try_from(lines).expect("no more lines than fit the window");
            self.room.notify_one();
        }
    }

    /// A full queue (by bytes) is waited out: a batch never gets `queue_full`.
    fn submit(&self, mut jobs: Vec<NewJob>) {
        while !jobs.is_empty() {
            let answers = self.broker.submit(jobs.clone()).unwrap_or_default();
            let mut again = Vec::new();
            for (job, answer) in jobs.into_iter().zip(answers) {
                match answer {
                    Submitted::New | Submitted::Existing(_) => {}
                    Submitted::Refused(Refusal::QueueFull) => again.push(job),
                    Submitted::Refused(
                        refusal @ (Refusal::UnknownHandler | Refusal::IdempotencyMismatch),
                    ) => {
                        let error = JobError::new(refusal.code(), "the line was not accepted");
                        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                        refused.push((line_of(job.id), error_line(&error)));
                    }
                }
            }
            jobs = again;
            if !jobs.is_empty() {
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
    }
}
