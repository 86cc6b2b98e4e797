//! Latencies as JSON, and as the percentile text that HdrHistogram's plotters read.

use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::query::Until;
use tickcast_core::metrics::latency::Latency;

/// Lines for each halving of the distance to 100 %, as HdrHistogram writes by default.
const LINES_PER_HALF: u32 = 5;

/// A histogram's figures, microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// Turns that were sampled.
    pub samples: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// The highest.
    pub max: u64,
}

impl Percentiles {
    fn of(histogram: &Histogram<u64>) -> Percentiles {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Percentiles {
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

/// Both latencies of a shard, or of all.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LatencyView {
    /// Of which one; `None` for all together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<u16>,
    /// From a tick's receipt until it had its sequence.
    pub sequenced: Percentiles,
    /// From a tick's receipt until its turn's SENDs were with the kernel.
    pub sent: Percentiles,
}

impl LatencyView {
    /// The figures of one shard's samples.
    pub fn of(shard: Option<u16>, latency: &Latency) -> LatencyView {
        LatencyView {
            shard,
            sequenced: Percentiles::of(latency.histogram(Until::Sequenced)),
            sent: Percentiles::of(latency.histogram(Until::Sent)),
        }
    }
}

/// Each latency that was seen, ascending, and how often: `[microseconds, count]`. A latency stands for those that the
/// histogram does not tell from it, and is the highest of them, as in percentiles.
///
/// Cost: a pass over the table; some 2,500 rows at most, and a few hundred in practice.
pub fn counts(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    let recorded = histogram.iter_recorded();
    recorded.map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
}

/// The text of a histogram of microseconds.
///
/// Cost: a pass over the table, and about 5 lines for each halving of what lies above: a few hundred at most.
pub fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut text =
        format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut counted = 0;
    for step in histogram.iter_quantiles(LINES_PER_HALF) {
        counted += step.count_since_last_iteration();
        let (value, quantile) = (step.value_iterated_to() as f64, step.quantile_iterated_to());
        let _ = write!(text, "{value:>12.3} {quantile:>14.12} {counted:>10}");
        // The last line is at infinity, which no axis has: plotters know it by the column that is not there.
        let _ = match quantile < 1.0 {
            true => writeln!(text, " {:>14.2}", 1.0 / (1.0 - quantile)),
            false => writeln!(text),
        };
    }
    let buckets = usize::from(histogram.buckets());
    // The first bucket has all its sub-buckets, each further one the upper half: the rest it shares with the one below.
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

    /// A tick a turn, received at 1 ms, sequenced after `us`, sent after twice that.
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
    fn percentiles_are_those_of_the_histogram() {
        let view = LatencyView::of(Some(1), &latency(1..=100));
        assert_eq!((view.sequenced.samples, view.sequenced.p50, view.sequenced.p99), (100, 50, 99));
        assert_eq!((view.sent.p50, view.sent.samples), (100, 100));
        let text = serde_json::to_string(&view).unwrap();
        assert!(text.starts_with(r#"{"shard":1,"sequenced":{"samples":100,"mean":50.5,"p50":50,"#), "{text}");
        let all = serde_json::to_string(&LatencyView::of(None, &Latency::default())).unwrap();
        assert!(all.starts_with(r#"{"sequenced":{"samples":0,"mean":0.0,"p50":0,"#), "{all}");
    }

    #[test]
    fn counts_add_up_and_have_the_latencies_of_the_percentiles() {
        let latency = latency((1..=1_000).chain([500_000; 3]));
        let histogram = latency.histogram(Until::Sequenced);
        let counts = counts(histogram);
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), 1_003);
        assert!(counts.is_sorted() && counts.len() < 600, "{}", counts.len());
        assert_eq!(counts.last(), Some(&(histogram.max(), 3)));
        assert!(counts.iter().any(|&(us, _)| us == histogram.value_at_quantile(0.5)));
    }

    #[test]
    fn the_text_is_as_hdrhistogram_writes_it() {
        let text = hgrm(latency(1..=10).histogram(Until::Sequenced));
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("       Value     Percentile TotalCount 1/(1-Percentile)"));
        assert_eq!(lines.nth(1), Some("       1.000 0.000000000000          1           1.00"));
        assert!(text.contains("       5.000 0.500000000000          5           2.00\n"), "{text}");
        assert!(text.contains("      10.000 1.000000000000         10\n#[Mean    =        5.500"), "{text}");
        assert!(!hgrm(latency([]).histogram(Until::Sent)).contains("NaN"));
    }
}
