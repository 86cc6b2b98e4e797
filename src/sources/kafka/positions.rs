//! A reader's place in each partition of its topics. Plain data: no client, no clock.

use std::mem;

use super::{
    connection::PartitionEnd,
    logged::{Log, life_epoch},
    native::TopicId,
};
use crate::limits::SOURCE_PARTITIONS_MAX;

/// Where reading continues in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where the configuration says: reading has not begun, and the partition existed at the source's first check, or may have.
    Start,
    /// At the oldest message: the partition appeared later, so all of it is new.
    Beginning,
    /// At this offset.
    Next(i64),
}

/// Whether reading can continue at an offset, given the partition's bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuation {
    /// The offset is within the bounds.
    Same,
    /// Retention has passed it: at most this many messages are lost, fewer where offsets are not dense.
    Passed { lost: u64 },
    /// It lies beyond the end: the topic was recreated, or its log was truncated.
    SetBack,
}

impl Continuation {
    /// The continuation at `next` in a partition that has the offsets `[low, high)`.
    pub fn of(next: i64, low: i64, high: i64) -> Continuation {
        match (low.saturating_sub(next), next > high) {
            (_, true) => Continuation::SetBack,
            (lost @ 1.., _) => Continuation::Passed { lost: lost.unsigned_abs() },
            _ => Continuation::Same,
        }
    }
}

/// The topics found, with the place in each partition. Those that are gone keep their places, as long as there are at most
/// [`SOURCE_PARTITIONS_MAX`] in all.
///
/// Invariant: topics are sorted by name, so that a message's topic is found by binary search.
#[derive(Clone, Debug, Default)]
pub struct Positions {
    topics: Vec<Topic>,
    /// Whether the cluster was checked before: what that check did not see appeared later.
    has_looked: bool,
    /// Topics that have existed since the first check but could not be read yet: there was an error instead of their
    /// partitions.
    unreadable: Vec<String>,
    /// The topic of the last message: the next one is most likely of the same topic.
    last: usize,
}

#[derive(Clone, Debug)]
struct Topic {
    name: String,
    /// Whether the cluster had it at the last check.
    is_present: bool,
    /// With positions: the id that Kafka gave it when it was made.
    id: Option<TopicId>,
    partitions: Vec<Partition>,
}

/// A partition of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Where reading continues.
    pub place: Place,
    /// With positions: its log.
    pub log: Log,
}

impl Partition {
    const fn new(place: Place) -> Partition {
        Partition { place, log: Log { epoch: 0, set_back: 0, complete_from: 0, target: None } }
    }
}

impl Positions {
    /// Notes which topics the cluster has, each with its number of partitions, and which of them cannot be read. Whatever
    /// appeared after the first check begins with its oldest message. Returns whether anything has changed.
    pub fn update(&mut self, found: &[(String, usize)], unreadable: Vec<String>) -> bool {
        let mut has_changed = false;
        let has_looked = mem::replace(&mut self.has_looked, true);
        let before = mem::replace(&mut self.unreadable, unreadable);
        // A topic that is being created has no leader at first.
        self.unreadable.retain(|name| !has_looked || before.contains(name));
        for topic in &mut self.topics {
            let is_present = found.iter().any(|(name, _)| *name == topic.name);
            has_changed |= mem::replace(&mut topic.is_present, is_present) != is_present;
        }
        for (name, partitions) in found {
            let (at, place) = match self.topics.binary_search_by(|topic| topic.name.cmp(name)) {
                Ok(at) => (at, Place::Beginning),
                Err(at) => {
                    let topic =
                        Topic { name: name.clone(), is_present: true, id: None, partitions: Vec::new() };
                    self.topics.insert(at, topic);
                    let is_new = has_looked && !before.contains(name);
                    (at, if is_new { Place::Beginning } else { Place::Start })
                }
            };
            let known = &mut self.topics[at].partitions;
            has_changed |= known.len() != *partitions;
            known.resize(*partitions, Partition::new(place));
        }
        let mut kept: usize = found.iter().map(|(_, partitions)| partitions).sum();
        self.topics.retain(|topic| {
            let is_kept = topic.is_present || kept + topic.partitions.len() <= SOURCE_PARTITIONS_MAX;
            kept += if topic.is_present || !is_kept { 0 } else { topic.partitions.len() };
            is_kept
        });
        self.last = 0;
        has_changed
    }

    /// Topics and partitions to read.
    pub fn present(&mut self) -> impl Iterator<Item = (&str, i32, &mut Partition)> {
        self.topics.iter_mut().filter(|topic| topic.is_present).flat_map(|topic| {
            let Topic { name, partitions, .. } = topic;
            let name = &**name;
            (0..).zip(partitions).map(move |(number, partition)| (name, number, partition))
        })
    }

    /// Names of the topics to read.
    pub fn names(&self) -> Vec<&str> {
        self.topics.iter().filter(|topic| topic.is_present).map(|topic| &*topic.name).collect()
    }

    /// Notes the ids of the topics to read, in the order of [`Positions::names`]. A topic with another id than before was made again:
    /// all of it is new. Returns the names of those.
    pub fn identify(&mut self, cluster: &str, ids: &[TopicId]) -> Vec<String> {
        let mut made_again = Vec::new();
        let present = self.topics.iter_mut().filter(|topic| topic.is_present);
        for (topic, &id) in present.zip(ids) {
            if topic.id.replace(id).is_some_and(|known| known != id) {
                topic.partitions.fill(Partition::new(Place::Beginning));
                made_again.push(topic.name.clone());
            }
            for (number, Partition { log, .. }) in (0..).zip(&mut topic.partitions) {
                log.epoch = life_epoch(cluster, &topic.name, number, id, log.set_back);
            }
        }
        made_again
    }

    /// Whether the source has come to the target of every partition to read. `ends`: what the client says of them.
    pub fn has_caught_up(&mut self, ends: &[PartitionEnd]) -> bool {
        for PartitionEnd { topic, partition, drained, .. } in ends {
            if let Some(Partition { log: Log { target: target @ Some(_), .. }, .. }) =
                self.partition(topic, *partition)
                && *drained >= *target
            {
                // What is left are records without messages, such as the ends of transactions.
                *target = Some(0);
            }
        }
        self.present().all(|(_, _, Partition { place, log })| match (place, log.target) {
            (Place::Next(next), Some(target)) => *next >= target,
            _ => false,
        })
    }

    /// The place in a partition; `None`: unknown.
    pub fn place(&mut self, topic: &str, partition: i32) -> Option<&mut Place> {
        self.partition(topic, partition).map(|partition| &mut partition.place)
    }

    /// A partition; `None`: unknown.
    pub fn partition(&mut self, topic: &str, partition: i32) -> Option<&mut Partition> {
        if self.topics.get(self.last).is_none_or(|last| last.name != topic) {
            self.last = self.topics.binary_search_by(|known| (*known.name).cmp(topic)).ok()?;
        }
        self.topics[self.last].partitions.get_mut(usize::try_from(partition).ok()?)
    }

    /// Messages between the places and these ends. An upper bound: offsets need not be dense.
    pub fn lag(&mut self, ends: &[PartitionEnd]) -> u64 {
        let of_partition = |at: &PartitionEnd| match self.place(&at.topic, at.partition) {
            Some(Place::Next(next)) => at.end.saturating_sub(*next).max(0).unsigned_abs(),
            _ => 0,
        };
        ends.iter().map(of_partition).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(topics: &[(&str, usize)]) -> Vec<(String, usize)> {
        topics.iter().map(|(name, partitions)| ((*name).to_owned(), *partitions)).collect()
    }

    #[test]
    fn a_partition_goes_on_where_it_was_unless_its_log_has_no_such_offset() {
        for (next, low, high, expected) in [
            (5, 0, 9, Continuation::Same),
            (9, 0, 9, Continuation::Same),
            (0, 0, 0, Continuation::Same),
            (7, 7, 7, Continuation::Same),
            (5, 7, 9, Continuation::Passed { lost: 2 }),
            (5, 9, 9, Continuation::Passed { lost: 4 }),
            (10, 0, 9, Continuation::SetBack),
            (10, 0, 0, Continuation::SetBack),
        ] {
            assert_eq!(Continuation::of(next, low, high), expected, "{next} in {low} to {high}");
        }
    }

    #[test]
    fn partitions_and_topics_that_come_later_are_read_whole_and_those_that_go_keep_their_place() {
        let mut positions = Positions::default();
        assert!(positions.update(&found(&[("b", 1), ("a", 2)]), Vec::new()));
        assert!(!positions.update(&found(&[("a", 2), ("b", 1)]), Vec::new()), "nothing has changed");
        *positions.place("a", 1).unwrap() = Place::Next(7);
        assert!(positions.update(&found(&[("a", 3), ("c", 1)]), Vec::new()));
        let present: Vec<(String, i32, Place)> =
            positions.present().map(|(name, at, partition)| (name.to_owned(), at, partition.place)).collect();
        let expected = [
            ("a", 0, Place::Start),
            ("a", 1, Place::Next(7)),
            ("a", 2, Place::Beginning),
            ("c", 0, Place::Beginning),
        ];
        assert_eq!(present, expected.map(|(name, at, place)| (name.to_owned(), at, place)));
        assert_eq!(positions.place("b", 0), Some(&mut Place::Start));
        for (topic, partition) in [("b", 1), ("a", -1), ("x", 0)] {
            assert_eq!(positions.place(topic, partition), None, "{topic} {partition}");
        }
    }

    #[test]
    fn only_a_topic_that_was_not_there_before_is_read_from_its_beginning() {
        let mut positions = Positions::default();
        assert!(!positions.update(&[], vec!["denied".into()]), "nothing can be read yet");
        positions.update(&[], vec!["denied".into(), "later".into()]);
        assert!(positions.update(&found(&[("denied", 1), ("later", 1)]), Vec::new()));
        assert_eq!(positions.place("denied", 0), Some(&mut Place::Start));
        assert_eq!(positions.place("later", 0), Some(&mut Place::Beginning));
    }

    #[test]
    fn topics_that_are_gone_are_forgotten_beyond_the_bound() {
        let mut positions = Positions::default();
        for round in 0..10 {
            positions.update(&found(&[(&format!("t{round}"), SOURCE_PARTITIONS_MAX / 4)]), Vec::new());
        }
        assert_eq!(positions.topics.len(), 4);
        assert_eq!(positions.present().count(), SOURCE_PARTITIONS_MAX / 4);
        assert!(positions.place("t9", 0).is_some());
    }

    #[test]
    fn the_lag_is_what_lies_between_places_and_ends() {
        let mut positions = Positions::default();
        positions.update(&found(&[("a", 2), ("b", 1)]), Vec::new());
        *positions.place("a", 0).unwrap() = Place::Next(4);
        *positions.place("a", 1).unwrap() = Place::Next(9);
        let end =
            |topic: &str, partition, end| PartitionEnd { topic: topic.into(), partition, end, drained: None };
        let ends = [end("a", 0, 10), end("a", 1, 8), end("b", 0, 50), end("x", 0, 50)];
        assert_eq!(positions.lag(&ends), 6, "b is not read yet, x is none of the topics");
    }

    #[test]
    fn a_topic_with_another_id_is_another_life_and_read_whole() {
        let mut positions = Positions::default();
        positions.update(&found(&[("a", 2), ("b", 1)]), Vec::new());
        let ids = |a, b| [TopicId([a; 16]), TopicId([b; 16])];
        assert!(positions.identify("c", &ids(1, 2)).is_empty(), "known for the first time");
        *positions.place("a", 1).unwrap() = Place::Next(7);
        *positions.place("b", 0).unwrap() = Place::Next(9);
        let before = *positions.partition("b", 0).unwrap();
        let epoch = positions.partition("a", 1).unwrap().log.epoch;
        assert!(positions.identify("c", &ids(1, 2)).is_empty());
        assert_eq!(positions.identify("c", &ids(3, 2)), ["a"]);
        let again = *positions.partition("a", 1).unwrap();
        assert!(again.place == Place::Beginning && again.log.epoch != epoch && again.log.complete_from == 0);
        assert_eq!(*positions.partition("b", 0).unwrap(), before);
        // It is gone for a while, and comes back as another one.
        positions.update(&found(&[("b", 1)]), Vec::new());
        assert!(positions.identify("c", &ids(2, 0)[..1]).is_empty());
        positions.update(&found(&[("a", 2), ("b", 1)]), Vec::new());
        assert_eq!(positions.identify("c", &ids(4, 2)), ["a"]);
    }

    #[test]
    fn a_source_has_caught_up_once_it_has_come_to_every_end() {
        let mut positions = Positions::default();
        positions.update(&found(&[("a", 2)]), Vec::new());
        let drained =
            |offset| PartitionEnd { topic: "a".into(), partition: 1, end: 9, drained: Some(offset) };
        for (partition, next, target) in [(0, 5, 5), (1, 3, 9)] {
            assert!(!positions.has_caught_up(&[]));
            let at = positions.partition("a", partition).unwrap();
            (at.place, at.log.target) = (Place::Next(next), Some(target));
        }
        assert!(!positions.has_caught_up(&[]) && !positions.has_caught_up(&[drained(8)]));
        assert!(positions.has_caught_up(&[drained(9)]), "the rest are no messages");
        *positions.place("a", 1).unwrap() = Place::Next(9);
        assert!(positions.has_caught_up(&[]));
    }
}
