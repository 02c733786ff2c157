//! The broker in a process: what is said in turns, one call after the other, and the handles of those who wait for it.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::call::{Call, pushed};
use super::connection::is_full;
use super::listener::Listener;
use super::server::{Server, Settings};
use super::sums::Sums;
use super::turn::State;
use crate::bell::{Bell, lock};
use crate::config::secret::Secret;
use crate::entropy::Entropy;
use crate::job::{InstanceId, JobId};
use crate::ports::{
    BackendError, Consumer, Ends, Inbox, NewJob, Reached, Refusal, Replies, Requests, Step, Submitted, Then,
    Traced,
};

/// A process's handle to a deployment's broker; all clones are one.
#[derive(Clone)]
pub struct RedisBroker(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) server: Server,
    /// What the next call says, and the books of those who wait for it.
    pub(super) state: Mutex<State>,
    /// Rings when there is something to say.
    pub(super) filled: Condvar,
    /// Held by who takes a turn; with a call whose answer was lost: it may have been heard.
    turn: Mutex<(Entropy, Sums, Option<Call>)>,
    listener: Mutex<Listener>,
}

impl RedisBroker {
    /// Around a server that is not asked yet. The first secret signs, see [`Secret::envelope`]; all of them are known.
    ///
    /// # Errors
    /// The address makes no sense, or the password cannot be read.
    pub fn new(settings: Settings, envelopes: &[&Secret]) -> Result<RedisBroker, String> {
        let mut state = State::default();
        state.traced = Traced::new(settings.rules.exports_traces);
        Ok(RedisBroker(Arc::new(Shared {
            server: Server::new(settings, envelopes)?,
            state: Mutex::new(state),
            filled: Condvar::new(),
            turn: Mutex::new((Entropy::system(), Sums::default(), None)),
            listener: Mutex::default(),
        })))
    }

    /// Takes turns until there is nothing to say (tests: a service has threads for it).
    ///
    /// # Errors
    /// The backend is lost.
    pub fn settle(&self) -> Reached<()> {
        loop {
            // A connection that was cut is replaced.
            let heard = self.0.hear(Duration::ZERO).or_else(|_| self.0.hear(Duration::ZERO))?;
            if !heard && !lock(&self.0.state).rests(self.0.server.now()).is_zero() {
                return Ok(());
            }
            self.0.turn();
        }
    }

    /// What is said from now on is signed with the first of these secrets, and no others are known.
    pub fn rekey(&self, envelopes: &[Secret]) {
        self.0.server.rekey(envelopes);
    }

    /// Does what time alone does (tests: a service does it often enough).
    pub fn sweep(&self) {
        self.0.change(State::sweep);
    }

    /// An executor of this group; `bell` rings when a step would bring something.
    pub fn consumer(&self, group: usize, bell: Bell) -> RedisConsumer {
        let now = self.0.server.now();
        let number = self.0.change(|state| state.connect(group, bell, now));
        RedisConsumer { shared: self.0.clone(), number }
    }
}

impl Shared {
    /// Takes in what other processes say within so long; true if there was something. What is said while the server cannot
    /// be reached goes unheard, and is looked for where it is kept.
    pub(super) fn hear(&self, wait: Duration) -> Reached<bool> {
        let inboxes = lock(&self.state).inboxes();
        let heard = lock(&self.listener).hear(&self.server, &inboxes, wait)?;
        Ok(heard.map(|heard| self.change(|state| state.heard(heard))).is_some())
    }

    /// Changes the books; wakes whoever should say something, or look.
    pub(super) fn change<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        let mut state = lock(&self.state);
        let (done, rings, is_due) = (work(&mut state), std::mem::take(&mut state.rings), state.is_due());
        drop(state);
        if is_due {
            self.filled.notify_one();
        }
        rings.iter().for_each(Bell::ring);
        done
    }

    /// Says what there is to say, and what was in doubt before that.
    pub(super) fn turn(&self) {
        let (entropy, sums, in_doubt) = &mut *lock(&self.turn);
        let mut call = in_doubt.take().unwrap_or_else(|| {
            let draft = lock(&self.state).compose(self.server.now());
            Call::new(draft, &self.server, entropy, sums)
        });
        let error = match call.say(&self.server, sums) {
            Ok((answer, submitted)) => {
                let now = self.server.now();
                self.change(|state| state.answered(&call.commits, answer, now));
                return self.answer_submissions(call.take_submissions(), submitted);
            }
            Err(error) => error,
        };
        let mut unanswered = call.take_submissions();
        if is_full(&error) && !unanswered.is_empty() {
            // It was refused as a whole; the rest of it needs no memory.
            *in_doubt = Some(call);
        } else {
            let is_over = self.change(|state| {
                unanswered.append(&mut state.next.submissions);
                state.call_failed(&error, self.server.settings.rules.visibility, self.server.now())
            });
            *in_doubt = Some(call).filter(|_| !is_over);
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
                Some(answer) => {
                    let (word, id) = answer.split_once(' ').unwrap_or(("", answer));
                    let id = JobId::parse(id).ok_or(BackendError("redis: no id".into()))?;
                    Ok(match word {
                        "mismatch" => Submitted::Refused(Refusal::IdempotencyMismatch(Some(id))),
                        "gone" => Submitted::Refused(Refusal::ResultGone(id)),
                        // It has joined that one. A record that nobody signed, or that has gone at this moment, keeps the key.
                        _ => self
                            .server
                            .joined(job, id)?
                            .map_or(Submitted::Refused(Refusal::IdempotencyMismatch(None)), |record| {
                                Submitted::Existing(Box::new(record))
                            }),
                    })
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

impl Consumer for RedisConsumer {
    fn step(&mut self, requests: Requests, room: usize) -> Reached<Step> {
        self.shared.change(|state| state.step(self.number, requests, room))
    }

    fn extend(&mut self) {
        let (now, visibility) = (self.shared.server.now(), self.shared.server.settings.rules.visibility);
        self.shared.change(|state| state.extend(self.number, now, visibility));
    }

    fn is_settled(&self) -> bool {
        lock(&self.shared.state).is_settled(self.number)
    }
}

impl Drop for RedisConsumer {
    fn drop(&mut self) {
        self.shared.change(|state| state.disconnect(self.number));
    }
}

impl Replies for RedisBroker {
    fn subscribe(&self, instance: InstanceId, bell: Bell) -> Reached<Box<dyn Inbox>> {
        self.0.change(|state| state.subscribe(instance, bell));
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
        self.shared.change(|state| state.unsubscribe(self.instance));
    }
}
