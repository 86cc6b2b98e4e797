//! Checks the code against the bytes in `src/proto/PROTOCOL.md`. A change here changes the protocol.

use tickcast_proto::{
    ErrorCode, Step, WireFormat,
    codec::{Codec, Message, MessageType, TopicInfo, json},
    command::{Command, PublishCommand, encode_request},
    features::Features,
    frame::{self, FLAG_PAYLOAD_JSON, FLAG_SNAPSHOT, Frame, HeaderFields, HelloParts, Kind, TickParts},
    framing::{
        engine_io, event_stream,
        websocket::{self, deflate::Deflater},
    },
    ids::{Sequence, TopicId},
    logged,
    records::{LinkedTickTimes, Publish, Request, Resume, Subscribe, TickTimes, Token},
    reply::{NotRecovered, Reply, SERVER, Skipped, SourceState},
    subscription::{Delivery, Moment, Policy, Position, StartPosition},
};

/// Parses a hexadecimal dump with whitespace. `"text"` stands for its bytes.
fn bytes(dump: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, part) in dump.split('"').enumerate() {
        if at % 2 == 1 {
            out.extend_from_slice(part.as_bytes());
            continue;
        }
        let digits: String = part.split_whitespace().collect();
        out.extend(
            (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()),
        );
    }
    out
}

#[track_caller]
fn check(encoded: &[u8], dump: &str) {
    assert_eq!(encoded, bytes(dump), "\n got {encoded:02x?}");
}

fn native(reply: &Reply<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    reply.encode(WireFormat::TCP_NATIVE, &mut out);
    out
}

fn text(reply: &Reply<'_>) -> String {
    let mut out = Vec::new();
    reply.encode(WireFormat::WEBSOCKET_JSON, &mut out);
    // The frame's header has two bytes for payloads up to 125 bytes, and four for longer ones.
    let header = if out[1] < 126 { 2 } else { 4 };
    assert_eq!(out[0], 0x81, "one whole text message");
    String::from_utf8(out.split_off(header)).unwrap()
}

#[test]
fn requests_encode_to_the_golden_bytes() {
    let mut out = Vec::new();
    let hello = HelloParts { request: 1, client: "me", name: "app", features: Features::COUNTS };
    frame::encode_hello(&mut out, &hello);
    check(
        &out,
        "40000000 7463 01 00  0100 1000 05000000  0000000000000000  00000000 00000000
         01000000 0200 0000 0800000000000000 \"meapp\" 0000000000000000000000",
    );
    out.clear();
    encode_request(&mut out, Kind::Subscribe, 2, "a.>");
    check(
        &out,
        "30000000 7463 01 00  0200 0800 03000000  0000000000000000  00000000 00000000
         02000000 00000000 \"a.>\" 0000000000",
    );
    out.clear();
    encode_request(&mut out, Kind::Unsubscribe, 3, "a.>");
    check(
        &out,
        "30000000 7463 01 00  0300 0800 03000000  0000000000000000  00000000 00000000
         03000000 00000000 \"a.>\" 0000000000",
    );
    out.clear();
    let record = Publish { producer_time_ns: 0x0102, request: 4, key: 6, ..Publish::default() };
    frame::encode_publish(&mut out, 0, 0, 9, record, "a.b", b"data!");
    check(
        &out,
        "50000000 7463 01 00  0400 2000 08000000  0000000000000000  00000000 09000000
         0201000000000000 0000000000000000 04000000 0300 0000 0600000000000000 \"a.bdata!\" 0000000000000000",
    );
    out.clear();
    let record = Subscribe {
        request: 5,
        from: 2,
        policy: 1,
        epoch: 0x0a,
        sequence: 0x0b,
        max_rate_millihertz: 500,
        ..Subscribe::default()
    };
    frame::encode(&mut out, Kind::Update, HeaderFields::default(), &record, &[b"a.>"]);
    check(
        &out,
        "50000000 7463 01 00  0600 2000 03000000  0000000000000000  00000000 00000000
         05000000 02 01 0000 0a00000000000000 0b00000000000000 f4010000 00000000 \"a.>\" 00000000000000000000000000",
    );
    out.clear();
    frame::encode(
        &mut out,
        Kind::Resume,
        HeaderFields::default(),
        &Resume { epoch: 0x0a, sequence: 0x0b },
        &[b"a.b"],
    );
    check(
        &out,
        "40000000 7463 01 00  0700 1000 03000000  0000000000000000  00000000 00000000
         0a00000000000000 0b00000000000000 \"a.b\" 00000000000000000000000000",
    );
    out.clear();
    frame::encode(&mut out, Kind::Ping, HeaderFields::default(), &Token { token: 7 }, &[]);
    check(
        &out,
        "30000000 7463 01 00  0500 0800 00000000  0000000000000000  00000000 00000000
         0700000000000000 0000000000000000",
    );
}

#[test]
fn replies_encode_to_the_golden_bytes() {
    let (epoch, session, frame_bytes_max) = (0x0a, 0x0b, 0x40000);
    let welcome = Reply::Welcome { request: 1, epoch, session, frame_bytes_max, features: None };
    assert_eq!(SERVER.len(), 14, "the dump below has its length");
    check(
        &native(&welcome),
        &format!(
            "50000000 7463 01 00  4000 1800 0e000000  0000000000000000  00000000 00000000
             0a00000000000000 0b00000000000000 00000400 01000000 \"{SERVER}\" 00000000000000000000"
        ),
    );
    check(
        &native(&Reply::Subscribed { request: 2, pattern: "a.>", epoch: 0x0a, since_us: None }),
        "40000000 7463 01 00  4100 1000 03000000  0000000000000000  00000000 00000000
         0a00000000000000 02000000 00000000 \"a.>\" 00000000000000000000000000",
    );
    check(
        &native(&Reply::Subscribed { request: 2, pattern: "a.>", epoch: 0x0a, since_us: Some(0x0b) }),
        "40000000 7463 01 00  4100 1800 03000000  0000000000000000  00000000 00000000
         0a00000000000000 02000000 00000000 0b00000000000000 \"a.>\" 0000000000",
    );
    check(
        &native(&Reply::Unsubscribed { request: 3, pattern: "a.>" }),
        "30000000 7463 01 00  4200 0800 03000000  0000000000000000  00000000 00000000
         03000000 00000000 \"a.>\" 0000000000",
    );
    check(
        &native(&Reply::Pong { token: 7 }),
        "30000000 7463 01 00  4400 0800 00000000  0000000000000000  00000000 00000000
         0700000000000000 0000000000000000",
    );
    check(
        &native(&Reply::Error { request: 4, code: ErrorCode::BadTopic, text: "no" }),
        "30000000 7463 01 00  4500 0800 02000000  0000000000000000  00000000 00000000
         04000000 6500 0000 \"no\" 000000000000",
    );
    check(
        &native(&Reply::Closing { code: 3001, reason: "bye", reconnect_after_ms: 0x0102 }),
        "30000000 7463 01 00  4600 0800 03000000  0000000000000000  00000000 00000000
         02010000 b90b 0000 \"bye\" 0000000000",
    );
}

#[test]
fn ticks_and_announcements_encode_to_the_golden_bytes() {
    let mut out = Vec::new();
    frame::encode_topic(&mut out, TopicId(5), 0x0a, "a.b");
    check(
        &out,
        "40000000 7463 01 00  4100 1000 03000000  0000000000000000  05000000 00000000
         0a00000000000000 00000000 00000000 \"a.b\" 00000000000000000000000000",
    );
    out.clear();
    let times = TickTimes { producer_time_ns: 1, ingest_time_ns: 2 };
    frame::encode_tick(
        &mut out,
        TopicId(5),
        Sequence(3),
        &TickParts { flags: FLAG_PAYLOAD_JSON, schema: 9, times, key: 0, payload: b"{}" },
    );
    check(
        &out,
        "40000000 7463 01 01  4300 1000 02000000  0300000000000000  05000000 09000000
         0100000000000000 0200000000000000 \"{}\" 0000000000000000000000000000",
    );
    let mut keyed = Vec::new();
    let flags = FLAG_PAYLOAD_JSON | FLAG_SNAPSHOT;
    let snapshot = TickParts { flags, schema: 9, times, key: 7, payload: b"{}" };
    frame::encode_tick(&mut keyed, TopicId(5), Sequence(3), &snapshot);
    check(
        &keyed,
        "40000000 7463 01 03  4300 1800 02000000  0300000000000000  05000000 09000000
         0100000000000000 0200000000000000 0700000000000000 \"{}\" 000000000000",
    );
    let mut skipped = Vec::new();
    let range = Skipped { topic: TopicId(5), name: "a.b", from: 3, to: 9, count: None };
    Reply::Conflated(range).encode(WireFormat::TCP_NATIVE, &mut skipped);
    Reply::Gap(range).encode(WireFormat::TCP_NATIVE, &mut skipped);
    check(
        &skipped,
        "30000000 7463 01 00  4700 1000 00000000  0000000000000000  05000000 00000000
         0300000000000000 0900000000000000
         30000000 7463 01 00  4800 1000 00000000  0000000000000000  05000000 00000000
         0300000000000000 0900000000000000",
    );
    let recovered = Reply::Recovered {
        topic_id: 5,
        name: "a.b",
        epoch: 0x0a,
        sequence: 0x0b,
        recovered: true,
        reason: None,
    };
    skipped.clear();
    recovered.encode(WireFormat::TCP_NATIVE, &mut skipped);
    check(
        &skipped,
        "40000000 7463 01 00  4900 1800 03000000  0000000000000000  05000000 00000000
         0a00000000000000 0b00000000000000 01000000 00000000 \"a.b\" 0000000000",
    );
    let mut message = Vec::new();
    websocket::encode(&mut message, MessageType::Binary, &out);
    assert_eq!((message[..2].to_vec(), &message[2..]), (bytes("82 40"), &out[..]));

    out.clear();
    json::encode_tick(
        &mut out,
        &json::tick_prefix("a.b"),
        3,
        &TickParts { flags: FLAG_PAYLOAD_JSON, times, payload: b"{\"p\":1.10}", ..Default::default() },
    );
    assert_eq!(out, br#"{"topic":"a.b","seq":3,"ts":1,"data":{"p":1.10}}"#);
    out.clear();
    json::encode_tick(
        &mut out,
        &json::tick_prefix("a.b"),
        4,
        &TickParts { times, payload: &[0, 255], ..Default::default() },
    );
    assert_eq!(out, br#"{"topic":"a.b","seq":4,"ts":1,"encoding":"base64","data":"AP8="}"#);
    out.clear();
    json::encode_tick(&mut out, &json::tick_prefix("a.b"), 5, &snapshot);
    assert_eq!(out, br#"{"topic":"a.b","seq":5,"ts":1,"key":7,"snapshot":true,"data":{}}"#);
    out.clear();
    json::encode_topic(&mut out, TopicId(5), 10, "a.b");
    assert_eq!(out, br#"{"op":"subscribed","topics":[{"topic":"a.b","topic_id":5,"epoch":10}]}"#);
}

#[test]
fn json_replies_encode_as_specified() {
    let (epoch, session, frame_bytes_max) = (10, 11, 262_144);
    let welcome = Reply::Welcome { request: 1, epoch, session, frame_bytes_max, features: None };
    assert_eq!(
        text(&welcome),
        format!(
            r#"{{"op":"welcome","id":1,"server":"{SERVER}","epoch":10,"session":11,"frame_bytes_max":262144}}"#
        )
    );
    for (reply, expected) in [
        (
            Reply::Subscribed { request: 2, pattern: "a.>", epoch: 10, since_us: None },
            r#"{"op":"subscribed","id":2,"pattern":"a.>","topics":[]}"#,
        ),
        (
            Reply::Subscribed { request: 2, pattern: "e.>", epoch: 10, since_us: Some(11) },
            r#"{"op":"subscribed","id":2,"pattern":"e.>","topics":[],"since":11}"#,
        ),
        (Reply::Unsubscribed { request: 3, pattern: "b" }, r#"{"op":"unsubscribed","id":3,"pattern":"b"}"#),
        (
            Reply::Recovered {
                topic_id: 5,
                name: "d.x",
                epoch: 10,
                sequence: 20,
                recovered: true,
                reason: None,
            },
            r#"{"op":"recovered","topic":"d.x","epoch":10,"sequence":20,"recovered":true}"#,
        ),
        (
            Reply::Conflated(Skipped { topic: TopicId(5), name: "c", from: 3, to: 9, count: None }),
            r#"{"op":"conflated","topic":"c","from":3,"to":9}"#,
        ),
        (
            Reply::Gap(Skipped { topic: TopicId(5), name: "d.x", from: 21, to: 40, count: None }),
            r#"{"op":"gap","topic":"d.x","from":21,"to":40}"#,
        ),
        (Reply::Pong { token: 7 }, r#"{"op":"pong","token":7}"#),
        (
            Reply::Error { request: 4, code: ErrorCode::BadTopic, text: "a \"b\"" },
            r#"{"op":"error","id":4,"code":101,"text":"a \"b\""}"#,
        ),
        (
            Reply::Closing { code: 3001, reason: "bye", reconnect_after_ms: 258 },
            r#"{"op":"closing","code":3001,"reason":"bye","reconnect_after_ms":258}"#,
        ),
    ] {
        assert_eq!(text(&reply), expected);
    }
}

#[test]
fn json_requests_decode_as_specified() {
    let subscribe = json::decode(r#"{"op":"subscribe","id":2,"topics":["a.>","b"]}"#).unwrap();
    let patterns = vec!["a.>".into(), "b".into()];
    let (delivery, from) = (Delivery::default(), StartPosition::Live);
    assert_eq!(subscribe, Command::Subscribe { request: 2, patterns, delivery, from });
    let unsubscribe = json::decode(r#"{"op":"unsubscribe","id":3,"topics":["b"]}"#).unwrap();
    assert_eq!(unsubscribe, Command::Unsubscribe { request: 3, patterns: vec!["b".into()] });
    let start = |from: &str| {
        let text = format!(r#"{{"op":"subscribe","id":2,"topic":"d.*","from":{from}}}"#);
        match json::decode(&text).unwrap() {
            Command::Subscribe { from, .. } => from,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(start(r#""latest""#), StartPosition::Latest);
    let position = Position { epoch: 10, sequence: 17 };
    assert_eq!(start(r#"{"epoch":10,"sequence":17}"#), StartPosition::After(position));
    let each = StartPosition::AfterEach([("d.x".into(), position)].into());
    assert_eq!(start(r#"{"epoch":10,"sequences":{"d.x":17}}"#), each);
    assert_eq!(start(r#"{"positions":{"d.x":{"epoch":10,"sequence":17}}}"#), each);
    let moment = Moment { epoch: 9, since_us: 11 };
    let since = StartPosition::Since([("d.x".into(), position)].into(), moment);
    let text = r#"{"positions":{"d.x":{"epoch":10,"sequence":17}},"epoch":9,"since":11}"#;
    assert_eq!(start(text), since);
    for ping in [r#"{"op":"ping","token":7}"#, r#"{"op":"ping","id":7}"#] {
        assert_eq!(json::decode(ping).unwrap(), Command::Ping { token: 7 });
    }
    assert_eq!(
        json::decode(r#"{"op":"hello","id":1,"name":"app"}"#).unwrap(),
        Command::Hello { request: 1, client: "".into(), name: "app".into(), features: None, token: None }
    );
}

#[test]
fn keys_that_a_double_does_not_hold_are_strings_in_every_json() {
    let tick = |codec: Codec, key| {
        let topic = TopicInfo::new(TopicId(5), 10, "a.b");
        let parts = TickParts { flags: FLAG_PAYLOAD_JSON, key, payload: b"{}", ..TickParts::default() };
        let mut bytes = Vec::new();
        let header = frame::encode_tick(&mut bytes, topic.id, Sequence(3), &parts);
        let frame = Frame { header, kind: Kind::Tick, bytes: &bytes };
        String::from_utf8(codec.encode_tick(&frame, &topic, &mut Vec::new()).to_vec()).unwrap()
    };
    let (highest, beyond) = ((1 << 53) - 1, 1 << 53);
    for (key, text) in [(highest, "9007199254740991"), (beyond, "\"9007199254740992\"")] {
        let wanted = format!(r#"{{"topic":"a.b","seq":3,"ts":0,"key":{text},"data":{{}}}}"#);
        let formats = [WireFormat::WEBSOCKET_JSON, WireFormat::EVENTS_JSON, WireFormat::LINES_JSON];
        for format in formats.iter().flat_map(|format| [*format, format.with(Features::STRING_KEYS)]) {
            assert_eq!(tick(format.codec, key), wanted);
        }
        let event = tick(Codec::SocketIo, key);
        assert!(event.contains(&wanted), "{event}");
        // As `tickcast sub --json` prints it.
        let (mut line, parts) = (Vec::new(), TickParts { key, ..TickParts::default() });
        json::encode_tick(&mut line, &json::tick_prefix("a.b"), 3, &parts);
        let line = String::from_utf8(line).unwrap();
        assert!(line.contains(&format!(r#""key":{text},"#)), "{line}");
    }
    for key in ["18446744073709551615", "\"18446744073709551615\""] {
        let text = format!(r#"{{"op":"publish","id":1,"topic":"a.b","key":{key},"data":1}}"#);
        let Command::Publish(publish) = json::decode(&text).unwrap() else { panic!("a publish") };
        assert_eq!(publish.key, u64::MAX);
    }
}

#[test]
fn a_hello_of_version_0_1_asks_for_no_features() {
    let hello = bytes(
        "30000000 7463 01 00  0100 0800 05000000  0000000000000000  00000000 00000000
         01000000 0200 0000 \"meapp\" 000000",
    );
    let Ok(Step::Complete(_, hello)) = frame::decode(&hello, 1 << 10) else { panic!("a whole frame") };
    assert_eq!(
        Command::from_frame(&hello).unwrap(),
        Command::Hello { request: 1, client: "me".into(), name: "app".into(), features: None, token: None }
    );
}

#[test]
fn a_token_is_no_part_of_the_name() {
    let hello = bytes(
        "40000000 7463 01 00  0100 1000 0a000000  0000000000000000  00000000 00000000
         01000000 0200 0500 1000000000000000 \"meapptoken\" 000000000000",
    );
    let Ok(Step::Complete(_, hello)) = frame::decode(&hello, 1 << 10) else { panic!("a whole frame") };
    let HelloParts { client, name, features, .. } = hello.hello().unwrap();
    assert_eq!((client, name, features), ("me", "app", Features::TOKENS));
    assert_eq!(hello.hello_token().unwrap(), b"token");
    let mut out = Vec::new();
    let parts = HelloParts { request: 1, client, name, features };
    frame::encode_hello_with_token(&mut out, &parts, b"token");
    assert_eq!(out, hello.bytes);
}

#[test]
fn features_encode_to_the_golden_bytes() {
    let asked = Features::from_wire(0x3ff);
    let (epoch, session, frame_bytes_max) = (0x0a, 0x0b, 0x40000);
    let welcome = Reply::Welcome {
        request: 1,
        epoch,
        session,
        frame_bytes_max,
        features: Some(asked.intersection(Features::GRANTED)),
    };
    check(
        &native(&welcome),
        &format!(
            "50000000 7463 01 00  4000 2000 0e000000  0000000000000000  00000000 00000000
             0a00000000000000 0b00000000000000 00000400 01000000 ff03000000000000 \"{SERVER}\" 0000"
        ),
    );
    let (topic, name) = (TopicId(5), "a.b");
    let range = Skipped { topic, name, from: 3, to: 9, count: Some(4) };
    let (reason, pattern) = (Some(NotRecovered::TooOld), "a.>");
    let recovered = Reply::Recovered { topic_id: 5, name, epoch, sequence: 0x0b, recovered: false, reason };
    let published = Reply::Published { request: 4, topic, name, epoch, sequence: 0x0b, is_duplicate: true };
    for (reply, dump, json) in [
        (
            Reply::Conflated(range),
            "40000000 7463 01 00  4700 1800 00000000  0000000000000000  05000000 00000000
             0300000000000000 0900000000000000 0400000000000000 0000000000000000",
            r#"{"op":"conflated","topic":"a.b","from":3,"to":9,"count":4}"#,
        ),
        (
            Reply::Gap(range),
            "40000000 7463 01 00  4800 1800 00000000  0000000000000000  05000000 00000000
             0300000000000000 0900000000000000 0400000000000000 0000000000000000",
            r#"{"op":"gap","topic":"a.b","from":3,"to":9,"count":4}"#,
        ),
        (
            recovered,
            "40000000 7463 01 00  4900 1800 03000000  0000000000000000  05000000 00000000
             0a00000000000000 0b00000000000000 00000000 0200 0000 \"a.b\" 0000000000",
            r#"{"op":"recovered","topic":"a.b","epoch":10,"sequence":11,"recovered":false,"reason":"too_old"}"#,
        ),
        (
            Reply::Removed { pattern, code: ErrorCode::BadTopic, text: "no" },
            "30000000 7463 01 00  4200 0800 03000000  0000000000000000  00000000 00000000
             00000000 6500 0000 \"a.>\" 0000000000",
            r#"{"op":"unsubscribed","pattern":"a.>","code":101,"text":"no"}"#,
        ),
        (
            published,
            "40000000 7463 01 00  4a00 1000 03000000  0b00000000000000  05000000 00000000
             0a00000000000000 04000000 01000000 \"a.b\" 00000000000000000000000000",
            r#"{"op":"published","id":4,"topic":"a.b","epoch":10,"sequence":11,"duplicate":true}"#,
        ),
        (
            Reply::Expires { request: 6, expires_in_s: 300 },
            "30000000 7463 01 00  4b00 0800 00000000  0000000000000000  00000000 00000000
             06000000 2c010000 0000000000000000",
            r#"{"op":"expires","id":6,"expires_in":300}"#,
        ),
        (
            Reply::Source { name: "feed", state: SourceState::Fallback, since_ns: 7 },
            "40000000 7463 01 00  4c00 1000 04000000  0000000000000000  00000000 00000000
             0700000000000000 02000000 00000000 \"feed\" 000000000000000000000000",
            r#"{"op":"source","source":"feed","state":"fallback","since":7}"#,
        ),
        (
            Reply::Stale { topic, name, is_stale: true, since_ns: 7 },
            "30000000 7463 01 00  4d00 1000 00000000  0000000000000000  05000000 00000000
             0700000000000000 01000000 00000000",
            r#"{"op":"stale","topic":"a.b","stale":true,"since":7}"#,
        ),
        (
            Reply::Nodes { node: "n1", addresses: &["ws://h:1/ws", "h:2"] },
            "40000000 7463 01 00  4e00 0800 11000000  0000000000000000  00000000 00000000
             0200 0000 00000000 \"n1ws://h:1/ws h:2\" 00000000000000",
            r#"{"op":"nodes","node":"n1","addresses":["ws://h:1/ws","h:2"]}"#,
        ),
    ] {
        check(&native(&reply), dump);
        assert_eq!(text(&reply), json);
    }
}

#[test]
fn requests_of_features_encode_to_the_golden_bytes() {
    let mut out = Vec::new();
    let record = Request { request: 9, ..Request::default() };
    frame::encode(&mut out, Kind::Refresh, HeaderFields::default(), &record, &[b"token"]);
    check(
        &out,
        "30000000 7463 01 00  0800 0800 05000000  0000000000000000  00000000 00000000
         09000000 00000000 \"token\" 000000",
    );
    out.clear();
    let record = Publish { request: 4, topic_len: 3, message_id_len: 2, ..Publish::default() };
    frame::encode(&mut out, Kind::Publish, HeaderFields::default(), &record, &[b"a.b", b"m1", b"data!"]);
    check(
        &out,
        "50000000 7463 01 00  0400 2000 0a000000  0000000000000000  00000000 00000000
         0000000000000000 0000000000000000 04000000 0300 0200 0000000000000000 \"a.bm1data!\" 000000000000",
    );
    let Ok(Step::Complete(_, frame)) = frame::decode(&out, 1 << 10) else { panic!("a whole frame") };
    let text = r#"{"op":"publish","id":4,"topic":"a.b","data":1,"message_id":"m1"}"#;
    let commands = [Command::from_frame(&frame).unwrap(), json::decode(text).unwrap()];
    for (command, wanted) in commands.iter().zip([&b"data!"[..], b"1"]) {
        let Command::Publish(PublishCommand { topic, message_id, payload, .. }) = command else { panic!() };
        assert_eq!((&**topic, &**message_id, &**payload), (&b"a.b"[..], &b"m1"[..], wanted));
    }
    out.clear();
    let fields = HeaderFields { sequence: 3, topic_id: 5, ..HeaderFields::default() };
    let times = LinkedTickTimes { producer_time_ns: 1, ingest_time_ns: 2, key: 0, previous: 1 };
    frame::encode(&mut out, Kind::Tick, fields, &times, &[b"{}"]);
    check(
        &out,
        "50000000 7463 01 00  4300 2000 02000000  0300000000000000  05000000 00000000
         0100000000000000 0200000000000000 0000000000000000 0100000000000000 \"{}\" 0000000000000000000000000000",
    );
    let Ok(Step::Complete(_, tick)) = frame::decode(&out, 1 << 10) else { panic!("a whole frame") };
    assert_eq!((tick.key(), tick.payload()), (0, &b"{}"[..]), "an older reader finds the payload");
}

#[test]
fn a_tick_of_a_log_has_previous_for_clients_that_ask_and_is_as_before_for_others() {
    let topic = TopicInfo::new(TopicId(5), 1 << 52, "a.b");
    let times = TickTimes { producer_time_ns: 1, ingest_time_ns: 2 };
    let parts = TickParts { flags: FLAG_PAYLOAD_JSON, schema: 9, times, key: 7, payload: b"{}" };
    let mut linked = Vec::new();
    let header = logged::encode_linked_tick(&mut linked, topic.id, Sequence(9), 3, &parts);
    let tick = Frame { header, kind: Kind::Tick, bytes: &linked };
    let encoded = |format: WireFormat, features| {
        format.with(features).codec.encode_tick(&tick, &topic, &mut Vec::new()).to_vec()
    };
    check(
        &encoded(WireFormat::TCP_NATIVE, Features::PREVIOUS),
        "50000000 7463 01 01  4300 2000 02000000  0900000000000000  05000000 09000000
         0100000000000000 0200000000000000 0700000000000000 0300000000000000 \"{}\" 0000000000000000000000000000",
    );
    check(
        &encoded(WireFormat::TCP_NATIVE, Features::NONE),
        "40000000 7463 01 01  4300 1800 02000000  0900000000000000  05000000 09000000
         0100000000000000 0200000000000000 0700000000000000 \"{}\" 000000000000",
    );
    let json = |features| String::from_utf8(encoded(WireFormat::WEBSOCKET_JSON, features)).unwrap();
    let with_previous = r#"{"topic":"a.b","seq":9,"prev":3,"ts":1,"key":7,"data":{}}"#;
    assert_eq!(json(Features::PREVIOUS), with_previous);
    assert_eq!(json(Features::PREVIOUS.union(Features::STRING_KEYS)), with_previous);
    assert_eq!(json(Features::NONE), r#"{"topic":"a.b","seq":9,"ts":1,"key":7,"data":{}}"#);
    assert_eq!(encoded(WireFormat::WEBSOCKET_RAW, Features::PREVIOUS), b"{}");
}

#[test]
fn heartbeats_encode_to_the_golden_bytes() {
    let mut out = Vec::new();
    frame::encode(&mut out, Kind::Pong, HeaderFields::default(), &Token { token: 7 }, &[]);
    let Ok(Step::Complete(_, pong)) = frame::decode(&out, 1 << 10) else { panic!("a whole frame") };
    assert_eq!(Command::from_frame(&pong).unwrap(), Command::Pong);
    out.clear();
    websocket::encode_ping(&mut out);
    check(&out, "89 00");
}

#[test]
fn raw_session_receives_no_replies() {
    let mut out = Vec::new();
    Reply::Pong { token: 7 }.encode(WireFormat::WEBSOCKET_RAW, &mut out);
    Reply::Subscribed { request: 2, pattern: "a", epoch: 1, since_us: None }
        .encode(WireFormat::WEBSOCKET_RAW, &mut out);
    assert!(out.is_empty());
}

#[test]
fn streams_encode_to_the_golden_bytes() {
    let topic = TopicInfo::new(TopicId(5), 9, "a.b");
    let mut frame = Vec::new();
    let times = TickTimes { producer_time_ns: 1, ingest_time_ns: 2 };
    let parts = TickParts { flags: FLAG_PAYLOAD_JSON, times, payload: b"{\n}", ..Default::default() };
    frame::encode_tick(&mut frame, topic.id, Sequence(7), &parts);
    let Ok(Step::Complete(_, tick)) = frame::decode(&frame, 1 << 10) else { panic!("not a tick") };
    let skipped = Skipped { topic: topic.id, name: "a.b", from: 8, to: 10, count: Some(2) };
    let streamed = |format: WireFormat| {
        let (mut out, mut body, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
        let body = format.codec.encode_tick(&tick, &topic, &mut body);
        let (header, rest) = format.framing.delimit(MessageType::Text, body, &mut scratch);
        out.extend_from_slice(&[header, rest].concat());
        Reply::Gap(skipped).encode(format, &mut out);
        format.framing.write_ping(1, &mut out);
        Reply::Closing { code: 3001, reason: "bye", reconnect_after_ms: 5 }.encode(format, &mut out);
        format.framing.write_close(3001, "bye", &mut out);
        String::from_utf8(out).unwrap()
    };
    let (tick, gap, closing) = (
        r#"{"topic":"a.b","seq":7,"ts":1,"data":{ }}"#,
        r#"{"op":"gap","topic":"a.b","from":8,"to":10,"count":2}"#,
        r#"{"op":"closing","code":3001,"reason":"bye","reconnect_after_ms":5}"#,
    );
    let events = format!(
        "event: tick\ndata: {tick}\n\nevent: gap\ndata: {gap}\n\n:\n\nevent: closing\ndata: {closing}\n\n"
    );
    assert_eq!(streamed(WireFormat::EVENTS_JSON), events);
    assert_eq!(streamed(WireFormat::LINES_JSON), format!("{tick}\n{gap}\n\n{closing}\n"));
    let (mut prefix, mut place) = (Vec::new(), Vec::new());
    event_stream::encode_place_prefix(&mut prefix, "a.\u{e4}", 9);
    event_stream::encode_place(&mut place, |out| {
        event_stream::encode_since(out, 5);
        event_stream::encode_place_of(out, &prefix, 7);
    });
    assert_eq!(place, b"event: place\nid: ~5;a.%C3%A4=9.7\ndata: {}\n\n");
}

/// The message of several queued bodies.
fn batch(format: WireFormat, bodies: &[&[u8]]) -> Vec<u8> {
    let WireFormat { codec, framing } = format.with(Features::BATCHES);
    let (mut queued, mut scratch, mut out) = (Vec::new(), Vec::new(), Vec::new());
    for body in bodies {
        let (header, body) = framing.delimit(codec.message_type(), body, &mut scratch);
        queued.extend_from_slice(&[header, body].concat());
    }
    framing.write_send(codec.message_type(), queued.len(), 0, &mut out, |out| out.extend_from_slice(&queued));
    out
}

#[test]
fn frames_of_one_message_are_concatenated_and_json_objects_are_an_array() {
    let json = |bodies: &[&[u8]]| batch(WireFormat::WEBSOCKET_JSON, bodies);
    assert_eq!(json(&[b"{\"seq\":1}"]), b"\x81\x0b[{\"seq\":1}]");
    assert_eq!(json(&[b"{\"seq\":1}", b"{\"seq\":2}"]), b"\x81\x15[{\"seq\":1},{\"seq\":2}]");
    let frame = |sequence| {
        let mut out = Vec::new();
        frame::encode_tick(&mut out, TopicId(5), Sequence(sequence), &TickParts::default());
        out
    };
    let (first, second) = (frame(1), frame(2));
    let message = batch(WireFormat::WEBSOCKET_NATIVE, &[&first, &second]);
    assert_eq!(message, [&[0x82, 0x60][..], &first, &second].concat());
    assert_eq!(Features::from_names(["batches"]).to_wire(), 0x400);
}

#[test]
fn a_compressed_message_has_the_first_reserved_bit_and_ends_without_its_tail() {
    // RFC 7692, section 7.2.3.2: the same text in two messages; without context takeover both are alike.
    let text = "tick tick tick tick tick tick";
    let (mut deflater, mut out) = (Deflater::default(), Vec::new());
    for _ in 0..2 {
        assert!(deflater.encode(&mut out, MessageType::Text, text.as_bytes()));
    }
    let (first, second) = out.split_at(out.len() / 2);
    assert_eq!(first, second);
    assert_eq!((first[0], usize::from(first[1])), (0xc1, first.len() - 2));
    assert!(!first.ends_with(&[0, 0, 0xff, 0xff]) && first.len() < text.len());
}

#[test]
fn socket_io_encodes_to_the_golden_bytes() {
    let topic = TopicInfo::new(TopicId(5), 9, "a.b");
    let tick = |flags, key, payload: &[u8]| {
        let (mut frame, mut body, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
        let times = TickTimes { producer_time_ns: 1, ingest_time_ns: 2 };
        frame::encode_tick(
            &mut frame,
            topic.id,
            Sequence(7),
            &TickParts { flags, times, key, payload, ..Default::default() },
        );
        let Ok(Step::Complete(_, tick)) = frame::decode(&frame, 1 << 10) else { panic!("not a tick") };
        let WireFormat { codec, framing } = WireFormat::SOCKET_IO;
        let body = codec.encode_tick(&tick, &topic, &mut body);
        let (header, rest) = framing.delimit(codec.message_type(), body, &mut scratch);
        [header, rest].concat()
    };
    check(
        &tick(FLAG_PAYLOAD_JSON, 0, b"{\"p\":1.10}"),
        r#"813b "42["22"tick"22",{"22"topic"22":"22"a.b"22","22"seq"22":7,"22"ts"22":1,"22"data"22":{"22"p"22":1.10}}]""#,
    );
    check(
        &tick(FLAG_SNAPSHOT, 1 << 53, b"\x00\x1e\xff"),
        r#"8179 "451-["22"tick"22",{"22"topic"22":"22"a.b"22","22"seq"22":7,"22"ts"22":1,"22"key"22":"22"9007199254740992"22","
           22"snapshot"22":true,"22"data"22":{"22"_placeholder"22":true,"22"num"22":0}}]" 8203 001eff"#,
    );
    let reply = |reply: &Reply<'_>| {
        let mut out = Vec::new();
        reply.encode(WireFormat::SOCKET_IO, &mut out);
        let header = if out[1] < 126 { 2 } else { 4 };
        assert_eq!(out[0], 0x81, "one whole text message");
        String::from_utf8(out.split_off(header)).unwrap()
    };
    let skipped = Skipped { topic: topic.id, name: "a.b", from: 8, to: 10, count: Some(2) };
    assert_eq!(
        reply(&Reply::Gap(skipped)),
        r#"42["gap",{"op":"gap","topic":"a.b","from":8,"to":10,"count":2}]"#
    );
    assert_eq!(
        reply(&Reply::Published {
            request: 1,
            topic: topic.id,
            name: "a.b",
            epoch: 9,
            sequence: 7,
            is_duplicate: false
        }),
        r#"430[{"op":"published","id":0,"topic":"a.b","epoch":9,"sequence":7}]"#
    );
    let mut out = Vec::new();
    WireFormat::SOCKET_IO.framing.write_ping(1, &mut out);
    check(&out, "8101 32");
    out.clear();
    let open = engine_io::Open {
        sid: &engine_io::Sid { shard: 18, key: 0xfe }.to_string(),
        upgrades: &["websocket"],
        ping_interval: 25_000,
        ping_timeout: 20_000,
        max_payload: 65_536,
    };
    assert_eq!(
        engine_io::open_packet(&open),
        "0{\"sid\":\"12.000000000000000000000000000000fe\",\"upgrades\":[\"websocket\"],\"pingInterval\":25000,\
         \"pingTimeout\":20000,\"maxPayload\":65536}"
    );
}

#[test]
fn protobuf_encodes_to_the_golden_bytes() {
    let topic = TopicInfo::new(TopicId(5), 9, "a.b");
    let times = TickTimes { producer_time_ns: 1, ingest_time_ns: 2 };
    let message = |features, frame: &[u8]| {
        let Ok(Step::Complete(_, tick)) = frame::decode(frame, 1 << 10) else { panic!("not a tick") };
        let (mut body, mut scratch) = (Vec::new(), Vec::new());
        let WireFormat { codec, framing } = WireFormat::WEBSOCKET_PROTOBUF.with(features);
        let body = codec.encode_tick(&tick, &topic, &mut body);
        let (header, rest) = framing.delimit(codec.message_type(), body, &mut scratch);
        [header, rest].concat()
    };
    let tick = |parts: &TickParts<'_>| {
        let mut frame = Vec::new();
        frame::encode_tick(&mut frame, topic.id, Sequence(7), parts);
        message(Features::NONE, &frame)
    };
    check(
        &tick(&TickParts { flags: FLAG_PAYLOAD_JSON, times, payload: b"{\"p\":1.10}", ..Default::default() }),
        r#"822b 0a29 0a27 0a03 "a.b" 1007 19 0100000000000000 220a "{"22"p"22":1.10}" 31 0200000000000000 4001"#,
    );
    let parts = TickParts { flags: FLAG_SNAPSHOT, schema: 8, times, key: 300, payload: b"\x00\x1e\xff" };
    check(
        &tick(&parts),
        r#"8229 0a27 0a25 0a03 "a.b" 1007 19 0100000000000000 2203 001eff 28ac02 31 0200000000000000 3808 4801"#,
    );
    let mut linked = Vec::new();
    logged::encode_linked_tick(&mut linked, topic.id, Sequence(7), 0, &TickParts::default());
    check(&message(Features::NONE, &linked), r#"820b 0a09 0a07 0a03 "a.b" 1007"#);
    check(&message(Features::PREVIOUS, &linked), r#"820d 0a0b 0a09 0a03 "a.b" 1007 5000"#);

    let mut out = Vec::new();
    topic.encode(WireFormat::WEBSOCKET_PROTOBUF, &mut out);
    check(&out, r#"820d 0a0b 2209 0a03 "a.b" 1005 1809"#);
    let reply = |reply: &Reply<'_>| {
        let mut out = Vec::new();
        reply.encode(WireFormat::WEBSOCKET_PROTOBUF, &mut out);
        out
    };
    let skipped = Skipped { topic: topic.id, name: "a.b", from: 8, to: 10, count: Some(2) };
    check(&reply(&Reply::Gap(skipped)), r#"820f 0a0d 420b 0a03 "a.b" 1008 180a 2002"#);
    check(
        &reply(&Reply::Published {
            request: 1,
            topic: topic.id,
            name: "a.b",
            epoch: 9,
            sequence: 7,
            is_duplicate: false,
        }),
        r#"820f 0a0d 4a0b 0801 1203 "a.b" 1809 2007"#,
    );
    check(
        &reply(&Reply::Closing { code: 3001, reason: "bye", reconnect_after_ms: 5 }),
        r#"820e 0a0c 620a 08b917 1203 "bye" 1805"#,
    );
    // Events of one message follow each other.
    let event = &bytes(r#"0a09 0a07 0a03 "a.b" 1007"#);
    let batched = batch(WireFormat::WEBSOCKET_PROTOBUF, &[event, event]);
    assert_eq!(batched, [&[0x82, 22][..], event, event].concat());
}

#[test]
fn protobuf_requests_decode_from_the_golden_bytes() {
    let decoded = |dump: &str| {
        let message = Message::Binary(bytes(dump).into());
        let mut requests = WireFormat::WEBSOCKET_PROTOBUF.codec.decode(&message, 1 << 10).unwrap();
        let command = format!("{:?}", requests.next().unwrap().unwrap());
        assert!(requests.next().is_none());
        command
    };
    let shown = |command: Command<'_>| format!("{command:?}");
    assert_eq!(
        decoded(r#"0801 120d 0a03 "app" 1206 "counts""#),
        shown(Command::Hello {
            request: 1,
            client: "".into(),
            name: "app".into(),
            features: Some(Features::COUNTS),
            token: None,
        })
    );
    assert_eq!(
        decoded(r#"0802 2216 0a03 "a.>" 1004 19 0000000000001440 2a04 0809 1007"#),
        shown(Command::Subscribe {
            request: 2,
            patterns: vec!["a.>".into()],
            delivery: Delivery { policy: Some(Policy::Keep), interval_us: 200_000 },
            from: StartPosition::After(Position { epoch: 9, sequence: 7 }),
        })
    );
    assert_eq!(
        decoded(r#"0802 2211 0a01 "a" 320c 0a0a 0a01 "a" 1205 0809 10ac02"#),
        shown(Command::Subscribe {
            request: 2,
            patterns: vec!["a".into()],
            delivery: Delivery::default(),
            from: StartPosition::AfterEach(
                [("a".into(), Position { epoch: 9, sequence: 300 })].into_iter().collect()
            ),
        })
    );
    assert_eq!(
        decoded(r#"0804 3a18 0a01 "t" 1202 00ff 1807 21 0600000000000000 2808 3202 "m1""#),
        shown(Command::Publish(PublishCommand {
            request: 4,
            topic: b"t".into(),
            producer_time_ns: 6,
            schema: 8,
            payload: b"\x00\xff".into(),
            payload_is_json: false,
            key: 7,
            message_id: b"m1".into(),
        }))
    );
    assert_eq!(decoded("4202 0807"), shown(Command::Ping { token: 7 }));
}
