//! How many there are of something, by the name of who has it. Pure.

use std::sync::Arc;

use crate::job::IdMap;

/// A name that has none is not held.
#[derive(Default)]
pub struct ByName(IdMap<Arc<str>, usize>);

impl ByName {
    /// One more; how many that name has then.
    pub fn add(&mut self, name: &Arc<str>) -> usize {
        let count = self.0.entry(name.clone()).or_default();
        *count += 1;
        *count
    }

    /// One less, if it has any.
    pub fn remove(&mut self, name: &str) {
        if let Some(count) = self.0.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(name);
            }
        }
    }

    pub fn of(&self, name: &str) -> usize {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Of all names.
    pub fn all(&self) -> usize {
        self.0.values().sum()
    }

    /// How many names have some.
    pub fn names(&self) -> usize {
        self.0.len()
    }
}
