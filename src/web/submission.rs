//! A submission's headers and query, read into a job and a way to answer. Pure.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::http1::{Head, Refused, refused};
use super::routes::parameter;
use super::waiters::Kind;
use crate::handler::HandlerSpec;
use crate::job::{InstanceId, JobId, MediaType, Payload, Trace, is_token_byte, tracestate};
use crate::limits::{DELAY_MAX, IDEMPOTENCY_KEY_BYTES};
use crate::ports::{Idempotency, NewJob};
use crate::problem::Code;

/// The job that is asked for, and how its caller wants to be answered.
pub fn read(
    head: &Head,
    handler: &HandlerSpec,
    body: Arc<[u8]>,
    id: JobId,
    (trace, tracestate): (Trace, Option<Arc<str>>),
    owner: Arc<str>,
    instance: InstanceId,
) -> Result<(Kind, NewJob), Refused> {
    let query = head.query();
    let media_type = head.header("content-type")?.and_then(MediaType::parse).unwrap_or(MediaType::BYTES);
    let no_key =
        "this handler needs an ordering key: the header, or a scalar in the payload, of at most 256 bytes";
    let ordering_key = handler.options.ordering.key(head.header("ordering-key")?, &body);
    let ordering_key = ordering_key.map_err(|_| refused(Code::BadRequest, no_key))?;
    let idempotency = head.header("idempotency-key")?;
    let idempotency =
        idempotency.map(|text| fingerprint(text, &media_type, ordering_key.as_deref(), &body)).transpose()?;
    let delay = millis(query, "delay_ms")?.unwrap_or_default();
    if delay > DELAY_MAX {
        return Err(refused(Code::BadRequest, "delay_ms is at most 7 days"));
    }
    let timeout = millis(query, "timeout_ms")?;
    if timeout.is_some_and(|timeout| timeout > handler.options.timeout || timeout.is_zero()) {
        return Err(refused(Code::BadRequest, "timeout_ms is at least 1 and at most the handler's own"));
    }
    let kind = prefer(head)?;
    let job = NewJob {
        id,
        owner,
        handler: handler.name.clone(),
        ordering_key,
        payload: Payload { media_type, bytes: body },
        trace,
        tracestate,
        delay,
        timeout,
        idempotency,
        awaited: kind != Kind::Acceptance,
        one_line: false,
        instance,
    };
    Ok((kind, job))
}

fn millis(query: &str, name: &str) -> Result<Option<Duration>, Refused> {
    const BAD: Refused =
        refused(Code::BadRequest, "delay_ms and timeout_ms are whole numbers of milliseconds");
    let Some(text) = parameter(query, name) else { return Ok(None) };
    number(text).map(|millis| Some(Duration::from_millis(millis))).ok_or(BAD)
}

/// Decimal digits, at most 15 of them.
pub fn number(text: &str) -> Option<u64> {
    let is_number = text.len() <= 15 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// Decimal digits; more than there will ever be stand for the most.
pub fn seconds(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// `Prefer` (RFC 7240). What is not known, or cannot be followed, is ignored; of several alike the first counts.
fn prefer(head: &Head) -> Result<Kind, Refused> {
    let (mut respond_async, mut wait) = (false, None);
    for value in head.values("prefer") {
        let skipped = |text| str::trim_start_matches(text, [' ', '\t', ',']);
        let mut rest = skipped(value?);
        while !rest.is_empty() {
            let Some((name, word, after)) = preference(rest) else {
                rest = rest.split_once(',').map_or("", |(_, after)| skipped(after));
                continue;
            };
            respond_async |= name.eq_ignore_ascii_case("respond-async");
            if name.eq_ignore_ascii_case("wait") {
                wait.get_or_insert(word);
            }
            rest = skipped(after);
        }
    }
    Ok(match wait.and_then(|word| seconds(&word)) {
        Some(seconds) => Kind::ResultOrAccepted { seconds, respond_async },
        None if respond_async => Kind::Acceptance,
        None => Kind::Result,
    })
}

/// The first preference of a list, its word, and what stands behind its parameters: nothing, or a comma.
fn preference(text: &str) -> Option<(&str, String, &str)> {
    let (name, word, mut rest) = pair(text)?;
    while let Some(parameter) = rest.trim_start().strip_prefix(';') {
        let parameter = parameter.trim_start();
        // One may be empty.
        rest = pair(parameter).map_or(parameter, |(_, _, rest)| rest);
    }
    let rest = rest.trim_start();
    (rest.is_empty() || rest.starts_with(',')).then_some((name, word, rest))
}

/// A token, the token or quoted string behind its `=` if there is one, and the rest.
fn pair(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = token(text)?;
    let Some(word) = rest.trim_start().strip_prefix('=').map(str::trim_start) else {
        return Some((name, String::new(), rest));
    };
    let (word, rest) = match word.strip_prefix('"') {
        Some(text) => quoted(text)?,
        None => token(word).map(|(word, rest)| (word.to_owned(), rest))?,
    };
    Some((name, word, rest))
}

fn token(text: &str) -> Option<(&str, &str)> {
    let end = text.bytes().position(|byte| !is_token_byte(byte)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// What a string stands for, from behind its first quote, and what comes behind its last one (RFC 8941, 3.3.3).
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut word, mut chars) = (String::new(), text.char_indices());
    while let Some((at, char)) = chars.next() {
        word.push(match char {
            '"' => return Some((word, &text[at + 1..])),
            '\\' => chars.next().map(|(_, escaped)| escaped).filter(|char| matches!(char, '"' | '\\'))?,
            char => char,
        });
    }
    None
}

/// The key bare or as a quoted string, and the fingerprint of what it stands for.
fn fingerprint(text: &str, of: &MediaType, key: Option<&str>, body: &[u8]) -> Result<Idempotency, Refused> {
    const BAD: Refused = refused(Code::BadRequest, "Idempotency-Key is 1 to 255 visible ASCII characters");
    let unquoted = match text.strip_prefix('"') {
        Some(rest) => quoted(rest).filter(|(_, rest)| rest.is_empty()).ok_or(BAD)?.0,
        None => text.to_owned(),
    };
    let visible = unquoted.bytes().all(|byte| byte.is_ascii_graphic());
    if !visible || !(1..=IDEMPOTENCY_KEY_BYTES).contains(&unquoted.len()) {
        return Err(BAD);
    }
    let mut hash = Sha256::new();
    let (of, is_keyed, key) = (of.as_str().as_bytes(), u8::from(key.is_some()), key.unwrap_or_default());
    for field in [of, &[is_keyed], key.as_bytes(), body] {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    Ok(Idempotency { key: Arc::from(unquoted), fingerprint: hash.finalize().into() })
}

/// The request's trace and what came with it, or a new one.
pub fn trace(head: &Head, entropy: &mut crate::entropy::Entropy) -> (Trace, Option<Arc<str>>) {
    let Some(given) = head.header("traceparent").ok().flatten().and_then(Trace::parse) else {
        return (Trace::begin(entropy), None);
    };
    let lines: Result<Vec<&str>, Refused> = head.values("tracestate").collect();
    (given, lines.ok().and_then(|lines| tracestate(lines.into_iter())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::HandlerOptions;
    use crate::web::http1::parse_head;

    fn read(
        headers: &str,
        query: &str,
        options: HandlerOptions,
        body: &str,
    ) -> Result<(Kind, NewJob), Refused> {
        let text = format!("POST /v1/jobs/x{query} HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        let (head, _) = parse_head(text.as_bytes(), 4_096).unwrap().unwrap();
        let spec = HandlerSpec::new("x", 0, options);
        let trace = Trace::parse("00-01010101010101010101010101010101-0101010101010101-01").expect("valid");
        super::read(
            &head,
            &spec,
            Arc::from(body.as_bytes()),
            JobId([1; 16]),
            (trace, None),
            Arc::default(),
            InstanceId(1),
        )
    }

    #[test]
    fn preferences_keys_and_limits_are_read_or_refused() {
        let plain = HandlerOptions::default;
        assert_eq!(read("Prefer: respond-async\r\n", "", plain(), "").unwrap().0, Kind::Acceptance);
        for (bare, quoted) in [("k", "\"k\""), ("a\\", "\"a\\\\\"")] {
            let key = |text: &str| {
                read(&format!("Idempotency-Key: {text}\r\n"), "", plain(), "x")
                    .unwrap()
                    .1
                    .idempotency
                    .unwrap()
            };
            assert_eq!(key(bare), key(quoted));
        }
        for (headers, query) in [
            ("Idempotency-Key: \r\n", ""),
            ("Idempotency-Key: a b\r\n", ""),
            ("Idempotency-Key: \"a\r\n", ""),
            ("Idempotency-Key: \"a\\\"\r\n", ""),
            ("Idempotency-Key: \"a\"b\"\r\n", ""),
            ("Idempotency-Key: \"\\a\"\r\n", ""),
            ("Idempotency-Key: caf\u{e9}\r\n", ""),
            ("", "?delay_ms=604800001"),
            ("", "?delay_ms=-1"),
            ("", "?timeout_ms=30001"),
            ("", "?timeout_ms=0"),
        ] {
            let refused = read(headers, query, plain(), "").err().map(|refused| refused.code);
            assert_eq!(refused, Some(Code::BadRequest), "{headers:?} {query}");
        }
        let keyed = HandlerOptions::keyed("/k");
        assert_eq!(read("", "", keyed.clone(), r#"{"k":"v"}"#).unwrap().1.ordering_key.as_deref(), Some("v"));
        assert_eq!(
            read("Ordering-Key: w\r\n", "", keyed.clone(), "").unwrap().1.ordering_key.as_deref(),
            Some("w")
        );
        assert!(read("", "", keyed, "{}").is_err());
    }

    #[test]
    fn preferences_are_read_by_their_grammar_and_the_first_of_several_counts() {
        let within = |seconds, respond_async| Kind::ResultOrAccepted { seconds, respond_async };
        for (headers, kind) in [
            ("", Kind::Result),
            ("Prefer: handling=lenient\r\n", Kind::Result),
            ("Prefer: foo, wait=3\r\n", within(3, false)),
            ("Prefer: respond-async, wait=5\r\n", within(5, true)),
            ("Prefer: wait=5\r\nPrefer: Respond-Async\r\n", within(5, true)),
            ("Prefer: wait=1, wait=20\r\n", within(1, false)),
            ("Prefer: wait=1\r\nPrefer: wait=soon\r\n", within(1, false)),
            ("Prefer: respond-async;foo=bar\r\n", Kind::Acceptance),
            ("Prefer: ,respond-async ; foo ; ; bar = \"a,b;\\\"wait=7\",\r\n", Kind::Acceptance),
            ("Prefer: wait = 1\r\n", within(1, false)),
            ("Prefer: WAIT=\"1\";x=\"a,b\", foo;wait=2\r\n", within(1, false)),
            ("Prefer: wait=99999999999999999999\r\n", within(u64::MAX, false)),
            ("Prefer: wait=soon\r\n", Kind::Result),
            ("Prefer: wait=, respond-async\r\n", Kind::Acceptance),
            ("Prefer: wait=5 s, @, x=\"y, wait=3\r\n", within(3, false)),
            ("Prefer: wait=-1, wait=3\r\n", Kind::Result),
        ] {
            assert_eq!(read(headers, "", HandlerOptions::default(), "").unwrap().0, kind, "{headers:?}");
        }
    }
}
