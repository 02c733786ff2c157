//! The worker programs and the modules that people copy: each with its own runtime, where that is installed.
//!
//! It guards examples/workers and clients: they speak the protocol of docs/workers.md, and the challenge as a Python worker
//! gives the bytes of the functions, in every profile, with executors and workers killed.

#[path = "../tools/fund-load/generator.rs"]
mod generator;
#[path = "support/oracle.rs"]
mod oracle;
#[cfg(feature = "redis")]
#[path = "support/own_redis.rs"]
mod own_redis;
#[path = "support/parity.rs"]
mod parity;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use oracle::Rules;
use parity::{UNDYING, assert_same, challenge, seed, turn};
use program::{Folder, cofferdam, command, run, shown, wait};
use serde_json::{Value, json};
use service::{PATIENCE, Service, all_children, children, kill, until, with_harm};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// True if the program is installed; said, if not.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok()
        || Command::new(program).arg("version").output().is_ok();
    if !found {
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no {program}");
    }
    found
}

/// A worker program as a handler.
fn worker(name: &str, command: &[&str], more: &Value) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut options = json!({"command": command, "mode": "worker", "env": {"PATH": path}});
    for (key, value) in more.as_object().expect("options") {
        options[key] = value.clone();
    }
    format!("handlers.{name}={options}")
}

const JSON: [&str; 1] = ["Content-Type: application/json"];

fn post(service: &Service, handler: &str, body: &Value) -> service::Answer {
    let target = format!("/v1/jobs/{handler}");
    service.request("POST", &target, &JSON, body.to_string())
}

/// JSON that is nested deeper than the languages read it.
fn nested() -> String {
    let depth = 20_000;
    "[".repeat(depth) + &"]".repeat(depth)
}

/// The same of each example: it shouts, counts in its lane's state, and refuses what is none of its business.
fn shouts(command: &[&str]) {
    let service = Service::start(&[&worker("shout", command, &json!({"ordering": "serial"}))]);
    for (text, seen) in [("hello", 1), ("a b", 2), ("", 3)] {
        let answer = post(&service, "shout", &json!({"text": text}));
        assert_eq!(answer.json(), json!({"seen": seen, "text": text.to_uppercase()}), "{command:?}");
    }
    let answer = post(&service, "shout", &json!({"words": 1}));
    assert_eq!(
        (answer.code().as_str(), &answer.json()["detail"]),
        ("handler_failed", &json!("text is missing"))
    );
    // What its language cannot read fails at once, and ends no worker: the next job finds the same one.
    let workers = all_children(service.child("executor"));
    let deep = service.request("POST", "/v1/jobs/shout", &JSON, nested());
    assert_eq!(deep.code(), "handler_failed", "{command:?}: {}", deep.text());
    let separated = post(&service, "shout", &json!({"text": "a\u{2028}b"}));
    assert_eq!(separated.json(), json!({"seen": 4, "text": "A\u{2028}B"}), "{command:?}");
    assert_eq!(all_children(service.child("executor")), workers, "{command:?}");
    // Its state is the service's.
    all_children(service.child("executor")).into_iter().for_each(kill);
    let answer = post(&service, "shout", &json!({"text": "again"}));
    assert_eq!(answer.json(), json!({"seen": 5, "text": "AGAIN"}), "{command:?}");
    let answer = service.post("/v1/batch/shout", "{\"text\":\"x\"}\n".repeat(50));
    let lines: Vec<Value> =
        answer.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((lines.len(), &lines[49]), (50, &json!({"seen": 55, "text": "X"})), "{command:?}");
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
}

macro_rules! shouting {
    ($($name:ident: $runtime:literal, $file:literal;)*) => {$(
        #[test]
        fn $name() {
            if has($runtime) {
                shouts(&[root().join("examples/workers").join($file).to_str().expect("text")]);
            }
        }
    )*};
}

shouting! {
    the_worker_in_python_shouts: "python3", "shout.py";
    the_worker_in_javascript_shouts: "node", "shout.mjs";
    the_worker_in_ruby_shouts: "ruby", "shout.rb";
    the_worker_in_perl_shouts: "perl", "shout.pl";
    the_worker_in_php_shouts: "php", "shout.php";
}

#[test]
fn the_worker_in_posix_shell_shouts() {
    shouts(&[root().join("examples/workers/shout.sh").to_str().expect("text")]);
}

#[test]
fn the_worker_in_go_shouts() {
    if !has("go") {
        return;
    }
    let folder = Folder::new();
    let binary = folder.path("shout");
    let source = root().join("examples/workers/shout.go");
    let mut build = Command::new("go");
    build
        .env("GOCACHE", folder.path("cache"))
        .env("GOFLAGS", "-mod=mod")
        .args(["build", "-o"])
        .arg(&binary)
        .arg(source);
    let output = build.output().expect("go is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    shouts(&[binary.to_str().expect("text")]);
}

/// A handler of each kind, written with the module; the words of the two languages differ.
const PYTHON: &str = r#"
import sys, time
sys.path.insert(0, sys.argv[1])
from cofferdam_worker import Fail, Retry, handler, main

@handler
def double(job):
    print("a word", job.handler)
    if isinstance(job.payload, bytes): return job.payload * 2
    if job.payload == "fail": raise Fail("no")
    if job.payload == "bug": return 1 / 0
    if job.payload == "deep":
        deep = []
        for _ in range(20_000): deep = [deep]
        return deep
    if job.payload == "retry" and job.delivery < 3: raise Retry("later", after=0.001)
    job.state["n"] = str(int(job.state.get("n", "0")) + 1)
    if job.payload == "forget": del job.state["n"]
    if job.payload == "slow": job.progress({"half": True}); time.sleep(1.5)
    job.context["last"] = "seen"
    if job.payload == "next": job.submit("double", "from", key=job.key)
    return [job.payload, job.state.get("n"), job.key]

main()
"#;
const JAVASCRIPT: &str = r#"
const { Fail, Retry, work } = await import(process.argv[2] + "/cofferdam_worker.mjs");
work({
  async double(job) {
    console.log("a word", job.handler);
    if (Buffer.isBuffer(job.payload)) return new Uint8Array([...job.payload, ...job.payload]);
    if (job.payload === "fail") throw new Fail("no");
    if (job.payload === "bug") return nothing.at.all;
    if (job.payload === "deep") {
      let deep = [];
      for (let depth = 0; depth < 20_000; depth += 1) deep = [deep];
      return deep;
    }
    if (job.payload === "retry" && job.delivery < 3) throw new Retry("later", 0.001);
    job.state.set("n", String(Number(job.state.get("n") ?? 0) + 1));
    if (job.payload === "forget") job.state.delete("n");
    if (job.payload === "slow") {
      job.progress({ half: true });
      await new Promise((later) => setTimeout(later, 1500));
    }
    job.context.set("last", "seen");
    if (job.payload === "next") job.submit("double", "from", { key: job.key });
    return [job.payload, job.state.get("n") ?? null, job.key];
  },
});
"#;

fn module_works(runtime: &str, file: &str, text: &str, module: &str, caller: &str) {
    let folder = Folder::new();
    let program = folder.file(file, text).display().to_string();
    let module = root().join("clients").join(module).display().to_string();
    let more = json!({"ordering": {"key": "/k"}});
    let service = Service::start(&[&worker("double", &["/usr/bin/env", runtime, &program, &module], &more)]);
    let keyed = |body: &str| {
        let headers = ["Ordering-Key: k", "Content-Type: application/json"];
        service.request("POST", "/v1/jobs/double", &headers, body)
    };
    assert_eq!(keyed("1").json(), json!([1, "1", "k"]));
    assert_eq!(keyed("\"next\"").json(), json!(["next", "2", "k"]));
    until("the follow-up has run", Duration::from_secs(5), || {
        (service.metric("jobs_finished_total{handler=\"double\",status=\"succeeded\"}") == 3.0).then_some(())
    });
    assert_eq!(keyed("null").json(), json!([null, "4", "k"]));
    assert_eq!(
        (keyed("\"fail\"").code(), keyed("\"bug\"").code()),
        ("handler_failed".into(), "handler_failed".into())
    );
    // Neither a job that the language cannot read nor a result that it cannot write takes the worker along.
    let workers = all_children(service.child("executor"));
    for (what, body) in [("a payload", &*nested()), ("a result", "\"deep\"")] {
        let answer = keyed(body);
        assert_eq!(answer.code(), "handler_failed", "{what}: {}", answer.text());
    }
    let long = service.request(
        "POST",
        "/v1/jobs/double",
        &[&JSON[..], &["Ordering-Key: long"]].concat(),
        "1".repeat(5_000),
    );
    assert!(long.status == 200 || long.code() == "handler_failed", "{}", long.text());
    assert_eq!(all_children(service.child("executor")), workers);
    assert_eq!(keyed("\"retry\"").json(), json!(["retry", "5", "k"]));
    assert_eq!(keyed("\"forget\"").json(), json!(["forget", null, "k"]));
    assert_eq!(keyed("1").json(), json!([1, "1", "k"]));
    let headers = ["Ordering-Key: k", "Content-Type: application/json"];
    let id = service.submit("/v1/jobs/double", &headers, "\"slow\"");
    let record = || service.request("GET", &format!("/v1/jobs/{id}"), &[], "").json();
    let seen = until("its progress is seen", Duration::from_secs(5), || {
        Some(record()).filter(|record| !record["progress"].is_null())
    });
    assert_eq!((&seen["status"], &seen["progress"]), (&json!("running"), &json!({"half": true})));
    service.record_when(&id, "succeeded");
    let bytes = service.request("POST", "/v1/jobs/double", &["Ordering-Key: k"], b"\xff\x00");
    assert_eq!(
        (bytes.header("content-type"), &*bytes.body),
        (Some("application/octet-stream"), &b"\xff\x00\xff\x00"[..])
    );
    assert!(service.stderr().contains("text=\"a word double\""), "{}", service.stderr());
    // The same file is a client.
    let caller = folder.file(&format!("caller-{file}"), caller).display().to_string();
    let output =
        Command::new(runtime).args([&caller, &module, &format!("http://{}", service.address)]).output();
    let output = output.expect("it is there");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "right\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_python_module_is_a_worker_and_a_client() {
    let caller = r#"
import sys
sys.path.insert(0, sys.argv[1])
from cofferdam_worker import Client, Failed
client = Client(sys.argv[2])
assert client.call("echo", {"a": 1}) == {"a": 1}
assert client.call("echo", b"\xff") == b"\xff"
job = client.submit("echo", [1], idempotency_key="one")
assert client.submit("echo", [1], idempotency_key="one") == job
assert client.wait(job, timeout=5)["result"] == [1]
assert client.batch("echo", [1, "two", None]) == [1, "two", None]
slow = client.submit("sleep", {"ms": 60000})
assert client.cancel(slow)["status"] == "cancelled"
assert client.retry(slow)["status"] in ("queued", "running")
client.cancel(slow)
try:
    client.call("double", "fail", key="k")
    raise SystemExit("it failed")
except Failed as failed:
    assert (failed.code, failed.status) == ("handler_failed", 422) and failed.job
try:
    client.record("0" * 32)
    raise SystemExit("there is none")
except Failed as failed:
    assert failed.code == "unknown_job"
print("right")
"#;
    if has("python3") {
        module_works("python3", "double.py", PYTHON, "python", caller);
    }
}

#[test]
fn the_javascript_module_is_a_worker_and_a_client() {
    let caller = r#"
import assert from "node:assert";
const { Client } = await import(process.argv[2] + "/cofferdam_worker.mjs");
const client = new Client(process.argv[3]);
assert.deepEqual(await client.call("echo", { a: 1 }), { a: 1 });
assert.deepEqual(await client.call("echo", Buffer.from([255])), Buffer.from([255]));
assert.deepEqual(await client.call("echo", new Uint8Array([255])), Buffer.from([255]));
const job = await client.submit("echo", [1], { idempotencyKey: "one" });
assert.equal(await client.submit("echo", [1], { idempotencyKey: "one" }), job);
assert.deepEqual((await client.wait(job)).result, [1]);
assert.deepEqual(await client.batch("echo", [1, "two", null]), [1, "two", null]);
const slow = await client.submit("sleep", { ms: 60000 });
assert.equal((await client.cancel(slow)).status, "cancelled");
assert.ok(["queued", "running"].includes((await client.retry(slow)).status));
await client.cancel(slow);
await assert.rejects(client.call("double", "fail", { key: "k" }), { code: "handler_failed", status: 422 });
await assert.rejects(client.record("0".repeat(32)), { code: "unknown_job" });
console.log("right");
"#;
    if has("node") {
        module_works("node", "double.mjs", JAVASCRIPT, "node", caller);
    }
}

/// A request with its body, or what begins a handshake of TLS.
fn is_whole(heard: &[u8]) -> bool {
    let text = String::from_utf8_lossy(heard).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return heard.starts_with(&[22, 3]) };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

/// One who listens instead of a service, and answers each connection with the next of these; an empty one is no answer. What came over each
/// connection.
fn answers(listener: &TcpListener, answers: &[&str]) -> Vec<Vec<u8>> {
    let answer = |text: &&str| {
        let (mut stream, _) = until("a client comes", PATIENCE, || listener.accept().ok());
        let mut heard = Vec::new();
        while !is_whole(&heard) {
            let mut part = [0; 4_096];
            let length = stream.read(&mut part).expect("it says something");
            assert!(length > 0, "it says all of it: {heard:?}");
            heard.extend_from_slice(&part[..length]);
        }
        stream.write_all(text.as_bytes()).expect("it listens");
        heard
    };
    answers.iter().map(answer).collect()
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}")
}

/// A caller whose questions meet a service that is lost, then stops, then is away behind a proxy, and then is there again; and
/// whose other requests are not repeated where the job may have been accepted.
fn asks_again(runtime: &str, file: &str, text: &str, module: &str) {
    let folder = Folder::new();
    let caller = folder.file(file, text);
    let module = root().join("clients").join(module);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let port = listener.local_addr().expect("it listens").port().to_string();
    let mut caller = command(
        Path::new("/usr/bin/env"),
        [runtime.as_ref(), caller.as_os_str(), module.as_os_str(), port.as_ref()],
    );
    caller.env("PATH", std::env::var_os("PATH").expect("a path"));
    let caller = caller.spawn().expect("it is there");
    let problem = r#"{"code":"draining","detail":"the service stops"}"#;
    let draining = answer("503 Service Unavailable", "Retry-After: 1\r\nCofferdam-Job-Id: 1\r\n", problem);
    let away = answer("502 Bad Gateway", "", "<html>");
    let record =
        answer("200 OK", "Content-Type: application/json\r\n", r#"{"status":"succeeded","result":7}"#);
    let heard = answers(&listener, &["", &draining, &away, &record, "", &record, &draining, "", ""]);
    let is_question = |heard: &Vec<u8>| heard.starts_with(b"GET /v1/jobs/1?wait=");
    let output = wait(caller);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "right\n", "{}", shown(&output));
    assert!(heard[..4].iter().all(is_question), "{heard:?}");
    let key = |heard: &Vec<u8>| {
        let text = String::from_utf8_lossy(heard).to_lowercase();
        text.lines().find(|line| line.starts_with("idempotency-key")).map(str::to_owned)
    };
    assert!(key(&heard[4]).is_some() && key(&heard[4]) == key(&heard[5]), "{heard:?}");
    assert!(
        heard[6].starts_with(b"POST /v1/jobs/1/retry ") && heard[7].starts_with(b"POST /v1/batch/"),
        "{heard:?}"
    );
    assert!(heard[8].starts_with(&[22, 3]), "{heard:?}");
}

#[test]
fn the_python_client_waits_through_an_upgrade_and_keeps_its_token_to_itself() {
    let caller = r#"
import sys
sys.path.insert(0, sys.argv[1])
from cofferdam_worker import Client, Failed
service = "127.0.0.1:" + sys.argv[2]
client = Client("http://" + service)
assert client.wait("1", timeout=20)["result"] == 7
assert client.call("echo", 7)["result"] == 7
try:
    client.retry("1")
    raise SystemExit("it may have been done")
except Failed as failed:
    assert (failed.code, failed.job) == ("draining", "1")
try:
    client.batch("echo", [1])
    raise SystemExit("it may have been done")
except ConnectionError:
    pass
try:
    Client("https://" + service, token="cfd_secret", patience=0).record("1")
    raise SystemExit("it speaks TLS")
except OSError:
    pass
for url in [service, "ftp://" + service, "http://ann:secret@" + service, "http://" + service + "/v1", "http://"]:
    try:
        Client(url)
        raise SystemExit(url)
    except ValueError as error:
        assert "secret" not in str(error)
print("right")
"#;
    if has("python3") {
        asks_again("python3", "caller.py", caller, "python");
    }
}

#[test]
fn the_javascript_client_waits_through_an_upgrade_and_keeps_its_token_to_itself() {
    let caller = r#"
import assert from "node:assert";
const { Client } = await import(process.argv[2] + "/cofferdam_worker.mjs");
const service = "127.0.0.1:" + process.argv[3];
const client = new Client("http://" + service);
assert.equal((await client.wait("1")).result, 7);
assert.equal((await client.call("echo", 7)).result, 7);
await assert.rejects(client.retry("1"), { code: "draining", job: "1" });
await assert.rejects(client.batch("echo", [1]), TypeError);
await assert.rejects(new Client("https://" + service, { token: "cfd_secret", patience: 0 }).record("1"), TypeError);
for (const url of [service, `ftp://${service}`, `http://ann:secret@${service}`, `http://${service}?v1`, "http://"]) {
  assert.throws(() => new Client(url), (error) => error instanceof TypeError && !error.message.includes("secret"), url);
}
console.log("right");
"#;
    if has("node") {
        asks_again("node", "caller.mjs", caller, "node");
    }
}

/// Enough for executors and workers to be killed meanwhile; each question brings the whole state.
const LINES: usize = 1_200;

fn fund_load(name: &str) -> String {
    let program = root().join("examples/workers/fund_load.py").display().to_string();
    let more =
        json!({"ordering": "serial", "max_deliveries": 1_000_000, "retry": {"base_ms": 1, "max_ms": 1}});
    worker(name, &["/usr/bin/env", "python3", &program], &more)
}

/// A batch of the lines by the Python worker, with these settings too.
fn batch(handler: &str, input: &[u8], sets: &[String], kills: Option<u64>) -> Vec<u8> {
    let folder = Folder::new();
    let file = folder.file("input.ndjson", input).display().to_string();
    let mut arguments: Vec<String> =
        ["batch", "--progress", "never", "--handler", handler, "--input", &file].map(str::to_owned).into();
    for set in [fund_load(handler)].iter().chain(sets) {
        arguments.extend(["--set".to_owned(), set.clone()]);
    }
    let mut command = command(&cofferdam(), &arguments);
    let Some(mut random) = kills else {
        let output = run(&mut command, b"");
        assert!(output.status.success(), "{}", shown(&output));
        return output.stdout;
    };
    let child = command.spawn().expect("it can be started");
    let pid = child.id();
    let harm = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let executors = children(pid, "executor");
        let workers: Vec<u32> = executors.iter().flat_map(|executor| all_children(*executor)).collect();
        let victims = if random >> 63 == 0 || workers.is_empty() { executors } else { workers };
        if !victims.is_empty() {
            kill(victims[(random >> 33) as usize % victims.len()]);
        }
        (!victims.is_empty(), Duration::from_millis(150))
    };
    let (output, kills) = with_harm(harm, || wait(child));
    println!("{kills} kills");
    assert!(output.status.success() && kills > 0, "{kills} kills: {}", shown(&output));
    output.stdout
}

#[test]
fn the_challenge_in_python_gives_the_oracles_bytes_in_every_profile() {
    if !has("python3") {
        return;
    }
    let (_turn, seed) = (turn(), seed());
    let input = generator::generate(seed, LINES);
    let what = format!("seed {seed}");
    for (handler, rules) in [("fund_load", Rules::Baseline), ("fund_load_exp", Rules::Experiment)] {
        let expected = oracle::decide(&input, rules);
        let inline = ["runtime.platform.bootstrap.mode=inline".to_owned()];
        assert_same(&batch(handler, &input, &inline, None), &expected, &what);
        assert_same(&batch(handler, &input, &[], None), &expected, &what);
        let undying = [UNDYING.to_owned()];
        assert_same(&batch(handler, &input, &undying, Some(seed)), &expected, &what);
    }
    #[cfg(feature = "redis")]
    {
        let (server, folder) = (own_redis::Server::start(&[]), Folder::new());
        let sets = program::on_redis(&server.url(), &folder, program::SECRET);
        let sets: Vec<String> = sets.into_iter().chain([UNDYING.to_owned()]).collect();
        let expected = oracle::decide(&input, Rules::Baseline);
        assert_same(&batch("fund_load", &input, &sets, Some(seed)), &expected, &what);
    }
    if let Some((input, output)) = challenge() {
        assert_same(&batch("fund_load", &input, &[], None), &output, "the published input");
    }
}
