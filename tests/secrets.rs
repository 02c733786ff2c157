//! The secret of a run, and what is derived from it, is in nothing that the run says or leaves: searched as raw bytes,
//! hexadecimal and base64, in every stream, page, file and `/proc` entry of a whole life with traffic, strangers,
//! crashes and a drain, at the most talkative log level.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use cofferdam::channel::keys::GroupSecret;
use cofferdam::config::secret::Secret;
use program::{Folder, cofferdam, command, copied, wait};
use service::{PATIENCE, Service, kill, until};
use wire::handshake_keys;

#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;
#[path = "support/wire.rs"]
mod wire;

/// A payload that must not be in a log either.
const PAYLOAD: &str = "a-payload-that-nobody-may-log";
/// `nobody`.
const OTHER_USER: u32 = 65_534;

/// What to look for: every form of every key.
struct Needles(Vec<Vec<u8>>);

impl Needles {
    fn of(keys: &[[u8; 32]]) -> Needles {
        let mut forms = Vec::new();
        for key in keys {
            let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            forms.push(key.to_vec());
            forms.push(hex.to_uppercase().into_bytes());
            forms.push(hex.into_bytes());
            // Inside something longer a key begins at any of three places of a group of three bytes.
            for before in 0..3 {
                for symbols in [b"+/", b"-_"] {
                    let text = base64(&[&vec![0; before][..], key].concat(), symbols);
                    // Those symbols that depend on the key alone.
                    forms.push(text[(before * 8).div_ceil(6)..(before + 32) * 8 / 6].to_vec());
                }
            }
        }
        Needles(forms)
    }

    #[track_caller]
    fn are_not_in(&self, bytes: &[u8], what: &str) {
        for needle in &self.0 {
            let found = bytes.windows(needle.len()).any(|window| window == needle);
            assert!(!found, "{what} holds {}", String::from_utf8_lossy(needle));
        }
    }
}

fn base64(bytes: &[u8], last_two: &[u8; 2]) -> Vec<u8> {
    let symbols: Vec<u8> =
        (b'A'..=b'Z').chain(b'a'..=b'z').chain(b'0'..=b'9').chain(last_two.iter().copied()).collect();
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let value =
        |six: &[u8]| six.iter().fold(0, |value, bit| value << 1 | usize::from(*bit)) << (6 - six.len());
    bits.chunks(6).map(|six| symbols[value(six)]).collect()
}

#[test]
fn the_search_finds_every_form() {
    assert_eq!(base64(b"Man!", b"+/"), b"TWFuIQ", "RFC 4648");
    let key: [u8; 32] = std::array::from_fn(|at| u8::try_from(at * 7 % 256).expect("a byte"));
    let needles = Needles::of(&[key]);
    let finds = |text: &[u8]| std::panic::catch_unwind(|| needles.are_not_in(text, "it")).is_err();
    assert!(finds(&[b"..", &key[..], b".."].concat()));
    for before in [&b""[..], b"x", b"xy", b"xyz"] {
        assert!(finds(&base64(&[before, &key, b"tail"].concat(), b"-_")), "{before:?}");
    }
    assert!(!finds(&base64(b"something else that is longer than any of them, by far", b"+/")));
}

/// A secret file, and what must not be seen.
fn secret(folder: &Folder) -> (PathBuf, Needles) {
    let root: [u8; 32] = std::array::from_fn(|at| u8::try_from(at * 37 % 251 + 3).expect("a byte"));
    let hex: String = root.iter().map(|byte| format!("{byte:02x}")).collect();
    let file = folder.file("secret", hex);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("our own file");
    let group = GroupSecret::derive(&Secret::new(root).expect("a secret"), "execution");
    let [executor, broker] = handshake_keys(&group);
    (file, Needles::of(&[root, *group.expose(), executor, broker]))
}

#[test]
fn no_stream_page_file_or_process_table_of_a_whole_run_holds_a_secret_or_a_payload() {
    let folder = Folder::new();
    let (file, needles) = secret(&folder);
    let runtime = folder.path("run");
    std::fs::create_dir(&runtime).expect("our own folder");
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
    let ipc = "runtime.platform.execution_ipc";
    let sets = [
        "web.bind=127.0.0.1:0".to_owned(),
        "observability.log=json".into(),
        format!("{ipc}.bind_port={}", free.port()),
        format!("{ipc}.auth.secret_file={}", file.display()),
    ];
    let arguments = |first: &str| {
        let sets = sets.iter().flat_map(|set| ["--set".to_owned(), set.clone()]);
        [first.to_owned()].into_iter().chain(sets).collect::<Vec<String>>()
    };
    for more in [&[][..], &["--json".to_owned()]] {
        let output = wait(
            command(&cofferdam(), [arguments("check"), more.to_vec()].concat()).spawn().expect("it runs"),
        );
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        needles.are_not_in(&[output.stdout, output.stderr].concat(), "check");
    }
    let mut serve = command(&cofferdam(), arguments("serve"));
    serve.env("RUST_LOG", "trace").env("RUNTIME_DIRECTORY", &runtime);
    let service = Service::from(serve.spawn().expect("it runs"));

    // A life: jobs, bad requests, strangers at the channel, a crash of each child.
    let mut seen = Vec::new();
    for target in ["/v1/jobs/echo", "/v1/jobs/nothing", "/v1/batch/echo"] {
        seen.extend(service.post(target, PAYLOAD).body);
    }
    service.submit("/v1/jobs/sleep", &[], r#"{"ms":60000}"#);
    for stranger in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xFF; 80], b"CFD2\x02\x01\x00\x00", &[b'C'; 80]] {
        let mut stream = TcpStream::connect(free).expect("the channel listens");
        let _ = stream.write_all(stranger).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let _ = stream.read_to_end(&mut seen);
    }
    let looks = |seen: &mut Vec<u8>| {
        for page in ["/", "/metrics", "/v1/stats", "/v1/jobs", "/healthz", "/readyz", "/nothing"] {
            seen.extend(service.get(page).body);
        }
        for pid in [service.pid, service.child("web"), service.child("executor")] {
            for page in ["cmdline", "environ", "status", "maps"] {
                seen.extend(std::fs::read(format!("/proc/{pid}/{page}")).unwrap_or_default());
            }
            let limits =
                std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("our own child's limits");
            let core =
                limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a limit");
            assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"], "no core of {pid}");
        }
        seen.extend(files(&runtime));
    };
    looks(&mut seen);
    for role in ["executor", "web"] {
        let old = service.child(role);
        kill(old);
        until("a successor", PATIENCE, || service.children(role).into_iter().find(|pid| *pid != old));
        until("it answers", PATIENCE, || (service.post("/v1/jobs/echo", "1").status == 200).then_some(()));
    }
    looks(&mut seen);
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    seen.extend(files(&runtime));
    needles.are_not_in(&seen, "a page, a file or the process table");
    needles.are_not_in(ended.stderr.as_bytes(), "the log");
    assert!(ended.stderr.contains("TRACE") || ended.stderr.contains("\"trace\""), "the log was talkative");
    assert!(!ended.stderr.contains(PAYLOAD), "a payload is in the log");
}

/// The contents of all files under a folder; sockets and pipes have none.
fn files(folder: &Path) -> Vec<u8> {
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type().expect("our own file");
        if kind.is_dir() {
            seen.extend(files(&entry.path()));
        } else if kind.is_file() {
            seen.extend(std::fs::read(entry.path()).expect("our own file"));
        }
    }
    seen
}

#[test]
fn no_process_of_another_user_lets_that_user_look_into_it() {
    if rustix::process::geteuid().as_raw() != 0 {
        println!("skipped: only root can start the service as another user");
        return;
    }
    // Somewhere that the other user can read.
    let place = std::env::temp_dir().join(format!("cofferdam-other-user-{}", std::process::id()));
    std::fs::create_dir_all(&place).expect("a temporary folder");
    let program = place.join("cofferdam");
    copied(&cofferdam(), &program);
    for path in [&place, &program] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("our own file");
    }
    let mut serve = command(&program, ["serve", "--set", "web.bind=127.0.0.1:0"]);
    serve.uid(OTHER_USER).gid(OTHER_USER).current_dir("/");
    let service = Service::from(serve.spawn().expect("it runs"));
    for pid in [service.pid, service.child("web"), service.child("executor")] {
        let process = std::fs::metadata(format!("/proc/{pid}/status")).expect("it runs");
        let uid = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        assert!(uid.contains(&format!("Uid:\t{OTHER_USER}\t")), "{uid}");
        // proc(5): the files of a process that is not dumpable belong to root.
        assert_eq!(process.uid(), 0, "{pid} is dumpable");
    }
    assert_eq!(service.stop().status.code(), Some(0));
    let _ = std::fs::remove_dir_all(&place);
}
