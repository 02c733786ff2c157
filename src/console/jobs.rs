//! `jobs`: listed, shown, waited for, retried and cancelled, one or all that match.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::show::list;
use super::submit::{self, submit};
use super::table::{cell, table};
use super::{Console, Stop, Trouble, escaped};
use crate::exit::{Exit, answer, complain};
use crate::job::JobId;
use crate::options::Options;

/// Of a record, as `show` has them.
const FIELDS: &str = "id handler status waiting_for progress deliveries ordering_key trace_id submitted_at started_at \
                      finished_at result error";
/// Records of one request.
const PAGE_RECORDS: usize = 1_000;

/// Of a list, each record as it came.
#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    jobs: Vec<&'a RawValue>,
}

pub fn run(console: &mut Console, options: &mut Options) -> Result<Exit, Stop> {
    let what = options.positional().unwrap_or_default();
    match what.as_str() {
        "list" => list_jobs(console, options),
        "submit" => submit(console, options),
        "retry" | "cancel" => change(console, options, &what),
        "show" | "result" | "payload" | "wait" => {
            let ids = ids(options)?;
            match (what.as_str(), ids.as_slice()) {
                ("wait", ids) if !ids.is_empty() => wait_for_all(console, ids),
                ("show", [id]) => show(console, id),
                ("result" | "payload", [id]) => console.tell_bytes(id, &what),
                _ => Err(format!("jobs {what} needs the id of a job").into()),
            }
        }
        _ => Err("jobs takes list, show, submit, wait, result, payload, retry or cancel".to_owned().into()),
    }
}

/// The words that are left: ids, and no options.
fn ids(options: &mut Options) -> Result<Vec<String>, String> {
    let mut ids = Vec::new();
    while let Some(word) = options.positional() {
        if JobId::parse(&word).is_none() {
            return Err(format!("{word} is no id of a job: 32 hexadecimal digits"));
        }
        ids.push(word);
    }
    options.finish().map(|()| ids)
}

fn list_jobs(console: &mut Console, options: &mut Options) -> Result<Exit, Stop> {
    let mut query = String::new();
    for name in ["status", "handler", "key", "trace", "before"] {
        if let Some(value) = options.value(&format!("--{name}"))? {
            let _ = write!(query, "&{name}={}", escaped(&value));
        }
    }
    let limit = options.value("--limit")?.unwrap_or("20".into());
    let mut left: usize = limit.parse().map_err(|_| format!("--limit is a number, not {limit}"))?;
    options.finish()?;
    let (mut pages, mut after) = (Vec::new(), String::new());
    while left > 0 {
        let page = left.min(PAGE_RECORDS);
        let shown = console.client.json("GET", &format!("/v1/jobs?limit={page}&after={after}{query}"), "")?;
        left -= page;
        let next = shown.value["next"].as_str().map(escaped);
        pages.push(shown);
        match next {
            Some(next) => after = next,
            None => break,
        }
    }
    if console.as_json {
        let pages = pages.iter().filter_map(|page| serde_json::from_str::<Page>(&page.text).ok());
        let lines: String = pages.flat_map(|page| page.jobs).map(|job| format!("{job}\n")).collect();
        return Ok(answer(&lines));
    }
    let jobs: Vec<Value> = pages.iter().flat_map(|page| list(&page.value["jobs"])).cloned().collect();
    let columns = "ID=id,HANDLER=handler,STATUS=status,DELIVERIES=deliveries,SUBMITTED=submitted_at,\
                   FINISHED=finished_at,KEY=ordering_key";
    Ok(answer(&table(columns, &jobs)))
}

fn show(console: &mut Console, id: &str) -> Result<Exit, Stop> {
    let record = console.client.json("GET", &format!("/v1/jobs/{id}"), "")?;
    let columns = "STARTED=started_at,ENDED=ended_at,EXECUTOR=executor,OUTCOME=outcome";
    Ok(console.show(&record, |record| {
        let fields = FIELDS.split(' ').map(|name| format!("{name:13} {}\n", cell(&record[name])));
        let attempts = table(columns, list(&record["attempts"]));
        fields.chain(["\n".into(), attempts]).collect()
    }))
}

fn wait_for_all(console: &mut Console, ids: &[String]) -> Result<Exit, Stop> {
    let mut is_first = true;
    each(ids, |id| {
        let record = submit::wait(console, id, !std::mem::take(&mut is_first))?;
        console.tell_status(id, &record)?;
        Ok(record.value["status"] == "succeeded")
    })
}

/// What the service refuses of one job keeps nobody from the others; what may pass is for all of them.
fn each(ids: &[String], mut act: impl FnMut(&str) -> Result<bool, Stop>) -> Result<Exit, Stop> {
    let mut exit = Exit::Done;
    for id in ids {
        match act(id) {
            Ok(true) => continue,
            Ok(false) => {}
            Err(Stop::Trouble(Trouble { exit: Exit::Failed, why, passes: false })) => {
                complain(&format!("{id}: {why}"))
            }
            Err(stop) => return Err(stop),
        }
        exit = Exit::Failed;
    }
    Ok(exit)
}

/// `retry` and `cancel`: these jobs, or all that match.
fn change(console: &mut Console, options: &mut Options, what: &str) -> Result<Exit, Stop> {
    let mut body = json!({});
    for name in ["status", "handler", "key", "before"] {
        if let Some(value) = options.value(&format!("--{name}"))? {
            body[name] = value.into();
        }
    }
    let [all, counts, is_sure] = ["--all", "--dry-run", "--yes"].map(|name| options.flag(name));
    let ids = ids(options)?;
    let has_filter = body.as_object().is_some_and(|filter| !filter.is_empty());
    match (all || counts || has_filter, ids.is_empty()) {
        (false, false) => return change_each(console, &ids, what),
        (false, true) => {
            return Err(format!("jobs {what} needs ids, or --all and what they have in common").into());
        }
        (true, false) => return Err(format!("jobs {what} takes ids or a filter, not both").into()),
        (true, true) => {}
    }
    body["dry_run"] = (counts || !is_sure).into();
    let done = console.client.json("POST", &format!("/v1/jobs/{what}"), &body.to_string())?;
    let number = |name: &str| cell(&done.value[name]);
    let more = if done.value["more"] == true { ", and there are more" } else { "" };
    if !counts && !is_sure {
        complain(&format!("{} jobs match{more}: nothing was done; --yes does it", number("matched")));
        return Ok(Exit::Usage);
    }
    let text = match counts {
        true => format!("{} jobs match{more}\n", number("matched")),
        false => format!("{} of {} jobs: {what} done{more}\n", number("done"), number("matched")),
    };
    let exit = console.show(&done, |_| text);
    let is_whole = done.value["refused"].as_u64() == Some(0) && done.value["more"] == false;
    Ok(if is_whole || counts { exit } else { Exit::Failed })
}

fn change_each(console: &mut Console, ids: &[String], what: &str) -> Result<Exit, Stop> {
    each(ids, |id| {
        let (method, target) = match what {
            "retry" => ("POST", format!("/v1/jobs/{id}/retry")),
            _ => ("DELETE", format!("/v1/jobs/{id}")),
        };
        let reply = console.client.success(method, &target, &[], b"")?;
        let record = console.client.told_of_job(&reply)?;
        console.tell_status(id, &record)?;
        Ok(true)
    })
}
