//! The last value of each topic and key.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::{SharedTick, SubscriptionEvent, VIEW_ENTRIES_MAX};

/// The last tick of each topic and key: the snapshot, kept up to date by live ticks. Subscribe from
/// [`StartPosition::Latest`](tickcast_proto::subscription::StartPosition::Latest) for the values from before.
///
/// A payload that is `null`, empty, or marked as JSON and none removes its key. A new epoch, or a position that was not recovered,
/// clears the topic: what the server has of it follows. Beyond the bound, the entry that was set least recently goes.
///
/// Ticks that the server drops may have had other values: after a gap the view keeps the last ones known, and the topic is not
/// [complete](KeyedView::is_complete). Conflated ticks leave nothing out, because each key's last tick follows.
///
/// Invariant: `order` has the place of each entry. `complete` has at most `entries_max` topics.
#[derive(Debug)]
pub struct KeyedView {
    entries_max: usize,
    topics: HashMap<Arc<str>, BTreeMap<u64, Entry>>,
    /// The entries in the order in which they were set.
    order: BTreeMap<u64, (Arc<str>, u64)>,
    /// Topics with the epoch in which they are complete.
    complete: HashMap<Arc<str>, u64>,
    set: u64,
    evicted: u64,
}

#[derive(Debug)]
struct Entry {
    place: u64,
    tick: SharedTick,
}

impl Default for KeyedView {
    fn default() -> KeyedView {
        KeyedView::new(VIEW_ENTRIES_MAX)
    }
}

impl KeyedView {
    /// An empty view of at most so many entries, all topics together.
    pub fn new(entries_max: usize) -> KeyedView {
        let (topics, order, complete) = (HashMap::new(), BTreeMap::new(), HashMap::new());
        KeyedView { entries_max, topics, order, complete, set: 0, evicted: 0 }
    }

    /// Applies an event of the subscription. Costs O(log n), and checks a JSON payload.
    pub fn handle(&mut self, event: &SubscriptionEvent) {
        match event {
            SubscriptionEvent::Tick(tick) => self.set(tick),
            SubscriptionEvent::Gap(gap) => {
                self.complete.remove(&gap.topic);
            }
            SubscriptionEvent::Recovered { topic, failure: Some(_), .. } => {
                self.clear(topic);
                self.complete.remove(topic);
            }
            _ => {}
        }
    }

    fn set(&mut self, tick: &SharedTick) {
        let last = self.topics.get(&tick.topic).and_then(|keys| keys.values().next());
        if last.is_some_and(|entry| entry.tick.epoch != tick.epoch) {
            self.clear(&tick.topic);
        }
        if let Some(epoch) = self.complete.get_mut(&tick.topic) {
            if tick.snapshot || tick.sequence == 1 {
                *epoch = tick.epoch;
            } else if *epoch != tick.epoch {
                self.complete.remove(&tick.topic);
            }
        } else if (tick.snapshot || tick.sequence == 1) && self.complete.len() < self.entries_max {
            self.complete.insert(tick.topic.clone(), tick.epoch);
        }
        self.remove(&tick.topic, tick.key);
        if !has_value(tick) || self.entries_max == 0 {
            return;
        }
        if self.order.len() >= self.entries_max
            && let Some((_, (topic, key))) = self.order.first_key_value()
        {
            let (topic, key) = (topic.clone(), *key);
            self.complete.remove(&topic);
            self.remove(&topic, key);
            self.evicted += 1;
        }
        self.set += 1;
        self.order.insert(self.set, (tick.topic.clone(), tick.key));
        // A copy: the tick's own payload keeps the whole read in memory that it came with.
        let payload = Bytes::copy_from_slice(&tick.payload);
        let entry = Entry { place: self.set, tick: SharedTick { payload, ..tick.clone() } };
        self.topics.entry(tick.topic.clone()).or_default().insert(tick.key, entry);
        debug_assert!(self.order.len() <= self.entries_max, "entries are bounded");
    }

    fn remove(&mut self, topic: &str, key: u64) {
        let Some(keys) = self.topics.get_mut(topic) else { return };
        if let Some(entry) = keys.remove(&key) {
            let place = self.order.remove(&entry.place);
            debug_assert!(place.is_some(), "each entry has its place in the order");
        }
        if keys.is_empty() {
            self.topics.remove(topic);
        }
    }

    fn clear(&mut self, topic: &str) {
        for entry in self.topics.remove(topic).unwrap_or_default().values() {
            self.order.remove(&entry.place);
        }
    }

    /// Whether the view has followed all keys of a topic: from a snapshot, or from the topic's first tick on, without a gap. If not,
    /// or if a key was evicted, the server may have other values of some keys, and more keys. To make a topic complete again,
    /// subscribe anew from the latest ticks; with policy `conflate`, the server drops nothing.
    pub fn is_complete(&self, topic: &str) -> bool {
        self.complete.contains_key(topic)
    }

    /// The last tick of a topic and key. 0: the ticks without a key.
    pub fn tick(&self, topic: &str, key: u64) -> Option<&SharedTick> {
        Some(&self.topics.get(topic)?.get(&key)?.tick)
    }

    /// The keys of a topic with their last ticks, in the order of the keys.
    pub fn topic(&self, topic: &str) -> impl Iterator<Item = (u64, &SharedTick)> {
        self.topics.get(topic).into_iter().flatten().map(|(key, entry)| (*key, &entry.tick))
    }

    /// The topics that have entries, in no particular order.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.topics.keys().map(|topic| &**topic)
    }

    /// All ticks, the one set least recently first.
    pub fn iter(&self) -> impl Iterator<Item = &SharedTick> {
        self.order.values().filter_map(|(topic, key)| self.tick(topic, *key))
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Entries that did not fit the bound.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }
}

fn has_value(tick: &SharedTick) -> bool {
    if !tick.payload_is_json {
        return !tick.payload.is_empty();
    }
    // Whatever a payload that does not parse stands for, it is not the value before.
    tick.payload.trim_ascii() != b"null" && serde_json::from_slice::<IgnoredAny>(&tick.payload).is_ok()
}
