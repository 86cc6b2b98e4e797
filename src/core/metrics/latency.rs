//! Sampled latency of ticks through the server: a shard's histograms, and the table for the operator.
//!
//! Costs one branch a tick, and two samples and one clock reading a turn that sends. Times are CLOCK_REALTIME, because
//! ticks carry their ingest time on that clock: setting the clock back shows as the lowest latency, setting it forward as
//! a latency that is too high.

use std::fmt::Write;

use hdrhistogram::Histogram;

use crate::{
    limits::{LATENCY_DIGITS, LATENCY_US_HIGHEST, LATENCY_US_LOWEST},
    metrics::counters::{Counter, Counters},
};

/// The point up to which a latency is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The tick's home gave it a sequence.
    Sequenced,
    /// The turn's SENDs were submitted to the kernel.
    Sent,
}

impl Until {
    /// Both points.
    pub const ALL: [Until; 2] = [Until::Sequenced, Until::Sent];

    /// Its name in tables, metrics and requests.
    pub fn name(self) -> &'static str {
        match self {
            Until::Sequenced => "sequenced",
            Until::Sent => "sent",
        }
    }
}

/// One shard's latency samples. 40 KiB, allocated once; it never grows.
#[derive(Clone, Debug)]
pub struct Latency {
    /// Ingest to sequence, for the first tick of each turn.
    sequenced: Histogram<u64>,
    /// Ingest to SENDs submitted, for the first tick delivered in each turn.
    sent: Histogram<u64>,
    sequenced_this_turn: bool,
    /// Ingest time of the sampled tick; 0: none.
    sampled_ns: u64,
    /// Sessions that were still ready when the sampled tick's turn had used up its SENDs, and that have had no SEND since.
    /// The tick is sampled until all have had one.
    behind: usize,
}

impl Default for Latency {
    fn default() -> Self {
        Latency {
            sequenced: histogram(),
            sent: histogram(),
            sequenced_this_turn: false,
            sampled_ns: 0,
            behind: 0,
        }
    }
}

/// An empty histogram, 20 KiB.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(LATENCY_US_LOWEST, LATENCY_US_HIGHEST, LATENCY_DIGITS)
        .unwrap_or_else(|error| unreachable!("the bounds are constants: {error}"))
}

/// Records a latency; one outside the range counts as the nearest bound.
fn record(histogram: &mut Histogram<u64>, from_ns: u64, to_ns: u64) {
    let us = to_ns.saturating_sub(from_ns) / 1_000;
    histogram.saturating_record(us.max(LATENCY_US_LOWEST));
}

impl Latency {
    /// Notes that a tick ingested at `ingest_time_ns` got its sequence in the turn that began at `now_ns`, both
    /// CLOCK_REALTIME. Records only the first tick of a turn.
    pub fn sequenced(&mut self, ingest_time_ns: u64, now_ns: u64) {
        if !self.sequenced_this_turn {
            self.sequenced_this_turn = true;
            record(&mut self.sequenced, ingest_time_ns, now_ns);
        }
    }

    /// Whether the next tick delivered to this shard's sessions should be sampled.
    pub fn wants_sample(&self) -> bool {
        self.sampled_ns == 0
    }

    /// Notes that a tick ingested at `ingest_time_ns` (CLOCK_REALTIME) was delivered to this shard's sessions.
    pub fn sample(&mut self, ingest_time_ns: u64) {
        if self.sampled_ns == 0 {
            self.sampled_ns = ingest_time_ns;
        }
    }

    /// Whether [`Latency::end_turn`] needs the time, so that the caller can save reading the clock.
    pub fn wants_time(&self) -> bool {
        self.sampled_ns != 0
    }

    /// Ends a turn in which ticks wait for the latency budget: the sampled one is recorded when it leaves.
    pub fn end_held_turn(&mut self) {
        self.sequenced_this_turn = false;
    }

    /// Ends a turn that had submitted `sends` SENDs by `now_ns` (CLOCK_REALTIME; any value unless [`Latency::wants_time`]),
    /// while `ready` sessions wait for the next turn.
    ///
    /// A tick for more sessions than one turn serves is sampled in each turn it needs. A tick whose turn sends nothing,
    /// because all its sessions have a SEND under way, is not sampled.
    pub fn end_turn(&mut self, sends: usize, ready: usize, now_ns: u64) {
        self.sequenced_this_turn = false;
        if self.sampled_ns == 0 {
            return;
        }
        if sends > 0 {
            record(&mut self.sent, self.sampled_ns, now_ns);
        }
        self.behind = match (self.behind, sends) {
            (_, 0) => 0,
            (0, _) => ready,
            (behind, sends) => behind.saturating_sub(sends).min(ready),
        };
        if self.behind == 0 {
            self.sampled_ns = 0;
        }
    }

    /// The samples in microseconds.
    pub fn histogram(&self, until: Until) -> &Histogram<u64> {
        match until {
            Until::Sequenced => &self.sequenced,
            Until::Sent => &self.sent,
        }
    }

    /// Adds another shard's samples.
    pub fn merge(&mut self, other: &Latency) {
        for (own, others) in [(&mut self.sequenced, &other.sequenced), (&mut self.sent, &other.sent)] {
            let added = own.add(others);
            debug_assert!(added.is_ok(), "all histograms have the same bounds");
        }
    }
}

/// The percentage of time that a shard spent working; `None` before its first turn has ended.
pub fn busy_percent(counters: &Counters) -> Option<f64> {
    let (busy, idle) = (counters.value(Counter::BusyNs), counters.value(Counter::IdleNs));
    let total = busy.saturating_add(idle);
    (total > 0).then(|| busy as f64 * 100.0 / total as f64)
}

/// The latency table for shards given as `(shard, busy percentage, samples)`, with a sum if there are several.
///
/// In microseconds. Each line ends with a line break.
pub fn table(shards: &[(usize, Option<f64>, &Latency)]) -> String {
    let mut text = String::from(
        "latency since the start, microseconds, one tick a turn: from its receipt until it was\n\
         shard   busy  until         samples       p50       p90       p99     p99.9       max\n",
    );
    let mut all = Latency::default();
    for (shard, busy, latency) in shards {
        let busy = busy.map_or("-".into(), |percent| format!("{percent:.1}%"));
        lines(&mut text, &shard.to_string(), &busy, latency);
        all.merge(latency);
    }
    if shards.len() > 1 {
        lines(&mut text, "all", "", &all);
    }
    text
}

fn lines(text: &mut String, shard: &str, busy: &str, latency: &Latency) {
    for until in Until::ALL {
        let histogram = latency.histogram(until);
        let (shard, busy) = if until == Until::Sequenced { (shard, busy) } else { ("", "") };
        let _ = write!(text, "{shard:<5} {busy:>6}  {:<9} {:>11}", until.name(), histogram.len());
        for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] {
            let _ = match histogram.is_empty() {
                true => write!(text, " {:>9}", "-"),
                false => write!(text, " {:>9}", histogram.value_at_quantile(quantile)),
            };
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cells of a line.
    fn cells(table: &str, line: usize) -> Vec<&str> {
        table.lines().nth(line).unwrap().split_whitespace().collect()
    }

    #[test]
    fn only_the_first_tick_of_a_turn_is_sampled() {
        let mut latency = Latency::default();
        for turn in 1..=3 {
            for tick in 0..10 {
                latency.sequenced(1_000_000 + tick, 2_000_000);
                latency.sample(1_000_000 + tick);
            }
            latency.end_turn(5, 0, 3_000_000);
            assert_eq!((latency.sequenced.len(), latency.sent.len()), (turn, turn));
        }
        assert!(latency.sequenced.max().abs_diff(1_000) <= 8);
        assert!(latency.sent.max().abs_diff(2_000) <= 16);
    }

    #[test]
    fn a_turn_that_sends_nothing_is_not_sampled() {
        let mut latency = Latency::default();
        latency.sample(1_000_000);
        latency.end_turn(0, 0, 9_000_000);
        assert_eq!(latency.sent.len(), 0);
        assert!(latency.wants_sample());
    }

    #[test]
    fn a_tick_for_more_sessions_than_a_turn_serves_is_sampled_in_each_turn() {
        let mut latency = Latency::default();
        latency.sample(1);
        for (sends, ready) in [(1_024, 2_000), (1_024, 2_000), (1_024, 2_000), (1_024, 2_000)] {
            latency.end_turn(sends, ready, 5_000_000);
        }
        // 2,000 sessions wait after the first turn, 976 after the second, none after the third: sampling stops there,
        // although others have become ready since.
        assert_eq!(latency.sent.len(), 3);
        assert!(latency.wants_sample());
    }

    #[test]
    fn values_out_of_range_count_as_the_nearest_bound() {
        let mut latency = Latency::default();
        latency.sequenced(2_000_000, 1_000_000);
        latency.end_turn(0, 0, 0);
        assert_eq!(latency.sequenced.max(), LATENCY_US_LOWEST);
        latency.sequenced(1, u64::MAX);
        assert!(latency.sequenced.max() >= LATENCY_US_HIGHEST);
        assert_eq!(latency.sequenced.len(), 2);
    }

    #[test]
    fn histograms_stay_within_their_memory_bound() {
        let latency = Latency::default();
        let bytes = (latency.sequenced.distinct_values() + latency.sent.distinct_values()) * size_of::<u64>();
        assert!(bytes <= 40 << 10, "{bytes} bytes");
    }

    #[test]
    fn the_table_has_each_shard_and_their_sum() {
        let (mut one, mut other) = (Latency::default(), Latency::default());
        one.sequenced(1_000_000, 1_100_000);
        other.sequenced(1_000_000, 1_050_000);
        other.sample(1_000_000);
        other.end_turn(1, 0, 1_200_000);
        let table = table(&[(0, Some(12.34), &one), (1, None, &other)]);
        assert_eq!(cells(&table, 2)[..4], ["0", "12.3%", "sequenced", "1"]);
        assert_eq!(cells(&table, 3)[..3], ["sent", "0", "-"]);
        assert_eq!(cells(&table, 4)[..4], ["1", "-", "sequenced", "1"]);
        assert_eq!(cells(&table, 5)[..3], ["sent", "1", "200"]);
        assert_eq!(cells(&table, 6)[..4], ["all", "sequenced", "2", "50"]);
        assert_eq!(cells(&table, 6).last(), Some(&"100"));
        assert_eq!(table.lines().count(), 8);
    }

    #[test]
    fn a_shard_that_slept_three_quarters_of_the_time_was_busy_for_one() {
        let counters = Counters::default();
        assert_eq!(busy_percent(&counters), None);
        counters.add(Counter::BusyNs, 25);
        counters.add(Counter::IdleNs, 75);
        assert_eq!(busy_percent(&counters), Some(25.0));
    }
}
