//! How long a shard's turns took: a histogram with fixed buckets, read from any thread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of the buckets, inclusive, microseconds. One more bucket counts the longer turns.
pub const BOUNDS_US: [u64; 9] = [100, 1_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000];
/// A longer turn is slow: people notice a delay of 100 ms, and heartbeats and scrapes start to be late.
pub const SLOW_NS: u64 = 100_000_000;

const _: () = assert!(BOUNDS_US[6] * 1_000 == SLOW_NS, "a turn is slow beyond the bound of a bucket");

/// The turns of one shard by their length. One writer: the shard.
///
/// A turn's length is the time the shard worked, not counting sleep.
#[derive(Debug, Default)]
pub struct TurnTimes {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

impl TurnTimes {
    /// Adds a turn. Only the owning shard may call it: two loads and two stores. Nearly all turns take one comparison.
    pub fn record(&self, turn_ns: u64) {
        let at = BOUNDS_US.iter().position(|bound_us| turn_ns <= bound_us * 1_000);
        let bucket = &self.buckets[at.unwrap_or(BOUNDS_US.len())];
        for (value, more) in [(bucket, 1), (&self.sum_ns, turn_ns)] {
            value.store(value.load(Relaxed).wrapping_add(more), Relaxed);
        }
    }

    /// The sum of all turns.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns.load(Relaxed)
    }

    /// The number of turns no longer than each of [`BOUNDS_US`], and of all turns.
    pub fn cumulative(&self) -> ([u64; BOUNDS_US.len()], u64) {
        let mut sum = 0;
        let mut counts = [0; BOUNDS_US.len()];
        for (count, bucket) in counts.iter_mut().zip(&self.buckets) {
            sum += bucket.load(Relaxed);
            *count = sum;
        }
        (counts, sum + self.buckets[BOUNDS_US.len()].load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_counts_in_the_first_bucket_that_holds_it_and_in_all_longer_ones() {
        let times = TurnTimes::default();
        for turn_ns in [0, 100_000, 100_001, SLOW_NS, SLOW_NS + 1, 1_000_000_000, 1_000_000_001] {
            times.record(turn_ns);
        }
        assert_eq!(times.cumulative(), ([2, 3, 3, 3, 3, 3, 4, 5, 6], 7));
    }
}
