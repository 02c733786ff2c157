//! A strict reader of HTTP/1.1 request heads (RFC 9112). Pure: any segmentation of the bytes gives the same result.
//!
//! In scope: everything that frames a request, so that nothing is ever read as a second one. CRLF only, token
//! names, no folding, one `Host`, one valid length or exactly `chunked`, never both. Not in scope: bodies
//! ([`super::chunked`]), meaning ([`super::routes`]).

use std::net::Ipv6Addr;
use std::ops::Range;

use crate::job::is_token_byte;
use crate::limits::TARGET_BYTES;
use crate::problem::Code;

/// Why a request is refused; the connection ends after the answer, because what follows cannot be framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What the client is told.
    pub code: Code,
    /// In words that quote nothing of the request.
    pub detail: &'static str,
    /// A header that tells the client what to do instead, such as `Allow`.
    pub header: Option<(&'static str, &'static str)>,
}

impl Refused {
    pub(super) const fn with(self, name: &'static str, value: &'static str) -> Refused {
        Refused { header: Some((name, value)), ..self }
    }
}

pub(super) const fn refused(code: Code, detail: &'static str) -> Refused {
    Refused { code, detail, header: None }
}

const fn bad(detail: &'static str) -> Refused {
    refused(Code::BadRequest, detail)
}

/// A request's head: its bytes, and where its parts stand in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    bytes: Vec<u8>,
    method: &'static str,
    /// Of an absolute target.
    authority: Option<String>,
    /// Path and query, with no escape of a character that needs none.
    target: String,
    /// Names and values.
    fields: Vec<(Range<usize>, Range<usize>)>,
    /// The body's; `None`: it is chunked, and tells its end.
    pub length: Option<usize>,
    /// HTTP/1.1, not 1.0.
    pub is_1_1: bool,
    /// Another request may follow on the connection.
    pub keep_alive: bool,
    /// The client waits for `100 Continue`.
    pub expects_continue: bool,
}

impl Head {
    /// One that is known here.
    pub fn method(&self) -> &'static str {
        self.method
    }

    /// The path with its query, from the first `/`; visible ASCII. Or `*`, of OPTIONS.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Host and port that the request is for: an absolute target's, whatever `Host` says (RFC 9112, 3.2.2).
    pub fn host(&self) -> &str {
        let host = || self.header("host").ok().flatten().unwrap_or_default();
        self.authority.as_deref().unwrap_or_else(host)
    }

    /// What stands behind the first `?` of the target.
    pub fn query(&self) -> &str {
        self.target().split_once('?').map_or("", |(_, query)| query)
    }

    fn ascii(&self, part: &Range<usize>) -> &str {
        std::str::from_utf8(&self.bytes[part.clone()]).unwrap_or_default()
    }

    /// All headers, in their order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields.iter().map(|(name, value)| (self.ascii(name), self.bytes[value.clone()].trim_ascii()))
    }

    /// The values of a header that may appear several times.
    ///
    /// # Errors
    /// One of them is not UTF-8: nothing that it could name is named by it.
    pub fn values(&self, name: &str) -> impl Iterator<Item = Result<&str, Refused>> {
        let is_of_name =
            move |known: &Range<usize>| self.bytes[known.clone()].eq_ignore_ascii_case(name.as_bytes());
        let values =
            self.fields.iter().filter(move |(known, _)| is_of_name(known)).map(|(_, value)| value.clone());
        let text = |value: Range<usize>| std::str::from_utf8(self.bytes[value].trim_ascii());
        values.map(move |value| text(value).map_err(|_| bad("a header is not UTF-8")))
    }

    /// The elements of a header that is a list, over all its values.
    ///
    /// # Errors
    /// The same.
    pub fn list(&self, name: &str) -> Result<Vec<&str>, Refused> {
        let mut elements = Vec::new();
        for value in self.values(name) {
            elements.extend(value?.split(',').map(trimmed).filter(|element| !element.is_empty()));
        }
        Ok(elements)
    }

    /// The value of a header that appears once.
    ///
    /// # Errors
    /// The header is repeated, or not UTF-8.
    pub fn header(&self, name: &str) -> Result<Option<&str>, Refused> {
        let mut values = self.values(name);
        match (values.next(), values.next()) {
            (first, None) => first.transpose(),
            (_, Some(_)) => Err(bad("a header that may appear once is repeated")),
        }
    }
}

/// A request line: its target, a method, the version.
const LINE_BYTES: usize = TARGET_BYTES + 64;
/// More than this is no client of ours.
const HEADERS_MAX: usize = 100;

/// Reads a head from the start of `bytes`: the head and its length, or `None` while it is not whole.
///
/// # Errors
/// The bytes can never become a head that we accept.
pub fn parse_head(bytes: &[u8], header_bytes: usize) -> Result<Option<(Head, usize)>, Refused> {
    if bytes.first().is_some_and(|byte| !is_token_byte(*byte) && *byte != b'\r') {
        return Err(bad("the request does not begin with a method"));
    }
    // The request line, and a CR whose LF has not come.
    let (mut most, mut beyond) = (LINE_BYTES + 1, refused(Code::UriTooLong, "the request line is too long"));
    let (mut ends, mut line) = (Vec::with_capacity(8), 0);
    // What lies beyond a limit is not looked at: it may not have come yet, and the answer must be the same.
    while let Some(length) = bytes.get(line..most.min(bytes.len())).and_then(control) {
        let at = line + length;
        match bytes[at..] {
            [b'\r', b'\n', ..] => {}
            // Its LF has not come.
            [b'\r'] => break,
            _ => return Err(bad("the head holds a control character or a bare line break")),
        }
        line = at + 2;
        if ends.is_empty() {
            most = at + header_bytes;
            beyond = refused(Code::HeadersTooLarge, "the header section exceeds web.limits.header_bytes");
        } else if length == 0 {
            if line > most {
                break;
            }
            return Ok(Some((finish(&bytes[..at], &ends)?, line)));
        }
        ends.push(at);
    }
    if bytes.len() > most { Err(beyond) } else { Ok(None) }
}

/// Where the first control character stands: of all bytes of a request those of its head are looked at most often.
fn control(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| byte.is_ascii_control() && *byte != b'\t')
}

/// The methods of this server, and those that a resource may well refuse by name (RFC 9110, 9.1).
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];

/// Method, target and version of a request line.
fn request_line(line: &str) -> Result<(&'static str, &str, bool), Refused> {
    let mut parts = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(bad("the request line is not METHOD SP TARGET SP VERSION"));
    };
    if method.is_empty() || !method.bytes().all(is_token_byte) {
        return Err(bad("the method is not a token"));
    }
    let is_1_1 = match version.strip_prefix("HTTP/").map(str::as_bytes) {
        Some(b"1.0") => false,
        // A higher minor version is understood as this one (RFC 9110, 2.5).
        Some([b'1', b'.', minor]) if minor.is_ascii_digit() => true,
        Some([major, b'.', minor]) if major.is_ascii_digit() && minor.is_ascii_digit() => {
            return Err(refused(Code::HttpVersionNotSupported, "this server speaks HTTP/1.1"));
        }
        Some(_) | None => return Err(bad("the version is malformed")),
    };
    let Some(method) = METHODS.into_iter().find(|known| *known == method) else {
        return Err(refused(Code::NotImplemented, "this server does not know the method"));
    };
    if target.len() > TARGET_BYTES {
        return Err(refused(Code::UriTooLong, "the request target is too long"));
    }
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(bad("the request target is not visible ASCII"));
    }
    Ok((method, target, is_1_1))
}

/// The authority of a target, if it is absolute, and its path with the query. The absolute form must be accepted from any
/// client; what stands behind the first `?` is never part of a path (RFC 9112, 3.2).
fn parts_of_target(method: &str, target: &str) -> Result<(Option<String>, String), Refused> {
    const NO_PATH: Refused = bad("the request target is not a path");
    if target == "*" && method == "OPTIONS" {
        return Ok((None, target.to_owned()));
    }
    if target.contains('#') {
        return Err(NO_PATH);
    }
    if target.starts_with('/') {
        return Ok((None, unescaped(target)?));
    }
    let (scheme, rest) = target.split_once("://").ok_or(NO_PATH)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(NO_PATH);
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if authority.is_empty() || authority.starts_with(':') || !is_authority(authority) {
        return Err(bad("the target's host is malformed"));
    }
    let path = unescaped(path)?;
    Ok((Some(authority.to_owned()), if path.starts_with('/') { path } else { format!("/{path}") }))
}

/// The same target without escapes of characters that need none: they mean the same (RFC 3986, 6.2.2.2).
fn unescaped(target: &str) -> Result<String, Refused> {
    let mut parts = target.split('%');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match escaped(part).ok_or(bad("the request target has a malformed escape"))? {
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                out.push(char::from(byte));
                out.push_str(&part[2..]);
            }
            // In a query it is part of a value, such as an ordering key's.
            byte if byte.is_ascii_control() && !out.contains('?') => {
                return Err(bad("the request target escapes a control character"));
            }
            _ => out.extend(["%", part]),
        }
    }
    Ok(out)
}

/// Whether this is `host [":" port]` (RFC 9110, 7.2; RFC 3986, 3.2.2). It may be empty, as its port.
fn is_authority(text: &str) -> bool {
    let is_port = |port: &str| port.is_empty() || port.parse::<u16>().is_ok() && !port.starts_with('+');
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return is_port && address.parse::<Ipv6Addr>().is_ok();
    }
    let (name, port) = text.split_once(':').unwrap_or((text, ""));
    let may_stand = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte);
    name.bytes().all(may_stand)
        && name.split('%').skip(1).all(|rest| escaped(rest).is_some())
        && is_port(port)
}

/// The byte that the two hexadecimal digits behind a `%` stand for.
pub(super) fn escaped(rest: &str) -> Option<u8> {
    let hex = rest.get(..2).filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    u8::from_str_radix(hex, 16).ok()
}

/// Where name and value of the header line at `line` stand.
pub(super) fn header_line(bytes: &[u8], line: Range<usize>) -> Result<(Range<usize>, Range<usize>), Refused> {
    let text = &bytes[line.clone()];
    if text.starts_with(b" ") || text.starts_with(b"\t") {
        return Err(bad("a header is folded"));
    }
    let colon = text.iter().position(|byte| *byte == b':').ok_or(bad("a header has no colon"))?;
    if colon == 0 || !text[..colon].iter().copied().all(is_token_byte) {
        return Err(bad("a header's name is not a token"));
    }
    let colon = line.start + colon;
    Ok((line.start..colon, colon + 1..line.end))
}

/// A head whose bytes are all there, without the empty line, and where its lines end.
fn finish(bytes: &[u8], ends: &[usize]) -> Result<Head, Refused> {
    let line = std::str::from_utf8(&bytes[..ends[0]]).map_err(|_| bad("the request line is not ASCII"))?;
    let (method, target, is_1_1) = request_line(line)?;
    let (authority, target) = parts_of_target(method, target)?;
    if ends.len() > HEADERS_MAX + 1 {
        return Err(refused(Code::HeadersTooLarge, "there are too many headers"));
    }
    let lines = ends.iter().zip(&ends[1..]);
    let fields = lines.map(|(before, end)| header_line(bytes, before + 2..*end)).collect::<Result<_, _>>()?;
    let bytes = bytes.to_vec();
    let (length, keep_alive, expects_continue) = (None, is_1_1, false);
    let mut head =
        Head { bytes, method, authority, target, fields, length, is_1_1, keep_alive, expects_continue };
    match head.header("host")? {
        None if is_1_1 => return Err(bad("there is no Host")),
        Some(host) if !is_authority(host) => return Err(bad("the Host is malformed")),
        Some(_) | None => {}
    }
    let length = head.header("content-length")?;
    let coding = head.header("transfer-encoding")?;
    head.length = match (length, coding) {
        (None, None) => Some(0),
        (Some(_), Some(_)) => return Err(bad("there are both Content-Length and Transfer-Encoding")),
        (Some(length), None) => Some(content_length(length)?),
        (None, Some(_)) if !is_1_1 => return Err(bad("HTTP/1.0 has no Transfer-Encoding")),
        (None, Some(coding)) if coding.eq_ignore_ascii_case("chunked") => None,
        (None, Some(codings)) => return Err(unknown_codings(codings)),
    };
    // A list (RFC 9110, 10.1.1); HTTP/1.0 knows no 100.
    let expectations = head.list("expect")?;
    if !expectations.iter().all(|expectation| expectation.eq_ignore_ascii_case("100-continue")) {
        return Err(refused(Code::ExpectationFailed, "the only expectation is 100-continue"));
    }
    let expects_continue = is_1_1 && !expectations.is_empty();
    let options = head.list("connection")?;
    let says = |name: &str| options.iter().any(|option| option.eq_ignore_ascii_case(name));
    let keep_alive = (is_1_1 || says("keep-alive")) && !says("close");
    Ok(Head { expects_continue, keep_alive, ..head })
}

/// Where the last coding is not chunked nobody can tell where the body ends (RFC 9112, 6.3); where it is, the others are just
/// not known here.
fn unknown_codings(codings: &str) -> Refused {
    let mut codings = codings.rsplit(',').map(trimmed);
    let is_chunked = |coding: &str| coding.eq_ignore_ascii_case("chunked");
    if codings.next().is_some_and(is_chunked)
        && codings.all(|coding| !coding.is_empty() && !is_chunked(coding))
    {
        refused(Code::NotImplemented, "the only coding is chunked")
    } else {
        bad("the Transfer-Encoding does not end in one chunked")
    }
}

/// Without the white space that may stand around an element (RFC 9110, 5.6.3): no other is white space here.
fn trimmed(element: &str) -> &str {
    element.trim_matches([' ', '\t'])
}

/// Digits only: no sign, no list, no white space inside, nothing that does not fit.
fn content_length(text: &str) -> Result<usize, Refused> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad("the Content-Length is malformed"));
    }
    text.parse().map_err(|_| refused(Code::PayloadTooLarge, "the body is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<(Head, usize)>, Refused> {
        parse_head(text.as_bytes(), 4_096)
    }

    #[test]
    fn a_head_is_read_whole_or_not_at_all() {
        let text = "POST /v1/jobs/echo?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nX-Y:  z \r\n\r\nabc";
        let (head, length) = parse(text).unwrap().unwrap();
        assert_eq!((head.method(), head.target()), ("POST", "/v1/jobs/echo?x=1"));
        assert_eq!((head.length, head.keep_alive), (Some(3), true));
        assert_eq!(head.header("x-y"), Ok(Some("z")));
        assert_eq!(&text[length..], "abc");
        for end in 0..length {
            assert_eq!(parse(&text[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn the_path_of_an_absolute_target_is_found_even_where_there_is_none() {
        for (target, path, host) in [
            ("http://a", "/", "a"),
            ("HTTP://a/", "/", "a"),
            ("https://a:1/b?c", "/b?c", "a:1"),
            ("http://[::1]?x=/healthz", "/?x=/healthz", "[::1]"),
            ("/", "/", "other"),
            ("//a/b", "//a/b", "other"),
            ("/%68ealthz?status=%71ueued&x=%2F%2f", "/healthz?status=queued&x=%2F%2f", "other"),
        ] {
            let head = parse(&format!("GET {target} HTTP/1.1\r\nHost: other\r\n\r\n")).unwrap().unwrap().0;
            assert_eq!((head.method(), head.target(), head.host()), ("GET", path, host));
        }
        let head = parse("OPTIONS * HTTP/1.0\r\n\r\n").unwrap().unwrap().0;
        assert_eq!((head.method(), head.target(), head.host()), ("OPTIONS", "*", ""));
    }

    #[test]
    fn a_target_or_host_that_names_nothing_is_refused() {
        for target in [
            "a",
            "*",
            "a:80",
            "http:/a",
            "ftp://a/",
            "http:///healthz",
            "http://:80/",
            "http://u:p@a/",
            "http://a:b/",
            "http://a:99999/",
            "http://a:1:2/",
            "/a#b",
            "/%",
            "/%4",
            "/%zz",
            "/%00",
            "/%0d%0a",
            "/%+1",
        ] {
            let refused = parse(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).expect_err(target);
            assert_eq!(refused.code, Code::BadRequest, "{target}");
        }
        for (host, is_host) in [
            ("a", true),
            ("", true),
            ("a:", true),
            ("127.0.0.1:", true),
            ("[::1]:80", true),
            ("[::1]", true),
            ("a b/@c", false),
            ("a, b", false),
            ("a/b", false),
            ("u:p@a", false),
            ("a#x", false),
            ("[::1", false),
            ("a:80:80", false),
            ("a: 80", false),
            ("a:+1", false),
            ("a:99999999999", false),
            ("[a]", false),
            ("caf\u{e9}", false),
        ] {
            let answer = parse(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(answer.is_ok(), is_host, "{host:?}");
        }
    }

    #[test]
    fn a_header_that_is_no_utf_8_names_nothing() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\nOrdering-Key: caf\xE9\r\nX: \xE9\r\n\r\n";
        let (head, _) = parse_head(text, 4_096).unwrap().unwrap();
        assert_eq!(head.header("ordering-key").map_err(|refused| refused.code), Err(Code::BadRequest));
        assert_eq!(head.header("host"), Ok(Some("a")), "one that nobody looks at harms nobody");
    }

    #[test]
    fn what_could_smuggle_or_confuse_is_refused_by_name() {
        let with = |headers: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n");
        let cases = [
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), 505),
            ("PRI * HTTP/2.0\r\n\r\n".into(), 505),
            ("BREW / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 501),
            ("get / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 501),
            ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n".into(), 501),
            ("GET / HTTP/1.1\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".into(), 400),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n".into(), 400),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\nHost: a\n\n".into(), 400),
            ("\u{16}\u{3}\u{1}".into(), 400),
            (with("Content-Length: 1\r\nContent-Length: 1"), 400),
            (with("Content-Length: 1\r\nContent-Length: 2"), 400),
            (with("Content-Length: 1, 1"), 400),
            (with("Content-Length: +1"), 400),
            (with("Content-Length: -1"), 400),
            (with("Content-Length: 0x1"), 400),
            (with("Content-Length: "), 400),
            (with("Content-Length: 99999999999999999999999"), 413),
            (with("Content-Length: 1\r\nTransfer-Encoding: chunked"), 400),
            (with("Transfer-Encoding: gzip, chunked"), 501),
            (with("Transfer-Encoding: gzip"), 400),
            (with("Transfer-Encoding: chunked, gzip"), 400),
            (with("Transfer-Encoding: chunked, chunked"), 400),
            (with("Transfer-Encoding: , chunked"), 400),
            (with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), 400),
            (with("Expect: something"), 417),
            (with(" folded: x"), 400),
            (with("A: b\r\n c"), 400),
            (with("A : b"), 400),
            (with("A\u{0}: b"), 400),
            (with("no colon"), 400),
            (with(&format!("A: {}", "b".repeat(5_000))), 431),
            (format!("GET /{} HTTP/1.1\r\n", "a".repeat(9_000)), 414),
        ];
        for (text, status) in cases {
            let refused = parse(&text).expect_err(&text);
            assert_eq!(refused.code.status(), status, "{text:?}: {}", refused.detail);
        }
    }

    #[test]
    fn the_connection_persists_by_version_and_option() {
        for (version, option, keeps) in [
            ("1.1", "x", true),
            ("1.1", "close", false),
            ("1.1", "keep-alive, Close", false),
            ("1.0", "x", false),
            ("1.0", "Keep-Alive", true),
        ] {
            let text = format!("GET / HTTP/{version}\r\nHost: a\r\nConnection: {option}\r\n\r\n");
            assert_eq!(parse(&text).unwrap().unwrap().0.keep_alive, keeps, "{version} {option}");
        }
    }
}
