//! WebSocket peers that break RFC 6455 or the protocol above it: each gets its close code or error, and nobody else is
//! affected.

use crate::{
    bad_native::Bystander,
    harness::{
        Server, beside_others,
        collector::Collector,
        frames::{self, Raw, Received},
        raw::{self, CLOSE, Message, Peer, header, masked},
    },
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use tickcast_proto::WireFormat;

/// Default of `frame_bytes_max`, and the longest WebSocket message that it allows.
const FRAME_BYTES_MAX: usize = 256 << 10;
const MESSAGE_BYTES_MAX: usize = FRAME_BYTES_MAX / 3 * 4 + (4 << 10);

/// A violation in one encoding: the bytes sent and the expected close code.
struct Case {
    name: &'static str,
    encoding: &'static str,
    bytes: Vec<u8>,
    code: u16,
}

fn broken() -> Vec<Case> {
    let case = |name, encoding, bytes, code| Case { name, encoding, bytes, code };
    let json = |name, bytes, code| case(name, "json", bytes, code);
    let rkyv = |name, bytes, code| case(name, "rkyv", bytes, code);
    let unmasked = |first: u8, payload: &[u8]| [&header(first, 0, payload.len() as u64), payload].concat();
    let announced = |len: u64| [&header(0x81, 0x80, len)[..], &[1, 2, 3, 4]].concat();
    let ping = Raw::ping(1).bytes();
    vec![
        json("unmasked", unmasked(0x81, br#"{"op":"ping"}"#), 1002),
        json("unmasked ping", unmasked(0x89, b""), 1002),
        json("reserved bit 1, as of a compressed message", masked(0xc1, b"x"), 1002),
        json("reserved bit 2", masked(0xa1, b"x"), 1002),
        json("reserved bit 3", masked(0x91, b"x"), 1002),
        json("reserved opcode 3", masked(0x83, b"x"), 1002),
        json("reserved opcode 11", masked(0x8b, b""), 1002),
        json("continuation of nothing", masked(0x80, b"x"), 1002),
        json("a message within a message", [masked(0x01, b"a"), masked(0x81, b"b")].concat(), 1002),
        json("fragmented ping", masked(0x09, b"x"), 1002),
        json("ping of 126 bytes", masked(0x89, &[0; 126]), 1002),
        json("close of one byte", masked(0x88, &[3]), 1002),
        json("close with code 999", masked(0x88, &999u16.to_be_bytes()), 1002),
        json("close with code 1005", masked(0x88, &1005u16.to_be_bytes()), 1002),
        json("close with code 1006", masked(0x88, &1006u16.to_be_bytes()), 1002),
        json("text not UTF-8", masked(0x81, b"\xc3\x28"), 1007),
        json("text cut within a character", masked(0x81, &"é".as_bytes()[..1]), 1007),
        json("surrogate in text", masked(0x81, b"\xed\xa0\x80"), 1007),
        json(
            "fragments that are not UTF-8 together",
            [masked(0x01, b"\xc3"), masked(0x80, b"\x28")].concat(),
            1007,
        ),
        json("close reason not UTF-8", masked(0x88, b"\x03\xe8\xff"), 1007),
        json("message too large, announced", announced(MESSAGE_BYTES_MAX as u64 + 1), 1009),
        json("message of 2^62 bytes, announced", announced(1 << 62), 1009),
        json(
            "fragments too large together",
            [masked(0x01, &[b' '; 300 << 10]), masked(0x80, &[b' '; 100 << 10])].concat(),
            1009,
        ),
        json("binary to JSON", masked(0x82, &ping), 1003),
        rkyv("text to rkyv", masked(0x81, br#"{"op":"ping"}"#), 1003),
        rkyv("half a frame in a message", masked(0x82, &ping[..30]), 1002),
        rkyv("a frame and a half", masked(0x82, &[&ping[..], &ping[..40]].concat()), 1002),
        rkyv("misaligned", masked(0x82, &[&[0], &ping[..]].concat()), 1002),
        rkyv("unknown kind", masked(0x82, &Raw::new(9, b"", b"").bytes()), 1002),
        rkyv("unknown version", masked(0x82, &Raw { version: 3, ..Raw::ping(1) }.bytes()), 1002),
        rkyv(
            "a frame that announces more than may be",
            masked(0x82, &Raw { frame_len: Some(1 << 30), ..Raw::ping(1) }.bytes()),
            1009,
        ),
        rkyv("pattern not UTF-8", masked(0x82, &Raw::request(frames::SUBSCRIBE, 1, b"\xff").bytes()), 1007),
        case(
            "raw: a bad pattern",
            "raw",
            masked(0x82, &Raw::request(frames::SUBSCRIBE, 1, b"a..b").bytes()),
            3501,
        ),
        case("raw: a bad request", "raw", masked(0x81, b"{}"), 3501),
        case("raw: a bad topic", "raw", masked(0x82, &Raw::publish(1, b"a b", b"1").bytes()), 3501),
    ]
}

/// The code of the CLOSING message that precedes the close frame.
fn closing_code(encoding: &str, message: &Message) -> u16 {
    if encoding == "json" {
        let text: serde_json::Value = serde_json::from_str(message.text()).unwrap();
        assert_eq!(text["op"], "closing", "{text}");
        assert!(!text["reason"].as_str().unwrap().is_empty(), "{text}");
        return text["code"].as_u64().unwrap() as u16;
    }
    let frame = Received::take(&mut message.payload.clone()).unwrap();
    assert_eq!(frame.kind, frames::CLOSING, "{frame:?}");
    assert!(!frame.text().is_empty());
    frame.code()
}

#[test]
fn a_websocket_peer_that_breaks_the_protocol_gets_its_close_code_and_only_it_is_closed() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let mut bystander = Bystander::watch(&server);
    for case in broken() {
        let mut peer = Peer::websocket(server.http, "/ws", &format!("tickcast.v1.{}", case.encoding));
        peer.send_as_far_as_it_goes(&case.bytes);
        let mut closing = None;
        println!("{}", case.name);
        let close = loop {
            let message = peer.message().unwrap_or_else(|| panic!("{}: closed without a word", case.name));
            if message.opcode == CLOSE {
                break message;
            }
            // What preceded the violation has earned its answer.
            let is_pong = |frame: Received| frame.kind == frames::PONG;
            if case.encoding == "rkyv" && Received::take(&mut message.payload.clone()).is_some_and(is_pong) {
                assert_eq!((case.name, closing), ("a frame and a half", None));
                continue;
            }
            assert_eq!(closing, None, "{}: {message:?}", case.name);
            closing = Some(closing_code(case.encoding, &message));
        };
        assert_eq!(close.close_code(), case.code, "{}: {:?}", case.name, close);
        // A peer's own close frame is answered without CLOSING.
        assert!(closing.is_none_or(|code| code == case.code), "{}: {closing:?}", case.name);
        assert!(std::str::from_utf8(&close.payload[2..]).is_ok(), "{}", case.name);
        assert_eq!(peer.message(), None, "{}: the close frame is the last", case.name);
        bystander.assert_untouched();
    }
    bystander.finish();
    server.stop_cleanly();
}

#[test]
fn an_invalid_json_request_is_answered_and_the_session_stays_open() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "1"]);
    let mut peer = Peer::websocket(server.http, "/ws", "tickcast.v1.json");
    let long = format!(r#"{{"op":"subscribe","id":7,"topics":["{}"]}}"#, "x".repeat(256));
    for (request, id, code) in [
        ("", 0, 100),
        ("{", 0, 100),
        ("null", 0, 100),
        ("[]", 0, 100),
        ("\u{0}", 0, 100),
        (r#"{"op":"fly","id":7}"#, 7, 100),
        (r#"{"id":7}"#, 7, 100),
        (r#"{"op":"ping","id":-1}"#, 0, 100),
        (r#"{"op":"ping","id":4294967296}"#, 0, 100),
        (r#"{"op":"ping","extra":1}"#, 0, 100),
        (r#"{"op":"ping"} {"op":"ping"}"#, 0, 100),
        (r#"{"op":"ping","op":"ping"}"#, 0, 100),
        (r#"{"op":"subscribe","id":7}"#, 7, 100),
        (r#"{"op":"subscribe","id":7,"topics":[]}"#, 7, 100),
        (r#"{"op":"subscribe","id":7,"topics":[1]}"#, 7, 100),
        (r#"{"op":"publish","id":7,"topic":"a"}"#, 7, 100),
        (r#"{"op":"publish","id":7,"data":1}"#, 7, 100),
        (r#"{"op":"publish","id":7,"topic":"a","data":1.}"#, 7, 100),
        (r#"{"op":"publish","id":7,"topic":"a","data":"!","encoding":"base64"}"#, 7, 100),
        (r#"{"op":"publish","id":7,"topic":"a","data":1,"encoding":"base64"}"#, 7, 100),
        (r#"{"op":"publish","id":7,"topic":"a","data":1,"encoding":"hex"}"#, 7, 100),
        (r#"{"op":"publish","id":7,"topic":"a.>","data":1}"#, 7, 101),
        (r#"{"op":"publish","id":7,"topic":"","data":1}"#, 7, 101),
        (r#"{"op":"publish","id":7,"topic":"a\u0000","data":1}"#, 7, 101),
        (r#"{"op":"subscribe","id":7,"topics":["a.>.b"]}"#, 7, 102),
        (r#"{"op":"subscribe","id":7,"topics":["a\tb"]}"#, 7, 102),
        (&long, 7, 102),
        (r#"{"op":"unsubscribe","id":7,"topics":["a"]}"#, 7, 105),
    ] {
        peer.send_text(request);
        let text = peer.text();
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        let (op, got_id, got_code) = (&answer["op"], &answer["id"], &answer["code"]);
        assert_eq!((op, got_id, got_code), (&"error".into(), &id.into(), &code.into()), "{request}: {text}");
    }
    // One bad pattern among several: the others are accepted.
    peer.send_text(r#"{"op":"subscribe","id":8,"topics":["a","a..b","c"]}"#);
    let answers: Vec<String> = (0..3).map(|_| peer.text()).collect();
    assert_eq!(answers.iter().filter(|text| text.contains(r#""op":"subscribed","id":8"#)).count(), 2);
    assert_eq!(answers.iter().filter(|text| text.contains(r#""op":"error","id":8,"code":102"#)).count(), 1);
    peer.send_text(r#"{"op":"ping","token":3}"#);
    assert_eq!(peer.text(), r#"{"op":"pong","token":3}"#);
    drop(peer);
    let stopped = server.stop_cleanly();
    assert_eq!((stopped.total("ticks_sequenced"), stopped.total("closed_protocol")), (0, 0));
}

#[test]
fn the_longest_tick_is_delivered_in_every_encoding_and_one_byte_more_is_refused() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let collectors = [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON]
        .map(|encoding| Collector::start(&server, encoding, &["long"]));
    let mut peer = Peer::websocket(server.http, "/ws", "tickcast.v1.json");
    // A tick's header and record take 48 bytes; base64 needs a third more and four bytes for three.
    let longest = FRAME_BYTES_MAX - 48;
    let payloads = [vec![0xff; longest], format!("\"{}\"", "x".repeat(longest - 2)).into_bytes()];
    let base64 = BASE64.encode(&payloads[0]);
    peer.send_text(&format!(r#"{{"op":"publish","topic":"long","encoding":"base64","data":"{base64}"}}"#));
    let inline = std::str::from_utf8(&payloads[1]).unwrap();
    peer.send_text(&format!(r#"{{"op":"publish","topic":"long","data":{inline}}}"#));
    let base64 = BASE64.encode([&payloads[0][..], &[0]].concat());
    peer.send_text(&format!(
        r#"{{"op":"publish","id":5,"topic":"long","encoding":"base64","data":"{base64}"}}"#
    ));
    assert!(peer.text().starts_with(r#"{"op":"error","id":5,"code":107,"#));
    for collector in collectors {
        collector.wait_for(2);
        let got = collector.finish();
        assert!(got.ticks["long"].iter().map(|(_, payload)| payload).eq(&payloads));
    }
    drop(peer);
    assert_eq!(server.stop_cleanly().total("ticks_sequenced"), 2);
}

#[test]
fn control_frames_between_fragments_are_answered_and_the_request_is_whole() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let mut peer = Peer::websocket(server.http, "/ws", "tickcast.v1.json");
    let request = br#"{"op":"ping","token":9}"#;
    let mut bytes = masked(0x01, b"");
    for piece in request.chunks(5) {
        bytes.extend(masked(0x00, piece));
        bytes.extend(masked(0x80 | raw::PING, piece));
    }
    bytes.extend(masked(0x8a, b"a pong that nobody asked for"));
    bytes.extend(masked(0x80, b""));
    for byte in bytes.chunks(1) {
        peer.send(byte);
    }
    for piece in request.chunks(5) {
        assert_eq!(peer.message().unwrap(), Message { opcode: raw::PONG, payload: piece.to_vec() });
    }
    assert_eq!(peer.text(), r#"{"op":"pong","token":9}"#);
    // A close is answered with its own code.
    peer.send(&masked(0x88, &[&4000u16.to_be_bytes()[..], b"bye"].concat()));
    assert_eq!(peer.message().unwrap().close_code(), 4000);
    assert_eq!(peer.message(), None);
    server.stop_cleanly();
}

#[test]
fn fragmented_messages_of_many_clients_do_not_mix() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "1"]);
    let connect = || Peer::websocket(server.http, "/ws", "tickcast.v1.json");
    let ping = |token: u32| format!(r#"{{"op":"ping","token":{token}}}"#).into_bytes();
    let pong = |token: u32| format!(r#"{{"op":"pong","token":{token}}}"#);
    let (mut one, mut other, mut whole) = (connect(), connect(), connect());
    let (first, second) = (ping(1), ping(22));
    one.send(&masked(0x01, &first[..9]));
    other.send(&masked(0x01, &second[..7]));
    for token in 300..310 {
        // Whole messages and control frames between the fragments of other messages.
        whole.send(&masked(0x81, &ping(token)));
        assert_eq!(whole.text(), pong(token));
        one.send(&masked(0x80 | raw::PING, b"between"));
        assert_eq!(one.message().unwrap(), Message { opcode: raw::PONG, payload: b"between".to_vec() });
    }
    // A client that leaves within a message, breaks the protocol or closes leaves nothing behind.
    let (mut gone, mut broken, mut closed) = (connect(), connect(), connect());
    gone.send(&masked(0x01, b"half a mess"));
    drop(gone);
    broken.send(&masked(0x80, b"the end of nothing"));
    assert!(broken.text().starts_with(r#"{"op":"closing","code":1002,"#));
    assert_eq!(broken.message().unwrap().close_code(), 1002);
    closed.send(&masked(0x88, &1000u16.to_be_bytes()));
    assert_eq!(closed.message().unwrap().close_code(), 1000);
    whole.send(&masked(0x81, &ping(400)));
    assert_eq!(whole.text(), pong(400));
    other.send(&masked(0x80, &second[7..]));
    one.send(&masked(0x80, &first[9..]));
    assert_eq!((one.text(), other.text()), (pong(1), pong(22)));
    server.stop_cleanly();
}

#[test]
fn half_a_websocket_frame_ends_with_the_connection_and_nothing_else() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let mut bystander = Bystander::watch(&server);
    let frame = masked(0x81, br#"{"op":"publish","topic":"bystander.tick","data":"must not arrive"}"#);
    for len in 1..frame.len() {
        let mut peer = Peer::websocket(server.http, "/ws", "tickcast.v1.json");
        peer.send(&frame[..len]);
        peer.shut_write();
        assert_eq!(peer.message(), None, "{len} bytes of a frame");
    }
    bystander.assert_untouched();
    bystander.finish();
    assert_eq!(server.stop_cleanly().total("ticks_sequenced"), 1);
}
