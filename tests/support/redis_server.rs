//! The processes of a deployment on a redis-server of a test's own, callers under whose eyes something goes wrong, and
//! what must be as before once that is over.
//!
//! It guards the suite against an executor that outlives its test.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::aftermath::{SECRET, assert_ended, assert_text};
use super::program::{Folder, cofferdam, command, on_redis};
use super::service::{
    Client, Done, Ended, PATIENCE, Service, all_children, free_address, holdings, is_alive, request, running,
    until, words,
};

#[allow(unused_imports, reason = "each test that includes this file uses its own part of it")]
pub use super::own_redis::{DURABLE, Server};

/// Latency is back by then.
pub const BACK: Duration = Duration::from_secs(5);
/// Connections that a process keeps idle for its next call; they come with its first load.
const KEPT_CONNECTIONS: usize = 4;

/// How the processes of a deployment are started: its config, and the folder of its secret.
pub struct Deployment {
    folder: Folder,
    sets: Vec<String>,
}

impl Deployment {
    /// On the server at this address.
    pub fn at(url: &str) -> Deployment {
        let folder = Folder::new();
        let sets = on_redis(url, &folder, SECRET);
        Deployment { folder, sets }
    }

    /// On this server's socket.
    pub fn on(server: &Server) -> Deployment {
        Deployment::at(&server.url())
    }

    /// With one more setting.
    #[must_use]
    pub fn with(mut self, set: &str) -> Deployment {
        self.sets.push(set.to_owned());
        self
    }

    /// A file beside its secret, which others cannot read.
    pub fn file(&self, name: &str, contents: &str) -> PathBuf {
        self.folder.private_file(name, contents)
    }

    /// `PROGRAM ROLE` with the deployment's config.
    pub fn command(&self, program: &Path, role: &str, sets: &[&str]) -> Command {
        let mut command = command(program, [role, "--set", "web.bind=127.0.0.1:0"]);
        for set in self.sets.iter().map(String::as_str).chain(sets.iter().copied()) {
            command.args(["--set", set]);
        }
        command
    }

    fn service(&self, program: &Path, role: &str, sets: &[&str]) -> Service {
        // A fixed port: a web process that is replaced is found where it was.
        let bind = format!("web.bind={}", free_address());
        let sets: Vec<&str> = [&*bind].into_iter().chain(sets.iter().copied()).collect();
        Service::from(self.command(program, role, &sets).spawn().expect("it can be started"))
    }

    /// `serve`
    #[track_caller]
    pub fn serve(&self, sets: &[&str]) -> Service {
        self.service(&cofferdam(), "serve", sets)
    }

    /// `serve` of an embedder.
    #[track_caller]
    pub fn serve_of(&self, program: &Path, sets: &[&str]) -> Service {
        self.service(program, "serve", sets)
    }

    /// `web` alone.
    #[track_caller]
    pub fn web(&self, program: &Path, sets: &[&str]) -> Service {
        self.service(program, "web", sets)
    }

    /// `executor` alone, once it says that it works.
    #[track_caller]
    pub fn executor(&self, program: &Path, sets: &[&str]) -> Service {
        Service::from(self.command(program, "executor", sets).spawn().expect("it can be started"))
    }
}

/// Until so many jobs run, and their processes have heard so: the server may say it to who asks before it has answered
/// who submitted. A job that goes its whole way afterwards is in later calls than theirs.
#[track_caller]
pub fn running_and_heard(service: &Service, count: u64) {
    running(service, count);
    assert_text(&service.post("/v1/jobs/echo", "1"), "1");
}

/// Waits until a process's `/metrics` have this line, which begins behind the prefix.
#[track_caller]
pub fn shows(service: &Service, line: &str) {
    until(line, PATIENCE, || {
        service.get("/metrics").text().contains(&format!("\ncofferdam_{line}\n")).then_some(())
    });
}

/// Callers that keep their connections while `work` is done: how many were answered, and with what else. `work` sees
/// how many were answered so far.
pub fn under_load<T>(
    service: &Service,
    callers: usize,
    work: impl FnOnce(&dyn Fn() -> usize) -> T,
) -> (T, BTreeMap<String, usize>) {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;
    let (done, ends) = (AtomicBool::new(false), Mutex::new(BTreeMap::<String, usize>::new()));
    let result = std::thread::scope(|scope| {
        for caller in 0..callers {
            let (done, ends) = (&done, &ends);
            scope.spawn(move || {
                let mut client = Client::to(service.address);
                for number in (0..).take_while(|_| !done.load(Ordering::Relaxed)) {
                    let payload = format!("{caller} {number}");
                    client.send(request("POST", "/v1/jobs/echo", &[], &payload));
                    let end = match client.try_read(PATIENCE) {
                        Ok(answer) if answer.status == 200 => {
                            assert_eq!(answer.text(), payload, "each gets its own answer");
                            "200".to_owned()
                        }
                        Ok(answer) => {
                            // As a caller that is told to come again.
                            std::thread::sleep(Duration::from_millis(20));
                            answer.code()
                        }
                        Err(why) => panic!("caller {caller} has no answer: {why:?}"),
                    };
                    *ends.lock().expect("nobody panics with it").entry(end).or_default() += 1;
                }
            });
        }
        let _done = Done(&done);
        let answered = || ends.lock().expect("nobody panics with it").get("200").copied().unwrap_or(0);
        work(&answered)
    });
    (result, ends.into_inner().expect("nobody panicked"))
}

/// Until so many more were answered.
#[track_caller]
pub fn answered_more(answered: &dyn Fn() -> usize, more: usize) {
    let before = answered();
    until("callers are answered", PATIENCE, || (answered() >= before + more).then_some(()));
}

/// What a service held when nothing was wrong with it.
pub struct Sound(BTreeMap<String, (usize, usize, usize)>);

/// Of each role: processes, and the most descriptors and threads of one.
fn held(service: &Service) -> BTreeMap<String, (usize, usize, usize)> {
    let mut all = BTreeMap::new();
    for pid in all_children(service.pid).into_iter().chain([service.pid]) {
        let role = words(pid).get(1).cloned().unwrap_or_default();
        let (descriptors, threads) = holdings(pid);
        let entry: &mut (usize, usize, usize) = all.entry(role).or_default();
        *entry = (entry.0 + 1, entry.1.max(descriptors), entry.2.max(threads));
    }
    all
}

impl Sound {
    /// Looks before the fault.
    #[track_caller]
    pub fn before(service: &Service) -> Sound {
        until("it is ready", BACK, || (service.get("/readyz").status == 200).then_some(()));
        for page in ["/readyz", "/metrics", "/v1/stats"] {
            let answer = service.get(page);
            assert_eq!(answer.status, 200, "{page}: {answer:?}");
        }
        assert_eq!(service.post("/v1/jobs/echo", "1").status, 200);
        Sound(held(service))
    }

    /// The fault is gone from now on: ready and quick within 5 s, every accepted job ended, nothing left over.
    #[track_caller]
    pub fn again(&self, service: &Service) {
        let gone = Instant::now();
        until("it is ready again", BACK, || (service.get("/readyz").status == 200).then_some(()));
        until("a request is answered at once again", BACK.saturating_sub(gone.elapsed()), || {
            let begun = Instant::now();
            let answer = service.post("/v1/jobs/echo", "1");
            (answer.status == 200 && begun.elapsed() < Duration::from_millis(500)).then_some(())
        });
        until("every accepted job has ended", PATIENCE, || {
            let totals = &service.get("/v1/stats").json()["totals"];
            (totals["queued"] == 0 && totals["running"] == 0).then_some(())
        });
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = held(service);
            let is_within = now.len() == self.0.len()
                && now.iter().all(|(role, now)| {
                    self.0.get(role).is_some_and(|before| {
                        now.0 == before.0 && now.1 <= before.1 + KEPT_CONNECTIONS && now.2 <= before.2
                    })
                });
            if is_within {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{now:?} is left instead of {:?} (processes, descriptors, threads)",
                self.0
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The same, and then it stops by SIGTERM, cleanly.
    #[track_caller]
    pub fn over(self, service: Service) -> Ended {
        self.again(&service);
        let children = all_children(service.pid);
        let ended = service.stop();
        assert_ended(&ended.status, &ended.stderr, Some(0));
        assert!(!children.iter().any(|pid| is_alive(*pid)), "a child outlives its supervisor");
        ended
    }
}
