//! A closed-loop HTTP/1.1 load generator on one thread.
//!
//! Each of N keep-alive connections sends one request, waits for the whole answer, and sends the next. It
//! prints one JSON line. Three things that other generators hide are in it, because they are what a benchmark
//! of servers is fooled by:
//!
//! - connections that got no answer at all in the measured time (`starved_connections`), and how many of them
//!   the server had not even accepted (`unconnected_connections`);
//! - the longest wait of a request that was still unanswered at the end (`longest_pending_us`), which is in
//!   no percentile;
//! - answers that are not the request's body (`--check-echo`), and answers that are no success: neither
//!   counts as a request served.
//!
//! With `--any-status` the time to a refusal is what is asked for: each whole answer counts as served.
//!
//! With `--waiters N` each of N callers asks once, all of them at the same time, and the line says how each
//! was answered.
//!
//! It shares the machine with the servers that it measures, so a turn is one read and one write, and nothing
//! is allocated once the connections stand.
//!
//! In scope: loopback, one address, one fixed request. Not in scope: TLS, pipelining, open-loop load (a fixed
//! rate of arrivals).
#![forbid(unsafe_code)]

mod answer;
mod client;
mod histogram;

use client::{Client, Tally, Task};
use serde_json::{Map, Value, json};
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
usage: bench-load --url http://IP:PORT/PATH [--seconds S] [--method POST] [--body TEXT | --body-bytes N] [--async]
                  (--connections N [--warmup S] [--check-echo | --any-status] | --waiters N)";

/// Beyond this the ephemeral ports of one source address (28,232 by default) get short.
const CONNECTIONS_MAX: usize = 25_000;
/// Standard streams, the poll's own, and room to spare.
const OTHER_DESCRIPTORS: u64 = 32;
const SECONDS_MAX: f64 = 600.0;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(reason) => {
            eprintln!("{reason}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<Value> {
    allow_descriptors(options.connections as u64 + OTHER_DESCRIPTORS)?;
    let mut client = Client::new(options.target, options.request(), options.connections, options.task)?;
    match options.task {
        Task::Once => {
            client.run_for(options.measured)?;
            Ok(report_waiters(options, &client))
        }
        Task::Repeat | Task::RepeatAndCompare { .. } | Task::RepeatWhatever => {
            client.run_for(options.warmup)?;
            client.forget_tally();
            let elapsed = client.run_for(options.measured)?;
            Ok(report_load(options, &client, elapsed))
        }
    }
}

/// The soft limit on descriptors is often 1,024 where the hard one is far above.
fn allow_descriptors(needed: u64) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|maximum| maximum < needed) {
        return Err(io::Error::other(format!(
            "needs {needed} descriptors; the hard limit is {:?}",
            limit.maximum
        )));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: limit.maximum })?;
    Ok(())
}

fn report_load(options: &Options, client: &Client, elapsed: Duration) -> Value {
    let tally = client.tally();
    let answers = client.answers_by_connection();
    let starved = answers.clone().filter(|answers| *answers == 0).count();
    json!({
        "mode": "load",
        "connections": options.connections,
        "body_bytes": options.body.len(),
        "seconds": elapsed.as_secs_f64(),
        "requests": tally.served,
        "requests_per_second": (tally.served as f64 / elapsed.as_secs_f64()).round(),
        "p50_us": tally.latencies.percentile_us(50),
        "p90_us": tally.latencies.percentile_us(90),
        "p99_us": tally.latencies.percentile_us(99),
        "max_us": tally.latencies.max_us(),
        "longest_pending_us": client.longest_pending().map(|wait| wait.as_micros() as u64),
        "served_connections": options.connections - starved,
        "starved_connections": starved,
        "unconnected_connections": client.unconnected(),
        "answers_per_connection": {"min": answers.clone().min(), "max": answers.max()},
        "reconnects": tally.reconnects,
        "statuses": statuses(tally),
        "errors": errors(tally),
    })
}

fn report_waiters(options: &Options, client: &Client) -> Value {
    let tally = client.tally();
    json!({
        "mode": "waiters",
        "waiters": options.connections,
        "answered": tally.answered(),
        "peak_waiting": client.peak_waiting(),
        "unanswered": client.unanswered(),
        "connected_ms": client.asking_since().map(|since| since.as_millis() as u64),
        "seconds": client.last_end().as_secs_f64(),
        "p50_us": tally.latencies.percentile_us(50),
        "p99_us": tally.latencies.percentile_us(99),
        "max_us": tally.latencies.max_us(),
        "statuses": statuses(tally),
        "errors": errors(tally),
    })
}

fn statuses(tally: &Tally) -> Value {
    Value::Object(tally.statuses().map(|(status, count)| (status.to_string(), json!(count))).collect())
}

fn errors(tally: &Tally) -> Value {
    Value::Object(
        tally.failures().map(|(kind, count)| (kind.as_str().into(), json!(count))).collect::<Map<_, _>>(),
    )
}

struct Options {
    target: SocketAddr,
    path: String,
    method: String,
    body: Vec<u8>,
    /// Nobody waits for the job's end.
    is_async: bool,
    connections: usize,
    task: Task,
    measured: Duration,
    warmup: Duration,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let (mut url, mut method, mut body, mut body_bytes) = (None, "POST".to_string(), None, 120);
        let (mut connections, mut waiters) = (None, None);
        let (mut check_echo, mut any_status, mut is_async) = (false, false, false);
        let (mut measured, mut warmup) = (Duration::from_secs(3), Duration::ZERO);
        while let Some(name) = arguments.next() {
            match name.as_str() {
                "--check-echo" => check_echo = true,
                "--any-status" => any_status = true,
                "--async" => is_async = true,
                _ => {}
            }
            if matches!(name.as_str(), "--check-echo" | "--any-status" | "--async") {
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("{name}: a value is missing"))?;
            match name.as_str() {
                "--url" => url = Some(parse_url(&value)?),
                "--method" => method = value,
                "--body" => body = Some(value.into_bytes()),
                "--body-bytes" => body_bytes = parse_count(&name, &value, 8 << 20)?,
                "--connections" => connections = Some(parse_count(&name, &value, CONNECTIONS_MAX)?),
                "--waiters" => waiters = Some(parse_count(&name, &value, CONNECTIONS_MAX)?),
                "--seconds" => measured = parse_seconds(&name, &value)?,
                "--warmup" => warmup = parse_seconds(&name, &value)?,
                _ => return Err(format!("{name}: unknown option")),
            }
        }
        let (target, path) = url.ok_or("--url is missing")?;
        if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Err(format!("--method: not a method: {method}"));
        }
        let body = match body {
            Some(body) => body,
            None => json_of_length(body_bytes)?,
        };
        if check_echo && any_status {
            return Err("--check-echo and --any-status exclude each other".into());
        }
        let (connections, task) = match (connections, waiters) {
            (Some(connections), None) if any_status => (connections, Task::RepeatWhatever),
            (Some(connections), None) if check_echo => {
                (connections, Task::RepeatAndCompare { body_length: body.len() })
            }
            (Some(connections), None) => (connections, Task::Repeat),
            (None, Some(waiters)) => (waiters, Task::Once),
            _ => return Err("one of --connections and --waiters is needed".into()),
        };
        Ok(Options { target, path, method, body, is_async, connections, task, measured, warmup })
    }

    /// The bytes that every connection sends, every time.
    fn request(&self) -> Vec<u8> {
        let mut request = format!(
            "{} {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{}Content-Length: {}\r\n\r\n",
            self.method,
            self.path,
            self.target,
            if self.is_async { "Prefer: respond-async\r\n" } else { "" },
            self.body.len()
        )
        .into_bytes();
        request.extend_from_slice(&self.body);
        request
    }
}

fn parse_url(url: &str) -> Result<(SocketAddr, String), String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("--url: not http: {url}"))?;
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    let target: SocketAddr = authority.parse().map_err(|_| format!("--url: not IP:PORT: {authority}"))?;
    if !target.ip().is_loopback() {
        return Err(format!("--url: not loopback: {authority}"));
    }
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("--url: not a path: {path}"));
    }
    Ok((target, path.to_string()))
}

fn parse_count(name: &str, value: &str, most: usize) -> Result<usize, String> {
    match value.parse() {
        Ok(count) if (1..=most).contains(&count) => Ok(count),
        _ => Err(format!("{name}: got {value}; expected 1 to {most}")),
    }
}

fn parse_seconds(name: &str, value: &str) -> Result<Duration, String> {
    match value.parse() {
        Ok(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("{name}: got {value}; expected 0 to {SECONDS_MAX}")),
    }
}

/// A JSON object of exactly this many bytes.
fn json_of_length(length: usize) -> Result<Vec<u8>, String> {
    let frame = r#"{"pad":""}"#.len();
    let padding =
        length.checked_sub(frame).ok_or_else(|| format!("--body-bytes: expected {frame} or more"))?;
    Ok(format!(r#"{{"pad":"{}"}}"#, "x".repeat(padding)).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str) -> Result<Options, String> {
        Options::parse(arguments.split_whitespace().map(str::to_string))
    }

    #[test]
    fn the_body_is_json_of_the_length_asked_for() {
        for length in [10, 11, 120] {
            let body = json_of_length(length).unwrap();
            assert_eq!(body.len(), length);
            assert!(serde_json::from_slice::<Value>(&body).unwrap().is_object());
        }
        assert!(json_of_length(9).is_err());
    }

    #[test]
    fn a_request_carries_host_type_and_length() {
        let options = parse("--url http://127.0.0.1:80/v1/jobs/echo --connections 1 --body {}").unwrap();
        let expected = "POST /v1/jobs/echo HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\
                        Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(options.request(), expected.as_bytes());
        let asynchronous = "--url http://127.0.0.1:80/ --connections 1 --body {} --async";
        let bytes = parse(asynchronous).unwrap().request();
        assert!(String::from_utf8(bytes).unwrap().contains("\r\nPrefer: respond-async\r\n"));
    }

    #[test]
    fn bad_usage_is_refused() {
        for arguments in [
            "",
            "--connections 1",
            "--url http://127.0.0.1:80/",
            "--url http://127.0.0.1:80/ --connections 1 --waiters 1",
            "--url http://127.0.0.1:80/ --connections 0",
            "--url http://127.0.0.1:80/ --connections 25001",
            "--url http://127.0.0.1:80/ --connections 1 --seconds 601",
            "--url http://127.0.0.1:80/ --connections 1 --seconds NaN",
            "--url http://192.0.2.1:80/ --connections 1",
            "--url https://127.0.0.1:80/ --connections 1",
            "--url http://127.0.0.1:80/ --connections",
            "--url http://127.0.0.1:80/ --what 1",
            "--url http://127.0.0.1:80/ --connections 1 --check-echo --any-status",
        ] {
            assert!(parse(arguments).is_err(), "{arguments}");
        }
    }
}
