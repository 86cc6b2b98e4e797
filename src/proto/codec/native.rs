//! The native codec: each message body is one [`crate::frame`].

use crate::{
    DecodeError, Step,
    command::Command,
    frame::{self, HeaderFields, Kind},
    records::{
        Closing, Condition, CountedRange, ErrorRecord, Expires, Nodes, Published, Recovered, Removed,
        Request, SkippedRange, Subscribed, SubscribedSince, Token, Welcome, WelcomeWithFeatures,
    },
    reply::{Reply, SERVER, Skipped},
};

/// Decodes the first request in `frames` and returns it with the frames after it.
///
/// # Errors
/// Those of [`frame::decode`] and [`Command::from_frame`], and [`DecodeError::BadLength`] if the bytes end in the
/// middle of a frame.
pub(super) fn decode_next(
    frames: &[u8],
    frame_bytes_max: usize,
) -> Result<(Command<'_>, &[u8]), DecodeError> {
    let Step::Complete(used, frame) = frame::decode(frames, frame_bytes_max)? else {
        return Err(DecodeError::BadLength(frames.len() as u32));
    };
    Ok((Command::from_frame(&frame)?, &frames[used..]))
}

/// Appends a reply.
pub(super) fn encode_reply(reply: &Reply<'_>, out: &mut Vec<u8>) {
    let fields = HeaderFields::default();
    match *reply {
        Reply::Welcome { request, epoch, session, frame_bytes_max, features } => {
            let frame_bytes_max = frame_bytes_max as u32;
            match features {
                None => {
                    let record = Welcome { epoch, session, frame_bytes_max, request };
                    frame::encode(out, Kind::Welcome, fields, &record, &[SERVER.as_bytes()]);
                }
                Some(features) => {
                    let features = features.to_wire();
                    let record = WelcomeWithFeatures { epoch, session, frame_bytes_max, request, features };
                    frame::encode(out, Kind::Welcome, fields, &record, &[SERVER.as_bytes()]);
                }
            }
        }
        Reply::Nodes { node, addresses } => {
            let record = Nodes { node_len: node.len() as u16, ..Nodes::default() };
            let addresses = addresses.join(" ");
            frame::encode(out, Kind::Nodes, fields, &record, &[node.as_bytes(), addresses.as_bytes()]);
        }
        Reply::Expires { request, expires_in_s } => {
            frame::encode(out, Kind::Expires, fields, &Expires { request, expires_in_s }, &[]);
        }
        Reply::Subscribed { request, pattern, epoch, since_us: None } => {
            let record = Subscribed { epoch, request, reserved: 0 };
            frame::encode(out, Kind::Subscribed, fields, &record, &[pattern.as_bytes()]);
        }
        Reply::Subscribed { request, pattern, epoch, since_us: Some(since_us) } => {
            let record = SubscribedSince { epoch, request, reserved: 0, since_us };
            frame::encode(out, Kind::Subscribed, fields, &record, &[pattern.as_bytes()]);
        }
        Reply::Unsubscribed { request, pattern } => {
            let record = Request { request, reserved: 0 };
            frame::encode(out, Kind::Unsubscribed, fields, &record, &[pattern.as_bytes()]);
        }
        Reply::Recovered { topic_id, name, epoch, sequence, recovered, reason } => {
            let fields = HeaderFields { topic_id, ..fields };
            let reason = reason.map_or(0, |reason| reason as u16);
            let record = Recovered { epoch, sequence, recovered: recovered.into(), reason, reserved: 0 };
            frame::encode(out, Kind::Recovered, fields, &record, &[name.as_bytes()]);
        }
        Reply::Conflated(skipped) => encode_skipped(out, Kind::Conflated, &skipped),
        Reply::Gap(skipped) => encode_skipped(out, Kind::Gap, &skipped),
        Reply::Removed { pattern, code, .. } => {
            let record = Removed { code: code as u16, ..Removed::default() };
            frame::encode(out, Kind::Unsubscribed, fields, &record, &[pattern.as_bytes()]);
        }
        Reply::Published { request, topic, name, epoch, sequence, is_duplicate } => {
            let fields = HeaderFields { topic_id: topic.0, sequence, ..fields };
            let record = Published { epoch, request, is_duplicate: is_duplicate.into() };
            frame::encode(out, Kind::Published, fields, &record, &[name.as_bytes()]);
        }
        Reply::Source { name, state, since_ns } => {
            let record = Condition { since_ns, state: state as u32, reserved: 0 };
            frame::encode(out, Kind::Source, fields, &record, &[name.as_bytes()]);
        }
        Reply::Stale { topic, is_stale, since_ns, .. } => {
            let fields = HeaderFields { topic_id: topic.0, ..fields };
            let record = Condition { since_ns, state: is_stale.into(), reserved: 0 };
            frame::encode(out, Kind::Stale, fields, &record, &[]);
        }
        Reply::Pong { token } => {
            frame::encode(out, Kind::Pong, fields, &Token { token }, &[]);
        }
        Reply::Error { request, code, text } => {
            let record = ErrorRecord { request, code: code as u16, reserved: 0 };
            frame::encode(out, Kind::Error, fields, &record, &[text.as_bytes()]);
        }
        Reply::Closing { code, reason, reconnect_after_ms } => {
            let record = Closing { reconnect_after_ms, code, reserved: 0 };
            frame::encode(out, Kind::Closing, fields, &record, &[reason.as_bytes()]);
        }
    }
}

fn encode_skipped(out: &mut Vec<u8>, kind: Kind, skipped: &Skipped<'_>) {
    let Skipped { topic, from, to, count, .. } = *skipped;
    let fields = HeaderFields { topic_id: topic.0, ..HeaderFields::default() };
    match count {
        None => frame::encode(out, kind, fields, &SkippedRange { from, to }, &[]),
        Some(count) => frame::encode(out, kind, fields, &CountedRange { from, to, count }, &[]),
    };
}
