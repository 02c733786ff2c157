//! The clients and proxies that people use, as far as they are installed, against the real binary: tools/clients.
//!
//! It guards docs/proxies.md: its configurations are run as they are printed.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use program::{Folder, cofferdam, command, shown, wait};

#[path = "support/program.rs"]
mod program;

/// Runs the script with these arguments, all that it writes below this folder; `None` if there is no Python.
fn clients(folder: &Folder, arguments: &[&str]) -> Option<Output> {
    if Command::new("python3").arg("--version").output().is_err() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no python3");
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/clients");
    // One that does not end by itself is told to, so that it ends what it has started.
    let mut clients = command(Path::new("timeout"), ["90"]);
    clients.arg(script).args(arguments);
    clients.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("TMPDIR", folder.path(""));
    Some(wait(clients.spawn().expect("coreutils")))
}

/// The command lines of all processes that were told of this folder.
fn left_over(folder: &Folder) -> Vec<String> {
    let name = folder.path("").display().to_string();
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(&name)).collect()
}

#[test]
fn every_client_and_proxy_that_is_installed_gets_its_answers() {
    let folder = Folder::new();
    let Some(output) = clients(&folder, &["--binary", &cofferdam().display().to_string()]) else { return };
    let table = String::from_utf8_lossy(&output.stdout);
    let _ = writeln!(std::io::stderr(), "{table}");
    assert_eq!(output.status.code(), Some(0), "{table}\n{}", shown(&output));
    assert!(table.contains("http.client "), "{table}");
    assert_eq!(left_over(&folder), Vec::<String>::new());
}

#[test]
fn a_client_that_gets_no_answer_fails_by_name() {
    let folder = Folder::new();
    // Nobody listens there (the port of `discard`).
    let Some(output) = clients(&folder, &["--at", "127.0.0.1:9", "--only", "http.client"]) else { return };
    let table = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{}", shown(&output));
    assert!(table.contains("FAILED: ConnectionRefusedError"), "{table}");
}
