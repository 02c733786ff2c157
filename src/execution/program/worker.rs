//! A process for many jobs, one after the other: a line to its standard input, a line from its standard output. It keeps nothing
//! that cannot be made again: state and context come with each question.

use std::time::{Duration, Instant};

use super::child::{Running, Seen};
use super::line::{self, Bad, Said};
use super::report::Why;
use super::{ENDS_WITHIN, ProgramHandler};
use crate::bell::lock;
use crate::execution::context::{Job, JobContext};
use crate::handler::HandlerError;
use crate::job::{JobId, Payload};

/// So many that were asked to end, of one handler, may take their time. Beyond it the oldest is killed.
const LEAVING: usize = 8;
/// One that has closed its side is ending, most likely.
const ENDING: Duration = Duration::from_millis(100);

/// A worker between jobs, or during one.
pub(super) struct Worker {
    running: Running,
    jobs: u64,
    /// The job before. One that answers it once more is not given another one.
    last: Option<JobId>,
    repeats_itself: bool,
    since: Instant,
}

/// Workers without a job; the last one to end a job goes first, so that those too many are idle for long.
#[derive(Default)]
pub(super) struct Idle {
    workers: Vec<Worker>,
    /// They were asked to end, and have until then.
    leaving: Vec<(Running, Instant)>,
}

impl Idle {
    /// Asks those to end that had no job for so long.
    pub(super) fn ask(&mut self, most: Duration, grace: Duration) {
        let is_spare =
            |worker: &mut Worker| worker.since.elapsed() >= most || worker.running.is_gone(Duration::ZERO);
        let spare: Vec<Worker> = self.workers.extract_if(.., is_spare).collect();
        spare.into_iter().for_each(|worker| self.leave(worker.running, grace));
    }

    fn leave(&mut self, mut running: Running, grace: Duration) {
        running.ask();
        self.leaving.push((running, Instant::now() + grace));
    }

    /// Those that have ended, or had the time for it; more, where there are too many.
    pub(super) fn take_over(&mut self) -> Vec<Running> {
        let now = Instant::now();
        let too_many = self.leaving.len().saturating_sub(LEAVING);
        let mut place = 0;
        let over = self.leaving.extract_if(.., |(running, until)| {
            place += 1;
            place <= too_many || *until <= now || running.is_gone(Duration::ZERO)
        });
        over.map(|(running, _)| running).collect()
    }

    /// All of them, asked to end.
    pub(super) fn take_all(&mut self) -> Vec<Running> {
        self.ask(Duration::ZERO, Duration::ZERO);
        std::mem::take(&mut self.leaving).into_iter().map(|(running, _)| running).collect()
    }
}

impl ProgramHandler {
    pub(super) fn work(&self, job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
        let begun = Instant::now();
        let question = line::question(job, cx);
        loop {
            if let Some(end) = self.ask(self.worker()?, question.as_bytes(), begun, job, cx) {
                return end;
            }
        }
    }

    /// What it answers. `None`: it had read nothing of the question when it ended or broke the protocol, so another one may be
    /// asked.
    fn ask(
        &self,
        mut worker: Worker,
        question: &[u8],
        begun: Instant,
        job: &Job,
        cx: &mut JobContext,
    ) -> Option<Result<Payload, HandlerError>> {
        let running = &mut worker.running;
        running.begin(&job.0.spec);
        cx.stop.tell(running.bell.clone(), self.grace() + ENDS_WITHIN);
        let mut input = question;
        let crashed = |worker: Worker, unwritten: usize, why: &str| {
            // One that has just been started would do the same again.
            let is_unread = worker.jobs > 0 && !worker.running.has_read(question.len() - unwritten);
            let (report, _) = worker.running.end(Why::Protocol, Duration::ZERO);
            (!is_unread).then(|| Err(HandlerError::Crash(format!("{why}: {report}"))))
        };
        loop {
            match running.watch(&mut input, false, cx.stop) {
                Seen::Said => {}
                Seen::Exited | Seen::Deaf => {
                    running.is_gone(ENDING);
                    return crashed(worker, input.len(), "the worker ended before it answered");
                }
                seen @ (Seen::Told | Seen::Flooded) => {
                    return Some(Err(self.stopped(worker.running, seen, begun, job)));
                }
            }
            let output = std::mem::take(&mut running.output);
            let mut rest = &output[..];
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n').filter(|_| !cx.stop.is_ended())
            {
                let (line, after) = rest.split_at(end + 1);
                rest = after;
                match line::read(line, job.id()) {
                    Ok(Said { progress: Some(progress), .. }) => cx.progress_json(progress.get()),
                    Ok(said) => {
                        let is_done = input.is_empty() && rest.is_empty() && !worker.repeats_itself;
                        worker.last = Some(job.id());
                        self.put_back(worker, is_done);
                        return Some(said.end(cx));
                    }
                    Err(Bad::Line(why)) => {
                        let (report, _) = worker.running.end(Why::Protocol, Duration::ZERO);
                        return Some(Err(HandlerError::Fail(format!("{why}; {report}"))));
                    }
                    Err(Bad::Id(id)) if worker.last.is_some_and(|last| last.to_string() == id) => {
                        worker.repeats_itself = true;
                    }
                    Err(Bad::Id(_)) => {
                        return crashed(worker, input.len(), "its line answers another job");
                    }
                }
            }
            running.output = rest.to_vec();
        }
    }

    /// One that has no job, and has said nothing since its last; or a new one.
    fn worker(&self) -> Result<Worker, HandlerError> {
        loop {
            let idle = lock(&self.idle).workers.pop();
            let Some(mut worker) = idle else { break };
            if worker.running.is_sound() {
                return Ok(worker);
            }
            worker.running.end(Why::Protocol, Duration::ZERO);
        }
        let running = self.start(&[("COFFERDAM_HANDLER", self.name.to_string())])?;
        Ok(Worker { running, jobs: 0, last: None, repeats_itself: false, since: Instant::now() })
    }

    /// It has answered. "is_done": it has read the whole question and said nothing more.
    fn put_back(&self, mut worker: Worker, is_done: bool) {
        worker.jobs += 1;
        worker.since = Instant::now();
        let is_spent = self.program.max_jobs > 0 && worker.jobs >= self.program.max_jobs;
        let mut idle = lock(&self.idle);
        if is_spent || !is_done {
            idle.leave(worker.running, self.grace())
        } else {
            idle.workers.push(worker)
        }
        drop(idle);
        self.end_spare();
    }

    /// Ends those that were asked to and have had their time. Nobody waits for the others meanwhile.
    pub(super) fn end_spare(&self) {
        let over = lock(&self.idle).take_over();
        over.into_iter().for_each(|running| drop(running.end(Why::Spare, Duration::ZERO)));
    }
}
