//! When the ticks of a simulated wave are due. Plain integer arithmetic: the time of the k-th tick and the number of ticks
//! before a time are inverse functions, so an open loop neither drifts nor skips ticks.

use serde::{Deserialize, Serialize};

use crate::kind::OptionChecks;
use tickcast_common::values::Time;

const NS_PER_S: u128 = 1_000_000_000;
/// Fractions of a nanosecond that are counted: the precision of a spike's factor.
const PARTS_PER_NS: u128 = 1_000;
/// Bounds of a period.
const PERIOD_LOWEST: Time = Time::from_ms(10);
const PERIOD_HIGHEST: Time = Time::from_ms(86_400_000);
/// Bounds of a spike's factor.
const FACTOR_LOWEST: f64 = 1.0;
const FACTOR_HIGHEST: f64 = 10_000.0;

/// How a wave's rate changes. `rate` is that of a steady wave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Load {
    /// It stays constant.
    #[default]
    Steady,
    /// The rate for some time, then nothing for some time.
    OnOff {
        /// How long it is on.
        on: Time,
        /// How long it is off.
        off: Time,
    },
    /// Rises linearly from 0 to the rate, again and again.
    Ramp {
        /// How long it rises.
        over: Time,
    },
    /// The rate, and `factor` times the rate at the end of each period.
    Spike {
        /// The period.
        every: Time,
        /// How long the spike lasts.
        lasts: Time,
        /// Multiple of the rate.
        factor: f64,
    },
}

impl Load {
    /// Refuses invalid values, under the key `wave`.
    pub fn check(&self, checks: &mut OptionChecks) {
        match *self {
            Load::Steady => {}
            Load::OnOff { on, off } => {
                checks.within("wave", on, PERIOD_LOWEST, PERIOD_HIGHEST);
                checks.within("wave", off, PERIOD_LOWEST, PERIOD_HIGHEST);
            }
            Load::Ramp { over } => checks.within("wave", over, PERIOD_LOWEST, PERIOD_HIGHEST),
            Load::Spike { every, lasts, factor } => {
                checks.within("wave", every, PERIOD_LOWEST, PERIOD_HIGHEST);
                checks.within("wave", lasts, Time::from_ms(1), every);
                checks.within("wave", factor, FACTOR_LOWEST, FACTOR_HIGHEST);
            }
        }
    }

    /// When the k-th tick is due, from 0, in nanoseconds after the start. `rate` is in ticks per second, above 0.
    pub fn due_ns(&self, k: u64, rate: u64) -> u64 {
        // The usual load, without divisions of 128 bits.
        if let (Load::Steady, Some(within)) = (self, (k % rate).checked_mul(NS_PER_S as u64)) {
            return (k / rate).saturating_mul(NS_PER_S as u64).saturating_add(within / rate);
        }
        let steady = u128::from(k) * NS_PER_S * PARTS_PER_NS / u128::from(rate);
        self.time_ns(steady) as u64
    }

    /// Number of ticks due before `at_ns`, as [`Load::due_ns`] places them.
    pub fn due_before(&self, at_ns: u64, rate: u64) -> u64 {
        (self.steady(at_ns.into()) * u128::from(rate)).div_ceil(NS_PER_S * PARTS_PER_NS) as u64
    }

    /// The time a steady wave would need for the ticks until `at_ns`, in parts of a nanosecond.
    fn steady(&self, at_ns: u128) -> u128 {
        let (full, within) = (at_ns / self.period_ns(), at_ns % self.period_ns());
        match *self {
            Load::Steady => at_ns * PARTS_PER_NS,
            Load::OnOff { on, .. } => (full * ns(on) + within.min(ns(on))) * PARTS_PER_NS,
            // A period has half of what the steady rate would give; within a period, the count grows with the square of the
            // time. Rounded up, because the first tick is due at once, where the ramp is almost flat.
            Load::Ramp { over } => {
                let squared = (within * within * PARTS_PER_NS).div_ceil(ns(over));
                (full * ns(over) * PARTS_PER_NS + squared).div_ceil(2)
            }
            Load::Spike { every, lasts, factor } => {
                let before = ns(every) - ns(lasts);
                let of_period = before * PARTS_PER_NS + ns(lasts) * scaled(factor);
                full * of_period
                    + within.min(before) * PARTS_PER_NS
                    + within.saturating_sub(before) * scaled(factor)
            }
        }
    }

    /// The time at which [`Load::steady`] has this value: its inverse, to a nanosecond.
    fn time_ns(&self, steady: u128) -> u128 {
        match *self {
            Load::Steady => steady / PARTS_PER_NS,
            Load::OnOff { on, .. } => {
                let on_ns = steady / PARTS_PER_NS;
                on_ns / ns(on) * self.period_ns() + on_ns % ns(on)
            }
            Load::Ramp { over } => {
                let (twice, of_period) = (2 * steady, ns(over) * PARTS_PER_NS);
                let within = (twice % of_period * ns(over) / PARTS_PER_NS).isqrt();
                twice / of_period * ns(over) + within
            }
            Load::Spike { every, lasts, factor } => {
                let before = ns(every) - ns(lasts);
                let of_period = before * PARTS_PER_NS + ns(lasts) * scaled(factor);
                let left = steady % of_period;
                let within = match left.checked_sub(before * PARTS_PER_NS) {
                    None => left / PARTS_PER_NS,
                    Some(in_spike) => before + in_spike / scaled(factor),
                };
                steady / of_period * ns(every) + within
            }
        }
    }

    fn period_ns(&self) -> u128 {
        match *self {
            Load::Steady => NS_PER_S,
            Load::OnOff { on, off } => ns(on) + ns(off),
            Load::Ramp { over } => ns(over),
            Load::Spike { every, .. } => ns(every),
        }
    }
}

fn ns(time: Time) -> u128 {
    // A time of 0 is refused, and the server does not start.
    u128::from(time.ns.max(1))
}

/// A spike's factor in parts of [`PARTS_PER_NS`].
fn scaled(factor: f64) -> u128 {
    ((factor * PARTS_PER_NS as f64) as u128).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const ON_OFF: Load = Load::OnOff { on: Time::from_ms(200), off: Time::from_ms(800) };
    const RAMP: Load = Load::Ramp { over: Time::from_ms(2_000) };
    const SPIKE: Load = Load::Spike { every: Time::from_ms(1_000), lasts: Time::from_ms(100), factor: 10.0 };

    /// Number of ticks in each of these slices of 100 ms.
    fn per_slice(load: Load, slices: u64, rate: u64) -> Vec<u64> {
        let before = |slice: u64| load.due_before(slice * 100 * MS, rate);
        (0..slices).map(|slice| before(slice + 1) - before(slice)).collect()
    }

    #[test]
    fn steady_ticks_are_due_at_the_same_times_however_they_are_computed() {
        let mut rng = fastrand::Rng::with_seed(1);
        for rate in [1_u64, 3, 7, 1_000, 999_983, 500_000_000, 30_000_000_000] {
            for _ in 0..1_000 {
                let k = rng.u64(0..rate.saturating_mul(1_000_000).min(1 << 50));
                let exact = u128::from(k) * NS_PER_S / u128::from(rate);
                assert_eq!(u128::from(Load::Steady.due_ns(k, rate)), exact, "{k} at {rate}");
            }
        }
    }

    #[test]
    fn a_load_has_its_shape_in_every_period() {
        assert_eq!(per_slice(Load::Steady, 3, 50), [5, 5, 5]);
        assert_eq!(per_slice(ON_OFF, 12, 50), [5, 5, 0, 0, 0, 0, 0, 0, 0, 0, 5, 5]);
        assert_eq!(per_slice(SPIKE, 11, 50), [5, 5, 5, 5, 5, 5, 5, 5, 5, 50, 5]);
        let ramp = per_slice(RAMP, 40, 1_000);
        assert_eq!((ramp[..20].iter().sum::<u64>(), ramp[20..].iter().sum::<u64>()), (1_000, 1_000));
        assert!(ramp[..20].is_sorted() && ramp[19] > 90 && ramp[20] < 5, "{ramp:?}");
    }

    #[test]
    fn ticks_are_due_in_order_and_counted_as_they_are_due() {
        for load in [Load::Steady, ON_OFF, RAMP, SPIKE] {
            for rate in [3, 50, 1_700] {
                let due: Vec<u64> = (0..5_000).map(|k| load.due_ns(k, rate)).collect();
                assert!(due.is_sorted(), "{load:?} {rate}");
                for (k, due_ns) in due.into_iter().enumerate() {
                    // Allows a microsecond for the rounding of both.
                    assert!(
                        load.due_before(due_ns.saturating_sub(1_000), rate) <= k as u64,
                        "{load:?} {rate} {k}"
                    );
                    assert!(load.due_before(due_ns + 1_000, rate) > k as u64, "{load:?} {rate} {k}");
                }
            }
        }
    }

    #[test]
    fn hours_of_a_fast_load_stay_exact_to_a_microsecond() {
        let hour_ns = 3_600_000 * MS;
        for load in [Load::Steady, ON_OFF, SPIKE] {
            let k = load.due_before(hour_ns, 1_000_000);
            assert!(load.due_ns(k, 1_000_000).abs_diff(hour_ns) <= 2_000, "{load:?}");
        }
    }
}
