//! A heart as a source: a WFDB record, or a synthetic one, at its own rate. The topics are described in [`tickcast_ecg`].

use std::sync::Arc;

use super::{Lanes, StopFlag, sleep_until};
use crate::clock;
use tickcast_core::metrics::counters::{Counter, Counters};
use tickcast_ecg::{
    INFO_TOPIC, WAVE_TOPIC,
    info::{Info, after_ns},
    record::Record,
    synthetic::{self, Synthetic},
};

/// A source that was asleep for longer (a stopped process) skips, and counts, what it missed beyond this.
const CATCH_UP_NS: u64 = 1_000_000_000;
/// The description of the wave is published so often.
const INFO_NS: u64 = 1_000_000_000;
/// Batches staged before the rings are pushed.
const BATCHES_STAGED: u64 = 64;

/// Whose heart, and how it is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where the samples come from.
    pub wave: Wave,
    /// Samples in a tick; at least 1.
    pub batch: usize,
}

/// Where the samples come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Wave {
    /// A record, which begins again after its end.
    Record(Arc<Record>),
    /// A synthetic heart at this rate, beats a minute.
    Synthetic(f64),
}

impl Wave {
    fn info(&self, batch: usize, start_ns: u64) -> Info {
        let (record, signal, fs) = match self {
            Wave::Record(record) => (&*record.name, &*record.signal, record.fs_hz),
            Wave::Synthetic(_) => ("synthetic", "synthetic", synthetic::FS_HZ),
        };
        Info { fs, units: "mV".into(), signal: signal.into(), record: record.into(), batch, start_ns }
    }
}

/// The samples in order, without an end.
enum Samples {
    Record(Arc<Record>, usize),
    Synthetic(Synthetic),
}

impl Samples {
    fn new(wave: &Wave) -> Samples {
        match wave {
            Wave::Record(record) => Samples::Record(record.clone(), 0),
            Wave::Synthetic(bpm) => Samples::Synthetic(Synthetic::new(synthetic::FS_HZ, *bpm)),
        }
    }

    fn next_mv(&mut self) -> f32 {
        match self {
            Samples::Synthetic(wave) => wave.next_mv(),
            Samples::Record(record, at) => {
                // A record has at least one sample.
                let sample = record.samples.get(*at).copied().unwrap_or(f32::NAN);
                *at = (*at + 1) % record.samples.len().max(1);
                sample
            }
        }
    }

    /// The next `count` samples as a payload.
    fn fill(&mut self, payload: &mut Vec<u8>, count: usize) {
        payload.clear();
        payload.extend((0..count).flat_map(|_| self.next_mv().to_le_bytes()));
    }
}

/// Publishes until the server stops, whatever becomes of the ticks (open loop): a batch is due when its last sample is,
/// and carries that as its time. One that finds a ring full is dropped and counted; its hole in the times is seen.
pub fn run(settings: &Settings, mut lanes: Lanes, counters: &Arc<Counters>, stop: &StopFlag) {
    let (start_ns, start_realtime_ns) = (clock::monotonic_ns(), clock::realtime_ns());
    let info = settings.wave.info(settings.batch, start_realtime_ns);
    if let Wave::Record(record) = &settings.wave
        && record.checksum_differs
    {
        ::log::warn!("ecg: record {}: the samples do not add up to the header's checksum", record.name);
    }
    let (description, batch) = (info.to_json(), settings.batch as u64);
    let due_ns = |k: u64| after_ns(info.fs, (k + 1) * batch - 1);
    let mut samples = Samples::new(&settings.wave);
    let mut payload = Vec::with_capacity(4 * settings.batch);
    let (mut k, mut info_due_ns) = (0, 0);
    loop {
        let elapsed_ns = clock::monotonic_ns() - start_ns;
        let ingest_time_ns = clock::realtime_ns();
        if elapsed_ns >= info_due_ns {
            let time_ns = start_realtime_ns + info_due_ns;
            lanes.publish(INFO_TOPIC, time_ns, ingest_time_ns, &description);
            info_due_ns = elapsed_ns - elapsed_ns % INFO_NS + INFO_NS;
        }
        while due_ns(k).saturating_add(CATCH_UP_NS) < elapsed_ns && !stop.is_set() {
            (0..batch).for_each(|_| _ = samples.next_mv());
            counters.add(Counter::TicksEcgDropped, 1);
            k += 1;
        }
        let staged_end = k + BATCHES_STAGED;
        while k < staged_end && due_ns(k) <= elapsed_ns {
            samples.fill(&mut payload, settings.batch);
            if !lanes.publish_bytes(WAVE_TOPIC, start_realtime_ns + due_ns(k), ingest_time_ns, &payload) {
                counters.add(Counter::TicksEcgDropped, 1);
            }
            k += 1;
        }
        lanes.flush();
        if !sleep_until(start_ns + due_ns(k).min(info_due_ns), stop) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(samples: Vec<f32>) -> Wave {
        Wave::Record(Arc::new(Record {
            name: "r".into(),
            signal: "MLII".into(),
            fs_hz: 360.0,
            samples_per_frame: 1,
            samples,
            checksum_differs: false,
        }))
    }

    #[test]
    fn batches_are_float32_and_a_record_begins_again_in_the_middle_of_one() {
        let mut samples = Samples::new(&record(vec![0.5, -1.25, 3.0]));
        let mut payload = Vec::new();
        for expected in [[0.5f32, -1.25], [3.0, 0.5], [-1.25, 3.0]] {
            samples.fill(&mut payload, 2);
            assert_eq!(payload, expected.map(f32::to_le_bytes).concat());
        }
    }

    #[test]
    fn the_description_is_that_of_the_wave() {
        let info = record(vec![0.0]).info(10, 5);
        assert_eq!((info.fs, &*info.units, &*info.signal, &*info.record), (360.0, "mV", "MLII", "r"));
        assert_eq!((info.batch, info.start_ns), (10, 5));
        let json = String::from_utf8(Wave::Synthetic(72.0).info(10, 5).to_json()).unwrap();
        let start =
            r#"{"fs":250.0,"units":"mV","signal":"synthetic","record":"synthetic","batch":10,"start_ns":5}"#;
        assert_eq!(json, start);
    }
}
