//! A secret's file under a service that runs: written, and said to be read again.
//!
//! It guards the suite against a rotation that is taken for done before the log says so.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rustix::process::Signal;

use super::program::{Folder, SECRET};
use super::service::{PATIENCE, Service, signal, until};

pub const OLD: &str = SECRET;
pub const NEW: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
pub const NEWER: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00123456789abcdeffedcba9876543210";

/// What the log says of each outcome.
pub const ANOTHER: &str = "another one signs from now on";
pub const THE_SAME: &str = "the same one signs from now on";
pub const AS_BEFORE: &str = "the secrets are those of before";
pub const REFUSED: &str = "the secrets stay as they were";

/// A file that holds these secrets, a line each.
pub struct SecretFile {
    folder: Folder,
    pub path: PathBuf,
}

impl SecretFile {
    pub fn of(secrets: &[&str]) -> SecretFile {
        let folder = Folder::new();
        let file = SecretFile { path: folder.path("secret"), folder };
        file.write(secrets);
        file
    }

    /// The setting that names it.
    pub fn set(&self) -> String {
        format!("runtime.platform.execution_ipc.auth.secret_file={}", self.path.display())
    }

    pub fn write(&self, secrets: &[&str]) {
        self.write_text(&(secrets.join("\n") + "\n"));
    }

    /// At once, as an operator should.
    pub fn write_text(&self, text: &str) {
        let next = self.folder.private_file("next", text);
        std::fs::rename(next, &self.path).expect("our own file");
    }

    pub fn set_mode(&self, mode: u32) {
        std::fs::set_permissions(&self.path, PermissionsExt::from_mode(mode)).expect("our own file");
    }

    /// Puts these secrets there, and has them read: the log says so much of it, once.
    #[track_caller]
    pub fn rotate(&self, service: &Service, secrets: &[&str], says: &str) {
        self.write(secrets);
        self.hang_up(service, says);
    }

    /// SIGHUP; one more line says this.
    #[track_caller]
    pub fn hang_up(&self, service: &Service, says: &str) {
        let said = || service.stderr().matches(says).count();
        let before = said();
        signal(service.pid, Signal::HUP);
        until(says, PATIENCE, || (said() > before).then_some(()));
        let line = service.stderr().lines().rfind(|line| line.contains(says)).map(str::to_owned);
        let name = self.path.display().to_string();
        assert!(line.as_ref().is_some_and(|line| line.contains(&name)), "the line names the file: {line:?}");
    }
}

/// Until no executor is the one that was there: they have other secrets.
#[track_caller]
pub fn replaced(service: &Service, before: &[u32]) {
    until("executors are replaced", PATIENCE, || {
        let now = service.children("executor");
        (now.len() == before.len() && !now.iter().any(|pid| before.contains(pid))).then_some(())
    });
}

/// Nothing that was signed was taken for a stranger's, and no connection was refused.
#[track_caller]
pub fn assert_nothing_refused(service: &Service) {
    let metrics = service.get("/metrics").text();
    let refusals = metrics.lines().filter(|line| {
        (line.starts_with("cofferdam_forged_total{") || line.starts_with("cofferdam_ipc_rejected_total{"))
            && !line.ends_with(" 0")
    });
    assert_eq!(refusals.collect::<Vec<_>>(), Vec::<&str>::new());
}

/// It stops well, and no secret is in its log.
#[track_caller]
pub fn assert_over(service: Service) {
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    for secret in [OLD, NEW, NEWER] {
        assert!(!ended.stderr.contains(&secret[..16]), "a secret is in the log: {}", ended.stderr);
    }
}
