//! What the server says, whatever the encoding. [`super::native`] and [`super::json`] decode these.

use std::borrow::Cow;

use bytes::Bytes;

use super::{
    actions::Message,
    event::{RecoveryFailure, SourceState},
};
use crate::{ProtocolError, request::Outgoing, topics::SkipReason};
use tickcast_proto::{
    codec::Codec,
    features::Features,
    frame,
    limits::{FRAME_HEADER_BYTES, JSON_ENVELOPE_BYTES},
};

/// Length at which positions in native frames continue in another message.
const RESUME_MESSAGE_BYTES: usize = 64 << 10;

/// A topic in a message of the server: by name in JSON, by number in native frames.
#[derive(Clone, Debug)]
pub(super) enum TopicRef<'a> {
    Name(Cow<'a, str>),
    Id(u32),
}

/// A tick.
#[derive(Clone, Debug)]
pub(super) struct TickMessage<'a> {
    pub(super) topic: TopicRef<'a>,
    pub(super) sequence: u64,
    /// An upper bound of the preceding sequence in the topic.
    pub(super) previous: u64,
    pub(super) producer_time_ns: u64,
    pub(super) ingest_time_ns: u64,
    pub(super) schema: u32,
    pub(super) key: u64,
    pub(super) snapshot: bool,
    pub(super) payload_is_json: bool,
    pub(super) payload: Bytes,
}

/// One message of the server. Borrows from the received bytes.
#[derive(Clone, Debug)]
pub(super) enum ServerMessage<'a> {
    Tick(TickMessage<'a>),
    Welcome {
        request: u32,
        epoch: u64,
        frame_bytes_max: u32,
        features: Features,
    },
    Subscribed {
        request: u32,
        /// When the subscription became live; 0: not known.
        since_us: u64,
    },
    Topic {
        name: Cow<'a, str>,
        topic_id: u32,
        epoch: u64,
    },
    Unsubscribed {
        request: u32,
        pattern: Cow<'a, str>,
        code: u16,
        text: Cow<'a, str>,
    },
    Skipped {
        topic: TopicRef<'a>,
        reason: SkipReason,
        from: u64,
        to: u64,
        count: u64,
    },
    Recovered {
        topic: Cow<'a, str>,
        /// 0: the topic does not exist; `None` in JSON.
        topic_id: Option<u32>,
        epoch: u64,
        sequence: u64,
        failure: Option<RecoveryFailure>,
    },
    Published {
        request: u32,
        topic: Cow<'a, str>,
        epoch: u64,
        sequence: u64,
        is_duplicate: bool,
    },
    /// Addresses of nodes, separated by spaces.
    Nodes {
        addresses: Cow<'a, str>,
    },
    Ping {
        token: u64,
    },
    Pong {
        token: u64,
    },
    Error {
        request: u32,
        code: u16,
        text: Cow<'a, str>,
    },
    Closing {
        code: u16,
        text: Cow<'a, str>,
        reconnect_after_ms: u32,
    },
    Expires {
        request: u32,
        expires_in_s: u32,
    },
    Source {
        source: Cow<'a, str>,
        state: SourceState,
        since_ns: u64,
    },
    Stale {
        topic: TopicRef<'a>,
        is_stale: bool,
        since_ns: u64,
    },
}

/// Decodes all of a message, or none of it. Skips kinds and operations that this version does not know.
pub(super) fn decode<'a>(
    codec: Codec,
    message: &'a Message,
) -> Result<Vec<ServerMessage<'a>>, ProtocolError> {
    match (codec, message) {
        (Codec::Native, Message::Binary(bytes)) => super::native::decode(bytes),
        (Codec::Native, Message::Text(_)) => Err(wrong_type("text in the native encoding")),
        (_, Message::Text(bytes)) => super::json::decode(bytes),
        (_, Message::Binary(_)) => Err(wrong_type("a binary message in the JSON encoding")),
    }
}

fn wrong_type(what: &'static str) -> ProtocolError {
    ProtocolError::Decode(tickcast_proto::DecodeError::WrongMessageType(what))
}

/// The message of a request.
pub(super) fn encode(codec: Codec, request: &Outgoing<'_>) -> Message {
    match codec {
        Codec::Native => {
            let mut frames = Vec::new();
            request.encode_frame(&mut frames);
            Message::Binary(frames.into())
        }
        _ => Message::Text(request.to_json().into()),
    }
}

/// The messages of a subscription: one, or with many positions in native frames some of at most [`RESUME_MESSAGE_BYTES`].
pub(super) fn encode_subscribe(codec: Codec, request: &Outgoing<'_>) -> Vec<Message> {
    let whole = match encode(codec, request) {
        Message::Binary(frames) if frames.len() > RESUME_MESSAGE_BYTES => frames,
        message => return vec![message],
    };
    let mut messages = Vec::new();
    let (mut start, mut end) = (0, 0);
    while let Some(len) = frame_len(&whole[end..]) {
        if end > start && end + len - start > RESUME_MESSAGE_BYTES {
            messages.push(Message::Binary(whole.slice(start..end)));
            start = end;
        }
        end += len;
    }
    messages.push(Message::Binary(whole.slice(start..end)));
    messages
}

/// Length of the frame at the start of what this client has encoded.
fn frame_len(frames: &[u8]) -> Option<usize> {
    match frame::decode(frames, usize::MAX) {
        Ok(tickcast_proto::Step::Complete(len, _)) if len >= FRAME_HEADER_BYTES => Some(len),
        _ => None,
    }
}

/// The longest message that a server accepts whose largest frame this is.
pub(super) fn message_bytes_max(codec: Codec, frame_bytes_max: usize) -> usize {
    match codec {
        Codec::Native => frame_bytes_max,
        _ => frame_bytes_max.saturating_mul(4) / 3 + JSON_ENVELOPE_BYTES,
    }
}
