//! The filters of the detector: all of finite memory, so that what was bad is forgotten, and of linear phase, so that
//! a peak is where it was, so many samples later.

/// The mean of the last samples.
#[derive(Clone, Debug)]
pub struct Boxcar {
    ring: Box<[f64]>,
    at: usize,
    sum: f64,
}

impl Boxcar {
    /// Over `len` samples, at least 1, as if all before had been `first`.
    pub fn new(len: usize, first: f64) -> Boxcar {
        let ring = vec![first; len.max(1)].into_boxed_slice();
        let sum = ring.iter().sum();
        Boxcar { ring, at: 0, sum }
    }

    /// Takes a sample. Constant time but once a round.
    pub fn push(&mut self, sample: f64) -> f64 {
        self.sum += sample - self.ring[self.at];
        self.ring[self.at] = sample;
        self.at += 1;
        if self.at == self.ring.len() {
            self.at = 0;
            // What rounding has added up is dropped: after a huge sample it would be more than the signal.
            self.sum = self.ring.iter().sum();
        }
        self.sum / self.ring.len() as f64
    }
}

/// The last samples by their age.
#[derive(Clone, Debug)]
pub struct Past {
    ring: Box<[f64]>,
    at: usize,
}

impl Past {
    /// Of `len` samples, at least 1, as if all before had been `first`.
    pub fn new(len: usize, first: f64) -> Past {
        Past { ring: vec![first; len.max(1)].into_boxed_slice(), at: 0 }
    }

    /// Takes a sample.
    pub fn push(&mut self, sample: f64) {
        self.at = (self.at + 1) % self.ring.len();
        self.ring[self.at] = sample;
    }

    /// The sample before `age` others, 0 for the last; the oldest where that is gone.
    pub fn back(&self, age: usize) -> f64 {
        let len = self.ring.len();
        self.ring[(self.at + len - age.min(len - 1)) % len]
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Pan and Tompkins' band pass, 5 to 12 Hz or so, for any rate: theirs is of integers at 200 Hz, a low pass of two means
/// of 30 ms and a high pass that takes away the mean of 160 ms.
#[derive(Clone, Debug)]
pub struct BandPass {
    low: [Boxcar; 2],
    mean: Boxcar,
    past: Past,
    half: usize,
}

impl BandPass {
    /// At a rate, as if all samples before had been `first`.
    pub fn new(fs_hz: f64, first: f64) -> BandPass {
        let (low, half) = BandPass::lengths(fs_hz);
        BandPass {
            low: [Boxcar::new(low, first), Boxcar::new(low, first)],
            mean: Boxcar::new(2 * half + 1, first),
            past: Past::new(half + 1, first),
            half,
        }
    }

    /// Samples by which a peak comes later.
    pub fn delay(fs_hz: f64) -> usize {
        let (low, half) = BandPass::lengths(fs_hz);
        low - 1 + half
    }

    fn lengths(fs_hz: f64) -> (usize, usize) {
        (samples(fs_hz, 0.030).max(1), samples(fs_hz, 0.080))
    }

    /// Takes a sample.
    pub fn push(&mut self, sample: f64) -> f64 {
        let [first, second] = &mut self.low;
        let low = second.push(first.push(sample));
        self.past.push(low);
        let mean = self.mean.push(low);
        self.past.back(self.half) - mean
    }
}

/// Seconds in samples.
pub fn samples(fs_hz: f64, seconds: f64) -> usize {
    (fs_hz * seconds).round() as usize
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;

    /// The highest output for a sine of amplitude 1, once it has settled.
    fn gain(fs_hz: f64, sine_hz: f64) -> f64 {
        let mut filter = BandPass::new(fs_hz, 0.0);
        let outputs = (0..samples(fs_hz, 4.0)).map(|n| filter.push((TAU * sine_hz * n as f64 / fs_hz).sin()));
        outputs.skip(samples(fs_hz, 2.0)).fold(0.0, f64::max)
    }

    #[test]
    fn the_band_is_the_same_at_every_rate() {
        for fs_hz in [128.0, 200.0, 250.0, 360.0, 500.0, 1_000.0, 5_000.0] {
            assert!(gain(fs_hz, 0.3) < 0.05, "wander at {fs_hz}: {}", gain(fs_hz, 0.3));
            assert!(gain(fs_hz, 10.0) > 0.5, "QRS at {fs_hz}: {}", gain(fs_hz, 10.0));
            assert!(gain(fs_hz, 50.0) < 0.12, "mains at {fs_hz}: {}", gain(fs_hz, 50.0));
        }
    }

    #[test]
    fn a_peak_comes_out_after_the_delay() {
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
    fn what_was_huge_is_forgotten() {
        let mut boxcar = Boxcar::new(10, 0.0);
        boxcar.push(1e300);
        for _ in 0..20 {
            boxcar.push(0.25);
        }
        assert_eq!(boxcar.push(0.25), 0.25);
    }
}
