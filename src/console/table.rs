//! Tables for people: columns as wide as what is in them. Pure.

use std::fmt::Write as _;

use serde_json::Value;

use crate::observe::visible;

/// Rows under columns such as `ID=id,WHY=reason+until`: a head, and the path of the field that it shows, or of two. Numbers
/// stand to the right.
pub fn table(columns: &str, rows: &[Value]) -> String {
    let (heads, paths): (Vec<&str>, Vec<&str>) =
        columns.split(',').filter_map(|column| column.split_once('=')).unzip();
    let heads: Vec<String> = heads.into_iter().map(str::to_owned).collect();
    let cells = |row: &Value| paths.iter().map(|path| shown(row, path)).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let all = || [&heads].into_iter().chain(&rows);
    let longest = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(longest).collect();
    let is_number = |column: usize| {
        let first =
            |row: &Vec<String>| row[column].split(' ').next().is_some_and(|word| word.parse::<f64>().is_ok());
        column > 0 && rows.iter().any(first) && rows.iter().all(|row| row[column] == "-" || first(row))
    };
    let are_numbers: Vec<bool> = (0..heads.len()).map(is_number).collect();
    let mut out = String::new();
    for row in all() {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            let width = widths[column];
            let _ = match are_numbers[column] {
                true => write!(line, "{gap}{cell:>width$}"),
                false => write!(line, "{gap}{cell:width$}"),
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// The same with as many of the columns as have room: a number that is cut is another one.
pub fn fitting(columns: &str, rows: &[Value], width: usize) -> String {
    let text = table(columns, rows);
    match columns.rsplit_once(',') {
        Some((fewer, _)) if text.lines().any(|line| line.chars().count() > width) => {
            fitting(fewer, rows, width)
        }
        _ => text,
    }
}

/// What a row has at a path: of two the second where it is there.
fn shown(row: &Value, path: &str) -> String {
    let field = |path: &str| row.pointer(&format!("/{path}")).unwrap_or(&Value::Null);
    match path.split_once('+') {
        Some((path, second)) if !field(second).is_null() => {
            format!("{} {}", cell(field(path)), cell(field(second)))
        }
        Some((path, _)) => cell(field(path)),
        None if path.contains("seconds") => seconds(field(path)),
        None if path == "paused" => state(field(path)).into(),
        None => cell(field(path)),
    }
}

/// A handler's, by whether it is paused.
pub fn state(paused: &Value) -> &'static str {
    if *paused == true { "paused" } else { "open" }
}

/// A field as a cell: nothing where there is none. What could steer a terminal is shown as what it is.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => visible(text),
        other => visible(&other.to_string()),
    }
}

/// Seconds, as short as they can be read.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shown as a whole number")]
fn seconds(value: &Value) -> String {
    let Some(seconds) = value.as_f64() else { return "-".into() };
    match seconds.max(0.0) {
        0.0 => "0 s".into(),
        seconds if seconds < 1e-3 => format!("{:.0} us", seconds * 1e6),
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds if seconds < 7_200.0 => format!("{} min", (seconds / 60.0) as u64),
        seconds => format!("{} h", (seconds / 3_600.0) as u64),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows = [json!({ "a": "a", "n": 10 }), json!({ "a": "long", "n": 7 })];
        assert_eq!(table("name=a,n=n", &rows), "name   n\na     10\nlong   7\n");
        assert_eq!(table("name=a", &[]), "name\n");
        let row = json!({ "why": "backoff", "until": "9:00", "of": { "seconds": 3.25 }, "paused": true });
        let text = table("WHY=why+until,OTHER=why+none,AGE=of/seconds,STATE=paused,NONE=x", &[row]);
        assert!(text.ends_with("\nbackoff 9:00  backoff  3.2 s  paused  -\n"), "{text}");
    }

    #[test]
    fn cells_cannot_steer_a_terminal() {
        assert_eq!(cell(&json!("a\u{1b}[2J")), "a\\u{1b}[2J");
        assert_eq!(cell(&Value::Null), "-");
        for (value, text) in
            [(0.0, "0 s"), (0.000_4, "400 us"), (0.02, "20 ms"), (3.25, "3.2 s"), (600.0, "10 min")]
        {
            assert_eq!(seconds(&json!(value)), text);
        }
    }
}
