//! A batch that goes on: behind a number of lines; or with a journal, where it was.
//!
//! With a journal each line's job has an id that says which line it is, so that a line comes to its job whenever it is submitted
//! again. Of the output only those lines are believed that were on the disk when the last job that the journal knows was
//! submitted. Let that be line `last`, and B be `BATCH_LINES_BEHIND`.
//!
//! - *The output has the first `last - B` lines.* A line is submitted only while fewer than `BATCH_COMMAND_LINES` are in flight,
//!   and as few are written since the last sync; B is both together.
//! - *The journal has the record of each later line that was submitted.* `BATCH_RECORDS`, 2 B, are kept, in the order of their
//!   ends. When line `l > last - B` ended, the lines up to `l - B` were on the disk, so they had ended before. So at most those
//!   from `l - B` to `last` have ended since: fewer than 2 B.
//!
//! Both are true of each turn of the journal, whichever was the last one on the disk: a line is written once a turn says its end.

use std::collections::HashSet;
use std::path::Path;

use super::input::{Line, Lines};
use super::output::{Before, Output};
use super::{BatchError, BatchOptions, End, Resume, Summary};
use crate::config::SinkMode;
use crate::deployment::Backend;
use crate::job::JobId;
use crate::limits::BATCH_LINES_BEHIND;
use crate::ndjson::LineIds;
use crate::ports::{Filter, Viewer};

/// What a journal knows of a run.
pub struct Kept {
    ids: HashSet<JobId>,
    /// The number of the last line that has a job.
    last: u64,
    /// Those of the lines that come.
    pub next: LineIds,
    before: Before,
}

impl Kept {
    /// To be asked before any job runs.
    fn of(backend: &Backend, handler: &str) -> Result<Kept, BatchError> {
        let all = Filter { limit: usize::MAX, bare: true, ..Filter::default() };
        let listed = backend.producer.list(&Viewer::service(), &all);
        let records = listed.map_err(|error| BatchError::Failed(error.to_string()))?.records;
        let lines = records.iter().filter(|record| record.spec.one_line);
        let ids: HashSet<JobId> = lines.map(|record| record.spec.id).collect();
        let last = ids.iter().map(|id| LineIds::number(*id)).max().unwrap_or(0);
        Ok(Kept { ids, last, next: LineIds::new(handler), before: Before::default() })
    }

    /// Refuses a line that the run had otherwise.
    pub fn vet(&self, id: JobId) -> Result<(), BatchError> {
        let is_known = LineIds::number(id) > self.last || self.ids.contains(&id);
        if is_known { Ok(()) } else { Err(another(&format!("line {}", LineIds::number(id)))) }
    }

    /// What all runs came to, of which this is the last.
    pub fn total(&self, summary: Summary) -> Result<Summary, BatchError> {
        let Before { lines, failed, first_failed, .. } = self.before;
        let (done, failed) = (lines + summary.done, failed + summary.failed);
        if summary.end == End::All && done < self.last {
            return Err(another("the number of lines"));
        }
        Ok(Summary { done, failed, first_failed: first_failed.or(summary.first_failed), ..summary })
    }
}

fn another(what: &str) -> BatchError {
    let why = "the journal holds the run of another input, or by another handler";
    BatchError::Failed(format!("--resume: {why}: {what} is not as it was"))
}

/// Refuses what cannot be promised.
///
/// # Errors
/// It says why.
pub fn vet(options: &BatchOptions, mode: SinkMode, has_journal: bool) -> Result<(), BatchError> {
    let is_stream = options.output.as_deref().is_none_or(|path| path == Path::new("-"));
    let why = match options.resume {
        Some(Resume::Journal) if !has_journal => {
            "--resume: without a journal it needs LINES, those that are done"
        }
        _ if !has_journal => return Ok(()),
        Some(Resume::Lines(_)) => {
            "--resume: with a journal, which knows the lines that are done, it takes no LINES"
        }
        _ if is_stream => "--output: with a journal it is a file, which can be cut",
        _ if mode == SinkMode::Completion => {
            "--sink-mode: with a journal it is source_seq: no other says what is done"
        }
        _ => return Ok(()),
    };
    Err(BatchError::Usage(format!("{why} (runtime.platform.queue.journal)")))
}

/// Passes over the lines that are done, so many; also with what a journal keeps.
///
/// # Errors
/// There are fewer, the output is another one, or the journal does not hold what is asked for.
pub fn begin(
    options: &BatchOptions,
    journal: Option<&Backend>,
    lines: &mut Lines,
) -> Result<(u64, Output, Option<Kept>), BatchError> {
    let mut kept = journal.map(|backend| Kept::of(backend, &options.handler)).transpose()?;
    let done = match (options.resume, &kept) {
        (Some(Resume::Lines(lines)), _) => lines,
        (_, None) => 0,
        (None, Some(kept)) if kept.last > 0 => {
            let why = "the journal holds a run: --resume goes on with it, or choose another directory";
            return Err(BatchError::Usage(why.into()));
        }
        (_, Some(kept)) => kept.last.saturating_sub(BATCH_LINES_BEHIND),
    };
    let each = |line: &Line| {
        let whole = if let Line::Whole(bytes) = line { Some(&**bytes) } else { None };
        kept.iter_mut().for_each(|kept| _ = kept.next.next(whole));
    };
    let has_all =
        lines.skip(done, each).map_err(|error| BatchError::Failed(format!("the input: {error}")))?;
    let few = || BatchError::Usage(format!("--resume: the input has less than {done} lines"));
    if !has_all {
        return Err(kept.map_or_else(few, |_| another("the number of lines")));
    }
    let (output, before) = Output::open(options, kept.as_ref().map(|_| done))?;
    kept.iter_mut().for_each(|kept| kept.before = before);
    Ok((done, output, kept))
}
