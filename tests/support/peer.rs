//! The other implementation of the executor's end, beside a real service whose secret and port it knows.
//!
//! It guards the suite against a peer that nobody drives: it ends with its test, and what it says is waited for.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::program::{Folder, command};
use super::service::{Client, PATIENCE, Service, request, until};

pub const PYTHON: &str = "python3";
pub const IPC: &str = "runtime.platform.execution_ipc";
pub const ROOT: &str = "f0e1d2c3b4a5968778695a4b3c2d1e0ff0e1d2c3b4a5968778695a4b3c2d1e0f";
pub const LONG_SLEEP: &str = r#"{"ms":600000}"#;
pub const ONE_GROUP: &str =
    r#"runtime.platform.process_groups=[{"name":"main","workers":1,"handlers":["*"]}]"#;

pub fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer/cofferdam_peer.py")
}

/// A port that no outgoing connection takes meanwhile: those are above 32767.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(17);
    let mut ports = std::iter::repeat_with(|| {
        u16::try_from(20_000 + first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000)
            .expect("a port")
    });
    ports
        .by_ref()
        .take(10_000)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// A service whose secret and port the peer knows.
pub struct Known {
    pub service: Service,
    pub port: u16,
    pub folder: Folder,
    heartbeat_ms: u64,
}

impl Known {
    #[track_caller]
    pub fn start(program: &Path, heartbeat_ms: u64, more: &[&str]) -> Known {
        let (folder, port) = (Folder::new(), free_port());
        let secret = secret_file(&folder, "secret", ROOT);
        let mut sets = vec![
            format!("{IPC}.bind_port={port}"),
            format!("{IPC}.auth.secret_mode=static"),
            format!("{IPC}.auth.secret_file={}", secret.display()),
            format!("{IPC}.heartbeat_ms={heartbeat_ms}"),
        ];
        sets.extend(more.iter().map(|set| (*set).to_owned()));
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        Known { service: Service::of(program, &sets), port, folder, heartbeat_ms }
    }

    /// With the service's own executor busy in a sleep, whose id is the second.
    #[track_caller]
    pub fn busy(program: &Path, more: &[&str]) -> (Known, String) {
        let known = Known::start(program, 2_000, &[&[ONE_GROUP], more].concat());
        let sleep = known.occupy();
        (known, sleep)
    }

    /// Keeps the only worker of the service's own executor.
    #[track_caller]
    pub fn occupy(&self) -> String {
        let id = self.service.submit("/v1/jobs/sleep", &[], LONG_SLEEP);
        self.service.record_when(&id, "running");
        id
    }

    #[track_caller]
    pub fn peer(&self, more: &[&str]) -> Peer {
        let mut peer = self.stranger("main", ROOT, more);
        peer.expect("up");
        peer
    }

    /// One without manners, of the first group.
    #[track_caller]
    pub fn hostile(&self, more: &[&str]) -> Peer {
        let mut peer = self.start_peer(&script().with_file_name("hostile.py"), "main", ROOT, more);
        peer.expect("up");
        peer
    }

    /// A peer that says it is of the first group, with this group's secret, derived from this root.
    #[track_caller]
    pub fn stranger(&self, group: &str, root: &str, more: &[&str]) -> Peer {
        self.start_peer(&script(), group, root, more)
    }

    #[track_caller]
    fn start_peer(&self, script: &Path, group: &str, root: &str, more: &[&str]) -> Peer {
        let secret = secret_file(&self.folder, "peer-secret", root);
        let arguments = [
            script.display().to_string(),
            "executor".into(),
            format!("--port={}", self.port),
            format!("--secret-file={}", secret.display()),
            format!("--group={group}"),
            "--index=0".into(),
            format!("--heartbeat-ms={}", self.heartbeat_ms),
        ];
        Peer::start(arguments.into_iter().chain(more.iter().map(|word| (*word).to_owned())))
    }

    /// A caller that waits for its answer.
    pub fn caller(&self, target: &str, headers: &[&str], body: &str) -> Client {
        let mut client = self.service.connect();
        client.send(request("POST", target, headers, body));
        client
    }

    pub fn rejected(&self) -> Vec<(String, f64)> {
        let text = self.service.get("/metrics").text();
        let series =
            text.lines().filter_map(|line| line.strip_prefix("cofferdam_ipc_rejected_total{reason=\""));
        let found = series.filter_map(|line| line.split_once("\"} "));
        found.map(|(reason, count)| (reason.to_owned(), count.parse().expect("a count"))).collect()
    }

    /// One refusal of this reason more than before, and none of another.
    #[track_caller]
    pub fn counted(&self, before: &[(String, f64)], reason: &str) {
        assert!(before.iter().any(|(known, _)| known == reason), "{reason} is no series of {before:?}");
        let expected: Vec<(String, f64)> = before
            .iter()
            .map(|(of, count)| (of.clone(), count + f64::from(u8::from(of == reason))))
            .collect();
        until(&format!("one {reason} more than {before:?}"), PATIENCE, || {
            (self.rejected() == expected).then_some(())
        });
    }
}

pub fn secret_file(folder: &Folder, name: &str, root: &str) -> PathBuf {
    let path = folder.file(name, root);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("our own file");
    path
}

/// The other implementation, running.
pub struct Peer {
    child: Child,
    commands: ChildStdin,
    pub events: Receiver<Value>,
    /// Events that came while another one was waited for.
    pub kept: VecDeque<Value>,
}

impl Peer {
    #[track_caller]
    pub fn start(arguments: impl IntoIterator<Item = String>) -> Peer {
        let mut command =
            command(Path::new("/usr/bin/env"), [PYTHON.to_owned()].into_iter().chain(arguments));
        // A missing python3 fails the test: without it nothing here is tested.
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stderr(std::process::Stdio::inherit());
        let mut child = command.spawn().expect("env runs");
        let (sender, events) = channel();
        let stdout = child.stdout.take().expect("a pipe");
        std::thread::spawn(move || {
            BufReader::new(stdout)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(serde_json::from_str(&line).expect("an event is JSON")))
        });
        let commands = child.stdin.take().expect("a pipe");
        Peer { child, commands, events, kept: VecDeque::new() }
    }

    /// The next event that is no pong. Pongs do not prolong the wait.
    #[track_caller]
    pub fn next(&mut self) -> Value {
        self.next_within(PATIENCE)
    }

    #[track_caller]
    pub fn next_within(&mut self, patience: Duration) -> Value {
        if let Some(event) = self.kept.pop_front() {
            return event;
        }
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).expect("the peer says something: is there a python3?");
            if event["event"] != "pong" {
                return event;
            }
        }
    }

    /// The next event that is no pong, which must be this one.
    #[track_caller]
    pub fn expect(&mut self, event: &str) -> Value {
        let next = self.next();
        assert_eq!(next["event"], event, "{next}");
        next
    }

    #[track_caller]
    pub fn tell(&mut self, command: Value) {
        writeln!(self.commands, "{command}").expect("the peer listens");
    }

    /// From now on it takes so many leases at once.
    pub fn room(&mut self, level: u32) {
        self.tell(json!({"do": "room", "level": level}));
    }

    /// Answers the running job of a lease; says what was sent.
    #[track_caller]
    pub fn answer(&mut self, lease: &Value, outcome: Value) -> Value {
        let mut command = outcome;
        command["do"] = "answer".into();
        command["lease"] = lease["lease"].clone();
        self.tell(command);
        self.expect("answered")
    }

    /// The same, and the broker takes it: it says no `Fenced` before it says that all is in its books.
    #[track_caller]
    pub fn commit(&mut self, lease: &Value, outcome: Value) -> Value {
        let answered = self.answer(lease, outcome);
        self.tell(json!({"do": "settle"}));
        let mut early = VecDeque::new();
        loop {
            let event = self.next();
            match event["event"].as_str() {
                Some("settled") => break,
                // One that was on its way.
                Some("lease" | "cancel") => early.push_back(event),
                _ => panic!("{event} after {answered}"),
            }
        }
        self.kept.extend(early);
        answered
    }

    /// One lease, and no more room behind it.
    #[track_caller]
    pub fn take_run(&mut self) -> Value {
        self.room(1);
        let lease = self.expect("lease");
        self.room(0);
        self.expect("drain");
        lease
    }

    /// The same of one job with this delivery.
    #[track_caller]
    pub fn take(&mut self, delivery: u32) -> Value {
        let lease = self.take_run();
        is_of_one_job(&lease, delivery);
        lease
    }

    /// The next lease; it has one job with this delivery.
    #[track_caller]
    pub fn lease(&mut self, delivery: u32) -> Value {
        let lease = self.expect("lease");
        is_of_one_job(&lease, delivery);
        lease
    }
}

#[track_caller]
fn is_of_one_job(lease: &Value, delivery: u32) {
    let jobs = lease["jobs"].as_array().expect("a list");
    assert_eq!((jobs.len(), &jobs[0]["delivery"]), (1, &json!(delivery)), "{lease}");
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn succeeded(result: &str) -> Value {
    json!({"outcome": "succeeded", "result": result})
}

pub fn with_state(result: &str, state: Value) -> Value {
    json!({"outcome": "succeeded", "result": result, "state": state})
}
