//! A subscription that starts at a moment, whether the server knows those or not.

use std::collections::HashMap;

use super::{super::*, MS_NS, starts};
use serde_json::{Value, json};
use tickcast_proto::subscription::{Moment, Position};

const MOMENT: Moment = Moment { epoch: 9, since_us: 1_700_000_000_000_100 };

fn since(positions: &[(&str, Position)]) -> SubscribeOptions {
    let positions = positions.iter().map(|&(topic, position)| (topic.into(), position)).collect();
    SubscribeOptions { from: StartPosition::Since(positions, MOMENT), ..SubscribeOptions::default() }
}

fn session() -> Session {
    let options = SessionOptions::new("ws://a:1/ws", WireFormat::WEBSOCKET_JSON);
    Session::new(options, Random::new(|| 0.0))
}

fn receive(session: &mut Session, message: Value) {
    session.handle_message(&Message::Text(message.to_string().into()), MS_NS, MS_NS);
}

fn welcome(session: &mut Session, features: &[&str]) {
    session.handle_open(Some("tickcast.v1.json"), 0);
    let welcome = json!({
        "op": "welcome", "id": 1, "server": "s", "epoch": 11, "session": 1, "frame_bytes_max": 262_144,
        "features": features,
    });
    receive(session, welcome);
}

#[test]
fn topics_without_a_position_start_at_the_moment_on_each_connection() {
    let at = |sequence| json!({"positions": {"a.x": {"epoch": 10, "sequence": sequence}}, "epoch": 9, "since": MOMENT.since_us});
    let mut session = session();
    session.subscribe("a.>", since(&[("a.x", Position { epoch: 10, sequence: 17 })])).unwrap();
    session.subscribe("b.>", since(&[])).unwrap();
    session.connect(0);
    welcome(&mut session, &["positions", "since"]);
    let empty = json!({"positions": {}, "epoch": 9, "since": MOMENT.since_us});
    assert_eq!(starts(&mut session), [at(17), empty.clone()]);
    for request in [2, 3] {
        // A server may say that it is live now. It started before.
        receive(
            &mut session,
            json!({"op": "subscribed", "id": request, "pattern": "p", "topics": [], "since": 1}),
        );
    }
    receive(
        &mut session,
        json!({"op": "subscribed", "topics": [{"topic": "a.x", "topic_id": 5, "epoch": 10}]}),
    );
    receive(&mut session, json!({"topic": "a.x", "seq": 18, "ts": 1, "data": 1}));
    session.handle_closed(1006, "", 0, MS_NS);
    session.handle_timeout(1000 * MS_NS);
    welcome(&mut session, &["positions", "since"]);
    assert_eq!(starts(&mut session), [at(18), empty]);
}

#[test]
fn a_server_that_knows_no_moments_gets_none() {
    let mut session = session();
    session.subscribe("early.>", since(&[])).unwrap();
    session.connect(0);
    welcome(&mut session, &["positions"]);
    let unsubscribed = std::iter::from_fn(|| session.poll_event()).any(|event| match event {
        ClientEvent::Subscription { on, event: SubscriptionEvent::State(change) } => {
            *on == *"early.>" && change.state == SubscriptionState::Unsubscribed && change.code == 100
        }
        _ => false,
    });
    assert!(unsubscribed);
    assert_eq!(session.subscribe("late.>", since(&[])), Err(RequestError::SinceNotGranted));
    assert_eq!(starts(&mut session), [] as [Value; 0]);
    let oldest =
        SubscribeOptions { from: StartPosition::AfterEach(HashMap::new()), ..SubscribeOptions::default() };
    session.subscribe("late.>", oldest).unwrap();
}
