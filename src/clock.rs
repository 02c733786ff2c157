//! The one time of a deployment on one host.
//!
//! [`Timestamp`] is wall-clock time taken once, at the start, plus monotonic time since: records show it
//! as a date, leases and deadlines compare it, and a step of the wall clock is never seen by either.
//! In scope: reading, adding, and RFC 3339. Not in scope: sleeping, timers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Whole microseconds; saturates.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Whole milliseconds; saturates.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This time and `duration` more; saturates.
    pub fn plus(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(micros(duration)))
    }

    /// How long ago `earlier` was, zero if it lies ahead.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// Milliseconds since the epoch, rounded down.
    pub fn millis(self) -> u64 {
        self.0 / 1_000
    }

    /// Reads what its [`fmt::Display`] writes, with any fraction of a second or none (RFC 3339, 5.6, UTC only), from 1970 on.
    pub fn parse(text: &str) -> Option<Timestamp> {
        let (whole, fraction) = match text.strip_suffix('Z')?.split_once('.') {
            Some((whole, digits)) if (1..=9).contains(&digits.len()) => (whole, digits),
            Some(_) => return None,
            None => (text.strip_suffix('Z')?, "0"),
        };
        let is_shaped = whole.len() == 19
            && whole.bytes().zip("0000-00-00T00:00:00".bytes()).all(|(byte, shape)| match shape {
                b'0' => byte.is_ascii_digit(),
                mark => byte == mark,
            });
        if !is_shaped || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let field = |from: usize, to: usize| whole[from..to].parse::<u64>().ok();
        let (year, month, day) = (field(0, 4)?, field(5, 7)?, field(8, 10)?);
        let (hour, minute, second) = (field(11, 13)?, field(14, 16)?, field(17, 19)?);
        let days = days_from_civil(year, month, day)?;
        let is_a_time = hour < 24 && minute < 60 && second < 60;
        let micros = format!("{fraction:0<6}")[..6].parse::<u64>().ok().filter(|_| is_a_time)?;
        Some(Timestamp(((days * 24 + hour) * 60 + minute) * 60_000_000 + second * 1_000_000 + micros))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339, UTC, milliseconds: `2026-01-31T09:00:00.000Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1_000_000;
        let (year, month, day) = civil_from_days(seconds / 86_400);
        let second = seconds % 86_400;
        let (hour, minute) = (second / 3_600, second / 60 % 60);
        let millis = self.0 / 1_000 % 1_000;
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{millis:03}Z", second % 60)
    }
}

/// Year, month and day of a day count since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level
/// Date Algorithms", `civil_from_days`, for days from the epoch on).
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// The other way (`days_from_civil` there); `None` for a day that no calendar has, and before 1970.
fn days_from_civil(year: u64, month: u64, day: u64) -> Option<u64> {
    let shifted_year = year.checked_sub(u64::from(month <= 2))?;
    let (era, year_of_era) = (shifted_year / 400, shifted_year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.checked_sub(1)?;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    (civil_from_days(days) == (year, month, day)).then_some(days)
}

/// Milliseconds of `CLOCK_MONOTONIC`: one clock for all processes of a host; what the channel's frames carry.
pub fn monotonic_millis() -> u64 {
    monotonic_micros() / 1_000
}

fn monotonic_micros() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000
}

/// Where the time comes from: the host, or a test.
#[derive(Clone, Debug)]
pub enum Clock {
    /// Microseconds to add to `CLOCK_MONOTONIC`. The supervisor sets it once for all of its processes, so
    /// a replaced process continues the same time.
    System {
        /// Wall clock minus monotonic clock at the start, in microseconds.
        offset: u64,
    },
    /// A clock that a test moves.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The host's time, with the wall clock read now and never again.
    pub fn system() -> Clock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock::System { offset: micros(wall).saturating_sub(monotonic_micros()) }
    }

    /// A clock that stands still at `start` until [`Clock::advance`].
    pub fn manual(start: Timestamp) -> Clock {
        Clock::Manual(Arc::new(AtomicU64::new(start.0)))
    }

    pub fn now(&self) -> Timestamp {
        match self {
            Clock::System { offset } => Timestamp(monotonic_micros().saturating_add(*offset)),
            Clock::Manual(micros) => Timestamp(micros.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock; the host's clock is not ours to move.
    pub fn advance(&self, by: Duration) {
        if let Clock::Manual(time) = self {
            time.fetch_add(micros(by), Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_written_as_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(Timestamp(seconds * 1_000_000).to_string(), text);
        }
    }

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = Clock::manual(Timestamp(5));
        assert_eq!(clock.now(), Timestamp(5));
        clock.advance(Duration::from_micros(2));
        assert_eq!(clock.clone().now(), Timestamp(7));
    }
}
