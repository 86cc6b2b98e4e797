//! The load client against the server, as two processes with many connections and many ticks.

use crate::harness::{
    Server, alone,
    collector::{barrier, connect, publish},
    load_client::LoadClient,
};
use tickcast_proto::Encoding;

const CONNECTIONS: usize = 10_000;
const BROADCAST_TICKS: usize = 20;

fn broadcast(transport: &[&str], address: impl Fn(&Server) -> String) {
    let _machine = alone();
    let server = Server::start(&[]);
    let address = address(&server);
    let (connections, ticks) = (CONNECTIONS.to_string(), BROADCAST_TICKS.to_string());
    let options = ["--server", &address, "--connections", &connections, "--expect-ticks", &ticks];
    let load = LoadClient::start(&[&options[..], &["--duration", "80s"], transport].concat());
    load.log.wait_for(&format!("subscribed {connections}\n"));
    let mut publisher = connect(&server, Encoding::Native);
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
fn ten_thousand_native_connections_each_receive_all_twenty_broadcast_ticks() {
    broadcast(&["--transport", "native"], |server| server.tcp.to_string());
}

#[test]
fn ten_thousand_websocket_connections_each_receive_all_twenty_broadcast_ticks() {
    broadcast(&["--transport", "ws", "--encoding", "json"], |server| server.http.to_string());
}

/// A fifth of the rate that the benchmarks use, so that an unoptimised server keeps up on a busy machine.
#[test]
fn a_hundred_websocket_clients_of_fifty_producers_lose_no_tick() {
    let _machine = alone();
    let load = ["--sim-producers", "50", "--sim-rate", "20", "--sim-size", "100"];
    let server = Server::start_logging("info", &load);
    let address = server.http.to_string();
    let options = ["--server", &address, "--transport", "ws", "--encoding", "json", "--subscribe", "sim.>"];
    let client = LoadClient::start(&[&options[..], &["--connections", "100", "--duration", "5s"]].concat());
    let report = client.finish();
    assert!(report["deliveries"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(server.stop_cleanly().total("closed_slow_consumer"), 0);
}

#[test]
fn clients_with_topics_of_their_own_receive_only_those() {
    const CLIENTS: usize = 20;
    const EACH: usize = 3;
    // Two clients per topic.
    const TOPICS: usize = 30;
    let _machine = alone();
    let server = Server::start(&[]);
    let address = server.tcp.to_string();
    let (connections, own) = (CLIENTS.to_string(), format!("{EACH}/{TOPICS}"));
    let options = ["--server", &address, "--connections", &connections, "--subscribe-own", &own];
    let load = LoadClient::start(&[&options[..], &["--expect-ticks", "3", "--duration", "60s"]].concat());
    load.log.wait_for(&format!("subscribed {connections}\n"));
    let mut publisher = connect(&server, Encoding::Native);
    for topic in 0..TOPICS {
        publish(&mut publisher, &format!("sim.{topic}"), b"{}");
    }
    barrier(&mut publisher);
    drop(publisher);
    let report = load.finish();
    assert_eq!(report["deliveries"], CLIENTS * EACH, "{report}");
    assert_eq!(server.stop_cleanly().total("ticks_delivered"), (CLIENTS * EACH) as u64);
}
