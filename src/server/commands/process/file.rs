//! `tickcast process ecg --file`: analyses a whole record and scores the beats found.

use std::io::Write;

use super::{EcgArgs, Output};
use crate::commands::{CommandError, counted};
use tickcast_ecg::{
    FileError, annotation,
    detector::{BadRate, Beat, Detector},
    follow::{Finding, GapFinder, Rhythm},
    info::after_ns,
    record,
    score::Score,
};
use tickcast_proto::codec::json;

/// Largest distance between a beat found and the expert's, in seconds: the match window of ANSI/AAMI EC57.
const MATCH_WINDOW_S: f64 = 0.150;

/// Prints the beats of the record in `--file` to `out`, then a summary and, with annotations, the score.
///
/// # Errors
/// [`CommandError`]: the record or its annotations cannot be used, or the output cannot be written.
pub fn process_file(args: &EcgArgs, out: &mut impl Write) -> Result<(), CommandError> {
    let Some(file) = &args.file else {
        debug_assert!(false, "the caller checks that there is a file");
        return Ok(());
    };
    let record = record::load(file, args.signal).map_err(CommandError::File)?;
    let expert = args.annotations.as_deref().map(annotation::load).transpose().map_err(CommandError::File)?;
    let fs_hz = record.fs_hz;
    let rejected = |error: BadRate| {
        CommandError::File(FileError { file: file.clone(), line: None, text: error.to_string() })
    };
    let mut detector = Detector::new(fs_hz).map_err(rejected)?;
    let mut output = Output { out, json: args.json, problems: 0 };
    let (mut rhythm, mut found, mut beats) = (Rhythm::default(), Vec::new(), Vec::new());
    let mut report = |beat: Beat, rhythm: &mut Rhythm, output: &mut Output<'_, _>| {
        rhythm.beat(fs_hz, beat.at_sample, after_ns(fs_hz, beat.at_sample), &mut found);
        beats.push(beat.at_sample);
        // Print beats only: the rate is for people watching a live wave.
        let mut beats_found = found.drain(..).filter(|finding| matches!(finding, Finding::Beat { .. }));
        beats_found.try_for_each(|finding| output.finding(&finding))
    };
    let mut gaps = GapFinder::default();
    for sample in record.samples() {
        let at = detector.next_sample();
        if let Some((from, to)) = gaps.push(sample, at, fs_hz) {
            output.finding(&Finding::Gap { from, to })?;
            detector.skip_to(to);
            rhythm = Rhythm::default();
        }
        if let Some(beat) = detector.push(sample) {
            report(beat, &mut rhythm, &mut output)?;
        }
    }
    let end = detector.next_sample();
    for beat in detector.finish() {
        report(beat, &mut rhythm, &mut output)?;
    }
    if let Some((from, to)) = gaps.end(end, fs_hz) {
        output.finding(&Finding::Gap { from, to })?;
    }
    let (name, signal, seconds) = (&record.name, &record.signal, record.samples_total() as f64 / fs_hz);
    let object = format!(
        "{{\"op\":\"record\",\"record\":{},\"signal\":{},\"fs\":{fs_hz},\"seconds\":{seconds:.3},\"beats\":{}}}",
        json::literal(name),
        json::literal(signal),
        beats.len()
    );
    output.line(
        &object,
        format_args!("{}: {signal} of record {name}, {seconds:.1} s", counted(beats.len() as u64, "beat")),
    )?;
    if record.checksum_differs {
        let text = "the samples do not match the checksum in the header";
        output
            .line(&format!("{{\"op\":\"warning\",\"text\":\"{text}\"}}"), format_args!("warning: {text}"))?;
    }
    if let Some(expert) = expert {
        let score = Score::new(&expert.beats(&record), &beats, (MATCH_WINDOW_S * fs_hz) as u64);
        print_score(&score, &mut output)?;
    }
    output.flush()
}

fn print_score(score: &Score, output: &mut Output<'_, impl Write>) -> Result<(), CommandError> {
    let Score { found, missed, extra } = *score;
    let (sensitivity, predictivity) = (score.sensitivity_percent(), score.positive_predictivity_percent());
    let object = format!(
        "{{\"op\":\"score\",\"found\":{found},\"missed\":{missed},\"extra\":{extra},\
         \"sensitivity_percent\":{sensitivity:.3},\"positive_predictivity_percent\":{predictivity:.3}}}"
    );
    let text = format_args!(
        "sensitivity {sensitivity:.2} % ({missed} missed), positive predictivity {predictivity:.2} % ({extra} extra), \
         within 150 ms of the expert's {}",
        counted((found + missed) as u64, "beat")
    );
    output.line(&object, text)
}
