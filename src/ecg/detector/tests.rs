use std::{f64::consts::TAU, path::Path};

use super::*;
use crate::{
    annotation,
    record::{
        self, Record,
        tests::{made_record, record_100},
    },
    score::Score,
    synthetic::{FS_HZ, Synthetic},
};

fn detect(fs_hz: f64, samples: impl IntoIterator<Item = f32>) -> Vec<u64> {
    let mut detector = Detector::new(fs_hz).unwrap();
    let mut beats: Vec<Beat> = samples.into_iter().filter_map(|sample| detector.push(sample)).collect();
    beats.extend(detector.finish());
    assert!(beats.is_sorted_by_key(|beat| beat.at_sample), "in order");
    beats.iter().map(|beat| beat.at_sample).collect()
}

/// A record's first signal and its annotated beats.
fn annotated(header: &Path) -> (Record, Vec<u64>) {
    let annotations = annotation::load(&header.with_extension("atr")).unwrap();
    let record = record::load(header, 0).unwrap();
    let beats = annotations.beats(&record);
    (record, beats)
}

fn assert_scores(what: &str, expert: &[u64], detected: &[u64], fs_hz: f64, percent_min: f64) {
    let score = Score::new(expert, detected, (0.150 * fs_hz) as u64);
    let (sensitivity, predictivity) = (score.sensitivity_percent(), score.positive_predictivity_percent());
    // `cargo test -- --nocapture` shows the figures.
    println!(
        "{what}: {} beats, sensitivity {sensitivity:.2} %, positive predictivity {predictivity:.2} % ({score:?})",
        expert.len()
    );
    assert!(sensitivity >= percent_min && predictivity >= percent_min, "{what}: {score:?}");
}

fn assert_beats_match_the_annotations(header: &Path) {
    let (record, expert) = annotated(header);
    let detected = detect(record.fs_hz, record.samples());
    assert_scores(&record.name, &expert, &detected, record.fs_hz, 99.5);
    let near = |within| Score::new(&expert, &detected, within).found;
    println!("R peaks within 3 samples of the annotation: {}, within 10: {}", near(3), near(10));
    assert!(near(10) as f64 > 0.99 * expert.len() as f64, "beats are located on the R peak itself");
}

#[test]
fn beats_of_the_made_record_match_its_annotations() {
    assert_beats_match_the_annotations(&made_record());
}

#[test]
#[ignore = "needs TICKCAST_RECORD=path/to/100.hea"]
fn beats_of_record_100_match_the_reference_annotations() {
    assert_beats_match_the_annotations(&record_100());
}

fn assert_beats_are_found_on_the_other_lead_and_inverted(header: &Path) {
    let (record, expert) = annotated(header);
    let other = record::load(header, 1).unwrap();
    assert_scores("the other lead", &expert, &detect(other.fs_hz, other.samples()), record.fs_hz, 99.5);
    let inverted = record.samples().map(|sample| -sample);
    assert_scores("inverted", &expert, &detect(record.fs_hz, inverted), record.fs_hz, 99.5);
}

#[test]
fn beats_of_the_made_record_are_found_on_the_other_lead_and_inverted() {
    assert_beats_are_found_on_the_other_lead_and_inverted(&made_record());
}

#[test]
#[ignore = "needs TICKCAST_RECORD=path/to/100.hea"]
fn beats_of_record_100_are_found_on_the_other_lead_and_inverted() {
    assert_beats_are_found_on_the_other_lead_and_inverted(&record_100());
}

/// Approximately Gaussian noise: the sum of twelve uniform values.
fn noise(random: &mut fastrand::Rng) -> f32 {
    (0..12).map(|_| random.f32()).sum::<f32>() - 6.0
}

/// Noise to add at a time in seconds, mV.
type Noise = fn(f64, &mut fastrand::Rng) -> f32;

fn assert_beats_are_found_despite_noise_and_baseline_wander(header: &Path) {
    let (record, expert) = annotated(header);
    let noises: [(&str, f64, Noise); 6] = [
        ("1.5 mV of baseline wander", 99.5, |s, _| 1.5 * sine(0.3 * s) + 0.7 * sine(0.11 * s)),
        ("0.3 mV of 50 Hz interference", 99.5, |s, _| 0.3 * sine(50.0 * s)),
        ("0.1 mV rms of white noise", 99.5, |_, random| 0.1 * noise(random)),
        ("all of these", 99.5, |s, random| 1.5 * sine(0.3 * s) + 0.3 * sine(50.0 * s) + 0.1 * noise(random)),
        ("0.3 mV rms of white noise", 99.5, |_, random| 0.3 * noise(random)),
        ("0.5 mV rms of white noise", 85.0, |_, random| 0.5 * noise(random)),
    ];
    for (what, percent_min, noise) in noises {
        let mut random = fastrand::Rng::with_seed(1);
        let samples = record.samples().enumerate();
        let noisy = samples.map(|(n, sample)| sample + noise(n as f64 / record.fs_hz, &mut random));
        let detected = detect(record.fs_hz, noisy);
        assert_scores(&format!("with {what}"), &expert, &detected, record.fs_hz, percent_min);
    }
}

#[test]
fn beats_of_the_made_record_are_found_despite_noise_and_baseline_wander() {
    assert_beats_are_found_despite_noise_and_baseline_wander(&made_record());
}

#[test]
#[ignore = "needs TICKCAST_RECORD=path/to/100.hea"]
fn beats_of_record_100_are_found_despite_noise_and_baseline_wander() {
    assert_beats_are_found_despite_noise_and_baseline_wander(&record_100());
}

fn sine(cycles: f64) -> f32 {
    (TAU * cycles).sin() as f32
}

fn assert_beats_are_found_at_every_sampling_frequency(header: &Path) {
    let (record, expert) = annotated(header);
    let whole: Vec<f32> = record.samples().collect();
    for fs_hz in [100.0, 128.0, 250.0, 500.0, 1_000.0] {
        let ratio = record.fs_hz / fs_hz;
        let len = ((whole.len() - 1) as f64 / ratio) as usize;
        let samples = (0..len).map(|n| {
            let at = n as f64 * ratio;
            let (before, fraction) = (whole[at as usize], at.fract() as f32);
            before + fraction * (whole[at as usize + 1] - before)
        });
        let expert: Vec<u64> = expert.iter().map(|&beat| (beat as f64 / ratio) as u64).collect();
        assert_scores(&format!("at {fs_hz} Hz"), &expert, &detect(fs_hz, samples), fs_hz, 99.5);
    }
}

#[test]
fn beats_of_the_made_record_are_found_at_every_sampling_frequency() {
    assert_beats_are_found_at_every_sampling_frequency(&made_record());
}

#[test]
#[ignore = "needs TICKCAST_RECORD=path/to/100.hea"]
fn beats_of_record_100_are_found_at_every_sampling_frequency() {
    assert_beats_are_found_at_every_sampling_frequency(&record_100());
}

/// Some seconds of a synthetic ECG, and its R peaks.
fn synthetic(bpm: f64, seconds: usize) -> (Vec<f32>, Vec<u64>) {
    let mut wave = Synthetic::new(FS_HZ, bpm);
    let (mut samples, mut peaks) = (Vec::new(), Vec::new());
    for n in 0..seconds * FS_HZ as usize {
        samples.push(wave.next_mv());
        if wave.was_peak() {
            peaks.push(n as u64);
        }
    }
    (samples, peaks)
}

/// Asserts that the beats from sample `from` on are found within 20 ms, with at most one error.
fn assert_all_found(what: &str, peaks: &[u64], detected: &[u64], from: u64) {
    let part = |beats: &[u64]| beats.iter().copied().filter(|&beat| beat >= from).collect::<Vec<u64>>();
    let score = Score::new(&part(peaks), &part(detected), (0.020 * FS_HZ) as u64);
    assert!(score.missed + score.extra <= 1 && score.found > 0, "{what}: {score:?} {detected:?} {peaks:?}");
}

#[test]
fn every_heart_rate_is_detected() {
    for bpm in [20.0, 30.0, 45.0, 60.0, 72.0, 100.0, 140.0, 180.0, 220.0] {
        let (samples, peaks) = synthetic(bpm, 60);
        assert_all_found(&format!("{bpm} bpm"), &peaks, &detect(FS_HZ, samples), 1_000);
    }
}

#[test]
fn each_beat_is_reported_once_within_half_a_second() {
    let (samples, peaks) = synthetic(72.0, 30);
    let mut detector = Detector::new(FS_HZ).unwrap();
    let mut reported = Vec::new();
    for (n, &sample) in samples.iter().enumerate() {
        reported.extend(detector.push(sample).map(|beat| (beat.at_sample, n as u64)));
    }
    let after_learning = reported.iter().filter(|(at_sample, _)| *at_sample > 750);
    assert!(after_learning.clone().all(|(at_sample, now)| now - at_sample < 125), "too late: {reported:?}");
    assert!(reported.len() + 1 >= peaks.len());
}

#[test]
fn thresholds_adapt_to_a_signal_that_becomes_ten_times_smaller_or_larger() {
    for factor in [0.1, 10.0] {
        let (samples, peaks) = synthetic(72.0, 60);
        let changed = samples.iter().enumerate().map(|(n, s)| if n < 5_000 { *s } else { s * factor });
        let detected = detect(FS_HZ, changed);
        assert_all_found("after the change", &peaks, &detected, 5_000 + 7 * 250);
    }
}

#[test]
fn an_artifact_does_not_hide_the_following_beats() {
    for height in [5.0, 100.0, 9_000.0, -9_000.0] {
        let (mut samples, peaks) = synthetic(72.0, 60);
        samples[5_000..5_010].fill(height);
        assert_all_found("after the artifact", &peaks, &detect(FS_HZ, samples), 5_000 + 7 * 250);
    }
}

#[test]
fn a_flat_line_has_no_beats_and_the_ecg_after_it_has() {
    for level in [0.0, 3.3, -500.0, f32::NAN, f32::INFINITY, 1e30] {
        assert_eq!(detect(FS_HZ, vec![level; 10_000]).len(), 0, "{level}");
        let (samples, peaks) = synthetic(72.0, 30);
        let detected = detect(FS_HZ, std::iter::repeat_n(level, 10_000).chain(samples));
        let peaks: Vec<u64> = peaks.iter().map(|peak| peak + 10_000).collect();
        assert_all_found(&format!("after {level}"), &peaks, &detected, 10_000 + 3 * 250);
    }
}

#[test]
fn bad_samples_affect_only_their_neighborhood() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -1e9] {
        let (mut samples, peaks) = synthetic(72.0, 60);
        samples[5_000..5_003].fill(bad);
        samples[8_000..8_500].fill(bad);
        let detected = detect(FS_HZ, samples);
        for (from, to) in [(750, 4_800), (5_250, 7_800), (8_800, 15_000)] {
            let part = |beats: &[u64]| {
                beats.iter().copied().filter(|beat| (from..to).contains(beat)).collect::<Vec<u64>>()
            };
            assert_all_found(&format!("{bad} {from}"), &part(&peaks), &part(&detected), from);
        }
        assert!(!detected.iter().any(|beat| (8_010..8_490).contains(beat)), "no beat within bad samples");
    }
}

#[test]
fn after_a_gap_sample_numbers_continue_and_learned_levels_persist() {
    let (samples, peaks) = synthetic(72.0, 30);
    let mut detector = Detector::new(FS_HZ).unwrap();
    let early: Vec<Beat> = samples[..5_000].iter().filter_map(|&sample| detector.push(sample)).collect();
    assert!(early.len() > 20);
    detector.skip_to(1_000_000);
    assert_eq!(detector.next_sample(), 1_000_000);
    let late = samples[5_100..].iter().filter_map(|&sample| detector.push(sample));
    let late: Vec<u64> = late.map(|beat| beat.at_sample - 1_000_000 + 5_100).collect();
    assert_all_found("after the gap", &peaks[..peaks.len() - 1], &late, 5_300);
}

#[test]
fn sampling_frequencies_out_of_range_are_rejected() {
    for fs_hz in [0.0, -1.0, 59.9, 10_001.0, f64::NAN, f64::INFINITY] {
        assert!(Detector::new(fs_hz).unwrap_err().to_string().contains("60 to 10000"));
    }
}

#[test]
fn arbitrary_samples_cause_no_panic_and_no_unbounded_growth() {
    let mut random = fastrand::Rng::with_seed(5);
    for fs_hz in [60.0, 61.3, 360.0, 10_000.0] {
        let mut detector = Detector::new(fs_hz).unwrap();
        for _ in 0..200_000 {
            let sample = match random.u8(..) {
                0 => f32::from_bits(random.u32(..)),
                1..100 => 100.0 * noise(&mut random),
                _ => noise(&mut random),
            };
            detector.push(sample);
            if random.u16(..) == 0 {
                detector.skip_to(random.u64(..u64::MAX / 2));
            }
            assert!(detector.candidates.len() <= CANDIDATES_MAX && detector.beats.len() <= CANDIDATES_MAX);
        }
        detector.finish();
        assert_eq!(detector.beats.len(), 0);
    }
}
