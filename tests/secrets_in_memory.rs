//! What a process's memory holds: each key is where it is used, and gone with what it was used for.
//!
//! A signing key is kept as the two states that its padding leaves in the hash (RFC 2104, section 4), so those are
//! looked for, beside the key's own bytes. Reading another process's memory needs root: without it these tests say that
//! they were skipped.

#[cfg(feature = "redis")]
#[path = "support/deployment.rs"]
mod deployment;
#[path = "support/program.rs"]
mod program;
#[cfg(feature = "redis")]
#[path = "support/redis.rs"]
mod redis;
#[path = "support/secret_file.rs"]
mod secret_file;
#[path = "support/service.rs"]
mod service;
#[path = "support/wire.rs"]
mod wire;

use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;

use cofferdam::channel::ExecutorEnd;
use cofferdam::channel::keys::GroupSecret;
use cofferdam::clock::monotonic_millis;
use cofferdam::config::secret::Secret;
use program::{Folder, SECRET};
#[cfg(feature = "redis")]
use secret_file::THE_SAME;
use secret_file::{ANOTHER, NEW, OLD, SecretFile, replaced};
use service::{PATIENCE, Service, free_address, until};

/// Two groups, each with a secret of its own.
const GROUPS: &str = r#"runtime.platform.process_groups=[{"name":"a","workers":1,"handlers":["echo"]},{"name":"b","workers":1,"handlers":["sleep"]}]"#;

/// All that a process may write to; `None`, and said, where nobody lets us.
fn memory(pid: u32) -> Option<Vec<u8>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let memory = File::open(format!("/proc/{pid}/mem"));
    let (false, Ok(memory)) = (maps.is_empty(), memory) else {
        let _ = writeln!(std::io::stderr(), "SKIPPED: only root may read another process's memory");
        return None;
    };
    let mut all = Vec::new();
    for line in
        maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw")))
    {
        let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [from, to] = [from, to].map(|at| u64::from_str_radix(at, 16).expect("an address"));
        let mut part = vec![0; usize::try_from(to - from).expect("it fits")];
        if memory.read_exact_at(&mut part, from).is_ok() {
            all.append(&mut part);
        }
    }
    assert!(all.len() > 100_000, "this reads only {} bytes", all.len());
    Some(all)
}

/// Its bytes, and the states that it leaves in the inner and the outer hash.
fn forms(key: &[u8; 32]) -> Vec<Vec<u8>> {
    const START: [u32; 8] = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];
    let padded = |pad: u8| {
        let mut block = [pad; 64];
        key.iter().zip(&mut block).for_each(|(byte, into)| *into ^= byte);
        let mut state = START;
        sha2::block_api::compress256(&mut state, &[block]);
        state.iter().flat_map(|word| word.to_ne_bytes()).collect()
    };
    vec![key.to_vec(), padded(0x36), padded(0x5C)]
}

fn holds(memory: &[u8], key: &[u8; 32]) -> bool {
    forms(key).iter().any(|form| memory.windows(form.len()).any(|window| window == form))
}

fn root() -> Secret {
    root_of(SECRET)
}

fn root_of(text: &str) -> Secret {
    Secret::parse(text.as_bytes()).expect("a secret").remove(0)
}

/// Until none of these processes holds any of these keys.
#[track_caller]
fn assert_gone(pids: &[u32], keys: &[[u8; 32]]) {
    for pid in pids {
        let mut left = Vec::new();
        let begun = service::Stopwatch::start();
        while begun.elapsed() < PATIENCE {
            let Some(memory) = memory(*pid) else { return };
            left = (0..keys.len()).filter(|at| holds(&memory, &keys[*at])).collect();
            if left.is_empty() {
                break;
            }
        }
        assert!(left.is_empty(), "{:?} holds the keys {left:?}", service::words(*pid));
    }
}

#[test]
fn a_secret_that_was_replaced_is_gone_from_every_process() {
    let file = SecretFile::of(&[OLD]);
    let service = Service::start(&[GROUPS, &file.set()]);
    let (web, executors) = (service.child("web"), service.children("executor"));
    let keys = |text: &str| {
        let root = root_of(text);
        let [a, b] = ["a", "b"].map(|group| *GroupSecret::derive(&root, group).expose());
        [*root.expose(), a, b]
    };
    let (old, new) = (keys(OLD), keys(NEW));
    let Some(before) = memory(web) else { return };
    assert!(holds(&before, &old[1]) && holds(&before, &old[2]), "this finds a secret that is there");
    file.rotate(&service, &[NEW], ANOTHER);
    replaced(&service, &executors);
    assert_eq!(service.post("/v1/jobs/echo", "1").status, 200);
    let all: Vec<u32> = service::all_children(service.pid).into_iter().chain([service.pid]).collect();
    assert_gone(&all, &old);
    // Roots are nobody's but while they are read.
    assert_gone(&all, &new[..1]);
    let after = memory(web).expect("as root");
    assert!(holds(&after, &new[1]) && holds(&after, &new[2]));
    service.stop();
}

#[cfg(feature = "redis")]
#[test]
fn what_an_old_secret_signed_with_at_rest_is_gone_once_its_line_is() {
    if !deployment::can_serve() {
        return;
    }
    let (deployment, file) = (deployment::Deployment::new("gone"), SecretFile::of(&[OLD]));
    let service = deployment.serve(&program::cofferdam(), &[&file.set()]);
    assert_eq!(service.post("/v1/jobs/echo", "1").status, 200);
    let envelope = root_of(OLD).envelope();
    let mut keys = vec![*root_of(OLD).expose(), *envelope.expose()];
    let kinds = ["job", "outcome", "entry", "check", "tag", "state", "progress"];
    keys.extend(
        kinds.map(|kind| *cofferdam::channel::keys::hkdf_expand::<32>(envelope.expose(), &[kind.as_bytes()])),
    );
    let web = service.child("web");
    let Some(before) = memory(web) else { return };
    assert!(keys[2..].iter().all(|key| holds(&before, key)), "this finds keys that are there");
    file.rotate(&service, &[NEW, OLD], ANOTHER);
    assert_eq!(service.post("/v1/jobs/echo", "1").status, 200);
    file.rotate(&service, &[NEW], THE_SAME);
    assert_eq!(service.post("/v1/jobs/echo", "1").status, 200);
    assert_gone(&[web, service.pid], &keys);
    service.stop();
}

#[test]
fn the_keys_of_a_closed_connection_are_gone_from_web() {
    let folder = Folder::new();
    let file = folder.private_file("secret", SECRET);
    let channel = free_address();
    let ipc = "runtime.platform.execution_ipc";
    let service = Service::start(&[
        GROUPS,
        &format!("{ipc}.bind_port={}", channel.port()),
        &format!("{ipc}.auth.secret_file={}", file.display()),
    ]);
    let web = service.child("web");
    let secret = GroupSecret::derive(&root(), "a");
    let mut stream = TcpStream::connect(channel).expect("the channel listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut end =
        ExecutorEnd::new(&secret, 0, std::array::from_fn(|at| at as u8), 30_000, monotonic_millis());
    let m1 = end.output(monotonic_millis()).to_vec();
    stream.write_all(&m1).expect("it is taken");
    end.wrote(m1.len());
    let mut m2 = [0; 512];
    let length = service::read(&mut stream, &mut m2).expect("it is answered");
    end.received(&m2[..length], &secret, monotonic_millis()).expect("it knows the secret");
    // The third message, and a ping behind it that shows that the keys are in use.
    loop {
        let said = end.output(monotonic_millis()).to_vec();
        if said.is_empty() {
            break;
        }
        stream.write_all(&said).expect("it is taken");
        end.wrote(said.len());
    }
    let mut answer = [0; 256];
    let heard = service::read(&mut stream, &mut answer).expect("it is answered");
    end.received(&answer[..heard], &secret, monotonic_millis()).expect("a sound frame");
    assert!(end.is_up);
    let keys = wire::data_keys(&secret, &m1, &m2[..length]);
    let Some(open) = memory(web) else { return };
    assert!(
        holds(&open, &keys.to_broker) && holds(&open, &keys.to_executor),
        "this finds a key that is there"
    );
    drop(stream);
    until("the keys have gone", PATIENCE, || {
        let memory = memory(web)?;
        let left = [keys.to_broker, keys.to_executor, keys.prk].iter().any(|key| holds(&memory, key));
        (!left).then_some(())
    });
    service.stop();
}

#[cfg(feature = "redis")]
#[test]
fn an_executor_of_a_deployment_on_redis_holds_its_channel_key_and_none_that_redis_knows() {
    use cofferdam::job::{JobId, JobSpec, Payload, Trace};
    use cofferdam::redis_backend::envelope::{Forged, Signer};

    if !deployment::can_serve() {
        return;
    }
    let deployment = deployment::Deployment::new("keys");
    let service = deployment.serve(&program::cofferdam(), &[GROUPS]);
    assert_eq!(service.post("/v1/jobs/echo", "1").status, 200);
    assert_eq!(service.post("/v1/jobs/sleep", r#"{"ms":1}"#).status, 200);
    let root = root();
    let envelope = root.envelope();
    let secrets = ["a", "b"].map(|group| GroupSecret::derive(&root, group));
    let at_rest = ["job", "outcome", "entry", "check", "progress"].map(|kind| {
        let key: zeroize::Zeroizing<[u8; 32]> =
            cofferdam::channel::keys::hkdf_expand(envelope.expose(), &[kind.as_bytes()]);
        *key
    });
    let executors = service.children("executor");
    assert_eq!(executors.len(), 2);
    let mut groups = Vec::new();
    for pid in executors {
        let Some(memory) = memory(pid) else { return };
        let own: Vec<usize> = (0..2).filter(|group| holds(&memory, secrets[*group].expose())).collect();
        assert_eq!(own.len(), 1, "the secret of its own group, and of no other: {own:?}");
        groups.extend(own);
        for key in at_rest.iter().chain([root.expose(), envelope.expose()]) {
            assert!(!holds(&memory, key), "a key that is no executor's");
        }
        assert!(!memory.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "the secret's text");
    }
    groups.sort_unstable();
    assert_eq!(groups, [0, 1]);
    // The web process signs: so the search would find these keys.
    let web = memory(service.child("web")).expect("as root");
    assert!(at_rest.iter().all(|key| holds(&web, key)) && !holds(&web, root.expose()));
    // Connections to the server are the web process's alone.
    let mut raw = deployment.raw();
    let clients: String = ::redis::cmd("CLIENT").arg("LIST").query(&mut raw).expect("the server is there");
    let ours = sockets(&[service.child("web")]);
    let theirs = sockets(&service.children("executor"));
    assert!(clients.lines().count() > 1 && ours > 0, "web has connections: {clients}");
    assert_eq!(theirs, 0, "an executor has none");
    // What such a key signs is nobody's of the deployment.
    let prefix = "{keys}:";
    let signer = Signer::new(&[&envelope], prefix);
    let spec = JobSpec {
        id: JobId([7; 16]),
        owner: "".into(),
        handler: "echo".into(),
        ordering_key: None,
        trace: Trace { id: [1; 16], span: [2; 8], ..Trace::default() },
        tracestate: None,
        submitted_at: cofferdam::clock::Timestamp(1),
        timeout: std::time::Duration::from_secs(1),
        one_line: false,
    };
    for secret in &secrets {
        let secret = Secret::new(*secret.expose()).expect("a secret");
        for key in [secret.envelope(), secret] {
            let sealed = Signer::new(&[&key], prefix).seal_job(&spec, &Payload::json(*b"1"), &[]);
            assert!(matches!(signer.open_job(spec.id, &sealed), Err(Forged)));
        }
    }
    service.stop();
}

/// Connected Unix sockets of these processes whose other end is the server's.
#[cfg(feature = "redis")]
fn sockets(pids: &[u32]) -> usize {
    let output = std::process::Command::new("ss").args(["-xpH", "state", "connected"]).output();
    let text = String::from_utf8(output.expect("ss is installed").stdout).expect("text");
    let server = redis::url().trim_start_matches("unix://").to_owned();
    let ends: Vec<&str> = text.lines().filter(|line| line.contains(&server)).collect();
    // The server's end names the inode of its peer.
    let peers: Vec<&str> = ends.iter().filter_map(|line| line.split_whitespace().nth(7)).collect();
    let is_of = |line: &&str| pids.iter().any(|pid| line.contains(&format!("pid={pid},")));
    let inode = |line: &str| line.split_whitespace().nth(5).map(str::to_owned);
    text.lines()
        .filter(is_of)
        .filter(|line| inode(line).is_some_and(|own| peers.contains(&own.as_str())))
        .count()
}
