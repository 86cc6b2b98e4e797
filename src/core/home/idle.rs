//! Forgets topics that nobody uses: the walk that finds them, and the end of their lives.
//! A home forgets a topic if no client names it exactly and it has had no tick for its idle time. The name is free at once. The
//! home tells every shard that knows the topic, and each shard answers once its sessions have left it. The home reuses the
//! topic's slot only after the last answer, so no message about the old life arrives in the new one.

use std::collections::VecDeque;

use super::{Home, HomeTopic, InterestEvent, ShardSet, history::HistoryBounds};
use crate::limits::{IDLE_ROUND_NS_HIGHEST, IDLE_ROUNDS};
use tickcast_proto::{
    ids::{ShardId, TopicId},
    subscription::Rules,
};

/// State of a place in a home's table of topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PlaceState {
    /// A topic that accepts ticks.
    Open,
    /// A forgotten topic, until these shards have answered.
    Closing(ShardSet),
    /// No topic.
    Vacant,
}

/// When a topic had its last tick, as observed by the walk: ticks themselves write nothing here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LastSeen {
    /// Idle time after which the topic is forgotten, nanoseconds; 0: never.
    pub(super) idle_ns: u64,
    /// The topic's sequence when the walk last found a new one, and when that was.
    pub(super) sequence: u64,
    pub(super) at_ns: u64,
}

/// The walk over the topics, and the vacant places.
#[derive(Debug)]
pub(super) struct Idle {
    /// Idle time after which a topic is forgotten, by topic, nanoseconds; 0: never.
    pub(super) rules: Rules<u64>,
    /// The next topic of the round under way.
    next: Option<usize>,
    /// When the next round begins.
    due_ns: u64,
    /// Vacant places, the longest vacant first.
    pub(super) vacant: VecDeque<u32>,
    /// Number of closing topics.
    pub(super) closing: usize,
    /// Topics forgotten since the start.
    pub(super) forgotten: u64,
}

impl Idle {
    pub(super) fn new(rules: Rules<u64>) -> Idle {
        Idle { rules, next: None, due_ns: 0, vacant: VecDeque::new(), closing: 0, forgotten: 0 }
    }

    /// Time between two rounds, short enough that a topic is forgotten at most an eighth of its idle time late. `None`: nothing
    /// is ever forgotten.
    fn interval_ns(&self) -> Option<u64> {
        let times = self.rules.rules.iter().map(|&(_, idle_ns)| idle_ns).chain([self.rules.default]);
        let shortest = times.filter(|&idle_ns| idle_ns > 0).min()?;
        Some((shortest / IDLE_ROUNDS).clamp(1, IDLE_ROUND_NS_HIGHEST))
    }
}

impl Home {
    /// Changes when topics are forgotten. O(topics) if the rules changed.
    pub fn set_idle(&mut self, rules: Rules<u64>) {
        if rules != self.idle.rules {
            for topic in &mut self.topics {
                topic.last_seen.idle_ns = rules.of(topic.name());
            }
            (self.idle.rules, self.idle.due_ns) = (rules, 0);
        }
    }

    /// When the walk for idle topics is next due without an event, CLOCK_MONOTONIC nanoseconds; 0: at once.
    pub fn idle_due_ns(&self) -> Option<u64> {
        let due = if self.idle.next.is_some() { 0 } else { self.idle.due_ns };
        (!self.by_key.is_empty() && self.idle.interval_ns().is_some()).then_some(due)
    }

    /// Number of topics forgotten since the start.
    pub fn forgotten(&self) -> u64 {
        self.idle.forgotten
    }

    /// Visits about `units` topics of a round that is due, and forgets the idle ones. `notify` receives the messages for the
    /// shards, and returns whether they accept more. Returns the units used.
    pub fn advance_idle_walk(
        &mut self,
        units: usize,
        now_ns: u64,
        notify: &mut dyn FnMut(InterestEvent<'_>) -> bool,
    ) -> usize {
        if self.idle_due_ns().is_none_or(|due_ns| due_ns > now_ns) {
            return 0;
        }
        let (mut at, mut used, mut takes_more) = (self.idle.next.unwrap_or(0), 0, true);
        while used < units && takes_more && at < self.topics.len() {
            used += 1;
            if self.is_idle(at, now_ns) {
                used += super::FORGET_UNITS;
                takes_more = self.forget(at, now_ns, notify);
            }
            at += 1;
        }
        self.idle.next = (at < self.topics.len()).then_some(at);
        if self.idle.next.is_none() {
            self.idle.due_ns = now_ns.saturating_add(self.idle.interval_ns().unwrap_or(u64::MAX));
        }
        self.invariants();
        used.max(1)
    }

    fn is_idle(&mut self, at: usize, now_ns: u64) -> bool {
        let HomeTopic { key, place, sequence, last_seen, .. } = &mut self.topics[at];
        if *place != PlaceState::Open || last_seen.idle_ns == 0 {
            return false;
        }
        if last_seen.sequence != sequence.0 {
            (last_seen.sequence, last_seen.at_ns) = (sequence.0, now_ns);
            return false;
        }
        now_ns.saturating_sub(last_seen.at_ns) >= last_seen.idle_ns && !self.interest.is_named(key)
    }

    /// Ends a topic's life. Returns whether the shards accept more messages.
    pub(super) fn forget(
        &mut self,
        at: usize,
        now_ns: u64,
        notify: &mut dyn FnMut(InterestEvent<'_>) -> bool,
    ) -> bool {
        self.unmark(at);
        let topic = &mut self.topics[at];
        if topic.is_logged() {
            self.unkept_positions.note(topic.epoch, topic.sequence.0);
        }
        self.by_key.remove(&topic.key);
        self.lives.note_forgotten(&topic.key);
        self.idle.closing += 1;
        self.idle.forgotten += 1;
        topic.place = PlaceState::Closing(topic.interested);
        let mut takes_more = true;
        for shard in topic.interested.iter() {
            takes_more &= notify(InterestEvent::Forget(shard, topic));
        }
        if topic.interested.is_empty() {
            self.vacate(at, now_ns);
        }
        takes_more
    }

    /// Notes that a shard no longer knows a forgotten topic.
    pub fn handle_forgotten(&mut self, shard: ShardId, id: TopicId, now_ns: u64) {
        let at = self.index_of(id);
        let Some(topic) = at.and_then(|at| self.topics.get_mut(at)).filter(|topic| topic.id == id) else {
            return debug_assert!(false, "a shard answers about a topic that this home has forgotten");
        };
        let PlaceState::Closing(waits) = &mut topic.place else {
            return debug_assert!(false, "a shard answers about a topic that is closing");
        };
        waits.remove(shard);
        if waits.is_empty()
            && let Some(at) = at
        {
            self.vacate(at, now_ns);
        }
    }

    /// Frees a closed topic's memory and its place.
    fn vacate(&mut self, at: usize, now_ns: u64) {
        let topic = &mut self.topics[at];
        let nothing = HistoryBounds { ticks: 0, bytes: 0, age_ns: 0 };
        self.tenancy.with_budget(&topic.key, &mut self.history_left_bytes, |left| {
            topic.history.trim(nothing, now_ns, left);
            false
        });
        self.tenancy.give_back_topic(&topic.key);
        topic.last_values.release(&mut self.retention.last_values);
        topic.last_values = super::LastValues::default();
        (topic.key, topic.place) = (Box::default(), PlaceState::Vacant);
        self.accounts.remove(topic.creator);
        self.idle.closing -= 1;
        self.idle.vacant.push_back(at as u32);
    }
}

/// Keys of topics forgotten since the server started, as one bit per hash: keys that share a bit are not told apart.
#[derive(Debug, Default)]
pub(super) struct Lives {
    bits: Vec<u64>,
}

/// Bits of [`Lives`].
const LIVES_BITS: usize = 1 << 16;

impl Lives {
    fn bit(key: &str) -> usize {
        use std::hash::{BuildHasher, BuildHasherDefault};
        let hash = BuildHasherDefault::<rustc_hash::FxHasher>::default().hash_one(key);
        (hash >> 32) as usize % LIVES_BITS
    }

    fn note_forgotten(&mut self, key: &str) {
        self.bits.resize(LIVES_BITS / 64, 0);
        let bit = Self::bit(key);
        self.bits[bit / 64] |= 1 << (bit % 64);
    }

    /// Whether no topic with this key has lived before.
    pub(super) fn is_first(&self, key: &str) -> bool {
        let bit = Self::bit(key);
        self.bits.get(bit / 64).is_none_or(|word| word >> (bit % 64) & 1 == 0)
    }
}
