//! Lines of the input: up to `\n`, the last even without one, empty ones too; none is ever held whole beyond
//! its limit.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Result};
use std::path::Path;

/// An input line by line.
pub struct Lines {
    reader: BufReader<Box<dyn Read + Send>>,
    /// `Some` iff it is a regular file.
    pub(super) size: Option<u64>,
    max_bytes: usize,
    consumed: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Without its line break.
    Whole(Vec<u8>),
    /// Over the limit; it was skipped.
    TooLong,
    /// There are no more.
    End,
}

impl Lines {
    /// Opens a file, or standard input.
    pub fn open(path: Option<&Path>, max_bytes: usize) -> std::result::Result<Lines, String> {
        const BUFFER_BYTES: usize = 256 << 10;
        let (reader, size): (Box<dyn Read + Send>, _) = match path.filter(|path| *path != Path::new("-")) {
            None => (Box::new(std::io::stdin()), None),
            Some(path) => {
                let failed = |error| format!("--input {}: {error}", path.display());
                let file = File::open(path).map_err(failed)?;
                let meta = file.metadata().map_err(failed)?;
                if meta.is_dir() {
                    return Err(format!("--input {}: is a directory", path.display()));
                }
                (Box::new(file), meta.is_file().then_some(meta.len()))
            }
        };
        Ok(Lines { reader: BufReader::with_capacity(BUFFER_BYTES, reader), size, max_bytes, consumed: 0 })
    }

    /// Bytes read so far, for the progress bar.
    pub(super) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// True if the next line is here without waiting for the source.
    pub(super) fn has_buffered_line(&self) -> bool {
        self.reader.buffer().contains(&b'\n')
    }

    pub(super) fn next_line(&mut self) -> Result<Line> {
        let mut line = Vec::new();
        let mut too_long = false;
        let mut any = false;
        loop {
            let buffer = match self.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if buffer.is_empty() {
                break;
            }
            any = true;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let part = &buffer[..end.unwrap_or(buffer.len())];
            too_long |= line.len() + part.len() > self.max_bytes;
            if !too_long {
                line.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.consumed += used as u64;
            self.reader.consume(used);
            if end.is_some() {
                break;
            }
        }
        Ok(match (any, too_long) {
            (false, _) => Line::End,
            (true, true) => Line::TooLong,
            (true, false) => Line::Whole(line),
        })
    }
}

/// Whatever the buffer, lines are those of one split, and only the long ones are left out.
#[doc(hidden)]
pub fn fuzz_lines(bytes: &[u8]) {
    const MAX: usize = 8;
    let mut expected: Vec<Line> = bytes
        .split(|byte| *byte == b'\n')
        .map(|line| if line.len() > MAX { Line::TooLong } else { Line::Whole(line.to_vec()) })
        .collect();
    // What follows the last line break is a line only if there is something.
    expected.pop_if(|last| *last == Line::Whole(Vec::new()));
    for capacity in [1, 3, 64] {
        let source: Box<dyn Read + Send> = Box::new(std::io::Cursor::new(bytes.to_vec()));
        let reader = BufReader::with_capacity(capacity, source);
        let mut lines = Lines { reader, size: None, max_bytes: MAX, consumed: 0 };
        expected.iter().for_each(|line| assert!(lines.next_line().is_ok_and(|found| found == *line)));
        assert!(lines.next_line().is_ok_and(|end| end == Line::End));
        assert_eq!(lines.consumed(), bytes.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &'static [u8], capacity: usize) -> Vec<Line> {
        let reader = BufReader::with_capacity(capacity, Box::new(text) as Box<dyn Read + Send>);
        let mut lines = Lines { reader, size: None, max_bytes: 4, consumed: 0 };
        std::iter::from_fn(|| Some(lines.next_line().unwrap()).filter(|line| *line != Line::End)).collect()
    }

    #[test]
    fn lines_are_whole_whatever_the_buffer_and_long_ones_are_skipped() {
        let whole = |text: &[u8]| Line::Whole(text.to_vec());
        for capacity in [1, 2, 3, 64] {
            assert_eq!(all(b"", capacity), []);
            assert_eq!(all(b"\n", capacity), [whole(b"")]);
            assert_eq!(
                all(b"ab\n\r\n\nabcd\nabcde\nx", capacity),
                [whole(b"ab"), whole(b"\r"), whole(b""), whole(b"abcd"), Line::TooLong, whole(b"x")]
            );
        }
    }
}
