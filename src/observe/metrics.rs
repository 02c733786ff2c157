//! What a process counts itself, for its metrics.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use crate::bell::lock;

/// What a web process counts. Shared between its loop, its channel and the page that shows it.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests by route and status.
    pub requests: Counts<(&'static str, u16)>,
    /// Processes that were replaced, by group and reason.
    pub replaced: Counts<(String, String)>,
    /// Connections and frames that the channel refused, by reason.
    pub rejected: Counts<&'static str>,
    /// Requests that were refused, by the problem's code.
    pub http_rejected: Counts<&'static str>,
    /// Callers waiting now.
    pub waiters: AtomicU64,
    /// Who listens to events now.
    pub listeners: AtomicU64,
    /// Waits that ended by their deadline.
    pub reply_timeouts: AtomicU64,
    /// Waits that ended because the caller hung up.
    pub reply_cancelled: AtomicU64,
    /// Replies whose callers had gone.
    pub reply_late: AtomicU64,
    pub frames_in: AtomicU64,
    pub frames_out: AtomicU64,
    /// Jobs whose spans were written.
    pub traces_written: AtomicU64,
    /// Jobs whose spans were to be written, and were not.
    pub traces_dropped: AtomicU64,
    /// The service is stopping.
    pub draining: AtomicBool,
}

/// A number for each kind of thing.
#[derive(Debug, Default)]
pub struct Counts<K>(Mutex<BTreeMap<K, u64>>);

impl<K: Ord + Clone> Counts<K> {
    pub fn add(&self, kind: K, count: u64) {
        *lock(&self.0).entry(kind).or_default() += count;
    }

    pub fn set(&self, kind: K, count: u64) {
        lock(&self.0).insert(kind, count);
    }

    pub fn get(&self, kind: &K) -> u64 {
        lock(&self.0).get(kind).copied().unwrap_or(0)
    }

    pub fn all(&self) -> BTreeMap<K, u64> {
        lock(&self.0).clone()
    }
}
