//! `lanes`, `handlers`, `top`.

use std::io::IsTerminal;
use std::time::Duration;

use serde_json::{Value, json};

use super::table::{cell, state, table};
use super::{Console, Stop, Told, escaped, tell, width};
use crate::exit::Exit;
use crate::options::Options;

/// How often `top` looks.
const EVERY: Duration = Duration::from_secs(2);

pub fn lanes(console: &mut Console, options: &mut Options) -> Result<Exit, Stop> {
    let handler = options.positional().ok_or("lanes needs the name of a handler".to_owned())?;
    options.finish()?;
    let shown = console.client.json("GET", &format!("/v1/lanes/{}", escaped(&handler)), "")?;
    let columns = "HEAD=head,KEY=ordering_key,JOBS=length,AGE=oldest_seconds,WHY=reason+until";
    let more = |shown: &Value| if shown["more"] == true { "and more\n" } else { "" };
    Ok(console.show(&shown, |shown| table(columns, list(&shown["lanes"]), width()) + more(shown)))
}

pub fn handlers(console: &mut Console, options: &mut Options) -> Result<Exit, Stop> {
    let (what, name) = (options.positional(), options.positional());
    options.finish()?;
    match (what.as_deref(), name) {
        (Some("list"), None) => {
            let stats = console.client.json("GET", "/v1/stats", "")?;
            let handlers = stats.value["handlers"].to_string();
            Ok(console.show(&Told { text: handlers, ..stats }, handler_table))
        }
        (Some(what @ ("pause" | "resume")), Some(name)) => {
            let target = format!("/v1/handlers/{}/{what}", escaped(&name));
            let done = console.client.json("POST", &target, "")?;
            Ok(console.show(&done, |done| format!("{name} is {}\n", state(&done["paused"]))))
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
            return Ok(console.show(&stats, overview));
        }
        let text = overview(&stats.value);
        // Home, the text, and nothing of what stood below it (ECMA-48, CUP and ED).
        let lines: String = text.lines().map(|line| format!("{line}\x1b[K\n")).collect();
        tell(format!("\x1b[H{lines}\x1b[J").as_bytes())?;
        std::thread::sleep(EVERY);
    }
}

fn overview(stats: &Value) -> String {
    let names = ["queued", "running", "submitted", "dead", "redelivered"];
    let [queued, running, submitted, dead, redelivered] = names.map(|name| cell(&stats["totals"][name]));
    let first = format!("cofferdam {} {}", cell(&stats["version"]), cell(&stats["profile"]));
    let second = match stats["backend_error"].as_str() {
        Some(why) => format!("the backend is away: {}", cell(&why.into())),
        None => format!(
            "{queued} queued, {running} running, {} callers wait; {submitted} submitted, {dead} dead, \
             {redelivered} redelivered",
            cell(&stats["waiters"])
        ),
    };
    let group = |of: &Value| {
        let number = |name: &str| of[name].as_u64().unwrap_or(0);
        let all = number("workers").saturating_mul(number("executors"));
        let sum = |of: &Value| {
            of.as_object().into_iter().flat_map(|map| map.values()).filter_map(Value::as_u64).sum::<u64>()
        };
        json!({
            "name": of["name"], "executors": of["executors"], "busy": format!("{} of {all}", cell(&of["busy"])),
            "restarts": sum(&of["restarts"]), "recycled": sum(&of["recycled"]),
        })
    };
    let groups: Vec<Value> = list(&stats["groups"]).iter().map(group).collect();
    let columns = "GROUP=name,EXECUTORS=executors,BUSY=busy,RESTARTS=restarts,RECYCLED=recycled";
    let groups = table(columns, &groups, width());
    let cut = |line: String| line.chars().take(width()).collect::<String>();
    format!("{}\n{}\n\n{}\n{groups}", cut(first), cut(second), handler_table(stats))
}

fn handler_table(stats: &Value) -> String {
    let columns = "HANDLER=name,STATE=paused,QUEUED=queued,RUNNING=running,LAG=oldest_seconds,OK=finished/succeeded,\
                   FAILED=finished/failed,TIMED OUT=finished/timed_out,DEAD=finished/dead,PARKED=parked,\
                   P50=job_seconds/p50,P99=job_seconds/p99";
    table(columns, list(&stats["handlers"]), width())
}

/// What is no list has nothing in it.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
