use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use prost::Message as _;

use super::{messages::*, *};
use crate::{
    ErrorCode, Step,
    codec::{Codec, Message, RequestDecodeError, TopicInfo},
    frame::{self, TickParts},
    ids::Sequence,
    logged,
    reply::{NotRecovered, Skipped, SourceState},
};

/// The generated module, as it must stand in the file.
fn generated() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut compiler = protox::Compiler::new([root]).unwrap();
    compiler.include_source_info(true).open_file("tickcast.proto").unwrap();
    let files = compiler.file_descriptor_set().file;
    let with_module = |file| (prost_build::Module::from_protobuf_package_name("tickcast.v1"), file);
    let files = files.into_iter().map(with_module).collect();
    let mut config = prost_build::Config::new();
    // Their debug output would show tokens.
    config.skip_debug([".tickcast.v1.Hello", ".tickcast.v1.Refresh"]);
    let modules = config.generate(files).unwrap();
    let [module] = modules.into_values().collect::<Vec<_>>().try_into().unwrap();
    format!(
        "//! The messages of `tickcast.proto`, generated from it: see `messages_are_generated_from_the_published_file`.\n\n{module}"
    )
}

/// After a change of `tickcast.proto`, run it with `TICKCAST_GENERATE=1`: it writes the file.
#[test]
fn messages_are_generated_from_the_published_file() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("codec/protobuf/messages.rs");
    let generated = generated();
    if std::env::var_os("TICKCAST_GENERATE").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(
        written == generated,
        "tickcast.proto and messages.rs differ: run this test with TICKCAST_GENERATE=1"
    );
}

fn request(id: u32, command: request::Command) -> Vec<u8> {
    Request { id, command: Some(command) }.encode_to_vec()
}

fn decoded(id: u32, command: request::Command) -> Result<Command<'static>, String> {
    decode(&request(id, command)).map_err(|error| {
        assert_eq!(error.request, id);
        error.text
    })
}

#[test]
fn requests_decode_to_commands() {
    let hello = Hello {
        name: "app".into(),
        features: vec!["counts".into(), "unknown".into()],
        token: "secret".into(),
    };
    assert_eq!(
        decoded(1, request::Command::Hello(hello)).unwrap(),
        Command::Hello {
            request: 1,
            client: "".into(),
            name: "app".into(),
            features: Some(Features::COUNTS),
            token: Some(Token(b"secret".into())),
        }
    );
    let Command::Hello { features: None, token: None, .. } =
        decoded(1, request::Command::Hello(Hello::default())).unwrap()
    else {
        panic!("it has asked for nothing")
    };
    assert_eq!(
        decoded(2, request::Command::Refresh(Refresh { token: "new".into() })).unwrap(),
        Command::Refresh { request: 2, token: Token(b"new".into()) }
    );
    let from = [
        (None, StartPosition::Live),
        (Some(subscribe::From::Start(Start::Live.into())), StartPosition::Live),
        (Some(subscribe::From::Start(Start::Latest.into())), StartPosition::Latest),
        (
            Some(subscribe::From::After(messages::Position { epoch: 9, sequence: 7 })),
            StartPosition::After(crate::subscription::Position { epoch: 9, sequence: 7 }),
        ),
        (
            Some(subscribe::From::AfterEach(Positions {
                topics: HashMap::from([("a.x".into(), messages::Position { epoch: 9, sequence: 7 })]),
            })),
            StartPosition::AfterEach(HashMap::from([(
                "a.x".into(),
                crate::subscription::Position { epoch: 9, sequence: 7 },
            )])),
        ),
    ];
    for (given, from) in from {
        let subscribe = Subscribe {
            patterns: vec!["a.>".into(), "b".into()],
            policy: messages::Policy::Keep.into(),
            max_rate: 5.0,
            from: given,
        };
        let delivery = Delivery { policy: Some(crate::subscription::Policy::Keep), interval_us: 200_000 };
        let patterns = vec!["a.>".into(), "b".into()];
        assert_eq!(
            decoded(3, request::Command::Subscribe(subscribe)).unwrap(),
            Command::Subscribe { request: 3, patterns, delivery, from }
        );
    }
    let patterns = || vec!["c".to_owned()];
    for (number, policy) in [
        (messages::Policy::Default, None),
        (messages::Policy::Conflate, Some(crate::subscription::Policy::Conflate)),
        (messages::Policy::Drop, Some(crate::subscription::Policy::Drop)),
        (messages::Policy::Disconnect, Some(crate::subscription::Policy::Disconnect)),
        (messages::Policy::Keep, Some(crate::subscription::Policy::Keep)),
    ] {
        let update = Update { patterns: patterns(), policy: number.into(), max_rate: 0.0 };
        assert_eq!(
            decoded(4, request::Command::Update(update)).unwrap(),
            Command::Update {
                request: 4,
                patterns: vec!["c".into()],
                delivery: Delivery { policy, interval_us: 0 }
            }
        );
    }
    assert_eq!(
        decoded(5, request::Command::Unsubscribe(Unsubscribe { patterns: patterns() })).unwrap(),
        Command::Unsubscribe { request: 5, patterns: vec!["c".into()] }
    );
    let publish = Publish {
        topic: "t".into(),
        payload: b"\x00\xff".into(),
        key: u64::MAX,
        producer_time_ns: 6,
        schema: 8,
        message_id: "m1".into(),
    };
    assert_eq!(
        decoded(6, request::Command::Publish(publish)).unwrap(),
        Command::Publish(PublishCommand {
            request: 6,
            topic: b"t".into(),
            producer_time_ns: 6,
            schema: 8,
            payload: b"\x00\xff".into(),
            payload_is_json: false,
            key: u64::MAX,
            message_id: b"m1".into(),
        })
    );
    for (given, token) in [(0, 7), (9, 9)] {
        let ping = request::Command::Ping(Ping { token: given });
        assert_eq!(decoded(7, ping).unwrap(), Command::Ping { token });
    }
}

#[test]
fn what_a_request_lacks_or_has_wrong_is_named() {
    let commands = "use hello, refresh, subscribe, update, unsubscribe, publish or ping";
    let subscribe = |policy, max_rate, from| {
        request::Command::Subscribe(Subscribe { patterns: vec!["a".into()], policy, max_rate, from })
    };
    for (command, expected) in [
        (request::Command::Refresh(Refresh::default()), "refresh: \"token\" is missing or empty"),
        (request::Command::Subscribe(Subscribe::default()), "subscribe: \"patterns\" is missing or empty"),
        (request::Command::Update(Update::default()), "update: \"patterns\" is missing or empty"),
        (
            request::Command::Unsubscribe(Unsubscribe::default()),
            "unsubscribe: \"patterns\" is missing or empty",
        ),
        (
            subscribe(9, 0.0, None),
            "subscribe: policy: unknown value \"9\"; use conflate, drop, keep or disconnect",
        ),
        (
            subscribe(0, f64::NAN, None),
            "subscribe: max_rate: NaN is not a rate from 0.001 to 1000 ticks per second",
        ),
        (
            subscribe(0, -1.0, None),
            "subscribe: max_rate: -1 is not a rate from 0.001 to 1000 ticks per second",
        ),
        (
            subscribe(0, 0.0, Some(subscribe::From::Start(7))),
            "subscribe: from: 7 is not a start position; use live, latest, positions, or epoch with sequence or sequences",
        ),
    ] {
        assert_eq!(decoded(7, command), Err(expected.to_owned()));
    }
    let unknown = decode(&Request { id: 7, command: None }.encode_to_vec()).unwrap_err();
    assert_eq!((unknown.request, unknown.text), (7, format!("unknown or missing command; {commands}")));
    // A command of a later version, in field 12; and a message without anything.
    for (bytes, id) in [(&[0x08, 7, 0x62, 2, 0xff, 0xff][..], 7), (&[], 0)] {
        let error = decode(bytes).unwrap_err();
        assert_eq!((error.request, error.text), (id, format!("unknown or missing command; {commands}")));
    }
    // Bytes of no message, and texts that are not UTF-8. The id precedes them, or it is not known.
    for (bytes, id) in [
        (&[0x08, 7, 0xff][..], 7),
        (&[0x08, 7, 0x3a, 3, 0x0a, 1, 0xff], 7),
        (&[0x3a, 3, 0x0a, 1, 0xff, 0x08, 7], 0),
        (&[0x08, 7, 0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f], 7),
        (&[0x08, 7, 0x3a, 6, 0x12, 0xff, 0xff, 0xff, 0xff, 0x0f], 7),
        (b"{\"op\":\"ping\"}", 0),
    ] {
        let error = decode(bytes).unwrap_err();
        assert_eq!(error.request, id, "{bytes:02x?}: {}", error.text);
        assert!(error.text.starts_with("failed to decode Protobuf message: "), "{}", error.text);
    }
}

#[test]
fn unknown_fields_are_skipped_however_they_nest() {
    let ping = request(7, request::Command::Ping(Ping { token: 5 }));
    let unknown: [&[u8]; 4] = [
        &[0x60, 0x80, 1],
        &[0x61, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x62, 2, 0xff, 0xff],
        // A group within a group.
        &[0x63, 0x6b, 0x60, 1, 0x6c, 0x64],
    ];
    for unknown in unknown {
        for message in [[unknown, &ping].concat(), [&ping, unknown].concat()] {
            assert_eq!(decode(&message), Ok(Command::Ping { token: 5 }));
        }
    }
    // A million groups, none of which ends.
    let error = decode(&[0x63; 1 << 20]).unwrap_err();
    assert!(error.text.contains("recursion"), "{}", error.text);
}

#[test]
fn debug_output_has_no_token() {
    let hello = Hello { name: "app".into(), token: "secret".into(), ..Hello::default() };
    let refresh = request::Command::Refresh(Refresh { token: "secret".into() });
    let shown = format!("{:?} {refresh:?}", request::Command::Hello(hello));
    assert!(shown.contains("app") && shown.contains("6 bytes") && !shown.contains("secret"), "{shown}");
}

/// Bytes of requests, changed, cut and joined: never a panic, never more memory than is said. A failure prints its seed.
#[test]
fn mutated_requests_decode_or_are_refused_by_name() {
    let subscribe = Subscribe {
        patterns: vec!["a.>".into(); 3],
        from: Some(subscribe::From::AfterEach(Positions {
            topics: HashMap::from([("a.x".into(), messages::Position { epoch: 9, sequence: 7 })]),
        })),
        ..Subscribe::default()
    };
    let publish = Publish { topic: "t".into(), payload: vec![7; 40], key: 300, ..Publish::default() };
    let whole = [
        request(1, request::Command::Hello(Hello { features: vec!["counts".into()], ..Hello::default() })),
        request(2, request::Command::Subscribe(subscribe)),
        request(3, request::Command::Publish(publish)),
    ];
    for bytes in &whole {
        for len in 0..bytes.len() {
            let _ = decode(&bytes[..len]);
        }
    }
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..20_000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut bytes = whole[rng.usize(..whole.len())].clone();
        if rng.bool() {
            bytes.extend_from_slice(&whole[rng.usize(..whole.len())]);
        }
        for _ in 0..rng.usize(1..6) {
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
        bytes.truncate(rng.usize(..=bytes.len()));
        match decode(&bytes) {
            Ok(Command::Subscribe { patterns, .. }) => assert!(patterns.len() <= bytes.len(), "seed {seed}"),
            Ok(Command::Publish(publish)) => assert!(publish.payload.len() <= bytes.len(), "seed {seed}"),
            Ok(_) => accepted += 1,
            Err(error) => {
                refused += 1;
                assert!(error.text.len() < 300, "seed {seed}: {}", error.text);
            }
        }
    }
    assert!(accepted > 100 && refused > 100, "{accepted} {refused}");
}

#[test]
fn a_request_is_a_binary_message_and_fails_alone() {
    let ping = request(7, request::Command::Ping(Ping { token: 5 }));
    for codec in [Codec::Protobuf, Codec::ProtobufLinked] {
        let message = Message::Binary(ping.clone().into());
        let mut requests = codec.decode(&message, 1 << 10).unwrap();
        assert_eq!(requests.next(), Some(Ok(Command::Ping { token: 5 })));
        assert_eq!((requests.next(), requests.remaining_frames()), (None, &[][..]));
        let message = Message::Binary(b"\xff"[..].into());
        let mut requests = codec.decode(&message, 1 << 10).unwrap();
        assert!(matches!(requests.next(), Some(Err(RequestDecodeError::Invalid(_)))));
        assert!(requests.next().is_none());
    }
}

fn events(bytes: &[u8]) -> Vec<event::Event> {
    Events::decode(bytes).unwrap().events.into_iter().map(|event| event.event.unwrap()).collect()
}

/// The tick in a frame, as it is encoded by a codec over the bytes of an earlier one.
fn encoded(codec: Codec, topic: &TopicInfo, frame: &[u8]) -> Vec<u8> {
    let Ok(Step::Complete(_, tick)) = frame::decode(frame, 1 << 20) else { panic!("not a tick") };
    codec.encode_tick(&tick, topic, &mut b"stale".to_vec()).to_vec()
}

/// Every combination of empty, short and long fields.
#[test]
fn a_tick_is_encoded_as_prost_encodes_it() {
    let times = [0, 1, 1_700_000_000_000_000_000, u64::MAX];
    let long = vec![7; 70_000];
    let payloads = [&b""[..], b"{}", &long[..127], &long[..128], &long];
    let (short_name, long_name) = ("a".to_owned(), "b".repeat(200));
    let mut rng = fastrand::Rng::with_seed(1);
    for n in 0..2_000 {
        let name = [&*short_name, &*long_name][n % 2];
        let topic = TopicInfo::new(TopicId(5), 1, name);
        let number = |rng: &mut fastrand::Rng| [0, 1, 127, 128, 1 << 40, u64::MAX][rng.usize(..6)];
        let (key, sequence, before) = (number(&mut rng), number(&mut rng), number(&mut rng));
        let (producer_time_ns, ingest_time_ns) = (times[rng.usize(..4)], times[rng.usize(..4)]);
        let flags = rng.u8(..4);
        let schema = [0, 1, u32::MAX][rng.usize(..3)];
        let payload = payloads[rng.usize(..payloads.len())];
        let parts =
            TickParts { flags, schema, times: TickTimes { producer_time_ns, ingest_time_ns }, key, payload };
        let is_linked = rng.bool();
        let mut bytes = Vec::new();
        match is_linked {
            true => logged::encode_linked_tick(&mut bytes, topic.id, Sequence(sequence), before, &parts),
            false => frame::encode_tick(&mut bytes, topic.id, Sequence(sequence), &parts),
        };
        for codec in [Codec::Protobuf, Codec::ProtobufLinked] {
            let tick = Tick {
                topic: name.into(),
                sequence,
                producer_time_ns,
                payload: payload.into(),
                key,
                ingest_time_ns,
                schema,
                payload_is_json: flags & FLAG_PAYLOAD_JSON != 0,
                snapshot: flags & FLAG_SNAPSHOT != 0,
                previous: (is_linked && codec == Codec::ProtobufLinked).then_some(before),
            };
            let events = Events { events: vec![Event { event: Some(event::Event::Tick(tick)) }] };
            assert_eq!(encoded(codec, &topic, &bytes), events.encode_to_vec());
        }
    }
}

#[test]
fn concatenated_events_are_one_message() {
    let topic = TopicInfo::new(TopicId(5), 1, "a.b");
    let mut frame = Vec::new();
    frame::encode_tick(&mut frame, topic.id, Sequence(3), &TickParts::default());
    let mut bytes = encoded(Codec::Protobuf, &topic, &frame);
    Codec::Protobuf.encode_topic(&topic, &mut bytes);
    Codec::Protobuf.encode_reply(&Reply::Pong { token: 7 }, &mut bytes);
    let tick = Tick { topic: "a.b".into(), sequence: 3, ..Tick::default() };
    assert_eq!(
        events(&bytes),
        [
            event::Event::Tick(tick),
            event::Event::Topic(Topic { name: "a.b".into(), topic_id: 5, epoch: 1 }),
            event::Event::Pong(Pong { token: 7 }),
        ]
    );
}

#[test]
fn every_reply_is_an_event_with_its_fields() {
    let skipped = |count| Skipped { topic: TopicId(5), name: "a.b", from: 8, to: 10, count };
    let range = |count| messages::Skipped { topic: "a.b".into(), from_sequence: 8, to_sequence: 10, count };
    let recovered = |reason| Reply::Recovered {
        topic_id: 5,
        name: "a.b",
        epoch: 9,
        sequence: 7,
        recovered: reason != Some(NotRecovered::TooOld),
        reason,
    };
    let answer = |recovered, reason: messages::NotRecovered| {
        event::Event::Recovered(Recovered {
            topic: "a.b".into(),
            epoch: 9,
            sequence: 7,
            recovered,
            reason: reason.into(),
        })
    };
    let unsubscribed = |id, code, text: &str| {
        event::Event::Unsubscribed(Unsubscribed { id, pattern: "a.>".into(), code, text: text.into() })
    };
    let source = |state| Reply::Source { name: "feed", state, since_ns: 3 };
    let state = |state: messages::SourceState| {
        event::Event::Source(Source { source: "feed".into(), state: state.into(), since_ns: 3 })
    };
    let welcome =
        |features| Reply::Welcome { request: 1, epoch: 9, session: 8, frame_bytes_max: 1024, features };
    let greeting = |features: &[&str]| {
        event::Event::Welcome(Welcome {
            id: 1,
            server: SERVER.into(),
            epoch: 9,
            session: 8,
            frame_bytes_max: 1024,
            features: features.iter().map(|&name| name.into()).collect(),
        })
    };
    for (reply, expected) in [
        (welcome(None), greeting(&[])),
        (welcome(Some(Features::COUNTS.union(Features::BATCHES))), greeting(&["counts", "batches"])),
        (
            Reply::Nodes { node: "n1", addresses: &["ws://h:1/ws", "h:2"] },
            event::Event::Nodes(Nodes {
                node: "n1".into(),
                addresses: vec!["ws://h:1/ws".into(), "h:2".into()],
            }),
        ),
        (
            Reply::Expires { request: 1, expires_in_s: 300 },
            event::Event::Expires(Expires { id: 1, expires_in_s: 300 }),
        ),
        (
            Reply::Subscribed { request: 2, pattern: "a.>", epoch: 9, since_us: None },
            event::Event::Subscribed(Subscribed { id: 2, pattern: "a.>".into() }),
        ),
        (Reply::Unsubscribed { request: 2, pattern: "a.>" }, unsubscribed(2, 0, "")),
        (
            Reply::Removed { pattern: "a.>", code: ErrorCode::NotAllowed, text: "no" },
            unsubscribed(0, 108, "no"),
        ),
        (recovered(None), answer(true, messages::NotRecovered::Unspecified)),
        (recovered(Some(NotRecovered::Epoch)), answer(true, messages::NotRecovered::Epoch)),
        (recovered(Some(NotRecovered::TooOld)), answer(false, messages::NotRecovered::TooOld)),
        (recovered(Some(NotRecovered::UnknownTopic)), answer(true, messages::NotRecovered::UnknownTopic)),
        (recovered(Some(NotRecovered::Ahead)), answer(true, messages::NotRecovered::Ahead)),
        (Reply::Conflated(skipped(None)), event::Event::Conflated(range(0))),
        (Reply::Gap(skipped(Some(2))), event::Event::Gap(range(2))),
        (
            Reply::Published {
                request: 4,
                topic: TopicId(5),
                name: "a.b",
                epoch: 9,
                sequence: 7,
                is_duplicate: true,
            },
            event::Event::Published(Published {
                id: 4,
                topic: "a.b".into(),
                epoch: 9,
                sequence: 7,
                duplicate: true,
            }),
        ),
        (source(SourceState::Up), state(messages::SourceState::Up)),
        (source(SourceState::Fallback), state(messages::SourceState::Fallback)),
        (source(SourceState::Down), state(messages::SourceState::Down)),
        (
            Reply::Stale { topic: TopicId(5), name: "a.b", is_stale: true, since_ns: 3 },
            event::Event::Stale(Stale { topic: "a.b".into(), stale: true, since_ns: 3 }),
        ),
        (Reply::Pong { token: u64::MAX }, event::Event::Pong(Pong { token: u64::MAX })),
        (
            Reply::Error { request: 4, code: ErrorCode::BadTopic, text: "bad" },
            event::Event::Error(Error { id: 4, code: 101, text: "bad".into() }),
        ),
        (
            Reply::Closing { code: 3001, reason: "bye", reconnect_after_ms: 5 },
            event::Event::Closing(Closing { code: 3001, reason: "bye".into(), reconnect_after_ms: 5 }),
        ),
    ] {
        let mut bytes = Vec::new();
        Codec::Protobuf.encode_reply(&reply, &mut bytes);
        assert_eq!(events(&bytes), [expected]);
    }
}
