//! After a lost connection, the subscription that carries a position is refused for its rate, and another one receives the topic.

use std::collections::HashMap;

use super::{super::*, MS_NS, starts};
use serde_json::{Value, json};
use tickcast_proto::subscription::Position;

/// What a.* receives of some messages.
fn receive(session: &mut Session, messages: Value) -> Vec<String> {
    session.handle_message(&Message::Text(messages.to_string().into()), MS_NS, MS_NS);
    std::iter::from_fn(|| session.poll_event())
        .filter_map(|event| match event {
            ClientEvent::Subscription { on, event } if *on == *"a.*" => match event {
                SubscriptionEvent::Tick(tick) => Some(format!("tick {}", tick.sequence)),
                SubscriptionEvent::Gap(gap) => Some(format!("gap {}-{} {}", gap.from, gap.to, gap.count)),
                SubscriptionEvent::Conflated(range) => Some(format!("conflated {}-{}", range.from, range.to)),
                SubscriptionEvent::Recovered { failure, .. } => {
                    Some(format!("recovered {}", failure.map_or("all", RecoveryFailure::name)))
                }
                _ => None,
            },
            _ => None,
        })
        .collect()
}

fn carried() -> Value {
    json!({"positions": {"a.x": {"epoch": 10, "sequence": 17}}})
}

/// A session with a position in a.x, whose subscription of `a.>` was refused, and that of `a.*` accepted.
fn resumed(conflates: bool) -> Session {
    let mut options = SessionOptions::new("ws://a:1/ws", WireFormat::WEBSOCKET_JSON);
    options.positions.advance("a.x", Position { epoch: 10, sequence: 17 });
    let mut session = Session::new(options, Random::new(|| 0.5));
    let oldest = SubscribeOptions { from: StartPosition::AfterEach(HashMap::new()), ..Default::default() };
    session.subscribe("a.>", oldest.clone()).unwrap();
    let delivery = Delivery { policy: Some(tickcast_proto::subscription::Policy::Conflate), interval_us: 0 };
    let latest = SubscribeOptions { delivery, from: StartPosition::Latest };
    session.subscribe("a.*", if conflates { latest } else { oldest }).unwrap();
    session.connect(0);
    session.handle_open(Some("tickcast.v1.json"), 0);
    receive(
        &mut session,
        json!({
            "op": "welcome", "id": 1, "server": "s", "epoch": 9, "session": 1, "frame_bytes_max": 262_144,
            "features": ["string_keys"],
        }),
    );
    let other = if conflates { json!("latest") } else { json!({"positions": {}}) };
    assert_eq!(starts(&mut session), [carried(), other]);
    let refused = json!({"op": "error", "id": 2, "code": 109, "text": "too fast"});
    receive(&mut session, refused);
    session
}

fn announced(epoch: u64) -> Value {
    json!({"op": "subscribed", "topics": [{"topic": "a.x", "topic_id": 5, "epoch": epoch}]})
}

fn tick(sequence: u64) -> Value {
    json!({"topic": "a.x", "seq": sequence, "ts": 1, "data": sequence})
}

fn gap(from: u64, to: u64) -> Value {
    json!({"op": "gap", "topic": "a.x", "from": from, "to": to, "count": to - from})
}

#[test]
fn ticks_before_the_position_are_not_delivered_again() {
    let mut session = resumed(false);
    receive(&mut session, json!({"op": "subscribed", "id": 3, "pattern": "a.*", "topics": []}));
    let seen = receive(
        &mut session,
        json!([announced(10), gap(1, 15), tick(15), tick(16), tick(17), tick(18), tick(19)]),
    );
    assert_eq!(seen, ["tick 18", "tick 19"]);
    // The retry: the server repeats nothing, because the topic is received.
    session.handle_timeout(251 * MS_NS);
    receive(&mut session, json!({"op": "subscribed", "id": 4, "pattern": "a.>", "topics": []}));
    assert_eq!(receive(&mut session, tick(20)), ["tick 20"]);
}

#[test]
fn what_is_lost_after_the_position_is_announced() {
    let mut session = resumed(false);
    let seen = receive(&mut session, json!([announced(10), gap(1, 20), tick(20)]));
    assert_eq!(seen, ["gap 18-20 2", "tick 20"]);
    let mut session = resumed(true);
    let mut snapshot = tick(30);
    snapshot["snapshot"] = true.into();
    let seen = receive(&mut session, json!([announced(10), snapshot, tick(31)]));
    assert_eq!(seen, ["gap 18-30 12", "tick 30", "tick 31"]);
    let mut session = resumed(false);
    let seen = receive(&mut session, json!([announced(20), tick(1)]));
    assert_eq!(seen, ["recovered epoch", "tick 1"]);
}

#[test]
fn the_retry_carries_the_position_if_no_other_subscription_was_accepted() {
    let mut session = resumed(false);
    receive(&mut session, json!({"op": "error", "id": 3, "code": 109, "text": "too fast"}));
    session.handle_timeout(251 * MS_NS);
    assert_eq!(starts(&mut session), [carried(), json!({"positions": {}})]);
    let recovered = json!({
        "op": "recovered", "topic": "a.x", "epoch": 10, "sequence": 19, "recovered": true, "reason": "",
    });
    let seen = receive(&mut session, json!([recovered, announced(10), tick(18), tick(19)]));
    assert_eq!(seen, ["recovered all", "tick 18", "tick 19"]);
}
