//! Where the gate's questions to the broker are answered: at once where a call takes microseconds (memory), on a thread
//! of their own where it may wait for a network. That thread says in one call what has gathered while its last call was
//! under way, so a lone question goes at once and many share a round trip.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::bell::{Bell, lock};
use crate::clock::Timestamp;
use crate::job::{InstanceId, JobId, JobRecord};
use crate::ports::{BackendError, Doorbell, NewJob, Producer, Submitted, Upkeep, Viewer};

/// Questions that wait for the thread: more than that, and the backend is as good as away.
const QUESTIONS: usize = 65_536;
/// Jobs of one call: the server's other clients should not wait long for it.
const JOBS_A_CALL: usize = 256;
/// What time alone does is looked after this often.
const UPKEEP: Duration = Duration::from_secs(1);

/// Which request asks; its answer goes there, or nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct From {
    pub conn: u64,
    pub request: u64,
}

/// A question of the gate.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Accept these jobs, in order.
    Submit(From, Vec<NewJob>),
    /// A job's record; with the instance, which hears of the job's end, if somebody is going to wait for that.
    Record(From, JobId, Option<InstanceId>),
    /// Which of these have ended? Doorbells were lost.
    Ended(Vec<JobId>),
    /// Its last caller has hung up: cancel it, if it is of one of these handlers.
    Abandoned(JobId, Arc<[Arc<str>]>),
}

/// An answer to a question.
#[derive(Debug)]
pub enum Told {
    /// One answer a job, in order.
    Submitted(From, Result<Vec<Submitted>, BackendError>),
    Record(From, Result<Option<JobRecord>, BackendError>),
    Ended(Vec<Doorbell>),
    /// Whether these have ended could not be found out.
    Unsure(Vec<JobId>),
}

/// See the module.
pub(super) enum Desk {
    Here { producer: Arc<dyn Producer>, upkeep: Arc<dyn Upkeep>, told: Vec<Told> },
    Thread { clerk: Arc<Clerk>, upkeep: Arc<dyn Upkeep>, thread: JoinHandle<()> },
}

impl Desk {
    /// Answers at once.
    pub(super) fn here(producer: Arc<dyn Producer>, upkeep: Arc<dyn Upkeep>) -> Desk {
        Desk::Here { producer, upkeep, told: Vec::new() }
    }

    /// Answers on a thread, which rings `bell`. The thread looks after what time does, too.
    pub(super) fn thread(
        producer: Arc<dyn Producer>,
        upkeep: Arc<dyn Upkeep>,
        bell: Bell,
    ) -> std::io::Result<Desk> {
        let clerk = Arc::new(Clerk { tray: Mutex::default(), filled: Condvar::new() });
        let (works, keeps) = (clerk.clone(), upkeep.clone());
        let thread = std::thread::Builder::new().name("desk".into());
        let thread = thread.spawn(move || works.work(&*producer, &*keeps, &bell))?;
        Ok(Desk::Thread { clerk, upkeep, thread })
    }

    pub(super) fn ask(&mut self, asks: Vec<Ask>) {
        match self {
            Desk::Here { producer, told, .. } => told.extend(answer(asks, &**producer)),
            Desk::Thread { clerk, .. } => clerk.ask(asks),
        }
    }

    /// What was answered since the last call.
    pub(super) fn told(&mut self) -> Vec<Told> {
        match self {
            Desk::Here { told, .. } => std::mem::take(told),
            Desk::Thread { clerk, .. } => std::mem::take(&mut lock(&clerk.tray).told),
        }
    }

    /// An executor's process has ended: its name at the broker, and its workers.
    pub(super) fn lost(&mut self, name: String) {
        match self {
            Desk::Here { .. } => {}
            Desk::Thread { clerk, .. } => {
                lock(&clerk.tray).lost.push(name);
                clerk.filled.notify_one();
            }
        }
    }

    /// False once its thread has ended, which is a bug of ours: nobody would be answered any more.
    pub(super) fn is_staffed(&self) -> bool {
        match self {
            Desk::Here { .. } => true,
            Desk::Thread { thread, .. } => !thread.is_finished(),
        }
    }

    /// Does what time alone does, unless the thread does; when to come again at the latest.
    pub(super) fn tick(&self) -> Option<Timestamp> {
        match self {
            Desk::Here { upkeep, .. } => upkeep.tick(),
            Desk::Thread { .. } => None,
        }
    }

    pub(super) fn upkeep(&self) -> &dyn Upkeep {
        match self {
            Desk::Here { upkeep, .. } | Desk::Thread { upkeep, .. } => &**upkeep,
        }
    }
}

/// The thread and what lies between it and the loop.
pub(super) struct Clerk {
    tray: Mutex<Tray>,
    /// Something was asked.
    filled: Condvar,
}

#[derive(Default)]
struct Tray {
    asks: Vec<Ask>,
    told: Vec<Told>,
    lost: Vec<String>,
}

impl Clerk {
    fn ask(&self, asks: Vec<Ask>) {
        if asks.is_empty() {
            return;
        }
        let mut tray = lock(&self.tray);
        if tray.asks.len() + asks.len() > QUESTIONS {
            let error = BackendError("too many questions wait for the backend".into());
            tray.told.extend(asks.into_iter().filter_map(|ask| unanswered(ask, &error)));
        } else {
            tray.asks.extend(asks);
            self.filled.notify_one();
        }
    }

    fn work(&self, producer: &dyn Producer, upkeep: &dyn Upkeep, bell: &Bell) {
        let mut kept_at = Instant::now();
        loop {
            let tray = lock(&self.tray);
            let patience = UPKEEP.saturating_sub(kept_at.elapsed());
            let is_empty = |tray: &mut Tray| tray.asks.is_empty() && tray.lost.is_empty();
            let waited = self.filled.wait_timeout_while(tray, patience, is_empty);
            let mut tray = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
            let (asks, lost) = (std::mem::take(&mut tray.asks), std::mem::take(&mut tray.lost));
            drop(tray);
            for name in lost {
                upkeep.lost(&name);
            }
            if !asks.is_empty() {
                let told = answer(asks, producer);
                let is_away = told.iter().find_map(error_of);
                let mut tray = lock(&self.tray);
                tray.told.extend(told);
                if let Some(error) = is_away {
                    // Who asked meanwhile has waited as long: nobody waits for two calls that fail.
                    let waiting = std::mem::take(&mut tray.asks);
                    tray.told.extend(waiting.into_iter().filter_map(|ask| unanswered(ask, &error)));
                }
                drop(tray);
                bell.ring();
            }
            if kept_at.elapsed() >= UPKEEP {
                upkeep.tick();
                kept_at = Instant::now();
            }
        }
    }
}

/// Asks the broker; all submissions that stand side by side in one call.
pub fn answer(asks: Vec<Ask>, producer: &dyn Producer) -> Vec<Told> {
    let mut told = Vec::with_capacity(asks.len());
    let (mut jobs, mut whose) = (Vec::new(), Vec::new());
    for ask in asks {
        match ask {
            Ask::Submit(from, some) => {
                whose.push((from, some.len()));
                jobs.extend(some);
                if jobs.len() >= JOBS_A_CALL {
                    submit(&mut jobs, &mut whose, producer, &mut told);
                }
            }
            Ask::Record(from, id, watches) => {
                submit(&mut jobs, &mut whose, producer, &mut told);
                let viewer = Viewer::anonymous();
                let record = match watches {
                    Some(instance) => producer.watch(&viewer, id, instance),
                    None => producer.record(&viewer, id),
                };
                told.push(Told::Record(from, record));
            }
            Ask::Ended(jobs) => {
                let (ended, unsure) = producer.ended(&jobs);
                told.extend([Told::Ended(ended), Told::Unsure(unsure)]);
            }
            Ask::Abandoned(id, of) => {
                submit(&mut jobs, &mut whose, producer, &mut told);
                let viewer = Viewer::anonymous();
                let cancelled = producer.record(&viewer, id).and_then(|record| {
                    let wanted = record.is_some_and(|record| of.contains(&record.spec.handler));
                    if wanted { producer.cancel(&viewer, id).map(drop) } else { Ok(()) }
                });
                cancelled.unwrap_or_else(|error| not_cancelled(id, &error));
            }
        }
    }
    submit(&mut jobs, &mut whose, producer, &mut told);
    told
}

fn submit(
    jobs: &mut Vec<NewJob>,
    whose: &mut Vec<(From, usize)>,
    producer: &dyn Producer,
    told: &mut Vec<Told>,
) {
    if whose.is_empty() {
        return;
    }
    let mut answers = producer.submit(std::mem::take(jobs));
    for (from, count) in std::mem::take(whose) {
        let mine = match &mut answers {
            Ok(answers) => Ok(answers.drain(..count.min(answers.len())).collect()),
            Err(error) => Err(error.clone()),
        };
        told.push(Told::Submitted(from, mine));
    }
}

fn error_of(told: &Told) -> Option<BackendError> {
    match told {
        Told::Submitted(_, Err(error)) | Told::Record(_, Err(error)) => Some(error.clone()),
        Told::Submitted(_, Ok(_)) | Told::Record(_, Ok(_)) | Told::Ended(_) | Told::Unsure(_) => None,
    }
}

/// The answer to a question that was not asked.
fn unanswered(ask: Ask, error: &BackendError) -> Option<Told> {
    match ask {
        Ask::Submit(from, _) => Some(Told::Submitted(from, Err(error.clone()))),
        Ask::Record(from, ..) => Some(Told::Record(from, Err(error.clone()))),
        Ask::Ended(ids) => Some(Told::Unsure(ids)),
        Ask::Abandoned(id, _) => {
            not_cancelled(id, error);
            None
        }
    }
}

fn not_cancelled(id: JobId, error: &BackendError) {
    log::warn!("job {id}, whose callers have hung up, could not be cancelled: {error}");
}
