//! What waits for a latency budget, and what does not. The budget is as long as it may be, a minute: what is answered at all has
//! not waited for it.

use crate::harness::{
    Server, beside_others,
    frames::{self, Raw, Received},
    raw::{BINARY, Peer, masked},
};

const BUDGET: [&str; 2] = ["--latency-budget", "1m"];
/// Clients that connect one after the other while ticks wait.
const NEWCOMERS: usize = 100;

fn subscribe(peer: &mut Peer, pattern: &str) {
    peer.send(&Raw::request(frames::SUBSCRIBE, 2, pattern.as_bytes()).bytes());
    assert_eq!(answer(peer).kind, frames::SUBSCRIBED);
}

fn publish(peer: &mut Peer, topic: &str, text: &str) {
    peer.send(&Raw::publish(0, topic.as_bytes(), text.as_bytes()).bytes());
}

/// The next frame that is neither a tick nor the announcement of a topic.
fn answer(peer: &mut Peer) -> Received {
    loop {
        let frame = peer.frame().unwrap();
        let announces = frame.kind == frames::SUBSCRIBED && frame.topic_id != 0;
        if frame.kind != frames::TICK && !announces {
            return frame;
        }
    }
}

fn next_tick(peer: &mut Peer) -> Received {
    loop {
        let frame = peer.frame().unwrap();
        if frame.kind == frames::TICK {
            return frame;
        }
    }
}

/// The peer's answer to a ping, after all that the server has sent before; the ticks among it.
fn ping(peer: &mut Peer) -> Vec<u64> {
    peer.send(&Raw::ping(9).bytes());
    let mut sequences = Vec::new();
    loop {
        let frame = peer.frame().unwrap();
        match frame.kind {
            frames::TICK => sequences.push(frame.sequence),
            frames::PONG => return sequences,
            _ => {}
        }
    }
}

#[test]
fn ticks_wait_for_the_budget_and_everything_else_is_answered_at_once() {
    let _machine = beside_others();
    let server = Server::start(&[&["--shards", "1"], &BUDGET[..]].concat());
    let (mut reader, mut publisher) = (Peer::native(server.tcp), Peer::native(server.tcp));
    subscribe(&mut reader, "t");
    publish(&mut publisher, "t", "the first after a pause leaves at once");
    assert_eq!(next_tick(&mut reader).sequence, 1);
    publish(&mut publisher, "t", "waits for others");
    assert!(ping(&mut publisher).is_empty(), "the shard has the tick");
    assert!(!reader.has_answer(), "the tick waits");
    for at in 0..NEWCOMERS {
        let mut native = Peer::native(server.tcp);
        let pattern = if at % 2 == 0 { "t" } else { ">" };
        subscribe(&mut native, pattern);
        native.send(&Raw::publish(7, b"not a.valid topic", b"").bytes());
        assert_eq!(answer(&mut native).request(), 7);
        native.send(&Raw::request(frames::UNSUBSCRIBE, 3, pattern.as_bytes()).bytes());
        assert_eq!(answer(&mut native).request(), 3);
        let mut json = Peer::websocket(server.http, "/ws?topics=t", "tickcast.v1.json");
        assert!(json.text().contains("subscribed"));
        json.send_text(r#"{"op":"ping","token":5}"#);
        while !json.text().contains("pong") {}
        let mut framed = Peer::websocket(server.http, "/ws", "tickcast.v1.rkyv");
        framed.send(&masked(0x80 | BINARY, &Raw::ping(1).bytes()));
        assert_eq!(framed.message().unwrap().opcode, BINARY);
        let mut http = Peer::connect(server.http);
        http.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let head = http.http_head().to_lowercase();
        let length = head.split_once("content-length: ").unwrap().1.lines().next().unwrap();
        assert_eq!(http.read_to_end().len().to_string(), length);
    }
    assert!(ping(&mut publisher).is_empty());
    assert!(!reader.has_answer(), "the tick waits still");
    assert_eq!(ping(&mut reader), [2], "a reply takes along the ticks before it");
    publish(&mut publisher, "t", "waits until the server stops");
    ping(&mut publisher);
    server.terminate();
    assert_eq!(next_tick(&mut reader).sequence, 3);
    assert_eq!(reader.frame().unwrap().kind, frames::CLOSING);
    drop((reader, publisher));
    server.wait().assert_clean();
}

#[test]
fn shards_that_wait_for_their_budget_answer_each_other_at_once() {
    let _machine = beside_others();
    let server = Server::start(&[&["--shards", "2"], &BUDGET[..]].concat());
    let topics: Vec<String> = (0..16).map(|number| format!("topic.{number}")).collect();
    let mut readers: Vec<Peer> = (0..8).map(|_| Peer::native(server.tcp)).collect();
    readers.iter_mut().for_each(|reader| subscribe(reader, ">"));
    let mut publisher = Peer::native(server.tcp);
    publish(&mut publisher, &topics[0], "");
    for reader in &mut readers {
        next_tick(reader);
    }
    // Both shards have sent a tick now, and wait.
    for at in 0..NEWCOMERS {
        let mut newcomer = Peer::native(server.tcp);
        subscribe(&mut newcomer, &topics[at % topics.len()]);
        subscribe(&mut newcomer, &format!("topic.*.{at}"));
        ping(&mut newcomer);
    }
    drop((readers, publisher));
    server.stop_cleanly();
}

#[test]
fn a_wait_ends_when_as_much_has_come_in_as_a_send_carries() {
    let _machine = beside_others();
    let server = Server::start(&[&["--shards", "1"], &BUDGET[..]].concat());
    let (mut reader, mut publisher) = (Peer::native(server.tcp), Peer::native(server.tcp));
    subscribe(&mut reader, "t");
    // Ten times what a SEND carries.
    let payload = "x".repeat(1_000);
    (0..320).for_each(|_| publish(&mut publisher, "t", &payload));
    let received = (0..200).map(|_| next_tick(&mut reader).sequence);
    assert!(received.eq(1..201));
    drop((reader, publisher));
    server.stop_cleanly();
}
