//! Where values come from: defaults, the file, the environment, `--set`. Later wins; origins are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::issue::{Issue, Origin, inside};
use super::key::{Key, Kind};
use super::schema::Config;
use super::{reference, validate};
use crate::handler::OwnOptions;
use crate::limits::CONFIG_FILE_BYTES;

/// What a user gave.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// `--config`, else `COFFERDAM_CONFIG`.
    pub file: Option<PathBuf>,
    pub environment: Vec<(String, String)>,
    /// `--set PATH=VALUE`, in order.
    pub sets: Vec<String>,
}

/// A configuration that passed.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// Normalised: every default filled in.
    pub value: Value,
    /// Of each path whose value is not a default.
    pub origins: Origins,
    /// What all sources say together, no default filled in.
    pub given: Value,
    /// The config file.
    pub file: Option<PathBuf>,
    /// What is no error, and most likely not what was meant.
    pub warnings: Vec<String>,
}

/// Behind `COFFERDAM_`: the name of the config file, and what a program is told of its job.
const NO_KEYS: [&str; 8] =
    ["CONFIG", "JOB_ID", "DELIVERY", "FENCE", "HANDLER", "PROGRAM", "URL", "TOKEN_FILE"];

type Origins = BTreeMap<String, Origin>;

/// Reads, merges and checks everything; an error is all that is wrong, in one list. `handlers` are the registered
/// ones with their own options.
pub fn load(source: &Source, handlers: &OwnOptions) -> Result<Loaded, Vec<Issue>> {
    let (mut issues, mut layers, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    if let Some(path) = &source.file {
        let read = read_file(path, &mut issues);
        read.map_or_else(|issue| issues.push(issue), |value| layers.push((value, Origin::File)));
    }
    for (name, value) in &source.environment {
        let Some(rest) = name.strip_prefix("COFFERDAM_") else { continue };
        if rest.contains("__") {
            // `COFFERDAM_WEB__BIND` is `web.bind`; names without `__` are not config paths.
            let path = rest.to_ascii_lowercase().replace("__", ".");
            let origin = Origin::Environment(name.clone());
            layers.push((nested(&path, value, &origin, &mut issues), origin));
        } else if !NO_KEYS.contains(&rest) {
            let paths = reference::paths();
            let means = |path: &&String| path.contains('.') && in_capitals(path, "_") == *rest;
            let meant = paths
                .iter()
                .find(means)
                .map(|path| format!("; COFFERDAM_{} would set {path}", in_capitals(path, "__")));
            warnings.push(format!("{name} means nothing{}", meant.unwrap_or_default()));
        }
    }
    for set in &source.sets {
        match set.split_once('=') {
            Some((path, value)) if path.split('.').all(|part| !part.is_empty()) => {
                let origin = Origin::CommandLine;
                layers.push((nested(path, value, &origin, &mut issues), origin));
            }
            Some(_) | None => issues.push(Issue::new("--set", "is malformed", set, "PATH=VALUE")),
        }
    }
    let (mut given, mut origins) = (json!({}), BTreeMap::new());
    for (layer, origin) in layers {
        merge(&mut given, layer, "", &origin, &mut origins);
    }
    let value = validate::normalise(&given, handlers, &mut issues);
    match serde_json::from_value(value.clone()).map_err(|error| error.to_string()) {
        Err(error) => {
            issues.push(Issue::new("config", "does not fit its own schema", &error, "a bug report"))
        }
        Ok(config) => {
            validate::cross_rules(&config, &mut issues);
            if issues.is_empty() {
                let file = source.file.clone();
                return Ok(Loaded { config, value, origins, given, file, warnings });
            }
        }
    }
    for issue in issues.iter_mut().filter(|issue| issue.origin.is_none()) {
        issue.origin = origin_of(&issue.path, &origins).cloned();
    }
    Err(issues)
}

fn in_capitals(path: &str, dot: &str) -> String {
    path.to_ascii_uppercase().replace('.', dot)
}

/// Where the value at this path came from, or one inside, or the one that it is inside of.
pub(super) fn origin_of<'a>(path: &str, origins: &'a Origins) -> Option<&'a Origin> {
    let within = format!("{path}.");
    let inside = || origins.range(within.clone()..).next().filter(|(at, _)| at.starts_with(&within));
    let around = || path.rmatch_indices('.').find_map(|(end, _)| origins.get(&path[..end]));
    origins.get(path).or_else(|| inside().map(|(_, origin)| origin)).or_else(around)
}

/// A config file's object. Paths in it are relative to its folder.
fn read_file(path: &Path, issues: &mut Vec<Issue>) -> Result<Value, Issue> {
    let at = path.display().to_string();
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(CONFIG_FILE_BYTES + 1).read_to_string(&mut text));
    let read =
        read.map_err(|error| Issue::new(&at, "cannot be read", &error.to_string(), "a readable JSON file"))?;
    if read as u64 > CONFIG_FILE_BYTES {
        return Err(Issue::new(&at, "is too large", "more than 16 MiB", "a JSON file"));
    }
    // Some editors begin a file with a mark, which a parser may ignore (RFC 8259, 8.1).
    let mut value = parse(text.strip_prefix('\u{feff}').unwrap_or(&text), "", &Origin::File, issues)
        .map_err(|error| Issue::new(&at, "is not JSON", &error.to_string(), "a JSON object"))?;
    if !value.is_object() {
        return Err(Issue::new(&at, "is not an object", "another kind", "a JSON object"));
    }
    if let Some(folder) = std::path::absolute(path).ok().as_deref().and_then(Path::parent) {
        make_absolute(&mut value, &Config::KEYS.iter().collect::<Vec<_>>(), folder);
    }
    Ok(value)
}

fn make_absolute(value: &mut Value, keys: &[&Key], folder: &Path) {
    for key in keys {
        let Some(value) = value.get_mut(key.name) else { continue };
        if let (Kind::Path, Some(path)) = (key.kind, value.as_str().filter(|path| !path.is_empty())) {
            *value = json!(folder.join(path));
        }
        // A program's own name, where it is a path.
        if let ("command", Some(name)) = (key.name, value.pointer_mut("/0"))
            && let Some(path) = name.as_str().filter(|name| name.contains('/'))
        {
            *name = json!(folder.join(path));
        }
        let members = key.members();
        match (value, key.behind()) {
            (value, "") => make_absolute(value, &members, folder),
            (Value::Object(map), _) => map.values_mut().for_each(|one| make_absolute(one, &members, folder)),
            (Value::Array(list), _) => list.iter_mut().for_each(|one| make_absolute(one, &members, folder)),
            _ => {}
        }
    }
}

/// JSON as serde reads it, which of keys that stand twice takes the last; those are issues.
fn parse(text: &str, at: &str, origin: &Origin, issues: &mut Vec<Issue>) -> serde_json::Result<Value> {
    let (value, before) = (serde_json::from_str(text)?, issues.len());
    find_doubled(serde_json::from_str(text)?, at, issues);
    issues[before..].iter_mut().for_each(|issue| issue.origin = Some(origin.clone()));
    Ok(value)
}

fn find_doubled(text: &RawValue, at: &str, issues: &mut Vec<Issue>) {
    if let Ok(Members(members)) = serde_json::from_str(text.get()) {
        let mut names = BTreeSet::new();
        for (name, value) in members {
            let path = inside(at, &name);
            find_doubled(value, &path, issues);
            if !names.insert(name) {
                issues.push(Issue::new(&path, "stands twice", "a second value", "one"));
            }
        }
    } else if let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(text.get()) {
        let places = list.iter().enumerate();
        places.for_each(|(place, value)| find_doubled(value, &inside(at, &place.to_string()), issues));
    }
}

/// Every member of an object, in order.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// The path as objects around a value, which is JSON or else a string; where a text is wanted, only what can be none is
/// JSON. A path far deeper than the schema must not use up the stack: its tail stays one name, which no key has.
fn nested(path: &str, text: &str, origin: &Origin, issues: &mut Vec<Issue>) -> Value {
    const PARTS: usize = 16;
    let parts: Vec<&str> = path.splitn(PARTS, '.').collect();
    let is_variable =
        path.rsplit_once('.').and_then(|(map, _)| Key::at(map)).is_some_and(|key| key.name == "env");
    let wants_text = is_variable || Key::at(path).is_some_and(Key::is_text);
    let may_be = |value: &Value| !wants_text || value.is_string() || value.is_array() || value.is_object();
    let value = parse(text, path, origin, issues).ok().filter(may_be).unwrap_or_else(|| Value::from(text));
    parts.iter().rev().fold(value, |inner, part| json!({ *part: inner }))
}

/// Lays `layer` over `base`: objects key by key, everything else as a whole. Lists replace lists.
fn merge(base: &mut Value, layer: Value, path: &str, origin: &Origin, origins: &mut Origins) {
    match (base, layer) {
        (Value::Object(base), Value::Object(layer)) => {
            for (name, value) in layer {
                let path = inside(path, &name);
                let slot = base.entry(name).or_insert(Value::Null);
                if value.is_object() && !slot.is_object() {
                    *slot = json!({});
                }
                if value == json!({}) && Key::at(&path).is_none() {
                    // Nothing inside will say where it came from.
                    origins.insert(path.clone(), origin.clone());
                }
                merge(slot, value, &path, origin, origins);
            }
        }
        (base, layer) => {
            // What was inside comes from nowhere any more.
            let inside = format!("{path}.");
            origins.retain(|known, _| !known.starts_with(&inside));
            let is_default = !layer.is_null() && Key::at(path).is_some_and(|key| (key.default)() == layer);
            *base = layer;
            if is_default {
                origins.remove(path);
            } else {
                origins.insert(path.to_owned(), origin.clone());
            }
        }
    }
}
