//! The figures to show: rates, busy shares and latencies, computed from two snapshots of a server.

use std::collections::HashMap;

use super::{
    budgets,
    responses::{SessionEntry, ShardCounters, ShardEntry, SinkEntry, Snapshot, SourceEntry, TopicEntry},
    tenants::{self, TenantFigures},
};
use crate::limits::ADMIN_ROWS_MAX;

/// Events per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Ticks sequenced.
    pub ticks: f64,
    /// Ticks queued to subscribers.
    pub deliveries: f64,
    /// Bytes handed to the transport.
    pub bytes: f64,
    /// SENDs.
    pub sends: f64,
    /// SENDs that a socket did not take in full.
    pub parked: f64,
    /// Ticks announced to subscribers as lost.
    pub dropped: f64,
    /// Ticks announced to subscribers as conflated.
    pub conflated: f64,
    /// Ticks refused because a limit allows no further topic.
    pub topics_refused: f64,
}

impl Rates {
    fn between(before: &ShardCounters, now: &ShardCounters, seconds: f64) -> Rates {
        let rate = |of: fn(&ShardCounters) -> u64| of(now).saturating_sub(of(before)) as f64 / seconds;
        Rates {
            ticks: rate(|counters| counters.ticks_sequenced),
            deliveries: rate(|counters| counters.ticks_delivered),
            bytes: rate(|counters| counters.bytes_sent),
            sends: rate(|counters| counters.sends),
            parked: rate(|counters| counters.sends_parked),
            dropped: rate(|counters| counters.ticks_dropped),
            conflated: rate(|counters| counters.ticks_conflated),
            topics_refused: rate(|counters| counters.topics_refused),
        }
    }

    fn add(&mut self, other: &Rates) {
        self.ticks += other.ticks;
        self.deliveries += other.deliveries;
        self.bytes += other.bytes;
        self.sends += other.sends;
        self.parked += other.parked;
        self.dropped += other.dropped;
        self.conflated += other.conflated;
        self.topics_refused += other.topics_refused;
    }
}

/// A shard.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardFigures {
    /// Its number.
    pub shard: u16,
    /// The core it is pinned to.
    pub core: usize,
    /// Open sessions.
    pub sessions: u64,
    /// Sessions with data to send; `None` if the shard did not reply.
    pub waiting: Option<u64>,
    /// Bytes in its incoming rings; `None` if the shard did not reply.
    pub ring_bytes: Option<u64>,
    /// Busy share of the interval; `None` at the first poll, and if the shard completed no turn since the last.
    pub busy_percent: Option<f64>,
    /// `None` at the first poll.
    pub rates: Option<Rates>,
}

/// Percentiles of a latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percentiles {
    /// Sampled ticks.
    pub samples: u64,
    /// The 50th, 90th, 99th, 99.9th and 100th percentile, microseconds.
    pub us: [u64; 5],
}

impl Percentiles {
    /// From latencies, ascending, each with its count; `None` if there are none.
    fn new(counts: &[(u64, u64)]) -> Option<Percentiles> {
        // The counts come from outside: sums saturate.
        let samples = counts.iter().fold(0u64, |samples, &(_, count)| samples.saturating_add(count));
        let &(max, _) = counts.last()?;
        let at = |per_mille: u64| {
            // The number of samples at or below the percentile.
            let rank = (u128::from(samples) * u128::from(per_mille)).div_ceil(1_000) as u64;
            let mut at_most = 0u64;
            let found = counts.iter().find(|(_, count)| {
                at_most = at_most.saturating_add(*count);
                at_most >= rank
            });
            found.map_or(max, |&(us, _)| us)
        };
        Some(Percentiles { samples, us: [at(500), at(900), at(990), at(999), max] })
    }
}

/// Latencies from the receipt of a tick, sampled once per turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyFigures {
    /// Whether they cover the interval; otherwise they cover the time since the server's start.
    pub is_of_interval: bool,
    /// Until the tick has its sequence number.
    pub sequenced: Option<Percentiles>,
    /// Until the kernel has the SENDs of its turn.
    pub sent: Option<Percentiles>,
}

/// A topic.
#[derive(Clone, Debug)]
pub struct TopicFigures {
    /// The server's row.
    pub topic: TopicEntry,
    /// Ticks per second; `None` if the last poll did not list it.
    pub rate: Option<f64>,
}

/// Everything to show of a server.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The server's version.
    pub version: String,
    /// The server's stage.
    pub stage: String,
    /// Seconds since the process started.
    pub uptime_seconds: u64,
    /// Resident memory.
    pub resident_bytes: Option<u64>,
    /// Open descriptors.
    pub descriptors: Option<u64>,
    /// The interval that rates cover; `None` at the first poll and after a restart of the server.
    pub seconds: Option<f64>,
    /// Open sessions.
    pub sessions_open: u64,
    /// Open sessions that have had a live subscription.
    pub sessions_subscribed: u64,
    /// Rates of all shards together.
    pub rates: Option<Rates>,
    /// Each shard.
    pub shards: Vec<ShardFigures>,
    /// Shards that did not reply.
    pub unanswered: Vec<u16>,
    /// Overloaded shards.
    pub overloaded: Vec<u16>,
    /// The server's sources.
    pub sources: Vec<SourceEntry>,
    /// The server's sinks.
    pub sinks: Vec<SinkEntry>,
    /// The tenants besides the default, those that are refused something first.
    pub tenants: Vec<TenantFigures>,
    /// What the abuse budgets of sessions and of addresses refuse.
    pub budgets: (budgets::Refused, budgets::Refused),
    /// Latencies, or why there are none.
    pub latency: Result<LatencyFigures, String>,
    /// Topics by rate, the highest first, or why there are none.
    pub topics: Result<Vec<TopicFigures>, String>,
    /// The number of topics of the shards that replied.
    pub topics_total: u64,
    /// Sessions in the requested order, or why there are none.
    pub sessions: Result<Vec<SessionEntry>, String>,
}

impl Figures {
    /// Computes the figures of a snapshot and the one before it. O(n log n) in the topics, at most 1,000.
    pub fn new(before: Option<&Snapshot>, now: &Snapshot) -> Figures {
        let before = before.filter(|before| is_same_process(before, now));
        let seconds = before
            .map(|before| now.received_ns.saturating_sub(before.received_ns) as f64 / 1e9)
            .filter(|seconds| *seconds > 0.0);
        let earlier = before.zip(seconds);
        let shards: Vec<ShardFigures> = now
            .server
            .shards
            .iter()
            .enumerate()
            .map(|(at, shard)| {
                let earlier = earlier.and_then(|(before, seconds)| {
                    before.server.shards.get(at).map(|before| (before, seconds))
                });
                shard_figures(earlier, shard)
            })
            .collect();
        let rates = seconds.map(|_| {
            let mut sum = Rates::default();
            shards.iter().filter_map(|shard| shard.rates.as_ref()).for_each(|rates| sum.add(rates));
            sum
        });
        let sum = |of: fn(&ShardEntry) -> u64| now.server.shards.iter().map(of).fold(0, u64::saturating_add);
        Figures {
            version: now.server.version.clone(),
            stage: now.server.stage.clone(),
            uptime_seconds: now.server.uptime_seconds as u64,
            resident_bytes: now.server.resident_bytes,
            descriptors: now.server.descriptors,
            seconds,
            sessions_open: sum(|shard| shard.counters.sessions_open),
            sessions_subscribed: sum(|shard| shard.counters.sessions_subscribed),
            rates,
            shards,
            unanswered: now.server.unanswered.clone(),
            overloaded: now
                .server
                .shards
                .iter()
                .filter(|shard| shard.counters.overloaded > 0)
                .map(|shard| shard.shard)
                .collect(),
            sources: now.server.sources.clone(),
            sinks: now.server.sinks.clone(),
            tenants: tenants::figures(earlier, now),
            budgets: earlier.map_or_else(Default::default, |(before, seconds)| {
                let shards = before.server.shards.iter().zip(&now.server.shards);
                budgets::figures(shards.map(|(before, now)| (&before.counters, &now.counters)), seconds)
            }),
            latency: latency(before, now),
            topics: topics(earlier, now),
            topics_total: sum(|shard| shard.state.map_or(0, |state| state.topics)),
            sessions: now.sessions.as_ref().map(|sessions| sessions.sessions.clone()).map_err(String::clone),
        }
    }
}

/// Whether two snapshots are of the same process, as far as they show.
pub(super) fn is_same_process(before: &Snapshot, now: &Snapshot) -> bool {
    let sequenced = |snapshot: &Snapshot| {
        snapshot.server.shards.iter().map(|shard| shard.counters.ticks_sequenced).collect::<Vec<_>>()
    };
    // Versions without start_seconds are the same process if the uptime and the counters have not decreased.
    before.server.start_seconds == now.server.start_seconds
        && before.server.shards.len() == now.server.shards.len()
        && before.server.uptime_seconds <= now.server.uptime_seconds
        && sequenced(before).iter().zip(sequenced(now)).all(|(before, now)| *before <= now)
}

fn shard_figures(before: Option<(&ShardEntry, f64)>, now: &ShardEntry) -> ShardFigures {
    let busy_percent = before.and_then(|(before, _)| {
        let busy_ns = now.counters.busy_ns.saturating_sub(before.counters.busy_ns);
        let idle_ns = now.counters.idle_ns.saturating_sub(before.counters.idle_ns);
        let total_ns = busy_ns.saturating_add(idle_ns);
        (total_ns > 0).then(|| busy_ns as f64 * 100.0 / total_ns as f64)
    });
    ShardFigures {
        shard: now.shard,
        core: now.core,
        sessions: now.counters.sessions_open,
        waiting: now.state.map(|state| state.sessions_waiting),
        ring_bytes: now.state.map(|state| state.mesh_ring_bytes.saturating_add(state.source_ring_bytes)),
        busy_percent,
        rates: before.map(|(before, seconds)| Rates::between(&before.counters, &now.counters, seconds)),
    }
}

fn latency(before: Option<&Snapshot>, now: &Snapshot) -> Result<LatencyFigures, String> {
    let now = now.latency.as_ref().map_err(String::clone)?;
    // Counts of different sets of shards cannot be subtracted.
    let before = before.and_then(|before| before.latency.as_ref().ok());
    let before = before.filter(|before| before.unanswered == now.unanswered);
    let since = before.and_then(|before| {
        Some((difference(&before.sequenced, &now.sequenced)?, difference(&before.sent, &now.sent)?))
    });
    Ok(match since {
        Some((sequenced, sent)) => LatencyFigures {
            is_of_interval: true,
            sequenced: Percentiles::new(&sequenced),
            sent: Percentiles::new(&sent),
        },
        None => LatencyFigures {
            is_of_interval: false,
            sequenced: Percentiles::new(&now.sequenced),
            sent: Percentiles::new(&now.sent),
        },
    })
}

/// The counts added since `before`; `None` if any count decreased.
fn difference(before: &[(u64, u64)], now: &[(u64, u64)]) -> Option<Vec<(u64, u64)>> {
    let mut earlier: HashMap<u64, u64> = before.iter().copied().collect();
    let added: Option<Vec<(u64, u64)>> = now
        .iter()
        .map(|&(us, count)| Some((us, count.checked_sub(earlier.remove(&us).unwrap_or(0))?)))
        .collect();
    let none_vanished = earlier.values().all(|&count| count == 0);
    added.filter(|_| none_vanished).map(|added| added.into_iter().filter(|&(_, count)| count > 0).collect())
}

fn topics(before: Option<(&Snapshot, f64)>, now: &Snapshot) -> Result<Vec<TopicFigures>, String> {
    let now = now.topics.as_ref().map_err(String::clone)?;
    let before = before.and_then(|(before, seconds)| Some((before.topics.as_ref().ok()?, seconds)));
    let earlier: HashMap<&str, u64> = before
        .iter()
        .flat_map(|(before, _)| before.topics.iter().map(|topic| (&*topic.topic, topic.sequence)))
        .collect();
    let rate = |topic: &TopicEntry| {
        let (before, seconds) = before?;
        // A topic missing from a complete list did not exist.
        let unseen = (before.topics.len() < ADMIN_ROWS_MAX).then_some(0);
        let earlier = earlier.get(&*topic.topic).copied().or(unseen)?;
        Some(topic.sequence.checked_sub(earlier)? as f64 / seconds)
    };
    let mut topics: Vec<TopicFigures> =
        now.topics.iter().map(|topic| TopicFigures { rate: rate(topic), topic: topic.clone() }).collect();
    // A stable sort: topics with equal rates keep the server's order, by ticks and then by name.
    topics.sort_by(|one, other| two_digits(other.rate).total_cmp(&two_digits(one.rate)));
    Ok(topics)
}

/// A rate rounded to two digits, so that topics with similar rates do not swap places at every poll.
fn two_digits(rate: Option<f64>) -> f64 {
    let rate = rate.filter(|rate| *rate > 0.0).unwrap_or(0.0);
    let unit = 10f64.powf(rate.log10().floor() - 1.0);
    if rate > 0.0 { (rate / unit).round() * unit } else { 0.0 }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::operator::top::responses::{
        LatencyResponse, ServerResponse, SessionsResponse, ShardGauges, TopicsResponse,
    };
    use tickcast_core::shard::survey::SessionSort;

    /// A snapshot of a server that has run for this many seconds with steady rates.
    pub fn snapshot(seconds: u64, shards: u16, topics: u64, sessions: u64) -> Snapshot {
        let shard = |shard: u16| ShardEntry {
            shard,
            core: usize::from(shard) + 2,
            counters: ShardCounters {
                sessions_open: sessions / u64::from(shards),
                sessions_subscribed: sessions / u64::from(shards),
                ticks_sequenced: 100 * seconds,
                ticks_delivered: 5_000 * seconds,
                ticks_conflated: 3 * seconds,
                ticks_dropped: 2 * seconds,
                bytes_sent: 1_500_000 * seconds,
                sends: 400 * seconds,
                sends_parked: seconds,
                busy_ns: 250_000_000 * seconds,
                idle_ns: 750_000_000 * seconds,
                ..ShardCounters::default()
            },
            state: Some(ShardGauges {
                mesh_ring_bytes: 2_048,
                topics: topics / u64::from(shards),
                ..ShardGauges::default()
            }),
        };
        let topic = |number: u64| TopicEntry {
            topic: format!("market.{number}"),
            home: 0,
            sequence: (number + 1) * seconds,
            history_ticks: 16,
            keys: 0,
            history_bytes: 4_096,
            sessions: 7,
        };
        let session = |number: u64| SessionEntry {
            id: format!("0-{number:x}"),
            identity: number.is_multiple_of(2).then(|| format!("desk {number}")),
            address: Some(format!("127.0.0.1:{}", 40_000 + number)),
            encoding: "json".into(),
            state: "open".into(),
            topics: 4,
            outbox_bytes: 1_000 * (sessions - number),
            lag_ms: 12,
            held_topics: 0,
            conflated: 5,
            dropped: number % 3,
            rtt_us: Some(85),
        };
        Snapshot {
            received_ns: seconds * 1_000_000_000,
            server: ServerResponse {
                version: "0.1.0".into(),
                stage: "serving".into(),
                start_seconds: Some(1_793_322_000.13),
                uptime_seconds: seconds as f64,
                resident_bytes: Some(12 << 20),
                descriptors: Some(99),
                shards: (0..shards).map(shard).collect(),
                unanswered: Vec::new(),
                sources: Vec::new(),
                sinks: Vec::new(),
            },
            topics: Ok(TopicsResponse {
                topics: (0..topics.min(ADMIN_ROWS_MAX as u64)).map(topic).collect(),
            }),
            sort: SessionSort::Outbox,
            sessions: Ok(SessionsResponse { sessions: (0..sessions.min(100)).map(session).collect() }),
            latency: Ok(LatencyResponse {
                sequenced: vec![(10, 90 * seconds), (50, 10 * seconds)],
                sent: vec![(20, 100 * seconds)],
                unanswered: Vec::new(),
            }),
            tenants: Vec::new(),
        }
    }

    #[test]
    fn rates_cover_the_time_between_two_polls() {
        let figures = Figures::new(Some(&snapshot(10, 2, 4, 6)), &snapshot(14, 2, 4, 6));
        let (rates, shard) = (figures.rates.unwrap(), &figures.shards[1]);
        assert_eq!(figures.seconds, Some(4.0));
        assert_eq!((rates.ticks, rates.deliveries, rates.bytes), (200.0, 10_000.0, 3e6));
        assert_eq!((rates.sends, rates.parked, rates.dropped, rates.conflated), (800.0, 2.0, 4.0, 6.0));
        assert_eq!(shard.rates.unwrap().deliveries, 5_000.0);
        assert_eq!((shard.busy_percent, shard.ring_bytes, shard.core), (Some(25.0), Some(2_048), 3));
        let topics = figures.topics.unwrap();
        assert_eq!((&*topics[0].topic.topic, topics[0].rate), ("market.3", Some(4.0)));
        assert_eq!((figures.sessions_open, figures.topics_total), (6, 4));
    }

    #[test]
    fn the_first_poll_has_no_rates_and_latencies_since_the_start() {
        let figures = Figures::new(None, &snapshot(10, 1, 2, 3));
        assert!(figures.seconds.is_none() && figures.rates.is_none());
        assert!(figures.shards[0].rates.is_none() && figures.shards[0].busy_percent.is_none());
        assert!(figures.topics.unwrap().iter().all(|topic| topic.rate.is_none()));
        let latency = figures.latency.unwrap();
        assert!(!latency.is_of_interval);
        assert_eq!(latency.sequenced, Some(Percentiles { samples: 1_000, us: [10, 10, 50, 50, 50] }));
    }

    #[test]
    fn after_a_restart_the_next_poll_counts_as_the_first() {
        for before in [snapshot(20, 1, 2, 3), snapshot(10, 2, 2, 3)] {
            let figures = Figures::new(Some(&before), &snapshot(14, 1, 2, 3));
            assert!(figures.rates.is_none() && !figures.latency.unwrap().is_of_interval);
        }
        let mut before = snapshot(10, 1, 2, 3);
        before.server.shards[0].counters.ticks_sequenced = u64::MAX;
        assert!(Figures::new(Some(&before), &snapshot(14, 1, 2, 3)).rates.is_none());
    }

    #[test]
    fn a_restart_is_detected_even_if_the_uptime_grew() {
        let (before, mut now) = (snapshot(10, 1, 2, 3), snapshot(14, 1, 2, 3));
        for other in [Some(1_793_322_003.5), None] {
            now.server.start_seconds = other;
            assert!(Figures::new(Some(&before), &now).rates.is_none(), "{other:?}");
        }
        // Versions without start_seconds.
        let without_start = |mut snapshot: Snapshot| {
            snapshot.server.start_seconds = None;
            snapshot
        };
        assert!(Figures::new(Some(&without_start(before)), &now).rates.is_some());
    }

    #[test]
    fn latencies_cover_the_interval_if_the_same_shards_replied() {
        let (before, mut now) = (snapshot(10, 1, 2, 3), snapshot(11, 1, 2, 3));
        let latency = Figures::new(Some(&before), &now).latency.unwrap();
        assert!(latency.is_of_interval);
        assert_eq!(latency.sequenced, Some(Percentiles { samples: 100, us: [10, 10, 50, 50, 50] }));
        assert_eq!(latency.sent.unwrap().us, [20; 5]);
        now.latency.as_mut().unwrap().unanswered = vec![0];
        assert!(!Figures::new(Some(&before), &now).latency.unwrap().is_of_interval);
        now.latency = Err("starting".into());
        assert_eq!(Figures::new(Some(&before), &now).latency, Err("starting".into()));
        let idle = Figures::new(Some(&before), &Snapshot { received_ns: 11_000_000_000, ..before.clone() });
        let idle = idle.latency.unwrap();
        assert!(idle.is_of_interval && idle.sequenced.is_none() && idle.sent.is_none());
    }

    #[test]
    fn decreased_counts_have_no_difference() {
        assert_eq!(difference(&[(1, 2)], &[(1, 3), (4, 1)]), Some(vec![(1, 1), (4, 1)]));
        assert_eq!(difference(&[(1, 2)], &[(1, 1)]), None);
        assert_eq!(difference(&[(1, 2)], &[(4, 9)]), None);
    }

    #[test]
    fn a_percentile_is_the_lowest_latency_with_enough_samples_at_or_below() {
        let counts: Vec<(u64, u64)> = (1..=1_000).map(|us| (us, 1)).collect();
        assert_eq!(Percentiles::new(&counts).unwrap().us, [500, 900, 990, 999, 1_000]);
        assert_eq!(Percentiles::new(&[(7, 1)]).unwrap().us, [7; 5]);
        assert_eq!(Percentiles::new(&[]), None);
        let saturated = Percentiles::new(&[(1, u64::MAX), (2, u64::MAX)]).unwrap();
        assert_eq!((saturated.samples, saturated.us), (u64::MAX, [1, 1, 1, 1, 2]));
    }

    #[test]
    fn a_shard_without_a_reply_keeps_its_counters() {
        let mut now = snapshot(11, 2, 4, 6);
        now.server.shards[1].state = None;
        now.server.unanswered = vec![1];
        let figures = Figures::new(Some(&snapshot(10, 2, 4, 6)), &now);
        let shard = &figures.shards[1];
        assert!(shard.waiting.is_none() && shard.ring_bytes.is_none());
        assert_eq!(shard.rates.unwrap().deliveries, 5_000.0);
        assert_eq!((figures.unanswered, figures.topics_total), (vec![1], 2));
    }

    #[test]
    fn topics_with_similar_rates_keep_their_places() {
        let rounded =
            [None, Some(0.0), Some(0.123), Some(9.96), Some(101.0), Some(104_999.0)].map(two_digits);
        let expected = [0.0, 0.0, 0.12, 10.0, 100.0, 100_000.0];
        assert!(
            rounded.iter().zip(expected).all(|(rate, expected)| (rate - expected).abs() < 1e-9),
            "{rounded:?}"
        );
        let (mut before, mut now) = (snapshot(100, 1, 3, 3), snapshot(101, 1, 3, 3));
        for (at, ticks) in [(0, 101), (1, 99), (2, 150)] {
            before.topics.as_mut().unwrap().topics[at].sequence = 1_000;
            now.topics.as_mut().unwrap().topics[at].sequence = 1_000 + ticks;
        }
        let topics = Figures::new(Some(&before), &now).topics.unwrap();
        let names: Vec<&str> = topics.iter().map(|topic| &*topic.topic.topic).collect();
        assert_eq!(names, ["market.2", "market.0", "market.1"]);
    }

    #[test]
    fn a_topic_new_in_a_complete_list_has_a_rate_and_one_beyond_a_full_list_has_none() {
        let (mut before, now) = (snapshot(10, 1, 2, 3), snapshot(12, 1, 2, 3));
        before.topics.as_mut().unwrap().topics.remove(0);
        let rate = |before: &Snapshot| {
            let topics = Figures::new(Some(before), &now).topics.unwrap();
            topics.iter().find(|topic| topic.topic.topic == "market.0").unwrap().rate
        };
        assert_eq!(rate(&before), Some(6.0));
        let topics = &mut before.topics.as_mut().unwrap().topics;
        let other = TopicEntry { topic: "other".into(), ..topics[0].clone() };
        topics.resize(ADMIN_ROWS_MAX, other);
        assert_eq!(rate(&before), None);
    }
}
