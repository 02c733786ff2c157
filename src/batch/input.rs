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
    /// Bytes read so far, of those that are not skipped.
    pub consumed: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Line {
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
        Ok(Lines::new(BufReader::with_capacity(BUFFER_BYTES, reader), size, max_bytes))
    }

    pub fn new(reader: BufReader<Box<dyn Read + Send>>, size: Option<u64>, max_bytes: usize) -> Lines {
        Lines { reader, size, max_bytes, consumed: 0 }
    }

    /// Passes over the first lines, as if the rest were all; false if there are fewer.
    pub fn skip(&mut self, count: u64, mut each: impl FnMut(&Line)) -> Result<bool> {
        for _ in 0..count {
            let line = self.next_line()?;
            if line == Line::End {
                return Ok(false);
            }
            each(&line);
        }
        self.size = self.size.map(|size| size.saturating_sub(std::mem::take(&mut self.consumed)));
        Ok(true)
    }

    /// True if the next line is here without waiting for the source.
    pub(super) fn has_buffered_line(&self) -> bool {
        self.reader.buffer().contains(&b'\n')
    }

    /// The next line, whatever the size of the buffer.
    pub fn next_line(&mut self) -> Result<Line> {
        let mut line = Vec::new();
        let most = self.max_bytes as u64 + 1;
        let mut read = self.reader.by_ref().take(most).read_until(b'\n', &mut line)?;
        let has_end = line.pop_if(|last| *last == b'\n').is_some();
        let is_too_long = !has_end && line.len() > self.max_bytes;
        if is_too_long {
            read += self.reader.skip_until(b'\n')?;
        }
        self.consumed += read as u64;
        Ok(match read {
            0 => Line::End,
            _ if is_too_long => Line::TooLong,
            _ => Line::Whole(line),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &'static [u8], capacity: usize) -> Vec<Line> {
        let reader = BufReader::with_capacity(capacity, Box::new(text) as Box<dyn Read + Send>);
        let mut lines = Lines::new(reader, None, 4);
        std::iter::from_fn(|| Some(lines.next_line().unwrap()).filter(|line| *line != Line::End)).collect()
    }

    #[test]
    fn lines_that_are_skipped_do_not_count() {
        let text = &b"ab\n\nabcde\nx"[..];
        for (count, next, consumed) in
            [(0, Line::Whole(b"ab".to_vec()), 3), (3, Line::Whole(b"x".to_vec()), 1)]
        {
            let mut lines = Lines::new(BufReader::new(Box::new(text)), Some(11), 4);
            assert!(lines.skip(count, |_| ()).unwrap());
            assert_eq!((lines.next_line().unwrap(), lines.consumed), (next, consumed));
        }
        let mut lines = Lines::new(BufReader::new(Box::new(text)), Some(11), 4);
        assert!(lines.skip(4, |_| ()).unwrap());
        assert_eq!((lines.next_line().unwrap(), lines.size), (Line::End, Some(0)));
        assert!(!Lines::new(BufReader::new(Box::new(text)), None, 4).skip(5, |_| ()).unwrap());
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
