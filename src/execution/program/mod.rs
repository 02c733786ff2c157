//! Programs as handlers: a process a job (`once`), or a process for many jobs (`worker`). docs/workers.md is what the people
//! who write them read.

mod child;
mod line;
mod once;
mod orphans;
mod report;
mod words;
mod worker;

pub use child::{EXEC, User, path};
pub use orphans::{MARK, are_there};

use std::io::ErrorKind;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use self::child::{Running, Seen};
use self::report::Why;
use self::worker::Idle;
use super::context::{Handler, Job, JobContext};
use crate::bell::lock;
use crate::config::{Program, ProgramMode};
use crate::handler::HandlerError;
use crate::job::Payload;
use crate::observe::job_event;

/// What stopping takes at most beyond `stop_grace_ms`.
pub const ENDS_WITHIN: Duration = Duration::from_millis(500);

/// How often workers that are idle, and what programs left behind, are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Looks after these programs from now on, if there are any: orphans come here, workers that are idle for long are ended.
pub fn keep(programs: Vec<Arc<ProgramHandler>>) -> std::io::Result<()> {
    if programs.is_empty() {
        return Ok(());
    }
    orphans::adopt()?;
    let look = move || loop {
        std::thread::sleep(LOOK_EVERY);
        programs.iter().for_each(|program| program.look());
        orphans::sweep();
    };
    std::thread::Builder::new().name("programs".into()).spawn(look).map(drop)
}

/// Asks all workers of these programs to end, and waits for them; for programs that run, so long at most.
pub fn end(programs: &[Arc<ProgramHandler>], most: Duration) {
    std::thread::scope(|scope| programs.iter().for_each(|program| _ = scope.spawn(|| program.close())));
    orphans::wait(most);
}

/// A job's time is counted from a moment before its program was begun.
const CLOCKS_DIFFER: Duration = Duration::from_millis(50);

/// A handler that is a program.
pub struct ProgramHandler {
    name: Arc<str>,
    program: Program,
    /// Why it cannot be run as its user, or who that is.
    user: Result<User, String>,
    idle: Mutex<Idle>,
}

impl ProgramHandler {
    pub fn new(name: &str, program: Program, user: Result<User, String>) -> ProgramHandler {
        ProgramHandler { name: name.into(), program, user, idle: Mutex::default() }
    }

    /// Ends workers that had no job for a while.
    fn look(&self) {
        lock(&self.idle).ask(Duration::from_millis(self.program.idle_ms), self.grace());
        self.end_spare();
    }

    /// Ends all that have no job: all at once are asked, and have one grace together.
    fn close(&self) {
        let all = lock(&self.idle).take_all();
        let until = Instant::now() + self.grace();
        let left = || until.saturating_duration_since(Instant::now());
        all.into_iter().for_each(|running| drop(running.end(Why::Spare, left())));
    }

    fn grace(&self) -> Duration {
        Duration::from_millis(self.program.stop_grace_ms)
    }

    /// What is missing now may be there the next time; what is not there is not.
    fn start(&self, variables: &[(&str, String)]) -> Result<Running, HandlerError> {
        let user = self.user.clone().map_err(|why| HandlerError::Fail(format!("user: {why}")))?;
        Running::start(&self.program, user, variables).map_err(|error| {
            let why = format!("it cannot be started: {error}");
            match error.kind() {
                ErrorKind::NotFound | ErrorKind::PermissionDenied => HandlerError::Fail(why),
                _ => HandlerError::Retry(why),
            }
        })
    }

    /// What comes of a job whose program did not end by itself.
    fn stopped(&self, running: Running, seen: Seen, begun: Instant, job: &Job) -> HandlerError {
        let (why, grace) = match seen {
            Seen::Flooded => (Why::Output, Duration::ZERO),
            _ if begun.elapsed() + CLOCKS_DIFFER >= job.0.spec.timeout => (Why::Timeout, self.grace()),
            _ => (Why::Cancelled, self.grace()),
        };
        let (report, _) = running.end(why, grace);
        if why == Why::Cancelled {
            // Its job has an end already, which says nothing of this.
            let spec = &job.0.spec;
            let said = job_event(log::Level::Info, "job.stopped", &spec.trace, spec.id, &spec.handler);
            said.field("reason", &report.to_string()).emit();
        }
        HandlerError::Fail(report.to_string())
    }
}

impl Handler for ProgramHandler {
    fn handle(&self, job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
        match self.program.mode {
            ProgramMode::Once => self.once(job, cx),
            ProgramMode::Worker => self.work(job, cx),
        }
    }
}
