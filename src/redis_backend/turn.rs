//! What a process says in its next call, and the books of those who wait for the answer. Pure.
//!
//! While one call is under way the next one gathers. The server judges what is said; these books only know whom to tell.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::books::{Books, Exec, Held, Named, Told, log_job};
use super::connection::PAUSES;
use super::listener::Heard;
use crate::bell::Bell;
use crate::clock::{Timestamp, millis};
use crate::job::{IdMap, InstanceId, JobId, JobStatus, Progress};
use crate::limits::INBOX_ENDS;
use crate::observe::event;
use crate::ports::{
    BackendError, Ends, JobEnded, Lease, LeaseId, NewJob, OfLease, Progressed, Reached, RecentEnds, Requests,
    Step, Then, Traced,
};

/// A process says of itself this often that it lives, and looks at what time alone does.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Times that come at once, or never by themselves.
const AT_ONCE: Timestamp = Timestamp(0);
const NEVER: Timestamp = Timestamp(u64::MAX);

/// See the module.
#[derive(Default)]
pub struct State {
    consumers: IdMap<u64, Books>,
    last_consumer: u64,
    /// What the next call says.
    pub next: Draft,
    /// There is more room for leases than at the last call.
    has_more_room: bool,
    /// `Some` while something is under way that this process waits for: the jobs whose outcomes are.
    calling: Option<Vec<JobId>>,
    /// Jobs whose leases were over before their outcomes could be told.
    untold: Vec<JobId>,
    inboxes: Vec<InboxBooks>,
    /// Groups with room after the last call.
    idle: Vec<usize>,
    /// Jobs whose ends this process has told the server.
    pub recent: RecentEnds,
    /// Of them those that may have spans to export.
    pub traced: Traced<JobId>,
    /// Bells to ring, once nobody holds this any more.
    pub rings: Vec<Bell>,
    /// The service stops: nothing is claimed unless somebody waits.
    is_draining: bool,
    claims_nothing: bool,
    /// Callers that wait here.
    pub callers: u64,
    tell_at: Timestamp,
    look_at: Timestamp,
    pub away: Option<Away>,
    pub is_closed: bool,
    /// A thread takes the turns.
    pub is_seated: bool,
}

/// What is said in one call, before it is signed.
#[derive(Default)]
pub struct Draft {
    /// The last that was said of each job. It makes no call: it goes with the next one, which is a second away at most.
    pub progress: BTreeMap<JobId, (Named, Progress)>,
    pub commits: Vec<Told>,
    pub releases: Vec<Named>,
    /// Executors that are lost.
    pub gone: Vec<u64>,
    pub forged: Vec<Forgery>,
    /// Jobs whose ends are to be signed: their executors were lost too often.
    pub bury: Vec<JobId>,
    pub left: Vec<String>,
    pub submissions: Vec<(Vec<NewJob>, Then)>,
    pub renewals: Vec<Named>,
    pub execs: Vec<Exec>,
    pub here: Vec<String>,
    /// Inboxes that nobody reads any more.
    pub closed: Vec<String>,
    pub idle: Vec<usize>,
    /// `Some` once a second: callers that wait, and each executor's group and leases.
    pub facts: Option<(u64, String)>,
    pub looks: bool,
    pub sweeps: bool,
}

struct InboxBooks {
    instance: InstanceId,
    bell: Bell,
    ended: VecDeque<JobEnded>,
    lost: bool,
    /// How often it was not there: after the first time it had vanished.
    opened: u64,
}

/// The server could not be reached.
pub struct Away {
    since: Timestamp,
    /// Since then nobody's lease can have ended without a word.
    leases_since: Timestamp,
    again_at: Timestamp,
    pause: Duration,
    /// As the log knows it.
    cause: String,
}

/// A lease whose job, of this handler, nobody of the deployment signed; or, without a job, its lane's state.
pub type Forgery = (Named, Option<JobId>, Arc<str>);

/// What a call has answered.
#[derive(Default)]
pub struct Answer {
    /// What became of each commit.
    pub results: Vec<String>,
    pub was_repeated: bool,
    /// Jobs that have ended with it, and did not succeed.
    pub failed: Vec<JobId>,
    pub leases: Vec<(u64, Lease, Held)>,
    pub forged: Vec<Forgery>,
    pub dying: Vec<JobId>,
    /// Leases on a state that is not known here any more: they are given back.
    pub unknown: Vec<Named>,
    pub over: Vec<LeaseId>,
    pub revoked: Vec<(u64, OfLease)>,
    pub ends: Vec<(InstanceId, JobEnded)>,
    pub idle: Vec<usize>,
    /// Until something is ready by time.
    pub due: Option<Duration>,
    /// Inboxes that were not there.
    pub opened: Vec<InstanceId>,
}

impl State {
    /// An executor of this group; its number.
    pub fn connect(&mut self, group: usize, bell: Bell, now: Timestamp) -> u64 {
        self.last_consumer += 1;
        let books = Books::new(group, bell, now);
        self.consumers.insert(self.last_consumer, books);
        // The others are told that there is such an executor.
        self.tell_at = AT_ONCE;
        self.last_consumer
    }

    /// It is gone. Each job that it held may have been running; when the service stops, that is nobody's fault.
    pub fn disconnect(&mut self, consumer: u64) {
        let Some(books) = self.consumers.remove(&consumer) else { return };
        self.tell_at = AT_ONCE;
        let how = match (self.is_draining, books.has_one_job()) {
            (true, _) => "cut",
            (false, true) => "alone",
            (false, false) => "others",
        };
        if self.is_draining {
            // Nobody here runs them again.
            self.untold.extend(books.held.values().filter_map(Held::running));
        }
        let named = books.held.iter().map(|(lease, held)| held.named(consumer, *lease, Some(how)));
        self.next.releases.extend(named);
        self.next.gone.push(consumer);
    }

    /// Takes what it says; gives what there is for it.
    pub fn step(&mut self, consumer: u64, requests: Requests, room: usize) -> Reached<Step> {
        let lost = || BackendError("redis: it was away until every lease had ended".into());
        let books = self.consumers.get_mut(&consumer).filter(|books| !books.is_lost).ok_or_else(lost)?;
        for Progressed { lease, job, progress } in requests.progress {
            let held = books.held.get(&lease).filter(|held| held.jobs.iter().any(|spec| spec.id == job));
            if let Some(held) = held {
                self.next.progress.insert(job, (held.named(consumer, lease, None), progress));
            }
        }
        for commit in requests.commits {
            self.next.commits.push(books.told(consumer, commit));
        }
        for lease in requests.releases {
            if let Some(held) = books.held.remove(&lease) {
                books.says = true;
                self.next.releases.push(held.named(consumer, lease, None));
            }
        }
        self.has_more_room |= room > books.room;
        books.room = room;
        Ok(std::mem::take(&mut books.out))
    }

    /// It lives: its leases are renewed, if that was not done lately.
    pub fn extend(&mut self, consumer: u64, now: Timestamp, visibility: Duration) {
        if let Some(books) = self.consumers.get_mut(&consumer) {
            books.renews |= !books.held.is_empty() && now.since(books.renewed_at) >= visibility / 3;
        }
    }

    pub fn is_settled(&self, consumer: u64) -> bool {
        self.consumers.get(&consumer).is_none_or(Books::is_settled)
    }

    /// These jobs are submitted with the next call, which does not wait any longer for a server that is away: their
    /// callers do.
    pub fn submit(&mut self, jobs: Vec<NewJob>, then: Then) {
        self.next.submissions.push((jobs, then));
        if let Some(away) = &mut self.away {
            away.again_at = AT_ONCE;
        }
    }

    /// Ends are told to this instance from now on.
    pub fn subscribe(&mut self, instance: InstanceId, bell: Bell) {
        let (ended, lost, opened) = Default::default();
        self.inboxes.push(InboxBooks { instance, bell, ended, lost, opened });
        self.tell_at = AT_ONCE;
    }

    pub fn unsubscribe(&mut self, instance: InstanceId) {
        self.inboxes.retain(|inbox| inbox.instance != instance);
        self.next.closed.push(instance.to_string());
    }

    /// With how often each was made.
    pub fn inboxes(&self) -> Vec<(InstanceId, u64)> {
        self.inboxes.iter().map(|inbox| (inbox.instance, inbox.opened)).collect()
    }

    pub fn take_ends(&mut self, instance: InstanceId, most: usize) -> Ends {
        let inbox = self.inboxes.iter_mut().find(|inbox| inbox.instance == instance);
        inbox.map_or_else(Ends::default, |inbox| Ends {
            ended: inbox.ended.drain(..most.min(inbox.ended.len())).collect(),
            lost: std::mem::take(&mut inbox.lost),
        })
    }

    /// A job has ended; whoever waits here hears of it.
    fn ended(&mut self, instance: InstanceId, ended: JobEnded) {
        if let Some(inbox) = self.inboxes.iter_mut().find(|inbox| inbox.instance == instance) {
            match inbox.ended.len() < INBOX_ENDS {
                true => inbox.ended.push_back(ended),
                false => inbox.lost = true,
            }
            self.rings.push(inbox.bell.clone());
        }
    }

    /// Some ends may have gone unheard.
    fn lost_ends(&mut self) {
        for inbox in &mut self.inboxes {
            inbox.lost = true;
            self.rings.push(inbox.bell.clone());
        }
    }

    /// What other processes say: of ends, of work.
    pub fn heard(&mut self, heard: Heard) {
        if heard.looks {
            self.look_at = AT_ONCE;
        }
        if heard.lost {
            self.lost_ends();
        }
        heard.ends.into_iter().for_each(|(inbox, ended)| self.ended(inbox, ended));
    }

    /// The next call does what time alone does (tests; a service does it often enough).
    pub fn sweep(&mut self) {
        (self.look_at, self.next.sweeps) = (AT_ONCE, true);
    }

    /// Nothing is claimed any more, and the last that is said is that this process has gone.
    pub fn close(&mut self, node: String) {
        (self.is_closed, self.claims_nothing) = (true, true);
        self.next.left.push(node);
        self.next.closed.extend(self.inboxes.iter().map(|inbox| inbox.instance.to_string()));
    }

    /// The service stops; work goes on while somebody waits for it. True once nothing runs here.
    pub fn drain(&mut self, callers_wait: bool) -> bool {
        if self.claims_nothing && callers_wait {
            self.look_at = AT_ONCE;
        }
        (self.is_draining, self.claims_nothing) = (true, !callers_wait);
        !callers_wait
            && self.calling.is_none()
            && self.next.is_empty()
            && self.consumers.values().all(Books::is_idle)
    }

    /// Every lease is given back; the jobs that ran, and those whose outcomes nobody has heard.
    pub fn cut_off(&mut self) -> Vec<JobId> {
        self.claims_nothing = true;
        let mut jobs = std::mem::take(&mut self.untold);
        jobs.extend(self.calling.iter_mut().flat_map(std::mem::take));
        jobs.extend(self.next.commits.iter().map(|told| told.commit.job));
        for (consumer, books) in &mut self.consumers {
            for (lease, held) in std::mem::take(&mut books.held) {
                jobs.extend(held.running());
                self.next.releases.push(held.named(*consumer, lease, Some("cut")));
            }
        }
        jobs
    }

    /// Something is to be said now.
    pub fn is_due(&self) -> bool {
        self.has_more_room
            || self.tell_at.min(self.look_at) == AT_ONCE
            || !self.next.is_empty()
            || self.consumers.values().any(|books| books.renews)
    }

    /// How long nothing need be said.
    pub fn rests(&self, now: Timestamp) -> Duration {
        if let Some(away) = &self.away {
            return away.again_at.since(now);
        }
        if self.is_due() {
            return Duration::ZERO;
        }
        self.tell_at.min(self.look_at).since(now)
    }

    /// Takes what is to be said now.
    pub fn compose(&mut self, now: Timestamp) -> Draft {
        let mut draft = std::mem::take(&mut self.next);
        self.has_more_room = false;
        draft.looks = now >= self.tell_at.min(self.look_at);
        if draft.looks {
            self.look_at = NEVER;
        }
        if now >= self.tell_at && !self.is_closed {
            self.tell_at = now.plus(TELL_EVERY);
            draft.facts = Some(self.facts());
        }
        for (consumer, books) in &mut self.consumers {
            if std::mem::take(&mut books.renews) {
                books.renewed_at = now;
                draft
                    .renewals
                    .extend(books.held.iter().map(|(lease, held)| held.named(*consumer, *lease, None)));
            }
            books.waits = std::mem::take(&mut books.says);
            let room = books.room.saturating_sub(books.held.len());
            let is_alone = books.held.values().any(|held| held.is_alone);
            if !self.claims_nothing && room > 0 && !books.is_lost && !is_alone {
                let mut used = BTreeMap::new();
                books.held.values().for_each(|held| *used.entry(held.handler.clone()).or_default() += 1);
                books.waits = true;
                let (group, prefers_alone) = (books.group, books.prefers_alone);
                draft.execs.push(Exec { consumer: *consumer, group, room, used, prefers_alone });
            }
        }
        let jobs = || draft.commits.iter().map(|told| told.commit.job).collect();
        let says = !(draft.commits.is_empty() && draft.releases.is_empty() && draft.submissions.is_empty());
        self.calling = (says || !draft.execs.is_empty()).then(jobs);
        draft.idle.clone_from(&self.idle);
        draft.here = self.inboxes.iter().map(|inbox| inbox.instance.to_string()).collect();
        draft
    }

    /// Callers that wait here; group and leases of each executor.
    pub fn facts(&self) -> (u64, String) {
        let executor = |books: &Books| format!("{}:{} ", books.group, books.held.len());
        (self.callers, self.consumers.values().map(executor).collect())
    }

    /// A call was answered.
    pub fn answered(&mut self, commits: &[Told], answer: Answer, now: Timestamp) {
        self.calling = None;
        self.consumers.values_mut().for_each(|books| books.waits = false);
        if let Some(away) = self.away.take() {
            if !self.is_draining {
                // Their executors have been told; from now on they run again.
                self.untold.clear();
            }
            event(log::Level::Info, "backend.back").number("after_ms", millis(now.since(away.since))).emit();
        }
        for (told, result) in commits.iter().zip(answer.results) {
            if result != "fenced" {
                told.log();
                let ended = told.status().filter(|_| result == "committed");
                if let Some((spec, status)) = told.spec.clone().zip(ended) {
                    // Of one that did not succeed the call itself tells.
                    if status == JobStatus::Succeeded && spec.trace.parent.is_some() {
                        self.traced.push(spec.id);
                    }
                    self.recent.push(spec, status, now);
                }
            } else if let Some(books) = self.consumers.get_mut(&told.consumer) {
                books.is_fenced(&told.commit);
            }
        }
        answer.failed.into_iter().for_each(|job| self.traced.push(job));
        for (consumer, lease, held) in answer.leases {
            match self.consumers.get_mut(&consumer).filter(|books| !books.is_lost) {
                Some(books) => {
                    held.jobs.first().iter().for_each(|first| log_job("queue.claimed", first));
                    books.prefers_alone = held.is_alone;
                    books.held.insert(lease.id, held);
                    books.out.leases.push(lease);
                }
                // Its executor has gone meanwhile, before it heard of it.
                None => self.next.releases.push(held.named(consumer, lease.id, None)),
            }
        }
        for lease in answer.over {
            self.consumers.values_mut().for_each(|books| books.is_over(lease));
        }
        for (consumer, of) in answer.revoked {
            if let Some(books) = self.consumers.get_mut(&consumer) {
                books.revoke(of);
            }
        }
        // An executor without room waits for having settled.
        let should_look = |books: &&Books| !books.out.is_empty() || books.room == 0 && books.is_settled();
        self.rings.extend(self.consumers.values().filter(should_look).map(|books| books.bell.clone()));
        for (instance, ended) in answer.ends {
            self.ended(instance, ended);
        }
        for inbox in self.inboxes.iter_mut().filter(|inbox| answer.opened.contains(&inbox.instance)) {
            inbox.opened += 1;
            if inbox.opened > 1 {
                inbox.lost = true;
                self.rings.push(inbox.bell.clone());
            }
        }
        if answer.was_repeated {
            self.lost_ends();
        }
        self.next.forged.extend(answer.forged);
        self.next.bury.extend(answer.dying);
        self.next.releases.extend(answer.unknown);
        self.idle = answer.idle;
        if let Some(due) = answer.due {
            self.look_at = self.look_at.min(now.plus(due));
            self.next.sweeps |= due.is_zero();
        }
    }

    /// A call has failed. True: for so long that nothing of it can count any more.
    pub fn call_failed(&mut self, error: &BackendError, visibility: Duration, now: Timestamp) -> bool {
        let away = self.away.get_or_insert_with(|| {
            event(log::Level::Warn, "backend.away").field("cause", &error.0).emit();
            Away { since: now, leases_since: now, again_at: now, pause: PAUSES[0], cause: error.0.clone() }
        });
        if away.cause != error.0 {
            log::info!("the backend is still away: {error}");
            away.cause.clone_from(&error.0);
        }
        away.again_at = now.plus(away.pause);
        away.pause = (away.pause * 2).min(PAUSES[1]);
        if now.since(away.leases_since) <= visibility {
            return false;
        }
        away.leases_since = now;
        self.untold.extend(self.calling.take().into_iter().flatten());
        self.untold.extend(self.next.commits.iter().map(|told| told.commit.job));
        let Draft { submissions, left, closed, .. } = std::mem::take(&mut self.next);
        self.next = Draft { submissions, left, closed, ..Draft::default() };
        for (consumer, books) in &mut self.consumers {
            books.is_lost = true;
            let held = std::mem::take(&mut books.held);
            self.untold.extend(held.values().filter_map(Held::running));
            // They may be found running still, which is not their jobs' fault.
            let named = held.iter().map(|(lease, held)| held.named(*consumer, *lease, Some("seat")));
            self.next.releases.extend(named);
            self.rings.push(books.bell.clone());
        }
        true
    }
}

impl Draft {
    pub fn is_empty(&self) -> bool {
        self.commits.is_empty()
            && self.releases.is_empty()
            && self.forged.is_empty()
            && self.bury.is_empty()
            && self.left.is_empty()
            && self.closed.is_empty()
            && self.submissions.is_empty()
            && !self.sweeps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::StateAt;

    /// An executor without room is told so behind every lease that it is given, wherever the leases are meanwhile.
    #[test]
    fn an_executor_is_settled_only_once_no_lease_is_on_its_way_to_it() {
        let (mut state, now) = (State::default(), Timestamp(1));
        let executor = state.connect(0, Bell::silent(), now);
        let step = |state: &mut State, room| state.step(executor, Requests::default(), room).unwrap();
        step(&mut state, 1);
        assert!(state.is_settled(executor));
        assert_eq!(state.compose(now).execs.len(), 1);
        step(&mut state, 0);
        assert!(!state.is_settled(executor), "the call under way may bring one");
        let handler: Arc<str> = "echo".into();
        let id = LeaseId(1);
        let lease = Lease { id, handler: handler.clone(), state: StateAt::Stateless, jobs: Vec::new() };
        let held = Held {
            handler,
            own: String::new(),
            map: String::new(),
            jobs: Vec::new(),
            at: 0,
            is_alone: false,
        };
        let answer = Answer { leases: vec![(executor, lease, held)], ..Answer::default() };
        state.answered(&[], answer, now);
        assert!(!state.is_settled(executor), "it has not been given it");
        assert_eq!(step(&mut state, 0).leases.len(), 1);
        assert!(state.is_settled(executor));
        assert!(state.compose(now).execs.is_empty(), "without room it is asked for none");
        step(&mut state, 0);
        assert!(state.is_settled(executor));
    }
}
