//! The figures of a web process and its broker: as Prometheus text (exposition format 0.0.4), and as JSON.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::channel::Reject;
use crate::job::JobStatus;
use crate::observe::metrics::Counters;
use crate::ports::{Forged, HandlerStats, Histogram, ProcessStats, Stats};
use crate::problem::Code;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Why processes are replaced: because they have ended, and because they have done enough.
const RESTARTS: &[&str] = &["crashed", "killed", "unresponsive"];
const RECYCLES: &[&str] = &["max_jobs", "max_rss", "secret", "stuck"];

/// Each metric once; what `/v1/stats` shows of it as well is in [`stats_json`]. While the backend is away its series are
/// left out: a counter that shows 0 would look as if it had begun anew.
pub fn metrics_text(counters: &Counters, stats: &Stats, groups: &[String]) -> String {
    let mut page = Page::default();
    page.family("build_info", "The version that is running.", [(label("version", VERSION), 1)]);
    page.single("backend_up", "1 while the broker can be reached.", u64::from(stats.away.is_none()));
    if stats.away.is_none() {
        page.broker(counters, stats);
    }
    for (name, help, number) in [
        ("reply_waiters", "Callers waiting for a reply.", load(&counters.waiters)),
        ("reply_timeouts_total", "Waits that ended by their deadline.", load(&counters.reply_timeouts)),
        ("reply_cancelled_total", "Waits whose caller hung up.", load(&counters.reply_cancelled)),
        ("traces_written_total", "Jobs whose spans were exported.", load(&counters.traces_written)),
        ("traces_dropped_total", "Jobs whose spans could not be exported.", load(&counters.traces_dropped)),
        (
            "backend_reconnects_total",
            "Connections to the backend that broke and were replaced.",
            stats.reconnects,
        ),
    ] {
        page.single(name, help, number);
    }
    let frames = [("in", &counters.frames_in), ("out", &counters.frames_out)];
    let frames = frames.map(|(direction, count)| (label("direction", direction), load(count)));
    page.family("ipc_frames_total", "Frames on the channel.", frames);
    let rejected = Reject::ALL.map(Reject::as_str);
    let rejected = rejected.map(|reason| (label("reason", reason), counters.rejected.get(&reason)));
    page.family("ipc_rejected_total", "Connections and frames that the channel refused.", rejected);
    let busy = groups.iter().zip(&stats.busy).map(|(group, busy)| (label("group", group), busy));
    page.family("workers_busy", "Workers that have a job.", busy);
    let of_group = |group: &str, reasons| {
        let group_label = label("group", group);
        let replaced = replaced(counters, group, reasons).into_iter();
        replaced.map(move |(reason, count)| (labels(&group_label, "reason", reason), count))
    };
    let all = groups.iter().map(String::as_str).chain(["web"]);
    let restarted = all.flat_map(|group| of_group(group, RESTARTS));
    page.family("process_restarts_total", "Processes that were replaced.", restarted);
    let recycled = groups.iter().flat_map(|group| of_group(group, RECYCLES));
    let help = "Processes that finished their jobs and made room for a new one.";
    page.family("process_recycled_total", help, recycled);
    let requests = counters.requests.all().into_iter();
    let requests = requests.map(|((route, status), count)| {
        (labels(&label("route", route), "status", &status.to_string()), count)
    });
    page.family("http_requests_total", "Requests answered.", requests);
    let refused = Code::ALL.map(Code::as_str);
    let refused = refused.map(|code| (label("reason", code), counters.http_rejected.get(&code)));
    page.family("http_rejected_total", "Requests that were refused, by the problem's code.", refused);
    page.0
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// How often processes of this name were replaced, by these reasons.
fn replaced(counters: &Counters, name: &str, reasons: &[&'static str]) -> Vec<(&'static str, u64)> {
    let count = |reason: &&'static str| (*reason, counters.replaced.get(&(name.into(), (*reason).into())));
    reasons.iter().map(count).collect()
}

fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{value}\"")
}

fn labels(first: &str, name: &str, value: &str) -> String {
    format!("{first},{name}=\"{value}\"")
}

#[derive(Default)]
struct Page(String);

impl Page {
    /// A metric and its series: labels and value of each. What only grows is named so.
    fn family(&mut self, name: &str, help: &str, series: impl IntoIterator<Item = (String, impl Display)>) {
        self.head(name, if name.ends_with("_total") { "counter" } else { "gauge" }, help);
        for (labels, value) in series {
            self.line(name, &labels, value);
        }
    }

    fn single(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, help, [(String::new(), value)]);
    }

    /// What the broker counts.
    fn broker(&mut self, counters: &Counters, stats: &Stats) {
        let handlers = || stats.handlers.iter().map(|of| (label("handler", &of.handler), of));
        let submitted = handlers().map(|(handler, of)| (handler, of.submitted));
        self.family("jobs_submitted_total", "Jobs accepted.", submitted);
        let terminal = || JobStatus::ALL.into_iter().filter(|status| status.is_terminal());
        let finished = handlers().flat_map(|(handler, of)| {
            terminal().map(move |status| {
                (labels(&handler, "status", status.as_str()), of.finished[status as usize])
            })
        });
        self.family("jobs_finished_total", "Jobs that reached a terminal status.", finished);
        self.histograms("job_seconds", "From a delivery's start to its commit.", stats, |of| &of.job_seconds);
        let help = "From when a job could run to its first start.";
        self.histograms("queue_wait_seconds", help, stats, |of| &of.queue_wait_seconds);
        // A queue is a handler's.
        let queues = || stats.handlers.iter().map(|of| (label("queue", &of.handler), of));
        let depth = queues().map(|(queue, of)| (queue, of.queued));
        self.family("queue_depth", "Jobs waiting or delayed.", depth);
        let oldest = queues().map(|(queue, of)| (queue, of.oldest.as_secs_f64()));
        let help = "Age of the oldest job that waits for anything but its caller's own delay.";
        self.family("queue_oldest_seconds", help, oldest);
        let parked = handlers().map(|(handler, of)| (handler, of.parked));
        self.family("lanes_parked", "Lanes that a dead head holds.", parked);
        let late = load(&counters.reply_late) + stats.late;
        let help = "Replies whose callers had gone, and commits that were fenced off.";
        self.single("reply_late_total", help, late);
        for (name, help, number) in [
            ("queue_redelivered_total", "Deliveries beyond a job's first.", stats.redelivered),
            ("queue_dead_total", "Jobs that used up their deliveries.", stats.dead),
            ("reply_duplicate_total", "Replies and commits that came twice.", stats.duplicate),
            ("lease_renewals_total", "Leases of running jobs that were renewed.", stats.leases_renewed),
            ("leases_expired_total", "Leases that ran out: their executors were lost.", stats.leases_lost),
            ("suspects", "Jobs whose executor was lost while they may have run.", stats.suspects as u64),
            ("idempotency_keys", "Idempotency keys that are kept.", stats.idempotency_keys as u64),
            (
                "idempotency_evicted_total",
                "Idempotency keys that went before their time.",
                stats.idempotency_evicted,
            ),
            ("state_bytes", "What lane states and contexts take in memory.", stats.state_bytes as u64),
        ] {
            self.single(name, help, number);
        }
        let help = "What nobody of the deployment signed, and was put aside.";
        let forged = Forged::ALL.into_iter().zip(stats.forged);
        let forged = forged.map(|(what, count)| (label("what", what.as_str()), count));
        self.family("forged_total", help, forged);
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
    fn histograms(&mut self, name: &str, help: &str, stats: &Stats, of: fn(&HandlerStats) -> &Histogram) {
        self.head(name, "histogram", help);
        for handler in &stats.handlers {
            let (handler, histogram) = (label("handler", &handler.handler), of(handler));
            let bounds = Histogram::BOUNDS.iter().map(|bound| (*bound as f64 / 1e6).to_string());
            let mut total = 0;
            for (bound, count) in bounds.chain(["+Inf".into()]).zip(&histogram.buckets) {
                total += count;
                self.line(&format!("{name}_bucket"), &labels(&handler, "le", &bound), total);
            }
            self.line(&format!("{name}_sum"), &handler, histogram.sum_micros as f64 / 1e6);
            self.line(&format!("{name}_count"), &handler, total);
        }
    }
}

/// A process of the deployment.
pub fn process_json(of: &ProcessStats) -> Value {
    json!({
        "role": of.role, "group": of.group.as_deref(), "host": of.host, "pid": of.pid, "busy": of.busy,
        "rss_bytes": of.rss_bytes,
    })
}

fn finished(of: &HandlerStats) -> Value {
    let ends = JobStatus::ALL.into_iter().filter(|status| status.is_terminal());
    ends.map(|status| (status.as_str(), of.finished[status as usize])).collect()
}

fn quantiles(of: &Histogram) -> Value {
    json!({ "p50": of.quantile(0.5), "p99": of.quantile(0.99) })
}

/// The page at `/v1/stats`. While the backend is away, what it counts is left out.
pub fn stats_json(
    profile: &str,
    counters: &Counters,
    stats: &Stats,
    groups: &[String],
    workers: &[usize],
) -> Value {
    let replaced = |name: &str, reasons| replaced(counters, name, reasons).into_iter().collect::<Value>();
    let groups = groups.iter().zip(workers).zip(stats.consumers.iter().zip(&stats.busy));
    let groups = groups.map(|((name, workers), (executors, busy))| {
        json!({
            "name": name, "executors": executors, "busy": busy, "workers": workers,
            "restarts": replaced(name, RESTARTS), "recycled": replaced(name, RECYCLES),
        })
    });
    let processes = stats.processes.iter().map(process_json);
    let mut page = json!({
        "profile": profile,
        "version": VERSION,
        "backend_error": stats.away.as_ref().map(|error| &error.0),
        "groups": groups.collect::<Vec<_>>(),
        "processes": processes.collect::<Vec<_>>(),
        "waiters": load(&counters.waiters),
    });
    if stats.away.is_some() {
        return page;
    }
    let handlers = stats.handlers.iter().map(|of| {
        json!({
            "name": *of.handler, "group": *of.group, "paused": of.paused, "queued": of.queued,
            "running": of.running, "lanes": of.lanes, "parked": of.parked, "submitted": of.submitted,
            "oldest_seconds": of.oldest.as_secs_f64(), "finished": finished(of),
            "job_seconds": quantiles(&of.job_seconds), "queue_wait_seconds": quantiles(&of.queue_wait_seconds),
        })
    });
    page["handlers"] = handlers.collect();
    let sum = |of: fn(&HandlerStats) -> u64| stats.handlers.iter().map(of).sum::<u64>();
    page["totals"] = json!({
        "queued": sum(|handler| handler.queued as u64),
        "running": sum(|handler| handler.running as u64),
        "lanes": sum(|handler| handler.lanes as u64),
        "submitted": sum(|handler| handler.submitted),
        "redelivered": stats.redelivered, "dead": stats.dead, "late": stats.late,
        "duplicate": stats.duplicate, "records": stats.records, "leases": stats.leases,
        "suspects": stats.suspects, "idempotency_keys": stats.idempotency_keys,
        "state_bytes": stats.state_bytes,
    });
    page
}
