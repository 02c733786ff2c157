//! Decoders of the gate: heads, chunks, routes, keys, names.

use std::io::{BufReader, Read};

use cofferdam::batch::{Line, Lines};
use cofferdam::handler::Ordering;
use cofferdam::job::{JobId, JobStatus, MediaType, Trace};
use cofferdam::problem::Code;
use cofferdam::web::chunked::Chunked;
use cofferdam::web::http1::{Head, Refused, parse_head};
use cofferdam::web::respond::Answer;
use cofferdam::web::routes::{check_browser, parameter, route};
use serde_json::Value;

use super::{piece, pieces, texts};

/// Small, so that short inputs meet the limit.
const HEADER_BYTES: usize = 256;

/// Any segmentation gives the same result, and a head says again what it was read from.
pub fn head(bytes: &[u8]) {
    let whole = parse_head(bytes, HEADER_BYTES);
    let mut cuts = pieces(bytes);
    for _ in 0..6 {
        let end = cuts.up_to(bytes.len() as u64) as usize;
        let part = parse_head(&bytes[..end], HEADER_BYTES);
        assert!(part == Ok(None) || part == whole, "{end} bytes give {part:?}, all give {whole:?}");
    }
    let Ok(Some((head, length))) = whole else { return };
    assert_eq!(parse_head(&bytes[..length - 1], HEADER_BYTES), Ok(None), "a shorter prefix is a head");
    assert!(head.target().starts_with('/') && head.target().bytes().all(|byte| byte.is_ascii_graphic()));
    assert_eq!(head.target().split_once('?').map_or("", |(_, query)| query), head.query());
    let is_clean = |text: &[u8]| !text.iter().any(|byte| matches!(byte, b'\r' | b'\n' | b'\0'));
    for (name, value) in head.headers() {
        assert!(!name.is_empty() && is_clean(name.as_bytes()) && is_clean(value));
        let all: Vec<&[u8]> =
            head.headers().filter(|(of, _)| of.eq_ignore_ascii_case(name)).map(|(_, it)| it).collect();
        let values: Vec<_> = head.values(name).map(|value| value.ok().map(str::as_bytes)).collect();
        assert_eq!(
            values,
            all.iter().map(|it| std::str::from_utf8(it).ok().map(str::as_bytes)).collect::<Vec<_>>()
        );
        let alone = all.len() == 1;
        assert_eq!(
            head.header(name).is_ok(),
            alone && values[0].is_some(),
            "one that comes twice is nobody's"
        );
    }
    let again = written(&head);
    let (read, length) = parse_head(&again, 2 * HEADER_BYTES).expect("it is a head").expect("it is whole");
    assert_eq!((length, shown(&read)), (again.len(), shown(&head)));
    // Whatever was left out, it is written as it is now.
    assert_eq!(written(&read), again);
}

fn written(head: &Head) -> Vec<u8> {
    let version = if head.is_1_1 { "1.1" } else { "1.0" };
    let mut out = format!("{} {} HTTP/{version}\r\n", head.method(), head.target()).into_bytes();
    for (name, value) in head.headers() {
        out.extend([name.as_bytes(), b":", value, b"\r\n"].concat());
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// All that a head says.
fn shown(head: &Head) -> String {
    let headers: Vec<_> =
        head.headers().map(|(name, value)| (name, value.escape_ascii().to_string())).collect();
    let Head { length, is_1_1, keep_alive, expects_continue, .. } = head;
    let (method, target) = (head.method(), head.target());
    format!("{method} {target} {headers:?} {length:?} {is_1_1} {keep_alive} {expects_continue}")
}

pub fn heads() -> Vec<Vec<u8>> {
    let mut heads = texts(&[
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /v1/jobs/echo?x=1 HTTP/1.1\r\nHost: localhost:80\r\nContent-Length: 3\r\nX-Y:  z \r\n\r\nabc",
        "POST /v1/batch/echo HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n",
        "GET /v1/jobs/000102030405060708090a0b0c0d0e0f?wait=3 HTTP/1.0\r\nConnection: Keep-Alive, x\r\n\r\n",
        "DELETE /v1/jobs/000102030405060708090a0b0c0d0e0f HTTP/1.1\r\nHost: jobs.example\r\n\r\n",
        "POST /v1/handlers/echo/pause HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nExpect: 100-continue\r\n\r\n",
        "\r\nHEAD http://a/readyz HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\nSec-Fetch-Site: none\r\n\r\nGET /",
        "GET /v1/jobs?limit=3&status=dead HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n\r\n",
        "PUT /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
    ]);
    // At the limits of a request line and of the header section.
    heads.push(format!("{} /x HTTP/1.1\r\nHost: a\r\n\r\n", "M".repeat(8_244)).into_bytes());
    heads.push(
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(HEADER_BYTES - 20)).into_bytes(),
    );
    heads
}

/// Any segmentation gives the same body, takes the same bytes, or is refused for the same reason; no more is kept
/// than came.
pub fn chunked(bytes: &[u8]) {
    const MAX: usize = 512;
    let mut sizes = pieces(bytes);
    let mut read = |whole: bool| -> Result<(Vec<u8>, usize, bool), Refused> {
        let (mut state, mut body, mut at, mut taken) = (Chunked::default(), Vec::new(), 0, 0);
        while at < bytes.len() {
            at += if whole { bytes.len() } else { piece(&mut sizes, bytes.len() - at) };
            let (used, done) = state.read(&bytes[taken..at], &mut body, MAX)?;
            taken += used;
            assert!(body.len() <= MAX && body.capacity() <= 2 * bytes.len() + 8);
            if done {
                return Ok((body, taken, true));
            }
        }
        Ok((body, taken, false))
    };
    let whole = read(true);
    assert_eq!(read(false), whole);
}

pub fn chunked_bodies() -> Vec<Vec<u8>> {
    texts(&[
        "0\r\n\r\n",
        "3\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\nA;ext=1\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nNEXT",
        "00000001\r\na\r\n1;a=\"b\"\r\nb\r\n0\r\nA: b\r\nC: d\r\n\r\n",
        "1ff\r\n",
        "10\r\n0123456789abcdef\r\n1f0\r\n",
    ])
}

/// A route is one by its method and path alone, a refused method names those that are not, and a page of another
/// host never passes.
pub fn routes(bytes: &[u8]) {
    let Ok(Some((head, _))) = parse_head(bytes, HEADER_BYTES) else { return };
    match route(head.method(), head.target()) {
        Ok(found) => {
            assert!(!found.1.is_empty());
            if head.method() == "HEAD" {
                assert_eq!(route("GET", head.target()), Ok(found));
            }
        }
        Err(no_route) => {
            let allow = no_route.header.filter(|(name, _)| *name == "allow").map(|(_, methods)| methods);
            for method in allow.into_iter().flat_map(|methods| methods.split(", ")) {
                let status = route(method, head.target()).err().map(|no| no.code.status());
                assert_ne!(status, Some(405), "{method}");
            }
            assert_eq!(allow.is_some(), no_route.code == Code::MethodNotAllowed);
        }
    }
    let query = head.query();
    let value = parameter(query, "wait");
    assert!(value.is_none_or(|value| query.contains(value) && !value.contains('&')));
    if check_browser(&head, &["jobs.example".to_owned()]).is_ok() && head.is_1_1 {
        let host = head.header("host").expect("it is one").expect("HTTP/1.1 has it");
        let name =
            host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(host, |(name, _)| name);
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        let known = ["localhost", "jobs.example"].iter().any(|known| name.eq_ignore_ascii_case(known));
        assert!(known || address.is_ok(), "{host} is not ours");
        let origin = head.header("origin").expect("it is one");
        assert!(
            origin.is_none_or(|origin| origin.to_ascii_lowercase().ends_with(&host.to_ascii_lowercase()))
        );
    }
}

/// A line with a JSON pointer, then a payload: the ordering key is what a whole JSON parser finds there.
pub fn ordering_key(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        // Bytes that are no text have no key in them, and that is all.
        assert!(Ordering::Keyed(String::new()).key(None, bytes).is_err());
        return;
    };
    let (pointer, payload) = text.split_once('\n').unwrap_or((text, ""));
    let found = Ordering::Keyed(pointer.to_owned()).key(None, payload.as_bytes()).ok().flatten();
    assert!(found.as_ref().is_none_or(|key| key.len() <= 256));
    // The config refuses other pointers.
    if !pointer.is_empty() && !pointer.starts_with('/') {
        return;
    }
    let Ok(value) = serde_json::from_str::<Value>(payload) else { return };
    match value.pointer(pointer) {
        Some(Value::String(text)) if text.len() <= 256 => assert_eq!(found.as_deref(), Some(text.as_str())),
        Some(Value::Bool(truth)) => assert_eq!(found.as_deref(), Some(truth.to_string().as_str())),
        Some(Value::Number(_)) => {
            let as_written = |key: &str| {
                payload.contains(key)
                    && serde_json::from_str::<Value>(key).is_ok_and(|value| value.is_number())
            };
            assert!(found.map_or(payload.len() > 256, |key| as_written(&key)));
        }
        Some(Value::String(_) | Value::Null | Value::Array(_) | Value::Object(_)) | None => {
            assert_eq!(found, None);
        }
    }
}

pub fn keyed_payloads() -> Vec<Vec<u8>> {
    texts(&[
        "/k\n{\"k\":\"v\"}",
        "/a/b~1c/1\n{\"a\":{\"b/c\":[0,\"x\"]}}",
        "\n1.50",
        "/a\n{\"a\":1,\"a\":\"l\\u00e4st\\ud83d\\ude00\"}",
        "/0/~0\n[{\"~\":true}, null]",
        "/01\n[1,2]",
        "/\n{\"\":false}",
    ])
}

/// Ids, traces, types, statuses and codes: what is read is written as it was, and nothing else is read.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(id) = JobId::parse(text) {
        assert_eq!(id.to_string(), text);
    }
    if let Some(trace) = Trace::parse(text) {
        assert!(trace.id != [0; 16] && trace.span != [0; 8]);
        assert_eq!(Trace::parse(&trace.to_string()), Some(trace));
        assert_eq!(text.get(3..52), trace.to_string().get(3..52));
    }
    if let Some(media_type) = MediaType::parse(text) {
        assert_eq!(media_type.as_str(), text);
        assert!(text.len() <= 256 && !text.contains(['\r', '\n', '\0']) && text.is_ascii());
    }
    assert!(JobStatus::parse(text).is_none_or(|status| status.as_str() == text));
    assert!(Code::parse(text).is_none_or(|code| code.as_str() == text));
}

pub fn some_names() -> Vec<Vec<u8>> {
    texts(&[
        "000102030405060708090a0b0c0d0e0f",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-is-new",
        "application/json",
        "application/problem+json; charset=utf-8",
        "succeeded",
        "handler_failed",
    ])
}

/// A whole answer is no longer than what came; where its length is given, whatever follows it, and one byte less is none.
pub fn inner_answer(bytes: &[u8]) {
    let parse = |bytes| {
        let parsed = Answer::parse(bytes, false).ok().flatten();
        parsed.map(|(answer, _)| (answer.status, answer.headers, answer.body.to_vec()))
    };
    let Some(answer) = parse(bytes) else { return };
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(0, |at| at + 4);
    let length = head + answer.2.len();
    assert!(length <= bytes.len());
    if String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase().contains("transfer-encoding") {
        return;
    }
    assert_eq!(parse(&bytes[..length]), Some(answer));
    assert!(parse(&bytes[..length - 1]).is_none());
}

pub fn answers() -> Vec<Vec<u8>> {
    texts(&[
        "HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 404 Not Found\r\nDate: now\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
    ])
}

/// Whatever the buffer, lines are those of one split, and only the long ones are left out.
pub fn lines(bytes: &[u8]) {
    const MAX: usize = 8;
    let mut expected: Vec<Line> = bytes
        .split(|byte| *byte == b'\n')
        .map(|line| if line.len() > MAX { Line::TooLong } else { Line::Whole(line.to_vec()) })
        .collect();
    // What follows the last line break is a line only if there is something.
    expected.pop_if(|last| *last == Line::Whole(Vec::new()));
    for capacity in [1, 3, 64] {
        let source: Box<dyn Read + Send> = Box::new(std::io::Cursor::new(bytes.to_vec()));
        let mut lines = Lines::new(BufReader::with_capacity(capacity, source), None, MAX);
        expected.iter().for_each(|line| assert!(lines.next_line().is_ok_and(|found| found == *line)));
        assert!(lines.next_line().is_ok_and(|end| end == Line::End));
        assert_eq!(lines.consumed, bytes.len() as u64);
    }
}

pub fn line_inputs() -> Vec<Vec<u8>> {
    texts(&[
        "",
        "\n",
        "ab\n\r\n\nabcdefgh\nabcdefghi\nx",
        "{\"a\":1}\n{\"b\"",
        "\n\n\n",
        "0123456789012345\n",
    ])
}
