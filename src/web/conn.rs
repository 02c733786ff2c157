//! One client connection: its buffers, where it stands, and until when it may stand there. Pure.
//!
//! ```text
//!            head whole       body whole                            answer
//!    Head ---------------> Body ---------> Waiting | Inner ----------------> Head
//!      |                     |             | Streaming
//!      |                     |                                (keep-alive)     |
//!      | refused, closing    |                                                 |
//!      +---------------------+-------------> Closing <-------------------------+
//! ```

use super::batch::Batch;
use super::chunked::Chunked;
use super::http1::Head;
use super::questions::Asker;
use super::routes::Route;
use super::waiters::Waiting;
use crate::clock::Timestamp;
use crate::entropy::Entropy;
use crate::job::Trace;

/// Answers that a client has not read yet; beyond it no further request of the connection is begun.
pub(super) const OUTPUT_BYTES: usize = 256 << 10;
/// What is read ahead while a request is being answered: a pipeline, or nothing.
const READ_AHEAD_BYTES: usize = 64 << 10;

/// See the module.
pub(super) struct Conn {
    /// What has arrived and was not used.
    pub(super) input: Vec<u8>,
    /// What was not sent yet, from `sent` on.
    pub(super) output: Vec<u8>,
    sent: usize,
    pub(super) phase: Phase,
    /// The phase's absolute deadline.
    pub(super) deadline: Timestamp,
    /// `Some` while output is waiting: renewed by progress alone.
    pub(super) write_deadline: Option<Timestamp>,
    /// Another request may follow.
    pub(super) keep_alive: bool,
    /// The client has closed its side.
    pub(super) at_end: bool,
    /// The request under way.
    pub(super) asker: Asker,
    pub(super) current: Current,
}

/// The request that is being answered.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) route: &'static str,
    pub(super) trace: Trace,
    pub(super) has_body: bool,
    /// An HTTP/1.0 client must be told that its connection is kept.
    pub(super) is_1_1: bool,
}

impl Current {
    /// Of a request of which nothing is known.
    pub(super) fn malformed(entropy: &mut Entropy) -> Current {
        let trace = Trace { id: entropy.bytes(), span: entropy.bytes() };
        Current { route: "malformed", trace, has_body: true, is_1_1: true }
    }
}

pub(super) enum Phase {
    /// Between requests, or inside a head.
    Head,
    /// The head was accepted, the body is arriving.
    Body(Box<Incoming>),
    /// The caller waits for a job, or for its acceptance.
    Waiting(Box<Waiting>),
    /// A route that renders is at it.
    Inner,
    /// A batch's results are streaming.
    Streaming(Box<Batch>),
    /// The answer is the last one; after it the client is given a moment to read it.
    Closing,
}

/// A request whose body is arriving.
pub(super) struct Incoming {
    pub(super) head: Head,
    pub(super) route: Route,
    /// Of a chunked body, so far.
    pub(super) body: Vec<u8>,
    pub(super) chunked: Chunked,
    pub(super) max: usize,
    pub(super) since: Timestamp,
    /// Bytes of it in the budget of all bodies.
    pub(super) counted: usize,
}

impl Conn {
    pub(super) fn new(number: u64, deadline: Timestamp) -> Conn {
        let trace = Trace { id: [0; 16], span: [0; 8] };
        Conn {
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            phase: Phase::Head,
            deadline,
            write_deadline: None,
            keep_alive: true,
            at_end: false,
            asker: Asker { conn: number, request: 0 },
            current: Current { route: "none", trace, has_body: true, is_1_1: true },
        }
    }

    /// How many bytes may be read now.
    pub(super) fn readable_bytes(&self, head_bytes: usize) -> usize {
        let most = match &self.phase {
            Phase::Head => head_bytes,
            Phase::Body(incoming) => incoming.head.framing.length().unwrap_or(READ_AHEAD_BYTES),
            Phase::Waiting(_) | Phase::Inner | Phase::Streaming(_) => READ_AHEAD_BYTES,
            // What comes after the last request is thrown away.
            Phase::Closing => usize::MAX,
        };
        most.saturating_sub(self.input.len())
    }

    pub(super) fn unsent(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// The client took so many bytes.
    pub(super) fn sent(&mut self, bytes: usize, write_deadline: Timestamp) {
        self.sent += bytes;
        self.write_deadline = Some(write_deadline);
        if self.sent == self.output.len() {
            self.clear_output();
            // One large answer must not keep its memory for the connection's life.
            if self.output.capacity() > READ_AHEAD_BYTES {
                self.output = Vec::new();
            }
        }
    }

    pub(super) fn clear_output(&mut self) {
        self.output.clear();
        self.sent = 0;
        self.write_deadline = None;
    }

    /// The earliest of its deadlines.
    pub(super) fn due(&self) -> Timestamp {
        self.write_deadline.map_or(self.deadline, |write| write.min(self.deadline))
    }
}
