//! Per-topic counts of a connection to a peer, read from the payloads.

use rustc_hash::FxHashMap;
use tickcast::sources::payload::Mark;
use tickcast_client::TopicStats;
use tickcast_proto::ids::TopicId;

use super::FeedError;

/// Most topics per connection, about 90 bytes each.
pub const TOPICS_MAX: usize = 1 << 20;

/// Counts by topic.
#[derive(Debug, Default)]
pub struct Seen {
    topics: FxHashMap<u32, TopicStats>,
}

impl Seen {
    /// Counts a tick and returns how many ticks of its topic are missing before it.
    ///
    /// # Errors
    /// A number that does not increase, or too many topics.
    #[inline]
    pub fn count(&mut self, mark: Mark) -> Result<u64, FeedError> {
        let is_full = self.topics.len() >= TOPICS_MAX;
        if is_full && !self.topics.contains_key(&mark.topic) {
            return Err(FeedError::TooManyTopics);
        }
        let topic = self.topics.entry(mark.topic).or_default();
        let previous = topic.last_sequence;
        if mark.n <= previous {
            return Err(FeedError::OutOfOrder { topic: mark.topic, previous, n: mark.n });
        }
        let mut missed = 0;
        if topic.ticks == 0 {
            topic.first_sequence = mark.n;
        } else {
            missed = mark.n - previous - 1;
        }
        topic.last_sequence = mark.n;
        topic.ticks += 1;
        topic.missed += missed;
        Ok(missed)
    }

    /// Counts of each topic, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (TopicId, &TopicStats)> {
        self.topics.iter().map(|(&topic, stats)| (TopicId(topic), stats))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(topic: u32, n: u64) -> Mark {
        Mark { at_ns: 1, topic, n }
    }

    #[test]
    fn gaps_are_counted_by_topic_from_its_first_tick_on() {
        let mut seen = Seen::default();
        let missed: Vec<_> = [(3, 7), (9, 1), (3, 8), (3, 11), (9, 2)]
            .map(|(topic, n)| seen.count(mark(topic, n)).unwrap())
            .into();
        assert_eq!(missed, [0, 0, 0, 2, 0]);
        let three = seen.iter().find(|(id, _)| id.0 == 3).unwrap().1;
        assert_eq!((three.first_sequence, three.last_sequence, three.ticks, three.missed), (7, 11, 3, 2));
    }

    #[test]
    fn a_number_that_does_not_increase_is_an_error() {
        let mut seen = Seen::default();
        seen.count(mark(1, 4)).unwrap();
        for n in [4, 3, 0] {
            assert_eq!(seen.count(mark(1, n)), Err(FeedError::OutOfOrder { topic: 1, previous: 4, n }));
        }
        assert!(seen.count(mark(2, 0)).is_err(), "numbers begin with 1");
    }
}
