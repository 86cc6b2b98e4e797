use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use rdkafka::{
    ClientConfig,
    message::{Header, OwnedHeaders},
    mocking::MockCluster,
    producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer},
};

use super::*;
use crate::{
    Lanes, SourceStatus, StopFlag, common::Common, health::Health, kind::SourceBounds, waits::eventually,
};
use tickcast_core::{
    mesh::ring::{Doorbell, frame_ring},
    metrics::counters::Counter,
};

pub(super) fn checks() -> OptionChecks {
    OptionChecks::new(SourceBounds { payload_bytes_max: 1 << 14, topics_max: 10, reads_files: true })
}

pub(super) fn numbers(numbers: std::ops::Range<u32>) -> impl Iterator<Item = String> {
    numbers.map(|number| number.to_string())
}

/// Stores messages in a cluster, and waits until they are stored.
pub(super) struct Stored(BaseProducer);

impl Stored {
    pub(super) fn new(cluster: &MockCluster<'_, DefaultProducerContext>) -> Stored {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers()).set("linger.ms", "1");
        Stored(config.create().unwrap())
    }

    /// Stores messages with their payload as the header `n`.
    pub(super) fn store(&self, topic: &str, partition: i32, payloads: impl Iterator<Item = String>) {
        for payload in payloads {
            let headers = OwnedHeaders::new().insert(Header { key: "n", value: Some(&payload) });
            let record: BaseRecord<'_, (), _> = BaseRecord::to(topic).partition(partition).payload(&payload);
            self.0.send(record.headers(headers)).map_err(|(error, _)| error).unwrap();
        }
        self.0.flush(Duration::from_secs(60)).unwrap();
    }

    pub(super) fn store_tombstone(&self, topic: &str, partition: i32) {
        let record = BaseRecord::<_, ()>::to(topic).partition(partition).key("k");
        self.0.send(record).map_err(|(error, _)| error).unwrap();
        self.0.flush(Duration::from_secs(60)).unwrap();
    }
}

#[test]
fn partitions_are_read_whole_through_a_broker_that_goes_away_and_comes_back() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t.a", 2, 1).unwrap();
    let producer = Stored::new(&cluster);
    let store = |range: std::ops::Range<u32>| {
        for partition in 0..2 {
            let of_partition = range.clone().filter(|number| number % 2 == partition);
            producer.store("t.a", partition.cast_signed(), of_partition.map(|number| number.to_string()));
        }
        producer.store_tombstone("t.a", 0);
    };
    // More than the source takes at once.
    store(0..2_200);

    let text = format!(
        "servers = ['{}']\ntopics = ['^t']\nstart = 'all'\nmap = {{ key = '{{header:n}}' }}",
        cluster.bootstrap_servers()
    );
    let options: Options = toml::from_str(&text).unwrap();
    let mut checks = checks();
    let Some(configured) = Options::configure(options, &mut checks) else {
        panic!("{:?}", checks.into_refused());
    };
    let mut source = configured.build();
    let (ring, _consumer) = frame_ring(1 << 20);
    let lanes = Lanes::new([(ring, Arc::new(Doorbell::new(|| {})))].into_iter());
    let (status, stop) = (SourceStatus::new("kafka", Common::named("kafka")), StopFlag::default());
    let mut context = SourceContext::new(lanes, status.clone(), Vec::new(), stop.clone());
    let count = |counter: Counter| status.counters().value(counter);
    std::thread::scope(|scope| {
        scope.spawn(|| source.run(&mut context).unwrap());
        // A step that fails must not leave the thread running, for which the scope would wait.
        let steps = catch_unwind(AssertUnwindSafe(|| {
            eventually("the first ticks", || count(Counter::SourceTicks) == 2_200);
            eventually("the lag, which the client tells once a second", || status.lag_messages() == Some(0));
            cluster.broker_down(1).unwrap();
            eventually("the broker is missed", || matches!(status.health(), Health::Waiting(_)));
            cluster.broker_up(1).unwrap();
            store(2_200..2_300);
            eventually("the next ticks", || count(Counter::SourceTicks) == 2_300);
            eventually("the second tombstone", || count(Counter::SourceMessagesSkipped) == 2);
        }));
        stop.set();
        steps.unwrap();
    });
    let counts = [Counter::SourceMessagesLost, Counter::SourceMessagesSkipped, Counter::SourceConnections];
    assert_eq!(counts.map(count), [0, 2, 2], "no loss, two tombstones, one reconnect");
    assert!(status.last_error().is_some());
}

#[test]
fn only_errors_that_the_client_cannot_get_over_end_an_attempt() {
    for (code, expected) in [
        (Code::AllBrokersDown, Fault::Ends),
        (Code::SaslAuthenticationFailed, Fault::Ends),
        (Code::AutoOffsetReset, Fault::OutOfRange),
        (Code::BadCompression, Fault::Message),
        (Code::UnknownTopicOrPartition, Fault::Topic),
        (Code::BrokerTransportFailure, Fault::Passing),
        (Code::GroupAuthorizationFailed, Fault::Passing),
    ] {
        assert_eq!(Fault::of(&KafkaError::MessageConsumption(code)), expected, "{code}");
    }
    assert_eq!(Fault::of(&KafkaError::MessageConsumptionFatal(Code::Fenced)), Fault::Ends);
}
