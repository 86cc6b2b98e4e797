//! `tickcast.v1.protobuf`: messages of `tickcast.proto` over a WebSocket.
//!
//! Measured as a peer is: by what is in the payload. Ticks are read in place, and other events by prost.

use std::ops::Range;

use prost::Message as _;
use tickcast_proto::{
    Step, WireFormat,
    codec::protobuf::messages::{Event, Hello, Request, Subscribe, event, request},
};
use tungstenite::Message;

use super::{
    FeedError,
    peer::{Item, Protocol},
    websocket::WebSocket,
};

/// Key of `Events.events` and of `Event.tick`: field 1, length-delimited.
const FIRST_FIELD: u8 = 1 << 3 | LENGTH_DELIMITED;
/// Key of `Tick.payload`.
const PAYLOAD: u8 = 4 << 3 | LENGTH_DELIMITED;
/// Wire types (protobuf.dev/programming-guides/encoding).
const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;
/// Most bytes of a varint.
const VARINT_BYTES_MAX: usize = 10;

const BROKEN: FeedError = FeedError::Protocol("a message that is not one of tickcast.proto");

/// One connection.
#[derive(Debug)]
pub struct Protobuf {
    websocket: WebSocket,
    /// To send once the WebSocket is open; none afterwards.
    requests: Box<[Request]>,
    /// Bytes of the current message that are still to be read. All of them are in the input.
    left: usize,
}

impl Protobuf {
    /// Appends the upgrade request. `batches`: ask for several events in a message.
    pub fn open(host: &str, patterns: &[String], batches: bool, output: &mut Vec<u8>) -> Protobuf {
        let features = batches.then(|| "batches".to_owned()).into_iter().collect();
        let hello = Hello { name: "tickcast-c10k".into(), features, ..Hello::default() };
        let subscribe = Subscribe { patterns: patterns.to_vec(), ..Subscribe::default() };
        let requests = [request::Command::Hello(hello), request::Command::Subscribe(subscribe)];
        let subprotocol = WireFormat::WEBSOCKET_PROTOBUF.subprotocol();
        Protobuf {
            websocket: WebSocket::open(host, "/ws", subprotocol, output),
            requests: (1..)
                .zip(requests)
                .map(|(id, command)| Request { id, command: Some(command) })
                .collect(),
            left: 0,
        }
    }

    /// Reads the event that `message`, the rest of a message, begins with.
    #[inline]
    fn step_event(message: &[u8]) -> Result<Step<Item>, FeedError> {
        let (body, used) = delimited(message, 0, FIRST_FIELD)?;
        let event = &message[body.clone()];
        if event.first() == Some(&FIRST_FIELD) {
            let (tick, _) = delimited(event, 0, FIRST_FIELD)?;
            let start = body.start + tick.start;
            let payload = payload(&event[tick])?;
            return Ok(Step::Complete(used, Item::Payload(start + payload.start..start + payload.end)));
        }
        let event = Event::decode(event).map_err(|_| BROKEN)?;
        match event.event {
            Some(event::Event::Subscribed(_)) => Ok(Step::Complete(used, Item::Acknowledged)),
            Some(event::Event::Error(error)) => Err(FeedError::Refused(error.text)),
            Some(event::Event::Closing(closing)) => Err(FeedError::Refused(closing.reason)),
            _ => Ok(Step::Complete(used, Item::Nothing)),
        }
    }
}

/// The payload's place in a tick; empty if it is not set.
#[inline]
fn payload(tick: &[u8]) -> Result<Range<usize>, FeedError> {
    let mut at = 0;
    while let Some(&key) = tick.get(at) {
        at = match key & 7 {
            _ if key == PAYLOAD => return Ok(delimited(tick, at, PAYLOAD)?.0),
            VARINT => varint(tick, at + 1)?.1,
            FIXED_64 => at + 9,
            LENGTH_DELIMITED => delimited(tick, at, key)?.1,
            _ => return Err(BROKEN),
        };
    }
    Ok(0..0)
}

/// The contents' place of the length-delimited field that begins at `at`, and its end.
#[inline]
fn delimited(bytes: &[u8], at: usize, key: u8) -> Result<(Range<usize>, usize), FeedError> {
    if bytes.get(at) != Some(&key) {
        return Err(BROKEN);
    }
    let (len, start) = varint(bytes, at + 1)?;
    match usize::try_from(len).ok().and_then(|len| start.checked_add(len)) {
        Some(end) if end <= bytes.len() => Ok((start..end, end)),
        _ => Err(BROKEN),
    }
}

/// The varint at `at`, and its end.
#[inline]
fn varint(bytes: &[u8], at: usize) -> Result<(u64, usize), FeedError> {
    let mut value = 0;
    for (index, byte) in bytes.get(at..).unwrap_or_default().iter().take(VARINT_BYTES_MAX).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok((value, at + index + 1));
        }
    }
    Err(BROKEN)
}

impl Protocol for Protobuf {
    #[inline]
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<Step<Item>, FeedError> {
        if self.left > 0 {
            let step = Protobuf::step_event(&input[..self.left])?;
            if let Step::Complete(used, _) = step {
                self.left -= used;
            }
            return Ok(step);
        }
        let step = self.websocket.step(input, output)?;
        if self.websocket.is_open() {
            for request in std::mem::take(&mut self.requests) {
                self.websocket.send(Message::binary(request.encode_to_vec()), output);
            }
        }
        Ok(match step {
            // Its events are read one by one.
            Step::Complete(_, Item::Payload(range)) => {
                self.left = range.len();
                Step::Complete(range.start, Item::Nothing)
            }
            // Subscriptions are acknowledged by events, not by the pong.
            Step::Complete(used, _) => Step::Complete(used, Item::Nothing),
            Step::Partial => Step::Partial,
        })
    }
}
