//! What is known of lanes whose last run was done here, so that their next lease need not bring the state. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::context::RunMaps;
use crate::job::Version;
use crate::ports::LeaseId;

/// A handler, and the key of the lane.
pub(super) type LaneName = (Arc<str>, Option<Arc<str>>);

/// What a lane costs beside its entries: its names, both tables' places.
const LANE_BYTES: usize = 256;

/// Bounded by what it holds: the lanes that were used longest ago go first.
#[derive(Default)]
pub(super) struct LaneCache {
    most_bytes: usize,
    bytes: usize,
    lanes: HashMap<LaneName, Cached>,
    /// The lanes in the order of their last uses.
    uses: BTreeMap<u64, LaneName>,
    last_use: u64,
}

struct Cached {
    maps: RunMaps,
    lease: LeaseId,
    used: u64,
}

impl LaneCache {
    pub(super) fn new(most_bytes: usize) -> LaneCache {
        LaneCache { most_bytes, ..LaneCache::default() }
    }

    /// Takes out what is known of a lane in this version.
    pub(super) fn take(&mut self, lane: &LaneName, version: Version) -> Option<RunMaps> {
        // The empty state of a lane that nobody has changed need not be kept.
        let known = self.remove(lane).map(|cached| cached.maps).unwrap_or_default();
        Some(known).filter(|maps| maps.version == version)
    }

    /// Enters a lane as this lease has left it.
    pub(super) fn put(&mut self, lane: LaneName, maps: RunMaps, lease: LeaseId) {
        self.remove(&lane);
        if maps.version == Version::default() {
            return;
        }
        self.last_use += 1;
        self.bytes += LANE_BYTES + maps.state_bytes;
        self.uses.insert(self.last_use, lane.clone());
        self.lanes.insert(lane, Cached { maps, lease, used: self.last_use });
        while self.bytes > self.most_bytes
            && let Some((_, oldest)) = self.uses.pop_first()
        {
            self.remove(&oldest);
        }
    }

    pub(super) fn remove_of(&mut self, lease: LeaseId) {
        let is_of_lease = |(_, cached): &(&LaneName, &Cached)| cached.lease == lease;
        if let Some(lane) = self.lanes.iter().find(is_of_lease).map(|(lane, _)| lane.clone()) {
            self.remove(&lane);
        }
    }

    fn remove(&mut self, lane: &LaneName) -> Option<Cached> {
        let cached = self.lanes.remove(lane)?;
        self.bytes -= LANE_BYTES + cached.maps.state_bytes;
        self.uses.remove(&cached.used);
        Some(cached)
    }

    pub(super) fn clear(&mut self) {
        *self = LaneCache::new(self.most_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Entries;

    #[test]
    fn a_million_lanes_cost_neither_memory_without_bound_nor_time_that_grows() {
        let mut cache = LaneCache::new(1 << 20);
        let lane = |number: u32| (Arc::from("h"), Some(Arc::from(number.to_string())));
        let state = || Entries::from([(Arc::from("k"), Arc::from(*b"v"))]);
        for number in 0..1_000_000 {
            let version = Version(u64::from(number % 2));
            let state = if number % 2 == 1 { state() } else { Entries::new() };
            cache.put(lane(number), RunMaps::new(version, state), LeaseId(number.into()));
            assert!(cache.bytes <= 1 << 20);
        }
        assert_eq!(cache.lanes.len(), (1 << 20) / (LANE_BYTES + 2), "lanes without changes are not kept");
        assert_eq!(cache.lanes.len(), cache.uses.len());
        assert!(cache.take(&lane(1), Version(1)).is_none(), "it was used longest ago");
        assert!(cache.take(&lane(999_999), Version(1)).is_some());
        assert!(cache.take(&lane(999_998), Version(0)).is_some_and(|maps| maps.state.is_empty()));
    }
}
