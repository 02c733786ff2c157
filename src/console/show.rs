//! `lanes`, `handlers`, `top`.

use std::cmp::Reverse;
use std::time::Duration;

use serde_json::{Value, json};

use super::table::{cell, fitting, state, table};
use super::{Console, Stop, Told, escaped, tell};
use crate::exit::Exit;
use crate::options::Options;

/// How often `top` looks.
const EVERY: Duration = Duration::from_secs(2);
/// Where nothing has to fit a terminal.
const UNBOUNDED: usize = usize::MAX;

pub fn lanes(console: &mut Console, options: &mut Options) -> Result<Exit, Stop> {
    let handler = options.positional().ok_or("lanes needs the name of a handler".to_owned())?;
    options.finish()?;
    let shown = console.client.json("GET", &format!("/v1/lanes/{}", escaped(&handler)), "")?;
    let columns = "HEAD=head,KEY=ordering_key,JOBS=length,AGE=oldest_seconds,WHY=reason+until";
    let more = |shown: &Value| if shown["more"] == true { "and more\n" } else { "" };
    Ok(console.show(&shown, |shown| table(columns, list(&shown["lanes"])) + more(shown)))
}

pub fn handlers(console: &mut Console, options: &mut Options) -> Result<Exit, Stop> {
    let (what, name) = (options.positional(), options.positional());
    options.finish()?;
    match (what.as_deref(), name) {
        (Some("list"), None) => {
            let stats = console.client.json("GET", "/v1/stats", "")?;
            let handlers = stats.value["handlers"].to_string();
            Ok(console
                .show(&Told { text: handlers, ..stats }, |stats| handler_table(stats, UNBOUNDED, UNBOUNDED)))
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
        let Some((lines, width)) = screen().filter(|_| !console.as_json) else {
            return Ok(console.show(&stats, |stats| overview(stats, UNBOUNDED, UNBOUNDED)));
        };
        // Home, each line over what stood there, and nothing of what stood below (ECMA-48, CUP, EL and ED).
        let text = overview(&stats.value, lines, width);
        let cut = |line: &str| format!("\x1b[K{}\n", cut(line, width));
        let text: String = text.lines().take(lines - 1).map(cut).collect();
        tell(format!("\x1b[H{text}\x1b[J").as_bytes())?;
        std::thread::sleep(EVERY);
    }
}

/// Lines and columns of the terminal that standard output is.
fn screen() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    let or_unbounded = |size: u16| if size == 0 { UNBOUNDED } else { size.into() };
    Some((or_unbounded(size.ws_row), or_unbounded(size.ws_col)))
}

/// Words of a line that have room.
fn cut(line: &str, width: usize) -> &str {
    let Some((end, _)) = line.char_indices().nth(width) else { return line };
    let words = if line[end..].starts_with(' ') {
        &line[..end]
    } else {
        line[..end].rsplit_once(' ').map_or("", |(words, _)| words)
    };
    words.trim_end()
}

/// On so many lines, of which the last is left free.
fn overview(stats: &Value, lines: usize, width: usize) -> String {
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
            let numbers = of.as_object().into_iter().flat_map(|map| map.values()).filter_map(Value::as_u64);
            numbers.fold(0, u64::saturating_add)
        };
        json!({
            "name": of["name"], "executors": of["executors"], "busy": format!("{} of {all}", cell(&of["busy"])),
            "restarts": sum(&of["restarts"]), "recycled": sum(&of["recycled"]),
        })
    };
    let groups: Vec<Value> = list(&stats["groups"]).iter().map(group).collect();
    let columns = "GROUP=name,EXECUTORS=executors,BUSY=busy,RESTARTS=restarts,RECYCLED=recycled";
    // Beside the handlers and the groups: two lines, two heads, a blank line before each, and the free one.
    let room = lines.saturating_sub(groups.len() + 7);
    format!(
        "{first}\n{second}\n\n{}\n{}",
        handler_table(stats, room, width),
        fitting(columns, &groups, width)
    )
}

/// On so many lines, without the head: where some handlers have to be left out, those that have the least to do.
fn handler_table(stats: &Value, lines: usize, width: usize) -> String {
    let columns = "HANDLER=name,STATE=paused,QUEUED=queued,RUNNING=running,LAG=oldest_seconds,OK=finished/succeeded,\
                   FAILED=finished/failed,DEAD=finished/dead,P50=job_seconds/p50,P99=job_seconds/p99,\
                   TIMED OUT=finished/timed_out,PARKED=parked";
    let mut handlers = list(&stats["handlers"]).to_vec();
    let mut more = String::new();
    if handlers.len() > lines {
        let has = |of: &Value| ["queued", "running"].iter().filter_map(|name| of[name].as_u64()).max();
        handlers.sort_by_key(|of| Reverse(has(of)));
        more = format!("and {} more\n", handlers.split_off(lines.saturating_sub(1)).len());
    }
    fitting(columns, &handlers, width) + &more
}

/// What is no list has nothing in it.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
