//! Tests of positions, with a mock cluster. It gives topics ids, but cannot delete a topic: where one is made again, the test says the
//! ids.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
};

use rdkafka::{mocking::MockCluster, producer::DefaultProducerContext};

use super::{
    native::{NoId, TopicId},
    tests::*,
    *,
};
use crate::{
    Lanes, SourceStatus, StopFlag,
    common::Common,
    health::Health,
    log_reader::{LogReader as _, LogReaderLanes},
    waits::eventually,
};
use tickcast_core::{
    log_reads::{LogChunk, LogRead, LogReadOutcome, LogReaderLane},
    mesh::ring::{Doorbell, FrameConsumer, frame_ring},
    metrics::counters::Counter,
};
use tickcast_proto::{
    ids::TopicId as TickTopicId,
    logged::{LogPosition, append_parts},
};

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn options(cluster: &Cluster, more: &str) -> Options {
    let text = format!("servers = ['{}']\nposition = 'log'\n{more}", cluster.bootstrap_servers());
    toml::from_str(&text).unwrap()
}

/// The source that these options make, and the reader of its past.
fn made(cluster: &Cluster, more: &str, ids: &Ids) -> (Kafka, log_reader::Reader<Past>) {
    let options = options(cluster, more);
    let mut checks = checks();
    let wanted: Vec<_> = options.topics.iter().map(|topic| Wanted::new(topic).unwrap()).collect();
    let connection = Connection::new(options.servers, options.auth, options.tls, &mut checks).unwrap();
    let mapping = Mapping::new(&options.map, &mut checks).unwrap();
    assert_eq!(checks.into_refused(), []);
    let mut past = Past::new(connection.clone(), wanted.clone());
    past.ids = ids.clone();
    let past = log_reader::Reader::new(past, mapping.clone(), log_reader::RATE_DEFAULT);
    let mut source = Kafka::new(connection, wanted, options.start, (options.map, mapping), true);
    source.ids = ids.clone();
    (source, past)
}

fn given(ids: &[(&str, u8)]) -> Ids {
    let ids: HashMap<_, _> = ids.iter().map(|(name, id)| ((*name).to_owned(), TopicId([*id; 16]))).collect();
    Ids::Given(Arc::new(Mutex::new(ids)))
}

/// A running source, as a test sees it.
struct Running {
    status: SourceStatus,
    ticks: FrameConsumer,
    got: Vec<(String, LogPosition, String)>,
}

impl Running {
    /// Takes ticks until there are so many.
    fn wait_for(&mut self, count: usize) -> &[(String, LogPosition, String)] {
        eventually(&format!("{count} ticks"), || {
            let got = &mut self.got;
            self.ticks.drain(1 << 20, |frame| {
                let (at, _, key, payload) = append_parts(frame).unwrap();
                let topic = tickcast_core::topic_key::name(key).to_owned();
                got.push((topic, at, String::from_utf8(payload.to_vec()).unwrap()));
                true
            });
            got.len() >= count
        });
        &self.got
    }

    fn wait_for_reason(&self, part: &str) {
        eventually(part, || match self.status.health() {
            Health::Waiting(_) => self.status.health().reason().is_some_and(|reason| reason.contains(part)),
            _ => false,
        });
    }
}

/// Runs a source while `steps` look at it.
fn running(mut source: Kafka, steps: impl FnOnce(&mut Running)) {
    let (ring, ticks) = frame_ring(1 << 20);
    let lanes = Lanes::new([(ring, Arc::new(Doorbell::new(|| {})))].into_iter());
    let (status, stop) = (SourceStatus::new("kafka", Common::named("kafka")), StopFlag::default());
    status.set_reading_back(true);
    let mut context = SourceContext::new(lanes, status.clone(), Vec::new(), stop.clone());
    let mut running = Running { status, ticks, got: Vec::new() };
    std::thread::scope(|scope| {
        scope.spawn(|| source.run(&mut context).unwrap());
        // A step that fails must not leave the thread running, for which the scope would wait.
        let steps = catch_unwind(AssertUnwindSafe(|| steps(&mut running)));
        stop.set();
        steps.unwrap();
    });
}

#[test]
fn the_ids_of_a_cluster_and_its_topics_are_had_from_its_brokers() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("a", 1, 1).unwrap();
    cluster.create_topic("b", 2, 1).unwrap();
    let mut checks = checks();
    let servers = vec![cluster.bootstrap_servers()];
    let connection = Connection::new(servers, Default::default(), Default::default(), &mut checks).unwrap();
    let consumer = connection.consumer().unwrap();
    let broker = native::answering_broker(consumer.client(), ANSWER).unwrap();
    assert_eq!(broker, Some(1));
    let ids = |names: &[&str]| native::topic_ids(consumer.client(), 1, names, ANSWER).unwrap();
    let both = ids(&["a", "b"]);
    assert!(both[0].is_ok() && both[1].is_ok() && both[0] != both[1], "{both:?}");
    assert_eq!(ids(&["b", "none", "a"]), [both[1], Err(NoId::Absent), both[0]]);
    assert_eq!(ids(&[]), []);
    assert!(native::cluster_id(consumer.client(), ANSWER).is_some_and(|id| !id.is_empty()));
    let absent = native::topic_ids(consumer.client(), 77, &["a"], Duration::from_millis(200));
    assert!(absent.is_err(), "{absent:?}");
}

#[test]
fn offsets_are_the_positions_of_ticks_and_the_same_for_every_reader() {
    let cluster: Cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t.a", 1, 1).unwrap();
    cluster.create_topic("t.b", 2, 1).unwrap();
    let producer = Stored::new(&cluster);
    producer.store("t.a", 0, numbers(0..5));
    producer.store("t.b", 1, numbers(0..3));
    let more = "topics = ['^t']\nstart = 'all'\nmap = { topic = '{subject}.{partition}' }";
    let mut epochs = Vec::new();
    for _ in 0..2 {
        let (source, _) = made(&cluster, more, &Ids::Asked);
        running(source, |running| {
            eventually("it has read back all", || !running.status.is_reading_back());
            let mut got = running.wait_for(8).to_vec();
            got.sort_by(|(topic, ..), (other, ..)| topic.cmp(other));
            let expected = (0..5).map(|n| ("t.a.0", n)).chain((0..3).map(|n| ("t.b.1", n)));
            for ((topic, at, payload), (name, number)) in got.iter().zip(expected) {
                assert_eq!((&**topic, &**payload), (name, &*number.to_string()));
                assert_eq!((at.position, at.complete_from), (number + 1, 1));
            }
            assert_ne!(got[0].1.epoch, got[7].1.epoch, "each partition is a log");
            epochs.push([got[0].1.epoch, got[7].1.epoch]);
        });
    }
    assert_eq!(epochs[0], epochs[1]);
}

#[test]
fn a_topic_that_is_made_again_begins_another_life_and_is_read_whole() {
    let cluster: Cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 1, 1).unwrap();
    let producer = Stored::new(&cluster);
    producer.store("t", 0, numbers(0..5));
    let Ids::Given(ids) = given(&[("t", 1)]) else { unreachable!() };
    let (mut source, _) = made(&cluster, "topics = ['t']\nstart = 'all'", &Ids::Given(ids.clone()));
    // A real topic cannot be deleted and made again while a look is relied on.
    source.trust_ns = 0;
    running(source, |running| {
        let first = running.wait_for(5)[4].1;
        // The topic is longer than before by the time the source looks, so the offset shows nothing.
        ids.lock().unwrap().insert("t".into(), TopicId([2; 16]));
        producer.store("t", 0, numbers(5..7));
        let got = running.wait_for(5 + 7);
        let again: Vec<_> = got[5..].iter().map(|(_, at, payload)| (at.position, payload.as_str())).collect();
        let expected = ["0", "1", "2", "3", "4", "5", "6"];
        assert_eq!(again, (1..).zip(expected).collect::<Vec<_>>(), "nothing of it has the old epoch");
        assert!(got[5..].iter().all(|(_, at, _)| at.epoch == got[5].1.epoch && at.epoch != first.epoch));
        assert_eq!(got[5].1.complete_from, 1);
        assert!(running.status.last_error().is_some_and(|error| error.text.contains("made again")));
    });
}

#[test]
fn a_topic_with_several_partitions_or_without_an_id_is_not_read_and_says_why() {
    let cluster: Cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("one", 1, 1).unwrap();
    cluster.create_topic("many", 3, 1).unwrap();
    let Ids::Given(ids) = given(&[]) else { unreachable!() };
    let made = |more: &str| made(&cluster, more, &Ids::Given(ids.clone())).0;
    running(made("topics = ['many']"), |running| running.wait_for_reason("topic many has 3 partitions"));
    running(made("topics = ['^.']\nmap = { topic = 'x.{partition}' }"), |running| {
        running.wait_for_reason("several topics may feed one");
    });
    running(made("topics = ['one']\nstart = 'all'"), |running| {
        running.wait_for_reason("gives topic one no id");
        assert!(running.status.is_reading_back(), "the server is not ready");
        // The brokers are newer now.
        ids.lock().unwrap().insert("one".into(), TopicId([1; 16]));
        Stored::new(&cluster).store("one", 0, numbers(0..2));
        running.wait_for(2);
    });
    let mut checks = checks();
    Options::configure(options(&cluster, "topics = ['a', 'b']\nmap = { topic = '{key}' }"), &mut checks);
    let refused = checks.into_refused();
    assert!(refused.len() == 1 && refused[0].0 == "position", "{refused:?}");
}

/// The shard's ends of the rings to a reader of a log that runs while `steps` ask it.
fn reading(mut reader: log_reader::Reader<Past>, steps: impl FnOnce(&mut LogReaderLane)) {
    let (lanes, mut shards) = LogReaderLanes::new(0, &[Arc::new(Doorbell::new(|| {}))]);
    let (status, stop) = (SourceStatus::new("kafka", Common::named("kafka")), StopFlag::default());
    std::thread::scope(|scope| {
        scope.spawn(|| reader.run(lanes, &status, &stop).unwrap());
        let steps = catch_unwind(AssertUnwindSafe(|| steps(&mut shards[0])));
        stop.set();
        steps.unwrap();
    });
    assert!(status.counters().value(Counter::SourceMessagesReadBack) > 0);
}

/// The ticks of a topic in `[from, until)`; `None`: the log no longer has them.
fn read(lane: &mut LogReaderLane, name: &str, epoch: u64, (from, until): (u64, u64)) -> Option<Vec<String>> {
    let (mut from, mut got) = (from, Vec::new());
    while from < until {
        let later_ns = clock::monotonic_ns() + 60_000_000_000;
        let read = LogRead {
            ticket: 1,
            topic: TickTopicId(1),
            name: name.into(),
            epoch,
            from,
            until,
            answer_by_ns: later_ns,
            deadline_ns: later_ns,
            cancellation: Default::default(),
        };
        assert!(lane.reads_out.push(&mut VecDeque::from([read])));
        (lane.wake.0)();
        let mut chunk: Option<LogChunk> = None;
        eventually("an answer", || {
            chunk = lane.chunks_in.pop();
            chunk.is_some()
        });
        let LogChunk { outcome, frames, .. } = chunk.unwrap();
        let LogReadOutcome::Read { end } = outcome else { return None };
        let mut rest = &frames[..];
        while let Ok(tickcast_proto::Step::Complete(used, frame)) =
            tickcast_proto::frame::decode(rest, usize::MAX)
        {
            assert!((from..end).contains(&frame.header.sequence));
            got.push(String::from_utf8(frame.payload().to_vec()).unwrap());
            rest = &rest[used..];
        }
        from = end;
    }
    Some(got)
}

#[test]
fn the_past_of_a_partition_is_read_by_position_as_long_as_it_is_the_same_life() {
    let cluster: Cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 2, 1).unwrap();
    let producer = Stored::new(&cluster);
    producer.store("t", 1, numbers(0..2_500));
    producer.store_tombstone("t", 1);
    let Ids::Given(ids) = given(&[("t", 7)]) else { unreachable!() };
    let more = "topics = ['t']\nmap = { topic = 'x.{partition}' }";
    let (_, past) = made(&cluster, more, &Ids::Given(ids.clone()));
    let epoch = life_epoch("cluster", "t", 1, TopicId([7; 16]), 0);
    reading(past, |lane| {
        let mut read = |name: &str, epoch, range| read(lane, name, epoch, range);
        assert_eq!(read("x.1", epoch, (1, 2_501)).unwrap(), numbers(0..2_500).collect::<Vec<_>>());
        assert_eq!(read("x.1", epoch, (11, 21)).unwrap(), numbers(10..20).collect::<Vec<_>>());
        assert_eq!(read("x.1", epoch, (2_499, 2_502)).unwrap(), ["2498", "2499"], "then a tombstone");
        assert_eq!(read("x.0", epoch, (1, 3)).unwrap(), [""; 0], "of another partition");
        assert_eq!(read("x.1", epoch + 1, (1, 3)), None, "another log");
        assert_eq!(read("x.1", epoch, (2_503, 2_504)), None, "it was set back");
        ids.lock().unwrap().insert("t".into(), TopicId([8; 16]));
        assert_eq!(read("x.1", epoch, (1, 3)), None, "it was made again");
    });
}

#[test]
fn what_retention_has_deleted_is_not_read() {
    let cluster: Cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 1, 1).unwrap();
    let producer = Stored::new(&cluster);
    // The mock keeps 5 MiB of a partition.
    producer.store("t", 0, (0..1_000).map(|number| format!("{number:010000}")));
    let (_, past) = made(&cluster, "topics = ['t']", &given(&[("t", 7)]));
    let epoch = life_epoch("cluster", "t", 0, TopicId([7; 16]), 0);
    reading(past, |lane| {
        assert_eq!(read(lane, "t", epoch, (1, 5)), None);
        assert_eq!(read(lane, "t", epoch, (999, 1_001)).unwrap().len(), 2);
    });
}
