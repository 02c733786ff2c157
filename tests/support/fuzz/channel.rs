//! Decoders of the channel: the handshake, frames, and bodies.
//!
//! Behind a mac random bytes reach nothing, so the inputs are fields and scripts that are sealed here, with the keys
//! of a handshake whose every byte is known.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use cofferdam::channel::Reject;
use cofferdam::channel::frame::{Opener, Sealer};
use cofferdam::channel::handshake::{Initiator, M1_BYTES, M2_BYTES, M3_BYTES, Nonces, Responder, Terms};
use cofferdam::channel::keys::{GroupSecret, MAC_BYTES, MacKey};
use cofferdam::channel::messages::{ToBroker, ToExecutor, to_broker, to_executor};
use cofferdam::clock::Timestamp;
use cofferdam::entropy::Entropy;
use cofferdam::job::{
    Change, Effects, Entries, FollowUp, JobId, JobSpec, Outcome, Payload, Progress, Trace, Version,
};
use cofferdam::limits::FOLLOW_UPS;
use cofferdam::ports::{Lease, LeaseId, LeasedJob, StateAt};
use cofferdam::problem::{Code, JobError};

use super::wire::{DataKeys, Forged, OVERHEAD, data_keys, handshake_keys, sha256};
use super::{Script, piece, pieces, put_bytes};

pub(super) const NOW_MS: u64 = 100_000;
pub(super) const TTL_MS: u64 = 30_000;
const HANDSHAKE_TTL_MS: u64 = 5_000;
const AHEAD_MS: u64 = 1_000;
pub(super) const NONCE_E: [u8; 32] = [3; 32];
pub(super) const MAX_LEASES: u32 = 4;
pub(super) const TERMS: Terms =
    Terms { boot_id: [1; 16], max_frame: 65_536, max_leases: MAX_LEASES, ttl_ms: TTL_MS };

pub(super) fn secret() -> GroupSecret {
    GroupSecret::from_bytes([7; 32])
}

fn initiator() -> Initiator {
    Initiator::start(&secret(), 0, NONCE_E, TTL_MS, NOW_MS)
}

fn answer(m1: &[u8; M1_BYTES], terms: Terms) -> Result<(Responder, [u8; M2_BYTES]), Reject> {
    let nonces = &mut [Nonces::new(16)];
    Responder::answer(m1, &[secret()], nonces, terms, Entropy::Seeded(1).bytes(), NOW_MS)
}

/// An honest handshake, the same in every run.
pub(super) struct Known {
    handshake: [[u8; 32]; 2],
    pub(super) m1: [u8; M1_BYTES],
    pub(super) m2: [u8; M2_BYTES],
    pub(super) m3: [u8; M3_BYTES],
    pub(super) data: DataKeys,
}

impl Known {
    fn new(terms: Terms) -> Known {
        let m1 = *initiator().m1();
        let (_, m2) = answer(&m1, terms).expect("it knows the secret");
        let (_, m3) = initiator().finish(&m2, &secret(), NOW_MS).expect("it knows the secret");
        Known { handshake: handshake_keys(&secret()), m1, m2, m3, data: data_keys(&secret(), &m1, &m2) }
    }
}

pub(super) static KNOWN: LazyLock<Known> = LazyLock::new(|| Known::new(TERMS));
/// The smallest frames that an executor agrees to.
pub(super) const NARROWEST: u32 = 1_088;
pub(super) static NARROW: LazyLock<Known> =
    LazyLock::new(|| Known::new(Terms { max_frame: NARROWEST, ..TERMS }));

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
            let mut nonces = [Nonces::new(16)];
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
        (b"CFD2", 2, found) if found == role => Ok(()),
        (b"CFD2", version, _) if version != 2 => Err(Reject::BadVersion),
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
    let nonces = &mut [Nonces::new(16)];
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
    let is_same = |again: (u8, Vec<u8>), body: &[u8]| {
        const PLAIN: &[u8] = b"application/octet-stream";
        let replaced = again.1.windows(PLAIN.len()).any(|window| window == PLAIN);
        again.0 == kind && (again.1 == body || replaced)
    };
    let bounded = |length: usize, capacity: usize| length <= body.len() && capacity <= 2 * body.len() + 4;
    let from_executor = ToBroker::decode(kind, body);
    if let Ok(message) = &from_executor {
        assert!(is_same(message.encode(), body), "{message:?}");
        let (kind, again) = message.encode();
        assert_eq!(ToBroker::decode(kind, &again).as_ref(), Ok(message));
        if let ToBroker::Part(effects) | ToBroker::Outcome { outcome: Outcome::Succeeded(_, effects), .. } =
            message
        {
            assert!(bounded(effects.state.len(), effects.state.capacity()));
            assert!(bounded(effects.context.len(), effects.context.capacity()));
            assert!(effects.follow_ups.len() <= FOLLOW_UPS);
            assert!(bounded(effects.follow_ups.len(), effects.follow_ups.capacity()));
        }
    }
    const LEASE: u64 = 7;
    let from_broker = ToExecutor::decode(kind, LEASE, body);
    if let Ok(message) = &from_broker {
        let (kind, again) = message.encode();
        let is_canonical = match message {
            ToExecutor::Lease(Lease { handler, state: StateAt::Stateless, .. }) => {
                // Its version says nothing, and is written as 0 whatever it was.
                let version = 3 + handler.len()..11 + handler.len();
                let mut expected = body.to_vec();
                expected[version].fill(0);
                is_same((kind, again.clone()), &expected)
            }
            _ => is_same((kind, again.clone()), body),
        };
        assert!(is_canonical, "{message:?}");
        assert_eq!(
            ToExecutor::decode(kind, LEASE, &again).map(|message| message.encode()),
            Ok((kind, again))
        );
        match message {
            ToExecutor::State { entries, .. } => assert!(bounded(entries.len(), entries.capacity())),
            ToExecutor::Lease(Lease { id, jobs, .. }) => {
                assert_eq!(*id, LeaseId(LEASE), "the frame's number is the lease's");
                assert!(!jobs.is_empty() && bounded(jobs.len(), jobs.capacity()));
            }
            ToExecutor::Pong | ToExecutor::Drain | ToExecutor::Fenced(_) | ToExecutor::Cancel(_) => {}
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

pub(super) fn all_to_broker() -> Vec<ToBroker> {
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
    let outcomes = [
        Outcome::Succeeded(Payload::json(*b"{}"), effects.clone()),
        Outcome::Failed(JobError::new(Code::HandlerFailed, "no")),
        Outcome::Retry("later".into(), None),
        Outcome::Crashed("oh".into()),
        Outcome::TimedOut(String::new()),
    ];
    let outcome =
        |outcome| ToBroker::Outcome { job: JobId([1; 16]), delivery: 2, builds_on: Version(3), outcome };
    let mut messages: Vec<ToBroker> = outcomes.into_iter().map(outcome).collect();
    messages.extend([ToBroker::Ping, ToBroker::Room(8), ToBroker::Release, ToBroker::Part(effects)]);
    let progress = Progress::parse(r#"{"done":1}"#).expect("JSON");
    messages.push(ToBroker::Progress(JobId([1; 16]), progress));
    messages
}

pub(super) fn job(key: Option<&str>) -> LeasedJob {
    let spec = JobSpec {
        id: JobId([1; 16]),
        owner: "o".into(),
        handler: "h".into(),
        ordering_key: key.map(Arc::from),
        trace: Trace { id: [2; 16], span: [3; 8], flags: 1, parent: None },
        tracestate: Some("a=1".into()),
        submitted_at: Timestamp(4),
        timeout: Duration::from_millis(5),
        one_line: key.is_some(),
    };
    let payload = Payload::json(*b"{\"n\":1}");
    LeasedJob { spec: Arc::new(spec), payload, delivery: 1, fence: 9, context: Default::default() }
}

pub(super) fn all_to_executor() -> Vec<ToExecutor> {
    let entries = vec![(Arc::from("a"), Arc::from(*b"1")), (Arc::from("b"), Arc::from(*b""))];
    let lease = |state, jobs| ToExecutor::Lease(Lease { id: LeaseId(7), handler: "h".into(), state, jobs });
    vec![
        ToExecutor::Pong,
        ToExecutor::Drain,
        ToExecutor::State { trace: None, entries: entries.clone() },
        ToExecutor::State { trace: Some([2; 16]), entries },
        lease(StateAt::Whole(Version(8), Entries::new()), vec![job(Some("k")), job(Some(""))]),
        lease(StateAt::Known(Version(8)), vec![job(Some("k"))]),
        lease(StateAt::Stateless, vec![job(None)]),
        ToExecutor::Fenced(JobId([2; 16])),
        ToExecutor::Cancel(JobId([3; 16])),
    ]
}
