//! One call of a turn: signed, said, said again as it was if its answer was lost, and its answer verified.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use log::Level;
use serde_json::{Map, Value as Json, json};

use super::books::{Exec, Held, Named, Told};
use super::envelope;
use super::server::{Arguments, Sealed, Server, or_false};
use super::sums::Sums;
use super::turn::{Answer, Draft};
use crate::clock::micros;
use crate::codec::hex;
use crate::entropy::Entropy;
use crate::job::{
    Effects, Entries, Finished, InstanceId, JobId, JobSpec, JobStatus, Outcome, Payload, Progress, Version,
    context_map, state_map,
};
use crate::limits::DELAY_MAX;
use crate::observe::{Delivery, event, job_event};
use crate::ports::{
    BackendError, Forged, JobEnded, Lease, LeaseId, LeasedJob, NewJob, OfLease, Reached, StateAt, Then,
    Viewer,
};
use crate::problem::{Cause, Code, JobError};

/// See the module.
pub struct Call {
    arguments: Arguments,
    pub commits: Vec<Told>,
    pub submissions: Vec<(Vec<NewJob>, Then)>,
    /// What was sealed, by its index in ARGV: the server speaks of it by that.
    outcomes: HashMap<usize, Arc<Finished>>,
}

/// An answer, as scripts/turn.lua describes it.
type Said = (
    Vec<String>,
    Vec<String>,
    Vec<LeaseRow>,
    Vec<u64>,
    Vec<(u64, u64, String)>,
    Vec<(String, String, String, usize, Vec<u8>)>,
    Vec<Notice>,
    Vec<usize>,
    Option<u64>,
    Vec<String>,
    Vec<String>,
);
/// Event, job, cause, trace, handler; delivery, us that it took, index of the outcome.
type Notice = (String, String, String, String, String, u64, u64, usize);
type LeaseRow = (u64, u64, String, String, u64, Sealed, Vec<JobRow>, String, u8, Vec<u8>);
type JobRow = (String, Vec<u8>, u64, u64, Sealed, Vec<u8>);

impl Call {
    pub fn new(draft: Draft, server: &Server, entropy: &mut Entropy, sums: &mut Sums) -> Call {
        let (arguments, outcomes) = Default::default();
        let mut sealing = Sealing { server, entropy, sums, arguments, outcomes };
        let commits: Vec<Json> = draft.commits.iter().map(|told| sealing.commit(told)).collect();
        let progress: Vec<Json> =
            draft.progress.iter().map(|(job, said)| sealing.progress(*job, said)).collect();
        let forged = draft.forged.iter().map(|(named, job, handler)| sealing.forged(named, *job, handler));
        let forged: Vec<Json> = forged.collect();
        let bury: Vec<Json> = draft.bury.iter().map(|job| sealing.buried(*job)).collect();
        let jobs = draft.submissions.iter().flat_map(|(jobs, _)| jobs);
        let jobs: Vec<Json> = jobs.map(|job| server.job_json(job, &mut sealing.arguments)).collect();
        let call = hex(&sealing.entropy.bytes::<8>());
        let Sealing { mut arguments, outcomes, .. } = sealing;
        arguments.what = json!({
            "node": server.node, "call": call, "here": draft.here, "closed": draft.closed, "left": draft.left,
            "progress": progress, "commits": commits, "releases": all(&draft.releases, named), "gone": draft.gone,
            "forged": forged, "bury": bury,
            "renew": all(&draft.renewals, named), "jobs": jobs, "idle": draft.idle,
            "execs": all(&draft.execs, exec), "look": draft.looks, "sweep": draft.sweeps,
        });
        if let Some((callers, executors)) = draft.facts {
            // Names and values by turns, as they are kept.
            let (pid, callers) = (std::process::id().to_string(), callers.to_string());
            let executors = executors.trim_end();
            arguments.what["facts"] =
                json!(["host", server.host, "pid", pid, "waiters", callers, "ex", executors]);
        }
        Call { arguments, commits: draft.commits, submissions: draft.submissions, outcomes }
    }

    /// Says it; also one answer a job. After an error nothing is known of what the server did.
    pub fn say(&mut self, server: &Server, sums: &mut Sums) -> Reached<(Answer, Vec<String>)> {
        let function = if self.submissions.is_empty() { "turn" } else { "submit" };
        let (results, submitted, leases, over, revoked, ends, notices, idle, due, opened, dying): Said =
            server.call(function, &mut self.arguments)?;
        notices.iter().for_each(|notice| self.log(server, notice));
        for (told, result) in self.commits.iter().zip(&results) {
            if result != "committed" {
                // What was signed for it does not stand there.
                sums.forget(&told.map);
            }
        }
        let mut answer = Answer {
            failed: notices.iter().filter_map(failed).collect(),
            was_repeated: results.iter().any(|result| result == "again"),
            over: over.into_iter().map(LeaseId).collect(),
            idle,
            due: due.map(Duration::from_micros),
            opened: opened.iter().filter_map(|text| instance(text)).collect(),
            dying: dying.iter().filter_map(|id| JobId::parse(id)).collect(),
            results,
            ..Answer::default()
        };
        for lease in leases {
            server.lease(lease, sums, &mut answer)?;
        }
        let revoked = revoked.into_iter().filter_map(|(consumer, lease, job)| {
            Some((consumer, OfLease { lease: LeaseId(lease), job: JobId::parse(&job)? }))
        });
        answer.revoked = revoked.collect();
        let ends = ends.into_iter().filter_map(|(to, job, status, index, sealed)| {
            let (to, job, status) = (instance(&to)?, JobId::parse(&job)?, JobStatus::parse(&status)?);
            let known = self.outcomes.get(&index).cloned();
            let finished = known.or_else(|| server.opened_outcome(job, status, &sealed))?;
            Some((to, JobEnded { job, finished }))
        });
        answer.ends = ends.collect();
        Ok((answer, submitted))
    }

    fn log(&self, server: &Server, (name, job, cause, trace, handler, number, micros, index): &Notice) {
        let error = self.outcomes.get(index).and_then(|finished| finished.result.as_ref().err());
        let delivery = || Delivery {
            number: u32::try_from(*number).unwrap_or(u32::MAX),
            took: Duration::from_micros(*micros),
            reason: error.map_or("", JobError::reason).to_owned(),
        };
        let said = |level, name, cause| {
            let said = event(level, name).field("trace_id", trace).field("job_id", job);
            said.field("handler", handler).field("cause", cause)
        };
        match name.as_str() {
            "job.failed" => {
                let cause = error.map_or(cause.as_str(), |error| error.word());
                said(Level::Warn, name, cause).delivery(&delivery()).emit();
            }
            // There may be thousands of them: one a second says it.
            "queue.redelivered" if cause == Code::QueueFull.as_str() && !server.full_said.is_due() => {}
            "queue.redelivered" => {
                let cause = Cause::parse(cause).map_or(cause.as_str(), |cause| cause.so_far());
                said(Level::Debug, name, cause).emit();
                said(Level::Info, "job.retried", cause).delivery(&delivery()).emit();
            }
            "queue.dead" => said(Level::Debug, name, cause).emit(),
            "queue.forged" => server.forgeries.say(Forged::Job, job, handler, cause),
            "state.forged" => server.forgeries.say(Forged::State, job, handler, cause),
            _ => said(Level::Info, name, cause).emit(),
        }
    }

    /// Takes its jobs out: their callers do not wait for a server that is away, or has no memory for them.
    pub fn take_submissions(&mut self) -> Vec<(Vec<NewJob>, Then)> {
        self.arguments.what["jobs"] = json!([]);
        std::mem::take(&mut self.submissions)
    }
}

/// The job that ended without success, if that is what it says.
fn failed((name, job, ..): &Notice) -> Option<JobId> {
    JobId::parse(job).filter(|_| name == "job.failed")
}

/// What goes into a call that is being made.
struct Sealing<'a> {
    server: &'a Server,
    entropy: &'a mut Entropy,
    sums: &'a mut Sums,
    arguments: Arguments,
    outcomes: HashMap<usize, Arc<Finished>>,
}

impl Sealing<'_> {
    fn seal(&mut self, id: JobId, status: JobStatus, result: Result<Payload, JobError>) -> Json {
        let finished = Finished { status, result };
        let index = self.arguments.add(self.server.signer().seal_outcome(id, &finished));
        self.outcomes.insert(index, Arc::new(finished));
        index.into()
    }

    fn commit(&mut self, told: &Told) -> Json {
        let commit = &told.commit;
        let id = commit.job;
        let dead = |detail: &String, cause| {
            Err(JobError { code: Code::DeadLettered, detail: detail.clone(), cause: Some(cause) })
        };
        let exceeds = told.spec.as_ref().and_then(|spec| commit.exceeds(spec, &self.server.settings.rules));
        let (word, status, result) = match &commit.outcome {
            Outcome::Succeeded(payload, _) => ("succeeded", JobStatus::Succeeded, Ok(payload.clone())),
            Outcome::Failed(error) => ("failed", JobStatus::Failed, Err(error.clone())),
            Outcome::TimedOut(detail) => ("timed_out", JobStatus::TimedOut, Err(JobError::timed_out(detail))),
            Outcome::Retry(detail, _) => ("retry", JobStatus::Dead, dead(detail, Cause::RetriesExhausted)),
            Outcome::Crashed(detail) => ("crashed", JobStatus::Dead, dead(detail, Cause::HandlerCrashed)),
        };
        #[allow(clippy::cast_precision_loss, reason = "a jitter between 0 and 1")]
        let jitter = self.entropy.up_to(1 << 20) as f64 / f64::from(1 << 20);
        let mut out = json!({
            "i": told.consumer, "n": commit.lease.0, "o": told.own,
            "id": id.to_string(), "d": commit.delivery, "v": commit.builds_on.0.to_string(),
            "s": word, "r": self.seal(id, status, result), "j": jitter,
        });
        if let (Outcome::Succeeded(_, effects), Some(spec)) = (&commit.outcome, &told.spec)
            && (*effects != Effects::default() || exceeds.is_some())
        {
            let refusals = [
                (Code::HandlerFailed, "a handler without ordering has no state"),
                (Code::StateTooLarge, "the lane's state would exceed kv.lane_state_max_bytes"),
                (Code::StateTooLarge, "the trace's context would exceed 1 MiB"),
                (Code::HandlerFailed, "a follow-up names an unknown handler"),
                (Code::HandlerFailed, "a follow-up names a handler that this group may not submit to"),
            ];
            let refusals = refusals.map(|(code, text)| JobError::new(code, text)).into_iter();
            let failed: Vec<Json> = refusals
                .chain(exceeds.clone())
                .map(|error| self.seal(id, JobStatus::Failed, Err(error)))
                .collect();
            if exceeds.is_some() {
                out["bad"] = failed.len().into();
            }
            let context = context_map(&spec.owner, &spec.trace);
            out["no"] = failed.into();
            if !effects.state.is_empty() {
                let signature = self.sums.change(&self.server.signer(), &told.map, &effects.state);
                out["sg"] = or_false(signature.map(|signature| self.arguments.add(signature.to_vec())));
            }
            out["st"] = self.arguments.changes(&effects.state, |_, value| value.to_vec());
            let seal = |key: &str, value: &[u8]| self.server.signer().seal_entry(&context, key, value);
            out["cx"] = self.arguments.changes(&effects.context, seal);
            out["ctx"] = context.into();
            let follow_ups = effects.follow_ups.iter().map(|job| {
                let new = NewJob::follow_up(spec, job.clone(), InstanceId(0), self.entropy);
                pushed(&new);
                self.server.job_json(&new, &mut self.arguments)
            });
            out["fu"] = follow_ups.collect::<Vec<Json>>().into();
        }
        if let Outcome::Retry(_, Some(after)) = commit.outcome {
            out["after"] = micros(after.min(DELAY_MAX)).into();
        }
        out
    }

    fn progress(&mut self, job: JobId, (named, progress): &(Named, Progress)) -> Json {
        let mut out = self::named(named);
        out["id"] = job.to_string().into();
        out["pg"] = self.arguments.add(self.server.signer().seal_progress(job, progress)).into();
        out
    }

    /// The end of a job whose executors were lost too often.
    fn buried(&mut self, job: JobId) -> Json {
        let detail = "its executor was lost".to_owned();
        let error = JobError { code: Code::DeadLettered, detail, cause: Some(Cause::ExecutorLost) };
        json!({ "id": job.to_string(), "r": self.seal(job, JobStatus::Dead, Err(error)) })
    }

    /// A job that nobody signed gets a record that says so, under a signature of ours; a lane whose state is forged is parked.
    fn forged(&mut self, named: &Named, job: Option<JobId>, handler: &Arc<str>) -> Json {
        let mut out = self::named(named);
        let Some(job) = job else {
            out["st"] = true.into();
            return out;
        };
        let error =
            JobError::new(Code::DeadLettered, "nobody of this deployment signed this job: it was put aside");
        let (handler, submitted_at) = (handler.clone(), self.server.now());
        let spec = JobSpec { id: job, handler, submitted_at, ..JobSpec::default() };
        let envelope = self.server.signer().seal_job(&spec, &Payload::json(*b""), &[]);
        out["id"] = job.to_string().into();
        out["env"] = self.arguments.add(envelope).into();
        out["r"] = self.seal(job, JobStatus::Dead, Err(error));
        out
    }
}

fn all<T>(items: &[T], one: impl Fn(&T) -> Json) -> Vec<Json> {
    items.iter().map(one).collect()
}

fn named(Named { consumer, lease, own, how }: &Named) -> Json {
    json!({ "i": consumer, "n": lease.0, "o": own, "how": or_false(*how) })
}

fn exec(Exec { consumer, group, room, used, prefers_alone }: &Exec) -> Json {
    let used = used.iter().map(|(handler, used)| (handler.to_string(), (*used).into()));
    let used = used.collect::<Map<String, Json>>();
    json!({ "i": consumer, "g": group, "room": room, "used": used, "pa": prefers_alone })
}

impl Server {
    /// A lease that was given, or the first job of it that nobody signed.
    fn lease(&self, row: LeaseRow, sums: &mut Sums, answer: &mut Answer) -> Reached<()> {
        let (lease, consumer, handler, kind, version, state, jobs, lane, alone, signature) = row;
        let (id, handler) = (LeaseId(lease), Arc::<str>::from(handler));
        let is_ordered = kind != "none";
        let own = if is_ordered { String::new() } else { lane.clone() };
        let mut leased = Vec::new();
        for (job, envelope, delivery, fence, context, payload) in jobs {
            let job = JobId::parse(&job).ok_or(BackendError("redis: no id".into()))?;
            let opened = self.signer().open_job(job, &envelope);
            let opened = opened.and_then(|sealed| sealed.with_payload(payload));
            let opened = opened.and_then(|job| is_of(&job.0, &lane, &handler, is_ordered).map(|()| job));
            let Ok((spec, payload)) = opened else {
                answer.forged.push((Named { consumer, lease: id, own, how: None }, Some(job), handler));
                return Ok(());
            };
            let context = self.entries(&context_map(&spec.owner, &spec.trace), context);
            let delivery = u32::try_from(delivery).unwrap_or(u32::MAX);
            leased.push(LeasedJob { spec: Arc::new(spec), payload, delivery, fence, context });
        }
        let Some(first) = leased.first() else { return Ok(()) };
        let map = state_map(&handler, first.spec.ordering_key.as_deref());
        let named = |how| Named { consumer, lease: id, own: own.clone(), how };
        let state = match kind.as_str() {
            "none" => StateAt::Stateless,
            "known" if sums.is_known(&self.signer(), &map, lease) => StateAt::Known(Version(version)),
            "known" => {
                // It comes again, with the whole state.
                answer.unknown.push(named(None));
                return Ok(());
            }
            _ => {
                let text = |(key, value): (Vec<u8>, Vec<u8>)| {
                    Some((String::from_utf8(key).ok()?.into(), value.into()))
                };
                let entries: Option<Entries> = state.into_iter().map(text).collect();
                let is_whole =
                    |entries: &Entries| sums.is_whole(&self.signer(), &map, entries, &signature, lease);
                let Some(entries) = entries.filter(is_whole) else {
                    answer.forged.push((named(None), None, handler));
                    return Ok(());
                };
                StateAt::Whole(Version(version), entries)
            }
        };
        let jobs = leased.iter().map(|job| job.spec.clone()).collect();
        let held = Held { handler: handler.clone(), own, map, jobs, at: 0, is_alone: alone == 1 };
        answer.leases.push((consumer, Lease { id, handler, state, jobs: leased }, held));
        Ok(())
    }

    /// How a job ended, as somebody of the deployment signed it.
    pub fn opened_outcome(&self, job: JobId, status: JobStatus, sealed: &[u8]) -> Option<Arc<Finished>> {
        let finished = match sealed.is_empty() {
            // Too large to be told.
            true => self.find(&Viewer::service(), job).ok().flatten().and_then(|record| record.finished),
            false => self.signer().open_outcome(job, status, sealed).ok().map(Arc::new),
        };
        if finished.is_none() && !sealed.is_empty() {
            self.forgeries.found(Forged::End, &job.to_string());
        }
        finished
    }
}

fn instance(text: &str) -> Option<InstanceId> {
    u64::from_str_radix(text, 16).ok().map(InstanceId)
}

/// A signed job in another handler's lane, or in that of another key, is as good as forged.
fn is_of(spec: &JobSpec, lane: &str, handler: &str, is_ordered: bool) -> Result<(), envelope::Forged> {
    let own = match is_ordered {
        true => state_map(handler, spec.ordering_key.as_deref()) == format!("state:{lane}"),
        false => spec.id.to_string() == lane,
    };
    if own && *spec.handler == *handler { Ok(()) } else { Err(envelope::Forged) }
}

/// A job has entered its lane.
pub fn pushed(job: &NewJob) {
    job_event(Level::Debug, "queue.pushed", &job.trace, job.id, &job.handler).emit();
}
