//! Where the gate's questions to the broker are answered: at once where a call takes microseconds, on a thread of their
//! own where it may wait for a network.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use super::questions::{Answered, Question};
use crate::bell::{Bell, lock};
use crate::job::JobId;
use crate::ports::{BackendError, Producer, Viewer};

/// Questions that wait for the thread: more than that, and the backend is as good as away.
const QUESTIONS: usize = 65_536;

/// See the module.
pub(super) struct BrokerCalls {
    producer: Arc<dyn Producer>,
    shared: Arc<Shared>,
    /// `Some` iff calls may wait.
    thread: Option<JoinHandle<()>>,
    bell: Bell,
}

/// What lies between the loop, the thread, and whoever answers submissions.
#[derive(Default)]
struct Shared {
    questions: Mutex<Vec<Question>>,
    answers: Mutex<Vec<Answered>>,
    /// Something was asked.
    filled: Condvar,
}

impl BrokerCalls {
    /// Answers ring the bell, where calls may wait.
    pub(super) fn new(
        producer: Arc<dyn Producer>,
        calls_may_wait: bool,
        bell: Bell,
    ) -> std::io::Result<BrokerCalls> {
        let shared = Arc::new(Shared::default());
        let mut thread = None;
        if calls_may_wait {
            let (works, asked, rung) = (shared.clone(), producer.clone(), bell.clone());
            let builder = std::thread::Builder::new().name("broker-calls".into());
            thread = Some(builder.spawn(move || works.work(&*asked, &rung))?);
        }
        Ok(BrokerCalls { producer, shared, thread, bell })
    }

    /// Asks all of these, in their order.
    pub(super) fn ask(&mut self, questions: Vec<Question>) {
        if self.thread.is_none() {
            return lock(&self.shared.answers).extend(answer(questions, &*self.producer));
        }
        for question in questions {
            match question {
                // Those that change lanes go one way, in their order, and never behind one that reads.
                Question::Submit(ticket, jobs) => {
                    let (shared, bell) = (self.shared.clone(), self.bell.clone());
                    let then = move |answers| {
                        lock(&shared.answers).push(Answered::Submitted(ticket, answers));
                        bell.ring();
                    };
                    self.producer.submit_later(jobs, Box::new(then));
                }
                other => self.shared.ask(other),
            }
        }
    }

    /// What was answered since the last call.
    pub(super) fn take_answers(&mut self) -> Vec<Answered> {
        std::mem::take(&mut lock(&self.shared.answers))
    }

    /// False once its thread has ended, which is a bug of ours: nobody would be answered any more.
    pub(super) fn is_sound(&self) -> bool {
        self.thread.as_ref().is_none_or(|thread| !thread.is_finished())
    }
}

impl Shared {
    fn ask(&self, question: Question) {
        let mut questions = lock(&self.questions);
        if questions.len() < QUESTIONS {
            questions.push(question);
            self.filled.notify_one();
        } else {
            let error = BackendError("too many questions wait for the backend".into());
            lock(&self.answers).extend(unanswered(question, &error));
        }
    }

    fn work(&self, producer: &dyn Producer, bell: &Bell) {
        loop {
            let questions = self.filled.wait_while(lock(&self.questions), |questions| questions.is_empty());
            let questions =
                std::mem::take(&mut *questions.unwrap_or_else(std::sync::PoisonError::into_inner));
            let answers = answer(questions, producer);
            let is_away = answers.iter().find_map(|answered| match answered {
                Answered::Record(_, answer) => answer.as_ref().err().cloned(),
                // Submissions are not asked here.
                Answered::Submitted(..) | Answered::Ended(..) => None,
            });
            if let Some(error) = is_away {
                // Who asked meanwhile has waited as long: nobody waits for two calls that fail.
                let waiting = std::mem::take(&mut *lock(&self.questions));
                let unanswered = waiting.into_iter().filter_map(|question| unanswered(question, &error));
                lock(&self.answers).extend(unanswered);
            }
            lock(&self.answers).extend(answers);
            bell.ring();
        }
    }
}

/// Asks the broker.
pub fn answer(questions: Vec<Question>, producer: &dyn Producer) -> Vec<Answered> {
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        match question {
            Question::Submit(ticket, jobs) => {
                answers.push(Answered::Submitted(ticket, producer.submit(jobs)));
            }
            Question::Record(asker, id, watches) => {
                let viewer = Viewer::anonymous();
                let record = match watches {
                    Some(instance) => producer.watch(&viewer, id, instance),
                    None => producer.record(&viewer, id),
                };
                answers.push(Answered::Record(asker, record));
            }
            Question::Ended(jobs) => {
                let (ended, unsure) = producer.ended(&jobs);
                answers.push(Answered::Ended(ended, unsure));
            }
            Question::Abandoned(id, of) => {
                let viewer = Viewer::anonymous();
                let cancelled = producer.record(&viewer, id).and_then(|record| {
                    let wanted = record.is_some_and(|record| of.contains(&record.spec.handler));
                    if wanted { producer.cancel(&viewer, id).map(drop) } else { Ok(()) }
                });
                cancelled.unwrap_or_else(|error| not_cancelled(id, &error));
            }
        }
    }
    answers
}

/// The answer to a question that was not asked.
fn unanswered(question: Question, error: &BackendError) -> Option<Answered> {
    match question {
        Question::Submit(ticket, _) => Some(Answered::Submitted(ticket, Err(error.clone()))),
        Question::Record(asker, ..) => Some(Answered::Record(asker, Err(error.clone()))),
        Question::Ended(ids) => Some(Answered::Ended(Vec::new(), ids)),
        Question::Abandoned(id, _) => {
            not_cancelled(id, error);
            None
        }
    }
}

fn not_cancelled(id: JobId, error: &BackendError) {
    log::warn!("job {id}, whose callers have hung up, could not be cancelled: {error}");
}
