//! The README's tour works as printed: each of its commands runs against a real service, only the address and the
//! way to the binary are put in. docs/http.md names every route and every code.

mod support {
    pub mod program;
    pub mod service;
}

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use cofferdam::problem::Code;
use support::program::{self, Folder};
use support::service::{PATIENCE, Service, until};

/// The indented commands of the tour, in their order.
fn commands() -> Vec<String> {
    let readme = include_str!("../README.md");
    let tour =
        readme.split("## A tour").nth(1).and_then(|rest| rest.split("## More").next()).expect("a tour");
    // The chapter about Redis has servers of its own: `every_command_of_the_redis_chapter…`.
    let (before, rest) = tour.split_once("## Several hosts").expect("a chapter about Redis");
    let (_, after) = rest.split_once("## Configuration").expect("one about the configuration");
    commands_in(&[before, after].concat())
}

fn commands_in(text: &str) -> Vec<String> {
    let is_command = |line: &&str| {
        ["curl", "printf", "cargo", "echo", "for", "redis-server"].iter().any(|word| line.starts_with(word))
    };
    text.lines().filter_map(|line| line.strip_prefix("    ")).filter(is_command).map(str::to_owned).collect()
}

fn run(command: &str, address: &str) -> String {
    let binary = program::cofferdam().display().to_string();
    let fund_load = program::example("fund-load").display().to_string();
    let generate = program::example("generate").display().to_string();
    let command = command
        .replace("curl ", "curl -sS --max-time 20 ")
        .replace("127.0.0.1:8080", address)
        .replace("cargo run --release --example generate --", &generate)
        .replace("cargo run --release --example fund-load --", &fund_load)
        .replace("cargo run --release --", &binary);
    let mut shell = Command::new("sh");
    shell.args(["-c", &command]).stdin(Stdio::null()).env("COFFERDAM_URL", format!("http://{address}"));
    let output = shell.output().expect("sh runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn u12_every_command_of_the_tour_does_what_the_text_says_in_its_order() {
    let mut service = Service::start(&[]);
    let mut shown = Vec::new();
    for command in commands() {
        if let Some((_, set)) = command.split_once("-- serve --set ") {
            // "Stop the service, and start it again with": all that follows meets this one.
            drop(service);
            service = Service::start(&[set.trim_matches('\'')]);
            continue;
        }
        let text = run(&command, &service.address.to_string());
        assert!(!text.contains("urn:cofferdam:error"), "{command}: {text}");
        shown.push((command, text));
    }
    let of = |part: &str| -> Vec<&str> {
        shown.iter().filter(|(command, _)| command.contains(part)).map(|(_, text)| text.as_str()).collect()
    };
    assert_eq!(of(r#"-d '{"hello":1}'"#), [r#"{"hello":1}"#]);
    assert!(of("respond-async")[0].starts_with("HTTP/1.1 202 "));
    let replayed: Vec<bool> =
        of("order-17").iter().map(|text| text.contains("idempotency-replayed: true")).collect();
    assert_eq!(replayed, [false, true]);
    assert_eq!(of("step"), [r#"{"account":"A","step":1}"#, "step 2"]);
    assert_eq!(of(r"1\n2\n3"), ["1\n2\n3\n", "1\n2\n3\n"]);
    assert_eq!(of("/v1/jobs/sort"), ["a\nb\n"]);
    assert_eq!(of("jobs submit"), [r#"{"hello":1}"#]);
    assert_eq!(of("jobs list")[0].lines().count(), 4);
    assert_eq!(of("jobs retry"), ["0 jobs match\n"]);
    assert!(of("-- top")[0].contains("execution"));
    let shouted: Vec<serde_json::Value> =
        of("shout").iter().map(|text| serde_json::from_str(text).expect("JSON")).collect();
    let once = serde_json::json!({"seen": 1, "text": "HELLO"});
    assert_eq!(shouted, [once.clone(), once]);
    assert_eq!(of("fund_load")[0].lines().count(), 1_000);
    assert!(of("check")[0].contains("web.max_inflight = 100 (from --set)"));
}

/// What stands between backquotes and begins with a method, without its query.
fn requests(text: &str) -> BTreeSet<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    let methods = ["GET /", "POST /", "DELETE /"];
    let requests = quoted.filter(|quoted| methods.iter().any(|method| quoted.starts_with(method)));
    requests.map(|request| request.split('?').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn the_http_document_has_every_route_and_every_code_with_its_status() {
    let document = include_str!("../docs/http.md");
    let routes = include_str!("../src/web/routes.rs").lines().filter(|line| line.contains("///"));
    let routes = requests(&routes.collect::<Vec<_>>().join("\n"));
    assert!(routes.len() > 15, "{routes:?}");
    assert_eq!(requests(document), routes);
    let errors = document.split("| code | status | when |").nth(1).expect("a table of errors");
    let rows = errors.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let rows: Vec<(String, u16)> = rows
        .take_while(|(code, _)| Code::parse(code).is_some())
        .map(|(code, rest)| (code.to_owned(), rest[..3].parse().expect("a status")))
        .collect();
    let codes: Vec<(String, u16)> =
        Code::ALL.iter().map(|code| (code.as_str().to_owned(), code.status())).collect();
    let sorted = |mut rows: Vec<(String, u16)>| {
        rows.sort();
        rows
    };
    assert_eq!(sorted(rows), sorted(codes));
}

/// A program of the chapter that runs until it is killed.
struct Running {
    child: Child,
    /// Whose end would end a program that writes more.
    _stdout: BufReader<ChildStdout>,
}

impl Running {
    /// Its first line of standard output, once it serves.
    fn start(command: &str, folder: &Folder) -> (Running, String) {
        let mut child = Command::new("sh")
            .args(["-c", &format!("exec {command}")])
            .current_dir(folder.path(""))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh runs");
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        stdout.read_line(&mut line).expect("it says that it is ready");
        (Running { child, _stdout: stdout }, line)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_command_of_the_redis_chapter_does_what_the_text_says() {
    let readme = include_str!("../README.md");
    let chapter = readme.split("## Several hosts: Redis").nth(1).expect("the chapter");
    let commands = commands_in(chapter.split("## Configuration").next().expect("its end"));
    let folder = Folder::new();
    let redis = support::service::free_address().port().to_string();
    let binary = program::cofferdam().display().to_string();
    // What is put in: ports that are free, and the binary that is built.
    let mut web = String::new();
    let (mut running, mut executors, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for command in &commands {
        let url = format!("redis://127.0.0.1:{redis}/0");
        let mut said = command
            .replace("cargo run --release --", &binary)
            .replace("--port 6379", &format!("--port {redis} --save ''"))
            .replace(r#""execution_ipc""#, &format!(r#""redis":{{"url":"{url}"}},"execution_ipc""#))
            .replace("127.0.0.1:8080", &web);
        let serves = ["redis-server", " web ", " executor "].iter().any(|word| command.contains(word));
        if command.contains(" web ") {
            said += " --set web.bind=127.0.0.1:0";
        }
        if serves {
            let (child, line) = Running::start(&said, &folder);
            if command.contains(" web ") {
                let address = line.strip_prefix("ready http://").and_then(|rest| rest.split(' ').next());
                web = address.unwrap_or_else(|| panic!("{line:?} is no ready line")).to_owned();
            } else if command.contains(" executor ") {
                assert!(line.starts_with("ready http://127.0.0.1:"), "{line:?}");
                executors.push(child.child.id());
            } else {
                until("redis-server listens", PATIENCE, || {
                    std::net::TcpStream::connect(format!("127.0.0.1:{redis}")).ok()
                });
            }
            running.push(child);
            continue;
        }
        let shell = |said: &str| {
            let output = Command::new("sh").args(["-c", said]).current_dir(folder.path("")).output();
            let output = output.expect("sh runs");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{said}: {text}{}", String::from_utf8_lossy(&output.stderr));
            text
        };
        if command.starts_with("for ") {
            // Once as it stands, and once more with an executor that is lost meanwhile.
            let slept = r#"{"slept_ms":3000}"#;
            assert_eq!(shell(&said).matches(slept).count(), 16);
            let again = std::thread::scope(|scope| {
                let callers = scope.spawn(|| shell(&said));
                until("all sixteen run", PATIENCE, || {
                    shell(&format!("curl -s http://{web}/v1/stats")).contains(r#""running":16"#).then_some(())
                });
                support::service::kill(executors[0]);
                callers.join().expect("the callers end")
            });
            assert_eq!(again.matches(slept).count(), 16, "{again}");
        } else {
            answers.push(shell(&said));
        }
    }
    assert!(answers.iter().any(|text| text.contains("survives a crash of the server")), "{answers:?}");
    assert!(answers.last().is_some_and(|text| text.contains(r#""role":"executor""#)), "{answers:?}");
}
