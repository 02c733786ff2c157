//! Cases of HTTP said to a server over a socket: the bytes, the pauses between them, the end of the client's side.
//!
//! It guards the suite against a client that is kinder than a socket: it reads while it writes, so that neither side
//! waits for the other, and it tells an end from silence.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::cases::{Case, End, PROBE, Step, Talk};

/// No server needs longer, unless it never answers.
const PATIENCE: Duration = Duration::from_secs(8);
/// After this much silence nothing more comes.
const SILENCE: Duration = Duration::from_millis(150);
/// So long a client waits for another server's `100 Continue`, which may never come.
const LISTENS: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Says a case; what came of it.
pub fn converse(case: &Case, server: SocketAddr, is_ours: bool) -> Result<Talk, String> {
    let stream = TcpStream::connect_timeout(&server, PATIENCE).map_err(|error| error.to_string())?;
    stream.set_nodelay(true).and(stream.set_nonblocking(true)).map_err(|error| error.to_string())?;
    let mut client =
        Client { stream, begun: Instant::now(), unread: case.unread, sent: 0, talk: Talk::default() };
    for step in &case.steps {
        match step {
            Step::Send(bytes) => client.send(bytes),
            Step::Wait(pause) => client.until(*pause, |_| false),
            Step::Listen => {
                // From where the last bytes were sent: the answer may have been read along with sending them.
                let sent = client.sent;
                let most = if is_ours { PATIENCE } else { LISTENS };
                client.until(most, |talk| talk.said.len() > sent);
            }
            // A server that has closed already has no use for it.
            Step::Shut => drop(client.stream.shutdown(Shutdown::Write)),
        }
    }
    match case.end {
        End::Open => {
            client.until(PATIENCE, |talk| case.is_answered(&talk.said, is_ours) || case.expect.is_empty());
            client.send(PROBE);
            client.until(PATIENCE, |_| false);
        }
        End::Closed => {
            client.until(PATIENCE, |talk| !is_ours && case.is_left_to_it(&talk.said));
            client.until(SILENCE, |talk| talk.closed.is_some());
        }
        End::Quiet | End::Either => {
            client.until(PATIENCE, |talk| case.is_answered(&talk.said, is_ours) || case.expect.is_empty());
            client.until(SILENCE, |_| false);
        }
    }
    Ok(client.talk)
}

struct Client {
    stream: TcpStream,
    begun: Instant,
    unread: Duration,
    /// What the server had said when the last bytes began to be sent.
    sent: usize,
    talk: Talk,
}

impl Client {
    /// All of these bytes, unless the server closes.
    fn send(&mut self, mut bytes: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        self.sent = self.talk.said.len();
        while !bytes.is_empty() && self.talk.closed.is_none() && Instant::now() < deadline {
            match self.stream.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK_AGAIN),
                // It is closed; what it said before is still to be read.
                Err(_) => bytes = &[],
            }
            self.read();
        }
    }

    /// Reads until there is enough, the server closes, or the time is up.
    fn until(&mut self, most: Duration, is_enough: impl Fn(&Talk) -> bool) {
        let deadline = Instant::now() + most;
        let mut looked_at = usize::MAX;
        while self.talk.closed.is_none() && Instant::now() < deadline {
            let has_more = self.read();
            if looked_at != self.talk.said.len() && !has_more {
                looked_at = self.talk.said.len();
                if is_enough(&self.talk) {
                    return;
                }
            }
            if !has_more {
                std::thread::sleep(LOOK_AGAIN);
            }
        }
    }

    /// What there is; true if there was something.
    fn read(&mut self) -> bool {
        let at = self.begun.elapsed();
        if at < self.unread || self.talk.closed.is_some() {
            return false;
        }
        let mut part = [0; 65_536];
        match self.stream.read(&mut part) {
            Ok(0) => self.talk.closed = Some(at),
            Ok(read) => {
                self.talk.said.extend_from_slice(&part[..read]);
                self.talk.first.get_or_insert(at);
                return true;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.talk.closed = Some(at),
        }
        false
    }
}
