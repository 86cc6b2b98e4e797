//! Sources that read other engines: real servers, started, stopped and killed by the tests.

use std::{fs, net::TcpListener, path::Path, process::Stdio};

use crate::harness::{
    GUARD, Server, beside_others,
    collector::{self, ByTopic, Collector, Got, assert_same},
    engines::{Nats, Redis},
    eventually,
    external::{External, Library},
    http::{get_of_all_shards, request},
    tickcast,
};
use serde_json::Value;
use tickcast_client::{Event, SubscribeOptions};
use tickcast_proto::{WireFormat, subscription::StartPosition};

pub const FORMATS: [WireFormat; 3] =
    [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON];

/// Starts a server with these sources.
pub fn serve(name: &str, sources: &str) -> Server {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.toml"));
    fs::write(&file, sources).unwrap();
    let config = file.to_str().unwrap();
    Server::start_with_input(
        &mut tickcast(),
        Stdio::null(),
        &[
            "--config",
            config,
            "--outbox-max",
            "64MiB",
            "--egress-log",
            "128MiB",
            "--stall-deadline",
            "10m",
            "--history",
            "100000:64MiB:0",
        ],
    )
}

/// What the admin listener says of the only source.
pub fn source(server: &Server) -> Value {
    get_of_all_shards(server.admin.unwrap(), "/v1/shards").json()["sources"][0].clone()
}

pub fn wait_for_state(server: &Server, state: &str) {
    eventually(&format!("the state {state}"), || source(server)["state"] == state);
}

pub fn numbers(numbers: std::ops::Range<u32>) -> impl Iterator<Item = String> {
    numbers.map(|number| number.to_string())
}

/// Ticks of one topic with these numbers as payloads, from sequence 1.
pub fn ticks(topic: &str, numbers: impl Iterator<Item = String>) -> ByTopic {
    let ticks = (1..).zip(numbers).map(|(sequence, payload)| (sequence, payload.into_bytes())).collect();
    ByTopic::from([(topic.to_owned(), ticks)])
}

pub fn payloads(got: &Got, topic: &str) -> Vec<u32> {
    let ticks = got.ticks.get(topic).map(Vec::as_slice).unwrap_or_default();
    ticks.iter().map(|(_, payload)| std::str::from_utf8(payload).unwrap().parse().unwrap()).collect()
}

#[test]
fn a_capture_through_nats_reaches_every_kind_of_client_whole_and_in_order() {
    let _machine = beside_others();
    let nats = Nats::start("nats-capture", &[]);
    let map = "map = { strip = 'in.', prefix = 'market.', topic = '{2}.{1}', key = '{json:/k}', time = '{header:At}', time_unit = 'us' }";
    let server = serve(
        "nats-capture",
        &format!("[[source]]\nkind = 'nats'\nsubjects = ['in.>']\n{}\n{map}\n", nats.servers()),
    );
    wait_for_state(&server, "running");
    let collectors = FORMATS.map(|format| Collector::start(&server, format, &["market.>"]));
    let mut expected = ByTopic::new();
    let count = 6_000;
    nats.wait_for_subscriber("in.0.px");
    nats.with(async |client| {
        for number in 0..count {
            let venue = number % 7;
            let payload = format!("{{\"k\":{venue},\"n\":{number}}}");
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("At", format!("{}", 1_793_322_000_000_000_u64 + number).as_str());
            let subject = format!("in.{venue}.px");
            client.publish_with_headers(subject, headers, payload.clone().into()).await.unwrap();
            let ticks = expected.entry(format!("market.px.{venue}")).or_default();
            ticks.push((ticks.len() as u64 + 1, payload.into_bytes()));
        }
        client.flush().await.unwrap();
    });
    for collector in collectors {
        collector.wait_for(count as usize);
        assert_same(&collector.name.clone(), &collector.finish().ticks, &expected);
    }
    let source = source(&server);
    assert_eq!(
        (&source["ticks"], &source["messages_lost"], &source["messages_skipped"]),
        (&count.into(), &0.into(), &0.into())
    );
    server.stop_cleanly();
}

#[test]
fn what_does_not_map_is_counted_logged_and_skipped() {
    let _machine = beside_others();
    let nats = Nats::start("nats-unmapped", &[]);
    let server = serve(
        "nats-unmapped",
        &format!(
            "[[source]]\nkind = 'nats'\nsubjects = ['in.>']\n{}\nmap = {{ topic = 't.{{json:/s}}' }}\n",
            nats.servers()
        ),
    );
    wait_for_state(&server, "running");
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &[">"]);
    let good = r#"{"s":"a"}"#;
    nats.wait_for_subscriber("in.x");
    for payload in ["not JSON", "{}", r#"{"s":"b c"}"#, good] {
        nats.publish("in.x", [payload.to_owned()].into_iter());
    }
    collector.wait_for(1);
    assert_same("native", &collector.finish().ticks, &ticks("t.a", [good.to_owned()].into_iter()));
    assert_eq!(source(&server)["messages_skipped"], 3);
    let stopped = server.stop_cleanly();
    for part in [
        "nats: message of \"in.x\" skipped: there is no text or number at /s in the payload",
        "topic \"t.b c\": contains whitespace",
    ] {
        assert!(stopped.log.contains(part), "{part}: {}", stopped.log);
    }
}

#[test]
fn an_engine_that_is_absent_at_the_start_is_read_once_it_is_there() {
    let _machine = beside_others();
    let mut nats = Nats::start("nats-absent", &[]);
    nats.kill();
    let server =
        serve("nats-absent", &format!("[[source]]\nkind = 'nats'\nsubjects = ['t.>']\n{}\n", nats.servers()));
    wait_for_state(&server, "waiting");
    let collector = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &["t.>"]);
    eventually("the reason", || {
        source(&server)["reason"].as_str().is_some_and(|why| why.contains("refused"))
    });
    nats.restart();
    wait_for_state(&server, "running");
    nats.wait_for_subscriber("t.a");
    nats.publish("t.a", numbers(0..100));
    collector.wait_for(100);
    assert_same("json", &collector.finish().ticks, &ticks("t.a", numbers(0..100)));
    server.stop_cleanly();
}

#[test]
fn a_source_that_has_not_reached_its_engine_yet_is_waiting_and_the_server_not_ready() {
    let _machine = beside_others();
    for kind in [
        "kind = 'nats'\nservers = ['nats://ENGINE']\nsubjects = ['t.>']",
        "kind = 'redis-stream'\nserver = 'redis://ENGINE'\nstreams = ['t']",
        "kind = 'websocket'\nurl = 'ws://ENGINE/'\nmap = { topic = 't' }",
    ] {
        // It accepts, and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let engine = kind.replace("ENGINE", &silent.local_addr().unwrap().to_string());
        let server = serve("never-reached", &format!("[[source]]\nrequired = true\n{engine}\n"));
        let connection = silent.accept().unwrap();
        let source = source(&server);
        assert_eq!(source["state"], "waiting", "{kind}: {source}");
        assert!(source["reason"].as_str().unwrap().starts_with("for its engine"), "{source}");
        assert_eq!(request(server.admin.unwrap(), "GET", "/readyz").status, 503, "{kind}");
        drop(connection);
        server.stop_cleanly();
    }
}

#[test]
fn wrong_credentials_are_named_and_never_logged() {
    let _machine = beside_others();
    let nats = Nats::start("nats-credentials", &["--user", "feed", "--pass", "correct-horse"]);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nats-credentials-password");
    fs::write(&file, "battery-staple\n").unwrap();
    let auth = format!("auth = {{ user = 'feed', password_file = '{}' }}", file.display());
    let server = serve(
        "nats-credentials",
        &format!("[[source]]\nkind = 'nats'\nsubjects = ['t.>']\n{}\n{auth}\n", nats.servers()),
    );
    eventually("the reason", || {
        source(&server)["reason"].as_str().is_some_and(|why| why.contains("authorization violation"))
    });
    // The file is read again at each attempt.
    fs::write(&file, "correct-horse\n").unwrap();
    wait_for_state(&server, "running");
    let stopped = server.stop_cleanly();
    assert!(stopped.log.contains("authorization violation"), "{}", stopped.log);
    assert!(!stopped.log.contains("staple") && !stopped.log.contains("horse"), "{}", stopped.log);
}

#[test]
fn an_interruption_of_nats_is_counted_as_a_loss_and_reading_goes_on() {
    let _machine = beside_others();
    let mut nats = Nats::start("nats-kill", &[]);
    let server =
        serve("nats-kill", &format!("[[source]]\nkind = 'nats'\nsubjects = ['t.>']\n{}\n", nats.servers()));
    wait_for_state(&server, "running");
    let collector = Collector::start(&server, WireFormat::WEBSOCKET_NATIVE, &["t.>"]);
    nats.wait_for_subscriber("t.a");
    nats.publish("t.a", numbers(0..500));
    collector.wait_for(500);
    assert_eq!(source(&server)["messages_lost"], 0);
    nats.kill();
    wait_for_state(&server, "waiting");
    nats.restart();
    wait_for_state(&server, "running");
    assert_eq!(source(&server)["messages_lost"], 1);
    nats.wait_for_subscriber("t.a");
    nats.publish("t.a", numbers(500..600));
    collector.wait_for(600);
    assert_same("native", &collector.finish().ticks, &ticks("t.a", numbers(0..600)));
    server.stop_cleanly();
}

#[test]
fn a_stream_is_read_whole_through_a_kill_and_a_stop_of_its_server() {
    let _machine = beside_others();
    let mut nats = Nats::start("js-kill", &[]);
    nats.make_stream("TICKS", "t.>");
    let config =
        format!("[[source]]\nkind = 'jetstream'\nstream = 'TICKS'\nstart = 'all'\n{}\n", nats.servers());
    let server = serve("js-kill", &config);
    wait_for_state(&server, "running");
    let collectors = FORMATS.map(|format| Collector::start(&server, format, &["t.>"]));
    nats.store("t.a", numbers(0..500));
    eventually("the first 500", || source(&server)["ticks"] == 500);
    nats.kill();
    wait_for_state(&server, "waiting");
    nats.restart();
    nats.store("t.a", numbers(500..1_000));
    eventually("the next 500", || source(&server)["ticks"] == 1_000);
    nats.engine().stop();
    wait_for_state(&server, "waiting");
    nats.engine().go_on();
    nats.store("t.a", numbers(1_000..1_500));
    for collector in collectors {
        collector.wait_for(1_500);
        assert_same(&collector.name.clone(), &collector.finish().ticks, &ticks("t.a", numbers(0..1_500)));
    }
    let source = source(&server);
    assert_eq!((&source["messages_lost"], &source["messages_skipped"]), (&0.into(), &0.into()));
    server.stop_cleanly();
}

#[test]
fn a_stream_that_was_deleted_and_made_again_is_read_from_its_beginning() {
    let _machine = beside_others();
    let nats = Nats::start("js-again", &[]);
    nats.make_stream("TICKS", "t.>");
    nats.store("t.a", numbers(0..300));
    let server = serve(
        "js-again",
        &format!("[[source]]\nkind = 'jetstream'\nstream = 'TICKS'\nstart = '301'\n{}\n", nats.servers()),
    );
    wait_for_state(&server, "running");
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["t.>"]);
    nats.store("t.a", numbers(300..400));
    collector.wait_for(100);
    nats.with(async |client| {
        async_nats::jetstream::new(client).delete_stream("TICKS").await.unwrap();
    });
    nats.make_stream("TICKS", "t.>");
    // More than the old one had: its sequences alone do not tell.
    nats.store("t.a", numbers(1_000..1_600));
    collector.wait_for(700);
    let got = collector.finish();
    let expected: Vec<u32> = (300..400).chain(1_000..1_600).collect();
    assert_eq!(payloads(&got, "t.a"), expected);
    let stopped = server.stop_cleanly();
    assert!(stopped.log.contains("deleted and made again"), "{}", stopped.log);
}

#[test]
fn messages_of_subjects_that_are_not_wanted_are_passed_over_and_are_no_loss() {
    let _machine = beside_others();
    let nats = Nats::start("js-unwanted", &[]);
    nats.make_stream("TICKS", "t.>");
    let server = serve(
        "js-unwanted",
        &format!(
            "[[source]]\nkind = 'jetstream'\nstream = 'TICKS'\nsubjects = ['t.a', 't.b']\n{}\n",
            nats.servers()
        ),
    );
    wait_for_state(&server, "running");
    let collector = Collector::start(&server, WireFormat::WEBSOCKET_NATIVE, &["t.>"]);
    nats.store("t.a", numbers(0..10));
    // Not read: it is none of the subjects.
    nats.store("t.c", numbers(10..20));
    collector.wait_for(10);
    nats.engine().stop();
    wait_for_state(&server, "waiting");
    nats.engine().go_on();
    nats.store("t.b", numbers(20..30));
    collector.wait_for(20);
    assert_eq!(source(&server)["messages_lost"], 0);
    let got = collector.finish();
    assert_eq!(payloads(&got, "t.a"), (0..10).collect::<Vec<_>>());
    assert_eq!(payloads(&got, "t.b"), (20..30).collect::<Vec<_>>());
    assert!(!got.ticks.contains_key("t.c"));
    server.stop_cleanly();
}

#[test]
fn redis_streams_are_read_whole_through_a_kill_of_the_server() {
    let _machine = beside_others();
    let mut redis = Redis::start("redis-kill", &[]);
    redis.add("t.a", numbers(0..500));
    let server = serve(
        "redis-kill",
        &format!(
            "[[source]]\nkind = 'redis-stream'\nstreams = ['t.a', 't.b']\nstart = 'all'\n{}\n",
            redis.server()
        ),
    );
    eventually("the first 500", || source(&server)["ticks"] == 500);
    let collectors = FORMATS.map(|format| Collector::start(&server, format, &["t.b"]));
    redis.kill();
    wait_for_state(&server, "waiting");
    redis.restart();
    redis.add("t.b", numbers(0..3_000));
    for collector in collectors {
        collector.wait_for(3_000);
        assert_same(&collector.name.clone(), &collector.finish().ticks, &ticks("t.b", numbers(0..3_000)));
    }
    assert_eq!(source(&server)["messages_lost"], 0);
    server.stop_cleanly();
}

#[test]
fn entries_trimmed_before_they_are_read_are_counted_and_a_new_life_is_read_from_its_beginning() {
    let _machine = beside_others();
    let redis = Redis::start("redis-trim", &[]);
    let server = serve(
        "redis-trim",
        &format!("[[source]]\nkind = 'redis-stream'\nstreams = ['t.a']\n{}\n", redis.server()),
    );
    wait_for_state(&server, "running");
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["t.a"]);
    redis.add("t.a", numbers(0..10));
    collector.wait_for(10);
    let mut connection = redis.connect();
    // In one step, so that the reader sees none of the ten.
    let mut pipe = redis::pipe();
    pipe.atomic();
    numbers(10..20).for_each(|number| {
        pipe.cmd("XADD").arg("t.a").arg("*").arg("data").arg(number).ignore();
    });
    pipe.cmd("XTRIM").arg("t.a").arg("MAXLEN").arg(0).ignore().exec(&mut connection).unwrap();
    eventually("ten lost", || source(&server)["messages_lost"] == 10);
    redis::cmd("DEL").arg("t.a").exec(&mut connection).unwrap();
    // The reader notices while it waits: a stream of the same name with larger ids would look like the same.
    redis::cmd("XADD").arg("t.a").arg("1-1").arg("data").arg("77").exec(&mut connection).unwrap();
    collector.wait_for(11);
    assert_eq!(*payloads(&collector.finish(), "t.a").last().unwrap(), 77);
    let stopped = server.stop_cleanly();
    assert!(stopped.log.contains("was deleted and made again"), "{}", stopped.log);
}

#[test]
fn an_interruption_of_redis_pub_sub_is_counted_as_a_loss() {
    let _machine = beside_others();
    let mut redis = Redis::start("redis-pubsub", &[]);
    let server = serve(
        "redis-pubsub",
        &format!(
            "[[source]]\nkind = 'redis-pubsub'\nchannels = ['t:*']\n{}\nmap = {{ separator = ':' }}\n",
            redis.server()
        ),
    );
    wait_for_state(&server, "running");
    let collectors = FORMATS.map(|format| Collector::start(&server, format, &["t.a"]));
    let publish = |redis: &Redis, numbers: std::ops::Range<u32>| {
        let (mut connection, mut pipe) = (redis.connect(), redis::pipe());
        numbers.for_each(|number| {
            pipe.cmd("PUBLISH").arg("t:a").arg(number).ignore();
        });
        pipe.exec(&mut connection).unwrap();
    };
    publish(&redis, 0..2_000);
    collectors.iter().for_each(|collector| collector.wait_for(2_000));
    assert_eq!(source(&server)["messages_lost"], 0);
    redis.kill();
    wait_for_state(&server, "waiting");
    redis.restart();
    wait_for_state(&server, "running");
    assert_eq!(source(&server)["messages_lost"], 1);
    publish(&redis, 2_000..2_100);
    for collector in collectors {
        collector.wait_for(2_100);
        assert_same(&collector.name.clone(), &collector.finish().ticks, &ticks("t.a", numbers(0..2_100)));
    }
    server.stop_cleanly();
}

#[test]
fn errors_of_every_source_are_reported_at_once_with_what_to_do() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sources-wrong.toml");
    let text = "[[source]]\nkind = 'nats'\nsubjects = ['a..b']\nservers = ['nats://u:p@h:1']\n\n[[source]]\nkind = 'jetstream'\nstream = 'a.b'\nauth = { user = 'x' }\n\n[[source]]\nkind = 'redis-stream'\nstreams = ['s']\nserver = 'http://x'\nmap = { topic = '{what}' }\n\n[[source]]\nkind = 'redis-pubsub'\n\n[[source]]\nkind = 'redis-pubsub'\nname = 'twice'\nchannels = ['md:*', '*:eu', 'fx:*']\n\n[[source]]\nkind = 'websocket'\nurl = 'ws://h/'\nmap = { topic = 't' }\ntls = { ca = '/dev/null' }\n";
    fs::write(&file, text).unwrap();
    let output = tickcast().args(["serve", "--check-config", "--config"]).arg(&file).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    for part in [
        "\"a..b\": contains an empty token",
        "an address holds credentials: name a file in `auth` instead",
        "\"a.b\" is not the name of a stream",
        "user and password_file belong together",
        "use redis://host:6379 or rediss://host:6379",
        "{what} is not known: use {subject}",
        "channels",
        "\"*:eu\" and \"md:*\" match the same channels, whose messages would come twice; leave out one",
        "\"fx:*\" and \"*:eu\" match the same channels",
        "an address does not require TLS: write wss://host/path",
    ] {
        assert!(errors.contains(part), "{part}: {errors}");
    }
}

#[test]
fn a_feed_over_an_outgoing_websocket_is_read_with_tokens_that_are_renewed() {
    let _machine = beside_others();
    let feed = External::run(Library::Websockets, "feed", &[]);
    feed.wait_for("");
    let port = feed.printed().trim().strip_prefix("port ").unwrap().to_owned();
    let token = Path::new(env!("CARGO_TARGET_TMPDIR")).join("feed-token");
    fs::write(&token, "correct-horse\n").unwrap();
    let source = format!(
        "[[source]]\nkind = 'websocket'\nurl = 'ws://127.0.0.1:{port}/feed?key={{token}}'\n\
         headers = {{ Authorization = 'Bearer {{token}}' }}\n\
         send = ['subscribe {{token}}']\nrenew = ['renewed {{token}}']\nitems = '/data'\n\
         token = {{ file = '{}', every = '1s' }}\n\
         map = {{ topic = 't.{{json:/s}}', key = '{{json:/n}}', time = '{{json:/t}}' }}\n",
        token.display()
    );
    // The feed begins at once: what comes before the first subscriber is in the history.
    let server = serve("feed", &source);
    feed.wait_for("renewed correct-horse");
    let printed = feed.printed();
    assert_eq!(
        printed.matches("connection Bearer correct-horse\ntext subscribe correct-horse\n").count(),
        2,
        "{printed}"
    );
    eventually("all ticks", || self::source(&server)["ticks"] == 600);
    let view = self::source(&server);
    assert_eq!(
        (&view["messages_lost"], &view["messages_skipped"], &view["connections"]),
        (&1.into(), &0.into(), &2.into())
    );
    let mut client = collector::connect(&server, WireFormat::WEBSOCKET_JSON);
    let latest = SubscribeOptions { from: StartPosition::Latest, ..SubscribeOptions::default() };
    let mut values = Vec::new();
    for topic in ["t.x0", "t.x1"] {
        client.subscribe_with(topic, &latest).unwrap();
        while let Some(event) = client.next_event(Some(GUARD)).unwrap() {
            if let Event::Tick(tick) = event {
                values.push((tick.key, String::from_utf8(tick.payload.to_owned()).unwrap()));
                if tick.key >= 599 {
                    break;
                }
            }
        }
    }
    assert_eq!(values.len(), 600, "the last value of each key");
    let expected =
        |n: u64| (n, format!("{{\"s\":\"x{}\",\"n\":{n},\"t\":{}}}", n % 2, 1_793_322_000_000 + n));
    values.sort();
    assert!((1..=600).map(expected).eq(values), "each as the feed has sent it");
    let stopped = server.stop_cleanly();
    assert!(stopped.log.contains("closed with 1012: restarting"), "{}", stopped.log);
    assert!(!stopped.log.contains("horse"), "{}", stopped.log);
}
