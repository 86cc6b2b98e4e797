//! Latency histograms as JSON and in HdrHistogram's plotter format.

use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::Serialize;

use tickcast_core::metrics::latency::{Latency, Until};

/// Lines per halving of the distance to 100 %: HdrHistogram's default.
const LINES_PER_HALVING: u32 = 5;

/// A histogram's mean and percentiles, microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PercentilesView {
    /// Sampled ticks, one per turn.
    pub samples: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Maximum.
    pub max: u64,
}

impl PercentilesView {
    fn new(histogram: &Histogram<u64>) -> PercentilesView {
        let at = |quantile| histogram.value_at_quantile(quantile);
        PercentilesView {
            samples: histogram.len(),
            mean: histogram.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        }
    }
}

/// Both latencies of one shard or of all shards together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LatencyView {
    /// The shard; `None` for all together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<u16>,
    /// From the receipt of a tick until it has its sequence number.
    pub sequenced: PercentilesView,
    /// From the receipt of a tick until the kernel has the SENDs of its turn.
    pub sent: PercentilesView,
}

impl LatencyView {
    /// Summarizes the samples of a shard, or of all.
    pub fn new(shard: Option<u16>, latency: &Latency) -> LatencyView {
        LatencyView {
            shard,
            sequenced: PercentilesView::new(latency.histogram(Until::Sequenced)),
            sent: PercentilesView::new(latency.histogram(Until::Sent)),
        }
    }
}

/// The recorded latencies, ascending, each with its count: `[microseconds, count]`.
///
/// Each latency is the highest of its histogram bucket, as it is in percentiles.
///
/// Cost: one pass over the histogram. About 2,500 rows at most, a few hundred in practice.
pub fn counts(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    let recorded = histogram.iter_recorded();
    recorded.map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
}

/// A histogram of microseconds in HdrHistogram's plotter format.
///
/// Cost: one pass over the histogram; a few hundred lines at most.
pub fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut text =
        format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut total = 0;
    for step in histogram.iter_quantiles(LINES_PER_HALVING) {
        total += step.count_since_last_iteration();
        let (value, quantile) = (step.value_iterated_to() as f64, step.quantile_iterated_to());
        let _ = write!(text, "{value:>12.3} {quantile:>14.12} {total:>10}");
        // At 100 % the last column would be infinite; plotters expect it to be missing there.
        let _ = match quantile < 1.0 {
            true => writeln!(text, " {:>14.2}", 1.0 / (1.0 - quantile)),
            false => writeln!(text),
        };
    }
    let buckets = usize::from(histogram.buckets());
    // The first bucket uses all its sub-buckets, each further one only the upper half: the lower half repeats the bucket below.
    let sub_buckets = 2 * histogram.distinct_values() / (buckets + 1);
    let _ = write!(
        text,
        "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]\n\
         #[Max     = {:>12.3}, Total count    = {:>12}]\n\
         #[Buckets = {buckets:>12}, SubBuckets     = {sub_buckets:>12}]\n",
        histogram.mean(),
        histogram.stdev(),
        histogram.max() as f64,
        histogram.len()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One tick a turn, received at 1 ms, sequenced after `us` and sent after twice as long.
    fn latency(us: impl IntoIterator<Item = u64>) -> Latency {
        let mut latency = Latency::default();
        for us in us {
            latency.sequenced(1_000_000, 1_000_000 + us * 1_000);
            latency.sample(1_000_000);
            latency.end_turn(1, 0, 1_000_000 + 2 * us * 1_000);
        }
        latency
    }

    #[test]
    fn views_have_the_percentiles_of_the_histogram() {
        let view = LatencyView::new(Some(1), &latency(1..=100));
        assert_eq!((view.sequenced.samples, view.sequenced.p50, view.sequenced.p99), (100, 50, 99));
        assert_eq!((view.sent.p50, view.sent.samples), (100, 100));
        let text = serde_json::to_string(&view).unwrap();
        assert!(text.starts_with(r#"{"shard":1,"sequenced":{"samples":100,"mean":50.5,"p50":50,"#), "{text}");
        let all = serde_json::to_string(&LatencyView::new(None, &Latency::default())).unwrap();
        assert!(all.starts_with(r#"{"sequenced":{"samples":0,"mean":0.0,"p50":0,"#), "{all}");
    }

    #[test]
    fn counts_add_up_and_contain_the_percentiles() {
        let latency = latency((1..=1_000).chain([500_000; 3]));
        let histogram = latency.histogram(Until::Sequenced);
        let counts = counts(histogram);
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), 1_003);
        assert!(counts.is_sorted() && counts.len() < 600, "{}", counts.len());
        assert_eq!(counts.last(), Some(&(histogram.max(), 3)));
        assert!(counts.iter().any(|&(us, _)| us == histogram.value_at_quantile(0.5)));
    }

    #[test]
    fn the_text_matches_hdrhistograms_format() {
        let text = hgrm(latency(1..=10).histogram(Until::Sequenced));
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("       Value     Percentile TotalCount 1/(1-Percentile)"));
        assert_eq!(lines.nth(1), Some("       1.000 0.000000000000          1           1.00"));
        assert!(text.contains("       5.000 0.500000000000          5           2.00\n"), "{text}");
        assert!(text.contains("      10.000 1.000000000000         10\n#[Mean    =        5.500"), "{text}");
        assert!(!hgrm(latency([]).histogram(Until::Sent)).contains("NaN"));
    }
}
