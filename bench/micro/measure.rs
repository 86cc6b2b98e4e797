//! Measuring a part of what is done, and counting it in units.

use std::time::Duration;

use criterion::Bencher;
use tickcast::clock;

/// Measures rounds of `units` each: `round` does what is not to be measured as well, and returns what [`timed`] gave
/// for the rest. Reading the clock costs some 50 ns a round: let it have many units.
pub fn per_unit(bencher: &mut Bencher<'_>, units: u64, mut round: impl FnMut() -> u64) {
    bencher.iter_custom(|iterations| {
        let rounds = iterations.div_ceil(units);
        let total_ns: u64 = (0..rounds).map(|_| round()).sum();
        let done = u128::from(rounds) * u128::from(units);
        Duration::from_nanos((u128::from(total_ns) * u128::from(iterations) / done) as u64)
    });
}

/// Nanoseconds that `work` takes.
pub fn timed(work: impl FnOnce()) -> u64 {
    let from_ns = clock::monotonic_ns();
    work();
    clock::monotonic_ns() - from_ns
}
