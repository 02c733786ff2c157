//! `POST /v1/jobs/retry` and `POST /v1/jobs/cancel`: the same to all jobs that match, counted first if that is asked for.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::respond::{Answer, Made};
use super::routes::Bulk;
use crate::clock::Timestamp;
use crate::job::{JobId, JobRecord, JobStatus};
use crate::limits::LIST_RECORDS;
use crate::ports::{Filter, Producer, Viewer};
use crate::problem::{Code, JobError};

/// Jobs at once; whoever has more of them asks again.
const MOST: usize = 10_000;
/// The same in time: the answer comes while its caller still waits.
const LONGEST: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    status: Option<String>,
    handler: Option<String>,
    key: Option<String>,
    before: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

/// Does it, or counts.
pub fn answer(
    bulk: Bulk,
    body: &[u8],
    viewer: &Viewer,
    producer: &dyn Producer,
    now: impl Fn() -> Timestamp,
) -> Made {
    // A list of its values is none.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(bad("the body is a JSON object"));
    }
    let asked = serde_json::from_slice::<Asked>(body);
    let Asked { status, handler, key, before, dry_run } = asked.map_err(|error| bad(error.to_string()))?;
    if [&status, &handler, &key, &before].iter().all(|given| given.is_none()) {
        return Err(bad("what matches everything is refused: give one of status, handler, key, before"));
    }
    let mut statuses = match bulk {
        Bulk::Retry => vec![JobStatus::Failed, JobStatus::Cancelled, JobStatus::TimedOut, JobStatus::Dead],
        Bulk::Cancel => vec![JobStatus::Queued, JobStatus::Running],
    };
    if let Some(status) = read(status, JobStatus::parse, "status is one of the job statuses")? {
        if !statuses.contains(&status) {
            return Err(bad(format!("this does not apply to jobs that are {}", status.as_str())));
        }
        statuses = vec![status];
    }
    const TIME: &str = "before is a time as records show it: 2026-01-31T09:00:00Z";
    let before = read(before, Timestamp::parse, TIME)?;
    let filter = Filter { statuses, handler, key, before, bare: true, ..Filter::default() };
    let (mut matched, mut more) = find(&filter, viewer, producer)?;
    if bulk == Bulk::Retry {
        // They come again in the order in which they came. What is cancelled goes from the end, so that nothing begins for it.
        matched.reverse();
    }
    let (mut done, mut refused, until) = (0, 0, now().plus(LONGEST));
    for id in matched.iter().filter(|_| !dry_run) {
        if now() > until {
            more = true;
            break;
        }
        let has_changed = match bulk {
            Bulk::Retry => producer.retry(viewer, *id).map(|retried| retried.is_some_and(|it| it.is_ok())),
            Bulk::Cancel => {
                let is_cancelled = |record: JobRecord| record.status == JobStatus::Cancelled;
                producer.cancel(viewer, *id).map(|record| record.is_some_and(is_cancelled))
            }
        };
        let has_changed = match has_changed {
            // What was done is told all the same.
            Err(_) if done > 0 => {
                more = true;
                break;
            }
            has_changed => has_changed?,
        };
        *if has_changed { &mut done } else { &mut refused } += 1;
    }
    let matched = matched.len();
    let body =
        json!({ "matched": matched, "done": done, "refused": refused, "more": more, "dry_run": dry_run });
    Ok(Answer::json(200, body.to_string()))
}

/// What matches now, newest first, and whether there is more than is taken at once.
fn find(filter: &Filter, viewer: &Viewer, producer: &dyn Producer) -> Result<(Vec<JobId>, bool), JobError> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = producer.list(viewer, &Filter { limit: LIST_RECORDS, after, ..filter.clone() })?;
        found.extend(page.records.iter().map(|record| record.spec.id));
        after = page.next;
        if after.is_none() || found.len() >= MOST {
            found.truncate(MOST);
            return Ok((found, after.is_some()));
        }
    }
}

/// What a text says, if there is one.
pub fn read<T>(
    text: Option<String>,
    parse: impl Fn(&str) -> Option<T>,
    detail: &str,
) -> Result<Option<T>, JobError> {
    text.map(|text| parse(&text).ok_or_else(|| bad(detail))).transpose()
}

fn bad(detail: impl Into<String>) -> JobError {
    JobError::new(Code::BadRequest, detail)
}
