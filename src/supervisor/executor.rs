//! An executor process: the engine and the channel in one event loop, under a supervisor.

use std::time::Duration;

use mio::{Events, Interest, Poll, Token, Waker};

use super::child::Bundle;
use super::control::{Control, ToChild, ToParent};
use super::hygiene;
use crate::bell::Bell;
use crate::channel::ChannelClient;
use crate::cli::Exit;
use crate::clock::{Clock, Timestamp, monotonic_millis};
use crate::execution::{Engine, Health, WorkerPool};
use crate::handler::Registry;
use crate::observe::log_writer;

const CONTROL: Token = Token(0);
const WAKER: Token = Token(1);
const CHANNEL: Token = Token(2);

/// The whole life of an executor that a supervisor has started.
#[must_use]
pub fn run_executor_child(registry: &Registry) -> Exit {
    super::child::ended("executor", serve_executor(registry))
}

fn serve_executor(registry: &Registry) -> Result<Exit, String> {
    let io = |error: std::io::Error| error.to_string();
    // Nobody may look into this process before it holds a secret.
    hygiene::begin_child().map_err(io)?;
    hygiene::become_subreaper().map_err(io)?;
    let (mut bundle, mut control) = Bundle::receive(hygiene::take_stdin().map_err(io)?)?;
    let setup = bundle.setup(registry)?;
    log_writer::start(setup.config.observability.log, "executor");
    let secret = bundle.secrets.pop().ok_or("the bundle holds no secret")?;
    let platform = &setup.config.runtime.platform;
    let group = platform.process_groups.get(usize::from(bundle.group)).ok_or("the bundle names no group")?;

    let mut poll = Poll::new().map_err(io)?;
    let waker = Waker::new(poll.registry(), WAKER).map_err(io)?;
    let bell = Bell::new(move || drop(waker.wake()));
    poll.registry()
        .register(control.stream(), CONTROL, Interest::READABLE | Interest::WRITABLE)
        .map_err(io)?;
    let limits = setup.execution_limits();
    let workers = group.workers;
    let pool = WorkerPool::start(workers, setup.handlers(), limits, setup.clock.clone(), bell.clone())
        .map_err(io)?;
    let (ttl, heartbeat) =
        (platform.execution_ipc.auth.ttl_seconds * 1_000, platform.execution_ipc.heartbeat_ms);
    let client = ChannelClient::new(secret, bundle.group, ttl, heartbeat, CHANNEL);
    let engine = Engine::new(pool, workers, client, limits);
    let clock = setup.clock.clone();
    let mut executor = Executor { engine, clock, said_ready: false, stopping: false, stuck: false };

    let mut events = Events::with_capacity(64);
    loop {
        let wait = executor.turn(&poll, &mut control);
        if let Some(exit) = executor.end(&mut control) {
            log_writer::settle();
            return Ok(exit);
        }
        let wait = if bell.asleep() { wait } else { Duration::ZERO };
        match poll.poll(&mut events, Some(wait)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("the event loop: {error}")),
        }
        bell.answer();
        for event in &events {
            match event.token() {
                CONTROL => executor.on_control(&mut control)?,
                CHANNEL => executor.engine.consumer().on_event(event.is_readable(), monotonic_millis()),
                _ => {}
            }
        }
    }
}

struct Executor {
    engine: Engine<ChannelClient>,
    clock: Clock,
    said_ready: bool,
    /// Finish what runs, then end.
    stopping: bool,
    /// Handlers hold its workers: it ends, and says so.
    stuck: bool,
}

impl Executor {
    fn on_control(&mut self, control: &mut Control) -> Result<(), String> {
        control.flush();
        const GONE: &str = "the supervisor is gone";
        for message in control.read::<ToChild>().map_err(|_| GONE)? {
            match message {
                ToChild::Channel(address) => {
                    let address = address.parse().map_err(|_| "the channel's address is malformed")?;
                    self.engine.consumer().set_address(address, monotonic_millis());
                }
                ToChild::Ping => control.send(&ToParent::Pong),
                ToChild::Drain(_) | ToChild::Stop => {
                    self.stopping = true;
                    self.engine.drain(self.clock.now());
                }
                ToChild::Restarted(..) => {}
            }
        }
        if control.has_ended() { Err(GONE.into()) } else { Ok(()) }
    }

    /// Everything there is to do now; says how long to wait at most.
    fn turn(&mut self, poll: &Poll, control: &mut Control) -> Duration {
        let (now, now_ms) = (self.clock.now(), monotonic_millis());
        self.engine.consumer().tick(poll.registry(), now_ms);
        if self.engine.consumer().wants_drain() && !self.stopping {
            self.engine.drain(self.clock.now());
        }
        let next = match self.engine.turn(now) {
            Ok(next) => next,
            Err(error) => {
                log::debug!("the broker is lost: {error}");
                None
            }
        };
        let busy = self.engine.busy();
        self.engine.consumer().report(busy);
        self.engine.consumer().flush(now_ms);
        if !self.said_ready && self.engine.consumer().is_up() {
            self.said_ready = true;
            control.send(&ToParent::Ready(String::new()));
        }
        if self.engine.health(now) == Health::Stuck && !self.stuck {
            log::warn!(
                "handlers ignore the end of their time: this process finishes its other jobs and is replaced"
            );
            self.stuck = true;
            self.engine.drain(self.clock.now());
        }
        let channel = Duration::from_millis(self.engine.consumer().next_due_ms(now_ms));
        next.map_or(channel, |at: Timestamp| at.since(now).min(channel)).max(Duration::from_millis(1))
    }

    /// `Some` once nothing is left to finish.
    fn end(&mut self, control: &mut Control) -> Option<Exit> {
        if self.engine.health(self.clock.now()) != Health::Drained || !(self.stopping || self.stuck) {
            return None;
        }
        if !self.stopping && !self.engine.consumer().is_flushed() {
            return None;
        }
        if self.stuck && !self.stopping {
            control.send(&ToParent::Stuck);
        }
        Some(Exit::Done)
    }
}
