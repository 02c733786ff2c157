//! [`KeyValue`] on Redis.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use serde_json::{Value as Json, json};

use super::broker::RedisBroker;
use super::connection::{bytes, list, text};
use super::server::{Blobs, Server};
use crate::clock::micros;
use crate::job::{Change, Entries};
use crate::ports::{BackendError, KeyValue};

impl RedisBroker {
    fn maps(&self, mut what: Json, ttl: Option<Duration>, blobs: Blobs) -> Result<Value, BackendError> {
        if let Some(ttl) = ttl {
            what["ttl"] = micros(ttl).into();
        }
        self.0.server.call(&self.0.server.scripts.maps, &what, &blobs)
    }
}

impl KeyValue for RedisBroker {
    fn load(&self, map: &str, ttl: Option<Duration>) -> Result<Entries, BackendError> {
        let flat = self.maps(json!({ "do": "load", "map": map }), ttl, Blobs::default())?;
        self.0.server.entries(map, flat)
    }

    fn get(&self, map: &str, key: &str) -> Result<Option<Arc<[u8]>>, BackendError> {
        let mut blobs = Blobs::default();
        let index = blobs.add(key.as_bytes().to_vec());
        match self.maps(json!({ "do": "get", "map": map, "key": index }), None, blobs)? {
            Value::Nil => Ok(None),
            value => Ok(self.0.server.signer.open_entry(map, key, &bytes(value)?).ok()),
        }
    }

    fn apply(&self, map: &str, changes: &[Change], ttl: Option<Duration>) -> Result<(), BackendError> {
        let mut blobs = Blobs::default();
        let changes = self.0.server.changes(map, changes, &mut blobs);
        self.maps(json!({ "do": "apply", "map": map, "ch": changes }), ttl, blobs).map(drop)
    }

    fn delete(&self, map: &str) -> Result<(), BackendError> {
        self.maps(json!({ "do": "delete", "map": map }), None, Blobs::default()).map(drop)
    }
}

impl Server {
    /// Changes of a map as the scripts read them, the values signed.
    pub(super) fn changes(&self, map: &str, changes: &[Change], blobs: &mut Blobs) -> Json {
        let mut change = |change: &Change| {
            let key = blobs.add(change.key.as_bytes().to_vec());
            let value = change
                .value
                .as_ref()
                .map_or(0, |value| blobs.add(self.signer.seal_entry(map, &change.key, value)));
            json!([key, value])
        };
        changes.iter().map(&mut change).collect::<Vec<Json>>().into()
    }

    /// A map's entries. One that is not signed is left out: nobody of this deployment wrote it.
    pub(super) fn entries(&self, map: &str, flat: Value) -> Result<Entries, BackendError> {
        let mut entries = Entries::new();
        let mut flat = list(flat)?.into_iter();
        while let (Some(key), Some(value)) = (flat.next(), flat.next()) {
            let Ok(key) = text(key) else { continue };
            if let Ok(value) = self.signer.open_entry(map, &key, &bytes(value)?) {
                entries.insert(Arc::from(key), value);
            }
        }
        Ok(entries)
    }
}
