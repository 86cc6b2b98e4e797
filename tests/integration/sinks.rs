//! Sinks that pass clients' publishes to other engines: real servers, stopped and killed by the tests.

use std::{collections::HashMap, fs, path::Path, process::Stdio};

use crate::harness::{
    GUARD, Server, beside_others,
    collector::{Collector, address},
    engines::{Nats, Redis},
    eventually,
    http::get_of_all_shards,
    tickcast,
};
use serde_json::Value;
use tickcast_client::{Client, ClientError, ConnectOptions, Event, PublishRequest};
use tickcast_proto::{ErrorCode, WireFormat, subscription::Position};

const FORMATS: [WireFormat; 3] =
    [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON];
const ROUTE: &str = "[[route]]\ntopics = 'orders.>'\nto = 'engine'\n";

/// Starts a server with a sink of these options for `orders.>`, and what else the file has.
fn serve(name: &str, sink: &str, rest: &str) -> Server {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.toml"));
    let rest = if rest.is_empty() { "source = []\n" } else { rest };
    let (before, after) = if rest.starts_with("source") { (rest, "") } else { ("", rest) };
    fs::write(&file, format!("{before}[[sink]]\nname = 'engine'\n{sink}\n{ROUTE}{after}")).unwrap();
    let config = file.to_str().unwrap();
    Server::start_with_input(&mut tickcast(), Stdio::null(), &["--shards", "2", "--config", config])
}

/// What the admin listener says of the only sink.
fn sink(server: &Server) -> Value {
    get_of_all_shards(server.admin.unwrap(), "/v1/shards").json()["sinks"][0].clone()
}

fn wait_for_state(server: &Server, state: &str) {
    eventually(&format!("the state {state}"), || sink(server)["state"] == state);
}

fn publisher(server: &Server, encoding: WireFormat) -> Client {
    let address = address(server, encoding);
    let options = ConnectOptions { acknowledgements: true, ..address.connect_options() };
    Client::connect_with(&address, &options).unwrap()
}

/// The position of a tick, or the code of its error.
fn publish(client: &mut Client, topic: &str, payload: &[u8]) -> Result<Position, u16> {
    let publish = PublishRequest { topic, payload, producer_time_ns: 7, key: 5, ..PublishRequest::default() };
    match client.publish_acknowledged(publish, GUARD, |_| {}) {
        Ok(position) => Ok(position.expect("the server acknowledges")),
        Err(ClientError::Refused { code, .. }) => Err(code),
        Err(error) => panic!("{error}"),
    }
}

fn is_unavailable(answer: Result<Position, u16>) -> bool {
    answer == Err(ErrorCode::EngineUnavailable as u16)
}

#[test]
fn a_publish_is_acknowledged_once_the_stream_has_it_and_comes_back_through_a_source() {
    let _machine = beside_others();
    let nats = Nats::start("sink-js", &[]);
    nats.make_stream("ORDERS", "in.orders.>");
    let source = format!(
        "[[source]]\nkind = 'jetstream'\nstream = 'ORDERS'\n{}\n\
         map = {{ strip = 'in.', key = '{{header:Tickcast-Key}}', time = '{{header:Tickcast-Time}}', time_unit = 'ns' }}\n",
        nats.servers()
    );
    let options = format!("kind = 'jetstream'\nsubject = 'in.{{topic}}'\n{}", nats.servers());
    let server = serve("sink-js", &options, &source);
    wait_for_state(&server, "running");
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["orders.>"]);
    let (mut expected, mut epochs) = (Vec::new(), Vec::new());
    for (round, format) in FORMATS.into_iter().cycle().take(9).enumerate() {
        let mut client = publisher(&server, format);
        for number in 0..20 {
            let payload = format!("{}", round * 20 + number).into_bytes();
            let Position { epoch, sequence } = publish(&mut client, "orders.a", &payload).unwrap();
            assert_eq!(sequence, expected.len() as u64 + 1, "the sequence of the stream");
            expected.push((sequence, payload));
            epochs.push(epoch);
        }
    }
    epochs.dedup();
    assert!(epochs.len() == 1 && epochs[0] >= 1 << 52 && epochs[0] < 1 << 53, "{epochs:?}");
    let stored = nats.with(async |client| {
        let stream = async_nats::jetstream::new(client).get_stream("ORDERS").await.unwrap();
        let message = stream.get_raw_message(180).await.unwrap();
        let header = |name: &str| message.headers.get(name).unwrap().to_string();
        (
            message.subject.to_string(),
            message.payload.clone(),
            header("Tickcast-Key"),
            header("Tickcast-Time"),
        )
    });
    assert_eq!(stored, ("in.orders.a".into(), "179".into(), "5".into(), "7".into()));
    collector.wait_for(180);
    assert_eq!(collector.finish().ticks["orders.a"], expected);
    let sink = sink(&server);
    assert_eq!(
        (&sink["ticks"], &sink["ticks_refused"], &sink["kind"]),
        (&180.into(), &0.into(), &"jetstream".into())
    );
    // A topic without a route is this server's own.
    assert_eq!(publish(&mut publisher(&server, FORMATS[0]), "prices.a", b"1").unwrap().sequence, 1);
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("ticks_routed_confirmed"), 180);
}

#[test]
fn a_stopped_engine_is_told_within_the_deadline_and_publishing_goes_on_after_it() {
    let _machine = beside_others();
    let mut nats = Nats::start("sink-stopped", &[]);
    nats.make_stream("ORDERS", "orders.>");
    let options = format!("kind = 'jetstream'\nack_timeout = '1s'\n{}", nats.servers());
    let server = serve("sink-stopped", &options, "");
    wait_for_state(&server, "running");
    let mut client = publisher(&server, WireFormat::WEBSOCKET_JSON);
    let first = publish(&mut client, "orders.a", b"1").unwrap();
    nats.engine().stop();
    // The server does not know yet that the engine is stopped: the tick may be there.
    assert_eq!(publish(&mut client, "orders.a", b"2"), Err(ErrorCode::Unconfirmed as u16));
    // Others do not wait for it.
    publish(&mut client, "prices.a", b"1").unwrap();
    wait_for_state(&server, "waiting");
    assert!(is_unavailable(publish(&mut client, "orders.a", b"3")), "it is certain now");
    nats.engine().go_on();
    wait_for_state(&server, "running");
    let again = publish(&mut client, "orders.a", b"4").unwrap();
    assert!(again.epoch == first.epoch && again.sequence > first.sequence, "{first:?} {again:?}");
    nats.kill();
    wait_for_state(&server, "waiting");
    assert!(is_unavailable(publish(&mut client, "orders.a", b"5")));
    nats.restart();
    wait_for_state(&server, "running");
    let last = publish(&mut client, "orders.a", b"6").unwrap();
    let mut stored = nats.with(async |client| {
        let context = async_nats::jetstream::new(client);
        let stream = context.get_stream("ORDERS").await.unwrap();
        let mut payloads = Vec::new();
        for sequence in 1..=last.sequence {
            payloads.push(stream.get_raw_message(sequence).await.unwrap().payload.to_vec());
        }
        context.delete_stream("ORDERS").await.unwrap();
        payloads
    });
    // What was not confirmed may be there, what was refused is not, and nothing is there twice.
    stored.sort();
    stored.retain(|payload| payload != b"2");
    assert_eq!(stored, [b"1", b"4", b"6"]);
    nats.make_stream("ORDERS", "orders.>");
    let new = publish(&mut client, "orders.a", b"7").unwrap();
    assert!(new.epoch != first.epoch && new.sequence == 1, "another life of the stream: {new:?}");
    server.stop_cleanly();
}

#[test]
fn no_stream_a_reserved_name_and_wrong_credentials_refuse_at_once() {
    let _machine = beside_others();
    let nats = Nats::start("sink-refused", &["--user", "feed", "--pass", "correct-horse"]);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sink-password");
    fs::write(&file, "battery-staple\n").unwrap();
    let auth = format!("auth = {{ user = 'feed', password_file = '{}' }}", file.display());
    // The deadline would be a failure of the test.
    let options = format!("kind = 'jetstream'\nack_timeout = '10m'\n{}\n{auth}", nats.servers());
    let server = serve("sink-refused", &options, "[[route]]\ntopics = '>'\nto = 'engine'\n");
    eventually("the reason", || {
        sink(&server)["reason"].as_str().is_some_and(|why| why.contains("authorization violation"))
    });
    fs::write(&file, "correct-horse\n").unwrap();
    wait_for_state(&server, "running");
    let mut client = publisher(&server, WireFormat::TCP_NATIVE);
    assert!(is_unavailable(publish(&mut client, "orders.a", b"1")), "no stream takes it");
    assert_eq!(
        publish(&mut client, "$JS.API.STREAM.LIST", b""),
        Err(ErrorCode::BadTopic as u16),
        "a client does not command NATS"
    );
    assert_eq!(sink(&server)["ticks_refused"], 2);
    let stopped = server.stop_cleanly();
    for part in
        ["no stream takes \"orders.a\"", "names that begin with $ or _, or end with :gen, are reserved"]
    {
        assert!(stopped.log.contains(part), "{part}: {}", stopped.log);
    }
    assert!(!stopped.log.contains("staple") && !stopped.log.contains("horse"), "{}", stopped.log);
}

#[test]
fn nats_without_streams_confirms_what_it_has_taken_and_names_what_it_refuses() {
    let _machine = beside_others();
    let config = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sink-permissions.conf");
    fs::write(
        &config,
        "authorization { users = [\n\
         { user: feed, password: \"feed\", permissions: { publish: [\"orders.>\", \"_INBOX.>\"], subscribe: \"_INBOX.>\" } }\n\
         { user: all, password: \"all\" }\n] }\nno_auth_user: all\n",
    )
    .unwrap();
    let nats = Nats::start("sink-nats", &["-c", config.to_str().unwrap()]);
    let password = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sink-nats-password");
    fs::write(&password, "feed").unwrap();
    let auth = format!("auth = {{ user = 'feed', password_file = '{}' }}", password.display());
    let source = format!("[[source]]\nkind = 'nats'\nsubjects = ['orders.>']\n{}\n", nats.servers());
    let options = format!("kind = 'nats'\nack_timeout = '10m'\n{}\n{auth}", nats.servers());
    let rest = format!("[[route]]\ntopics = 'other.>'\nto = 'engine'\n{source}");
    let server = serve("sink-nats", &options, &rest);
    wait_for_state(&server, "running");
    eventually("the source", || {
        get_of_all_shards(server.admin.unwrap(), "/v1/shards").json()["sources"][0]["state"] == "running"
    });
    let collector = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &["orders.>"]);
    for format in FORMATS {
        let mut client = publisher(&server, format);
        let accepted = publish(&mut client, "orders.a", b"1");
        assert_eq!(accepted, Ok(Position { epoch: 0, sequence: 0 }), "NATS has no positions");
        assert!(is_unavailable(publish(&mut client, "other.A", b"1")));
        assert!(is_unavailable(publish(&mut client, "other.\"B\\", b"1")), "NATS quotes it in its error");
        publish(&mut client, "orders.b", b"2").unwrap();
    }
    collector.wait_for(6);
    assert_eq!(collector.finish().ticks["orders.b"].len(), 3);
    let stopped = server.stop_cleanly();
    assert!(stopped.log.contains("NATS does not permit to publish on \"other.A\""), "{}", stopped.log);
}

#[test]
fn ticks_are_acknowledged_without_a_position_where_nats_does_not_permit_to_ask_for_it() {
    let _machine = beside_others();
    let config = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sink-no-info.conf");
    fs::write(
        &config,
        "authorization { users = [\n\
         { user: feed, password: \"feed\", permissions: { publish: \"orders.>\", subscribe: \"_INBOX.>\" } }\n\
         { user: all, password: \"all\" }\n] }\nno_auth_user: all\n",
    )
    .unwrap();
    let nats = Nats::start("sink-no-info", &["-c", config.to_str().unwrap()]);
    nats.make_stream("ORDERS", "orders.>");
    let password = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sink-no-info-password");
    fs::write(&password, "feed").unwrap();
    let auth = format!("auth = {{ user = 'feed', password_file = '{}' }}", password.display());
    let options = format!("kind = 'jetstream'\nack_timeout = '10m'\n{}\n{auth}", nats.servers());
    let server = serve("sink-no-info", &options, "");
    wait_for_state(&server, "running");
    let mut client = publisher(&server, WireFormat::TCP_NATIVE);
    for number in 0..20 {
        let stored = publish(&mut client, "orders.a", number.to_string().as_bytes());
        assert_eq!(stored, Ok(Position { epoch: 0, sequence: 0 }));
    }
    let sink = sink(&server);
    assert_eq!((&sink["ticks"], &sink["ticks_unconfirmed"]), (&20.into(), &0.into()), "{sink}");
    server.stop_cleanly();
}

#[test]
fn each_publish_of_a_flood_has_one_answer_and_the_stream_has_their_order() {
    const PUBLISHES: usize = 5_000;
    let _machine = beside_others();
    let nats = Nats::start("sink-flood", &[]);
    nats.make_stream("ORDERS", "orders.>");
    let options = format!("kind = 'jetstream'\nack_timeout = '1m'\n{}", nats.servers());
    let server = serve("sink-flood", &options, "");
    wait_for_state(&server, "running");
    let publishers = FORMATS.map(|format| {
        let mut client = publisher(&server, format);
        std::thread::spawn(move || {
            let topic = format!("orders.{}", client.connection().encoding().name());
            let mut positions = HashMap::new();
            let mut take = |event: Event<'_>| match event {
                Event::Published { request, sequence, .. } => {
                    assert_eq!(positions.insert(request, sequence), None, "one answer");
                }
                Event::Error { text, .. } => panic!("{text}"),
                _ => {}
            };
            let mut requests = Vec::new();
            for number in 0..PUBLISHES {
                while client.connection().unacknowledged() == tickcast_client::PUBLISHES_UNACKNOWLEDGED_MAX {
                    take(client.next_event(Some(GUARD)).unwrap().expect("an answer"));
                }
                let payload = number.to_string().into_bytes();
                let publish =
                    PublishRequest { topic: &topic, payload: &payload, ..PublishRequest::default() };
                requests.push(client.publish_buffered(publish).unwrap());
            }
            client.barrier(GUARD, take).unwrap();
            assert!(requests.is_sorted_by_key(|request| positions[request]), "in the order of the publishes");
        })
    });
    publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
    assert_eq!(sink(&server)["ticks"], FORMATS.len() * PUBLISHES);
    server.stop_cleanly();
}

#[test]
fn a_stopping_server_answers_what_its_sinks_have_taken() {
    let _machine = beside_others();
    let nats = Nats::start("sink-drain", &[]);
    nats.make_stream("ORDERS", "orders.>");
    let options = format!("kind = 'jetstream'\nack_timeout = '10m'\n{}", nats.servers());
    let server = serve("sink-drain", &options, "");
    wait_for_state(&server, "running");
    nats.engine().stop();
    let mut client = publisher(&server, WireFormat::WEBSOCKET_JSON);
    let publish = PublishRequest { topic: "orders.a", payload: b"1", ..PublishRequest::default() };
    let request = client.publish_buffered(publish).unwrap();
    client.flush().unwrap();
    eventually("the tick is on its way", || sink(&server)["ticks_waiting"] == 1);
    server.terminate();
    let mut answers = Vec::new();
    while let Ok(Some(event)) = client.next_event(Some(GUARD)) {
        match event {
            Event::Error { request, code, .. } => answers.push((request, code)),
            Event::Closing { .. } => break,
            _ => {}
        }
    }
    assert_eq!(answers, [(request, ErrorCode::Unconfirmed as u16)]);
    drop(client);
    nats.engine().go_on();
    server.wait().assert_clean();
}

#[test]
fn entries_of_a_redis_stream_are_confirmed_with_their_ids_and_the_life_of_the_stream() {
    let _machine = beside_others();
    let mut redis = Redis::start("sink-redis", &[]);
    let source = format!(
        "[[source]]\nkind = 'redis-stream'\nstreams = ['orders']\nstart = 'all'\n{}\n\
         map = {{ topic = '{{header:topic}}', key = '{{header:key}}', time = '{{header:time}}', time_unit = 'ns' }}\n",
        redis.server()
    );
    let options = format!("kind = 'redis-stream'\nstream = 'orders'\nack_timeout = '2s'\n{}", redis.server());
    let server = serve("sink-redis", &options, &source);
    wait_for_state(&server, "running");
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["orders.>"]);
    let mut client = publisher(&server, WireFormat::TCP_NATIVE);
    let positions: Vec<Position> = (0..20)
        .map(|number| publish(&mut client, "orders.a", number.to_string().as_bytes()).unwrap())
        .collect();
    assert!(positions.is_sorted_by_key(|position| position.sequence));
    assert!(
        positions.iter().all(|position| position.epoch == positions[0].epoch && position.epoch >= 1 << 52)
    );
    let entries: Vec<(String, HashMap<String, String>)> =
        redis::cmd("XRANGE").arg("orders").arg("-").arg("+").query(&mut redis.connect()).unwrap();
    let (id, fields) = &entries[19];
    let (ms, number) = id.split_once('-').unwrap();
    let ms: u64 = ms.parse().unwrap();
    assert_eq!(positions[19].sequence, (ms - 1_735_689_600_000) * 8_192 + number.parse::<u64>().unwrap());
    let field = |name: &str| fields[name].as_str();
    assert_eq!(["data", "topic", "key", "time"].map(field), ["19", "orders.a", "5", "7"]);
    collector.wait_for(20);
    // Another life: the entries of the old one are gone.
    redis::cmd("DEL").arg("orders").exec(&mut redis.connect()).unwrap();
    let new = publish(&mut client, "orders.a", b"20").unwrap();
    assert_ne!(new.epoch, positions[0].epoch);
    // A key of another type takes no entries.
    redis::cmd("DEL").arg("orders").exec(&mut redis.connect()).unwrap();
    redis::cmd("SET").arg("orders").arg("x").exec(&mut redis.connect()).unwrap();
    assert!(is_unavailable(publish(&mut client, "orders.a", b"21")));
    redis::cmd("DEL").arg("orders").exec(&mut redis.connect()).unwrap();
    redis.engine().stop();
    assert_eq!(publish(&mut client, "orders.a", b"22"), Err(ErrorCode::Unconfirmed as u16));
    redis.engine().go_on();
    redis.kill();
    wait_for_state(&server, "waiting");
    assert!(is_unavailable(publish(&mut client, "orders.a", b"23")));
    redis.restart();
    wait_for_state(&server, "running");
    publish(&mut client, "orders.a", b"24").unwrap();
    server.stop_cleanly();
}

#[test]
fn redis_channels_take_what_is_published() {
    let _machine = beside_others();
    let redis = Redis::start("sink-pubsub", &[]);
    let source = format!(
        "[[source]]\nkind = 'redis-pubsub'\nchannels = ['in:*']\n{}\nmap = {{ strip = 'in:', separator = ':' }}\n",
        redis.server()
    );
    let options =
        format!("kind = 'redis-pubsub'\nchannel = 'in:{{topic}}'\nseparator = ':'\n{}", redis.server());
    let server = serve("sink-pubsub", &options, &source);
    wait_for_state(&server, "running");
    eventually("the source", || {
        get_of_all_shards(server.admin.unwrap(), "/v1/shards").json()["sources"][0]["state"] == "running"
    });
    let collector = Collector::start(&server, WireFormat::WEBSOCKET_NATIVE, &["orders.*"]);
    let mut client = publisher(&server, WireFormat::WEBSOCKET_JSON);
    for number in 0..100 {
        let answer = publish(&mut client, "orders.a", number.to_string().as_bytes());
        assert_eq!(answer, Ok(Position { epoch: 0, sequence: 0 }));
    }
    collector.wait_for(100);
    let got = collector.finish();
    let payloads = got.ticks["orders.a"].iter().map(|(_, payload)| payload.clone());
    assert!(payloads.eq((0..100).map(|number| number.to_string().into_bytes())));
    server.stop_cleanly();
}

#[test]
fn errors_of_sinks_and_routes_are_reported_at_once_with_what_to_do() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sinks-wrong.toml");
    let text = "[[sink]]\nkind = 'nats'\nname = 'a b'\nsubject = '{what}'\nservers = ['nats://u:p@h:1']\n\n\
                [[sink]]\nkind = 'redis-stream'\nname = 's'\nstream = 'x'\nfield = 'topic'\n\n\
                [[sink]]\nkind = 'redis-pubsub'\nname = 's'\nack_timeout = '1ms'\n\n\
                [[sink]]\nkind = 'jetstream'\n\n[[sink]]\nkind = 'mqtt'\nname = 'k'\n\n\
                [[sink]]\nkind = 'jetstream'\nname = 'j'\nstreams = ['x']\n\n\
                [[route]]\ntopics = 'a..b'\nto = 's'\n\n[[route]]\ntopics = 'a'\nto = 's'\ntenant = 'none'\n";
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        let output = tickcast().args(["serve", "--check-config", "--config"]).arg(&file).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let errors = check(text);
    for part in [
        "\"a b\": must be 1 to 64 letters, digits, - or _",
        "{what} is not known: use {topic}",
        "an address holds credentials: name a file in `auth` instead",
        "must be another name than topic, time and key",
        "1ms: must be 10ms to 10m",
        "name is missing for kind = \"jetstream\"",
        "must be one of nats, jetstream, ",
        "unknown key",
        "\"a..b\": contains an empty token",
        "\"none\": there is no such tenant",
    ] {
        assert!(errors.contains(part), "{part}: {errors}");
    }
    let errors = check("[[route]]\ntopics = 'a'\nto = 'nowhere'\n");
    assert!(errors.contains("\"nowhere\": there is no [[sink]] of this name"), "{errors}");
    let twice = "[[sink]]\nkind = 'nats'\nname = 's'\n";
    assert!(check(&format!("{twice}{twice}")).contains("another sink has this name"));
}
