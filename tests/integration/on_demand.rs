//! Sources that subscribe only to what clients ask for: real servers, whose own counters say what is subscribed to.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{
    harness::{
        GUARD, Server, beside_others,
        collector::{self, Collector},
        engines::{Nats, Redis},
        eventually, tickcast,
    },
    sources::{numbers, payloads, serve, source, wait_for_state},
};
use tickcast_client::{Client, Event, SubscribeOptions};
use tickcast_proto::{
    WireFormat,
    subscription::{Position, StartPosition},
};

/// What an engine that is read on demand says of the server.
trait Upstream {
    /// What the server subscribes to.
    fn subscriptions(&self) -> BTreeSet<String>;
    fn publish(&self, token: &str, numbers: std::ops::Range<u32>);
    /// How it writes a name of these tokens.
    fn named(&self, tokens: &str) -> String;
    /// The lines of a `[[source]]` whose topics begin with `t.`.
    fn source(&self, linger: &str) -> String;

    fn waits_for(&self, subscriptions: &[&str]) {
        let expected: BTreeSet<String> = subscriptions.iter().map(|tokens| self.named(tokens)).collect();
        let mut found = BTreeSet::new();
        eventually(&format!("the subscriptions {expected:?}"), || {
            found = self.subscriptions();
            found == expected
        });
    }
}

impl Upstream for Nats {
    fn subscriptions(&self) -> BTreeSet<String> {
        let connections = self.monitored("/connz?subs=1");
        let own = connections["connections"].as_array().unwrap().iter();
        let own = own.filter(|connection| connection["name"] == "tickcast");
        let subjects = own.filter_map(|connection| connection["subscriptions_list"].as_array());
        subjects.flatten().map(|subject| subject.as_str().unwrap().to_owned()).collect()
    }

    fn publish(&self, token: &str, numbers: std::ops::Range<u32>) {
        Nats::publish(self, &self.named(token), self::numbers(numbers));
    }

    fn named(&self, tokens: &str) -> String {
        format!("in.{tokens}")
    }

    fn source(&self, linger: &str) -> String {
        format!(
            "[[source]]\nkind = 'nats'\nsubjects = ['in.>']\non_demand = ['in.>']\nlinger = '{linger}'\n{}\n\
             map = {{ strip = 'in.', prefix = 't.' }}\n",
            self.servers()
        )
    }
}

impl Upstream for Redis {
    fn subscriptions(&self) -> BTreeSet<String> {
        let mut connection = self.connect();
        let channels: Vec<String> = redis::cmd("PUBSUB").arg("CHANNELS").query(&mut connection).unwrap();
        let patterns: usize = redis::cmd("PUBSUB").arg("NUMPAT").query(&mut connection).unwrap();
        // Redis names no patterns; each test has at most one.
        channels.into_iter().chain((0..patterns).map(|_| self.named(">"))).collect()
    }

    fn publish(&self, token: &str, numbers: std::ops::Range<u32>) {
        let (mut connection, mut pipe) = (self.connect(), redis::pipe());
        numbers.for_each(|number| {
            pipe.cmd("PUBLISH").arg(self.named(token)).arg(number).ignore();
        });
        pipe.exec(&mut connection).unwrap();
    }

    fn named(&self, tokens: &str) -> String {
        format!("in:{}", tokens.replace('.', ":").replace('>', "*"))
    }

    fn source(&self, linger: &str) -> String {
        format!(
            "[[source]]\nkind = 'redis-pubsub'\nchannels = ['in:*']\non_demand = ['in:*']\nlinger = '{linger}'\n{}\n\
             map = {{ strip = 'in:', separator = ':', prefix = 't.' }}\n",
            self.server()
        )
    }
}

fn nats(name: &str) -> Nats {
    Nats::start(name, &[])
}

/// A client that subscribes to one topic, and whether its place was recovered, if it gave one.
fn join(server: &Server, topic: &str, place: Option<Position>) -> (Client, Option<bool>) {
    let mut client = collector::connect(server, WireFormat::TCP_NATIVE);
    let from = place.map_or(StartPosition::Live, StartPosition::After);
    client.subscribe_with(topic, &SubscribeOptions { from, ..SubscribeOptions::default() }).unwrap();
    let (mut is_subscribed, mut recovered) = (false, None);
    while !is_subscribed || (place.is_some() && recovered.is_none()) {
        match client.next_event(Some(GUARD)).unwrap().expect("an answer in time") {
            Event::Subscribed { .. } => is_subscribed = true,
            Event::Recovered { recovered: whether, .. } => recovered = Some(whether),
            Event::Tick(tick) => panic!("{tick:?} before the answer"),
            _ => {}
        }
    }
    (client, recovered)
}

/// Reads these payloads. Returns the place of the last one.
fn read(client: &mut Client, numbers: std::ops::Range<u32>) -> Position {
    let mut place = Position::default();
    for number in numbers {
        place = loop {
            if let Event::Tick(tick) = client.next_event(Some(GUARD)).unwrap().expect("a tick in time") {
                assert_eq!(tick.payload, number.to_string().as_bytes());
                break Position { epoch: tick.epoch, sequence: tick.sequence.0 };
            }
        };
    }
    place
}

/// A subject that nobody asks for does not reach the server; one that a client asks for does, until a linger after it has left.
fn follows_the_interest(name: &str, engine: &impl Upstream) {
    let server = serve(name, &engine.source("300ms"));
    wait_for_state(&server, "running");
    engine.waits_for(&[]);
    engine.publish("a", 0..100);
    let one = Collector::start(&server, WireFormat::TCP_NATIVE, &["t.a"]);
    let two = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &["t.a"]);
    let other = Collector::start(&server, WireFormat::WEBSOCKET_NATIVE, &["other.a", "t.b.c"]);
    engine.waits_for(&["a", "b.c"]);
    engine.publish("nobody", 0..100);
    engine.publish("a", 100..200);
    engine.publish("b.c", 0..10);
    for collector in [&one, &two] {
        collector.wait_for(100);
        assert_eq!(payloads(&collector.so_far(), "t.a"), (100..200).collect::<Vec<_>>());
    }
    other.wait_for(10);
    eventually("the view", || source(&server)["subscriptions"] == 2);
    assert_eq!(source(&server)["ticks"], 110, "nothing else has reached the server");
    one.finish();
    other.finish();
    engine.waits_for(&["a"]);
    two.finish();
    engine.waits_for(&[]);
    eventually("the view", || source(&server)["subscriptions"] == 0);
    engine.publish("a", 200..300);
    assert_eq!(source(&server)["ticks"], 110);
    assert_eq!(source(&server)["messages_lost"], 0, "nobody has lost them");
    server.stop_cleanly();
}

/// Who comes back while the topic is still subscribed to has every tick; who comes later learns that ticks may be missing.
fn announces_what_it_has_missed(name: &str, engine: &impl Upstream) {
    let server = serve(name, &engine.source("300ms"));
    wait_for_state(&server, "running");
    let (mut client, _) = join(&server, "t.a", None);
    let (other, _) = join(&server, "t.*", None);
    eventually("a subscription", || !engine.subscriptions().is_empty());
    engine.publish("a", 0..10);
    let place = read(&mut client, 0..10);
    drop(client);
    engine.publish("a", 10..11);
    eventually("the tick", || source(&server)["ticks"] == 11);
    let (mut client, recovered) = join(&server, "t.a", Some(place));
    assert_eq!(recovered, Some(true));
    let place = read(&mut client, 10..11);
    drop((client, other));
    engine.waits_for(&[]);
    engine.publish("a", 11..20);
    eventually("the end of the topic", || metric(&server, "tickcast_topics_lapsed_total") == 1);
    let (mut client, recovered) = join(&server, "t.a", Some(place));
    assert_eq!(recovered, Some(false), "11 to 19 are missing");
    engine.waits_for(&["a"]);
    engine.publish("a", 20..30);
    let later = read(&mut client, 20..30);
    assert!(later.epoch != place.epoch && later.sequence == 10, "{later:?}");
    let (_, recovered) = join(&server, "t.a", Some(place));
    assert_eq!(recovered, Some(false));
    server.stop_cleanly();
}

fn metric(server: &Server, family: &str) -> u64 {
    let text = crate::harness::http::get_of_all_shards(server.admin.unwrap(), "/metrics").body;
    let samples = text.lines().filter(|line| line.starts_with(&format!("{family}{{")));
    samples.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() as u64).sum()
}

/// A wildcard over what others have asked for brings each tick once, and leaves them undisturbed.
fn takes_each_message_once(name: &str, engine: &impl Upstream) {
    let server = serve(name, &engine.source("300ms"));
    wait_for_state(&server, "running");
    let exact = Collector::start(&server, WireFormat::TCP_NATIVE, &["t.a"]);
    engine.waits_for(&["a"]);
    let all = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &[">"]);
    engine.waits_for(&["a", ">"]);
    let late = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &["t.b"]);
    engine.publish("a", 0..100);
    engine.publish("b", 0..100);
    exact.wait_for(100);
    late.wait_for(100);
    all.wait_for(200);
    let got = all.finish();
    for topic in ["t.a", "t.b"] {
        assert_eq!(payloads(&got, topic), (0..100).collect::<Vec<_>>(), "{topic}");
    }
    engine.waits_for(&["a", "b"]);
    eventually("the end of the topic of the wildcard", || {
        metric(&server, "tickcast_topics_lapsed_total") == 1
    });
    engine.publish("a", 100..200);
    engine.publish("b", 100..200);
    for (collector, topic, topics) in [(exact, "t.a", 1), (late, "t.b", 2)] {
        collector.wait_for(200);
        let got = collector.finish();
        assert_eq!(payloads(&got, topic), (0..200).collect::<Vec<_>>());
        assert_eq!(
            got.topics.len(),
            topics,
            "{topic}: another life only where another subscription has taken over"
        );
    }
    server.stop_cleanly();
}

#[test]
fn nats_is_asked_only_for_what_clients_ask_for() {
    let _machine = beside_others();
    follows_the_interest("demand-nats", &nats("demand-nats"));
}

#[test]
fn redis_is_asked_only_for_what_clients_ask_for() {
    let _machine = beside_others();
    follows_the_interest("demand-redis", &Redis::start("demand-redis", &[]));
}

#[test]
fn a_client_that_comes_back_after_a_subscription_of_nats_has_ended_is_not_told_that_it_has_everything() {
    let _machine = beside_others();
    announces_what_it_has_missed("demand-nats-gap", &nats("demand-nats-gap"));
}

#[test]
fn a_client_that_comes_back_after_a_subscription_of_redis_has_ended_is_not_told_that_it_has_everything() {
    let _machine = beside_others();
    announces_what_it_has_missed("demand-redis-gap", &Redis::start("demand-redis-gap", &[]));
}

#[test]
fn overlapping_subscriptions_of_nats_bring_each_message_once() {
    let _machine = beside_others();
    takes_each_message_once("demand-nats-overlap", &nats("demand-nats-overlap"));
}

#[test]
fn overlapping_subscriptions_of_redis_bring_each_message_once() {
    let _machine = beside_others();
    takes_each_message_once("demand-redis-overlap", &Redis::start("demand-redis-overlap", &[]));
}

#[test]
fn what_clients_ask_for_is_asked_of_an_engine_that_has_been_restarted() {
    let _machine = beside_others();
    let (mut nats, mut redis) = (nats("demand-restart"), Redis::start("demand-restart-redis", &[]));
    let map = |text: String| text.replace("prefix = 't.'", "prefix = 'r.'");
    let server = serve(
        "demand-restart",
        &format!("{}{}", Upstream::source(&nats, "1s"), map(Upstream::source(&redis, "1s"))),
    );
    wait_for_state(&server, "running");
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["*.a"]);
    let globs = |engine: &dyn Fn() -> BTreeSet<String>| eventually("subscriptions", || !engine().is_empty());
    globs(&|| nats.subscriptions());
    globs(&|| redis.subscriptions());
    nats.kill();
    redis.kill();
    wait_for_state(&server, "waiting");
    // What is asked for meanwhile is asked of the engines later.
    let other = Collector::start(&server, WireFormat::TCP_NATIVE, &["t.b", "r.b"]);
    nats.restart();
    redis.restart();
    nats.waits_for(&["a", "b"]);
    eventually("the channels of Redis", || redis.subscriptions().len() == 2);
    for token in ["a", "b"] {
        Upstream::publish(&nats, token, 0..5);
        redis.publish(token, 0..5);
    }
    collector.wait_for(10);
    other.wait_for(10);
    server.stop_cleanly();
}

#[test]
fn more_wildcards_than_a_source_subscribes_to_bring_every_tick_once_through_its_whole_prefix() {
    /// Of `SOURCE_WILDCARDS_MAX` and more.
    const WILDCARDS: u32 = 64 + 6;
    let _machine = beside_others();
    let nats = nats("demand-wildcards");
    let server = serve("demand-wildcards", &nats.source("300ms"));
    wait_for_state(&server, "running");
    let patterns: Vec<String> = (0..WILDCARDS).map(|n| format!("t.{n}.*")).collect();
    let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &patterns);
    // The prefix may come first: then it covers the others.
    eventually("the whole prefix", || nats.subscriptions().contains("in.>"));
    assert!(nats.subscriptions().len() <= 64 + 1, "{:?}", nats.subscriptions());
    eventually("the view", || source(&server)["prefixes_whole"] == 1);
    for n in 0..WILDCARDS {
        Upstream::publish(&nats, &format!("{n}.x"), 0..10);
    }
    collector.wait_for(10 * WILDCARDS as usize);
    for n in 0..WILDCARDS {
        assert!(payloads(&collector.so_far(), &format!("t.{n}.x")).into_iter().eq(0..10), "{n}");
    }
    collector.finish();
    nats.waits_for(&[]);
    eventually("the view", || source(&server)["prefixes_whole"] == 0);
    let stopped = server.stop_cleanly();
    assert!(stopped.log.contains("too many topics or wildcards"), "{}", stopped.log);
}

#[test]
fn a_source_that_cannot_subscribe_on_demand_is_refused_at_the_start_with_what_to_do() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("demand-wrong.toml");
    let text = "[[source]]\nkind = 'nats'\nsubjects = ['md.>']\non_demand = ['md.>']\nmap = { topic = 'p.{1}' }\n\n\
                [[source]]\nkind = 'nats'\nsubjects = ['md.>']\non_demand = ['md.>']\nqueue = 'q'\ngroup = 'g'\n\n\
                [[source]]\nkind = 'redis-pubsub'\nchannels = ['md.*']\non_demand = ['md.*']\n\n\
                [[source]]\nkind = 'redis-pubsub'\nchannels = ['md.?']\non_demand = ['md.?']\nlinger = '1ms'\n";
    fs::write(&file, text).unwrap();
    let output = tickcast().args(["serve", "--check-config", "--config"]).arg(&file).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    for part in [
        "line 4: source.on_demand",
        "leave map.topic out, and use map.strip and map.prefix",
        "not with `queue`",
        "not in a group, whose standbys read everything; remove on_demand or group",
        "topics \"md.>\" are those of the source \"nats-2\" too; set another map.prefix for one of them",
        "use the name of a channel, or whole tokens and `*`",
        "1ms: must be 100ms to 1d",
    ] {
        assert!(errors.contains(part), "{part}: {errors}");
    }
}
