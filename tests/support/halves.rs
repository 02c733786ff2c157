//! Web and executors of the real binary with this test as their supervisor, so that a test says where the channel is.
//!
//! It guards the suite against processes that outlive their test: each one is killed by its pid when its [`Half`] is
//! dropped, also by a panic. The bundles are made with the library's own types, as the supervisor makes them.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};

use cofferdam::channel::Reject;
use cofferdam::channel::keys::GroupSecret;
use cofferdam::clock::Clock;
use cofferdam::config::secret::Secret;
use cofferdam::config::{Source, load};
use cofferdam::deployment::{Deployment, own_options};
use cofferdam::execution::builtin;
use cofferdam::process::control_socket::Bundle;
use cofferdam::process::control_socket::{ToChild, ToParent, decode, encode, split};
use cofferdam::process::private_dir::PrivateDir;
use serde_json::Value;

use super::program::cofferdam;
use super::service::{Answer, Client, PATIENCE, until};

/// What every test of two halves sets: lines that a test can read, and no job that is given up.
const SETS: [&str; 2] = ["observability.log=json", "runtime.platform.queue.max_deliveries=1000000"];

/// One child of ours.
pub struct Half {
    child: Child,
    pub pid: u32,
    control: UnixStream,
    ready: Receiver<String>,
    stderr: Arc<Mutex<Vec<u8>>>,
}

impl Half {
    /// `cofferdam ROLE --supervised` with this bundle.
    #[track_caller]
    fn start(role: &str, bundle: &Bundle, listener: Option<&TcpListener>) -> Half {
        let (control, child) = half_without_bundle(role, listener);
        let mut half = Half::around(child, control);
        half.control.write_all(&bundle.encode()).expect("it reads its bundle");
        half
    }

    fn around(mut child: Child, control: UnixStream) -> Half {
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let (mut pipe, into) = (child.stderr.take().expect("it is piped"), stderr.clone());
        std::thread::spawn(move || {
            let mut part = [0; 4_096];
            while let Ok(read @ 1..) = pipe.read(&mut part) {
                into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&part[..read]);
            }
        });
        let (said, ready) = channel();
        let mut words = control.try_clone().expect("a socket");
        std::thread::spawn(move || {
            let (mut input, mut part) = (Vec::new(), [0; 4_096]);
            while let Ok(read @ 1..) = words.read(&mut part) {
                input.extend_from_slice(&part[..read]);
                while let Ok(Some((body, length))) = split(&input) {
                    if let Ok(ToParent::Ready(address)) = decode(body) {
                        let _ = said.send(address);
                    }
                    input.drain(..length);
                }
            }
        });
        Half { pid: child.id(), child, control, ready, stderr }
    }

    /// Waits until it says that it serves; web says where the channel listens.
    #[track_caller]
    pub fn ready(&self) -> String {
        self.ready.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("it is not ready: {}", self.stderr()))
    }

    pub fn tell(&mut self, message: &ToChild) {
        // One that has ended is seen by whoever waits for what was asked.
        let _ = self.control.write_all(&encode(message));
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Codes of the `ipc.rejected` events that it has written.
    pub fn refusals(&self) -> Vec<String> {
        let text = self.stderr();
        // Before each of its lines stands the mark of its own log.
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        let events = lines.filter_map(|(_, line)| serde_json::from_str::<Value>(line).ok());
        let refused = events.filter(|event| event["event"] == "ipc.rejected");
        refused.map(|event| event["code"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Resident memory in KiB, from `/proc`.
    #[track_caller]
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// `kill -9`, and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let text = self.stderr();
            let last: Vec<&str> = text.lines().rev().take(20).collect();
            println!("the last lines of {}, newest first:\n{}", self.pid, last.join("\n"));
        }
    }
}

/// A child whose bundle is not sent yet, and our end of its control socket.
#[track_caller]
pub fn half_without_bundle(role: &str, listener: Option<&TcpListener>) -> (UnixStream, Child) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let stdout = match listener {
        Some(listener) => Stdio::from(OwnedFd::from(listener.try_clone().expect("a listener"))),
        None => Stdio::null(),
    };
    // The command keeps the child's end of the pair until it is dropped, which is here.
    let child = Command::new(cofferdam())
        .args([role, "--supervised"])
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary can be started");
    (ours, child)
}

/// A public listener as the supervisor makes it.
pub fn listener() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    listener
}

/// A running web process, and what its executors need.
pub struct Halves {
    pub web: Half,
    pub http: SocketAddr,
    pub channel: SocketAddr,
    deployment: Deployment,
    root: Secret,
    _sockets: PrivateDir,
}

impl Halves {
    /// Web with these `PATH=VALUE`s; no executor yet.
    #[track_caller]
    pub fn start(sets: &[&str]) -> Halves {
        let sets = SETS.iter().chain(sets).map(|set| (*set).to_owned()).collect();
        let registry = builtin::registry();
        let loaded = load(&Source { sets, ..Source::default() }, &own_options(&registry));
        let deployment = Deployment::new(&loaded.expect("a valid config"), &registry, Clock::system());
        let root = Secret::generate().expect("randomness");
        let sockets = PrivateDir::make().expect("a place for the private socket");
        let listener = listener();
        let bundle = deployment.web_bundle(std::slice::from_ref(&root), sockets.path());
        let web = Half::start("web", &bundle, Some(&listener));
        let channel = web.ready().parse().expect("an address");
        let http = listener.local_addr().expect("an address");
        Halves { web, http, channel, deployment, root, _sockets: sockets }
    }

    /// An executor of the group with this index that takes the broker to be at this address.
    #[track_caller]
    pub fn executor(&self, group: usize, address: SocketAddr) -> Half {
        let bundle = self.deployment.executor_bundle(&self.root, group);
        let mut half = Half::start("executor", &bundle, None);
        half.tell(&ToChild::Channel(address.to_string()));
        half
    }

    pub fn secret(&self, group: usize) -> GroupSecret {
        GroupSecret::derive(&self.root, &self.deployment.groups()[group])
    }

    /// The root secret and those of all groups, as bytes and as text, for a search.
    pub fn secrets(&self) -> Vec<Vec<u8>> {
        let groups = (0..self.deployment.groups().len()).map(|group| *self.secret(group).expose());
        let raw = std::iter::once(*self.root.expose()).chain(groups);
        raw.flat_map(|secret| {
            let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
            [secret.to_vec(), hex.into_bytes()]
        })
        .collect()
    }

    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::to(self.http)
    }

    /// One request with a body on a connection of its own.
    #[track_caller]
    pub fn post(&self, target: &str, body: impl AsRef<[u8]>) -> Answer {
        self.connect().request("POST", target, &[], body)
    }

    /// Every line of `/metrics` by its name and labels, without the prefix.
    #[track_caller]
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let answer = self.connect().request("GET", "/metrics", &[], b"");
        assert_eq!(answer.status, 200, "{answer:?}");
        let text = answer.text();
        let lines = text.lines().filter_map(|line| line.strip_prefix("cofferdam_")?.rsplit_once(' '));
        lines.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
    }

    /// What web has refused so far, by reason; reasons that did not occur are left out.
    #[track_caller]
    pub fn rejected(&self) -> BTreeMap<&'static str, u64> {
        let metrics = self.metrics();
        let count = |reason: &str| metrics[&format!("ipc_rejected_total{{reason=\"{reason}\"}}")] as u64;
        let all = Reject::ALL.into_iter().map(|reason| (reason.as_str(), count(reason.as_str())));
        all.filter(|(_, count)| *count > 0).collect()
    }

    /// Waits until web has refused exactly this since its start: the socket is closed before the count can be read.
    #[track_caller]
    pub fn has_rejected(&self, what: &str, expected: &[(Reject, u64)]) {
        let mut sums = BTreeMap::new();
        for (reason, count) in expected.iter().filter(|(_, count)| *count > 0) {
            *sums.entry(reason.as_str()).or_insert(0) += count;
        }
        let end = std::time::Instant::now() + PATIENCE;
        let counted = until(what, PATIENCE * 2, || {
            let counted = self.rejected();
            (counted == sums || std::time::Instant::now() > end).then_some(counted)
        });
        assert_eq!(counted, sums, "{what}");
    }

    /// A job passes through both processes, whatever happened before.
    #[track_caller]
    pub fn serves(&self) {
        let answer = self.post("/v1/jobs/echo", "does it serve?");
        assert_eq!((answer.status, answer.text().as_str()), (200, "does it serve?"), "{answer:?}");
    }

    /// No log line of web and these holds a secret or one of these payloads; a refusal's line holds its code alone.
    #[track_caller]
    pub fn logs_tell_nothing(&self, others: &[&Half], payloads: &[&str]) {
        let payloads = payloads.iter().map(|payload| payload.as_bytes().to_vec());
        let forbidden: Vec<Vec<u8>> = self.secrets().into_iter().chain(payloads).collect();
        for half in std::iter::once(&self.web).chain(others.iter().copied()) {
            let log = half.stderr();
            for line in log.lines() {
                let holds = |part: &Vec<u8>| line.as_bytes().windows(part.len()).any(|window| window == part);
                assert!(!forbidden.iter().any(holds), "a secret or a payload: {line}");
                let Ok(Value::Object(event)) = serde_json::from_str(line) else { continue };
                if event["event"] == "ipc.rejected" {
                    let fields: Vec<&str> = event.keys().map(String::as_str).collect();
                    assert_eq!(fields, ["code", "event", "level", "pid", "process", "ts"], "{line}");
                }
            }
        }
    }

    /// Every accepted job has its terminal status, and no reply came twice.
    #[track_caller]
    pub fn is_settled(&self) {
        let sum = |metrics: &BTreeMap<String, f64>, family: &str| -> f64 {
            metrics.iter().filter(|(name, _)| name.starts_with(family)).map(|(_, value)| value).sum()
        };
        until("every job has ended", PATIENCE, || {
            let metrics = self.metrics();
            let [submitted, finished] =
                ["jobs_submitted_total", "jobs_finished_total"].map(|family| sum(&metrics, family));
            assert!(finished <= submitted, "{finished} ends of {submitted} jobs");
            (submitted == finished).then_some(())
        });
        assert_eq!(self.metrics()["reply_duplicate_total"], 0.0);
    }
}
