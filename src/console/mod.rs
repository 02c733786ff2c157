//! `jobs`, `lanes`, `handlers` and `top`: a running service, looked at and steered over its HTTP interface.

mod client;
mod jobs;
mod show;
mod submit;
mod table;

use std::fs::File;
use std::io::{Read, Write};

use serde_json::Value;
use zeroize::Zeroizing;

use client::Told;
pub use client::{Client, Trouble};
use table::cell;

use crate::exit::{Exit, answer, complain, written_out};
use crate::limits::AUTHORIZATION_BYTES;
use crate::options::Options;

/// Names the service where `--url` does not, and the token's file where `--token-file` does not.
const URL_VARIABLE: &str = "COFFERDAM_URL";
const TOKEN_VARIABLE: &str = "COFFERDAM_TOKEN_FILE";
const URL: &str = "http://127.0.0.1:8080";

/// How a command ends before its end.
enum Stop {
    Usage(String),
    Trouble(Trouble),
    /// What was said is enough.
    Done(Exit),
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Stop {
        Stop::Trouble(trouble)
    }
}

impl From<String> for Stop {
    fn from(usage: String) -> Stop {
        Stop::Usage(usage)
    }
}

/// What each of these commands needs.
struct Console {
    client: Client,
    as_json: bool,
}

/// Runs one of them.
///
/// # Errors
/// It is used wrongly.
pub fn run(command: &str, options: &mut Options) -> Result<Exit, String> {
    let end = Console::open(options).map_err(Stop::Usage).and_then(|mut console| match command {
        "jobs" => jobs::run(&mut console, options),
        "lanes" => show::lanes(&mut console, options),
        "handlers" => show::handlers(&mut console, options),
        _ => show::top(&mut console, options),
    });
    match end {
        Ok(exit) | Err(Stop::Done(exit)) => Ok(exit),
        Err(Stop::Usage(why)) => Err(why),
        Err(Stop::Trouble(Trouble { exit, why, .. })) => {
            complain(&why);
            Ok(exit)
        }
    }
}

impl Console {
    fn open(options: &mut Options) -> Result<Console, String> {
        let given = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = options.value("--url")?.or_else(|| given(URL_VARIABLE)).unwrap_or(URL.into());
        let token = options.value("--token-file")?.or_else(|| given(TOKEN_VARIABLE));
        let token = token.map(|file| read_token(&file)).transpose()?;
        Ok(Console { client: Client::new(&url, token)?, as_json: options.flag("--json") })
    }

    /// What was found: for scripts as it is, for people in words.
    fn show(&self, found: &Told, text: impl FnOnce(&Value) -> String) -> Exit {
        answer(&if self.as_json { format!("{}\n", found.text) } else { text(&found.value) })
    }

    /// A job's result or payload, as it is.
    fn tell_bytes(&mut self, id: &str, what: &str) -> Result<Exit, Stop> {
        let reply = self.client.success("GET", &format!("/v1/jobs/{id}/{what}"), &[], b"")?;
        tell(&reply.body).map(|()| Exit::Done)
    }

    /// What has become of a job.
    fn tell_status(&self, id: &str, record: &Told) -> Result<(), Stop> {
        let status = || format!("{id} {}", cell(&record.value["status"]));
        let text = if self.as_json { record.text.clone() } else { status() };
        tell(format!("{text}\n").as_bytes())
    }
}

/// The token that such a file holds, on a line of its own.
///
/// # Errors
/// It cannot be read, or holds none.
pub fn read_token(file: &str) -> Result<Zeroizing<String>, String> {
    let mut text = Zeroizing::new(String::new());
    let read =
        File::open(file).and_then(|file| file.take(AUTHORIZATION_BYTES as u64).read_to_string(&mut text));
    read.map_err(|error| format!("--token-file {file}: {error}"))?;
    let token = text.trim();
    let is_one = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    if is_one { Ok(token.to_owned().into()) } else { Err(format!("--token-file {file}: holds no token")) }
}

/// Says a part of an answer. Who reads no more has seen enough.
fn tell(bytes: &[u8]) -> Result<(), Stop> {
    let mut out = std::io::stdout();
    let told = out.write_all(bytes).and_then(|()| out.flush());
    told.map_err(|error| Stop::Done(written_out(Err(error))))
}

/// A text as part of a target (RFC 3986, 2.1).
fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}
