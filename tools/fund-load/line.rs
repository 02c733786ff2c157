//! Reading a line: ids as far as they can be read, and the load if all of it can. Money is integer cents.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A load that a line asks for.
pub struct Load<'a> {
    /// Decimal digits, as text.
    pub id: &'a str,
    /// Decimal digits, as text.
    pub customer: &'a str,
    /// Saturates: what does not fit exceeds every limit.
    pub cents: u64,
    /// Days since 1970-01-01, UTC.
    pub day: i64,
}

/// What a line holds; the ids are empty where they cannot be read.
#[derive(Default)]
pub struct Ids<'a> {
    /// Trimmed.
    pub id: Cow<'a, str>,
    /// Trimmed.
    pub customer: Cow<'a, str>,
    amount: Option<Cow<'a, str>>,
    time: Option<Cow<'a, str>>,
}

impl<'a> Ids<'a> {
    /// Reads one line.
    pub fn read(line: &'a [u8]) -> Ids<'a> {
        let fields: Option<Fields> =
            std::str::from_utf8(line).ok().and_then(|text| serde_json::from_str(text).ok());
        let Some(fields) = fields else { return Ids::default() };
        Ids {
            id: digits(fields.id),
            customer: digits(fields.customer_id),
            amount: fields.load_amount.and_then(text_of),
            time: fields.time.and_then(text_of),
        }
    }

    /// The load, if every field can be parsed.
    pub fn load(&self) -> Option<Load<'_>> {
        if self.id.is_empty() || self.customer.is_empty() {
            return None;
        }
        let (cents, day) = (cents(self.amount.as_deref()?)?, utc_day(self.time.as_deref()?)?);
        Some(Load { id: &self.id, customer: &self.customer, cents, day })
    }
}

/// The fields as they stand; of duplicate keys the last one counts.
#[derive(Default)]
struct Fields<'a> {
    id: Option<&'a RawValue>,
    customer_id: Option<&'a RawValue>,
    load_amount: Option<&'a RawValue>,
    time: Option<&'a RawValue>,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fields<'de>, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Fields::default();
                while let Some(Text(key)) = map.next_key()? {
                    let value = Some(map.next_value()?);
                    match &*key {
                        "id" => fields.id = value,
                        "customer_id" => fields.customer_id = value,
                        "load_amount" => fields.load_amount = value,
                        "time" => fields.time = value,
                        _ => {}
                    }
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// A JSON string, borrowed where it has no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text<'de>, D::Error> {
        struct Str;
        impl<'de> Visitor<'de> for Str {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Str)
    }
}

fn text_of(value: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str(value.get()).ok().map(|Text(text)| text)
}

fn digits(value: Option<&RawValue>) -> Cow<'_, str> {
    let is_id = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match value.and_then(text_of) {
        Some(Cow::Borrowed(text)) if is_id(text.trim_ascii()) => Cow::Borrowed(text.trim_ascii()),
        Some(Cow::Owned(text)) if is_id(text.trim_ascii()) => Cow::Owned(text.trim_ascii().to_owned()),
        Some(_) | None => Cow::Borrowed(""),
    }
}

/// Exactly two decimals behind an optional prefix; white space anywhere is ignored.
fn cents(text: &str) -> Option<u64> {
    let packed: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let prefixes: [&[u8]; 4] = [b"USD$", b"$USD", b"USD", b"$"];
    let number = prefixes.iter().find_map(|prefix| packed.strip_prefix(*prefix)).unwrap_or(&packed);
    let point = number.len().checked_sub(3)?;
    if point == 0 || number[point] != b'.' {
        return None;
    }
    let mut cents: u64 = 0;
    for digit in number[..point].iter().chain(&number[point + 1..]) {
        if !digit.is_ascii_digit() {
            return None;
        }
        cents = cents.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    }
    Some(cents)
}

/// The UTC day of an RFC 3339 date-time (section 5.6), in days since 1970-01-01.
fn utc_day(text: &str) -> Option<i64> {
    let text = text.trim_ascii().as_bytes();
    let number = |from: usize, to: usize| {
        let part = text.get(from..to)?;
        part.iter().try_fold(0_i64, |n, byte| byte.is_ascii_digit().then(|| n * 10 + i64::from(byte - b'0')))
    };
    let is = |at: usize, allowed: &[u8]| text.get(at).is_some_and(|byte| allowed.contains(byte));
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let shape = is(4, b"-") && is(7, b"-") && is(10, b"Tt") && is(13, b":") && is(16, b":");
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !shape || !(1..=month_days).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut at = 19;
    if is(at, b".") {
        let digits = text[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        at += 1 + digits;
    }
    let offset = if is(at, b"Zz") && text.len() == at + 1 {
        0
    } else {
        let (hours, minutes) = (number(at + 1, at + 3)?, number(at + 4, at + 6)?);
        if !is(at, b"+-") || !is(at + 3, b":") || text.len() != at + 6 || hours > 23 || minutes > 59 {
            return None;
        }
        let offset = hours * 60 + minutes;
        if text[at] == b'-' { -offset } else { offset }
    };
    let minutes = days_from_civil(year, month, day) * 1_440 + hour * 60 + minute - offset;
    Some(minutes.div_euclid(1_440))
}

/// Days since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}
