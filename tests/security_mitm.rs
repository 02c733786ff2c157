//! Real processes with a man in the middle of their channel: whatever he does, the connection is closed under the
//! right reason, the executor comes again by itself, and every caller gets his own answer once.
//!
//! Each change of the bytes ends one connection, by its own reason. Strangers, who have no honest peer to disturb, are in
//! security_reasons.rs and security_ipc_service.rs; the pure ends are in security_ipc.rs.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cofferdam::channel::Reject;
use cofferdam::entropy::Entropy;
use cofferdam::process::control_socket::framed;

use halves::{Half, Halves, half_without_bundle, listener};
use proxy::{Act, End, Kind, Proxy, To, Unit};
use service::{Client, PATIENCE, Stopwatch, until};
use strangers::{Peer, stranger};

#[path = "support/halves.rs"]
mod halves;
#[path = "support/program.rs"]
mod program;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/service.rs"]
mod service;
#[path = "support/strangers.rs"]
mod strangers;
#[path = "support/wire.rs"]
mod wire;

const PING: Kind = Kind::Frame(0x01);
const ROOM: Kind = Kind::Frame(0x10);
const OUTCOME: Kind = Kind::Frame(0x11);
const RELEASE: Kind = Kind::Frame(0x12);
const PONG: Kind = Kind::Frame(0x81);
const LEASE: Kind = Kind::Frame(0x91);
const CANCEL: Kind = Kind::Frame(0x94);

/// What web may grow by in a test of many rounds, in KiB: ten thousand records that are kept, of less than 2 KiB each, its own
/// ups and downs, and far less than a leak of a frame a round.
const GROWTH_KIB: u64 = 24 << 10;

/// Web, one executor, and the man between them.
struct Scene {
    executor: Half,
    proxy: Proxy,
    halves: Halves,
}

impl Scene {
    /// With this plan from the first connection on.
    #[track_caller]
    fn start(sets: &[&str], plan: impl FnMut(&Unit) -> Act + Send + 'static) -> Scene {
        let halves = Halves::start(sets);
        let proxy = Proxy::start(halves.channel);
        proxy.plan(plan);
        let executor = halves.executor(0, proxy.address);
        Scene { executor, proxy, halves }
    }

    /// Its end, once nothing of it is left.
    #[track_caller]
    fn ended(&self, connection: usize) -> End {
        until(&format!("connection {connection} ends"), PATIENCE, || self.proxy.ended(connection))
    }
}

/// Callers that submit one job after the other and look at each answer.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    callers: Vec<JoinHandle<BTreeMap<String, u64>>>,
}

impl Load {
    /// So many of them, each with its own bodies and its own ordering key. With `sleeps` each also runs jobs of a
    /// second handler, whose answers differ from caller to caller.
    fn start(halves: &Halves, callers: u64, sleeps: bool) -> Load {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let address = halves.http;
        let caller = |caller: u64| {
            let (stop, answered) = (stop.clone(), answered.clone());
            std::thread::spawn(move || {
                let (mut codes, mut client) = (BTreeMap::new(), Client::to(address));
                let key = format!("Ordering-Key: caller {caller}");
                for round in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let (target, body, expected) = if sleeps && round % 2 == 1 {
                        let ms = 1 + caller;
                        ("sleep", format!("{{\"ms\":{ms}}}"), format!("{{\"slept_ms\":{ms}}}"))
                    } else {
                        let body = format!("{{\"caller\":{caller},\"round\":{round}}}");
                        ("echo", body.clone(), body)
                    };
                    let answer = client.request("POST", &format!("/v1/jobs/{target}"), &[&key], body);
                    if answer.status == 200 {
                        assert_eq!(answer.text(), expected, "another's answer");
                        answered.fetch_add(1, Ordering::Relaxed);
                    } else {
                        *codes.entry(answer.code()).or_default() += 1;
                    }
                }
                codes
            })
        };
        let callers = (0..callers).map(caller).collect();
        Load { stop, answered, callers }
    }

    /// Waits until so many more jobs have been answered.
    #[track_caller]
    fn goes_on(&self, more: u64) {
        let before = self.answered.load(Ordering::Relaxed);
        until("callers are answered", PATIENCE, || {
            (self.answered.load(Ordering::Relaxed) >= before + more).then_some(())
        });
    }

    /// Every caller has his last answer: how many were right, and the codes of all others.
    #[track_caller]
    fn end(self) -> (u64, BTreeMap<String, u64>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut codes = BTreeMap::new();
        for caller in self.callers {
            for (code, count) in caller.join().expect("each caller gets his own answers") {
                *codes.entry(code).or_insert(0) += count;
            }
        }
        (self.answered.load(Ordering::Relaxed), codes)
    }
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

// --- C2 ---

/// What he does to one unit on the second connection. He has the units of the first one.
type Attack = fn(&Unit, &Memory) -> Act;

/// What he remembers.
#[derive(Default)]
struct Memory {
    /// The first of each kind on the first connection.
    first: BTreeMap<Kind, Vec<u8>>,
    /// The last unit of each direction on this connection.
    before: BTreeMap<To, Vec<u8>>,
}

struct Case {
    name: &'static str,
    /// The first of this kind is attacked.
    at: Kind,
    attack: Attack,
    /// Who refuses.
    by: To,
    /// What web counts.
    web: &'static [Reject],
    /// What the executor logs.
    executor: &'static [Reject],
    sets: &'static [&'static str],
}

impl Case {
    const fn at_broker(name: &'static str, at: Kind, attack: Attack, web: &'static [Reject]) -> Case {
        Case { name, at, attack, by: To::Broker, web, executor: &[], sets: &[] }
    }

    const fn at_executor(name: &'static str, at: Kind, attack: Attack, executor: &'static [Reject]) -> Case {
        Case { name, at, attack, by: To::Executor, web: &[], executor, sets: &[] }
    }

    /// The executor gives up inside the handshake, which web sees as one that broke off.
    const fn in_handshake(self) -> Case {
        Case { web: &[Reject::HandshakeFailed], ..self }
    }

    /// The broker gives up before its second message, which the executor sees as a handshake that broke off.
    const fn unanswered(self) -> Case {
        Case { executor: &[Reject::HandshakeFailed], ..self }
    }

    /// A first connection that he only listens to and cuts; a second one that he attacks; a third one that serves.
    #[track_caller]
    fn run(&self) {
        let attack = self.attack;
        let (at, mut memory, mut done) = (self.at, Memory::default(), false);
        let scene = Scene::start(self.sets, move |unit| {
            let mut act = Act::Pass;
            if unit.connection == 0 {
                memory.first.entry(unit.kind).or_insert_with(|| unit.bytes.clone());
            } else if unit.connection == 1 && !done && unit.kind == at {
                act = attack(unit, &memory);
                done = true;
            }
            memory.before.insert(unit.to, unit.bytes.clone());
            act
        });
        scene.executor.ready();
        let load = Load::start(&scene.halves, 4, false);
        load.goes_on(20);
        scene.proxy.cut(0);
        let end = scene.ended(1);
        assert!(end == End::By(self.by) || end == End::Cut, "{}: {end:?}", self.name);
        until("the executor comes again", PATIENCE, || (scene.proxy.connections() > 2).then_some(()));
        load.goes_on(20);
        let (_, codes) = load.end();
        assert!(codes.is_empty(), "{}: {codes:?}", self.name);
        let web: Vec<_> = self.web.iter().map(|reason| (*reason, 1)).collect();
        scene.halves.has_rejected(self.name, &web);
        let refusals = until(self.name, PATIENCE, || {
            Some(scene.executor.refusals()).filter(|seen| seen.len() >= self.executor.len())
        });
        let expected: Vec<_> = self.executor.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(refusals, expected, "{}: the executor's log", self.name);
        scene.halves.is_settled();
        scene.halves.logs_tell_nothing(&[&scene.executor], &["\"caller\""]);
        assert_eq!(scene.proxy.connections(), 3, "{}: nothing else ended a connection", self.name);
    }
}

/// The unit passes; then what went there before it, again.
fn replay(unit: &Unit, memory: &Memory) -> Act {
    Act::Send([&unit.bytes[..], &memory.before[&unit.to]].concat())
}

fn twice(unit: &Unit, _: &Memory) -> Act {
    Act::Send(unit.bytes.repeat(2))
}

fn swap(_: &Unit, _: &Memory) -> Act {
    Act::Swap
}

fn lose(_: &Unit, _: &Memory) -> Act {
    Act::Send(Vec::new())
}

fn reflect(_: &Unit, _: &Memory) -> Act {
    Act::Reflect
}

/// Its last byte is lost; what follows goes on.
fn truncate(unit: &Unit, _: &Memory) -> Act {
    Act::Send(unit.bytes[..unit.bytes.len() - 1].to_vec())
}

fn cut_inside(unit: &Unit, _: &Memory) -> Act {
    Act::Cut(unit.bytes[..unit.bytes.len() / 2].to_vec())
}

fn cut_before(_: &Unit, _: &Memory) -> Act {
    Act::Cut(Vec::new())
}

fn cut_after(unit: &Unit, _: &Memory) -> Act {
    Act::Cut(unit.bytes.clone())
}

/// The same message or frame of the first connection in its place.
fn of_another_connection(unit: &Unit, memory: &Memory) -> Act {
    Act::Send(memory.first[&unit.kind].clone())
}

#[test]
fn c2_replayed_reordered_and_reflected_frames_close_the_connection_under_their_reason() {
    use Reject::{BadSignature, ReplayedNonce};
    for case in [
        Case::at_broker("a frame again later", OUTCOME, replay, &[ReplayedNonce]),
        Case::at_broker("a frame twice", OUTCOME, twice, &[ReplayedNonce]),
        Case::at_broker("a frame after the next one", OUTCOME, swap, &[ReplayedNonce]),
        Case::at_broker("a frame that is lost", OUTCOME, lose, &[ReplayedNonce]),
        Case::at_broker("a frame of the broker to the broker", LEASE, reflect, &[BadSignature]),
        Case::at_executor("a lease again later", LEASE, replay, &[ReplayedNonce]),
        Case::at_executor("a lease twice", LEASE, twice, &[ReplayedNonce]),
        Case::at_executor("a lease after the next frame", LEASE, swap, &[ReplayedNonce]),
        Case::at_executor("a lease that is lost", LEASE, lose, &[ReplayedNonce]),
        Case::at_executor("a frame of the executor to the executor", OUTCOME, reflect, &[BadSignature]),
    ] {
        case.run();
    }
}

#[test]
fn c2_truncated_frames_and_connections_that_end_inside_one_are_closed() {
    use Reject::{BadSignature, Malformed};
    for case in [
        Case::at_broker("a truncated frame", OUTCOME, truncate, &[BadSignature]),
        Case::at_broker("an end inside a frame", OUTCOME, cut_inside, &[Malformed]),
        Case::at_broker("an end before a frame", OUTCOME, cut_before, &[]),
        Case::at_broker("an end after a frame", OUTCOME, cut_after, &[]),
        Case::at_executor("a truncated lease", LEASE, truncate, &[BadSignature]),
        Case::at_executor("an end inside a lease", LEASE, cut_inside, &[Malformed]),
        Case::at_executor("an end before a lease", LEASE, cut_before, &[]),
        Case::at_executor("an end after a lease", LEASE, cut_after, &[]),
    ] {
        case.run();
    }
}

#[test]
fn c2_messages_and_frames_of_another_connection_are_closed_under_their_reason() {
    use Reject::{BadSignature, ReplayedNonce};
    let another = of_another_connection;
    for case in [
        Case::at_broker("the first message of another connection", Kind::M1, another, &[ReplayedNonce])
            .unanswered(),
        Case::at_executor("its second message", Kind::M2, another, &[BadSignature]).in_handshake(),
        Case::at_broker("its third message", Kind::M3, another, &[BadSignature]),
        Case::at_broker("its first ping", PING, another, &[BadSignature]),
        Case::at_executor("its first pong", PONG, another, &[BadSignature]),
    ] {
        case.run();
    }
}

#[test]
fn c2_handshake_messages_that_come_twice_or_come_back_are_closed_under_their_reason() {
    use Reject::{BadSignature, HandshakeFailed, Malformed, Oversized};
    for case in [
        Case::at_broker("the first message twice", Kind::M1, twice, &[BadSignature]).unanswered(),
        Case::at_executor("the second message twice", Kind::M2, twice, &[Malformed]).in_handshake(),
        Case::at_broker("the third message twice", Kind::M3, twice, &[Oversized]),
        Case::at_broker("the second message to the broker", Kind::M2, reflect, &[Malformed]),
        Case::at_executor("the third message to the executor", Kind::M3, reflect, &[Oversized]),
        Case::at_broker("an end inside the first message", Kind::M1, cut_inside, &[HandshakeFailed])
            .unanswered(),
        Case::at_broker("an end inside the third message", Kind::M3, cut_inside, &[HandshakeFailed]),
        Case::at_executor("an end inside the second message", Kind::M2, cut_inside, &[HandshakeFailed])
            .in_handshake(),
    ] {
        case.run();
    }
}

// --- C3 ---

/// A flip in a byte of a unit of this kind.
#[derive(Clone, Copy, Debug)]
struct Flip {
    kind: Kind,
    bit: usize,
}

/// Lengths as they are on the wire, without a job's own bytes.
const OVERHEAD: usize = 64;

impl Flip {
    fn is_early(self) -> bool {
        matches!(self.kind, Kind::M1 | Kind::M2 | Kind::M3 | PING | ROOM | PONG)
    }

    /// What he sends, and why it is refused. A length that grew is followed by the end that its receiver waits for.
    fn of(self, unit: &Unit, max_frame: u32) -> (Act, Reject) {
        let bytes = flipped(&unit.bytes, self.bit);
        let length = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().expect("4 bytes"));
        let reason = match (self.kind, self.bit / 8) {
            (Kind::M1 | Kind::M2 | Kind::M3, 0..4 | 5) => Reject::Malformed,
            (Kind::M1 | Kind::M2 | Kind::M3, 4) => Reject::BadVersion,
            // Zero fields, but M1 has a group there: one that is not known.
            (Kind::M2 | Kind::M3, 6..8) => Reject::Malformed,
            (Kind::M1 | Kind::M2 | Kind::M3, _) => Reject::BadSignature,
            (Kind::Frame(_), 0..4) => match (length(&unit.bytes), length(&bytes)) {
                (_, after) if after > max_frame => Reject::Oversized,
                (_, after) if (after as usize) < OVERHEAD - 4 => Reject::Malformed,
                (before, after) if after > before => return (Act::Cut(bytes), Reject::Malformed),
                _ => Reject::BadSignature,
            },
            (Kind::Frame(_), _) => Reject::BadSignature,
        };
        (Act::Send(bytes), reason)
    }
}

/// The flips that are left, and what must have come of the others.
#[derive(Default)]
struct Sweep {
    left: BTreeMap<Kind, VecDeque<Flip>>,
    done: Vec<Done>,
}

/// A flip that has passed him.
#[derive(Clone, Copy, Debug)]
struct Done {
    executor: usize,
    connection: usize,
    to: To,
    flip: Flip,
    reason: Reject,
    /// He has ended the connection himself.
    is_cut: bool,
}

/// How far one executor's connections are.
#[derive(Default)]
struct Progress {
    /// The last connection that was tampered with.
    attacked: Option<usize>,
    /// The last connection on which a job has been done.
    up: Option<usize>,
}

impl Sweep {
    /// One flip in each byte of these kinds.
    fn of(sizes: &BTreeMap<Kind, usize>, entropy: &mut Entropy) -> Sweep {
        let mut left: BTreeMap<Kind, VecDeque<Flip>> = BTreeMap::new();
        for (kind, size) in sizes {
            let flip = |byte| Flip { kind: *kind, bit: byte * 8 + entropy.up_to(7) as usize };
            left.insert(*kind, (0..*size).map(flip).collect());
        }
        Sweep { left, done: Vec::new() }
    }

    fn is_over(&self) -> bool {
        self.left.values().all(VecDeque::is_empty)
    }

    /// At most one flip a connection; one before the first pong only after a connection that was up, because an
    /// executor that is refused again and again waits longer and longer, and nobody's job gets through.
    fn act(&mut self, executor: usize, progress: &mut Progress, unit: &Unit, max_frame: u32) -> Act {
        let this = unit.connection;
        // The first connection is the one that showed the sizes; the test itself ends it.
        // Of one that was tampered with, something may still be on its way while its successor is there.
        if this == 0 || progress.attacked >= Some(this) {
            return Act::Pass;
        }
        let is_up = progress.up == Some(this);
        if is_up || progress.up == Some(this - 1) {
            let fits = |flip: &Flip| flip.is_early() != is_up;
            let left = self.left.get_mut(&unit.kind).filter(|left| left.front().is_some_and(fits));
            if let Some(flip) = left.and_then(VecDeque::pop_front) {
                progress.attacked = Some(this);
                let (act, reason) = flip.of(unit, max_frame);
                let (connection, to, is_cut) = (this, unit.to, matches!(act, Act::Cut(_)));
                self.done.push(Done { executor, connection, to, flip, reason, is_cut });
                return act;
            }
        }
        if unit.kind == OUTCOME && !is_up {
            progress.up = Some(this);
            // Only early flips are left: the next connection is for one.
            if !self.is_over() && self.left.values().flatten().all(|flip| flip.is_early()) {
                progress.attacked = Some(this);
                return Act::Cut(unit.bytes.clone());
            }
        }
        Act::Pass
    }
}

/// `COFFERDAM_SEED`, or a new one; printed, so that a failure can be repeated.
fn seed() -> u64 {
    let seed = match std::env::var("COFFERDAM_SEED") {
        Ok(text) => text.parse().expect("COFFERDAM_SEED is a number"),
        Err(_) => u64::from_be_bytes(Entropy::system().bytes()),
    };
    println!("COFFERDAM_SEED={seed}");
    seed
}

#[test]
fn c3_one_flipped_bit_in_any_byte_of_any_message_or_frame_closes_the_connection() {
    const EXECUTORS: usize = 3;
    const MAX_FRAME: u32 = 1_024 + 65_536;
    let mut entropy = Entropy::Seeded(seed());
    let sets = ["runtime.platform.execution_ipc.max_payload_bytes=1024", "web.max_body_bytes=1024"];
    let halves = Halves::start(&sets);
    // How long each kind is, as the first connection shows. A frame that varies has its smallest bytes flipped.
    let proxies: Vec<Proxy> = (0..EXECUTORS).map(|_| Proxy::start(halves.channel)).collect();
    let sizes = Arc::new(Mutex::new(BTreeMap::new()));
    for proxy in &proxies {
        let sizes = sizes.clone();
        proxy.plan(move |unit| {
            let mut sizes = sizes.lock().unwrap_or_else(PoisonError::into_inner);
            let size = sizes.entry(unit.kind).or_insert(unit.bytes.len());
            *size = unit.bytes.len().min(*size);
            Act::Pass
        });
    }
    let executors: Vec<Half> = proxies.iter().map(|proxy| halves.executor(0, proxy.address)).collect();
    executors.iter().for_each(|executor| drop(executor.ready()));
    let load = Load::start(&halves, 6, false);
    let cancels = Cancels::start(&halves);
    let kinds = [PING, ROOM, OUTCOME, RELEASE, PONG, LEASE, CANCEL];
    until("each kind has been seen", PATIENCE, || {
        let sizes = sizes.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.iter().all(|kind| sizes.contains_key(kind)).then_some(())
    });
    let before = halves.web.resident_kib();
    let mut sizes = sizes.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // Another kind may have come by chance, and not come again.
    sizes.retain(|kind, _| kinds.contains(kind) || !matches!(kind, Kind::Frame(_)));
    let all: usize = sizes.values().sum();
    let sweep = Arc::new(Mutex::new(Sweep::of(&sizes, &mut entropy)));
    for (executor, proxy) in proxies.iter().enumerate() {
        let (sweep, mut progress) = (sweep.clone(), Progress::default());
        proxy.plan(move |unit| {
            let mut sweep = sweep.lock().unwrap_or_else(PoisonError::into_inner);
            sweep.act(executor, &mut progress, unit, MAX_FRAME)
        });
        proxy.cut(0);
    }
    until("every byte had a flipped bit", 4 * PATIENCE, || {
        sweep.lock().unwrap_or_else(PoisonError::into_inner).is_over().then_some(())
    });
    let done = sweep.lock().unwrap_or_else(PoisonError::into_inner).done.clone();
    assert_eq!(done.len(), all, "each byte once");
    let mut web = Vec::new();
    for Done { executor, connection, to, flip, reason, is_cut } in done {
        let end = until("the connection ends", PATIENCE, || proxies[executor].ended(connection));
        assert!(is_cut || end == End::By(to), "{flip:?} to {to:?}, {reason:?}: {end:?}");
        match (to, flip.kind) {
            (To::Broker, _) => web.push((reason, 1)),
            (To::Executor, Kind::M2) => web.push((Reject::HandshakeFailed, 1)),
            (To::Executor, _) => {}
        }
    }
    cancels.end();
    let (answered, codes) = load.end();
    assert!(answered > 0 && codes.is_empty(), "{answered} {codes:?}");
    halves.has_rejected("each refusal at web", &web);
    for executor in &executors {
        let known = ["bad_signature", "bad_version", "handshake_failed", "malformed", "oversized"];
        let refusals = executor.refusals();
        assert!(!refusals.is_empty() && refusals.iter().all(|code| known.contains(&&**code)), "{refusals:?}");
    }
    halves.is_settled();
    let after = halves.web.resident_kib();
    assert!(after < before + GROWTH_KIB, "web has grown from {before} to {after} KiB in {all} rounds");
}

/// Jobs that are cancelled while they run.
struct Cancels {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Cancels {
    fn start(halves: &Halves) -> Cancels {
        let (stop, address) = (Arc::new(AtomicBool::new(false)), halves.http);
        let until_then = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut client = Client::to(address);
            while !until_then.load(Ordering::Relaxed) {
                let headers = ["Prefer: respond-async"];
                let answer = client.request("POST", "/v1/jobs/sleep", &headers, r#"{"ms":600000}"#);
                let id = answer.json()["id"].as_str().expect("an id").to_owned();
                let job = format!("/v1/jobs/{id}");
                until("it runs", PATIENCE, || {
                    let record = client.request("GET", &job, &[], b"").json();
                    (record["status"] == "running").then_some(())
                });
                client.request("DELETE", &job, &[], b"");
            }
        });
        Cancels { stop, thread }
    }

    #[track_caller]
    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("each cancel is answered");
    }
}

// --- C4 ---

#[test]
fn c4_a_body_of_the_maximum_passes_both_processes_and_one_byte_more_is_413_before_it_is_sent() {
    const MAX: usize = 70_000;
    let sets = ["runtime.platform.execution_ipc.max_payload_bytes=70000", "web.max_body_bytes=70000"];
    let scene = Scene::start(&sets, |_| Act::Pass);
    let largest: Vec<u8> = (0..MAX).map(|at| (at * 31 % 251) as u8).collect();
    let answer = scene.halves.post("/v1/jobs/echo", &largest);
    assert_eq!((answer.status, answer.body == largest), (200, true), "{answer:?}");
    let leases = scene.proxy.seen(LEASE);
    let larger = [&largest[..], b"x"].concat();
    let answer = scene.halves.post("/v1/jobs/echo", &larger);
    assert_eq!((answer.status, answer.code().as_str()), (413, "payload_too_large"), "{answer:?}");
    // The same without a length on its head.
    let mut client = scene.halves.connect();
    client.send(b"POST /v1/jobs/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send([format!("{:x}\r\n", larger.len()).as_bytes(), &larger, b"\r\n0\r\n\r\n"].concat());
    assert_eq!(client.read().status, 413);
    assert_eq!(scene.proxy.seen(LEASE), leases, "nothing of it was sent");
    scene.halves.serves();
    scene.halves.has_rejected("nothing", &[]);
    assert_eq!(scene.proxy.connections(), 1);
}

// --- C5 ---

#[test]
fn c5_frames_older_than_their_time_to_live_are_closed_as_expired_timestamp() {
    const SETS: &[&str] = &["runtime.platform.execution_ipc.auth.ttl_seconds=2"];
    const REASON: &[Reject] = &[Reject::ExpiredTimestamp];
    // What arrives late is the point; the ends' silence is far from being noticed.
    let late = |_: &Unit, _: &Memory| Act::Delay(Duration::from_secs(3));
    for case in [
        Case { sets: SETS, ..Case::at_broker("a late outcome", OUTCOME, late, REASON) },
        Case { sets: SETS, ..Case::at_executor("a late lease", LEASE, late, REASON) },
    ] {
        case.run();
    }
}

#[test]
fn c5_handshake_messages_older_than_five_seconds_are_closed_as_expired_timestamp() {
    let first = Arc::new(Mutex::new(None));
    let kept = first.clone();
    // The first message is kept away from the broker, so that its nonce is a new one when it comes.
    let scene = Scene::start(&[], move |unit| {
        if unit.connection == 0 && unit.kind == Kind::M1 {
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some((unit.bytes.clone(), Instant::now()));
            return Act::Cut(Vec::new());
        }
        Act::Pass
    });
    scene.executor.ready();
    let (m1, made) = first.lock().unwrap_or_else(PoisonError::into_inner).take().expect("it was first");
    until("it is too old", PATIENCE, || (made.elapsed() > Duration::from_millis(5_100)).then_some(()));
    stranger(scene.halves.channel, &m1);
    scene.halves.has_rejected("M1", &[(Reject::HandshakeFailed, 1), (Reject::ExpiredTimestamp, 1)]);
    scene.halves.serves();
}

// --- C6 ---

/// Two groups: one behind the man in the middle, one that he does not see.
const TWO_GROUPS: &str =
    r#"runtime.platform.process_groups=[{"name":"a","handlers":["echo"]},{"name":"b","handlers":["sleep"]}]"#;

/// Nothing is read any more that goes to one side, while large jobs come in; for so short that the connection
/// outlives it, or until the executor has given it up.
#[track_caller]
fn stops_reading(to: To, heartbeat: &str, gives_up: bool) {
    const JOB: usize = 128 << 10;
    const CAPACITY: usize = 24;
    let scene = Scene::start(&[TWO_GROUPS, "runtime.platform.queue.capacity=24", heartbeat], |_| Act::Pass);
    let other = scene.halves.executor(1, scene.halves.channel);
    scene.executor.ready();
    other.ready();
    scene.halves.serves();
    let before = scene.halves.web.resident_kib();
    scene.proxy.stall(Some(to));
    let mut client = scene.halves.connect();
    let body = |number: usize| vec![u8::try_from(number).expect("a small number"); JOB];
    let mut accepted = Vec::new();
    let mut submit = |number: usize| {
        let headers = ["Prefer: respond-async", "Content-Type: application/octet-stream"];
        let begun = Stopwatch::start();
        let answer = client.request("POST", "/v1/jobs/echo", &headers, body(number));
        match answer.status {
            202 => accepted.push((number, answer.json()["id"].as_str().expect("an id").to_owned())),
            _ => return Some((answer, begun.elapsed())),
        }
        None
    };
    assert_eq!((0..CAPACITY - 4).find_map(&mut submit), None, "there is room");
    // Callers of the other group do not notice. (The capacity is one for all groups: with a full queue they would.)
    for _ in 0..5 {
        let answer = scene.halves.post("/v1/jobs/sleep", r#"{"ms":1}"#);
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"slept_ms":1}"#), "{answer:?}");
    }
    // Those that run are beyond the capacity, a few for each of 8 workers.
    let full = (CAPACITY - 4..CAPACITY + 64).find_map(&mut submit);
    let (answer, took) = full.expect("the queue is full");
    assert_eq!((answer.status, answer.code().as_str()), (503, "queue_full"), "{answer:?}");
    assert!(answer.header("retry-after").is_some() && took < Duration::from_secs(5), "{took:?}: {answer:?}");
    assert!(accepted.len() >= CAPACITY, "{} jobs fit", accepted.len());
    let growth = scene.halves.web.resident_kib().saturating_sub(before);
    // Each job once in the queue and once in the outbox, and what a socket's writes need.
    let bound = 2 * accepted.len() * JOB / 1_024 + usize::try_from(GROWTH_KIB).expect("it is small");
    assert!(growth < bound as u64, "web has grown by {growth} KiB for {} jobs", accepted.len());
    if gives_up {
        until("the executor gives it up", PATIENCE, || (scene.proxy.connections() > 1).then_some(()));
    }
    scene.proxy.stall(None);
    for (number, id) in &accepted {
        let answer = client.request("GET", &format!("/v1/jobs/{id}?wait=25"), &[], b"");
        assert_eq!(answer.json()["status"], "succeeded", "{answer:?}");
        let answer = client.request("GET", &format!("/v1/jobs/{id}/result"), &[], b"");
        assert!(answer.status == 200 && answer.body == body(*number), "{number}: {answer:?}");
    }
    scene.halves.serves();
    scene.halves.is_settled();
    assert!(gives_up || scene.proxy.connections() == 1, "a connection that is slow is not closed");
}

const PATIENT: &str = "runtime.platform.execution_ipc.heartbeat_ms=20000";
const IMPATIENT: &str = "runtime.platform.execution_ipc.heartbeat_ms=300";

#[test]
fn c6_an_executor_that_stops_reading_for_a_while_costs_bounded_memory_and_a_full_queue() {
    stops_reading(To::Executor, PATIENT, false);
}

#[test]
fn c6_an_executor_that_does_not_read_any_more_is_given_up_and_its_jobs_are_done() {
    stops_reading(To::Executor, IMPATIENT, true);
}

#[test]
fn c6_an_executor_that_is_not_heard_for_a_while_costs_bounded_memory_and_a_full_queue() {
    stops_reading(To::Broker, PATIENT, false);
}

#[test]
fn c6_an_executor_that_is_not_heard_any_more_is_given_up_and_its_jobs_are_done() {
    stops_reading(To::Broker, IMPATIENT, true);
}

// --- P4 ---

#[test]
fn p4_executors_killed_inside_the_handshake_cost_no_half_open_place_and_a_successor_connects() {
    /// More than the places that there are.
    const KILLS: usize = 17;
    let halves = Halves::start(&[]);
    let proxy = Proxy::start(halves.channel);
    // What is held is the first that would come after the message before it.
    for held in [Kind::M1, Kind::M2, Kind::M3, PONG] {
        proxy.plan(move |unit| if unit.kind == held { Act::Hold } else { Act::Pass });
        for _ in 0..KILLS {
            let mut executor = halves.executor(0, proxy.address);
            until("the message is held", PATIENCE, || (proxy.held() == 1).then_some(()));
            executor.kill();
            proxy.release();
            until("it is let go", PATIENCE, || (proxy.held() == 0).then_some(()));
        }
        proxy.plan(|_| Act::Pass);
        let successor = halves.executor(0, proxy.address);
        successor.ready();
        halves.serves();
    }
    // An end inside the handshake is one that failed; behind the third message it is a peer's right.
    halves.has_rejected("killed executors", &[(Reject::HandshakeFailed, 2 * KILLS as u64)]);
    // All sixteen places are there, at once.
    let peers: Vec<Peer> = (0..16).map(|_| Peer::proven(halves.channel, &halves.secret(0))).collect();
    assert_eq!(peers.len(), 16);
    let last = halves.executor(0, proxy.address);
    drop(peers);
    last.ready();
    halves.serves();
}

// --- P7 ---

/// How long a child lives on after its supervisor has said so much and is gone.
#[track_caller]
fn lives_on(role: &str, said: &[u8]) -> Duration {
    let listener = listener();
    let (mut control, child) = half_without_bundle(role, Some(&listener));
    control.write_all(said).expect("it has its end");
    let begun = Instant::now();
    drop(control);
    let output = program::wait(child);
    let took = begun.elapsed();
    assert_eq!(output.status.code(), Some(1), "{}", program::shown(&output));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with(&format!("cofferdam {role}: the control socket: ")), "{stderr}");
    took
}

#[test]
fn p7_a_child_whose_supervisor_ends_before_the_bundle_is_whole_exits_by_itself() {
    let bundle = framed(&[0x5A; 4_096]);
    for role in ["web", "executor"] {
        for said in [0, 3, 4, bundle.len() / 2, bundle.len() - 1] {
            // A loaded machine may take its time once, not three times.
            let quickest = (0..3).map(|_| lives_on(role, &bundle[..said])).min().expect("three");
            assert!(quickest < Duration::from_secs(1), "{role} after {said} bytes: {quickest:?}");
        }
    }
}

// --- All of it, at random ---

/// What he does when he feels like it.
fn whim(unit: &Unit, entropy: &mut Entropy, memory: &mut VecDeque<Vec<u8>>) -> Act {
    memory.push_back(unit.bytes.clone());
    if memory.len() > 64 {
        memory.pop_front();
    }
    // Most units pass, so that most connections live for some jobs.
    if entropy.up_to(39) > 0 {
        return Act::Pass;
    }
    let mut below = |count: usize| entropy.up_to(count as u64 - 1) as usize;
    match below(12) {
        0 | 1 => Act::Send(flipped(&unit.bytes, below(unit.bytes.len() * 8))),
        2 => Act::Send(unit.bytes.repeat(2)),
        3 => Act::Swap,
        4 => Act::Reflect,
        5 => Act::Send(unit.bytes[..below(unit.bytes.len())].to_vec()),
        6 => Act::Cut(unit.bytes[..below(unit.bytes.len() + 1)].to_vec()),
        7 => Act::Send(memory[below(memory.len())].clone()),
        8 => Act::Send([&unit.bytes[..], &memory[below(memory.len())]].concat()),
        9 => Act::Stray(unit.connection.saturating_sub(1 + below(3))),
        10 => Act::Send(Vec::new()),
        _ => Act::Delay(Duration::from_millis(below(30) as u64)),
    }
}

#[test]
fn random_attacks_on_every_connection_give_nobody_anothers_answer() {
    const FOR: Duration = Duration::from_secs(5);
    let mut entropy = Entropy::Seeded(seed());
    let mut memory = VecDeque::new();
    let sets =
        [r#"handlers.sleep.ordering={"key":"/none"}"#, "runtime.platform.execution_ipc.heartbeat_ms=300"];
    let scene = Scene::start(&sets, |_| Act::Pass);
    let second = scene.halves.executor(0, scene.proxy.address);
    scene.executor.ready();
    second.ready();
    let load = Load::start(&scene.halves, 12, true);
    load.goes_on(50);
    let before = scene.halves.web.resident_kib();
    let begun = Instant::now();
    scene.proxy.plan(
        move |unit| {
            if begun.elapsed() < FOR { whim(unit, &mut entropy, &mut memory) } else { Act::Pass }
        },
    );
    until("his time is over", 2 * FOR, || (begun.elapsed() > FOR).then_some(()));
    // The service is itself again in 5 s.
    let over = Stopwatch::start();
    load.goes_on(24);
    assert!(over.elapsed() < Duration::from_secs(5), "it took {:?} to recover", over.elapsed());
    let (answered, codes) = load.end();
    println!("{answered} right answers, {codes:?}, {} connections", scene.proxy.connections());
    assert!(answered > 100 && codes.keys().all(|code| code == "reply_timeout"), "{answered} {codes:?}");
    assert!(scene.proxy.connections() > 10, "he did something");
    scene.halves.serves();
    scene.halves.is_settled();
    scene.halves.logs_tell_nothing(&[&scene.executor, &second], &["\"caller\"", "\"ms\""]);
    let after = scene.halves.web.resident_kib();
    assert!(after < before + GROWTH_KIB, "web has grown from {before} to {after} KiB");
}
