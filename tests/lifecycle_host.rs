//! What a host does to a service: streams, ports, folders, limits and the clock; each
//! test named after its row.
//!
//! It guards that a service whose host is full, closed or short of something either goes on, or does not start and says
//! in one line why. Rows that need root, or a program of the host, say so where they are skipped.

#[path = "support/aftermath.rs"]
mod aftermath;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aftermath::{BACK, Trial, assert_ended, call, payload, shell_command, skipped};
use program::{Folder, cofferdam, command, example, shown, wait};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use service::{
    Client, NoAnswer, PATIENCE, Service, Stopwatch, all_children, free_address, holdings, kill,
    processor_time, request, signal, until,
};

const INLINE: &str = "runtime.platform.bootstrap.mode=inline";
const SUPERVISED: &str = "runtime.platform.bootstrap.mode=process_supervisor";
const FEW: &str = r#"runtime.platform.lifecycle.restart={"max_restarts":2}"#;

#[test]
fn p13_a_service_whose_standard_streams_are_closed_or_full_goes_on() {
    for streams in
        ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", "</dev/full >/dev/zero 2</dev/null"]
    {
        for mode in [INLINE, SUPERVISED] {
            let folder = Folder::new();
            let address = free_address();
            let mut command = shell_command(&format!("exec \"$0\" \"$@\" {streams}"), &cofferdam());
            command.args(["serve", "--set", mode, "--set", &format!("web.bind={address}")]);
            // The log that cannot be written is a long one.
            command.env("RUNTIME_DIRECTORY", folder.path("")).env("RUST_LOG", "debug");
            let child = command.spawn().expect("it starts");
            let pid = child.id();
            until("it listens", PATIENCE, || TcpStream::connect(address).ok());
            let mut client = Client::to(address);
            for number in 0..50 {
                assert_eq!(call(&mut client, number, PATIENCE), Ok(()), "{streams} {mode}");
            }
            for executor in service::children(pid, "executor") {
                kill(executor);
            }
            assert_eq!(call(&mut client, 0, PATIENCE), Ok(()), "{streams} {mode}");
            drop(client);
            let children = all_children(pid);
            signal(pid, Signal::TERM);
            let output = wait(child);
            assert_ended(&output.status, &String::from_utf8_lossy(&output.stderr), Some(0));
            assert!(!children.iter().any(|pid| service::is_alive(*pid)), "{streams} {mode}");
            assert_eq!(std::fs::read_dir(folder.path("")).expect("our own folder").count(), 0);
        }
    }
}

/// A `serve` whose ready line was read and whose other output nobody reads yet.
fn unread(mode: &str, log: &str) -> (std::process::Child, SocketAddr) {
    let sets = ["serve", "--set", mode, "--set", "web.bind=127.0.0.1:0", "--set", "observability.log=json"];
    let mut command = command(&cofferdam(), sets);
    let mut child = command.env("RUST_LOG", log).spawn().expect("it starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("it is piped");
    BufReader::new(stdout).read_line(&mut line).expect("the ready line");
    let address = line.split("http://").nth(1).and_then(|rest| rest.split(' ').next());
    let address = address.unwrap_or_else(|| panic!("{line:?}")).parse().expect("an address");
    (child, address)
}

#[test]
fn p13_a_service_whose_log_reader_is_gone_goes_on() {
    for mode in [INLINE, SUPERVISED] {
        let (mut child, address) = unread(mode, "debug");
        drop(child.stderr.take());
        let mut client = Client::to(address);
        for number in 0..200 {
            assert_eq!(call(&mut client, number, PATIENCE), Ok(()));
        }
        drop(client);
        signal(child.id(), Signal::TERM);
        let output = wait(child);
        assert_eq!(output.status.code(), Some(0), "{mode}: {}", shown(&output));
    }
}

#[test]
fn p13_a_log_that_is_not_read_holds_up_nobody_and_what_it_lost_is_counted() {
    const CALLS: usize = 3_000;
    const AT_ONCE: usize = 100;
    for mode in [INLINE, SUPERVISED] {
        let (mut child, address) = unread(mode, "debug");
        let begun = Instant::now();
        let mut client = Client::to(address);
        for _ in 0..CALLS / AT_ONCE {
            let one = request("POST", "/v1/jobs/echo", &[], payload(0));
            client.send(one.repeat(AT_ONCE));
            (0..AT_ONCE).for_each(|_| assert_eq!(client.read().text(), payload(0)));
        }
        println!("{mode}: {CALLS} calls in {:?}", begun.elapsed());
        // A reader comes back.
        let mut stderr = child.stderr.take().expect("it is piped");
        let log = std::thread::spawn(move || {
            let mut log = String::new();
            stderr.read_to_string(&mut log).map(|_| log)
        });
        for number in 0..100 {
            assert_eq!(call(&mut client, number, PATIENCE), Ok(()));
        }
        drop(client);
        signal(child.id(), Signal::TERM);
        let output = wait(child);
        let log = log.join().expect("no panic").expect("text");
        assert_ended(&output.status, &log, Some(0));
        let lost = log.lines().filter_map(|line| {
            let (_, message) = line.split_once(r#""event":"log","message":""#)?;
            message.strip_suffix(r#" log lines were lost: standard error was not read in time"}"#)
        });
        let lost: usize = lost.map(|count| count.parse::<usize>().expect("a count")).sum();
        let accepted = log.lines().filter(|line| line.contains(r#""event":"ingress.accepted""#)).count();
        assert!(lost > 0 && accepted < CALLS, "{mode}: {lost} lost, {accepted} of {CALLS} there");
        // Each call has at least this line.
        assert!(lost + accepted >= CALLS, "{mode}: {lost} lost, {accepted} of {CALLS} there");
    }
}

/// It does not start, with exit 1 and one message that has these words, and it leaves nothing.
#[track_caller]
fn assert_does_not_start(mut command: Command, words: &[&str]) {
    let output = wait(command.spawn().expect("the program can be started"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_ended(&output.status, &stderr, Some(1));
    assert!(output.stdout.is_empty(), "{}", shown(&output));
    let says = |line: &&str| line.starts_with("cofferdam: ") && words.iter().all(|word| line.contains(word));
    assert_eq!(stderr.lines().filter(says).count(), 1, "{words:?}: {stderr}");
}

fn serve(sets: &[&str]) -> Command {
    command(&cofferdam(), ["serve"].into_iter().chain(sets.iter().flat_map(|set| ["--set", set])))
}

#[test]
fn p14_a_port_that_is_taken_is_exit_1_with_the_address_and_leaves_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("its address").to_string();
    for mode in [INLINE, SUPERVISED] {
        let folder = Folder::new();
        let mut command = serve(&[mode, &format!("web.bind={address}")]);
        command.env("RUNTIME_DIRECTORY", folder.path(""));
        assert_does_not_start(command, &[&address, "in use"]);
        assert_eq!(std::fs::read_dir(folder.path("")).expect("our own folder").count(), 0);
    }
}

#[test]
fn p14_a_channel_port_that_is_taken_is_exit_1_with_the_address_and_leaves_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("its address");
    let folder = Folder::new();
    let channel = format!("runtime.platform.execution_ipc.bind_port={}", address.port());
    let mut command = serve(&["web.bind=127.0.0.1:0", &channel, FEW]);
    command.env("RUNTIME_DIRECTORY", folder.path(""));
    assert_does_not_start(command, &[&address.to_string(), "in use", "web ended with exit code 1"]);
    assert_eq!(std::fs::read_dir(folder.path("")).expect("our own folder").count(), 0);
}

#[test]
fn p14_a_socket_folder_that_cannot_be_written_is_passed_over_for_the_next_one() {
    let folder = Folder::new();
    let next = folder.path("next");
    std::fs::create_dir(&next).expect("a folder");
    let mut command = serve(&["web.bind=127.0.0.1:0"]);
    command.env("RUNTIME_DIRECTORY", "/proc").env("XDG_RUNTIME_DIR", &next);
    let service = Service::from(command.spawn().expect("it starts"));
    assert_eq!(std::fs::read_dir(&next).expect("our own folder").count(), 1);
    assert_eq!(service.get("/v1/stats").status, 200);
    assert_eq!(service.stop().status.code(), Some(0));
    assert_eq!(std::fs::read_dir(&next).expect("our own folder").count(), 0);
}

#[test]
fn p14_without_any_place_for_its_socket_it_is_exit_1_and_names_each_place() {
    let read_only = "mount -t tmpfs -o ro none /run && mount -t tmpfs -o ro none /dev/shm";
    let within = |inner: &str| format!("exec unshare -m /bin/sh -c '{read_only} && {inner}' \"$0\" \"$@\"");
    let probe = shell_command(&within("exit 42"), &cofferdam()).status().expect("a shell");
    if probe.code() != Some(42) {
        return skipped("read-only file systems need root, and `unshare`");
    }
    for mode in [INLINE, SUPERVISED] {
        let address = free_address();
        let mut command = shell_command(&within("exec \"$0\" \"$@\""), &cofferdam());
        command.args(["serve", "--set", mode, "--set", &format!("web.bind={address}")]);
        command.env("RUNTIME_DIRECTORY", "/proc/none").env("TMPDIR", "/proc");
        let places =
            ["/proc/none: ", "/run: Read-only file system", "/dev/shm: Read-only file system", "/proc: "];
        assert_does_not_start(command, &places);
        until("its port is free", PATIENCE, || TcpListener::bind(address).ok());
    }
}

#[test]
fn p15_a_second_service_on_the_same_port_fails_and_the_first_one_does_not_notice() {
    let first = Trial::start(&[]);
    let ((), load) = first.under_load(2, |_| {
        for mode in [INLINE, SUPERVISED] {
            let mut command = serve(&[mode, &format!("web.bind={}", first.address)]);
            // What it tidies up at its start is where the first one lives.
            command.env("RUNTIME_DIRECTORY", first.run());
            assert_does_not_start(command, &[&first.address.to_string(), "in use"]);
        }
    });
    assert_eq!(load.lost, 0, "{load:?}");
    first.over();
}

#[test]
fn p15_a_second_service_on_the_same_channel_port_fails_and_the_first_one_does_not_notice() {
    let address = free_address();
    let channel = format!("runtime.platform.execution_ipc.bind_port={}", address.port());
    let first = Trial::start(&[&channel]);
    let ((), load) = first.under_load(2, |_| {
        let mut command = serve(&["web.bind=127.0.0.1:0", &channel, FEW]);
        command.env("RUNTIME_DIRECTORY", first.run());
        assert_does_not_start(command, &[&address.to_string(), "in use"]);
    });
    assert_eq!(load.lost, 0, "{load:?}");
    first.over();
}

#[test]
fn p15_two_services_with_one_config_and_one_secret_are_separate() {
    let (program, any_port) = (example("embedder"), "web.bind=127.0.0.1:0");
    let first = Trial::of(&program, &[any_port], |_| {});
    let second = Trial::of(&program, &[any_port], |command| {
        command.env("RUNTIME_DIRECTORY", first.run());
    });
    let id = first.submit("/v1/jobs/echo", &[], payload(1));
    first.record_when(&id, "succeeded");
    assert_eq!(second.get(&format!("/v1/jobs/{id}")).code(), "unknown_job");
    let (_, load) = first.under_load(3, |_| {
        let (_, load) = second.under_load(3, |_| {
            for number in 1..=50 {
                for service in [&first, &second] {
                    assert_eq!(service.post("/v1/jobs/count", "0").text(), number.to_string());
                }
                if number % 10 == 0 {
                    kill(second.child("executor"));
                }
            }
        });
        assert_eq!(load.lost, 0, "{load:?}");
    });
    assert_eq!(load.lost, 0, "{load:?}");
    assert_eq!(first.metric("process_restarts_total{group=\"execution\",reason=\"killed\"}"), 0.0);
    assert_eq!(first.metric("ipc_rejected_total{reason=\"bad_signature\"}"), 0.0);
    let shared = first.run().to_owned();
    second.over();
    assert_eq!(std::fs::read_dir(shared).expect("our own folder").count(), 1, "the first one's is left");
    first.over();
}

/// Each process of a service takes less than a fifth of a processor.
#[track_caller]
fn assert_no_spin(service: &Service) {
    const WATCHED: Duration = Duration::from_secs(1);
    let pids = [all_children(service.pid), vec![service.pid]].concat();
    let before: Vec<Duration> = pids.iter().map(|pid| processor_time(*pid)).collect();
    std::thread::sleep(WATCHED);
    for (pid, before) in pids.iter().zip(before) {
        let took = processor_time(*pid).saturating_sub(before);
        assert!(took < WATCHED / 5, "{:?} took {took:?} of {WATCHED:?}", service::words(*pid));
    }
}

#[test]
fn p16_with_sixty_four_descriptors_five_hundred_connections_wait_for_their_turn() {
    const CALLERS: usize = 500;
    for mode in [INLINE, SUPERVISED] {
        let trial = Trial::within("ulimit -n 64", &cofferdam(), &[mode], |_| {});
        let children = all_children(trial.pid);
        let limits = "web.limits.connections is cut to 8";
        until(limits, PATIENCE, || trial.stderr().contains(limits).then_some(()));
        // Those who say nothing make room for each other, and the last eight stay.
        let silent: Vec<Client> = (0..CALLERS).map(|_| trial.connect()).collect();
        assert_no_spin(&trial);
        drop(silent);
        // Eight of them have a place; the others are the kernel's. Whoever has said what it wants is not sent away for another.
        let call = |number| {
            let mut client = trial.connect();
            client.send(request("POST", "/v1/jobs/echo", &["Connection: close"], payload(number)));
            client
        };
        let callers: Vec<Client> = (0..CALLERS).map(call).collect();
        for (number, mut client) in callers.into_iter().enumerate() {
            // Who has its answer goes, and the next one takes its place.
            let answer = client.read();
            assert_eq!((answer.status, answer.text()), (200, payload(number)), "{mode}: {answer:?}");
        }
        assert_eq!(all_children(trial.pid), children, "{mode}");
        trial.over();
    }
}

/// Sets how many descriptors a process may have at most; the upper bound stays, so that it can be raised again.
fn limit_descriptors(pid: u32, most: Option<u64>) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let pid = Pid::from_raw(pid.cast_signed());
    let limit = Rlimit { current: most.or(maximum), maximum };
    prlimit(pid, Resource::Nofile, limit).expect("our own child");
}

#[test]
fn p16_a_web_that_has_run_out_of_descriptors_neither_ends_nor_spins_and_recovers() {
    for mode in [INLINE, SUPERVISED] {
        let trial = Trial::start(&[mode]);
        let front = if mode == INLINE { trial.pid } else { trial.child("web") };
        let mut held = trial.connect();
        assert_eq!(call(&mut held, 1, PATIENCE), Ok(()));
        // Descriptors are numbered without gaps but for a few that were closed.
        limit_descriptors(front, Some(holdings(front).0 as u64 + 4));
        let mut waiting: Vec<Client> = (0..100).map(|_| trial.connect()).collect();
        for (number, client) in waiting.iter_mut().enumerate() {
            client.send(request("POST", "/v1/jobs/echo", &[], payload(number)));
        }
        let is_late = |client: &mut Client| client.try_read(Duration::from_millis(1)) == Err(NoAnswer::Late);
        assert!(is_late(waiting.last_mut().expect("one")), "it has run out");
        if mode == SUPERVISED {
            // An executor's connection needs a descriptor as well.
            kill(trial.child("executor"));
        }
        assert_no_spin(&trial);
        limit_descriptors(front, None);
        for (number, client) in waiting.iter_mut().enumerate() {
            let answer = client.read();
            assert_eq!((answer.status, answer.text()), (200, payload(number)), "{mode}: {answer:?}");
        }
        assert_eq!(call(&mut held, 2, PATIENCE), Ok(()), "who had a place has kept it");
        drop((held, waiting));
        if mode == SUPERVISED {
            assert_eq!(trial.child("web"), front);
        }
        trial.over();
    }
}

/// A user that nobody else is, so that only ours count against its limits, and the shell that makes a program its own.
struct Nobody {
    uid: u32,
    shell: String,
}

impl Nobody {
    fn new() -> Option<Nobody> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let uid = 100_000 + 8 * std::process::id() + COUNT.fetch_add(1, Ordering::Relaxed);
        let shell = format!("exec setpriv --reuid {uid} --regid {uid} --clear-groups \"$0\" \"$@\"");
        let probe = shell_command(&shell, &cofferdam()).arg("--version").output().expect("a shell");
        if !probe.status.success() {
            skipped(
                "limits of processes bind only another user than root, who must be able to run the binary",
            );
        }
        probe.status.success().then_some(Nobody { uid, shell })
    }

    /// The folders that a trial needs.
    fn own(&self, command: &mut Command) {
        let run =
            command.get_envs().find_map(|(name, value)| (name == "RUNTIME_DIRECTORY").then_some(value?));
        let run = PathBuf::from(run.expect("a trial has one"));
        for path in [run.with_file_name("secret"), run] {
            chown(path, Some(self.uid), Some(self.uid)).expect("root gives away its own file");
        }
    }

    /// Sets how many processes and threads it may have before this process makes another. Root may lack the
    /// capability for this; the user itself may.
    fn limit(&self, pid: u32, most: u32) {
        let prlimit = format!("prlimit --pid {pid} --nproc={most}:");
        let shell = self.shell.replace("\"$0\" \"$@\"", &prlimit);
        assert!(shell_command(&shell, &cofferdam()).status().expect("a shell").success());
    }
}

#[test]
fn p16_a_host_that_gives_no_more_threads_or_processes_is_waited_for() {
    let Some(nobody) = Nobody::new() else { return };
    let trial = Trial::within(&nobody.shell, &cofferdam(), &[], |command| nobody.own(command));
    let web = trial.child("web");
    for pid in [trial.pid, web, trial.child("executor")] {
        nobody.limit(pid, 1);
    }
    // Who is there already needs no thread more.
    let mut callers: Vec<Client> = (0..500).map(|_| trial.connect()).collect();
    for (number, client) in callers.iter_mut().enumerate() {
        assert_eq!(call(client, number, PATIENCE), Ok(()));
    }
    kill(trial.child("executor"));
    until("no executor can be made", PATIENCE, || trial.stderr().contains("cannot be started").then_some(()));
    let unready = trial.get("/readyz");
    assert_eq!((unready.status, unready.code().as_str()), (503, "overloaded"), "{unready:?}");
    assert_eq!(unready.json()["detail"], "no executor of group execution is connected");
    for (number, client) in callers.iter_mut().enumerate() {
        client.send(request("POST", "/v1/jobs/echo", &[], payload(number)));
    }
    // Longer than a child that ends at each start is kept.
    std::thread::sleep(Duration::from_secs(4));
    assert_no_spin(&trial);
    nobody.limit(trial.pid, 4_096);
    let begun = Stopwatch::start();
    for (number, client) in callers.iter_mut().enumerate() {
        assert_eq!(client.read().text(), payload(number));
    }
    assert!(begun.elapsed() < BACK, "{:?}", begun.elapsed());
    drop(callers);
    assert_eq!(trial.child("web"), web);
    nobody.limit(web, 4_096);
    trial.over();
}

#[test]
fn p16_with_too_few_threads_for_its_start_it_ends_with_a_message_and_leaves_nothing() {
    let Some(nobody) = Nobody::new() else { return };
    for most in [2, 4, 8, 13, 19] {
        let folder = Folder::new();
        let run = folder.path("");
        chown(&run, Some(nobody.uid), Some(nobody.uid)).expect("root gives away its own folder");
        let mut command = shell_command(
            &nobody.shell.replace("exec ", &format!("exec prlimit --nproc={most} ")),
            &cofferdam(),
        );
        command.args(["serve", "--set", "web.bind=127.0.0.1:0", "--set", FEW]);
        command.args(["--set", "runtime.platform.lifecycle.ready_timeout_ms=2000"]);
        let output = wait(command.env("RUNTIME_DIRECTORY", &run).spawn().expect("it starts"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        assert!(matches!(code, Some(1 | 3)), "{most}: {}", shown(&output));
        assert_ended(&output.status, &stderr, code);
        let says = |line: &str| line.contains("not ready in time") || line.contains("not restarted again");
        assert!(stderr.lines().any(|line| line.starts_with("cofferdam: ") && says(line)), "{stderr}");
        assert_eq!(std::fs::read_dir(&run).expect("our own folder").count(), 0);
    }
}

/// libfaketime, where Debian's package `libfaketime` puts it.
fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let found =
        folders.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    if found.is_none() {
        skipped("the wall clock of our processes alone is moved by Debian's package libfaketime");
    }
    found
}

#[test]
fn p17_a_wall_clock_that_jumps_by_an_hour_is_noticed_by_nobody() {
    let Some(library) = faketime() else { return };
    let folder = Folder::new();
    let clock = folder.file("clock", "+0");
    let jump = |by: &str| {
        let next = folder.file("clock.next", by);
        std::fs::rename(next, &clock).expect("our own folder");
    };
    let trial =
        Trial::of(&example("embedder"), &["runtime.platform.execution_ipc.heartbeat_ms=300"], |command| {
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &clock);
            // The monotonic clock is nobody's to set.
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        });
    let wall = || trial.post("/v1/jobs/wall", "").text().parse::<i64>().expect("seconds");
    let (children, first) = (all_children(trial.pid), wall());
    let (took, load) = trial.under_load(4, |_| {
        let begun = Stopwatch::start();
        for (by, shift) in [("+3600", 3_600), ("-3600", -3_600), ("+0", 0)] {
            let mut sleeping = trial.connect();
            sleeping.send(request("POST", "/v1/jobs/sleep", &[], r#"{"ms":600}"#));
            let mut late = trial.connect();
            late.send(request("POST", "/v1/jobs/sleep?timeout_ms=600", &[], r#"{"ms":600000}"#));
            let delayed = trial.submit("/v1/jobs/echo?delay_ms=600", &[], payload(0));
            jump(by);
            let seen = wall();
            assert!((seen - first - shift).abs() < 60, "{by} is seen by the processes: {first} {seen}");
            assert_eq!(sleeping.read().text(), r#"{"slept_ms":600}"#);
            assert_eq!(late.read().code(), "handler_timed_out");
            let record = trial.record_when(&delayed, "succeeded");
            let time = |field: &str| record[field].as_str().expect("a time").to_owned();
            assert!(time("submitted_at") < time("started_at"), "{record}");
        }
        begun.elapsed()
    });
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(load.answered > 100 && load.lost == 0, "{load:?}");
    assert_eq!(all_children(trial.pid), children);
    // A web that begins after a jump continues the deployment's time.
    let before = trial.submit("/v1/jobs/echo", &[], payload(1));
    let before = trial.record_when(&before, "succeeded")["submitted_at"].as_str().expect("a time").to_owned();
    jump("-3600");
    kill(trial.child("web"));
    let after = trial.submit("/v1/jobs/echo", &[], payload(2));
    let after = trial.record_when(&after, "succeeded")["submitted_at"].as_str().expect("a time").to_owned();
    assert!(before < after, "{before} {after}");
    trial.over();
}

#[test]
fn p13_a_failure_that_nobody_can_be_told_of_is_an_exit_code_all_the_same() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let bind = format!("web.bind={}", taken.local_addr().expect("its address"));
    for (set, code) in [(&*bind, 1), ("runtime.platform.lifecycle.ready_timeout_ms=1", 3)] {
        let (reader, mut full) = std::io::pipe().expect("a pipe");
        // The default size of a pipe (pipe(7)): the next byte would have to wait for a reader.
        std::io::Write::write_all(&mut full, &[b'x'; 65_536]).expect("as much as it holds");
        let free = if set == bind { "web.max_inflight=1" } else { "web.bind=127.0.0.1:0" };
        let mut command = program::command(&program::cofferdam(), ["serve", "--set", set, "--set", free]);
        let mut child = command.stderr(full).spawn().expect("it starts");
        drop(command);
        let status = until("it has ended", PATIENCE, || child.try_wait().expect("our own child"));
        assert_eq!(status.code(), Some(code), "{set}");
        drop(reader);
    }
}
