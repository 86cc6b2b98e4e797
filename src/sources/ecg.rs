//! The ECG source: a WFDB record or a synthetic ECG, at its own rate. [`tickcast_ecg`] describes the topics. If a ring is
//! full, the batch is dropped and counted.

use std::{path::Path, sync::Arc};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{
    Source, SourceContext, SourceError,
    kind::{Configured, Flags, OptionChecks, SourceOptions, Starts},
};
use crate::limits;
use tickcast_common::clock;
use tickcast_ecg::{
    INFO_TOPIC, WAVE_TOPIC,
    info::{Info, after_ns},
    record::{self, Cursor, Record},
    synthetic::{self, BPM_HIGHEST, BPM_LOWEST, Synthetic},
};

/// The record name that selects the synthetic ECG.
const SYNTHETIC: &str = "synthetic";
/// Heart rate of the synthetic ECG unless configured, beats per minute.
const BPM_DEFAULT: f64 = 72.0;

/// Batches overdue by more than this, because the process was stopped, are dropped and counted.
const CATCH_UP_NS: u64 = 1_000_000_000;
/// Interval between two descriptions of the waveform.
const INFO_NS: u64 = 1_000_000_000;
/// Batches staged before the rings are flushed.
const BATCHES_STAGED: u64 = 64;

/// A `[[source]]` of kind `ecg`.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[group(id = "ecg")]
#[command(next_help_heading = "ECG")]
pub struct Options {
    /// Stream a WFDB record, or `synthetic`, on ecg.wave, in a loop
    #[arg(id = "ecg_record", long = "ecg", value_name = "FILE.hea")]
    record: Option<String>,
    /// Signal of the record, counted from 0
    #[arg(id = "ecg_signal", long = "ecg-signal", value_name = "N", default_value_t = Options::default().signal)]
    signal: usize,
    /// Samples per tick
    #[arg(id = "ecg_batch", long = "ecg-batch", value_name = "N", default_value_t = Options::default().batch)]
    batch: usize,
    /// Heart rate of the synthetic ECG, beats per minute [default: 72]
    #[arg(id = "ecg_bpm", long = "ecg-bpm", value_name = "BPM")]
    bpm: Option<f64>,
}

impl Default for Options {
    fn default() -> Options {
        Options { record: None, signal: 0, batch: 10, bpm: None }
    }
}

impl SourceOptions for Options {
    const KIND: &'static str = "ecg";
    const REQUIRED: &'static [&'static str] = &["record"];
    const IS_SINGLE: bool = true;
    const FLAGS: Option<Flags> = Some(Flags::of::<Options>(Starts::Beside, "ecg_"));
    const NEXT: Option<(&'static str, &'static str)> = Some(("and for the heart beats", "process ecg"));

    /// Reads the record, so that errors in it are reported at the start.
    fn configure(self, checks: &mut OptionChecks) -> Option<Configured> {
        let batch_max = limits::ECG_BATCH_HIGHEST.min(checks.bounds.payload_bytes_max / size_of::<f32>());
        if !(1..=batch_max).contains(&self.batch) {
            checks.refuse("batch", format!("{}: must be 1 to {batch_max} samples", self.batch));
        }
        let wave = match self.record.as_deref().unwrap_or_default() {
            SYNTHETIC => self.synthetic(checks),
            name => self.record(name, checks)?,
        };
        Some(Configured::new("ecg.*", Settings { wave, batch: self.batch }))
    }
}

impl Options {
    fn synthetic(&self, checks: &mut OptionChecks) -> Wave {
        if self.signal != 0 {
            checks.refuse("signal", "must be 0: the synthetic ECG has one signal");
        }
        let bpm = self.bpm.unwrap_or(BPM_DEFAULT);
        if !(BPM_LOWEST..=BPM_HIGHEST).contains(&bpm) {
            let text = format!("{bpm}: must be {BPM_LOWEST} to {BPM_HIGHEST} beats per minute");
            checks.refuse("bpm", text);
        }
        Wave::Synthetic(bpm)
    }

    fn record(&self, name: &str, checks: &mut OptionChecks) -> Option<Wave> {
        if self.bpm.is_some() {
            let text = format!("a record has its own heart rate; use it with --ecg {SYNTHETIC} only");
            checks.refuse("bpm", text);
        }
        if !checks.bounds.reads_files {
            checks.regular_file("record", Path::new(name));
            return None;
        }
        match record::load(Path::new(name), self.signal) {
            Ok(record) => Some(Wave::Record(Arc::new(record))),
            Err(error) => {
                let text = format!("{error} (give a WFDB header, FILE.hea beside its data, or {SYNTHETIC})");
                checks.refuse("record", text);
                None
            }
        }
    }
}

/// A configured ECG source.
#[derive(Clone, Debug, PartialEq)]
struct Settings {
    /// Where the samples come from.
    wave: Wave,
    /// Samples per tick; at least 1.
    batch: usize,
}

/// Where the samples come from.
#[derive(Clone, Debug, PartialEq)]
enum Wave {
    /// A record, repeated after its end.
    Record(Arc<Record>),
    /// A synthetic ECG with this heart rate, beats per minute.
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

/// The endless sequence of samples.
enum Samples {
    Record(Arc<Record>, Cursor),
    Synthetic(Synthetic),
}

impl Samples {
    fn new(wave: &Wave) -> Samples {
        match wave {
            Wave::Record(record) => Samples::Record(record.clone(), Cursor::default()),
            Wave::Synthetic(bpm) => Samples::Synthetic(Synthetic::new(synthetic::FS_HZ, *bpm)),
        }
    }

    fn next_mv(&mut self) -> f32 {
        match self {
            Samples::Synthetic(wave) => wave.next_mv(),
            Samples::Record(record, cursor) => record.next(cursor).unwrap_or_else(|| {
                *cursor = Cursor::default();
                // A record has at least one sample.
                record.next(cursor).unwrap_or(f32::NAN)
            }),
        }
    }

    /// Replaces `payload` by the next `count` samples.
    fn fill(&mut self, payload: &mut Vec<u8>, count: usize) {
        payload.clear();
        payload.extend((0..count).flat_map(|_| self.next_mv().to_le_bytes()));
    }
}

impl Source for Settings {
    /// Publishes until the server stops, in an open loop: a batch is due at the time of its last sample, which is its producer
    /// time. A dropped batch leaves a gap in the times.
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        let (start_ns, start_realtime_ns) = (clock::monotonic_ns(), clock::realtime_ns());
        let info = self.wave.info(self.batch, start_realtime_ns);
        if let Wave::Record(record) = &self.wave {
            let (name, gaps) = (&record.name, record.gaps());
            if record.checksum_differs {
                ::log::warn!("ecg: record {name}: the samples do not add up to the header's checksum");
            }
            if !gaps.is_empty() {
                let seconds = gaps.iter().map(|(from, to)| to - from).sum::<u64>() as f64 / record.fs_hz;
                ::log::info!(
                    "ecg: record {name}: {} gaps, {seconds:.1} s in all, in which the samples are NaN",
                    gaps.len()
                );
            }
        }
        let (description, batch) = (info.to_json(), self.batch as u64);
        let due_ns = |k: u64| after_ns(info.fs, (k + 1) * batch - 1);
        let mut samples = Samples::new(&self.wave);
        let mut payload = Vec::with_capacity(4 * self.batch);
        let (mut k, mut info_due_ns) = (0, 0);
        loop {
            let elapsed_ns = clock::monotonic_ns() - start_ns;
            let ingest_time_ns = clock::realtime_ns();
            if elapsed_ns >= info_due_ns {
                let time_ns = start_realtime_ns + info_due_ns;
                // The next description follows within a second.
                let published = context.lanes().publish(INFO_TOPIC, time_ns, ingest_time_ns, &description);
                context.count_ticks(u64::from(published.is_ok()));
                info_due_ns = elapsed_ns - elapsed_ns % INFO_NS + INFO_NS;
            }
            while due_ns(k).saturating_add(CATCH_UP_NS) < elapsed_ns && !context.is_stopping() {
                (0..batch).for_each(|_| _ = samples.next_mv());
                context.count_dropped(1);
                k += 1;
            }
            let staged_end = k + BATCHES_STAGED;
            while k < staged_end && due_ns(k) <= elapsed_ns {
                samples.fill(&mut payload, self.batch);
                let time_ns = start_realtime_ns + due_ns(k);
                match context.lanes().publish_bytes(WAVE_TOPIC, time_ns, ingest_time_ns, &payload) {
                    Ok(()) => context.count_ticks(1),
                    Err(_) => context.count_dropped(1),
                }
                k += 1;
            }
            context.note_heard();
            // Ticks that do not fit into a full ring stay staged for the next round.
            let _ = context.lanes().flush();
            if !context.sleep_until(start_ns + due_ns(k).min(info_due_ns)) {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tickcast_ecg::record::Piece;

    fn record(samples: Vec<f32>) -> Wave {
        Wave::Record(Arc::new(Record {
            name: "r".into(),
            signal: "MLII".into(),
            fs_hz: 360.0,
            samples_per_frame: 1,
            pieces: vec![Piece::Samples(samples)],
            checksum_differs: false,
        }))
    }

    #[test]
    fn batches_are_float32_and_a_record_repeats_within_a_batch() {
        let mut samples = Samples::new(&record(vec![0.5, -1.25, 3.0]));
        let mut payload = Vec::new();
        for expected in [[0.5f32, -1.25], [3.0, 0.5], [-1.25, 3.0]] {
            samples.fill(&mut payload, 2);
            assert_eq!(payload, expected.map(f32::to_le_bytes).concat());
        }
    }

    #[test]
    fn a_gap_is_nan_of_its_length_each_time_round() {
        let Wave::Record(mut made) = record(vec![1.0]) else { panic!("a record") };
        let pieces = vec![Piece::Samples(vec![1.0]), Piece::Gap(2), Piece::Samples(vec![2.0])];
        Arc::get_mut(&mut made).unwrap().pieces = pieces;
        let mut samples = Samples::new(&Wave::Record(made));
        for _ in 0..2 {
            let got = [(); 4].map(|()| samples.next_mv());
            assert!(got[0] == 1.0 && got[1].is_nan() && got[2].is_nan() && got[3] == 2.0, "{got:?}");
        }
    }

    #[test]
    fn the_description_matches_the_waveform() {
        let info = record(vec![0.0]).info(10, 5);
        assert_eq!((info.fs, &*info.units, &*info.signal, &*info.record), (360.0, "mV", "MLII", "r"));
        assert_eq!((info.batch, info.start_ns), (10, 5));
        let json = String::from_utf8(Wave::Synthetic(72.0).info(10, 5).to_json()).unwrap();
        let start =
            r#"{"fs":250.0,"units":"mV","signal":"synthetic","record":"synthetic","batch":10,"start_ns":5}"#;
        assert_eq!(json, start);
    }
}
