//! A journal under pressure: what is over is left behind as fast as it comes, a full disk is said and holds nobody for ever, and a
//! start has lanes, leases and losses as they were.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use cofferdam::bell::Bell;
use cofferdam::clock::Clock;
use cofferdam::entropy::Entropy;
use cofferdam::job::{JobId, JobStatus, Payload};
use cofferdam::journal::facts::{Fact, Thing, put, read_all};
use cofferdam::journal::{Image, Log, frame};
use cofferdam::memory::broker::Broker;
use cofferdam::memory::{Keeping, MemoryBroker};
use cofferdam::ports::{
    BackendError, Consumer, Idempotency, NewJob, Producer, Refusal, Requests, Seat, Submitted, Viewer,
};

use support::conformance::{Backend, START, Settings, plain};
use support::journaled::{Journaled, keys, open};
use support::sim_disk::SimDisk;
use support::stopwatch::Stopwatch;

mod support {
    #[allow(dead_code, unused_macros, reason = "the laws themselves are not run here")]
    #[macro_use]
    pub mod conformance;
    pub mod journaled;
    pub mod sim_disk;
    pub mod stopwatch;
}

/// What is answered at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(10);

fn id(number: u128) -> JobId {
    JobId(number.to_be_bytes())
}

fn large(number: u128, bytes: usize) -> NewJob {
    NewJob { payload: Payload::octets(vec![1; bytes]), ..plain(id(number), "free") }
}

type Answers = Receiver<Result<Vec<Submitted>, BackendError>>;

fn submit_later(backend: &Journaled, jobs: Vec<NewJob>) -> Answers {
    let (send, answers) = channel();
    backend.broker.submit_later(jobs, Box::new(move |answer| _ = send.send(answer)));
    backend.keeper.flush();
    answers
}

#[test]
fn segments_that_go_together_go_one_after_the_other() {
    for seed in 0..400_u64 {
        let disk = SimDisk::default();
        let (mut log, ..) = open(&disk).expect("an empty disk");
        let mut facts = Vec::new();
        put(&mut facts, &Fact::Paused("h".repeat(9_000).into(), true));
        for number in 0..6 {
            log.append(START, 1, &facts, &mut vec![Thing::Job(id(number))]).expect("there is room");
            log.sync().expect("it can");
        }
        while log.outdated(0).is_some() {}
        disk.fail_power_after(seed % 20);
        let _ = log.append(START, 1, &facts, &mut Vec::new()).and_then(|()| log.sync());
        let left = disk.crash(&mut Entropy::Seeded(seed));
        assert!(open(&left).is_ok(), "{seed}: {:?}", open(&left).err());
    }
}

#[test]
fn what_is_over_is_left_behind_as_fast_as_it_comes() {
    const SEGMENT: u64 = 4 << 20;
    let disk = SimDisk::default();
    let settings = Settings { retain_records: 10, retain_bytes: 1 << 20, ..Settings::default() };
    let (log, image, _) = Log::open(Box::new(disk.clone()), keys(), SEGMENT).expect("an empty disk");
    let mut broker =
        Broker::new(settings.rules(), settings.handlers.clone(), vec![64; 2], Entropy::Seeded(1));
    broker.keep_journal(image, START).expect("it is empty");
    let keeping = Keeping { interval: None, is_inline: false };
    let kept = MemoryBroker::keep(broker, Clock::manual(START), settings.group_names(), log, keeping);
    let (broker, _keeper) = kept.expect("there are threads");
    // Some that stay, and many that do not.
    for number in 0..16 {
        let stays = NewJob { delay: Duration::from_secs(3_600), ..large(number, 512 << 10) };
        assert_eq!(broker.submit(vec![stays]), Ok(vec![Submitted::New]));
    }
    let (mut used, mut live) = (0, 0);
    for number in 0..200 {
        let two = [100 + 2 * number, 101 + 2 * number];
        let _ = broker.submit(two.map(|number| large(number, 256 << 10)).into()).expect("it is there");
        for number in two {
            broker.with(|broker, now| broker.cancel(&Viewer::anonymous(), id(number), now));
        }
        live = live.max(broker.with(|broker, _| broker.live_bytes()));
        used = used.max(disk.used());
    }
    assert!(used <= 2 * live + 6 * SEGMENT, "{used} bytes for {live}");
}

#[test]
fn turns_are_written_while_a_sync_is_under_way_and_an_interval_waits_for_none() {
    for interval in [None, Some(Duration::ZERO)] {
        let backend = Journaled::that_syncs(interval, SimDisk::default(), &Settings::default(), START);
        backend.disk.hold_syncs(true);
        let begun = Stopwatch::start();
        let answers = [1, 2, 3].map(|number| {
            let answer = submit_later(&backend, vec![plain(id(number), "free")]);
            // Where the journal's thread has the log at this moment, it is the next turn.
            while jobs_on(&backend.disk) < number as usize {
                assert!(begun.elapsed() < SOON, "nothing waits for a sync to be written");
                backend.keeper.flush();
            }
            answer
        });
        let are_told =
            answers.each_ref().map(|answer| answer.recv_timeout(Duration::from_millis(50)).is_ok());
        assert_eq!(are_told, [interval.is_some(); 3], "with {interval:?}");
        let before = backend.disk.syncs();
        backend.disk.hold_syncs(false);
        if interval.is_none() {
            answers
                .iter()
                .for_each(|answer| assert!(answer.recv_timeout(SOON).is_ok_and(|told| told.is_ok())));
            assert!(
                backend.disk.syncs() <= before + 2,
                "the second sync is of all that came during the first one"
            );
        }
    }
}

/// How many jobs a process would find that begins now.
fn jobs_on(disk: &SimDisk) -> usize {
    open(&disk.kill()).expect("it is whole").1.jobs.len()
}

/// No room beyond what is taken, and that is used up: by jobs that stay, and what ends might have said.
fn fill(backend: &Journaled) {
    backend.disk.set_capacity(Some(backend.disk.used()));
    let stays = |number| NewJob { delay: Duration::from_secs(3_600), ..large(number, 6_000) };
    let is_new = |number| backend.broker.submit(vec![stays(number)]) == Ok(vec![Submitted::New]);
    assert!((1_000..1_100).any(|number| !is_new(number)), "there is no more room for jobs");
    let broker = backend.broker.clone();
    let said = std::thread::spawn(move || (0..2_000).all(|at| broker.pause("narrow", at % 2 == 0).is_ok()));
    assert!(!said.join().expect("it ends"), "at last there is no room for ends either, and that is said");
}

#[test]
fn a_disk_that_is_really_full_is_said_to_everybody_and_holds_up_no_drain() {
    let backend = Journaled::on(SimDisk::default(), &Settings::default(), START);
    fill(&backend);
    let answer = submit_later(&backend, vec![plain(id(1), "free")]).recv_timeout(SOON);
    assert_eq!(answer, Ok(Ok(vec![Submitted::Refused(Refusal::DiskFull)])));
    assert!(backend.broker.record(&Viewer::anonymous(), id(1)).is_err(), "who asks is told as well");
    let begun = Stopwatch::start();
    backend.keeper.cut_off();
    backend.keeper.close();
    assert!(begun.elapsed() < SOON);
}

#[test]
fn jobs_that_find_no_room_are_refused_and_leave_nothing_and_what_runs_ends() {
    let backend = Journaled::on(SimDisk::default(), &Settings::default(), START);
    assert_eq!(backend.broker.submit(vec![plain(id(1), "free")]), Ok(vec![Submitted::New]));
    let before = backend.sizes();
    // More than a segment: it would need a file of its own.
    backend.disk.set_capacity(Some(backend.disk.used()));
    backend.disk.hold_syncs(true);
    let paused = std::thread::spawn({
        let broker = backend.broker.clone();
        move || broker.pause("narrow", true)
    });
    std::thread::sleep(Duration::from_millis(50));
    let key = || Some(Idempotency { key: "k".into(), fingerprint: [1; 32] });
    let mut new: Vec<NewJob> = (2..5).map(|number| large(number, 9_000)).collect();
    new[1].idempotency = key();
    let three = submit_later(&backend, new);
    let joins = NewJob { idempotency: key(), ..plain(id(8), "free") };
    let joins = submit_later(&backend, vec![joins]);
    let one = submit_later(&backend, vec![plain(id(9), "nobody")]);
    backend.disk.hold_syncs(false);
    let refused = Submitted::Refused(Refusal::DiskFull);
    assert_eq!(joins.recv_timeout(SOON), Ok(Ok(vec![refused.clone()])), "what it joined never was");
    assert_eq!(three.recv_timeout(SOON), Ok(Ok(vec![refused; 3])));
    assert_eq!(one.recv_timeout(SOON), Ok(Ok(vec![Submitted::Refused(Refusal::UnknownHandler)])));
    assert_eq!(paused.join().expect("it ends"), Ok(true));
    backend.broker.with(|broker, _| broker.check_invariants());
    assert_eq!(backend.sizes(), before, "they are as if they had never come");
    let again = Journaled::on(backend.disk.kill(), &Settings::default(), START);
    assert_eq!(again.sizes(), before);
}

#[test]
fn a_disk_that_is_full_of_what_is_over_has_room_again_by_itself() {
    let settings = Settings::default();
    let backend = Journaled::on(SimDisk::default(), &settings, START);
    backend.disk.set_capacity(Some(backend.disk.used() + 40_000));
    let stays = |number| NewJob { delay: Duration::from_secs(3_600), ..large(number, 900) };
    let is_new = |number| backend.broker.submit(vec![stays(number)]) == Ok(vec![Submitted::New]);
    let accepted = (1_000..2_000).take_while(|number| is_new(*number)).count() as u128;
    assert!((3..1_000).contains(&accepted), "{accepted} found room");
    for number in 1_000..1_000 + accepted {
        backend.broker.cancel(&Viewer::anonymous(), id(number)).expect("ends find room");
    }
    backend.advance(2 * settings.failed_ttl);
    backend.keeper.tick(0);
    let begun = Stopwatch::start();
    while backend.broker.submit(vec![plain(id(1), "free")]) != Ok(vec![Submitted::New]) {
        assert!(begun.elapsed() < SOON, "nothing lives, and nothing is accepted");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// It is the disk that says nothing, not the executor.
#[test]
fn a_lease_that_does_not_leave_for_long_has_all_its_time_when_it_does() {
    let disk = SimDisk::default();
    let settings = Settings::default();
    let backend = Journaled::on(disk, &settings, START);
    assert_eq!(backend.broker.submit(vec![plain(id(1), "once")]), Ok(vec![Submitted::New]));
    backend.disk.hold_syncs(true);
    let mut executor = backend.broker.consumer(0, Bell::silent());
    assert!(executor.step(Requests::default(), 1).expect("it is there").leases.is_empty());
    let long = Duration::from_secs(24 * 3_600);
    backend.advance(long);
    backend.keeper.tick(0);
    backend.disk.hold_syncs(false);
    backend.settle();
    assert_eq!(executor.step(Requests::default(), 1).expect("it is there").leases.len(), 1);
    let status = || {
        let record =
            backend.broker.record(&Viewer::anonymous(), id(1)).expect("it is there").expect("a record");
        (record.status, record.deliveries)
    };
    assert_eq!(status(), (JobStatus::Running, 1));
    backend.advance(long);
    backend.keeper.tick(0);
    backend.settle();
    assert_ne!(status().0, JobStatus::Running, "from then on its time passes");
}

#[test]
fn what_no_frame_could_carry_any_more_is_refused_by_name() {
    let disk = SimDisk::default();
    let backend = Journaled::on(disk.clone(), &Settings::default(), START);
    let job = NewJob { delay: Duration::from_secs(60), ..large(7, 3_000) };
    assert_eq!(backend.broker.submit(vec![job]), Ok(vec![Submitted::New]));
    let (_, image, _) = open(&disk.kill()).expect("it is whole");
    let settings = Settings::default();
    let rules = cofferdam::ports::Rules { max_payload: 2_999, ..settings.rules() };
    let mut broker =
        Broker::new(rules, settings.handlers.clone(), vec![64; settings.groups], Entropy::Seeded(1));
    let why = broker.keep_journal(image, START).expect_err("it is too large");
    assert!(why.contains(&id(7).to_string()) && why.contains("max_payload_bytes"), "{why}");
}

#[test]
fn a_start_serves_the_oldest_first_as_before() {
    let disk = SimDisk::default();
    let backend = Journaled::on(disk.clone(), &Settings::default(), START);
    for number in 0..50 {
        backend.advance(Duration::from_millis(1));
        assert_eq!(backend.broker.submit(vec![plain(id(number), "free")]), Ok(vec![Submitted::New]));
    }
    let backend = Journaled::on(disk.kill(), &Settings::default(), START.plus(Duration::from_secs(1)));
    let mut executor = backend.broker.consumer(0, Bell::silent());
    let mut order = Vec::new();
    for _ in 0..3 {
        let step = executor.step(Requests::default(), 50).expect("it is there");
        order.extend(step.leases.iter().map(|lease| lease.jobs[0].spec.id));
        backend.settle();
    }
    assert!(order.len() == 50 && order.is_sorted(), "{order:?}");
}

#[test]
fn a_lease_that_never_left_and_an_end_of_our_process_count_no_delivery() {
    let disk = SimDisk::default();
    let backend = Journaled::on(disk.clone(), &Settings::default(), START);
    assert_eq!(backend.broker.submit(vec![plain(id(1), "once")]), Ok(vec![Submitted::New]));
    backend.disk.hold_syncs(true);
    let mut executor = backend.broker.consumer(0, Bell::silent());
    assert!(executor.step(Requests::default(), 1).expect("it is there").leases.is_empty());
    drop(executor);
    backend.disk.hold_syncs(false);
    let stands = |backend: &Journaled| {
        let record = backend.broker.record(&Viewer::anonymous(), id(1)).expect("it is there");
        record.map(|record| (record.status, record.deliveries))
    };
    assert_eq!(
        stands(&backend),
        Some((JobStatus::Queued, 0)),
        "its executor has gone before it had the lease"
    );
    let mut executor = backend.broker.consumer(0, Bell::silent());
    let _ = executor.step(Requests::default(), 1).expect("it is there");
    backend.settle();
    assert_eq!(executor.step(Requests::default(), 1).expect("it is there").leases.len(), 1);
    // Our process ends, and with it the connection.
    backend.keeper.close();
    assert!(backend.keeper.is_sound(), "that is no failure of the journal: who takes its place may go on");
    drop(executor);
    let again = Journaled::on(disk.kill(), &Settings::default(), START);
    assert_eq!(stands(&again), Some((JobStatus::Queued, 0)), "it is to be delivered once, and comes again");
}

#[test]
fn a_payload_that_looks_like_frames_costs_a_start_nothing() {
    let mut bytes = vec![0_u8; 4 << 20];
    // Every 12 bytes the outline of a frame that reaches nearly to the end.
    for at in (0..bytes.len() - 200).step_by(12) {
        let length = (bytes.len() - at - 12) as u32;
        bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
        bytes[at + 4..at + 12].copy_from_slice(&100_u64.to_be_bytes());
    }
    let begun = Stopwatch::start();
    assert!(frame::is_cut(&keys(), 1, &bytes, 0, 50));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn a_job_that_was_forgotten_and_is_submitted_again_in_the_same_turn_is_kept() {
    let (settings, mut image) = (Settings::default(), Image::default());
    let handlers = settings.handlers.clone();
    let mut broker = Broker::new(settings.rules(), handlers, vec![64; settings.groups], Entropy::Seeded(1));
    broker.keep_journal(Image::default(), START).expect("its handlers are there");
    let mut take = |broker: &mut Broker| {
        let read = read_all(&broker.take_facts().bytes, |fact| {
            image.apply(fact);
            Ok(())
        });
        read.expect("it was just written");
        image.jobs.contains_key(&id(1))
    };
    assert_eq!(broker.submit(plain(id(1), "free"), START), Submitted::New);
    assert!(take(&mut broker), "it was accepted");
    broker.cancel(&Viewer::service(), id(1), START);
    let later = START.plus(2 * settings.failed_ttl);
    broker.tick(later);
    assert_eq!(broker.submit(plain(id(1), "free"), later), Submitted::New, "its record is gone");
    assert!(take(&mut broker), "it was accepted again");
}
