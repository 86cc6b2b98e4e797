//! One client that never reads among a hundred that do: they lose nothing, the server's memory does not grow, and what
//! becomes of the one is what its policy says.

use crate::harness::{
    Server,
    account::{Account, Subscriber, Taken},
    alone,
    collector::{barrier, connect, publish},
    eventually,
    frames::{CONFLATE, DISCONNECT, DROP, Options},
    load_client::LoadClient,
    raw::Peer,
    say,
};
use tickcast_proto::Encoding;

const HEALTHY: &str = "100";
/// 5,000 ticks a second, 1.3 MB of frames.
const LOAD: [&str; 6] = ["--sim-producers", "50", "--sim-rate", "100", "--sim-size", "200"];
/// Runs of a second each without a stuck client, and as many with one. What frames that sessions share may take is
/// touched whole before the last.
const ROUNDS: usize = 3;
/// What the frames that sessions share may take: four seconds of them.
const SHARED: [&str; 4] = ["--egress-log-bytes", "4194304", "--outbox-bytes-max", "4194304"];
/// What the server's memory may grow by while one client does not read: room for noise, and while the machine is too busy
/// for the healthy ones, a copy of one SEND for each.
const GROWTH_BYTES_MAX: u64 = 1 << 20;
const SENDS_BYTES_MAX: u64 = 101 * tickcast::limits::SEND_BYTES_MAX as u64;
/// Published in the end, when only the stuck one is left: forty times what memory may grow by.
const FLOOD: &str = "sim.flood";
const FLOOD_TICKS: usize = 4_000;
const FLOOD_PAYLOAD: [u8; 10_000] = [b'7'; 10_000];

/// Ticks that one which does not read misses at least: most of what is published in the end.
const MISSED_LEAST: u64 = 3_000;

/// What the healthy clients saw.
struct Run {
    deliveries: u64,
    p99_us: f64,
}

fn run_healthy(server: &Server, native: bool) -> Run {
    let (address, transport) = match native {
        true => (server.tcp.to_string(), &["--transport", "native"][..]),
        false => (server.http.to_string(), &["--transport", "ws", "--encoding", "json"][..]),
    };
    let options = ["--server", &address, "--connections", HEALTHY, "--subscribe", "sim.>", "--pin", "1"];
    let times = ["--warm-up-s", "0", "--duration-s", "1"];
    let report = LoadClient::start(&[&options[..], transport, &times].concat()).finish();
    assert_eq!(report["lost"], 0, "{report}");
    let p99_us = report["latency_us"]["p99"].as_f64().unwrap();
    Run { deliveries: report["deliveries"].as_u64().unwrap(), p99_us }
}

/// Published while nobody healthy is there.
fn flood(server: &Server) {
    let mut publisher = connect(server, Encoding::Native);
    for _ in 0..FLOOD_TICKS {
        publish(&mut publisher, FLOOD, &FLOOD_PAYLOAD);
    }
    barrier(&mut publisher);
}

fn one_that_does_not_read(policy: u8, native: bool) {
    let _machine = alone();
    let options = [&["--cores", "0"], &LOAD[..], &SHARED].concat();
    let server = Server::start_logging("tickcast=debug", &options);
    let connect_stuck = || {
        let mut stuck = match native {
            true => Subscriber::native(Peer::connect_with_small_window(server.tcp), Account::default()),
            false => Subscriber::json(Peer::connect_with_small_window(server.http), Account::default()),
        };
        stuck.subscribe("sim.>", Options { policy, ..Options::default() });
        stuck
    };
    // The log in its encoding is touched whole, and the newest tick of every topic is there.
    let stuck = connect_stuck();
    flood(&server);
    drop(stuck);
    // By turns, so that what else the machine does falls on both.
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 1..ROUNDS {
        without.push(run_healthy(&server, native));
        let stuck = connect_stuck();
        with.push(run_healthy(&server, native));
        drop(stuck);
    }
    without.push(run_healthy(&server, native));
    let rss_bytes = server.rss_bytes();
    let mut stuck = connect_stuck();
    with.push(run_healthy(&server, native));
    let grown_bytes = server.rss_bytes().saturating_sub(rss_bytes);
    let name = ["", "conflate", "drop", "disconnect"][policy as usize];
    let least = |runs: &[Run]| runs.iter().map(|run| run.p99_us).fold(f64::INFINITY, f64::min);
    say(&format!(
        "one stuck {name} client, native {native}, {HEALTHY} healthy ones, 0 lost of {} deliveries: p99 without {:.0?} \
         us, with {:.0?} us; the least {:.2} times; RSS {} KiB, grown by {} KiB",
        with.iter().map(|run| run.deliveries).sum::<u64>(),
        without.iter().map(|run| run.p99_us).collect::<Vec<_>>(),
        with.iter().map(|run| run.p99_us).collect::<Vec<_>>(),
        least(&with) / least(&without),
        rss_bytes >> 10,
        grown_bytes >> 10
    ));
    assert!(grown_bytes <= GROWTH_BYTES_MAX + SENDS_BYTES_MAX, "RSS {rss_bytes} grew by {grown_bytes}");
    let rss_bytes = server.rss_bytes();
    flood(&server);
    let grown_bytes = server.rss_bytes().saturating_sub(rss_bytes);
    say(&format!("  and by {} KiB for {} MB that it did not read", grown_bytes >> 10, FLOOD_TICKS / 100));
    assert!(grown_bytes <= GROWTH_BYTES_MAX, "RSS {rss_bytes} grew by {grown_bytes}");
    if policy == DISCONNECT {
        eventually("the stuck one is closed", || server.log.text().contains("ends: slow consumer"));
    } else {
        // It is still there, is told what it missed, and every topic goes on from there.
        stuck.read_until("word of what it missed", |account| {
            let missed = account.topics.get(FLOOD).map_or(0, |taken| taken.conflated + taken.dropped);
            missed > MISSED_LEAST && account.topics.len() == 51
        });
        let reached = stuck.account.topics.clone();
        stuck.read_until("ticks as they come", |account| {
            let goes_on = |(topic, before): (&String, &Taken)| account.topics[topic].next > before.next + 10;
            reached.iter().filter(|(topic, _)| *topic != FLOOD).all(goes_on)
        });
        let account = &stuck.account;
        let other = if policy == CONFLATE { account.dropped_ticks() } else { account.conflated_ticks() };
        assert_eq!(other, 0, "what its policy is not");
    }
    drop(stuck);
    let stopped = server.stop_cleanly();
    let closed = stopped.total("closed_slow_consumer");
    match policy {
        // Those that were there during a flood, and of the others those that were there for long enough.
        DISCONNECT => assert!((2..=1 + ROUNDS).contains(&(closed as usize)), "{closed} closed"),
        _ => assert_eq!(closed, 0),
    }
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
fn one_faithful_client_that_does_not_read_is_closed_and_costs_the_others_nothing() {
    one_that_does_not_read(DISCONNECT, true);
}
