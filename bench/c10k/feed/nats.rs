//! NATS client protocol, subscriber side.
//!
//! ```text
//!  in:   INFO {...}    MSG subject sid [reply] bytes CR LF payload    PING    PONG    +OK    -ERR 'text'
//!  out:  CONNECT {...}    SUB subject sid    PING    PONG
//! ```

use std::io::Write;

use tickcast_proto::Step;

use super::{
    FeedError, PAYLOAD_BYTES_MAX,
    lines::{line, number},
    peer::{Item, Protocol},
};
use crate::common::nats::write_connect;

/// One connection. It keeps no state: the server alone knows the subscriptions.
#[derive(Debug)]
pub struct Nats;

impl Nats {
    /// Appends CONNECT, a SUB per pattern, and a PING whose PONG acknowledges them all.
    pub fn open(patterns: &[String], output: &mut Vec<u8>) -> Nats {
        write_connect("tickcast-c10k", output);
        for (index, pattern) in patterns.iter().enumerate() {
            // Writing to a Vec cannot fail.
            let _ = write!(output, "SUB {pattern} {}\r\n", index + 1);
        }
        output.extend_from_slice(b"PING\r\n");
        Nats
    }
}

impl Protocol for Nats {
    #[inline]
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<Step<Item>, FeedError> {
        let Step::Complete(used, text) = line(input)? else { return Ok(Step::Partial) };
        if let Some(message) = text.strip_prefix(b"MSG ") {
            return payload(input, used, message);
        }
        let item = match text {
            b"PONG" => Item::Acknowledged,
            b"PING" => {
                output.extend_from_slice(b"PONG\r\n");
                Item::Nothing
            }
            b"+OK" => Item::Nothing,
            _ if text.starts_with(b"INFO ") => Item::Nothing,
            _ => match text.strip_prefix(b"-ERR ") {
                Some(why) => return Err(FeedError::Refused(String::from_utf8_lossy(why).into_owned())),
                None => return Err(FeedError::Protocol("a line that is not NATS")),
            },
        };
        Ok(Step::Complete(used, item))
    }
}

/// Parses the arguments of a MSG line, `message`, and the payload that follows it at `start`.
#[inline]
fn payload(input: &[u8], start: usize, message: &[u8]) -> Result<Step<Item>, FeedError> {
    let mut fields = message.rsplit(|&byte| byte == b' ');
    let len = fields.next().and_then(number).ok_or(FeedError::Protocol("a message without a length"))?;
    // Subject, subscription and possibly a reply subject.
    if !(2..=3).contains(&fields.count()) {
        return Err(FeedError::Protocol("a message without a subject"));
    }
    if len > PAYLOAD_BYTES_MAX as u64 {
        return Err(FeedError::LongPayload(len));
    }
    let end = start + len as usize;
    match input.get(end..end + 2) {
        None => Ok(Step::Partial),
        Some(b"\r\n") => Ok(Step::Complete(end + 2, Item::Payload(start..end))),
        Some(_) => Err(FeedError::Protocol("a message whose length is wrong")),
    }
}
