//! [`Producer`]: how jobs are submitted, looked at and commanded.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::error::{BackendError, Reached};
use super::forged::Forged;
use super::recent::Looked;
use super::replies::JobEnded;
use crate::clock::Timestamp;
use crate::entropy::Entropy;
use crate::job::{FollowUp, InstanceId, JobId, JobRecord, JobSpec, JobStatus, Payload, Trace};
use crate::limits::QUEUED_BYTES;
use crate::negative_controls::{Control, is_off};
use crate::problem::Code;

/// The submitting side of the broker.
///
/// Laws: an accepted job reaches exactly one terminal status in one life; an idempotency key names one job
/// for a time of its own, whatever becomes of the job's record; refusals change nothing.
pub trait Producer: Send + Sync {
    /// Accepts jobs; one answer a job, in order. Each is accepted or refused on its own, except that after one
    /// that found the queue full none of the same owner and call is accepted: their order is kept.
    fn submit(&self, jobs: Vec<NewJob>) -> Reached<Vec<Submitted>>;

    /// The same, where the answer may come from another thread, later.
    fn submit_later(&self, jobs: Vec<NewJob>, then: Then) {
        then(self.submit(jobs));
    }

    /// The record of a job that the viewer may see.
    fn record(&self, viewer: &Viewer, id: JobId) -> Reached<Option<JobRecord>>;

    /// The same; if the job has not ended, `instance` hears of its end as well as whoever submitted it.
    fn watch(&self, viewer: &Viewer, id: JobId, instance: InstanceId) -> Reached<Option<JobRecord>>;

    /// How these have ended, for whoever was not told; and those of which that could not be found out, to ask again.
    /// Those that have not ended, or are unknown, are left out.
    fn ended(&self, jobs: &[JobId]) -> (Vec<JobEnded>, Vec<JobId>) {
        let (mut ended, mut unsure) = (Vec::new(), Vec::new());
        for job in jobs {
            match self.record(&Viewer::service(), *job) {
                Ok(record) => ended.extend(record.and_then(JobEnded::of)),
                Err(_) => unsure.push(*job),
            }
        }
        (ended, unsure)
    }

    /// Cancels the job if it has not ended, unparks its lane if it is the dead head of one; the record after that.
    fn cancel(&self, viewer: &Viewer, id: JobId) -> Reached<Option<JobRecord>>;

    /// Queues a dead, failed, timed-out or cancelled job again, where a new job of its owner would find room.
    fn retry(&self, viewer: &Viewer, id: JobId) -> Reached<Option<Retried>>;

    /// Holds or lets go the queued jobs of a handler; false if there is no such handler.
    fn pause(&self, handler: &str, paused: bool) -> Reached<bool>;

    /// The payload of a job that the viewer may see. `Some(None)`: it is not kept any more, since the job has succeeded.
    fn payload(&self, viewer: &Viewer, id: JobId) -> Reached<Option<Option<Payload>>>;

    /// Records, newest submission first.
    fn list(&self, viewer: &Viewer, filter: &Filter) -> Reached<Listed>;

    /// Lanes of a handler in which jobs wait, or that a dead head holds; at most so many, the one that has waited longest first.
    /// `None`: there is no such handler.
    fn lanes(&self, viewer: &Viewer, handler: &str, most: usize) -> Reached<Option<Vec<LaneStats>>>;

    /// Jobs that have ended here since a look that found so many: not all that a deployment of many processes has.
    fn recent_ends(&self, count: u64) -> Looked;

    /// Jobs that have ended here and have spans to export, as they stood, and how many more there were: each is told once. Of a
    /// result nothing need be there.
    fn take_traced(&self) -> (Vec<JobRecord>, u64);

    /// Where the backend cannot be reached, what this process knows itself.
    fn stats(&self) -> Reached<Stats>;
}

/// Takes the answers to a submission.
pub type Then = Box<dyn FnOnce(Reached<Vec<Submitted>>) + Send>;

/// A job to be accepted.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Fresh for each new job, the same when a call is repeated.
    pub id: JobId,
    /// The caller's token name; empty without authentication.
    pub owner: Arc<str>,
    /// Must be registered.
    pub handler: Arc<str>,
    /// `Some` iff the handler is keyed.
    pub ordering_key: Option<Arc<str>>,
    pub payload: Payload,
    pub trace: Trace,
    /// See [`JobSpec::tracestate`].
    pub tracestate: Option<Arc<str>>,
    /// Not before this long from now.
    pub delay: Duration,
    /// Shorter than the handler's own, or `None` for that.
    pub timeout: Option<Duration>,
    /// `Some` joins an earlier job of the same key instead of running again.
    pub idempotency: Option<Idempotency>,
    /// Its caller waits: the record may go soon after the end.
    pub awaited: bool,
    /// The result must be one line.
    pub one_line: bool,
    /// Who hears of the end.
    pub instance: InstanceId,
}

impl NewJob {
    /// What a job of `parent` submits; it belongs to the same owner and trace.
    pub fn follow_up(parent: &JobSpec, job: FollowUp, instance: InstanceId, entropy: &mut Entropy) -> NewJob {
        let own = parent.trace.parent.map(|_| parent.trace.span);
        NewJob {
            id: JobId(entropy.bytes()),
            owner: parent.owner.clone(),
            handler: job.handler,
            ordering_key: job.ordering_key,
            payload: job.payload,
            trace: Trace { span: entropy.bytes(), parent: own, ..parent.trace },
            tracestate: parent.tracestate.clone(),
            delay: job.delay,
            timeout: None,
            idempotency: None,
            awaited: false,
            one_line: false,
            instance,
        }
    }
}

/// An idempotency key in the scope of the job's owner and handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// 1 to 255 visible ASCII characters.
    pub key: Arc<str>,
    /// SHA-256 over content type, ordering key and bytes: the same key with another payload is refused.
    pub fingerprint: [u8; 32],
}

/// What became of one submission.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Submitted {
    /// Accepted under the id that was given.
    New,
    /// The idempotency key names this job already; the submitter's instance hears of its end.
    Existing(Box<JobRecord>),
    /// Not accepted.
    Refused(Refusal),
}

/// Why a submission was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    UnknownHandler,
    /// `queue.capacity` jobs, or their bytes, are waiting; or the owner has its [`Share`] of them.
    QueueFull,
    /// The disk that jobs are kept on is full.
    DiskFull,
    /// The idempotency key belongs to another payload, that of this job, if that is sure.
    IdempotencyMismatch(Option<JobId>),
    /// The idempotency key names this job, which has ended and whose record is gone.
    ResultGone(JobId),
}

/// What became of a retry: the record of its new life, or why it has none.
pub type Retried = Result<JobRecord, NotRetried>;

/// Why a job was not queued again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRetried {
    /// It is in this status.
    Is(JobStatus),
    /// There is no room in the queue, or none of its owner's share.
    QueueFull,
}

impl Refusal {
    pub fn code(self) -> Code {
        match self {
            Refusal::UnknownHandler => Code::UnknownHandler,
            Refusal::QueueFull | Refusal::DiskFull => Code::QueueFull,
            Refusal::IdempotencyMismatch(_) => Code::IdempotencyMismatch,
            Refusal::ResultGone(_) => Code::ResultGone,
        }
    }
}

/// What some jobs of callers take that have not ended: those of one owner, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub jobs: usize,
    /// Of their payloads.
    pub bytes: usize,
}

impl std::ops::Add for Share {
    type Output = Share;

    fn add(self, other: Share) -> Share {
        Share { jobs: self.jobs + other.jobs, bytes: self.bytes + other.bytes }
    }
}

impl Share {
    /// True if an owner that has this, and now wants to queue a job of `more` bytes, keeps others out. An owner has a quarter of
    /// the queue; more while nobody else has any, but for the queue's last quarter, so that whoever comes next finds room.
    /// `queued` of `capacity` jobs wait.
    pub fn is_beyond(self, more: usize, all: Share, queued: usize, capacity: usize) -> bool {
        let others_have = all.jobs > self.jobs;
        let (jobs, bytes) = (capacity / 4, QUEUED_BYTES / 4);
        let too_many = self.jobs + 1 > jobs.max(1) && (others_have || queued + 1 > capacity - jobs);
        let too_large = self.bytes + more > bytes && (others_have || all.bytes + more > QUEUED_BYTES - bytes);
        too_many || too_large
    }
}

/// Who asks. Jobs of others are not there for who is not an admin.
#[derive(Clone, Debug, Default)]
pub struct Viewer {
    /// The token name; empty without authentication.
    pub name: Arc<str>,
    /// Sees and steers all jobs.
    pub admin: bool,
    /// Whose jobs it may begin, begin again or end; `None`: of all.
    pub handlers: Option<Arc<[String]>>,
}

impl Viewer {
    /// Without authentication there is one user, who may do everything.
    pub fn anonymous() -> Viewer {
        Viewer { admin: true, ..Viewer::default() }
    }

    /// The service itself, which looks after everybody's jobs.
    pub fn service() -> Viewer {
        Viewer::anonymous()
    }

    /// True if it may act on jobs of this handler.
    pub fn is_for(&self, handler: &str) -> bool {
        self.handlers.as_ref().is_none_or(|names| names.iter().any(|name| name == handler))
    }

    /// True if this viewer may know of a job of `owner`.
    pub fn sees(&self, owner: &str) -> bool {
        self.admin || *self.name == *owner || is_off(Control::Owner)
    }
}

/// Which records to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Any of these; none: any at all.
    pub statuses: Vec<JobStatus>,
    pub handler: Option<String>,
    /// The ordering key.
    pub key: Option<String>,
    /// The trace's id.
    pub trace: Option<[u8; 16]>,
    /// Submitted before then.
    pub before: Option<Timestamp>,
    /// At most so many, newest first.
    pub limit: usize,
    /// Only those that were submitted before the job of this place.
    pub after: Option<Place>,
    /// Results are not looked at: they may be left out.
    pub bare: bool,
}

impl Filter {
    /// True if a record of this status and job is one of those; its place is not looked at.
    pub fn matches(&self, status: JobStatus, spec: &JobSpec) -> bool {
        (self.statuses.is_empty() || self.statuses.contains(&status))
            && self.handler.as_ref().is_none_or(|name| **name == *spec.handler)
            && self.key.as_ref().is_none_or(|key| spec.ordering_key.as_deref() == Some(key))
            && self.trace.is_none_or(|trace| trace == spec.trace.id)
            && self.before.is_none_or(|before| spec.submitted_at < before)
    }
}

/// A page of records.
#[derive(Debug, Default)]
pub struct Listed {
    pub records: Vec<JobRecord>,
    /// The last one's place; `None`: there are no more.
    pub next: Option<Place>,
}

/// A job's place in the order of submissions. It stays when the job's record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub number: u64,
    pub job: JobId,
}

impl Place {
    /// Reads what its [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Place> {
        let (number, job) = text.split_once('-')?;
        // As large as a number can be in every backend.
        let number = number.parse().ok().filter(|number| *number < 1 << 53)?;
        Some(Place { number, job: JobId::parse(job)? })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}-{}", self.number, self.job)
    }
}

/// Counts of durations below each of [`Histogram::BOUNDS`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// One count a bound (not cumulative), and one beyond the last.
    pub buckets: [u64; Histogram::BOUNDS.len() + 1],
    /// All durations together, in microseconds.
    pub sum_micros: u64,
}

impl Histogram {
    /// Upper bounds in microseconds: 100 us to 10 min.
    #[rustfmt::skip]
    pub const BOUNDS: [u64; 14] = [
        100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000,
        1_000_000, 5_000_000, 10_000_000, 60_000_000, 300_000_000, 600_000_000,
    ];

    /// Counts what another has counted as well.
    pub fn add(&mut self, other: &Histogram) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(bucket, more)| *bucket += more);
        self.sum_micros = self.sum_micros.saturating_add(other.sum_micros);
    }

    /// What was counted since this one had counted `earlier`.
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let mut buckets = self.buckets;
        buckets
            .iter_mut()
            .zip(earlier.buckets)
            .for_each(|(bucket, less)| *bucket = bucket.saturating_sub(less));
        Histogram { buckets, sum_micros: self.sum_micros.saturating_sub(earlier.sum_micros) }
    }

    /// Seconds that this part of all durations, between 0 and 1, does not exceed; within a bucket in proportion, beyond the
    /// last bound that bound (as Prometheus' `histogram_quantile`). `None`: there are no durations.
    #[allow(clippy::cast_precision_loss, reason = "an estimate anyhow")]
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let all: u64 = self.buckets.iter().sum();
        let (wanted, mut below, mut from) = (part * all as f64, 0, 0);
        for (bound, count) in Histogram::BOUNDS.into_iter().zip(self.buckets) {
            if count > 0 && (below + count) as f64 >= wanted {
                let within = (wanted - below as f64) / count as f64;
                return Some((from as f64 + within * (bound - from) as f64) / 1e6);
            }
            (below, from) = (below + count, bound);
        }
        (all > 0).then_some(from as f64 / 1e6)
    }

    /// Counts one duration.
    pub fn observe(&mut self, duration: Duration) {
        let micros = crate::clock::micros(duration);
        let bucket = Self::BOUNDS.iter().position(|&bound| micros <= bound).unwrap_or(Self::BOUNDS.len());
        self.buckets[bucket] += 1;
        self.sum_micros = self.sum_micros.saturating_add(micros);
    }
}

/// One handler's figures.
#[derive(Clone, Debug, Default)]
pub struct HandlerStats {
    pub handler: Arc<str>,
    pub group: Arc<str>,
    /// Submissions are queued but not run.
    pub paused: bool,
    /// Jobs waiting or delayed.
    pub queued: usize,
    /// Jobs whose delivery has started.
    pub running: usize,
    /// Lanes with jobs or state.
    pub lanes: usize,
    /// Of these, those that a dead head holds.
    pub parked: usize,
    /// Age of the oldest job that waits for anything but its caller's own delay.
    pub oldest: Duration,
    /// Accepted since the start.
    pub submitted: u64,
    /// Ended since the start, in the order of [`JobStatus::ALL`].
    pub finished: [u64; JobStatus::ALL.len()],
    /// From start to commit.
    pub job_seconds: Histogram,
    /// From acceptance (or not-before) to the first start.
    pub queue_wait_seconds: Histogram,
}

/// A lane in which jobs wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneStats {
    /// Its first job: one that runs or waits, or the dead one that holds it.
    pub head: JobRecord,
    /// Jobs in it.
    pub jobs: usize,
}

/// A process of a deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessStats {
    /// `web` or `executor`
    pub role: &'static str,
    /// `Some` iff it is an executor.
    pub group: Option<Arc<str>>,
    pub host: String,
    /// `None` where only its connection is known.
    pub pid: Option<u32>,
    /// An executor's leases; callers that wait in a web process. `None` where only the process is known.
    pub busy: Option<u64>,
    /// What it holds in memory, where it is one of this host.
    pub rss_bytes: Option<u64>,
}

/// The broker's figures.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// `Some`: the backend cannot be reached. Of all figures only those of this process's executors and connections are there.
    pub away: Option<BackendError>,
    /// `Some`: why nothing is accepted for now, but what was goes on.
    pub full: Option<String>,
    /// One a handler, in the order of the registry.
    pub handlers: Vec<HandlerStats>,
    /// Deliveries beyond a job's first.
    pub redelivered: u64,
    /// Jobs that used up their deliveries.
    pub dead: u64,
    /// Commits that came too late to hold.
    pub late: u64,
    /// Commits that were repeated.
    pub duplicate: u64,
    /// Connected consumers, by group index.
    pub consumers: Vec<usize>,
    /// Their workers that have a lease, by group index.
    pub busy: Vec<usize>,
    /// The processes of the deployment, where they are many and tell of themselves.
    pub processes: Vec<ProcessStats>,
    /// Leases that were renewed and that ran out, by all processes; connections to the backend that this one made again.
    pub leases_renewed: u64,
    pub leases_lost: u64,
    pub reconnects: u64,
    /// What nobody of the deployment signed, in the order of [`Forged::ALL`].
    pub forged: [u64; Forged::ALL.len()],
    /// Jobs whose executor was lost while they may have been running, and that have not ended since.
    pub suspects: usize,
    /// Idempotency keys that are kept, and that went before their time.
    pub idempotency_keys: usize,
    pub idempotency_evicted: u64,
    /// What lane states and contexts take.
    pub state_bytes: usize,
    /// Records kept, of finished jobs too.
    pub records: usize,
    pub leases: usize,
}
