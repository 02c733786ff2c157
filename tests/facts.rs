//! `facts` says the truth: a real service, as the kernel sees it, does nothing that its facts do not name.
//!
//! It guards auditors against a list that was true once: crates against `cargo tree`, listeners against the kernel's tables, files
//! and connections against what strace(1) sees, variables against the sources, signals against the masks of the processes.

mod support {
    #[cfg(feature = "redis")]
    pub mod own_redis;
    pub mod program;
    pub mod service;
}
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::program::{Folder, cofferdam, command, example, run, shown};
use support::service::{PATIENCE, Service, all_children, free_address, signal, until};

fn said(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = run(command(&cofferdam(), arguments).envs(environment.iter().copied()), b"");
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]), "{}", shown(&output));
    String::from_utf8(output.stdout).expect("text")
}

fn facts_of(arguments: &[&str], environment: &[(&str, &str)]) -> Value {
    let text = said(&[&["facts", "--json"], arguments].concat(), environment);
    serde_json::from_str(&text).expect("JSON")
}

/// One column of a section.
#[track_caller]
fn column<'a>(facts: &'a Value, section: &str, name: &str) -> Vec<&'a str> {
    let rows = facts[section].as_array().unwrap_or_else(|| panic!("{section} is a list"));
    assert!(!rows.is_empty(), "{section} is empty");
    rows.iter()
        .map(|row| row[name].as_str().unwrap_or_else(|| panic!("{section}: {row} has {name}")))
        .collect()
}

/// True if the facts' path says this one: a `*` stands for any text within a name, a `/` at the end for all that is below.
fn names(pattern: &str, path: &str) -> bool {
    fn go(pattern: &[u8], path: &[u8]) -> bool {
        match pattern {
            [] => path.is_empty(),
            b"/" => path.first().is_none_or(|byte| *byte == b'/'),
            [b'*', rest @ ..] => {
                let ends = (0..=path.len()).take_while(|end| !path[..*end].contains(&b'/'));
                ends.into_iter().any(|end| go(rest, &path[end..]))
            }
            [byte, rest @ ..] => path.first() == Some(byte) && go(rest, &path[1..]),
        }
    }
    go(pattern.as_bytes(), path.as_bytes())
}

#[test]
fn a_pattern_names_what_it_should_and_nothing_beside_it() {
    for (pattern, path, is_named) in [
        ("/etc/passwd", "/etc/passwd", true),
        ("/etc/passwd", "/etc/passwd-", false),
        ("/proc/", "/proc/1/stat", true),
        ("/proc/", "/proc", true),
        ("/proc/", "/process", false),
        ("/run/cofferdam-*/", "/run/cofferdam-1-ab/web-2.sock", true),
        ("/run/cofferdam-*/", "/run/other/cofferdam-1/", false),
        ("/lib*/", "/lib64/libc.so.6", true),
        ("/dev/*random", "/dev/urandom", true),
        ("/dev/*random", "/dev/a/random", false),
    ] {
        assert_eq!(names(pattern, path), is_named, "{pattern} {path}");
    }
}

// --- Crates ---

/// `cargo tree` of these kinds of dependencies, as `name version`.
fn tree(edges: &str, features: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["tree", "--locked", "--offline", "--prefix", "none", "-e", edges]).args(features);
    command.arg("--manifest-path").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    let output = command.output().expect("cargo can be run");
    assert!(output.status.success(), "{command:?}: {}", shown(&output));
    let text = String::from_utf8(output.stdout).expect("crate names are text");
    let crates = text.lines().filter_map(|line| {
        let (name, rest) = line.split_once(" v")?;
        Some(format!("{name} {}", rest.split(' ').next()?))
    });
    crates.filter(|one| !one.starts_with("cofferdam ")).collect()
}

#[test]
fn the_list_of_crates_is_what_cargo_builds_with_and_without_redis() {
    const LEAN: &[&str] = &["--no-default-features"];
    let (all, lean, linked) = (tree("normal", &[]), tree("normal", LEAN), tree("normal,no-proc-macro", &[]));
    assert!(lean.len() > 10 && lean.is_subset(&all) && linked.is_subset(&all), "{lean:?}");
    let line = |one: &String| {
        let redis = if lean.contains(one) { "" } else { " redis" };
        format!("{one}{redis}{}", if linked.contains(one) { "" } else { " build" })
    };
    let expected: Vec<String> = all.iter().map(line).collect();
    let list = include_str!("../src/crates.txt").lines().filter(|line| !line.starts_with('#'));
    let listed: Vec<&str> = list.collect();
    assert_eq!(listed, expected, "src/crates.txt should be\n{}\n", expected.join("\n"));
    let facts = facts_of(&[], &[]);
    let names = column(&facts, "crates", "name").into_iter().zip(column(&facts, "crates", "version"));
    let told: BTreeSet<String> = names.map(|(name, version)| format!("{name} {version}")).collect();
    assert_eq!(told, if cfg!(feature = "redis") { all } else { lean });
    let features = facts["binary"]["features"].as_array().expect("a list");
    assert_eq!(features.contains(&json!("redis")), cfg!(feature = "redis"));
    assert_eq!(facts["binary"]["build"], if cfg!(debug_assertions) { "debug" } else { "release" });
}

// --- What it says ---

#[test]
fn each_value_has_the_origin_that_it_is_from() {
    let folder = Folder::new();
    let config = json!({
        "web": {"max_body_bytes": 2_000, "max_inflight": 1},
        "runtime": {"platform": {"process_groups": [{"name": "a", "processes": 2}, {"name": "b", "handlers": ["echo"]}]}},
        "handlers": {"cat": {"command": ["/bin/cat"], "env": {"KEY": "hunter2"}}},
    });
    let file = folder.file("config.json", config.to_string());
    let file = file.to_str().expect("text");
    let environment = [
        ("COFFERDAM_WEB__MAX_INFLIGHT", "2"),
        ("COFFERDAM_WEB__LIMITS__CONNECTIONS", "9"),
        ("COFFERDAM_CONFIG", file),
    ];
    let facts = facts_of(&["--set", "web.max_inflight=3"], &environment);
    let rows = facts["configuration"].as_array().expect("a list");
    let group = "runtime.platform.process_groups";
    for (path, value, unit, origin) in [
        ("web.bind", json!("127.0.0.1:8080"), "", "default"),
        ("web.max_body_bytes", json!(2_000), "bytes", "file"),
        ("web.limits.connections", json!(9), "count", "environment"),
        ("web.max_inflight", json!(3), "count", "--set"),
        (&format!("{group}.0.processes"), json!(2), "count", "file"),
        (&format!("{group}.0.workers"), json!(8), "count", "default"),
        (&format!("{group}.1.handlers"), json!(["echo"]), "", "file"),
        ("handlers.cat.env.KEY", json!("<redacted>"), "", "file"),
        ("handlers.cat.timeout_ms", json!(30_000), "ms", "default"),
    ] {
        let expected = json!({"path": path, "value": value, "unit": unit, "origin": origin});
        assert!(rows.contains(&expected), "{expected} is not in {rows:#?}");
    }
    assert!(!facts.to_string().contains("hunter2"), "what a program's environment holds is told to nobody");
    let handlers = facts["handlers"].as_array().expect("a list");
    assert!(handlers.contains(&json!({"name": "cat", "kind": "program", "groups": ["a"]})), "{handlers:?}");
    assert!(handlers.contains(&json!({"name": "echo", "kind": "function", "groups": ["b"]})), "{handlers:?}");
    assert_eq!(column(&facts, "files", "path")[0], file);
}

#[test]
fn the_text_has_all_sections_and_an_embedder_has_its_own_handlers() {
    let text = said(&["facts"], &[]);
    let facts = facts_of(&[], &[]);
    for section in facts.as_object().expect("an object").keys() {
        assert!(format!("\n{text}").contains(&format!("\n{section}\n")), "{section}: {text}");
    }
    assert!(text.starts_with("binary\n  name "), "{text}");
    assert!(!text.lines().any(|line| line.len() > 220), "a line is for a terminal: {text}");
    let output = run(&mut command(&example("embedder"), ["facts", "--json"]), b"");
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let facts: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(facts["binary"]["name"], "embedder");
    assert!(column(&facts, "handlers", "name").len() > 2, "{}", facts["handlers"]);
}

#[test]
fn a_wrong_configuration_is_exit_2_and_one_that_cannot_start_is_told() {
    for wrong in [&["facts", "--set", "web.bind=x"][..], &["facts", "now"], &["facts", "--verbose"]] {
        let output = run(&mut command(&cofferdam(), wrong), b"");
        assert_eq!((output.status.code(), &*output.stdout), (Some(2), &b""[..]), "{}", shown(&output));
    }
    let facts = facts_of(&["--set", "runtime.platform.redis.url=rediss://host/0"], &[]);
    assert_eq!(facts["binary"]["cannot_start"].as_array().map(Vec::len), Some(1), "{}", facts["binary"]);
}

// --- What the sources read ---

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of ours").flatten() {
        match entry.path() {
            path if path.is_dir() => sources(&path, found),
            path => found.extend(path.extension().is_some_and(|kind| kind == "rs").then_some(path)),
        }
    }
}

#[test]
fn every_variable_that_the_sources_read_is_named() {
    let facts = facts_of(&[], &[]);
    let named = column(&facts, "environment", "name");
    let (mut files, mut read) = (Vec::new(), BTreeSet::new());
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a source is text");
        let code = text.lines().take_while(|line| line.trim_start() != "#[cfg(test)]");
        let code: String =
            code.filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| [line, "\n"]).collect();
        // Any spelling: `env::var`, `env::vars`, `var_os` by its own name.
        if ["env::var", "var_os", "vars_os"].iter().any(|reads| code.contains(reads)) {
            let is_name = |text: &&str| {
                text.len() > 3 && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
            };
            read.extend(code.split('"').skip(1).step_by(2).filter(is_name).map(str::to_owned));
        }
        let of_libraries =
            [("temp_dir()", "TMPDIR"), ("Env::default()", "RUST_LOG"), ("Env::default()", "RUST_LOG_STYLE")];
        read.extend(
            of_libraries.iter().filter(|(call, _)| code.contains(call)).map(|(_, name)| (*name).to_owned()),
        );
    }
    for name in
        ["NOTIFY_SOCKET", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY", "COFFERDAM_CONFIG", "PATH", "TMPDIR"]
    {
        assert!(read.contains(name), "this sees only {read:?}");
    }
    if !cfg!(feature = "dangerous-negative-controls") {
        read.remove("COFFERDAM_DANGEROUS_OFF");
    }
    // A prefix is no name; and a pattern is not enough for one that the sources know.
    let is_unnamed = |name: &&String| !name.ends_with('_') && !named.contains(&name.as_str());
    let unnamed: Vec<&String> = read.iter().filter(is_unnamed).collect();
    assert!(unnamed.is_empty(), "`facts` does not name {unnamed:?}");
}

// --- What the kernel sees ---

fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// True if processes can be traced here; said, if not.
fn has_strace() -> bool {
    let mut command = Command::new("strace");
    command.args(["-f", "-D", "-o", "/dev/null", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
    let works = command.status().is_ok_and(|status| status.success());
    if !works {
        skipped(
            "no strace (tools/test installs it), or it may not trace here: files are looked at less closely",
        );
    }
    works
}

/// What was opened, executed, connected to and bound, by our own processes.
#[derive(Default, Debug)]
struct Seen {
    opened: BTreeSet<String>,
    executed: BTreeSet<String>,
    connected: BTreeSet<String>,
    bound: BTreeSet<String>,
}

impl Seen {
    /// Of a trace with `-f -y`. What a program does after its exec is its own affair.
    fn in_trace(trace: &str) -> Seen {
        let (mut seen, mut foreign) = (Seen::default(), BTreeSet::new());
        for line in trace.lines() {
            let Some((pid, call)) = line.split_once(' ') else { continue };
            let Some((name, rest)) = call.trim_start().split_once('(').filter(|_| !foreign.contains(pid))
            else {
                continue;
            };
            let text = rest.split('"').nth(1).unwrap_or_default();
            match name {
                "open" | "openat" | "creat" => {
                    let at = rest.split('"').next().and_then(|at| at.split_once('<')?.1.split_once('>'));
                    let cwd = std::env::current_dir().expect("a directory");
                    let folder = at.map_or(cwd, |(folder, _)| folder.into());
                    seen.opened.insert(folder.join(text).display().to_string());
                }
                // One that failed was looked for in another place.
                "execve" if !rest.contains(") = -1 ") => {
                    let is_ours = text == "/proc/self/exe" || Path::new(text) == cofferdam();
                    foreign.extend((!is_ours).then_some(pid));
                    seen.executed.extend((Path::new(text) != cofferdam()).then(|| text.to_owned()));
                }
                "connect" => seen.connected.extend(address(rest)),
                "bind" => seen.bound.extend(address(rest)),
                _ => {}
            }
        }
        seen
    }
}

/// As the facts say it; one of a kind that they do not know as it is.
fn address(call: &str) -> Option<String> {
    let between = |from: &str, to: &str| Some(call.split_once(from)?.1.split_once(to)?.0);
    let tcp = || Some(format!("{}:{}", between("inet_addr(\"", "\"")?, between("port=htons(", ")")?));
    between("sun_path=\"", "\"").map(str::to_owned).or_else(tcp).or_else(|| Some(call.to_owned()))
}

#[test]
fn a_trace_is_read_as_strace_writes_it() {
    let binary = cofferdam().display().to_string();
    let trace = format!(
        "1 execve(\"{binary}\", [\"x\"], 0x1 /* 0 vars */) = 0\n1 openat(AT_FDCWD</a b>, \"c\", O_RDONLY) = 3</a b/c>\n\
         2 openat(AT_FDCWD</a>, \"/d\", O_RDONLY <unfinished ...>\n2 <... openat resumed>) = 3</d>\n\
         1 bind(9<socket:[1]>, {{sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr(\"127.0.0.1\")}}, 16) = 0\n\
         2 connect(9<socket:[1]>, {{sa_family=AF_UNIX, sun_path=\"/s\"}}, 5) = 0\n\
         3 execve(\"/no/cat\", [\"cat\"], 0x1) = -1 ENOENT (No such file or directory)\n\
         3 execve(\"/bin/cat\", [\"cat\"], 0x1) = 0\n3 openat(AT_FDCWD</a>, \"/theirs\", O_RDONLY) = 3\n1 +++ exited with 0 +++\n"
    );
    let seen = Seen::in_trace(&trace);
    let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(list(&seen.opened), "/a b/c /d");
    assert_eq!(list(&seen.executed), "/bin/cat");
    assert_eq!((list(&seen.connected), list(&seen.bound)), ("/s".into(), "127.0.0.1:80".into()));
}

/// Targets of a process's descriptors; `None` where we may not look.
fn descriptors(pid: &str) -> Option<Vec<String>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let targets = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    Some(targets.map(|target| target.display().to_string()).collect())
}

/// Addresses that sockets among these descriptors listen on.
fn listening(descriptors: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let is_theirs = |inode: &str| descriptors.contains(&format!("socket:[{inode}]"));
    let table = |name| std::fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    for line in table("tcp").lines().chain(table("tcp6").lines()) {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, local, _, "0A", _, _, _, _, _, inode, ..] = fields[..] else { continue };
        if is_theirs(inode) {
            let (host, port) = local.split_once(':').expect("an address and a port");
            let port = u16::from_str_radix(port, 16).expect("a port");
            // An IPv4 address is a number in the order of this machine's bytes.
            let host = u32::from_str_radix(host, 16)
                .map(|host| std::net::Ipv4Addr::from(host.to_ne_bytes()).to_string());
            found.insert(format!("{}:{port}", host.unwrap_or_else(|_| local.to_owned())));
        }
    }
    for line in table("unix").lines() {
        const LISTENS: &str = "00010000";
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, _, _, LISTENS, _, _, inode, rest @ ..] = &fields[..] else { continue };
        found.extend(is_theirs(inode).then(|| rest.join(" ")));
    }
    found
}

/// Those of its signals that a process catches or ignores, as a mask; none that whoever started us ignores.
fn signals(pid: &str) -> u64 {
    let mask = |pid: &str, name: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let mask =
            status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix(name)?.trim(), 16).ok());
        mask.unwrap_or(0)
    };
    const REAL_TIME: u32 = 31;
    (mask(pid, "SigCgt:") | mask(pid, "SigIgn:") & !mask("self", "SigIgn:")) & ((1 << REAL_TIME) - 1)
}

/// Starts a service with these settings, lets `work` use it, and compares what it did with what its facts say.
fn compare(sets: &[String], work: impl FnOnce(&Service)) {
    let folder = Folder::new();
    let port = free_address().port();
    let more = [
        format!("web.bind={}", free_address()),
        format!("runtime.platform.execution_ipc.bind_port={port}"),
        "runtime.platform.lifecycle.ready_timeout_ms=28000".into(),
        r#"handlers.cat.command=["/bin/cat"]"#.into(),
        format!("observability.traces.file={}", folder.path("traces.jsonl").display()),
    ];
    let words: Vec<&str> = sets.iter().chain(&more).flat_map(|set| ["--set", set]).collect();
    let facts = facts_of(&words, &[]);
    let trace = folder.path("trace");
    let tracer = has_strace().then(|| {
        let mut command = command(Path::new("strace"), ["-D", "-f", "-y", "-s", "4096", "-o"]);
        command.arg(&trace).arg("-e").arg("trace=open,openat,creat,connect,bind,execve").arg(cofferdam());
        command
    });
    let is_traced = tracer.is_some();
    let mut start = tracer.unwrap_or_else(|| command(&cofferdam(), [] as [&str; 0]));
    let service = Service::from(start.arg("serve").args(&words).spawn().expect("it can be started"));
    work(&service);

    let pids: Vec<String> =
        all_children(service.pid).iter().chain([&service.pid]).map(ToString::to_string).collect();
    assert!(pids.len() >= 3, "supervisor, web and an executor: {pids:?}");
    assert_signals(&facts, &pids, service.pid);
    let held: Option<Vec<Vec<String>>> = pids.iter().map(|pid| descriptors(pid)).collect();
    let mut seen = Seen::default();
    if let Some(held) = held {
        let held: BTreeSet<String> = held.concat().into_iter().collect();
        assert_listeners(&facts, &listening(&held));
        // What the test has open may be theirs, too: it was left open by whoever started all of us.
        let ours: BTreeSet<String> = descriptors("self").into_iter().flatten().collect();
        let is_file = |target: &&String| target.starts_with('/') && !target.ends_with(" (deleted)");
        seen.opened.extend(held.difference(&ours).filter(is_file).cloned());
        for pid in &pids {
            let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
            let mapped = maps.lines().filter_map(|line| Some(line[line.find('/')?..].to_owned()));
            seen.opened.extend(mapped.filter(|file| Path::new(file) != cofferdam()));
        }
    } else {
        skipped(
            "another process's descriptors are root's to look at: listeners are those of the trace alone",
        );
    }
    let pid = service.pid;
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    if is_traced {
        let text = until("the tracer has written its last line", PATIENCE, || {
            let text = String::from_utf8_lossy(&std::fs::read(&trace).ok()?).into_owned();
            let is_last = |line: &str| {
                line.split_once(' ').is_some_and(|(of, what)| of == pid.to_string() && what.contains("+++"))
            };
            text.lines().any(is_last).then_some(text)
        });
        let traced = Seen::in_trace(&text);
        assert!(traced.opened.len() > 10 && traced.bound.len() >= 3, "the trace has too little: {traced:?}");
        assert!(traced.executed.contains("/bin/cat") && !traced.connected.is_empty(), "{traced:?}");
        seen.opened.extend(traced.opened.iter().cloned());
        seen = Seen { opened: seen.opened, ..traced };
    }
    assert_named(&facts, &seen);
}

#[track_caller]
fn assert_listeners(facts: &Value, found: &BTreeSet<String>) {
    let told = column(facts, "listeners", "address");
    let is_told = |address: &String| told.iter().any(|told| names(told, address));
    assert!(found.iter().all(is_told), "they listen on {found:?}, and the facts say {told:?}");
    let is_found = |told: &&str| found.iter().any(|address| names(told, address));
    assert!(
        told.iter().all(is_found) && told.len() == found.len(),
        "{told:?} are told, and {found:?} are there"
    );
}

#[track_caller]
fn assert_signals(facts: &Value, pids: &[String], supervisor: u32) {
    let numbers: BTreeMap<&str, u32> = [
        ("SIGHUP", 1),
        ("SIGINT", 2),
        ("SIGBUS", 7),
        ("SIGUSR1", 10),
        ("SIGSEGV", 11),
        ("SIGUSR2", 12),
        ("SIGPIPE", 13),
        ("SIGTERM", 15),
        ("SIGCHLD", 17),
        ("SIGXFSZ", 25),
    ]
    .into();
    let told = column(facts, "signals", "name").into_iter().filter(|name| name.starts_with("SIG"));
    let told = told.fold(0, |mask, name| mask | 1_u64 << (numbers[name] - 1));
    for pid in pids {
        let more = signals(pid) & !told;
        assert_eq!(more, 0, "process {pid} handles signals that the facts do not name: {more:#x}");
    }
    let needed = ["SIGHUP", "SIGINT", "SIGTERM", "SIGCHLD"].map(|name| 1_u64 << (numbers[name] - 1));
    let needed = needed.iter().fold(0, |mask, one| mask | one);
    assert_eq!(signals(&supervisor.to_string()) & needed, needed, "the supervisor hears what it should");
}

/// Nothing that was seen is without a name.
#[track_caller]
fn assert_named(facts: &Value, seen: &Seen) {
    let paths = column(facts, "files", "path");
    let access = column(facts, "files", "access");
    let executable: Vec<&str> =
        paths.iter().zip(access).filter(|(_, access)| *access == "execute").map(|(path, _)| *path).collect();
    // The address of Redis is a URL.
    let peers: Vec<String> = column(facts, "connections", "address")
        .into_iter()
        .map(|address| {
            let bare =
                address.strip_prefix("redis+unix://").map(|rest| rest.split('?').next().unwrap_or(rest));
            let tcp = address.strip_prefix("redis://").map(|rest| rest.split('/').next().unwrap_or(rest));
            bare.or(tcp).unwrap_or(address).to_owned()
        })
        .collect();
    let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
    let listeners = column(facts, "listeners", "address");
    for (what, seen, told) in [
        ("files", &seen.opened, &paths),
        ("executed", &seen.executed, &executable),
        ("connections", &seen.connected, &peers),
        ("listeners", &seen.bound, &listeners),
    ] {
        let unnamed: Vec<&String> =
            seen.iter().filter(|one| !told.iter().any(|told| names(told, one))).collect();
        assert!(unnamed.is_empty(), "{what}: the facts do not name {unnamed:#?}");
    }
}

#[test]
#[should_panic(expected = "the facts do not name")]
fn a_file_that_no_fact_names_is_noticed() {
    let opened = ["/proc/1/stat", "/etc/shadow"].map(str::to_owned).into();
    assert_named(&facts_of(&[], &[]), &Seen { opened, ..Seen::default() });
}

#[test]
fn a_service_with_journal_and_tokens_does_nothing_that_its_facts_do_not_name() {
    let folder = Folder::new();
    let made = said(&["token", "ci", "--scopes", "submit,read,admin"], &[]);
    let (token, line) = made.trim_end().split_once('\n').expect("a token and its line");
    let tokens = folder.private_file("tokens", &format!("{line}\n"));
    let secret = folder.private_file("secret", support::program::SECRET);
    let sets = [
        format!("runtime.platform.queue.journal.dir={}", folder.path("journal").display()),
        format!("runtime.platform.execution_ipc.auth.secret_file={}", secret.display()),
        "web.auth.mode=bearer".into(),
        format!("web.auth.token_file={}", tokens.display()),
    ];
    compare(&sets, |service| {
        let header = format!("Authorization: Bearer {token}");
        for (method, target) in [
            ("POST", "/v1/jobs/echo"),
            ("POST", "/v1/jobs/cat"),
            ("GET", "/readyz"),
            ("GET", "/metrics"),
            ("GET", "/v1/stats"),
            ("GET", "/v1/jobs"),
            ("GET", "/openapi.json"),
        ] {
            let body = if method == "POST" { "1" } else { "" };
            let answer = service.request(method, target, &[&header], body);
            assert_eq!(answer.status, 200, "{target}: {answer:?}");
        }
        signal(service.pid, rustix::process::Signal::HUP);
        until("the tokens are read again", PATIENCE, || {
            service.stderr().contains("tokens are read again").then_some(())
        });
    });
}

#[cfg(feature = "redis")]
#[test]
fn a_service_on_redis_does_nothing_that_its_facts_do_not_name() {
    for is_tcp in [false, true] {
        let mut server = support::own_redis::Server::absent(&[]);
        if is_tcp {
            server = server.with_tcp();
        }
        server.up();
        let url = if is_tcp { server.tcp_url() } else { server.url() };
        let folder = Folder::new();
        let sets = support::program::on_redis(&url, &folder, support::program::SECRET);
        compare(&sets, |service| {
            for target in ["/v1/jobs/echo", "/v1/jobs/cat"] {
                assert_eq!(service.post(target, "1").status, 200, "{target}");
            }
            for target in ["/readyz", "/metrics", "/v1/stats"] {
                assert_eq!(service.get(target).status, 200, "{target}");
            }
        });
    }
}

#[test]
fn facts_starts_nothing_and_opens_nothing_but_the_config_file() {
    let folder = Folder::new();
    let gone = |name: &str| folder.path(name).display().to_string();
    let sets = [
        format!("runtime.platform.execution_ipc.auth.secret_file={}", gone("secret")),
        "web.auth.mode=bearer".into(),
        format!("web.auth.token_file={}", gone("tokens")),
        format!("runtime.platform.queue.journal.dir={}", gone("journal")),
        r#"handlers.none.command=["no-such-program"]"#.into(),
    ];
    let words: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    // None of these is there: whoever reads one fails.
    let facts = facts_of(&words, &[]);
    assert!(column(&facts, "files", "path").contains(&&*gone("tokens")));
    assert!(!folder.path("journal").exists());
    if !has_strace() {
        return;
    }
    let (config, trace) = (folder.file("config.json", "{}"), folder.path("trace"));
    let mut strace = command(Path::new("strace"), ["-f", "-y", "-o"]);
    strace.arg(&trace).arg("-e").arg("trace=open,openat,creat,connect,bind,execve,socket,fork,vfork");
    let output = run(strace.arg(cofferdam()).arg("facts").arg("--config").arg(&config).args(&words), b"");
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let text = std::fs::read_to_string(&trace).expect("a trace");
    let calls = ["socket(", "connect(", "bind(", "fork("].map(|call| text.contains(call));
    assert_eq!((calls, text.matches("execve(").count()), ([false; 4], 1), "{text}");
    let is_of_the_loader = |path: &&String| {
        ["/etc/ld.so.*", "/lib*/", "/usr/lib*/", "/proc/self/maps"].iter().any(|known| names(known, path))
    };
    let seen = Seen::in_trace(&text);
    let opened: Vec<&String> = seen.opened.iter().filter(|path| !is_of_the_loader(path)).collect();
    assert_eq!(opened, [&config.display().to_string()]);
}
