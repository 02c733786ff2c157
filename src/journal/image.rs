//! What the facts of a journal come to. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::facts::{Bound, Fact, Job, Scope};
use crate::clock::Timestamp;
use crate::job::{Entries, IdMap, JobId, JobStatus};

/// All that is known after some turns.
#[derive(Debug, Default)]
pub struct Image {
    pub jobs: IdMap<JobId, Box<Job>>,
    pub maps: HashMap<Arc<str>, Map>,
    pub keys: HashMap<Scope, Bound>,
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

impl Image {
    /// Takes a fact in. One about a thing that has no base is of something that was over when its base was left out: what ends it
    /// stands further on, or nothing does.
    pub fn apply(&mut self, fact: Fact) {
        match fact {
            Fact::Job(job) => drop(self.jobs.insert(job.record.spec.id, job)),
            Fact::Stands(mut now) => {
                let Some(job) = self.jobs.get_mut(&now.record.spec.id) else { return };
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
                let Some(map) = self.maps.get_mut(&name) else { return };
                (map.version, map.expires_at) = (version, expires_at);
                for change in changes {
                    match change.value {
                        Some(value) => drop(map.entries.insert(change.key, value)),
                        None => drop(map.entries.remove(&change.key)),
                    }
                }
            }
            Fact::MapGone(name) => drop(self.maps.remove(&name)),
            Fact::Key(scope, bound) => drop(self.keys.insert(scope, bound)),
            Fact::KeyGone(scope) => drop(self.keys.remove(&scope)),
            Fact::Paused(handler, is_paused) => drop(self.paused.insert(handler, is_paused)),
        }
    }
}
