//! Processes as their host sees them: who they run as, what they leave, what they hear, and what of their words goes into the
//! log. Rows are named after what a user meets.
//!
//! It guards against handlers that reach for more than their process has, and against launchers that start the service in
//! a state that it did not choose.

#[path = "support/aftermath.rs"]
mod aftermath;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use aftermath::{Trial, assert_ended, skipped};
use program::{Folder, cofferdam, command, copied, example, run, shown};
use rustix::process::Signal;
use serde_json::{Value, json};
use service::{PATIENCE, Service, Stopwatch, all_children, is_alive, kill, signal, until, words};

/// Nobody else has this number here.
const OTHER_USER: u32 = 65_534;
const JSON: &str = "observability.log=json";
const DIGITS: &str = "5b1d7c3e9f0a2b4c6d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c\n";
const SECRET_FILE: &str = "runtime.platform.execution_ipc.auth.secret_file";
/// Two groups; the handlers of the second may be anybody's.
fn groups(user: &str) -> String {
    format!(
        r#"runtime.platform.process_groups=[{{"name":"ours","handlers":["echo","sleep","count"]}},{{"name":"theirs"{user},"handlers":["*"]}}]"#
    )
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skipped("only root can give a process another user");
    }
    is_root
}

/// A place and a copy of the program that any user can read.
fn open_to_all(program: &Path) -> (PathBuf, PathBuf) {
    let place = std::env::temp_dir().join(format!(
        "cofferdam-open-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::create_dir_all(&place).expect("a temporary folder");
    let copy = place.join("program");
    copied(program, &copy);
    for path in [&place, &copy] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("our own file");
    }
    (place, copy)
}

fn look(service: &Service, lines: &[String]) -> Vec<String> {
    let answer = service.post("/v1/jobs/look", lines.join("\n"));
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_slice(&answer.body).expect("a list of texts")
}

/// What a handler tries that wants more than its own group's secret.
fn wishes(service: &Service, run: &Path, secret: &Path) -> Vec<String> {
    let inner = std::fs::read_dir(run).expect("our folder").flatten().map(|entry| entry.path());
    let inner: Vec<PathBuf> =
        inner.filter_map(|folder| Some(std::fs::read_dir(folder).ok()?.next()?.ok()?.path())).collect();
    let [socket] = &inner[..] else { panic!("one socket of the inner server, not {inner:?}") };
    let of = |pid: u32, file: &str| format!("/proc/{pid}/{file}");
    let mut wishes: Vec<String> = [service.pid, service.child("web")]
        .into_iter()
        .flat_map(|pid| ["mem", "environ", "maps", "fd/0"].map(|file| of(pid, file)))
        .collect();
    wishes.push(secret.display().to_string());
    wishes.push(format!("connect {} /v1/stats", socket.display()));
    wishes
}

#[test]
fn e9_an_executor_of_another_user_reads_no_key_reaches_no_page_and_looks_into_no_process() {
    if !is_root() {
        return;
    }
    let folder = Folder::new();
    let (secret, run) = (folder.private_file("secret", DIGITS), folder.path("run"));
    std::fs::create_dir(&run).expect("a folder");
    for user in [r#","user":"nobody""#.to_owned(), format!(r#","user":{OTHER_USER}"#)] {
        let sets = [groups(&user), format!("{SECRET_FILE}={}", secret.display())];
        let mut serve = command(
            &example("embedder"),
            ["serve", "--set", "web.bind=127.0.0.1:0", "--set", &sets[0], "--set", &sets[1]],
        );
        serve.env("RUNTIME_DIRECTORY", &run);
        let service = Service::from(serve.spawn().expect("it starts"));
        let wishes = wishes(&service, &run, &secret);
        let found = look(&service, &wishes);
        for (wish, found) in wishes.iter().zip(&found) {
            assert!(found.starts_with("no: Permission denied"), "{wish}: {found}");
        }
        let rights: Vec<String> =
            found[wishes.len()..].iter().map(|line| line.replace('\t', " ").trim().to_owned()).collect();
        let four = [OTHER_USER.to_string().as_str()].repeat(4).join(" ");
        assert_eq!(
            rights,
            [format!("Uid: {four}"), format!("Gid: {four}"), "Groups:".into(), "NoNewPrivs: 1".into()]
        );
        // The other group's are ours; and a lost one is replaced as the same user.
        assert_eq!(service.post("/v1/jobs/echo", "1").text(), "1");
        let theirs = service.children("executor").into_iter().find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/status"))
                .is_ok_and(|status| status.contains(&format!("Uid:\t{OTHER_USER}")))
        });
        kill(theirs.expect("an executor of that user"));
        assert!(look(&service, &[]).iter().any(|line| line.contains(&four.replace(' ', "\t"))));
        let children = all_children(service.pid);
        assert_ended(&service.stop().status, "", Some(0));
        assert!(!children.into_iter().any(is_alive));
    }
}

/// The same user's processes: their memory is closed, their files are not, and the inner server knows its one client.
#[test]
fn e9_an_executor_of_the_same_user_looks_into_no_process_and_has_no_answer_of_the_inner_server() {
    if !is_root() {
        return;
    }
    let (place, program) = open_to_all(&example("embedder"));
    let (secret, run) = (place.join("secret"), place.join("run"));
    std::fs::write(&secret, DIGITS).expect("a file");
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("our own file");
    std::fs::create_dir(&run).expect("a folder");
    for path in [&secret, &run] {
        chown(path, Some(OTHER_USER), Some(OTHER_USER)).expect("root may");
    }
    let set = format!("{SECRET_FILE}={}", secret.display());
    let mut serve = command(&program, ["serve", "--set", "web.bind=127.0.0.1:0", "--set", &set]);
    serve.uid(OTHER_USER).gid(OTHER_USER).env("RUNTIME_DIRECTORY", &run).current_dir("/");
    let service = Service::from(serve.spawn().expect("it starts"));
    let wishes = wishes(&service, &run, &secret);
    let found = look(&service, &wishes);
    for (wish, found) in wishes.iter().zip(&found) {
        if wish.starts_with("connect ") {
            assert!(found.contains(" 500 ") && found.contains("internal_error"), "{wish}: {found}");
        } else {
            // What SECURITY.md says of the same user: the file is its own.
            let is_open = Path::new(wish) == secret;
            assert_eq!(found.starts_with("no: Permission denied"), !is_open, "{wish}: {found}");
        }
    }
    assert!(found.contains(&"NoNewPrivs:\t1".to_owned()), "{found:?}");
    assert_eq!(service.get("/v1/stats").status, 200);
    assert_ended(&service.stop().status, "", Some(0));
    let _ = std::fs::remove_dir_all(&place);
}

#[test]
fn a_user_that_cannot_be_is_exit_2_with_the_reason_and_nothing_started() {
    let refused = |program: &Path, as_user: Option<u32>, user: &str, more: &[&str], says: &str| {
        let set = format!(r#"runtime.platform.process_groups=[{{"name":"jobs","user":{user}}}]"#);
        for subcommand in ["serve", "check"] {
            let mut command = command(program, [&[subcommand, "--set", &set][..], more].concat());
            if let Some(user) = as_user {
                command.uid(user).gid(user).current_dir("/");
            }
            let output = run(&mut command, b"");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(2) && stderr.contains(says), "{user}: {}", shown(&output));
        }
    };
    let own = cofferdam();
    for wrong in ["\"\"", "true", "-1", "4294967295", "\"a:b\"", "[]"] {
        refused(&own, None, wrong, &[], "process_groups.0.user: is not allowed");
    }
    let inline = ["--set", "runtime.platform.bootstrap.mode=inline"];
    refused(&own, None, "\"nobody\"", &inline, "process group jobs: user: inline, executors are threads");
    if is_root() {
        refused(
            &own,
            None,
            "\"no-such-user\"",
            &[],
            "process group jobs: user: /etc/passwd has no user no-such-user",
        );
        refused(&own, None, "4000000001", &[], "/etc/passwd has no user 4000000001");
        let (place, program) = open_to_all(&own);
        refused(&program, Some(OTHER_USER), "\"root\"", &[], "only root can start processes as root");
        let _ = std::fs::remove_dir_all(&place);
    }
}

#[test]
fn a_secret_file_that_others_may_have_made_or_that_is_no_file_is_refused_at_once() {
    let folder = Folder::new();
    let secret = folder.private_file("secret", DIGITS);
    let fifo = folder.path("fifo");
    let made = Command::new("mkfifo").args(["-m", "600"]).arg(&fifo).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo");
    let link = folder.path("link");
    std::os::unix::fs::symlink(&secret, &link).expect("a link");
    let open = folder.file("open", DIGITS);
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o640)).expect("our own file");
    let long = folder.private_file("long", &"x".repeat(5_000));
    let given = folder.path("given");
    std::fs::create_dir(&given).expect("a folder");
    let credential = given.join("secret");
    std::fs::write(&credential, DIGITS).expect("a file");
    let check = |key: &str, path: &Path, credentials: &Path| {
        let set = format!("{key}={}", path.display());
        let redis = ["runtime.platform.kv.backend=redis", "runtime.platform.redis.url=redis://127.0.0.1:1/0"];
        let own = format!("{SECRET_FILE}={}", secret.display());
        let mut arguments = vec!["check", "--set", &set];
        if key != SECRET_FILE {
            arguments.extend(["--set", &own, "--set", redis[0], "--set", redis[1]]);
        }
        let begun = Stopwatch::start();
        let output = run(command(&cofferdam(), arguments).env("CREDENTIALS_DIRECTORY", credentials), b"");
        assert!(begun.elapsed() < Duration::from_secs(5), "{key} {}: not at once", path.display());
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let keys: &[&str] = match cfg!(feature = "redis") {
        true => &[SECRET_FILE, "runtime.platform.redis.password_file"],
        false => &[SECRET_FILE],
    };
    for key in keys {
        let refused = |path: &Path, credentials: &Path, says: &str| {
            let (code, stderr) = check(key, path, credentials);
            assert!(
                code == Some(2) && stderr.contains(&format!("{}: {says}", path.display())),
                "{key}: {code:?} {stderr}"
            );
        };
        // Without a server, `check` with a good password file gets as far as that.
        let accepted = |path: &Path, credentials: &Path| {
            let (code, stderr) = check(key, path, credentials);
            let is_as_far =
                if *key == SECRET_FILE { code == Some(0) } else { stderr.contains("cannot be reached") };
            assert!(is_as_far, "{key} {}: {code:?} {stderr}", path.display());
        };
        refused(&fifo, &given, "is a FIFO, not a regular file");
        refused(&given, &given, "is a directory, not a regular file");
        refused(Path::new("/dev/zero"), &given, "is a device, not a regular file");
        refused(&open, &given, "others can read or write it (mode 640)");
        refused(&long, &given, "is longer than 4096 bytes");
        refused(&folder.path("absent"), &given, "cannot be read: No such file");
        for path in [&secret, &link] {
            accepted(path, &given);
        }
        for (mode, is_accepted) in [(0o440, true), (0o400, true), (0o444, false), (0o460, false)] {
            std::fs::set_permissions(&credential, PermissionsExt::from_mode(mode)).expect("our own file");
            match is_accepted {
                true => accepted(&credential, &given),
                false => refused(&credential, &given, "others can read or write it"),
            }
        }
        // The same file, where nobody has said that a service manager gave it.
        std::fs::set_permissions(&credential, PermissionsExt::from_mode(0o440)).expect("our own file");
        refused(&credential, Path::new("/nowhere"), "others can read or write it (mode 440)");
        if is_root() {
            chown(&secret, Some(OTHER_USER), None).expect("root may");
            refused(&secret, &given, "belongs to user 65534, not to 0");
            chown(&secret, Some(0), None).expect("root may");
        }
    }
}

/// Lines that a handler would like to see as another's, and what must come of them.
const POSES: [&str; 4] = [
    r#"{"ts":"2026-01-01T00:00:00.000Z","level":"warn","process":"serve","pid":1,"event":"lifecycle.stopped"}"#,
    "2026-01-01T00:00:00.000Z WARN  serve[1] lifecycle.stopped",
    "\u{1b}[2J\u{9b}31m\u{202e}red\rover",
    "plain",
];

#[test]
fn a_line_of_a_child_is_an_object_with_its_name_and_number_and_poses_as_nobodys() {
    let service = Service::of(&example("embedder"), &[JSON]);
    let pid = service.child("executor");
    for pose in POSES {
        assert_eq!(service.post("/v1/jobs/say", format!("{pose}\n")).status, 200);
    }
    assert_eq!(service.post("/v1/jobs/say", b"\xff\xfe half").status, 200);
    assert_eq!(service.post("/v1/jobs/say", b" a line\n").status, 200);
    until("the last words", PATIENCE, || service.stderr().contains("half a line").then_some(()));
    let ended = service.stop();
    let lines = ended.stderr.lines().map(|line| {
        assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{line:?}");
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    });
    let lines: Vec<Value> = lines.collect();
    let said = lines.iter().filter(|line| line["event"] == "process.stderr");
    let said: Vec<(&Value, &Value, &str)> =
        said.map(|line| (&line["process"], &line["pid"], line["text"].as_str().expect("a text"))).collect();
    let expected: Vec<&str> = POSES.into_iter().chain(["\u{fffd}\u{fffd} half a line"]).collect();
    assert_eq!(said.iter().map(|(.., text)| *text).collect::<Vec<_>>(), expected);
    assert!(
        said.iter().all(|(process, number, _)| **process == "executor" && **number == json!(pid)),
        "{said:?}"
    );
    assert_eq!(lines.iter().filter(|line| line["event"] == "lifecycle.stopped").count(), 1);
}

#[test]
fn a_line_of_a_child_stands_quoted_in_the_text_log_behind_its_name_and_number() {
    let service = Service::of(&example("embedder"), &[]);
    let pid = service.child("executor");
    for pose in POSES {
        assert_eq!(service.post("/v1/jobs/say", format!("{pose}\n")).status, 200);
    }
    until("the last words", PATIENCE, || service.stderr().contains("plain").then_some(()));
    let ended = service.stop();
    let ours = format!("INFO  executor[{pid}] process.stderr text=");
    let said: Vec<&str> = ended.stderr.lines().filter_map(|line| Some(line.split_once(&ours)?.1)).collect();
    let quoted = [
        &json!(POSES[0]).to_string(),
        &json!(POSES[1]).to_string(),
        r#""\u001b[2J\u009b31m\u202ered\rover""#,
        "plain",
    ];
    assert_eq!(said, quoted, "{}", ended.stderr);
    assert_eq!(
        ended
            .stderr
            .lines()
            .filter(|line| line.contains("lifecycle.stopped") && !line.contains("process.stderr"))
            .count(),
        1
    );
    assert!(!ended.stderr.contains(|c: char| c.is_control() && c != '\n'), "{:?}", ended.stderr);
}

/// A child's own log lines go on as they are, in both forms, under its own name.
#[test]
fn what_a_childs_own_logger_says_is_no_words_of_a_handler() {
    for set in [JSON, "observability.log=text"] {
        let mut serve = command(&cofferdam(), ["serve", "--set", "web.bind=127.0.0.1:0", "--set", set]);
        let service = Service::from(serve.env("RUST_LOG", "debug").spawn().expect("it starts"));
        let web = service.child("web");
        assert_eq!(service.post("/v1/jobs/echo", "1").status, 200);
        until("web's own line", PATIENCE, || service.stderr().contains("ingress.accepted").then_some(()));
        let ended = service.stop();
        let (name, mark) = match set {
            JSON => (format!(r#""process":"web","pid":{web},"event":"ingress.accepted""#), r#"{"ts":"2"#),
            _ => (format!(" DEBUG web[{web}] ingress.accepted "), "2"),
        };
        assert!(ended.stderr.contains(&name), "{name}: {}", ended.stderr);
        assert!(!ended.stderr.contains("process.stderr"), "{}", ended.stderr);
        // Nothing of a line's mark is left.
        assert!(ended.stderr.lines().all(|line| line.starts_with(mark)), "{}", ended.stderr);
    }
}

fn zombies(parent: u32) -> usize {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let stats = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let of = format!(") Z {parent} ");
    stats.filter(|stat| stat.contains(&of)).count()
}

#[test]
fn u11_a_background_process_that_each_of_1000_jobs_leaves_is_no_zombie_afterwards() {
    let trial = Trial::of(&example("embedder"), &[], |_| {});
    let executor = trial.child("executor");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = trial.connect();
                for _ in 0..125 {
                    let answer = client.request("POST", "/v1/jobs/orphan", &[], "");
                    assert_eq!(answer.status, 200, "{answer:?}");
                }
            });
        }
    });
    until("no zombie is left", Duration::from_secs(4), || {
        (zombies(trial.pid) + zombies(executor) == 0).then_some(())
    });
    // A handler's own programs are its own to wait for: none of these was taken from it.
    assert_eq!(trial.child("executor"), executor);
    trial.over();
}

#[test]
fn u8_hangups_and_user_signals_are_said_or_ignored_and_end_nothing() {
    for mode in ["inline", "process_supervisor"] {
        let service = Service::start(&[&format!("runtime.platform.bootstrap.mode={mode}")]);
        let all: Vec<u32> = all_children(service.pid).into_iter().chain([service.pid]).collect();
        for number in [Signal::HUP, Signal::USR1, Signal::USR2] {
            all.iter().for_each(|pid| signal(*pid, number));
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(service.post("/v1/jobs/echo", "1").text(), "1", "{mode}: after {number:?}");
        }
        assert!(all.iter().all(|pid| is_alive(*pid)), "{mode}");
        let ended = service.stop();
        assert_ended(&ended.status, &ended.stderr, Some(0));
        assert!(ended.stderr.contains("SIGHUP"), "{mode}: {}", ended.stderr);
    }
}

/// Python alone can block a signal for a program that it becomes, without a line of C.
fn launched(prepare: &str, words: &[&str]) -> Command {
    let script = format!("import os, signal, sys; {prepare}; os.execv(sys.argv[1], sys.argv[1:])");
    let mut launcher = command(Path::new("/usr/bin/env"), ["python3", "-c", &script]);
    launcher.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    launcher.arg(cofferdam()).args(words);
    launcher
}

#[test]
fn u8_a_launcher_that_ignores_or_blocks_signals_makes_nobody_deaf_to_term() {
    let all = "[signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1]";
    for prepare in [
        format!("[signal.signal(number, signal.SIG_IGN) for number in {all}]"),
        format!("signal.pthread_sigmask(signal.SIG_BLOCK, {all})"),
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))".to_owned(),
    ] {
        for mode in ["inline", "process_supervisor"] {
            let mode = format!("runtime.platform.bootstrap.mode={mode}");
            let mut launcher =
                launched(&prepare, &["serve", "--set", "web.bind=127.0.0.1:0", "--set", &mode]);
            let service = Service::from(launcher.spawn().expect("env runs"));
            assert_eq!(service.post("/v1/jobs/echo", "1").text(), "1");
            signal(service.pid, Signal::HUP);
            // A child that ends is noticed and replaced, whatever was done with the signal that says so.
            for pid in service.children("executor") {
                kill(pid);
            }
            assert_eq!(service.post("/v1/jobs/echo", "2").text(), "2", "{prepare}");
            let begun = Stopwatch::start();
            let ended = service.stop();
            assert_ended(&ended.status, &ended.stderr, Some(0));
            assert!(begun.elapsed() < Duration::from_secs(5), "{prepare} {mode}: {:?}", begun.elapsed());
        }
        // Neither is `batch` misled by a launcher that ignores the end of children.
        let mut launcher = launched(&prepare, &["batch", "--handler", "echo"]);
        let output = run(&mut launcher, b"1\n2\n");
        assert!(output.status.success() && output.stdout == b"1\n2\n", "{prepare}: {}", shown(&output));
    }
}

/// `setsid` gives it a terminal of its own, through Python's `pty`; closing that is what a closed window does.
#[test]
fn u8_a_terminal_that_is_closed_ends_nothing_and_term_is_still_heard() {
    let script = "import os, pty, sys, time\n\
        pid, master = pty.fork()\n\
        if pid == 0: os.execv(sys.argv[1], sys.argv[1:])\n\
        line = b''\n\
        while b'pid=' not in line or b'\\n' not in line[line.index(b'pid='):]: line += os.read(master, 4096)\n\
        os.close(master)\n\
        sys.stdout.write(next(part for part in line.decode().splitlines() if part.startswith('ready ')) + '\\n')\n\
        sys.stdout.flush()\n\
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))";
    let mut launcher = command(Path::new("/usr/bin/env"), ["python3", "-c", script]);
    launcher.env("PATH", std::env::var_os("PATH").unwrap_or_default()).stderr(Stdio::piped());
    launcher.arg(cofferdam()).args(["serve", "--set", "web.bind=127.0.0.1:0"]);
    let mut launcher = launcher.spawn().expect("env runs");
    let mut line = String::new();
    let stdout = launcher.stdout.take().expect("a pipe");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("a line");
    let (address, pid) =
        line.trim().strip_prefix("ready http://").and_then(|rest| rest.split_once(" pid=")).expect("ready");
    let (address, pid) = (address.parse().expect("an address"), pid.parse::<u32>().expect("a pid"));
    std::thread::sleep(Duration::from_millis(300));
    let answer = service::Client::to(address).request("POST", "/v1/jobs/echo", &[], "1");
    assert!(answer.text() == "1" && words(pid).get(1).is_some_and(|word| word == "serve"), "{answer:?}");
    signal(pid, Signal::TERM);
    let status = until("it ends", PATIENCE, || launcher.try_wait().expect("our own child"));
    assert_eq!(status.code(), Some(0));
}

#[test]
fn u9_a_child_that_ends_each_time_a_moment_after_it_was_ready_is_given_up_with_its_last_words() {
    for role in ["executor", "web"] {
        for ms in [5, 100, 1_000] {
            let folder = Folder::new();
            let fault = folder.path("fault");
            let restart = r#"runtime.platform.lifecycle.restart={"max_restarts":3,"backoff_ms":100}"#;
            let mut serve =
                command(&example("embedder"), ["serve", "--set", "web.bind=127.0.0.1:0", "--set", restart]);
            let service =
                Service::from(serve.env("COFFERDAM_TEST_FAULT", &fault).spawn().expect("it starts"));
            std::fs::write(&fault, format!("{role} +{ms} the licence has run out")).expect("our folder");
            kill(service.child(role));
            let begun = Instant::now();
            let ended = service.ended();
            assert_ended(&ended.status, &ended.stderr, Some(1));
            let name = if role == "web" { "web" } else { "execution" };
            let says = format!(
                "cofferdam: {name} ended with exit code 7, and is not restarted again; its last words: the licence has run out\n"
            );
            assert!(ended.stderr.contains(&says), "{role} {ms}: {}", ended.stderr);
            // Four lives, and 100, 200 and 400 ms of backoff between them.
            let least = Duration::from_millis(700 + 4 * ms);
            assert!(begun.elapsed() >= least, "{role} {ms}: after {:?}", begun.elapsed());
        }
    }
}
