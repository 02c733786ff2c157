//! `jobs`, `lanes`, `handlers` and `top` against a running service: what they print, what they do, and how they end.
//!
//! It guards against a script that takes a failure for a success, an action that nobody confirmed, and a terminal that is steered by
//! what a job holds.

#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};

use program::{Folder, cofferdam, command, run};
use serde_json::Value;
use service::{PATIENCE, Service, free_address, until};

struct Console<'a> {
    service: &'a Service,
}

impl Console<'_> {
    fn run(&self, words: &[&str], input: &str) -> Output {
        let url = format!("http://{}", self.service.address);
        run(command(&cofferdam(), words).env("COFFERDAM_URL", url), input.as_bytes())
    }

    /// What it prints, where it ends well.
    #[track_caller]
    fn says(&self, words: &[&str]) -> String {
        let output = self.run(words, "");
        assert_eq!(output.status.code(), Some(0), "{words:?}: {output:?}");
        text(&output.stdout)
    }

    /// The id of a new job.
    #[track_caller]
    fn submit(&self, words: &[&str]) -> String {
        let id = self.says(&[&["jobs", "submit"], words].concat()).trim_end().to_owned();
        assert_eq!(id.len(), 32, "{id}");
        id
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[track_caller]
fn assert_ends(output: &Output, code: i32, words: &str) {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(text(&output.stderr).contains(words), "{words}: {output:?}");
}

#[test]
fn a_job_is_submitted_waited_for_and_shown() {
    let service = Service::start(&[]);
    let console = Console { service: &service };
    assert_eq!(
        text(&console.run(&["jobs", "submit", "echo", "-", "--wait"], "any bytes").stdout),
        "any bytes"
    );
    let id = console.submit(&["echo", r#"{"a":1}"#, "--idempotency-key", "k"]);
    assert_eq!(console.submit(&["echo", r#"{"a":1}"#, "--idempotency-key", "k"]), id, "a key is one job");
    assert_eq!(console.says(&["jobs", "wait", &id]), format!("{id} succeeded\n"));
    assert_eq!(console.says(&["jobs", "result", &id]), r#"{"a":1}"#);
    let shown = console.says(&["jobs", "show", &id]);
    assert!(shown.contains("status        succeeded\n") && shown.contains("OUTCOME"), "{shown}");
    let record: Value = serde_json::from_str(&console.says(&["jobs", "show", &id, "--json"])).expect("JSON");
    assert_eq!((&record["result"]["a"], &record["attempts"][0]["outcome"]), (&1.into(), &"succeeded".into()));
    let failed = console.run(&["jobs", "submit", "sleep", r#"{"ms":-1}"#, "--wait"], "");
    assert_ends(&failed, 1, "is failed: sleep takes");
    let failed = console.says(&["jobs", "list", "--status", "failed", "--json"]);
    let failed: Value = serde_json::from_str(failed.trim()).expect("a record a line");
    let failed = failed["id"].as_str().expect("an id");
    assert_eq!(
        console.run(&["jobs", "wait", &id, failed], "").status.code(),
        Some(1),
        "one of them has failed"
    );
    assert_eq!(console.says(&["jobs", "payload", failed]), r#"{"ms":-1}"#);
}

#[test]
fn each_line_is_a_job_and_who_reads_no_more_ends_it() {
    let service = Service::start(&[]);
    let console = Console { service: &service };
    let lines: String = (0..300).map(|number| format!("{number}\n")).collect();
    let ids = text(&console.run(&["jobs", "submit", "echo", "--lines"], &lines).stdout);
    assert_eq!(ids.lines().count(), 300);
    let last = ids.lines().last().expect("an id");
    console.says(&["jobs", "wait", last]);
    assert_eq!(console.says(&["jobs", "result", last]), "299");
    // More than a page of the service.
    assert_eq!(console.says(&["jobs", "list", "--limit", "1500", "--json"]).lines().count(), 300);
    assert_eq!(console.says(&["jobs", "list"]).lines().count(), 21);
    assert_eq!(console.says(&["jobs", "list", "--limit", "0"]).lines().count(), 1);
    // With an idempotency key the same lines again are the same jobs, and those behind them new ones.
    let by_key = ["jobs", "submit", "echo", "--lines", "--idempotency-key", "day-1"];
    let first = text(&console.run(&by_key, "1\n2\n").stdout);
    let again = text(&console.run(&by_key, "1\n2\n3\n").stdout);
    assert_eq!(first.lines().collect::<BTreeSet<_>>().len(), 2);
    assert_eq!((again.starts_with(&first), again.lines().count()), (true, 3));
    assert_eq!(console.says(&["jobs", "list", "--limit", "1500", "--json"]).lines().count(), 303);

    let mut child = command(&cofferdam(), ["jobs", "submit", "echo", "--lines"])
        .env("COFFERDAM_URL", format!("http://{}", service.address))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let (mut input, mut output) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    input.write_all(b"one\n").expect("it reads");
    output.read_exact(&mut [0; 33]).expect("an id");
    drop(output);
    // It may have ended already.
    let _ = input.write_all(b"two\nthree\n");
    until("it has ended", PATIENCE, || child.try_wait().expect("our child"));
}

#[test]
fn nothing_is_done_to_many_jobs_before_somebody_is_sure() {
    let service = Service::start(&[]);
    let console = Console { service: &service };
    assert_eq!(console.says(&["handlers", "pause", "sleep"]), "sleep is paused\n");
    let ids: Vec<String> = (0..3).map(|_| console.submit(&["sleep", r#"{"ms":1}"#])).collect();
    let lanes = console.says(&["lanes", "sleep"]);
    assert!(ids.iter().all(|id| lanes.contains(&**id)) && lanes.contains("paused"), "{lanes}");
    let all = ["jobs", "cancel", "--all", "--handler", "sleep"];
    assert_ends(&console.run(&all, ""), 2, "3 jobs match: nothing was done; --yes does it");
    assert_eq!(console.says(&[&all[..], &["--dry-run"]].concat()), "3 jobs match\n");
    assert_eq!(console.says(&["jobs", "list", "--status", "queued", "--json"]).lines().count(), 3);
    assert_eq!(console.says(&["jobs", "cancel", &ids[0]]), format!("{} cancelled\n", ids[0]));
    assert_eq!(console.says(&[&all[..], &["--yes"]].concat()), "2 of 2 jobs: cancel done\n");
    assert_eq!(console.says(&["handlers", "resume", "sleep"]), "sleep is open\n");
    let retry = ["jobs", "retry", "--all", "--status", "cancelled", "--yes", "--json"];
    let done: Value = serde_json::from_str(&console.says(&retry)).expect("JSON");
    assert_eq!((&done["done"], &done["refused"]), (&3.into(), &0.into()), "{done}");
    for id in &ids {
        assert_eq!(console.says(&["jobs", "wait", id]), format!("{id} succeeded\n"));
    }
    // One that is not there keeps nobody from the others.
    let nobody = "00000000000000000000000000000000";
    let waited = console.run(&["jobs", "wait", nobody, &ids[0]], "");
    assert_ends(&waited, 1, &format!("{nobody}: unknown_job"));
    assert_eq!(text(&waited.stdout), format!("{} succeeded\n", ids[0]));
    assert_ends(&console.run(&["jobs", "retry", &ids[0]], ""), 1, "not_retryable");
    assert_ends(
        &console.run(&["jobs", "retry", "--all", "--yes"], ""),
        1,
        "what matches everything is refused",
    );
    assert_ends(&console.run(&["jobs", "retry"], ""), 2, "needs ids, or --all");
    assert_ends(&console.run(&["jobs", "retry", &ids[0], "--all"], ""), 2, "not both");
}

#[test]
fn what_is_shown_fits_scripts_people_and_terminals() {
    let service = Service::start(&[
        "handlers.keyed={\"command\":[\"/bin/cat\"],\"mode\":\"once\",\"ordering\":{\"key\":\"/k\"}}",
    ]);
    let console = Console { service: &service };
    console.submit(&["keyed", "{}", "--key", "a\u{9b}2Jb"]);
    let list = console.says(&["jobs", "list", "--key", "a\u{9b}2Jb"]);
    assert!(list.contains("a\\u{9b}2Jb") && !list.contains('\u{9b}'), "no key steers a terminal: {list:?}");
    let top = console.says(&["top"]);
    assert!(top.starts_with("cofferdam ") && top.contains("\nHANDLER") && !top.contains('\x1b'), "{top}");
    let stats: Value = serde_json::from_str(&console.says(&["top", "--json"])).expect("JSON");
    assert_eq!(stats["profile"], "supervised-memory");
    let handlers: Value = serde_json::from_str(&console.says(&["handlers", "list", "--json"])).expect("JSON");
    assert_eq!(handlers.as_array().map(Vec::len), Some(3));
}

#[test]
fn top_fits_its_terminal_and_shows_the_busiest_where_there_is_no_room_for_all() {
    let idle: Vec<String> =
        (0..9).map(|number| format!("handlers.idle{number}={{\"command\":[\"/bin/cat\"]}}")).collect();
    let busy = "handlers.with_a_long_name={\"command\":[\"/bin/cat\"]}".to_owned();
    let service = Service::start(&idle.iter().chain([&busy]).map(String::as_str).collect::<Vec<_>>());
    let console = Console { service: &service };
    console.says(&["handlers", "pause", "with_a_long_name"]);
    console.submit(&["with_a_long_name", "1"]);
    let top = |lines: usize, columns: usize| {
        let top = format!("{} top --url http://{}", cofferdam().display(), service.address);
        let words = ["-qec", &format!("stty rows {lines} cols {columns}; exec {top}"), "/dev/null"];
        let mut script = command(Path::new("script"), words).spawn().expect("it is installed");
        let (mut shown, mut part) = (Vec::new(), [0; 1_024]);
        let mut out = script.stdout.take().expect("it is piped");
        while !shown.ends_with(b"\x1b[J") {
            let read = out.read(&mut part).expect("it shows more");
            assert!(read > 0, "it has ended: {}", text(&shown));
            shown.extend_from_slice(&part[..read]);
        }
        script.kill().and_then(|()| script.wait()).expect("our own child");
        let shown = text(&shown);
        let shown =
            shown.strip_prefix("\x1b[H").and_then(|shown| shown.strip_suffix("\r\n\x1b[J")).expect("a frame");
        let frame = shown.split("\r\n").map(|line| line.strip_prefix("\x1b[K").expect("a line").to_owned());
        let frame: Vec<String> = frame.collect();
        assert!(frame.len() < lines, "the last line is the cursor's: {frame:?}");
        assert!(frame.iter().all(|line| line.chars().count() <= columns), "{frame:?}");
        frame
    };
    let frame = top(13, 42);
    let at = frame.iter().position(|line| line.starts_with("HANDLER")).expect("handlers");
    assert_eq!(frame[at], "HANDLER           STATE   QUEUED  RUNNING", "whole columns: {frame:?}");
    assert_eq!(frame[at + 1], "with_a_long_name  paused       1        0", "{frame:?}");
    assert!(frame[at + 5].starts_with("and 8 more"), "{frame:?}");
    assert!(frame.iter().any(|line| line.starts_with("execution")), "its group: {frame:?}");
    let frame = top(40, 200);
    assert!(frame.iter().all(|line| !line.contains(" more")), "{frame:?}");
    assert_eq!(frame.iter().filter(|line| line.starts_with("idle")).count(), 9, "{frame:?}");
    assert!(top(3, 10).len() == 2);
    // Nothing that is said once is cut.
    let list =
        format!("stty rows 5 cols 20; {} jobs list --url http://{}", cofferdam().display(), service.address);
    let list = text(&run(&mut command(Path::new("script"), ["-qec", &list, "/dev/null"]), b"").stdout);
    assert!(list.lines().next().is_some_and(|head| head.trim_end().ends_with("KEY")), "{list:?}");
}

/// A service that knows one token, the token, and the file that it stands in.
fn of_one_token(folder: &Folder, scopes: &str) -> (Service, String, String) {
    let made = run(&mut command(&cofferdam(), ["token", "ann", "--scopes", scopes]), b"");
    let made = text(&made.stdout);
    let (token, line) = made.split_once('\n').expect("two lines");
    let (tokens, own) = (folder.private_file("tokens", line), folder.private_file("own", token));
    let set = format!("web.auth.token_file={}", tokens.display());
    (Service::start(&["web.auth.mode=bearer", &set]), token.to_owned(), own.display().to_string())
}

#[test]
fn results_beyond_our_numbers_texts_and_depth_are_shown_as_they_are() {
    let service = Service::start(&[]);
    let console = Console { service: &service };
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let odd = r#"{"b":1,"a":12345678901234567890123,"a":1.10}"#;
    for result in [&*deep, "1e999", "\"\\ud800\"", odd] {
        let words = ["jobs", "submit", "echo", "--wait", "--", result];
        assert_eq!(console.says(&words), result);
        let id = console.submit(&["echo", result]);
        assert_eq!(console.says(&["jobs", "wait", &id]), format!("{id} succeeded\n"));
        assert!(console.says(&["jobs", "show", &id]).contains("\nresult        "));
        for words in [&["jobs", "show", &id, "--json"][..], &["jobs", "wait", &id, "--json"]] {
            assert!(console.says(words).contains(&format!("\"result\":{result}")), "{result}");
        }
    }
    assert_eq!(console.says(&["jobs", "list", "--json"]).lines().count(), 8);
    let id = console.submit(&["echo", "{\"a\":\"\u{9b}31m\u{202e}\u{7f}\"}"]);
    console.says(&["jobs", "wait", &id]);
    let shown = console.says(&["jobs", "show", &id]);
    assert!(
        !shown.contains(['\u{9b}', '\u{202e}', '\u{7f}']),
        "no part of a result steers a terminal: {shown:?}"
    );
    // What looks like an option is none behind two dashes.
    for payload in ["--wait", "-h", "--", "--help"] {
        assert_eq!(console.says(&["jobs", "submit", "echo", "--wait", "--", payload]), payload);
    }
}

#[test]
fn who_waits_goes_on_over_a_restart_and_an_accepted_job_is_always_named() {
    let folder = Folder::new();
    let dir = folder.path("journal").display().to_string();
    let bind = format!("web.bind={}", free_address());
    let journal = format!("runtime.platform.queue.journal={{\"dir\":\"{dir}\"}}");
    let sets = [&*bind, &journal, "runtime.platform.lifecycle.graceful_timeout_ms=300"];
    let service = Service::start(&sets);
    let console = Console { service: &service };
    let id = console.submit(&["sleep", r#"{"ms":3000}"#]);
    let url = format!("http://{}", service.address);
    let waiting = |words: &[&str]| {
        let mut command = command(&cofferdam(), words);
        let piped = command.env("COFFERDAM_URL", &url).stdout(Stdio::piped()).stderr(Stdio::piped());
        piped.spawn().expect("it starts")
    };
    let (waits, submits) =
        (waiting(&["jobs", "wait", &id]), waiting(&["jobs", "submit", "sleep", r#"{"ms":2000}"#, "--wait"]));
    until("both wait", PATIENCE, || (service.metric("reply_waiters") == 2.0).then_some(()));
    service.stop();
    let service = Service::start(&sets);
    let ended = [waits, submits].map(|child| child.wait_with_output().expect("our child"));
    for output in &ended {
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    assert_eq!(text(&ended[0].stdout), format!("{id} succeeded\n"));
    // It may submit and not look: the job is there all the same, and is named.
    drop(service);
    let (service, _, own) = of_one_token(&folder, "submit");
    let console = Console { service: &service };
    let refused = console.run(&["jobs", "submit", "echo", "1", "--wait", "--token-file", &own], "");
    assert_ends(&refused, 1, "was accepted, and can be asked for by its id");
}

#[test]
fn each_way_to_fail_has_its_own_words_and_code() {
    let service = Service::start(&[]);
    let console = Console { service: &service };
    let nobody = "00000000000000000000000000000000";
    for (words, code, said) in [
        (&["jobs", "show", nobody][..], 1, "unknown_job"),
        (&["jobs", "show", "123"], 2, "123 is no id of a job"),
        (&["jobs", "list", "--status", "lost"], 1, "status is one of"),
        (&["jobs", "list", "--before", "yesterday"], 1, "before is a time"),
        (&["jobs", "list", "--limit", "x"], 2, "--limit is a number"),
        (&["jobs", "list", "extra"], 2, "unknown argument extra"),
        (&["jobs", "fly"], 2, "jobs takes list"),
        (&["jobs", "submit", "unheard-of", "1"], 1, "unknown_handler"),
        (&["jobs", "submit", "echo", "1", "--key", "a\r\nb: c"], 2, "no control characters"),
        (&["jobs", "submit", "echo", "1", "--delay-ms", "soon"], 1, "bad_request"),
        (&["lanes", "unheard-of"], 1, "unknown_handler"),
        (&["handlers", "stop", "echo"], 2, "handlers takes list"),
        (&["top", "--url", "https://127.0.0.1"], 2, "begins with http://"),
        (&["top", "--url", "http://127.0.0.1:1"], 3, "Connection refused"),
        (&["top", "--token-file", "/no/such/file"], 2, "/no/such/file"),
    ] {
        assert_ends(&console.run(words, ""), code, said);
    }
    // Somebody else answers there.
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", other.local_addr().expect("bound"));
    let answering = std::thread::spawn(move || {
        for said in [
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
            "HTTP/1.1 404 No\r\n\r\n",
            "",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        ] {
            let (mut stream, _) = other.accept().expect("a client");
            let _ = stream.read(&mut [0; 1_024]);
            let _ = stream.write_all(said.as_bytes());
        }
    });
    for said in ["no HTTP", "no JSON", "status 404, and no word why", "closed before an answer"] {
        assert_ends(&console.run(&["top", "--url", &url], ""), 3, said);
    }
    assert_ends(&console.run(&["jobs", "list", "--url", &url], ""), 3, "no JSON object");
    assert_ends(&console.run(&["jobs", "submit", "echo", "1", "--url", &url], ""), 3, "about no job");
    answering.join().expect("all came");
}

#[test]
fn a_token_opens_what_its_scopes_allow() {
    let folder = Folder::new();
    let (service, token, own) = of_one_token(&folder, "submit,read");
    let console = Console { service: &service };
    assert_ends(&console.run(&["jobs", "list"], ""), 1, "unauthorized");
    let id = console.submit(&["echo", "1", "--token-file", &own]);
    assert!(console.says(&["jobs", "list", "--token-file", &own]).contains(&id));
    let refused =
        console.run(&["jobs", "cancel", "--all", "--handler", "echo", "--yes", "--token-file", &own], "");
    assert_ends(&refused, 1, "forbidden: the token lacks the scope admin");
    assert!(!text(&refused.stderr).contains(&token), "a token is said nowhere");
}
