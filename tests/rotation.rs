//! SIGHUP and the secret: another one takes effect in a service that runs, no job is lost or comes twice, and a file that may
//! not be used changes nothing. With memory backends, with a journal, and inline.
//!
//! It guards who is let in afterwards: an executor that comes with the secret before is a stranger.

#[path = "support/aftermath.rs"]
mod aftermath;
#[path = "support/parity.rs"]
mod parity;
#[path = "support/phoenix.rs"]
mod phoenix;
#[path = "support/program.rs"]
mod program;
#[path = "support/secret_file.rs"]
mod secret_file;
#[path = "support/service.rs"]
mod service;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aftermath::{assert_counted, assert_text, counters};
use cofferdam::channel::ExecutorEnd;
use cofferdam::channel::keys::GroupSecret;
use cofferdam::clock::monotonic_millis;
use cofferdam::config::secret::Secret;
use phoenix::{TWO, journal, kill_whole};
use program::{Folder, cofferdam, command, example, run};
use secret_file::{
    ANOTHER, AS_BEFORE, NEW, NEWER, OLD, REFUSED, SecretFile, THE_SAME, assert_nothing_refused, assert_over,
    replaced,
};
use service::{
    Client, Done, PATIENCE, Service, all_children, free_address, is_alive, kill, running, sleeper, until,
};

const INLINE: &str = "runtime.platform.bootstrap.mode=inline";

/// True if the channel takes whoever comes with the secret that this root gives the group.
fn lets_in(channel: SocketAddr, root: &str) -> bool {
    let root = Secret::parse(root.as_bytes()).expect("a secret").remove(0);
    let secret = GroupSecret::derive(&root, "execution");
    let nonce: [u8; 32] = std::array::from_fn(|_| cofferdam::entropy::Entropy::system().bytes::<1>()[0]);
    let mut end = ExecutorEnd::new(&secret, 0, nonce, 30_000, monotonic_millis());
    let mut stream = TcpStream::connect(channel).expect("the channel listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.write_all(end.output(monotonic_millis())).expect("it is taken");
    let mut m2 = [0; 512];
    let length = service::read(&mut stream, &mut m2).unwrap_or(0);
    length > 0 && end.received(&m2[..length], &secret, monotonic_millis()).is_ok()
}

/// Callers of `echo` that are all answered while the work is done; says how many were.
fn under_load(service: &Service, work: impl FnOnce(&dyn Fn(usize))) -> usize {
    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for caller in 0..3 {
            let (stop, count) = (&stop, &count);
            scope.spawn(move || {
                let mut client: Client = service.connect();
                for number in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let body = format!("[{caller},{number}]");
                    assert_text(&client.request("POST", "/v1/jobs/echo", &[], &body), &body);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _done = Done(&stop);
        work(&|more| {
            let before = count.load(Ordering::Relaxed);
            until("callers are answered", PATIENCE, || {
                (count.load(Ordering::Relaxed) >= before + more).then_some(())
            });
        });
    });
    count.into_inner()
}

#[test]
fn another_secret_takes_effect_under_load_and_no_job_is_lost_or_delivered_twice() {
    let (file, channel) = (SecretFile::of(&[OLD]), free_address());
    let port = format!("runtime.platform.execution_ipc.bind_port={}", channel.port());
    // The record that is looked at outlives those of the load.
    let keeps = "runtime.platform.reply.retain.records=1000000";
    let service = Service::of(&example("embedder"), &[&file.set(), &port, TWO, keeps]);
    let (web, first) = (service.child("web"), service.children("executor"));
    assert!(lets_in(channel, OLD) && !lets_in(channel, NEW));
    let before = service.metric("ipc_rejected_total{reason=\"bad_signature\"}");
    let mut long = sleeper(&service, 2_000);
    running(&service, 1);
    let mut queued = counters(&service, 5, 100);
    let delayed = service.submit("/v1/jobs/echo?delay_ms=1500", &[], "1");
    let answered = under_load(&service, |more| {
        more(50);
        file.rotate(&service, &[NEW, OLD], ANOTHER);
        more(50);
        replaced(&service, &first);
        more(50);
    });
    assert!(answered >= 150);
    // Only web stays, and only the secret that signs lets anybody in: jobs are signed nowhere here.
    assert_eq!(service.child("web"), web);
    assert_eq!(long.read().status, 200);
    assert_counted(&mut queued, 1);
    service.record_when(&delayed, "succeeded");
    assert_eq!(service.metric("queue_redelivered_total"), 0.0);
    assert_eq!(
        service.metric("ipc_rejected_total{reason=\"bad_signature\"}"),
        before,
        "no executor came too soon"
    );
    assert_eq!(service.metric("process_recycled_total{group=\"execution\",reason=\"secret\"}"), 2.0);
    assert!(lets_in(channel, NEW) && !lets_in(channel, OLD));
    // A successor of web has what was read last: its executors, which are nobody's children of its, come again.
    kill(web);
    until("another web", PATIENCE, || service.children("web").iter().any(|pid| *pid != web).then_some(()));
    until("it serves", PATIENCE, || {
        let mut client = Client::try_to(service.address).ok()?;
        client.send(service::request("POST", "/v1/jobs/echo", &[], "2"));
        client.try_read(PATIENCE).ok().filter(|answer| answer.status == 200).map(drop)
    });
    assert!(lets_in(channel, NEW) && !lets_in(channel, OLD));
    assert_over(service);
}

#[test]
fn no_moment_of_a_rotation_is_without_an_executor() {
    let file = SecretFile::of(&[OLD]);
    let service = Service::start(&[&file.set()]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| {
            let mut client: Client = service.connect();
            (0..).take_while(|_| !stop.load(Ordering::Relaxed)).all(|_| {
                let answer = client.request("GET", "/readyz", &[], "");
                std::thread::sleep(Duration::from_millis(1));
                answer.status == 200
            })
        });
        let done = Done(&stop);
        for secrets in [[NEW, OLD], [OLD, NEW], [NEW, OLD]] {
            let before = service.children("executor");
            file.rotate(&service, &secrets, ANOTHER);
            replaced(&service, &before);
        }
        drop(done);
        assert!(asks.join().expect("it only asks"), "it was not ready all the time");
    });
    assert_over(service);
}

#[test]
fn rotations_while_long_jobs_run_fill_no_host_and_end_nothing() {
    let file = SecretFile::of(&[OLD]);
    let service = Service::start(&[&file.set(), TWO]);
    let mut long = Vec::new();
    for round in 1..=6 {
        // New ones run in the processes of this round, and keep them.
        let jobs = if round <= 3 { 4 } else { 0 };
        long.extend((0..jobs).map(|_| service.submit("/v1/jobs/sleep", &[], r#"{"ms":600000}"#)));
        running(&service, long.len() as u64);
        let secrets = if round % 2 == 0 { [OLD, NEW] } else { [NEW, OLD] };
        file.rotate(&service, &secrets, ANOTHER);
        for _ in 0..20 {
            assert_text(&service.post("/v1/jobs/echo", "1"), "1");
            std::thread::sleep(Duration::from_millis(10));
        }
        // Two places, and of their predecessors as many and two more.
        let executors = service.children("executor").len();
        assert!(executors <= 6, "{executors} executors");
    }
    for id in &long {
        assert_eq!(service.request("DELETE", &format!("/v1/jobs/{id}"), &[], "").status, 200);
    }
    until("those who waited for them are gone", 2 * PATIENCE, || {
        (service.children("executor").len() == 2).then_some(())
    });
    assert_nothing_refused(&service);
    assert!(!service.stderr().contains("lifecycle.crashed"), "{}", service.stderr());
    assert_over(service);
}

#[test]
fn a_file_that_may_not_be_used_changes_nothing_and_is_named() {
    let file = SecretFile::of(&[OLD]);
    for mode in [None, Some(INLINE)] {
        file.write(&[OLD]);
        let sets: Vec<String> = [file.set()].into_iter().chain(mode.map(str::to_owned)).collect();
        let service = Service::start(&sets.iter().map(String::as_str).collect::<Vec<_>>());
        let children = all_children(service.pid);
        let assert_unchanged = || {
            assert_text(&service.post("/v1/jobs/echo", "1"), "1");
            assert_eq!(all_children(service.pid), children);
        };
        for text in
            ["", "0123", &OLD[1..], &format!("{OLD}\n{NEW}\n{NEWER}\n"), &format!("{NEW} {OLD}\n"), "not hex"]
        {
            file.write_text(text);
            file.hang_up(&service, REFUSED);
            assert_unchanged();
        }
        file.write(&[&"00".repeat(32)]);
        file.hang_up(&service, "one byte repeated");
        for mode in [0o640, 0o604, 0o622] {
            file.write(&[NEW]);
            file.set_mode(mode);
            file.hang_up(&service, "others can read or write it");
            assert_unchanged();
        }
        std::fs::remove_file(&file.path).expect("our own file");
        file.hang_up(&service, "cannot be read");
        std::fs::create_dir(&file.path).expect("a folder");
        file.hang_up(&service, "is a directory");
        assert_unchanged();
        std::fs::remove_dir(&file.path).expect("our own folder");
        let made = run(&mut command("/usr/bin/mkfifo".as_ref(), [&file.path]), b"");
        assert!(made.status.success());
        file.hang_up(&service, "is a FIFO");
        assert_unchanged();
        // The next one that is sound is taken.
        file.rotate(&service, &[OLD], AS_BEFORE);
        assert_unchanged();
        file.rotate(&service, &[NEW], ANOTHER);
        assert_text(&service.post("/v1/jobs/echo", "2"), "2");
        assert_over(service);
    }
}

#[test]
fn many_hangups_in_a_row_end_with_the_secret_that_was_there_last() {
    let (file, channel) = (SecretFile::of(&[OLD]), free_address());
    let port = format!("runtime.platform.execution_ipc.bind_port={}", channel.port());
    let service = Service::start(&[&file.set(), &port, TWO]);
    let web = service.child("web");
    let mut long = sleeper(&service, 3_000);
    running(&service, 1);
    under_load(&service, |more| {
        for secrets in [[NEW, OLD], [NEWER, NEW], [OLD, NEWER], [NEW, OLD]] {
            file.rotate(&service, &secrets, ANOTHER);
            // An executor that is killed while it is replaced is one that is lost; it has no job of this load for sure.
            more(10);
        }
        for _ in 0..3 {
            file.hang_up(&service, AS_BEFORE);
        }
        more(10);
    });
    assert_eq!(long.read().status, 200, "an executor that was to go four times has finished its job");
    until("two executors are left", PATIENCE, || (service.children("executor").len() == 2).then_some(()));
    assert_eq!((service.child("web"), service.metric("queue_redelivered_total")), (web, 0.0));
    assert!(lets_in(channel, NEW) && ![OLD, NEWER].iter().any(|other| lets_in(channel, other)));
    // An executor that is killed is followed by one that is let in.
    let killed = service.children("executor");
    killed.iter().for_each(|pid| kill(*pid));
    replaced(&service, &killed);
    assert_text(&service.post("/v1/jobs/echo", "1"), "1");
    assert_over(service);
}

#[test]
fn executors_and_web_that_are_killed_in_the_middle_of_it_are_followed_by_some_with_the_new_secret() {
    for victim in ["executor", "web"] {
        let file = SecretFile::of(&[OLD]);
        let service = Service::start(&[&file.set(), TWO]);
        for secrets in [[NEW, OLD], [NEWER, NEW], [OLD, NEWER]] {
            let victims = service.children(victim);
            file.write(&secrets);
            service::signal(service.pid, rustix::process::Signal::HUP);
            victims.iter().for_each(|pid| kill(*pid));
            until("all serve", PATIENCE, || {
                let mut client = Client::try_to(service.address).ok()?;
                client.send(service::request("GET", "/readyz", &[], ""));
                client.try_read(PATIENCE).ok().filter(|answer| answer.status == 200)?;
                (service.children("executor").len() == 2 && !victims.iter().any(|pid| is_alive(*pid)))
                    .then_some(())
            });
            assert_text(&service.post("/v1/jobs/echo", "1"), "1");
        }
        assert!(is_alive(service.pid));
        assert_over(service);
    }
}

#[test]
fn a_journal_goes_on_with_the_secret_of_its_start_and_no_line_goes_before_the_next_one() {
    for mode in [None, Some(INLINE)] {
        let (file, folder) = (SecretFile::of(&[OLD]), Folder::new());
        let dir = folder.path("journal");
        let (secret, journal) = (file.set(), journal(&dir));
        let sets: Vec<&str> = [&*secret, &*journal].into_iter().chain(mode).collect();
        let service = Service::of(&example("embedder"), &sets);
        assert_counted(&mut counters(&service, 1, 0), 1);
        let queued = service.submit("/v1/jobs/echo?delay_ms=600000", &[], "1");
        file.rotate(&service, &[OLD, NEW], THE_SAME);
        file.rotate(&service, &[NEW, OLD], ANOTHER);
        assert_counted(&mut counters(&service, 3, 0), 2);
        let id = service.submit("/v1/jobs/echo", &[], "2");
        service.record_when(&id, "succeeded");
        for secrets in [&[NEW][..], &[NEWER, NEW]] {
            file.rotate(&service, secrets, REFUSED);
            assert!(service.stderr().contains("one that the journal needs"), "{}", service.stderr());
        }
        file.write(&[NEW, OLD]);
        file.hang_up(&service, AS_BEFORE);
        kill_whole(service);
        let alone = |secret: &str| {
            let file = SecretFile::of(&[secret]);
            let words = [
                "journal",
                "check",
                &dir.display().to_string(),
                "--secret-file",
                &file.path.display().to_string(),
            ]
            .map(str::to_owned);
            run(&mut command(&cofferdam(), words), b"").status.code()
        };
        assert_eq!((alone(OLD), alone(NEW)), (Some(0), Some(1)), "all of it is of the start's");
        let service = Service::of(&example("embedder"), &sets);
        assert_counted(&mut counters(&service, 1, 0), 5);
        for (job, status) in [(&queued, "queued"), (&id, "succeeded")] {
            assert_eq!(service.record(job)["status"], status);
        }
        assert_over(service);
        // That start has copied the one segment that there is: nothing of the old one is left.
        assert_eq!(alone(NEW), Some(0));
        file.write(&[NEW]);
        let service = Service::of(&example("embedder"), &sets);
        assert_counted(&mut counters(&service, 1, 0), 6);
        assert_nothing_refused(&service);
        assert_over(service);
    }
}
