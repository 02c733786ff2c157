//! The channel against strangers, replays and liars: each refusal by its name, at a [`BrokerEnd`] that no socket
//! feeds.
//!
//! In scope: who may connect, what a peer may say, and that honest peers are never refused. Not in scope: the same
//! over real sockets (security_ipc_service.rs), single bits of single messages (unit tests of the channel), and the
//! bytes of the protocol (protocol_vectors.rs).

use std::sync::Arc;
use std::time::Duration;

use cofferdam::HandlerOptions;
use cofferdam::bell::Bell;
use cofferdam::channel::handshake::{Initiator, NonceCache, Responder, Session, Terms};
use cofferdam::channel::keys::GroupSecret;
use cofferdam::channel::messages::{ToBroker, ToExecutor, to_executor};
use cofferdam::channel::{BrokerEnd, Doorman, ExecutorEnd, Reject};
use cofferdam::clock::{Clock, Timestamp};
use cofferdam::config::Retain;
use cofferdam::entropy::Entropy;
use cofferdam::handler::HandlerSpec;
use cofferdam::job::{Effects, InstanceId, JobId, JobStatus, Payload, Trace, Verdict, Version};
use cofferdam::memory::MemoryBroker;
use cofferdam::memory::broker::Broker;
use cofferdam::ports::Rules;
use cofferdam::ports::{Consumer, Lease, LeaseRef, NewJob, Producer, StateAt, Submitted, Viewer};

use wire::Forged;

#[path = "support/wire.rs"]
mod wire;

const TTL_MS: u64 = 30_000;
const MAX_PAYLOAD: usize = 8_192;
const MAX_FRAME: usize = MAX_PAYLOAD + 65_536;
/// What effects in parts may come to: the state's limit and a frame, as a server has it.
const PARTS_MAX: usize = 64 * 1_024 + MAX_FRAME;
const NONCES: usize = 16;
const NOW: u64 = 1_000_000;

const PING: u8 = 0x01;
const ROOM: u8 = 0x10;
const PONG: u8 = 0x81;

fn secret(group: usize) -> GroupSecret {
    GroupSecret::from_bytes([0x40 + u8::try_from(group).expect("few groups"); 32])
}

/// A broker's side with two groups, and its time.
struct Side {
    secrets: Vec<GroupSecret>,
    nonces: NonceCache,
    entropy: Entropy,
    broker: MemoryBroker,
    now: u64,
}

impl Side {
    fn new() -> Side {
        let rules = Rules {
            capacity: 1_000,
            visibility: Duration::from_secs(30),
            max_deliveries: 3,
            retry_base: Duration::from_millis(200),
            retry_max: Duration::from_secs(2),
            result_ttl: Duration::from_secs(600),
            awaited_ttl: Duration::from_secs(30),
            retain: Retain { records: 1_000, bytes: 64 << 20 },
            context_ttl: Duration::from_secs(60),
            lane_state_max: 64 * 1_024,
            max_payload: MAX_PAYLOAD,
        };
        let spec = |name, options| HandlerSpec { name: Arc::from(name), group: 0, options };
        let handlers =
            vec![spec("free", HandlerOptions::default()), spec("serial", HandlerOptions::serial())];
        let clock = Clock::manual(Timestamp(1_700_000_000_000_000));
        let broker = Broker::new(rules, handlers, vec![64; 2], Entropy::Seeded(1));
        let broker = MemoryBroker::new(broker, clock, vec![Arc::from("a"), Arc::from("b")]);
        Side {
            secrets: vec![secret(0), secret(1)],
            nonces: NonceCache::new(NONCES),
            entropy: Entropy::Seeded(2),
            broker,
            now: NOW,
        }
    }

    fn end(&self) -> BrokerEnd {
        BrokerEnd::new(self.now, PARTS_MAX)
    }

    fn receive(&mut self, end: &mut BrokerEnd, bytes: &[u8]) -> Result<(), Reject> {
        let broker = self.broker.clone();
        let mut connect = move |group| Box::new(broker.consumer(group, Bell::silent())) as Box<dyn Consumer>;
        let mut doorman = Doorman {
            secrets: &self.secrets,
            nonces: &mut self.nonces,
            terms: Terms { boot_id: [9; 16], max_frame: MAX_FRAME as u32, max_leases: 64, ttl_ms: TTL_MS },
            entropy: &mut self.entropy,
            connect: &mut connect,
        };
        end.received(bytes, &mut doorman, self.now)
    }

    fn m1(&mut self, group: usize) -> Initiator {
        let nonce = self.entropy.bytes();
        Initiator::start(&secret(group), group as u16, nonce, TTL_MS, self.now)
    }

    /// A connection that has its M2: what E would say next, and what both have said.
    fn proven(&mut self) -> Half {
        let mut end = self.end();
        let initiator = self.m1(0);
        let m1 = *initiator.m1();
        self.receive(&mut end, &m1).expect("M1 is valid");
        let m2: [u8; 104] = sent(&mut end, self.now).try_into().expect("M2 and nothing else");
        let keys = wire::data_keys(&secret(0), &m1, &m2);
        let (session, m3) = initiator.finish(&m2, &secret(0), self.now).expect("M2 is valid");
        Half { end, session, m3, to_broker: keys.to_broker, to_executor: keys.to_executor }
    }

    /// A connection that is up.
    fn up(&mut self) -> Half {
        let mut half = self.proven();
        let m3 = half.m3;
        self.receive(&mut half.end, &m3).expect("M3 is valid");
        assert_eq!(half.end.group(), Some(0));
        half
    }

    /// What becomes of these bytes as the first that a connection brings after its handshake.
    fn first_of_up(&mut self, bytes: impl FnOnce(&Half) -> Vec<u8>) -> Result<(), Reject> {
        let mut half = self.up();
        let bytes = bytes(&half);
        let received = self.receive(&mut half.end, &bytes);
        if received.is_err() {
            half.is_over(self);
        }
        received
    }
}

/// A broker's end, and all that its honest executor knows.
struct Half {
    end: BrokerEnd,
    session: Session,
    m3: [u8; 40],
    to_broker: [u8; 32],
    to_executor: [u8; 32],
}

impl Half {
    fn sealed(&mut self, message: &ToBroker, lease: u64, now: u64) -> Vec<u8> {
        let (kind, body) = message.encode();
        let mut out = Vec::new();
        self.session.sealer.seal(kind, lease, &body, now, &mut out);
        out
    }

    /// A refusal is final, and nothing was said to it.
    fn is_over(&mut self, side: &mut Side) {
        let said = sent(&mut self.end, side.now).len();
        let answers = wire::OVERHEAD * usize::try_from(self.end.frames_in).expect("a few frames");
        assert!(said <= answers, "pongs for the pings before it, and nothing to what was refused");
        assert!(side.receive(&mut self.end, &[0; 40]).is_err(), "and nothing more is taken from it");
    }
}

/// All that the end says now.
fn sent(end: &mut BrokerEnd, now: u64) -> Vec<u8> {
    let bytes = end.output(now).to_vec();
    end.wrote(bytes.len());
    bytes
}

fn ping(now: u64) -> Forged {
    Forged { kind: PING, time_ms: now, ..Forged::default() }
}

// --- Each reason, at a broker's end ---

#[test]
fn c3_an_invalid_signature_is_refused_in_every_message() {
    let mut side = Side::new();
    for byte in 48..80 {
        let (mut end, mut m1) = (side.end(), *side.m1(0).m1());
        m1[byte] ^= 1;
        assert_eq!(side.receive(&mut end, &m1), Err(Reject::BadSignature));
        assert_eq!(sent(&mut end, NOW), b"", "not a byte for who does not know the secret");
    }
    for byte in 8..40 {
        let mut half = side.proven_anew();
        half.m3[byte] ^= 1;
        let m3 = half.m3;
        assert_eq!(side.receive(&mut half.end, &m3), Err(Reject::BadSignature));
        half.is_over(&mut side);
    }
    for byte in 32..64 {
        let mut frame = Vec::new();
        let refused = side.anew().first_of_up(|half| {
            frame = ping(NOW).sealed(&half.to_broker);
            frame[byte] ^= 1;
            frame.clone()
        });
        assert_eq!(refused, Err(Reject::BadSignature));
    }
}

impl Side {
    /// The same side with an empty table of nonces, so that many connections fit a test.
    fn anew(&mut self) -> &mut Side {
        self.nonces = NonceCache::new(NONCES);
        self
    }

    fn proven_anew(&mut self) -> Half {
        self.anew().proven()
    }
}

#[test]
fn c2_another_groups_secret_or_an_unknown_group_is_a_bad_signature() {
    let mut side = Side::new();
    for (group, index) in [(0, 1), (1, 0), (0, 2), (0, u16::MAX)] {
        let m1 = *Initiator::start(&secret(group), index, [1; 32], TTL_MS, NOW).m1();
        let mut end = side.end();
        assert_eq!(side.receive(&mut end, &m1), Err(Reject::BadSignature), "{group} as {index}");
        assert_eq!(sent(&mut end, NOW), b"");
    }
}

#[test]
fn c2_frames_of_another_connection_or_the_other_direction_are_bad_signatures() {
    let mut side = Side::new();
    let other = side.up();
    assert_eq!(side.first_of_up(|_| ping(NOW).sealed(&other.to_broker)), Err(Reject::BadSignature));
    let reflected = |half: &Half| Forged { kind: PONG, ..ping(NOW) }.sealed(&half.to_executor);
    assert_eq!(side.first_of_up(reflected), Err(Reject::BadSignature));
    // A third message belongs to its own handshake too.
    let (mut first, second) = (side.proven(), side.proven());
    assert_eq!(side.receive(&mut first.end, &second.m3), Err(Reject::BadSignature));
}

#[test]
fn c2_a_first_message_that_comes_again_is_a_replayed_nonce() {
    let mut side = Side::new();
    let m1 = *side.m1(0).m1();
    let (mut end, mut again) = (side.end(), side.end());
    assert_eq!(side.receive(&mut end, &m1), Ok(()));
    side.now += 4_999;
    assert_eq!(side.receive(&mut again, &m1), Err(Reject::ReplayedNonce));
    assert_eq!(sent(&mut again, side.now), b"");
    // Once its nonce is forgotten, it is too old.
    side.now += 10_000;
    let mut again = side.end();
    assert_eq!(side.receive(&mut again, &m1), Err(Reject::ExpiredTimestamp));
}

#[test]
fn c2_a_full_table_of_nonces_refuses_and_strangers_do_not_fill_it() {
    let mut side = Side::new();
    for _ in 0..100 {
        let (mut end, mut m1) = (side.end(), *side.m1(0).m1());
        m1[79] ^= 1;
        assert_eq!(side.receive(&mut end, &m1), Err(Reject::BadSignature));
    }
    for _ in 0..NONCES {
        let (mut end, m1) = (side.end(), *side.m1(0).m1());
        assert_eq!(side.receive(&mut end, &m1), Ok(()), "no stranger's nonce was kept");
    }
    let (mut end, m1) = (side.end(), *side.m1(0).m1());
    assert_eq!(side.receive(&mut end, &m1), Err(Reject::ReplayedNonce));
}

#[test]
fn c2_a_sequence_that_is_not_the_next_one_is_a_replayed_nonce() {
    let mut side = Side::new();
    for sequence in [1, 2, u64::MAX] {
        let skipped = |half: &Half| Forged { sequence, ..ping(NOW) }.sealed(&half.to_broker);
        assert_eq!(side.first_of_up(skipped), Err(Reject::ReplayedNonce), "{sequence}");
    }
    let twice = |half: &Half| ping(NOW).sealed(&half.to_broker).repeat(2);
    assert_eq!(side.first_of_up(twice), Err(Reject::ReplayedNonce));
    let reordered = |half: &Half| {
        let at = |sequence| Forged { sequence, ..ping(NOW) }.sealed(&half.to_broker);
        [at(0), at(2), at(1)].concat()
    };
    assert_eq!(side.first_of_up(reordered), Err(Reject::ReplayedNonce));
}

#[test]
fn c5_an_expired_timestamp_is_refused_and_one_at_the_limit_is_not() {
    let mut side = Side::new();
    for (time, refused) in
        [(NOW - 5_001, true), (NOW - 5_000, false), (NOW + 1_000, false), (NOW + 1_001, true), (0, true)]
    {
        let nonce = side.entropy.bytes();
        let (mut end, m1) = (side.end(), *Initiator::start(&secret(0), 0, nonce, TTL_MS, time).m1());
        let reason = refused.then_some(Reject::ExpiredTimestamp);
        assert_eq!(side.receive(&mut end, &m1).err(), reason, "M1 of {time}");
        assert_eq!(sent(&mut end, NOW).is_empty(), refused);
    }
    for (time, refused) in
        [(NOW - TTL_MS - 1, true), (NOW - TTL_MS, false), (NOW + 1_000, false), (NOW + 1_001, true)]
    {
        let reason = refused.then_some(Reject::ExpiredTimestamp);
        let received = side.first_of_up(|half| ping(time).sealed(&half.to_broker));
        assert_eq!(received.err(), reason, "a frame of {time}");
    }
}

#[test]
fn c1_an_oversized_length_is_refused_before_its_frame_has_come() {
    let mut side = Side::new();
    for length in [MAX_FRAME as u32 + 1, 1 << 31, u32::MAX] {
        let claimed = side.first_of_up(|_| length.to_be_bytes().to_vec());
        assert_eq!(claimed, Err(Reject::Oversized), "{length}");
    }
    // The largest frame is a frame, whatever its body says.
    let largest = |kind| {
        move |half: &Half| {
            let body = vec![0; MAX_FRAME - (wire::OVERHEAD - 4)];
            Forged { kind, body, ..ping(NOW) }.sealed(&half.to_broker)
        }
    };
    assert_eq!(side.first_of_up(largest(0x7F)), Err(Reject::UnknownKind), "its mac was checked");
    assert_eq!(side.first_of_up(largest(PING)), Err(Reject::Malformed), "its kind was checked");
}

#[test]
fn c4_a_result_of_the_maximum_passes_with_every_other_field_at_its_limit() {
    let mut side = Side::new();
    let mut half = side.up();
    submit(&side.broker, "free");
    let lease = claim(&mut side, &mut half);
    let media_type = format!("text/{}", "x".repeat(251));
    let media_type = cofferdam::MediaType::parse(&media_type).expect("256 bytes are a media type");
    let payload = Payload { media_type, bytes: vec![7; MAX_PAYLOAD].into() };
    let verdict = Verdict::Succeeded(payload, Effects::default());
    assert_eq!(commit(&mut side, &mut half, &lease, 0, verdict), Ok(()));
    let record = side.broker.record(&Viewer::anonymous(), lease.jobs[0].spec.id).expect("it is there");
    assert_eq!(record.map(|record| record.status), Some(JobStatus::Succeeded));
}

#[test]
fn c5_another_version_is_a_bad_version() {
    let mut side = Side::new();
    for version in [0, 2, 0xFF] {
        let (mut end, mut m1) = (side.end(), *side.m1(0).m1());
        m1[4] = version;
        assert_eq!(side.receive(&mut end, &m1), Err(Reject::BadVersion));
        let mut half = side.proven_anew();
        half.m3[4] = version;
        let m3 = half.m3;
        assert_eq!(side.receive(&mut half.end, &m3), Err(Reject::BadVersion));
    }
}

#[test]
fn c5_an_unknown_kind_is_refused_before_its_body_is_looked_at() {
    let mut side = Side::new();
    for kind in (0..=u8::MAX).filter(|kind| !matches!(*kind, PING | 0x10..=0x14)) {
        let frame = |half: &Half| Forged { kind, body: vec![0xFF; 9], ..ping(NOW) }.sealed(&half.to_broker);
        assert_eq!(side.anew().first_of_up(frame), Err(Reject::UnknownKind), "{kind:#x}");
    }
}

#[test]
fn c7_what_does_not_have_the_shape_is_malformed() {
    let mut side = Side::new();
    for (at, byte) in [(0, b'c'), (3, b'2'), (5, 2), (5, 0)] {
        let (mut end, mut m1) = (side.end(), *side.m1(0).m1());
        m1[at] = byte;
        assert_eq!(side.receive(&mut end, &m1), Err(Reject::Malformed), "M1 at {at}");
    }
    for first in (0..=u8::MAX).filter(|first| *first != b'C') {
        let mut end = side.end();
        assert_eq!(side.receive(&mut end, &[first]), Err(Reject::Malformed), "one byte is enough");
    }
    for (at, byte) in [(0, b'c'), (5, 2), (6, 1), (7, 1)] {
        let mut half = side.proven_anew();
        half.m3[at] = byte;
        let m3 = half.m3;
        assert_eq!(side.receive(&mut half.end, &m3), Err(Reject::Malformed), "M3 at {at}");
    }
    let frames = [
        Forged { flags: 1, ..ping(NOW) },
        Forged { flags: 0x80, ..ping(NOW) },
        Forged { reserved: 1, ..ping(NOW) },
        Forged { reserved: 0x8000, ..ping(NOW) },
        Forged { body: vec![0], ..ping(NOW) },
        Forged { kind: ROOM, body: vec![0; 3], ..ping(NOW) },
        Forged { kind: ROOM, body: vec![0; 5], ..ping(NOW) },
        Forged { kind: 0x11, body: vec![0; 28], ..ping(NOW) },
        Forged { kind: 0x12, body: vec![3], ..ping(NOW) },
        Forged { kind: 0x14, body: vec![0xFF; 6], ..ping(NOW) },
    ];
    for frame in frames {
        let received = side.anew().first_of_up(|half| frame.sealed(&half.to_broker));
        assert_eq!(received, Err(Reject::Malformed), "{frame:?}");
    }
    for length in [0_u32, 1, 59] {
        let short = side.anew().first_of_up(|_| length.to_be_bytes().to_vec());
        assert_eq!(short, Err(Reject::Malformed), "a length of {length}");
    }
}

#[test]
fn c5_flags_are_looked_at_after_mac_sequence_and_time() {
    let mut side = Side::new();
    let wrong = Forged { flags: 1, kind: 0xFF, sequence: 9, time_ms: 0, ..ping(NOW) };
    let cases = [
        (wrong.clone(), false, Reject::BadSignature),
        (wrong.clone(), true, Reject::ReplayedNonce),
        (Forged { sequence: 0, ..wrong.clone() }, true, Reject::ExpiredTimestamp),
        (Forged { sequence: 0, time_ms: NOW, ..wrong.clone() }, true, Reject::Malformed),
        (Forged { sequence: 0, time_ms: NOW, flags: 0, ..wrong }, true, Reject::UnknownKind),
    ];
    for (frame, signed, reason) in cases {
        let key = |half: &Half| if signed { half.to_broker } else { half.to_executor };
        assert_eq!(side.first_of_up(|half| frame.sealed(&key(half))), Err(reason), "{frame:?}");
    }
}

#[test]
fn c5_a_second_message_with_senseless_limits_is_a_failed_handshake() {
    for (max_frame, max_leases, refused) in [(1_087, 1, true), (1_088, 1, false), (1_088, 0, true)] {
        let initiator = Initiator::start(&secret(0), 0, [1; 32], TTL_MS, NOW);
        let terms = Terms { boot_id: [9; 16], max_frame, max_leases, ttl_ms: TTL_MS };
        let mut nonces = NonceCache::new(16);
        let answer = Responder::answer(initiator.m1(), &[secret(0)], &mut nonces, terms, [2; 32], NOW);
        let (_, m2) = answer.expect("M1 is valid");
        let reason = initiator.finish(&m2, &secret(0), NOW).err();
        assert_eq!(reason, refused.then_some(Reject::HandshakeFailed), "{max_frame} {max_leases}");
    }
}

#[test]
fn c5_a_broker_that_speaks_before_the_third_message_is_not_believed() {
    let initiator_end = || ExecutorEnd::new(&secret(0), 0, [1; 32], TTL_MS, NOW);
    let mut executor = initiator_end();
    let m1: [u8; 80] = executor.output(NOW).try_into().expect("M1 and nothing else");
    let terms = Terms { boot_id: [9; 16], max_frame: MAX_FRAME as u32, max_leases: 1, ttl_ms: TTL_MS };
    let answer = Responder::answer(&m1, &[secret(0)], &mut NonceCache::new(16), terms, [2; 32], NOW);
    let (_, m2) = answer.expect("M1 is valid");
    let early = [&m2[..], &[0]].concat();
    assert_eq!(executor.received(&early, &secret(0), NOW), Err(Reject::Malformed));
    assert!(executor.received(&m2, &secret(0), NOW).is_err(), "there is no second try");
    for end in 0..m2.len() {
        let mut executor = initiator_end();
        assert_eq!(executor.received(&m2[..end], &secret(0), NOW), Ok(()));
        assert!(executor.in_handshake(), "{end} bytes are no second message");
    }
}

#[test]
fn c1_before_authentication_exactly_the_next_message_is_read() {
    let mut side = Side::new();
    let mut end = side.end();
    let m1 = *side.m1(0).m1();
    for (at, byte) in m1.iter().enumerate() {
        assert_eq!(end.room(), m1.len() - at);
        assert_eq!(sent(&mut end, NOW), b"");
        assert_eq!(side.receive(&mut end, &[*byte]), Ok(()));
    }
    assert_eq!((sent(&mut end, NOW).len(), end.room()), (104, 40));
    assert_eq!(sent(&mut end, NOW), b"", "M2, and nothing before M3");
}

// --- What honest executors may do at any time ---

fn submit(broker: &MemoryBroker, handler: &str) -> JobId {
    let id = JobId(Entropy::system().bytes());
    let job = NewJob {
        id,
        owner: "".into(),
        handler: handler.into(),
        ordering_key: None,
        payload: Payload::json(*b"1"),
        trace: Trace { id: [1; 16], span: [2; 8] },
        delay: Duration::ZERO,
        timeout: None,
        idempotency: None,
        awaited: false,
        one_line: false,
        instance: InstanceId(1),
    };
    assert_eq!(broker.submit(vec![job]).expect("the broker is there"), [Submitted::New]);
    id
}

/// The lease that must come: what an [`ExecutorEnd`] would read from it.
fn claim(side: &mut Side, half: &mut Half) -> Lease {
    let now = side.now;
    let room = half.sealed(&ToBroker::Room(1), 0, now);
    side.receive(&mut half.end, &room).expect("room may be given");
    half.end.turn().expect("the broker is there");
    let bytes = sent(&mut half.end, now);
    let mut at = 0;
    while let Some((frame, length)) = half.session.opener.open(&bytes[at..], now, to_executor).expect("valid")
    {
        at += length;
        let message = ToExecutor::decode(frame.kind, frame.body).expect("valid");
        if let ToExecutor::Lease { handler, version, jobs, .. } = message {
            let lease = LeaseRef { number: frame.lease, token: [0; 16] };
            return Lease { lease, handler, state: StateAt::Known(version), jobs };
        }
    }
    panic!("there is something to claim")
}

fn commit(
    side: &mut Side,
    half: &mut Half,
    lease: &Lease,
    index: usize,
    verdict: Verdict,
) -> Result<(), Reject> {
    let job = &lease.jobs[index];
    let outcome = ToBroker::Outcome {
        job: job.spec.id,
        delivery: job.delivery,
        builds_on: Version::default(),
        verdict,
    };
    let bytes = half.sealed(&outcome, lease.lease.number, side.now);
    side.receive(&mut half.end, &bytes)?;
    half.end.turn().expect("the broker is there");
    Ok(())
}

#[test]
fn parts_that_cross_the_end_of_their_lease_do_not_end_the_connection() {
    let mut side = Side::new();
    let mut half = side.up();
    let jobs = [submit(&side.broker, "serial"), submit(&side.broker, "serial")];
    let lease = claim(&mut side, &mut half);
    assert_eq!(lease.jobs.len(), 2);
    // Its running job is cancelled; the executor, which has not heard of it, goes on to the next one.
    side.broker.cancel(&Viewer::anonymous(), jobs[0]).expect("the broker is there");
    let done = || Verdict::Succeeded(Payload::json(*b"1"), Effects::default());
    assert_eq!(commit(&mut side, &mut half, &lease, 0, done()), Ok(()), "fenced off");
    let part = half.sealed(&ToBroker::Part(Effects::default()), lease.lease.number, side.now);
    assert_eq!(side.receive(&mut half.end, &part), Ok(()), "the same race, a frame later");
    assert_eq!(commit(&mut side, &mut half, &lease, 1, done()), Ok(()));
    let record = side.broker.record(&Viewer::anonymous(), jobs[1]).expect("the broker is there");
    assert_eq!(record.map(|record| record.status), Some(JobStatus::Queued), "it comes again");
}
