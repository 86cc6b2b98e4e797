//! Percentile text (.hgrm) of a latency histogram, the format of HdrHistogram's plotters.

use std::fmt::{self, Write};

use hdrhistogram::Histogram;

/// Lines per halving of the distance to 100 %: HdrHistogram's default.
const LINES_PER_HALF: u32 = 5;
/// Nanoseconds per unit of the Value column.
const NS_PER_US: f64 = 1_000.0;
/// Units of the Value column per millisecond.
const US_PER_MS: f64 = 1_000.0;

/// Formats a histogram of nanoseconds, with values in microseconds.
///
/// Cost: one pass over the histogram; the text has a few hundred lines at most.
pub fn text(latency_ns: &Histogram<u64>) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_text(latency_ns, &mut out);
    out
}

fn write_text(latency_ns: &Histogram<u64>, out: &mut String) -> fmt::Result {
    writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    let mut counted = 0;
    for step in latency_ns.iter_quantiles(LINES_PER_HALF) {
        counted += step.count_since_last_iteration();
        let value_us = step.value_iterated_to() as f64 / NS_PER_US;
        let quantile = step.quantile_iterated_to();
        write!(out, "{value_us:>12.3} {quantile:>14.12} {counted:>10}")?;
        // The last quantile is 1, at infinity: plotters recognise it by the missing last column.
        match quantile < 1.0 {
            true => writeln!(out, " {:>14.2}", 1.0 / (1.0 - quantile))?,
            false => writeln!(out)?,
        }
    }
    let buckets = usize::from(latency_ns.buckets());
    // The first bucket has all its sub-buckets; each further one has only the upper half, as it shares the rest.
    let sub_buckets = 2 * latency_ns.distinct_values() / (buckets + 1);
    let (mean_us, deviation_us) = (latency_ns.mean() / NS_PER_US, latency_ns.stdev() / NS_PER_US);
    let max_us = latency_ns.max() as f64 / NS_PER_US;
    writeln!(out, "#[Mean    = {mean_us:>12.3}, StdDeviation   = {deviation_us:>12.3}]")?;
    writeln!(out, "#[Max     = {max_us:>12.3}, Total count    = {:>12}]", latency_ns.len())?;
    writeln!(out, "#[Buckets = {buckets:>12}, SubBuckets     = {sub_buckets:>12}]")
}

/// Quantiles and milliseconds of a histogram of nanoseconds.
///
/// There is one pair per line of its text except the last, which is at infinity.
pub fn points(latency_ns: &Histogram<u64>) -> Vec<(f64, f64)> {
    let steps = latency_ns.iter_quantiles(LINES_PER_HALF).filter(|_| !latency_ns.is_empty());
    let all = steps
        .map(|step| (step.quantile_iterated_to(), step.value_iterated_to() as f64 / NS_PER_US / US_PER_MS));
    all.filter(|&(quantile, _)| quantile < 1.0).collect()
}

/// Parses a histogram's text into the same pairs as [`points`].
///
/// # Errors
/// The first line that is not HdrHistogram's format, or a text without points.
pub fn parse(text: &str) -> Result<Vec<(f64, f64)>, String> {
    let mut points = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let mut fields = line.split_whitespace();
        let Some(first) = fields.next().filter(|first| *first != "Value" && !first.starts_with('#')) else {
            continue;
        };
        let numbers =
            first.parse::<f64>().ok().zip(fields.next().and_then(|field| field.parse::<f64>().ok()));
        let (value_us, quantile) = numbers
            .filter(|&(value_us, quantile)| {
                (0.0..f64::INFINITY).contains(&value_us) && (0.0..=1.0).contains(&quantile)
            })
            .ok_or_else(|| format!("line {} is not part of a histogram (.hgrm): {line:?}", at + 1))?;
        if quantile < 1.0 {
            points.push((quantile, value_us / US_PER_MS));
        }
    }
    if points.is_empty() { Err("the file is not a histogram (.hgrm)".into()) } else { Ok(points) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values_ns: impl IntoIterator<Item = u64>) -> Histogram<u64> {
        let mut histogram = crate::common::histogram::histogram().unwrap();
        values_ns.into_iter().for_each(|value| histogram.record(value).unwrap());
        histogram
    }

    #[test]
    fn known_values_match_hdrhistograms_output() {
        // Ten values that the histogram represents exactly: 0.1 to 1.0 us.
        let text = text(&histogram((1..=10).map(|i| i * 100)));
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("       Value     Percentile TotalCount 1/(1-Percentile)"));
        assert_eq!(lines.next(), Some(""));
        assert_eq!(lines.next(), Some("       0.100 0.000000000000          1           1.00"));
        assert_eq!(lines.next(), Some("       0.100 0.100000000000          1           1.11"));
        let half = "       0.500 0.500000000000          5           2.00";
        assert!(text.contains(half), "{text}");
        let end = "       1.000 1.000000000000         10\n\
                   #[Mean    =        0.550, StdDeviation   =        0.287]\n\
                   #[Max     =        1.000, Total count    =           10]\n\
                   #[Buckets =           30, SubBuckets     =         2048]\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn counts_and_percentiles_never_fall_and_end_at_the_total() {
        let text = text(&histogram((1..=20_000).map(|i| i * i)));
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|field| field.parse().unwrap()).collect())
            .collect();
        assert!(rows.windows(2).all(|two| (0..3).all(|column| two[0][column] <= two[1][column])), "{text}");
        let (last, others) = rows.split_last().unwrap();
        assert_eq!((last.len(), last[1], last[2]), (3, 1.0, 20_000.0));
        assert!(others.iter().all(|row| row.len() == 4));
    }

    #[test]
    fn a_text_is_parsed_into_the_points_it_was_written_from() {
        let histogram = histogram((1..=20_000).map(|i| i * i));
        let (read, known) = (parse(&text(&histogram)).unwrap(), points(&histogram));
        assert_eq!(read.len(), known.len());
        for (read, known) in read.iter().zip(&known) {
            assert!((read.0 - known.0).abs() < 1e-9 && (read.1 - known.1).abs() < 1e-5, "{read:?} {known:?}");
        }
        assert!(parse("Value\n1.0 nought 3").unwrap_err().contains("line 2"));
        assert!(parse("").is_err() && parse("1 1.5").is_err() && parse("-1 0.5").is_err());
    }

    #[test]
    fn an_empty_histogram_is_a_header_and_zeroes() {
        let text = text(&histogram([]));
        assert!(text.contains("Total count    =            0]"), "{text}");
        assert!(!text.contains("NaN"), "{text}");
    }
}
