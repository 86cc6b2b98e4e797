//! Clients try to exceed each bound of LIMITS.md on memory: the server refuses with the documented code, stays within the memory that
//! its configuration promises, and serves other clients meanwhile.
//!
//! Needs prlimit (`scripts/test.sh` installs it).

use std::{fs, process::Command};

use crate::harness::{
    GUARD, Server, beside_others,
    collector::address,
    eventually,
    frames::{self, Options, Raw, Received},
    raw::{Peer, masked},
    say,
};
use tickcast_client::{Client, ConnectOptions, PUBLISHES_UNACKNOWLEDGED_MAX, PublishRequest};
use tickcast_proto::WireFormat;

const MIB: u64 = 1 << 20;

/// Two shards, and bounds so low that a few clients can exceed them within a second. No heartbeat: the peers answer no ping, and on a
/// busy machine an attack takes longer than the server waits for one.
const OPTIONS: [&str; 28] = [
    "--shards",
    "2",
    "--ping-interval",
    "0",
    "--patterns-memory",
    "4MiB",
    "--patterns-per-session-size",
    "1MiB",
    "--positions-memory",
    "4MiB",
    "--memberships-memory",
    "2MiB",
    "--last-values-memory",
    "8MiB",
    "--history-memory",
    "4MiB",
    "--unfinished-memory",
    "4MiB",
    "--message-ids-memory",
    "2MiB",
    "--topics-max",
    "1000",
    "--egress-log",
    "2MiB",
    "--outbox-max",
    "1MiB",
    "--mesh-ring",
    "512KiB",
];

/// The memory that these bounds promise, beyond that of a server without clients, if its clients use this many wire formats.
const fn promised_bytes(wire_formats: u64) -> u64 {
    // Their tables may be twice as large as the bound.
    let patterns = 2 * 4;
    let positions = 4;
    let memberships = 2;
    // One set at the homes, one of copies where topics are subscribed.
    let last_values = 2 * 8;
    let history = 4;
    let unfinished = 4;
    let message_ids = 2;
    // On each shard one for each wire format, each with half as much for its index.
    let egress_logs = 2 * wire_formats * 3;
    // Forty at a time, each with half a MiB: an unfinished frame, replies, a parked SEND.
    let clients = 40 / 2;
    // 1,000 topics of about 4 KiB.
    let topics = 4;
    // A quarter for the overhead of the allocator.
    let memories = patterns + positions + memberships + last_values + history + unfinished + message_ids;
    (memories + egress_logs + clients + topics) * MIB * 5 / 4
}

/// Bytes of the server's address space.
fn address_space(server: &Server) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{}/statm", server.pid())).unwrap();
    statm.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
}

/// A native session whose requests the server refuses sooner or later.
struct Attacker {
    peer: Peer,
    token: u64,
}

impl Attacker {
    fn new(server: &Server) -> Attacker {
        Attacker { peer: Peer::native(server.tcp), token: 0 }
    }

    /// Sends requests, 128 at a time, and reads the answers. Returns the errors among them.
    fn request(&mut self, requests: impl Iterator<Item = Raw>) -> Vec<Received> {
        let requests: Vec<Raw> = requests.collect();
        let mut errors = Vec::new();
        for some in requests.chunks(128) {
            self.token += 1;
            let mut bytes: Vec<u8> = some.iter().flat_map(Raw::bytes).collect();
            bytes.extend(Raw::ping(self.token).bytes());
            self.peer.send(&bytes);
            loop {
                let frame = self.peer.frame().unwrap();
                match frame.kind {
                    frames::PONG if frame.token() == self.token => break,
                    frames::ERROR => errors.push(frame),
                    _ => {}
                }
            }
        }
        errors
    }

    /// Sends a SUBSCRIBE, and returns its answer.
    fn subscribe(&mut self, request: Raw) -> Received {
        self.peer.send(&request.bytes());
        let mut answers = std::iter::repeat_with(|| self.peer.frame().unwrap());
        let is_answer = |frame: &Received| match frame.kind {
            frames::SUBSCRIBED => frame.topic_id == 0,
            kind => kind == frames::ERROR,
        };
        answers.find(is_answer).unwrap()
    }
}

/// Connects 40 attackers; each sends the requests that `requests` gives for its number. Returns the attackers, and all errors.
fn attack<I: Iterator<Item = Raw>>(
    server: &Server,
    requests: impl Fn(usize) -> I,
) -> (Vec<Attacker>, Vec<Received>) {
    let mut attackers: Vec<Attacker> = (0..40).map(|_| Attacker::new(server)).collect();
    let errors = attackers.iter_mut().enumerate().flat_map(|(at, attacker)| attacker.request(requests(at)));
    let errors = errors.collect();
    (attackers, errors)
}

/// Asserts that every error has this code, and a text that names the option.
fn assert_refused(errors: &[Received], code: u16, option: &str) {
    for error in errors {
        assert!((error.code(), error.text().contains(option)) == (code, true), "{error:?}");
    }
}

/// A publisher and a subscriber that respect all bounds.
struct Pair {
    publisher: Attacker,
    subscriber: Peer,
    published: u64,
}

impl Pair {
    fn new(server: &Server) -> Pair {
        let mut subscriber = Peer::native(server.tcp);
        subscriber.send(&Raw::with_options(frames::SUBSCRIBE, 1, "healthy", Options::default()).bytes());
        assert_eq!(subscriber.frame().unwrap().kind, frames::SUBSCRIBED);
        let mut pair = Pair { publisher: Attacker::new(server), subscriber, published: 0 };
        pair.assert_served();
        pair
    }

    /// Publishes ten ticks, and asserts that the subscriber receives each.
    fn assert_served(&mut self) {
        for _ in 0..10 {
            self.published += 1;
            let tick = Raw::publish(1, b"healthy", &[1; 100]);
            assert_eq!(self.publisher.request([tick].into_iter()), []);
            let frame = std::iter::repeat_with(|| self.subscriber.frame().unwrap())
                .find(|frame| frame.kind != frames::SUBSCRIBED)
                .unwrap();
            assert_eq!((frame.kind, frame.sequence), (frames::TICK, self.published));
        }
    }
}

/// A server whose address space is limited to what its bounds promise, and a pair that it must serve.
struct Bounded {
    server: Server,
    pair: Pair,
    empty: u64,
    resident: u64,
    promised: u64,
}

impl Bounded {
    fn start(wire_formats: u64) -> Bounded {
        let server = Server::start(&OPTIONS);
        let pair = Pair::new(&server);
        let (empty, promised) = (address_space(&server), promised_bytes(wire_formats));
        let limit = format!("--as={}", empty + promised);
        let limited = Command::new("prlimit").args(["--pid", &server.pid().to_string(), &limit]).status();
        assert!(limited.unwrap().success());
        let resident = server.rss_bytes();
        Bounded { server, pair, empty, resident, promised }
    }

    /// Asserts that the server is within its bounds after an attack, and serves the pair.
    fn assert_bounded(&mut self, attack: &str) {
        // The limit on the address space alone would not notice less than some 100 MiB, which the allocator has reserved already.
        let space = address_space(&self.server) - self.empty;
        let rss = self.server.rss_bytes().saturating_sub(self.resident);
        say(&format!(
            "after {attack}: {} MiB of address space more, {} MiB resident",
            space / MIB,
            rss / MIB
        ));
        assert!(rss <= self.promised, "{rss} bytes more are resident, {} are promised", self.promised);
        self.pair.assert_served();
    }
}

#[test]
fn attempts_to_exceed_the_bounds_are_refused_within_the_memory_promised() {
    let _machine = beside_others();
    let mut bounded = Bounded::start(2);

    // Subscriptions of a session.
    let mut attacker = Attacker::new(&bounded.server);
    let short = |at: usize| Raw::with_options(frames::SUBSCRIBE, 1, &format!("s.{at}"), Options::default());
    let refused = attacker.request((0..1_100).map(short));
    assert_eq!(refused.len(), 1_100 - 1_024);
    assert_refused(&refused, 103, "1024 subscriptions");
    drop(attacker);

    // Patterns: 10 MiB of text.
    let (attackers, refused) = attack(&bounded.server, |client| {
        (0..1_024).map(move |at: usize| {
            let end = ["*", ">", "z"][at % 3];
            let pattern = format!("{client}-{at}.{:a<200}.{at:b<40}.{end}", "");
            Raw::with_options(frames::SUBSCRIBE, 1, &pattern, Options::default())
        })
    });
    bounded.assert_bounded("patterns");
    assert!(refused.len() > 20_000, "{} of 40,960 patterns are refused", refused.len());
    assert_refused(&refused, 103, "--patterns-memory");
    drop(attackers);

    // Positions: 40 times 1 MiB of names.
    let (attackers, refused) = attack(&bounded.server, |client| {
        (0..4_000).map(move |at| Raw::resume(&format!("{client}-{at}{:p<240}", ""), 1, 1))
    });
    bounded.assert_bounded("positions");
    assert!(refused.len() > 140_000, "{} of 160,000 positions are refused", refused.len());
    assert_refused(&refused, 103, "--positions-memory");
    drop(attackers);

    // Fragments: 40 times 300 KB.
    let mut peers: Vec<Peer> = Vec::new();
    for _ in 0..40 {
        let mut peer = Peer::websocket(bounded.server.http, "/ws", "tickcast.v1.json");
        peer.send_as_far_as_it_goes(&masked(0x01, &[b' '; 300_000]));
        peers.push(peer);
    }
    eventually("the oldest are closed", || peers.iter().filter(|peer| peer.has_answer()).count() >= 25);
    bounded.assert_bounded("fragments");
    drop(peers);

    // Last values: 250 MB in all, and as much again if the subscriber happens to be on another shard than a topic's home.
    let mut reader = Attacker::new(&bounded.server);
    let options = Options { policy: frames::DROP, ..Options::default() };
    reader.request([Raw::with_options(frames::SUBSCRIBE, 1, "v.>", options)].into_iter());
    let mut attacker = Attacker::new(&bounded.server);
    for at in 0..1_000 {
        let publish = Raw::publish(1, format!("v.{}", at % 500).as_bytes(), &[7; 250_000]);
        assert_eq!(attacker.request([publish].into_iter()), []);
    }
    bounded.assert_bounded("last values");
    drop(reader);

    // Message ids: 12 MiB.
    let options = address(&bounded.server, WireFormat::TCP_NATIVE);
    let options = ConnectOptions { acknowledgements: true, ..options.connect_options() };
    let mut client =
        Client::connect_with(&address(&bounded.server, WireFormat::TCP_NATIVE), &options).unwrap();
    for at in 0..60_000 {
        while client.connection().unacknowledged() >= PUBLISHES_UNACKNOWLEDGED_MAX {
            client.next_event(Some(GUARD)).unwrap().expect("an answer");
        }
        let (topic, message_id) = ("m", &*format!("{at}"));
        let publish = PublishRequest { topic, payload: b"1", message_id, ..PublishRequest::default() };
        client.publish_buffered(publish).unwrap();
    }
    client.barrier(GUARD, |_| {}).unwrap();
    bounded.assert_bounded("message ids");
    drop(client);

    // Topics.
    let publish = |at: usize| Raw::publish(1, format!("{at}.{:t<240}", "").as_bytes(), b"x");
    let mut refused = attacker.request((0..5_000).map(publish));
    // Refusals by the other shard arrive a little later.
    eventually("all but 1,000 topics are refused", || {
        refused.extend(attacker.request([Raw::ping(0)].into_iter()));
        refused.len() == 5_000 - (1_000 - 502)
    });
    bounded.assert_bounded("topics");
    assert_refused(&refused, 104, "--topics-max");

    let stopped = bounded.server.stop_cleanly();
    assert!(stopped.total("closed_unfinished_memory") >= 25);
    assert!(stopped.total("last_values_evicted") > 0);
    assert!(stopped.total("message_ids_forgotten") > 40_000);
}

/// Publishes topics, and waits until the server has taken all of them.
fn publish_topics(server: &Server, topics: impl Iterator<Item = String>, payload: &[u8]) {
    let mut publisher = Attacker::new(server);
    let publish = |topic: String| Raw::publish(1, topic.as_bytes(), payload);
    assert_eq!(publisher.request(topics.map(publish)), []);
}

#[test]
fn wildcards_that_need_state_for_each_topic_stay_within_their_memory() {
    /// Beyond the share of each session of a shard once a few have joined all of them.
    const TOPICS: usize = 900;
    let _machine = beside_others();
    let mut bounded = Bounded::start(1);
    let topic = |at: usize| format!("m.{at}");
    publish_topics(&bounded.server, (0..TOPICS).map(topic).chain((0..5).map(|at| format!("few.{at}"))), b"x");

    // 40 times 900, of which there is room for 17,476.
    let options = Options { policy: frames::CONFLATE, max_rate_millihertz: 1_000_000, ..Options::default() };
    let paced = |pattern: &str| Raw::with_options(frames::SUBSCRIBE, 1, pattern, options);
    let mut attackers: Vec<Attacker> = (0..40).map(|_| Attacker::new(&bounded.server)).collect();
    let answers = attackers.iter_mut().map(|attacker| attacker.subscribe(paced("m.>")));
    let refused: Vec<Received> = answers.filter(|answer| answer.kind == frames::ERROR).collect();
    bounded.assert_bounded("memberships of rate limits");
    assert!((15..=35).contains(&refused.len()), "{} of 40 are refused", refused.len());
    assert_refused(&refused, 103, "--memberships-memory");

    // Another 40 need as many because they do not read: 3.6 MB each.
    let mut stalled: Vec<Peer> = Vec::new();
    for _ in 0..40 {
        let mut peer = Peer::connect_with_small_window(bounded.server.tcp);
        let conflate = Options { policy: frames::CONFLATE, ..Options::default() };
        peer.send(&Raw::request(frames::HELLO, 1, b"raw").bytes());
        assert_eq!(peer.frame().unwrap().kind, frames::WELCOME);
        peer.send(&Raw::with_options(frames::SUBSCRIBE, 1, "m.>", conflate).bytes());
        assert_eq!(peer.frame().unwrap().kind, frames::SUBSCRIBED);
        stalled.push(peer);
    }
    let mut modest = Attacker::new(&bounded.server);
    // A few memberships are left for whoever comes.
    assert_eq!(modest.subscribe(paced("few.*")).kind, frames::SUBSCRIBED);
    for _ in 0..2 {
        publish_topics(&bounded.server, (0..TOPICS).map(topic), &[7; 2_000]);
    }
    bounded.assert_bounded("memberships of clients behind");
    publish_topics(&bounded.server, ["few.1".to_owned()].into_iter(), b"y");
    let mut last = modest.peer.frame().unwrap();
    while (last.kind, last.sequence) != (frames::TICK, 2) {
        last = modest.peer.frame().unwrap();
    }
    drop((attackers, stalled));
    let stopped = bounded.server.stop_cleanly();
    assert!(stopped.total("memberships_refused") > 0);
}

#[test]
fn egress_logs_and_places_of_event_streams_stay_within_their_memory() {
    const WIRE_FORMATS: u64 = 7;
    const TOPICS: usize = 900;
    let _machine = beside_others();
    let mut bounded = Bounded::start(WIRE_FORMATS);
    let http = bounded.server.http;
    let stream = |query: &str, accept: &str| {
        let mut peer = Peer::connect(http);
        peer.send(
            format!("GET /sse?{query} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n").as_bytes(),
        );
        let head = peer.http_head();
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        peer
    };

    // Egress logs: readers in each wire format that do not read, and 64 MB for each.
    let mut stalled: Vec<Peer> = Vec::new();
    for _ in 0..5 {
        let mut native = Peer::native(bounded.server.tcp);
        native.send(&Raw::with_options(frames::SUBSCRIBE, 1, "e", Options::default()).bytes());
        stalled.push(native);
        for codec in ["rkyv", "json", "raw", "protobuf"] {
            stalled.push(Peer::websocket(http, "/ws?topics=e", &format!("tickcast.v1.{codec}")));
        }
        stalled.push(stream("topics=e", "text/event-stream"));
        stalled.push(stream("topics=e", "application/x-ndjson"));
    }
    assert_eq!(stalled.len() as u64, 5 * WIRE_FORMATS);
    for _ in 0..20 {
        publish_topics(&bounded.server, std::iter::repeat_n("e".to_owned(), 100), &[7; 32_000]);
    }
    bounded.assert_bounded("egress logs");
    drop(stalled);

    // Places: of 120 streams that have ended, each with 900 names of 240 bytes, so that the server keeps them.
    publish_topics(&bounded.server, (0..TOPICS).map(|at| format!("p.{at}.{:p<230}", "")), b"1");
    let mut refused = 0;
    for _ in 0..3 {
        let query = "topics=p.%3E&from=latest";
        let mut streams: Vec<Peer> = (0..40).map(|_| stream(query, "text/event-stream")).collect();
        for stream in &mut streams {
            let mut text = String::new();
            while text.matches("event: tick").count() < TOPICS || !text.ends_with("data: {}\n\n") {
                let goes_on = stream.more();
                text.push_str(&String::from_utf8(std::mem::take(&mut stream.buffer)).unwrap());
                if !goes_on {
                    // Refused before it began to join topics or while it joined them, or cut because it is slow: it is read only
                    // after those before it.
                    refused += 1;
                    break;
                }
            }
        }
    }
    assert!(refused < 120, "some have all topics");
    bounded.assert_bounded("places of event streams");
    bounded.server.stop_cleanly();
}
