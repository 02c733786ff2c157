//! Each reason for which the channel refuses, at the listener of a real web process: the connection is closed, a
//! stranger gets not one byte, the counter and the event say the reason and nothing else, the service serves, and many
//! rounds cost no memory.
//!
//! In scope: those who have no honest peer to disturb. Not in scope: the man between two honest ends
//! (security_mitm.rs), and each variant of each reason (security_ipc.rs, at the pure end).

use std::io::Write;
use std::time::Duration;

use cofferdam::channel::Reject;
use cofferdam::clock::monotonic_millis;
use cofferdam::process::hygiene::raise_descriptor_limit;

use halves::{Half, Halves};
use service::{PATIENCE, Stopwatch, until};
use strangers::{Peer, connect, initiator, said_until_closed, stranger};
use wire::Forged;

#[path = "support/halves.rs"]
mod halves;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;
#[path = "support/strangers.rs"]
mod strangers;
#[path = "support/wire.rs"]
mod wire;

/// What web may grow by, in KiB, however many are refused.
const GROWTH_KIB: u64 = 4 << 10;
const PAYLOAD: &str = "a payload that no log may hold";

/// A service with one executor that nobody attacks.
struct Place {
    executor: Half,
    halves: Halves,
}

impl Place {
    #[track_caller]
    fn start(sets: &[&str]) -> Place {
        let halves = Halves::start(sets);
        let executor = halves.executor(0, halves.channel);
        executor.ready();
        Place { executor, halves }
    }

    fn proven(&self) -> Peer {
        Peer::proven(self.halves.channel, &self.halves.secret(0))
    }

    fn up(&self) -> Peer {
        Peer::up(self.halves.channel, &self.halves.secret(0))
    }

    /// What a valid first message of this age would be.
    fn m1(&self, time_ms: u64) -> [u8; 80] {
        *initiator(&self.halves.secret(0), time_ms).m1()
    }

    #[track_caller]
    fn stranger(&self, bytes: &[u8]) {
        stranger(self.halves.channel, bytes);
    }

    /// This frame after the first ping of a peer that is up: nothing is said to it any more.
    #[track_caller]
    fn refuses_frame(&self, bytes: impl FnOnce(&Peer) -> Vec<u8>) {
        let mut peer = self.up();
        let bytes = bytes(&peer);
        peer.stream.write_all(&bytes).expect("it reads");
        assert_eq!(peer.said_until_closed(), b"");
    }
}

/// `provoke` makes so many refusals of this reason and of no other, and sees its connections closed.
#[track_caller]
fn refuses(reason: Reject, rounds: u64, provoke: impl Fn(&Place, u64)) {
    refuses_under(&[], reason, rounds, provoke);
}

/// The same with these `PATH=VALUE`s.
#[track_caller]
fn refuses_under(sets: &[&str], reason: Reject, rounds: u64, provoke: impl Fn(&Place, u64)) {
    let place = Place::start(sets);
    let halves = &place.halves;
    let serves = || {
        let answer = halves.post("/v1/jobs/echo", PAYLOAD);
        assert_eq!((answer.status, answer.text().as_str()), (200, PAYLOAD), "{answer:?}");
    };
    serves();
    provoke(&place, 1);
    halves.has_rejected("the first one", &[(reason, 1)]);
    let event = until("an event", PATIENCE, || halves.web.refusals().pop());
    assert_eq!(event, reason.as_str());
    serves();
    let before = halves.web.resident_kib();
    provoke(&place, rounds);
    halves.has_rejected("all of them", &[(reason, 1 + rounds)]);
    let after = halves.web.resident_kib();
    assert!(after < before + GROWTH_KIB, "web has grown from {before} to {after} KiB in {rounds} rounds");
    serves();
    let events = halves.web.refusals();
    assert!(events.iter().all(|code| code == reason.as_str()), "{events:?}");
    assert!(events.len() as u64 <= 1 + rounds, "{} lines", events.len());
    halves.logs_tell_nothing(&[&place.executor], &[PAYLOAD]);
    assert_eq!(
        place.executor.refusals(),
        Vec::<String>::new(),
        "the executor's connection was never in the way"
    );
    assert_eq!(halves.metrics()["queue_redelivered_total"], 0.0);
}

fn next(time_ms: u64) -> Forged {
    Forged { kind: 0x01, sequence: 1, time_ms, ..Forged::default() }
}

#[test]
fn c1_who_does_not_know_the_secret_is_closed_as_bad_signature() {
    refuses(Reject::BadSignature, 300, |place, rounds| {
        (0..rounds).for_each(|_| place.stranger(&[&b"CFD2\x02\x01"[..], &[0; 74]].concat()));
    });
}

#[test]
fn c5_a_first_message_of_another_time_is_closed_as_expired_timestamp() {
    refuses(Reject::ExpiredTimestamp, 300, |place, rounds| {
        for round in 0..rounds {
            let now = monotonic_millis();
            let time = if round % 2 == 0 { now.saturating_sub(6_000) } else { now + 60_000 };
            place.stranger(&place.m1(time));
        }
    });
}

#[test]
fn c2_a_first_message_that_comes_again_is_closed_as_replayed_nonce() {
    refuses(Reject::ReplayedNonce, 300, |place, rounds| {
        let peer = place.up();
        (0..rounds).for_each(|_| place.stranger(&peer.m1));
    });
}

#[test]
fn c1_a_length_beyond_the_maximum_is_closed_as_oversized_before_its_frame_comes() {
    refuses(Reject::Oversized, 300, |place, rounds| {
        for round in 0..rounds {
            place.refuses_frame(|peer| {
                let beyond = if round % 2 == 0 { u32::MAX } else { peer.session.max_frame + 1 };
                beyond.to_be_bytes().to_vec()
            });
        }
    });
}

#[test]
fn c5_a_kind_of_the_other_direction_or_of_none_is_closed_as_unknown_kind() {
    refuses(Reject::UnknownKind, 300, |place, rounds| {
        for round in 0..rounds {
            let kind = [0x00, 0x13, 0x81, 0x91, 0xA0, 0xFF][round as usize % 6];
            let frame = Forged { kind, ..next(monotonic_millis()) };
            place.refuses_frame(|peer| frame.sealed(&peer.to_broker));
        }
    });
}

#[test]
fn c5_another_version_is_closed_as_bad_version() {
    refuses(Reject::BadVersion, 300, |place, rounds| {
        for round in 0..rounds {
            let mut m1 = place.m1(monotonic_millis());
            m1[4] = [0, 1, 3, 0xFF][round as usize % 4];
            place.stranger(&m1);
        }
    });
}

#[test]
fn c1_garbage_and_other_protocols_are_closed_as_malformed() {
    refuses(Reject::Malformed, 300, |place, rounds| {
        let garbage: Vec<u8> = (0..4_096_u32).map(|at| (at * 31 % 251) as u8).collect();
        let others: [&[u8]; 6] = [
            &[b"CFD1\x01\x01", &[0; 74][..]].concat(),
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01",
            b"*1\r\n$4\r\nPING\r\n",
            &[0xFF; 4],
            &garbage,
        ];
        (0..rounds).for_each(|round| place.stranger(others[round as usize % others.len()]));
    });
}

#[test]
fn c1_silence_and_half_a_message_are_closed_as_handshake_timeout() {
    // As many as there are places: they wait together.
    refuses(Reject::HandshakeTimeout, 16, |place, rounds| {
        let channel = place.halves.channel;
        std::thread::scope(|scope| {
            for round in 0..rounds {
                let said: &[u8] = if round % 2 == 0 { b"" } else { b"CFD2\x02\x01" };
                scope.spawn(move || stranger(channel, said));
            }
        });
    });
}

#[test]
fn c1_a_hang_up_inside_the_handshake_is_counted_as_handshake_failed() {
    refuses(Reject::HandshakeFailed, 300, |place, rounds| {
        for round in 0..rounds {
            match round % 3 {
                0 => drop(connect(place.halves.channel)),
                1 => connect(place.halves.channel).write_all(b"CFD2\x02").expect("it reads"),
                _ => drop(place.proven()),
            }
        }
    });
}

#[test]
fn c1_more_peers_than_places_are_closed_as_too_many_connections() {
    // As many as are let in of a group of seven, with its own executor.
    const SEVEN: &str = r#"runtime.platform.process_groups=[{"name":"execution","processes":7}]"#;
    refuses_under(&[SEVEN], Reject::TooManyConnections, 100, |place, rounds| {
        let mut peers: Vec<Peer> = (0..16).map(|_| place.proven()).collect();
        (0..rounds).for_each(|_| place.stranger(&place.m1(monotonic_millis())));
        // Those who were there first are not the ones who go.
        for peer in &mut peers {
            let m3 = peer.m3;
            let ping = next(monotonic_millis());
            let ping = Forged { sequence: 0, ..ping }.sealed(&peer.to_broker);
            peer.stream.write_all(&[&m3[..], &ping].concat()).expect("it reads");
            std::io::Read::read_exact(&mut peer.stream, &mut [0; wire::OVERHEAD]).expect("a pong");
        }
    });
}

#[test]
fn c1_more_connections_of_a_group_than_it_needs_are_closed_as_too_many_connections() {
    /// Twice its processes and two; one of them is its own executor's.
    const PLACES: usize = 2 * (1 + 2) - 1;
    const TWO_GROUPS: &str = r#"runtime.platform.process_groups=[{"name":"a","handlers":["echo"]},{"name":"b","handlers":["sleep"]}]"#;
    refuses_under(&[TWO_GROUPS], Reject::TooManyConnections, 100, |place, rounds| {
        let mut peers: Vec<Peer> = (0..PLACES).map(|_| place.up()).collect();
        (0..rounds).for_each(|_| place.proven().finds_no_place());
        // Those who were there first stay, and another group has its own places.
        for peer in &mut peers {
            peer.ping();
            std::io::Read::read_exact(&mut peer.stream, &mut [0; wire::OVERHEAD]).expect("a pong");
        }
        drop(Peer::up_of(1, place.halves.channel, &place.halves.secret(1)));
        drop(peers);
        until("the places are free", PATIENCE, || {
            let stats = place.halves.connect().request("GET", "/v1/stats", &[], b"").json();
            (stats["groups"][0]["executors"] == 1).then_some(())
        });
        drop(place.up());
    });
}

#[test]
fn c6_a_peer_that_takes_no_answer_is_closed_as_peer_not_reading() {
    refuses(Reject::PeerNotReading, 8, |place, rounds| {
        (0..rounds).for_each(|_| place.up().pings_without_reading());
    });
}

#[test]
fn c1_a_thousand_half_open_connections_cost_sixteen_places_no_memory_and_no_executor() {
    const STRANGERS: usize = 1_000;
    raise_descriptor_limit();
    let place = Place::start(&[]);
    let halves = &place.halves;
    halves.serves();
    let before = halves.web.resident_kib();
    let begun = Stopwatch::start();
    let mut strangers: Vec<_> = (0..STRANGERS).map(|_| connect(halves.channel)).collect();
    halves.serves();
    let after = halves.web.resident_kib();
    assert!(after < before + GROWTH_KIB, "web has grown from {before} to {after} KiB");
    for stranger in &mut strangers {
        assert_eq!(said_until_closed(stranger), b"");
    }
    // 2 s for the last of them; the rest is what a loaded machine needs to make and to see a thousand.
    assert!(begun.elapsed() < Duration::from_secs(10), "kept for {:?}", begun.elapsed());
    let (refused, late) = (Reject::TooManyConnections, Reject::HandshakeTimeout);
    halves.has_rejected("all of them", &[(refused, STRANGERS as u64 - 16), (late, 16)]);
    halves.serves();
    let events = halves.web.refusals();
    assert!(events.len() < 20, "at most one line a second and reason: {events:?}");
    halves.logs_tell_nothing(&[&place.executor], &[]);
    assert_eq!(halves.metrics()["queue_redelivered_total"], 0.0);
}
