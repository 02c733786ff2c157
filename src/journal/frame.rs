//! Frames: the facts of one turn, signed where they stand. Pure.
//!
//! A segment is a [header](put_header), then frames. The mac is over the segment's number, the frame's offset in it, and the
//! frame: so none can be changed, moved, left out or put into another segment. Sequences run through all segments without a gap.

use crate::clock::Timestamp;
use crate::codec::{Cursor, Malformed};
use crate::mac::{MAC_BYTES, MacKey};

/// What a segment begins with: its format. Another version has another one, and is refused by name.
pub const MAGIC: &[u8; 16] = b"cofferdam/1 log\n";
/// Where the first frame begins: behind the magic, the first sequence, and a mac over both.
pub const BEGIN: usize = MAGIC.len() + 8 + MAC_BYTES;
/// Length, tag, sequence, what was synced, time, fence, oldest segment.
const HEAD_BYTES: usize = 4 + 6 * 8;
/// A frame without facts.
pub const FRAME_BYTES: usize = HEAD_BYTES + MAC_BYTES;

/// What one turn says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn<'a> {
    pub at: Timestamp,
    /// The largest fence that was given.
    pub last_fence: u64,
    /// Segments before this one are not needed any more.
    pub oldest: u64,
    /// As [`facts`](super::facts) writes them.
    pub facts: &'a [u8],
}

/// A frame whose mac holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub sequence: u64,
    /// All frames up to this one were known to be on the disk when this one was written.
    pub synced: u64,
    pub turn: Turn<'a>,
    /// Bytes of all of it.
    pub length: usize,
}

/// Where frames stop that should not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub offset: usize,
    pub why: &'static str,
}

/// Writes a frame to the end of `out`, for this offset of this segment.
pub fn seal(
    key: &MacKey,
    segment: u64,
    offset: u64,
    sequence: u64,
    synced: u64,
    turn: &Turn,
    out: &mut Vec<u8>,
) {
    let begin = out.len();
    let length = HEAD_BYTES - 4 + turn.facts.len() + MAC_BYTES;
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&tag(key, segment));
    for number in [sequence, synced, turn.at.0, turn.last_fence, turn.oldest] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(turn.facts);
    let mac = key.sign(&[&segment.to_be_bytes(), &offset.to_be_bytes(), &out[begin..]]);
    out.extend_from_slice(&mac);
}

/// What each frame of a segment has behind its length. Nobody who submits a payload knows it, so none can have what looks like
/// frames, each of which would have to be verified where one is looked for.
fn tag(key: &MacKey, segment: u64) -> [u8; 8] {
    let mac = key.sign(&[b"tag", &segment.to_be_bytes()]);
    std::array::from_fn(|index| mac[index])
}

/// The bytes of what may be a frame, whose mac nobody has looked at.
fn outline(bytes: &[u8]) -> Option<&[u8]> {
    let length = usize::try_from(u32::from_be_bytes(*bytes.first_chunk()?)).ok()?.checked_add(4)?;
    bytes.get(..length).filter(|frame| frame.len() >= FRAME_BYTES)
}

/// The frame at this offset of a segment, if there is one that a key has signed for that place.
#[must_use]
pub fn open<'a>(keys: &[MacKey], segment: u64, bytes: &'a [u8], offset: usize) -> Option<Frame<'a>> {
    let frame = outline(bytes.get(offset..)?)?;
    let (signed, mac) = frame.split_last_chunk::<MAC_BYTES>()?;
    let place = (offset as u64).to_be_bytes();
    let parts: [&[u8]; 3] = [&segment.to_be_bytes(), &place, signed];
    keys.iter().find(|key| key.verify(&parts, mac))?;
    // Behind its length and tag.
    let mut fields = Cursor::new(signed.get(12..)?);
    let mut number = || fields.u64().ok();
    let (sequence, synced, at) = (number()?, number()?, Timestamp(number()?));
    let (last_fence, oldest) = (number()?, number()?);
    let turn = Turn { at, last_fence, oldest, facts: &signed[HEAD_BYTES..] };
    Some(Frame { sequence, synced, turn, length: frame.len() })
}

/// Writes what a segment begins with.
pub fn put_header(key: &MacKey, segment: u64, first: u64, out: &mut Vec<u8>) {
    let mac = key.sign(&[&segment.to_be_bytes(), MAGIC, &first.to_be_bytes()]);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&first.to_be_bytes());
    out.extend_from_slice(&mac);
}

/// The sequence of the first frame, if a key has signed this segment.
#[must_use]
pub fn open_header(keys: &[MacKey], segment: u64, bytes: &[u8]) -> Option<u64> {
    let (signed, mac) = bytes.first_chunk::<BEGIN>()?.split_last_chunk::<MAC_BYTES>()?;
    let first = signed.strip_prefix(MAGIC)?;
    let is_ours = keys.iter().any(|key| key.verify(&[&segment.to_be_bytes(), signed], mac));
    is_ours.then_some(u64::from_be_bytes(*first.first_chunk()?))
}

/// Reads a segment's frames in their order, the first of which has this sequence; says where they end, and the sequence that
/// would follow. What stands behind the end is judged by whoever knows what follows: see [`is_cut`].
///
/// # Errors
/// A frame does not follow the one before it, or `each` refuses it.
pub fn read(
    keys: &[MacKey],
    segment: u64,
    bytes: &[u8],
    first: u64,
    mut each: impl FnMut(&Frame) -> Result<(), Malformed>,
) -> Result<(usize, u64), Damage> {
    let (mut offset, mut next) = (BEGIN, first);
    while let Some(frame) = open(keys, segment, bytes, offset) {
        if next != frame.sequence {
            return Err(Damage { offset, why: "a frame is missing before this one" });
        }
        if each(&frame).is_err() {
            return Err(Damage { offset, why: "its facts cannot be read" });
        }
        (offset, next) = (offset + frame.length, next + 1);
    }
    Ok((offset, next))
}

/// True if the frame of this sequence, which should be at this offset, may never have been on the disk: a crash leaves such a
/// thing. One of which a later frame says that it was there is damaged.
#[must_use]
pub fn is_cut(keys: &[MacKey], segment: u64, bytes: &[u8], offset: usize, sequence: u64) -> bool {
    let tags: Vec<[u8; 8]> = keys.iter().map(|key| tag(key, segment)).collect();
    let is_witness = |at: usize| {
        let tag = bytes.get(at + 4..at + 12);
        let may_be = tag.is_some_and(|tag| tags.iter().any(|known| known == tag));
        let frame = if may_be { open(keys, segment, bytes, at) } else { None };
        frame.is_some_and(|frame| frame.sequence > sequence && frame.synced >= sequence)
    };
    !(offset..bytes.len()).any(is_witness)
}
