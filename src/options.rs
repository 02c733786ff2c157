//! The options behind a command, and the standard input that they may name.

use std::collections::VecDeque;
use std::io::{IsTerminal, Read, stdin};

/// What follows the command. Every option is taken by name; what is left over is an error. Behind `--` are no options, but words
/// that may look like some.
pub struct Options(Vec<String>, VecDeque<String>);

impl Options {
    pub fn new(arguments: &[String]) -> Options {
        // `--name=value` is `--name value`, except that `--set a=b` is one word already.
        let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
        let (options, words) = arguments.split_at(end);
        let split = options.iter().flat_map(|argument| match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => vec![name.to_owned(), value.to_owned()],
            Some(_) | None => vec![argument.clone()],
        });
        Options(split.collect(), words.iter().skip(1).cloned().collect())
    }

    /// The value of an option, if given: once at most.
    pub fn value(&mut self, name: &str) -> Result<Option<String>, String> {
        match &*self.values(name)? {
            [] => Ok(None),
            [value] => Ok(Some(value.clone())),
            [..] => Err(format!("{name} is given more than once")),
        }
    }

    pub fn values(&mut self, name: &str) -> Result<Vec<String>, String> {
        let mut values = Vec::new();
        while let Some(at) = self.0.iter().position(|argument| argument == name) {
            self.0.remove(at);
            if at >= self.0.len() {
                return Err(format!("{name} needs a value"));
            }
            values.push(self.0.remove(at));
        }
        Ok(values)
    }

    /// True if this option has no value, as one that may do without.
    pub fn is_alone(&mut self, name: &str) -> bool {
        let Some(at) = self.0.iter().position(|argument| argument == name) else { return false };
        let is_alone = self.0.get(at + 1).is_none_or(|next| next.starts_with("--"));
        if is_alone {
            self.0.remove(at);
        }
        is_alone
    }

    /// The first word, if it is no option.
    pub fn positional(&mut self) -> Option<String> {
        match self.0.first() {
            Some(word) => (!word.starts_with("--")).then(|| self.0.remove(0)),
            None => self.1.pop_front(),
        }
    }

    pub fn flag(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|argument| argument != name);
        self.0.len() != before
    }

    pub fn finish(&self) -> Result<(), String> {
        self.0
            .first()
            .or(self.1.front())
            .map_or(Ok(()), |unknown| Err(format!("unknown argument {unknown}; see --help")))
    }
}

/// All of standard input, which `-` names. Where it is not named and is a terminal, nobody means it.
pub fn standard_input(is_named: bool) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    if is_named || !stdin().is_terminal() {
        stdin().read_to_end(&mut bytes).map_err(|error| format!("standard input: {error}"))?;
    }
    Ok(bytes)
}
