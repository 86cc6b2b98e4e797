//! Measurement of part of an iteration, per unit of work.

use std::time::Duration;

use criterion::Bencher;
use tickcast::clock;

/// Measures rounds of `units` each.
///
/// `round` also does the work that is not measured, and returns what [`timed`] returned. Reading the clock costs about 50 ns per round, so a round should have many units.
pub fn per_unit(bencher: &mut Bencher<'_>, units: u64, mut round: impl FnMut() -> u64) {
    bencher.iter_custom(|iterations| {
        let rounds = iterations.div_ceil(units);
        let total_ns: u64 = (0..rounds).map(|_| round()).sum();
        let done = u128::from(rounds) * u128::from(units);
        Duration::from_nanos((u128::from(total_ns) * u128::from(iterations) / done) as u64)
    });
}

/// Runs `work` and returns how many nanoseconds it took.
pub fn timed(work: impl FnOnce()) -> u64 {
    let from_ns = clock::monotonic_ns();
    work();
    clock::monotonic_ns() - from_ns
}
