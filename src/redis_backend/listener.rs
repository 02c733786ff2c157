//! What other processes say: ends of jobs whose callers wait here, and that there is work. One connection that blocks.

use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{Connection, Value};
use serde_json::json;

use super::connection::{is_of_another_type, lost, read};
use super::server::{Arguments, Server};
use crate::job::{InstanceId, JobId, JobStatus};
use crate::limits::{ENDS_AN_ENTRY, INBOX_ENDS};
use crate::ports::{JobEnded, Reached};

/// A wait lasts this long at most: so a change of the server, or the end of this process, is noticed.
pub const LISTEN: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Default)]
pub struct Listener {
    /// With the generation of connections that it is of.
    connection: Option<(Connection, u64)>,
    streams: Vec<Stream>,
}

/// An inbox, or a group's wakes, and up to where it was read.
struct Stream {
    key: String,
    /// `Some` iff it is an inbox; with how often that was made again.
    inbox: Option<(InstanceId, u64)>,
    at: String,
}

/// What was heard.
#[derive(Default)]
pub struct Heard {
    pub ends: Vec<(InstanceId, JobEnded)>,
    /// There may be work.
    pub looks: bool,
    /// Some ends may have gone unheard.
    pub lost: bool,
}

impl Listener {
    /// Takes in what is said within so long to these inboxes, or to all; `None` if it was nothing.
    pub fn hear(
        &mut self,
        server: &Server,
        inboxes: &[(InstanceId, u64)],
        wait: Duration,
    ) -> Reached<Option<Heard>> {
        // Other connections have found that the server is another one: this one may listen to a dead one.
        let generation = server.link.generation.load(Ordering::SeqCst);
        let kept = self.connection.take().filter(|(_, of)| *of == generation);
        let (is_new, (mut connection, of)) = match kept {
            Some(kept) => (false, kept),
            None => (true, (server.link.open(LISTEN).map_err(lost)?, generation)),
        };
        // Who waked us meanwhile may stand behind where we were; what is in an inbox is there still.
        self.streams.retain(|stream| stream.inbox.map_or(!is_new, |inbox| inboxes.contains(&inbox)));
        let wakes = (0..server.settings.groups.len()).map(|group| (format!("wake:{group}"), None));
        let of_callers = inboxes.iter().map(|inbox| (format!("inbox:{}", inbox.0), Some(*inbox)));
        for (name, inbox) in wakes.chain(of_callers) {
            let key = format!("{}{name}", server.settings.prefix);
            if !self.streams.iter().any(|stream| stream.key == key) {
                self.streams.push(Stream { key, inbox, at: "0-0".into() });
            }
        }
        let wait = if is_new { Duration::ZERO } else { wait };
        let (lengths, entries) = match self.read(wait, &mut connection) {
            Err(error) if is_of_another_type(&error.0) => {
                let here: Vec<String> = inboxes.iter().map(|(inbox, _)| inbox.to_string()).collect();
                let mut arguments = Arguments::default();
                arguments.what = json!({ "node": server.node, "here": here });
                server.mend(&mut arguments, &mut connection).map_err(lost)?;
                return Err(error);
            }
            read => read?,
        };
        self.connection = Some((connection, of));
        // At its bound an inbox loses the oldest.
        let lost = lengths.iter().any(|length| *length >= INBOX_ENDS / ENDS_AN_ENTRY);
        let mut heard = Heard { lost, looks: is_new, ends: Vec::new() };
        for (key, entries) in entries.unwrap_or_default() {
            let Some(stream) = self.streams.iter_mut().find(|stream| stream.key == key) else { continue };
            for (id, pairs) in entries {
                stream.at = id;
                match stream.inbox {
                    Some((inbox, _)) => heard.ends.extend(ends(server, inbox, &pairs)),
                    None => heard.looks = true,
                }
            }
        }
        Ok(Some(heard).filter(|heard| heard.lost || heard.looks || !heard.ends.is_empty()))
    }

    /// Waits for what follows. What was read before is removed from inboxes, in the same round trip.
    fn read(&self, wait: Duration, connection: &mut Connection) -> Reached<Read> {
        let mut pipe = redis::pipe();
        for stream in self.streams.iter().filter(|stream| stream.inbox.is_some()) {
            pipe.cmd("XTRIM").arg(&stream.key).arg("MINID").arg(&stream.at).ignore();
            pipe.cmd("XLEN").arg(&stream.key);
        }
        pipe.cmd("XREAD").arg("COUNT").arg(256);
        if !wait.is_zero() {
            pipe.arg("BLOCK").arg(wait.as_millis() as u64);
        }
        pipe.arg("STREAMS").arg(self.streams.iter().map(|stream| &stream.key).collect::<Vec<_>>());
        pipe.arg(self.streams.iter().map(|stream| &stream.at).collect::<Vec<_>>());
        let mut answers: Vec<Value> = pipe.query(connection).map_err(lost)?;
        let entries = answers.pop().map_or(Ok(None), read)?;
        Ok((answers.into_iter().map(read).collect::<Result<_, _>>()?, entries))
    }
}

/// Lengths of inboxes; by key, entries with their ids, each of names and values by turns.
type Read = (Vec<usize>, Option<Vec<(String, Vec<(String, Vec<Vec<u8>>)>)>>);

/// An entry of an inbox: the ends of one script. By turns: j(ob), s(tatus), r(esult).
fn ends(server: &Server, inbox: InstanceId, pairs: &[Vec<u8>]) -> Vec<(InstanceId, JobEnded)> {
    let end = |end: &[Vec<u8>]| {
        let [_, job, _, status, _, result] = end else { return None };
        let job = JobId::parse(std::str::from_utf8(job).ok()?)?;
        let status = JobStatus::parse(std::str::from_utf8(status).ok()?)?;
        let finished = server.opened_outcome(job, status, result)?;
        Some((inbox, JobEnded { job, finished }))
    };
    pairs.chunks_exact(6).filter_map(end).collect()
}
