//! The protobuf codec: messages of `tickcast.proto`, which is published for clients.
//!
//! ```text
//!  client to server   Request                        one command
//!  server to client   Events { Event }               one event
//!                     Events { Event } Events { .. } several: concatenated, they are one message with all of their events
//! ```
//!
//! Because of the last line, what a shard encodes once per event can share a message with other events: nothing is between them.
//! Payloads are opaque bytes, copied and never decoded.

#[rustfmt::skip]
pub mod messages;

use std::{borrow::Cow, fmt};

use prost::Message;

use self::messages::{Event, Request, event, request, subscribe};
use super::json::InvalidRequest;
use crate::{
    command::{Command, PublishCommand, Token},
    features::Features,
    frame::{FLAG_PAYLOAD_JSON, FLAG_SNAPSHOT, Frame},
    ids::TopicId,
    records::TickTimes,
    reply::{NotRecovered, Reply, SERVER, Skipped, SourceState},
    subscription::{Delivery, OptionError, Policy, Position, StartPosition, interval_us},
};

/// The commands of requests, for errors.
const COMMANDS: &str = "hello, refresh, subscribe, update, unsubscribe, publish or ping";

/// Key of `Events.events`, and of `Event.tick`: field 1, length-delimited.
const FIRST_FIELD: u8 = key(1, LENGTH_DELIMITED);
/// Wire types (protobuf.dev/programming-guides/encoding).
const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;

/// The key of a field, one byte up to field 15.
const fn key(field: u8, wire_type: u8) -> u8 {
    assert!(field > 0 && field < 16);
    field << 3 | wire_type
}

/// Decodes one request.
///
/// Allocates for what it copies from the message, at most some 16 times the message's length: an empty pattern takes two bytes there,
/// and 24 in memory. Nesting is bounded by the messages' types, and by 100 levels in fields that are skipped.
///
/// # Errors
/// [`InvalidRequest`] if the bytes are no request of the protocol, with the request's id if it precedes what is wrong.
pub(super) fn decode(message: &[u8]) -> Result<Command<'static>, InvalidRequest> {
    let mut decoded = Request::default();
    let merged = decoded.merge(message);
    let Request { id: request, command } = decoded;
    let fail = |text: String| InvalidRequest { request, text };
    merged.map_err(|error| fail(error.to_string()))?;
    let Some(command) = command else {
        return Err(fail(format!("unknown or missing command; use {COMMANDS}")));
    };
    let patterns = |name: &str, patterns: Vec<String>| match patterns.is_empty() {
        true => Err(fail(format!("{name}: \"patterns\" is missing or empty"))),
        false => Ok(patterns.into_iter().map(Cow::Owned).collect()),
    };
    let option = |name: &str, error: OptionError| fail(format!("{name}: {error}"));
    Ok(match command {
        request::Command::Hello(messages::Hello { name, features, token }) => {
            let named = || Features::from_names(features.iter().map(String::as_str));
            Command::Hello {
                request,
                client: Cow::Borrowed(""),
                name: name.into(),
                features: (!features.is_empty()).then(named),
                token: (!token.is_empty()).then(|| Token(token.into_bytes().into())),
            }
        }
        request::Command::Refresh(messages::Refresh { token }) => match token.is_empty() {
            true => return Err(fail("refresh: \"token\" is missing or empty".into())),
            false => Command::Refresh { request, token: Token(token.into_bytes().into()) },
        },
        request::Command::Subscribe(messages::Subscribe { patterns: given, policy, max_rate, from }) => {
            Command::Subscribe {
                request,
                patterns: patterns("subscribe", given)?,
                delivery: delivery(policy, max_rate).map_err(|error| option("subscribe", error))?,
                from: start_position(from).map_err(|error| option("subscribe", error))?,
            }
        }
        request::Command::Update(messages::Update { patterns: given, policy, max_rate }) => Command::Update {
            request,
            patterns: patterns("update", given)?,
            delivery: delivery(policy, max_rate).map_err(|error| option("update", error))?,
        },
        request::Command::Unsubscribe(messages::Unsubscribe { patterns: given }) => {
            Command::Unsubscribe { request, patterns: patterns("unsubscribe", given)? }
        }
        request::Command::Publish(publish) => {
            let messages::Publish { topic, payload, key, producer_time_ns, schema, message_id } = publish;
            Command::Publish(PublishCommand {
                request,
                topic: topic.into_bytes().into(),
                producer_time_ns,
                schema,
                payload: payload.into(),
                payload_is_json: false,
                key,
                message_id: message_id.into_bytes().into(),
            })
        }
        request::Command::Ping(messages::Ping { token: 0 }) => Command::Ping { token: request.into() },
        request::Command::Ping(messages::Ping { token }) => Command::Ping { token },
    })
}

fn delivery(policy: i32, max_rate: f64) -> Result<Delivery, OptionError> {
    let policy = match messages::Policy::try_from(policy) {
        Ok(messages::Policy::Default) => None,
        Ok(messages::Policy::Conflate) => Some(Policy::Conflate),
        Ok(messages::Policy::Drop) => Some(Policy::Drop),
        Ok(messages::Policy::Disconnect) => Some(Policy::Disconnect),
        Ok(messages::Policy::Keep) => Some(Policy::Keep),
        Err(_) => return Err(OptionError::Policy(policy.to_string())),
    };
    let interval_us = if max_rate == 0.0 { 0 } else { interval_us(max_rate)? };
    Ok(Delivery { policy, interval_us })
}

fn start_position(from: Option<subscribe::From>) -> Result<StartPosition, OptionError> {
    let position = |position: messages::Position| {
        let messages::Position { epoch, sequence } = position;
        Position { epoch, sequence }
    };
    Ok(match from {
        None => StartPosition::Live,
        Some(subscribe::From::Start(start)) => match messages::Start::try_from(start) {
            Ok(messages::Start::Live) => StartPosition::Live,
            Ok(messages::Start::Latest) => StartPosition::Latest,
            Err(_) => return Err(OptionError::From(start.to_string())),
        },
        Some(subscribe::From::After(after)) => StartPosition::After(position(after)),
        Some(subscribe::From::AfterEach(messages::Positions { topics })) => {
            let each = topics.into_iter().map(|(topic, after)| (topic.into_boxed_str(), position(after)));
            StartPosition::AfterEach(each.collect())
        }
    })
}

/// Appends the tick in a TICK frame, with `previous` if that is among the features. Allocates only to grow `out`.
///
/// Written by hand, because messages of prost own their strings and bytes.
pub(super) fn encode_frame(out: &mut Vec<u8>, topic: &str, tick: &Frame<'_>, features: Features) {
    let times = tick.record::<TickTimes>();
    debug_assert!(times.is_ok(), "a TICK frame has times");
    let TickTimes { producer_time_ns, ingest_time_ns } = times.unwrap_or_default();
    let (sequence, schema, flags) = (tick.header.sequence, tick.header.schema, tick.header.flags);
    let (tick_key, payload) = (tick.key(), tick.payload());
    let previous = (tick.is_linked() && features.contains(Features::PREVIOUS)).then(|| tick.previous());
    let is_json = u64::from(flags & FLAG_PAYLOAD_JSON != 0);
    let is_snapshot = u64::from(flags & FLAG_SNAPSHOT != 0);

    let tick_len = bytes_len(topic.as_bytes())
        + number_len(sequence)
        + fixed_len(producer_time_ns)
        + bytes_len(payload)
        + number_len(tick_key)
        + fixed_len(ingest_time_ns)
        + number_len(schema.into())
        + number_len(is_json)
        + number_len(is_snapshot)
        + previous.map_or(0, |previous| 1 + varint_len(previous));
    let event_len = 1 + varint_len(tick_len as u64) + tick_len;
    out.reserve(1 + varint_len(event_len as u64) + event_len);
    out.push(FIRST_FIELD);
    put_varint(out, event_len as u64);
    let start = out.len();
    out.push(FIRST_FIELD);
    put_varint(out, tick_len as u64);
    put_bytes(out, 1, topic.as_bytes());
    put_number(out, 2, sequence);
    put_fixed(out, 3, producer_time_ns);
    put_bytes(out, 4, payload);
    put_number(out, 5, tick_key);
    put_fixed(out, 6, ingest_time_ns);
    put_number(out, 7, schema.into());
    put_number(out, 8, is_json);
    put_number(out, 9, is_snapshot);
    if let Some(previous) = previous {
        out.push(key(10, VARINT));
        put_varint(out, previous);
    }
    debug_assert_eq!(out.len() - start, event_len, "the length precedes what it is of");
}

/// Length of a varint: 7 bits in each byte.
const fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Length of a field with a number; fields that are 0 are left out.
const fn number_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value) }
}

const fn fixed_len(value: u64) -> usize {
    if value == 0 { 0 } else { 9 }
}

const fn bytes_len(bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { 1 + varint_len(bytes.len() as u64) + bytes.len() }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_number(out: &mut Vec<u8>, field: u8, value: u64) {
    if value != 0 {
        out.push(key(field, VARINT));
        put_varint(out, value);
    }
}

fn put_fixed(out: &mut Vec<u8>, field: u8, value: u64) {
    if value != 0 {
        out.push(key(field, FIXED_64));
        out.extend_from_slice(&value.to_le_bytes());
    }
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.push(key(field, LENGTH_DELIMITED));
        put_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

/// Appends the announcement of a topic. All of its subscribers share it.
pub(super) fn encode_topic(out: &mut Vec<u8>, topic: TopicId, epoch: u64, name: &str) {
    encode_event(out, event::Event::Topic(messages::Topic { name: name.into(), topic_id: topic.0, epoch }));
}

/// Appends a reply.
pub(super) fn encode_reply(reply: &Reply<'_>, out: &mut Vec<u8>) {
    encode_event(out, event_of(reply));
}

fn encode_event(out: &mut Vec<u8>, event: event::Event) {
    out.push(FIRST_FIELD);
    let encoded = Event { event: Some(event) }.encode_length_delimited(out);
    debug_assert!(encoded.is_ok(), "a Vec grows");
}

fn event_of(reply: &Reply<'_>) -> event::Event {
    match *reply {
        Reply::Welcome { request: id, epoch, session, frame_bytes_max, features } => {
            event::Event::Welcome(messages::Welcome {
                id,
                server: SERVER.into(),
                epoch,
                session,
                frame_bytes_max: frame_bytes_max as u32,
                features: features.unwrap_or_default().names().map(str::to_owned).collect(),
            })
        }
        Reply::Nodes { node, addresses } => event::Event::Nodes(messages::Nodes {
            node: node.into(),
            addresses: addresses.iter().map(|&address| address.into()).collect(),
        }),
        Reply::Expires { request: id, expires_in_s } => {
            event::Event::Expires(messages::Expires { id, expires_in_s })
        }
        Reply::Subscribed { request: id, pattern, .. } => {
            event::Event::Subscribed(messages::Subscribed { id, pattern: pattern.into() })
        }
        Reply::Unsubscribed { request: id, pattern } => event::Event::Unsubscribed(messages::Unsubscribed {
            id,
            pattern: pattern.into(),
            ..Default::default()
        }),
        Reply::Removed { pattern, code, text } => event::Event::Unsubscribed(messages::Unsubscribed {
            id: 0,
            pattern: pattern.into(),
            code: code as u32,
            text: text.into(),
        }),
        Reply::Recovered { name, epoch, sequence, recovered, reason, .. } => {
            let reason = reason.map_or(messages::NotRecovered::Unspecified, |reason| match reason {
                NotRecovered::Epoch => messages::NotRecovered::Epoch,
                NotRecovered::TooOld => messages::NotRecovered::TooOld,
                NotRecovered::UnknownTopic => messages::NotRecovered::UnknownTopic,
                NotRecovered::Ahead => messages::NotRecovered::Ahead,
            });
            event::Event::Recovered(messages::Recovered {
                topic: name.into(),
                epoch,
                sequence,
                recovered,
                reason: reason.into(),
            })
        }
        Reply::Conflated(skipped) => event::Event::Conflated(skipped_of(&skipped)),
        Reply::Gap(skipped) => event::Event::Gap(skipped_of(&skipped)),
        Reply::Published { request: id, name, epoch, sequence, is_duplicate, .. } => {
            event::Event::Published(messages::Published {
                id,
                topic: name.into(),
                epoch,
                sequence,
                duplicate: is_duplicate,
            })
        }
        Reply::Source { name, state, since_ns } => {
            let state = match state {
                SourceState::Up => messages::SourceState::Up,
                SourceState::Fallback => messages::SourceState::Fallback,
                SourceState::Down => messages::SourceState::Down,
            };
            event::Event::Source(messages::Source { source: name.into(), state: state.into(), since_ns })
        }
        Reply::Stale { name, is_stale, since_ns, .. } => {
            event::Event::Stale(messages::Stale { topic: name.into(), stale: is_stale, since_ns })
        }
        Reply::Pong { token } => event::Event::Pong(messages::Pong { token }),
        Reply::Error { request: id, code, text } => {
            event::Event::Error(messages::Error { id, code: code as u32, text: text.into() })
        }
        Reply::Closing { code, reason, reconnect_after_ms } => event::Event::Closing(messages::Closing {
            code: code.into(),
            reason: reason.into(),
            reconnect_after_ms,
        }),
    }
}

fn skipped_of(skipped: &Skipped<'_>) -> messages::Skipped {
    let Skipped { name, from, to, count, .. } = *skipped;
    messages::Skipped {
        topic: name.into(),
        from_sequence: from,
        to_sequence: to,
        count: count.unwrap_or_default(),
    }
}

/// Without its token.
impl fmt::Debug for messages::Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let messages::Hello { name, features, token } = self;
        f.debug_struct("Hello")
            .field("name", name)
            .field("features", features)
            .field("token", &format_args!("{} bytes", token.len()))
            .finish()
    }
}

/// Without its token.
impl fmt::Debug for messages::Refresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refresh").field("token", &format_args!("{} bytes", self.token.len())).finish()
    }
}

#[cfg(test)]
mod tests;
