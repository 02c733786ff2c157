//! W3C Trace Context, level 1: `traceparent` and `tracestate`. Pure.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use crate::codec::{hex, parse_hex, write_hex};
use crate::entropy::Entropy;
use crate::limits::{TRACESTATE_BYTES, TRACESTATE_MEMBERS};

/// Where a job stands in a distributed trace (W3C Trace Context, level 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Trace {
    /// The trace: shared by a request, its job, and the job's follow-ups.
    pub id: [u8; 16],
    /// The parent-id of `traceparent`.
    pub span: [u8; 8],
    /// As they came: whether the caller has sampled it, above all.
    pub flags: u8,
    /// `Some` iff `span` is the job's own, which is exported: its parent, or zeros where it is the first of its trace.
    pub parent: Option<[u8; 8]>,
}

impl Trace {
    /// A new trace, which is sampled. Nothing is exported of this span itself.
    pub fn begin(entropy: &mut Entropy) -> Trace {
        Trace { id: entropy.bytes(), span: entropy.bytes(), flags: SAMPLED, parent: Some([0; 8]) }
    }

    /// The trace of a job that is submitted within this one: with a span of its own if spans are exported, and it is sampled.
    #[must_use]
    pub fn of_job(self, is_exported: bool, entropy: &mut Entropy) -> Trace {
        match is_exported && self.flags & SAMPLED > 0 {
            true => Trace { span: entropy.bytes(), parent: self.parent.or(Some(self.span)), ..self },
            false => Trace { parent: None, ..self },
        }
    }

    /// Reads a `traceparent` of version 00 and later ones by its rules; `None` if it is not valid.
    pub fn parse(text: &str) -> Option<Trace> {
        let mut parts = text.split('-');
        let (version, id, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let version: [u8; 1] = parse_hex(version.as_bytes())?;
        let [flags]: [u8; 1] = parse_hex(flags.as_bytes())?;
        if version == [0xFF] || (version == [0] && parts.next().is_some()) {
            return None;
        }
        let (id, span) = (parse_hex(id.as_bytes())?, parse_hex(span.as_bytes())?);
        (id != [0; 16] && span != [0; 8]).then_some(Trace { id, span, flags, parent: None })
    }

    /// As a `traceparent`.
    pub fn header(&self) -> String {
        let mut text = String::with_capacity(55);
        for (before, bytes) in [("00-", &self.id[..]), ("-", &self.span), ("-", &[self.flags])] {
            text.push_str(before);
            let _ = write_hex(&mut text, bytes);
        }
        text
    }

    /// The trace's id, as it stands in the header.
    pub fn id_text(&self) -> String {
        hex(&self.id)
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.header())
    }
}

/// The flag of a trace that its caller records.
const SAMPLED: u8 = 1;

/// The lines of a `tracestate` (W3C Trace Context, level 1, 3.3) as one, unless they are malformed, too long or nothing.
pub fn tracestate<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Arc<str>> {
    let text = lines.collect::<Vec<_>>().join(",");
    let members = text.split(',').map(|member| member.trim_matches([' ', '\t']));
    let members: Vec<&str> = members.filter(|member| !member.is_empty()).collect();
    let keys: Option<HashSet<&str>> = members.iter().map(|member| tracestate_key(member)).collect();
    // Each key stands there once.
    let is_whole = keys.is_some_and(|keys| keys.len() == members.len());
    let is_small = text.len() <= TRACESTATE_BYTES && members.len() <= TRACESTATE_MEMBERS;
    (is_whole && is_small && !members.is_empty()).then(|| text.into())
}

/// The key of a member that is well-formed.
fn tracestate_key(member: &str) -> Option<&str> {
    let (key, value) = member.split_once('=')?;
    let is_name = |text: &str, most: usize, may_begin: fn(&u8) -> bool| {
        let is_inside = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/');
        text.len() <= most && text.as_bytes().first().is_some_and(may_begin) && text.bytes().all(is_inside)
    };
    let is_key = match key.split_once('@') {
        None => is_name(key, 256, u8::is_ascii_lowercase),
        Some((tenant, system)) => {
            is_name(tenant, 241, u8::is_ascii_alphanumeric) && is_name(system, 14, u8::is_ascii_lowercase)
        }
    };
    // Its end is no space: those around a member are none of it.
    let is_value = (1..=256).contains(&value.len())
        && value.bytes().all(|byte| matches!(byte, b' '..=b'~' if byte != b'='));
    (is_key && is_value).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparents_are_read_by_the_rules_of_w3c() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(Trace::parse(good).map(|trace| trace.to_string()).as_deref(), Some(good));
        for (text, valid) in [
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-is-new", true),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra", false),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736", false),
        ] {
            assert_eq!(Trace::parse(text).is_some(), valid, "{text}");
        }
    }

    #[test]
    fn tracestates_are_taken_whole_or_not_at_all() {
        let long = |key: usize, value: usize| format!("{}={}", "k".repeat(key), "v".repeat(value));
        let members = |count: usize| (0..count).map(|at| format!("k{at}=v")).collect::<Vec<_>>().join(",");
        for (lines, whole) in [
            (vec!["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"], true),
            (vec!["a=1", "b=2"], true),
            (vec!["a=1 , \tb=2,,", ""], true),
            (vec!["a= ~!@#\"'<>+ z"], true),
            (vec!["0a_-*/@sys-_*/9=1"], true),
            (vec![&*long(256, 255)], true),
            (vec![&*long(255, 256)], true),
            (vec![&*format!("{}@{}=1", "0".repeat(241), "s".repeat(14))], true),
            (vec![&*members(32)], true),
            (vec![&*members(32), ","], true),
            (vec![], false),
            (vec!["", " , "], false),
            (vec![&*members(33)], false),
            (vec![&*members(20), &*members(20)], false),
            (vec![&*long(256, 256)], false),
            (vec![&*long(257, 1)], false),
            (vec![&*long(1, 257)], false),
            (vec![&*format!("{}@s=1", "0".repeat(242))], false),
            (vec![&*format!("t@{}=1", "s".repeat(15))], false),
            (vec!["a=1,a=2"], false),
            (vec!["a=1", "a"], false),
            (vec!["a="], false),
            (vec!["a= "], false),
            (vec!["=1"], false),
            (vec!["a=1=2"], false),
            (vec!["a=\u{e9}"], false),
            (vec!["a=\t1\t2"], false),
            (vec!["A=1"], false),
            (vec!["0a=1"], false),
            (vec!["a =1"], false),
            (vec!["@s=1"], false),
            (vec!["t@=1"], false),
            (vec!["t@0=1"], false),
            (vec!["t@s@u=1"], false),
            (vec!["a=\u{7f}"], false),
        ] {
            let expected = whole.then(|| lines.join(","));
            assert_eq!(tracestate(lines.iter().copied()).as_deref(), expected.as_deref(), "{lines:?}");
        }
    }

    #[test]
    fn a_job_has_a_span_of_its_own_only_where_that_is_exported_and_sampled() {
        let mut entropy = Entropy::Seeded(7);
        let given = Trace::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").expect("valid");
        let job = given.of_job(true, &mut entropy);
        assert_eq!((job.id, job.flags, job.parent), (given.id, 1, Some(given.span)));
        assert_ne!(job.span, given.span);
        assert_eq!(given.of_job(false, &mut entropy), given);
        let unsampled = Trace { flags: 0, ..given };
        assert_eq!(unsampled.of_job(true, &mut entropy), unsampled);
        let begun = Trace::begin(&mut entropy);
        assert_eq!(begun.of_job(true, &mut entropy).parent, Some([0; 8]), "nobody has exported its span");
        assert_eq!(begun.of_job(false, &mut entropy), Trace { parent: None, ..begun });
    }
}
