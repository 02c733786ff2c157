//! [`KeyValue`] on Redis.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use serde_json::{Value as Json, json};

use super::broker::{Blobs, RedisBroker};
use super::connection::bytes;
use crate::job::{Change, Entries};
use crate::ports::{BackendError, KeyValue};

impl RedisBroker {
    fn maps(&self, mut what: Json, ttl: Option<Duration>, blobs: Blobs) -> Result<Value, BackendError> {
        if let Some(ttl) = ttl {
            what["ttl"] = u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX).into();
        }
        self.0.call(&self.0.scripts.maps, &what, &blobs)
    }
}

impl KeyValue for RedisBroker {
    fn load(&self, map: &str, ttl: Option<Duration>) -> Result<Entries, BackendError> {
        let flat = self.maps(json!({ "do": "load", "map": map }), ttl, Blobs::default())?;
        self.0.entries(map, flat)
    }

    fn get(&self, map: &str, key: &str) -> Result<Option<Arc<[u8]>>, BackendError> {
        let mut blobs = Blobs::default();
        let index = blobs.add(key.as_bytes().to_vec());
        match self.maps(json!({ "do": "get", "map": map, "key": index }), None, blobs)? {
            Value::Nil => Ok(None),
            value => Ok(self.0.signer.open_entry(map, key, &bytes(value)?).ok()),
        }
    }

    fn apply(&self, map: &str, changes: &[Change], ttl: Option<Duration>) -> Result<(), BackendError> {
        let mut blobs = Blobs::default();
        let changes = self.0.changes(map, changes, &mut blobs);
        self.maps(json!({ "do": "apply", "map": map, "ch": changes }), ttl, blobs).map(drop)
    }

    fn delete(&self, map: &str) -> Result<(), BackendError> {
        self.maps(json!({ "do": "delete", "map": map }), None, Blobs::default()).map(drop)
    }
}
