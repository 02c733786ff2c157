//! An engine on a thread of its own, for a consumer whose calls may wait or that lives in the broker's own process; and
//! the workers. Whoever started it looks at it and gives orders, and never waits for it.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::engine::{Engine, Health};
use super::registry::Handlers;
use super::run::Limits;
use super::worker::WorkerPool;
use crate::bell::{Bell, lock};
use crate::clock::{Clock, Timestamp};
use crate::job::JobId;
use crate::ports::{Consumer, Upkeep};

/// What was cut off is given back within this, or runs out with its lease. A supervisor waits longer before it kills.
pub const GIVE_BACK: Duration = Duration::from_millis(300);
/// Nothing rings for a moment that has come by itself.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What an engine runs with.
#[derive(Clone)]
pub struct Crew {
    pub workers: usize,
    pub handlers: Handlers,
    pub limits: Limits,
    pub clock: Clock,
}

/// See the module.
pub struct EngineThread {
    bell: Bell,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Nobody waits for its end.
    is_left: AtomicBool,
}

struct Shared {
    /// An [`Order`]; only later ones take the place of earlier ones.
    order: AtomicU8,
    state: Mutex<EngineState>,
}

/// What it is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    Work,
    /// Finish what runs, take no more.
    Drain,
    /// Give back what runs.
    CutOff,
    /// End.
    End,
}

/// How it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineState {
    pub health: Health,
    /// Its first turn is over: the broker knows of it, or is away.
    pub has_turned: bool,
    /// Deliveries that came to an outcome.
    pub finished: u64,
    /// Jobs that were given back by force.
    pub cut_off: Vec<JobId>,
    /// After its last turn: see [`Engine::open`].
    pub open: Vec<JobId>,
}

impl EngineThread {
    /// Starts a group's threads. `connect` makes the consumer, which rings the bell that it is given; `upkeep` is the
    /// broker's share of time, where nobody else looks after it; `changed` rings when the state is another one.
    pub fn start<C: Consumer + 'static>(
        crew: Crew,
        connect: impl FnOnce(Bell) -> Result<C, String>,
        upkeep: Option<Arc<dyn Upkeep>>,
        changed: Bell,
    ) -> Result<EngineThread, String> {
        let (cut_off, open) = Default::default();
        let state = EngineState { health: Health::Working, has_turned: false, finished: 0, cut_off, open };
        let shared = Arc::new(Shared { order: AtomicU8::new(Order::Work as u8), state: Mutex::new(state) });
        let Crew { workers, handlers, limits, clock } = crew;
        // The workers ring for the thread, so the thread is there first and waits for its engine.
        let (hand_over, engine) = sync_channel(1);
        let thread = std::thread::Builder::new().name("executor".into()).spawn({
            let (shared, clock) = (shared.clone(), clock.clone());
            move || {
                if let Ok((engine, bell)) = engine.recv() {
                    shared.turn_until_the_end(engine, &bell, upkeep.as_deref(), &clock, &changed);
                }
            }
        });
        let thread = thread.map_err(|error| error.to_string())?;
        let sleeper = thread.thread().clone();
        let bell = Bell::new(move || sleeper.unpark());
        let pool = WorkerPool::start(workers, handlers, limits, clock, bell.clone());
        let pool = pool.map_err(|error| error.to_string())?;
        let consumer = connect(bell.clone())?;
        let _ = hand_over.send((Engine::new(pool, workers, consumer, limits), bell.clone()));
        Ok(EngineThread { bell, shared, thread: Some(thread), is_left: AtomicBool::new(false) })
    }

    pub fn state(&self) -> EngineState {
        lock(&self.shared.state).clone()
    }

    /// No more leases; what runs finishes, the rest is given back. Then its health is `Drained`.
    pub fn drain(&self) {
        self.order(Order::Drain);
    }

    /// What still runs is given back, uncounted, and named in the state.
    pub fn cut_off(&self) {
        self.order(Order::CutOff);
    }

    /// Ends it. One that is not drained by then is not waited for either: a call of its may last longer than anybody has
    /// time. The jobs that were or are cut off.
    pub fn leave(&self) -> Vec<JobId> {
        let EngineState { health, mut cut_off, open, .. } = self.state();
        self.is_left.store(health != Health::Drained, Ordering::SeqCst);
        self.order(Order::End);
        cut_off.extend(open.into_iter().filter(|job| !cut_off.contains(job)).collect::<Vec<_>>());
        cut_off
    }

    /// True if its thread has ended by itself: it has panicked.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn order(&self, order: Order) {
        if self.shared.order.fetch_max(order as u8, Ordering::SeqCst) < order as u8 {
            self.bell.ring();
        }
    }
}

impl Shared {
    fn has_order(&self, order: Order) -> bool {
        self.order.load(Ordering::SeqCst) >= order as u8
    }

    fn turn_until_the_end(
        &self,
        mut engine: Engine<impl Consumer>,
        bell: &Bell,
        upkeep: Option<&dyn Upkeep>,
        clock: &Clock,
        changed: &Bell,
    ) {
        let mut drains = false;
        while !self.has_order(Order::End) {
            bell.answer();
            let now = clock.now();
            if self.has_order(Order::Drain) && !drains {
                drains = true;
                engine.drain(now);
            }
            if self.has_order(Order::CutOff) {
                lock(&self.state).cut_off.extend(engine.cut_off(now));
            }
            let turned = engine.turn(now);
            // After the turn: what it queued again may be due sooner than anything known before.
            let mut wake = upkeep.and_then(Upkeep::tick);
            match turned {
                Ok(next) => wake = [wake, next].into_iter().flatten().min(),
                Err(error) => {
                    log::error!("the broker is lost, and every lease with it: {error}");
                    if drains {
                        let mut state = lock(&self.state);
                        let lost = std::mem::take(&mut state.open);
                        state.cut_off.extend(lost);
                    }
                }
            }
            let now_is = (engine.health(now), true, engine.finished());
            let mut state = lock(&self.state);
            let was = (state.health, state.has_turned, state.finished);
            (state.health, state.has_turned, state.finished) = now_is;
            state.open = engine.open();
            drop(state);
            if was.0 != now_is.0 && now_is.0 == Health::Stuck {
                log::error!("a handler ignores its timeout; its worker thread is lost until it returns");
            }
            if was != now_is {
                changed.ring();
            }
            if bell.asleep() {
                let wait = wake.map_or(LOOK_EVERY, |at| at.since(clock.now()));
                std::thread::park_timeout(wait.clamp(Duration::from_millis(1), LOOK_EVERY));
            }
        }
    }
}

/// The engines of one process, as whoever stops it sees them.
pub struct Engines {
    pub engines: Vec<EngineThread>,
    /// What is queued stays queued, so they stop by themselves; else the broker's own upkeep knows when all is done.
    pub drain: bool,
}

impl Upkeep for Engines {
    fn tick(&self) -> Option<Timestamp> {
        None
    }

    fn is_idle(&self, _deadline: Timestamp) -> bool {
        if !self.drain {
            return true;
        }
        self.engines.iter().for_each(EngineThread::drain);
        self.engines.iter().all(|engine| engine.state().health == Health::Drained)
    }

    fn unfinished(&self) -> Vec<JobId> {
        if !self.drain {
            return Vec::new();
        }
        let begun = Instant::now();
        self.engines.iter().for_each(EngineThread::cut_off);
        while !self.is_idle(Timestamp::default()) && begun.elapsed() < GIVE_BACK {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.engines.iter().flat_map(EngineThread::leave).collect()
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.order(Order::End);
        if let Some(thread) = self.thread.take_if(|_| !self.is_left.load(Ordering::SeqCst)) {
            let _ = thread.join();
        }
    }
}
