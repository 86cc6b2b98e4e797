//! SIGTERM: every accepted tick arrives, every client receives the close code, and no client can delay the exit.

use std::{
    io::ErrorKind,
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    GUARD, LOOK_AGAIN, LOSSLESS, Server, beside_others,
    collector::{ByTopic, Collector, address, barrier, connect, publish},
    eventually,
    external::{External, Library, ticks},
    frames::{self, Raw},
    http::get,
    raw::{CLOSE, Peer},
};
use tickcast_client::{Client, Event};
use tickcast_proto::WireFormat;

/// Publishes to two topics of its own until the server announces its stop.
fn load(mut client: Client, name: usize, published: &AtomicU64) {
    let payload = [b'x'; 100];
    let (mut stopping, start) = (false, Instant::now());
    while !stopping {
        assert!(start.elapsed() < GUARD, "the server has not announced its stop");
        for tick in 0..10 {
            publish(&mut client, &format!("load.{name}.{}", tick % 2), &payload);
        }
        published.fetch_add(10, Relaxed);
        if client.flush().is_err() {
            return;
        }
        while let Ok(Some(event)) = client.next_event(Some(Duration::ZERO)) {
            stopping |= matches!(event, Event::Closing { code: 3001, .. });
            if event == Event::Closed {
                break;
            }
        }
        // Leaves CPU for the other processes.
        thread::sleep(Duration::from_millis(2));
    }
}

/// The last sequence of each topic, asserting no gap before it. The simulator starts before anybody subscribes.
fn last_sequences(name: &str, ticks: &ByTopic) -> Vec<(String, u64)> {
    ticks
        .iter()
        .map(|(topic, ticks)| {
            let first = ticks[0].0;
            assert!(first == 1 || topic.starts_with("sim."), "{name}: {topic} begins with {first}");
            for (index, (sequence, _)) in ticks.iter().enumerate() {
                assert_eq!(*sequence, first + index as u64, "{name}: {topic}: a gap");
            }
            (topic.clone(), first + ticks.len() as u64 - 1)
        })
        .collect()
}

#[test]
fn ticks_accepted_before_sigterm_arrive_and_every_client_receives_3001() {
    let _machine = beside_others();
    let options = ["--sim-producers", "10", "--sim-rate", "100", "--sim-topics", "3", "--shards", "3"];
    let server = Server::start_logging("info", &[&options[..], &LOSSLESS].concat());
    let encodings = [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON];
    let collectors: Vec<Collector> = (0..12)
        .map(|client| Collector::start(&server, encodings[client % 3], &["load.>", "sim.*"]))
        .collect();
    let externals: Vec<External> = [Library::Ws, Library::Websockets]
        .into_iter()
        .flat_map(|library| ["json", "rkyv"].map(|encoding| (library, encoding)))
        .map(|(library, encoding)| External::subscribe(library, &server, encoding, "load.>,sim.*", 0))
        .collect();
    externals.iter().for_each(External::wait_until_ready);
    let published = Arc::new(AtomicU64::new(0));
    let publishers: Vec<_> =
        [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON]
            .into_iter()
            .enumerate()
            .map(|(name, encoding)| {
                let (client, published) = (connect(&server, encoding), published.clone());
                thread::spawn(move || load(client, name, &published))
            })
            .collect();
    collectors.iter().for_each(|collector| collector.wait_for(5_000));
    server.terminate();
    publishers.into_iter().for_each(|publisher| publisher.join().unwrap());

    let mut results = Vec::new();
    for collector in collectors {
        collector.wait_for_end();
        let name = collector.name.clone();
        let got = collector.finish();
        assert_eq!(got.closing.as_ref().map(|(code, _)| *code), Some(3001), "{name}");
        assert_eq!(got.ended, Some(Ok(())), "{name}");
        results.push((name, got.ticks));
    }
    for external in externals {
        let name = external.name.clone();
        let printed = external.finish();
        assert!(printed.ends_with("closing 3001\nclosed 1001\nend\n"), "{name}");
        results.push((name, ticks(&printed)));
    }
    let stopped = server.wait();
    stopped.assert_clean();
    assert_eq!(stopped.total("source_ticks_dropped"), 0);
    let expected = last_sequences(&results[0].0, &results[0].1);
    assert_eq!(expected.len(), 9);
    let sequenced: u64 = expected.iter().map(|(_, last)| last).sum();
    assert_eq!(sequenced, stopped.total("ticks_sequenced"), "the last tick sequenced is the last received");
    for (name, ticks) in &results {
        assert_eq!(last_sequences(name, ticks), expected, "{name}");
    }
    assert!(published.load(Relaxed) > 0);
}

/// A subscriber that never reads, with a small window and megabytes queued for it.
pub fn stuck(server: &Server, publisher: &mut Client, encoding: WireFormat) -> Peer {
    let address = address(server, encoding).host.parse().unwrap();
    let mut peer = Peer::connect_with_small_window(address);
    if encoding == WireFormat::TCP_NATIVE {
        peer.send(&Raw::request(frames::HELLO, 1, b"stuck").bytes());
        assert_eq!(peer.frame().unwrap().kind, frames::WELCOME);
        peer.send(&Raw::request(frames::SUBSCRIBE, 2, b"flood").bytes());
        assert_eq!(peer.frame().unwrap().kind, frames::SUBSCRIBED);
    } else {
        peer.upgrade("/ws", "tickcast.v1.json");
        peer.send_text(r#"{"op":"subscribe","topics":["flood"]}"#);
        assert!(peer.text().contains("subscribed"));
    }
    let before = sequenced(server);
    for _ in 0..120 {
        publish(publisher, "flood", &[b'x'; 100 << 10]);
    }
    barrier(publisher);
    // Accepted by the publisher's shard, they may still be on their way to their home shard.
    eventually("the flood is sequenced", || sequenced(server) == before + 120);
    peer
}

/// Ticks that the server has sequenced.
fn sequenced(server: &Server) -> u64 {
    let metrics = get(server.admin.unwrap(), "/metrics").body;
    let counters = metrics.lines().filter(|line| line.starts_with("tickcast_ticks_sequenced_total{"));
    counters.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Options for a server with [`stuck`] clients.
pub const ROOM_FOR_THE_STUCK: [&str; 4] = ["--outbox-max", "64MiB", "--egress-log", "128MiB"];

#[test]
fn a_client_that_never_reads_cannot_delay_the_exit_past_the_drain_deadline() {
    let _machine = beside_others();
    let server = Server::start(&[&ROOM_FOR_THE_STUCK[..], &["--drain-deadline", "4s"]].concat());
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    let native = stuck(&server, &mut publisher, WireFormat::TCP_NATIVE);
    let websocket = stuck(&server, &mut publisher, WireFormat::WEBSOCKET_JSON);
    let healthy = Collector::start(&server, WireFormat::TCP_NATIVE, &["healthy"]);
    publish(&mut publisher, "healthy", b"last");
    barrier(&mut publisher);
    // Both are still connected and silent when the server exits.
    let stopped = server.stop();
    assert_eq!(stopped.code, Some(0), "{}", stopped.log);
    assert_eq!(stopped.total("closed_slow_consumer"), 0);
    let got = healthy.finish();
    assert_eq!(got.ticks["healthy"], [(1, b"last".to_vec())]);
    assert_eq!(got.closing.unwrap().0, 3001);
    stopped.assert_clean();
    drop((native, websocket));
}

#[test]
fn a_draining_server_accepts_no_connection_and_a_second_signal_ends_it() {
    let _machine = beside_others();
    let server = Server::start(&[&ROOM_FOR_THE_STUCK[..], &["--drain-deadline", "1h"]].concat());
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    let stuck = stuck(&server, &mut publisher, WireFormat::TCP_NATIVE);
    server.terminate();
    server.log.wait_for("stopping");
    for address in [server.tcp, server.http] {
        eventually("connections are refused", || {
            TcpStream::connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        });
    }
    // A second signal within 200 ms counts as the first.
    eventually("the second signal is handled", || {
        server.terminate();
        thread::sleep(LOOK_AGAIN);
        server.log.text().contains("received again: stopping immediately")
    });
    assert_eq!(server.wait().code, Some(128 + 15));
    drop(stuck);
}

#[test]
fn a_drained_client_that_reads_late_still_gets_everything_in_order() {
    let _machine = beside_others();
    let server = Server::start(&[&ROOM_FOR_THE_STUCK[..], &["--drain-deadline", "1h"]].concat());
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    let mut native = stuck(&server, &mut publisher, WireFormat::TCP_NATIVE);
    let mut websocket = stuck(&server, &mut publisher, WireFormat::WEBSOCKET_JSON);
    drop(publisher);
    server.terminate();
    server.log.wait_for("stopping");
    let mut next = 1;
    loop {
        let frame = native.frame().unwrap();
        match frame.kind {
            frames::TICK => {
                assert_eq!((frame.sequence, frame.payload.len()), (next, 100 << 10));
                next += 1;
            }
            frames::CLOSING => break assert_eq!(frame.code(), 3001),
            kind => assert_eq!(kind, frames::SUBSCRIBED),
        }
    }
    assert_eq!((next, native.frame()), (241, None));
    drop(native);
    let (mut count, mut closing) = (0, false);
    loop {
        let message = websocket.message().unwrap();
        if message.opcode == CLOSE {
            break assert_eq!(message.close_code(), 1001);
        }
        assert!(!closing, "CLOSING is the last message");
        closing = message.text().starts_with(r#"{"op":"closing","code":3001,"#);
        if message.text().starts_with("{\"topic\":\"flood\"") {
            count += 1;
            assert!(message.text().contains(&format!("\"seq\":{},", 120 + count)));
        }
    }
    assert_eq!((count, closing, websocket.message()), (120, true, None));
    drop(websocket);
    server.wait().assert_clean();
}
