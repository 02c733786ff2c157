//! What threads share: a doorbell ("look again", lost never, doubled at most) and the way to take a lock.
//!
//! A busy loop is not woken by a system call: the bell rings through its wake function only while its owner says
//! that it sleeps. The owner calls [`Bell::asleep`] before it waits and does not wait when that says no; a
//! [`Reactor`](crate::process::reactor::Reactor) does both.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Takes a lock. No handler ever runs under one of ours, so what a poisoned one guards is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A cloneable doorbell; all clones are one bell.
#[derive(Clone)]
pub struct Bell(Arc<Inner>);

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").finish_non_exhaustive()
    }
}

struct Inner {
    rung: AtomicBool,
    asleep: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Bell {
    /// A bell that calls `wake` when it rings while its owner sleeps.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Bell {
        let (rung, asleep) = Default::default();
        Bell(Arc::new(Inner { rung, asleep, wake: Box::new(wake) }))
    }

    /// A bell that unparks the current thread.
    pub fn for_this_thread() -> Bell {
        let thread = std::thread::current();
        Bell::new(move || thread.unpark())
    }

    /// A bell that nobody hears.
    pub fn silent() -> Bell {
        Bell::new(|| {})
    }

    /// Says that there is something to look at.
    pub fn ring(&self) {
        // Both sides store first and load second (sequentially consistent), so at least one sees the other.
        self.0.rung.store(true, Ordering::SeqCst);
        if self.0.asleep.swap(false, Ordering::SeqCst) {
            (self.0.wake)();
        }
    }

    /// The owner is about to wait. False: it rang meanwhile, so look instead.
    #[must_use]
    pub fn asleep(&self) -> bool {
        self.0.asleep.store(true, Ordering::SeqCst);
        if self.0.rung.load(Ordering::SeqCst) {
            self.0.asleep.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// The owner is up again; true if the bell rang since the last call.
    pub fn answer(&self) -> bool {
        self.0.asleep.store(false, Ordering::SeqCst);
        self.0.rung.swap(false, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn a_bell_wakes_a_sleeper_once_and_a_busy_owner_never() {
        let woken = Arc::new(AtomicUsize::new(0));
        let seen = woken.clone();
        let bell = Bell::new(move || {
            seen.fetch_add(1, Ordering::SeqCst);
        });
        bell.ring();
        assert_eq!(woken.load(Ordering::SeqCst), 0);
        assert!(!bell.asleep(), "it rang before: look instead of sleeping");
        assert!(bell.answer());
        assert!(bell.asleep());
        bell.clone().ring();
        bell.ring();
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert!(bell.answer() && !bell.answer());
    }
}
