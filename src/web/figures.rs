//! The figures of a web process and its broker: as Prometheus text (exposition format 0.0.4), and as JSON.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::channel::Reject;
use crate::job::JobStatus;
use crate::observe::metrics::Counters;
use crate::ports::{HandlerStats, Histogram, ProcessStats, Stats};

/// Each metric once; what `/v1/stats` shows of it as well is in [`stats_json`].
pub fn metrics_text(counters: &Counters, stats: &Stats, groups: &[String]) -> String {
    let mut page = Page::default();
    page.family("build_info", "The version that is running.", [(label("version", VERSION), 1)]);
    let handlers = || stats.handlers.iter().map(|of| (label("handler", &of.handler), of));
    let submitted = handlers().map(|(handler, of)| (handler, of.submitted));
    page.family("jobs_submitted_total", "Jobs accepted.", submitted);
    let terminal = || JobStatus::ALL.into_iter().filter(|status| status.is_terminal());
    let finished = handlers().flat_map(|(handler, of)| {
        terminal().map(move |status| {
            (format!("{handler},{}", label("status", status.as_str())), of.finished[status as usize])
        })
    });
    page.family("jobs_finished_total", "Jobs that reached a terminal status.", finished);
    page.histograms("job_seconds", "From a delivery's start to its commit.", stats, |of| &of.job_seconds);
    let help = "From when a job could run to its first start.";
    page.histograms("queue_wait_seconds", help, stats, |of| &of.queue_wait_seconds);
    // A queue is a handler's.
    let queues = || stats.handlers.iter().map(|of| (label("queue", &of.handler), of));
    page.family("queue_depth", "Jobs waiting or delayed.", queues().map(|(queue, of)| (queue, of.queued)));
    let oldest = queues().map(|(queue, of)| (queue, of.oldest.as_secs_f64()));
    page.family("queue_oldest_seconds", "How long the oldest job that could run has waited.", oldest);
    page.number("queue_redelivered_total", "Deliveries beyond a job's first.", stats.redelivered);
    page.number("queue_dead_total", "Jobs that used up their deliveries.", stats.dead);
    page.number("reply_waiters", "Callers waiting for a reply.", load(&counters.waiters));
    let timeouts = load(&counters.reply_timeouts);
    page.number("reply_timeouts_total", "Waits that ended by their deadline.", timeouts);
    page.number("reply_cancelled_total", "Waits whose caller hung up.", load(&counters.reply_cancelled));
    let late = load(&counters.reply_late) + stats.late;
    page.number(
        "reply_late_total",
        "Replies whose callers had gone, and commits that were fenced off.",
        late,
    );
    page.number("reply_duplicate_total", "Replies and commits that came twice.", stats.duplicate);
    let help = "What nobody of the deployment signed, and was put aside.";
    page.family("forged_total", help, [(label("what", "job"), stats.forged)]);
    page.number("lease_renewals_total", "Leases of running jobs that were renewed.", stats.leases_renewed);
    page.number("leases_expired_total", "Leases that ran out: their executors were lost.", stats.leases_lost);
    let help = "Connections to the backend that broke and were replaced.";
    page.number("backend_reconnects_total", help, stats.reconnects);
    let frames = [("in", &counters.frames_in), ("out", &counters.frames_out)];
    let frames = frames.map(|(direction, count)| (label("direction", direction), load(count)));
    page.family("ipc_frames_total", "Frames on the channel.", frames);
    let rejected = Reject::ALL.map(Reject::as_str);
    let rejected = rejected.map(|reason| (label("reason", reason), counters.rejected(reason)));
    page.family("ipc_rejected_total", "Connections and frames that the channel refused.", rejected);
    let busy = groups.iter().zip(&stats.busy).map(|(group, busy)| (label("group", group), busy));
    page.family("workers_busy", "Workers that have a job.", busy);
    let replaced = |group: &str, reasons: [&str; 3]| {
        let labels = |reason| format!("{},{}", label("group", group), label("reason", reason));
        reasons.map(|reason| (labels(reason), counters.replacements(group, reason)))
    };
    let all = groups.iter().map(String::as_str).chain(["web"]);
    let restarted = all.flat_map(|group| replaced(group, ["crashed", "killed", "unresponsive"]));
    page.family("process_restarts_total", "Processes that were replaced.", restarted);
    let recycled = groups.iter().flat_map(|group| replaced(group, ["max_jobs", "max_rss", "stuck"]));
    let help = "Processes that finished their jobs and made room for a new one.";
    page.family("process_recycled_total", help, recycled);
    let requests = counters.requests().into_iter();
    let requests =
        requests.map(|((route, status), count)| (format!("route=\"{route}\",status=\"{status}\""), count));
    page.family("http_requests_total", "Requests answered.", requests);
    page.0
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{value}\"")
}

#[derive(Default)]
struct Page(String);

impl Page {
    /// A metric of one series without labels.
    fn number(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, help, [(String::new(), value)]);
    }

    /// A metric and its series: labels and value of each. What only grows is named so.
    fn family(&mut self, name: &str, help: &str, series: impl IntoIterator<Item = (String, impl Display)>) {
        self.head(name, if name.ends_with("_total") { "counter" } else { "gauge" }, help);
        for (labels, value) in series {
            self.line(name, &labels, value);
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
    fn histograms(&mut self, name: &str, help: &str, stats: &Stats, of: fn(&HandlerStats) -> &Histogram) {
        self.head(name, "histogram", help);
        for handler in &stats.handlers {
            let (labels, histogram) = (label("handler", &handler.handler), of(handler));
            let bounds = Histogram::BOUNDS.iter().map(|bound| (*bound as f64 / 1e6).to_string());
            let mut total = 0;
            for (bound, count) in bounds.chain(["+Inf".into()]).zip(&histogram.buckets) {
                total += count;
                self.line(&format!("{name}_bucket"), &format!("{labels},{}", label("le", &bound)), total);
            }
            self.line(&format!("{name}_sum"), &labels, histogram.sum_micros as f64 / 1e6);
            self.line(&format!("{name}_count"), &labels, total);
        }
    }
}

/// The page at `/v1/stats`.
pub fn stats_json(profile: &str, counters: &Counters, stats: &Stats, groups: &[String]) -> Value {
    let groups = groups.iter().zip(&stats.consumers);
    let groups: Vec<Value> =
        groups.map(|(name, executors)| json!({ "name": name, "executors": executors })).collect();
    let sum = |of: fn(&HandlerStats) -> u64| stats.handlers.iter().map(of).sum::<u64>();
    json!({
        "profile": profile,
        "version": VERSION,
        "handlers": stats.handlers.iter().map(handler_json).collect::<Vec<_>>(),
        "groups": groups,
        "processes": stats.processes.iter().map(process_json).collect::<Vec<_>>(),
        "waiters": load(&counters.waiters),
        "totals": {
            "queued": sum(|handler| handler.queued as u64),
            "running": sum(|handler| handler.running as u64),
            "lanes": sum(|handler| handler.lanes as u64),
            "submitted": sum(|handler| handler.submitted),
            "redelivered": stats.redelivered,
            "dead": stats.dead,
            "late": stats.late,
            "duplicate": stats.duplicate,
            "records": stats.records,
            "leases": stats.leases,
        },
    })
}

fn handler_json(of: &HandlerStats) -> Value {
    json!({
        "name": *of.handler,
        "group": *of.group,
        "paused": of.paused,
        "queued": of.queued,
        "running": of.running,
        "lanes": of.lanes,
        "oldest_seconds": of.oldest.as_secs_f64(),
        "submitted": of.submitted,
    })
}

fn process_json(of: &ProcessStats) -> Value {
    let ProcessStats { role, group, host, pid, busy } = of;
    json!({ "role": role, "group": group.as_deref(), "host": host, "pid": pid, "busy": busy })
}
