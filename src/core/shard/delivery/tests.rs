//! Tests of the lives of a topic, as subscribers see them.

use crate::{
    config::Limits,
    fanout::OpeningUnits,
    ids::SlotId,
    metrics::counters::Counter,
    shard::ListenerKind,
    testing::{Driver, TurnLoop, frame, masked, messages, upgrade_request},
};
use tickcast_proto::{
    Step, WireFormat,
    frame::{self, Kind},
    records::Subscribe,
    subscription::{Policy, Rules},
};

const PUBLISHER: u32 = 0;
const READER: u32 = 1;
const IDLE_NS: u64 = 10_000_000;

/// A shard with a publisher and a reader. Only `t.0` is ever forgotten.
fn driver(format: WireFormat) -> Driver {
    let mut driver = Driver::new(Limits {
        behind_bytes: 1_000,
        topic_idle: Rules { rules: vec![("t.0".into(), IDLE_NS)], default: 0 },
        ..Limits::default()
    });
    for (slot, format) in [(PUBLISHER, WireFormat::WEBSOCKET_JSON), (READER, format)] {
        let subprotocol = format.subprotocol().unwrap();
        driver.accept(slot, ListenerKind::Http, &upgrade_request("/ws", subprotocol));
    }
    driver
}

fn subscribe(driver: &mut Driver, format: WireFormat, pattern: &str, policy: Policy, max_rate: u32) {
    let bytes = if format == WireFormat::WEBSOCKET_NATIVE {
        let (policy, max_rate_millihertz) = (policy as u8, max_rate * 1_000);
        let record = Subscribe { policy, max_rate_millihertz, ..Subscribe::default() };
        masked(0x82, &frame(Kind::Subscribe, &record, pattern.as_bytes()))
    } else {
        let policy = policy.name();
        let rate = if max_rate > 0 { format!(r#","max_rate":{max_rate}"#) } else { String::new() };
        masked(
            0x81,
            format!(r#"{{"op":"subscribe","topics":["{pattern}"],"policy":"{policy}"{rate}}}"#).as_bytes(),
        )
    };
    driver.receive(READER, &bytes);
    finish(driver);
    driver.sent.clear();
}

fn publish(driver: &mut Driver, topic: &str, data: &str) {
    let text = format!(r#"{{"op":"publish","topic":"{topic}","data":{data}}}"#);
    driver.receive(PUBLISHER, &masked(0x81, text.as_bytes()));
}

fn finish(driver: &mut Driver) {
    driver.turn();
    while driver.shard.is_busy() {
        driver.turn();
    }
}

/// Runs turns until `t.0` has been forgotten once more, and no longer.
fn pass_until_forgotten(driver: &mut Driver) {
    let forgotten = |driver: &Driver| driver.shard.counters().value(Counter::TopicsForgotten);
    let before = forgotten(driver);
    for _ in 0..100 {
        driver.jump(IDLE_NS / 8);
        driver.turn();
        if forgotten(driver) > before {
            return;
        }
    }
    panic!("an idle topic is forgotten");
}

/// The life of each record about `t.0`, counted from 1, in the order in which the reader got them: ticks, whose payload names
/// it, and in the native encoding also announcements and ranges.
fn lives(driver: &mut Driver, format: WireFormat) -> Vec<u32> {
    let (mut ids, mut lives) = (Vec::new(), Vec::new());
    for (_, payload) in messages(&driver.take_sent(READER)) {
        if format != WireFormat::WEBSOCKET_NATIVE {
            let text = String::from_utf8_lossy(&payload);
            let number: Option<u32> =
                text.split_once("life ").and_then(|(_, rest)| rest.split('"').next()?.parse().ok());
            lives.extend(number);
            continue;
        }
        let mut rest = &payload[..];
        while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
            rest = &rest[used..];
            let id = frame.header.topic_id;
            if frame.kind == Kind::Subscribed && frame.payload() == b"t.0" && !ids.contains(&id) {
                ids.push(id);
            }
            lives.extend(ids.iter().zip(1..).find(|(known, _)| **known == id).map(|(_, life)| life));
        }
    }
    lives
}

#[test]
fn no_tick_of_an_ended_life_follows_one_of_the_next() {
    let formats = [WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON, WireFormat::WEBSOCKET_RAW];
    let deliveries = [
        (Policy::Conflate, 0),
        (Policy::Conflate, 50),
        (Policy::Drop, 0),
        (Policy::Drop, 50),
        (Policy::Keep, 0),
        (Policy::Keep, 50),
        (Policy::Disconnect, 0),
        (Policy::Disconnect, 50),
    ];
    let other = format!(r#""{:100}""#, "other");
    // At once, and in pieces.
    let units = [OpeningUnits::default(), OpeningUnits { per_turn: 1, at_once: 0 }];
    for (format, units) in formats.into_iter().flat_map(|format| units.map(|units| (format, units))) {
        for (policy, max_rate) in deliveries {
            let mut driver = driver(format);
            driver.shard.set_opening_units(units);
            subscribe(&mut driver, format, "t.*", policy, max_rate);
            subscribe(&mut driver, format, "d.*", Policy::Drop, 0);
            // Nothing is sent, so the reader falls behind and conflating topics become held.
            driver.sends_max = 0;
            (0..3).for_each(|_| publish(&mut driver, "t.0", r#""life 1""#));
            (1..20).for_each(|topic| publish(&mut driver, &format!("t.{topic}"), &other));
            // Its held ticks are queued when it is forgotten; the first tick of its next life is held again.
            pass_until_forgotten(&mut driver);
            (0..3).for_each(|_| publish(&mut driver, "t.0", r#""life 2""#));
            // These are queued nevertheless, until conflating topics are evicted.
            (0..20).for_each(|_| publish(&mut driver, "d.0", &other));
            // SENDs, without a turn in which members leave. The first flush finds that the reader lags.
            let Driver { shard, now, sent, .. } = &mut driver;
            for _ in 0..2 {
                TurnLoop::default().flush(shard, *now, usize::MAX, |SlotId(slot), bytes| {
                    sent.push((slot, bytes.to_vec()));
                    false
                });
            }
            driver.sends_max = usize::MAX;
            finish(&mut driver);
            publish(&mut driver, "t.0", r#""life 2""#);
            finish(&mut driver);
            driver.pass(1_000_000_000);
            let lives = lives(&mut driver, format);
            assert!(
                lives.is_sorted() && lives.last() == Some(&2),
                "{format:?} {policy:?} {max_rate} {units:?}: {lives:?}"
            );
        }
    }
}
