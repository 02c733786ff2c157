//! `journal check`, `export` and `repair`: a journal's directory, read without a service. Nothing in it is changed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::secret::Secret;
use crate::exit::{Exit, answer, written_out};
use crate::job::JobStatus;
use crate::journal::facts::Job;
use crate::journal::scan::{Scan, name, scan};
use crate::journal::{Disk, Files, known_keys};
use crate::mac::MacKey;
use crate::process::hygiene::keep_secrets;
use crate::web::respond::{payload_json, record_json};

/// What does not verify is looked at again, so often and after so long.
const LOOKS: usize = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// What is asked of a journal.
pub enum Question {
    /// What is in it, and whether all of it is as it was written.
    Check,
    /// Its jobs, a line each.
    Export,
    /// A copy of it that ends at this offset of this segment, or of the last one.
    Repair { segment: Option<u64>, offset: usize },
}

/// Answers it. The secret's file is the deployment's, where that has one.
///
/// # Errors
/// It cannot be read, or is not as it was written.
pub fn journal(dir: &Path, secret_file: Option<&Path>, question: &Question) -> Result<Exit, String> {
    keep_secrets().map_err(|error| error.to_string())?;
    let secrets = secret_file.map(Secret::read_all).transpose()?.unwrap_or_default();
    let envelopes: Vec<Secret> = secrets.iter().map(Secret::envelope).collect();
    let dir = &dir.canonicalize().map_err(|error| format!("{}: {error}", dir.display()))?;
    Files::look(dir)?;
    let keys = known_keys(dir, &envelopes)?;
    let read = |dir: &Path| {
        let look = || scan(&mut Files::look(dir)?, &keys);
        let mut seen = look();
        // A service may be writing: what moves while nobody changes it is not damaged.
        for _ in 0..LOOKS {
            let Err(before) = &seen else { break };
            std::thread::sleep(LOOK_AGAIN);
            let again = look();
            if again.as_ref().err() == Some(before) {
                break;
            }
            seen = again;
        }
        seen.map_err(|why| format!("{}/{why}", dir.display()))
    };
    match question {
        Question::Check => Ok(answer(&summary(dir, &read(dir)?))),
        Question::Export => Ok(export(read(dir)?)),
        Question::Repair { segment, offset } => {
            let copy = repair(dir, *segment, *offset, &keys)?;
            let said = format!("{} ends there; {} is as it was\n", copy.display(), dir.display());
            Ok(answer(&(summary(&copy, &read(&copy)?) + &said)))
        }
    }
}

fn summary(dir: &Path, scan: &Scan) -> String {
    let mut out = format!("journal {}: every frame verifies\n", dir.display());
    for found in &scan.segments {
        let cut = if found.cut > 0 { "; behind that a frame that was cut off" } else { "" };
        let file = name(found.number);
        out += &format!("  {file}: {} frames, {} bytes{cut}\n", found.frames, found.end);
    }
    let image = &scan.image;
    for status in JobStatus::ALL {
        let count = image.jobs.values().filter(|job| job.record.status == status).count();
        out += &format!("  jobs {}: {count}\n", status.as_str());
    }
    let paused = image.paused.values().filter(|paused| **paused).count();
    let (maps, keys) = (image.maps.len(), image.keys.len());
    out +=
        &format!("  states and contexts: {maps}\n  idempotency keys: {keys}\n  paused handlers: {paused}\n");
    if !scan.segments.is_empty() {
        out += &format!("  last turn: {}\n", image.at);
    }
    out
}

fn export(scan: Scan) -> Exit {
    let mut jobs: Vec<Box<Job>> = scan.image.jobs.into_values().collect();
    jobs.sort_unstable_by_key(|job| (job.record.spec.submitted_at, job.order));
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let written = jobs.into_iter().try_for_each(|job| {
        let payload = job.payload.as_ref().map(payload_json);
        let record = record_json(&job.record);
        let fields = record.strip_suffix('}').unwrap_or(&record);
        writeln!(out, "{fields},\"payload\":{}}}", payload.as_ref().map_or("null", |payload| payload.get()))
    });
    written_out(written.and_then(|()| out.flush()))
}

/// Copies what stands before an offset; says where.
fn repair(dir: &Path, segment: Option<u64>, offset: usize, keys: &[MacKey]) -> Result<PathBuf, String> {
    let mut source = Files::look(dir)?;
    let names = source.list().map_err(|error| format!("{}: {error}", dir.display()))?;
    let last = names.iter().filter(|name| name.ends_with(".log")).max().cloned();
    let last = segment.map(name).or(last).ok_or_else(|| format!("{}: has no segments", dir.display()))?;
    let has = |bytes: Vec<u8>| offset <= bytes.len();
    if !names.contains(&last) || !source.read(&last).is_ok_and(has) {
        return Err(format!("{}/{last}: there is no byte {offset} of it", dir.display()));
    }
    let mut copy = dir.as_os_str().to_owned();
    copy.push(".repaired");
    let copy = PathBuf::from(copy);
    if copy.exists() {
        return Err(format!("{}: is there already", copy.display()));
    }
    let made = source.copy_until(&copy, &last, offset);
    let made = made.map_err(|error| format!("{}: {error}", copy.display()));
    let copied = made.and_then(|()| scan(&mut Files::look(&copy)?, keys));
    if let Err(why) = copied {
        let _ = std::fs::remove_dir_all(&copy);
        return Err(format!("no copy was made, since what stands before is not whole either: {why}"));
    }
    Ok(copy)
}
