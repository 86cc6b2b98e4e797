//! The topics a session knows, and what it has seen of each.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use crate::client::{SESSION_TOPICS_MAX, SessionError};

/// What a session has seen of one topic.
///
/// Invariant: `first_sequence <= last_sequence`, and
/// `ticks + missed <= last_sequence - first_sequence + 1` (less only after an unsubscribe).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicStats {
    /// The topic's name.
    pub name: Box<str>,
    /// The life of the sequencer that counts it.
    pub epoch: u64,
    /// Sequence of the first tick seen; 0: none yet.
    pub first_sequence: u64,
    /// Sequence of the last tick seen; 0: none yet.
    pub last_sequence: u64,
    /// Ticks seen.
    pub ticks: u64,
    /// Ticks that the sequence skipped after the first one seen.
    pub missed: u64,
    /// The next jump will be no gap: the session was not subscribed throughout.
    pub interrupted: bool,
}

impl TopicStats {
    /// Takes the next tick; returns how many are missing before it, or `None` when the sequence does not increase.
    fn advance(&mut self, sequence: u64) -> Option<u64> {
        if sequence <= self.last_sequence {
            return None;
        }
        let mut missed = sequence - self.last_sequence - 1;
        if self.first_sequence == 0 {
            self.first_sequence = sequence;
            missed = 0;
        }
        if self.interrupted {
            self.interrupted = false;
            missed = 0;
        }
        self.last_sequence = sequence;
        self.ticks += 1;
        self.missed += missed;
        debug_assert!(
            self.ticks + self.missed <= sequence - self.first_sequence + 1,
            "a tick was counted twice"
        );
        Some(missed)
    }
}

/// A topic's number is small and unique: spreading it by a multiplication is all the hashing it needs. SipHash took
/// most of the time of a tick.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }
    fn write_u32(&mut self, id: u32) {
        // 2^64 divided by the golden ratio (Knuth, volume 3, section 6.4): high bits vary for ids in a row.
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// All topics of one session, by number; by name as well where ticks come by name.
#[derive(Debug)]
pub(super) struct Topics {
    by_id: HashMap<u32, TopicStats, BuildHasherDefault<IdHasher>>,
    id_by_name: Option<HashMap<Box<str>, u32>>,
}

impl Topics {
    pub(super) fn new(by_name: bool) -> Topics {
        Topics { by_id: HashMap::default(), id_by_name: by_name.then(HashMap::new) }
    }

    /// Takes an announcement. The same topic may be announced again; under a new epoch it counts from the start.
    pub(super) fn announce(&mut self, id: u32, name: &str, epoch: u64) -> Result<(), SessionError> {
        if let Some(topic) = self.by_id.get_mut(&id) {
            if &*topic.name != name {
                let (from, to) = (topic.name.to_string(), name.to_owned());
                return Err(SessionError::TopicRenamed { topic_id: id, from, to });
            }
            if topic.epoch != epoch {
                *topic = TopicStats { name: name.into(), epoch, ..TopicStats::default() };
            }
            return Ok(());
        }
        if self.by_id.len() >= SESSION_TOPICS_MAX {
            return Err(SessionError::TooManyTopics);
        }
        if let Some(ids) = &mut self.id_by_name {
            ids.insert(name.into(), id);
        }
        self.by_id.insert(id, TopicStats { name: name.into(), epoch, ..TopicStats::default() });
        Ok(())
    }

    /// Counts a tick; how many are missing before it.
    #[inline]
    pub(super) fn advance(&mut self, id: u32, sequence: u64) -> Result<u64, SessionError> {
        let Some(topic) = self.by_id.get_mut(&id) else {
            return Err(SessionError::UnknownTopic(id.to_string()));
        };
        let previous = topic.last_sequence;
        topic.advance(sequence).ok_or_else(|| SessionError::OutOfOrder {
            topic: topic.name.to_string(),
            previous,
            sequence,
        })
    }

    /// After an unsubscribe any topic may have paused: which ones, only the server's matching says.
    pub(super) fn interrupt(&mut self) {
        for topic in self.by_id.values_mut() {
            topic.interrupted = true;
        }
    }

    pub(super) fn id(&self, name: &str) -> Option<u32> {
        self.id_by_name.as_ref()?.get(name).copied()
    }

    #[inline]
    pub(super) fn topic(&self, id: u32) -> Option<&TopicStats> {
        self.by_id.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &TopicStats)> {
        self.by_id.iter().map(|(&id, topic)| (id, topic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics() -> Topics {
        let mut topics = Topics::new(true);
        topics.announce(5, "a", 1).unwrap();
        topics
    }

    #[test]
    fn a_jump_after_the_first_tick_is_a_gap_of_its_length() {
        let mut topics = topics();
        assert_eq!(topics.advance(5, 10), Ok(0));
        assert_eq!(topics.advance(5, 11), Ok(0));
        assert_eq!(topics.advance(5, 15), Ok(3));
        let topic = topics.topic(5).unwrap();
        assert_eq!((topic.first_sequence, topic.last_sequence, topic.ticks, topic.missed), (10, 15, 3, 3));
    }

    #[test]
    fn a_sequence_that_does_not_increase_is_an_error() {
        for again in [0, 1, 7] {
            let mut topics = topics();
            topics.advance(5, 7).unwrap();
            assert!(matches!(topics.advance(5, again), Err(SessionError::OutOfOrder { previous: 7, .. })));
        }
        assert!(matches!(topics().advance(5, 0), Err(SessionError::OutOfOrder { .. })));
    }

    #[test]
    fn a_topic_that_was_not_announced_has_no_ticks() {
        assert_eq!(topics().advance(6, 1), Err(SessionError::UnknownTopic("6".into())));
        assert_eq!((topics().id("a"), topics().id("b")), (Some(5), None));
    }

    #[test]
    fn a_new_epoch_counts_from_the_start_and_a_new_name_is_refused() {
        let mut topics = topics();
        topics.advance(5, 7).unwrap();
        topics.announce(5, "a", 1).unwrap();
        assert_eq!(topics.advance(5, 8), Ok(0));
        topics.announce(5, "a", 2).unwrap();
        assert_eq!(topics.advance(5, 1), Ok(0));
        assert!(matches!(topics.announce(5, "b", 2), Err(SessionError::TopicRenamed { topic_id: 5, .. })));
    }

    #[test]
    fn what_was_missed_while_unsubscribed_is_no_gap() {
        let mut topics = topics();
        topics.advance(5, 1).unwrap();
        topics.interrupt();
        assert_eq!(topics.advance(5, 100), Ok(0));
        assert_eq!(topics.advance(5, 102), Ok(1));
    }
}
