//! Sources that fall silent: subscribers learn which topics are stale, and when they are back.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use tickcast_client::{
    ClientEvent, Event, SessionClient, SessionClientOptions, SourceState, SubscribeOptions,
    SubscriptionEvent, SubscriptionState,
};
use tickcast_proto::WireFormat;

use crate::{
    harness::{
        GUARD, Server, beside_others,
        collector::{Collector, connect},
        engines::Nats,
        eventually,
        http::get,
        raw::Peer,
    },
    sources::{FORMATS, serve},
};

const LONG: Duration = Duration::from_secs(60);

fn config(nats: &Nats, keys: &str) -> String {
    format!(
        "[[source]]\nkind = 'nats'\nname = 'feed'\nsubjects = ['t.>']\n{}\nstale_after = '1s'\n{keys}\n",
        nats.servers()
    )
}

fn source(server: &Server) -> Value {
    get(server.admin.unwrap(), "/v1/sources").json()["sources"][0].clone()
}

/// Publishes one tick to each topic.
fn publish(nats: &Nats) {
    nats.wait_for_subscriber("t.a");
    ["t.a", "t.b"].iter().for_each(|topic| nats.publish(topic, std::iter::once("1".to_owned())));
}

/// A subscriber, and what it has learned about topics: `true` for each time that one became stale, `false` for each that it came back.
struct Subscriber {
    client: SessionClient,
    topics: BTreeMap<String, Vec<bool>>,
    sources: Vec<SourceState>,
}

impl Subscriber {
    fn start(server: &Server, encoding: WireFormat, pattern: &str) -> Subscriber {
        let http = match encoding {
            WireFormat::TCP_NATIVE => server.tcp.to_string(),
            _ => format!("ws://{}/ws", server.http),
        };
        let mut options = SessionClientOptions::new(&http).unwrap();
        options.connect.encoding = encoding;
        let mut client = SessionClient::start(options).unwrap();
        client.subscribe(pattern, SubscribeOptions::default()).unwrap();
        let mut subscriber = Subscriber { client, topics: BTreeMap::new(), sources: Vec::new() };
        while !subscriber.next() {}
        subscriber
    }

    /// Takes an event. Returns whether it says that the subscription is live.
    fn next(&mut self) -> bool {
        match self.client.next_event(Some(LONG)).expect("an event") {
            ClientEvent::Subscription { event: SubscriptionEvent::State(change), .. } => {
                change.state == SubscriptionState::Subscribed
            }
            ClientEvent::Subscription {
                event: SubscriptionEvent::Stale { topic, is_stale, since_ns },
                ..
            } => {
                assert!(since_ns > 0);
                self.topics.entry(topic.to_string()).or_default().push(is_stale);
                false
            }
            ClientEvent::Source { source, state, .. } => {
                assert_eq!(&*source, "feed");
                self.sources.push(state);
                false
            }
            _ => false,
        }
    }

    /// Reads until it has learned about its topics so many times each.
    fn read_until(&mut self, topics: &[&str], times: usize) {
        let learned = |all: &BTreeMap<String, Vec<bool>>, topic: &str| all.get(topic).map_or(0, Vec::len);
        while topics.iter().any(|topic| learned(&self.topics, topic) < times) {
            self.next();
        }
    }

    /// Checks that it has learned of each beginning and each end once.
    fn check(self) {
        for (topic, learned) in &self.topics {
            let alternates = learned.iter().enumerate().all(|(at, &is_stale)| is_stale == (at % 2 == 0));
            assert!(alternates, "{topic}: {learned:?}");
        }
        self.client.close();
    }
}

/// Events of a stream.
struct Stream {
    peer: Peer,
    text: String,
}

impl Stream {
    fn open(server: &Server, pattern: &str) -> Stream {
        let mut peer = Peer::connect(server.http);
        peer.send(format!("GET /sse?topics={pattern} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        assert!(peer.http_head().contains("200"));
        let mut stream = Stream { peer, text: String::new() };
        stream.read_until("event: subscribed\n");
        stream
    }

    fn read_until(&mut self, part: &str) {
        while !self.text.contains(part) {
            self.text.push_str(std::str::from_utf8(&self.peer.take(1)).unwrap());
        }
    }
}

#[test]
fn a_source_that_falls_silent_and_returns_is_told_to_all_who_asked_and_nobody_else() {
    let _machine = beside_others();
    let nats = Nats::start("stale", &[]);
    let server = serve("stale", &(config(&nats, "mark_stale = true") + "[server]\nshards = 2\n"));
    eventually("running", || source(&server)["state"] == "running");
    let mut subscribers: Vec<Subscriber> = FORMATS
        .iter()
        .flat_map(|&encoding| ["t.*", "t.a"].map(|pattern| Subscriber::start(&server, encoding, pattern)))
        .collect();
    let mut stream = Stream::open(&server, "t.*");
    // Without the feature.
    let plain = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &["t.>"]);
    let mut silent = Peer::websocket(server.http, "/ws", "tickcast.v1.json");
    silent.send_text(r#"{"op":"subscribe","topics":["t.a"]}"#);
    publish(&nats);
    for subscriber in &mut subscribers {
        subscriber.read_until(&["t.a"], 1);
    }
    stream.read_until("event: stale\ndata: {\"op\":\"stale\",\"topic\":\"t.b\",\"stale\":true,");
    stream.read_until("event: source\ndata: {\"op\":\"source\",\"source\":\"feed\",\"state\":\"down\",");
    eventually("marked", || source(&server)["stale_since_seconds"].as_f64() > Some(1.7e9));
    assert_eq!((&source(&server)["unfit"], &source(&server)["marks_stale"]), (&"stale".into(), &true.into()));
    let metrics = get(server.admin.unwrap(), "/metrics").body;
    assert!(metrics.contains("tickcast_source_topics_stale{source=\"nats\",name=\"feed\"} 1"), "{metrics}");
    // It lasts while new subscribers come.
    for encoding in FORMATS {
        for (pattern, topics) in [("t.*", &["t.a", "t.b"][..]), ("t.b", &["t.b"])] {
            let mut late = Subscriber::start(&server, encoding, pattern);
            late.read_until(topics, 1);
            subscribers.push(late);
        }
    }
    publish(&nats);
    for subscriber in &mut subscribers {
        let topics: Vec<String> = subscriber.topics.keys().cloned().collect();
        subscriber.read_until(&topics.iter().map(String::as_str).collect::<Vec<_>>(), 2);
    }
    stream.read_until("\"op\":\"stale\",\"topic\":\"t.b\",\"stale\":false,");
    assert!(subscribers.iter().all(|subscriber| subscriber.sources.contains(&SourceState::Down)));
    subscribers.into_iter().for_each(Subscriber::check);
    plain.wait_for(4);
    assert!(plain.finish().ended.is_none());
    loop {
        let text = silent.text();
        assert!(!text.contains("stale") && !text.contains("source"), "{text}");
        if text.contains("\"seq\":2") {
            break;
        }
    }
    server.stop_cleanly();
}

#[test]
fn a_source_that_marks_nothing_is_told_to_nobody() {
    let _machine = beside_others();
    let nats = Nats::start("stale-off", &[]);
    let server = serve("stale-off", &config(&nats, ""));
    eventually("running", || source(&server)["state"] == "running");
    let mut client = connect(&server, WireFormat::WEBSOCKET_JSON);
    client.subscribe("t.*").unwrap();
    publish(&nats);
    eventually("stale", || source(&server)["unfit"] == "stale");
    publish(&nats);
    let mut ticks = 0;
    while ticks < 4 {
        match client.next_event(Some(GUARD)).unwrap() {
            Some(Event::Tick(_)) => ticks += 1,
            Some(_) => {}
            None => panic!("ticks"),
        }
    }
    assert_eq!(source(&server)["stale_since_seconds"], Value::Null);
    server.stop_cleanly();
}
