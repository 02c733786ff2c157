//! A service with a journal: what was answered outlives every process of it, and a disk that fails it.
//!
//! It guards the promises of `runtime.platform.queue.journal` with the real binary: kills at any moment, drains, full,
//! broken and damaged disks. A failure shows its seed; `COFFERDAM_SEED=N` replays the choice of the victims. With
//! `COFFERDAM_MINUTES=N` what is killed under load is killed again and again for so long.

#[path = "support/aftermath.rs"]
mod aftermath;
#[path = "../tools/fund-load/generator.rs"]
mod generator;
#[path = "support/oracle.rs"]
mod oracle;
#[path = "support/parity.rs"]
mod parity;
#[path = "support/phoenix.rs"]
mod phoenix;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::collections::HashSet;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use aftermath::{assert_text, shell_command, skipped};
use parity::assert_same;
use phoenix::{Mount, Phoenix, TWO, for_minutes, journal, journal_that_syncs, kill_whole, tool};
use program::{Folder, cofferdam, command, example, run, shown};
use serde_json::{Value, json};
use service::{
    Answer, Client, NoAnswer, PATIENCE, Service, Stopwatch, caller, kill, request, running, sleeper, until,
};

const INLINE: &str = "runtime.platform.bootstrap.mode=inline";
const ASYNC: &str = "Prefer: respond-async";
/// What ends everything does so by then, restarts and their backoff left out.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A start that must fail.
fn no_start(sets: &[&str]) -> (String, Duration) {
    let begun = Stopwatch::start();
    let sets = ["web.bind=127.0.0.1:0"].iter().chain(sets).flat_map(|set| ["--set", set]);
    let output = run(&mut command(&cofferdam(), ["serve"].into_iter().chain(sets)), b"");
    assert_refused(&output);
    (String::from_utf8_lossy(&output.stderr).into_owned(), begun.elapsed())
}

#[track_caller]
fn assert_refused(output: &Output) {
    assert!(output.status.code() == Some(1) && output.stdout.is_empty(), "no start: {}", shown(output));
}

fn keyed(handler: &str, key: &str, more: &[&str], body: &[u8]) -> Vec<u8> {
    let key = format!("Idempotency-Key: {key}");
    let headers: Vec<&str> = more.iter().copied().chain([&*key]).collect();
    request("POST", &format!("/v1/jobs/{handler}"), &headers, body)
}

/// Every record there is.
fn records(service: &Service) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let page = service.get(&format!("/v1/jobs?limit=1000{after}")).json();
        all.extend(page["jobs"].as_array().expect("a list").iter().cloned());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return all,
        }
    }
}

#[test]
fn each_job_has_one_end_and_counts_once_whatever_is_killed_under_load() {
    for_minutes(count_under_kills);
}

fn count_under_kills(seed: u64) {
    let folder = Folder::new();
    let phoenix = Phoenix::new(&example("embedder"), journal(&folder.path("journal")));
    let (service, answers) = phoenix.under_kills(seed, 6, |number, end| {
        let (mut client, mut answers) = (phoenix.connect(), Vec::new());
        for count in 0..1_200 {
            if Instant::now() >= end {
                break;
            }
            let key = format!("{number}-{count}");
            // Some are long enough to be running when something is killed.
            let job = keyed("count", &key, &[], ["0", "0", "0", "9"][count % 4].as_bytes());
            let answer = phoenix.ask(&mut client, &job);
            assert_eq!(answer.status, 200, "{answer:?}");
            answers.push((job, answer));
        }
        answers
    });
    let answers: Vec<_> = answers.into_iter().flatten().collect();
    let mut counted: Vec<usize> =
        answers.iter().map(|(_, answer)| answer.text().parse().expect("a number")).collect();
    counted.sort_unstable();
    println!("{} jobs", counted.len());
    assert!(counted.iter().copied().eq(1..=answers.len()), "each effect once: {counted:?}");
    let records = records(&service);
    assert!(records.iter().all(|record| record["status"] == "succeeded"), "{records:?}");
    let ids: HashSet<&str> = records.iter().filter_map(|record| record["id"].as_str()).collect();
    assert_eq!((records.len(), ids.len()), (answers.len(), answers.len()), "a key is one job");
    let mut client = service.connect();
    for (job, answer) in &answers {
        client.send(job);
        let again = client.read();
        assert_eq!(again.header("idempotency-replayed"), Some("true"), "{again:?}");
        let [first, second] =
            [answer, &again].map(|one| (one.status, one.text(), one.header("cofferdam-job-id")));
        assert_eq!(first, second);
    }
    assert_text(&service.post("/v1/jobs/count", "0"), &(answers.len() + 1).to_string());
}

#[test]
fn results_of_a_lane_are_the_oracles_bytes_whatever_is_killed_under_load() {
    for_minutes(decide_under_kills);
}

fn decide_under_kills(seed: u64) {
    let folder = Folder::new();
    // A crash of processes loses nothing there either.
    let journal = journal_that_syncs("interval", &folder.path("journal"));
    let phoenix = Phoenix::new(&example("fund-load"), journal);
    let input = generator::generate(seed, 30_000);
    let lines: Vec<&[u8]> = input.split_inclusive(|byte| *byte == b'\n').collect();
    let (service, mut ids) = phoenix.under_kills(seed, 1, |_, end| {
        let (mut client, mut ids) = (phoenix.connect(), Vec::new());
        // The next one follows once this one is accepted: the lane's order is the input's.
        for (number, line) in lines.iter().enumerate().take_while(|_| Instant::now() < end) {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let job = keyed("fund_load", &number.to_string(), &[ASYNC], line);
            let answer = phoenix.ask(&mut client, &job);
            assert_eq!(answer.status, 202, "{answer:?}");
            ids.push(answer.json()["id"].as_str().expect("an id").to_owned());
        }
        ids
    });
    let ids = ids.remove(0);
    service.record_when(ids.last().expect("some"), "succeeded");
    let (mut client, mut output) = (service.connect(), Vec::new());
    for id in &ids {
        let answer = client.request("GET", &format!("/v1/jobs/{id}/result"), &[], "");
        assert_eq!(answer.status, 200, "{answer:?}");
        output.extend_from_slice(&answer.body);
        output.push(b'\n');
    }
    let expected = oracle::decide(&lines[..ids.len()].concat(), oracle::Rules::Baseline);
    println!("{} lines", ids.len());
    assert_same(&output, &expected, "a lane under kills");
    assert_eq!(records(&service).len(), ids.len(), "a key is one job");
}

#[test]
fn what_is_kept_is_there_again_after_a_kill_of_everything() {
    let folder = Folder::new();
    let journal = journal(&folder.path("journal"));
    let embedder = example("embedder");
    let first = Service::of(&embedder, &[&journal, "handlers.flaky.max_deliveries=1"]);
    let finished = first.submit("/v1/jobs/echo", &[], "\"kept\"");
    let dead = first.submit("/v1/jobs/flaky", &[], "3");
    let before = [first.record_when(&finished, "succeeded"), first.record_when(&dead, "dead")];
    let begun = Instant::now();
    let delayed = first.submit("/v1/jobs/echo?delay_ms=10000", &[], "late");
    assert_eq!(first.post("/v1/handlers/starts/pause", "").status, 200);
    let paused = first.submit("/v1/jobs/starts", &[], "");
    let key = ["Idempotency-Key: mine"];
    let keyed = |service: &Service, body: &str| service.request("POST", "/v1/jobs/echo", &key, body);
    let answered = keyed(&first, "one payload");
    for number in 1..=3 {
        assert_text(&first.post("/v1/jobs/count", "0"), &number.to_string());
    }
    // The first holds the lane when everything is killed, and the others wait behind it.
    let lane: Vec<String> =
        ["2500", "0", "1", "2", "0", "3"].map(|ms| first.submit("/v1/jobs/count", &[], ms)).into();
    first.record_when(&lane[0], "running");
    let slow = |service: &Service, headers: &[&str]| {
        let mut client = service.connect();
        let headers: Vec<&str> = headers.iter().chain(&["Idempotency-Key: slow"]).copied().collect();
        client.send(request("POST", "/v1/jobs/sleep", &headers, r#"{"ms":1200}"#));
        client.try_read(AT_ONCE)
    };
    assert_eq!(slow(&first, &[ASYNC]).expect("an answer").status, 202);
    kill_whole(first);

    let second = Service::of(&embedder, &[&journal, "runtime.platform.queue.retry.base_ms=1"]);
    let waiting = second.record(&paused);
    assert_eq!((&waiting["status"], &waiting["waiting_for"]["reason"]), (&json!("queued"), &json!("paused")));
    let waiting = second.record(&lane[5]);
    assert_eq!(waiting["waiting_for"], json!({"reason": "lane", "head": lane[0]}), "{waiting}");
    assert_eq!(second.record(&delayed)["waiting_for"]["reason"], "delay");
    assert!(begun.elapsed() < Duration::from_secs(10), "too late to tell: {:?}", begun.elapsed());
    assert_text(&slow(&second, &[]).expect("who joins a job of before is told"), r#"{"slept_ms":1200}"#);
    assert_eq!([second.record(&finished), second.record(&dead)], before);
    assert_eq!(second.get(&format!("/v1/jobs/{dead}/payload")).text(), "3");
    assert_eq!(second.post(&format!("/v1/jobs/{dead}/retry"), "").status, 202);
    assert_eq!(second.record_when(&dead, "succeeded")["result"], 3);
    let again = keyed(&second, "one payload");
    assert_eq!((again.text(), again.header("idempotency-replayed")), (answered.text(), Some("true")));
    assert_eq!(again.header("cofferdam-job-id"), answered.header("cofferdam-job-id"));
    assert_eq!(keyed(&second, "another").code(), "idempotency_mismatch");
    for (index, id) in lane.iter().enumerate() {
        let record = second.record_when(id, "succeeded");
        assert_eq!((&record["result"], &record["deliveries"]), (&json!(4 + index), &json!(1)), "{record}");
    }
    assert_eq!(second.post("/v1/handlers/starts/resume", "").status, 200);
    second.record_when(&paused, "succeeded");
    second.record_when(&delayed, "succeeded");
    assert!(begun.elapsed() >= Duration::from_secs(10), "its delay is its own: {:?}", begun.elapsed());
    kill_whole(second);
    // A key outlives the result that it stands for.
    let third = Service::of(&embedder, &[&journal, INLINE, "runtime.platform.reply.result_ttl_seconds=1"]);
    until("the result is gone", PATIENCE, || {
        (keyed(&third, "one payload").code() == "result_gone").then_some(())
    });
    assert_text(&third.post("/v1/jobs/count", "0"), "10");
}

#[test]
fn a_web_process_that_is_killed_is_replaced_by_one_that_knows_what_it_knew() {
    let folder = Folder::new();
    let few = "handlers.sleep.max_deliveries=1";
    let service = Service::of(&example("embedder"), &[&journal(&folder.path("journal")), few]);
    let executor = service.child("executor");
    let replaced = || {
        let web = service.child("web");
        kill(web);
        until("web is replaced", PATIENCE, || (service.child("web") != web).then_some(()));
    };
    assert_text(&service.post("/v1/jobs/count", "0"), "1");
    let count = service.submit("/v1/jobs/count", &[], "3000");
    let mut waits = caller(&service, "/v1/jobs/count", "0");
    running(&service, 1);
    service.record_when(&count, "running");
    until("two wait", PATIENCE, || (records(&service).len() == 3).then_some(()));
    replaced();
    assert_eq!(waits.try_read(PATIENCE), Err(NoAnswer::Closed));
    let record = service.record_when(&count, "succeeded");
    assert_eq!((&record["result"], &record["deliveries"]), (&json!(2), &json!(1)), "{record}");
    assert_text(&service.post("/v1/jobs/count", "0"), "4");
    assert_eq!(service.child("executor"), executor, "executors outlive web");
    // Two of its processes may be lost for each delivery that a job may have: then it may be what takes them along.
    let id = service.submit("/v1/jobs/sleep", &[], r#"{"ms":600000}"#);
    service.record_when(&id, "running");
    replaced();
    assert_eq!(service.record_when(&id, "running")["deliveries"], 1);
    replaced();
    let record = service.record_when(&id, "dead");
    assert_eq!(record["error"]["cause"], "executor_lost", "{record}");
}

#[test]
fn a_drain_leaves_what_is_queued_to_the_next_start_uncounted() {
    let folder = Folder::new();
    let sets = [&*journal(&folder.path("journal")), TWO];
    let service = Service::of(&example("embedder"), &sets);
    let lane = ["2000", "8000", "0"].map(|ms| service.submit("/v1/jobs/count", &[], ms));
    let delayed = service.submit("/v1/jobs/echo?delay_ms=500", &["Content-Type: application/json"], "1");
    service.record_when(&lane[0], "running");
    let begun = Stopwatch::start();
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(begun.elapsed() < Duration::from_secs(7), "the second did not begin: {:?}", begun.elapsed());
    let service = Service::of(&example("embedder"), &sets);
    let mut ids = lane.to_vec();
    ids.push(delayed);
    for (id, result) in ids.iter().zip([1, 2, 3, 1]) {
        let record = service.record_when(id, "succeeded");
        assert_eq!((&record["result"], &record["deliveries"]), (&json!(result), &json!(1)), "{record}");
    }
    assert_eq!(service.metric("queue_redelivered_total"), 0.0);
}

/// Submits large jobs that wait until one is refused; the ids of those that were accepted.
fn fill(service: &Service) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..1_000 {
        let answer = service.request("POST", "/v1/jobs/echo?delay_ms=600000", &[ASYNC], vec![b'x'; 100_000]);
        if answer.status != 202 {
            assert_full(&answer);
            return ids;
        }
        ids.push(answer.json()["id"].as_str().expect("an id").to_owned());
    }
    panic!("it is never full");
}

#[track_caller]
fn assert_full(answer: &Answer) {
    assert_eq!((answer.status, answer.code().as_str()), (503, "queue_full"), "{answer:?}");
    assert!(answer.text().contains("disk"), "{answer:?}");
}

#[track_caller]
fn has_room_again(service: &Service) {
    until("it is ready again", PATIENCE, || (service.get("/readyz").status == 200).then_some(()));
    assert_text(&service.post("/v1/jobs/echo", "room"), "room");
}

#[test]
fn a_full_disk_refuses_what_is_new_ends_what_runs_and_is_over_by_itself() {
    let Some(disk) = Mount::new(None, "size=8m") else { return };
    let ballast = disk.at.join("ballast");
    let more = disk.at.join("more");
    std::fs::write(&ballast, vec![1; 2 << 20]).expect("there is room");
    std::fs::write(&more, vec![1; 2 << 20]).expect("there is room");
    // A cancelled job is kept with its payload for a second: then its room is free.
    let sets = [&*journal(&disk.at.join("journal")), "runtime.platform.reply.failed_ttl_seconds=1"];
    let service = Service::start(&sets);
    let running_id = service.submit("/v1/jobs/sleep", &[], r#"{"ms":2500}"#);
    let mut waits = sleeper(&service, 2_500);
    running(&service, 2);
    let mut accepted = fill(&service);
    assert!(accepted.len() > 5, "{}", accepted.len());
    assert_full(&service.get("/readyz"));
    assert_full(&service.post("/v1/jobs/echo", "1"));
    assert_text(&waits.read(), r#"{"slept_ms":2500}"#);
    service.record_when(&running_id, "succeeded");
    assert_eq!(service.get("/healthz").status, 200);
    std::fs::remove_file(&ballast).expect("our own file");
    has_room_again(&service);
    accepted.extend(fill(&service));
    for id in accepted.drain(..accepted.len() / 2) {
        assert_eq!(service.request("DELETE", &format!("/v1/jobs/{id}"), &[], "").status, 200);
    }
    has_room_again(&service);
    accepted.extend(fill(&service));
    kill_whole(service);
    // A start on a full disk is one.
    let service = Service::start(&sets);
    std::fs::remove_file(&more).expect("our own file");
    has_room_again(&service);
    for id in &accepted {
        assert_eq!(service.record(id)["status"], "queued");
        assert_eq!(service.get(&format!("/v1/jobs/{id}/payload")).body.len(), 100_000);
    }
    assert_eq!(service.record(&running_id)["status"], "succeeded");
}

/// One turn of several large jobs: more than a segment of these tests.
fn large_batch(service: &Service) -> Client {
    let line = format!("{{\"ms\":1,\"x\":\"{}\"}}\n", "x".repeat(900_000));
    let mut client = service.connect();
    client.send(request("POST", "/v1/batch/sleep", &["Content-Type: application/x-ndjson"], line.repeat(6)));
    client
}

#[test]
fn a_batch_that_finds_no_room_holds_up_nothing_that_runs() {
    let Some(disk) = Mount::new(None, "size=8m") else { return };
    let service = Service::start(&[&journal(&disk.at.join("journal"))]);
    let ballast = disk.at.join("ballast");
    std::fs::write(&ballast, vec![1; 5 << 20]).expect("there is room");
    let mut waits = sleeper(&service, 2_000);
    running(&service, 1);
    let mut batch = large_batch(&service);
    until("the disk is full", PATIENCE, || (service.get("/readyz").status == 503).then_some(()));
    assert_text(&waits.try_read(AT_ONCE).expect("what runs ends"), r#"{"slept_ms":2000}"#);
    std::fs::remove_file(&ballast).expect("our own file");
    has_room_again(&service);
    assert_eq!(batch.read().status, 200);
}

#[test]
fn a_limit_of_file_sizes_is_no_start_or_a_full_disk_and_no_death() {
    let folder = Folder::new();
    let set = journal(&folder.path("journal"));
    let limited = |blocks: usize| {
        let mut command = shell_command(&format!("ulimit -f {blocks}"), &cofferdam());
        command.args(["serve", "--set", "web.bind=127.0.0.1:0", "--set", &set]);
        command
    };
    // In blocks of 512 bytes. Less than a segment:
    let begun = Stopwatch::start();
    let output = run(&mut limited(1_024), b"");
    assert_refused(&output);
    assert!(begun.elapsed() < AT_ONCE, "{}", shown(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("the journal: there is no room to go on: File too large"), "{said}");
    // Less than a turn:
    let service = Service::from(limited(3_072).spawn().expect("a shell"));
    let kept = service.submit("/v1/jobs/echo?delay_ms=600000", &[], "kept");
    let web = service.child("web");
    let mut batch = large_batch(&service);
    let _ = batch.try_read(Duration::from_secs(1));
    let other = caller(&service, "/v1/jobs/echo", "other").try_read(AT_ONCE);
    assert_eq!(service.child("web"), web, "no signal ends it");
    let is_answered = other.as_ref().is_ok_and(|other| [200, 503].contains(&other.status));
    assert!(is_answered, "it is served, or refused: {other:?}");
    kill_whole(service);
    assert_eq!(Service::start(&[&set]).record(&kept)["status"], "queued");
}

#[test]
fn a_disk_that_turns_read_only_ends_it_at_once_and_loses_nothing() {
    let Some(disk) = Mount::new(Some(24 << 20), "loop,errors=remount-ro") else { return };
    let dir = disk.at.join("journal");
    let set = journal(&dir);
    let service = Service::start(&[&set]);
    let done = service.submit("/v1/jobs/echo", &[], "done");
    service.record_when(&done, "succeeded");
    let waits = service.submit("/v1/jobs/echo?delay_ms=600000", &[], "waits");
    let source =
        Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&disk.at).output().expect("findmnt");
    let source = String::from_utf8_lossy(&source.stdout).trim().replace("/dev/", "");
    // As the kernel does to a disk that has an error; a plain remount is refused while files are open.
    if std::fs::write(format!("/sys/fs/ext4/{source}/trigger_fs_error"), "1").is_err() {
        return skipped("this kernel's ext4 makes no errors");
    }
    let begun = Stopwatch::start();
    let mut client = service.connect();
    client.send(request("POST", "/v1/jobs/echo", &[ASYNC], "lost"));
    let answer = client.try_read(PATIENCE);
    let ended = service.ended();
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    let why = "the journal cannot be written any more: Read-only file system";
    assert!(ended.stderr.contains(why) && !ended.stderr.contains("lifecycle.restarted"), "{}", ended.stderr);
    assert!(answer.as_ref().map_or(true, |answer| answer.status >= 500), "it was never kept: {answer:?}");
    let (said, took) = no_start(&[&set]);
    assert!(said.contains("the journal: ") && said.contains("Read-only file system"), "{said}");
    assert!(took < AT_ONCE, "{took:?}");
    assert!(tool("umount", &[], &[&disk.at]));
    // It repairs the file system, which it says by its exit code.
    let _ = Command::new("e2fsck").arg("-p").arg(&disk.image).output();
    assert!(disk.again("loop"));
    let service = Service::start(&[&set]);
    assert_eq!(service.record(&done)["status"], "succeeded");
    assert_eq!(service.record(&waits)["status"], "queued");
    assert_eq!(records(&service).len(), 2);
}

/// Segments of a journal, the oldest first.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(dir).expect("a journal").map(|entry| entry.expect("a name").path());
    let mut segments: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|of| of == "log")).collect();
    segments.sort();
    segments
}

#[test]
fn a_damaged_journal_is_no_start_and_is_named_at_once() {
    let folder = Folder::new();
    let dir = folder.path("journal");
    let set = journal(&dir);
    let service = Service::start(&[&set]);
    for _ in 0..20 {
        service.submit("/v1/jobs/echo?delay_ms=600000", &[], vec![b'x'; 100_000]);
    }
    kill_whole(service);
    let segments = segments(&dir);
    assert!(segments.len() > 1, "{segments:?}");
    for segment in [&segments[0], &segments[segments.len() - 1]] {
        let whole = std::fs::read(segment).expect("our own file");
        let mut bytes = whole.clone();
        bytes[50_000] ^= 1;
        std::fs::write(segment, bytes).expect("our own file");
        let (said, took) = no_start(&[&set]);
        let name = segment.file_name().and_then(|name| name.to_str()).expect("a name");
        assert!(said.contains(&format!("the journal: {name}: at byte ")), "{said}");
        assert!(took < AT_ONCE && !said.contains("lifecycle.restarted"), "{took:?}: {said}");
        assert!(no_start(&[&set, INLINE]).0.contains(&format!("the journal: {name}: at byte ")));
        std::fs::write(segment, whole).expect("our own file");
    }
    let secret = folder.private_file("secret", aftermath::SECRET);
    let secret = format!("runtime.platform.execution_ipc.auth.secret_file={}", secret.display());
    assert!(no_start(&[&set, &secret]).0.contains("signed with another secret"));
    // The same with all that is beneath it gone; and whole again it starts.
    std::fs::rename(&segments[0], folder.path("away")).expect("our own file");
    assert!(no_start(&[&set]).0.contains("is missing"));
    std::fs::rename(folder.path("away"), &segments[0]).expect("our own file");
    assert_eq!(records(&Service::start(&[&set])).len(), 20);
}

#[test]
fn a_directory_that_others_have_too_is_refused() {
    let folder = Folder::new();
    let dir = folder.path("journal");
    let set = journal(&dir);
    let refused = |why: &str| {
        let (said, took) = no_start(&[&set]);
        assert!(said.contains(&format!("the journal: {}: ", dir.display())) && said.contains(why), "{said}");
        assert!(took < AT_ONCE && !said.contains("lifecycle.restarted"), "{took:?}: {said}");
    };
    let mut service = Service::start(&[&set]);
    refused("another process has it");
    // It is not disturbed by that.
    assert_text(&service.post("/v1/jobs/echo", "here"), "here");
    kill_whole(service);
    for mode in [0o770, 0o707] {
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(mode)).expect("our own folder");
        refused("others can write to it");
    }
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o700)).expect("our own folder");
    if rustix::process::geteuid().is_root() {
        chown(&dir, Some(65_534), None).expect("root may");
        refused("belongs to user 65534");
        chown(&dir, Some(0), None).expect("root may");
    } else {
        skipped("only root can give a directory away");
    }
    let moved = folder.path("moved");
    std::fs::rename(&dir, &moved).expect("our own folder");
    std::os::unix::fs::symlink(&moved, &dir).expect("our own folder");
    refused("is a symbolic link: name what it leads to");
    std::fs::remove_file(&dir).and_then(|()| std::fs::rename(&moved, &dir)).expect("our own folder");
    service = Service::start(&[&set]);
    assert_text(&service.post("/v1/jobs/echo", "here"), "here");
}
