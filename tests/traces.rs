//! Traces: what came with a request's trace goes wherever its job goes, and the spans that are exported are those of the format.
//!
//! It guards `tracestate` from the request to programs, follow-ups and the answer, in memory, with a journal and on Redis; and
//! `observability.traces.file`: each span against the format's rules, what is no file, a full disk, a file that is moved away.

#[cfg(feature = "redis")]
#[path = "support/deployment.rs"]
mod deployment;
#[path = "support/program.rs"]
mod program;
#[cfg(feature = "redis")]
#[path = "support/redis.rs"]
mod redis;
#[path = "support/service.rs"]
mod service;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use program::{Folder, cofferdam, command, run, shown};
use serde_json::{Value, json};
use service::{Client, PATIENCE, Service, free_address, kill, until};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
/// What no span may show.
const SECRET: &str = "nobody-else-may-read-this";

fn traceparent(flags: &str) -> String {
    format!("traceparent: 00-{TRACE}-{PARENT}-{flags}")
}

fn handler(name: &str, options: Value) -> String {
    format!("handlers.{name}={options}")
}

/// `show` answers its trace and what came with it; `ask`, a worker, submits a job to it and answers what came.
fn handlers() -> Vec<String> {
    let ask = r#"s/.*"id":"\([0-9a-f]*\)".*"tracestate":\(.*\),"deadline_ms".*/{"id":"\1","ok":\2,"submit":[{"handler":"show","payload":1}]}/"#;
    vec![
        handler("show", json!({"command": ["sh", "-c", r#"printf '"%s %s"' "$TRACEPARENT" "$TRACESTATE""#]})),
        handler("ask", json!({"command": ["sed", "-u", ask], "mode": "worker"})),
        handler("fails", json!({"command": ["sh", "-c", format!("echo {SECRET} >&2; exit 1")]})),
        handler(
            "again",
            json!({"command": ["sh", "-c", "exit 75"], "max_deliveries": 2, "retry": {"base_ms": 1, "max_ms": 1}}),
        ),
    ]
}

fn serve(own: &[String]) -> Service {
    let sets = [handlers(), own.to_vec()].concat();
    Service::start(&sets.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The record of the one job of this trace and handler, once it has ended.
fn record_of(service: &Service, trace: &str, handler: &str) -> Value {
    until(&format!("a job of {handler} has ended"), PATIENCE, || {
        let list = service.get(&format!("/v1/jobs?trace={trace}&handler={handler}")).json();
        let id = list["jobs"][0]["id"].as_str()?.to_owned();
        Some(service.record(&id)).filter(|record| !record["finished_at"].is_null())
    })
}

fn passes_on(own: &[String]) {
    const STATE: &str = "rojo=00f067aa0ba902b7,congo=a \"b\"";
    let service = serve(own);
    let lines = ["tracestate: rojo=00f067aa0ba902b7", "tracestate: congo=a \"b\""];
    for flags in ["01", "00"] {
        let parent = traceparent(flags);
        let answer = service.request("POST", "/v1/jobs/show", &[&parent, lines[0], lines[1]], "1");
        assert_eq!(answer.header("tracestate"), Some(STATE), "{answer:?}");
        assert_eq!(answer.text(), format!("\"00-{TRACE}-{PARENT}-{flags} {STATE}\""));
    }
    // A trace of its own, so that its follow-up is found.
    let other = TRACE.replace("0af7", "1bf8");
    let parent = format!("traceparent: 00-{other}-{PARENT}-00");
    let answer = service.request("POST", "/v1/jobs/ask", &[&parent, lines[0], lines[1]], "1");
    assert_eq!((answer.json(), answer.header("tracestate")), (json!(STATE), Some(STATE)), "a worker's line");
    let said = result_text(&record_of(&service, &other, "show"));
    assert!(said.starts_with(&format!("\"00-{other}-")), "{said}");
    assert!(said.ends_with(&format!("-00 {STATE}\"")), "a follow-up has what came with its parent: {said}");
    let bare = service.request("POST", "/v1/jobs/ask", &[lines[0]], "1");
    assert_eq!((bare.json(), bare.header("tracestate")), (Value::Null, None), "without a traceparent");
    // A job that is joined keeps its trace, and its caller's answer has the caller's own.
    let keyed = |parent: &str, state: &str| {
        service.request("POST", "/v1/jobs/show", &["Idempotency-Key: k", parent, state], "1")
    };
    let first = keyed(&traceparent("01"), "tracestate: a=1");
    let second = keyed(&parent, "tracestate: b=2");
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
    assert_eq!((first.text(), second.header("tracestate")), (second.text(), Some("b=2")));
    assert_eq!(second.header("traceparent"), parent.strip_prefix("traceparent: "));
}

/// Bytes that are no JSON, as a record has them, or a text.
fn result_text(record: &Value) -> String {
    let bytes = &record["result"]["base64"];
    let Some(text) = bytes.as_str() else { return record["result"].to_string() };
    let output = run(&mut command(Path::new("base64"), ["-d"]), text.as_bytes());
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_tracestate_goes_wherever_its_job_goes() {
    passes_on(&[]);
}

#[cfg(feature = "redis")]
#[test]
fn a_tracestate_goes_wherever_its_job_goes_on_redis() {
    if deployment::can_serve() {
        passes_on(&deployment::Deployment::new("tracestate").sets(&[]));
    }
}

#[test]
fn a_job_has_its_trace_after_a_journal_was_read_again() {
    let folder = Folder::new();
    let journal = format!("runtime.platform.queue.journal.dir={}", folder.path("journal").display());
    let traces = folder.path("traces.jsonl");
    let own = [journal, format!("observability.traces.file={}", traces.display())];
    let service = serve(&own);
    let headers = [&*traceparent("01"), "tracestate: a=1"];
    let id = service.submit("/v1/jobs/show?delay_ms=3000", &headers, "1");
    kill(service.pid);
    drop(service.ended());
    let service = serve(&own);
    let said = result_text(&service.record_when(&id, "succeeded"));
    assert!(said.ends_with("-01 a=1\""), "{said}");
    service.stop();
    let spans = spans_of(&traces);
    let job = spans.iter().find(|span| span["name"] == "job show").expect("its span");
    assert_eq!((&job["parentSpanId"], &job["traceState"]), (&json!(PARENT), &json!("a=1")));
    assert!(said.contains(job["spanId"].as_str().expect("an id")), "its handler saw its span: {said}");
}

/// All spans of a file, each by the rules of the format (opentelemetry.io/docs/specs/otlp, "JSON Protobuf Encoding").
#[track_caller]
fn spans_of(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).expect("there is such a file");
    assert!(text.is_empty() || text.ends_with('\n'), "no line is cut off");
    assert!(!text.contains(SECRET), "nothing secret");
    let mut all = Vec::new();
    for line in text.lines() {
        assert!(line.len() < 1 << 20, "a collector reads no longer lines");
        let request: Value = serde_json::from_str(line).expect("an object a line");
        let of_resource = only(&request, "resourceSpans");
        let resource = attributes(&of_resource["resource"]);
        let names = ["process.pid", "service.instance.id", "service.name", "service.version"];
        assert_eq!(resource.keys().map(String::as_str).collect::<Vec<_>>(), names);
        let of_scope = only(of_resource, "scopeSpans");
        assert_eq!(of_scope["scope"]["name"], "cofferdam");
        let spans = of_scope["spans"].as_array().expect("a list");
        spans.iter().for_each(assert_span);
        all.extend(spans.iter().cloned());
    }
    all
}

#[track_caller]
fn only<'a>(of: &'a Value, list: &str) -> &'a Value {
    let list = of[list].as_array().expect("a list");
    assert_eq!(list.len(), 1);
    &list[0]
}

/// Keys and values; those that are integers stand as texts.
#[track_caller]
fn attributes(of: &Value) -> BTreeMap<String, Value> {
    let attribute = |of: &Value| {
        let value = of["value"].as_object().expect("a value");
        let (kind, value) = value.iter().next().expect("of one kind");
        let is_valid = match kind.as_str() {
            "stringValue" => value.is_string(),
            "intValue" => value.as_str().is_some_and(|digits| digits.parse::<i64>().is_ok()),
            _ => false,
        };
        assert!(is_valid && of.as_object().is_some_and(|of| of.len() == 2), "{of}");
        (of["key"].as_str().expect("a key").to_owned(), value.clone())
    };
    let list = of["attributes"].as_array().expect("a list");
    let all: BTreeMap<String, Value> = list.iter().map(attribute).collect();
    assert_eq!(all.len(), list.len(), "each key once");
    all
}

#[track_caller]
fn assert_span(span: &Value) {
    const KEYS: [&str; 11] = [
        "attributes",
        "endTimeUnixNano",
        "flags",
        "kind",
        "name",
        "parentSpanId",
        "spanId",
        "startTimeUnixNano",
        "status",
        "traceId",
        "traceState",
    ];
    let fields = span.as_object().expect("an object");
    assert!(fields.keys().all(|key| KEYS.contains(&&**key)), "{span}");
    let is_hex = |text: &str, digits| {
        text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |key: &str, digits| span[key].as_str().is_some_and(|text| is_hex(text, digits));
    assert!(is_id("traceId", 32) && is_id("spanId", 16), "{span}");
    assert!(span["parentSpanId"].is_null() || is_id("parentSpanId", 16), "{span}");
    let time = |key: &str| span[key].as_str().and_then(|text| text.parse::<u64>().ok()).expect("nanoseconds");
    let (from, to) = (time("startTimeUnixNano"), time("endTimeUnixNano"));
    assert!(from > 1_600_000_000_000_000_000 && from <= to && to - from < 300_000_000_000, "{span}");
    assert!(matches!(span["kind"].as_u64(), Some(2 | 5)) && span["flags"] == 1, "{span}");
    let own = attributes(span);
    assert_eq!(own["messaging.system"], "cofferdam");
    let is_error = span["status"] == json!({"code": 2});
    assert!(is_error || span["status"] == json!({}), "{span}");
    assert_eq!(is_error, own.contains_key("error.type"), "{span}");
}

/// The spans of this trace, once there are so many.
#[track_caller]
fn spans_when(file: &Path, trace: &str, count: usize) -> Vec<Value> {
    until(&format!("{count} spans"), PATIENCE, || {
        let spans = spans_of(file).into_iter().filter(|span| span["traceId"] == trace).collect::<Vec<_>>();
        (spans.len() >= count).then_some(spans)
    })
}

/// Status, cause and number of deliveries of a job's span; outcome and cause of each delivery in it.
fn story<'a>(spans: &'a [Value], handler: &str) -> (&'a Value, Vec<[String; 3]>) {
    let text = |of: &BTreeMap<String, Value>, key: &str| {
        of.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let job = spans.iter().find(|span| span["name"] == format!("job {handler}").as_str()).expect("its span");
    let own = attributes(job);
    assert_eq!((&job["kind"], &own["messaging.destination.name"]), (&json!(2), &json!(handler)));
    let keys = ["cofferdam.status", "error.type", "cofferdam.deliveries"];
    let mut out = vec![keys.map(|key| text(&own, key))];
    for delivery in spans.iter().filter(|span| span["parentSpanId"] == job["spanId"] && span["kind"] == 5) {
        let of = attributes(delivery);
        assert_eq!(
            (&delivery["name"], &of["messaging.operation.type"]),
            (&json!(format!("process {handler}")), &json!("process"))
        );
        assert_eq!(of["messaging.message.id"], own["messaging.message.id"]);
        assert!(!text(&of, "cofferdam.executor").is_empty());
        out.push([text(&of, "cofferdam.outcome"), text(&of, "error.type"), String::new()]);
    }
    (job, out)
}

fn exports(own: &[String]) {
    let folder = Folder::new();
    let file = folder.path("traces.jsonl");
    let setting = format!("observability.traces.file={}", file.display());
    let service = serve(&[own.to_vec(), vec![setting]].concat());
    let mode = std::fs::metadata(&file).expect("it is there from the start").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let parent_of =
        |answer: &service::Answer| answer.header("traceparent").expect("always")[36..52].to_owned();
    let sampled = traceparent("01");
    let ask = |handler: &str, headers: &[&str]| {
        service.request("POST", &format!("/v1/jobs/{handler}"), headers, json!(SECRET).to_string())
    };
    let (failed, dead) = (ask("fails", &[&sampled, "tracestate: a=1"]), ask("again", &[&sampled]));
    assert_eq!((failed.code(), dead.code()), ("handler_failed".into(), "dead_lettered".into()));
    let shown = ask("ask", &[&sampled]);
    let spans = spans_when(&file, TRACE, 2 + 3 + 2 + 2);
    let row = |row: [&str; 3]| row.map(str::to_owned);
    let (job, told) = story(&spans, "fails");
    let expected = [row(["failed", "handler_failed", "1"]), row(["failed", "handler_failed", ""])];
    assert_eq!(told, expected);
    assert_eq!((&job["parentSpanId"], &job["traceState"]), (&json!(PARENT), &json!("a=1")));
    assert_eq!(job["spanId"], parent_of(&failed), "the answer names a span that is exported");
    let (job, told) = story(&spans, "again");
    let expected = [
        row(["dead", "retries_exhausted", "2"]),
        row(["handler_retry", "handler_retry", ""]),
        row(["dead", "retries_exhausted", ""]),
    ];
    assert_eq!(told, expected);
    assert_eq!(job["spanId"], parent_of(&dead));
    let (job, told) = story(&spans, "ask");
    assert_eq!(told, [row(["succeeded", "", "1"]), row(["succeeded", "", ""])]);
    let (follow_up, _) = story(&spans, "show");
    assert_eq!((&follow_up["parentSpanId"], &job["spanId"]), (&job["spanId"], &json!(parent_of(&shown))));
    // A trace that begins here; one that its caller does not sample; one of a job that is joined; one of no job.
    let begun = ask("show", &[]);
    let trace = begun.header("traceparent").expect("always")[3..35].to_owned();
    let root = spans_when(&file, &trace, 2);
    let (job, _) = story(&root, "show");
    assert_eq!((&job["parentSpanId"], &job["spanId"]), (&Value::Null, &json!(parent_of(&begun))));
    assert!(begun.text().contains(&parent_of(&begun)), "its handler has it as its parent: {begun:?}");
    let unsampled = traceparent("00").replace(TRACE, &TRACE.replace("0af7", "2cf9"));
    assert_eq!(
        Some(&*unsampled),
        ask("fails", &[&unsampled]).header("traceparent").map(|it| format!("traceparent: {it}")).as_deref()
    );
    ask("show", &[&traceparent("01"), "Idempotency-Key: k"]);
    let joined = ask("show", &[&traceparent("01"), "Idempotency-Key: k"]);
    assert_eq!((joined.header("idempotency-replayed"), &*parent_of(&joined)), (Some("true"), PARENT));
    let list = service.request("GET", "/v1/jobs", &[&sampled], "");
    assert_eq!(parent_of(&list), PARENT, "no span is exported of a request that makes no job");
    // A batch: a span a line.
    let batch = sampled.replace(TRACE, &TRACE.replace("0af7", "3df0"));
    let answer = service.request("POST", "/v1/batch/show", &[&batch, "tracestate: b=2"], "1\n2\n3\n");
    assert_eq!((answer.status, answer.header("tracestate")), (200, Some("b=2")), "{answer:?}");
    let lines = spans_when(&file, &TRACE.replace("0af7", "3df0"), 6);
    let jobs: Vec<&Value> = lines.iter().filter(|span| span["kind"] == 2).collect();
    assert!(jobs.len() == 3 && jobs.iter().all(|job| job["parentSpanId"] == PARENT), "{lines:?}");
    let written = service.metric("traces_written_total");
    assert!(written >= 9.0 && service.metric("traces_dropped_total") == 0.0);
    // What has ended is written before the service has.
    let last = ask("show", &[]);
    service.stop();
    let spans = spans_of(&file);
    assert!(spans.iter().any(|span| span["spanId"] == parent_of(&last)));
    assert!(spans.iter().all(|span| span["traceId"] != unsampled[16..48]));
    let ids: std::collections::BTreeSet<_> = spans.iter().map(|span| span["spanId"].to_string()).collect();
    assert_eq!(ids.len(), spans.len(), "each span has an id of its own");
    a_reader_of_the_format_reads(&file, spans.len());
    a_collector_takes(&file, &spans);
}

/// opentelemetry-proto, where it is installed.
fn a_reader_of_the_format_reads(file: &Path, count: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/opentelemetry/bin/python3");
    if !python.exists() {
        return skipped("no opentelemetry-proto (tools/test installs it)");
    }
    let text = std::fs::read(file).expect("it is there");
    let output = run(&mut command(&python, [root.join("tests/traces/read.py")]), &text);
    assert!(output.status.success(), "{}", shown(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), count, "{}", shown(&output));
}

/// rotel, a collector for OTLP, where it is installed: it is posted each line, and prints each span that it has taken.
fn a_collector_takes(file: &Path, spans: &[Value]) {
    struct Collector(Child);
    impl Drop for Collector {
        fn drop(&mut self) {
            let _ = self.0.kill().and_then(|()| self.0.wait());
        }
    }
    let libraries = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/rotel/lib"));
    let mut places = libraries.into_iter().flatten().flatten();
    let Some(place) = places.find(|place| place.file_name().to_string_lossy().starts_with("python3")) else {
        return skipped("no rotel (tools/test installs it)");
    };
    let (folder, [http, grpc]) = (Folder::new(), [free_address(), free_address()].map(|it| it.to_string()));
    let said = folder.file("said", "");
    let mut agent = command(
        &place.path().join("site-packages/rotel/rotel-agent"),
        ["start", "--otlp-http-endpoint", &http, "--otlp-grpc-endpoint", &grpc, "--exporter", "blackhole"],
    );
    agent.args(["--debug-log", "traces", "--debug-log-verbosity", "detailed"]);
    agent.stdout(std::fs::File::create(&said).expect("our own file")).stderr(Stdio::null());
    let _collector = Collector(agent.spawn().expect("it can be started"));
    let address = http.parse().expect("an address");
    until("it listens", PATIENCE, || TcpStream::connect(address).ok());
    for line in std::fs::read_to_string(file).expect("text").lines() {
        let header = "Content-Type: application/json";
        let answer = Client::to(address).request("POST", "/v1/traces", &[header], line);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut sent: Vec<[String; 5]> = spans
        .iter()
        .map(|span| {
            let kind = if span["kind"] == 2 { "SPAN_KIND_SERVER" } else { "SPAN_KIND_CONSUMER" };
            let [trace, parent, id, name] =
                ["traceId", "parentSpanId", "spanId", "name"].map(|key| text(&span[key]));
            [trace, parent, id, name, kind.to_owned()]
        })
        .collect();
    sent.sort_unstable();
    until("it has taken all of them, as they are", PATIENCE, || {
        let text = std::fs::read_to_string(&said).expect("text");
        let mut taken: Vec<[String; 5]> = text
            .split("\nSpan #")
            .skip(1)
            .map(|span| {
                ["Trace ID", "Parent ID", "ID", "Name", "Kind"].map(|field| {
                    let mut lines = span.lines().filter_map(|line| line.split_once(':'));
                    let line = lines.find(|(name, _)| name.trim() == field);
                    line.map_or("", |(_, value)| value.trim()).to_owned()
                })
            })
            .collect();
        taken.sort_unstable();
        (taken == sent).then_some(())
    });
}

#[test]
fn spans_are_exported_as_the_format_says() {
    exports(&[]);
}

#[test]
fn spans_are_exported_by_one_process_alone() {
    exports(&["runtime.platform.bootstrap.mode=inline".into()]);
}

#[cfg(feature = "redis")]
#[test]
fn spans_are_exported_on_redis() {
    if deployment::can_serve() {
        exports(&deployment::Deployment::new("traces").sets(&[]));
    }
}

#[test]
fn a_batch_exports_a_span_a_line() {
    let folder = Folder::new();
    for mode in ["inline", "process_supervisor"] {
        let file = folder.path(mode);
        let sets = [
            format!("observability.traces.file={}", file.display()),
            format!("runtime.platform.bootstrap.mode={mode}"),
        ];
        let words = ["batch", "--handler", "echo"].map(str::to_owned).into_iter();
        let words = words.chain(sets.into_iter().flat_map(|set| ["--set".to_owned(), set]));
        let output = run(&mut command(&cofferdam(), words), b"1\n2\n3\n");
        assert!(output.status.success() && output.stdout == b"1\n2\n3\n", "{}", shown(&output));
        let spans = spans_of(&file);
        let jobs: Vec<&Value> = spans.iter().filter(|span| span["kind"] == 2).collect();
        assert_eq!((jobs.len(), spans.len()), (3, 6));
        assert!(jobs.iter().all(|job| job["traceId"] == jobs[0]["traceId"] && job["parentSpanId"].is_null()));
    }
}

#[test]
fn what_is_no_file_that_can_be_written_is_refused_at_the_start() {
    let folder = Folder::new();
    let pipe = folder.path("pipe");
    let made = run(&mut command(Path::new("mkfifo"), [&pipe]), b"");
    assert!(made.status.success(), "{}", shown(&made));
    let places: [PathBuf; 4] = [pipe, folder.path("no/such/folder"), folder.path("."), "/dev/full".into()];
    for (place, mode) in places.iter().flat_map(|place| [(place, "inline"), (place, "process_supervisor")]) {
        let words = [
            "web.bind=127.0.0.1:0".to_owned(),
            format!("runtime.platform.bootstrap.mode={mode}"),
            format!("observability.traces.file={}", place.display()),
        ];
        let words = words.into_iter().flat_map(|set| ["--set".to_owned(), set]);
        let output = run(&mut command(&cofferdam(), ["serve".to_owned()].into_iter().chain(words)), b"");
        assert_eq!(output.status.code(), Some(2), "{}: {}", place.display(), shown(&output));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("observability.traces.file"),
            "{}",
            shown(&output)
        );
    }
}

/// A small file system in memory, which goes with this.
struct Mount {
    folder: Folder,
}

impl Mount {
    /// None where it cannot be had.
    fn new() -> Option<Mount> {
        let mount = Mount { folder: Folder::new() };
        let words = ["-t", "tmpfs", "-o", "size=64k", "none"].map(Into::into).into_iter();
        let output = run(&mut command(Path::new("mount"), words.chain([mount.folder.path("")])), b"");
        output.status.success().then_some(mount)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run(&mut command(Path::new("umount"), ["-l".into(), self.folder.path("")]), b"");
    }
}

/// Not by `println!`, which is shown only where a test fails.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

#[test]
fn a_full_disk_drops_spans_counted_and_harms_no_job() {
    let Some(mount) = Mount::new() else { return skipped("only root can mount a file system") };
    let (file, hog) = (mount.folder.path("traces.jsonl"), mount.folder.path("hog"));
    let service = serve(&[format!("observability.traces.file={}", file.display())]);
    let ask = |text: &str| {
        let answer = service.post("/v1/jobs/echo", text);
        assert_eq!((answer.status, answer.text()), (200, text.to_owned()));
    };
    std::fs::write(&hog, vec![0; 60_000]).expect("there is room for that");
    until("the disk is full", PATIENCE, || {
        ask("1");
        (service.metric("traces_dropped_total") > 0.0).then_some(())
    });
    spans_of(&file);
    let ready = service.get("/readyz");
    assert_eq!(ready.status, 200, "{ready:?}");
    std::fs::remove_file(&hog).expect("it is there");
    let written = service.metric("traces_written_total");
    until("there is room again", PATIENCE, || {
        ask("2");
        (service.metric("traces_written_total") > written).then_some(())
    });
    let stderr = service.stop().stderr;
    let said = stderr.lines().filter(|line| line.contains("spans are dropped")).count();
    assert_eq!(said, 1, "once a minute at most: {stderr}");
    assert!(!spans_of(&file).is_empty());
}

#[test]
fn a_file_that_is_moved_away_is_followed_by_another() {
    let folder = Folder::new();
    let (file, old) = (folder.path("traces.jsonl"), folder.path("traces.jsonl.1"));
    let service = serve(&[format!("observability.traces.file={}", file.display())]);
    let ask = || {
        let answer = service.post("/v1/jobs/echo", "1");
        answer.header("traceparent").expect("always")[3..35].to_owned()
    };
    let first = ask();
    spans_when(&file, &first, 2);
    std::fs::rename(&file, &old).expect("it is there");
    let second = ask();
    until("there is another", PATIENCE, || file.exists().then_some(()));
    spans_when(&file, &second, 2);
    assert_eq!(spans_of(&old).iter().filter(|span| span["traceId"] == *second).count(), 0);
    assert_eq!(service.metric("traces_dropped_total"), 0.0);
}
