//! A deployment on the test program's Redis server: its settings, its keys, and a stranger's connection to them.
//!
//! It guards the suite against two deployments that are one by accident: each has a key prefix, a secret and a folder
//! of its own, and its keys go with it.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use redis::{Connection, FromRedisValue};

use super::program::Folder;
use super::service::{PATIENCE, Service, until};

/// The root secret of each deployment; in no log.
pub const SECRET: &str = "5b1d7c3e9f0a2b4c6d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c";

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
    secret: PathBuf,
}

impl Deployment {
    /// On the program's one server.
    pub fn new(prefix: &str) -> Deployment {
        Deployment::on(super::redis::url(), prefix)
    }

    /// On another one.
    pub fn on(url: &str, prefix: &str) -> Deployment {
        let folder = Folder::new();
        let secret = folder.file("secret", SECRET);
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("our own file");
        Deployment { prefix: prefix.to_owned(), url: url.to_owned(), folder, secret }
    }

    /// What makes it this deployment: `PATH=VALUE`s, and more of them.
    pub fn sets(&self, more: &[&str]) -> Vec<String> {
        let mut sets: Vec<String> = ["queue", "kv", "reply"]
            .iter()
            .map(|port| format!("runtime.platform.{port}.backend=redis"))
            .chain([
                format!("runtime.platform.redis.url=redis+{}", self.url),
                format!("runtime.platform.redis.key_prefix={}", self.prefix),
                format!("runtime.platform.execution_ipc.auth.secret_file={}", self.secret.display()),
            ])
            .collect();
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

/// A server of a test's own, which keeps every write before it answers, and which may be killed and started again. It
/// ends with this program, however that ends: a shell that started it sees the end of its input.
pub struct Server {
    folder: PathBuf,
    shell: Child,
}

impl Server {
    #[track_caller]
    pub fn start(options: &str) -> Server {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Socket addresses are short: not in the target folder.
        let name = format!("cofferdam-own-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).expect("a temporary folder");
        let server = format!(
            r#"redis-server --port 0 --save "" --appendonly yes --appendfsync always {options} --dir "$1" --unixsocket "$1/s""#
        );
        let script = format!(
            r#"while read word; do case "$word" in
            start) {server} & server=$! ;;
            stop) kill -9 $server; wait $server ;;
            esac; done; kill -9 $server; wait $server; rm -rf "$1""#
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(&folder);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let shell = command.spawn().expect("a shell");
        let mut server = Server { folder, shell };
        server.begin();
        server
    }

    fn say(&mut self, word: &str) {
        let input = self.shell.stdin.as_mut().expect("it is piped");
        writeln!(input, "{word}").expect("the shell reads");
    }

    /// As the redis crate names it.
    pub fn url(&self) -> String {
        format!("unix://{}/s", self.folder.display())
    }

    /// Starts the stopped server, with what it has kept.
    #[track_caller]
    pub fn begin(&mut self) {
        self.say("start");
        let client = redis::Client::open(self.url()).expect("a sound address");
        until("the server serves", PATIENCE, || {
            let mut connection = client.get_connection().ok()?;
            redis::cmd("PING").exec(&mut connection).ok()
        });
    }

    /// Kills it, as a crash does.
    #[track_caller]
    pub fn crash(&mut self) {
        self.say("stop");
        let socket = self.folder.join("s");
        until("the server is gone", PATIENCE, || UnixStream::connect(&socket).is_err().then_some(()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
