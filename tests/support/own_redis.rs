//! A redis-server of a test's own, that it may configure, stop, kill and start again; and a proxy before one that cuts,
//! swallows or refuses.
//!
//! It guards the suite against servers that outlive their test: each ends with its value, and its folder with it.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::service::{PATIENCE, until};

/// See the module.
pub struct OwnRedis {
    folder: PathBuf,
    options: Vec<String>,
    child: Option<Child>,
}

/// Keeps every write before it answers.
pub const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

impl OwnRedis {
    /// Not started yet.
    pub fn new(options: &[&str]) -> OwnRedis {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cofferdam-own-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // Socket addresses are short: not in the target folder.
        let folder = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).expect("a temporary folder");
        OwnRedis { folder, options: options.iter().map(ToString::to_string).collect(), child: None }
    }

    /// With more options.
    pub fn with(mut self, options: &[&str]) -> OwnRedis {
        self.options.extend(options.iter().map(ToString::to_string));
        self
    }

    pub fn start(options: &[&str]) -> OwnRedis {
        let mut server = OwnRedis::new(options);
        server.run();
        server
    }

    /// Starts it, or starts it again on what it has kept.
    pub fn run(&mut self) {
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(self.socket())
            .arg("--dir")
            .arg(&self.folder)
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        self.child = Some(child.expect("redis-server is installed (tools/test installs it)"));
        until("redis-server listens", PATIENCE, || UnixStream::connect(self.socket()).ok());
    }

    /// `kill -9`
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// A file in its folder.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, text).expect("a temporary file");
        path
    }

    /// As the config names it.
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// A stranger's connection.
    pub fn raw(&self) -> redis::Connection {
        let client = redis::Client::open(format!("unix://{}", self.socket().display()));
        client.and_then(|client| client.get_connection()).expect("the server is there")
    }
}

impl Drop for OwnRedis {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What the proxy does to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    Nothing,
    /// Takes every byte and gives none back.
    Swallow,
    /// Each so manieth answer is lost, after its call has reached the server, and the connection with it.
    LoseAnswers(usize),
}

/// See the module.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    harm: Mutex<Harm>,
    answers: AtomicUsize,
    lost: AtomicUsize,
    closed: AtomicBool,
    socket: PathBuf,
}

impl Proxy {
    pub fn before(server: &OwnRedis) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            harm: Mutex::new(Harm::Nothing),
            answers: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            socket: server.socket(),
        });
        let accepts = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepts.closed.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(server) = UnixStream::connect(&accepts.socket) else { continue };
                let (shared, there) = (accepts.clone(), (client.try_clone(), server.try_clone()));
                if let (Ok(to_client), Ok(from_server)) = there {
                    std::thread::spawn(move || forward(client, server));
                    std::thread::spawn(move || shared.answer(from_server, to_client));
                }
            }
        });
        Proxy { address, shared }
    }

    pub fn url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    pub fn harm(&self, harm: Harm) {
        *self.shared.harm.lock().expect("no panic under it") = harm;
    }

    /// Answers that were lost.
    pub fn lost(&self) -> usize {
        self.shared.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

fn forward(mut from: TcpStream, mut to: UnixStream) {
    let mut part = vec![0; 65_536];
    while let Ok(read @ 1..) = from.read(&mut part) {
        if to.write_all(&part[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

impl Shared {
    fn answer(&self, mut from: UnixStream, mut to: TcpStream) {
        let mut part = vec![0; 65_536];
        while let Ok(read @ 1..) = from.read(&mut part) {
            let harm = *self.harm.lock().expect("no panic under it");
            match harm {
                Harm::Swallow => continue,
                Harm::LoseAnswers(every)
                    if self.answers.fetch_add(1, Ordering::SeqCst) % every == every - 1 =>
                {
                    self.lost.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                Harm::Nothing | Harm::LoseAnswers(_) => {}
            }
            if to.write_all(&part[..read]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}
