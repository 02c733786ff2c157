//! A service that loses its processes, all of them too, and disks that lose their room or their mind.
//!
//! It guards the tests of the journal against a kill that leaves something running, and against a file system that stays mounted.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::aftermath::skipped;
use super::parity::{UNDYING, seed};
use super::program::Folder;
use super::service::{Answer, Client, NoAnswer, PATIENCE, Service, all_children, is_alive, kill, until};

/// How long each load under kills goes on.
const LOAD: Duration = Duration::from_millis(7_500);
pub const TWO: &str = r#"runtime.platform.process_groups=[{"name":"execution","processes":2}]"#;

pub fn journal(dir: &Path) -> String {
    journal_that_syncs("always", dir)
}

pub fn journal_that_syncs(sync: &str, dir: &Path) -> String {
    format!("runtime.platform.queue.journal={}", json!({"dir": dir, "segment_mb": 1, "sync": sync}))
}

/// Kills the supervisor and all its children, as a host that loses its processes does, and waits until they are gone.
pub fn kill_whole(service: Service) {
    let children = all_children(service.pid);
    kill(service.pid);
    children.iter().for_each(|pid| kill(*pid));
    let ended = service.ended();
    assert_eq!(ended.status.code(), None, "it was killed: {}", ended.stderr);
    until("its children are gone", PATIENCE, || (!children.iter().any(|pid| is_alive(*pid))).then_some(()));
}

/// Once, with a seed, or again and again for as many minutes as `COFFERDAM_MINUTES` says: with another seed each time.
pub fn for_minutes(once: impl Fn(u64)) {
    let minutes: u64 = std::env::var("COFFERDAM_MINUTES").map_or(0, |text| text.parse().expect("a number"));
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let mut seed = seed();
    once(seed);
    while Instant::now() < end {
        seed += 1;
        println!("seed {seed}");
        once(seed);
    }
}

/// What a long load leaves is kept.
const KEPT: [&str; 2] =
    ["runtime.platform.reply.retain.records=100000", "runtime.platform.queue.capacity=100000"];

/// A service that is killed in part or as a whole, and started again on the same journal, at another port.
pub struct Phoenix {
    program: PathBuf,
    sets: Vec<String>,
    now: Mutex<Option<Service>>,
    kills: Mutex<[usize; 4]>,
}

impl Phoenix {
    pub fn new(program: &Path, journal: String) -> Phoenix {
        let sets = [TWO, UNDYING].iter().chain(&KEPT).map(|set| (*set).to_owned()).chain([journal]).collect();
        let phoenix =
            Phoenix { program: program.to_owned(), sets, now: Mutex::default(), kills: Mutex::default() };
        *phoenix.lock() = Some(phoenix.start());
        phoenix
    }

    fn lock(&self) -> MutexGuard<'_, Option<Service>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self) -> Service {
        Service::of(&self.program, &self.sets.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// A connection to it as it is now.
    pub fn connect(&self) -> Client {
        until("it accepts", PATIENCE, || Client::try_to(self.lock().as_ref()?.address).ok())
    }

    /// One answer: the same again on another connection until there is one, which is long before a caller's time is over.
    pub fn ask(&self, client: &mut Client, bytes: &[u8]) -> Answer {
        until("an answer", PATIENCE, || {
            client.send(bytes);
            let answer = client.try_read(PATIENCE / 2);
            assert_ne!(answer.as_ref().err(), Some(&NoAnswer::Late), "nobody tells a caller");
            answer.map_err(|_| *client = self.connect()).ok()
        })
    }

    /// Kills web, an executor, everything or the supervisor, as `draw` says, until the time is over.
    fn suffer(&self, end: Instant, seed: u64) {
        let mut random = seed;
        let mut draw = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % below
        };
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20 + draw(300) as u64));
            let what = [0, 0, 0, 1, 1, 2, 3][draw(7)];
            let mut now = self.lock();
            let service = now.as_ref().expect("it runs");
            if what >= 2 {
                // Without its supervisor the rest ends too, and may still write when the next one begins.
                now.take().map(if what == 2 { kill_whole } else { drop });
                *now = Some(self.start());
            } else {
                let victims = service.children(["executor", "web"][what]);
                victims.get(draw(victims.len().max(1))).into_iter().for_each(|pid| kill(*pid));
            }
            drop(now);
            self.kills.lock().expect("no panic")[what] += 1;
        }
    }

    /// The load's work beside kills; then it stands still, whole.
    pub fn under_kills<T: Send>(
        &self,
        seed: u64,
        callers: usize,
        work: impl Fn(usize, Instant) -> T + Sync,
    ) -> (Service, Vec<T>) {
        let end = Instant::now() + LOAD;
        let done = std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = (0..callers).map(|number| scope.spawn(move || work(number, end))).collect();
            self.suffer(end, seed);
            threads.into_iter().map(|thread| thread.join().expect("a caller is content")).collect()
        });
        println!("killed executors, web, all, supervisors: {:?}", self.kills.lock().expect("no panic"));
        // What was kept is what is on the disk.
        kill_whole(self.lock().take().expect("it runs"));
        (self.start(), done)
    }
}

/// A file system of its own, which goes with this.
pub struct Mount {
    _folder: Folder,
    pub at: PathBuf,
    pub image: PathBuf,
}

impl Mount {
    /// None where it cannot be had, and says so.
    pub fn new(image_bytes: Option<u64>, options: &str) -> Option<Mount> {
        if !rustix::process::geteuid().is_root() {
            skipped("only root can mount a file system");
            return None;
        }
        let folder = Folder::new();
        let mount = Mount { at: folder.path("disk"), image: folder.path("image"), _folder: folder };
        std::fs::create_dir(&mount.at).expect("our own folder");
        let done = match image_bytes {
            None => tool("mount", &["-t", "tmpfs", "-o", options, "none"], &[&mount.at]),
            Some(bytes) => {
                std::fs::File::create(&mount.image)
                    .and_then(|file| file.set_len(bytes))
                    .expect("our own file");
                tool("mkfs.ext4", &["-q", "-F"], &[&mount.image]) && mount.again(options)
            }
        };
        done.then_some(mount)
    }

    pub fn again(&self, options: &str) -> bool {
        tool("mount", &["-o", options], &[&self.image, &self.at])
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).output();
    }
}

pub fn tool(name: &str, words: &[&str], paths: &[&Path]) -> bool {
    let output = Command::new(name).args(words).args(paths).output();
    let is_done = output.as_ref().is_ok_and(|output| output.status.success());
    if !is_done {
        skipped(&format!("{name} {words:?}: {output:?}"));
    }
    is_done
}
