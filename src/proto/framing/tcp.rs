//! Native frames on a TCP connection: they say themselves how long they are, so nothing is put around them.

use super::Incoming;
use crate::{
    DecodeError, Step,
    codec::Message,
    frame::{self, Kind, Meta},
    records::Token,
};

/// Takes the frame that `bytes` begin with.
#[inline]
pub(super) fn step(bytes: &[u8], frame_bytes_max: usize) -> Result<Step<Incoming<'_>>, DecodeError> {
    Ok(match frame::decode(bytes, frame_bytes_max)? {
        Step::Complete(used, frame) => Step::Complete(used, Incoming::Message(Message::Frame(frame))),
        Step::Partial => Step::Partial,
    })
}

/// Appends a PING.
pub fn encode_ping(out: &mut Vec<u8>, token: u64) {
    frame::encode(out, Kind::Ping, Meta::default(), &Token { token }, &[]);
}
