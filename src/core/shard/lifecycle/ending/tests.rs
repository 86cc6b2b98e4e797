use super::*;
use crate::{
    config::Limits,
    session::SendState,
    shard::ListenerKind,
    testing::{Driver, frame, hello, hello_as, masked, messages, upgrade_request},
};
use tickcast_proto::{
    Step,
    command::encode_request,
    frame::{self, Kind},
    records::{Publish, Token},
};

const JSON: &str = "tickcast.v1.json";

fn ping(token: u64) -> Vec<u8> {
    frame(Kind::Ping, &Token { token }, b"")
}

fn text(text: &str) -> Vec<u8> {
    masked(0x81, text.as_bytes())
}

fn kinds(mut bytes: &[u8]) -> Vec<Kind> {
    let mut kinds = Vec::new();
    while let Ok(Step::Complete(used, frame)) = frame::decode(bytes, 1 << 20) {
        kinds.push(frame.kind);
        bytes = &bytes[used..];
    }
    assert!(bytes.is_empty(), "whole frames");
    kinds
}

/// A WebSocket session that has read its 101.
fn websocket(limits: Limits, subprotocol: &str) -> Driver {
    let mut driver = Driver::new(limits);
    driver.accept(0, ListenerKind::Http, &upgrade_request("/ws", subprotocol));
    driver.take_sent(0);
    driver
}

/// The operations of the JSON messages that were sent, and the close code.
fn operations(driver: &mut Driver) -> Vec<String> {
    let sent = driver.take_sent(0);
    let operation = |(opcode, payload): (u8, Vec<u8>)| match opcode {
        8 => format!("close {}", u16::from_be_bytes([payload[0], payload[1]])),
        10 => "websocket pong".to_owned(),
        _ => {
            let text = String::from_utf8(payload).unwrap();
            text.split('"').nth(3).unwrap().to_owned()
        }
    };
    messages(&sent).into_iter().map(operation).collect()
}

#[test]
fn the_response_to_an_upgrade_leaves_before_the_close_of_a_broken_frame() {
    let mut driver = Driver::new(Limits::default());
    let opening = [upgrade_request("/ws", JSON), masked(0x82, b"early")].concat();
    driver.accept(0, ListenerKind::Http, &opening);
    let sent = driver.take_sent(0);
    assert!(sent.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&sent));
    let end = sent.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let rest: Vec<u8> = messages(&sent[end..]).iter().map(|(opcode, _)| *opcode).collect();
    assert_eq!(rest, [1, 8], "CLOSING, then the close frame");
}

#[test]
fn replies_earned_before_a_broken_frame_leave_before_closing() {
    let mut driver = websocket(Limits::default(), JSON);
    driver.receive(0, &text(r#"{"op":"subscribe","id":1,"topics":["a"]}"#));
    driver.turn();
    let requests = [
        text(r#"{"op":"ping","token":9}"#),
        masked(0x89, b""),
        text(r#"{"op":"publish","topic":"a","data":7}"#),
        text(r#"{"op":"fly"}"#),
        masked(0x83, b"x"),
    ];
    driver.receive(0, &requests.concat());
    driver.turn();
    let expected = ["subscribed", "pong", "websocket pong", "error", "closing", "close 1002"];
    assert_eq!(operations(&mut driver), expected);

    let mut native = Driver::new(Limits::default());
    native.accept(0, ListenerKind::Native, &hello());
    native.receive(0, &[&ping(1)[..], &ping(2), &[0xff; 64]].concat());
    native.turn();
    assert_eq!(kinds(&native.take_sent(0)), [Kind::Welcome, Kind::Pong, Kind::Pong, Kind::Closing]);
}

#[test]
fn a_client_that_does_not_read_gets_its_replies_and_no_more_ticks() {
    let mut driver = Driver::new(Limits::default());
    driver.accept(0, ListenerKind::Native, &hello());
    let mut subscribe = Vec::new();
    encode_request(&mut subscribe, Kind::Subscribe, 1, "a");
    driver.receive(0, &subscribe);
    driver.turn();
    let publish = |len: usize| {
        let mut tick = Vec::new();
        frame::encode_publish(&mut tick, 0, 0, 0, Publish::default(), "a", &vec![7; len]);
        tick
    };
    driver.receive(0, &publish(1));
    driver.turn();
    driver.take_sent(0);
    driver.full.insert(0);
    driver.receive(0, &publish(100_000));
    driver.turn();
    let requests = [publish(1), ping(1), publish(1), ping(2), publish(1), vec![0xff; 64]];
    driver.receive(0, &requests.concat());
    driver.turn();
    driver.open();
    assert_eq!(
        kinds(&driver.take_sent(0)),
        [Kind::Tick, Kind::Pong, Kind::Pong, Kind::Closing],
        "the partly sent tick, then the replies"
    );
}

#[test]
fn every_end_but_a_slow_consumers_keeps_the_replies() {
    // The socket is full when the session ends.
    let full = |limits: Limits| {
        let mut driver = websocket(limits, JSON);
        driver.full.insert(0);
        for token in 1..=2 {
            driver.receive(0, &text(&format!(r#"{{"op":"ping","token":{token}}}"#)));
            driver.turn();
        }
        driver
    };
    let mut closed = full(Limits::default());
    let id = closed.shard.sessions.get(SlotId(0)).unwrap().id;
    assert!(closed.shard.close(id, closed.now));
    closed.open();
    assert_eq!(operations(&mut closed), ["pong", "pong", "closing", "close 3503"]);

    let mut late = full(Limits { frame_deadline_ns: 1_000_000_000, ..Limits::default() });
    late.receive(0, &text("late")[..3]);
    late.pass(1_100_000_000);
    late.open();
    assert_eq!(operations(&mut late), ["pong", "pong", "closing", "close 3010"]);

    let mut silent =
        full(Limits { ping_interval_ns: 1_000_000_000, ping_timeout_ns: 1_000_000_000, ..Limits::default() });
    silent.pass(2_300_000_000);
    silent.open();
    let sent = silent.take_sent(0);
    let opcodes: Vec<u8> = messages(&sent).iter().map(|(opcode, _)| *opcode).collect();
    assert_eq!(opcodes, [1, 1, 9, 1, 8], "two pongs, the ping, CLOSING, close");

    let mut slow = full(Limits::default());
    slow.shard.sessions.mark_too_far_behind(SlotId(0));
    slow.turn();
    assert_eq!(slow.shard.sessions.get(SlotId(0)).unwrap().send_state, SendState::Parked);
    slow.open();
    assert_eq!(
        operations(&mut slow),
        ["pong", "closing", "close 3008"],
        "the socket already had the first pong"
    );
}

#[test]
fn a_slow_consumer_without_its_101_gets_that_before_closing() {
    let mut driver = Driver::new(Limits::default());
    driver.shard.handle_accept(SlotId(0), ListenerKind::Http, driver.now);
    let opening = [upgrade_request("/ws", JSON), text(r#"{"op":"ping","token":1}"#)].concat();
    driver.receive(0, &opening);
    driver.shard.sessions.mark_too_far_behind(SlotId(0));
    driver.turn();
    let sent = driver.take_sent(0);
    assert!(sent.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&sent));
    let end = sent.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let rest: Vec<u8> = messages(&sent[end..]).iter().map(|(opcode, _)| *opcode).collect();
    assert_eq!(rest, [1, 1, 8], "the pong, CLOSING, the close frame");
}

#[test]
fn a_raw_session_whose_request_fails_gets_its_pongs_before_the_close() {
    let mut driver = websocket(Limits::default(), "tickcast.v1.raw");
    driver.receive(0, &[masked(0x89, b"1"), masked(0x81, b"{}")].concat());
    driver.turn();
    assert_eq!(operations(&mut driver), ["websocket pong", "close 3501"]);
}

#[test]
fn a_replaced_session_keeps_its_replies() {
    let mut driver = Driver::new(Limits { identity_replaces: true, ..Limits::default() });
    let named = hello_as("desk");
    driver.accept(0, ListenerKind::Native, &named);
    driver.take_sent(0);
    driver.receive(0, &ping(1));
    driver.shard.handle_accept(SlotId(1), ListenerKind::Native, driver.now);
    driver.receive(1, &named);
    driver.turn();
    assert_eq!(kinds(&driver.take_sent(0)), [Kind::Pong, Kind::Closing]);
}

#[test]
fn reconnect_times_are_evenly_spread() {
    let mut seconds = [0; 5];
    for shard in 0..2 {
        for slot in 0..5_000u64 {
            let after_ms = reconnect_after_ms(7 ^ shard, SessionId(1 << 32 | slot), 4_999);
            seconds[after_ms as usize / 1_000] += 1;
        }
    }
    assert!(seconds.iter().all(|count| (1_800..2_200).contains(count)), "{seconds:?}");
    assert!((0..1_000).all(|id| reconnect_after_ms(7, SessionId(id), 0) == 0));
    assert!((0..1_000).any(|id| reconnect_after_ms(7, SessionId(id), u32::MAX) > 1 << 31));
}
