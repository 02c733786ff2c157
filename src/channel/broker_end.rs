//! The broker's end of one connection: bytes and time in, bytes out, a [`Consumer`] behind it. Pure.
//!
//! ```text
//!   Fresh --M1--> Proven --M3--> Up --any failure--> (closed, by its owner)
//! ```

use super::handshake::{M1_BYTES, M3_BYTES, Nonces, Responder, Session, Terms};
use super::keys::GroupSecret;
use super::messages::{ToBroker, ToExecutor, encode_lease, to_broker};
use super::outbox::Outbox;
use super::reject::Reject;
use crate::entropy::Entropy;
use crate::job::{Effects, Entries, Outcome, entry_bytes};
use crate::limits::FRAME_OVERHEAD_BYTES;
use crate::negative_controls::{Control, is_off};
use crate::ports::{Commit, Consumer, Lease, LeaseId, Progressed, Requests, StateAt};

/// Bytes waiting for one executor; beyond them it gets no more leases.
const LEASES_WAITING_BYTES: usize = 8 << 20;
/// The same of all other frames; a peer that lets more gather does not read.
const OTHERS_WAITING_BYTES: usize = 1 << 20;

/// What a handshake needs of its surroundings.
pub struct Admission<'a> {
    /// Of each group, by index.
    pub secrets: &'a [GroupSecret],
    /// Of each group, by index.
    pub nonces: &'a mut [Nonces],
    /// What M2 says.
    pub terms: Terms,
    /// For M2's nonce.
    pub entropy: &'a mut Entropy,
    /// Makes the consumer of a group.
    pub connect: &'a mut dyn FnMut(usize) -> Box<dyn Consumer>,
}

enum Phase {
    Fresh,
    Proven(Box<Responder>),
    Up(Box<Up>),
    Over,
}

struct Up {
    session: Session,
    consumer: Box<dyn Consumer>,
    /// Leases that the executor takes at once.
    room: u32,
    /// Effects that came ahead of the next outcome, which is of this lease.
    parts: Option<Parts>,
    requests: Requests,
    /// The executor has no room, and was not told yet that all it said is in the books.
    owes_drain: bool,
}

struct Parts {
    lease: u64,
    effects: Effects,
    bytes: usize,
}

/// See the module.
pub struct BrokerEnd {
    phase: Phase,
    input: Vec<u8>,
    outbox: Outbox,
    /// When the last frame was verified.
    pub last_heard_ms: u64,
    /// Frames opened.
    pub frames_in: u64,
    parts_max: usize,
}

impl BrokerEnd {
    /// For a connection accepted now. Effects that do not fit one frame may have `parts_max` bytes once they are read.
    pub fn new(now_ms: u64, parts_max: usize) -> BrokerEnd {
        let (phase, outbox) = (Phase::Fresh, Outbox::default());
        BrokerEnd { phase, input: Vec::new(), outbox, last_heard_ms: now_ms, frames_in: 0, parts_max }
    }

    /// Frames sealed so far.
    pub fn frames_out(&self) -> u64 {
        self.outbox.frames
    }

    /// `None` until the third message was verified.
    pub fn group(&self) -> Option<usize> {
        match &self.phase {
            Phase::Up(up) => Some(up.session.group.into()),
            Phase::Fresh | Phase::Proven(_) | Phase::Over => None,
        }
    }

    /// What an end of file means now; between frames it is a peer's right.
    pub fn at_end_of_file(&self) -> Option<Reject> {
        match &self.phase {
            Phase::Fresh | Phase::Proven(_) => Some(Reject::HandshakeFailed),
            Phase::Up(_) if !self.input.is_empty() => Some(Reject::Malformed),
            Phase::Up(_) | Phase::Over => None,
        }
    }

    /// True until a first message was verified.
    pub fn is_fresh(&self) -> bool {
        matches!(self.phase, Phase::Fresh)
    }

    /// True between the first message and the third.
    pub fn is_proven(&self) -> bool {
        matches!(self.phase, Phase::Proven(_))
    }

    /// How many bytes may be read: before authentication exactly the next message's.
    pub fn readable_bytes(&self) -> usize {
        match &self.phase {
            Phase::Fresh => M1_BYTES - self.input.len(),
            Phase::Proven(_) => M3_BYTES - self.input.len(),
            Phase::Up(_) => usize::MAX,
            Phase::Over => 0,
        }
    }

    /// Bytes have arrived.
    ///
    /// # Errors
    /// The connection is over; nothing was answered to what ended it.
    pub fn received(&mut self, bytes: &[u8], admission: &mut Admission, now_ms: u64) -> Result<(), Reject> {
        self.input.extend_from_slice(bytes);
        if self.is_fresh() && self.input.first().is_some_and(|byte| *byte != b'C') {
            return Err(Reject::Malformed);
        }
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Fresh => self.phase = self.first_message(admission, now_ms)?,
            Phase::Proven(responder) => self.phase = self.third_message(responder, admission, now_ms)?,
            Phase::Up(mut up) => {
                let read = self.frames(&mut up, now_ms);
                // What was verified before a frame that is refused still counts: see `settle`.
                self.phase = Phase::Up(up);
                read?;
            }
            Phase::Over => return Err(Reject::Malformed),
        }
        Ok(())
    }

    fn first_message(&mut self, admission: &mut Admission, now_ms: u64) -> Result<Phase, Reject> {
        let Some(m1) = self.input.first_chunk::<M1_BYTES>().copied() else { return Ok(Phase::Fresh) };
        self.input.clear();
        let nonce = admission.entropy.bytes();
        let (responder, m2) =
            Responder::answer(&m1, admission.secrets, admission.nonces, admission.terms, nonce, now_ms)?;
        self.outbox.put_raw(&m2);
        Ok(Phase::Proven(Box::new(responder)))
    }

    fn third_message(
        &mut self,
        responder: Box<Responder>,
        admission: &mut Admission,
        now_ms: u64,
    ) -> Result<Phase, Reject> {
        let Some(m3) = self.input.first_chunk::<M3_BYTES>().copied() else {
            return Ok(Phase::Proven(responder));
        };
        self.input.clear();
        let session = responder.finish(&m3)?;
        self.last_heard_ms = now_ms;
        let consumer = (admission.connect)(session.group.into());
        let requests = Requests::default();
        Ok(Phase::Up(Box::new(Up { session, consumer, room: 0, parts: None, requests, owes_drain: false })))
    }

    fn frames(&mut self, up: &mut Up, now_ms: u64) -> Result<(), Reject> {
        let mut used = 0;
        while let Some((frame, length)) = up.session.opener.open(&self.input[used..], now_ms, to_broker)? {
            used += length;
            self.frames_in += 1;
            self.last_heard_ms = now_ms;
            match ToBroker::decode(frame.kind, frame.body)? {
                ToBroker::Ping => {
                    self.outbox.push_urgent(ToExecutor::Pong.encode(), 0);
                    up.consumer.extend();
                }
                ToBroker::Room(leases) => {
                    up.room = leases.min(up.session.max_leases);
                    up.owes_drain = leases == 0;
                }
                message => up.take(message, frame.lease, self.parts_max)?,
            }
        }
        self.input.drain(..used);
        Ok(())
    }

    /// Commits what came, claims as much as there is room for, and queues what is to be said.
    ///
    /// # Errors
    /// The connection is over: the peer does not read what it is told, or (`None`) the backend is lost.
    pub fn turn(&mut self) -> Result<(), Option<Reject>> {
        let Phase::Up(up) = &mut self.phase else { return Ok(()) };
        let room = if self.outbox.waiting() < LEASES_WAITING_BYTES { up.room } else { 0 };
        let step = up.consumer.step(std::mem::take(&mut up.requests), room as usize);
        let step = step.map_err(|error| {
            log::warn!("the backend is lost: {error}");
            None
        })?;
        for fenced in step.fenced {
            self.outbox.push(ToExecutor::Fenced(fenced.job).encode(), fenced.lease.0);
        }
        for revoked in step.revoked {
            self.outbox.push_urgent(ToExecutor::Cancel(revoked.job).encode(), revoked.lease.0);
        }
        for lease in &step.leases {
            send_lease(&mut self.outbox, lease, up.session.max_frame as usize);
        }
        if up.owes_drain && up.consumer.is_settled() {
            // Behind the leases that are on their way: it is the last word about them.
            up.owes_drain = false;
            self.outbox.push(ToExecutor::Drain.encode(), 0);
        }
        let reads = self.outbox.small_waiting() <= OTHERS_WAITING_BYTES;
        if reads { Ok(()) } else { Err(Some(Reject::PeerNotReading)) }
    }

    /// The connection is over; what was verified before still counts. Claims nothing.
    pub fn settle(&mut self) {
        if let Phase::Up(up) = &mut self.phase {
            let _ = up.consumer.step(std::mem::take(&mut up.requests), 0);
        }
    }

    /// What to write next.
    pub fn output(&mut self, now_ms: u64) -> &[u8] {
        let sealer = match &mut self.phase {
            Phase::Up(up) => Some(&mut up.session.sealer),
            Phase::Fresh | Phase::Proven(_) | Phase::Over => None,
        };
        self.outbox.bytes(sealer, now_ms)
    }

    /// So many bytes of it were written.
    pub fn wrote(&mut self, bytes: usize) {
        self.outbox.wrote(bytes);
    }
}

impl Up {
    /// Takes a message that is about a lease. One that is not known has ended meanwhile: the broker fences its outcome.
    fn take(&mut self, message: ToBroker, lease: u64, parts_max: usize) -> Result<(), Reject> {
        // The parts of an outcome stand directly before it.
        if let Some(parts) = &self.parts
            && (parts.lease != lease || matches!(message, ToBroker::Release | ToBroker::Progress(..)))
        {
            return Err(Reject::Malformed);
        }
        match message {
            ToBroker::Part(effects) => {
                let parts =
                    self.parts.get_or_insert_with(|| Parts { lease, effects: Effects::default(), bytes: 0 });
                parts.bytes += effects.held_bytes();
                if parts.bytes > parts_max && !is_off(Control::Parts) {
                    return Err(Reject::Malformed);
                }
                parts.effects.append(effects);
            }
            ToBroker::Release => self.requests.releases.push(LeaseId(lease)),
            ToBroker::Progress(job, progress) => {
                self.requests.progress.push(Progressed { lease: LeaseId(lease), job, progress });
            }
            ToBroker::Outcome { job, delivery, builds_on, mut outcome } => {
                if let Some(Parts { effects: mut all, .. }) = self.parts.take()
                    && let Outcome::Succeeded(_, effects) = &mut outcome
                {
                    all.append(std::mem::take(effects));
                    *effects = all;
                }
                let lease = LeaseId(lease);
                self.requests.commits.push(Commit { lease, job, delivery, builds_on, outcome });
            }
            ToBroker::Ping | ToBroker::Room(_) => {}
        }
        Ok(())
    }
}

/// A lease, behind the maps that it builds on, in as many frames as they need.
fn send_lease(outbox: &mut Outbox, lease: &Lease, max_frame: usize) {
    if let StateAt::Whole(_, entries) = &lease.state {
        send_entries(outbox, lease.id, None, entries, max_frame);
    }
    let mut sent: Vec<[u8; 16]> = Vec::new();
    for job in lease.jobs.iter().filter(|job| !job.context.is_empty()) {
        if !sent.contains(&job.spec.trace.id) {
            sent.push(job.spec.trace.id);
            send_entries(outbox, lease.id, Some(job.spec.trace.id), &job.context, max_frame);
        }
    }
    outbox.push_lease(encode_lease(lease), lease.id.0);
}

fn send_entries(
    outbox: &mut Outbox,
    lease: LeaseId,
    trace: Option<[u8; 16]>,
    entries: &Entries,
    max_frame: usize,
) {
    const ENTRY_OVERHEAD: usize = 6;
    const LIST_MAX: usize = u16::MAX as usize;
    // One entry at its limits always fits: max_frame leaves that much beside a payload.
    let most = (max_frame - FRAME_OVERHEAD_BYTES.min(max_frame / 2)).min(256 << 10);
    let (mut part, mut bytes) = (Vec::new(), 0);
    let mut send = |part: &mut Vec<_>| {
        if !part.is_empty() {
            let entries = std::mem::take(part);
            outbox.push_lease(ToExecutor::State { trace, entries }.encode(), lease.0);
        }
    };
    for (key, value) in entries {
        let size = entry_bytes(key, value) + ENTRY_OVERHEAD;
        if bytes + size > most || part.len() == LIST_MAX {
            send(&mut part);
            bytes = 0;
        }
        bytes += size;
        part.push((key.clone(), value.clone()));
    }
    send(&mut part);
}
