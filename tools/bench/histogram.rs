//! Latencies in fixed memory.
//!
//! Recording must not allocate and must not grow with the run, so values are counted in buckets: exact below
//! 128 us, then 64 buckets for each power of two, which is an error below 1.6 %. The maximum is kept exactly.

use std::time::Duration;

/// Values below this have a bucket each.
const EXACT: u64 = 128;
/// Buckets for each power of two above.
const STEPS: u64 = 64;
/// 2^32 us are 71 minutes, longer than any run; what is longer is counted as this.
const LONGEST_US: u64 = (1 << 32) - 1;
const BUCKETS: usize = bucket_of(LONGEST_US) + 1;

/// Counts of latencies, from which percentiles are read.
pub struct Histogram {
    counts: Box<[u64]>,
    total: u64,
    max_us: u64,
}

impl Histogram {
    pub fn new() -> Histogram {
        Histogram { counts: vec![0; BUCKETS].into_boxed_slice(), total: 0, max_us: 0 }
    }

    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
        self.max_us = 0;
    }

    pub fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(LONGEST_US).min(LONGEST_US);
        self.counts[bucket_of(us)] += 1;
        self.total += 1;
        self.max_us = self.max_us.max(us);
    }

    /// The smallest recorded latency that `percent` of all do not exceed; `None` iff nothing was recorded.
    pub fn percentile_us(&self, percent: u64) -> Option<u64> {
        if self.total == 0 {
            return None;
        }
        let rank = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(lowest_of(bucket).min(self.max_us));
            }
        }
        Some(self.max_us)
    }

    /// `None` iff nothing was recorded.
    pub fn max_us(&self) -> Option<u64> {
        (self.total > 0).then_some(self.max_us)
    }
}

const fn bucket_of(us: u64) -> usize {
    if us < EXACT {
        return us as usize;
    }
    // The top seven bits choose the bucket; the first of them is always set.
    let shift = (us.ilog2() - STEPS.ilog2()) as u64;
    (EXACT + (shift - 1) * STEPS + (us >> shift) - STEPS) as usize
}

const fn lowest_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < EXACT {
        return bucket;
    }
    let shift = (bucket - EXACT) / STEPS + 1;
    ((bucket - EXACT) % STEPS + STEPS) << shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_the_bucket_that_begins_at_or_below_it() {
        let mut us = 0;
        while us < LONGEST_US {
            let bucket = bucket_of(us);
            assert!(lowest_of(bucket) <= us, "{us}");
            assert!(bucket + 1 == BUCKETS || us < lowest_of(bucket + 1), "{us}");
            us += 1 + us / 1000;
        }
    }

    #[test]
    fn percentiles_of_one_to_a_hundred_are_the_numbers_themselves() {
        let mut histogram = Histogram::new();
        for us in 1..=100 {
            histogram.record(Duration::from_micros(us));
        }
        assert_eq!(histogram.percentile_us(50), Some(50));
        assert_eq!(histogram.percentile_us(99), Some(99));
        assert_eq!(histogram.max_us(), Some(100));
    }

    #[test]
    fn an_empty_histogram_has_no_percentile() {
        assert_eq!(Histogram::new().percentile_us(50), None);
        assert_eq!(Histogram::new().max_us(), None);
    }
}
