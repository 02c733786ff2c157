//! The shell around the broker: one lock, the clock, the bells, and the ports.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::broker::{Broker, ConsumerId, Notice};
use crate::bell::Bell;
use crate::clock::{Clock, Timestamp};
use crate::job::{Change, Entries, InstanceId, JobId, JobRecord, Payload};
use crate::observe::job_event;
use crate::ports::{
    BackendError, Consumer, Ends, Filter, Inbox, KeyValue, Listed, NewJob, Producer, Refusal, Replies,
    Requests, Retried, Seat, Stats, Step, Submitted, Viewer,
};

/// A handle to the memory backend; all clones are one broker.
#[derive(Clone)]
pub struct MemoryBroker(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    clock: Clock,
    groups: Vec<Arc<str>>,
}

struct State {
    broker: Broker,
    consumers: HashMap<ConsumerId, (usize, Bell)>,
    instances: HashMap<InstanceId, Bell>,
}

impl MemoryBroker {
    /// Takes the broker over. `groups` are the names of the process groups, in the order of their indices.
    #[must_use]
    pub fn new(broker: Broker, clock: Clock, groups: Vec<Arc<str>>) -> MemoryBroker {
        let state = State { broker, consumers: HashMap::new(), instances: HashMap::new() };
        MemoryBroker(Arc::new(Shared { state: Mutex::new(state), clock, groups }))
    }

    /// A panic under the lock leaves the books in doubt: everything after it panics too, and the process is replaced.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("the broker's books are whole")
    }

    /// Runs one operation, then rings those who should look.
    pub fn with<R>(&self, operation: impl FnOnce(&mut Broker, Timestamp) -> R) -> R {
        let mut state = self.lock();
        let now = self.0.clock.now();
        let answer = operation(&mut state.broker, now);
        let signals = state.broker.take_signals();
        let State { consumers, instances, .. } = &*state;
        let of_groups = consumers.values().filter(|(group, _)| signals.groups.contains(group));
        let revoked = signals.consumers.iter().filter_map(|id| consumers.get(id));
        let told = signals.instances.iter().filter_map(|id| instances.get(id));
        let due: Vec<Bell> = of_groups.chain(revoked).map(|(_, bell)| bell).chain(told).cloned().collect();
        // Nobody is woken into a lock that is still held.
        drop(state);
        due.iter().for_each(Bell::ring);
        for Notice { level, event, spec, cause, delivery } in signals.notices {
            let said = job_event(level, event, &spec.trace, spec.id, &spec.handler).field("cause", cause);
            match delivery {
                Some(delivery) => said.delivery(&delivery).emit(),
                None => said.emit(),
            }
        }
        answer
    }

    /// An executor of this group; `bell` rings when a step would bring something.
    #[must_use]
    pub fn consumer(&self, group: usize, bell: Bell) -> MemoryConsumer {
        let mut state = self.lock();
        let id = state.broker.connect(group);
        state.consumers.insert(id, (group, bell));
        MemoryConsumer { broker: self.clone(), id }
    }
}

impl Seat for MemoryBroker {
    fn tick(&self, _callers: usize) -> Option<Timestamp> {
        self.with(|broker, now| {
            broker.tick(now);
            broker.next_wake(now)
        })
    }

    /// What is queued goes with this process, so it is run, whether somebody waits for it or not.
    fn is_drained(&self, _callers_wait: bool, deadline: Timestamp) -> bool {
        self.with(|broker, _| broker.is_idle(deadline))
    }

    fn cut_off(&self) -> Vec<JobId> {
        self.with(|broker, _| broker.unfinished())
    }
}

impl Producer for MemoryBroker {
    fn submit(&self, jobs: Vec<NewJob>) -> Result<Vec<Submitted>, BackendError> {
        Ok(self.with(|broker, now| {
            let full = Submitted::Refused(Refusal::QueueFull);
            let mut refused: Vec<Arc<str>> = Vec::new();
            let mut submit = |job: NewJob| {
                // Nothing overtakes: a smaller job behind one of its owner that found no room finds none either.
                let owner = job.owner.clone();
                if refused.contains(&owner) {
                    return full.clone();
                }
                let answer = broker.submit(job, now);
                refused.extend(Some(owner).filter(|_| answer == full));
                answer
            };
            jobs.into_iter().map(&mut submit).collect()
        }))
    }

    fn record(&self, viewer: &Viewer, id: JobId) -> Result<Option<JobRecord>, BackendError> {
        Ok(self.with(|broker, now| broker.record(viewer, id, now)))
    }

    fn watch(
        &self,
        viewer: &Viewer,
        id: JobId,
        instance: InstanceId,
    ) -> Result<Option<JobRecord>, BackendError> {
        Ok(self.with(|broker, now| broker.watch(viewer, id, instance, now)))
    }

    fn cancel(&self, viewer: &Viewer, id: JobId) -> Result<Option<JobRecord>, BackendError> {
        Ok(self.with(|broker, now| broker.cancel(viewer, id, now)))
    }

    fn retry(&self, viewer: &Viewer, id: JobId) -> Result<Option<Retried>, BackendError> {
        Ok(self.with(|broker, now| broker.retry(viewer, id, now)))
    }

    fn pause(&self, handler: &str, paused: bool) -> Result<bool, BackendError> {
        Ok(self.with(|broker, _| broker.pause(handler, paused)))
    }

    fn payload(&self, viewer: &Viewer, id: JobId) -> Result<Option<Option<Payload>>, BackendError> {
        Ok(self.with(|broker, _| broker.payload(viewer, id)))
    }

    fn list(&self, viewer: &Viewer, filter: &Filter) -> Result<Listed, BackendError> {
        Ok(self.with(|broker, now| broker.list(viewer, filter, now)))
    }

    fn stats(&self) -> Result<Stats, BackendError> {
        Ok(self.with(|broker, now| broker.stats(&self.0.groups, now)))
    }
}

impl KeyValue for MemoryBroker {
    fn load(&self, map: &str, ttl: Option<Duration>) -> Result<Entries, BackendError> {
        Ok(self.with(|broker, now| broker.maps().load(map, ttl, now)))
    }

    fn get(&self, map: &str, key: &str) -> Result<Option<Arc<[u8]>>, BackendError> {
        Ok(self.with(|broker, now| broker.maps().get(map, key, now)))
    }

    fn apply(&self, map: &str, changes: &[Change], ttl: Option<Duration>) -> Result<(), BackendError> {
        self.with(|broker, now| broker.maps().apply(map, changes, ttl, now));
        Ok(())
    }

    fn delete(&self, map: &str) -> Result<(), BackendError> {
        self.with(|broker, _| broker.maps().delete(map));
        Ok(())
    }
}

impl Replies for MemoryBroker {
    fn subscribe(&self, instance: InstanceId, bell: Bell) -> Result<Box<dyn Inbox>, BackendError> {
        let mut state = self.lock();
        state.broker.subscribe(instance);
        state.instances.insert(instance, bell);
        Ok(Box::new(MemoryInbox { broker: self.clone(), instance }))
    }
}

struct MemoryInbox {
    broker: MemoryBroker,
    instance: InstanceId,
}

impl Inbox for MemoryInbox {
    fn take(&mut self, most: usize) -> Ends {
        self.broker.lock().broker.take_ends(self.instance, most)
    }
}

impl Drop for MemoryInbox {
    fn drop(&mut self) {
        let mut state = self.broker.lock();
        state.broker.unsubscribe(self.instance);
        state.instances.remove(&self.instance);
    }
}

/// An executor in this process. Dropping it ends its leases.
pub struct MemoryConsumer {
    broker: MemoryBroker,
    id: ConsumerId,
}

impl Consumer for MemoryConsumer {
    fn step(&mut self, requests: Requests, room: usize) -> Result<Step, BackendError> {
        let step = |broker: &mut Broker, now| {
            broker.knows(self.id).then(|| broker.step(self.id, requests, room, now))
        };
        self.broker.with(step).ok_or_else(|| BackendError("the broker has given this executor up".into()))
    }

    fn extend(&mut self) {
        self.broker.with(|broker, now| broker.extend(self.id, now));
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.broker.lock().consumers.remove(&self.id);
        self.broker.with(|broker, now| broker.disconnect(self.id, now));
    }
}
