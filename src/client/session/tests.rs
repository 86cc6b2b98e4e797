//! Claims about the session, held with bytes that the server's own encoders make.

use super::*;
use crate::{
    tick::{Closing, ErrorRecord, Hello, Request, Subscribed, TickTimes, Token, Welcome},
    wire::{
        DecodeError, ErrorCode,
        frame::{FLAG_PAYLOAD_JSON, Kind, Meta},
        http, json,
        websocket::{DataType, encode, encode_close},
    },
};

pub(super) const ENCODINGS: [Encoding; 3] =
    [Encoding::Native, Encoding::WebSocketRkyv, Encoding::WebSocketJson];

fn record<R: crate::tick::WireRecord>(kind: Kind, record: R, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode(&mut out, kind, Meta::default(), &record, &[text.as_bytes()]);
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

/// One server's say as native frames, one message each.
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

/// The same say in JSON.
fn json_messages() -> Vec<Vec<u8>> {
    let prefix = json::tick_prefix("a.b");
    let message = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        out
    };
    vec![
        message(&|out| json::encode_welcome(out, 1, "tickcast/0.1.0", 1, 2, 1 << 18)),
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

/// What both say, as `Debug` writes it; JSON carries neither ingest time nor schema.
fn expected(encoding: Encoding) -> Vec<String> {
    let native = encoding != Encoding::WebSocketJson;
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

/// A session and the server's half of its handshake.
pub(super) fn open(encoding: Encoding) -> (Session, Vec<u8>) {
    let mut session = Session::new(&SessionOptions::new(encoding));
    if encoding == Encoding::Native {
        return (session, Vec::new());
    }
    let offer = http::Offer { head_bytes_max: 8 << 10, debug_echo: false };
    let Step::Complete(_, http::Answer::Upgrade { response, .. }) = http::step(session.output(), offer)
    else {
        panic!("the server refuses this client")
    };
    session.output_written(session.output().len());
    (session, response)
}

/// All that the server sends, handshake and close included.
fn say(encoding: Encoding, response: Vec<u8>) -> Vec<u8> {
    let mut out = response;
    match encoding {
        Encoding::Native => out.extend(native_frames().concat()),
        Encoding::WebSocketRkyv => {
            native_frames().iter().for_each(|frame| encode(&mut out, DataType::Binary, frame));
        }
        _ => json_messages().iter().for_each(|text| encode(&mut out, DataType::Text, text)),
    }
    if encoding != Encoding::Native {
        encode_close(&mut out, 1001, "stopping");
    }
    out
}

fn drain(session: &mut Session, events: &mut Vec<String>) -> Result<(), SessionError> {
    while let Some(event) = session.poll_event()? {
        events.push(format!("{event:?}"));
    }
    Ok(())
}

/// The events of an open session that is sent `bytes` and no more.
fn events(encoding: Encoding, bytes: &[u8]) -> Result<Vec<String>, SessionError> {
    let (mut session, response) = open(encoding);
    let mut events = Vec::new();
    session.handle_bytes(&response);
    session.handle_bytes(bytes);
    session.handle_end();
    drain(&mut session, &mut events).map(|()| events)
}

fn text(message: &str) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out, DataType::Text, message.as_bytes());
    out
}

#[test]
fn every_split_of_the_stream_gives_the_same_events() {
    for encoding in ENCODINGS {
        let total = { say(encoding, open(encoding).1).len() };
        for split in 0..=total {
            let (mut session, response) = open(encoding);
            let stream = say(encoding, response);
            let mut events = Vec::new();
            for part in [&stream[..split], &stream[split..]] {
                session.handle_bytes(part);
                drain(&mut session, &mut events).unwrap();
            }
            session.handle_end();
            drain(&mut session, &mut events).unwrap();
            assert_eq!(events, expected(encoding), "{encoding:?} split at {split}");
        }
    }
}

#[test]
fn a_stream_byte_by_byte_gives_the_same_events() {
    for encoding in ENCODINGS {
        let (mut session, response) = open(encoding);
        let mut events = Vec::new();
        for byte in say(encoding, response) {
            session.handle_bytes(&[byte]);
            drain(&mut session, &mut events).unwrap();
        }
        session.handle_end();
        drain(&mut session, &mut events).unwrap();
        assert_eq!(events, expected(encoding), "{encoding:?}");
    }
}

#[test]
fn frames_batched_and_fragmented_in_messages_give_the_same_events() {
    let all = native_frames().concat();
    let mut batched = Vec::new();
    encode(&mut batched, DataType::Binary, &all);
    assert_eq!(events(Encoding::WebSocketRkyv, &batched).unwrap(), expected(Encoding::WebSocketRkyv));

    let mut fragmented = Vec::new();
    for (at, part) in all.chunks(100).enumerate() {
        let last = (at + 1) * 100 >= all.len();
        fragmented.extend([if at == 0 { 2 } else { 0 } | if last { 0x80 } else { 0 }, part.len() as u8]);
        fragmented.extend(part);
        if !last {
            fragmented.extend(b"\x89\x01p");
        }
    }
    assert_eq!(events(Encoding::WebSocketRkyv, &fragmented).unwrap(), expected(Encoding::WebSocketRkyv));
}

#[test]
fn json_arrays_give_the_same_events_as_their_elements() {
    let messages: Vec<String> =
        json_messages().into_iter().map(|message| String::from_utf8(message).unwrap()).collect();
    let array = format!(" [ {}\n] ", messages.join(" ,\t"));
    assert_eq!(events(Encoding::WebSocketJson, &text(&array)).unwrap(), expected(Encoding::WebSocketJson));
    assert_eq!(events(Encoding::WebSocketJson, &text("[]")).unwrap(), ["Closed"]);
}

#[test]
fn one_json_message_may_announce_several_topics() {
    let message = r#"{"op":"subscribed","id":1,"pattern":"*","later":[1],"topics":[
        {"topic":"x","topic_id":1,"epoch":2},{"topic":"y","topic_id":2,"epoch":2}]}"#;
    let events = events(Encoding::WebSocketJson, &text(message)).unwrap();
    let names: Vec<_> =
        events.iter().map(|event| event.split_once(' ').map_or(&**event, |(name, _)| name)).collect();
    assert_eq!(names, ["Subscribed", "Topic", "Topic", "Closed"]);
}

#[test]
fn json_payloads_survive_to_the_byte() {
    for payload in [&b"null"[..], b"{\"a\": 1.10}", b"\"\\u00e9\"", b"1e400"] {
        let mut tick = Vec::new();
        encode_json(&mut tick, &json::tick_prefix("a.b"), 1, 2, payload, true);
        let (mut session, response) = open(Encoding::WebSocketJson);
        session.handle_bytes(&response);
        session.handle_bytes(&text(std::str::from_utf8(&json_messages()[2]).unwrap()));
        session.handle_bytes(&text(std::str::from_utf8(&tick).unwrap()));
        assert!(matches!(session.poll_event(), Ok(Some(Event::Topic { .. }))));
        let Ok(Some(Event::Tick(tick))) = session.poll_event() else { panic!("tick") };
        assert_eq!(tick.payload, payload);
    }
}

#[test]
fn a_raw_session_gets_payloads_and_its_ping_is_answered_by_a_websocket_pong() {
    let (mut session, response) = open(Encoding::WebSocketRaw);
    session.handle_bytes(&response);
    let mut bytes = Vec::new();
    encode(&mut bytes, DataType::Binary, &[7; 200]);
    session.handle_bytes(&bytes);
    assert_eq!(session.poll_event(), Ok(Some(Event::Payload(&[7; 200]))));
    assert_eq!(session.poll_event(), Ok(None));
    let token = session.ping().unwrap();
    let mut pong = Vec::new();
    let mut server = crate::wire::websocket::WebSocket::server(1 << 10);
    assert!(matches!(server.step(session.output(), &mut pong), Ok(Step::Complete(..))));
    session.handle_bytes(&pong);
    assert_eq!(session.poll_event(), Ok(Some(Event::Pong { token })));
}

#[test]
fn pings_of_the_server_are_answered_without_an_event() {
    let ping = record(Kind::Ping, Token { token: 7 }, "");
    let pong = record(Kind::Pong, Token { token: 7 }, "");
    let (mut session, _) = open(Encoding::Native);
    session.handle_bytes(&welcome());
    assert!(matches!(session.poll_event(), Ok(Some(Event::Welcome { .. }))));
    session.output_written(session.output().len());
    session.handle_bytes(&ping);
    assert_eq!(session.poll_event(), Ok(None));
    assert_eq!(session.output(), pong);

    for encoding in [Encoding::WebSocketRkyv, Encoding::WebSocketJson, Encoding::WebSocketRaw] {
        let (mut session, response) = open(encoding);
        session.handle_bytes(&response);
        assert_eq!(session.poll_event(), Ok(None));
        session.output_written(session.output().len());
        let mut ping = Vec::new();
        crate::wire::websocket::encode_ping(&mut ping);
        session.handle_bytes(&ping);
        assert_eq!(session.poll_event(), Ok(None));
        assert_eq!(session.output()[..2], [0x8a, 0x80], "{encoding:?}: a masked pong");
    }
}

#[test]
fn what_the_server_may_not_send_ends_the_session_for_good() {
    let native = |frames: &[&[u8]]| {
        let (mut session, _) = open(Encoding::Native);
        session.handle_bytes(&frames.concat());
        session.handle_end();
        let error = drain(&mut session, &mut Vec::new()).unwrap_err();
        assert_eq!(session.poll_event(), Err(error.clone()), "an error is for ever");
        assert_eq!(session.ping(), Err(RequestError::Ended));
        error
    };
    let unknown = SessionError::Decode(DecodeError::UnknownKind(1));
    assert_eq!(native(&[&welcome(), &record(Kind::Hello, Hello::default(), "")]), unknown);
    assert_eq!(native(&[&record(Kind::Ping, Token { token: 1 }, "")]), SessionError::WelcomeExpected);
    assert_eq!(native(&[&topic()]), SessionError::WelcomeExpected);
    assert_eq!(native(&[&welcome(), &tick(1, b"")]), SessionError::UnknownTopic("5".into()));
    assert!(matches!(
        native(&[&welcome(), &topic(), &tick(2, b""), &tick(2, b"")]),
        SessionError::OutOfOrder { previous: 2, sequence: 2, .. }
    ));
    assert_eq!(native(&[&native_frames().concat(), &tick(9, b"")]), SessionError::AfterClosing);
    assert_eq!(native(&[&welcome()[..40]]), SessionError::Truncated);
    assert!(matches!(native(&[b"HTTP/1.1 400"]), SessionError::Decode(DecodeError::BadMagic(_))));
    let too_large = [&[0, 0, 0, 1][..], &welcome()[4..]].concat();
    assert!(matches!(native(&[&too_large]), SessionError::Decode(DecodeError::TooLarge { .. })));
}

#[test]
fn broken_websocket_messages_end_the_session() {
    let refused = |encoding, bytes: &[u8]| events(encoding, bytes).unwrap_err();
    let message = |payload: &[u8]| {
        let mut out = Vec::new();
        encode(&mut out, DataType::Binary, payload);
        out
    };
    let rkyv = |bytes: &[u8]| refused(Encoding::WebSocketRkyv, bytes);
    assert!(matches!(rkyv(&message(&welcome()[..40])), SessionError::Decode(DecodeError::WebSocket(_))));
    assert!(matches!(rkyv(&text("{}")), SessionError::Decode(DecodeError::WrongMessageType(_))));
    assert!(matches!(rkyv(&[0x82, 0x80, 1, 2, 3, 4]), SessionError::Decode(DecodeError::WebSocket(_))));
    let huge = [&[0x82, 127][..], &(1u64 << 40).to_be_bytes()].concat();
    assert!(matches!(rkyv(&huge), SessionError::Decode(DecodeError::TooLarge { .. })));
    assert_eq!(rkyv(&message(&welcome())[..60]), SessionError::Truncated);

    let json = |message: &str| refused(Encoding::WebSocketJson, &text(message));
    for bad in
        ["", " ", "{", "[", "[{\"op\":\"pong\"}", "[,]", "1", "{\"op\":\"fly\"}", "{\"op\":\"pong\"} x", "{}"]
    {
        assert!(matches!(json(bad), SessionError::Json(_)), "{bad:?}: {:?}", json(bad));
    }
    assert_eq!(json(r#"{"topic":"t","seq":1,"ts":1,"data":1}"#), SessionError::UnknownTopic("t".into()));
    let not_utf8 = [0x81, 1, 0xff];
    assert_eq!(refused(Encoding::WebSocketJson, &not_utf8), SessionError::Decode(DecodeError::NotUtf8));
}

#[test]
fn a_close_frame_alone_tells_why() {
    let mut close = Vec::new();
    encode_close(&mut close, 3008, "slow");
    let told = events(Encoding::WebSocketRkyv, &close).unwrap();
    assert_eq!(told, ["Closing { code: 3008, text: \"slow\", reconnect_after_ms: 0 }", "Closed"]);
    let told = events(Encoding::WebSocketRkyv, &[0x88, 0]).unwrap();
    assert_eq!(told, ["Closing { code: 1005, text: \"\", reconnect_after_ms: 0 }", "Closed"], "no code");
}

#[test]
fn ticks_under_way_when_this_side_closes_still_come() {
    let (mut session, response) = open(Encoding::WebSocketRkyv);
    session.handle_bytes(&response);
    assert_eq!(session.poll_event(), Ok(None));
    session.close();
    let mut bytes = Vec::new();
    encode(&mut bytes, DataType::Binary, &[welcome(), topic(), tick(1, b"x")].concat());
    encode_close(&mut bytes, 1000, "");
    session.handle_bytes(&bytes);
    let mut events = Vec::new();
    drain(&mut session, &mut events).unwrap();
    assert_eq!(events.len(), 4, "{events:?}");
    assert_eq!(events[3], "Closed");
}

#[test]
fn requests_wait_for_the_handshake_and_stop_at_the_bound() {
    let (mut session, response) = open(Encoding::WebSocketJson);
    session.subscribe("a").unwrap();
    assert!(session.output().is_empty());
    session.handle_bytes(&response);
    assert_eq!(session.poll_event(), Ok(None));
    let mut server = crate::wire::websocket::WebSocket::server(1 << 10);
    let mut at = 0;
    let mut texts = Vec::new();
    while let Step::Complete(used, incoming) = server.step(&session.output()[at..], &mut Vec::new()).unwrap()
    {
        at += used;
        if let crate::wire::websocket::Incoming::Text(text) = incoming {
            texts.push(text.to_string());
        }
    }
    assert!(texts[0].contains("hello") && texts[1].contains("subscribe"), "{texts:?}");

    let payload = vec![0; 100 << 10];
    let publish = PublishRequest { topic: "t", payload: &payload, ..PublishRequest::default() };
    let refused = (0..100).find_map(|_| session.publish(publish).err());
    assert_eq!(refused, Some(RequestError::Backpressure));
    session.output_written(session.output().len());
    session.publish(publish).unwrap();
}

#[test]
fn a_payload_that_only_base64_makes_too_large_is_refused_before_the_server_closes() {
    let payload = vec![0xff; 200 << 10];
    let publish = PublishRequest { topic: "t", payload: &payload, ..PublishRequest::default() };
    for (encoding, fits) in [(Encoding::WebSocketJson, false), (Encoding::WebSocketRkyv, true)] {
        let (mut session, response) = open(encoding);
        session.handle_bytes(&response);
        assert_eq!(session.poll_event(), Ok(None));
        let sent = session.publish(publish);
        assert_eq!(sent.is_ok(), fits);
        assert!(fits || matches!(sent, Err(RequestError::TooLarge { .. })));
    }
}

#[test]
fn a_burst_gives_its_memory_back() {
    let (mut session, _) = open(Encoding::Native);
    session.handle_bytes(&welcome());
    session.handle_bytes(&topic());
    for sequence in 1..1_000 {
        session.handle_bytes(&tick(sequence, &[b'x'; 100]));
    }
    session.handle_bytes(&tick(1_000, b"")[..20]);
    drain(&mut session, &mut Vec::new()).unwrap();
    session.handle_bytes(&tick(1_000, b"")[20..]);
    drain(&mut session, &mut Vec::new()).unwrap();
    assert!(session.input.capacity() <= SESSION_BUFFER_KEEP_BYTES);
    let (_, topic) = session.topics().next().unwrap();
    assert_eq!((topic.ticks, topic.missed), (1_000, 0));
}

#[test]
fn an_identity_opens_a_native_session_and_one_that_breaks_the_rule_sends_nothing() {
    let with = |client: &str| {
        Session::new(&SessionOptions { client: client.into(), ..SessionOptions::new(Encoding::Native) })
    };
    let session = with("me");
    let Ok(Step::Complete(_, hello)) = frame::decode(session.output(), 1 << 10) else { panic!("hello") };
    let (request, client, name) = hello.hello().unwrap();
    assert_eq!((request, client), (1, "me"));
    assert!(name.starts_with("tickcast-client/"));
    for bad in ["a\n", &"x".repeat(256)] {
        let mut session = with(bad);
        assert_eq!(session.output(), b"");
        assert!(matches!(session.poll_event(), Err(SessionError::BadIdentity(_))));
    }
}
