//! The README's tour works as printed: each of its commands runs against a real service, only the address and the
//! way to the binary are put in.

mod support {
    pub mod program;
    pub mod service;
}

use std::process::{Command, Stdio};

use support::{program, service::Service};

/// The indented commands of the tour, in their order.
fn commands() -> Vec<String> {
    let readme = include_str!("../README.md");
    let tour =
        readme.split("## A tour").nth(1).and_then(|rest| rest.split("## More").next()).expect("a tour");
    let is_command = |line: &&str| ["curl", "printf", "cargo"].iter().any(|word| line.starts_with(word));
    tour.lines().filter_map(|line| line.strip_prefix("    ")).filter(is_command).map(str::to_owned).collect()
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
    let output = Command::new("sh").args(["-c", &command]).stdin(Stdio::null()).output().expect("sh runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn every_command_of_the_tour_does_what_the_text_says() {
    let (plain, ordered) =
        (Service::start(&[]), Service::start(&["handlers.echo.ordering={\"key\":\"/account\"}"]));
    let mut service = &plain;
    let mut shown = Vec::new();
    for command in commands() {
        if command.contains("-- serve --set") {
            assert!(command.contains(r#"'handlers.echo.ordering={"key":"/account"}'"#), "{command}");
            service = &ordered;
            continue;
        }
        if command.contains("/v1/batch/") {
            service = &plain;
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
    assert_eq!(of("fund_load")[0].lines().count(), 1_000);
    assert!(of("check")[0].contains("web.max_inflight = 100 (from --set)"));
}
