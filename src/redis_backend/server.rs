//! The server, as a process of a deployment speaks to it: the settings as the scripts read them, and how jobs and records
//! are named.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use redis::{Script, Value};
use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};

use super::connection::{Failure, Link, bytes, fields, number, text, texts};
use super::envelope::{Signer, hex, lost_body};
use crate::clock::{Clock, Timestamp, micros};
use crate::config::secret::Secret;
use crate::config::{Redis, Retain};
use crate::entropy::Entropy;
use crate::handler::{HandlerSpec, OnDead, Ordering};
use crate::job::{JobId, JobRecord, JobSpec, JobStatus, WaitingFor};
use crate::limits::{
    CONTEXT_BYTES, ENDS_AN_ENTRY, FRAME_OVERHEAD_BYTES, INBOX_ENDS, INBOX_RESULT_BYTES, LANE_AFFINITY,
    PROCESS_LIVES, QUEUED_BYTES, RUN_JOBS,
};
use crate::negative_controls::{Control, is_off};
use crate::ports::{BackendError, NewJob, Rules};

/// How long a forged job is kept for whoever wants to look at it: a week.
const QUARANTINE_MS: u64 = 7 * 24 * 3_600_000;
/// A deployment looks this often at what time alone does.
const SWEEP_EVERY: Duration = Duration::from_millis(50);
/// An inbox that nobody keeps open vanishes after this long.
const INBOX_LIVES_MS: u64 = 60_000;
/// Ready lanes of a handler that a claim looks at, beyond those that it has room for.
const SCAN: usize = 64;

/// Records in Redis go by their time alone (`reply.retain` is memory's).
pub const UNLIMITED: Retain = Retain { records: 1 << 40, bytes: 1 << 40 };

/// What a deployment on Redis is made from.
pub struct Settings {
    /// Where the server is.
    pub redis: Redis,
    /// Before every key: the deployment's hash tag, and for a deployment inside one more words.
    pub prefix: String,
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
pub(super) struct Server {
    pub(super) link: Link,
    /// The process's name in the deployment.
    pub(super) node: String,
    pub(super) host: String,
    pub(super) prefix: String,
    pub(super) signer: Signer,
    pub(super) handlers: Vec<HandlerSpec>,
    pub(super) groups: Vec<Arc<str>>,
    pub(super) visibility: Duration,
    pub(super) workers: Vec<usize>,
    clock: Clock,
    pub(super) scripts: Scripts,
    /// It was found to know our secret.
    is_ours: AtomicBool,
}

pub(super) struct Scripts {
    pub(super) turn: Script,
    /// The same where jobs are submitted: refused when the server's memory is used up. What runs can still end, which
    /// frees some.
    pub(super) submit: Script,
    pub(super) control: Script,
    pub(super) maps: Script,
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

impl Server {
    pub(super) fn new(settings: Settings, envelopes: &[&Secret]) -> Result<Server, String> {
        let config = lua_config(&settings);
        let script = |flags: &str, name: &str| {
            let text = [include_str!("scripts/lib.lua"), name].concat();
            Script::new(&format!("#!lua{flags}\n{config}{}", with_controls(text)))
        };
        let scripts = Scripts {
            turn: script(" flags=allow-oom", include_str!("scripts/turn.lua")),
            submit: script("", include_str!("scripts/turn.lua")),
            control: script(" flags=allow-oom", include_str!("scripts/control.lua")),
            maps: script(" flags=allow-oom", include_str!("scripts/maps.lua")),
        };
        Ok(Server {
            link: Link::new(&settings.redis)?,
            node: hex(&Entropy::system().bytes::<8>()),
            host: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            signer: Signer::new(envelopes, &settings.prefix),
            prefix: settings.prefix,
            workers: settings.workers,
            visibility: settings.rules.visibility,
            handlers: settings.handlers,
            groups: settings.groups,
            clock: settings.clock,
            scripts,
            is_ours: AtomicBool::new(false),
        })
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Says nothing to a server whose jobs are signed with another secret: they would be taken for forged, and ours by others.
    fn recognise(&self) -> Result<(), BackendError> {
        if !self.is_ours.load(Relaxed) {
            if !self.link.agrees(&self.prefix, &self.signer.checks())? {
                return Err(BackendError("redis: its jobs are signed with another secret than ours".into()));
            }
            self.is_ours.store(true, Relaxed);
        }
        Ok(())
    }

    /// Runs a script, again if its connection breaks: it does not mind.
    pub(super) fn call(&self, script: &Script, what: &Json, blobs: &Blobs) -> Result<Value, BackendError> {
        self.recognise()?;
        let header = self.header(what);
        self.link.run(script, &self.prefix, &arguments(&header, blobs))
    }

    /// Runs a script once.
    pub(super) fn call_once(&self, script: &Script, what: &Json, blobs: &Blobs) -> Result<Value, Failure> {
        self.recognise().map_err(Failure::Final)?;
        let header = self.header(what);
        self.link.run_once(script, &self.prefix, &arguments(&header, blobs))
    }

    fn header(&self, what: &Json) -> String {
        match &self.clock {
            Clock::System { .. } => what.to_string(),
            Clock::Manual(_) => {
                let mut what = what.clone();
                what["now"] = self.clock.now().0.into();
                what.to_string()
            }
        }
    }

    pub(super) fn spec(&self, name: &str) -> Option<&HandlerSpec> {
        self.handlers.iter().find(|spec| *spec.name == *name)
    }

    /// A job as the scripts take it.
    pub(super) fn job_json(&self, job: &NewJob, blobs: &mut Blobs) -> Json {
        let options = self.spec(&job.handler).map(|spec| &spec.options);
        let spec = JobSpec {
            id: job.id,
            owner: job.owner.clone(),
            handler: job.handler.clone(),
            ordering_key: job.ordering_key.clone(),
            trace: job.trace,
            submitted_at: self.now(),
            timeout: job.timeout.or(options.map(|options| options.timeout)).unwrap_or_default(),
            one_line: job.one_line,
        };
        let lane = match options {
            Some(options) if options.ordering != Ordering::None => {
                let key = job.ordering_key.as_deref().unwrap_or_default();
                format!("{}:{}", job.handler, hex(&Sha256::digest(key)))
            }
            Some(_) | None => String::new(),
        };
        let mut out = Map::new();
        let mut put = |name: &str, value: Json| drop(out.insert(name.to_owned(), value));
        put("id", job.id.to_string().into());
        put("h", (*job.handler).into());
        put("lane", lane.into());
        put("ow", (*job.owner).into());
        put("in", job.instance.to_string().into());
        put("aw", u8::from(job.awaited && job.idempotency.is_none()).into());
        put("tr", job.trace.id_text().into());
        put("nb", micros(job.delay).into());
        put("pb", job.payload.bytes.len().into());
        put("env", blobs.add(self.signer.seal_job(&spec, &job.payload)).into());
        put("pl", blobs.add(job.payload.bytes.to_vec()).into());
        put("x", blobs.add(self.signer.sign_loss(job.id)).into());
        if let Some(idempotency) = &job.idempotency {
            let scope = [&*job.owner, &*job.handler, &*idempotency.key].join("\0");
            put("ik", hex(&Sha256::digest(scope)).into());
            put("fp", hex(&idempotency.fingerprint).into());
        }
        Json::Object(out)
    }

    /// `None` where there is no such job. What is not signed is as good as not there.
    pub(super) fn record(&self, value: Value) -> Result<Option<JobRecord>, BackendError> {
        if matches!(&value, Value::BulkString(_) | Value::SimpleString(_)) {
            return Ok(None);
        }
        let [id, env, status, deliveries, started, finished, result, _, waiting] = fields(value)?;
        let Some(id) = JobId::parse(&text(id)?) else { return Ok(None) };
        let Ok(sealed) = self.signer.open_job(id, &bytes(env)?) else { return Ok(None) };
        let Some(status) = JobStatus::parse(&text(status)?) else { return Ok(None) };
        let time = |value| text(value).map(|text| text.parse().ok().map(Timestamp));
        let ended = match status.is_terminal() {
            true => self.signer.open_outcome(id, status, &bytes(result)?).ok(),
            false => None,
        };
        if status.is_terminal() && ended.is_none() {
            return Ok(None);
        }
        let waiting = texts(waiting)?;
        let what = waiting.get(1).map(String::as_str).unwrap_or_default();
        let until = || Timestamp(what.parse().unwrap_or(0));
        let waiting_for = match waiting.first().map(String::as_str) {
            Some("paused") => Some(WaitingFor::Paused),
            Some("lane") => JobId::parse(what).map(WaitingFor::Lane),
            Some("backoff") => Some(WaitingFor::Backoff(until())),
            Some("delay") => Some(WaitingFor::Delay(until())),
            Some("workers") => Some(WaitingFor::Workers),
            Some(_) => Some(WaitingFor::Executor),
            None => None,
        };
        Ok(Some(JobRecord {
            spec: Arc::new(sealed.spec),
            status,
            deliveries: u32::try_from(number(deliveries)?).unwrap_or(u32::MAX),
            started_at: time(started)?,
            finished_at: time(finished)?,
            finished: ended.map(Arc::new),
            waiting_for,
        }))
    }
}

fn arguments<'a>(header: &'a str, blobs: &'a Blobs) -> Vec<&'a [u8]> {
    std::iter::once(header.as_bytes()).chain(blobs.0.iter().map(Vec::as_slice)).collect()
}

/// The scripts as they stand, but for the check that a negative control has switched off.
fn with_controls(mut text: String) -> String {
    const ENDS: &str = "    finish(c.id, job, c.s, c.r, c.n, delivery)\n";
    for (control, check, without) in [
        (Control::LeaseHolder, "lease.consumer ~= c.k or ", ""),
        (Control::StateVersion, "(ordered and version ~= c.v)", "false"),
        (Control::LaneOrder, "call('RPUSH', P .. 'q:' .. l, id)", "call('LPUSH', P .. 'q:' .. l, id)"),
        (
            Control::AtomicCommit,
            ENDS,
            "    if c.d > 1 then finish(c.id, job, c.s, c.r, c.n, delivery)\n\
             else again(c.id, job, 'executor_lost', '', 0, '', ''); goes_on = false end\n",
        ),
    ] {
        if is_off(control) {
            text = text.replacen(check, without, 1);
        }
    }
    text
}

/// Handlers and rules as the first lines of every script: so they are read once, not with each call.
fn lua_config(settings: &Settings) -> String {
    let rules = &settings.rules;
    let mut out = String::from("local H = {");
    for spec in &settings.handlers {
        let HandlerSpec { name, group, options } = spec;
        let _ = write!(
            out,
            r#"["{name}"]={{g={group},c={},o={},d={},p={}}},"#,
            options.concurrency,
            options.ordering != Ordering::None,
            options.max_deliveries.unwrap_or(rules.max_deliveries),
            options.on_dead == OnDead::Park,
        );
    }
    out.push_str("}\nlocal R = {");
    for (name, value) in [
        ("cap", rules.capacity as u64),
        ("bytes", QUEUED_BYTES as u64),
        ("vis", micros(rules.visibility)),
        ("rb", micros(rules.retry_base)),
        ("rm", micros(rules.retry_max)),
        ("ttl", micros(rules.result_ttl)),
        ("attl", micros(rules.awaited_ttl)),
        ("keepn", rules.retain.records as u64),
        ("keepb", rules.retain.bytes as u64),
        ("ctx", micros(rules.context_ttl)),
        ("ctxm", CONTEXT_BYTES as u64),
        ("lsm", rules.lane_state_max as u64),
        ("mp", rules.max_payload as u64),
        ("run", RUN_JOBS as u64),
        ("scan", SCAN as u64),
        ("aff", micros(LANE_AFFINITY)),
        ("entries", (INBOX_ENDS / ENDS_AN_ENTRY) as u64),
        ("ends", ENDS_AN_ENTRY as u64),
        ("inbox", INBOX_LIVES_MS),
        ("groups", settings.groups.len() as u64),
        ("small", INBOX_RESULT_BYTES as u64),
        ("con", micros(PROCESS_LIVES)),
        ("tag", crate::mac::MAC_BYTES as u64),
        ("quarantine", QUARANTINE_MS),
        ("envelope", (rules.max_payload + FRAME_OVERHEAD_BYTES) as u64),
        ("sweep", micros(SWEEP_EVERY)),
    ] {
        let _ = write!(out, "{name}={value},");
    }
    // By time alone, unless a bound is asked for.
    let _ = write!(out, "limited={},", rules.retain.records < UNLIMITED.records);
    out.push_str("lost='");
    for byte in lost_body() {
        let _ = write!(out, "\\{byte:03}");
    }
    out.push_str("'}\n");
    out
}
