//! A process for many jobs, one after the other: a line to its standard input, a line from its standard output. It keeps nothing
//! that cannot be made again: state and context come with each question.

use std::time::{Duration, Instant};

use super::child::{Running, Seen};
use super::line::{self, Bad};
use super::orphans::MARKS;
use super::report::Why;
use super::{ENDS_WITHIN, ProgramHandler};
use crate::bell::lock;
use crate::entropy::Entropy;
use crate::execution::context::{Job, JobContext};
use crate::handler::HandlerError;
use crate::job::{Payload, write_hex};

/// A worker between jobs, or during one.
pub(super) struct Worker {
    running: Running,
    jobs: u64,
    since: Instant,
}

/// Workers without a job; the last one to end a job goes first, so that those too many are idle for long.
#[derive(Default)]
pub(super) struct Idle {
    workers: Vec<Worker>,
    /// They have done their last job, and are to be ended.
    leaving: Vec<Running>,
}

impl Idle {
    /// Those that nobody needs any more.
    pub(super) fn take_spare(&mut self, idle_ms: u64) -> Vec<Running> {
        let most = Duration::from_millis(idle_ms);
        let mut spare = std::mem::take(&mut self.leaving);
        let gone =
            self.workers.extract_if(.., |worker| worker.since.elapsed() >= most || worker.running.is_gone());
        spare.extend(gone.map(|worker| worker.running));
        spare
    }
}

impl ProgramHandler {
    pub(super) fn work(&self, job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
        let mut worker = self.worker()?;
        let begun = Instant::now();
        let running = &mut worker.running;
        running.words.begin(&job.0.spec);
        cx.stop.tell(running.bell.clone(), self.grace() + ENDS_WITHIN);
        let question = line::question(job, cx);
        let mut input = question.as_bytes();
        loop {
            match running.watch(&mut input, false, cx.stop) {
                Seen::Said => {}
                Seen::Exited => {
                    let (report, _) = worker.running.end(Why::Itself, self.grace());
                    return Err(HandlerError::Crash(format!(
                        "the worker ended before it answered: {report}"
                    )));
                }
                seen @ (Seen::Told | Seen::Flooded) => {
                    return Err(self.stopped(worker.running, seen, begun, job));
                }
            }
            while let Some(end) = running.output.iter().position(|byte| *byte == b'\n') {
                let rest = running.output.split_off(end + 1);
                let line = std::mem::replace(&mut running.output, rest);
                match line::read(&line, job.id()) {
                    Ok(said) if said.progress.is_some() => {}
                    Ok(said) => {
                        let is_done = input.is_empty() && running.output.is_empty();
                        self.put_back(worker, is_done);
                        return said.end(cx);
                    }
                    Err(bad) => {
                        let (report, _) = worker.running.end(Why::Protocol, Duration::ZERO);
                        return Err(match bad {
                            Bad::Line(why) => HandlerError::Fail(format!("{why}; {report}")),
                            Bad::Id => HandlerError::Crash(format!("its line answers another job; {report}")),
                        });
                    }
                }
            }
        }
    }

    /// One that has no job, and has said nothing since its last; or a new one.
    fn worker(&self) -> Result<Worker, HandlerError> {
        loop {
            let idle = lock(&self.idle).workers.pop();
            let Some(mut worker) = idle else { break };
            worker.running.read();
            if !worker.running.is_gone() && worker.running.output.is_empty() {
                return Ok(worker);
            }
            worker.running.end(Why::Protocol, Duration::ZERO);
        }
        let mut mark = String::new();
        let _ = write_hex(&mut mark, &Entropy::system().bytes::<16>());
        let variables = [(MARKS[1], mark), ("COFFERDAM_HANDLER", self.name.to_string())];
        let running = self.start(&variables)?;
        Ok(Worker { running, jobs: 0, since: Instant::now() })
    }

    /// It has answered. "is_done": it has read the whole question and said nothing more.
    fn put_back(&self, mut worker: Worker, is_done: bool) {
        worker.jobs += 1;
        worker.since = Instant::now();
        let is_spent = self.program.max_jobs > 0 && worker.jobs >= self.program.max_jobs;
        let mut idle = lock(&self.idle);
        if is_spent || !is_done { idle.leaving.push(worker.running) } else { idle.workers.push(worker) }
    }
}
