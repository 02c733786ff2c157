//! A key of the configuration: its name, default, allowed values and meaning. The tables of them are in [`schema`](super::schema)
//! and [`program`](super::program).

use serde_json::{Value, json};

/// What a key's value must be; in words where it is a check.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A whole number in this range.
    Int(u64, u64),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A text that passes.
    Text(fn(&str) -> bool, &'static str),
    /// Where a file or folder is. In a config file, relative to that.
    Path,
    /// Any value that passes, by the name of its type.
    Is(&'static str, fn(&Value) -> bool, &'static str),
    /// The same for what has no default: its `null` is judged, where other keys take it for "not given".
    Shape(&'static str, fn(&Value) -> bool, &'static str),
    /// An object that is always there.
    Section(&'static [Key]),
    /// An object that may be absent.
    Optional(&'static [Key]),
}
use Kind::{Int, Is, OneOf, Optional, Path, Section, Shape, Text};

#[derive(Clone, Copy)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// `null` where the key may be absent.
    pub(super) default: fn() -> Value,
    pub(super) kind: Kind,
    /// Its documentation in the table below: what people read of it.
    pub(super) meaning: &'static str,
}

/// A list of keys.
macro_rules! keys {
    ($($(#[doc = $meaning:literal])* $name:ident = $default:tt, $kind:expr;)*) => {
        &[$(Key {
            name: stringify!($name),
            default: || ::serde_json::json!($default),
            kind: $kind,
            meaning: concat!($($meaning),*),
        },)*]
    };
}

pub(super) use keys;

pub(super) const MAX: u64 = u32::MAX as u64;
pub(super) const COUNT: Kind = Int(1, MAX);
pub(super) const MILLIS: Kind = COUNT;
pub(super) const FROM_0: Kind = Int(0, MAX);
pub(super) const USER: Kind = Is("string or integer", is_user, "a user's name or number");

impl Key {
    /// A text, which in the environment and behind `--set` may look like something else.
    pub(super) fn is_text(&self) -> bool {
        matches!(self.kind, OneOf(_) | Text(..) | Path)
    }

    /// What a refusal says was expected; `None` if the value is allowed.
    pub(super) fn refuses(&self, value: &Value) -> Option<String> {
        let is_allowed = match self.kind {
            Int(min, max) => value.as_u64().is_some_and(|number| (min..=max).contains(&number)),
            OneOf(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            Text(passes, _) => value.as_str().is_some_and(passes),
            Path => value.as_str().is_some_and(|text| !text.is_empty()),
            Is(_, passes, _) | Shape(_, passes, _) => passes(value),
            Section(_) | Optional(_) => value.is_object(),
        };
        (!is_allowed).then(|| self.expected())
    }

    /// Its allowed values, in words.
    pub(super) fn expected(&self) -> String {
        match self.kind {
            Int(min, max) if min == max => format!("{min}"),
            Int(min, max) => format!("a whole number from {min} to {max}"),
            OneOf(words) => {
                let quoted: Vec<String> = words.iter().map(|word| json!(word).to_string()).collect();
                quoted.join(" or ")
            }
            Path => "a path that is not empty".into(),
            Text(_, expected) | Is(_, _, expected) | Shape(_, _, expected) => expected.into(),
            Section(_) | Optional(_) => "an object".into(),
        }
    }

    /// The name of its type.
    pub(super) fn type_name(&self) -> &'static str {
        match self.kind {
            Int(..) => "int",
            OneOf(_) | Text(..) | Path => "string",
            Is(name, ..) | Shape(name, ..) => name,
            Section(_) | Optional(_) => "object",
        }
    }
}

fn is_user(value: &Value) -> bool {
    let is_name = |name: &str| !name.is_empty() && !name.contains([':', '\n']);
    value.as_str().is_some_and(is_name) || value.as_u64().is_some_and(|number| number < MAX)
}
