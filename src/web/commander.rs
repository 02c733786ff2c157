//! Who may tell the web process to stop: signals of its own, or a supervisor; and what it says to whom.

use std::time::Duration;

use mio::Token;
use mio::net::UnixStream;

use crate::clock::millis;
use crate::exit::Exit;
use crate::job::JobId;
use crate::observe::log_writer;
use crate::process::control_socket::{Bundle, ControlSocket, ToChild, ToParent};
use crate::process::hygiene::{Signals, drain_bytes, hear_hangup};
use crate::process::reactor::Reactor;
use crate::process::systemd::Notifier;

/// See the module.
pub enum Commander {
    /// Signals of this process.
    Signals {
        stop: UnixStream,
        hangup: UnixStream,
        /// Reads files again; other tokens.
        read_again: Box<dyn FnMut() -> Option<String>>,
        notifier: Notifier,
        graceful: Duration,
        /// Others have the listener too.
        is_lent: bool,
        stops: bool,
    },
    /// A supervisor.
    Supervisor(ControlSocket),
}

impl Commander {
    /// A signal gives callers so long, and leaves a listener that is lent to others; another one reads files again.
    pub fn signals(
        signals: Signals,
        graceful: Duration,
        is_lent: bool,
        read_again: Box<dyn FnMut() -> Option<String>>,
    ) -> Commander {
        Commander::Signals {
            stop: signals.stop,
            hangup: signals.hangup,
            read_again,
            notifier: Notifier::from_environment(),
            graceful,
            is_lent,
            stops: false,
        }
    }

    pub fn watch(&mut self, reactor: &Reactor, token: Token) -> Result<(), String> {
        match self {
            Commander::Signals { stop, hangup, .. } => {
                reactor.watch(stop, token)?;
                reactor.watch(hangup, token)
            }
            Commander::Supervisor(control) => reactor.watch(&mut control.stream, token),
        }
    }

    /// Says that this process serves; a supervisor is told where its channel listens, and its name at the broker.
    pub fn say_ready(&mut self, address: &str, channel: &str, name: &str) {
        match self {
            Commander::Signals { notifier, .. } => {
                notifier.ready(address);
            }
            Commander::Supervisor(control) => {
                control.send(&ToParent::Ready(format!("{channel} {name}").trim_end().to_owned()));
            }
        }
    }

    /// What came since the last call, and a bundle with other secrets; a signal tells to drain. Without its supervisor this process
    /// ends.
    pub fn hear(&mut self) -> Result<(Vec<ToChild>, Option<Bundle>), String> {
        match self {
            Commander::Signals { stop, hangup, read_again, notifier, graceful, is_lent, stops } => {
                let read = if hear_hangup(hangup) { read_again() } else { None };
                let mut heard: Vec<ToChild> = read.into_iter().map(ToChild::Tokens).collect();
                for _ in 0..drain_bytes(stop) {
                    let patience_ms = millis(*graceful);
                    heard.push(match std::mem::replace(stops, true) {
                        // The second signal's deadline is now.
                        true => ToChild::Drain(0),
                        false => ToChild::drain(*is_lent, patience_ms),
                    });
                    notifier.stopping(patience_ms);
                }
                Ok((heard, None))
            }
            Commander::Supervisor(control) => control.hear(),
        }
    }

    /// Says that the drain is over. `Some`: there is no supervisor, who would say when to end.
    pub fn say_drained(&mut self, cut_off: &[JobId]) -> Option<Exit> {
        match self {
            Commander::Supervisor(control) => {
                control.name_cut_off(cut_off);
                control.send(&ToParent::Drained(cut_off.len() as u64));
                None
            }
            Commander::Signals { .. } => {
                log_writer::name_cut_off(cut_off);
                Some(if cut_off.is_empty() { Exit::Done } else { Exit::CutOff })
            }
        }
    }

    /// Tells a service manager that this process lives; how long nothing need be told.
    pub fn tick(&mut self, now_ms: u64) -> Duration {
        match self {
            Commander::Signals { notifier, .. } => Duration::from_millis(notifier.tick(now_ms)),
            Commander::Supervisor(_) => Duration::MAX,
        }
    }
}
