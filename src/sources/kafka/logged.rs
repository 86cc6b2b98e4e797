//! Partitions whose offsets are the sequences of topics.
//!
//! ```text
//!  position = offset + 1, because positions count from 1                      below 2^53
//!  epoch    = cluster, topic, partition, and the topic's id, which Kafka gives it when it is made
//! ```
//!
//! A message says nothing of its topic's id, and the client goes on reading at its offset when a topic is made again. So the ids are
//! looked at again and again. An id that is the same before and after a message was received is the message's, because no id
//! comes back.

use rdkafka::consumer::Consumer as _;

use super::{
    ANSWER, Options,
    connection::Consumer,
    native::{self, NoId, TopicId},
};
use crate::{kind::SourceOptions, mapping::MapOptions};
use tickcast_proto::logged::{LogPosition, log_epoch};

/// Offsets that have a position: positions stay below 2^53.
pub const OFFSET_MAX: i64 = (1 << 53) - 2;
/// How long a topic is taken to have the id that the last look has shown, nanoseconds. When a topic is deleted, the client's request for
/// messages fails, and it waits for `fetch.error.backoff.ms` before the next one, which is longer.
pub const TRUST_NS: u64 = 400_000_000;
/// Time between two looks at the ids, nanoseconds: one request. Leaves time for the answer.
pub const LOOK_IDS_NS: u64 = 200_000_000;
const _: () = assert!(LOOK_IDS_NS < TRUST_NS);

/// The position of the message at an offset.
pub fn position_of(offset: i64) -> u64 {
    offset.max(0).unsigned_abs() + 1
}

/// The position of the message at an offset; `None` if the offset has none.
pub fn offset_position(offset: i64) -> Option<u64> {
    (0..=OFFSET_MAX).contains(&offset).then(|| position_of(offset))
}

/// The offset of a position.
pub fn offset_of(position: u64) -> i64 {
    i64::try_from(position.saturating_sub(1)).unwrap_or(i64::MAX)
}

/// The epoch of a partition's log in one life of its topic, if the log was found set back so many times.
pub fn life_epoch(cluster: &str, topic: &str, partition: i32, id: TopicId, set_back: u64) -> u64 {
    let mut life = id.0.to_vec();
    if set_back > 0 {
        life.extend(set_back.to_le_bytes());
    }
    log_epoch(Options::KIND, &format!("{cluster}/{topic}/{partition}"), &life)
}

/// What is known of the log of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// 0: not known yet.
    pub epoch: u64,
    /// How often the partition was found cut while its topic had the same id.
    pub set_back: u64,
    /// Everything from this position on has been read; 0: everything from the next message on.
    pub complete_from: u64,
    /// The end of the partition when reading began: the server is ready once the source has come to it.
    pub target: Option<i64>,
}

impl Log {
    /// The place of a message.
    pub fn at(&self, offset: i64) -> LogPosition {
        let (position, epoch) = (position_of(offset), self.epoch);
        LogPosition { source: 0, epoch, position, complete_from: self.complete_from }
    }
}

/// How the ids of a cluster and its topics are found.
#[derive(Clone, Debug, Default)]
pub enum Ids {
    /// By asking the brokers.
    #[default]
    Asked,
    /// The test says them.
    #[cfg(test)]
    Given(std::sync::Arc<std::sync::Mutex<std::collections::HashMap<String, TopicId>>>),
}

impl Ids {
    /// The id of the cluster; `None` if its brokers do not say one.
    pub fn of_cluster(&self, consumer: &Consumer) -> Option<String> {
        match self {
            Ids::Asked => native::cluster_id(consumer.client(), ANSWER),
            #[cfg(test)]
            Ids::Given(_) => Some("cluster".into()),
        }
    }

    /// The ids of topics, in the order of their names: see [`native::topic_ids`].
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn of_topics(
        &self,
        consumer: &Consumer,
        broker: i32,
        names: &[&str],
    ) -> Result<Vec<Result<TopicId, NoId>>, String> {
        match self {
            Ids::Asked => native::topic_ids(consumer.client(), broker, names, ANSWER),
            #[cfg(test)]
            Ids::Given(given) => {
                let given = given.lock().unwrap();
                Ok(names.iter().map(|name| given.get(*name).copied().ok_or(NoId::NotGiven)).collect())
            }
        }
    }
}

/// Why a topic's messages have no positions.
pub fn without_id(topic: &str, why: NoId) -> String {
    match why {
        NoId::Absent => format!("topic {topic} is gone"),
        NoId::NotGiven => format!(
            "position = \"log\": the cluster gives topic {topic} no id. Brokers of 2.8 or later do; with older ones, use \
             position = \"local\""
        ),
    }
}

/// Refuses topics that would feed one of this server's topics from several partitions.
///
/// # Errors
/// What to change.
pub fn one_log_each(map: &MapOptions, found: &[(String, usize)]) -> Result<(), String> {
    let partitioned = found.iter().find(|(_, partitions)| *partitions > 1);
    if let Some((topic, partitions)) = partitioned.filter(|_| !map.tells_partitions_apart()) {
        return Err(format!(
            "position = \"log\": topic {topic} has {partitions} partitions, and each is a log of its own: let map.topic end with \
             .{{partition}}, or use position = \"local\""
        ));
    }
    let names: Vec<String> = found.iter().map(|(name, _)| name.clone()).collect();
    if names.len() > 1 && !map.tells_subjects_apart(&names) {
        return Err(several_topics().into());
    }
    Ok(())
}

/// Why several topics cannot be mapped to one.
pub fn several_topics() -> &'static str {
    "position = \"log\": several topics may feed one, and a topic has one log: let map.topic be {subject} or {subject}.{partition}, or \
     give each topic a source of its own"
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TopicId = TopicId([7; 16]);

    #[test]
    fn a_life_of_a_partition_has_an_epoch_of_its_own_alike_on_every_node() {
        let epochs = [
            life_epoch("c", "t", 0, ID, 0),
            life_epoch("c", "t", 0, ID, 1),
            life_epoch("c", "t", 1, ID, 0),
            life_epoch("c", "u", 0, ID, 0),
            life_epoch("d", "t", 0, ID, 0),
            life_epoch("c", "t", 0, TopicId([8; 16]), 0),
        ];
        for (at, epoch) in epochs.iter().enumerate() {
            assert!(!epochs[..at].contains(epoch));
        }
        assert_eq!(epochs[0], log_epoch("kafka", "c/t/0", &[7; 16]));
    }

    #[test]
    fn positions_count_from_one_and_go_back_to_their_offsets() {
        for offset in [0, 1, 41, OFFSET_MAX] {
            assert_eq!(offset_of(position_of(offset)), offset);
        }
        assert_eq!((position_of(0), position_of(OFFSET_MAX)), (1, (1 << 53) - 1));
        assert_eq!([-1, OFFSET_MAX + 1].map(offset_position), [None, None]);
    }

    #[test]
    fn a_topic_is_fed_by_one_partition_or_refused() {
        let check = |topic: &str, found: &[(&str, usize)]| {
            let map = MapOptions { topic: topic.into(), ..MapOptions::default() };
            let found: Vec<_> = found.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
            one_log_each(&map, &found).is_ok()
        };
        assert!(check("{subject}", &[("a", 1), ("b", 1)]) && check("x.{key}", &[("a", 1)]));
        assert!(!check("{subject}", &[("a", 1), ("b", 2)]) && !check("x.{key}", &[("a", 2)]));
        assert!(check("{subject}.{partition}", &[("a", 3), ("b", 1)]) && check("x.{partition}", &[("a", 9)]));
        assert!(!check("x.{partition}", &[("a", 1), ("b", 1)]) && !check("{key}", &[("a", 1), ("b", 1)]));
    }
}
