//! The server, as a process of a deployment speaks to it: the settings as the scripts read them, and how jobs and records
//! are named.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::{Connection, FromRedisValue, RedisError, Value};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::connection::{Link, is_of_another_type, read};
use super::envelope::{Signer, idempotency_digest};
use super::forgeries::{Forgeries, Seldom};
use crate::bell::lock;
use crate::clock::{Clock, Timestamp, micros, millis};
use crate::codec::hex;
use crate::config::Redis;
use crate::config::secret::Secret;
use crate::entropy::Entropy;
use crate::handler::{HandlerSpec, OnDead, Ordering};
use crate::job::{
    Attempt, AttemptOutcome, Change, JobId, JobRecord, JobSpec, JobStatus, WaitingFor, state_map,
};
use crate::limits::{
    CONTEXT_BYTES, ENDS_AN_ENTRY, FRAME_OVERHEAD_BYTES, INBOX_ENDS, INBOX_RESULT_BYTES, LANE_AFFINITY,
    LEASE_GRACE, LOSSES_TO_BE_ALONE, PAST_ATTEMPTS, PROCESS_LIVES, PUT_OFF_DOUBLINGS, QUEUED_BYTES, RUN_JOBS,
    SUB_LIVES,
};
use crate::negative_controls::{Control, is_off};
use crate::ports::{BackendError, Forged, NewJob, Reached, Rules, Viewer};

/// How long a forged job is kept for whoever wants to look at it: a week.
const QUARANTINE_MS: u64 = 7 * 24 * 3_600_000;
/// A deployment looks this often at what time alone does.
const SWEEP_EVERY: Duration = Duration::from_millis(50);
/// An inbox that nobody keeps open vanishes after this long.
const INBOX_LIVES_MS: u64 = 60_000;
/// An executor's name at most: its process's, a point, and its number.
const CONSUMER_BYTES: usize = 40;
/// Records that one look of a list goes through: some tens of milliseconds.
const LOOK: usize = 2_048;
/// Ready lanes of a handler that a claim looks at, beyond those that it has room for.
const SCAN: usize = 64;

/// What a deployment on Redis is made from.
pub struct Settings {
    /// Where the server is.
    pub redis: Redis,
    /// Before every key: the deployment's hash tag, and for a deployment inside one more words.
    pub prefix: String,
    /// Finished records of each class at most; `None`: they go by their time alone (`reply.retain` is memory's).
    pub keep: Option<usize>,
    /// The bounds and times of the queue.
    pub rules: Rules,
    /// All handlers.
    pub handlers: Vec<HandlerSpec>,
    /// The names of the process groups.
    pub groups: Vec<Arc<str>>,
    /// When a job was submitted; a manual one stands in for the server's own time, too (tests).
    pub clock: Clock,
    /// Workers of an executor, by group.
    pub workers: Vec<usize>,
}

/// See the module.
pub struct Server {
    pub settings: Settings,
    pub link: Link,
    /// The process's name in the deployment.
    pub node: String,
    pub host: String,
    /// Another one since its secrets were read again.
    signer: Mutex<Arc<Signer>>,
    /// What the functions are told with each call.
    config: String,
    /// Their source, and its digest.
    library: (String, String),
    pub forgeries: Forgeries,
    /// When an outcome that found no room was said last.
    pub full_said: Seldom,
}

/// ARGV of a call behind the configuration: what is wanted, and bytes that it names by their index.
#[derive(Default)]
pub struct Arguments {
    pub what: Json,
    bytes: Vec<Vec<u8>>,
}

impl Arguments {
    /// Its index in ARGV.
    pub fn add(&mut self, bytes: Vec<u8>) -> usize {
        self.bytes.push(bytes);
        self.bytes.len() + 2
    }

    /// Changes of a map as the functions read them; `kept` makes of a key and a value what stands there.
    pub fn changes(&mut self, changes: &[Change], kept: impl Fn(&str, &[u8]) -> Vec<u8>) -> Json {
        let changes = changes.iter().map(|Change { key, value }| {
            let kept = value.as_ref().map(|value| kept(key, value));
            [self.add(key.as_bytes().to_vec()), kept.map_or(0, |kept| self.add(kept))]
        });
        json!(changes.collect::<Vec<_>>())
    }
}

/// Absent: to Lua, JSON's null is something.
pub fn or_false<T: Into<Json>>(value: Option<T>) -> Json {
    value.map_or(false.into(), Into::into)
}

/// Keys and values as they stand in a map.
pub type Sealed = Vec<(Vec<u8>, Vec<u8>)>;

/// A finished record, or one under way, as the functions give it.
pub type Row = (
    String,
    Vec<u8>,
    String,
    u64,
    Option<u64>,
    Option<u64>,
    Vec<u8>,
    (String, String),
    Vec<u8>,
    Vec<u8>,
    Vec<u8>,
);

impl Server {
    pub fn new(settings: Settings, envelopes: &[&Secret]) -> Result<Server, String> {
        Ok(Server {
            link: Link::new(&settings.redis)?,
            node: hex(&Entropy::system().bytes::<8>()),
            host: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            signer: Mutex::new(Arc::new(Signer::new(envelopes, &settings.prefix))),
            config: config(&settings).to_string(),
            library: library(),
            forgeries: Forgeries::default(),
            full_said: Seldom::default(),
            settings,
        })
    }

    /// Signs and verifies with what was read last.
    pub fn signer(&self) -> Arc<Signer> {
        lock(&self.signer).clone()
    }

    /// Signs with the first of these from now on, and knows them alone. Which of them the server knows is asked anew.
    pub fn rekey(&self, envelopes: &[Secret]) {
        let envelopes: Vec<&Secret> = envelopes.iter().collect();
        *lock(&self.signer) = Arc::new(Signer::new(&envelopes, &self.settings.prefix));
    }

    pub fn now(&self) -> Timestamp {
        self.settings.clock.now()
    }

    /// Says nothing to a server whose jobs are signed with another secret: they would be taken for forged, and ours by others.
    fn recognise(&self) -> Reached<()> {
        let signer = self.signer();
        if !signer.is_ours.load(Relaxed) {
            if !self.link.agrees(&self.settings.prefix, &signer.checks())? {
                return Err(BackendError("redis: its jobs are signed with another secret than ours".into()));
            }
            if self.settings.keep.is_some() {
                // No function has written this one.
                self.link.renew_all(&self.settings.prefix, SUB_LIVES)?;
            }
            signer.is_ours.store(true, Relaxed);
        }
        Ok(())
    }

    /// Calls a function, once more if its connection breaks: then it is told so.
    pub fn call<T: FromRedisValue>(&self, name: &str, arguments: &mut Arguments) -> Reached<T> {
        self.recognise()?;
        let answer = self.link.call(|connection| {
            let mut answer = self.call_once(name, arguments, connection);
            if answer.is_err() {
                arguments.what["again"] = true.into();
            }
            if answer.as_ref().is_err_and(|error| is_of_another_type(&error.to_string())) {
                self.mend(arguments, connection)?;
                answer = self.call_once(name, arguments, connection);
            }
            answer
        });
        read(answer?)
    }

    fn call_once(
        &self,
        name: &str,
        arguments: &mut Arguments,
        connection: &mut Connection,
    ) -> Result<Value, RedisError> {
        if let Clock::Manual(_) = &self.settings.clock {
            arguments.what["now"] = self.now().0.into();
        }
        let mut call = redis::cmd("FCALL");
        call.arg(format!("cofferdam_{name}_{}", self.library.1))
            .arg(1)
            .arg(&self.settings.prefix)
            .arg(&self.config)
            .arg(arguments.what.to_string());
        call.arg(&arguments.bytes);
        match call.query(connection) {
            // It is new here, or was flushed.
            Err(error) if error.detail() == Some("Function not found") => {
                redis::cmd("FUNCTION").arg("LOAD").arg("REPLACE").arg(&self.library.0).exec(connection)?;
                call.query(connection)
            }
            answer => answer,
        }
    }

    /// What all jobs share is not of the type that it was, which no function of ours does: it is made again. The arguments
    /// are those of the call that met it.
    pub fn mend(&self, arguments: &mut Arguments, connection: &mut Connection) -> Result<(), RedisError> {
        let removed: Vec<String> = redis::from_redis_value(self.call_once("mend", arguments, connection)?)?;
        removed.iter().for_each(|key| self.forgeries.say(Forged::State, "", "", key));
        Ok(())
    }

    /// Calls a function that needs no bytes.
    pub fn ask<T: FromRedisValue>(&self, name: &str, what: Json) -> Reached<T> {
        self.call(name, &mut Arguments { what, ..Arguments::default() })
    }

    /// A job as the scripts take it.
    pub fn job_json(&self, job: &NewJob, arguments: &mut Arguments) -> Json {
        let spec = self.settings.handlers.iter().find(|spec| spec.name == job.handler);
        let options = spec.map(|spec| &spec.options);
        let spec = JobSpec {
            id: job.id,
            owner: job.owner.clone(),
            handler: job.handler.clone(),
            ordering_key: job.ordering_key.clone(),
            trace: job.trace,
            tracestate: job.tracestate.clone(),
            submitted_at: self.now(),
            timeout: job.timeout.or(options.map(|options| options.timeout)).unwrap_or_default(),
            one_line: job.one_line,
        };
        // As its state is named.
        let lane = match options.is_some_and(|options| options.ordering != Ordering::None) {
            true => state_map(&job.handler, job.ordering_key.as_deref()).split_off("state:".len()),
            false => String::new(),
        };
        let key = job.idempotency.as_ref();
        let digest = key.map(|key| idempotency_digest(&job.owner, &job.handler, key)).unwrap_or_default();
        let mut out = json!({
            "id": job.id.to_string(), "h": *job.handler, "lane": lane, "ow": *job.owner,
            "in": job.instance.to_string(), "tr": job.trace.id_text(), "nb": micros(job.delay),
            "aw": if job.awaited && job.idempotency.is_none() { "1" } else { "0" }, "to": micros(spec.timeout),
            "pb": job.payload.bytes.len(), "pl": arguments.add(job.payload.bytes.to_vec()),
            "env": arguments.add(self.signer().seal_job(&spec, &job.payload, &digest)),
        });
        if let Some(idempotency) = key {
            let scope = [&*job.owner, &*job.handler, &*idempotency.key].join("\0");
            out["ik"] = hex(&Sha256::digest(scope)).into();
            out["fp"] = hex(&idempotency.fingerprint).into();
        }
        out
    }

    /// The record of the job that an idempotency key names, if that was submitted with this key and payload.
    pub fn joined(&self, job: &NewJob, id: JobId) -> Reached<Option<JobRecord>> {
        let row = self.rows(&Viewer::service(), &[id], None)?.pop().flatten();
        let sealed = row.as_ref().and_then(|row| self.signer().open_job(id, &row.1).ok());
        let is_its_own = |key| {
            let digest = idempotency_digest(&job.owner, &job.handler, key);
            sealed.is_some_and(|sealed| sealed.idempotency == digest) || is_off(Control::IdempotencyScope)
        };
        if job.idempotency.as_ref().is_some_and(is_its_own) {
            return Ok(self.record(&Viewer::service(), row));
        }
        self.forgeries.found(Forged::Key, &id.to_string());
        Ok(None)
    }

    /// `None` where there is no such job. What is not signed is as good as not there, and so is what the viewer may not see:
    /// whose a job is stands in its envelope.
    pub fn record(&self, viewer: &Viewer, row: Option<Row>) -> Option<JobRecord> {
        let (
            id,
            envelope,
            status,
            deliveries,
            started,
            finished,
            result,
            (why, what),
            executor,
            past,
            progress,
        ) = row?;
        let (id, status) = (JobId::parse(&id)?, JobStatus::parse(&status)?);
        let sealed =
            self.signer().open_job(id, &envelope).ok().filter(|sealed| viewer.sees(&sealed.spec.owner))?;
        let ended = match status.is_terminal() {
            true => Some(Arc::new(self.signer().open_outcome(id, status, &result).ok()?)),
            false => None,
        };
        let until = || Timestamp(what.parse().unwrap_or(0));
        // Nobody has signed these: what is no text is nothing.
        let [executor, past] = [&executor, &past].map(|bytes| std::str::from_utf8(bytes).unwrap_or_default());
        let waiting_for = match why.as_str() {
            "" => None,
            "paused" => Some(WaitingFor::Paused),
            "lane" => JobId::parse(&what).map(WaitingFor::Lane),
            "backoff" => Some(WaitingFor::Backoff(until())),
            "delay" => Some(WaitingFor::Delay(until())),
            "workers" => Some(WaitingFor::Workers),
            _ => Some(WaitingFor::Executor),
        };
        Some(JobRecord {
            spec: Arc::new(sealed.spec),
            status,
            deliveries: u32::try_from(deliveries).unwrap_or(u32::MAX),
            started_at: started.map(Timestamp),
            finished_at: finished.map(Timestamp),
            finished: ended,
            waiting_for,
            progress: self.signer().open_progress(id, &progress),
            executor: (1..=CONSUMER_BYTES).contains(&executor.len()).then(|| executor.into()),
            past: past.lines().take(PAST_ATTEMPTS).filter_map(attempt).collect(),
        })
    }
}

/// A line of a job's past deliveries. Nobody has signed it: one that is none is left out.
fn attempt(line: &str) -> Option<Attempt> {
    let mut words = line.split(' ');
    let mut time = || words.next()?.parse().ok().map(Timestamp);
    let (started_at, ended_at) = (time()?, time()?);
    let executor = words.next().filter(|name| name.len() <= CONSUMER_BYTES)?.into();
    Some(Attempt { started_at, ended_at, executor, outcome: AttemptOutcome::parse(words.next()?)? })
}

/// The functions as they stand, but for the check that a negative control has switched off, and their digest.
fn library() -> (String, String) {
    const ENDS: &str = "    finish(c.id, job, c.s, c.r, c.n, delivery)\n";
    let parts = [
        include_str!("scripts/lib.lua"),
        include_str!("scripts/turn.lua"),
        include_str!("scripts/control.lua"),
        include_str!("scripts/mend.lua"),
    ];
    let mut source = format!("#!lua name=cofferdam_DIGEST\n{}", parts.concat());
    for (control, check, without) in [
        (Control::LeaseHolder, "lease.consumer ~= consumer(c.i) or ", ""),
        (Control::StateVersion, "(ordered and version ~= c.v)", "false"),
        (Control::LaneOrder, "call('RPUSH', P .. 'q:' .. l, id)", "call('LPUSH', P .. 'q:' .. l, id)"),
        (
            Control::AtomicCommit,
            ENDS,
            "    if c.d > 1 then finish(c.id, job, c.s, c.r, c.n, delivery)\n\
             else again(c.id, job, 'executor_lost', nil, 0, '', ''); goes_on = false end\n",
        ),
    ] {
        if is_off(control) {
            source = source.replacen(check, without, 1);
        }
    }
    let digest = hex(&Sha256::digest(&source)[..8]);
    (source.replace("DIGEST", &digest), digest)
}

/// Handlers and rules, see scripts/lib.lua.
fn config(settings: &Settings) -> Json {
    let rules = &settings.rules;
    let handlers = settings.handlers.iter().map(|HandlerSpec { name, group, options, follow_ups }| {
        let deliveries = options.max_deliveries.unwrap_or(rules.max_deliveries);
        let is_ordered = options.ordering != Ordering::None;
        let retry = options.retry.unwrap_or(rules.retry);
        let of = json!({
            "g": group, "c": options.concurrency, "o": is_ordered, "d": deliveries,
            "p": options.on_dead == OnDead::Park, "fu": or_false(follow_ups.as_deref()),
            "rb": 1_000 * retry.base_ms, "rm": 1_000 * retry.max_ms,
        });
        (name.to_string(), of)
    });
    let rules = json!({
        "cap": rules.capacity, "put_off": PUT_OFF_DOUBLINGS, "bytes": QUEUED_BYTES, "vis": micros(rules.visibility),
        "ttl": micros(rules.result_ttl), "attl": micros(rules.awaited_ttl),
        "fttl": micros(rules.failed_ttl), "ittl": micros(rules.idempotency_ttl),
        "keep": or_false(settings.keep), "life": or_false(settings.keep.map(|_| millis(SUB_LIVES))),
        "alone": LOSSES_TO_BE_ALONE, "grace": micros(LEASE_GRACE),
        "ctx": micros(rules.context_ttl), "ctxm": CONTEXT_BYTES, "lsm": rules.lane_state_max,
        "mp": rules.max_payload, "envelope": rules.max_payload + FRAME_OVERHEAD_BYTES,
        "tag": crate::mac::MAC_BYTES,
        "run": RUN_JOBS, "past": PAST_ATTEMPTS, "look": LOOK, "scan": SCAN, "aff": micros(LANE_AFFINITY), "groups": settings.groups.len(),
        "entries": INBOX_ENDS / ENDS_AN_ENTRY, "ends": ENDS_AN_ENTRY, "small": INBOX_RESULT_BYTES,
        "inbox": INBOX_LIVES_MS, "con": micros(PROCESS_LIVES), "quarantine": QUARANTINE_MS,
        "sweep": micros(SWEEP_EVERY),
    });
    json!({ "H": handlers.collect::<serde_json::Map<_, _>>(), "R": rules })
}
