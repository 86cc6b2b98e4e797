//! Tests of compressed messages.

use crate::{
    config::Limits,
    ids::SlotId,
    limits::REPLY_BYTES_MAX,
    metrics::counters::Counter,
    shard::ListenerKind,
    testing::{Driver, frame, masked, messages as frames_of, upgrade_request},
};
use tickcast_proto::{
    Step,
    codec::MessageType,
    frame::{self, Kind},
    framing::websocket::{Incoming, WebSocket, deflate::Deflater},
    records::Token,
    subscription::Rules,
};

const PUBLISHER: u32 = 0;
const READERS: std::ops::Range<u32> = 1..6;
/// JSON that shrinks.
const DATA: &str =
    r#"{"bids":[[100.5,3],[100.4,3],[100.3,3],[100.2,3]],"asks":[[100.6,3],[100.7,3],[100.8,3]]}"#;

/// A shard that compresses all topics but those below `secret.`
fn driver() -> Driver {
    let deflate = Rules { rules: vec![("secret.>".into(), false)], default: true };
    let mut driver = Driver::new(Limits { deflate, deflate_bytes_min: 100, ..Limits::default() });
    accept(&mut driver, PUBLISHER);
    driver
}

/// Opens a WebSocket whose client offers compression.
fn accept(driver: &mut Driver, slot: u32) {
    accept_as(driver, slot, "tickcast.v1.json");
}

fn accept_as(driver: &mut Driver, slot: u32, protocol: &str) {
    let request = String::from_utf8(upgrade_request("/ws", protocol)).unwrap();
    let offer = "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    driver.accept(slot, ListenerKind::Http, request.replacen("\r\n\r\n", offer, 1).as_bytes());
    driver.sent.clear();
}

fn send(driver: &mut Driver, slot: u32, text: &str) {
    driver.receive(slot, &masked(0x81, text.as_bytes()));
}

fn publish(driver: &mut Driver, topic: &str) {
    send(driver, PUBLISHER, &format!(r#"{{"op":"publish","topic":"{topic}","data":{DATA}}}"#));
}

fn finish(driver: &mut Driver) {
    driver.turn();
    while driver.shard.is_busy() {
        driver.turn();
    }
    // The counters of a turn are updated at the beginning of the next one.
    driver.turn();
}

/// The messages sent to a slot: whether each is compressed, and its text.
fn messages(driver: &Driver, slot: u32) -> Vec<(bool, String)> {
    let sent: Vec<u8> =
        driver.sent.iter().filter(|(to, _)| *to == slot).flat_map(|(_, bytes)| bytes.clone()).collect();
    let (mut client, mut at, mut messages) = (WebSocket::client(1 << 20), 0, Vec::new());
    client.inflates = true;
    while let Step::Complete(used, Incoming::Text(text)) = client.step(&sent[at..], &mut Vec::new()).unwrap()
    {
        messages.push((sent[at] & 0x40 != 0, text.as_str().to_owned()));
        at += used;
    }
    assert_eq!(at, sent.len());
    messages
}

fn deflated(driver: &Driver) -> u64 {
    driver.shard.counters().value(Counter::MessagesDeflated)
}

#[test]
fn a_tick_is_compressed_once_for_all_sessions_and_history_for_none() {
    let mut driver = driver();
    for slot in READERS {
        accept(&mut driver, slot);
        send(&mut driver, slot, r#"{"op":"subscribe","topics":["a.>"]}"#);
    }
    finish(&mut driver);
    publish(&mut driver, "a.x");
    finish(&mut driver);
    driver.sent.clear();
    let before = deflated(&driver);
    publish(&mut driver, "a.x");
    finish(&mut driver);
    assert_eq!(deflated(&driver) - before, 1);
    for slot in READERS {
        let messages = messages(&driver, slot);
        assert!(matches!(&messages[..], [(true, text)] if text.contains(DATA)), "{messages:?}");
    }
    accept(&mut driver, 9);
    send(
        &mut driver,
        9,
        r#"{"op":"subscribe","topics":["a.x"],"from":{"positions":{"a.x":{"epoch":0,"sequence":0}}}}"#,
    );
    finish(&mut driver);
    let messages = messages(&driver, 9);
    assert!(messages.iter().any(|(_, text)| text.contains(DATA)), "{messages:?}");
    assert!(messages.iter().all(|(is_deflated, _)| !is_deflated), "{messages:?}");
    assert_eq!(deflated(&driver) - before, 1);
}

#[test]
fn a_turn_of_ticks_is_one_compressed_message_for_all_sessions_that_ask_for_batches() {
    let mut driver = driver();
    for slot in READERS {
        accept(&mut driver, slot);
        send(&mut driver, slot, r#"{"op":"hello","features":["batches"]}"#);
        send(&mut driver, slot, r#"{"op":"subscribe","topics":["a.>"]}"#);
    }
    finish(&mut driver);
    publish(&mut driver, "a.x");
    finish(&mut driver);
    driver.sent.clear();
    let before = deflated(&driver);
    (0..10).for_each(|_| publish(&mut driver, "a.x"));
    finish(&mut driver);
    assert_eq!(deflated(&driver) - before, 1);
    for slot in READERS {
        let messages = messages(&driver, slot);
        assert!(
            matches!(&messages[..], [(true, text)] if text.matches(DATA).count() == 10 && text.ends_with("}]")),
            "{messages:?}"
        );
    }
}

#[test]
fn topics_that_are_switched_off_are_plain_and_so_are_messages_with_them() {
    for hello in ["", r#"{"op":"hello","features":["batches"]}"#] {
        let mut driver = driver();
        accept(&mut driver, 1);
        if !hello.is_empty() {
            send(&mut driver, 1, hello);
        }
        send(&mut driver, 1, r#"{"op":"subscribe","topics":[">"]}"#);
        finish(&mut driver);
        ["a.x", "secret.y"].iter().for_each(|topic| publish(&mut driver, topic));
        finish(&mut driver);
        driver.sent.clear();
        for topics in [&["secret.y", "a.x"][..], &["a.x"]] {
            topics.iter().for_each(|topic| publish(&mut driver, topic));
            finish(&mut driver);
            for (is_deflated, text) in messages(&driver, 1) {
                assert_eq!(is_deflated, !text.contains("secret"), "{text}");
            }
            driver.sent.clear();
        }
    }
}

#[test]
fn inflating_is_work_of_the_turn_so_that_a_flood_of_small_bombs_waits() {
    let mut driver = driver();
    let mut bombs = Vec::new();
    for token in 0..100 {
        let text = format!(r#"{{"op":"ping","token":{token}{}}}"#, " ".repeat(200 << 10));
        let mut message = Vec::new();
        assert!(Deflater::default().encode(&mut message, MessageType::Text, text.as_bytes()));
        assert!(message.len() < 4_000, "{}", message.len());
        let header = if message[1] < 126 { 2 } else { 4 };
        bombs.extend(masked(0xc1, &message[header..]));
    }
    driver.receive(PUBLISHER, &bombs);
    driver.turn();
    let answered = messages(&driver, PUBLISHER).len();
    assert!((1..30).contains(&answered), "{answered} in the first turn");
    assert_eq!(driver.shard.counters().value(Counter::InputPaused), 1);
    finish(&mut driver);
    let answers: Vec<String> = messages(&driver, PUBLISHER).into_iter().map(|(_, text)| text).collect();
    let expected: Vec<String> = (0..100).map(|token| format!(r#"{{"op":"pong","token":{token}}}"#)).collect();
    assert_eq!(answers, expected);
}

/// A compressed message of one native PING after the other.
fn pings(count: usize) -> Vec<u8> {
    let pings = frame(Kind::Ping, &Token { token: 7 }, b"").repeat(count);
    let mut message = Vec::new();
    assert!(Deflater::default().encode(&mut message, MessageType::Binary, &pings));
    masked(0xc2, &message[if message[1] < 126 { 2 } else { 4 }..])
}

/// The PONGs sent to a slot.
fn pongs(driver: &mut Driver, slot: u32) -> usize {
    let sent = driver.take_sent(slot);
    let bodies: Vec<u8> = frames_of(&sent).into_iter().flat_map(|(_, body)| body).collect();
    let (mut rest, mut pongs) = (&bodies[..], 0);
    while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
        assert_eq!((frame.kind, frame.record::<Token>().unwrap().token), (Kind::Pong, 7));
        (rest, pongs) = (&rest[used..], pongs + 1);
    }
    pongs
}

#[test]
fn the_answers_to_one_small_message_wait_for_a_client_that_does_not_read() {
    const COUNT: usize = 7_000;
    let mut driver = driver();
    accept_as(&mut driver, 1, "tickcast.v1.rkyv");
    let message = pings(COUNT);
    assert!(message.len() < 12_000, "{}", message.len());
    driver.full.insert(1);
    driver.receive(1, &message);
    finish(&mut driver);
    let session = driver.shard.sessions.get(SlotId(1)).unwrap();
    let queued = session.outbox.reply_bytes();
    let is_bounded = (1..=REPLY_BYTES_MAX + 100).contains(&queued);
    assert!(session.is_paused() && is_bounded, "{queued} bytes");
    let held = driver.shard.sessions.unfinished_bytes();
    assert!(held > 100 << 10, "{held} bytes of what it has not sent itself count as unfinished");
    let mut answered = 0;
    while answered < COUNT {
        driver.open();
        finish(&mut driver);
        let more = pongs(&mut driver, 1);
        assert!(more > 0, "it goes on when there is room");
        answered += more;
        driver.full.insert(1);
    }
    assert_eq!((answered, driver.shard.sessions.unfinished_bytes()), (COUNT, 0));
    driver.open();
    // The next message comes after the rest.
    driver.receive(1, &pings(3));
    finish(&mut driver);
    assert_eq!(pongs(&mut driver, 1), 3);
}

#[test]
fn inflated_rests_have_the_bound_of_unfinished_messages() {
    let mut driver = Driver::new(Limits {
        deflate: Rules::all(true),
        frame_bytes_max: 128 << 10,
        unfinished_bytes_max: 1,
        ..Limits::default()
    });
    let longest = driver.shard.limits.message_bytes_max();
    let count = longest / frame(Kind::Ping, &Token { token: 7 }, b"").len();
    let slots = 1..=40;
    for slot in slots.clone() {
        accept_as(&mut driver, slot, "tickcast.v1.rkyv");
        driver.full.insert(slot);
    }
    for slot in slots.clone() {
        driver.receive(slot, &pings(count));
        driver.turn();
        driver.jump(1_000_000);
    }
    let open: Vec<u32> =
        slots.filter(|&slot| driver.shard.sessions.open_mut(SlotId(slot)).is_some()).collect();
    assert!((2..30).contains(&open.len()), "{open:?}");
    assert!(open.contains(&40), "the oldest go");
    driver.pass(3_000_000_000);
    assert!(driver.shard.counters().value(Counter::ClosedUnfinishedMemory) > 0);
}
