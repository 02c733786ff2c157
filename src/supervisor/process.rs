//! One child's process: its ends of the control socket and of standard error, and its signals.

use std::process::{Child, ExitStatus};

use rustix::process::{Pid, Signal, kill_process};

use super::control::{Control, ToChild, ToParent};
use super::life::Action;
use super::words::Words;

/// A child that has closed its control socket has this long to end by itself.
const GONE_MS: u64 = 200;

pub(super) struct Process {
    pub(super) child: Child,
    pub(super) control: Control,
    pub(super) words: Words,
    pub(super) since_ms: u64,
    pub(super) heard_ms: u64,
    pub(super) pinged_ms: u64,
    /// `Some` once it has closed its control socket.
    pub(super) gone_ms: Option<u64>,
    /// It knows where the broker listens.
    pub(super) told: bool,
    /// An executor's at its broker, and its workers; empty before it is ready, and where the channel knows who ends.
    pub(super) name: String,
    /// How it ended, once that was seen.
    pub(super) ended: Option<ExitStatus>,
}

impl Process {
    pub(super) fn ping(&mut self, heartbeat_ms: u64, now_ms: u64) {
        self.control.flush();
        self.words.pass_on();
        if self.gone_ms.is_some_and(|gone_ms| now_ms.saturating_sub(gone_ms) >= GONE_MS) {
            let _ = self.child.kill();
        }
        if now_ms.saturating_sub(self.pinged_ms) >= heartbeat_ms {
            self.pinged_ms = now_ms;
            self.control.send(&ToChild::Ping);
        }
    }

    /// What it says. One that has closed its end of the socket is ending, and may still say why; one that says what
    /// makes no sense goes at once.
    pub(super) fn hear(&mut self, now_ms: u64) -> Vec<ToParent> {
        self.control.flush();
        self.words.pass_on();
        let said = self.control.read();
        if self.control.has_ended() {
            self.gone_ms.get_or_insert(now_ms);
        } else if said.is_err() {
            let _ = self.child.kill();
        }
        let messages = said.unwrap_or_default();
        if !messages.is_empty() {
            self.heard_ms = now_ms;
        }
        messages
    }

    pub(super) fn obey(&mut self, action: Action) {
        match action {
            Action::SayStop(0) => self.control.send(&ToChild::Stop),
            Action::SayStop(patience_ms) => self.control.send(&ToChild::Drain(patience_ms)),
            Action::Terminate => {
                if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
                    let _ = kill_process(pid, Signal::TERM);
                }
            }
            Action::Kill => drop(self.child.kill()),
            Action::None | Action::Spawn | Action::Replaced(_) | Action::SetAside(_) | Action::GiveUp => {}
        }
    }

    /// Looks if it has ended; whatever it said before is in its pipes by then.
    pub(super) fn has_ended(&mut self) -> bool {
        self.ended = self.ended.or_else(|| self.child.try_wait().ok().flatten());
        self.ended.is_some()
    }
}
