//! The built-in source: producers that each publish at a constant rate, whatever becomes of the ticks (open loop).

use std::sync::Arc;

use super::{Lanes, StopFlag, payload::Mark, sleep_until};
use crate::clock;
use tickcast_core::metrics::counters::{Counter, Counters};

/// A source that was asleep for longer (a stopped process) skips, and counts, what it missed beyond this.
const CATCH_UP_NS: u64 = 1_000_000_000;
/// Where ticks are due more often than this, those of so long are published together: a sleep for each took a fifth of
/// the core at 80,000 a second.
const NAP_LOWEST_NS: u64 = 100_000;
/// Ticks staged before the rings are pushed.
const BATCH_TICKS: u64 = 256;

/// What it simulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Producers.
    pub producers: u32,
    /// Ticks a second of each.
    pub rate: u32,
    /// Bytes of a payload; at least [`crate::limits::SIM_SIZE_LOWEST`].
    pub size_bytes: usize,
    /// Topics `sim.0` to `sim.N-1`, shared out over the producers.
    pub topics: u32,
}

/// Publishes until the server stops. Producer `p` is offset by `p / producers` of its interval, so that the ticks of
/// all are evenly spaced: the k-th is due at `k / (producers x rate)` seconds, and carries that as its time. Above 10,000 a
/// second it is published up to `NAP_LOWEST_NS` later than that, which is in every latency then.
pub fn run(settings: Settings, mut lanes: Lanes, counters: &Arc<Counters>, stop: &StopFlag) {
    let per_second = u128::from(settings.producers) * u128::from(settings.rate);
    let after_ns = |k: u64| (u128::from(k) * 1_000_000_000 / per_second) as u64;
    let topics: Vec<String> = (0..settings.topics).map(|topic| format!("sim.{topic}")).collect();
    let (start_ns, start_realtime_ns) = (clock::monotonic_ns(), clock::realtime_ns());
    // Counts what was published of each topic.
    let mut published = vec![0; settings.topics as usize];
    let mut payload = Vec::with_capacity(settings.size_bytes);
    let mut k = 0;
    let mut nap_until_ns = 0;
    while sleep_until(start_ns + after_ns(k).max(nap_until_ns), stop) {
        let elapsed_ns = clock::monotonic_ns() - start_ns;
        let ingest_time_ns = clock::realtime_ns();
        let late_ns = elapsed_ns.saturating_sub(CATCH_UP_NS);
        if after_ns(k) < late_ns {
            let skipped = (u128::from(late_ns - after_ns(k)) * per_second / 1_000_000_000) as u64;
            counters.add(Counter::TicksSimulatorDropped, skipped);
            k += skipped;
        }
        let batch_end = k + BATCH_TICKS;
        while k < batch_end && after_ns(k) <= elapsed_ns {
            let producer = k % u64::from(settings.producers);
            let topic = (producer % u64::from(settings.topics)) as usize;
            let intended_ns = start_realtime_ns + after_ns(k);
            let mark = Mark { at_ns: intended_ns, topic: topic as u32, n: published[topic] + 1 };
            mark.write(&mut payload, settings.size_bytes);
            if lanes.publish(&topics[topic], intended_ns, ingest_time_ns, &payload) {
                published[topic] += 1;
            } else {
                counters.add(Counter::TicksSimulatorDropped, 1);
            }
            k += 1;
        }
        lanes.flush();
        let caught_up = after_ns(k) > elapsed_ns;
        if caught_up && after_ns(1) < NAP_LOWEST_NS {
            nap_until_ns = elapsed_ns + NAP_LOWEST_NS;
        }
    }
    lanes.flush();
}
