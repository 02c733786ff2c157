//! An executor inside the broker's own process: one thread that turns the engine, and the workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use super::core::Limits;
use super::engine::{Engine, Health};
use super::worker::WorkerPool;
use crate::bell::Bell;
use crate::clock::Clock;
use crate::handler::Handlers;
use crate::memory::MemoryBroker;
use crate::ports::{Consumer, Upkeep};

/// A group's executor on threads of this process.
pub struct InlineExecutor {
    bell: Bell,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl InlineExecutor {
    /// Starts the group's threads. Its thread also does the broker's share of time (`tick`).
    pub fn start(
        broker: MemoryBroker,
        group: usize,
        workers: usize,
        handlers: Handlers,
        limits: Limits,
        clock: Clock,
    ) -> std::io::Result<InlineExecutor> {
        let stop = Arc::new(AtomicBool::new(false));
        // The workers ring for the thread, so the thread is there first and waits for its engine.
        let (hand_over, engine) = sync_channel(1);
        let thread = std::thread::Builder::new().name("executor".into()).spawn({
            let (broker, clock, stop) = (broker.clone(), clock.clone(), stop.clone());
            move || {
                if let Ok((engine, bell)) = engine.recv() {
                    turn_until(&stop, engine, &bell, &broker, &clock);
                }
            }
        })?;
        let sleeper = thread.thread().clone();
        let bell = Bell::new(move || sleeper.unpark());
        let pool = WorkerPool::start(workers, handlers, limits, clock, bell.clone())?;
        let consumer = broker.consumer(group, bell.clone());
        let _ = hand_over.send((Engine::new(pool, workers, consumer, limits), bell.clone()));
        Ok(InlineExecutor { bell, stop, thread: Some(thread) })
    }
}

fn turn_until(
    stop: &AtomicBool,
    mut engine: Engine<impl Consumer>,
    bell: &Bell,
    broker: &MemoryBroker,
    clock: &Clock,
) {
    let mut was_stuck = false;
    while !stop.load(Ordering::SeqCst) {
        bell.answer();
        let now = clock.now();
        let turned = engine.turn(now);
        // After the turn: what it queued again may be due sooner than anything known before.
        let mut wake = broker.tick();
        match turned {
            Ok(next) => wake = [wake, next].into_iter().flatten().min(),
            Err(error) => log::error!("the memory broker is lost: {error}"),
        }
        let is_stuck = engine.health(now) == Health::Stuck;
        if is_stuck && !was_stuck {
            log::error!("a handler ignores its timeout; inline, its worker thread is lost until it returns");
        }
        was_stuck = is_stuck;
        if bell.asleep() {
            let wait = wake.map_or(Duration::from_secs(1), |at| at.since(clock.now()));
            std::thread::park_timeout(wait.clamp(Duration::from_millis(1), Duration::from_secs(1)));
        }
    }
}

impl Drop for InlineExecutor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
