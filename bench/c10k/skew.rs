//! First-to-last subscriber skew: how long one tick takes from the first connection that has it to the last.
//!
//! Ticks are sampled by a hash of topic and sequence, so that all threads choose the same ones without a word between
//! them. Each thread keeps the earliest and the latest time of its own connections for a sample, and the threads are put
//! together after the run. When a table is full, every other sample goes and half as many are taken from then on: what is
//! left is spread over the whole window, however long that is. Under load, most ticks cost one multiplication.
//!
//! The connections of one thread are read one after another: the client's own time is in the skew, too.

use hdrhistogram::Histogram;
use rustc_hash::FxHashMap;

/// Samples that one thread keeps: about 200 KB, which stay in a core's second-level cache.
const SAMPLES_MAX: usize = 4_096;
/// 2^64 divided by the golden ratio: sequences in a row are spread evenly (Knuth, volume 3, section 6.4).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// When the connections of one thread, or of all, had one tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    first_ns: u64,
    last_ns: u64,
    connections: u64,
}

/// The samples of one thread, or of all.
///
/// Invariant: at most [`SAMPLES_MAX`] samples, each of a tick that `halvings` chooses.
#[derive(Debug, Default)]
pub struct Skew {
    samples: FxHashMap<(u32, u64), Sample>,
    /// One tick in 2^halvings is sampled.
    halvings: u32,
}

/// What the samples say.
#[derive(Debug)]
pub struct Spread {
    /// One tick in so many was sampled.
    pub one_in: u64,
    /// Ticks sampled, those that not all connections had included.
    pub sampled: u64,
    /// From the first connection to the last, of the samples that all connections had.
    pub skew_ns: Histogram<u64>,
}

impl Skew {
    /// A connection had a tick at `received_ns`. Cost: a multiplication, and a look-up for one that is sampled.
    #[inline]
    pub fn saw(&mut self, topic_id: u32, sequence: u64, received_ns: u64) {
        if is_chosen(topic_id, sequence, self.halvings) {
            self.take(
                (topic_id, sequence),
                Sample { first_ns: received_ns, last_ns: received_ns, connections: 1 },
            );
        }
    }

    fn take(&mut self, tick: (u32, u64), sample: Sample) {
        if let Some(known) = self.samples.get_mut(&tick) {
            known.first_ns = known.first_ns.min(sample.first_ns);
            known.last_ns = known.last_ns.max(sample.last_ns);
            known.connections += sample.connections;
            return;
        }
        while self.samples.len() >= SAMPLES_MAX && self.halvings < u64::BITS {
            self.thin(self.halvings + 1);
        }
        if is_chosen(tick.0, tick.1, self.halvings) {
            self.samples.insert(tick, sample);
        }
    }

    fn thin(&mut self, halvings: u32) {
        self.halvings = halvings;
        self.samples.retain(|&(topic_id, sequence), _| is_chosen(topic_id, sequence, halvings));
    }

    /// Adds what another thread's connections had: of the ticks that both threads sampled to the end.
    pub fn add(&mut self, other: &Skew) {
        if other.halvings > self.halvings {
            self.thin(other.halvings);
        }
        for (&tick, &sample) in &other.samples {
            if is_chosen(tick.0, tick.1, self.halvings) {
                self.take(tick, sample);
            }
        }
    }

    /// The skew of the ticks that all `connections` had. `None` where no tick was sampled: nothing came, or nothing that
    /// has a sequence.
    ///
    /// # Errors
    /// Never in practice: the histogram's bounds are constants.
    pub fn spread(&self, connections: u64, empty: Histogram<u64>) -> Option<Spread> {
        if self.samples.is_empty() {
            return None;
        }
        let mut skew_ns = empty;
        for sample in self.samples.values().filter(|sample| sample.connections == connections) {
            skew_ns.saturating_record(sample.last_ns - sample.first_ns);
        }
        let one_in = 1_u64.checked_shl(self.halvings).unwrap_or(u64::MAX);
        Some(Spread { one_in, sampled: self.samples.len() as u64, skew_ns })
    }
}

/// Whether a tick is one of one in 2^halvings: what `n + 1` halvings choose, `n` choose as well.
#[inline]
fn is_chosen(topic_id: u32, sequence: u64, halvings: u32) -> bool {
    (sequence ^ (u64::from(topic_id) << 40)).wrapping_mul(SPREAD).leading_zeros() >= halvings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(skew: &Skew, connections: u64) -> Option<Spread> {
        skew.spread(connections, Histogram::new_with_bounds(1, 600_000_000_000, 3).unwrap())
    }

    #[test]
    fn only_ticks_that_all_connections_had_are_counted() {
        let mut skew = Skew::default();
        assert!(spread(&skew, 3).is_none());
        for (sequence, times_ns) in [(7, vec![300, 100, 200]), (8, vec![500, 900])] {
            times_ns.iter().for_each(|&received_ns| skew.saw(5, sequence, received_ns));
        }
        let found = spread(&skew, 3).unwrap();
        assert_eq!((found.one_in, found.sampled, found.skew_ns.len(), found.skew_ns.max()), (1, 2, 1, 200));
    }

    #[test]
    fn a_full_table_goes_on_with_fewer_samples_over_all_that_came() {
        const TICKS: u64 = 1_000_000;
        let mut skew = Skew::default();
        for sequence in 1..=TICKS {
            skew.saw(9, sequence, sequence);
            skew.saw(9, sequence, sequence + 40);
        }
        let found = spread(&skew, 2).unwrap();
        assert!(skew.samples.len() <= SAMPLES_MAX && skew.samples.len() > SAMPLES_MAX / 4);
        assert_eq!(found.skew_ns.len(), found.sampled, "a sample that stays was never left out before");
        assert!(
            found.one_in * found.sampled > TICKS * 9 / 10 && found.one_in * found.sampled < TICKS * 11 / 10
        );
        let late = skew.samples.keys().filter(|(_, sequence)| *sequence > TICKS / 2).count() as u64;
        assert!(late > found.sampled * 2 / 5 && late < found.sampled * 3 / 5, "{late} of {}", found.sampled);
    }

    #[test]
    fn threads_agree_on_their_samples_whatever_each_saw_first() {
        let (mut one, mut other) = (Skew::default(), Skew::default());
        for sequence in 1..=100_000 {
            one.saw(1, sequence, 1_000 * sequence);
        }
        for sequence in (60_000..=100_000).rev() {
            other.saw(1, sequence, 1_000 * sequence + 77);
        }
        assert!(one.halvings > other.halvings);
        other.add(&one);
        let found = spread(&other, 2).unwrap();
        assert!(found.skew_ns.len() > 500, "{}", found.skew_ns.len());
        assert_eq!((found.skew_ns.min(), found.skew_ns.max()), (77, 77));
    }
}
