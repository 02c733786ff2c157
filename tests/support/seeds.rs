//! Seeds of schedules, and how one that fails is played again.

use std::ops::Range;

/// All of these, or as many as `COFFERDAM_SCHEDULES` says; with `COFFERDAM_SEED` that one alone, or as many from it on.
pub fn seeds(schedules: u64) -> Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (seed, count) = (number("COFFERDAM_SEED"), number("COFFERDAM_SCHEDULES"));
    let begin = seed.unwrap_or(0);
    begin..begin + count.unwrap_or(if seed.is_some() { 1 } else { schedules })
}

/// Says how to replay a schedule that panics.
pub struct TellSeed(pub u64);

impl Drop for TellSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay this schedule alone with COFFERDAM_SEED={}", self.0);
        }
    }
}
