//! What a process counts itself, for its metrics.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use crate::bell::lock;

/// What a web process counts. Shared between its loop, its channel and the page that shows it.
#[derive(Debug, Default)]
pub struct Counters {
    http: Mutex<BTreeMap<(&'static str, u16), u64>>,
    replaced: Mutex<BTreeMap<(String, String), u64>>,
    rejected: Mutex<BTreeMap<&'static str, u64>>,
    /// Callers waiting now.
    pub waiters: AtomicU64,
    /// Waits that ended by their deadline.
    pub reply_timeouts: AtomicU64,
    /// Waits that ended because the caller hung up.
    pub reply_cancelled: AtomicU64,
    /// Replies whose callers had gone.
    pub reply_late: AtomicU64,
    pub frames_in: AtomicU64,
    pub frames_out: AtomicU64,
    /// The service is stopping.
    pub draining: AtomicBool,
}

impl Counters {
    /// Requests of this kind are counted from here on.
    pub fn request_series(&self, route: &'static str, status: u16) {
        lock(&self.http).entry((route, status)).or_default();
    }

    pub fn request(&self, route: &'static str, status: u16) {
        *lock(&self.http).entry((route, status)).or_default() += 1;
    }

    /// Requests by route and status.
    pub fn requests(&self) -> Vec<((&'static str, u16), u64)> {
        lock(&self.http).iter().map(|(kind, count)| (*kind, *count)).collect()
    }

    /// One more connection or frame refused on the channel, for this reason.
    pub fn reject(&self, reason: &'static str) {
        *lock(&self.rejected).entry(reason).or_default() += 1;
    }

    pub fn rejected(&self, reason: &'static str) -> u64 {
        lock(&self.rejected).get(reason).copied().unwrap_or(0)
    }

    /// So many processes of this group were replaced for this reason.
    pub fn replaced(&self, group: &str, reason: &str, count: u64) {
        lock(&self.replaced).insert((group.into(), reason.into()), count);
    }

    /// How many were.
    pub fn replacements(&self, group: &str, reason: &str) -> u64 {
        lock(&self.replaced).get(&(group.into(), reason.into())).copied().unwrap_or(0)
    }
}
