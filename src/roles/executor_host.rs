//! Executor processes for a broker that is not web's: `batch` with separate processes.
//!
//! One thread hosts the channel's listener and the fleet of executors, as web and the supervisor do together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::{Events, Poll, Registry, Token};

use super::serve::add_executors;
use crate::bell::Bell;
use crate::channel::keys::GroupSecret;
use crate::channel::{ChannelServer, ServerConfig};
use crate::clock::{Clock, monotonic_millis};
use crate::deployment::{Backend, Setup};
use crate::memory::MemoryBroker;
use crate::observe::metrics::Counters;
use crate::ports::{Consumer, Upkeep};
use crate::process::control_socket::ToChild;
use crate::process::hygiene;
use crate::supervisor::fleet::{Fleet, FleetEvent};

const WAKER: Token = Token(0);
const CHANNEL: Token = Token(1);
const FIRST_CHILD: usize = 16;
const FIRST_LINK: usize = 1 << 16;

/// The executors of a batch; dropping it ends them.
pub struct ExecutionHost {
    stop: Arc<AtomicBool>,
    failure: Arc<Mutex<Option<String>>>,
    bell: Bell,
    thread: Option<JoinHandle<()>>,
}

impl ExecutionHost {
    /// Starts the executors, and the channel where they need one; they are not waited for. `inside` is the deployment
    /// inside the one in Redis.
    ///
    /// # Errors
    /// The channel cannot listen, or there is no secret.
    pub fn start(setup: &Setup, backend: &Backend, inside: &str) -> Result<ExecutionHost, String> {
        let io = |error: std::io::Error| error.to_string();
        hygiene::keep_secrets().map_err(io)?;
        hygiene::become_subreaper().map_err(io)?;
        let root = setup.root_secret()?;
        let platform = &setup.config.runtime.platform;
        let poll = Poll::new().map_err(io)?;
        let bell = Bell::for_poll(&poll, WAKER).map_err(io)?;
        let mut fleet =
            Fleet::new(platform.lifecycle.clone(), platform.execution_ipc.heartbeat_ms, FIRST_CHILD);
        add_executors(&mut fleet, setup, &root, inside)?;
        let config = ServerConfig {
            secrets: setup.groups().iter().map(|group| GroupSecret::derive(&root, group)).collect(),
            ipc: platform.execution_ipc.clone(),
            lane_state_max: platform.kv.lane_state_max_bytes,
        };
        let (stop, failure) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let (stopped, failed, wake) = (stop.clone(), failure.clone(), bell.clone());
        let (backend, upkeep, clock) = (backend.clone(), backend.upkeep(|| 0), setup.clock.clone());
        let (ready, started) = sync_channel(1);
        // The thread that spawns is the thread that lives as long as the children: their parent-death signal
        // follows it.
        let thread = std::thread::Builder::new().name("executors".into()).spawn(move || {
            let channel = match &backend {
                Backend::Memory(broker) => listen(config, broker, &wake, poll.registry()).map(Some),
                Backend::Redis(_) => Ok(None),
            };
            let channel = match channel {
                Ok(channel) => channel,
                Err(message) => return drop(ready.send(Err(message))),
            };
            let _ = ready.send(Ok(()));
            let end = host(poll, &wake, &*upkeep, channel, &mut fleet, &stopped, &clock);
            if let Err(message) = end {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
            }
            fleet.kill_all();
        });
        let thread = thread.map_err(io)?;
        match started.recv() {
            Ok(Ok(())) => Ok(ExecutionHost { stop, failure, bell, thread: Some(thread) }),
            Ok(Err(message)) => Err(message),
            Err(_) => Err("the executors' thread has ended at its start".into()),
        }
    }

    /// `Some` once executors cannot be kept running.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for ExecutionHost {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(
    config: ServerConfig,
    broker: &MemoryBroker,
    bell: &Bell,
    registry: &Registry,
) -> Result<ChannelServer, String> {
    let (consumers, ring) = (broker.clone(), bell.clone());
    let connect = move |group| Box::new(consumers.consumer(group, ring.clone())) as Box<dyn Consumer>;
    let mut channel = ChannelServer::bind(config, Arc::new(Counters::default()), Box::new(connect))?;
    channel.register(registry, CHANNEL).map_err(|error| error.to_string())?;
    Ok(channel)
}

/// The loop of that thread.
fn host(
    mut poll: Poll,
    bell: &Bell,
    upkeep: &dyn Upkeep,
    mut channel: Option<ChannelServer>,
    fleet: &mut Fleet,
    stop: &AtomicBool,
    clock: &Clock,
) -> Result<(), String> {
    let mut events = Events::with_capacity(256);
    let mut next_link = FIRST_LINK;
    let mut accepting = false;
    let address =
        channel.as_ref().map(ChannelServer::address).transpose().map_err(|error| error.to_string())?;
    while !stop.load(Ordering::SeqCst) {
        let now_ms = monotonic_millis();
        let mut happened = fleet.tick(poll.registry(), now_ms);
        if let Some(address) = address {
            fleet.tell_new(&ToChild::Channel(address.to_string()));
        }
        for event in &events {
            let Token(token) = event.token();
            if event.token() == CHANNEL {
                accepting = true;
            } else if fleet.owns(token) {
                happened.extend(fleet.on_event(token, now_ms));
            } else if let Some(channel) = channel.as_mut().filter(|channel| channel.owns(token)) {
                channel.on_event(token, event.is_readable() || event.is_read_closed(), now_ms);
            }
        }
        for event in happened {
            match event {
                FleetEvent::GaveUp(why) => return Err(why),
                FleetEvent::Broke(name) => upkeep.lost(&name),
                FleetEvent::Ready(..)
                | FleetEvent::Replaced(..)
                | FleetEvent::Recycled(..)
                | FleetEvent::CutOff(_)
                | FleetEvent::Drained(_) => {}
            }
        }
        if let Some(channel) = &mut channel {
            if accepting {
                accepting = channel.accept(poll.registry(), &mut next_link, now_ms);
            }
            channel.turn(now_ms);
        }
        // After the turn: what it queued again may be due sooner than anything known before. On Redis each step of an
        // executor looks after time.
        let wake = channel.as_ref().and_then(|_| upkeep.tick());
        let due_ms = channel.as_ref().and_then(ChannelServer::next_due_ms).unwrap_or(60_000);
        let due = [due_ms, fleet.next_due_ms(now_ms)];
        let timer = wake.map_or(Duration::from_secs(60), |at| at.since(clock.now()));
        let wait = timer.min(Duration::from_millis(due[0].min(due[1]))).max(Duration::from_millis(1));
        bell.wait(&mut poll, &mut events, if accepting { Duration::ZERO } else { wait })?;
    }
    Ok(())
}
