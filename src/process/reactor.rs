//! One event loop's ground: sockets and a bell to wait for, at most so long. Whoever rings the bell wakes it.

use std::io::ErrorKind;
use std::time::Duration;

use mio::event::Source;
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use crate::bell::Bell;

const WAKER: Token = Token(usize::MAX - 1);

/// See the module.
pub struct Reactor {
    poll: Poll,
    events: Events,
    bell: Bell,
}

impl Reactor {
    /// For so many events a turn.
    pub fn new(events: usize) -> Result<Reactor, String> {
        let made = Poll::new().and_then(|poll| Ok((Waker::new(poll.registry(), WAKER)?, poll)));
        let (waker, poll) = made.map_err(|error| error.to_string())?;
        let bell = Bell::new(move || drop(waker.wake()));
        Ok(Reactor { poll, events: Events::with_capacity(events), bell })
    }

    /// Rings when the loop should look.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    pub fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    /// Watches a socket for everything that can happen to it.
    pub fn watch(&self, source: &mut impl Source, token: Token) -> Result<(), String> {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(source, token, both).map_err(|error| error.to_string())
    }

    /// Waits for events, for a ring, or so long at most. What rings from then on was not looked at yet.
    pub fn wait(&mut self, most: Duration) -> Result<&Events, String> {
        let most = if self.bell.asleep() { most } else { Duration::ZERO };
        let mut waited = self.poll.poll(&mut self.events, Some(most));
        // By a signal, or after a stop of this process: what has come meanwhile is seen before any deadline is judged.
        while waited.as_ref().is_err_and(|error| error.kind() == ErrorKind::Interrupted) {
            waited = self.poll.poll(&mut self.events, Some(Duration::ZERO));
        }
        self.bell.answer();
        waited.map_err(|error| format!("the event loop: {error}"))?;
        Ok(&self.events)
    }

    /// True if the bell has rung since it was last asked, or waited for: what it rang for is to be looked at now.
    pub fn is_rung(&self) -> bool {
        self.bell.answer()
    }

    /// What the last wait has brought.
    pub fn events(&self) -> &Events {
        &self.events
    }
}
