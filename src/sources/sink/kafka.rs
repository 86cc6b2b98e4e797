//! Produces to Kafka topics. Each tick is confirmed once all replicas in sync have it (`acks=all`), with its position: the offset + 1, and
//! an epoch that names the partition and the life of its topic, as a source with `position = "log"` gives them.
//!
//! ```text
//!  outlet -> send -> librdkafka: queue, batches, retries (idempotent) -> brokers
//!    ^                              |
//!    |                              v  delivery reports, on the client's polling thread
//!    +-- settle <----------- Deliveries
//! ```
//!
//! librdkafka tries a batch again by itself. The producer is idempotent, so that neither repeats a tick nor changes the order. A tick that
//! it gives up is certainly not stored if it was never sent; otherwise it may be.
//!
//! A report does not say which life of the topic it is from. So the sink looks at the topic's id at most once a second, and at once when
//! an offset goes back.

use std::{
    collections::HashMap,
    convert::Infallible,
    mem,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::select;
use rdkafka::{
    ClientContext, Message as _,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, task::spawn_blocking};

use super::{Confirmed, Outlet, Publish, PublishId, Writer, kind::SinkOptions, template::TopicTemplate};
use crate::{
    engine::EngineError,
    kafka::{
        connection::{Auth, Connection, Events},
        is_name, life_epoch,
        native::{self, TopicId},
        offset_position,
    },
    kind::OptionChecks,
    limits::{SINK_STREAMS_MAX, SINK_TAKEN_MAX, SOURCE_PARTITIONS_MAX},
    tls::Tls,
};
use tickcast_common::clock;
use tickcast_core::routes::Outcome;

/// Header with the tick's topic.
const TOPIC: &str = "Tickcast-Topic";
/// Header with the tick's key, a number; only if it has one.
const KEY: &str = "Tickcast-Key";
/// Header with the producer's time, nanoseconds since 1970.
const TIME: &str = "Tickcast-Time";
/// Header with a digest of the message id; only if there is one, and with `message_ids = "header"`.
const MESSAGE_ID: &str = "Tickcast-Message-Id";
/// Longest wait for an answer about the cluster or a topic.
const ANSWER: Duration = Duration::from_secs(2);
/// Longest wait for the reports about what is given up with a connection: they need no broker.
const LAST_REPORTS: Duration = Duration::from_millis(500);
/// Longest time for which what is known about a topic's life is relied on, nanoseconds.
const LOOK_NS: u64 = 1_000_000_000;
/// Time until a topic is looked at again after there was no answer about it, nanoseconds: each wait holds up the sink.
const LOOK_LATER_NS: u64 = 10_000_000_000;

/// Settings of the producer, under librdkafka's names, besides those of every client and the timeouts.
const SETTINGS: [(&str, &str); 6] = [
    ("acks", "all"),
    ("enable.idempotence", "true"),
    // Ticks that come while a request is under way make the next batch.
    ("linger.ms", "0"),
    // As the Java client: the same key is in the same partition, whoever produces it.
    ("partitioner", "murmur2_random"),
    // How long a topic may be missing before its ticks are refused: one that brokers have just made is not known everywhere.
    ("topic.metadata.propagation.max.ms", "1000"),
    // The outlet's bound is lower.
    ("queue.buffering.max.kbytes", "65536"),
];

/// What happens to publishes with message ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageIds {
    /// They are refused: Kafka does not recognise the ids.
    #[default]
    Refuse,
    /// The id is in a header. Whoever reads the topic must drop ticks whose id it has seen.
    Header,
}

/// A `[[sink]]` of kind `kafka`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Addresses of brokers of one cluster: `host:9092`, `tls://host:9093`.
    servers: Vec<String>,
    /// Template of Kafka's topic. With `{topic}`, clients make as many as they publish topics, if the brokers make topics by themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    /// Whether records have the tick's topic, key and time as headers.
    headers: bool,
    /// What happens to publishes with message ids.
    message_ids: MessageIds,
    auth: Auth,
    tls: Tls,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            servers: vec!["127.0.0.1:9092".into()],
            topic: None,
            headers: true,
            message_ids: MessageIds::Refuse,
            auth: Auth::default(),
            tls: Tls::default(),
        }
    }
}

impl SinkOptions for Options {
    const KIND: &'static str = "kafka";
    const REQUIRED: &'static [&'static str] = &["topic"];
    type Writer = Kafka;

    fn takes_message_ids(&self) -> bool {
        self.message_ids == MessageIds::Header
    }

    fn configure(self, checks: &mut OptionChecks) -> Option<Kafka> {
        let connection = Connection::new(self.servers, self.auth, self.tls, checks);
        let topic = self.topic.unwrap_or_default();
        match TopicTemplate::parse(&topic, ".") {
            Ok(topic) => Some(Kafka { connection: connection?, topic, has_headers: self.headers }),
            Err(why) => {
                checks.refuse("topic", format!("{topic:?}: {why}"));
                None
            }
        }
    }
}

/// A configured sink.
#[derive(Clone, Debug)]
pub struct Kafka {
    connection: Connection,
    topic: TopicTemplate,
    has_headers: bool,
}

type Producer = Arc<ThreadedProducer<Deliveries>>;

/// A producer whose cluster has answered.
pub struct Connected {
    producer: Producer,
    cluster: Option<String>,
    /// A broker that has answered.
    broker: i32,
}

/// A report about a tick.
#[derive(Debug)]
struct Delivery {
    id: PublishId,
    topic: String,
    result: Result<Stored, NotStored>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stored {
    partition: i32,
    /// Negative if the broker does not say: it had the tick from an attempt whose answer was lost.
    offset: i64,
}

#[derive(Clone, Copy, Debug)]
struct NotStored {
    code: Option<Code>,
    is_certain: bool,
}

/// What the client reports, from its polling thread.
#[derive(Default)]
struct Deliveries {
    events: Events,
    reported: Mutex<Reported>,
    wake: Notify,
}

#[derive(Default)]
struct Reported {
    /// Bound: the ticks that the outlet lets the writer take.
    deliveries: Vec<Delivery>,
    /// Why this producer is of no use any more.
    fault: Option<String>,
}

impl Deliveries {
    fn reported(&self) -> MutexGuard<'_, Reported> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.events.log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let ends = matches!(
            error.rdkafka_error_code(),
            Some(
                Code::AllBrokersDown
                    | Code::Authentication
                    | Code::SaslAuthenticationFailed
                    | Code::SSL
                    | Code::ClusterAuthorizationFailed
                    | Code::Fatal
            )
        );
        self.events.error(error, reason);
        if ends {
            let why = self.events.take_last_error().unwrap_or_else(|| reason.to_owned());
            self.reported().fault.get_or_insert(why);
            self.wake.notify_one();
        }
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<PublishId>;

    fn delivery(&self, report: &DeliveryResult<'_>, id: Box<PublishId>) {
        let (message, result) = match report {
            Ok(message) => (message, Ok(Stored { partition: message.partition(), offset: message.offset() })),
            Err((error, message)) => {
                let is_certain = native::is_certainly_absent(message);
                (message, Err(NotStored { code: error.rdkafka_error_code(), is_certain }))
            }
        };
        self.reported().deliveries.push(Delivery { id: *id, topic: message.topic().to_owned(), result });
        self.wake.notify_one();
    }
}

impl Writer for Kafka {
    type Connection = Connected;

    async fn connect(&mut self, ack_timeout: Duration) -> Result<Connected, EngineError> {
        let connection = self.connection.clone();
        in_background(move || connect(&connection, ack_timeout)).await?
    }

    async fn write(&mut self, connected: Connected, outlet: &mut Outlet) -> Result<Infallible, EngineError> {
        let Connected { producer, cluster, broker } = connected;
        let mut lives = Lives { producer: producer.clone(), cluster, broker, topics: HashMap::new() };
        let reports = producer.client().context().clone();
        let failure = loop {
            let mut failure = None;
            while failure.is_none()
                && let Some(publish) = outlet.take()
            {
                failure = self.send(&producer, publish, outlet).err();
            }
            outlet.flush();
            select(pin!(reports.wake.notified()), pin!(outlet.ready())).await;
            let Reported { deliveries, fault } = mem::take(&mut *reports.reported());
            for delivery in deliveries {
                settle(delivery, &mut lives, outlet).await;
            }
            if let Some(failure) = failure.or(fault.map(EngineError)) {
                break failure;
            }
        };
        drop(lives);
        let given_up = in_background(move || {
            // Each message then reports whether it was purged before it was sent (not published) or in flight (unconfirmed).
            producer.purge(PurgeConfig::default().queue().inflight());
            // Whatever is not reported by then is unconfirmed.
            let _ = producer.flush(LAST_REPORTS);
        });
        given_up.await?;
        let deliveries = mem::take(&mut reports.reported().deliveries);
        for Delivery { id, topic, result } in deliveries {
            match result {
                Ok(_) => outlet.confirm(id, Confirmed::default()),
                Err(why) => refuse(id, &topic, why, outlet),
            }
        }
        Err(failure)
    }
}

/// Awaits a call that blocks, on a thread of its own.
async fn in_background<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, EngineError> {
    spawn_blocking(call).await.map_err(|error| EngineError::new("a call of the client", error))
}

fn connect(connection: &Connection, ack_timeout: Duration) -> Result<Connected, EngineError> {
    // The other half of the time was for the way to this client.
    let half_ms = (ack_timeout.as_millis() / 2).max(1).to_string();
    let timeouts = [
        ("message.timeout.ms", half_ms.clone()),
        ("request.timeout.ms", half_ms),
        ("queue.buffering.max.messages", (2 * SINK_TAKEN_MAX).to_string()),
    ];
    let settings = SETTINGS.map(|(key, value)| (key, value.to_owned()));
    let producer: ThreadedProducer<Deliveries> =
        connection.create(settings.into_iter().chain(timeouts), Deliveries::default())?;
    let broker = native::answering_broker(producer.client(), ANSWER);
    let reports = producer.client().context();
    let broker = broker.map_err(|code| {
        let why = mem::take(&mut reports.reported().fault).or_else(|| reports.events.take_last_error());
        EngineError(format!("{connection}: {}", why.unwrap_or_else(|| code.to_string())))
    })?;
    let cluster = native::cluster_id(producer.client(), ANSWER);
    // While it looked for a broker, it may have found others down.
    reports.reported().fault = None;
    Ok(Connected { producer: Arc::new(producer), cluster, broker: broker.unwrap_or_default() })
}

impl Kafka {
    /// Passes a tick to the client. Its report comes later.
    ///
    /// # Errors
    /// The producer is of no use any more.
    fn send(&self, producer: &Producer, publish: Publish, outlet: &mut Outlet) -> Result<(), EngineError> {
        let Publish { id, topic, payload, .. } = &publish;
        let name = match self.topic.render(topic) {
            Ok(name) if is_name(&name) => name,
            Ok(name) => {
                let why = format_args!("{name:?} is not the name of a topic of Kafka");
                outlet.fail_because(*id, Outcome::Refused, &why);
                return Ok(());
            }
            Err(why) => {
                outlet.fail_because(*id, why.outcome(), &format_args!("topic {topic:?}: {why}"));
                return Ok(());
            }
        };
        let key = record_key(&publish);
        let mut record =
            BaseRecord::with_opaque_to(&name, Box::new(*id)).key(key.as_bytes()).payload(payload.as_slice());
        if let Some(headers) = self.headers(&publish) {
            record = record.headers(headers);
        }
        let Err((error, _)) = producer.send(record) else { return Ok(()) };
        let code = error.rdkafka_error_code();
        match code {
            Some(Code::Fatal) => {
                outlet.fail(*id, Outcome::Away);
                return Err(EngineError::new("produce", error));
            }
            Some(Code::QueueFull) => outlet.fail(*id, Outcome::Full),
            _ => refuse(*id, &name, NotStored { code, is_certain: true }, outlet),
        }
        Ok(())
    }

    /// The headers of a tick, if it has any.
    fn headers(&self, publish: &Publish) -> Option<OwnedHeaders> {
        let mut headers = OwnedHeaders::new();
        if self.has_headers {
            headers = with_header(headers, TOPIC, &publish.topic);
            if publish.key != 0 {
                headers = with_header(headers, KEY, &publish.key.to_string());
            }
            headers = with_header(headers, TIME, &publish.producer_time_ns.to_string());
        }
        if let Some(message_id) = publish.message_id {
            let digest = format!("{:032x}", u128::from_be_bytes(message_id));
            headers = with_header(headers, MESSAGE_ID, &digest);
        }
        (self.has_headers || publish.message_id.is_some()).then_some(headers)
    }
}

fn with_header(headers: OwnedHeaders, key: &str, value: &str) -> OwnedHeaders {
    headers.insert(Header { key, value: Some(value) })
}

/// The record's key, which decides its partition: the tick's own, or else the topic, so that its ticks stay in order.
fn record_key(publish: &Publish) -> String {
    match publish.key {
        0 => publish.topic.clone(),
        key => key.to_string(),
    }
}

async fn settle(Delivery { id, topic, result }: Delivery, lives: &mut Lives, outlet: &mut Outlet) {
    match result {
        Ok(stored) => {
            let confirmed = lives.confirmed(&topic, stored).await;
            outlet.confirm(id, confirmed);
        }
        Err(why) => refuse(id, &topic, why, outlet),
    }
}

fn refuse(id: PublishId, topic: &str, why: NotStored, outlet: &mut Outlet) {
    match why.outcome() {
        outcome @ (Outcome::Refused | Outcome::NoStream) => {
            let reason = why.code.map_or_else(String::new, |code| code.to_string());
            outlet.fail_because(id, outcome, &format_args!("topic {topic}: {reason}"));
        }
        outcome => outlet.fail(id, outcome),
    }
}

impl NotStored {
    fn outcome(self) -> Outcome {
        if !self.is_certain {
            return Outcome::Unconfirmed;
        }
        match self.code {
            Some(
                Code::UnknownTopic
                | Code::UnknownTopicOrPartition
                | Code::UnknownTopicId
                | Code::UnknownPartition,
            ) => Outcome::NoStream,
            Some(
                Code::MessageTimedOut
                | Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::AllBrokersDown
                | Code::BrokerTransportFailure
                | Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
                | Code::PurgeQueue
                | Code::PurgeInflight
                | Code::BrokerDestroy
                | Code::Fatal,
            ) => Outcome::Away,
            _ => Outcome::Refused,
        }
    }
}

/// The lives of the topics that have taken ticks. Bound: [`SINK_STREAMS_MAX`].
struct Lives {
    producer: Producer,
    cluster: Option<String>,
    broker: i32,
    topics: HashMap<String, Life>,
}

#[derive(Clone, Debug)]
struct Life {
    /// `None` if the cluster does not say.
    id: Option<TopicId>,
    /// The highest offset reported, by partition; negative: none. Bound: [`SOURCE_PARTITIONS_MAX`].
    offsets: Vec<i64>,
    /// When the topic is to be looked at again, a time of [`clock::monotonic_ns`].
    look_ns: u64,
}

impl Life {
    /// Whether a report can be from this life, as far as it shows. Notes its offset.
    fn note(&mut self, Stored { partition, offset }: Stored) -> bool {
        let at = usize::try_from(partition).unwrap_or(usize::MAX);
        if at >= SOURCE_PARTITIONS_MAX {
            return false;
        }
        if at >= self.offsets.len() {
            self.offsets.resize(at + 1, -1);
        }
        let is_next = offset > self.offsets[at];
        self.offsets[at] = self.offsets[at].max(offset);
        is_next || self.id.is_none()
    }
}

impl Lives {
    /// The position of a tick, if it has one.
    async fn confirmed(&mut self, topic: &str, stored: Stored) -> Confirmed {
        let known = self.position(topic, stored).await;
        known.map_or_else(Confirmed::default, |(epoch, sequence)| Confirmed {
            epoch,
            sequence,
            is_duplicate: false,
        })
    }

    async fn position(&mut self, topic: &str, stored: Stored) -> Option<(u64, u64)> {
        let cluster = self.cluster.clone()?;
        let sequence = offset_position(stored.offset)?;
        let position = |id: TopicId| (life_epoch(&cluster, topic, stored.partition, id, 0), sequence);
        if let Some(life) = self.topics.get_mut(topic)
            && clock::monotonic_ns() < life.look_ns
            && life.note(stored)
        {
            return life.id.map(position);
        }
        if self.topics.len() >= SINK_STREAMS_MAX && !self.topics.contains_key(topic) {
            return None;
        }
        let (producer, broker, name) = (self.producer.clone(), self.broker, topic.to_owned());
        let looked = in_background(move || look(&producer, broker, &name, stored.partition)).await.ok()?;
        let (id, pause_ns) = match looked {
            // An earlier life: the topic was made again, and has not come as far. The tick was stored, but its position cannot be named.
            Some((_, end)) if stored.offset >= end => return None,
            Some((id, _)) => (Some(id), LOOK_NS),
            None => (None, LOOK_LATER_NS),
        };
        let look_ns = clock::monotonic_ns().saturating_add(pause_ns);
        let mut life = Life { id, offsets: Vec::new(), look_ns };
        life.note(stored);
        self.topics.insert(topic.to_owned(), life);
        id.map(position)
    }
}

/// The id of a topic, and the end of one of its partitions after that.
fn look(producer: &Producer, broker: i32, topic: &str, partition: i32) -> Option<(TopicId, i64)> {
    let client = producer.client();
    let id = native::topic_ids(client, broker, &[topic], ANSWER).ok()?.pop()?.ok()?;
    let (_, end) = client.fetch_watermarks(topic, partition, ANSWER).ok()?;
    Some((id, end))
}

#[cfg(test)]
mod tests;
