//! Heartbeats of the real binary: dead peers are reaped, idle ones stay connected, and a suspended server keeps its clients.

use std::{thread, time::Duration};

use crate::harness::{
    Server, beside_others,
    collector::{Collector, address, barrier, connect, publish},
    eventually,
    external::{External, Library, ticks},
    frames::{self, Raw},
    processes::{resume, suspend},
    raw::{CLOSE, PING, PONG, Peer, masked},
};
use tickcast_client::Client;
use tickcast_proto::WireFormat;

/// Frequent pings, with a timeout that no client misses on a busy machine.
const PATIENT: [&str; 4] = ["--ping-interval", "200ms", "--ping-timeout", "20s"];
/// Frequent pings with a short timeout, for dead peers.
const SHORT: [&str; 4] = ["--ping-interval", "200ms", "--ping-timeout", "1s"];

fn answer(peer: &mut Peer) {
    let frame = peer.any_frame().unwrap();
    assert_eq!((frame.kind, frame.record.len()), (frames::PING, 8));
    peer.send(&Raw::new(frames::PONG, &frame.record, b"").bytes());
}

#[test]
fn dead_peers_are_reaped_and_their_slots_are_freed() {
    let _machine = beside_others();
    let options = [&["--no-sim", "--max-clients", "3"], &SHORT[..]].concat();
    let server = Server::start_logging("tickcast=debug", &options);
    let _native = Peer::native(server.tcp);
    let _websocket = Peer::websocket(server.http, "/ws", "tickcast.v1.json");
    let _raw = Peer::websocket(server.http, "/ws?topics=t", "tickcast.v1.raw");
    eventually("all three are closed", || {
        server.log.text().matches("ends: no answer to a ping").count() == 3
    });
    let address = address(&server, WireFormat::TCP_NATIVE);
    eventually("a slot is free", || Client::connect_to(&address).is_ok());
    assert_eq!(server.stop_cleanly().total("closed_heartbeat_timeout"), 3);
}

#[test]
fn a_peer_that_reads_and_does_not_answer_receives_3011() {
    let _machine = beside_others();
    let server = Server::start(&SHORT);
    let mut native = Peer::native(server.tcp);
    assert_eq!(native.any_frame().unwrap().kind, frames::PING);
    let closing = native.any_frame().unwrap();
    assert_eq!((closing.kind, closing.code()), (frames::CLOSING, 3011));
    assert_eq!(native.any_frame(), None);
    let mut websocket = Peer::websocket(server.http, "/ws?topics=t", "tickcast.v1.raw");
    let ping = websocket.any_message().unwrap();
    assert_eq!((ping.opcode, ping.payload.len()), (PING, 0));
    let close = websocket.any_message().unwrap();
    assert_eq!((close.opcode, close.close_code()), (CLOSE, 3011));
    drop((native, websocket));
    assert_eq!(server.stop_cleanly().total("closed_heartbeat_timeout"), 2);
}

#[test]
fn a_dead_peer_with_a_full_socket_is_reaped_before_its_outbox_overflows() {
    let _machine = beside_others();
    let room = ["--outbox-max", "64MiB", "--egress-log", "128MiB"];
    // The timeout also applies to the publisher, which is silent while it waits for the barrier.
    let heartbeat = ["--ping-interval", "200ms", "--ping-timeout", "5s"];
    let options = [&["--no-sim"], &room[..], &heartbeat].concat();
    let server = Server::start_logging("tickcast=debug", &options);
    let mut peer = Peer::connect_with_small_window(server.tcp);
    peer.send(&Raw::request(frames::HELLO, 1, b"dead").bytes());
    peer.send(&Raw::request(frames::SUBSCRIBE, 2, b"t").bytes());
    assert_eq!(peer.frame().unwrap().kind, frames::WELCOME);
    assert_eq!(peer.frame().unwrap().kind, frames::SUBSCRIBED);
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    for _ in 0..80 {
        publish(&mut publisher, "t", &[b'x'; 100 << 10]);
    }
    barrier(&mut publisher);
    drop(publisher);
    eventually("it is closed", || server.log.text().contains("ends: no answer to a ping"));
    let stopped = server.stop_cleanly();
    assert_eq!((stopped.total("closed_heartbeat_timeout"), stopped.total("closed_slow_consumer")), (1, 0));
    drop(peer);
}

#[test]
fn idle_clients_of_every_kind_that_answer_stay_connected() {
    let _machine = beside_others();
    let server = Server::start(&PATIENT);
    let encodings = [
        WireFormat::TCP_NATIVE,
        WireFormat::WEBSOCKET_NATIVE,
        WireFormat::WEBSOCKET_JSON,
        WireFormat::WEBSOCKET_RAW,
    ];
    let collectors = encodings.map(|encoding| Collector::start(&server, encoding, &["t"]));
    let externals = [Library::Ws, Library::Websockets]
        .map(|library| External::subscribe(library, &server, "json", "t", 1));
    externals.iter().for_each(External::wait_until_ready);
    // The raw peer sees the pings: by the time it has answered some, so have the others.
    let mut peer = Peer::native(server.tcp);
    (0..5).for_each(|_| answer(&mut peer));
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    publish(&mut publisher, "t", b"1");
    barrier(&mut publisher);
    for collector in collectors {
        collector.wait_for(1);
        let got = collector.finish();
        assert_eq!((got.closing, got.ended), (None, None));
    }
    for external in externals {
        assert_eq!(ticks(&external.finish())["t"], [(1, b"1".to_vec())]);
    }
    drop((peer, publisher));
    let stopped = server.stop_cleanly();
    assert!(stopped.total("pings") >= 5 * 7, "{}", stopped.log);
    assert_eq!(stopped.total("closed_heartbeat_timeout"), 0);
}

#[test]
fn a_server_suspended_for_longer_than_the_timeout_keeps_its_clients() {
    let _machine = beside_others();
    let server = Server::start(&["--ping-interval", "200ms", "--ping-timeout", "4s"]);
    let encodings = [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_JSON];
    let collectors = encodings.map(|encoding| Collector::start(&server, encoding, &["t"]));
    let mut native = Peer::native(server.tcp);
    let mut websocket = Peer::websocket(server.http, "/ws", "tickcast.v1.json");
    // Suspended with pings on their way.
    assert_eq!(websocket.any_message().unwrap().opcode, PING);
    answer(&mut native);
    suspend(server.pid());
    websocket.send(&masked(0x80 | PONG, b""));
    // There is no event to wait for: the server must be suspended for longer than the timeout.
    thread::sleep(Duration::from_millis(4_500));
    resume(server.pid());
    // Two more heartbeats each: everybody is still connected.
    (0..2).for_each(|_| answer(&mut native));
    for _ in 0..2 {
        assert_eq!(websocket.any_message().unwrap().opcode, PING);
        websocket.send(&masked(0x80 | PONG, b""));
    }
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    publish(&mut publisher, "t", b"1");
    barrier(&mut publisher);
    for collector in collectors {
        collector.wait_for(1);
        assert_eq!(collector.finish().closing, None);
    }
    drop((native, websocket, publisher));
    assert_eq!(server.stop_cleanly().total("closed_heartbeat_timeout"), 0);
}

#[test]
fn each_client_receives_its_own_reconnect_delay() {
    let _machine = beside_others();
    let server = Server::start(&["--reconnect-spread", "1000000s"]);
    let mut natives: Vec<Peer> = (0..5).map(|_| Peer::native(server.tcp)).collect();
    let mut websocket = Peer::websocket(server.http, "/ws", "tickcast.v1.json");
    server.terminate();
    let mut times: Vec<u32> = natives
        .iter_mut()
        .map(|peer| {
            let closing = peer.frame().unwrap();
            assert_eq!((closing.kind, closing.code()), (frames::CLOSING, 3001));
            u32::from_le_bytes(closing.record[..4].try_into().unwrap())
        })
        .collect();
    let text = websocket.text();
    assert!(text.starts_with(r#"{"op":"closing","code":3001,"#), "{text}");
    let (_, after) = text.split_once(r#""reconnect_after_ms":"#).unwrap();
    times.push(after.trim_end_matches('}').parse().unwrap());
    assert_eq!(websocket.message().unwrap().close_code(), 1001);
    assert!(times.iter().all(|&after_ms| after_ms <= 1_000_000_000));
    times.sort_unstable();
    times.dedup();
    assert_eq!(times.len(), 6, "{times:?}");
    drop((natives, websocket));
    server.wait().assert_clean();
}
