//! What a program has started and left behind: it comes to this process, which is a subreaper, and is ended.
//!
//! An orphan comes to the first thread of a process, which starts no programs itself: so whoever is a child of that thread, and
//! was not before there were programs, is an orphan. Whose it is, its session tells, which each program has of its own, or the
//! mark in the environment that it was started with.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, getsid, kill_process, set_child_subreaper, waitpid};

use crate::bell::lock;
use crate::process_table::{children_of_first_thread, stat, variable};

/// The variables whose values are marks: of a program that runs for one job, and of a worker.
pub const MARKS: [&str; 2] = ["COFFERDAM_JOB_ID", "COFFERDAM_WORKER"];
/// What is killed has ended so soon; if not, the next sweep finds it.
const PATIENCE: Duration = Duration::from_millis(500);

static RUNNING: Mutex<Running> = Mutex::new(Running { marks: BTreeMap::new(), known: Vec::new() });

#[derive(Default)]
struct Running {
    /// Of programs that run or are just being started, the number of their leader, or 0.
    marks: BTreeMap<String, i32>,
    /// Children of the first thread that were there before: no orphans.
    known: Vec<i32>,
}

/// A program is there, or is about to be.
pub(super) struct Mark(String);

impl Mark {
    pub(super) fn new(mark: String) -> Mark {
        lock(&RUNNING).marks.insert(mark.clone(), 0);
        Mark(mark)
    }

    /// This is its first process.
    pub(super) fn leads(&mut self, pid: Pid) {
        lock(&RUNNING).marks.insert(self.0.clone(), pid.as_raw_nonzero().get());
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        lock(&RUNNING).marks.remove(&self.0);
    }
}

/// From now on orphans come here.
pub(super) fn adopt() -> std::io::Result<()> {
    set_child_subreaper(Some(rustix::process::getpid()))?;
    lock(&RUNNING).known = children_of_first_thread();
    Ok(())
}

/// Until no program runs, or so long.
pub(super) fn wait(most: Duration) {
    let begun = Instant::now();
    while !lock(&RUNNING).marks.is_empty() && begun.elapsed() < most {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Ends and reaps what programs that have ended left behind.
pub(super) fn sweep() {
    let begun = Instant::now();
    while sweep_once() && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// True if some of it is still there.
fn sweep_once() -> bool {
    let running = lock(&RUNNING);
    let orphans = children_of_first_thread().into_iter().filter(|pid| !running.known.contains(pid));
    let mut is_left = false;
    for (number, pid) in orphans.filter_map(|number| Some((number, Pid::from_raw(number)?))) {
        // What has ended goes, whosever it was; what runs goes if it is a program's.
        if stat(number).is_some_and(|stat| stat.is_zombie) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        } else if running.leaves_behind(number) {
            let _ = kill_process(pid, Signal::KILL);
            is_left |= matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None));
        }
    }
    is_left
}

impl Running {
    /// It belongs to a program that runs no more. One that has wiped its environment and has a session of its own may be
    /// anybody's: it is left alone while other programs run.
    fn leaves_behind(&self, pid: i32) -> bool {
        let own = getsid(None).map(|session| session.as_raw_nonzero().get()).ok();
        let Some(session) = stat(pid).map(|stat| stat.session).filter(|session| Some(*session) != own) else {
            return false;
        };
        if self.marks.values().any(|leader| *leader == session) {
            return false;
        }
        match MARKS.iter().find_map(|name| variable(pid, name)) {
            Some(mark) => !self.marks.contains_key(&mark),
            None => self.marks.is_empty(),
        }
    }
}
