//! The built-in simulator: producers that each publish at a constant rate, in an open loop. If a ring is full, the tick is
//! dropped and counted.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{
    Source, SourceContext, SourceError,
    kind::{Configured, Flags, OptionChecks, SourceOptions, Starts},
    payload::Mark,
};
use crate::limits;
use tickcast_common::{clock, values::Size};

/// Ticks overdue by more than this, because the process was stopped, are dropped and counted.
const CATCH_UP_NS: u64 = 1_000_000_000;
/// Shortest sleep. Ticks due within it are published together: at 80,000 ticks/s, one sleep per tick took a fifth of the core.
const NAP_LOWEST_NS: u64 = 100_000;
/// Ticks staged before the rings are pushed.
const BATCH_TICKS: u64 = 256;

/// A `[[source]]` of kind `simulator`.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[group(id = "simulator")]
#[command(next_help_heading = "Simulator")]
pub struct Options {
    /// Number of producers [default: 10, or --sim-topics if more]
    #[arg(id = "sim_producers", long = "sim-producers", value_name = "N")]
    producers: Option<u32>,
    /// Ticks per second of each producer
    #[arg(id = "sim_rate", long = "sim-rate", value_name = "N", default_value_t = Options::default().rate)]
    rate: u32,
    /// Size of each payload, a JSON object with the time it was due
    #[arg(id = "sim_size", long = "sim-size", value_name = "SIZE", default_value_t = Options::default().size)]
    size: Size,
    /// Number of topics, sim.0 to sim.N-1 [default: one per producer]
    #[arg(id = "sim_topics", long = "sim-topics", value_name = "N")]
    topics: Option<u32>,
}

impl Default for Options {
    fn default() -> Options {
        Options { producers: None, rate: 10, size: Size::new(100), topics: None }
    }
}

/// The flags: the options, and the switch that turns the simulator off.
#[derive(Args)]
#[group(skip)]
#[command(next_help_heading = "Simulator")]
struct WithSwitch {
    /// Do not run the simulator
    #[arg(long)]
    no_sim: bool,
    #[command(flatten)]
    options: Options,
}

impl SourceOptions for Options {
    const KIND: &'static str = "simulator";
    const IS_SINGLE: bool = true;
    const FLAGS: Option<Flags> =
        Some(Flags::of::<Options>(Starts::ByDefault { unless: "no_sim" }, "sim_").with::<WithSwitch>());

    fn configure(self, checks: &mut OptionChecks) -> Option<Configured> {
        let settings = Settings {
            // A topic without a producer would stay empty.
            producers: self.producers.unwrap_or(self.topics.unwrap_or_default().max(10)),
            rate: self.rate,
            size_bytes: self.size.bytes,
            topics: self.topics.or(self.producers).unwrap_or(10),
        };
        let (lowest, highest) =
            (Size::new(limits::SIM_SIZE_LOWEST), Size::new(checks.bounds.payload_bytes_max));
        checks.within("size", self.size, lowest, highest);
        let topics_max = checks.bounds.topics_max;
        if settings.topics as usize > topics_max {
            let text = format!("{}: must be at most {topics_max} (--topics-max)", settings.topics);
            checks.refuse("topics", text);
        }
        for (key, value) in
            [("producers", settings.producers), ("rate", settings.rate), ("topics", settings.topics)]
        {
            if value == 0 {
                checks.refuse(key, "0: must be at least 1");
            }
        }
        if settings.topics > settings.producers {
            let text = format!(
                "{}: must be at most one for each of {} producers",
                settings.topics, settings.producers
            );
            checks.refuse("topics", text);
        }
        Some(Configured::new("sim.>", settings))
    }
}

/// A configured simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settings {
    /// Number of producers.
    producers: u32,
    /// Ticks per second of each producer.
    rate: u32,
    /// Bytes of each payload; at least [`crate::limits::SIM_SIZE_LOWEST`].
    size_bytes: usize,
    /// Number of topics, `sim.0` to `sim.N-1`, divided among the producers.
    topics: u32,
}

impl Source for Settings {
    /// Publishes until the server stops. Producer `p` is offset by `p / producers` of its interval, so that all ticks are
    /// evenly spaced: the k-th is due at `k / (producers x rate)` seconds, which is its producer time. Above 10,000
    /// ticks/s it is published up to `NAP_LOWEST_NS` later, which every measured latency includes.
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
            // Ticks that do not fit into a full ring stay staged for the next round.
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
