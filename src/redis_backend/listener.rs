//! What other processes say: ends of jobs whose callers wait here, and that there is work. One connection that blocks.

use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{Connection, Value};

use super::connection::{bytes, list, lost, text};
use super::server::Server;
use crate::job::{InstanceId, JobId, JobStatus};
use crate::limits::{ENDS_AN_ENTRY, INBOX_ENDS};
use crate::ports::{BackendError, JobEnded};

/// A wait lasts this long at most: so a change of the server, or the end of this process, is noticed.
pub(super) const LISTEN: Duration = Duration::from_millis(500);

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

/// What was heard.
#[derive(Default)]
pub(super) struct Heard {
    pub(super) ends: Vec<(InstanceId, JobEnded)>,
    /// There may be work.
    pub(super) looks: bool,
    /// Some ends may have gone unheard.
    pub(super) lost: bool,
}

impl Listener {
    /// Takes in what is said within so long to these inboxes, or to all; `None` if it was nothing.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub(super) fn hear(
        &mut self,
        server: &Server,
        inboxes: &[(InstanceId, u64)],
        wait: Duration,
    ) -> Result<Option<Heard>, BackendError> {
        let heard = self.try_to_hear(server, inboxes, wait);
        if heard.is_err() {
            self.connection = None;
        }
        heard
    }

    fn try_to_hear(
        &mut self,
        server: &Server,
        inboxes: &[(InstanceId, u64)],
        wait: Duration,
    ) -> Result<Option<Heard>, BackendError> {
        // Other connections have found that the server is another one: this one may listen to a dead one.
        let generation = server.link.generation.load(Ordering::SeqCst);
        self.connection.take_if(|(_, of)| *of != generation);
        if self.connection.is_none() {
            self.connection = Some((server.link.connect_to_listen(LISTEN)?, generation));
            // Who waked us meanwhile went unheard; what is in an inbox is there still.
            self.streams.retain(|stream| stream.inbox.is_some());
        }
        let Some((connection, _)) = &mut self.connection else { return Ok(None) };
        self.streams.retain(|stream| stream.inbox.is_none_or(|inbox| inboxes.contains(&inbox)));
        for inbox in inboxes {
            if !self.streams.iter().any(|stream| stream.inbox == Some(*inbox)) {
                let (key, at) = (format!("{}inbox:{}", server.prefix, inbox.0), "0-0".into());
                self.streams.push(Stream { key, inbox: Some(*inbox), at });
            }
        }
        let mut heard = Heard::default();
        for group in 0..server.groups.len() {
            let key = format!("{}wake:{group}", server.prefix);
            if !self.streams.iter().any(|stream| stream.key == key) {
                let at = last_id(&key, connection)?;
                self.streams.push(Stream { key, inbox: None, at });
                heard.looks = true;
            }
        }
        if heard.looks {
            return Ok(Some(heard));
        }
        // At its bound an inbox loses the oldest.
        let (entries, is_at_bound) = read(&mut self.streams, wait, connection)?;
        heard.lost = is_at_bound;
        for (inbox, entry) in entries {
            match inbox {
                Some(inbox) => take(server, inbox, entry, &mut heard)?,
                None => heard.looks = true,
            }
        }
        Ok(Some(heard).filter(|heard| heard.lost || heard.looks || !heard.ends.is_empty()))
    }
}

/// An entry of an inbox: the ends of one script.
fn take(server: &Server, inbox: InstanceId, entry: Value, heard: &mut Heard) -> Result<(), BackendError> {
    // Names and values by turns: j(ob), s(tatus), r(esult).
    for end in list(entry)?.chunks_exact(6) {
        let [_, job, _, status, _, result] = end else { continue };
        let (job, status, result) = (text(job.clone())?, text(status.clone())?, bytes(result.clone())?);
        if let (Some(job), Some(status)) = (JobId::parse(&job), JobStatus::parse(&status))
            && let Some(finished) = server.opened_outcome(job, status, &result)
        {
            heard.ends.push((inbox, JobEnded { job, finished }));
        }
    }
    Ok(())
}

/// The id of a stream's last entry; `0-0` if it is empty.
fn last_id(key: &str, connection: &mut Connection) -> Result<String, BackendError> {
    let entries = redis::cmd("XREVRANGE").arg(key).arg("+").arg("-").arg("COUNT").arg(1).query(connection);
    let first = list(entries.map_err(lost)?)?.into_iter().next();
    let id = first.map(list).transpose()?.and_then(|entry| entry.into_iter().next());
    id.map_or(Ok("0-0".into()), text)
}

/// An entry, and whose inbox it came to.
type Entry = (Option<InstanceId>, Value);

/// Waits for what follows; true if an inbox was at its bound. What was read before is removed from inboxes, in the same
/// round trip.
fn read(
    streams: &mut [Stream],
    wait: Duration,
    connection: &mut Connection,
) -> Result<(Vec<Entry>, bool), BackendError> {
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
