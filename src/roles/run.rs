//! `run`: one job of one handler in this process, for who writes handlers: its result, or why there is none.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::deployment::Deployment;
use crate::execution::program;
use crate::execution::testing::{Trial, Tried};
use crate::exit::{Exit, complain, say};
use crate::handler::HandlerError;
use crate::job::Payload;
use crate::options::standard_input;
use crate::process::hygiene::{self, Signals, drain_bytes};

/// What `run` was told.
pub struct RunOptions {
    pub handler: String,
    /// A file, or `-`; `None`: standard input, unless that is a terminal.
    pub payload: Option<String>,
    pub key: Option<String>,
    /// A file with the lane's state, a JSON object of texts.
    pub state: Option<String>,
}

/// How often signals are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Beyond its handler's timeout: how long one that does not listen is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs it.
///
/// # Errors
/// What was asked for makes no sense.
pub fn run(deployment: &Deployment, options: &RunOptions) -> Result<Exit, String> {
    let name = &options.handler;
    let outfit = deployment.outfit(1, crate::bell::Bell::silent());
    let found = outfit.handlers.iter().find(|(spec, _)| *spec.name == **name).cloned();
    let (spec, code) = found.ok_or_else(|| format!("run: there is no handler {name}"))?;
    let bytes = payload(options.payload.as_deref())?;
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok();
    let payload = if is_json { Payload::json(bytes) } else { Payload::octets(bytes) };
    let key = spec.options.ordering.key(options.key.as_deref(), &payload.bytes);
    let key = key.map_err(|why| format!("run: {why}; --key says one"))?;
    let timeout = spec.options.timeout;
    let tell_progress = |text: &str| say(std::io::stderr(), &format!("progress: {text}\n"));
    let mut trial = Trial::of(spec, outfit.handlers, payload).telling(tell_progress);
    for (name, value) in options.state.as_deref().map(state).transpose()?.unwrap_or_default() {
        trial = trial.state(&name, value.into_bytes());
    }
    if let Some(key) = key {
        trial = trial.key(&key);
    }
    let io = |error: std::io::Error| format!("run: {error}");
    hygiene::set_data_apart("run").map_err(io)?;
    let mut signals = Signals::take().map_err(io)?;
    let stop = trial.stop();
    deployment.start_workers()?;
    let (ends, ended) = sync_channel(1);
    let handler = std::thread::Builder::new().name("worker-0".into());
    let work = move || {
        let _ = ends.send(trial.run(&*code));
        // Its programs end with this thread, and are asked first.
        while program::are_there() {
            std::thread::park();
        }
    };
    handler.spawn(work).map_err(io)?;
    // A program has a session of its own: what a terminal says to us it does not hear.
    let begun = Instant::now();
    let is_told = |signals: &mut Signals| drain_bytes(&mut signals.stop) > 0;
    let mut tried = Err(RecvTimeoutError::Timeout);
    while matches!(tried, Err(RecvTimeoutError::Timeout))
        && begun.elapsed() < timeout
        && !is_told(&mut signals)
    {
        tried = ended.recv_timeout(LOOK_EVERY.min(timeout.saturating_sub(begun.elapsed())));
    }
    if matches!(tried, Err(RecvTimeoutError::Timeout)) {
        stop.end();
        let late = ended.recv_timeout(stop.stops_within() + PATIENCE);
        tried = late.map(|tried| Tried { is_late: true, ..tried });
    }
    let exit = match tried {
        Ok(tried) => tell(&tried),
        Err(RecvTimeoutError::Timeout) => failed("stopped", "it ignores that its time is over"),
        Err(RecvTimeoutError::Disconnected) => failed("crashed", "the handler panicked"),
    };
    deployment.end_workers();
    hygiene::settle_prints();
    Ok(exit)
}

fn payload(file: Option<&str>) -> Result<Vec<u8>, String> {
    match file {
        None | Some("-") => standard_input(file.is_some()).map_err(|why| format!("run: {why}")),
        Some(file) => std::fs::read(file).map_err(|error| format!("run: --payload {file}: {error}")),
    }
}

fn state(file: &str) -> Result<BTreeMap<String, String>, String> {
    let text = std::fs::read(file).map_err(|error| format!("run: --state {file}: {error}"))?;
    serde_json::from_slice(&text)
        .map_err(|error| format!("run: --state {file}: a JSON object of texts: {error}"))
}

/// The result on standard output; what else it came to on standard error.
fn tell(tried: &Tried) -> Exit {
    let payload = match &tried.result {
        _ if tried.is_late => {
            let why = tried.result.as_ref().err().map(ToString::to_string).unwrap_or_default();
            return failed("stopped", &why);
        }
        Ok(payload) => payload,
        Err(error @ (HandlerError::Retry(_) | HandlerError::RetryAfter(..))) => {
            return failed("it asks to be tried again", &error.to_string());
        }
        Err(error @ HandlerError::Fail(_)) => return failed("failed", &error.to_string()),
        Err(error @ HandlerError::Crash(_)) => return failed("crashed", &error.to_string()),
    };
    let mut out = hygiene::data();
    let written = out.write_all(&payload.bytes).and_then(|()| match std::io::stdout().is_terminal() {
        true => out.write_all(b"\n"),
        false => Ok(()),
    });
    if let Err(error) = written.and_then(|()| out.flush()) {
        return failed("the result cannot be written", &error.to_string());
    }
    let texts = |map: &BTreeMap<String, Vec<u8>>| -> Value {
        map.iter().map(|(key, value)| (key.clone(), json!(String::from_utf8_lossy(value)))).collect()
    };
    let follow_ups = tried.follow_ups.iter().map(|job| {
        json!({
            "handler": *job.handler, "key": job.ordering_key.as_deref(), "delay_ms": crate::clock::millis(job.delay),
            "payload": String::from_utf8_lossy(&job.payload.bytes),
        })
    });
    let follow_ups: Vec<Value> = follow_ups.collect();
    if !(tried.state.is_empty() && tried.context.is_empty() && follow_ups.is_empty()) {
        let after = json!({
            "state": texts(&tried.state), "context": texts(&tried.context), "submit": follow_ups,
        });
        say(std::io::stderr(), &format!("{after}\n"));
    }
    Exit::Done
}

fn failed(word: &str, why: &str) -> Exit {
    complain(&format!("run: {word}: {why}"));
    Exit::Failed
}
