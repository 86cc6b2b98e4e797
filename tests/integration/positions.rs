//! Topics whose sequences are positions of a durable log: clients move between servers that read the same log.

use std::{collections::HashMap, fs, path::Path, process::Stdio};

use crate::harness::{
    GUARD, Server, beside_others, collector,
    engines::{Nats, Redis},
    eventually,
    http::{get_of_all_shards, request},
    processes::{resume, suspend},
    tickcast,
};
use tickcast_client::{Client, ConnectOptions, Event, PublishRequest, SubscribeOptions};
use tickcast_proto::{
    ErrorCode, WireFormat,
    subscription::{Position, StartPosition},
};

pub(crate) const FORMATS: [WireFormat; 2] = [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_JSON];

/// Starts a server that reads a log by position, and waits until it is ready.
pub(crate) fn serve(name: &str, source: &str) -> Server {
    serve_with_history(name, source, "100000:16MiB:0")
}

pub(crate) fn serve_with_history(name: &str, source: &str, history: &str) -> Server {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.toml"));
    fs::write(&file, format!("[[source]]\nposition = 'log'\n{source}\n")).unwrap();
    let options = ["--config", file.to_str().unwrap(), "--history", history];
    let server = Server::start_with_input(&mut tickcast(), Stdio::null(), &options);
    eventually("a server that is ready", || is_ready(&server));
    server
}

fn is_ready(server: &Server) -> bool {
    request(server.admin.unwrap(), "GET", "/readyz").status == 200
}

/// A client that keeps its places, and what it has got.
#[derive(Default)]
pub(crate) struct Reader {
    pub(crate) client: Option<Client>,
    pub(crate) places: HashMap<Box<str>, Position>,
    /// Payloads by topic, `gap` for each range that is lost.
    pub(crate) got: HashMap<String, Vec<String>>,
    pub(crate) recovered: Vec<bool>,
}

impl Reader {
    /// Goes on at a server, after what it has.
    pub(crate) fn connect(&mut self, server: &Server, encoding: WireFormat) {
        let from = match self.places.is_empty() {
            true => StartPosition::Live,
            false => StartPosition::AfterEach(self.places.clone()),
        };
        let mut client = collector::connect(server, encoding);
        client.subscribe_with("t.>", &SubscribeOptions { from, ..SubscribeOptions::default() }).unwrap();
        while !matches!(client.next_event(Some(GUARD)).unwrap(), Some(Event::Subscribed { .. })) {}
        self.client = Some(client);
    }

    /// Reads until it has so many ticks in all.
    pub(crate) fn read(&mut self, count: usize) {
        let client = self.client.as_mut().unwrap();
        let has = |got: &HashMap<String, Vec<String>>| {
            got.values().flatten().filter(|text| *text != "gap").count() >= count
        };
        while !has(&self.got) {
            match client.next_event(Some(GUARD)).unwrap().expect("a tick in time") {
                Event::Tick(tick) => {
                    assert_eq!(tick.missed, 0, "the client finds no hole that is not announced");
                    let text = String::from_utf8(tick.payload.to_vec()).unwrap();
                    self.got.entry(tick.topic.to_owned()).or_default().push(text);
                    let place = Position { epoch: tick.epoch, sequence: tick.sequence.0 };
                    self.places.insert(tick.topic.into(), place);
                }
                Event::Gap { topic, .. } => self.got.entry(topic.to_owned()).or_default().push("gap".into()),
                Event::Recovered { recovered, .. } => self.recovered.push(recovered),
                _ => {}
            }
        }
    }
}

pub(crate) fn numbers(numbers: std::ops::Range<u32>) -> impl Iterator<Item = String> {
    numbers.map(|number| number.to_string())
}

/// Has readers of each encoding go back and forth between two servers while `publish` fills both topics.
pub(crate) fn move_between(servers: [&Server; 2], publish: impl Fn(&str, std::ops::Range<u32>)) {
    let mut readers = FORMATS.map(|format| {
        let mut reader = Reader::default();
        reader.connect(servers[0], format);
        reader
    });
    for round in 0..6 {
        for topic in ["t.a", "t.b"] {
            publish(topic, round * 100..round * 100 + 100);
        }
        for (format, reader) in FORMATS.into_iter().zip(&mut readers) {
            // It leaves in the middle.
            reader.read(round as usize * 200 + 150);
            reader.connect(servers[(round as usize + 1) % 2], format);
            reader.read(round as usize * 200 + 200);
        }
    }
    for reader in readers {
        for topic in ["t.a", "t.b"] {
            assert_eq!(reader.got[topic], numbers(0..600).collect::<Vec<_>>(), "{topic}: every tick once");
        }
        assert!(reader.recovered.iter().all(|recovered| *recovered), "{:?}", reader.recovered);
    }
}

#[test]
fn a_client_that_moves_between_servers_of_one_stream_gets_every_tick_exactly_once() {
    let _machine = beside_others();
    let nats = Nats::start("js-positions", &[]);
    nats.make_stream("TICKS", "t.>");
    let source = format!("kind = 'jetstream'\nstream = 'TICKS'\nstart = 'all'\n{}", nats.servers());
    let one = serve("js-positions-1", &source);
    let other = serve("js-positions-2", &source);
    move_between([&one, &other], |topic, range| nats.store(topic, numbers(range)));
    // A server that starts later reads back the same.
    let late = serve("js-positions-3", &source);
    let mut reader = Reader::default();
    reader.connect(&one, WireFormat::TCP_NATIVE);
    nats.store("t.a", numbers(600..601));
    reader.read(1);
    reader.connect(&late, WireFormat::TCP_NATIVE);
    nats.store("t.a", numbers(601..602));
    // It has no place in the other topic, and gets all of that.
    let mut count = 2;
    while reader.got["t.a"].len() < 2 {
        reader.read(count);
        count += 1;
    }
    assert_eq!(
        (&reader.got["t.a"][..], &reader.recovered[..]),
        (&["600".into(), "601".into()][..], &[true][..])
    );
    let mut client = collector::connect(&one, WireFormat::TCP_NATIVE);
    client.publish(PublishRequest { topic: "t.a", payload: b"1", ..Default::default() }).unwrap();
    let refused = loop {
        if let Event::Error { code, .. } = client.next_event(Some(GUARD)).unwrap().unwrap() {
            break code;
        }
    };
    assert_eq!(refused, ErrorCode::FedByLog as u16);
    for server in [one, other, late] {
        server.stop_cleanly();
    }
}

#[test]
fn a_client_that_moves_between_servers_of_one_redis_stream_gets_every_tick_exactly_once() {
    let _machine = beside_others();
    let redis = Redis::start("redis-positions", &[]);
    let mut connection = redis.connect();
    for topic in ["t.a", "t.b"] {
        redis::cmd("SET").arg(format!("{{{topic}}}:gen")).arg("first").exec(&mut connection).unwrap();
    }
    let source =
        format!("kind = 'redis-stream'\nstreams = ['t.a', 't.b']\nstart = 'all'\n{}", redis.server());
    let one = serve("redis-positions-1", &source);
    let other = serve("redis-positions-2", &source);
    move_between([&one, &other], |topic, range| redis.add(topic, numbers(range)));
    // Another generation is another life: what is kept of it is new to the client.
    let mut reader = Reader::default();
    reader.connect(&one, WireFormat::TCP_NATIVE);
    redis.add("t.a", numbers(600..601));
    reader.read(1);
    let before = reader.places["t.a"];
    redis::pipe()
        .atomic()
        .cmd("DEL")
        .arg("t.a")
        .cmd("SET")
        .arg("{t.a}:gen")
        .arg("second")
        .cmd("XADD")
        .arg("t.a")
        .arg("*")
        .arg("data")
        .arg("7")
        .exec(&mut connection)
        .unwrap();
    reader.read(2);
    assert!(reader.places["t.a"].epoch != before.epoch && reader.got["t.a"] == ["600", "7"]);
    // An id that does not fit stops the source, not the server.
    redis::cmd("DEL").arg("t.b").exec(&mut connection).unwrap();
    redis::cmd("XADD").arg("t.b").arg("1-1").arg("data").arg("7").exec(&mut connection).unwrap();
    eventually("a source that has stopped", || {
        let shards = get_of_all_shards(one.admin.unwrap(), "/v1/shards").json();
        let source = &shards["sources"][0];
        source["state"] == "failed"
            && source["reason"].as_str().is_some_and(|why| why.contains("has no position"))
    });
    assert!(is_ready(&one));
    for server in [one, other] {
        server.stop_cleanly();
    }
}

#[test]
fn a_hole_that_retention_has_left_is_announced_and_no_place_before_it_is_recovered() {
    let _machine = beside_others();
    let mut nats = Nats::start("js-hole", &[]);
    nats.make_stream("TICKS", "t.>");
    let source = format!("kind = 'jetstream'\nstream = 'TICKS'\nstart = 'all'\n{}", nats.servers());
    let server = serve("js-hole", &source);
    let mut reader = Reader::default();
    reader.connect(&server, WireFormat::TCP_NATIVE);
    nats.store("t.a", numbers(0..10));
    reader.read(10);
    let before = reader.places.clone();
    nats.kill();
    suspend(server.pid());
    nats.restart();
    nats.store("t.a", numbers(10..20));
    nats.with(async |client| {
        let stream = async_nats::jetstream::new(client).get_stream("TICKS").await.unwrap();
        stream.purge().await.unwrap();
    });
    nats.store("t.a", numbers(20..30));
    resume(server.pid());
    reader.read(20);
    let expected: Vec<String> = numbers(0..10).chain(["gap".into()]).chain(numbers(20..30)).collect();
    assert_eq!(reader.got["t.a"], expected);
    let mut late = Reader { places: before, ..Reader::default() };
    late.connect(&server, WireFormat::TCP_NATIVE);
    late.read(1);
    assert_eq!((&late.recovered[..], &late.got["t.a"][..]), (&[false][..], &["gap".into(), "29".into()][..]));
    server.stop_cleanly();
}

#[test]
fn a_stream_that_was_deleted_and_made_again_has_another_epoch() {
    let _machine = beside_others();
    let nats = Nats::start("js-epoch", &[]);
    nats.make_stream("TICKS", "t.>");
    let source = format!("kind = 'jetstream'\nstream = 'TICKS'\nstart = 'all'\n{}", nats.servers());
    let server = serve("js-epoch", &source);
    let mut reader = Reader::default();
    reader.connect(&server, WireFormat::WEBSOCKET_JSON);
    nats.store("t.a", numbers(0..10));
    reader.read(10);
    let before = reader.places.clone();
    nats.with(async |client| {
        async_nats::jetstream::new(client).delete_stream("TICKS").await.unwrap();
    });
    nats.make_stream("TICKS", "t.>");
    nats.store("t.a", numbers(100..130));
    reader.read(40);
    assert_eq!(reader.got["t.a"], numbers(0..10).chain(numbers(100..130)).collect::<Vec<_>>());
    assert_ne!(reader.places["t.a"].epoch, before["t.a"].epoch);
    let mut late = Reader { places: before, ..Reader::default() };
    late.connect(&server, WireFormat::TCP_NATIVE);
    late.read(30);
    assert_eq!(
        (&late.recovered[..], &late.got["t.a"]),
        (&[false][..], &numbers(100..130).collect::<Vec<_>>())
    );
    server.stop_cleanly();
}

#[test]
fn several_streams_that_may_feed_one_topic_have_no_positions() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("positions-refused.toml");
    let source =
        "kind = 'redis-stream'\nstreams = ['a', 'b']\nmap = { topic = '{json:/topic}' }\nposition = 'log'\n";
    fs::write(&file, format!("[[source]]\n{source}")).unwrap();
    let output = tickcast().args(["serve", "--config", file.to_str().unwrap()]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("a topic has one log"), "{errors}");
}

/// Publishes on a routed topic, and waits for its acknowledgement and for the tick that comes back.
fn acknowledged_and_received(server: &Server) -> [(u64, u64); 2] {
    let mut subscriber = collector::connect(server, WireFormat::TCP_NATIVE);
    subscriber.subscribe("t.a").unwrap();
    while !matches!(subscriber.next_event(Some(GUARD)).unwrap(), Some(Event::Subscribed { .. })) {}
    let address = collector::address(server, WireFormat::TCP_NATIVE);
    let options = ConnectOptions { acknowledgements: true, ..address.connect_options() };
    let mut publisher = Client::connect_with(&address, &options).unwrap();
    let request = PublishRequest { topic: "t.a", payload: b"1", ..Default::default() };
    let Position { epoch, sequence } =
        publisher.publish_acknowledged(request, GUARD, |_| {}).unwrap().unwrap();
    loop {
        if let Event::Tick(tick) = subscriber.next_event(Some(GUARD)).unwrap().unwrap() {
            return [(epoch, sequence), (tick.epoch, tick.sequence.0)];
        }
    }
}

#[test]
fn a_routed_publish_is_acknowledged_with_the_position_of_the_tick_that_comes_back() {
    let _machine = beside_others();
    let nats = Nats::start("js-routed", &[]);
    nats.make_stream("TICKS", "t.>");
    let redis = Redis::start("redis-routed", &[]);
    let engines = [
        (
            "js-routed",
            format!("kind = 'jetstream'\nstream = 'TICKS'\n{}", nats.servers()),
            format!("kind = 'jetstream'\n{}", nats.servers()),
        ),
        (
            "redis-routed",
            format!("kind = 'redis-stream'\nstreams = ['t.a']\n{}", redis.server()),
            format!("kind = 'redis-stream'\nstream = '{{topic}}'\n{}", redis.server()),
        ),
    ];
    for (name, source, sink) in engines {
        let routed =
            format!("{source}\n[[sink]]\nname = 'log'\n{sink}\n[[route]]\ntopics = 't.>'\nto = 'log'");
        let server = serve(name, &routed);
        let sink_runs = || {
            get_of_all_shards(server.admin.unwrap(), "/v1/shards").json()["sinks"][0]["state"] == "running"
        };
        eventually("a sink that runs", sink_runs);
        let [acknowledged, received] = acknowledged_and_received(&server);
        assert_eq!(acknowledged, received, "{name}");
        let lag = || {
            get_of_all_shards(server.admin.unwrap(), "/v1/shards").json()["sources"][0]["lag_messages"]
                .as_u64()
        };
        eventually("no lag", || lag() == Some(0));
        server.stop_cleanly();
    }
}
