//! Native frames over TCP. They contain their length, so the framing adds nothing.

use super::Incoming;
use crate::{
    DecodeError, Step,
    codec::Message,
    frame::{self, HeaderFields, Kind},
    records::Token,
};

/// Decodes the frame at the start of `bytes`.
#[inline]
pub(super) fn step(bytes: &[u8], frame_bytes_max: usize) -> Result<Step<Incoming<'_>>, DecodeError> {
    Ok(match frame::decode(bytes, frame_bytes_max)? {
        Step::Complete(used, frame) => Step::Complete(used, Incoming::Message(Message::Frame(frame))),
        Step::Partial => Step::Partial,
    })
}

/// Appends a PING frame.
pub fn encode_ping(out: &mut Vec<u8>, token: u64) {
    frame::encode(out, Kind::Ping, HeaderFields::default(), &Token { token }, &[]);
}
