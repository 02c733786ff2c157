//! Named maps with a time to live, as a value.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::job::{Change, Entries, entry_bytes};
use crate::limits::CHANGE_BYTES;

/// All maps. Those past their time are absent at once and swept later.
#[derive(Debug, Default)]
pub struct Maps {
    maps: HashMap<Arc<str>, Map>,
    /// Maps with a time to live.
    mortal: usize,
    /// What all of them take: see [`Map::held_bytes`].
    held: usize,
    /// `Some` iff there is a journal: what has changed, by the map's name and the entries' keys.
    pub(super) changed: Option<HashMap<Arc<str>, BTreeSet<Arc<str>>>>,
}

#[derive(Debug, Default)]
pub(super) struct Map {
    pub(super) entries: Entries,
    bytes: usize,
    pub(super) expires_at: Option<Timestamp>,
    /// A journal knows it.
    pub(super) has_base: bool,
}

impl Map {
    fn lives(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|expires_at| now < expires_at)
    }

    /// What it takes of memory, about: small entries cost more than their bytes.
    fn held_bytes(&self) -> usize {
        MAP_BYTES + self.bytes + CHANGE_BYTES * self.entries.len()
    }
}

/// A map beside its entries.
const MAP_BYTES: usize = 256;

impl Maps {
    /// True if no map has a time to live: then no trace has a context.
    pub(super) fn all_immortal(&self) -> bool {
        self.mortal == 0
    }

    /// What all maps take of memory, expired ones that were not swept included.
    pub(super) fn held_bytes(&self) -> usize {
        self.held
    }

    /// What these changes (each key named once) would add to that, at most.
    pub(super) fn growth(&self, name: &str, changes: &[Change], now: Timestamp) -> usize {
        let map = self.maps.get(name).filter(|map| map.lives(now));
        let of_entries = changes.iter().filter_map(|change| {
            let new = CHANGE_BYTES + entry_bytes(&change.key, change.value.as_ref()?);
            let old = map.and_then(|map| map.entries.get(&change.key));
            Some(new.saturating_sub(old.map_or(0, |old| CHANGE_BYTES + entry_bytes(&change.key, old))))
        });
        let is_made = map.is_none() && changes.iter().any(|change| change.value.is_some());
        of_entries.sum::<usize>() + if is_made { MAP_BYTES } else { 0 }
    }

    /// How many maps there are, expired ones that were not swept included.
    pub fn len(&self) -> usize {
        self.maps.len()
    }

    /// True if the map is there, expired and not swept or not.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.maps.contains_key(name)
    }

    /// The whole map; empty if there is none. A `ttl` renews it.
    pub fn load(&mut self, name: &str, ttl: Option<Duration>, now: Timestamp) -> Entries {
        match self.maps.get_mut(name) {
            Some(map) if map.lives(now) => {
                if let (Some(ttl), Some(_)) = (ttl, map.expires_at) {
                    map.expires_at = Some(now.plus(ttl));
                    touch(&mut self.changed, name);
                }
                map.entries.clone()
            }
            Some(_) | None => Entries::new(),
        }
    }

    /// Bytes of the map as they would be after these changes (each key named once).
    pub(super) fn bytes_after(&self, name: &str, changes: &[Change], now: Timestamp) -> usize {
        let map = self.maps.get(name).filter(|map| map.lives(now));
        changes.iter().fold(map.map_or(0, |map| map.bytes), |bytes, Change { key, value }| {
            let size = |value: Option<&Arc<[u8]>>| value.map_or(0, |value| entry_bytes(key, value));
            let old = map.and_then(|map| map.entries.get(key));
            (bytes + size(value.as_ref())).saturating_sub(size(old))
        })
    }

    /// Applies all changes. With `ttl` the map lives that long from now.
    pub fn apply(&mut self, name: &str, changes: &[Change], ttl: Option<Duration>, now: Timestamp) {
        if self.maps.get(name).is_none_or(|map| !map.lives(now)) {
            self.delete(name);
            if changes.iter().all(|change| change.value.is_none()) {
                return;
            }
            self.maps.insert(Arc::from(name), Map::default());
            self.held += MAP_BYTES;
        }
        self.touch(name, changes);
        let Some(map) = self.maps.get_mut(name) else { return };
        let before = map.held_bytes();
        for change in changes {
            let old = match &change.value {
                Some(value) => {
                    map.bytes += entry_bytes(&change.key, value);
                    map.entries.insert(change.key.clone(), value.clone())
                }
                None => map.entries.remove(&change.key),
            };
            map.bytes -= old.map_or(0, |value| entry_bytes(&change.key, &value));
        }
        self.held = self.held + map.held_bytes() - before;
        let was_mortal = map.expires_at.is_some();
        map.expires_at = ttl.map(|ttl| now.plus(ttl));
        self.mortal = self.mortal + usize::from(ttl.is_some()) - usize::from(was_mortal);
        if map.entries.is_empty() {
            self.delete(name);
        }
    }

    /// Removes the map.
    fn delete(&mut self, name: &str) {
        if let Some(map) = self.maps.remove(name) {
            self.mortal -= usize::from(map.expires_at.is_some());
            self.held -= map.held_bytes();
            touch(&mut self.changed, name);
        }
    }

    /// These changes are to be told the journal.
    pub(super) fn touch(&mut self, name: &str, changes: &[Change]) {
        if let Some(keys) = touch(&mut self.changed, name) {
            keys.extend(changes.iter().map(|change| change.key.clone()));
        }
    }

    /// The map, if there is one, is written whole by the next turn of the journal.
    pub(super) fn forget_base(&mut self, name: &str) {
        if let Some(map) = self.maps.get_mut(name) {
            map.has_base = false;
            touch(&mut self.changed, name);
        }
    }

    /// What the map takes of memory, about.
    pub(super) fn bytes_of(&self, name: &str) -> usize {
        self.maps.get(name).map_or(0, Map::held_bytes)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.maps.keys()
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Map> {
        self.maps.get_mut(name)
    }

    /// Puts back what a journal has kept.
    pub(super) fn restore(&mut self, name: Arc<str>, entries: Entries, expires_at: Option<Timestamp>) {
        let bytes = entries.iter().map(|(key, value)| entry_bytes(key, value)).sum();
        let map = Map { entries, bytes, expires_at, has_base: true };
        self.held += map.held_bytes();
        self.mortal += usize::from(expires_at.is_some());
        self.maps.insert(name, map);
    }

    /// Frees what is past its time.
    pub fn sweep(&mut self, now: Timestamp) {
        if self.mortal > 0 {
            self.maps.retain(|_, map| map.lives(now));
            self.mortal = self.maps.values().filter(|map| map.expires_at.is_some()).count();
            self.held = self.maps.values().map(Map::held_bytes).sum();
        }
    }
}

/// The map has to be written down; where there is a journal, the keys that have changed.
fn touch<'a>(
    changed: &'a mut Option<HashMap<Arc<str>, BTreeSet<Arc<str>>>>,
    name: &str,
) -> Option<&'a mut BTreeSet<Arc<str>>> {
    changed.as_mut().map(|changed| changed.entry(Arc::from(name)).or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_foretold_is_what_is_taken_and_changes_that_make_no_map_take_nothing() {
        let (mut maps, now) = (Maps::default(), Timestamp(1));
        let change = |key: &str, value: Option<&str>| {
            let value = value.map(|value| Arc::from(value.as_bytes()));
            Change { key: key.into(), value }
        };
        for (changes, takes) in [
            (vec![], 0),
            (vec![change("a", None)], 0),
            (vec![change("a", Some("1")), change("b", None)], MAP_BYTES + CHANGE_BYTES + 2),
            (vec![change("a", Some("22"))], 1),
            (vec![], 0),
        ] {
            let before = maps.held_bytes();
            assert_eq!(maps.growth("m", &changes, now), takes, "{changes:?}");
            maps.apply("m", &changes, None, now);
            assert_eq!(maps.held_bytes() - before, takes, "{changes:?}");
        }
    }
}
