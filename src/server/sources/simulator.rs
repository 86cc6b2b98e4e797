//! The built-in simulator: producers that each publish at a constant rate, in an open loop. A tick that finds a ring full is
//! dropped and counted.

use super::{Source, SourceContext, SourceError, payload::Mark};
use crate::clock;

/// After a longer pause (of a stopped process), the ticks missed before it are skipped and counted as dropped.
const CATCH_UP_NS: u64 = 1_000_000_000;
/// Shortest sleep. Ticks due within it are published together: at 80,000 ticks/s a sleep for each took a fifth of the core.
const NAP_LOWEST_NS: u64 = 100_000;
/// Ticks staged before the rings are pushed.
const BATCH_TICKS: u64 = 256;

/// A configured simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Number of producers.
    pub producers: u32,
    /// Ticks per second of each producer.
    pub rate: u32,
    /// Bytes of each payload; at least [`crate::limits::SIM_SIZE_LOWEST`].
    pub size_bytes: usize,
    /// Number of topics, `sim.0` to `sim.N-1`, divided among the producers.
    pub topics: u32,
}

impl Source for Settings {
    fn kind(&self) -> &'static str {
        "simulator"
    }

    /// Publishes until the server stops. Producer `p` is offset by `p / producers` of its interval, so that all ticks are
    /// evenly spaced: the k-th is due at `k / (producers x rate)` seconds, which is its producer time. Above 10,000
    /// ticks/s it is published up to `NAP_LOWEST_NS` later, which then counts into every measured latency.
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        let per_second = u128::from(self.producers) * u128::from(self.rate);
        let after_ns = |k: u64| (u128::from(k) * 1_000_000_000 / per_second) as u64;
        let topics: Vec<String> = (0..self.topics).map(|topic| format!("sim.{topic}")).collect();
        let (start_ns, start_realtime_ns) = (clock::monotonic_ns(), clock::realtime_ns());
        // Ticks published, by topic.
        let mut published = vec![0; self.topics as usize];
        let mut payload = Vec::with_capacity(self.size_bytes);
        let mut k = 0;
        let mut nap_until_ns = 0;
        while context.sleep_until(start_ns + after_ns(k).max(nap_until_ns)) {
            let elapsed_ns = clock::monotonic_ns() - start_ns;
            let ingest_time_ns = clock::realtime_ns();
            let late_ns = elapsed_ns.saturating_sub(CATCH_UP_NS);
            let mut dropped = 0;
            if after_ns(k) < late_ns {
                let skipped = (u128::from(late_ns - after_ns(k)) * per_second / 1_000_000_000) as u64;
                dropped += skipped;
                k += skipped;
            }
            let batch_end = k + BATCH_TICKS;
            while k < batch_end && after_ns(k) <= elapsed_ns {
                let producer = k % u64::from(self.producers);
                let topic = (producer % u64::from(self.topics)) as usize;
                let intended_ns = start_realtime_ns + after_ns(k);
                let mark = Mark { at_ns: intended_ns, topic: topic as u32, n: published[topic] + 1 };
                mark.write(&mut payload, self.size_bytes);
                match context.lanes().publish(&topics[topic], intended_ns, ingest_time_ns, &payload) {
                    Ok(()) => published[topic] += 1,
                    Err(_) => dropped += 1,
                }
                k += 1;
            }
            if dropped > 0 {
                context.count_dropped(dropped);
            }
            // What a full ring does not take stays staged for the next round.
            let _ = context.lanes().flush();
            let caught_up = after_ns(k) > elapsed_ns;
            if caught_up && after_ns(1) < NAP_LOWEST_NS {
                nap_until_ns = elapsed_ns + NAP_LOWEST_NS;
            }
        }
        let _ = context.lanes().flush();
        Ok(())
    }
}
