//! Counters of this process and the broker's figures, as Prometheus text (exposition format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::bell::lock;
use crate::channel::Reject;
use crate::job::JobStatus;
use crate::ports::{Histogram, Stats};

/// Processes that were replaced, by group and reason.
type Replaced = BTreeMap<(String, String), u64>;

/// What the web process counts itself. Shared between its loop and the routes that show it.
#[derive(Debug, Default)]
pub struct Counters {
    http: Mutex<BTreeMap<(&'static str, u16), u64>>,
    restarts: Mutex<Replaced>,
    busy: Mutex<BTreeMap<usize, u64>>,
    /// Callers waiting now.
    pub waiters: AtomicU64,
    /// Waits that ended by their deadline.
    pub reply_timeouts: AtomicU64,
    /// Waits that ended because the caller hung up.
    pub reply_cancelled: AtomicU64,
    /// Replies whose callers had gone.
    pub reply_late: AtomicU64,
    /// Replies that came twice.
    pub reply_duplicate: AtomicU64,
    /// Frames from executors.
    pub frames_in: AtomicU64,
    /// Frames to executors.
    pub frames_out: AtomicU64,
    rejected: [AtomicU64; Reject::ALL.len()],
    /// The service is stopping.
    pub draining: AtomicBool,
}

impl Counters {
    /// Requests of this kind are counted from here on.
    pub fn request_series(&self, route: &'static str, status: u16) {
        lock(&self.http).entry((route, status)).or_default();
    }

    /// One more request answered.
    pub fn request(&self, route: &'static str, status: u16) {
        *lock(&self.http).entry((route, status)).or_default() += 1;
    }

    /// One more connection or frame refused on the channel.
    pub fn reject(&self, reason: Reject) {
        self.rejected[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often the channel refused for this reason.
    pub fn rejected(&self, reason: Reject) -> u64 {
        self.rejected[reason as usize].load(Ordering::Relaxed)
    }

    /// A process was replaced.
    pub fn restart(&self, group: &str, reason: &str) {
        let mut restarts = lock(&self.restarts);
        *restarts.entry((group.into(), reason.into())).or_default() += 1;
    }

    /// Busy workers of a group, all its executors together.
    pub fn busy(&self, group: usize, workers: u64) {
        lock(&self.busy).insert(group, workers);
    }
}

/// The page at `/metrics`.
pub fn render(counters: &Counters, stats: &Stats, groups: &[String]) -> String {
    let mut out = Page::default();
    out.family("build_info", "gauge", "The version that is running.");
    out.line("build_info", concat!("version=\"", env!("CARGO_PKG_VERSION"), "\""), 1);
    per_handler(&mut out, stats);
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    for (name, kind, help, value) in [
        ("queue_redelivered_total", "counter", "Deliveries beyond a job's first.", stats.redelivered),
        ("queue_dead_total", "counter", "Jobs that used up their deliveries.", stats.dead),
        ("reply_waiters", "gauge", "Callers waiting for a reply.", load(&counters.waiters)),
        (
            "reply_timeouts_total",
            "counter",
            "Waits that ended by their deadline.",
            load(&counters.reply_timeouts),
        ),
        ("reply_cancelled_total", "counter", "Waits whose caller hung up.", load(&counters.reply_cancelled)),
        (
            "reply_late_total",
            "counter",
            "Replies whose callers had gone, and commits that were fenced off.",
            load(&counters.reply_late) + stats.late,
        ),
        (
            "reply_duplicate_total",
            "counter",
            "Replies and commits that came twice.",
            load(&counters.reply_duplicate) + stats.duplicate,
        ),
    ] {
        out.family(name, kind, help);
        out.line(name, "", value);
    }
    out.family("ipc_frames_total", "counter", "Frames on the channel.");
    out.line("ipc_frames_total", "direction=\"in\"", load(&counters.frames_in));
    out.line("ipc_frames_total", "direction=\"out\"", load(&counters.frames_out));
    out.family("ipc_rejected_total", "counter", "Connections and frames that the channel refused.");
    for reason in Reject::ALL {
        out.line("ipc_rejected_total", &format!("reason=\"{}\"", reason.as_str()), counters.rejected(reason));
    }
    out.family("workers_busy", "gauge", "Workers that have a job.");
    let busy = lock(&counters.busy);
    for (index, group) in groups.iter().enumerate() {
        out.line("workers_busy", &format!("group=\"{group}\""), busy.get(&index).copied().unwrap_or(0));
    }
    out.family("process_restarts_total", "counter", "Processes that were replaced.");
    let restarts = lock(&counters.restarts);
    for group in groups.iter().map(String::as_str).chain(["web"]) {
        out.replaced("process_restarts_total", group, &["crashed", "killed", "unresponsive"], &restarts);
    }
    out.family(
        "process_recycled_total",
        "counter",
        "Processes that finished their jobs and made room for a new one.",
    );
    for group in groups {
        out.replaced("process_recycled_total", group, &["max_jobs", "max_rss", "stuck"], &restarts);
    }
    out.family("http_requests_total", "counter", "Requests answered.");
    for ((route, status), count) in lock(&counters.http).iter() {
        out.line("http_requests_total", &format!("route=\"{route}\",status=\"{status}\""), *count);
    }
    out.0
}

fn per_handler(out: &mut Page, stats: &Stats) {
    out.family("jobs_submitted_total", "counter", "Jobs accepted.");
    for handler in &stats.handlers {
        out.line("jobs_submitted_total", &format!("handler=\"{}\"", handler.handler), handler.submitted);
    }
    out.family("jobs_finished_total", "counter", "Jobs that reached a terminal status.");
    for handler in &stats.handlers {
        for status in JobStatus::ALL.into_iter().filter(|status| status.is_terminal()) {
            let labels = format!("handler=\"{}\",status=\"{}\"", handler.handler, status.as_str());
            out.line("jobs_finished_total", &labels, handler.finished[status as usize]);
        }
    }
    out.family("job_seconds", "histogram", "From a delivery's start to its commit.");
    for handler in &stats.handlers {
        out.histogram("job_seconds", &handler.handler, &handler.job_seconds);
    }
    out.family("queue_wait_seconds", "histogram", "From when a job could run to its first start.");
    for handler in &stats.handlers {
        out.histogram("queue_wait_seconds", &handler.handler, &handler.queue_wait_seconds);
    }
    // A queue is a handler's.
    out.family("queue_depth", "gauge", "Jobs waiting or delayed.");
    for handler in &stats.handlers {
        out.line("queue_depth", &format!("queue=\"{}\"", handler.handler), handler.queued as u64);
    }
    out.family("queue_oldest_seconds", "gauge", "How long the oldest job that could run has waited.");
    for handler in &stats.handlers {
        let _ = writeln!(
            out.0,
            "cofferdam_queue_oldest_seconds{{queue=\"{}\"}} {}",
            handler.handler,
            handler.oldest.as_secs_f64()
        );
    }
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn replaced(&mut self, family: &str, group: &str, reasons: &[&str], counts: &Replaced) {
        for reason in reasons {
            let count = counts.get(&(group.to_owned(), (*reason).to_owned())).copied().unwrap_or(0);
            self.line(family, &format!("group=\"{group}\",reason=\"{reason}\""), count);
        }
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP cofferdam_{name} {help}\n# TYPE cofferdam_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: u64) {
        let _ = match labels {
            "" => writeln!(self.0, "cofferdam_{name} {value}"),
            _ => writeln!(self.0, "cofferdam_{name}{{{labels}}} {value}"),
        };
    }

    #[allow(clippy::cast_precision_loss, reason = "bounds and sums are shown in seconds")]
    fn histogram(&mut self, name: &str, handler: &str, histogram: &Histogram) {
        let mut total = 0;
        for (bound, count) in Histogram::BOUNDS.iter().zip(&histogram.buckets) {
            total += count;
            let le = *bound as f64 / 1e6;
            self.line(&format!("{name}_bucket"), &format!("handler=\"{handler}\",le=\"{le}\""), total);
        }
        total += histogram.buckets[Histogram::BOUNDS.len()];
        self.line(&format!("{name}_bucket"), &format!("handler=\"{handler}\",le=\"+Inf\""), total);
        let sum = histogram.sum_micros as f64 / 1e6;
        let _ = writeln!(self.0, "cofferdam_{name}_sum{{handler=\"{handler}\"}} {sum}");
        self.line(&format!("{name}_count"), &format!("handler=\"{handler}\""), total);
    }
}
