//! Counts of one thread: deliveries, latency and loss.

use std::collections::HashMap;

use hdrhistogram::Histogram;
use tickcast_client::{Tick, TopicStats};
use tickcast_proto::logged::is_log_epoch;

use crate::{common::histogram::histogram, feed::Feed, skew::Skew};

/// One sequence per topic number.
pub type SequenceByTopic = HashMap<u32, u64>;

/// Deliveries and their latency in the measured window.
#[derive(Debug)]
pub struct Tally {
    pub measuring: bool,
    pub deliveries: u64,
    pub payload_bytes: u64,
    pub wire_bytes: u64,
    /// Ticks that carried no send time.
    pub untimed: u64,
    /// Ticks received before their send time, because the clocks differ. Their latency counts as 0.
    pub early: u64,
    /// From the intended send time to the read.
    pub latency_ns: Histogram<u64>,
    /// From the server's time of receipt to the read; empty if the ticks do not carry it.
    pub uncorrected_ns: Histogram<u64>,
    /// Corrected latency from the first connect to the end of the window, recorded while `in_spike`.
    ///
    /// It shows what the connections of a spike do to one another.
    pub spike_ns: Histogram<u64>,
    pub in_spike: bool,
    /// From a connection's subscription to its first tick, ramp included.
    pub subscription_ns: Histogram<u64>,
    /// From the start of a connection's connect to its first tick.
    pub connect_ns: Histogram<u64>,
    pub skew: Skew,
}

impl Tally {
    /// An empty tally.
    ///
    /// # Errors
    /// Never in practice: the histograms' bounds are constants.
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

    /// Counts a tick received at `received_ns`; an `intended_ns` of 0 is unknown.
    #[inline]
    pub fn count_tick(&mut self, intended_ns: u64, received_ns: u64, payload_len: usize) {
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

    /// Counts what only a tick with a sequence has: uncorrected latency and skew.
    #[inline]
    pub fn count_sequenced(&mut self, tick: &Tick<'_>, received_ns: u64) {
        if !self.measuring {
            return;
        }
        if tick.ingest_time_ns != 0 {
            self.uncorrected_ns.saturating_record(received_ns.saturating_sub(tick.ingest_time_ns));
        }
        self.skew.record(tick.topic_id.0, tick.sequence.0, received_ns);
    }

    /// Counts a connection's first tick, in any phase.
    ///
    /// The times are those since its connect began and since its subscription was written.
    pub fn count_first_tick(&mut self, after_connect_ns: u64, after_request_ns: u64) {
        self.connect_ns.saturating_record(after_connect_ns);
        self.subscription_ns.saturating_record(after_request_ns);
    }

    /// Adds another thread's counts.
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
        let histograms = [
            (&mut self.latency_ns, &other.latency_ns),
            (&mut self.uncorrected_ns, &other.uncorrected_ns),
            (&mut self.spike_ns, &other.spike_ns),
            (&mut self.subscription_ns, &other.subscription_ns),
            (&mut self.connect_ns, &other.connect_ns),
        ];
        for (sum, addend) in histograms {
            sum.add(addend).map_err(|error| format!("histogram: {error}"))?;
        }
        Ok(())
    }

    /// The uncorrected latency; `None` if ticks came and none carried the server's time of receipt.
    pub fn uncorrected(&self) -> Option<&Histogram<u64>> {
        (self.deliveries == 0 || !self.uncorrected_ns.is_empty()).then_some(&self.uncorrected_ns)
    }
}

/// Intended send time in the simulator's payload, `{"at":<nanoseconds>,...`; 0 for any other.
#[inline]
pub fn intended_ns(payload: &[u8]) -> u64 {
    let Some(rest) = payload.strip_prefix(b"{\"at\":") else { return 0 };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).take(19);
    digits.fold(0, |value, digit| value * 10 + u64::from(digit - b'0'))
}

/// Ticks that did not arrive; the crate's documentation defines each count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    pub gap: u64,
    pub head: u64,
    pub tail: u64,
    /// Announced by the server as replaced by a newer tick; not in the total.
    pub conflated: u64,
    /// Announced by the server as dropped; not in the total.
    pub dropped: u64,
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
        self.dropped += other.dropped;
    }

    /// Loss of one connection.
    ///
    /// `start` is `None` if it is unknown which ticks the connection could have seen first.
    pub fn of_feed(feed: &Feed, start: Option<&SequenceByTopic>, end: &SequenceByTopic) -> Loss {
        let seen: HashMap<u32, &TopicStats> = feed.topics().map(|(id, topic)| (id.0, topic)).collect();
        let sum = |of: fn(&TopicStats) -> u64| seen.values().map(|topic| of(topic)).sum();
        let mut loss = Loss {
            gap: sum(|topic| topic.missed),
            conflated: sum(|topic| topic.conflated),
            dropped: sum(|topic| topic.gap),
            ..Loss::default()
        };
        for (id, &highest) in end {
            let from = start.map(|start| start.get(id).copied().unwrap_or(0));
            loss.add(Loss::of_topic(seen.get(id).copied(), from, highest));
        }
        loss
    }

    /// Head and tail of a topic of which the connection could have seen `from + 1` to `highest`.
    fn of_topic(topic: Option<&TopicStats>, from: Option<u64>, highest: u64) -> Loss {
        // Positions of a log count the ticks of other topics too: at least one of this one is missing.
        let is_logged = topic.is_some_and(|topic| is_log_epoch(topic.epoch));
        let ticks = |sequences: u64| if is_logged { sequences.min(1) } else { sequences };
        match topic.filter(|topic| topic.ticks > 0) {
            None => {
                Loss { tail: from.map_or(0, |from| ticks(highest.saturating_sub(from))), ..Loss::default() }
            }
            Some(topic) => Loss {
                head: from.map_or(0, |from| ticks((topic.first_sequence - 1).saturating_sub(from))),
                tail: ticks(highest.saturating_sub(topic.last_sequence)),
                ..Loss::default()
            },
        }
    }
}

/// Raises each sequence to the last one that a connection has seen.
pub fn raise_to_last(sequences: &mut SequenceByTopic, feed: &Feed) {
    for (id, topic) in feed.topics().filter(|(_, topic)| topic.ticks > 0) {
        raise(sequences, id.0, topic.last_sequence);
    }
}

/// Raises a topic's sequence.
pub fn raise(sequences: &mut SequenceByTopic, topic: u32, sequence: u64) {
    let highest = sequences.entry(topic).or_insert(0);
    *highest = (*highest).max(sequence);
}

/// Lowers each sequence to just before the first one that a connection has seen.
pub fn lower_to_first(sequences: &mut SequenceByTopic, feed: &Feed) {
    for (id, topic) in feed.topics().filter(|(_, topic)| topic.ticks > 0) {
        let lowest = sequences.entry(id.0).or_insert(u64::MAX);
        *lowest = (*lowest).min(topic.first_sequence - 1);
    }
}

/// The part of `sequences` whose topics a connection knows, by a tick or by name.
pub fn known_part(sequences: &SequenceByTopic, feed: &Feed) -> SequenceByTopic {
    feed.topics().filter_map(|(id, _)| sequences.get(&id.0).map(|&highest| (id.0, highest))).collect()
}

/// Whether a connection has seen every topic up to `end`.
pub fn has_reached(feed: &Feed, end: &SequenceByTopic) -> bool {
    let reached = feed
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
    fn missing_ticks_before_the_first_and_after_the_last_are_lost() {
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
    fn the_intended_time_is_read_only_from_the_simulators_payload() {
        assert_eq!(intended_ns(b"{\"at\":1700000000000000001,\"n\":1}"), 1_700_000_000_000_000_001);
        assert_eq!(intended_ns(b"{\"at\":"), 0);
        assert_eq!(intended_ns(b"\x00\x01"), 0);
        assert_eq!(intended_ns(b"{\"at\":99999999999999999999999}"), 9_999_999_999_999_999_999);
    }

    #[test]
    fn only_the_measured_window_counts_and_early_ticks_have_no_latency() {
        let mut tally = Tally::new().unwrap();
        tally.count_tick(1, 2, 3);
        tally.measuring = true;
        tally.count_tick(1_000, 3_000, 5);
        tally.count_tick(5_000, 3_000, 5);
        tally.count_tick(0, 3_000, 5);
        assert_eq!((tally.deliveries, tally.payload_bytes, tally.untimed, tally.early), (3, 15, 1, 1));
        assert_eq!(tally.latency_ns.len(), 2);
    }
}
