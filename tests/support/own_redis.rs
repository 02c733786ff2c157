//! A redis-server of a test's own, that it may configure, stop, kill and start again.
//!
//! It guards the suite against a server that outlives its test (it ends with the test program, however that ends), and
//! against a fault that another test's server has: none is shared.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};

use redis::{Connection, FromRedisValue, Value};
use rustix::process::Signal;

use super::service::{PATIENCE, free_address, signal, until};

/// Keeps every accepted job and every commit.
pub const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// A parent-death signal follows the thread that spawned, so one thread that never ends spawns all servers.
fn spawn(command: Command) -> Child {
    type Order = (Command, Sender<Child>);
    static SPAWNER: OnceLock<SyncSender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, orders) = sync_channel::<Order>(8);
        std::thread::spawn(move || {
            for (mut command, child) in orders {
                let started = command.spawn();
                let started =
                    started.expect("setpriv and redis-server are installed (tools/test installs them)");
                let _ = child.send(started);
            }
        });
        sender
    });
    let (sender, child) = channel();
    spawner.send((command, sender)).expect("the spawner lives");
    child.recv().expect("the spawner lives")
}

/// See the module.
pub struct Server {
    folder: PathBuf,
    options: Vec<String>,
    tcp: Option<SocketAddr>,
    child: Option<Child>,
}

impl Server {
    /// Running, on a Unix socket, without persistence unless these options say so.
    #[track_caller]
    pub fn start(options: &[&str]) -> Server {
        let mut server = Server::absent(options);
        server.up();
        server
    }

    /// One that is not started yet.
    pub fn absent(options: &[&str]) -> Server {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Socket addresses are short: not in the target folder.
        let name = format!("cofferdam-own-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).expect("a temporary folder");
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Server { folder, options, tcp: None, child: None }
    }

    /// With more options.
    #[must_use]
    pub fn with(mut self, options: &[&str]) -> Server {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// A file in its folder.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, text).expect("a temporary file");
        path
    }

    /// It listens on a loopback port, too.
    #[must_use]
    pub fn with_tcp(mut self) -> Server {
        self.tcp = Some(free_address());
        self
    }

    /// Starts it, again if need be, on what is in its folder; answers are awaited.
    #[track_caller]
    pub fn up(&mut self) {
        self.begin();
        until("redis-server answers", PATIENCE, || {
            let mut connection = self.try_connect().ok()?;
            match redis::cmd("PING").query::<String>(&mut connection) {
                Ok(_) => Some(()),
                Err(error) => (error.code() == Some("NOAUTH")).then_some(()),
            }
        });
    }

    /// The same without waiting for it.
    #[track_caller]
    pub fn begin(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let _ = std::fs::remove_file(self.socket());
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "redis-server", "--save", "", "--loglevel", "warning"]);
        command.arg("--dir").arg(&self.folder).arg("--unixsocket").arg(self.socket());
        match self.tcp {
            Some(address) => command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]),
            None => command.args(["--port", "0"]),
        };
        command.args(&self.options);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(spawn(command));
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// As the config names it.
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// The same for its port.
    pub fn tcp_url(&self) -> String {
        format!("redis://{}", self.tcp.expect("it has a port"))
    }

    pub fn tcp(&self) -> SocketAddr {
        self.tcp.expect("it has a port")
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// `kill -9`
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGSTOP: it holds its connections, and answers nothing.
    pub fn freeze(&self) {
        signal(self.pid(), Signal::STOP);
    }

    /// SIGCONT
    pub fn thaw(&self) {
        signal(self.pid(), Signal::CONT);
    }

    fn try_connect(&self) -> redis::RedisResult<Connection> {
        redis::Client::open(format!("unix://{}", self.socket().display()))?.get_connection()
    }

    /// A connection of the test's own.
    #[track_caller]
    pub fn connect(&self) -> Connection {
        self.try_connect().expect("the server is there")
    }

    /// One command as its words.
    #[track_caller]
    pub fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut self.connect()).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// The same where only its effect matters.
    #[track_caller]
    pub fn tell(&self, words: &[&str]) {
        self.ask::<Value>(words);
    }

    /// All keys, in their order.
    #[track_caller]
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.ask(&["KEYS", "*"]);
        keys.sort_unstable();
        keys
    }

    /// All keys with what is left of their lives, in ms; negative: for ever.
    #[track_caller]
    pub fn lives(&self) -> Vec<(String, i64)> {
        self.keys().into_iter().map(|key| (key.clone(), self.ask(&["PTTL", &key]))).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
