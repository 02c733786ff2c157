//! Worker threads: each takes a run, does its jobs in order, and says what came of each.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::Thread;
use std::time::Duration;

use super::context::{Contexts, Job, JobContext, Staging};
use super::core::{Done, Run};
use super::registry::Handlers;
use super::run::{Begin, Limits, RunControl};
use crate::bell::{Bell, lock};
use crate::clock::{Clock, micros};
use crate::handler::{HandlerError, HandlerSpec, Ordering as Order};
use crate::job::Verdict;
use crate::limits::ERROR_DETAIL_BYTES;
use crate::ports::LeasedJob;
use crate::problem::{Code, JobError};

/// Waking the loop costs more than a short job. So the outcomes of a run ring once in this time; the first one
/// and the end ring always, and the loop looks by itself every [`super::core::LOOK_EVERY`].
const RING_EVERY: Duration = Duration::from_micros(100);

/// The worker threads of one process.
pub struct WorkerPool {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    mailbox: Mutex<Vec<Done>>,
    bell: Bell,
    clock: Clock,
    limits: Limits,
    handlers: Handlers,
    specs: Vec<HandlerSpec>,
    /// How long jobs take of late, in microseconds: a moving average.
    job_micros: AtomicU64,
}

#[derive(Default)]
struct Queue {
    runs: VecDeque<Run>,
    /// Who sleeps; the last to fall asleep is woken first, so that few threads stay warm.
    idle: Vec<Thread>,
    stop: bool,
}

impl Queue {
    fn wake_one(&mut self) {
        if let Some(thread) = self.idle.pop() {
            thread.unpark();
        }
    }
}

/// Jobs that take less than this are not worth a wake-up of another worker each.
const SHORT_JOB_MICROS: u64 = 50;

impl WorkerPool {
    /// Starts the threads; `bell` rings when one of them has said something.
    pub fn start(
        workers: usize,
        handlers: Handlers,
        limits: Limits,
        clock: Clock,
        bell: Bell,
    ) -> std::io::Result<WorkerPool> {
        let (queue, mailbox) = Default::default();
        let job_micros = AtomicU64::new(u64::MAX / 16);
        let specs = handlers.iter().map(|(spec, _)| spec.clone()).collect();
        let shared = Arc::new(Shared { queue, mailbox, bell, clock, limits, handlers, specs, job_micros });
        for index in 0..workers {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || shared.work())?;
        }
        Ok(WorkerPool { shared })
    }

    /// True if jobs are so short of late that a worker's wake-up costs more than a job.
    pub fn jobs_are_short(&self) -> bool {
        self.shared.job_micros.load(Ordering::Relaxed) < SHORT_JOB_MICROS
    }

    /// Hands runs over, in their order. One worker is woken; it wakes the next one while there is work, unless
    /// jobs are short: then whoever is awake does them, and [`WorkerPool::nudge`] sees to those that wait.
    pub fn push(&self, runs: impl IntoIterator<Item = Run>) {
        let mut queue = lock(&self.shared.queue);
        queue.runs.extend(runs);
        if !queue.runs.is_empty() {
            queue.wake_one();
        }
    }

    /// Wakes a worker for each run that still waits; true if there was one.
    pub fn nudge(&self) -> bool {
        let mut queue = lock(&self.shared.queue);
        for _ in 0..queue.runs.len().min(queue.idle.len()) {
            queue.wake_one();
        }
        !queue.runs.is_empty()
    }

    /// What the workers have said since the last call.
    pub fn take(&self) -> Vec<Done> {
        std::mem::take(&mut *lock(&self.shared.mailbox))
    }
}

impl Drop for WorkerPool {
    /// Idle threads end; a busy one ends after its run. Nobody waits for them: a handler may never return.
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        queue.stop = true;
        queue.idle.drain(..).for_each(|thread| thread.unpark());
    }
}

impl Shared {
    fn work(&self) {
        let me = std::thread::current();
        let mut queue = lock(&self.queue);
        while !queue.stop {
            let Some(run) = queue.runs.pop_front() else {
                queue.idle.push(me.clone());
                drop(queue);
                std::thread::park();
                queue = lock(&self.queue);
                // Woken for no reason, it must not stand in the list twice.
                queue.idle.retain(|thread| thread.id() != me.id());
                continue;
            };
            if !queue.runs.is_empty() && self.job_micros.load(Ordering::Relaxed) >= SHORT_JOB_MICROS {
                queue.wake_one();
            }
            drop(queue);
            self.do_run(run);
            queue = lock(&self.queue);
        }
    }

    /// Jobs become "short" slowly and "long" at once: a wrong guess costs the others up to a millisecond.
    fn count_job(&self, micros: u64) {
        let average = self.job_micros.load(Ordering::Relaxed);
        let next = if micros > average { micros } else { average - (average - micros).div_ceil(16) };
        self.job_micros.store(next, Ordering::Relaxed);
    }

    fn do_run(&self, run: Run) {
        let Run { lease, handler, jobs, mut contexts, control } = run;
        let mut is_first = true;
        let mut rung_at = None;
        let mut started = self.clock.now();
        control.start(started);
        for job in jobs {
            match control.begin(job.spec.id, is_first) {
                Begin::Go => is_first = false,
                Begin::LeaveOut => continue,
                Begin::Stop => break,
            }
            let (id, builds_on) = (job.spec.id, contexts.version);
            let verdict = self.do_job(&handler, job, &mut contexts, &control);
            let ends_run = matches!(verdict, Verdict::Retry(_) | Verdict::Crashed(_));
            let at = self.clock.now();
            self.count_job(micros(at.since(started)));
            started = at;
            self.say(Done::Outcome { lease, job: id, verdict, builds_on, at });
            if rung_at.is_none_or(|rung_at| at.since(rung_at) >= RING_EVERY) {
                rung_at = Some(at);
                self.bell.ring();
            }
            if ends_run {
                break;
            }
        }
        contexts.forget_traces();
        self.say(Done::End { lease, contexts });
        self.bell.ring();
    }

    fn do_job(
        &self,
        handler: &str,
        job: LeasedJob,
        contexts: &mut Contexts,
        control: &RunControl,
    ) -> Verdict {
        let failed = |code, detail: String| Verdict::Failed(JobError::new(code, detail));
        // Both ends have the same registry, so a lease names a handler that is here.
        let Some((spec, code)) = self.handlers.iter().find(|(spec, _)| *spec.name == *handler) else {
            return failed(Code::InternalError, format!("the handler {handler} is not in this binary"));
        };
        let job = Job(job);
        let mut cx = JobContext {
            job: &job.0,
            maps: contexts,
            control,
            deadline: self.clock.now().plus(job.0.spec.timeout),
            is_ordered: spec.options.ordering != Order::None,
            specs: &self.specs,
            staging: Staging::default(),
        };
        // What a panicking handler leaves behind is its own: our maps change only in `commit` below.
        let said = catch_unwind(AssertUnwindSafe(|| code.handle(&job, &mut cx)));
        let payload = match said {
            Ok(Ok(payload)) => payload,
            Ok(Err(HandlerError::Retry(detail))) => return Verdict::Retry(clip(detail)),
            Ok(Err(HandlerError::Fail(detail))) => return failed(Code::HandlerFailed, clip(detail)),
            Err(panic) => return Verdict::Crashed(clip(panic_text(&*panic))),
        };
        if payload.bytes.len() > self.limits.max_payload {
            return failed(Code::ResultTooLarge, format!("the result has {} bytes", payload.bytes.len()));
        }
        if job.0.spec.one_line && payload.bytes.contains(&b'\n') {
            let detail = "the result has a line break, and a batch's results are one line each";
            return failed(Code::HandlerFailed, detail.into());
        }
        match cx.commit(&self.limits) {
            Ok(effects) => Verdict::Succeeded(payload, effects),
            Err(error) => Verdict::Failed(error),
        }
    }

    fn say(&self, done: Done) {
        lock(&self.mailbox).push(done);
    }
}

fn clip(mut detail: String) -> String {
    if detail.len() > ERROR_DETAIL_BYTES {
        let end = (0..=ERROR_DETAIL_BYTES).rev().find(|end| detail.is_char_boundary(*end)).unwrap_or(0);
        detail.truncate(end);
    }
    detail
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", text.unwrap_or("without a message"))
}
