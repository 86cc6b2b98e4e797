//! R peaks in a stream of samples, after Pan and Tompkins (IEEE Trans. Biomed. Eng. 32, 1985).
//!
//! ```text
//! sample -> band pass -> derivative -> square -> mean of 150 ms -> peaks -> learning, thresholds, search-back -> beat
//!             |              |                                       |
//!             |              +-- steepness: a T wave's is less ------+
//!             +-- height: a second threshold, and the place of R ----+
//! ```
//!
//! Differences from theirs: filters for every rate; a peak is the highest within 120 ms to both sides; what the first
//! two seconds teach is applied to those seconds too; a peak raises a threshold by at most four times what it was, so
//! that one artefact does not deafen it; and after 4 s without a beat it learns anew, as for an electrode that was moved.

use std::{collections::VecDeque, fmt};

use super::{
    FS_HZ_HIGHEST, FS_HZ_LOWEST,
    filter::{BandPass, Boxcar, Past, samples},
};

/// No second beat within this time of one: no heart beats so fast.
const REFRACTORY_S: f64 = 0.200;
/// A peak within this time of a beat may be its T wave.
const T_WAVE_S: f64 = 0.360;
/// The window of the moving mean.
const WINDOW_S: f64 = 0.150;
/// A peak is the highest within this time to both sides.
const PEAK_S: f64 = 0.120;
/// R is sought so far around the peak of the band pass.
const REFINE_S: f64 = 0.050;
/// Learning takes so long.
const LEARN_S: f64 = 2.0;
/// Without a beat for so long, it learns anew.
const SILENCE_S: f64 = 4.0;
/// Lower peaks of the band-passed signal are no beats, mV: a heart's smallest QRS is some 0.1.
const HEIGHT_MV_LOWEST: f64 = 0.03;
/// Samples further from 0 are no ECG but an open input, mV.
const SAMPLE_MV_HIGHEST: f32 = 10_000.0;
/// Peaks that are remembered: while learning, and for the search back. At most 9 a second come.
const CANDIDATES_MAX: usize = 64;
/// Intervals that the rhythm is reckoned from.
const INTERVALS: usize = 8;
/// A beat is late after so many usual intervals, and is then searched for among lower peaks.
const LATE_INTERVALS: f64 = 1.66;
/// Share of the way from noise to signal that a peak must pass.
const THRESHOLD_SHARE: f64 = 0.25;
/// A peak counts at most so many times the signal's level into it.
const RISE_MAX: f64 = 4.0;

/// A beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The sample that is the R peak, counted from 0 at the start or as [`Detector::skip_to`] said.
    pub at_sample: u64,
}

/// A sampling rate out of range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BadRate(pub f64);

impl fmt::Display for BadRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} samples a second: {FS_HZ_LOWEST} to {FS_HZ_HIGHEST} are analysed", self.0)
    }
}

impl std::error::Error for BadRate {}

/// Finds beats while samples come: each some 0.4 s after its R peak, later where it had to be searched for. Any sample
/// may be given: NaN and what no electrode gives is held at the last good value, and no beat is found in it.
///
/// Memory: some 1.6 s of samples at 8 bytes. Time: about 110 ns a sample at 360 Hz.
#[derive(Clone, Debug)]
pub struct Detector {
    fs_hz: f64,
    /// Number of the next sample.
    next: u64,
    /// The filters; `None` until the first good sample, which they begin with.
    filters: Option<Filters>,
    /// Before this sample the filters hold something bad, or nothing.
    bad_until: u64,
    peak: PeakTracker,
    levels: Levels,
    /// `Some`: learning since this sample.
    learning: Option<u64>,
    candidates: Vec<Candidate>,
    last: Option<Candidate>,
    intervals: VecDeque<f64>,
    beats: VecDeque<Beat>,
}

#[derive(Clone, Debug)]
struct Filters {
    band: BandPass,
    window: Boxcar,
    /// Samples, band-passed, derivatives, by age.
    signal: Past,
    passed: Past,
    slope: Past,
    last_good: f64,
}

/// A peak of the moving mean.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    /// The sample of R, if it is a beat.
    at_sample: u64,
    /// Of the moving mean, mV^2.
    energy: f64,
    /// Of the band-passed signal, mV.
    height: f64,
    /// Steepest derivative, mV a step of 5 ms.
    slope: f64,
}

/// Running levels of beats and of everything else, of energy and height.
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

    /// Whether a peak passes `share` of the thresholds.
    fn passes(&self, candidate: &Candidate, share: f64) -> bool {
        let peak = candidate.levels();
        (0..2).all(|of| {
            let threshold = self.noise[of] + THRESHOLD_SHARE * (self.signal[of] - self.noise[of]);
            peak[of] > share * threshold
        })
    }
}

impl Candidate {
    fn levels(&self) -> [f64; 2] {
        [self.energy, self.height]
    }
}

/// Finds the highest value that nothing within a time to both sides exceeds.
#[derive(Clone, Debug, Default)]
struct PeakTracker {
    highest: f64,
    at: u64,
    /// The highest stands where the search began: a falling edge, no peak.
    is_edge: bool,
}

impl PeakTracker {
    /// The sample of a peak that is now known to be one, and its value.
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
    /// For so many samples a second.
    ///
    /// # Errors
    /// [`BadRate`] out of [`FS_HZ_LOWEST`] to [`FS_HZ_HIGHEST`].
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

    /// Number of the sample that is expected next.
    pub fn next_sample(&self) -> u64 {
        self.next
    }

    /// Goes on at another sample: what came before it is forgotten, but for the levels it was learnt from. Beats that
    /// were found and not taken yet are lost.
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

    /// Takes the next sample, mV. Returns a beat that is known now; they come in order.
    pub fn push(&mut self, sample_mv: f32) -> Option<Beat> {
        let now = self.next;
        self.next += 1;
        self.filter(now, sample_mv);
        self.decide(now);
        self.beats.pop_front()
    }

    /// The beats that the last samples hold, once no more come.
    pub fn finish(&mut self) -> Vec<Beat> {
        let (end, last) = (self.next, self.filters.as_ref().map_or(0.0, |filters| filters.last_good));
        let mut beats: Vec<Beat> = Vec::new();
        // As if the signal stayed where it is, until its last sample has passed all filters.
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

    /// Runs a sample through the filters, and takes note of a peak.
    fn filter(&mut self, now: u64, sample_mv: f32) {
        let fs_hz = self.fs_hz;
        let is_good = sample_mv.abs() <= SAMPLE_MV_HIGHEST;
        let window = samples(fs_hz, WINDOW_S);
        let step = samples(fs_hz, 0.005).max(1);
        let delay = BandPass::delay(fs_hz);
        if self.filters.is_none() && is_good {
            // As if it had always been so: no step at the start.
            let first = f64::from(sample_mv);
            self.filters = Some(Filters {
                band: BandPass::new(fs_hz, first),
                window: Boxcar::new(window, 0.0),
                signal: Past::new(window + samples(fs_hz, PEAK_S + 2.0 * REFINE_S) + delay + 4 * step, first),
                passed: Past::new(window + samples(fs_hz, PEAK_S) + 4 * step + 1, 0.0),
                slope: Past::new(window + samples(fs_hz, PEAK_S) + 1, 0.0),
                last_good: first,
            });
        }
        if !is_good {
            // Until what is held has left every filter.
            self.bad_until = now + (2 * delay + 4 * step + window) as u64;
        }
        let Some(filters) = &mut self.filters else { return };
        if is_good {
            filters.last_good = f64::from(sample_mv);
        }
        filters.signal.push(filters.last_good);
        filters.passed.push(filters.band.push(filters.last_good));
        let back = |steps: usize| filters.passed.back(steps * step);
        let slope = (2.0 * back(0) + back(1) - back(3) - 2.0 * back(4)) / 8.0;
        filters.slope.push(slope);
        let energy = filters.window.push(slope * slope);
        let within = samples(fs_hz, PEAK_S) as u64;
        let Some((at, energy)) = self.peak.push(now, energy, within) else { return };
        if at < self.bad_until {
            return;
        }
        let candidate = filters.candidate(fs_hz, now, (now - at) as usize, energy);
        if candidate.height >= HEIGHT_MV_LOWEST {
            self.take(candidate);
        }
    }

    /// Learns, and searches back.
    fn decide(&mut self, now: u64) {
        let after = |from: u64| now.saturating_sub(from) as f64 / self.fs_hz;
        if let Some(since) = self.learning {
            if after(since) >= LEARN_S {
                self.learn();
            }
            return;
        }
        let Some(last) = self.last else {
            // After a jump: the levels hold, the rhythm begins.
            if after(self.bad_until) > SILENCE_S {
                self.start_to_learn(now);
            }
            return;
        };
        // What is later has not passed the filters yet.
        let delay_s = WINDOW_S + PEAK_S + BandPass::delay(self.fs_hz) as f64 / self.fs_hz;
        let waited_s = after(last.at_sample) - delay_s;
        if waited_s > SILENCE_S {
            self.start_to_learn(now);
        } else if self.usual_interval().is_some_and(|usual| waited_s * self.fs_hz > LATE_INTERVALS * usual) {
            let best = self
                .candidates
                .iter()
                .filter(|candidate| self.levels.passes(candidate, 0.5))
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

    /// Sets the levels by what was seen while learning, and looks at that again. Goes on learning if it was nothing.
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
        candidates.into_iter().for_each(|candidate| self.take(candidate));
        if self.last.is_none() {
            self.bad_until = self.bad_until.max(self.next);
        }
    }

    /// Decides about a peak.
    fn take(&mut self, candidate: Candidate) {
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
        if !is_t_wave && self.levels.passes(&candidate, 1.0) {
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

    /// A beat.
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
        let free_from = candidate.at_sample + (REFRACTORY_S * self.fs_hz) as u64;
        self.candidates.retain(|other| other.at_sample >= free_from);
        // One is taken with each sample: as many wait as were remembered, at most.
        self.beats.push_back(Beat { at_sample: candidate.at_sample });
    }

    /// The interval of a steady rhythm, samples: the mean of those near the mean of all.
    fn usual_interval(&self) -> Option<f64> {
        let mean_of = |intervals: &mut dyn Iterator<Item = f64>| {
            let (sum, count) = intervals.fold((0.0, 0), |(sum, count), interval| (sum + interval, count + 1));
            (count > 0).then(|| sum / f64::from(count))
        };
        let mean = mean_of(&mut self.intervals.iter().copied())?;
        let is_usual = |interval: &f64| (0.92 * mean..=1.16 * mean).contains(interval);
        mean_of(&mut self.intervals.iter().copied().filter(is_usual)).or(Some(mean))
    }
}

impl Filters {
    /// What a peak of the moving mean, `age` samples ago, was made of.
    fn candidate(&self, fs_hz: f64, now: u64, age: usize, energy: f64) -> Candidate {
        let window = samples(fs_hz, WINDOW_S);
        let step = samples(fs_hz, 0.005).max(1);
        let slope = (age..age + window).map(|age| self.slope.back(age).abs()).fold(0.0, f64::max);
        let (height, passed_age) = (age..age + window + 4 * step).fold((0.0, age), |(height, at), age| {
            let value = self.passed.back(age).abs();
            if value > height { (value, age) } else { (height, at) }
        });
        let around = samples(fs_hz, REFINE_S);
        let middle = passed_age + BandPass::delay(fs_hz);
        let (newest, oldest) = (middle.saturating_sub(around), middle + around);
        let mut sorted: Vec<f64> = (newest..=oldest).map(|age| self.signal.back(age)).collect();
        let (_, &mut median, _) = sorted.select_nth_unstable_by(around, f64::total_cmp);
        // Up or down: a lead may be upside down, and a beat from below is.
        let (_, age) = (newest..=oldest).fold((-1.0, middle), |(furthest, at), age| {
            let away = (self.signal.back(age) - median).abs();
            if away > furthest { (away, age) } else { (furthest, at) }
        });
        Candidate { at_sample: now.saturating_sub(age as u64), energy, height, slope }
    }
}

#[cfg(test)]
mod tests;
