//! Native frames of the server (PROTOCOL.md, "Native frames").

use std::borrow::Cow;

use bytes::Bytes;

use super::{
    event::{RecoveryFailure, SourceState},
    message::{ServerMessage, TickMessage, TopicRef},
};
use crate::{ProtocolError, topics::SkipReason};
use tickcast_proto::{
    DecodeError, Step,
    features::Features,
    frame::{self, FLAG_PAYLOAD_JSON, FLAG_SNAPSHOT, Frame, Kind, Received},
    limits::FRAME_HEADER_BYTES,
    records::{
        Closing, Condition, CountedRange, ErrorRecord, Expires, Nodes, Published, Recovered, Removed,
        SkippedRange, Subscribed, SubscribedSince, TickTimes, Token, Welcome, WelcomeWithFeatures,
        WireRecord,
    },
};

/// The messages in a message's frames.
pub(super) fn decode(message: &Bytes) -> Result<Vec<ServerMessage<'_>>, ProtocolError> {
    let (mut at, mut decoded) = (0, Vec::new());
    while at < message.len() {
        // Whoever received the message has checked its length.
        match frame::decode_received(&message[at..], usize::MAX)? {
            Step::Partial => return Err(ProtocolError::Truncated),
            Step::Complete(used, Received::Unknown(_)) => at += used,
            Step::Complete(used, Received::Frame(frame)) => {
                decoded.extend(decode_frame(message, at, &frame)?);
                at += used;
            }
        }
    }
    Ok(decoded)
}

/// The message of a frame that starts at `at`; `None` for a kind that this client has not asked for.
fn decode_frame<'a>(
    message: &'a Bytes,
    at: usize,
    frame: &Frame<'a>,
) -> Result<Option<ServerMessage<'a>>, ProtocolError> {
    let header = &frame.header;
    if frame.kind == Kind::Tick {
        let TickTimes { producer_time_ns, ingest_time_ns } = frame.record()?;
        let start = at + FRAME_HEADER_BYTES + usize::from(header.record_stride);
        return Ok(Some(ServerMessage::Tick(TickMessage {
            topic: TopicRef::Id(header.topic_id),
            sequence: header.sequence,
            previous: frame.previous(),
            producer_time_ns,
            ingest_time_ns,
            schema: header.schema,
            key: frame.key(),
            snapshot: header.flags & FLAG_SNAPSHOT != 0,
            payload_is_json: header.flags & FLAG_PAYLOAD_JSON != 0,
            payload: message.slice(start..start + header.payload_len as usize),
        })));
    }
    let text = Cow::Borrowed(frame.text()?);
    Ok(Some(match frame.kind {
        Kind::Ping => ServerMessage::Ping { token: frame.record::<Token>()?.token },
        Kind::Pong => ServerMessage::Pong { token: frame.record::<Token>()?.token },
        Kind::Welcome => {
            let record: WelcomeWithFeatures = frame.zero_extended_record(Welcome::STRIDE)?;
            let WelcomeWithFeatures { request, epoch, frame_bytes_max, features, .. } = record;
            let features = Features::from_wire(features);
            ServerMessage::Welcome { request, epoch, frame_bytes_max, features }
        }
        Kind::Subscribed => {
            let SubscribedSince { request, epoch, since_us, .. } =
                frame.zero_extended_record(Subscribed::STRIDE)?;
            match header.topic_id {
                0 => ServerMessage::Subscribed { request, since_us },
                topic_id => ServerMessage::Topic { name: text, topic_id, epoch },
            }
        }
        Kind::Unsubscribed => {
            // Without the feature `reasons`, the code's bytes are reserved and zero.
            let Removed { request, code, .. } = frame.record()?;
            ServerMessage::Unsubscribed { request, pattern: text, code, text: "".into() }
        }
        Kind::Error => {
            let ErrorRecord { request, code, .. } = frame.record()?;
            ServerMessage::Error { request, code, text }
        }
        Kind::Closing => {
            let Closing { code, reconnect_after_ms, .. } = frame.record()?;
            ServerMessage::Closing { code, text, reconnect_after_ms }
        }
        Kind::Conflated | Kind::Gap => {
            let CountedRange { from, to, count } = frame.zero_extended_record(SkippedRange::STRIDE)?;
            let reason = if frame.kind == Kind::Gap { SkipReason::Gap } else { SkipReason::Conflated };
            let count = if count == 0 { to.saturating_sub(from) } else { count };
            ServerMessage::Skipped { topic: TopicRef::Id(header.topic_id), reason, from, to, count }
        }
        Kind::Recovered => {
            let Recovered { epoch, sequence, recovered, reason, .. } = frame.record()?;
            let failure = (recovered == 0).then(|| RecoveryFailure::from_wire(reason));
            let topic_id = Some(header.topic_id);
            ServerMessage::Recovered { topic: text, topic_id, epoch, sequence, failure }
        }
        Kind::Published => {
            let Published { epoch, request, is_duplicate } = frame.record()?;
            let (sequence, is_duplicate) = (header.sequence, is_duplicate != 0);
            ServerMessage::Published { request, topic: text, epoch, sequence, is_duplicate }
        }
        Kind::Expires => {
            let Expires { request, expires_in_s } = frame.record()?;
            ServerMessage::Expires { request, expires_in_s }
        }
        Kind::Source => {
            let Condition { since_ns, state, .. } = frame.record()?;
            ServerMessage::Source { source: text, state: SourceState::from_wire(state), since_ns }
        }
        Kind::Stale => {
            let Condition { since_ns, state, .. } = frame.record()?;
            ServerMessage::Stale { topic: TopicRef::Id(header.topic_id), is_stale: state != 0, since_ns }
        }
        Kind::Nodes => {
            let node_len = usize::from(frame.record::<Nodes>()?.node_len);
            let addresses = text.get(node_len..).unwrap_or_default().to_owned().into();
            ServerMessage::Nodes { addresses }
        }
        _ => return Err(DecodeError::UnknownKind(header.kind).into()),
    }))
}
