//! `batch` with a journal: a run that is killed goes on where it was, and its output is that of a run that was not.
//!
//! It guards that promise with the real binary: kills at any moment, outputs that lost what no sync had kept or that say more
//! than the journal, journals that lost their last turns, another input. A failure shows its seed; `COFFERDAM_SEED=N` replays
//! the times of the kills.

#[path = "support/aftermath.rs"]
mod aftermath;
#[path = "../tools/fund-load/generator.rs"]
mod generator;
#[path = "support/oracle.rs"]
mod oracle;
#[path = "support/parity.rs"]
mod parity;
#[path = "support/phoenix.rs"]
mod phoenix;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::path::{Path, PathBuf};
use std::process::{Child, Output};
use std::time::Duration;

use parity::{UNDYING, assert_same, seed, turn};
use phoenix::{TWO, journal, journal_that_syncs, kill_whole};
use program::{Folder, cofferdam, command, example, run, shown, wait};
use rustix::process::Signal;
use serde_json::{Value, json};
use service::{PATIENCE, Service, all_children, is_alive, kill, signal, until};

const INLINE: &str = "runtime.platform.bootstrap.mode=inline";
const RESUME: &[&str] = &["--resume"];
/// Each sync of an output is of so many lines, and all but the last twice as many are surely on the disk.
const SYNCED: usize = 4_096;

/// A batch from `in` to `out` in a folder, with its journal beside them.
struct Batch {
    folder: Folder,
    program: PathBuf,
    handler: &'static str,
    sets: Vec<String>,
}

impl Batch {
    fn new(program: &Path, handler: &'static str, sync: &str, input: &[u8], sets: &[&str]) -> Batch {
        let folder = Folder::new();
        folder.file("in", input);
        let journal = journal_that_syncs(sync, &folder.path("journal"));
        let sets = sets.iter().map(|set| (*set).to_owned()).chain([UNDYING.to_owned(), journal]).collect();
        Batch { folder, program: program.to_owned(), handler, sets }
    }

    fn spawn(&self, more: &[&str]) -> Child {
        let [input, output] = ["in", "out"].map(|name| self.folder.path(name).display().to_string());
        let words = [
            "batch",
            "--progress",
            "never",
            "--handler",
            self.handler,
            "--input",
            &input,
            "--output",
            &output,
        ];
        let sets = self.sets.iter().flat_map(|set| ["--set", set]);
        let mut command = command(&self.program, words.into_iter().chain(sets).chain(more.iter().copied()));
        command.spawn().expect("it can be started")
    }

    fn run(&self, more: &[&str]) -> Output {
        wait(self.spawn(more))
    }

    /// Runs it to this exit code, and standard error says so.
    #[track_caller]
    fn ends(&self, more: &[&str], code: i32, said: &str) {
        let output = self.run(more);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(code) && stderr.contains(said),
            "{code}, {said}: {}",
            shown(&output)
        );
    }

    fn output(&self) -> Vec<u8> {
        std::fs::read(self.folder.path("out")).unwrap_or_default()
    }

    /// The number of the last line that the journal knows, which is what a job's id begins with.
    fn last(&self) -> usize {
        let words = ["journal".into(), "export".into(), self.folder.path("journal").into_os_string()];
        let output = run(&mut command(&cofferdam(), words), b"");
        let records = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let ids = records.map(|line| serde_json::from_slice::<Value>(line).expect("JSON")["id"].clone());
        let number = |id: Value| usize::from_str_radix(&id.as_str()?[..16], 16).ok();
        ids.filter_map(number).max().unwrap_or(0)
    }

    /// Starts it again and again until it ends by itself; kills it and all its executors before, some `most` times.
    fn under_kills(&self, most: usize, mut between: impl FnMut(&mut Draw)) -> Output {
        let (mut draw, mut kills) = (Draw(seed()), 0);
        loop {
            let mut child = self.spawn(if kills == 0 { &[] } else { RESUME });
            let sleep = Duration::from_millis(30 + draw.below(500) as u64);
            std::thread::sleep(if kills < most { sleep } else { Duration::ZERO });
            if kills >= most || child.try_wait().expect("our child").is_some() {
                let lines = self.output().iter().filter(|byte| **byte == b'\n').count();
                println!("{kills} kills, {lines} lines before the last of it");
                let output = wait(child);
                assert!(kills > most / 2, "it ended after {kills} kills: {}", shown(&output));
                return output;
            }
            kill_with_executors(&mut child);
            kills += 1;
            between(&mut draw);
        }
    }
}

struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % bound
    }
}

fn kill_with_executors(child: &mut Child) {
    let executors = all_children(child.id());
    kill(child.id());
    executors.iter().for_each(|pid| kill(*pid));
    child.wait().expect("our child");
    until("its executors are gone", PATIENCE, || (!executors.iter().any(|pid| is_alive(*pid))).then_some(()));
}

/// What a power cut may leave of an output, and what nobody should believe: lines that no sync has kept are gone, a line is half
/// there, others follow that nobody wrote.
fn spoil(batch: &Batch, draw: &mut Draw) {
    let path = batch.folder.path("out");
    let output = std::fs::read(&path).unwrap_or_default();
    let ends: Vec<usize> = (0..output.len()).filter(|at| output[*at] == b'\n').collect();
    let kept = batch.last().saturating_sub(2 * SYNCED).min(ends.len());
    let lines = kept + draw.below(ends.len() - kept + 1);
    let end = lines.checked_sub(1).map_or(0, |line| ends[line] + 1);
    let more: &[u8] = [&b""[..], b"{\"half", b"a line\nthat nobody wrote\n", &[0; 700]][draw.below(4)];
    std::fs::write(path, [&output[..end], more].concat()).expect("our own file");
}

fn numbered(count: usize) -> Vec<u8> {
    (1..=count).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}

#[test]
fn a_stateful_batch_that_is_killed_at_any_moment_gives_the_oracles_bytes() {
    let _turn = turn();
    for (sync, mode) in [("always", TWO), ("interval", TWO), ("always", INLINE)] {
        let input = generator::generate(seed(), 60_000);
        let batch = Batch::new(&example("fund-load"), "fund_load", sync, &input, &[mode]);
        let output = batch.under_kills(8, |_| ());
        assert!(output.status.success(), "{sync}, {mode}: {}", shown(&output));
        let expected = oracle::decide(&input, oracle::Rules::Baseline);
        assert_same(&batch.output(), &expected, &format!("{sync}, {mode}"));
    }
}

#[test]
fn an_output_that_lost_or_gained_lines_is_believed_as_far_as_the_journal_vouches_for_it() {
    let _turn = turn();
    for (sync, handler) in [("always", "count"), ("interval", "echo")] {
        // The number that `count` gives is that of the lines that had an effect: none had two.
        let input = if handler == "count" { b"0\n".repeat(150_000) } else { numbered(200_000) };
        let batch = Batch::new(&example("embedder"), handler, sync, &input, &[TWO]);
        let output = batch.under_kills(8, |draw| spoil(&batch, draw));
        assert!(output.status.success(), "{}", shown(&output));
        let lines = input.iter().filter(|byte| **byte == b'\n').count();
        assert_same(&batch.output(), &numbered(lines), handler);
    }
}

#[test]
fn a_journal_that_lost_its_last_turns_gives_the_same_output_again() {
    let _turn = turn();
    let batch = Batch::new(&example("embedder"), "count", "interval", &b"0\n".repeat(20_000), &[INLINE]);
    batch.ends(&[], 0, "");
    let (dir, repaired) = (batch.folder.path("journal"), batch.folder.path("journal.repaired"));
    let mut draw = Draw(seed());
    for _ in 0..5 {
        // What the last `interval_ms` before a power cut may lose: ends of lines whose results were written, too.
        let mut segments: Vec<_> = std::fs::read_dir(&dir).expect("a journal").flatten().collect();
        segments.retain(|file| file.path().extension().is_some_and(|of| of == "log"));
        segments.sort_by_key(std::fs::DirEntry::file_name);
        let last = segments.last().expect("a segment").path();
        let written = std::fs::read(&last).expect("ours").iter().rposition(|byte| *byte > 0).unwrap_or(0);
        let place = format!("--drop-after={}", 64 + draw.below(written));
        let words = ["journal", "repair", dir.to_str().expect("text"), &place];
        let output = run(&mut command(&cofferdam(), words), b"");
        assert!(output.status.success(), "{}", shown(&output));
        std::fs::remove_dir_all(&dir).expect("our own folder");
        std::fs::rename(&repaired, &dir).expect("our own folder");
        batch.ends(RESUME, 0, "");
        assert_same(&batch.output(), &numbered(20_000), &place);
    }
}

/// A handler whose runs are counted: each adds a line to this file, and gives its payload.
fn effects(folder: &Path) -> (String, PathBuf) {
    let file = folder.join("effects");
    let script = format!("echo >> {}; sleep 0.01; cat", file.display());
    let option = json!({"command": ["sh", "-c", script], "timeout_ms": 60_000});
    (format!("handlers.effect={option}"), file)
}

#[test]
fn a_batch_that_was_stopped_goes_on_and_no_line_has_two_effects() {
    let (input, beside) = (numbered(400), Folder::new());
    for (round, mode) in [INLINE, TWO].into_iter().enumerate() {
        let (set, file) = effects(&beside.path(""));
        let runs = || std::fs::read(&file).unwrap_or_default().len() - round * 400;
        let batch = Batch::new(&cofferdam(), "effect", "always", &input, &[&set, mode]);
        let mut more: &[&str] = &[];
        for stop_at in [50, 200] {
            let child = batch.spawn(more);
            more = RESUME;
            until("some are done", PATIENCE, || (runs() > stop_at).then_some(()));
            signal(child.id(), Signal::TERM);
            let output = wait(child);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{}", shown(&output));
            assert!(said.contains("was the last that is done; go on with --resume\n"), "{said}");
        }
        assert!((200..400).contains(&runs()), "it was stopped in its midst: {}", runs());
        // The second has nothing to do any more.
        for _ in 0..2 {
            batch.ends(RESUME, 0, "");
            assert_eq!(runs(), 400, "each line ran once");
            assert_same(&batch.output(), &input, mode);
        }
    }
}

#[test]
fn a_line_that_ran_when_all_was_killed_runs_again_and_no_other_does() {
    let (input, beside) = (numbered(400), Folder::new());
    let (set, file) = effects(&beside.path(""));
    let four = r#"runtime.platform.process_groups=[{"name":"execution","processes":2,"workers":2}]"#;
    let batch = Batch::new(&cofferdam(), "effect", "always", &input, &[&set, four]);
    let runs = || std::fs::read(&file).unwrap_or_default().len();
    let (kills, mut more): (_, &[&str]) = (4, &[]);
    for kill in 1..=kills {
        let mut child = batch.spawn(more);
        more = RESUME;
        until("some are done", PATIENCE, || (runs() > 60 * kill).then_some(()));
        kill_with_executors(&mut child);
    }
    batch.ends(RESUME, 0, "");
    assert_same(&batch.output(), &input, "under kills");
    let again = runs() - 400;
    assert!(again <= 4 * kills, "{again} runs more than lines, with four at a time and {kills} kills");
}

#[test]
fn a_failed_line_is_a_problem_object_and_exit_1_whichever_run_it_was_of() {
    let mut input = b"{\"ms\":0}\n".repeat(20_000);
    input.splice(18..26, *b"bad line");
    let batch = Batch::new(&cofferdam(), "sleep", "always", &input, &[INLINE]);
    let said = "1 of 20000 lines failed, the first is line 3";
    batch.ends(&[], 1, said);
    let output = batch.output();
    let third = output.split(|byte| *byte == b'\n').nth(2).expect("a line");
    let problem: Value = serde_json::from_slice(third).expect("a problem object");
    assert_eq!(problem["line"], 3);
    // That line is long before those that the journal still knows.
    batch.ends(RESUME, 1, said);
    assert_same(&batch.output(), &output, "gone on with");
    assert!(batch.folder.path("out").metadata().expect("a file").len() > 20_000);
}

#[test]
fn another_input_or_output_is_refused_and_more_lines_are_done() {
    let input = numbered(20_000);
    let batch = Batch::new(&cofferdam(), "echo", "always", &input, &[INLINE]);
    batch.ends(&[], 0, "");
    let changed = |line: usize| {
        let mut lines: Vec<&[u8]> = input.split_inclusive(|byte| *byte == b'\n').collect();
        lines[line - 1] = b"other\n";
        lines.concat()
    };
    let head = &input[..input.len() / 2];
    for (other, said) in [
        (changed(19_990), "line 19990 is not as it was"),
        // The first line that is looked at says all before it, too.
        (changed(5), "line 11809 is not as it was"),
        (head.to_vec(), "the number of lines is not as it was"),
        (input[..input.len() - 6].to_vec(), "the number of lines is not as it was"),
    ] {
        batch.folder.file("in", other);
        batch.ends(RESUME, 1, said);
        batch.folder.file("in", &input);
        batch.ends(RESUME, 0, "");
        assert_same(&batch.output(), &input, said);
    }
    let handler = Batch { handler: "sleep", folder: batch.folder, program: batch.program, sets: batch.sets };
    handler.ends(RESUME, 1, "line 11809 is not as it was");
    let batch = Batch { handler: "echo", ..handler };
    assert_same(&batch.output(), &input, "refused at its first line, it left the output as it was");
    batch.folder.file("out", &input[..30_000]);
    batch.ends(RESUME, 2, "has not the first 11808 lines of this run");
    assert_eq!(batch.output(), &input[..30_000]);
    batch.folder.file("out", &input);
    batch.folder.file("in", numbered(20_100));
    batch.ends(RESUME, 0, "");
    assert_same(&batch.output(), &numbered(20_100), "with more lines");
}

#[test]
fn a_directory_that_holds_a_run_or_a_services_jobs_is_no_place_for_another() {
    let batch = Batch::new(&cofferdam(), "echo", "always", &numbered(10), &[]);
    // Nothing is there to go on with: it begins.
    batch.ends(RESUME, 0, "");
    let mine = b"mine\n".repeat(100);
    batch.folder.file("out", &mine);
    batch.ends(&[], 2, "the journal holds a run: --resume goes on with it, or choose another directory");
    assert_eq!(batch.output(), mine);
    batch.ends(RESUME, 0, "");
    assert_same(&batch.output(), &numbered(10), "written again, and no more");
    let nothing = Batch::new(&cofferdam(), "echo", "always", b"", &[]);
    nothing.folder.file("out", &mine);
    nothing.ends(RESUME, 0, "");
    assert_same(&nothing.output(), b"", "cut where nothing is written");

    let batch = Batch::new(&cofferdam(), "echo", "always", &numbered(10), &[]);
    let service = Service::start(&[&journal(&batch.folder.path("journal"))]);
    batch.ends(&[], 1, "another process has it");
    let jobs: Vec<String> = (0..3).map(|_| service.submit("/v1/jobs/echo", &[], "1")).collect();
    let records = |service: &Service| jobs.iter().map(|id| service.record_when(id, "succeeded")).collect();
    let before: Vec<Value> = records(&service);
    kill_whole(service);
    for more in [&[], RESUME] {
        batch.ends(more, 1, "holds other jobs than a batch's: choose another directory");
    }
    assert!(!batch.folder.path("out").exists());
    let after: Vec<Value> = records(&Service::start(&[&journal(&batch.folder.path("journal"))]));
    assert_eq!(after, before, "a batch that is refused leaves all as it was");
}

#[test]
fn what_cannot_be_promised_with_a_journal_or_without_is_refused_by_name() {
    let batch = Batch::new(&cofferdam(), "echo", "always", b"1\n", &[]);
    for (more, said) in [
        (
            &["--resume", "1"][..],
            "--resume: with a journal, which knows the lines that are done, it takes no LINES",
        ),
        (&["--sink-mode", "completion"], "--sink-mode: with a journal it is source_seq"),
        (&["--sink-mode", "completion", "--resume"], "--sink-mode: with a journal it is source_seq"),
        (&["--resume", "--resume", "1"], "--resume: with a journal"),
    ] {
        batch.ends(more, 2, said);
    }
    let stream = ["batch", "--handler", "echo", "--set", &batch.sets[1]];
    for output in [&[][..], &["--output", "-"], &["--output", "/dev/null"]] {
        let output = run(&mut command(&cofferdam(), stream.iter().chain(output)), b"1\n");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains("with a journal it is a file"), "{said}");
    }
    let output = run(&mut command(&cofferdam(), ["batch", "--handler", "echo", "--resume"]), b"1\n");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(2) && said.contains("--resume: without a journal it needs LINES"),
        "{said}"
    );
    assert!(!batch.folder.path("out").exists());
}

#[test]
fn what_lines_submit_takes_no_room_of_what_is_kept_for_the_output() {
    const SUBMITS: &str = r#"{"handler":"echo","payload":1},{"handler":"echo","payload":2},{"handler":"echo","payload":3},{"handler":"sleep","payload":"fails"}"#;
    let folder = Folder::new();
    let worker = format!(
        "while IFS= read -r line; do id=${{line#*'\"id\":\"'}}; echo '{{\"id\":\"'\"${{id%%'\"'*}}\"'\",\"ok\":1,\"submit\":[{SUBMITS},{SUBMITS}]}}'; done"
    );
    let file = folder.file("worker.sh", worker);
    let option = json!({"command": ["sh", file], "mode": "worker"});
    let set = format!("handlers.fans_out={option}");
    // Three times as many jobs as a journal keeps records of.
    let lines = 6_000;
    let batch = Batch::new(&cofferdam(), "fans_out", "interval", &b"0\n".repeat(lines), &[&set, INLINE]);
    batch.ends(&[], 0, "");
    assert_same(&batch.output(), &b"1\n".repeat(lines), "once");
    batch.ends(RESUME, 0, "");
    assert_same(&batch.output(), &b"1\n".repeat(lines), "again");
}
