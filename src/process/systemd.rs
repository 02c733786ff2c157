//! What a service manager is told: `sd_notify(3)` datagrams and the watchdog. Without one all of this does nothing.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use super::hygiene;
use crate::exit::say;
use crate::observe::event;

/// The service manager's ear; silent iff there is none.
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often it wants to hear that we live.
    watchdog_ms: Option<u64>,
    watchdog_at_ms: u64,
    /// What it had no room for: said again until it has.
    unsaid: Option<String>,
}

impl Notifier {
    /// As the environment says (`NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`).
    pub fn from_environment() -> Notifier {
        let address = std::env::var_os("NOTIFY_SOCKET").and_then(|name| notify_address(&name));
        let socket = address.and_then(|address| Some((UnixDatagram::unbound().ok()?, address)));
        // A stopped manager must not stop us.
        let socket = socket.filter(|(socket, _)| socket.set_nonblocking(true).is_ok());
        let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let interval = number("WATCHDOG_USEC").filter(|micros| for_us && *micros > 0 && socket.is_some());
        // Twice an interval, as sd_watchdog_enabled(3) recommends.
        let watchdog_ms = interval.map(|micros| (micros / 2_000).max(1));
        Notifier { socket, watchdog_ms, watchdog_at_ms: 0, unsaid: None }
    }

    /// This service listens there and is ready: on standard output, in the log, and `READY=1`.
    pub fn ready(&mut self, address: &str) {
        let pid = std::process::id();
        let line = format!("ready http://{address} pid={pid}");
        say(hygiene::data(), &format!("{line}\n"));
        event(log::Level::Info, "lifecycle.ready").field("line", &line).emit();
        self.say(&format!("READY=1\nSTATUS={line}\nMAINPID={pid}\n"));
    }

    /// `STOPPING=1`, and how long it may take: the manager's own timeout waits for that.
    pub fn stopping(&mut self, patience_ms: u64) {
        const MARGIN_MS: u64 = 5_000;
        let micros = (patience_ms + MARGIN_MS) * 1_000;
        self.say(&format!("STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC={micros}\n"));
    }

    /// `WATCHDOG=1` when it is time again, and what was not said yet; says in how many ms to come again.
    pub fn tick(&mut self, now_ms: u64) -> u64 {
        const AGAIN_MS: u64 = 50;
        if let Some(text) = self.unsaid.take() {
            self.say(&text);
        }
        let again_ms = if self.unsaid.is_some() { AGAIN_MS } else { u64::MAX };
        let Some(every_ms) = self.watchdog_ms else { return again_ms };
        if now_ms >= self.watchdog_at_ms {
            self.watchdog_at_ms = now_ms + every_ms;
            // One that is lost is followed by another in time.
            let _ = self.send("WATCHDOG=1\n");
        }
        again_ms.min(self.watchdog_at_ms - now_ms)
    }

    fn say(&mut self, text: &str) {
        if self.send(text).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
            self.unsaid = Some(text.to_owned());
        }
    }

    /// Where nobody listens any more nothing is said: that is the manager's own affair.
    fn send(&self, text: &str) -> std::io::Result<()> {
        let Some((socket, address)) = &self.socket else { return Ok(()) };
        socket.send_to_addr(text.as_bytes(), address).map(drop)
    }
}

/// A path, or after `@` an abstract name. Others (`vsock:`) are not for this host.
fn notify_address(name: &OsString) -> Option<SocketAddr> {
    match name.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(name).ok(),
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notify_socket_is_a_path_or_an_abstract_name() {
        let address = |name: &str| notify_address(&OsString::from(name));
        assert!(address("/run/x").is_some_and(|at| at.as_pathname().is_some()));
        assert!(address("@x").is_some_and(|at| at.as_abstract_name() == Some(b"x")));
        assert!(address("vsock:2:1").is_none() && address("").is_none());
    }
}
