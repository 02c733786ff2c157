//! The mixed set of backends: the queue here, lane states and contexts in a store of their own. A consumer around another
//! one: maps are read with the lease, and changes are written before the outcome is told. The store may make its callers
//! wait, so that happens on a thread.
//!
//! The weaker promise that follows: when an executor is lost between the two, its job runs again on a state that it has
//! changed already.

use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::bell::{Bell, lock};
use crate::job::{IdMap, JobId, Outcome, context_map, state_map};
use crate::ports::{
    BackendError, Commit, Consumer, KeyValue, Lease, LeaseId, Reached, Requests, StateAt, Step,
};

/// The store is tried again after this long.
const AGAIN: Duration = Duration::from_millis(200);
/// Jobs whose progress waits for the thread.
const UNTOLD_PROGRESS: usize = 1_024;

/// See the module. Dropping it ends its leases.
pub struct ExternalState {
    exchange: Arc<Mutex<Exchange>>,
    /// Wakes the thread.
    worker: Bell,
}

/// What lies between the consumer's owner and the thread.
#[derive(Default)]
struct Exchange {
    requests: Requests,
    room: usize,
    extends: bool,
    /// Outcomes and releases that are not in the books.
    owed: usize,
    out: Step,
    failure: Option<BackendError>,
    is_closed: bool,
}

impl ExternalState {
    /// `make` gives the consumer inside, whose bell is rung for it; `bell` rings when a step would bring something.
    pub fn start(
        make: impl FnOnce(Bell) -> Box<dyn Consumer>,
        store: Arc<dyn KeyValue>,
        context_ttl: Duration,
        bell: Bell,
    ) -> ExternalState {
        let exchange = Arc::new(Mutex::new(Exchange::default()));
        let (wake, woken) = sync_channel(1);
        let own = Bell::new(move || _ = wake.try_send(()));
        let worker = Worker {
            exchange: exchange.clone(),
            inner: make(own.clone()),
            own: own.clone(),
            woken,
            store,
            context_ttl,
            bell,
            maps: IdMap::default(),
            unwritten: Vec::new(),
            is_away: false,
        };
        if let Err(error) = std::thread::Builder::new().name("states".into()).spawn(move || worker.work()) {
            log::error!("an executor is left without work: a thread: {error}");
            lock(&exchange).failure = Some(BackendError("there is no thread for it".into()));
        }
        ExternalState { exchange, worker: own }
    }
}

impl Consumer for ExternalState {
    fn step(&mut self, mut requests: Requests, room: usize) -> Reached<Step> {
        let mut exchange = lock(&self.exchange);
        if let Some(error) = &exchange.failure {
            return Err(error.clone());
        }
        if !requests.is_empty() || room != exchange.room {
            exchange.owed += requests.commits.len() + requests.releases.len();
            // The last of each job is enough, and what nobody has taken in time was no progress.
            for progressed in requests.progress.drain(..) {
                let untold = &mut exchange.requests.progress;
                untold.retain(|known| known.job != progressed.job);
                untold.truncate(UNTOLD_PROGRESS - 1);
                untold.push(progressed);
            }
            exchange.requests.commits.append(&mut requests.commits);
            exchange.requests.releases.append(&mut requests.releases);
            exchange.room = room;
            self.worker.ring();
        }
        Ok(std::mem::take(&mut exchange.out))
    }

    fn extend(&mut self) {
        lock(&self.exchange).extends = true;
        self.worker.ring();
    }

    fn is_settled(&self) -> bool {
        lock(&self.exchange).owed == 0
    }
}

impl Drop for ExternalState {
    fn drop(&mut self) {
        lock(&self.exchange).is_closed = true;
        self.worker.ring();
    }
}

struct Worker {
    exchange: Arc<Mutex<Exchange>>,
    inner: Box<dyn Consumer>,
    /// Rung by the inner consumer and by its owner, through `woken` while the thread sleeps.
    own: Bell,
    woken: Receiver<()>,
    store: Arc<dyn KeyValue>,
    context_ttl: Duration,
    bell: Bell,
    /// Of each live lease.
    maps: IdMap<u64, Maps>,
    /// Outcomes whose changes could not be written yet, and all behind them: their order is kept.
    unwritten: Vec<Commit>,
    is_away: bool,
}

/// A lease's lane, and its jobs' contexts in their order.
struct Maps {
    state: String,
    contexts: Vec<(JobId, String)>,
}

impl Worker {
    fn work(mut self) {
        loop {
            if self.is_away {
                std::thread::sleep(AGAIN);
            } else if self.own.asleep() {
                let _ = self.woken.recv();
            }
            self.own.answer();
            let mut exchange = lock(&self.exchange);
            if exchange.is_closed && exchange.requests.is_empty() {
                return;
            }
            let (requests, room) = (std::mem::take(&mut exchange.requests), exchange.room);
            let (extends, is_closed) = (std::mem::take(&mut exchange.extends), exchange.is_closed);
            drop(exchange);
            if extends {
                self.inner.extend();
            }
            let said = requests.commits.len() + requests.releases.len() + self.unwritten.len();
            let stepped = self.step(requests, if is_closed { 0 } else { room });
            let done = said - self.unwritten.len();
            let mut exchange = lock(&self.exchange);
            exchange.owed -= done.min(exchange.owed);
            match stepped {
                Ok(step) => {
                    exchange.out.fenced.extend(step.fenced);
                    exchange.out.leases.extend(step.leases);
                    exchange.out.revoked.extend(step.revoked);
                }
                Err(error) => exchange.failure = Some(error),
            }
            let is_over = exchange.failure.is_some() || is_closed;
            drop(exchange);
            self.bell.ring();
            if is_over {
                return;
            }
        }
    }

    fn step(&mut self, requests: Requests, room: usize) -> Reached<Step> {
        let mut commits = std::mem::take(&mut self.unwritten);
        commits.extend(requests.commits);
        let mut failure = None;
        let written = commits.iter().take_while(|commit| {
            failure = self.write(commit).err();
            failure.is_none()
        });
        let written = written.count();
        self.unwritten = commits.split_off(written);
        for commit in &commits {
            let is_last = |maps: &Maps| maps.contexts.last().is_none_or(|(job, _)| *job == commit.job);
            let goes_on = matches!(commit.outcome, Outcome::Succeeded(..) | Outcome::Failed(_));
            if !goes_on || self.maps.get(&commit.lease.0).is_some_and(is_last) {
                self.maps.remove(&commit.lease.0);
            }
        }
        requests.releases.iter().for_each(|lease| drop(self.maps.remove(&lease.0)));
        let room = if failure.is_some() { 0 } else { room };
        let mut step = self.inner.step(Requests { commits, ..requests }, room)?;
        let gone = step.fenced.iter().chain(&step.revoked).map(|of| of.lease);
        gone.for_each(|lease| drop(self.maps.remove(&lease.0)));
        let mut unread: Vec<LeaseId> = Vec::new();
        step.leases.retain_mut(|lease| match self.read(lease) {
            Ok(()) => true,
            Err(error) => {
                failure = Some(error);
                unread.push(lease.id);
                false
            }
        });
        if !unread.is_empty() {
            let back = self.inner.step(Requests { releases: unread, ..Requests::default() }, 0)?;
            step.fenced.extend(back.fenced);
            step.revoked.extend(back.revoked);
        }
        match &failure {
            Some(error) if !self.is_away => log::warn!("states and contexts cannot be reached: {error}"),
            None if self.is_away => log::info!("states and contexts can be reached again"),
            Some(_) | None => {}
        }
        self.is_away = failure.is_some();
        Ok(step)
    }

    fn write(&self, commit: &Commit) -> Reached<()> {
        let Outcome::Succeeded(_, effects) = &commit.outcome else { return Ok(()) };
        let Some(maps) = self.maps.get(&commit.lease.0) else { return Ok(()) };
        if !effects.state.is_empty() {
            self.store.apply(&maps.state, &effects.state, None)?;
        }
        let context = maps.contexts.iter().find(|(job, _)| *job == commit.job);
        if let Some((_, context)) = context.filter(|_| !effects.context.is_empty()) {
            self.store.apply(context, &effects.context, Some(self.context_ttl))?;
        }
        Ok(())
    }

    /// What the store knows takes the place of what the queue's own broker does.
    fn read(&mut self, lease: &mut Lease) -> Reached<()> {
        let key = lease.jobs.first().and_then(|job| job.spec.ordering_key.clone());
        let state = state_map(&lease.handler, key.as_deref());
        if let StateAt::Whole(_, entries) = &mut lease.state {
            *entries = self.store.load(&state, None)?;
        }
        let mut contexts = Vec::new();
        for job in &mut lease.jobs {
            let context = context_map(&job.spec.owner, &job.spec.trace);
            job.context = self.store.load(&context, Some(self.context_ttl))?;
            contexts.push((job.spec.id, context));
        }
        self.maps.insert(lease.id.0, Maps { state, contexts });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::clock::{Clock, Timestamp};
    use crate::entropy::Entropy;
    use crate::handler::{HandlerOptions, HandlerSpec};
    use crate::job::{FollowUp, InstanceId, JobSpec, Progress};
    use crate::memory::MemoryBroker;
    use crate::memory::broker::Broker;
    use crate::ports::{NewJob, Producer, Progressed, Rules, Viewer};

    /// What the consumer brings until there is what is asked for.
    fn step_until<T>(consumer: &mut ExternalState, mut found: impl FnMut(Step) -> Option<T>) -> T {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            let step = consumer.step(Requests::default(), 1).expect("its thread runs");
            if let Some(found) = found(step) {
                return found;
            }
            std::thread::yield_now();
        }
        panic!("it never came");
    }

    #[test]
    fn the_progress_of_a_job_is_told() {
        let handler = HandlerSpec::new("h", 0, HandlerOptions::default());
        let broker = Broker::new(Rules::default(), vec![handler], vec![1], Entropy::Seeded(1));
        let broker = MemoryBroker::new(broker, Clock::manual(Timestamp(1)), vec!["g".into()]);
        let (handler, payload) = ("h".into(), crate::job::Payload::json(*b"1"));
        let job = FollowUp { handler, ordering_key: None, delay: Duration::ZERO, payload };
        let job = NewJob::follow_up(&JobSpec::default(), job, InstanceId(1), &mut Entropy::Seeded(2));
        let (id, make) = (job.id, broker.clone());
        broker.submit(vec![job]).expect("it is in this process");
        let make = |bell| Box::new(make.consumer(0, bell)) as _;
        let store = Arc::new(broker.clone());
        let mut consumer = ExternalState::start(make, store, Duration::from_secs(1), Bell::silent());
        let lease = step_until(&mut consumer, |step| step.leases.first().map(|lease| lease.id));
        let progress = Progress::parse("0.5").expect("it is JSON");
        let progressed = Progressed { lease, job: id, progress: progress.clone() };
        consumer.step(Requests { progress: vec![progressed], ..Requests::default() }, 1).expect("it runs");
        let told = step_until(&mut consumer, |_| {
            broker.record(&Viewer::service(), id).expect("it is in this process")?.progress
        });
        assert_eq!(told, progress);
    }
}
