//! What every process does first: no core dumps, no reading of its memory, standard streams in order, signals.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Result, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::net::UnixStream;
use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, Signal, WaitOptions, getrlimit, set_child_subreaper,
    set_dumpable_behavior, set_parent_process_death_signal, setrlimit, waitpid,
};
use rustix::thread::set_no_new_privs;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::low_level::pipe;

use crate::bell::lock;
use crate::execution::program::MARK;
use crate::observe::log_writer;
use crate::process_table::{self, children, end_trees, session, variable};

/// Before a process reads a secret: nobody else may read its memory, it leaves no core behind, and no program that it or
/// its handlers start has more rights than it has itself.
pub fn keep_secrets() -> Result<()> {
    set_no_new_privs(true)?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none)?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// For the environment of children. What a loop frees in one turn it needs again in the next: by default glibc keeps seven pieces
/// of a size at hand, fewer than there are jobs in a turn (glibc manual, "Memory Allocation Tunables"). An operator's own word
/// stands; other C libraries do not look.
pub fn allocator_word() -> Option<(&'static str, &'static str)> {
    let word = ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=512");
    std::env::var_os(word.0).is_none().then_some(word)
}

/// Orphans of this process's descendants come to it, which is to [`reap_orphans`]. A process that runs handlers is one only
/// where there are programs among them (`execution::program::adopt`).
pub fn become_subreaper() -> Result<()> {
    Ok(set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Takes the orphans that have ended off the process table: each by its number, never "any child", and none of `own`,
/// whose statuses others wait for. What is left of programs whose executor is gone is ended.
///
/// True if some of that is still there.
pub fn reap_orphans(own: &[u32]) -> bool {
    let is_own = |pid: &i32| own.iter().any(|own| i64::from(*own) == i64::from(*pid));
    for pid in children().into_iter().filter(|pid| !is_own(pid)).filter_map(Pid::from_raw) {
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
    end_trees(|| children().into_iter().filter(|pid| !is_own(pid) && is_of_a_program(*pid)).collect())
}

/// Programs are among the handlers: each has a session of its own.
pub fn expect_programs() {
    HAS_PROGRAMS.store(true, Ordering::Relaxed);
}

static HAS_PROGRAMS: AtomicBool = AtomicBool::new(false);

/// By the variable that it was started with, or by a session that is not ours.
fn is_of_a_program(pid: i32) -> bool {
    let own = session(rustix::process::getpid().as_raw_nonzero().get());
    let is_apart = || HAS_PROGRAMS.load(Ordering::Relaxed) && session(pid).is_some_and(|of| Some(of) != own);
    session(pid).is_some() && (variable(pid, MARK).is_some() || is_apart())
}

/// Nobody is left to look after what programs have left behind: it goes now.
pub fn end_orphans() {
    const LOOKS: usize = 250;
    for _ in 0..LOOKS {
        if !reap_orphans(&[]) {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a child does before it reads its bundle, and so a secret.
pub fn begin_child() -> Result<()> {
    keep_secrets()?;
    // It dies with the thread that spawned it, even if its control socket should outlive it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // Its signals are its supervisor's to give: those sent to a whole group or by a terminal change nothing.
    // And whoever started the service may have ignored the end of children, which handlers wait for.
    ignore(&[SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD])?;
    hear_of_limits()
}

/// A file that may not grow is an error of its write, not the end of its process.
pub fn hear_of_limits() -> Result<()> {
    ignore(&[SIGXFSZ])
}

/// Ten thousand callers need as many descriptors; the hard limit stays the administrator's.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(1 << 20)
}

/// Resident memory of this process, in MiB.
pub fn resident_mb() -> Option<u64> {
    process_table::resident_kib("self").map(|kib| kib / 1_024)
}

/// Takes standard input over as a close-on-exec copy and puts `/dev/null` in its place.
pub fn take_stdin() -> Result<OwnedFd> {
    let copy = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(&File::open("/dev/null")?)?;
    Ok(copy)
}

/// The same with standard output, where standard error takes its place: what a handler prints is no data.
pub fn take_stdout() -> Result<OwnedFd> {
    let copy = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    Ok(copy)
}

/// What standard output was, where handlers may print in this process.
static DATA: OnceLock<File> = OnceLock::new();

/// Who takes in what is printed.
static PRINTS: Mutex<Option<JoinHandle<()>>> = Mutex::new(None);

/// From now on data goes out through [`data`] alone. What is printed goes to the log, line by line, under this name: so a standard
/// error that is full, or that nobody reads, holds up nobody who prints.
pub fn set_data_apart(process: &'static str) -> Result<()> {
    const LINE_BYTES: u64 = 16 << 10;
    let (printed, prints) = std::io::pipe()?;
    let _ = DATA.set(File::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?));
    rustix::stdio::dup2_stdout(prints)?;
    let mut printed = BufReader::new(printed);
    let pass_on = move || loop {
        let mut line = Vec::new();
        match (&mut printed).take(LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(line.trim_ascii_end());
                log_writer::pass_on(&text, false, process, std::process::id());
            }
        }
    };
    let thread = std::thread::Builder::new().name("prints".into()).spawn(pass_on)?;
    *lock(&PRINTS) = Some(thread);
    Ok(())
}

/// The last of it, before the process ends. A program that still has standard output open is not waited for.
pub fn settle_prints() {
    const LOOKS: usize = 200;
    let Some(thread) = lock(&PRINTS).take() else { return };
    let _ = File::open("/dev/null").map(rustix::stdio::dup2_stdout);
    let mut looks = 0..LOOKS;
    while !thread.is_finished() && looks.next().is_some() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Where data goes; no lock of standard output is held.
pub fn data() -> Box<dyn Write + Send> {
    DATA.get().map_or_else(|| Box::new(std::io::stdout()) as _, |file| Box::new(file) as _)
}

/// Descriptors that whoever started this process left open for its children: programs have them, too.
pub fn left_open() -> Vec<String> {
    const CLOSE_ON_EXEC: u32 = 0o2_000_000;
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_passed_on = |number: &String| {
        let flags = process_table::field_of(&format!("self/fdinfo/{number}"), "flags:");
        let flags = flags.and_then(|flags| u32::from_str_radix(&flags, 8).ok());
        number.parse().is_ok_and(|number: u32| number > 2)
            && flags.is_some_and(|flags| flags & CLOSE_ON_EXEC == 0)
    };
    numbers.filter(is_passed_on).collect()
}

/// Signals as bytes on sockets that an event loop can watch.
pub struct Signals {
    /// SIGTERM and SIGINT: a byte each.
    pub stop: UnixStream,
    /// SIGCHLD: a byte each.
    pub child: UnixStream,
    /// SIGHUP: a byte each.
    pub hangup: UnixStream,
}

impl Signals {
    /// Takes the signals over; those that mean nothing here end nothing.
    pub fn take() -> Result<Signals> {
        let on = |signals: &[i32]| -> Result<UnixStream> {
            let (ours, end) = StdStream::pair()?;
            ours.set_nonblocking(true)?;
            signals.iter().try_for_each(|signal| pipe::register(*signal, end.try_clone()?).map(drop))?;
            look_for_blocked(signals, end)?;
            Ok(UnixStream::from_std(ours))
        };
        ignore(&[SIGUSR1, SIGUSR2])?;
        Ok(Signals { stop: on(&[SIGTERM, SIGINT])?, child: on(&[SIGCHLD])?, hangup: on(&[SIGHUP])? })
    }
}

/// A launcher may have blocked signals, which its programs inherit: they would be deaf to SIGTERM. A blocked signal waits
/// where it can be seen (`ShdPnd`, proc_pid_status(5)); each of these is said once.
fn look_for_blocked(signals: &[i32], mut end: StdStream) -> Result<()> {
    const LOOK_EVERY: Duration = Duration::from_millis(250);
    let wanted = signals.iter().fold(0, |mask, signal| mask | 1_u64 << (signal - 1));
    let of = move |name| {
        let mask = process_table::field("self", name).and_then(|mask| u64::from_str_radix(&mask, 16).ok());
        mask.unwrap_or(0) & wanted
    };
    if of("SigBlk:") == 0 {
        return Ok(());
    }
    let look = move || {
        let mut said = 0;
        loop {
            let waiting = of("ShdPnd:") & !said;
            said |= waiting;
            if (0..waiting.count_ones()).any(|_| end.write_all(&[0]).is_err()) {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(look).map(drop)
}

/// How many bytes, that is signals, were there.
pub fn drain_bytes(stream: &mut UnixStream) -> usize {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    bytes.len()
}

/// SIGHUP reads again what may be read again, and never ends anything.
pub fn hear_hangup(stream: &mut UnixStream) -> bool {
    drain_bytes(stream) > 0
}

/// A handler that does nothing, not `SIG_IGN`, which programs that we start would inherit.
fn ignore(signals: &[i32]) -> Result<()> {
    signals.iter().try_for_each(|signal| signal_hook::flag::register(*signal, Arc::default()).map(drop))
}
