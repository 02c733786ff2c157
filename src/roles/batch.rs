//! `batch`: the batch process has the broker's seat, as web has in a service; its executors are threads of it, or
//! processes that one more thread hosts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::Token;

use super::inline;
use super::serve::add_executors;
use crate::batch::{self, BatchError, BatchOptions, Lines, Summary};
use crate::bell::Bell;
use crate::channel::keys::GroupSecret;
use crate::channel::{ChannelServer, ServerConfig};
use crate::clock::{Clock, monotonic_millis};
use crate::deployment::{Backend, Deployment, Opening};
use crate::entropy::Entropy;
use crate::limits::BATCH_COMMAND_LINES;
use crate::observe::metrics::Counters;
use crate::ports::Seat;
use crate::process::control_socket::ToChild;
use crate::process::hygiene;
use crate::process::reactor::Reactor;
use crate::supervisor::fleet::{Fleet, FleetEvent};

const CHANNEL: Token = Token(1);
const FIRST_CHILD: usize = 16;
const FIRST_LINK: usize = 1 << 32;

/// Runs a whole batch.
///
/// # Errors
/// The user's fault, or ours.
pub fn run(deployment: &Deployment, options: &BatchOptions) -> Result<Summary, BatchError> {
    let handler = deployment.specs.iter().find(|spec| *spec.name == *options.handler).cloned();
    let unknown = || BatchError::Usage(format!("--handler: there is no handler {}", options.handler));
    let handler = handler.ok_or_else(unknown)?;
    let max_payload = deployment.config.runtime.platform.execution_ipc.max_payload_bytes;
    let lines = Lines::open(options.input.as_deref(), max_payload).map_err(BatchError::Usage)?;
    let output = batch::open_output(options.input.as_deref(), options.output.as_deref())?;

    let window = BATCH_COMMAND_LINES.min(deployment.config.runtime.platform.queue.capacity);
    let deployment = &deployment.for_batch(window).map_err(BatchError::Failed)?;
    // A deployment of its own, that starts from empty state and leaves none.
    let left_behind =
        SubDeployment { deployment, prefix: format!("batch-{:016x}:", Entropy::system().up_to(u64::MAX)) };
    let opening = Opening { sub_prefix: &left_behind.prefix, ..Opening::default() };
    let backend = deployment.open(opening).map_err(BatchError::Failed)?;
    let bell = Bell::for_this_thread();
    // Both end with what looks after them, which is before the backend and what is left behind there.
    let failed: Box<dyn Fn() -> Option<String>> = if deployment.is_inline() {
        let threads = inline::start(deployment, &backend, &bell).map_err(BatchError::Failed)?;
        Box::new(move || (!threads.are_sound()).then(|| "an executor's threads have ended".into()))
    } else {
        let host = ExecutorHost::start(deployment, &backend).map_err(BatchError::Failed)?;
        Box::new(move || host.failure.get().cloned())
    };
    let mode = options.sink_mode.unwrap_or(deployment.config.runtime.ordering.sink_mode);
    let parts = batch::Parts {
        handler,
        mode,
        window,
        shows_progress: options.shows_progress,
        backend: &backend,
        bell,
        failed: &*failed,
    };
    parts.run(lines, output)
}

/// What a batch has at its backend; nothing of it stays.
struct SubDeployment<'a> {
    deployment: &'a Deployment,
    prefix: String,
}

impl Drop for SubDeployment<'_> {
    fn drop(&mut self) {
        self.deployment.remove(&self.prefix);
    }
}

/// The thread that hosts the channel's listener and the executor processes; dropping it ends them.
struct ExecutorHost {
    stop: Arc<AtomicBool>,
    /// Why the executors cannot be kept running.
    failure: Arc<OnceLock<String>>,
    bell: Bell,
    thread: Option<JoinHandle<()>>,
}

impl ExecutorHost {
    /// Starts the executors; they are not waited for.
    fn start(deployment: &Deployment, backend: &Backend) -> Result<ExecutorHost, String> {
        let io = |error: std::io::Error| error.to_string();
        hygiene::keep_secrets().map_err(io)?;
        hygiene::become_subreaper().map_err(io)?;
        let roots = deployment.root_secrets()?;
        let platform = &deployment.config.runtime.platform;
        let reactor = Reactor::new(256)?;
        let bell = reactor.bell();
        let mut fleet =
            Fleet::new(platform.lifecycle.clone(), platform.execution_ipc.heartbeat_ms, FIRST_CHILD);
        let groups: Vec<usize> = (0..platform.process_groups.len()).collect();
        add_executors(&mut fleet, deployment, &groups, &roots[0]);
        let config = ServerConfig {
            secrets: deployment.groups().iter().map(|group| GroupSecret::derive(&roots[0], group)).collect(),
            ipc: platform.execution_ipc.clone(),
            lane_state_max: platform.kv.lane_state_max_bytes,
            processes: platform.process_groups.iter().map(|group| group.processes).collect(),
        };
        let (stop, failure) = (Arc::new(AtomicBool::new(false)), Arc::new(OnceLock::new()));
        let (stopped, failed) = (stop.clone(), failure.clone());
        let (consumers, ring) = (backend.consumers.clone(), bell.clone());
        let (seat, clock) = (backend.seat.clone(), deployment.clock.clone());
        // The thread that spawns is the thread that lives as long as the children: their parent-death signal
        // follows it.
        let thread = std::thread::Builder::new().name("executors".into()).spawn(move || {
            let connect = move |group| consumers(group, ring.clone());
            let channel = ChannelServer::bind(config, Arc::new(Counters::default()), Box::new(connect));
            let end =
                channel.and_then(|channel| host(reactor, &*seat, channel, &mut fleet, &stopped, &clock));
            if let Err(message) = end {
                let _ = failed.set(message);
            }
            fleet.kill_all();
        });
        Ok(ExecutorHost { stop, failure, bell, thread: Some(thread.map_err(io)?) })
    }
}

impl Drop for ExecutorHost {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The loop of that thread.
fn host(
    mut reactor: Reactor,
    seat: &dyn Seat,
    mut channel: ChannelServer,
    fleet: &mut Fleet,
    stop: &AtomicBool,
    clock: &Clock,
) -> Result<(), String> {
    let mut next_link = FIRST_LINK;
    channel.register(reactor.registry(), CHANNEL).map_err(|error| error.to_string())?;
    let address = channel.address().map_err(|error| error.to_string())?.to_string();
    while !stop.load(Ordering::SeqCst) {
        let now_ms = monotonic_millis();
        let mut happened = fleet.tick(reactor.registry(), now_ms);
        fleet.tell_new(&ToChild::Channel(address.clone()));
        for event in reactor.events() {
            match event.token() {
                CHANNEL => channel.on_connect(),
                Token(token) if fleet.owns(token) => happened.extend(fleet.on_event(token, now_ms)),
                Token(token) => channel.on_event(token, event, now_ms),
            }
        }
        for event in happened {
            if let FleetEvent::GaveUp(why) = event {
                return Err(why);
            }
        }
        channel.turn(reactor.registry(), &mut next_link, now_ms);
        // After the turn: what it queued again may be due sooner than anything known before.
        let timer = seat.tick(0).map_or(Duration::from_secs(60), |at| at.since(clock.now()));
        let due_ms = channel.next_due_ms(now_ms).unwrap_or(60_000).min(fleet.next_due_ms(now_ms));
        reactor.wait(timer.max(Duration::from_millis(1)).min(Duration::from_millis(due_ms)))?;
    }
    Ok(())
}
