//! Electrocardiograms: WFDB records and annotations, a synthetic ECG, and an R-peak detector.
//!
//! ```text
//!  header . record (WFDB files) . synthetic  ->  sources::ecg  ->  topics ecg.wave and ecg.info
//!                                                                     |
//!  topic ecg.params  <-  tickcast process ecg  <-  follow  <-  detector  <-  filter
//! ```
//!
//! # Topics
//!
//! `ecg.wave` carries the samples. Each tick is a batch of samples in mV, oldest first, as little-endian Float32 and
//! nothing else: a browser reads it with `new Float32Array(data)`. NaN marks an invalid sample. The tick's producer time
//! is the nominal time of the batch's last sample, so sample `i` of `n` was taken at `time - (n - 1 - i) / fs`. A gap
//! between these times is a lost batch.
//!
//! `ecg.info` describes the wave as JSON:
//! `{"fs":360,"units":"mV","signal":"MLII","record":"100","batch":10,"start_ns":N}`. It is published before the first batch
//! and then once per second, so that it is always the topic's last value. `start_ns` is the time of sample 0, which was taken
//! when the server started; [`info::Info::at_sample`] maps any other time to a sample number. After the end of a record, the
//! replay starts over and sample numbers continue.
//!
//! `ecg.params` carries the results of the processor as JSON. A beat is `{"at_sample":N,"time_ns":N,"rr_ms":812.5}`: the sample
//! number and time of its R peak, and the RR interval, which is null for the first beat after a gap. A heart rate is
//! `{"bpm":73.8}`, with null if it is unknown. Beats have key 1 and heart rates key 2, so that conflation keeps the latest
//! of each.

pub mod annotation;
pub mod detector;
pub mod filter;
pub mod follow;
pub mod header;
pub mod info;
mod raw_samples;
pub mod record;
pub mod score;
pub mod synthetic;

use std::{fmt, path::PathBuf};

/// Topic of the samples.
pub const WAVE_TOPIC: &str = "ecg.wave";
/// Topic of the wave's description.
pub const INFO_TOPIC: &str = "ecg.info";
/// Topic of beats and heart rates.
pub const PARAMS_TOPIC: &str = "ecg.params";
/// Key of beats in [`PARAMS_TOPIC`].
pub const BEAT_KEY: u64 = 1;
/// Key of heart rates in [`PARAMS_TOPIC`].
pub const RATE_KEY: u64 = 2;

/// Lowest sampling frequency, Hz: the detector's passband ends at 15 Hz, and its derivative spans 20 ms.
pub const FS_HZ_LOWEST: f64 = 60.0;
/// Highest sampling frequency, Hz. Bounds the detector's memory, which holds about 1.6 s of samples.
pub const FS_HZ_HIGHEST: f64 = 10_000.0;
/// Maximum number of samples of a record, gaps included: one day at 360 Hz, 124 MiB.
pub const SAMPLES_MAX: usize = 24 * 3600 * 360;
/// Maximum size of a header file, bytes: about 60,000 segments.
pub const HEADER_BYTES_MAX: usize = 1 << 20;
/// Maximum number of signals in a record.
pub const SIGNALS_MAX: usize = 256;
/// Maximum size of an annotation file, bytes: about three million beats.
pub const ANNOTATION_BYTES_MAX: usize = 16 << 20;

/// Error in a header, signal or annotation file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    /// The file.
    pub file: PathBuf,
    /// Line number, from 1, if the error is in a particular line.
    pub line: Option<usize>,
    /// What is wrong and what to do about it.
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
