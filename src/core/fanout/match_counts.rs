//! Counts how many topics each wildcard matches, for the operator.
//!
//! A round over the topics compares each with all patterns at once, and counts it for those patterns that were new when the
//! round began. Topics that come and go later are counted one by one.

use std::collections::VecDeque;

use super::{Fanout, topic_mut};
use tickcast_proto::ids::TopicId;

/// How far the list of uncounted topics may exceed twice the open topics before closed ones are purged from it.
const UNCOUNTED_SPARE: usize = 1 << 10;

/// A topic's place in the order of a round: the index of its home, and its index there.
type TopicPlace = (u16, u32);

/// A wildcard's count.
#[derive(Debug)]
pub(super) struct MatchCount {
    topics: u32,
    /// The round that counts the topics older than the pattern.
    round: u64,
}

/// State shared by all patterns.
#[derive(Debug, Default)]
pub(super) struct MatchCounts {
    /// Number of the last round begun.
    round: u64,
    /// The next topic of that round; `None` once it is over.
    next: Option<TopicPlace>,
    /// The last round that any wildcard waits for.
    wanted_round: u64,
    /// New topics that are not counted yet. A topic that is closed and opened again is listed again. Bound: [`UNCOUNTED_SPARE`]
    /// plus twice the topics that are open and not forgotten.
    uncounted: VecDeque<TopicId>,
}

impl MatchCounts {
    /// Creates the count of a new wildcard.
    pub(super) fn new_wildcard(&mut self) -> MatchCount {
        self.wanted_round = self.round + 1;
        MatchCount { topics: 0, round: self.wanted_round }
    }

    /// Notes a new topic. `open`: number of topics that are open and not forgotten; `is_uncounted`: whether a topic is one of
    /// them and not counted yet. Amortized O(1): the list is scanned once per as many new topics.
    pub(super) fn new_topic(&mut self, id: TopicId, open: usize, is_uncounted: impl Fn(TopicId) -> bool) {
        if self.uncounted.len() >= UNCOUNTED_SPARE + 2 * open {
            let listed = self.uncounted.make_contiguous();
            listed.sort_unstable();
            let mut last = None;
            self.uncounted.retain(|id| last.replace(*id) != Some(*id) && is_uncounted(*id));
        }
        self.uncounted.push_back(id);
    }

    /// Whether a topic here has been counted for a pattern.
    fn includes(&self, count: &MatchCount, place: TopicPlace) -> bool {
        count.round < self.round || count.round == self.round && self.next.is_none_or(|next| place < next)
    }

    /// Whether there is anything to count.
    fn has_work(&self) -> bool {
        self.next.is_some() || self.wanted_round > self.round || !self.uncounted.is_empty()
    }
}

impl MatchCount {
    /// The topics counted so far.
    pub(super) fn topics(&self) -> usize {
        self.topics as usize
    }
}

impl Fanout {
    /// Whether there are topics to count.
    pub fn counts_topics(&self) -> bool {
        self.match_counts.has_work()
    }

    /// Counts topics for the wildcards that match them, for about `units`: one per topic, and one per pattern trie node that it
    /// is compared with. Returns the units used.
    pub fn count_topics(&mut self, units: usize) -> usize {
        let mut used = 0;
        while used < units && self.match_counts.has_work() {
            used += 1 + match self.match_counts.uncounted.pop_front() {
                Some(id) => self.count_new_topic(id),
                None => self.count_next_topic(),
            };
        }
        used
    }

    fn count_new_topic(&mut self, id: TopicId) -> usize {
        let topic = topic_mut(&mut self.topics, id, self.shards);
        // It may since have been forgotten, or closed and opened again.
        let Some(topic) = topic.filter(|topic| topic.waits_to_be_counted()) else { return 0 };
        topic.is_counted = true;
        let key: Box<str> = topic.key().into();
        self.count_topic(id, &key, true)
    }

    /// Counts a topic that has appeared or gone. Returns the units used.
    pub(super) fn count_topic(&mut self, id: TopicId, key: &str, comes: bool) -> usize {
        let place = self.topics.place(id, self.shards).unwrap_or_default();
        let (entries, counts) = (&mut self.entries, &self.match_counts);
        let (exports, highest) = (&self.settings.exports, self.tenant_highest);
        exports.for_each_match(&self.patterns, highest, key, |&index| {
            let entry = entries[index as usize].as_mut();
            let count =
                entry.and_then(|entry| entry.wildcard.as_deref_mut()).map(|wildcard| &mut wildcard.matches);
            if let Some(count) = count.filter(|count| counts.includes(count, place)) {
                match comes {
                    true => count.topics += 1,
                    false => count.topics -= 1,
                }
            }
        })
    }

    /// Advances the round by one topic, or begins a new one. Returns the units used.
    fn count_next_topic(&mut self) -> usize {
        let counts = &mut self.match_counts;
        let Some((home, local)) = counts.next else {
            counts.round += 1;
            counts.next = Some((0, 0));
            return 0;
        };
        let Some(of_home) = self.topics.homes.get(usize::from(home)) else {
            counts.next = None;
            return 0;
        };
        let is_last = local as usize + 1 >= of_home.len();
        counts.next = Some(if is_last { (home + 1, 0) } else { (home, local + 1) });
        let topic = of_home.get(local as usize).and_then(Option::as_ref);
        let Some(topic) = topic.filter(|topic| topic.is_counted) else { return 0 };
        let (entries, round) = (&mut self.entries, counts.round);
        let (exports, highest) = (&self.settings.exports, self.tenant_highest);
        exports.for_each_match(&self.patterns, highest, topic.key(), |&index| {
            let entry = entries[index as usize].as_mut();
            let count =
                entry.and_then(|entry| entry.wildcard.as_deref_mut()).map(|wildcard| &mut wildcard.matches);
            if let Some(count) = count.filter(|count| count.round == round) {
                count.topics += 1;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fanout::{EgressLogs, Settings},
        home::last_value::LastValuesBudget,
        session::table::Sessions,
    };
    use tickcast_proto::{
        ids::ShardId,
        subscription::{Policy, Rules},
    };

    #[test]
    fn a_topic_that_is_forgotten_before_its_turn_is_neither_listed_nor_counted() {
        let settings = Settings {
            policies: Rules::all(Policy::default()),
            last_values: LastValuesBudget { keys_max: 4, bytes_left: 1 << 20 },
            behind_bytes: 1 << 16,
            home_topics_max: 1 << 20,
            exports: Default::default(),
            deflate: Rules::all(false),
        };
        let mut fanout = Fanout::new(ShardId(0), 1, 1, settings, Default::default());
        let (mut sessions, mut logs) = (Sessions::new(1 << 20, 1 << 16), EgressLogs::new(1 << 20, 128));
        let entry = fanout.subscribe(crate::ids::SlotId(0), crate::ids::SourceId(0), "t.>").entry;
        let counted = |fanout: &Fanout| {
            let entry = fanout.entries[entry as usize].as_ref().unwrap();
            entry.wildcard.as_deref().unwrap().matches.topics()
        };
        // Their members take long to leave, so none is closed.
        for place in 0..3 * UNCOUNTED_SPARE as u32 {
            let id = TopicId::new(place, ShardId(0), 1).unwrap();
            fanout.handle_open((id, 0), 1, 0, &format!("t.{place}"), &mut sessions, &mut logs);
            fanout.handle_forget(id, 0);
            assert!(fanout.match_counts.uncounted.len() <= UNCOUNTED_SPARE + 1);
        }
        let id = TopicId::new(3 * UNCOUNTED_SPARE as u32, ShardId(0), 1).unwrap();
        fanout.handle_open((id, 0), 1, 0, "t.current", &mut sessions, &mut logs);
        while fanout.counts_topics() {
            fanout.count_topics(1_000);
        }
        assert_eq!(counted(&fanout), 1);
        for place in 0..10 {
            let id = TopicId::new(place, ShardId(0), 1).unwrap();
            fanout.handle_close(id, &mut sessions);
        }
        assert_eq!(counted(&fanout), 1, "what was not counted is not taken off");
    }

    #[test]
    fn topics_that_are_opened_again_and_again_are_not_listed_without_bound() {
        let mut counts = MatchCounts::default();
        let open = 100;
        for n in 0..100_000 {
            // Some have been counted in between, and some are gone.
            counts.new_topic(TopicId(n % 150), open, |id| id.0 < 100 && id.0 % 3 != 0);
            assert!(counts.uncounted.len() <= UNCOUNTED_SPARE + 2 * open);
        }
        let mut listed: Vec<u32> = counts.uncounted.iter().map(|id| id.0).collect();
        listed.sort_unstable();
        listed.dedup();
        let uncounted = (0..100).filter(|id| id % 3 != 0);
        assert!(uncounted.clone().all(|id| listed.binary_search(&id).is_ok()), "none is forgotten");
    }
}
