//! Electrocardiograms: WFDB records and their annotations, a synthetic wave, and the detector of R peaks.
//!
//! ```text
//!  header . record (WFDB files) . synthetic  ->  ingest::ecg  ->  topics ecg.wave and ecg.info
//!                                                                     |
//!  topic ecg.params  <-  tickcast process ecg  <-  follow  <-  detector  <-  filter
//! ```
//!
//! # The topics
//!
//! `ecg.wave`: each tick is one batch of samples in mV, plain Float32, little-endian, oldest first, and nothing else: a
//! browser reads it with `new Float32Array(data)`. NaN is a sample that the recorder marked as invalid. The tick's
//! producer time is when the batch was due to be sent, which is the time of its last sample: sample `i` of `n` was
//! taken at `time - (n - 1 - i) / fs`. A hole in these times is a lost batch.
//!
//! `ecg.info`: what the wave is, as JSON, before the first batch and once a second, so that it is the topic's latest:
//! `{"fs":360,"units":"mV","signal":"MLII","record":"100","batch":10,"start_ns":N}`. `start_ns` is the time of sample 0
//! of this life of the server; [`info::Info::at_sample`] numbers the others. A record that has come to its end begins
//! again, and the numbers go on.
//!
//! `ecg.params`: what the processor finds, as JSON: beats `{"at_sample":N,"time_ns":N,"rr_ms":812.5}` with the number and
//! the time of the sample that is the R peak, and the heart rate `{"bpm":73.8}`. `rr_ms` is null for the first beat after a
//! gap; `bpm` is null when there is none to tell. Beats have the key 1 and the rate the key 2, so that conflation
//! keeps the newest of each.

pub mod annotation;
pub mod detector;
pub mod filter;
pub mod follow;
pub mod header;
pub mod info;
pub mod record;
pub mod score;
pub mod synthetic;

use std::{fmt, path::PathBuf};

/// The topic of the samples.
pub const WAVE_TOPIC: &str = "ecg.wave";
/// The topic that says what the samples are.
pub const INFO_TOPIC: &str = "ecg.info";
/// The topic of beats and heart rate.
pub const PARAMS_TOPIC: &str = "ecg.params";
/// The key of beats in [`PARAMS_TOPIC`].
pub const BEAT_KEY: u64 = 1;
/// The key of heart rates in [`PARAMS_TOPIC`].
pub const RATE_KEY: u64 = 2;

/// Slowest sampling rate, Hz: the detector's band ends at 15 Hz, and its derivative spans 20 ms.
pub const FS_HZ_LOWEST: f64 = 60.0;
/// Fastest sampling rate, Hz: bounds the detector's memory, which is some 1.6 s of samples.
pub const FS_HZ_HIGHEST: f64 = 10_000.0;
/// Samples of a record that are read: a day at 360 Hz, 124 MiB.
pub const SAMPLES_MAX: usize = 24 * 3600 * 360;
/// Bytes of a header file.
pub const HEADER_BYTES_MAX: usize = 64 << 10;
/// Signals of a record: WFDB's own bound.
pub const SIGNALS_MAX: usize = 32;
/// Bytes of an annotation file: some three million beats.
pub const ANNOTATION_BYTES_MAX: usize = 16 << 20;

/// What is wrong with a file of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1, where the file has lines and one is to blame.
    pub line: Option<usize>,
    /// What is wrong and what to do.
    pub text: String,
}

impl FileError {
    fn new(file: impl Into<PathBuf>, text: impl Into<String>) -> FileError {
        FileError { file: file.into(), line: None, text: text.into() }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, " line {line}")?;
        }
        write!(f, ": {}", self.text)
    }
}

impl std::error::Error for FileError {}
