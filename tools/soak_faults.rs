//! The faults, one at a time: each is done, is over, and must be forgotten by the callers within five seconds.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::service::{Answer, Client, Service, all_children, is_alive, kill, request, signal};
use super::soak_callers::{CALLERS, burst, connect};
use super::soak_ledger::{BY_ITSELF, RECOVERY, Random, Round, STRANGER, TERMINAL, locked};

/// What `execution_ipc.heartbeat_ms` is set to; three missed, and a process counts as dead.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
pub const EXECUTORS: usize = 2;
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// Three missed heartbeats, the supervisor's look, SIGTERM, a grace, SIGKILL; and a loaded machine.
const TAKEN_AS_DEAD: Duration = Duration::from_secs(20);
/// From accept to the end of a handshake, and a loaded machine.
const STRANGER_CLOSED: Duration = Duration::from_secs(2 + 6);
/// Latency under load that nobody would call a disturbance, whatever the machine.
const NORMAL_AT_LEAST: Duration = Duration::from_millis(250);
pub const BURST_CLIENTS: usize = 6;
pub const BURST_JOBS: usize = 120;

/// Looks until it is so, or the time is over.
pub fn within(patience: Duration, mut look: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if look() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// One request on a connection of its own.
pub fn get(address: SocketAddr, target: &str) -> Option<Answer> {
    let mut client = Client::try_to(address).ok()?;
    client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    client.try_read(Duration::from_secs(10)).ok()
}

/// Whether web may be taken away: its jobs and its counts go with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One web process all the time.
    Steady,
    Wild,
}

/// Who attacks one service.
pub struct Attacker<'a> {
    pub service: &'a Service,
    pub round: &'a Round<'a>,
    pub channel_port: u16,
    pub random: Random,
    web: u32,
    executors: Vec<u32>,
    normal: Duration,
}

/// Whose end a fault may bring about.
#[derive(Default)]
struct Taken {
    web: bool,
    executors: Vec<u32>,
}

impl<'a> Attacker<'a> {
    /// While its callers call already.
    pub fn new(
        service: &'a Service,
        round: &'a Round<'a>,
        channel_port: u16,
        random: Random,
    ) -> Attacker<'a> {
        let (web, executors) = (service.child("web"), service.children("executor"));
        let normal = NORMAL_AT_LEAST;
        let mut attacker = Attacker { service, round, channel_port, random, web, executors, normal };
        let mut usual: Vec<Duration> =
            (0..40).filter_map(|_| attacker.probe(Duration::from_secs(10))).collect();
        usual.sort_unstable();
        let usual = usual.get(usual.len() / 2).copied().unwrap_or(NORMAL_AT_LEAST);
        attacker.normal = NORMAL_AT_LEAST.max(10 * usual);
        round.ledger.log(&format!("usual latency {usual:?}"));
        attacker
    }

    pub fn web(&self) -> u32 {
        self.web
    }

    pub fn attack(&mut self, kind: Kind) {
        let choice = self.random.within(0, if kind == Kind::Steady { 16 } else { 21 });
        let (what, taken) = match choice {
            0..3 => self.kill_executors(1),
            3 => self.kill_executors(EXECUTORS),
            4 => self.stop_executor_briefly(),
            5 => self.stop_executor_until_it_is_replaced(),
            6 => self.stop_supervisor(),
            7 => self.stop_web_briefly(),
            8 => self.cut_the_channel(),
            9 => self.strangers(),
            10 => self.flood(),
            11 => self.burst(),
            12 => self.mass_hang_up(),
            13..15 => self.poison(),
            15 => self.kill_programs(),
            16..19 => self.kill_web(),
            19 => self.kill_web_and_an_executor(),
            _ => self.stop_web_until_it_is_replaced(),
        };
        self.recovered(&what, &taken);
    }

    fn log(&self, line: &str) {
        self.round.ledger.log(line);
    }

    fn an_executor(&mut self) -> u32 {
        self.executors[self.random.within(0, self.executors.len() as u64) as usize]
    }

    fn kill_executors(&mut self, count: usize) -> (String, Taken) {
        let first = self.an_executor();
        let others = self.executors.iter().copied().filter(|pid| *pid != first);
        let killed: Vec<u32> = std::iter::once(first).chain(others).take(count).collect();
        for pid in &killed {
            self.log(&format!("kill executor {pid}"));
            kill(*pid);
            self.round.ledger.count("kills of an executor");
        }
        // On a loaded machine one that was killed counts as running for a moment.
        within(TAKEN_AS_DEAD, || !killed.iter().any(|pid| is_alive(*pid)));
        (format!("{count} executors killed"), Taken { executors: killed, web: false })
    }

    /// Whatever programs an executor has just now.
    fn kill_programs(&mut self) -> (String, Taken) {
        let executor = self.an_executor();
        let programs = all_children(executor);
        self.log(&format!("kill programs {programs:?} of {executor}"));
        programs.iter().for_each(|pid| kill(*pid));
        self.round.ledger.add("kills of a program", programs.len() as u64);
        (format!("{} programs killed", programs.len()), Taken::default())
    }

    /// A job that ends its process, again and again until it is dead. Everybody else's job succeeds: their callers see to that.
    fn poison(&mut self) -> (String, Taken) {
        let executors = self.executors.clone();
        self.round.ledger.count("poisonous jobs");
        let submitted = Client::try_to(self.round.address).ok().and_then(|mut client| {
            client.send(request("POST", "/v1/jobs/poison", &["Prefer: respond-async"], "{}"));
            client.try_read(Duration::from_secs(10)).ok()
        });
        let id = submitted.and_then(|answer| answer.json()["id"].as_str().map(str::to_owned));
        let Some(id) = id else { return ("a poisonous job refused".into(), Taken::default()) };
        self.log(&format!("poison {id}"));
        let is_dead = || {
            let record =
                get(self.round.address, &format!("/v1/jobs/{id}?wait=1")).map(|answer| answer.json());
            record.is_some_and(|record| record["error"]["cause"] == "executor_lost")
        };
        if !within(TAKEN_AS_DEAD, is_dead) {
            self.round.ledger.broken(TERMINAL, &format!("poison {id} is not dead"));
        }
        ("a poisonous job".into(), Taken { executors, web: false })
    }

    fn stop(&mut self, who: &str, pid: u32, time: Duration) {
        self.log(&format!("stop {who} {pid} for {time:?}"));
        self.round.ledger.count(&format!("stops of {who}"));
        signal(pid, Signal::STOP);
        std::thread::sleep(time);
        signal(pid, Signal::CONT);
        self.log(&format!("continue {who} {pid}"));
    }

    fn stop_executor_briefly(&mut self) -> (String, Taken) {
        let (pid, time) = (self.an_executor(), self.random.millis(50, 1_000));
        self.stop("executor", pid, time);
        ("an executor stopped briefly".into(), Taken::default())
    }

    fn stop_executor_until_it_is_replaced(&mut self) -> (String, Taken) {
        let pid = self.an_executor();
        self.log(&format!("stop executor {pid}"));
        self.round.ledger.count("stops of executor beyond three heartbeats");
        signal(pid, Signal::STOP);
        if !within(TAKEN_AS_DEAD, || !is_alive(pid)) {
            self.round.ledger.broken(RECOVERY, &format!("executor {pid}, stopped, is not replaced"));
        }
        signal(pid, Signal::CONT);
        ("an executor stopped for good".into(), Taken { executors: vec![pid], web: false })
    }

    /// The data path does not need it.
    fn stop_supervisor(&mut self) -> (String, Taken) {
        let long = self.random.within(0, 3) == 0;
        let time = if long { 3 * HEARTBEAT + HEARTBEAT } else { self.random.millis(50, 1_000) };
        self.log(&format!("stop supervisor for {time:?}"));
        self.round.ledger.count("stops of supervisor");
        let begun = Instant::now();
        signal(self.service.pid, Signal::STOP);
        self.latency_is_back("a supervisor being stopped");
        std::thread::sleep(time.saturating_sub(begun.elapsed()));
        signal(self.service.pid, Signal::CONT);
        self.log("continue supervisor");
        ("a supervisor stopped".into(), Taken::default())
    }

    fn stop_web_briefly(&mut self) -> (String, Taken) {
        let time = self.random.millis(50, 1_200);
        self.stop("web", self.web, time);
        ("web stopped briefly".into(), Taken::default())
    }

    fn stop_web_until_it_is_replaced(&mut self) -> (String, Taken) {
        let web = self.web;
        self.log(&format!("stop web {web}"));
        self.round.ledger.count("stops of web beyond three heartbeats");
        self.round.web_dies();
        signal(web, Signal::STOP);
        if !within(TAKEN_AS_DEAD, || !is_alive(web)) {
            self.round.ledger.broken(RECOVERY, &format!("web {web}, stopped, is not replaced"));
        }
        signal(web, Signal::CONT);
        self.round.web_is_dead();
        ("web stopped for good".into(), Taken { web: true, executors: Vec::new() })
    }

    fn kill_web(&mut self) -> (String, Taken) {
        let web = self.web;
        self.log(&format!("kill web {web}"));
        self.round.ledger.count("kills of web");
        self.round.web_dies();
        kill(web);
        within(TAKEN_AS_DEAD, || !is_alive(web));
        self.round.web_is_dead();
        ("web killed".into(), Taken { web: true, executors: Vec::new() })
    }

    fn kill_web_and_an_executor(&mut self) -> (String, Taken) {
        let (_, executors) = self.kill_executors(1);
        let (_, web) = self.kill_web();
        ("web and an executor killed".into(), Taken { web: web.web, executors: executors.executors })
    }

    /// Resets every connection of the channel, by the kernel; not every kernel can, and not every user may.
    fn cut_the_channel(&mut self) -> (String, Taken) {
        let port = format!(":{}", self.channel_port);
        let output = Command::new("ss")
            .args(["-K", "dst", "127.0.0.1", "dport", "=", &port])
            .stdin(Stdio::null())
            .output();
        let cut = output.map_or(0, |output| String::from_utf8_lossy(&output.stdout).matches("ESTAB").count());
        self.log(&format!("cut {cut} connections of the channel"));
        self.round.ledger.add("cuts of a channel connection", cut as u64);
        ("the channel cut".into(), Taken::default())
    }

    fn strangers(&mut self) -> (String, Taken) {
        let garbage: Vec<u8> = (0..200).map(|_| self.random.next() as u8).collect();
        let first = [b"CFD1\x01\x01\0\0".as_slice(), &garbage[..72]].concat();
        let messages: [&[u8]; 6] =
            [b"", &garbage, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", &[0xFF; 4], &first, &first[..79]];
        self.log("six strangers on the channel");
        self.round.ledger.add("strangers on the channel", 6);
        self.knock(&messages);
        ("strangers".into(), Taken::default())
    }

    fn flood(&mut self) -> (String, Taken) {
        let count = self.random.within(50, 300) as usize;
        self.log(&format!("{count} half-open connections on the channel"));
        self.round.ledger.add("strangers on the channel", count as u64);
        let messages: Vec<&[u8]> = [b"".as_slice(), b"CFD1"].into_iter().cycle().take(count).collect();
        self.knock(&messages);
        ("a flood of strangers".into(), Taken::default())
    }

    /// Each must be closed in time, and be told nothing.
    fn knock(&self, messages: &[&[u8]]) {
        let address = SocketAddr::from(([127, 0, 0, 1], self.channel_port));
        let begun = Instant::now();
        let strangers: Vec<TcpStream> = messages
            .iter()
            .filter_map(|message| {
                let mut stranger = TcpStream::connect_timeout(&address, STRANGER_CLOSED).ok()?;
                // One that is closed meanwhile cannot be written to.
                let _ = stranger.write_all(message);
                Some(stranger)
            })
            .collect();
        for mut stranger in strangers {
            let left = STRANGER_CLOSED.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
            let _ = stranger.set_read_timeout(Some(left));
            match stranger.read(&mut [0; 1]) {
                Ok(0) => {}
                Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Ok(_) => self.round.ledger.broken(STRANGER, "it was sent something"),
                Err(_) => {
                    self.round.ledger.broken(STRANGER, &format!("still open after {:?}", begun.elapsed()));
                }
            }
        }
    }

    fn burst(&mut self) -> (String, Taken) {
        self.log(&format!("a burst of {} jobs", BURST_CLIENTS * BURST_JOBS));
        self.round.ledger.count("bursts");
        let round = self.round;
        std::thread::scope(|scope| {
            for client in 0..BURST_CLIENTS {
                scope.spawn(move || burst(round, CALLERS + client, BURST_JOBS));
            }
        });
        ("a burst".into(), Taken::default())
    }

    fn mass_hang_up(&mut self) -> (String, Taken) {
        self.log("a hundred hang up at once");
        self.round.ledger.add("hang-ups", 100);
        let mut clients: Vec<Client> = (0..100).filter_map(|_| connect(self.round)).collect();
        for client in &mut clients {
            client.send(request("POST", "/v1/jobs/sleep", &[], r#"{"ms":20}"#));
        }
        drop(clients);
        ("a mass hang-up".into(), Taken::default())
    }

    /// How long one call takes that is answered well.
    fn probe(&self, patience: Duration) -> Option<Duration> {
        let begun = Instant::now();
        let mut client = Client::try_to(self.round.address).ok()?;
        client.send(request("POST", "/v1/jobs/echo", &[], &self.round.marker));
        let answer = client.try_read(patience).ok()?;
        (answer.status == 200 && answer.text() == self.round.marker).then(|| begun.elapsed())
    }

    /// Three good calls one after the other.
    fn latency_is_back(&self, after: &str) {
        let begun = Instant::now();
        let mut good_since = None;
        let mut good = 0;
        let ledger = self.round.ledger;
        while good < 3 {
            if self.probe(BACK_WITHIN).is_some_and(|took| took <= self.normal) {
                good += 1;
                good_since.get_or_insert_with(Instant::now);
            } else {
                (good, good_since) = (0, None);
            }
            if begun.elapsed() > 2 * BACK_WITHIN {
                break;
            }
        }
        let took = good_since.map_or_else(|| begun.elapsed(), |at| at - begun);
        ledger.recovered(after, took);
        if took > BACK_WITHIN || good < 3 {
            ledger
                .broken(RECOVERY, &format!("{after}: not after {took:?} (usual at most {:?})", self.normal));
        }
    }

    fn recovered(&mut self, after: &str, taken: &Taken) {
        self.latency_is_back(after);
        let begun = Instant::now();
        let is_complete = || {
            self.service.children("executor").len() == EXECUTORS
                && self.service.children("web").len() == 1
                && get(self.round.address, "/readyz").is_some_and(|answer| answer.status == 200)
        };
        if !within(BACK_WITHIN, is_complete) {
            let (webs, executors) = (self.service.children("web"), self.service.children("executor"));
            let case = format!("{after}: web {webs:?}, executors {executors:?}, or not ready");
            self.round.ledger.broken(RECOVERY, &case);
        }
        self.log(&format!("recovered from: {after}; complete after {:?}", begun.elapsed()));
        let (web, executors) = (self.service.child("web"), self.service.children("executor"));
        if web != self.web && !taken.web {
            // So that its callers are not blamed as well.
            self.round.web_dies();
            self.round.web_is_dead();
            self.round.ledger.broken(BY_ITSELF, &format!("{after}: web {} became {web}", self.web));
        }
        for gone in
            self.executors.iter().filter(|pid| !executors.contains(pid) && !taken.executors.contains(pid))
        {
            self.round.ledger.broken(BY_ITSELF, &format!("{after}: executor {gone} has gone"));
        }
        if taken.web && web == self.web {
            self.round.ledger.broken(BY_ITSELF, "a killed web is still there");
        }
        (self.web, self.executors) = (web, executors);
        locked(&self.round.pids).extend(self.executors.iter().copied().chain([web]));
    }
}
