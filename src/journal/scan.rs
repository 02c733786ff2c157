//! Reading a directory: every frame of every segment, in order, none left out.

use super::disk::Disk;
use super::facts::{self, Thing};
use super::frame::{self, BEGIN, Damage, MAGIC};
use super::image::Image;
use crate::mac::MacKey;

/// A segment as it was found.
#[derive(Debug, Default)]
pub struct Found {
    pub number: u64,
    pub frames: u64,
    /// Its size, and where its last frame ends.
    pub bytes: u64,
    pub end: usize,
    /// Bytes behind that which are no frame and not 0: what a crash has cut off.
    pub cut: usize,
    /// What its frames are bases of.
    pub bases: Vec<Thing>,
}

/// What a directory holds.
#[derive(Debug, Default)]
pub struct Scan {
    pub image: Image,
    pub segments: Vec<Found>,
    /// The sequence of the next frame.
    pub next: u64,
    /// Segments before this one are not needed.
    pub oldest: u64,
    /// The last segment, as far as its frames go.
    pub last: Vec<u8>,
}

/// The file of a segment.
#[must_use]
pub fn name(segment: u64) -> String {
    format!("{segment:012}.log")
}

fn number(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".log")?.parse().ok()?;
    (self::name(number) == name).then_some(number)
}

/// Reads all of it.
///
/// # Errors
/// Which file is not as it was written, where, and why; or it cannot be read.
pub fn scan(disk: &mut dyn Disk, keys: &[MacKey]) -> Result<Scan, String> {
    let names = disk.list().map_err(|error| error.to_string())?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| number(name)).collect();
    numbers.sort_unstable();
    let mut scan = Scan { next: 1, ..Scan::default() };
    for (index, segment) in numbers.iter().copied().enumerate() {
        let file = name(segment);
        if index > 0 && segment != numbers[index - 1] + 1 {
            return Err(format!("{}: is missing", name(segment - 1)));
        }
        let bytes = disk.read(&file).map_err(|error| format!("{file}: {error}"))?;
        let Some(first) = frame::open_header(keys, segment, &bytes) else {
            // The first one has its header before it has its name.
            let is_last = index > 0 && index + 1 == numbers.len();
            let is_cut = is_last && bytes.iter().skip(BEGIN).all(|byte| *byte == 0);
            if !is_cut {
                return Err(at(&file, 0, no_header(&bytes)));
            }
            // It was being made.
            let bytes = bytes.len() as u64;
            scan.segments.push(Found { number: segment, bytes, ..Found::default() });
            scan.last.clear();
            break;
        };
        if let Some(before) = scan.segments.last().filter(|_| first != scan.next) {
            return Err(at(&name(before.number), before.end, "a frame does not verify"));
        }
        scan.read(keys, segment, bytes, first).map_err(|Damage { offset, why }| at(&file, offset, why))?;
    }
    // Of all segments but the last one, the next one's header says that nothing is missing.
    if let Some(last) = scan.segments.last_mut().filter(|last| last.end > 0) {
        let rest = &scan.last[last.end..];
        last.cut = rest.iter().filter(|byte| **byte != 0).count();
        if last.cut > 0 && !frame::is_cut(keys, last.number, &scan.last, last.end, scan.next) {
            let file = name(last.number);
            return Err(at(&file, last.end, "a frame that was on the disk does not verify"));
        }
        scan.last.truncate(last.end);
    }
    if let Some(first) = numbers.first().filter(|first| **first > scan.oldest.max(1)) {
        return Err(format!("{}: is missing", name(first - 1)));
    }
    Ok(scan)
}

fn no_header(bytes: &[u8]) -> &'static str {
    match bytes.first_chunk::<{ MAGIC.len() }>() {
        Some(magic) if magic.starts_with(b"cofferdam/") && magic != MAGIC => {
            "it is of another version of the format"
        }
        Some(_) | None => "it is damaged, or signed with another secret",
    }
}

impl Scan {
    fn read(&mut self, keys: &[MacKey], segment: u64, bytes: Vec<u8>, first: u64) -> Result<(), Damage> {
        let (mut frames, mut bases) = (0, Vec::new());
        let read = frame::read(keys, segment, &bytes, first, |frame| {
            frames += 1;
            (self.oldest, self.image.at) = (frame.turn.oldest, frame.turn.at);
            self.image.last_fence = self.image.last_fence.max(frame.turn.last_fence);
            facts::read_all(frame.turn.facts, |fact| {
                bases.extend(fact.base());
                self.image.apply(fact);
                Ok(())
            })
        });
        let (end, next) = read?;
        self.segments.push(Found { number: segment, frames, bytes: bytes.len() as u64, end, cut: 0, bases });
        self.next = next;
        self.last = bytes;
        Ok(())
    }
}

fn at(file: &str, offset: usize, why: &str) -> String {
    format!("{file}: at byte {offset}: {why}")
}
