//! The submitting side: what web asks of the broker.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use serde_json::{Value as Json, json};

use super::broker::RedisBroker;
use super::connection::{fields, list, number, text, texts};
use super::envelope::hex;
use super::server::{Blobs, Server};
use crate::bell::lock;
use crate::entropy::Entropy;
use crate::handler::Ordering;
use crate::job::{Finished, InstanceId, JobId, JobRecord, JobStatus, Payload};
use crate::ports::{
    BackendError, Filter, HandlerStats, Histogram, JobEnded, NewJob, ProcessStats, Producer, Stats,
    Submitted, Then, Viewer,
};
use crate::problem::{Code, JobError};

impl Server {
    fn control(&self, viewer: Option<&Viewer>, mut what: Json, blobs: &Blobs) -> Result<Value, BackendError> {
        if let Some(viewer) = viewer.filter(|viewer| !viewer.admin) {
            what["ow"] = (*viewer.name).into();
        }
        self.call(&self.scripts.control, &what, blobs)
    }

    pub(super) fn find(&self, viewer: &Viewer, id: JobId) -> Result<Option<JobRecord>, BackendError> {
        Ok(self.records(Some(viewer), json!({ "ids": [id.to_string()] }))?.pop())
    }

    /// Those of the jobs asked for that are there.
    fn records(&self, viewer: Option<&Viewer>, mut what: Json) -> Result<Vec<JobRecord>, BackendError> {
        what["do"] = "records".into();
        let records = list(self.control(viewer, what, &Blobs::default())?)?;
        records.into_iter().filter_map(|record| self.record(record).transpose()).collect()
    }
}

/// Records that are read together: each comes with its result, which its signature covers.
const RECORDS_AT_ONCE: usize = 4;

/// The value of this name in a flat list of names and values.
fn figure<T: FromStr>(pairs: &[String], name: &str) -> Option<T> {
    pairs.chunks_exact(2).find(|pair| pair[0] == name)?[1].parse().ok()
}

/// For a list that shows no results.
fn without_result(finished: Arc<Finished>) -> Arc<Finished> {
    match &finished.result {
        Ok(payload) => {
            let payload = Payload { media_type: payload.media_type.clone(), bytes: Arc::from([]) };
            Arc::new(Finished { status: finished.status, result: Ok(payload) })
        }
        Err(_) => finished,
    }
}

impl Producer for RedisBroker {
    fn submit(&self, jobs: Vec<NewJob>) -> Result<Vec<Submitted>, BackendError> {
        self.submit_and_wait(jobs)
    }

    fn submit_later(&self, jobs: Vec<NewJob>, then: Then) {
        self.0.submit(jobs, then);
    }

    fn record(&self, viewer: &Viewer, id: JobId) -> Result<Option<JobRecord>, BackendError> {
        self.0.server.find(viewer, id)
    }

    fn watch(
        &self,
        viewer: &Viewer,
        id: JobId,
        instance: InstanceId,
    ) -> Result<Option<JobRecord>, BackendError> {
        let what = json!({ "ids": [id.to_string()], "in": instance.to_string() });
        Ok(self.0.server.records(Some(viewer), what)?.pop())
    }

    fn ended(&self, jobs: &[JobId]) -> (Vec<JobEnded>, Vec<JobId>) {
        let (mut ended, mut left) = (Vec::new(), jobs);
        while !left.is_empty() {
            let (some, rest) = left.split_at(RECORDS_AT_ONCE.min(left.len()));
            let ids: Vec<String> = some.iter().map(ToString::to_string).collect();
            let Ok(records) = self.0.server.records(None, json!({ "ids": ids })) else {
                // The others would wait as long for nothing. The next time these come last.
                return (ended, [rest, some].concat());
            };
            ended.extend(records.into_iter().filter_map(JobEnded::of));
            left = rest;
        }
        (ended, Vec::new())
    }

    fn cancel(&self, viewer: &Viewer, id: JobId) -> Result<Option<JobRecord>, BackendError> {
        let mut blobs = Blobs::default();
        let error = JobError::new(Code::Cancelled, "the job was cancelled");
        let finished = Finished { status: JobStatus::Cancelled, result: Err(error) };
        let outcome = blobs.add(self.0.server.signer.seal_outcome(id, &finished));
        let what = json!({ "do": "cancel", "id": id.to_string(), "r": outcome });
        self.0.server.control(Some(viewer), what, &blobs).and_then(|record| self.0.server.record(record))
    }

    fn retry(
        &self,
        viewer: &Viewer,
        id: JobId,
    ) -> Result<Option<Result<JobRecord, JobStatus>>, BackendError> {
        // A call that is repeated has the same name.
        let call = hex(&Entropy::system().bytes::<8>());
        let what = json!({ "do": "retry", "id": id.to_string(), "call": call });
        match self.0.server.control(Some(viewer), what, &Blobs::default())? {
            Value::BulkString(word) => {
                Ok(std::str::from_utf8(&word).ok().and_then(JobStatus::parse).map(Err))
            }
            record => Ok(self.0.server.record(record)?.map(Ok)),
        }
    }

    fn pause(&self, handler: &str, paused: bool) -> Result<bool, BackendError> {
        let what = json!({ "do": "pause", "h": handler, "on": paused });
        Ok(text(self.0.server.control(None, what, &Blobs::default())?)? == "ok")
    }

    fn list(&self, viewer: &Viewer, filter: &Filter) -> Result<Vec<JobRecord>, BackendError> {
        let mut what = json!({ "do": "list", "most": filter.limit });
        if let Some(handler) = &filter.handler {
            what["h"] = handler.as_str().into();
        }
        if let Some(status) = filter.status {
            what["s"] = status.as_str().into();
        }
        let ids = texts(self.0.server.control(Some(viewer), what, &Blobs::default())?)?;
        let mut out = Vec::with_capacity(ids.len());
        for some in ids.chunks(RECORDS_AT_ONCE) {
            for mut record in self.0.server.records(Some(viewer), json!({ "ids": some }))? {
                if filter.bare {
                    record.finished = record.finished.map(without_result);
                }
                out.push(record);
            }
        }
        Ok(out)
    }

    fn stats(&self) -> Result<Stats, BackendError> {
        let server = &self.0.server;
        let answer = server.control(None, json!({ "do": "stats" }), &Blobs::default())?;
        let [counts, ready, nodes, records, leases] = fields(answer)?;
        let (counts, ready) = (texts(counts)?, texts(ready)?);
        let paused: String = figure(&counts, "paused").unwrap_or_default();
        let count = |name: &str| figure(&counts, name).unwrap_or(0);
        let histogram = |name: &str, handler: &str| {
            let bucket = |index: usize| count(&format!("{name}:{handler}:{index}"));
            Histogram {
                buckets: std::array::from_fn(bucket),
                sum_micros: count(&format!("{name}:{handler}:sum")),
            }
        };
        let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let handlers = server.handlers.iter().map(|spec| {
            let name = &*spec.name;
            let queued = size(count(&format!("queued:{name}")));
            let running = size(count(&format!("running:{name}")));
            HandlerStats {
                handler: spec.name.clone(),
                group: server.groups[spec.group].clone(),
                paused: paused.split(' ').any(|paused| paused == name),
                queued,
                running,
                // An unordered job is a lane of its own.
                lanes: size(count(&format!("lanes:{name}")))
                    + if spec.options.ordering == Ordering::None { queued + running } else { 0 },
                oldest: Duration::from_micros(figure(&ready, name).unwrap_or(0)),
                submitted: count(&format!("submitted:{name}")),
                finished: JobStatus::ALL.map(|status| count(&format!("finished:{name}:{}", status.as_str()))),
                job_seconds: histogram("job", name),
                queue_wait_seconds: histogram("wait", name),
            }
        });
        let (mut consumers, mut busy) = (vec![0; server.groups.len()], vec![0; server.groups.len()]);
        // What this process has told of itself may be a second old, or is still to be told.
        let (callers, executors) = lock(&self.0.state).facts();
        let mut webs = vec![(server.host.clone(), Some(std::process::id()), callers, executors)];
        for node in list(nodes)? {
            let [node, host, pid, waiters, executors] = fields(node)?;
            if text(node)? != server.node {
                let waiters = text(waiters)?.parse().unwrap_or(0);
                webs.push((text(host)?, text(pid)?.parse().ok(), waiters, text(executors)?));
            }
        }
        let mut processes = Vec::new();
        for (host, pid, waiters, executors) in webs {
            processes.push(ProcessStats { role: "web", group: None, host: host.clone(), pid, busy: waiters });
            for executor in executors.split_whitespace() {
                let (Some((group, leases)), role) = (executor.split_once(':'), "executor") else { continue };
                let (Ok(group), Ok(leases)) = (group.parse::<usize>(), leases.parse::<u64>()) else {
                    continue;
                };
                let Some(name) = server.groups.get(group).cloned() else { continue };
                consumers[group] += 1;
                busy[group] += size(leases).min(server.workers[group]);
                processes.push(ProcessStats {
                    role,
                    group: Some(name),
                    host: host.clone(),
                    pid: None,
                    busy: leases,
                });
            }
        }
        Ok(Stats {
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
            reconnects: server.link.broken(),
            forged: count("forged"),
            suspects: size(count("suspects")),
            records: size(number(records)?),
            leases: size(number(leases)?),
        })
    }
}
