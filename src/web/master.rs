//! Who may tell the web process to stop, and how it does: the drain's states.

use std::io::Read;
use std::time::Duration;

use super::event_loop::{Front, MasterSocket};
use crate::channel::ChannelServer;
use crate::clock::{Timestamp, millis};
use crate::exit::{Exit, say};
use crate::observe::{event, log_writer};
use crate::ports::Upkeep;
use crate::process::control_socket::{ToChild, ToParent};

impl Front {
    /// Says that it serves: to whoever started it.
    pub(super) fn say_ready(&mut self) -> Result<(), String> {
        match &mut self.master {
            MasterSocket::Signals(_, notifier) => {
                let line = format!("ready http://{} pid={}\n", self.address, std::process::id());
                say(std::io::stdout(), &line);
                notifier.ready(line.trim());
                event(log::Level::Info, "lifecycle.ready").field("line", line.trim()).emit();
            }
            MasterSocket::Supervisor(control) => {
                let channel = self.channel.as_ref().map(ChannelServer::address);
                let address = channel.transpose().map_err(|error| error.to_string())?;
                control.send(&ToParent::Ready(address.map_or(String::new(), |address| address.to_string())));
            }
        }
        Ok(())
    }

    /// A signal, or a word of the supervisor.
    pub(super) fn on_master(&mut self, now: Timestamp) -> Result<(), String> {
        let mut told_to_drain = None;
        match &mut self.master {
            MasterSocket::Signals(stream, notifier) => {
                let mut bytes = [0; 16];
                while let Ok(read) = stream.read(&mut bytes) {
                    for _ in 0..read {
                        // The second signal's deadline is now.
                        let again = told_to_drain.is_some() || self.drain.is_some();
                        told_to_drain = Some(if again { Duration::ZERO } else { self.graceful });
                    }
                    if read == 0 {
                        break;
                    }
                    notifier.stopping(millis(self.graceful));
                }
            }
            MasterSocket::Supervisor(control) => {
                const GONE: &str = "the supervisor is gone";
                control.flush();
                for message in control.read::<ToChild>().map_err(|_| GONE)? {
                    match message {
                        ToChild::Ping => control.send(&ToParent::Pong),
                        ToChild::Drain(millis) => told_to_drain = Some(Duration::from_millis(millis)),
                        ToChild::Stop => std::process::exit(0),
                        ToChild::Restarted(group, reason) => self.counters.restart(&group, &reason),
                        ToChild::Gone(name) => self.desk.lost(name),
                        ToChild::Channel(_) | ToChild::Leave => {}
                    }
                }
                if control.has_ended() {
                    return Err(GONE.into());
                }
            }
        }
        if let Some(patience) = told_to_drain {
            event(log::Level::Info, "lifecycle.draining").emit();
            self.core.drain();
            self.drain = Some(now.plus(patience));
        }
        Ok(())
    }

    /// `Some` once the drain is over and there is no supervisor to tell.
    pub(super) fn drained(&mut self) -> Option<Exit> {
        let deadline = self.drain?;
        let now = self.clock.now();
        let late = now >= deadline;
        let beside = self.beside.as_deref();
        // Each is asked, whatever the others say: to be asked is to be told.
        let is_idle =
            beside.is_none_or(|beside| beside.is_idle(deadline)) & self.desk.upkeep().is_idle(deadline);
        let done = late || (is_idle && self.core.is_quiet());
        if !done {
            return None;
        }
        let mut cut_off = self.desk.upkeep().unfinished();
        cut_off.extend(beside.map(Upkeep::unfinished).unwrap_or_default());
        self.core.cut_off(now);
        for number in self.core.take_touched() {
            self.flush(usize::try_from(number).unwrap_or(usize::MAX), now);
        }
        self.drain = None;
        match &mut self.master {
            MasterSocket::Supervisor(control) => {
                control.name_cut_off(&cut_off);
                control.send(&ToParent::Drained(cut_off.len() as u64));
                None
            }
            MasterSocket::Signals(..) => {
                log_writer::name_cut_off(&cut_off);
                Some(if cut_off.is_empty() { Exit::Done } else { Exit::CutOff })
            }
        }
    }
}
