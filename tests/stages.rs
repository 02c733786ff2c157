//! docs/stages.md names keys, rooms and tests that are there; SECURITY.md names tests that are.

use std::path::Path;

/// Of each row of the page's tables: the texts in backticks of its cells.
fn rows() -> Vec<Vec<Vec<&'static str>>> {
    let quoted = |cell: &'static str| cell.split('`').skip(1).step_by(2).collect();
    let page = include_str!("../docs/stages.md");
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| item") && line.contains('`'));
    rows.map(|row| row.split(" | ").map(quoted).collect()).collect()
}

#[test]
fn every_key_of_the_page_is_a_key_of_the_configuration() {
    let schema = include_str!("../src/config/schema.rs");
    for key in rows().iter().flat_map(|row| row[1].clone()) {
        let last = key.rsplit('.').next().expect("a name");
        let is_key = |line: &str| {
            line.trim_start().strip_prefix(last).is_some_and(|rest| rest.starts_with([':', ' ']))
        };
        assert!(schema.lines().any(is_key), "{key} is no key");
    }
}

#[test]
fn every_room_of_the_page_is_there() {
    for room in rows().iter().flat_map(|row| row[2].clone()) {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(room).is_dir(), "{room} is no room");
    }
}

#[test]
fn every_test_of_the_page_is_there_in_the_file_that_is_named_before_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let read = |path: std::path::PathBuf| std::fs::read_to_string(&path).unwrap_or_default();
    let mut seen = 0;
    for row in rows() {
        let mut text = String::new();
        for name in &row[3] {
            let file =
                if *name == "conformance" { "conformance_memory.rs".into() } else { format!("{name}.rs") };
            if folder.join(&file).is_file() {
                let laws = ["bounds", "commits", "ends", "lanes", "lives", "maps", "records"];
                let laws = laws.map(|law| read(folder.join(format!("support/conformance/{law}.rs"))));
                text = if *name == "conformance" { laws.concat() } else { read(folder.join(&file)) };
                continue;
            }
            let test = name.rsplit("::").next().expect("a name");
            assert!(text.contains(&format!("fn {test}(")), "{name} is no test of the file before it");
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen} tests are named");
}

/// All text of a folder's Rust files.
fn code(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let texts = entries.map(|path| match path.extension() {
        _ if path.is_dir() => code(&path),
        Some(ending) if ending == "rs" => std::fs::read_to_string(&path).expect("it is text"),
        _ => String::new(),
    });
    texts.collect()
}

#[test]
fn every_test_that_the_security_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let code = code(&root.join("tests")) + &code(&root.join("src"));
    let is_row = |name: &str| {
        let (row, rest) = name.split_once('_').unwrap_or_default();
        let is_number = row.get(1..).is_some_and(|digits| digits.parse::<u8>().is_ok());
        is_number && !rest.is_empty()
    };
    let page = include_str!("../SECURITY.md").split('`').skip(1).step_by(2);
    let is_word =
        |name: &&str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_…".contains(c));
    let mut seen = 0;
    for name in page.filter(is_word).filter(|name| is_row(name) || name.matches('_').count() > 3) {
        let test = match name.strip_suffix('…') {
            Some(start) => format!("fn {start}"),
            None => format!("fn {name}("),
        };
        assert!(code.contains(&test), "{name} is no test");
        seen += 1;
    }
    assert!(seen > 80, "{seen} tests are named");
}
