//! The broker's seat in a process: the threads that take its turns and hear what other processes say.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::broker::{RedisBroker, Shared};
use super::connection::PAUSES;
use super::listener::LISTEN;
use super::turn::State;
use crate::bell::lock;
use crate::clock::Timestamp;
use crate::job::JobId;
use crate::ports::Seat;

/// The log hears of a server that cannot be heard this often at most.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// The threads of a seat. Dropping it gives back what the process still has, if the server hears of it.
pub struct RedisSeat {
    broker: RedisBroker,
    turns: JoinHandle<()>,
    listens: JoinHandle<()>,
}

impl RedisBroker {
    /// Takes the turns on threads from now on.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn sit(&self) -> std::io::Result<RedisSeat> {
        let (turning, listening) = (self.0.clone(), self.0.clone());
        let builder = |name: &str| std::thread::Builder::new().name(name.into());
        let turns = builder("redis-turns").spawn(move || turning.turn_for_ever())?;
        let listens = builder("redis-wakes").spawn(move || listening.listen_for_ever())?;
        lock(&self.0.state).is_seated = true;
        Ok(RedisSeat { broker: self.clone(), turns, listens })
    }
}

impl Shared {
    fn turn_for_ever(&self) {
        loop {
            let mut state = lock(&self.state);
            loop {
                let rest = state.rests(self.server.now());
                if state.is_closed || rest.is_zero() {
                    break;
                }
                let waited = self.filled.wait_timeout(state, rest);
                state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
            }
            let is_over = state.is_closed && (state.next.is_empty() || state.away.is_some());
            drop(state);
            if is_over {
                return;
            }
            self.turn();
        }
    }

    fn listen_for_ever(&self) {
        let (mut pause, mut said_at) = (PAUSES[0], None::<Instant>);
        while !lock(&self.state).is_closed {
            let Err(error) = self.hear(LISTEN) else {
                pause = PAUSES[0];
                continue;
            };
            // Of an outage the turns tell; this is for who may take turns, and not listen.
            let is_away = pause < PAUSES[1] || lock(&self.state).away.is_some();
            if !is_away && said_at.is_none_or(|at| at.elapsed() > SAY_EVERY) {
                said_at = Some(Instant::now());
                log::warn!("the backend is not heard for now: {error}");
            }
            std::thread::park_timeout(pause);
            pause = (pause * 2).min(PAUSES[1]);
        }
    }
}

impl Seat for RedisSeat {
    fn tick(&self, callers: usize) -> Option<Timestamp> {
        lock(&self.broker.0.state).callers = callers as u64;
        None
    }

    /// What is queued stays queued, whoever stops.
    fn drain(&self, callers_wait: bool, _deadline: Timestamp) -> bool {
        self.broker.0.change(|state| state.drain(callers_wait))
    }

    fn cut_off(&self) -> Vec<JobId> {
        self.broker.0.change(State::cut_off)
    }

    fn name(&self) -> String {
        self.broker.0.server.node.clone()
    }

    fn succeeds(&self, predecessor: &str) {
        self.broker.0.change(|state| state.next.left.push(predecessor.to_owned()));
    }

    fn is_sound(&self) -> bool {
        !self.turns.is_finished() && !self.listens.is_finished()
    }
}

impl Drop for RedisSeat {
    fn drop(&mut self) {
        let was_away = self.broker.0.change(|state| {
            state.close(self.name());
            state.away.is_some()
        });
        // Nobody has time for a server that says nothing; what it knows of this process runs out.
        const PATIENCE: Duration = Duration::from_secs(1);
        let begun = Instant::now();
        while !self.turns.is_finished() && !was_away && begun.elapsed() < PATIENCE {
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }
}
