//! `batch`: NDJSON in, NDJSON out, in order, in both modes.
//!
//! A reader thread reads ahead, this thread submits lines and writes results; so many lines are in flight at most, and
//! when they are, reading stops. In scope: the input and the output, progress. Not in scope: who runs the jobs.

mod input;
mod progress;

use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

pub use input::{Line, Lines};

use crate::bell::Bell;
use crate::config::SinkMode;
use crate::deployment::Backend;
use crate::entropy::Entropy;
use crate::handler::HandlerSpec;
use crate::job::{InstanceId, Trace};
use crate::ndjson::Pump;
use crate::ports::{Ends, JobEnded, Producer};
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

/// What a batch is run with.
pub struct Parts<'a> {
    pub handler: HandlerSpec,
    pub mode: SinkMode,
    /// Lines in flight at most.
    pub window: usize,
    pub shows_progress: bool,
    pub backend: &'a Backend,
    /// Of this thread.
    pub bell: Bell,
    /// Why nobody runs jobs any more, if it is so.
    pub failed: &'a dyn Fn() -> Option<String>,
}

/// Lines of one submission at most: the broker's lock is taken once for them.
const CHUNK: usize = 64;

impl Parts<'_> {
    /// Runs all lines.
    ///
    /// # Errors
    /// The input cannot be read, the output not written, the backend refuses for good, or nobody runs jobs any more.
    pub fn run(self, lines: Lines, mut output: impl Write) -> Result<Summary, BatchError> {
        let inbox = self.backend.replies.subscribe(INSTANCE, self.bell.clone());
        let mut inbox = inbox.map_err(|error| BatchError::Failed(error.to_string()))?;
        let mut progress = Progress::new(self.shows_progress, lines.size);
        let mut source = Source::start(lines, self.bell.clone())?;
        let mut entropy = Entropy::system();
        let trace = Trace { id: entropy.bytes(), span: entropy.bytes() };
        let mut pump = Pump::new(self.handler, self.mode, self.window, trace, INSTANCE);
        let (again_at, refusing_since, pause) = (Instant::now(), None, Duration::ZERO);
        let producer = &*self.backend.producer;
        let mut submitter = Submitter { producer, entropy, again_at, refusing_since, pause };
        let mut is_unsure = false;
        loop {
            self.bell.answer();
            let Ends { mut ended, lost } = inbox.take(usize::MAX);
            if lost || is_unsure {
                let (found, unsure) = producer.ended(&pump.jobs_in_flight());
                ended.extend(found);
                is_unsure = !unsure.is_empty();
            }
            let mut is_quiet = ended.is_empty();
            for JobEnded { job, finished } in ended {
                pump.finished(job, &finished);
            }
            is_quiet &= !submitter.submit(&mut pump, &mut source)?;
            let mut written = Ok(());
            while written.is_ok()
                && let Some(line) = pump.next_result()
            {
                is_quiet = false;
                written = output.write_all(&line);
            }
            let is_over = source.end.is_some() && pump.is_idle();
            if is_over || is_quiet {
                written = written.and_then(|()| output.flush());
            }
            let summary = Summary { done: pump.done, failed: pump.failed };
            if let Err(error) = written {
                if error.kind() != ErrorKind::BrokenPipe {
                    return Err(BatchError::Failed(format!("the output cannot be written: {error}")));
                }
                // A reader that has seen enough, such as `head`, is no failure. What runs is cut off on purpose: a line
                // a job about lost leases would tell nobody anything.
                log::set_max_level(log::LevelFilter::Off);
                return Ok(summary);
            }
            progress.draw(&summary, source.bytes, is_over);
            if is_over && let Some(end) = source.end {
                return end.map(|()| summary).map_err(BatchError::Failed);
            }
            if let Some(reason) = (self.failed)() {
                return Err(BatchError::Failed(reason));
            }
            // Nobody else may look after time in this process.
            self.backend.seat.tick(0);
            if is_quiet && self.bell.asleep() {
                let most = Duration::from_millis(100);
                let pause = Some(submitter.pause).filter(|pause| !pause.is_zero());
                std::thread::park_timeout(pause.map_or(most, |pause| pause.min(most)));
            }
        }
    }
}

const INSTANCE: InstanceId = InstanceId(1);

/// The output; not the input, which would be emptied.
pub fn open_output(input: Option<&Path>, output: Option<&Path>) -> Result<impl Write + use<>, BatchError> {
    const BUFFER_BYTES: usize = 256 << 10;
    let with_buffer = |output: Box<dyn Write>| BufWriter::with_capacity(BUFFER_BYTES, output);
    let Some(path) = output.filter(|path| *path != Path::new("-")) else {
        return Ok(with_buffer(Box::new(std::io::stdout().lock())));
    };
    let failed = |why: String| BatchError::Usage(format!("--output {}: {why}", path.display()));
    let file = |path: &Path| {
        let meta = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        Some((meta.dev(), meta.ino()))
    };
    if input.and_then(file).is_some_and(|input| file(path) == Some(input)) {
        return Err(failed("is the input".into()));
    }
    let file = std::fs::File::create(path).map_err(|error| failed(error.to_string()))?;
    Ok(with_buffer(Box::new(file)))
}

/// The input, read ahead by a thread of its own: a source that is slow holds up no result.
struct Source {
    lines: Receiver<(Result<Line, String>, u64)>,
    /// Bytes that were read.
    bytes: u64,
    /// `Some` iff there is nothing more to read.
    end: Option<Result<(), String>>,
}

impl Source {
    fn start(mut lines: Lines, bell: Bell) -> Result<Source, BatchError> {
        let (ahead, here) = sync_channel(2 * CHUNK);
        let read = move || {
            loop {
                let line = lines.next_line().map_err(|error| format!("the input: {error}"));
                let is_last = matches!(line, Ok(Line::End) | Err(_));
                let is_taken = ahead.send((line, lines.consumed)).is_ok();
                if is_last || !lines.has_buffered_line() {
                    bell.ring();
                }
                if is_last || !is_taken {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("reader".into()).spawn(read);
        thread.map_err(|error| BatchError::Failed(format!("the reader's thread: {error}")))?;
        Ok(Source { lines: here, bytes: 0, end: None })
    }

    /// The next line, if it is here; over its limit, it is an error.
    fn next(&mut self) -> Option<Result<Vec<u8>, &'static str>> {
        if self.end.is_some() {
            return None;
        }
        let (line, bytes) = match self.lines.try_recv() {
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => (Err("the reader's thread has ended".into()), self.bytes),
            Ok(read) => read,
        };
        self.bytes = bytes;
        match line {
            Ok(Line::Whole(bytes)) => return Some(Ok(bytes)),
            Ok(Line::TooLong) => return Some(Err("max_payload_bytes")),
            Ok(Line::End) => self.end = Some(Ok(())),
            Err(error) => self.end = Some(Err(error)),
        }
        None
    }
}

/// Submits lines. A full queue is waited out, and so is a backend that is away: a batch never gets `queue_full`, and every
/// call is safe to repeat.
struct Submitter<'a> {
    producer: &'a dyn Producer,
    entropy: Entropy,
    /// Nothing is submitted before.
    again_at: Instant,
    /// How long the backend has refused everything, and when it is asked again.
    refusing_since: Option<Instant>,
    pause: Duration,
}

impl Submitter<'_> {
    /// Submits a chunk; true if there is more to do at once.
    fn submit(&mut self, pump: &mut Pump, source: &mut Source) -> Result<bool, BatchError> {
        /// A backend that restarts, or fails over, is back by then.
        const FOR_GOOD: Duration = Duration::from_secs(60);
        let now = Instant::now();
        if now < self.again_at {
            return Ok(false);
        }
        let jobs = pump.jobs(CHUNK, &mut self.entropy, || source.next());
        if jobs.is_empty() {
            return Ok(false);
        }
        let answers = self.producer.submit(jobs);
        pump.answered(&answers);
        match answers {
            Ok(_) => {
                self.refusing_since = None;
                self.pause = if pump.is_stalled() { Duration::from_millis(1) } else { Duration::ZERO };
            }
            Err(error) => {
                if self.refusing_since.is_none() {
                    log::warn!("no line can be submitted for now: {error}");
                }
                if now - *self.refusing_since.get_or_insert(now) > FOR_GOOD {
                    return Err(BatchError::Failed(format!("the backend: {error}")));
                }
                self.pause = (2 * self.pause).clamp(Duration::from_millis(10), Duration::from_secs(1));
            }
        }
        self.again_at = Instant::now() + self.pause;
        Ok(self.pause.is_zero())
    }
}
