//! Counters of this process and the broker's figures, as Prometheus text (exposition format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::bell::lock;
use crate::channel::Reject;
use crate::job::JobStatus;
use crate::ports::{HandlerStats, Histogram, Stats};

/// Processes that were replaced, by group and reason.
type Replaced = BTreeMap<(String, String), u64>;

/// What the web process counts itself. Shared between its loop and the routes that show it.
#[derive(Debug, Default)]
pub struct Counters {
    http: Mutex<BTreeMap<(&'static str, u16), u64>>,
    restarts: Mutex<Replaced>,
    /// Callers waiting now.
    pub waiters: AtomicU64,
    /// Waits that ended by their deadline.
    pub reply_timeouts: AtomicU64,
    /// Waits that ended because the caller hung up.
    pub reply_cancelled: AtomicU64,
    /// Replies whose callers had gone.
    pub reply_late: AtomicU64,
    pub frames_in: AtomicU64,
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

    pub fn request(&self, route: &'static str, status: u16) {
        *lock(&self.http).entry((route, status)).or_default() += 1;
    }

    /// One more connection or frame refused on the channel.
    pub fn reject(&self, reason: Reject) {
        self.rejected[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn rejected(&self, reason: Reject) -> u64 {
        self.rejected[reason as usize].load(Ordering::Relaxed)
    }

    /// So many processes of this group were replaced for this reason.
    pub fn replaced(&self, group: &str, reason: &str, count: u64) {
        lock(&self.restarts).insert((group.into(), reason.into()), count);
    }
}

/// The page at `/metrics`.
pub fn render(counters: &Counters, stats: &Stats, groups: &[String]) -> String {
    let mut out = Page::default();
    let version = concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"");
    out.family("build_info", "gauge", "The version that is running.", [(version, 1)]);
    per_handler(&mut out, &stats.handlers);
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let late = load(&counters.reply_late) + stats.late;
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
            late,
        ),
        ("reply_duplicate_total", "counter", "Replies and commits that came twice.", stats.duplicate),
        (
            "lease_renewals_total",
            "counter",
            "Leases of running jobs that were renewed.",
            stats.leases_renewed,
        ),
        (
            "leases_expired_total",
            "counter",
            "Leases that ran out: their executors were lost.",
            stats.leases_lost,
        ),
        (
            "backend_reconnects_total",
            "counter",
            "Connections to the backend that broke and were replaced.",
            stats.reconnects,
        ),
    ] {
        out.family(name, kind, help, [("", value)]);
    }
    let frames =
        [("direction=\"in\"", load(&counters.frames_in)), ("direction=\"out\"", load(&counters.frames_out))];
    out.family("ipc_frames_total", "counter", "Frames on the channel.", frames);
    let rejected = Reject::ALL.map(|reason| (label("reason", reason.as_str()), counters.rejected(reason)));
    out.family("ipc_rejected_total", "counter", "Connections and frames that the channel refused.", rejected);
    let busy = groups.iter().zip(&stats.busy).map(|(group, busy)| (label("group", group), *busy));
    out.family("workers_busy", "gauge", "Workers that have a job.", busy);
    let restarts = lock(&counters.restarts);
    let replaced = |group: &str, reasons: [&'static str; 3]| {
        reasons.map(|reason| {
            let count = restarts.get(&(group.to_owned(), reason.to_owned())).copied().unwrap_or(0);
            (format!("group=\"{group}\",reason=\"{reason}\""), count)
        })
    };
    let all = groups.iter().map(String::as_str).chain(["web"]);
    let restarted = all.flat_map(|group| replaced(group, ["crashed", "killed", "unresponsive"]));
    out.family("process_restarts_total", "counter", "Processes that were replaced.", restarted);
    let recycled = groups.iter().flat_map(|group| replaced(group, ["max_jobs", "max_rss", "stuck"]));
    let help = "Processes that finished their jobs and made room for a new one.";
    out.family("process_recycled_total", "counter", help, recycled);
    let http = lock(&counters.http);
    let requests = http
        .iter()
        .map(|((route, status), count)| (format!("route=\"{route}\",status=\"{status}\""), *count));
    out.family("http_requests_total", "counter", "Requests answered.", requests);
    out.0
}

fn per_handler(out: &mut Page, handlers: &[HandlerStats]) {
    let each = handlers.iter();
    let submitted = each.clone().map(|of| (label("handler", &of.handler), of.submitted));
    out.family("jobs_submitted_total", "counter", "Jobs accepted.", submitted);
    let terminal = JobStatus::ALL.into_iter().filter(|status| status.is_terminal());
    let finished = each.clone().flat_map(|of| {
        terminal.clone().map(|status| {
            let labels = format!("{},{}", label("handler", &of.handler), label("status", status.as_str()));
            (labels, of.finished[status as usize])
        })
    });
    out.family("jobs_finished_total", "counter", "Jobs that reached a terminal status.", finished);
    out.head("job_seconds", "histogram", "From a delivery's start to its commit.");
    for of in each.clone() {
        out.histogram("job_seconds", &of.handler, &of.job_seconds);
    }
    out.head("queue_wait_seconds", "histogram", "From when a job could run to its first start.");
    for of in each.clone() {
        out.histogram("queue_wait_seconds", &of.handler, &of.queue_wait_seconds);
    }
    // A queue is a handler's.
    let depth = each.clone().map(|of| (label("queue", &of.handler), of.queued));
    out.family("queue_depth", "gauge", "Jobs waiting or delayed.", depth);
    let oldest = each.map(|of| (label("queue", &of.handler), of.oldest.as_secs_f64()));
    let help = "How long the oldest job that could run has waited.";
    out.family("queue_oldest_seconds", "gauge", help, oldest);
}

fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{value}\"")
}

#[derive(Default)]
struct Page(String);

impl Page {
    /// A metric and its series: labels and value of each.
    fn family<L: AsRef<str>, V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, V)>,
    ) {
        self.head(name, kind, help);
        for (labels, value) in series {
            self.line(name, labels.as_ref(), value);
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP cofferdam_{name} {help}\n# TYPE cofferdam_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = match labels {
            "" => writeln!(self.0, "cofferdam_{name} {value}"),
            _ => writeln!(self.0, "cofferdam_{name}{{{labels}}} {value}"),
        };
    }

    #[allow(clippy::cast_precision_loss, reason = "bounds and sums are shown in seconds")]
    fn histogram(&mut self, name: &str, handler: &str, histogram: &Histogram) {
        let handler = label("handler", handler);
        let mut total = 0;
        for (bound, count) in Histogram::BOUNDS.iter().zip(&histogram.buckets) {
            total += count;
            let le = *bound as f64 / 1e6;
            self.line(&format!("{name}_bucket"), &format!("{handler},le=\"{le}\""), total);
        }
        total += histogram.buckets[Histogram::BOUNDS.len()];
        self.line(&format!("{name}_bucket"), &format!("{handler},le=\"+Inf\""), total);
        self.line(&format!("{name}_sum"), &handler, histogram.sum_micros as f64 / 1e6);
        self.line(&format!("{name}_count"), &handler, total);
    }
}
