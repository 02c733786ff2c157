//! A crew under test: real threads around a helm that does what a helm must, and says what it has seen.
//!
//! It guards the suite against hanging: whatever is waited for comes within [`PATIENCE`], and a crew ends
//! with its test.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cofferdam::bell::Bell;
use cofferdam::clock::{Clock, Timestamp};
use cofferdam::execution::{Engine, Handlers, Health, Helm, Outfit, start};
use cofferdam::ports::{Consumer, Rules};
use cofferdam::process::reactor::Reactor;

/// Nothing here takes a second; a loaded machine may need some.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Without a broker, a helm looks again so soon.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// How a helm ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The test is over.
    Told,
    Drained,
}

/// As of the helm's last turn.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub turns: u64,
    pub health: Health,
    /// Leases at once, as while jobs are long.
    pub room: usize,
    /// Outcomes that counted, and those that came too late to.
    pub finished: u64,
    pub late: u64,
}

pub struct Crew {
    pub ended: Receiver<Ended>,
    bell: Bell,
    shared: Arc<Shared>,
}

struct Shared {
    drains: AtomicBool,
    ends: AtomicBool,
    seen: Mutex<Seen>,
}

struct TestHelm<C> {
    consumer: C,
    reactor: Reactor,
    shared: Arc<Shared>,
}

impl Crew {
    pub fn start<C: Consumer + 'static>(
        workers: usize,
        rules: Rules,
        clock: &Clock,
        handlers: Handlers,
        consumer: impl FnOnce(Bell) -> C,
    ) -> Crew {
        let reactor = Reactor::new(1).expect("the kernel has one");
        let bell = reactor.bell();
        let seen = Seen { turns: 0, health: Health::Working, room: 0, finished: 0, late: 0 };
        let (drains, ends) = Default::default();
        let shared = Arc::new(Shared { drains, ends, seen: Mutex::new(seen) });
        let consumer = consumer(bell.clone());
        let helm = TestHelm { consumer, reactor, shared: shared.clone() };
        let outfit = Outfit { workers, handlers, rules, clock: clock.clone(), bell: bell.clone() };
        Crew { ended: start(outfit, helm).expect("threads"), bell, shared }
    }

    pub fn ring(&self) {
        self.bell.ring();
    }

    /// From its next turn on it takes no leases, and it ends when it is drained.
    pub fn drain(&self) {
        self.shared.drains.store(true, Ordering::SeqCst);
        self.bell.ring();
    }

    pub fn seen(&self) -> Seen {
        *self.shared.seen.lock().expect("whole")
    }

    /// A turn that has not begun yet has ended.
    #[track_caller]
    pub fn turn(&self) {
        // The one under way now may have looked already.
        let turns = self.seen().turns;
        self.bell.ring();
        until("two turns", || {
            self.bell.ring();
            (self.seen().turns >= turns + 2).then_some(())
        });
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        self.bell.ring();
    }
}

impl<C: Consumer + 'static> Helm for TestHelm<C> {
    type End = Ended;

    fn turn(&mut self, engine: &mut Engine, now: Timestamp) -> ControlFlow<Ended, Duration> {
        if self.shared.ends.load(Ordering::SeqCst) {
            return ControlFlow::Break(Ended::Told);
        }
        let drains = self.shared.drains.load(Ordering::SeqCst);
        if drains {
            engine.books.drain(now);
        }
        let next = engine.exchange(&mut self.consumer, now);
        let health = engine.health(&self.consumer, now);
        let mut seen = self.shared.seen.lock().expect("whole");
        let books = &engine.books;
        let (room, finished, late) = (books.room(false), books.finished, books.late);
        *seen = Seen { turns: seen.turns + 1, health, room, finished, late };
        if drains && health == Health::Drained {
            return ControlFlow::Break(Ended::Drained);
        }
        ControlFlow::Continue(next.map_or(LOOK_AGAIN, |at| at.since(now)).max(LOOK_AGAIN))
    }

    fn wait(&mut self, most: Duration) -> ControlFlow<Ended> {
        self.reactor.wait(most).expect("the kernel goes on");
        ControlFlow::Continue(())
    }
}

/// Looks until there is something.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        std::thread::sleep(Duration::from_micros(300));
    }
}
