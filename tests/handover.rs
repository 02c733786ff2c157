//! Upgrades by `serve --handover`: a new process takes the listener of the one that runs, which finishes and ends. And restarts
//! where a service manager lends the listener.
//!
//! It guards that nobody is refused, cut off or served twice by them, that a new process that fails changes nothing, and that
//! nobody but the service's own user gets the listener. What needs another user says so where it is skipped.

#[path = "support/aftermath.rs"]
mod aftermath;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aftermath::{assert_ended, skipped};
use program::{Folder, cofferdam, command, run};
use serde_json::json;
use service::{
    Answer, Client, Done, PATIENCE, Service, caller, free_address, kill, request, running, sleeper, until,
};

const ASYNC: &str = "Prefer: respond-async";

/// A process that takes over, or is the first.
fn start(address: SocketAddr, sets: &[&str]) -> Child {
    let bind = format!("web.bind={address}");
    let sets = [&*bind].into_iter().chain(sets.iter().copied()).flat_map(|set| ["--set", set]);
    command(&cofferdam(), ["serve", "--handover"].into_iter().chain(sets)).spawn().expect("it can be started")
}

/// Takes over, and waits for the end of the old one, which must be a clean one.
fn upgrade(old: Service, sets: &[&str]) -> Service {
    let new = Service::from(start(old.address, sets));
    let ended = old.ended();
    assert_ended(&ended.status, &ended.stderr, Some(0));
    new
}

fn is_last(answer: &Answer) -> bool {
    answer.header("connection") == Some("close")
}

/// Asks until it is told to stop, on a connection of its own for each request, or on one while that is kept.
fn ask(address: SocketAddr, keeps: bool, stop: &AtomicBool, answered: &AtomicU64) {
    let mut kept = None;
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let mut client = kept.take().unwrap_or_else(|| Client::to(address));
        let body = format!("{number} of a caller");
        let headers: &[&str] = if keeps { &[] } else { &["Connection: close"] };
        let answer = client.request("POST", "/v1/jobs/echo", headers, &body);
        assert_eq!((answer.status, answer.text()), (200, body), "{answer:?}");
        answered.fetch_add(1, Ordering::Relaxed);
        kept = (keeps && !is_last(&answer)).then_some(client);
        // So that twenty upgrades are more than a race of two full processors.
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn twenty_upgrades_under_load_refuse_and_lose_nobody() {
    let address = free_address();
    let mut service = Service::from(start(address, &[]));
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _stop = Done(&stop);
        let callers: Vec<_> = [true, true, true, false, false, false]
            .map(|keeps| (keeps, &stop, &answered))
            .map(|(keeps, stop, answered)| scope.spawn(move || ask(address, keeps, stop, answered)))
            .into();
        let mut pids = vec![service.pid];
        for _ in 0..20 {
            let before = answered.load(Ordering::Relaxed);
            let new = Service::from(start(address, &[]));
            // Both live, for a moment: the old one's end is seen while callers go on.
            until("answers", PATIENCE, || (answered.load(Ordering::Relaxed) > before + 50).then_some(()));
            let ended = std::mem::replace(&mut service, new).ended();
            assert_ended(&ended.status, &ended.stderr, Some(0));
            pids.push(service.pid);
            assert!(callers.iter().all(|caller| !caller.is_finished()), "a caller was refused");
        }
        pids.sort_unstable();
        pids.dedup();
        assert_eq!(pids.len(), 21);
    });
    assert!(answered.load(Ordering::Relaxed) > 1_000);
    assert_eq!(service.stop().status.code(), Some(0));
}

#[test]
fn restarts_beside_a_listener_that_is_lent_refuse_and_lose_nobody() {
    for mode in ["process_supervisor", "inline"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let mode = format!("runtime.platform.bootstrap.mode={mode}");
        let start = || Service::lent(&listener, &[&mode]);
        let mut service = start();
        let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
        let service = std::thread::scope(|scope| {
            let _stop = Done(&stop);
            let callers: Vec<_> = [true, true, true, false, false, false]
                .map(|keeps| (keeps, &stop, &answered))
                .map(|(keeps, stop, answered)| scope.spawn(move || ask(address, keeps, stop, answered)))
                .into();
            for _ in 0..10 {
                let mut waits = sleeper(&service, 300);
                running(&service, 1);
                service.terminate();
                assert_eq!(waits.read().status, 200, "a drain waits for it");
                let ended = service.ended();
                assert_ended(&ended.status, &ended.stderr, Some(0));
                // Nobody accepts, and nobody is told so.
                let mut early = Client::to(address);
                early.send(request("POST", "/v1/jobs/echo", &[], "early"));
                service = start();
                assert_eq!(early.read().text(), "early");
                let before = answered.load(Ordering::Relaxed);
                until("answers", PATIENCE, || (answered.load(Ordering::Relaxed) > before + 50).then_some(()));
                assert!(callers.iter().all(|caller| !caller.is_finished()), "a caller was refused");
            }
            service
        });
        assert_eq!(service.stop().status.code(), Some(0));
    }
}

#[test]
fn once_a_drain_beside_a_lent_listener_is_over_nobody_is_accepted_any_more() {
    // Executors take their time to end: their worker does not hear SIGTERM, and is killed two seconds later.
    let folder = Folder::new();
    let deaf = folder.file(
        "deaf",
        r#"trap '' TERM
           while read -r line; do id=${line#*'"id":"'}; echo '{"id":"'"${id%%'"'*}"'","ok":1}'; done
           while :; do sleep 600.73; done"#,
    );
    let worker = json!({ "deaf": { "command": ["sh", deaf], "mode": "worker" } });
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let service = Service::lent(&listener, &[&format!("handlers={worker}")]);
    let mut kept = service.connect();
    assert_eq!(kept.request("POST", "/v1/jobs/deaf", &["Content-Type: application/json"], "1").text(), "1");
    service.terminate();
    // It is silent for longer than it is waited for, and speaks while executors end.
    std::thread::sleep(Duration::from_millis(2_000));
    assert!(!service.children("executor").is_empty(), "they still end");
    kept.send(request("POST", "/v1/jobs/echo", &[], "late"));
    let answer = kept.read();
    assert_eq!((answer.status, &*answer.code()), (503, "draining"), "{answer:?}");
    let ended = service.ended();
    assert_ended(&ended.status, &ended.stderr, Some(0));
    drop(listener);
}

#[test]
fn who_waits_streams_or_keeps_a_connection_is_served_to_the_end_by_the_old_one() {
    let address = free_address();
    let old = Service::from(start(address, &[]));
    let mut kept = old.connect();
    assert_eq!(kept.request("POST", "/v1/jobs/echo", &[], "a").status, 200);
    let mut waits = sleeper(&old, 1_500);
    let lines = "{\"ms\":150}\n".repeat(64);
    let mut streams = caller(&old, "/v1/batch/sleep", &lines);
    running(&old, 8);
    let new = Service::from(start(address, &[]));
    // The old one accepts nobody. Its web hears so after the new one has said that it is ready.
    until("it is left", PATIENCE, || old.stderr().contains("the listener is left to others").then_some(()));
    assert_eq!(new.post("/v1/jobs/echo", "b").text(), "b");
    // On a connection that was kept one more request is answered, as its last.
    let answer = kept.request("POST", "/v1/jobs/echo", &[], "c");
    assert!(answer.status == 200 && is_last(&answer), "{answer:?}");
    kept.assert_closed();
    assert_eq!(waits.read().status, 200);
    let results = streams.read();
    assert_eq!((results.status, results.text().lines().count()), (200, 64), "{results:?}");
    assert!(results.text().lines().all(|line| line == "{\"slept_ms\":150}"), "{results:?}");
    let ended = old.ended();
    assert_ended(&ended.status, &ended.stderr, Some(0));
    assert_eq!(new.post("/v1/jobs/echo", "d").text(), "d");
}

#[test]
fn a_new_process_that_does_not_come_up_changes_nothing() {
    let address = free_address();
    let old = Service::from(start(address, &[]));
    let late = command(
        &cofferdam(),
        ["serve", "--handover", "--set", &format!("web.bind={address}"), "--set"]
            .into_iter()
            .chain(["runtime.platform.lifecycle.ready_timeout_ms=1"]),
    )
    .output()
    .expect("it can be started");
    assert_eq!(late.status.code(), Some(3), "{late:?}");
    for ms in [0, 1, 2, 4, 6, 8, 10, 15, 20] {
        let mut new = start(address, &[]);
        std::thread::sleep(Duration::from_millis(ms));
        let has_it = new.try_wait().expect("our own child").is_some();
        kill(new.id());
        assert!(!has_it && new.wait().is_ok());
        if old.stderr().contains("lifecycle.draining") {
            // It was ready before it was killed, and so it is the one that has the service: nobody serves now.
            let ended = old.ended();
            assert_ended(&ended.status, &ended.stderr, Some(0));
            return;
        }
        let mut client = old.connect();
        assert_eq!(client.request("POST", "/v1/jobs/echo", &[], "a").text(), "a", "after {ms} ms");
    }
    let new = upgrade(old, &[]);
    assert_eq!(new.post("/v1/jobs/echo", "b").text(), "b");
}

#[test]
fn several_that_come_at_once_take_over_one_after_the_other() {
    let address = free_address();
    let mut services = vec![Service::from(start(address, &[]))];
    let new: Vec<Child> = (0..3).map(|_| start(address, &[])).collect();
    services.extend(new.into_iter().map(Service::from));
    let client = || Client::to(address).request("POST", "/v1/jobs/echo", &[], "a").text();
    // Whoever was last serves; the others have ended, each cleanly.
    let ended = until("all but one have ended", PATIENCE, || {
        assert_eq!(client(), "a");
        let gone: Vec<usize> =
            (0..services.len()).filter(|at| !service::is_alive(services[*at].pid)).collect();
        (gone.len() == 3).then_some(gone)
    });
    for at in ended.into_iter().rev() {
        let ended = services.remove(at).ended();
        assert_ended(&ended.status, &ended.stderr, Some(0));
    }
    assert_eq!(services.remove(0).stop().status.code(), Some(0));
}

#[test]
fn what_only_one_can_have_goes_from_one_to_the_next_and_callers_wait_meanwhile() {
    let folder = Folder::new();
    let journal = format!(
        r#"runtime.platform.queue.journal={{"dir":"{}","sync":"interval"}}"#,
        folder.path("journal").display()
    );
    let port = format!("runtime.platform.execution_ipc.bind_port={}", free_address().port());
    let sets: &[&str] = &[&journal, &port];
    let address = free_address();
    let old = Service::from(start(address, sets));
    let id = old.submit("/v1/jobs/echo?delay_ms=4000", &[ASYNC], "later");
    let done = old.submit("/v1/jobs/echo", &[ASYNC], "done");
    old.record_when(&done, "succeeded");
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let new = std::thread::scope(|scope| {
        let _stop = Done(&stop);
        (0..3).for_each(|_| _ = scope.spawn(|| ask(address, false, &stop, &answered)));
        let mut service = old;
        for _ in 0..3 {
            service = upgrade(service, sets);
        }
        service
    });
    assert_eq!(new.record(&done)["status"], "succeeded");
    assert_eq!(new.record_when(&id, "succeeded")["id"], id.as_str());
    assert_eq!(new.stop().status.code(), Some(0));
}

/// Does this in Python, as another user of the host.
fn as_nobody(script: &str) -> Option<Child> {
    if !rustix::process::geteuid().is_root() {
        skipped("needs root, to be another user");
        return None;
    }
    let nobody = ["--reuid", "65534", "--clear-groups", "/usr/bin/python3", "-c", script];
    let started = Command::new("setpriv").args(nobody).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    Some(started.expect("setpriv and python3"))
}

#[test]
fn nobody_elses_process_gets_the_listener_or_gives_one() {
    let address = free_address();
    let name = format!("\\0cofferdam-handover-0-{address}");
    let Some(squatter) = as_nobody(&format!(
        "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.bind('{name}')\ns.listen()\nprint('there',flush=True)\n\
         sys.stdin.read()"
    )) else {
        return;
    };
    let mut squatter = Guard(squatter);
    let mut line = String::new();
    let stdout = squatter.0.stdout.take().expect("it is piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("its line");
    assert_eq!(line, "there\n");
    // It takes nothing from there, serves, and says that nobody can come after it.
    let first = Service::from(start(address, &[]));
    assert_eq!(first.post("/v1/jobs/echo", "a").text(), "a");
    for says in ["somebody else's process offers", "cannot be handed over"] {
        until(says, PATIENCE, || first.stderr().contains(says).then_some(()));
    }
    drop(squatter);
    first.stop();

    let first = Service::from(start(address, &[]));
    let thief = as_nobody(&format!(
        "import socket\ns=socket.socket(socket.AF_UNIX)\ns.connect('{name}')\nm=s.recvmsg(10,100)\nprint(m[0],len(m[1]))\n\
         s.close()"
    ));
    let stolen = thief.expect("root").wait_with_output().expect("its end");
    assert_eq!(String::from_utf8_lossy(&stolen.stdout), "b'' 0\n", "a closed connection, and no descriptor");
    let last = upgrade(first, &[]);
    assert_eq!(last.post("/v1/jobs/echo", "b").text(), "b");
}

/// Ends a child with its test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[test]
fn without_a_fixed_port_or_a_supervisor_it_does_not_start() {
    for set in ["web.bind=127.0.0.1:0", "runtime.platform.bootstrap.mode=inline"] {
        let output = run(&mut command(&cofferdam(), ["serve", "--handover", "--set", set]), b"");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains("--handover needs"), "{said}");
    }
}

#[test]
fn where_another_program_has_the_address_it_says_so_in_time() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let bind = format!("web.bind={}", other.local_addr().expect("its address"));
    let begun = Instant::now();
    let patience = "runtime.platform.lifecycle.ready_timeout_ms=300";
    let output =
        run(&mut command(&cofferdam(), ["serve", "--handover", "--set", &bind, "--set", patience]), b"");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("in use"), "{said}");
    assert!(begun.elapsed() >= Duration::from_millis(300));
}
