//! A deployment on the test program's Redis server: its settings, its keys, and a stranger's connection to them.
//!
//! It guards the suite against two deployments that are one by accident: each has a key prefix, a secret and a folder
//! of its own, and its keys go with it.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use redis::{Connection, FromRedisValue};

use super::program::{Folder, SECRET, on_redis};
use super::service::Service;

/// False, and said on stderr, where there is no redis-server.
pub fn can_serve() -> bool {
    let found = std::process::Command::new("redis-server").arg("--version").output().is_ok();
    if !found {
        // Not by `println!`, which is shown only where a test fails.
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no redis-server (tools/test installs it)");
    }
    found
}

pub struct Deployment {
    pub prefix: String,
    /// As the redis crate names it.
    url: String,
    pub folder: Folder,
}

impl Deployment {
    /// On the program's one server.
    pub fn new(prefix: &str) -> Deployment {
        Deployment::on(super::redis::url(), prefix)
    }

    /// On another one.
    pub fn on(url: &str, prefix: &str) -> Deployment {
        Deployment { prefix: prefix.to_owned(), url: url.to_owned(), folder: Folder::new() }
    }

    /// What makes it this deployment: `PATH=VALUE`s, and more of them.
    pub fn sets(&self, more: &[&str]) -> Vec<String> {
        let mut sets = on_redis(&format!("redis+{}", self.url), &self.folder, SECRET);
        sets.push(format!("runtime.platform.redis.key_prefix={}", self.prefix));
        sets.extend(more.iter().map(|set| (*set).to_owned()));
        sets
    }

    /// The same as words of a command line.
    pub fn words(&self, more: &[&str]) -> Vec<String> {
        self.sets(more).into_iter().flat_map(|set| ["--set".to_owned(), set]).collect()
    }

    /// `serve`, with the package's own binary or another one.
    #[track_caller]
    pub fn serve(&self, program: &Path, more: &[&str]) -> Service {
        let sets = self.sets(more);
        Service::of(program, &sets.iter().map(String::as_str).collect::<Vec<&str>>())
    }

    /// A stranger's connection, who may do everything.
    pub fn raw(&self) -> Connection {
        let client = redis::Client::open(self.url.as_str()).expect("a sound address");
        client.get_connection().expect("the server is there")
    }

    /// A stranger's command on this deployment's key.
    #[track_caller]
    pub fn on_key<T: FromRedisValue>(&self, raw: &mut Connection, command: &[&str], key: &str) -> T {
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(format!("{{{}}}:{key}", self.prefix));
        cmd.arg(&command[1..]);
        cmd.query(raw).unwrap_or_else(|error| panic!("{command:?} on {key}: {error}"))
    }

    /// How many keys there are, by kind.
    pub fn keys(&self, raw: &mut Connection) -> BTreeMap<String, usize> {
        let head = format!("{{{}}}:", self.prefix);
        let mut kinds = BTreeMap::new();
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(format!("{head}*")).arg("COUNT").arg(5_000);
            let (next, keys): (String, Vec<String>) = scan.query(raw).expect("the server is there");
            for key in keys {
                let kind = key[head.len()..].split(':').next().unwrap_or_default();
                *kinds.entry(kind.to_owned()).or_default() += 1;
            }
            if next == "0" {
                return kinds;
            }
            cursor = next;
        }
    }
}

/// Resident memory of a process, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|text| text.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}
