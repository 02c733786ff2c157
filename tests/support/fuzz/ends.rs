//! The two ends of a connection as state machines, under authenticated frames of any kind and body in any order, and
//! under bare bytes: each end against docs/protocol.md, which stands here a second time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use cofferdam::channel::frame::{Opener, Sealer};
use cofferdam::channel::handshake::{M1_BYTES, M2_BYTES, M3_BYTES, Nonces};
use cofferdam::channel::keys::MacKey;
use cofferdam::channel::messages::{ToBroker, ToExecutor, to_broker, to_executor};
use cofferdam::channel::{Admission, BrokerEnd, ExecutorEnd, Reject};
use cofferdam::entropy::Entropy;
use cofferdam::job::{Change, Effects, Entries, JobId, Outcome, Version};
use cofferdam::ports::{
    BackendError, Commit, Consumer, Lease, LeaseId, OfLease, Progressed, Requests, StateAt, Step,
};

use super::channel::{
    KNOWN, Known, MAX_LEASES, NARROW, NARROWEST, NONCE_E, NOW_MS, TERMS, TTL_MS, all_to_broker,
    all_to_executor, job, secret,
};
use super::{Script, piece, pieces, put_bytes};

/// Of a script's frames.
const SCRIPT_BODY_BYTES: usize = 512;
/// What the effects ahead of an outcome may come to once they are read.
const PARTS_MAX: usize = 3_000;

/// What happens at an end of a connection, in order.
enum Happens {
    /// A sealed frame.
    Frame { kind: u8, lease: u64, body: Vec<u8> },
    /// Bytes that nobody has sealed.
    Bare(Vec<u8>),
    /// Its owner takes a turn, with this byte to choose by.
    Turn(u8),
}

/// Steps of a script are a turn and its byte, bare bytes, or a sealed frame: kind, lease, body.
const TURN: u8 = 0xF0;
const BARE: u8 = 0xF1;

fn read_script(bytes: &[u8]) -> Vec<Happens> {
    let (mut script, mut all) = (Script(bytes), Vec::new());
    while let (Some(kind), Some(lease)) = (script.u8(), script.u8()) {
        if kind == TURN {
            all.push(Happens::Turn(lease));
            continue;
        }
        let Some(body) = script.bytes() else { break };
        let body = body[..body.len().min(SCRIPT_BODY_BYTES)].to_vec();
        all.push(match kind {
            BARE => Happens::Bare(body),
            kind => Happens::Frame { kind, lease: lease.into(), body },
        });
    }
    all
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
    happens: &[Happens],
    key: &[u8; 32],
    mut size: impl FnMut(usize) -> usize,
    mut received: impl FnMut(&[u8]) -> Result<(), Reject>,
    mut turn: impl FnMut(u8),
) -> Option<Reject> {
    let (mut sealer, mut wire) = (Sealer::new(MacKey::new(key)), Vec::new());
    for (at, next) in happens.iter().enumerate() {
        let choice = match next {
            Happens::Frame { kind, lease, body } => {
                sealer.seal(*kind, *lease, body, NOW_MS, &mut wire);
                None
            }
            Happens::Bare(bytes) => {
                wire.extend_from_slice(bytes);
                None
            }
            Happens::Turn(choice) => Some(*choice),
        };
        if choice.is_none() && at + 1 < happens.len() {
            continue;
        }
        let mut rest = &wire[..];
        while !rest.is_empty() {
            let (part, after) = rest.split_at(size(rest.len()));
            if let Err(reason) = received(part) {
                assert!(received(b"x").is_err() && received(&KNOWN.m1).is_err(), "a failure stays");
                return Some(reason);
            }
            rest = after;
        }
        wire.clear();
        choice.into_iter().for_each(&mut turn);
    }
    None
}

/// A frame that an end said, opened by its peer's rules.
struct Spoken {
    kind: u8,
    lease: u64,
    body: Vec<u8>,
}

fn spoken(said: &[u8], key: &[u8; 32], max_frame: u32, allowed: fn(u8) -> bool) -> Vec<Spoken> {
    let mut opener = Opener::new(MacKey::new(key), max_frame as usize, TTL_MS);
    let (mut used, mut frames) = (0, Vec::new());
    while let Some((frame, length)) = opener.open(&said[used..], NOW_MS, allowed).expect("an honest frame") {
        frames.push(Spoken { kind: frame.kind, lease: frame.lease, body: frame.body.to_vec() });
        used += length;
    }
    assert_eq!(used, said.len(), "no part of a frame is left");
    frames
}

/// At the broker's end: its consumer hears what docs/protocol.md says and nothing else, and what the end does is the
/// same in whatever pieces the frames came.
pub fn broker_end(bytes: &[u8]) {
    let happens = read_script(bytes);
    let whole = at_broker(&happens, |left| left);
    let mut sizes = pieces(bytes);
    assert_eq!(at_broker(&happens, |left| piece(&mut sizes, left)), whole);
    let expected = ExpectedAtBroker::of(&happens);
    expected.check(&whole);
}

/// What came of a script at the broker's end.
#[derive(Debug, PartialEq)]
struct AtBroker {
    log: Vec<String>,
    /// Leases that were lent, after each step.
    lent: Vec<usize>,
    fenced: usize,
    revoked: usize,
    said: Vec<u8>,
    refused: Option<Reject>,
}

fn at_broker(happens: &[Happens], mut size: impl FnMut(usize) -> usize) -> AtBroker {
    let book = Arc::new(Mutex::new(LenderBook::default()));
    let secrets = [secret()];
    let (mut nonces, mut entropy) = ([Nonces::new(16)], Entropy::Seeded(1));
    let lenders_book = book.clone();
    let mut connect = move |_| Box::new(Lender::new(lenders_book.clone())) as Box<dyn Consumer>;
    let end = std::cell::RefCell::new(BrokerEnd::new(NOW_MS, PARTS_MAX));
    let mut received = |bytes: &[u8]| {
        let mut admission = Admission {
            secrets: &secrets,
            nonces: &mut nonces,
            terms: TERMS,
            entropy: &mut entropy,
            connect: &mut connect,
        };
        end.borrow_mut().received(bytes, &mut admission, NOW_MS)
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
    let refused = feed(happens, &KNOWN.data.to_broker, &mut size, received, |_| {
        end.borrow_mut().turn().expect("the lender is there, and what waits is little");
        flush();
    });
    end.borrow_mut().settle();
    flush();
    assert_eq!(said[..M2_BYTES], KNOWN.m2);
    said.drain(..M2_BYTES);
    let LenderBook { log, lent, fenced, revoked } =
        std::mem::take(&mut *book.lock().unwrap_or_else(PoisonError::into_inner));
    AtBroker { log, lent, fenced, revoked, said, refused }
}

/// What a lender has seen and done.
#[derive(Default)]
struct LenderBook {
    log: Vec<String>,
    lent: Vec<usize>,
    fenced: usize,
    revoked: usize,
}

/// A consumer that lends as much as it may. After a commit it takes a step until all is in its books.
struct Lender {
    book: Arc<Mutex<LenderBook>>,
    /// Jobs without an outcome, by lease.
    live: BTreeMap<LeaseId, usize>,
    last: u64,
    is_settled: bool,
}

impl Lender {
    fn new(book: Arc<Mutex<LenderBook>>) -> Lender {
        Lender { book, live: BTreeMap::new(), last: 0, is_settled: true }
    }

    /// False: the lease is not live.
    fn commit(&mut self, commit: &Commit) -> bool {
        let Some(jobs) = self.live.get_mut(&commit.lease) else { return false };
        *jobs -= 1;
        let goes_on = matches!(commit.outcome, Outcome::Succeeded(..) | Outcome::Failed(_));
        if *jobs == 0 || !goes_on {
            self.live.remove(&commit.lease);
        }
        true
    }

    fn lend(&mut self) -> Lease {
        self.last += 1;
        let number = self.last;
        let entries = || [(Arc::from("a"), Arc::from(*b"1"))].into_iter().collect();
        let (state, mut jobs) = match number % 3 {
            0 => (StateAt::Stateless, vec![job(None)]),
            1 => (StateAt::Known(Version(number)), vec![job(Some("k"))]),
            _ => (StateAt::Whole(Version(number), entries()), vec![job(Some("k")), job(Some("k"))]),
        };
        jobs[0].context = entries();
        self.live.insert(LeaseId(number), jobs.len());
        Lease { id: LeaseId(number), handler: "h".into(), state, jobs }
    }
}

impl Consumer for Lender {
    fn step(&mut self, requests: Requests, room: usize) -> Result<Step, BackendError> {
        /// A follow-up has at least 19 bytes and counts for 1,024: what a frame may hold beside its parts.
        const FRAME_HOLDS: usize = SCRIPT_BODY_BYTES * 1_024 / 19;
        assert!(room <= MAX_LEASES as usize, "more room than was agreed");
        let line = step_line(&requests, room);
        self.is_settled = requests.commits.is_empty();
        let mut step = Step::default();
        for commit in requests.commits {
            if let Outcome::Succeeded(_, effects) = &commit.outcome {
                assert!(effects.held_bytes() <= PARTS_MAX + FRAME_HOLDS, "more effects than were agreed");
            }
            if !self.commit(&commit) {
                step.fenced.push(OfLease { lease: commit.lease, job: commit.job });
            }
        }
        for lease in requests.releases {
            self.live.remove(&lease);
        }
        while self.live.len() < room {
            step.leases.push(self.lend());
        }
        if self.last % 5 == 4 {
            step.revoked.push(OfLease { lease: LeaseId(self.last - 1), job: JobId([1; 16]) });
        }
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.log.push(line);
        book.lent.push(self.last as usize);
        book.fenced += step.fenced.len();
        book.revoked += step.revoked.len();
        Ok(step)
    }

    fn extend(&mut self) {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).log.push("extend".into());
    }

    fn is_settled(&self) -> bool {
        self.is_settled
    }
}

fn step_line(requests: &Requests, room: usize) -> String {
    format!("{requests:?} room {room}")
}

/// What must come of a script at the broker's end: docs/protocol.md a second time, frame by frame.
#[derive(Default)]
struct ExpectedAtBroker {
    log: Vec<String>,
    steps: usize,
    /// What is to be said in the next step.
    requests: Requests,
    room: usize,
    owes_drain: bool,
    /// The lease, the effects and what they count for.
    parts: Option<(u64, Effects, usize)>,
    /// The steps after which there was a drain.
    drains: Vec<usize>,
    pings: usize,
    pings_at_turn: usize,
    refused: Option<Reject>,
    /// From there on nobody can tell what comes of it.
    is_bare: bool,
}

impl ExpectedAtBroker {
    fn of(happens: &[Happens]) -> ExpectedAtBroker {
        let mut expected = ExpectedAtBroker::default();
        for next in happens {
            match next {
                Happens::Bare(bytes) => expected.is_bare |= !bytes.is_empty(),
                Happens::Turn(_) => expected.turn(),
                Happens::Frame { kind, lease, body } => {
                    expected.refused = expected.frame(*kind, *lease, body).err();
                }
            }
            if expected.is_bare || expected.refused.is_some() {
                break;
            }
        }
        expected
    }

    fn turn(&mut self) {
        let requests = std::mem::take(&mut self.requests);
        self.log.push(step_line(&requests, self.room));
        self.steps += 1;
        self.pings_at_turn = self.pings;
        if self.owes_drain && requests.commits.is_empty() {
            self.owes_drain = false;
            self.drains.push(self.steps);
        }
    }

    fn frame(&mut self, kind: u8, lease: u64, body: &[u8]) -> Result<(), Reject> {
        if !matches!(kind, 0x01 | 0x10..=0x12 | 0x14..=0x15) {
            return Err(Reject::UnknownKind);
        }
        match ToBroker::decode(kind, body)? {
            ToBroker::Ping => {
                self.pings += 1;
                self.log.push("extend".into());
            }
            ToBroker::Room(level) => {
                (self.room, self.owes_drain) = (level.min(MAX_LEASES) as usize, level == 0);
            }
            ToBroker::Part(effects) => {
                let (of, mut all, mut bytes) =
                    self.parts.take().unwrap_or_else(|| (lease, Effects::default(), 0));
                bytes += held_bytes(&effects);
                all.append(effects);
                if of != lease || bytes > PARTS_MAX {
                    return Err(Reject::Malformed);
                }
                self.parts = Some((of, all, bytes));
            }
            ToBroker::Release | ToBroker::Progress(..) if self.parts.is_some() => {
                return Err(Reject::Malformed);
            }
            ToBroker::Progress(job, progress) => {
                self.requests.progress.push(Progressed { lease: LeaseId(lease), job, progress });
            }
            ToBroker::Release => self.requests.releases.push(LeaseId(lease)),
            ToBroker::Outcome { job, delivery, builds_on, mut outcome } => {
                if let Some((of, mut all, _)) = self.parts.take() {
                    if of != lease {
                        return Err(Reject::Malformed);
                    }
                    if let Outcome::Succeeded(_, own) = &mut outcome {
                        all.append(std::mem::take(own));
                        *own = all;
                    }
                }
                let lease = LeaseId(lease);
                self.requests.commits.push(Commit { lease, job, delivery, builds_on, outcome });
            }
        }
        Ok(())
    }

    fn check(mut self, found: &AtBroker) {
        if self.is_bare {
            assert!(found.log.starts_with(&self.log), "what came before the bare bytes counts");
            return;
        }
        assert_eq!(found.refused, self.refused);
        let before = self.log.len();
        self.log.push(step_line(&self.requests, 0));
        // What came in one turn with a frame that is refused may count, or not.
        assert!(found.log == self.log || self.refused.is_some() && found.log[..] == self.log[..before]);
        let frames = spoken(&found.said, &KNOWN.data.to_executor, TERMS.max_frame, to_executor);
        let count = |kind| frames.iter().filter(|frame| frame.kind == kind).count();
        let pongs = count(0x81);
        assert!(pongs == self.pings || self.refused.is_some() && pongs == self.pings_at_turn);
        // Nothing is said any more once it has ended: the last step is not answered.
        let lent = self.steps.checked_sub(1).map_or(0, |last| found.lent[last]);
        let leases: Vec<u64> =
            frames.iter().filter(|frame| frame.kind == 0x91).map(|frame| frame.lease).collect();
        assert_eq!(leases, (1..=lent as u64).collect::<Vec<_>>(), "each lease once, in their order");
        assert!(count(0x93) <= found.fenced && count(0x94) <= found.revoked);
        let mut drains = Vec::new();
        let mut leases = 0;
        for frame in &frames {
            leases += usize::from(frame.kind == 0x91);
            if frame.kind == 0xA0 {
                drains.push(leases);
            }
        }
        let after: Vec<usize> = self.drains.iter().map(|step| found.lent[step - 1]).collect();
        assert_eq!(drains, after, "a drain stands behind the leases of its time");
        for Spoken { kind, lease, body } in &frames {
            ToExecutor::decode(*kind, *lease, body).expect("it says what an executor understands");
        }
    }
}

/// What effects count for once they are read, as docs/protocol.md says.
fn held_bytes(effects: &Effects) -> usize {
    let changes = effects.state.iter().chain(&effects.context);
    let changes: usize = changes
        .map(|change| 64 + change.key.len() + change.value.as_ref().map_or(0, |value| value.len()))
        .sum();
    changes + effects.follow_ups.iter().map(|job| 1_024 + job.payload.bytes.len()).sum::<usize>()
}

pub fn to_broker_scripts() -> Vec<Vec<u8>> {
    let turn = || ((TURN, Vec::new()), 0);
    let every = all_to_broker().into_iter().map(|message| (message.encode(), 1));
    let outcome = |lease| (all_to_broker()[0].encode(), lease);
    let failed = |lease| (all_to_broker()[1].encode(), lease);
    let part = |lease| (all_to_broker()[8].encode(), lease);
    let release = |lease| (ToBroker::Release.encode(), lease);
    let room = |level| (ToBroker::Room(level).encode(), 0);
    let ping = || (ToBroker::Ping.encode(), 0);
    // More ahead of an outcome than was agreed.
    let value = Some(Arc::from([7; 400]));
    let change = Effects { state: vec![Change { key: "a".into(), value }], ..Effects::default() };
    let large = || (ToBroker::Part(change.clone()).encode(), 1_u8);
    vec![
        steps(
            [room(2), turn()].into_iter().chain(std::iter::repeat_n(large(), 6)).chain([failed(1), turn()]),
        ),
        steps(
            [room(2), turn()].into_iter().chain(std::iter::repeat_n(large(), 7)).chain([outcome(1), turn()]),
        ),
        steps([room(2), turn()].into_iter().chain(every).chain([turn()])),
        // Parts directly before their outcome, with what may stand between; another lease's outcome may not.
        steps([
            room(2),
            turn(),
            part(2),
            ping(),
            part(2),
            room(3),
            outcome(2),
            part(1),
            failed(1),
            outcome(1),
            turn(),
            turn(),
        ]),
        steps([room(2), turn(), part(1), part(2), outcome(2), turn()]),
        steps([room(2), turn(), part(1), outcome(2), turn()]),
        steps([room(2), turn(), part(1), release(1), turn()]),
        steps([room(2), turn(), release(1), part(1), turn(), outcome(1), turn()]),
        // Levels, and who is answered by a drain.
        steps([room(3), turn(), room(1), release(1), turn(), room(9), turn(), room(0), turn(), turn()]),
        steps([room(1), turn(), room(0), outcome(1), turn(), turn(), room(0), turn(), room(1), turn()]),
        steps([room(0), room(1), turn(), room(1), room(0), turn()]),
        steps([turn(), outcome(9), ((BARE, vec![0, 0, 0, 60]), 0)]),
        steps([ping(), turn(), (ToExecutor::Pong.encode(), 0)]),
    ]
}

/// At the executor's end: what reaches the worker code are whole leases, and what the end says is what it was told to
/// say. The first byte chooses between wide frames and the smallest.
pub fn executor_end(bytes: &[u8]) {
    let Some((choice, script)) = bytes.split_first() else { return };
    let (known, max_frame) = if choice & 1 == 0 { (&*KNOWN, TERMS.max_frame) } else { (&*NARROW, NARROWEST) };
    let happens = read_script(script);
    let whole = at_executor(known, &happens, |left| left);
    let mut sizes = pieces(bytes);
    assert_eq!(at_executor(known, &happens, |left| piece(&mut sizes, left)), whole);
    let AtExecutor { log, said, refused, told } = whole;
    let frames = spoken(&said, &known.data.to_broker, max_frame, to_broker);
    assert_eq!(put_together(&frames), told, "it says what it was told to say");
    let expected = ExpectedAtExecutor::of(&happens);
    let is_known = !expected.is_bare;
    assert!(log.starts_with(&expected.log), "{log:?} instead of {:?}", expected.log);
    assert!(!is_known || (log.len(), refused) == (expected.log.len(), expected.refused));
}

/// What came of a script at the executor's end.
#[derive(Debug, PartialEq)]
struct AtExecutor {
    /// What each step brought.
    log: Vec<String>,
    said: Vec<u8>,
    refused: Option<Reject>,
    /// What it had to say.
    told: Vec<String>,
}

fn at_executor(known: &Known, happens: &[Happens], mut size: impl FnMut(usize) -> usize) -> AtExecutor {
    let end = std::cell::RefCell::new(ExecutorEnd::new(&secret(), 0, NONCE_E, TTL_MS, NOW_MS));
    let received = |bytes: &[u8]| end.borrow_mut().received(bytes, &secret(), NOW_MS);
    let (mut said, mut log) = (Vec::new(), Vec::new());
    let mut flush = || {
        let end = &mut *end.borrow_mut();
        loop {
            let bytes = end.output(NOW_MS).to_vec();
            if bytes.is_empty() {
                return;
            }
            said.extend_from_slice(&bytes);
            end.wrote(bytes.len());
        }
    };
    flush();
    received(&known.m2).expect("it is the known second message");
    let mut told = vec![said_line(0, &ToBroker::Ping)];
    let mut requests = Requests::default();
    let mut says_room = ExpectedAtExecutor::of(happens).says_room.into_iter();
    let refused = feed(happens, &known.data.to_executor, &mut size, received, |choice| {
        let (wanted, says_more) = (wanted_room(choice), !requests.is_empty());
        for Commit { lease, job, delivery, builds_on, outcome } in requests.commits.iter().cloned() {
            told.push(said_line(lease.0, &ToBroker::Outcome { job, delivery, builds_on, outcome }));
        }
        told.extend(requests.releases.iter().map(|lease| said_line(lease.0, &ToBroker::Release)));
        if says_room.next().expect("one a turn") {
            told.push(said_line(0, &ToBroker::Room(wanted)));
        }
        let step = end.borrow_mut().step(std::mem::take(&mut requests), usize::from(choice % 6));
        let step = step.expect("it is up");
        let drained = end.borrow().is_settled();
        flush();
        log.push(brought(&step, end.borrow().is_settled()));
        assert!(!drained || !says_more, "what was said just now is in no books yet");
        for lease in step.leases {
            if choice % 2 == 1 && choice >= 64 {
                requests.releases.push(lease.id);
                continue;
            }
            for job in lease.jobs {
                let value = job.payload.bytes.clone();
                let change = |at: u8| Change { key: at.to_string().into(), value: Some(value.clone()) };
                let effects = Effects { state: (0..choice).map(change).collect(), ..Effects::default() };
                requests.commits.push(Commit {
                    lease: lease.id,
                    job: job.spec.id,
                    delivery: job.delivery,
                    builds_on: Version(1),
                    outcome: Outcome::Succeeded(job.payload, effects),
                });
            }
        }
    });
    flush();
    assert_eq!(said[..M1_BYTES], known.m1);
    assert_eq!(said[M1_BYTES..M1_BYTES + M3_BYTES], known.m3);
    said.drain(..M1_BYTES + M3_BYTES);
    AtExecutor { log, said, refused, told }
}

fn wanted_room(choice: u8) -> u32 {
    u32::from(choice % 6).min(MAX_LEASES)
}

fn said_line(lease: u64, message: &ToBroker) -> String {
    format!("{lease} {message:?}")
}

/// The frames as they are meant: each outcome with the parts that stand directly before it.
fn put_together(frames: &[Spoken]) -> Vec<String> {
    let (mut lines, mut parts) = (Vec::new(), None::<(u64, Effects)>);
    for Spoken { kind, lease, body } in frames {
        let mut message = ToBroker::decode(*kind, body).expect("it says what a broker understands");
        match &mut message {
            ToBroker::Part(effects) => {
                let (of, all) = parts.get_or_insert_with(|| (*lease, Effects::default()));
                assert_eq!(of, lease, "parts of two outcomes");
                all.append(std::mem::take(effects));
                continue;
            }
            ToBroker::Outcome { outcome: Outcome::Succeeded(_, effects), .. } => {
                if let Some((of, mut all)) = parts.take() {
                    assert_eq!(of, *lease, "parts of another lease");
                    all.append(std::mem::take(effects));
                    *effects = all;
                }
            }
            ToBroker::Outcome { .. }
            | ToBroker::Ping
            | ToBroker::Room(_)
            | ToBroker::Release
            | ToBroker::Progress(..) => {}
        }
        assert!(parts.is_none(), "parts stand directly before their outcome");
        lines.push(said_line(*lease, &message));
    }
    lines
}

/// What a step brought, in an order that no table decides.
fn brought(step: &Step, is_drained: bool) -> String {
    let sorted = |entries: &Entries| {
        let mut entries: Vec<_> = entries.iter().collect();
        entries.sort();
        format!("{entries:?}")
    };
    let lease = |lease: &Lease| {
        let state = match &lease.state {
            StateAt::Whole(version, entries) => format!("{version:?} {}", sorted(entries)),
            known => format!("{known:?}"),
        };
        let jobs: Vec<String> = lease
            .jobs
            .iter()
            .map(|job| {
                let context = sorted(&job.context);
                format!("{:?} {:?} {} {} {context}", job.spec, job.payload, job.delivery, job.fence)
            })
            .collect();
        format!("{:?} {} {state} {jobs:?}", lease.id, lease.handler)
    };
    let leases: Vec<String> = step.leases.iter().map(lease).collect();
    format!("{leases:?} {:?} {:?} {is_drained}", step.fenced, step.revoked)
}

/// What must come of a script at the executor's end: docs/protocol.md a second time.
#[derive(Default)]
struct ExpectedAtExecutor {
    log: Vec<String>,
    step: Step,
    /// Maps that came ahead of their lease: of the lane, and of traces.
    maps: BTreeMap<(u64, Option<[u8; 16]>), Entries>,
    room: Option<u32>,
    says_more: bool,
    /// `Room` 0 was said, and nothing since; it was answered.
    is_asked: bool,
    is_asked_too_soon: bool,
    is_drained: bool,
    /// Of each turn: its room was said.
    says_room: Vec<bool>,
    refused: Option<Reject>,
    is_bare: bool,
}

impl ExpectedAtExecutor {
    fn of(happens: &[Happens]) -> ExpectedAtExecutor {
        let mut expected = ExpectedAtExecutor::default();
        for next in happens {
            match next {
                Happens::Bare(bytes) => expected.is_bare |= !bytes.is_empty(),
                Happens::Turn(choice) => expected.turn(*choice),
                // Behind bare bytes it is no frame any more: it is refused, or waits for its end.
                Happens::Frame { .. } if expected.is_bare => {}
                Happens::Frame { kind, lease, body } => {
                    expected.refused = expected.frame(*kind, *lease, body).err();
                }
            }
            if expected.refused.is_some() {
                break;
            }
        }
        expected
    }

    fn turn(&mut self, choice: u8) {
        let room = wanted_room(choice);
        let is_new = self.room.replace(room) != Some(room);
        let is_first = !self.is_asked && !self.is_asked_too_soon && !self.is_drained;
        let says_room = is_new || room == 0 && (is_first || self.is_drained && self.says_more);
        if says_room {
            (self.is_asked, self.is_asked_too_soon, self.is_drained) = (room == 0, false, false);
        } else if self.says_more && self.is_asked {
            // One question at a time: its answer may be on the way.
            (self.is_asked, self.is_asked_too_soon) = (false, true);
        }
        self.says_room.push(says_room);
        let step = std::mem::take(&mut self.step);
        if !self.is_bare {
            self.log.push(brought(&step, self.is_drained));
        }
        self.says_more = !step.leases.is_empty();
    }

    fn frame(&mut self, kind: u8, lease: u64, body: &[u8]) -> Result<(), Reject> {
        if !matches!(kind, 0x81 | 0x90 | 0x91 | 0x93 | 0x94 | 0xA0) {
            return Err(Reject::UnknownKind);
        }
        let of_lease = |job| OfLease { lease: LeaseId(lease), job };
        match ToExecutor::decode(kind, lease, body)? {
            ToExecutor::Pong => {}
            ToExecutor::Drain => {
                self.is_drained |= std::mem::take(&mut self.is_asked);
                self.is_asked_too_soon = false;
            }
            ToExecutor::State { trace, entries } => {
                self.maps.entry((lease, trace)).or_default().extend(entries);
            }
            ToExecutor::Lease(mut found) => {
                let lanes = self.maps.remove(&(lease, None)).unwrap_or_default();
                match &mut found.state {
                    StateAt::Whole(_, entries) => *entries = lanes,
                    StateAt::Stateless | StateAt::Known(_) if lanes.is_empty() => {}
                    StateAt::Stateless | StateAt::Known(_) => return Err(Reject::Malformed),
                }
                for job in &mut found.jobs {
                    job.context =
                        self.maps.get(&(lease, Some(job.spec.trace.id))).cloned().unwrap_or_default();
                }
                self.maps.retain(|(of, _), _| *of != lease);
                self.step.leases.push(found);
            }
            ToExecutor::Fenced(job) => self.step.fenced.push(of_lease(job)),
            ToExecutor::Cancel(job) => self.step.revoked.push(of_lease(job)),
        }
        Ok(())
    }
}

pub fn to_executor_scripts() -> Vec<Vec<u8>> {
    let turn = |choice| ((TURN, Vec::new()), choice);
    let [pong, drain, lanes, contexts, whole, known, stateless, fenced, cancel] =
        <[ToExecutor; 9]>::try_from(all_to_executor()).expect("nine of them").map(|message| message.encode());
    let on = |message: &(u8, Vec<u8>), lease: u8| (message.clone(), lease);
    let answered = [on(&whole, 1), turn(200), turn(1), on(&fenced, 1), turn(0)];
    let scripts = [
        (0, steps([turn(3), on(&lanes, 1), on(&contexts, 1)].into_iter().chain(answered.clone()))),
        (1, steps([turn(3)].into_iter().chain(answered))),
        (0, steps([turn(2), on(&stateless, 2), on(&fenced, 2), on(&cancel, 2), turn(5), turn(2)])),
        (0, steps([on(&pong, 0), on(&drain, 0), turn(0), ((BARE, vec![0xFF; 4]), 0)])),
        (0, steps([on(&lanes, 3), on(&known, 3), (ToBroker::Ping.encode(), 0)])),
        // No room, with and without something more to say, and room again.
        (0, steps([turn(1), on(&known, 4), turn(66), turn(0), on(&drain, 0), turn(0), turn(4)])),
        (1, steps([turn(1), on(&known, 4), turn(67), turn(0), on(&drain, 0), turn(6), turn(12)])),
        (
            0,
            steps([
                turn(1),
                turn(0),
                on(&known, 5),
                on(&drain, 0),
                turn(65),
                turn(0),
                on(&drain, 0),
                turn(0),
            ]),
        ),
    ];
    scripts.map(|(choice, script)| [&[choice][..], &script].concat()).into()
}
