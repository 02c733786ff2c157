//! Decoders of the channel: the handshake, frames, bodies, and the two ends as state machines.
//!
//! Behind a mac random bytes reach nothing, so the inputs are fields and scripts that are sealed here, with the keys
//! of a handshake whose every byte is known.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use cofferdam::channel::frame::{Opener, Sealer};
use cofferdam::channel::handshake::{Initiator, M1_BYTES, M2_BYTES, M3_BYTES, NonceCache, Responder, Terms};
use cofferdam::channel::keys::{GroupSecret, MAC_BYTES, MacKey};
use cofferdam::channel::messages::{StateKind, ToBroker, ToExecutor, to_broker, to_executor};
use cofferdam::channel::{BrokerEnd, Doorman, ExecutorEnd, Reject};
use cofferdam::clock::Timestamp;
use cofferdam::entropy::Entropy;
use cofferdam::job::{Change, Effects, FollowUp, JobId, JobSpec, Payload, Trace, Verdict, Version};
use cofferdam::limits::FOLLOW_UPS;
use cofferdam::ports::{
    BackendError, Commit, CommitAnswer, CommitResult, Consumer, Lease, LeaseRef, LeasedJob, ReleaseReason,
    Revoked, StateAt, Step,
};
use cofferdam::problem::{Code, JobError};

use super::wire::{DataKeys, Forged, OVERHEAD, data_keys, handshake_keys, sha256};
use super::{Script, piece, pieces, put_bytes};

const NOW_MS: u64 = 100_000;
const TTL_MS: u64 = 30_000;
const HANDSHAKE_TTL_MS: u64 = 5_000;
const AHEAD_MS: u64 = 1_000;
const NONCE_E: [u8; 32] = [3; 32];
const MAX_LEASES: u32 = 4;
/// Of a script's frames; what comes ahead of an outcome may be as much again.
const SCRIPT_BODY_BYTES: usize = 512;
const PARTS_MAX: usize = 512;
const TERMS: Terms = Terms { boot_id: [1; 16], max_frame: 65_536, max_leases: MAX_LEASES, ttl_ms: TTL_MS };

fn secret() -> GroupSecret {
    GroupSecret::from_bytes([7; 32])
}

fn initiator() -> Initiator {
    Initiator::start(&secret(), 0, NONCE_E, TTL_MS, NOW_MS)
}

fn answer(m1: &[u8; M1_BYTES], terms: Terms) -> Result<(Responder, [u8; M2_BYTES]), Reject> {
    Responder::answer(m1, &[secret()], &mut NonceCache::new(16), terms, Entropy::Seeded(1).bytes(), NOW_MS)
}

/// An honest handshake, the same in every run.
struct Known {
    handshake: [[u8; 32]; 2],
    m1: [u8; M1_BYTES],
    m2: [u8; M2_BYTES],
    m3: [u8; M3_BYTES],
    data: DataKeys,
}

impl Known {
    fn new(terms: Terms) -> Known {
        let m1 = *initiator().m1();
        let (_, m2) = answer(&m1, terms).expect("it knows the secret");
        let (_, m3) = initiator().finish(&m2, &secret(), NOW_MS).expect("it knows the secret");
        Known { handshake: handshake_keys(&secret()), m1, m2, m3, data: data_keys(&secret(), &m1, &m2) }
    }
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| Known::new(TERMS));
/// With the smallest frames that an executor agrees to.
static NARROW: LazyLock<Known> = LazyLock::new(|| Known::new(Terms { max_frame: 1_088, ..TERMS }));

/// A byte says which message and whether it is sealed; what follows are its fields. Unsealed ones are refused, sealed
/// ones are accepted if each field is as it must be, else refused for the first that is not.
pub fn handshake(bytes: &[u8]) {
    let Some((choice, fields)) = bytes.split_first() else { return };
    let [executor, broker] = &KNOWN.handshake;
    let is_sealed = choice & 4 == 0;
    let filled = |message: &mut [u8]| message.iter_mut().zip(fields).for_each(|(to, from)| *to = *from);
    let seal = |message: &mut [u8], key: &[u8; 32], label: &[u8], before: &[u8]| {
        let end = message.len() - MAC_BYTES;
        if is_sealed {
            let mac = MacKey::new(key).sign(&[label, before, &message[..end]]);
            message[end..].copy_from_slice(&mac);
        }
    };
    match choice % 4 {
        0 => {
            let mut m1 = [0; M1_BYTES];
            filled(&mut m1);
            seal(&mut m1, executor, b"M1", b"");
            let expected = preamble(&m1, 1).and_then(|()| match (m1[6..8] == [0, 0], is_sealed) {
                (true, true) => fresh(&m1[8..16]),
                (false, _) | (_, false) => Err(Reject::BadSignature),
            });
            let answered = answer(&m1, TERMS);
            assert_eq!(answered.as_ref().err().copied(), expected.err(), "{m1:?}");
            let mut nonces = NonceCache::new(16);
            let mut again = || Responder::answer(&m1, &[secret()], &mut nonces, TERMS, [4; 32], NOW_MS).err();
            if answered.is_ok() {
                assert_eq!((again(), again()), (None, Some(Reject::ReplayedNonce)));
            }
        }
        1 => {
            let mut m2 = [0; M2_BYTES];
            filled(&mut m2);
            seal(&mut m2, broker, b"M2", &sha256(&[&KNOWN.m1]));
            let number = |at: usize| u32::from_be_bytes(m2[at..at + 4].try_into().expect("four bytes"));
            let (max_frame, max_leases) = (number(64), number(68));
            let senseless = max_frame < OVERHEAD as u32 + 1_024 || max_leases == 0;
            let expected = preamble(&m2, 2).and_then(|()| match (m2[6..8] == [0, 0], is_sealed) {
                (false, _) => Err(Reject::Malformed),
                (true, false) => Err(Reject::BadSignature),
                (true, true) if fresh(&m2[8..16]).is_ok() && senseless => Err(Reject::HandshakeFailed),
                (true, true) => fresh(&m2[8..16]),
            });
            let finished = initiator().finish(&m2, &secret(), NOW_MS);
            assert_eq!(finished.as_ref().err().copied(), expected.err(), "{m2:?}");
            if let Ok((session, m3)) = finished {
                assert_eq!((session.max_frame, session.max_leases), (max_frame, max_leases));
                assert_eq!(session.conn_id, data_keys(&secret(), &KNOWN.m1, &m2).conn_id);
                let mac = MacKey::new(executor).sign(&[b"M3", &sha256(&[&KNOWN.m1, &m2]), &m3[..8]]);
                assert_eq!(m3[8..], mac);
            }
        }
        _ => {
            let mut m3 = [0; M3_BYTES];
            filled(&mut m3);
            seal(&mut m3, executor, b"M3", &sha256(&[&KNOWN.m1, &KNOWN.m2]));
            let expected = preamble(&m3, 1).and_then(|()| match (m3[6..8] == [0, 0], is_sealed) {
                (false, _) => Err(Reject::Malformed),
                (true, false) => Err(Reject::BadSignature),
                (true, true) => Ok(()),
            });
            let (responder, _) = answer(&KNOWN.m1, TERMS).expect("it knows the secret");
            assert_eq!(responder.finish(&m3).err(), expected.err(), "{m3:?}");
        }
    }
}

fn preamble(message: &[u8], role: u8) -> Result<(), Reject> {
    match (&message[..4], message[4], message[5]) {
        (b"CFD1", 1, found) if found == role => Ok(()),
        (b"CFD1", version, _) if version != 1 => Err(Reject::BadVersion),
        _ => Err(Reject::Malformed),
    }
}

fn fresh(time: &[u8]) -> Result<(), Reject> {
    let time = u64::from_be_bytes(time.try_into().expect("eight bytes"));
    let is_fresh = (NOW_MS - HANDSHAKE_TTL_MS..=NOW_MS + AHEAD_MS).contains(&time);
    if is_fresh { Ok(()) } else { Err(Reject::ExpiredTimestamp) }
}

pub fn handshakes() -> Vec<Vec<u8>> {
    // Unsealed seeds are of another secret: those of the known one are accepted, as they should be.
    let other = || GroupSecret::from_bytes([8; 32]);
    let initiator = Initiator::start(&other(), 0, NONCE_E, TTL_MS, NOW_MS);
    let nonces = &mut NonceCache::new(16);
    let answered = Responder::answer(initiator.m1(), &[other()], nonces, TERMS, [2; 32], NOW_MS);
    let m1 = initiator.m1().to_vec();
    let (_, m2) = answered.expect("it knows the secret");
    let (_, m3) = initiator.finish(&m2, &other(), NOW_MS).expect("it knows the secret");
    let messages = [(0, &m1[..]), (1, &m2[..]), (2, &m3[..])];
    let with = |flag: u8| messages.map(|(choice, message)| [&[choice | flag], message].concat());
    [with(0), with(4)].concat()
}

const MAX_FRAME: usize = 512;
/// Kinds that this direction has.
const KINDS: u8 = 0xF0;

/// A script of frames, honest or forged, and of bare bytes: what opens is what was sealed with every field right, in any
/// segmentation, and the first that is not has its reason and ends all.
pub fn frame(bytes: &[u8]) {
    let key = &KNOWN.data.to_broker;
    let mut sealer = Sealer::new(MacKey::new(key));
    let (mut script, mut wire, mut sealed) = (Script(bytes), Vec::new(), 0);
    // What must come of it, as far as that can be told: bare bytes may be anything.
    let (mut frames, mut ended, mut is_known) = (Vec::new(), None, true);
    while let (Some(step), Some(body)) = (script.u8(), script.bytes()) {
        let forged = match step % 4 {
            0 | 1 => {
                let (kind, lease, body) = (step / 4, u64::from(step), body.to_vec());
                sealer.seal(kind, lease, &body, NOW_MS, &mut wire);
                sealed += 1;
                Forged { kind, flags: 0, reserved: 0, sequence: sealed - 1, time_ms: NOW_MS, lease, body }
            }
            2 => {
                let Some(forged) = forged(body) else { continue };
                wire.extend_from_slice(&forged.sealed(key));
                forged
            }
            _ => {
                wire.extend_from_slice(body);
                is_known &= body.is_empty();
                continue;
            }
        };
        if ended.is_none() && is_known {
            match judged(&forged, frames.len() as u64) {
                Ok(()) => frames.push((forged.kind, forged.lease, forged.body)),
                Err(reason) => ended = Some(reason),
            }
        }
    }
    let whole = opened(&wire, |left| left);
    let mut sizes = pieces(bytes);
    assert_eq!(opened(&wire, |left| piece(&mut sizes, left)), whole);
    assert!(whole.0.starts_with(&frames), "frames that are right open");
    assert!(!is_known || whole == (frames, ended));
}

fn forged(bytes: &[u8]) -> Option<Forged> {
    let mut fields = Script(bytes);
    Some(Forged {
        kind: fields.u8()?,
        flags: fields.u8()?,
        reserved: u16::from_be_bytes(fields.array()?),
        sequence: u64::from_be_bytes(fields.array()?),
        time_ms: u64::from_be_bytes(fields.array()?),
        lease: u64::from_be_bytes(fields.array()?),
        body: fields.0.to_vec(),
    })
}

fn judged(frame: &Forged, next: u64) -> Result<(), Reject> {
    let is_fresh = (NOW_MS - TTL_MS..=NOW_MS + AHEAD_MS).contains(&frame.time_ms);
    match frame {
        _ if frame.body.len() + OVERHEAD - 4 > MAX_FRAME => Err(Reject::Oversized),
        _ if frame.sequence != next => Err(Reject::ReplayedNonce),
        _ if !is_fresh => Err(Reject::ExpiredTimestamp),
        _ if frame.flags != 0 || frame.reserved != 0 => Err(Reject::Malformed),
        _ if frame.kind >= KINDS => Err(Reject::UnknownKind),
        _ => Ok(()),
    }
}

type Opened = (Vec<(u8, u64, Vec<u8>)>, Option<Reject>);

fn opened(wire: &[u8], mut size: impl FnMut(usize) -> usize) -> Opened {
    let mut opener = Opener::new(MacKey::new(&KNOWN.data.to_broker), MAX_FRAME, TTL_MS);
    let (mut frames, mut used, mut at) = (Vec::new(), 0, 0);
    while at < wire.len() {
        at += size(wire.len() - at);
        loop {
            match opener.open(&wire[used..at], NOW_MS, |kind| kind < KINDS) {
                Ok(None) => break,
                Ok(Some((frame, length))) => {
                    assert!(length <= MAX_FRAME + 4 && frame.body.len() + OVERHEAD == length);
                    frames.push((frame.kind, frame.lease, frame.body.to_vec()));
                    used += length;
                }
                Err(reason) => {
                    for bytes in [&wire[used..], &[]] {
                        assert_eq!(opener.open(bytes, NOW_MS, |_| true), Err(reason), "a failure stays");
                    }
                    return (frames, Some(reason));
                }
            }
        }
    }
    (frames, None)
}

pub fn frames() -> Vec<Vec<u8>> {
    let script = |steps: &[(u8, &[u8])]| {
        let mut out = Vec::new();
        for (step, body) in steps {
            out.push(*step);
            put_bytes(&mut out, body);
        }
        out
    };
    let forged = |sequence: u64, time: u64| {
        [&[1, 0, 0, 0][..], &sequence.to_be_bytes(), &time.to_be_bytes(), &[0; 8], b"body"].concat()
    };
    vec![
        script(&[(0, b"first"), (1, b""), (4, b"third")]),
        script(&[(0, b"first"), (2, &forged(1, NOW_MS)), (2, &forged(2, NOW_MS - TTL_MS))]),
        script(&[(2, &forged(0, NOW_MS + AHEAD_MS)), (2, &forged(0, NOW_MS))]),
        script(&[(1, b"x"), (3, &[0, 0, 0, 61, 1]), (0, b"lost")]),
        script(&[(0, &[7; MAX_FRAME - OVERHEAD + 4]), (3, &[0, 0, 2, 1])]),
    ]
}

/// A kind and a body: what is decoded is encoded as it was, except that a type which is none has become plain bytes;
/// it holds no more than came.
pub fn messages(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    let (kind, body) = (*kind, body);
    let is_same = |again: (u8, Vec<u8>)| {
        const PLAIN: &[u8] = b"application/octet-stream";
        let replaced = again.1.windows(PLAIN.len()).any(|window| window == PLAIN);
        again.0 == kind && (again.1 == body || replaced)
    };
    let bounded = |length: usize, capacity: usize| length <= body.len() && capacity <= 2 * body.len() + 4;
    let from_executor = ToBroker::decode(kind, body);
    if let Ok(message) = &from_executor {
        assert!(is_same(message.encode()), "{message:?}");
        let (kind, again) = message.encode();
        assert_eq!(ToBroker::decode(kind, &again).as_ref(), Ok(message));
        if let ToBroker::Part(effects) | ToBroker::Outcome { verdict: Verdict::Succeeded(_, effects), .. } =
            message
        {
            assert!(bounded(effects.state.len(), effects.state.capacity()));
            assert!(bounded(effects.context.len(), effects.context.capacity()));
            assert!(effects.follow_ups.len() <= FOLLOW_UPS);
            assert!(bounded(effects.follow_ups.len(), effects.follow_ups.capacity()));
        }
    }
    let from_broker = ToExecutor::decode(kind, body);
    if let Ok(message) = &from_broker {
        assert!(is_same(message.encode()), "{message:?}");
        let (kind, again) = message.encode();
        assert_eq!(ToExecutor::decode(kind, &again).map(|message| message.encode()), Ok((kind, again)));
        match message {
            ToExecutor::State { entries, .. } => assert!(bounded(entries.len(), entries.capacity())),
            ToExecutor::Lease { jobs, .. } => {
                assert!(!jobs.is_empty() && bounded(jobs.len(), jobs.capacity()));
            }
            _ => {}
        }
    }
    assert_eq!(from_executor == Err(Reject::UnknownKind), !to_broker(kind));
    assert_eq!(matches!(from_broker, Err(Reject::UnknownKind)), !to_executor(kind));
}

pub fn bodies() -> Vec<Vec<u8>> {
    let with_kind = |(kind, body): (u8, Vec<u8>)| [&[kind][..], &body].concat();
    let from_executor = all_to_broker().into_iter().map(|message| with_kind(message.encode()));
    from_executor.chain(all_to_executor().into_iter().map(|message| with_kind(message.encode()))).collect()
}

fn all_to_broker() -> Vec<ToBroker> {
    let change = |key: &str, value: Option<&[u8]>| Change { key: key.into(), value: value.map(Arc::from) };
    let follow_up = FollowUp {
        handler: "h".into(),
        ordering_key: Some("k".into()),
        delay: Duration::from_millis(5),
        payload: Payload::octets(*b"p"),
    };
    let effects = Effects {
        state: vec![change("a", Some(b"1")), change("b", None)],
        context: vec![change("c", Some(b""))],
        follow_ups: vec![follow_up],
    };
    let verdicts = [
        Verdict::Succeeded(Payload::json(*b"{}"), effects.clone()),
        Verdict::Failed(JobError::new(Code::HandlerFailed, "no")),
        Verdict::Retry("later".into()),
        Verdict::Crashed("oh".into()),
        Verdict::TimedOut,
    ];
    let outcome =
        |verdict| ToBroker::Outcome { job: JobId([1; 16]), delivery: 2, builds_on: Version(3), verdict };
    let mut messages: Vec<ToBroker> = verdicts.into_iter().map(outcome).collect();
    messages.extend([
        ToBroker::Ping,
        ToBroker::Room(8),
        ToBroker::Release(ReleaseReason::RunEnded),
        ToBroker::Report { busy: 3 },
        ToBroker::Part(effects),
    ]);
    messages
}

fn job(key: Option<&str>) -> LeasedJob {
    let spec = JobSpec {
        id: JobId([1; 16]),
        owner: "o".into(),
        handler: "h".into(),
        ordering_key: key.map(Arc::from),
        trace: Trace { id: [2; 16], span: [3; 8] },
        submitted_at: Timestamp(4),
        timeout: Duration::from_millis(5),
        one_line: key.is_some(),
    };
    let payload = Payload::json(*b"{\"n\":1}");
    LeasedJob { spec: Arc::new(spec), payload, delivery: 1, fence: 9, context: Default::default() }
}

fn all_to_executor() -> Vec<ToExecutor> {
    let entries = vec![(Arc::from("a"), Arc::from(*b"1")), (Arc::from("b"), Arc::from(*b""))];
    let lease = |state, jobs| ToExecutor::Lease { handler: "h".into(), state, version: Version(8), jobs };
    vec![
        ToExecutor::Pong,
        ToExecutor::Drain,
        ToExecutor::State { trace: None, entries: entries.clone() },
        ToExecutor::State { trace: Some([2; 16]), entries },
        lease(StateKind::Whole, vec![job(Some("k")), job(Some(""))]),
        lease(StateKind::Stateless, vec![job(None)]),
        ToExecutor::Committed(JobId([1; 16]), CommitResult::AlreadyCommitted),
        ToExecutor::Fenced(JobId([2; 16])),
        ToExecutor::Cancel(JobId([3; 16])),
    ]
}

/// What happens at an end of a connection, in order.
enum Event {
    Bytes(Vec<u8>),
    /// Its owner takes a turn, with this byte to choose by.
    Turn(u8),
}

/// Steps of a script are a turn and its byte, bare bytes, or a sealed frame: kind, lease, body.
const TURN: u8 = 0xF0;
const BARE: u8 = 0xF1;

fn events(bytes: &[u8], key: &[u8; 32]) -> Vec<Event> {
    let mut sealer = Sealer::new(MacKey::new(key));
    let (mut script, mut events, mut wire) = (Script(bytes), Vec::new(), Vec::new());
    while let (Some(kind), Some(lease)) = (script.u8(), script.u8()) {
        if kind == TURN {
            events.extend([Event::Bytes(std::mem::take(&mut wire)), Event::Turn(lease)]);
            continue;
        }
        let Some(body) = script.bytes() else { break };
        let body = &body[..body.len().min(SCRIPT_BODY_BYTES)];
        match kind {
            BARE => wire.extend_from_slice(body),
            kind => sealer.seal(kind, lease.into(), body, NOW_MS, &mut wire),
        }
    }
    events.push(Event::Bytes(wire));
    events
}

fn steps(list: impl IntoIterator<Item = ((u8, Vec<u8>), u8)>) -> Vec<u8> {
    let mut out = Vec::new();
    for ((kind, body), lease) in list {
        out.extend_from_slice(&[kind, lease]);
        if kind != TURN {
            put_bytes(&mut out, &body);
        }
    }
    out
}

/// Feeds an end piece by piece until it refuses; then every later byte is refused as well.
fn feed(
    events: &[Event],
    mut size: impl FnMut(usize) -> usize,
    mut received: impl FnMut(&[u8]) -> Result<(), Reject>,
    mut turn: impl FnMut(u8),
) -> Option<Reject> {
    for event in events {
        match event {
            Event::Turn(choice) => turn(*choice),
            Event::Bytes(bytes) => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (part, after) = rest.split_at(size(rest.len()));
                    if let Err(reason) = received(part) {
                        assert!(received(b"x").is_err() && received(&KNOWN.m1).is_err(), "a failure stays");
                        return Some(reason);
                    }
                    rest = after;
                }
            }
        }
    }
    None
}

/// Authenticated frames of any kind and body, in any order, at the broker's end: tokens and room stay in its hands, and
/// what it does does not depend on the pieces in which they came.
pub fn broker_end(bytes: &[u8]) {
    let events = events(bytes, &KNOWN.data.to_broker);
    let whole = at_broker(&events, |left| left);
    let mut sizes = pieces(bytes);
    assert_eq!(at_broker(&events, |left| piece(&mut sizes, left)), whole);
}

fn at_broker(
    events: &[Event],
    mut size: impl FnMut(usize) -> usize,
) -> (Vec<String>, Vec<u8>, Option<Reject>) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let secrets = [secret()];
    let (mut nonces, mut entropy) = (NonceCache::new(16), Entropy::Seeded(1));
    let lender_log = log.clone();
    let mut connect =
        move |_| Box::new(Lender { log: lender_log.clone(), lent: Vec::new() }) as Box<dyn Consumer>;
    let end = std::cell::RefCell::new(BrokerEnd::new(NOW_MS, PARTS_MAX));
    let mut received = |bytes: &[u8]| {
        let mut doorman = Doorman {
            secrets: &secrets,
            nonces: &mut nonces,
            terms: TERMS,
            entropy: &mut entropy,
            connect: &mut connect,
        };
        end.borrow_mut().received(bytes, &mut doorman, NOW_MS)
    };
    received(&KNOWN.m1).expect("it is the known first message");
    let mut said = Vec::new();
    let mut flush = || {
        let end = &mut *end.borrow_mut();
        let bytes = end.output(NOW_MS).to_vec();
        said.extend_from_slice(&bytes);
        end.wrote(bytes.len());
    };
    flush();
    received(&KNOWN.m3).expect("it is the known third message");
    let refused = feed(events, &mut size, received, |_| {
        end.borrow_mut().turn().expect("the lender is there");
        flush();
    });
    end.borrow_mut().settle();
    flush();
    assert_eq!(said[..M2_BYTES], KNOWN.m2);
    let frames = spoken(&said[M2_BYTES..], &KNOWN.data.to_executor, to_executor);
    for (kind, body) in frames {
        ToExecutor::decode(kind, &body).expect("it says what an executor understands");
    }
    let log = std::mem::take(&mut *log.lock().unwrap_or_else(PoisonError::into_inner));
    (log, said, refused)
}

/// The frames that an end said, opened by its peer's rules.
fn spoken(said: &[u8], key: &[u8; 32], allowed: fn(u8) -> bool) -> Vec<(u8, Vec<u8>)> {
    let mut opener = Opener::new(MacKey::new(key), TERMS.max_frame as usize, TTL_MS);
    let (mut used, mut frames) = (0, Vec::new());
    while let Some((frame, length)) = opener.open(&said[used..], NOW_MS, allowed).expect("an honest frame") {
        frames.push((frame.kind, frame.body.to_vec()));
        used += length;
    }
    assert_eq!(used, said.len(), "no part of a frame is left");
    frames
}

/// A consumer that lends as much as it may and checks that what comes back was lent to this connection.
struct Lender {
    log: Arc<Mutex<Vec<String>>>,
    /// Tokens, by number from 1.
    lent: Vec<[u8; 16]>,
}

impl Lender {
    fn note(&self, text: String) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    fn lent(&self, lease: LeaseRef) -> bool {
        let token = (lease.number as usize).checked_sub(1).and_then(|at| self.lent.get(at));
        assert!(lease.token == [0; 16] || token == Some(&lease.token), "a token of another lease");
        lease.token != [0; 16]
    }
}

impl Consumer for Lender {
    fn step(&mut self, commits: Vec<Commit>, room: usize) -> Result<Step, BackendError> {
        assert!(room <= MAX_LEASES as usize, "more room than was agreed");
        let mut step = Step::default();
        for commit in commits {
            if let Verdict::Succeeded(_, effects) = &commit.verdict {
                let value = |change: &Change| change.value.as_ref().map_or(0, |value| value.len());
                let bytes: usize = effects.state.iter().map(|change| change.key.len() + value(change)).sum();
                assert!(bytes <= PARTS_MAX + SCRIPT_BODY_BYTES, "more effects than were agreed");
            }
            let is_lent = self.lent(commit.lease);
            let result = if is_lent { CommitResult::Committed } else { CommitResult::Fenced };
            step.results.push(CommitAnswer { lease: commit.lease.number, job: commit.job, result });
            self.note(format!("{commit:?}"));
        }
        for _ in 0..room {
            let number = self.lent.len() as u64 + 1;
            let token = [number as u8 | 0x80; 16];
            self.lent.push(token);
            let entries = || [(Arc::from("a"), Arc::from(*b"1"))].into_iter().collect();
            let (state, mut jobs) = match number % 3 {
                0 => (StateAt::Stateless, vec![job(None)]),
                1 => (StateAt::Known(Version(number)), vec![job(Some("k"))]),
                _ => (StateAt::Whole(Version(number), entries()), vec![job(Some("k")), job(Some("k"))]),
            };
            jobs[0].context = entries();
            step.leases.push(Lease { lease: LeaseRef { number, token }, handler: "h".into(), state, jobs });
        }
        if self.lent.len() % 5 == 4 {
            step.revoked.push(Revoked { lease: self.lent.len() as u64 - 1, job: JobId([1; 16]) });
        }
        self.note(format!("room {room}"));
        Ok(step)
    }

    fn release(&mut self, lease: LeaseRef, reason: ReleaseReason) -> Result<(), BackendError> {
        assert!(self.lent(lease), "only what was lent is given back");
        self.note(format!("{lease:?} {reason:?}"));
        Ok(())
    }

    fn extend(&mut self) -> Result<(), BackendError> {
        self.note("extend".into());
        Ok(())
    }
}

pub fn to_broker_scripts() -> Vec<Vec<u8>> {
    let turn = || ((TURN, Vec::new()), 0);
    let every = all_to_broker().into_iter().map(|message| (message.encode(), 1));
    let outcome = |lease| (all_to_broker()[0].encode(), lease);
    let part = |lease| (all_to_broker()[9].encode(), lease);
    let room = || (ToBroker::Room(2).encode(), 0);
    // More ahead of an outcome than was agreed.
    let value = Some(Arc::from([7; 400]));
    let change = Effects { state: vec![Change { key: "a".into(), value }], ..Effects::default() };
    let large = || (ToBroker::Part(change.clone()).encode(), 1);
    vec![
        steps([room(), turn(), large(), large(), large(), outcome(1), turn()]),
        steps([room(), turn()].into_iter().chain(every).chain([turn()])),
        steps([
            room(),
            room(),
            turn(),
            part(1),
            part(2),
            outcome(2),
            part(1),
            outcome(1),
            outcome(1),
            turn(),
        ]),
        steps([room(), turn(), (ToBroker::Release(ReleaseReason::NeedState).encode(), 1), part(1), turn()]),
        steps([turn(), outcome(9), ((BARE, vec![0, 0, 0, 60]), 0)]),
        steps([(ToBroker::Ping.encode(), 0), turn(), (ToExecutor::Pong.encode(), 0)]),
    ]
}

/// The same at the executor's end: what reaches the worker code is a whole lease without a token, and what it says in
/// turn is understood. The first byte chooses between wide frames and the smallest.
pub fn executor_end(bytes: &[u8]) {
    let Some((choice, script)) = bytes.split_first() else { return };
    let known = if choice & 1 == 0 { &*KNOWN } else { &*NARROW };
    let events = events(script, &known.data.to_executor);
    let whole = at_executor(known, &events, |left| left);
    let mut sizes = pieces(bytes);
    assert_eq!(at_executor(known, &events, |left| piece(&mut sizes, left)), whole);
}

fn at_executor(
    known: &Known,
    events: &[Event],
    mut size: impl FnMut(usize) -> usize,
) -> (Vec<String>, Vec<u8>, Option<Reject>) {
    let end = std::cell::RefCell::new(ExecutorEnd::new(&secret(), 0, NONCE_E, TTL_MS, NOW_MS));
    let received = |bytes: &[u8]| end.borrow_mut().received(bytes, &secret(), NOW_MS);
    let (mut said, mut log) = (Vec::new(), Vec::new());
    let mut flush = || {
        let end = &mut *end.borrow_mut();
        let bytes = end.output(NOW_MS).to_vec();
        said.extend_from_slice(&bytes);
        end.wrote(bytes.len());
    };
    flush();
    received(&known.m2).expect("it is the known second message");
    let mut commits = Vec::new();
    let refused = feed(events, &mut size, received, |choice| {
        let step = end.borrow_mut().step(std::mem::take(&mut commits), usize::from(choice % 4));
        let step = step.expect("it is up");
        for Lease { lease, state, jobs, .. } in step.leases {
            assert!(lease.token == [0; 16] && !jobs.is_empty());
            let entries = match &state {
                StateAt::Whole(_, entries) => entries.len(),
                StateAt::Stateless | StateAt::Known(_) => 0,
            };
            log.push(format!("{lease:?} {entries}"));
            for job in jobs {
                let (id, delivery) = (job.spec.id, job.delivery);
                log.push(format!("{:?} {} {}", job.spec, job.fence, job.context.len()));
                let value = job.payload.bytes.clone();
                let effects = Effects {
                    state: vec![Change { key: "a".into(), value: Some(value) }; usize::from(choice)],
                    ..Effects::default()
                };
                let verdict = Verdict::Succeeded(job.payload, effects);
                commits.push(Commit { lease, job: id, delivery, builds_on: Version(1), verdict });
            }
        }
        log.push(format!("{:?} {:?}", step.results, step.revoked));
        flush();
    });
    log.push(format!("drain {}", end.borrow().drain));
    flush();
    assert_eq!(said[..M1_BYTES], known.m1);
    assert_eq!(said[M1_BYTES..M1_BYTES + M3_BYTES], known.m3);
    for (kind, body) in spoken(&said[M1_BYTES + M3_BYTES..], &known.data.to_broker, to_broker) {
        ToBroker::decode(kind, &body).expect("it says what a broker understands");
    }
    (log, said, refused)
}

pub fn to_executor_scripts() -> Vec<Vec<u8>> {
    let turn = |choice| ((TURN, Vec::new()), choice);
    let message = |at: usize, lease| (all_to_executor()[at].encode(), lease);
    let answered = [message(4, 1), turn(200), turn(1), message(6, 1), turn(0)];
    let scripts = [
        (0, steps([turn(3), message(2, 1), message(3, 1)].into_iter().chain(answered.clone()))),
        (1, steps([turn(3)].into_iter().chain(answered))),
        (0, steps([turn(2), message(5, 2), message(7, 2), message(8, 2), turn(5), turn(2)])),
        (0, steps([message(0, 0), message(1, 0), turn(0), ((BARE, vec![0xFF; 4]), 0)])),
        (0, steps([message(2, 3), message(5, 3), (ToBroker::Ping.encode(), 0)])),
    ];
    scripts.map(|(choice, script)| [&[choice][..], &script].concat()).into()
}
