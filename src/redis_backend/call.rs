//! One call of a turn: signed, said, said again as it was if its answer was lost, and its answer verified.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use serde_json::{Map, Value as Json, json};

use super::books::{Exec, Held, Named, Told};
use super::connection::{Failure, bytes, fields, list, number, text, texts};
use super::envelope::{Forged, hex};
use super::server::{Blobs, Server};
use super::turn::{Answer, Draft};
use crate::entropy::Entropy;
use crate::job::{
    Effects, Finished, InstanceId, JobId, JobSpec, JobStatus, Outcome, Payload, Trace, Version, context_map,
    parse_hex, state_map,
};
use crate::observe::{event, job_event};
use crate::ports::{
    BackendError, JobEnded, Lease, LeaseId, LeasedJob, NewJob, OfLease, StateAt, Then, Viewer,
};
use crate::problem::{Cause, Code, JobError};

/// See the module.
pub(super) struct Call {
    what: Json,
    blobs: Blobs,
    pub(super) commits: Vec<Told>,
    pub(super) released: Vec<Named>,
    pub(super) submissions: Vec<(Vec<NewJob>, Then)>,
    /// What was sealed, by its index in ARGV: the server speaks of it by that.
    outcomes: HashMap<usize, Arc<Finished>>,
}

impl Call {
    pub(super) fn new(draft: Draft, server: &Server, entropy: &mut Entropy) -> Call {
        let mut sealing = Sealing { server, entropy, blobs: Blobs::default(), outcomes: HashMap::new() };
        let commits: Vec<Json> = draft.commits.iter().map(|told| sealing.commit(told)).collect();
        let named = |named: &Named| server.named(named).into();
        let releases: Vec<Json> = draft.releases.iter().map(named).collect();
        let renewals: Vec<Json> = draft.renewals.iter().map(named).collect();
        let forged: Vec<Json> =
            draft.forged.iter().map(|(named, job, handler)| sealing.forged(named, *job, handler)).collect();
        let jobs = draft.submissions.iter().flat_map(|(jobs, _)| jobs);
        let jobs: Vec<Json> = jobs.map(|job| server.job_json(job, &mut sealing.blobs)).collect();
        let execs: Vec<Json> = draft.execs.iter().map(|exec| server.exec(exec)).collect();
        let idle: Map<String, Json> = draft.idle.iter().map(|group| (group.to_string(), 1.into())).collect();
        let call = hex(&sealing.entropy.bytes::<8>());
        let mut what = json!({
            "node": server.node, "call": call, "here": draft.here, "closed": draft.closed, "left": draft.left,
            "commits": commits, "releases": releases, "forged": forged, "renew": renewals,
            "jobs": jobs, "execs": execs, "idle": idle,
        });
        if let Some((callers, executors)) = draft.facts {
            // Names and values by turns, as they are kept.
            let (pid, callers) = (std::process::id().to_string(), callers.to_string());
            let executors = executors.trim_end();
            what["facts"] = json!(["host", server.host, "pid", pid, "waiters", callers, "ex", executors]);
        }
        for (name, is_so) in [("look", draft.looks), ("sweep", draft.sweeps)] {
            if is_so {
                what[name] = true.into();
            }
        }
        let Sealing { blobs, outcomes, .. } = sealing;
        let (commits, released) = (draft.commits, draft.releases);
        Call { what, blobs, commits, released, submissions: draft.submissions, outcomes }
    }

    /// Says it. The second value has one answer a job.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses: nothing is known of what it did.
    pub(super) fn say(&mut self, server: &Server) -> Result<(Answer, Vec<String>), BackendError> {
        let scripts = &server.scripts;
        let script = if self.submissions.is_empty() { &scripts.turn } else { &scripts.submit };
        let mut answer = server.call_once(script, &self.what, &self.blobs);
        if let Err(failure) = &answer {
            self.what["again"] = true.into();
            if matches!(failure, Failure::Broken(_)) {
                answer = server.call_once(script, &self.what, &self.blobs);
            }
        }
        self.read(server, answer?)
    }

    /// Its jobs are taken out of it: their callers do not wait for a server that is away, or has no memory for them.
    pub(super) fn take_submissions(&mut self) -> Vec<(Vec<NewJob>, Then)> {
        self.what["jobs"] = json!([]);
        std::mem::take(&mut self.submissions)
    }

    fn read(&self, server: &Server, answer: Value) -> Result<(Answer, Vec<String>), BackendError> {
        let [results, submitted, leases, over, revoked, ends, notices, idle, due, lost] = fields(answer)?;
        log_notices(notices)?;
        let mut answer = Answer {
            opened: text(lost)?.split_whitespace().filter_map(instance).collect(),
            ..Answer::default()
        };
        for result in texts(results)? {
            answer.was_repeated |= result == "again";
            answer.held.push(result != "fenced");
        }
        for lease in list(leases)? {
            server.lease(lease, &mut answer)?;
        }
        answer.over = texts(over)?.iter().filter_map(|lease| lease.parse().ok()).map(LeaseId).collect();
        for words in texts(revoked)? {
            if let [consumer, lease, job] = *words.split(' ').collect::<Vec<_>>()
                && let (Ok(consumer), Ok(lease), Some(job)) =
                    (consumer.parse(), lease.parse(), JobId::parse(job))
            {
                answer.revoked.push((consumer, OfLease { lease: LeaseId(lease), job }));
            }
        }
        for end in list(ends)? {
            answer.ends.extend(self.end(server, end)?);
        }
        answer.idle = texts(idle)?.iter().filter_map(|group| group.parse().ok()).collect();
        answer.due = text(due)?.parse().ok().map(Duration::from_micros);
        Ok((answer, texts(submitted)?))
    }

    fn end(&self, server: &Server, end: Value) -> Result<Option<(InstanceId, JobEnded)>, BackendError> {
        let [instance, job, status, index, sealed] = fields(end)?;
        let (instance, job, status) = (text(instance)?, text(job)?, text(status)?);
        let (Some(instance), Some(job), Some(status)) =
            (self::instance(&instance), JobId::parse(&job), JobStatus::parse(&status))
        else {
            return Ok(None);
        };
        let finished = match self.outcomes.get(&(number(index)? as usize)) {
            Some(finished) => Some(finished.clone()),
            None => server.opened_outcome(job, status, &bytes(sealed)?),
        };
        Ok(finished.map(|finished| (instance, JobEnded { job, finished })))
    }
}

/// What goes into a call that is being made.
struct Sealing<'a> {
    server: &'a Server,
    entropy: &'a mut Entropy,
    blobs: Blobs,
    outcomes: HashMap<usize, Arc<Finished>>,
}

impl Sealing<'_> {
    fn seal(&mut self, id: JobId, status: JobStatus, result: Result<Payload, JobError>) -> Json {
        let finished = Finished { status, result };
        let index = self.blobs.add(self.server.signer.seal_outcome(id, &finished));
        self.outcomes.insert(index, Arc::new(finished));
        index.into()
    }

    fn commit(&mut self, told: &Told) -> Json {
        let commit = &told.commit;
        let id = commit.job;
        let dead = |detail: &String, cause| {
            Err(JobError { code: Code::DeadLettered, detail: detail.clone(), cause: Some(cause) })
        };
        let (word, status, result) = match &commit.outcome {
            Outcome::Succeeded(payload, _) => ("succeeded", JobStatus::Succeeded, Ok(payload.clone())),
            Outcome::Failed(error) => ("failed", JobStatus::Failed, Err(error.clone())),
            Outcome::TimedOut => {
                let error = JobError::new(Code::HandlerTimedOut, "the handler's timeout passed");
                ("timed_out", JobStatus::TimedOut, Err(error))
            }
            Outcome::Retry(detail) => ("retry", JobStatus::Dead, dead(detail, Cause::RetriesExhausted)),
            Outcome::Crashed(detail) => ("crashed", JobStatus::Dead, dead(detail, Cause::HandlerCrashed)),
        };
        #[allow(clippy::cast_precision_loss, reason = "a jitter between 0 and 1")]
        let jitter = self.entropy.up_to(1 << 20) as f64 / f64::from(1 << 20);
        let mut out = json!({
            "k": self.server.consumer_name(told.consumer), "n": number_of(commit.lease), "id": id.to_string(),
            "d": commit.delivery, "v": commit.builds_on.0.to_string(), "s": word, "r": self.seal(id, status, result),
            "o": told.own,
            "j": jitter,
        });
        if let (Outcome::Succeeded(_, effects), Some(spec)) = (&commit.outcome, &told.spec)
            && *effects != Effects::default()
        {
            let refusals = [
                (Code::HandlerFailed, "a handler without ordering has no state"),
                (Code::StateTooLarge, "the lane's state would exceed kv.lane_state_max_bytes"),
                (Code::StateTooLarge, "the trace's context would exceed 1 MiB"),
                (Code::HandlerFailed, "a follow-up names an unknown handler"),
            ];
            let failed =
                refusals.map(|(code, text)| self.seal(id, JobStatus::Failed, Err(JobError::new(code, text))));
            let context = context_map(&spec.owner, &spec.trace);
            out["no"] = failed.to_vec().into();
            out["st"] = self.server.changes(&told.state, &effects.state, &mut self.blobs);
            out["cx"] = self.server.changes(&context, &effects.context, &mut self.blobs);
            out["ctx"] = context.into();
            let follow_ups = effects.follow_ups.iter().map(|job| {
                let new = NewJob::follow_up(spec, job.clone(), InstanceId(0), self.entropy);
                pushed(&new);
                self.server.job_json(&new, &mut self.blobs)
            });
            out["fu"] = follow_ups.collect::<Vec<Json>>().into();
        }
        out
    }

    /// A job that nobody signed gets a record that says so, under a signature of ours.
    fn forged(&mut self, named: &Named, job: JobId, handler: &Arc<str>) -> Json {
        let error =
            JobError::new(Code::DeadLettered, "nobody of this deployment signed this job: it was put aside");
        let spec = JobSpec {
            id: job,
            owner: Arc::from(""),
            handler: handler.clone(),
            ordering_key: None,
            trace: Trace { id: [0; 16], span: [0; 8] },
            submitted_at: self.server.now(),
            timeout: Duration::ZERO,
            one_line: false,
        };
        let envelope = self.server.signer.seal_job(&spec, &Payload::json(*b""));
        let mut out = self.server.named(named);
        out.insert("id".into(), job.to_string().into());
        out.insert("env".into(), self.blobs.add(envelope).into());
        out.insert("r".into(), self.seal(job, JobStatus::Dead, Err(error)));
        out.into()
    }
}

impl Server {
    fn consumer_name(&self, consumer: u64) -> String {
        format!("{}.{consumer}", self.node)
    }

    fn named(&self, named: &Named) -> Map<String, Json> {
        let mut out = Map::new();
        out.insert("k".into(), self.consumer_name(named.consumer).into());
        out.insert("n".into(), number_of(named.lease).into());
        out.insert("o".into(), named.own.as_str().into());
        if named.is_lost {
            out.insert("lost".into(), true.into());
        }
        out
    }

    fn exec(&self, exec: &Exec) -> Json {
        let is_limited = |handler: &str| self.spec(handler).is_some_and(|spec| spec.options.concurrency > 0);
        let used = exec.used.iter().filter(|(handler, _)| is_limited(handler));
        let used: Map<String, Json> =
            used.map(|(handler, used)| (handler.to_string(), (*used).into())).collect();
        json!({
            "k": self.consumer_name(exec.consumer), "i": exec.consumer, "g": exec.group, "room": exec.room, "used": used,
        })
    }

    /// A lease that was given, or the first job of it that nobody signed.
    fn lease(&self, value: Value, answer: &mut Answer) -> Result<(), BackendError> {
        let [lease, consumer, handler, kind, version, state, jobs, lane] = fields(value)?;
        let (id, consumer) = (LeaseId(number(lease)?), number(consumer)?);
        let handler: Arc<str> = Arc::from(text(handler)?);
        let (kind, lane, version) = (text(kind)?, text(lane)?, Version(number(version)?));
        let is_ordered = kind != "none";
        let own = if is_ordered { String::new() } else { lane.clone() };
        let mut leased = Vec::new();
        for job in list(jobs)? {
            let [job, env, delivery, fence, context, payload] = fields(job)?;
            let job = parse_hex(&bytes(job)?).map(JobId).ok_or(BackendError("redis: no id".into()))?;
            let opened = self.signer.open_job(job, &bytes(env).unwrap_or_default());
            let opened = opened.and_then(|sealed| sealed.with_payload(bytes(payload).unwrap_or_default()));
            let opened = opened.and_then(|job| is_of(&job.0, &lane, &handler, is_ordered).map(|()| job));
            let Ok((spec, payload)) = opened else {
                let named = Named { consumer, lease: id, own, is_lost: false };
                answer.forged.push((named, job, handler));
                return Ok(());
            };
            let context = self.entries(&context_map(&spec.owner, &spec.trace), context)?;
            let delivery = u32::try_from(number(delivery)?).unwrap_or(u32::MAX);
            leased.push(LeasedJob {
                spec: Arc::new(spec),
                payload,
                delivery,
                fence: number(fence)?,
                context,
            });
        }
        let key = leased.first().and_then(|job| job.spec.ordering_key.clone());
        let map = state_map(&handler, key.as_deref());
        let state = match kind.as_str() {
            "none" => StateAt::Stateless,
            "known" => StateAt::Known(version),
            _ => StateAt::Whole(version, self.entries(&map, state)?),
        };
        let jobs: Vec<Arc<JobSpec>> = leased.iter().map(|job| job.spec.clone()).collect();
        if !jobs.is_empty() {
            let held = Held { handler: handler.clone(), state: map, own, jobs, at: 0 };
            answer.leases.push((consumer, Lease { id, handler, state, jobs: leased }, held));
        }
        Ok(())
    }

    /// How a job ended, as somebody of the deployment signed it.
    pub(super) fn opened_outcome(
        &self,
        job: JobId,
        status: JobStatus,
        sealed: &[u8],
    ) -> Option<Arc<Finished>> {
        let finished = match sealed.is_empty() {
            // Too large to be told.
            true => self.find(&Viewer::anonymous(), job).ok().flatten().and_then(|record| record.finished),
            false => self.signer.open_outcome(job, status, sealed).ok().map(Arc::new),
        };
        if finished.is_none() {
            log::warn!(
                "job {job}: an outcome that is gone, or that nobody of this deployment signed, is dropped"
            );
        }
        finished
    }
}

fn instance(text: &str) -> Option<InstanceId> {
    u64::from_str_radix(text, 16).ok().map(InstanceId)
}

/// As the scripts write it: the order of numbers is that of their texts.
fn number_of(LeaseId(lease): LeaseId) -> String {
    format!("{lease:016}")
}

/// A signed job in another handler's lane, or in that of another key, is as good as forged.
fn is_of(spec: &JobSpec, lane: &str, handler: &str, is_ordered: bool) -> Result<(), Forged> {
    let own = match is_ordered {
        true => state_map(handler, spec.ordering_key.as_deref()) == format!("state:{lane}"),
        false => spec.id.to_string() == lane,
    };
    if own && *spec.handler == *handler { Ok(()) } else { Err(Forged) }
}

/// A job has entered its lane.
pub(super) fn pushed(job: &NewJob) {
    job_event(log::Level::Debug, "queue.pushed", &job.trace, job.id).emit();
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
