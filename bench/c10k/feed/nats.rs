//! The subscriber's side of the NATS client protocol.
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

/// One connection; its subscriptions are known to the server alone.
#[derive(Debug)]
pub struct Nats;

impl Nats {
    /// Appends the opening: the options, a subscription a pattern, and the ping whose pong acknowledges them all.
    pub fn open(patterns: &[String], output: &mut Vec<u8>) -> Nats {
        output.extend_from_slice(
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"tls_required\":false,\"lang\":\"rust\",\"version\":\"",
        );
        output.extend_from_slice(env!("CARGO_PKG_VERSION").as_bytes());
        output.extend_from_slice(b"\",\"name\":\"tickcast-c10k\",\"protocol\":1}\r\n");
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
                None => return Err(FeedError::Protocol("a line that NATS does not have")),
            },
        };
        Ok(Step::Complete(used, item))
    }
}

/// The payload after the line `message` (what follows `MSG `), which ends at `start`.
#[inline]
fn payload(input: &[u8], start: usize, message: &[u8]) -> Result<Step<Item>, FeedError> {
    let mut fields = message.rsplit(|&byte| byte == b' ');
    let len = fields.next().and_then(number).ok_or(FeedError::Protocol("a message without a length"))?;
    // Subject and subscription, and perhaps a subject for the reply.
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
        Some(_) => Err(FeedError::Protocol("a message that is not as long as it says")),
    }
}
