//! Publishing and subscribing, in every combination of encodings.

use crate::harness::{
    Server, beside_others,
    collector::{Collector, barrier, connect, publish},
    eventually,
    external::{External, Library, ticks},
    frames::{self, Raw},
    raw::{BINARY, Peer, masked},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use tickcast_proto::WireFormat;

/// Payloads: JSON that any reformatting would change, text that is not JSON, bytes, nothing.
const PAYLOADS: [&[u8]; 6] =
    [br#"{"p": 1.10,"n":[1e400, -0.0 ]}"#, b"1.0", b"not json", b"\x00\xff\xfe", b"", br#""\u00e9 \" }""#];

const PUBLISHERS: [WireFormat; 4] = [
    WireFormat::TCP_NATIVE,
    WireFormat::WEBSOCKET_NATIVE,
    WireFormat::WEBSOCKET_JSON,
    WireFormat::WEBSOCKET_RAW,
];

#[test]
fn ticks_of_every_publisher_reach_subscribers_of_every_encoding_byte_exact() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "3"]);
    let with_topics = [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON];
    let collectors = with_topics.map(|encoding| Collector::start(&server, encoding, &["p.>"]));
    let count = PUBLISHERS.len() * PAYLOADS.len();
    let externals: Vec<External> = [Library::Ws, Library::Websockets]
        .into_iter()
        .flat_map(|library| ["json", "rkyv"].map(|encoding| (library, encoding)))
        .map(|(library, encoding)| External::subscribe(library, &server, encoding, "p.>", count))
        .collect();
    externals.iter().for_each(External::wait_until_ready);
    for encoding in PUBLISHERS {
        let mut publisher = connect(&server, encoding);
        for payload in PAYLOADS {
            publish(&mut publisher, &format!("p.{}", encoding.name()), payload);
        }
        barrier(&mut publisher);
    }
    let expected: Vec<(u64, Vec<u8>)> =
        (1..).zip(PAYLOADS).map(|(sequence, payload)| (sequence, payload.to_vec())).collect();
    let mut results = Vec::new();
    for collector in collectors {
        collector.wait_for(count);
        results.push((collector.name.clone(), collector.finish().ticks));
    }
    for external in externals {
        results.push((external.name.clone(), ticks(&external.finish())));
    }
    for (name, mut got) in results {
        for encoding in PUBLISHERS {
            assert_eq!(
                got.remove(&format!("p.{}", encoding.name())).unwrap(),
                expected,
                "{name}: by {encoding:?}"
            );
        }
        assert!(got.is_empty(), "{name}: {got:?}");
    }
    server.stop_cleanly();
}

#[test]
fn raw_subscribers_get_the_payload_and_nothing_else() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let externals = [Library::Ws, Library::Websockets]
        .map(|library| External::subscribe(library, &server, "raw", "floats", 0));
    externals.iter().for_each(External::wait_until_ready);
    let mut peer = Peer::websocket(server.http, "/ws?topics=floats", "tickcast.v1.raw");
    let collector = Collector::start(&server, WireFormat::WEBSOCKET_RAW, &["floats"]);
    // A raw session gets no acknowledgement; its first tick shows that it is subscribed.
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    eventually("raw subscribers get a first tick", || {
        publish(&mut publisher, "floats", b"warm-up");
        barrier(&mut publisher);
        externals.iter().all(|external| external.printed().contains("\t1\t")) && collector.so_far().count > 0
    });
    let samples: Vec<Vec<u8>> =
        (0..100u32).map(|n| (n as f32).to_le_bytes().repeat(1 + n as usize)).collect();
    for sample in &samples {
        publish(&mut publisher, "floats", sample);
    }
    barrier(&mut publisher);
    let is_last = |payload: &[u8]| payload == samples[99];
    collector.wait_until("the last sample", |got| {
        got.ticks.values().flatten().any(|(_, payload)| is_last(payload))
    });
    let mut seen = Vec::new();
    while !seen.last().is_some_and(|payload: &Vec<u8>| is_last(payload)) {
        let message = peer.message().unwrap();
        assert_eq!(message.opcode, BINARY);
        seen.push(message.payload);
    }
    let all = [
        ("collector".to_owned(), collector.finish().ticks),
        ("raw socket".to_owned(), { [(String::new(), (1..).zip(seen).collect())].into() }),
    ]
    .into_iter()
    .chain({
        drop(peer);
        drop(publisher);
        server.stop_cleanly();
        externals.into_iter().map(|external| (external.name.clone(), ticks(&external.finish())))
    });
    for (name, ticks) in all {
        let payloads: Vec<&Vec<u8>> =
            ticks[""].iter().map(|(_, payload)| payload).filter(|payload| *payload != b"warm-up").collect();
        assert!(payloads.into_iter().eq(&samples), "{name}");
    }
}

#[test]
fn json_and_native_messages_match_the_specification_to_the_byte() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "1"]);
    let mut json = Peer::websocket(server.http, "/ws", "");
    json.send_text(r#"{"op":"hello","id":1,"name":"test"}"#);
    let welcome = json.text();
    assert!(welcome.starts_with(r#"{"op":"welcome","id":1,"server":"tickcast/"#), "{welcome}");
    assert!(welcome.ends_with(r#","frame_bytes_max":262144}"#), "{welcome}");
    json.send_text(r#"{"op":"subscribe","id":2,"topics":["a.>","b"]}"#);
    // One per pattern, in the order in which they go live.
    let mut acknowledged = [json.text(), json.text()];
    acknowledged.sort();
    assert_eq!(acknowledged[0], r#"{"op":"subscribed","id":2,"pattern":"a.>","topics":[]}"#);
    assert_eq!(acknowledged[1], r#"{"op":"subscribed","id":2,"pattern":"b","topics":[]}"#);
    json.send_text(r#"{"op":"publish","id":3,"topic":"a.x","data": {"p":1.10 , "q":[]} ,"ts":5}"#);
    let topic = json.text();
    assert!(topic.starts_with(r#"{"op":"subscribed","topics":[{"topic":"a.x","topic_id":"#), "{topic}");
    assert_eq!(json.text(), r#"{"topic":"a.x","seq":1,"ts":5,"data":{"p":1.10 , "q":[]}}"#);
    json.send_text(r#"{"op":"publish","topic":"a.x","encoding":"base64","data":"AP8=","ts":6}"#);
    assert_eq!(json.text(), r#"{"topic":"a.x","seq":2,"ts":6,"encoding":"base64","data":"AP8="}"#);

    let mut native = Peer::native(server.tcp);
    native.send(&Raw::request(frames::SUBSCRIBE, 9, b"a.*").bytes());
    let subscribed = native.frame().unwrap();
    assert_eq!((subscribed.kind, subscribed.request(), subscribed.text()), (frames::SUBSCRIBED, 9, "a.*"));
    assert_eq!(subscribed.topic_id, 0);
    json.send_text(r#"{"op":"publish","topic":"a.x","data":[7],"ts":8}"#);
    let announced = native.frame().unwrap();
    assert_eq!((announced.kind, announced.text()), (frames::SUBSCRIBED, "a.x"));
    let tick = native.frame().unwrap();
    assert_eq!((tick.kind, tick.flags, tick.sequence), (frames::TICK, 1, 3));
    assert_eq!((tick.topic_id, &tick.payload[..]), (announced.topic_id, &b"[7]"[..]));
    assert_eq!(tick.record[..8], 8u64.to_le_bytes());

    native.send(&Raw::publish(0, b"a.x", b"\xff").bytes());
    assert_eq!(native.frame().unwrap().flags, 0);
    assert_eq!(json.text(), r#"{"topic":"a.x","seq":3,"ts":8,"data":[7]}"#);
    assert_eq!(json.text(), r#"{"topic":"a.x","seq":4,"ts":7,"encoding":"base64","data":"/w=="}"#);
    json.send_text(r#"{"op":"unsubscribe","id":4,"topics":["b"]}"#);
    assert_eq!(json.text(), r#"{"op":"unsubscribed","id":4,"pattern":"b"}"#);
    json.send_text(r#"{"op":"ping","token":18446744073709551615}"#);
    assert_eq!(json.text(), r#"{"op":"pong","token":18446744073709551615}"#);
    drop((native, json));
    server.stop_cleanly();
}

#[test]
fn json_beyond_the_bounds_travels_as_base64_whoever_publishes_it() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2"]);
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let digits = |count: usize| format!("{{\"n\":{}}}", "7".repeat(count));
    let payloads = [
        (nested(20), true),
        (nested(60), true),
        (nested(61), false),
        (nested(100_000), false),
        (digits(300), true),
        (digits(301), false),
        (digits(5_000), false),
    ];
    let mut publisher = Peer::websocket(server.http, "/ws", "");
    let mut native = connect(&server, WireFormat::TCP_NATIVE);
    let mut subscriber = Peer::websocket(server.http, "/ws?topics=deep", "");
    assert!(subscriber.text().contains("\"op\":\"subscribed\""));
    /// A message: a tick if it has no `op`.
    #[derive(serde::Deserialize)]
    struct Message {
        op: Option<String>,
        encoding: Option<String>,
        /// As it was written: a parser's numbers lose digits.
        data: Option<Box<serde_json::value::RawValue>>,
    }
    let mut next_tick = || {
        let parsed = |text: String| {
            // serde_json stops at 127 levels.
            serde_json::from_str::<serde_json::Value>(&text).expect("any parser reads it");
            serde_json::from_str::<Message>(&text).unwrap()
        };
        std::iter::repeat_with(|| parsed(subscriber.text())).find(|message| message.op.is_none()).unwrap()
    };
    for (payload, is_json) in payloads {
        let inline = format!(r#"{{"op":"publish","topic":"deep","data":{payload}}}"#);
        for by_json in [true, false] {
            if by_json {
                publisher.send_text(&inline);
            } else {
                publish(&mut native, "deep", payload.as_bytes());
                barrier(&mut native);
            }
            let tick = next_tick();
            let data = tick.data.unwrap();
            let data = match tick.encoding.as_deref() {
                None => data.get().to_owned(),
                Some(encoding) => {
                    assert_eq!(encoding, "base64");
                    let text: String = serde_json::from_str(data.get()).unwrap();
                    String::from_utf8(BASE64.decode(text).unwrap()).unwrap()
                }
            };
            assert_eq!(tick.encoding.is_none(), is_json, "{payload:.80}");
            assert!(data == payload, "{payload:.80}: {data:.80}");
        }
    }
    server.stop_cleanly();
}

#[test]
fn patterns_match_later_topics_and_each_tick_arrives_once() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "4"]);
    let overlapping = Collector::start(&server, WireFormat::TCP_NATIVE, &["x.>", "x.*.c", "x.a.c"]);
    let star = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &["x.*.c"]);
    let all = Collector::start(&server, WireFormat::WEBSOCKET_NATIVE, &[">"]);
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    let topics = ["x", "x.a", "x.a.c", "x.b.c", "x.b.c.d", "y.a.c"];
    for round in [b"1", b"2"] {
        for topic in topics {
            publish(&mut publisher, topic, round);
        }
    }
    barrier(&mut publisher);
    for (collector, expected) in [
        (overlapping, &["x.a", "x.a.c", "x.b.c", "x.b.c.d"][..]),
        (star, &["x.a.c", "x.b.c"]),
        (all, &topics),
    ] {
        collector.wait_for(2 * expected.len());
        let got = collector.finish();
        let mut expected: Vec<&str> = expected.to_vec();
        expected.sort_unstable();
        assert!(got.ticks.keys().eq(&expected), "{:?}", got.ticks.keys());
        assert!(got.ticks.values().all(|ticks| *ticks == [(1, b"1".to_vec()), (2, b"2".to_vec())]));
        let mut announced = got.topics;
        announced.sort_unstable();
        assert_eq!(announced, expected, "each topic is announced once");
    }
    drop(publisher);
    server.stop_cleanly();
}

#[test]
fn a_subscription_is_live_once_acknowledged() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "4"]);
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    for round in 0..200u64 {
        let topic = format!("round.{round}");
        publish(&mut publisher, &topic, b"before");
        barrier(&mut publisher);
        let pattern = if round % 2 == 0 { topic.clone() } else { format!("*.{round}") };
        let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &[&pattern]);
        publish(&mut publisher, &topic, b"after");
        barrier(&mut publisher);
        collector.wait_until("the tick published after the acknowledgement", |got| {
            got.ticks.values().flatten().any(|tick| *tick == (2, b"after".to_vec()))
        });
    }
    drop(publisher);
    server.stop_cleanly();
}

#[test]
fn an_unsubscribed_pattern_delivers_no_more_ticks() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "4"]);
    let mut publisher = connect(&server, WireFormat::WEBSOCKET_JSON);
    let mut peer = Peer::native(server.tcp);
    for (request, pattern) in [(1, "gone"), (2, "kept")] {
        peer.send(&Raw::request(frames::SUBSCRIBE, request, pattern.as_bytes()).bytes());
        assert_eq!(peer.frame().unwrap().request(), request);
    }
    peer.send(&Raw::request(frames::UNSUBSCRIBE, 3, b"gone").bytes());
    let reply = peer.frame().unwrap();
    assert_eq!((reply.kind, reply.request(), reply.text()), (frames::UNSUBSCRIBED, 3, "gone"));
    for topic in ["gone", "kept", "gone", "kept"] {
        publish(&mut publisher, topic, topic.as_bytes());
    }
    barrier(&mut publisher);
    let mut ticks = 0;
    while ticks < 2 {
        let frame = peer.frame().unwrap();
        assert_eq!(frame.payload, b"kept", "{frame:?}");
        ticks += usize::from(frame.kind == frames::TICK);
    }
    // Subscribing again continues at the topic's current sequence.
    peer.send(&Raw::request(frames::SUBSCRIBE, 4, b"gone").bytes());
    let reply = peer.frame().unwrap();
    assert_eq!((reply.kind, reply.request()), (frames::SUBSCRIBED, 4));
    publish(&mut publisher, "gone", b"again");
    barrier(&mut publisher);
    let tick = loop {
        let frame = peer.frame().unwrap();
        if frame.kind == frames::TICK {
            break frame;
        }
        assert_eq!((frame.kind, frame.text()), (frames::SUBSCRIBED, "gone"));
    };
    assert_eq!((tick.sequence, &tick.payload[..]), (3, &b"again"[..]));
    drop(peer);
    drop(publisher);
    server.stop_cleanly();
}

#[test]
fn a_pong_comes_after_the_answers_to_everything_before_it() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "1"]);
    let mut native = Peer::native(server.tcp);
    let mut json = Peer::websocket(server.http, "/ws", "tickcast.v1.json");
    let (mut frames_out, mut text_out) = (Vec::new(), Vec::new());
    for round in 0..200u32 {
        frames_out.extend(Raw::publish(round, b"bad topic", b"").bytes());
        frames_out.extend(Raw::ping(u64::from(round)).bytes());
        let publish = format!(r#"{{"op":"publish","id":{round},"topic":"bad topic","data":1}}"#);
        text_out.extend(masked(0x81, publish.as_bytes()));
        text_out.extend(masked(0x81, format!(r#"{{"op":"ping","token":{}}}"#, round + 1000).as_bytes()));
    }
    native.send(&frames_out);
    json.send(&text_out);
    for round in 0..200 {
        let error = native.frame().unwrap();
        assert_eq!((error.kind, error.code(), error.request()), (frames::ERROR, 101, round));
        assert_eq!(native.frame().unwrap().token(), u64::from(round));
        let error = json.text();
        assert!(error.starts_with(&format!(r#"{{"op":"error","id":{round},"code":101,"#)), "{error}");
        assert_eq!(json.text(), format!(r#"{{"op":"pong","token":{}}}"#, round + 1000));
    }
    drop((native, json));
    server.stop_cleanly();
}
