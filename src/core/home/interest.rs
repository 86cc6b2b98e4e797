//! Which shards want which topics: their registered patterns, and the walk that updates existing topics.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
};

use super::{HomeTopic, InterestEvent, ShardSet};
use crate::{
    ids::TenantId,
    limits::{INTEREST_CHANGE_UNITS, INTEREST_RECENT_MAX},
    pattern_trie::PatternTrie,
    tenants::Exports,
    topic_key,
};
use tickcast_proto::{ids::ShardId, pattern};

/// The patterns that shards have registered with a home. Names and patterns are [keys](crate::topic_key).
///
/// A new topic is matched against them at once. Existing topics follow a change of a wildcard pattern as the walk reaches them:
/// it goes round the topics and compares each with all patterns. One round covers any number of changed patterns, so thousands
/// of clients that leave together cost no more than one. Until then a stale entry costs little: the shard receives ticks for
/// which it has no subscriber.
#[derive(Debug, Default)]
pub(super) struct Interest {
    /// Shards by the wildcard they hold.
    wildcards: PatternTrie<ShardSet>,
    /// Shards by the topic name they hold.
    names: Names,
    walk: Walk,
    /// Units of the walk for opening or closing a topic to a shard.
    change_units: usize,
    exports: Exports,
    /// The highest tenant with a wildcard registered so far.
    tenant_highest: TenantId,
}

/// The topic names that shards have registered. Only a name's hash is stored, so that one of 255 bytes takes no more memory
/// than a short one. If two names collide, shards receive ticks for which they have no subscriber, but no shard misses any.
#[derive(Debug, Default)]
struct Names {
    by_hash: HashMap<u64, ShardSet, rustc_hash::FxBuildHasher>,
    /// How many more names with this hash a shard holds.
    repeats: HashMap<(u64, ShardId), u32>,
    /// Keyed, so that clients cannot choose names that collide.
    hasher: RandomState,
}

/// Bytes that a home uses for a topic name: its entry, and as much spare room.
pub const NAME_BYTES: usize = 2 * size_of::<(u64, ShardSet)>();

/// Bytes that a home uses for a wildcard of this length.
pub const fn wildcard_bytes(len: usize) -> usize {
    PatternTrie::<ShardSet>::bytes_of(len)
}

impl Names {
    fn hash(&self, name: &str) -> u64 {
        self.hasher.hash_one(name)
    }

    fn of(&self, name: &str) -> ShardSet {
        match self.by_hash.is_empty() {
            true => ShardSet::default(),
            false => self.by_hash.get(&self.hash(name)).copied().unwrap_or_default(),
        }
    }

    fn add(&mut self, shard: ShardId, hash: u64) {
        let shards = self.by_hash.entry(hash).or_default();
        match shards.contains(shard) {
            true => *self.repeats.entry((hash, shard)).or_default() += 1,
            false => shards.insert(shard),
        }
    }

    fn remove(&mut self, shard: ShardId, hash: u64) {
        if let Some(repeats) = self.repeats.get_mut(&(hash, shard)) {
            *repeats -= 1;
            if *repeats == 0 {
                self.repeats.remove(&(hash, shard));
            }
            return;
        }
        let Some(shards) = self.by_hash.get_mut(&hash).filter(|shards| shards.contains(shard)) else {
            return debug_assert!(false, "a shard removes only interest that it registered");
        };
        shards.remove(shard);
        if shards.is_empty() {
            self.by_hash.remove(&hash);
        }
        if self.by_hash.is_empty() {
            // Frees the memory.
            self.by_hash = HashMap::default();
        }
    }
}

/// Progress of the walk: the rounds completed, and the index of the next topic in this one. New topics are appended, so an
/// index that was reached once is reached again in each round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    round: u64,
    topic: usize,
}

/// The walk round the topics.
///
/// Invariant: `ready` is sorted by position, none of which is after `stale_until`.
#[derive(Debug, Default)]
struct Walk {
    next: Position,
    /// Position at which every topic will have been compared with the current patterns.
    stale_until: Position,
    /// Shards to answer once the walk has come round. Bound: one per pattern registered since the last round.
    ready: VecDeque<Answer>,
    /// The patterns that have changed since the walk was last complete; the topics that match none of them need no
    /// comparison. Bound: [`INTEREST_RECENT_MAX`]; with more, `all_stale` is set and every topic is compared.
    recent: Vec<Box<str>>,
    all_stale: bool,
}

/// A shard that waits until the topics of its pattern are open.
#[derive(Clone, Copy, Debug)]
struct Answer {
    shard: ShardId,
    request: u32,
    /// Position of the walk at which to answer it.
    at: Position,
}

impl Interest {
    /// Creates an empty interest, for one of `shards` homes. The others open topics to the same shards.
    pub(super) fn new(shards: u16, exports: Exports) -> Interest {
        let others = usize::from(shards).saturating_sub(1).max(1);
        Interest { change_units: INTEREST_CHANGE_UNITS * others, exports, ..Interest::default() }
    }

    /// Returns the shards that want a topic. Visits the patterns that match.
    pub(super) fn of(&self, name: &str) -> ShardSet {
        self.of_counted(name).0
    }

    fn of_counted(&self, name: &str) -> (ShardSet, usize) {
        let mut shards = self.names.of(name);
        let found = |of_pattern: &ShardSet| shards.0 |= of_pattern.0;
        let visited = self.exports.for_each_match(&self.wildcards, self.tenant_highest, name, found);
        (shards, visited)
    }

    /// Returns whether a shard names the topic exactly, or a name with the same hash.
    pub(super) fn is_named(&self, name: &str) -> bool {
        !self.names.of(name).is_empty()
    }

    /// Registers a shard's interest in a pattern without wildcards. The caller opens the topic.
    pub(super) fn add_exact(&mut self, shard: ShardId, name: &str) {
        let hash = self.names.hash(name);
        self.names.add(shard, hash);
    }

    /// Registers a shard's interest in a wildcard pattern among `topics_len` topics. The walk opens them and then answers.
    pub(super) fn add_wildcard(&mut self, shard: ShardId, pattern: &str, request: u32, topics_len: usize) {
        self.tenant_highest = self.tenant_highest.max(topic_key::split(pattern).0);
        self.wildcards.get_or_insert_with(pattern, ShardSet::default).insert(shard);
        self.changed(pattern, topics_len);
        self.walk.ready.push_back(Answer { shard, request, at: self.walk.stale_until });
    }

    /// Removes a shard's interest in a pattern. The walk closes the topics of a wildcard; the caller closes that of a plain
    /// name.
    pub(super) fn remove(&mut self, shard: ShardId, pattern: &str, topics_len: usize) {
        if pattern::is_exact(pattern) {
            let hash = self.names.hash(pattern);
            return self.names.remove(shard, hash);
        }
        let Some(shards) = self.wildcards.get_mut(pattern) else {
            return debug_assert!(false, "a shard removes only interest that it registered");
        };
        debug_assert!(shards.contains(shard), "a shard removes only interest that it registered");
        shards.remove(shard);
        if shards.is_empty() {
            self.wildcards.remove(pattern);
        }
        self.changed(pattern, topics_len);
    }

    fn changed(&mut self, pattern: &str, topics_len: usize) {
        let walk = &mut self.walk;
        let rounds = u64::from(topics_len > 0);
        walk.stale_until = Position { round: walk.next.round + rounds, ..walk.next };
        match walk.recent.len() < INTEREST_RECENT_MAX {
            _ if walk.all_stale || walk.recent.iter().any(|recent| **recent == *pattern) => {}
            true => walk.recent.push(pattern.into()),
            false => walk.all_stale = true,
        }
    }

    /// Returns whether the walk has topics to visit or shards to answer.
    pub(super) fn has_work(&self) -> bool {
        !self.is_settled() || !self.walk.ready.is_empty()
    }

    /// Returns whether every topic has been compared with the current patterns.
    pub(super) fn is_settled(&self) -> bool {
        self.walk.next >= self.walk.stale_until
    }

    /// Visits topics for at most `units`: one per topic, and one per trie node that a comparison visits. A unit takes about 40
    /// ns (bench/micro/control.rs). `notify` receives the messages for the shards, in order, and returns whether they accept
    /// more. Returns the units used, which exceed the bound by at most one comparison.
    pub(super) fn advance(
        &mut self,
        topics: &mut [HomeTopic],
        units: usize,
        notify: &mut dyn FnMut(InterestEvent<'_>) -> bool,
    ) -> usize {
        let (mut used, mut takes_more) = (0, true);
        while takes_more && used < units && self.has_work() {
            used += 1;
            takes_more = self.answer(notify);
            if !takes_more || self.is_settled() {
                continue;
            }
            match topics.get_mut(self.walk.next.topic) {
                Some(topic) => {
                    self.walk.next.topic += 1;
                    let (units, room) = self.compare(topic, notify);
                    used += units;
                    takes_more = room;
                }
                None => self.walk.next = Position { round: self.walk.next.round + 1, topic: 0 },
            }
            if self.is_settled() {
                (self.walk.recent, self.walk.all_stale) = (Vec::new(), false);
            }
        }
        used
    }

    /// Opens or closes a topic to the shards whose interest in it has changed. Returns the units used, and whether the shards
    /// accept more messages.
    fn compare(
        &self,
        topic: &mut HomeTopic,
        notify: &mut dyn FnMut(InterestEvent<'_>) -> bool,
    ) -> (usize, bool) {
        if !topic.is_open() || !self.walk.may_be_stale(&topic.key, &self.exports) {
            return (0, true);
        }
        let (wanted, visited) = self.of_counted(&topic.key);
        let opens = ShardSet(wanted.0 & !topic.interested.0);
        let closes = ShardSet(topic.interested.0 & !wanted.0);
        topic.interested = wanted;
        let (mut takes_more, mut units) = (true, visited);
        for shard in opens.iter() {
            units += self.change_units;
            takes_more &= notify(InterestEvent::Open(shard, topic));
        }
        for shard in closes.iter() {
            units += self.change_units;
            takes_more &= notify(InterestEvent::Close(shard, topic));
        }
        (units, takes_more)
    }

    /// Answers the first shard whose topics are all open. Returns whether the shards accept more messages.
    fn answer(&mut self, notify: &mut dyn FnMut(InterestEvent<'_>) -> bool) -> bool {
        let Some(&Answer { shard, request, at }) = self.walk.ready.front() else { return true };
        if at > self.walk.next {
            return true;
        }
        self.walk.ready.pop_front();
        notify(InterestEvent::Ready(shard, request))
    }
}

impl Walk {
    /// Returns whether a change may affect a topic.
    fn may_be_stale(&self, key: &str, exports: &Exports) -> bool {
        self.all_stale || self.recent.iter().any(|recent| exports.matches(recent, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_collide_keep_their_shards_until_the_last_is_removed() {
        let mut names = Names::default();
        let (one, other) = (ShardId(1), ShardId(2));
        for shard in [one, other, one, one] {
            names.add(shard, 7);
        }
        let shards = |names: &Names| names.by_hash.get(&7).map_or(vec![], |shards| shards.iter().collect());
        names.remove(one, 7);
        names.remove(one, 7);
        assert_eq!(shards(&names), [one, other]);
        names.remove(one, 7);
        assert_eq!(shards(&names), [other]);
        names.remove(other, 7);
        assert!(names.by_hash.is_empty() && names.repeats.is_empty());
    }
}
