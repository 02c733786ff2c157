//! Streams that wake us: doorbells for an instance, bells for executors. A thread each, which runs nothing else.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::Value;
use serde_json::json;

use super::broker::{Blobs, RedisBroker};
use super::connection::{bytes, list, lost, text};
use crate::bell::Bell;
use crate::job::{InstanceId, JobId, JobStatus};
use crate::limits::INBOX_DOORBELLS;
use crate::ports::{BackendError, Doorbell, Doorbells, Inbox, Replies};

/// A wait on a stream lasts this long at most; so an ear that is dropped ends its thread.
const LISTEN: Duration = Duration::from_millis(500);
const AGAIN: Duration = Duration::from_millis(100);

/// Listens to a stream until it is dropped.
pub(super) struct Ear(Arc<Heard>);

pub(super) struct Heard {
    closed: AtomicBool,
    rang: Mutex<VecDeque<Doorbell>>,
    lost: AtomicBool,
    /// The last entry that was read.
    at: Mutex<String>,
    stream: String,
    /// The bell has rung for all that was read (tests).
    has_rung: AtomicBool,
}

impl Ear {
    pub(super) fn listen(broker: &RedisBroker, stream: String, bell: Bell) -> Result<Ear, BackendError> {
        let at = last_entry(broker, &stream)?;
        let heard = Arc::new(Heard {
            closed: AtomicBool::new(false),
            rang: Mutex::new(VecDeque::new()),
            lost: AtomicBool::new(false),
            at: Mutex::new(at),
            stream,
            has_rung: AtomicBool::new(true),
        });
        let (listener, owned) = (heard.clone(), broker.clone());
        let thread = std::thread::Builder::new().name("redis-ear".into());
        thread
            .spawn(move || {
                while !listener.closed.load(Ordering::SeqCst) {
                    if let Err(error) = listen(&owned, &listener, &bell) {
                        log::warn!("{error}");
                        listener.lost.store(true, Ordering::SeqCst);
                        std::thread::park_timeout(AGAIN);
                    }
                }
            })
            .map_err(|error| BackendError(error.to_string()))?;
        broker.0.ears.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&heard));
        Ok(Ear(heard))
    }
}

impl RedisBroker {
    /// True once every ear has heard what is in its stream (tests).
    ///
    /// # Errors
    /// The backend cannot be reached.
    pub fn has_heard_all(&self) -> Result<bool, BackendError> {
        let mut ears = self.0.ears.lock().unwrap_or_else(PoisonError::into_inner);
        ears.retain(|ear| ear.strong_count() > 0);
        for ear in ears.iter().filter_map(std::sync::Weak::upgrade) {
            let last = last_entry(self, &ear.stream)?;
            let at = ear.at.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if !ear.closed.load(Ordering::SeqCst)
                && last != "0-0"
                && (last != at || !ear.has_rung.load(Ordering::SeqCst))
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The stream's last entry's id; `0-0` if it is empty.
fn last_entry(broker: &RedisBroker, stream: &str) -> Result<String, BackendError> {
    let last = redis::cmd("XREVRANGE").arg(stream).arg("+").arg("-").arg("COUNT").arg(1).clone();
    let first = list(broker.0.link.command(&last)?)?.into_iter().next();
    let id = first.map(list).transpose()?.and_then(|entry| entry.into_iter().next());
    id.map_or(Ok("0-0".into()), text)
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::SeqCst);
    }
}

/// On one connection, until it fails or nobody wants to hear.
fn listen(broker: &RedisBroker, heard: &Heard, bell: &Bell) -> Result<(), BackendError> {
    let mut connection = broker.0.link.connect()?;
    while !heard.closed.load(Ordering::SeqCst) {
        let at = heard.at.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(1_000).arg("BLOCK").arg(LISTEN.as_millis() as u64).arg("STREAMS");
        let streams: Value = read.arg(&heard.stream).arg(at).query(&mut connection).map_err(lost)?;
        let Value::Array(streams) = streams else { continue };
        heard.has_rung.store(false, Ordering::SeqCst);
        for stream in streams {
            let Some(entries) = list(stream)?.into_iter().nth(1) else { continue };
            for entry in list(entries)? {
                take(broker, heard, entry)?;
            }
        }
        bell.ring();
        heard.has_rung.store(true, Ordering::SeqCst);
    }
    Ok(())
}

fn take(broker: &RedisBroker, heard: &Heard, entry: Value) -> Result<(), BackendError> {
    let mut entry = list(entry)?.into_iter();
    let (Some(id), Some(pairs)) = (entry.next(), entry.next()) else { return Ok(()) };
    let mut pairs = list(pairs)?.into_iter();
    let mut field = || pairs.nth(1).map(bytes).transpose().map(Option::unwrap_or_default);
    let (job, status, result) = (field()?, field()?, field()?);
    let job = std::str::from_utf8(&job).ok().and_then(JobId::parse);
    let status = std::str::from_utf8(&status).ok().and_then(JobStatus::parse);
    if let (Some(job), Some(status)) = (job, status) {
        match broker.0.signer.open_outcome(job, status, &result) {
            Ok(finished) => {
                let mut rang = heard.rang.lock().unwrap_or_else(PoisonError::into_inner);
                if rang.len() < INBOX_DOORBELLS {
                    rang.push_back(Doorbell { job, finished: Arc::new(finished) });
                } else {
                    heard.lost.store(true, Ordering::SeqCst);
                }
            }
            Err(_) => log::warn!("redis: an outcome that nobody of this deployment signed was dropped"),
        }
    }
    *heard.at.lock().unwrap_or_else(PoisonError::into_inner) = text(id)?;
    Ok(())
}

impl Replies for RedisBroker {
    fn subscribe(&self, instance: InstanceId, bell: Bell) -> Result<Box<dyn Inbox>, BackendError> {
        let name = format!("{:016x}", instance.0);
        self.0.call(&self.0.scripts.control, json!({ "do": "subscribe", "in": name }), Blobs::default())?;
        let ear = Ear::listen(self, format!("{}inbox:{name}", self.0.prefix), bell)?;
        Ok(Box::new(RedisInbox { broker: self.clone(), name, ear }))
    }
}

struct RedisInbox {
    broker: RedisBroker,
    name: String,
    ear: Ear,
}

impl Inbox for RedisInbox {
    fn take(&mut self, most: usize) -> Result<Doorbells, BackendError> {
        let mut rang = self.ear.0.rang.lock().unwrap_or_else(PoisonError::into_inner);
        let take = most.min(rang.len());
        Ok(Doorbells {
            rang: rang.drain(..take).collect(),
            lost: self.ear.0.lost.swap(false, Ordering::SeqCst),
        })
    }
}

impl Drop for RedisInbox {
    fn drop(&mut self) {
        let what = json!({ "do": "unsubscribe", "in": self.name });
        let _ = self.broker.0.call(&self.broker.0.scripts.control, what, Blobs::default());
    }
}
