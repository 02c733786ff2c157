//! Programs as handlers, with real ones: what they are given, what their ends mean, and that nothing of them is left.
//!
//! It guards rows H of the faults: exit codes, floods, deaf and forking programs, workers that break the protocol, killed
//! executors.

#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use program::{Folder, cofferdam, command, run, shown};
use serde_json::{Value, json};
use service::{Answer, PATIENCE, Service, Stopwatch, all_children, caller, holdings, kill, running, until};

const JSON: &str = "Content-Type: application/json";

/// A handler's setting.
fn handler(name: &str, options: &Value) -> String {
    format!("handlers.{name}={options}")
}

/// In scripts `600.` seconds are this test program's own: its processes are told from those of another.
fn own(script: &str) -> String {
    script.replace("600.", &format!("1{}.", std::process::id()))
}

/// A shell script as a handler, with more options.
fn sh(name: &str, script: &str, more: Value) -> String {
    let mut options = json!({"command": ["sh", "-c", own(script)]});
    for (key, value) in more.as_object().expect("options") {
        options[key] = value.clone();
    }
    handler(name, &options)
}

fn start(sets: &[String]) -> Service {
    Service::start(&sets.iter().map(String::as_str).collect::<Vec<_>>())
}

fn post(service: &Service, handler: &str, body: impl AsRef<[u8]>) -> Answer {
    service.request("POST", &format!("/v1/jobs/{handler}"), &[JSON], body)
}

/// Processes that have this word in their command line.
fn with_word(word: &str) -> Vec<i32> {
    let word = own(word);
    let entries = std::fs::read_dir("/proc").expect("there is a /proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: &i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|one| one == word.as_bytes())
    };
    pids.filter(has).collect()
}

#[track_caller]
fn none_left(word: &str) {
    until(&format!("no process has {word}"), PATIENCE, || with_word(word).is_empty().then_some(()));
}

/// Zombies among a process's children.
fn zombies(pid: u32) -> usize {
    let is_zombie = |child: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
    };
    all_children(pid).iter().filter(|child| is_zombie(child)).count()
}

/// A worker that answers `1`, but for a payload of 0, with which it does this.
fn worker_that(name: &str, does: &str, more: Value) -> String {
    let answer = r#"id=${line#*\"id\":\"}; echo "{\"id\":\"${id%%\"*}\",\"ok\":1}""#;
    let script =
        format!("while read -r line; do case $line in *'\"payload\":0'*) {does};; esac; {answer}; done");
    let mut options = more;
    options["mode"] = "worker".into();
    sh(name, &script, options)
}

#[test]
fn h1_a_crash_is_one_of_its_delivery_and_the_next_job_is_right() {
    let twice = json!({"max_deliveries": 2, "retry": {"base_ms": 1, "max_ms": 1}});
    let service = start(&[
        sh("once", "read n; test $n = 0 && kill -ABRT $$; echo 1", twice.clone()),
        worker_that("worker", "kill -SEGV $$", twice),
    ]);
    let executor = service.child("executor");
    for name in ["once", "worker"] {
        for _ in 0..3 {
            let answer = post(&service, name, "0\n");
            assert_eq!(answer.code(), "dead_lettered", "{answer:?}");
            assert_eq!(answer.json()["cause"], "handler_crashed", "{answer:?}");
            let id = answer.header("cofferdam-job-id").expect("there is a job");
            assert_eq!(service.record(id)["deliveries"], 2, "{name}");
            assert_eq!(post(&service, name, "7\n").text().trim(), "1", "{name}");
        }
    }
    assert_eq!(service.child("executor"), executor, "no program takes its executor along");
}

#[test]
fn h2_an_endless_loop_ends_at_its_deadline_and_gives_its_worker_back() {
    let short = json!({"timeout_ms": 300, "stop_grace_ms": 100});
    let service = start(&[
        r#"runtime.platform.process_groups=[{"name":"one","workers":1}]"#.into(),
        sh("once", "read n; while test $n = 0; do :; done; echo 1", short.clone()),
        worker_that("worker", "while :; do :; done", short),
    ]);
    let executor = service.child("executor");
    for name in ["once", "worker"] {
        for _ in 0..3 {
            let begun = Stopwatch::start();
            let answer = post(&service, name, "0\n");
            assert_eq!(answer.code(), "handler_timed_out", "{answer:?}");
            // Timeout, grace and half a second, and as much again for a busy machine.
            assert!(begun.elapsed() < Duration::from_millis(1_400), "{name}: {:?}", begun.elapsed());
            // The only worker is free for the next one.
            assert_eq!(post(&service, name, "7\n").text().trim(), "1", "{name}");
        }
    }
    assert_eq!(service.child("executor"), executor, "nothing was stuck");
}

#[test]
fn h3_each_end_of_a_program_has_its_meaning() {
    let once = json!({"max_deliveries": 1});
    let service = start(&[
        sh("exits", "read n; echo \"says $n\" >&2; exit $n", once.clone()),
        sh("dies", "read s; kill -$s $$", once.clone()),
        sh("json", "echo ' {\"a\": 1}'", once.clone()),
        sh("bytes", "printf '\\377not json'", once),
        sh(
            "again",
            "test $COFFERDAM_DELIVERY = 3 || exit 75; echo $COFFERDAM_DELIVERY",
            json!({
                "retry": {"base_ms": 1, "max_ms": 1}
            }),
        ),
        handler("cat", &json!({"command": ["cat"]})),
    ]);
    let exits = |code: &str| post(&service, "exits", format!("{code}\n"));
    assert_eq!((exits("0").status, exits("0").text().as_str()), (200, ""));
    for code in ["1", "126", "127", "255"] {
        let answer = exits(code);
        assert_eq!(answer.code(), "handler_failed", "{answer:?}");
        let detail = answer.json()["detail"].as_str().expect("text").to_owned();
        assert!(detail.starts_with(&format!("exit code {code}; ran ")), "{detail}");
        assert!(detail.ends_with(&format!("last words: says {code}")), "{detail}");
    }
    let retried = exits("75");
    assert_eq!(
        (retried.code(), &retried.json()["cause"]),
        ("dead_lettered".into(), &json!("retries_exhausted"))
    );
    for signal in ["SEGV", "KILL", "TERM"] {
        let answer = post(&service, "dies", format!("{signal}\n"));
        assert_eq!(
            (answer.code(), &answer.json()["cause"]),
            ("dead_lettered".into(), &json!("handler_crashed"))
        );
        assert!(answer.text().contains(&format!("SIG{signal}")), "{answer:?}");
    }
    let answer = post(&service, "json", "");
    assert_eq!(
        (answer.header("content-type"), answer.text().as_str()),
        (Some("application/json"), " {\"a\": 1}\n")
    );
    let answer = post(&service, "bytes", "");
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
    assert_eq!(answer.body, b"\xffnot json");
    assert_eq!(post(&service, "again", "").text(), "3\n");
    let large = vec![b'x'; 1 << 20];
    assert!(post(&service, "cat", &large).body == large, "input and output do not wait for each other");
}

#[test]
fn h4_a_program_that_cannot_be_started_is_named_by_check_and_at_the_start_and_by_its_job() {
    let folder = Folder::new();
    let script = |name: &str, text: &str, mode: u32| {
        let path = folder.file(name, text);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("our own file");
        path.display().to_string()
    };
    let plain = script("plain", "#!/bin/sh\n", 0o644);
    let lost = script("lost", "#!/no/such/shell\n", 0o755);
    let env = script("env", "#!/usr/bin/env no-such-language\n", 0o755);
    let empty = script("empty", "#!\n", 0o755);
    let crlf = script("crlf", "#!/bin/sh\r\n", 0o755);
    let here = folder.path("").display().to_string();
    if rustix::process::geteuid().is_root() {
        let closed = Folder::new();
        std::fs::set_permissions(closed.path(""), PermissionsExt::from_mode(0o700)).expect("our own folder");
        let path = closed.file("program", "#!/bin/sh\n");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("our own file");
        let set = handler("prog", &json!({"command": [path], "user": "nobody"}));
        let output = run(&mut command(&cofferdam(), ["check", "--set", &set]), b"");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code() == Some(2) && said.contains("its user may not enter"),
            "{}",
            shown(&output)
        );
    }
    for (command_of, why) in [
        (json!({"command": ["no-such-program"]}), "no-such-program is not in PATH"),
        (json!({"command": ["/no/such"]}), "/no/such: No such file"),
        (json!({"command": [here]}), "is no file"),
        (json!({"command": [plain]}), "plain is not executable"),
        (json!({"command": [lost]}), "its interpreter: /no/such/shell"),
        (json!({"command": [env]}), "its interpreter: no-such-language is not in PATH"),
        (json!({"command": [empty]}), "names no interpreter"),
        (json!({"command": [crlf]}), "ends with a carriage return"),
        (json!({"command": ["true"], "dir": "/no/such"}), "dir: /no/such is no directory"),
        (json!({"command": ["true"], "user": "no-such-user"}), "user: "),
    ] {
        for role in [&["check"][..], &["serve"], &["batch", "--handler", "echo"]] {
            let set = handler("prog", &command_of);
            let output = run(&mut command(&cofferdam(), [role, &["--set", &set]].concat()), b"");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{}", shown(&output));
            assert!(said.contains("handlers.prog: ") && said.contains(why), "{why}: {said}");
        }
    }
    // What was there at the start may go.
    let goes = script("goes", "#!/bin/sh\n", 0o755);
    let service = start(&[
        handler("goes", &json!({"command": [goes], "max_deliveries": 1})),
        handler("works", &json!({"command": [goes], "mode": "worker", "max_deliveries": 1})),
    ]);
    assert_eq!(post(&service, "goes", "1").status, 200);
    std::fs::remove_file(folder.path("goes")).expect("our own file");
    let answer = post(&service, "goes", "1");
    assert!(
        answer.code() == "handler_failed" && answer.text().contains("goes cannot be started"),
        "{answer:?}"
    );
    let answer = post(&service, "works", "1");
    assert!(
        answer.code() == "dead_lettered" && answer.text().contains("goes cannot be started"),
        "{answer:?}"
    );
    std::fs::create_dir(folder.path("goes")).expect("our own folder");
    let answer = post(&service, "goes", "1");
    assert!(
        answer.code() == "handler_failed" && answer.text().contains("goes cannot be started"),
        "{answer:?}"
    );
}

#[test]
fn h5_a_program_that_ignores_sigterm_is_killed_after_its_grace_and_its_error_says_what_it_was() {
    let deaf = "trap '' TERM; echo here it is >&2; while :; do sleep 600.51; done";
    let limits = json!({"timeout_ms": 1_000, "stop_grace_ms": 1_000, "limits": {"cpu_seconds": 9}});
    let polite = "trap 'echo bye >&2; exit 0' TERM; while :; do sleep 0.02; done";
    let service = start(&[
        sh("deaf", deaf, limits.clone()),
        sh("polite", polite, limits),
        sh("cancelled", "exec sleep 600.52", json!({"cancel_on_disconnect": true})),
    ]);
    let (begun, watch) = (Instant::now(), Stopwatch::start());
    let answer = post(&service, "deaf", "1");
    let (took, watched) = (begun.elapsed(), watch.elapsed());
    assert_eq!(answer.code(), "handler_timed_out", "{answer:?}");
    assert!(took.as_millis() >= 2_000 && watched.as_millis() < 2_900, "{took:?}");
    let detail = answer.json()["detail"].as_str().expect("text").to_owned();
    for words in [
        "the handler's timeout passed: ended by signal 9 (SIGKILL); why: timeout, SIGKILL after stop_grace_ms; ran ",
        " processor 0.",
        ", peak memory ",
        r#"limits {"cpu_seconds":9}"#,
        "last words: here it is",
    ] {
        assert!(detail.contains(words), "no {words:?} in {detail}");
    }
    let ran = detail.split_once("; ran ").and_then(|(_, rest)| rest.split_once(" s,")).expect("how long").0;
    // By the executor's clock, whose milliseconds may end just before those of the timeout.
    assert!((1.99..4.0).contains(&ran.parse::<f64>().expect("seconds")), "{detail}");
    let begun = Stopwatch::start();
    let answer = post(&service, "polite", "1");
    assert!(begun.elapsed() < Duration::from_millis(1_900), "{:?}", begun.elapsed());
    let detail = answer.json()["detail"].as_str().expect("text").to_owned();
    assert!(answer.code() == "handler_timed_out" && detail.contains("why: timeout, SIGTERM"), "{detail}");
    assert!(detail.ends_with("bye"), "{detail}");
    none_left("600.51");

    // A cancelled job's program, and one whose last caller has left.
    let id = service.submit("/v1/jobs/cancelled", &[], "1");
    service.record_when(&id, "running");
    until("it runs", PATIENCE, || (!with_word("600.52").is_empty()).then_some(()));
    assert_eq!(service.request("DELETE", &format!("/v1/jobs/{id}"), &[], "").status, 200);
    none_left("600.52");
    let left = caller(&service, "/v1/jobs/cancelled", "1");
    until("it runs", PATIENCE, || (!with_word("600.52").is_empty()).then_some(()));
    drop(left);
    none_left("600.52");
    running(&service, 0);
}

#[test]
fn h6_what_a_program_leaves_behind_holds_up_no_answer_and_is_gone() {
    let service = start(&[
        sh("group", "sleep 600.61 & sleep 600.61 & echo 1", json!({})),
        // Twice removed, in a session of its own, standard output open; the second with an empty environment besides.
        sh("daemon", "setsid sh -c 'sleep 600.62 & sleep 600.62' & echo 2; sleep 0.1", json!({})),
        sh("clean", "env -i setsid sh -c 'sleep 600.63 & sleep 600.63' & echo 3; sleep 0.1", json!({})),
        sh(
            "slow",
            "sleep 600.64 & setsid sh -c 'sleep 600.64; sleep 600.64' & wait",
            json!({
                "timeout_ms": 300, "stop_grace_ms": 100
            }),
        ),
        sh("killed", "setsid sleep 600.65 & sleep 0.05; kill -9 $$", json!({"max_deliveries": 1})),
    ]);
    for (name, word, says) in
        [("group", "600.61", "1\n"), ("daemon", "600.62", "2\n"), ("clean", "600.63", "3\n")]
    {
        let begun = Stopwatch::start();
        assert_eq!(post(&service, name, "").text(), says);
        assert!(begun.elapsed() < Duration::from_secs(2), "{name}: {:?}", begun.elapsed());
        none_left(word);
    }
    assert_eq!(post(&service, "slow", "").code(), "handler_timed_out");
    none_left("600.64");
    assert_eq!(post(&service, "killed", "").code(), "dead_lettered");
    none_left("600.65");
    // What one program leaves is told from what another, which still runs, has started.
    let service = start(&[
        sh(
            "runs",
            "(setsid sleep 600.66 &); sleep 1; pgrep -f 'sleep 600.66' > /dev/null && echo there",
            json!({}),
        ),
        sh("short", "true", json!({})),
    ]);
    let mut runs = caller(&service, "/v1/jobs/runs", "");
    until("its daemon runs", PATIENCE, || (!with_word("600.66").is_empty()).then_some(()));
    (0..5).for_each(|_| assert_eq!(post(&service, "short", "").status, 200));
    assert_eq!(runs.read().text(), "there\n");
    none_left("600.66");
    until("no zombie", PATIENCE, || (zombies(service.child("executor")) == 0).then_some(()));
}

/// As in a container that a command was brought into: there the session of this process is 0.
#[test]
fn h6_holds_where_the_session_began_outside_of_the_pid_namespace() {
    if !rustix::process::geteuid().is_root() {
        return println!("SKIPPED: only root can make a PID namespace");
    }
    let mut inside = std::process::Command::new("unshare");
    inside.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    inside.arg(std::env::current_exe().expect("it is there"));
    let output = inside
        .args(["--exact", "h6_what_a_program_leaves_behind_holds_up_no_answer_and_is_gone"])
        .output()
        .expect("unshare(1) can be started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{}", shown(&output));
}

#[test]
fn h7_floods_are_capped_killed_and_named_and_take_no_memory() {
    let flood = |to: &str| format!("exec head -c 1000000000 /dev/zero >&{to}");
    let service = start(&[
        sh("out", &flood("1"), json!({"stop_grace_ms": 60_000})),
        sh("err", &flood("2"), json!({"stop_grace_ms": 60_000, "max_output_bytes": 100_000})),
        sh("exact", "head -c 1048576 /dev/zero", json!({})),
    ]);
    assert_eq!(post(&service, "exact", "").body.len(), 1 << 20, "as much as it may");
    let peak = || {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", service.child("executor"))).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    };
    let before = peak();
    for (name, most) in [("out", "1048576"), ("err", "100000")] {
        let begun = Stopwatch::start();
        let answer = post(&service, name, "");
        assert_eq!(answer.code(), "handler_failed", "{answer:?}");
        assert!(answer.text().contains("limit: more than max_output_bytes"), "{most}: {answer:?}");
        // Far within its grace.
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }
    // Of a gigabyte.
    let grown = peak() - before;
    assert!(grown < 8_192, "{grown} KiB more");
}

#[test]
fn h8_a_program_need_not_read_its_input_nor_keep_its_output_open() {
    let service = start(&[
        sh("deaf", "echo 1; sleep 0.05", json!({})),
        sh("closes", "exec <&-; sleep 0.05; echo 2", json!({})),
        sh("mute", "echo 3; exec >&-; sleep 0.1", json!({})),
        sh("half", "head -c 10; sleep 0.05", json!({})),
    ]);
    let large = vec![b'x'; 1 << 20];
    for (name, says) in [("deaf", "1\n"), ("closes", "2\n"), ("mute", "3\n"), ("half", "xxxxxxxxxx")] {
        let answer = post(&service, name, &large);
        assert_eq!((answer.status, answer.text().as_str()), (200, says), "{name}");
    }
}

/// What each kind of payload makes this worker do; else it counts in its state.
const WORKER: &str = r#"
import json, os, sys, time
def say(text):
    sys.stdout.buffer.write(text if isinstance(text, bytes) else text.encode()); sys.stdout.flush()
for line in sys.stdin:
    job = json.loads(line)
    what, me = job.get("payload"), {"id": job["id"]}
    answer = json.dumps({**me, "ok": os.getpid()}) + "\n"
    if what == "utf8": say(b'{"id":"\xff"}\n')
    elif what == "garbage": say("no json\n")
    elif what == "nul": say(b"\0" * 64 + b"\n")
    elif what == "mark": say(b"\xef\xbb\xbf" + answer.encode())
    elif what == "line end": say(answer.replace("\n", "\r\n"))
    elif what == "twice a member": say('{"id":"%s","ok":1,"ok":2}\n' % job["id"])
    elif what == "stops": os.kill(os.getpid(), 19)
    elif what == "list": say("[]\n")
    elif what == "unknown": say(json.dumps({**me, "okay": 1}) + "\n")
    elif what == "both": say(json.dumps({**me, "ok": 1, "error": "x"}) + "\n")
    elif what == "neither": say(json.dumps(me) + "\n")
    elif what == "half": say(answer[:10]); sys.exit(0)
    elif what == "two": say(answer + answer)
    elif what == "later": say(answer); time.sleep(0.05); say(answer)
    elif what == "quits": say(answer); os._exit(0)
    elif what == "closes stdin": say(answer); os.close(0); time.sleep(600)
    elif what == "much progress":
        for part in range(100): say("".join(json.dumps({**me, "progress": [part, at]}) + "\n" for at in range(1000)))
        say(answer)
    elif what == "large progress":
        for _ in range(9): say(json.dumps({**me, "progress": "x" * 5000}) + "\n")
        say(answer)
    elif what == "progress of another": say(json.dumps({"id": "0" * 32, "progress": 1}) + "\n" + answer)
    elif what == "progress and more": say(json.dumps({**me, "progress": 1, "set": {"a": "b"}}) + "\n")
    elif what == "late progress": say(json.dumps({**me, "progress": 50}) + "\n" + answer); time.sleep(0.05); say(json.dumps({**me, "progress": 51}) + "\n")
    elif what == "endless progress":
        while True: say(json.dumps({**me, "progress": "x" * 5000}) + "\n")
    elif what == "half way": say(json.dumps({**me, "progress": {"done": 1, "of": 2}}) + "\n"); time.sleep(600)
    elif what == "retried success": say(json.dumps({**me, "ok": 1, "retry": True}) + "\n")
    elif what == "failure with state": say(json.dumps({**me, "error": "x", "set": {"a": "b"}}) + "\n")
    elif what == "no media type": say(json.dumps({**me, "ok_base64": "", "media_type": "none"}) + "\n")
    elif what == "id": say(json.dumps({"id": "0" * 32, "ok": 1}) + "\n")
    elif what == "silence": time.sleep(600)
    elif what == "exit": sys.exit(3)
    elif what == "abort": os.abort()
    elif what == "long": say("x" * 2000000 + "\n")
    elif what == "closes": os.close(1); time.sleep(600)
    elif what == "fail": say(json.dumps({**me, "error": "no"}) + "\n")
    elif what == "retry": say(json.dumps({**me, "error": "later", "retry": True} if job["delivery"] < 3 else {**me, "ok": job["delivery"]}) + "\n")
    elif what == "after": say(json.dumps({**me, "error": "later", "retry_after_ms": 1} if job["delivery"] < 2 else {**me, "ok": "now"}) + "\n")
    elif what == "null": say(json.dumps({**me, "ok": None}) + "\n")
    elif what == "bytes": say(json.dumps({**me, "ok_base64": "/wA=", "media_type": "image/png"}) + "\n")
    elif what == "not64": say(json.dumps({**me, "ok_base64": "!"}) + "\n")
    elif what == "question": say(json.dumps({**me, "ok": job}) + "\n")
    elif what == "progress": say(json.dumps({**me, "progress": 1}) + "\n" + json.dumps({**me, "progress": {"a": 2}}) + "\n" + answer)
    elif what == "words": print("a word", file=sys.stderr, flush=True); say(answer)
    elif what == "state": say(json.dumps({**me, "ok": 1, "set": {"n": "1"}}) + "\n")
    elif what == "submits": say(json.dumps({**me, "ok": 1, "context_set": {"from": "a"}, "submit": [{"handler": "seen", "payload": "context"}]}) + "\n")
    elif what == "nobody": say(json.dumps({**me, "ok": 1, "submit": [{"handler": "no-such", "payload": 1}]}) + "\n")
    else: say(answer)
"#;

#[test]
fn h9_a_worker_that_breaks_the_protocol_is_replaced_and_the_next_job_is_right() {
    let folder = Folder::new();
    let path = folder.file("worker.py", WORKER).display().to_string();
    let options = |more: Value| {
        let mut options = json!({
            "command": ["/usr/bin/env", "python3", path], "mode": "worker", "max_deliveries": 3,
            "retry": {"base_ms": 1, "max_ms": 1}, "timeout_ms": 10_000, "stop_grace_ms": 50,
            "env": {"PATH": std::env::var("PATH").unwrap_or_default()},
        });
        for (key, value) in more.as_object().expect("options") {
            options[key] = value.clone();
        }
        options
    };
    let service = start(&[
        handler("work", &options(json!({}))),
        handler("brief", &options(json!({"timeout_ms": 3_000}))),
        handler("spent", &options(json!({"max_jobs": 2}))),
        handler("idle", &options(json!({"idle_ms": 100}))),
        sh(
            "early",
            r#"echo '{"id":"00000000000000000000000000000000","ok":1}'; read line"#,
            json!({"mode": "worker", "max_deliveries": 1}),
        ),
        sh("greets", "echo Hello; read line", json!({"mode": "worker", "max_deliveries": 1})),
    ]);
    for (what, code, words) in [
        ("early", "dead_lettered", "answers another job"),
        ("greets", "handler_failed", "its line is no answer"),
    ] {
        let answer = post(&service, what, "1");
        assert!(answer.code() == code && answer.text().contains(words), "{what}: {answer:?}");
    }
    let ask = |what: &str| post(&service, "work", json!(what).to_string());
    let pid = || {
        let answer = post(&service, "work", "1");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.text()
    };
    let first = pid();
    assert_eq!(pid(), first, "one worker does both");
    for (what, code, words) in [
        ("utf8", "handler_failed", "not UTF-8"),
        ("garbage", "handler_failed", "no answer"),
        ("nul", "handler_failed", "no answer"),
        ("mark", "handler_failed", "no answer"),
        ("twice a member", "handler_failed", "duplicate field `ok`"),
        ("list", "handler_failed", "no answer"),
        ("unknown", "handler_failed", "unknown field `okay`"),
        ("both", "handler_failed", "one of ok, ok_base64, error, progress"),
        ("neither", "handler_failed", "one of ok, ok_base64, error, progress"),
        ("long", "handler_failed", "max_output_bytes"),
        ("half", "dead_lettered", "before it answered: exit code 0"),
        ("id", "dead_lettered", "answers another job"),
        ("exit", "dead_lettered", "before it answered: exit code 3"),
        ("abort", "dead_lettered", "SIGABRT"),
    ] {
        let before = pid();
        let answer = ask(what);
        assert_eq!(answer.code(), code, "{what}: {answer:?}");
        assert!(answer.text().contains(words), "{what}: {answer:?}");
        let after = pid();
        assert_ne!(after, before, "{what}: it is replaced");
    }
    // A second answer harms nobody: neither its own job nor the next.
    for what in ["two", "later"] {
        let before = pid();
        assert_eq!(ask(what).text(), before, "{what}");
        until("it is replaced", PATIENCE, || (pid() != before).then_some(()));
    }
    let before = pid();
    assert_eq!((ask("line end").text(), pid()), (before.clone(), before), "a line may end so, too");
    for (what, code) in
        [("silence", "handler_timed_out"), ("stops", "handler_timed_out"), ("closes", "dead_lettered")]
    {
        let answer = post(&service, "brief", json!(what).to_string());
        assert_eq!(answer.code(), code, "{what}: {answer:?}");
        assert_eq!(post(&service, "brief", "1").status, 200);
    }
    for (what, code, words) in [
        ("fail", "handler_failed", r#""detail":"no""#),
        ("not64", "handler_failed", "not base64"),
        ("state", "handler_failed", "only an ordered handler"),
        ("nobody", "handler_failed", "there is no handler no-such"),
    ] {
        let before = pid();
        let answer = ask(what);
        assert!(answer.code() == code && answer.text().contains(words), "{what}: {answer:?}");
        assert_eq!(pid(), before, "{what} is an answer: it stays");
    }
    assert_eq!((ask("retry").text(), ask("after").text()), ("3".into(), "\"now\"".into()));
    assert_eq!((ask("null").text(), ask("progress").text()), ("null".into(), pid()));
    let answer = ask("bytes");
    assert_eq!((answer.header("content-type"), &*answer.body), (Some("image/png"), &[0xff, 0][..]));
    let question = ask("question").json();
    for (field, value) in
        [("handler", json!("work")), ("key", Value::Null), ("delivery", json!(1)), ("context", json!({}))]
    {
        assert_eq!(question[field], value, "{question}");
    }
    assert_eq!((&question["media_type"], question.get("state")), (&json!("application/json"), None));
    assert!(question["fence"].is_u64() && question["deadline_ms"].is_u64(), "{question}");
    // A payload over several lines, and one that is no JSON.
    assert_eq!(post(&service, "work", "\n\"question\"\r\n\n").json()["payload"], "question");
    ask("words");
    let said = |log: &str| {
        log.lines().any(|line| line.contains("process.stderr") && line.ends_with("text=\"a word\""))
    };
    until("its words are told", PATIENCE, || said(&service.stderr()).then_some(()));
    let spent: Vec<String> = (0..4).map(|_| post(&service, "spent", "1").text()).collect();
    assert!(spent[0] == spent[1] && spent[1] != spent[2] && spent[2] == spent[3], "{spent:?}");
    let idle = post(&service, "idle", "1").text();
    until("it is ended", PATIENCE, || {
        (!std::path::Path::new(&format!("/proc/{idle}")).exists()).then_some(())
    });
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    none_left(&path);
}

/// Of what descriptors lead to, in this process, those that a child has, too: whoever started the tests left them open.
fn inherited() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("a /proc").flatten();
    let is_passed_on = |number: &str| {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
        let flags =
            info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("0").trim().to_owned();
        i64::from_str_radix(&flags, 8).unwrap_or(0) & 0o2_000_000 == 0
    };
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|number| is_passed_on(number)).collect()
}

#[test]
fn h10_a_program_finds_no_environment_descriptor_or_memory_of_ours() {
    let look = "env | grep -v '^PWD=' | sort; ls /proc/self/fd; ulimit -n; ulimit -c; grep NoNewPrivs /proc/self/status";
    let service = start(&[
        sh("look", look, json!({"env": {"OWN": "value", "COFFERDAM_JOB_ID": "forged"}})),
        sh("peek", "cat /proc/$PPID/environ /proc/$PPID/mem", json!({"max_deliveries": 1})),
    ]);
    let answer = service.request(
        "POST",
        "/v1/jobs/look",
        &["traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate: a=1"],
        "",
    );
    let id = answer.header("cofferdam-job-id").expect("an id").to_owned();
    let text = answer.text();
    let (environment, rest) = text.split_once("\n0\n").expect("descriptors");
    let names: Vec<&str> =
        environment.lines().map(|line| line.split('=').next().unwrap_or_default()).collect();
    let expected = [
        "COFFERDAM_DELIVERY",
        "COFFERDAM_FENCE",
        "COFFERDAM_HANDLER",
        "COFFERDAM_JOB_ID",
        "COFFERDAM_PROGRAM",
        "OWN",
        "PATH",
        "TRACEPARENT",
        "TRACESTATE",
    ];
    assert_eq!(names, expected, "{text}");
    assert!(
        environment.contains(&format!("COFFERDAM_JOB_ID={id}")),
        "a program's own variables are not its job's"
    );
    assert!(environment.contains("TRACEPARENT=00-0af7651916cd43dd8448eb211c80319c-"), "{text}");
    let mut lines: Vec<&str> = rest.lines().collect();
    assert_eq!(lines.pop(), Some("NoNewPrivs:\t1"), "{text}");
    assert_eq!((lines.pop(), lines.pop()), (Some("0"), Some("1024")), "{text}");
    // `ls` has the folder open.
    let ours = inherited();
    let more: Vec<&&str> = lines
        .iter()
        .filter(|fd| !["1", "2", "3"].contains(fd) && !ours.contains(&(**fd).to_owned()))
        .collect();
    assert!(more.is_empty(), "{more:?} besides {ours:?}");
    if !rustix::process::geteuid().is_root() {
        let answer = post(&service, "peek", "");
        assert!(
            answer.code() == "handler_failed" && answer.text().contains("ermission denied"),
            "{answer:?}"
        );
    }
}

#[test]
fn h10_a_program_of_another_user_is_that_user_and_looks_into_nothing_of_ours() {
    if !rustix::process::geteuid().is_root() {
        return println!("SKIPPED: only root can start processes as another user");
    }
    let service = start(&[
        sh("who", "id -u; id -G; test -r /proc/$PPID/environ || echo closed", json!({"user": "nobody"})),
        sh(
            "works",
            "read line; id -u >&2; exit 3",
            json!({"user": "nobody", "mode": "worker", "max_deliveries": 1}),
        ),
    ]);
    let nobody = String::from_utf8(run(&mut command("/usr/bin/id".as_ref(), ["-u", "nobody"]), b"").stdout)
        .expect("a number");
    let group = String::from_utf8(run(&mut command("/usr/bin/id".as_ref(), ["-g", "nobody"]), b"").stdout)
        .expect("a number");
    assert_eq!(post(&service, "who", "").text(), format!("{nobody}{group}closed\n"), "and no other group");
    assert!(post(&service, "works", "1").text().contains(&format!("last words: {}", nobody.trim())));
}

#[test]
fn h11_limits_end_the_program_alone() {
    let eat = "import sys; b = bytearray(8 << 30); print(len(b))";
    let user = if rustix::process::geteuid().is_root() { json!("nobody") } else { Value::Null };
    let mut bomb =
        json!({"timeout_ms": 1_000, "stop_grace_ms": 100, "limits": {"processes": 40, "cpu_seconds": 2}});
    if !user.is_null() {
        bomb["user"] = user;
    }
    let service = start(&[
        handler(
            "eats",
            &json!({
                "command": ["/usr/bin/env", "python3", "-c", eat], "limits": {"memory_mb": 512}, "max_deliveries": 1,
                "env": {"PATH": std::env::var("PATH").unwrap_or_default()},
            }),
        ),
        sh("spins", "while :; do :; done", json!({"limits": {"cpu_seconds": 1}, "max_deliveries": 1})),
        sh("bomb", "f() { sleep 600.71 & f | f; }; f", bomb),
        sh(
            "files",
            "exec 3</dev/null 4</dev/null; echo more",
            json!({"limits": {"open_files": 4}, "max_deliveries": 1}),
        ),
    ]);
    let executor = service.child("executor");
    let answer = post(&service, "eats", "");
    assert!(answer.code() == "handler_failed" && answer.text().contains("MemoryError"), "{answer:?}");
    assert!(
        answer.json()["detail"].as_str().is_some_and(|text| text.contains(r#"limits {"memory_mb":512}"#)),
        "{answer:?}"
    );
    let answer = post(&service, "spins", "");
    assert!(answer.text().contains("(SIGXCPU)"), "{answer:?}");
    let answer = post(&service, "bomb", "");
    assert!(["handler_timed_out", "handler_failed"].contains(&&*answer.code()), "{answer:?}");
    none_left("600.71");
    assert_eq!(post(&service, "files", "").code(), "handler_failed");
    assert_eq!(service.child("executor"), executor, "it felt nothing");
}

#[test]
fn h12_the_programs_of_a_killed_executor_or_service_are_gone_with_it() {
    let script = "sleep 600.81 & setsid sleep 600.81 & sleep 600.81; echo 1";
    let set = sh("long", script, json!({"stop_grace_ms": 50}));
    let service = start(&[set.clone(), "runtime.platform.lifecycle.restart.backoff_ms=1".into()]);
    let left = caller(&service, "/v1/jobs/long", "");
    until("all of it runs", PATIENCE, || (with_word("600.81").len() == 3).then_some(()));
    let before = with_word("600.81");
    kill(service.child("executor"));
    // The job comes again, with a program of its own.
    until("the first is gone", PATIENCE, || {
        let now = with_word("600.81");
        before.iter().all(|pid| !now.contains(pid)).then_some(())
    });
    until("it runs again", PATIENCE, || (with_word("600.81").len() == 3).then_some(()));
    drop(left);
    // A drain whose deadline has passed.
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(4), "{}", ended.stderr);
    none_left("600.81");
}

/// A worker in shell that answers with a number; what it does at the end follows.
fn sh_worker(end: &str) -> String {
    let id = r#"id=${line#*'"id":"'}; echo "{\"id\":\"${id%%'"'*}\",\"ok\":82}""#;
    format!("trap '' TERM; while IFS= read -r line; do {id}; done; {end}")
}

#[test]
fn h12_a_worker_has_its_grace_when_a_service_stops_or_a_run_ends() {
    let folder = Folder::new();
    let mark = folder.path("mark");
    let script = sh_worker(&format!("sleep 0.3; echo clean >> {}", mark.display()));
    let set = sh("asked", &script, json!({"mode": "worker"}));
    for mode in ["inline", "process_supervisor"] {
        let service = start(&[set.clone(), format!("runtime.platform.bootstrap.mode={mode}")]);
        assert_eq!(post(&service, "asked", "1").text(), "82");
        let begun = Stopwatch::start();
        let ended = service.stop();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
        assert!(begun.elapsed() < Duration::from_secs(2), "{mode}: {:?}", begun.elapsed());
        assert_eq!(std::fs::read_to_string(&mark).expect("it has cleaned up"), "clean\n", "{mode}");
        std::fs::remove_file(&mark).expect("our own file");
    }
    let output = run(&mut command(&cofferdam(), ["run", "asked", "--set", &set]), b"1");
    assert_eq!(&*output.stdout, b"82", "{}", shown(&output));
    assert_eq!(std::fs::read_to_string(&mark).expect("it has cleaned up"), "clean\n");
}

#[test]
fn h9_workers_that_are_spent_and_slow_to_end_do_not_pile_up_nor_hold_up_others() {
    let slow = sh_worker("sleep 600.83");
    let service = start(&[
        sh("spent", &slow, json!({"mode": "worker", "max_jobs": 1, "stop_grace_ms": 20_000})),
        sh("idle", &sh_worker("true"), json!({"mode": "worker", "idle_ms": 100})),
        r#"runtime.platform.process_groups=[{"name":"execution","workers":2}]"#.into(),
    ]);
    for _ in 0..60 {
        assert_eq!(post(&service, "spent", "1").text(), "82");
    }
    let there = with_word("600.83").len();
    assert!((1..=12).contains(&there), "{there} that were spent");
    assert_eq!(post(&service, "idle", "1").text(), "82");
    let begun = Stopwatch::start();
    until("the idle one is ended", PATIENCE, || {
        (all_children(service.child("executor")).len() <= there + 1).then_some(())
    });
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[test]
fn h9_what_a_worker_does_after_its_answer_costs_the_next_job_nothing() {
    let folder = Folder::new();
    let path = folder.file("worker.py", WORKER).display().to_string();
    let service = start(&[handler(
        "work",
        &json!({
            "command": ["/usr/bin/env", "python3", path], "mode": "worker", "max_deliveries": 1, "timeout_ms": 5_000,
            "max_output_bytes": 10_000, "env": {"PATH": std::env::var("PATH").unwrap_or_default()},
        }),
    )]);
    for what in ["later", "quits", "closes stdin", "two"] {
        for _ in 0..5 {
            assert_eq!(post(&service, "work", json!(what).to_string()).status, 200, "{what}");
            let begun = Stopwatch::start();
            let next = post(&service, "work", "1");
            assert_eq!(next.status, 200, "after {what}: {next:?}");
            assert!(begun.elapsed() < Duration::from_secs(2), "after {what}: {:?}", begun.elapsed());
        }
    }
    // A line on the way is no longer than an answer.
    let answer = post(&service, "work", "\"long\"");
    assert!(answer.text().contains("max_output_bytes"), "{answer:?}");
    for what in ["retried success", "failure with state", "no media type"] {
        assert_eq!(post(&service, "work", json!(what).to_string()).code(), "handler_failed", "{what}");
    }
}

#[test]
fn h9_progress_is_seen_while_its_job_runs_and_a_flood_of_it_costs_no_job_anything() {
    let folder = Folder::new();
    let path = folder.file("worker.py", WORKER).display().to_string();
    let options = |more: Value| {
        let mut options = json!({
            "command": ["/usr/bin/env", "python3", path], "mode": "worker", "max_deliveries": 1, "stop_grace_ms": 50,
            "max_output_bytes": 100_000, "env": {"PATH": std::env::var("PATH").unwrap_or_default()},
        });
        more.as_object().expect("options").iter().for_each(|(key, value)| options[key] = value.clone());
        options
    };
    let service = start(&[
        handler("work", &options(json!({"timeout_ms": 20_000}))),
        handler("brief", &options(json!({"timeout_ms": 2_000}))),
    ]);
    let record = |id: &str| service.request("GET", &format!("/v1/jobs/{id}"), &[], "").json();
    let ask = |handler: &str, what: &str| {
        let answer = post(&service, handler, json!(what).to_string());
        let id = answer.header("cofferdam-job-id").expect("a job").to_owned();
        (answer, record(&id))
    };
    let id = service.submit("/v1/jobs/work", &[JSON], "\"half way\"");
    let running = until("it is seen", PATIENCE, || Some(record(&id)).filter(|it| !it["progress"].is_null()));
    assert_eq!((&running["status"], &running["progress"]), (&json!("running"), &json!({"done": 1, "of": 2})));
    let listed = service.request("GET", "/v1/jobs?limit=1", &[], "").json();
    assert_eq!(listed["jobs"][0].get("progress"), None, "lists leave it out: {listed}");
    service.request("DELETE", &format!("/v1/jobs/{id}"), &[], "");
    assert_eq!(record(&id)["progress"], json!({"done": 1, "of": 2}), "it stays as it was");

    // Three megabytes of it, thirty times what a job may say.
    let frames = || service.metric("ipc_frames_total{direction=\"in\"}");
    let before = frames();
    let (answer, ended) = ask("work", "much progress");
    assert_eq!((answer.status, &ended["progress"]), (200, &json!([99, 999])), "{answer:?}");
    assert!(frames() - before < 40.0, "{} frames", frames() - before);
    let (answer, ended) = ask("work", "large progress");
    assert_eq!((answer.status, &ended["progress"]), (200, &Value::Null), "{answer:?}");
    // A child's line comes through its supervisor.
    let refused = || service.stderr().lines().filter(|line| line.contains("progress.refused")).count();
    until("the log says so", PATIENCE, || (refused() > 0).then_some(()));
    assert_eq!(refused(), 1, "{}", service.stderr());
    let (answer, ended) = ask("brief", "endless progress");
    assert_eq!(
        (answer.code().as_str(), &ended["progress"]),
        ("handler_timed_out", &Value::Null),
        "{answer:?}"
    );

    let (answer, _) = ask("work", "progress of another");
    assert!(answer.text().contains("answers another job"), "{answer:?}");
    let (answer, _) = ask("work", "progress and more");
    assert!(answer.text().contains("do not go together"), "{answer:?}");
    let (answer, ended) = ask("work", "late progress");
    assert_eq!((answer.status, &ended["progress"]), (200, &json!(50)));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(post(&service, "work", "1").status, 200, "the next job has nothing of it");
    let id = ended["id"].as_str().expect("text");
    assert_eq!(record(id)["progress"], json!(50), "and after its end nothing is taken");
}

#[test]
fn h11_what_forks_and_leaves_its_session_again_and_again_ends_with_its_job() {
    let bomb = "import os, sys, time\nopen('/proc/self/comm', 'w').write('x')\nwhile True:\n    try:\n        if os.fork() == 0: os.setsid()\n    except OSError: time.sleep(0.001)\n";
    let mut options = json!({
        "command": ["/usr/bin/env", "python3", "-c", bomb, own("600.72")], "timeout_ms": 500, "stop_grace_ms": 100,
        "limits": {"processes": 30}, "env": {"PATH": std::env::var("PATH").unwrap_or_default()},
    });
    if rustix::process::geteuid().is_root() {
        options["user"] = json!("nobody");
    } else {
        return println!("SKIPPED: the limit of processes counts all of this user");
    }
    let service = start(&[handler("bomb", &options), sh("short", "exit 0", json!({}))]);
    assert_eq!(post(&service, "bomb", "").code(), "handler_timed_out");
    let begun = Stopwatch::start();
    assert_eq!(post(&service, "short", "").status, 200);
    assert!(begun.elapsed() < Duration::from_millis(400), "{:?}", begun.elapsed());
    until("all of it is gone", Duration::from_secs(5), || with_word("600.72").is_empty().then_some(()));
}

#[test]
fn h12_what_a_program_started_without_our_variables_goes_with_its_executor_too() {
    let script = "env -i sh -c 'sleep 600.84; true' & sleep 600.84";
    let service =
        start(&[sh("long", script, json!({})), "runtime.platform.lifecycle.restart.backoff_ms=1".into()]);
    let id = service.submit("/v1/jobs/long", &[], "");
    until("all of it runs", PATIENCE, || (with_word("600.84").len() == 2).then_some(()));
    let before = with_word("600.84");
    kill(service.child("executor"));
    until("the first is gone", PATIENCE, || {
        let now = with_word("600.84");
        before.iter().all(|pid| !now.contains(pid)).then_some(())
    });
    service.request("DELETE", &format!("/v1/jobs/{id}"), &[], "");
    none_left("600.84");
}

#[test]
fn a_run_that_is_interrupted_ends_its_program() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let set = sh("long", "sleep 600.85 & sleep 600.85; echo x", json!({"stop_grace_ms": 100}));
        let mut child =
            command(&cofferdam(), ["run", "long", "--set", &set]).spawn().expect("it can be started");
        drop(child.stdin.take());
        until("it runs", PATIENCE, || (with_word("600.85").len() == 2).then_some(()));
        service::signal(child.id(), signal);
        let output = program::wait(child);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains("run: stopped: "), "{}", shown(&output));
        none_left("600.85");
    }
}

#[test]
fn a_line_of_a_batch_may_end_with_a_line_break() {
    let service = start(&[sh("once", "cat; echo", json!({})), sh("twice", "echo; echo", json!({}))]);
    assert_eq!(service.post("/v1/batch/once", "1\n2\n").text(), "1\n2\n");
    assert!(service.post("/v1/batch/twice", "1\n").text().contains("line break"));
    assert_eq!(post(&service, "once", "1").text(), "1\n", "elsewhere it is the result's own");
}

#[test]
fn a_thousand_killed_jobs_leave_no_process_zombie_descriptor_thread_or_file() {
    let script = "sleep 600.91 & setsid sleep 600.91 & exec sleep 600.91";
    let service = start(&[
        sh("killed", script, json!({"timeout_ms": 30, "stop_grace_ms": 10})),
        sh("worker", script, json!({"timeout_ms": 30, "stop_grace_ms": 10, "mode": "worker"})),
        "runtime.platform.queue.capacity=2000".into(),
    ]);
    assert_eq!(post(&service, "killed", "").code(), "handler_timed_out");
    let executor = service.child("executor");
    none_left("600.91");
    let of_threads = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").count();
    let (before, threads) = (holdings(executor), of_threads(executor));
    for (handler, jobs, ends) in [("killed", 1_000, 1_001.0), ("worker", 300, 300.0)] {
        (0..jobs).for_each(|_| _ = service.submit(&format!("/v1/jobs/{handler}"), &[], ""));
        until("all have ended", Duration::from_secs(60), || {
            let name = format!("jobs_finished_total{{handler=\"{handler}\",status=\"timed_out\"}}");
            (service.metric(&name) == ends).then_some(())
        });
    }
    none_left("600.91");
    until("nothing is left", PATIENCE, || {
        (zombies(executor) == 0 && zombies(service.pid) == 0 && holdings(executor).0 <= before.0)
            .then_some(())
    });
    assert_eq!((service.child("executor"), of_threads(executor)), (executor, threads));
}

#[test]
fn h9_a_slow_program_within_its_concurrency_starves_nobody() {
    let service = start(&[
        sh("slow", "sleep 0.5", json!({"concurrency": 2})),
        handler("cat", &json!({"command": ["cat"]})),
    ]);
    let all_begun = Instant::now();
    let slow: Vec<_> = (0..12).map(|_| service.submit("/v1/jobs/slow", &[], "")).collect();
    let begun = Stopwatch::start();
    for _ in 0..5 {
        assert_eq!(post(&service, "cat", "1").text(), "1");
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    slow.iter().for_each(|id| _ = service.record_when(id, "succeeded"));
    assert!(all_begun.elapsed() > Duration::from_millis(2_900), "two at a time");
}

#[test]
fn ordering_state_context_follow_ups_and_dead_letters_are_those_of_functions() {
    let folder = Folder::new();
    let python = |name: &str, text: &str| {
        let path = folder.file(name, text).display().to_string();
        json!({
            "command": ["/usr/bin/env", "python3", path], "mode": "worker",
            "env": {"PATH": std::env::var("PATH").unwrap_or_default()},
        })
    };
    let mut counts = python(
        "counts.py",
        r#"
import json, sys
for line in sys.stdin:
    job = json.loads(line)
    n = int(job["state"].get("n", "0")) + 1
    if job["payload"] == "poison": print(json.dumps({"id": job["id"], "error": "no", "retry": True}), flush=True)
    elif job["payload"] == "forget": print(json.dumps({"id": job["id"], "ok": n, "remove": ["n"]}), flush=True)
    else: print(json.dumps({"id": job["id"], "ok": [job["key"], n], "set": {"n": str(n)}}), flush=True)
"#,
    );
    counts["ordering"] = json!({"key": "/k"});
    counts["max_deliveries"] = json!(2);
    counts["retry"] = json!({"base_ms": 1, "max_ms": 1});
    counts["on_dead"] = json!("park");
    let mut tells = python("tells.py", WORKER);
    tells["max_deliveries"] = json!(1);
    let seen = r#"
import json, sys
for line in sys.stdin:
    job = json.loads(line)
    print("context", json.dumps(job["context"]), file=sys.stderr, flush=True)
    print(json.dumps({"id": job["id"], "ok": job["context"]}), flush=True)
"#;
    let service = start(&[
        handler("counts", &counts),
        handler("tells", &tells),
        handler("seen", &python("seen.py", seen)),
    ]);
    let keyed = |key: &str, body: &str| {
        let key = format!("Ordering-Key: {key}");
        service.request("POST", "/v1/jobs/counts", &[&key, JSON], body)
    };
    for (key, number) in [("a", 1), ("a", 2), ("b", 1), ("a", 3)] {
        assert_eq!(keyed(key, "1").json(), json!([key, number]));
    }
    // It is dead, its lane waits until somebody has looked, and nothing of it took effect.
    let dead = keyed("a", "\"poison\"");
    assert_eq!((dead.code(), &dead.json()["cause"]), ("dead_lettered".into(), &json!("retries_exhausted")));
    let waits = service.submit("/v1/jobs/counts", &["Ordering-Key: a", JSON], "1");
    assert_eq!(keyed("b", "1").json(), json!(["b", 2]));
    assert_eq!(service.record(&waits)["status"], "queued");
    let id = dead.header("cofferdam-job-id").expect("an id");
    assert_eq!(service.request("DELETE", &format!("/v1/jobs/{id}"), &[], "").status, 200);
    assert_eq!(service.record_when(&waits, "succeeded")["result"], json!(["a", 4]));
    assert_eq!(keyed("a", "\"forget\"").json(), json!(5));
    assert_eq!(keyed("a", "1").json(), json!(["a", 1]));
    // A crashed worker's state is the broker's.
    kill(
        u32::try_from(*with_word(&folder.path("counts.py").display().to_string()).last().expect("one runs"))
            .expect("a pid"),
    );
    assert_eq!(keyed("a", "1").json(), json!(["a", 2]));
    let key = ["Idempotency-Key: once", "Ordering-Key: a", JSON];
    let first = service.request("POST", "/v1/jobs/counts", &key, "1").text();
    assert_eq!(service.request("POST", "/v1/jobs/counts", &key, "1").text(), first);
    assert_eq!(keyed("a", "1").json(), json!(["a", 4]));
    // A follow-up of the same trace finds what was set in its context.
    assert_eq!(post(&service, "tells", "\"submits\"").text(), "1");
    let told = |log: &str| log.contains(r#"context {\"from\": \"a\"}"#);
    until("the follow-up has run", PATIENCE, || told(&service.stderr()).then_some(()));
    let lines = service.request("POST", "/v1/batch/seen", &[], "1\n2\n").text();
    assert_eq!(lines, "{}\n{}\n");
}

#[test]
fn run_does_one_job_and_prints_its_result_or_why_there_is_none() {
    let folder = Folder::new();
    let state = folder.file("state.json", r#"{"n":"41"}"#).display().to_string();
    let payload = folder.file("payload", "hello").display().to_string();
    let sets = [
        sh(
            "count",
            r#"read line; id=$(echo "$line" | cut -d'"' -f4); echo "{\"id\":\"$id\",\"progress\":0.5}"
               echo "{\"id\":\"$id\",\"ok\":1,\"set\":{\"n\":\"42\"}}""#,
            json!({"mode": "worker", "ordering": "serial"}),
        ),
        sh("fails", "echo why >&2; exit 3", json!({})),
        sh("slow", "exec sleep 600.95", json!({"timeout_ms": 200, "stop_grace_ms": 100})),
        handler("keyed", &json!({"command": ["true"], "ordering": {"key": "/k"}})),
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let tried = |arguments: &[&str], input: &str| {
        run(&mut command(&cofferdam(), [&["run"], arguments, &sets].concat()), input.as_bytes())
    };
    let said = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let output = tried(&["echo"], "hi");
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"hi"[..]), "{}", shown(&output));
    let output = tried(&["echo", "--payload", &payload], "");
    assert_eq!(&*output.stdout, b"hello", "{}", shown(&output));
    let output = tried(&["count", "--state", &state], "1");
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"1"[..]), "{}", shown(&output));
    let after = "progress: 0.5\n{\"context\":{},\"state\":{\"n\":\"42\"},\"submit\":[]}";
    assert!(said(&output).contains(after), "{}", shown(&output));
    let output = tried(&["fails"], "");
    assert!(
        output.status.code() == Some(1) && said(&output).contains("run: failed: exit code 3"),
        "{}",
        shown(&output)
    );
    let output = tried(&["slow"], "");
    assert!(
        output.status.code() == Some(1) && said(&output).contains("run: stopped: ended by signal 15"),
        "{}",
        shown(&output)
    );
    none_left("600.95");
    for (arguments, why) in [
        (&["nobody"][..], "there is no handler nobody"),
        (&["keyed"], "there is no ordering key"),
        (&["echo", "--payload", "/no/such"], "--payload /no/such"),
        (&["count", "--state", &payload], "a JSON object of texts"),
        (&[], "run needs the name of a handler"),
    ] {
        let output = tried(arguments, "1");
        assert!(output.status.code() == Some(2) && said(&output).contains(why), "{why}: {}", shown(&output));
    }
    let output = tried(&["keyed", "--key", "a"], "1");
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
}
