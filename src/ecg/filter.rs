//! Finite impulse response filters of the detector.
//!
//! Their memory is finite, so a bad sample has no lasting effect. Their phase is linear, so a peak keeps its position
//! except for a constant delay.

/// Moving average.
#[derive(Clone, Debug)]
pub struct MovingAverage {
    ring: Box<[f64]>,
    at: usize,
    sum: f64,
}

impl MovingAverage {
    /// Creates an average over `len` samples, at least 1, as if all previous samples had been `first`.
    pub fn new(len: usize, first: f64) -> MovingAverage {
        let ring = vec![first; len.max(1)].into_boxed_slice();
        let sum = ring.iter().sum();
        MovingAverage { ring, at: 0, sum }
    }

    /// Adds a sample and returns the average.
    ///
    /// Amortized constant time: every `len` samples, it computes the sum again.
    pub fn push(&mut self, sample: f64) -> f64 {
        self.sum += sample - self.ring[self.at];
        self.ring[self.at] = sample;
        self.at += 1;
        if self.at == self.ring.len() {
            self.at = 0;
            // Drops accumulated rounding errors: after a huge sample they could exceed the signal.
            self.sum = self.ring.iter().sum();
        }
        self.sum / self.ring.len() as f64
    }
}

/// Delay line: the most recent samples.
#[derive(Clone, Debug)]
pub struct DelayLine {
    ring: Box<[f64]>,
    at: usize,
}

impl DelayLine {
    /// Creates a delay line of `len` samples, at least 1, as if all previous samples had been `first`.
    pub fn new(len: usize, first: f64) -> DelayLine {
        DelayLine { ring: vec![first; len.max(1)].into_boxed_slice(), at: 0 }
    }

    /// Adds a sample.
    pub fn push(&mut self, sample: f64) {
        self.at = (self.at + 1) % self.ring.len();
        self.ring[self.at] = sample;
    }

    /// Returns the sample pushed `delay` samples ago, 0 for the latest, or the oldest one if that is gone.
    pub fn tap(&self, delay: usize) -> f64 {
        let len = self.ring.len();
        self.ring[(self.at + len - delay.min(len - 1)) % len]
    }

    /// Capacity in samples; the delay line is always full.
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Always false.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Band-pass filter of Pan and Tompkins, about 5 to 12 Hz, for any sampling frequency.
///
/// The original works on integers at 200 Hz. The low-pass stage is two moving averages of 30 ms; the high-pass stage subtracts a
/// moving average of 160 ms.
#[derive(Clone, Debug)]
pub struct BandPass {
    low_pass: [MovingAverage; 2],
    mean: MovingAverage,
    delayed: DelayLine,
    half: usize,
}

impl BandPass {
    /// Creates a filter, as if all previous samples had been `first`.
    pub fn new(fs_hz: f64, first: f64) -> BandPass {
        let (low_pass, half) = BandPass::lengths(fs_hz);
        BandPass {
            low_pass: [MovingAverage::new(low_pass, first), MovingAverage::new(low_pass, first)],
            mean: MovingAverage::new(2 * half + 1, first),
            delayed: DelayLine::new(half + 1, first),
            half,
        }
    }

    /// Group delay in samples.
    pub fn delay(fs_hz: f64) -> usize {
        let (low_pass, half) = BandPass::lengths(fs_hz);
        low_pass - 1 + half
    }

    /// Samples averaged by each low-pass stage, and half of those averaged by the high-pass stage.
    fn lengths(fs_hz: f64) -> (usize, usize) {
        (samples(fs_hz, 0.030).max(1), samples(fs_hz, 0.080))
    }

    /// Filters one sample.
    pub fn push(&mut self, sample: f64) -> f64 {
        let [first, second] = &mut self.low_pass;
        let low = second.push(first.push(sample));
        self.delayed.push(low);
        let mean = self.mean.push(low);
        self.delayed.tap(self.half) - mean
    }
}

/// Number of samples in a duration, rounded.
pub fn samples(fs_hz: f64, seconds: f64) -> usize {
    (fs_hz * seconds).round() as usize
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;

    /// Steady-state amplitude for a sine of amplitude 1.
    fn gain(fs_hz: f64, sine_hz: f64) -> f64 {
        let mut filter = BandPass::new(fs_hz, 0.0);
        let outputs = (0..samples(fs_hz, 4.0)).map(|n| filter.push((TAU * sine_hz * n as f64 / fs_hz).sin()));
        outputs.skip(samples(fs_hz, 2.0)).fold(0.0, f64::max)
    }

    #[test]
    fn the_passband_is_the_same_at_every_sampling_frequency() {
        for fs_hz in [128.0, 200.0, 250.0, 360.0, 500.0, 1_000.0, 5_000.0] {
            assert!(gain(fs_hz, 0.3) < 0.05, "wander at {fs_hz}: {}", gain(fs_hz, 0.3));
            assert!(gain(fs_hz, 10.0) > 0.5, "QRS at {fs_hz}: {}", gain(fs_hz, 10.0));
            assert!(gain(fs_hz, 50.0) < 0.12, "mains at {fs_hz}: {}", gain(fs_hz, 50.0));
        }
    }

    #[test]
    fn a_peak_appears_after_the_group_delay() {
        for fs_hz in [128.0, 250.0, 360.0, 999.0] {
            let mut filter = BandPass::new(fs_hz, 0.0);
            let outputs: Vec<f64> =
                (0..1_000).map(|n| filter.push(if n == 300 { 1.0 } else { 0.0 })).collect();
            let highest = outputs.iter().copied().fold(0.0, f64::max);
            let is_high: Vec<usize> = (0..1_000).filter(|&n| outputs[n] > highest - 1e-9).collect();
            let middle = (is_high[0] + is_high[is_high.len() - 1]) / 2;
            assert_eq!(middle, 300 + BandPass::delay(fs_hz), "{fs_hz}");
        }
    }

    #[test]
    fn a_huge_sample_leaves_no_rounding_error() {
        let mut average = MovingAverage::new(10, 0.0);
        average.push(1e300);
        for _ in 0..20 {
            average.push(0.25);
        }
        assert_eq!(average.push(0.25), 0.25);
    }
}
