//! What is in a journal's directory, and who waits for it: no byte, frame or file of it can be changed, moved or left out unseen,
//! but for the last frame, which nothing follows; and nothing leaves before the turn that says it is written.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use cofferdam::bell::Bell;
use cofferdam::config::secret::Secret;
use cofferdam::job::{
    Change, InstanceId, JobId, JobRecord, JobSpec, JobStatus, Outcome, Payload, Trace, Version,
};
use cofferdam::journal::facts::{Fact, Job, put};
use cofferdam::journal::frame::{BEGIN, Turn, open as open_frame, open_header, put_header, seal};
use cofferdam::journal::known_keys;
use cofferdam::journal::scan::scan;
use cofferdam::journal::{Image, Log};
use cofferdam::mac::MacKey;
use cofferdam::ports::{Commit, Consumer, KeyValue, Producer, Replies, Requests, Seat, Submitted, Viewer};

use support::conformance::{Backend, START, Settings, plain};
use support::journaled::{Journaled, keys, open};
use support::sim_disk::SimDisk;

mod support {
    #[allow(dead_code, unused_macros, reason = "the laws themselves are not run here")]
    #[macro_use]
    pub mod conformance;
    pub mod journaled;
    pub mod sim_disk;
}

fn id(number: u8) -> JobId {
    JobId([number; 16])
}

/// Jobs in three segments, written in turns of their own; and what a journal knows after each turn.
fn written() -> (SimDisk, Vec<Vec<JobId>>) {
    let disk = SimDisk::default();
    let (mut log, image, _) = open(&disk).expect("an empty disk");
    let settings = Settings::default();
    let mut broker = cofferdam::memory::broker::Broker::new(
        settings.rules(),
        settings.handlers.clone(),
        vec![1; settings.groups],
        cofferdam::entropy::Entropy::Seeded(1),
    );
    broker.keep_journal(image, START).expect("it is empty");
    let mut known = vec![Vec::new()];
    for number in 1..=12 {
        let mut job = plain(id(number), "free");
        job.payload = Payload::octets(vec![number; 3_000]);
        assert_eq!(broker.submit(job, START), Submitted::New);
        let mut facts = broker.take_facts();
        log.append(START, facts.last_fence, &facts.bytes, &mut facts.bases).expect("there is room");
        log.sync().expect("it can");
        let mut ids = known[known.len() - 1].clone();
        ids.push(id(number));
        known.push(ids);
    }
    (disk, known)
}

fn jobs(image: &Image) -> Vec<JobId> {
    let mut jobs: Vec<JobId> = image.jobs.keys().copied().collect();
    jobs.sort();
    jobs
}

fn segments(disk: &SimDisk) -> Vec<String> {
    disk.contents().into_keys().filter(|name| name.ends_with(".log")).collect()
}

/// What a start comes to on this disk.
fn start(disk: &SimDisk) -> Result<Vec<JobId>, String> {
    open(&disk.kill()).map(|(_, image, _)| jobs(&image))
}

#[test]
fn a_bit_that_flips_anywhere_is_seen_or_is_of_the_last_frame() {
    let (disk, known) = written();
    let (all, but_last) = (&known[12], &known[11]);
    assert_eq!(start(&disk).as_ref(), Ok(all));
    let mut refused = 0;
    for (name, bytes) in disk.contents() {
        // Each byte of what begins a segment and a frame, and some of the others.
        for at in (0..bytes.len()).filter(|at| at % 61 == 0 || at % 3_200 < 130) {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            let disk = disk.kill();
            disk.replace(&name, changed);
            match start(&disk) {
                Ok(found) => assert!(found == *all || found == *but_last, "{name} {at}: {found:?}"),
                Err(why) => {
                    assert!(why.starts_with(&name) || why.contains(".log: at byte"), "{name} {at}: {why}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn a_segment_that_is_missing_or_another_in_its_place_is_seen() {
    let (disk, known) = written();
    let names = segments(&disk);
    assert!(names.len() >= 3, "{names:?}");
    for name in &names[..names.len() - 1] {
        let disk = disk.kill();
        disk.lose(name);
        let why = start(&disk).expect_err("one is missing");
        assert!(why.contains("is missing"), "{why}");
    }
    // The last one leaves no trace where it was: what it said was said last.
    let without = disk.kill();
    without.lose(&names[names.len() - 1]);
    let found = start(&without).expect("nothing says that there was one");
    assert!(known.contains(&found) && found.len() < 12);
    // A first one that lost what it said, or its header, is not one that was being made.
    let alone = SimDisk::default();
    let backend = Journaled::on(alone.clone(), &Settings::default(), START);
    assert_eq!(backend.broker.submit(vec![plain(id(1), "free")]), Ok(vec![Submitted::New]));
    for bytes in [Vec::new(), vec![0; 8_192]] {
        let disk = alone.kill();
        disk.replace("000000000001.log", bytes);
        let why = start(&disk).expect_err("it had a job");
        assert!(why.starts_with("000000000001.log: at byte 0"), "{why}");
    }
    // Each in the place of each other.
    let contents = disk.contents();
    for from in &names {
        for to in names.iter().filter(|to| *to != from) {
            let disk = disk.kill();
            disk.replace(to, contents[from].clone());
            let why = start(&disk).expect_err("it is another's");
            assert!(why.starts_with(to.as_str()), "{why}");
        }
    }
}

#[test]
fn a_frame_that_is_left_out_moved_or_doubled_is_seen() {
    let (disk, _) = written();
    let name = &segments(&disk)[0];
    let bytes = &disk.contents()[name];
    let begin = cofferdam::journal::frame::BEGIN;
    let length = |at: usize| 4 + u32::from_be_bytes(*bytes[at..].first_chunk().expect("four bytes")) as usize;
    let (first, second) = (length(begin), length(begin + length(begin)));
    let (one, two) = (begin + first, begin + first + second);
    let parts: [Vec<&[u8]>; 3] = [
        vec![&bytes[..begin], &bytes[one..]],
        vec![&bytes[..begin], &bytes[one..two], &bytes[begin..one], &bytes[two..]],
        vec![&bytes[..one], &bytes[begin..]],
    ];
    for changed in parts {
        let disk = disk.kill();
        disk.replace(name, changed.concat());
        let why = start(&disk).expect_err("it is not as it was written");
        assert!(why.contains(".log: at byte"), "{why}");
    }
}

#[test]
fn another_secret_and_another_version_are_refused_by_name_and_a_new_secret_signs_anew() {
    let (disk, known) = written();
    let with = |keys: Vec<MacKey>, disk: &SimDisk| {
        let log = Log::open(Box::new(disk.clone()), keys, support::journaled::SEGMENT_BYTES);
        log.map(|(_, image, _)| jobs(&image))
    };
    let other = || MacKey::new(b"another");
    let why = with(vec![other()], &disk.kill()).expect_err("it was signed with another secret");
    assert!(why.contains("another secret"), "{why}");
    let rotated = disk.kill();
    let both = [other()].into_iter().chain(keys()).collect();
    assert_eq!(with(both, &rotated).as_ref(), Ok(&known[12]));
    // What was written first is signed with the old one still.
    assert!(with(vec![other()], &rotated).is_err());
    let name = segments(&disk)[0].clone();
    let mut bytes = disk.contents()[&name].clone();
    bytes[10] = b'2';
    disk.replace(&name, bytes);
    let why = start(&disk).expect_err("it is of another version");
    assert!(why.contains("another version"), "{why}");
}

#[test]
fn what_is_dead_is_left_behind_and_the_disk_has_at_most_twice_what_lives() {
    let backend = Journaled::on(SimDisk::default(), &Settings::default(), START);
    let mut executor = backend.broker.consumer(0, Bell::silent());
    let value = vec![Change { key: "k".into(), value: Some(vec![7; 2_000].into()) }];
    backend.broker.apply("state:serial:x", &value, None).expect("it is there");
    for number in 0..2_000_u32 {
        let mut job = plain(JobId(u128::from(number + 1).to_be_bytes()), "free");
        job.awaited = true;
        job.payload = Payload::octets(vec![1; 300]);
        let _ = backend.broker.submit(vec![job]).expect("it is there");
        let lease = lease_of(&backend, &mut executor);
        let leased = &lease.jobs[0];
        let outcome = Outcome::Succeeded(Payload::json(*b"1"), Default::default());
        let commit = Commit {
            lease: lease.id,
            job: leased.spec.id,
            delivery: leased.delivery,
            builds_on: Version::default(),
            outcome,
        };
        executor.step(Requests { commits: vec![commit], ..Requests::default() }, 1).expect("it is there");
        backend.advance(Duration::from_secs(1));
        backend.tick();
    }
    let live = backend.broker.with(|broker, _| broker.live_bytes());
    let most = 2 * live + 4 * support::journaled::SEGMENT_BYTES;
    assert!(backend.disk.used() <= most, "{} bytes for {live}", backend.disk.used());
    let again = Journaled::on(backend.disk.kill(), &Settings::default(), backend.now());
    assert_eq!(
        again.broker.load("state:serial:x", None).expect("it is there").get("k"),
        Some(&vec![7; 2_000].into())
    );
    assert_eq!(again.sizes()[0], backend.sizes()[0]);
}

fn lease_of(backend: &Journaled, executor: &mut impl Consumer) -> cofferdam::ports::Lease {
    for _ in 0..100 {
        let mut step = executor.step(Requests::default(), 1).expect("it is there");
        if let Some(lease) = step.leases.pop() {
            return lease;
        }
        backend.settle();
    }
    panic!("there is no lease")
}

#[test]
fn nothing_is_answered_before_it_is_written() {
    let backend = Journaled::on(SimDisk::default(), &Settings::default(), START);
    let mut executor = backend.broker.consumer(0, Bell::silent());
    let mut inbox = backend.broker.subscribe(InstanceId(1), Bell::silent()).expect("it is there");
    backend.settle();
    // An answer.
    backend.disk.hold_syncs(true);
    let (answer, answered) = channel();
    let then = move |answers| _ = answer.send(answers);
    backend.broker.submit_later(vec![plain(id(1), "free")], Box::new(then));
    backend.keeper.flush();
    let pause = Duration::from_millis(50);
    assert_eq!(answered.recv_timeout(pause), Err(RecvTimeoutError::Timeout), "it is not written");
    // A record, and the lease of a new job.
    let reader = backend.broker.clone();
    let (told, record) = channel();
    let reading = std::thread::spawn(move || told.send(reader.record(&Viewer::anonymous(), id(1))).is_ok());
    let step = executor.step(Requests::default(), 1).expect("it is there");
    assert!(step.leases.is_empty(), "its start is not written");
    assert!(record.recv_timeout(pause).is_err(), "nobody sees what may be lost");
    assert!(!executor.is_settled());
    backend.disk.hold_syncs(false);
    assert_eq!(answered.recv_timeout(Duration::from_secs(5)), Ok(Ok(vec![Submitted::New])));
    assert!(record.recv_timeout(Duration::from_secs(5)).expect("it is told").is_ok());
    assert!(reading.join().expect("it ends"));
    backend.settle();
    assert!(!executor.is_settled(), "its lease has not left yet");
    let lease = lease_of(&backend, &mut executor);
    // An end.
    backend.disk.hold_syncs(true);
    let outcome = Outcome::Succeeded(Payload::json(*b"1"), Default::default());
    let (job, delivery, builds_on) = (id(1), lease.jobs[0].delivery, Version::default());
    let commit = Commit { lease: lease.id, job, delivery, builds_on, outcome };
    executor.step(Requests { commits: vec![commit], ..Requests::default() }, 1).expect("it is there");
    backend.keeper.flush();
    std::thread::sleep(pause);
    assert!(inbox.take(9).ended.is_empty(), "its end is not written");
    backend.disk.hold_syncs(false);
    backend.settle();
    assert_eq!(inbox.take(9).ended.len(), 1);
    assert!(executor.is_settled());
}

#[test]
fn a_job_that_is_cancelled_before_its_lease_is_written_never_leaves() {
    let backend = Journaled::on(SimDisk::default(), &Settings::default(), START);
    let mut executor = backend.broker.consumer(0, Bell::silent());
    let _ = backend.broker.submit(vec![plain(id(1), "free")]).expect("it is there");
    backend.disk.hold_syncs(true);
    assert!(executor.step(Requests::default(), 1).expect("it is there").leases.is_empty());
    let cancelling = backend.broker.clone();
    let cancelled = std::thread::spawn(move || cancelling.cancel(&Viewer::anonymous(), id(1)));
    std::thread::sleep(Duration::from_millis(50));
    backend.disk.hold_syncs(false);
    assert!(cancelled.join().expect("it ends").expect("it is there").is_some());
    backend.settle();
    let step = executor.step(Requests::default(), 1).expect("it is there");
    assert!(step.leases.is_empty() && step.revoked.is_empty(), "{step:?}");
}

#[test]
fn a_sync_that_fails_is_the_last_one() {
    let backend = Journaled::on(SimDisk::default(), &Settings::default(), START);
    let _ = backend.broker.submit(vec![plain(id(1), "free")]).expect("it is there");
    backend.disk.fail_sync_after(0);
    let refused = backend.broker.submit(vec![plain(id(2), "free")]).expect_err("it is not written");
    assert!(refused.0.contains("cannot be written any more"), "{refused}");
    let syncs = backend.disk.syncs();
    assert!(backend.broker.submit(vec![plain(id(3), "free")]).is_err());
    assert!(backend.broker.record(&Viewer::anonymous(), id(2)).is_err());
    assert!(!backend.keeper.is_sound());
    assert_eq!(backend.disk.syncs(), syncs, "the same file is never tried again");
    // What comes next has what was answered; what was not may be there or not.
    let disk = backend.disk.clone();
    drop(backend);
    let again =
        scan(&mut disk.crash(&mut cofferdam::entropy::Entropy::Seeded(1)), &keys()).expect("it is whole");
    assert!(again.image.jobs.contains_key(&id(1)) && !again.image.jobs.contains_key(&id(3)));
}

#[test]
fn a_full_disk_takes_nothing_new_lets_what_runs_end_and_goes_on_by_itself() {
    let backend = Journaled::on(SimDisk::default(), &Settings::default(), START);
    let mut executor = backend.broker.consumer(0, Bell::silent());
    let large = |number| {
        let mut job = plain(id(number), "free");
        job.payload = Payload::octets(vec![0; 6_000]);
        backend.broker.submit(vec![job]).expect("it is there")
    };
    assert_eq!(large(1), [Submitted::New]);
    let lease = lease_of(&backend, &mut executor);
    backend.disk.set_capacity(Some(backend.disk.used()));
    let full =
        |answers: &[Submitted]| matches!(answers, [Submitted::Refused(cofferdam::ports::Refusal::DiskFull)]);
    let refused = (2..9).find(|number| full(&large(*number)));
    assert!(refused.is_some(), "there is no room");
    assert!(backend.broker.stats().expect("figures").full.is_some_and(|why| why.contains("full")));
    let outcome = Outcome::Succeeded(Payload::json(*b"1"), Default::default());
    let (job, delivery, builds_on) = (id(1), lease.jobs[0].delivery, Version::default());
    let commit = Commit { lease: lease.id, job, delivery, builds_on, outcome };
    executor.step(Requests { commits: vec![commit], ..Requests::default() }, 0).expect("it is there");
    let record = backend.broker.record(&Viewer::anonymous(), id(1)).expect("it is there").expect("a record");
    assert!(record.status.is_terminal(), "what runs ends");
    backend.disk.set_capacity(None);
    let goes_on = (0..50).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        large(20) == [Submitted::New]
    });
    assert!(goes_on, "there is room again");
}

/// The page has what these bytes are, in hexadecimal, under a name.
#[track_caller]
fn assert_vector(name: &str, bytes: &[u8]) {
    let page = include_str!("../docs/journal.md");
    let block = page.split_once(&format!("`{name}`:\n\n")).map(|(_, rest)| rest.split("\n\n").next());
    let digits: String = block.flatten().unwrap_or_default().split_whitespace().collect();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digits, hex, "{name} in docs/journal.md");
}

#[test]
fn the_page_of_the_format_has_these_bytes() {
    let root: [u8; 32] = std::array::from_fn(|index| index as u8);
    let envelope = Secret::new(root).expect("a secret").envelope();
    let keys = known_keys(std::path::Path::new("/"), &[envelope]).expect("a key");
    let mut header = Vec::new();
    put_header(&keys[0], 1, 1, &mut header);
    assert_vector("header", &header);
    let mut facts = Vec::new();
    put(&mut facts, &Fact::Paused("echo".into(), true));
    let turn = Turn { at: START, last_fence: 7, oldest: 1, facts: &facts };
    let mut frame = Vec::new();
    seal(&keys[0], 1, BEGIN as u64, 1, 0, &turn, &mut frame);
    assert_vector("frame", &frame);
    let spec = JobSpec {
        id: id(0xA1),
        owner: "ann".into(),
        handler: "echo".into(),
        ordering_key: None,
        trace: Trace { id: [0xB2; 16], span: [0xC3; 8], flags: 1, parent: Some([0xD4; 8]) },
        tracestate: Some("rojo=00f067aa0ba902b7".into()),
        submitted_at: START,
        timeout: Duration::from_secs(30),
        one_line: false,
    };
    let record = JobRecord {
        status: JobStatus::Running,
        deliveries: 1,
        started_at: Some(START),
        executor: Some("3".into()),
        ..JobRecord::queued(spec.into())
    };
    let fact = Job {
        record: record.clone(),
        payload: Some(Payload::json(*b"{}")),
        awaited: true,
        delivery: 1,
        order: 2,
        not_before: START,
        waits_since: START,
        is_leased: true,
        ..Job::queued(record.spec)
    };
    let mut job = Vec::new();
    put(&mut job, &Fact::Job(Box::new(fact)));
    assert_vector("job", &job);
    // What is written on the page is read as it says.
    let bytes = [header, frame].concat();
    assert_eq!(open_header(&keys, 1, &bytes), Some(1));
    let read = open_frame(&keys, 1, &bytes, BEGIN).expect("a frame");
    assert_eq!((read.sequence, read.synced, read.turn), (1, 0, turn));
}
