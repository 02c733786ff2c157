//! Input for the fund-load challenge, made from a seed.
//!
//! It guards the end-to-end tests against input that is too kind: the same seed and number of lines give the
//! same bytes on any machine, and those bytes reach each rule, each limit from both sides, and each edge of
//! the specification.
//!
//! In scope: what the specification decides. Not in scope, so never emitted:
//!
//! - ids beyond 64 bits whose primality is hard to tell: each one emitted here is divisible by 2, 3 or 5, so
//!   that no reader needs big integers to be right about it;
//! - white space other than ASCII's, amounts without a digit before the point, lone surrogates, and numbers
//!   too large for a float, on all of which careful readers differ.

#![allow(dead_code, reason = "each tool and test that includes this file uses its own part of it")]

const MS_PER_SECOND: i64 = 1_000;
const MS_PER_MINUTE: i64 = 60 * MS_PER_SECOND;
const MS_PER_DAY: i64 = 24 * 60 * MS_PER_MINUTE;

/// NDJSON that exercises everything; about four lines in a hundred are malformed.
///
/// Whatever the number of lines, their clock passes through four weeks and their customers make between two
/// and three attempts a day, so that the limits of attempts, day and week all bite.
pub fn generate(seed: u64, lines: usize) -> Vec<u8> {
    let mut scene = Scene::new(seed, lines);
    let mut output = Vec::with_capacity(lines * 120);
    for _ in 0..lines {
        output.extend_from_slice(&scene.next_line());
        output.push(b'\n');
    }
    output
}

/// NDJSON in the manner of the real input: well formed, a clock in steps of 3,682 seconds, 1,000 customers,
/// and an id that was there before about once in a hundred lines.
///
/// After 400 years, which is 3.4 million lines, the clock begins again.
pub fn generate_plain(seed: u64, lines: usize) -> Vec<u8> {
    const STEP_MS: i64 = 3_682 * MS_PER_SECOND;
    const FOUR_CENTURIES_MS: i64 = 146_097 * MS_PER_DAY;
    const START_MS: i64 = 10_957 * MS_PER_DAY; // 2000-01-01

    let mut random = Random(seed);
    let mut output = String::with_capacity(lines * 95);
    let mut elapsed_ms = 0;
    for _ in 0..lines {
        // Among n draws from 50 n numbers, n / 100 meet an earlier one.
        let id = random.between(1, 50 * lines as u64);
        let customer = random.between(1, 1_000);
        let prefix = random.pick(&["$", "$", "$", "USD"]);
        let amount = decimal(random.between(100, 600_000));
        let time = date_and_time(START_MS + elapsed_ms, "T");
        output += &format!(
            r#"{{"id":"{id}","customer_id":"{customer}","load_amount":"{prefix}{amount}","time":"{time}Z"}}"#
        );
        output.push('\n');
        elapsed_ms = (elapsed_ms + STEP_MS) % FOUR_CENTURIES_MS;
    }
    output.into_bytes()
}

/// A key and its value. Both are JSON as it will be written; the key lacks its quotes.
type Field = (&'static str, Vec<u8>);

/// What the lines so far have left behind, from which the next one is made.
struct Scene {
    random: Random,
    customers: u64,
    clock_ms: i64,
    step_ms: i64,
    last_number: u64,
    /// All ids so far, also those of malformed lines: such a line claims no id, so that a later one may.
    ids: Vec<String>,
    recent_lines: Vec<Vec<u8>>,
}

impl Scene {
    fn new(seed: u64, lines: usize) -> Scene {
        const DAYS: i64 = 28;
        /// 64 lines in 28 days are 2.3 attempts a day.
        const LINES_PER_CUSTOMER: usize = 64;
        /// Mondays before 1970-01-01, 2000-01-01, 2024-02-29, and 2100-03-01 (2100 is no leap year).
        const STARTS: [i64; 4] = [-17, 10_945, 19_772, 47_527];

        let mut random = Random(seed);
        Scene {
            customers: (lines / LINES_PER_CUSTOMER).max(3) as u64,
            clock_ms: random.pick(&STARTS) * MS_PER_DAY,
            step_ms: DAYS * MS_PER_DAY / lines.max(1) as i64,
            last_number: random.between(0, 20_000),
            ids: Vec::new(),
            recent_lines: Vec::new(),
            random,
        }
    }

    fn next_line(&mut self) -> Vec<u8> {
        self.clock_ms += self.random.between(0, 2 * self.step_ms as u64) as i64;
        let line = match self.random.below(1_000) {
            0..15 if !self.recent_lines.is_empty() => return self.recent_line(),
            15..55 => self.malformed_line(),
            _ => self.well_formed_line(),
        };
        self.remember(&line);
        line
    }

    fn recent_line(&mut self) -> Vec<u8> {
        let index = self.random.index(self.recent_lines.len());
        self.recent_lines[index].clone()
    }

    fn remember(&mut self, line: &[u8]) {
        const KEPT: usize = 64;
        if self.recent_lines.len() < KEPT {
            self.recent_lines.push(line.to_vec());
        } else {
            let index = self.random.index(KEPT);
            self.recent_lines[index] = line.to_vec();
        }
    }

    fn well_formed_line(&mut self) -> Vec<u8> {
        let mut fields = self.fields();
        if self.random.chance(100) {
            self.random.shuffle(&mut fields);
        }
        if self.random.chance(40) {
            self.add_unknown_key(&mut fields);
        }
        if self.random.chance(30) {
            self.add_overruled_key(&mut fields);
        }
        if self.random.chance(10) {
            spell_keys_with_escapes(&mut fields);
        }

        let mut line = if self.random.chance(50) { self.render_widely(&fields) } else { render(&fields) };
        if self.random.chance(10) {
            line.push(b'\r');
        }
        line
    }

    fn fields(&mut self) -> Vec<Field> {
        let (customer, amount) =
            if self.random.chance(50) { self.round_load() } else { (self.customer(), self.amount()) };
        let (id, time) = (self.id(), self.time());
        let (id, customer, time) = (self.padded(id), self.padded(customer), self.padded(time));
        vec![
            ("id", self.quoted(&id)),
            ("customer_id", self.quoted(&customer)),
            ("load_amount", self.quoted(&amount)),
            ("time", self.quoted(&time)),
        ]
    }

    fn id(&mut self) -> String {
        let id = match self.random.below(1_000) {
            0..60 if !self.ids.is_empty() => return self.earlier_id(),
            60..80 if !self.ids.is_empty() => format!("0{}", self.earlier_id()),
            _ => self.fresh_id(),
        };
        self.ids.push(id.clone());
        id
    }

    fn earlier_id(&mut self) -> String {
        let index = self.random.index(self.ids.len());
        self.ids[index].clone()
    }

    fn fresh_id(&mut self) -> String {
        match self.random.below(100) {
            0..15 => {
                self.last_number += 1;
                while !is_prime(self.last_number) {
                    self.last_number += 1;
                }
                self.last_number.to_string()
            }
            15..18 => {
                // Leading zeros make a new id of the same numeric value.
                let width = self.random.index(40);
                format!("{:0>width$}", self.random.pick(&NOTABLE_NUMBERS))
            }
            18..21 => self.id_beyond_64_bits(),
            _ => {
                self.last_number += self.random.between(1, 5);
                self.last_number.to_string()
            }
        }
    }

    /// An id of 21 to 40 digits with a factor that its digits show: 2, 3 or 5.
    fn id_beyond_64_bits(&mut self) -> String {
        let mut digits = vec![self.random.between(1, 9)];
        for _ in 0..self.random.between(19, 38) {
            digits.push(self.random.below(10));
        }
        let until_divisible_by_3 = (3 - digits.iter().sum::<u64>() % 3) % 3;
        let even_or_5 = self.random.pick(&[0, 2, 4, 5, 6, 8]);
        digits.push(self.random.pick(&[until_divisible_by_3, even_or_5]));
        digits.iter().map(u64::to_string).collect()
    }

    fn customer(&mut self) -> String {
        // Half of the lines belong to a third of the customers, who therefore meet the limits more often.
        let busy = self.random.between(1, self.customers.div_ceil(3));
        let any = self.random.between(1, self.customers);
        let customer = self.random.pick(&[busy, any]);
        match self.random.below(1_000) {
            0..10 => format!("00{customer}"),
            10..13 => format!("9876543210987654321{customer:05}"),
            _ => customer.to_string(),
        }
    }

    /// A customer and an amount that reach the limit of a week exactly, which chance alone rarely does: these
    /// customers load round amounts only, until on Saturday and Sunday they try a cent more.
    fn round_load(&mut self) -> (String, String) {
        const CUSTOMERS_PER_ROUND_ONE: u64 = 20;
        let round_customers = self.customers.div_ceil(CUSTOMERS_PER_ROUND_ONE);
        let customer = self.customers + self.random.between(1, round_customers);
        let is_weekend = (self.clock_ms.div_euclid(MS_PER_DAY) + 3).rem_euclid(7) >= 5;
        let amount = if is_weekend {
            self.random.pick(&["$5000.00", "$0.01", "$0.01", "$0.00"])
        } else {
            self.random.pick(&["$5000.00", "$5000.00", "$2500.00", "USD 2500.00"])
        };
        (customer.to_string(), amount.to_string())
    }

    fn amount(&mut self) -> String {
        let number = match self.random.below(100) {
            0..35 => decimal(self.random.between(1, 600_000)),
            35..55 => decimal(self.random.between(1, 100_000)),
            55..97 => self.random.pick(&AMOUNTS_AT_LIMITS).to_string(),
            _ => self.random.pick(&HUGE_AMOUNTS).to_string(),
        };
        let zeros = if self.random.chance(10) { "00" } else { "" };
        let prefix = self.random.pick(&["$", "$", "$", "$", "USD", "USD$", "$USD", ""]);
        let mut amount = format!("{prefix}{zeros}{number}");
        if self.random.chance(100) {
            for _ in 0..self.random.between(1, 4) {
                let index = self.random.index(amount.len() + 1);
                amount.insert(index, self.random.pick(&WHITE_SPACE));
            }
        }
        amount
    }

    fn time(&mut self) -> String {
        if self.random.chance(10) {
            return self.random.pick(&EXTREME_TIMES).to_string();
        }
        let utc_ms = self.moment_ms();
        let (offset, offset_minutes) = match self.random.below(100) {
            0..65 => ("Z", 0),
            65..68 => ("z", 0),
            _ => self.random.pick(&OFFSETS),
        };
        let separator = if self.random.chance(30) { "t" } else { "T" };
        let local = date_and_time(utc_ms + offset_minutes * MS_PER_MINUTE, separator);
        let fraction = match utc_ms.rem_euclid(MS_PER_SECOND) {
            0 if self.random.chance(50) => self.random.pick(&[".0", ".000", ".000000000000"]).to_string(),
            0 => String::new(),
            ms if self.random.chance(200) => format!(".{ms:03}999999999"),
            ms => format!(".{ms:03}"),
        };
        format!("{local}{fraction}{offset}")
    }

    /// Mostly the clock's time; else a moment beside a border of days or weeks, or one in the days before.
    fn moment_ms(&mut self) -> i64 {
        const BESIDE_MS: [i64; 7] = [-MS_PER_SECOND, -1, 0, 0, 1, 999, MS_PER_SECOND];
        let second_ms = self.clock_ms - self.clock_ms.rem_euclid(MS_PER_SECOND);
        let day = self.clock_ms.div_euclid(MS_PER_DAY);
        // Day 0 was a Thursday.
        let monday = day - (day + 3).rem_euclid(7);
        match self.random.below(100) {
            0..12 => self.random.pick(&[day, day + 1]) * MS_PER_DAY + self.random.pick(&BESIDE_MS),
            12..18 => self.random.pick(&[monday, monday + 7]) * MS_PER_DAY + self.random.pick(&BESIDE_MS),
            18..22 => second_ms - self.random.between(0, 3 * MS_PER_DAY as u64) as i64,
            22..40 => self.clock_ms,
            _ => second_ms,
        }
    }

    /// The text, now and then with white space around it.
    fn padded(&mut self, text: String) -> String {
        if !self.random.chance(40) {
            return text;
        }
        let (before, after) = (self.random.pick(&WHITE_SPACE), self.random.pick(&WHITE_SPACE));
        match self.random.below(3) {
            0 => format!("{before}{text}"),
            1 => format!("{text}{after}{before}"),
            _ => format!("{before}{text}{after}"),
        }
    }

    /// The text as a JSON string; now and then with an escape where none is needed.
    fn quoted(&mut self, text: &str) -> Vec<u8> {
        let escaped_index = if self.random.chance(10) { Some(self.random.index(text.len())) } else { None };
        let mut json = String::from("\"");
        for (index, character) in text.chars().enumerate() {
            match character {
                '\t' => json += "\\t",
                '\n' => json += "\\n",
                '\r' => json += "\\r",
                _ if Some(index) == escaped_index => json += &format!("\\u{:04x}", u32::from(character)),
                _ => json.push(character),
            }
        }
        json.push('"');
        json.into_bytes()
    }

    fn add_unknown_key(&mut self, fields: &mut Vec<Field>) {
        let (key, value) = self.random.pick(&UNKNOWN_KEYS);
        let index = self.random.index(fields.len() + 1);
        fields.insert(index, (key, value.into()));
    }

    /// Repeats a key before its place, with a value that does not count.
    fn add_overruled_key(&mut self, fields: &mut Vec<Field>) {
        let later = self.random.index(fields.len());
        let index = self.random.index(later + 1);
        let value = self.random.pick(&OVERRULED_VALUES);
        fields.insert(index, (fields[later].0, value.into()));
    }

    /// The object with JSON's white space between its tokens.
    fn render_widely(&mut self, fields: &[Field]) -> Vec<u8> {
        let gap = self.random.pick(&[" ", "  ", "\t", "\r", " \t\r "]);
        let mut line = gap.as_bytes().to_vec();
        line.push(b'{');
        for (index, (key, value)) in fields.iter().enumerate() {
            if index > 0 {
                line.push(b',');
            }
            line.extend_from_slice(format!("{gap}\"{key}\"{gap}:{gap}").as_bytes());
            line.extend_from_slice(value);
            line.extend_from_slice(gap.as_bytes());
        }
        line.push(b'}');
        line.extend_from_slice(gap.as_bytes());
        line
    }

    /// A line that cannot be parsed, though often by one detail only.
    fn malformed_line(&mut self) -> Vec<u8> {
        let mut fields = self.fields();
        match self.random.below(10) {
            0 => return self.random.pick(&["", "", " ", "\t \t", "\r"]).into(),
            1 => return self.broken_object(fields),
            2 => return self.no_object(fields),
            3 => {
                let missing = self.random.index(fields.len());
                fields.remove(missing);
            }
            4 => {
                // The bad bytes stand where a reader that skips unknown keys may not look at them.
                let text = self.random.pick::<&[u8]>(&[
                    b"\xff",
                    b"\xc3(",
                    b"\xed\xa0\x80",
                    b"\xc0\x80",
                    b"\xf0\x9f\x98",
                ]);
                let key = self.random.pick(&["note", "id", "customer_id"]);
                fields.insert(0, (key, [b"\"7", text, b"\""].concat()));
            }
            5 => {
                // The bad value stands last and therefore counts.
                let field = self.bad_field();
                fields.push(field);
            }
            _ => {
                let bad = self.bad_field();
                fields.retain(|(key, _)| *key != bad.0);
                let index = self.random.index(fields.len() + 1);
                fields.insert(index, bad);
            }
        }
        render(&fields)
    }

    fn bad_field(&mut self) -> Field {
        let (key, value) = match self.random.below(8) {
            0 => ("id", self.random.pick(&BAD_IDS)),
            1 => ("customer_id", self.random.pick(&BAD_IDS)),
            2..5 => ("load_amount", self.random.pick(&BAD_AMOUNTS)),
            _ => ("time", self.random.pick(&BAD_TIMES)),
        };
        (key, value.into())
    }

    /// A well-formed object with one thing done to it that JSON forbids.
    fn broken_object(&mut self, mut fields: Vec<Field>) -> Vec<u8> {
        let whole = render(&fields);
        match self.random.below(10) {
            0 | 1 => {
                let length = self.random.index(whole.len());
                whole[..length].to_vec()
            }
            2 => [whole.as_slice(), b"}"].concat(),
            3 => [whole.as_slice(), &whole].concat(),
            4 => [whole.as_slice(), b","].concat(),
            5 => [&whole[..whole.len() - 1], b",}"].concat(),
            6 => ["\u{feff}".as_bytes(), &whole].concat(),
            7 => whole.into_iter().map(|byte| if byte == b'"' { b'\'' } else { byte }).collect(),
            8 => {
                // A tab must be escaped within a string.
                fields[0].1.insert(1, b'\t');
                render(&fields)
            }
            _ => {
                let value =
                    self.random.pick(&["NaN", "-Infinity", "01", "1.", ".5", "+1", "tru", "\"\\x\"", ""]);
                fields.push(("note", value.into()));
                render(&fields)
            }
        }
    }

    /// Valid JSON that is not an object with the four keys.
    fn no_object(&mut self, fields: Vec<Field>) -> Vec<u8> {
        let values: Vec<Vec<u8>> = fields.iter().map(|(_, value)| value.clone()).collect();
        match self.random.below(4) {
            0 => [b"[", values.join(&b","[..]).as_slice(), b"]"].concat(),
            1 => [b"[", render(&fields).as_slice(), b"]"].concat(),
            _ => self.random.pick(&["{}", "[]", "null", "true", "42", "\"7\"", "-0.5"]).into(),
        }
    }
}

fn render(fields: &[Field]) -> Vec<u8> {
    let members: Vec<Vec<u8>> =
        fields.iter().map(|(key, value)| [b"\"", key.as_bytes(), b"\":", value].concat()).collect();
    [b"{", members.join(&b","[..]).as_slice(), b"}"].concat()
}

fn spell_keys_with_escapes(fields: &mut [Field]) {
    for (key, _) in fields {
        *key = match *key {
            "id" => r"\u0069d",
            "customer_id" => r"customer\u005fid",
            "load_amount" => r"load_amoun\u0074",
            "time" => r"\u0074\u0069\u006D\u0065",
            other => other,
        };
    }
}

fn decimal(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

/// The date and the time of day, without fraction and offset, at some milliseconds since 1970-01-01T00:00:00.
fn date_and_time(ms: i64, separator: &str) -> String {
    let (year, month, day) = civil_date(ms.div_euclid(MS_PER_DAY));
    let second = ms.rem_euclid(MS_PER_DAY) / MS_PER_SECOND;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}{separator}{hour:02}:{minute:02}:{second:02}")
}

/// Year, month and day of a day since 1970-01-01.
fn civil_date(days: i64) -> (i64, i64, i64) {
    // Years are counted from March on here, so that a leap day is the last day of its year; eras are 400
    // years.
    let since_march_0000 = days + 719_468;
    let era = since_march_0000.div_euclid(146_097);
    let day_of_era = since_march_0000.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_since_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * months_since_march + 2) / 5 + 1;
    let month = (months_since_march + 2) % 12 + 1;
    let year = 400 * era + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}

/// The sequence called splitmix64: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A number from `low` to `high`, both included.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

const WHITE_SPACE: [char; 6] = [' ', ' ', ' ', '\t', '\n', '\r'];

/// Numbers about which a test of primality may be wrong: the smallest, primes next to powers of two, strong
/// pseudoprimes, and squares and products of large primes.
const NOTABLE_NUMBERS: [u64; 22] = [
    0,
    1,
    2,
    3,
    4,
    7,
    9,
    561,
    7_919,
    65_537,
    2_147_483_647,
    3_215_031_751,
    4_294_967_291,
    4_295_098_369,
    341_550_071_728_321,
    2_305_843_009_213_693_951,
    3_825_123_056_546_413_051,
    9_223_372_036_854_775_783,
    9_223_372_036_854_775_807,
    18_446_744_030_759_878_681,
    18_446_744_073_709_551_557,
    18_446_744_073_709_551_615,
];

/// Each limit from both sides, also for what counts double, and round parts of which sums reach a limit
/// exactly.
const AMOUNTS_AT_LIMITS: [&str; 24] = [
    "0.00", "0.00", "0.01", "500.00", "1000.00", "1250.00", "1500.00", "2000.00", "2499.99", "2500.00",
    "2500.00", "2500.01", "3000.00", "4000.00", "4999.50", "4999.51", "4999.99", "5000.00", "5000.00",
    "5000.00", "5000.01", "9999.00", "9999.01", "20000.00",
];

/// Amounts on both sides of 63, 64 and 128 bits in cents, and one that is exact in no float.
const HUGE_AMOUNTS: [&str; 8] = [
    "20000.01",
    "90071992547409.93",
    "92233720368547758.07",
    "92233720368547758.08",
    "184467440737095516.15",
    "184467440737095516.16",
    "3402823669209384634633746074317682114.56",
    "1000000000000000000000000000000000000000000000000.00",
];

/// Offsets as they are written, with their minutes east of UTC.
const OFFSETS: [(&str, i64); 10] = [
    ("+00:00", 0),
    ("-00:00", 0),
    ("+00:01", 1),
    ("-00:01", -1),
    ("+02:00", 120),
    ("-05:00", -300),
    ("+05:30", 330),
    ("-03:30", -210),
    ("+14:00", 840),
    ("-23:59", -1_439),
];

/// Valid times at which calendar arithmetic may be wrong.
const EXTREME_TIMES: [&str; 12] = [
    "0000-01-01T00:00:00Z",
    "0000-01-01T00:00:00+00:01",
    "0000-02-29T23:00:00-02:00",
    "0001-01-01T00:00:00Z",
    "1600-02-29T12:00:00Z",
    "1900-02-28T23:59:59.999-00:01",
    "1969-12-31T23:59:59Z",
    "1970-01-01T00:00:00+00:01",
    "2000-02-29T00:00:00.5+23:59",
    "2038-01-19T03:14:08Z",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59-00:01",
];

const UNKNOWN_KEYS: [(&str, &str); 12] = [
    ("note", r#""""#),
    ("note", r#""\u00e9 \ud83d\ude00 é 😀""#),
    ("note", r#""\\\"}{,:[]\/\b""#),
    ("note", "-1.5e-3"),
    ("note", "123456789012345678901234567890"),
    ("", "null"),
    ("ID", r#""1""#),
    ("id ", r#""1""#),
    ("customer", "true"),
    ("Time", r#""1999-12-31T23:59:60Z""#),
    ("nested", r#"{"id":"1","customer_id":{},"load_amount":[[]],"time":false}"#),
    ("list", r#"["id",{"id":"2"},[1,[2,[3]]]]"#),
];

const OVERRULED_VALUES: [&str; 8] =
    [r#""4""#, r#""$0.01""#, r#""2000-01-01T00:00:00Z""#, r#""""#, "null", "17", "[]", r#"{"id":"4"}"#];

const BAD_IDS: [&str; 20] = [
    "17",
    "1e3",
    "null",
    "true",
    r#"["5"]"#,
    r#"{"id":"5"}"#,
    r#""""#,
    r#"" ""#,
    r#""12a""#,
    r#""-5""#,
    r#""+7""#,
    r#""1 2""#,
    r#""1\t2""#,
    r#""0x1F""#,
    r#""1.0""#,
    r#""1_000""#,
    r#""12\u0000""#,
    r#""\"5\"""#,
    r#""１２""#,
    r#""\u0663""#,
];

const BAD_AMOUNTS: [&str; 30] = [
    "5.00",
    "5",
    "null",
    r#"["$5.00"]"#,
    r#""""#,
    r#""$""#,
    r#""USD ""#,
    r#""$5""#,
    r#""$5.""#,
    r#""$5.0""#,
    r#""$5.000""#,
    r#""$5.00.00""#,
    r#""$5,00""#,
    r#""$1,000.00""#,
    r#""$1'000.00""#,
    r#""-$5.00""#,
    r#""$-5.00""#,
    r#""$+5.00""#,
    r#""-0.00""#,
    r#""usd5.00""#,
    r#""Usd$5.00""#,
    r#""$usd5.00""#,
    r#""$$5.00""#,
    r#""USDUSD5.00""#,
    r#""$USD$5.00""#,
    r#""EUR5.00""#,
    r#""5.00$""#,
    r#""$1e3.00""#,
    r#""$٣.00""#,
    r#""$５.００""#,
];

const BAD_TIMES: [&str; 34] = [
    "0",
    "null",
    r#"{"time":"2000-01-01T00:00:00Z"}"#,
    r#""""#,
    r#""2000-01-01""#,
    r#""2000-01-01T00:00:00""#,
    r#""2000-01-01T00:00Z""#,
    r#""2000-01-01 00:00:00Z""#,
    r#""2000-01-01_00:00:00Z""#,
    r#""2000-01-01T00:00:00 Z""#,
    r#""2000-01-01T00:00:00.Z""#,
    r#""2000-01-01T00:00:00,5Z""#,
    r#""2000-01-01T00:00:00+01""#,
    r#""2000-01-01T00:00:00+0100""#,
    r#""2000-01-01T00:00:00+24:00""#,
    r#""2000-01-01T00:00:00-01:60""#,
    r#""2000-01-01T00:00:00+01:00Z""#,
    r#""2000-01-01T00:00:00UTC""#,
    r#""2000-01-01T00:00:00ZZ""#,
    r#""1998-12-31T23:59:60Z""#,
    r#""1999-01-01T00:59:60.5+01:00""#,
    r#""2000-01-01T24:00:00Z""#,
    r#""2000-01-01T00:60:00Z""#,
    r#""2000-00-01T00:00:00Z""#,
    r#""2000-13-01T00:00:00Z""#,
    r#""2000-01-00T00:00:00Z""#,
    r#""2000-02-30T00:00:00Z""#,
    r#""2000-04-31T00:00:00Z""#,
    r#""2001-02-29T00:00:00Z""#,
    r#""2100-02-29T00:00:00Z""#,
    r#""20000-01-01T00:00:00Z""#,
    r#""-2000-01-01T00:00:00Z""#,
    r#""2000-1-1T0:0:0Z""#,
    r#""２０００-01-01T00:00:00Z""#,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
        for make in [generate, generate_plain] {
            assert_eq!(make(7, 500), make(7, 500));
            assert_ne!(make(7, 500), make(8, 500));
        }
    }

    #[test]
    fn as_many_lines_come_out_as_were_asked_for() {
        for make in [generate, generate_plain] {
            for lines in [0, 1, 2, 63, 3_000] {
                let output = make(1, lines);
                assert_eq!(output.iter().filter(|byte| **byte == b'\n').count(), lines);
                assert!(output.is_empty() || output.ends_with(b"\n"));
            }
        }
    }

    #[test]
    fn dates_are_right_around_leap_days_and_before_1970() {
        let rows = [
            (-719_528, (0, 1, 1)),
            (-1, (1969, 12, 31)),
            (0, (1970, 1, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
            (2_932_896, (9999, 12, 31)),
        ];
        for (days, date) in rows {
            assert_eq!(civil_date(days), date);
        }
    }
}
