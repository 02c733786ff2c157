//! The handshake: three messages of fixed size, so that no length is believed before authentication. Pure.
//!
//! ```text
//!   executor                         broker
//!   Initiator --M1 (80)------------> Responder::answer: mac, time, nonce
//!             <------------M2 (104)-
//!   finish    --M3 (40)------------> Responder::finish
//!   Session                          Session
//! ```
//!
//! Each state is a value that its step consumes; a failed one is gone. Whoever sees a failure closes without a byte.

use std::collections::{HashSet, VecDeque};

use super::frame::{OVERHEAD_BYTES, Opener, Sealer, is_fresh};
use super::keys::{GroupSecret, MAC_BYTES, MacKey, SessionKeys, transcript};
use super::reject::Reject;
use crate::codec::Cursor;

/// Bytes of the messages.
pub const M1_BYTES: usize = 80;
/// See [`M1_BYTES`].
pub const M2_BYTES: usize = 104;
/// See [`M1_BYTES`].
pub const M3_BYTES: usize = 40;

const MAGIC: &[u8; 4] = b"CFD2";
const VERSION: u8 = 2;
const EXECUTOR: u8 = 1;
const BROKER: u8 = 2;
/// A handshake message is at most this old.
const TTL_MS: u64 = 5_000;
/// A nonce is remembered for longer than its message is fresh.
const NONCE_MS: u64 = 10_000;

/// What both sides agree on when the handshake is done.
pub struct Session {
    /// Seals what this side sends.
    pub sealer: Sealer,
    /// Opens what the other side sends.
    pub opener: Opener,
    /// For logs only.
    pub conn_id: [u8; 8],
    /// The group's index in `process_groups`.
    pub group: u16,
    /// Bounds the length field in both directions.
    pub max_frame: u32,
    /// Leases at once.
    pub max_leases: u32,
    /// The broker's start.
    pub boot_id: [u8; 16],
}

/// What the broker tells in M2.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Random, made at the broker's start.
    pub boot_id: [u8; 16],
    /// Bounds the length field in both directions.
    pub max_frame: u32,
    /// Leases at once.
    pub max_leases: u32,
    /// Frames are at most this old.
    pub ttl_ms: u64,
}

/// The executor between M1 and M2.
pub struct Initiator {
    broker_key: MacKey,
    executor_key: MacKey,
    m1: [u8; M1_BYTES],
    group: u16,
    ttl_ms: u64,
}

impl Initiator {
    /// Makes M1.
    #[must_use]
    pub fn start(secret: &GroupSecret, group: u16, nonce: [u8; 32], ttl_ms: u64, now_ms: u64) -> Initiator {
        let (executor_key, broker_key) = secret.handshake_keys();
        let mut m1 = [0; M1_BYTES];
        let fields: [&[u8]; 5] =
            [MAGIC, &[VERSION, EXECUTOR], &group.to_be_bytes(), &now_ms.to_be_bytes(), &nonce];
        m1[..48].copy_from_slice(&fields.concat());
        let mac = executor_key.sign(&[b"M1", &m1[..48]]);
        m1[48..].copy_from_slice(&mac);
        Initiator { broker_key, executor_key, m1, group, ttl_ms }
    }

    /// The message to send.
    #[must_use]
    pub fn m1(&self) -> &[u8; M1_BYTES] {
        &self.m1
    }

    /// Checks M2 and makes M3.
    ///
    /// # Errors
    /// Whoever answered does not know the secret, or its answer is stale or senseless.
    pub fn finish(
        self,
        m2: &[u8; M2_BYTES],
        secret: &GroupSecret,
        now_ms: u64,
    ) -> Result<(Session, [u8; M3_BYTES]), Reject> {
        let mut fields = Cursor::new(m2);
        let group = preamble(&mut fields, BROKER)?;
        let time = fields.u64()?;
        let _nonce: [u8; 32] = fields.array()?;
        let boot_id = fields.array()?;
        let (max_frame, max_leases) = (fields.u32()?, fields.u32()?);
        let mac = fields.take(MAC_BYTES)?;
        if group != 0 {
            return Err(Reject::Malformed);
        }
        if !self.broker_key.verify(&[b"M2", &transcript(&[&self.m1]), &m2[..M2_BYTES - MAC_BYTES]], mac) {
            return Err(Reject::BadSignature);
        }
        if !is_fresh(time, now_ms, TTL_MS) {
            return Err(Reject::ExpiredTimestamp);
        }
        if (max_frame as usize) < OVERHEAD_BYTES + 1_024 || max_leases == 0 {
            return Err(Reject::HandshakeFailed);
        }
        let mut m3 = [0; M3_BYTES];
        m3[..8].copy_from_slice(&[MAGIC, &[VERSION, EXECUTOR, 0, 0][..]].concat());
        let mac = self.executor_key.sign(&[b"M3", &transcript(&[&self.m1, m2]), &m3[..8]]);
        m3[8..].copy_from_slice(&mac);
        let SessionKeys { to_broker, to_executor, conn_id } = secret.session_keys(&self.m1, m2);
        let session = Session {
            sealer: Sealer::new(to_broker),
            opener: Opener::new(to_executor, max_frame as usize, self.ttl_ms),
            conn_id,
            group: self.group,
            max_frame,
            max_leases,
            boot_id,
        };
        Ok((session, m3))
    }
}

/// The broker between M2 and M3.
pub struct Responder {
    executor_key: MacKey,
    transcript: [u8; 32],
    session: Session,
}

impl Responder {
    /// Checks M1 and makes M2.
    ///
    /// # Errors
    /// Whoever connected does not know the group's secret, or sent something old again.
    pub fn answer(
        m1: &[u8; M1_BYTES],
        secrets: &[GroupSecret],
        nonces: &mut [Nonces],
        terms: Terms,
        nonce: [u8; 32],
        now_ms: u64,
    ) -> Result<(Responder, [u8; M2_BYTES]), Reject> {
        let mut fields = Cursor::new(m1);
        let group = preamble(&mut fields, EXECUTOR)?;
        let (time, nonce_e) = (fields.u64()?, fields.array()?);
        // An index without a group is as unknown as a key that does not fit.
        let secret = secrets.get(usize::from(group)).ok_or(Reject::BadSignature)?;
        let (executor_key, broker_key) = secret.handshake_keys();
        if !executor_key.verify(&[b"M1", &m1[..48]], &m1[48..]) {
            return Err(Reject::BadSignature);
        }
        if !is_fresh(time, now_ms, TTL_MS) {
            return Err(Reject::ExpiredTimestamp);
        }
        // Each group has its own: none keeps another out.
        nonces.get_mut(usize::from(group)).ok_or(Reject::BadSignature)?.insert(nonce_e, now_ms)?;
        let mut m2 = [0; M2_BYTES];
        let fields: [&[u8]; 7] = [
            MAGIC,
            &[VERSION, BROKER, 0, 0],
            &now_ms.to_be_bytes(),
            &nonce,
            &terms.boot_id,
            &terms.max_frame.to_be_bytes(),
            &terms.max_leases.to_be_bytes(),
        ];
        m2[..72].copy_from_slice(&fields.concat());
        let mac = broker_key.sign(&[b"M2", &transcript(&[m1]), &m2[..72]]);
        m2[72..].copy_from_slice(&mac);
        let SessionKeys { to_broker, to_executor, conn_id } = secret.session_keys(m1, &m2);
        let session = Session {
            sealer: Sealer::new(to_executor),
            opener: Opener::new(to_broker, terms.max_frame as usize, terms.ttl_ms),
            conn_id,
            group,
            max_frame: terms.max_frame,
            max_leases: terms.max_leases,
            boot_id: terms.boot_id,
        };
        Ok((Responder { executor_key, transcript: transcript(&[m1, &m2]), session }, m2))
    }

    /// Checks M3.
    ///
    /// # Errors
    /// It was not made for this M1 and M2.
    pub fn finish(self, m3: &[u8; M3_BYTES]) -> Result<Session, Reject> {
        let mut fields = Cursor::new(m3);
        if preamble(&mut fields, EXECUTOR)? != 0 {
            return Err(Reject::Malformed);
        }
        if !self.executor_key.verify(&[b"M3", &self.transcript, &m3[..8]], &m3[8..]) {
            return Err(Reject::BadSignature);
        }
        Ok(self.session)
    }
}

/// Magic, version, role; gives the group field.
fn preamble(fields: &mut Cursor, role: u8) -> Result<u16, Reject> {
    if fields.take(MAGIC.len())? != MAGIC {
        return Err(Reject::Malformed);
    }
    if fields.u8()? != VERSION {
        return Err(Reject::BadVersion);
    }
    if fields.u8()? != role {
        return Err(Reject::Malformed);
    }
    Ok(fields.u16()?)
}

/// Nonces of valid first messages of one group, for as long as a replay could be fresh. Full is refused, never evicted:
/// what is forgotten early could be replayed.
#[derive(Debug)]
pub struct Nonces {
    capacity: usize,
    known: HashSet<[u8; 32]>,
    order: VecDeque<(u64, [u8; 32])>,
}

impl Nonces {
    /// For so many nonces.
    #[must_use]
    pub fn new(capacity: usize) -> Nonces {
        Nonces { capacity, known: HashSet::new(), order: VecDeque::new() }
    }

    fn insert(&mut self, nonce: [u8; 32], now_ms: u64) -> Result<(), Reject> {
        while let Some((at, old)) = self.order.front().copied().filter(|(at, _)| at + NONCE_MS < now_ms) {
            debug_assert!(at < now_ms);
            self.order.pop_front();
            self.known.remove(&old);
        }
        if self.order.len() >= self.capacity || !self.known.insert(nonce) {
            return Err(Reject::ReplayedNonce);
        }
        self.order.push_back((now_ms, nonce));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { boot_id: [9; 16], max_frame: 1_114_112, max_leases: 64, ttl_ms: 30_000 };

    fn secret(byte: u8) -> GroupSecret {
        GroupSecret::from_bytes([byte; 32])
    }

    fn answer(m1: &[u8; M1_BYTES], now: u64) -> Result<(Responder, [u8; M2_BYTES]), Reject> {
        let mut nonces = [Nonces::new(16), Nonces::new(16)];
        Responder::answer(m1, &[secret(1), secret(2)], &mut nonces, TERMS, [4; 32], now)
    }

    #[test]
    fn two_ends_with_one_secret_agree_and_speak_both_ways() {
        let initiator = Initiator::start(&secret(2), 1, [3; 32], 30_000, 1_000);
        let (responder, m2) = answer(initiator.m1(), 1_000).unwrap();
        let (mut executor, m3) = initiator.finish(&m2, &secret(2), 1_000).unwrap();
        let mut broker = responder.finish(&m3).unwrap();
        assert_eq!(
            (broker.group, executor.conn_id, executor.max_frame),
            (1, broker.conn_id, TERMS.max_frame)
        );
        let mut wire = Vec::new();
        executor.sealer.seal(1, 0, b"up", 1_000, &mut wire);
        assert_eq!(broker.opener.open(&wire, 1_000, |_| true).unwrap().unwrap().0.body, b"up");
        let reflected = wire.clone();
        wire.clear();
        broker.sealer.seal(2, 0, b"down", 1_000, &mut wire);
        assert_eq!(executor.opener.open(&wire, 1_000, |_| true).unwrap().unwrap().0.body, b"down");
        assert_eq!(executor.opener.open(&reflected, 1_000, |_| true).err(), Some(Reject::BadSignature));
    }

    #[test]
    fn every_flipped_bit_of_every_message_is_refused() {
        let initiator = || Initiator::start(&secret(2), 1, [3; 32], 30_000, 1_000);
        let (_, m2) = answer(initiator().m1(), 1_000).unwrap();
        let (_, m3) = initiator().finish(&m2, &secret(2), 1_000).unwrap();
        for bit in 0..M1_BYTES * 8 {
            let mut m1 = *initiator().m1();
            m1[bit / 8] ^= 1 << (bit % 8);
            assert!(answer(&m1, 1_000).is_err(), "M1 bit {bit}");
        }
        for bit in 0..M2_BYTES * 8 {
            let mut m2 = m2;
            m2[bit / 8] ^= 1 << (bit % 8);
            assert!(initiator().finish(&m2, &secret(2), 1_000).is_err(), "M2 bit {bit}");
        }
        for bit in 0..M3_BYTES * 8 {
            let mut m3 = m3;
            m3[bit / 8] ^= 1 << (bit % 8);
            assert!(answer(initiator().m1(), 1_000).unwrap().0.finish(&m3).is_err(), "M3 bit {bit}");
        }
    }

    #[test]
    fn refusals_of_the_handshake_have_their_names() {
        let m1 = *Initiator::start(&secret(2), 1, [3; 32], 30_000, 10_000).m1();
        let with = |at: usize, byte: u8| {
            let mut m1 = m1;
            m1[at] = byte;
            answer(&m1, 10_000).err()
        };
        assert_eq!(with(0, b'X'), Some(Reject::Malformed));
        assert_eq!(with(4, 1), Some(Reject::BadVersion));
        assert_eq!(with(5, 2), Some(Reject::Malformed));
        assert_eq!(with(7, 9), Some(Reject::BadSignature));
        assert_eq!(with(79, 0), Some(Reject::BadSignature));
        assert_eq!(answer(&m1, 15_001).err(), Some(Reject::ExpiredTimestamp));
        assert_eq!(answer(&m1, 8_999).err(), Some(Reject::ExpiredTimestamp));
        let wrong = *Initiator::start(&secret(1), 1, [3; 32], 30_000, 10_000).m1();
        assert_eq!(answer(&wrong, 10_000).err(), Some(Reject::BadSignature));
    }

    #[test]
    fn a_first_message_is_accepted_once_and_a_full_cache_refuses() {
        let mut nonces = [Nonces::new(16)];
        let secrets = [secret(2)];
        let m1 = |nonce: u8, now| *Initiator::start(&secret(2), 0, [nonce; 32], 30_000, now).m1();
        let mut say = |m1: &[u8; M1_BYTES], now| {
            Responder::answer(m1, &secrets, &mut nonces, TERMS, [4; 32], now).err()
        };
        assert_eq!(say(&m1(0, 0), 0), None);
        assert_eq!(say(&m1(0, 0), 4_000), Some(Reject::ReplayedNonce));
        assert!((1..16).all(|nonce| say(&m1(nonce, 0), 0).is_none()));
        assert_eq!(say(&m1(16, 0), 0), Some(Reject::ReplayedNonce), "full");
        assert_eq!(say(&m1(16, 11_000), 11_000), None, "the old ones have gone");
    }
}
