//! The catalogue of `tests/http_cases`: what is said to the front door byte by byte, and what must come back.
//!
//! It guards the whole of HTTP here: over sockets to a running service, and to the gate alone with a clock of its own,
//! where an hour of slow clients takes a second. `tests/http_cases/README.md` says how to add a case, and how to point
//! it at another server.

#[path = "support/case_gate.rs"]
mod case_gate;
#[path = "support/case_hours.rs"]
mod case_hours;
#[path = "support/case_sockets.rs"]
mod case_sockets;
#[path = "support/cases.rs"]
mod cases;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cases::{Case, Class, GROUPS, Slack, Step, Talk, judge, parse};
use cofferdam::config::tokens;
use program::{Folder, cofferdam, command, run};
use service::{PATIENCE, Service, Stopwatch, holdings, until};

/// Names a server that is not ours: `HOST:PORT`.
const AT: &str = "HTTP_CASES_AT";
/// Cases that are said at the same time.
const AT_ONCE: usize = 40;
/// A loaded machine is late, and no clock is early by more.
const SOCKETS: Slack = Slack { early: Duration::from_millis(20), late: Duration::from_secs(3) };
const GATE: Slack = Slack { early: Duration::ZERO, late: Duration::from_micros(10) };
/// What a process may have more at the end than after its first requests: answers in flight grow its heap once.
const GROWTH_KIB: u64 = 32 << 10;

/// Longer ones are not said byte by byte: a head is looked through at each byte.
const BY_BYTES: usize = 6_000;
/// As large as pieces are written.
const WHOLE: usize = usize::MAX;

const SIZES: [&str; 3] =
    [r#"web.allowed_hosts=["jobs.example"]"#, "web.max_body_bytes=65536", "web.max_batch_bytes=131072"];
const SLOW: &str = r#"web.limits={"header_timeout_ms":600,"body_timeout_ms":900,"idle_timeout_ms":1200}"#;

/// What came of each case.
struct Outcome<'a> {
    case: &'a Case,
    result: Result<(), String>,
}

#[test]
fn every_case_is_answered_as_it_says() {
    let Ok(at) = std::env::var(AT) else { return our_own() };
    let server = at.to_socket_addrs().ok().and_then(|mut all| all.next()).expect("HOST:PORT");
    let cases = of_groups(&|_| true, &|_, word| word.to_owned());
    let general: Vec<&Case> = cases.iter().filter(|case| case.others.is_some()).collect();
    print_table(&at, &say_all(&general, false, |_| server));
}

fn our_own() {
    let begun = Instant::now();
    let folder = Folder::new();
    let tokens = make_tokens();
    let file = folder.path("tokens");
    write_private(&file, &tokens.lines);
    let file = format!("web.auth.token_file={}", file.display());
    let bearer = ["web.auth.mode=bearer", &file, r#"web.trusted_proxies=["127.0.0.1"]"#];
    let plain = Service::start(&SIZES);
    let slow = Service::start(&[&SIZES[..], &[SLOW]].concat());
    let guarded = Service::start(&[&SIZES[..], &bearer].concat());
    let running = plain.submit("/v1/jobs/sleep", &[], r#"{"ms":600000}"#);
    plain.record_when(&running, "running");
    let job = plain.submit("/v1/jobs/echo", &["Content-Type: text/plain"], "done");
    plain.record_when(&job, "succeeded");
    let authorization = format!("Authorization: Bearer {}", tokens.of["submit"]);
    let guarded_job = guarded.submit("/v1/jobs/echo", &[&authorization], "done");
    let admin = format!("Authorization: Bearer {}", tokens.of["admin"]);
    until("the job of a token is done", PATIENCE, || {
        let target = format!("/v1/jobs/{guarded_job}");
        let answer = guarded.request("GET", &target, &[&admin], "");
        (answer.json()["status"] == "succeeded").then_some(())
    });
    let mut all = of_groups(&|group| group != "tokens", &|_, word| match word {
        "job" => job.clone(),
        "running" => running.clone(),
        _ => panic!("nobody knows ${word}"),
    });
    all.extend(of_groups(&|group| group == "tokens", &|case, word| match word {
        "job" => guarded_job.clone(),
        _ => tokens.word(case, word),
    }));
    assert!(all.len() >= 200, "the catalogue has {} cases", all.len());

    // Pages have their connections to the inner server from the first request on.
    for page in ["/readyz", "/metrics", "/v1/stats"] {
        assert_eq!(plain.get(page).status, 200);
    }
    let web = [&plain, &slow, &guarded].map(|service| service.child("web"));
    let before = web.map(|pid| (holdings(pid).0, memory_kib(pid)));
    let cases: Vec<&Case> = all.iter().collect();
    let outcomes = say_all(&cases, true, |case| match case.group {
        "slowness" => slow.address,
        "tokens" => guarded.address,
        _ => plain.address,
    });
    print_table("cofferdam", &outcomes);
    for (pid, (descriptors, memory)) in web.into_iter().zip(before) {
        until("no descriptor more than before is open", PATIENCE, || {
            (holdings(pid).0 <= descriptors).then_some(())
        });
        let after = memory_kib(pid);
        println!("memory: {memory} KiB before, {after} KiB after");
        assert!(after <= memory + GROWTH_KIB, "the memory of {pid} has grown");
    }
    for service in [&plain, &slow] {
        service::waiters(service, 0.0);
    }
    assert_eq!(plain.child("web"), web[0], "the web process is the one from the start");
    println!("all of it took {:?}", begun.elapsed());
    assert_met(&outcomes);
}

#[test]
fn the_judge_sees_each_way_to_be_wrong() {
    let text = "case a\nclass MUST\nwhy because\nsend x\nexpect 100 200\nothers 200 or 400 or none\nheader a: b\nabsent c\nwithout d: e\nbody hi\nafter 5\nend closed\n";
    let case = &parse("feature", text, &|_, _| String::new()).expect("a case")[0];
    let ours = "cache-control: no-store\r\ntraceparent: t\r\n";
    let answer = |status: &str, fields: &str, body: &str| {
        let length = body.len();
        format!("HTTP/1.1 {status} X\r\n{ours}{fields}content-length: {length}\r\n\r\n{body}")
    };
    let go_on = "HTTP/1.1 100 Continue\r\n\r\n".to_owned();
    let right = go_on.clone() + &answer("200", "a: abc\r\nd: f\r\n", "ohio");
    let judged = |said: &str, closed: Option<u64>, is_ours| {
        let closed = closed.map(Duration::from_millis);
        let first = Some(Duration::from_millis(5));
        judge(case, &Talk { said: said.into(), first, closed }, is_ours, GATE)
    };
    assert_eq!(judged(&right, Some(5), true), Ok(()));
    for (said, closed) in [
        (right.clone(), None),
        (right.clone() + &right, Some(5)),
        (right.clone() + "x", Some(5)),
        (right[..right.len() - 1].to_owned(), Some(5)),
        (right.replace(ours, ""), Some(5)),
        (right.replace("200 X", "201 X"), Some(5)),
        (answer("200", "a: abc\r\nd: f\r\n", "hi"), Some(5)),
        (go_on.clone() + &answer("200", "a: ac\r\nd: f\r\n", "hi"), Some(5)),
        (go_on.clone() + &answer("200", "d: f\r\n", "hi"), Some(5)),
        (go_on.clone() + &answer("200", "a: abc\r\nd: def\r\n", "hi"), Some(5)),
        (go_on.clone() + &answer("200", "a: abc\r\nc: 1\r\n", "hi"), Some(5)),
        (go_on + &answer("200", "a: abc\r\n", "ho"), Some(5)),
        (String::new(), Some(5)),
    ] {
        assert!(judged(&said, closed, true).is_err(), "{said}");
    }
    let late =
        Talk { said: right.into(), first: Some(Duration::from_millis(6)), closed: Some(Duration::ZERO) };
    assert!(judge(case, &late, true, GATE).is_err());
    // Another server is held to statuses, and to the end where it answers as we do.
    let (plain, refused) = (answer("200", "", ""), answer("400", "", ""));
    assert_eq!(judged(&plain, Some(5), false), Ok(()));
    assert_eq!(judged(&refused, None, false), Ok(()));
    assert_eq!(judged("", Some(5), false), Ok(()));
    for (said, closed) in [(plain.clone(), None), (plain.clone() + &plain, Some(5)), (String::new(), None)] {
        assert!(judged(&said, closed, false).is_err(), "{said}");
    }
    for wrong in ["send x\n", "case a\nclass ANY\n", "case a\nwhy b\n", "case a\nwhy b\nsend \\q\n"] {
        assert!(parse("feature", wrong, &|_, _| String::new()).is_err(), "{wrong}");
    }
}

#[test]
fn the_gate_alone_answers_the_same_in_pieces_of_any_size() {
    let tokens = make_tokens();
    let parsed = tokens::parse(&tokens.lines).expect("the program's own lines");
    let cases = of_groups(&|_| true, &|case, word| match word {
        "job" | "running" => "0".repeat(32),
        _ => tokens.word(case, word),
    });
    let (mut outcomes, mut left_out) = (Vec::new(), 0);
    for case in cases.iter().filter(|case| !case.needs_service) {
        let web = case_gate::web(case.group == "slowness", case.group == "tokens");
        let length: usize =
            case.steps.iter().map(|step| if let Step::Send(bytes) = step { bytes.len() } else { 0 }).sum();
        for piece in [WHOLE, 1, 7].into_iter().filter(|piece| *piece > 1 || length < BY_BYTES) {
            let Some(mut talk) = case_gate::converse(case, &web, &parsed, piece) else {
                left_out += 1;
                break;
            };
            if piece < WHOLE {
                without_continue(case, &mut talk);
            }
            let said =
                if piece == WHOLE { "as it is written".into() } else { format!("in pieces of {piece}") };
            let result = judge(case, &talk, true, GATE).map_err(|why| format!("{said}: {why}"));
            outcomes.push(Outcome { case, result });
        }
    }
    print_table("gate", &outcomes);
    assert!(left_out < cases.len() / 5, "{left_out} of {} cases ask for pages", cases.len());
    assert_met(&outcomes);
}

/// If a client is told to go on depends on whether a byte of its body is there with the head.
fn without_continue(case: &Case, talk: &mut Talk) {
    const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    if case.expect.iter().all(|expected| expected.status != 100) && talk.said.starts_with(CONTINUE) {
        talk.said.drain(..CONTINUE.len());
    }
}

/// The cases of these groups.
fn of_groups(is_wanted: &dyn Fn(&str) -> bool, words: cases::Words<'_>) -> Vec<Case> {
    let mut all = Vec::new();
    for (group, text) in GROUPS.into_iter().filter(|(group, _)| is_wanted(group)) {
        all.extend(parse(group, text, words).unwrap_or_else(|why| panic!("tests/http_cases/{why}")));
    }
    all
}

/// Says all of them, many at a time: the slow ones wait beside each other.
fn say_all<'a>(
    cases: &[&'a Case],
    is_ours: bool,
    server: impl Fn(&Case) -> SocketAddr + Sync,
) -> Vec<Outcome<'a>> {
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    // Those that take longest begin first.
    let is_slow = |case: &&Case| !matches!(case.group, "slowness" | "load" | "limits");
    let mut ordered = cases.to_vec();
    ordered.sort_by_key(is_slow);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = ordered.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = say(case, is_ours, server(case));
                    outcomes.lock().expect("no thread panics").push(Outcome { case, result });
                }
            });
        }
    });
    outcomes.into_inner().expect("no thread panics")
}

/// Says one; again if it is not met and the machine stood still meanwhile, so that no pause was as long as it says.
fn say(case: &Case, is_ours: bool, server: SocketAddr) -> Result<(), String> {
    const TRIES: usize = 5;
    const STALLED: Duration = Duration::from_millis(50);
    let mut result = Ok(());
    for _ in 0..TRIES {
        let (begun, watch) = (Instant::now(), Stopwatch::start());
        result = say_once(case, is_ours, server);
        // The watch is read first: the time between the two is no stall.
        let running = watch.elapsed();
        if result.is_ok() || begun.elapsed() < running + STALLED {
            break;
        }
    }
    result
}

/// With as many clients as it wants.
fn say_once(case: &Case, is_ours: bool, server: SocketAddr) -> Result<(), String> {
    std::thread::scope(|scope| {
        let one = || judge(case, &case_sockets::converse(case, server, is_ours)?, is_ours, SOCKETS);
        let clients: Vec<_> = (0..case.clients).map(|_| scope.spawn(one)).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("no client panics"))
    })
}

/// A line a group: how many of its cases passed, of each class. Then what failed.
fn print_table(whose: &str, outcomes: &[Outcome<'_>]) {
    let mut counts: BTreeMap<usize, [[usize; 2]; 3]> = BTreeMap::new();
    for Outcome { case, result } in outcomes {
        let group = GROUPS.iter().position(|(group, _)| *group == case.group).unwrap_or(GROUPS.len());
        let of_class = &mut counts.entry(group).or_default()[case.class as usize];
        of_class[0] += usize::from(result.is_ok());
        of_class[1] += 1;
    }
    let cell = |[passed, all]: [usize; 2]| if all == 0 { "-".into() } else { format!("{passed}/{all}") };
    let row = |name: &str, row: [[usize; 2]; 3]| {
        let sum = row.iter().fold([0, 0], |sum, it| [sum[0] + it[0], sum[1] + it[1]]);
        let [must, should, ours] = row.map(cell);
        println!("{name:12} {must:>9} {should:>9} {ours:>9} {:>9}", cell(sum));
    };
    println!("{whose}\n{:12} {:>9} {:>9} {:>9} {:>9}", "group", "MUST", "SHOULD", "OURS", "all");
    let mut sum = [[0; 2]; 3];
    for (group, of_group) in &counts {
        row(GROUPS[*group].0, *of_group);
        for (sum, it) in sum.iter_mut().zip(of_group) {
            (sum[0], sum[1]) = (sum[0] + it[0], sum[1] + it[1]);
        }
    }
    row("all", sum);
    for (case, why) in failures(outcomes) {
        println!("{} {}/{} ({}): {why}", case.class.name(), case.group, case.name, case.why);
    }
}

fn failures<'a>(outcomes: &'a [Outcome<'_>]) -> impl Iterator<Item = (&'a Case, &'a String)> {
    outcomes.iter().filter_map(|outcome| Some((outcome.case, outcome.result.as_ref().err()?)))
}

#[track_caller]
fn assert_met(outcomes: &[Outcome<'_>]) {
    let binding = failures(outcomes).filter(|(case, _)| case.class != Class::Should);
    let names: Vec<String> =
        binding.map(|(case, why)| format!("{}/{}: {why}", case.group, case.name)).collect();
    assert!(names.is_empty(), "{} cases are not met:\n{}", names.len(), names.join("\n"));
}

/// Tokens as the program makes them, and the lines of their file.
struct Tokens {
    of: BTreeMap<&'static str, String>,
    lines: String,
}

impl Tokens {
    /// A word of a case: a token, or the address of the case's own client.
    fn word(&self, case: usize, word: &str) -> String {
        if word == "client" {
            return format!("10.0.{}.{}", case / 250, case % 250 + 1);
        }
        self.of.get(word).unwrap_or_else(|| panic!("nobody knows ${word}")).clone()
    }
}

fn make_tokens() -> Tokens {
    let (mut of, mut lines) = (BTreeMap::new(), String::new());
    for (name, scopes, handlers, limit) in [
        ("submit", "submit", "*", ""),
        ("read", "read", "*", ""),
        ("admin", "admin", "*", ""),
        ("echo", "submit,read", "echo", ""),
        ("rated", "submit", "*", " rate_per_second=2"),
    ] {
        let arguments = ["token", name, "--scopes", scopes, "--handlers", handlers];
        let output = run(&mut command(&cofferdam(), arguments), b"");
        let text = String::from_utf8(output.stdout).expect("a token is text");
        let (token, line) = text.trim_end().split_once('\n').expect("a token and its line");
        of.insert(name, token.to_owned());
        lines += &format!("{line}{limit}\n");
    }
    Tokens { of, lines }
}

/// A file that only its owner reads.
fn write_private(path: &std::path::Path, text: &str) {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).expect("a new file");
    file.write_all(text.as_bytes()).expect("it is written");
}

/// What a process has in memory.
fn memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
