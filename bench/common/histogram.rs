//! Histogram for measured times.

use hdrhistogram::Histogram;

/// Longest time recorded as itself: ten minutes. Longer ones saturate.
const TIME_NS_MAX: u64 = 600_000_000_000;
/// Significant digits: 0.1 %. A histogram takes 300 KB.
const DIGITS: u8 = 3;

/// An empty histogram of nanoseconds.
///
/// # Errors
/// Never in practice: the bounds are constants.
pub fn histogram() -> Result<Histogram<u64>, String> {
    Histogram::new_with_bounds(1, TIME_NS_MAX, DIGITS).map_err(|error| format!("histogram: {error}"))
}
