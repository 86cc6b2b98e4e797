//! Reads Kafka topics, each partition in order and without loss as long as the cluster keeps what has not been read.
//!
//! The source assigns all partitions to itself, joins no consumer group and commits nothing: every server with this source
//! reads everything. Places are kept here: for each partition, the offset after the last message read.
//!
//! ```text
//!  attempt: create client -> check the topics -> find the places -> assign -> poll until an error
//!                                 ^                      |
//!                                 | from time to time    v
//!                                 +-- new partitions     retention has passed a place: counted as lost, continue at the oldest
//!                                                        the log ends before a place: it was recreated, read it from its beginning
//! ```
//!
//! The offsets of a compacted or transactional topic have holes. So a jump between two messages is not a loss; only messages
//! that retention deleted before they were read are lost.

pub(crate) mod connection;
mod headers;
mod logged;
pub(crate) mod native;
mod past;
mod positions;
mod start;
mod topics;

use std::{mem, sync::Arc, time::Duration};

use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    consumer::Consumer as _,
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::BorrowedMessage,
};
use serde::{Deserialize, Serialize};

use self::{
    connection::{Auth, Connection, Consumer},
    logged::{Ids, LOOK_IDS_NS, OFFSET_MAX, TRUST_NS, position_of},
    past::Past,
    positions::{Continuation, Partition, Place, Positions},
    start::Start,
    topics::{Found, Wanted, is_unknown},
};
pub(crate) use self::{
    headers::RecordHeaders,
    logged::{life_epoch, offset_position},
    topics::is_name,
};
use super::{
    Source, SourceContext, SourceError,
    engine::{self, BlockingReader, EngineError, Ingest, Stopped},
    kind::{Configured, OptionChecks, SourceOptions},
    log_reader::{self, ReadBack},
    mapping::{MapOptions, Mapping, Message},
    position::PositionKind,
    tls::Tls,
};
use crate::limits::{SOURCE_LOG_TOPICS_MAX, SOURCE_PARTITIONS_MAX, SOURCE_SUBJECTS_MAX};
use tickcast_common::{clock, values::Time};

/// Longest wait for a message. The source notices the server's stop within this time.
const WAIT: Duration = Duration::from_millis(50);
/// Timeout for an answer of the cluster. A stopped broker gives none.
const ANSWER: Duration = Duration::from_secs(2);
/// Messages taken before the rings are pushed and the client's events are checked.
const BATCH_MESSAGES: usize = 1_000;
/// How often the source looks for new topics and partitions.
const LOOK_NS: u64 = 30_000_000_000;
/// The same while a topic is missing.
const LOOK_SOON_NS: u64 = 2_000_000_000;
/// Maximum events of a client that are searched for the reason of a failure.
const EVENTS_MAX: usize = 64;

/// A `[[source]]` of kind `kafka`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Addresses of brokers of one cluster: `host:9092`, `tls://host:9093`.
    servers: Vec<String>,
    /// Topics to read; one that begins with `^` is a regular expression.
    topics: Vec<String>,
    /// Where to begin.
    start: Start,
    /// Whether the offsets of a partition are also the sequences of the topic that it feeds.
    position: PositionKind,
    /// With `position = "log"`: whether clients whose positions are older than the history get the ticks from the cluster.
    read_back: bool,
    /// Messages to read per second for such clients.
    read_back_rate: u32,
    /// Maximum time in which reading must make progress for such a client.
    read_back_timeout: Time,
    auth: Auth,
    tls: Tls,
    map: MapOptions,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            servers: vec!["127.0.0.1:9092".into()],
            topics: Vec::new(),
            start: Start::New,
            position: PositionKind::Local,
            read_back: true,
            read_back_rate: log_reader::RATE_DEFAULT,
            read_back_timeout: log_reader::timeout_default(),
            auth: Auth::default(),
            tls: Tls::default(),
            map: MapOptions::default(),
        }
    }
}

impl SourceOptions for Options {
    const KIND: &'static str = "kafka";
    const REQUIRED: &'static [&'static str] = &["topics"];

    fn configure(self, checks: &mut OptionChecks) -> Option<Configured> {
        checks.within("topics", self.topics.len(), 1, SOURCE_SUBJECTS_MAX);
        let mut wanted = Vec::new();
        for topic in &self.topics {
            match Wanted::new(topic) {
                Ok(topic) => wanted.push(topic),
                Err(error) => checks.refuse("topics", format!("{topic:?}: {error}")),
            }
        }
        let is_logged = self.position == PositionKind::Log;
        // Other cases show only in the cluster.
        let are_names = wanted.iter().all(|wanted| matches!(wanted, Wanted::Name(_)));
        if is_logged && are_names && self.topics.len() > 1 && !self.map.tells_subjects_apart(&self.topics) {
            checks.refuse("position", logged::several_topics());
        }
        let read_back =
            ReadBack { is_on: self.read_back, rate: self.read_back_rate, timeout: self.read_back_timeout };
        read_back.check(checks);
        let connection = Connection::new(self.servers, self.auth, self.tls, checks);
        let mapping = Mapping::new(&self.map, checks)?;
        let (pattern, connection) = (mapping.pattern(), connection?);
        let past = Past::new(connection.clone(), wanted.clone());
        let past = log_reader::Reader::new(past, mapping.clone(), read_back.rate);
        let source = Kafka::new(connection, wanted, self.start, (self.map, mapping), is_logged);
        let configured = Configured::new(pattern, source).reading_back(is_logged);
        Some(if is_logged { configured.with_log_reader(read_back, past) } else { configured })
    }
}

/// A configured source, and its place in each partition.
#[derive(Clone)]
struct Kafka {
    connection: Connection,
    wanted: Vec<Wanted>,
    start: Start,
    map: MapOptions,
    mapping: Mapping,
    positions: Positions,
    /// Topics that the cluster did not have at the last check.
    missing: Vec<String>,
    /// A broker that has answered.
    broker: Option<i32>,
    /// Whether offsets are also the sequences of the topics.
    is_logged: bool,
    /// With positions: the client that looks at the ids.
    looker: Option<Arc<Consumer>>,
    /// With positions: how ids are found, and the cluster's once it is known.
    ids: Ids,
    cluster: Option<String>,
    /// For how long a look at the ids is relied on, nanoseconds.
    trust_ns: u64,
    /// When the ids were looked at last, a time of [`clock::monotonic_ns`]; 0: not since partitions were assigned.
    identified_ns: u64,
    has_caught_up: bool,
}

impl Kafka {
    fn new(
        connection: Connection,
        wanted: Vec<Wanted>,
        start: Start,
        (map, mapping): (MapOptions, Mapping),
        is_logged: bool,
    ) -> Kafka {
        Kafka {
            connection,
            wanted,
            start,
            map,
            mapping,
            positions: Positions::default(),
            missing: Vec::new(),
            broker: None,
            is_logged,
            looker: None,
            ids: Ids::default(),
            cluster: None,
            trust_ns: TRUST_NS,
            identified_ns: 0,
            has_caught_up: false,
        }
    }
}

impl Source for Kafka {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        engine::run_blocking(context, self.mapping.clone(), self);
        Ok(())
    }
}

impl BlockingReader for Kafka {
    fn read(&mut self, ingest: &mut Ingest<'_>) -> Result<Stopped, EngineError> {
        let consumer = self.connection.consumer()?;
        self.looker = None;
        // Another cluster may have the addresses now.
        self.cluster = None;
        self.look(&consumer, ingest)?;
        self.assign(&consumer, ingest)?;
        ingest.connected(&self.connection.to_string());
        let mut looked_ns = clock::monotonic_ns();
        while !ingest.is_stopping() {
            if ingest.tick().is_err() {
                return Ok(Stopped);
            }
            let mut wait = WAIT;
            for _ in 0..BATCH_MESSAGES {
                match consumer.poll(mem::take(&mut wait)) {
                    None => break,
                    Some(Ok(message)) => {
                        if !self.is_of_its_life(&consumer, ingest)? {
                            // The messages that wait may be of either life.
                            self.assign(&consumer, ingest)?;
                            break;
                        }
                        if self.take(&message, ingest).is_err() {
                            return Ok(Stopped);
                        }
                    }
                    Some(Err(error)) => match Fault::of(&error) {
                        Fault::Ends => return Err(self.failed(&consumer, "reading", &error)),
                        // The client does not say which partition, so check and reassign all places.
                        Fault::OutOfRange => self.assign(&consumer, ingest)?,
                        Fault::Message => ingest.skip("a partition", &error),
                        Fault::Topic => {
                            ingest.warn(&error.to_string());
                            looked_ns = 0;
                        }
                        Fault::Passing => ingest.warn(&error.to_string()),
                    },
                }
            }
            ingest.flush();
            let ends = consumer.context().take_ends();
            if let Some(ends) = &ends {
                ingest.set_lag(self.positions.lag(ends));
            }
            if self.is_logged {
                if !self.has_caught_up && self.positions.has_caught_up(&ends.unwrap_or_default()) {
                    self.has_caught_up = true;
                    ingest.caught_up();
                }
                // Before the next message, so that it need not wait for the answer.
                let is_due = clock::monotonic_ns() >= self.identified_ns.saturating_add(LOOK_IDS_NS);
                if is_due && self.identify(&consumer, ingest)? {
                    self.assign(&consumer, ingest)?;
                }
            }
            let pause_ns = if self.missing.is_empty() { LOOK_NS } else { LOOK_SOON_NS };
            if clock::monotonic_ns() >= looked_ns.saturating_add(pause_ns) {
                looked_ns = clock::monotonic_ns();
                if self.look(&consumer, ingest)? {
                    self.assign(&consumer, ingest)?;
                }
            }
        }
        Ok(Stopped)
    }
}

/// What a client error means for the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Another attempt is needed, with another client.
    Ends,
    /// A place is not within the bounds of its partition, which the client no longer reads.
    OutOfRange,
    /// A message cannot be decoded. The client skips it.
    Message,
    /// A topic or partition does not exist.
    Topic,
    /// The client recovers by itself.
    Passing,
}

impl Fault {
    fn of(error: &KafkaError) -> Fault {
        if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
            return Fault::Ends;
        }
        match error.rdkafka_error_code() {
            Some(
                Code::AllBrokersDown
                | Code::Authentication
                | Code::SaslAuthenticationFailed
                | Code::SSL
                | Code::TopicAuthorizationFailed
                | Code::ClusterAuthorizationFailed,
            ) => Fault::Ends,
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation) => Fault::OutOfRange,
            Some(
                Code::BadMessage
                | Code::BadCompression
                | Code::InvalidMessage
                | Code::InvalidMessageSize
                | Code::MessageSizeTooLarge
                | Code::Underflow,
            ) => Fault::Message,
            Some(Code::UnknownPartition) => Fault::Topic,
            Some(code) if is_unknown(code) => Fault::Topic,
            _ => Fault::Passing,
        }
    }
}

impl Kafka {
    /// Checks the cluster's topics. Returns whether the partitions have changed.
    fn look(&mut self, consumer: &Consumer, ingest: &Ingest<'_>) -> Result<bool, EngineError> {
        let found = topics::look(consumer, &self.wanted, ANSWER);
        let Found { topics, unreadable, missing, broker } =
            found.map_err(|error| self.failed(consumer, "look at the topics", &error))?;
        for (name, why) in &missing {
            if !self.missing.iter().any(|known| known == name) {
                ingest.warn(&format!("topic {name}: {why}"));
            }
        }
        self.missing = missing.into_iter().map(|(name, _)| name).collect();
        self.broker = broker.or(self.broker);
        let partitions: usize = topics.iter().map(|(_, partitions)| partitions).sum();
        if partitions > SOURCE_PARTITIONS_MAX {
            return Err(EngineError(format!(
                "the topics have {partitions} partitions, more than {SOURCE_PARTITIONS_MAX}: read fewer topics, or divide them among sources"
            )));
        }
        if self.is_logged {
            logged::one_log_each(&self.map, &topics).map_err(EngineError)?;
            if topics.len() > SOURCE_LOG_TOPICS_MAX {
                return Err(EngineError(format!(
                    "position = \"log\": {} topics, more than {SOURCE_LOG_TOPICS_MAX}: divide them among sources",
                    topics.len()
                )));
            }
        }
        let has_changed = self.positions.update(&topics, unreadable);
        if topics.is_empty() {
            return Err(EngineError(match &*self.missing {
                [] => "no topic matches".into(),
                missing => format!("there is no topic {}", missing.join(", ")),
            }));
        }
        Ok(has_changed)
    }

    /// Looks at the ids of the topics. Returns whether one was made again.
    fn identify(&mut self, consumer: &Consumer, ingest: &Ingest<'_>) -> Result<bool, EngineError> {
        if self.looker.is_none() {
            let looker = Arc::new(self.connection.looker()?);
            let broker = native::answering_broker(looker.client(), ANSWER);
            self.broker = broker.map_err(|error| EngineError::new("look at the brokers", error))?;
            self.looker = Some(looker);
        }
        let looker = self.looker.clone();
        let consumer = looker.as_deref().unwrap_or(consumer);
        // Its events are of no interest, but must not pile up.
        let _ = consumer.poll(Duration::ZERO);
        let now_ns = clock::monotonic_ns();
        let cluster = match &self.cluster {
            Some(cluster) => cluster.clone(),
            None => {
                let cluster = self.ids.of_cluster(consumer);
                cluster.ok_or_else(|| EngineError(format!("{}: the cluster says no id", self.connection)))?
            }
        };
        let names = self.positions.names();
        let ids = self.ids.of_topics(consumer, self.broker.unwrap_or_default(), &names);
        let ids = ids.map_err(|why| EngineError(format!("{}: ids of the topics: {why}", self.connection)))?;
        let mut known = Vec::with_capacity(ids.len());
        for (name, id) in names.iter().zip(ids) {
            known.push(id.map_err(|why| EngineError(logged::without_id(name, why)))?);
        }
        let made_again = self.positions.identify(&cluster, &known);
        self.cluster = Some(cluster);
        self.identified_ns = now_ns;
        for topic in &made_again {
            ingest.warn(&format!("topic {topic} was deleted and made again: reading it from its beginning"));
        }
        Ok(!made_again.is_empty())
    }

    /// Whether a message that was just received is of the life of its topic that is known. Looks at the ids if the last look is too long
    /// ago.
    fn is_of_its_life(&mut self, consumer: &Consumer, ingest: &Ingest<'_>) -> Result<bool, EngineError> {
        let is_trusted = clock::monotonic_ns() < self.identified_ns.saturating_add(self.trust_ns);
        Ok(!self.is_logged || is_trusted || !self.identify(consumer, ingest)?)
    }

    /// Finds the place in each partition, counts what is lost before it, and lets the client read from there.
    fn assign(&mut self, consumer: &Consumer, ingest: &Ingest<'_>) -> Result<(), EngineError> {
        if self.is_logged {
            self.identify(consumer, ingest)?;
        }
        let by_time = self.offsets_by_time(consumer)?;
        let mut assigned = TopicPartitionList::new();
        let (mut failure, mut set_back) = (None, false);
        for (topic, partition, Partition { place, log }) in self.positions.present() {
            // Each partition takes a request to the cluster; the server may stop between two.
            if ingest.is_stopping() {
                return Ok(());
            }
            let (low, high) = match consumer.fetch_watermarks(topic, partition, ANSWER) {
                Ok(bounds) => bounds,
                Err(error) => {
                    failure = Some((format!("look at partition {partition} of {topic}"), error));
                    break;
                }
            };
            if self.is_logged && high > OFFSET_MAX {
                return Err(EngineError(format!(
                    "partition {partition} of {topic} ends at {high}: positions stay below 2^53"
                )));
            }
            let is_begun = matches!(*place, Place::Next(_));
            let mut is_whole = is_begun && log.complete_from > 0;
            let next = match *place {
                Place::Next(next) => match Continuation::of(next, low, high) {
                    Continuation::Same => next,
                    Continuation::Passed { lost } => {
                        let why = format!(
                            "partition {partition} of {topic} no longer has offsets {next} to {}",
                            low - 1
                        );
                        ingest.count_hole(lost, &why);
                        is_whole = false;
                        low
                    }
                    Continuation::SetBack => {
                        log.set_back += 1;
                        set_back = true;
                        is_whole = false;
                        ingest.warn(&format!(
                            "partition {partition} of {topic} was made again or cut: reading it from its beginning"
                        ));
                        low
                    }
                },
                Place::Beginning => low,
                Place::Start => match self.start {
                    Start::New => high,
                    Start::All => low,
                    Start::Offset(offset) => {
                        let next = offset.clamp(low, high.max(low));
                        if next != offset {
                            ingest.warn(&format!(
                                "start = {offset}: partition {partition} of {topic} has {low} to {high}; reading it from {next}"
                            ));
                        }
                        next
                    }
                    Start::Time(_) | Start::Window(_) => {
                        let at = by_time.as_ref().and_then(|list| list.find_partition(topic, partition));
                        match at.map(|at| at.offset()) {
                            Some(Offset::Offset(offset)) => offset.clamp(low, high.max(low)),
                            // There is no message of that time or later.
                            _ => high,
                        }
                    }
                },
            };
            *place = Place::Next(next);
            log.target = log.target.or(Some(high));
            if !is_whole {
                // What was read before a hole or in another life says nothing about what follows.
                log.complete_from = position_of(next);
            }
            if let Err(error) = assigned.add_partition_offset(topic, partition, Offset::Offset(next)) {
                failure = Some(("assign partitions".into(), error));
                break;
            }
        }
        if let Some((what, error)) = failure {
            return Err(self.failed(consumer, &what, &error));
        }
        if self.is_logged {
            // The epochs change of partitions that were set back.
            if set_back && self.identify(consumer, ingest)? {
                return Err(EngineError("a topic was made again just now".into()));
            }
            // A topic may have been made again since the look before: the first message needs another one.
            self.identified_ns = 0;
        }
        consumer.assign(&assigned).map_err(|error| self.failed(consumer, "assign partitions", &error))
    }

    /// The offsets of the start time in partitions that have not begun; `None` if no time is wanted.
    fn offsets_by_time(&mut self, consumer: &Consumer) -> Result<Option<TopicPartitionList>, EngineError> {
        let Some(time_ms) = self.start.time_ms() else { return Ok(None) };
        let mut asked = TopicPartitionList::new();
        for (topic, partition, _) in
            self.positions.present().filter(|(.., partition)| partition.place == Place::Start)
        {
            // It fails only for a value that is not an offset.
            let _ = asked.add_partition_offset(topic, partition, Offset::Offset(time_ms));
        }
        if asked.count() == 0 {
            return Ok(None);
        }
        let offsets = consumer.offsets_for_times(asked, ANSWER);
        offsets.map(Some).map_err(|error| self.failed(consumer, "look for the start time", &error))
    }

    /// Publishes a message, if it is new.
    fn take(&mut self, message: &BorrowedMessage<'_>, ingest: &mut Ingest<'_>) -> Result<(), Stopped> {
        let (topic, offset) = (message.topic(), message.offset());
        let Some(Partition { place, log }) = self.positions.partition(topic, message.partition()) else {
            return Ok(());
        };
        // It has been read before.
        if matches!(*place, Place::Next(next) if offset < next) {
            return Ok(());
        }
        *place = Place::Next(offset.saturating_add(1));
        let at = self.is_logged.then(|| log.at(offset));
        let Some(payload) = message.payload() else {
            ingest.skip(topic, &format_args!("offset {offset} is a tombstone: it has no payload"));
            return Ok(());
        };
        ingest.take_blocking_at(message_of(message, &RecordHeaders(message), payload), at)
    }

    /// The failure of an attempt, with the reason that the client has reported.
    fn failed(&self, consumer: &Consumer, what: &str, error: &KafkaError) -> EngineError {
        // A call that waits for an answer says only that there was none; the reason is among the events. Messages among them are
        // read again by the next attempt.
        for _ in 0..EVENTS_MAX {
            // `None` may also be an event without information, such as a line of the client's log.
            let _ = consumer.poll(Duration::ZERO);
        }
        let why = consumer.context().take_last_error().unwrap_or_else(|| error.to_string());
        EngineError(format!("{}: {what}: {why}", self.connection))
    }
}

/// A message with this payload, as the mapping takes it.
fn message_of<'a>(
    message: &'a BorrowedMessage<'_>,
    headers: &'a RecordHeaders<'_, '_>,
    payload: &'a [u8],
) -> Message<'a> {
    let time_ms = message.timestamp().to_millis().and_then(|time_ms| u64::try_from(time_ms).ok());
    Message {
        subject: message.topic(),
        key: message.key().and_then(|key| str::from_utf8(key).ok()),
        headers,
        payload,
        time_ns: time_ms.and_then(|time_ms| time_ms.checked_mul(1_000_000)),
    }
}

#[cfg(test)]
mod logged_tests;
#[cfg(test)]
pub(crate) mod tests;
