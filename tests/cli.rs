//! The command line, with the real binary: streams, exit codes, and `batch` line by line.
//!
//! Every program here has an empty environment and a deadline. What the options mean is tested where they are
//! read; here stands what a shell sees.

#[path = "support/program.rs"]
mod program;
#[path = "support/stopwatch.rs"]
mod stopwatch;

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use program::{DEADLINE, Folder, cofferdam, command, example, run, shown, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use stopwatch::Stopwatch;

fn cli<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    command(&cofferdam(), arguments)
}

fn run_cli(arguments: &[&str]) -> Output {
    run(&mut cli(arguments), b"")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text on stdout")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("text on stderr")
}

#[track_caller]
fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}", shown(output));
}

/// Exit 2, nothing on standard output, and this in the complaint.
#[track_caller]
fn assert_usage_error(output: &Output, complaint: &str) {
    assert_code(output, 2);
    assert_eq!(stdout(output), "");
    assert!(stderr(output).starts_with("cofferdam: "), "{}", shown(output));
    assert!(stderr(output).contains(complaint), "{complaint}: {}", shown(output));
    assert!(!stderr(output).contains("panicked"), "{}", shown(output));
}

// --- Help and usage ---

const COMMANDS: [&str; 13] = [
    "serve", "web", "executor", "batch", "check", "facts", "keygen", "token", "health", "jobs", "lanes",
    "handlers", "top",
];

#[test]
fn help_names_every_command_on_standard_output() {
    for arguments in [&["--help"][..], &["-h"], &["help"]] {
        let output = run_cli(arguments);
        assert_code(&output, 0);
        assert_eq!(stderr(&output), "");
        let is_named = |name: &&str| stdout(&output).lines().any(|line| line.trim_start().starts_with(name));
        assert!(COMMANDS.iter().all(is_named), "{}", shown(&output));
    }
}

#[test]
fn every_command_has_help_of_its_own_with_defaults_an_example_and_exit_codes() {
    for name in COMMANDS {
        let output = run_cli(&[name, "--help"]);
        assert_code(&output, 0);
        assert_eq!(stderr(&output), "");
        for part in [
            &*format!("usage: cofferdam {name} "),
            &format!("\nexample: cofferdam {name} "),
            "\n  2  bad usage",
        ] {
            assert!(stdout(&output).contains(part), "{part:?}: {}", shown(&output));
        }
        let has_options = stdout(&output).contains("\n  --");
        assert!(!has_options || stdout(&output).contains("default: "), "{}", shown(&output));
        for same in [&["help", name][..], &[name, "-h"], &[name, "--set", "--help"]] {
            assert_eq!(stdout(&run_cli(same)), stdout(&output), "{same:?}");
        }
    }
    // Every option that a command takes is on its page.
    let page = stdout(&run_cli(&["batch", "--help"])).to_owned();
    for option in
        ["--handler", "--input", "--output", "--sink-mode", "--progress", "--resume", "--config", "--set"]
    {
        assert!(page.contains(&format!("\n  {option} ")), "{option}: {page}");
    }
}

#[test]
fn version_is_the_packages() {
    for flag in ["--version", "-V"] {
        let output = run_cli(&[flag]);
        assert_code(&output, 0);
        assert_eq!(stdout(&output), format!("cofferdam {}\n", env!("CARGO_PKG_VERSION")));
        assert_eq!(stderr(&output), "");
    }
}

#[test]
fn no_arguments_is_bad_usage_and_shows_the_usage_on_standard_error() {
    let output = run_cli(&[]);
    assert_code(&output, 2);
    assert_eq!(stdout(&output), "");
    assert!(stderr(&output).contains("usage: cofferdam COMMAND"), "{}", shown(&output));
}

#[test]
fn what_is_not_a_command_or_an_option_of_it_is_bad_usage() {
    for (arguments, complaint) in [
        (&["start"][..], "start"),
        (&["Serve"], "Serve"),
        (&["--json"], "--json"),
        (&["--config", "x"], "--config"),
        (&["serve", "now"], "now"),
        (&["serve", "--json"], "--json"),
        (&["check", "--verbose"], "--verbose"),
        (&["facts", "--verbose"], "--verbose"),
        (&["check", "--jso"], "--jso"),
        (&["check", "-"], "unknown argument -"),
        (&["check", "--config"], "--config needs a value"),
        (&["check", "--set"], "--set needs a value"),
        (&["check", "--set", "web.bind"], "--set: is malformed"),
        (&["check", "--set", "web.bind=127.0.0.1:1", "extra"], "extra"),
        (&["keygen", "--force"], "--force"),
        (&["keygen", "secret.hex"], "secret.hex"),
        (&["health", "now"], "now"),
        (&["health", "--url", "ftp://127.0.0.1"], "--url"),
        (&["batch"], "--handler"),
        (&["batch", "--handler"], "--handler needs a value"),
        (&["batch", "--handler", "echo", "--sink-mode", "random"], "random"),
        (&["batch", "--handler", "echo", "--progress", "often"], "often"),
        (&["batch", "--handler", "echo", "input.txt"], "input.txt"),
        (&["batch", "--handler", "echo", "--resume", "-1"], "--resume is a number of lines, not -1"),
        (&["check", "--reference", "--json"], "--json"),
        (&["health", "--url", "http://127.0.0.1:1", "--config", "x"], "--config"),
        (&["health", "--set", "web.bind=127.0.0.1:0"], "--url"),
        (&["health", "--token-file", "/nowhere"], "--token-file /nowhere: "),
        (&["nonsense", "--help"], "there is no command nonsense"),
        (&["batch", "--handler", "echo", "--handler", "echo"], "--handler is given more than once"),
        (&["token"], "NAME"),
        (&["token", "a b"], "a name is 1 to 64"),
        (&["token", "ci", "--scopes", "submit,write"], "the scopes are submit, read and admin"),
        (&["token", "ci", "--handlers", ""], "the handlers are names"),
    ] {
        assert_usage_error(&run_cli(arguments), complaint);
    }
}

#[test]
fn an_argument_that_is_not_utf8_is_bad_usage_and_no_panic() {
    let bad = || OsString::from_vec(b"web.bind=\xff".to_vec());
    for arguments in [vec![bad()], vec!["check".into(), "--set".into(), bad()]] {
        assert_usage_error(&run(&mut cli(arguments), b""), "");
    }
}

#[test]
fn a_config_variable_that_is_not_utf8_is_refused_and_never_ignored() {
    for name in ["COFFERDAM_WEB__BIND", "COFFERDAM_CONFIG"] {
        let output = run(cli(["check"]).env(name, OsString::from_vec(b"\xff".to_vec())), b"");
        assert_usage_error(&output, name);
    }
    // Those of others are not our business.
    assert_code(&run(cli(["check"]).env("OTHER", OsString::from_vec(b"\xff".to_vec())), b""), 0);
}

#[test]
fn an_option_takes_its_value_as_the_next_word_or_after_an_equals_sign() {
    for arguments in [
        &["check", "--json", "--set", "web.max_inflight=5"][..],
        &["check", "--json", "--set=web.max_inflight=5"],
        &["check", "--set", "web.max_inflight=4", "--json", "--set", "web.max_inflight=5"],
    ] {
        let output = run_cli(arguments);
        assert_code(&output, 0);
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(value["web"]["max_inflight"], 5);
    }
}

// --- check ---

#[test]
fn check_says_what_the_config_comes_to() {
    let output = run_cli(&["check", "--set", "web.max_inflight=5"]);
    assert_code(&output, 0);
    assert_eq!(stderr(&output), "");
    assert!(stdout(&output).starts_with("profile supervised-memory, listening on 127.0.0.1:8080\n"));
    assert!(stdout(&output).contains("web.max_inflight = 5 (from --set)"), "{}", shown(&output));
}

#[test]
fn check_json_is_the_whole_config_and_the_profile() {
    let output = run_cli(&["check", "--json"]);
    assert_code(&output, 0);
    assert_eq!(stderr(&output), "");
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for (pointer, expected) in [
        ("/profile", json!("supervised-memory")),
        ("/version", json!(1)),
        ("/runtime/platform/bootstrap/mode", json!("process_supervisor")),
        ("/runtime/platform/queue/retry", json!({"base_ms": 1_000, "max_ms": 3_600_000})),
        ("/runtime/platform/reply/retain/failed_bytes", json!(67_108_864)),
        ("/runtime/platform/execution_ipc/auth/secret_mode", json!("generated")),
        ("/runtime/platform/process_groups/0/name", json!("execution")),
        ("/runtime/platform/lifecycle/restart/policy", json!("on_failure")),
        ("/runtime/ordering/sink_mode", json!("source_seq")),
        ("/web/bind", json!("127.0.0.1:8080")),
        ("/web/limits/write_timeout_ms", json!(30_000)),
        ("/handlers/echo/timeout_ms", json!(30_000)),
        ("/handlers/sleep/ordering", json!("none")),
        ("/observability/log", json!("text")),
    ] {
        assert_eq!(value.pointer(pointer), Some(&expected), "{pointer}");
    }
}

#[test]
fn what_check_json_prints_is_a_config_again() {
    let folder = Folder::new();
    let first = run_cli(&["check", "--json", "--set", "runtime.platform.bootstrap.mode=inline"]);
    let mut value: Value = serde_json::from_slice(&first.stdout).expect("JSON");
    value.as_object_mut().expect("an object").remove("profile");
    let file = folder.file("config.json", value.to_string());
    let second =
        run(&mut cli([OsStr::new("check"), "--json".as_ref(), "--config".as_ref(), file.as_ref()]), b"");
    assert_code(&second, 0);
    assert_eq!(stdout(&second), stdout(&first));
}

#[test]
fn several_config_errors_are_told_at_once_and_nothing_goes_to_standard_output() {
    let bad = ["--set", "web.bind=nowhere", "--set", "version=2", "--set", "no.such.key=1"];
    let batch = ["batch", "--handler", "echo"];
    for command in [&["check"][..], &["check", "--json"], &["serve"], &batch, &["web"], &["executor"]] {
        let output = run_cli(&[command, &bad].concat());
        assert_usage_error(&output, "the config has 3 errors:\n");
        for path in ["web.bind: ", "version: ", "no: "] {
            let lines = stderr(&output).lines().filter(|line| line.trim_start().starts_with(path));
            assert_eq!(lines.count(), 1, "{path}: {}", shown(&output));
        }
    }
    assert_usage_error(&run_cli(&["check", "--set", "version=2"]), "the config has 1 error:\n");
}

#[test]
fn what_is_valid_but_not_built_refuses_to_start_and_says_so() {
    let folder = Folder::new();
    let secret = folder.path("secret.hex");
    assert_code(&run(&mut cli([OsStr::new("keygen"), "--output".as_ref(), secret.as_ref()]), b""), 0);
    let secret = format!("runtime.platform.execution_ipc.auth.secret_file={}", secret.display());
    let redis = ["queue", "reply", "kv"].map(|port| format!("runtime.platform.{port}.backend=redis"));
    let tls = "runtime.platform.redis.url=rediss://127.0.0.1:6379";
    let given: [(&[&str], &str); 1] =
        [(&[&secret, &redis[0], &redis[1], &redis[2], tls], "runtime.platform.redis.url: rediss://")];
    for (sets, what) in given {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
        for command in [&["serve"][..], &["batch", "--handler", "echo"]] {
            let output = run_cli(&[command, &sets].concat());
            assert_usage_error(&output, what);
            assert!(stderr(&output).contains("not built"), "{}", shown(&output));
        }
        // `check` shows what it comes to, and ends as starting would.
        let output = run_cli(&[&["check", "--json"], &sets[..]].concat());
        assert_code(&output, 2);
        assert!(serde_json::from_slice::<Value>(&output.stdout).is_ok(), "{}", shown(&output));
        assert!(stderr(&output).contains(what), "{}", shown(&output));
    }
}

#[test]
fn a_secret_file_that_is_no_secret_refuses_to_start() {
    let folder = Folder::new();
    let open = folder.file("open.hex", "00".repeat(31) + "01\n");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).expect("a file of ours");
    for (file, complaint) in [(open, "chmod 600"), (folder.path("missing"), "cannot be read")] {
        let set = format!("runtime.platform.execution_ipc.auth.secret_file={}", file.display());
        for command in [&["serve"][..], &["batch", "--handler", "echo"]] {
            assert_usage_error(&run_cli(&[command, &["--set", &set]].concat()), complaint);
        }
        assert_code(&run_cli(&["check", "--set", &set]), 2);
    }
}

#[test]
fn a_single_process_with_memory_backends_refuses_to_start() {
    for command in [&["web"][..], &["executor"], &["executor", "--group", "execution"]] {
        assert_usage_error(&run_cli(command), "runtime.platform.queue.backend: ");
    }
}

#[test]
fn the_config_file_comes_from_the_option_else_from_the_environment() {
    let folder = Folder::new();
    let one = folder.file("one.json", r#"{"web":{"max_inflight":1}}"#);
    let two = folder.file("two.json", r#"{"web":{"max_inflight":2}}"#);
    let inflight = |command: &mut Command| {
        let output = run(command, b"");
        assert_code(&output, 0);
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        value["web"]["max_inflight"].as_u64()
    };
    let check = || cli(["check", "--json"]);
    assert_eq!(inflight(check().env("COFFERDAM_CONFIG", &one)), Some(1));
    assert_eq!(inflight(check().arg("--config").arg(&two)), Some(2));
    assert_eq!(inflight(check().env("COFFERDAM_CONFIG", &one).arg("--config").arg(&two)), Some(2));
    let variable = ("COFFERDAM_WEB__MAX_INFLIGHT", "3");
    let over =
        |command: &mut Command| inflight(command.env("COFFERDAM_CONFIG", &one).env(variable.0, variable.1));
    assert_eq!(over(&mut check()), Some(3));
    assert_eq!(over(check().args(["--set", "web.max_inflight=4"])), Some(4));
    assert_usage_error(
        &run(check().env("COFFERDAM_CONFIG", folder.path("missing")), b""),
        "missing: cannot be read",
    );
}

#[test]
fn u10_an_empty_config_variable_is_none_and_one_that_means_nothing_is_told_once() {
    let output = run(cli(["check"]).env("COFFERDAM_CONFIG", ""), b"");
    assert_code(&output, 0);
    assert_eq!(stderr(&output), "");
    let output = run(cli(["check"]).env("COFFERDAM_WEB_BIND", "127.0.0.1:1"), b"");
    assert_code(&output, 0);
    assert_eq!(
        stderr(&output),
        "cofferdam: COFFERDAM_WEB_BIND means nothing; COFFERDAM_WEB__BIND would set web.bind\n"
    );
    let output = run(cli(["check"]).env("COFFERDAM_WEB__BNT", "127.0.0.1:1"), b"");
    assert_usage_error(
        &output,
        "web.bnt: is an unknown key (got a string from COFFERDAM_WEB__BNT; expected web.bind",
    );
}

#[test]
fn health_asks_the_service_of_its_configuration() {
    let folder = Folder::new();
    // Nobody listens there, and the complaint says where it has asked.
    let file = folder.file("config.json", r#"{"web":{"bind":"127.0.0.1:1"}}"#);
    for (command, asked) in [
        (&mut cli(["health"]), "127.0.0.1:8080"),
        (cli(["health"]).env("COFFERDAM_CONFIG", &file), "127.0.0.1:1"),
        (cli(["health", "--config"]).arg(&file), "127.0.0.1:1"),
        (cli(["health", "--config"]).arg(&file).env("COFFERDAM_WEB__BIND", "127.0.0.1:2"), "127.0.0.1:2"),
        (&mut cli(["health", "--set", "web.bind=[::1]:2"]), "[::1]:2"),
        (cli(["health", "--url", "http://127.0.0.1:3"]).env("COFFERDAM_CONFIG", &file), "127.0.0.1:3"),
    ] {
        let output = run(command, b"");
        // A service of somebody else's may be at the default port.
        if asked != "127.0.0.1:8080" {
            assert_code(&output, 1);
            assert!(
                stderr(&output).starts_with(&format!("cofferdam: health: http://{asked}: ")),
                "{}",
                shown(&output)
            );
        }
    }
    assert_usage_error(&run(cli(["health"]).env("COFFERDAM_WEB__BIND", "nowhere"), b""), "web.bind");
}

#[test]
fn u12_the_configuration_reference_is_what_check_prints() {
    let output = run_cli(&["check", "--reference"]);
    assert_code(&output, 0);
    let page = include_str!("../docs/configuration.md");
    let table = page.find("| key |").map(|at| &page[at..]);
    assert!(
        table == Some(stdout(&output)),
        "docs/configuration.md is another one: put `cofferdam check --reference` below its head"
    );
    assert!(
        stdout(&output).contains("| `web.bind` | string | `\"127.0.0.1:8080\"` | an IP address and a port")
    );
}

#[test]
fn a_closed_standard_output_is_no_panic() {
    for arguments in [&["--help"][..], &["check"], &["check", "--json"], &["keygen"]] {
        let mut child = cli(arguments).spawn().expect("the binary");
        drop(child.stdout.take());
        let output = wait(child);
        assert!(!stderr(&output).contains("panicked"), "{arguments:?}: {}", shown(&output));
        assert!(output.status.code().is_some_and(|code| code <= 1), "{arguments:?}: {}", shown(&output));
    }
}

#[test]
fn what_was_asked_for_and_cannot_be_written_is_a_failure() {
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["serve", "--help"],
        &["check"],
        &["check", "--json"],
        &["check", "--reference"],
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("a full device");
        let output = wait(cli(arguments).stdout(full).spawn().expect("the binary"));
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", shown(&output));
        assert!(stderr(&output).contains("standard output: No space left"), "{}", shown(&output));
    }
}

// --- keygen ---

fn is_secret(text: &str) -> bool {
    let digits = text.strip_suffix('\n').unwrap_or_default();
    digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[test]
fn keygen_writes_32_random_bytes_as_hex() {
    let [first, second] = [run_cli(&["keygen"]), run_cli(&["keygen"])];
    for output in [&first, &second] {
        assert_code(output, 0);
        assert!(is_secret(stdout(output)), "{}", shown(output));
        assert_eq!(stderr(output), "");
    }
    assert_ne!(first.stdout, second.stdout);
}

#[test]
fn keygen_writes_a_new_file_for_its_owner_alone_and_never_over_another() {
    let folder = Folder::new();
    let keygen = |name: &str| {
        let arguments = [OsString::from("keygen"), "--output".into(), folder.path(name).into()];
        run(&mut cli(arguments), b"")
    };
    let output = keygen("secret");
    assert_code(&output, 0);
    assert_eq!(stdout(&output), "");
    let read = || std::fs::read_to_string(folder.path("secret")).expect("the secret");
    let before = read();
    assert!(is_secret(&before));
    let mode = std::fs::metadata(folder.path("secret")).expect("its file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for (name, what) in [("secret", "secret"), ("no/folder", "no/folder")] {
        let output = keygen(name);
        assert_code(&output, 1);
        assert!(stderr(&output).contains(what), "{}", shown(&output));
        assert!(!stderr(&output).contains(before.trim()), "it shows the secret");
    }
    assert_eq!(read(), before);
    let link = folder.path("link");
    std::os::unix::fs::symlink(folder.path("target"), &link).expect("a link of ours");
    assert_code(&keygen("link"), 1);
    assert!(!folder.path("target").exists(), "keygen wrote through a link");
}

// --- batch ---

const INLINE: &str = "runtime.platform.bootstrap.mode=inline";

fn batch<'a>(handler: &'a str, more: &[&'a str]) -> Command {
    cli([&["batch", "--set", INLINE, "--handler", handler], more].concat())
}

/// Runs it with this on standard input; all lines must succeed.
fn batch_of(handler: &str, more: &[&str], input: &[u8]) -> Vec<u8> {
    let output = run(&mut batch(handler, more), input);
    assert_code(&output, 0);
    assert_eq!(stderr(&output), "");
    output.stdout
}

/// So many different lines, some of them long.
fn numbered(lines: usize) -> Vec<u8> {
    let line = |number: usize| format!("{{\"n\":{number},\"pad\":\"{}\"}}\n", "x".repeat(number % 97));
    (0..lines).map(line).collect::<String>().into_bytes()
}

#[test]
fn batch_gives_lines_back_in_their_order() {
    let input = numbered(20_000);
    assert!(batch_of("echo", &[], &input) == input);
    assert!(batch_of("echo", &["--sink-mode", "source_seq"], &input) == input);
}

#[test]
fn batch_passes_bytes_as_they_are() {
    for (input, expected) in [
        (&b""[..], &b""[..]),
        (b"\n", b"\n"),
        (b"\n\n\n", b"\n\n\n"),
        (b"a\n\nb\n", b"a\n\nb\n"),
        (b"a\nlast", b"a\nlast\n"),
        (b"a\r\nb\r\n", b"a\r\nb\r\n"),
        (b"\r", b"\r\n"),
        (b" \t{\"a\" : 1} \n", b" \t{\"a\" : 1} \n"),
        (b"\xff\xfe\x00\n\x00", b"\xff\xfe\x00\n\x00\n"),
        ("\u{2028}\u{85}é\n".as_bytes(), "\u{2028}\u{85}é\n".as_bytes()),
    ] {
        assert_eq!(batch_of("echo", &[], input), expected, "{input:?}");
    }
}

#[test]
fn batch_in_completion_order_gives_the_same_lines() {
    let sorted = |bytes: &[u8]| {
        let mut lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        lines.sort();
        lines
    };
    let input = numbered(5_000);
    assert!(sorted(&batch_of("echo", &["--sink-mode", "completion"], &input)) == sorted(&input));
    let set = ["--set", "runtime.ordering.sink_mode=completion"];
    assert!(sorted(&batch_of("echo", &set, &input)) == sorted(&input));
}

#[test]
fn the_sink_mode_decides_whether_a_quick_line_passes_a_slow_one() {
    let input = b"{\"ms\":400}\n{\"ms\":0}\n";
    let (slow, quick) = ("{\"slept_ms\":400}\n", "{\"slept_ms\":0}\n");
    let completion = ["--set", "runtime.ordering.sink_mode=completion"];
    for (more, expected) in [
        (&[][..], format!("{slow}{quick}")),
        (&["--sink-mode", "completion"], format!("{quick}{slow}")),
        (&completion, format!("{quick}{slow}")),
        (&[completion[0], completion[1], "--sink-mode", "source_seq"], format!("{slow}{quick}")),
    ] {
        assert_eq!(String::from_utf8_lossy(&batch_of("sleep", more, input)), expected, "{more:?}");
    }
}

#[test]
fn batch_answers_a_line_while_the_next_one_is_not_there_yet() {
    let mut child = batch("echo", &[]).spawn().expect("the binary");
    let mut stdin = child.stdin.take().expect("its input");
    let stdout = child.stdout.take().expect("its output");
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    for line in ["one", "two"] {
        writeln!(stdin, "{line}").expect("it reads");
        assert_eq!(lines.recv_timeout(DEADLINE).as_deref(), Ok(line));
    }
    drop(stdin);
    assert_code(&wait(child), 0);
}

fn problem(line: &[u8]) -> Value {
    let value: Value = serde_json::from_slice(line).expect("a problem object");
    let code = value["code"].as_str().expect("its code").to_owned();
    assert_eq!(value["type"], format!("urn:cofferdam:error:{code}"));
    assert!(value["status"].is_u64() && value["title"].is_string() && value["detail"].is_string(), "{value}");
    value
}

#[test]
fn a_line_that_is_too_long_gets_a_problem_object_in_its_place() {
    let limits = [
        "--set",
        "runtime.platform.execution_ipc.max_payload_bytes=1024",
        "--set",
        "web.max_body_bytes=1024",
    ];
    let (fits, too_long) = ("f".repeat(1_024), "t".repeat(1_025));
    let endless = "e".repeat(5 << 20);
    let input = format!("a\n{too_long}\n{fits}\n{endless}\n\n{too_long}");
    let output = run(&mut batch("echo", &limits), input.as_bytes());
    assert_code(&output, 1);
    let lines: Vec<&[u8]> = output.stdout.split(|byte| *byte == b'\n').collect();
    assert_eq!(lines.len(), 7, "{}", shown(&output));
    for (index, expected) in [(0, "a"), (2, &*fits), (4, ""), (6, "")] {
        assert!(lines[index] == expected.as_bytes(), "line {index}: {}", shown(&output));
    }
    for index in [1, 3, 5] {
        let problem = problem(lines[index]);
        assert_eq!((&problem["code"], &problem["status"]), (&json!("payload_too_large"), &json!(413)));
    }
    assert!(stderr(&output).contains("3 of 6 lines failed"), "{}", shown(&output));
}

#[test]
fn failed_lines_get_problem_objects_and_all_lines_are_done_before_exit_1() {
    let input = b"{\"ms\":0}\nnot json\n{\"ms\":-1}\n{\"ms\":1}\n";
    for mode in ["source_seq", "completion"] {
        let output = run(&mut batch("sleep", &["--sink-mode", mode]), input);
        assert_code(&output, 1);
        assert!(stderr(&output).contains("2 of 4 lines failed"), "{}", shown(&output));
        let lines: Vec<&[u8]> = output.stdout.trim_ascii_end().split(|byte| *byte == b'\n').collect();
        assert_eq!(lines.len(), 4, "{}", shown(&output));
        let failed = |line: &&&[u8]| line.starts_with(b"{\"type\"");
        assert_eq!(lines.iter().filter(failed).count(), 2, "{}", shown(&output));
        if mode == "source_seq" {
            assert_eq!((lines[0], lines[3]), (&b"{\"slept_ms\":0}"[..], &b"{\"slept_ms\":1}"[..]));
            assert_eq!(problem(lines[1])["code"], "handler_failed");
            assert_eq!(problem(lines[2])["code"], "handler_failed");
        }
    }
}

#[test]
fn a_line_that_outlasts_its_handlers_timeout_fails_and_the_others_do_not() {
    let input = b"{\"ms\":0}\n{\"ms\":600000}\n{\"ms\":1}\n";
    let output = run(&mut batch("sleep", &["--set", "handlers.sleep.timeout_ms=200"]), input);
    assert_code(&output, 1);
    let lines: Vec<&[u8]> = output.stdout.split(|byte| *byte == b'\n').collect();
    assert_eq!((lines[0], lines[2]), (&b"{\"slept_ms\":0}"[..], &b"{\"slept_ms\":1}"[..]));
    assert_eq!(problem(lines[1])["code"], "handler_timed_out");
}

#[test]
fn a_line_without_the_ordering_key_of_its_handler_is_a_bad_request_and_the_others_go_on() {
    let keyed = r#"handlers.echo.ordering={"key":"/k"}"#;
    let output = run(&mut batch("echo", &["--set", keyed]), b"{\"k\":1}\n{\"k\":null}\n\n{\"k\":\"a\"}\n");
    assert_code(&output, 1);
    let lines: Vec<&[u8]> = output.stdout.split(|byte| *byte == b'\n').collect();
    assert_eq!((lines[0], lines[3]), (&b"{\"k\":1}"[..], &b"{\"k\":\"a\"}"[..]));
    assert_eq!(
        (&problem(lines[1])["code"], &problem(lines[2])["code"]),
        (&json!("bad_request"), &json!("bad_request"))
    );
    assert!(stderr(&output).contains("2 of 4 lines failed"), "{}", shown(&output));
}

#[test]
fn a_small_queue_slows_reading_and_refuses_no_line() {
    let input = numbered(2_000);
    for capacity in [1, 2, 63, 64, 65] {
        let set = format!("runtime.platform.queue.capacity={capacity}");
        assert!(batch_of("echo", &["--set", &set], &input) == input, "capacity {capacity}");
    }
    let set = ["--set", "runtime.platform.queue.capacity=1", "--set", "handlers.echo.ordering=serial"];
    assert!(batch_of("echo", &set, &input) == input);
}

#[test]
fn batch_reads_and_writes_files_and_a_dash_is_a_standard_stream() {
    let folder = Folder::new();
    let input = numbered(3_000);
    let (from, to) = (folder.file("in", &input), folder.file("out", "what was here before, which is longer"));
    let (from, to) = (from.to_str().expect("text"), to.to_str().expect("text"));
    assert!(batch_of("echo", &["--input", from, "--output", to], b"not read") == b"");
    assert!(std::fs::read(to).expect("the output") == input);
    assert!(batch_of("echo", &["--input", "-", "--output", "-"], &input) == input);
    assert!(batch_of("echo", &["--input", from], b"not read") == input);
    assert!(batch_of("echo", &["--output", to], b"short\n") == b"");
    assert_eq!(std::fs::read(to).expect("the output"), b"short\n");
    let empty = folder.file("empty", "");
    assert!(batch_of("echo", &["--input", empty.to_str().expect("text"), "--output", to], b"") == b"");
    assert_eq!(std::fs::read(to).expect("the output"), b"");
}

#[test]
fn a_batch_that_cannot_begin_is_bad_usage_and_leaves_the_output_alone() {
    let folder = Folder::new();
    let kept = folder.file("kept", "kept");
    let kept_text = kept.to_str().expect("text");
    let path = |name: &str| folder.path(name).to_str().expect("text").to_owned();
    for (handler, more, complaint) in [
        ("nobody", vec!["--output", kept_text], "nobody"),
        ("echo", vec!["--input", &path("missing"), "--output", kept_text], "missing"),
        ("echo", vec!["--input", &path(""), "--output", kept_text], "is a directory"),
        ("echo", vec!["--output", &path("no/folder")], "--output"),
        ("echo", vec!["--output", &path("")], "--output"),
    ] {
        assert_usage_error(&run(&mut batch(handler, &more), b"a\n"), complaint);
    }
    assert_eq!(std::fs::read(&kept).expect("the output"), b"kept");
}

#[test]
fn an_output_that_is_the_input_is_refused_and_the_input_survives() {
    let folder = Folder::new();
    let file = folder.file("lines", "a\nb\n");
    let link = folder.path("link");
    std::fs::hard_link(&file, &link).expect("a link of ours");
    for to in [&file, &link] {
        let (from, to) = (file.to_str().expect("text"), to.to_str().expect("text"));
        let output = run(&mut batch("echo", &["--input", from, "--output", to]), b"");
        assert_eq!(std::fs::read(&file).expect("the input"), b"a\nb\n", "{}", shown(&output));
        assert_usage_error(&output, "--output");
    }
    // A device is nothing that could be emptied.
    assert_eq!(batch_of("echo", &["--input", "/dev/null", "--output", "/dev/null"], b""), b"");
}

#[test]
fn u7_a_reader_that_has_seen_enough_ends_the_batch_soon_with_exit_1_and_a_count() {
    let mut child = batch("echo", &[]).spawn().expect("the binary");
    let mut stdin = child.stdin.take().expect("its input");
    let mut stdout = child.stdout.take().expect("its output");
    // The source never ends by itself: only the closed output can end the batch.
    let feeder = std::thread::spawn(move || {
        let lines = numbered(1_000);
        while stdin.write_all(&lines).is_ok() {}
    });
    let mut head = [0; 100];
    stdout.read_exact(&mut head).expect("some output");
    assert!(numbered(10).starts_with(&head));
    drop(stdout);
    let output = wait(child);
    assert_code(&output, 1);
    assert!(stderr(&output).starts_with(UNREAD), "{}", shown(&output));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", shown(&output));
    feeder.join().expect("its input is closed");
}

/// What is said where the output's reader has gone, with a count behind it.
const UNREAD: &str = "cofferdam: the output's reader has gone: at most ";

#[test]
fn u7_a_reader_that_goes_after_all_was_written_is_no_failure() {
    let mut child = batch("echo", &[]).spawn().expect("the binary");
    child.stdin.take().expect("its input").write_all(b"a\nb\n").expect("it reads");
    let mut both = [0; 4];
    child.stdout.take().expect("its output").read_exact(&mut both).expect("both lines");
    assert_code(&wait(child), 0);
}

#[test]
fn a_closed_output_ends_the_batch_even_while_a_line_runs_for_long() {
    let more = ["--sink-mode", "completion", "--set", "handlers.sleep.timeout_ms=3600000"];
    let mut child = batch("sleep", &more).spawn().expect("the binary");
    let mut stdin = child.stdin.take().expect("its input");
    let mut stdout = child.stdout.take().expect("its output");
    stdin.write_all(b"{\"ms\":3600000}\n{\"ms\":0}\n").expect("it reads");
    let mut line = [0; 15];
    stdout.read_exact(&mut line).expect("the quick line");
    drop(stdout);
    let feeder = std::thread::spawn(move || while stdin.write_all(b"{\"ms\":0}\n").is_ok() {});
    let output = wait(child);
    assert_code(&output, 1);
    assert!(stderr(&output).starts_with(UNREAD), "{}", shown(&output));
    feeder.join().expect("its input is closed");
}

#[test]
fn u7_a_full_disk_is_a_failure_and_its_words_are_the_only_ones() {
    // Every write to this device says that the disk is full.
    let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") else {
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no /dev/full here");
        return;
    };
    for mode in [INLINE, PROCESSES] {
        let mut command = cli(["batch", "--handler", "echo", "--set", mode]);
        let output = run(command.stdout(full.try_clone().expect("a copy")), &numbered(20_000));
        assert_code(&output, 1);
        assert!(
            stderr(&output).starts_with("cofferdam: the output cannot be written: "),
            "{}",
            shown(&output)
        );
        assert_eq!(stderr(&output).lines().count(), 1, "{}", shown(&output));
    }
}

const PROCESSES: &str = "runtime.platform.bootstrap.mode=process_supervisor";

/// Sends these signals, a moment apart, once the first result is there.
fn stopped(mut command: Command, input: &[u8], signals: &[Signal]) -> (Output, Vec<u8>) {
    let mut child = command.spawn().expect("the binary");
    let mut stdin = child.stdin.take().expect("its input");
    let mut stdout = BufReader::new(child.stdout.take().expect("its output"));
    stdin.write_all(input).expect("it reads");
    let mut all = Vec::new();
    stdout.read_until(b'\n', &mut all).expect("the first result");
    let pid = Pid::from_child(&child);
    for signal in signals {
        kill_process(pid, *signal).expect("it runs");
        std::thread::sleep(Duration::from_millis(300));
    }
    let rest = std::thread::spawn(move || {
        stdout.read_to_end(&mut all).expect("the others");
        all
    });
    // Its input stays open: only the signal can end it.
    let deadline = Instant::now() + DEADLINE;
    while child.try_wait().expect("our child").is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(stdin);
    (wait(child), rest.join().expect("its output"))
}

#[test]
fn u7_a_signal_stops_reading_and_what_runs_is_finished_and_said() {
    for mode in [INLINE, PROCESSES] {
        for signal in [Signal::INT, Signal::TERM] {
            let command = cli(["batch", "--handler", "sleep", "--set", mode]);
            let begun = Stopwatch::start();
            let (output, results) = stopped(command, &b"{\"ms\":200}\n".repeat(400), &[signal]);
            assert_code(&output, 1);
            // All of it would take ten seconds: nothing begins after the signal, and what has begun is written.
            assert!(begun.elapsed() < Duration::from_secs(5), "{mode} {signal:?}: {:?}", begun.elapsed());
            let done = results.len() / 17;
            assert!((8..100).contains(&done), "{done} lines");
            assert_eq!(results, b"{\"slept_ms\":200}\n".repeat(done), "{mode} {signal:?}");
            let said = format!(
                "cofferdam: stopped: line {done} was the last that is done; go on with --resume {done}\n"
            );
            assert_eq!(stderr(&output), said, "{mode} {signal:?}");
        }
    }
}

#[test]
fn u7_a_signal_when_all_lines_are_done_is_no_failure() {
    let folder = Folder::new();
    let from = folder.file("in", b"{\"ms\":1}\n{\"ms\":700}\n");
    let sets = ["batch", "--handler", "sleep", "--input", from.to_str().expect("text"), "--set", INLINE];
    let (output, results) = stopped(cli(sets), b"", &[Signal::INT]);
    assert_code(&output, 0);
    assert_eq!((results, stderr(&output)), (b"{\"slept_ms\":1}\n{\"slept_ms\":700}\n".to_vec(), ""));
}

#[test]
fn u7_a_second_signal_or_the_drains_deadline_cuts_lines_off_with_exit_4() {
    let lines = b"{\"ms\":1}\n{\"ms\":600000}\n{\"ms\":1}\n";
    let long = "handlers.sleep.timeout_ms=3600000";
    let none = "runtime.platform.lifecycle.drain_inflight=false";
    for mode in [INLINE, PROCESSES] {
        for (more, signals) in [(long, &[Signal::INT, Signal::TERM][..]), (none, &[Signal::TERM])] {
            let sets = ["batch", "--handler", "sleep", "--set", mode, "--set", long, "--set", more];
            let (output, results) = stopped(cli(sets), lines, signals);
            assert_code(&output, 4);
            assert_eq!(results, b"{\"slept_ms\":1}\n", "what is written is whole, and the first");
            let said = "stopped, and later lines were cut off: line 1 was the last that is done; go on with --resume 1";
            assert!(stderr(&output).contains(said), "{}", shown(&output));
        }
    }
    // What an ordered handler knew is gone, which must not be found out later.
    let serial = "handlers.sleep.ordering=serial";
    let sets = ["batch", "--handler", "sleep", "--set", INLINE, "--set", none, "--set", serial];
    let (output, _) = stopped(cli(sets), lines, &[Signal::TERM]);
    let said = "--resume 1, or from the beginning: its state would be empty";
    assert!(stderr(&output).contains(said), "{}", shown(&output));
    let sets = ["batch", "--handler", "sleep", "--set", INLINE, "--set", none, "--sink-mode", "completion"];
    let (output, _) = stopped(cli(sets), lines, &[Signal::TERM]);
    assert_code(&output, 4);
    assert!(stderr(&output).contains("not the first ones of the input"), "{}", shown(&output));
}

#[test]
fn u7_a_batch_goes_on_where_it_was() {
    let folder = Folder::new();
    let input = numbered(2_000);
    let from = folder.file("in", &input);
    let first_700: usize = input.split_inclusive(|byte| *byte == b'\n').take(700).map(<[u8]>::len).sum();
    let to = folder.file("out", &input[..first_700]);
    let (from, to) = (from.to_str().expect("text"), to.to_str().expect("text"));
    assert!(batch_of("echo", &["--input", from, "--resume", "700"], b"") == input[first_700..]);
    assert!(batch_of("echo", &["--input", from, "--output", to, "--resume", "700"], b"") == b"");
    assert!(std::fs::read(to).expect("the output") == input);
    assert!(batch_of("echo", &["--input", from, "--resume", "2000"], b"") == b"");
    for (resume, to, complaint) in [
        ("2001", "-", "the input has less than 2001 lines"),
        ("1", folder.file("cut", "whole\nhalf").to_str().expect("text"), "its last line is not whole"),
    ] {
        let more = ["--input", from, "--output", to, "--resume", resume];
        assert_usage_error(&run(&mut batch("echo", &more), b""), complaint);
    }
    assert_eq!(std::fs::read(folder.path("cut")).expect("the output"), b"whole\nhalf");
}

#[test]
fn u7_failed_lines_carry_their_number_in_every_order() {
    let input = b"{\"ms\":1}\nbad\n{\"ms\":1}\nbad\n";
    for (more, numbers, first) in [
        (&["--sink-mode", "completion"][..], [2, 4], "2 of 4 lines failed, the first is line 2"),
        (&["--resume", "0"], [2, 4], "2 of 4 lines failed, the first is line 2"),
    ] {
        let output = run(&mut batch("sleep", more), input);
        assert_code(&output, 1);
        let failed: Vec<Value> = stdout(&output)
            .lines()
            .filter(|line| line.contains("urn:"))
            .map(|line| problem(line.as_bytes()))
            .collect();
        assert_eq!(
            failed.iter().map(|problem| problem["line"].as_u64()).collect::<Vec<_>>(),
            numbers.map(Some)
        );
        assert!(stderr(&output).contains(first), "{}", shown(&output));
    }
    // Lines keep their numbers when the first ones are passed over.
    let output = run(&mut batch("sleep", &["--resume", "2"]), input);
    assert_eq!(problem(output.stdout.split(|byte| *byte == b'\n').nth(1).expect("a line"))["line"], 4);
    assert!(stderr(&output).contains("1 of 2 lines failed, the first is line 4"), "{}", shown(&output));
}

#[test]
fn u7_the_bar_counts_lines_that_are_done_not_bytes_that_were_read() {
    let folder = Folder::new();
    let input = folder.file("in", b"{\"ms\":100}\n".repeat(48));
    let more = ["--progress", "always", "--input", input.to_str().expect("text")];
    let output = run(&mut batch("sleep", &more), b"");
    assert_code(&output, 0);
    let drawn: Vec<&str> = stderr(&output).split('\r').filter(|line| line.contains('%')).collect();
    assert!(drawn.len() > 2, "{drawn:?}");
    for line in drawn {
        let number = |end: &str| -> u64 {
            let text = line.split(end).next().and_then(|text| text.trim_end().rsplit(' ').next());
            text.and_then(|text| text.parse().ok())
                .unwrap_or_else(|| panic!("no number before {end:?} in {line:?}"))
        };
        let (percent, done) = (number("%"), number(" done"));
        assert!((100 * done / 48).abs_diff(percent) <= 1, "{line:?}");
    }
}

#[test]
fn u6_what_a_handler_prints_goes_to_standard_error_and_blocks_nobody() {
    let text = b"1\n1000000\n2\n";
    for mode in [INLINE, PROCESSES] {
        for to_file in [false, true] {
            let folder = Folder::new();
            let to = folder.path("out");
            let mut command = command(&example("embedder"), ["batch", "--handler", "print", "--set", mode]);
            if to_file {
                command.arg("--output").arg(&to);
            }
            let begun = Stopwatch::start();
            let output = run(&mut command, text);
            assert_code(&output, 0);
            let data = if to_file { std::fs::read(to).expect("the output") } else { output.stdout.clone() };
            assert_eq!(String::from_utf8_lossy(&data), String::from_utf8_lossy(text), "{mode}");
            assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
            for printed in ["printed 1 .", "printed 2 ..", "printed 1000000 ..."] {
                assert!(stderr(&output).contains(printed), "{mode}: {printed}");
            }
        }
    }
}

/// Neither a standard error that is full nor one that nobody reads.
#[test]
fn u6_printing_holds_up_nobody_whatever_standard_error_is() {
    for mode in [INLINE, PROCESSES] {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("a full device");
        let words = ["batch", "--handler", "print", "--set", mode];
        let begun = Stopwatch::start();
        let mut child = command(&example("embedder"), words).stderr(full).spawn().expect("the embedder");
        let mut input = child.stdin.take().expect("its input");
        input.write_all(b"1\n1000000\n2\n").expect("it reads");
        drop(input);
        let output = wait(child);
        assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"1\n1000000\n2\n"[..]), "{mode}");
        // Its pipe holds far less than that.
        let mut child = command(&example("embedder"), words).spawn().expect("the embedder");
        let _unread = child.stderr.take();
        let mut input = child.stdin.take().expect("its input");
        input.write_all(b"1\n1000000\n2\n").expect("it reads");
        drop(input);
        let output = wait(child);
        assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"1\n1000000\n2\n"[..]), "{mode}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{mode}: {:?}", begun.elapsed());
    }
}

#[test]
fn u6_a_service_prints_its_ready_line_and_nothing_of_its_handlers() {
    for mode in [INLINE, PROCESSES] {
        let mut command =
            command(&example("embedder"), ["serve", "--set", mode, "--set", "web.bind=127.0.0.1:0"]);
        let mut child = command.spawn().expect("the embedder");
        let mut ready = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("its output"));
        stdout.read_line(&mut ready).expect("the ready line");
        let address =
            ready.strip_prefix("ready http://").and_then(|rest| rest.split(' ').next()).expect("an address");
        let errors = std::thread::spawn({
            let mut stderr = child.stderr.take().expect("its errors");
            move || {
                let mut text = Vec::new();
                stderr.read_to_end(&mut text).expect("its errors");
                String::from_utf8_lossy(&text).into_owned()
            }
        });
        for (payload, answer) in [("1000000", "1000000"), ("7", "7")] {
            let mut stream = TcpStream::connect(address).expect("it serves");
            let length = payload.len();
            write!(
                stream,
                "POST /v1/jobs/print HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                 Content-Length: {length}\r\n\r\n{payload}"
            )
            .expect("a request");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("an answer");
            assert!(
                text.starts_with("HTTP/1.1 200 ") && text.ends_with(&format!("\r\n\r\n{answer}")),
                "{mode}: {text}"
            );
        }
        kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).expect("its output");
        assert_eq!(rest, "", "{mode}: nothing but the ready line");
        assert_code(&wait(child), 0);
        let errors = errors.join().expect("its errors");
        assert!(errors.contains("printed 7 .......") && errors.contains("printed 1000000 ..."), "{mode}");
    }
}

#[test]
fn what_a_worker_needs_is_made_once_in_each_process_that_runs_handlers() {
    for mode in [INLINE, PROCESSES] {
        let batch = || command(&example("embedder"), ["batch", "--handler", "starts", "--set", mode]);
        let output = run(&mut batch(), b"1\n2\n3\n");
        assert_code(&output, 0);
        assert_eq!(stdout(&output), "1\n1\n1\n", "{mode}");
        let restart = ["--set", "runtime.platform.lifecycle.restart.max_restarts=0"];
        let output = run(batch().args(restart).env("COFFERDAM_TEST_START", "no database"), b"1\n");
        assert_code(&output, 1);
        assert!(stderr(&output).contains("on_worker_start: no database"), "{}", shown(&output));
    }
}

#[test]
fn an_embedders_binary_says_its_own_name_and_version() {
    let run = |arguments: &[&str]| run(&mut command(&example("embedder"), arguments), b"");
    assert_eq!(stdout(&run(&["--version"])), "embedder 9.8.7\n");
    assert!(stdout(&run(&["--help"])).starts_with("usage: embedder COMMAND"));
    assert!(stdout(&run(&["batch", "--help"])).contains("\nexample: embedder batch "));
}

#[test]
fn progress_is_drawn_on_standard_error_when_asked_for_and_never_otherwise() {
    for (more, is_drawn) in [
        (&["--progress", "always"][..], true),
        (&["--progress", "never"], false),
        // Neither of the two streams is a terminal here.
        (&["--progress", "auto"], false),
        (&[], false),
    ] {
        for input in [&b""[..], b"a\nb\nc\n"] {
            let output = run(&mut batch("echo", more), input);
            assert_code(&output, 0);
            assert_eq!(output.stdout, input);
            assert_eq!(stderr(&output).contains(" done, 0 failed"), is_drawn, "{more:?}: {}", shown(&output));
            assert!(is_drawn || stderr(&output).is_empty(), "{more:?}: {}", shown(&output));
        }
    }
}

#[test]
fn no_check_of_this_binary_can_be_switched_off() {
    let binary = std::fs::read(cofferdam()).expect("the binary");
    let name = b"COFFERDAM_DANGEROUS";
    let found = binary.windows(name.len()).any(|window| window == name);
    assert_eq!(
        found,
        cfg!(feature = "dangerous-negative-controls"),
        "negative controls are for their own build"
    );
}
