//! A web process's share of what time does, and what it tells the others of itself.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::broker::{RedisBroker, hex};
use super::consumer::facts;
use crate::bell::lock;
use crate::clock::{Timestamp, micros};
use crate::entropy::Entropy;
use crate::job::JobId;
use crate::limits::PROCESS_LIVES;
use crate::ports::{BackendError, Upkeep};

/// See the module. Called once a second by whoever may wait.
pub struct RedisUpkeep {
    broker: RedisBroker,
    id: String,
    facts: Vec<String>,
    waiters: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Broken connections, and the call that tells of them, until that is answered: it is repeated as it was.
    said: Mutex<(u64, String)>,
    is_away: AtomicBool,
}

impl RedisUpkeep {
    /// Of a process in which so many callers wait.
    #[must_use]
    pub fn new(broker: RedisBroker, waiters: Box<dyn Fn() -> u64 + Send + Sync>) -> RedisUpkeep {
        let id = hex(&Entropy::system().bytes::<8>());
        RedisUpkeep {
            broker,
            id,
            facts: facts(),
            waiters,
            said: Mutex::default(),
            is_away: AtomicBool::new(false),
        }
    }

    fn tell(&self) -> Result<(), BackendError> {
        let mut said = lock(&self.said);
        if said.0 == 0 {
            *said = (self.broker.0.link.take_broken(), hex(&Entropy::system().bytes::<8>()));
        }
        let mut fields = self.facts.clone();
        fields.extend(["waiters".into(), (self.waiters)().to_string()]);
        let what = json!({
            "do": "tell", "con": self.id, "fields": fields, "ttl": micros(PROCESS_LIVES), "rc": said.0,
            "call": said.1,
        });
        // Each call of the script sweeps: more of them only where more is due than one takes.
        let (due, _) = self.broker.lease(&what)?;
        said.0 = 0;
        if due == Some(0) { self.broker.sweep().map(drop) } else { Ok(()) }
    }
}

impl Upkeep for RedisUpkeep {
    fn tick(&self) -> Option<Timestamp> {
        let told = self.tell();
        self.is_away.store(told.is_err(), Ordering::Relaxed);
        if let Err(error) = told {
            log::debug!("{error}");
        }
        None
    }

    fn lost(&self, consumer: &str) {
        if let Some((name, workers)) = consumer.split_once(' ')
            && let Err(error) = self.broker.is_lost(name, workers.parse().unwrap_or(usize::MAX))
        {
            log::info!("the leases of a lost executor run out by themselves: {error}");
        }
    }

    /// What is queued stays queued, whoever stops.
    fn is_idle(&self, _deadline: Timestamp) -> bool {
        true
    }

    fn unfinished(&self) -> Vec<JobId> {
        Vec::new()
    }
}

impl Drop for RedisUpkeep {
    fn drop(&mut self) {
        // Nobody has time for a server that says nothing; what it knows of this process runs out.
        if !self.is_away.load(Ordering::Relaxed) {
            let _ = self.broker.is_lost(&self.id, 0);
        }
    }
}
