//! The process table, as `/proc` shows it: who is a child of this process, and whose a process is; and ending what forks.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, kill_process};

/// What proc_pid_stat(5) says of a process.
pub struct Stat {
    /// It has ended, and nobody has waited for it.
    is_zombie: bool,
    session: i32,
    /// Processor time, that of the children that it has waited for included.
    pub processor: Duration,
}

/// `None` where there is no such process.
pub fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets, and may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let ticks: u64 = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    // Ticks of 10 ms: what the kernel shows is in hundredths on every machine.
    let processor = Duration::from_millis(10 * ticks);
    Some(Stat { is_zombie: fields[0] == "Z", session: fields[3].parse().ok()?, processor })
}

/// The session of a process that has not ended; 0: one whose leader is outside of our PID namespace (pid_namespaces(7)), as a
/// container's first command may be in. getsid(2) says that 0 too, which no `Pid` can hold.
pub fn session(pid: i32) -> Option<i32> {
    stat(pid).filter(|stat| !stat.is_zombie).map(|stat| stat.session)
}

/// The most memory that a process has held, in KiB (`VmHWM`, proc_pid_status(5)); `None` once it has ended.
pub fn peak_kib(pid: i32) -> Option<u64> {
    kib(&pid.to_string(), "VmHWM:")
}

/// What a process holds in memory now (`VmRSS`, proc_pid_status(5)); `self` is this one.
pub fn resident_kib(who: &str) -> Option<u64> {
    kib(who, "VmRSS:")
}

fn kib(who: &str, name: &str) -> Option<u64> {
    field(who, name)?.strip_suffix(" kB")?.parse().ok()
}

/// Of a process's command line: the command, where it is one of our binaries.
pub fn second_word(pid: i32) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let word = line.split(|byte| *byte == 0).nth(1)?;
    String::from_utf8(word.to_vec()).ok()
}

/// A field of `/proc/{who}/status`.
pub fn field(who: &str, name: &str) -> Option<String> {
    field_of(&format!("{who}/status"), name)
}

/// A line of a file in `/proc`, behind its name.
pub fn field_of(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{file}")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
}

/// The value of a variable of the environment that a process was started with.
pub fn variable(pid: i32, name: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = bytes
        .split(|byte| *byte == 0)
        .find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Those whose parent is the first thread of a process (proc_pid_task(5)); none where the kernel does not say.
pub fn children_of_first_thread(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The children of our parent's first thread, this process among them; none where the kernel does not say.
pub fn siblings() -> Vec<i32> {
    getppid().map_or(Vec::new(), |parent| children_of_first_thread(parent.as_raw_nonzero().get()))
}

/// Kills these processes and all that they have started. What forks faster than it can be counted is stopped first, until
/// nothing new is found: then nobody is left who could fork. True if there were some.
pub fn end_trees(roots: impl Fn() -> Vec<i32>) -> bool {
    const PASSES: usize = 64;
    let mut found = BTreeSet::new();
    for _ in 0..PASSES {
        let mut left = roots();
        let mut is_new = false;
        while let Some(pid) = left.pop() {
            left.extend(children_of_first_thread(pid));
            if found.insert(pid) {
                is_new = true;
                signal(pid, Signal::STOP);
            }
        }
        if !is_new {
            break;
        }
    }
    found.iter().for_each(|pid| signal(*pid, Signal::KILL));
    !found.is_empty()
}

fn signal(pid: i32, signal: Signal) {
    let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, signal));
}

/// All processes whose parent is this one. The lists of children (proc_pid_task(5)) are not in every kernel; without them
/// each process is asked for its parent.
pub fn children() -> Vec<i32> {
    let numbers = |text: String| -> Vec<i32> {
        text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    };
    let listed = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).map(numbers);
    let entries = |path| fs::read_dir(path).into_iter().flatten().flatten();
    if let Ok(lists) = entries("/proc/self/task").map(listed).collect::<std::io::Result<Vec<_>>>() {
        return lists.concat();
    }
    let parent = format!("\nPPid:\t{}\n", std::process::id());
    let is_child = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("status")).is_ok_and(|status| status.contains(&parent))
    };
    let pids = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    entries("/proc").filter(is_child).filter_map(pids).collect()
}
