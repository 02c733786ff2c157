//! What listeners of `/v1/events` are told each second: figures, jobs that ended, and the last 15 minutes in samples. Pure.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::job::JobStatus;
use crate::ports::{HandlerStats, Histogram, Looked, RecentEnd, Stats};

/// Seconds from one sample to the next.
const SAMPLE_EVERY: u64 = 5;
/// Samples that are kept: 15 minutes of them.
const SAMPLES: usize = 180;

/// What there is to tell, as events (WHATWG HTML, 9.2.6).
#[derive(Debug)]
pub struct News {
    /// For who has just come: the samples so far.
    pub history: Arc<str>,
    pub figures: String,
    pub ends: Vec<RecentEnd>,
    /// Ends that nobody can be told of any more.
    pub lost: u64,
}

/// One event.
pub fn event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

/// See the module.
#[derive(Default)]
pub struct Watch {
    seconds: u64,
    before: Option<Sum>,
    samples: VecDeque<Value>,
    history: Arc<str>,
    /// Ends that were looked at.
    pub ends: u64,
}

/// Of all handlers.
struct Sum {
    submitted: u64,
    succeeded: u64,
    failed: u64,
    seconds: Histogram,
}

impl Sum {
    fn of(handlers: &[HandlerStats]) -> Sum {
        let mut seconds = Histogram::default();
        handlers.iter().for_each(|of| seconds.add(&of.job_seconds));
        let finished = |of: &HandlerStats| of.finished.iter().sum::<u64>();
        let succeeded = handlers.iter().map(|of| of.finished[JobStatus::Succeeded as usize]).sum();
        let submitted = handlers.iter().map(|of| of.submitted).sum();
        Sum { submitted, succeeded, failed: handlers.iter().map(finished).sum::<u64>() - succeeded, seconds }
    }
}

impl Watch {
    /// Without samples.
    pub fn new() -> Watch {
        Watch { history: history(&VecDeque::new()), ..Watch::default() }
    }

    /// A second has passed: true if a sample is due.
    pub fn tick(&mut self) -> bool {
        self.seconds += 1;
        self.is_sampling()
    }

    fn is_sampling(&self) -> bool {
        self.seconds.is_multiple_of(SAMPLE_EVERY)
    }

    /// What there is to tell of this second.
    pub fn look(&mut self, stats: &Stats, figures: &Value, looked: Looked, now: Timestamp) -> News {
        let mut told = event("figures", figures);
        if self.is_sampling() {
            // What a backend that is away counts is not known, and what it says afterwards is of a longer time.
            let sum = stats.away.is_none().then(|| Sum::of(&stats.handlers));
            if let Some((sum, before)) = sum.as_ref().zip(self.before.as_ref()) {
                let sample = sample(stats, sum, before, now);
                told += &event("sample", &sample);
                if self.samples.len() == SAMPLES {
                    self.samples.pop_front();
                }
                self.samples.push_back(sample);
            }
            self.before = sum;
            self.history = history(&self.samples);
        }
        self.ends = looked.count;
        News { history: self.history.clone(), figures: told, ends: looked.ends, lost: looked.lost }
    }
}

fn history(samples: &VecDeque<Value>) -> Arc<str> {
    event("history", &json!({ "interval_seconds": SAMPLE_EVERY, "samples": samples })).into()
}

fn sample(stats: &Stats, sum: &Sum, before: &Sum, now: Timestamp) -> Value {
    let seconds = sum.seconds.since(&before.seconds);
    let oldest = stats.handlers.iter().map(|of| of.oldest).max().unwrap_or_default();
    let count = |of: fn(&HandlerStats) -> usize| stats.handlers.iter().map(of).sum::<usize>();
    json!({
        "at": now.to_string(),
        "submitted": sum.submitted.saturating_sub(before.submitted),
        "succeeded": sum.succeeded.saturating_sub(before.succeeded),
        "failed": sum.failed.saturating_sub(before.failed),
        "queued": count(|of| of.queued), "running": count(|of| of.running),
        "oldest_seconds": oldest.as_secs_f64(),
        "p50": seconds.quantile(0.5), "p99": seconds.quantile(0.99),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_sample_says_what_happened_since_the_one_before_and_the_oldest_go() {
        let mut watch = Watch::default();
        let mut handler = HandlerStats::default();
        let look = |watch: &mut Watch, handler: &HandlerStats| {
            watch.seconds += SAMPLE_EVERY;
            let stats = Stats { handlers: vec![handler.clone()], ..Stats::default() };
            watch.look(&stats, &Value::Null, Looked::default(), Timestamp(0))
        };
        assert_eq!(
            look(&mut watch, &handler).figures,
            "event: figures\ndata: null\n\n",
            "there is no before"
        );
        handler.submitted = 7;
        handler.finished[JobStatus::Succeeded as usize] = 2;
        handler.finished[JobStatus::Dead as usize] = 1;
        handler.job_seconds.observe(Duration::from_micros(90));
        look(&mut watch, &handler);
        let last = |watch: &Watch| watch.samples.back().cloned().expect("a sample");
        let (sample, quiet) = (last(&watch), {
            look(&mut watch, &handler);
            last(&watch)
        });
        assert_eq!(
            (&sample["submitted"], &sample["succeeded"], &sample["failed"]),
            (&json!(7), &json!(2), &json!(1))
        );
        assert!(sample["p99"].as_f64().is_some_and(|seconds| seconds <= 1e-4), "{sample}");
        assert_eq!((&quiet["submitted"], &quiet["p50"]), (&json!(0), &Value::Null));
        for _ in 0..2 * SAMPLES {
            look(&mut watch, &handler);
        }
        assert_eq!(watch.samples.len(), SAMPLES);
        // While the backend is away nothing is sampled, nor is the time of its absence afterwards.
        let away = Stats { away: Some(crate::ports::BackendError("gone".into())), ..Stats::default() };
        watch.seconds += SAMPLE_EVERY;
        let news = watch.look(&away, &Value::Null, Looked::default(), Timestamp(0));
        assert!(!news.figures.contains("sample"), "{}", news.figures);
        assert!(!look(&mut watch, &handler).figures.contains("sample"));
        assert!(look(&mut watch, &handler).figures.contains("sample"));
    }
}
