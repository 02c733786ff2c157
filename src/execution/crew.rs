//! The threads of an executor, `workers + 1` and all alike, around one lock, the helm. Whoever has it reads what comes
//! and says what is to be said; while jobs are short it leaves the helm for a run that it has just read, does it, and
//! comes back: so a job's lease and its outcome cost no hand-over between threads.
//!
//! ```text
//!          a run                          no run, nobody leads            somebody leads
//!   run <--------- (what is next?) ------------------------------> lead   ------> park, or watch as the mate
//!    |                  ^  ^                                        |
//!    +------------------+  +-------- a run of its own, short -------+ wait in poll
//! ```
//!
//! Invariants: no handler runs under the helm; somebody waits for events, or tries the helm within
//! [`deck::LOOK_EVERY`](super::deck); at most `workers` handlers run at once; leases begin in the order of their frames;
//! an outcome is handed over once, in its run's order, before the run's end.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use super::books::Books;
use super::context::{Handlers, Job, JobContext, Staging};
use super::deck::{Deck, Next};
use super::program;
use super::run::{Done, Run, RunMaps, RunStop};
use crate::bell::{Bell, lock};
use crate::clock::{Clock, Timestamp};
use crate::handler::HandlerError;
use crate::job::{JobSpec, Outcome, Progress};
use crate::limits::ERROR_DETAIL_BYTES;
use crate::ports::{BackendError, Consumer, LeasedJob, Rules};
use crate::problem::{Code, JobError};

thread_local! {
    static RUNNING: RefCell<Option<Arc<JobSpec>>> = const { RefCell::new(None) };
}

/// The job that a handler runs on this thread.
pub fn running_job() -> Option<Arc<JobSpec>> {
    RUNNING.with_borrow(Option::clone)
}

/// What the leader does besides the books: its broker, and whoever may stop it.
pub trait Helm: Send + 'static {
    /// How it ends.
    type End: Send + 'static;

    /// Everything there is to do now; says how long nothing need be done.
    fn turn(&mut self, engine: &mut Engine, now: Timestamp) -> ControlFlow<Self::End, Duration>;

    /// Waits for events, or until the crew's bell rings, at most so long.
    fn wait(&mut self, most: Duration) -> ControlFlow<Self::End>;
}

/// One exchange with the broker: what came of runs is said, what comes is entered into the books and given to the
/// threads. Thin: every decision is the books'.
pub struct Engine {
    pub books: Books,
    deck: Arc<Deck>,
    visibility: Duration,
    renew_at: Timestamp,
}

/// How an executor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It takes jobs.
    Working,
    /// Handlers ignore that their time is over: the process should be replaced.
    Stuck,
    /// It was told to stop, nothing of its runs is left, and the broker knows what came of them.
    Drained,
}

impl Engine {
    /// Does all there is to do now; says when to come again at the latest. An error: the broker is lost, and every run has
    /// been abandoned.
    pub fn exchange(
        &mut self,
        consumer: &mut dyn Consumer,
        now: Timestamp,
    ) -> Result<Timestamp, BackendError> {
        let books = &mut self.books;
        self.deck.take_done().into_iter().for_each(|done| books.on_done(done));
        books.on_time(now);
        if now >= self.renew_at {
            consumer.extend();
            self.renew_at = now.plus(self.visibility / 3);
        }
        loop {
            let are_short = self.deck.jobs_are_short();
            if !are_short {
                books.give_back(self.deck.take_waiting());
            }
            let stepped = consumer.step(books.take_requests(), books.room(are_short));
            let step = stepped.inspect_err(|_| {
                // No worker will end these.
                books.give_back(self.deck.take_all_waiting());
                books.abandon(now);
            })?;
            step.fenced.into_iter().for_each(|fenced| books.on_fenced(fenced, now));
            let runs: Vec<Run> = step.leases.into_iter().filter_map(|lease| books.on_lease(lease)).collect();
            step.revoked.into_iter().for_each(|revoked| books.on_revoked(revoked, now));
            self.deck.put_runs(runs);
            if books.requests.is_empty() {
                return Ok(books.next_deadline().map_or(self.renew_at, |at| at.min(self.renew_at)));
            }
        }
    }

    pub fn health(&self, consumer: &dyn Consumer, now: Timestamp) -> Health {
        if self.books.is_drained() && consumer.is_settled() {
            Health::Drained
        } else if self.books.is_stuck(now) {
            Health::Stuck
        } else {
            Health::Working
        }
    }
}

/// What a crew works with.
pub struct Outfit {
    pub workers: usize,
    pub handlers: Handlers,
    pub rules: Rules,
    pub clock: Clock,
    /// Wakes the leader from [`Helm::wait`].
    pub bell: Bell,
}

struct Crew<H: Helm> {
    helm: Mutex<(H, Engine)>,
    deck: Arc<Deck>,
    outfit: Outfit,
    /// Gone once one of the threads has panicked: whoever listens hears that at once.
    end: Mutex<Option<SyncSender<H::End>>>,
}

/// Starts the threads. The receiver gets how the helm ended; without a word if one of our threads has panicked.
pub fn start<H: Helm>(outfit: Outfit, helm: H) -> std::io::Result<Receiver<H::End>> {
    let deck = Arc::new(Deck::new(outfit.workers));
    let books = Books::new(outfit.workers, outfit.rules.clone());
    let visibility = outfit.rules.visibility;
    let engine = Engine { books, deck: deck.clone(), visibility, renew_at: Timestamp::default() };
    let (end, ended) = sync_channel(1);
    let crew = Arc::new(Crew { helm: Mutex::new((helm, engine)), deck, outfit, end: Mutex::new(Some(end)) });
    for index in 0..=crew.outfit.workers {
        let member = Member(crew.clone());
        let thread = std::thread::Builder::new().name(format!("worker-{index}"));
        thread.spawn(move || {
            member.0.work();
            // What a thread has started ends with it (`process::exec_shim`): where there are programs, it ends with the
            // process. So does the helm, whose supervisor takes a connection that ends for the process's end.
            let crew = program::are_there().then(|| member.0.clone());
            drop(member);
            while crew.is_some() {
                std::thread::park();
            }
        })?;
    }
    Ok(ended)
}

/// A thread's hold on the crew. One that panics outside of a handler has a bug of ours: the others end, too.
struct Member<H: Helm>(Arc<Crew<H>>);

impl<H: Helm> Drop for Member<H> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(&self.0.end).take();
        }
        self.0.deck.end();
        self.0.outfit.bell.ring();
    }
}

impl<H: Helm> Crew<H> {
    fn now(&self) -> Timestamp {
        self.outfit.clock.now()
    }

    fn work(&self) {
        let me = std::thread::current();
        loop {
            match self.deck.next(&me, self.now()) {
                Next::Run(run) => self.do_run(run),
                Next::Lead => match self.helm.try_lock() {
                    Ok(helm) => self.lead(helm),
                    Err(TryLockError::WouldBlock) => std::thread::yield_now(),
                    // A panic under the helm leaves the books in doubt.
                    Err(TryLockError::Poisoned(_)) => return,
                },
                Next::Park => std::thread::park(),
                Next::Watch(most) => std::thread::park_timeout(most),
                Next::End => return,
            }
        }
    }

    /// Until there is a run to do, or the end.
    fn lead(&self, mut helm: MutexGuard<(H, Engine)>) {
        self.deck.set_led(true, self.now());
        while !self.deck.is_over() {
            let (helmsman, engine) = &mut *helm;
            let most = match helmsman.turn(engine, self.now()) {
                ControlFlow::Continue(most) => most,
                ControlFlow::Break(end) => return self.end(end),
            };
            if let Some(run) = self.deck.run_of_leader(self.now()) {
                drop(helm);
                return self.do_run(run);
            }
            if let ControlFlow::Break(end) = helmsman.wait(self.deck.rest(most)) {
                return self.end(end);
            }
            self.deck.look(self.now());
        }
    }

    /// Says what has come of runs, if nobody else does.
    fn say(&self) {
        let Ok(mut helm) = self.helm.try_lock() else { return };
        self.deck.set_led(true, self.now());
        let (helmsman, engine) = &mut *helm;
        if let ControlFlow::Break(end) = helmsman.turn(engine, self.now()) {
            self.end(end);
        }
        self.deck.set_led(false, self.now());
    }

    fn end(&self, end: H::End) {
        let _ = lock(&self.end).as_ref().map(|sender| sender.try_send(end));
        self.deck.end();
    }

    fn do_run(&self, run: Run) {
        let Run { lease, handler, jobs, mut maps, stop } = run;
        let mut started = self.now();
        stop.start(started);
        for (place, job) in jobs.into_iter().enumerate() {
            if !stop.begin(place) {
                continue;
            }
            let (id, builds_on, timeout) = (job.spec.id, maps.version, job.spec.timeout);
            let outcome = self.do_job(&handler, job, &mut maps, &stop);
            let at = self.now();
            // The books take one that is late for timed out, which ends the run.
            let is_late = started.plus(timeout) < at;
            let ends_run = is_late || matches!(outcome, Outcome::Retry(..) | Outcome::Crashed(_));
            self.deck.count_job(at.since(started));
            started = at;
            let progress = stop.take_progress().map(|(_, progress)| progress);
            let done = Done::Outcome { lease, job: id, outcome, progress, builds_on, at };
            if self.deck.put_done(done, at) {
                self.outfit.bell.ring();
            } else if self.deck.must_say(at) {
                self.say();
            }
            if ends_run {
                break;
            }
        }
        maps.traces.clear();
        if self.deck.put_done(Done::End { lease, maps }, started) {
            self.outfit.bell.ring();
        }
    }

    fn do_job(&self, handler: &str, job: LeasedJob, maps: &mut RunMaps, stop: &RunStop) -> Outcome {
        let failed = |code, detail: String| Outcome::Failed(JobError::new(code, detail));
        // Both ends have the same registry, so a lease names a handler that is here.
        let Some((spec, code)) = self.outfit.handlers.iter().find(|(spec, _)| *spec.name == *handler) else {
            return failed(Code::HandlerFailed, format!("the handler {handler} is not in this binary"));
        };
        let job = Job(job);
        let deadline = self.now().plus(job.0.spec.timeout);
        let (handlers, staging) = (&self.outfit.handlers, Staging::default());
        let progress: &dyn Fn(Progress) = &|progress| {
            if stop.set_progress(job.id(), progress) {
                self.outfit.bell.ring();
            }
        };
        let mut cx = JobContext { job: &job.0, maps, stop, deadline, spec, handlers, staging, progress };
        // What a panicking handler leaves behind is its own: our maps change only in `commit` below.
        RUNNING.set(Some(job.0.spec.clone()));
        let said = catch_unwind(AssertUnwindSafe(|| code.handle(&job, &mut cx)));
        RUNNING.take();
        let payload = match said {
            Ok(Ok(payload)) => payload,
            Ok(Err(HandlerError::Retry(detail))) => return Outcome::Retry(clip(detail), None),
            Ok(Err(HandlerError::RetryAfter(after, detail))) => {
                return Outcome::Retry(clip(detail), Some(after));
            }
            Ok(Err(HandlerError::Fail(detail))) => return failed(Code::HandlerFailed, clip(detail)),
            Ok(Err(HandlerError::Crash(detail))) => return Outcome::Crashed(clip(detail)),
            Err(panic) => return Outcome::Crashed(clip(panic_text(&*panic))),
        };
        if payload.bytes.len() > self.outfit.rules.max_payload {
            return failed(Code::ResultTooLarge, format!("the result has {} bytes", payload.bytes.len()));
        }
        if job.0.spec.one_line && payload.bytes.contains(&b'\n') {
            let detail = "the result has a line break, and a batch's results are one line each";
            return failed(Code::HandlerFailed, detail.into());
        }
        let committed = cx.commit(&self.outfit.rules);
        committed.map_or_else(Outcome::Failed, |effects| Outcome::Succeeded(payload, effects))
    }
}

fn clip(mut detail: String) -> String {
    let most = ERROR_DETAIL_BYTES.min(detail.len());
    detail.truncate((0..=most).rev().find(|end| detail.is_char_boundary(*end)).unwrap_or(0));
    detail
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", text.unwrap_or("without a message"))
}
