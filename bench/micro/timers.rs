//! Timer wheel with 10,000 entries spread over the ping interval.
//!
//! Each entry is inserted, cascades through the levels, and expires as the clock advances in steps of 1 ms. An iteration is
//! one entry, including its share of the steps.

use std::hint::black_box;

use criterion::Criterion;
use tickcast::limits::PING_INTERVAL_MS_DEFAULT;
use tickcast_core::timer_wheel::Wheel;

use crate::measure::{per_unit, timed};

const ENTRIES: u64 = 10_000;
const STEP_NS: u64 = 1_000_000;

pub fn bench(criterion: &mut Criterion) {
    let interval_ns = PING_INTERVAL_MS_DEFAULT * 1_000_000;
    let mut wheel = Wheel::<(u64, u64)>::new();
    let mut now_ns = 1 << 41;
    criterion.bench_function("wheel", |bencher| {
        per_unit(bencher, ENTRIES, || {
            let mut due = 0;
            let ns = timed(|| {
                for entry in 0..ENTRIES {
                    // Multiples of the golden ratio: in no order, but the same in every run.
                    let after_ns = entry.wrapping_mul(0x9e37_79b9_7f4a_7c15) % interval_ns;
                    wheel.insert(now_ns + after_ns, (entry, entry));
                }
                while !wheel.is_empty() {
                    now_ns += STEP_NS;
                    while let Some(entry) = wheel.pop_due(now_ns) {
                        black_box(entry);
                        due += 1;
                    }
                }
            });
            assert_eq!(due, ENTRIES, "every entry expired");
            ns
        });
    });
}
