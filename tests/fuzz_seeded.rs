//! Every decoder's `fuzz_…` function with many inputs from a printed seed: half of them noise, half of them valid
//! inputs that were changed. `COFFERDAM_SEED` replays a run; `COFFERDAM_FUZZ` says how many inputs.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cofferdam::channel::handshake::{Initiator, NonceCache, Responder, Terms, fuzz_handshake};
use cofferdam::channel::keys::GroupSecret;
use cofferdam::channel::messages::{StateKind, ToBroker, ToExecutor, fuzz_messages};
use cofferdam::clock::Timestamp;
use cofferdam::entropy::Entropy;
use cofferdam::job::{Change, Effects, FollowUp, JobError, JobId, JobSpec, Payload, Trace, Verdict, Version};
use cofferdam::ports::{CommitResult, LeasedJob, ReleaseReason};
use cofferdam::problem::Code;
use cofferdam::supervisor::control::{Leaving, Message, ToChild, ToParent, framed, fuzz_control};
use cofferdam::web::chunked::fuzz_chunked;
use cofferdam::web::http1::fuzz_head;

const INPUTS: u64 = if cfg!(debug_assertions) { 20_000 } else { 200_000 };
/// Noise is at most this long: what matters happens at the beginning of an input.
const NOISE_BYTES: u64 = 300;

/// Says how to replay an input that makes a decoder panic.
struct TellSeed {
    seed: u64,
    input: u64,
}

impl Drop for TellSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("input {} of COFFERDAM_SEED={}", self.input, self.seed);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn fuzz(target: fn(&[u8]), valid: &[Vec<u8>]) {
    let new = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let seed = number("COFFERDAM_SEED").unwrap_or_else(new);
    println!("COFFERDAM_SEED={seed}");
    let mut entropy = Entropy::Seeded(seed);
    let mut told = TellSeed { seed, input: 0 };
    valid.iter().for_each(|input| target(input));
    for input in 0..number("COFFERDAM_FUZZ").unwrap_or(INPUTS) {
        told.input = input;
        let bytes = if input % 2 == 0 { noise(&mut entropy) } else { changed(&mut entropy, valid) };
        target(&bytes);
    }
}

fn below(entropy: &mut Entropy, end: usize) -> usize {
    entropy.up_to(end.saturating_sub(1) as u64) as usize
}

fn noise(entropy: &mut Entropy) -> Vec<u8> {
    let length = entropy.up_to(NOISE_BYTES);
    (0..length).map(|_| entropy.bytes::<1>()[0]).collect()
}

/// A valid input after one to four changes, such as a peer or a broken wire would make.
fn changed(entropy: &mut Entropy, valid: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = valid[below(entropy, valid.len())].clone();
    for _ in 0..=entropy.up_to(3) {
        let at = below(entropy, bytes.len());
        match entropy.up_to(6) {
            _ if bytes.is_empty() => bytes.push(entropy.bytes::<1>()[0]),
            0 => bytes[at] ^= 1 << entropy.up_to(7),
            1 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF, b'\r', b'\n', b' '][below(entropy, 8)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, entropy.bytes::<1>()[0]),
            4 => drop(bytes.remove(at)),
            5 => {
                // A piece comes twice: a field, a header, a chunk.
                let end = (at + 1 + below(entropy, 40)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                // The head of one, the tail of another.
                let other = &valid[below(entropy, valid.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[at.min(other.len())..]);
            }
        }
    }
    bytes
}

#[test]
fn arbitrary_request_heads_are_read_or_refused() {
    let heads = [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /v1/jobs/echo?x=1 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 3\r\nX-Y:  z \r\n\r\nabc",
        "POST /v1/batch HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n",
        "GET /v1/jobs/00?wait HTTP/1.0\r\nConnection: Keep-Alive, x\r\nAuthorization: Bearer t\r\n\r\n",
        "PUT /a%20b HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\nOrigin: null\r\nSec-Fetch-Site: none\r\n\r\nGET / HTTP/1.1\r\n",
    ];
    fuzz(fuzz_head, &heads.map(|head| head.as_bytes().to_vec()));
}

#[test]
fn arbitrary_chunked_bodies_are_read_or_refused_the_same_in_any_pieces() {
    let bodies = [
        "0\r\n\r\n",
        "3\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\nA;ext=1\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nNEXT",
        "00000001\r\na\r\n1;a=\"b\"\r\nb\r\n0\r\nA: b\r\nC: d\r\n\r\n",
        "fff\r\n",
    ];
    fuzz(fuzz_chunked, &bodies.map(|body| body.as_bytes().to_vec()));
}

#[test]
fn arbitrary_handshakes_are_refused() {
    // With another group's secret: with the fuzzed one they would be accepted, as they should.
    let secret = || GroupSecret::from_bytes([8; 32]);
    let initiator = Initiator::start(&secret(), 0, [5; 32], 30_000, 1_000);
    let terms = Terms { boot_id: [1; 16], max_frame: 65_536, max_leases: 8, ttl_ms: 30_000 };
    let mut nonces = NonceCache::new(16);
    let answer = Responder::answer(initiator.m1(), &[secret()], &mut nonces, terms, [2; 32], 1_000);
    let (_, m2) = answer.expect("one secret");
    fuzz(fuzz_handshake, &[initiator.m1().to_vec(), m2.to_vec()]);
}

#[test]
fn arbitrary_messages_are_decoded_as_they_are_encoded_or_refused() {
    let with_kind = |(kind, body): (u8, Vec<u8>)| [&[kind][..], &body].concat();
    let to_broker = to_broker().into_iter().map(|message| with_kind(message.encode()));
    let to_executor = to_executor().into_iter().map(|message| with_kind(message.encode()));
    fuzz(fuzz_messages, &to_broker.chain(to_executor).collect::<Vec<_>>());
}

fn to_broker() -> Vec<ToBroker> {
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

fn to_executor() -> Vec<ToExecutor> {
    let spec = |ordering_key: Option<&str>| JobSpec {
        id: JobId([1; 16]),
        owner: "o".into(),
        handler: "h".into(),
        ordering_key: ordering_key.map(Arc::from),
        trace: Trace { id: [2; 16], span: [3; 8] },
        submitted_at: Timestamp(4),
        timeout: Duration::from_millis(5),
        one_line: ordering_key.is_some(),
    };
    let job = |key| LeasedJob {
        spec: Arc::new(spec(key)),
        payload: Payload::json(*b"{\"n\":1}"),
        delivery: 1,
        fence: 9,
        context: Default::default(),
    };
    let entries = vec![(Arc::from("a"), Arc::from(*b"1")), (Arc::from("b"), Arc::from(*b""))];
    let lease = |state, jobs| ToExecutor::Lease { handler: "h".into(), state, version: Version(8), jobs };
    vec![
        ToExecutor::Pong,
        ToExecutor::Drain,
        ToExecutor::State { trace: None, entries: entries.clone() },
        ToExecutor::State { trace: Some([7; 16]), entries },
        lease(StateKind::Stateless, vec![job(None)]),
        lease(StateKind::Whole, vec![job(Some("k")), job(Some(""))]),
        ToExecutor::Committed(JobId([1; 16]), CommitResult::AlreadyCommitted),
        ToExecutor::Fenced(JobId([2; 16])),
        ToExecutor::Cancel(JobId([3; 16])),
    ]
}

#[test]
fn arbitrary_control_messages_are_read_or_refused() {
    let to_child = [
        ToChild::Channel("127.0.0.1:1".into()),
        ToChild::Ping,
        ToChild::Drain(5),
        ToChild::Stop,
        ToChild::Restarted("execution".into(), "crashed".into()),
    ];
    let to_parent = [
        ToParent::Ready("127.0.0.1:1".into()),
        ToParent::Pong,
        ToParent::Drained(vec![JobId([1; 16]), JobId([2; 16])]),
        ToParent::Leaving(Leaving::Stuck),
    ];
    let bytes = |(kind, body): (u8, Vec<u8>)| framed(kind, &body).to_vec();
    let to_child = to_child.iter().map(|message| bytes(message.encode()));
    let to_parent = to_parent.iter().map(|message| bytes(message.encode()));
    fuzz(fuzz_control, &to_child.chain(to_parent).collect::<Vec<_>>());
}
