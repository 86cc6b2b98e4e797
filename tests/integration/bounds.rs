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

/// Two shards, and bounds so low that a few clients can exceed them within a second.
const OPTIONS: [&str; 24] = [
    "--shards",
    "2",
    "--patterns-memory",
    "4MiB",
    "--patterns-per-session-size",
    "1MiB",
    "--positions-memory",
    "4MiB",
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

/// The memory that these bounds promise, beyond that of a server without clients.
const PROMISED_BYTES: u64 = {
    // Their tables may be twice as large as the bound.
    let patterns = 2 * 4;
    let positions = 4;
    // One set at the homes, one of copies where topics are subscribed.
    let last_values = 2 * 8;
    let history = 4;
    let unfinished = 4;
    let message_ids = 2;
    // Up to two per shard, each with half as much for its index.
    let egress_logs = 2 * 2 * 3;
    // Forty at a time, each with half a MiB: an unfinished frame, replies, a parked SEND.
    let clients = 40 / 2;
    // 1,000 topics of about 4 KiB.
    let topics = 4;
    // A quarter for the overhead of the allocator.
    let memories = patterns + positions + last_values + history + unfinished + message_ids;
    (memories + egress_logs + clients + topics) * MIB * 5 / 4
};

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

#[test]
fn attempts_to_exceed_the_bounds_are_refused_within_the_memory_promised() {
    let _machine = beside_others();
    let server = Server::start(&OPTIONS);
    let mut pair = Pair::new(&server);
    let empty = address_space(&server);
    let limit = format!("--as={}", empty + PROMISED_BYTES);
    let limited = Command::new("prlimit").args(["--pid", &server.pid().to_string(), &limit]).status();
    assert!(limited.unwrap().success());
    let resident = server.rss_bytes();
    let spent = |what: &str, server: &Server| {
        // The limit on the address space alone would not notice less than some 100 MiB, which the allocator has reserved already.
        let (space, rss) = (address_space(server) - empty, server.rss_bytes().saturating_sub(resident));
        say(&format!("after {what}: {} MiB of address space more, {} MiB resident", space / MIB, rss / MIB));
        assert!(rss <= PROMISED_BYTES, "{rss} bytes more are resident, {PROMISED_BYTES} are promised");
    };

    // Subscriptions of a session.
    let mut attacker = Attacker::new(&server);
    let short = |at: usize| Raw::with_options(frames::SUBSCRIBE, 1, &format!("s.{at}"), Options::default());
    let refused = attacker.request((0..1_100).map(short));
    assert_eq!(refused.len(), 1_100 - 1_024);
    assert_refused(&refused, 103, "1024 subscriptions");
    drop(attacker);

    // Patterns: 10 MiB of text.
    let (attackers, refused) = attack(&server, |client| {
        (0..1_024).map(move |at: usize| {
            let end = ["*", ">", "z"][at % 3];
            let pattern = format!("{client}-{at}.{:a<200}.{at:b<40}.{end}", "");
            Raw::with_options(frames::SUBSCRIBE, 1, &pattern, Options::default())
        })
    });
    spent("patterns", &server);
    assert!(refused.len() > 20_000, "{} of 40,960 patterns are refused", refused.len());
    assert_refused(&refused, 103, "--patterns-memory");
    pair.assert_served();
    drop(attackers);

    // Positions: 40 times 1 MiB of names.
    let (attackers, refused) = attack(&server, |client| {
        (0..4_000).map(move |at| Raw::resume(&format!("{client}-{at}{:p<240}", ""), 1, 1))
    });
    spent("positions", &server);
    assert!(refused.len() > 140_000, "{} of 160,000 positions are refused", refused.len());
    assert_refused(&refused, 103, "--positions-memory");
    pair.assert_served();
    drop(attackers);

    // Fragments: 40 times 300 KB.
    let mut peers: Vec<Peer> = Vec::new();
    for _ in 0..40 {
        let mut peer = Peer::websocket(server.http, "/ws", "tickcast.v1.json");
        peer.send_as_far_as_it_goes(&masked(0x01, &[b' '; 300_000]));
        peers.push(peer);
    }
    eventually("the oldest are closed", || peers.iter().filter(|peer| peer.has_answer()).count() >= 25);
    spent("fragments", &server);
    pair.assert_served();
    drop(peers);

    // Last values: 250 MB in all, and as much again if the subscriber happens to be on another shard than a topic's home.
    let mut reader = Attacker::new(&server);
    let options = Options { policy: frames::DROP, ..Options::default() };
    reader.request([Raw::with_options(frames::SUBSCRIBE, 1, "v.>", options)].into_iter());
    let mut attacker = Attacker::new(&server);
    for at in 0..1_000 {
        let publish = Raw::publish(1, format!("v.{}", at % 500).as_bytes(), &[7; 250_000]);
        assert_eq!(attacker.request([publish].into_iter()), []);
    }
    spent("last values", &server);
    pair.assert_served();
    drop(reader);

    // Message ids: 12 MiB.
    let options = address(&server, WireFormat::TCP_NATIVE);
    let options = ConnectOptions { acknowledgements: true, ..options.connect_options() };
    let mut client = Client::connect_with(&address(&server, WireFormat::TCP_NATIVE), &options).unwrap();
    for at in 0..60_000 {
        while client.connection().unacknowledged() >= PUBLISHES_UNACKNOWLEDGED_MAX {
            client.next_event(Some(GUARD)).unwrap().expect("an answer");
        }
        let (topic, message_id) = ("m", &*format!("{at}"));
        let publish = PublishRequest { topic, payload: b"1", message_id, ..PublishRequest::default() };
        client.publish_buffered(publish).unwrap();
    }
    client.barrier(GUARD, |_| {}).unwrap();
    spent("message ids", &server);
    pair.assert_served();
    drop(client);

    // Topics.
    let publish = |at: usize| Raw::publish(1, format!("{at}.{:t<240}", "").as_bytes(), b"x");
    let mut refused = attacker.request((0..5_000).map(publish));
    // Refusals by the other shard arrive a little later.
    eventually("all but 1,000 topics are refused", || {
        refused.extend(attacker.request([Raw::ping(0)].into_iter()));
        refused.len() == 5_000 - (1_000 - 502)
    });
    spent("topics", &server);
    assert_refused(&refused, 104, "--topics-max");
    pair.assert_served();

    let stopped = server.stop_cleanly();
    assert!(stopped.total("closed_unfinished_memory") >= 25);
    assert!(stopped.total("last_values_evicted") > 0);
    assert!(stopped.total("message_ids_forgotten") > 40_000);
}
