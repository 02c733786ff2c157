//! `batch`: the batch process has the broker's seat, as web has in a service; its executors are threads of it, or
//! processes that one more thread hosts.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::Token;

use super::inline;
use super::serve::add_executors;
use crate::batch::{self, BatchError, BatchOptions, Lines, Summary};
use crate::bell::Bell;
use crate::clock::monotonic_millis;
use crate::config::secret::Secret;
use crate::deployment::{Backend, Deployment};
use crate::entropy::Entropy;
use crate::limits::{BATCH_COMMAND_LINES, SUB_LIVES};
use crate::process::hygiene::{self, Signals, drain_bytes, hear_hangup};
use crate::process::reactor::Reactor;
use crate::supervisor::fleet::{Fleet, FleetEvent};

const CHANNEL: Token = Token(1);
const FIRST_CHILD: usize = 16;
const FIRST_LINK: usize = 1 << 32;

/// Runs a whole batch.
pub fn run(deployment: &Deployment, options: &BatchOptions) -> Result<Summary, BatchError> {
    let handler = deployment.specs.iter().find(|spec| *spec.name == *options.handler).cloned();
    let unknown = || BatchError::Usage(format!("--handler: there is no handler {}", options.handler));
    let handler = handler.ok_or_else(unknown)?;
    let max_payload = deployment.platform().execution_ipc.max_payload_bytes;
    let mut lines = Lines::open(options.input.as_deref(), max_payload).map_err(BatchError::Usage)?;
    let mode = options.sink_mode.unwrap_or(deployment.config.runtime.ordering.sink_mode);
    let has_journal = deployment.journal().is_some();
    batch::vet(options, mode, has_journal)?;
    let failed = |error: std::io::Error| BatchError::Failed(error.to_string());
    hygiene::set_data_apart("batch").map_err(failed)?;

    let window = BATCH_COMMAND_LINES.min(deployment.platform().queue.capacity);
    let deployment = &deployment.for_batch(window);
    // Without a journal: a deployment of its own, that starts from empty state and leaves none.
    let own = || format!("batch-{:016x}:", Entropy::system().up_to(u64::MAX));
    let prefix = if has_journal { String::new() } else { own() };
    let sub = SubDeployment { deployment, prefix, renewed: Cell::new(Instant::now()) };
    let backend = &deployment.open(Vec::new(), &sub.prefix).map_err(BatchError::Failed)?;
    let _exporter = super::exporter(deployment, backend, Arc::default()).map_err(BatchError::Failed)?;
    let (before, mut output, kept) = batch::begin(options, has_journal.then_some(backend), &mut lines)?;
    if has_journal {
        // A run that was stopped has left it so.
        let resumed = backend.producer.pause(&handler.name, false);
        resumed.map_err(|error| BatchError::Failed(error.to_string()))?;
    }
    let mut signals = Signals::take().map_err(failed)?;
    let bell = Bell::for_this_thread();
    // Both end with what looks after them, which is before the backend and what is left behind there.
    let failed: Box<dyn Fn() -> Option<String>> = if deployment.is_inline() {
        let threads = inline::start(deployment, backend, &bell).map_err(BatchError::Failed)?;
        Box::new(move || (!threads.are_sound()).then(|| "an executor's threads have ended".into()))
    } else {
        let host = ExecutorHost::start(deployment, backend).map_err(BatchError::Failed)?;
        Box::new(move || host.failure.get().cloned())
    };
    let parts = batch::Parts {
        handler,
        mode,
        window,
        shows_progress: options.shows_progress,
        backend,
        exports_traces: deployment.config.observability.traces.file.is_some(),
        bell,
        failed: &|| {
            sub.renew();
            let broken =
                || (!backend.seat.is_sound()).then(|| "the journal cannot be written any more".into());
            failed().or_else(broken)
        },
        fitness: &|| deployment.fitness(None),
        stops: &mut || {
            if hear_hangup(&mut signals.hangup) {
                log::info!("SIGHUP: nothing is read again: a batch has its secret until it ends");
            }
            drain_bytes(&mut signals.stop)
        },
        patience: Duration::from_millis(deployment.platform().lifecycle.patience_ms()),
        before,
        kept: kept.as_ref(),
    };
    let mut summary = parts.run(lines, &mut output);
    if let Some(kept) = &kept {
        // Nothing that is cut off counts as lost with its executor.
        backend.seat.cut_off();
        let unsynced = |error| BatchError::Failed(format!("the output cannot be written: {error}"));
        let total = summary.and_then(|summary| kept.total(summary));
        summary = total.and_then(|total| output.sync().map_err(unsynced).map(|()| total));
    }
    drop(failed);
    deployment.end_workers();
    hygiene::end_orphans();
    hygiene::settle_prints();
    summary
}

/// What a batch has at its backend; nothing of it stays.
struct SubDeployment<'a> {
    deployment: &'a Deployment,
    prefix: String,
    renewed: Cell<Instant>,
}

impl SubDeployment<'_> {
    /// Lets it live on, now and then.
    fn renew(&self) {
        if self.renewed.get().elapsed() > SUB_LIVES / 3 {
            self.renewed.set(Instant::now());
            self.deployment.renew(&self.prefix);
        }
    }
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
        hygiene::become_subreaper().map_err(io)?;
        if deployment.has_programs() {
            hygiene::expect_programs();
        }
        let roots = deployment.root_secrets()?;
        let reactor = Reactor::new(256)?;
        let bell = reactor.bell();
        let (stop, failure) = (Arc::new(AtomicBool::new(false)), Arc::new(OnceLock::new()));
        let (stopped, failed) = (stop.clone(), failure.clone());
        let (deployment, backend) = (deployment.clone(), backend.clone());
        // The thread that spawns is the thread that lives as long as the children: their parent-death signal
        // follows it.
        let thread = std::thread::Builder::new().name("executors".into()).spawn(move || {
            let end = host(&deployment, &backend, roots, reactor, &stopped);
            end.unwrap_or_else(|message| _ = failed.set(message));
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

/// What that thread does.
fn host(
    deployment: &Deployment,
    backend: &Backend,
    roots: Vec<Secret>,
    mut reactor: Reactor,
    stop: &AtomicBool,
) -> Result<(), String> {
    let io = |error: std::io::Error| error.to_string();
    let platform = deployment.platform();
    let mut fleet = Fleet::new(platform, reactor.registry().try_clone().map_err(io)?, FIRST_CHILD);
    add_executors(&mut fleet, deployment, None, &roots[0])?;
    let secrets = deployment.group_secrets(&roots[0]);
    drop(roots);
    let mut channel = deployment.channel(secrets, backend, Arc::default(), reactor.bell())?;
    channel.register(reactor.registry(), CHANNEL).map_err(io)?;
    fleet.set_channel(channel.address().map_err(io)?.to_string());
    let mut next_link = FIRST_LINK;
    while !stop.load(Ordering::SeqCst) {
        let now_ms = monotonic_millis();
        fleet.tick(now_ms);
        for event in reactor.events() {
            match event.token() {
                CHANNEL => channel.on_connect(),
                Token(token) if fleet.on_event(token, now_ms) => {}
                Token(token) => channel.on_event(token, event, now_ms),
            }
        }
        for event in std::mem::take(&mut fleet.happened) {
            if let FleetEvent::GaveUp(why) = event {
                return Err(why);
            }
        }
        channel.turn(reactor.registry(), &mut next_link, now_ms);
        // After the turn: what it queued again may be due sooner than anything known before.
        let now = deployment.clock.now();
        let timer = backend.seat.tick(0).map_or(Duration::from_secs(60), |at| at.since(now));
        let due_ms = channel.next_due_ms(now_ms).unwrap_or(60_000).min(fleet.next_due_ms(now_ms));
        reactor.wait(timer.max(Duration::from_millis(1)).min(Duration::from_millis(due_ms)))?;
    }
    Ok(())
}
