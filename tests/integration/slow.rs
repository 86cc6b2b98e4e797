//! A slow consumer is closed with 3008; the others get every tick.

use crate::harness::{
    Server, beside_others,
    collector::{Collector, barrier, connect, publish},
    frames::{self, Raw, Received},
    raw::{Peer, TEXT, take_message},
};
use tickcast_proto::WireFormat;

/// Ticks published before the test waits for the healthy clients: fewer than an outbox holds.
const BATCH: usize = 30;
const PAYLOAD: [u8; 1_000] = [b'x'; 1_000];
/// Far more batches than kernel buffers and outbox hold.
const BATCHES_MAX: usize = 2_000;
/// A slow consumer has one second to read its CLOSING. If a busy machine delays the test for longer, it tries again.
const ATTEMPTS_MAX: usize = 50;

fn subscribe_and_do_not_read(server: &Server, encoding: WireFormat) -> Peer {
    if encoding == WireFormat::TCP_NATIVE {
        let mut peer = Peer::connect_with_small_window(server.tcp);
        peer.send(&Raw::request(frames::HELLO, 1, b"slow").bytes());
        peer.send(&Raw::request(frames::SUBSCRIBE, 2, b"t").bytes());
        assert_eq!(peer.frame().unwrap().kind, frames::WELCOME);
        assert_eq!(peer.frame().unwrap().kind, frames::SUBSCRIBED);
        return peer;
    }
    let mut peer = Peer::connect_with_small_window(server.http);
    peer.upgrade("/ws?topics=t", "tickcast.v1.json");
    assert!(peer.text().contains("subscribed"));
    peer
}

/// Sequences that a slow consumer received, and its close code if it read that in time.
fn read_the_rest(peer: &mut Peer, encoding: WireFormat) -> (Vec<u64>, Option<u16>) {
    let mut bytes = peer.read_to_end();
    let (mut sequences, mut code) = (Vec::new(), None);
    if encoding == WireFormat::TCP_NATIVE {
        while let Some(frame) = Received::take(&mut bytes) {
            assert_eq!(code, None, "CLOSING is the last");
            match frame.kind {
                frames::TICK => sequences.push(frame.sequence),
                frames::CLOSING => code = Some(frame.code()),
                kind => assert_eq!(kind, frames::SUBSCRIBED),
            }
        }
        return (sequences, code);
    }
    while let Some(message) = take_message(&mut bytes) {
        if message.opcode != TEXT {
            code = Some(message.close_code());
        } else if let Some((_, rest)) = message.text().split_once("\"seq\":") {
            sequences.push(rest.split(',').next().unwrap().parse().unwrap());
        }
    }
    (sequences, code)
}

fn is_closed_and_the_others_lose_nothing(encoding: WireFormat) {
    let _machine = beside_others();
    let options = ["--no-sim", "--frame-max", "8KiB", "--outbox-max", "64KiB", "--egress-log", "128KiB"];
    let server = Server::start_logging("tickcast=debug", &options);
    let healthy =
        [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON, encoding]
            .map(|encoding| Collector::start(&server, encoding, &["t"]));
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    let (mut published, mut close_code) = (0, None);
    let mut attempts = 0;
    while close_code.is_none() && attempts < ATTEMPTS_MAX {
        attempts += 1;
        let closed = || server.log.text().matches("ends: slow consumer").count();
        let mut slow = subscribe_and_do_not_read(&server, encoding);
        for batch in 0.. {
            assert!(
                batch < BATCHES_MAX,
                "a consumer that does not read was not closed after {published} ticks"
            );
            for _ in 0..BATCH {
                publish(&mut publisher, "t", &PAYLOAD);
            }
            barrier(&mut publisher);
            published += BATCH;
            healthy.iter().for_each(|collector| collector.wait_for(published));
            if closed() == attempts {
                break;
            }
        }
        let (sequences, code) = read_the_rest(&mut slow, encoding);
        assert!(sequences.windows(2).all(|pair| pair[1] == pair[0] + 1), "a gap before the close");
        assert!(!sequences.is_empty() && *sequences.last().unwrap() < published as u64);
        close_code = code;
    }
    assert_eq!(close_code, Some(3008), "after {attempts} attempts");
    for collector in healthy {
        let name = collector.name.clone();
        let got = collector.finish();
        assert_eq!((got.count, got.closing.as_ref()), (published, None), "{name}");
        got.assert_no_gap(&name);
    }
    drop(publisher);
    assert_eq!(server.stop_cleanly().total("closed_slow_consumer"), attempts as u64);
}

#[test]
fn a_slow_native_consumer_is_closed_with_3008_and_the_others_lose_nothing() {
    is_closed_and_the_others_lose_nothing(WireFormat::TCP_NATIVE);
}

#[test]
fn a_slow_websocket_consumer_is_closed_with_3008_and_the_others_lose_nothing() {
    is_closed_and_the_others_lose_nothing(WireFormat::WEBSOCKET_JSON);
}
