//! An executor process: the engine and the channel in one event loop, under a supervisor.

use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};

use super::apart::{Master, serve_apart};
use super::ended;
use super::recycle::RecyclePolicy;
use crate::bell::Bell;
use crate::channel::ChannelClient;
use crate::clock::{Clock, Timestamp, monotonic_millis};
use crate::deployment::Setup;
use crate::execution::{Engine, Health, Mirror, Registry, WorkerPool};
use crate::exit::Exit;
use crate::observe::log_writer;
use crate::ports::KeyValue;
use crate::process::bundle::Bundle;
use crate::process::control_socket::{ControlSocket, ToChild, ToParent};
use crate::process::hygiene;

const CONTROL: Token = Token(0);
const WAKER: Token = Token(1);
const CHANNEL: Token = Token(2);

/// The whole life of an executor that a supervisor has started.
#[must_use]
pub fn run_executor_child(registry: &Registry) -> Exit {
    ended("executor", serve_executor(registry))
}

fn serve_executor(registry: &Registry) -> Result<Exit, String> {
    let io = |error: std::io::Error| error.to_string();
    // Nobody may look into this process before it holds a secret.
    hygiene::begin_child().map_err(io)?;
    hygiene::become_subreaper().map_err(io)?;
    let (mut bundle, mut control) = Bundle::receive(hygiene::take_stdin().map_err(io)?)?;
    let setup = Setup::from_bundle(&bundle, registry)?;
    log_writer::start(setup.config.observability.log, "executor");
    let mut store: Option<Arc<dyn KeyValue>> = None;
    if setup.names_redis() {
        let inside = bundle.place.clone();
        let broker = setup.redis_of_bundle(&mut bundle, &inside)?;
        if setup.uses_redis() {
            let exit = serve_apart(&setup, usize::from(bundle.group), broker, Master::Supervisor(control));
            log_writer::settle();
            return exit;
        }
        store = Some(Arc::new(broker));
    }
    let secret = bundle.secret()?;
    let platform = &setup.config.runtime.platform;
    let group = platform.process_groups.get(usize::from(bundle.group)).ok_or("the bundle names no group")?;

    let mut poll = Poll::new().map_err(io)?;
    let bell = Bell::for_poll(&poll, WAKER).map_err(io)?;
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
    let context_ttl = Duration::from_secs(platform.kv.context_ttl_seconds);
    let engine = Engine::new(pool, workers, Mirror::new(client, store, context_ttl), limits);
    let clock = setup.clock.clone();
    let group = group.clone();
    let mut executor = Executor {
        engine,
        clock,
        recycle: RecyclePolicy::new(group),
        said_ready: false,
        stopping: false,
        leaving: false,
    };

    let mut events = Events::with_capacity(64);
    loop {
        let wait = executor.turn(&poll, &mut control);
        if let Some(exit) = executor.end() {
            log_writer::settle();
            return Ok(exit);
        }
        bell.wait(&mut poll, &mut events, wait)?;
        for event in &events {
            match event.token() {
                CONTROL => executor.on_control(&mut control)?,
                CHANNEL => {
                    executor.engine.consumer().inner().on_event(event.is_readable(), monotonic_millis())
                }
                _ => {}
            }
        }
    }
}

struct Executor {
    engine: Engine<Mirror<ChannelClient>>,
    clock: Clock,
    said_ready: bool,
    /// Finish what runs, then end.
    stopping: bool,
    /// It was told that it may go: it finishes its jobs and ends.
    leaving: bool,
    recycle: RecyclePolicy,
}

impl Executor {
    fn on_control(&mut self, control: &mut ControlSocket) -> Result<(), String> {
        control.flush();
        const GONE: &str = "the supervisor is gone";
        for message in control.read::<ToChild>().map_err(|_| GONE)? {
            match message {
                ToChild::Channel(address) => {
                    let address = address.parse().map_err(|_| "the channel's address is malformed")?;
                    self.engine.consumer().inner().set_address(address, monotonic_millis());
                }
                ToChild::Ping => control.send(&ToParent::Pong),
                ToChild::Drain(_) | ToChild::Stop => {
                    self.stopping = true;
                    self.engine.drain(self.clock.now());
                }
                ToChild::Leave => {
                    self.leaving = true;
                    self.engine.drain(self.clock.now());
                }
                ToChild::Restarted(..) | ToChild::Gone(_) => {}
            }
        }
        if control.has_ended() { Err(GONE.into()) } else { Ok(()) }
    }

    /// Everything there is to do now; says how long to wait at most.
    fn turn(&mut self, poll: &Poll, control: &mut ControlSocket) -> Duration {
        let (now, now_ms) = (self.clock.now(), monotonic_millis());
        self.engine.consumer().inner().tick(poll.registry(), now_ms);
        if self.engine.consumer().inner().wants_drain() && !self.stopping {
            self.engine.drain(self.clock.now());
        }
        let next = match self.engine.turn(now) {
            Ok(next) => next,
            Err(error) => {
                log::debug!("the broker is lost: {error}");
                None
            }
        };
        if self.said_ready
            && !self.stopping
            && let Some(why) = self.recycle.asks(self.engine.health(now), self.engine.finished(), now_ms)
        {
            control.send(&ToParent::Leaving(why));
        }
        if self.leaving {
            // The service goes on: no lease may be sent to where nobody would run it.
            self.engine.consumer().inner().withdraw();
        }
        let busy = self.engine.busy();
        self.engine.consumer().inner().report(busy);
        self.engine.consumer().inner().flush(now_ms);
        if !self.said_ready && self.engine.consumer().inner().is_up() {
            self.said_ready = true;
            control.send(&ToParent::Ready(String::new()));
        }
        let channel = Duration::from_millis(self.engine.consumer().inner().next_due_ms(now_ms));
        next.map_or(channel, |at: Timestamp| at.since(now).min(channel)).max(Duration::from_millis(1))
    }

    /// `Some` once nothing is left to finish.
    fn end(&mut self) -> Option<Exit> {
        if self.engine.health(self.clock.now()) != Health::Drained || !(self.stopping || self.leaving) {
            return None;
        }
        let consumer = self.engine.consumer().inner();
        (self.stopping || (consumer.withdraw() && consumer.is_flushed())).then_some(Exit::Done)
    }
}
