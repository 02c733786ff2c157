//! House rules that a machine can see. Only rules that do hold are here; each failure names file and line.
//!
//! The files are those that git tracks or would track. What counts of a file in `src` ends where its unit
//! tests begin, which is at its first `#[cfg(test)]`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file holds one idea and stays readable in one sitting.
const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 100;
/// Code lines of all of `src`, of it without what feature `redis` brings, and of the rooms that an auditor must trust
/// first: no blanks, comments or unit tests.
const CODE_LINES: [(&str, usize); 3] = [("all", 24_318), ("lean", 21_660), ("trusted", 4_670)];
/// Bytes of all sources, comments and unit tests included: dense lines are no gain.
const BYTES: usize = 1_409_000;
/// What an auditor must trust first: who is let in, what is taken from whom, and who runs with which rights.
const TRUSTED: &[&str] = &["src/channel/", "src/process/", "src/supervisor/", "src/roles/"];

/// Files that may touch threads, locks, files, sockets or the clock; a name with `/` at its end is a folder.
/// All others decide without I/O, with the time as an argument.
const DOES_IO: &[&str] = &[
    "src/batch/input.rs",
    "src/batch/mod.rs",
    "src/batch/output.rs",
    "src/batch/progress.rs",
    "src/bell.rs",
    "src/channel/client.rs",
    "src/channel/reject.rs",
    "src/channel/server.rs",
    "src/cli.rs",
    "src/clock.rs",
    "src/config/secret.rs",
    "src/console/",
    "src/config/sources.rs",
    "src/execution/crew.rs",
    "src/execution/deck.rs",
    "src/execution/program/",
    "src/execution/run.rs",
    "src/journal/disk.rs",
    "src/journal/key.rs",
    "src/memory/keeper.rs",
    "src/memory/shared.rs",
    "src/negative_controls.rs",
    "src/observe/",
    "src/process/",
    "src/process_table.rs",
    "src/redis_backend/broker.rs",
    "src/redis_backend/connection.rs",
    "src/redis_backend/external_state.rs",
    "src/redis_backend/seat.rs",
    "src/redis_backend/server.rs",
    "src/roles/",
    "src/supervisor/",
    "src/web/calls.rs",
    "src/web/commander.rs",
    "src/web/inner.rs",
    "src/web/process.rs",
    "src/web/sockets.rs",
];
const IO: &[&str] = &[
    "mio::",
    "tiny_http::",
    "rustix::",
    "signal_hook::",
    "std::fs",
    "process::Command",
    "process::exit",
    "std::thread",
    "std::env",
    "TcpStream",
    "TcpListener",
    "UnixStream",
    "UnixListener",
    "Instant::now",
    "SystemTime",
    "Mutex",
    "RwLock",
    "Condvar",
];

/// Rooms, each above all that it may name: arrows point down. A room is a folder of `src`, or one of the files that
/// wire the house together.
const FLOORS: &[&[&str]] = &[
    &["main"],
    &["app"],
    &["cli"],
    &["facts", "roles", "console"],
    &["batch", "supervisor", "web"],
    &["deployment"],
    &["process"],
    &["execution", "channel", "memory", "ndjson", "redis_backend"],
    &["ports", "observe"],
    &["journal"],
    &["config"],
];

/// Who must not know whom, beside what the floors say: a file or folder, and the rooms that it names nowhere.
const ABSENCES: &[(&str, &[&str])] = &[
    ("src/web/", &["execution", "roles"]),
    ("src/supervisor/", &["deployment", "execution", "memory", "redis_backend"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Paths, relative to the root, of what is tracked or would be.
fn files() -> Vec<String> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard", "-z"];
    let output = Command::new("git").arg("-C").arg(root()).args(arguments).output().expect("git can be run");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("our file names are text");
    let names: BTreeSet<String> =
        text.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    // A file that was deleted is tracked until that is committed.
    names.into_iter().filter(|name| root().join(name).is_file()).collect()
}

/// One file of `src`.
struct Source {
    path: String,
    /// As it is written.
    text: String,
}

impl Source {
    /// The lines before the unit tests, with their numbers.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_code = |line: &&str| line.trim_start() != "#[cfg(test)]";
        (1..).zip(self.text.lines().take_while(is_code))
    }

    /// The same without lines that are comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines().filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    fn is_in(&self, place: &str) -> bool {
        self.path == place || (place.ends_with('/') && self.path.starts_with(place))
    }
}

fn sources() -> Vec<Source> {
    let is_source = |path: &String| path.starts_with("src/") && path.ends_with(".rs");
    let read = |path: String| {
        let text = std::fs::read_to_string(root().join(&path)).expect("a source is text");
        Source { path, text }
    };
    let sources: Vec<Source> = files().into_iter().filter(is_source).map(read).collect();
    assert!(sources.len() > 20, "this finds only {} sources", sources.len());
    sources
}

/// Fails with one line for each thing that was found.
#[track_caller]
fn assert_none(found: &[String], rule: &str) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

/// Where one of these words stands in the code.
fn places(sources: &[Source], words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        for (number, line) in source.code() {
            let words = words.iter().filter(|word| line.contains(*word));
            found.extend(words.map(|word| format!("{}:{number}: {word}", source.path)));
        }
    }
    found
}

#[test]
fn every_source_begins_with_what_it_is_for() {
    let says = |source: &Source| source.text.starts_with("//! ");
    let found: Vec<String> = sources().into_iter().filter(|s| !says(s)).map(|s| s.path).collect();
    assert_none(&found, "a source begins with a `//!` sentence");
}

#[test]
fn unsafe_code_is_forbidden_at_every_root() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("the manifest");
    let paths = manifest.lines().filter_map(|line| line.strip_prefix("path = \"")?.strip_suffix('"'));
    let roots: Vec<&str> = paths.filter(|path| path.ends_with(".rs")).collect();
    assert!(roots.contains(&"src/lib.rs") && roots.contains(&"src/main.rs"), "{roots:?}");
    let forbids = |path: &&&str| {
        let text = std::fs::read_to_string(root().join(path)).expect("a root of the manifest");
        text.lines().any(|line| line == "#![forbid(unsafe_code)]")
    };
    let found: Vec<String> = roots.iter().filter(|path| !forbids(path)).map(ToString::to_string).collect();
    assert_none(&found, "a root says #![forbid(unsafe_code)]");
    assert!(manifest.contains("\nunsafe_code = \"forbid\"\n"), "Cargo.toml forbids it for every target");
}

#[test]
fn no_file_holds_both_sides_of_a_merge() {
    let marks = [["<<<<", "<<< "].concat(), [">>>>", ">>> "].concat()];
    let mut found = Vec::new();
    for path in files() {
        let bytes = std::fs::read(root().join(&path)).expect("a file that is there");
        let text = String::from_utf8_lossy(&bytes);
        let lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| marks.iter().any(|mark| line.starts_with(mark.as_str())));
        found.extend(lines.map(|(index, _)| format!("{path}:{}", index + 1)));
    }
    assert_none(&found, "a merge was not finished");
}

#[test]
fn nothing_unfinished_and_nothing_that_panics_on_a_closed_stream_is_in_src() {
    let words = ["dbg!(", "todo!(", "unimplemented!(", "println!(", "eprintln!(", "print!(", "eprint!("];
    assert_none(&places(&sources(), &words), "not in src");
    let mut found = Vec::new();
    for source in sources() {
        let is_note = |line: &str| ["FIXME", "XXX", "TODO"].iter().any(|word| line.contains(word));
        let notes = source.text.lines().enumerate().filter(|(_, line)| is_note(line));
        found.extend(notes.map(|(index, line)| format!("{}:{}: {}", source.path, index + 1, line.trim())));
    }
    assert_none(&found, "what is known to be unfinished is an issue, not a comment");
}

#[test]
fn no_async_is_in_src() {
    let words = ["tokio", "async fn", "async move", "futures::", "std::future", "std::task"];
    assert_none(&places(&sources(), &words), "blocking threads and two event loops, no async");
}

#[test]
fn no_source_is_longer_than_one_sitting() {
    let mut found = Vec::new();
    for source in sources() {
        let lines = source.lines().count();
        if lines > FILE_LINES {
            found.push(format!("{}: {lines} lines without tests, at most {FILE_LINES}", source.path));
        }
    }
    assert_none(&found, "a longer file is two ideas");
}

#[test]
fn no_function_is_longer_than_a_page_or_two() {
    let mut found = Vec::new();
    let mut functions = 0;
    for source in sources() {
        // rustfmt ends a function with a brace at the column where its first line begins.
        let mut open: Vec<(usize, usize, &str)> = Vec::new();
        for (number, line) in source.lines() {
            let indent = line.len() - line.trim_start().len();
            if is_function(line.trim_start()) && !line.ends_with([';', '}']) {
                open.push((indent, number, line.trim()));
                functions += 1;
            }
            if line.trim_start() == "}"
                && let Some((_, start, head)) = open.pop_if(|(column, ..)| *column == indent)
                && number - start + 1 > FUNCTION_LINES
            {
                found.push(format!("{}:{start}: {} lines: {head}", source.path, number - start + 1));
            }
        }
    }
    assert!(functions > 200, "this sees only {functions} functions");
    assert_none(&found, "a function has at most 100 lines");
}

/// True for the first line of a function, after whatever stands before `fn`.
fn is_function(line: &str) -> bool {
    let before = line.split("fn ").next().unwrap_or_default();
    let is_word = |word: &str| matches!(word, "pub" | "const" | "extern") || word.starts_with("pub(");
    before.len() < line.len() && before.split_whitespace().all(is_word)
}

#[test]
fn all_of_src_stays_within_what_one_person_can_know() {
    let sources = sources();
    let lines = |is_counted: &dyn Fn(&Source) -> bool| -> usize {
        let counted = sources.iter().filter(|source| is_counted(source));
        counted.map(|source| source.code().filter(|(_, line)| !line.trim().is_empty()).count()).sum()
    };
    for (what, most) in CODE_LINES {
        let lines = match what {
            "all" => lines(&|_| true),
            "lean" => lines(&|source| !source.is_in("src/redis_backend/")),
            _ => lines(&|source| TRUSTED.iter().any(|place| source.is_in(place))),
        };
        assert!(lines <= most, "{what}: {lines} code lines, more than {most}");
    }
    let bytes: usize = sources.iter().map(|source| source.text.len()).sum();
    assert!(bytes <= BYTES, "src has {bytes} bytes, more than {BYTES}");
}

#[test]
fn only_the_files_that_do_io_touch_threads_locks_files_sockets_and_the_clock() {
    let pure: Vec<Source> =
        sources().into_iter().filter(|source| !DOES_IO.iter().any(|place| source.is_in(place))).collect();
    assert_none(&places(&pure, IO), "decide without I/O (or add the file to DOES_IO and say why)");
}

#[test]
fn arrows_between_the_rooms_point_one_way() {
    let sources = sources();
    let floor = |room: &str| FLOORS.iter().position(|rooms| rooms.contains(&room));
    let mut found = Vec::new();
    for source in &sources {
        let own = source.path["src/".len()..].split(['/', '.']).next().expect("a room");
        for (number, room) in rooms_named(source) {
            // Leaves know leaves alone; a room knows those below it.
            let allowed = match (floor(own), floor(&room)) {
                (_, None) => true,
                (None, Some(_)) => own == "lib",
                (Some(own_floor), Some(its_floor)) => own == room || own_floor < its_floor,
            };
            let by_name = matches!((own, &*room), ("exit", "observe"));
            let allowed = allowed || by_name;
            if !allowed {
                found.push(format!("{}:{number}: crate::{room}", source.path));
            }
        }
    }
    for (place, absent) in ABSENCES {
        let mut here = sources.iter().filter(|source| source.is_in(place)).peekable();
        assert!(here.peek().is_some(), "{place} is gone: mend this rule");
        for source in here {
            for (number, room) in rooms_named(source) {
                if absent.contains(&room.as_str()) {
                    found.push(format!("{}:{number}: crate::{room}", source.path));
                }
            }
        }
    }
    assert_none(&found, "a room names one that it must not know");
}

#[test]
fn the_map_of_the_architecture_shows_these_floors() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the map");
    let map = page
        .split("`FLOORS` in")
        .nth(1)
        .and_then(|rest| rest.split("\n    leaves\n").next())
        .expect("the floors");
    let shown: Vec<BTreeSet<&str>> = map
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .map(|line| line.split_whitespace().collect())
        .collect();
    let floors: Vec<BTreeSet<&str>> = FLOORS.iter().map(|rooms| rooms.iter().copied().collect()).collect();
    assert_eq!(shown, floors);
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let graph = imports(&sources());
    assert!(graph.values().map(BTreeSet::len).sum::<usize>() > 200, "this sees too few imports");
    let found = circles(&graph);
    assert_none(&found, "files that import each other are one file, or need a third");
}

#[test]
fn the_rule_about_circles_sees_one() {
    let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
    let graph = imports(&[
        source("src/a.rs", "use crate::b::{self, c::C};"),
        source("src/b/mod.rs", "mod c;\npub use c::D;"),
        source("src/b/c.rs", "use crate::e::E;\nuse super::D;"),
        source("src/e.rs", "fn f() { crate::a::f() }"),
    ]);
    assert_eq!(circles(&graph), ["src/a.rs -> src/b/c.rs -> src/e.rs -> src/a.rs"]);
}

/// Which files of `src` each file imports. What a folder's `mod.rs` only passes on is taken from the file that has it.
fn imports(sources: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let paths: BTreeSet<&str> = sources.iter().map(|source| source.path.as_str()).collect();
    // Names that a `mod.rs` passes on, and where they are.
    let mut passed_on: BTreeMap<(String, String), String> = BTreeMap::new();
    for source in sources.iter().filter(|source| source.path.ends_with("/mod.rs")) {
        let folder = source.path.trim_end_matches("/mod.rs");
        for path in uses(source, true) {
            let parts: Vec<&str> = path.split("::").filter(|part| *part != "self").collect();
            if let [file, .., name] = parts.as_slice() {
                passed_on.insert((folder.to_owned(), (*name).to_owned()), format!("{folder}/{file}.rs"));
            }
        }
    }
    let mut graph = BTreeMap::new();
    for source in sources {
        let folder = source.path.rsplit_once('/').map_or("src", |(folder, _)| folder);
        let is_face = source.path.ends_with("/mod.rs");
        let mut targets = BTreeSet::new();
        for path in uses(source, false) {
            let mut parts = path.split("::");
            let mut at = match parts.next() {
                Some("crate") => "src".to_owned(),
                // `super` of a file is its folder; of a folder's face the folder above.
                Some("super") if is_face => {
                    folder.rsplit_once('/').map_or("src", |(above, _)| above).to_owned()
                }
                Some("super") => folder.to_owned(),
                _ => continue,
            };
            for part in parts {
                let (file, face) = (format!("{at}/{part}.rs"), format!("{at}/{part}/mod.rs"));
                if paths.contains(file.as_str()) {
                    at = file;
                    break;
                }
                if !paths.contains(face.as_str()) {
                    let owner = passed_on.get(&(at.clone(), part.to_owned()));
                    at = owner.cloned().unwrap_or_else(|| format!("{at}/mod.rs"));
                    break;
                }
                at = format!("{at}/{part}");
            }
            if !at.ends_with(".rs") {
                at = format!("{at}/mod.rs");
            }
            if at != source.path && paths.contains(at.as_str()) {
                targets.insert(at);
            }
        }
        graph.insert(source.path.clone(), targets);
    }
    graph
}

/// Every path that a file names from the crate's root or its own folder, with the lists in braces taken apart. Of a
/// folder's face, `passed_on` gives those that it re-exports instead.
fn uses(source: &Source, passed_on: bool) -> Vec<String> {
    let text: String = source.code().map(|(_, line)| format!("{line}\n")).collect();
    let mut found = Vec::new();
    let starts: &[&str] = if passed_on { &["pub use ", "pub(crate) use "] } else { &["crate::", "super::"] };
    for start in starts {
        for (at, _) in text.match_indices(start) {
            let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            if !passed_on && text[..at].ends_with(is_word) {
                continue;
            }
            expand("", text[at + if passed_on { start.len() } else { 0 }..].trim_start(), &mut found);
        }
    }
    found
}

/// The path at the start of `text`, behind `before`; one for each name of a list in braces.
fn expand(before: &str, text: &str, found: &mut Vec<String>) {
    let length = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let (path, rest) = text.split_at(length);
    match rest.strip_prefix('{').filter(|_| path.ends_with("::")) {
        Some(list) => {
            let before = format!("{before}{path}");
            top_level(list).into_iter().for_each(|part| expand(&before, part.trim(), found));
        }
        None => found.push(format!("{before}{path}").trim_end_matches("::").to_owned()),
    }
}

/// One circle for each file from which a circle can be walked, the first file's once.
fn circles(graph: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut found = Vec::new();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for start in graph.keys() {
        if done.contains(start.as_str()) {
            continue;
        }
        // The way back to the start, by breadth.
        let mut from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut queue = std::collections::VecDeque::from([start.as_str()]);
        while let Some(file) = queue.pop_front() {
            for next in graph.get(file).into_iter().flatten() {
                if from.contains_key(next.as_str()) {
                    continue;
                }
                from.insert(next, file);
                queue.push_back(next);
            }
        }
        if from.contains_key(start.as_str()) {
            let mut way = vec![start.as_str()];
            while way.len() == 1 || way.last() != Some(&start.as_str()) {
                way.push(from[way.last().expect("not empty")]);
            }
            way.reverse();
            done.extend(&way);
            found.push(way.join(" -> "));
        }
    }
    found
}

/// Which rooms of the crate a file names in its code, and where: `crate::room` and `crate::{room, …}`.
fn rooms_named(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut text = String::new();
    let mut starts = Vec::new();
    for (number, line) in source.code() {
        starts.push((text.len(), number));
        text.push_str(line);
        text.push('\n');
    }
    for (at, path) in text.match_indices("crate::") {
        let line = starts.iter().rev().find(|(start, _)| *start <= at).map_or(0, |(_, number)| *number);
        let rest = &text[at + path.len()..];
        let name =
            |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        match rest.strip_prefix('{') {
            None => found.push((line, name(rest))),
            Some(list) => found.extend(top_level(list).iter().map(|part| (line, name(part.trim())))),
        }
    }
    found
}

/// The parts of a brace list whose opening brace has been taken.
fn top_level(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&list[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts
}

#[test]
fn the_rule_about_arrows_sees_every_way_to_name_a_room() {
    let text = "use crate::a::b;\nuse crate::{c, d::{e, f},\n    g};\n// crate::h\nlet x = crate::i::j();\n#[cfg(test)]\ncrate::k";
    let source = Source { path: "x".into(), text: text.into() };
    let names: Vec<String> =
        rooms_named(&source).into_iter().map(|(line, name)| format!("{line}{name}")).collect();
    assert_eq!(names, ["1a", "2c", "2d", "2g", "5i"]);
}

#[test]
fn no_file_knows_the_machine_that_it_was_written_on() {
    // In two pieces, so that this file obeys its own rule.
    let homes = [["/wo", "rk/"], ["/ho", "me/"], ["/ro", "ot/"], ["/Us", "ers/"]].map(|parts| parts.concat());
    // A path begins there: behind a letter or a dot it is the middle of another one.
    let begins = |line: &str, at: usize| {
        !line[..at]
            .ends_with(|before: char| before.is_alphanumeric() || matches!(before, '.' | '_' | '-' | '~'))
    };
    let mut found = Vec::new();
    for path in files() {
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else { continue };
        for (index, line) in text.lines().enumerate() {
            let home =
                homes.iter().find(|home| line.match_indices(home.as_str()).any(|(at, _)| begins(line, at)));
            found.extend(home.map(|home| format!("{path}:{}: {home}", index + 1)));
        }
    }
    assert_none(&found, "absolute paths of one machine");
}

#[test]
fn every_test_file_says_what_it_guards() {
    let is_ours = |path: &String| {
        let extension = PathBuf::from(path).extension().is_some_and(|extension| extension == "rs");
        extension && (path.starts_with("tests/") || path.starts_with("tools/"))
    };
    let says = |path: &String| {
        let text = std::fs::read_to_string(root().join(path)).expect("a source is text");
        text.starts_with("//! ")
    };
    let found: Vec<String> = files().into_iter().filter(is_ours).filter(|path| !says(path)).collect();
    assert_none(&found, "a test or tool begins with a `//!` sentence");
}
