//! A running program: started through the exec shim, its pipes never blocking, ended with everything that it has started.

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Result, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};

use super::orphans::{self, MARK, Mark};
use super::report::{Report, Why};
use super::words::Words;
use crate::bell::Bell;
use crate::codec::hex;
use crate::config::Program;
use crate::entropy::Entropy;
use crate::execution::run::RunStop;
use crate::job::JobSpec;
use crate::process_table::{peak_kib, stat};

/// The command that nobody types: this binary becomes the program; see `process::exec_shim`.
pub const EXEC: &str = "__exec";
/// How a program that waits is looked at for its memory: at first after so long, then twice as long each time.
const LOOK: Duration = Duration::from_millis(20);
const LOOK_MOST: Duration = Duration::from_secs(1);
/// Bytes of one read.
const BUFFER_BYTES: usize = 16 << 10;
/// Of our environment a program has these, and PATH.
const KEPT: [&str; 2] = ["HOME", "LANG"];
/// Where nobody has set one.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A user and its group; `None`: ours.
pub type User = Option<(u32, u32)>;

/// What a program waits for to happen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// It has written to standard output.
    Said,
    /// It has ended.
    Exited,
    /// It has closed its side, and can neither be asked nor answer.
    Deaf,
    /// The run is over, or whoever runs it has waited for long enough.
    Told,
    /// It has written more than it may.
    Flooded,
}

/// See the module. [`Running::end`] ends it.
pub(super) struct Running {
    /// With our ends of its pipes, unless they are closed.
    child: Child,
    pid: Pid,
    pidfd: OwnedFd,
    /// What it has written to standard output, and nobody has taken.
    pub(super) output: Vec<u8>,
    words: Words,
    /// The most of that, and of its words.
    most: usize,
    wake: Arc<OwnedFd>,
    pub(super) bell: Bell,
    seen: Known,
    since: Instant,
    limits: String,
    /// It counts as running while this is there.
    mark: Mark,
}

/// What is known of it.
#[derive(Default)]
struct Known {
    /// Something is to be read there.
    has_said: bool,
    has_words: bool,
    is_deaf: bool,
    was_asked: bool,
    has_exited: bool,
    peak_kib: Option<u64>,
}

impl Running {
    /// Starts it.
    pub(super) fn start(program: &Program, user: User, variables: &[(&str, String)]) -> Result<Running> {
        let limits = serde_json::to_string(&program.limits)?;
        // Before it is there: nobody takes it for an orphan.
        let mark = Mark::new(hex(&Entropy::system().bytes::<16>()));
        let mut command = Command::new("/proc/self/exe");
        command.args([EXEC, &std::process::id().to_string(), &limits, "--"]).args(&program.command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env_clear();
        command.envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.env("PATH", path(program)).envs(&program.env);
        command.envs(variables.iter().map(|(name, value)| (name, value))).env(MARK, &mark.0);
        program.dir.iter().for_each(|dir| _ = command.current_dir(dir));
        if let Some((user, group)) = user {
            command.uid(user).gid(group);
        }
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        mark.leads(pid);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).and_then(|pidfd| {
            pipes(&child).into_iter().flatten().try_for_each(|pipe| ioctl_fionbio(pipe, true))?;
            Ok(pidfd)
        });
        let pidfd = pidfd.inspect_err(|_| _ = child.kill().and_then(|()| child.wait()))?;
        let rung = wake.clone();
        Ok(Running {
            child,
            pid,
            pidfd,
            output: Vec::new(),
            words: Words::default(),
            most: program.max_output_bytes,
            wake,
            bell: Bell::new(move || _ = rustix::io::write(&rung, &1_u64.to_ne_bytes())),
            seen: Known::default(),
            since: Instant::now(),
            limits,
            mark,
        })
    }

    /// What it writes from now on is of this job.
    pub(super) fn begin(&mut self, job: &Arc<JobSpec>) {
        self.words.begin(job);
    }

    /// Writes the input and takes what it says until something is to be seen. `closes`: its input ends there, and it need
    /// not read it; else it can be asked again.
    pub(super) fn watch(&mut self, input: &mut &[u8], closes: bool, stop: &RunStop) -> Seen {
        let mut look = LOOK;
        loop {
            let before = self.output.len();
            self.write(input, closes);
            self.read();
            if self.has_flooded(closes) {
                return Seen::Flooded;
            } else if stop.is_ended() {
                return Seen::Told;
            } else if self.output.len() > before {
                return Seen::Said;
            } else if self.seen.has_exited {
                return Seen::Exited;
            } else if !closes && (self.seen.is_deaf || self.child.stdout.is_none()) {
                return Seen::Deaf;
            }
            if self.bell.asleep() && !self.wait(!input.is_empty(), look) {
                self.weigh();
                look = (look * 2).min(LOOK_MOST);
            }
            self.bell.answer();
        }
    }

    /// It has written more than it may; of what it answers each line is bounded by itself.
    fn has_flooded(&self, closes: bool) -> bool {
        let (output, most) = (&self.output, self.most);
        self.words.bytes > most || output.len() > most && (closes || !output[..most].contains(&b'\n'))
    }

    /// Takes what it has written, as much as it may and a byte.
    fn read(&mut self) {
        let mut buffer = [0; BUFFER_BYTES];
        let (output, words) = (&mut self.output, &mut self.words);
        if std::mem::take(&mut self.seen.has_said) {
            let room = (self.most + 1).saturating_sub(output.len());
            take(&mut self.child.stdout, &mut buffer, room, |bytes| output.extend_from_slice(bytes));
        }
        if std::mem::take(&mut self.seen.has_words) {
            let room = (self.most + 1).saturating_sub(words.bytes);
            take(&mut self.child.stderr, &mut buffer, room, |bytes| words.take(bytes));
        }
    }

    /// True if it can be asked: it is there, has an ear, and has said nothing since its last answer.
    pub(super) fn is_sound(&mut self) -> bool {
        self.wait(false, Duration::ZERO);
        self.read();
        self.output.is_empty() && !self.seen.has_exited && !self.seen.is_deaf && self.child.stdout.is_some()
    }

    /// What it does not take waits. That it takes no more is seen; a program that runs for one job need not read it.
    fn write(&mut self, input: &mut &[u8], closes: bool) {
        while let Some(stdin) = self.child.stdin.as_mut().filter(|_| !input.is_empty() && !self.seen.is_deaf)
        {
            match stdin.write(input) {
                Ok(written) => *input = &input[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.seen.is_deaf = true,
            }
        }
        if closes {
            self.child.stdin = None;
            *input = &[];
        }
    }

    /// False if none of so many bytes that it was asked with was read: they stand in its pipe.
    pub(super) fn has_read(&self, asked: usize) -> bool {
        let waiting = self.child.stdin.as_ref().and_then(|stdin| rustix::io::ioctl_fionread(stdin).ok());
        waiting.is_none_or(|waiting| waiting < asked as u64)
    }

    /// Until there is something to do; false if nothing was, for so long.
    fn wait(&mut self, writes: bool, most: Duration) -> bool {
        let most = Timespec::try_from(most).ok();
        // Of a pipe that nobody can read any more an error is said in any case.
        let writes = if writes { PollFlags::OUT } else { PollFlags::empty() };
        let (wake, own) = (self.wake.as_fd(), self.pidfd.as_fd());
        let [stdin, stdout, stderr] = pipes(&self.child);
        // Of one that is closed nothing is to be seen, nor of what stands in its place.
        let watch = |pipe: Option<_>, flags| match pipe {
            Some(pipe) => PollFd::from_borrowed_fd(pipe, flags),
            None => PollFd::from_borrowed_fd(wake, PollFlags::empty()),
        };
        let mut watched = [
            watch(stdin, writes),
            watch(stdout, PollFlags::IN),
            watch(stderr, PollFlags::IN),
            watch(Some(wake), PollFlags::IN),
            watch(Some(own), PollFlags::IN),
        ];
        let ready = poll(&mut watched, most.as_ref()).unwrap_or(0);
        let [stdin, stdout, stderr, wake, own] = watched.map(|seen| seen.revents());
        let seen = &mut self.seen;
        seen.is_deaf |= stdin.contains(PollFlags::ERR);
        seen.has_said |= !stdout.is_empty();
        seen.has_words |= !stderr.is_empty();
        seen.has_exited |= !own.is_empty();
        if !wake.is_empty() {
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        }
        ready > 0
    }

    /// How much memory it has held, as far as that was seen.
    fn weigh(&mut self) {
        self.seen.peak_kib = self.seen.peak_kib.max(peak_kib(self.pid.as_raw_nonzero().get()));
    }

    /// True if it has ended by itself, within so long.
    pub(super) fn is_gone(&mut self, most: Duration) -> bool {
        let mut pidfd = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let ready = poll(&mut pidfd, Timespec::try_from(most).ok().as_ref()).unwrap_or(0);
        self.seen.has_exited |= ready > 0;
        self.seen.has_exited
    }

    /// Asks it to end, once: its input ends, and it gets SIGTERM.
    pub(super) fn ask(&mut self) {
        self.child.stdin = None;
        if !std::mem::replace(&mut self.seen.was_asked, true) {
            self.signal(Signal::TERM);
        }
    }

    /// Ends it, with all that it has started: asks it, waits, kills its group while its number is still its own, then
    /// whatever has left the group. Nobody waits for a pipe that somebody else holds.
    pub(super) fn end(mut self, why: Why, grace: Duration) -> (Report, Vec<u8>) {
        let until = Instant::now() + grace;
        let was_there = !self.is_gone(Duration::ZERO);
        if was_there && !grace.is_zero() {
            self.weigh();
            self.ask();
            while !self.seen.has_exited && Instant::now() < until {
                self.wait(false, until.saturating_duration_since(Instant::now()));
                // What nobody wants any more is taken, so that a program that writes can end.
                self.output.clear();
                self.words.bytes = 0;
                self.read();
            }
        }
        let how = match (was_there, self.seen.has_exited, grace.is_zero()) {
            (false, ..) => "",
            (true, true, _) => ", SIGTERM",
            (true, false, false) => ", SIGKILL after stop_grace_ms",
            (true, false, true) => ", SIGKILL",
        };
        self.signal(Signal::KILL);
        while !self.is_gone(LOOK_MOST) {}
        let processor = stat(self.pid.as_raw_nonzero().get()).map(|stat| stat.processor).unwrap_or_default();
        (self.seen.has_said, self.seen.has_words) = (true, true);
        self.read();
        let status = self.child.wait().ok();
        self.words.end();
        let report = Report {
            why,
            how,
            code: status.and_then(|status| status.code()),
            signal: status.and_then(|status| status.signal()),
            ran: self.since.elapsed(),
            peak_kib: self.seen.peak_kib,
            processor,
            limits: self.limits,
            words: self.words.tail(),
        };
        drop(self.mark);
        orphans::sweep();
        (report, self.output)
    }

    /// To its group; before it has one, to itself.
    fn signal(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal).or_else(|_| kill_process(self.pid, signal));
    }
}

/// Standard input, output and error.
fn pipes(child: &Child) -> [Option<BorrowedFd<'_>>; 3] {
    let Child { stdin, stdout, stderr, .. } = child;
    [stdin.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)]
}

/// Where a program is looked for.
pub fn path(program: &Program) -> OsString {
    let own = || std::env::var_os("PATH").filter(|path| !path.is_empty()).unwrap_or_else(|| PATH.into());
    program.env.get("PATH").map_or_else(own, OsString::from)
}

/// Reads what is there, up to so many bytes.
fn take<R: Read>(pipe: &mut Option<R>, buffer: &mut [u8], most: usize, mut sink: impl FnMut(&[u8])) {
    let mut taken = 0;
    while let Some(open) = pipe.as_mut().filter(|_| taken < most) {
        let room = buffer.len().min(most - taken);
        match open.read(&mut buffer[..room]) {
            Ok(0) => *pipe = None,
            Ok(read) => {
                sink(&buffer[..read]);
                taken += read;
                if read < room {
                    // It is empty; what comes is told.
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(_) => *pipe = None,
        }
    }
}
