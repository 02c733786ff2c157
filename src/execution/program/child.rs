//! A running program: started through the exec shim, its pipes never blocking, ended with everything that it has started.

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Result, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};

use super::orphans::{self, MARK, Mark};
use super::report::{Report, Why};
use super::words::Words;
use crate::bell::Bell;
use crate::codec::write_hex;
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
    child: Child,
    pid: Pid,
    pidfd: OwnedFd,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    /// What it has written to standard output, and nobody has taken.
    pub(super) output: Vec<u8>,
    words: Words,
    /// How much it has written to standard output of this job, and the most of that, and of its words.
    said: usize,
    most: usize,
    wake: Arc<OwnedFd>,
    pub(super) bell: Bell,
    /// Something is to be read there, as far as is known.
    has_said: bool,
    has_words: bool,
    is_deaf: bool,
    was_asked: bool,
    has_exited: bool,
    since: Instant,
    peak_kib: Option<u64>,
    limits: String,
    /// It counts as running while this is there.
    mark: Mark,
}

impl Running {
    /// Starts it.
    pub(super) fn start(program: &Program, user: User, variables: &[(&str, String)]) -> Result<Running> {
        let limits = serde_json::to_string(&program.limits)?;
        let mut text = String::new();
        let _ = write_hex(&mut text, &Entropy::system().bytes::<16>());
        // Before it is there: nobody takes it for an orphan.
        let mark = Mark::new(text);
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
        let number = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = number.ok_or_else(|| std::io::Error::from(ErrorKind::InvalidData))?;
        mark.leads(pid);
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let made = pidfd_open(pid, PidfdFlags::empty()).map_err(Into::into).and_then(|pidfd| {
            stdin.as_ref().map_or(Ok(()), never_blocks)?;
            stdout.as_ref().map_or(Ok(()), never_blocks)?;
            stderr.as_ref().map_or(Ok(()), never_blocks)?;
            Ok(pidfd)
        });
        let pidfd = made.inspect_err(|_: &std::io::Error| {
            let _ = child.kill().and_then(|()| child.wait());
        })?;
        let rung = wake.clone();
        let bell = Bell::new(move || _ = rustix::io::write(&rung, &1_u64.to_ne_bytes()));
        let (output, words, said, most) = (Vec::new(), Words::default(), 0, program.max_output_bytes);
        let (has_said, has_words, is_deaf, was_asked, has_exited, peak_kib) = Default::default();
        let since = Instant::now();
        Ok(Running {
            child,
            pid,
            pidfd,
            stdin,
            stdout,
            stderr,
            output,
            words,
            said,
            most,
            wake,
            bell,
            has_said,
            has_words,
            is_deaf,
            was_asked,
            has_exited,
            since,
            peak_kib,
            limits,
            mark,
        })
    }

    /// What it writes from now on is of this job.
    pub(super) fn begin(&mut self, job: &Arc<JobSpec>) {
        self.said = 0;
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
            if self.said > self.most || self.words.bytes > self.most {
                return Seen::Flooded;
            } else if stop.is_ended() {
                return Seen::Told;
            } else if self.output.len() > before {
                return Seen::Said;
            } else if self.has_exited {
                return Seen::Exited;
            } else if !closes && (self.is_deaf || self.stdout.is_none()) {
                return Seen::Deaf;
            }
            if self.bell.asleep() && !self.wait(!input.is_empty(), look) {
                self.weigh();
                look = (look * 2).min(LOOK_MOST);
            }
            self.bell.answer();
        }
    }

    /// Takes what it has written, as much as it may and a byte.
    fn read(&mut self) {
        let mut buffer = [0; BUFFER_BYTES];
        let (output, words) = (&mut self.output, &mut self.words);
        if std::mem::take(&mut self.has_said) {
            let room = (self.most + 1).saturating_sub(self.said);
            self.said += take(&mut self.stdout, &mut buffer, room, |bytes| output.extend_from_slice(bytes));
        }
        if std::mem::take(&mut self.has_words) {
            let room = (self.most + 1).saturating_sub(words.bytes);
            take(&mut self.stderr, &mut buffer, room, |bytes| words.take(bytes));
        }
    }

    /// True if it can be asked: it is there, has an ear, and has said nothing since its last answer.
    pub(super) fn is_sound(&mut self) -> bool {
        self.wait(false, Duration::ZERO);
        self.read();
        self.output.is_empty() && !self.has_exited && !self.is_deaf && self.stdout.is_some()
    }

    /// What it does not take waits. That it takes no more is seen; a program that runs for one job need not read it.
    fn write(&mut self, input: &mut &[u8], closes: bool) {
        while let Some(stdin) = self.stdin.as_mut().filter(|_| !input.is_empty() && !self.is_deaf) {
            match stdin.write(input) {
                Ok(written) => *input = &input[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.is_deaf = true,
            }
        }
        if closes {
            self.stdin = None;
            *input = &[];
        }
    }

    /// False if none of so many bytes that it was asked with was read: they stand in its pipe.
    pub(super) fn has_read(&self, asked: usize) -> bool {
        let waiting = self.stdin.as_ref().and_then(|stdin| rustix::io::ioctl_fionread(stdin).ok());
        waiting.is_none_or(|waiting| waiting < asked as u64)
    }

    /// Until there is something to do; false if nothing was, for so long.
    fn wait(&mut self, writes: bool, most: Duration) -> bool {
        let most = Timespec::try_from(most).ok();
        // Of a pipe that nobody can read any more an error is said in any case.
        let writes = if writes { PollFlags::OUT } else { PollFlags::empty() };
        let stdin = self.stdin.as_ref().map(|pipe| (pipe.as_fd(), writes));
        let [stdout, stderr] = [self.stdout.as_ref().map(AsFd::as_fd), self.stderr.as_ref().map(AsFd::as_fd)];
        let pipes = [
            stdin,
            stdout.map(|pipe| (pipe, PollFlags::IN)),
            stderr.map(|pipe| (pipe, PollFlags::IN)),
            Some((self.wake.as_fd(), PollFlags::IN)),
            Some((self.pidfd.as_fd(), PollFlags::IN)),
        ];
        let is_there = pipes.map(|pipe| pipe.is_some());
        let watched = pipes.into_iter().flatten();
        let mut watched: Vec<PollFd<'_>> =
            watched.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        let ready = poll(&mut watched, most.as_ref()).unwrap_or(0);
        let mut seen = watched.iter().map(PollFd::revents);
        let of = |is_there: bool| {
            if is_there { seen.next().unwrap_or(PollFlags::empty()) } else { PollFlags::empty() }
        };
        let [stdin, stdout, stderr, wake, pidfd] = is_there.map(of);
        self.is_deaf |= stdin.contains(PollFlags::ERR);
        (self.has_said, self.has_words) =
            (self.has_said || !stdout.is_empty(), self.has_words || !stderr.is_empty());
        self.has_exited |= !pidfd.is_empty();
        if !wake.is_empty() {
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        }
        ready > 0
    }

    /// How much memory it has held, as far as that was seen.
    fn weigh(&mut self) {
        self.peak_kib = self.peak_kib.max(peak_kib(self.pid.as_raw_nonzero().get()));
    }

    /// True if it has ended by itself, within so long.
    pub(super) fn is_gone(&mut self, most: Duration) -> bool {
        let mut pidfd = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let ready = poll(&mut pidfd, Timespec::try_from(most).ok().as_ref()).unwrap_or(0);
        self.has_exited |= ready > 0;
        self.has_exited
    }

    /// Asks it to end, once: its input ends, and it gets SIGTERM.
    pub(super) fn ask(&mut self) {
        self.stdin = None;
        if !std::mem::replace(&mut self.was_asked, true) {
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
            while !self.has_exited && Instant::now() < until {
                self.wait(false, until.saturating_duration_since(Instant::now()));
                // What nobody wants any more is taken, so that a program that writes can end.
                (self.said, self.words.bytes) = (0, 0);
                self.read();
                self.output.clear();
            }
        }
        let how = match (was_there, self.has_exited, grace.is_zero()) {
            (false, ..) => "",
            (true, true, _) => ", SIGTERM",
            (true, false, false) => ", SIGKILL after stop_grace_ms",
            (true, false, true) => ", SIGKILL",
        };
        self.signal(Signal::KILL);
        while !self.is_gone(LOOK_MOST) {}
        let processor = stat(self.pid.as_raw_nonzero().get()).map(|stat| stat.processor).unwrap_or_default();
        (self.has_said, self.has_words) = (true, true);
        self.read();
        let status = self.child.wait().ok();
        self.words.end();
        let report = Report {
            why,
            how,
            code: status.and_then(|status| status.code()),
            signal: status.and_then(|status| status.signal()),
            ran: self.since.elapsed(),
            peak_kib: self.peak_kib,
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

/// Where a program is looked for.
pub fn path(program: &Program) -> OsString {
    let own = || std::env::var_os("PATH").filter(|path| !path.is_empty()).unwrap_or_else(|| PATH.into());
    program.env.get("PATH").map_or_else(own, OsString::from)
}

fn never_blocks(pipe: &impl AsFd) -> Result<()> {
    Ok(rustix::io::ioctl_fionbio(pipe.as_fd() as BorrowedFd<'_>, true)?)
}

/// Reads what is there, up to so many bytes; how many it was.
fn take<R: Read>(pipe: &mut Option<R>, buffer: &mut [u8], most: usize, mut sink: impl FnMut(&[u8])) -> usize {
    let mut taken = 0;
    while taken < most {
        let Some(open) = pipe else { break };
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
    taken
}
