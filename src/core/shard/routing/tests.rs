//! Tests of publishes to sinks, with one shard and a sink that the test plays.

use std::sync::Arc;

use crate::{
    config::Limits,
    ids::{SlotId, TenantId},
    limits::{REPLY_BYTES_MAX, SINK_STAGE_BYTES_MAX, answer_bytes_max},
    message_id::DIGEST_BYTES,
    metrics::counters::Counter,
    routes::{Outcome, Route, Routes, SinkConfig, SinkId},
    session::CloseReason,
    shard::{Action, ListenerKind},
    testing::{Driver, upgrade_request},
};
use tickcast_proto::{
    ErrorCode, Step, WireFormat,
    features::Features,
    frame::{self, HeaderFields, HelloParts, Kind},
    records::{ErrorRecord, Publish, Published, Routed, Settled},
};

const SINK: SinkId = SinkId(0);
const TIMEOUT_NS: u64 = 1_000_000_000;
const TOPIC: &str = "orders.a";

fn limits() -> Limits {
    let route = Route { tenant: TenantId::DEFAULT, topics: "orders.>".into(), sink: SINK };
    let sink = SinkConfig { name: "engine".into(), ack_timeout_ns: TIMEOUT_NS, takes_message_ids: false };
    Limits { routes: Arc::new(Routes { routes: vec![route], sinks: vec![sink] }), ..Limits::default() }
}

/// A tick that has left for the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Left {
    ticket: u64,
    key: String,
    payload: Vec<u8>,
    deadline_ns: u64,
}

/// What a session was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Published(u32, u64, u64),
    Error(u32, ErrorCode),
}

fn driver(features: Features) -> Driver {
    let mut driver = Driver::new(limits());
    accept(&mut driver, 0, features);
    driver
}

fn accept(driver: &mut Driver, slot: u32, features: Features) {
    let mut hello = Vec::new();
    frame::encode_hello(&mut hello, &HelloParts { request: 1, client: "", name: "test", features });
    driver.accept(slot, ListenerKind::Native, &hello);
    driver.sent.clear();
}

fn publish(driver: &mut Driver, slot: u32, topic: &str, request: u32) {
    let mut bytes = Vec::new();
    let record = Publish { request, key: 5, producer_time_ns: 9, ..Publish::default() };
    frame::encode_publish(&mut bytes, 0, 0, 0, record, topic, b"{\"n\":1}");
    driver.receive(slot, &bytes);
}

/// Takes the ticks that have left for the sink.
fn left(driver: &mut Driver) -> Vec<Left> {
    let taken = driver.shard.with_sink_stage(SINK, |stage| {
        let bytes = stage.waiting().to_vec();
        stage.consume(bytes.len());
        bytes
    });
    let (bytes, mut left) = (taken.unwrap(), Vec::new());
    let mut rest = &bytes[..];
    while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
        rest = &rest[used..];
        assert_eq!((frame.kind, frame.header.flags), (Kind::Routed, frame::FLAG_PAYLOAD_JSON));
        let record: Routed = frame.record().unwrap();
        assert_eq!((record.key, record.producer_time_ns), (5, 9));
        let (key, payload) = frame.payload().split_at(usize::from(record.topic_len));
        left.push(Left {
            ticket: frame.header.sequence,
            key: String::from_utf8(key.into()).unwrap(),
            payload: payload.into(),
            deadline_ns: record.deadline_ns,
        });
    }
    left
}

/// The sink answers.
fn settle(driver: &mut Driver, left: &Left, outcome: Outcome, sequence: u64) {
    let mut bytes = Vec::new();
    let fields = HeaderFields { sequence: left.ticket, ..HeaderFields::default() };
    let record = Settled { epoch: 77, sequence, outcome: outcome as u16, ..Settled::default() };
    frame::encode(&mut bytes, Kind::Settled, fields, &record, &[left.key.as_bytes()]);
    let Ok(Step::Complete(_, frame)) = frame::decode(&bytes, usize::MAX) else { panic!("a whole frame") };
    driver.shard.handle_settled(SINK, &frame, driver.now);
}

/// What a session has been told since the last call.
fn told(driver: &mut Driver, slot: u32) -> Vec<Told> {
    driver.turn();
    let (bytes, mut told) = (driver.take_sent(slot), Vec::new());
    let mut rest = &bytes[..];
    while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
        rest = &rest[used..];
        match frame.kind {
            Kind::Published => {
                let Published { epoch, request, is_duplicate } = frame.record().unwrap();
                assert_eq!((frame.text().unwrap(), frame.header.topic_id, is_duplicate), (TOPIC, 0, 0));
                told.push(Told::Published(request, epoch, frame.header.sequence));
            }
            Kind::Error => {
                let ErrorRecord { request, code, .. } = frame.record().unwrap();
                told.push(Told::Error(request, ErrorCode::from_wire(code).unwrap()));
            }
            _ => {}
        }
    }
    told
}

fn room_kept(driver: &Driver) -> usize {
    driver.shard.sessions.get(SlotId(0)).map_or(0, |session| session.answers_bytes as usize)
}

fn count(driver: &Driver, counter: Counter) -> u64 {
    driver.shard.counters().value(counter)
}

#[test]
fn routed_publish_goes_to_the_sink_and_is_acknowledged_with_the_position_of_the_engine() {
    let mut driver = driver(Features::PUBLISHED);
    publish(&mut driver, 0, TOPIC, 7);
    assert_eq!(told(&mut driver, 0), [], "not before the engine has it");
    let left = left(&mut driver);
    let deadline_ns = driver.now.monotonic_ns + TIMEOUT_NS;
    assert_eq!(left.len(), 1);
    assert_eq!(
        (&*left[0].key, &*left[0].payload, left[0].deadline_ns),
        (TOPIC, &b"{\"n\":1}"[..], deadline_ns)
    );
    assert_eq!(
        (room_kept(&driver), driver.shard.routed_are_settled()),
        (answer_bytes_max(TOPIC.len()), false)
    );
    settle(&mut driver, &left[0], Outcome::Confirmed, 41);
    assert_eq!(told(&mut driver, 0), [Told::Published(7, 77, 41)]);
    assert_eq!((room_kept(&driver), driver.shard.routed_are_settled()), (0, true));
    assert_eq!(count(&driver, Counter::TicksSequenced), 0, "it comes back through a source");
    assert_eq!((count(&driver, Counter::TicksRouted), count(&driver, Counter::TicksRoutedConfirmed)), (1, 1));
}

#[test]
fn publish_to_a_topic_without_a_route_goes_to_its_home() {
    let mut driver = driver(Features::PUBLISHED);
    publish(&mut driver, 0, "orders", 7);
    assert!(left(&mut driver).is_empty());
    assert_eq!(count(&driver, Counter::TicksSequenced), 1);
}

#[test]
fn failure_is_told_with_its_code_whether_or_not_a_success_would_be() {
    for features in [Features::PUBLISHED, Features::COUNTS] {
        for request in [0, 7] {
            let mut driver = driver(features);
            for outcome in Outcome::ALL {
                publish(&mut driver, 0, TOPIC, request);
                let left = left(&mut driver);
                settle(&mut driver, &left[0], outcome, 1);
                let expected = match outcome.error() {
                    Some((code, _)) => vec![Told::Error(request, code)],
                    None if request == 7 && features == Features::PUBLISHED => {
                        vec![Told::Published(7, 77, 1)]
                    }
                    None => vec![],
                };
                assert_eq!(told(&mut driver, 0), expected, "{outcome:?} {request}");
                assert_eq!(room_kept(&driver), 0);
            }
            let counted =
                [Counter::TicksRoutedConfirmed, Counter::TicksRefusedSink, Counter::TicksUnconfirmed];
            assert_eq!(counted.map(|counter| count(&driver, counter)), [1, 6, 1]);
        }
    }
}

#[test]
fn message_id_is_passed_on_only_to_an_engine_that_recognises_it() {
    let features = Features::PUBLISHED.union(Features::MESSAGE_IDS);
    for is_recognised in [false, true] {
        let mut limits = limits();
        let mut routes = (*limits.routes).clone();
        routes.sinks[0].takes_message_ids = is_recognised;
        limits.routes = Arc::new(routes);
        let mut driver = Driver::new(limits);
        accept(&mut driver, 0, features);
        let mut bytes = Vec::new();
        let record = Publish { request: 7, key: 5, producer_time_ns: 9, ..Publish::default() };
        frame::encode_publish_with(&mut bytes, HeaderFields::default(), record, TOPIC, b"m", b"{\"n\":1}");
        driver.receive(0, &bytes);
        driver.receive(0, &bytes);
        let left = left(&mut driver);
        if !is_recognised {
            assert_eq!(
                (told(&mut driver, 0), left.len()),
                (vec![Told::Error(7, ErrorCode::BadRequest); 2], 0)
            );
            continue;
        }
        assert_eq!(left.len(), 2, "the engine decides");
        let (id, payload) = left[0].payload.split_at(DIGEST_BYTES);
        assert_eq!((id, payload), (&left[1].payload[..DIGEST_BYTES], &b"{\"n\":1}"[..]));
        settle(&mut driver, &left[0], Outcome::Confirmed, 1);
        assert_eq!(told(&mut driver, 0), [Told::Published(7, 77, 1)]);
    }
}

#[test]
fn silent_sink_is_told_at_the_deadline_and_its_late_answer_is_not_a_second_one() {
    let mut driver = driver(Features::PUBLISHED);
    publish(&mut driver, 0, TOPIC, 7);
    let left = left(&mut driver);
    driver.pass(TIMEOUT_NS - 1);
    assert_eq!(told(&mut driver, 0), []);
    driver.pass(1);
    assert_eq!(told(&mut driver, 0), [Told::Error(7, ErrorCode::Unconfirmed)]);
    settle(&mut driver, &left[0], Outcome::Confirmed, 41);
    assert_eq!((told(&mut driver, 0), room_kept(&driver)), (vec![], 0));
    assert_eq!(count(&driver, Counter::SinkAnswersLate), 1);
    // Its place is used again, under another ticket.
    publish(&mut driver, 0, TOPIC, 8);
    settle(&mut driver, &left[0], Outcome::Confirmed, 41);
    assert_eq!(told(&mut driver, 0), []);
}

#[test]
fn answer_for_a_session_that_is_gone_is_dropped_and_its_failure_counted() {
    let mut driver = driver(Features::PUBLISHED);
    (7..9).for_each(|request| publish(&mut driver, 0, TOPIC, request));
    driver.shard.handle_error(SlotId(0), 104, driver.now);
    driver.turn();
    accept(&mut driver, 0, Features::PUBLISHED);
    let left = left(&mut driver);
    settle(&mut driver, &left[0], Outcome::Confirmed, 1);
    settle(&mut driver, &left[1], Outcome::Refused, 0);
    assert_eq!(told(&mut driver, 0), [], "the slot has another session");
    assert_eq!(count(&driver, Counter::TicksRefusedSink), 1);
}

#[test]
fn sink_that_takes_nothing_refuses_its_own_topics_and_makes_no_other_wait() {
    let mut driver = driver(Features::PUBLISHED);
    let mut slot = 1;
    while count(&driver, Counter::TicksRefusedSink) == 0 {
        accept(&mut driver, slot, Features::PUBLISHED);
        // As many as its room for answers allows.
        (0..300).for_each(|request| publish(&mut driver, slot, TOPIC, request + 1));
        slot += 1;
    }
    let staged = driver.shard.with_sink_stage(SINK, |stage| stage.waiting().len()).unwrap();
    assert!((SINK_STAGE_BYTES_MAX..SINK_STAGE_BYTES_MAX + 1_000).contains(&staged), "{staged}");
    driver.sent.clear();
    publish(&mut driver, 0, TOPIC, 7);
    publish(&mut driver, 0, "prices.a", 0);
    assert_eq!(told(&mut driver, 0), [Told::Error(7, ErrorCode::EngineUnavailable)], "at once");
    assert_eq!(count(&driver, Counter::TicksSequenced), 1);
}

#[test]
fn session_waits_once_the_room_for_its_answers_is_used_up() {
    let mut driver = driver(Features::COUNTS);
    let room = answer_bytes_max(TOPIC.len());
    let most = REPLY_BYTES_MAX / room + 1;
    (0..most + 100).for_each(|_| publish(&mut driver, 0, TOPIC, 0));
    driver.turn();
    let first = left(&mut driver);
    assert_eq!((first.len(), room_kept(&driver)), (most, most * room));
    assert!(driver.actions.contains(&Action::PauseReceive(SlotId(0))));
    first.iter().for_each(|left| settle(&mut driver, left, Outcome::Confirmed, 1));
    driver.turn();
    assert_eq!(left(&mut driver).len(), 100, "the rest follows, in order");
    assert!(driver.actions.contains(&Action::ResumeReceive(SlotId(0))));
}

#[test]
fn stopping_shard_answers_what_it_has_taken_before_it_closes() {
    let mut driver = driver(Features::PUBLISHED);
    publish(&mut driver, 0, TOPIC, 7);
    driver.shard.stop_input();
    driver.shard.begin_drain(driver.now.monotonic_ns + TIMEOUT_NS, driver.now);
    assert!(driver.shard.routed_are_settled());
    assert_eq!(told(&mut driver, 0), [Told::Error(7, ErrorCode::Unconfirmed)]);
}

#[test]
fn permissions_come_before_the_route() {
    let mut driver = driver(Features::PUBLISHED);
    driver.shard.set_read_only(SlotId(0));
    publish(&mut driver, 0, TOPIC, 7);
    assert_eq!(told(&mut driver, 0), [Told::Error(7, ErrorCode::NotAllowed)]);
    assert!(left(&mut driver).is_empty());
}

#[test]
fn raw_session_is_closed_when_its_publish_fails() {
    let mut driver = Driver::new(limits());
    let subprotocol = WireFormat::WEBSOCKET_RAW.subprotocol().unwrap();
    driver.accept(0, ListenerKind::Http, &upgrade_request("/ws", subprotocol));
    let text = br#"{"op":"publish","topic":"orders.a","data":{"n":1},"key":5,"ts":9}"#;
    driver.receive(0, &crate::testing::masked(0x81, text));
    let left = left(&mut driver);
    settle(&mut driver, &left[0], Outcome::Away, 0);
    let session = driver.shard.sessions.get(SlotId(0)).unwrap();
    let ending = session.ending.as_ref().unwrap();
    assert!(matches!(&ending.reason, CloseReason::BadRequest(text) if text.contains("cannot be reached")));
}

#[test]
fn a_drain_answers_publishes_over_http_in_a_way_that_no_client_repeats() {
    let mut driver = Driver::new(limits());
    driver.accept(0, ListenerKind::Http, b"");
    let lines = "{\"topic\":\"own.a\",\"data\":1}\n{\"topic\":\"orders.a\",\"data\":2}\n";
    driver.receive(
        0,
        format!(
            "POST /v1/publish HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{lines}\
             POST /v1/publish/orders.a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n3",
            lines.len()
        )
        .as_bytes(),
    );
    driver.accept(
        1,
        ListenerKind::Http,
        b"POST /v1/publish/orders.b HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n4",
    );
    driver.turn();
    driver.sent.clear();
    driver.shard.begin_drain(driver.now.monotonic_ns + 1_000_000_000, driver.now);
    driver.turn();
    let text = |slot| {
        let sent = driver.sent.iter().filter(|(to, _)| *to == slot).flat_map(|(_, bytes)| bytes.clone());
        String::from_utf8(sent.collect()).unwrap()
    };
    // The list contains the publish that has its sequence; the requests after it were not begun.
    let list = text(0);
    assert!(list.starts_with("HTTP/1.1 200 ") && list.matches("HTTP/1.1").count() == 1, "{list}");
    assert!(list.contains("\"topic\":\"own.a\"") && list.contains("\"code\":112"), "{list}");
    let single = text(1);
    assert!(single.starts_with("HTTP/1.1 504 ") && single.contains("\"code\":112"), "{single}");
    assert!(!single.contains("Retry-After"), "{single}");
}
