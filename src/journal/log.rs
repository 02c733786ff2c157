//! [`Log`]: segments over a [`Disk`]: turns are appended, what is dead is left behind, room is kept for what must still be said.
//!
//! Invariants: at most the frames after the last sync may be lost; a segment goes only once a frame that does not need it
//! is on the disk; the file that is written to was begun by this process, or copied by it, so that it relies on no sync
//! of another one, which may have failed.

use std::collections::{BTreeMap, HashMap};
use std::io::{Error, ErrorKind};

pub use super::disk::Failure;
use super::disk::{Disk, Sync};
use super::facts::Thing;
use super::frame::{self, BEGIN, FRAME_BYTES, Frame, Turn};
use super::image::Image;
use super::scan::{Scan, name, scan};
use crate::clock::Timestamp;
use crate::mac::MacKey;
use crate::negative_controls::{Control, is_off};

/// Space that is taken already: the next segment, for which there is room whatever happens.
const SPARE: &str = "spare";
/// A segment that is being copied.
const NEW: &str = "new";

/// Of the buffer for a frame.
const KEPT_BYTES: usize = 1 << 20;

/// Zeros are written so far ahead: a sync of bytes in space that was never written costs the file system one of its own books.
const AHEAD_BYTES: u64 = 128 << 10;

/// See the module.
pub struct Log {
    disk: Box<dyn Disk>,
    /// The first signs.
    keys: Vec<MacKey>,
    segment_bytes: u64,
    /// The first one that is there, the first one that is needed, and the one that is written to.
    first: u64,
    oldest: u64,
    segment: u64,
    offset: u64,
    /// Up to there it was written to.
    filled: u64,
    /// The next frame's, and that of the last one on the disk.
    next: u64,
    synced: u64,
    has_spare: bool,
    /// What has its base in a segment, and the segment's size.
    bases: BTreeMap<u64, (u64, Vec<Thing>)>,
    /// Where the last base is of what may have several.
    latest: HashMap<Thing, u64>,
    out: Vec<u8>,
}

impl Log {
    /// Reads what there is, and goes on behind it. Says what a crash has cut off, if anything.
    ///
    /// # Errors
    /// It cannot be read, is not as it was written, or there is no room to go on.
    pub fn open(
        mut disk: Box<dyn Disk>,
        keys: Vec<MacKey>,
        segment_bytes: u64,
    ) -> Result<(Log, Image, Option<String>), String> {
        let Scan { image, segments, next, oldest, last, .. } = scan(&mut *disk, &keys)?;
        let found = segments.last();
        let cut = found.filter(|found| found.cut > 0 || found.end == 0).map(|found| {
            let (file, end) = (name(found.number), found.end);
            format!("{file}: what follows byte {end} was being written when it ended, and is dropped")
        });
        let segment = found.map_or(1, |found| found.number);
        let mut log = Log {
            disk,
            keys,
            segment_bytes,
            first: segments.first().map_or(1, |found| found.number),
            oldest: oldest.max(1),
            segment,
            offset: BEGIN as u64,
            filled: 0,
            next,
            synced: next - 1,
            has_spare: false,
            bases: BTreeMap::new(),
            latest: HashMap::new(),
            out: Vec::new(),
        };
        for found in segments {
            log.bases.insert(found.number, (found.bytes, Vec::new()));
            log.add_bases(found.number, found.bases);
        }
        log.copy_last(segment, &last).map_err(|failure| match failure {
            Failure::NoRoom(why) => format!("there is no room to go on: {why}"),
            broken => broken.to_string(),
        })?;
        log.bases.entry(segment).or_default().0 = segment_bytes.max(log.offset);
        log.drop_old().and_then(|()| log.try_spare()).map_err(|failure| failure.to_string())?;
        Ok((log, image, cut))
    }

    /// What a crash has cut off stays behind, and so does what a sync that failed may have left in the kernel's memory alone.
    fn copy_last(&mut self, segment: u64, last: &[u8]) -> Result<(), Failure> {
        let first = frame::open_header(&self.keys, segment, last).unwrap_or(self.next);
        let mut out = Vec::with_capacity(last.len().max(BEGIN));
        frame::put_header(&self.keys[0], segment, first, &mut out);
        let mut offset = BEGIN;
        while let Some(frame) = frame::open(&self.keys, segment, last, offset) {
            let Frame { sequence, synced, turn, .. } = frame;
            frame::seal(&self.keys[0], segment, offset as u64, sequence, synced, &turn, &mut out);
            offset += frame.length;
        }
        (self.offset, self.filled) = (out.len() as u64, out.len() as u64);
        let (file, names) = (name(segment), self.disk.list()?);
        let has = |name: &str| names.iter().any(|there| there == name);
        // They may be of another size, or half made; and nothing that is left of one may take the segment's name.
        for left in [NEW, SPARE].into_iter().filter(|left| has(left)) {
            self.disk.remove(left)?;
            self.sync_names()?;
        }
        if let Err(error) = self.disk.make(NEW, self.segment_bytes.max(self.offset)) {
            return match failure(error) {
                // The same bytes once more: whatever becomes of that, what is there stays.
                Failure::NoRoom(_) if has(&file) && (out == last || last.is_empty()) => {
                    let rest = self.disk.read(&file)?.len().saturating_sub(out.len());
                    out.resize(out.len() + rest, 0);
                    self.disk.write(&file, 0, &out)?;
                    self.disk.sync(&file)?;
                    self.sync_names()
                }
                failure => Err(failure),
            };
        }
        self.disk.write(NEW, 0, &out).map_err(failure)?;
        self.disk.sync(NEW)?;
        self.disk.rename(NEW, &file)?;
        self.sync_names()
    }

    /// Writes what a turn says. What has a base in it is known from now on. After `NoRoom` the same turn may be tried again.
    ///
    /// # Errors
    /// It is not written.
    pub fn append(
        &mut self,
        at: Timestamp,
        last_fence: u64,
        facts: &[u8],
        bases: &mut Vec<Thing>,
    ) -> Result<(), Failure> {
        let length = (FRAME_BYTES + facts.len()) as u64;
        if self.offset > BEGIN as u64 && self.offset + length > self.segment_bytes {
            self.roll(BEGIN as u64 + length)?;
        }
        let end = self.offset + length;
        let turn = Turn { at, last_fence, oldest: self.oldest, facts };
        self.out.clear();
        frame::seal(&self.keys[0], self.segment, self.offset, self.next, self.synced, &turn, &mut self.out);
        if end > self.filled {
            let filled = end.next_multiple_of(AHEAD_BYTES).min(self.segment_bytes.max(end));
            self.out.resize(self.out.len() + (filled - end) as usize, 0);
        }
        self.disk.write(&name(self.segment), self.offset, &self.out).map_err(failure)?;
        self.filled = self.filled.max(self.offset + self.out.len() as u64);
        self.offset = end;
        self.next += 1;
        self.out.shrink_to(KEPT_BYTES);
        self.add_bases(self.segment, std::mem::take(bases));
        self.drop_old()
    }

    /// True if a turn of so many bytes is one write: no segment begins or goes with it.
    #[must_use]
    pub fn is_plain(&self, bytes: usize) -> bool {
        self.offset + (FRAME_BYTES + bytes) as u64 <= self.segment_bytes && self.first == self.oldest
    }

    /// All that was written is on the disk.
    ///
    /// # Errors
    /// It may not be, and nobody will ever know.
    pub fn sync(&mut self) -> Result<(), Failure> {
        let (sync, sequence) = self.to_sync()?;
        sync()?;
        self.synced = sequence;
        Ok(())
    }

    /// The same beside turns that are written meanwhile: once it is done, frames up to this one [are on the disk](Self::set_synced).
    ///
    /// # Errors
    /// The file is not there.
    pub fn to_sync(&mut self) -> Result<(Sync, u64), Failure> {
        let is_needless = self.is_synced() || is_off(Control::JournalSync);
        let sync =
            if is_needless { Ok(Box::new(|| Ok(())) as _) } else { self.disk.to_sync(&name(self.segment)) };
        Ok((sync?, self.next - 1))
    }

    /// Frames up to this one are on the disk.
    pub fn set_synced(&mut self, sequence: u64) {
        self.synced = sequence;
    }

    /// True if all that was written is on the disk.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced + 1 == self.next
    }

    /// Begins the next segment, for so many bytes at least.
    fn roll(&mut self, bytes: u64) -> Result<(), Failure> {
        self.sync()?;
        let next = name(self.segment + 1);
        if self.has_spare && bytes <= self.segment_bytes {
            self.disk.rename(SPARE, &next)?;
            self.has_spare = false;
        } else {
            self.disk.make(&next, self.segment_bytes.max(bytes)).map_err(failure)?;
        }
        self.out.clear();
        frame::put_header(&self.keys[0], self.segment + 1, self.next, &mut self.out);
        self.disk.write(&next, 0, &self.out)?;
        self.disk.sync(&next)?;
        self.sync_names()?;
        self.segment += 1;
        (self.offset, self.filled) = (BEGIN as u64, BEGIN as u64);
        self.bases.insert(self.segment, (self.segment_bytes.max(bytes), Vec::new()));
        self.try_spare()
    }

    /// Takes space for the next segment, if there is some.
    ///
    /// # Errors
    /// The disk cannot be relied on any more.
    pub fn try_spare(&mut self) -> Result<(), Failure> {
        if self.has_spare {
            return Ok(());
        }
        match self.disk.make(SPARE, self.segment_bytes).map_err(failure) {
            Err(Failure::NoRoom(_)) => return Ok(()),
            made => made?,
        }
        self.sync_names()?;
        self.has_spare = true;
        Ok(())
    }

    fn sync_names(&mut self) -> Result<(), Failure> {
        if is_off(Control::JournalNames) { Ok(()) } else { Ok(self.disk.sync_names()?) }
    }

    /// True while the next frame, whatever it says, leaves a segment behind.
    #[must_use]
    pub fn leaves_some(&self) -> bool {
        self.first < self.oldest
    }

    /// False while there is room for no more than what must still be said.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.has_spare
    }

    fn add_bases(&mut self, segment: u64, bases: Vec<Thing>) {
        let several = bases.iter().filter(|thing| matches!(thing, Thing::Map(_) | Thing::Paused(_)));
        self.latest.extend(several.map(|thing| (thing.clone(), segment)));
        self.bases.entry(segment).or_default().1.extend(bases);
    }

    /// A thing whose base keeps the oldest segment there, where `live` bytes are all that is not over: if it is not, the next
    /// turn must have a new base of it. `None`: nothing need be left behind.
    pub fn outdated(&mut self, live: u64) -> Option<Thing> {
        let factor = if self.has_spare { 2 } else { 1 };
        while self.oldest < self.segment {
            // Beside these there are the one that is written to, and the spare.
            let bytes: u64 = self.bases.range(..self.segment).map(|(_, (bytes, _))| bytes).sum();
            if bytes <= factor * live {
                return None;
            }
            let Some(thing) = self.bases.get_mut(&self.oldest).and_then(|(_, bases)| bases.pop()) else {
                // The frame of the next turn says so; then the file goes.
                self.bases.remove(&self.oldest);
                self.oldest += 1;
                continue;
            };
            match self.latest.get(&thing) {
                Some(segment) if *segment != self.oldest => {}
                Some(_) | None => {
                    self.latest.remove(&thing);
                    return Some(thing);
                }
            }
        }
        None
    }

    /// The thing that was told last is not written again now.
    pub fn keep(&mut self, thing: Thing) {
        self.add_bases(self.oldest, vec![thing]);
    }

    /// What may be written again in one turn: without a spare half of a segment is kept for ends.
    #[must_use]
    pub fn room(&self) -> u64 {
        let rest = self.segment_bytes.saturating_sub(self.offset);
        if self.has_spare { u64::MAX } else { rest.saturating_sub(self.segment_bytes / 2) }
    }

    /// Removes what no frame needs, once that is on the disk.
    fn drop_old(&mut self) -> Result<(), Failure> {
        while self.first < self.oldest {
            self.sync()?;
            self.disk.remove(&name(self.first))?;
            // One after the other: a crash leaves no gap.
            self.sync_names()?;
            self.first += 1;
        }
        Ok(())
    }
}

fn failure(error: Error) -> Failure {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Failure::NoRoom(error.to_string())
        }
        _ => error.into(),
    }
}
