//! Real-time R-peak detector, after Pan and Tompkins (IEEE Trans. Biomed. Eng. 32, 1985).
//!
//! ```text
//! sample -> band-pass -> derivative -> square -> moving average -> peaks -> learning, thresholds, search-back -> beat
//!               |             |                   of 150 ms          |
//!               |             +-- slope: lower in a T wave ----------+
//!               +-- height: second threshold, and position of R -----+
//! ```
//!
//! Differences from the paper:
//! - The filters work at every sampling frequency.
//! - A peak is a maximum within 120 ms on both sides.
//! - The thresholds learned in the first two seconds also apply to these seconds.
//! - When a peak updates the signal level, it counts as at most four times that level, so that one artifact does not make
//!   the detector miss the following beats.
//! - After 4 s without a beat the detector learns its thresholds again, for example after an electrode was moved.

use std::{collections::VecDeque, fmt};

use super::{
    FS_HZ_HIGHEST, FS_HZ_LOWEST,
    filter::{BandPass, DelayLine, MovingAverage, samples},
};

/// Refractory period: two beats are never closer than this.
const REFRACTORY_S: f64 = 0.200;
/// A peak this close to the previous beat may be its T wave.
const T_WAVE_S: f64 = 0.360;
/// Integration window: the width of the moving average.
const WINDOW_S: f64 = 0.150;
/// A peak is the maximum within this time on both sides.
const PEAK_S: f64 = 0.120;
/// Search range for R around the peak of the band-passed signal, on both sides.
const REFINE_S: f64 = 0.050;
/// Duration of the learning phase.
const LEARN_S: f64 = 2.0;
/// Time without a beat after which the detector learns again.
const SILENCE_S: f64 = 4.0;
/// Lowest peak of the band-passed signal that can be a beat, mV.
///
/// The smallest QRS complexes have about 0.1 mV.
const HEIGHT_MV_LOWEST: f64 = 0.03;
/// Samples beyond this magnitude are not an ECG but an open input, mV.
const SAMPLE_MV_HIGHEST: f32 = 10_000.0;
/// Maximum number of peaks kept for learning and search-back; there are at most 9 per second.
const CANDIDATES_MAX: usize = 64;
/// Number of recent RR intervals averaged.
const INTERVALS: usize = 8;
/// Search-back starts when no beat was found for this many average RR intervals.
const LATE_INTERVALS: f64 = 1.66;
/// Position of the threshold between the noise level (0) and the signal level (1).
const THRESHOLD_SHARE: f64 = 0.25;
/// Limit on a peak that updates the signal level, as a multiple of that level.
const RISE_MAX: f64 = 4.0;

/// Detected beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Sample number of the R peak, from 0 at the start; [`Detector::skip_to`] changes the numbering.
    pub at_sample: u64,
}

/// Sampling frequency out of range, Hz.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BadRate(pub f64);

impl fmt::Display for BadRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sampling frequency {} Hz is out of range: the detector supports {FS_HZ_LOWEST} to {FS_HZ_HIGHEST} Hz",
            self.0
        )
    }
}

impl std::error::Error for BadRate {}

/// Streaming beat detector.
///
/// Call [`push`](Detector::push) for each sample, then [`finish`](Detector::finish).
///
/// It reports a beat about 0.4 s after its R peak, or later if search-back found it. Any value may be pushed: NaN and values
/// that no electrode produces are replaced by the last good sample, and no beat is detected there.
///
/// Memory: about 1.6 s of samples at 8 bytes each. Time: about 110 ns per sample at 360 Hz.
#[derive(Clone, Debug)]
pub struct Detector {
    fs_hz: f64,
    /// Number of the next sample.
    next: u64,
    /// The filters; `None` until the first good sample, which initializes them.
    filters: Option<Filters>,
    /// Until this sample, the filters contain bad samples or too few.
    bad_until: u64,
    peak: PeakTracker,
    levels: Levels,
    /// First sample of the learning phase; `None` when not learning.
    learning: Option<u64>,
    candidates: Vec<Candidate>,
    last: Option<Candidate>,
    intervals: VecDeque<f64>,
    beats: VecDeque<Beat>,
}

#[derive(Clone, Debug)]
struct Filters {
    band: BandPass,
    window: MovingAverage,
    /// Input samples.
    signal: DelayLine,
    /// Band-passed signal.
    band_passed: DelayLine,
    /// Derivative of the band-passed signal.
    slope: DelayLine,
    last_good: f64,
}

/// Peak of the moving average, which may be a beat.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    /// Sample number of the R peak, if this is a beat.
    at_sample: u64,
    /// Peak of the moving average, mV^2.
    energy: f64,
    /// Peak of the band-passed signal, mV.
    height: f64,
    /// Largest derivative, mV per 5 ms.
    slope: f64,
}

/// Running estimates of the signal and noise peak levels, each for energy and height.
#[derive(Clone, Copy, Debug, Default)]
struct Levels {
    signal: [f64; 2],
    noise: [f64; 2],
}

impl Levels {
    fn update(level: &mut [f64; 2], peak: [f64; 2], weight: f64, rise_max: f64) {
        for (level, peak) in level.iter_mut().zip(peak) {
            *level += weight * (peak.min(*level * rise_max) - *level);
        }
    }

    /// Whether a peak exceeds both thresholds, each multiplied by `factor`.
    fn exceeds(&self, candidate: &Candidate, factor: f64) -> bool {
        let peak = candidate.levels();
        (0..2).all(|of| {
            let threshold = self.noise[of] + THRESHOLD_SHARE * (self.signal[of] - self.noise[of]);
            peak[of] > factor * threshold
        })
    }
}

impl Candidate {
    fn levels(&self) -> [f64; 2] {
        [self.energy, self.height]
    }
}

/// Finds local maxima: values that no other value within a given time on both sides exceeds.
#[derive(Clone, Debug, Default)]
struct PeakTracker {
    highest: f64,
    at: u64,
    /// The highest value is the one where the search started: a falling edge rather than a peak.
    is_edge: bool,
}

impl PeakTracker {
    /// Adds a value. Returns sample number and value of a peak once it is confirmed.
    fn push(&mut self, now: u64, value: f64, within: u64) -> Option<(u64, f64)> {
        if value > self.highest {
            *self = PeakTracker { highest: value, at: now, is_edge: false };
            return None;
        }
        if now < self.at + within {
            return None;
        }
        let found = (!self.is_edge).then_some((self.at, self.highest));
        *self = PeakTracker { highest: value, at: now, is_edge: true };
        found
    }
}

impl Detector {
    /// Creates a detector for a sampling frequency.
    ///
    /// # Errors
    /// [`BadRate`] unless it is within [`FS_HZ_LOWEST`] to [`FS_HZ_HIGHEST`].
    pub fn new(fs_hz: f64) -> Result<Detector, BadRate> {
        if !(FS_HZ_LOWEST..=FS_HZ_HIGHEST).contains(&fs_hz) {
            return Err(BadRate(fs_hz));
        }
        Ok(Detector {
            fs_hz,
            next: 0,
            filters: None,
            bad_until: 0,
            peak: PeakTracker::default(),
            levels: Levels::default(),
            learning: Some(0),
            candidates: Vec::with_capacity(CANDIDATES_MAX),
            last: None,
            intervals: VecDeque::with_capacity(INTERVALS),
            beats: VecDeque::new(),
        })
    }

    /// Number of the next sample.
    pub fn next_sample(&self) -> u64 {
        self.next
    }

    /// Continues at another sample number, after a gap.
    ///
    /// Keeps the learned levels and forgets everything else, including detected beats that were not returned yet.
    pub fn skip_to(&mut self, at_sample: u64) {
        self.next = at_sample;
        self.filters = None;
        self.bad_until = at_sample;
        self.peak = PeakTracker { at: at_sample, ..PeakTracker::default() };
        self.learning = self.learning.map(|_| at_sample);
        self.candidates.clear();
        self.last = None;
        self.intervals.clear();
        self.beats.clear();
    }

    /// Processes the next sample, mV. Returns a beat if one is confirmed now; beats are returned in order.
    pub fn push(&mut self, sample_mv: f32) -> Option<Beat> {
        let now = self.next;
        self.next += 1;
        self.filter(now, sample_mv);
        self.check_timeouts(now);
        self.beats.pop_front()
    }

    /// Returns the beats that are still pending at the end of the signal.
    pub fn finish(&mut self) -> Vec<Beat> {
        let (end, last) = (self.next, self.filters.as_ref().map_or(0.0, |filters| filters.last_good));
        let mut beats: Vec<Beat> = Vec::new();
        // Repeat the last sample until it has passed all filters.
        for _ in 0..samples(self.fs_hz, 0.3 + PEAK_S + WINDOW_S) {
            beats.extend(self.push(last as f32));
        }
        if self.learning.is_some() {
            self.learn();
        }
        beats.extend(self.beats.drain(..));
        beats.retain(|beat| beat.at_sample < end);
        self.skip_to(end);
        beats
    }

    /// Runs a sample through the filters and classifies a peak, if there is one.
    fn filter(&mut self, now: u64, sample_mv: f32) {
        let fs_hz = self.fs_hz;
        let is_good = sample_mv.abs() <= SAMPLE_MV_HIGHEST;
        let window = samples(fs_hz, WINDOW_S);
        let step = samples(fs_hz, 0.005).max(1);
        let delay = BandPass::delay(fs_hz);
        if self.filters.is_none() && is_good {
            // As if all earlier samples had been the same, to avoid a step at the start.
            let first = f64::from(sample_mv);
            self.filters = Some(Filters {
                band: BandPass::new(fs_hz, first),
                window: MovingAverage::new(window, 0.0),
                signal: DelayLine::new(
                    window + samples(fs_hz, PEAK_S + 2.0 * REFINE_S) + delay + 4 * step,
                    first,
                ),
                band_passed: DelayLine::new(window + samples(fs_hz, PEAK_S) + 4 * step + 1, 0.0),
                slope: DelayLine::new(window + samples(fs_hz, PEAK_S) + 1, 0.0),
                last_good: first,
            });
        }
        if !is_good {
            // Until the replaced samples have left every filter.
            self.bad_until = now + (2 * delay + 4 * step + window) as u64;
        }
        let Some(filters) = &mut self.filters else { return };
        if is_good {
            filters.last_good = f64::from(sample_mv);
        }
        filters.signal.push(filters.last_good);
        filters.band_passed.push(filters.band.push(filters.last_good));
        let tap = |steps: usize| filters.band_passed.tap(steps * step);
        let slope = (2.0 * tap(0) + tap(1) - tap(3) - 2.0 * tap(4)) / 8.0;
        filters.slope.push(slope);
        let energy = filters.window.push(slope * slope);
        let within = samples(fs_hz, PEAK_S) as u64;
        let Some((at, energy)) = self.peak.push(now, energy, within) else { return };
        if at < self.bad_until {
            return;
        }
        let candidate = filters.candidate(fs_hz, now, (now - at) as usize, energy);
        if candidate.height >= HEIGHT_MV_LOWEST {
            self.classify(candidate);
        }
    }

    /// Ends or restarts the learning phase, or searches back, if it is time.
    fn check_timeouts(&mut self, now: u64) {
        let seconds_since = |from: u64| now.saturating_sub(from) as f64 / self.fs_hz;
        if let Some(since) = self.learning {
            if seconds_since(since) >= LEARN_S {
                self.learn();
            }
            return;
        }
        let Some(last) = self.last else {
            // No beat yet after a gap: the levels remain valid unless beats fail to appear.
            if seconds_since(self.bad_until) > SILENCE_S {
                self.start_to_learn(now);
            }
            return;
        };
        // Later peaks have not passed the filters yet.
        let delay_s = WINDOW_S + PEAK_S + BandPass::delay(self.fs_hz) as f64 / self.fs_hz;
        let waited_s = seconds_since(last.at_sample) - delay_s;
        if waited_s > SILENCE_S {
            self.start_to_learn(now);
        } else if self.average_interval().is_some_and(|rr| waited_s * self.fs_hz > LATE_INTERVALS * rr) {
            let best = self
                .candidates
                .iter()
                .filter(|candidate| self.levels.exceeds(candidate, 0.5))
                .max_by(|a, b| a.energy.total_cmp(&b.energy))
                .copied();
            if let Some(best) = best {
                self.accept(best, 0.25);
            }
        }
    }

    fn start_to_learn(&mut self, now: u64) {
        self.learning = Some(now);
        self.candidates.clear();
        self.intervals.clear();
    }

    /// Initializes the levels from the peaks of the learning phase, then classifies these peaks.
    ///
    /// Without any peak, the learning phase starts again.
    fn learn(&mut self) {
        let candidates = std::mem::replace(&mut self.candidates, Vec::with_capacity(CANDIDATES_MAX));
        let highest = |of: usize| candidates.iter().map(|c| c.levels()[of]).fold(0.0, f64::max);
        let highest = [highest(0), highest(1)];
        if candidates.is_empty() {
            self.learning = Some(self.next);
            return;
        }
        self.learning = None;
        self.levels = Levels { signal: highest.map(|level| 0.6 * level), noise: [0.0; 2] };
        candidates.into_iter().for_each(|candidate| self.classify(candidate));
        if self.last.is_none() {
            self.bad_until = self.bad_until.max(self.next);
        }
    }

    /// Classifies a peak as beat, T wave or noise.
    fn classify(&mut self, candidate: Candidate) {
        if self.learning.is_some() {
            self.remember(candidate);
            return;
        }
        let mut is_t_wave = false;
        if let Some(last) = &self.last {
            let after_s = candidate.at_sample.saturating_sub(last.at_sample) as f64 / self.fs_hz;
            if after_s < REFRACTORY_S {
                return;
            }
            is_t_wave = after_s < T_WAVE_S && candidate.slope < 0.5 * last.slope;
        }
        if !is_t_wave && self.levels.exceeds(&candidate, 1.0) {
            self.accept(candidate, 0.125);
            return;
        }
        Levels::update(&mut self.levels.noise, candidate.levels(), 0.125, f64::INFINITY);
        if !is_t_wave {
            self.remember(candidate);
        }
    }

    fn remember(&mut self, candidate: Candidate) {
        if self.candidates.len() == CANDIDATES_MAX {
            self.candidates.remove(0);
        }
        self.candidates.push(candidate);
    }

    /// Accepts a peak as a beat and updates levels and rhythm.
    fn accept(&mut self, candidate: Candidate, weight: f64) {
        Levels::update(&mut self.levels.signal, candidate.levels(), weight, RISE_MAX);
        if let Some(last) = &self.last {
            let interval = (candidate.at_sample - last.at_sample) as f64;
            if interval <= SILENCE_S * self.fs_hz {
                if self.intervals.len() == INTERVALS {
                    self.intervals.pop_front();
                }
                self.intervals.push_back(interval);
            }
        }
        self.last = Some(candidate);
        let refractory_until = candidate.at_sample + (REFRACTORY_S * self.fs_hz) as u64;
        self.candidates.retain(|other| other.at_sample >= refractory_until);
        // `push` returns one beat per sample, so the queue never exceeds CANDIDATES_MAX.
        self.beats.push_back(Beat { at_sample: candidate.at_sample });
    }

    /// Average RR interval in samples, ignoring intervals far from the mean.
    fn average_interval(&self) -> Option<f64> {
        let mean_of = |intervals: &mut dyn Iterator<Item = f64>| {
            let (sum, count) = intervals.fold((0.0, 0), |(sum, count), interval| (sum + interval, count + 1));
            (count > 0).then(|| sum / f64::from(count))
        };
        let mean = mean_of(&mut self.intervals.iter().copied())?;
        let is_regular = |interval: &f64| (0.92 * mean..=1.16 * mean).contains(interval);
        mean_of(&mut self.intervals.iter().copied().filter(is_regular)).or(Some(mean))
    }
}

impl Filters {
    /// Measures the peak that the moving average had `age` samples ago.
    fn candidate(&self, fs_hz: f64, now: u64, age: usize, energy: f64) -> Candidate {
        let window = samples(fs_hz, WINDOW_S);
        let step = samples(fs_hz, 0.005).max(1);
        let slope = (age..age + window).map(|age| self.slope.tap(age).abs()).fold(0.0, f64::max);
        let (height, height_age) = (age..age + window + 4 * step).fold((0.0, age), |(height, at), age| {
            let value = self.band_passed.tap(age).abs();
            if value > height { (value, age) } else { (height, at) }
        });
        let around = samples(fs_hz, REFINE_S);
        let middle = height_age + BandPass::delay(fs_hz);
        let (newest, oldest) = (middle.saturating_sub(around), middle + around);
        let mut sorted: Vec<f64> = (newest..=oldest).map(|age| self.signal.tap(age)).collect();
        let (_, &mut median, _) = sorted.select_nth_unstable_by(around, f64::total_cmp);
        // The largest deflection in either direction: a lead may be inverted, and the QRS of a ventricular beat often is.
        let (_, age) = (newest..=oldest).fold((-1.0, middle), |(largest, at), age| {
            let deflection = (self.signal.tap(age) - median).abs();
            if deflection > largest { (deflection, age) } else { (largest, at) }
        });
        Candidate { at_sample: now.saturating_sub(age as u64), energy, height, slope }
    }
}

#[cfg(test)]
mod tests;
