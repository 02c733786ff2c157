//! The HTTP interface over real sockets to a real service: every refusal by its name, every route by its answer.
//!
//! It guards the HTTP interface: what is malformed is answered and closed,
//! what is refused is refused by name, and nothing that was accepted is lost by any of it.

#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::collections::HashSet;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use program::example;
use serde_json::{Value, json};
use service::{Answer, Client, NoAnswer, PATIENCE, Service, Stopwatch, request, until};

/// One worker, so that a second job must wait.
const ONE_WORKER: &str = r#"runtime.platform.process_groups=[{"name":"execution","workers":1}]"#;
const KEYED_ECHO: &str = r#"handlers.echo.ordering={"key":"/k"}"#;
const NO_JOB: &str = "00000000000000000000000000000000";
/// Longer than any test; a service that stops ends it.
const LONG_SLEEP: &str = r#"{"ms":600000}"#;

/// What every answer carries, and a problem in particular.
#[track_caller]
fn assert_problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    let problem = answer.json();
    assert_eq!(problem["type"], format!("urn:cofferdam:error:{code}"), "{answer:?}");
    assert_eq!(problem["status"], status, "{answer:?}");
    for text in ["title", "detail", "trace_id"] {
        assert!(problem[text].as_str().is_some_and(|text| !text.is_empty()), "no {text}: {answer:?}");
    }
    let retry_after = answer.header("retry-after").map(|seconds| seconds.parse::<u32>().expect("seconds"));
    assert_eq!(retry_after.is_some(), matches!(status, 429 | 503), "{answer:?}");
    assert_common(answer);
    let trace = answer.header("traceparent").expect("a traceparent");
    assert_eq!(trace.split('-').nth(1), problem["trace_id"].as_str(), "{answer:?}");
}

#[track_caller]
fn assert_common(answer: &Answer) {
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
    let trace = answer.header("traceparent").unwrap_or_else(|| panic!("no traceparent: {answer:?}"));
    let parts: Vec<&str> = trace.split('-').collect();
    let is_hex = |part: &str, length| part.len() == length && part.bytes().all(|b| b.is_ascii_hexdigit());
    let valid = matches!(parts[..], ["00", id, span, flags] if is_hex(id, 32) && is_hex(span, 16) && is_hex(flags, 2));
    assert!(valid, "{trace:?} is no traceparent");
}

#[track_caller]
fn job_id(answer: &Answer) -> String {
    let id = answer.header("cofferdam-job-id").unwrap_or_else(|| panic!("no job id: {answer:?}")).to_owned();
    assert!(id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{id:?}");
    id
}

/// A handler that sleeps for long, queued without a caller.
#[track_caller]
fn start_long_job(service: &Service) -> String {
    let id = service.submit("/v1/jobs/sleep", &[], LONG_SLEEP);
    service.record_when(&id, "running");
    id
}

/// A GET with this path and these further lines.
fn get(lines: &str) -> String {
    format!("GET /healthz HTTP/1.1\r\n{lines}\r\n")
}

fn post(lines: &str) -> String {
    format!("POST /v1/jobs/echo HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n")
}

// ---- refusals of the gate: by the bytes alone ----

#[test]
fn malformed_requests_are_refused_by_name_and_never_read_as_a_second_request() {
    let service = Service::start(&[]);
    // What follows each of them would be answered, were it ever read as a request.
    let smuggled = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let rows: Vec<(String, u16, &str)> = vec![
        (get(""), 400, "bad_request"),
        (get("Host: a\r\nHost: a\r\n"), 400, "bad_request"),
        (get("Host: localhost\r\nHost: localhost\r\n"), 400, "bad_request"),
        ("GET  /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".into(), 400, "bad_request"),
        ("GET /healthz HTTP/1.1 \r\nHost: localhost\r\n\r\n".into(), 400, "bad_request"),
        ("GET /healthz\r\nHost: localhost\r\n\r\n".into(), 400, "bad_request"),
        ("GET /healthz http/1.1\r\nHost: localhost\r\n\r\n".into(), 400, "bad_request"),
        ("GET healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".into(), 400, "bad_request"),
        ("GET /health\u{0}z HTTP/1.1\r\nHost: localhost\r\n\r\n".into(), 400, "bad_request"),
        ("GET /healthz#x HTTP/1.1\r\nHost: localhost\r\n\r\n".into(), 400, "bad_request"),
        ("GET /h\u{e9} HTTP/1.1\r\nHost: localhost\r\n\r\n".into(), 400, "bad_request"),
        ("G@T / HTTP/1.1\r\nHost: localhost\r\n\r\n".into(), 400, "bad_request"),
        ("GET /healthz HTTP/1.1\nHost: localhost\n\n".into(), 400, "bad_request"),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\n\r\n".into(), 400, "bad_request"),
        ("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}".into(), 400, "bad_request"),
        ("\n\n".into(), 400, "bad_request"),
        (get("Host: localhost\r\n Folded: x\r\n"), 400, "bad_request"),
        (get("Host: localhost\r\nA: b\r\n\tc\r\n"), 400, "bad_request"),
        (get("Host: localhost\r\nA : b\r\n"), 400, "bad_request"),
        (get("Host: localhost\r\n: b\r\n"), 400, "bad_request"),
        (get("Host: localhost\r\nA\u{0}: b\r\n"), 400, "bad_request"),
        (get("Host: localhost\r\nA: b\u{0}\r\n"), 400, "bad_request"),
        (get("Host: localhost\r\nA: b\rc\r\n"), 400, "bad_request"),
        (get("Host: localhost\r\nno colon\r\n"), 400, "bad_request"),
        (post("Content-Length: 1\r\nContent-Length: 1\r\n"), 400, "bad_request"),
        (post("Content-Length: 1\r\nContent-Length: 2\r\n"), 400, "bad_request"),
        (post("Content-Length: 1, 1\r\n"), 400, "bad_request"),
        (post("Content-Length: +1\r\n"), 400, "bad_request"),
        (post("Content-Length: -1\r\n"), 400, "bad_request"),
        (post("Content-Length: 0x1\r\n"), 400, "bad_request"),
        (post("Content-Length: 1e1\r\n"), 400, "bad_request"),
        (post("Content-Length: 1 1\r\n"), 400, "bad_request"),
        (post("Content-Length:\r\n"), 400, "bad_request"),
        (post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"), 400, "bad_request"),
        (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400, "bad_request"),
        ("POST /v1/jobs/echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), 400, "bad_request"),
        (post("Transfer-Encoding: chunked\r\n") + "x\r\n", 400, "bad_request"),
        (post("Transfer-Encoding: chunked\r\n") + "-1\r\n", 400, "bad_request"),
        (post("Transfer-Encoding: chunked\r\n") + "0x1\r\na\r\n", 400, "bad_request"),
        (post("Transfer-Encoding: chunked\r\n") + "1\na\r\n0\r\n\r\n", 400, "bad_request"),
        (post("Transfer-Encoding: chunked\r\n") + "1\r\nab\r\n", 400, "bad_request"),
        (post("Transfer-Encoding: chunked\r\n") + "0\r\nno colon\r\n\r\n", 400, "bad_request"),
        (post("Transfer-Encoding: chunked\r\n") + "FFFFFFFFF\r\n", 413, "payload_too_large"),
        (post("Transfer-Encoding: gzip, chunked\r\n"), 501, "not_implemented"),
        (post("Transfer-Encoding: gzip\r\n"), 400, "bad_request"),
        (post("Transfer-Encoding: identity\r\n"), 400, "bad_request"),
        (post("Transfer-Encoding: chunked, gzip\r\n"), 400, "bad_request"),
        (post("Content-Length: 99999999999999999999999\r\n"), 413, "payload_too_large"),
        (post("Content-Length: 1\r\nExpect: the-unexpected\r\n"), 417, "expectation_failed"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505, "http_version_not_supported"),
        ("GET /healthz HTTP/2.0\r\nHost: localhost\r\n\r\n".into(), 505, "http_version_not_supported"),
        ("GET /healthz HTTP/1.10\r\nHost: localhost\r\n\r\n".into(), 400, "bad_request"),
        (format!("GET /{} HTTP/1.1\r\n", "a".repeat(9_000)), 414, "uri_too_long"),
        (get(&format!("Host: localhost\r\nA: {}\r\n", "b".repeat(17_000))), 431, "headers_too_large"),
        (get(&format!("Host: localhost\r\n{}", "A: b\r\n".repeat(200))), 431, "headers_too_large"),
    ];
    for (bytes, status, code) in rows {
        let shown: String = bytes.chars().take(100).collect();
        let mut client = service.connect();
        client.send(&bytes);
        client.send(smuggled);
        let answer = client.read();
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{shown:?}: {answer:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{shown:?}");
        let after = client.try_read(PATIENCE);
        assert_eq!(after, Err(NoAnswer::Closed), "{shown:?}");
    }
}

#[test]
fn even_a_malformed_request_is_answered_with_a_whole_problem_document() {
    let service = Service::start(&[]);
    let mut client = service.connect();
    client.send("GET /\u{1} HTTP/1.1\r\n\r\n");
    assert_problem(&client.read(), 400, "bad_request");
    client.assert_closed();
}

#[test]
fn a_host_that_is_not_ours_is_misdirected_host() {
    let service = Service::start(&[r#"web.allowed_hosts=["jobs.example"]"#]);
    let rows = [
        ("evil.example", Some(421)),
        ("localhost.evil.example", Some(421)),
        ("127.0.0.1.evil.example:80", Some(421)),
        ("", Some(421)),
        ("[::1", Some(400)),
        ("localhost:80:80", Some(400)),
        ("localhost:a", Some(400)),
        ("a b/@c", Some(400)),
        ("localhost, evil", Some(400)),
        ("user:pw@localhost", Some(400)),
        ("local host", Some(400)),
        ("l\u{f6}calhost", Some(400)),
        ("localhost", None),
        ("localhost:", None),
        ("127.0.0.1:", None),
        ("LocalHost:1234", None),
        ("127.0.0.1:80", None),
        ("192.0.2.7", None),
        ("[::1]:80", None),
        ("jobs.example", None),
    ];
    for (host, refused) in rows {
        let mut client = service.connect();
        client.send(get(&format!("Host: {host}\r\n")));
        let answer = client.read();
        match refused {
            Some(421) => assert_problem(&answer, 421, "misdirected_host"),
            Some(status) => assert_problem(&answer, status, "bad_request"),
            None => assert_eq!(answer.status, 200, "{host}: {answer:?}"),
        }
    }
}

#[test]
fn a_request_of_a_foreign_page_is_foreign_origin() {
    let service = Service::start(&[]);
    let rows = [
        ("Origin: http://evil.example", true),
        ("Origin: null", true),
        ("Origin: localhost", true),
        ("Origin: http://localhost:1", true),
        ("Sec-Fetch-Site: cross-site", true),
        ("Sec-Fetch-Site: same-site", true),
        ("Origin: http://localhost", false),
        ("Sec-Fetch-Site: same-origin", false),
        ("Sec-Fetch-Site: none", false),
    ];
    for (header, refused) in rows {
        let answer = service.request("POST", "/v1/jobs/echo", &[header], "x");
        if refused {
            assert_problem(&answer, 403, "foreign_origin");
        } else {
            assert_eq!(answer.status, 200, "{header}: {answer:?}");
        }
    }
    assert_eq!(service.metric("jobs_submitted_total{handler=\"echo\"}"), 3.0, "no refused one was submitted");
}

#[test]
fn unknown_things_are_told_apart() {
    let service = Service::start(&[]);
    let job = format!("/v1/jobs/{NO_JOB}");
    let rows = [
        ("POST", "/v1/jobs/nobody".to_owned(), "unknown_handler"),
        ("POST", "/v1/batch/nobody".into(), "unknown_handler"),
        ("POST", "/v1/handlers/nobody/pause".into(), "unknown_handler"),
        ("GET", job.clone(), "unknown_job"),
        ("GET", format!("{job}?wait=1"), "unknown_job"),
        ("GET", format!("{job}/result"), "unknown_job"),
        ("DELETE", job.clone(), "unknown_job"),
        ("POST", format!("{job}/retry"), "unknown_job"),
        ("GET", "/v1/jobs/not-an-id".into(), "unknown_job"),
        ("GET", "/nothing".into(), "not_found"),
        ("GET", "/v1".into(), "not_found"),
        ("GET", "//".into(), "not_found"),
        ("POST", "/v1/jobs/echo/".into(), "not_found"),
        ("GET", "/healthz/".into(), "not_found"),
    ];
    for (method, target, code) in rows {
        let answer = service.request(method, &target, &[], "");
        assert_eq!((answer.status, answer.code().as_str()), (404, code), "{method} {target}: {answer:?}");
        assert_problem(&answer, 404, code);
    }
}

#[test]
fn another_method_is_method_not_allowed_and_allow_names_the_right_ones() {
    let service = Service::start(&[]);
    let job = format!("/v1/jobs/{NO_JOB}");
    let rows = [
        ("POST", "/healthz".to_owned(), "GET, HEAD, OPTIONS"),
        ("PUT", "/metrics".into(), "GET, HEAD, OPTIONS"),
        ("DELETE", "/v1/jobs".into(), "GET, HEAD, OPTIONS"),
        ("GET", "/v1/batch/echo".into(), "POST, OPTIONS"),
        ("GET", "/v1/handlers/echo/pause".into(), "POST, OPTIONS"),
        ("GET", format!("{job}/retry"), "POST, OPTIONS"),
        ("DELETE", format!("{job}/result"), "GET, HEAD, OPTIONS"),
        ("PATCH", "/".into(), "GET, HEAD, OPTIONS"),
    ];
    for (method, target, allow) in rows {
        let answer = service.request(method, &target, &[], "");
        assert_problem(&answer, 405, "method_not_allowed");
        assert_eq!(answer.header("allow"), Some(allow), "{method} {target}");
    }
    // What no resource has is not known to the service at all (RFC 9110, section 15.6.2).
    assert_problem(&service.request("BREW", "/v1/stats", &[], ""), 501, "not_implemented");
}

#[test]
fn a_head_that_does_not_arrive_in_time_is_request_timeout_whatever_trickles_in() {
    let limits = r#"web.limits={"header_timeout_ms":300,"body_timeout_ms":300}"#;
    let service = Service::start(&[limits]);
    for beginning in
        ["GET /healthz HT", "POST /v1/jobs/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n"]
    {
        let mut client = service.connect();
        let begun = Instant::now();
        client.send(beginning);
        // The deadline is absolute: a byte now and then does not move it.
        let answer = loop {
            match client.try_read(Duration::from_millis(50)) {
                Err(NoAnswer::Late) => client.send("x"),
                other => break other,
            }
            assert!(begun.elapsed() < PATIENCE, "bytes that trickle in keep it alive");
            if beginning.starts_with("POST") && begun.elapsed() > Duration::from_millis(150) {
                break client.try_read(PATIENCE);
            }
        };
        let answer = answer.expect("an answer");
        assert_eq!((answer.status, answer.code().as_str()), (408, "request_timeout"), "{answer:?}");
        let took = begun.elapsed();
        assert!((250..5_000).contains(&took.as_millis()), "after {took:?}");
        client.assert_closed();
    }
}

#[test]
fn a_late_second_request_has_a_trace_and_a_body_of_its_own() {
    let service = Service::start(&[r#"web.limits={"header_timeout_ms":200}"#]);
    let mut client = service.connect();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    client.send(format!("HEAD /healthz HTTP/1.1\r\nHost: localhost\r\nTraceparent: {trace}\r\n\r\n"));
    assert_eq!(client.read_without_body().header("traceparent"), Some(trace));
    client.send("GET /hea");
    // It is neither a HEAD, so its answer has a body, nor part of the first one's trace.
    let answer = client.read();
    assert_problem(&answer, 408, "request_timeout");
    assert!(!answer.header("traceparent").is_some_and(|it| it.contains("0af7651916cd43dd")), "{answer:?}");
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let service = Service::start(&[r#"web.limits={"idle_timeout_ms":200,"header_timeout_ms":400}"#]);
    let begun = Instant::now();
    let mut fresh = service.connect();
    fresh.assert_closed();
    assert!(begun.elapsed() >= Duration::from_millis(350), "its first byte has a head's time");
    let mut used = service.connect();
    assert_eq!(used.request("GET", "/healthz", &[], "").status, 200);
    used.assert_closed();
}

#[test]
fn a_submission_without_length_is_length_required() {
    let service = Service::start(&[]);
    for target in ["/v1/jobs/echo", "/v1/batch/echo"] {
        let mut client = service.connect();
        client.send(format!("POST {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_problem(&client.read(), 411, "length_required");
        // A client that sends its body all the same must not have it read as a request.
        client.assert_closed();
    }
}

#[test]
fn a_body_over_its_limit_is_payload_too_large_before_it_is_read() {
    let sets = ["web.max_body_bytes=1000", "web.max_batch_bytes=2000"];
    let service = Service::start(&sets);
    for (target, limit) in [("/v1/jobs/echo", 1_000), ("/v1/batch/echo", 2_000)] {
        let head = |length: u64| {
            format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n")
        };
        for length in [limit + 1, 1 << 40, 999_999_999_999_999_999] {
            let mut client = service.connect();
            // Not one byte of the body is sent; the answer must come.
            client.send(head(length));
            assert_problem(&client.read(), 413, "payload_too_large");
            client.assert_closed();
        }
        let mut client = service.connect();
        client.send(format!(
            "{}Expect: 100-continue\r\n\r\n",
            head(limit + 1).trim_end_matches("\r\n").to_owned() + "\r\n"
        ));
        assert_problem(&client.read(), 413, "payload_too_large");
        // In chunks it is known only when it comes.
        let mut client = service.connect();
        client
            .send(format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"));
        client.send(format!("{:x}\r\n{}\r\n", limit, "a".repeat(usize::try_from(limit).unwrap())));
        client.send("1\r\nb\r\n");
        assert_problem(&client.read(), 413, "payload_too_large");
        client.assert_closed();
    }
    let whole = service.post("/v1/jobs/echo", "a".repeat(1_000));
    assert_eq!((whole.status, whole.body.len()), (200, 1_000), "exactly the limit passes");
}

#[test]
fn a_large_body_that_is_refused_does_not_hide_the_answer() {
    let service = Service::start(&["web.max_body_bytes=1000"]);
    for _ in 0..20 {
        let mut client = service.connect();
        // The client sends all of it before it reads, as most do: a reset must not destroy the answer.
        client.send(request("POST", "/v1/jobs/echo", &[], "a".repeat(300_000)));
        assert_problem(&client.read(), 413, "payload_too_large");
    }
}

#[test]
fn bad_parameters_are_bad_request() {
    let service = Service::start(&[KEYED_ECHO]);
    let body = r#"{"k":1}"#;
    let rows: [(&str, &[&str], &str); 26] = [
        ("/v1/jobs/echo?delay_ms=-1", &[], body),
        // It would run at once.
        ("/v1/jobs/echo?delay=60000", &[], body),
        ("/v1/jobs/echo?delay_ms=0&delay_ms=60000", &[], body),
        ("/v1/jobs/echo?Delay_ms=60000", &[], body),
        ("/v1/jobs/echo?timeout_ms=1000&", &[], body),
        ("/v1/batch/echo?sink_mode=completion&sink_mode=completion", &[], body),
        ("/v1/batch/echo?delay_ms=1", &[], body),
        ("/v1/handlers/echo/pause?for=1", &[], ""),
        ("/v1/jobs/echo", &["Idempotency-Key: caf\u{e9}"], body),
        ("/v1/jobs/echo?delay_ms=", &[], body),
        ("/v1/jobs/echo?delay_ms=soon", &[], body),
        ("/v1/jobs/echo?delay_ms=604800001", &[], body),
        ("/v1/jobs/echo?timeout_ms=0", &[], body),
        ("/v1/jobs/echo?timeout_ms=30001", &[], body),
        ("/v1/jobs/echo?timeout_ms=1.5", &[], body),
        ("/v1/jobs/echo", &["Idempotency-Key:"], body),
        ("/v1/jobs/echo", &["Idempotency-Key: \"\""], body),
        ("/v1/jobs/echo", &["Idempotency-Key: a b"], body),
        ("/v1/jobs/echo", &["Idempotency-Key: \"a"], body),
        ("/v1/jobs/echo", &["Idempotency-Key: a", "Idempotency-Key: b"], body),
        ("/v1/jobs/echo", &["Ordering-Key: a", "Ordering-Key: b"], body),
        // A keyed handler without a key.
        ("/v1/jobs/echo", &[], "{}"),
        ("/v1/jobs/echo", &[], r#"{"k":null}"#),
        ("/v1/jobs/echo", &[], r#"{"k":[1]}"#),
        ("/v1/jobs/echo", &[], "no json"),
        ("/v1/batch/echo?sink_mode=backwards", &[], body),
    ];
    for (target, headers, body) in rows {
        let answer = service.request("POST", target, headers, body);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "bad_request"),
            "{target} {headers:?} {body}"
        );
        assert_problem(&answer, 400, "bad_request");
    }
    let long = format!("Idempotency-Key: {}", "k".repeat(256));
    assert_problem(&service.request("POST", "/v1/jobs/echo", &[&long], body), 400, "bad_request");
    let long = format!("Ordering-Key: {}", "k".repeat(257));
    assert_problem(&service.request("POST", "/v1/jobs/echo", &[&long], body), 400, "bad_request");
    for target in [
        "/v1/jobs?limit=0",
        "/v1/jobs?limit=1001",
        "/v1/jobs?limit=x",
        "/v1/jobs?status=lost",
        "/v1/jobs?state=dead",
        "/v1/jobs?after=yesterday",
        "/v1/jobs?after=99999999999999999-00000000000000000000000000000000",
        "/v1/stats?x=1",
        "/metrics?name=x",
        "/healthz?x",
        "/?utm=1",
    ] {
        assert_problem(&service.get(target), 400, "bad_request");
    }
    let id = service.submit("/v1/jobs/echo", &["Ordering-Key: a"], body);
    assert_problem(&service.get(&format!("/v1/jobs/{id}?wait=soon")), 400, "bad_request");
    assert_problem(&service.get(&format!("/v1/jobs/{id}?wait=1&wait=2")), 400, "bad_request");
    assert_eq!(service.get(&format!("/v1/jobs/{id}?wait=99999999999999999999")).status, 200, "it is clamped");
    assert_eq!(service.metric("jobs_submitted_total{handler=\"echo\"}"), 1.0, "no refused one was submitted");
}

/// Three customers whose names differ in one letter of Latin-1 do not share a lane, or a job.
#[test]
fn a_key_that_is_not_utf_8_is_bad_request_and_names_nobody() {
    let service = Service::start(&[KEYED_ECHO]);
    for name in ["Ordering-Key", "Idempotency-Key", "Prefer"] {
        for letter in [0xE8, 0xE9, 0xFF] {
            let head =
                format!("POST /v1/jobs/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n{name}: caf");
            let mut bytes = head.into_bytes();
            bytes.push(letter);
            bytes.extend_from_slice(b"\r\n\r\n{\"k\":1}");
            let mut client = service.connect();
            client.send(bytes);
            assert_problem(&client.read(), 400, "bad_request");
        }
    }
    assert_eq!(service.metric("jobs_submitted_total{handler=\"echo\"}"), 0.0);
    // In UTF-8 they are two.
    for key in ["caf\u{e8}", "caf\u{e9}"] {
        let id = service.submit("/v1/jobs/echo", &[&format!("Ordering-Key: {key}")], "x");
        assert_eq!(service.record(&id)["ordering_key"], key);
    }
}

// ---- refusals of jobs ----

#[test]
fn a_failed_job_is_handler_failed_for_its_caller_and_in_its_record() {
    let service = Service::start(&[]);
    let answer = service.post("/v1/jobs/sleep", "no json");
    assert_problem(&answer, 422, "handler_failed");
    let id = job_id(&answer);
    let record = service.record(&id);
    assert_eq!((&record["status"], &record["error"]["code"]), (&json!("failed"), &json!("handler_failed")));
    assert_eq!(record["result"], Value::Null);
    assert_problem(&service.get(&format!("/v1/jobs/{id}/result")), 422, "handler_failed");
}

#[test]
fn a_job_over_its_timeout_is_handler_timed_out() {
    let service = Service::start(&[]);
    let begun = Instant::now();
    let answer = service.post("/v1/jobs/sleep?timeout_ms=150", LONG_SLEEP);
    assert_problem(&answer, 504, "handler_timed_out");
    assert!((100..5_000).contains(&begun.elapsed().as_millis()), "after {:?}", begun.elapsed());
    let record = service.record(&job_id(&answer));
    assert_eq!((&record["status"], &record["deliveries"]), (&json!("timed_out"), &json!(1)), "{record}");
    // The worker is free again.
    assert_eq!(service.post("/v1/jobs/sleep", r#"{"ms":1}"#).status, 200);
}

#[test]
fn a_cancelled_jobs_caller_gets_cancelled() {
    let service = Service::start(&[ONE_WORKER]);
    let running = start_long_job(&service);
    let mut queued = service.connect();
    queued.send(request("POST", "/v1/jobs/echo", &[], "x"));
    let id = until("the job is queued", PATIENCE, || {
        let jobs = service.get("/v1/jobs?status=queued&handler=echo").json();
        jobs["jobs"][0]["id"].as_str().map(str::to_owned)
    });
    let mut waiting = service.connect();
    waiting.send(format!("GET /v1/jobs/{running}?wait=20 HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    until("both wait", PATIENCE, || (service.metric("reply_waiters") == 2.0).then_some(()));
    for id in [&id, &running] {
        let answer = service.request("DELETE", &format!("/v1/jobs/{id}"), &[], "");
        assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("cancelled")), "{answer:?}");
        assert_eq!(answer.json()["id"], json!(id));
    }
    let answer = queued.read();
    assert_problem(&answer, 409, "cancelled");
    assert_eq!(job_id(&answer), id);
    let answer = waiting.read();
    assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("cancelled")), "{answer:?}");
    assert_eq!(service.record(&id)["deliveries"], 0, "it never started");
    // A second cancel changes nothing, nor does one of a job that has succeeded.
    let again = service.request("DELETE", &format!("/v1/jobs/{id}"), &[], "").json();
    assert_eq!(again["status"], "cancelled");
    let done = job_id(&service.post("/v1/jobs/echo", "x"));
    let kept = service.request("DELETE", &format!("/v1/jobs/{done}"), &[], "").json();
    assert_eq!(kept["status"], "succeeded");
    assert_eq!(service.metric("reply_waiters"), 0.0);
}

#[test]
fn what_has_not_finished_is_not_finished_and_what_succeeded_is_not_retryable() {
    let service = Service::start(&[]);
    let running = start_long_job(&service);
    assert_problem(&service.get(&format!("/v1/jobs/{running}/result")), 409, "not_finished");
    assert_problem(&service.post(&format!("/v1/jobs/{running}/retry"), ""), 409, "not_retryable");
    let done = job_id(&service.post("/v1/jobs/echo", "x"));
    assert_problem(&service.post(&format!("/v1/jobs/{done}/retry"), ""), 409, "not_retryable");
}

#[test]
fn another_payload_under_an_idempotency_key_is_idempotency_mismatch() {
    let service = Service::start(&[KEYED_ECHO]);
    let send = |headers: &[&str], body: &str| {
        let headers: Vec<&str> = headers.iter().copied().chain(["Idempotency-Key: one"]).collect();
        service.request("POST", "/v1/jobs/echo", &headers, body)
    };
    let first = send(&["Ordering-Key: a", "Content-Type: text/plain"], "x");
    assert_eq!((first.status, first.header("idempotency-replayed")), (200, None), "{first:?}");
    for (headers, body) in [
        (["Ordering-Key: a", "Content-Type: text/plain"], "y"),
        (["Ordering-Key: b", "Content-Type: text/plain"], "x"),
        (["Ordering-Key: a", "Content-Type: text/html"], "x"),
    ] {
        assert_problem(&send(&headers, body), 422, "idempotency_mismatch");
    }
    let again = send(&["Ordering-Key: a", "Content-Type: text/plain"], "x");
    assert_eq!((again.status, again.header("idempotency-replayed")), (200, Some("true")), "{again:?}");
    // Another handler's key is another key.
    let other = service.request("POST", "/v1/jobs/sleep", &["Idempotency-Key: one"], r#"{"ms":1}"#);
    assert_eq!((other.status, other.header("idempotency-replayed")), (200, None));
}

#[test]
fn a_caller_beyond_max_inflight_is_too_many_waiters_and_its_job_was_never_accepted() {
    let service = Service::start(&["web.max_inflight=1"]);
    let mut first = service.connect();
    first.send(request("POST", "/v1/jobs/sleep", &[], r#"{"ms":6000}"#));
    until("it waits", PATIENCE, || (service.metric("reply_waiters") == 1.0).then_some(()));
    let begun = Stopwatch::start();
    for _ in 0..50 {
        let answer = service.post("/v1/jobs/echo", "x");
        assert_problem(&answer, 429, "too_many_waiters");
        assert_eq!(answer.header("cofferdam-job-id"), None);
    }
    // 10 ms each is promised; a loaded machine gets some more.
    assert!(begun.elapsed() < Duration::from_millis(1_400), "refusals took {:?}", begun.elapsed());
    // Nobody waits for an asynchronous one.
    let id = service.submit("/v1/jobs/echo", &[], "x");
    let record = service.get(&format!("/v1/jobs/{id}?wait=5"));
    assert!(record.status == 200 || record.code() == "too_many_waiters", "{record:?}");
    let answer = first.read();
    assert_eq!((answer.status, answer.text()), (200, r#"{"slept_ms":6000}"#.into()), "{answer:?}");
    service.record_when(&id, "succeeded");
    assert_eq!(service.metric("jobs_submitted_total{handler=\"echo\"}"), 1.0);
    assert_eq!(service.metric("reply_waiters"), 0.0);
    assert_eq!(service.post("/v1/jobs/echo", "x").status, 200, "the place is free again");
}

#[test]
fn a_job_beyond_the_capacity_is_queue_full_and_every_accepted_one_finishes() {
    let service = Service::start(&[ONE_WORKER, "runtime.platform.queue.capacity=3"]);
    let running = start_long_job(&service);
    let (mut accepted, mut refused) = (Vec::new(), 0);
    for number in 0..200 {
        let answer = service.request("POST", "/v1/jobs/echo", &["Prefer: respond-async"], number.to_string());
        if answer.status == 202 {
            accepted.push((number, job_id(&answer)));
        } else {
            assert_problem(&answer, 503, "queue_full");
            assert_eq!(answer.header("cofferdam-job-id"), None, "what was refused is no job");
            refused += 1;
        }
    }
    assert_eq!((accepted.len(), refused), (3, 197));
    // A caller that would wait is refused as well.
    assert_problem(&service.post("/v1/jobs/echo", "x"), 503, "queue_full");
    service.request("DELETE", &format!("/v1/jobs/{running}"), &[], "");
    for (number, id) in accepted {
        service.record_when(&id, "succeeded");
        let result = service.get(&format!("/v1/jobs/{id}/result"));
        assert_eq!(result.text(), number.to_string());
    }
    assert_eq!(service.post("/v1/jobs/echo", "x").status, 200, "there is room again");
    assert_eq!(service.metric("reply_waiters"), 0.0);
}

#[test]
fn nothing_that_was_accepted_is_lost_by_storms_of_refusals() {
    let service = Service::start(&["web.max_inflight=4", "runtime.platform.queue.capacity=8"]);
    let address = service.address;
    let storm = |caller: usize| {
        let mut client = Client::to(address);
        let (mut answered, mut accepted) = (0_u64, Vec::new());
        for number in 0..100 {
            let body = format!(r#"{{"ms":{}}}"#, (caller + number) % 4);
            let headers: &[&str] = if number % 2 == 0 { &["Prefer: respond-async"] } else { &[] };
            let answer = client.request("POST", "/v1/jobs/sleep", headers, &body);
            match answer.status {
                200 => answered += 1,
                202 => accepted.push(job_id(&answer)),
                429 => assert_problem(&answer, 429, "too_many_waiters"),
                _ => assert_problem(&answer, 503, "queue_full"),
            }
        }
        (answered, accepted)
    };
    let results: Vec<(u64, Vec<String>)> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..24).map(|caller| scope.spawn(move || storm(caller))).collect();
        callers.into_iter().map(|caller| caller.join().expect("a caller")).collect()
    });
    let answered: u64 = results.iter().map(|(answered, _)| answered).sum();
    let accepted: Vec<&String> = results.iter().flat_map(|(_, accepted)| accepted).collect();
    for id in &accepted {
        service.record_when(id, "succeeded");
    }
    let all = answered as f64 + accepted.len() as f64;
    assert_eq!(service.metric("jobs_submitted_total{handler=\"sleep\"}"), all);
    assert_eq!(service.metric("jobs_finished_total{handler=\"sleep\",status=\"succeeded\"}"), all);
    assert_eq!(service.metric("reply_waiters"), 0.0);
}

#[test]
fn a_caller_whose_wait_ends_gets_reply_timeout_and_the_job_goes_on() {
    let service = Service::start(&["runtime.platform.reply.timeout_ms=200"]);
    let begun = Instant::now();
    let answer = service.post("/v1/jobs/sleep", r#"{"ms":4000}"#);
    assert_problem(&answer, 504, "reply_timeout");
    assert!((150..3_000).contains(&begun.elapsed().as_millis()), "after {:?}", begun.elapsed());
    let id = job_id(&answer);
    assert_eq!(service.record(&id)["status"], "running");
    let record = service.record_when(&id, "succeeded");
    assert_eq!(record["result"], json!({"slept_ms": 4000}));
    assert_eq!(service.metric("reply_timeouts_total"), 1.0);
    assert_eq!(service.metric("reply_late_total"), 1.0, "the late reply is dropped and counted");
    assert_eq!(service.metric("reply_waiters"), 0.0);
    // A longer wait is clamped to it.
    let long = service.submit("/v1/jobs/sleep", &[], r#"{"ms":2000}"#);
    let begun = Stopwatch::start();
    let record = service.get(&format!("/v1/jobs/{long}?wait=600"));
    assert_eq!(record.status, 200, "{record:?}");
    assert!(begun.elapsed() < Duration::from_millis(1_500), "after {:?}", begun.elapsed());
}

#[test]
fn a_draining_service_refuses_new_jobs_as_draining_and_answers_those_who_wait() {
    for mode in ["inline", "process_supervisor"] {
        let mode = format!("runtime.platform.bootstrap.mode={mode}");
        let service = Service::start(&[&mode]);
        let mut waiting = service.connect();
        waiting.send(request("POST", "/v1/jobs/sleep", &[], r#"{"ms":4000}"#));
        until("it waits", PATIENCE, || (service.metric("reply_waiters") == 1.0).then_some(()));
        let mut kept = service.connect();
        assert_eq!(kept.request("GET", "/healthz", &[], "").status, 200);
        service.terminate();
        until("it drains", PATIENCE, || (service.get("/readyz").status == 503).then_some(()));
        assert_problem(&kept.request("POST", "/v1/jobs/echo", &[], "x"), 503, "draining");
        assert_problem(&service.post("/v1/batch/echo", "x\n"), 503, "draining");
        assert_problem(&service.get("/readyz"), 503, "draining");
        assert_eq!(service.get("/healthz").status, 200, "it is alive until it ends");
        let answer = waiting.read();
        assert_eq!((answer.status, answer.text()), (200, r#"{"slept_ms":4000}"#.into()), "{answer:?}");
        let ended = service.ended();
        assert_eq!(ended.status.code(), Some(0), "{mode}: {}", ended.stderr);
    }
}

// ---- routes ----

#[test]
fn a_submission_is_answered_with_the_handlers_output_as_it_is() {
    let service = Service::start(&[]);
    let every_byte: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let rows: [(&[&str], &[u8], &str); 5] = [
        (&["Content-Type: text/plain; charset=utf-8"], b"hello", "text/plain; charset=utf-8"),
        (&["Content-Type: application/json"], br#"{"a" : 1}"#, "application/json"),
        (&[], &every_byte, "application/octet-stream"),
        (&["Content-Type: no media type"], b"x", "application/octet-stream"),
        (&[], b"", "application/octet-stream"),
    ];
    for (headers, body, media_type) in rows {
        let answer = service.request("POST", "/v1/jobs/echo", headers, body);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(media_type)), "{answer:?}");
        assert!(answer.body == body, "{} bytes instead of {}", answer.body.len(), body.len());
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("content-security-policy"), Some("sandbox"));
        assert_common(&answer);
        let id = job_id(&answer);
        let result = service.get(&format!("/v1/jobs/{id}/result"));
        assert_eq!((result.status, result.header("content-type")), (200, Some(media_type)), "{result:?}");
        assert!(result.body == body);
        assert_eq!(result.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(job_id(&result), id);
    }
}

#[test]
fn a_valid_traceparent_is_taken_and_any_other_replaced() {
    let service = Service::start(&[]);
    let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for target in ["/v1/jobs/echo", "/v1/jobs/nobody"] {
        let answer = service.request("POST", target, &[&format!("Traceparent: {given}")], "x");
        let echoed = answer.header("traceparent").expect("a traceparent");
        assert_eq!(echoed.split('-').nth(1), given.split('-').nth(1), "{answer:?}");
    }
    let invalid = [
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "nonsense",
    ];
    let mut seen = HashSet::new();
    for header in invalid {
        let answer = service.request("GET", "/v1/stats", &[&format!("Traceparent: {header}")], "");
        assert_common(&answer);
        let trace = answer.header("traceparent").expect("a traceparent").to_owned();
        assert!(!trace.contains("0af7651916cd43dd") && !trace.contains("00000000000000000000000000000000"));
        assert!(seen.insert(trace), "each request has a trace of its own");
    }
}

#[test]
fn an_asynchronous_submission_is_accepted_at_once_with_its_place() {
    let service = Service::start(&[]);
    let answer = service.request("POST", "/v1/jobs/sleep", &["Prefer: respond-async"], r#"{"ms":300}"#);
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_common(&answer);
    let id = job_id(&answer);
    assert_eq!(answer.json(), json!({"id": id, "status": "queued"}));
    assert_eq!(answer.header("location"), Some(format!("/v1/jobs/{id}").as_str()));
    assert_eq!(answer.header("preference-applied"), Some("respond-async"));
    let record = service.get(&format!("/v1/jobs/{id}?wait=20"));
    assert_eq!(job_id(&record), id);
    let record = record.json();
    assert_eq!(record["status"], "succeeded", "{record}");
    assert_eq!(record["result"], json!({"slept_ms": 300}));
}

#[test]
fn prefer_wait_gives_the_result_in_time_and_202_after_it() {
    let service = Service::start(&[]);
    let in_time = service.request("POST", "/v1/jobs/echo", &["Prefer: wait=20"], "x");
    assert_eq!((in_time.status, in_time.text()), (200, "x".into()), "{in_time:?}");
    assert_eq!(in_time.header("preference-applied"), Some("wait=20"));
    for (seconds, at_least) in [(0, 0), (1, 900)] {
        let begun = Instant::now();
        let prefer = format!("Prefer: wait={seconds}");
        let late = service.request("POST", "/v1/jobs/sleep", &[&prefer], r#"{"ms":2500}"#);
        let took = begun.elapsed();
        assert_eq!(late.status, 202, "{late:?}");
        assert!((at_least..2_400).contains(&took.as_millis()), "wait={seconds} took {took:?}");
        let id = job_id(&late);
        assert_eq!(late.header("location"), Some(format!("/v1/jobs/{id}").as_str()));
        assert_eq!(late.header("preference-applied"), Some(format!("wait={seconds}").as_str()));
        assert!(
            ["queued", "running"].contains(&late.json()["status"].as_str().unwrap_or_default()),
            "{late:?}"
        );
    }
    // Clamped to the reply timeout, and the answer says what was applied.
    for prefer in ["Prefer: wait=999999", "Prefer: wait = \"99999999999999999999\";x=\"a,b\""] {
        let clamped = service.request("POST", "/v1/jobs/echo", &[prefer], "x");
        let applied = (clamped.status, clamped.header("preference-applied"));
        assert_eq!(applied, (200, Some("wait=30")), "{clamped:?}");
    }
    // Asynchronous unless it is done in time.
    let both = ["Prefer: respond-async, wait=1"];
    let begun = Instant::now();
    let late = service.request("POST", "/v1/jobs/sleep", &both, r#"{"ms":2500}"#);
    assert!((900..2_400).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    let in_time = service.request("POST", "/v1/jobs/sleep", &both, r#"{"ms":100}"#);
    assert_eq!((late.status, in_time.status), (202, 200), "{late:?} {in_time:?}");
    for answer in [late, in_time] {
        assert_eq!(answer.header("preference-applied"), Some("respond-async, wait=1"));
    }
    let first = service.request("POST", "/v1/jobs/sleep", &["Prefer: wait=0, wait=20"], r#"{"ms":2500}"#);
    assert_eq!((first.status, first.header("preference-applied")), (202, Some("wait=0")), "{first:?}");
    let ignored = service.request("POST", "/v1/jobs/echo", &["Prefer: handling=lenient"], "x");
    assert_eq!((ignored.status, ignored.header("preference-applied")), (200, None));
}

#[test]
fn concurrent_requests_under_one_idempotency_key_run_one_job() {
    let service = Service::start(&[]);
    let address = service.address;
    let call = || {
        let mut client = Client::to(address);
        client.request("POST", "/v1/jobs/sleep", &["Idempotency-Key: \"a-b\""], r#"{"ms":400}"#)
    };
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..20).map(|_| scope.spawn(call)).collect();
        calls.into_iter().map(|call| call.join().expect("a caller")).collect()
    });
    let ids: HashSet<String> = answers.iter().map(job_id).collect();
    assert_eq!(ids.len(), 1, "one job");
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.text() == r#"{"slept_ms":400}"#));
    let replayed = answers.iter().filter(|answer| answer.header("idempotency-replayed") == Some("true"));
    assert_eq!(replayed.count(), 19);
    assert_eq!(service.metric("jobs_submitted_total{handler=\"sleep\"}"), 1.0);
    // Bare and quoted, it is the same key; asynchronous too, with the status as it is.
    let headers = ["Idempotency-Key: a-b", "Prefer: respond-async"];
    let later = service.request("POST", "/v1/jobs/sleep", &headers, r#"{"ms":400}"#);
    assert_eq!((later.status, later.header("idempotency-replayed")), (202, Some("true")), "{later:?}");
    assert_eq!(later.json()["status"], "succeeded");
    assert!(ids.contains(&job_id(&later)));
}

#[test]
fn jobs_of_one_key_run_in_their_order_and_other_keys_pass_them() {
    let service = Service::start(&[r#"handlers.sleep.ordering={"key":"/k"}"#, KEYED_ECHO]);
    let first = service.submit("/v1/jobs/sleep", &[], r#"{"ms":1500,"k":"a"}"#);
    service.record_when(&first, "running");
    let second = service.submit("/v1/jobs/sleep", &[], r#"{"ms":1,"k":"a"}"#);
    // The header's text and a JSON string are the same key.
    let third = service.submit("/v1/jobs/sleep", &["Ordering-Key: a"], r#"{"ms":1,"k":"b"}"#);
    let other = service.post("/v1/jobs/sleep", r#"{"ms":1,"k":"b"}"#);
    assert_eq!(other.status, 200, "another lane waits for nobody: {other:?}");
    for id in [&second, &third] {
        let record = service.record(id);
        assert_eq!((&record["status"], &record["ordering_key"]), (&json!("queued"), &json!("a")), "{record}");
        assert_eq!(record["waiting_for"], json!({"reason": "lane", "head": first}));
    }
    let ends = [&first, &second, &third].map(|id| service.record_when(id, "succeeded"));
    let times = ends.each_ref().map(|record| record["finished_at"].as_str().expect("a time").to_owned());
    assert!(times[0] <= times[1] && times[1] <= times[2], "{times:?}");
    let started = ends[1]["started_at"].as_str().expect("a time");
    assert!(times[0].as_str() <= started, "one at a time: {times:?} {started}");
    assert_eq!(service.post("/v1/jobs/echo", r#"{"k":17}"#).status, 200, "a number is a key");
}

#[test]
fn a_record_says_what_a_queued_job_waits_for() {
    let service = Service::start(&[ONE_WORKER]);
    let running = start_long_job(&service);
    let waiting_for = |id: &str| service.record(id)["waiting_for"].clone();
    assert_eq!(waiting_for(&running), Value::Null);
    let crowded = service.submit("/v1/jobs/echo", &[], "x");
    assert_eq!(waiting_for(&crowded), json!({"reason": "workers"}));
    let delayed = service.submit("/v1/jobs/echo?delay_ms=60000", &[], "x");
    let reason = waiting_for(&delayed);
    assert_eq!(reason["reason"], "delay", "{reason}");
    let (until, submitted) = (reason["until"].as_str(), service.record(&delayed));
    assert!(until > submitted["submitted_at"].as_str(), "{until:?}");
    let paused = service.post("/v1/handlers/echo/pause", "");
    assert_eq!((paused.status, paused.json()), (200, json!({"handler": "echo", "paused": true})));
    assert_eq!(waiting_for(&crowded), json!({"reason": "paused"}));
    // Submissions go on.
    let another = service.submit("/v1/jobs/echo", &[], "x");
    service.request("DELETE", &format!("/v1/jobs/{running}"), &[], "");
    service.record_when(&running, "cancelled");
    assert_eq!(service.post("/v1/jobs/sleep", r#"{"ms":1}"#).status, 200, "another handler is not paused");
    assert_eq!(service.record(&another)["status"], "queued");
    let resumed = service.post("/v1/handlers/echo/resume", "");
    assert_eq!((resumed.status, resumed.json()), (200, json!({"handler": "echo", "paused": false})));
    for id in [&crowded, &another] {
        assert_eq!(service.record_when(id, "succeeded")["waiting_for"], Value::Null);
    }
    assert_eq!(service.record(&delayed)["status"], "queued");
}

#[test]
fn a_record_has_every_field_and_a_result_that_is_not_json_stands_as_base64() {
    let service = Service::start(&[]);
    let id = job_id(&service.request("POST", "/v1/jobs/echo", &["Content-Type: application/json"], "[1, 2]"));
    let record = service.record(&id);
    let fields: HashSet<&str> = record.as_object().expect("an object").keys().map(String::as_str).collect();
    let promised = [
        "id",
        "handler",
        "status",
        "deliveries",
        "ordering_key",
        "submitted_at",
        "started_at",
        "finished_at",
        "result",
        "error",
        "waiting_for",
        "progress",
        "trace_id",
        "attempts",
    ];
    assert_eq!(fields, HashSet::from(promised), "{record}");
    assert_eq!(record["result"], json!([1, 2]));
    assert_eq!((&record["handler"], &record["deliveries"]), (&json!("echo"), &json!(1)));
    for time in ["submitted_at", "started_at", "finished_at"] {
        let text = record[time].as_str().expect("a time");
        let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        assert_eq!(shape, "9999-99-99T99:99:99.999Z", "{time}");
    }
    let id = job_id(&service.request("POST", "/v1/jobs/echo", &[], "foobar"));
    assert_eq!(service.record(&id)["result"], json!({"base64": "Zm9vYmFy"}));
    // What only says that it is JSON does not break the record.
    let id = job_id(&service.request("POST", "/v1/jobs/echo", &["Content-Type: application/json"], "{\"a\""));
    assert_eq!(service.record(&id)["result"], json!({"base64": "eyJhIg=="}));
}

#[test]
fn a_delayed_job_does_not_start_before_its_time() {
    let service = Service::start(&[]);
    let begun = Instant::now();
    let answer = service.post("/v1/jobs/echo?delay_ms=400", "x");
    assert_eq!((answer.status, answer.text()), (200, "x".into()), "{answer:?}");
    assert!((400..5_000).contains(&begun.elapsed().as_millis()), "after {:?}", begun.elapsed());
}

#[test]
fn lists_are_newest_first_and_filtered() {
    let service = Service::start(&[]);
    let echoes: Vec<String> = (0..5).map(|_| job_id(&service.post("/v1/jobs/echo", "x"))).collect();
    let failed = job_id(&service.post("/v1/jobs/sleep", "no json"));
    let running = start_long_job(&service);
    let list = |query: &str| -> Vec<String> {
        let answer = service.get(&format!("/v1/jobs{query}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        let jobs = answer.json()["jobs"].as_array().expect("a list").clone();
        assert!(jobs.iter().all(|job| job.get("result").is_none()), "a list holds no results");
        jobs.iter().map(|job| job["id"].as_str().expect("an id").to_owned()).collect()
    };
    let newest: Vec<String> = [&running, &failed].into_iter().chain(echoes.iter().rev()).cloned().collect();
    assert_eq!(list(""), newest);
    assert_eq!(list("?limit=2"), newest[..2]);
    assert_eq!(list("?status=failed"), std::slice::from_ref(&failed));
    assert_eq!(list("?status=running&handler=sleep"), std::slice::from_ref(&running));
    assert_eq!(list("?handler=echo&limit=1"), newest[2..3]);
    assert_eq!(list("?handler=nobody"), [""; 0]);
    assert_eq!(list("?status=dead"), [""; 0]);
    // Page by page.
    let (mut pages, mut after) = (Vec::new(), String::new());
    loop {
        let query = format!("?limit=3&after={after}");
        pages.extend(list(&query));
        let next = service.get(&format!("/v1/jobs{query}")).json()["next"].clone();
        let Some(next) = next.as_str() else { break };
        next.clone_into(&mut after);
    }
    assert_eq!(pages, newest);
}

/// Beyond the bound, too: else the job would run twice at once.
fn a_key_whose_job_has_not_ended_is_kept() {
    let service = Service::start(&["runtime.platform.reply.idempotency_keys=2"]);
    let submit = |key: &str, ms: u64| {
        service.submit("/v1/jobs/sleep", &[&format!("Idempotency-Key: {key}")], format!(r#"{{"ms":{ms}}}"#))
    };
    let first = submit("first", 1_500);
    for key in 0..5 {
        let id = submit(&format!("other-{key}"), 1);
        service.record_when(&id, "succeeded");
    }
    assert_eq!(submit("first", 1_500), first);
    let record = service.record_when(&first, "succeeded");
    assert_eq!(record["deliveries"], 1, "{record}");
}

#[test]
fn u1_an_idempotency_key_outlives_its_record_and_many_other_requests_without_a_second_run() {
    let few = r#"runtime.platform.reply.retain={"records":20,"bytes":1000000,"failed_records":20,"failed_bytes":1000000}"#;
    let service = Service::start(&[few]);
    let ask = |key: &str, body: &str| {
        service.request("POST", "/v1/jobs/echo", &[&format!("Idempotency-Key: {key}")], body)
    };
    let submitted = || service.metric("jobs_submitted_total{handler=\"echo\"}");
    let id = job_id(&ask("order-17", "once"));
    let replayed = ask("order-17", "once");
    assert_eq!((replayed.status, job_id(&replayed), replayed.text()), (200, id.clone(), "once".into()));
    for number in 0..100 {
        assert_eq!(service.post("/v1/jobs/echo", "x").status, 200);
        assert_eq!(ask(&format!("other-{number}"), "x").status, 200);
    }
    assert_problem(&service.get(&format!("/v1/jobs/{id}")), 404, "unknown_job");
    let before = submitted();
    for _ in 0..2 {
        assert_problem(&ask("order-17", "once"), 409, "result_gone");
    }
    let asynchronous = ["Idempotency-Key: order-17", "Prefer: respond-async"];
    let gone = service.request("POST", "/v1/jobs/echo", &asynchronous, "once");
    assert_problem(&gone, 409, "result_gone");
    assert!(gone.json()["detail"].as_str().expect("words").contains("does not run again"), "{gone:?}");
    assert_problem(&ask("order-17", "another"), 422, "idempotency_mismatch");
    assert_eq!((before, submitted()), (201.0, 201.0), "no second run");
    assert_eq!(service.metric("idempotency_keys"), 101.0);
    a_key_whose_job_has_not_ended_is_kept();
    assert_eq!(service.metric("idempotency_evicted_total"), 0.0);
}

#[test]
fn u2_a_dead_job_is_there_with_payload_and_cause_after_many_successes_and_runs_when_retried() {
    let few = r#"runtime.platform.reply.retain={"records":20,"bytes":1000000,"failed_records":20,"failed_bytes":1000000}"#;
    let service = Service::of(&example("embedder"), &[few, "runtime.platform.queue.max_deliveries=1"]);
    // Its caller waited, which changes nothing.
    let dead = service.request("POST", "/v1/jobs/flaky", &["Content-Type: text/plain"], "5");
    assert_problem(&dead, 500, "dead_lettered");
    let id = job_id(&dead);
    let succeeded: Vec<String> = (0..200).map(|_| job_id(&service.post("/v1/jobs/echo", "x"))).collect();
    assert_problem(&service.get(&format!("/v1/jobs/{}/payload", succeeded[0])), 404, "unknown_job");
    let gone = service.get(&format!("/v1/jobs/{}/payload", succeeded[199]));
    assert_problem(&gone, 404, "not_found");
    assert_eq!(job_id(&gone), succeeded[199]);
    let list = service.get("/v1/jobs?status=dead").json();
    assert_eq!((&list["jobs"][0]["id"], &list["next"]), (&json!(id), &Value::Null), "{list}");
    let record = service.record(&id);
    let error = &record["error"];
    assert_eq!(
        (&error["cause"], &error["detail"]),
        (&json!("retries_exhausted"), &json!("not yet")),
        "{record}"
    );
    let payload = service.get(&format!("/v1/jobs/{id}/payload"));
    assert_eq!((payload.status, payload.text(), job_id(&payload)), (200, "5".into(), id.clone()));
    assert_eq!(payload.header("content-type"), Some("text/plain"));
    assert_eq!(payload.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(payload.header("content-security-policy"), Some("sandbox"));
    assert_eq!(service.post(&format!("/v1/jobs/{id}/retry"), "").status, 202);
    let again = service.record_when(&id, "dead");
    assert!(again["started_at"].as_str() > record["started_at"].as_str(), "it has run: {again}");
}

#[test]
fn a_retried_job_lives_again_under_its_id() {
    let service = Service::start(&[]);
    let id = job_id(&service.post("/v1/jobs/sleep?timeout_ms=100", r#"{"ms":300}"#));
    assert_eq!(service.record(&id)["status"], "timed_out");
    let answer = service.post(&format!("/v1/jobs/{id}/retry"), "");
    assert_eq!((answer.status, job_id(&answer)), (202, id.clone()), "{answer:?}");
    assert_eq!(answer.header("location"), Some(format!("/v1/jobs/{id}").as_str()));
    let record = answer.json();
    assert_eq!(
        (&record["id"], &record["status"], &record["finished_at"]),
        (&json!(id), &json!("queued"), &Value::Null)
    );
    let record = service.record_when(&id, "timed_out");
    assert_eq!(record["deliveries"], 1, "deliveries are counted from 0 again");
    // A cancelled one too.
    let slow = start_long_job(&service);
    service.request("DELETE", &format!("/v1/jobs/{slow}"), &[], "");
    assert_eq!(service.post(&format!("/v1/jobs/{slow}/retry"), "").status, 202);
    service.record_when(&slow, "running");
}

// ---- batches ----

#[test]
fn a_batch_answers_each_line_with_a_line_in_order() {
    for mode in ["inline", "process_supervisor"] {
        let mode = format!("runtime.platform.bootstrap.mode={mode}");
        let service = Service::start(&[&mode]);
        // With an empty line, a CR that belongs to its line, and a last line without its end.
        let body = "{\"n\":1}\n\nplain\r\n\"last\"";
        let answer = service.post("/v1/batch/echo", body);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/x-ndjson")));
        assert_common(&answer);
        assert_eq!(answer.text(), "{\"n\":1}\n\nplain\r\n\"last\"\n", "{mode}");
        let nothing = service.post("/v1/batch/echo", "");
        assert_eq!((nothing.status, nothing.text()), (200, String::new()), "{nothing:?}");
        let lines: String = (0..5_000).map(|number| format!("{{\"n\":{number}}}\n")).collect();
        let mut client = service.connect();
        for _ in 0..2 {
            let answer = client.request("POST", "/v1/batch/echo", &[], &lines);
            assert!(answer.text() == lines, "{mode}: {} of {} bytes", answer.body.len(), lines.len());
        }
        // The connection goes on after it.
        assert_eq!(client.request("POST", "/v1/jobs/echo", &[], "x").text(), "x");
    }
}

#[test]
fn a_batch_in_completion_order_gives_the_fast_lines_first_and_all_of_them_once() {
    let service = Service::start(&[]);
    let body = "{\"ms\":900}\n{\"ms\":1}\n{\"ms\":2}\n";
    let answer = service.post("/v1/batch/sleep?sink_mode=completion", body);
    let text = answer.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.last(), Some(&"{\"slept_ms\":900}"), "{text}");
    assert_eq!(lines.iter().collect::<HashSet<_>>().len(), 3, "{text}");
    let in_order = service.post("/v1/batch/sleep?sink_mode=source_seq", body).text();
    assert_eq!(in_order, "{\"slept_ms\":900}\n{\"slept_ms\":1}\n{\"slept_ms\":2}\n");
}

#[test]
fn the_results_of_a_batch_are_streamed_as_they_come() {
    let service = Service::start(&[]);
    let mut client = service.connect();
    client.send(request("POST", "/v1/batch/sleep", &[], "{\"ms\":1}\n{\"ms\":600000}\n"));
    // The first line's result arrives though the second will not end.
    let mut seen = Vec::new();
    until("the first result", PATIENCE, || {
        let mut part = [0; 4_096];
        client.stream.set_read_timeout(Some(Duration::from_millis(20))).expect("a TCP socket");
        if let Ok(read) = std::io::Read::read(&mut client.stream, &mut part) {
            seen.extend_from_slice(&part[..read]);
        }
        String::from_utf8_lossy(&seen).contains("{\"slept_ms\":1}\n").then_some(())
    });
}

#[test]
fn a_line_that_failed_is_its_problem_object_and_the_others_go_on() {
    let service = Service::start(&[]);
    let answer = service.post("/v1/batch/sleep", "{\"ms\":1}\nno json\n{\"ms\":2}\n");
    assert_eq!(answer.status, 200);
    let text = answer.text();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&lines[0], &lines[2]), (&json!({"slept_ms": 1}), &json!({"slept_ms": 2})), "{text}");
    assert_eq!(lines[1]["code"], "handler_failed", "{text}");
    assert_eq!(
        (&lines[1]["type"], &lines[1]["status"]),
        (&json!("urn:cofferdam:error:handler_failed"), &json!(422))
    );
}

#[test]
fn a_batch_larger_than_the_queue_waits_for_room_instead_of_failing() {
    let service = Service::start(&["runtime.platform.queue.capacity=2", KEYED_ECHO]);
    let lines: String = (0..500).map(|number| format!("{{\"k\":{}}}\n", number % 5)).collect();
    let answer = service.post("/v1/batch/echo", &lines);
    assert!(answer.text() == lines, "{}", answer.text());
    // A line without a key is a failed line of its own.
    let text = service.post("/v1/batch/echo", "{\"k\":1}\n{}\n{\"k\":2}\n").text();
    let codes: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(codes[1]["code"], "bad_request", "{text}");
    assert_eq!((&codes[0], &codes[2]), (&json!({"k": 1}), &json!({"k": 2})), "{text}");
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
}

#[test]
fn a_line_over_the_payload_limit_fails_alone() {
    let service = Service::start(&["web.max_body_bytes=100", "web.max_batch_bytes=10000"]);
    let long = "a".repeat(101);
    let text = service.post("/v1/batch/echo", format!("x\n{long}\n{}\ny\n", "b".repeat(100))).text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines[2].len(), lines[3]), ("x", 100, "y"), "{text}");
    assert!(lines[1].contains("payload_too_large"), "{text}");
}

// ---- pages ----

#[test]
fn the_pages_answer_and_say_what_they_promise() {
    for mode in ["inline", "process_supervisor"] {
        let mode = format!("runtime.platform.bootstrap.mode={mode}");
        let service = Service::start(&[&mode]);
        let id = job_id(&service.post("/v1/jobs/echo", "x"));
        for (target, media_type) in [
            ("/healthz", "application/json"),
            ("/livez", "application/json"),
            ("/readyz", "application/json"),
            ("/v1/stats", "application/json"),
            ("/metrics", "text/plain; version=0.0.4"),
            ("/", "text/html; charset=utf-8"),
        ] {
            let answer = service.get(target);
            assert_eq!((answer.status, answer.header("content-type")), (200, Some(media_type)), "{target}");
            assert_common(&answer);
            assert!(!answer.text().contains(&id), "{target} names no job");
            let mut client = service.connect();
            client.send(format!("HEAD {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            let head = client.read_without_body();
            assert_eq!((head.status, head.header("content-type")), (200, Some(media_type)), "{target}");
            assert!(head.header("content-length").is_some_and(|length| length != "0"), "{target}");
            // Nothing stands between it and the next answer.
            assert_eq!(client.request("GET", "/healthz", &[], "").status, 200, "after HEAD {target}");
        }
        let stats = service.get("/v1/stats").json();
        assert_eq!(stats["totals"]["submitted"], 1, "{stats}");
        let replaced = json!({
            "restarts": {"crashed": 0, "killed": 0, "unresponsive": 0},
            "recycled": {"max_jobs": 0, "max_rss": 0, "secret": 0, "stuck": 0},
        });
        let mut group = json!({"name": "execution", "executors": 1, "busy": 0, "workers": 8});
        group.as_object_mut().expect("an object").extend(replaced.as_object().expect("an object").clone());
        assert_eq!(stats["groups"], json!([group]), "{mode}");
        assert!(stats["processes"][0]["rss_bytes"].as_u64() > Some(1 << 20), "{mode}: {stats}");
        assert_eq!(stats["waiters"], 0);
    }
}

#[test]
fn metrics_are_well_formed_and_every_promised_series_exists_from_the_start() {
    let service = Service::start(&[]);
    // Its labels are the routes and statuses that there were.
    service.get("/healthz");
    let text = service.get("/metrics").text();
    let promised = [
        "jobs_submitted_total",
        "jobs_finished_total",
        "job_seconds",
        "queue_wait_seconds",
        "queue_depth",
        "queue_oldest_seconds",
        "queue_redelivered_total",
        "queue_dead_total",
        "reply_waiters",
        "reply_timeouts_total",
        "reply_cancelled_total",
        "reply_late_total",
        "reply_duplicate_total",
        "ipc_frames_total",
        "ipc_rejected_total",
        "workers_busy",
        "process_restarts_total",
        "process_recycled_total",
        "lanes_parked",
        "suspects",
        "idempotency_keys",
        "idempotency_evicted_total",
        "state_bytes",
        "forged_total",
        "http_requests_total",
        "build_info",
    ];
    for name in promised {
        assert!(text.contains(&format!("# TYPE cofferdam_{name} ")), "{name} has a type");
        assert!(text.contains(&format!("\ncofferdam_{name}")), "{name} has a series");
    }
    for what in ["job", "state", "key", "end"] {
        assert!(text.contains(&format!("cofferdam_forged_total{{what=\"{what}\"}} 0\n")), "{what}");
    }
    for route in cofferdam::web::routes::LABELS.split(' ') {
        let series = format!("cofferdam_http_requests_total{{route=\"{route}\",status=\"200\"}} ");
        assert!(text.contains(&series), "{series} exists from the start");
    }
    let mut seen = HashSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        value.parse::<f64>().unwrap_or_else(|_| panic!("{line:?} has no number"));
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert!(name.starts_with("cofferdam_") && labels.ends_with('}'), "{line:?}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line:?}");
        assert!(seen.insert(series.to_owned()), "{series} is there twice");
    }
    assert!(text.ends_with('\n'));
    // What a client chooses never becomes a label.
    service.get("/v1/jobs/secret-path");
    service.request("GET", "/x/secret-path", &[], "");
    assert!(!service.get("/metrics").text().contains("secret-path"));
}

// ---- the connection ----

#[test]
fn a_request_gives_the_same_answer_in_any_segmentation() {
    let service = Service::start(&[]);
    let whole = request("POST", "/v1/jobs/echo", &["Content-Type: text/plain"], "0123456789");
    let chunked = b"POST /v1/jobs/echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n\
        Transfer-Encoding: chunked\r\n\r\n3;ext=1\r\n012\r\n7\r\n3456789\r\n0\r\nTrailer: x\r\n\r\n";
    for bytes in [&whole[..], &chunked[..]] {
        for size in [1, 2, 7, bytes.len()] {
            let mut client = service.connect();
            for piece in bytes.chunks(size) {
                client.send(piece);
                client.stream.flush().expect("a socket has no buffer");
            }
            let answer = client.read();
            assert_eq!((answer.status, answer.text()), (200, "0123456789".into()), "{size}: {answer:?}");
            assert_eq!(answer.header("content-type"), Some("text/plain"));
            // What comes next is a new request.
            assert_eq!(client.request("GET", "/healthz", &[], "").status, 200);
        }
    }
}

#[test]
fn two_hundred_requests_in_one_write_are_answered_in_their_order() {
    let service = Service::start(&[]);
    let mut client = service.connect();
    let bytes: Vec<u8> =
        (0..200).flat_map(|number| request("POST", "/v1/jobs/echo", &[], number.to_string())).collect();
    client.send(&bytes);
    for number in 0..200 {
        let answer = client.read();
        assert_eq!((answer.status, answer.text()), (200, number.to_string()), "{answer:?}");
    }
    // Different routes too, each in its place.
    let mixed: Vec<u8> = (0..200)
        .flat_map(|number| match number % 4 {
            0 => request("GET", "/v1/stats", &[], ""),
            1 => request("POST", "/v1/jobs/sleep", &[], r#"{"ms":1}"#),
            2 => request("GET", "/nothing", &[], ""),
            _ => request("POST", "/v1/batch/echo", &[], "a\nb\n"),
        })
        .collect();
    client.send(&mixed);
    for number in 0..200 {
        let answer = client.read();
        let expected = match number % 4 {
            0 => answer.status == 200 && answer.json()["totals"].is_object(),
            1 => answer.text() == r#"{"slept_ms":1}"#,
            2 => answer.code() == "not_found",
            _ => answer.text() == "a\nb\n",
        };
        assert!(expected, "{number}: {answer:?}");
    }
}

/// Reads answers a little at a time until the connection ends; how long that took.
fn read_slowly(client: &mut TcpStream) -> (Vec<u8>, Duration) {
    let begun = Instant::now();
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 256 << 10]);
    loop {
        match service::read(client, &mut buffer).expect("it is not reset") {
            0 => break,
            read => bytes.extend_from_slice(&buffer[..read]),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    (bytes, begun.elapsed())
}

/// The time for the next request, and the moment to read the last answer, begin when the answer has left.
#[test]
fn an_answer_that_is_taken_slowly_arrives_whole() {
    const BYTES: usize = 32 << 20;
    let service = Service::start(&[
        "runtime.platform.execution_ipc.max_payload_bytes=67108864",
        "web.max_body_bytes=33554432",
        "web.max_batch_bytes=67108864",
        r#"web.limits={"idle_timeout_ms":300,"header_timeout_ms":300,"write_timeout_ms":5000}"#,
    ]);
    let body = vec![b'x'; BYTES];
    for version in ["1.0", "1.1"] {
        let mut client = TcpStream::connect(service.address).expect("it listens");
        let head = format!(
            "POST /v1/jobs/echo HTTP/{version}\r\nHost: localhost\r\nContent-Length: {BYTES}\r\n\r\n"
        );
        client.write_all(head.as_bytes()).expect("it reads");
        client.write_all(&body).expect("it reads");
        if version == "1.1" {
            // Whole, and waiting behind the answer: not late, however long that takes.
            client
                .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .expect("it reads");
        }
        let (bytes, took) = read_slowly(&mut client);
        assert!(took > Duration::from_millis(2_500), "{took:?} is no test of it");
        let text = String::from_utf8_lossy(&bytes);
        let (head, rest) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(
            rest.len() >= BYTES && rest.as_bytes()[..BYTES] == body[..],
            "{version}: {} bytes",
            rest.len()
        );
        assert_eq!(rest[BYTES..].starts_with("HTTP/1.1 200 "), version == "1.1", "{:.200}", &rest[BYTES..]);
        assert!(!rest[BYTES..].contains("HTTP/1.1 408"), "{:.200}", &rest[BYTES..]);
    }
}

#[test]
fn a_pipeline_of_two_thousand_large_answers_reaches_a_client_that_reads_late() {
    let service = Service::start(&[]);
    let body = "a".repeat(2_000);
    let bytes: Vec<u8> = (0..2_000).flat_map(|_| request("POST", "/v1/jobs/echo", &[], &body)).collect();
    let mut client = service.connect();
    let mut writer = client.stream.try_clone().expect("a socket");
    // Its own thread: neither side can take it all before the other reads.
    let writing = std::thread::spawn(move || writer.write_all(&bytes));
    for number in 0..2_000 {
        let answer = client.read();
        assert!(answer.status == 200 && answer.body == body.as_bytes(), "{number}: {answer:?}");
    }
    writing.join().expect("a thread").expect("all was sent");
}

#[test]
fn connections_persist_by_version_and_option() {
    let service = Service::start(&[]);
    let rows = [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: x, Close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: keep-alive\r\n", true),
    ];
    for (version, option, persists) in rows {
        for target in ["/healthz", "/v1/stats"] {
            let mut client = service.connect();
            let request = format!("GET {target} HTTP/{version}\r\nHost: localhost\r\n{option}\r\n");
            client.send(&request);
            let answer = client.read();
            assert_eq!(answer.status, 200, "{version} {option:?}: {answer:?}");
            if persists {
                client.send(&request);
                assert_eq!(client.read().status, 200, "{version} {option:?}");
            } else {
                assert_eq!(answer.header("connection"), Some("close"), "{version} {option:?}");
                client.assert_closed();
            }
        }
    }
}

#[test]
fn an_http_1_0_client_that_keeps_the_connection_is_told_that_it_is_kept() {
    let service = Service::start(&[]);
    let mut client = service.connect();
    client.send("GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    // Without the option such a client waits for the end of the connection (RFC 9112, C.2.2).
    let answer = client.read();
    let kept = answer.header("connection").is_some_and(|option| option.eq_ignore_ascii_case("keep-alive"));
    assert!(kept, "{answer:?}");
}

#[test]
fn an_http_1_0_request_needs_no_host_and_its_batch_ends_with_the_connection() {
    let service = Service::start(&[]);
    let mut client = service.connect();
    client.send("POST /v1/jobs/echo HTTP/1.0\r\nContent-Length: 1\r\n\r\nx");
    assert_eq!(client.read().text(), "x");
    let mut client = service.connect();
    client.send("POST /v1/batch/echo HTTP/1.0\r\nContent-Length: 2\r\n\r\nx\n");
    let answer = client.read_to_end();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("\r\nconnection: close"), "{head}");
    assert!(!head.contains("transfer-encoding") && !head.contains("content-length"), "{head}");
    assert_eq!(body, "x\n");
}

#[test]
fn a_client_that_expects_100_continue_gets_it_before_its_body_and_not_with_a_refusal() {
    let service = Service::start(&[]);
    let mut client = service.connect();
    let head = |target: &str| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    client.send(head("/v1/jobs/echo"));
    assert_eq!(client.read().status, 100);
    client.send("ok");
    assert_eq!(client.read().text(), "ok");
    // On the same connection, and with the body at once: then no 100 is needed.
    client.send(head("/v1/jobs/echo") + "ok");
    let answer = client.read();
    let answer = if answer.status == 100 { client.read() } else { answer };
    assert_eq!((answer.status, answer.text()), (200, "ok".into()));
    let mut client = service.connect();
    client.send(head("/v1/jobs/nobody"));
    assert_problem(&client.read(), 404, "unknown_handler");
    client.assert_closed();
}

#[test]
fn a_refused_request_with_a_small_body_closes_and_one_without_a_body_does_not() {
    let service = Service::start(&[]);
    let mut client = service.connect();
    client.send("GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_problem(&client.read(), 404, "not_found");
    client.send(request("POST", "/nothing", &[], ""));
    assert_problem(&client.read(), 404, "not_found");
    client.send(request("POST", "/nothing", &[], "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    assert_problem(&client.read(), 404, "not_found");
    client.assert_closed();
}

#[test]
fn a_caller_that_hangs_up_frees_its_waiter_and_its_job_goes_on() {
    let service = Service::start(&[ONE_WORKER]);
    let running = start_long_job(&service);
    let mut client = service.connect();
    client.send(request("POST", "/v1/jobs/echo", &[], "x"));
    until("it waits", PATIENCE, || (service.metric("reply_waiters") == 1.0).then_some(()));
    drop(client);
    until("its waiter is freed", PATIENCE, || (service.metric("reply_waiters") == 0.0).then_some(()));
    assert_eq!(service.metric("reply_cancelled_total"), 1.0);
    service.request("DELETE", &format!("/v1/jobs/{running}"), &[], "");
    until("its job has run", PATIENCE, || {
        let finished = service.metric("jobs_finished_total{handler=\"echo\",status=\"succeeded\"}");
        (finished == 1.0).then_some(())
    });
    until("its reply was late", PATIENCE, || (service.metric("reply_late_total") == 1.0).then_some(()));
}

#[test]
fn cancel_on_disconnect_cancels_when_the_last_caller_has_left() {
    let service = Service::start(&["handlers.sleep.cancel_on_disconnect=true"]);
    let connect = || {
        let mut client = service.connect();
        client.send(request("POST", "/v1/jobs/sleep", &["Idempotency-Key: k"], LONG_SLEEP));
        client
    };
    let (first, second) = (connect(), connect());
    until("both wait", PATIENCE, || (service.metric("reply_waiters") == 2.0).then_some(()));
    let id = service.get("/v1/jobs").json()["jobs"][0]["id"].as_str().expect("an id").to_owned();
    service.record_when(&id, "running");
    drop(first);
    until("one has left", PATIENCE, || (service.metric("reply_waiters") == 1.0).then_some(()));
    assert_eq!(service.record(&id)["status"], "running", "one caller still wants it");
    // Who only looks on keeps no job.
    let mut onlooker = service.connect();
    onlooker.send(request("GET", &format!("/v1/jobs/{id}?wait=30"), &[], ""));
    until("it looks on", PATIENCE, || (service.metric("reply_waiters") == 2.0).then_some(()));
    drop(second);
    service.record_when(&id, "cancelled");
    assert_eq!(onlooker.read().json()["status"], "cancelled");
}

#[test]
fn a_batch_whose_client_left_with_its_last_byte_is_cancelled_where_that_is_wanted() {
    let service = Service::start(&["handlers.sleep.cancel_on_disconnect=true"]);
    let mut client = service.connect();
    client.send(request("POST", "/v1/batch/sleep", &[], format!("{LONG_SLEEP}\n")));
    client.stream.shutdown(Shutdown::Write).expect("a socket");
    client.assert_closed();
    until("nothing runs", PATIENCE, || (service.metric("reply_waiters") == 0.0).then_some(()));
    let jobs = service.get("/v1/jobs").json();
    assert!(
        jobs["jobs"].as_array().is_some_and(|jobs| jobs.iter().all(|job| job["status"] == "cancelled")),
        "{jobs}"
    );
}

#[test]
fn at_the_limit_of_connections_a_submission_that_does_not_come_gives_way() {
    let limits = r#"web.limits={"connections":10,"body_timeout_ms":60000}"#;
    let service = Service::start(&[limits]);
    let half = "POST /v1/jobs/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nx";
    let halves: Vec<Client> = (0..20)
        .map(|_| {
            let mut client = service.connect();
            client.send(half);
            client
        })
        .collect();
    let begun = Instant::now();
    assert_eq!(service.get("/healthz").status, 200);
    assert!(begun.elapsed() < PATIENCE.min(Duration::from_secs(20)), "{:?}", begun.elapsed());
    drop(halves);
}

/// Progress is what the client takes, however little at a time: a socket calls itself writable only when it has much room.
#[test]
fn a_client_that_takes_its_answer_slowly_is_not_cut_off() {
    const LINES: usize = 24;
    let sets = [r#"web.limits={"write_timeout_ms":1500}"#, "web.max_batch_bytes=33554432"];
    let service = Service::start(&sets);
    let line = format!("\"{}\"\n", "x".repeat(700_000));
    let mut client = service.connect();
    client.send(request("POST", "/v1/batch/echo", &[], line.repeat(LINES)));
    let (mut read, mut part) = (0, vec![0; 64 << 10]);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(8) {
        read += service::read(&mut client.stream, &mut part).expect("it is still there");
        std::thread::sleep(Duration::from_millis(150));
    }
    assert!(read < LINES * line.len(), "it was slow");
    loop {
        match service::read(&mut client.stream, &mut part).expect("it is still there") {
            0 => break,
            more => read += more,
        }
        if part[..64].ends_with(b"0\r\n\r\n") || read > LINES * line.len() {
            break;
        }
    }
    assert!(read > LINES * line.len(), "{read} bytes of {}", LINES * line.len());
}
