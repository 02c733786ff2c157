//! Where values come from: defaults, the file, the environment, `--set`. Later wins; origins are kept.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::schema::{Config, Key};
use super::validate::{self, Issue};
use crate::handler::OwnOptions;

/// What a user gave.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// `--config`, else `COFFERDAM_CONFIG`.
    pub file: Option<PathBuf>,
    pub environment: Vec<(String, String)>,
    /// `--set PATH=VALUE`, in order.
    pub sets: Vec<String>,
}

/// Where a value that is not a default came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File,
    /// This variable.
    Environment(String),
    /// A `--set`.
    CommandLine,
}

/// A configuration that passed.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// Normalised: every default filled in.
    pub value: Value,
    /// Of each path whose value is not a default.
    pub origins: Origins,
}

type Origins = BTreeMap<String, Origin>;

/// Reads, merges and checks everything; an error is all that is wrong, in one list. `handlers` are the registered
/// ones with their own options.
pub fn load(source: &Source, handlers: &OwnOptions) -> Result<Loaded, Vec<Issue>> {
    let (mut issues, mut layers) = (Vec::new(), Vec::new());
    if let Some(path) = &source.file {
        match read_file(path) {
            Ok(value) => layers.push((value, Origin::File)),
            Err(issue) => issues.push(issue),
        }
    }
    for (name, value) in &source.environment {
        // `COFFERDAM_WEB__BIND` is `web.bind`; names without `__` are not config paths.
        let path = name.strip_prefix("COFFERDAM_").filter(|rest| rest.contains("__"));
        let path = path.map(|rest| rest.to_ascii_lowercase().replace("__", "."));
        layers.extend(path.map(|path| (nested(&path, value), Origin::Environment(name.clone()))));
    }
    for set in &source.sets {
        match set.split_once('=') {
            Some((path, value)) if path.split('.').all(|part| !part.is_empty()) => {
                layers.push((nested(path, value), Origin::CommandLine));
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
                return Ok(Loaded { config, value, origins });
            }
        }
    }
    Err(issues)
}

fn read_file(path: &Path) -> Result<Value, Issue> {
    let at = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Issue::new(&at, "cannot be read", &error.to_string(), "a readable JSON file"))?;
    let value = serde_json::from_str::<Value>(&text)
        .map_err(|error| Issue::new(&at, "is not JSON", &error.to_string(), "a JSON object"))?;
    let not_an_object = || Issue::new(&at, "is not an object", "another kind", "a JSON object");
    Some(value).filter(Value::is_object).ok_or_else(not_an_object)
}

/// The path as objects around a value, which is JSON or else a string. A path far deeper than the schema must not use up
/// the stack: its tail stays one name, which no key has.
fn nested(path: &str, value: &str) -> Value {
    const PARTS: usize = 16;
    let parts: Vec<&str> = path.splitn(PARTS, '.').collect();
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    parts.iter().rev().fold(value, |inner, part| json!({ *part: inner }))
}

/// Lays `layer` over `base`: objects key by key, everything else as a whole. Lists replace lists.
fn merge(base: &mut Value, layer: Value, path: &str, origin: &Origin, origins: &mut Origins) {
    match (base, layer) {
        (Value::Object(base), Value::Object(layer)) => {
            for (name, value) in layer {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                let slot = base.entry(name).or_insert(Value::Null);
                if value.is_object() && !slot.is_object() {
                    *slot = json!({});
                }
                merge(slot, value, &path, origin, origins);
            }
        }
        (base, layer) => {
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
