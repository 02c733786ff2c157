//! The service under test: an embedder whose handlers make a doubled or a lost effect visible.
//!
//! `count` (a lane a key) and `tally` (one lane; a worker program, see [`TALLY`]) add one to their lane's state and say what it is now, with the
//! payload's `id`. An effect that took place twice, or not at all, leaves a gap or a number that was given twice.
//! `flaky` fails its first deliveries as its payload says, by `Retry` or by a panic. `poison` ends its process.

use std::process::ExitCode;

use cofferdam::execution::program::EXEC;
use cofferdam::{App, HandlerError, HandlerOptions, Job, JobContext, Payload, Retry};
use serde_json::{Value, json};

/// The program behind `tally`. A shell reads no JSON: it cuts out what it needs.
pub const TALLY: &str = r#"while IFS= read -r line; do
    id=${line#*'"id":"'} asked=${line#*'"payload":{"id":"'} n=${line##*'"n":"'}
    case $n in "$line") n=1 ;; *) n=$((${n%%'"'*} + 1)) ;; esac
    echo "{\"id\":\"${id%%'"'*}\",\"ok\":{\"id\":\"${asked%%'"'*}\",\"n\":$n},\"set\":{\"n\":\"$n\"}}"
done"#;

/// Processes with these words as their last ones.
pub fn with_words(last: &[String]) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let end: String = last.iter().map(|word| format!("{word}\0")).collect();
    let has = |pid: &u32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.ends_with(end.as_bytes()))
    };
    pids.filter(has).collect()
}

/// Whether this process is to be the service, not the tool that attacks it.
pub fn is_role(word: &str) -> bool {
    matches!(word, "serve" | "web" | "executor" | EXEC)
}

pub fn main() -> ExitCode {
    let retry = Some(Retry { base_ms: 20, max_ms: 100 });
    let poison = HandlerOptions { max_deliveries: Some(2), retry, ..HandlerOptions::default() };
    App::new()
        .handler_with("count", HandlerOptions::keyed("/key"), count)
        .handler_with("tally", HandlerOptions::serial(), |_: &Job, _: &mut JobContext| {
            Err(HandlerError::Fail("the configuration names a program".into()))
        })
        .handler("flaky", flaky)
        .handler_with("poison", poison, |_: &Job, _: &mut JobContext| std::process::abort())
        .main()
}

fn parsed(job: &Job) -> Result<Value, HandlerError> {
    serde_json::from_slice(&job.payload().bytes).map_err(|error| HandlerError::Fail(error.to_string()))
}

fn count(job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
    let said = parsed(job)?;
    let mut state = cx.state().ok_or_else(|| HandlerError::Fail("counting needs a lane".into()))?;
    let before = state.get("n").and_then(|n| std::str::from_utf8(n).ok()?.parse().ok()).unwrap_or(0_u64);
    state.set("n", (before + 1).to_string().into_bytes());
    Ok(Payload::json(json!({"id": said["id"], "n": before + 1}).to_string().into_bytes()))
}

fn flaky(job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
    let said = parsed(job)?;
    if u64::from(cx.delivery()) <= said["failures"].as_u64().unwrap_or(0) {
        assert!(said["panics"] != true, "a handler's panic, as asked for");
        return Err(HandlerError::Retry("not yet".into()));
    }
    Ok(Payload::json(json!({"id": said["id"]}).to_string().into_bytes()))
}
