//! The load client against the server: many connections and many ticks.

use crate::harness::{
    LOSSLESS, Server, alone,
    collector::{barrier, connect, publish},
    load_client::LoadClient,
    market_capture,
};
use tickcast_proto::WireFormat;

/// Deadlines that no client misses on a busy machine.
const PATIENT: [&str; 4] = ["--handshake-deadline", "10m", "--ping-interval", "0"];
const CONNECTIONS: usize = 10_000;
const BROADCAST_TICKS: usize = 20;

fn broadcast(transport: &[&str], address: impl Fn(&Server) -> String) {
    let _machine = alone();
    let server = Server::start(&PATIENT);
    let address = address(&server);
    let (connections, ticks) = (CONNECTIONS.to_string(), BROADCAST_TICKS.to_string());
    let options = ["--server", &address, "--connections", &connections, "--expect-ticks", &ticks];
    let load = LoadClient::start(&[&options[..], &["--duration", "150s"], transport].concat());
    load.log.wait_for(&format!("subscribed {connections}\n"));
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    for tick in 0..BROADCAST_TICKS {
        publish(&mut publisher, "broadcast", format!("{{\"tick\":{tick}}}").as_bytes());
    }
    barrier(&mut publisher);
    drop(publisher);
    let report = load.finish();
    assert_eq!(report["deliveries"], CONNECTIONS * BROADCAST_TICKS, "{report}");
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("ticks_delivered"), (CONNECTIONS * BROADCAST_TICKS) as u64);
    assert_eq!(stopped.total("closed_slow_consumer"), 0);
}

#[test]
fn ten_thousand_native_connections_each_get_all_of_twenty_broadcast_ticks() {
    broadcast(&["--transport", "native"], |server| server.tcp.to_string());
}

#[test]
fn ten_thousand_websocket_connections_each_get_all_of_twenty_broadcast_ticks() {
    broadcast(&["--transport", "ws", "--encoding", "json"], |server| server.http.to_string());
}

/// A short version of the benchmark load. The feed is finite, so a busy machine affects how long it takes and not what
/// arrives.
#[test]
fn a_hundred_websocket_clients_of_a_market_lose_nothing() {
    const CLIENTS: usize = 100;
    const TICKS: usize = 4_000;
    let _machine = alone();
    let (connections, ticks) = (CLIENTS.to_string(), TICKS.to_string());
    let capture = market_capture();
    let feed = ["--replay", capture.to_str().unwrap(), "--speed", "max", "--replay-wait", &connections];
    let server = Server::start(&[&feed[..], &PATIENT, &LOSSLESS].concat());
    let address = server.http.to_string();
    let options = ["--server", &address, "--connections", &connections, "--subscribe", "market.>"];
    let encoding = ["--transport", "ws", "--encoding", "json"];
    let until = ["--expect-ticks", &ticks, "--duration", "150s"];
    let report = LoadClient::start(&[&options[..], &encoding, &until].concat()).finish();
    assert_eq!(report["deliveries"], CLIENTS * TICKS, "{report}");
    assert_eq!(server.stop_cleanly().total("closed_slow_consumer"), 0);
}

#[test]
fn clients_with_topics_of_their_own_get_those_and_no_others() {
    const CLIENTS: usize = 20;
    const EACH: usize = 3;
    // Each topic has two subscribers.
    const TOPICS: usize = 30;
    let _machine = alone();
    let server = Server::start(&PATIENT);
    let address = server.tcp.to_string();
    let (connections, own) = (CLIENTS.to_string(), format!("{EACH}/{TOPICS}"));
    let options = ["--server", &address, "--connections", &connections, "--subscribe-own", &own];
    let load = LoadClient::start(&[&options[..], &["--expect-ticks", "3", "--duration", "60s"]].concat());
    load.log.wait_for(&format!("subscribed {connections}\n"));
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    for topic in 0..TOPICS {
        publish(&mut publisher, &format!("sim.{topic}"), b"{}");
    }
    barrier(&mut publisher);
    drop(publisher);
    let report = load.finish();
    assert_eq!(report["deliveries"], CLIENTS * EACH, "{report}");
    assert_eq!(server.stop_cleanly().total("ticks_delivered"), (CLIENTS * EACH) as u64);
}
