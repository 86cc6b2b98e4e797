//! A heart without a patient: the sum of Gaussians of McSharry et al. (IEEE Trans. Biomed. Eng. 50, 2003), one for each
//! of P, Q, R, S and T, with the phase given by the rate instead of their differential equations. The same rate gives
//! the same samples.

use std::f64::consts::{PI, TAU};

/// Lowest rate, beats a minute.
pub const BPM_LOWEST: f64 = 20.0;
/// Highest rate, beats a minute.
pub const BPM_HIGHEST: f64 = 240.0;
/// Samples a second, Hz.
pub const FS_HZ: f64 = 250.0;

/// Height in mV, place in the cycle in degrees from R, width in radians, at 60 beats a minute; then the powers of the
/// root of the rate that place and width grow with at others. With 2 it lasts as long at every rate: the QRS does.
const WAVES: [(f64, f64, f64, f64, f64); 5] = [
    (0.12, -70.0, 0.25, 0.5, 1.0),
    (-0.12, -15.0, 0.1, 2.0, 2.0),
    (1.2, 0.0, 0.1, 2.0, 2.0),
    (-0.25, 15.0, 0.1, 2.0, 2.0),
    (0.3, 100.0, 0.4, 0.5, 1.0),
];
/// The breath moves the rate by so much of it, and the baseline by so many mV.
const BREATH: (f64, f64) = (0.03, 0.05);
/// Breaths a second.
const BREATH_HZ: f64 = 0.25;

/// The wave. 40 bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Synthetic {
    fs_hz: f64,
    bpm: f64,
    /// In the cycle, radians, -PI to PI; R is at 0.
    phase: f64,
    /// In the breath, radians.
    breath: f64,
    is_peak: bool,
}

impl Synthetic {
    /// A heart of `bpm` beats a minute, held to [`BPM_LOWEST`] and [`BPM_HIGHEST`], at `fs_hz` samples a second.
    pub fn new(fs_hz: f64, bpm: f64) -> Synthetic {
        let bpm = if bpm.is_nan() { BPM_LOWEST } else { bpm.clamp(BPM_LOWEST, BPM_HIGHEST) };
        Synthetic { fs_hz, bpm, phase: -PI, breath: 0.0, is_peak: false }
    }

    /// The next sample, mV.
    pub fn next_mv(&mut self) -> f32 {
        let (rate_share, baseline_mv) = BREATH;
        let bpm = self.bpm * (1.0 + rate_share * self.breath.sin());
        let root = (bpm / 60.0).sqrt();
        let mut sample_mv = baseline_mv * self.breath.sin();
        for (height_mv, degrees, width, place_power, width_power) in WAVES {
            let place = degrees.to_radians() * root.powf(place_power);
            // The shorter way round the cycle.
            let away = (self.phase - place + PI).rem_euclid(TAU) - PI;
            sample_mv += height_mv * (-0.5 * (away / (width * root.powf(width_power))).powi(2)).exp();
        }
        let step = TAU * bpm / 60.0 / self.fs_hz;
        self.is_peak = self.phase.abs() <= step / 2.0;
        self.phase += step;
        if self.phase > PI {
            self.phase -= TAU;
        }
        self.breath = (self.breath + TAU * BREATH_HZ / self.fs_hz) % TAU;
        sample_mv as f32
    }

    /// Whether the last sample was the peak of an R wave.
    pub fn was_peak(&self) -> bool {
        self.is_peak
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_beats_at_its_rate_with_the_r_wave_on_top() {
        for bpm in [20.0, 60.0, 72.0, 150.0, 240.0] {
            let mut wave = Synthetic::new(FS_HZ, bpm);
            let samples: Vec<(f32, bool)> =
                (0..60 * 250).map(|_| (wave.next_mv(), wave.was_peak())).collect();
            let peaks = samples.iter().filter(|(_, is_peak)| *is_peak).count();
            assert!(peaks.abs_diff(bpm as usize) <= 2, "{peaks} peaks at {bpm}");
            let highest = samples.iter().map(|(sample, _)| *sample).fold(0.0, f32::max);
            let at_peaks = samples.iter().filter(|(_, is_peak)| *is_peak);
            assert!(at_peaks.clone().all(|(sample, _)| *sample > 0.7 * highest), "{bpm}: {at_peaks:?}");
            assert!(samples.iter().all(|(sample, _)| sample.abs() < 2.0));
        }
    }

    #[test]
    fn the_same_heart_beats_the_same() {
        let samples = || {
            let mut wave = Synthetic::new(FS_HZ, 72.0);
            (0..1_000).map(|_| wave.next_mv().to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(samples(), samples());
    }

    #[test]
    fn rates_that_no_heart_has_are_held_to_the_range() {
        for (bpm, held) in [(f64::NAN, 20.0), (-1.0, 20.0), (1e9, 240.0)] {
            assert_eq!(Synthetic::new(FS_HZ, bpm), Synthetic::new(FS_HZ, held));
        }
    }
}
