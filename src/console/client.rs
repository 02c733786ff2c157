//! A running service as its HTTP interface shows it: one connection, kept, one request at a time.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::table::cell;
use crate::exit::Exit;
use crate::job::JobId;
use crate::observe::visible;
use crate::web::respond::Answer;

/// An answer is waited for so long beyond what was asked for.
const PATIENCE: Duration = Duration::from_secs(60);
const CONNECTS: Duration = Duration::from_secs(5);
/// A list's records and their fields are read apart.
const DEPTH: usize = 3;

/// Who asks what, and where.
pub struct Client {
    authority: String,
    token: Option<Zeroizing<String>>,
    /// Kept from one request to the next.
    stream: Option<TcpStream>,
    pub patience: Duration,
}

/// Why there is no result.
#[derive(Debug)]
pub struct Trouble {
    /// `Failed`: the service said no; `NotReady`: nobody answered, or not as a service does.
    pub exit: Exit,
    pub why: String,
    /// It may be otherwise in a while: a service restarts, or has much to do.
    pub passes: bool,
}

/// An answer as it came, and what can be read of it.
pub struct Told {
    pub text: String,
    pub value: Value,
}

type Asked = Result<Answer, Trouble>;

impl Client {
    /// # Errors
    /// The URL is none of a service.
    pub fn new(url: &str, token: Option<Zeroizing<String>>) -> Result<Client, String> {
        let rest = url
            .strip_prefix("http://")
            .ok_or("--url begins with http://: what ends TLS stands before the service")?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let is_fine =
            !authority.is_empty() && path.is_empty() && authority.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_fine || authority.contains('@') {
            // It may hold a password.
            let shown = if authority.contains('@') { "one with a user" } else { url };
            return Err(format!("--url is http://HOST:PORT, not {shown}"));
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port { authority.to_owned() } else { format!("{authority}:80") };
        Ok(Client { authority, token, stream: None, patience: PATIENCE })
    }

    /// A successful answer, a JSON object.
    pub fn json(&mut self, method: &str, target: &str, body: &str) -> Result<Told, Trouble> {
        let reply = self.success(method, target, &[], body.as_bytes())?;
        self.told(&reply)
    }

    /// What such an answer says.
    pub fn told(&self, reply: &Answer) -> Result<Told, Trouble> {
        let told = std::str::from_utf8(&reply.body)
            .ok()
            .map(|text| Told { text: text.to_owned(), value: readable(text, DEPTH) });
        told.filter(|told| told.value.is_object())
            .ok_or_else(|| self.is_no_service("the answer is no JSON object"))
    }

    /// The same about a job.
    pub fn told_of_job(&self, reply: &Answer) -> Result<Told, Trouble> {
        let is_of_job = |told: &Told| told.value["id"].as_str().and_then(JobId::parse).is_some();
        let told = self.told(reply)?;
        if is_of_job(&told) { Ok(told) } else { Err(self.is_no_service("the answer is about no job")) }
    }

    /// A successful answer; anything else in words.
    pub fn success(&mut self, method: &str, target: &str, headers: &[String], body: &[u8]) -> Asked {
        let reply = self.ask(method, target, headers, body)?;
        if (200..300).contains(&reply.status) { Ok(reply) } else { Err(self.refusal(&reply)) }
    }

    /// What a service's problem says.
    fn refusal(&self, reply: &Answer) -> Trouble {
        let problem: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let passes = matches!(reply.status, 429 | 503);
        let failed = |why| Trouble { exit: Exit::Failed, why, passes };
        // It may have been accepted, and is asked for by this.
        let job = reply.headers.lines().find_map(|line| line.strip_prefix("cofferdam-job-id: "));
        let job = job.map(|job| format!("job {job}, ")).unwrap_or_default();
        let text = |name: &str| if problem[name].is_string() { cell(&problem[name]) } else { String::new() };
        match text("code").as_str() {
            "" => self.is_no_service(&format!("status {}, and no word why", reply.status)),
            "not_found" if text("detail").contains("no such resource") => {
                failed("the service does not know this: it may be older than this command".into())
            }
            code => {
                failed(format!("{code}: {} ({}trace {})", text("detail"), visible(&job), text("trace_id")))
            }
        }
    }

    fn is_no_service(&self, why: &str) -> Trouble {
        let why = format!("http://{}: {why}: is this a Cofferdam service?", self.authority);
        Trouble { exit: Exit::NotReady, why, passes: false }
    }

    /// Any answer. A request that can be said twice is, if a kept connection has ended meanwhile.
    pub fn ask(&mut self, method: &str, target: &str, headers: &[String], body: &[u8]) -> Asked {
        let mut request = Zeroizing::new(Vec::with_capacity(512 + body.len()));
        let _ = write!(request, "{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.authority);
        if let Some(token) = &self.token {
            let _ = write!(request, "Authorization: Bearer {}\r\n", **token);
        }
        headers.iter().for_each(|header| drop(write!(request, "{header}\r\n")));
        let _ = write!(request, "Content-Length: {}\r\n\r\n", body.len());
        request.extend_from_slice(body);
        let is_kept = self.stream.is_some();
        match self.exchange(&request) {
            Err(_) if is_kept && method != "POST" => self.exchange(&request),
            reply => reply,
        }
        .map_err(|error| {
            let why = match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    format!("no answer within {} s", self.patience.as_secs())
                }
                ErrorKind::UnexpectedEof => "the connection was closed before an answer came".into(),
                ErrorKind::InvalidData => return self.is_no_service("the answer is no HTTP"),
                _ => error.to_string(),
            };
            Trouble { exit: Exit::NotReady, why: format!("http://{}: {why}", self.authority), passes: true }
        })
    }

    /// The connection is kept only once its answer is whole.
    fn exchange(&mut self, request: &[u8]) -> std::io::Result<Answer> {
        let mut stream = match self.stream.take().filter(is_open) {
            Some(stream) => stream,
            None => self.connect()?,
        };
        stream.set_read_timeout(Some(self.patience))?;
        stream.write_all(request)?;
        let (reply, is_kept) = Answer::read(&mut stream)?;
        self.stream = is_kept.then_some(stream);
        Ok(reply)
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let mut last = ErrorKind::NotFound.into();
        for address in self.authority.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECTS) {
                Ok(stream) => {
                    stream.set_write_timeout(Some(PATIENCE))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// What of a text in JSON can be read: a part that goes beyond what our numbers, texts or depth can hold stands as it came.
fn readable(text: &str, depth: usize) -> Value {
    if let Ok(value) = serde_json::from_str(text) {
        return value;
    }
    if depth > 0 {
        if let Ok(map) = serde_json::from_str::<BTreeMap<String, &RawValue>>(text) {
            return map.into_iter().map(|(name, part)| (name, readable(part.get(), depth - 1))).collect();
        }
        if let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(text) {
            return list.into_iter().map(|part| readable(part.get(), depth - 1)).collect();
        }
    }
    text.into()
}

/// True unless the service has closed it meanwhile, or said what nobody has asked for.
fn is_open(stream: &TcpStream) -> bool {
    let waits = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let is_quiet = waits.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    is_quiet && stream.set_nonblocking(false).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_of_a_service_or_said_to_be_none() {
        let authority = |url: &str| Client::new(url, None).map(|client| client.authority).ok();
        assert_eq!(authority("http://127.0.0.1:8080").as_deref(), Some("127.0.0.1:8080"));
        assert_eq!(authority("http://[::1]:9/").as_deref(), Some("[::1]:9"));
        assert_eq!(authority("http://jobs.example").as_deref(), Some("jobs.example:80"));
        for bad in
            ["", "127.0.0.1:8080", "https://x", "http://", "http://a b", "http://u:p@x", "http://x/path"]
        {
            assert_eq!(authority(bad), None, "{bad}");
        }
    }
}
