//! The dashboard at `/`: a real browser uses it on a real service, with tokens and without, also while the service goes away;
//! and what it is made of.
//!
//! It guards against a page that fails where only a browser sees it, a policy that lets more run than the page's own script,
//! and a page that shows anything to who has no token.

#[path = "support/bearer.rs"]
mod bearer;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bearer::{Token, TokenFile};
use program::shown;
use service::{Service, until};
use sha2::{Digest, Sha256};

/// The page with its style and script.
const PAGE_BYTES: usize = 61_440;
/// The browser's steps have deadlines of their own, which are shorter; all of them end before this.
const BROWSER_PATIENCE: Duration = Duration::from_secs(200);

/// Whether there is a browser, and a Node that can drive it; says so loudly where one is missing.
fn is_installed() -> bool {
    let version = |program: &str| {
        let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let major = |version: String| version.trim_start_matches('v').split('.').next()?.parse::<u32>().ok();
    let missing = if version("node").and_then(major).is_none_or(|major| major < 18) {
        "node 18 or later"
    } else if version("chromium").is_none() {
        "chromium"
    } else {
        return true;
    };
    // Not by a macro: those are kept back until a test fails.
    let _ = writeln!(std::io::stderr(), "SKIPPED: no {missing} (tools/test installs it)");
    false
}

/// A handler with the longest name that there may be, which no page may be stretched by.
fn long_name() -> String {
    format!(r#"handlers.{}={{"command":["cat"]}}"#, "w".repeat(64))
}

/// The browser's visit to this service.
fn visit(service: &Service, token: Option<&Token>, mode: &[&str]) -> Child {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/check.mjs");
    let address = format!("http://{}", service.address);
    let mut command = program::command(Path::new("node"), [script.to_str().expect("text"), &address]);
    command.args(mode).env("PATH", std::env::var_os("PATH").expect("a path"));
    // Beside its profile, which the script removes, Chromium keeps a few files in a home.
    command.env("HOME", env!("CARGO_TARGET_TMPDIR"));
    if let Some(token) = token {
        command.env("COFFERDAM_TOKEN", &token.text);
    }
    command.spawn().expect("node is installed")
}

#[track_caller]
fn assert_well(visit: Child) {
    let output = program::wait(visit);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("the page is well"), "{}", shown(&output));
}

#[test]
fn a_browser_sees_figures_and_jobs_and_can_act_on_them() {
    if is_installed() {
        let service = Service::start(&[&long_name()]);
        assert_well(visit(&service, None, &[]));
        assert_eq!(service.stop().status.code(), Some(0));
    }
}

#[test]
fn a_browser_asks_for_a_token_where_one_is_needed() {
    if is_installed() {
        let token = Token::new("ann", "submit,read,admin");
        let file = TokenFile::new(&[&token.line]);
        let [mode, path] = file.sets();
        let service = Service::start(&[&mode, &path, &long_name()]);
        assert_well(visit(&service, Some(&token), &[]));
    }
}

#[test]
fn a_browser_tells_that_the_service_is_lost() {
    if !is_installed() {
        return;
    }
    let service = Service::start(&[&long_name()]);
    let mut visit = visit(&service, None, &["--lost"]);
    let mut lines = BufReader::new(visit.stdout.take().expect("it is piped")).lines();
    let (sender, said) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || lines.try_for_each(|line| sender.send(line.unwrap_or_default())));
    let first = said.recv_timeout(BROWSER_PATIENCE);
    if first.as_deref() != Ok("stop the server") {
        let _ = visit.kill();
        let mut stderr = String::new();
        let _ = visit.stderr.take().expect("it is piped").read_to_string(&mut stderr);
        panic!("it says {first:?}; stderr: {stderr}");
    }
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "a page that is open does not keep it: {}", ended.stderr);
    let output = program::wait(visit);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    until("its last words are read", service::PATIENCE, || reader.is_finished().then_some(()));
    assert_eq!(said.try_iter().collect::<Vec<_>>(), ["the page is well"]);
}

/// What stands in the only element of this name.
#[track_caller]
fn element<'a>(page: &'a str, name: &str) -> &'a str {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    assert_eq!(page.matches(&format!("<{name}")).count(), 1, "one {name}, without attributes");
    let (_, rest) = page.split_once(&open).expect("it has none");
    rest.split_once(&close).expect("it is closed").0
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let bits = part.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte)) << (8 * (3 - part.len()));
        let digit = |at: usize| char::from(DIGITS[bits >> (18 - 6 * at) & 63]);
        text.extend((0..=part.len()).map(digit));
        text.extend(std::iter::repeat_n('=', 3 - part.len()));
    }
    text
}

#[test]
fn the_policy_lets_the_pages_own_script_and_style_run_and_nothing_else() {
    let service = Service::start(&[]);
    let answer = service.get("/");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
    let page = answer.text();
    let hash = |name| format!("'sha256-{}'", base64(&Sha256::digest(element(&page, name))));
    let policy = answer.header("content-security-policy").expect("a policy");
    let directives: BTreeMap<&str, &str> =
        policy.split("; ").map(|directive| directive.split_once(' ').expect("a name and a value")).collect();
    assert_eq!(directives.len(), policy.split("; ").count(), "each once: {policy}");
    let (script, style) = (hash("script"), hash("style"));
    let expected = [
        ("base-uri", "'none'"),
        ("connect-src", "'self'"),
        ("default-src", "'none'"),
        ("form-action", "'none'"),
        ("frame-ancestors", "'none'"),
        ("img-src", "data:"),
        ("script-src", &script),
        ("style-src", &style),
    ];
    assert_eq!(directives.into_iter().collect::<Vec<_>>(), expected);
    // To HEAD it says the same, and no more.
    let mut client = service.connect();
    client.send("HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let head = client.read_without_body();
    assert_eq!(head.header("content-security-policy"), Some(policy));
    assert_eq!(head.header("content-length"), Some(&*page.len().to_string()));
}

#[test]
fn the_page_is_small_and_names_no_other_host() {
    let page = Service::start(&[]).get("/").text();
    assert!(page.len() < PAGE_BYTES, "{} bytes", page.len());
    // The namespace of SVG is a name; nothing is fetched from there.
    let addresses =
        page.match_indices("://").map(|(at, _)| &page[at.saturating_sub(5)..(at + 40).min(page.len())]);
    let others: Vec<&str> = addresses.filter(|text| !text.contains("http://www.w3.org/2000/svg")).collect();
    assert!(others.is_empty(), "{others:?}");
    for attribute in ["href=", "src=", "action=", "url("] {
        for (at, _) in page.match_indices(attribute) {
            let value = page[at + attribute.len()..].trim_start_matches(['"', '\'', '`']);
            let own = ["/", "#", "data:", "$", "{"].iter().any(|start| value.starts_with(start));
            let shown: String = value.chars().take(40).collect();
            assert!(own && !value.starts_with("//"), "{attribute} {shown:?}");
        }
    }
}

#[test]
fn the_page_is_the_same_for_everybody() {
    let token = Token::new("ann", "submit,read,admin");
    let file = TokenFile::new(&[&token.line]);
    let [mode, path] = file.sets();
    let guarded = Service::start(&[&mode, &path]);
    let open = Service::start(&[]).get("/");
    let own = token.header();
    for headers in [&[][..], &[&*own], &["Authorization: Bearer cfd_x"]] {
        let answer = guarded.request("GET", "/", headers, "");
        assert_eq!((answer.status, &answer.body), (200, &open.body), "with {} headers", headers.len());
    }
    // What it shows it asks for, and that needs a token.
    assert_eq!(guarded.get("/v1/stats").status, 401);
}
