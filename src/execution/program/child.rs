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

use super::orphans::{self, Mark};
use super::report::{Report, Why};
use super::words::Words;
use crate::bell::Bell;
use crate::config::Program;
use crate::execution::run::RunStop;
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
    pub(super) words: Words,
    /// The most of each.
    most: usize,
    wake: Arc<OwnedFd>,
    pub(super) bell: Bell,
    has_exited: bool,
    since: Instant,
    peak_kib: Option<u64>,
    limits: String,
    /// It counts as running while this is there.
    _mark: Mark,
}

impl Running {
    /// Starts it. The mark is the first of its variables.
    pub(super) fn start(program: &Program, user: User, variables: &[(&str, String)]) -> Result<Running> {
        let limits = serde_json::to_string(&program.limits)?;
        let mut command = Command::new("/proc/self/exe");
        command.args([EXEC, &std::process::id().to_string(), &limits, "--"]).args(&program.command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env_clear();
        command.envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command
            .env("PATH", path(program))
            .envs(&program.env)
            .envs(variables.iter().map(|(name, value)| (name, value)));
        program.dir.iter().for_each(|dir| _ = command.current_dir(dir));
        if let Some((user, group)) = user {
            command.uid(user).gid(group);
        }
        // Before it is there: nobody takes it for an orphan.
        let mut mark = Mark::new(variables[0].1.clone());
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut child = command.spawn()?;
        let number = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = number.ok_or_else(|| std::io::Error::from(ErrorKind::InvalidData))?;
        mark.leads(pid);
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let pidfd = pidfd_open(pid, PidfdFlags::empty());
        let made = pidfd.map_err(Into::into).and_then(|pidfd| {
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
        let (output, words, most) = (Vec::new(), Words::default(), program.max_output_bytes);
        let (has_exited, since, peak_kib) = (false, Instant::now(), None);
        let _mark = mark;
        Ok(Running {
            child,
            pid,
            pidfd,
            stdin,
            stdout,
            stderr,
            output,
            words,
            most,
            wake,
            bell,
            has_exited,
            since,
            peak_kib,
            limits,
            _mark,
        })
    }

    /// Writes the input and takes what it says until something is to be seen. `closes`: its input ends there.
    pub(super) fn watch(&mut self, input: &mut &[u8], closes: bool, stop: &RunStop) -> Seen {
        let mut look = LOOK;
        loop {
            let before = self.output.len();
            self.write(input, closes);
            let is_flood = self.read();
            if is_flood {
                return Seen::Flooded;
            } else if stop.is_ended() {
                return Seen::Told;
            } else if self.output.len() > before {
                return Seen::Said;
            } else if self.has_exited {
                return Seen::Exited;
            }
            if self.bell.asleep() && !self.wait(!input.is_empty(), look) {
                self.weigh();
                look = (look * 2).min(LOOK_MOST);
            }
            self.bell.answer();
        }
    }

    /// Takes all that it has written so far. True: more than it may.
    pub(super) fn read(&mut self) -> bool {
        let mut buffer = [0; BUFFER_BYTES];
        let room = self.most + 1 - self.output.len().min(self.most);
        let output = &mut self.output;
        let all = take(&mut self.stdout, &mut buffer, room, |bytes| output.extend_from_slice(bytes));
        let room = (self.most + 1).saturating_sub(self.words.bytes);
        let words = &mut self.words;
        let said = take(&mut self.stderr, &mut buffer, room, |bytes| words.take(bytes));
        all.max(said) > 0 && (self.output.len() > self.most || self.words.bytes > self.most)
    }

    /// What it does not take waits; that it takes no more is no error: a program need not read its input.
    fn write(&mut self, input: &mut &[u8], closes: bool) {
        while !input.is_empty() {
            let Some(stdin) = &mut self.stdin else { return *input = &[] };
            match stdin.write(input) {
                Ok(written) => *input = &input[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.stdin = None,
            }
        }
        if closes {
            self.stdin = None;
        }
    }

    /// Until there is something to do; false if nothing was, for so long.
    fn wait(&mut self, writes: bool, most: Duration) -> bool {
        let most = Timespec::try_from(most).ok();
        let pipes = [
            self.stdin.as_ref().filter(|_| writes).map(|pipe| (pipe.as_fd(), PollFlags::OUT)),
            self.stdout.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::IN)),
            self.stderr.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::IN)),
            Some((self.wake.as_fd(), PollFlags::IN)),
            Some((self.pidfd.as_fd(), PollFlags::IN)).filter(|_| !self.has_exited),
        ];
        let pipes = pipes.into_iter().flatten();
        let mut watched: Vec<PollFd<'_>> =
            pipes.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        let ready = poll(&mut watched, most.as_ref()).unwrap_or(0);
        let has_exited = |polled: &PollFd<'_>| !polled.revents().is_empty();
        let has_exited = !self.has_exited && watched.last().is_some_and(has_exited);
        let mut rung = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut rung);
        self.has_exited |= has_exited;
        ready > 0
    }

    /// How much memory it has held, as far as that was seen.
    fn weigh(&mut self) {
        self.peak_kib = self.peak_kib.max(peak_kib(self.pid.as_raw_nonzero().get()));
    }

    /// True if it has ended by itself.
    pub(super) fn is_gone(&mut self) -> bool {
        self.has_exited || {
            self.wait(false, Duration::ZERO);
            self.has_exited
        }
    }

    /// Ends it, with all that it has started: asks it, waits, kills its group while its number is still its own, then
    /// whatever has left the group. Nobody waits for a pipe that somebody else holds.
    pub(super) fn end(mut self, why: Why, grace: Duration) -> (Report, Vec<u8>) {
        if !self.has_exited {
            self.weigh();
            self.ask();
            let until = Instant::now() + grace;
            while !self.has_exited && Instant::now() < until {
                self.wait(false, until.saturating_duration_since(Instant::now()));
                self.read_and_drop();
            }
        }
        let was_asked = self.has_exited;
        self.signal(Signal::KILL);
        while !self.has_exited {
            self.wait(false, LOOK_MOST);
        }
        let processor = stat(self.pid.as_raw_nonzero().get()).map(|stat| stat.processor).unwrap_or_default();
        self.read();
        let status = self.child.wait().ok();
        self.words.end();
        let report = Report {
            why,
            code: status.and_then(|status| status.code()),
            signal: status.and_then(|status| status.signal()),
            was_killed: !was_asked,
            ran: self.since.elapsed(),
            peak_kib: self.peak_kib,
            processor,
            limits: self.limits,
            words: self.words.tail(),
        };
        drop(self._mark);
        orphans::sweep();
        (report, self.output)
    }

    /// Asks it to end.
    pub(super) fn ask(&self) {
        self.signal(Signal::TERM);
    }

    /// What nobody wants any more is taken, so that a program that writes can end.
    fn read_and_drop(&mut self) {
        self.output.clear();
        self.read();
        self.output.clear();
        self.words.bytes = 0;
    }

    /// To its group; before it has one, to itself.
    fn signal(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal).or_else(|_| kill_process(self.pid, signal));
    }
}

/// Where a program is looked for.
pub(super) fn path(program: &Program) -> OsString {
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
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(_) => *pipe = None,
        }
    }
    taken
}
