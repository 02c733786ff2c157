//! `jobs submit`: one job, or each line of standard input; and waiting for one.

use std::io::BufRead;
use std::time::{Duration, Instant};

use super::table::cell;
use super::{Console, Stop, Told, escaped, tell};
use crate::exit::{Exit, answer, complain};
use crate::options::{Options, standard_input};

/// A service is asked again after so many seconds, and never sooner than after the pause.
const WAIT_SECONDS: u64 = 25;
const PAUSE: Duration = Duration::from_secs(1);
/// One that was there is waited for so long.
const AWAY: Duration = Duration::from_secs(60);

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
    // Whatever becomes of the waiting, the job is there.
    let is_told = |_: &Stop| complain(&format!("job {id} was accepted, and can be asked for by its id"));
    let Told { value: record, .. } = wait(console, &id, true).inspect_err(is_told)?;
    if record["status"] != "succeeded" {
        complain(&format!("job {id} is {}: {}", cell(&record["status"]), cell(&record["error"]["detail"])));
        return Ok(Exit::Failed);
    }
    console.tell_bytes(&id, "result").inspect_err(is_told)
}

/// The header that an option asks for, if it is given.
fn header_of(options: &mut Options, option: &str, header: &str) -> Result<Option<String>, String> {
    let Some(value) = options.value(option)? else { return Ok(None) };
    if value.contains(|char: char| char.is_ascii_control()) {
        return Err(format!("{option}: a header has no control characters"));
    }
    Ok(Some(format!("{header}: {value}")))
}

/// The job's record, once it has ended. A service that has been there is waited for, for a while: it may be restarting.
pub fn wait(console: &mut Console, id: &str, mut was_there: bool) -> Result<Told, Stop> {
    let mut away_since = None;
    loop {
        let asked_at = Instant::now();
        let target = format!("/v1/jobs/{id}?wait={WAIT_SECONDS}");
        let reply = console.client.success("GET", &target, &[], b"");
        match reply.and_then(|reply| console.client.told_of_job(&reply)) {
            Ok(record) if !record.value["finished_at"].is_null() => return Ok(record),
            Ok(_) => (was_there, away_since) = (true, None),
            Err(trouble) => {
                let since = *away_since.get_or_insert(asked_at);
                was_there |= trouble.exit == Exit::Failed;
                if !was_there || !trouble.passes || since.elapsed() > AWAY {
                    return Err(trouble.into());
                }
            }
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
    Ok(cell(&console.client.told_of_job(&reply)?.value["id"]))
}
