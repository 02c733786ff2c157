//! The control socket between a supervisor and a child: one bundle, then small commands.
//!
//! `length u32 | kind u8 | body`, big-endian; `length` counts the bytes after itself. It is a socket pair that
//! nobody else can reach, so it is not signed; a malformed message ends the child, an end of file as well.

use std::io::{ErrorKind, Read, Write};

use mio::net::UnixStream;
use zeroize::{Zeroize, Zeroizing};

use crate::channel::Reject;
use crate::job::JobId;
use crate::named::named;

/// The bundle is the largest message: a config, and 32 bytes a group.
const MESSAGE_BYTES: usize = 4 << 20;

/// Jobs of one [`ToParent::CutOff`].
const CUT_OFF_AT_ONCE: usize = 1_000;

/// From the supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToChild {
    /// Where the broker listens.
    Channel(String),
    /// Say that you live.
    Ping,
    /// Stop taking jobs; finish within so many ms.
    Drain(u64),
    /// End now.
    Stop,
    /// It may leave, as it asked: finish its jobs, take no more, end.
    Leave,
    /// For the metrics: so many processes of this group were replaced for this reason.
    Replaced(String, String, u64),
    /// The broker's name for the web process whose place this one has taken: its leases are over.
    Succeeds(String),
}

/// From a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToParent {
    /// It serves; web says where the channel listens, and its name at the broker, if it has one.
    Ready(String),
    /// Answers a ping.
    Pong,
    /// The drain is over; these jobs were cut off, a bounded number; the next message may name more.
    CutOff(Vec<JobId>),
    /// The drain is over; so many jobs were cut off.
    Drained(u64),
    /// It asks to be replaced.
    Leaving(Leaving),
    /// It has begun its first job.
    Worked,
}

named! {
    /// Why an executor asks to be replaced: the reasons of `process_recycled_total`, in the order of their numbers on the
    /// wire.
    Leaving {
        /// It has finished as many jobs as its group allows.
        MaxJobs = "max_jobs",
        /// It holds more memory than its group allows.
        MaxRss = "max_rss",
        /// Handlers that ignore the end of their time hold its workers.
        Stuck = "stuck",
    }
}

/// What a control message is made from and read into.
pub trait Message: Sized {
    /// Kind and body.
    fn encode(&self) -> (u8, Vec<u8>);
    /// Reads one.
    ///
    /// # Errors
    /// It is malformed.
    fn decode(kind: u8, body: &[u8]) -> Result<Self, Reject>;
}

impl Message for ToChild {
    fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            ToChild::Channel(address) => (2, address.clone().into_bytes()),
            ToChild::Ping => (3, Vec::new()),
            ToChild::Drain(millis) => (4, millis.to_be_bytes().to_vec()),
            ToChild::Stop => (5, Vec::new()),
            ToChild::Leave => (7, Vec::new()),
            ToChild::Replaced(group, reason, count) => (6, format!("{group} {reason} {count}").into_bytes()),
            ToChild::Succeeds(name) => (8, name.clone().into_bytes()),
        }
    }

    fn decode(kind: u8, body: &[u8]) -> Result<ToChild, Reject> {
        let text = || String::from_utf8(body.to_vec()).map_err(|_| Reject::Malformed);
        match (kind, body) {
            (2, _) => Ok(ToChild::Channel(text()?)),
            (3, []) => Ok(ToChild::Ping),
            (4, _) => Ok(ToChild::Drain(u64::from_be_bytes(body.try_into().map_err(|_| Reject::Malformed)?))),
            (5, []) => Ok(ToChild::Stop),
            (7, []) => Ok(ToChild::Leave),
            (6, _) => {
                let text = text()?;
                let mut words = text.split(' ');
                let (Some(group), Some(reason), Some(Some(count)), None) =
                    (words.next(), words.next(), words.next().map(number), words.next())
                else {
                    return Err(Reject::Malformed);
                };
                Ok(ToChild::Replaced(group.into(), reason.into(), count))
            }
            (8, _) => Ok(ToChild::Succeeds(text()?)),
            _ => Err(Reject::Malformed),
        }
    }
}

/// A number in its one form.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}

impl Message for ToParent {
    fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            ToParent::Ready(address) => (0x81, address.clone().into_bytes()),
            ToParent::Pong => (0x82, Vec::new()),
            ToParent::CutOff(jobs) => (0x83, jobs.iter().flat_map(|job| job.0).collect()),
            ToParent::Drained(count) => (0x85, count.to_be_bytes().to_vec()),
            ToParent::Leaving(why) => (0x84, vec![*why as u8]),
            ToParent::Worked => (0x86, Vec::new()),
        }
    }

    fn decode(kind: u8, body: &[u8]) -> Result<ToParent, Reject> {
        match (kind, body) {
            (0x81, _) => {
                Ok(ToParent::Ready(String::from_utf8(body.to_vec()).map_err(|_| Reject::Malformed)?))
            }
            (0x82, []) => Ok(ToParent::Pong),
            (0x86, []) => Ok(ToParent::Worked),
            (0x83, _) if body.len().is_multiple_of(16) => {
                let ids = body.chunks_exact(16).filter_map(|id| id.try_into().ok());
                Ok(ToParent::CutOff(ids.map(JobId).collect()))
            }
            (0x85, count) => {
                Ok(ToParent::Drained(u64::from_be_bytes(count.try_into().map_err(|_| Reject::Malformed)?)))
            }
            (0x84, [why]) => Leaving::ALL
                .get(usize::from(*why))
                .map(|why| ToParent::Leaving(*why))
                .ok_or(Reject::Malformed),
            _ => Err(Reject::Malformed),
        }
    }
}

/// Frames a message.
#[must_use]
pub fn framed(kind: u8, body: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(5 + body.len()));
    out.extend_from_slice(&u32::try_from(1 + body.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.push(kind);
    out.extend_from_slice(body);
    out
}

/// Kind, body, and the whole length.
pub type Split<'a> = (u8, &'a [u8], usize);

/// The message at the start of the bytes.
///
/// # Errors
/// Its length makes no sense.
pub fn split(bytes: &[u8]) -> Result<Option<Split<'_>>, Reject> {
    let Some(length) = bytes.first_chunk().map(|length| u32::from_be_bytes(*length) as usize) else {
        return Ok(None);
    };
    if length == 0 || length > MESSAGE_BYTES {
        return Err(Reject::Malformed);
    }
    let Some(message) = bytes.get(4..4 + length) else { return Ok(None) };
    Ok(message.split_first().map(|(kind, body)| (*kind, body, 4 + length)))
}

/// One end of a control socket, without blocking.
pub struct ControlSocket {
    stream: UnixStream,
    input: Vec<u8>,
    output: Zeroizing<Vec<u8>>,
    ended: bool,
}

/// The other end is gone, or says what makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

impl ControlSocket {
    /// Around a socket that does not block.
    #[must_use]
    pub fn new(stream: UnixStream) -> ControlSocket {
        ControlSocket { stream, input: Vec::new(), output: Zeroizing::new(Vec::new()), ended: false }
    }

    /// The socket, to register.
    pub fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// What has arrived.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn read<M: Message>(&mut self) -> Result<Vec<M>, Gone> {
        let mut buffer = [0; 4_096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(_) if self.input.len() > 2 * MESSAGE_BYTES => return Err(Gone),
                Ok(read) => self.input.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A peer that is gone before it has read everything resets the connection.
                Err(_) => {
                    self.ended = true;
                    break;
                }
            }
        }
        let mut messages = Vec::new();
        while let Some((kind, body, length)) = split(&self.input).map_err(|_| Gone)? {
            messages.push(M::decode(kind, body).map_err(|_| Gone)?);
            self.input.drain(..length);
        }
        // What was said before the end still counts.
        if self.ended && messages.is_empty() { Err(Gone) } else { Ok(messages) }
    }

    /// The other end has closed; what it said before was read.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Names jobs that were cut off.
    pub fn name_cut_off(&mut self, jobs: &[JobId]) {
        jobs.chunks(CUT_OFF_AT_ONCE).for_each(|some| self.send(&ToParent::CutOff(some.to_vec())));
    }

    /// Queues and writes a message; what does not fit goes with the next [`ControlSocket::flush`].
    pub fn send<M: Message>(&mut self, message: &M) {
        let (kind, body) = message.encode();
        self.send_bytes(&framed(kind, &body));
    }

    /// The same with framed bytes.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        // A peer that never reads is killed for its silence; until then the queue has a bound.
        if self.output.len() < 2 * MESSAGE_BYTES {
            self.output.extend_from_slice(bytes);
        }
        self.flush();
    }

    /// Writes what is queued.
    pub fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(written) => {
                    self.output[..written].zeroize();
                    self.output.drain(..written);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_come_back_as_they_were() {
        for message in [
            ToChild::Channel("127.0.0.1:1".into()),
            ToChild::Ping,
            ToChild::Drain(5),
            ToChild::Stop,
            ToChild::Leave,
            ToChild::Replaced("execution".into(), "crashed".into(), 3),
            ToChild::Succeeds("node".into()),
        ] {
            let (kind, body) = message.encode();
            let bytes = framed(kind, &body);
            let (kind, body, length) = split(&bytes).unwrap().unwrap();
            assert_eq!((ToChild::decode(kind, body), length), (Ok(message), bytes.len()));
            assert_eq!(split(&bytes[..bytes.len() - 1]), Ok(None));
        }
        for message in [
            ToParent::Ready("a".into()),
            ToParent::CutOff(vec![JobId([1; 16])]),
            ToParent::Drained(7),
            ToParent::Leaving(Leaving::Stuck),
            ToParent::Worked,
        ] {
            let (kind, body) = message.encode();
            assert_eq!(ToParent::decode(kind, &body), Ok(message));
        }
        assert_eq!(split(&[0, 0, 0, 0, 0]), Err(Reject::Malformed));
        assert_eq!(split(&[0xFF, 0, 0, 0, 0]), Err(Reject::Malformed));
    }
}
