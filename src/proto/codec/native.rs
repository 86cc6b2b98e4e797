//! The native codec: each message body is one [`crate::frame`].

use crate::{
    DecodeError, Step,
    command::Command,
    frame::{self, HeaderFields, Kind},
    records::{Closing, ErrorRecord, Recovered, Request, Subscribed, Token, Welcome},
    reply::{Reply, SERVER},
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
        Reply::Welcome { request, epoch, session, frame_bytes_max } => {
            let record = Welcome { epoch, session, frame_bytes_max: frame_bytes_max as u32, request };
            frame::encode(out, Kind::Welcome, fields, &record, &[SERVER.as_bytes()]);
        }
        Reply::Subscribed { request, pattern, epoch } => {
            let record = Subscribed { epoch, request, reserved: 0 };
            frame::encode(out, Kind::Subscribed, fields, &record, &[pattern.as_bytes()]);
        }
        Reply::Unsubscribed { request, pattern } => {
            let record = Request { request, reserved: 0 };
            frame::encode(out, Kind::Unsubscribed, fields, &record, &[pattern.as_bytes()]);
        }
        Reply::Recovered { topic_id, name, epoch, sequence, recovered } => {
            let fields = HeaderFields { topic_id, ..fields };
            let record = Recovered { epoch, sequence, recovered: recovered.into(), reserved: 0 };
            frame::encode(out, Kind::Recovered, fields, &record, &[name.as_bytes()]);
        }
        Reply::Conflated { topic, from, to, .. } => {
            frame::encode_skipped(out, Kind::Conflated, topic, from, to);
        }
        Reply::Gap { topic, from, to, .. } => frame::encode_skipped(out, Kind::Gap, topic, from, to),
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
