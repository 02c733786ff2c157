//! The token file of `web.auth.mode=bearer`: a line a token, which holds the token's hash and never the token. Read here;
//! its text is judged by a pure function.
//!
//! ```text
//! NAME SHA256HEX SCOPES [HANDLERS] [max_inflight=N] [rate_per_second=N]
//! ```
//!
//! Two lines may have one name: the new token and the old one while it is replaced. Jobs belong to the name.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::secret::read_private;
use crate::codec::base64;
use crate::codec::{hex, parse_hex};
use crate::limits::TOKEN_FILE_BYTES;
use crate::named::named;

named! {
    /// What a token lets its holder do.
    Scope {
        /// Submit jobs, and cancel and retry its own.
        Submit = "submit",
        /// Look at its own jobs, at figures and readiness.
        Read = "read",
        /// Look at, cancel and retry everybody's jobs; pause and resume handlers.
        Admin = "admin",
    }
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The owner of its jobs.
    pub name: Arc<str>,
    /// SHA-256 of the token's text.
    pub hash: [u8; 32],
    pub scopes: Vec<Scope>,
    /// Those whose jobs it may begin, begin again and end, and that it may pause and resume; `None`: all.
    pub handlers: Option<Arc<[String]>>,
    /// Callers with this name that wait at once.
    pub max_inflight: Option<usize>,
    /// Requests of this name a second.
    pub rate_per_second: Option<u32>,
}

/// The file's text and its tokens, if nobody else can read or write it and it is a token file.
pub fn read(path: &Path) -> Result<(String, Vec<Token>), String> {
    let text = read_private(path, TOKEN_FILE_BYTES)?;
    let text = std::str::from_utf8(&text).map_err(|_| format!("{}: is not UTF-8", path.display()))?;
    let tokens = parse(text).map_err(|why| format!("{}: {why}", path.display()))?;
    // A file that is just being written would shut out everybody.
    if tokens.is_empty() {
        return Err(format!("{}: holds no token", path.display()));
    }
    Ok((text.to_owned(), tokens))
}

/// The tokens of such a text. Empty lines and those that begin with `#` say nothing.
///
/// # Errors
/// The number of the first line that is none, and why.
pub fn parse(text: &str) -> Result<Vec<Token>, String> {
    let (mut tokens, mut hashes) = (Vec::new(), HashSet::new());
    for (line, number) in text.lines().map(str::trim).zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let token = parse_line(line).map_err(|why| format!("line {number}: {why}"))?;
        if !hashes.insert(token.hash) {
            return Err(format!("line {number}: another line has this token"));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

fn parse_line(line: &str) -> Result<Token, String> {
    let mut words = line.split_ascii_whitespace();
    let (Some(name), Some(hash), Some(scopes)) = (words.next(), words.next(), words.next()) else {
        return Err("is not NAME SHA256HEX SCOPES [HANDLERS] [max_inflight=N] [rate_per_second=N]".into());
    };
    let name = check_name(name)?;
    let hash = parse_hex(hash.to_ascii_lowercase().as_bytes()).ok_or("the hash is not 64 hex digits")?;
    let scopes = parse_scopes(scopes)?;
    let mut token = Token { name, hash, scopes, handlers: None, max_inflight: None, rate_per_second: None };
    let (mut said, mut has_handlers) = (HashSet::new(), false);
    for word in words {
        match word.split_once('=') {
            Some((limit, _)) if !said.insert(limit) => return Err(format!("{limit} stands twice")),
            Some(("max_inflight", number)) => token.max_inflight = Some(from_1(number)? as usize),
            Some(("rate_per_second", number)) => token.rate_per_second = Some(from_1(number)?),
            Some(_) => return Err("the limits are max_inflight=N and rate_per_second=N".into()),
            None if std::mem::replace(&mut has_handlers, true) => {
                return Err("there are two lists of handlers; names are separated by commas alone".into());
            }
            None => token.handlers = parse_handlers(word)?,
        }
    }
    Ok(token)
}

fn check_name(name: &str) -> Result<Arc<str>, String> {
    let may_stand = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_name = (1..=64).contains(&name.len()) && name.bytes().all(may_stand);
    if is_name { Ok(Arc::from(name)) } else { Err("a name is 1 to 64 of a-z, A-Z, 0-9, ., _ and -".into()) }
}

/// Names of scopes, separated by commas.
fn parse_scopes(text: &str) -> Result<Vec<Scope>, String> {
    let scopes = text.split(',').map(Scope::parse).collect::<Option<Vec<_>>>();
    scopes.ok_or_else(|| "the scopes are submit, read and admin, separated by commas".into())
}

/// Names of handlers, separated by commas; `*` stands for all.
fn parse_handlers(text: &str) -> Result<Option<Arc<[String]>>, String> {
    let handlers: Vec<String> = text.split(',').map(str::to_owned).collect();
    let is_name = |name: &String| crate::handler::is_handler_name(name);
    match text {
        "*" => Ok(None),
        _ if handlers.iter().all(is_name) => Ok(Some(handlers.into())),
        _ => Err("the handlers are names separated by commas, or *".into()),
    }
}

fn from_1(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "a limit is a whole number from 1".into())
}

/// A new token and its line of the file. The token is 32 random bytes: nobody guesses it, and its hash needs no salt.
pub fn make(name: &str, scopes: &str, handlers: &str) -> Result<(Zeroizing<String>, String), String> {
    let (name, handlers) = (check_name(name)?, parse_handlers(handlers)?);
    let scopes: Vec<&str> = parse_scopes(scopes)?.into_iter().map(Scope::as_str).collect();
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes).map_err(|error| format!("no randomness for a token: {error}"))?;
    let coded = Zeroizing::new(base64(&*bytes));
    let mut token = Zeroizing::new(String::with_capacity(64));
    token.push_str("cfd_");
    // The alphabet of base64url (RFC 4648, 5), without padding.
    token.extend(coded.chars().filter(|char| *char != '=').map(|char| match char {
        '+' => '-',
        '/' => '_',
        char => char,
    }));
    let handlers = handlers.map_or("*".into(), |names| names.join(","));
    let line = format!("{name} {} {} {handlers}", hex(&hash(token.as_bytes())), scopes.join(","));
    Ok((token, line))
}

/// How a token stands in the file.
pub fn hash(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_tokens_line_is_one_of_the_file_and_has_its_hash() {
        let (token, line) = make("ci", "submit,read", "echo,sleep").unwrap();
        assert!(token.starts_with("cfd_") && token.len() == 47, "{}", token.len());
        let parsed = parse(&format!("# who builds\n\n{line} max_inflight=3\n")).unwrap();
        let handlers = Some(["echo".into(), "sleep".into()].into());
        let scopes = vec![Scope::Submit, Scope::Read];
        let (name, hash) = ("ci".into(), hash(token.as_bytes()));
        let expected = Token { name, hash, scopes, handlers, max_inflight: Some(3), rate_per_second: None };
        assert_eq!(parsed, [expected]);
        assert_ne!(make("ci", "admin", "*").unwrap().0, make("ci", "admin", "*").unwrap().0);
    }

    #[test]
    fn a_line_that_is_none_is_named_by_its_number() {
        let hash = "ab".repeat(32);
        for wrong in [
            "ci".into(),
            format!("ci {hash}"),
            format!("c/i {hash} read"),
            format!("ci {hash}0 read"),
            format!("ci {hash} write"),
            format!("ci {hash} read,"),
            format!("ci {hash} read echo sleep"),
            format!("ci {hash} read echo,"),
            format!("ci {hash} read max_inflight=0"),
            format!("ci {hash} read rate_per_second=-1"),
            format!("ci {hash} read rate_per_second=1 rate_per_second=2"),
            format!("ci {hash} read size=1"),
        ] {
            let why = parse(&format!("\nother {} read\n{wrong}\n", "cd".repeat(32))).expect_err(&wrong);
            assert!(why.starts_with("line 3: "), "{why}");
        }
        assert!(parse(&format!("a {hash} read\nb {hash} read")).is_err(), "one token is one name's");
    }
}
