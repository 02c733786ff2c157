//! What every process does first: no core dumps, no reading of its memory, standard streams in order, signals.

use std::fs::File;
use std::io::Result;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getrlimit, set_child_subreaper, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// Before a process reads a secret: nobody else may read its memory, and it leaves no core behind.
pub fn keep_secrets() -> Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Orphans of this process's descendants come to it.
pub fn become_subreaper() -> Result<()> {
    set_child_subreaper(Some(rustix::process::getpid()))?;
    Ok(())
}

/// What a child does before it reads its bundle, and so a secret.
pub fn begin_child() -> Result<()> {
    keep_secrets()?;
    die_with_parent()?;
    leave_signals_to_parent()
}

/// A child dies with the thread that spawned it, even if its control socket should outlive it.
fn die_with_parent() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

/// Ten thousand callers need as many descriptors; the hard limit stays the administrator's.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(1 << 20)
}

/// Resident memory of this process, in MiB (`VmRSS`, proc_pid_status(5)).
pub fn resident_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1_024)
}

/// Takes standard input over as a close-on-exec copy and puts `/dev/null` in its place.
pub fn take_stdin() -> Result<OwnedFd> {
    let copy = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(&File::open("/dev/null")?)?;
    Ok(copy)
}

/// The same with standard output.
pub fn take_stdout() -> Result<OwnedFd> {
    let copy = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(copy)
}

/// Signals as bytes on sockets that an event loop can watch.
pub struct Signals {
    /// SIGTERM and SIGINT: a byte each.
    pub stop: StdStream,
    /// SIGCHLD: a byte each.
    pub child: StdStream,
}

impl Signals {
    /// Takes the signals over.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn take() -> Result<Signals> {
        let (stop, stop_end) = StdStream::pair()?;
        let (child, child_end) = StdStream::pair()?;
        for socket in [&stop, &child] {
            socket.set_nonblocking(true)?;
        }
        pipe::register(SIGTERM, stop_end.try_clone()?)?;
        pipe::register(SIGINT, stop_end)?;
        pipe::register(SIGCHLD, child_end)?;
        Ok(Signals { stop, child })
    }
}

/// A child's signals are its supervisor's to give: those sent to a whole group or by a terminal change nothing.
fn leave_signals_to_parent() -> Result<()> {
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    Ok(())
}
