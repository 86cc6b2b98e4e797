//! What two looks at a server say together: rates, busy shares, and the latencies of the time between.

use std::collections::HashMap;

use super::answers::{Answers, Counted, Session, Shard, Topic};
use crate::limits::ADMIN_ROWS_MAX;

/// What happened in a second.
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
    /// SENDs that a socket did not take whole.
    pub parked: f64,
    /// Ticks that subscribers were told are lost.
    pub dropped: f64,
    /// Ticks that subscribers were told a newer one stands for.
    pub conflated: f64,
}

impl Rates {
    fn between(before: &Counted, now: &Counted, seconds: f64) -> Rates {
        let rate = |of: fn(&Counted) -> u64| of(now).saturating_sub(of(before)) as f64 / seconds;
        Rates {
            ticks: rate(|counted| counted.ticks_sequenced),
            deliveries: rate(|counted| counted.ticks_delivered),
            bytes: rate(|counted| counted.bytes_sent),
            sends: rate(|counted| counted.sends),
            parked: rate(|counted| counted.sends_parked),
            dropped: rate(|counted| counted.ticks_dropped),
            conflated: rate(|counted| counted.ticks_conflated),
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
    }
}

/// A shard.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardFigures {
    /// Which.
    pub shard: u16,
    /// The core it is pinned to.
    pub core: usize,
    /// Connections.
    pub sessions: u64,
    /// Sessions with something to send; `None` if the shard did not answer.
    pub waiting: Option<u64>,
    /// Bytes in the rings to it; `None` if the shard did not answer.
    pub ring_bytes: Option<u64>,
    /// The share of the time between the looks that it was at work; `None` at the first, and for a shard that has not
    /// ended a turn since.
    pub busy_percent: Option<f64>,
    /// `None` at the first look.
    pub rates: Option<Rates>,
}

/// A latency, microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percentiles {
    /// Ticks that were sampled.
    pub samples: u64,
    /// 50, 90, 99, 99.9 and 100 %.
    pub us: [u64; 5],
}

impl Percentiles {
    /// Of latencies, ascending, and how often each was seen; `None` of none.
    fn of(counts: &[(u64, u64)]) -> Option<Percentiles> {
        // Whoever answers, whatever the counts.
        let samples = counts.iter().fold(0u64, |samples, &(_, count)| samples.saturating_add(count));
        let &(max, _) = counts.last()?;
        let at = |per_mille: u64| {
            // So many are not above it.
            let rank = (u128::from(samples) * u128::from(per_mille)).div_ceil(1_000) as u64;
            let mut below = 0u64;
            let found = counts.iter().find(|(_, count)| {
                below = below.saturating_add(*count);
                below >= rank
            });
            found.map_or(max, |&(us, _)| us)
        };
        Some(Percentiles { samples, us: [at(500), at(900), at(990), at(999), max] })
    }
}

/// Latencies from a tick's receipt, one tick a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyFigures {
    /// Of the time between the looks; else since the server's start.
    pub is_of_interval: bool,
    /// Until it had its sequence.
    pub sequenced: Option<Percentiles>,
    /// Until its turn's SENDs were with the kernel.
    pub sent: Option<Percentiles>,
}

/// A topic.
#[derive(Clone, Debug)]
pub struct TopicFigures {
    /// As the server told.
    pub topic: Topic,
    /// Ticks a second; `None` if it was not seen before.
    pub rate: Option<f64>,
}

/// What is shown of a server.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Of the program.
    pub version: String,
    /// What it is at.
    pub stage: String,
    /// Since it started.
    pub uptime_seconds: u64,
    /// Resident memory.
    pub resident_bytes: Option<u64>,
    /// Open descriptors.
    pub descriptors: Option<u64>,
    /// The time that rates are of; `None` at the first look, and when the server has started anew.
    pub seconds: Option<f64>,
    /// Connections.
    pub sessions_open: u64,
    /// Those that have had a subscription go live.
    pub sessions_subscribed: u64,
    /// All shards together.
    pub rates: Option<Rates>,
    /// Each.
    pub shards: Vec<ShardFigures>,
    /// Shards that did not answer.
    pub unanswered: Vec<u16>,
    /// Or why there are none.
    pub latency: Result<LatencyFigures, String>,
    /// The fastest first; or why there are none.
    pub topics: Result<Vec<TopicFigures>, String>,
    /// All that there are, as far as the shards answered.
    pub topics_total: u64,
    /// In the order that was asked for; or why there are none.
    pub sessions: Result<Vec<Session>, String>,
}

impl Figures {
    /// Of a look, and of the one before it. O(topics log topics), 1,000 at most.
    pub fn of(before: Option<&Answers>, now: &Answers) -> Figures {
        let before = before.filter(|before| is_same_life(before, now));
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
                of_shard(earlier, shard)
            })
            .collect();
        let rates = seconds.map(|_| {
            let mut sum = Rates::default();
            shards.iter().filter_map(|shard| shard.rates.as_ref()).for_each(|rates| sum.add(rates));
            sum
        });
        let sum = |of: fn(&Shard) -> u64| now.server.shards.iter().map(of).fold(0, u64::saturating_add);
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
            latency: latency(before, now),
            topics: topics(earlier, now),
            topics_total: sum(|shard| shard.state.map_or(0, |state| state.topics)),
            sessions: now.sessions.as_ref().map(|sessions| sessions.sessions.clone()).map_err(String::clone),
        }
    }
}

/// Whether nothing says that the server was started anew meanwhile.
pub(super) fn is_same_life(before: &Answers, now: &Answers) -> bool {
    let sequenced = |answers: &Answers| {
        answers.server.shards.iter().map(|shard| shard.counters.ticks_sequenced).collect::<Vec<_>>()
    };
    // Where no version tells when it started, a server that has run for longer than the one before is taken for that one.
    before.server.start_seconds == now.server.start_seconds
        && before.server.shards.len() == now.server.shards.len()
        && before.server.uptime_seconds <= now.server.uptime_seconds
        && sequenced(before).iter().zip(sequenced(now)).all(|(before, now)| *before <= now)
}

fn of_shard(before: Option<(&Shard, f64)>, now: &Shard) -> ShardFigures {
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

fn latency(before: Option<&Answers>, now: &Answers) -> Result<LatencyFigures, String> {
    let now = now.latency.as_ref().map_err(String::clone)?;
    // Answers of different shards cannot be taken from each other.
    let before = before.and_then(|before| before.latency.as_ref().ok());
    let before = before.filter(|before| before.unanswered == now.unanswered);
    let since = before.and_then(|before| {
        Some((difference(&before.sequenced, &now.sequenced)?, difference(&before.sent, &now.sent)?))
    });
    Ok(match since {
        Some((sequenced, sent)) => LatencyFigures {
            is_of_interval: true,
            sequenced: Percentiles::of(&sequenced),
            sent: Percentiles::of(&sent),
        },
        None => LatencyFigures {
            is_of_interval: false,
            sequenced: Percentiles::of(&now.sequenced),
            sent: Percentiles::of(&now.sent),
        },
    })
}

/// What has been added; `None` if anything became less.
fn difference(before: &[(u64, u64)], now: &[(u64, u64)]) -> Option<Vec<(u64, u64)>> {
    let mut earlier: HashMap<u64, u64> = before.iter().copied().collect();
    let added: Option<Vec<(u64, u64)>> = now
        .iter()
        .map(|&(us, count)| Some((us, count.checked_sub(earlier.remove(&us).unwrap_or(0))?)))
        .collect();
    let is_there_still = earlier.values().all(|&count| count == 0);
    added.filter(|_| is_there_still).map(|added| added.into_iter().filter(|&(_, count)| count > 0).collect())
}

fn topics(before: Option<(&Answers, f64)>, now: &Answers) -> Result<Vec<TopicFigures>, String> {
    let now = now.topics.as_ref().map_err(String::clone)?;
    let before = before.and_then(|(before, seconds)| Some((before.topics.as_ref().ok()?, seconds)));
    let earlier: HashMap<&str, u64> = before
        .iter()
        .flat_map(|(before, _)| before.topics.iter().map(|topic| (&*topic.topic, topic.sequence)))
        .collect();
    let rate = |topic: &Topic| {
        let (before, seconds) = before?;
        // One that was not in a whole list was not there at all.
        let unseen = (before.topics.len() < ADMIN_ROWS_MAX).then_some(0);
        let earlier = earlier.get(&*topic.topic).copied().or(unseen)?;
        Some(topic.sequence.checked_sub(earlier)? as f64 / seconds)
    };
    let mut topics: Vec<TopicFigures> =
        now.topics.iter().map(|topic| TopicFigures { rate: rate(topic), topic: topic.clone() }).collect();
    // Of equal ones the server's order stays: the most ticks first, then by name.
    topics.sort_by(|one, other| pace(other.rate).total_cmp(&pace(one.rate)));
    Ok(topics)
}

/// A rate to two digits: topics of one pace do not change places at each look.
fn pace(rate: Option<f64>) -> f64 {
    let rate = rate.filter(|rate| *rate > 0.0).unwrap_or(0.0);
    let unit = 10f64.powf(rate.log10().floor() - 1.0);
    if rate > 0.0 { (rate / unit).round() * unit } else { 0.0 }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::operator::top::answers::{Latency, Server, Sessions, State, Topics};
    use tickcast_core::shard::survey::SessionSort;

    /// A server of so many shards, topics and sessions that has run for so many seconds, at a steady pace.
    pub fn answers(seconds: u64, shards: u16, topics: u64, sessions: u64) -> Answers {
        let shard = |shard: u16| Shard {
            shard,
            core: usize::from(shard) + 2,
            counters: Counted {
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
            },
            state: Some(State {
                mesh_ring_bytes: 2_048,
                topics: topics / u64::from(shards),
                ..State::default()
            }),
        };
        let topic = |number: u64| Topic {
            topic: format!("market.{number}"),
            home: 0,
            sequence: (number + 1) * seconds,
            history_ticks: 16,
            keys: 0,
            history_bytes: 4_096,
            sessions: 7,
        };
        let session = |number: u64| Session {
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
        Answers {
            received_ns: seconds * 1_000_000_000,
            server: Server {
                version: "0.1.0".into(),
                stage: "serving".into(),
                start_seconds: Some(1_793_322_000.13),
                uptime_seconds: seconds as f64,
                resident_bytes: Some(12 << 20),
                descriptors: Some(99),
                shards: (0..shards).map(shard).collect(),
                unanswered: Vec::new(),
            },
            topics: Ok(Topics { topics: (0..topics.min(ADMIN_ROWS_MAX as u64)).map(topic).collect() }),
            sort: SessionSort::Outbox,
            sessions: Ok(Sessions { sessions: (0..sessions.min(100)).map(session).collect() }),
            latency: Ok(Latency {
                sequenced: vec![(10, 90 * seconds), (50, 10 * seconds)],
                sent: vec![(20, 100 * seconds)],
                unanswered: Vec::new(),
            }),
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let figures = Figures::of(Some(&answers(10, 2, 4, 6)), &answers(14, 2, 4, 6));
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
    fn the_first_look_has_no_rates_and_latencies_since_the_start() {
        let figures = Figures::of(None, &answers(10, 1, 2, 3));
        assert!(figures.seconds.is_none() && figures.rates.is_none());
        assert!(figures.shards[0].rates.is_none() && figures.shards[0].busy_percent.is_none());
        assert!(figures.topics.unwrap().iter().all(|topic| topic.rate.is_none()));
        let latency = figures.latency.unwrap();
        assert!(!latency.is_of_interval);
        assert_eq!(latency.sequenced, Some(Percentiles { samples: 1_000, us: [10, 10, 50, 50, 50] }));
    }

    #[test]
    fn a_server_that_was_started_anew_is_looked_at_as_for_the_first_time() {
        for before in [answers(20, 1, 2, 3), answers(10, 2, 2, 3)] {
            let figures = Figures::of(Some(&before), &answers(14, 1, 2, 3));
            assert!(figures.rates.is_none() && !figures.latency.unwrap().is_of_interval);
        }
        let mut before = answers(10, 1, 2, 3);
        before.server.shards[0].counters.ticks_sequenced = u64::MAX;
        assert!(Figures::of(Some(&before), &answers(14, 1, 2, 3)).rates.is_none());
    }

    #[test]
    fn a_restart_in_a_gap_that_is_longer_than_the_earlier_life_is_seen() {
        let (before, mut now) = (answers(10, 1, 2, 3), answers(14, 1, 2, 3));
        for other in [Some(1_793_322_003.5), None] {
            now.server.start_seconds = other;
            assert!(Figures::of(Some(&before), &now).rates.is_none(), "{other:?}");
        }
        // Versions that do not tell.
        let untold = |mut answers: Answers| {
            answers.server.start_seconds = None;
            answers
        };
        assert!(Figures::of(Some(&untold(before)), &now).rates.is_some());
    }

    #[test]
    fn latencies_are_of_the_interval_where_both_looks_had_the_same_shards() {
        let (before, mut now) = (answers(10, 1, 2, 3), answers(11, 1, 2, 3));
        let latency = Figures::of(Some(&before), &now).latency.unwrap();
        assert!(latency.is_of_interval);
        assert_eq!(latency.sequenced, Some(Percentiles { samples: 100, us: [10, 10, 50, 50, 50] }));
        assert_eq!(latency.sent.unwrap().us, [20; 5]);
        now.latency.as_mut().unwrap().unanswered = vec![0];
        assert!(!Figures::of(Some(&before), &now).latency.unwrap().is_of_interval);
        now.latency = Err("starting".into());
        assert_eq!(Figures::of(Some(&before), &now).latency, Err("starting".into()));
        let idle = Figures::of(Some(&before), &Answers { received_ns: 11_000_000_000, ..before.clone() });
        let idle = idle.latency.unwrap();
        assert!(idle.is_of_interval && idle.sequenced.is_none() && idle.sent.is_none());
    }

    #[test]
    fn counts_that_became_less_are_no_difference() {
        assert_eq!(difference(&[(1, 2)], &[(1, 3), (4, 1)]), Some(vec![(1, 1), (4, 1)]));
        assert_eq!(difference(&[(1, 2)], &[(1, 1)]), None);
        assert_eq!(difference(&[(1, 2)], &[(4, 9)]), None);
    }

    #[test]
    fn percentiles_are_the_lowest_that_enough_are_not_above() {
        let counts: Vec<(u64, u64)> = (1..=1_000).map(|us| (us, 1)).collect();
        assert_eq!(Percentiles::of(&counts).unwrap().us, [500, 900, 990, 999, 1_000]);
        assert_eq!(Percentiles::of(&[(7, 1)]).unwrap().us, [7; 5]);
        assert_eq!(Percentiles::of(&[]), None);
        let absurd = Percentiles::of(&[(1, u64::MAX), (2, u64::MAX)]).unwrap();
        assert_eq!((absurd.samples, absurd.us), (u64::MAX, [1, 1, 1, 1, 2]));
    }

    #[test]
    fn a_shard_that_did_not_answer_keeps_what_is_read_without_asking_it() {
        let mut now = answers(11, 2, 4, 6);
        now.server.shards[1].state = None;
        now.server.unanswered = vec![1];
        let figures = Figures::of(Some(&answers(10, 2, 4, 6)), &now);
        let shard = &figures.shards[1];
        assert!(shard.waiting.is_none() && shard.ring_bytes.is_none());
        assert_eq!(shard.rates.unwrap().deliveries, 5_000.0);
        assert_eq!((figures.unanswered, figures.topics_total), (vec![1], 2));
    }

    #[test]
    fn topics_of_one_pace_keep_their_places() {
        let paces = [None, Some(0.0), Some(0.123), Some(9.96), Some(101.0), Some(104_999.0)].map(pace);
        let expected = [0.0, 0.0, 0.12, 10.0, 100.0, 100_000.0];
        assert!(
            paces.iter().zip(expected).all(|(pace, expected)| (pace - expected).abs() < 1e-9),
            "{paces:?}"
        );
        let (mut before, mut now) = (answers(100, 1, 3, 3), answers(101, 1, 3, 3));
        for (at, ticks) in [(0, 101), (1, 99), (2, 150)] {
            before.topics.as_mut().unwrap().topics[at].sequence = 1_000;
            now.topics.as_mut().unwrap().topics[at].sequence = 1_000 + ticks;
        }
        let topics = Figures::of(Some(&before), &now).topics.unwrap();
        let names: Vec<&str> = topics.iter().map(|topic| &*topic.topic.topic).collect();
        assert_eq!(names, ["market.2", "market.0", "market.1"]);
    }

    #[test]
    fn a_topic_that_was_beyond_the_list_has_no_rate_and_one_of_a_whole_list_is_new() {
        let (mut before, now) = (answers(10, 1, 2, 3), answers(12, 1, 2, 3));
        before.topics.as_mut().unwrap().topics.remove(0);
        let rate = |before: &Answers| {
            let topics = Figures::of(Some(before), &now).topics.unwrap();
            topics.iter().find(|topic| topic.topic.topic == "market.0").unwrap().rate
        };
        assert_eq!(rate(&before), Some(6.0));
        let topics = &mut before.topics.as_mut().unwrap().topics;
        let other = Topic { topic: "other".into(), ..topics[0].clone() };
        topics.resize(ADMIN_ROWS_MAX, other);
        assert_eq!(rate(&before), None);
    }
}
