//! Every key for people, from the table: a page of Markdown, and the paths that a misspelt one is compared with.

use serde_json::{Value, json};

use super::issue::inside;
use super::key::{Key, Kind};
use super::schema::{ANY_NAME, Config};
use crate::handler::HandlerOptions;

/// The paths of all keys and sections.
pub(super) fn paths() -> Vec<String> {
    let mut paths = Vec::new();
    walk(Config::KEYS.iter().collect(), "", &mut |path, _| paths.push(path.to_owned()));
    paths
}

/// What `check --reference` prints.
pub fn reference() -> String {
    let own = json!(HandlerOptions::default());
    let mut out =
        "| key | type | default | allowed | meaning |\n| --- | --- | --- | --- | --- |\n".to_owned();
    walk(Config::KEYS.iter().collect(), "", &mut |path, key| {
        if matches!(key.kind, Kind::Section(_) | Kind::Optional(_)) {
            return;
        }
        // A handler brings its own defaults.
        let is_of_handler = path.strip_prefix("handlers").and_then(|rest| rest.strip_prefix(ANY_NAME));
        let own = is_of_handler.and_then(|rest| own.get(rest.strip_prefix('.')?));
        let default = match own.cloned().unwrap_or_else(key.default) {
            Value::Null => "none".to_owned(),
            value => format!("`{value}`"),
        };
        let (kind, allowed) = (key.type_name(), key.expected());
        out += &format!("| `{path}` | {kind} | {default} | {allowed} | {} |\n", key.meaning.trim());
    });
    out
}

fn walk(keys: Vec<&Key>, at: &str, visit: &mut impl FnMut(&str, &Key)) {
    for key in keys {
        let path = inside(at, key.name);
        visit(&path, key);
        walk(key.members(), &(path + key.behind()), visit);
    }
}

/// What a key that nobody knows was meant to be, if that can be guessed: one beside it that looks like it, else one of the
/// same name elsewhere.
pub(super) fn meant(at: &str, name: &str, beside: &[Key]) -> Option<String> {
    const LONGEST: usize = 64;
    if name.len() > LONGEST {
        return None;
    }
    let like = beside.iter().map(|key| (distance(key.name, name), key.name)).min();
    let like = like.filter(|(distance, _)| *distance <= 1 + name.len() / 3).map(|(_, like)| like);
    // Half a name, or more than one.
    let half = || beside.iter().map(|key| key.name).find(|key| is_part(key, name) || is_part(name, key));
    let like = like.or_else(half).map(|like| inside(at, like));
    like.or_else(|| paths().into_iter().find(|path| path.rsplit('.').next() == Some(name)))
}

/// A name that another begins with, or one that stands in it between underscores.
fn is_part(part: &str, of: &str) -> bool {
    const SHORTEST: usize = 3;
    part.len() >= SHORTEST && (of.starts_with(part) || of.split('_').any(|word| word == part))
}

/// Characters to insert, remove or replace to make one name of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (index, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (place, to) in b.chars().enumerate() {
            let here = (row[place] + 1).min(row[place + 1] + 1).min(diagonal + usize::from(from != to));
            diagonal = std::mem::replace(&mut row[place + 1], here);
        }
    }
    row[b.chars().count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_explained_and_a_misspelt_one_is_recognised() {
        walk(Config::KEYS.iter().collect(), "", &mut |path, key| {
            let is_section = matches!(key.kind, Kind::Section(_) | Kind::Optional(_));
            assert!(is_section || key.meaning.trim().len() > 10, "{path} has no meaning");
            assert!(!key.meaning.contains('|') && !key.expected().contains('|'), "{path} breaks its row");
        });
        for (at, name, beside, expected) in [
            ("web", "bnd", "web", Some("web.bind")),
            ("web", "bnt", "web", Some("web.bind")),
            ("web", "max_inflght", "web", Some("web.max_inflight")),
            ("web", "bind_address", "web", Some("web.bind")),
            ("web", "inflight", "web", Some("web.max_inflight")),
            ("web", "bi", "web", None),
            ("", "queue", "", Some("runtime.platform.queue")),
            ("web", "sink_mode", "web", Some("runtime.ordering.sink_mode")),
            ("web", "colour", "web", None),
            ("", "x", "", None),
        ] {
            let keys = Key::at(beside).map_or(Config::KEYS, |key| match key.kind {
                Kind::Section(keys) => keys,
                _ => &[],
            });
            assert_eq!(meant(at, name, keys).as_deref(), expected, "{name}");
        }
    }
}
