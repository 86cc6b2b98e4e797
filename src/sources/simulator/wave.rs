//! One wave of the simulator: producers with a load, jitter and loss.

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use super::load::Load;
use crate::{kind::OptionChecks, limits::SIM_SIZE_LOWEST, payload::Mark};
use tickcast_common::values::{Size, Time};

/// Bytes of the value in a payload: `,"value":-1.0000`.
const VALUE_BYTES: usize = 16;
/// Longest jitter.
const JITTER_HIGHEST: Time = Time::from_ms(60_000);

/// A table `wave` of a simulator. Options that are not set default to the simulator's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WaveOptions {
    /// Its topics are `sim.NAME.0` and so on.
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub producers: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topics: Option<u32>,
    /// Ticks per second of each producer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// How the rate changes.
    pub load: Load,
    /// Each tick comes up to this much after it is due. None overtakes another.
    pub jitter: Time,
    /// Share of the ticks that are lost on the way: numbered, but not published.
    pub loss: f64,
    /// The signal of a sensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<Signal>,
}

/// A signal from -1 to 1, which each payload has as `value`. Each topic of a wave lags a little behind the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    shape: Shape,
    period: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Shape {
    Sine,
    Square,
    Sawtooth,
    Noise,
}

impl Signal {
    fn value(&self, at_ns: u64, topic: f64, rng: &mut Rng) -> f64 {
        let phase = (at_ns as f64 / self.period.ns.max(1) as f64 + topic).fract();
        match self.shape {
            Shape::Sine => (phase * std::f64::consts::TAU).sin(),
            Shape::Square => {
                if phase < 0.5 {
                    1.0
                } else {
                    -1.0
                }
            }
            Shape::Sawtooth => 2.0 * phase - 1.0,
            Shape::Noise => 2.0 * rng.f64() - 1.0,
        }
    }
}

impl WaveOptions {
    /// Refuses values that are invalid on their own, under the key `wave`.
    pub fn check(&self, checks: &mut OptionChecks) {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        if !(1..=64).contains(&self.name.len()) || !self.name.bytes().all(is_token) {
            checks
                .refuse("wave", format!("name {:?}: use up to 64 of a-z, A-Z, 0-9, '_' and '-'", self.name));
        }
        self.load.check(checks);
        checks.within("wave", self.jitter, Time::default(), JITTER_HIGHEST);
        if !(0.0..1.0).contains(&self.loss) {
            checks.refuse("wave", format!("loss = {}: must be from 0 to below 1", self.loss));
        }
        if let Some(signal) = &self.signal {
            checks.within("wave", signal.period, Time::from_ms(1), Time::from_ms(86_400_000));
        }
    }
}

/// A configured wave.
#[derive(Clone, Debug, PartialEq)]
pub struct Wave {
    /// Topics are named by this, a dot and a number.
    pub prefix: String,
    /// Number of producers.
    pub producers: u32,
    /// Number of topics, divided among the producers.
    pub topics: u32,
    /// Ticks per second of each producer.
    pub rate: u32,
    /// Bytes of each payload.
    pub size_bytes: usize,
    pub load: Load,
    pub jitter_ns: u64,
    pub loss: f64,
    pub signal: Option<Signal>,
}

impl Wave {
    pub const fn per_second(&self) -> u64 {
        self.producers as u64 * self.rate as u64
    }
}

/// A running wave.
///
/// Invariant: `comes_ns` never decreases, and is not before the tick is due.
pub struct Running<'a> {
    pub wave: &'a Wave,
    topics: Vec<String>,
    /// Ticks made, by topic.
    made: Vec<u64>,
    /// The next tick, from 0.
    k: u64,
    /// When it is due, after the start.
    due_ns: u64,
    comes_ns: u64,
    rng: Rng,
}

impl<'a> Running<'a> {
    pub fn new(wave: &'a Wave, seed: Option<u64>) -> Running<'a> {
        let topics = (0..wave.topics).map(|topic| format!("{}.{topic}", wave.prefix)).collect();
        let rng = seed.map_or_else(Rng::new, Rng::with_seed);
        let mut running =
            Running { wave, topics, made: vec![0; wave.topics as usize], k: 0, due_ns: 0, comes_ns: 0, rng };
        running.advance(0);
        running
    }

    /// When the next tick comes, in nanoseconds after the start.
    pub const fn comes_ns(&self) -> u64 {
        self.comes_ns
    }

    /// The time between the first two ticks, which shows how dense the wave is.
    pub fn spacing_ns(&self) -> u64 {
        1_000_000_000 / self.wave.per_second().max(1)
    }

    /// Skips the ticks due before `at_ns`. Returns their number.
    pub fn skip_to(&mut self, at_ns: u64) -> u64 {
        let skipped = self.wave.load.due_before(at_ns, self.wave.per_second()).saturating_sub(self.k);
        if skipped > 0 {
            self.advance(skipped);
        }
        skipped
    }

    /// Skips the ticks that should have come more than `catch_up_ns` before `elapsed_ns`, even with the longest jitter. Returns
    /// their number.
    pub fn skip_overdue(&mut self, elapsed_ns: u64, catch_up_ns: u64) -> u64 {
        self.skip_to(elapsed_ns.saturating_sub(catch_up_ns.saturating_add(self.wave.jitter_ns)))
    }

    /// Writes the next tick's payload, unless it is lost on the way. Returns when it was due, and its topic.
    pub fn make(&mut self, start_realtime_ns: u64, payload: &mut Vec<u8>) -> (u64, Option<&str>) {
        let producer = self.k % u64::from(self.wave.producers);
        let topic = (producer % u64::from(self.wave.topics)) as usize;
        let due_ns = start_realtime_ns + self.due_ns;
        self.made[topic] += 1;
        let mark = Mark { at_ns: due_ns, topic: topic as u32, n: self.made[topic] };
        match &self.wave.signal {
            None => mark.write(payload, self.wave.size_bytes),
            Some(signal) => {
                let share = topic as f64 / self.topics.len() as f64;
                let value = signal.value(due_ns, share, &mut self.rng);
                mark.write(
                    payload,
                    self.wave.size_bytes.saturating_sub(VALUE_BYTES).max(SIM_SIZE_LOWEST - VALUE_BYTES),
                );
                payload.pop();
                payload.extend_from_slice(format!(",\"value\":{value:.4}}}").as_bytes());
            }
        }
        let is_lost = self.wave.loss > 0.0 && self.rng.f64() < self.wave.loss;
        self.advance(1);
        (due_ns, (!is_lost).then(|| &*self.topics[topic]))
    }

    /// Takes back the number of a tick that could not be published.
    pub fn unmake(&mut self) {
        let producer = (self.k - 1) % u64::from(self.wave.producers);
        self.made[(producer % u64::from(self.wave.topics)) as usize] -= 1;
    }

    fn advance(&mut self, ticks: u64) {
        self.k += ticks;
        self.due_ns = self.wave.load.due_ns(self.k, self.wave.per_second());
        let jitter_ns = match self.wave.jitter_ns {
            0 => 0,
            jitter_ns => self.rng.u64(0..=jitter_ns),
        };
        self.comes_ns = self.due_ns.saturating_add(jitter_ns).max(self.comes_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave() -> Wave {
        Wave {
            prefix: "sim.a".into(),
            producers: 4,
            topics: 2,
            rate: 25,
            size_bytes: 100,
            load: Load::Steady,
            jitter_ns: 0,
            loss: 0.0,
            signal: None,
        }
    }

    #[test]
    fn jitter_delays_ticks_and_keeps_their_order() {
        let wave = Wave { jitter_ns: 50_000_000, ..wave() };
        let mut running = Running::new(&wave, Some(1));
        let (mut payload, mut last_ns, mut late) = (Vec::new(), 0, 0);
        for k in 0..1_000 {
            let comes_ns = running.comes_ns();
            let (due_ns, _) = running.make(0, &mut payload);
            assert_eq!(due_ns, k * 10_000_000);
            assert!((due_ns..=due_ns + 50_000_000).contains(&comes_ns) && comes_ns >= last_ns, "{k}");
            late += u64::from(comes_ns > due_ns);
            last_ns = comes_ns;
        }
        assert!(late > 900, "{late}");
    }

    #[test]
    fn no_tick_is_overdue_because_of_its_jitter() {
        let wave = Wave { jitter_ns: 5_000_000_000, ..wave() };
        let mut running = Running::new(&wave, Some(1));
        let (mut payload, mut made) = (Vec::new(), 0);
        for elapsed_ns in (0..20_000_000_000).step_by(10_000_000) {
            assert_eq!(running.skip_overdue(elapsed_ns, 1_000_000_000), 0, "{elapsed_ns}");
            while running.comes_ns() <= elapsed_ns {
                running.make(0, &mut payload);
                made += 1;
            }
        }
        assert!((1_400..=2_000).contains(&made), "{made} of 100 a second");
    }

    #[test]
    fn lost_ticks_are_numbered_so_that_the_receiver_sees_the_hole() {
        let wave = Wave { loss: 0.25, ..wave() };
        let mut running = Running::new(&wave, Some(7));
        let mut payload = Vec::new();
        let mut lost = 0;
        for k in 0..4_000_u64 {
            let is_lost = running.make(0, &mut payload).1.is_none();
            lost += u64::from(is_lost);
            let mark = Mark::read(&payload).unwrap();
            assert_eq!((u64::from(mark.topic), mark.n), (k % 2, k / 2 + 1));
        }
        assert!((900..1_100).contains(&lost), "{lost}");
    }

    #[test]
    fn a_signal_is_a_number_in_a_payload_of_the_size_asked_for() {
        for shape in [Shape::Sine, Shape::Square, Shape::Sawtooth, Shape::Noise] {
            let signal = Signal { shape, period: Time::from_ms(1_000) };
            let wave = Wave { signal: Some(signal), ..wave() };
            let mut running = Running::new(&wave, Some(7));
            let mut payload = Vec::new();
            for k in 0..200_u64 {
                assert_eq!(running.make(0, &mut payload).1, Some(["sim.a.0", "sim.a.1"][(k % 2) as usize]));
                let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
                assert!((-1.0..=1.0).contains(&value["value"].as_f64().unwrap()), "{value}");
                assert!((99..=100).contains(&payload.len()), "a sign more or less: {}", payload.len());
                assert!(Mark::read(&payload).is_some());
            }
        }
    }

    #[test]
    fn overdue_ticks_are_passed_over_together() {
        let wave = wave();
        let mut running = Running::new(&wave, Some(7));
        assert_eq!((running.skip_to(1_000_000_000), running.comes_ns()), (100, 1_000_000_000));
        assert_eq!(running.skip_to(1_000_000_000), 0);
    }
}
