//! A strict reader of the chunked coding (RFC 9112, 7.1). Pure. Extensions and trailers are read and dropped.

use super::http1::{Refused, header_line, refused};
use crate::problem::Code;

const BAD: Refused = refused(Code::BadRequest, "the chunked body is malformed");
const TOO_LARGE: Refused = refused(Code::PayloadTooLarge, "the body is too large");
/// A chunk's size line, or a trailer.
const LINE_BYTES: usize = 1_024;
/// All trailers.
const TRAILER_BYTES: usize = 8_192;
/// All extensions and leading zeros of a body: they are read and mean nothing here.
const EXTENSION_BYTES: usize = 16_384;

/// Where a chunked body stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunked {
    state: State,
    trailer_bytes: usize,
    extension_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Data(usize),
    DataEnd,
    Trailer,
}

impl Chunked {
    /// Takes from `input` what can be taken, adds data to `body`; says how much was used and whether the body
    /// is complete.
    ///
    /// # Errors
    /// The coding is malformed, or the body exceeds `max` bytes.
    pub fn read(&mut self, input: &[u8], body: &mut Vec<u8>, max: usize) -> Result<(usize, bool), Refused> {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            match self.state {
                State::Size => {
                    let Some((line, length)) = line(rest)? else { return Ok((used, false)) };
                    let (size, extension_bytes) = chunk_size(line)?;
                    self.extension_bytes += extension_bytes;
                    if self.extension_bytes > EXTENSION_BYTES {
                        return Err(refused(
                            Code::BadRequest,
                            "the extensions of the body's chunks are too long",
                        ));
                    }
                    if body.len().saturating_add(size) > max {
                        return Err(TOO_LARGE);
                    }
                    used += length;
                    self.state = if size == 0 { State::Trailer } else { State::Data(size) };
                }
                State::Data(left) => {
                    let take = left.min(rest.len());
                    body.extend_from_slice(&rest[..take]);
                    used += take;
                    if take < left {
                        self.state = State::Data(left - take);
                        return Ok((used, false));
                    }
                    self.state = State::DataEnd;
                }
                State::DataEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        used += 2;
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => return Ok((used, false)),
                    _ => return Err(BAD),
                },
                State::Trailer => {
                    let Some((line, length)) = line(rest)? else { return Ok((used, false)) };
                    used += length;
                    self.trailer_bytes += length;
                    if line.is_empty() {
                        return Ok((used, true));
                    }
                    header_line(line, 0..line.len())?;
                    if self.trailer_bytes > TRAILER_BYTES {
                        return Err(BAD);
                    }
                }
            }
        }
    }
}

/// A line without its CR LF, and its length with it; `None` while it is not whole.
fn line(input: &[u8]) -> Result<Option<(&[u8], usize)>, Refused> {
    let Some(end) = input.iter().take(LINE_BYTES).position(|byte| *byte == b'\n') else {
        return if input.len() >= LINE_BYTES { Err(BAD) } else { Ok(None) };
    };
    let line = input[..end].strip_suffix(b"\r").ok_or(BAD)?;
    let clean = line.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 127));
    if clean { Ok(Some((line, end + 1))) } else { Err(BAD) }
}

/// A chunk's size, and how many bytes of its line do not matter. White space may stand before an extension alone.
fn chunk_size(line: &[u8]) -> Result<(usize, usize), Refused> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (size, extension) = line.split_at(digits);
    if size.is_empty() || !(extension.is_empty() || extension.trim_ascii_start().starts_with(b";")) {
        return Err(BAD);
    }
    let zeros = size.iter().take_while(|byte| **byte == b'0').count();
    let size = std::str::from_utf8(&size[zeros..]).map_err(|_| BAD)?;
    if size.len() > 8 {
        return Err(TOO_LARGE);
    }
    let bytes = if size.is_empty() { 0 } else { usize::from_str_radix(size, 16).map_err(|_| BAD)? };
    Ok((bytes, zeros + extension.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_the_same_in_any_segmentation() {
        let coded = b"000000003\r\nabc\r\nA \t;ext=1\r\n0123456789\r\n00\r\nTrailer: x\r\n\r\nNEXT";
        for piece in 1..coded.len() {
            let (mut state, mut body, mut input, mut done) =
                (Chunked::default(), Vec::new(), Vec::new(), false);
            for part in coded.chunks(piece) {
                input.extend_from_slice(part);
                if !done {
                    let (used, now_done) = state.read(&input, &mut body, 100).unwrap();
                    input.drain(..used);
                    done = now_done;
                }
            }
            assert!(done);
            assert_eq!((body.as_slice(), input.as_slice()), (&b"abc0123456789"[..], &b"NEXT"[..]), "{piece}");
        }
    }

    #[test]
    fn malformed_and_oversized_bodies_are_refused() {
        let long = format!("1;{}\r\na\r\n", "x".repeat(1_000)).repeat(17);
        for (coded, status) in [
            ("x\r\n", 400),
            ("-1\r\n", 400),
            ("0x1\r\n", 400),
            ("\r\n", 400),
            ("1 \r\na\r\n", 400),
            ("1\nab", 400),
            ("1\r\nab", 400),
            ("0\r\nno colon\r\n\r\n", 400),
            ("0\r\nA b: c\r\n\r\n", 400),
            ("0\r\n: c\r\n\r\n", 400),
            ("0\r\nA: c\r\n\tfolded\r\n\r\n", 400),
            (&long, 400),
            ("FFFFFFFFF\r\n", 413),
            ("65\r\n", 413),
        ] {
            let refused = Chunked::default().read(coded.as_bytes(), &mut Vec::new(), 100).expect_err(coded);
            assert_eq!(refused.code.status(), status, "{coded:?}");
        }
    }
}
