//! The channel against strangers, replays and liars: each refusal by its name, at a broker's end that no socket feeds.
//!
//! In scope: who may connect, and what no peer may say. Not in scope: what honest executors say and are told
//! (channel_rules.rs), the same over real sockets (security_ipc_service.rs), single bits of single messages (unit
//! tests of the channel), and the bytes of the protocol (protocol_vectors.rs).

use cofferdam::channel::handshake::{Initiator, Nonces, Responder, Terms};
use cofferdam::channel::{ExecutorEnd, Reject};
use cofferdam::job::{Effects, JobStatus, Outcome, Payload};

use broker_side::{
    Half, MAX_FRAME, MAX_PAYLOAD, NONCES, NOW, PING, PONG, ROOM, Side, TTL_MS, ping, secret, sent,
};
use wire::Forged;

#[path = "support/broker_side.rs"]
mod broker_side;
#[path = "support/wire.rs"]
mod wire;

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
        let mut half = side.anew().proven();
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
    // Each group has a table of its own, which is as large.
    for _ in 0..NONCES {
        let (mut end, m1) = (side.end(), *side.m1(1).m1());
        assert_eq!(side.receive(&mut end, &m1), Ok(()), "one group keeps no other out");
    }
    let (mut end, m1) = (side.end(), *side.m1(1).m1());
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
    let job = side.submit("free");
    let lease = half.claim(&mut side, 1).pop().expect("a lease");
    let media_type = format!("text/{}", "x".repeat(251));
    let media_type = cofferdam::MediaType::parse(&media_type).expect("256 bytes are a media type");
    let payload = Payload { media_type, bytes: vec![7; MAX_PAYLOAD].into() };
    let outcome = Outcome::Succeeded(payload, Effects::default());
    assert_eq!(half.answer(&mut side, &lease, 0, outcome), Ok(()));
    assert!(half.turn(&side).is_empty(), "it holds, so nothing is said");
    assert_eq!(side.status(job), JobStatus::Succeeded);
}

#[test]
fn c5_another_version_is_a_bad_version() {
    let mut side = Side::new();
    for version in [0, 1, 3, 0xFF] {
        let (mut end, mut m1) = (side.end(), *side.m1(0).m1());
        m1[4] = version;
        assert_eq!(side.receive(&mut end, &m1), Err(Reject::BadVersion));
        let mut half = side.anew().proven();
        half.m3[4] = version;
        let m3 = half.m3;
        assert_eq!(side.receive(&mut half.end, &m3), Err(Reject::BadVersion));
    }
}

#[test]
fn c5_an_unknown_kind_is_refused_before_its_body_is_looked_at() {
    let mut side = Side::new();
    for kind in (0..=u8::MAX).filter(|kind| !matches!(*kind, PING | 0x10..=0x12 | 0x14..=0x15)) {
        let frame = |half: &Half| Forged { kind, body: vec![0xFF; 9], ..ping(NOW) }.sealed(&half.to_broker);
        assert_eq!(side.anew().first_of_up(frame), Err(Reject::UnknownKind), "{kind:#x}");
    }
}

/// The body of a `Progress`.
fn progress(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("it is short");
    [&[0; 16], &length.to_be_bytes()[..], text.as_bytes()].concat()
}

#[test]
fn c7_what_does_not_have_the_shape_is_malformed() {
    let mut side = Side::new();
    for (at, byte) in [(0, b'c'), (3, b'1'), (5, 2), (5, 0)] {
        let (mut end, mut m1) = (side.end(), *side.m1(0).m1());
        m1[at] = byte;
        assert_eq!(side.receive(&mut end, &m1), Err(Reject::Malformed), "M1 at {at}");
    }
    for first in (0..=u8::MAX).filter(|first| *first != b'C') {
        let mut end = side.end();
        assert_eq!(side.receive(&mut end, &[first]), Err(Reject::Malformed), "one byte is enough");
    }
    for (at, byte) in [(0, b'c'), (5, 2), (6, 1), (7, 1)] {
        let mut half = side.anew().proven();
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
        Forged { kind: 0x12, body: vec![0], ..ping(NOW) },
        Forged { kind: 0x14, body: vec![0xFF; 6], ..ping(NOW) },
        Forged { kind: 0x15, body: vec![0; 17], ..ping(NOW) },
        Forged { kind: 0x15, body: progress("nothing"), ..ping(NOW) },
        Forged { kind: 0x15, body: progress(" 1"), ..ping(NOW) },
        Forged { kind: 0x15, body: progress("1 2"), ..ping(NOW) },
        Forged { kind: 0x15, body: progress(&format!("\"{}\"", "x".repeat(1_023))), ..ping(NOW) },
    ];
    for frame in frames {
        let received = side.anew().first_of_up(|half| frame.sealed(&half.to_broker));
        assert_eq!(received, Err(Reject::Malformed), "{frame:?}");
    }
    let longest = Forged { kind: 0x15, body: progress(&format!("\"{}\"", "x".repeat(1_022))), ..ping(NOW) };
    assert_eq!(side.anew().first_of_up(|half| longest.sealed(&half.to_broker)), Ok(()));
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
        let mut nonces = [Nonces::new(16)];
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
    let answer = Responder::answer(&m1, &[secret(0)], &mut [Nonces::new(16)], terms, [2; 32], NOW);
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
        assert_eq!(end.readable_bytes(), m1.len() - at);
        assert_eq!(sent(&mut end, NOW), b"");
        assert_eq!(side.receive(&mut end, &[*byte]), Ok(()));
    }
    assert_eq!((sent(&mut end, NOW).len(), end.readable_bytes()), (104, 40));
    assert_eq!(sent(&mut end, NOW), b"", "M2, and nothing before M3");
}
