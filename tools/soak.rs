//! Load and faults together against a real service, for a time; then everything is checked that must hold after any
//! fault. `tools/soak` builds and runs it.
//!
//! The run is a row of rounds, each a service of its own with two executors, a static secret and a known channel
//! port. In a *steady* round web lives through everything else, so its counts must come out exactly; in a *wild* one
//! it is killed too, and what was accepted before that may be lost, nothing else. Rounds end idle, under load by
//! SIGTERM, past the drain's deadline, or by a killed supervisor.
//!
//! The seed decides what is done; which instant that meets, the machine decides. Every fault and every irregular act of a
//! caller is a line in the log of actions; regular calls are only counted.
#![forbid(unsafe_code)]

#[path = "../tests/support/service.rs"]
mod service;
mod soak_callers;
mod soak_faults;
mod soak_ledger;
mod soak_service;

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use service::{Service, is_alive, kill};
use soak_callers::{CALLERS, Caller, LONG_MS, READ_TIMEOUT, REPLY_TIMEOUT};
use soak_faults::{Attacker, EXECUTORS, HEARTBEAT, Kind, get, within};
use soak_ledger::{
    EXIT, Ending, INVARIANTS, LEFT, Ledger, MEMORY, ONCE, Random, Round, SECRETS, TERMINAL, locked,
};
use soak_service::{TALLY, with_words};

const USAGE: &str = "usage: tools/soak [--minutes N] [--seconds N] [--seed S] [--debug] [--no-build]";
const MINUTES_MAX: u64 = 24 * 60;
const SHORTEST_ROUND: Duration = Duration::from_secs(4);
const LONGEST_ROUND: Duration = Duration::from_secs(40);
/// Fewer than a burst has.
const CAPACITY: u64 = 300;
const DRAIN_MS: u64 = 4_000;
/// After the load: what was accepted has ended, and connections and threads have gone.
const SETTLED: Duration = Duration::from_secs(30);
/// A killed supervisor's family is gone within 1 s; the machine is loaded.
const ALL_GONE: Duration = Duration::from_secs(3);
/// What web may grow by in a steady round once its tables are full: the allocator's slack.
/// The first flood of strangers may come after the first third; the allocator keeps some 10 MiB of it.
const GROWTH_KB: u64 = 16 << 10;

/// What `support/service.rs` needs of its neighbour in `tests/support`.
mod program {
    use std::ffi::OsStr;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    /// This binary is the service too.
    pub fn cofferdam() -> PathBuf {
        std::env::current_exe().expect("our own path")
    }

    pub fn command<A: AsRef<OsStr>>(program: &Path, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env_clear();
        // Read only by a build for negative controls: what it does without one of its checks is to be seen here.
        if let Some(off) = std::env::var_os("COFFERDAM_DANGEROUS_OFF") {
            command.env("COFFERDAM_DANGEROUS_OFF", off);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|word| soak_service::is_role(&word)) {
        return soak_service::main();
    }
    let (time, seed) = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(reason) => {
            eprintln!("{reason}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    println!("seed {seed}");
    let folder = std::env::temp_dir().join(format!("cofferdam-soak-{}", std::process::id()));
    let soak = Soak::new(seed, folder);
    println!("log {}", soak.folder.join("actions.log").display());
    soak.run(time);
    if soak.report() {
        let _ = std::fs::remove_dir_all(&soak.folder);
        return ExitCode::SUCCESS;
    }
    println!("seed {seed}; everything that was done: {}", soak.folder.join("actions.log").display());
    ExitCode::FAILURE
}

fn options(mut words: impl Iterator<Item = String>) -> Result<(Duration, u64), String> {
    let (mut minutes, mut seconds) = (None, None);
    let mut seed = std::env::var("COFFERDAM_SEED").ok();
    while let Some(name) = words.next() {
        let value = words.next().ok_or_else(|| format!("{name}: a value is missing"))?;
        match name.as_str() {
            "--minutes" => minutes = Some(value),
            "--seconds" => seconds = Some(value),
            "--seed" => seed = Some(value),
            _ => return Err(format!("{name}: unknown option")),
        }
    }
    let number = |text: Option<String>| {
        text.map(|text| text.parse::<u64>().map_err(|_| format!("{text}: not a number"))).transpose()
    };
    let (minutes, seconds) = (number(minutes)?, number(seconds)?);
    let seconds = match (minutes, seconds) {
        (None, None) => 60,
        (minutes, seconds) => minutes.unwrap_or(0).saturating_mul(60).saturating_add(seconds.unwrap_or(0)),
    };
    if !(1..=60 * MINUTES_MAX).contains(&seconds) {
        return Err(format!("expected 1 s to {MINUTES_MAX} minutes"));
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let any = now.map_or(1, |now| now.as_secs());
    Ok((Duration::from_secs(seconds), number(seed)?.unwrap_or(any)))
}

/// How a round comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The load ends, everything settles, SIGTERM: exit 0.
    Idle,
    /// SIGTERM under load that can finish: exit 0.
    Drain,
    /// The same with a job that outlasts the drain's deadline: exit 4, which names it.
    CutOff,
    /// `kill -9` of the supervisor: the family goes with it.
    Killed,
}

struct Soak {
    seed: u64,
    folder: PathBuf,
    ledger: Ledger,
    /// In hexadecimal, as in its file. Its bytes are letters, so that their raw form is text that a log can be
    /// searched for.
    secret: String,
    /// Somebody wants us to stop.
    interrupted: Arc<AtomicBool>,
}

impl Soak {
    fn new(seed: u64, folder: PathBuf) -> Soak {
        let made = std::fs::DirBuilder::new().mode(0o700).create(&folder);
        made.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for name in ["run", "tmp"] {
            std::fs::create_dir(folder.join(name)).expect("a folder in our own");
        }
        let mut random = Random::new(seed ^ 0x5EC2);
        let secret: String = (0..32).map(|_| format!("{:02x}", random.within(0x41, 0x5B))).collect();
        let mut file = std::fs::OpenOptions::new();
        let file = file.write(true).create_new(true).mode(0o600).open(folder.join("secret"));
        file.expect("a file in our own folder").write_all(secret.as_bytes()).expect("room for 64 bytes");
        let log = std::fs::File::create(folder.join("actions.log")).expect("a file in our own folder");
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
            signal_hook::flag::register(signal, interrupted.clone()).expect("signals can be caught");
        }
        Soak { seed, folder, ledger: Ledger::new(log), secret, interrupted }
    }

    fn run(&self, time: Duration) {
        let begun = Instant::now();
        let mut random = Random::new(self.seed);
        let mut ends = [End::CutOff, End::Drain, End::Killed, End::Idle].into_iter().cycle();
        // The long one first: in it memory must stay flat.
        self.round(0, Kind::Steady, time.mul_f64(0.4).max(SHORTEST_ROUND), End::Idle, &mut random);
        for number in 1.. {
            let left = time.saturating_sub(begun.elapsed());
            if left < SHORTEST_ROUND || self.interrupted.load(Ordering::Relaxed) {
                break;
            }
            let kind = if number % 3 == 0 { Kind::Steady } else { Kind::Wild };
            let length = (time / 8).clamp(SHORTEST_ROUND, LONGEST_ROUND).min(left);
            let end = ends.next().unwrap_or(End::Idle);
            self.round(number, kind, length, end, &mut random);
        }
        // A killed supervisor cannot clean up; the next one does.
        let last = self.start(free_port(&mut random), false);
        drop(last.stop());
        for name in ["run", "tmp"] {
            let left: Vec<_> =
                std::fs::read_dir(self.folder.join(name)).expect("our own folder").flatten().collect();
            if !left.is_empty() {
                self.ledger.broken(LEFT, &format!("in its {name} folder: {left:?}"));
            }
        }
    }

    /// The worker program behind `tally`, with a word that no other process has.
    fn tally(&self) -> [String; 4] {
        ["sh".into(), "-c".into(), TALLY.into(), self.folder.display().to_string()]
    }

    fn start(&self, channel_port: u16, debug: bool) -> Service {
        let sets = [
            ("web.bind", json!("127.0.0.1:0")),
            (
                "web.limits",
                json!({
                    "header_timeout_ms": READ_TIMEOUT.as_millis() as u64,
                    "body_timeout_ms": READ_TIMEOUT.as_millis() as u64,
                }),
            ),
            ("observability.log", json!("json")),
            ("runtime.platform.process_groups", json!([{"name": "execution", "processes": EXECUTORS}])),
            ("runtime.platform.queue.capacity", json!(CAPACITY)),
            // A delivery counts when it starts, and here the killing does not stop.
            ("runtime.platform.queue.max_deliveries", json!(1_000)),
            ("runtime.platform.queue.retry", json!({"base_ms": 20, "max_ms": 200})),
            ("runtime.platform.reply.timeout_ms", json!(REPLY_TIMEOUT.as_millis() as u64)),
            // So that the table of records is full, and memory flat, early.
            ("runtime.platform.reply.awaited_ttl_seconds", json!(5)),
            ("runtime.platform.reply.result_ttl_seconds", json!(20)),
            ("runtime.platform.lifecycle.graceful_timeout_ms", json!(DRAIN_MS)),
            // Idle ones are gone when what a round holds is looked at.
            ("handlers.tally", json!({"command": self.tally(), "mode": "worker", "idle_ms": 300})),
            ("handlers.cat", json!({"command": ["cat"]})),
            ("runtime.platform.execution_ipc.bind_port", json!(channel_port)),
            ("runtime.platform.execution_ipc.heartbeat_ms", json!(HEARTBEAT.as_millis() as u64)),
            ("runtime.platform.execution_ipc.auth.secret_file", json!(self.folder.join("secret"))),
        ];
        let mut arguments = vec!["serve".to_owned()];
        for (path, value) in sets {
            arguments.extend(["--set".into(), format!("{path}={value}")]);
        }
        let mut command = program::command(&program::cofferdam(), arguments);
        command.env("RUNTIME_DIRECTORY", self.folder.join("run")).env("TMPDIR", self.folder.join("tmp"));
        if debug {
            command.env("RUST_LOG", "debug");
        }
        Service::from(command.spawn().expect("our own binary can be started"))
    }

    fn round(&self, number: u64, kind: Kind, length: Duration, end: End, random: &mut Random) {
        let ledger = &self.ledger;
        let port = free_port(random);
        // A line a job and more: only in a short round.
        let service = self.start(port, number == 2);
        ledger.count("rounds");
        ledger.log(&format!(
            "round {number} for {length:?}, channel at {port}, supervisor {}, ends {end:?}",
            service.pid
        ));
        let round = Round::new(ledger, service.address, format!("soak{}mark{number}", self.seed));
        for page in ["/", "/metrics", "/v1/stats"] {
            get(service.address, page);
        }
        let mut rss = Vec::new();
        let web = service.child("web");
        let before = Holdings::at_rest(&service, web);
        let deadline = Instant::now() + length;
        std::thread::scope(|scope| {
            let _stops_the_callers = StopsCallers(&round);
            for caller in 0..CALLERS {
                let (round, seed) = (&round, random.next());
                scope.spawn(move || soak_callers::call(round, caller, seed));
            }
            scope.spawn(|| soak_callers::dawdle(&round));
            let mut attacker = Attacker::new(&service, &round, port, Random::new(random.next()));
            while Instant::now() < deadline && !self.interrupted.load(Ordering::Relaxed) {
                std::thread::sleep(attacker.random.millis(20, 500));
                attacker.attack(kind);
                if attacker.web() == web {
                    rss.push(rss_kb(web));
                }
            }
            if end != End::Idle {
                end_under_load(&service, &round, end);
            }
        });
        if end == End::Idle {
            self.settle(&service, &round);
            if round.life() == Some(0) {
                rss.push(rss_kb(web));
                self.holdings_are_back(&service, web, &before);
                self.memory(kind, length, &rss);
            }
            service.terminate();
        }
        let ended = service.ended();
        ledger.log(&format!("round {number} ended: {:?}", ended.status));
        let expected = match end {
            End::Idle | End::Drain => Some(0),
            End::CutOff => Some(4),
            End::Killed => None,
        };
        if ended.status.code() != expected {
            let last: Vec<&str> = ended.stderr.lines().rev().take(5).collect();
            ledger.broken(EXIT, &format!("{end:?}: {:?} instead of {expected:?}: {last:?}", ended.status));
        }
        ledger.count(&format!("ends {end:?}"));
        let _ = std::fs::write(self.folder.join(format!("service-{number}.log")), &ended.stderr);
        self.after_the_end(&round, &ended.stderr);
    }

    /// The load has ended: nothing is under way any more, and every count comes out.
    fn settle(&self, service: &Service, round: &Round) {
        let address = service.address;
        let mut stats = Value::Null;
        let is_quiet = within(SETTLED, || {
            stats = get(address, "/v1/stats").map_or(Value::Null, |answer| answer.json());
            ["queued", "running"].iter().all(|total| stats["totals"][total] == 0) && stats["waiters"] == 0
        });
        if !is_quiet {
            self.ledger.broken(TERMINAL, &format!("not quiet after {SETTLED:?}: {stats}"));
        }
        let mut caller = Caller::new(round, usize::MAX, 0);
        let mut last_number = |handler: &str, lane: &str| {
            let body = json!({"key": lane, "id": "last"}).to_string();
            let json = "Content-Type: application/json";
            let answer = caller.ask("POST", &format!("/v1/jobs/{handler}"), &[json], &body);
            answer.and_then(|answer| answer.json()["n"].as_u64()).unwrap_or(0)
        };
        let given = round.lanes(round.life().unwrap_or(0));
        let mut counted = 0;
        for lane in soak_callers::lanes() {
            let last = last_number("count", &lane);
            counted += last;
            if let Some((_, most)) = given.iter().find(|(of, most)| *of == lane && *most >= last) {
                self.ledger.broken(ONCE, &format!("lane {lane} is at {last}, but somebody was told {most}"));
            }
        }
        let tallied = last_number("tally", "tally");
        let Some(metrics) = get(address, "/metrics").map(|answer| answer.text()) else {
            return self.ledger.broken(TERMINAL, "no metrics");
        };
        let sum = |name: &str| -> u64 {
            let lines =
                metrics.lines().filter_map(|line| line.strip_prefix("cofferdam_")?.strip_prefix(name));
            lines.filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok()).sum()
        };
        for (handler, effects) in [("count", counted), ("tally", tallied)] {
            let commits = sum(&format!("jobs_finished_total{{handler=\"{handler}\",status=\"succeeded\"}}"));
            self.ledger.log(&format!("{handler}: {effects} effects, {commits} commits"));
            self.ledger.add("effects checked", effects);
            if effects != commits {
                self.ledger
                    .broken(ONCE, &format!("{handler}: {effects} effects of {commits} successful jobs"));
            }
        }
        for handler in ["echo", "count", "tally", "flaky", "cat"] {
            let accepted = sum(&format!("jobs_submitted_total{{handler=\"{handler}\"}}"));
            let finished = sum(&format!("jobs_finished_total{{handler=\"{handler}\","));
            if accepted != finished {
                self.ledger.broken(TERMINAL, &format!("{handler}: {accepted} accepted, {finished} finished"));
            }
        }
        for status in ["dead", "failed", "timed_out"] {
            for handler in ["echo", "sleep", "count", "tally", "flaky", "cat"] {
                let ended = sum(&format!("jobs_finished_total{{handler=\"{handler}\",status=\"{status}\"}}"));
                if ended > 0 {
                    self.ledger.broken(TERMINAL, &format!("{ended} jobs of {handler} ended as {status}"));
                }
            }
        }
    }

    fn holdings_are_back(&self, service: &Service, web: u32, before: &Holdings) {
        let mut now = Holdings::of(service, web);
        if !within(SETTLED, || {
            now = Holdings::of(service, web);
            now == *before
        }) {
            self.ledger.broken(LEFT, &format!("{now:?} instead of {before:?}"));
        }
    }

    /// The first third of a round fills the tables; from there on nothing may grow.
    fn memory(&self, kind: Kind, length: Duration, rss: &[u64]) {
        let filled = rss.iter().take(rss.len().div_ceil(3)).max().copied().unwrap_or(0);
        let last = rss.last().copied().unwrap_or(0);
        let most = rss.iter().max().copied().unwrap_or(0);
        self.ledger
            .log(&format!("web: {filled} KiB after a third of the round, {most} at most, {last} at its end"));
        // The first round is the longest.
        if self.ledger.counted("rss at the start") == 0 {
            self.ledger.add("rss at the start", filled);
            self.ledger.add("rss at the end", last);
        }
        if kind == Kind::Steady && last > filled + GROWTH_KB {
            self.ledger.broken(MEMORY, &format!("{filled} KiB grew to {last} KiB in {length:?}"));
        }
    }

    fn after_the_end(&self, round: &Round, log: &str) {
        let left: Vec<u32> = locked(&round.pids).iter().copied().filter(|pid| is_ours(*pid)).collect();
        if !left.is_empty() {
            self.ledger.broken(LEFT, &format!("processes {left:?} outlived their service"));
        }
        let programs = || with_words(&self.tally());
        if !within(SETTLED, || programs().is_empty()) {
            self.ledger.broken(LEFT, &format!("programs {:?} outlived their service", programs()));
        }
        if let Err(error) = TcpListener::bind(round.address) {
            self.ledger.broken(LEFT, &format!("the port is still taken: {error}"));
        }
        let raw: String = self.secret.as_bytes().chunks(2).map(|digits| char::from(byte(digits))).collect();
        let encoded = base64(raw.as_bytes());
        let lower = log.to_lowercase();
        for (what, is_there) in [
            ("the secret in hexadecimal", lower.contains(&self.secret)),
            ("the secret as it is", log.contains(&raw)),
            ("the secret in base64", log.contains(encoded.trim_end_matches('='))),
            ("a payload, or a token", log.contains(&round.marker)),
        ] {
            if is_there {
                self.ledger.broken(SECRETS, what);
            }
        }
        self.ledger.add("log bytes searched", log.len() as u64);
    }

    /// Prints the summary; true if nothing is broken.
    fn report(&self) -> bool {
        let ledger = &self.ledger;
        let row = |name: &str, value: &str| println!("{name:38} {value}");
        println!();
        row("rounds", &ledger.counted("rounds").to_string());
        for name in ["requests", "batches", "accepted"] {
            row(name, &ledger.counted(name).to_string());
        }
        for prefix in ["finished ", "refused "] {
            for (name, count) in ledger.counts(prefix) {
                row(&format!("  {prefix}{name}"), &count.to_string());
            }
        }
        row("  cut off with their web process", &ledger.counted("cut off").to_string());
        for prefix in ["kills of ", "stops of ", "cuts of ", "ends "] {
            for (name, count) in ledger.counts(prefix) {
                row(&format!("{prefix}{name}"), &count.to_string());
            }
        }
        for name in
            ["strangers on the channel", "bursts", "hang-ups", "slow clients", "retried", "effects checked"]
        {
            row(name, &ledger.counted(name).to_string());
        }
        let (took, after) = locked(&ledger.slowest_recovery).clone();
        row("slowest recovery", &format!("{:.0} ms, from {after}", took.as_secs_f64() * 1e3));
        let (start, end) = (ledger.counted("rss at the start"), ledger.counted("rss at the end"));
        row("web's RSS, tables full and at the end", &format!("{start} KiB, {end} KiB"));
        println!();
        let (accepted, finished) = (ledger.counted("accepted"), ledger.counts("finished "));
        let finished: u64 = finished.iter().map(|(_, count)| count).sum();
        if accepted != finished {
            ledger.broken(TERMINAL, &format!("{accepted} accepted, {finished} accounted for"));
        }
        let mut is_well = true;
        for invariant in INVARIANTS {
            match ledger.outcome(invariant) {
                None => println!("held    {invariant}"),
                Some((times, first)) => {
                    is_well = false;
                    println!("BROKEN  {invariant} ({times} times); first: {first}");
                }
            }
        }
        is_well
    }
}

/// The callers stop also where the round panics.
struct StopsCallers<'a>(&'a Round<'a>);

impl Drop for StopsCallers<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Brings a service to its end while everybody calls.
fn end_under_load(service: &Service, round: &Round, end: End) {
    let ledger = round.ledger;
    let mut caller = Caller::new(round, usize::MAX, 0);
    let long = (end == End::CutOff).then(|| caller.submit("sleep", &[], &json!({"ms": LONG_MS}))).flatten();
    if long.is_some() {
        ledger.count("finished cut off by the drain, and named");
    }
    ledger.log(&format!("{end:?} under load, the long job is {long:?}"));
    round.ends(if end == End::Killed { Ending::Killed } else { Ending::Drained });
    let begun = Instant::now();
    if end == End::Killed {
        kill(service.pid);
        let pids: Vec<u32> = locked(&round.pids).iter().copied().collect();
        let are_gone = within(ALL_GONE, || !pids.iter().any(|pid| is_ours(*pid)));
        if !are_gone {
            ledger.broken(LEFT, &format!("a killed supervisor's family is there after {ALL_GONE:?}"));
        }
        ledger.log(&format!("the family was gone after {:?}", begun.elapsed()));
    } else {
        service.terminate();
        let patience = Duration::from_millis(DRAIN_MS) + SETTLED;
        if !within(patience, || !is_alive(service.pid)) {
            ledger.broken(EXIT, &format!("{end:?}: no end after {patience:?}"));
        }
        if let Some(long) = long
            && !within(READ_TIMEOUT, || service.stderr().contains(&long))
        {
            ledger.broken(EXIT, &format!("the job that was cut off, {long}, is not named"));
        }
    }
}

/// What the processes of a service hold: their descriptors and threads.
#[derive(Debug, PartialEq, Eq)]
struct Holdings(Vec<(&'static str, usize, usize)>);

impl Holdings {
    /// Once they do not change any more: web closes a client's connection a moment after the client does.
    fn at_rest(service: &Service, web: u32) -> Holdings {
        let mut held = Holdings::of(service, web);
        within(SETTLED, || {
            std::thread::sleep(Duration::from_millis(50));
            let before = std::mem::replace(&mut held, Holdings::of(service, web));
            held == before
        });
        held
    }

    fn of(service: &Service, web: u32) -> Holdings {
        let count = |pid: u32, of: &str| {
            std::fs::read_dir(format!("/proc/{pid}/{of}")).map_or(0, |entries| entries.count())
        };
        let mut processes = vec![("supervisor", service.pid), ("web", web)];
        processes.extend(service.children("executor").into_iter().map(|pid| ("executor", pid)));
        Holdings(
            processes.into_iter().map(|(role, pid)| (role, count(pid, "fd"), count(pid, "task"))).collect(),
        )
    }
}

/// A process that runs as a child of ours: its number alone may be another's by now.
fn is_ours(pid: u32) -> bool {
    let words = service::words(pid);
    is_alive(pid) && words.get(1).is_some_and(|role| matches!(role.as_str(), "web" | "executor"))
}

fn rss_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Below those that the kernel gives to outgoing connections, of which there are many here.
fn free_port(random: &mut Random) -> u16 {
    let ports = (0..1_000).map(|_| random.within(15_000, 32_000) as u16);
    ports.into_iter().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}

fn byte(digits: &[u8]) -> u8 {
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| u8::from_str_radix(digits, 16).ok())
        .expect("our own digits")
}

/// RFC 4648; only for looking for a secret in this form.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let bits =
            (0..3).fold(0_usize, |bits, at| bits << 8 | usize::from(part.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            text.push(if at > part.len() { '=' } else { char::from(ALPHABET[bits >> (18 - 6 * at) & 63]) });
        }
    }
    text
}
