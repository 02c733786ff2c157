//! An executor process: the crew around the channel and the control socket, under a supervisor. It holds its group's
//! channel secret and the leases that it was given, nothing that cannot be made again.

use std::ops::ControlFlow;
use std::time::Duration;

use mio::Token;

use super::Child;
use crate::channel::ChannelClient;
use crate::clock::{Timestamp, monotonic_millis};
use crate::config::ProcessGroup;
use crate::execution::{self, Engine, Health, Helm};
use crate::exit::Exit;
use crate::process::control_socket::{ControlSocket, Leaving, ToChild, ToParent};
use crate::process::hygiene::{resident_mb, take_stdout};
use crate::process::reactor::Reactor;

const CONTROL: Token = Token(0);
const CHANNEL: Token = Token(1);

pub(super) fn serve_executor(child: Child) -> Result<Exit, String> {
    let Child { mut bundle, mut control, deployment } = child;
    let io = |error: std::io::Error| error.to_string();
    // What handlers print goes where their other words go.
    drop(take_stdout().map_err(io)?);
    deployment.start_workers()?;
    let platform = deployment.platform();
    let group = platform.process_groups.get(usize::from(bundle.group)).ok_or("the bundle names no group")?;
    let secret = bundle.secrets.pop().ok_or("the bundle holds no secret")?;
    let ipc = &platform.execution_ipc;
    let ttl_ms = ipc.auth.ttl_seconds * 1_000;
    let client = ChannelClient::new(secret, bundle.group, ttl_ms, ipc.heartbeat_ms, CHANNEL);
    let reactor = Reactor::new(64)?;
    reactor.watch(&mut control.stream, CONTROL)?;
    let outfit = deployment.outfit(group.workers, reactor.bell());
    let (group, said) = (group.clone(), Said::default());
    let helm =
        ExecutorHelm { reactor, control, client, group, said, weighed_ms: 0, ends: false, stops: false };
    let ended = execution::start(outfit, helm).map_err(io)?;
    // Handlers that never return are left behind with their threads.
    let exit = ended.recv().unwrap_or_else(|_| Err("a thread of the executor has ended".into()));
    deployment.end_workers();
    exit
}

struct ExecutorHelm {
    reactor: Reactor,
    control: ControlSocket,
    client: ChannelClient,
    group: ProcessGroup,
    said: Said,
    /// When it last looked how much memory it holds.
    weighed_ms: u64,
    /// It ends once what runs is over.
    ends: bool,
    /// That is now.
    stops: bool,
}

/// What its supervisor has heard.
#[derive(Default)]
struct Said {
    ready: bool,
    /// A job of it has begun: what ends this process from now on may be that job's fault.
    worked: bool,
    leaving: bool,
}

impl Helm for ExecutorHelm {
    type End = Result<Exit, String>;

    fn turn(&mut self, engine: &mut Engine, now: Timestamp) -> ControlFlow<Self::End, Duration> {
        let now_ms = monotonic_millis();
        if self.ends {
            engine.books.drain(now);
        }
        if self.stops {
            engine.books.cut_off(now);
        }
        self.client.tick(self.reactor.registry(), now_ms);
        let next = engine.exchange(&mut self.client, now);
        let next = next.inspect_err(|error| log::debug!("the broker is lost: {error}"));
        self.client.flush(now_ms);
        let health = engine.health(&self.client, now);
        if self.ends && health == Health::Drained {
            return ControlFlow::Break(Ok(Exit::Done));
        }
        if self.said.ready
            && !self.said.leaving
            && let Some(why) = self.should_leave(health, engine.books.finished, now_ms)
        {
            self.said.leaving = true;
            log::info!("{}: this process finishes its jobs and is replaced", why.as_str());
            self.control.send(&ToParent::Leaving(why));
        }
        if !self.said.ready && self.client.is_up() {
            self.said.ready = true;
            self.control.send(&ToParent::Ready(String::new()));
        }
        if engine.books.has_worked && !std::mem::replace(&mut self.said.worked, true) {
            self.control.send(&ToParent::Worked);
        }
        let channel = Duration::from_millis(self.client.next_due_ms(now_ms));
        let wait = next.map_or(channel, |at| at.since(now).min(channel));
        ControlFlow::Continue(wait.max(Duration::from_millis(1)))
    }

    fn wait(&mut self, most: Duration) -> ControlFlow<Self::End> {
        self.look(most).map_or_else(|message| ControlFlow::Break(Err(message)), ControlFlow::Continue)
    }
}

impl ExecutorHelm {
    /// Why this process should be replaced, if it should: it is stuck, has done its jobs, or holds too much memory.
    fn should_leave(&mut self, health: Health, finished: u64, now_ms: u64) -> Option<Leaving> {
        const WEIGH_EVERY_MS: u64 = 500;
        let group = &self.group;
        if health == Health::Stuck {
            Some(Leaving::Stuck)
        } else if group.max_jobs > 0 && finished >= group.max_jobs {
            Some(Leaving::MaxJobs)
        } else if group.max_rss_mb > 0 && now_ms >= self.weighed_ms + WEIGH_EVERY_MS {
            self.weighed_ms = now_ms;
            resident_mb().filter(|mb| *mb > group.max_rss_mb).map(|_| Leaving::MaxRss)
        } else {
            None
        }
    }

    fn look(&mut self, most: Duration) -> Result<(), String> {
        let mut is_told = false;
        for event in self.reactor.wait(most)? {
            match event.token() {
                CONTROL => is_told = true,
                CHANNEL => self.client.on_event(event, monotonic_millis()),
                _ => {}
            }
        }
        if is_told { self.on_control() } else { Ok(()) }
    }

    fn on_control(&mut self) -> Result<(), String> {
        for message in self.control.hear()?.0 {
            match message {
                ToChild::Channel(address) => {
                    let address = address.parse().map_err(|_| "the channel's address is malformed")?;
                    self.client.set_address(address, monotonic_millis());
                }
                ToChild::Drain(_) | ToChild::Retire(_) | ToChild::Leave => self.ends = true,
                ToChild::Stop => (self.ends, self.stops) = (true, true),
                ToChild::Ping | ToChild::Tokens(_) | ToChild::Replaced(..) | ToChild::Succeeds(_) => {}
            }
        }
        Ok(())
    }
}
