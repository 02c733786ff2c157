//! Reading one HTTP/1.1 answer from the bytes that have arrived.
//!
//! In scope: the status, whether the connection stays open, and where the body lies, by `Content-Length` or
//! `chunked`. Not in scope: interim answers (the generator asks for none), bodies that end with the
//! connection (they would hide a cut-off answer), and anything else a general client needs.
//!
//! Pure: the caller reads, this looks. Nothing is copied and nothing is allocated.

/// What the bytes so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// It is no use to look again before there are this many bytes.
    Incomplete {
        at_least: usize,
    },
    Whole(Answer),
}

#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// The server will take another request on this connection.
    pub keep_alive: bool,
    /// Bytes of the whole answer, head and body.
    pub length: usize,
    body_start: usize,
    framing: Framing,
}

/// Why the bytes are no answer that the generator understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Counted(usize),
    Chunked,
}

/// A head longer than this, without its end, is not waited for.
const HEAD_BYTES: usize = 64 << 10;
/// Far above what any benchmark asks for; keeps sums from overflowing.
const BODY_BYTES: usize = 64 << 20;

/// Looks for one whole answer at the start of `bytes`.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let Some(head) = Head::parse(bytes)? else {
        return Ok(Parsed::Incomplete { at_least: bytes.len() + 1 });
    };
    let end = match head.framing {
        Framing::Counted(length) => Ok(head.length + length),
        Framing::Chunked => walk_chunks(bytes, head.length, |_| {})?,
    };
    let length = match end {
        Ok(length) if length <= bytes.len() => length,
        Ok(at_least) | Err(at_least) => return Ok(Parsed::Incomplete { at_least }),
    };
    Ok(Parsed::Whole(Answer {
        status: head.status,
        keep_alive: head.keep_alive,
        length,
        body_start: head.length,
        framing: head.framing,
    }))
}

impl Answer {
    /// Whether the body, its chunks put together, is `expected`; `bytes` are those that were parsed.
    pub fn body_is(&self, bytes: &[u8], expected: &[u8]) -> bool {
        match self.framing {
            Framing::Counted(length) => {
                bytes.get(self.body_start..self.body_start + length) == Some(expected)
            }
            Framing::Chunked => {
                let mut rest = Some(expected);
                let walked = walk_chunks(bytes, self.body_start, |chunk| {
                    rest = rest.and_then(|rest| rest.strip_prefix(chunk));
                });
                matches!(walked, Ok(Ok(_))) && rest == Some(b"")
            }
        }
    }
}

struct Head {
    status: u16,
    keep_alive: bool,
    framing: Framing,
    length: usize,
}

impl Head {
    /// `None` iff the head's end has not arrived.
    fn parse(bytes: &[u8]) -> Result<Option<Head>, Malformed> {
        let Some((status_line, mut at)) = line_at(bytes, 0)? else {
            return Ok(None);
        };
        let (status, mut keep_alive) = parse_status_line(status_line)?;
        let mut length = None;
        let mut chunked = false;
        loop {
            let Some((line, next)) = line_at(bytes, at)? else {
                return if bytes.len() > HEAD_BYTES { Err(Malformed) } else { Ok(None) };
            };
            at = next;
            if line.is_empty() {
                break;
            }
            let colon = line.iter().position(|byte| *byte == b':').ok_or(Malformed)?;
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if name.eq_ignore_ascii_case(b"content-length") {
                if length.replace(parse_number(value, 10)?).is_some() {
                    return Err(Malformed);
                }
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                chunked = value.eq_ignore_ascii_case(b"chunked");
                if !chunked {
                    return Err(Malformed);
                }
            } else if name.eq_ignore_ascii_case(b"connection") {
                if value.eq_ignore_ascii_case(b"close") {
                    keep_alive = false;
                } else if value.eq_ignore_ascii_case(b"keep-alive") {
                    keep_alive = true;
                }
            }
        }
        let framing = match (status, chunked, length) {
            (204 | 304, ..) => Framing::Counted(0),
            (_, true, None) => Framing::Chunked,
            (_, false, Some(length)) => Framing::Counted(length),
            (_, true, Some(_)) | (_, false, None) => return Err(Malformed),
        };
        Ok(Some(Head { status, keep_alive, framing, length: at }))
    }
}

/// The status, and whether this version of HTTP keeps connections unless told otherwise.
fn parse_status_line(line: &[u8]) -> Result<(u16, bool), Malformed> {
    let (persistent, rest) = match line.split_at_checked(9).ok_or(Malformed)? {
        (b"HTTP/1.1 ", rest) => (true, rest),
        (b"HTTP/1.0 ", rest) => (false, rest),
        _ => return Err(Malformed),
    };
    let (digits, reason) = rest.split_at_checked(3).ok_or(Malformed)?;
    if !reason.is_empty() && reason[0] != b' ' {
        return Err(Malformed);
    }
    match parse_number(digits, 10)? {
        status @ 200..=599 => Ok((status as u16, persistent)),
        _ => Err(Malformed),
    }
}

/// Visits each chunk's data from `at` on. `Ok(Ok(end))`: all chunks are there and the answer ends at `end`;
/// `Ok(Err(at_least))`: more bytes are needed.
fn walk_chunks(
    bytes: &[u8],
    mut at: usize,
    mut visit: impl FnMut(&[u8]),
) -> Result<Result<usize, usize>, Malformed> {
    let more = bytes.len() + 1;
    loop {
        let Some((line, start)) = line_at(bytes, at)? else {
            return Ok(Err(more));
        };
        let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let size = parse_number(digits, 16)?;
        if size == 0 {
            at = start;
            break;
        }
        let end = start + size;
        match bytes.get(start..end + 2) {
            None => return Ok(Err(end + 2)),
            Some(data) => visit(data.strip_suffix(b"\r\n").ok_or(Malformed)?),
        }
        at = end + 2;
    }
    // Trailers, which nobody here looks at, up to the empty line.
    loop {
        match line_at(bytes, at)? {
            None => return Ok(Err(more)),
            Some(([], end)) => return Ok(Ok(end)),
            Some((_, next)) => at = next,
        }
    }
}

/// The line that begins at `at`, without its CRLF, and where the next one begins; `None` iff its end is not
/// there.
fn line_at(bytes: &[u8], at: usize) -> Result<Option<(&[u8], usize)>, Malformed> {
    let rest = bytes.get(at..).unwrap_or_default();
    match rest.iter().position(|byte| *byte == b'\n') {
        None => Ok(None),
        Some(end) => {
            let line = rest[..end].strip_suffix(b"\r").ok_or(Malformed)?;
            Ok(Some((line, at + end + 1)))
        }
    }
}

fn parse_number(digits: &[u8], radix: u32) -> Result<usize, Malformed> {
    if digits.is_empty() || digits.len() > 9 {
        return Err(Malformed);
    }
    let mut number: usize = 0;
    for digit in digits {
        let value = char::from(*digit).to_digit(radix).ok_or(Malformed)?;
        number = number * radix as usize + value as usize;
    }
    if number > BODY_BYTES { Err(Malformed) } else { Ok(number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTED: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX: y\r\n\r\nhello";
    const CHUNKED: &[u8] =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nT: z\r\n\r\n";

    fn whole(bytes: &[u8]) -> Answer {
        match parse(bytes) {
            Ok(Parsed::Whole(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_framings_give_the_body_and_the_length() {
        for bytes in [COUNTED, CHUNKED] {
            let answer = whole(bytes);
            assert_eq!((answer.status, answer.keep_alive, answer.length), (200, true, bytes.len()));
            assert!(answer.body_is(bytes, b"hello"));
            for other in [&b"hell"[..], b"hello!", b"hallo", b""] {
                assert!(!answer.body_is(bytes, other), "{other:?}");
            }
        }
    }

    #[test]
    fn every_prefix_is_incomplete_and_its_hint_is_within_the_answer() {
        for bytes in [COUNTED, CHUNKED] {
            for end in 0..bytes.len() {
                match parse(&bytes[..end]) {
                    Ok(Parsed::Incomplete { at_least }) => {
                        assert!((end + 1..=bytes.len()).contains(&at_least))
                    }
                    other => panic!("{end}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn bytes_behind_the_answer_are_not_part_of_it() {
        let bytes = [COUNTED, b"HTTP/1.1"].concat();
        assert_eq!(whole(&bytes).length, COUNTED.len());
    }

    #[test]
    fn a_connection_that_will_be_closed_is_seen() {
        for (head, keep_alive) in [
            ("HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n", true),
            ("HTTP/1.1 204\r\n\r\n", true),
        ] {
            assert_eq!(whole(head.as_bytes()).keep_alive, keep_alive, "{head}");
        }
    }

    #[test]
    fn what_cannot_be_framed_is_refused() {
        for bytes in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
        ] {
            assert_eq!(parse(bytes.as_bytes()), Err(Malformed), "{bytes}");
        }
    }
}
