//! The progress bar: one line on standard error, at most five times a second, never when nobody looks.

use std::io::Write;
use std::time::{Duration, Instant};

use super::Summary;

const EVERY: Duration = Duration::from_millis(200);

pub(super) struct Progress {
    is_shown: bool,
    /// `Some` iff the input's size is known: then there is a time left.
    size: Option<u64>,
    started: Instant,
    drawn: Instant,
}

impl Progress {
    pub(super) fn new(is_shown: bool, size: Option<u64>) -> Progress {
        let now = Instant::now();
        Progress { is_shown, size, started: now, drawn: now }
    }

    pub(super) fn draw(&mut self, summary: &Summary, bytes: u64, is_last: bool) {
        let now = Instant::now();
        if !self.is_shown || (!is_last && now - self.drawn < EVERY) {
            return;
        }
        self.drawn = now;
        let text = line(summary, bytes, self.size, now - self.started);
        let end = if is_last { "\n" } else { "" };
        let _ = write!(std::io::stderr(), "\r{text}\x1b[K{end}");
    }
}

#[allow(clippy::cast_precision_loss, reason = "a progress bar is read by eye")]
fn line(summary: &Summary, bytes: u64, size: Option<u64>, elapsed: Duration) -> String {
    const WIDTH: usize = 24;
    let seconds = elapsed.as_secs_f64().max(0.001);
    let rate = summary.done as f64 / seconds;
    let counts = format!("{} done, {} failed, {rate:.0}/s", summary.done, summary.failed);
    let Some(size) = size.filter(|size| *size > 0) else { return counts };
    let share = (bytes as f64 / size as f64).min(1.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to WIDTH")]
    let filled = (share * WIDTH as f64) as usize;
    let left =
        if share > 0.0 { format!("{:.0} s left", seconds * (1.0 - share) / share) } else { "…".into() };
    let (full, empty) = ("#".repeat(filled), "-".repeat(WIDTH - filled));
    format!("[{full}{empty}] {:3.0} %  {counts}, {left}", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::super::End;
    use super::*;

    #[test]
    fn the_bar_shows_rate_failures_and_time_left() {
        let summary =
            Summary { done: 500, failed: 2, first_failed: Some(7), has_state: false, end: End::All };
        let text = line(&summary, 50, Some(200), Duration::from_secs(5));
        assert_eq!(text, "[######------------------]  25 %  500 done, 2 failed, 100/s, 15 s left");
        assert_eq!(line(&summary, 50, None, Duration::from_secs(5)), "500 done, 2 failed, 100/s");
    }
}
