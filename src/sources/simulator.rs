//! The built-in simulator: producers that each publish at a constant rate, or waves of them, each with a load, jitter and loss of its
//! own. An open loop. If a ring is full, the tick is dropped and counted.

mod load;
mod wave;

use clap::Args;
use serde::{Deserialize, Serialize};

use self::wave::{Running, Wave, WaveOptions};
use super::{
    Source, SourceContext, SourceError,
    kind::{Configured, Flags, OptionChecks, SourceOptions, Starts},
};
use crate::limits::{SIM_SIZE_LOWEST, SIM_WAVES_MAX};
use tickcast_common::{clock, values::Size};
use tickcast_core::metrics::counters::Counter;

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
    /// Seed of the random numbers for jitter, loss and noise, to repeat a run; only in a file, like `wave`.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// Waves, instead of identical producers.
    #[arg(skip)]
    wave: Vec<WaveOptions>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            producers: None,
            rate: 10,
            size: Size::new(100),
            topics: None,
            seed: None,
            wave: Vec::new(),
        }
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
        checks.within("wave", self.wave.len(), 0, SIM_WAVES_MAX);
        let mut waves = Vec::new();
        if self.wave.is_empty() {
            waves.push(self.wave_of(&WaveOptions::default(), "sim".into()));
        }
        for (at, options) in self.wave.iter().enumerate() {
            options.check(checks);
            if self.wave[..at].iter().any(|other| other.name == options.name) {
                checks.refuse("wave", format!("name {:?}: there is such a wave already", options.name));
            }
            waves.push(self.wave_of(options, format!("sim.{}", options.name)));
        }
        // An error in a wave is reported under its name; without waves, under the option's.
        let has_waves = !self.wave.is_empty();
        let (lowest, highest) = (Size::new(SIM_SIZE_LOWEST), Size::new(checks.bounds.payload_bytes_max));
        let topics_max = checks.bounds.topics_max;
        let mut refuse = |key: &'static str, wave: &Wave, text: String| match has_waves {
            true => checks.refuse("wave", format!("{}: {key}: {text}", wave.prefix)),
            false => checks.refuse(key, text),
        };
        for wave in &waves {
            let size = Size::new(wave.size_bytes);
            if size < lowest || size > highest {
                refuse("size", wave, format!("{size}: must be {lowest} to {highest}"));
            }
            for (key, value) in [("producers", wave.producers), ("rate", wave.rate), ("topics", wave.topics)]
            {
                if value == 0 {
                    refuse(key, wave, "0: must be at least 1".into());
                }
            }
            if wave.topics > wave.producers {
                let text =
                    format!("{}: must be at most one for each of {} producers", wave.topics, wave.producers);
                refuse("topics", wave, text);
            }
        }
        let topics: u64 = waves.iter().map(|wave| u64::from(wave.topics)).sum();
        if topics > topics_max as u64 {
            let text = format!("{topics}: must be at most {topics_max} (--topics-max)");
            checks.refuse(if has_waves { "wave" } else { "topics" }, text);
        }
        Some(Configured::new("sim.>", Simulator { waves, seed: self.seed }))
    }
}

impl Options {
    /// A wave with these options, which default to the simulator's own.
    fn wave_of(&self, options: &WaveOptions, prefix: String) -> Wave {
        let (producers, topics) = (options.producers.or(self.producers), options.topics.or(self.topics));
        Wave {
            prefix,
            // A topic without a producer would stay empty.
            producers: producers.unwrap_or(topics.unwrap_or_default().max(10)),
            topics: topics.or(producers).unwrap_or(10),
            rate: options.rate.unwrap_or(self.rate),
            size_bytes: options.size.unwrap_or(self.size).bytes,
            load: options.load,
            jitter_ns: options.jitter.ns,
            loss: options.loss,
            signal: options.signal,
        }
    }
}

/// A configured simulator.
#[derive(Clone, Debug, PartialEq)]
struct Simulator {
    waves: Vec<Wave>,
    seed: Option<u64>,
}

impl Source for Simulator {
    /// Publishes until the server stops. Producer `p` of a wave is offset by `p / producers` of its interval, so that the ticks of a
    /// steady wave are evenly spaced: the k-th is due at `k / (producers x rate)` seconds, which is its producer time. Above 10,000
    /// ticks/s it is published up to `NAP_LOWEST_NS` later, which every measured latency includes.
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        let seeds = (0..).map(|at| self.seed.map(|seed| seed.wrapping_add(at)));
        let mut waves: Vec<Running<'_>> =
            self.waves.iter().zip(seeds).map(|(wave, seed)| Running::new(wave, seed)).collect();
        let is_dense = waves.iter().any(|wave| wave.spacing_ns() < NAP_LOWEST_NS);
        let (start_ns, start_realtime_ns) = (clock::monotonic_ns(), clock::realtime_ns());
        let mut payload = Vec::new();
        let mut nap_until_ns = 0;
        loop {
            let next_ns = waves.iter().map(Running::comes_ns).min().unwrap_or(u64::MAX);
            if !context.sleep_until(start_ns.saturating_add(next_ns.max(nap_until_ns))) {
                break;
            }
            let elapsed_ns = clock::monotonic_ns() - start_ns;
            let ingest_time_ns = clock::realtime_ns();
            let (mut dropped, mut staged, mut lost) = (0, 0, 0);
            let mut has_caught_up = true;
            for wave in &mut waves {
                dropped += wave.skip_overdue(elapsed_ns, CATCH_UP_NS);
                for _ in 0..BATCH_TICKS {
                    if wave.comes_ns() > elapsed_ns {
                        break;
                    }
                    let (due_ns, topic) = wave.make(start_realtime_ns, &mut payload);
                    let Some(topic) = topic else {
                        lost += 1;
                        continue;
                    };
                    match context.lanes().publish(topic, due_ns, ingest_time_ns, &payload) {
                        Ok(()) => staged += 1,
                        Err(_) => {
                            wave.unmake();
                            dropped += 1;
                        }
                    }
                }
                has_caught_up &= wave.comes_ns() > elapsed_ns;
            }
            if dropped > 0 {
                context.count_dropped(dropped);
            }
            if lost > 0 {
                context.status.counters().add(Counter::SourceMessagesLost, lost);
            }
            context.count_ticks(staged);
            context.note_heard();
            // Ticks that do not fit into a full ring stay staged for the next round.
            let _ = context.lanes().flush();
            if has_caught_up && is_dense {
                nap_until_ns = elapsed_ns + NAP_LOWEST_NS;
            }
        }
        let _ = context.lanes().flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::SourceBounds;

    fn refused(text: &str) -> Vec<(&'static str, String)> {
        let bounds = SourceBounds { payload_bytes_max: 1 << 10, topics_max: 100, reads_files: true };
        let mut checks = OptionChecks::new(bounds);
        let options: Options = toml::from_str(text).unwrap();
        options.configure(&mut checks);
        checks.into_refused()
    }

    #[test]
    fn waves_are_checked_and_take_what_they_do_not_say_from_the_simulator() {
        assert_eq!(
            refused(
                "rate = 5\n[[wave]]\nname = 'a'\n[[wave]]\nname = 'b'\nload = { kind = 'ramp', over = '9s' }"
            ),
            []
        );
        let options: Options =
            toml::from_str("rate = 5\nproducers = 20\n[[wave]]\nname = 'a'\ntopics = 2").unwrap();
        let wave = options.wave_of(&options.wave[0], "sim.a".into());
        assert_eq!((wave.producers, wave.topics, wave.rate), (20, 2, 5));
        for (text, part) in [
            ("[[wave]]", "name \"\""),
            ("[[wave]]\nname = 'a'\n[[wave]]\nname = 'a'", "there is such a wave already"),
            ("[[wave]]\nname = 'a'\nloss = 1.0", "loss = 1"),
            ("[[wave]]\nname = 'a'\nload = { kind = 'on-off', on = '0', off = '1s' }", "must be 10ms to"),
            ("[[wave]]\nname = 'a'\nsize = '10B'", "sim.a: size: 10B: must be 80B"),
            ("[[wave]]\nname = 'a'\nproducers = 101", "101: must be at most 100"),
        ] {
            let refused = refused(text);
            assert!(
                refused.iter().any(|(key, why)| *key == "wave" && why.contains(part)),
                "{text}: {refused:?}"
            );
        }
        assert_eq!(refused("rate = 0")[0].0, "rate");
        assert_eq!(refused("topics = 101")[0].0, "topics");
    }
}
