//! The submitting side, and what all sides share: the settings as the scripts read them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use redis::{Script, Value};
use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};

use super::connection::{Link, bytes, fields, list, number, text};
use super::envelope::Signer;
use super::replies::Heard;
use crate::clock::{Clock, Timestamp};
use crate::config::secret::Secret;
use crate::handler::{HandlerSpec, OnDead, Ordering};
use crate::job::{Finished, JobError, JobId, JobRecord, JobStatus, WaitingFor, parse_hex};
use crate::limits::{CONTEXT_BYTES, INBOX_DOORBELLS, LANE_AFFINITY, QUEUED_BYTES, RUN_JOBS};
use crate::ports::{
    BackendError, Filter, HandlerStats, Histogram, NewJob, Producer, Refusal, Stats, Submitted, Viewer,
};
use crate::problem::Code;

/// How long an executor is taken for alive after its last word.
const CONSUMER_LIVES: Duration = Duration::from_secs(30);
/// How long a forged job is kept for whoever wants to look at it: a week.
const QUARANTINE_MS: u64 = 7 * 24 * 3_600_000;
/// Ready lanes of a handler that a claim looks at.
const SCAN: usize = 64;

/// What a deployment on Redis is made from.
pub struct Settings {
    /// `redis://…` or `unix://…`
    pub url: String,
    /// Before every key.
    pub prefix: String,
    /// The bounds and times of the queue.
    pub rules: crate::ports::Rules,
    /// All handlers.
    pub handlers: Vec<HandlerSpec>,
    /// The names of the process groups.
    pub groups: Vec<Arc<str>>,
    /// A server that does not accept is given up after this.
    pub connect_timeout: Duration,
    /// One that does not answer after this.
    pub response_timeout: Duration,
    /// In place of the server's time (tests).
    pub clock: Option<Clock>,
}

/// A handle to a deployment's broker; all clones are one.
#[derive(Clone)]
pub struct RedisBroker(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) link: Link,
    pub(super) prefix: String,
    pub(super) signer: Signer,
    pub(super) handlers: Vec<HandlerSpec>,
    pub(super) groups: Vec<Arc<str>>,
    clock: Option<Clock>,
    /// "H" and "R" of every call.
    common: Map<String, Json>,
    pub(super) scripts: Scripts,
    /// Who listens (tests).
    pub(super) ears: Mutex<Vec<Weak<Heard>>>,
}

pub(super) struct Scripts {
    submit: Script,
    pub(super) step: Script,
    pub(super) lease: Script,
    pub(super) control: Script,
    pub(super) maps: Script,
}

macro_rules! script {
    ($name:literal) => {
        Script::new(concat!(
            include_str!("scripts/lib.lua"),
            include_str!(concat!("scripts/", $name, ".lua"))
        ))
    };
}

/// ARGV of a call: the first names the others by their index.
#[derive(Default)]
pub(super) struct Blobs(Vec<Vec<u8>>);

impl Blobs {
    /// Its index in ARGV.
    pub(super) fn add(&mut self, bytes: Vec<u8>) -> usize {
        self.0.push(bytes);
        self.0.len() + 1
    }
}

impl RedisBroker {
    /// Around a server that is not asked yet.
    ///
    /// # Errors
    /// The address makes no sense.
    pub fn new(settings: Settings, root: &Secret) -> Result<RedisBroker, String> {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let rules = &settings.rules;
        let handler = |spec: &HandlerSpec| {
            let options = &spec.options;
            let value = json!({
                "g": spec.group, "c": options.concurrency, "o": options.ordering != Ordering::None,
                "d": options.max_deliveries.unwrap_or(rules.max_deliveries), "p": options.on_dead == OnDead::Park,
            });
            (spec.name.to_string(), value)
        };
        let handlers: Map<String, Json> = settings.handlers.iter().map(handler).collect();
        let rules = json!({
            "cap": rules.capacity, "bytes": QUEUED_BYTES, "vis": micros(rules.visibility), "rb": micros(rules.retry_base),
            "rm": micros(rules.retry_max), "ttl": micros(rules.result_ttl), "attl": micros(rules.awaited_ttl),
            "keepn": rules.retain.records, "keepb": rules.retain.bytes, "ctx": micros(rules.context_ttl),
            "ctxm": CONTEXT_BYTES, "lsm": rules.lane_state_max, "mp": rules.max_payload, "run": RUN_JOBS, "scan": SCAN,
            "aff": micros(LANE_AFFINITY), "doorbells": INBOX_DOORBELLS, "con": micros(CONSUMER_LIVES),
            "tag": crate::mac::MAC_BYTES, "quarantine": QUARANTINE_MS,
        });
        let mut common = Map::new();
        common.insert("H".into(), handlers.into());
        common.insert("R".into(), rules);
        Ok(RedisBroker(Arc::new(Shared {
            link: Link::new(&settings.url, settings.connect_timeout, settings.response_timeout)?,
            signer: Signer::new(root, &settings.prefix),
            prefix: format!("{{{}}}:", settings.prefix),
            handlers: settings.handlers,
            groups: settings.groups,
            clock: settings.clock,
            common,
            ears: Mutex::new(Vec::new()),
            scripts: Scripts {
                submit: script!("submit"),
                step: script!("step"),
                lease: script!("lease"),
                control: script!("control"),
                maps: script!("maps"),
            },
        })))
    }

    /// Jobs that were not run because nobody of this deployment signed them.
    ///
    /// # Errors
    /// The backend is lost.
    pub fn forged(&self) -> Result<u64, BackendError> {
        let key = format!("{}count", self.0.prefix);
        let forged: Option<u64> = self.0.link.command(redis::cmd("HGET").arg(key).arg("forged"))?;
        Ok(forged.unwrap_or(0))
    }

    /// Every key of the deployment, by its kind (tests).
    ///
    /// # Errors
    /// The backend is lost.
    pub fn keys(&self) -> Result<Vec<String>, BackendError> {
        let keys: Vec<String> = self.0.link.command(redis::cmd("KEYS").arg(format!("{}*", self.0.prefix)))?;
        let kind = |key: String| key[self.0.prefix.len()..].split(':').next().unwrap_or_default().to_owned();
        Ok(keys.into_iter().map(kind).collect())
    }
}

impl Shared {
    pub(super) fn call(&self, script: &Script, what: Json, blobs: Blobs) -> Result<Value, BackendError> {
        let mut header = self.common.clone();
        if let Some(clock) = &self.clock {
            header.insert("now".into(), clock.now().0.into());
        }
        if let Json::Object(fields) = what {
            header.extend(fields);
        }
        let header = Json::Object(header).to_string();
        let mut arguments: Vec<&[u8]> = vec![header.as_bytes()];
        arguments.extend(blobs.0.iter().map(Vec::as_slice));
        self.link.run(script, &self.prefix, &arguments)
    }

    pub(super) fn spec(&self, name: &str) -> Option<&HandlerSpec> {
        self.handlers.iter().find(|spec| *spec.name == *name)
    }

    /// A job as `submit` and follow-ups name it.
    pub(super) fn job_json(&self, job: &NewJob, blobs: &mut Blobs) -> Json {
        let spec = self.spec(&job.handler);
        let timeout = job.timeout.or(spec.map(|spec| spec.options.timeout)).unwrap_or_default();
        let ordered = spec.is_some_and(|spec| spec.options.ordering != Ordering::None);
        let lane = match (ordered, &job.ordering_key) {
            (false, _) => format!("{}:{}", job.handler, job.id),
            (true, key) => {
                format!("{}:{}", job.handler, hex(&Sha256::digest(key.as_deref().unwrap_or_default())))
            }
        };
        let mut out = json!({
            "id": job.id.to_string(), "h": &*job.handler, "lane": lane, "ow": &*job.owner,
            "in": format!("{:016x}", job.instance.0), "aw": u8::from(job.awaited && job.idempotency.is_none()),
            "tr": job.trace.id_text(), "nb": u64::try_from(job.delay.as_micros()).unwrap_or(u64::MAX),
            "pb": job.payload.bytes.len(), "env": blobs.add(self.signer.seal_job(job, timeout)),
        });
        if let Some(idempotency) = &job.idempotency {
            let scope = [&*job.owner, &*job.handler, &*idempotency.key].join("\0");
            out["ik"] = hex(&Sha256::digest(scope)).into();
            out["fp"] = hex(&idempotency.fingerprint).into();
        }
        out
    }

    /// `None` where there is no such job. What is not signed is as good as not there.
    fn record(&self, value: Value) -> Result<Option<JobRecord>, BackendError> {
        if matches!(&value, Value::BulkString(_) | Value::SimpleString(_)) {
            return Ok(None);
        }
        let [id, env, status, deliveries, submitted, started, finished, result, waiting] = fields(value)?;
        let Some(id) = JobId::parse(&text(id)?) else { return Ok(None) };
        let submitted = Timestamp(number(submitted)?);
        let Ok((spec, _)) = self.signer.open_job(id, &bytes(env)?, submitted) else { return Ok(None) };
        let Some(status) = JobStatus::parse(&text(status)?) else { return Ok(None) };
        let time = |value| text(value).map(|text| text.parse().ok().map(Timestamp));
        let ended = match status.is_terminal() {
            true => self.signer.open_outcome(id, status, &bytes(result)?).ok(),
            false => None,
        };
        if status.is_terminal() && ended.is_none() {
            return Ok(None);
        }
        let waiting: Vec<String> = list(waiting)?.into_iter().map(text).collect::<Result<_, _>>()?;
        let until = || Timestamp(waiting[1].parse().unwrap_or(0));
        let waiting_for = match waiting.first().map(String::as_str) {
            Some("paused") => Some(WaitingFor::Paused),
            Some("lane") => JobId::parse(&waiting[1]).map(WaitingFor::Lane),
            Some("backoff") => Some(WaitingFor::Backoff(until())),
            Some("delay") => Some(WaitingFor::Delay(until())),
            Some("workers") => Some(WaitingFor::Workers),
            Some(_) => Some(WaitingFor::Executor),
            None => None,
        };
        Ok(Some(JobRecord {
            spec: Arc::new(spec),
            status,
            deliveries: u32::try_from(number(deliveries)?).unwrap_or(u32::MAX),
            started_at: time(started)?,
            finished_at: time(finished)?,
            finished: ended.map(Arc::new),
            waiting_for,
        }))
    }

    fn control(&self, viewer: Option<&Viewer>, mut what: Json, blobs: Blobs) -> Result<Value, BackendError> {
        if let Some(viewer) = viewer.filter(|viewer| !viewer.admin) {
            what["ow"] = (*viewer.name).into();
        }
        self.call(&self.scripts.control, what, blobs)
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 * bytes.len());
    let _ = crate::job::write_hex(&mut out, bytes);
    out
}

impl Producer for RedisBroker {
    fn submit(&self, jobs: Vec<NewJob>) -> Result<Vec<Submitted>, BackendError> {
        let mut blobs = Blobs::default();
        let named: Vec<Json> = jobs.iter().map(|job| self.0.job_json(job, &mut blobs)).collect();
        let answers = list(self.0.call(&self.0.scripts.submit, json!({ "jobs": named }), blobs)?)?;
        let answers: Vec<String> = answers.into_iter().map(text).collect::<Result<_, _>>()?;
        let existing = |id: &str| -> Result<Submitted, BackendError> {
            let id: [u8; 16] = parse_hex(id.as_bytes()).ok_or(BackendError("redis: no id".into()))?;
            let record = self.record(&Viewer::anonymous(), JobId(id))?;
            Ok(record.map_or(Submitted::Refused(Refusal::IdempotencyMismatch), |record| {
                Submitted::Existing(Box::new(record))
            }))
        };
        let read = |answer: &String| match answer.as_str() {
            "new" => Ok(Submitted::New),
            "full" => Ok(Submitted::Refused(Refusal::QueueFull)),
            "unknown" => Ok(Submitted::Refused(Refusal::UnknownHandler)),
            "mismatch" => Ok(Submitted::Refused(Refusal::IdempotencyMismatch)),
            id => existing(id),
        };
        answers.iter().map(read).collect()
    }

    fn record(&self, viewer: &Viewer, id: JobId) -> Result<Option<JobRecord>, BackendError> {
        let what = json!({ "do": "records", "ids": [id.to_string()] });
        let records = list(self.0.control(Some(viewer), what, Blobs::default())?)?;
        records.into_iter().next().map_or(Ok(None), |record| self.0.record(record))
    }

    fn cancel(&self, viewer: &Viewer, id: JobId) -> Result<Option<JobRecord>, BackendError> {
        let mut blobs = Blobs::default();
        let error = JobError::new(Code::Cancelled, "the job was cancelled");
        let finished = Finished { status: JobStatus::Cancelled, result: Err(error) };
        let outcome = blobs.add(self.0.signer.seal_outcome(id, &finished));
        let what = json!({ "do": "cancel", "id": id.to_string(), "r": outcome });
        self.0.control(Some(viewer), what, blobs).and_then(|record| self.0.record(record))
    }

    fn retry(
        &self,
        viewer: &Viewer,
        id: JobId,
    ) -> Result<Option<Result<JobRecord, JobStatus>>, BackendError> {
        let what = json!({ "do": "retry", "id": id.to_string() });
        match self.0.control(Some(viewer), what, Blobs::default())? {
            Value::BulkString(word) => {
                Ok(std::str::from_utf8(&word).ok().and_then(JobStatus::parse).map(Err))
            }
            record => Ok(self.0.record(record)?.map(Ok)),
        }
    }

    fn pause(&self, handler: &str, paused: bool) -> Result<bool, BackendError> {
        let what = json!({ "do": "pause", "h": handler, "on": paused });
        Ok(text(self.0.control(None, what, Blobs::default())?)? == "ok")
    }

    fn list(&self, viewer: &Viewer, filter: &Filter) -> Result<Vec<JobRecord>, BackendError> {
        let mut what = json!({ "do": "list", "most": filter.limit });
        if let Some(handler) = &filter.handler {
            what["h"] = handler.as_str().into();
        }
        if let Some(status) = filter.status {
            what["s"] = status.as_str().into();
        }
        let records = list(self.0.control(Some(viewer), what, Blobs::default())?)?;
        records.into_iter().filter_map(|record| self.0.record(record).transpose()).collect()
    }

    fn stats(&self) -> Result<Stats, BackendError> {
        let answer = self.0.control(None, json!({ "do": "stats" }), Blobs::default())?;
        let [counts, ready, paused, consumers, records, leases] = fields(answer)?;
        let words = |value| list(value)?.into_iter().map(text).collect::<Result<Vec<String>, _>>();
        let (counts, ready) = (words(counts)?, words(ready)?);
        let figure = |pairs: &[String], name: &str| {
            let pair = pairs.chunks_exact(2).find(|pair| pair[0] == name);
            pair.and_then(|pair| pair[1].parse::<u64>().ok()).unwrap_or(0)
        };
        let count = |name: &str| figure(&counts, name);
        let paused: BTreeSet<String> = words(paused)?.into_iter().collect();
        let histogram = |name: &str, handler: &str| {
            let bucket = |index: usize| count(&format!("{name}:{handler}:{index}"));
            Histogram {
                buckets: std::array::from_fn(bucket),
                sum_micros: count(&format!("{name}:{handler}:sum")),
            }
        };
        let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let handlers = self.0.handlers.iter().map(|spec| {
            let name = &*spec.name;
            HandlerStats {
                handler: spec.name.clone(),
                group: self.0.groups[spec.group].clone(),
                paused: paused.contains(name),
                queued: size(count(&format!("queued:{name}"))),
                running: size(count(&format!("running:{name}"))),
                lanes: size(count(&format!("lanes:{name}"))),
                oldest: Duration::from_micros(figure(&ready, name)),
                submitted: count(&format!("submitted:{name}")),
                finished: JobStatus::ALL.map(|status| count(&format!("finished:{name}:{}", status.as_str()))),
                job_seconds: histogram("job", name),
                queue_wait_seconds: histogram("wait", name),
            }
        });
        let mut connected = vec![0; self.0.groups.len()];
        for group in words(consumers)? {
            if let Some(count) = group.parse().ok().and_then(|group: usize| connected.get_mut(group)) {
                *count += 1;
            }
        }
        Ok(Stats {
            handlers: handlers.collect(),
            redelivered: count("redelivered"),
            dead: count("dead"),
            late: count("late"),
            duplicate: count("duplicate"),
            consumers: connected,
            records: size(number(records)?),
            leases: size(number(leases)?),
        })
    }
}
