//! What a program has started and left behind: it comes to this process, which is a subreaper, and is ended.
//!
//! An orphan comes to the first thread of a process, which starts no programs itself: so whoever is a child of that thread, and
//! was not before there were programs, is an orphan. Whose it is, its session tells, which each program has of its own, or the
//! mark in the environment that it was started with.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, set_child_subreaper, waitpid};

use crate::bell::lock;
use crate::process_table::{children_of_first_thread, end_trees, session, variable};

/// The variable whose value is the mark: another for each start of a program.
pub const MARK: &str = "COFFERDAM_PROGRAM";

static RUNNING: Mutex<Running> = Mutex::new(Running { marks: BTreeMap::new(), known: None });

struct Running {
    /// Of programs that run or are just being started, the number of their leader, or 0.
    marks: BTreeMap<String, i32>,
    /// Children of the first thread that were there before: no orphans. `None`: there are no programs here.
    known: Option<Vec<i32>>,
}

/// A program is there, or is about to be.
pub(super) struct Mark(pub(super) String);

impl Mark {
    pub(super) fn new(mark: String) -> Mark {
        lock(&RUNNING).marks.insert(mark.clone(), 0);
        Mark(mark)
    }

    /// This is its first process.
    pub(super) fn leads(&self, pid: Pid) {
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
    lock(&RUNNING).known = Some(children_of_first_thread(own()));
    Ok(())
}

/// True once orphans come here: then no thread that starts programs may end, since its programs would end with it.
pub fn are_there() -> bool {
    lock(&RUNNING).known.is_some()
}

/// Until no program runs, or so long.
pub(super) fn wait(most: Duration) {
    let begun = Instant::now();
    while !lock(&RUNNING).marks.is_empty() && begun.elapsed() < most {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Ends what programs that have ended left behind, and takes what has ended off the process table: what is killed here, the
/// next time. Waits for nobody.
pub(super) fn sweep() {
    let running = lock(&RUNNING);
    let Some(known) = &running.known else { return };
    let orphans = || children_of_first_thread(own()).into_iter().filter(|pid| !known.contains(pid));
    if orphans().next().is_none() {
        return;
    }
    end_trees(|| orphans().filter(|pid| running.leaves_behind(*pid)).collect());
    for pid in orphans().filter_map(Pid::from_raw) {
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

fn own() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

impl Running {
    /// It belongs to a program that runs no more. One that has wiped its environment and has a session of its own may be
    /// anybody's: it is left alone while other programs run.
    fn leaves_behind(&self, pid: i32) -> bool {
        let Some(its) = session(pid) else { return false };
        if Some(its) == session(own()) || self.marks.values().any(|leader| *leader == its) {
            return false;
        }
        match variable(pid, MARK) {
            Some(mark) => !self.marks.contains_key(&mark),
            None => self.marks.is_empty(),
        }
    }
}
