//! Clients that vanish mid-stream or leave half-written frames: the others lose nothing, and nothing leaks.

use std::{io::Read, thread};

use crate::harness::{
    LOSSLESS, Server, alone, beside_others,
    collector::{Collector, barrier, connect, publish},
    eventually,
    frames::{self, Raw},
    processes::raise_descriptor_limit,
    raw::{Peer, header, upgrade_request},
};
use tickcast_proto::WireFormat;

/// No client is closed for a half-written frame or a missing pong before the test ends it.
const PATIENT: [&str; 6] = ["--handshake-deadline", "10m", "--frame-deadline", "10m", "--ping-interval", "0"];
const KILLED: usize = 200;
const HALF_WRITERS: usize = 50;
const SURVIVORS: usize = 20;
/// Ticks between two kills.
const TICKS_PER_KILL: usize = 25;
const ENCODINGS: [WireFormat; 3] =
    [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON];

const ROUNDS: usize = 100;
const KILLED_A_ROUND: usize = 1_000;
/// Threads that share the opening of a round's connections.
const OPENERS: usize = 4;
/// Rounds until the server's memory has stopped growing (measured: 10).
const WARM_UP_ROUNDS: usize = 20;
/// Bound on memory growth after the warm-up: 13 bytes leaked per connection would exceed it.
const GROWTH_BYTES_MAX: u64 = 1 << 20;

/// A raw subscriber: native, or a WebSocket in JSON.
fn victim(server: &Server, native: bool) -> Peer {
    if native {
        let mut peer = Peer::native(server.tcp);
        peer.send(&Raw::request(frames::SUBSCRIBE, 2, b"churn.>").bytes());
        assert_eq!(peer.frame().unwrap().kind, frames::SUBSCRIBED);
        return peer;
    }
    let mut peer = Peer::websocket(server.http, "/ws?topics=churn.>", "tickcast.v1.json");
    assert!(peer.text().contains("subscribed"));
    peer
}

/// Sends half of a native frame, of a WebSocket frame, or of a request head.
fn half_writer(server: &Server, kind: usize) -> Peer {
    match kind % 3 {
        0 => {
            let mut peer = victim(server, true);
            let frame = Raw::publish(3, b"churn.0", &[b'x'; 5_000]).bytes();
            peer.send(&frame[..frame.len() / 2]);
            peer
        }
        1 => {
            let mut peer = victim(server, false);
            peer.send(&[&header(0x81, 0x80, 5_000)[..], &[0; 2_500]].concat());
            peer
        }
        _ => {
            let mut peer = Peer::connect(server.http);
            let request = upgrade_request("/ws?topics=churn.%3E", "");
            peer.send(&request.as_bytes()[..request.len() / 2]);
            peer
        }
    }
}

/// Ends a connection without a goodbye, in one of three ways.
fn vanish(peer: Peer, how: u8) {
    match how % 3 {
        0 => peer.reset(),
        // FIN, and RST as soon as more arrives; RST at once if something was unread.
        1 => drop(peer),
        _ => {
            peer.shut_write();
            let mut peer = peer;
            peer.read_to_end();
        }
    }
}

#[test]
fn clients_that_vanish_leave_nothing_behind_and_the_rest_lose_nothing() {
    let _machine = beside_others();
    let server = Server::start(&[&["--shards", "4"], &PATIENT[..], &LOSSLESS].concat());
    // Descriptors opened once, for the first client, belong to the baseline.
    for native in [true, false] {
        drop(victim(&server, native));
    }
    eventually("the first two are gone", || server.connections() == 0);
    let baseline = server.descriptors();

    let survivors: Vec<Collector> = (0..SURVIVORS)
        .map(|survivor| Collector::start(&server, ENCODINGS[survivor % 3], &["churn.>"]))
        .collect();
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    let mut victims: Vec<Peer> = (0..KILLED).map(|victim_no| victim(&server, victim_no % 2 == 0)).collect();
    let half_writers: Vec<Peer> = (0..HALF_WRITERS).map(|kind| half_writer(&server, kind)).collect();
    let everybody = SURVIVORS + 1 + KILLED + HALF_WRITERS;
    eventually("everybody is connected", || server.connections() == everybody);

    let mut random = fastrand::Rng::with_seed(7);
    let mut published = 0;
    for _ in 0..KILLED {
        for _ in 0..TICKS_PER_KILL {
            let payload = format!("{{\"n\":{published},\"pad\":\"{}\"}}", "x".repeat(published % 200));
            publish(&mut publisher, &format!("churn.{}", published % 7), payload.as_bytes());
            published += 1;
        }
        publisher.flush().unwrap();
        let mut peer = victims.swap_remove(random.usize(..victims.len()));
        // Some have read part of their ticks and end within a frame.
        let _ = peer.stream.read(&mut vec![0; random.usize(1..4_000)]);
        vanish(peer, random.u8(..));
    }
    barrier(&mut publisher);
    for survivor in &survivors {
        survivor.wait_for(published);
    }
    let left = SURVIVORS + 1 + HALF_WRITERS;
    eventually("the killed clients are gone", || server.connections() == left);
    let enders: Vec<_> = half_writers
        .into_iter()
        .enumerate()
        .map(|(how, peer)| thread::spawn(move || vanish(peer, how as u8 / 3)))
        .collect();
    enders.into_iter().for_each(|ender| ender.join().unwrap());
    eventually("the half-writers are gone", || server.connections() == SURVIVORS + 1);

    publish(&mut publisher, "churn.last", b"after all of them");
    barrier(&mut publisher);
    for survivor in survivors {
        survivor.wait_for(published + 1);
        let name = survivor.name.clone();
        let got = survivor.finish();
        assert_eq!((got.count, got.closing.as_ref()), (published + 1, None), "{name}");
        got.assert_no_gap(&name);
    }
    drop(publisher);
    eventually("everybody is gone", || server.connections() == 0);
    eventually("descriptors are back at the baseline", || server.descriptors() == baseline);
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("ticks_sequenced"), published as u64 + 1, "no half-written tick was taken");
    assert_eq!(stopped.total("closed_slow_consumer"), 0);
    assert_eq!(stopped.total("sessions_accepted"), everybody as u64 + 2);
}

#[test]
fn a_hundred_rounds_of_a_thousand_killed_connections_leave_nothing() {
    let _machine = alone();
    raise_descriptor_limit();
    // If connections of earlier rounds leaked, later ones would soon be refused.
    let clients_max = (2 * KILLED_A_ROUND).to_string();
    let server = Server::start(&[&["--max-clients", &clients_max], &PATIENT[..]].concat());
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    let witness = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &["churn.>"]);
    let baseline = (server.connections(), server.descriptors());
    let mut warm_rss_bytes = 0;
    for round in 1..=ROUNDS {
        let open = |opener: usize| -> Vec<Peer> {
            let numbers = (opener..KILLED_A_ROUND).step_by(OPENERS);
            let peer = |number| match number % 3 {
                0 => half_writer(&server, number / 3),
                kind => victim(&server, kind == 1),
            };
            numbers.map(peer).collect()
        };
        let killed: Vec<Peer> = thread::scope(|scope| {
            let openers: Vec<_> = (0..OPENERS).map(|opener| scope.spawn(move || open(opener))).collect();
            openers.into_iter().flat_map(|opener| opener.join().unwrap()).collect()
        });
        // The connections die with these ticks on their way.
        for tick in 0..2 {
            publish(&mut publisher, &format!("churn.{tick}"), &[b'7'; 500]);
        }
        publisher.flush().unwrap();
        killed.into_iter().for_each(Peer::reset);
        eventually("the round's connections are gone", || server.connections() == baseline.0);
        if round == WARM_UP_ROUNDS {
            barrier(&mut publisher);
            warm_rss_bytes = server.rss_bytes();
        }
    }
    let published = 2 * ROUNDS;
    witness.wait_for(published);
    let got = witness.finish();
    assert_eq!((got.count, got.closing.as_ref()), (published, None));
    barrier(&mut publisher);
    let rss_bytes = server.rss_bytes();
    assert!(rss_bytes <= warm_rss_bytes + GROWTH_BYTES_MAX, "RSS grew from {warm_rss_bytes} to {rss_bytes}");
    drop(publisher);
    eventually("everybody is gone", || server.connections() == 0);
    eventually("descriptors are back at the baseline", || server.descriptors() == baseline.1);
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("sessions_accepted"), (ROUNDS * KILLED_A_ROUND) as u64 + 2);
    assert_eq!(stopped.total("sessions_refused"), 0);
    assert_eq!(stopped.total("closed_shutdown"), 0, "no session was left at the stop");
}
