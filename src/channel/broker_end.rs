//! The broker's end of one connection: bytes and time in, bytes out, a [`Consumer`] behind it. Pure.
//!
//! ```text
//!   Fresh --M1--> Proven --M3--> Up --any failure--> (closed, by its owner)
//! ```

use std::collections::HashMap;

use super::handshake::{M1_BYTES, M3_BYTES, NonceCache, Responder, Session, Terms};
use super::keys::GroupSecret;
use super::messages::{StateKind, ToBroker, ToExecutor, to_broker};
use super::outbox::Outbox;
use super::reject::Reject;
use crate::entropy::Entropy;
use crate::job::{Effects, Entries, Verdict, entry_bytes};
use crate::ports::{BackendError, Commit, CommitResult, Consumer, Lease, LeaseRef, ReleaseReason, StateAt};

/// Bytes waiting for one executor; beyond them it gets no more leases.
const OUTBOX_BYTES: usize = 8 << 20;

/// What a handshake needs of its surroundings.
pub struct Doorman<'a> {
    /// Of each group, by index.
    pub secrets: &'a [GroupSecret],
    /// All connections'.
    pub nonces: &'a mut NonceCache,
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
    /// Leases that the executor takes more.
    room: u32,
    /// The live leases of this connection: the token never leaves this end.
    leases: HashMap<u64, Held>,
    /// Effects that came ahead of their outcome.
    parts: HashMap<u64, Effects>,
    parts_bytes: usize,
    commits: Vec<Commit>,
    releases: Vec<(LeaseRef, ReleaseReason)>,
}

struct Held {
    token: [u8; 16],
    /// Jobs without an outcome.
    jobs: usize,
}

/// See the module.
pub struct BrokerEnd {
    phase: Phase,
    input: Vec<u8>,
    outbox: Outbox,
    /// When the last frame was verified.
    pub last_heard_ms: u64,
    /// Workers that have a run, as last reported.
    pub busy: u32,
    /// Frames opened.
    pub frames_in: u64,
    parts_max: usize,
}

impl BrokerEnd {
    /// For a connection accepted now. Effects that do not fit one frame may have `parts_max` bytes.
    #[must_use]
    pub fn new(now_ms: u64, parts_max: usize) -> BrokerEnd {
        BrokerEnd {
            phase: Phase::Fresh,
            input: Vec::new(),
            outbox: Outbox::default(),
            last_heard_ms: now_ms,
            busy: 0,
            frames_in: 0,
            parts_max,
        }
    }

    /// Frames sealed so far.
    #[must_use]
    pub fn frames_out(&self) -> u64 {
        self.outbox.frames
    }

    /// `None` until the third message was verified.
    #[must_use]
    pub fn group(&self) -> Option<usize> {
        match &self.phase {
            Phase::Up(up) => Some(up.session.group.into()),
            Phase::Fresh | Phase::Proven(_) | Phase::Over => None,
        }
    }

    /// What an end of file means now; between frames it is a peer's right.
    #[must_use]
    pub fn at_end_of_file(&self) -> Option<Reject> {
        match &self.phase {
            Phase::Fresh | Phase::Proven(_) => Some(Reject::HandshakeFailed),
            Phase::Up(_) if !self.input.is_empty() => Some(Reject::Malformed),
            Phase::Up(_) | Phase::Over => None,
        }
    }

    /// True until a first message was verified.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        matches!(self.phase, Phase::Fresh)
    }

    /// True between the first message and the third.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        matches!(self.phase, Phase::Proven(_))
    }

    /// How many bytes may be read: before authentication exactly the next message's.
    #[must_use]
    pub fn room(&self) -> usize {
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
    pub fn received(&mut self, bytes: &[u8], doorman: &mut Doorman, now_ms: u64) -> Result<(), Reject> {
        self.input.extend_from_slice(bytes);
        if self.is_fresh() && !self.input.is_empty() && self.input[0] != b'C' {
            return Err(Reject::Malformed);
        }
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Fresh => self.phase = self.first_message(doorman, now_ms)?,
            Phase::Proven(responder) => self.phase = self.third_message(responder, doorman, now_ms)?,
            Phase::Up(up) => {
                self.phase = Phase::Up(up);
                self.frames(now_ms)?;
            }
            Phase::Over => return Err(Reject::Malformed),
        }
        Ok(())
    }

    fn first_message(&mut self, doorman: &mut Doorman, now_ms: u64) -> Result<Phase, Reject> {
        let Some(m1) = self.input.first_chunk::<M1_BYTES>().copied() else { return Ok(Phase::Fresh) };
        self.input.clear();
        let nonce = doorman.entropy.bytes();
        let (responder, m2) =
            Responder::answer(&m1, doorman.secrets, doorman.nonces, doorman.terms, nonce, now_ms)?;
        self.outbox.put_raw(&m2);
        Ok(Phase::Proven(Box::new(responder)))
    }

    fn third_message(
        &mut self,
        responder: Box<Responder>,
        doorman: &mut Doorman,
        now_ms: u64,
    ) -> Result<Phase, Reject> {
        let Some(m3) = self.input.first_chunk::<M3_BYTES>().copied() else {
            return Ok(Phase::Proven(responder));
        };
        self.input.clear();
        let session = responder.finish(&m3)?;
        self.last_heard_ms = now_ms;
        let consumer = (doorman.connect)(session.group.into());
        Ok(Phase::Up(Box::new(Up {
            session,
            consumer,
            room: 0,
            leases: HashMap::new(),
            parts: HashMap::new(),
            parts_bytes: 0,
            commits: Vec::new(),
            releases: Vec::new(),
        })))
    }

    fn frames(&mut self, now_ms: u64) -> Result<(), Reject> {
        let Phase::Up(up) = &mut self.phase else { return Ok(()) };
        let mut used = 0;
        while let Some((frame, length)) = up.session.opener.open(&self.input[used..], now_ms, to_broker)? {
            used += length;
            self.frames_in += 1;
            self.last_heard_ms = now_ms;
            let message = ToBroker::decode(frame.kind, frame.body)?;
            match message {
                ToBroker::Ping => {
                    self.outbox.push_urgent(ToExecutor::Pong.encode(), 0);
                    up.consumer.extend().map_err(|_| Reject::HandshakeFailed)?;
                }
                ToBroker::Report { busy } => self.busy = busy,
                ToBroker::Room(0) => {
                    // Behind the leases that are on their way: it is the last word about them.
                    up.room = 0;
                    self.outbox.push(ToExecutor::Drain.encode(), 0);
                }
                message => up.take(message, frame.lease, frame.body.len(), self.parts_max)?,
            }
        }
        self.input.drain(..used);
        Ok(())
    }

    /// Commits what came, claims as much as there is room for, and queues the answers.
    ///
    /// # Errors
    /// The backend is lost.
    pub fn turn(&mut self) -> Result<(), BackendError> {
        let Phase::Up(up) = &mut self.phase else { return Ok(()) };
        let room = if self.outbox.waiting() < OUTBOX_BYTES { up.room } else { 0 };
        let step = up.consumer.step(std::mem::take(&mut up.commits), room as usize)?;
        for (lease, reason) in up.releases.drain(..) {
            up.consumer.release(lease, reason)?;
        }
        for answer in step.results {
            let message = match answer.result {
                CommitResult::Fenced => {
                    up.leases.remove(&answer.lease);
                    ToExecutor::Fenced(answer.job)
                }
                CommitResult::Committed | CommitResult::AlreadyCommitted => {
                    ToExecutor::Committed(answer.job, answer.result)
                }
            };
            self.outbox.push(message.encode(), answer.lease);
        }
        for revoked in step.revoked {
            if let Some(held) = up.leases.get_mut(&revoked.lease) {
                held.jobs = held.jobs.saturating_sub(1);
            }
            self.outbox.push_urgent(ToExecutor::Cancel(revoked.job).encode(), revoked.lease);
        }
        for lease in step.leases {
            up.room -= 1;
            up.leases.insert(lease.lease.number, Held { token: lease.lease.token, jobs: lease.jobs.len() });
            send_lease(&mut self.outbox, &lease, up.session.max_frame as usize);
        }
        Ok(())
    }

    /// The connection is over; what was verified before still counts. Claims nothing.
    pub fn settle(&mut self) {
        let Phase::Up(up) = &mut self.phase else { return };
        let _ = up.consumer.step(std::mem::take(&mut up.commits), 0);
        for (lease, reason) in up.releases.drain(..) {
            let _ = up.consumer.release(lease, reason);
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
    /// Takes a message that is about leases.
    fn take(&mut self, message: ToBroker, number: u64, bytes: usize, parts_max: usize) -> Result<(), Reject> {
        match message {
            ToBroker::Room(leases) => {
                self.room = self.room.saturating_add(leases).min(self.session.max_leases);
            }
            ToBroker::Part(effects) => {
                // A lease that has ended meanwhile: its outcome is fenced off, so nobody needs its parts.
                if !self.leases.contains_key(&number) {
                    return Ok(());
                }
                self.parts_bytes += bytes;
                if self.parts_bytes > parts_max {
                    return Err(Reject::Malformed);
                }
                let parts = self.parts.entry(number).or_default();
                parts.state.extend(effects.state);
                parts.context.extend(effects.context);
                parts.follow_ups.extend(effects.follow_ups);
            }
            ToBroker::Release(reason) => {
                self.parts.remove(&number);
                if self.parts.is_empty() {
                    self.parts_bytes = 0;
                }
                if let Some(held) = self.leases.remove(&number) {
                    self.releases.push((LeaseRef { number, token: held.token }, reason));
                }
            }
            ToBroker::Outcome { job, delivery, builds_on, mut verdict } => {
                if let Some(mut parts) = self.parts.remove(&number)
                    && let Verdict::Succeeded(_, effects) = &mut verdict
                {
                    parts.state.append(&mut effects.state);
                    parts.context.append(&mut effects.context);
                    parts.follow_ups.append(&mut effects.follow_ups);
                    *effects = parts;
                }
                if self.parts.is_empty() {
                    self.parts_bytes = 0;
                }
                // An unknown lease has ended meanwhile: the broker fences the commit off.
                let mut token = [0; 16];
                let ends = matches!(verdict, Verdict::Retry(_) | Verdict::Crashed(_) | Verdict::TimedOut);
                if let Some(held) = self.leases.get_mut(&number) {
                    token = held.token;
                    held.jobs = held.jobs.saturating_sub(1);
                    if held.jobs == 0 || ends {
                        self.leases.remove(&number);
                    }
                }
                let lease = LeaseRef { number, token };
                self.commits.push(Commit { lease, job, delivery, builds_on, verdict });
            }
            ToBroker::Ping | ToBroker::Report { .. } => {}
        }
        Ok(())
    }
}

/// A lease, behind the states that it builds on, in as many frames as they need.
fn send_lease(outbox: &mut Outbox, lease: &Lease, max_frame: usize) {
    let number = lease.lease.number;
    let (kind, version) = match &lease.state {
        StateAt::Stateless => (StateKind::Stateless, crate::job::Version::default()),
        StateAt::Known(version) => (StateKind::Known, *version),
        StateAt::Whole(version, entries) => {
            send_entries(outbox, number, None, entries, max_frame);
            (StateKind::Whole, *version)
        }
    };
    let mut sent: Vec<[u8; 16]> = Vec::new();
    for job in lease.jobs.iter().filter(|job| !job.context.is_empty()) {
        if !sent.contains(&job.spec.trace.id) {
            sent.push(job.spec.trace.id);
            send_entries(outbox, number, Some(job.spec.trace.id), &job.context, max_frame);
        }
    }
    let message =
        ToExecutor::Lease { handler: lease.handler.clone(), state: kind, version, jobs: lease.jobs.clone() };
    outbox.push(message.encode(), number);
}

fn send_entries(
    outbox: &mut Outbox,
    number: u64,
    trace: Option<[u8; 16]>,
    entries: &Entries,
    max_frame: usize,
) {
    const ENTRY_OVERHEAD: usize = 6;
    const LIST_MAX: usize = u16::MAX as usize;
    // One entry at its limits always fits: max_frame leaves that much beside a payload.
    let most = (max_frame - crate::limits::FRAME_OVERHEAD_BYTES.min(max_frame / 2)).min(256 << 10);
    let mut part = Vec::new();
    let mut bytes = 0;
    let mut send = |part: &mut Vec<_>| {
        if !part.is_empty() {
            outbox.push(ToExecutor::State { trace, entries: std::mem::take(part) }.encode(), number);
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
