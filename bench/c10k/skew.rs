//! Skew between subscribers: the time from the first connection that receives a tick to the last.
//!
//! Ticks are sampled by a hash of topic and sequence, so all threads choose the same ones without communicating. Each
//! thread keeps the earliest and latest time at which its own connections received a sample; the threads' samples are
//! merged after the run. When a table is full, half of its samples are discarded and the sampling rate is halved, so the
//! samples cover the whole window, however long it is. Under load, most ticks cost one multiplication.
//!
//! A thread reads its connections one after another, so the skew includes the client's own time.

use hdrhistogram::Histogram;
use rustc_hash::FxHashMap;

/// Most samples per thread: about 200 KB, which fit in a core's L2 cache.
const SAMPLES_MAX: usize = 4_096;
/// 2^64 divided by the golden ratio: consecutive sequences hash evenly (Knuth, volume 3, section 6.4).
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// When the connections of one thread, or of all threads, received one tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    first_ns: u64,
    last_ns: u64,
    connections: u64,
}

/// The samples of one thread, or of all threads.
///
/// Invariant: at most [`SAMPLES_MAX`] samples, all of ticks that [`is_sampled`] selects for `halvings`.
#[derive(Debug, Default)]
pub struct Skew {
    samples: FxHashMap<(u32, u64), Sample>,
    /// One tick in 2^halvings is sampled.
    halvings: u32,
}

/// Result of the sampling.
#[derive(Debug)]
pub struct SkewSummary {
    /// One tick in this many was sampled.
    pub one_in: u64,
    /// Ticks sampled, including those that not all connections received.
    pub sampled: u64,
    /// From the first connection to the last, over the samples that all connections received.
    pub skew_ns: Histogram<u64>,
}

impl Skew {
    /// Records that a connection received a tick.
    ///
    /// Cost: a multiplication, plus a lookup if the tick is sampled.
    #[inline]
    pub fn record(&mut self, topic_id: u32, sequence: u64, received_ns: u64) {
        if is_sampled(topic_id, sequence, self.halvings) {
            self.merge(
                (topic_id, sequence),
                Sample { first_ns: received_ns, last_ns: received_ns, connections: 1 },
            );
        }
    }

    fn merge(&mut self, tick: (u32, u64), sample: Sample) {
        if let Some(known) = self.samples.get_mut(&tick) {
            known.first_ns = known.first_ns.min(sample.first_ns);
            known.last_ns = known.last_ns.max(sample.last_ns);
            known.connections += sample.connections;
            return;
        }
        while self.samples.len() >= SAMPLES_MAX && self.halvings < u64::BITS {
            self.reduce_to(self.halvings + 1);
        }
        if is_sampled(tick.0, tick.1, self.halvings) {
            self.samples.insert(tick, sample);
        }
    }

    /// Lowers the sampling rate and discards the samples it no longer selects.
    fn reduce_to(&mut self, halvings: u32) {
        self.halvings = halvings;
        self.samples.retain(|&(topic_id, sequence), _| is_sampled(topic_id, sequence, halvings));
    }

    /// Adds another thread's samples of the ticks that both threads still sample.
    pub fn add(&mut self, other: &Skew) {
        if other.halvings > self.halvings {
            self.reduce_to(other.halvings);
        }
        for (&tick, &sample) in &other.samples {
            if is_sampled(tick.0, tick.1, self.halvings) {
                self.merge(tick, sample);
            }
        }
    }

    /// The skew of the ticks that all `connections` received, recorded in `empty`.
    ///
    /// `None` if no tick was sampled: none came, or none with a sequence.
    pub fn summary(&self, connections: u64, empty: Histogram<u64>) -> Option<SkewSummary> {
        if self.samples.is_empty() {
            return None;
        }
        let mut skew_ns = empty;
        for sample in self.samples.values().filter(|sample| sample.connections == connections) {
            skew_ns.saturating_record(sample.last_ns - sample.first_ns);
        }
        let one_in = 1_u64.checked_shl(self.halvings).unwrap_or(u64::MAX);
        Some(SkewSummary { one_in, sampled: self.samples.len() as u64, skew_ns })
    }
}

/// Whether a tick is among the one in 2^halvings that are sampled.
///
/// Each further halving selects a subset of the ticks before.
#[inline]
fn is_sampled(topic_id: u32, sequence: u64, halvings: u32) -> bool {
    (sequence ^ (u64::from(topic_id) << 40)).wrapping_mul(GOLDEN_RATIO).leading_zeros() >= halvings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(skew: &Skew, connections: u64) -> Option<SkewSummary> {
        skew.summary(connections, crate::common::histogram::histogram().unwrap())
    }

    #[test]
    fn only_ticks_that_all_connections_received_are_counted() {
        let mut skew = Skew::default();
        assert!(summary(&skew, 3).is_none());
        for (sequence, times_ns) in [(7, vec![300, 100, 200]), (8, vec![500, 900])] {
            times_ns.iter().for_each(|&received_ns| skew.record(5, sequence, received_ns));
        }
        let found = summary(&skew, 3).unwrap();
        assert_eq!((found.one_in, found.sampled, found.skew_ns.len(), found.skew_ns.max()), (1, 2, 1, 200));
    }

    #[test]
    fn a_full_table_keeps_fewer_samples_over_the_whole_run() {
        const TICKS: u64 = 1_000_000;
        let mut skew = Skew::default();
        for sequence in 1..=TICKS {
            skew.record(9, sequence, sequence);
            skew.record(9, sequence, sequence + 40);
        }
        let found = summary(&skew, 2).unwrap();
        assert!(skew.samples.len() <= SAMPLES_MAX && skew.samples.len() > SAMPLES_MAX / 4);
        assert_eq!(found.skew_ns.len(), found.sampled, "a sample that is kept was always sampled");
        assert!(
            found.one_in * found.sampled > TICKS * 9 / 10 && found.one_in * found.sampled < TICKS * 11 / 10
        );
        let late = skew.samples.keys().filter(|(_, sequence)| *sequence > TICKS / 2).count() as u64;
        assert!(late > found.sampled * 2 / 5 && late < found.sampled * 3 / 5, "{late} of {}", found.sampled);
    }

    #[test]
    fn threads_agree_on_their_samples_in_any_order() {
        let (mut one, mut other) = (Skew::default(), Skew::default());
        for sequence in 1..=100_000 {
            one.record(1, sequence, 1_000 * sequence);
        }
        for sequence in (60_000..=100_000).rev() {
            other.record(1, sequence, 1_000 * sequence + 77);
        }
        assert!(one.halvings > other.halvings);
        other.add(&one);
        let found = summary(&other, 2).unwrap();
        assert!(found.skew_ns.len() > 500, "{}", found.skew_ns.len());
        assert_eq!((found.skew_ns.min(), found.skew_ns.max()), (77, 77));
    }
}
