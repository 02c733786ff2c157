//! A submission's headers and query, read into a job and a way to answer. Pure.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::http1::{Head, Refused, refused};
use super::routes::parameter;
use super::waiters::Kind;
use crate::handler::HandlerSpec;
use crate::job::{InstanceId, JobId, MediaType, Payload, Trace};
use crate::limits::{DELAY_MAX, IDEMPOTENCY_KEY_BYTES};
use crate::ports::{Idempotency, NewJob};
use crate::problem::Code;

/// The job that is asked for, and how its caller wants to be answered.
pub fn read(
    head: &Head,
    handler: &HandlerSpec,
    body: Arc<[u8]>,
    id: JobId,
    trace: Trace,
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
        // There are no tokens.
        owner: Arc::default(),
        handler: handler.name.clone(),
        ordering_key,
        payload: Payload { media_type, bytes: body },
        trace,
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

/// `Prefer` (RFC 7240): what is not understood is ignored, as the RFC says.
fn prefer(head: &Head) -> Result<Kind, Refused> {
    let mut found = Kind::Result;
    for value in head.values("prefer") {
        for preference in value?.split(',').map(str::trim) {
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            if name.eq_ignore_ascii_case("respond-async") {
                return Ok(Kind::Acceptance);
            }
            if name.eq_ignore_ascii_case("wait") {
                let seconds = number(value.trim().trim_matches('"'));
                let seconds = seconds.ok_or(refused(Code::BadRequest, "Prefer: wait takes whole seconds"))?;
                found = Kind::ResultOrAccepted(seconds);
            }
        }
    }
    Ok(found)
}

/// The key bare or as a quoted string (RFC 8941, 3.3.3), and the fingerprint of what it stands for.
fn fingerprint(text: &str, of: &MediaType, key: Option<&str>, body: &[u8]) -> Result<Idempotency, Refused> {
    const BAD: Refused = refused(Code::BadRequest, "Idempotency-Key is 1 to 255 visible ASCII characters");
    let unquoted = match text.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').ok_or(BAD)?.replace("\\\"", "\"").replace("\\\\", "\\"),
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

/// The request's trace, or a new one.
pub fn trace(head: &Head, entropy: &mut crate::entropy::Entropy) -> Trace {
    let given = head.header("traceparent").ok().flatten().and_then(Trace::parse);
    given.unwrap_or_else(|| Trace { id: entropy.bytes(), span: entropy.bytes() })
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
        let trace = Trace { id: [1; 16], span: [1; 8] };
        super::read(&head, &spec, Arc::from(body.as_bytes()), JobId([1; 16]), trace, InstanceId(1))
    }

    #[test]
    fn preferences_keys_and_limits_are_read_or_refused() {
        let plain = HandlerOptions::default;
        assert_eq!(read("Prefer: respond-async\r\n", "", plain(), "").unwrap().0, Kind::Acceptance);
        let wait = read("Prefer: foo, wait=3\r\n", "", plain(), "").unwrap().0;
        assert_eq!(wait, Kind::ResultOrAccepted(3));
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
            ("Prefer: wait=soon\r\n", ""),
            ("Idempotency-Key: \r\n", ""),
            ("Idempotency-Key: a b\r\n", ""),
            ("Idempotency-Key: \"a\r\n", ""),
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
}
