//! The submitting side: what web asks of the broker.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::broker::RedisBroker;
use super::server::{Arguments, Row, Server, or_false};
use crate::bell::lock;
use crate::codec::hex;
use crate::entropy::Entropy;
use crate::handler::Ordering;
use crate::job::{Finished, InstanceId, JobId, JobRecord, JobStatus, Payload, state_map};
use crate::ports::{
    BackendError, Filter, Forged, HandlerStats, Histogram, JobEnded, LaneStats, Listed, Looked, NewJob,
    NotRetried, Place, ProcessStats, Producer, Reached, Retried, Stats, Submitted, Then, Viewer,
};
use crate::problem::{Code, JobError};
use crate::process_table;

/// Whose jobs are seen.
fn owner(viewer: &Viewer) -> Json {
    or_false((!viewer.admin).then_some(&*viewer.name))
}

impl Server {
    /// The jobs asked for, as they stand; an instance hears of their ends.
    pub(super) fn rows(
        &self,
        viewer: &Viewer,
        ids: &[JobId],
        instance: Option<InstanceId>,
    ) -> Reached<Vec<Option<Row>>> {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let instance = or_false(instance.map(|instance| instance.to_string()));
        self.ask("records", json!({ "ids": ids, "in": instance, "ow": owner(viewer) }))
    }

    /// Those of them that are there.
    fn records(
        &self,
        viewer: &Viewer,
        ids: &[JobId],
        instance: Option<InstanceId>,
    ) -> Reached<Vec<JobRecord>> {
        let rows = self.rows(viewer, ids, instance)?;
        Ok(rows.into_iter().filter_map(|row| self.record(viewer, row)).collect())
    }

    /// The script sees what stands in Redis, where a stranger may have written another owner's name.
    fn may_change(&self, viewer: &Viewer, id: JobId) -> Reached<bool> {
        Ok(viewer.admin || self.find(viewer, id)?.is_some())
    }

    pub(super) fn find(&self, viewer: &Viewer, id: JobId) -> Reached<Option<JobRecord>> {
        Ok(self.records(viewer, &[id], None)?.pop())
    }
}

/// Numbers of submissions may run ahead of the time by so much; the time itself is looked at in the records.
const BEFORE_SLACK_US: u64 = 1_000_000;

/// Records that are read together: each comes with its result, which its signature covers.
const RECORDS_AT_ONCE: usize = 4;

/// A web process as the server knows it: its name, host, pid, callers, executors.
type Node = (String, String, u64, u64, String);

/// Counts by name; how long each handler's oldest job waits, us; node, host, pid, callers and executors of each
/// process; records; leases; idempotency keys.
type Figures = (HashMap<String, String>, HashMap<String, u64>, Vec<Node>, usize, usize, usize);

impl RedisBroker {
    /// All that are alive; of each group its executors, and their workers that have a lease.
    fn processes(&self, nodes: Vec<Node>) -> (Vec<ProcessStats>, Vec<usize>, Vec<usize>) {
        let server = &self.0.server;
        let mut consumers = vec![0; server.settings.groups.len()];
        let mut busy_workers = consumers.clone();
        let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let own_rss = || process_table::resident_kib("self").map(|kib| kib * 1_024);
        // What this process has told of itself may be a second old, or is still to be told.
        let (callers, executors) = lock(&self.0.state).facts();
        let mut webs = vec![(server.host.clone(), Some(std::process::id()), callers, executors)];
        for (node, host, pid, waiters, executors) in nodes {
            if node != server.node {
                webs.push((host, u32::try_from(pid).ok(), waiters, executors));
            }
        }
        let mut processes = Vec::new();
        for (host, pid, waiters, executors) in webs {
            let rss_bytes = (pid == Some(std::process::id())).then(own_rss).flatten();
            let (host_here, busy) = (host.clone(), Some(waiters));
            processes.push(ProcessStats { role: "web", group: None, host: host_here, pid, busy, rss_bytes });
            for executor in executors.split_whitespace() {
                let Some((Ok(group), Ok(leases))) =
                    executor.split_once(':').map(|(group, leases)| (group.parse::<usize>(), leases.parse()))
                else {
                    continue;
                };
                let Some(name) = server.settings.groups.get(group).cloned() else { continue };
                consumers[group] += 1;
                busy_workers[group] += size(leases).min(server.settings.workers[group]);
                let (role, group, host, busy) = ("executor", Some(name), host.clone(), Some(leases));
                processes.push(ProcessStats { role, group, host, busy, ..ProcessStats::default() });
            }
        }
        (processes, consumers, busy_workers)
    }
}

impl Producer for RedisBroker {
    fn submit(&self, jobs: Vec<NewJob>) -> Reached<Vec<Submitted>> {
        let (then, answer) = sync_channel(1);
        self.submit_later(jobs, Box::new(move |answers| drop(then.send(answers))));
        if !lock(&self.0.state).is_seated {
            self.0.turn();
        }
        answer.recv().map_err(|_| BackendError("redis: nobody takes the turns any more".into()))?
    }

    fn submit_later(&self, jobs: Vec<NewJob>, then: Then) {
        self.0.change(|state| state.submit(jobs, then));
    }

    fn record(&self, viewer: &Viewer, id: JobId) -> Reached<Option<JobRecord>> {
        self.0.server.find(viewer, id)
    }

    fn watch(&self, viewer: &Viewer, id: JobId, instance: InstanceId) -> Reached<Option<JobRecord>> {
        Ok(self.0.server.records(viewer, &[id], Some(instance))?.pop())
    }

    fn ended(&self, jobs: &[JobId]) -> (Vec<JobEnded>, Vec<JobId>) {
        let (mut ended, mut left) = (Vec::new(), jobs);
        while !left.is_empty() {
            let (some, rest) = left.split_at(RECORDS_AT_ONCE.min(left.len()));
            let Ok(records) = self.0.server.records(&Viewer::service(), some, None) else {
                // The others would wait as long for nothing. The next time these come last.
                return (ended, [rest, some].concat());
            };
            ended.extend(records.into_iter().filter_map(JobEnded::of));
            left = rest;
        }
        (ended, Vec::new())
    }

    fn cancel(&self, viewer: &Viewer, id: JobId) -> Reached<Option<JobRecord>> {
        let error = JobError::new(Code::Cancelled, "the job was cancelled");
        let finished = Finished { status: JobStatus::Cancelled, result: Err(error) };
        let mut arguments = Arguments::default();
        let outcome = arguments.add(self.0.server.signer().seal_outcome(id, &finished));
        arguments.what = json!({ "id": id.to_string(), "r": outcome, "ow": owner(viewer) });
        if !self.0.server.may_change(viewer, id)? {
            return Ok(None);
        }
        let (has_ended, row): (Option<bool>, Option<Row>) = self.0.server.call("cancel", &mut arguments)?;
        let record = self.0.server.record(viewer, row);
        if has_ended.is_some()
            && let Some(record) = &record
            && let Some(at) = record.finished_at
        {
            let mut state = lock(&self.0.state);
            state.recent.push(record.spec.clone(), record.status, at);
            state.traced.push(id);
        }
        Ok(record)
    }

    fn retry(&self, viewer: &Viewer, id: JobId) -> Reached<Option<Retried>> {
        // A call that is repeated has the same name.
        let call = hex(&Entropy::system().bytes::<8>());
        let what = json!({ "id": id.to_string(), "call": call, "ow": owner(viewer) });
        if !self.0.server.may_change(viewer, id)? {
            return Ok(None);
        }
        let (status, row): (Option<String>, Option<Row>) = self.0.server.ask("retry", what)?;
        Ok(match status {
            Some(status) => {
                Some(Err(JobStatus::parse(&status).map_or(NotRetried::QueueFull, NotRetried::Is)))
            }
            None => self.0.server.record(viewer, row).map(Ok),
        })
    }

    fn pause(&self, handler: &str, paused: bool) -> Reached<bool> {
        self.0.server.ask("pause", json!({ "h": handler, "on": paused }))
    }

    fn payload(&self, viewer: &Viewer, id: JobId) -> Reached<Option<Option<Payload>>> {
        let what = json!({ "id": id.to_string(), "ow": owner(viewer) });
        let row: Option<(Vec<u8>, Option<Vec<u8>>)> = self.0.server.ask("payload", what)?;
        let Some((envelope, payload)) = row else { return Ok(None) };
        // A job that nobody signed is as good as none.
        let Ok(sealed) = self.0.server.signer().open_job(id, &envelope) else { return Ok(None) };
        if !viewer.sees(&sealed.spec.owner) {
            return Ok(None);
        }
        let Some(payload) = payload else { return Ok(Some(None)) };
        Ok(sealed.with_payload(payload).ok().map(|(_, payload)| Some(payload)))
    }

    fn list(&self, viewer: &Viewer, filter: &Filter) -> Reached<Listed> {
        let statuses: Json =
            filter.statuses.iter().map(|status| (status.as_str().to_owned(), json!(true))).collect();
        // A lane is named by its key's digest.
        let key = filter.key.as_deref().map(|key| state_map("", Some(key)).split_off("state:".len()));
        let mut what = json!({
            "h": or_false(filter.handler.as_deref()), "ow": owner(viewer), "k": or_false(key),
            "s": or_false(Some(statuses).filter(|_| !filter.statuses.is_empty())),
            "tr": or_false(filter.trace.map(|id| hex(&id))),
            "before": or_false(filter.before.map(|at| at.0 + BEFORE_SLACK_US)),
        });
        let (mut ids, mut last): (Vec<JobId>, Option<u64>) = (Vec::new(), None);
        let mut after = filter.after.map(|place| place.number);
        loop {
            what["most"] = (filter.limit - ids.len()).into();
            what["after"] = after.into();
            let (found, number, rest): (Vec<String>, Option<u64>, Option<u64>) =
                self.0.server.ask("list", what.clone())?;
            ids.extend(found.iter().filter_map(|id| JobId::parse(id)));
            last = number.or(last);
            after = rest;
            if after.is_none() || ids.len() >= filter.limit {
                break;
            }
        }
        let next = ids.last().filter(|_| ids.len() == filter.limit);
        let next = next.zip(last).map(|(job, number)| Place { number, job: *job });
        let mut out = Vec::with_capacity(ids.len());
        for some in ids.chunks(RECORDS_AT_ONCE) {
            for mut record in self.0.server.records(viewer, some, None)? {
                // The script has looked at what nobody signed.
                if !filter.matches(record.status, &record.spec) {
                    continue;
                }
                if filter.bare
                    && let Some(Finished { status, result: Ok(payload) }) = record.finished.as_deref()
                {
                    let result = Payload { media_type: payload.media_type.clone(), bytes: Arc::from([]) };
                    record.finished = Some(Arc::new(Finished { status: *status, result: Ok(result) }));
                }
                out.push(record);
            }
        }
        Ok(Listed { records: out, next })
    }

    fn lanes(&self, viewer: &Viewer, handler: &str, most: usize) -> Reached<Option<Vec<LaneStats>>> {
        let server = &self.0.server;
        if !server.settings.handlers.iter().any(|spec| *spec.name == *handler) {
            return Ok(None);
        }
        let what = json!({ "h": handler, "most": most, "ow": owner(viewer) });
        let rows: Vec<(Option<Row>, usize)> = server.ask("lanes", what)?;
        let lane = |(row, jobs)| server.record(viewer, row).map(|head| LaneStats { head, jobs });
        Ok(Some(rows.into_iter().filter_map(lane).collect()))
    }

    fn recent_ends(&self, count: u64) -> Looked {
        lock(&self.0.state).recent.since(count)
    }

    fn take_traced(&self) -> (Vec<JobRecord>, u64) {
        let (ids, mut lost) = lock(&self.0.state).traced.take();
        let mut out = Vec::new();
        for some in ids.chunks(RECORDS_AT_ONCE) {
            match self.0.server.records(&Viewer::service(), some, None) {
                Ok(records) => {
                    // Some are gone already.
                    lost += (some.len() - records.len()) as u64;
                    out.extend(records.into_iter().map(JobRecord::without_result));
                }
                Err(_) => lost += some.len() as u64,
            }
        }
        out.retain(|record| record.spec.trace.parent.is_some());
        (out, lost)
    }

    fn stats(&self) -> Reached<Stats> {
        let server = &self.0.server;
        let figures: Reached<Figures> = server.ask("stats", json!({}));
        let away = figures.as_ref().err().cloned();
        let (counts, waits, nodes, records, leases, idempotency_keys) = figures.unwrap_or_default();
        // As large as a number can be there: whoever can write to the server may have written any text.
        let count = |name: &str| {
            counts.get(name).and_then(|count| count.parse().ok()).map_or(0, |count: u64| count.min(1 << 53))
        };
        let paused = counts.get("paused").map_or("", String::as_str);
        let histogram = |name: &str, handler: &str| Histogram {
            buckets: std::array::from_fn(|index| count(&format!("{name}:{handler}:{index}"))),
            sum_micros: count(&format!("{name}:{handler}:sum")),
        };
        let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let handlers = server.settings.handlers.iter().map(|spec| {
            let name = &*spec.name;
            let queued = size(count(&format!("queued:{name}")));
            let running = size(count(&format!("running:{name}")));
            HandlerStats {
                handler: spec.name.clone(),
                group: server.settings.groups[spec.group].clone(),
                paused: paused.split(' ').any(|paused| paused == name),
                queued,
                running,
                // An unordered job is a lane of its own.
                lanes: size(count(&format!("lanes:{name}")))
                    + if spec.options.ordering == Ordering::None { queued + running } else { 0 },
                parked: size(count(&format!("parked:{name}"))),
                oldest: Duration::from_micros(waits.get(name).copied().unwrap_or(0)),
                submitted: count(&format!("submitted:{name}")),
                finished: JobStatus::ALL.map(|status| count(&format!("finished:{name}:{}", status.as_str()))),
                job_seconds: histogram("job", name),
                queue_wait_seconds: histogram("wait", name),
            }
        });
        let (processes, consumers, busy) = self.processes(nodes);
        Ok(Stats {
            away,
            full: None,
            handlers: handlers.collect(),
            redelivered: count("redelivered"),
            dead: count("dead"),
            late: count("late"),
            duplicate: count("duplicate"),
            consumers,
            busy,
            processes,
            leases_renewed: count("renewed"),
            leases_lost: count("expired"),
            reconnects: server.link.generation.load(std::sync::atomic::Ordering::Relaxed),
            forged: [
                count("forged"),
                count("forged:state"),
                server.forgeries.count(Forged::Key),
                server.forgeries.count(Forged::End),
            ],
            suspects: size(count("suspects")),
            idempotency_keys,
            idempotency_evicted: 0,
            state_bytes: 0,
            records,
            leases,
        })
    }
}
