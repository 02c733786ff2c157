//! A service as processes: who runs, who listens, who is replaced, and how it ends.
//!
//! It guards rows P1 to P3, P5, P6, P12, P14 and W3, W4 of the fault list with the real binary: children are
//! killed by their pids, and what callers see is compared with what CONTRACT 5 promises.

#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::collections::HashSet;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use program::{Folder, cofferdam, shown, wait};
use rustix::process::Signal;
use service::{Client, PATIENCE, Service, is_alive, kill, request, signal, until, words};

const INLINE: &str = "runtime.platform.bootstrap.mode=inline";
const SUPERVISED: &str = "runtime.platform.bootstrap.mode=process_supervisor";
const LONG_SLEEP: &str = r#"{"ms":600000}"#;

fn waiters(service: &Service, count: f64) {
    until(&format!("{count} callers wait"), PATIENCE, || {
        (service.metric("reply_waiters") == count).then_some(())
    });
}

/// A caller that waits for a sleep of so many ms.
fn sleeper(service: &Service, ms: u64) -> Client {
    let mut client = service.connect();
    client.send(request("POST", "/v1/jobs/sleep", &[], format!("{{\"ms\":{ms}}}")));
    client
}

/// The addresses on which the sockets of a process listen, IPv4 and IPv6, from `/proc`.
fn listening(pid: u32) -> HashSet<String> {
    let folder = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("our own child's descriptors").flatten();
    let links = folder.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let inodes: HashSet<String> = links
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let mut found = HashSet::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // State 0A is LISTEN; a UDP socket has no such state, and we have no business with one.
            if (fields[3] == "0A" || table.starts_with("udp")) && inodes.contains(fields[9]) {
                found.insert(format!("{table} {}", fields[1]));
            }
        }
    }
    found
}

#[test]
fn a_service_is_a_supervisor_one_web_and_its_executors() {
    let groups = r#"runtime.platform.process_groups=[{"name":"a","processes":2,"handlers":["echo"]},{"name":"b","handlers":["sleep"]}]"#;
    let service = Service::start(&[groups]);
    assert_eq!((service.children("web").len(), service.children("executor").len()), (1, 3));
    let stats = service.get("/v1/stats").json();
    assert_eq!(stats["groups"][0]["executors"], 2, "{stats}");
    assert_eq!(stats["groups"][1]["executors"], 1, "{stats}");
    let inline = Service::start(&[INLINE]);
    assert!(inline.children("web").is_empty() && inline.children("executor").is_empty());
}

#[test]
fn web_alone_listens_on_two_ports_and_both_are_loopback() {
    let service = Service::start(&[]);
    let port = format!("0100007F:{:04X}", service.address.port());
    let web = listening(service.child("web"));
    assert_eq!(web.len(), 2, "{web:?}");
    assert!(web.contains(&format!("tcp {port}")), "{web:?}");
    assert!(web.iter().all(|address| address.starts_with("tcp 0100007F:")), "{web:?}");
    assert!(listening(service.child("executor")).is_empty());
    let supervisor = listening(service.pid);
    assert_eq!(supervisor, HashSet::from([format!("tcp {port}")]), "the supervisor keeps the public one");
}

#[test]
fn no_argument_environment_or_log_line_holds_the_secret() {
    let secret = "3f9a1c5e7b2d4f6081a3c5e7092b4d6f8192a3b4c5d6e7f80911223344556677";
    let folder = Folder::new();
    let file = folder.file("secret", secret);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("our own file");
    let set = format!("runtime.platform.execution_ipc.auth.secret_file={}", file.display());
    let service = Service::start(&[&set, "observability.log=json"]);
    assert_eq!(service.post("/v1/jobs/echo", "x").status, 200);
    let raw: Vec<u8> =
        (0..32).map(|at| u8::from_str_radix(&secret[2 * at..2 * at + 2], 16).expect("hex")).collect();
    let pids = [service.pid, service.child("web"), service.child("executor")];
    for pid in pids {
        for page in ["cmdline", "environ"] {
            // Not dumpable: who may not look finds nothing either.
            let bytes = std::fs::read(format!("/proc/{pid}/{page}")).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).to_lowercase();
            assert!(!text.contains(secret), "{page} of {pid}");
            assert!(!bytes.windows(32).any(|window| window == raw), "{page} of {pid}");
        }
        assert!(!words(pid).is_empty(), "this test looks at something");
    }
    assert!(pids[1..].iter().all(|pid| words(*pid).len() == 3), "a child has a role and nothing else");
    let ended = service.stop();
    assert!(!ended.stderr.to_lowercase().contains(secret) && !ended.stderr.contains("payload"));
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
}

#[test]
fn two_hundred_waiting_callers_survive_the_kill_of_their_executor_and_web_stays_alive() {
    const CALLERS: usize = 200;
    let service = Service::start(&[]);
    // The first ones hold every worker when the executor is killed.
    let mut callers: Vec<Client> = (0..8).map(|_| sleeper(&service, 1_500)).collect();
    until("every worker sleeps", PATIENCE, || {
        (service.get("/v1/stats").json()["totals"]["running"] == 8).then_some(())
    });
    for number in 8..CALLERS {
        let mut client = service.connect();
        client.send(request("POST", "/v1/jobs/echo", &[], number.to_string()));
        callers.push(client);
    }
    waiters(&service, CALLERS as f64);
    for _ in 0..50 {
        let begun = Instant::now();
        assert_eq!(service.get("/healthz").status, 200);
        assert!(begun.elapsed() < Duration::from_millis(500), "/healthz took {:?}", begun.elapsed());
    }
    let executor = service.child("executor");
    kill(executor);
    for (number, caller) in callers.iter_mut().enumerate() {
        let answer = caller.read();
        let expected = if number < 8 { r#"{"slept_ms":1500}"#.to_owned() } else { number.to_string() };
        assert_eq!((answer.status, answer.text()), (200, expected), "{answer:?}");
    }
    waiters(&service, 0.0);
    assert_ne!(service.child("executor"), executor);
    assert_eq!(service.metric("process_restarts_total{group=\"execution\",reason=\"killed\"}"), 1.0);
    assert_eq!(service.metric("queue_redelivered_total"), 8.0);
    // Each answer is the only one on its connection.
    for caller in &mut callers {
        assert_eq!(caller.request("GET", "/healthz", &[], "").text(), r#"{"status":"alive"}"#);
    }
}

#[test]
fn an_idle_executor_that_is_killed_is_replaced_and_no_caller_notices() {
    let service = Service::start(&[]);
    let mut killed = HashSet::new();
    for _ in 0..8 {
        let executor = service.child("executor");
        assert!(killed.insert(executor), "each kill has another victim");
        kill(executor);
        let begun = Instant::now();
        assert_eq!(service.post("/v1/jobs/echo", "x").status, 200);
        assert!(begun.elapsed() < Duration::from_secs(2), "it took {:?}", begun.elapsed());
        until("the first one is gone", PATIENCE, || (!is_alive(executor)).then_some(()));
    }
    // Ends after readiness do not count: it would have given up by now.
    until("it is ready", PATIENCE, || (service.get("/readyz").status == 200).then_some(()));
    assert_eq!(service.stop().status.code(), Some(0));
}

#[test]
fn the_effects_of_a_job_whose_executor_is_killed_are_counted_as_a_second_delivery() {
    let service = Service::start(&[]);
    let id = service.submit("/v1/jobs/sleep", &[], r#"{"ms":700}"#);
    service.record_when(&id, "running");
    kill(service.child("executor"));
    let record = service.record_when(&id, "succeeded");
    assert_eq!((record["deliveries"].as_u64(), record["status"].as_str()), (Some(2), Some("succeeded")));
}

#[test]
fn a_job_that_loses_every_executor_is_dead_with_its_cause() {
    let service = Service::start(&["handlers.sleep.max_deliveries=2"]);
    let mut caller = sleeper(&service, 600_000);
    waiters(&service, 1.0);
    for delivery in 1..=2 {
        let id = service.get("/v1/jobs").json()["jobs"][0]["id"].as_str().expect("an id").to_owned();
        until("it runs", PATIENCE, || {
            let record = service.record(&id);
            (record["status"] == "running" && record["deliveries"] == delivery).then_some(())
        });
        kill(service.child("executor"));
    }
    let answer = caller.read();
    assert_eq!((answer.status, answer.code().as_str()), (500, "dead_lettered"), "{answer:?}");
    assert_eq!(answer.json()["cause"], "executor_lost");
    assert_eq!(service.metric("queue_dead_total"), 1.0);
    let id = answer.header("cofferdam-job-id").expect("a job").to_owned();
    assert_eq!(service.record(&id)["status"], "dead");
    assert_eq!(service.post(&format!("/v1/jobs/{id}/retry"), "").status, 202, "a dead job can live again");
}

#[test]
fn sixty_four_connections_at_once_are_all_served() {
    const CALLS: usize = 40;
    let service = Service::start(&[]);
    let address = service.address;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for caller in 0..64 {
            scope.spawn(move || {
                let mut client = Client::to(address);
                for number in 0..CALLS {
                    let body = format!("{caller}/{number}");
                    let answer = client.request("POST", "/v1/jobs/echo", &[], &body);
                    assert_eq!((answer.status, answer.text()), (200, body), "{answer:?}");
                    let page = client.request("GET", "/v1/stats", &[], "");
                    // Pages may be refused by name when too many are asked for at once.
                    assert!(page.status == 200 || page.code() == "overloaded", "{page:?}");
                }
            });
        }
    });
    println!("{} requests in {:?}", 64 * CALLS * 2, begun.elapsed());
    waiters(&service, 0.0);
}

#[test]
fn a_thousand_connections_that_say_nothing_do_not_keep_anyone_from_being_served() {
    let service = Service::start(&[]);
    let silent: Vec<Client> = (0..1_000).map(|_| service.connect()).collect();
    for _ in 0..20 {
        assert_eq!(service.post("/v1/jobs/echo", "x").status, 200);
    }
    drop(silent);
    assert_eq!(service.get("/healthz").status, 200);
}

/// How many descriptors and threads a process has.
fn holdings(pid: u32) -> (usize, usize) {
    let count = |of: &str| std::fs::read_dir(format!("/proc/{pid}/{of}")).expect("our own child").count();
    (count("fd"), count("task"))
}

#[test]
fn after_a_storm_with_kills_no_descriptor_or_thread_is_left() {
    let service = Service::start(&[]);
    let address = service.address;
    assert_eq!(service.get("/metrics").status, 200);
    let (web, before) = (service.child("web"), [holdings(service.child("web")), holdings(service.pid)]);
    for _ in 0..5 {
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(move || {
                    let mut client = Client::to(address);
                    client.request("POST", "/v1/jobs/echo", &[], "x");
                    client.request("GET", "/v1/stats", &[], "");
                    client.send("GET /half HTTP/1.1\r\nHo");
                });
            }
        });
        kill(service.child("executor"));
        assert_eq!(service.post("/v1/jobs/echo", "x").status, 200);
    }
    let mut now = before;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        now = [holdings(web), holdings(service.pid)];
        if now == before {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("descriptors and threads of web and supervisor: {now:?} instead of {before:?}");
}

#[test]
fn a_client_that_does_not_read_is_cut_off_and_disturbs_nobody() {
    let service = Service::start(&[r#"web.limits={"write_timeout_ms":300}"#]);
    let before = holdings(service.child("web")).0;
    let body = "a".repeat(500_000);
    let mut deaf = service.connect();
    // Its answers exceed what the kernel takes on both sides.
    for _ in 0..20 {
        deaf.stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a TCP socket");
        deaf.send(request("POST", "/v1/jobs/echo", &[], &body));
    }
    for _ in 0..50 {
        assert_eq!(service.post("/v1/jobs/echo", "x").status, 200);
    }
    until("its connection is closed", PATIENCE, || {
        (holdings(service.child("web")).0 <= before).then_some(())
    });
}

#[test]
fn connections_beyond_the_limit_wait_until_one_ends() {
    let service = Service::start(&[r#"web.limits={"connections":4}"#]);
    let mut held: Vec<Client> = (0..4).map(|_| service.connect()).collect();
    for client in &mut held {
        assert_eq!(client.request("GET", "/healthz", &[], "").status, 200);
    }
    let mut fifth = service.connect();
    fifth.send(request("GET", "/healthz", &[], ""));
    assert_eq!(fifth.try_read(Duration::from_millis(300)), Err(service::NoAnswer::Late));
    held.pop();
    assert_eq!(fifth.read().status, 200);
}

#[test]
fn callers_that_send_and_hang_up_at_once_leave_no_waiter_behind() {
    for mode in [INLINE, SUPERVISED] {
        let service = Service::start(&[mode]);
        for _ in 0..100 {
            // The end of the connection is often there before the request was read.
            drop(sleeper(&service, 600_000));
        }
        until("all hundred are submitted", PATIENCE, || {
            (service.metric("jobs_submitted_total{handler=\"sleep\"}") == 100.0).then_some(())
        });
        until("no caller waits", Duration::from_secs(5), || {
            (service.metric("reply_waiters") == 0.0).then_some(())
        });
        assert_eq!(service.metric("reply_cancelled_total"), 100.0, "{mode}");
    }
}

#[test]
fn a_hang_up_that_comes_together_with_the_request_is_seen() {
    for mode in [INLINE, SUPERVISED] {
        let service = Service::start(&[mode]);
        let front = if mode == INLINE { service.pid } else { service.child("web") };
        let mut client = service.connect();
        assert_eq!(client.request("GET", "/healthz", &[], "").status, 200);
        // Stopped meanwhile, it finds the bytes and the end of the connection in one event.
        signal(front, Signal::STOP);
        client.send(request("POST", "/v1/jobs/sleep", &[], LONG_SLEEP));
        drop(client);
        signal(front, Signal::CONT);
        until("it is submitted", PATIENCE, || {
            (service.metric("jobs_submitted_total{handler=\"sleep\"}") == 1.0).then_some(())
        });
        until("no caller waits", Duration::from_secs(5), || {
            (service.metric("reply_waiters") == 0.0).then_some(())
        });
    }
}

#[test]
fn a_killed_web_process_refuses_no_connection_and_the_next_request_is_answered() {
    let service = Service::start(&[]);
    for _ in 0..5 {
        let web = service.child("web");
        let mut waiting = sleeper(&service, 600_000);
        waiters(&service, 1.0);
        kill(web);
        let begun = Instant::now();
        // This connection is made while nobody accepts.
        let answer = service.post("/v1/jobs/echo", "x");
        let took = begun.elapsed();
        assert_eq!((answer.status, answer.text()), (200, "x".into()), "{answer:?}");
        assert!(took < Duration::from_secs(2), "it took {took:?}");
        assert!(waiting.try_read(PATIENCE).is_err(), "who waited there has lost its connection");
        assert_ne!(service.child("web"), web);
    }
    let stats = service.get("/v1/stats").json();
    assert_eq!(stats["totals"]["running"], 0, "jobs in memory went with their web process: {stats}");
    until("it is ready", PATIENCE, || (service.get("/readyz").status == 200).then_some(()));
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
}

#[test]
fn a_new_web_process_counts_from_its_own_start_and_its_executors_work_on_all_workers() {
    let service = Service::start(&[]);
    // What the old web's jobs held in the executor must not hold anything in the new one's life.
    let held: Vec<Client> = (0..8).map(|_| sleeper(&service, 600_000)).collect();
    until("every worker sleeps", PATIENCE, || {
        (service.get("/v1/stats").json()["totals"]["running"] == 8).then_some(())
    });
    kill(service.child("web"));
    drop(held);
    let begun = Instant::now();
    let mut callers: Vec<Client> = (0..8).map(|_| sleeper(&service, 500)).collect();
    for caller in &mut callers {
        assert_eq!(caller.read().text(), r#"{"slept_ms":500}"#);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
}

#[test]
fn nothing_outlives_a_killed_supervisor() {
    let groups = r#"runtime.platform.process_groups=[{"name":"execution","processes":3}]"#;
    let service = Service::start(&[groups]);
    let _busy = sleeper(&service, 600_000);
    waiters(&service, 1.0);
    let children: Vec<u32> = [service.children("web"), service.children("executor")].concat();
    assert_eq!(children.len(), 4);
    kill(service.pid);
    let begun = Instant::now();
    until("every child is gone", Duration::from_secs(5), || {
        (!children.iter().any(|pid| is_alive(*pid))).then_some(())
    });
    assert!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
    TcpListener::bind(service.address).expect("its port is free");
}

#[test]
fn a_supervisor_that_was_stopped_for_a_while_changes_nothing() {
    let service = Service::start(&["runtime.platform.execution_ipc.heartbeat_ms=200"]);
    let family = [service.child("web"), service.child("executor")];
    signal(service.pid, Signal::STOP);
    for _ in 0..20 {
        assert_eq!(service.post("/v1/jobs/echo", "x").status, 200);
    }
    // Longer than it lets a child be silent; but it was its own silence.
    std::thread::sleep(Duration::from_millis(1_200));
    signal(service.pid, Signal::CONT);
    // It answers control messages again: an executor that is killed now has a successor.
    kill(family[1]);
    until("the executor is replaced", PATIENCE, || {
        (service.children("executor").iter().any(|pid| *pid != family[1])).then_some(())
    });
    assert_eq!(service.post("/v1/jobs/echo", "x").status, 200);
    assert_eq!(service.child("web"), family[0], "nobody was ended for it");
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("does not answer"), "{}", ended.stderr);
}

#[test]
fn a_stopped_executor_is_replaced_and_its_callers_are_served_by_the_next_one() {
    let service = Service::start(&["runtime.platform.execution_ipc.heartbeat_ms=200"]);
    let executor = service.child("executor");
    signal(executor, Signal::STOP);
    let answer = service.post("/v1/jobs/echo", "x");
    assert_eq!((answer.status, answer.text()), (200, "x".into()), "{answer:?}");
    until("the stopped one is ended", PATIENCE, || (!is_alive(executor)).then_some(()));
    assert_ne!(service.child("executor"), executor);
}

#[test]
fn sigterm_lets_running_and_queued_jobs_finish_and_exits_0() {
    for mode in [INLINE, SUPERVISED] {
        for stop in [Signal::TERM, Signal::INT] {
            let service = Service::start(&[mode]);
            let mut callers: Vec<Client> = (0..12).map(|_| sleeper(&service, 600)).collect();
            waiters(&service, 12.0);
            signal(service.pid, stop);
            for caller in &mut callers {
                let answer = caller.read();
                assert_eq!((answer.status, answer.text()), (200, r#"{"slept_ms":600}"#.into()), "{answer:?}");
            }
            let ended = service.ended();
            assert_eq!(ended.status.code(), Some(0), "{mode} {stop:?}: {}", ended.stderr);
        }
    }
}

#[test]
fn an_idle_service_ends_at_once() {
    for mode in [INLINE, SUPERVISED] {
        let service = Service::start(&[mode]);
        // A connection that is kept alive holds nobody up.
        let mut idle = service.connect();
        assert_eq!(idle.request("GET", "/healthz", &[], "").status, 200);
        let children = [service.children("web"), service.children("executor")].concat();
        let begun = Instant::now();
        let ended = service.stop();
        assert_eq!(ended.status.code(), Some(0), "{mode}: {}", ended.stderr);
        assert!(begun.elapsed() < Duration::from_secs(2), "{mode} took {:?}", begun.elapsed());
        assert!(!children.iter().any(|pid| is_alive(*pid)));
    }
}

#[test]
fn a_second_signal_forces_the_stop_and_names_what_was_cut_off() {
    for mode in [INLINE, SUPERVISED] {
        let service = Service::start(&[mode]);
        let id = service.submit("/v1/jobs/sleep", &[], LONG_SLEEP);
        service.record_when(&id, "running");
        service.terminate();
        until("it drains", PATIENCE, || (service.get("/readyz").status == 503).then_some(()));
        let begun = Instant::now();
        service.terminate();
        let ended = service.ended();
        assert!(begun.elapsed() < Duration::from_secs(3), "{mode} took {:?}", begun.elapsed());
        assert_eq!(ended.status.code(), Some(4), "{mode}: {}", ended.stderr);
        assert!(ended.stderr.contains(&id), "{mode} does not name {id}: {}", ended.stderr);
    }
}

#[test]
fn past_the_drains_deadline_it_exits_4_names_the_jobs_and_tells_the_callers() {
    for mode in [INLINE, SUPERVISED] {
        for deadline in [
            "runtime.platform.lifecycle.graceful_timeout_ms=300",
            "runtime.platform.lifecycle.drain_inflight=false",
        ] {
            let service = Service::start(&[mode, deadline]);
            let mut caller = sleeper(&service, 600_000);
            waiters(&service, 1.0);
            let job = service.get("/v1/jobs").json()["jobs"][0]["id"].as_str().expect("an id").to_owned();
            let begun = Instant::now();
            service.terminate();
            let answer = caller.read();
            assert_eq!((answer.status, answer.code().as_str()), (503, "draining"), "{mode}: {answer:?}");
            let ended = service.ended();
            assert_eq!(ended.status.code(), Some(4), "{mode} {deadline}: {}", ended.stderr);
            assert!(ended.stderr.contains(&job), "{mode} {deadline} does not name {job}: {}", ended.stderr);
            assert!(begun.elapsed() < Duration::from_secs(5), "{mode} took {:?}", begun.elapsed());
        }
    }
}

#[test]
fn a_delayed_job_that_cannot_start_in_time_does_not_hold_up_the_drain() {
    for mode in [INLINE, SUPERVISED] {
        let service = Service::start(&[mode]);
        let id = service.submit("/v1/jobs/echo?delay_ms=600000", &[], "x");
        let begun = Instant::now();
        let ended = service.stop();
        // In memory it is lost, so it is named.
        assert_eq!(ended.status.code(), Some(4), "{mode}: {}", ended.stderr);
        assert!(ended.stderr.contains(&id), "{mode} does not name {id}: {}", ended.stderr);
        assert!(begun.elapsed() < Duration::from_secs(3), "{mode} took {:?}", begun.elapsed());
    }
}

#[test]
fn an_executor_killed_during_the_drain_is_replaced_and_its_job_finishes() {
    let service = Service::start(&[]);
    let mut caller = sleeper(&service, 1_000);
    waiters(&service, 1.0);
    until("it runs", PATIENCE, || (service.get("/v1/stats").json()["totals"]["running"] == 1).then_some(()));
    service.terminate();
    until("it drains", PATIENCE, || (service.get("/readyz").status == 503).then_some(()));
    kill(service.child("executor"));
    let answer = caller.read();
    assert_eq!((answer.status, answer.text()), (200, r#"{"slept_ms":1000}"#.into()), "{answer:?}");
    let ended = service.ended();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
}

#[test]
fn a_port_that_is_taken_is_exit_1_with_the_address_and_leaves_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("its address").to_string();
    for mode in [INLINE, SUPERVISED] {
        let output = wait(Service::spawn(&cofferdam(), &[mode, &format!("web.bind={address}")]));
        assert_eq!(output.status.code(), Some(1), "{}", shown(&output));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(&address), "{stderr}");
        assert!(output.stdout.is_empty(), "{}", shown(&output));
    }
}

#[test]
fn a_service_leaves_no_socket_folder_behind() {
    let folder = Folder::new();
    let path = folder.path("run");
    std::fs::create_dir(&path).expect("a folder");
    let service = || {
        let mut command = program::command(&cofferdam(), ["serve", "--set", "web.bind=127.0.0.1:0"]);
        let service = Service::from(command.env("RUNTIME_DIRECTORY", &path).spawn().expect("it starts"));
        assert!(std::fs::read_dir(&path).expect("the folder").count() > 0, "its socket is there");
        service
    };
    let left = || std::fs::read_dir(&path).expect("the folder").count();
    service().stop();
    assert_eq!(left(), 0, "after SIGTERM");
    // A killed one cannot clean up; the next one does.
    drop(service());
    assert_eq!(left(), 1, "after a kill");
    service().stop();
    assert_eq!(left(), 0, "after a kill and another start");
}

#[test]
fn signals_do_not_reach_past_a_closed_stdout_or_stderr() {
    // Row P13: nobody reads its streams any more, and it goes on.
    for mode in [INLINE, SUPERVISED] {
        let mut child = Service::spawn(&cofferdam(), &[mode, "observability.log=json"]);
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("the ready line");
        drop(child.stderr.take());
        let address =
            line.split("http://").nth(1).and_then(|rest| rest.split(' ').next()).expect("an address");
        let mut client = Client::to(address.parse().expect("an address"));
        for _ in 0..50 {
            assert_eq!(client.request("POST", "/v1/jobs/echo", &[], "x").text(), "x");
        }
        signal(child.id(), Signal::TERM);
        let output = wait(child);
        assert_eq!(output.status.code(), Some(0), "{mode}: {}", shown(&output));
    }
}
