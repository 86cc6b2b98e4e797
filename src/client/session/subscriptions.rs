//! The subscriptions of a client, and how each resumes on a new connection.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{event::SubscriptionState, jitter::Jitter};
use crate::{CONNECTION_TOPICS_MAX, Positions, REMEMBERED_SUBSCRIPTIONS_MAX, RequestError, SubscribeOptions};
use tickcast_proto::{
    pattern,
    subscription::{Delivery, Moment, Policy, Position, StartPosition},
};

/// A subscription's number. Later ones have higher numbers.
pub(super) type SubscriptionId = u64;

/// What the session knows of one subscription.
///
/// Invariant: `state` is [`SubscriptionState::Subscribed`] only while `is_sent`.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) id: SubscriptionId,
    pub(super) pattern: Arc<str>,
    pub(super) from: StartPosition,
    pub(super) delivery: Delivery,
    /// The delivery that the server last acknowledged: the one to return to if it refuses another.
    pub(super) confirmed: Delivery,
    pub(super) state: SubscriptionState,
    /// Whether any connection has acknowledged it.
    pub(super) is_acknowledged: bool,
    /// Whether it was last sent to start live: with the next tick of each topic.
    pub(super) starts_live: bool,
    /// The moment that it starts at, or when it became live, if a server has said so: where topics without a position start.
    pub(super) live_since: Option<Moment>,
    /// Whether it was sent on this connection.
    pub(super) is_sent: bool,
    /// The number of the request that sent it last.
    pub(super) request: u32,
    /// Delays after the server limited its rate.
    pub(super) jitter: Jitter,
}

impl Record {
    /// Whether it receives the last values rather than all ticks, and so starts with them after a lost connection.
    pub(super) fn conflates(&self) -> bool {
        let is_thinned = self.delivery.policy == Some(Policy::Conflate) || self.delivery.interval_us != 0;
        is_thinned && matches!(self.from, StartPosition::Live | StartPosition::Latest)
    }
}

/// Positions by topic, sorted.
pub(super) type TopicPositions = Vec<(Box<str>, Position)>;

/// All subscriptions, in the order in which they were made.
///
/// Bound: [`REMEMBERED_SUBSCRIPTIONS_MAX`]. Invariant: `ids` has the pattern of each record, `wild` those with wildcards.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    records: BTreeMap<SubscriptionId, Record>,
    ids: HashMap<Arc<str>, SubscriptionId>,
    wild: BTreeSet<SubscriptionId>,
    made: SubscriptionId,
    /// The patterns of each topic that had an event. Bound: [`CONNECTION_TOPICS_MAX`].
    matching: HashMap<Arc<str>, Arc<[Arc<str>]>>,
}

impl Subscriptions {
    pub(super) fn id(&self, pattern: &str) -> Option<SubscriptionId> {
        self.ids.get(pattern).copied()
    }

    pub(super) fn get(&self, id: SubscriptionId) -> Option<&Record> {
        self.records.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: SubscriptionId) -> Option<&mut Record> {
        self.records.get_mut(&id)
    }

    pub(super) fn named(&self, pattern: &str) -> Result<&Record, RequestError> {
        self.id(pattern).and_then(|id| self.get(id)).ok_or(RequestError::NotSubscribed)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// Adds a subscription after all others.
    pub(super) fn add(
        &mut self,
        pattern: &str,
        options: SubscribeOptions,
    ) -> Result<SubscriptionId, RequestError> {
        if self.ids.contains_key(pattern) {
            return Err(RequestError::AlreadySubscribed);
        }
        if self.records.len() >= REMEMBERED_SUBSCRIPTIONS_MAX {
            return Err(RequestError::TooManySubscriptions);
        }
        self.made += 1;
        let (id, name) = (self.made, Arc::<str>::from(pattern));
        self.ids.insert(name.clone(), id);
        if !pattern::is_exact(pattern) {
            self.wild.insert(id);
        }
        let SubscribeOptions { delivery, from } = options;
        let live_since = match from {
            StartPosition::Since(_, moment) => Some(moment),
            _ => None,
        };
        let record = Record {
            id,
            pattern: name,
            from,
            delivery,
            confirmed: delivery,
            state: SubscriptionState::Subscribing,
            is_acknowledged: false,
            starts_live: false,
            live_since,
            is_sent: false,
            request: 0,
            jitter: Jitter::default(),
        };
        self.records.insert(id, record);
        self.matching.clear();
        self.invariants();
        Ok(id)
    }

    /// Removes a subscription, and the positions of topics that only this one matched.
    pub(super) fn remove(&mut self, id: SubscriptionId, positions: &mut Positions) -> Option<Record> {
        let record = self.records.remove(&id)?;
        self.ids.remove(&record.pattern);
        self.wild.remove(&id);
        self.matching.clear();
        self.invariants();
        positions.retain(|topic| {
            !pattern::matches(&record.pattern, topic) || self.first(topic, |_| true).is_some()
        });
        Some(record)
    }

    fn invariants(&self) {
        debug_assert_eq!(self.ids.len(), self.records.len(), "each pattern has one subscription");
        debug_assert!(self.wild.len() <= self.records.len(), "only subscriptions are listed");
    }

    /// The topic's name, and the patterns that match it. Costs a look-up after the first time.
    pub(super) fn matching(&mut self, topic: &str) -> (Arc<str>, Arc<[Arc<str>]>) {
        if let Some((name, patterns)) = self.matching.get_key_value(topic) {
            return (name.clone(), patterns.clone());
        }
        let patterns: Arc<[Arc<str>]> = self.all(topic).map(|record| record.pattern.clone()).collect();
        if self.matching.len() >= CONNECTION_TOPICS_MAX {
            self.matching.clear();
        }
        let name = Arc::<str>::from(topic);
        self.matching.insert(name.clone(), patterns.clone());
        (name, patterns)
    }

    /// Those that start at a moment and have not started yet.
    pub(super) fn to_start_at_moment(&self) -> Vec<SubscriptionId> {
        let is_to_start =
            |record: &&Record| !record.is_acknowledged && matches!(record.from, StartPosition::Since(..));
        self.iter().filter(is_to_start).map(|record| record.id).collect()
    }

    /// The connection is lost, and with it its topics and what was sent.
    pub(super) fn handle_lost(&mut self) {
        self.matching.clear();
        for record in self.records.values_mut() {
            record.is_sent = false;
        }
    }

    /// All subscriptions in the order to send them, each with the positions of the topics that none before it delivers. Those that
    /// resume come first, so that a topic that a conflating one matches too is resumed.
    pub(super) fn to_resume(&self, positions: &Positions) -> Vec<(SubscriptionId, TopicPositions)> {
        let mut planned: Vec<(bool, SubscriptionId, TopicPositions)> =
            self.iter().map(|record| (record.conflates(), record.id, Vec::new())).collect();
        planned.sort_unstable_by_key(|&(conflates, id, _)| (conflates, id));
        let place: HashMap<SubscriptionId, usize> =
            planned.iter().enumerate().map(|(at, &(_, id, _))| (id, at)).collect();
        for (topic, position) in positions.iter() {
            let first = self.all(topic).min_by_key(|record| (record.conflates(), record.id));
            if let Some(&at) = first.and_then(|record| place.get(&record.id)) {
                planned[at].2.push((topic.into(), position));
            }
        }
        planned
            .into_iter()
            .map(|(_, id, mut positions)| {
                positions.sort_unstable_by(|a, b| a.0.cmp(&b.0));
                (id, positions)
            })
            .collect()
    }

    /// The positions from which a subscription starts on an open connection: of topics that no other one delivers.
    pub(super) fn positions_of(&self, pattern: &str, positions: &Positions) -> TopicPositions {
        let is_free = |topic: &str| self.first(topic, |record| record.is_sent).is_none();
        let matched =
            positions.iter().filter(|(topic, _)| pattern::matches(pattern, topic) && is_free(topic));
        let mut matched: TopicPositions = matched.map(|(topic, position)| (topic.into(), position)).collect();
        matched.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        matched
    }

    /// The positions that a subscription carried which was refused, in topics that others receive which were sent after it.
    pub(super) fn left_by(&self, refused: &Record, positions: &Positions) -> TopicPositions {
        let mut left = TopicPositions::new();
        for (topic, position) in positions.iter() {
            if pattern::matches(&refused.pattern, topic) {
                let sent = self.all(topic).filter(|record| record.is_sent);
                if sent.map(|record| record.request).min().is_some_and(|first| first > refused.request) {
                    left.push((topic.into(), position));
                }
            }
        }
        left
    }

    /// The first subscription that matches a topic, of those wanted.
    fn first(&self, topic: &str, is_wanted: impl Fn(&Record) -> bool) -> Option<&Record> {
        self.all(topic).find(|record| is_wanted(record))
    }

    /// The subscriptions that match a topic, in their order: a look-up, and a comparison for each pattern with a wildcard.
    fn all(&self, topic: &str) -> impl Iterator<Item = &Record> {
        let exact = self.id(topic).filter(|id| !self.wild.contains(id));
        let mut wild = self
            .wild
            .iter()
            .filter_map(|id| self.records.get(id))
            .filter(move |record| pattern::matches(&record.pattern, topic))
            .peekable();
        let mut exact = exact.and_then(|id| self.records.get(&id));
        std::iter::from_fn(move || match (exact, wild.peek()) {
            (Some(record), Some(next)) if record.id > next.id => wild.next(),
            (Some(_), _) => exact.take(),
            (None, _) => wild.next(),
        })
    }
}
