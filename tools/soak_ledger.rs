//! What was done, what came of it, and what is broken.
//!
//! One ledger lives as long as the run; a [`Round`] as long as one service. A round knows when its web process was
//! taken away, because that excuses what is otherwise a fault: a lost connection, a job that nobody knows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub const TERMINAL: &str = "nothing accepted lacks a terminal status";
pub const OWN_ANSWER: &str = "no caller gets another's answer";
pub const ANSWERED: &str = "every complete request is answered or closed within its deadline";
pub const DOCUMENTED: &str = "every answer is one that the contract knows";
pub const ONCE: &str = "each effect takes place once";
pub const RECOVERY: &str = "once the fault is gone, latency is back within 5 s";
pub const LEFT: &str = "no process, thread, descriptor or temporary file is left";
pub const SECRETS: &str = "no secret, token or payload is in a log";
pub const EXIT: &str = "the exit code is the documented one";
pub const MEMORY: &str = "the memory of web stays flat";
pub const STRANGER: &str = "a stranger on the channel gets not one byte and is closed in time";
pub const BY_ITSELF: &str = "no process ends that nobody took away";
pub const INVARIANTS: [&str; 12] = [
    TERMINAL, OWN_ANSWER, ANSWERED, DOCUMENTED, ONCE, RECOVERY, LEFT, SECRETS, EXIT, MEMORY, STRANGER,
    BY_ITSELF,
];

/// A lock whose holder panicked is still the only copy of what we know.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers that a seed repeats: splitmix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In `least..most`.
    pub fn within(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least)
    }

    pub fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.within(least, most))
    }
}

pub struct Ledger {
    begun: Instant,
    file: Mutex<File>,
    counts: Mutex<BTreeMap<String, u64>>,
    /// How often, and the first case.
    broken: Mutex<BTreeMap<&'static str, (u64, String)>>,
    pub slowest_recovery: Mutex<(Duration, String)>,
}

impl Ledger {
    pub fn new(file: File) -> Ledger {
        Ledger {
            begun: Instant::now(),
            file: Mutex::new(file),
            counts: Mutex::default(),
            broken: Mutex::default(),
            slowest_recovery: Mutex::default(),
        }
    }

    /// One line of the log of actions.
    pub fn log(&self, line: &str) {
        let at = self.begun.elapsed().as_secs_f64();
        // A full disk must not end the run: what counts is in the summary too.
        let _ = writeln!(locked(&self.file), "{at:9.3} {line}");
    }

    pub fn count(&self, what: &str) {
        self.add(what, 1);
    }

    pub fn add(&self, what: &str, more: u64) {
        *locked(&self.counts).entry(what.to_owned()).or_default() += more;
    }

    pub fn counted(&self, what: &str) -> u64 {
        locked(&self.counts).get(what).copied().unwrap_or(0)
    }

    /// All counts whose names begin like this, without it.
    pub fn counts(&self, prefix: &str) -> Vec<(String, u64)> {
        let counts = locked(&self.counts);
        counts
            .iter()
            .filter_map(|(name, count)| Some((name.strip_prefix(prefix)?.to_owned(), *count)))
            .collect()
    }

    pub fn broken(&self, invariant: &'static str, case: &str) {
        self.log(&format!("BROKEN {invariant}: {case}"));
        let mut broken = locked(&self.broken);
        broken.entry(invariant).or_insert_with(|| (0, case.to_owned())).0 += 1;
    }

    pub fn outcome(&self, invariant: &'static str) -> Option<(u64, String)> {
        locked(&self.broken).get(invariant).cloned()
    }

    pub fn recovered(&self, after: &str, took: Duration) {
        let mut slowest = locked(&self.slowest_recovery);
        if took > slowest.0 {
            *slowest = (took, after.to_owned());
        }
    }
}

/// A time in which a web process was taken away.
struct Death {
    from: Instant,
    /// `None` until it was seen to be gone.
    until: Option<Instant>,
}

/// How a round's service is brought to its end under load.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Drained,
    Killed,
}

/// A request sent this shortly before SIGTERM may meet a service that has already ended.
const AT_THE_END: Duration = Duration::from_millis(200);

/// One service's life as its callers see it.
pub struct Round<'a> {
    pub ledger: &'a Ledger,
    pub address: SocketAddr,
    /// In every payload, so that a log line that holds one is found.
    pub marker: String,
    pub stop: AtomicBool,
    deaths: Mutex<Vec<Death>>,
    ending: Mutex<Option<(Instant, Ending)>>,
    /// The numbers that callers were given, by web's life and lane.
    given: Mutex<HashMap<(usize, String), HashSet<u64>>>,
    /// Every child that was seen.
    pub pids: Mutex<HashSet<u32>>,
}

impl<'a> Round<'a> {
    pub fn new(ledger: &'a Ledger, address: SocketAddr, marker: String) -> Round<'a> {
        Round {
            ledger,
            address,
            marker,
            stop: AtomicBool::new(false),
            deaths: Mutex::default(),
            ending: Mutex::default(),
            given: Mutex::default(),
            pids: Mutex::default(),
        }
    }

    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Web is about to be taken away.
    pub fn web_dies(&self) {
        locked(&self.deaths).push(Death { from: Instant::now(), until: None });
    }

    /// It is gone: whatever is sent from now on meets its successor.
    pub fn web_is_dead(&self) {
        if let Some(death) = locked(&self.deaths).last_mut() {
            death.until = Some(Instant::now());
        }
    }

    /// Which life web is in, from 0; `None` while one is being taken away.
    pub fn life(&self) -> Option<usize> {
        let deaths = locked(&self.deaths);
        deaths.iter().all(|death| death.until.is_some()).then_some(deaths.len())
    }

    pub fn ends(&self, how: Ending) {
        *locked(&self.ending) = Some((Instant::now(), how));
    }

    pub fn ending(&self) -> Option<Ending> {
        locked(&self.ending).map(|(_, how)| how)
    }

    /// True if web was taken away since a request was sent: its connection and its job may have gone with it.
    pub fn died_since(&self, sent: Instant) -> bool {
        locked(&self.deaths)
            .iter()
            .any(|death| death.until.is_none_or(|until| sent <= until) && death.from <= Instant::now())
    }

    /// True if a connection may be lost that was opened then, and on which a request was sent then.
    pub fn may_be_cut(&self, opened: Instant, sent: Instant) -> bool {
        let by_the_end = locked(&self.ending).is_some_and(|(at, how)| match how {
            Ending::Killed => true,
            Ending::Drained => sent + AT_THE_END >= at,
        });
        by_the_end || self.died_since(opened)
    }

    /// A caller was told this number; `asked_in` is web's life when it asked.
    pub fn given(&self, asked_in: Option<usize>, lane: &str, number: u64) {
        // An answer is from the life in which it was asked for if that is still the present one.
        let (Some(asked_in), Some(now)) = (asked_in, self.life()) else { return };
        if asked_in == now && !locked(&self.given).entry((now, lane.to_owned())).or_default().insert(number) {
            self.ledger.broken(ONCE, &format!("two jobs of lane {lane} were told {number}"));
        }
    }

    /// The lanes that answered in this life, each with its largest number.
    pub fn lanes(&self, life: usize) -> Vec<(String, u64)> {
        let given = locked(&self.given);
        let here = given.iter().filter(|((of, _), _)| *of == life);
        here.map(|((_, lane), numbers)| (lane.clone(), numbers.iter().copied().max().unwrap_or(0))).collect()
    }
}
