//! tickcast's event stream: Server-Sent Events whose ticks have the payload as `data`.
//!
//! Measured as a peer is: by what is in the payload. The subscription is in the path, and the events `subscribed` acknowledge it.

use std::io::Write;

use tickcast::limits::{FRAME_BYTES_MAX_DEFAULT, HTTP_HEAD_BYTES_MAX_DEFAULT, HTTP_HEADERS_MAX};
use tickcast_proto::Step;

use super::{
    FeedError,
    lines::find,
    peer::{Item, Protocol},
};

/// Longest event: the largest payload of the simulator, and the JSON around it.
const EVENT_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX_DEFAULT;

const TICK: &[u8] = b"event: tick\n";
/// An acknowledgement has a pattern; the announcement of a topic has none.
const ACKNOWLEDGEMENT: &[u8] = b"event: subscribed\ndata: {\"op\":\"subscribed\",\"id\":";
const CLOSING: &[u8] = b"event: closing\n";
/// Precedes the payload, which ends before the last brace.
const DATA: &[u8] = b",\"data\":";

/// One connection.
#[derive(Debug)]
pub struct EventStream {
    has_head: bool,
}

impl EventStream {
    /// Appends the request.
    pub fn open(host: &str, path: &str, output: &mut Vec<u8>) -> EventStream {
        // Writing to a Vec cannot fail.
        let _ = write!(output, "GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n\r\n");
        EventStream { has_head: false }
    }

    fn step_head(&mut self, input: &[u8]) -> Result<Step<Item>, FeedError> {
        let mut headers = [httparse::EMPTY_HEADER; HTTP_HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&input[..input.len().min(HTTP_HEAD_BYTES_MAX_DEFAULT)]) {
            Ok(httparse::Status::Complete(used)) if response.code == Some(200) => {
                self.has_head = true;
                Ok(Step::Complete(used, Item::Nothing))
            }
            Ok(httparse::Status::Complete(_)) => {
                let (code, reason) = (response.code.unwrap_or_default(), response.reason.unwrap_or_default());
                Err(FeedError::Refused(format!("{code} {reason}")))
            }
            Ok(httparse::Status::Partial) if input.len() < HTTP_HEAD_BYTES_MAX_DEFAULT => Ok(Step::Partial),
            Ok(httparse::Status::Partial) => Err(FeedError::LongLine),
            Err(_) => Err(FeedError::Protocol("a response that is not HTTP")),
        }
    }
}

impl Protocol for EventStream {
    #[inline]
    fn step(&mut self, input: &[u8], _output: &mut Vec<u8>) -> Result<Step<Item>, FeedError> {
        if !self.has_head {
            return self.step_head(input);
        }
        // The data of an event is one line of JSON, so the first blank line ends the event.
        let Some(len) = find(input, b"\n\n") else {
            return match input.len() > EVENT_BYTES_MAX {
                true => Err(FeedError::LongPayload(input.len() as u64)),
                false => Ok(Step::Partial),
            };
        };
        let event = &input[..len];
        let item = if event.starts_with(TICK) {
            let start = find(event, DATA).map(|at| at + DATA.len());
            let start =
                start.filter(|start| *start < len).ok_or(FeedError::Protocol("a tick without data"))?;
            Item::Payload(start..len - 1)
        } else if event.starts_with(ACKNOWLEDGEMENT) {
            Item::Acknowledged
        } else if event.starts_with(CLOSING) {
            return Err(FeedError::Refused(String::from_utf8_lossy(&event[CLOSING.len()..]).into_owned()));
        } else {
            Item::Nothing
        };
        Ok(Step::Complete(len + 2, item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";

    /// The payloads and the number of acknowledgements in a stream that arrives in pieces.
    fn read(stream: &[u8], piece: usize) -> (Vec<Vec<u8>>, usize) {
        let (mut protocol, mut input, mut payloads, mut acknowledged) =
            (EventStream::open("h", "/sse", &mut Vec::new()), Vec::new(), Vec::new(), 0);
        for bytes in stream.chunks(piece) {
            input.extend_from_slice(bytes);
            while let Step::Complete(used, item) = protocol.step(&input, &mut Vec::new()).unwrap() {
                match item {
                    Item::Payload(range) => payloads.push(input[range].to_vec()),
                    Item::Acknowledged => acknowledged += 1,
                    Item::Nothing => {}
                }
                input.drain(..used);
            }
        }
        assert!(input.is_empty());
        (payloads, acknowledged)
    }

    #[test]
    fn payloads_are_read_from_ticks_however_the_stream_is_cut() {
        let events = b"retry: 1000\n\nevent: subscribed\ndata: {\"op\":\"subscribed\",\"id\":0,\"pattern\":\"a\",\"topics\":[]}\n\n\
            event: subscribed\ndata: {\"op\":\"subscribed\",\"topics\":[]}\n\n\
            event: tick\ndata: {\"topic\":\"a\",\"seq\":1,\"ts\":2,\"data\":{\"x\":1}}\n\n:\n\n\
            event: place\nid: a=1.1\ndata: {}\n\nevent: tick\ndata: {\"topic\":\"a\",\"seq\":2,\"ts\":2,\"data\":[]}\n\n";
        let stream = [HEAD, events].concat();
        for piece in [1, 7, stream.len()] {
            assert_eq!(read(&stream, piece), (vec![b"{\"x\":1}".to_vec(), b"[]".to_vec()], 1));
        }
    }

    #[test]
    fn refusals_and_goodbyes_end_the_connection() {
        let mut protocol = EventStream::open("h", "/sse", &mut Vec::new());
        let refused = protocol.step(b"HTTP/1.1 401 Unauthorized\r\n\r\n", &mut Vec::new());
        assert_eq!(refused, Err(FeedError::Refused("401 Unauthorized".into())));
        assert!(matches!(protocol.step(HEAD, &mut Vec::new()), Ok(Step::Complete(..))));
        let closing = protocol.step(b"event: closing\ndata: {}\n\n", &mut Vec::new());
        assert!(matches!(closing, Err(FeedError::Refused(_))));
    }
}
