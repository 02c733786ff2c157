//! `jobs submit`: one job, or each line of standard input; and waiting for one.

use std::io::BufRead;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::table::cell;
use super::{Console, Stop, escaped, tell};
use crate::exit::{Exit, answer, complain};
use crate::options::{Options, standard_input};

/// A service is asked again after so many seconds, and never sooner than after the pause.
const WAIT_SECONDS: u64 = 25;
const PAUSE: Duration = Duration::from_secs(1);

pub fn submit(console: &mut Console, options: &mut Options) -> Result<Exit, Stop> {
    let mut headers = vec!["Prefer: respond-async".to_owned()];
    headers.extend(header_of(options, "--key", "Ordering-Key")?);
    let own_key = header_of(options, "--idempotency-key", "Idempotency-Key")?;
    let delay = options.value("--delay-ms")?.map(|ms| format!("?delay_ms={}", escaped(&ms)));
    let [waits, by_line] = ["--wait", "--lines"].map(|name| options.flag(name));
    let handler = options.positional().ok_or("jobs submit needs the name of a handler".to_owned())?;
    let payload = options.positional();
    options.finish()?;
    let target = format!("/v1/jobs/{}{}", escaped(&handler), delay.unwrap_or_default());
    if by_line {
        return match payload.as_deref() {
            None | Some("-") if !waits => submit_lines(console, &target, &headers, own_key.as_ref()),
            _ => Err("--lines takes its jobs from standard input, and does not wait".to_owned().into()),
        };
    }
    headers.extend(own_key);
    let payload = match payload.as_deref() {
        Some(text) if text != "-" => text.as_bytes().to_vec(),
        of_input => standard_input(of_input.is_some())?,
    };
    let id = accepted(console, &target, &headers, &payload)?;
    if !waits {
        return Ok(answer(&said(console, &id)));
    }
    let record = wait(console, &id)?;
    if record["status"] != "succeeded" {
        complain(&format!("job {id} is {}: {}", cell(&record["status"]), cell(&record["error"]["detail"])));
        return Ok(Exit::Failed);
    }
    console.tell_bytes(&id, "result")
}

/// The header that an option asks for, if it is given.
fn header_of(options: &mut Options, option: &str, header: &str) -> Result<Option<String>, String> {
    let Some(value) = options.value(option)? else { return Ok(None) };
    if value.contains(|char: char| char.is_ascii_control()) {
        return Err(format!("{option}: a header has no control characters"));
    }
    Ok(Some(format!("{header}: {value}")))
}

/// The job's record, once it has ended.
pub fn wait(console: &mut Console, id: &str) -> Result<Value, Stop> {
    loop {
        let asked_at = Instant::now();
        let record = console.client.json("GET", &format!("/v1/jobs/{id}?wait={WAIT_SECONDS}"), "")?;
        if !record["finished_at"].is_null() {
            return Ok(record);
        }
        // A service may let nobody wait for long.
        std::thread::sleep(PAUSE.saturating_sub(asked_at.elapsed()));
    }
}

/// Each line is a job of its own, accepted before the next one is read. An idempotency key is followed by the line's
/// number: the same input again joins the jobs that there are, and submits the rest.
fn submit_lines(
    console: &mut Console,
    target: &str,
    headers: &[String],
    own_key: Option<&String>,
) -> Result<Exit, Stop> {
    for (line, number) in std::io::stdin().lock().split(b'\n').zip(1_u64..) {
        let line = line.map_err(|error| format!("standard input: {error}"))?;
        let own_key = own_key.map(|header| format!("{header}-{number}"));
        let headers: Vec<String> = headers.iter().cloned().chain(own_key).collect();
        let id = accepted(console, target, &headers, &line).inspect_err(|_| {
            complain(&format!("line {number} was not accepted, nor is any behind it"));
        })?;
        tell(said(console, &id).as_bytes())?;
    }
    Ok(Exit::Done)
}

fn said(console: &Console, id: &str) -> String {
    if console.as_json { format!("{}\n", serde_json::json!({ "id": id })) } else { format!("{id}\n") }
}

fn accepted(console: &mut Console, target: &str, headers: &[String], payload: &[u8]) -> Result<String, Stop> {
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(payload).is_ok();
    let kind = if is_json { "application/json" } else { "application/octet-stream" };
    let headers = [headers, &[format!("Content-Type: {kind}")]].concat();
    let reply = console.client.success("POST", target, &headers, payload)?;
    let accepted: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    Ok(cell(&accepted["id"]))
}
