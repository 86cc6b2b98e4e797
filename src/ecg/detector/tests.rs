use std::{f64::consts::TAU, path::Path};

use super::*;
use crate::ecg::{
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
    let beats = annotations.iter().filter(|a| a.is_beat()).map(|a| a.at_frame).collect();
    (record::load(header, 0).unwrap(), beats)
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

fn assert_found_at_the_r_peaks(header: &Path) {
    let (record, expert) = annotated(header);
    let detected = detect(record.fs_hz, record.samples.iter().copied());
    assert_scores(&record.name, &expert, &detected, record.fs_hz, 99.5);
    let near = |within| Score::new(&expert, &detected, within).found;
    println!("R peaks within 3 samples of the annotation: {}, within 10: {}", near(3), near(10));
    assert!(near(10) as f64 > 0.99 * expert.len() as f64, "located on the R peak itself");
}

#[test]
fn the_made_record_is_found_as_annotated() {
    assert_found_at_the_r_peaks(&made_record());
}

#[test]
#[ignore = "needs TICKCAST_RECORD=path/to/100.hea"]
fn record_100_is_found_as_its_cardiologists_found_it() {
    assert_found_at_the_r_peaks(&record_100());
}

fn assert_found_on_the_other_lead_and_upside_down(header: &Path) {
    let (record, expert) = annotated(header);
    let other = record::load(header, 1).unwrap();
    assert_scores("the other lead", &expert, &detect(other.fs_hz, other.samples), record.fs_hz, 99.5);
    let inverted = record.samples.iter().map(|sample| -sample);
    assert_scores("inverted", &expert, &detect(record.fs_hz, inverted), record.fs_hz, 99.5);
}

#[test]
fn the_made_record_is_found_on_the_other_lead_and_upside_down() {
    assert_found_on_the_other_lead_and_upside_down(&made_record());
}

#[test]
#[ignore = "needs TICKCAST_RECORD=path/to/100.hea"]
fn record_100_is_found_on_the_other_lead_and_upside_down() {
    assert_found_on_the_other_lead_and_upside_down(&record_100());
}

/// Gaussian, near enough: the sum of twelve even ones.
fn noise(random: &mut fastrand::Rng) -> f32 {
    (0..12).map(|_| random.f32()).sum::<f32>() - 6.0
}

/// What is added at a time in seconds, mV.
type Disturbance = fn(f64, &mut fastrand::Rng) -> f32;

fn assert_found_through_noise_and_wander(header: &Path) {
    let (record, expert) = annotated(header);
    let disturbances: [(&str, f64, Disturbance); 6] = [
        ("1.5 mV of baseline wander", 99.5, |s, _| 1.5 * sine(0.3 * s) + 0.7 * sine(0.11 * s)),
        ("0.3 mV of 50 Hz", 99.5, |s, _| 0.3 * sine(50.0 * s)),
        ("0.1 mV rms of white noise", 99.5, |_, random| 0.1 * noise(random)),
        ("all of it", 99.5, |s, random| 1.5 * sine(0.3 * s) + 0.3 * sine(50.0 * s) + 0.1 * noise(random)),
        ("0.3 mV rms of white noise", 99.5, |_, random| 0.3 * noise(random)),
        ("0.5 mV rms of white noise", 85.0, |_, random| 0.5 * noise(random)),
    ];
    for (what, percent_min, disturbance) in disturbances {
        let mut random = fastrand::Rng::with_seed(1);
        let samples = record.samples.iter().enumerate();
        let disturbed = samples.map(|(n, sample)| sample + disturbance(n as f64 / record.fs_hz, &mut random));
        let detected = detect(record.fs_hz, disturbed);
        assert_scores(&format!("with {what}"), &expert, &detected, record.fs_hz, percent_min);
    }
}

#[test]
fn the_made_record_is_found_through_noise_and_wander() {
    assert_found_through_noise_and_wander(&made_record());
}

#[test]
#[ignore = "needs TICKCAST_RECORD=path/to/100.hea"]
fn record_100_is_found_through_noise_and_wander() {
    assert_found_through_noise_and_wander(&record_100());
}

fn sine(cycles: f64) -> f32 {
    (TAU * cycles).sin() as f32
}

fn assert_found_at_every_sampling_rate(header: &Path) {
    let (record, expert) = annotated(header);
    for fs_hz in [100.0, 128.0, 250.0, 500.0, 1_000.0] {
        let ratio = record.fs_hz / fs_hz;
        let len = ((record.samples.len() - 1) as f64 / ratio) as usize;
        let samples = (0..len).map(|n| {
            let at = n as f64 * ratio;
            let (before, share) = (record.samples[at as usize], at.fract() as f32);
            before + share * (record.samples[at as usize + 1] - before)
        });
        let expert: Vec<u64> = expert.iter().map(|&beat| (beat as f64 / ratio) as u64).collect();
        assert_scores(&format!("at {fs_hz} Hz"), &expert, &detect(fs_hz, samples), fs_hz, 99.5);
    }
}

#[test]
fn the_made_record_is_found_at_every_sampling_rate() {
    assert_found_at_every_sampling_rate(&made_record());
}

#[test]
#[ignore = "needs TICKCAST_RECORD=path/to/100.hea"]
fn record_100_is_found_at_every_sampling_rate() {
    assert_found_at_every_sampling_rate(&record_100());
}

/// So many seconds of a synthetic heart, and its R peaks.
fn heart(bpm: f64, seconds: usize) -> (Vec<f32>, Vec<u64>) {
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

/// Beats of the part from `from`, each within 20 ms.
fn assert_all_found(what: &str, peaks: &[u64], detected: &[u64], from: u64) {
    let part = |beats: &[u64]| beats.iter().copied().filter(|&beat| beat >= from).collect::<Vec<u64>>();
    let score = Score::new(&part(peaks), &part(detected), (0.020 * FS_HZ) as u64);
    assert!(score.missed + score.extra <= 1 && score.found > 0, "{what}: {score:?} {detected:?} {peaks:?}");
}

#[test]
fn every_rate_of_a_heart_is_followed() {
    for bpm in [20.0, 30.0, 45.0, 60.0, 72.0, 100.0, 140.0, 180.0, 220.0] {
        let (samples, peaks) = heart(bpm, 60);
        assert_all_found(&format!("{bpm} bpm"), &peaks, &detect(FS_HZ, samples), 1_000);
    }
}

#[test]
fn each_beat_is_told_once_and_soon() {
    let (samples, peaks) = heart(72.0, 30);
    let mut detector = Detector::new(FS_HZ).unwrap();
    let mut told = Vec::new();
    for (n, &sample) in samples.iter().enumerate() {
        told.extend(detector.push(sample).map(|beat| (beat.at_sample, n as u64)));
    }
    let learnt = told.iter().filter(|(at_sample, _)| *at_sample > 750);
    assert!(learnt.clone().all(|(at_sample, now)| now - at_sample < 125), "within half a second: {told:?}");
    assert!(told.len() + 1 >= peaks.len());
}

#[test]
fn a_signal_that_becomes_ten_times_smaller_or_larger_is_learnt_anew() {
    for factor in [0.1, 10.0] {
        let (samples, peaks) = heart(72.0, 60);
        let changed = samples.iter().enumerate().map(|(n, s)| if n < 5_000 { *s } else { s * factor });
        let detected = detect(FS_HZ, changed);
        assert_all_found("after the change", &peaks, &detected, 5_000 + 7 * 250);
    }
}

#[test]
fn an_artefact_does_not_deafen_it() {
    for height in [5.0, 100.0, 9_000.0, -9_000.0] {
        let (mut samples, peaks) = heart(72.0, 60);
        samples[5_000..5_010].fill(height);
        assert_all_found("after the artefact", &peaks, &detect(FS_HZ, samples), 5_000 + 7 * 250);
    }
}

#[test]
fn a_flat_line_has_no_beats_and_the_heart_after_it_has() {
    for level in [0.0, 3.3, -500.0, f32::NAN, f32::INFINITY, 1e30] {
        assert_eq!(detect(FS_HZ, vec![level; 10_000]).len(), 0, "{level}");
        let (samples, peaks) = heart(72.0, 30);
        let detected = detect(FS_HZ, std::iter::repeat_n(level, 10_000).chain(samples));
        let peaks: Vec<u64> = peaks.iter().map(|peak| peak + 10_000).collect();
        assert_all_found(&format!("after {level}"), &peaks, &detected, 10_000 + 3 * 250);
    }
}

#[test]
fn bad_samples_cost_their_neighbourhood_and_no_more() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -1e9] {
        let (mut samples, peaks) = heart(72.0, 60);
        samples[5_000..5_003].fill(bad);
        samples[8_000..8_500].fill(bad);
        let detected = detect(FS_HZ, samples);
        for (from, to) in [(750, 4_800), (5_250, 7_800), (8_800, 15_000)] {
            let part = |beats: &[u64]| {
                beats.iter().copied().filter(|beat| (from..to).contains(beat)).collect::<Vec<u64>>()
            };
            assert_all_found(&format!("{bad} {from}"), &part(&peaks), &part(&detected), from);
        }
        assert!(!detected.iter().any(|beat| (8_010..8_490).contains(beat)), "no beat where nothing was");
    }
}

#[test]
fn after_a_jump_numbers_go_on_there_and_what_was_learnt_holds() {
    let (samples, peaks) = heart(72.0, 30);
    let mut detector = Detector::new(FS_HZ).unwrap();
    let early: Vec<Beat> = samples[..5_000].iter().filter_map(|&sample| detector.push(sample)).collect();
    assert!(early.len() > 20);
    detector.skip_to(1_000_000);
    assert_eq!(detector.next_sample(), 1_000_000);
    let late = samples[5_100..].iter().filter_map(|&sample| detector.push(sample));
    let late: Vec<u64> = late.map(|beat| beat.at_sample - 1_000_000 + 5_100).collect();
    assert_all_found("after the jump", &peaks[..peaks.len() - 1], &late, 5_300);
}

#[test]
fn rates_out_of_range_are_refused() {
    for fs_hz in [0.0, -1.0, 59.9, 10_001.0, f64::NAN, f64::INFINITY] {
        assert!(Detector::new(fs_hz).unwrap_err().to_string().contains("60 to 10000"));
    }
}

#[test]
fn no_samples_make_it_panic_or_grow() {
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
