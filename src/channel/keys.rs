//! The channel's keys: of groups, handshakes and connections, wiped when they go.

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::config::secret::Secret;
pub use crate::mac::{MAC_BYTES, MacKey, hkdf_expand, hkdf_extract};

/// A group's secret: all that its executors are given. No `Debug`, no `Clone`; in one place in memory, and wiped on drop.
pub struct GroupSecret(Box<Zeroizing<[u8; 32]>>);

impl GroupSecret {
    /// `HKDF(salt "cofferdam/1 group", R, the group's name, 32)`
    #[must_use]
    pub fn derive(root: &Secret, group: &str) -> GroupSecret {
        let prk = hkdf_extract(b"cofferdam/1 group", root.expose());
        GroupSecret(Box::new(hkdf_expand(&prk, &[group.as_bytes()])))
    }

    /// As it came in a bootstrap bundle.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> GroupSecret {
        GroupSecret(Box::new(Zeroizing::new(bytes)))
    }

    /// For the bootstrap bundle alone.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The keys of the handshake: the executor's and the broker's.
    pub(super) fn handshake_keys(&self) -> (MacKey, MacKey) {
        let prk = hkdf_extract(b"cofferdam/1 handshake", self.expose());
        let executor: Zeroizing<[u8; 32]> = hkdf_expand(&prk, &[b"executor->broker"]);
        let broker: Zeroizing<[u8; 32]> = hkdf_expand(&prk, &[b"broker->executor"]);
        (MacKey::new(&*executor), MacKey::new(&*broker))
    }

    /// The keys of one connection, from the whole handshake.
    pub(super) fn session_keys(&self, m1: &[u8], m2: &[u8]) -> SessionKeys {
        let prk = hkdf_extract(&transcript(&[m1, m2]), self.expose());
        let to_broker: Zeroizing<[u8; 32]> = hkdf_expand(&prk, &[b"cofferdam/1 data executor->broker"]);
        let to_executor: Zeroizing<[u8; 32]> = hkdf_expand(&prk, &[b"cofferdam/1 data broker->executor"]);
        SessionKeys {
            to_broker: MacKey::new(&*to_broker),
            to_executor: MacKey::new(&*to_executor),
            conn_id: *hkdf_expand(&prk, &[b"cofferdam/1 conn-id"]),
        }
    }
}

/// What a connection signs with.
pub(super) struct SessionKeys {
    pub(super) to_broker: MacKey,
    pub(super) to_executor: MacKey,
    /// For logs only.
    pub(super) conn_id: [u8; 8],
}

/// SHA-256 over whole messages, macs included.
pub(super) fn transcript(messages: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    messages.iter().for_each(|message| hash.update(message));
    hash.finalize().into()
}
