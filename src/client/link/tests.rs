use super::*;
use tickcast_proto::{codec::MessageType, framing::websocket, http};

fn link(encoding: WireFormat) -> Link {
    Link::new(&ConnectOptions::new(encoding))
}

/// A WebSocket whose handshake the server's own HTTP code has answered.
fn open() -> Link {
    let mut link = link(WireFormat::WEBSOCKET_JSON);
    let request = link.poll_transmit().to_vec();
    link.handle_transmitted(request.len());
    let answer = http::Connection::default().step(&request, &http::HttpConfig::WEBSOCKET);
    let Step::Complete(_, http::Answer::Upgrade { response, .. }) = answer else { panic!("refused") };
    for byte in &response {
        assert_eq!(link.poll_event(), None);
        link.handle_bytes(&[*byte]);
    }
    assert_eq!(link.poll_event(), Some(LinkEvent::Open(Some("tickcast.v1.json"))));
    link
}

fn text(text: &str) -> Option<LinkEvent> {
    Some(LinkEvent::Message(Message::Text(text.to_owned().into())))
}

fn frame(payload: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    websocket::encode(&mut bytes, MessageType::Text, payload.as_bytes());
    bytes
}

#[test]
fn messages_arrive_whole_however_their_bytes_are_cut() {
    let long = "x".repeat(70_000);
    for payload in ["", "{}", &long[..200], &long] {
        let (mut link, bytes) = (open(), [frame(payload), frame("next")].concat());
        for part in bytes.chunks(if payload.len() > 1_000 { 999 } else { 1 }) {
            assert!(link.poll_event().is_none_or(|event| event == text(payload).unwrap()));
            link.handle_bytes(part);
        }
        let events: Vec<_> = std::iter::from_fn(|| link.poll_event()).collect();
        assert_eq!(events.last(), text("next").as_ref());
    }
}

#[test]
fn fragments_are_joined_and_pings_answered() {
    let mut link = open();
    link.handle_bytes(b"\x01\x02ab\x89\x01p\x80\x01c");
    assert_eq!(link.poll_event(), text("abc"));
    assert_eq!(link.poll_event(), None);
    // A masked pong.
    assert_eq!((link.poll_transmit()[0], link.poll_transmit()[1]), (0x8a, 0x81));
}

#[test]
fn the_end_has_the_code_of_the_close_frame_or_none() {
    let mut link = open();
    link.handle_bytes(b"\x88\x05\x0b\xb9bye");
    let closed = Some(LinkEvent::Closed { code: 3001, reason: "bye".into(), reconnect_after_ms: 0 });
    assert_eq!((link.poll_event(), link.poll_event()), (closed, None));
    let mut link = open();
    link.handle_bytes(&frame("{}"));
    link.handle_eof();
    assert_eq!(link.poll_event(), text("{}"));
    assert!(matches!(link.poll_event(), Some(LinkEvent::Closed { code: CLOSE_CUT, .. })));
    assert_eq!(link.poll_event(), None);
}

#[test]
fn what_breaks_the_protocol_ends_the_connection() {
    for bytes in
        [&b"\x83\x00"[..], b"\x81\x80\0\0\0\0", b"\x80\x01c", b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff"]
    {
        let mut link = open();
        link.handle_bytes(bytes);
        let event = link.poll_event();
        assert!(
            matches!(event, Some(LinkEvent::Closed { code: CLOSE_PROTOCOL, .. })),
            "{bytes:x?} {event:?}"
        );
    }
}

#[test]
fn a_server_that_refuses_the_handshake_says_whether_and_when_to_come_back() {
    let answers = [
        ("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\n\r\n", 3504, 7_000),
        ("HTTP/1.1 429 Too Many Requests\r\n\r\n", 3504, 0),
        ("HTTP/1.1 401 Unauthorized\r\n\r\n", 3005, 0),
        ("HTTP/1.1 403 Forbidden\r\n\r\n", 3500, 0),
        ("HTTP/1.1 404 Not Found\r\nRetry-After: 7\r\n\r\n", CLOSE_PROTOCOL, 0),
        ("HTTP/1.1 502 Bad Gateway\r\nRetry-After: 7\r\n\r\n", CLOSE_CUT, 0),
        ("SSH-2.0-OpenSSH\r\n", CLOSE_CUT, 0),
    ];
    for (answer, expected, after_ms) in answers {
        let mut link = link(WireFormat::WEBSOCKET_NATIVE);
        link.handle_bytes(answer.as_bytes());
        let Some(LinkEvent::Closed { code, reconnect_after_ms, reason }) = link.poll_event() else {
            panic!("{answer}")
        };
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(reason.contains(status), "{reason}");
        assert_eq!((code, reconnect_after_ms), (expected, after_ms), "{answer}");
    }
}

#[test]
fn native_frames_arrive_whole_and_what_is_malformed_comes_after_them() {
    let mut frames = Vec::new();
    tickcast_proto::frame::encode_topic(&mut frames, tickcast_proto::ids::TopicId(5), 3, "a.b");
    let mut link = link(WireFormat::TCP_NATIVE);
    assert_eq!(link.poll_event(), Some(LinkEvent::Open(None)));
    link.handle_bytes(&frames[..9]);
    assert_eq!(link.poll_event(), None);
    link.handle_bytes(&frames[9..]);
    link.handle_bytes(&frames);
    link.handle_bytes(b"GET / HTTP/1.1\r\n\r\n");
    let twice = frames.repeat(2);
    assert_eq!(link.poll_event(), Some(LinkEvent::Message(Message::Binary(twice.into()))));
    assert!(matches!(link.poll_event(), Some(LinkEvent::Message(Message::Binary(_)))));
    assert_eq!(link.poll_event(), None);
}
