//! An executor's side: one script a step. Leases are live as long as somebody renews them.

use std::collections::HashMap;
use std::sync::Arc;

use redis::Value;
use serde_json::{Value as Json, json};

use super::broker::{Blobs, RedisBroker, hex};
use super::connection::{bytes, fields, list, number, text};
use super::replies::Ear;
use crate::bell::Bell;
use crate::clock::Timestamp;
use crate::entropy::Entropy;
use crate::job::{
    Change, Effects, Entries, Finished, FollowUp, InstanceId, JobError, JobId, JobSpec, JobStatus, Trace,
    Verdict, Version, parse_hex,
};
use crate::observe::event;
use crate::ports::{
    BackendError, Commit, CommitAnswer, CommitResult, Consumer, Lease, LeaseRef, LeasedJob, NewJob,
    ReleaseReason, Revoked, StateAt, Step,
};
use crate::problem::{Cause, Code};

/// See the module. Dropping it ends its leases, if the server hears of it.
pub struct RedisConsumer {
    broker: RedisBroker,
    id: String,
    group: usize,
    workers: usize,
    entropy: Entropy,
    /// What commits of a live lease must name.
    held: HashMap<u64, Held>,
    _ear: Ear,
}

struct Held {
    state: String,
    jobs: Vec<Arc<JobSpec>>,
}

impl RedisBroker {
    /// An executor of this group with so many workers; `bell` rings when a step would bring something.
    ///
    /// # Errors
    /// The backend cannot be reached.
    pub fn consumer(&self, group: usize, workers: usize, bell: Bell) -> Result<RedisConsumer, BackendError> {
        let mut entropy = Entropy::system();
        let id = hex(&entropy.bytes::<8>());
        let ear = Ear::listen(self, format!("{}bell:{group}", self.0.prefix), bell)?;
        self.lease(json!({ "do": "connect", "con": id, "g": group }))?;
        Ok(RedisConsumer {
            broker: self.clone(),
            id,
            group,
            workers,
            entropy,
            held: HashMap::new(),
            _ear: ear,
        })
    }

    /// Does what time alone does; the time until the next of it, if it is known.
    ///
    /// # Errors
    /// The backend cannot be reached.
    pub fn sweep(&self) -> Result<Option<u64>, BackendError> {
        loop {
            match self.lease(json!({ "do": "sweep" }))? {
                Some(0) => {}
                due => return Ok(due),
            }
        }
    }

    fn lease(&self, what: Json) -> Result<Option<u64>, BackendError> {
        let answer = self.0.call(&self.0.scripts.lease, what, Blobs::default())?;
        let [notices, due] = fields(answer)?;
        log_notices(notices)?;
        Ok(text(due)?.parse().ok())
    }
}

fn log_notices(notices: Value) -> Result<(), BackendError> {
    for notice in list(notices)? {
        let [name, job, cause] = fields(notice)?;
        let (name, job, cause) = (text(name)?, text(job)?, text(cause)?);
        let level = if name == "queue.dead" { log::Level::Warn } else { log::Level::Info };
        event(level, &name).field("job_id", &job).field("cause", &cause).emit();
    }
    Ok(())
}

impl RedisConsumer {
    fn commit_json(&mut self, commit: &Commit, blobs: &mut Blobs) -> Json {
        let (id, signer) = (commit.job, &self.broker.0.signer);
        let mut seal = |status, result| blobs.add(signer.seal_outcome(id, &Finished { status, result }));
        let dead = |detail: &String, cause| JobError {
            code: Code::DeadLettered,
            detail: detail.clone(),
            cause: Some(cause),
        };
        let failed = |code, detail: &str| (JobStatus::Failed, Err(JobError::new(code, detail)));
        let (word, outcome) = match &commit.verdict {
            Verdict::Succeeded(payload, _) => ("succeeded", seal(JobStatus::Succeeded, Ok(payload.clone()))),
            Verdict::Failed(error) => ("failed", seal(JobStatus::Failed, Err(error.clone()))),
            Verdict::TimedOut => {
                let error = JobError::new(Code::HandlerTimedOut, "the handler's timeout passed");
                ("timed_out", seal(JobStatus::TimedOut, Err(error)))
            }
            Verdict::Retry(detail) => {
                ("retry", seal(JobStatus::Dead, Err(dead(detail, Cause::RetriesExhausted))))
            }
            Verdict::Crashed(detail) => {
                ("crashed", seal(JobStatus::Dead, Err(dead(detail, Cause::HandlerCrashed))))
            }
        };
        #[allow(clippy::cast_precision_loss, reason = "a jitter between 0 and 1")]
        let jitter = self.entropy.up_to(1 << 20) as f64 / f64::from(1 << 20);
        let mut out = json!({
            "n": format!("{:016}", commit.lease.number), "t": hex(&commit.lease.token), "id": id.to_string(), "d": commit.delivery,
            "v": commit.builds_on.0.to_string(), "s": word, "r": outcome, "j": jitter,
        });
        if let Verdict::Succeeded(_, effects) = &commit.verdict
            && *effects != Effects::default()
            && let Some(held) = self.held.get(&commit.lease.number)
            && let Some(spec) = held.jobs.iter().find(|spec| spec.id == id)
        {
            let refusals = [
                failed(Code::HandlerFailed, "a handler without ordering has no state"),
                failed(Code::StateTooLarge, "the lane's state would exceed kv.lane_state_max_bytes"),
                failed(Code::StateTooLarge, "the trace's context would exceed 1 MiB"),
                failed(Code::HandlerFailed, "a follow-up names an unknown handler"),
            ];
            out["no"] = refusals.map(|(status, result)| seal(status, result)).to_vec().into();
            let context = context_map(spec);
            out["st"] = self.broker.0.changes(&held.state, &effects.state, blobs);
            out["cx"] = self.broker.0.changes(&context, &effects.context, blobs);
            out["ctx"] = context.into();
            let spec = spec.clone();
            let follow_ups: Vec<Json> = effects
                .follow_ups
                .iter()
                .map(|job| {
                    let new = follow_up(&spec, job, &mut self.entropy);
                    self.broker.0.job_json(&new, blobs)
                })
                .collect();
            out["fu"] = follow_ups.into();
        }
        out
    }

    fn lease_of(&mut self, value: Value) -> Result<Option<Lease>, BackendError> {
        let [number_, token, handler, kind, version, state, jobs] = fields(value)?;
        let number = number(number_)?;
        let token = parse_hex(&bytes(token)?).ok_or(BackendError("redis: no token".into()))?;
        let handler: Arc<str> = Arc::from(text(handler)?);
        let version = Version(super::connection::number(version)?);
        let lease = LeaseRef { number, token };
        let mut leased = Vec::new();
        for job in list(jobs)? {
            let [id, env, delivery, fence, submitted, context] = fields(job)?;
            let id = parse_hex(&bytes(id)?).map(JobId).ok_or(BackendError("redis: no id".into()))?;
            let submitted = Timestamp(super::connection::number(submitted)?);
            let Ok((spec, payload)) = self.broker.0.signer.open_job(id, &bytes(env)?, submitted) else {
                event(log::Level::Error, "queue.forged").field("job_id", &id.to_string()).emit();
                let (number, token) = (format!("{number:016}"), hex(&token));
                let what = json!({ "do": "quarantine", "con": self.id, "n": number, "t": token, "id": id.to_string() });
                return self.broker.lease(what).map(|_| None);
            };
            let spec = Arc::new(spec);
            let context = self.broker.0.entries(&context_map(&spec), context)?;
            let delivery = u32::try_from(super::connection::number(delivery)?).unwrap_or(u32::MAX);
            let fence = super::connection::number(fence)?;
            leased.push(LeasedJob { spec, payload, delivery, fence, context });
        }
        let key = leased.first().and_then(|job| job.spec.ordering_key.clone());
        let map = state_map(&handler, key.as_deref());
        let state = match text(kind)?.as_str() {
            "none" => StateAt::Stateless,
            "known" => StateAt::Known(version),
            _ => StateAt::Whole(version, self.broker.0.entries(&map, state)?),
        };
        let jobs: Vec<Arc<JobSpec>> = leased.iter().map(|job| job.spec.clone()).collect();
        self.held.insert(number, Held { state: map, jobs });
        Ok(Some(Lease { lease, handler, state, jobs: leased }))
    }
}

fn state_map(handler: &str, key: Option<&str>) -> String {
    use sha2::Digest;
    format!("state:{handler}:{}", hex(&sha2::Sha256::digest(key.unwrap_or_default())))
}

fn context_map(spec: &JobSpec) -> String {
    let owner = if spec.owner.is_empty() { String::new() } else { format!(":{}", spec.owner) };
    format!("ctx:{}{owner}", spec.trace.id_text())
}

fn follow_up(parent: &JobSpec, job: &FollowUp, entropy: &mut Entropy) -> NewJob {
    NewJob {
        id: JobId(entropy.bytes()),
        owner: parent.owner.clone(),
        handler: job.handler.clone(),
        ordering_key: job.ordering_key.clone(),
        payload: job.payload.clone(),
        trace: Trace { id: parent.trace.id, span: entropy.bytes() },
        delay: job.delay,
        timeout: None,
        idempotency: None,
        awaited: false,
        one_line: false,
        instance: InstanceId(0),
    }
}

impl super::broker::Shared {
    /// Changes of a map as the scripts read them, the values signed.
    pub(super) fn changes(&self, map: &str, changes: &[Change], blobs: &mut Blobs) -> Json {
        let mut change = |change: &Change| {
            let key = blobs.add(change.key.as_bytes().to_vec());
            let value = change
                .value
                .as_ref()
                .map_or(0, |value| blobs.add(self.signer.seal_entry(map, &change.key, value)));
            json!([key, value])
        };
        changes.iter().map(&mut change).collect::<Vec<Json>>().into()
    }

    /// A map's entries. One that is not signed is left out: nobody of this deployment wrote it.
    pub(super) fn entries(&self, map: &str, flat: Value) -> Result<Entries, BackendError> {
        let mut entries = Entries::new();
        let mut flat = list(flat)?.into_iter();
        while let (Some(key), Some(value)) = (flat.next(), flat.next()) {
            let Ok(key) = text(key) else { continue };
            if let Ok(value) = self.signer.open_entry(map, &key, &bytes(value)?) {
                entries.insert(Arc::from(key), value);
            }
        }
        Ok(entries)
    }
}

impl Consumer for RedisConsumer {
    fn step(&mut self, commits: Vec<Commit>, room: usize) -> Result<Step, BackendError> {
        let mut blobs = Blobs::default();
        let named: Vec<Json> = commits.iter().map(|commit| self.commit_json(commit, &mut blobs)).collect();
        let tokens: Vec<String> = (0..room).map(|_| hex(&self.entropy.bytes::<16>())).collect();
        let what =
            json!({ "con": self.id, "g": self.group, "room": room, "tokens": tokens, "commits": named });
        let answer = self.broker.0.call(&self.broker.0.scripts.step, what, blobs)?;
        let [results, leases, revoked, notices] = fields(answer)?;
        let mut step = Step::default();
        for (commit, result) in commits.iter().zip(list(results)?) {
            let result = match text(result)?.as_str() {
                "committed" => CommitResult::Committed,
                "again" => CommitResult::AlreadyCommitted,
                _ => CommitResult::Fenced,
            };
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
        log_notices(notices)?;
        Ok(step)
    }

    fn release(&mut self, lease: LeaseRef, _reason: ReleaseReason) -> Result<(), BackendError> {
        let (number, token) = (format!("{:016}", lease.number), hex(&lease.token));
        self.broker.lease(json!({ "do": "release", "con": self.id, "n": number, "t": token })).map(drop)
    }

    fn extend(&mut self) -> Result<(), BackendError> {
        self.broker.lease(json!({ "do": "extend", "con": self.id })).map(drop)
    }
}

impl Drop for RedisConsumer {
    fn drop(&mut self) {
        // If nobody hears it, its leases run out.
        let _ = self.broker.lease(json!({ "do": "leave", "con": self.id, "workers": self.workers }));
    }
}
