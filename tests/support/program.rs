//! Running a real binary in tests, and folders that vanish.
//!
//! It guards the suite against hanging: a program that has not ended at its deadline is killed, and the test
//! fails with what it wrote. The environment of a program is empty, so that a developer's own
//! `COFFERDAM_…` changes nothing.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// No program of these tests needs more than a few seconds; a loaded machine may.
pub const DEADLINE: Duration = Duration::from_secs(240);

/// The binary of this package.
pub fn cofferdam() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_cofferdam"))
}

/// An example binary of this package. Cargo builds those with `cargo test`, but not with `--test NAME` alone.
pub fn example(name: &str) -> PathBuf {
    let path = cofferdam().with_file_name("examples").join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --examples` first", path.display());
    path
}

/// A command with an empty environment and all its streams piped.
pub fn command<A: AsRef<OsStr>>(program: &Path, arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    // Set only by tools/negative-controls, and read only by a build that is made for it.
    if let Some(off) = std::env::var_os("COFFERDAM_DANGEROUS_OFF") {
        command.env("COFFERDAM_DANGEROUS_OFF", off);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A copy of a program, made by a process of its own: a file that this one writes may be open in a child that another thread has
/// just started, and then it is busy and cannot be run.
pub fn copied(program: &Path, to: &Path) {
    let status = Command::new("cp").args([program, to]).status().expect("there is a cp");
    assert!(status.success(), "a copy of {}", program.display());
}

/// Runs it to its end with this input.
pub fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdin, input) = (child.stdin.take(), input.to_vec());
    // A program that has seen enough closes its input, which is its right.
    std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&input)));
    wait(child)
}

/// Collects what a program writes until it ends; one that does not is killed, and the test fails.
pub fn wait(mut child: Child) -> Output {
    let deadline = Instant::now() + DEADLINE;
    drop(child.stdin.take());
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let mut in_time = true;
    let mut all = |parts: Receiver<Vec<u8>>| {
        let mut bytes = Vec::new();
        loop {
            match parts.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(part) => bytes.extend(part),
                Err(RecvTimeoutError::Disconnected) => return bytes,
                Err(RecvTimeoutError::Timeout) => {
                    in_time = false;
                    return bytes;
                }
            }
        }
    };
    let (stdout, stderr) = (all(stdout), all(stderr));
    if !in_time {
        let _ = child.kill();
    }
    let status = child.wait().expect("a child that was spawned can be waited for");
    let output = Output { status, stdout, stderr };
    assert!(in_time, "the program had not ended after {DEADLINE:?}: {}", shown(&output));
    output
}

/// Reads a pipe on a thread of its own, so that neither pipe of a program can fill up and block it.
fn collect(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, parts) = channel();
    std::thread::spawn(move || {
        let mut pipe = pipe?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) | Err(_) => return Some(()),
                Ok(length) => sender.send(buffer[..length].to_vec()).ok()?,
            }
        }
    });
    parts
}

/// How it ended and what it said, for failure messages.
pub fn shown(output: &Output) -> String {
    let head = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(2_000)]).into_owned();
    format!("{}\nstdout: {}\nstderr: {}", output.status, head(&output.stdout), head(&output.stderr))
}

/// The root secret of deployments on Redis; in no log.
pub const SECRET: &str = "5b1d7c3e9f0a2b4c6d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c";

/// `PATH=VALUE`s of a deployment on the Redis server at this address, with its secret in this folder.
pub fn on_redis(url: &str, folder: &Folder, secret: &str) -> Vec<String> {
    let secret = folder.private_file("secret", secret);
    let backends = ["queue", "kv", "reply"].map(|port| format!("runtime.platform.{port}.backend=redis"));
    let others = [
        format!("runtime.platform.redis.url={url}"),
        format!("runtime.platform.execution_ipc.auth.secret_file={}", secret.display()),
    ];
    backends.into_iter().chain(others).collect()
}

/// A new folder; it and all in it go when this does.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        // What a killed run with the same process id has left is of no use to anybody.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, contents).expect("a temporary file");
        path
    }

    /// One that others cannot read.
    pub fn private_file(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.file(name, contents);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("our own file");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
