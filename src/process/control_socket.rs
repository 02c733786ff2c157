//! The control socket between a supervisor and a child: one bundle, then small commands, and the bundle again when its secrets
//! are others.
//!
//! `length u32 | body`, big-endian; the body of a command is JSON, which that of a bundle never is. It is a socket pair that
//! nobody else can reach, so it is not signed; a malformed message ends the child, an end of file as well.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use mio::net::UnixStream;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::channel::keys::GroupSecret;
use crate::codec::{Cursor, Malformed, put_bytes};
use crate::config::secret::Secret;
use crate::job::JobId;
use crate::limits::READ_BYTES;
use crate::named::named;

/// The bundle is the largest message: a config, and 32 bytes a group.
const MESSAGE_BYTES: usize = 4 << 20;

/// Jobs of one [`ToParent::CutOff`].
const CUT_OFF_AT_ONCE: usize = 1_000;

/// From the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum ToChild {
    /// Where the broker listens.
    Channel(String),
    /// Say that you live.
    Ping,
    /// Stop taking jobs; finish within so many ms.
    Drain(u64),
    /// Others have the listener: accept nobody, and finish within so many ms with those who are here.
    Retire(u64),
    /// End now.
    Stop,
    /// It may leave, as it asked: finish its jobs, take no more, end.
    Leave,
    /// The token file's text, which was read again.
    Tokens(String),
    /// For the metrics: so many processes of this group were replaced for this reason.
    Replaced(String, String, u64),
    /// The broker's name for the web process whose place this one has taken: its leases are over.
    Succeeds(String),
}

impl ToChild {
    /// To web: who comes is refused, or waits for others who have the listener.
    pub fn drain(leaves_listener: bool, patience_ms: u64) -> ToChild {
        if leaves_listener { ToChild::Retire(patience_ms) } else { ToChild::Drain(patience_ms) }
    }
}

/// From a child.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum ToParent {
    /// It serves; web says where the channel listens, and its name at the broker, if it has one.
    Ready(String),
    /// Answers a ping.
    Pong,
    /// The drain is over; the jobs of these ids were cut off, a bounded number; the next message may name more.
    CutOff(Vec<[u8; 16]>),
    /// The drain is over; so many jobs were cut off.
    Drained(u64),
    /// It asks to be replaced.
    Leaving(Leaving),
    /// It has begun its first job.
    Worked,
}

named! {
    /// Why an executor asks to be replaced: the reasons of `process_recycled_total`.
    #[derive(Deserialize, Serialize)]
    Leaving {
        /// It has finished as many jobs as its group allows.
        MaxJobs = "max_jobs",
        /// It holds more memory than its group allows.
        MaxRss = "max_rss",
        /// Handlers that ignore the end of their time hold its workers.
        Stuck = "stuck",
        /// Its supervisor says so: its secret is the one before.
        Secret = "secret",
    }
}

/// Frames a message.
pub fn framed(body: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(4 + body.len()));
    put_bytes(&mut out, body);
    out
}

/// The message at the start of the bytes, and its whole length.
pub fn split(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, Malformed> {
    let Some(header) = bytes.first_chunk() else { return Ok(None) };
    let end = 4 + length(*header)?;
    Ok(bytes.get(4..end).map(|body| (body, end)))
}

fn length(header: [u8; 4]) -> Result<usize, Malformed> {
    let length = u32::from_be_bytes(header) as usize;
    if (1..=MESSAGE_BYTES).contains(&length) { Ok(length) } else { Err(Malformed) }
}

/// A command with its frame.
pub fn encode(message: &impl Serialize) -> Zeroizing<Vec<u8>> {
    framed(&serde_json::to_vec(message).expect("a command is words and numbers"))
}

/// A command in its one form.
pub fn decode<M: Serialize + DeserializeOwned>(body: &[u8]) -> Result<M, Malformed> {
    let message = serde_json::from_slice(body).map_err(|_| Malformed)?;
    if encode(&message)[4..] == *body { Ok(message) } else { Err(Malformed) }
}

/// One end of a control socket, without blocking.
pub struct ControlSocket {
    pub stream: UnixStream,
    input: Zeroizing<Vec<u8>>,
    output: Zeroizing<Vec<u8>>,
    /// The other end has closed; what it said before was read.
    pub ended: bool,
}

impl ControlSocket {
    /// Around a socket that does not block.
    pub fn new(stream: UnixStream) -> ControlSocket {
        let (input, output) = Default::default();
        ControlSocket { stream, input, output, ended: false }
    }

    /// What has arrived; if the other end has closed since, it still counts.
    pub fn read<M: Serialize + DeserializeOwned>(&mut self) -> Result<Vec<M>, Malformed> {
        let mut messages = Vec::new();
        self.read_each(|body| decode(body).map(|message| messages.push(message)))?;
        Ok(messages)
    }

    fn read_each(&mut self, mut each: impl FnMut(&[u8]) -> Result<(), Malformed>) -> Result<(), Malformed> {
        // Not on the stack: what reads a bundle leaves its traces below, where they can be wiped.
        let mut part = Zeroizing::new(vec![0; READ_BYTES]);
        let end = loop {
            match self.stream.read(&mut part[..]) {
                Ok(read @ 1..) if self.input.len() <= 2 * MESSAGE_BYTES => {
                    self.input = joined(&self.input, &part[..read]);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                end => break end,
            }
        };
        // A peer that is gone before it has read everything resets the connection; one that says too much is as good as gone.
        self.ended |= end.err().is_none_or(|error| error.kind() != ErrorKind::WouldBlock);
        let mut used = 0;
        while let Some((body, length)) = split(&self.input[used..])? {
            each(body)?;
            used += length;
        }
        self.input = joined(&self.input[used..], &[]);
        Ok(())
    }

    /// What a child hears, and its bundle if that has come again; its pings are answered.
    ///
    /// # Errors
    /// The supervisor is gone: so is the child.
    pub fn hear(&mut self) -> Result<(Vec<ToChild>, Option<Bundle>), String> {
        self.flush();
        let (mut heard, mut bundle) = (Vec::new(), None);
        let read = self.read_each(|body| {
            match decode(body) {
                Ok(message) => heard.push(message),
                Err(Malformed) => bundle = Some(Bundle::decode(body)?),
            }
            Ok(())
        });
        read.ok().filter(|()| !self.ended).ok_or("the supervisor is gone")?;
        heard.iter().filter(|message| **message == ToChild::Ping).for_each(|_| self.send(&ToParent::Pong));
        Ok((heard, bundle))
    }

    /// Names jobs that were cut off.
    pub fn name_cut_off(&mut self, jobs: &[JobId]) {
        for some in jobs.chunks(CUT_OFF_AT_ONCE) {
            self.send(&ToParent::CutOff(some.iter().map(|job| job.0).collect()));
        }
    }

    /// Queues and writes a message; what does not fit goes with the next [`ControlSocket::flush`].
    pub fn send(&mut self, message: &impl Serialize) {
        self.send_bytes(&encode(message));
    }

    /// The same with framed bytes.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        // A peer that never reads is killed for its silence; until then the queue has a bound.
        if self.output.len() < 2 * MESSAGE_BYTES {
            self.output = joined(&self.output, bytes);
        }
        self.flush();
    }

    /// Writes what is queued.
    pub fn flush(&mut self) {
        let mut written = 0;
        while written < self.output.len() {
            match self.stream.write(&self.output[written..]) {
                Ok(some) => written += some,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.output = joined(&self.output[written..], &[]);
    }
}

/// A buffer of bytes that may be secrets: where they were before, they are wiped.
fn joined(first: &[u8], second: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([first, second].concat())
}

named! {
    /// What a child is: the second word of its command line.
    Role {
        /// The HTTP front and the broker.
        Web = "web",
        /// Runs the jobs of a group.
        Executor = "executor",
    }
}

/// What a child reads once, before anything else: its role, the config, and the secrets that its role needs.
pub struct Bundle {
    /// Its group's index; 0 for web.
    pub group: u16,
    /// The deployment's clock.
    pub clock_offset: u64,
    /// Of this child's own log lines.
    pub log_mark: u128,
    /// The normalised config.
    pub config: String,
    /// An executor's channel secret; for web those of all groups, then what is signed with at rest, where that is used.
    pub secrets: Vec<GroupSecret>,
    /// Where web makes its private socket.
    pub private_dir: String,
    /// The token file's text, for web.
    pub tokens: String,
}

impl Bundle {
    /// Another one made of a framed message, as one.
    pub fn changed(framed: &[u8], change: impl FnOnce(Bundle) -> Bundle) -> Option<Zeroizing<Vec<u8>>> {
        let (body, _) = split(framed).ok()??;
        Some(change(Bundle::decode(body).ok()?).encode())
    }

    /// Takes out what is signed with at rest, which stands behind the channel's secrets of so many groups.
    pub fn take_at_rest(&mut self, groups: usize) -> Result<Vec<Secret>, String> {
        let at_rest = self.secrets.split_off(groups.min(self.secrets.len()));
        at_rest.iter().map(|secret| Secret::new(*secret.expose())).collect()
    }

    /// The framed message. The bytes hold secrets and are wiped when dropped.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Zeroizing::new(Vec::with_capacity(
            64 + self.config.len() + self.tokens.len() + 128 + 32 * self.secrets.len(),
        ));
        body.extend_from_slice(&self.group.to_be_bytes());
        body.extend_from_slice(&self.clock_offset.to_be_bytes());
        body.extend_from_slice(&self.log_mark.to_be_bytes());
        for text in [&self.config, &self.private_dir, &self.tokens] {
            put_bytes(&mut body, text.as_bytes());
        }
        self.secrets.iter().for_each(|secret| body.extend_from_slice(secret.expose()));
        framed(&body)
    }

    /// What this child's own log lines begin with, so that its supervisor can tell them from what a handler prints: random,
    /// and in nobody else's hands.
    pub fn log_mark(&self) -> String {
        format!("{:032x} ", self.log_mark)
    }

    fn decode(body: &[u8]) -> Result<Bundle, Malformed> {
        let mut fields = Cursor::new(body);
        let (group, clock_offset) = (fields.u16()?, fields.u64()?);
        let log_mark = u128::from_be_bytes(fields.array()?);
        let mut text = || String::from_utf8(fields.bytes()?.to_vec()).map_err(|_| Malformed);
        let (config, private_dir, tokens) = (text()?, text()?, text()?);
        let mut secrets = Vec::new();
        while let Ok(mut secret) = fields.array::<32>() {
            secrets.push(GroupSecret::from_bytes(secret));
            secret.zeroize();
        }
        fields.finish()?;
        Ok(Bundle { group, clock_offset, log_mark, config, secrets, private_dir, tokens })
    }

    /// Reads the bundle at a child's start; then the socket is the child's control.
    pub fn receive(socket: OwnedFd) -> Result<(Bundle, ControlSocket), String> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let mut stream = StdStream::from(socket);
        let failed = |error: std::io::Error| format!("the control socket: {error}");
        // `web` or `executor` was started by hand with our private flag.
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut header = [0; 4];
        stream.read_exact(&mut header).map_err(failed)?;
        let malformed = |_| "the control socket: the bundle is malformed";
        let mut body = Zeroizing::new(vec![0; length(header).map_err(malformed)?]);
        stream.read_exact(&mut body).map_err(failed)?;
        let bundle = Bundle::decode(&body).map_err(malformed)?;
        stream.set_nonblocking(true).map_err(failed)?;
        Ok((bundle, ControlSocket::new(mio::net::UnixStream::from_std(stream))))
    }
}

/// A bundle is written as it was read.
#[doc(hidden)]
pub fn fuzz_bundle(bytes: &[u8]) {
    let Ok(Some((body, length))) = split(bytes) else { return };
    let Ok(bundle) = Bundle::decode(body) else { return };
    assert!(bundle.encode()[..] == bytes[..length], "a bundle has one form");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_come_back_as_they_were() {
        for message in [
            ToChild::Channel("127.0.0.1:1".into()),
            ToChild::Ping,
            ToChild::Drain(5),
            ToChild::Retire(5),
            ToChild::Stop,
            ToChild::Leave,
            ToChild::Replaced("execution".into(), "crashed".into(), 3),
            ToChild::Succeeds("node".into()),
            ToChild::Tokens("ci …".into()),
        ] {
            let bytes = encode(&message);
            let (body, length) = split(&bytes).unwrap().unwrap();
            assert_eq!((decode(body), length), (Ok(message), bytes.len()));
            assert_eq!(decode::<ToParent>(body), Err(Malformed));
            assert_eq!(split(&bytes[..bytes.len() - 1]), Ok(None));
        }
        for message in [
            ToParent::Ready("a".into()),
            ToParent::CutOff(vec![[1; 16]]),
            ToParent::Drained(7),
            ToParent::Leaving(Leaving::Stuck),
            ToParent::Worked,
        ] {
            let bytes = encode(&message);
            assert_eq!(decode(&bytes[4..]), Ok(message));
        }
        assert_eq!(split(&[0, 0, 0, 0, 0]), Err(Malformed));
        assert_eq!(split(&[0xFF, 0, 0, 0, 0]), Err(Malformed));
    }
}
