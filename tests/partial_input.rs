//! A peer's bytes mean the same however they are cut: every piece size from 1 byte to 64 KiB, on every door.

use std::sync::Arc;

use tickcast_core::{
    config::Limits,
    metrics::counters::{Counter, Counters},
    now::Now,
    shard::{Action, Door, Shard},
};
use tickcast_proto::{
    command::encode_request,
    frame::{self, Kind, Meta},
    framing::websocket::WebSocket,
    ids::ShardId,
    records::{Hello, Publish, Token},
};
use tungstenite::Message;

const NOW: Now = Now { monotonic_ns: 1 << 40, realtime_ns: 1 << 60 };
const PIECE_BYTES_MAX: usize = 64 << 10;

/// Opens and subscribes to everything; then publishes ticks of several sizes, the last longer than any piece, and
/// pings.
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
    let mut out = Vec::new();
    frame::encode(&mut out, Kind::Ping, Meta::default(), &Token { token: 7 }, &[]);
    out
}

const PAYLOAD_BYTES: [usize; 7] = [2, 3, 15, 16, 17, 1_000, PIECE_BYTES_MAX];

fn native() -> Conversation {
    let mut opening = Vec::new();
    frame::encode(&mut opening, Kind::Hello, Meta::default(), &Hello::default(), &[b"cut"]);
    encode_request(&mut opening, Kind::Subscribe, 1, ">");
    let ticks = PAYLOAD_BYTES.iter().enumerate().map(|(n, &len)| publish(n, &vec![n as u8; len]));
    Conversation { opening, rest: ticks.chain([ping()]).collect::<Vec<_>>().concat() }
}

fn websocket(protocol: &str, opening: Message, messages: impl IntoIterator<Item = Message>) -> Conversation {
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    let mut socket = WebSocket::client(1 << 20);
    let (mut first, mut rest) = (request.into_bytes(), Vec::new());
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

/// A shard with one session, and everything it has sent.
struct Server {
    shard: Shard,
    sent: Vec<u8>,
    gather: Vec<u8>,
}

impl Server {
    fn turn(&mut self) {
        self.shard.turn(NOW);
        self.shard.prepare_sends(NOW);
        while let Some(send) = self.shard.poll_send(&mut self.gather, NOW) {
            let bytes = self.shard.send_bytes(&send, &self.gather);
            self.sent.extend_from_slice(bytes);
            let len = bytes.len();
            self.shard.handle_sent(send.slot, len, false, NOW);
        }
        self.gather.clear();
        self.shard.end_turn();
        while let Some(action) = self.shard.poll_action() {
            assert!(!matches!(action, Action::Close(_) | Action::ShutdownWrite(_)), "the session lives on");
        }
    }
}

/// Everything the server sends when the conversation comes in pieces of `len`, once its subscription is live.
fn answer(door: Door, conversation: &Conversation, len: usize) -> Vec<u8> {
    let limits = Limits { egress_log_bytes: 1 << 20, ..Limits::default() };
    let shard = Shard::new(ShardId(0), 1, 1, limits, Arc::new(Counters::default()));
    let mut server = Server { shard, sent: Vec::new(), gather: Vec::new() };
    server.shard.handle_accept(0, door, NOW);
    for piece in conversation.opening.chunks(len) {
        server.shard.handle_bytes(0, piece, NOW);
    }
    server.turn();
    for piece in conversation.rest.chunks(len) {
        server.shard.handle_bytes(0, piece, NOW);
    }
    server.turn();
    assert_eq!(server.shard.counters().value(Counter::RequestErrors), 0);
    server.sent
}

#[track_caller]
fn check(door: Door, conversation: &Conversation) {
    let whole = answer(door, conversation, usize::MAX);
    assert!(whole.len() > PAYLOAD_BYTES.iter().sum(), "every tick came back");
    for len in 1..=PIECE_BYTES_MAX {
        assert!(answer(door, conversation, len) == whole, "pieces of {len} bytes");
    }
}

#[test]
fn native_frames_mean_the_same_in_pieces_of_every_size() {
    check(Door::Native, &native());
}

#[test]
fn websocket_binary_messages_mean_the_same_in_pieces_of_every_size() {
    check(Door::Http, &rkyv());
}

#[test]
fn websocket_text_messages_mean_the_same_in_pieces_of_every_size() {
    check(Door::Http, &json());
}
