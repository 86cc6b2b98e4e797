//! Token buckets: rate limits.

use crate::limits::BURST_NS;

/// A rate limit: tokens per second, and the maximum burst after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// At least 1.
    per_second: u64,
    /// One second, multiplied by the number of equal shares of the limit.
    second_ns: u64,
    /// Time that an empty bucket takes to fill.
    burst_ns: u64,
}

impl Pace {
    /// The pace of one of `shares` equal parts of `per_second`, with a burst of one second's tokens, at least one; `None` for 0,
    /// which means no limit. The time per token is rounded to a whole nanosecond: at a million per second the rate is exact to
    /// 0.1 %.
    /// to 0.1 %.
    pub fn new(per_second: u32, shares: u16) -> Option<Pace> {
        Pace::with_burst(per_second.into(), shares, 0)
    }

    /// Like [`Pace::new`], with a burst of `burst` tokens, but at least one second's.
    pub fn with_burst(per_second: u64, shares: u16, burst: u64) -> Option<Pace> {
        (per_second > 0).then(|| {
            let pace =
                Pace { per_second, second_ns: 1_000_000_000 * u64::from(shares.max(1)), burst_ns: BURST_NS };
            Pace { burst_ns: pace.time_ns(burst).max(BURST_NS), ..pace }
        })
    }

    /// Time in which this many tokens accumulate, nanoseconds; at least 1.
    fn time_ns(self, tokens: u64) -> u64 {
        let half = self.per_second / 2;
        let time_ns = match tokens.checked_mul(self.second_ns).and_then(|product| product.checked_add(half)) {
            Some(product) => product / self.per_second,
            // More than any burst that a client could use up.
            None => u64::MAX / 2,
        };
        time_ns.max(1)
    }
}

/// A token bucket. 8 bytes, no timer. The default bucket is full.
///
/// The generic cell rate algorithm (ITU-T I.371, annex A): instead of a number of tokens, it stores the time at which the bucket
/// will be full again. Times are CLOCK_MONOTONIC: a time that goes back gives no tokens, and one that jumps ahead gives at most a
/// burst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    full_again_ns: u64,
}

impl Bucket {
    /// Takes a token, and returns whether there was one.
    pub fn take(&mut self, pace: Pace, now_ns: u64) -> bool {
        let takes = self.has_tokens(pace, 1, now_ns);
        if takes {
            self.spend(pace, now_ns);
        }
        takes
    }

    /// Whether the bucket has a token if its burst is `burst` tokens instead of its pace's.
    pub fn has_token(&self, pace: Pace, burst: u32, now_ns: u64) -> bool {
        self.has_room(pace.time_ns(1), pace.time_ns(burst.into()), now_ns)
    }

    /// Whether the bucket has this many tokens. A full bucket always has enough: taking more than a burst leaves a debt, which is
    /// paid off at the pace.
    pub fn has_tokens(&self, pace: Pace, tokens: u64, now_ns: u64) -> bool {
        tokens == 0 || self.has_room(pace.time_ns(tokens), pace.burst_ns, now_ns)
    }

    /// Takes a token, which must be available.
    pub fn spend(&mut self, pace: Pace, now_ns: u64) {
        self.spend_tokens(pace, 1, now_ns);
    }

    /// Takes this many tokens, which must be available.
    pub fn spend_tokens(&mut self, pace: Pace, tokens: u64, now_ns: u64) {
        if tokens > 0 {
            self.full_again_ns = self.full_again_ns.max(now_ns).saturating_add(pace.time_ns(tokens));
        }
    }

    /// When the bucket will be full again if nobody takes a token; in the past if it is full.
    pub fn full_again_ns(&self) -> u64 {
        self.full_again_ns
    }

    fn has_room(&self, time_ns: u64, burst_ns: u64, now_ns: u64) -> bool {
        let then_ns = self.full_again_ns.max(now_ns).saturating_add(time_ns);
        then_ns - now_ns <= burst_ns.max(time_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::RATE_HIGHEST;

    const SECOND: u64 = 1_000_000_000;

    /// Number of tokens taken one by one until there is none, at most `most`.
    fn taken(bucket: &mut Bucket, pace: Pace, now_ns: u64, most: usize) -> usize {
        (0..most).take_while(|_| bucket.take(pace, now_ns)).count()
    }

    #[test]
    fn a_bucket_gives_one_second_of_tokens_at_once_and_then_its_rate() {
        for (per_second, shares, burst) in [(10, 1, 10), (10, 4, 2), (1, 1, 1), (1, 4, 1), (1_000, 1, 1_000)]
        {
            let (pace, mut bucket) = (Pace::new(per_second, shares).unwrap(), Bucket::default());
            let start = 5 * SECOND;
            assert_eq!((0..2_000).filter(|_| bucket.take(pace, start)).count(), burst, "{per_second}");
            // Asked a thousand times a second for ten seconds, it gives exactly its rate.
            let taken = (1..=10_000).filter(|n| bucket.take(pace, start + n * SECOND / 1_000)).count() as u64;
            let expected = 10 * u64::from(per_second) / u64::from(shares);
            assert!((expected.saturating_sub(1)..=expected + 1).contains(&taken), "{taken} of {expected}");
        }
    }

    #[test]
    fn a_burst_may_be_longer_than_a_second_but_not_shorter() {
        for (burst, wanted) in [(0, 10), (1, 10), (10, 10), (25, 25)] {
            let (pace, mut bucket) = (Pace::with_burst(10, 1, burst).unwrap(), Bucket::default());
            assert_eq!(taken(&mut bucket, pace, SECOND, 100), wanted);
            assert_eq!(taken(&mut bucket, pace, 2 * SECOND, 100), 10, "then the rate");
            assert_eq!(taken(&mut bucket, pace, 9_000 * SECOND, 100), wanted, "after a pause");
        }
    }

    #[test]
    fn a_clock_that_jumps_ahead_gives_a_burst_and_one_that_goes_back_gives_nothing() {
        let (pace, mut bucket) = (Pace::new(5, 1).unwrap(), Bucket::default());
        for round in 1..4 {
            let now = round * 1_000 * SECOND;
            assert_eq!(taken(&mut bucket, pace, now, 20), 5);
        }
        for now in [0, 2_000 * SECOND, 3_000 * SECOND] {
            assert_eq!(taken(&mut bucket, pace, now, 20), 0, "{now}");
        }
        assert_eq!(taken(&mut bucket, pace, 3_001 * SECOND, 20), 5);
        assert_eq!(taken(&mut bucket, pace, u64::MAX, 1), 1, "the end of time overflows nothing");
    }

    #[test]
    fn a_rate_of_0_is_no_limit_and_the_highest_rates_are_exact() {
        assert_eq!(Pace::new(0, 1), None);
        assert_eq!(Pace::with_burst(0, 1, 5), None);
        let pace = Pace::new(RATE_HIGHEST, 1).unwrap();
        assert_eq!(SECOND / pace.time_ns(1), u64::from(RATE_HIGHEST));
        // Bytes accumulate faster than one per nanosecond.
        let pace = Pace::with_burst(40_000_000_000, 1, 0).unwrap();
        assert_eq!(pace.time_ns(400_000), 10_000);
        let (mut bucket, mut bytes) = (Bucket::default(), 0);
        for now in (SECOND..2 * SECOND).step_by(1_000_000) {
            while bucket.has_tokens(pace, 1 << 20, now) {
                bucket.spend_tokens(pace, 1 << 20, now);
                bytes += 1 << 20;
            }
        }
        assert!((79_900_000_000..80_100_000_000_u64).contains(&bytes), "a burst and a second: {bytes}");
        let pace = Pace::with_burst(u64::MAX, u16::MAX, u64::MAX).unwrap();
        assert!(taken(&mut Bucket::default(), pace, SECOND, 1_000) == 1_000);
        let slowest = Pace::new(1, u16::MAX).unwrap();
        assert_eq!(taken(&mut Bucket::default(), slowest, SECOND, 5), 1);
    }

    #[test]
    fn what_takes_more_than_a_burst_leaves_a_debt() {
        let (pace, mut bucket) = (Pace::with_burst(100, 1, 0).unwrap(), Bucket::default());
        assert!(bucket.has_tokens(pace, 1_000, SECOND), "a full bucket has enough");
        bucket.spend_tokens(pace, 1_000, SECOND);
        assert!(!bucket.has_tokens(pace, 1, 10 * SECOND));
        assert!(bucket.has_tokens(pace, 90, 11 * SECOND) && !bucket.has_tokens(pace, 101, 11 * SECOND - 1));
        assert!(bucket.has_tokens(pace, 0, 0), "nothing is always there");
        assert_eq!(bucket.full_again_ns(), 11 * SECOND);
    }
}
