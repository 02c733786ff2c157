//! What holds after every fault, whatever it was: a [`Trial`] looks at a service
//! before, and again once the fault is gone.
//!
//! It guards the suite against a row that is passed with something left behind: a job without an end, a caller with
//! another's answer, a process, a thread, a descriptor, a file, a word in the log that nobody should read.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::program::{Folder, cofferdam, command, example};
use super::service::{
    Answer, Client, Done, Ended, NoAnswer, PATIENCE, Service, Stopwatch, all_children, caller, free_address,
    holdings, is_alive, request, until, words,
};

/// In each payload, and so in no log.
pub const MARKER: &str = "nobody-else-may-read-this";
/// The root secret of each trial.
pub const SECRET: &str = "3f9a1c5e7b2d4f6081a3c5e7092b4d6f8192a3b4c5d6e7f80911223344556677";
/// Latency is back by then.
pub const BACK: Duration = Duration::from_secs(5);
/// What a request takes that nothing is in the way of, on a loaded machine.
const AT_ONCE: Duration = Duration::from_millis(250);

/// A running service, and what it held when nothing was wrong with it.
pub struct Trial {
    service: Service,
    before: Holdings,
    run: PathBuf,
    _folder: Folder,
}

/// Descriptors and threads: the supervisor's, and the most of any child of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Holdings {
    processes: BTreeMap<String, usize>,
    most: BTreeMap<String, (usize, usize)>,
}

impl Deref for Trial {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}

impl Trial {
    #[track_caller]
    pub fn start(sets: &[&str]) -> Trial {
        Trial::of(&cofferdam(), sets, |_| {})
    }

    /// With another program, or with another beginning: `prepare` may change its command.
    #[track_caller]
    pub fn of(program: &Path, sets: &[&str], prepare: impl FnOnce(&mut Command)) -> Trial {
        Trial::within("", program, sets, prepare)
    }

    /// The same, after some lines of shell: what they set up, it starts with.
    #[track_caller]
    pub fn within(shell: &str, program: &Path, sets: &[&str], prepare: impl FnOnce(&mut Command)) -> Trial {
        let folder = Folder::new();
        let secret = folder.file("secret", SECRET);
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("our own file");
        let run = folder.path("run");
        std::fs::create_dir(&run).expect("a folder");
        let secret = format!("runtime.platform.execution_ipc.auth.secret_file={}", secret.display());
        let bind = format!("web.bind={}", free_address());
        let sets = [&*bind, &secret].into_iter().chain(sets.iter().copied());
        let mut command = shell_command(shell, program);
        command.arg("serve").args(sets.flat_map(|set| ["--set", set])).env("RUNTIME_DIRECTORY", &run);
        prepare(&mut command);
        let service = Service::from(command.spawn().expect("the program can be started"));
        let mut trial = Trial { service, before: Holdings::default(), run, _folder: folder };
        // Threads are made on the first use of some parts.
        for page in ["/readyz", "/metrics", "/v1/stats"] {
            assert_eq!(trial.get(page).status, 200, "{page}");
        }
        assert_eq!(trial.call(0, PATIENCE), Ok(()));
        trial.before = trial.holdings();
        trial
    }

    /// The folder that its private socket's folder is in.
    pub fn run(&self) -> &Path {
        &self.run
    }

    fn holdings(&self) -> Holdings {
        let mut now = Holdings::default();
        now.most.insert("supervisor".into(), holdings(self.pid));
        for child in all_children(self.pid) {
            let role = words(child).get(1).cloned().unwrap_or_default();
            let (descriptors, threads) = holdings(child);
            let most = now.most.entry(role.clone()).or_default();
            *most = (most.0.max(descriptors), most.1.max(threads));
            *now.processes.entry(role).or_default() += 1;
        }
        now
    }

    /// One caller with a connection and a number of its own, who gets that number back.
    pub fn call(&self, number: usize, patience: Duration) -> Result<(), NoAnswer> {
        call(&mut self.connect(), number, patience)
    }

    /// Callers that keep their connections alive while `work` is done. None is refused, each answer is its own; a
    /// connection may be lost. `work` sees how many were answered.
    pub fn under_load<T>(&self, callers: usize, work: impl FnOnce(&AtomicUsize) -> T) -> (T, Load) {
        let (answered, lost, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        let result = std::thread::scope(|scope| {
            for caller in 0..callers {
                let (answered, lost, done) = (&answered, &lost, &done);
                scope.spawn(move || {
                    let mut client = self.connect();
                    for number in (0..).take_while(|_| !done.load(Ordering::Relaxed)) {
                        match call(&mut client, callers * number + caller, PATIENCE) {
                            Ok(()) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                            Err(NoAnswer::Late) => panic!("caller {caller} waits for ever"),
                            Err(NoAnswer::Closed | NoAnswer::Broken) => {
                                lost.fetch_add(1, Ordering::Relaxed);
                                client = self.connect();
                            }
                        }
                    }
                });
            }
            let _done = Done(&done);
            work(&answered)
        });
        (result, Load { answered: answered.into_inner(), lost: lost.into_inner() })
    }

    /// The fault is gone, and nothing of it is left in the running service.
    #[track_caller]
    pub fn recovered(&self) {
        let mut number = 0;
        until("a request is answered at once again", BACK, || {
            let begun = Stopwatch::start();
            number += 1;
            (self.call(number, BACK).is_ok() && begun.elapsed() < AT_ONCE).then_some(())
        });
        until("it is ready again", BACK, || (self.get("/readyz").status == 200).then_some(()));
        until("nobody waits", PATIENCE, || (self.metric("reply_waiters") == 0.0).then_some(()));
        until("every accepted job has ended", PATIENCE, || {
            (self.total("jobs_submitted_total") == self.total("jobs_finished_total")).then_some(())
        });
        let stats = self.get("/v1/stats").json();
        assert_eq!(
            (&stats["totals"]["queued"], &stats["totals"]["running"]),
            (&0.into(), &0.into()),
            "{stats}"
        );
        for job in self.get("/v1/jobs?limit=1000").json()["jobs"].as_array().expect("a list") {
            let status = job["status"].as_str().expect("a status");
            assert!(!matches!(status, "queued" | "running"), "{job}");
            assert!(job["finished_at"].is_string(), "{job}");
        }
        let mut now = self.holdings();
        let deadline = Instant::now() + PATIENCE;
        while !now.is_within(&self.before) {
            assert!(Instant::now() < deadline, "{now:?} is left instead of {:?}", self.before);
            std::thread::sleep(Duration::from_millis(10));
            now = self.holdings();
        }
    }

    /// All values of a metric, whatever their labels.
    fn total(&self, metric: &str) -> f64 {
        let text = self.get("/metrics").text();
        let values = text.lines().filter_map(|line| {
            line.strip_prefix(&format!("cofferdam_{metric}{{"))?.rsplit_once(' ')?.1.parse::<f64>().ok()
        });
        values.sum()
    }

    /// [`Trial::recovered`], and then it stops by SIGTERM, cleanly.
    #[track_caller]
    pub fn over(self) -> Ended {
        self.recovered();
        self.terminate();
        self.ended(Some(0))
    }

    /// It ends by itself, with this exit code (none: by a signal), and leaves nothing.
    #[track_caller]
    pub fn ended(self, code: Option<i32>) -> Ended {
        let Trial { service, run, _folder, .. } = self;
        let (children, address) = (all_children(service.pid), service.address);
        let ended = service.ended();
        assert_ended(&ended.status, &ended.stderr, code);
        assert!(!children.iter().any(|pid| is_alive(*pid)), "a child outlives its supervisor");
        until("its port is free", PATIENCE, || TcpListener::bind(address).ok());
        // A supervisor that was killed cannot clean up; the next one does, which is a test of its own.
        if code.is_some() {
            assert_eq!(std::fs::read_dir(&run).expect("our own folder").count(), 0, "it leaves its socket");
        }
        ended
    }
}

impl Holdings {
    /// The same processes, and no more of the rest.
    fn is_within(&self, before: &Holdings) -> bool {
        let most = |role: &str| before.most.get(role).copied().unwrap_or_default();
        self.processes == before.processes
            && self.most.iter().all(|(role, now)| now.0 <= most(role).0 && now.1 <= most(role).1)
    }
}

/// What became of the callers of a load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub answered: usize,
    /// Connections that ended without an answer.
    pub lost: usize,
}

/// A program as these lines of shell leave it: with their limits, their streams, their user. Same process id.
pub fn shell_command(shell: &str, program: &Path) -> Command {
    if shell.is_empty() {
        return command::<&str>(program, []);
    }
    let exec =
        if shell.contains("exec ") { shell.to_owned() } else { format!("{shell}; exec \"$0\" \"$@\"") };
    let mut command = command(Path::new("/bin/sh"), ["-c", &exec]);
    command.arg(program);
    command
}

/// A payload that no log may show.
pub fn payload(number: usize) -> String {
    format!("{MARKER} {number}")
}

/// One caller, who gets its own number back.
pub fn call(client: &mut Client, number: usize, patience: Duration) -> Result<(), NoAnswer> {
    client.send(request("POST", "/v1/jobs/echo", &[], payload(number)));
    let answer = client.try_read(patience)?;
    assert_eq!((answer.status, answer.text()), (200, payload(number)), "{answer:?}");
    Ok(())
}

/// A trial of the test embedder. Its serial handler `count` adds one to its lane's number and says it: an effect that
/// is lost or repeated shows in every later answer.
pub fn counting(sets: &[&str]) -> Trial {
    Trial::of(&example("embedder"), sets, |_| {})
}

/// Callers that each take so many ms of the one lane.
pub fn counters(service: &Service, callers: usize, ms: u64) -> Vec<Client> {
    (0..callers).map(|_| caller(service, "/v1/jobs/count", ms.to_string())).collect()
}

/// Each gets a number of its own, from `first` on, and none is left out.
#[track_caller]
pub fn assert_counted(callers: &mut [Client], first: usize) {
    let mut said: Vec<usize> = callers
        .iter_mut()
        .map(|caller| {
            let answer = caller.read();
            assert_eq!(answer.status, 200, "{answer:?}");
            answer.text().parse().expect("a number")
        })
        .collect();
    said.sort_unstable();
    assert!(said.iter().copied().eq(first..first + callers.len()), "each effect once: {said:?}");
}

#[track_caller]
pub fn assert_text(answer: &Answer, text: &str) {
    assert_eq!((answer.status, answer.text().as_str()), (200, text), "{answer:?}");
}

/// The documented exit code, and no word in the log that nobody should read.
#[track_caller]
pub fn assert_ended(status: &ExitStatus, stderr: &str, code: Option<i32>) {
    assert_eq!(status.code(), code, "{status}: {stderr}");
    assert!(!stderr.contains(MARKER), "a payload is in the log: {stderr}");
    assert!(!stderr.to_lowercase().contains(SECRET), "the secret is in the log: {stderr}");
}

/// Not by `println!`, which is shown only where a test fails.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
