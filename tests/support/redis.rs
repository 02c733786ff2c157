//! A real redis-server for tests: on a Unix socket in a folder of its own, without persistence; it and its folder do
//! not outlive the test program.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Between two looks at a condition, and how long one is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(3);
const PATIENCE: Duration = Duration::from_secs(20);

/// The address of the program's one server. Deployments in it are apart by their prefixes.
pub fn url() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| {
        let (ready, started) = sync_channel(1);
        // A parent-death signal follows the thread that spawned, and the thread of a test ends with the test.
        std::thread::spawn(move || {
            let (socket, mut child) = start();
            let _ = ready.send(socket);
            let _ = child.wait();
        });
        format!("unix://{}", started.recv().expect("the server's thread lives").display())
    })
}

/// The same as the config names it.
#[allow(dead_code, reason = "only tests at the adapters need it")]
pub fn config() -> cofferdam::config::Redis {
    cofferdam::config::Redis {
        url: url().to_owned(),
        username: None,
        password_file: None,
        key_prefix: "cofferdam".into(),
        connect_timeout_ms: 2_000,
        response_timeout_ms: 5_000,
    }
}

fn start() -> (PathBuf, Child) {
    // Socket addresses are short: not in the target folder.
    let folder = std::env::temp_dir().join(format!("cofferdam-redis-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).expect("a temporary folder");
    let socket = folder.join("s");
    // setpriv (util-linux) ends the server with this process, however that ends; the server's last act frees its folder.
    let server = r#"redis-server --port 0 --save "" --appendonly no --dir "$1" --unixsocket "$1/s" & wait; rm -rf "$1""#;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "sh", "-c", &format!("trap 'kill $!' TERM; {server}"), "sh"])
        .arg(&folder);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let child = child.expect("setpriv and redis-server are installed (tools/test installs them)");
    let deadline = Instant::now() + PATIENCE;
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < deadline, "redis-server does not listen");
        std::thread::sleep(LOOK_AGAIN);
    }
    (socket, child)
}
