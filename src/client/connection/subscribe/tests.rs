use super::*;
use crate::{
    Event, ProtocolError,
    connection::tests::{ENCODINGS, open},
};
use tickcast_proto::{
    ErrorCode, Step,
    codec::MessageType,
    codec::json,
    command::Command,
    frame::{self, FLAG_PAYLOAD_JSON, FLAG_SNAPSHOT, TickParts},
    framing::websocket::{Incoming, WebSocket, encode},
    ids::{Sequence, TopicId},
    records::TickTimes,
    reply::{Reply, Skipped},
    subscription::{Moment, Policy},
};

const A: TopicId = TopicId(5);

/// What a server sends about topic `a`, in one encoding.
struct Script(WireFormat, Vec<u8>);

impl Script {
    fn new(encoding: WireFormat) -> Script {
        let mut script = Script(encoding, Vec::new());
        script.reply(Reply::Welcome {
            request: 1,
            epoch: 3,
            session: 2,
            frame_bytes_max: 1 << 18,
            features: None,
        });
        script
    }

    fn reply(&mut self, reply: Reply<'_>) -> &mut Script {
        reply.encode(self.0, &mut self.1);
        self
    }

    fn message(&mut self, native: impl Fn(&mut Vec<u8>), as_json: impl Fn(&mut Vec<u8>)) -> &mut Script {
        let mut body = Vec::new();
        match self.0 {
            WireFormat::TCP_NATIVE => native(&mut self.1),
            WireFormat::WEBSOCKET_JSON => {
                as_json(&mut body);
                encode(&mut self.1, MessageType::Text, &body);
            }
            _ => {
                native(&mut body);
                encode(&mut self.1, MessageType::Binary, &body);
            }
        }
        self
    }

    fn topic(&mut self, epoch: u64) -> &mut Script {
        self.message(
            |out| frame::encode_topic(out, A, epoch, "a"),
            |out| json::encode_topic(out, A, epoch, "a"),
        )
    }

    fn tick(&mut self, sequence: u64, key: u64, flags: u8) -> &mut Script {
        let parts = TickParts {
            flags: flags | FLAG_PAYLOAD_JSON,
            times: TickTimes { producer_time_ns: 70, ingest_time_ns: 0 },
            key,
            payload: b"1",
            ..TickParts::default()
        };
        self.message(
            |out| {
                frame::encode_tick(out, A, Sequence(sequence), &parts);
            },
            |out| json::encode_tick(out, &json::tick_prefix("a"), sequence, &parts),
        )
    }

    fn recovered(&mut self, epoch: u64, sequence: u64, recovered: bool) -> &mut Script {
        self.reply(Reply::Recovered { topic_id: 5, name: "a", epoch, sequence, recovered, reason: None })
    }
}

/// An event in short form.
fn short(event: &Event<'_>) -> String {
    match *event {
        Event::Tick(tick) => {
            let (what, sequence) = (if tick.snapshot { "snapshot" } else { "tick" }, tick.sequence.0);
            assert_eq!(tick.topic, "a");
            format!("{what} {}:{sequence} key {} missed {}", tick.epoch, tick.key, tick.missed)
        }
        Event::Conflated { topic, epoch, from, to, .. } => format!("conflated {topic} {epoch}:{from}-{to}"),
        Event::Gap { topic, epoch, from, to, .. } => format!("gap {topic} {epoch}:{from}-{to}"),
        Event::Recovered { topic, requested, epoch, sequence, recovered, .. } => {
            let Position { epoch: of, sequence: after } = requested;
            format!("recovered {topic} {of}:{after} {epoch}:{sequence} {recovered}")
        }
        Event::Topic { name, .. } => format!("topic {name}"),
        Event::Welcome { .. } => "welcome".into(),
        other => format!("{other:?}"),
    }
}

/// The events after the welcome of an open connection that receives the script byte by byte.
fn events(
    connection: &mut Connection,
    response: &[u8],
    script: &Script,
) -> Result<Vec<String>, ProtocolError> {
    let mut events = Vec::new();
    for &byte in response.iter().chain(&script.1) {
        connection.handle_bytes(&[byte]);
        while let Some(event) = connection.poll_event()? {
            events.push(short(&event));
        }
    }
    assert_eq!(events.remove(0), "welcome");
    Ok(events)
}

/// The commands a connection sends, as the server decodes them.
fn commands(connection: &mut Connection) -> Vec<String> {
    let mut commands = Vec::new();
    let bytes = connection.poll_transmit().to_vec();
    connection.handle_transmitted(bytes.len());
    let mut frames = |mut bytes: &[u8]| {
        while let Ok(Step::Complete(used, frame)) = frame::decode(bytes, 1 << 18) {
            commands.push(format!("{:?}", Command::from_frame(&frame).unwrap()));
            bytes = &bytes[used..];
        }
        assert!(bytes.is_empty(), "a message ends with a frame");
    };
    if connection.encoding() == WireFormat::TCP_NATIVE {
        frames(&bytes);
        return commands;
    }
    let mut server = WebSocket::server(1 << 18);
    let mut at = 0;
    let mut texts = Vec::new();
    while let Step::Complete(used, incoming) = server.step(&bytes[at..], &mut Vec::new()).unwrap() {
        at += used;
        match incoming {
            Incoming::Binary(bytes) => frames(&bytes),
            Incoming::Text(text) => texts.push(format!("{:?}", json::decode(&text).unwrap())),
            other => panic!("{other:?}"),
        }
    }
    commands.extend(texts);
    commands
}

fn resumed(encoding: WireFormat) -> (Connection, Vec<u8>) {
    let (mut connection, response) = open(encoding);
    connection.resume("a", Position { epoch: 3, sequence: 50 }).unwrap();
    let options = SubscribeOptions { from: StartPosition::Resume, ..SubscribeOptions::default() };
    connection.subscribe_with(">", &options).unwrap();
    (connection, response)
}

#[test]
fn skipped_range_is_an_event_before_the_next_tick_in_every_encoding() {
    for encoding in ENCODINGS {
        let (mut connection, response) = open(encoding);
        let mut script = Script::new(encoding);
        script.topic(3).tick(1, 7, 0).reply(Reply::Conflated(Skipped {
            topic: A,
            name: "a",
            from: 2,
            to: 5,
            count: None,
        }));
        script
            .tick(5, 0, 0)
            .reply(Reply::Gap(Skipped { topic: A, name: "a", from: 6, to: 7, count: None }))
            .tick(8, u64::MAX, 0);
        let expected = [
            "topic a",
            "tick 3:1 key 7 missed 0",
            "conflated a 3:2-5",
            "tick 3:5 key 0 missed 0",
            "gap a 3:6-7",
            "tick 3:8 key 18446744073709551615 missed 1",
        ];
        assert_eq!(events(&mut connection, &response, &script).unwrap(), expected, "{encoding:?}");
        let (_, topic) = connection.topics().next().unwrap();
        assert_eq!((topic.ticks, topic.conflated, topic.gap, topic.missed), (3, 3, 1, 1));
    }
}

#[test]
fn recovered_position_continues_after_its_tick_in_every_encoding() {
    for encoding in ENCODINGS {
        for topic_first in [true, false] {
            let (mut connection, response) = resumed(encoding);
            let mut script = Script::new(encoding);
            if topic_first {
                script.topic(3).recovered(3, 52, true);
            } else {
                script.recovered(3, 52, true).topic(3);
            }
            script.tick(51, 0, 0).tick(53, 0, 0);
            let got = events(&mut connection, &response, &script).unwrap();
            assert!(got.contains(&"recovered a 3:50 3:52 true".into()), "{got:?}");
            assert_eq!(got[2..], ["tick 3:51 key 0 missed 0", "tick 3:53 key 0 missed 1"], "{encoding:?}");

            let (mut connection, response) = resumed(encoding);
            let mut script = Script::new(encoding);
            script.topic(3).recovered(3, 52, true).tick(50, 0, 0);
            let overlap = events(&mut connection, &response, &script).unwrap_err();
            assert!(matches!(overlap, ProtocolError::OutOfOrder { previous: 50, sequence: 50, .. }));
        }
    }
}

#[test]
fn snapshot_announces_gaps_before_each_of_its_ticks() {
    for encoding in ENCODINGS {
        let (mut connection, response) = resumed(encoding);
        let mut script = Script::new(encoding);
        script.topic(3).recovered(3, 60, false).tick(30, 1, FLAG_SNAPSHOT).tick(55, 2, FLAG_SNAPSHOT);
        script.tick(60, 3, FLAG_SNAPSHOT).tick(61, 0, 0);
        let expected = [
            "topic a",
            "recovered a 3:50 3:60 false",
            "snapshot 3:30 key 1 missed 0",
            "gap a 3:51-55",
            "snapshot 3:55 key 2 missed 0",
            "gap a 3:56-60",
            "snapshot 3:60 key 3 missed 0",
            "tick 3:61 key 0 missed 0",
        ];
        assert_eq!(events(&mut connection, &response, &script).unwrap(), expected, "{encoding:?}");
    }
}

#[test]
fn position_of_another_epoch_is_reported_and_counting_restarts_in_every_encoding() {
    for encoding in ENCODINGS {
        let (mut connection, response) = resumed(encoding);
        let mut script = Script::new(encoding);
        script.topic(4).recovered(4, 2, false).tick(2, 0, FLAG_SNAPSHOT).tick(3, 0, 0);
        let expected = [
            "topic a",
            "recovered a 3:50 4:2 false",
            "gap a 4:1-2",
            "snapshot 4:2 key 0 missed 0",
            "tick 4:3 key 0 missed 0",
        ];
        assert_eq!(events(&mut connection, &response, &script).unwrap(), expected, "{encoding:?}");
    }
}

#[test]
fn vanished_topic_is_reported_as_not_recovered() {
    for encoding in ENCODINGS {
        let (mut connection, response) = resumed(encoding);
        let mut script = Script::new(encoding);
        script.reply(Reply::Recovered {
            topic_id: 0,
            name: "a",
            epoch: 4,
            sequence: 0,
            recovered: false,
            reason: None,
        });
        script.topic(4).tick(1, 0, 0);
        let expected = ["recovered a 3:50 4:0 false", "topic a", "tick 4:1 key 0 missed 0"];
        assert_eq!(events(&mut connection, &response, &script).unwrap(), expected, "{encoding:?}");
    }
}

#[test]
fn each_encoding_carries_resume_positions() {
    let at = |epoch, sequence| Position { epoch, sequence };
    for encoding in [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON] {
        let (mut connection, response) = open(encoding);
        let script = Script::new(encoding);
        events(&mut connection, &response, &script).unwrap();
        connection.resume("a", at(3, 50)).unwrap();
        connection.resume("old", at(2, 9)).unwrap();
        let delivery = Delivery { policy: Some(Policy::Drop), interval_us: 0 };
        connection.subscribe_with(">", &SubscribeOptions { delivery, from: StartPosition::Resume }).unwrap();
        connection.subscribe_with("x", &SubscribeOptions { delivery, from: StartPosition::Resume }).unwrap();
        connection.update("x", Delivery::default()).unwrap();
        let sent = commands(&mut connection);
        let position = "Position { epoch: 3, sequence: 50 }";
        if encoding == WireFormat::WEBSOCKET_JSON {
            assert!(
                sent[1].contains(&format!("from: AfterEach({{\"a\": {position}}})")),
                "one epoch: {sent:?}"
            );
            assert!(sent[2].contains("from: AfterEach({})"), "sent once: {sent:?}");
        } else {
            let shift = sent.len() - 5;
            assert_eq!(sent[shift], format!("Resume {{ topic: \"a\", position: {position} }}"));
            assert!(sent[shift + 1].starts_with("Resume { topic: \"old\""));
            assert!(sent[shift + 2].contains("from: Resume") && sent[shift + 3].contains("from: Resume"));
        }
        assert!(sent.last().unwrap().starts_with("Update"), "{sent:?}");
    }
}

#[test]
fn json_carries_an_epoch_per_position_to_a_server_that_grants_it() {
    let encoding = WireFormat::WEBSOCKET_JSON;
    let (mut connection, response) = open(encoding);
    let mut script = Script(encoding, Vec::new());
    let features = Some(Features::POSITIONS);
    script.reply(Reply::Welcome { request: 1, epoch: 3, session: 2, frame_bytes_max: 1 << 18, features });
    events(&mut connection, &response, &script).unwrap();
    connection.resume("old", Position { epoch: 2, sequence: 9 }).unwrap();
    let options = SubscribeOptions { from: StartPosition::Resume, ..SubscribeOptions::default() };
    connection.subscribe_with(">", &options).unwrap();
    let sent = commands(&mut connection);
    let from = "from: AfterEach({\"old\": Position { epoch: 2, sequence: 9 }})";
    assert!(sent[1].contains(from), "{sent:?}");
}

#[test]
fn a_moment_is_sent_only_to_a_server_that_knows_moments() {
    let moment = Moment { epoch: 3, since_us: 70 };
    let given = [("a".into(), Position { epoch: 2, sequence: 9 })].into();
    let options =
        SubscribeOptions { from: StartPosition::Since(given, moment), ..SubscribeOptions::default() };
    let known = Features::SINCE.union(Features::POSITIONS);
    for encoding in [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON] {
        for features in [Some(known), Some(Features::POSITIONS), None] {
            let (mut connection, response) = open(encoding);
            assert_eq!(connection.subscribe_with("early", &options), Err(RequestError::SinceNotGranted));
            let mut script = Script(encoding, Vec::new());
            let (epoch, frame_bytes_max) = (3, 1 << 18);
            script.reply(Reply::Welcome { request: 1, epoch, session: 2, frame_bytes_max, features });
            events(&mut connection, &response, &script).unwrap();
            let sent = connection.subscribe_with(">", &options);
            if features != Some(known) {
                assert_eq!(sent, Err(RequestError::SinceNotGranted), "{encoding:?} {features:?}");
                assert_eq!(commands(&mut connection).len(), 1, "the hello only");
                continue;
            }
            let sent = commands(&mut connection);
            let position = "\"a\": Position { epoch: 2, sequence: 9 }";
            let (positions, rest) = match encoding {
                WireFormat::WEBSOCKET_JSON => (position, 2),
                _ => ("", 3),
            };
            assert_eq!(sent.len(), rest, "{sent:?}");
            let from = format!("from: Since({{{positions}}}, {moment:?})");
            assert!(sent[rest - 1].contains(&from), "{sent:?}");
            assert!(sent[0].contains("features: Some") || sent[0].contains("Features("), "{sent:?}");
        }
    }
}

#[test]
fn a_json_hello_that_the_server_refuses_is_repeated_without_features() {
    let encoding = WireFormat::WEBSOCKET_JSON;
    let (mut connection, response) = open(encoding);
    let mut script = Script(encoding, Vec::new());
    let code = ErrorCode::BadRequest;
    script.reply(Reply::Error { request: 1, code, text: "unknown field `features`" });
    connection.handle_bytes(&[response, script.1].concat());
    assert_eq!(connection.poll_event(), Ok(None));
    let sent = commands(&mut connection);
    assert!(sent[0].contains("positions") || sent[0].contains("Features("), "{sent:?}");
    assert!(sent[1].contains("request: 1") && sent[1].contains("features: None"), "{sent:?}");
    assert_eq!(sent.len(), 2);
    events(&mut connection, &[], &Script::new(encoding)).unwrap();
    assert!(connection.is_open());
}

#[test]
fn position_that_json_cannot_carry_is_reported_by_the_connection() {
    let (mut connection, response) = open(WireFormat::WEBSOCKET_JSON);
    connection.handle_bytes(&response);
    connection.resume("a", Position { epoch: 2, sequence: 9 }).unwrap();
    connection.resume("b", Position { epoch: 3, sequence: 1 }).unwrap();
    let options = SubscribeOptions { from: StartPosition::Resume, ..SubscribeOptions::default() };
    connection.subscribe_with(">", &options).unwrap();
    let mut script = Script::new(WireFormat::WEBSOCKET_JSON);
    script.topic(3).tick(1, 0, 0);
    let expected = ["topic a", "recovered a 2:9 3:0 false", "tick 3:1 key 0 missed 0"];
    assert_eq!(events(&mut connection, &[], &script).unwrap(), expected);
}

#[test]
fn many_positions_are_split_into_messages_that_every_server_accepts() {
    let (mut connection, response) = open(WireFormat::WEBSOCKET_NATIVE);
    events(&mut connection, &response, &Script::new(WireFormat::WEBSOCKET_NATIVE)).unwrap();
    for topic in 0..RESUME_POSITIONS_MAX {
        connection.resume(&format!("topic.{topic}"), Position { epoch: 3, sequence: 1 }).unwrap();
    }
    let rejected = connection.resume("one.more", Position::default());
    assert_eq!(rejected, Err(RequestError::TooManyPositions));
    let options = SubscribeOptions { from: StartPosition::Resume, ..SubscribeOptions::default() };
    connection.subscribe_with(">", &options).unwrap();
    // The decoder in `commands` rejects messages above 256 KiB.
    assert_eq!(commands(&mut connection).len(), 1 + RESUME_POSITIONS_MAX + 1);
}

#[test]
fn raw_connection_starts_with_the_last_tick_instead_of_resuming() {
    let (mut connection, response) = open(WireFormat::WEBSOCKET_RAW);
    connection.handle_bytes(&response);
    assert_eq!(connection.poll_event(), Ok(None));
    connection.resume("a", Position { epoch: 3, sequence: 50 }).unwrap();
    for from in [StartPosition::Resume, StartPosition::After(Position { epoch: 3, sequence: 50 })] {
        connection.subscribe_with("a", &SubscribeOptions { from, ..SubscribeOptions::default() }).unwrap();
        let sent = commands(&mut connection);
        assert!(sent.len() == 1 && sent[0].contains("from: Latest"), "{sent:?}");
    }
}
