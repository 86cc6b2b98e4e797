//! Redis pub/sub (RESP2), subscriber side.
//!
//! ```text
//!  in:   *3 "subscribe" channel :n    *3 "message" channel payload    *4 "pmessage" pattern channel payload    -ERR text
//!  out:  SUBSCRIBE channel    PSUBSCRIBE pattern
//! ```
//!
//! Only these shapes are parsed. The `redis-protocol` crate (6.0) would parse a message of 100 bytes in 80 to 140 ns, but it
//! recurses into nested arrays without a limit: 800 KB of `*1` overflow the stack, and no peer may crash this process.

use std::{io::Write, ops::Range};

use tickcast_proto::Step;

use super::{
    FeedError, PAYLOAD_BYTES_MAX,
    lines::{line, number},
    peer::{Item, Protocol},
};

/// Elements of the longest push, `pmessage`.
const ELEMENTS_MAX: usize = 4;

/// One connection. It keeps no state: the server alone knows the subscriptions.
#[derive(Debug)]
pub struct Redis;

impl Redis {
    /// Appends the subscriptions, each of which the server acknowledges.
    ///
    /// A pattern without `*` and `>` becomes a channel, which costs Redis less. `>` becomes `*`, which matches any number
    /// of tokens there.
    pub fn open(patterns: &[String], output: &mut Vec<u8>) -> Redis {
        for pattern in patterns {
            let is_channel = !pattern.contains(['*', '>']);
            let (command, name) =
                if is_channel { ("SUBSCRIBE", pattern.clone()) } else { ("PSUBSCRIBE", glob(pattern)) };
            // Writing to a Vec cannot fail.
            let _ = write!(output, "*2\r\n${}\r\n{command}\r\n${}\r\n{name}\r\n", command.len(), name.len());
        }
        Redis
    }
}

/// Translates a pattern into a Redis glob.
fn glob(pattern: &str) -> String {
    let mut glob = String::with_capacity(pattern.len());
    for letter in pattern.chars() {
        match letter {
            '>' => glob.push('*'),
            '?' | '[' | ']' | '\\' => glob.extend(['\\', letter]),
            _ => glob.push(letter),
        }
    }
    glob
}

impl Protocol for Redis {
    #[inline]
    fn step(&mut self, input: &[u8], _: &mut Vec<u8>) -> Result<Step<Item>, FeedError> {
        match input.first() {
            None => return Ok(Step::Partial),
            Some(b'*') => {}
            Some(b'-') => {
                let Step::Complete(_, text) = line(&input[1..])? else { return Ok(Step::Partial) };
                return Err(FeedError::Refused(String::from_utf8_lossy(text).into_owned()));
            }
            Some(_) => return Err(FeedError::Protocol("what Redis never sends to a subscriber")),
        }
        let Step::Complete(used, count) = line(&input[1..])? else { return Ok(Step::Partial) };
        let count = number(count).filter(|&count| (1..=ELEMENTS_MAX as u64).contains(&count));
        let count = count.ok_or(FeedError::Protocol("an array of the wrong length"))? as usize;
        let mut at = 1 + used;
        let mut elements: [Range<usize>; ELEMENTS_MAX] = [0..0, 0..0, 0..0, 0..0];
        for element in &mut elements[..count] {
            let Step::Complete(used, range) = read_element(&input[at..])? else { return Ok(Step::Partial) };
            *element = at + range.start..at + range.end;
            at += used;
        }
        let item = match (&input[elements[0].clone()], count) {
            (b"message", 3) => Item::Payload(elements[2].clone()),
            (b"pmessage", 4) => Item::Payload(elements[3].clone()),
            (b"subscribe" | b"psubscribe", 3) => Item::Acknowledged,
            _ => return Err(FeedError::Protocol("an array that is not pub/sub")),
        };
        Ok(Step::Complete(at, item))
    }
}

/// Parses the bulk string or integer that `input` begins with: its length, and the range of its value.
#[inline]
fn read_element(input: &[u8]) -> Result<Step<Range<usize>>, FeedError> {
    let Some(&kind) = input.first() else { return Ok(Step::Partial) };
    if kind != b'$' && kind != b':' {
        return Err(FeedError::Protocol("an element that is not pub/sub"));
    }
    let Step::Complete(used, text) = line(&input[1..])? else { return Ok(Step::Partial) };
    if kind == b':' {
        return Ok(Step::Complete(1 + used, 1..1 + text.len()));
    }
    let len = number(text).ok_or(FeedError::Protocol("a string without a length"))?;
    if len > PAYLOAD_BYTES_MAX as u64 {
        return Err(FeedError::LongPayload(len));
    }
    let (start, end) = (1 + used, 1 + used + len as usize);
    match input.get(end..end + 2) {
        None => Ok(Step::Partial),
        Some(b"\r\n") => Ok(Step::Complete(end + 2, start..end)),
        Some(_) => Err(FeedError::Protocol("a string whose length is wrong")),
    }
}
