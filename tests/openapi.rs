//! `/openapi.json`: the document that is served is the one in the source, it and the router know the same of each other, the
//! answers of a real service are what it says, and schemathesis finds nothing that it does not say.
//!
//! It guards against a route, a parameter or a problem that one of the two has and the other lacks: a client that was made
//! from the document works.

#[path = "support/bearer.rs"]
mod bearer;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bearer::{Token, TokenFile};
use cofferdam::problem::Code;
use cofferdam::web::routes::{LABELS, route};
use program::{Folder, shown};
use serde_json::{Value, json};
use service::{Answer, Service};

const TEXT: &str = include_str!("../src/web/openapi.json");
/// For `{id}` of whatever it is: a job's, and a name as handlers may have one.
const ID: &str = "0123456789abcdef0123456789abcdef";
const METHODS: [&str; 3] = ["get", "post", "delete"];

fn document() -> Value {
    serde_json::from_str(TEXT).expect("JSON")
}

/// What the document has under a path of a `$ref`, or the value itself.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(path) => document.pointer(path.trim_start_matches('#')).unwrap_or_else(|| panic!("no {path}")),
        None => value,
    }
}

struct Operation<'a> {
    method: String,
    path: &'a str,
    of: &'a Value,
}

impl Operation<'_> {
    fn id(&self) -> &str {
        self.of["operationId"].as_str().expect("an operationId")
    }

    /// Its path with its parameters filled in.
    fn target(&self) -> String {
        let parts = self.path.split('/').map(|part| if part.starts_with('{') { ID } else { part });
        parts.collect::<Vec<_>>().join("/")
    }

    /// Its parameters in the query, the path or the header.
    fn parameters(&self, place: &str) -> BTreeSet<&str> {
        let all = self.of["parameters"].as_array().into_iter().flatten();
        let in_place = all.filter(|parameter| parameter["in"] == place);
        in_place.map(|parameter| parameter["name"].as_str().expect("a name")).collect()
    }
}

fn operations(document: &Value) -> Vec<Operation<'_>> {
    let paths = document["paths"].as_object().expect("paths").iter();
    let all = paths.flat_map(|(path, methods)| {
        methods.as_object().expect("methods").iter().map(move |(method, of)| {
            assert!(METHODS.contains(&method.as_str()), "{method} {path}");
            Operation { method: method.to_uppercase(), path, of }
        })
    });
    all.collect()
}

/// A method and a path without the names of its parameters.
fn shape(method: &str, path: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part });
    format!("{method} {}", parts.collect::<Vec<_>>().join("/"))
}

fn shapes(document: &Value) -> BTreeSet<String> {
    operations(document).iter().map(|operation| shape(&operation.method, operation.path)).collect()
}

#[test]
fn the_document_is_served_with_the_version_in_it_to_everybody() {
    let token = Token::new("ann", "read");
    let file = TokenFile::new(&[&token.line]);
    let [mode, path] = file.sets();
    let answer = Service::start(&[&mode, &path]).get("/openapi.json");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    assert_eq!(answer.text(), TEXT.replace("{version}", env!("CARGO_PKG_VERSION")));
    assert_eq!(answer.json()["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn every_operation_is_a_route_of_its_label_and_every_label_has_one() {
    let document = document();
    let mut seen = BTreeSet::new();
    for operation in operations(&document) {
        let (id, target) = (operation.id(), operation.target());
        let known = route(&operation.method, &target);
        let (_, label) = known.unwrap_or_else(|refused| panic!("{id}: {refused:?}"));
        // Two names for one thing in the metric, and each an operation of its own.
        let expected = if id == "livez" { "healthz" } else { id };
        assert_eq!(label, expected, "{} {target}", operation.method);
        assert!(seen.insert(id.to_owned()), "{id} is there twice");
        // The parameters of the path are those that are named in it.
        let in_path = operation.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        assert_eq!(operation.parameters("path"), in_path.collect(), "{id}");
    }
    for label in LABELS.split(' ').filter(|label| *label != "options") {
        assert!(seen.contains(label), "no operation {label}");
    }
}

#[test]
fn the_query_parameters_are_those_that_the_router_accepts() {
    let document = document();
    let all = operations(&document);
    let declared_anywhere: BTreeSet<&str> =
        all.iter().flat_map(|operation| operation.parameters("query")).chain(["undeclared"]).collect();
    for operation in &all {
        let declared = operation.parameters("query");
        for name in &declared_anywhere {
            let target = format!("{}?{name}=1", operation.target());
            let refused = route(&operation.method, &target).err().map(|refused| refused.code);
            let expected = if declared.contains(name) { None } else { Some(Code::BadRequest) };
            assert_eq!(refused, expected, "{} {target}", operation.method);
        }
    }
}

/// An operation's responses: the status, or `default`, and what it refers to.
fn responses<'a>(operation: &Operation<'a>) -> impl Iterator<Item = (&'a str, &'a Value)> {
    operation.of["responses"].as_object().expect("responses").iter().map(|(status, of)| (status.as_str(), of))
}

#[test]
fn every_problem_that_it_names_is_one_of_ours_with_its_status() {
    let document = document();
    let mut named = BTreeSet::new();
    for operation in operations(&document) {
        let refusals = responses(&operation).filter(|(status, _)| !status.starts_with('2'));
        for (status, response) in refusals {
            let id = operation.id();
            let body = &resolved(&document, response)["content"]["application/problem+json"];
            assert_eq!(body["schema"]["$ref"], "#/components/schemas/Problem", "{id} {status}");
            if status == "default" {
                continue;
            }
            let codes = response["description"].as_str().expect("the codes").split(", ");
            for code in codes {
                let known = Code::ALL.into_iter().find(|known| known.as_str() == code);
                let known = known.unwrap_or_else(|| panic!("{id}: {code} is none of ours"));
                assert_eq!(known.status().to_string(), status, "{id}: {code}");
                named.insert(code.to_owned());
                let is_busy = resolved(&document, response)["headers"]["Retry-After"].is_object();
                assert_eq!(is_busy, known.retry_after().is_some(), "{id}: {code} says when to come again");
            }
        }
        let default = responses(&operation).any(|(status, _)| status == "default");
        assert!(default, "{}: any other refusal", operation.id());
    }
    // Of what is refused before it is known which operation it is, no operation can tell.
    let before = [
        Code::ForeignOrigin,
        Code::MethodNotAllowed,
        Code::UriTooLong,
        Code::ExpectationFailed,
        Code::MisdirectedHost,
        Code::HeadersTooLarge,
        Code::NotImplemented,
        Code::HttpVersionNotSupported,
    ];
    for code in Code::ALL {
        let is_before = before.contains(&code);
        assert_eq!(named.contains(code.as_str()), !is_before, "{}", code.as_str());
    }
}

/// Of `[words](place)` the words.
fn without_links(text: &str) -> String {
    let mut plain = text.to_owned();
    while let Some(at) = plain.find("](") {
        let end = at + plain[at..].find(')').expect("the place ends");
        plain.replace_range(at..=end, "");
        plain.remove(plain[..at].rfind('[').expect("it begins"));
    }
    plain
}

#[test]
fn the_table_of_routes_in_the_documents_says_what_the_document_says() {
    let text = include_str!("../docs/http.md");
    let (_, after) = text.split_once("\n## Routes\n").expect("a section");
    let section = after.split("\n#").next().expect("a section");
    let mut told = BTreeMap::new();
    for row in section.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (request, answer) = row.trim_end_matches(" |").split_once("` | ").expect("two cells");
        let (method, path) = request.split_once(' ').expect("a method and a path");
        assert!(
            told.insert(shape(method, path), without_links(answer)).is_none(),
            "{request} is there twice"
        );
    }
    let document = document();
    let descriptions = operations(&document).into_iter().map(|operation| {
        let description = operation.of["description"].as_str().expect("a description");
        (shape(&operation.method, operation.path), description.to_owned())
    });
    assert_eq!(told, descriptions.collect());
}

#[test]
fn the_client_modules_use_only_what_the_document_has() {
    let (document, clients) = (document(), Path::new(env!("CARGO_MANIFEST_DIR")).join("clients"));
    let known = shapes(&document);
    for module in ["python/cofferdam_worker.py", "node/cofferdam_worker.mjs"] {
        let text = std::fs::read_to_string(clients.join(module)).expect("the module");
        let calls = text.match_indices("request(\"").map(|(at, open)| &text[at + open.len()..]);
        let mut used = BTreeSet::new();
        for call in calls {
            // `"POST", f"/v1/jobs/{handler}{query}"`, or the same as a template of JavaScript.
            let (method, rest) = call.split_once("\", ").expect("a method and a path");
            let path = rest.trim_start_matches('f');
            let path = path.split(['"', '`']).nth(1).expect("a quoted path").replace("${", "{");
            let path = path.replace("{query}", "");
            // What follows a parameter at once is a query.
            let path = path.split("{wait").next().expect("a path");
            used.insert(shape(method, path));
        }
        assert!(used.len() >= 5, "{module}: {used:?}");
        let unknown: Vec<&String> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "{module}: {unknown:?}");
        let all = text.matches("\"/v1/").count() + text.matches("`/v1/").count();
        assert_eq!(all, text.matches("request(\"").count(), "{module}: each path is in a call that is seen");
    }
}

/// As much of JSON Schema as the document needs. A keyword that is not known fails, so that nothing is passed over.
struct Schemas<'a>(&'a Value);

impl Schemas<'_> {
    /// Why the value does not fit, if it does not.
    fn refuses(&self, schema: &Value, value: &Value, at: &str) -> Option<String> {
        let schema = schema.as_object().expect("a schema");
        schema.iter().find_map(|(keyword, rule)| self.keyword(schema, keyword, rule, value, at))
    }

    fn keyword(
        &self,
        schema: &serde_json::Map<String, Value>,
        keyword: &str,
        rule: &Value,
        value: &Value,
        at: &str,
    ) -> Option<String> {
        let no = |is_fine: bool| (!is_fine).then(|| format!("{at}: {value} is not {keyword} {rule}"));
        let rules = || rule.as_array().expect("a list").iter();
        match keyword {
            "$ref" => self.refuses(resolved(self.0, &json!({ "$ref": rule })), value, at),
            "type" if rule.is_array() => no(rules().any(|rule| is_a(rule, value))),
            "type" => no(is_a(rule, value)),
            "enum" => no(rules().any(|one| one == value)),
            "const" => no(rule == value),
            "pattern" => no(value.as_str().is_none_or(|text| matches_pattern(rule, text))),
            "minimum" => no(value.as_f64().zip(rule.as_f64()).is_none_or(|(value, least)| value >= least)),
            "maxItems" => {
                no(value.as_array().is_none_or(|all| all.len() as u64 <= rule.as_u64().unwrap_or(0)))
            }
            "oneOf" => no(rules().filter(|rule| self.refuses(rule, value, at).is_none()).count() == 1),
            "anyOf" => no(rules().any(|rule| self.refuses(rule, value, at).is_none())),
            "not" => no(self.refuses(rule, value, at).is_some()),
            "required" => no(value
                .as_object()
                .is_none_or(|of| rules().all(|name| of.contains_key(name.as_str().expect("a name"))))),
            "properties" => {
                let mut there = value
                    .as_object()?
                    .iter()
                    .filter_map(|(name, value)| Some((name, rule.get(name)?, value)));
                there.find_map(|(name, rule, value)| self.refuses(rule, value, &format!("{at}/{name}")))
            }
            "additionalProperties" => {
                assert_eq!(rule, false, "{at}");
                no(value
                    .as_object()
                    .is_none_or(|of| of.keys().all(|name| schema["properties"].get(name).is_some())))
            }
            "items" => {
                let mut items = value.as_array()?.iter().enumerate();
                items.find_map(|(number, item)| self.refuses(rule, item, &format!("{at}/{number}")))
            }
            "description" | "examples" | "default" | "format" => None,
            other => panic!("{at}: {other} is not known here"),
        }
    }

    #[track_caller]
    fn accept(&self, name: &str, value: &Value) {
        let schema = json!({ "$ref": format!("#/components/schemas/{name}") });
        assert_eq!(self.refuses(&schema, value, name), None, "{value}");
    }
}

fn is_a(name: &Value, value: &Value) -> bool {
    match name.as_str().expect("a type's name") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("no type {other}"),
    }
}

/// The patterns of what a service answers.
fn matches_pattern(pattern: &Value, text: &str) -> bool {
    const TIME: &str = "2026-01-31T09:00:00";
    match pattern.as_str().expect("a pattern") {
        "^[0-9a-f]{32}$" => {
            text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        }
        time if time.contains("T[0-9]{2}:[0-9]{2}:[0-9]{2}") => {
            let is_alike = |(a, b): (u8, u8)| if b.is_ascii_digit() { a.is_ascii_digit() } else { a == b };
            let (whole, fraction) = text.split_at_checked(TIME.len()).unwrap_or_default();
            let fraction = fraction.strip_suffix('Z').map(|of| of.strip_prefix('.').unwrap_or("0"));
            whole.len() == TIME.len()
                && whole.bytes().zip(TIME.bytes()).all(is_alike)
                && fraction.is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
        }
        other => panic!("the pattern {other} is not known here"),
    }
}

/// Fails unless the answer is one that the document has for this operation.
#[track_caller]
fn assert_told(document: &Value, operation: &str, answer: &Answer) -> Value {
    let all = operations(document);
    let operation = all.iter().find(|known| known.id() == operation).expect("an operation of this name");
    let status = answer.status.to_string();
    let (_, response) = responses(operation)
        .find(|(known, _)| *known == status)
        .unwrap_or_else(|| panic!("{}: no {answer:?}", operation.id()));
    let response = resolved(document, response);
    let media_type = answer.header("content-type").expect("a content type");
    let body = &response["content"][media_type];
    assert!(body.is_object(), "{}: {answer:?}", operation.id());
    for name in response["headers"].as_object().into_iter().flatten().map(|(name, _)| name) {
        let is_always = name != "Idempotency-Replayed";
        assert!(!is_always || answer.header(&name.to_lowercase()).is_some(), "{name}: {answer:?}");
    }
    let value = answer.json();
    let refused = Schemas(document).refuses(&body["schema"], &value, operation.id());
    assert_eq!(refused, None, "{value}");
    value
}

#[test]
fn what_a_real_service_answers_is_what_it_says() {
    let document = document();
    let set = r#"handlers={"no":{"command":["false"]},"kept":{"command":["cat"],"ordering":{"key":"/k"}},
        "again":{"command":["sh","-c","exit 75"],"max_deliveries":2,"retry":{"base_ms":1,"max_ms":1}}}"#;
    let service = Service::start(&[set]);
    let told = |operation: &str, answer: &Answer| assert_told(&document, operation, answer);
    // Records of each kind.
    let json = ["Content-Type: application/json"];
    let echoed = service.submit("/v1/jobs/echo", &json, r#"{"a":[1,null]}"#);
    let bytes = service.submit("/v1/jobs/echo", &[], b"\xff");
    let failed = service.submit("/v1/jobs/no", &[], "1");
    let dead = service.submit("/v1/jobs/again", &[], "1");
    for (id, status) in [(&echoed, "succeeded"), (&bytes, "succeeded"), (&failed, "failed"), (&dead, "dead")]
    {
        service.record_when(id, status);
        let target = format!("/v1/jobs/{id}");
        told("record", &service.get(&target));
        told("record", &service.get(&format!("{target}?wait=0")));
    }
    let record = told("record", &service.get(&format!("/v1/jobs/{dead}")));
    assert_eq!(record["attempts"].as_array().map(Vec::len), Some(2), "{record}");
    told("result", &service.get(&format!("/v1/jobs/{failed}/result")));
    told("payload", &service.get(&format!("/v1/jobs/{echoed}/payload")));
    told("retry", &service.post(&format!("/v1/jobs/{failed}/retry"), ""));
    told("retry", &service.post(&format!("/v1/jobs/{echoed}/retry"), ""));
    // What waits, and why.
    for name in ["kept", "echo"] {
        told("pause", &service.post(&format!("/v1/handlers/{name}/pause"), ""));
    }
    let waits = ["1", "2"].map(|_| service.submit("/v1/jobs/kept", &json, r#"{"k":"x"}"#));
    let delayed = service.submit("/v1/jobs/sleep?delay_ms=600000", &json, "{}");
    for id in waits.iter().chain([&delayed]) {
        let record = told("record", &service.get(&format!("/v1/jobs/{id}")));
        assert!(record["waiting_for"].is_object(), "{record}");
    }
    told("result", &service.get(&format!("/v1/jobs/{delayed}/result")));
    let lanes = told("lanes", &service.get("/v1/lanes/kept"));
    assert_eq!(lanes["lanes"].as_array().map(Vec::len), Some(1), "{lanes}");
    told("lanes", &service.get("/v1/lanes/nobody"));
    let page = told("list", &service.get("/v1/jobs?limit=3"));
    assert!(page["next"].is_string(), "{page}");
    told("list", &service.get("/v1/jobs?limit=0"));
    let stats = told("stats", &service.get("/v1/stats"));
    assert!(
        stats["handlers"].is_array() && stats["totals"].is_object() && stats["processes"].is_array(),
        "{stats}"
    );
    for dry_run in [true, false] {
        let body =
            |status: &str| json!({ "status": status, "handler": "kept", "dry_run": dry_run }).to_string();
        told("cancel_all", &service.post("/v1/jobs/cancel", body("queued")));
        told("retry_all", &service.post("/v1/jobs/retry", body("cancelled")));
    }
    told("retry_all", &service.post("/v1/jobs/retry", "{}"));
    told("cancel", &service.request("DELETE", &format!("/v1/jobs/{delayed}"), &[], ""));
    told("resume", &service.post("/v1/handlers/kept/resume", ""));
    told("submit", &service.request("POST", "/v1/jobs/echo", &["Prefer: respond-async"], "1"));
    told("submit", &service.post("/v1/jobs/nobody", ""));
    told("submit", &service.post("/v1/jobs/no", "1"));
    told("batch", &service.post("/v1/batch/nobody", ""));
    for (operation, target) in [("healthz", "/healthz"), ("livez", "/livez"), ("readyz", "/readyz")] {
        told(operation, &service.get(target));
    }
    told("openapi", &service.get("/openapi.json"));
    // The examples of bodies fit their own schemas.
    for operation in operations(&document) {
        let body = &operation.of["requestBody"]["content"]["application/json"];
        for (name, example) in body["examples"].as_object().into_iter().flatten() {
            let refused = Schemas(&document).refuses(&body["schema"], &example["value"], name);
            assert_eq!(refused, None, "{}", operation.id());
        }
    }
    // The validator itself sees what is wrong.
    let schemas = Schemas(&document);
    schemas.accept("Record", &record);
    for (pointer, wrong) in [
        ("/id", json!("ABC")),
        ("/status", json!("lost")),
        ("/submitted_at", json!("yesterday")),
        ("/deliveries", json!(-1)),
        ("/attempts/0/outcome", json!("bored")),
        ("/error/more", json!(1)),
    ] {
        let mut record = record.clone();
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        record.pointer_mut(parent).expect("it is there")[name] = wrong;
        let schema = json!({ "$ref": "#/components/schemas/Record" });
        assert!(schemas.refuses(&schema, &record, "Record").is_some(), "{pointer} is seen");
    }
}

/// Schemathesis as it is named in the environment, installed, or put into the target folder by tools/test.
fn schemathesis() -> Option<PathBuf> {
    let named = std::env::var_os("COFFERDAM_SCHEMATHESIS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("st"));
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/schemathesis/bin/st");
    // `st` is the name of a terminal as well: ours says what it does.
    let is_it = |program: &PathBuf| {
        let output = Command::new(program).arg("--help").stdin(Stdio::null()).output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("API testing"))
    };
    match named {
        Some(program) => {
            assert!(is_it(&program), "COFFERDAM_SCHEMATHESIS names no schemathesis: {}", program.display());
            Some(program)
        }
        None => on_path.chain([own]).find(|program| program.is_file() && is_it(program)),
    }
}

#[test]
fn schemathesis_finds_nothing_that_the_document_does_not_say() {
    let Some(program) = schemathesis() else {
        // Not by a macro: those are kept back until a test fails.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no schemathesis (tools/test installs it)");
        return;
    };
    // It leaves folders where it runs.
    let folder = Folder::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi");
    for name in ["hooks.py", "schemathesis.toml"] {
        folder.file(name, std::fs::read(source.join(name)).expect("it is there"));
    }
    let token = Token::new("ann", "submit,read,admin");
    let file = TokenFile::new(&[&token.line]);
    let [mode, path] = file.sets();
    // What a handler's own time is the document cannot know: here it is the longest that there is.
    let long = r#"handlers={"echo":{"timeout_ms":4294967295},"sleep":{"timeout_ms":4294967295}}"#;
    let service = Service::start(&[&mode, &path, long, "runtime.platform.reply.timeout_ms=2000"]);
    let address = format!("http://{}/openapi.json", service.address);
    let header = token.header();
    let mut command =
        program::command(&program, ["--config-file", "schemathesis.toml", "--no-color", "run", &address]);
    command.args(["--header", &header, "--exclude-path", "/v1/events", "--checks", "all"]);
    command.args(["--exclude-checks", "missing_required_header,ignored_auth,use_after_free"]);
    command.args(["--max-examples", "10", "--seed", "1", "--request-timeout", "30"]);
    command.envs([("SCHEMATHESIS_HOOKS", "hooks"), ("PYTHONDONTWRITEBYTECODE", "1"), ("LANG", "C.UTF-8")]);
    let here = folder.path("hooks.py").parent().expect("a folder").to_owned();
    command.env("HOME", &here).env("PATH", std::env::var_os("PATH").expect("a path")).current_dir(&here);
    let output = program::run(&mut command, b"");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}\n{}", shown(&output));
    // All operations but the one that never ends were tried.
    let metrics = token.ask(&service, "GET", "/metrics", &[], "").text();
    let requests = |label: &str| {
        let series = format!("cofferdam_http_requests_total{{route=\"{label}\",status=\"");
        let lines = metrics.lines().filter_map(|line| line.strip_prefix(&series)?.split_once("\"} "));
        lines.map(|(_, count)| count.parse::<u64>().expect("a count")).sum::<u64>()
    };
    for label in LABELS.split(' ').filter(|label| !["events", "options"].contains(label)) {
        assert!(requests(label) > 0, "{label} was not tried: {said}");
    }
    assert_eq!(service.get("/livez").status, 200, "it is well afterwards");
}
