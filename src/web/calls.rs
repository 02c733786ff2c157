//! Where the gate's questions are answered: the broker's at once where a call takes microseconds, on a thread of their own
//! where it may wait for a network; pages by the inner server. And the thread that looks each second for who listens.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::inner::Pool;
use super::pages::Pages;
use super::questions::{Answered, Back, Question};
use super::watch::Watch;
use crate::bell::Bell;
use crate::limits::{INNER_CONNECTIONS, INNER_RESERVED};
use crate::ports::{BackendError, Producer, Reached, Viewer};
use crate::problem::Code;

/// Questions that wait for the thread: more than that, and the backend is as good as away.
const QUESTIONS: usize = 65_536;
/// Answers with results in them that wait for the loop: whoever has made one more waits, so that none piles up beside the
/// budget of what clients have not read.
const LARGE_ANSWERS: usize = INNER_CONNECTIONS + INNER_RESERVED;

/// See the module.
pub struct Calls {
    producer: Arc<dyn Producer>,
    /// `Some` iff calls may wait.
    thread: Option<(SyncSender<Question>, JoinHandle<()>)>,
    /// Tells who listens what happens.
    watcher: JoinHandle<()>,
    pages: Pool,
    back: Back,
    answers: Receiver<Answered>,
    large: Receiver<Answered>,
}

impl Calls {
    /// Answers that come later ring the bell.
    pub fn new(pages: Pages, socket: &Path, calls_may_wait: bool, bell: Bell) -> Result<Calls, String> {
        let ((sender, answers), (large_sender, large)) = (channel(), sync_channel(LARGE_ANSWERS));
        let other_bell = bell.clone();
        let back: Back = Arc::new(move |answered| {
            let _ = sender.send(answered);
            bell.ring();
        });
        let large_back: Back = Arc::new(move |answered| {
            let _ = large_sender.send(answered);
            other_bell.ring();
        });
        let producer = pages.producer.clone();
        let pages = Arc::new(pages);
        let (watched, told) = (pages.clone(), large_back.clone());
        let watcher = std::thread::Builder::new().name("watch".into());
        let watcher = watcher.spawn(move || watch(&watched, &told)).map_err(|error| error.to_string())?;
        let pages = Pool::open(pages, socket, &large_back);
        let pages = pages.map_err(|error| format!("{}: {error}", socket.display()))?;
        let mut thread = None;
        if calls_may_wait {
            let (questions, asked) = sync_channel(QUESTIONS);
            let (producer, back) = (producer.clone(), large_back);
            let builder = std::thread::Builder::new().name("broker-calls".into());
            let work = builder.spawn(move || answer_all(&asked, &*producer, &back));
            thread = Some((questions, work.map_err(|error| error.to_string())?));
        }
        Ok(Calls { producer, thread, watcher, pages, back, answers, large })
    }

    /// Asks all of these, in their order. What was answered at once, and since the last call.
    pub fn ask(&self, questions: Vec<Question>) -> Vec<Answered> {
        let mut answers = Vec::with_capacity(questions.len());
        for question in questions {
            match (question, &self.thread) {
                (Question::Page(request), _) => answers.extend(self.pages.ask(request)),
                (question, None) => answers.extend(answer(question, Ok(&*self.producer))),
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
                        answers.extend(answer(question, Err(error)));
                    }
                }
            }
        }
        answers.extend(self.answers.try_iter());
        answers.extend(self.large.try_iter().take(LARGE_ANSWERS));
        answers
    }

    /// False once one of its threads has ended: somebody would not be answered any more.
    pub fn is_sound(&self) -> bool {
        let is_there = |thread: &JoinHandle<()>| !thread.is_finished();
        self.thread.as_ref().is_none_or(|(_, thread)| is_there(thread))
            && is_there(&self.watcher)
            && self.pages.is_sound()
    }
}

/// Looks for as long as the process lives. Without listeners it only takes its samples.
fn watch(pages: &Pages, back: &Back) {
    let mut watch = Watch::new();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let (is_due, is_heard) = (watch.tick(), pages.counters.listeners.load(Relaxed) > 0);
        if !is_due && !is_heard {
            continue;
        }
        let Ok(stats) = pages.producer.stats() else { continue };
        let looked = pages.producer.recent_ends(watch.ends);
        let news = watch.look(&stats, &pages.figures(&stats), looked, pages.clock.now());
        if is_heard {
            back(Answered::News(Arc::new(news)));
        }
    }
}

fn answer_all(asked: &Receiver<Question>, producer: &dyn Producer, back: &Back) {
    while let Ok(question) = asked.recv() {
        let answered = answer(question, Ok(producer));
        if let Some(Answered::Record(_, Err(error))) = &answered {
            // Who asked meanwhile has waited as long: nobody waits for two calls that fail.
            let unasked = asked.try_iter().filter_map(|question| answer(question, Err(error.clone())));
            unasked.for_each(|unasked| back(unasked));
        }
        answered.into_iter().for_each(|answered| back(answered));
    }
}

/// Asks the broker, or says why it cannot be asked.
pub fn answer(question: Question, broker: Reached<&dyn Producer>) -> Option<Answered> {
    Some(match question {
        Question::Submit(ticket, jobs) => {
            Answered::Submitted(ticket, broker.and_then(|broker| broker.submit(jobs)))
        }
        Question::Record(asker, viewer, id, watches) => {
            let record = broker.and_then(|broker| match watches {
                Some(instance) => broker.watch(&viewer, id, instance),
                None => broker.record(&viewer, id),
            });
            Answered::Record(asker, record)
        }
        Question::Ended(jobs) => {
            let (ended, unsure) = match broker {
                Ok(broker) => broker.ended(&jobs),
                Err(_) => (Vec::new(), jobs),
            };
            Answered::Ended(ended, unsure)
        }
        Question::Abandoned(id, of) => {
            let cancelled = broker.and_then(|broker| {
                let viewer = Viewer::service();
                let record = broker.record(&viewer, id)?;
                let is_wanted = record.is_some_and(|record| of.contains(&record.spec.handler));
                if is_wanted { broker.cancel(&viewer, id).map(drop) } else { Ok(()) }
            });
            if let Err(error) = cancelled {
                log::warn!("job {id}, whose callers have hung up, could not be cancelled: {error}");
            }
            return None;
        }
        Question::Page(request) => request.refused(Code::InternalError, "the broker makes no pages"),
    })
}
