//! Actions and events as the transcripts write them.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use super::super::{
    Action, Change, ClientState, Message, RecoveryFailure, SharedTick, SkippedTicks, SubscriptionEvent,
    SubscriptionState, TokenPurpose,
};
use crate::Positions;
use tickcast_proto::subscription::Position;

pub(super) fn hex(bytes: &[u8]) -> Value {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

pub(super) fn script_positions(positions: &Positions) -> Value {
    let each = positions.iter();
    let each = each.map(|(topic, Position { epoch, sequence })| {
        (topic.to_owned(), json!({"epoch": epoch, "sequence": sequence}))
    });
    Value::Object(each.collect())
}

pub(super) fn state_name(state: ClientState) -> &'static str {
    match state {
        ClientState::Disconnected => "disconnected",
        ClientState::Connecting => "connecting",
        ClientState::Connected => "connected",
    }
}

pub(super) fn subscription_state_name(state: SubscriptionState) -> &'static str {
    match state {
        SubscriptionState::Unsubscribed => "unsubscribed",
        SubscriptionState::Subscribing => "subscribing",
        SubscriptionState::Subscribed => "subscribed",
    }
}

pub(super) fn with_retry(mut shown: Value, retry_in_ms: Option<u64>) -> Value {
    if let Some(retry_in_ms) = retry_in_ms {
        shown["retry_in_ms"] = retry_in_ms.into();
    }
    shown
}

pub(super) fn data(tick: &SharedTick) -> Value {
    match tick.payload_is_json {
        true => serde_json::from_slice(&tick.payload).unwrap_or_default(),
        false => BASE64.encode(&tick.payload).into(),
    }
}

pub(super) fn show_skipped(kind: &str, skipped: &SkippedTicks) -> Value {
    let SkippedTicks { topic, epoch, from, to, count } = skipped;
    json!({"type": kind, "topic": &**topic, "epoch": epoch, "from": from, "to": to, "count": count})
}

pub(super) fn show_subscription_event(event: &SubscriptionEvent) -> Value {
    match event {
        SubscriptionEvent::State(Change { state, code, reason, retry_in_ms }) => {
            let state = subscription_state_name(*state);
            let shown = json!({"type": "subscription", "state": state, "code": code, "reason": &**reason});
            with_retry(shown, *retry_in_ms)
        }
        SubscriptionEvent::Tick(tick) => {
            let key = if tick.key < 1 << 53 { json!(tick.key) } else { json!(tick.key.to_string()) };
            let mut shown = json!({
                "type": "tick", "topic": &*tick.topic, "epoch": tick.epoch, "sequence": tick.sequence,
                "ts_ns": tick.producer_time_ns, "ingest_ns": tick.ingest_time_ns, "key": key,
                "schema": tick.schema, "snapshot": tick.snapshot,
            });
            let field = if tick.payload_is_json { "data" } else { "data_base64" };
            shown[field] = data(tick);
            shown
        }
        SubscriptionEvent::Gap(skipped) => show_skipped("gap", skipped),
        SubscriptionEvent::Conflated(skipped) => show_skipped("conflated", skipped),
        SubscriptionEvent::Recovered { topic, epoch, sequence, failure } => json!({
            "type": "recovered", "topic": &**topic, "epoch": epoch, "sequence": sequence,
            "recovered": failure.is_none(), "reason": failure.map_or("", RecoveryFailure::name),
        }),
        SubscriptionEvent::Stale { topic, is_stale, since_ns } => {
            json!({"type": "stale", "topic": &**topic, "stale": is_stale, "since_ns": since_ns})
        }
        SubscriptionEvent::Error { code, reason } => {
            json!({"type": "error", "code": code, "reason": &**reason})
        }
    }
}

pub(super) fn show_action(action: &Action) -> Value {
    match action {
        Action::Dial { url, protocol } => {
            json!({"dial": {"url": &**url, "protocols": protocol.iter().collect::<Vec<_>>()}})
        }
        Action::Send { message: Message::Text(text), .. } => {
            json!({"send": serde_json::from_slice::<Value>(text).unwrap_or_default()})
        }
        Action::Send { message: Message::Binary(bytes), .. } => json!({"send_frames": hex(bytes)}),
        Action::HangUp { code } => json!({"hang_up": code}),
        Action::AskToken(TokenPurpose::Connect) => json!({"ask_token": "connect"}),
        Action::AskToken(TokenPurpose::Refresh) => json!({"ask_token": "refresh"}),
        Action::Save(positions) => json!({"save": script_positions(positions)}),
    }
}
