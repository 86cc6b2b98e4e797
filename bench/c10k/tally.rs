//! What one thread counts while ticks come in.

use std::collections::HashMap;

use crate::{feed::Feed, skew::Skew};
use hdrhistogram::Histogram;
use tickcast_client::{Tick, TopicStats};

/// Longest latency told apart: ten minutes. Longer ones count as that.
const LATENCY_NS_MAX: u64 = 600_000_000_000;
/// Digits of a latency that are kept: 0.1 %. Each table takes 300 KB.
const LATENCY_DIGITS: u8 = 3;

/// Highest sequence seen of each topic, by number.
pub type Cut = HashMap<u32, u64>;

/// Deliveries and their latency in the measured window.
#[derive(Debug)]
pub struct Tally {
    pub measuring: bool,
    pub deliveries: u64,
    pub payload_bytes: u64,
    pub wire_bytes: u64,
    /// Ticks that carried no time to measure from.
    pub untimed: u64,
    /// Ticks from the future: the clocks of producer and client differ. Counted as 0.
    pub early: u64,
    /// From the intended send time to the read.
    pub latency_ns: Histogram<u64>,
    /// From the server's time of receipt to the read; empty where the ticks do not carry it.
    pub uncorrected_ns: Histogram<u64>,
    /// Corrected, of every delivery from the first connect to the end of the window: what the crowd of a spike does to
    /// itself. Filled while `in_spike`.
    pub spike_ns: Histogram<u64>,
    pub in_spike: bool,
    /// From a connection's subscription to its first tick, of all connections, ramp included.
    pub subscription_ns: Histogram<u64>,
    /// The same from the start of its connect.
    pub connect_ns: Histogram<u64>,
    pub skew: Skew,
}

impl Tally {
    /// # Errors
    /// Never in practice: the histogram's bounds are constants.
    pub fn new() -> Result<Tally, String> {
        Ok(Tally {
            measuring: false,
            deliveries: 0,
            payload_bytes: 0,
            wire_bytes: 0,
            untimed: 0,
            early: 0,
            latency_ns: histogram()?,
            uncorrected_ns: histogram()?,
            spike_ns: histogram()?,
            in_spike: false,
            subscription_ns: histogram()?,
            connect_ns: histogram()?,
            skew: Skew::default(),
        })
    }

    /// Counts a tick that a read brought at `received_ns`; `intended_ns` 0 for unknown.
    #[inline]
    pub fn tick(&mut self, intended_ns: u64, received_ns: u64, payload_len: usize) {
        if self.in_spike && intended_ns != 0 {
            self.spike_ns.saturating_record(received_ns.saturating_sub(intended_ns));
        }
        if !self.measuring {
            return;
        }
        self.deliveries += 1;
        self.payload_bytes += payload_len as u64;
        if intended_ns == 0 {
            self.untimed += 1;
            return;
        }
        self.early += u64::from(intended_ns > received_ns);
        self.latency_ns.saturating_record(received_ns.saturating_sub(intended_ns));
    }

    /// Takes what else a tick says that has a place in its topic: when the server received it, and which it is.
    #[inline]
    pub fn numbered(&mut self, tick: &Tick<'_>, received_ns: u64) {
        if !self.measuring {
            return;
        }
        if tick.ingest_time_ns != 0 {
            self.uncorrected_ns.saturating_record(received_ns.saturating_sub(tick.ingest_time_ns));
        }
        self.skew.saw(tick.topic_id.0, tick.sequence.0, received_ns);
    }

    /// Counts the first tick of a connection, so long after it began to connect and after its subscription was sent; in
    /// any phase.
    pub fn first_tick(&mut self, after_connect_ns: u64, after_request_ns: u64) {
        self.connect_ns.saturating_record(after_connect_ns);
        self.subscription_ns.saturating_record(after_request_ns);
    }

    /// Adds what another thread counted.
    ///
    /// # Errors
    /// Never in practice: all histograms have the same bounds.
    pub fn add(&mut self, other: &Tally) -> Result<(), String> {
        self.deliveries += other.deliveries;
        self.payload_bytes += other.payload_bytes;
        self.wire_bytes += other.wire_bytes;
        self.untimed += other.untimed;
        self.early += other.early;
        self.skew.add(&other.skew);
        let tables = [
            (&mut self.latency_ns, &other.latency_ns),
            (&mut self.uncorrected_ns, &other.uncorrected_ns),
            (&mut self.spike_ns, &other.spike_ns),
            (&mut self.subscription_ns, &other.subscription_ns),
            (&mut self.connect_ns, &other.connect_ns),
        ];
        for (own, others) in tables {
            own.add(others).map_err(|error| format!("histogram: {error}"))?;
        }
        Ok(())
    }

    /// The uncorrected latency; `None` where ticks came, and none said when the server had it.
    pub fn uncorrected(&self) -> Option<&Histogram<u64>> {
        (self.deliveries == 0 || !self.uncorrected_ns.is_empty()).then_some(&self.uncorrected_ns)
    }
}

/// An empty table for any time that is measured here.
///
/// # Errors
/// Never in practice: its bounds are constants.
pub fn histogram() -> Result<Histogram<u64>, String> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, LATENCY_DIGITS)
        .map_err(|error| format!("histogram: {error}"))
}

/// The intended send time in the simulator's payload, `{"at":<nanoseconds>,...`; 0 in any other.
#[inline]
pub fn intended_ns(payload: &[u8]) -> u64 {
    let Some(rest) = payload.strip_prefix(b"{\"at\":") else { return 0 };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).take(19);
    digits.fold(0, |value, digit| value * 10 + u64::from(digit - b'0'))
}

/// Ticks that did not come; the crate's documentation says what each counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    pub gap: u64,
    pub head: u64,
    pub tail: u64,
    /// Left out with a word of the server's, and so not in the total: a newer tick stands for them.
    pub conflated: u64,
    /// Dropped with a word of the server's, and so not in the total.
    pub announced: u64,
}

impl Loss {
    pub fn total(&self) -> u64 {
        self.gap + self.head + self.tail
    }

    pub fn add(&mut self, other: Loss) {
        self.gap += other.gap;
        self.head += other.head;
        self.tail += other.tail;
        self.conflated += other.conflated;
        self.announced += other.announced;
    }

    /// What a session lost; `start` is `None` where the beginning cannot be judged.
    pub fn of_session(session: &Feed, start: Option<&Cut>, end: &Cut) -> Loss {
        let seen: HashMap<u32, &TopicStats> = session.topics().map(|(id, topic)| (id.0, topic)).collect();
        let sum = |of: fn(&TopicStats) -> u64| seen.values().map(|topic| of(topic)).sum();
        let mut loss = Loss {
            gap: sum(|topic| topic.missed),
            conflated: sum(|topic| topic.conflated),
            announced: sum(|topic| topic.gap),
            ..Loss::default()
        };
        for (id, &highest) in end {
            let from = start.map(|start| start.get(id).copied().unwrap_or(0));
            loss.add(Loss::of_topic(seen.get(id).copied(), from, highest));
        }
        loss
    }

    /// Head and tail of one topic, of which sequences after `from` up to `highest` could have been seen.
    fn of_topic(topic: Option<&TopicStats>, from: Option<u64>, highest: u64) -> Loss {
        match topic.filter(|topic| topic.ticks > 0) {
            None => Loss { tail: from.map_or(0, |from| highest.saturating_sub(from)), ..Loss::default() },
            Some(topic) => Loss {
                head: from.map_or(0, |from| (topic.first_sequence - 1).saturating_sub(from)),
                tail: highest.saturating_sub(topic.last_sequence),
                ..Loss::default()
            },
        }
    }
}

/// Raises `cut` to the highest sequences a session has seen.
pub fn raise_cut(cut: &mut Cut, session: &Feed) {
    for (id, topic) in session.topics().filter(|(_, topic)| topic.ticks > 0) {
        let highest = cut.entry(id.0).or_insert(0);
        *highest = (*highest).max(topic.last_sequence);
    }
}

/// Lowers `cut` to just before the first sequences a session has seen.
pub fn lower_cut(cut: &mut Cut, session: &Feed) {
    for (id, topic) in session.topics().filter(|(_, topic)| topic.ticks > 0) {
        let lowest = cut.entry(id.0).or_insert(u64::MAX);
        *lowest = (*lowest).min(topic.first_sequence - 1);
    }
}

/// Whether a session has seen all that any had.
pub fn has_reached(session: &Feed, end: &Cut) -> bool {
    let reached = session
        .topics()
        .filter(|(id, topic)| end.get(&id.0).is_some_and(|&highest| topic.last_sequence >= highest));
    reached.count() == end.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(first_sequence: u64, last_sequence: u64) -> TopicStats {
        TopicStats { first_sequence, last_sequence, ticks: 1, ..TopicStats::default() }
    }

    #[test]
    fn what_could_have_been_seen_before_and_after_counts_as_lost() {
        let loss = |topic: Option<&TopicStats>, from| {
            let loss = Loss::of_topic(topic, from, 20);
            (loss.head, loss.tail)
        };
        assert_eq!(loss(Some(&topic(11, 20)), Some(10)), (0, 0));
        assert_eq!(loss(Some(&topic(3, 25)), Some(10)), (0, 0));
        assert_eq!(loss(Some(&topic(13, 18)), Some(10)), (2, 2));
        assert_eq!(loss(Some(&topic(13, 18)), None), (0, 2));
        assert_eq!(loss(None, Some(10)), (0, 10));
        assert_eq!(loss(None, None), (0, 0));
        assert_eq!(loss(Some(&TopicStats::default()), Some(10)), (0, 10));
    }

    #[test]
    fn the_intended_time_is_read_from_the_simulators_payload_alone() {
        assert_eq!(intended_ns(b"{\"at\":1700000000000000001,\"n\":1}"), 1_700_000_000_000_000_001);
        assert_eq!(intended_ns(b"{\"at\":"), 0);
        assert_eq!(intended_ns(b"\x00\x01"), 0);
        assert_eq!(intended_ns(b"{\"at\":99999999999999999999999}"), 9_999_999_999_999_999_999);
    }

    #[test]
    fn only_the_measured_window_is_counted_and_the_future_is_zero() {
        let mut tally = Tally::new().unwrap();
        tally.tick(1, 2, 3);
        tally.measuring = true;
        tally.tick(1_000, 3_000, 5);
        tally.tick(5_000, 3_000, 5);
        tally.tick(0, 3_000, 5);
        assert_eq!((tally.deliveries, tally.payload_bytes, tally.untimed, tally.early), (3, 15, 1, 1));
        assert_eq!(tally.latency_ns.len(), 2);
    }
}
