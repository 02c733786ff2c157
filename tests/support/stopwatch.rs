//! Time that tests bound, without the time for which the machine stood still.
//!
//! It guards bounds of a second or two against a host that takes its processors away: a thread of the test program sleeps
//! again and again, and what it sleeps beyond its time is a stall. A service that is slow keeps nobody else's thread from
//! waking up. In scope: upper bounds. A lower bound is of the time that passed, which [`Instant`] tells.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The watchdog sleeps for so long at a time.
const NAP: Duration = Duration::from_millis(10);
/// A processor that others use, too, wakes a thread so late without a stall.
const LATE: Duration = Duration::from_millis(10);

/// What the watchdog has seen (pure).
#[derive(Clone, Copy)]
struct Naps {
    /// All stalls of naps that are over.
    stalled: Duration,
    /// Since when it sleeps.
    begun: Instant,
}

impl Naps {
    /// All stalls until now, with the one under way: a test may wake up before the watchdog does.
    fn stalled(self, now: Instant) -> Duration {
        let slept = now.saturating_duration_since(self.begun);
        let stall = if slept > NAP + LATE { slept - NAP } else { Duration::ZERO };
        self.stalled + stall
    }

    fn next(self, now: Instant) -> Naps {
        Naps { stalled: self.stalled(now), begun: now }
    }
}

/// Those of this program's watchdog, which begins with the first who asks.
fn naps() -> Naps {
    static NAPS: OnceLock<Mutex<Naps>> = OnceLock::new();
    let lock = |naps: &'static Mutex<Naps>| naps.lock().unwrap_or_else(PoisonError::into_inner);
    let naps = NAPS.get_or_init(|| {
        std::thread::spawn(move || {
            let naps = NAPS.wait();
            loop {
                std::thread::sleep(NAP);
                let mut naps = lock(naps);
                *naps = naps.next(Instant::now());
            }
        });
        Mutex::new(Naps { stalled: Duration::ZERO, begun: Instant::now() })
    });
    *lock(naps)
}

/// Begins when it is made.
#[derive(Clone, Copy)]
pub struct Stopwatch {
    begun: Instant,
    /// What had been stalled by then.
    stalled: Duration,
}

impl Stopwatch {
    pub fn start() -> Stopwatch {
        let naps = naps();
        let begun = Instant::now();
        Stopwatch { begun, stalled: naps.stalled(begun) }
    }

    /// The time since its start, without what was stalled meanwhile.
    pub fn elapsed(&self) -> Duration {
        let (naps, now) = (naps(), Instant::now());
        let stalled = naps.stalled(now).saturating_sub(self.stalled);
        now.saturating_duration_since(self.begun).saturating_sub(stalled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_nap_takes_too_long_is_a_stall_also_while_it_lasts_and_ordinary_lateness_is_none() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let naps = Naps { stalled: Duration::ZERO, begun };
        assert_eq!(naps.stalled(at(20)), Duration::ZERO);
        assert_eq!(naps.stalled(at(510)), Duration::from_millis(500));
        let naps = naps.next(at(510)).next(at(525));
        assert_eq!(naps.stalled(at(545)), Duration::from_millis(500));
        assert_eq!(naps.stalled(at(575)), Duration::from_millis(540));
    }
}
