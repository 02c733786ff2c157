//! Frames: what is on the wire after the handshake, sealed and opened. Pure.
//!
//! ```text
//! 0 length u32 | 4 kind u8 | 5 flags u8 = 0 | 6 reserved u16 = 0 | 8 sequence u64 | 16 time u64 | 24 lease u64
//! | 32 body | mac 32
//! ```
//!
//! `length` counts the bytes after itself. The mac covers everything before it, under the direction's key.

use super::keys::{MAC_BYTES, MacKey};
use super::reject::Reject;

/// Bytes before the body.
pub const HEADER_BYTES: usize = 32;
/// What a frame has besides its body.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + MAC_BYTES;
/// The smallest `length`: a frame without a body.
const LENGTH_MIN: usize = OVERHEAD_BYTES - 4;
/// How far ahead a frame's time may lie: both ends read one clock, but not at one instant.
const AHEAD_MS: u64 = 1_000;

/// A frame whose mac, sequence and time were verified; made by [`Opener::open`] alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: u8,
    /// Which lease it is about; 0 if none.
    pub lease: u64,
    /// Its fields.
    pub body: &'a [u8],
}

/// Seals the frames of one direction of one connection.
pub struct Sealer {
    key: MacKey,
    sequence: u64,
}

impl Sealer {
    /// From sequence 0.
    #[must_use]
    pub fn new(key: MacKey) -> Sealer {
        Sealer { key, sequence: 0 }
    }

    /// Appends a frame to `out`. Sequence and time are set here, when it goes to the socket.
    pub fn seal(&mut self, kind: u8, lease: u64, body: &[u8], now_ms: u64, out: &mut Vec<u8>) {
        let start = out.len();
        let length = u32::try_from(LENGTH_MIN + body.len()).expect("bodies are cut to max_frame");
        out.reserve(OVERHEAD_BYTES + body.len());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&[kind, 0, 0, 0]);
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&now_ms.to_be_bytes());
        out.extend_from_slice(&lease.to_be_bytes());
        out.extend_from_slice(body);
        let mac = self.key.sign(&[&out[start..]]);
        out.extend_from_slice(&mac);
        self.sequence += 1;
    }
}

/// Opens the frames of one direction of one connection. A failure is final.
pub struct Opener {
    key: MacKey,
    next_sequence: u64,
    max_frame: usize,
    ttl_ms: u64,
    failed: Option<Reject>,
}

impl Opener {
    /// From sequence 0; `max_frame` bounds the length field.
    #[must_use]
    pub fn new(key: MacKey, max_frame: usize, ttl_ms: u64) -> Opener {
        Opener { key, next_sequence: 0, max_frame, ttl_ms, failed: None }
    }

    /// The frame at the start of `bytes` and its whole length; `None` while it has not all arrived. `allowed`
    /// says which kinds this direction has.
    ///
    /// The order of the checks is part of the protocol: length, whole, mac, sequence, time, flags, kind.
    ///
    /// # Errors
    /// The connection is over, now and for every later call.
    pub fn open<'a>(
        &mut self,
        bytes: &'a [u8],
        now_ms: u64,
        allowed: impl Fn(u8) -> bool,
    ) -> Result<Option<(Frame<'a>, usize)>, Reject> {
        if let Some(reason) = self.failed {
            return Err(reason);
        }
        let opened = self.try_open(bytes, now_ms, allowed);
        self.failed = opened.as_ref().err().copied();
        opened
    }

    fn try_open<'a>(
        &mut self,
        bytes: &'a [u8],
        now_ms: u64,
        allowed: impl Fn(u8) -> bool,
    ) -> Result<Option<(Frame<'a>, usize)>, Reject> {
        let Some(length) = bytes.first_chunk().map(|length| u32::from_be_bytes(*length)) else {
            return Ok(None);
        };
        let length = usize::try_from(length).map_err(|_| Reject::Oversized)?;
        if length < LENGTH_MIN {
            return Err(Reject::Malformed);
        }
        if length > self.max_frame {
            return Err(Reject::Oversized);
        }
        let Some(frame) = bytes.get(..4 + length) else { return Ok(None) };
        let (signed, mac) = frame.split_at(frame.len() - MAC_BYTES);
        if !self.key.verify(&[signed], mac) {
            return Err(Reject::BadSignature);
        }
        let mut fields = crate::codec::Cursor::new(&signed[4..]);
        let (kind, flags, reserved) = (fields.u8()?, fields.u8()?, fields.u16()?);
        let (sequence, time, lease) = (fields.u64()?, fields.u64()?, fields.u64()?);
        if sequence != self.next_sequence {
            return Err(Reject::ReplayedNonce);
        }
        if !is_fresh(time, now_ms, self.ttl_ms) {
            return Err(Reject::ExpiredTimestamp);
        }
        if flags != 0 || reserved != 0 {
            return Err(Reject::Malformed);
        }
        if !allowed(kind) {
            return Err(Reject::UnknownKind);
        }
        self.next_sequence += 1;
        Ok(Some((Frame { kind, lease, body: &signed[HEADER_BYTES..] }, frame.len())))
    }
}

/// True if a stamp is at most `ttl_ms` old and at most a second ahead.
pub(super) fn is_fresh(time_ms: u64, now_ms: u64, ttl_ms: u64) -> bool {
    time_ms <= now_ms.saturating_add(AHEAD_MS) && now_ms.saturating_sub(time_ms) <= ttl_ms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Sealer, Opener) {
        (Sealer::new(MacKey::new(b"k")), Opener::new(MacKey::new(b"k"), 1_024, 30_000))
    }

    fn sealed(sequence: u64, kind: u8, body: &[u8], time: u64) -> Vec<u8> {
        let mut out = Vec::new();
        Sealer { key: MacKey::new(b"k"), sequence }.seal(kind, 7, body, time, &mut out);
        out
    }

    #[test]
    fn a_frame_is_opened_as_it_was_sealed_and_no_prefix_is_a_frame() {
        let (mut sealer, mut opener) = pair();
        let mut wire = Vec::new();
        sealer.seal(1, 7, b"body", 1_000, &mut wire);
        sealer.seal(2, 0, b"", 1_000, &mut wire);
        for end in 0..OVERHEAD_BYTES + 4 {
            assert_eq!(opener.open(&wire[..end], 1_000, |_| true), Ok(None));
        }
        let (frame, length) = opener.open(&wire, 1_000, |_| true).unwrap().unwrap();
        assert_eq!(frame, Frame { kind: 1, lease: 7, body: b"body" });
        let (frame, _) = opener.open(&wire[length..], 1_000, |_| true).unwrap().unwrap();
        assert_eq!(frame, Frame { kind: 2, lease: 0, body: b"" });
    }

    #[test]
    fn a_frame_with_one_flipped_bit_is_never_opened() {
        let wire = sealed(0, 1, b"body", 1_000);
        for byte in 0..wire.len() {
            for bit in 0..8 {
                let mut flipped = wire.clone();
                flipped[byte] ^= 1 << bit;
                let opened =
                    pair().1.open(&flipped, 1_000, |_| true).map(|opened| opened.map(|(_, length)| length));
                // A longer length is a frame that has not arrived yet; everything else is refused.
                assert!(opened == Ok(None) && byte < 4 || opened.is_err(), "byte {byte} bit {bit}");
            }
        }
    }

    #[test]
    fn each_refusal_has_its_name_and_stays() {
        let open = |wire: &[u8], now| pair().1.open(wire, now, |kind| kind == 1).err();
        let mut flagged = sealed(0, 1, b"", 1_000);
        flagged[5] = 1;
        let mac = MacKey::new(b"k").sign(&[&flagged[..HEADER_BYTES]]);
        flagged[HEADER_BYTES..].copy_from_slice(&mac);
        let cases = [
            (59_u32.to_be_bytes().to_vec(), 1_000, Reject::Malformed),
            (1_025_u32.to_be_bytes().to_vec(), 1_000, Reject::Oversized),
            (u32::MAX.to_be_bytes().to_vec(), 1_000, Reject::Oversized),
            (sealed(1, 1, b"", 1_000), 1_000, Reject::ReplayedNonce),
            (sealed(0, 1, b"", 1_000), 31_001, Reject::ExpiredTimestamp),
            (sealed(0, 1, b"", 2_001), 1_000, Reject::ExpiredTimestamp),
            (sealed(0, 2, b"", 1_000), 1_000, Reject::UnknownKind),
            (flagged, 1_000, Reject::Malformed),
        ];
        for (wire, now, reason) in cases {
            assert_eq!(open(&wire, now), Some(reason));
        }
        let (_, mut opener) = pair();
        assert_eq!(
            opener.open(&sealed(0, 1, b"", 1_000), 1_000, |_| true).unwrap().unwrap().1,
            OVERHEAD_BYTES
        );
        let again = sealed(0, 1, b"", 1_000);
        assert_eq!(opener.open(&again, 1_000, |_| true), Err(Reject::ReplayedNonce));
        assert_eq!(opener.open(&sealed(1, 1, b"", 1_000), 1_000, |_| true), Err(Reject::ReplayedNonce));
    }

    #[test]
    fn a_body_of_the_maximum_passes_and_one_byte_more_does_not() {
        let most = 1_024 - LENGTH_MIN;
        assert!(pair().1.open(&sealed(0, 1, &vec![0; most], 0), 0, |_| true).unwrap().is_some());
        let more = pair().1.open(&sealed(0, 1, &vec![0; most + 1], 0), 0, |_| true).err();
        assert_eq!(more, Some(Reject::Oversized));
    }
}
