//! Synthetic ECG: a sum of Gaussians for the P, Q, R, S and T waves.
//!
//! After McSharry et al. (IEEE Trans. Biomed. Eng. 50, 2003), but the heart rate sets the phase directly, where the paper
//! integrates differential equations. The samples are deterministic.

use std::f64::consts::{PI, TAU};

/// Lowest heart rate, beats per minute.
pub const BPM_LOWEST: f64 = 20.0;
/// Highest heart rate, beats per minute.
pub const BPM_HIGHEST: f64 = 240.0;
/// Sampling frequency, Hz.
pub const FS_HZ: f64 = 250.0;

/// Amplitude (mV), phase relative to R (degrees) and width (radians) of each wave, at 60 beats per minute.
///
/// The last two numbers of each are exponents: phase and width scale with the square root of the heart rate to that power. With
/// an exponent of 2, the duration is the same at every rate, as that of a QRS complex is.
const WAVES: [(f64, f64, f64, f64, f64); 5] = [
    (0.12, -70.0, 0.25, 0.5, 1.0),
    (-0.12, -15.0, 0.1, 2.0, 2.0),
    (1.2, 0.0, 0.1, 2.0, 2.0),
    (-0.25, 15.0, 0.1, 2.0, 2.0),
    (0.3, 100.0, 0.4, 0.5, 1.0),
];
/// Respiratory modulation: of the heart rate (relative) and of the baseline (mV).
const RESPIRATION: (f64, f64) = (0.03, 0.05);
/// Respiration rate, Hz.
const RESPIRATION_HZ: f64 = 0.25;

/// Generator of a synthetic ECG.
#[derive(Clone, Debug, PartialEq)]
pub struct Synthetic {
    fs_hz: f64,
    bpm: f64,
    /// Phase of the cardiac cycle, radians, -PI to PI; R is at 0.
    phase: f64,
    /// Phase of the respiratory cycle, radians.
    respiration: f64,
    is_peak: bool,
}

impl Synthetic {
    /// Creates an ECG of `bpm` beats per minute, sampled at `fs_hz`.
    ///
    /// `bpm` is clamped to [`BPM_LOWEST`] and [`BPM_HIGHEST`].
    pub fn new(fs_hz: f64, bpm: f64) -> Synthetic {
        let bpm = if bpm.is_nan() { BPM_LOWEST } else { bpm.clamp(BPM_LOWEST, BPM_HIGHEST) };
        Synthetic { fs_hz, bpm, phase: -PI, respiration: 0.0, is_peak: false }
    }

    /// The next sample, mV.
    pub fn next_mv(&mut self) -> f32 {
        let (rate_modulation, baseline_mv) = RESPIRATION;
        let bpm = self.bpm * (1.0 + rate_modulation * self.respiration.sin());
        let root = (bpm / 60.0).sqrt();
        let mut sample_mv = baseline_mv * self.respiration.sin();
        for (amplitude_mv, degrees, width, phase_exponent, width_exponent) in WAVES {
            let center = degrees.to_radians() * root.powf(phase_exponent);
            // Signed distance around the cycle, the shorter way.
            let distance = (self.phase - center + PI).rem_euclid(TAU) - PI;
            sample_mv +=
                amplitude_mv * (-0.5 * (distance / (width * root.powf(width_exponent))).powi(2)).exp();
        }
        let step = TAU * bpm / 60.0 / self.fs_hz;
        self.is_peak = self.phase.abs() <= step / 2.0;
        self.phase += step;
        if self.phase > PI {
            self.phase -= TAU;
        }
        self.respiration = (self.respiration + TAU * RESPIRATION_HZ / self.fs_hz) % TAU;
        sample_mv as f32
    }

    /// Whether the last sample was an R peak.
    pub fn was_peak(&self) -> bool {
        self.is_peak
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wave_has_the_given_rate_and_the_r_wave_is_the_highest() {
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
    fn the_same_rate_gives_the_same_samples() {
        let samples = || {
            let mut wave = Synthetic::new(FS_HZ, 72.0);
            (0..1_000).map(|_| wave.next_mv().to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(samples(), samples());
    }

    #[test]
    fn heart_rates_are_clamped() {
        for (bpm, clamped) in [(f64::NAN, 20.0), (-1.0, 20.0), (1e9, 240.0)] {
            assert_eq!(Synthetic::new(FS_HZ, bpm), Synthetic::new(FS_HZ, clamped));
        }
    }
}
