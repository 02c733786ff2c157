//! What a supervisor gives to a child at its birth: its role, the config, and the secrets that its role needs.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use zeroize::{Zeroize, Zeroizing};

use super::control_socket::{ControlSocket, framed, length, split};
use crate::channel::keys::GroupSecret;
use crate::codec::{Cursor, Malformed, put_bytes};
use crate::named::named;

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
    /// The normalised config.
    pub config: String,
    /// An executor's channel secret; for web those of all groups, then what is signed with at rest, where that is used.
    pub secrets: Vec<GroupSecret>,
    /// Where web makes its private socket.
    pub private_dir: String,
}

impl Bundle {
    /// The framed message. The bytes hold secrets and are wiped when dropped.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Zeroizing::new(Vec::with_capacity(64 + self.config.len() + 32 * self.secrets.len()));
        body.extend_from_slice(&self.group.to_be_bytes());
        body.extend_from_slice(&self.clock_offset.to_be_bytes());
        for text in [&self.config, &self.private_dir] {
            put_bytes(&mut body, text.as_bytes());
        }
        self.secrets.iter().for_each(|secret| body.extend_from_slice(secret.expose()));
        framed(&body)
    }

    fn decode(body: &[u8]) -> Result<Bundle, Malformed> {
        let mut fields = Cursor::new(body);
        let (group, clock_offset) = (fields.u16()?, fields.u64()?);
        let mut text = || String::from_utf8(fields.bytes()?.to_vec()).map_err(|_| Malformed);
        let (config, private_dir) = (text()?, text()?);
        let mut secrets = Vec::new();
        while let Ok(mut secret) = fields.array::<32>() {
            secrets.push(GroupSecret::from_bytes(secret));
            secret.zeroize();
        }
        fields.finish()?;
        Ok(Bundle { group, clock_offset, config, secrets, private_dir })
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
