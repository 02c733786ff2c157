//! Executors on threads of this process, without a channel: a crew for each group.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use crate::bell::Bell;
use crate::clock::Timestamp;
use crate::deployment::{Backend, Deployment};
use crate::execution::{self, Engine, Health, Helm};
use crate::ports::Consumer;
use crate::process::reactor::Reactor;

/// The crews of this process; dropping it ends those of their threads that no handler holds.
pub struct InlineExecutors {
    crews: Vec<(Receiver<()>, Bell)>,
    stop: Arc<AtomicBool>,
}

/// Starts a crew for each group. `changed` rings when one of them has ended.
pub fn start(deployment: &Deployment, backend: &Backend, changed: &Bell) -> Result<InlineExecutors, String> {
    deployment.start_workers()?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut crews = Vec::new();
    for (index, group) in deployment.platform().process_groups.iter().enumerate() {
        let reactor = Reactor::new(1)?;
        let bell = reactor.bell();
        let consumer = (backend.consumers)(index, bell.clone());
        let (stop, changed) = (stop.clone(), changed.clone());
        let helm = InlineHelm { consumer, reactor, is_stuck: false, stop, changed };
        let ended = execution::start(deployment.outfit(group.workers, bell.clone()), helm);
        crews.push((ended.map_err(|error| format!("group {}: {error}", group.name))?, bell));
    }
    Ok(InlineExecutors { crews, stop })
}

impl InlineExecutors {
    /// False once a crew has ended by itself, which is a bug of ours: nobody would run its jobs any more.
    pub fn are_sound(&self) -> bool {
        self.crews.iter().all(|(ended, _)| ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty))
    }
}

impl Drop for InlineExecutors {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.crews.iter().for_each(|(_, bell)| bell.ring());
    }
}

struct InlineHelm {
    consumer: Box<dyn Consumer>,
    reactor: Reactor,
    is_stuck: bool,
    stop: Arc<AtomicBool>,
    changed: Bell,
}

impl Helm for InlineHelm {
    type End = ();

    fn turn(&mut self, engine: &mut Engine, now: Timestamp) -> ControlFlow<(), Duration> {
        if self.stop.load(Ordering::SeqCst) {
            engine.books.cut_off(now);
            return ControlFlow::Break(());
        }
        let exchanged = engine.exchange(&mut *self.consumer, now);
        let lost = |error| log::error!("the broker is lost, and every lease with it: {error}");
        let Ok(next) = exchanged.map_err(lost) else { return ControlFlow::Break(()) };
        let is_stuck = engine.health(&*self.consumer, now) == Health::Stuck;
        if is_stuck && !self.is_stuck {
            log::error!("a handler ignores its timeout; its worker thread is lost until it returns");
        }
        self.is_stuck = is_stuck;
        ControlFlow::Continue(next.since(now).max(Duration::from_millis(1)))
    }

    fn wait(&mut self, most: Duration) -> ControlFlow<()> {
        if self.reactor.wait(most).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

impl Drop for InlineHelm {
    fn drop(&mut self) {
        self.changed.ring();
    }
}
