//! `lanes`, `handlers`, `top`.

use std::io::IsTerminal;
use std::time::Duration;

use serde_json::Value;

use super::table::{cell, seconds, table};
use super::{Console, Stop, escaped, tell, width};
use crate::exit::Exit;
use crate::options::Options;

/// How often `top` looks.
const EVERY: Duration = Duration::from_secs(2);

pub fn lanes(console: &mut Console, options: &mut Options) -> Result<Exit, Stop> {
    let handler = options.positional().ok_or("lanes needs the name of a handler".to_owned())?;
    options.finish()?;
    let shown = console.client.json("GET", &format!("/v1/lanes/{}", escaped(&handler)), "")?;
    let row = |lane: &Value| {
        let why = [cell(&lane["reason"]), lane["until"].as_str().unwrap_or_default().to_owned()].join(" ");
        vec![
            cell(&lane["head"]),
            cell(&lane["ordering_key"]),
            cell(&lane["length"]),
            seconds(&lane["oldest_seconds"]),
            why,
        ]
    };
    let rows: Vec<_> = list(&shown["lanes"]).iter().map(row).collect();
    let more = if shown["more"] == true { "and more\n" } else { "" };
    Ok(console.show(&shown, || table("HEAD,KEY,JOBS,AGE,WHY", &rows, width()) + more))
}

pub fn handlers(console: &mut Console, options: &mut Options) -> Result<Exit, Stop> {
    let (what, name) = (options.positional(), options.positional());
    options.finish()?;
    match (what.as_deref(), name) {
        (Some("list"), None) => {
            let stats = console.client.json("GET", "/v1/stats", "")?;
            Ok(console.show(&stats["handlers"], || handler_table(&stats)))
        }
        (Some(what @ ("pause" | "resume")), Some(name)) => {
            let target = format!("/v1/handlers/{}/{what}", escaped(&name));
            let done = console.client.json("POST", &target, "")?;
            Ok(console.show(&done, || format!("{name} is {}\n", state(&done))))
        }
        _ => Err("handlers takes list, pause NAME or resume NAME".to_owned().into()),
    }
}

/// All at a glance, again and again where that can be seen.
pub fn top(console: &mut Console, options: &mut Options) -> Result<Exit, Stop> {
    options.finish()?;
    loop {
        let stats = console.client.json("GET", "/v1/stats", "")?;
        if console.as_json || !std::io::stdout().is_terminal() {
            return Ok(console.show(&stats, || overview(&stats)));
        }
        let text = overview(&stats);
        // Home, the text, and nothing of what stood below it (ECMA-48, CUP and ED).
        let lines: String = text.lines().map(|line| format!("{line}\x1b[K\n")).collect();
        tell(format!("\x1b[H{lines}\x1b[J").as_bytes())?;
        std::thread::sleep(EVERY);
    }
}

fn overview(stats: &Value) -> String {
    let totals = &stats["totals"];
    let count = |name: &str| cell(&totals[name]);
    let first = format!("cofferdam {} {}", cell(&stats["version"]), cell(&stats["profile"]));
    let second = match stats["backend_error"].as_str() {
        Some(why) => format!("the backend is away: {}", cell(&why.into())),
        None => format!(
            "{} queued, {} running, {} callers wait; {} submitted, {} dead, {} redelivered",
            count("queued"),
            count("running"),
            cell(&stats["waiters"]),
            count("submitted"),
            count("dead"),
            count("redelivered")
        ),
    };
    let group = |of: &Value| {
        let number = |name: &str| of[name].as_u64().unwrap_or(0);
        let all = number("workers") * number("executors");
        let sum = |of: &Value| {
            of.as_object().into_iter().flat_map(|map| map.values()).filter_map(Value::as_u64).sum::<u64>()
        };
        vec![
            cell(&of["name"]),
            cell(&of["executors"]),
            format!("{} of {all}", cell(&of["busy"])),
            sum(&of["restarts"]).to_string(),
            sum(&of["recycled"]).to_string(),
        ]
    };
    let groups: Vec<_> = list(&stats["groups"]).iter().map(group).collect();
    let groups = table("GROUP,EXECUTORS,BUSY,RESTARTS,RECYCLED", &groups, width());
    let cut = |line: String| line.chars().take(width()).collect::<String>();
    format!("{}\n{}\n\n{}\n{groups}", cut(first), cut(second), handler_table(stats))
}

fn handler_table(stats: &Value) -> String {
    let row = |of: &Value| {
        let ends = |name: &str| cell(&of["finished"][name]);
        vec![
            cell(&of["name"]),
            state(of).into(),
            cell(&of["queued"]),
            cell(&of["running"]),
            seconds(&of["oldest_seconds"]),
            ends("succeeded"),
            ends("failed"),
            ends("timed_out"),
            ends("dead"),
            cell(&of["parked"]),
            seconds(&of["job_seconds"]["p50"]),
            seconds(&of["job_seconds"]["p99"]),
        ]
    };
    let rows: Vec<_> = list(&stats["handlers"]).iter().map(row).collect();
    let heads = "HANDLER,STATE,QUEUED,RUNNING,LAG,OK,FAILED,TIMED OUT,DEAD,PARKED,P50,P99";
    table(heads, &rows, width())
}

fn state(of: &Value) -> &'static str {
    if of["paused"] == true { "paused" } else { "open" }
}

/// What is no list has nothing in it.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
