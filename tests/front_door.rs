//! Clients that take their answers slowly, by half or not at all, and very many of them: what each of them can take from the
//! others, which is little.
//!
//! It guards the budgets of the front process: unread answers, bodies, connections, and that answers arrive whole.

#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use service::{Client, PATIENCE, Service, Stopwatch, holdings, request, until, waiters};

const MIB: usize = 1 << 20;
/// What unread answers may take (`limits::UNREAD_BYTES`).
const UNREAD: usize = 64 * MIB;
/// A machine that others load is so for a while: one quiet moment of so many is enough.
const ATTEMPTS: usize = 3;

/// Resident memory of a process, in bytes.
fn resident_bytes(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    1024 * line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number")
}

/// Until its connections are about as many as before.
#[track_caller]
fn comes_back(web: u32, descriptors: usize) {
    until("its connections go", PATIENCE, || (holdings(web).0 <= descriptors + 3).then_some(()));
}

/// Thousands of connections from here; the soft limit is often 1,024.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the hard limit");
}

/// The 99th percentile of so many echoes on a connection that is kept; each is answered.
fn honest(service: &Service, count: usize) -> Duration {
    let mut client = service.connect();
    let mut times: Vec<Duration> = (0..count)
        .map(|_| {
            let begun = Stopwatch::start();
            assert_eq!(client.request("POST", "/v1/jobs/echo", &[], "x").status, 200);
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[count * 99 / 100]
}

#[track_caller]
fn assert_quick(what: &str, service: &Service) {
    let attempts: Vec<Duration> = (0..ATTEMPTS).map(|_| honest(service, 200)).collect();
    assert!(attempts.iter().any(|p99| *p99 < Duration::from_millis(100)), "{what}: p99 {attempts:?}");
}

/// A job with a result of 1 MiB, and a request for it.
fn large_result(service: &Service) -> String {
    let id = service.submit("/v1/jobs/echo", &["Idempotency-Key: large"], "a".repeat(MIB));
    service.record_when(&id, "succeeded");
    format!("GET /v1/jobs/{id}/result HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

#[test]
fn a_client_that_closes_its_side_gets_the_answers_of_what_it_sent_whole() {
    let service = Service::start(&[]);
    let mut client = service.connect();
    client.send(
        [
            request("POST", "/v1/jobs/sleep", &[], r#"{"ms":400}"#),
            request("POST", "/v1/jobs/echo", &[], "second"),
            request("POST", "/v1/batch/echo", &[], "1\n2\n3\n"),
            request("GET", "/v1/stats", &[], ""),
            b"GET /healthz HT".to_vec(),
        ]
        .concat(),
    );
    client.stream.shutdown(Shutdown::Write).expect("a socket");
    assert_eq!(client.read().status, 200);
    assert_eq!(client.read().text(), "second");
    assert_eq!(client.read().text(), "1\n2\n3\n");
    assert_eq!(client.read().status, 200);
    client.assert_closed();
    // A batch whose lines are slower than its sender.
    let mut client = service.connect();
    client.send(request("POST", "/v1/batch/sleep", &[], "{\"ms\":300}\n{\"ms\":1}\n"));
    client.stream.shutdown(Shutdown::Write).expect("a socket");
    let answer = client.read();
    assert_eq!((answer.status, answer.text().lines().count()), (200, 2), "{answer:?}");
    client.assert_closed();
    waiters(&service, 0.0);
    // What is not whole is not answered, whether it is a head or a body.
    for part in
        ["GET /healthz HTTP/1.1\r\nHost: localh", "POST /v1/jobs/echo HTTP/1.1\r\nHost: a\r\nContent-L"]
    {
        let mut client = service.connect();
        client.send(part);
        client.stream.shutdown(Shutdown::Write).expect("a socket");
        client.assert_closed();
    }
    assert_eq!(service.metric("jobs_submitted_total{handler=\"echo\"}"), 4.0);
}

#[test]
fn a_hang_up_is_noticed_behind_requests_that_were_read_ahead() {
    let service = Service::start(&["handlers.sleep.cancel_on_disconnect=true"]);
    let ahead = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    // Behind the job lie nothing, a part of a request, one, and more than is read while it runs, in the kernel's hands.
    for (number, behind) in ["", "GET /hea", ahead, &ahead.repeat(2_400)].iter().enumerate() {
        let mut client = service.connect();
        client.send(request("POST", "/v1/jobs/sleep", &[], r#"{"ms":600000}"#));
        let mut writer = client.stream.try_clone().expect("a socket");
        let bytes = behind.as_bytes().to_vec();
        let writing = std::thread::spawn(move || writer.write_all(&bytes));
        waiters(&service, 1.0);
        let id = service.get("/v1/jobs?limit=1").json()["jobs"][0]["id"].as_str().expect("an id").to_owned();
        writing.join().expect("a thread").expect("the kernel has room for it");
        drop(client);
        until(&format!("its waiter goes, behind {} bytes", behind.len()), PATIENCE, || {
            (service.metric("reply_waiters") == 0.0).then_some(())
        });
        service.record_when(&id, "cancelled");
        assert_eq!(service.metric("reply_cancelled_total"), (number + 1) as f64);
    }
}

#[test]
fn answers_that_nobody_reads_have_a_budget() {
    allow_descriptors();
    let service = Service::start(&[r#"web.limits={"connections":2000}"#]);
    let web = service.child("web");
    // More than the kernel takes for them, and fewer at once than pages may wait.
    let asks = large_result(&service).repeat(8);
    let (before, descriptors) = (resident_bytes(web), holdings(web).0);
    let deaf: Vec<Client> = (0..200)
        .map(|_| {
            let mut client = service.connect();
            client.send(&asks);
            client
        })
        .collect();
    // One who reads keeps a connection all the while.
    let mut kept = service.connect();
    // Until it has grown no more for a while: on a machine that is busy it takes its time.
    let (mut grown, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_secs(3) {
        let more = resident_bytes(web).saturating_sub(before);
        if more > grown + MIB {
            (grown, since) = (more, Instant::now());
        }
        // Beside what is counted: results on their way to the loop, and what the allocator keeps of those that were closed.
        assert!(more < UNREAD + 64 * MIB, "{} MiB more for 200 clients that do not read", more / MIB);
        assert_eq!(service.post("/v1/jobs/echo", "x").status, 200);
        assert_eq!(kept.request("POST", "/v1/jobs/echo", &[], "x").status, 200);
        // Not so often that the large result is beyond the records that are kept.
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_quick("200 clients that do not read", &service);
    // Nobody is closed for whom there is room.
    let open = holdings(web).0 - descriptors;
    assert!(open > UNREAD / (4 * MIB), "only {open} of them are still there");
    // Whoever reads gets it whole, beside them and afterwards.
    let mut reader = service.connect();
    for _ in 0..3 {
        reader.send(large_result(&service));
        assert_eq!(reader.read().body.len(), MIB);
    }
    drop(deaf);
    comes_back(web, descriptors);
}

#[test]
fn chunk_framing_takes_nobody_elses_room() {
    let service = Service::start(&[]);
    let mut liars: Vec<Client> = (0..80).map(|_| service.connect()).collect();
    // 80 MiB of chunk extensions and of chunks of one byte, more than all bodies may have together.
    for (number, liar) in liars.iter_mut().enumerate() {
        liar.send("POST /v1/jobs/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
        let mut stream = liar.stream.try_clone().expect("a socket");
        stream.set_nonblocking(true).expect("a socket");
        let piece = match number % 2 {
            0 => format!("1;{}\r\nx\r\n", "e".repeat(1_000)),
            _ => "1\r\nx\r\n".to_owned(),
        };
        let bytes = piece.repeat(MIB / piece.len());
        let mut left = bytes.as_bytes();
        let deadline = Instant::now() + Duration::from_secs(1);
        while !left.is_empty() && Instant::now() < deadline {
            match stream.write(left) {
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(_) => break,
            }
        }
        stream.set_nonblocking(false).expect("a socket");
    }
    for _ in 0..20 {
        assert_eq!(service.post("/v1/jobs/echo", "a".repeat(MIB)).status, 200);
    }
    for (number, liar) in liars.iter_mut().enumerate() {
        match number % 2 {
            0 => assert_eq!(liar.read().status, 400, "extensions are bounded"),
            _ => liar.send("0\r\n\r\n"),
        }
    }
    for honest in liars.iter_mut().skip(1).step_by(2) {
        assert_eq!(honest.read().status, 200, "small chunks are none of our concern");
    }
}

/// What came behind the last request is dropped with it, and a request that asks for no body has hardly any.
#[test]
fn bodies_that_nobody_asked_for_or_that_were_refused_take_no_memory() {
    allow_descriptors();
    let service = Service::start(&[]);
    let web = service.child("web");
    let before = resident_bytes(web);
    let body = "x".repeat(MIB - 1);
    let ask = |target: &str| format!("{target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MIB}\r\n\r\n");
    let (no_body, job) = (ask("GET /healthz"), ask("POST /v1/jobs/echo"));
    let mut most = 0;
    let clients: Vec<Client> = (0..300)
        .map(|number| {
            let mut client = service.connect();
            client.stream.set_write_timeout(Some(Duration::from_millis(200))).expect("a socket");
            client.send(if number % 2 == 0 { &no_body } else { &job });
            client.send(&body);
            most = most.max(resident_bytes(web));
            client
        })
        .collect();
    let grown = most.saturating_sub(before);
    assert!(grown < 64 * MIB + 48 * MIB, "{} MiB more for 300 bodies that never end", grown / MIB);
    drop(clients);
    let mut client = service.connect();
    client.send(no_body);
    assert_eq!(client.read().status, 413);
}

/// Whoever cannot be served any more, and whoever does not say what it wants, makes room.
#[test]
fn at_the_limit_those_go_first_who_linger_or_dawdle() {
    let service = Service::start(&[r#"web.limits={"connections":20}"#]);
    for beginning in
        ["BAD\r\n\r\n", "G", "GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nx"]
    {
        let crowd: Vec<Client> = (0..30)
            .map(|_| {
                let mut client = service.connect();
                client.send(beginning);
                client
            })
            .collect();
        for _ in 0..10 {
            let begun = Stopwatch::start();
            assert_eq!(service.post("/v1/jobs/echo", "x").status, 200);
            assert!(begun.elapsed() < Duration::from_millis(700), "{beginning:?}: {:?}", begun.elapsed());
        }
        drop(crowd);
    }
}

/// Half-closed callers are no waiters, and still no more than those may be.
#[test]
fn callers_that_half_close_are_bounded_too() {
    let service = Service::start(&["web.max_inflight=16"]);
    let mut callers: Vec<Client> = (0..60)
        .map(|_| {
            let mut client = service.connect();
            client.send(request("POST", "/v1/jobs/echo?delay_ms=5000", &[], "x"));
            client.stream.shutdown(Shutdown::Write).expect("a socket");
            waiters(&service, 0.0);
            client
        })
        .collect();
    let answers = callers.iter_mut().filter_map(|client| client.try_read(PATIENCE).ok());
    let answered = answers.inspect(|answer| assert_eq!(answer.status, 200)).count();
    assert_eq!(answered, 16, "as many as may wait");
}

/// Who asks for a record looks on: the job is not its own to take along.
#[test]
fn a_caller_who_only_looks_takes_no_job_along() {
    let service = Service::start(&["handlers.sleep.cancel_on_disconnect=true"]);
    for half in [false, true] {
        let id = service.submit("/v1/jobs/sleep", &[], r#"{"ms":3000}"#);
        let mut looker = service.connect();
        looker.send(format!("GET /v1/jobs/{id}?wait=20 HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        waiters(&service, 1.0);
        if half {
            looker.stream.shutdown(Shutdown::Write).expect("a socket");
            assert_eq!(looker.read().json()["status"], "succeeded");
        } else {
            drop(looker);
            waiters(&service, 0.0);
        }
        assert_eq!(service.record_when(&id, "succeeded")["deliveries"], 1);
    }
}

#[test]
fn readiness_is_not_behind_a_burst_of_metrics() {
    let service = Service::start(&[]);
    let mut scrapers: Vec<Client> = (0..200).map(|_| service.connect()).collect();
    for scraper in &mut scrapers {
        scraper.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(20));
    }
    let begun = Stopwatch::start();
    assert_eq!(service.get("/readyz").status, 200);
    assert_eq!(service.get("/healthz").status, 200);
    assert!(begun.elapsed() < Duration::from_secs(2), "after {:?}", begun.elapsed());
    assert!(scrapers[0].read().text().contains("cofferdam_reply_waiters"));
}

#[test]
fn five_thousand_connections_leave_honest_clients_alone() {
    allow_descriptors();
    let service = Service::start(&[r#"web.limits={"connections":5200}"#]);
    let web = service.child("web");
    let asks = large_result(&service).repeat(2);
    let (before, descriptors) = (resident_bytes(web), holdings(web).0);
    let silent: Vec<Client> = (0..3_000).map(|_| service.connect()).collect();
    let deaf: Vec<Client> = (0..500)
        .map(|_| {
            let mut client = service.connect();
            client.send(&asks);
            client
        })
        .collect();
    let kept: Vec<Client> = (0..1_500)
        .map(|_| {
            let mut client = service.connect();
            assert_eq!(client.request("GET", "/healthz", &[], "").status, 200);
            client
        })
        .collect();
    assert_quick("5,000 connections", &service);
    let grown = resident_bytes(web).saturating_sub(before);
    assert!(grown < UNREAD + 64 * MIB, "{} MiB more for 5,000 connections", grown / MIB);
    drop((silent, deaf, kept));
    comes_back(web, descriptors);
}

/// Silent connections beyond the limit shut out nobody: each that comes takes the place of the one that is silent longest.
#[test]
fn a_crowd_of_silent_connections_shuts_out_nobody() {
    allow_descriptors();
    let service = Service::start(&[r#"web.limits={"connections":200}"#]);
    let crowd: Vec<Client> = (0..1_000).map(|_| service.connect()).collect();
    for _ in 0..20 {
        let begun = Stopwatch::start();
        assert_eq!(service.post("/v1/jobs/echo", "x").status, 200);
        assert!(begun.elapsed() < Duration::from_secs(2), "after {:?}", begun.elapsed());
    }
    drop(crowd);
}
