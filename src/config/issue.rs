//! What is wrong with a configuration, where it stands, and where it came from.

use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// The dotted path.
    pub path: String,
    what: String,
    got: String,
    /// Where that came from, if it is known.
    pub(super) origin: Option<Origin>,
    expected: String,
}

impl Issue {
    pub(super) fn new(path: &str, what: &str, got: &str, expected: &str) -> Issue {
        let (path, what, got) = (path.into(), what.into(), got.into());
        Issue { path, what, got, origin: None, expected: expected.into() }
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Issue { path, what, got, origin, expected } = self;
        let from = origin.as_ref().map(|origin| format!(" from {origin}")).unwrap_or_default();
        write!(f, "{path}: {what} (got {got}{from}; expected {expected})")
    }
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

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::File => "the file",
            Origin::Environment(name) => name,
            Origin::CommandLine => "--set",
        })
    }
}

pub(super) fn inside(at: &str, name: &str) -> String {
    if at.is_empty() { name.into() } else { format!("{at}.{name}") }
}
