use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use rdkafka::{
    ClientConfig,
    message::{Header, OwnedHeaders},
    mocking::MockCluster,
    producer::{BaseProducer, BaseRecord, Producer},
};

use super::*;
use crate::{Lanes, SourceStatus, StopFlag, common::Common, health::Health, kind::SourceBounds};
use tickcast_core::{
    mesh::ring::{Doorbell, frame_ring},
    metrics::counters::Counter,
};

/// Checks repeatedly, for a minute at most.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..6_000 {
        if is_so() {
            return;
        }
        clock::sleep_ns(10_000_000);
    }
    panic!("never: {what}");
}

#[test]
fn partitions_are_read_whole_through_a_broker_that_goes_away_and_comes_back() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t.a", 2, 1).unwrap();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.bootstrap_servers()).set("linger.ms", "1");
    let producer: BaseProducer = config.create().unwrap();
    let store = |numbers: std::ops::Range<u32>| {
        for number in numbers {
            let headers = OwnedHeaders::new().insert(Header { key: "n", value: Some(&number.to_string()) });
            let partition = (number % 2).cast_signed();
            let payload = number.to_string();
            let record: BaseRecord<'_, (), _> = BaseRecord::to("t.a").partition(partition).payload(&payload);
            producer.send(record.headers(headers)).map_err(|(error, _)| error).unwrap();
        }
        // A tombstone after each batch.
        producer
            .send(BaseRecord::<_, ()>::to("t.a").partition(0).key("k"))
            .map_err(|(error, _)| error)
            .unwrap();
        producer.flush(Duration::from_secs(60)).unwrap();
    };
    // More than the source takes at once.
    store(0..2_200);

    let text = format!(
        "servers = ['{}']\ntopics = ['^t']\nstart = 'all'\nmap = {{ key = '{{header:n}}' }}",
        cluster.bootstrap_servers()
    );
    let options: Options = toml::from_str(&text).unwrap();
    let mut checks =
        OptionChecks::new(SourceBounds { payload_bytes_max: 1 << 10, topics_max: 10, reads_files: true });
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
fn a_start_is_read_as_it_is_written() {
    for (text, start) in [
        ("new", Start::New),
        ("all", Start::All),
        ("0", Start::Offset(0)),
        ("9007199254740993", Start::Offset(9_007_199_254_740_993)),
        ("10m", Start::Window(600_000_000_000)),
    ] {
        assert_eq!(text.parse(), Ok(start));
        assert_eq!(start.to_string(), text);
    }
    for text in ["2026-01-31T08:00:00Z", "2026-01-31T08:00:00.001Z"] {
        let start: Start = text.parse().unwrap();
        assert!(matches!(start, Start::Time(_)) && start.to_string() == text, "{start}");
    }
    let eight = "2026-01-31T08:00:00Z".parse::<Start>().unwrap();
    assert_eq!("2026-01-31T09:00:00+01:00".parse(), Ok(eight));
    assert_eq!(eight.time_ms(), Some(1_769_846_400_000));
    for bad in ["", "newest", "-1", "10 minutes", "2026-01-31"] {
        assert!(bad.parse::<Start>().is_err(), "{bad}");
    }
}

#[test]
fn topics_are_read_by_name_or_by_expression_and_kafkas_own_only_by_name() {
    let matches = |wanted: &str, topic: &str| Wanted::new(wanted).unwrap().matches(topic);
    assert!(matches("md.eu", "md.eu") && !matches("md.eu", "md.eu.1") && !matches("md.eu", "mdxeu"));
    assert!(matches(r"^md\.(eu|us)$", "md.us") && !matches(r"^md\.(eu|us)$", "md.use"));
    assert!(matches("__consumer_offsets", "__consumer_offsets") && !matches("^.*", "__consumer_offsets"));
    for bad in ["", "a b", "md.*", "^(", &*"a".repeat(250)] {
        assert!(Wanted::new(bad).is_err(), "{bad}");
    }
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
