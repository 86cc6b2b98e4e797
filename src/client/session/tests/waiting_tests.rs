//! Publishes beyond those that may be in flight, and answers of the application that come too late.

use super::{super::*, MS_NS};
use crate::PUBLISHES_UNACKNOWLEDGED_MAX;
use serde_json::{Value, json};

const IN_FLIGHT: u64 = PUBLISHES_UNACKNOWLEDGED_MAX as u64;

/// A session that connects and has these publishes waiting, and their ids.
fn connecting(count: u64, has_ids: bool) -> (Session, Vec<PublishId>) {
    let options = SessionOptions {
        offline_queue_max: count as usize,
        ..SessionOptions::new("ws://a:1/ws", WireFormat::WEBSOCKET_JSON)
    };
    let mut session = Session::new(options, Random::new(|| 0.0));
    session.connect(0);
    let ids = (0..count).map(|number| publish(&mut session, number, has_ids)).collect();
    (session, ids)
}

fn publish(session: &mut Session, number: u64, has_id: bool) -> PublishId {
    let text = number.to_string();
    let message_id = if has_id { &*text } else { "" };
    let publish = PublishRequest { topic: "t", payload: text.as_bytes(), message_id, ..Default::default() };
    session.publish(publish, Duration::from_secs(10), 0).unwrap()
}

fn receive(session: &mut Session, message: &Value) {
    session.handle_message(&Message::Text(message.to_string().into()), MS_NS, MS_NS);
}

fn welcome(session: &mut Session) {
    session.handle_open(Some("tickcast.v1.json"), 0);
    receive(
        session,
        &json!({
            "op": "welcome", "id": 1, "server": "s", "epoch": 9, "session": 1, "frame_bytes_max": 262_144,
            "features": ["message_ids"],
        }),
    );
}

/// What was published since the last call: request and payload.
fn sent(session: &mut Session) -> Vec<(u64, u64)> {
    let messages = std::iter::from_fn(|| session.poll_action()).filter_map(|action| match action {
        Action::Send { message: Message::Text(text), .. } => {
            Some(serde_json::from_slice::<Value>(&text).unwrap())
        }
        _ => None,
    });
    let published = messages.filter(|message| message["op"] == "publish");
    published.map(|message| (message["id"].as_u64().unwrap(), message["data"].as_u64().unwrap())).collect()
}

fn payloads(session: &mut Session) -> Vec<u64> {
    sent(session).into_iter().map(|(_, payload)| payload).collect()
}

#[test]
fn publishes_beyond_those_in_flight_follow_in_order_as_answers_arrive() {
    let count = IN_FLIGHT + 3;
    let (mut session, ids) = connecting(count, false);
    welcome(&mut session);
    let first = sent(&mut session);
    assert_eq!(first.iter().map(|&(_, payload)| payload).collect::<Vec<_>>(), Vec::from_iter(0..IN_FLIGHT));
    // It does not overtake.
    let late = publish(&mut session, count, false);
    assert_eq!(payloads(&mut session), Vec::<u64>::new());
    let (one, two) = (first[0].0, first[1].0);
    receive(&mut session, &json!({"op": "published", "id": one, "topic": "t", "epoch": 10, "sequence": 1}));
    receive(&mut session, &json!({"op": "error", "id": two, "code": 109, "text": "too fast"}));
    assert_eq!(payloads(&mut session), [IN_FLIGHT, IN_FLIGHT + 1]);
    // A time-out makes room too, and its last one comes too late itself.
    session.handle_timeout(10_000 * MS_NS);
    let mut answered: Vec<PublishId> = std::iter::from_fn(|| session.poll_event())
        .filter_map(|event| match event {
            ClientEvent::Published { publish, .. } | ClientEvent::PublishFailed { publish, .. } => {
                Some(publish)
            }
            _ => None,
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, [ids, vec![late]].concat());
}

#[test]
fn what_is_sent_again_comes_before_what_still_waited() {
    let (mut session, _) = connecting(IN_FLIGHT + 1, true);
    welcome(&mut session);
    let first = payloads(&mut session);
    assert_eq!(first.len() as u64, IN_FLIGHT);
    session.handle_closed(1006, "cut", 0, 0);
    session.handle_timeout(MS_NS);
    welcome(&mut session);
    assert_eq!(payloads(&mut session), first);
}

#[test]
fn an_application_without_a_token_after_its_time_out_has_failed_once() {
    let options =
        SessionOptions { asks_token: true, ..SessionOptions::new("ws://a:1/ws", WireFormat::WEBSOCKET_JSON) };
    let mut session = Session::new(options, Random::new(|| 0.5));
    let errors = |session: &mut Session| {
        let events = std::iter::from_fn(|| session.poll_event());
        events.filter(|event| matches!(event, ClientEvent::Error { .. })).count()
    };
    session.connect(0);
    session.handle_timeout(30_000 * MS_NS);
    session.handle_token_failed("HTTP 502", 30_000 * MS_NS);
    assert_eq!(errors(&mut session), 1);
    // The next one is asked, and does not answer before the client is disconnected: nothing is left to wait for then.
    session.handle_timeout(30_250 * MS_NS);
    session.disconnect(30_250 * MS_NS);
    session.handle_timeout(61_000 * MS_NS);
    assert_eq!((errors(&mut session), session.poll_timeout()), (0, None));
    session.connect(61_000 * MS_NS);
    let asked = std::iter::from_fn(|| session.poll_action());
    assert_eq!(asked.filter(|action| matches!(action, Action::AskToken(_))).count(), 3);
}
