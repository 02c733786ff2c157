//! What other processes say: ends of jobs whose callers wait here, and that there is work. One connection that blocks.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::{Connection, Value};

use super::broker::Shared;
use super::connection::{PAUSES, bytes, list, lost, text};
use super::turn::State;
use crate::bell::lock;
use crate::job::{InstanceId, JobId, JobStatus};
use crate::limits::{ENDS_AN_ENTRY, INBOX_ENDS};
use crate::ports::{BackendError, JobEnded};

/// A wait lasts this long at most: so a change of the server, or the end of this process, is noticed.
const LISTEN: Duration = Duration::from_millis(500);
/// The log hears of a server that is away this often at most.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Default)]
pub(super) struct Listener {
    /// With the generation of connections that it is of.
    connection: Option<(Connection, u64)>,
    streams: Vec<Stream>,
}

/// Where an inbox, or a group's wakes, were read up to.
struct Stream {
    key: String,
    /// `Some` iff it is an inbox; with how often that was made again.
    inbox: Option<(InstanceId, u64)>,
    at: String,
}

impl Shared {
    pub(super) fn listen_for_ever(&self) {
        let (mut pause, mut said_at) = (PAUSES[0], None::<Instant>);
        while !lock(&self.state).is_closed {
            let Err(error) = self.hear(LISTEN) else {
                pause = PAUSES[0];
                continue;
            };
            if said_at.is_none_or(|at| at.elapsed() > SAY_EVERY) {
                said_at = Some(Instant::now());
                log::warn!("the backend is not heard for now: {error}");
            }
            std::thread::park_timeout(pause);
            pause = (pause * 2).min(PAUSES[1]);
        }
    }

    /// Takes in what is said within so long; true if something was.
    ///
    /// # Errors
    /// The server cannot be reached: what is said meanwhile goes unheard, and is looked for where it is kept.
    pub(super) fn hear(&self, wait: Duration) -> Result<bool, BackendError> {
        let listener = &mut *lock(&self.listener);
        let heard = self.try_to_hear(listener, wait);
        if heard.is_err() {
            listener.connection = None;
        }
        heard
    }

    fn try_to_hear(&self, listener: &mut Listener, wait: Duration) -> Result<bool, BackendError> {
        // Other connections have found that the server is another one: this one may listen to a dead one.
        let generation = self.link.generation.load(Ordering::SeqCst);
        listener.connection.take_if(|(_, of)| *of != generation);
        if listener.connection.is_none() {
            listener.connection = Some((self.link.connect_to_listen(LISTEN)?, generation));
            // Who waked us meanwhile went unheard; what is in an inbox is there still.
            listener.streams.retain(|stream| stream.inbox.is_some());
        }
        let Some((connection, _)) = &mut listener.connection else { return Ok(false) };
        let inboxes = lock(&self.state).inboxes();
        listener.streams.retain(|stream| stream.inbox.is_none_or(|inbox| inboxes.contains(&inbox)));
        for inbox in inboxes {
            if !listener.streams.iter().any(|stream| stream.inbox == Some(inbox)) {
                let (key, at) = (format!("{}inbox:{}", self.prefix, inbox.0), "0-0".into());
                listener.streams.push(Stream { key, inbox: Some(inbox), at });
            }
        }
        let mut is_new = false;
        for group in 0..self.groups.len() {
            let key = format!("{}wake:{group}", self.prefix);
            if !listener.streams.iter().any(|stream| stream.key == key) {
                let at = last_id(&key, connection)?;
                listener.streams.push(Stream { key, inbox: None, at });
                is_new = true;
            }
        }
        if is_new {
            lock(&self.state).look();
            self.filled.notify_one();
        }
        let (heard, is_at_bound) = read(&mut listener.streams, wait, connection)?;
        if is_at_bound {
            // The oldest went first.
            self.change(State::lost_ends);
        }
        let is_heard = !heard.is_empty();
        for (inbox, entry) in heard {
            match inbox {
                Some(inbox) => self.take(inbox, entry)?,
                None => lock(&self.state).look(),
            }
        }
        if is_heard {
            self.filled.notify_one();
        }
        Ok(is_heard || is_new)
    }

    /// An entry of an inbox: the ends of one script.
    fn take(&self, inbox: InstanceId, entry: Value) -> Result<(), BackendError> {
        // Names and values by turns: j(ob), s(tatus), r(esult).
        for end in list(entry)?.chunks_exact(6) {
            let [_, job, _, status, _, result] = end else { continue };
            let (job, status, result) = (text(job.clone())?, text(status.clone())?, bytes(result.clone())?);
            if let (Some(job), Some(status)) = (JobId::parse(&job), JobStatus::parse(&status))
                && let Some(finished) = self.opened_outcome(job, status, &result)
            {
                self.change(|state| state.ended(inbox, JobEnded { job, finished }));
            }
        }
        Ok(())
    }
}

/// The id of a stream's last entry; `0-0` if it is empty.
fn last_id(key: &str, connection: &mut Connection) -> Result<String, BackendError> {
    let entries = redis::cmd("XREVRANGE").arg(key).arg("+").arg("-").arg("COUNT").arg(1).query(connection);
    let first = list(entries.map_err(lost)?)?.into_iter().next();
    let id = first.map(list).transpose()?.and_then(|entry| entry.into_iter().next());
    id.map_or(Ok("0-0".into()), text)
}

/// An entry, and whose inbox it came to.
type Heard = (Option<InstanceId>, Value);

/// Waits for what follows; true if an inbox was at its bound. What was read before is removed from inboxes, in the same
/// round trip.
fn read(
    streams: &mut [Stream],
    wait: Duration,
    connection: &mut Connection,
) -> Result<(Vec<Heard>, bool), BackendError> {
    let mut pipe = redis::pipe();
    let mut inboxes = 0;
    for stream in streams.iter().filter(|stream| stream.inbox.is_some()) {
        inboxes += 1;
        pipe.cmd("XTRIM").arg(&stream.key).arg("MINID").arg(&stream.at).ignore();
        pipe.cmd("XLEN").arg(&stream.key);
    }
    pipe.cmd("XREAD").arg("COUNT").arg(256);
    if !wait.is_zero() {
        pipe.arg("BLOCK").arg(wait.as_millis() as u64);
    }
    pipe.arg("STREAMS").arg(streams.iter().map(|stream| stream.key.as_str()).collect::<Vec<_>>());
    pipe.arg(streams.iter().map(|stream| stream.at.as_str()).collect::<Vec<_>>());
    let mut answers: Vec<Value> = pipe.query(connection).map_err(lost)?;
    let read = answers.pop();
    let is_at_bound = answers.iter().take(inboxes).any(|length| {
        matches!(length, Value::Int(length) if usize::try_from(*length).is_ok_and(|l| l >= INBOX_ENDS / ENDS_AN_ENTRY))
    });
    let mut found = Vec::new();
    let Some(Value::Array(read)) = read else { return Ok((found, is_at_bound)) };
    for of_stream in read {
        let mut parts = list(of_stream)?.into_iter();
        let (Some(key), Some(entries)) = (parts.next(), parts.next()) else { continue };
        let key = text(key)?;
        let Some(stream) = streams.iter_mut().find(|stream| stream.key == key) else { continue };
        for entry in list(entries)? {
            let mut entry = list(entry)?.into_iter();
            if let (Some(id), Some(pairs)) = (entry.next(), entry.next()) {
                stream.at = text(id)?;
                found.push((stream.inbox.map(|(inbox, _)| inbox), pairs));
            }
        }
    }
    Ok((found, is_at_bound))
}
