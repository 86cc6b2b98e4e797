//! The ECG source: the record is read at the start, so that what is wrong with it is known then.

use std::{path::Path, sync::Arc};

use crate::{
    cli::ServeArgs,
    error::StartupError,
    limits,
    sources::ecg::{Settings, Wave},
};
use tickcast_ecg::{
    record,
    synthetic::{BPM_HIGHEST, BPM_LOWEST},
};

/// What stands for a synthetic heart instead of a file.
const SYNTHETIC: &str = "synthetic";
/// The rate of a synthetic heart where none is given, beats a minute.
const BPM_DEFAULT: f64 = 72.0;

/// The source, if it is asked for. A record is only looked for unless it `reads`, and there is no source then.
pub(super) fn source(
    args: &ServeArgs,
    payload_bytes_max: usize,
    reads: bool,
) -> Result<Option<Settings>, StartupError> {
    let Some(name) = &args.ecg else { return Ok(None) };
    let batch_max = limits::ECG_BATCH_HIGHEST.min(payload_bytes_max / size_of::<f32>());
    if !(1..=batch_max).contains(&args.ecg_batch) {
        let text = format!("{}: 1 to {batch_max} samples", args.ecg_batch);
        return Err(StartupError::Option("--ecg-batch", text));
    }
    let wave = if name == SYNTHETIC {
        if args.ecg_signal != 0 {
            return Err(StartupError::Option("--ecg-signal", "a synthetic heart has one signal: 0".into()));
        }
        let bpm = args.ecg_bpm.unwrap_or(BPM_DEFAULT);
        if !(BPM_LOWEST..=BPM_HIGHEST).contains(&bpm) {
            let text = format!("{bpm}: {BPM_LOWEST} to {BPM_HIGHEST} beats a minute");
            return Err(StartupError::Option("--ecg-bpm", text));
        }
        Wave::Synthetic(bpm)
    } else {
        if args.ecg_bpm.is_some() {
            let text = format!("a record has its own heart rate; only --ecg {SYNTHETIC} takes one");
            return Err(StartupError::Option("--ecg-bpm", text));
        }
        if !reads {
            return match Path::new(name).is_file() {
                true => Ok(None),
                false => Err(StartupError::Option("--ecg", format!("{name}: no such file"))),
            };
        }
        let record = record::load(Path::new(name), args.ecg_signal).map_err(|error| {
            let text =
                format!("{error} (give a WFDB header, FILE.hea with its data beside it, or {SYNTHETIC})");
            StartupError::Option("--ecg", text)
        })?;
        Wave::Record(Arc::new(record))
    };
    Ok(Some(Settings { wave, batch: args.ecg_batch }))
}
