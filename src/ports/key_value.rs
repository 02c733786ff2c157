//! [`KeyValue`]: named maps, for lane states and trace contexts.

use std::time::Duration;

use super::error::Reached;
use crate::job::{Change, Entries};

/// Named maps of key to bytes, each with an optional time to live that is exact to the backend's clock.
///
/// Laws: `apply` takes hold as a whole; a map that is empty or past its time is absent; using a map with a
/// time to live renews it.
pub trait KeyValue: Send + Sync {
    /// The whole map; empty if there is none. A `ttl` given renews the map's time.
    fn load(&self, map: &str, ttl: Option<Duration>) -> Reached<Entries>;

    /// All changes at once; with `ttl` the map lives that long from now, without it for ever.
    fn apply(&self, map: &str, changes: &[Change], ttl: Option<Duration>) -> Reached<()>;
}
