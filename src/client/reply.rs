//! What the server says, from native frames and from JSON, as one set of items.

use std::{borrow::Cow, collections::VecDeque};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    client::{SessionError, topics::Topics},
    limits::FRAME_HEADER_BYTES,
    tick::{Closing, ErrorRecord, Request, Subscribed, TickTimes, Token, Welcome},
    wire::{
        DecodeError,
        frame::{FLAG_PAYLOAD_JSON, Frame, Kind},
        json::present,
    },
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

/// An event before it borrows: what it says, and where its bytes are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Item {
    Welcome { server: Span, epoch: u64, session: u64, frame_bytes_max: u32 },
    Subscribed { request: u32, pattern: Span },
    Topic { topic_id: u32 },
    Unsubscribed { request: u32, pattern: Span },
    Tick(TickItem),
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
    pub(super) payload_is_json: bool,
    pub(super) payload: Span,
}

/// The item of a frame that stands at `at` in the input.
pub(super) fn from_frame(frame: &Frame<'_>, at: usize, topics: &mut Topics) -> Result<Item, SessionError> {
    let payload = Span {
        buffer: Buffer::Input,
        start: at + FRAME_HEADER_BYTES + usize::from(frame.header.record_stride),
        len: frame.header.payload_len as usize,
    };
    if frame.kind == Kind::Tick {
        let (topic_id, sequence) = (frame.header.topic_id, frame.header.sequence);
        return Ok(Item::Tick(TickItem {
            topic_id,
            sequence,
            missed: topics.advance(topic_id, sequence)?,
            times: frame.record::<TickTimes>()?,
            schema: frame.header.schema,
            payload_is_json: frame.header.flags & FLAG_PAYLOAD_JSON != 0,
            payload,
        }));
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
                    topics.announce(topic_id, text, record.epoch)?;
                    Item::Topic { topic_id }
                }
            }
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
    /// Takes the numbers of the topics that the message announces: an event each, after its own.
    pub(super) announced: &'a mut VecDeque<u32>,
}

/// The item of a JSON message; `None` for one that only announces topics.
pub(super) fn from_json(message: Message<'_>, target: JsonTarget<'_>) -> Result<Option<Item>, SessionError> {
    let JsonTarget { scratch, topics, announced } = target;
    let Some(op) = message.op.as_deref() else {
        return tick_from_json(&message, scratch, topics).map(Some);
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
                topics.announce(*topic_id, topic, *epoch)?;
                announced.push_back(*topic_id);
            }
            let Some(pattern) = &message.pattern else { return Ok(None) };
            Item::Subscribed { request: message.id, pattern: keep(pattern) }
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
) -> Result<Item, SessionError> {
    let Some(data) = message.data else {
        return Err(SessionError::Json("a message with neither \"op\" nor \"data\"".into()));
    };
    let topic_id =
        topics.id(&message.topic).ok_or_else(|| SessionError::UnknownTopic(message.topic.to_string()))?;
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
    Ok(Item::Tick(TickItem {
        topic_id,
        sequence: message.seq,
        missed: topics.advance(topic_id, message.seq)?,
        times: TickTimes { producer_time_ns: message.ts, ingest_time_ns: 0 },
        schema: 0,
        payload_is_json: message.encoding.as_deref() != Some("base64"),
        payload: Span { buffer: Buffer::Scratch, start: 0, len: scratch.len() },
    }))
}
