//! What the server says, from native frames and from JSON, as one set of items.

use std::{borrow::Cow, collections::VecDeque};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    SessionError,
    topics::{Advanced, Skip, Topics, Unrecovered},
};
use tickcast_proto::{
    DecodeError,
    codec::json::present,
    frame::{FLAG_PAYLOAD_JSON, FLAG_SNAPSHOT, Frame, Kind},
    limits::FRAME_HEADER_BYTES,
    records::{Closing, ErrorRecord, Recovered, Request, Skipped, Subscribed, TickTimes, Token, Welcome},
    subscription::Position,
};

/// Where a session keeps the bytes an item speaks of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Buffer {
    /// As received.
    Input,
    /// Decoded from JSON.
    Scratch,
}

/// A run of bytes in one of the session's buffers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) buffer: Buffer,
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Span {
    const EMPTY: Span = Span { buffer: Buffer::Input, start: 0, len: 0 };
}

/// An event before it borrows: what it says, and where its bytes are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Item {
    Welcome { server: Span, epoch: u64, session: u64, frame_bytes_max: u32 },
    Subscribed { request: u32, pattern: Span },
    Topic { topic_id: u32 },
    Unsubscribed { request: u32, pattern: Span },
    Tick(TickItem),
    Skipped { skip: Skip, topic_id: u32, from: u64, to: u64 },
    Recovered(RecoveredItem),
    Payload(Span),
    Pong { token: u64 },
    Error { request: u32, code: u16, text: Span },
    Closing { code: u16, text: Span, reconnect_after_ms: u32 },
    Closed,
}

/// A tick before it borrows.
#[derive(Clone, Copy, Debug)]
pub(super) struct TickItem {
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

impl TickItem {
    /// The tick of a frame that stands at `at` in the input.
    #[inline]
    pub(super) fn new(frame: &Frame<'_>, at: usize, missed: u64) -> Result<TickItem, DecodeError> {
        let header = &frame.header;
        Ok(TickItem {
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

/// What became of a place, before it borrows.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecoveredItem {
    pub(super) topic_id: u32,
    /// Empty: that of the topic.
    pub(super) name: Span,
    pub(super) place: Position,
    /// `None`: that of the topic.
    pub(super) epoch: Option<u64>,
    pub(super) sequence: u64,
    pub(super) recovered: bool,
}

impl RecoveredItem {
    /// What a session says by itself.
    fn by_itself(topic_id: u32, unrecovered: Unrecovered) -> RecoveredItem {
        let Unrecovered { place } = unrecovered;
        RecoveredItem { topic_id, name: Span::EMPTY, place, epoch: None, sequence: 0, recovered: false }
    }
}

/// An item, with what is left out before it as one of its own.
#[inline]
fn after(
    left_out: Option<(Skip, u64)>,
    topic_id: u32,
    to: u64,
    item: Item,
    later: &mut VecDeque<Item>,
) -> Item {
    let Some((skip, from)) = left_out else { return item };
    later.push_back(item);
    Item::Skipped { skip, topic_id, from, to }
}

/// The item of a frame that stands at `at` in the input. What follows from the same frame goes to `later`.
pub(super) fn from_frame(
    frame: &Frame<'_>,
    at: usize,
    topics: &mut Topics,
    later: &mut VecDeque<Item>,
) -> Result<Item, SessionError> {
    let payload = Span {
        buffer: Buffer::Input,
        start: at + FRAME_HEADER_BYTES + usize::from(frame.header.record_stride),
        len: frame.header.payload_len as usize,
    };
    if frame.kind == Kind::Tick {
        let (topic_id, sequence) = (frame.header.topic_id, frame.header.sequence);
        let snapshot = frame.header.flags & FLAG_SNAPSHOT != 0;
        let Advanced { missed, left_out } = topics.advance(topic_id, sequence, snapshot)?;
        let tick = Item::Tick(TickItem::new(frame, at, missed)?);
        return Ok(after(left_out, topic_id, sequence, tick, later));
    }
    let text = frame.text()?;
    Ok(match frame.kind {
        Kind::Welcome => {
            let Welcome { epoch, session, frame_bytes_max, .. } = frame.record()?;
            Item::Welcome { server: payload, epoch, session, frame_bytes_max }
        }
        Kind::Subscribed => {
            let record = frame.record::<Subscribed>()?;
            match frame.header.topic_id {
                0 => Item::Subscribed { request: record.request, pattern: payload },
                topic_id => {
                    let unrecovered = topics.announce(topic_id, text, record.epoch)?;
                    let told = unrecovered.map(|told| RecoveredItem::by_itself(topic_id, told));
                    later.extend(told.map(Item::Recovered));
                    Item::Topic { topic_id }
                }
            }
        }
        Kind::Conflated | Kind::Gap => {
            let Skipped { from, to } = frame.record()?;
            let skip = if frame.kind == Kind::Gap { Skip::Gap } else { Skip::Conflated };
            let topic_id = frame.header.topic_id;
            let before = topics.skip(topic_id, skip, from, to)?;
            after(before, topic_id, from, Item::Skipped { skip, topic_id, from, to }, later)
        }
        Kind::Recovered => {
            let Recovered { epoch, sequence, recovered, .. } = frame.record()?;
            let (id, recovered) = (Some(frame.header.topic_id), recovered != 0);
            let (topic_id, place) = topics.recover(id, text, epoch, sequence, recovered)?;
            let epoch = Some(epoch);
            Item::Recovered(RecoveredItem { topic_id, name: payload, place, epoch, sequence, recovered })
        }
        Kind::Unsubscribed => {
            topics.interrupt();
            Item::Unsubscribed { request: frame.record::<Request>()?.request, pattern: payload }
        }
        Kind::Pong => Item::Pong { token: frame.record::<Token>()?.token },
        Kind::Error => {
            let record = frame.record::<ErrorRecord>()?;
            Item::Error { request: record.request, code: record.code, text: payload }
        }
        Kind::Closing => {
            let record = frame.record::<Closing>()?;
            let reconnect_after_ms = record.reconnect_after_ms;
            Item::Closing { code: record.code, text: payload, reconnect_after_ms }
        }
        _ => {
            return Err(DecodeError::UnknownKind(frame.header.kind).into());
        }
    })
}

/// Every field any server message has. Fields added later are passed over.
#[derive(Deserialize)]
pub(super) struct Message<'a> {
    #[serde(default)]
    op: Option<String>,
    #[serde(default, borrow)]
    topic: Cow<'a, str>,
    #[serde(default)]
    seq: u64,
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
    epoch: u64,
    #[serde(default)]
    session: u64,
    #[serde(default)]
    frame_bytes_max: u32,
    #[serde(default)]
    key: u64,
    #[serde(default)]
    snapshot: bool,
    #[serde(default)]
    from: u64,
    #[serde(default)]
    to: u64,
    #[serde(default)]
    sequence: u64,
    #[serde(default)]
    recovered: bool,
}

#[derive(Deserialize)]
struct Announcement {
    topic: String,
    topic_id: u32,
    epoch: u64,
}

/// What a JSON message is read into, besides its item.
pub(super) struct JsonTarget<'a> {
    /// Takes the text or payload of the item.
    pub(super) scratch: &'a mut Vec<u8>,
    pub(super) topics: &'a mut Topics,
    /// Takes what follows the message's own item: the topics that it announces, and what they bring.
    pub(super) later: &'a mut VecDeque<Item>,
}

/// The item of a JSON message; `None` for one that only announces topics.
pub(super) fn from_json(message: Message<'_>, target: JsonTarget<'_>) -> Result<Option<Item>, SessionError> {
    let JsonTarget { scratch, topics, later } = target;
    let Some(op) = message.op.as_deref() else {
        return tick_from_json(&message, scratch, topics, later).map(Some);
    };
    let mut keep = |text: &str| {
        scratch.clear();
        scratch.extend_from_slice(text.as_bytes());
        Span { buffer: Buffer::Scratch, start: 0, len: text.len() }
    };
    Ok(Some(match op {
        "welcome" => Item::Welcome {
            server: keep(&message.server),
            epoch: message.epoch,
            session: message.session,
            frame_bytes_max: message.frame_bytes_max,
        },
        "subscribed" => {
            for Announcement { topic, topic_id, epoch } in &message.topics {
                let unrecovered = topics.announce(*topic_id, topic, *epoch)?;
                later.push_back(Item::Topic { topic_id: *topic_id });
                let told = unrecovered.map(|told| RecoveredItem::by_itself(*topic_id, told));
                later.extend(told.map(Item::Recovered));
            }
            let Some(pattern) = &message.pattern else { return Ok(None) };
            Item::Subscribed { request: message.id, pattern: keep(pattern) }
        }
        "conflated" | "gap" => {
            let skip = if op == "gap" { Skip::Gap } else { Skip::Conflated };
            let topic_id = known(topics, &message.topic)?;
            let Message { from, to, .. } = message;
            let before = topics.skip(topic_id, skip, from, to)?;
            after(before, topic_id, from, Item::Skipped { skip, topic_id, from, to }, later)
        }
        "recovered" => {
            let Message { epoch, sequence, recovered, .. } = message;
            let (topic_id, place) = topics.recover(None, &message.topic, epoch, sequence, recovered)?;
            let (name, epoch) = (keep(&message.topic), Some(epoch));
            Item::Recovered(RecoveredItem { topic_id, name, place, epoch, sequence, recovered })
        }
        "unsubscribed" => {
            topics.interrupt();
            let pattern = keep(message.pattern.as_deref().unwrap_or_default());
            Item::Unsubscribed { request: message.id, pattern }
        }
        "pong" => Item::Pong { token: message.token },
        "error" => Item::Error { request: message.id, code: message.code, text: keep(&message.text) },
        "closing" => Item::Closing {
            code: message.code,
            text: keep(&message.reason),
            reconnect_after_ms: message.reconnect_after_ms,
        },
        other => return Err(SessionError::Json(format!("unknown op {other:?}"))),
    }))
}

fn tick_from_json(
    message: &Message<'_>,
    scratch: &mut Vec<u8>,
    topics: &mut Topics,
    later: &mut VecDeque<Item>,
) -> Result<Item, SessionError> {
    let Some(data) = message.data else {
        return Err(SessionError::Json("a message with neither \"op\" nor \"data\"".into()));
    };
    let topic_id = known(topics, &message.topic)?;
    scratch.clear();
    match message.encoding.as_deref() {
        None | Some("json") => scratch.extend_from_slice(data.get().as_bytes()),
        Some("base64") => {
            let bad = |error: String| SessionError::Json(format!("base64 data: {error}"));
            let text: Cow<'_, str> =
                serde_json::from_str(data.get()).map_err(|error| bad(error.to_string()))?;
            BASE64.decode_vec(text.as_bytes(), scratch).map_err(|error| bad(error.to_string()))?;
        }
        Some(other) => return Err(SessionError::Json(format!("unknown encoding {other:?}"))),
    }
    let Message { seq: sequence, snapshot, .. } = *message;
    let Advanced { missed, left_out } = topics.advance(topic_id, sequence, snapshot)?;
    let tick = Item::Tick(TickItem {
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
    Ok(after(left_out, topic_id, sequence, tick, later))
}

fn known(topics: &Topics, name: &str) -> Result<u32, SessionError> {
    topics.id(name).ok_or_else(|| SessionError::UnknownTopic(name.to_owned()))
}
