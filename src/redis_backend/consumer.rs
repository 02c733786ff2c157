//! An executor's side: one script a step. Leases are live as long as somebody renews them.
//!
//! A server that is away is waited for: what was said and not answered is said again, as it was, until the leases have
//! run out. So a step fails only when every lease of this consumer has ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;
use serde_json::{Map, Value as Json, json};

use super::broker::{Blobs, RedisBroker, hex};
use super::connection::{PAUSES, bytes, fields, list, number, text};
use super::envelope::Forged;
use super::producer::pushed;
use super::replies::Ear;
use crate::bell::Bell;
use crate::clock::millis;
use crate::entropy::Entropy;
use crate::job::{
    Effects, Finished, InstanceId, JobId, JobSpec, JobStatus, Verdict, Version, context_map, parse_hex,
    state_map,
};
use crate::observe::{event, job_event};
use crate::ports::{
    BackendError, Commit, CommitAnswer, CommitResult, Consumer, Lease, LeaseRef, LeasedJob, NewJob,
    ReleaseReason, Revoked, StateAt, Step,
};
use crate::problem::{Cause, Code, JobError};

/// See the module. Dropping it ends its leases, if the server hears of it.
pub struct RedisConsumer {
    broker: RedisBroker,
    id: String,
    group: usize,
    workers: usize,
    entropy: Entropy,
    /// What commits of a live lease must name.
    held: HashMap<u64, Held>,
    unsaid: Vec<Commit>,
    /// With the job of an unordered lease, which its books are found by.
    releases: Vec<(LeaseRef, String)>,
    in_doubt: Option<Said>,
    /// What the next step brings besides its own.
    heard: Step,
    away: Option<Away>,
    bell: Bell,
    /// What its process says of itself.
    facts: Vec<String>,
    _ear: Ear,
}

struct Held {
    state: String,
    /// The job of an unordered lease, or nothing.
    own: String,
    jobs: Vec<Arc<JobSpec>>,
}

/// A step as it goes to the server.
struct Said {
    what: Json,
    blobs: Blobs,
    commits: Vec<Commit>,
}

/// The server could not be reached.
struct Away {
    since: Instant,
    again_at: Instant,
    pause: Duration,
}

impl RedisBroker {
    /// An executor of this group with so many workers; `bell` rings when a step would bring something.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn consumer(&self, group: usize, workers: usize, bell: Bell) -> Result<RedisConsumer, BackendError> {
        let mut entropy = Entropy::system();
        let ear = Ear::listen(self, super::replies::Stream::Bell(group), bell.clone())?;
        Ok(RedisConsumer {
            broker: self.clone(),
            id: hex(&entropy.bytes::<8>()),
            group,
            workers,
            entropy,
            held: HashMap::new(),
            unsaid: Vec::new(),
            releases: Vec::new(),
            in_doubt: None,
            heard: Step::default(),
            away: None,
            bell,
            facts: facts(),
            _ear: ear,
        })
    }

    /// Does what time alone does; the time until the next of it, if it is known.
    ///
    /// # Errors
    /// The backend cannot be reached.
    pub fn sweep(&self) -> Result<Option<u64>, BackendError> {
        loop {
            match self.lease(&json!({ "do": "sweep" }))?.0 {
                Some(0) => {}
                due => return Ok(due),
            }
        }
    }

    /// A consumer's process is known to have ended: its leases end at once.
    ///
    /// # Errors
    /// The backend cannot be reached: they run out.
    pub fn is_lost(&self, consumer: &str, workers: usize) -> Result<(), BackendError> {
        self.lease(&json!({ "do": "leave", "con": consumer, "workers": workers })).map(drop)
    }

    /// The time until something is due, and the leases that are over.
    pub(super) fn lease(&self, what: &Json) -> Result<(Option<u64>, Vec<u64>), BackendError> {
        let answer = self.0.call(&self.0.scripts.lease, what, &Blobs::default())?;
        let [notices, due, over] = fields(answer)?;
        log_notices(notices)?;
        let over = list(over)?.into_iter().map(number).collect::<Result<_, _>>()?;
        Ok((text(due)?.parse().ok(), over))
    }
}

/// What a process says of itself, as names and values.
pub(super) fn facts() -> Vec<String> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    ["host".into(), host.trim().into(), "pid".into(), std::process::id().to_string()].into()
}

fn log_notices(notices: Value) -> Result<(), BackendError> {
    for notice in list(notices)? {
        let [name, job, cause, trace] = fields(notice)?;
        let (name, job, cause, trace) = (text(name)?, text(job)?, text(cause)?, text(trace)?);
        let level = match name.as_str() {
            "queue.forged" => log::Level::Error,
            "queue.dead" => log::Level::Warn,
            _ => log::Level::Info,
        };
        event(level, &name).field("trace_id", &trace).field("job_id", &job).field("cause", &cause).emit();
    }
    Ok(())
}

fn log_job(name: &str, spec: &JobSpec) {
    job_event(log::Level::Debug, name, &spec.trace, spec.id).emit();
}

impl RedisConsumer {
    /// Its name in the deployment.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What there is to say now.
    fn compose(&mut self, room: usize) -> Said {
        let (mut blobs, commits) = (Blobs::default(), std::mem::take(&mut self.unsaid));
        let named: Vec<Json> = commits.iter().map(|commit| self.commit_json(commit, &mut blobs)).collect();
        let released = std::mem::take(&mut self.releases);
        let release = |(lease, own): &(LeaseRef, String)| {
            let mut out = lease_json(*lease);
            out.insert("o".to_owned(), own.as_str().into());
            Json::from(out)
        };
        let releases: Vec<Json> = released.iter().map(release).collect();
        let what = json!({
            "con": self.id, "g": self.group, "facts": self.facts, "call": hex(&self.entropy.bytes::<8>()), "room": room,
            "token": hex(&self.entropy.bytes::<14>()), "rc": self.broker.0.link.take_broken(), "commits": named,
            "releases": releases,
        });
        Said { what, blobs, commits }
    }

    /// Says it, and takes in what comes of it.
    fn say(&mut self, said: &Said, step: &mut Step) -> Result<(), BackendError> {
        let answer = self.broker.0.call(&self.broker.0.scripts.step, &said.what, &said.blobs)?;
        let [results, leases, revoked, notices] = fields(answer)?;
        for (commit, result) in said.commits.iter().zip(list(results)?) {
            let result = match text(result)?.as_str() {
                "committed" => CommitResult::Committed,
                "again" => CommitResult::AlreadyCommitted,
                _ => CommitResult::Fenced,
            };
            self.committed(commit, result);
            step.results.push(CommitAnswer { lease: commit.lease.number, job: commit.job, result });
        }
        for lease in list(leases)? {
            step.leases.extend(self.lease_of(lease)?);
        }
        for word in list(revoked)? {
            let word = text(word)?;
            if let Some((lease, job)) = word.split_once(' ')
                && let (Ok(lease), Some(job)) = (lease.parse(), JobId::parse(job))
            {
                step.revoked.push(Revoked { lease, job });
            }
        }
        log_notices(notices)
    }

    /// The books after a commit, and what others should know of it.
    fn committed(&mut self, commit: &Commit, result: CommitResult) {
        let Some(held) = self.held.get(&commit.lease.number) else { return };
        let at = held.jobs.iter().position(|spec| spec.id == commit.job).unwrap_or(held.jobs.len());
        let goes_on = matches!(commit.verdict, Verdict::Succeeded(..) | Verdict::Failed(_));
        if result == CommitResult::Committed
            && !matches!(commit.verdict, Verdict::Retry(_) | Verdict::Crashed(_))
            && let Some(spec) = held.jobs.get(at)
        {
            log_job("reply.published", spec);
        }
        match held.jobs.get(at + 1).filter(|_| goes_on && result != CommitResult::Fenced) {
            Some(next) => log_job("queue.claimed", next),
            None => drop(self.held.remove(&commit.lease.number)),
        }
    }

    /// The server is away. A step fails once nothing of it can count any more.
    fn is_away(&mut self, error: BackendError) -> Result<(), BackendError> {
        let now = Instant::now();
        let away = self.away.get_or_insert_with(|| {
            event(log::Level::Warn, "backend.away").field("cause", &error.0).emit();
            Away { since: now, again_at: now, pause: PAUSES[0] }
        });
        away.again_at = now + away.pause;
        away.pause = (away.pause * 2).min(PAUSES[1]);
        if now.duration_since(away.since) <= self.broker.0.visibility {
            return Ok(());
        }
        away.since = now;
        self.unsaid.clear();
        self.releases.clear();
        self.in_doubt = None;
        self.held.clear();
        Err(error)
    }

    /// Says what there is to say, and claims up to so many leases.
    fn talk(&mut self, room: usize, step: &mut Step) -> Result<(), BackendError> {
        while !self.is_pausing() {
            // What was said and not answered comes first, as it was: it may have been heard.
            let in_doubt = self.in_doubt.take();
            let was_in_doubt = in_doubt.is_some();
            let room = room.saturating_sub(step.leases.len());
            let said = in_doubt.unwrap_or_else(|| self.compose(room));
            if let Err(error) = self.say(&said, step) {
                self.in_doubt = Some(said);
                return self.is_away(error);
            }
            self.is_back();
            if !was_in_doubt {
                break;
            }
        }
        Ok(())
    }

    fn is_pausing(&self) -> bool {
        self.away.as_ref().is_some_and(|away| Instant::now() < away.again_at)
    }

    fn is_back(&mut self) {
        if let Some(away) = self.away.take() {
            event(log::Level::Info, "backend.back").number("after_ms", millis(away.since.elapsed())).emit();
        }
    }

    fn commit_json(&mut self, commit: &Commit, blobs: &mut Blobs) -> Json {
        let (id, signer) = (commit.job, &self.broker.0.signer);
        let mut seal = |status, result| blobs.add(signer.seal_outcome(id, &Finished { status, result }));
        let dead = |detail: &String, cause| {
            Err(JobError { code: Code::DeadLettered, detail: detail.clone(), cause: Some(cause) })
        };
        let (word, status, result) = match &commit.verdict {
            Verdict::Succeeded(payload, _) => ("succeeded", JobStatus::Succeeded, Ok(payload.clone())),
            Verdict::Failed(error) => ("failed", JobStatus::Failed, Err(error.clone())),
            Verdict::TimedOut => {
                let error = JobError::new(Code::HandlerTimedOut, "the handler's timeout passed");
                ("timed_out", JobStatus::TimedOut, Err(error))
            }
            Verdict::Retry(detail) => ("retry", JobStatus::Dead, dead(detail, Cause::RetriesExhausted)),
            Verdict::Crashed(detail) => ("crashed", JobStatus::Dead, dead(detail, Cause::HandlerCrashed)),
        };
        #[allow(clippy::cast_precision_loss, reason = "a jitter between 0 and 1")]
        let jitter = self.entropy.up_to(1 << 20) as f64 / f64::from(1 << 20);
        let mut out = lease_json(commit.lease);
        let mut put = |name: &str, value: Json| drop(out.insert(name.to_owned(), value));
        put("id", id.to_string().into());
        put("d", commit.delivery.into());
        put("v", commit.builds_on.0.to_string().into());
        put("s", word.into());
        put("r", seal(status, result).into());
        put("j", jitter.into());
        if let Verdict::Succeeded(_, effects) = &commit.verdict
            && *effects != Effects::default()
            && let Some(held) = self.held.get(&commit.lease.number)
            && let Some(spec) = held.jobs.iter().find(|spec| spec.id == id)
        {
            let refusals = [
                (Code::HandlerFailed, "a handler without ordering has no state"),
                (Code::StateTooLarge, "the lane's state would exceed kv.lane_state_max_bytes"),
                (Code::StateTooLarge, "the trace's context would exceed 1 MiB"),
                (Code::HandlerFailed, "a follow-up names an unknown handler"),
            ];
            let failed = refusals.map(|(code, text)| seal(JobStatus::Failed, Err(JobError::new(code, text))));
            put("no", failed.to_vec().into());
            let context = context_map(&spec.owner, &spec.trace);
            put("st", self.broker.0.changes(&held.state, &effects.state, blobs));
            put("cx", self.broker.0.changes(&context, &effects.context, blobs));
            put("ctx", context.into());
            let spec = spec.clone();
            let follow_ups: Vec<Json> = effects
                .follow_ups
                .iter()
                .map(|job| {
                    let new = NewJob::follow_up(&spec, job.clone(), InstanceId(0), &mut self.entropy);
                    pushed(&new);
                    self.broker.0.job_json(&new, blobs)
                })
                .collect();
            put("fu", follow_ups.into());
        }
        out.into()
    }

    fn lease_of(&mut self, value: Value) -> Result<Option<Lease>, BackendError> {
        let [lease, token, handler, kind, version, state, jobs, lane] = fields(value)?;
        let token = parse_hex(&bytes(token)?).ok_or(BackendError("redis: no token".into()))?;
        let handler: Arc<str> = Arc::from(text(handler)?);
        let version = Version(number(version)?);
        let lease = LeaseRef { number: number(lease)?, token };
        if self.held.contains_key(&lease.number) {
            // It was taken in before the rest of an earlier answer failed.
            return Ok(None);
        }
        let mut leased = Vec::new();
        let (kind, lane) = (text(kind)?, text(lane)?);
        let is_ordered = kind != "none";
        // The job of an unordered lease names it, too.
        let own = |id: JobId| if is_ordered { String::new() } else { id.to_string() };
        for job in list(jobs)? {
            let [id, env, delivery, fence, context, payload] = fields(job)?;
            let id = parse_hex(&bytes(id)?).map(JobId).ok_or(BackendError("redis: no id".into()))?;
            let opened = self.broker.0.signer.open_job(id, &bytes(env).unwrap_or_default());
            let opened = opened.and_then(|sealed| sealed.with_payload(bytes(payload).unwrap_or_default()));
            let Ok((spec, payload)) =
                opened.and_then(|job| is_of(&job.0, &lane, &handler, is_ordered).map(|()| job))
            else {
                let mut what = lease_json(lease);
                what.extend([
                    ("do".to_owned(), "quarantine".into()),
                    ("con".to_owned(), self.id.as_str().into()),
                    ("id".to_owned(), id.to_string().into()),
                    ("o".to_owned(), own(id).into()),
                ]);
                return self.broker.lease(&what.into()).map(|_| None);
            };
            let spec = Arc::new(spec);
            let context = self.broker.0.entries(&context_map(&spec.owner, &spec.trace), context)?;
            let delivery = u32::try_from(number(delivery)?).unwrap_or(u32::MAX);
            let fence = number(fence)?;
            leased.push(LeasedJob { spec, payload, delivery, fence, context });
        }
        let key = leased.first().and_then(|job| job.spec.ordering_key.clone());
        let map = state_map(&handler, key.as_deref());
        let state = match kind.as_str() {
            "none" => StateAt::Stateless,
            "known" => StateAt::Known(version),
            _ => StateAt::Whole(version, self.broker.0.entries(&map, state)?),
        };
        let jobs: Vec<Arc<JobSpec>> = leased.iter().map(|job| job.spec.clone()).collect();
        let Some(first) = jobs.first() else { return Ok(None) };
        log_job("queue.claimed", first);
        self.held.insert(lease.number, Held { state: map, own: own(first.id), jobs });
        Ok(Some(Lease { lease, handler, state, jobs: leased }))
    }
}

/// A lease as the scripts name it.
fn lease_json(lease: LeaseRef) -> Map<String, Json> {
    let named = [("n", format!("{:016}", lease.number)), ("t", hex(&lease.token))];
    named.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
}

/// A signed job in another handler's lane, or in that of another key, is as good as forged.
fn is_of(spec: &JobSpec, lane: &str, handler: &str, is_ordered: bool) -> Result<(), Forged> {
    let own = match is_ordered {
        true => state_map(handler, spec.ordering_key.as_deref()) == format!("state:{lane}"),
        false => spec.id.to_string() == lane,
    };
    if own && *spec.handler == *handler { Ok(()) } else { Err(Forged) }
}

impl Consumer for RedisConsumer {
    fn step(&mut self, commits: Vec<Commit>, room: usize) -> Result<Step, BackendError> {
        self.unsaid.extend(commits);
        let mut step = std::mem::take(&mut self.heard);
        self.talk(room, &mut step)?;
        Ok(step)
    }

    fn release(&mut self, lease: LeaseRef, _reason: ReleaseReason) -> Result<(), BackendError> {
        let own = self.held.remove(&lease.number).map(|held| held.own).unwrap_or_default();
        self.releases.push((lease, own));
        let mut heard = std::mem::take(&mut self.heard);
        let said = self.talk(0, &mut heard);
        if !(heard.results.is_empty() && heard.leases.is_empty() && heard.revoked.is_empty()) {
            self.bell.ring();
        }
        self.heard = heard;
        said
    }

    fn extend(&mut self) -> Result<(), BackendError> {
        if self.held.is_empty() || self.is_pausing() {
            return Ok(());
        }
        let named = |(number, held): (&u64, &Held)| (format!("{number:016}"), held.own.clone());
        let numbers: Vec<(String, String)> = self.held.iter().map(named).collect();
        let what = json!({ "do": "extend", "con": self.id, "ns": numbers });
        let over = match self.broker.lease(&what) {
            Ok((_, over)) => over,
            Err(error) => return self.is_away(error),
        };
        // One in doubt may be over because all of it is committed.
        for number in over.into_iter().filter(|_| self.in_doubt.is_none()) {
            let Some(held) = self.held.remove(&number) else { continue };
            event(log::Level::Warn, "lease.lost").field("lease", &number.to_string()).emit();
            self.heard.revoked.extend(held.jobs.iter().map(|spec| Revoked { lease: number, job: spec.id }));
            self.bell.ring();
        }
        Ok(())
    }

    fn owed(&self) -> Vec<JobId> {
        let in_doubt = self.in_doubt.iter().flat_map(|said| &said.commits);
        self.unsaid.iter().chain(in_doubt).map(|commit| commit.job).collect()
    }
}

impl Drop for RedisConsumer {
    fn drop(&mut self) {
        // If nobody hears it, its leases run out. What is in doubt was never started.
        if !self.is_pausing() {
            let workers = if self.held.is_empty() { 0 } else { self.workers };
            let _ = self.broker.is_lost(&self.id, workers);
        }
    }
}
