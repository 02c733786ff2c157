//! One child's process: how it is made, its ends of the control socket and of standard error, and its signals.

use std::io::{BufRead, BufReader, ErrorKind, Read, Result};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr as Pipe, Command, ExitStatus, Stdio};

use mio::unix::pipe::Receiver;
use mio::{Interest, Registry, Token};
use rustix::process::{Pid, Signal, kill_process};
use zeroize::Zeroizing;

use crate::observe::log_writer;
use crate::process::account::Account;
use crate::process::control_socket::{ControlSocket, Role, ToChild, ToParent};
use crate::process::hygiene::allocator_word;

/// A child that has closed its control socket has this long to end by itself.
const GONE_MS: u64 = 200;

/// What the configuration asks for: web, or one executor of a group.
pub struct Place {
    pub role: Role,
    pub name: String,
    pub bundle: Zeroizing<Vec<u8>>,
    /// With which its own log lines begin.
    pub log_mark: String,
    /// Of its processes; `None`: ours.
    pub account: Option<Account>,
    /// Web's.
    pub listener: Option<TcpListener>,
}

/// See the module.
pub struct ChildProcess {
    pub child: Child,
    pub control: ControlSocket,
    pub stderr: ChildStderr,
    pub since_ms: u64,
    pub heard_ms: u64,
    pub pinged_ms: u64,
    /// `Some` once it has closed its control socket.
    gone_ms: Option<u64>,
    /// It has begun a job.
    pub has_worked: bool,
    /// How it ended, once that was seen.
    ended: Option<ExitStatus>,
}

/// What a service manager says to the supervisor alone.
const FOR_THE_SUPERVISOR: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

impl ChildProcess {
    /// Starts this binary again in another role. Standard input is its control socket; the listener becomes web's
    /// standard output; standard error is a pipe to us, so that its last words are known when it crashes.
    pub fn spawn(place: &Place, registry: &Registry, token: Token, now_ms: u64) -> Result<ChildProcess> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let listener = place.listener.as_ref().map(TcpListener::try_clone).transpose()?;
        let stdout = listener.map_or_else(Stdio::null, |listener| OwnedFd::from(listener).into());
        // A group of its own: a terminal's Ctrl-C reaches the supervisor alone, which then drains.
        let mut command = Command::new("/proc/self/exe");
        command.arg0(std::env::args_os().next().unwrap_or_else(|| "cofferdam".into()));
        command.args([place.role.as_str(), "--supervised"]).process_group(0);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(stdout).stderr(Stdio::piped());
        if let Some(Account { user, group }) = place.account {
            // Root's supplementary groups go with this as well, see `CommandExt::uid`.
            command.uid(user).gid(group);
        }
        FOR_THE_SUPERVISOR.iter().for_each(|name| _ = command.env_remove(name));
        command.envs(allocator_word());
        let mut child = command.spawn()?;
        // `Command` keeps the child's end open until it is dropped; then the end of file can come.
        drop(command);
        let mut control = ControlSocket::new(mio::net::UnixStream::from_std(ours));
        control.send_bytes(&place.bundle);
        let child_pid = child.id();
        let pipe = child.stderr.take().ok_or(ErrorKind::BrokenPipe.into());
        let watched = pipe.and_then(|pipe| {
            registry.register(&mut control.stream, token, Interest::READABLE | Interest::WRITABLE)?;
            ChildStderr::new(pipe, registry, token, (place.role, place.log_mark.clone(), child_pid))
        });
        let stderr = watched.inspect_err(|_| {
            let _ = child.kill().and_then(|()| child.wait());
        })?;
        let (since_ms, heard_ms, pinged_ms) = (now_ms, now_ms, now_ms);
        let (has_worked, gone_ms, ended) = Default::default();
        Ok(ChildProcess { child, control, stderr, since_ms, heard_ms, pinged_ms, gone_ms, has_worked, ended })
    }

    pub fn ping(&mut self, heartbeat_ms: u64, now_ms: u64) {
        self.control.flush();
        self.stderr.pass_on();
        if self.gone_ms.is_some_and(|gone_ms| now_ms.saturating_sub(gone_ms) >= GONE_MS) {
            self.kill();
        }
        if now_ms.saturating_sub(self.pinged_ms) >= heartbeat_ms {
            self.pinged_ms = now_ms;
            self.control.send(&ToChild::Ping);
        }
    }

    /// What it says. One that has closed its end of the socket is ending, and may still say why; one that says what
    /// makes no sense goes at once.
    pub fn hear(&mut self, now_ms: u64) -> Vec<ToParent> {
        self.control.flush();
        self.stderr.pass_on();
        let said = self.control.read();
        if self.control.ended {
            self.gone_ms.get_or_insert(now_ms);
        } else if said.is_err() {
            self.kill();
        }
        let messages = said.unwrap_or_default();
        if !messages.is_empty() {
            self.heard_ms = now_ms;
        }
        messages
    }

    pub fn terminate(&self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Ends it at once, and passes on what it has written.
    pub fn end(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait().map(drop));
        self.stderr.pass_on();
    }

    /// `Some` once it has ended; whatever it said before is in its pipes by then.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.ended = self.ended.or_else(|| self.child.try_wait().ok().flatten());
        self.ended
    }

    /// Its socket closes a moment before it can be waited for, and no other event need follow.
    pub fn is_due_at_once(&self) -> bool {
        self.control.ended || self.stderr.more
    }
}

/// A longer line is passed on in pieces.
const LINE_BYTES: usize = 16 << 10;
/// Bytes taken at once from one child, so that no child's words keep the supervisor from the others.
const TURN_BYTES: usize = 256 << 10;
/// Characters of the last words that a message quotes.
const LAST_CHARS: usize = 400;

/// What one child writes to its standard error: passed on line by line, the last one remembered.
pub struct ChildStderr {
    pipe: BufReader<Receiver>,
    /// Whose it is: its role, the mark of its own log lines, its number.
    whose: (Role, String, u32),
    line: Vec<u8>,
    last: String,
    /// More was there than one turn takes; no event need tell of it.
    more: bool,
}

impl ChildStderr {
    /// Watches the pipe of a child.
    fn new(pipe: Pipe, registry: &Registry, token: Token, whose: (Role, String, u32)) -> Result<ChildStderr> {
        let mut pipe = Receiver::from(pipe);
        pipe.set_nonblocking(true)?;
        registry.register(&mut pipe, token, Interest::READABLE)?;
        let (line, last, more) = Default::default();
        Ok(ChildStderr { pipe: BufReader::new(pipe), whose, line, last, more })
    }

    /// Passes on what has come.
    fn pass_on(&mut self) {
        let mut taken = 0;
        self.more = false;
        while taken < TURN_BYTES {
            let room = LINE_BYTES - self.line.len();
            match (&mut self.pipe).take(room as u64).read_until(b'\n', &mut self.line) {
                Ok(0) => return self.end_line(),
                Ok(read) if read == room || self.line.ends_with(b"\n") => {
                    taken += read;
                    self.end_line();
                }
                // The rest of the line is not there yet, or there is none.
                Ok(_) => {}
                Err(_) => return,
            }
        }
        self.more = true;
    }

    /// The last line that was not empty, for a message; what is not printable is replaced.
    pub fn last(&self) -> String {
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        self.last.trim().chars().take(LAST_CHARS).map(printable).collect()
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(line.trim_ascii_end());
        if line.is_empty() {
            return;
        }
        let (role, mark, pid) = &self.whose;
        let marked = line.strip_prefix(mark.as_str());
        let text = marked.unwrap_or(&line);
        log_writer::pass_on(text, marked.is_some(), role.as_str(), *pid);
        text.clone_into(&mut self.last);
    }
}
