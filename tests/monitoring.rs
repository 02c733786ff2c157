//! The alerts and the dashboard under dist/, against the figures of a real service: each name is exported, Prometheus' own tool
//! has nothing to say against either, and a Prometheus that scrapes the service answers what they ask.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use program::Folder;
use serde_json::Value;
use service::{Client, PATIENCE, Service, free_address, until};

#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

/// Has a handler that always fails beside those of the binary.
const FAILING: &str = r#"handlers={"no":{"command":["false"]}}"#;

fn dist(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dist").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(dist(name)).expect("it is there")
}

/// True where Prometheus and its tool are installed; says so loudly where they are not.
fn is_installed() -> bool {
    let answers = |program: &str| {
        let mut command = Command::new(program);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    let there = answers("promtool") && answers("prometheus");
    if !there {
        let _ = writeln!(std::io::stderr(), "SKIPPED: no promtool and prometheus (tools/test installs them)");
    }
    there
}

/// Runs promtool, which must succeed; what it wrote.
#[track_caller]
fn promtool(arguments: &[&str], input: &str) -> String {
    let mut command = program::command(Path::new("promtool"), arguments);
    command.env("PATH", std::env::var_os("PATH").expect("a path"));
    let output = program::run(&mut command, input.as_bytes());
    assert!(output.status.success(), "promtool {arguments:?}: {}", program::shown(&output));
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// The dashboard's panels, as title and expressions.
fn panels() -> Vec<(String, Vec<String>)> {
    let board: Value = serde_json::from_str(&read("grafana.json")).expect("JSON");
    let panels = board["panels"].as_array().expect("panels").iter();
    let expressions = |panel: &Value| {
        let targets = panel["targets"].as_array()?;
        let text = |target: &Value| target["expr"].as_str().expect("an expression").to_owned();
        Some((panel["title"].as_str()?.to_owned(), targets.iter().map(text).collect()))
    };
    panels.filter_map(expressions).collect()
}

/// What Grafana puts into a dashboard's expression.
fn filled_in(expression: &str) -> String {
    expression
        .replace("$__rate_interval", "10s")
        .replace("$job", "cofferdam")
        .replace("$instance", "127.0.0.1.+")
}

/// Each metric that a text names, and what it asks of its labels: `name{label="a|b"}` is `a` and `b`.
fn asked(text: &str) -> BTreeMap<String, BTreeSet<(String, String)>> {
    let mut found: BTreeMap<String, BTreeSet<(String, String)>> = BTreeMap::new();
    let starts = text.match_indices("cofferdam_").map(|(at, _)| &text[at..]);
    for rest in starts {
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(rest.len());
        let labels = found.entry(rest[..end].to_owned()).or_default();
        let matchers = rest[end..].strip_prefix('{').and_then(|rest| rest.split('}').next());
        for matcher in matchers.into_iter().flat_map(|list| list.split(',')) {
            let (label, value) = matcher.split_once('=').expect("a matcher");
            let values = value.trim_matches(['~', '"', '\\']).split('|');
            labels.extend(values.map(|value| (label.to_owned(), value.to_owned())));
        }
    }
    found
}

#[test]
fn each_name_and_label_of_the_alerts_and_the_dashboard_is_exported() {
    let service = Service::start(&[FAILING]);
    // A status has its series once it was answered.
    assert_eq!(service.get("/readyz").status, 200);
    let page = service.get("/metrics").text();
    let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
    let dashboard =
        panels().into_iter().flat_map(|(_, expressions)| expressions).collect::<Vec<_>>().join("\n");
    for text in [read("alerts.yml"), dashboard] {
        let asked = asked(&text);
        assert!(asked.len() > 10, "{asked:?}");
        for (name, labels) in asked {
            let is_of = |line: &&&str| line.split(['{', ' ']).next() == Some(&name);
            let of_name: Vec<&&str> = samples.iter().filter(is_of).collect();
            assert!(!of_name.is_empty(), "{name} is not exported");
            let labels = labels.into_iter().filter(|(label, value)| {
                // Prometheus gives these itself; a service that is ready has answered no 503.
                !matches!(label.as_str(), "job" | "instance") && value != "503"
            });
            for (label, value) in labels {
                let wanted = format!("{label}=\"{value}\"");
                assert!(of_name.iter().any(|line| line.contains(&wanted)), "{name} has no {wanted}");
            }
        }
    }
}

#[test]
fn prometheus_own_tool_finds_nothing_wrong() {
    if !is_installed() {
        return;
    }
    let service = Service::start(&[FAILING]);
    assert_eq!(service.post("/v1/jobs/echo", "1").status, 200);
    let said = promtool(&["check", "metrics"], &service.get("/metrics").text());
    assert_eq!(said.trim(), "", "it has a complaint about /metrics");
    let rules = dist("alerts.yml").display().to_string();
    promtool(&["check", "rules", "--lint-fatal", &rules], "");
    let tests = dist("alerts_test.yml").display().to_string();
    let said = promtool(&["test", "rules", &tests], "");
    assert!(said.contains("SUCCESS"), "{said}");
}

#[test]
fn each_alert_has_a_case_that_fires_it_and_a_line_about_where_to_look() {
    let document = include_str!("../docs/operations.md");
    let cases = read("alerts_test.yml");
    let rules = read("alerts.yml");
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        let fires = format!("exp_samples: [{{labels: '{{alertname=\"{alert}\"}}', value: 1}}]");
        assert!(cases.contains(&fires), "dist/alerts_test.yml never fires {alert}");
        assert!(document.contains(&format!("`{alert}`")), "docs/operations.md does not know {alert}");
    }
}

/// A Prometheus of this test's own, which ends with it.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    folder: Folder,
}

impl Prometheus {
    fn scraping(service: &Service) -> Prometheus {
        let (folder, address) = (Folder::new(), free_address());
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\n\
             scrape_configs: [{{job_name: cofferdam, static_configs: [{{targets: ['{}']}}]}}]\n",
            dist("alerts.yml").display(),
            service.address
        );
        let config = folder.file("prometheus.yml", config);
        let log = std::fs::File::create(folder.path("log")).expect("a temporary file");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "prometheus"]);
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let mut prometheus = Prometheus { child: child.expect("setpriv"), address, folder };
        until("Prometheus is ready", PATIENCE, || {
            let ended = prometheus.child.try_wait().expect("our own child");
            let log = || std::fs::read_to_string(prometheus.folder.path("log")).unwrap_or_default();
            assert!(ended.is_none(), "{}", log());
            let mut client = Client::try_to(address).ok()?;
            client.send("GET /-/ready HTTP/1.1\r\nHost: localhost\r\n\r\n");
            client.try_read(PATIENCE).ok().filter(|answer| answer.status == 200)
        });
        prometheus
    }

    #[track_caller]
    fn get(&self, target: &str) -> Value {
        let mut client = Client::to(self.address);
        client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let answer = client.read();
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        answer.json()["data"].take()
    }

    /// The values of an expression's series, now.
    #[track_caller]
    fn ask(&self, expression: &str) -> Vec<f64> {
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let data = self.get(&format!("/api/v1/query?query={escaped}"));
        let series = data["result"].as_array().expect("series").iter();
        series
            .map(|of| of["value"][1].as_str().and_then(|value| value.parse().ok()).expect("a number"))
            .collect()
    }

    /// All alerting rules, by name.
    fn rules(&self) -> BTreeMap<String, Value> {
        let data = self.get("/api/v1/rules");
        let rules =
            data["groups"].as_array().expect("groups").iter().flat_map(|group| group["rules"].as_array());
        rules
            .flatten()
            .map(|rule| (rule["name"].as_str().expect("a name").to_owned(), rule.clone()))
            .collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_prometheus_that_scrapes_the_service_sees_lag_and_failures() {
    if !is_installed() {
        return;
    }
    let service = Service::start(&[FAILING]);
    let prometheus = Prometheus::scraping(&service);
    // A rate needs the figure from before.
    let failed = r#"cofferdam_jobs_finished_total{handler="no",status="failed"}"#;
    until("the first scrape", PATIENCE, || (prometheus.ask(failed) == [0.0]).then_some(()));
    until("it is up", PATIENCE, || (prometheus.ask(r#"up{job="cofferdam"}"#) == [1.0]).then_some(()));

    assert_eq!(service.post("/v1/handlers/echo/pause", "").status, 200);
    service.submit("/v1/jobs/echo", &[], "1");
    assert_eq!(service.post("/v1/jobs/no", "1").status, 422);
    let lag = r#"cofferdam_queue_oldest_seconds{queue="echo"}"#;
    until("the lag grows", PATIENCE, || {
        prometheus.ask(lag).first().is_some_and(|lag| *lag > 1.0).then_some(())
    });
    // The rule itself, before its patience is over.
    let rules = until("the failures are seen", PATIENCE, || {
        let rules = prometheus.rules();
        let is_evaluated = rules.values().all(|rule| rule["health"] == "ok");
        (is_evaluated && rules["CofferdamFailures"]["state"] == "pending").then_some(rules)
    });
    assert_eq!(rules["CofferdamFailures"]["alerts"][0]["labels"]["handler"], "no");
    // On a slow machine the paused job may have grown old enough for these, or a scrape may have been late.
    let by_now = ["CofferdamFailures", "CofferdamLag", "CofferdamNobodyWorks", "CofferdamDown"];
    for (name, rule) in rules.iter().filter(|(name, _)| !by_now.contains(&name.as_str())) {
        assert_eq!(rule["state"], "inactive", "{name}: {rule}");
    }

    // Every panel has something to show.
    for (title, expressions) in panels() {
        for expression in expressions {
            // What is shown only where it is not 0 is asked for all of it.
            let all = filled_in(&expression);
            let all = all.strip_suffix(" > 0").unwrap_or(&all);
            until(&format!("{title}: {all}"), PATIENCE, || (!prometheus.ask(all).is_empty()).then_some(()));
        }
    }
}
