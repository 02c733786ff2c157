//! Hours of slow clients, by the gate's own clock: those that drip, those that take little, and deadlines to the
//! microsecond.
//!
//! It guards the promise that deadlines are absolute, but for an answer, which is cut only without progress.

use std::time::Duration;

use cofferdam::limits::{BODY_BYTES, UNREAD_BYTES};

use super::case_gate::{Side, web};

const HOUR: Duration = Duration::from_secs(3_600);
const CLIENTS: usize = 1_000;
const MICROSECOND: Duration = Duration::from_micros(1);
const GET: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A client of the hour: what it has said so far, and since when.
#[derive(Clone, Copy)]
struct Dripping {
    number: usize,
    said: usize,
    began: Duration,
}

/// A client that says nothing but this, byte by byte, and begins anew whenever it is closed.
fn drips(client: usize) -> &'static [u8] {
    const HEAD: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n";
    const FIELDS: &[u8] = b"\r\nPOST /v1/jobs/echo HTTP/1.1\r\nHost: localhost\r\n";
    if client.is_multiple_of(2) { HEAD } else { FIELDS }
}

#[test]
fn a_thousand_clients_that_drip_for_an_hour_are_refused_at_their_time_and_hurt_nobody() {
    const STEP: Duration = Duration::from_millis(100);
    /// Each says a byte every three seconds.
    const EVERY: usize = 30;
    let header = Duration::from_millis(web(false, false).limits.header_timeout_ms);
    let mut side = Side::new(web(false, false), Vec::new());
    let mut next = CLIENTS;
    let mut clients: Vec<Dripping> =
        (0..CLIENTS).map(|number| Dripping { number, said: 0, began: Duration::ZERO }).collect();
    clients.iter().for_each(|client| side.open(client.number));
    let (mut at, mut refused, mut served) = (Duration::ZERO, 0, 0);
    for step in 0_usize.. {
        if at >= HOUR {
            break;
        }
        for (index, client) in clients.iter_mut().enumerate() {
            if index % EVERY != step % EVERY {
                continue;
            }
            if client.said == 0 {
                client.began = at;
            }
            side.gate.received(client.number, &drips(index)[client.said..=client.said]);
            client.said += 1;
        }
        if step % 10 == 0 {
            next += 1;
            side.open(next);
            side.gate.received(next, GET);
            assert!(side.take(next, usize::MAX).starts_with(b"HTTP/1.1 200 "), "an honest client is served");
            side.gate.close(next);
            served += 1;
        }
        side.advance(STEP, |_| {});
        at += STEP;
        for client in &mut clients {
            let answer = side.take(client.number, usize::MAX);
            let age = at.saturating_sub(client.began);
            if client.said == 0 {
                assert!(answer.is_empty());
                continue;
            }
            assert_eq!(!answer.is_empty(), age >= header, "after {age:?}");
            if age >= header {
                assert!(answer.starts_with(b"HTTP/1.1 408 ") && side.is_closed(client.number));
                assert_eq!(age, header);
                side.gate.close(client.number);
                next += 1;
                side.open(next);
                *client = Dripping { number: next, said: 0, began: at };
                refused += 1;
            }
        }
    }
    assert!(served == 3_600 && refused > CLIENTS * 500, "{served} served, {refused} refused");
}

#[test]
fn a_thousand_clients_that_take_a_little_now_and_then_for_an_hour_are_not_cut() {
    const EVERY: Duration = Duration::from_secs(29);
    const TAKEN: usize = 100;
    let mut side = Side::new(web(false, false), Vec::new());
    let request = |close: &str, length: usize| {
        let head = format!(
            "POST /v1/jobs/echo HTTP/1.1\r\nHost: localhost\r\n{close}Content-Length: {length}\r\n\r\n"
        );
        [head.as_bytes(), &vec![b'x'; length]].concat()
    };
    // Every other connection is kept: neither its idle time nor the moment to read a last answer begins before it was sent.
    for number in 0..CLIENTS {
        let close = if number.is_multiple_of(2) { "Connection: close\r\n" } else { "" };
        side.open(number);
        side.gate.received(number, &request(close, 14_000));
    }
    side.settle();
    let mut taken = vec![0; CLIENTS];
    let mut at = Duration::ZERO;
    while at < HOUR {
        for (number, taken) in taken.iter_mut().enumerate() {
            let part = side.take(number, TAKEN);
            assert!(part.len() == TAKEN, "client {number} gets {} bytes after {at:?}", part.len());
            *taken += part.len();
        }
        side.advance(EVERY, |_| {});
        at += EVERY;
    }
    for (number, taken) in taken.iter().enumerate() {
        let rest = side.take(number, usize::MAX);
        assert!(taken + rest.len() > 14_000 && rest.ends_with(b"xxx"), "the answer of {number} is whole");
    }
}

#[test]
fn answers_and_bodies_that_nobody_goes_on_with_stay_within_their_budgets_and_who_goes_on_is_not_cut() {
    const LENGTH: usize = 60_000;
    const NEVER_READ: usize = 1_500;
    const READS: usize = 10;
    let mut side = Side::new(web(false, false), Vec::new());
    let head = format!("POST /v1/jobs/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LENGTH}\r\n\r\n");
    let request = [head.as_bytes(), &vec![b'x'; LENGTH]].concat();
    let ask = |side: &mut Side, number: usize, bytes: &[u8]| {
        side.open(number);
        let room = side.gate.readable_bytes(number).min(bytes.len());
        side.gate.received(number, &bytes[..room]);
        side.gate.received(number, &bytes[room..]);
        side.settle();
        side.gate.keep_budget(number);
    };
    for number in 0..READS {
        ask(&mut side, number, &request);
    }
    for number in READS..READS + NEVER_READ {
        side.advance(Duration::from_millis(10), |_| {});
        ask(&mut side, number, &request);
        for reader in 0..READS {
            assert!(side.take(reader, 30).len() == 30, "who takes a little is not cut");
        }
        let unread: usize = (0..=number).map(|number| side.gate.unsent(number).len()).sum();
        assert!(unread <= UNREAD_BYTES + 2 * LENGTH, "{unread} bytes are held");
    }
    let cut = (READS..READS + NEVER_READ).filter(|number| side.is_closed(*number)).count();
    assert!(cut > NEVER_READ / 5, "only {cut} were closed");
    // Half a body each: the oldest gives way, and is told so.
    let mut side = Side::new(web(false, false), Vec::new());
    let half = &request[..request.len() - 1];
    let many = BODY_BYTES / LENGTH + 100;
    for number in 0..many {
        ask(&mut side, number, half);
        side.advance(MICROSECOND, |_| {});
    }
    let refused: Vec<usize> =
        (0..many).filter(|number| side.gate.unsent(*number).starts_with(b"HTTP/1.1 503 ")).collect();
    assert!((90..=110).contains(&refused.len()), "{} were refused", refused.len());
    assert_eq!(refused, (0..refused.len()).collect::<Vec<_>>(), "the oldest");
}

/// Brings a connection to where a deadline runs; which deadline, and how long it is.
type Scene = (&'static str, Duration, fn(&mut Side));

#[test]
fn each_deadline_holds_to_the_microsecond() {
    const FIRST: usize = 1;
    let said = |side: &mut Side, bytes: &[u8]| {
        side.gate.received(FIRST, bytes);
        side.settle();
    };
    let limits = web(false, false).limits;
    let ms = Duration::from_millis;
    let scenes: [Scene; 8] = [
        ("a first byte", ms(limits.header_timeout_ms), |_| {}),
        ("a head", ms(limits.header_timeout_ms), |side| side.gate.received(FIRST, b"GET /")),
        ("a body", ms(limits.body_timeout_ms), |side| {
            side.gate.received(
                FIRST,
                b"POST /v1/jobs/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nabc",
            );
        }),
        ("idle", ms(limits.idle_timeout_ms), |side| {
            side.gate.received(FIRST, GET);
            side.take(FIRST, usize::MAX);
        }),
        ("a second head", ms(limits.header_timeout_ms), |side| {
            side.gate.received(FIRST, GET);
            side.take(FIRST, usize::MAX);
            side.advance(Duration::from_secs(70), |_| {});
            side.gate.received(FIRST, b"GET /");
        }),
        ("an answer of which nothing is taken", ms(limits.write_timeout_ms), |side| {
            side.gate.received(FIRST, GET);
        }),
        ("an answer of which no more is taken", ms(limits.write_timeout_ms), |side| {
            side.gate.received(FIRST, GET);
            side.advance(Duration::from_secs(29), |_| {});
            side.take(FIRST, 10);
        }),
        ("a last answer of which no more is taken", ms(limits.write_timeout_ms), |side| {
            side.gate.received(FIRST, b"GET /healthz HTTP/1.0\r\n\r\n");
            side.advance(Duration::from_secs(29), |_| {});
            side.take(FIRST, 10);
        }),
    ];
    for (what, deadline, scene) in scenes {
        let mut side = Side::new(web(false, false), Vec::new());
        side.open(FIRST);
        scene(&mut side);
        side.settle();
        side.advance(deadline - MICROSECOND, |_| {});
        assert!(!side.is_closed(FIRST), "{what}: not before its time");
        let before = side.gate.unsent(FIRST).len();
        side.advance(MICROSECOND, |_| {});
        let has_spoken = side.gate.unsent(FIRST).len() > before;
        assert!(side.is_closed(FIRST) || has_spoken, "{what}: at its time");
        side.take(FIRST, usize::MAX);
        assert!(side.is_closed(FIRST), "{what}");
    }
    // Behind its last answer a client has two seconds to read it; only then is the connection given up.
    let mut side = Side::new(web(false, false), Vec::new());
    side.open(FIRST);
    said(&mut side, b"GET /healthz HTTP/1.0\r\n\r\n");
    side.take(FIRST, usize::MAX);
    side.advance(Duration::from_secs(2) - MICROSECOND, |_| {});
    assert!(side.gate.is_finished(FIRST) && !side.gate.is_over(FIRST));
    side.advance(MICROSECOND, |_| {});
    assert!(side.gate.is_over(FIRST));
}
