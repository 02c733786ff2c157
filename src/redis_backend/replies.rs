//! Streams that wake us: doorbells for an instance, bells for executors. A thread each, which runs nothing else.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redis::{Connection, Value};
use serde_json::json;

use super::broker::{Blobs, RedisBroker};
use super::connection::{PAUSES, bytes, list, lost, text};
use crate::bell::{Bell, lock};
use crate::job::{InstanceId, JobId, JobStatus};
use crate::limits::{DOORBELLS_AN_ENTRY, INBOX_DOORBELLS};
use crate::ports::{BackendError, Doorbell, Doorbells, Inbox, Producer, Replies, Viewer};

/// A wait on a stream lasts this long at most; so an ear that is dropped ends its thread.
const LISTEN: Duration = Duration::from_millis(500);
/// An inbox nobody keeps open vanishes after this long; it is kept open by a word this often.
const INBOX_LIVES: Duration = Duration::from_secs(60);
const KEEP_OPEN: Duration = Duration::from_secs(15);
/// The log hears of a server that is away this often at most.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// What an ear listens to.
#[derive(Clone)]
pub(super) enum Stream {
    /// An executor group's bell.
    Bell(usize),
    /// The doorbells of an instance.
    Inbox(String),
}

/// Listens to a stream until it is dropped.
pub(super) struct Ear(Arc<Heard>);

pub(super) struct Heard {
    closed: AtomicBool,
    rang: Mutex<VecDeque<Doorbell>>,
    lost: AtomicBool,
    stream: Stream,
    key: String,
    /// The last entry that was read; empty before the first connection (tests).
    at: Mutex<String>,
    /// The stream was there before anybody could have rung.
    was_open: bool,
    /// It listened, since the last failure.
    was_up: AtomicBool,
    /// The bell has rung for all that was read (tests).
    has_rung: AtomicBool,
}

impl Ear {
    /// Starts to listen; the server may be away.
    pub(super) fn listen(broker: &RedisBroker, stream: Stream, bell: Bell) -> Result<Ear, BackendError> {
        let key = match &stream {
            Stream::Bell(group) => format!("{}bell:{group}", broker.0.prefix),
            Stream::Inbox(name) => format!("{}inbox:{name}", broker.0.prefix),
        };
        let was_open = open(broker, &stream).is_ok();
        let heard = Arc::new(Heard {
            closed: AtomicBool::new(false),
            rang: Mutex::default(),
            lost: AtomicBool::new(false),
            stream,
            key,
            at: Mutex::default(),
            was_open,
            was_up: AtomicBool::new(false),
            has_rung: AtomicBool::new(false),
        });
        let (listener, owned) = (heard.clone(), broker.clone());
        let thread = std::thread::Builder::new().name("redis-ear".into());
        thread
            .spawn(move || listen_for_ever(&owned, &listener, &bell))
            .map_err(|error| BackendError(error.to_string()))?;
        lock(&broker.0.ears).push(Arc::downgrade(&heard));
        Ok(Ear(heard))
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::SeqCst);
    }
}

impl RedisBroker {
    /// True once every ear has heard what is in its stream (tests).
    ///
    /// # Errors
    /// The backend cannot be reached.
    pub fn has_heard_all(&self) -> Result<bool, BackendError> {
        let mut ears = lock(&self.0.ears);
        ears.retain(|ear| ear.strong_count() > 0);
        for ear in ears.iter().filter_map(std::sync::Weak::upgrade) {
            if ear.closed.load(Ordering::SeqCst) {
                continue;
            }
            let last = last_entry(&ear.key);
            let last = last_id(self.0.link.command(&last)?)?;
            let at = lock(&ear.at).clone();
            if !ear.has_rung.load(Ordering::SeqCst) || (last != "0-0" && last != at) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Asks for the stream's last entry.
fn last_entry(key: &str) -> redis::Cmd {
    redis::cmd("XREVRANGE").arg(key).arg("+").arg("-").arg("COUNT").arg(1).clone()
}

/// Its id; `0-0` if the stream is empty.
fn last_id(entries: Value) -> Result<String, BackendError> {
    let first = list(entries)?.into_iter().next();
    let id = first.map(list).transpose()?.and_then(|entry| entry.into_iter().next());
    id.map_or(Ok("0-0".into()), text)
}

fn listen_for_ever(broker: &RedisBroker, heard: &Heard, bell: &Bell) {
    let (mut pause, mut said_at) = (PAUSES[0], None::<Instant>);
    while !heard.closed.load(Ordering::SeqCst) {
        let Err(error) = listen(broker, heard, bell) else { return };
        if heard.was_up.swap(false, Ordering::SeqCst) {
            pause = PAUSES[0];
            broker.0.link.add_broken(1);
        }
        if said_at.is_none_or(|at| at.elapsed() > SAY_EVERY) {
            said_at = Some(Instant::now());
            log::warn!("the backend is not heard for now: {error}");
        }
        std::thread::park_timeout(pause);
        pause = (pause * 2).min(PAUSES[1]);
    }
}

/// On one connection, until it fails or nobody wants to hear.
fn listen(broker: &RedisBroker, heard: &Heard, bell: &Bell) -> Result<(), BackendError> {
    let mut connection = broker.0.link.connect_to_listen(LISTEN)?;
    let mut kept_at = keep_open(broker, heard)?;
    let last: Value = last_entry(&heard.key).query(&mut connection).map_err(lost)?;
    let is_again = !lock(&heard.at).is_empty();
    // An inbox that was there from the beginning is read from its beginning.
    let from_start = !is_again && heard.was_open && matches!(heard.stream, Stream::Inbox(_));
    *lock(&heard.at) = if from_start { "0-0".into() } else { last_id(last)? };
    // What rang before this connection went unheard: it is looked for where it is kept, from now on.
    if is_again || !heard.was_open {
        heard.lost.store(true, Ordering::SeqCst);
    }
    if is_again || matches!(heard.stream, Stream::Bell(_)) {
        bell.ring();
    }
    heard.has_rung.store(true, Ordering::SeqCst);
    heard.was_up.store(true, Ordering::SeqCst);
    while !heard.closed.load(Ordering::SeqCst) {
        if kept_at.elapsed() >= KEEP_OPEN {
            kept_at = keep_open(broker, heard)?;
        }
        let at = lock(&heard.at).clone();
        let Some(entries) = read(heard, &at, &mut connection)? else { continue };
        heard.has_rung.store(false, Ordering::SeqCst);
        for entry in entries {
            take(broker, heard, entry)?;
        }
        bell.ring();
        heard.has_rung.store(true, Ordering::SeqCst);
    }
    Ok(())
}

/// Opens an inbox, or says that somebody listens to it; true if it was not there.
fn open(broker: &RedisBroker, stream: &Stream) -> Result<bool, BackendError> {
    let Stream::Inbox(name) = stream else { return Ok(false) };
    let ttl = INBOX_LIVES.as_millis() as u64;
    let what = json!({ "do": "listen", "in": name, "ttl": ttl });
    let answer = broker.0.call(&broker.0.scripts.control, &what, &Blobs::default())?;
    Ok(text(answer)? == "new")
}

/// The same again. An inbox that had vanished has lost what rang.
fn keep_open(broker: &RedisBroker, heard: &Heard) -> Result<Instant, BackendError> {
    if open(broker, &heard.stream)? {
        heard.lost.store(true, Ordering::SeqCst);
    }
    Ok(Instant::now())
}

/// Waits for what follows `at`. What was read before is removed from an inbox, in the same round trip.
fn read(heard: &Heard, at: &str, connection: &mut Connection) -> Result<Option<Vec<Value>>, BackendError> {
    let mut pipe = redis::pipe();
    let is_inbox = matches!(heard.stream, Stream::Inbox(_));
    if is_inbox {
        pipe.cmd("XTRIM").arg(&heard.key).arg("MINID").arg(at).ignore();
        pipe.cmd("XLEN").arg(&heard.key);
    }
    pipe.cmd("XREAD").arg("COUNT").arg(256).arg("BLOCK").arg(LISTEN.as_millis() as u64);
    pipe.arg("STREAMS").arg(&heard.key).arg(at);
    let mut answers: Vec<Value> = pipe.query(connection).map_err(lost)?;
    let streams = answers.pop();
    if let Some(Value::Int(length)) = answers.pop()
        && usize::try_from(length).is_ok_and(|length| length >= INBOX_DOORBELLS / DOORBELLS_AN_ENTRY)
    {
        // At its bound the oldest go first.
        heard.lost.store(true, Ordering::SeqCst);
    }
    let Some(Value::Array(streams)) = streams else { return Ok(None) };
    let mut found = Vec::new();
    for stream in streams {
        if let Some(entries) = list(stream)?.into_iter().nth(1) {
            found.extend(list(entries)?);
        }
    }
    Ok(Some(found))
}

/// An entry: the doorbells of one script's commits.
fn take(broker: &RedisBroker, heard: &Heard, entry: Value) -> Result<(), BackendError> {
    let mut entry = list(entry)?.into_iter();
    let (Some(id), Some(pairs)) = (entry.next(), entry.next()) else { return Ok(()) };
    let pairs = list(pairs)?;
    // Names and values by turns: j(ob), s(tatus), r(esult).
    for bell in pairs.chunks_exact(6) {
        let [_, job, _, status, _, result] = bell else { continue };
        let (job, status, result) = (bytes(job.clone())?, bytes(status.clone())?, bytes(result.clone())?);
        let job = std::str::from_utf8(&job).ok().and_then(JobId::parse);
        let status = std::str::from_utf8(&status).ok().and_then(JobStatus::parse);
        if let (Some(job), Some(status)) = (job, status) {
            ring(broker, heard, job, status, &result)?;
        }
    }
    *lock(&heard.at) = text(id)?;
    Ok(())
}

fn ring(
    broker: &RedisBroker,
    heard: &Heard,
    job: JobId,
    status: JobStatus,
    result: &[u8],
) -> Result<(), BackendError> {
    let finished = match result.is_empty() {
        // Too large for a doorbell.
        true => broker.record(&Viewer::anonymous(), job)?.and_then(|record| record.finished),
        false => broker.0.signer.open_outcome(job, status, result).ok().map(Arc::new),
    };
    let Some(finished) = finished else {
        log::warn!(
            "job {job}: an outcome that is gone, or that nobody of this deployment signed, is dropped"
        );
        return Ok(());
    };
    let mut rang = lock(&heard.rang);
    if rang.len() < INBOX_DOORBELLS {
        rang.push_back(Doorbell { job, finished });
    } else {
        heard.lost.store(true, Ordering::SeqCst);
    }
    Ok(())
}

impl Replies for RedisBroker {
    fn subscribe(&self, instance: InstanceId, bell: Bell) -> Result<Box<dyn Inbox>, BackendError> {
        let name = instance.to_string();
        let ear = Ear::listen(self, Stream::Inbox(name.clone()), bell)?;
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
        let mut rang = lock(&self.ear.0.rang);
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
        let _ = self.broker.0.call(&self.broker.0.scripts.control, &what, &Blobs::default());
    }
}
