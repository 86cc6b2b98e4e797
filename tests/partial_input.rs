//! A peer's bytes are handled alike however they are split: every piece size from 1 byte to 64 KiB, on every listener.

use tickcast_core::{
    config::Limits,
    ids::SlotId,
    metrics::counters::Counter,
    shard::{Action, ListenerKind},
    testing::{Driver, frame, hello, upgrade_request},
};
use tickcast_proto::{
    command::encode_request,
    frame::{self, Kind},
    framing::websocket::WebSocket,
    records::{Publish, Token},
};
use tungstenite::Message;

const PIECE_BYTES_MAX: usize = 64 << 10;

/// Opens a session, subscribes to everything, publishes ticks of several sizes, the last longer than any piece, and pings.
struct Conversation {
    opening: Vec<u8>,
    rest: Vec<u8>,
}

fn publish(n: usize, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let record = Publish { producer_time_ns: 1, request: n as u32, ..Publish::default() };
    frame::encode_publish(&mut out, 0, 0, 0, record, "a.b", payload);
    out
}

fn ping() -> Vec<u8> {
    frame(Kind::Ping, &Token { token: 7 }, b"")
}

const PAYLOAD_BYTES: [usize; 7] = [2, 3, 15, 16, 17, 1_000, PIECE_BYTES_MAX];

fn native() -> Conversation {
    let mut opening = hello();
    encode_request(&mut opening, Kind::Subscribe, 1, ">");
    let ticks = PAYLOAD_BYTES.iter().enumerate().map(|(n, &len)| publish(n, &vec![n as u8; len]));
    Conversation { opening, rest: ticks.chain([ping()]).collect::<Vec<_>>().concat() }
}

fn websocket(protocol: &str, opening: Message, messages: impl IntoIterator<Item = Message>) -> Conversation {
    let mut socket = WebSocket::client(1 << 20);
    let (mut first, mut rest) = (upgrade_request("/ws", protocol), Vec::new());
    socket.write_masked(&mut first, opening);
    messages.into_iter().for_each(|message| socket.write_masked(&mut rest, message));
    Conversation { opening: first, rest }
}

fn rkyv() -> Conversation {
    let mut opening = Vec::new();
    encode_request(&mut opening, Kind::Subscribe, 1, ">");
    let ticks = PAYLOAD_BYTES.iter().enumerate().map(|(n, &len)| publish(n, &vec![n as u8; len]));
    websocket("tickcast.v1.rkyv", Message::binary(opening), ticks.chain([ping()]).map(Message::binary))
}

fn json() -> Conversation {
    let tick = |&len: &usize| {
        format!(r#"{{"op":"publish","topic":"a.b","ts":1,"data":"{}"}}"#, "x".repeat(len.saturating_sub(2)))
    };
    let messages = PAYLOAD_BYTES.iter().map(tick).chain([r#"{"op":"ping","token":7}"#.to_owned()]);
    websocket(
        "tickcast.v1.json",
        Message::text(r#"{"op":"subscribe","id":1,"topics":[">"]}"#),
        messages.map(Message::text),
    )
}

/// Everything the server sends when the conversation arrives in pieces of `len`.
fn answer(listener: ListenerKind, conversation: &Conversation, len: usize) -> Vec<u8> {
    let mut driver = Driver::new(Limits { egress_log_bytes: 1 << 20, ..Limits::default() });
    driver.shard.handle_accept(SlotId(0), listener, driver.now);
    conversation.opening.chunks(len).for_each(|piece| driver.receive(0, piece));
    driver.turn();
    conversation.rest.chunks(len).for_each(|piece| driver.receive(0, piece));
    driver.turn();
    assert_eq!(driver.shard.counters().value(Counter::RequestErrors), 0);
    let ends = |action: &Action| matches!(action, Action::Close(_) | Action::ShutdownWrite(_));
    assert!(!driver.actions.iter().any(ends), "the session lives on");
    driver.take_sent(0)
}

#[track_caller]
fn check(listener: ListenerKind, conversation: &Conversation) {
    let whole = answer(listener, conversation, usize::MAX);
    assert!(whole.len() > PAYLOAD_BYTES.iter().sum(), "every tick came back");
    for len in 1..=PIECE_BYTES_MAX {
        assert!(answer(listener, conversation, len) == whole, "pieces of {len} bytes");
    }
}

#[test]
fn native_frames_are_handled_alike_in_pieces_of_every_size() {
    check(ListenerKind::Native, &native());
}

#[test]
fn websocket_binary_messages_are_handled_alike_in_pieces_of_every_size() {
    check(ListenerKind::Http, &rkyv());
}

#[test]
fn websocket_text_messages_are_handled_alike_in_pieces_of_every_size() {
    check(ListenerKind::Http, &json());
}
