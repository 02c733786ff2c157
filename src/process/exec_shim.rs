//! What stands between an executor and a program that it starts: this binary again, for the moment before `exec(2)`. It makes
//! the process one that cannot outlive its parent, has no more rights than it should and takes no more than it may.
//!
//! Taking on another user clears the parent-death signal (prctl(2)), so that is done before: by whoever starts this.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit, setsid,
};
use rustix::thread::set_no_new_privs;

use crate::config::Limits;
use crate::exit::complain;

/// As a shell says it (POSIX.1-2017, 2.8.2): the program is not there, or cannot be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
/// Programs that wait with select(2) break with more; `limits.open_files` may say otherwise.
const OPEN_FILES: u64 = 1_024;

/// Becomes the program: `PARENT LIMITS -- PROGRAM ARGUMENTS`, behind a command that nobody types. Comes back, with an exit code, only if that cannot be.
pub fn exec(arguments: &[String]) -> u8 {
    let [parent, limits, dashes, program, rest @ ..] = arguments else { return NOT_EXECUTABLE };
    let (Ok(parent), Ok(limits)) = (parent.parse(), serde_json::from_str(limits)) else {
        return NOT_EXECUTABLE;
    };
    if dashes != "--" {
        return NOT_EXECUTABLE;
    }
    if let Err(error) = confine(parent, &limits) {
        complain(&format!("{program} cannot be started: {error}"));
        return NOT_EXECUTABLE;
    }
    let error = Command::new(program).args(rest).exec();
    complain(&format!("{program} cannot be started: {error}"));
    if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
}

fn confine(parent: i32, limits: &Limits) -> std::io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // A parent that was gone before that sends no signal.
    if getppid() != Pid::from_raw(parent) {
        return Err(std::io::Error::other("whoever started it is gone"));
    }
    // A session of its own, and so a group: what it starts is known by it.
    setsid()?;
    set_no_new_privs(true)?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none)?;
    let files = Rlimit { current: Some(OPEN_FILES), ..getrlimit(Resource::Nofile) };
    setrlimit(
        Resource::Nofile,
        Rlimit { current: files.current.min(files.maximum.or(files.current)), ..files },
    )?;
    // At the first of processor time it gets SIGXCPU, which tells; at the second SIGKILL.
    for (resource, most, slack) in [
        (Resource::As, limits.memory_mb.map(|mb| mb << 20), 0),
        (Resource::Nproc, limits.processes, 0),
        (Resource::Nofile, limits.open_files, 0),
        (Resource::Cpu, limits.cpu_seconds, 1),
    ] {
        let Some(most) = most else { continue };
        // What the service itself may not exceed is less.
        let hard = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let (current, maximum) = (Some(most.min(hard)), Some((most + slack).min(hard)));
        setrlimit(resource, Rlimit { current, maximum })?;
    }
    Ok(())
}
