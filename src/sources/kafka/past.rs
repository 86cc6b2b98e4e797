//! Reads the past of partitions whose offsets are the positions of topics.
//!
//! ```text
//!  open: topics, ids -> the partition whose life has the epoch -> first and last offset -> assign
//!  read: poll a batch -> the topic's id again: is it still that life? -> pass the batch on
//! ```
//!
//! Offsets have holes, so a missing message does not show. Everything from an offset on is there, except what compaction has removed, if
//! the partition begins at it or before it; what retention deletes later makes the client report an offset out of range.
//!
//! The calls block, on the reader's own thread, each for [`ANSWER`] at most.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    Message as _, Offset, TopicPartitionList, consumer::Consumer as _, error::KafkaError,
    message::BorrowedMessage,
};

use super::{
    ANSWER, BATCH_MESSAGES, Fault, RecordHeaders,
    connection::{Connection, Consumer},
    logged::{Ids, life_epoch, offset_of, position_of},
    message_of,
    native::TopicId,
    topics::{self, Found, Wanted},
};
use crate::{
    engine::EngineError,
    log_reader::{LIFE_GONE, LogAccess, Opened, ReadMessages},
};
use tickcast_common::clock;

/// Longest wait for a message in one call of the client.
const WAIT: Duration = Duration::from_millis(50);
/// Bytes of payloads after which a batch ends.
const BATCH_BYTES: usize = 1 << 20;

/// Access to the past of partitions.
#[derive(Clone)]
pub struct Past {
    connection: Connection,
    wanted: Vec<Wanted>,
    pub(super) ids: Ids,
    consumer: Option<Arc<Consumer>>,
    /// The client that looks at the ids.
    looker: Option<Arc<Consumer>>,
    open: Option<Open>,
}

#[derive(Clone, Debug)]
struct Open {
    topic: String,
    partition: i32,
    id: TopicId,
    /// A broker that has answered.
    broker: i32,
    /// The next offset.
    next: i64,
    /// The end of the partition at the last look.
    end: i64,
}

/// What the client gave at once.
struct Batch<'a> {
    messages: Vec<BorrowedMessage<'a>>,
    /// It has come to the end of the partition.
    is_at_end: bool,
    /// An offset is out of range.
    is_holed: bool,
}

impl Past {
    pub fn new(connection: Connection, wanted: Vec<Wanted>) -> Past {
        Past { connection, wanted, ids: Ids::default(), consumer: None, looker: None, open: None }
    }

    fn failed(&self, what: &str, error: &dyn std::fmt::Display) -> EngineError {
        EngineError(format!("{}: {what}: {error}", self.connection))
    }

    fn consumer(&mut self) -> Result<Arc<Consumer>, EngineError> {
        Ok(match &self.consumer {
            Some(consumer) => consumer.clone(),
            None => self.consumer.insert(Arc::new(self.connection.consumer_of_past()?)).clone(),
        })
    }

    /// The partition whose life has this epoch, at its next offset; `None`: there is no such life any more.
    fn find(&self, consumer: &Consumer, epoch: u64, next: i64) -> Result<Option<Open>, EngineError> {
        let found = topics::look(consumer, &self.wanted, ANSWER);
        let Found { topics, unreadable, broker, .. } =
            found.map_err(|error| self.failed("look at the topics", &error))?;
        let broker = broker.ok_or_else(|| self.failed("look at the topics", &"there is no broker"))?;
        let cluster = self.ids.of_cluster(consumer);
        let cluster = cluster.ok_or_else(|| self.failed("look at the cluster", &"it says no id"))?;
        let names: Vec<&str> = topics.iter().map(|(name, _)| &**name).collect();
        let ids = self.ids.of_topics(consumer, broker, &names);
        let ids = ids.map_err(|why| self.failed("ids of the topics", &why))?;
        for ((topic, partitions), id) in topics.iter().zip(ids) {
            let Ok(id) = id else { continue };
            for partition in (0..).take(*partitions) {
                if life_epoch(&cluster, topic, partition, id, 0) == epoch {
                    let topic = topic.clone();
                    return Ok(Some(Open { topic, partition, id, broker, next, end: next }));
                }
            }
        }
        match unreadable.first() {
            // It may be that one.
            Some(topic) => Err(self.failed("look at the topics", &format_args!("{topic} cannot be read"))),
            None => Ok(None),
        }
    }

    /// The first offset of a partition and the one after its last.
    fn bounds(&self, consumer: &Consumer, open: &Open) -> Result<(i64, i64), EngineError> {
        let bounds = consumer.fetch_watermarks(&open.topic, open.partition, ANSWER);
        bounds.map_err(|error| {
            self.failed(&format!("look at partition {} of {}", open.partition, open.topic), &error)
        })
    }

    /// Takes messages until a batch is full, or no more wait. Waits for the first one.
    fn receive<'a>(&self, consumer: &'a Consumer) -> Result<Batch<'a>, EngineError> {
        let mut batch = Batch { messages: Vec::new(), is_at_end: false, is_holed: false };
        let deadline_ns = clock::monotonic_ns() + ANSWER.as_nanos() as u64;
        let mut bytes = 0;
        while batch.messages.len() < BATCH_MESSAGES && bytes < BATCH_BYTES {
            let wait = if batch.messages.is_empty() { WAIT } else { Duration::ZERO };
            match consumer.poll(wait) {
                Some(Ok(message)) => {
                    bytes += message.payload_len();
                    batch.messages.push(message);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    batch.is_at_end = true;
                    break;
                }
                Some(Err(error)) => match Fault::of(&error) {
                    Fault::Ends => return Err(self.failed("read", &error)),
                    Fault::OutOfRange => {
                        batch.is_holed = true;
                        break;
                    }
                    // One of them cannot be decoded, as when it was new; or the client gets over it.
                    Fault::Message | Fault::Topic | Fault::Passing => {}
                },
                None if !batch.messages.is_empty() => break,
                None if clock::monotonic_ns() >= deadline_ns => {
                    let why = consumer.context().take_last_error();
                    return Err(self.failed("read", &why.as_deref().unwrap_or("no answer")));
                }
                None => {}
            }
        }
        Ok(batch)
    }
}

impl LogAccess for Past {
    async fn open(&mut self, epoch: u64, from: u64) -> Result<Opened, EngineError> {
        self.open = None;
        let (consumer, from) = (self.consumer()?, offset_of(from));
        let looker = match &self.looker {
            Some(looker) => looker.clone(),
            None => self.looker.insert(Arc::new(self.connection.looker()?)).clone(),
        };
        // Its events are of no interest, but must not pile up.
        let _ = looker.poll(Duration::ZERO);
        let Some(mut open) = self.find(&looker, epoch, from)? else { return Ok(LIFE_GONE) };
        let (low, high) = self.bounds(&looker, &open)?;
        // A partition that was set back has other messages at the same offsets.
        if from >= high {
            return Ok(LIFE_GONE);
        }
        if from < low {
            return Ok(Opened::Gone { first: position_of(low) });
        }
        open.end = high;
        let mut assigned = TopicPartitionList::new();
        let added = assigned.add_partition_offset(&open.topic, open.partition, Offset::Offset(from));
        let is_assigned = added.and_then(|()| consumer.assign(&assigned));
        is_assigned.map_err(|error| self.failed("assign a partition", &error))?;
        self.open = Some(open);
        Ok(Opened::AtPosition)
    }

    async fn read(&mut self, into: &mut ReadMessages<'_>) -> Result<Option<u64>, EngineError> {
        let (Some(mut open), Some(consumer), Some(looker)) =
            (self.open.clone(), self.consumer.clone(), self.looker.clone())
        else {
            return Ok(None);
        };
        // The client has been at this end, and says so once.
        if open.next >= open.end {
            open.end = self.bounds(&looker, &open)?.1;
            if open.next >= open.end {
                return Ok(None);
            }
        }
        let before = open.next;
        let Batch { messages, is_at_end, is_holed } = self.receive(&consumer)?;
        let ids = self.ids.of_topics(&looker, open.broker, &[&open.topic]);
        let ids = ids.map_err(|why| self.failed("ids of the topics", &why))?;
        if ids != [Ok(open.id)] {
            return Ok(None);
        }
        for message in &messages {
            let offset = message.offset();
            if offset < open.next {
                continue;
            }
            open.next = offset.saturating_add(1);
            match message.payload() {
                Some(payload) => {
                    into.take(position_of(offset), message_of(message, &RecordHeaders(message), payload));
                }
                // A tombstone.
                None => into.skip(),
            }
        }
        if is_at_end {
            // Everything before it has been received; what was not given are records without messages.
            open.next = open.next.max(open.end);
        }
        let next = open.next;
        self.open = Some(open);
        Ok((next > before && !is_holed).then(|| position_of(next)))
    }

    async fn close(&mut self) {
        (self.open, self.consumer, self.looker) = (None, None, None);
    }
}
