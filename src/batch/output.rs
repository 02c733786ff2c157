//! The output: a line a line, to a file or to standard output. With a journal it is synced now and then, and gone on with where
//! that allows.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Result, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{BatchError, BatchOptions, Ran, Resume};
use crate::limits::BATCH_COMMAND_LINES;
use crate::problem::is_document_of_line;
use crate::process::hygiene;

const BUFFER_BYTES: usize = 256 << 10;

/// See the module.
pub struct Output {
    writer: BufWriter<Box<dyn Write>>,
    /// `Some` iff there is a journal.
    file: Option<File>,
    /// `Some` until the first line, if a journal is gone on with: what follows these bytes is written again.
    stands: Option<u64>,
    /// Lines since the last sync.
    unsynced: usize,
}

/// The lines that an output begins with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Before {
    pub lines: u64,
    bytes: u64,
    /// Those that are problem objects, and the number of the first.
    pub failed: u64,
    pub first_failed: Option<u64>,
}

impl Before {
    /// `None`: there are fewer.
    fn read(output: &File, lines: u64) -> Result<Option<Before>> {
        let mut before = Before { lines, ..Before::default() };
        let (mut reader, mut line) = (BufReader::with_capacity(BUFFER_BYTES, output), Vec::new());
        for number in 1..=lines {
            line.clear();
            before.bytes += reader.read_until(b'\n', &mut line)? as u64;
            if line.pop() != Some(b'\n') {
                return Ok(None);
            }
            if is_document_of_line(&line, number) {
                before.failed += 1;
                before.first_failed.get_or_insert(number);
            }
        }
        Ok(Some(before))
    }
}

impl Output {
    /// Not the input, which would be emptied. One that is gone on with must end with a whole line; or with a journal have the
    /// lines that stand, behind which it is cut.
    pub fn open(options: &BatchOptions, stand: Option<u64>) -> Ran<(Output, Before)> {
        let with_buffer = |output: Box<dyn Write>| Output {
            writer: BufWriter::with_capacity(BUFFER_BYTES, output),
            file: None,
            stands: None,
            unsynced: 0,
        };
        let Some(path) = options.output.as_deref().filter(|path| *path != Path::new("-")) else {
            return Ok((with_buffer(hygiene::data()), Before::default()));
        };
        let failed = |why: String| BatchError::Usage(format!("--output {}: {why}", path.display()));
        let io = |error: std::io::Error| failed(error.to_string());
        let file = |path: &Path| {
            let meta = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
            Some((meta.dev(), meta.ino(), meta.len()))
        };
        let there = file(path);
        if there.is_some() && options.input.as_deref().and_then(file) == there {
            return Err(failed("is the input".into()));
        }
        if stand.is_some() && there.is_none() && path.exists() {
            return Err(failed("with a journal it is a file".into()));
        }
        let goes_on = !matches!(options.resume, None | Some(Resume::Lines(0)));
        let mut open = File::options();
        open.create(true)
            .write(true)
            .truncate(!goes_on)
            .read(goes_on && (there.is_some() || stand.is_some()));
        let mut file = open.open(path).map_err(io)?;
        if let Some(lines) = stand {
            let few = || failed(format!("has not the first {lines} lines of this run, which were written"));
            let before = Before::read(&file, lines).map_err(io)?.ok_or_else(few)?;
            file.seek(SeekFrom::Start(before.bytes)).map_err(io)?;
            let writer = file.try_clone().map_err(io)?;
            let (file, stands) = (Some(file), Some(before.bytes));
            return Ok((Output { file, stands, ..with_buffer(Box::new(writer)) }, before));
        }
        if goes_on && there.is_some_and(|(.., size)| size > 0) {
            let mut last = [0];
            file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).map_err(io)?;
            if last != *b"\n" {
                return Err(failed(
                    "its last line is not whole: remove that, and --resume after the line before".into(),
                ));
            }
        }
        Ok((with_buffer(Box::new(file)), Before::default()))
    }

    pub fn write_line(&mut self, line: &[u8]) -> Result<()> {
        self.cut()?;
        self.writer.write_all(line)?;
        self.unsynced += 1;
        if self.unsynced < BATCH_COMMAND_LINES { Ok(()) } else { self.sync() }
    }

    fn cut(&mut self) -> Result<()> {
        let end = self.file.as_ref().zip(self.stands.take());
        end.map_or(Ok(()), |(file, bytes)| file.set_len(bytes))
    }

    pub fn flush(&mut self) -> Result<()> {
        self.writer.flush()
    }

    /// With a journal: these lines are all, and on the disk.
    pub fn sync(&mut self) -> Result<()> {
        self.unsynced = 0;
        self.cut()?;
        let Some(file) = &self.file else { return Ok(()) };
        self.writer.flush().and_then(|()| file.sync_data())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_a_journal_lines_are_written_out_at_the_latest_when_there_are_so_many() {
        let path = std::env::temp_dir().join(format!("cofferdam-output-{}", std::process::id()));
        std::fs::write(&path, "1\n2\n3\n").unwrap();
        let options = BatchOptions {
            handler: "x".into(),
            input: None,
            output: Some(path.clone()),
            sink_mode: None,
            shows_progress: false,
            resume: Some(Resume::Journal),
        };
        let bytes = || std::fs::metadata(&path).unwrap().len() as usize;
        assert!(Output::open(&options, Some(4)).is_err(), "it has fewer lines");
        let (mut output, before) = Output::open(&options, Some(1)).unwrap();
        assert_eq!((before.lines, before.bytes, bytes()), (1, 2, 6), "nothing is cut before there is a line");
        for unsynced in (1..BATCH_COMMAND_LINES).chain([0]).chain(1..BATCH_COMMAND_LINES).chain([0]) {
            output.write_line(b"x\n").unwrap();
            assert_eq!(output.unsynced, unsynced);
            assert!(bytes() > 2 || unsynced > 0);
        }
        assert_eq!(bytes(), 2 + 2 * 2 * BATCH_COMMAND_LINES);
        output.write_line(b"x\n").unwrap();
        output.sync().unwrap();
        assert_eq!(bytes(), 4 + 2 * 2 * BATCH_COMMAND_LINES);
        std::fs::remove_file(&path).unwrap();
    }
}
