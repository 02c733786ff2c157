//! A child's birth: what the supervisor gives it, and what it takes.

use std::io::Read;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use zeroize::{Zeroize, Zeroizing};

use super::control::{Control, framed, split};
use crate::app::Setup;
use crate::channel::Reject;
use crate::channel::keys::GroupSecret;
use crate::cli::Exit;
use crate::clock::Clock;
use crate::config::Loaded;
use crate::config::secret::Secret;
use crate::handler::Registry;
use crate::observe::log_writer;
use crate::redis_backend::RedisBroker;

/// What a child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The HTTP front and the broker.
    Web,
    /// Runs the jobs of a group, by index.
    Executor(usize),
}

impl Role {
    /// The second word of its command line.
    #[must_use]
    pub fn command(self) -> &'static str {
        match self {
            Role::Web => "web",
            Role::Executor(_) => "executor",
        }
    }
}

/// What a child reads once, before anything else: its role, the config, and the secrets that its role needs.
pub struct Bundle {
    /// Its group's index; 0 for web.
    pub group: u16,
    /// The deployment's clock.
    pub clock_offset: u64,
    /// The normalised config.
    pub config: String,
    /// Of its group, of all groups for web; then what is signed with in Redis, where that is used.
    pub secrets: Vec<GroupSecret>,
    /// Where web makes its private socket; for an executor, the deployment inside the one in Redis.
    pub place: String,
}

const BUNDLE: u8 = 1;

impl Bundle {
    /// The framed message. The bytes hold secrets and are wiped when dropped.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Zeroizing::new(Vec::with_capacity(64 + self.config.len() + 32 * self.secrets.len()));
        body.extend_from_slice(&self.group.to_be_bytes());
        body.extend_from_slice(&self.clock_offset.to_be_bytes());
        for text in [&self.config, &self.place] {
            body.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
            body.extend_from_slice(text.as_bytes());
        }
        self.secrets.iter().for_each(|secret| body.extend_from_slice(secret.expose()));
        framed(BUNDLE, &body)
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Bundle, Reject> {
        let mut fields = crate::codec::Cursor::new(body);
        if kind != BUNDLE {
            return Err(Reject::Malformed);
        }
        let (group, clock_offset) = (fields.u16()?, fields.u64()?);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| Reject::Malformed);
        let (config, place) = (text(fields.bytes()?)?, text(fields.bytes()?)?);
        let mut secrets = Vec::new();
        while let Ok(mut secret) = fields.array::<32>() {
            secrets.push(GroupSecret::from_bytes(secret));
            secret.zeroize();
        }
        fields.finish()?;
        Ok(Bundle { group, clock_offset, config, secrets, place })
    }

    /// Reads the bundle at a child's start; then the socket is the child's control.
    ///
    /// # Errors
    /// The parent is gone, or said something else.
    pub fn receive(socket: OwnedFd) -> Result<(Bundle, Control), String> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let mut stream = StdStream::from(socket);
        let failed = |error: std::io::Error| format!("the control socket: {error}");
        // `web` or `executor` was started by hand with our private flag.
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut input = Zeroizing::new(vec![0; 4]);
        stream.read_exact(&mut input).map_err(failed)?;
        let length = u32::from_be_bytes(input[..4].try_into().unwrap_or_default()) as usize;
        if length > 4 << 20 {
            return Err("the control socket: the bundle is malformed".into());
        }
        input.resize(4 + length, 0);
        stream.read_exact(&mut input[4..]).map_err(failed)?;
        let bundle = match split(&input) {
            Ok(Some((kind, body, _))) => Bundle::decode(kind, body),
            Ok(None) | Err(_) => Err(Reject::Malformed),
        };
        let bundle = bundle.map_err(|_| "the control socket: the bundle is malformed")?;
        stream.set_nonblocking(true).map_err(failed)?;
        Ok((bundle, Control::new(mio::net::UnixStream::from_std(stream))))
    }

    /// The last of its secrets that was not taken.
    ///
    /// # Errors
    /// There is none.
    pub fn secret(&mut self) -> Result<GroupSecret, String> {
        self.secrets.pop().ok_or_else(|| "the bundle holds no secret".into())
    }

    /// The broker on Redis, whose secret is the last one. `inside` as in [`Setup::redis`].
    ///
    /// # Errors
    /// There is no secret, or no sense in the server's address.
    pub fn redis(&mut self, setup: &Setup, inside: &str) -> Result<RedisBroker, String> {
        setup.redis(&Secret::new(*self.secret()?.expose())?, inside)
    }

    /// The setup that the supervisor has, made again from the normalised config.
    ///
    /// # Errors
    /// The config is not what this binary understands.
    pub fn setup(&self, registry: &Registry) -> Result<Setup, String> {
        let value: serde_json::Value =
            serde_json::from_str(&self.config).map_err(|error| error.to_string())?;
        let config = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
        let loaded = Loaded { config, value, origins: std::collections::BTreeMap::new() };
        Ok(Setup::new(&loaded, registry, Clock::System { offset: self.clock_offset }))
    }
}

/// A bundle is written as it was read.
#[doc(hidden)]
pub fn fuzz_bundle(bytes: &[u8]) {
    let Ok(Some((kind, body, length))) = split(bytes) else { return };
    let Ok(bundle) = Bundle::decode(kind, body) else { return };
    assert!(bundle.encode()[..] == bytes[..length], "a bundle has one form");
}

/// A child's end as its exit code; what went wrong is said on standard error.
pub fn ended(role: &str, end: Result<Exit, String>) -> Exit {
    end.unwrap_or_else(|message| {
        log_writer::say(format!("cofferdam {role}: {message}\n"));
        log_writer::settle();
        Exit::Failed
    })
}

/// What a service manager says to the supervisor alone.
const FOR_THE_SUPERVISOR: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Starts this binary again in another role. Standard input is its control socket; `listener` becomes web's
/// standard output; standard error is a pipe to us, so that its last words are known when it crashes.
///
/// # Errors
/// The process cannot be made.
pub fn spawn(role: Role, listener: Option<&TcpListener>) -> std::io::Result<(Child, Control)> {
    let (ours, theirs) = StdStream::pair()?;
    let stdout = match listener {
        Some(listener) => Stdio::from(OwnedFd::from(listener.try_clone()?)),
        None => Stdio::null(),
    };
    // A group of its own: a terminal's Ctrl-C reaches the supervisor alone, which then drains.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(std::env::args_os().next().unwrap_or_else(|| "cofferdam".into()));
    command.args([role.command(), "--supervised"]).process_group(0);
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(stdout).stderr(Stdio::piped());
    for name in FOR_THE_SUPERVISOR {
        command.env_remove(name);
    }
    let child = command.spawn()?;
    // `Command` keeps the child's end open until it is dropped; then the end of file can come.
    drop(command);
    ours.set_nonblocking(true)?;
    Ok((child, Control::new(mio::net::UnixStream::from_std(ours))))
}
