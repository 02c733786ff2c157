//! Writes the spans of jobs that have ended to a file, on a thread of its own: the OTLP file format, a request a line.
//!
//! Nobody waits for it. It takes what has ended now and then, out of a bounded number that the broker keeps for it; what cannot
//! be written is dropped and counted.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::metrics::Counters;
use super::spans::{Resource, request};
use crate::entropy::Entropy;
use crate::job::{JobId, JobRecord};

/// With [`crate::limits::TRACED_ENDS`]: more than 60,000 jobs a second.
const EVERY: Duration = Duration::from_millis(250);
/// A collector reads lines of a megabyte at most: each of these has ten spans at most, of less than 2 KB each.
const JOBS_A_LINE: usize = 32;
/// The log hears of spans that are dropped so often at most.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// How long the last spans may take when the process ends.
const PATIENCE: Duration = Duration::from_secs(2);

/// The thread; dropping it writes what is left.
pub struct Exporter {
    stop: Option<Sender<()>>,
    done: Receiver<()>,
}

/// Takes what has ended since it was taken last, and how many of them were too many to be kept.
pub type Take = Box<dyn FnMut() -> (Vec<JobRecord>, u64) + Send>;

impl Exporter {
    /// Starts the thread.
    pub fn start(path: impl Into<PathBuf>, counters: Arc<Counters>, mut take: Take) -> io::Result<Exporter> {
        let (stop, stopped) = channel::<()>();
        let (ends, done) = channel::<()>();
        let instance = JobId(Entropy::system().bytes()).to_string();
        let resource = Resource { instance, pid: std::process::id() };
        let mut file = TraceFile { path: path.into(), open: None, said_at: None };
        std::thread::Builder::new().name("traces".into()).spawn(move || {
            loop {
                let is_over = stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout);
                let (records, lost) = take();
                counters.traces_dropped.fetch_add(lost, Ordering::Relaxed);
                for some in records.chunks(JOBS_A_LINE) {
                    let is_written = file.append(&request(&resource, some));
                    let counter =
                        if is_written { &counters.traces_written } else { &counters.traces_dropped };
                    counter.fetch_add(some.len() as u64, Ordering::Relaxed);
                }
                if is_over {
                    break;
                }
            }
            // The broker, which this may be the last to have, ends before it is said.
            drop(take);
            drop(ends);
        })?;
        Ok(Exporter { stop: Some(stop), done })
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.stop = None;
        // A disk that hangs is not waited for.
        let _ = self.done.recv_timeout(PATIENCE);
    }
}

/// Opens the file, so that a service that cannot have it does not start.
///
/// # Errors
/// It cannot be written, or is no file.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
    // A pipe or a terminal may take its time.
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("this is no regular file")) }
}

struct TraceFile {
    path: PathBuf,
    open: Option<File>,
    /// When the log was told last that a line was not written.
    said_at: Option<Instant>,
}

impl TraceFile {
    /// Writes a line; false: it was not written.
    fn append(&mut self, line: &str) -> bool {
        let written = self.current().and_then(|mut file| {
            let before = file.metadata()?.len();
            // What there is of a line is no line.
            file.write_all(line.as_bytes()).inspect_err(|_| _ = file.set_len(before))
        });
        if let Err(why) = &written
            && self.said_at.is_none_or(|at| at.elapsed() >= SAY_EVERY)
        {
            self.said_at = Some(Instant::now());
            log::warn!("spans are dropped: {}: {why}", self.path.display());
        }
        written.is_ok()
    }

    /// The file of this name: another one once somebody has moved it away.
    fn current(&mut self) -> io::Result<&File> {
        let id = |of: Metadata| (of.dev(), of.ino());
        let named = std::fs::metadata(&self.path).ok().map(id);
        let open = self.open.take().filter(|file| named.is_some() && file.metadata().ok().map(id) == named);
        let file = open.map_or_else(|| self::open(&self.path), Ok)?;
        Ok(self.open.insert(file))
    }
}
