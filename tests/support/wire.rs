//! The channel's bytes made by hand: keys derived as docs/protocol.md says, and frames that no honest end sends.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use cofferdam::channel::keys::{GroupSecret, MacKey, hkdf_expand, hkdf_extract};
use sha2::{Digest, Sha256};

/// Bytes of a frame around its body.
pub const OVERHEAD: usize = 64;

pub fn sha256(messages: &[&[u8]]) -> [u8; 32] {
    Sha256::digest(messages.concat()).into()
}

/// The keys of one connection.
pub struct DataKeys {
    pub prk: [u8; 32],
    pub to_broker: [u8; 32],
    pub to_executor: [u8; 32],
    pub conn_id: [u8; 8],
}

pub fn data_keys(secret: &GroupSecret, m1: &[u8], m2: &[u8]) -> DataKeys {
    let prk = hkdf_extract(&sha256(&[m1, m2]), secret.expose());
    DataKeys {
        prk: *prk,
        to_broker: *hkdf_expand(&prk, &[b"cofferdam/1 data executor->broker"]),
        to_executor: *hkdf_expand(&prk, &[b"cofferdam/1 data broker->executor"]),
        conn_id: *hkdf_expand(&prk, &[b"cofferdam/1 conn-id"]),
    }
}

/// The keys of the handshake: the executor's and the broker's.
pub fn handshake_keys(secret: &GroupSecret) -> [[u8; 32]; 2] {
    let prk = hkdf_extract(b"cofferdam/1 handshake", secret.expose());
    [*hkdf_expand(&prk, &[b"executor->broker"]), *hkdf_expand(&prk, &[b"broker->executor"])]
}

/// A frame with any header, signed.
#[derive(Clone, Debug, Default)]
pub struct Forged {
    pub kind: u8,
    pub flags: u8,
    pub reserved: u16,
    pub sequence: u64,
    pub time_ms: u64,
    pub lease: u64,
    pub body: Vec<u8>,
}

impl Forged {
    pub fn sealed(&self, key: &[u8]) -> Vec<u8> {
        let length = u32::try_from(OVERHEAD - 4 + self.body.len()).expect("a test's body is small");
        let mut out = length.to_be_bytes().to_vec();
        out.extend_from_slice(&[self.kind, self.flags]);
        out.extend_from_slice(&self.reserved.to_be_bytes());
        for field in [self.sequence, self.time_ms, self.lease] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        out.extend_from_slice(&self.body);
        let mac = MacKey::new(key).sign(&[&out]);
        out.extend_from_slice(&mac);
        out
    }
}
