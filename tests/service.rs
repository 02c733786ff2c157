//! A service as processes: who runs, who listens, who is replaced, and how it ends.
//!
//! It guards slow and leaving clients, and the shape of a service with the real binary. Rows P1 to P17
//! are in lifecycle.rs, lifecycle_stop.rs and lifecycle_host.rs.

#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use program::{Folder, cofferdam, example};
use rustix::process::Signal;
use service::{
    Client, PATIENCE, Service, Stopwatch, holdings, is_alive, kill, request, signal, sleeper, until, waiters,
    words,
};

const INLINE: &str = "runtime.platform.bootstrap.mode=inline";
const SUPERVISED: &str = "runtime.platform.bootstrap.mode=process_supervisor";
const LONG_SLEEP: &str = r#"{"ms":600000}"#;

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
        // The first look may have met a connection that was still to be closed.
        if now.iter().zip(before).all(|(now, before)| now.0 <= before.0 && now.1 <= before.1) {
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
    let mut held: Vec<Client> = (0..4).map(|_| sleeper(&service, 600_000)).collect();
    // Whoever asks whether they are served is a connection too.
    std::thread::sleep(Duration::from_millis(300));
    let mut fifth = service.connect();
    fifth.send(request("GET", "/healthz", &[], ""));
    assert_eq!(fifth.try_read(Duration::from_millis(300)), Err(service::NoAnswer::Late));
    held.pop();
    assert_eq!(fifth.read().status, 200);
}

/// Row W: silent connections shut out nobody.
#[test]
fn at_the_limit_the_connection_that_is_idle_longest_gives_way() {
    let service = Service::start(&[r#"web.limits={"connections":4}"#]);
    let mut busy = sleeper(&service, 1_000);
    let mut silent: Vec<Client> = (0..3).map(|_| service.connect()).collect();
    for client in silent.iter_mut().rev() {
        assert_eq!(client.request("GET", "/healthz", &[], "").status, 200);
    }
    for _ in 0..2 {
        assert_eq!(service.connect().request("GET", "/healthz", &[], "").status, 200);
    }
    // Those that had asked earliest went, and whoever is served did not.
    silent[2].assert_closed();
    assert_eq!(busy.read().status, 200);
    assert_eq!(silent[0].request("GET", "/healthz", &[], "").status, 200);
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
    let killed = service();
    let web = killed.child("web");
    drop(killed);
    assert_eq!(left(), 1, "after a kill");
    // A socket that somebody still listens on is nobody else's to remove.
    until("its web is gone", PATIENCE, || (!is_alive(web)).then_some(()));
    service().stop();
    assert_eq!(left(), 0, "after a kill and another start");
}

#[test]
fn an_inline_handler_that_ignores_its_timeout_costs_its_worker_and_nothing_else() {
    const FOR_MS: u64 = 2_000;
    let group = r#"runtime.platform.process_groups=[{"name":"execution","workers":2}]"#;
    let sets = [INLINE, group, "handlers.stubborn.timeout_ms=200"];
    // How long it may take before it is said to be ignored.
    let grace = "runtime.platform.lifecycle.graceful_timeout_ms=500";
    let service = Service::of(&example("embedder"), &[&sets[..], &[grace]].concat());
    let begun = Stopwatch::start();
    let mut stubborn = service.connect();
    stubborn.send(request("POST", "/v1/jobs/stubborn", &[], FOR_MS.to_string()));
    let answer = stubborn.read();
    assert_eq!((answer.status, answer.code().as_str()), (504, "handler_timed_out"), "{answer:?}");
    for number in 0..20 {
        assert_eq!(service.post("/v1/jobs/echo", number.to_string()).text(), number.to_string());
    }
    assert!(begun.elapsed() < Duration::from_millis(FOR_MS), "both in the time of the other worker");
    let says = "a handler ignores its timeout; its worker thread is lost until it returns";
    until("it says so", PATIENCE, || service.stderr().contains(says).then_some(()));
    // Two that sleep for longer than it takes do so beside each other once its worker is back.
    let mut both = [sleeper(&service, 2_500), sleeper(&service, 2_500)];
    until("both workers sleep", PATIENCE, || {
        (service.get("/v1/stats").json()["totals"]["running"] == 2).then_some(())
    });
    both.iter_mut().for_each(|caller| assert_eq!(caller.read().status, 200));
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches(says).count(), 1, "{}", ended.stderr);
}

#[test]
fn more_pages_than_can_wait_are_refused_by_name_and_readiness_is_still_answered() {
    // Four are made at once, 256 wait.
    const PAGES: usize = 400;
    let service = Service::start(&[]);
    let lines = "1\n".repeat(1_000);
    assert_eq!(service.post("/v1/batch/echo", lines).status, 200);
    let front = service.child("web");
    // Stopped meanwhile, it finds all of them at once.
    signal(front, Signal::STOP);
    let mut clients: Vec<Client> = (0..PAGES).map(|_| service.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(request("GET", "/v1/jobs?limit=1000", &[], "")));
    let mut ready = service.connect();
    ready.send(request("GET", "/readyz", &[], ""));
    signal(front, Signal::CONT);
    assert_eq!(ready.read().status, 200);
    let mut refused = 0;
    for client in &mut clients {
        let answer = client.read();
        if answer.status == 200 {
            assert_eq!(answer.json()["jobs"].as_array().map(Vec::len), Some(1_000));
            continue;
        }
        assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"), "{answer:?}");
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
        refused += 1;
    }
    assert!(refused > 0 && refused <= PAGES - 260, "{refused} were refused");
    drop(clients);
    assert_eq!(service.get("/v1/jobs?limit=1000").status, 200);
}
