//! What LIMITS.md calls bounded, under an attempt to exceed it: the server refuses with the code, lives within the memory that
//! its configuration promises, and serves others.
//!
//! Needs prlimit (`scripts/test.sh` installs it).

use std::{fs, process::Command};

use crate::harness::{
    Server, beside_others, eventually,
    frames::{self, Options, Raw, Received},
    raw::{Peer, masked},
    say,
};

const MIB: u64 = 1 << 20;

/// Bounds that a few clients exceed within a second, on two shards.
const OPTIONS: [&str; 20] = [
    "--shards",
    "2",
    "--patterns-memory",
    "4MiB",
    "--positions-memory",
    "4MiB",
    "--last-values-memory",
    "8MiB",
    "--history-memory",
    "4MiB",
    "--unfinished-memory",
    "4MiB",
    "--topics-max",
    "1000",
    "--egress-log",
    "2MiB",
    "--outbox-max",
    "1MiB",
    "--mesh-ring",
    "512KiB",
];

/// What these come to, beside the memory of a server without clients: tables of patterns may be twice as large as their
/// bound, there are two sets of last values, and up to two egress logs a shard with half as much for their index. Forty clients
/// at a time have an unfinished frame, replies and SENDs of half a MiB; a topic takes about 4 KiB. A quarter more for what the
/// allocator wastes.
const PROMISED_BYTES: u64 = (2 * 4 + 4 + 2 * 8 + 4 + 4 + 4 * 3 + 40 / 2 + 4) * MIB * 5 / 4;

/// Bytes of address space.
fn address_space(server: &Server) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{}/statm", server.pid())).unwrap();
    statm.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
}

/// A native session that requests things and counts what is refused.
struct Attacker {
    peer: Peer,
    token: u64,
}

impl Attacker {
    fn new(server: &Server) -> Attacker {
        Attacker { peer: Peer::native(server.tcp), token: 0 }
    }

    /// Sends requests, a few at a time, and reads the answers. Returns the errors.
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

/// Has 40 attackers send the requests that are theirs. Returns them, and the errors that they got.
fn attack<I: Iterator<Item = Raw>>(
    server: &Server,
    requests: impl Fn(usize) -> I,
) -> (Vec<Attacker>, Vec<Received>) {
    let mut attackers: Vec<Attacker> = (0..40).map(|_| Attacker::new(server)).collect();
    let errors = attackers.iter_mut().enumerate().flat_map(|(at, attacker)| attacker.request(requests(at)));
    let errors = errors.collect();
    (attackers, errors)
}

/// Asserts that errors have a code, and a text that names the option.
fn assert_refused(errors: &[Received], code: u16, option: &str) {
    for error in errors {
        assert!((error.code(), error.text().contains(option)) == (code, true), "{error:?}");
    }
}

/// A publisher and a subscriber that do nothing wrong.
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

    /// Publishes ticks, each of which the subscriber must receive.
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
        // The allocator's own reserve hides what is less than some 100 MiB from the limit of address space.
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

    // Last values: 250 MB in all, and as much for a subscriber on the other shard, if the kernel chose that.
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

    // Topics.
    let publish = |at: usize| Raw::publish(1, format!("{at}.{:t<240}", "").as_bytes(), b"x");
    let mut refused = attacker.request((0..5_000).map(publish));
    // Those whose home is the other shard are refused a little later.
    eventually("all but 1,000 topics are refused", || {
        refused.extend(attacker.request([Raw::ping(0)].into_iter()));
        refused.len() == 5_000 - (1_000 - 501)
    });
    spent("topics", &server);
    assert_refused(&refused, 104, "--topics-max");
    pair.assert_served();

    let stopped = server.stop_cleanly();
    assert!(stopped.total("closed_unfinished_memory") >= 25);
    assert!(stopped.total("last_values_evicted") > 0);
}
