//! The journal's seat: the thread that writes turns, and those who wait for it.
//!
//! While one turn is being written the next one gathers. What leaves this process waits for the turn that says it: answers,
//! ends, leases. A turn that fails for good ends all of it: nothing was answered that is not written.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::broker::Broker;
use super::facts::Facts;
use super::shared::{MemoryBroker, Pages, Waiting};
use crate::bell::Bell;
use crate::clock::{Clock, Timestamp};
use crate::job::JobId;
use crate::journal::{Failure, Log};
use crate::negative_controls::{Control, is_off};
use crate::ports::{BackendError, Refusal, Seat, Submitted};

/// What is written again in one turn, about: the traffic beside it goes on.
const AGAIN_BYTES: usize = 128 << 10;
/// What a look counts for.
const LOOK_BYTES: usize = 64;
/// Room is looked for again after this long.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// What has changed without anybody who waits for it is written by then.
const LATEST: Duration = Duration::from_millis(50);
/// Why nothing is taken while the last space that is taken is in use.
const ENDS_ALONE: &str = "there is room for ends alone";
/// Who asks waits so long for a disk that is full.
const PATIENCE: Duration = Duration::from_secs(1);
/// Nothing is left alone for longer.
const LONGEST: Duration = Duration::from_secs(1);

/// The thread that keeps a journal. Dropping it writes the rest.
pub struct Keeper {
    broker: MemoryBroker,
    thread: Option<JoinHandle<()>>,
}

/// How turns are kept.
#[derive(Clone, Copy, Debug)]
pub struct Keeping {
    /// `None`: each turn is synced.
    pub interval: Option<Duration>,
    /// Executors are threads of this process.
    pub is_inline: bool,
}

impl MemoryBroker {
    /// Takes over a broker that [keeps a journal](Broker::keep_journal), and that journal.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn keep(
        broker: Broker,
        clock: Clock,
        groups: Vec<Arc<str>>,
        log: Log,
        keeping: Keeping,
    ) -> std::io::Result<(MemoryBroker, Keeper)> {
        let broker = MemoryBroker::new(broker, clock, groups);
        let pages = Pages { written: 0, is_inline: keeping.is_inline, ..Pages::default() };
        broker.lock().pages = pages;
        broker.say_full((!log.has_room()).then(|| ENDS_ALONE.into()));
        let writing = broker.clone();
        let builder = std::thread::Builder::new().name("journal".into());
        let thread = Some(builder.spawn(move || writing.write_for_ever(log, keeping.interval))?);
        Ok((broker.clone(), Keeper { broker, thread }))
    }

    /// Returns once a turn is written.
    pub(super) fn wait_for(&self, turn: u64) -> Result<(), BackendError> {
        let mut state = self.lock();
        let begun = Instant::now();
        while state.pages.written < turn && !is_off(Control::JournalFirst) {
            let full = state.pages.full.as_ref().filter(|_| begun.elapsed() >= PATIENCE);
            if let Some(why) = state.pages.failed.as_ref().or(full) {
                return Err(BackendError(why.clone()));
            }
            state.pages.is_due = true;
            self.0.filled.notify_one();
            let waited = self.0.written.wait_timeout(state, PATIENCE);
            state = waited.expect("the broker's books are whole").0;
        }
        Ok(())
    }

    /// Returns once all that was changed is written (tests: a service waits for what it tells).
    pub fn settle(&self) {
        let ((), turn) = self.with_turn(|_, _| ());
        let _ = self.wait_for(turn);
    }

    pub(super) fn answer_after(&self, waiting: Waiting) {
        let mut state = self.lock();
        let pages = &mut state.pages;
        let is_written = pages.written >= waiting.turn || is_off(Control::JournalFirst);
        let answer = match &pages.failed {
            _ if is_written => Ok(waiting.answers),
            Some(why) => Err(BackendError(why.clone())),
            None => {
                pages.answers.push_back(waiting);
                pages.is_due |= pages.is_inline;
                return;
            }
        };
        drop(state);
        (waiting.then)(answer);
    }

    fn write_for_ever(&self, mut log: Log, interval: Option<Duration>) {
        let (mut sync_at, mut new_bytes) = (None::<Instant>, 0);
        let failed = loop {
            let Some((facts, at, again)) = self.next_turn(&mut log, sync_at, new_bytes) else {
                match log.sync() {
                    Ok(()) => return,
                    Err(failure) => break failure,
                }
            };
            new_bytes = facts.bytes.len().saturating_sub(again).max(new_bytes / 2);
            let written = self.write(&mut log, facts, at);
            let written = written.and_then(|has_written| {
                let due = interval.filter(|_| has_written).map(|interval| Instant::now() + interval);
                sync_at = sync_at.or(due);
                if sync_at.is_some_and(|at| at <= Instant::now()) {
                    sync_at = None;
                    log.sync()?;
                }
                Ok(())
            });
            if let Err(failure) = written {
                break failure;
            }
        };
        let error = format!("the journal cannot be written any more: {failed}");
        log::error!("{error}");
        let mut state = self.lock();
        state.pages.failed = Some(error.clone());
        let unanswered = std::mem::take(&mut state.pages.answers);
        drop(state);
        self.0.written.notify_all();
        unanswered.into_iter().for_each(|waiting| (waiting.then)(Err(BackendError(error.clone()))));
    }

    /// Waits for what is to be written, or for the next sync. `None`: all is written, and nothing will be. The turn before had
    /// so many bytes that were new: what is written again, which is told, keeps up with them.
    fn next_turn(
        &self,
        log: &mut Log,
        sync_at: Option<Instant>,
        new_bytes: usize,
    ) -> Option<(Facts, Timestamp, usize)> {
        let mut state = self.lock();
        let (begun, mut again) = (Instant::now(), 0);
        loop {
            let live = state.broker.live_bytes();
            while again < AGAIN_BYTES.max(2 * new_bytes)
                && let Some(thing) = log.outdated(live)
            {
                let bytes = state.broker.bytes_of(&thing);
                if bytes > 0 && (again + bytes) as u64 > log.room() {
                    log.keep(thing);
                    break;
                }
                state.broker.write_again(&thing);
                // One that is over costs a look.
                again += bytes.max(LOOK_BYTES);
            }
            let has_news = state.broker.seen_turn() > state.pages.written;
            let pages = &mut state.pages;
            pages.is_due &= has_news;
            let now = Instant::now();
            let is_late = has_news && now >= begun + LATEST;
            if pages.is_due || is_late || pages.is_closed && has_news {
                pages.is_due = false;
                return Some((state.broker.take_facts(), self.0.clock.now(), again));
            }
            if pages.is_closed {
                return None;
            }
            let look_at = pages.full.is_some().then(|| begun + LOOK_AGAIN);
            let due = [sync_at, look_at].into_iter().flatten().min();
            if due.is_some_and(|due| due <= now) {
                return Some((Facts::default(), self.0.clock.now(), 0));
            }
            let latest = if has_news { begun + LATEST } else { now + LONGEST };
            let rest = due.map_or(latest, |due| due.min(latest)).saturating_duration_since(now);
            let waited = self.0.filled.wait_timeout(state, rest);
            state = waited.expect("the broker's books are whole").0;
        }
    }

    /// Writes a turn, however long there is no room for it, and tells who waits. True if there was something.
    fn write(&self, log: &mut Log, mut facts: Facts, at: Timestamp) -> Result<bool, Failure> {
        log.try_spare()?;
        let has_facts = !facts.bytes.is_empty();
        let mut is_less = false;
        while !facts.bytes.is_empty()
            && let Err(failure) = log.append(at, facts.last_fence, &facts.bytes, &mut facts.bases)
        {
            let Failure::NoRoom(why) = &failure else { return Err(failure) };
            self.say_full(Some(why.clone()));
            if self.lock().pages.is_closed {
                return Err(failure);
            }
            match self.take_back(&facts) {
                Some(less) => (facts, is_less) = (less, true),
                None => std::thread::sleep(LOOK_AGAIN),
            }
        }
        // Who was refused is not tried again at once.
        if !is_less {
            self.say_full((!log.has_room()).then(|| ENDS_ALONE.into()));
        }
        self.tell_written();
        Ok(has_facts)
    }

    /// There is no room for a turn: jobs that are new in it are refused, since nobody was told that they are not. What there is
    /// to be written then, if that is less.
    fn take_back(&self, facts: &Facts) -> Option<Facts> {
        let mut state = self.lock();
        let turn = state.broker.taken_turns();
        let (mut refused, now) = (Vec::new(), self.0.clock.now());
        let is_new = |answer: &Submitted| *answer == Submitted::New;
        let all = std::mem::take(&mut state.pages.answers);
        for mut waiting in all {
            if waiting.turn > turn || !waiting.answers.iter().any(is_new) {
                state.pages.answers.push_back(waiting);
                continue;
            }
            let answers = waiting.jobs.iter().zip(&mut waiting.answers).filter(|(_, answer)| is_new(answer));
            let new: Vec<JobId> = answers
                .map(|(job, answer)| {
                    *answer = Submitted::Refused(Refusal::DiskFull);
                    *job
                })
                .collect();
            state.broker.take_back(&new, now);
            refused.push(waiting);
        }
        if refused.is_empty() {
            return None;
        }
        state.broker.put_back_facts(facts);
        let less = state.broker.take_facts();
        drop(state);
        refused.into_iter().for_each(|waiting| (waiting.then)(Ok(waiting.answers)));
        Some(less)
    }

    /// Why there is no room, or that there is: said once.
    fn say_full(&self, why: Option<String>) {
        let full = why.map(|why| format!("the journal's disk is full: {why}"));
        let was_full = std::mem::replace(&mut self.lock().pages.full, full.clone()).is_some();
        match full {
            Some(full) if !was_full => log::warn!("{full}: nothing is accepted until there is room"),
            None if was_full => log::info!("the journal's disk has room again"),
            Some(_) | None => {}
        }
    }

    /// What was taken is written.
    fn tell_written(&self) {
        let mut state = self.lock();
        let turn = state.broker.taken_turns();
        if std::mem::replace(&mut state.pages.written, turn) == turn {
            return;
        }
        let all = &mut state.pages.answers;
        let may_go = all.iter().take_while(|waiting| waiting.turn <= turn).count();
        let told: Vec<Waiting> = all.drain(..may_go).collect();
        let bells = state.bells();
        drop(state);
        self.0.written.notify_all();
        told.into_iter().for_each(|waiting| (waiting.then)(Ok(waiting.answers)));
        bells.iter().for_each(Bell::ring);
    }
}

impl Seat for Keeper {
    fn tick(&self, callers: usize) -> Option<Timestamp> {
        let next = self.broker.tick(callers);
        self.flush();
        next
    }

    fn flush(&self) {
        let mut state = self.broker.lock();
        if state.broker.seen_turn() > state.broker.taken_turns() {
            state.pages.is_due = true;
            drop(state);
            self.broker.0.filled.notify_one();
        }
    }

    /// What is queued stays queued, and is run by whoever comes next.
    fn is_drained(&self, callers_wait: bool, _deadline: Timestamp) -> bool {
        let (is_idle, turn) = self.broker.with_turn(|state, _| state.broker.is_at_rest(!callers_wait));
        is_idle && self.broker.lock().pages.written >= turn
    }

    fn cut_off(&self) -> Vec<JobId> {
        let (running, turn) = self.broker.with_turn(|state, now| state.broker.cut_off(now));
        let _ = self.broker.wait_for(turn);
        running
    }

    /// All that is so now is written, and nothing after it.
    fn close(&self) {
        self.broker.lock().pages.is_closed = true;
        self.broker.0.filled.notify_all();
        let begun = Instant::now();
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_sound(&self) -> bool {
        let is_there = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        let Pages { failed, is_closed, .. } = &self.broker.lock().pages;
        failed.is_none() && (is_there || *is_closed)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
