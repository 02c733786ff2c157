//! Where the gate's questions are answered: the broker's at once where a call takes microseconds, on a thread of their own
//! where it may wait for a network; pages by the inner server.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::thread::JoinHandle;

use super::inner::Pool;
use super::pages::Pages;
use super::questions::{Answered, Back, Question};
use crate::bell::Bell;
use crate::job::JobId;
use crate::ports::{BackendError, Producer, Viewer};
use crate::problem::Code;

/// Questions that wait for the thread: more than that, and the backend is as good as away.
const QUESTIONS: usize = 65_536;

/// See the module.
pub struct Calls {
    producer: Arc<dyn Producer>,
    /// `Some` iff calls may wait.
    thread: Option<(SyncSender<Question>, JoinHandle<()>)>,
    pages: Pool,
    back: Back,
    answers: Receiver<Answered>,
}

impl Calls {
    /// Answers that come later ring the bell.
    pub fn new(pages: Pages, socket: &Path, calls_may_wait: bool, bell: Bell) -> Result<Calls, String> {
        let (sender, answers) = channel();
        let back: Back = Arc::new(move |answered| {
            let _ = sender.send(answered);
            bell.ring();
        });
        let producer = pages.producer.clone();
        let pages = Pool::open(pages, socket, &back);
        let pages = pages.map_err(|error| format!("{}: {error}", socket.display()))?;
        let mut thread = None;
        if calls_may_wait {
            let (questions, asked) = sync_channel(QUESTIONS);
            let (producer, back) = (producer.clone(), back.clone());
            let builder = std::thread::Builder::new().name("broker-calls".into());
            let work = builder.spawn(move || answer_all(&asked, &*producer, &back));
            thread = Some((questions, work.map_err(|error| error.to_string())?));
        }
        Ok(Calls { producer, thread, pages, back, answers })
    }

    /// Asks all of these, in their order. What was answered at once, and since the last call.
    pub fn ask(&self, questions: Vec<Question>) -> Vec<Answered> {
        let mut answers = Vec::with_capacity(questions.len());
        for question in questions {
            match (question, &self.thread) {
                (Question::Page(request), _) => answers.extend(self.pages.ask(request)),
                (question, None) => answers.extend(answer(question, &*self.producer)),
                // Those that change lanes go one way, in their order, and never behind one that reads.
                (Question::Submit(ticket, jobs), Some(_)) => {
                    let back = self.back.clone();
                    let then = move |answers| back(Answered::Submitted(ticket, answers));
                    self.producer.submit_later(jobs, Box::new(then));
                }
                (question, Some((thread, _))) => {
                    if let Err(TrySendError::Full(question) | TrySendError::Disconnected(question)) =
                        thread.try_send(question)
                    {
                        let error = BackendError("too many questions wait for the backend".into());
                        answers.extend(unanswered(question, &error));
                    }
                }
            }
        }
        answers.extend(self.answers.try_iter());
        answers
    }

    /// False once one of its threads has ended: somebody would not be answered any more.
    pub fn is_sound(&self) -> bool {
        self.thread.as_ref().is_none_or(|(_, thread)| !thread.is_finished()) && self.pages.is_sound()
    }
}

fn answer_all(asked: &Receiver<Question>, producer: &dyn Producer, back: &Back) {
    while let Ok(question) = asked.recv() {
        let answered = answer(question, producer);
        if let Some(Answered::Record(_, Err(error))) = &answered {
            // Who asked meanwhile has waited as long: nobody waits for two calls that fail.
            asked.try_iter().filter_map(|question| unanswered(question, error)).for_each(|none| back(none));
        }
        answered.into_iter().for_each(|answered| back(answered));
    }
}

/// Asks the broker.
pub fn answer(question: Question, producer: &dyn Producer) -> Option<Answered> {
    let viewer = Viewer::anonymous();
    match question {
        Question::Submit(ticket, jobs) => Some(Answered::Submitted(ticket, producer.submit(jobs))),
        Question::Record(asker, id, watches) => {
            let record = match watches {
                Some(instance) => producer.watch(&viewer, id, instance),
                None => producer.record(&viewer, id),
            };
            Some(Answered::Record(asker, record))
        }
        Question::Ended(jobs) => {
            let (ended, unsure) = producer.ended(&jobs);
            Some(Answered::Ended(ended, unsure))
        }
        Question::Abandoned(id, of) => {
            let cancelled = producer.record(&viewer, id).and_then(|record| {
                let wanted = record.is_some_and(|record| of.contains(&record.spec.handler));
                if wanted { producer.cancel(&viewer, id).map(drop) } else { Ok(()) }
            });
            cancelled.unwrap_or_else(|error| not_cancelled(id, &error));
            None
        }
        Question::Page(request) => Some(request.refused(Code::InternalError, "the broker makes no pages")),
    }
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
        Question::Page(request) => Some(request.refused(Code::BackendUnavailable, &error.0)),
    }
}

fn not_cancelled(id: JobId, error: &BackendError) {
    log::warn!("job {id}, whose callers have hung up, could not be cancelled: {error}");
}
