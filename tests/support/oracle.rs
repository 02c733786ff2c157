//! The oracle of the fund-load challenge: what the right output is, told a second time.
//!
//! It guards the end-to-end tests against a handler that is wrong in the same way on every path. It shares no
//! code with the handlers or the generator and is written from the words of the specification alone, with
//! plainness before speed.
//!
//! Where those words leave room, this file decides:
//!
//! - White space is ASCII white space: space, tab, line feed, form feed and carriage return.
//! - An amount has at least one digit before its point, and leading zeros change nothing.
//! - An amount that is too large to be held is a valid amount, and above every limit.
//! - A time has `T` or `t` between date and time of day (no space), and years run from 0000 to 9999. The UTC
//!   day of a line may lie just outside of these years.
//! - A line that is not valid UTF-8 is broken JSON, wherever the bad byte stands.
//! - The text of customer ids is compared as that of ids is: customer `007` is not customer `7`.
//!
//! Not in scope: the primality of an id that exceeds 64 bits and has no factor 2, 3 or 5. The oracle panics
//! there, because a guess would make it worthless. The generator emits no such id.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashMap, HashSet};

const ATTEMPTS_PER_DAY: u32 = 3;
const DAY_LIMIT_CENTS: u128 = 500_000;
const WEEK_LIMIT_CENTS: u128 = 2_000_000;
const PRIME_LIMIT_CENTS: u128 = 999_900;

/// Which of the two sets of rules decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Idempotency, attempts, day amount, week amount.
    Baseline,
    /// The baseline, with Mondays that count double and the rule for prime ids.
    Experiment,
}

/// What was decided on one line, and by which rule.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Every rule allowed the load.
    Accepted,
    /// The line could not be parsed; it left no trace in the state.
    Unparsed,
    /// An earlier line has the same id; this one left no trace in the state.
    Duplicate,
    /// The customer has already made all the attempts of that day.
    Attempts,
    /// The effective amount is above the limit for prime ids.
    PrimeAmount,
    /// The day's one load with a prime id was already accepted.
    PrimeDay,
    /// The customer's day amount would be exceeded.
    DayAmount,
    /// The customer's week amount would be exceeded.
    WeekAmount,
}

/// The output bytes that belong to the input bytes.
pub fn decide(input: &[u8], rules: Rules) -> Vec<u8> {
    let mut output = String::new();
    for (reading, outcome) in judge(input, rules) {
        // The ids hold digits only, so that nothing needs to be escaped.
        let id = reading.id.unwrap_or_default();
        let customer = reading.customer.unwrap_or_default();
        let accepted = outcome == Outcome::Accepted;
        output += &format!("{{\"id\":\"{id}\",\"customer_id\":\"{customer}\",\"accepted\":{accepted}}}\n");
    }
    output.into_bytes()
}

/// The outcome on each line, for tests that ask which rules an input reaches.
pub fn outcomes(input: &[u8], rules: Rules) -> Vec<Outcome> {
    judge(input, rules).into_iter().map(|(_, outcome)| outcome).collect()
}

fn judge(input: &[u8], rules: Rules) -> Vec<(Reading, Outcome)> {
    let mut lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
    // What follows the last line feed is a line only if it holds a byte; an empty line before it is one.
    if lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }

    let mut book = Book::default();
    let mut judged = Vec::new();
    for line in lines {
        let reading = Reading::of(line);
        let outcome = match reading.load() {
            Some(load) => book.enter(&load, rules),
            None => Outcome::Unparsed,
        };
        judged.push((reading, outcome));
    }
    judged
}

/// All state that lines leave behind.
#[derive(Default)]
struct Book {
    ids: HashSet<String>,
    attempts: HashMap<(String, i64), u32>,
    day_cents: HashMap<(String, i64), u128>,
    week_cents: HashMap<(String, i64), u128>,
    days_with_a_prime: HashSet<i64>,
}

impl Book {
    /// Applies the rules in the order in which the specification gives them; the first that fails declines.
    fn enter(&mut self, load: &Load, rules: Rules) -> Outcome {
        if !self.ids.insert(load.id.clone()) {
            return Outcome::Duplicate;
        }

        let day_key = (load.customer.clone(), load.day);
        let week_key = (load.customer.clone(), monday_of(load.day));

        let attempts = self.attempts.entry(day_key.clone()).or_default();
        *attempts += 1;
        if *attempts > ATTEMPTS_PER_DAY {
            return Outcome::Attempts;
        }

        let is_monday = load.day == monday_of(load.day);
        let (cents, is_prime_load) = match rules {
            Rules::Baseline => (load.cents, false),
            Rules::Experiment if is_monday => (load.cents.saturating_mul(2), is_prime(&load.id)),
            Rules::Experiment => (load.cents, is_prime(&load.id)),
        };
        if is_prime_load && cents > PRIME_LIMIT_CENTS {
            return Outcome::PrimeAmount;
        }
        if is_prime_load && self.days_with_a_prime.contains(&load.day) {
            return Outcome::PrimeDay;
        }

        let day_cents = self.day_cents.entry(day_key).or_default();
        if day_cents.saturating_add(cents) > DAY_LIMIT_CENTS {
            return Outcome::DayAmount;
        }
        let week_cents = self.week_cents.entry(week_key).or_default();
        if week_cents.saturating_add(cents) > WEEK_LIMIT_CENTS {
            return Outcome::WeekAmount;
        }

        *day_cents += cents;
        *week_cents += cents;
        if is_prime_load {
            self.days_with_a_prime.insert(load.day);
        }
        Outcome::Accepted
    }
}

/// A line of which every part could be read.
struct Load {
    id: String,
    customer: String,
    cents: u128,
    /// The UTC date, in days since 1970-01-01.
    day: i64,
}

/// What could be read of a line. Each field is `Some` iff that part of the line is valid.
#[derive(Default)]
struct Reading {
    id: Option<String>,
    customer: Option<String>,
    cents: Option<u128>,
    day: Option<i64>,
}

impl Reading {
    fn of(line: &[u8]) -> Reading {
        // A `RawValue` passes over strings without looking at their bytes, hence the check of the whole line.
        let Ok(line) = std::str::from_utf8(line) else {
            return Reading::default();
        };
        // The map keeps the last of duplicate keys. Raw values keep whatever stands behind an unknown key
        // from being judged beyond JSON's grammar.
        let Ok(object) = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(line) else {
            return Reading::default();
        };
        let text = |key: &str| serde_json::from_str::<String>(object.get(key)?.get()).ok();

        Reading {
            id: text("id").and_then(|id| digits_of(&id)),
            customer: text("customer_id").and_then(|customer| digits_of(&customer)),
            cents: text("load_amount").and_then(|amount| cents_of(&amount)),
            day: text("time").and_then(|time| utc_day_of(&time)),
        }
    }

    fn load(&self) -> Option<Load> {
        Some(Load {
            id: self.id.clone()?,
            customer: self.customer.clone()?,
            cents: self.cents?,
            day: self.day?,
        })
    }
}

fn is_white_space(character: char) -> bool {
    character.is_ascii_whitespace()
}

fn is_all_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn digits_of(text: &str) -> Option<String> {
    let trimmed = text.trim_matches(is_white_space);
    is_all_digits(trimmed).then(|| trimmed.to_string())
}

/// The amount in cents; amounts that exceed 128 bits saturate, which is above every limit.
fn cents_of(text: &str) -> Option<u128> {
    let dense = text.replace(is_white_space, "");
    // The longer prefixes come first, for `$` and `USD` begin them.
    let number =
        ["USD$", "$USD", "USD", "$"].iter().find_map(|prefix| dense.strip_prefix(prefix)).unwrap_or(&dense);

    let (units, hundredths) = number.split_once('.')?;
    if !is_all_digits(units) || !is_all_digits(hundredths) || hundredths.len() != 2 {
        return None;
    }
    let mut cents: u128 = 0;
    for digit in units.bytes().chain(hundredths.bytes()) {
        cents = cents.saturating_mul(10).saturating_add(u128::from(digit - b'0'));
    }
    Some(cents)
}

/// The UTC date of an RFC 3339 time, in days since 1970-01-01.
fn utc_day_of(text: &str) -> Option<i64> {
    let mut rest = Cursor(text.trim_matches(is_white_space).as_bytes());

    let year = rest.number(4, 0..=9999)?;
    rest.one_of(b"-")?;
    let month = rest.number(2, 1..=12)?;
    rest.one_of(b"-")?;
    let day = rest.number(2, 1..=days_in_month(year, month))?;
    rest.one_of(b"Tt")?;
    let hour = rest.number(2, 0..=23)?;
    rest.one_of(b":")?;
    let minute = rest.number(2, 0..=59)?;
    rest.one_of(b":")?;
    rest.number(2, 0..=59)?;

    let mut mark = rest.one_of(b".Zz+-")?;
    if mark == b'.' {
        rest.number(1, 0..=9)?;
        while rest.number(1, 0..=9).is_some() {}
        mark = rest.one_of(b"Zz+-")?;
    }
    let offset_minutes = match mark {
        b'+' => rest.offset()?,
        b'-' => -rest.offset()?,
        _ => 0,
    };
    if !rest.0.is_empty() {
        return None;
    }

    // Seconds and fractions cannot change the date, because an offset is whole minutes.
    let local_minutes = days_since_1970(year, month, day) * 24 * 60 + hour * 60 + minute;
    Some((local_minutes - offset_minutes).div_euclid(24 * 60))
}

/// The bytes of a time that are not yet read. What a call refuses stays unread.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn one_of(&mut self, allowed: &[u8]) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        if !allowed.contains(first) {
            return None;
        }
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self, width: usize, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let (head, rest) = self.0.split_at_checked(width)?;
        let text = std::str::from_utf8(head).ok().filter(|text| is_all_digits(text))?;
        let number = text.parse().ok().filter(|number| range.contains(number))?;
        self.0 = rest;
        Some(number)
    }

    fn offset(&mut self) -> Option<i64> {
        let hours = self.number(2, 0..=23)?;
        self.one_of(b":")?;
        Some(hours * 60 + self.number(2, 0..=59)?)
    }
}

fn is_leap_year(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap_year(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let before_month: i64 = (1..month).map(|earlier| days_in_month(year, earlier)).sum();
    days_before_year(year) - days_before_year(1970) + before_month + day - 1
}

/// The days from the beginning of the year 0, which is a leap year, to that of `year`.
fn days_before_year(year: i64) -> i64 {
    let leap_years = (year + 3) / 4 - (year + 99) / 100 + (year + 399) / 400;
    365 * year + leap_years
}

/// The Monday of the week in which `day` lies. Day 0, 1970-01-01, was a Thursday.
fn monday_of(day: i64) -> i64 {
    day - (day + 3).rem_euclid(7)
}

fn is_prime(id: &str) -> bool {
    match id.parse::<u64>() {
        Ok(number) => is_prime_number(number),
        Err(_) => {
            // Digits alone fail to parse only by overflow. The last digit and the sum of digits show the
            // factors 2, 5 and 3.
            let ends_in_2_or_5 = id.ends_with(['0', '2', '4', '5', '6', '8']);
            let digit_sum: u64 = id.bytes().map(|digit| u64::from(digit - b'0')).sum();
            assert!(
                ends_in_2_or_5 || digit_sum.is_multiple_of(3),
                "the oracle cannot tell whether {id} is prime"
            );
            false
        }
    }
}

/// Miller and Rabin's test. With the first twelve primes as bases it is exact for all of 64 bits.
fn is_prime_number(number: u64) -> bool {
    const BASES: [u64; 12] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37];
    if number < 2 {
        return false;
    }
    for base in BASES {
        if number.is_multiple_of(base) {
            return number == base;
        }
    }

    let twos = (number - 1).trailing_zeros();
    let odd = (number - 1) >> twos;
    BASES.iter().all(|base| {
        let mut power = power_modulo(*base, odd, number);
        if power == 1 || power == number - 1 {
            return true;
        }
        for _ in 1..twos {
            power = multiply_modulo(power, power, number);
            if power == number - 1 {
                return true;
            }
        }
        false
    })
}

fn power_modulo(mut base: u64, mut exponent: u64, modulus: u64) -> u64 {
    let mut power = 1;
    while exponent > 0 {
        if exponent % 2 == 1 {
            power = multiply_modulo(power, base, modulus);
        }
        base = multiply_modulo(base, base, modulus);
        exponent /= 2;
    }
    power
}

fn multiply_modulo(left: u64, right: u64, modulus: u64) -> u64 {
    (u128::from(left) * u128::from(right) % u128::from(modulus)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A well-formed line: id, customer, amount, time.
    fn line(id: &str, customer: &str, amount: &str, time: &str) -> String {
        format!(r#"{{"id":"{id}","customer_id":"{customer}","load_amount":"{amount}","time":"{time}"}}"#)
            + "\n"
    }

    /// Decides lines that differ from each other in amount and time only; their ids are 4, 6, 8 and so on.
    fn verdicts_of(loads: &[(&str, &str)], rules: Rules) -> Vec<Outcome> {
        let lines = loads.iter().zip(2..);
        let input: String =
            lines.map(|((amount, time), half)| line(&(half * 2).to_string(), "1", amount, time)).collect();
        outcomes(input.as_bytes(), rules)
    }

    fn output_of(input: &[u8]) -> String {
        String::from_utf8(decide(input, Rules::Baseline)).expect("the oracle writes ASCII")
    }

    #[test]
    fn amounts_are_read_as_the_edges_say() {
        let rows = [
            ("$3318.47", Some(331_847)),
            ("USD3318.47", Some(331_847)),
            ("USD$3318.47", Some(331_847)),
            ("$USD3318.47", Some(331_847)),
            ("3318.47", Some(331_847)),
            (" U SD\t$ 3 318 . 4\n7 ", Some(331_847)),
            ("$0.00", Some(0)),
            ("$0005.00", Some(500)),
            ("$1234567890123456789012345678901234567890.00", Some(u128::MAX)),
            ("", None),
            ("$", None),
            ("$.50", None),
            ("$5", None),
            ("$5.", None),
            ("$5.0", None),
            ("$5.000", None),
            ("$5,00", None),
            ("$1,000.00", None),
            ("-$5.00", None),
            ("$-5.00", None),
            ("$+5.00", None),
            ("usd5.00", None),
            ("$$5.00", None),
            ("USD$USD5.00", None),
            ("5.00$", None),
            ("$5.00.00", None),
            ("$1e3.00", None),
            ("$\u{663}.00", None),
            ("$\u{a0}5.00", None),
        ];
        for (text, cents) in rows {
            assert_eq!(cents_of(text), cents, "{text:?}");
        }
    }

    #[test]
    fn times_are_read_as_the_edges_say() {
        let rows = [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-01-01T00:00:00Z", Some(10_957)),
            ("2000-02-29t23:59:59z", Some(11_016)),
            (" 1969-12-31T23:59:59.999999999999Z\n", Some(-1)),
            ("1970-01-02T00:30:00+01:00", Some(0)),
            ("1970-01-02T00:30:00-01:00", Some(1)),
            ("1970-01-01T23:30:00-01:00", Some(1)),
            ("1970-01-01T00:00:00+00:01", Some(-1)),
            ("1970-01-01T00:00:00-00:00", Some(0)),
            ("1970-01-01T00:00:00-23:59", Some(0)),
            ("1970-01-01T00:01:00-23:59", Some(1)),
            ("0000-01-01T00:00:00Z", Some(-719_528)),
            ("0000-01-01T00:00:00+00:01", Some(-719_529)),
            ("9999-12-31T23:59:59Z", Some(2_932_896)),
            ("9999-12-31T23:59:59-00:01", Some(2_932_897)),
            ("1999-12-31T23:59:60Z", None),
            ("1999-12-31T24:00:00Z", None),
            ("1999-12-31T23:60:00Z", None),
            ("1999-02-29T00:00:00Z", None),
            ("2100-02-29T00:00:00Z", None),
            ("2000-02-30T00:00:00Z", None),
            ("2000-00-10T00:00:00Z", None),
            ("2000-13-10T00:00:00Z", None),
            ("2000-01-00T00:00:00Z", None),
            ("2000-01-01 00:00:00Z", None),
            ("2000-01-01T00:00:00", None),
            ("2000-01-01T00:00:00.Z", None),
            ("2000-01-01T00:00:00,5Z", None),
            ("2000-01-01T00:00Z", None),
            ("2000-01-01T00:00:00+0100", None),
            ("2000-01-01T00:00:00+01", None),
            ("2000-01-01T00:00:00+24:00", None),
            ("2000-01-01T00:00:00+01:60", None),
            ("2000-01-01T00:00:00ZZ", None),
            ("2000-01-01T00:00:00 Z", None),
            ("+2000-01-01T00:00:00Z", None),
            ("2000-1-01T00:00:00Z", None),
            ("2000-01-01", None),
            ("", None),
        ];
        for (text, day) in rows {
            assert_eq!(utc_day_of(text), day, "{text:?}");
        }
    }

    #[test]
    fn weeks_begin_on_monday_before_and_after_1970() {
        let monday = days_since_1970(1999, 12, 27);
        for day in monday..monday + 7 {
            assert_eq!(monday_of(day), monday);
        }
        assert_eq!(monday_of(monday - 1), monday - 7);
        assert_eq!(monday_of(-1), -3);
        assert_eq!(monday_of(-4), -10);
    }

    #[test]
    fn primes_are_told_from_their_imitations() {
        for number in 0..20_000 {
            let divisor = (2..number).take_while(|divisor| divisor * divisor <= number);
            let by_division = number >= 2 && divisor.into_iter().all(|divisor| number % divisor != 0);
            assert_eq!(is_prime_number(number), by_division, "{number}");
        }
        for id in ["7", "007", "00000000000000000000000000007", "18446744073709551557", "2305843009213693951"]
        {
            assert!(is_prime(id), "{id}");
        }
        for id in [
            "3215031751",
            "341550071728321",
            "3825123056546413051",
            "18446744030759878681",
            "18446744073709551615",
            "18446744073709551616",
            "111111111111111111111",
        ] {
            assert!(!is_prime(id), "{id}");
        }
    }

    #[test]
    fn every_line_gets_its_line_and_a_last_one_may_lack_its_line_feed() {
        let blank = "{\"id\":\"\",\"customer_id\":\"\",\"accepted\":false}\n";
        assert_eq!(output_of(b""), "");
        assert_eq!(output_of(b"\n"), blank);
        assert_eq!(output_of(b"\n\n"), blank.repeat(2));
        assert_eq!(output_of(b" \r\n{"), blank.repeat(2));
    }

    #[test]
    fn an_unparsed_line_shows_the_ids_that_could_be_read() {
        let rows: [(&[u8], &str, &str); 12] = [
            (br#"{"id":" 12\t","customer_id":"\u0037"}"#, "12", "7"),
            (br#"{"id":12,"customer_id":"7"}"#, "", "7"),
            (br#"{"id":"12","customer_id":null}"#, "12", ""),
            (br#"{"id":"1 2","customer_id":"+7"}"#, "", ""),
            (br#"{"id":"","customer_id":"-7"}"#, "", ""),
            (br#"{"id":"1","id":"2","customer_id":"7","customer_id":7}"#, "2", ""),
            (br#"{"ID":"1","customer_id":"7","more":{"id":"5","n":[1e999]}}"#, "", "7"),
            ("{\"id\":\"\u{663}\",\"customer_id\":\"7\"}".as_bytes(), "", "7"),
            (b"{\"id\":\"1\",\"customer_id\":\"7\",\"note\":\"\xff\"}", "", ""),
            (br#"["1","7","$1.00","2000-01-01T00:00:00Z"]"#, "", ""),
            (br#"{"id":"1","customer_id":"7"},"#, "", ""),
            (br#"{"id":"1","customer_id":"7""#, "", ""),
        ];
        for (input, id, customer) in rows {
            let expected = format!("{{\"id\":\"{id}\",\"customer_id\":\"{customer}\",\"accepted\":false}}\n");
            assert_eq!(output_of(input), expected, "{:?}", String::from_utf8_lossy(input));
        }
    }

    #[test]
    fn an_unparsed_line_claims_no_id_and_counts_as_no_attempt() {
        let time = "2000-01-01T00:00:00Z";
        let mut input = line("1", "1", "$1", time).repeat(5);
        input += &line("1", "1", "$1.00", time);
        assert_eq!(outcomes(input.as_bytes(), Rules::Baseline)[4..], [Outcome::Unparsed, Outcome::Accepted]);
    }

    #[test]
    fn a_repeated_id_is_declined_for_any_customer_and_leaves_no_trace() {
        let time = "2000-01-01T00:00:00Z";
        let input = line("7", "1", "$9000.00", time)
            + &line("7", "2", "$1.00", time).repeat(4)
            + &line("007", "2", "$5000.00", time)
            + &line(" 7 ", "2", "$0.00", time);
        let outcomes = outcomes(input.as_bytes(), Rules::Baseline);
        assert_eq!(outcomes[0], Outcome::DayAmount);
        assert_eq!(outcomes[1..5], [Outcome::Duplicate; 4]);
        assert_eq!(outcomes[5..], [Outcome::Accepted, Outcome::Duplicate]);
    }

    #[test]
    fn the_fourth_attempt_of_a_utc_day_is_declined_whatever_became_of_the_others() {
        let loads = [
            ("$9000.00", "2000-01-01T00:00:00Z"),
            ("$9000.00", "2000-01-02T01:00:00+02:00"),
            ("$1.00", "2000-01-01T12:00:00Z"),
            ("$1.00", "2000-01-01T23:59:59.999Z"),
            ("$1.00", "2000-01-02T00:00:00Z"),
        ];
        let expected =
            [Outcome::DayAmount, Outcome::DayAmount, Outcome::Accepted, Outcome::Attempts, Outcome::Accepted];
        assert_eq!(verdicts_of(&loads, Rules::Baseline), expected);
    }

    #[test]
    fn the_limits_of_day_and_week_may_be_reached_but_not_passed() {
        let loads = [
            ("$2500.00", "2000-01-04T00:00:00Z"),
            ("$2500.01", "2000-01-04T00:00:00Z"),
            ("$2500.00", "2000-01-04T00:00:00Z"),
            ("$5000.00", "2000-01-05T00:00:00Z"),
            ("$5000.00", "2000-01-06T00:00:00Z"),
            ("$5000.00", "2000-01-07T00:00:00Z"),
            ("$0.01", "2000-01-08T00:00:00Z"),
            ("$0.00", "2000-01-09T23:59:59Z"),
            ("$0.01", "2000-01-10T00:00:00Z"),
        ];
        let mut expected = [Outcome::Accepted; 9];
        expected[1] = Outcome::DayAmount;
        expected[6] = Outcome::WeekAmount;
        assert_eq!(verdicts_of(&loads, Rules::Baseline), expected);
    }

    #[test]
    fn mondays_count_double_in_the_experiment_only() {
        let loads = [
            ("$2500.01", "2000-01-03T00:00:00Z"),
            ("$2500.00", "2000-01-03T23:59:59Z"),
            ("$5000.00", "2000-01-04T00:00:00Z"),
            ("$2500.01", "2000-01-09T22:00:00-02:00"),
        ];
        let experiment = [Outcome::DayAmount, Outcome::Accepted, Outcome::Accepted, Outcome::DayAmount];
        let baseline = [Outcome::Accepted, Outcome::DayAmount, Outcome::Accepted, Outcome::Accepted];
        assert_eq!(verdicts_of(&loads, Rules::Experiment), experiment);
        assert_eq!(verdicts_of(&loads, Rules::Baseline), baseline);
    }

    #[test]
    fn only_an_accepted_prime_load_uses_up_the_day() {
        let time = "2000-01-04T00:00:00Z";
        let input = line("2", "1", "$9999.01", time)
            + &line("3", "1", "$9999.00", time)
            + &line("5", "2", "$5000.00", time)
            + &line("7", "3", "$1.00", time)
            + &line("11", "3", "$9999.01", time)
            + &line("9", "3", "$1.00", time)
            + &line("13", "3", "$1.00", time)
            + &line("17", "4", "$1.00", "2000-01-05T00:00:00Z");
        let expected = [
            Outcome::PrimeAmount,
            Outcome::DayAmount,
            Outcome::Accepted,
            Outcome::PrimeDay,
            Outcome::PrimeAmount,
            Outcome::Accepted,
            Outcome::Attempts,
            Outcome::Accepted,
        ];
        assert_eq!(outcomes(input.as_bytes(), Rules::Experiment), expected);
    }
}
