//! Which request means what, judged on the head alone, before a body byte is read. Pure.

use std::net::Ipv4Addr;

use super::http1::{Head, Refused, escaped, refused};
use crate::job::JobId;
use crate::problem::Code;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `POST /v1/jobs/{handler}`
    Submit(String),
    /// `POST /v1/batch/{handler}`
    Batch(String),
    /// `GET /v1/jobs/{id}?wait=N`
    Wait(JobId),
    /// `GET /healthz` and `GET /livez`
    Alive,
    /// `GET /v1/events`
    Events,
    /// `GET /`
    Dashboard,
    /// `GET /openapi.json`
    OpenApi,
    /// `OPTIONS *`, and of any resource: its methods.
    Options(&'static str),
    /// Answered by a route that renders or may block.
    Inner(Inner),
}

/// What is done to all jobs that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bulk {
    Retry,
    Cancel,
}

/// The routes behind the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inner {
    /// Of one job.
    Job(JobId, OfJob),
    /// `GET /v1/jobs`
    List,
    /// `POST /v1/jobs/retry` and `POST /v1/jobs/cancel`
    Bulk(Bulk),
    /// `GET /v1/lanes/{handler}`
    Lanes(String),
    /// `POST /v1/handlers/{name}/pause` and `POST /v1/handlers/{name}/resume`
    Pause(String, bool),
    /// `GET /v1/stats`
    Stats,
    /// `GET /readyz`
    Ready,
    /// `GET /metrics`
    Metrics,
}

impl Route {
    /// It does something with its body.
    pub fn takes_body(&self) -> bool {
        matches!(self, Route::Submit(_) | Route::Batch(_) | Route::Inner(Inner::Bulk(_)))
    }
}

/// Routes behind the gate that are about one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfJob {
    /// `GET /v1/jobs/{id}`
    Record,
    /// `GET /v1/jobs/{id}/result`
    Result,
    /// `GET /v1/jobs/{id}/payload`
    Payload,
    /// `DELETE /v1/jobs/{id}`
    Cancel,
    /// `POST /v1/jobs/{id}/retry`
    Retry,
}

/// The names of the routes in the metric, separated by spaces.
pub const LABELS: &str = "submit batch record healthz result payload list cancel retry pause resume stats readyz \
                          metrics index options retry_all cancel_all lanes events openapi";

/// The route of a method and target, and its name in the metric. `HEAD` is `GET` without the body.
pub fn route(method: &str, target: &str) -> Result<(Route, &'static str), Refused> {
    const GET: &str = "GET, HEAD, OPTIONS";
    const ANY: &str = "GET, HEAD, DELETE, POST, OPTIONS";
    const POST: &str = "POST, OPTIONS";
    if target == "*" {
        return Ok((Route::Options(ANY), "options"));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    const NOT_FOUND: Refused = refused(Code::NotFound, "there is no such resource");
    let (mut parts, mut count) = ([""; 4], 0);
    for part in path.split('/').skip(1) {
        *parts.get_mut(count).ok_or(NOT_FOUND)? = part;
        count += 1;
    }
    let method = if method == "HEAD" { "GET" } else { method };
    let page = |page| Some(Route::Inner(page));
    let of_job = |id: &str, what| JobId::parse(id).map(|id| Route::Inner(Inner::Job(id, what)));
    let pause = |name: &str, paused| Some(Route::Inner(Inner::Pause(name.to_owned(), paused)));
    let (allow, label, route) = match (&parts[..count], method) {
        (["healthz" | "livez"], _) => (GET, "healthz", Some(Route::Alive)),
        (["readyz"], _) => (GET, "readyz", page(Inner::Ready)),
        (["metrics"], _) => (GET, "metrics", page(Inner::Metrics)),
        ([""], _) => (GET, "index", Some(Route::Dashboard)),
        (["openapi.json"], _) => (GET, "openapi", Some(Route::OpenApi)),
        (["v1", "events"], _) => (GET, "events", Some(Route::Events)),
        (["v1", "lanes", name], _) => (GET, "lanes", page(Inner::Lanes((*name).to_owned()))),
        (["v1", "jobs", "retry"], _) => (POST, "retry_all", page(Inner::Bulk(Bulk::Retry))),
        (["v1", "jobs", "cancel"], _) => (POST, "cancel_all", page(Inner::Bulk(Bulk::Cancel))),
        (["v1", "stats"], _) => (GET, "stats", page(Inner::Stats)),
        (["v1", "jobs"], _) => (GET, "list", page(Inner::List)),
        // An id is no handler's name that anyone would choose, so the method tells which it is.
        (["v1", "jobs", name], "POST") => (ANY, "submit", Some(Route::Submit((*name).to_owned()))),
        (["v1", "jobs", id], "DELETE") => (ANY, "cancel", of_job(id, OfJob::Cancel)),
        (["v1", "jobs", id], _) if parameter(query, "wait").is_some() => {
            (ANY, "record", JobId::parse(id).map(Route::Wait))
        }
        (["v1", "jobs", id], _) => (ANY, "record", of_job(id, OfJob::Record)),
        (["v1", "jobs", id, "result"], _) => (GET, "result", of_job(id, OfJob::Result)),
        (["v1", "jobs", id, "payload"], _) => (GET, "payload", of_job(id, OfJob::Payload)),
        (["v1", "jobs", id, "retry"], _) => (POST, "retry", of_job(id, OfJob::Retry)),
        (["v1", "handlers", name, "pause"], _) => (POST, "pause", pause(name, true)),
        (["v1", "handlers", name, "resume"], _) => (POST, "resume", pause(name, false)),
        (["v1", "batch", name], _) => (POST, "batch", Some(Route::Batch((*name).to_owned()))),
        _ => return Err(NOT_FOUND),
    };
    if method == "OPTIONS" {
        return Ok((Route::Options(allow), "options"));
    }
    if !allow.split(',').any(|allowed| allowed.trim_start() == method) {
        let refused = refused(Code::MethodNotAllowed, "this resource has other methods; see Allow");
        return Err(refused.with("allow", allow));
    }
    let route = route.ok_or(refused(Code::UnknownJob, "there is no job of this id"))?;
    check_query(query, label)?;
    Ok((route, label))
}

/// A query with a parameter that is not understood is refused: a caller who asks for a delay under another name wants no job
/// that runs at once.
fn check_query(query: &str, label: &str) -> Result<(), Refused> {
    let (known, detail): (&[&str], _) = match label {
        "submit" => {
            (&["delay_ms", "timeout_ms"], "the query parameters here are delay_ms and timeout_ms, each once")
        }
        "batch" => (&["sink_mode"], "the query parameter here is sink_mode, once"),
        "record" => (&["wait"], "the query parameter here is wait, once"),
        "list" => (
            &["status", "handler", "key", "trace", "before", "limit", "after"],
            "the query parameters here are status, handler, key, trace, before, limit and after, each once",
        ),
        _ => (&[], "there are no query parameters here"),
    };
    let count = |known: &str| parameters(query).filter(|(name, _)| *name == known).count();
    let is_fine = |(name, _): (&str, &str)| known.contains(&name) && count(name) == 1;
    if parameters(query).all(is_fine) { Ok(()) } else { Err(refused(Code::BadRequest, detail)) }
}

/// Names and values as they stand: none of ours needs escapes.
fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split('&').filter(|_| !query.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// The value of a query parameter.
pub fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    parameters(query).find_map(|(known, value)| (known == name).then_some(value))
}

/// A query's value without its escapes (RFC 3986, 2.1); `None` if that is no text.
pub fn unescaped(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(escaped(part)?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

/// A browser's guards: with them no web page can submit jobs, whatever name resolves to us.
pub fn check_browser(head: &Head, allowed_hosts: &[String]) -> Result<(), Refused> {
    let host = head.host();
    if !(host.is_empty() && !head.is_1_1 || is_served(host, allowed_hosts)) {
        let detail = "the Host is neither an IP address, localhost, nor listed";
        return Err(refused(Code::MisdirectedHost, detail));
    }
    let foreign = refused(Code::ForeignOrigin, "requests from other origins are refused");
    if let Some(origin) = head.header("origin")? {
        let same = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if !same.is_some_and(|origin| origin.eq_ignore_ascii_case(host)) {
            return Err(foreign);
        }
    }
    match head.header("sec-fetch-site")? {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) => Err(foreign),
    }
}

/// Whether a well-formed host, at any port, is one of ours. An address in brackets is one of IPv6.
fn is_served(host: &str, allowed: &[String]) -> bool {
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    let listed = allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(name));
    let is_ours = listed || name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok();
    is_ours || host.starts_with('[')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_found_and_every_other_method_is_named() {
        let id = "0123456789abcdef0123456789abcdef";
        for (method, target, label) in [
            ("POST", "/v1/jobs/echo", "submit"),
            ("POST", "/v1/batch/echo?sink_mode=completion", "batch"),
            ("GET", &format!("/v1/jobs/{id}"), "record"),
            ("GET", &format!("/v1/jobs/{id}?wait=3"), "record"),
            ("GET", &format!("/v1/jobs/{id}/result"), "result"),
            ("DELETE", &format!("/v1/jobs/{id}"), "cancel"),
            ("GET", &format!("/v1/jobs/{id}/payload"), "payload"),
            ("POST", &format!("/v1/jobs/{id}/retry"), "retry"),
            ("POST", "/v1/handlers/echo/pause", "pause"),
            ("POST", "/v1/handlers/echo/resume", "resume"),
            ("GET", "/v1/jobs?limit=3&after=", "list"),
            ("GET", "/metrics?", "metrics"),
            ("GET", "/v1/stats", "stats"),
            ("GET", "/v1/events", "events"),
            ("GET", "/v1/lanes/echo", "lanes"),
            ("POST", "/v1/jobs/retry", "retry_all"),
            ("POST", "/v1/jobs/cancel", "cancel_all"),
            ("GET", "/openapi.json", "openapi"),
            ("HEAD", "/healthz", "healthz"),
            ("GET", "/livez", "healthz"),
            ("GET", "/readyz", "readyz"),
            ("GET", "/metrics", "metrics"),
            ("GET", "/", "index"),
            ("OPTIONS", "/", "options"),
            ("OPTIONS", "*", "options"),
            ("OPTIONS", "/v1/jobs/echo", "options"),
        ] {
            assert_eq!(route(method, target).unwrap().1, label, "{method} {target}");
        }
        for (method, target, status) in [
            ("PUT", "/v1/jobs/echo", 405),
            ("POST", "/healthz", 405),
            ("GET", "/v1/batch/echo", 405),
            ("GET", "/nothing", 404),
            ("GET", "/v1/jobs/not-an-id", 404),
            ("GET", "/v1/jobs/", 404),
            ("POST", "/v1/jobs/echo?delay=60000", 400),
            ("POST", "/v1/jobs/echo?delay_ms=1&", 400),
            ("POST", "/v1/jobs/echo?delay_ms=1&delay_ms=1", 400),
            ("POST", "/v1/jobs/echo?delay%5Fms=1", 400),
            ("POST", "/v1/jobs/echo?wait=1", 400),
            ("POST", "/v1/batch/echo?delay_ms=1", 400),
            ("GET", "/v1/jobs?limit=3&limit=4", 400),
            ("GET", "/healthz?x", 400),
        ] {
            assert_eq!(route(method, target).unwrap_err().code.status(), status, "{method} {target}");
        }
    }

    #[test]
    fn only_hosts_that_are_ours_and_pages_of_our_own_pass() {
        let listed = ["jobs.example".to_owned()];
        let check = |headers: &str| {
            let text = format!("GET / HTTP/1.1\r\n{headers}\r\n\r\n");
            let (head, _) = super::super::http1::parse_head(text.as_bytes(), 4_096).unwrap().unwrap();
            check_browser(&head, &listed).err().map(|refused| refused.code.status())
        };
        for (headers, refused) in [
            ("Host: 127.0.0.1:8080", None),
            ("Host: [::1]:8080", None),
            ("Host: LOCALHOST", None),
            ("Host: jobs.example:80", None),
            ("Host: evil.example", Some(421)),
            ("Host: localhost.evil.example", Some(421)),
            ("Host: ", Some(421)),
            ("Host: localhost\r\nOrigin: http://localhost", None),
            ("Host: localhost\r\nOrigin: http://evil.example", Some(403)),
            ("Host: localhost\r\nOrigin: null", Some(403)),
            ("Host: localhost\r\nSec-Fetch-Site: cross-site", Some(403)),
            ("Host: localhost\r\nSec-Fetch-Site: same-origin", None),
        ] {
            assert_eq!(check(headers), refused, "{headers:?}");
        }
    }
}
