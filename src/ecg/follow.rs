//! Processing of a live ECG, without I/O: ticks of the wave in; beats, heart rates and gaps out.

use std::collections::VecDeque;

use super::{
    detector::{BadRate, Detector},
    info::Info,
};

/// Number of RR intervals that the heart rate averages.
const INTERVALS: usize = 8;
/// Time without a beat after which the heart rate is unknown.
const SILENCE_S: f64 = 4.5;

/// Result of processing a wave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Finding {
    /// A beat.
    Beat {
        /// Sample number of the R peak.
        at_sample: u64,
        /// Time of the R peak, nanoseconds since the Unix epoch, or since the start of a file.
        time_ns: u64,
        /// RR interval, ms; `None` for the first beat and after a gap.
        rr_ms: Option<f64>,
    },
    /// Heart rate, beats per minute; `None` if there was no beat recently.
    Rate(Option<f64>),
    /// Samples `[from, to)` were lost, or not recorded. The detector continues after them.
    Gap {
        /// First lost sample.
        from: u64,
        /// First sample after the gap.
        to: u64,
    },
}

impl Finding {
    /// Key and payload to publish on [`super::PARAMS_TOPIC`]; `None` for a gap, which is not published.
    pub fn to_tick(self) -> Option<(u64, String)> {
        let number = |number: Option<f64>| number.map_or("null".into(), |number| format!("{number:.1}"));
        match self {
            Finding::Beat { at_sample, time_ns, rr_ms } => Some((
                super::BEAT_KEY,
                format!("{{\"at_sample\":{at_sample},\"time_ns\":{time_ns},\"rr_ms\":{}}}", number(rr_ms)),
            )),
            Finding::Rate(bpm) => Some((super::RATE_KEY, format!("{{\"bpm\":{}}}", number(bpm)))),
            Finding::Gap { .. } => None,
        }
    }
}

/// Recent RR intervals and the heart rate derived from them.
#[derive(Clone, Debug, Default)]
pub struct Rhythm {
    last: Option<u64>,
    intervals_s: VecDeque<f64>,
}

impl Rhythm {
    /// Adds a beat, and appends it and the new heart rate to `found`. `time_ns` is the time of the beat.
    pub fn beat(&mut self, fs_hz: f64, at_sample: u64, time_ns: u64, found: &mut Vec<Finding>) {
        let interval_s = self.last.map(|last| at_sample.saturating_sub(last) as f64 / fs_hz);
        self.last = Some(at_sample);
        found.push(Finding::Beat { at_sample, time_ns, rr_ms: interval_s.map(|seconds| 1e3 * seconds) });
        // An interval across a pause does not count towards the rate.
        let Some(interval_s) = interval_s.filter(|seconds| (0.001..=SILENCE_S).contains(seconds)) else {
            return;
        };
        if self.intervals_s.len() == INTERVALS {
            self.intervals_s.pop_front();
        }
        self.intervals_s.push_back(interval_s);
        let mean_s = self.intervals_s.iter().sum::<f64>() / self.intervals_s.len() as f64;
        found.push(Finding::Rate(Some(60.0 / mean_s)));
    }

    /// Appends an unknown heart rate to `found`, once per pause without beats.
    ///
    /// `next` is the number of the next sample.
    pub fn silence(&mut self, fs_hz: f64, next: u64, found: &mut Vec<Finding>) {
        let silent_s = self.last.map_or(0.0, |last| next.saturating_sub(last) as f64 / fs_hz);
        if silent_s > SILENCE_S && !self.intervals_s.is_empty() {
            self.intervals_s.clear();
            found.push(Finding::Rate(None));
        }
    }
}

/// Finds samples that were not recorded: a second or more of NaN. The detector bridges shorter runs, which are invalid samples.
#[derive(Clone, Copy, Debug, Default)]
pub struct GapFinder {
    /// Samples since the last one that was not NaN.
    invalid: u64,
}

impl GapFinder {
    /// Takes sample number `at`, and returns the gap `[from, to)` that it ends, if any.
    pub fn push(&mut self, sample_mv: f32, at: u64, fs_hz: f64) -> Option<(u64, u64)> {
        if sample_mv.is_nan() {
            self.invalid += 1;
            return None;
        }
        self.end(at, fs_hz)
    }

    /// Returns the gap `[from, to)` that is under way before sample number `to`, if any.
    pub fn end(&mut self, to: u64, fs_hz: f64) -> Option<(u64, u64)> {
        let invalid = std::mem::take(&mut self.invalid);
        (invalid as f64 >= fs_hz).then(|| (to.saturating_sub(invalid), to))
    }
}

/// Processor of the ticks of one wave. Its memory is that of a [`Detector`].
#[derive(Debug, Default)]
pub struct Follower {
    wave: Option<Wave>,
}

#[derive(Debug)]
struct Wave {
    /// Epoch of the server that sent the description.
    epoch: u64,
    info: Info,
    detector: Detector,
    rhythm: Rhythm,
    gaps: GapFinder,
    has_started: bool,
}

impl Wave {
    /// Continues after a gap.
    fn skip(&mut self, from: u64, to: u64, found: &mut Vec<Finding>) {
        found.push(Finding::Gap { from, to });
        self.detector.skip_to(to);
        self.rhythm = Rhythm::default();
    }
}

impl Follower {
    /// Processes a tick of [`super::INFO_TOPIC`] from the server with the given epoch.
    ///
    /// Returns the description if it changed.
    ///
    /// # Errors
    /// Describes why the payload is invalid; the tick has no effect.
    pub fn handle_info(&mut self, epoch: u64, payload: &[u8]) -> Result<Option<&Info>, String> {
        let info = Info::from_json(payload)?;
        if self.wave.as_ref().is_some_and(|wave| wave.epoch == epoch && wave.info == info) {
            return Ok(None);
        }
        let detector = Detector::new(info.fs).map_err(|error: BadRate| error.to_string())?;
        let wave = Wave {
            epoch,
            info,
            detector,
            rhythm: Rhythm::default(),
            gaps: GapFinder::default(),
            has_started: false,
        };
        Ok(Some(&self.wave.insert(wave).info))
    }

    /// Processes a tick of [`super::WAVE_TOPIC`].
    ///
    /// Ignores it until the description from the same server has arrived.
    ///
    /// # Errors
    /// Describes why the batch is invalid; the tick has no effect.
    pub fn handle_wave(
        &mut self,
        epoch: u64,
        time_ns: u64,
        payload: &[u8],
        found: &mut Vec<Finding>,
    ) -> Result<(), String> {
        let Some(wave) = self.wave.as_mut().filter(|wave| wave.epoch == epoch) else { return Ok(()) };
        let (samples, rest) = payload.as_chunks::<4>();
        if samples.is_empty() || !rest.is_empty() {
            return Err(format!(
                "a batch of {} bytes is not a whole number of Float32 samples",
                payload.len()
            ));
        }
        let first =
            wave.info.at_sample(time_ns).and_then(|last| (last + 1).checked_sub(samples.len() as u64));
        let first = first.ok_or("batch starts before sample 0")?;
        let next = wave.detector.next_sample();
        if !wave.has_started {
            wave.has_started = true;
            wave.detector.skip_to(first);
        } else if first > next {
            // A gap in the record before lost batches is part of the same gap.
            let from = wave.gaps.end(next, wave.info.fs).map_or(next, |(from, _)| from);
            wave.skip(from, first, found);
        } else if first < next {
            return Err(format!("batch starts at sample {first}, but sample {next} is expected next"));
        }
        let fs_hz = wave.info.fs;
        for sample in samples.iter().map(|bytes| f32::from_le_bytes(*bytes)) {
            if let Some((from, to)) = wave.gaps.push(sample, wave.detector.next_sample(), fs_hz) {
                wave.skip(from, to, found);
            }
            if let Some(beat) = wave.detector.push(sample) {
                wave.rhythm.beat(fs_hz, beat.at_sample, wave.info.time_ns(beat.at_sample), found);
            }
        }
        wave.rhythm.silence(fs_hz, wave.detector.next_sample(), found);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{info::tests::info, synthetic::Synthetic};

    const FS_HZ: f64 = 250.0;
    const BATCH: usize = 10;

    /// Time and payload of the batches of a synthetic ECG, as the source publishes them.
    fn batches(count: u64) -> Vec<(u64, Vec<u8>)> {
        let (info, mut wave) = (info(FS_HZ), Synthetic::new(FS_HZ, 72.0));
        let batch = |k: u64| {
            let payload = (0..BATCH).flat_map(|_| wave.next_mv().to_le_bytes()).collect();
            (info.time_ns((k + 1) * BATCH as u64 - 1), payload)
        };
        (0..count).map(batch).collect()
    }

    fn follower() -> Follower {
        let mut follower = Follower::default();
        assert!(follower.handle_info(7, &info(FS_HZ).to_json()).unwrap().is_some());
        assert!(follower.handle_info(7, &info(FS_HZ).to_json()).unwrap().is_none(), "unchanged");
        follower
    }

    fn feed(follower: &mut Follower, batches: &[(u64, Vec<u8>)]) -> Vec<Finding> {
        let mut found = Vec::new();
        for (time_ns, payload) in batches {
            follower.handle_wave(7, *time_ns, payload, &mut found).unwrap();
        }
        found
    }

    fn beats(found: &[Finding]) -> Vec<(u64, Option<f64>)> {
        let beat = |finding: &Finding| match *finding {
            Finding::Beat { at_sample, rr_ms, .. } => Some((at_sample, rr_ms)),
            _ => None,
        };
        found.iter().filter_map(beat).collect()
    }

    #[test]
    fn beats_have_sample_numbers_times_and_rr_intervals() {
        let found = feed(&mut follower(), &batches(500));
        let beats = beats(&found);
        assert!((22..=24).contains(&beats.len()), "{beats:?}");
        assert_eq!(beats[0].1, None);
        for pair in beats.windows(2) {
            assert_eq!(pair[1].1, Some((pair[1].0 - pair[0].0) as f64 * 4.0));
        }
        let Some(Finding::Rate(Some(bpm))) = found.last() else { panic!("{:?}", found.last()) };
        assert!((70.0..74.0).contains(bpm), "{bpm}");
        let time_of = |finding: &Finding| match *finding {
            Finding::Beat { at_sample, time_ns, .. } => time_ns == info(FS_HZ).time_ns(at_sample),
            _ => true,
        };
        assert!(found.iter().all(time_of));
    }

    #[test]
    fn a_lost_batch_is_reported_and_no_rr_interval_spans_it() {
        let all = batches(500);
        let mut follower = follower();
        let mut found = feed(&mut follower, &all[..250]);
        let before = found.len();
        found.extend(feed(&mut follower, &all[251..]));
        assert_eq!(found[before], Finding::Gap { from: 2_500, to: 2_510 });
        assert_eq!(found.iter().filter(|finding| matches!(finding, Finding::Gap { .. })).count(), 1);
        let after = beats(&found[before..]);
        assert_eq!(after[0].1, None, "{after:?}");
        assert!(after.len() > 9 && after[1..].iter().all(|(_, rr_ms)| rr_ms.is_some()));
        let whole = beats(&feed(&mut self::follower(), &all));
        assert!(after[1..].iter().all(|(at, _)| whole.iter().any(|(other, _)| other.abs_diff(*at) <= 1)));
    }

    /// A batch without a recorded sample.
    fn emptied(batch: &(u64, Vec<u8>)) -> (u64, Vec<u8>) {
        (batch.0, f32::NAN.to_le_bytes().repeat(BATCH))
    }

    #[test]
    fn a_second_of_nan_is_a_gap_to_the_sample_and_less_is_bridged() {
        let all = batches(500);
        for (from, count, gap) in [(250, 25, true), (250, 24, false), (0, 100, true)] {
            let mut sent = all.clone();
            sent[from..from + count].iter_mut().for_each(|batch| *batch = emptied(batch));
            let found = feed(&mut follower(), &sent);
            let gaps: Vec<_> =
                found.iter().filter(|finding| matches!(finding, Finding::Gap { .. })).collect();
            let (from, to) = ((from * BATCH) as u64, ((from + count) * BATCH) as u64);
            let expected = Finding::Gap { from, to };
            assert_eq!(gaps, if gap { vec![&expected] } else { vec![] });
            let spans = |at: u64, rr_ms: f64| at > to && at as f64 - rr_ms / 4.0 < from as f64;
            let is_spanned =
                beats(&found).iter().any(|(at, rr_ms)| rr_ms.is_some_and(|rr_ms| spans(*at, rr_ms)));
            assert!(!(gap && is_spanned), "{found:?}");
        }
        // Lost batches within it are part of it.
        let mut sent = all.clone();
        sent[200..250].iter_mut().for_each(|batch| *batch = emptied(batch));
        sent.drain(230..260);
        let found = feed(&mut follower(), &sent);
        assert!(found.contains(&Finding::Gap { from: 2_000, to: 2_600 }), "{found:?}");
    }

    #[test]
    fn the_wave_of_a_new_epoch_is_ignored_until_its_description_arrives() {
        let all = batches(300);
        let mut follower = follower();
        feed(&mut follower, &all[..100]);
        let mut found = Vec::new();
        follower.handle_wave(8, all[0].0, &all[0].1, &mut found).unwrap();
        assert!(follower.handle_info(8, &info(FS_HZ).to_json()).unwrap().is_some());
        for (time_ns, payload) in &all[50..] {
            follower.handle_wave(8, *time_ns, payload, &mut found).unwrap();
        }
        assert!(!found.iter().any(|finding| matches!(finding, Finding::Gap { .. })), "{found:?}");
        assert_eq!(beats(&found)[0].1, None);
    }

    #[test]
    fn an_invalid_batch_is_rejected_and_has_no_effect() {
        let all = batches(500);
        let mut follower = follower();
        let mut found = feed(&mut follower, &all[..250]);
        for (time_ns, payload) in [
            (all[250].0, &[0; 0][..]),
            (all[250].0, &[0; 39]),
            (all[249].0, &all[249].1),
            (all[0].0, &[0; 400]),
            (0, &[0; 40]),
        ] {
            assert!(follower.handle_wave(7, time_ns, payload, &mut found).is_err());
        }
        assert!(follower.handle_info(7, b"{}").is_err());
        found.extend(feed(&mut follower, &all[250..]));
        assert_eq!(found, feed(&mut self::follower(), &all));
    }

    #[test]
    fn without_beats_the_heart_rate_becomes_unknown_once() {
        let mut follower = follower();
        let mut all = batches(1_000);
        all[500..].iter_mut().for_each(|(_, payload)| payload.fill(0));
        let found = feed(&mut follower, &all);
        let silences = found.iter().filter(|finding| matches!(finding, Finding::Rate(None))).count();
        assert_eq!((silences, found.last()), (1, Some(&Finding::Rate(None))));
    }

    #[test]
    fn findings_are_published_as_json() {
        let beat = Finding::Beat { at_sample: 77, time_ns: 5, rr_ms: Some(812.54) };
        assert_eq!(beat.to_tick().unwrap(), (1, r#"{"at_sample":77,"time_ns":5,"rr_ms":812.5}"#.into()));
        let first = Finding::Beat { at_sample: 77, time_ns: 5, rr_ms: None };
        assert_eq!(first.to_tick().unwrap().1, r#"{"at_sample":77,"time_ns":5,"rr_ms":null}"#);
        assert_eq!(Finding::Rate(Some(73.86)).to_tick().unwrap(), (2, r#"{"bpm":73.9}"#.into()));
        assert_eq!(Finding::Rate(None).to_tick().unwrap().1, r#"{"bpm":null}"#);
        assert_eq!(Finding::Gap { from: 1, to: 2 }.to_tick(), None);
    }
}
