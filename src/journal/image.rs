//! What the facts of a journal come to. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::facts::{Fact, Job, Scope, Thing};
use crate::clock::Timestamp;
use crate::job::{Entries, IdMap, JobId, JobStatus};

/// All that is known after some turns.
#[derive(Debug, Default)]
pub struct Image {
    pub jobs: IdMap<JobId, Box<Job>>,
    pub maps: HashMap<Arc<str>, Map>,
    pub keys: HashMap<Scope, Key>,
    pub paused: HashMap<Arc<str>, bool>,
    /// The largest that was given.
    pub last_fence: u64,
    /// When the last turn was taken.
    pub at: Timestamp,
}

/// A lane's state or a context.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Map {
    pub entries: Entries,
    pub version: u64,
    pub expires_at: Option<Timestamp>,
}

/// What an idempotency key is bound to.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    pub job: JobId,
    pub fingerprint: [u8; 32],
    pub until: Timestamp,
}

impl Image {
    /// Takes a fact in; says what it is the base of. One about a thing that has no base is of something that was over when
    /// its base was left out: what ends it stands further on, or nothing does.
    pub fn apply(&mut self, fact: Fact) -> Option<Thing> {
        match fact {
            Fact::Job(job) => {
                let id = job.record.spec.id;
                self.jobs.insert(id, job);
                return Some(Thing::Job(id));
            }
            Fact::Stands(mut now) => {
                let job = self.jobs.get_mut(&now.record.spec.id)?;
                now.record.spec = job.record.spec.clone();
                now.is_follow_up = job.is_follow_up;
                now.payload = job.payload.take().filter(|_| now.record.status != JobStatus::Succeeded);
                *job = now;
            }
            Fact::Gone(id) => drop(self.jobs.remove(&id)),
            Fact::Map { name, is_whole, version, expires_at, changes } => {
                if is_whole {
                    self.maps.insert(name.clone(), Map::default());
                }
                let map = self.maps.get_mut(&name)?;
                (map.version, map.expires_at) = (version, expires_at);
                for change in changes {
                    match change.value {
                        Some(value) => drop(map.entries.insert(change.key, value)),
                        None => drop(map.entries.remove(&change.key)),
                    }
                }
                return is_whole.then_some(Thing::Map(name));
            }
            Fact::MapGone(name) => drop(self.maps.remove(&name)),
            Fact::Key { scope, job, fingerprint, until } => {
                self.keys.insert(scope.clone(), Key { job, fingerprint, until });
                return Some(Thing::Key(Box::new(scope)));
            }
            Fact::KeyGone(scope) => drop(self.keys.remove(&scope)),
            Fact::Paused(handler, is_paused) => {
                self.paused.insert(handler.clone(), is_paused);
                return Some(Thing::Paused(handler));
            }
        }
        None
    }
}
