use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

use super::*;
use crate::{
    health::Health,
    kind::SourceBounds,
    sink::{RunningSink, SinkRings, SinkStatus, start},
    waits::eventually,
};
use tickcast_core::mesh::{
    SinkLane,
    ring::{Doorbell, Stage},
};
use tickcast_proto::{
    frame::{self, HeaderFields, Kind},
    records::{Routed, Settled},
};

type Cluster = MockCluster<'static, DefaultProducerContext>;

/// A running sink, with the shard's ends of its rings.
struct Running {
    shard: SinkLane,
    status: SinkStatus,
    sink: RunningSink,
    ack_timeout_ns: u64,
}

/// An answer to a tick: its ticket, what became of it, its position.
type Answer = (u64, Outcome, (u64, u64));

impl Running {
    fn start(cluster: &Cluster, more: &str, ack_timeout_ms: u64) -> Running {
        let text = format!("servers = ['{}']\n{more}", cluster.bootstrap_servers());
        let options: Options = toml::from_str(&text).unwrap();
        let bounds = SourceBounds { payload_bytes_max: 1 << 10, topics_max: 10, reads_files: true };
        let mut checks = OptionChecks::new(bounds);
        let writer = options.configure(&mut checks);
        assert_eq!(checks.into_refused(), []);
        let SinkRings { lanes, mut shards } = SinkRings::new(&[Arc::new(Doorbell::new(|| {}))], 1 << 20);
        let (status, ack_timeout_ns) = (SinkStatus::new("engine", "kafka"), ack_timeout_ms * 1_000_000);
        let on_end = |result: Result<(), crate::SourceError>| result.unwrap();
        let sink = start(Box::new(writer.unwrap()), lanes, status.clone(), ack_timeout_ns, on_end).unwrap();
        Running { shard: shards.remove(0), status, sink, ack_timeout_ns }
    }

    fn send(&mut self, ticket: u64, topic: &str, (key, message_id): (u64, Option<[u8; 16]>), payload: &str) {
        let mut stage = Stage::default();
        let fields = HeaderFields { sequence: ticket, ..HeaderFields::default() };
        let record = Routed {
            deadline_ns: clock::monotonic_ns() + self.ack_timeout_ns,
            key,
            producer_time_ns: 7,
            topic_len: topic.len() as u16,
            message_id_len: message_id.map_or(0, |id| id.len() as u16),
            ..Routed::default()
        };
        let id = message_id.unwrap_or_default();
        let id = &id[..usize::from(record.message_id_len)];
        let parts = [topic.as_bytes(), id, payload.as_bytes()];
        frame::encode(stage.tail(), Kind::Routed, fields, &record, &parts);
        self.shard.ticks_out.push(&mut stage);
        (self.shard.wake.0)();
    }

    /// The next answers, as many.
    fn answers(&mut self, count: usize) -> Vec<Answer> {
        let mut answers = Vec::new();
        eventually(&format!("{count} answers"), || {
            self.shard.answers_in.drain(usize::MAX, |frame| {
                let Settled { epoch, sequence, outcome, .. } = frame.record().unwrap();
                let outcome = Outcome::from_number(outcome);
                answers.push((frame.header.sequence, outcome, (epoch, sequence)));
                true
            });
            answers.len() >= count
        });
        answers
    }

    fn wait_for_state(&self, is_running: bool) {
        eventually("the state", || (self.status.status().health() == Health::Running) == is_running);
    }

    fn stop(self) {
        self.sink.stop();
        self.sink.join();
    }
}

/// Every record of a partition: key, payload, and the values of these headers.
fn records(cluster: &Cluster, topic: &str, count: usize, names: [&str; 4]) -> Vec<[Option<String>; 6]> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "test");
    let consumer: BaseConsumer = config.create().unwrap();
    let mut all = TopicPartitionList::new();
    all.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&all).unwrap();
    let mut records = Vec::new();
    while records.len() < count {
        let message = consumer.poll(Duration::from_secs(60)).unwrap().unwrap();
        let text = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
        let headers = crate::kafka::RecordHeaders(&message);
        let [a, b, c, d] =
            names.map(|name| crate::mapping::Headers::value(&headers, name).map(str::to_owned));
        records.push([text(message.key()), text(message.payload()), a, b, c, d]);
    }
    records
}

#[test]
fn a_tick_is_confirmed_at_its_offset_with_the_epoch_that_a_source_gives() {
    let cluster: Cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("in.orders", 1, 1).unwrap();
    let mut sink = Running::start(&cluster, "topic = 'in.{1}'\nmessage_ids = 'header'", 60_000);
    let names = [TOPIC, KEY, TIME, MESSAGE_ID];
    for ticket in 0..100 {
        sink.send(ticket, "orders.a", (5, None), &ticket.to_string());
    }
    let answers = sink.answers(100);
    let epoch = answers[0].2.0;
    assert!(tickcast_proto::logged::is_log_epoch(epoch));
    for (number, answer) in (0..).zip(&answers) {
        assert_eq!(*answer, (number, Outcome::Confirmed, (epoch, number + 1)));
    }
    sink.send(100, "orders.b", (0, Some([0xab; 16])), "x");
    assert_eq!(sink.answers(1), [(100, Outcome::Confirmed, (epoch, 101))]);
    let records = records(&cluster, "in.orders", 101, names);
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(records[99], [text("5"), text("99"), text("orders.a"), text("5"), text("7"), None]);
    let id = "ab".repeat(16);
    assert_eq!(records[100], [text("orders.b"), text("x"), text("orders.b"), None, text("7"), text(&id)]);
    // Another life of the topic would have another epoch: it names cluster, topic, partition and the topic's id.
    let connection = sink_connection(&cluster);
    let consumer = connection.consumer().unwrap();
    let client = rdkafka::consumer::Consumer::client(&consumer);
    let id = native::topic_ids(client, 1, &["in.orders"], ANSWER).unwrap()[0].unwrap();
    let cluster_id = native::cluster_id(client, ANSWER).unwrap();
    assert_eq!(epoch, life_epoch(&cluster_id, "in.orders", 0, id, 0));
    sink.stop();
}

fn sink_connection(cluster: &Cluster) -> Connection {
    let bounds = SourceBounds { payload_bytes_max: 1 << 10, topics_max: 10, reads_files: true };
    let mut checks = OptionChecks::new(bounds);
    let servers = vec![cluster.bootstrap_servers()];
    Connection::new(servers, Auth::default(), Tls::default(), &mut checks).unwrap()
}

#[test]
fn what_the_cluster_refuses_or_cannot_name_is_refused_and_the_next_tick_goes_on() {
    let cluster: Cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("orders.a", 1, 1).unwrap();
    let mut sink = Running::start(&cluster, "topic = '{topic}'", 60_000);
    sink.send(0, "orders.a", (0, None), "x");
    assert_eq!(sink.answers(1)[0].1, Outcome::Confirmed);
    sink.send(1, "orders.é", (0, None), "x");
    sink.send(2, "_internal", (0, None), "x");
    let mut answers = sink.answers(2);
    answers.sort_by_key(|(ticket, ..)| *ticket);
    assert_eq!(answers, [(1, Outcome::Refused, (0, 0)), (2, Outcome::Reserved, (0, 0))]);
    let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::Produce, &[denied]);
    sink.send(3, "orders.a", (0, None), "x");
    assert_eq!(sink.answers(1), [(3, Outcome::Refused, (0, 0))]);
    cluster.topic_error("gone", RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).unwrap();
    sink.send(4, "gone", (0, None), "x");
    assert_eq!(sink.answers(1), [(4, Outcome::NoStream, (0, 0))]);
    sink.send(5, "orders.a", (0, None), "y");
    assert_eq!(sink.answers(1)[0].1, Outcome::Confirmed);
    sink.stop();
}

#[test]
fn a_tick_for_a_cluster_that_is_away_is_refused_in_time_and_later_ones_go_on_when_it_is_back() {
    let cluster: Cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 1, 1).unwrap();
    cluster.broker_down(1).unwrap();
    let mut sink = Running::start(&cluster, "topic = 't'", 2_000);
    sink.send(0, "a", (0, None), "x");
    assert_eq!(sink.answers(1), [(0, Outcome::Away, (0, 0))], "absent from the start");
    sink.wait_for_state(false);
    cluster.broker_up(1).unwrap();
    sink.wait_for_state(true);
    sink.send(1, "a", (0, None), "x");
    assert_eq!(sink.answers(1)[0].1, Outcome::Confirmed);
    cluster.broker_down(1).unwrap();
    sink.wait_for_state(false);
    sink.send(2, "a", (0, None), "x");
    assert_eq!(
        sink.answers(1),
        [(2, Outcome::Away, (0, 0))],
        "it is certain that the cluster does not have it"
    );
    cluster.broker_up(1).unwrap();
    sink.wait_for_state(true);
    sink.send(3, "a", (0, None), "x");
    let (ticket, outcome, (_, sequence)) = sink.answers(1)[0];
    assert_eq!((ticket, outcome, sequence), (3, Outcome::Confirmed, 2));
    sink.stop();
}

#[test]
fn a_tick_under_way_when_the_cluster_goes_silent_is_unconfirmed() {
    let cluster: Cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 1, 1).unwrap();
    let mut sink = Running::start(&cluster, "topic = 't'", 2_000);
    sink.send(0, "a", (0, None), "x");
    assert_eq!(sink.answers(1)[0].1, Outcome::Confirmed);
    cluster.broker_round_trip_time(1, Duration::from_secs(20)).unwrap();
    sink.send(1, "a", (0, None), "x");
    assert_eq!(sink.answers(1), [(1, Outcome::Unconfirmed, (0, 0))], "the cluster may have it");
    sink.stop();
}

#[test]
fn what_a_failure_means_for_a_tick() {
    for (code, is_certain, outcome) in [
        (Code::MessageTimedOut, true, Outcome::Away),
        (Code::MessageTimedOut, false, Outcome::Unconfirmed),
        (Code::PurgeQueue, true, Outcome::Away),
        (Code::UnknownTopicOrPartition, true, Outcome::NoStream),
        (Code::UnknownPartition, true, Outcome::NoStream),
        (Code::TopicAuthorizationFailed, true, Outcome::Refused),
        (Code::MessageSizeTooLarge, true, Outcome::Refused),
        (Code::TopicAuthorizationFailed, false, Outcome::Unconfirmed),
    ] {
        assert_eq!(NotStored { code: Some(code), is_certain }.outcome(), outcome, "{code} {is_certain}");
    }
}

#[test]
fn an_offset_that_goes_back_may_be_of_another_life() {
    let stored = |partition, offset| Stored { partition, offset };
    let mut life = Life { id: Some(TopicId([1; 16])), offsets: Vec::new(), look_ns: 0 };
    assert!(life.note(stored(2, 5)) && life.note(stored(0, 0)) && life.note(stored(2, 6)));
    assert!(!life.note(stored(2, 6)) && !life.note(stored(2, 0)));
    assert!(!life.note(stored(-1, 9)) && !life.note(stored(SOURCE_PARTITIONS_MAX as i32, 9)));
    let mut unknown = Life { id: None, ..life };
    assert!(unknown.note(stored(2, 0)), "nothing to mistake");
}
