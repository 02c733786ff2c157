//! Which request means what, judged on the head alone, before a body byte is read. Pure.

use std::net::IpAddr;

use super::http1::{Head, Refused, refused};
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
    /// `GET /healthz`, `/livez`
    Alive,
    /// Answered by a route that renders or may block.
    Inner(Inner),
}

/// The routes behind the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inner {
    /// `GET /v1/jobs/{id}`
    Record(JobId),
    /// `GET /v1/jobs/{id}/result`
    Result(JobId),
    /// `GET /v1/jobs`
    List,
    /// `DELETE /v1/jobs/{id}`
    Cancel(JobId),
    /// `POST /v1/jobs/{id}/retry`
    Retry(JobId),
    /// `POST /v1/handlers/{name}/pause` and `/resume`
    Pause(String, bool),
    /// `GET /v1/stats`
    Stats,
    /// `GET /readyz`
    Ready,
    /// `GET /metrics`
    Metrics,
    /// `GET /`
    Index,
}

/// A refusal that may name the methods which are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoute {
    /// Why.
    pub refused: Refused,
    /// `Some` iff 405.
    pub allow: Option<&'static str>,
}

impl From<Refused> for NoRoute {
    fn from(refused: Refused) -> NoRoute {
        NoRoute { refused, allow: None }
    }
}

/// The route of a method and target. `HEAD` is `GET` without the body.
///
/// # Errors
/// No such resource, no such method on it, or an id that is none.
pub fn route(method: &str, target: &str) -> Result<Route, NoRoute> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let method = if method == "HEAD" { "GET" } else { method };
    let on = |allow: &'static str, route: &dyn Fn() -> Result<Route, NoRoute>| {
        if allow.split(", ").any(|allowed| allowed == method) {
            route()
        } else {
            let refused = refused(Code::MethodNotAllowed, "this resource has other methods; see Allow");
            Err(NoRoute { refused, allow: Some(allow) })
        }
    };
    let id = |text: &str| {
        JobId::parse(text).ok_or(NoRoute::from(refused(Code::UnknownJob, "there is no job of this id")))
    };
    let inner = |inner| Ok(Route::Inner(inner));
    match parts.as_slice() {
        ["healthz" | "livez"] => on("GET, HEAD", &|| Ok(Route::Alive)),
        ["readyz"] => on("GET, HEAD", &|| inner(Inner::Ready)),
        ["metrics"] => on("GET, HEAD", &|| inner(Inner::Metrics)),
        [""] => on("GET, HEAD", &|| inner(Inner::Index)),
        ["v1", "stats"] => on("GET, HEAD", &|| inner(Inner::Stats)),
        ["v1", "jobs"] => on("GET, HEAD", &|| inner(Inner::List)),
        // An id is no handler's name that anyone would choose, so the method tells which it is.
        ["v1", "jobs", name] if method == "POST" => Ok(Route::Submit((*name).to_owned())),
        ["v1", "jobs", name] => on("GET, HEAD, DELETE, POST", &|| {
            let id = id(name)?;
            match (method, parameter(query, "wait").is_some()) {
                ("DELETE", _) => inner(Inner::Cancel(id)),
                (_, true) => Ok(Route::Wait(id)),
                (_, false) => inner(Inner::Record(id)),
            }
        }),
        ["v1", "jobs", name, "result"] => on("GET, HEAD", &|| inner(Inner::Result(id(name)?))),
        ["v1", "jobs", name, "retry"] => on("POST", &|| inner(Inner::Retry(id(name)?))),
        ["v1", "handlers", name, "pause"] => on("POST", &|| inner(Inner::Pause((*name).to_owned(), true))),
        ["v1", "handlers", name, "resume"] => on("POST", &|| inner(Inner::Pause((*name).to_owned(), false))),
        ["v1", "batch", name] => on("POST", &|| Ok(Route::Batch((*name).to_owned()))),
        _ => Err(refused(Code::NotFound, "there is no such resource").into()),
    }
}

impl Route {
    /// The names in the metric.
    pub const LABELS: [&str; 14] = [
        "submit", "batch", "record", "healthz", "result", "list", "cancel", "retry", "pause", "resume",
        "stats", "readyz", "metrics", "index",
    ];

    /// The name in the metric.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Route::Submit(_) => "submit",
            Route::Batch(_) => "batch",
            Route::Wait(_) | Route::Inner(Inner::Record(_)) => "record",
            Route::Alive => "healthz",
            Route::Inner(Inner::Result(_)) => "result",
            Route::Inner(Inner::List) => "list",
            Route::Inner(Inner::Cancel(_)) => "cancel",
            Route::Inner(Inner::Retry(_)) => "retry",
            Route::Inner(Inner::Pause(_, true)) => "pause",
            Route::Inner(Inner::Pause(_, false)) => "resume",
            Route::Inner(Inner::Stats) => "stats",
            Route::Inner(Inner::Ready) => "readyz",
            Route::Inner(Inner::Metrics) => "metrics",
            Route::Inner(Inner::Index) => "index",
        }
    }
}

/// The value of a query parameter, as it stands: none of ours needs escapes. The first one counts.
#[must_use]
pub fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

/// A browser's guards: with them no web page can submit jobs, whatever name resolves to us.
///
/// # Errors
/// The `Host` is not served here, or the request comes from a foreign page.
pub fn check_browser(head: &Head, allowed_hosts: &[String]) -> Result<(), Refused> {
    let host = head.header("host")?.unwrap_or_default();
    let known = host.is_empty() && !head.is_1_1 || is_served(host, allowed_hosts);
    if !known {
        return Err(refused(
            Code::MisdirectedHost,
            "the Host is neither an IP address, localhost, nor listed",
        ));
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

fn is_served(host: &str, allowed: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if is_port(port) => {
                return address.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6());
            }
            Some(_) | None => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            Some(_) => return false,
            None => host,
        },
    };
    let listed = allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(name));
    listed || name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|a| a.is_ipv4())
}

fn is_port(text: &str) -> bool {
    text.is_empty()
        || text.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
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
            ("POST", &format!("/v1/jobs/{id}/retry"), "retry"),
            ("POST", "/v1/handlers/echo/pause", "pause"),
            ("POST", "/v1/handlers/echo/resume", "resume"),
            ("GET", "/v1/jobs?limit=3", "list"),
            ("GET", "/v1/stats", "stats"),
            ("HEAD", "/healthz", "healthz"),
            ("GET", "/livez", "healthz"),
            ("GET", "/readyz", "readyz"),
            ("GET", "/metrics", "metrics"),
            ("GET", "/", "index"),
        ] {
            assert_eq!(route(method, target).unwrap().label(), label, "{method} {target}");
        }
        for (method, target, status) in [
            ("PUT", "/v1/jobs/echo", 405),
            ("POST", "/healthz", 405),
            ("GET", "/v1/batch/echo", 405),
            ("GET", "/nothing", 404),
            ("GET", "/v1/jobs/not-an-id", 404),
            ("GET", "/v1/jobs/", 404),
        ] {
            assert_eq!(route(method, target).unwrap_err().refused.code.status(), status, "{method} {target}");
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
            ("Host: localhost:80:80", Some(421)),
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
