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

mod connection;
mod headers;
mod positions;

use std::{fmt, mem, str::FromStr, time::Duration};

use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    consumer::Consumer as _,
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::BorrowedMessage,
};
use regex::Regex;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use self::{
    connection::{Auth, Connection, Consumer},
    headers::RecordHeaders,
    positions::{Continuation, Place, Positions},
};
use super::{
    Source, SourceContext, SourceError,
    engine::{self, BlockingReader, EngineError, Ingest, Stopped},
    kind::{Configured, OptionChecks, SourceOptions},
    mapping::{MapOptions, Mapping, Message},
    tls::Tls,
};
use crate::limits::{SOURCE_PARTITIONS_MAX, SOURCE_SUBJECTS_MAX};
use tickcast_common::clock;
use tickcast_proto::units::{format_duration, parse_duration_ns};

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
            auth: Auth::default(),
            tls: Tls::default(),
            map: MapOptions::default(),
        }
    }
}

/// Where to begin: `new`, `all`, an offset of every partition, a time (RFC 3339) or a window before now (`10m`).
#[derive(Clone, Copy, Debug, PartialEq)]
enum Start {
    /// With the next message.
    New,
    /// With the oldest message.
    All,
    /// With this offset.
    Offset(i64),
    /// With the first message of this time or later.
    Time(jiff::Timestamp),
    /// With the first message that is not older than this many nanoseconds.
    Window(u64),
}

impl Start {
    /// The time to begin with, milliseconds since 1970.
    fn time_ms(self) -> Option<i64> {
        match self {
            Start::New | Start::All | Start::Offset(_) => None,
            Start::Time(time) => Some(time.as_millisecond()),
            Start::Window(window_ns) => {
                let from_ns = clock::realtime_ns().saturating_sub(window_ns);
                Some((from_ns / 1_000_000).cast_signed())
            }
        }
    }
}

impl FromStr for Start {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Start, &'static str> {
        match text {
            "new" => return Ok(Start::New),
            "all" => return Ok(Start::All),
            _ => {}
        }
        if let Ok(offset @ 0..) = text.parse() {
            return Ok(Start::Offset(offset));
        }
        if let Ok(window_ns) = parse_duration_ns(text) {
            return Ok(Start::Window(window_ns));
        }
        text.parse().map(Start::Time).map_err(
            |_| "use new, all, an offset, a window such as 10m or a time such as 2026-01-31T08:00:00Z",
        )
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Start::New => f.write_str("new"),
            Start::All => f.write_str("all"),
            Start::Offset(offset) => write!(f, "{offset}"),
            Start::Time(time) => write!(f, "{time}"),
            Start::Window(ns) => f.write_str(&format_duration(*ns)),
        }
    }
}

impl Serialize for Start {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Start {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Start, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(offset) => i64::try_from(offset)
                .map(Start::Offset)
                .map_err(|_| D::Error::custom("the offset is too large")),
            Written::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

/// Which topics to read.
#[derive(Clone, Debug)]
enum Wanted {
    Name(String),
    Matching(Regex),
}

impl Wanted {
    fn new(text: &str) -> Result<Wanted, String> {
        if text.starts_with('^') {
            return Regex::new(text)
                .map(Wanted::Matching)
                .map_err(|error| error.to_string().replace('\n', " "));
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        match (1..=249).contains(&text.len()) && text.bytes().all(is_name) {
            true => Ok(Wanted::Name(text.to_owned())),
            false => Err("not the name of a topic; a regular expression begins with ^".into()),
        }
    }

    /// Whether this topic is wanted. Kafka's own topics begin with two underscores and are read only by name.
    fn matches(&self, topic: &str) -> bool {
        match self {
            Wanted::Name(name) => name == topic,
            Wanted::Matching(expression) => !topic.starts_with("__") && expression.is_match(topic),
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
        let connection = Connection::new(self.servers, self.auth, self.tls, checks);
        let mapping = Mapping::new(&self.map, checks)?;
        let pattern = mapping.pattern();
        let source = Kafka {
            connection: connection?,
            wanted,
            start: self.start,
            mapping,
            positions: Positions::default(),
            missing: Vec::new(),
        };
        Some(Configured::new(pattern, source))
    }
}

/// A configured source, and its place in each partition.
#[derive(Clone, Debug)]
struct Kafka {
    connection: Connection,
    wanted: Vec<Wanted>,
    start: Start,
    mapping: Mapping,
    positions: Positions,
    /// Topics that the cluster did not have at the last check.
    missing: Vec<String>,
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
            if let Some(ends) = consumer.context().take_ends() {
                ingest.set_lag(self.positions.lag(&ends));
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

/// Whether an error says that the topic does not exist. Other errors may hide one that exists.
fn is_unknown(code: Code) -> bool {
    matches!(code, Code::UnknownTopic | Code::UnknownTopicOrPartition)
}

impl Kafka {
    /// Checks the cluster's topics. Returns whether the partitions have changed.
    fn look(&mut self, consumer: &Consumer, ingest: &Ingest<'_>) -> Result<bool, EngineError> {
        let mut found: Vec<(String, usize)> = Vec::new();
        let (mut missing, mut unreadable) = (Vec::new(), Vec::new());
        for wanted in &self.wanted {
            let name = match wanted {
                Wanted::Name(name) => Some(&**name),
                Wanted::Matching(_) => None,
            };
            let metadata = consumer.fetch_metadata(name, ANSWER);
            let metadata = metadata.map_err(|error| self.failed(consumer, "look at the topics", &error))?;
            let before = found.len();
            for topic in metadata.topics().iter().filter(|topic| wanted.matches(topic.name())) {
                if let Some(error) = topic.error() {
                    if !is_unknown(error.into()) {
                        unreadable.push(topic.name().to_owned());
                    }
                    continue;
                }
                if !topic.partitions().is_empty()
                    && !found[..before].iter().any(|(known, _)| known == topic.name())
                {
                    found.push((topic.name().to_owned(), topic.partitions().len()));
                }
            }
            if let Some(name) = name.filter(|name| !found.iter().any(|(known, _)| known == name)) {
                let why = metadata.topics().first().and_then(|topic| topic.error());
                let why =
                    why.map_or("there is no such topic".to_owned(), |code| Code::from(code).to_string());
                if !self.missing.iter().any(|known| known == name) {
                    ingest.warn(&format!("topic {name}: {why}"));
                }
                missing.push(name.to_owned());
            }
        }
        self.missing = missing;
        let partitions: usize = found.iter().map(|(_, partitions)| partitions).sum();
        if partitions > SOURCE_PARTITIONS_MAX {
            return Err(EngineError(format!(
                "the topics have {partitions} partitions, more than {SOURCE_PARTITIONS_MAX}: read fewer topics, or divide them among sources"
            )));
        }
        let has_changed = self.positions.update(&found, unreadable);
        if found.is_empty() {
            return Err(EngineError(match &*self.missing {
                [] => "no topic matches".into(),
                missing => format!("there is no topic {}", missing.join(", ")),
            }));
        }
        Ok(has_changed)
    }

    /// Finds the place in each partition, counts what is lost before it, and lets the client read from there.
    fn assign(&mut self, consumer: &Consumer, ingest: &Ingest<'_>) -> Result<(), EngineError> {
        let by_time = self.offsets_by_time(consumer)?;
        let mut assigned = TopicPartitionList::new();
        let mut failure = None;
        for (topic, partition, place) in self.positions.present() {
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
            let next = match *place {
                Place::Next(next) => match Continuation::of(next, low, high) {
                    Continuation::Same => next,
                    Continuation::Passed { lost } => {
                        let why = format!(
                            "partition {partition} of {topic} no longer has offsets {next} to {}",
                            low - 1
                        );
                        ingest.count_hole(lost, &why);
                        low
                    }
                    Continuation::SetBack => {
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
            if let Err(error) = assigned.add_partition_offset(topic, partition, Offset::Offset(next)) {
                failure = Some(("assign partitions".into(), error));
                break;
            }
        }
        if let Some((what, error)) = failure {
            return Err(self.failed(consumer, &what, &error));
        }
        consumer.assign(&assigned).map_err(|error| self.failed(consumer, "assign partitions", &error))
    }

    /// The offsets of the start time in partitions that have not begun; `None` if no time is wanted.
    fn offsets_by_time(&mut self, consumer: &Consumer) -> Result<Option<TopicPartitionList>, EngineError> {
        let Some(time_ms) = self.start.time_ms() else { return Ok(None) };
        let mut asked = TopicPartitionList::new();
        for (topic, partition, _) in self.positions.present().filter(|(.., place)| **place == Place::Start) {
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
        let Some(place) = self.positions.place(topic, message.partition()) else { return Ok(()) };
        // It has been read before.
        if matches!(*place, Place::Next(next) if offset < next) {
            return Ok(());
        }
        *place = Place::Next(offset.saturating_add(1));
        let Some(payload) = message.payload() else {
            ingest.skip(topic, &format_args!("offset {offset} is a tombstone: it has no payload"));
            return Ok(());
        };
        let time_ms = message.timestamp().to_millis().and_then(|time_ms| u64::try_from(time_ms).ok());
        ingest.take_blocking(Message {
            subject: topic,
            key: message.key().and_then(|key| str::from_utf8(key).ok()),
            headers: &RecordHeaders(message),
            payload,
            time_ns: time_ms.and_then(|time_ms| time_ms.checked_mul(1_000_000)),
        })
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

#[cfg(test)]
mod tests;
