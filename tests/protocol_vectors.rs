//! The test vectors of docs/protocol.md against the implementation: who follows the page speaks the protocol.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cofferdam::channel::Reject;
use cofferdam::channel::frame::Opener;
use cofferdam::channel::handshake::{Initiator, Nonces, Responder, Session, Terms};
use cofferdam::channel::keys::{GroupSecret, MacKey};
use cofferdam::channel::messages::{ToBroker, ToExecutor, to_broker, to_executor};
use cofferdam::clock::Timestamp;
use cofferdam::config::secret::Secret;
use cofferdam::job::{
    Change, Effects, Entries, FollowUp, JobId, JobSpec, MediaType, Outcome, Payload, Progress, Trace, Version,
};
use cofferdam::ports::{Lease, LeaseId, LeasedJob, StateAt};
use cofferdam::problem::{Code, JobError};

#[path = "support/wire.rs"]
mod wire;

const PAGE: &str = include_str!("../docs/protocol.md");
const M1_AT: u64 = 1_000_000;
const M2_AT: u64 = 1_000_001;
const FRAMES_AT: u64 = 1_000_002;
const TTL_MS: u64 = 30_000;
const MAX_FRAME: u32 = 1_114_112;
const MAX_LEASES: u32 = 65_536;
const GROUP: &str = "execution";

/// The page's vectors by name.
struct Vectors(HashMap<String, Vec<u8>>);

impl Vectors {
    fn read() -> Vectors {
        let mut texts: Vec<(String, String)> = Vec::new();
        for line in fenced(" = ") {
            match (line.split_once(" = "), texts.last_mut()) {
                (Some((name, hex)), _) => texts.push((name.to_owned(), hex.to_owned())),
                (None, Some((_, hex))) => hex.push_str(line.trim()),
                (None, None) => panic!("the block begins with a name: {line}"),
            }
        }
        let count = texts.len();
        let vectors: HashMap<_, _> = texts.into_iter().map(|(name, hex)| (name, bytes(&hex))).collect();
        assert_eq!(vectors.len(), count, "a name stands there once");
        Vectors(vectors)
    }

    fn get(&self, name: &str) -> &[u8] {
        self.0.get(name).unwrap_or_else(|| panic!("the page has no vector {name}"))
    }

    fn array<const N: usize>(&self, name: &str) -> [u8; N] {
        self.get(name).try_into().unwrap_or_else(|_| panic!("{name} has {N} bytes"))
    }

    fn secret(&self) -> GroupSecret {
        GroupSecret::from_bytes(self.array("S"))
    }

    fn initiator(&self) -> Initiator {
        Initiator::start(&self.secret(), 0, self.array("nonce_e"), TTL_MS, M1_AT)
    }

    /// B's answer to these bytes, with those that it has seen before.
    fn answer(&self, m1: &[u8], nonces: &mut [Nonces], now: u64) -> Result<(Responder, [u8; 104]), Reject> {
        let boot_id = self.array("boot_id");
        let terms = Terms { boot_id, max_frame: MAX_FRAME, max_leases: MAX_LEASES, ttl_ms: TTL_MS };
        let m1 = m1.try_into().expect("M1 has 80 bytes");
        Responder::answer(m1, &[self.secret()], nonces, terms, self.array("nonce_b"), now)
    }

    fn responder(&self) -> Responder {
        let answer = self.answer(self.get("M1"), &mut [Nonces::new(16)], M2_AT);
        answer.expect("the page's M1 is valid").0
    }

    fn sessions(&self) -> (Session, Session) {
        let finished = self.initiator().finish(&self.array("M2"), &self.secret(), M2_AT);
        let (executor, m3) = finished.expect("the page's M2 is valid");
        assert_eq!(m3, self.array("M3"));
        (executor, self.responder().finish(&m3).expect("the page's M3 is valid"))
    }
}

/// The lines of the one fenced block whose first line contains `mark`.
fn fenced(mark: &str) -> Vec<&'static str> {
    let blocks = PAGE.split("```").skip(1).step_by(2);
    let blocks = blocks.filter_map(|block| block.strip_prefix("text\n"));
    let mut marked = blocks.filter(|block| block.lines().next().is_some_and(|line| line.contains(mark)));
    let block = marked.next().unwrap_or_else(|| panic!("the page has a block with {mark}"));
    assert!(marked.next().is_none(), "one block with {mark}");
    block.lines().collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2), "pairs of digits: {hex}");
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap_or_else(|_| panic!("hex: {hex}"));
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn effects(state: Vec<Change>, context: Vec<Change>, follow_ups: Vec<FollowUp>) -> Effects {
    Effects { state, context, follow_ups }
}

fn change(key: &str, value: Option<&[u8]>) -> Change {
    Change { key: key.into(), value: value.map(Arc::from) }
}

const FIRST: JobId = JobId([0x11; 16]);
const SECOND: JobId = JobId([0x22; 16]);

/// The executor's frames in their order: name, lease, message.
fn executors_frames() -> Vec<(&'static str, u64, ToBroker)> {
    let part =
        effects(vec![change("a", Some(b"1")), change("b", None)], vec![change("c", Some(b""))], Vec::new());
    let text = MediaType::parse("text/plain").expect("it is one");
    let follow_up = FollowUp {
        handler: "notify".into(),
        ordering_key: Some("k".into()),
        delay: Duration::from_millis(250),
        payload: Payload { media_type: text, bytes: Arc::from(*b"hi") },
    };
    let succeeded =
        Outcome::Succeeded(Payload::json(*b"{\"n\":1}"), effects(Vec::new(), Vec::new(), vec![follow_up]));
    let failed = Outcome::Failed(JobError::new(Code::HandlerFailed, "no such account"));
    let outcome = |job, delivery, builds_on, outcome| ToBroker::Outcome {
        job,
        delivery,
        builds_on: Version(builds_on),
        outcome,
    };
    let crashed = Outcome::Crashed("the handler panicked".into());
    let progress = Progress::parse(r#"{"done":0.5}"#).expect("JSON");
    vec![
        ("ping", 0, ToBroker::Ping),
        ("room", 0, ToBroker::Room(8)),
        ("part", 1, ToBroker::Part(part)),
        ("outcome.succeeded", 1, outcome(FIRST, 1, 7, succeeded)),
        ("outcome.failed", 1, outcome(SECOND, 1, 9, failed)),
        (
            "outcome.retry",
            2,
            outcome(SECOND, 2, 9, Outcome::Retry("later".into(), Some(Duration::from_millis(5_000)))),
        ),
        ("outcome.crashed", 3, outcome(SECOND, 3, 9, crashed)),
        ("outcome.timed_out", 4, outcome(SECOND, 4, 9, Outcome::TimedOut("killed".into()))),
        ("release", 5, ToBroker::Release),
        ("room.none", 0, ToBroker::Room(0)),
        ("progress", 1, ToBroker::Progress(FIRST, progress)),
    ]
}

fn leased(id: JobId, handler: &str, fence: u64, key: Option<&str>, payload: Payload) -> LeasedJob {
    let is_first = id == FIRST;
    let spec = JobSpec {
        id,
        owner: if is_first && key.is_some() { "alice".into() } else { "".into() },
        handler: handler.into(),
        ordering_key: key.map(Arc::from),
        trace: Trace { id: [0x33; 16], span: [0x44; 8], flags: 1, parent: None },
        tracestate: is_first.then(|| "rojo=00f067aa0ba902b7".into()),
        submitted_at: Timestamp(1_700_000_000_000_000),
        timeout: Duration::from_secs(30),
        one_line: !is_first,
    };
    LeasedJob { spec: Arc::new(spec), payload, delivery: 1, fence, context: Default::default() }
}

/// The broker's frames in their order.
fn brokers_frames() -> Vec<(&'static str, u64, ToExecutor)> {
    let entry = |key: &str, value: &[u8]| (Arc::from(key), Arc::from(value));
    let lease = |id, handler: &str, state, jobs| {
        ToExecutor::Lease(Lease { id: LeaseId(id), handler: handler.into(), state, jobs })
    };
    let whole = StateAt::Whole(Version(7), Entries::new());
    let of_whole = vec![
        leased(FIRST, "post", 9, Some("k"), Payload::json(*b"1")),
        leased(SECOND, "post", 10, Some("k"), Payload::octets([0xFF])),
    ];
    let free = vec![leased(FIRST, "echo", 11, None, Payload::json(*b"2"))];
    let known = vec![leased(FIRST, "post", 12, Some(""), Payload::json(*b"3"))];
    let lanes = ToExecutor::State { trace: None, entries: vec![entry("a", b"0"), entry("b", b"")] };
    let contexts = ToExecutor::State { trace: Some([0x33; 16]), entries: vec![entry("c", b"x")] };
    vec![
        ("pong", 0, ToExecutor::Pong),
        ("state.lane", 1, lanes),
        ("state.context", 1, contexts),
        ("lease", 1, lease(1, "post", whole, of_whole)),
        ("lease.stateless", 2, lease(2, "echo", StateAt::Stateless, free)),
        ("lease.known", 3, lease(3, "post", StateAt::Known(Version(9)), known)),
        ("fenced", 1, ToExecutor::Fenced(SECOND)),
        ("cancel", 1, ToExecutor::Cancel(SECOND)),
        ("drain", 0, ToExecutor::Drain),
    ]
}

#[test]
fn the_keys_are_derived_as_the_page_says() {
    let vectors = Vectors::read();
    let root = Secret::new(vectors.array("R")).expect("a secret");
    assert_eq!(GroupSecret::derive(&root, GROUP).expose(), &vectors.array("S"));
    let [executor, broker] = wire::handshake_keys(&vectors.secret());
    assert_eq!((executor, broker), (vectors.array("K_e"), vectors.array("K_b")));
    let keys = wire::data_keys(&vectors.secret(), vectors.get("M1"), vectors.get("M2"));
    assert_eq!(keys.prk, vectors.array("PRK"));
    assert_eq!((keys.to_broker, keys.to_executor), (vectors.array("k_e2b"), vectors.array("k_b2e")));
    assert_eq!(keys.conn_id, vectors.array("conn_id"));
}

#[test]
fn the_handshake_is_the_pages_byte_for_byte() {
    let vectors = Vectors::read();
    assert_eq!(vectors.initiator().m1(), &vectors.array("M1"));
    let (_, m2) = vectors.answer(vectors.get("M1"), &mut [Nonces::new(16)], M2_AT).expect("it is valid");
    assert_eq!(m2, vectors.array("M2"));
    let (executor, broker) = vectors.sessions();
    for session in [&executor, &broker] {
        assert_eq!(session.conn_id, vectors.array("conn_id"));
        assert_eq!((session.group, session.max_frame, session.max_leases), (0, MAX_FRAME, MAX_LEASES));
        assert_eq!(session.boot_id, vectors.array("boot_id"));
    }
}

#[test]
fn every_message_of_an_executor_is_the_pages_frame_and_is_read_back() {
    let vectors = Vectors::read();
    let (mut executor, mut broker) = vectors.sessions();
    for (name, lease, message) in executors_frames() {
        let (kind, body) = message.encode();
        let mut wire = Vec::new();
        executor.sealer.seal(kind, lease, &body, FRAMES_AT, &mut wire);
        assert_eq!(wire, vectors.get(&format!("frame.{name}")), "{name}");
        let opened = broker.opener.open(&wire, FRAMES_AT, to_broker).expect(name);
        let (frame, length) = opened.expect("it is whole");
        assert_eq!((frame.kind, frame.lease, length), (kind, lease, wire.len()), "{name}");
        assert_eq!(ToBroker::decode(frame.kind, frame.body), Ok(message), "{name}");
    }
}

#[test]
fn every_message_of_a_broker_is_the_pages_frame_and_is_read_back() {
    let vectors = Vectors::read();
    let (mut executor, mut broker) = vectors.sessions();
    for (name, lease, message) in brokers_frames() {
        let (kind, body) = message.encode();
        let mut wire = Vec::new();
        broker.sealer.seal(kind, lease, &body, FRAMES_AT, &mut wire);
        assert_eq!(wire, vectors.get(&format!("frame.{name}")), "{name}");
        let opened = executor.opener.open(&wire, FRAMES_AT, to_executor).expect(name);
        let (frame, _) = opened.expect("it is whole");
        assert_eq!((frame.kind, frame.lease), (kind, lease), "{name}");
        let again = ToExecutor::decode(frame.kind, frame.lease, frame.body).expect(name);
        assert_eq!(again.encode(), (kind, body), "{name}");
        assert_eq!(format!("{again:?}"), format!("{message:?}"), "{name}");
    }
}

/// One line of the page's second block.
struct Refusal<'a> {
    vector: &'a str,
    is_repeated: bool,
    bytes: Vec<u8>,
    now: u64,
    reason: &'a str,
}

fn refusals(vectors: &Vectors) -> Vec<Refusal<'static>> {
    let read = |line: &'static str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [name, now, offset, change, reason] = fields[..] else { panic!("five fields: {line}") };
        let vector = name.split('+').next().unwrap_or(name);
        let mut bytes = vectors.get(vector).to_vec();
        if offset != "-" {
            let offset: usize = offset.parse().expect("an offset");
            bytes[offset] ^= u8::from_str_radix(change, 16).expect("a byte");
        }
        let now = now.parse().expect("a time");
        Refusal { vector, is_repeated: name.contains('+'), bytes, now, reason }
    };
    fenced("malformed").into_iter().map(read).collect()
}

#[test]
fn every_refusal_of_the_page_has_its_reason() {
    let vectors = Vectors::read();
    for Refusal { vector, is_repeated, bytes, now, reason } in refusals(&vectors) {
        let refused = match vector.get(..2).unwrap_or_default() {
            "M1" => {
                let mut nonces = [Nonces::new(16)];
                if is_repeated {
                    vectors.answer(&bytes, &mut nonces, now).expect("once it is valid");
                }
                vectors.answer(&bytes, &mut nonces, now).err()
            }
            "M2" => {
                let m2 = bytes.try_into().expect("M2 has 104 bytes");
                vectors.initiator().finish(&m2, &vectors.secret(), now).err()
            }
            "M3" => vectors.responder().finish(&bytes.try_into().expect("M3 has 40 bytes")).err(),
            _ => {
                let key = MacKey::new(vectors.get("k_e2b"));
                let mut opener = Opener::new(key, MAX_FRAME as usize, TTL_MS);
                if is_repeated {
                    assert!(matches!(opener.open(&bytes, now, to_broker), Ok(Some(_))), "{vector}");
                }
                match opener.open(&bytes, now, to_broker) {
                    Ok(Some((frame, _))) => ToBroker::decode(frame.kind, frame.body).err(),
                    Ok(None) => None,
                    Err(reason) => Some(reason),
                }
            }
        };
        assert_eq!(refused.map(Reject::as_str), Some(reason), "{vector} at {now}");
    }
}

#[test]
fn every_vector_of_the_page_is_used() {
    let vectors = Vectors::read();
    let mut names: Vec<String> = ["R", "S", "K_e", "K_b", "nonce_e", "nonce_b", "boot_id", "M1", "M2", "M3"]
        .into_iter()
        .chain(["PRK", "k_e2b", "k_b2e", "conn_id"])
        .map(str::to_owned)
        .collect();
    names.extend(executors_frames().into_iter().map(|(name, ..)| format!("frame.{name}")));
    names.extend(brokers_frames().into_iter().map(|(name, ..)| format!("frame.{name}")));
    names.extend(refusals(&vectors).into_iter().map(|refusal| refusal.vector.to_owned()));
    let unused: Vec<&String> = vectors.0.keys().filter(|name| !names.contains(name)).collect();
    assert!(unused.is_empty(), "{unused:?}");
}

/// The page's grammar, byte by byte.
fn is_media_type(text: &str) -> bool {
    const OTHERS: &[u8] = b"!#$%&'*+-.^_`|~";
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || OTHERS.contains(byte);
    let behind_token = |bytes: &'_ [u8]| bytes.iter().take_while(|byte| is_token(byte)).count();
    let bytes = text.as_bytes();
    let kind = behind_token(bytes);
    let Some(b'/') = bytes.get(kind) else { return false };
    let subtype = behind_token(&bytes[kind + 1..]);
    let mut rest = &bytes[kind + 1 + subtype..];
    while let [b' ' | b'\t', behind @ ..] = rest {
        rest = behind;
    }
    let parameters = match rest {
        [] => true,
        [b';', parameters @ ..] => parameters.iter().all(|byte| matches!(byte, 0x20..=0x7E | b'\t')),
        _ => false,
    };
    kind > 0 && subtype > 0 && parameters && bytes.len() <= 256
}

#[test]
fn a_media_type_is_what_the_pages_grammar_says() {
    const CHARACTERS: [char; 9] = ['a', '~', '/', ';', ' ', '\t', '"', '\u{7f}', 'é'];
    let mut texts = vec![String::new()];
    let mut count = 0;
    for _ in 0..=5 {
        for text in &texts {
            assert_eq!(MediaType::parse(text).is_some(), is_media_type(text), "{text:?}");
            count += u32::from(is_media_type(text));
        }
        texts =
            texts.iter().flat_map(|text| CHARACTERS.map(|character| format!("{text}{character}"))).collect();
    }
    assert!(count > 100, "some of them are one");
    for (bytes, expected) in [(256, true), (257, false)] {
        let text = format!("text/plain;{}", "x".repeat(bytes - 11));
        assert_eq!((MediaType::parse(&text).is_some(), is_media_type(&text)), (expected, expected));
    }
}
