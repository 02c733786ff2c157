//! A service manager's side of the service: what it is told over `NOTIFY_SOCKET`, the socket that it may give,
//! and the unit file under dist/.

use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use program::{Folder, cofferdam, command, wait};
use service::{PATIENCE, Service, until};

#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

/// The score that the unit file keeps, in tenths, as systemd-analyze counts it.
const MOST_EXPOSURE: &str = "15";

fn abstract_name(name: &str) -> SocketAddr {
    SocketAddr::from_abstract_name(name).expect("a short name")
}

/// A service manager's ear, under an abstract name.
struct Manager {
    name: String,
    socket: UnixDatagram,
    heard: String,
}

impl Manager {
    fn new() -> Manager {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cofferdam-test-{}-{count}", std::process::id());
        let socket = UnixDatagram::bind_addr(&abstract_name(&name)).expect("a name of our own");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket");
        Manager { name, socket, heard: String::new() }
    }

    /// A `serve` that talks to it; with these settings, and the watchdog at this interval.
    fn start(&self, sets: &[&str], watchdog_us: Option<u64>) -> Service {
        let mut arguments = vec!["serve", "--set", "web.bind=127.0.0.1:0"];
        arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
        let mut command = command(&cofferdam(), &arguments);
        command.env("NOTIFY_SOCKET", format!("@{}", self.name));
        if let Some(micros) = watchdog_us {
            command.env("WATCHDOG_USEC", micros.to_string());
        }
        Service::from(command.spawn().expect("the binary runs"))
    }

    /// Listens until it was told this.
    #[track_caller]
    fn hears(&mut self, text: &str) {
        until(text, PATIENCE, || {
            let mut datagram = [0; 4_096];
            if let Ok(read) = self.socket.recv(&mut datagram) {
                self.heard += &String::from_utf8_lossy(&datagram[..read]);
            }
            self.heard.contains(text).then_some(())
        });
    }

    fn filler(&self) -> UnixDatagram {
        let filler = UnixDatagram::unbound().expect("a socket");
        filler.connect_addr(&abstract_name(&self.name)).expect("our own socket");
        filler.set_nonblocking(true).expect("a socket");
        filler
    }
}

#[test]
fn a_service_manager_hears_ready_the_watchdog_and_stopping_with_its_time() {
    for mode in ["process_supervisor", "inline"] {
        let mut manager = Manager::new();
        let mode = format!("runtime.platform.bootstrap.mode={mode}");
        let patience = "runtime.platform.lifecycle.graceful_timeout_ms=1000";
        let service = manager.start(&[&mode, patience], Some(100_000));
        manager.hears("READY=1\n");
        assert!(manager.heard.contains(&format!("MAINPID={}\n", service.pid)), "{}", manager.heard);
        manager.hears("WATCHDOG=1\n");
        manager.heard.clear();
        manager.hears("WATCHDOG=1\nWATCHDOG=1\n");
        assert!(!manager.heard.contains("STOPPING"), "{}", manager.heard);
        let ended = service.stop();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
        manager.hears("STOPPING=1\n");
        manager.hears("EXTEND_TIMEOUT_USEC=6000000\n");
    }
}

#[test]
fn a_service_manager_that_does_not_read_stops_nobody() {
    let manager = Manager::new();
    // Its ear is full after a few hundred datagrams; the watchdog goes on.
    let service = manager.start(&[], Some(2_000));
    let full = || matches!(manager.filler().send(b"x"), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
    until("the manager's socket is full", PATIENCE, || full().then_some(()));
    assert_eq!(service.post("/v1/jobs/echo", "1").status, 200);
    assert_eq!(service.stop().status.code(), Some(0));
}

#[test]
fn a_listening_socket_on_standard_input_is_the_public_one() {
    for mode in ["process_supervisor", "inline"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let mode = format!("runtime.platform.bootstrap.mode={mode}");
        // A port that cannot be bound twice: if the service bound it, this would fail.
        let bind = format!("web.bind={address}");
        let service = Service::lent(&listener, &[&mode, &bind]);
        assert_eq!(service.address, address);
        assert_eq!(service.post("/v1/jobs/echo", "1").text(), "1");
        assert_eq!(service.stop().status.code(), Some(0));
        // The manager still holds it: no connection is refused between two runs.
        TcpStream::connect(address).expect("the backlog takes it");
    }
}

#[test]
fn a_socket_beyond_loopback_is_refused_without_authentication() {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a free port");
    let mut command = command(&cofferdam(), ["serve"]);
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    let output = wait(command.spawn().expect("the binary runs"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("beyond loopback"), "{stderr}");
}

#[test]
fn the_unit_files_are_sound_and_the_service_is_barely_exposed() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("skipped: systemd-analyze is not installed");
        return;
    }
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist");
    let threshold = format!("--threshold={MOST_EXPOSURE}");
    let analyze = |arguments: &[&str]| {
        let output = Command::new("systemd-analyze").args(arguments).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text.into_owned())
    };
    let unit = dist.join("cofferdam.service").display().to_string();
    let (sound, text) = analyze(&["security", "--offline=true", &threshold, &unit]);
    assert!(sound, "{text}");
    // The program need not be where the unit says: a copy names one that is there.
    let folder = Folder::new();
    let text =
        std::fs::read_to_string(&unit).expect("the unit").replace("/usr/local/bin/cofferdam", "/bin/true");
    let service = folder.file("cofferdam.service", text);
    let text = std::fs::read_to_string(dist.join("cofferdam.socket")).expect("the unit");
    let socket = folder.file("cofferdam.socket", text);
    let (sound, text) = analyze(&["verify", &service.display().to_string(), &socket.display().to_string()]);
    assert!(sound && text.trim().is_empty(), "{text}");
}
