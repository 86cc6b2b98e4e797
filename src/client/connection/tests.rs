//! Tests of the connection with bytes from the server's own encoders.

use super::*;
use crate::{PublishRequest, RequestError};
use tickcast_proto::{
    DecodeError, ErrorCode,
    codec::MessageType,
    codec::json,
    command,
    features::Features,
    frame::{FLAG_PAYLOAD_JSON, HeaderFields, HelloParts, Kind},
    framing::websocket::{Incoming, encode, encode_close},
    http,
    records::{
        Closing, Condition, ErrorRecord, Hello, Nodes, Request, Subscribed, TickTimes, Token, Welcome,
    },
};

pub(super) const ENCODINGS: [WireFormat; 3] =
    [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON];

fn record<R: tickcast_proto::records::WireRecord>(kind: Kind, record: R, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode(&mut out, kind, HeaderFields::default(), &record, &[text.as_bytes()]);
    out
}

fn encode_json(
    out: &mut Vec<u8>,
    prefix: &[u8],
    sequence: u64,
    producer_time_ns: u64,
    payload: &[u8],
    is_json: bool,
) {
    let times = TickTimes { producer_time_ns, ingest_time_ns: 0 };
    let flags = if is_json { FLAG_PAYLOAD_JSON } else { 0 };
    let parts = frame::TickParts { flags, times, payload, ..Default::default() };
    json::encode_tick(out, prefix, sequence, &parts);
}

fn tick(sequence: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let times = TickTimes { producer_time_ns: 70 + sequence, ingest_time_ns: 80 + sequence };
    frame::encode_tick(
        &mut out,
        TopicId(5),
        Sequence(sequence),
        &frame::TickParts { flags: FLAG_PAYLOAD_JSON, schema: 9, times, key: 0, payload },
    );
    out
}

fn topic() -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode_topic(&mut out, TopicId(5), 3, "a.b");
    out
}

fn welcome() -> Vec<u8> {
    let welcome = Welcome { epoch: 1, session: 2, frame_bytes_max: 1 << 18, request: 1 };
    record(Kind::Welcome, welcome, "tickcast/0.1.0")
}

/// What a server sends, as native frames of one message each.
fn native_frames() -> Vec<Vec<u8>> {
    vec![
        welcome(),
        record(Kind::Subscribed, Subscribed { request: 2, ..Subscribed::default() }, "a.>"),
        topic(),
        tick(1, b"{\"p\": 1.10}"),
        tick(2, b"2"),
        tick(5, &[b' '; 300]),
        record(Kind::Pong, Token { token: 7 }, ""),
        record(Kind::Error, ErrorRecord { request: 4, code: 102, reserved: 0 }, "bad \"pattern\""),
        record(Kind::Unsubscribed, Request { request: 5, reserved: 0 }, "a.>"),
        record(Kind::Closing, Closing { reconnect_after_ms: 40, code: 3001, reserved: 0 }, "stopping"),
    ]
}

/// The same messages in JSON.
fn json_messages() -> Vec<Vec<u8>> {
    let prefix = json::tick_prefix("a.b");
    let message = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        out
    };
    vec![
        br#"{"op":"welcome","id":1,"server":"tickcast/0.1.0","epoch":1,"session":2,"frame_bytes_max":262144}"#.to_vec(),
        message(&|out| json::encode_subscribed(out, 2, "a.>")),
        message(&|out| json::encode_topic(out, TopicId(5), 3, "a.b")),
        message(&|out| encode_json(out, &prefix, 1, 71, b"{\"p\": 1.10}", true)),
        message(&|out| encode_json(out, &prefix, 2, 72, b"2", true)),
        message(&|out| encode_json(out, &prefix, 5, 75, &[b' '; 300], false)),
        message(&|out| json::encode_pong(out, 7)),
        message(&|out| json::encode_error(out, 4, ErrorCode::BadPattern, "bad \"pattern\"")),
        message(&|out| json::encode_unsubscribed(out, 5, "a.>")),
        message(&|out| json::encode_closing(out, 3001, "stopping", 40)),
    ]
}

/// The events of both in `Debug` format; JSON carries neither ingest time nor schema.
fn expected(encoding: WireFormat) -> Vec<String> {
    let native = encoding != WireFormat::WEBSOCKET_JSON;
    let tick = |sequence: u64, missed, payload: &'static [u8], json| {
        Event::Tick(Tick {
            topic: "a.b",
            topic_id: TopicId(5),
            epoch: 3,
            sequence: Sequence(sequence),
            missed,
            producer_time_ns: 70 + sequence,
            ingest_time_ns: if native { 80 + sequence } else { 0 },
            schema: if native { 9 } else { 0 },
            key: 0,
            snapshot: false,
            payload_is_json: native || json,
            payload,
        })
    };
    [
        Event::Welcome { server: "tickcast/0.1.0", epoch: 1, session: 2, frame_bytes_max: 1 << 18 },
        Event::Subscribed { request: 2, pattern: "a.>" },
        Event::Topic { id: TopicId(5), name: "a.b", epoch: 3 },
        tick(1, 0, b"{\"p\": 1.10}", true),
        tick(2, 0, b"2", true),
        tick(5, 2, &[b' '; 300], false),
        Event::Pong { token: 7 },
        Event::Error { request: 4, code: 102, text: "bad \"pattern\"" },
        Event::Unsubscribed { request: 5, pattern: "a.>" },
        Event::Closing { code: 3001, text: "stopping", reconnect_after_ms: 40 },
        Event::Closed,
    ]
    .map(|event| format!("{event:?}"))
    .to_vec()
}

/// A connection and the server's response to its handshake.
pub(super) fn open(encoding: WireFormat) -> (Connection, Vec<u8>) {
    let mut connection = Connection::new(&ConnectOptions::new(encoding));
    if encoding == WireFormat::TCP_NATIVE {
        return (connection, Vec::new());
    }
    let Step::Complete(_, http::Answer::Upgrade { response, .. }) =
        http::Connection::default().step(connection.poll_transmit(), &http::HttpConfig::WEBSOCKET)
    else {
        panic!("the server rejects this client")
    };
    connection.handle_transmitted(connection.poll_transmit().len());
    (connection, response)
}

/// Everything the server sends, including handshake and close.
fn server_stream(encoding: WireFormat, response: Vec<u8>) -> Vec<u8> {
    let mut out = response;
    match encoding {
        WireFormat::TCP_NATIVE => out.extend(native_frames().concat()),
        WireFormat::WEBSOCKET_NATIVE => {
            native_frames().iter().for_each(|frame| encode(&mut out, MessageType::Binary, frame));
        }
        _ => json_messages().iter().for_each(|text| encode(&mut out, MessageType::Text, text)),
    }
    if encoding != WireFormat::TCP_NATIVE {
        encode_close(&mut out, 1001, "stopping");
    }
    out
}

fn drain(connection: &mut Connection, events: &mut Vec<String>) -> Result<(), ProtocolError> {
    while let Some(event) = connection.poll_event()? {
        events.push(format!("{event:?}"));
    }
    Ok(())
}

/// The events of an open connection that receives `bytes` and then the end of the stream.
fn events(encoding: WireFormat, bytes: &[u8]) -> Result<Vec<String>, ProtocolError> {
    let (mut connection, response) = open(encoding);
    let mut events = Vec::new();
    connection.handle_bytes(&response);
    connection.handle_bytes(bytes);
    connection.handle_eof();
    drain(&mut connection, &mut events).map(|()| events)
}

fn text(message: &str) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out, MessageType::Text, message.as_bytes());
    out
}

/// Feeds the server's stream in parts and checks the events.
fn check_parts<'a>(
    encoding: WireFormat,
    mut connection: Connection,
    parts: impl Iterator<Item = &'a [u8]> + Clone,
) {
    let mut events = Vec::new();
    for part in parts.clone() {
        connection.handle_bytes(part);
        drain(&mut connection, &mut events).unwrap();
    }
    connection.handle_eof();
    drain(&mut connection, &mut events).unwrap();
    assert_eq!(events, expected(encoding), "{encoding:?}, first part {:?}", parts.clone().next());
}

#[test]
fn every_split_of_the_stream_gives_the_same_events() {
    for encoding in ENCODINGS {
        let total = { server_stream(encoding, open(encoding).1).len() };
        for split in 0..=total {
            let (connection, response) = open(encoding);
            let stream = server_stream(encoding, response);
            let (first, second) = stream.split_at(split);
            check_parts(encoding, connection, [first, second].into_iter());
        }
    }
}

#[test]
fn a_stream_byte_by_byte_gives_the_same_events() {
    for encoding in ENCODINGS {
        let (connection, response) = open(encoding);
        let stream = server_stream(encoding, response);
        check_parts(encoding, connection, stream.chunks(1));
    }
}

#[test]
fn batched_and_fragmented_messages_give_the_same_events() {
    let all = native_frames().concat();
    let mut batched = Vec::new();
    encode(&mut batched, MessageType::Binary, &all);
    assert_eq!(
        events(WireFormat::WEBSOCKET_NATIVE, &batched).unwrap(),
        expected(WireFormat::WEBSOCKET_NATIVE)
    );

    let mut fragmented = Vec::new();
    for (at, part) in all.chunks(100).enumerate() {
        let last = (at + 1) * 100 >= all.len();
        fragmented.extend([if at == 0 { 2 } else { 0 } | if last { 0x80 } else { 0 }, part.len() as u8]);
        fragmented.extend(part);
        if !last {
            fragmented.extend(b"\x89\x01p");
        }
    }
    assert_eq!(
        events(WireFormat::WEBSOCKET_NATIVE, &fragmented).unwrap(),
        expected(WireFormat::WEBSOCKET_NATIVE)
    );
}

#[test]
fn json_arrays_give_the_same_events_as_their_elements() {
    let messages: Vec<String> =
        json_messages().into_iter().map(|message| String::from_utf8(message).unwrap()).collect();
    let array = format!(" [ {}\n] ", messages.join(" ,\t"));
    assert_eq!(
        events(WireFormat::WEBSOCKET_JSON, &text(&array)).unwrap(),
        expected(WireFormat::WEBSOCKET_JSON)
    );
    assert_eq!(events(WireFormat::WEBSOCKET_JSON, &text("[]")).unwrap(), ["Closed"]);
}

#[test]
fn one_json_message_may_announce_several_topics() {
    let message = r#"{"op":"subscribed","id":1,"pattern":"*","later":[1],"topics":[
        {"topic":"x","topic_id":1,"epoch":2},{"topic":"y","topic_id":2,"epoch":2}]}"#;
    let events = events(WireFormat::WEBSOCKET_JSON, &text(message)).unwrap();
    let names: Vec<_> =
        events.iter().map(|event| event.split_once(' ').map_or(&**event, |(name, _)| name)).collect();
    assert_eq!(names, ["Subscribed", "Topic", "Topic", "Closed"]);
}

#[test]
fn json_payloads_keep_every_byte() {
    for payload in [&b"null"[..], b"{\"a\": 1.10}", b"\"\\u00e9\"", b"1e400"] {
        let mut tick = Vec::new();
        encode_json(&mut tick, &json::tick_prefix("a.b"), 1, 2, payload, true);
        let (mut connection, response) = open(WireFormat::WEBSOCKET_JSON);
        connection.handle_bytes(&response);
        connection.handle_bytes(&text(std::str::from_utf8(&json_messages()[2]).unwrap()));
        connection.handle_bytes(&text(std::str::from_utf8(&tick).unwrap()));
        assert!(matches!(connection.poll_event(), Ok(Some(Event::Topic { .. }))));
        let Ok(Some(Event::Tick(tick))) = connection.poll_event() else { panic!("tick") };
        assert_eq!(tick.payload, payload);
    }
}

#[test]
fn raw_connection_receives_payloads_and_pings_over_websocket() {
    let (mut connection, response) = open(WireFormat::WEBSOCKET_RAW);
    connection.handle_bytes(&response);
    let mut bytes = Vec::new();
    encode(&mut bytes, MessageType::Binary, &[7; 200]);
    connection.handle_bytes(&bytes);
    assert_eq!(connection.poll_event(), Ok(Some(Event::Payload(&[7; 200]))));
    assert_eq!(connection.poll_event(), Ok(None));
    let token = connection.ping().unwrap();
    let mut pong = Vec::new();
    let mut server = tickcast_proto::framing::websocket::WebSocket::server(1 << 10);
    assert!(matches!(server.step(connection.poll_transmit(), &mut pong), Ok(Step::Complete(..))));
    connection.handle_bytes(&pong);
    assert_eq!(connection.poll_event(), Ok(Some(Event::Pong { token })));
}

#[test]
fn server_pings_are_answered_without_an_event() {
    let ping = record(Kind::Ping, Token { token: 7 }, "");
    let pong = record(Kind::Pong, Token { token: 7 }, "");
    let (mut connection, _) = open(WireFormat::TCP_NATIVE);
    connection.handle_bytes(&welcome());
    assert!(matches!(connection.poll_event(), Ok(Some(Event::Welcome { .. }))));
    connection.handle_transmitted(connection.poll_transmit().len());
    connection.handle_bytes(&ping);
    assert_eq!(connection.poll_event(), Ok(None));
    assert_eq!(connection.poll_transmit(), pong);

    for encoding in [WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON, WireFormat::WEBSOCKET_RAW] {
        let (mut connection, response) = open(encoding);
        connection.handle_bytes(&response);
        assert_eq!(connection.poll_event(), Ok(None));
        connection.handle_transmitted(connection.poll_transmit().len());
        let mut ping = Vec::new();
        tickcast_proto::framing::websocket::encode_ping(&mut ping);
        connection.handle_bytes(&ping);
        assert_eq!(connection.poll_event(), Ok(None));
        assert_eq!(connection.poll_transmit()[..2], [0x8a, 0x80], "{encoding:?}: a masked pong");
    }
}

#[test]
fn protocol_violation_fails_the_connection_for_good() {
    let native = |frames: &[&[u8]]| {
        let (mut connection, _) = open(WireFormat::TCP_NATIVE);
        connection.handle_bytes(&frames.concat());
        connection.handle_eof();
        let error = drain(&mut connection, &mut Vec::new()).unwrap_err();
        assert_eq!(connection.poll_event(), Err(error.clone()), "the error stays");
        assert_eq!(connection.ping(), Err(RequestError::Ended));
        error
    };
    let unknown = ProtocolError::Decode(DecodeError::UnknownKind(1));
    assert_eq!(native(&[&welcome(), &record(Kind::Hello, Hello::default(), "")]), unknown);
    assert_eq!(native(&[&record(Kind::Ping, Token { token: 1 }, "")]), ProtocolError::WelcomeExpected);
    assert_eq!(native(&[&topic()]), ProtocolError::WelcomeExpected);
    assert_eq!(native(&[&welcome(), &tick(1, b"")]), ProtocolError::UnknownTopic("5".into()));
    assert!(matches!(
        native(&[&welcome(), &topic(), &tick(2, b""), &tick(2, b"")]),
        ProtocolError::OutOfOrder { previous: 2, sequence: 2, .. }
    ));
    assert_eq!(native(&[&native_frames().concat(), &tick(9, b"")]), ProtocolError::AfterClosing);
    assert_eq!(native(&[&welcome()[..40]]), ProtocolError::Truncated);
    assert!(matches!(native(&[b"HTTP/1.1 400"]), ProtocolError::Decode(DecodeError::BadMagic(_))));
    let too_large = [&[0, 0, 0, 1][..], &welcome()[4..]].concat();
    assert!(matches!(native(&[&too_large]), ProtocolError::Decode(DecodeError::TooLarge { .. })));
}

#[test]
fn invalid_websocket_messages_fail_the_connection() {
    let rejected = |encoding, bytes: &[u8]| events(encoding, bytes).unwrap_err();
    let message = |payload: &[u8]| {
        let mut out = Vec::new();
        encode(&mut out, MessageType::Binary, payload);
        out
    };
    let rkyv = |bytes: &[u8]| rejected(WireFormat::WEBSOCKET_NATIVE, bytes);
    assert!(matches!(rkyv(&message(&welcome()[..40])), ProtocolError::Decode(DecodeError::WebSocket(_))));
    assert!(matches!(rkyv(&text("{}")), ProtocolError::Decode(DecodeError::WrongMessageType(_))));
    assert!(matches!(rkyv(&[0x82, 0x80, 1, 2, 3, 4]), ProtocolError::Decode(DecodeError::WebSocket(_))));
    let huge = [&[0x82, 127][..], &(1u64 << 40).to_be_bytes()].concat();
    assert!(matches!(rkyv(&huge), ProtocolError::Decode(DecodeError::TooLarge { .. })));
    assert_eq!(rkyv(&message(&welcome())[..60]), ProtocolError::Truncated);

    let json = |message: &str| rejected(WireFormat::WEBSOCKET_JSON, &text(message));
    for bad in ["", " ", "{", "[", "[{\"op\":\"pong\"}", "[,]", "1", "{\"op\":\"pong\"} x", "{}"] {
        assert!(matches!(json(bad), ProtocolError::Json(_)), "{bad:?}: {:?}", json(bad));
    }
    assert_eq!(json(r#"{"topic":"t","seq":1,"ts":1,"data":1}"#), ProtocolError::UnknownTopic("t".into()));
    let not_utf8 = [0x81, 1, 0xff];
    assert_eq!(rejected(WireFormat::WEBSOCKET_JSON, &not_utf8), ProtocolError::Decode(DecodeError::NotUtf8));
}

#[test]
fn what_a_newer_server_adds_is_skipped() {
    let mut unknown = record(Kind::Pong, Token { token: 1 }, "new");
    unknown[8..10].copy_from_slice(&127u16.to_le_bytes());
    let condition = Condition { since_ns: 1, state: 2, reserved: 0 };
    let mut native = welcome();
    for new in [unknown, record(Kind::Source, condition, "feed")] {
        native.extend(new);
    }
    native.extend(record(Kind::Pong, Token { token: 7 }, ""));
    let got = events(WireFormat::TCP_NATIVE, &native).unwrap();
    assert_eq!(got[1..], ["Pong { token: 7 }", "Closed"], "{got:?}");
    let json = [
        text(r#"{"op":"fly","to":[{"moon":1}],"topic":"x"}"#),
        text(r#"[{"op":"source","source":"n"},{"op":"pong","token":7,"since":1}]"#),
    ];
    assert_eq!(events(WireFormat::WEBSOCKET_JSON, &json.concat()).unwrap(), ["Pong { token: 7 }", "Closed"]);
}

#[test]
fn a_server_names_itself_and_the_others() {
    let nodes = |len: u16| Nodes { node_len: len, ..Nodes::default() };
    let mut native = welcome();
    // The last id ends within a character, so there is none.
    for (record_of_nodes, text) in
        [(nodes(2), "n1a:1 tls://b:1"), (nodes(0), ""), (nodes(9), "n"), (nodes(1), "\u{fc}")]
    {
        native.extend(record(Kind::Nodes, record_of_nodes, text));
    }
    let got = events(WireFormat::TCP_NATIVE, &native).unwrap();
    let expected = [
        "Nodes { node: \"n1\", addresses: \"a:1 tls://b:1\" }",
        "Nodes { node: \"\", addresses: \"\" }",
        "Nodes { node: \"\", addresses: \"n\" }",
        "Nodes { node: \"\", addresses: \"\u{fc}\" }",
        "Closed",
    ];
    assert_eq!(got[1..], expected);
    let json = text(r#"[{"op":"nodes","node":"n1","addresses":["ws://a:1/ws","b:1"]},{"op":"nodes"}]"#);
    let expected = [
        "Nodes { node: \"n1\", addresses: \"ws://a:1/ws b:1\" }",
        "Nodes { node: \"\", addresses: \"\" }",
        "Closed",
    ];
    assert_eq!(events(WireFormat::WEBSOCKET_JSON, &json).unwrap(), expected);
}

#[test]
fn close_frame_alone_gives_the_reason() {
    let mut close = Vec::new();
    encode_close(&mut close, 3008, "slow");
    let closing = events(WireFormat::WEBSOCKET_NATIVE, &close).unwrap();
    assert_eq!(closing, ["Closing { code: 3008, text: \"slow\", reconnect_after_ms: 0 }", "Closed"]);
    let closing = events(WireFormat::WEBSOCKET_NATIVE, &[0x88, 0]).unwrap();
    assert_eq!(closing, ["Closing { code: 1005, text: \"\", reconnect_after_ms: 0 }", "Closed"], "no code");
}

#[test]
fn ticks_in_flight_when_this_side_closes_still_arrive() {
    let (mut connection, response) = open(WireFormat::WEBSOCKET_NATIVE);
    connection.handle_bytes(&response);
    assert_eq!(connection.poll_event(), Ok(None));
    connection.close();
    let mut bytes = Vec::new();
    encode(&mut bytes, MessageType::Binary, &[welcome(), topic(), tick(1, b"x")].concat());
    encode_close(&mut bytes, 1000, "");
    connection.handle_bytes(&bytes);
    let mut events = Vec::new();
    drain(&mut connection, &mut events).unwrap();
    assert_eq!(events.len(), 4, "{events:?}");
    assert_eq!(events[3], "Closed");
}

#[test]
fn requests_wait_for_the_handshake_and_stop_at_the_bound() {
    let (mut connection, response) = open(WireFormat::WEBSOCKET_JSON);
    connection.subscribe("a").unwrap();
    assert!(connection.poll_transmit().is_empty());
    connection.handle_bytes(&response);
    assert_eq!(connection.poll_event(), Ok(None));
    let mut server = tickcast_proto::framing::websocket::WebSocket::server(1 << 10);
    let mut at = 0;
    let mut texts = Vec::new();
    while let Step::Complete(used, incoming) =
        server.step(&connection.poll_transmit()[at..], &mut Vec::new()).unwrap()
    {
        at += used;
        if let tickcast_proto::framing::websocket::Incoming::Text(text) = incoming {
            texts.push(text.to_string());
        }
    }
    assert!(texts[0].contains("hello") && texts[1].contains("subscribe"), "{texts:?}");

    let payload = vec![0; 100 << 10];
    let publish = PublishRequest { topic: "t", payload: &payload, ..PublishRequest::default() };
    let rejected = (0..100).find_map(|_| connection.publish(publish).err());
    assert_eq!(rejected, Some(RequestError::Backpressure));
    connection.handle_transmitted(connection.poll_transmit().len());
    connection.publish(publish).unwrap();
}

#[test]
fn payload_that_base64_makes_too_large_is_rejected_before_sending() {
    let payload = vec![0xff; 200 << 10];
    let publish = PublishRequest { topic: "t", payload: &payload, ..PublishRequest::default() };
    for (encoding, fits) in [(WireFormat::WEBSOCKET_JSON, false), (WireFormat::WEBSOCKET_NATIVE, true)] {
        let (mut connection, response) = open(encoding);
        connection.handle_bytes(&response);
        assert_eq!(connection.poll_event(), Ok(None));
        let sent = connection.publish(publish);
        assert_eq!(sent.is_ok(), fits);
        assert!(fits || matches!(sent, Err(RequestError::TooLarge { .. })));
    }
}

#[test]
fn burst_memory_is_freed() {
    let (mut connection, _) = open(WireFormat::TCP_NATIVE);
    connection.handle_bytes(&welcome());
    connection.handle_bytes(&topic());
    for sequence in 1..1_000 {
        connection.handle_bytes(&tick(sequence, &[b'x'; 100]));
    }
    connection.handle_bytes(&tick(1_000, b"")[..20]);
    drain(&mut connection, &mut Vec::new()).unwrap();
    connection.handle_bytes(&tick(1_000, b"")[20..]);
    drain(&mut connection, &mut Vec::new()).unwrap();
    assert!(connection.input.capacity() <= IDLE_BUFFER_BYTES_MAX);
    let (_, topic) = connection.topics().next().unwrap();
    assert_eq!((topic.ticks, topic.missed), (1_000, 0));
}

#[test]
fn a_token_is_in_the_native_hello_and_debug_output_hides_it() {
    let token = crate::ClientToken::new("s3cret");
    let options = ConnectOptions { token, ..ConnectOptions::new(WireFormat::TCP_NATIVE) };
    assert!(!format!("{options:?}").contains("s3cret"));
    let connection = Connection::new(&options);
    let Ok(Step::Complete(_, hello)) = frame::decode(connection.poll_transmit(), 1 << 10) else {
        panic!("hello")
    };
    let Ok(command::Command::Hello { token: Some(token), .. }) = command::Command::from_frame(&hello) else {
        panic!("token")
    };
    assert_eq!(&*token.0, b"s3cret");
}

#[test]
fn identity_is_in_the_hello_and_an_invalid_one_sends_nothing() {
    let with = |client: &str| {
        Connection::new(&ConnectOptions {
            client: client.into(),
            ..ConnectOptions::new(WireFormat::TCP_NATIVE)
        })
    };
    let connection = with("me");
    let Ok(Step::Complete(_, hello)) = frame::decode(connection.poll_transmit(), 1 << 10) else {
        panic!("hello")
    };
    let HelloParts { request, client, name, features } = hello.hello().unwrap();
    let asked = Features::COUNTS.union(Features::PREVIOUS).union(Features::NODES).union(Features::SINCE);
    assert_eq!((request, client, features), (1, "me", asked));
    assert!(name.starts_with("tickcast-client/"));
    for bad in ["a\n", &"x".repeat(256)] {
        let mut connection = with(bad);
        assert_eq!(connection.poll_transmit(), b"");
        assert!(matches!(connection.poll_event(), Err(ProtocolError::Identity(_))));
    }
}

#[test]
fn a_hello_asks_for_batches_over_websockets_unless_they_are_not_wanted() {
    for batches in [true, false] {
        let options = ConnectOptions { batches, ..ConnectOptions::new(WireFormat::WEBSOCKET_NATIVE) };
        let mut decoder = tickcast_proto::framing::websocket::WebSocket::server(1 << 10);
        let connection = Connection::new(&options);
        let Ok(Step::Complete(_, Incoming::Binary(hello))) =
            decoder.step(&connection.deferred, &mut Vec::new())
        else {
            panic!("hello")
        };
        let Ok(Step::Complete(_, hello)) = frame::decode(&hello, 1 << 10) else { panic!("hello") };
        assert_eq!(hello.hello().unwrap().features.contains(Features::BATCHES), batches);
    }
}

#[test]
fn protobuf_is_refused_before_anything_is_sent() {
    let mut connection = Connection::new(&ConnectOptions::new(WireFormat::WEBSOCKET_PROTOBUF));
    assert_eq!(connection.poll_transmit(), b"");
    assert!(matches!(connection.poll_event(), Err(ProtocolError::Encoding("protobuf"))));
}
