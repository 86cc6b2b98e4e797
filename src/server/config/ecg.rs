//! The ECG source. The record is read at the start, so that a bad one is reported then.

use std::{path::Path, sync::Arc};

use crate::{
    cli::serve::EcgOptions,
    limits,
    sources::ecg::{Settings, Wave},
};
use tickcast_ecg::{
    record,
    synthetic::{BPM_HIGHEST, BPM_LOWEST},
};

/// The name that stands for the synthetic ECG instead of a file.
const SYNTHETIC: &str = "synthetic";
/// Heart rate of the synthetic ECG unless configured, beats per minute.
const BPM_DEFAULT: f64 = 72.0;

/// The source; `None` unless `reads`: then a record is only looked for. `refuse` collects what is wrong, by its key.
pub(super) fn source(
    options: &EcgOptions,
    payload_bytes_max: usize,
    reads: bool,
    mut refuse: impl FnMut(&str, String),
) -> Option<Settings> {
    let name = options.ecg_record.as_deref().unwrap_or_default();
    let batch_max = limits::ECG_BATCH_HIGHEST.min(payload_bytes_max / size_of::<f32>());
    if !(1..=batch_max).contains(&options.ecg_batch) {
        refuse("batch", format!("{}: must be 1 to {batch_max} samples", options.ecg_batch));
    }
    let wave = if name == SYNTHETIC {
        if options.ecg_signal != 0 {
            refuse("signal", "must be 0: the synthetic ECG has one signal".into());
        }
        let bpm = options.ecg_bpm.unwrap_or(BPM_DEFAULT);
        if !(BPM_LOWEST..=BPM_HIGHEST).contains(&bpm) {
            refuse("bpm", format!("{bpm}: must be {BPM_LOWEST} to {BPM_HIGHEST} beats per minute"));
        }
        Wave::Synthetic(bpm)
    } else {
        if options.ecg_bpm.is_some() {
            refuse("bpm", format!("a record has its own heart rate; use it with --ecg {SYNTHETIC} only"));
        }
        if !reads {
            if !Path::new(name).is_file() {
                refuse("record", format!("{name}: no such file"));
            }
            return None;
        }
        match record::load(Path::new(name), options.ecg_signal) {
            Ok(record) => Wave::Record(Arc::new(record)),
            Err(error) => {
                refuse(
                    "record",
                    format!("{error} (give a WFDB header, FILE.hea beside its data, or {SYNTHETIC})"),
                );
                return None;
            }
        }
    };
    Some(Settings { wave, batch: options.ecg_batch })
}
