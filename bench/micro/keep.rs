//! Storing of a tick at its topic's home.
//!
//! `last_value` runs without keys and with 1,000 keys in turn, `history` with the default bounds. An iteration is one tick
//! of 160 bytes.

use std::hint::black_box;

use criterion::Criterion;
use tickcast::limits::{
    HISTORY_BYTES_DEFAULT, HISTORY_BYTES_MAX_DEFAULT, HISTORY_TICKS_DEFAULT, KEYS_PER_TOPIC_MAX_DEFAULT,
    LAST_VALUES_BYTES_MAX_DEFAULT,
};
use tickcast_core::home::{
    history::{History, HistoryBounds},
    last_value::{LastValues, LastValuesBudget},
};

const FRAME: [u8; 160] = [7; 160];
/// Keys that ticks use in turn.
const KEYS: u64 = 1_000;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("last_value");
    for (name, keys) in [("no key", 0), ("1,000 keys", KEYS)] {
        let mut budget = LastValuesBudget {
            keys_max: KEYS_PER_TOPIC_MAX_DEFAULT,
            bytes_left: LAST_VALUES_BYTES_MAX_DEFAULT,
        };
        let (mut last_values, mut sequence) = (LastValues::default(), 0u64);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                sequence += 1;
                let key = if keys == 0 { 0 } else { sequence % keys + 1 };
                let write = |out: &mut Vec<u8>| out.extend_from_slice(black_box(&FRAME));
                assert!(last_values.store(sequence, key, FRAME.len(), &mut budget, write));
            });
        });
    }
    group.finish();
    let bounds =
        HistoryBounds { ticks: HISTORY_TICKS_DEFAULT, bytes: HISTORY_BYTES_DEFAULT, age_ns: u64::MAX };
    let (mut history, mut sequence) = (History::default(), 0u64);
    let mut budget_bytes = HISTORY_BYTES_MAX_DEFAULT as isize;
    criterion.bench_function("history", |bencher| {
        bencher.iter(|| {
            sequence += 1;
            history.push(sequence, black_box(&FRAME), bounds, sequence, &mut budget_bytes);
        });
    });
}
