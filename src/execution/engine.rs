//! One exchange with the broker: what came of runs is said, what comes is entered into the books and given to the
//! threads. Thin: every decision is the books'.

use std::sync::Arc;
use std::time::Duration;

use super::books::Books;
use super::deck::Deck;
use super::run::Run;
use crate::clock::Timestamp;
use crate::ports::{BackendError, Consumer};

/// See the module.
pub struct Engine {
    pub books: Books,
    deck: Arc<Deck>,
    visibility: Duration,
    renew_at: Timestamp,
}

/// How an executor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It takes jobs.
    Working,
    /// Handlers ignore that their time is over: the process should be replaced.
    Stuck,
    /// It was told to stop, nothing of its runs is left, and the broker knows what came of them.
    Drained,
}

impl Engine {
    pub fn new(books: Books, deck: Arc<Deck>, visibility: Duration) -> Engine {
        Engine { books, deck, visibility, renew_at: Timestamp::default() }
    }

    /// Does all there is to do now; says when to come again at the latest. An error: the broker is lost, and every run has
    /// been abandoned.
    pub fn exchange(
        &mut self,
        consumer: &mut dyn Consumer,
        now: Timestamp,
    ) -> Result<Timestamp, BackendError> {
        let books = &mut self.books;
        self.deck.take_done().into_iter().for_each(|done| books.on_done(done));
        books.on_time(now);
        if now >= self.renew_at {
            consumer.extend();
            self.renew_at = now.plus(self.visibility / 3);
        }
        loop {
            let are_short = self.deck.jobs_are_short();
            if !are_short {
                books.give_back(self.deck.take_waiting());
            }
            let stepped = consumer.step(books.take_requests(), books.room(are_short));
            let step = stepped.inspect_err(|_| {
                // No worker will end these.
                books.give_back(self.deck.take_all_waiting());
                books.abandon(now);
            })?;
            step.fenced.into_iter().for_each(|fenced| books.on_fenced(fenced, now));
            let runs: Vec<Run> = step.leases.into_iter().filter_map(|lease| books.on_lease(lease)).collect();
            step.revoked.into_iter().for_each(|revoked| books.on_revoked(revoked, now));
            self.deck.put_runs(runs);
            if books.requests.is_empty() {
                return Ok(books.next_deadline().map_or(self.renew_at, |at| at.min(self.renew_at)));
            }
        }
    }

    pub fn health(&self, consumer: &dyn Consumer, now: Timestamp) -> Health {
        if self.books.is_drained() && consumer.is_settled() {
            Health::Drained
        } else if self.books.is_stuck(now) {
            Health::Stuck
        } else {
            Health::Working
        }
    }
}
