//! The executor's end of one connection: a [`Consumer`] that speaks frames. Bytes and time in, bytes out. Pure.

use std::collections::HashMap;

use super::handshake::{Initiator, M2_BYTES, Session};
use super::keys::GroupSecret;
use super::messages::{ToBroker, ToExecutor, to_executor};
use super::outbox::Outbox;
use super::reject::Reject;
use crate::job::{Change, Effects, Entries, FollowUp, Outcome};
use crate::limits::FRAME_OVERHEAD_BYTES;
use crate::ports::{BackendError, Commit, Consumer, LeaseId, OfLease, Requests, StateAt, Step};

enum Phase {
    AwaitsM2(Box<Initiator>),
    Up(Box<Session>),
    Over,
}

/// See the module.
pub struct ExecutorEnd {
    phase: Phase,
    input: Vec<u8>,
    outbox: Outbox,
    /// Entries that came ahead of their lease.
    states: HashMap<u64, (Entries, HashMap<[u8; 16], Entries>)>,
    step: Step,
    /// Leases at once, as the broker was last told; `None` before.
    room: Option<usize>,
    /// Whether all that was said is in the broker's books, and no lease follows.
    drain: Drain,
    /// A frame of the broker was verified.
    pub is_up: bool,
    /// When the last frame was verified.
    pub last_heard_ms: u64,
    /// When something was last queued.
    pub last_said_ms: u64,
}

/// What is known of the broker's answer to no room. One question is under way at a time, so that its answer is not taken
/// for that of a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    Not,
    Asked,
    /// More was said since.
    AskedTooSoon,
    Done,
}

impl ExecutorEnd {
    /// For a connection made now.
    #[must_use]
    pub fn new(secret: &GroupSecret, group: u16, nonce: [u8; 32], ttl_ms: u64, now_ms: u64) -> ExecutorEnd {
        let initiator = Initiator::start(secret, group, nonce, ttl_ms, now_ms);
        let mut outbox = Outbox::default();
        outbox.put_raw(initiator.m1());
        ExecutorEnd {
            phase: Phase::AwaitsM2(Box::new(initiator)),
            input: Vec::new(),
            outbox,
            states: HashMap::new(),
            step: Step::default(),
            room: None,
            drain: Drain::Not,
            is_up: false,
            last_heard_ms: now_ms,
            last_said_ms: now_ms,
        }
    }

    /// True until the second message was verified.
    #[must_use]
    pub fn in_handshake(&self) -> bool {
        matches!(self.phase, Phase::AwaitsM2(_))
    }

    /// What an end of file means now; between frames it is the broker's right.
    pub fn at_end_of_file(&self) -> Option<Reject> {
        match &self.phase {
            Phase::AwaitsM2(_) => Some(Reject::HandshakeFailed),
            Phase::Up(_) if !self.input.is_empty() => Some(Reject::Malformed),
            Phase::Up(_) | Phase::Over => None,
        }
    }

    /// Bytes have arrived.
    ///
    /// # Errors
    /// The connection is over.
    pub fn received(&mut self, bytes: &[u8], secret: &GroupSecret, now_ms: u64) -> Result<(), Reject> {
        self.input.extend_from_slice(bytes);
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::AwaitsM2(initiator) => {
                let Some(m2) = self.input.first_chunk::<M2_BYTES>().copied() else {
                    self.phase = Phase::AwaitsM2(initiator);
                    return Ok(());
                };
                if self.input.len() > M2_BYTES {
                    // The broker says nothing before it has verified M3.
                    return Err(Reject::Malformed);
                }
                self.input.clear();
                let (session, m3) = initiator.finish(&m2, secret, now_ms)?;
                self.outbox.put_raw(&m3);
                self.phase = Phase::Up(Box::new(session));
                self.outbox.push(ToBroker::Ping.encode(), 0);
                self.last_said_ms = now_ms;
                Ok(())
            }
            Phase::Up(session) => {
                self.phase = Phase::Up(session);
                self.frames(now_ms)
            }
            Phase::Over => Err(Reject::Malformed),
        }
    }

    fn frames(&mut self, now_ms: u64) -> Result<(), Reject> {
        let mut used = 0;
        loop {
            let Phase::Up(session) = &mut self.phase else { return Ok(()) };
            let Some((frame, length)) = session.opener.open(&self.input[used..], now_ms, to_executor)? else {
                break;
            };
            used += length;
            self.last_heard_ms = now_ms;
            self.is_up = true;
            let message = ToExecutor::decode(frame.kind, frame.lease, frame.body)?;
            self.take(frame.lease, message)?;
        }
        self.input.drain(..used);
        Ok(())
    }

    fn take(&mut self, number: u64, message: ToExecutor) -> Result<(), Reject> {
        let of_lease = |job| OfLease { lease: LeaseId(number), job };
        match message {
            ToExecutor::Pong => {}
            ToExecutor::Drain => match self.drain {
                Drain::Asked => self.drain = Drain::Done,
                Drain::AskedTooSoon => self.drain = Drain::Not,
                Drain::Not | Drain::Done => {}
            },
            ToExecutor::State { trace, entries } => {
                let (state, contexts) = self.states.entry(number).or_default();
                let map = match trace {
                    None => state,
                    Some(trace) => contexts.entry(trace).or_default(),
                };
                map.extend(entries);
            }
            ToExecutor::Lease(mut lease) => {
                let (entries, contexts) = self.states.remove(&number).unwrap_or_default();
                match &mut lease.state {
                    StateAt::Whole(_, whole) => *whole = entries,
                    StateAt::Stateless | StateAt::Known(_) if entries.is_empty() => {}
                    StateAt::Stateless | StateAt::Known(_) => return Err(Reject::Malformed),
                }
                for job in lease.jobs.iter_mut().filter(|_| !contexts.is_empty()) {
                    job.context = contexts.get(&job.spec.trace.id).cloned().unwrap_or_default();
                }
                self.step.leases.push(lease);
            }
            ToExecutor::Fenced(job) => self.step.fenced.push(of_lease(job)),
            ToExecutor::Cancel(job) => self.step.revoked.push(of_lease(job)),
        }
        Ok(())
    }

    /// Asks whether the broker is there.
    pub fn ping(&mut self, now_ms: u64) {
        if matches!(self.phase, Phase::Up(_)) {
            self.outbox.push_urgent(ToBroker::Ping.encode(), 0);
            self.last_said_ms = now_ms;
        }
    }

    /// True once the broker has all that was said here in its books, and gives nothing more.
    pub fn is_drained(&self) -> bool {
        self.drain == Drain::Done && self.outbox.waiting() == 0
    }

    /// What to write next.
    pub fn output(&mut self, now_ms: u64) -> &[u8] {
        let sealer = match &mut self.phase {
            Phase::Up(session) => Some(&mut session.sealer),
            Phase::AwaitsM2(_) | Phase::Over => None,
        };
        self.outbox.bytes(sealer, now_ms)
    }

    /// So many bytes of it were written.
    pub fn wrote(&mut self, bytes: usize) {
        self.outbox.wrote(bytes);
    }

    /// An outcome, behind the effects that do not fit its frame.
    fn send_commit(&mut self, commit: Commit, max_frame: usize) {
        let Commit { lease: LeaseId(lease), job, delivery, builds_on, mut outcome } = commit;
        if let Outcome::Succeeded(payload, effects) = &mut outcome {
            // A broker may agree to smaller frames than ours ever does.
            let most = max_frame - (FRAME_OVERHEAD_BYTES / 2).min(max_frame / 2);
            for part in split_effects(effects, most.saturating_sub(payload.bytes.len()), most) {
                self.outbox.push(ToBroker::Part(part).encode(), lease);
            }
        }
        self.outbox.push(ToBroker::Outcome { job, delivery, builds_on, outcome }.encode(), lease);
    }
}

impl Consumer for ExecutorEnd {
    fn step(&mut self, requests: Requests, room: usize) -> Result<Step, BackendError> {
        let (max_frame, max_leases) = match &self.phase {
            Phase::Up(session) => (session.max_frame as usize, session.max_leases),
            Phase::AwaitsM2(_) => return Ok(Step::default()),
            Phase::Over => return Err(BackendError("the channel is closed".into())),
        };
        let says_more = !(requests.commits.is_empty() && requests.releases.is_empty());
        for said in requests.progress {
            self.outbox.push(ToBroker::Progress(said.job, said.progress).encode(), said.lease.0);
        }
        for commit in requests.commits {
            self.send_commit(commit, max_frame);
        }
        for LeaseId(lease) in requests.releases {
            self.outbox.push(ToBroker::Release.encode(), lease);
        }
        let room = room.min(max_leases as usize);
        let is_new = self.room.replace(room) != Some(room);
        self.drain = match (room, self.drain) {
            (0, Drain::Asked) if says_more && !is_new => Drain::AskedTooSoon,
            // Without room the broker answers once all this is in its books.
            (0, Drain::Asked | Drain::AskedTooSoon) if !is_new => self.drain,
            (0, Drain::Done) if !says_more => Drain::Done,
            (_, _) if is_new || room == 0 => {
                self.outbox.push(ToBroker::Room(u32::try_from(room).unwrap_or(u32::MAX)).encode(), 0);
                if room == 0 { Drain::Asked } else { Drain::Not }
            }
            (_, drain) => drain,
        };
        Ok(std::mem::take(&mut self.step))
    }

    fn extend(&mut self) {
        if matches!(self.phase, Phase::Up(_)) {
            self.outbox.push_urgent(ToBroker::Ping.encode(), 0);
        }
    }

    fn is_settled(&self) -> bool {
        self.is_drained()
    }
}

/// Leaves in `effects` what fits into `spare` bytes; the rest comes in parts of at most `most` bytes.
fn split_effects(effects: &mut Effects, spare: usize, most: usize) -> Vec<Effects> {
    const LIST_MAX: usize = u16::MAX as usize;
    let change_bytes =
        |change: &Change| 7 + change.key.len() + change.value.as_ref().map_or(0, |value| value.len());
    let job_bytes = |job: &FollowUp| {
        let key = job.ordering_key.as_ref().map_or(0, |key| key.len());
        24 + job.handler.len() + key + job.payload.media_type.as_str().len() + job.payload.bytes.len()
    };
    let changes = effects.state.iter().chain(&effects.context).map(change_bytes).sum::<usize>();
    let total = changes + effects.follow_ups.iter().map(job_bytes).sum::<usize>();
    if total <= spare && effects.state.len().max(effects.context.len()) <= LIST_MAX {
        return Vec::new();
    }
    let mut parts = Vec::new();
    let (mut part, mut bytes) = (Effects::default(), 0);
    let mut add = |size: usize, put: &mut dyn FnMut(&mut Effects)| {
        let full = part.state.len().max(part.context.len()) >= LIST_MAX;
        if bytes > 0 && (bytes + size > most || full) {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += size;
        put(&mut part);
    };
    let Effects { state, context, follow_ups } = std::mem::take(effects);
    for change in state {
        add(change_bytes(&change), &mut |part| part.state.push(change.clone()));
    }
    for change in context {
        add(change_bytes(&change), &mut |part| part.context.push(change.clone()));
    }
    for job in follow_ups {
        add(job_bytes(&job), &mut |part| part.follow_ups.push(job.clone()));
    }
    parts.push(part);
    parts
}
