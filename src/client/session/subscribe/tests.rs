use super::*;
use crate::{
    Event, SessionError,
    session::tests::{ENCODINGS, open},
};
use tickcast_proto::{
    Step,
    codec::json,
    command::Command,
    frame::{self, FLAG_PAYLOAD_JSON, FLAG_SNAPSHOT, TickParts},
    framing::websocket::{DataType, Incoming, WebSocket, encode},
    ids::{Sequence, TopicId},
    records::TickTimes,
    reply::Reply,
    subscription::Policy,
};

const A: TopicId = TopicId(5);

/// What a server says of topic `a`, in one encoding.
struct Say(Encoding, Vec<u8>);

impl Say {
    fn new(encoding: Encoding) -> Say {
        let mut say = Say(encoding, Vec::new());
        say.reply(Reply::Welcome { request: 1, epoch: 3, session: 2, frame_bytes_max: 1 << 18 });
        say
    }

    fn reply(&mut self, reply: Reply<'_>) -> &mut Say {
        reply.encode(self.0, &mut self.1);
        self
    }

    fn message(&mut self, native: impl Fn(&mut Vec<u8>), as_json: impl Fn(&mut Vec<u8>)) -> &mut Say {
        let mut body = Vec::new();
        match self.0 {
            Encoding::Native => native(&mut self.1),
            Encoding::WebSocketJson => {
                as_json(&mut body);
                encode(&mut self.1, DataType::Text, &body);
            }
            _ => {
                native(&mut body);
                encode(&mut self.1, DataType::Binary, &body);
            }
        }
        self
    }

    fn topic(&mut self, epoch: u64) -> &mut Say {
        self.message(
            |out| frame::encode_topic(out, A, epoch, "a"),
            |out| json::encode_topic(out, A, epoch, "a"),
        )
    }

    fn tick(&mut self, sequence: u64, key: u64, flags: u8) -> &mut Say {
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

    fn recovered(&mut self, epoch: u64, sequence: u64, recovered: bool) -> &mut Say {
        self.reply(Reply::Recovered { topic_id: 5, name: "a", epoch, sequence, recovered })
    }
}

/// Events in short.
fn short(event: &Event<'_>) -> String {
    match *event {
        Event::Tick(tick) => {
            let (what, sequence) = (if tick.snapshot { "snapshot" } else { "tick" }, tick.sequence.0);
            assert_eq!(tick.topic, "a");
            format!("{what} {}:{sequence} key {} missed {}", tick.epoch, tick.key, tick.missed)
        }
        Event::Conflated { topic, epoch, from, to, .. } => format!("conflated {topic} {epoch}:{from}-{to}"),
        Event::Gap { topic, epoch, from, to, .. } => format!("gap {topic} {epoch}:{from}-{to}"),
        Event::Recovered { topic, place, epoch, sequence, recovered, .. } => {
            format!("recovered {topic} {}:{} {epoch}:{sequence} {recovered}", place.epoch, place.sequence)
        }
        Event::Topic { name, .. } => format!("topic {name}"),
        Event::Welcome { .. } => "welcome".into(),
        other => format!("{other:?}"),
    }
}

/// The events after the welcome of what is said to an open session, byte by byte.
fn events(session: &mut Session, response: &[u8], say: &Say) -> Result<Vec<String>, SessionError> {
    let mut events = Vec::new();
    for &byte in response.iter().chain(&say.1) {
        session.handle_bytes(&[byte]);
        while let Some(event) = session.poll_event()? {
            events.push(short(&event));
        }
    }
    assert_eq!(events.remove(0), "welcome");
    Ok(events)
}

/// The commands a session sends after its hello, as the server reads them.
fn commands(session: &mut Session) -> Vec<String> {
    let mut commands = Vec::new();
    let bytes = session.output().to_vec();
    session.output_written(bytes.len());
    let mut frames = |mut bytes: &[u8]| {
        while let Ok(Step::Complete(used, frame)) = frame::decode(bytes, 1 << 18) {
            commands.push(format!("{:?}", Command::from_frame(&frame).unwrap()));
            bytes = &bytes[used..];
        }
        assert!(bytes.is_empty(), "a message ends with a frame");
    };
    if session.encoding() == Encoding::Native {
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

fn resumed(encoding: Encoding) -> (Session, Vec<u8>) {
    let (mut session, response) = open(encoding);
    session.resume("a", Position { epoch: 3, sequence: 50 }).unwrap();
    let options = SubscribeOptions { from: From::Resume, ..SubscribeOptions::default() };
    session.subscribe_with(">", &options).unwrap();
    (session, response)
}

#[test]
fn what_is_left_out_is_an_event_before_the_next_tick_in_every_encoding() {
    for encoding in ENCODINGS {
        let (mut session, response) = open(encoding);
        let mut say = Say::new(encoding);
        say.topic(3).tick(1, 7, 0).reply(Reply::Conflated { topic: A, name: "a", from: 2, to: 5 });
        say.tick(5, 0, 0).reply(Reply::Gap { topic: A, name: "a", from: 6, to: 7 }).tick(8, u64::MAX, 0);
        let expected = [
            "topic a",
            "tick 3:1 key 7 missed 0",
            "conflated a 3:2-5",
            "tick 3:5 key 0 missed 0",
            "gap a 3:6-7",
            "tick 3:8 key 18446744073709551615 missed 1",
        ];
        assert_eq!(events(&mut session, &response, &say).unwrap(), expected, "{encoding:?}");
        let (_, topic) = session.topics().next().unwrap();
        assert_eq!((topic.ticks, topic.conflated, topic.gap, topic.missed), (3, 3, 1, 1));
    }
}

#[test]
fn a_recovered_place_goes_on_after_its_tick_in_every_encoding() {
    for encoding in ENCODINGS {
        for topic_first in [true, false] {
            let (mut session, response) = resumed(encoding);
            let mut say = Say::new(encoding);
            if topic_first {
                say.topic(3).recovered(3, 52, true);
            } else {
                say.recovered(3, 52, true).topic(3);
            }
            say.tick(51, 0, 0).tick(53, 0, 0);
            let told = events(&mut session, &response, &say).unwrap();
            assert!(told.contains(&"recovered a 3:50 3:52 true".into()), "{told:?}");
            assert_eq!(told[2..], ["tick 3:51 key 0 missed 0", "tick 3:53 key 0 missed 1"], "{encoding:?}");

            let (mut session, response) = resumed(encoding);
            let mut say = Say::new(encoding);
            say.topic(3).recovered(3, 52, true).tick(50, 0, 0);
            let overlap = events(&mut session, &response, &say).unwrap_err();
            assert!(matches!(overlap, SessionError::OutOfOrder { previous: 50, sequence: 50, .. }));
        }
    }
}

#[test]
fn what_a_snapshot_leaves_out_is_a_gap_before_each_of_its_ticks() {
    for encoding in ENCODINGS {
        let (mut session, response) = resumed(encoding);
        let mut say = Say::new(encoding);
        say.topic(3).recovered(3, 60, false).tick(30, 1, FLAG_SNAPSHOT).tick(55, 2, FLAG_SNAPSHOT);
        say.tick(60, 3, FLAG_SNAPSHOT).tick(61, 0, 0);
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
        assert_eq!(events(&mut session, &response, &say).unwrap(), expected, "{encoding:?}");
    }
}

#[test]
fn a_place_of_another_epoch_is_told_and_counts_anew_in_every_encoding() {
    for encoding in ENCODINGS {
        let (mut session, response) = resumed(encoding);
        let mut say = Say::new(encoding);
        say.topic(4).recovered(4, 2, false).tick(2, 0, FLAG_SNAPSHOT).tick(3, 0, 0);
        let expected = [
            "topic a",
            "recovered a 3:50 4:2 false",
            "gap a 4:1-2",
            "snapshot 4:2 key 0 missed 0",
            "tick 4:3 key 0 missed 0",
        ];
        assert_eq!(events(&mut session, &response, &say).unwrap(), expected, "{encoding:?}");
    }
}

#[test]
fn a_topic_that_is_no_more_is_told_as_not_recovered() {
    for encoding in ENCODINGS {
        let (mut session, response) = resumed(encoding);
        let mut say = Say::new(encoding);
        say.reply(Reply::Recovered { topic_id: 0, name: "a", epoch: 4, sequence: 0, recovered: false });
        say.topic(4).tick(1, 0, 0);
        let expected = ["recovered a 3:50 4:0 false", "topic a", "tick 4:1 key 0 missed 0"];
        assert_eq!(events(&mut session, &response, &say).unwrap(), expected, "{encoding:?}");
    }
}

#[test]
fn places_travel_as_each_encoding_has_them() {
    let place = |epoch, sequence| Position { epoch, sequence };
    for encoding in [Encoding::Native, Encoding::WebSocketRkyv, Encoding::WebSocketJson] {
        let (mut session, response) = open(encoding);
        let say = Say::new(encoding);
        events(&mut session, &response, &say).unwrap();
        session.resume("a", place(3, 50)).unwrap();
        session.resume("old", place(2, 9)).unwrap();
        let delivery = Delivery { policy: Some(Policy::Drop), interval_us: 0 };
        session.subscribe_with(">", &SubscribeOptions { delivery, from: From::Resume }).unwrap();
        session.subscribe_with("x", &SubscribeOptions { delivery, from: From::Resume }).unwrap();
        session.update("x", Delivery::default()).unwrap();
        let sent = commands(&mut session);
        let position = "Position { epoch: 3, sequence: 50 }";
        if encoding == Encoding::WebSocketJson {
            assert!(sent[1].contains("from: Positions(3, {\"a\": 50})"), "one epoch: {sent:?}");
            assert!(sent[2].contains("from: Positions(3, {})"), "used up: {sent:?}");
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
fn a_place_that_json_cannot_name_is_told_by_the_session() {
    let (mut session, response) = open(Encoding::WebSocketJson);
    session.handle_bytes(&response);
    session.resume("a", Position { epoch: 2, sequence: 9 }).unwrap();
    session.resume("b", Position { epoch: 3, sequence: 1 }).unwrap();
    let options = SubscribeOptions { from: From::Resume, ..SubscribeOptions::default() };
    session.subscribe_with(">", &options).unwrap();
    let mut say = Say::new(Encoding::WebSocketJson);
    say.topic(3).tick(1, 0, 0);
    let expected = ["topic a", "recovered a 2:9 3:0 false", "tick 3:1 key 0 missed 0"];
    assert_eq!(events(&mut session, &[], &say).unwrap(), expected);
}

#[test]
fn many_places_leave_in_messages_that_every_server_takes() {
    let (mut session, response) = open(Encoding::WebSocketRkyv);
    events(&mut session, &response, &Say::new(Encoding::WebSocketRkyv)).unwrap();
    for topic in 0..RESUME_POSITIONS_MAX {
        session.resume(&format!("topic.{topic}"), Position { epoch: 3, sequence: 1 }).unwrap();
    }
    let refused = session.resume("one.more", Position::default());
    assert_eq!(refused, Err(RequestError::TooManyPlaces));
    let options = SubscribeOptions { from: From::Resume, ..SubscribeOptions::default() };
    session.subscribe_with(">", &options).unwrap();
    // The decoder there refuses messages past 256 KiB.
    assert_eq!(commands(&mut session).len(), 1 + RESUME_POSITIONS_MAX + 1);
}

#[test]
fn a_raw_session_begins_with_the_newest_where_others_resume() {
    let (mut session, response) = open(Encoding::WebSocketRaw);
    session.handle_bytes(&response);
    assert_eq!(session.poll_event(), Ok(None));
    session.resume("a", Position { epoch: 3, sequence: 50 }).unwrap();
    for from in [From::Resume, From::Position(Position { epoch: 3, sequence: 50 })] {
        session.subscribe_with("a", &SubscribeOptions { from, ..SubscribeOptions::default() }).unwrap();
        let sent = commands(&mut session);
        assert!(sent.len() == 1 && sent[0].contains("from: Latest"), "{sent:?}");
    }
}
