//! Kafka as a log: positions, reading back, and the sink, with librdkafka's mock cluster. Built with the feature `kafka` only.

use std::{fs, path::Path, process::Stdio};

use crate::{
    harness::{
        GUARD, Server, beside_others,
        collector::{Collector, address},
        eventually,
        http::{get_of_all_shards, request},
        kafka::Kafka,
        tickcast,
    },
    positions::{Reader, move_between, numbers, serve, serve_with_history},
    read_back::{away_for_longer_than_the_history, has_read, metric},
};
use tickcast_client::{Client, ClientError, ConnectOptions, PublishRequest};
use tickcast_proto::{ErrorCode, WireFormat, subscription::Position};

#[test]
fn a_client_that_moves_between_servers_of_one_cluster_gets_every_tick_exactly_once() {
    let _machine = beside_others();
    let kafka = Kafka::start();
    for topic in ["t.a", "t.b"] {
        kafka.make_topic(topic, 1);
    }
    let source = format!("kind = 'kafka'\ntopics = ['t.a', 't.b']\nstart = 'all'\n{}", kafka.servers());
    let servers = ["kafka-positions-1", "kafka-positions-2"].map(|name| serve(name, &source));
    move_between(servers.each_ref(), |topic, range| kafka.store(topic, 0, numbers(range)));
    servers.into_iter().for_each(|server| drop(server.stop_cleanly()));
}

#[test]
fn a_client_that_was_away_for_longer_than_the_history_gets_every_tick_from_kafka() {
    let _machine = beside_others();
    let kafka = Kafka::start();
    for topic in ["t.a", "t.b"] {
        kafka.make_topic(topic, 1);
    }
    let source = format!("kind = 'kafka'\ntopics = ['^t']\nstart = 'all'\n{}", kafka.servers());
    let server = serve_with_history("kafka-read-back", &source, "50:64KiB:0");
    away_for_longer_than_the_history(&server, |topic, range| kafka.store(topic, 0, numbers(range)));
    server.stop_cleanly();
}

#[test]
fn a_place_that_retention_has_deleted_is_not_recovered() {
    let _machine = beside_others();
    let kafka = Kafka::start();
    kafka.make_topic("t.a", 1);
    let source = format!("kind = 'kafka'\ntopics = ['t.a']\nstart = 'all'\n{}", kafka.servers());
    let server = serve_with_history("kafka-trimmed", &source, "1:64KiB:0");
    let mut reader = Reader::default();
    reader.connect(&server, WireFormat::WEBSOCKET_JSON);
    kafka.store("t.a", 0, numbers(0..10));
    reader.read(10);
    reader.client = None;
    // The mock keeps 5 MiB of a partition. The server reads each part before the next comes.
    let mut stored: u32 = 10;
    for _ in 0..10 {
        kafka.store("t.a", 0, (stored..stored + 100).map(|number| format!("{number:010000}")));
        stored += 100;
        eventually("the part", || has_read(&server, stored.into()));
    }
    reader.connect(&server, WireFormat::WEBSOCKET_JSON);
    reader.read(11);
    let got = &reader.got["t.a"];
    assert_eq!((&*got[10], got[11].parse(), &reader.recovered[..]), ("gap", Ok(stored - 1), &[false][..]));
    assert_eq!(metric(&server, "tickcast_log_reads_too_old_total"), 1);
    server.stop_cleanly();
}

#[test]
fn a_topic_of_several_partitions_needs_a_name_for_each() {
    let _machine = beside_others();
    let kafka = Kafka::start();
    kafka.make_topic("t", 3);
    let text = |map: &str| {
        format!(
            "[[source]]\nkind = 'kafka'\nposition = 'log'\ntopics = ['t']\nstart = 'all'\n{}\n{map}\n",
            kafka.servers()
        )
    };
    let server = start("kafka-partitions", &text(""));
    eventually("the reason", || {
        let shards = get_of_all_shards(server.admin.unwrap(), "/v1/shards").json();
        let reason = shards["sources"][0]["reason"].as_str().unwrap_or_default().to_owned();
        reason.contains("topic t has 3 partitions") && reason.contains(".{partition}")
    });
    assert_eq!(request(server.admin.unwrap(), "GET", "/readyz").status, 503);
    server.stop_cleanly();
    kafka.store("t", 2, numbers(0..5));
    let server = start("kafka-partitions", &text("map = { topic = '{subject}.{partition}' }"));
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["t.>"]);
    kafka.store("t", 1, numbers(0..3));
    collector.wait_until("the ticks of partition 1", |got| {
        got.ticks.get("t.1").is_some_and(|ticks| ticks.len() == 3)
    });
    let expected: Vec<_> = (1..).zip(numbers(0..3).map(String::into_bytes)).collect();
    assert_eq!(collector.finish().ticks["t.1"], expected);
    server.stop_cleanly();
}

/// Starts a server with this configuration.
fn start(name: &str, text: &str) -> Server {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.toml"));
    fs::write(&file, text).unwrap();
    let options = ["--shards", "2", "--config", file.to_str().unwrap()];
    Server::start_with_input(&mut tickcast(), Stdio::null(), &options)
}

fn publisher(server: &Server) -> Client {
    let address = address(server, WireFormat::WEBSOCKET_JSON);
    let options = ConnectOptions { acknowledgements: true, ..address.connect_options() };
    Client::connect_with(&address, &options).unwrap()
}

/// The position of a tick, or the code of its error.
fn publish(client: &mut Client, (topic, message_id): (&str, &str), payload: &[u8]) -> Result<Position, u16> {
    let publish = PublishRequest { topic, payload, message_id, key: 5, ..PublishRequest::default() };
    match client.publish_acknowledged(publish, GUARD, |_| {}) {
        Ok(position) => Ok(position.expect("the server acknowledges")),
        Err(ClientError::Refused { code, .. }) => Err(code),
        Err(error) => panic!("{error}"),
    }
}

fn sink_state(server: &Server) -> String {
    let shards = get_of_all_shards(server.admin.unwrap(), "/v1/shards").json();
    shards["sinks"][0]["state"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_publish_is_acknowledged_with_the_position_at_which_it_comes_back() {
    let _machine = beside_others();
    let kafka = Kafka::start();
    kafka.make_topic("in.orders", 1);
    let text = format!(
        "[[sink]]\nname = 'engine'\nkind = 'kafka'\ntopic = 'in.{{1}}'\nack_timeout = '2s'\n{servers}\n\n\
         [[route]]\ntopics = 'orders.>'\nto = 'engine'\n\n\
         [[source]]\nkind = 'kafka'\nposition = 'log'\ntopics = ['in.orders']\nstart = 'all'\n{servers}\n\
         map = {{ topic = '{{header:Tickcast-Topic}}', key = '{{header:Tickcast-Key}}' }}\n",
        servers = kafka.servers()
    );
    let server = start("kafka-sink", &text);
    eventually("the sink", || sink_state(&server) == "running");
    let mut client = publisher(&server);
    let mut reader = crate::harness::collector::connect(&server, WireFormat::TCP_NATIVE);
    let options = tickcast_client::SubscribeOptions::default();
    reader.subscribe_with("orders.>", &options).unwrap();
    for number in 0..50_u64 {
        let topic = if number % 2 == 0 { "orders.a" } else { "orders.b" };
        let payload = number.to_string();
        let position = publish(&mut client, (topic, ""), payload.as_bytes()).unwrap();
        assert_eq!(position.sequence, number + 1, "the offset, from 1");
        let (place, text) = loop {
            if let tickcast_client::Event::Tick(tick) = reader.next_event(Some(GUARD)).unwrap().unwrap() {
                assert_eq!((tick.topic, tick.key, tick.missed), (topic, 5, 0));
                let place = Position { epoch: tick.epoch, sequence: tick.sequence.0 };
                break (place, tick.payload.to_vec());
            }
        };
        assert_eq!((place, text), (position, payload.into_bytes()));
    }
    let refused = publish(&mut client, ("orders.a", "m"), b"1");
    assert_eq!(refused, Err(ErrorCode::BadRequest as u16), "Kafka recognises no message ids");
    kafka.broker_down();
    eventually("the sink's reason", || sink_state(&server) == "waiting");
    let away = publish(&mut client, ("orders.a", ""), b"1");
    assert_eq!(away, Err(ErrorCode::EngineUnavailable as u16));
    kafka.broker_up();
    eventually("the sink again", || sink_state(&server) == "running");
    assert_eq!(publish(&mut client, ("orders.a", ""), b"1").unwrap().sequence, 51);
    drop((client, reader));
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("ticks_routed_confirmed"), 51);
}

#[test]
fn a_message_id_is_passed_on_in_a_header_where_the_operator_wants_it() {
    let _machine = beside_others();
    let kafka = Kafka::start();
    kafka.make_topic("orders", 1);
    let text = format!(
        "source = []\n[[sink]]\nname = 'engine'\nkind = 'kafka'\ntopic = 'orders'\nmessage_ids = 'header'\n{}\n\n\
         [[route]]\ntopics = 'orders.>'\nto = 'engine'\n",
        kafka.servers()
    );
    let server = start("kafka-ids", &text);
    eventually("the sink", || sink_state(&server) == "running");
    let mut client = publisher(&server);
    let first = publish(&mut client, ("orders.a", "m"), b"1").unwrap();
    let second = publish(&mut client, ("orders.a", "m"), b"1").unwrap();
    assert_eq!((first.sequence, second.sequence), (1, 2), "Kafka has both");
    drop(client);
    server.stop_cleanly();
}
