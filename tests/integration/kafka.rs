//! The source that reads Kafka, with librdkafka's mock cluster. Built with the feature `kafka` only.

use crate::{
    harness::{
        beside_others,
        collector::{ByTopic, Collector, assert_same},
        eventually,
        http::{get, request},
        kafka::Kafka,
        processes::{resume, suspend},
    },
    sources::{FORMATS, numbers, payloads, serve, source, ticks, wait_for_state},
};
use tickcast_proto::WireFormat;

#[test]
fn topics_of_kafka_reach_every_kind_of_client_whole_and_in_the_order_of_each_partition() {
    let _machine = beside_others();
    let kafka = Kafka::start();
    kafka.make_topic("md.eu", 2);
    kafka.make_topic("md.us", 1);
    kafka.make_topic("other", 1);
    let map = "map = { strip = 'md.', prefix = 'market.', topic = '{1}.{key}', key = '{json:/k}', time = '{header:At}', time_unit = 'us' }";
    let server = serve(
        "kafka-capture",
        &format!(
            "[[source]]\nkind = 'kafka'\ntopics = ['^md\\.']\nstart = 'all'\n{}\n{map}\n",
            kafka.servers()
        ),
    );
    wait_for_state(&server, "running");
    let collectors = FORMATS.map(|format| Collector::start(&server, format, &["market.>"]));
    let mut expected = ByTopic::new();
    let count = 3_000_u64;
    for number in 0..count {
        let (topic, partition, venue) = match number % 3 {
            0 => ("md.eu", 0, "xetra"),
            1 => ("md.eu", 1, "paris"),
            _ => ("md.us", 0, "xnas"),
        };
        let payload = format!("{{\"k\":{},\"n\":{number}}}", number % 7);
        let at = (1_793_322_000_000_000 + number).to_string();
        kafka.store_with((topic, partition), venue, ("At", &at), 1_793_322_000_000, &payload);
        let of_topic = expected.entry(format!("market.{}.{venue}", &topic[3..])).or_default();
        of_topic.push((of_topic.len() as u64 + 1, payload.into_bytes()));
    }
    kafka.store("other", 0, numbers(0..10));
    for collector in collectors {
        collector.wait_for(count as usize);
        assert_same(&collector.name.clone(), &collector.finish().ticks, &expected);
    }
    let source = source(&server);
    assert_eq!(
        (&source["ticks"], &source["messages_lost"], &source["messages_skipped"]),
        (&count.into(), &0.into(), &0.into())
    );
    eventually("the lag, which the client tells once a second", || {
        self::source(&server)["lag_messages"] == 0
    });
    server.stop_cleanly();
}

#[test]
fn a_topic_is_read_whole_through_a_broker_that_goes_away_and_comes_back() {
    let _machine = beside_others();
    let kafka = Kafka::start();
    kafka.make_topic("t.a", 1);
    kafka.store("t.a", 0, numbers(0..500));
    let server = serve(
        "kafka-away",
        &format!("[[source]]\nkind = 'kafka'\ntopics = ['t.a']\nstart = '100'\n{}\n", kafka.servers()),
    );
    let collector = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &["t.>"]);
    eventually("the first 400", || source(&server)["ticks"] == 400);
    kafka.broker_down();
    wait_for_state(&server, "waiting");
    kafka.broker_up();
    wait_for_state(&server, "running");
    kafka.store("t.a", 0, numbers(500..900));
    eventually("all", || source(&server)["ticks"] == 800);
    let got = collector.finish();
    assert!(payloads(&got, "t.a").ends_with(&(500..900).collect::<Vec<_>>()));
    let source = source(&server);
    assert_eq!((&source["messages_lost"], &source["reconnects"]), (&0.into(), &1.into()));
    assert!(source["last_error"]["text"].is_string(), "{source}");
    server.stop_cleanly();
}

#[test]
fn a_topic_that_is_missing_is_named_and_read_from_its_beginning_once_it_is_there() {
    let _machine = beside_others();
    let kafka = Kafka::start();
    kafka.make_topic("t.a", 1);
    kafka.store("t.a", 0, numbers(0..10));
    // None is there at first.
    let server = serve(
        "kafka-none",
        &format!("[[source]]\nkind = 'kafka'\ntopics = ['t.c']\nstart = 'new'\n{}\n", kafka.servers()),
    );
    eventually("the reason", || {
        source(&server)["reason"].as_str().is_some_and(|why| why.contains("there is no topic t.c"))
    });
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["t.>"]);
    kafka.make_topic("t.c", 1);
    kafka.store("t.c", 0, numbers(0..20));
    collector.wait_for(20);
    assert_eq!(payloads(&collector.finish(), "t.c"), (0..20).collect::<Vec<_>>());
    server.stop_cleanly();
    let server = serve(
        "kafka-missing",
        &format!("[[source]]\nkind = 'kafka'\ntopics = ['t.a', 't.b']\nstart = 'new'\n{}\n", kafka.servers()),
    );
    wait_for_state(&server, "running");
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["t.>"]);
    kafka.make_topic("t.b", 1);
    kafka.store("t.b", 0, numbers(20..40));
    kafka.store("t.a", 0, numbers(10..20));
    collector.wait_for(30);
    let got = collector.finish();
    assert_eq!(payloads(&got, "t.a"), (10..20).collect::<Vec<_>>(), "only what is new");
    assert_eq!(payloads(&got, "t.b"), (20..40).collect::<Vec<_>>(), "all: it came after the start");
    let stopped = server.stop_cleanly();
    assert!(stopped.log.contains("topic t.b: "), "{}", stopped.log);
}

#[test]
fn tombstones_and_messages_that_do_not_map_are_counted_and_skipped() {
    let _machine = beside_others();
    let kafka = Kafka::start();
    kafka.make_topic("t.a", 1);
    kafka.store_tombstone("t.a", 0, "k");
    kafka.store("t.a", 0, ["not JSON".to_owned(), "x".repeat(300 << 10)].into_iter());
    kafka.store_with(("t.a", 0), "k", ("h", "v"), 1_793_322_000_000, r#"{"s":"b"}"#);
    kafka.flush();
    let map = "map = { topic = 't.{json:/s}' }";
    let server = serve(
        "kafka-skipped",
        &format!("[[source]]\nkind = 'kafka'\ntopics = ['t.a']\nstart = 'all'\n{}\n{map}\n", kafka.servers()),
    );
    eventually("one tick", || source(&server)["ticks"] == 1);
    assert_eq!(source(&server)["messages_skipped"], 3);
    let stopped = server.stop_cleanly();
    for part in ["offset 0 is a tombstone", "there is no text or number at /s", "a payload of 307200 bytes"] {
        assert!(stopped.log.contains(part), "{part}: {}", stopped.log);
    }
}

#[test]
fn messages_that_retention_deleted_before_they_were_read_are_counted_as_lost() {
    let _machine = beside_others();
    let kafka = Kafka::start();
    kafka.make_topic("t.a", 1);
    let server = serve(
        "kafka-retention",
        &format!("[[source]]\nkind = 'kafka'\ntopics = ['t.a']\nstart = 'all'\n{}\n", kafka.servers()),
    );
    wait_for_state(&server, "running");
    let collector = Collector::start(&server, WireFormat::WEBSOCKET_NATIVE, &["t.>"]);
    kafka.store("t.a", 0, numbers(0..10));
    collector.wait_for(10);
    // The mock keeps 5 MiB of a partition. While the server stands still, it forgets what was not read.
    suspend(server.pid());
    let padded = |number: u32| format!("{number:010000}");
    let count = 1_500;
    kafka.store("t.a", 0, (10..count).map(padded));
    resume(server.pid());
    eventually("all read or lost", || {
        let source = source(&server);
        source["ticks"].as_u64().zip(source["messages_lost"].as_u64()).is_some_and(|(ticks, lost)| {
            assert!(ticks + lost <= u64::from(count), "{source}");
            ticks + lost == u64::from(count)
        })
    });
    let lost = source(&server)["messages_lost"].as_u64().unwrap();
    assert!(lost > 500, "{lost}");
    kafka.store("t.a", 0, numbers(count..count + 5));
    eventually("the next ones", || ticks_published(&server) + lost == u64::from(count) + 5);
    let stopped = server.stop_cleanly();
    assert!(stopped.log.contains("no longer has offsets"), "{}", stopped.log);
    drop(collector.finish());
}

fn ticks_published(server: &crate::harness::Server) -> u64 {
    source(server)["ticks"].as_u64().unwrap()
}

#[test]
fn a_cluster_that_is_absent_is_named_and_read_once_it_is_there() {
    let _machine = beside_others();
    let kafka = Kafka::start();
    kafka.make_topic("t.a", 1);
    kafka.store("t.a", 0, numbers(0..50));
    kafka.broker_down();
    let server = serve(
        "kafka-absent",
        &format!(
            "[[source]]\nkind = 'kafka'\ntopics = ['t.a']\nstart = 'all'\nrequired = true\n{}\n",
            kafka.servers()
        ),
    );
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["t.>"]);
    eventually("the reason", || {
        source(&server)["reason"].as_str().is_some_and(|why| why.contains("refused"))
    });
    let admin = server.admin.unwrap();
    let ready = request(admin, "GET", "/readyz");
    assert_eq!((ready.status, &ready.json()["reason"]), (503, &"required sources: kafka".into()));
    kafka.broker_up();
    wait_for_state(&server, "running");
    collector.wait_for(50);
    assert_same("native", &collector.finish().ticks, &ticks("t.a", numbers(0..50)));
    assert_eq!(get(admin, "/readyz").json()["sources"]["kafka"], "running");
    server.stop_cleanly();
}
