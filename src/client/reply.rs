//! Decodes server messages, native frames and JSON alike, into [`StoredEvent`]s.

use std::{borrow::Cow, collections::VecDeque};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    ProtocolError,
    topics::{Advance, OpenRange, SkipReason, Topics},
};
use tickcast_proto::{
    DecodeError,
    codec::json::{self, present},
    features::Features,
    frame::{FLAG_PAYLOAD_JSON, FLAG_SNAPSHOT, Frame, Kind},
    limits::FRAME_HEADER_BYTES,
    records::{
        Closing, CountedRange, ErrorRecord, Nodes, Published, Recovered, Request, SkippedRange, Subscribed,
        TickTimes, Token, Welcome, WelcomeWithFeatures, WireRecord,
    },
    subscription::Position,
};

/// A buffer of the connection that holds bytes of an event.
#[derive(Clone, Copy, Debug)]
pub(super) enum Buffer {
    /// Bytes as received.
    Input,
    /// Bytes decoded from JSON.
    Scratch,
}

/// A range of bytes in one of the connection's buffers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) buffer: Buffer,
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Span {
    const EMPTY: Span = Span { buffer: Buffer::Input, start: 0, len: 0 };
}

/// An event as the connection keeps it: numbers by value, bytes as [`Span`]s. An [`Event`](crate::Event) borrows
/// the bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum StoredEvent {
    Welcome { server: Span, epoch: u64, session: u64, frame_bytes_max: u32, features: Features },
    Subscribed { request: u32, pattern: Span },
    Topic { topic_id: u32 },
    Unsubscribed { request: u32, pattern: Span },
    Tick(StoredTick),
    Skipped { reason: SkipReason, topic_id: u32, from: u64, to: u64, count: u64 },
    Recovered(StoredRecovered),
    Payload(Span),
    Published { request: u32, topic: Span, epoch: u64, sequence: u64, is_duplicate: bool },
    Nodes { node: Span, addresses: Span },
    Pong { token: u64 },
    Error { request: u32, code: u16, text: Span },
    Closing { code: u16, text: Span, reconnect_after_ms: u32 },
    Closed,
}

/// A tick as the connection keeps it.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredTick {
    pub(super) topic_id: u32,
    pub(super) sequence: u64,
    pub(super) missed: u64,
    pub(super) times: TickTimes,
    pub(super) schema: u32,
    pub(super) key: u64,
    pub(super) snapshot: bool,
    pub(super) payload_is_json: bool,
    pub(super) payload: Span,
}

impl StoredTick {
    /// The tick of a TICK frame that starts at `at` in the input.
    #[inline]
    pub(super) fn new(frame: &Frame<'_>, at: usize, missed: u64) -> Result<StoredTick, DecodeError> {
        let header = &frame.header;
        Ok(StoredTick {
            topic_id: header.topic_id,
            sequence: header.sequence,
            missed,
            times: frame.record::<TickTimes>()?,
            schema: header.schema,
            key: frame.key(),
            snapshot: header.flags & FLAG_SNAPSHOT != 0,
            payload_is_json: header.flags & FLAG_PAYLOAD_JSON != 0,
            payload: Span {
                buffer: Buffer::Input,
                start: at + FRAME_HEADER_BYTES + usize::from(header.record_stride),
                len: header.payload_len as usize,
            },
        })
    }
}

/// The answer to a resume position, as the connection keeps it.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredRecovered {
    pub(super) topic_id: u32,
    /// The topic's name; empty: look it up by number.
    pub(super) name: Span,
    /// The position that was asked for.
    pub(super) requested: Position,
    /// `None`: the epoch of the topic's announcement.
    pub(super) epoch: Option<u64>,
    pub(super) sequence: u64,
    pub(super) recovered: bool,
}

impl StoredRecovered {
    /// A position that was not sent to the server, so that the connection itself reports it as not recovered.
    fn not_sent(topic_id: u32, requested: Position) -> StoredRecovered {
        StoredRecovered { topic_id, name: Span::EMPTY, requested, epoch: None, sequence: 0, recovered: false }
    }
}

/// Puts the skipped range, if there is one, before `event`: returns what comes first and queues what follows.
#[inline]
fn announced_first(
    skipped: Option<OpenRange>,
    topics: &Topics,
    topic_id: u32,
    to: u64,
    event: StoredEvent,
    queue: &mut VecDeque<StoredEvent>,
) -> StoredEvent {
    let Some(OpenRange { reason, from }) = skipped else { return event };
    queue.push_back(event);
    StoredEvent::Skipped { reason, topic_id, from, to, count: topics.ticks_in(topic_id, from, to) }
}

/// Decodes a frame that starts at `at` in the input. Further events of the same frame go to `queue`. `None` for a kind that
/// this client has not asked for.
pub(super) fn from_frame(
    frame: &Frame<'_>,
    at: usize,
    topics: &mut Topics,
    queue: &mut VecDeque<StoredEvent>,
) -> Result<Option<StoredEvent>, ProtocolError> {
    let payload = Span {
        buffer: Buffer::Input,
        start: at + FRAME_HEADER_BYTES + usize::from(frame.header.record_stride),
        len: frame.header.payload_len as usize,
    };
    if frame.kind == Kind::Tick {
        let (topic_id, sequence) = (frame.header.topic_id, frame.header.sequence);
        let snapshot = frame.header.flags & FLAG_SNAPSHOT != 0;
        let Advance { missed, skipped } = topics.advance(topic_id, sequence, frame.previous(), snapshot)?;
        let tick = StoredEvent::Tick(StoredTick::new(frame, at, missed)?);
        return Ok(Some(announced_first(skipped, topics, topic_id, sequence, tick, queue)));
    }
    let text = frame.text()?;
    Ok(Some(match frame.kind {
        Kind::Welcome => {
            let record: WelcomeWithFeatures = frame.zero_extended_record(Welcome::STRIDE)?;
            let WelcomeWithFeatures { epoch, session, frame_bytes_max, .. } = record;
            let features = Features::from_wire(record.features);
            StoredEvent::Welcome { server: payload, epoch, session, frame_bytes_max, features }
        }
        Kind::Subscribed => {
            let record = frame.record::<Subscribed>()?;
            match frame.header.topic_id {
                0 => StoredEvent::Subscribed { request: record.request, pattern: payload },
                topic_id => {
                    let not_sent = topics.announce(topic_id, text, record.epoch)?;
                    let recovered = not_sent.map(|position| StoredRecovered::not_sent(topic_id, position));
                    queue.extend(recovered.map(StoredEvent::Recovered));
                    StoredEvent::Topic { topic_id }
                }
            }
        }
        Kind::Conflated | Kind::Gap => {
            let CountedRange { from, to, count } = frame.zero_extended_record(SkippedRange::STRIDE)?;
            let reason = if frame.kind == Kind::Gap { SkipReason::Gap } else { SkipReason::Conflated };
            let topic_id = frame.header.topic_id;
            let count = counted(from, to, count);
            let before = topics.skip(topic_id, reason, from, to, count)?;
            let skipped = StoredEvent::Skipped { reason, topic_id, from, to, count };
            announced_first(before, topics, topic_id, from, skipped, queue)
        }
        Kind::Recovered => {
            let Recovered { epoch, sequence, recovered, .. } = frame.record()?;
            let (id, recovered) = (Some(frame.header.topic_id), recovered != 0);
            let (topic_id, requested) = topics.recover(id, text, epoch, sequence, recovered)?;
            let (name, epoch) = (payload, Some(epoch));
            let recovered = StoredRecovered { topic_id, name, requested, epoch, sequence, recovered };
            StoredEvent::Recovered(recovered)
        }
        Kind::Unsubscribed => {
            topics.interrupt();
            StoredEvent::Unsubscribed { request: frame.record::<Request>()?.request, pattern: payload }
        }
        Kind::Pong => StoredEvent::Pong { token: frame.record::<Token>()?.token },
        Kind::Error => {
            let record = frame.record::<ErrorRecord>()?;
            StoredEvent::Error { request: record.request, code: record.code, text: payload }
        }
        Kind::Closing => {
            let record = frame.record::<Closing>()?;
            let reconnect_after_ms = record.reconnect_after_ms;
            StoredEvent::Closing { code: record.code, text: payload, reconnect_after_ms }
        }
        Kind::Published => {
            let Published { epoch, request, is_duplicate } = frame.record()?;
            let (sequence, is_duplicate) = (frame.header.sequence, is_duplicate != 0);
            StoredEvent::Published { request, topic: payload, epoch, sequence, is_duplicate }
        }
        Kind::Nodes => {
            let node_len = usize::from(frame.record::<Nodes>()?.node_len);
            // A node's id that ends in the middle of a character is none.
            let len = if text.is_char_boundary(node_len) { node_len } else { 0 };
            let node = Span { len, ..payload };
            let addresses = Span { start: payload.start + len, len: payload.len - len, ..payload };
            StoredEvent::Nodes { node, addresses }
        }
        Kind::Expires | Kind::Source | Kind::Stale => return Ok(None),
        _ => return Err(DecodeError::UnknownKind(frame.header.kind).into()),
    }))
}

/// The number of ticks in a range: at most that of its sequences, whatever the server says, so that sums of ranges do not overflow.
/// If the server does not give it, the number of sequences.
fn counted(from: u64, to: u64, count: u64) -> u64 {
    let sequences = to.saturating_sub(from);
    if count == 0 { sequences } else { count.min(sequences) }
}

/// The fields of all server messages in one struct. Unknown fields are ignored.
#[derive(Deserialize)]
pub(super) struct Message<'a> {
    #[serde(default)]
    op: Option<String>,
    #[serde(default, borrow)]
    topic: Cow<'a, str>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    prev: Option<u64>,
    #[serde(default)]
    ts: u64,
    #[serde(default, borrow, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(default)]
    encoding: Option<String>,
    #[serde(default)]
    id: u32,
    #[serde(default)]
    pattern: Option<String>,
    #[serde(default)]
    topics: Vec<Announcement>,
    #[serde(default)]
    token: u64,
    #[serde(default)]
    code: u16,
    #[serde(default)]
    text: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    reconnect_after_ms: u32,
    #[serde(default)]
    server: String,
    #[serde(default)]
    node: String,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    epoch: u64,
    #[serde(default)]
    session: u64,
    #[serde(default)]
    frame_bytes_max: u32,
    #[serde(default)]
    features: Vec<String>,
    #[serde(default, deserialize_with = "json::key")]
    key: u64,
    #[serde(default)]
    snapshot: bool,
    #[serde(default)]
    from: u64,
    #[serde(default)]
    to: u64,
    #[serde(default)]
    count: u64,
    #[serde(default)]
    sequence: u64,
    #[serde(default)]
    recovered: bool,
    #[serde(default)]
    duplicate: bool,
}

#[derive(Deserialize)]
struct Announcement {
    topic: String,
    topic_id: u32,
    epoch: u64,
}

/// Operations that [`from_json`] knows.
const OPERATIONS: [&str; 10] = [
    "welcome",
    "subscribed",
    "conflated",
    "gap",
    "recovered",
    "unsubscribed",
    "published",
    "pong",
    "error",
    "closing",
];

/// The length of the JSON message at the start of `text`, if it has an operation that this client does not know.
pub(super) fn unknown_operation(text: &[u8]) -> Option<usize> {
    #[derive(Deserialize)]
    struct Operation {
        op: String,
    }
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<Operation>();
    let Operation { op } = values.next()?.ok()?;
    (!OPERATIONS.contains(&&*op)).then(|| values.byte_offset())
}

/// Output buffers for decoding a JSON message.
pub(super) struct JsonTarget<'a> {
    /// Receives the text or payload of the event.
    pub(super) scratch: &'a mut Vec<u8>,
    pub(super) topics: &'a mut Topics,
    /// Receives further events of the same message, such as the topics it announces.
    pub(super) queue: &'a mut VecDeque<StoredEvent>,
}

/// Decodes a JSON message; `None` for one that only announces topics, or has an operation that this client does not know.
pub(super) fn from_json(
    message: Message<'_>,
    target: JsonTarget<'_>,
) -> Result<Option<StoredEvent>, ProtocolError> {
    let JsonTarget { scratch, topics, queue } = target;
    let Some(op) = message.op.as_deref() else {
        return tick_from_json(&message, scratch, topics, queue).map(Some);
    };
    let mut keep = |text: &str| {
        scratch.clear();
        scratch.extend_from_slice(text.as_bytes());
        Span { buffer: Buffer::Scratch, start: 0, len: text.len() }
    };
    Ok(Some(match op {
        "welcome" => StoredEvent::Welcome {
            server: keep(&message.server),
            epoch: message.epoch,
            session: message.session,
            frame_bytes_max: message.frame_bytes_max,
            features: Features::from_names(message.features.iter().map(|name| &**name)),
        },
        "subscribed" => {
            for Announcement { topic, topic_id, epoch } in &message.topics {
                let not_sent = topics.announce(*topic_id, topic, *epoch)?;
                queue.push_back(StoredEvent::Topic { topic_id: *topic_id });
                let recovered = not_sent.map(|position| StoredRecovered::not_sent(*topic_id, position));
                queue.extend(recovered.map(StoredEvent::Recovered));
            }
            let Some(pattern) = &message.pattern else { return Ok(None) };
            StoredEvent::Subscribed { request: message.id, pattern: keep(pattern) }
        }
        "conflated" | "gap" => {
            let reason = if op == "gap" { SkipReason::Gap } else { SkipReason::Conflated };
            let topic_id = topic_id(topics, &message.topic)?;
            let Message { from, to, count, .. } = message;
            let count = counted(from, to, count);
            let before = topics.skip(topic_id, reason, from, to, count)?;
            let skipped = StoredEvent::Skipped { reason, topic_id, from, to, count };
            announced_first(before, topics, topic_id, from, skipped, queue)
        }
        "recovered" => {
            let Message { epoch, sequence, recovered, .. } = message;
            let (topic_id, requested) = topics.recover(None, &message.topic, epoch, sequence, recovered)?;
            let (name, epoch) = (keep(&message.topic), Some(epoch));
            let recovered = StoredRecovered { topic_id, name, requested, epoch, sequence, recovered };
            StoredEvent::Recovered(recovered)
        }
        "unsubscribed" => {
            topics.interrupt();
            let pattern = keep(message.pattern.as_deref().unwrap_or_default());
            StoredEvent::Unsubscribed { request: message.id, pattern }
        }
        "published" => {
            let Message { id: request, epoch, sequence, duplicate: is_duplicate, .. } = message;
            StoredEvent::Published { request, topic: keep(&message.topic), epoch, sequence, is_duplicate }
        }
        "nodes" => {
            let text = keep(&format!("{}{}", message.node, message.addresses.join(" ")));
            let node = Span { len: message.node.len(), ..text };
            let addresses = Span { start: node.len, len: text.len - node.len, ..text };
            StoredEvent::Nodes { node, addresses }
        }
        "pong" => StoredEvent::Pong { token: message.token },
        "error" => StoredEvent::Error { request: message.id, code: message.code, text: keep(&message.text) },
        "closing" => StoredEvent::Closing {
            code: message.code,
            text: keep(&message.reason),
            reconnect_after_ms: message.reconnect_after_ms,
        },
        // Of a newer server.
        _ => return Ok(None),
    }))
}

fn tick_from_json(
    message: &Message<'_>,
    scratch: &mut Vec<u8>,
    topics: &mut Topics,
    queue: &mut VecDeque<StoredEvent>,
) -> Result<StoredEvent, ProtocolError> {
    let Some(data) = message.data else {
        return Err(ProtocolError::Json("a message with neither \"op\" nor \"data\"".into()));
    };
    let topic_id = topic_id(topics, &message.topic)?;
    scratch.clear();
    match message.encoding.as_deref() {
        None | Some("json") => scratch.extend_from_slice(data.get().as_bytes()),
        Some("base64") => {
            let bad = |error: String| ProtocolError::Json(format!("base64 data: {error}"));
            let text: Cow<'_, str> =
                serde_json::from_str(data.get()).map_err(|error| bad(error.to_string()))?;
            BASE64.decode_vec(text.as_bytes(), scratch).map_err(|error| bad(error.to_string()))?;
        }
        Some(other) => return Err(ProtocolError::Json(format!("unknown encoding {other:?}"))),
    }
    let Message { seq: sequence, prev, snapshot, .. } = *message;
    let previous = prev.unwrap_or(sequence.saturating_sub(1));
    let Advance { missed, skipped } = topics.advance(topic_id, sequence, previous, snapshot)?;
    let tick = StoredEvent::Tick(StoredTick {
        topic_id,
        sequence,
        missed,
        times: TickTimes { producer_time_ns: message.ts, ingest_time_ns: 0 },
        schema: 0,
        key: message.key,
        snapshot,
        payload_is_json: message.encoding.as_deref() != Some("base64"),
        payload: Span { buffer: Buffer::Scratch, start: 0, len: scratch.len() },
    });
    Ok(announced_first(skipped, topics, topic_id, sequence, tick, queue))
}

fn topic_id(topics: &Topics, name: &str) -> Result<u32, ProtocolError> {
    topics.id(name).ok_or_else(|| ProtocolError::UnknownTopic(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_never_more_than_the_range_holds() {
        assert_eq!(counted(3, 9, 0), 6, "not given");
        assert_eq!(counted(3, 9, 4), 4);
        assert_eq!(counted(3, 9, u64::MAX), 6);
        assert_eq!(counted(9, 3, 5), 0);
    }
}
