//! `batch`: NDJSON in, NDJSON out, in order, in both modes.
//!
//! A reader thread reads ahead, this thread submits lines and writes results; so many lines are in flight at most, and
//! when they are, reading stops. In scope: the input and the output, progress. Not in scope: who runs the jobs.

mod input;
mod output;
mod progress;
mod resume;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

pub use input::{Line, Lines};
pub use output::Output;
pub use resume::{Kept, begin, vet};

use crate::bell::Bell;
use crate::config::SinkMode;
use crate::deployment::Backend;
use crate::entropy::Entropy;
use crate::exit::Exit;
use crate::handler::{HandlerSpec, Ordering};
use crate::job::{InstanceId, JobId, Trace};
use crate::ndjson::Pump;
use crate::ports::{Ends, Fitness, JobEnded, Producer, Stats, Viewer};
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
    pub resume: Option<Resume>,
}

/// Where it begins, if not with the first line of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// So many lines were done before: they are passed over, and the output file is gone on with.
    Lines(u64),
    /// Where it was, which the journal knows.
    Journal,
}

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Lines with an answer.
    pub done: u64,
    /// Of them, those whose answer is a problem object.
    pub failed: u64,
    /// The number of the first of those; the first line of the input is 1.
    pub first_failed: Option<u64>,
    /// What the handler knew of these lines does not go on with the others.
    pub has_state: bool,
    pub end: End,
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All lines are done.
    All,
    /// It was told to stop; the first lines of the input are done, and what ran was finished.
    Stopped,
    /// The same, and lines that had begun were cut off. True: those that are done are the first of the input.
    CutOff(bool),
    /// Nobody reads the output any more.
    Unread,
}

impl Summary {
    pub fn exit(&self) -> Exit {
        match self.end {
            End::All if self.failed == 0 => Exit::Done,
            End::All | End::Stopped | End::Unread => Exit::Failed,
            End::CutOff(_) => Exit::CutOff,
        }
    }

    /// What a user should know, where not all is well. So many lines were done before; `None`: a journal knows.
    pub fn complaints(&self, before: Option<u64>) -> Vec<String> {
        let Summary { done, failed, first_failed, has_state, end } = *self;
        let first =
            first_failed.map(|line| format!("{failed} of {done} lines failed, the first is line {line}"));
        let done = before.unwrap_or(0) + done;
        let number = before.map_or(String::new(), |_| format!(" {done}"));
        let state = if has_state { ", or from the beginning: its state would be empty" } else { "" };
        let go_on = format!("line {done} was the last that is done; go on with --resume{number}{state}");
        let why = match end {
            End::All => None,
            End::Stopped => Some(format!("stopped: {go_on}")),
            End::CutOff(true) => Some(format!("stopped, and later lines were cut off: {go_on}")),
            End::CutOff(false) => Some(format!(
                "stopped, and lines were cut off: {done} are done, and not the first ones of the input"
            )),
            End::Unread => {
                Some(format!("the output's reader has gone: at most {done} lines were written, not all"))
            }
        };
        first.into_iter().chain(why).collect()
    }
}

/// What went wrong with the batch itself.
#[derive(Debug)]
pub enum BatchError {
    /// The user's fault: exit 2.
    Usage(String),
    /// Ours or the machine's: exit 1.
    Failed(String),
}

/// What becomes of a step of it.
pub type Ran<T> = Result<T, BatchError>;

/// What a batch is run with.
pub struct Parts<'a> {
    pub handler: HandlerSpec,
    pub mode: SinkMode,
    /// Lines in flight at most.
    pub window: usize,
    pub shows_progress: bool,
    pub backend: &'a Backend,
    /// Each line has a span of its own.
    pub exports_traces: bool,
    /// Of this thread.
    pub bell: Bell,
    /// Keeps what the batch stands on; why nobody runs jobs any more, if it is so.
    pub failed: &'a dyn Fn() -> Option<String>,
    /// What the backend says of itself; it is reached for that.
    pub fitness: &'a dyn Fn() -> Result<Option<Fitness>, String>,
    /// How often it was told to stop since the last call.
    pub stops: &'a mut dyn FnMut() -> usize,
    /// After the first time nothing new begins, in the order of the input, and what runs may take so long; after the second none.
    pub patience: Duration,
    /// Lines that were passed over.
    pub before: u64,
    /// `Some` iff there is a journal.
    pub kept: Option<&'a Kept>,
}

/// Lines of one submission at most: the broker's lock is taken once for them.
const CHUNK: usize = 64;

impl Parts<'_> {
    /// Runs all lines.
    ///
    /// # Errors
    /// The input cannot be read, the output not written, the backend refuses for good, or nobody runs jobs any more.
    pub fn run(self, lines: Lines, output: &mut Output) -> Ran<Summary> {
        let inbox = self.backend.replies.subscribe(INSTANCE, self.bell.clone());
        let mut inbox = inbox.map_err(|error| BatchError::Failed(error.to_string()))?;
        let mut progress = Progress::new(self.shows_progress, lines.size);
        let mut source = Source::start(lines, self.bell.clone())?;
        let mut entropy = Entropy::system();
        let trace = Trace::begin(&mut entropy);
        let has_state = self.handler.options.ordering != Ordering::None && self.kept.is_none();
        let mut pump = Pump::new(self.handler, self.mode, self.window, trace, INSTANCE);
        pump.set_traces(None, self.exports_traces);
        (pump.first_number, pump.ids) = (self.before + 1, self.kept.map(|kept| kept.next.clone()));
        let (again_at, refusing_since, pause) = (Instant::now(), None, Duration::ZERO);
        let producer = &*self.backend.producer;
        let mut submitter = Submitter { producer, kept: self.kept, entropy, again_at, refusing_since, pause };
        let mut silence = Silence { asked: Instant::now(), bad_since: None };
        let (mut is_unsure, mut cut_off_at) = (false, None);
        // After a stop nothing new begins; once nothing runs any more, and all ends were looked for, it is over.
        let (mut is_held, mut has_settled) = (false, false);
        loop {
            self.bell.answer();
            for _ in 0..(self.stops)() {
                source.end.get_or_insert(Ok(()));
                let in_order = self.mode == SinkMode::SourceSeq;
                is_held |= in_order && producer.pause(pump.handler(), true) == Ok(true);
                let patience = if cut_off_at.is_some() { Duration::ZERO } else { self.patience };
                cut_off_at = Some(Instant::now() + patience);
            }
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
            is_quiet &= is_held || !submitter.submit(&mut pump, &mut source)?;
            let mut written = Ok(());
            while written.is_ok()
                && let Some(line) = pump.next_result()
            {
                is_quiet = false;
                written = output.write_line(&line);
            }
            let is_over = source.end.is_some() && pump.is_idle();
            let is_stopped = is_held && has_settled && is_quiet;
            let runs = |stats: Stats| {
                stats.handlers.iter().any(|of| *of.handler == **pump.handler() && of.running > 0)
            };
            if is_held && is_quiet && !has_settled && producer.stats().is_ok_and(|stats| !runs(stats)) {
                (has_settled, is_unsure) = (true, true);
            }
            let is_cut_off = !is_over && !is_stopped && cut_off_at.is_some_and(|at| at <= Instant::now());
            if is_over || is_quiet || is_cut_off || is_stopped {
                written = written.and_then(|()| output.flush());
            }
            let end = match &written {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => Some(End::Unread),
                _ if is_cut_off => Some(End::CutOff(self.mode == SinkMode::SourceSeq)),
                _ if is_over && (source.is_whole || cut_off_at.is_none()) => Some(End::All),
                _ => (is_over || is_stopped).then_some(End::Stopped),
            };
            let Pump { done, failed, first_failed, .. } = pump;
            let summary = Summary { done, failed, first_failed, has_state, end: end.unwrap_or(End::All) };
            if written.is_err() || is_cut_off {
                // What runs is cut off on purpose: a line a job about lost leases would tell nobody anything.
                log::set_max_level(log::LevelFilter::Off);
            }
            progress.draw(&summary, source.bytes_of(pump.done), end.is_some());
            match (written, end) {
                (Err(error), None | Some(End::All | End::Stopped | End::CutOff(_))) => {
                    return Err(BatchError::Failed(format!("the output cannot be written: {error}")));
                }
                (_, Some(_)) => {
                    let read = source.end.filter(|_| is_over).unwrap_or(Ok(()));
                    return read.map(|()| summary).map_err(BatchError::Failed);
                }
                (Ok(()), None) => {}
            }
            let one = || pump.jobs_in_flight().into_iter().min();
            let is_lost = |job| matches!(producer.record(&Viewer::service(), job), Ok(None));
            let unheard =
                if is_quiet { silence.says(Instant::now(), self.fitness, one, is_lost) } else { None };
            if let Some(reason) = (self.failed)().or(unheard) {
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

/// The input, read ahead by a thread of its own: a source that is slow holds up no result.
struct Source {
    lines: Receiver<(Result<Line, String>, u64)>,
    /// Of each line that was taken and is not done: how many bytes were read with it.
    taken: VecDeque<u64>,
    /// Lines that are done, and the bytes that were read with the last of them.
    done: (u64, u64),
    /// `Some` iff there is nothing more to read.
    end: Option<Result<(), String>>,
    /// All of the input was taken.
    is_whole: bool,
}

impl Source {
    fn start(mut lines: Lines, bell: Bell) -> Ran<Source> {
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
        Ok(Source { lines: here, taken: VecDeque::new(), done: (0, 0), end: None, is_whole: false })
    }

    /// Bytes of the lines that are done. As they finish is near enough, in whichever order that is.
    fn bytes_of(&mut self, done: u64) -> u64 {
        while self.done.0 < done
            && let Some(bytes) = self.taken.pop_front()
        {
            self.done = (self.done.0 + 1, bytes);
        }
        self.done.1
    }

    /// The next line, if it is here; over its limit, it is an error.
    fn next(&mut self) -> Option<Result<Vec<u8>, &'static str>> {
        if self.end.is_some() {
            return None;
        }
        let (line, bytes) = match self.lines.try_recv() {
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => (Err("the reader's thread has ended".into()), 0),
            Ok(read) => read,
        };
        let line = match line {
            Ok(Line::Whole(bytes)) => Ok(bytes),
            Ok(Line::TooLong) => Err("max_payload_bytes"),
            Ok(Line::End) => {
                (self.end, self.is_whole) = (Some(Ok(())), true);
                return None;
            }
            Err(error) => {
                self.end = Some(Err(error));
                return None;
            }
        };
        self.taken.push_back(bytes);
        Some(line)
    }
}

/// A backend that restarts, or fails over, is back by then.
const AWAY_FOR_GOOD: Duration = Duration::from_secs(60);

/// While nothing is heard of any line, the backend is asked now and then whether anything can be.
struct Silence {
    asked: Instant,
    /// `Some` iff its last answer was bad: since when they are bad in this way, and how long they may be.
    bad_since: Option<(Instant, Duration)>,
}

impl Silence {
    /// Why no line will be heard of any more, if it is so.
    fn says(
        &mut self,
        now: Instant,
        fitness: &dyn Fn() -> Result<Option<Fitness>, String>,
        in_flight: impl Fn() -> Option<JobId>,
        is_lost: impl Fn(JobId) -> bool,
    ) -> Option<String> {
        const EVERY: Duration = Duration::from_secs(5);
        // After a bad answer more often: who comes and goes is not away for good.
        if now - self.asked < if self.bad_since.is_some() { EVERY / 5 } else { EVERY } {
            return None;
        }
        let bad = match fitness() {
            Ok(Some(Fitness::Unfit(why))) | Err(why) => Some((why, EVERY)),
            Ok(Some(Fitness::Away(why))) => Some((why, AWAY_FOR_GOOD)),
            // A server that was flushed, or came back without its data.
            Ok(Some(Fitness::Fit(_)) | None) => in_flight()
                .filter(|job| is_lost(*job))
                .map(|job| (format!("it has lost jobs that it had accepted, {job} among them"), EVERY)),
        };
        self.asked = now;
        let Some((why, most)) = bad else {
            self.bad_since = None;
            return None;
        };
        let since = self.bad_since.filter(|(_, of)| *of == most).map_or(now, |(since, _)| since);
        self.bad_since = Some((since, most));
        (now - since >= most).then(|| format!("the backend: {why}"))
    }
}

/// Submits lines. A full queue is waited out, and so is a backend that is away: a batch never gets `queue_full`, and every
/// call is safe to repeat.
struct Submitter<'a> {
    producer: &'a dyn Producer,
    kept: Option<&'a Kept>,
    entropy: Entropy,
    /// Nothing is submitted before.
    again_at: Instant,
    /// How long the backend has refused everything, and when it is asked again.
    refusing_since: Option<Instant>,
    pause: Duration,
}

impl Submitter<'_> {
    /// Submits a chunk; true if there is more to do at once.
    fn submit(&mut self, pump: &mut Pump, source: &mut Source) -> Ran<bool> {
        let now = Instant::now();
        if now < self.again_at {
            return Ok(false);
        }
        let jobs = pump.jobs(CHUNK, &mut self.entropy, || source.next());
        if jobs.is_empty() {
            return Ok(false);
        }
        if let Some(kept) = self.kept {
            jobs.iter().try_for_each(|job| kept.vet(job.id))?;
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
                if now - *self.refusing_since.get_or_insert(now) > AWAY_FOR_GOOD {
                    return Err(BatchError::Failed(format!("the backend: {error}")));
                }
                self.pause = (2 * self.pause).clamp(Duration::from_millis(10), Duration::from_secs(1));
            }
        }
        self.again_at = Instant::now() + self.pause;
        Ok(self.pause.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_given_up_that_was_bad_in_one_way_for_as_long_as_that_may_last() {
        let away = || Ok(Some(Fitness::Away("away".into())));
        let unfit = || Ok(Some(Fitness::Unfit("unfit".into())));
        let fit = || Ok(Some(Fitness::Fit("fit".into())));
        type Says = Box<dyn Fn(u64) -> Result<Option<Fitness>, String>>;
        let cases: [(Says, bool, Option<u64>); 5] = [
            (Box::new(move |_| away()), false, Some(65)),
            (Box::new(move |second| if second % 50 == 49 { fit() } else { away() }), false, None),
            (Box::new(move |second| if second < 40 { away() } else { unfit() }), false, Some(45)),
            (Box::new(move |second| if second % 7 == 6 { unfit() } else { away() }), false, None),
            (Box::new(move |_| fit()), true, Some(10)),
        ];
        for (number, (says, is_lost, expected)) in cases.into_iter().enumerate() {
            let begun = Instant::now();
            let mut silence = Silence { asked: begun, bad_since: None };
            let ended = (1..300).find(|second| {
                let now = begun + Duration::from_secs(*second);
                silence.says(now, &|| says(*second), || Some(JobId([1; 16])), |_| is_lost).is_some()
            });
            assert_eq!(ended, expected, "{number}");
        }
    }
}
