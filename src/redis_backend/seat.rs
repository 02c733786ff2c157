//! The broker's seat in a process: the thread that says what there is to say, one call after the other, and the handles of
//! those who wait for it.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use super::broker::{Blobs, RedisBroker, Shared};
use super::call::{Call, pushed};
use super::connection::is_full;
use super::turn::State;
use crate::bell::{Bell, lock};
use crate::clock::Timestamp;
use crate::entropy::Entropy;
use crate::job::{InstanceId, JobId};
use crate::ports::{
    BackendError, Consumer, Ends, Inbox, NewJob, Refusal, Replies, Requests, Seat, Step, Submitted, Then,
    Viewer,
};

/// Takes the turns, one at a time.
pub(super) struct Turner {
    entropy: Entropy,
    /// A call whose answer was lost: it may have been heard.
    in_doubt: Option<Call>,
}

impl Default for Turner {
    fn default() -> Turner {
        Turner { entropy: Entropy::system(), in_doubt: None }
    }
}

/// The threads of a seat. Dropping it gives back what the process still has, if the server hears of it.
pub struct RedisSeat {
    broker: RedisBroker,
    turns: JoinHandle<()>,
    listens: JoinHandle<()>,
}

impl RedisBroker {
    /// Takes the turns on threads from now on.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn sit(&self) -> std::io::Result<RedisSeat> {
        let (turning, listening) = (self.0.clone(), self.0.clone());
        let builder = |name: &str| std::thread::Builder::new().name(name.into());
        let turns = builder("redis-turns").spawn(move || turning.turn_for_ever())?;
        let listens = builder("redis-wakes").spawn(move || listening.listen_for_ever())?;
        lock(&self.0.state).is_seated = true;
        Ok(RedisSeat { broker: self.clone(), turns, listens })
    }

    /// Takes turns until there is nothing to say (tests: a service has threads for it).
    ///
    /// # Errors
    /// The backend is lost.
    pub fn settle(&self) -> Result<(), BackendError> {
        loop {
            // A connection that was cut is replaced.
            let heard = self.0.hear(Duration::ZERO).or_else(|_| self.0.hear(Duration::ZERO))?;
            if !heard && !lock(&self.0.state).rests(self.0.now()).is_zero() {
                return Ok(());
            }
            self.0.turn();
        }
    }

    /// Does what time alone does (tests: a service does it often enough).
    pub fn sweep(&self) {
        lock(&self.0.state).sweep();
    }

    /// An executor of this group; `bell` rings when a step would bring something.
    #[must_use]
    pub fn consumer(&self, group: usize, bell: Bell) -> RedisConsumer {
        let workers = self.0.workers[group];
        let number = lock(&self.0.state).connect(group, workers, bell, self.0.now());
        self.0.filled.notify_one();
        RedisConsumer { shared: self.0.clone(), number }
    }

    /// As [`crate::ports::Producer::submit`].
    pub(super) fn submit_and_wait(&self, jobs: Vec<NewJob>) -> Result<Vec<Submitted>, BackendError> {
        let (then, answer) = sync_channel(1);
        self.0.submit(jobs, Box::new(move |answers| drop(then.send(answers))));
        if !lock(&self.0.state).is_seated {
            self.0.turn();
        }
        answer.recv().map_err(|_| BackendError("redis: nobody takes the turns any more".into()))?
    }
}

impl Shared {
    /// Changes the books; rings for whoever should look.
    pub(super) fn change<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        let mut state = lock(&self.state);
        let (done, rings) = (work(&mut state), state.take_rings());
        drop(state);
        rings.iter().for_each(Bell::ring);
        done
    }

    pub(super) fn submit(&self, jobs: Vec<NewJob>, then: Then) {
        lock(&self.state).submit(jobs, then);
        self.filled.notify_one();
    }

    fn turn_for_ever(&self) {
        loop {
            let mut state = lock(&self.state);
            loop {
                let rest = state.rests(self.now());
                if state.is_closed || rest.is_zero() {
                    break;
                }
                let waited = self.filled.wait_timeout(state, rest);
                state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
            }
            let is_over = state.is_closed && (state.is_quiet() || state.was_away());
            drop(state);
            if is_over {
                return;
            }
            self.turn();
        }
    }

    /// Says what there is to say, and what was in doubt before that.
    pub(super) fn turn(&self) {
        let turner = &mut *lock(&self.turner);
        let mut call = turner.in_doubt.take().unwrap_or_else(|| {
            let draft = lock(&self.state).compose(self.now());
            Call::new(draft, self, &mut turner.entropy)
        });
        let error = match call.say(self) {
            Ok((answer, submitted)) => {
                let now = self.now();
                self.change(|state| state.answered(&call.commits, &call.released, answer, now));
                return self.answer_submissions(call.take_submissions(), submitted);
            }
            Err(error) => error,
        };
        let mut unanswered = call.take_submissions();
        if is_full(&error) && !unanswered.is_empty() {
            // It was refused as a whole; the rest of it needs no memory.
            turner.in_doubt = Some(call);
        } else {
            let is_over = self.change(|state| state.is_away(&error, self.visibility));
            turner.in_doubt = Some(call).filter(|_| !is_over);
            unanswered.extend(lock(&self.state).take_submissions());
        }
        unanswered.into_iter().for_each(|(_, then)| then(Err(error.clone())));
    }

    fn answer_submissions(&self, submissions: Vec<(Vec<NewJob>, Then)>, submitted: Vec<String>) {
        let mut submitted = submitted.into_iter();
        for (jobs, then) in submissions {
            let answers = jobs.iter().map(|job| match submitted.next().as_deref() {
                Some("new") => {
                    pushed(job);
                    Ok(Submitted::New)
                }
                Some("full") => Ok(Submitted::Refused(Refusal::QueueFull)),
                Some("unknown") => Ok(Submitted::Refused(Refusal::UnknownHandler)),
                Some("mismatch") => Ok(Submitted::Refused(Refusal::IdempotencyMismatch)),
                // It has joined that one. A record that nobody signed, or that has gone at this moment, keeps the key.
                Some(id) => {
                    let id = JobId::parse(id).ok_or(BackendError("redis: no id".into()))?;
                    let record = self.find(&Viewer::anonymous(), id)?;
                    Ok(record.map_or(Submitted::Refused(Refusal::IdempotencyMismatch), |record| {
                        Submitted::Existing(Box::new(record))
                    }))
                }
                None => Err(BackendError("redis: a script's answer has another shape".into())),
            });
            then(answers.collect());
        }
    }
}

/// An executor's side. Dropping it ends its leases.
pub struct RedisConsumer {
    shared: Arc<Shared>,
    number: u64,
}

impl RedisConsumer {
    fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        let mut state = lock(&self.shared.state);
        let (done, is_due) = (work(&mut state), state.is_due());
        drop(state);
        if is_due {
            self.shared.filled.notify_one();
        }
        done
    }
}

impl Consumer for RedisConsumer {
    fn step(&mut self, requests: Requests, room: usize) -> Result<Step, BackendError> {
        self.with(|state| state.step(self.number, requests, room))
    }

    fn extend(&mut self) {
        let (now, visibility) = (self.shared.now(), self.shared.visibility);
        self.with(|state| state.extend(self.number, now, visibility));
    }

    fn is_settled(&self) -> bool {
        lock(&self.shared.state).is_settled(self.number)
    }
}

impl Drop for RedisConsumer {
    fn drop(&mut self) {
        let now = self.shared.now();
        self.with(|state| state.disconnect(self.number, now));
    }
}

impl Replies for RedisBroker {
    fn subscribe(&self, instance: InstanceId, bell: Bell) -> Result<Box<dyn Inbox>, BackendError> {
        lock(&self.0.state).subscribe(instance, bell, self.0.now());
        self.0.filled.notify_one();
        Ok(Box::new(RedisInbox { shared: self.0.clone(), instance }))
    }
}

struct RedisInbox {
    shared: Arc<Shared>,
    instance: InstanceId,
}

impl Inbox for RedisInbox {
    fn take(&mut self, most: usize) -> Ends {
        lock(&self.shared.state).take_ends(self.instance, most)
    }
}

impl Drop for RedisInbox {
    fn drop(&mut self) {
        lock(&self.shared.state).unsubscribe(self.instance);
    }
}

impl Seat for RedisSeat {
    fn tick(&self, callers: usize) -> Option<Timestamp> {
        lock(&self.broker.0.state).callers = callers as u64;
        None
    }

    /// What is queued stays queued, whoever stops.
    fn is_drained(&self, callers_wait: bool, _deadline: Timestamp) -> bool {
        lock(&self.broker.0.state).is_drained(callers_wait)
    }

    fn cut_off(&self) -> Vec<JobId> {
        let jobs = lock(&self.broker.0.state).cut_off();
        self.broker.0.filled.notify_one();
        jobs
    }

    fn name(&self) -> String {
        self.broker.0.node.clone()
    }

    fn succeeds(&self, predecessor: &str) {
        lock(&self.broker.0.state).left(predecessor);
        self.broker.0.filled.notify_one();
    }

    fn is_sound(&self) -> bool {
        !self.turns.is_finished() && !self.listens.is_finished()
    }
}

impl Drop for RedisSeat {
    fn drop(&mut self) {
        let (was_away, inboxes) = {
            let mut state = lock(&self.broker.0.state);
            state.is_closed = true;
            (state.was_away(), state.inboxes())
        };
        self.broker.0.filled.notify_one();
        // Nobody has time for a server that says nothing; what it knows of this process runs out.
        const PATIENCE: Duration = Duration::from_secs(1);
        let begun = Instant::now();
        while !self.turns.is_finished() && !was_away && begun.elapsed() < PATIENCE {
            std::thread::park_timeout(Duration::from_millis(2));
        }
        if was_away || !self.turns.is_finished() {
            return;
        }
        let inboxes: Vec<String> = inboxes.iter().map(|(inbox, _)| inbox.to_string()).collect();
        let what = json!({ "do": "leave", "node": self.broker.0.node, "ins": inboxes });
        let _ = self.broker.0.call(&self.broker.0.scripts.control, &what, &Blobs::default());
    }
}
