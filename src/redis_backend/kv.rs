//! [`KeyValue`] on Redis.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::broker::RedisBroker;
use super::server::{Arguments, Sealed, Server, or_false};
use crate::clock::micros;
use crate::job::{Change, Entries};
use crate::ports::{KeyValue, Reached};

impl KeyValue for RedisBroker {
    fn load(&self, map: &str, ttl: Option<Duration>) -> Reached<Entries> {
        let flat = self.0.server.ask("load", json!({ "map": map, "ttl": or_false(ttl.map(micros)) }))?;
        Ok(self.0.server.entries(map, flat))
    }

    fn apply(&self, map: &str, changes: &[Change], ttl: Option<Duration>) -> Reached<()> {
        let mut arguments = Arguments::default();
        let seal = |key: &str, value: &[u8]| self.0.server.signer().seal_entry(map, key, value);
        let changes = arguments.changes(changes, seal);
        arguments.what = json!({ "map": map, "ch": changes, "ttl": or_false(ttl.map(micros)) });
        self.0.server.call("apply", &mut arguments)
    }
}

impl Server {
    /// A map's entries, but those that are not signed: nobody of this deployment wrote them.
    pub(super) fn entries(&self, map: &str, sealed: Sealed) -> Entries {
        let opened = sealed.into_iter().filter_map(|(key, value)| {
            let key = String::from_utf8(key).ok()?;
            let value = self.signer().open_entry(map, &key, &value).ok()?;
            Some((Arc::from(key), value))
        });
        opened.collect()
    }
}
