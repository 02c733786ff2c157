//! The rules, on the lane's state.
//!
//! Keys: `i:ID` for each canonical id; `d:CUSTOMER:DAY` holds attempts and accepted cents; `w:CUSTOMER:MONDAY`
//! accepted cents; `p:DAY` that a prime id was accepted. Numbers are big-endian u64.

use cofferdam::StagedMap;

use crate::line::Load;

/// Which rule set decides.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// The published reference.
    Baseline,
    /// Mondays count double, prime ids are limited.
    Experiment,
}

const ATTEMPTS_A_DAY: u64 = 3;
const DAY_CENTS: u64 = 500_000;
const WEEK_CENTS: u64 = 2_000_000;
const PRIME_CENTS: u64 = 999_900;

/// Decides one load and stages what it changes.
pub fn accepts(state: &mut StagedMap, load: &Load, rules: Rules) -> bool {
    let id_key = format!("i:{}", load.id);
    if state.get(&id_key).is_some() {
        return false;
    }
    state.set(&id_key, *b"");
    let weekday = (load.day + 3).rem_euclid(7);
    let day_key = format!("d:{}:{}", load.customer, load.day);
    let [attempts, day_cents] = state.get(&day_key).map_or([0, 0], numbers);
    let set_day = |state: &mut StagedMap, cents| state.set(&day_key, bytes([attempts + 1, cents]));
    set_day(state, day_cents);
    if attempts >= ATTEMPTS_A_DAY {
        return false;
    }
    let doubled = rules == Rules::Experiment && weekday == 0;
    let cents = if doubled { load.cents.saturating_mul(2) } else { load.cents };
    let prime_key = format!("p:{}", load.day);
    let is_prime = rules == Rules::Experiment && is_prime(load.id);
    if is_prime && (cents > PRIME_CENTS || state.get(&prime_key).is_some()) {
        return false;
    }
    let week_key = format!("w:{}:{}", load.customer, load.day - weekday);
    let [week_cents] = state.get(&week_key).map_or([0], numbers);
    let (day_cents, week_cents) = (day_cents.saturating_add(cents), week_cents.saturating_add(cents));
    if day_cents > DAY_CENTS || week_cents > WEEK_CENTS {
        return false;
    }
    set_day(state, day_cents);
    state.set(&week_key, bytes([week_cents]));
    if is_prime {
        state.set(&prime_key, *b"");
    }
    true
}

fn numbers<const N: usize>(value: &[u8]) -> [u64; N] {
    let mut chunks = value.chunks(8).map(|chunk| chunk.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)));
    std::array::from_fn(|_| chunks.next().unwrap_or(0))
}

fn bytes<const N: usize>(numbers: [u64; N]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// True if the decimal digits are a prime number below 2^64. Ids beyond that are taken as not prime: none
/// was ever seen, and a proof would cost more than the decision is worth.
fn is_prime(digits: &str) -> bool {
    let Ok(n) = digits.trim_start_matches('0').parse::<u64>() else { return false };
    // The first twelve primes decide every 64-bit number (Sorenson, Webster 2015).
    const WITNESSES: [u64; 12] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37];
    if n < 2 {
        return false;
    }
    if let Some(divisor) = WITNESSES.iter().find(|divisor| n % **divisor == 0) {
        return n == *divisor;
    }
    let multiply = |a: u64, b: u64| (u128::from(a) * u128::from(b) % u128::from(n)) as u64;
    let power = |base: u64, mut exponent: u64| {
        let (mut base, mut result) = (base % n, 1);
        while exponent > 0 {
            if exponent & 1 == 1 {
                result = multiply(result, base);
            }
            base = multiply(base, base);
            exponent >>= 1;
        }
        result
    };
    let twos = (n - 1).trailing_zeros();
    WITNESSES.iter().all(|witness| {
        let mut x = power(*witness, (n - 1) >> twos);
        if x == 1 || x == n - 1 {
            return true;
        }
        (1..twos).any(|_| {
            x = multiply(x, x);
            x == n - 1
        })
    })
}
