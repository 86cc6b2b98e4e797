//! One client that never reads among a hundred that do: the others lose nothing, the server's memory does not grow, and the
//! policy decides what happens to the one.
//!
//! Ticks are published no faster than the healthy clients read them, so that the claim holds on a busy machine too. The bench
//! suite measures the latency that a stuck client costs the others.

use std::collections::BTreeMap;

use crate::harness::{
    Server,
    account::{Account, Subscriber},
    alone,
    collector::{barrier, connect, publish},
    eventually,
    frames::{CONFLATE, DISCONNECT, DROP, Options},
    raw::Peer,
    say,
};
use tickcast_client::Client;
use tickcast_proto::WireFormat;

const HEALTHY: usize = 100;
const TOPICS: u64 = 50;
const PAYLOAD: [u8; 200] = [b'7'; 200];
/// Rounds of one tick per topic. The healthy clients read each before the next is published: 13 KB, which every socket holds.
const ROUNDS: u64 = 60;
/// Bounds on frames shared by sessions: far less than what is published.
const SHARED: [&str; 4] = ["--egress-log", "4MiB", "--outbox-max", "4MiB"];
/// Allowed memory growth while one client does not read: noise.
const GROWTH_BYTES_MAX: u64 = 1 << 20;
/// Published at the end, when only the stuck client is left: forty times the allowed memory growth.
const FLOOD: &str = "sim.flood";
const FLOOD_TICKS: u64 = 4_000;
const FLOOD_PAYLOAD: [u8; 10_000] = [b'7'; 10_000];
/// Minimum number of ticks of the flood that a client misses if it does not read.
const MISSED_LEAST: u64 = 3_000;

fn topic(number: u64) -> String {
    format!("sim.{number}")
}

/// The publisher, and the number of ticks published by topic.
struct Feed {
    publisher: Client,
    published: BTreeMap<String, u64>,
}

impl Feed {
    fn publish(&mut self, topic: &str, payload: &[u8]) {
        publish(&mut self.publisher, topic, payload);
        *self.published.entry(topic.to_owned()).or_default() += 1;
    }

    /// A tick of each topic but the flood.
    fn round(&mut self) {
        (0..TOPICS).for_each(|number| self.publish(&topic(number), &PAYLOAD));
        barrier(&mut self.publisher);
    }

    fn flood(&mut self) {
        (0..FLOOD_TICKS).for_each(|_| self.publish(FLOOD, &FLOOD_PAYLOAD));
        barrier(&mut self.publisher);
    }
}

/// Publishes rounds, each after every healthy client has read the one before.
fn run_healthy(feed: &mut Feed, healthy: &mut [Subscriber]) {
    for _ in 0..ROUNDS {
        feed.round();
        for client in &mut *healthy {
            client.read_until("the round", |account| {
                let has = |number| account.topics.get(&topic(number)).map_or(0, |taken| taken.next);
                (0..TOPICS).all(|number| has(number) == feed.published[&topic(number)] + 1)
            });
        }
    }
}

fn one_that_does_not_read(policy: u8, native: bool) {
    let _machine = alone();
    // Clients answer no pings while others are read. The first round of ticks fills the history, so it does not grow later.
    let alike = ["--cores", "0", "--no-sim", "--ping-interval", "0", "--history", "10"];
    let options = [&alike[..], &SHARED].concat();
    let server = Server::start_logging("tickcast=debug", &options);
    let subscribe = |connect: fn(_) -> Peer, policy: u8| {
        let mut client = match native {
            true => Subscriber::native(connect(server.tcp), Account::default()),
            false => Subscriber::json(connect(server.http), Account::default()),
        };
        client.subscribe("sim.>", Options { policy, ..Options::default() });
        client
    };
    let mut feed = Feed { publisher: connect(&server, WireFormat::TCP_NATIVE), published: BTreeMap::new() };
    // Touches the whole egress log in this encoding, and leaves a last value of every topic.
    let stuck = subscribe(Peer::connect_with_small_window, policy);
    feed.round();
    feed.flood();
    drop(stuck);
    let mut healthy: Vec<Subscriber> = (0..HEALTHY).map(|_| subscribe(Peer::connect, 0)).collect();
    run_healthy(&mut feed, &mut healthy);

    let rss_bytes = server.rss_bytes();
    let mut stuck = subscribe(Peer::connect_with_small_window, policy);
    run_healthy(&mut feed, &mut healthy);
    let grown_bytes = server.rss_bytes().saturating_sub(rss_bytes);
    say(&format!(
        "one stuck client of policy {policy}, native {native}, {HEALTHY} healthy ones: RSS {} KiB, grown by {} KiB",
        rss_bytes >> 10,
        grown_bytes >> 10
    ));
    assert!(grown_bytes <= GROWTH_BYTES_MAX, "RSS {rss_bytes} grew by {grown_bytes}");
    for client in &healthy {
        let account = &client.account;
        assert_eq!((account.conflated_ticks(), account.dropped_ticks(), account.closing), (0, 0, None));
        assert_eq!(account.delivered(), 2 * ROUNDS * TOPICS);
    }
    drop(healthy);

    let rss_bytes = server.rss_bytes();
    feed.flood();
    let grown_bytes = server.rss_bytes().saturating_sub(rss_bytes);
    say(&format!("  and by {} KiB for {} MB that it did not read", grown_bytes >> 10, FLOOD_TICKS / 100));
    assert!(grown_bytes <= GROWTH_BYTES_MAX, "RSS {rss_bytes} grew by {grown_bytes}");
    if policy == DISCONNECT {
        // A server short of CPU may drop its ticks before it knows that the client is slow.
        let reasons = ["ends: slow consumer", "ends: the server is overloaded"];
        eventually("the stuck one is closed", || {
            let log = server.log.text();
            reasons.iter().any(|reason| log.contains(reason))
        });
    } else {
        // It is still connected, the server announced what it missed, and every topic continues to its last tick.
        feed.round();
        let missed =
            |account: &Account| account.topics.get(FLOOD).map_or(0, |taken| taken.conflated + taken.dropped);
        stuck.read_until("the last tick of every topic", |account| {
            let is_last = |(topic, last): (&String, &u64)| {
                account.topics.get(topic).is_some_and(|taken| taken.next == last + 1)
            };
            feed.published.iter().all(is_last)
        });
        let account = &stuck.account;
        assert!(missed(account) > MISSED_LEAST, "{} missed", missed(account));
        let other = if policy == CONFLATE { account.dropped_ticks() } else { account.conflated_ticks() };
        assert_eq!(other, 0, "losses of another policy");
    }
    drop((stuck, feed));
    let stopped = server.stop_cleanly();
    let closed = stopped.total("closed_slow_consumer") + stopped.total("closed_overloaded");
    // Both stuck clients were connected during a flood.
    assert_eq!(closed, if policy == DISCONNECT { 2 } else { 0 });
}

#[test]
fn one_conflating_client_that_does_not_read_costs_the_others_nothing() {
    one_that_does_not_read(CONFLATE, true);
}

#[test]
fn one_dropping_client_that_does_not_read_costs_the_others_nothing() {
    one_that_does_not_read(DROP, false);
}

#[test]
fn one_lossless_client_that_does_not_read_is_closed_and_costs_the_others_nothing() {
    one_that_does_not_read(DISCONNECT, true);
}
