//! The service under test: an embedder whose handlers make a doubled or a lost effect visible.
//!
//! `count` (a lane a key) and `tally` (one lane) add one to their lane's state and say what it is now, with the
//! payload's `id`. An effect that took place twice, or not at all, leaves a gap or a number that was given twice.
//! `flaky` fails its first deliveries as its payload says, by `Retry` or by a panic. `poison` ends its process.

use std::process::ExitCode;

use cofferdam::{App, HandlerError, HandlerOptions, Job, JobContext, Payload, Retry};
use serde_json::{Value, json};

/// Whether this process is to be the service, not the tool that attacks it.
pub fn is_role(word: &str) -> bool {
    matches!(word, "serve" | "web" | "executor")
}

pub fn main() -> ExitCode {
    let retry = Some(Retry { base_ms: 20, max_ms: 100 });
    let poison = HandlerOptions { max_deliveries: Some(2), retry, ..HandlerOptions::default() };
    App::new()
        .handler_with("count", HandlerOptions::keyed("/key"), count)
        .handler_with("tally", HandlerOptions::serial(), count)
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
