//! Tables for people: columns as wide as what is in them. Pure.

use std::fmt::Write as _;

use serde_json::Value;

use crate::observe::is_hidden;

/// Heads, separated by commas, and rows, each of so many cells. Numbers stand to the right. Lines end at `width`.
pub fn table(heads: &str, rows: &[Vec<String>], width: usize) -> String {
    let heads: Vec<String> = heads.split(',').map(str::to_owned).collect();
    let all = || [&heads].into_iter().chain(rows);
    let longest = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(longest).collect();
    let is_number = |column: usize| {
        let first =
            |row: &Vec<String>| row[column].split(' ').next().is_some_and(|word| word.parse::<f64>().is_ok());
        column > 0 && rows.iter().any(first) && rows.iter().all(|row| row[column] == "-" || first(row))
    };
    let mut out = String::new();
    for row in all() {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            let width = widths[column];
            let _ = match is_number(column) {
                true => write!(line, "{gap}{cell:>width$}"),
                false => write!(line, "{gap}{cell:width$}"),
            };
        }
        out.extend(line.trim_end().chars().take(width));
        out.push('\n');
    }
    out
}

/// These fields of an object as the cells of a row.
pub fn cells(of: &Value, names: &[&str]) -> Vec<String> {
    names.iter().map(|name| cell(&of[name])).collect()
}

/// A field as a cell: nothing where there is none. What could steer a terminal is shown as what it is.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text
            .chars()
            .flat_map(|char| match is_hidden(char) {
                true => char.escape_default().collect::<Vec<_>>(),
                false => vec![char],
            })
            .collect(),
        other => other.to_string(),
    }
}

/// Seconds, as short as they can be read.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shown as a whole number")]
pub fn seconds(value: &Value) -> String {
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
    fn columns_are_as_wide_as_their_cells_and_lines_end_where_the_terminal_does() {
        let rows = [vec!["a".into(), "10".into()], vec!["long".into(), "7".into()]];
        assert_eq!(table("name,n", &rows, 80), "name   n\na     10\nlong   7\n");
        assert_eq!(table("name,n", &rows, 3), "nam\na  \nlon\n");
        assert_eq!(table("name", &[], 80), "name\n");
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
