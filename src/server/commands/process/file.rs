//! `tickcast process ecg --file`: a record at once, and its score.

use std::io::Write;

use super::{EcgArgs, Output};
use crate::commands::CommandError;
use tickcast_ecg::{
    FileError, annotation,
    detector::{BadRate, Beat, Detector},
    follow::{Finding, Rhythm},
    info::after_ns,
    record,
    score::Score,
};
use tickcast_proto::codec::json;

/// A beat is the expert's if it is so near: what the standard for such comparisons (ANSI/AAMI EC57) allows.
const WITHIN_S: f64 = 0.150;

/// Prints the beats of the record in `--file` to `out`, and what there is to say of all of them.
///
/// # Errors
/// [`CommandError`]: the record, its annotations, or the output.
pub fn process_file(args: &EcgArgs, out: &mut impl Write) -> Result<(), CommandError> {
    let Some(file) = &args.file else { return Ok(()) };
    let record = record::load(file, args.signal).map_err(CommandError::File)?;
    let expert = args.annotations.as_deref().map(annotation::load).transpose().map_err(CommandError::File)?;
    let fs_hz = record.fs_hz;
    let refused = |error: BadRate| {
        CommandError::File(FileError { file: file.clone(), line: None, text: error.to_string() })
    };
    let mut detector = Detector::new(fs_hz).map_err(refused)?;
    let mut output = Output { out, json: args.json, complaints: 0 };
    let (mut rhythm, mut found, mut beats) = (Rhythm::default(), Vec::new(), Vec::new());
    let mut take = |beat: Beat, output: &mut Output<'_, _>| {
        rhythm.beat(fs_hz, beat.at_sample, after_ns(fs_hz, beat.at_sample), &mut found);
        beats.push(beat.at_sample);
        // A line a beat: the rate is for those who watch.
        let mut told = found.drain(..).filter(|finding| matches!(finding, Finding::Beat { .. }));
        told.try_for_each(|finding| output.finding(&finding))
    };
    for &sample in &record.samples {
        if let Some(beat) = detector.push(sample) {
            take(beat, &mut output)?;
        }
    }
    for beat in detector.finish() {
        take(beat, &mut output)?;
    }
    let (name, signal, seconds) = (&record.name, &record.signal, record.samples.len() as f64 / fs_hz);
    let object = format!(
        "{{\"op\":\"record\",\"record\":{},\"signal\":{},\"fs\":{fs_hz},\"seconds\":{seconds:.3},\"beats\":{}}}",
        json::literal(name),
        json::literal(signal),
        beats.len()
    );
    output
        .line(&object, format_args!("{}: {signal} of record {name}, {seconds:.1} s", count(beats.len())))?;
    if record.checksum_differs {
        let text = "the samples do not add up to the header's checksum";
        output
            .line(&format!("{{\"op\":\"warning\",\"text\":\"{text}\"}}"), format_args!("warning: {text}"))?;
    }
    if let Some(expert) = expert {
        let in_samples = record.samples_per_frame as u64;
        let mut expert: Vec<u64> = expert
            .iter()
            .filter(|annotation| annotation.is_beat())
            .map(|annotation| annotation.at_frame.saturating_mul(in_samples))
            .collect();
        expert.sort_unstable();
        let score = Score::new(&expert, &beats, (WITHIN_S * fs_hz) as u64);
        tell(&score, &mut output)?;
    }
    output.flush()
}

fn tell(score: &Score, output: &mut Output<'_, impl Write>) -> Result<(), CommandError> {
    let Score { found, missed, extra } = *score;
    let (sensitivity, predictivity) = (score.sensitivity_percent(), score.positive_predictivity_percent());
    let object = format!(
        "{{\"op\":\"score\",\"found\":{found},\"missed\":{missed},\"extra\":{extra},\
         \"sensitivity_percent\":{sensitivity:.3},\"positive_predictivity_percent\":{predictivity:.3}}}"
    );
    let text = format_args!(
        "sensitivity {sensitivity:.2} % ({missed} missed), positive predictivity {predictivity:.2} % ({extra} extra), \
         within 150 ms of the expert's {}",
        count(found + missed)
    );
    output.line(&object, text)
}

fn count(beats: usize) -> String {
    format!("{beats} beat{}", if beats == 1 { "" } else { "s" })
}
