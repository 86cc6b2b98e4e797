//! A mock cluster of Kafka, in this process: librdkafka's own, on loopback and free ports.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    mocking::MockCluster,
    producer::{BaseProducer, BaseRecord, DefaultProducerContext, DeliveryResult, Producer, ProducerContext},
};

use super::GUARD;

/// A cluster of one broker.
pub struct Kafka {
    cluster: MockCluster<'static, DefaultProducerContext>,
    /// Replaced when the broker comes back: the old one does not always find it within its time-out.
    producer: RefCell<BaseProducer<Deliveries>>,
    failed: Arc<Mutex<Vec<String>>>,
}

/// What happened to the messages: why those failed that the cluster did not store.
struct Deliveries(Arc<Mutex<Vec<String>>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.0.lock().unwrap().push(error.to_string());
        }
    }
}

/// The broker's number.
const BROKER: i32 = 1;

impl Kafka {
    /// Starts it, without topics.
    pub fn start() -> Kafka {
        let cluster = MockCluster::new(1).unwrap();
        let failed = Arc::default();
        let producer = RefCell::new(producer(&cluster, &failed));
        Kafka { cluster, producer, failed }
    }

    /// Makes a topic.
    pub fn make_topic(&self, name: &str, partitions: i32) {
        self.cluster.create_topic(name, partitions, 1).unwrap();
    }

    /// The lines of a `[[source]]` that reach it.
    pub fn servers(&self) -> String {
        format!("servers = ['{}']", self.cluster.bootstrap_servers())
    }

    /// Takes the broker away: its port refuses connections.
    pub fn broker_down(&self) {
        self.cluster.broker_down(BROKER).unwrap();
    }

    /// Brings it back, with what it has stored.
    pub fn broker_up(&self) {
        self.cluster.broker_up(BROKER).unwrap();
        self.producer.replace(producer(&self.cluster, &self.failed));
    }

    /// Stores messages without keys in a partition, and waits until they are.
    pub fn store(&self, topic: &str, partition: i32, payloads: impl Iterator<Item = String>) {
        for payload in payloads {
            self.send(BaseRecord::<(), _>::to(topic).partition(partition).payload(&payload));
        }
        self.flush();
    }

    /// Stores a message with a key, a header and a time.
    pub fn store_with(
        &self,
        (topic, partition): (&str, i32),
        key: &str,
        (name, value): (&str, &str),
        time_ms: i64,
        payload: &str,
    ) {
        let headers = OwnedHeaders::new().insert(Header { key: name, value: Some(value) });
        let record = BaseRecord::to(topic).partition(partition).key(key).payload(payload);
        self.send(record.headers(headers).timestamp(time_ms));
    }

    /// Stores a tombstone: a key without a payload.
    pub fn store_tombstone(&self, topic: &str, partition: i32, key: &str) {
        self.send(BaseRecord::<_, ()>::to(topic).partition(partition).key(key));
        self.flush();
    }

    /// Waits until everything is stored.
    pub fn flush(&self) {
        self.producer.borrow().flush(GUARD).unwrap();
        let failed = self.failed.lock().unwrap();
        assert!(failed.is_empty(), "{} messages were not stored: {:?}", failed.len(), failed.first());
    }

    fn send<K: rdkafka::message::ToBytes + ?Sized, P: rdkafka::message::ToBytes + ?Sized>(
        &self,
        mut record: BaseRecord<'_, K, P>,
    ) {
        let (producer, start) = (self.producer.borrow(), Instant::now());
        loop {
            assert!(start.elapsed() < GUARD, "the broker has taken nothing");
            match producer.send(record) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                    record = refused;
                    producer.poll(Duration::from_millis(10));
                }
                Err((error, _)) => panic!("{error}"),
            }
        }
    }
}

fn producer(
    cluster: &MockCluster<'_, DefaultProducerContext>,
    failed: &Arc<Mutex<Vec<String>>>,
) -> BaseProducer<Deliveries> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.bootstrap_servers()).set("linger.ms", "1");
    config.set("reconnect.backoff.max.ms", "100").set("message.timeout.ms", "60000");
    config.create_with_context(Deliveries(failed.clone())).unwrap()
}
