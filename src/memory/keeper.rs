//! The journal's seat: who writes turns, the thread that syncs them, and who waits for them.
//!
//! A turn is written where it was said, on the thread of the process's loop, if that is one write; else on the journal's own thread,
//! which also syncs: with `always` at once, while the next turns gather, with `interval` a little later. What leaves this process waits
//! for the turn that says it: answers, ends, leases. With `always` until that is synced, with `interval` until it is written.
//! A write or a sync that fails for good ends all of it: nothing was answered that is not written.
//!
//! Whoever has the log takes the turns, in their order; the broker's lock is taken after the log's.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::broker::Broker;
use super::facts::Facts;
use super::shared::{Keeping, MemoryBroker, Pages, Waiting};
use crate::bell::{Bell, lock};
use crate::clock::{Clock, Timestamp};
use crate::job::JobId;
use crate::journal::{Failure, Log};
use crate::negative_controls::{Control, is_off};
use crate::ports::{BackendError, Reached, Refusal, Seat, Submitted};

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

/// What keeps a journal. Dropping it writes the rest.
pub struct Keeper {
    broker: MemoryBroker,
    log: Arc<Mutex<Log>>,
    thread: Option<JoinHandle<()>>,
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
        broker.lock().pages = Pages { keeping, ..Pages::default() };
        broker.say_full((!log.has_room()).then(|| ENDS_ALONE.into()));
        let log = Arc::new(Mutex::new(log));
        let (writing, shared) = (broker.clone(), log.clone());
        let builder = std::thread::Builder::new().name("journal".into());
        let work = move || writing.write_on(&shared).unwrap_or_else(|failure| writing.fail(&failure));
        let thread = Some(builder.spawn(work)?);
        Ok((broker.clone(), Keeper { broker, log, thread }))
    }

    /// Returns once a turn is written.
    pub(super) fn wait_for(&self, turn: u64) -> Reached<()> {
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
                pages.is_due |= pages.keeping.is_inline;
                return;
            }
        };
        drop(state);
        (waiting.then)(answer);
    }

    /// The journal's thread: turns that nobody else writes, looks for room and for what is to be written again, and syncs.
    fn write_on(&self, log: &Mutex<Log>) -> Result<(), Failure> {
        let mut begun = Instant::now();
        loop {
            let mut state = self.lock();
            let has_news = state.broker.seen_turn() > state.broker.taken_turns();
            let pages = &mut state.pages;
            if pages.failed.is_some() {
                return Ok(());
            }
            let patience = match pages.full {
                _ if has_news => LATEST,
                Some(_) => LOOK_AGAIN,
                None => LONGEST,
            };
            let (now, latest, is_last) = (Instant::now(), begun + patience, pages.is_closed);
            let writes = std::mem::take(&mut pages.is_due) && has_news || latest <= now || is_last;
            let syncs = pages.sync_at.is_some_and(|at| at <= now);
            if !writes && !syncs {
                let rest = pages.sync_at.map_or(latest, |at| at.min(latest)).saturating_duration_since(now);
                drop(self.0.filled.wait_timeout(state, rest));
                continue;
            }
            drop(state);
            // First, as there may be no room for what is written next for a long time.
            if syncs {
                self.sync(log)?;
            }
            if writes {
                self.write(&mut lock(log))?;
            }
            if is_last {
                return self.sync(log);
            }
            begun = Instant::now();
        }
    }

    /// Nothing will be written any more.
    fn fail(&self, failure: &Failure) {
        let error = format!("the journal cannot be written any more: {failure}");
        log::error!("{error}");
        let mut state = self.lock();
        state.pages.failed = Some(error.clone());
        let unanswered = std::mem::take(&mut state.pages.answers);
        drop(state);
        self.0.written.notify_all();
        self.0.filled.notify_all();
        unanswered.into_iter().for_each(|waiting| (waiting.then)(Err(BackendError(error.clone()))));
    }

    /// Takes what is to be written, and about as much again of what the oldest segment is there for.
    fn take_turn(&self, log: &mut Log) -> Facts {
        let mut state = self.lock();
        let mut facts = state.broker.take_facts();
        let (live, most, mut again) = (state.broker.live_bytes(), AGAIN_BYTES.max(2 * facts.bytes.len()), 0);
        while again < most
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
        if again > 0 {
            let more = state.broker.take_facts();
            facts.bytes.extend(more.bytes);
            facts.bases.extend(more.bases);
        }
        facts
    }

    /// Writes a turn where it was said, or leaves it to the journal's thread.
    fn write_here(&self, log: &mut Log) {
        let mut facts = self.take_turn(log);
        if log.is_plain(facts.bytes.len()) {
            match log.append(self.0.clock.now(), facts.last_fence, &facts.bytes, &mut facts.bases) {
                Ok(()) => return self.set_appended(),
                Err(failure @ Failure::Broken(_)) => return self.fail(&failure),
                Err(Failure::NoRoom(_)) => {}
            }
        }
        let mut state = self.lock();
        state.broker.put_back_facts(&facts);
        state.pages.is_due = true;
        self.0.filled.notify_one();
    }

    /// Writes a turn, however long there is no room for it.
    fn write(&self, log: &mut Log) -> Result<(), Failure> {
        log.try_spare()?;
        let mut facts = self.take_turn(log);
        let mut is_less = false;
        // Also where nothing is to be said but that a segment is not needed any more.
        while (!facts.bytes.is_empty() || log.leaves_some())
            && let Err(failure) =
                log.append(self.0.clock.now(), facts.last_fence, &facts.bytes, &mut facts.bases)
        {
            let Failure::NoRoom(why) = &failure else { return Err(failure) };
            self.say_full(Some(why.clone()));
            if self.lock().pages.is_closed {
                return Err(failure);
            }
            match self.take_back(&facts) {
                Some(less) => (facts, is_less) = (less, true),
                None if facts.bytes.is_empty() => break,
                None => {
                    // A frame that only leaves segments behind may find room, and makes some, unless what it leaves is in this turn.
                    if facts.bases.is_empty()
                        && log.leaves_some()
                        && let Err(failure @ Failure::Broken(_)) =
                            log.append(self.0.clock.now(), facts.last_fence, &[], &mut Vec::new())
                    {
                        return Err(failure);
                    }
                    log.sync()?;
                    log.try_spare()?;
                    std::thread::sleep(LOOK_AGAIN);
                }
            }
        }
        // Who was refused is not tried again at once.
        if !is_less {
            self.say_full((!log.has_room()).then(|| ENDS_ALONE.into()));
        }
        self.set_appended();
        Ok(())
    }

    /// There is no room for a turn: jobs that are new in it are refused, since nobody was told that they are not. What there is
    /// to be written then, if that is less.
    fn take_back(&self, facts: &Facts) -> Option<Facts> {
        let mut state = self.lock();
        let turn = state.broker.taken_turns();
        let is_new = |answer: &Submitted| *answer == Submitted::New;
        // What was appended is only to be synced.
        let turns = state.pages.appended + 1..=turn;
        let unwritten = state.pages.answers.iter().filter(|waiting| turns.contains(&waiting.turn));
        let jobs = unwritten.flat_map(|waiting| waiting.jobs.iter().zip(&waiting.answers));
        let gone: Vec<JobId> = jobs.filter(|(_, answer)| is_new(answer)).map(|(job, _)| *job).collect();
        if gone.is_empty() {
            return None;
        }
        state.broker.take_back(&gone, self.0.clock.now());
        let gone: HashSet<JobId> = gone.into_iter().collect();
        let mut refused = Vec::new();
        for mut waiting in std::mem::take(&mut state.pages.answers) {
            let mut is_refused = false;
            for (job, answer) in waiting.jobs.iter().zip(&mut waiting.answers) {
                // Who has joined one of these has joined nothing.
                let joined = if let Submitted::Existing(record) = &*answer { &record.spec.id } else { job };
                if gone.contains(joined) {
                    *answer = Submitted::Refused(Refusal::DiskFull);
                    is_refused = true;
                }
            }
            if is_refused && waiting.turn <= turn {
                refused.push(waiting);
            } else {
                state.pages.answers.push_back(waiting);
            }
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

    /// What was taken is written: a sync is due, at once or later.
    fn set_appended(&self) {
        let mut state = self.lock();
        let turn = state.broker.taken_turns();
        let pages = &mut state.pages;
        if std::mem::replace(&mut pages.appended, turn) == turn {
            return;
        }
        let interval = pages.keeping.interval;
        if pages.sync_at.is_none() {
            pages.sync_at = Some(Instant::now() + interval.unwrap_or_default());
            self.0.filled.notify_one();
        }
        drop(state);
        if interval.is_some() {
            self.tell(turn);
        }
    }

    /// Syncs what was written until now; others write meanwhile.
    fn sync(&self, log: &Mutex<Log>) -> Result<(), Failure> {
        let (turn, (sync, sequence)) = {
            let (mut log, mut state) = (lock(log), self.lock());
            state.pages.sync_at = None;
            (state.pages.appended, log.to_sync()?)
        };
        sync()?;
        lock(log).set_synced(sequence);
        self.tell(turn);
        Ok(())
    }

    /// All up to this turn is as safe as was promised.
    fn tell(&self, turn: u64) {
        let mut state = self.lock();
        if state.pages.written >= turn {
            return;
        }
        state.pages.written = turn;
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
        let has_ended = state.pages.is_closed || state.pages.failed.is_some();
        if has_ended || state.broker.seen_turn() == state.broker.taken_turns() {
            return;
        }
        match self.log.try_lock() {
            Ok(mut log) => {
                drop(state);
                self.broker.write_here(&mut log);
            }
            // It is being written, and this is due then.
            Err(_) => state.pages.is_due = true,
        }
    }

    /// What is queued stays queued, and is run by whoever comes next.
    fn drain(&self, callers_wait: bool, _deadline: Timestamp) -> bool {
        let (is_idle, turn) = self.broker.with_turn(|state, _| state.broker.drain(!callers_wait));
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
