//! The processor without its connection: ticks of the wave in, beats, heart rate and gaps out.

use std::collections::VecDeque;

use super::{
    detector::{BadRate, Detector},
    info::Info,
};

/// Intervals that a heart rate is the mean of.
const INTERVALS: usize = 8;
/// Without a beat for so long there is no heart rate.
const SILENCE_S: f64 = 4.5;

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Finding {
    /// A beat.
    Beat {
        /// The sample that is the R peak.
        at_sample: u64,
        /// When it was taken, nanoseconds since 1970; in a file, since its start.
        time_ns: u64,
        /// Since the beat before, ms; `None`: after a gap, or for the first.
        rr_ms: Option<f64>,
    },
    /// The heart rate, beats a minute; `None`: no beat for a while.
    Rate(Option<f64>),
    /// These samples did not come: the first, and the one after the last. The detector begins anew behind them.
    Gap {
        /// The first that is lost.
        from: u64,
        /// The first that is not.
        to: u64,
    },
}

impl Finding {
    /// The payload in [`super::PARAMS_TOPIC`], and its key; `None` for what is not published.
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

/// Intervals between beats, and the rate that follows from them.
#[derive(Clone, Debug, Default)]
pub struct Rhythm {
    last: Option<u64>,
    intervals_s: VecDeque<f64>,
}

impl Rhythm {
    /// Takes a beat at a rate of samples: what there is to tell of it. `time_ns` is when it was.
    pub fn beat(&mut self, fs_hz: f64, at_sample: u64, time_ns: u64, found: &mut Vec<Finding>) {
        let interval_s = self.last.map(|last| at_sample.saturating_sub(last) as f64 / fs_hz);
        self.last = Some(at_sample);
        found.push(Finding::Beat { at_sample, time_ns, rr_ms: interval_s.map(|seconds| 1e3 * seconds) });
        // After a pause the rate is that of the beats behind it.
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

    /// Says, once, that there is no rate any more. `next` is the number of the next sample.
    pub fn silence(&mut self, fs_hz: f64, next: u64, found: &mut Vec<Finding>) {
        let silent_s = self.last.map_or(0.0, |last| next.saturating_sub(last) as f64 / fs_hz);
        if silent_s > SILENCE_S && !self.intervals_s.is_empty() {
            self.intervals_s.clear();
            found.push(Finding::Rate(None));
        }
    }
}

/// Follows the ticks of a wave. Memory: a [`Detector`].
#[derive(Debug, Default)]
pub struct Follower {
    wave: Option<Wave>,
}

#[derive(Debug)]
struct Wave {
    /// The server's life that the description is of.
    epoch: u64,
    info: Info,
    detector: Detector,
    rhythm: Rhythm,
    has_begun: bool,
}

impl Follower {
    /// Takes a tick of [`super::INFO_TOPIC`] of this life of the server; what the wave is, if that is news.
    ///
    /// # Errors
    /// What is wrong with it; it is ignored.
    pub fn handle_info(&mut self, epoch: u64, payload: &[u8]) -> Result<Option<&Info>, String> {
        let info = Info::from_json(payload)?;
        if self.wave.as_ref().is_some_and(|wave| wave.epoch == epoch && wave.info == info) {
            return Ok(None);
        }
        let detector = Detector::new(info.fs).map_err(|error: BadRate| error.to_string())?;
        let wave = Wave { epoch, info, detector, rhythm: Rhythm::default(), has_begun: false };
        Ok(Some(&self.wave.insert(wave).info))
    }

    /// Takes a tick of [`super::WAVE_TOPIC`]. Before the description of its life of the server is known, it is left out.
    ///
    /// # Errors
    /// What is wrong with it; it is ignored.
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
            return Err(format!("{} bytes are no batch of Float32", payload.len()));
        }
        let first =
            wave.info.at_sample(time_ns).and_then(|last| (last + 1).checked_sub(samples.len() as u64));
        let first = first.ok_or("a batch of before the first sample")?;
        let next = wave.detector.next_sample();
        if !wave.has_begun {
            wave.has_begun = true;
            wave.detector.skip_to(first);
        } else if first > next {
            found.push(Finding::Gap { from: next, to: first });
            wave.detector.skip_to(first);
            wave.rhythm = Rhythm::default();
        } else if first < next {
            return Err(format!("a batch from sample {first} where {next} is the next"));
        }
        let fs_hz = wave.info.fs;
        for sample in samples {
            if let Some(beat) = wave.detector.push(f32::from_le_bytes(*sample)) {
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

    /// The batches of a synthetic heart, as the source publishes them: time and payload.
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
        assert!(follower.handle_info(7, &info(FS_HZ).to_json()).unwrap().is_none(), "no news");
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
    fn beats_come_with_their_samples_times_and_intervals() {
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
    fn a_lost_batch_is_told_and_no_interval_spans_it() {
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

    #[test]
    fn the_wave_of_another_life_waits_for_its_description() {
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
    fn what_is_no_batch_is_refused_and_changes_nothing() {
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
    fn a_heart_that_stops_has_no_rate_and_that_is_told_once() {
        let mut follower = follower();
        let mut all = batches(1_000);
        all[500..].iter_mut().for_each(|(_, payload)| payload.fill(0));
        let found = feed(&mut follower, &all);
        let silences = found.iter().filter(|finding| matches!(finding, Finding::Rate(None))).count();
        assert_eq!((silences, found.last()), (1, Some(&Finding::Rate(None))));
    }

    #[test]
    fn findings_are_json() {
        let beat = Finding::Beat { at_sample: 77, time_ns: 5, rr_ms: Some(812.54) };
        assert_eq!(beat.to_tick().unwrap(), (1, r#"{"at_sample":77,"time_ns":5,"rr_ms":812.5}"#.into()));
        let first = Finding::Beat { at_sample: 77, time_ns: 5, rr_ms: None };
        assert_eq!(first.to_tick().unwrap().1, r#"{"at_sample":77,"time_ns":5,"rr_ms":null}"#);
        assert_eq!(Finding::Rate(Some(73.86)).to_tick().unwrap(), (2, r#"{"bpm":73.9}"#.into()));
        assert_eq!(Finding::Rate(None).to_tick().unwrap().1, r#"{"bpm":null}"#);
        assert_eq!(Finding::Gap { from: 1, to: 2 }.to_tick(), None);
    }
}
