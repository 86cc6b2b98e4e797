//! The common parts of the peers' protocols: buffers, the end of the stream, and ticks made from payloads.

use std::ops::Range;

use tickcast::sources::payload::Mark;
use tickcast_client::{Event, IDLE_BUFFER_BYTES_MAX, Tick, TopicStats};
use tickcast_proto::{
    Step,
    ids::{Sequence, TopicId},
};

use super::{ANSWER_BYTES_MAX, FeedError, seen::Seen};

/// Meaning of one message from a peer.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// Nothing to count; an answer, if it needs one, is in the output.
    Nothing,
    /// A tick; the range of its payload in the step's input.
    Payload(Range<usize>),
    /// Subscriptions took effect.
    Acknowledged,
}

/// A peer's protocol once the connection is open.
pub trait Protocol {
    /// Parses the message that `input` begins with and appends answers to `output`; no bytes are `Partial`.
    ///
    /// A length past the limits is an error as soon as it is read, so the input never grows to hold it.
    ///
    /// # Errors
    /// [`FeedError`]; the connection is over.
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<Step<Item>, FeedError>;
}

/// One connection to a peer.
///
/// Invariant: `consumed <= input.len()` and `written <= output.len()`.
#[derive(Debug)]
pub struct Peer<P> {
    protocol: P,
    input: Vec<u8>,
    consumed: usize,
    output: Vec<u8>,
    /// Room for the opening and for answers.
    output_bytes_max: usize,
    written: usize,
    seen: Seen,
    /// The server has closed the connection.
    ended: bool,
    /// `Closed` or an error was returned; nothing follows.
    over: bool,
}

/// An event that does not borrow from the input yet.
enum Parsed {
    Tick { mark: Mark, missed: u64, payload: Range<usize> },
    Acknowledged,
    Closed,
}

impl<P: Protocol> Peer<P> {
    /// A connection that begins with the bytes that `open` writes.
    pub fn open(open: impl FnOnce(&mut Vec<u8>) -> P) -> Peer<P> {
        let mut output = Vec::new();
        let protocol = open(&mut output);
        Peer {
            protocol,
            output_bytes_max: output.len() + ANSWER_BYTES_MAX,
            input: Vec::new(),
            consumed: 0,
            output,
            written: 0,
            seen: Seen::default(),
            ended: false,
            over: false,
        }
    }

    #[inline]
    pub fn output(&self) -> &[u8] {
        &self.output[self.written..]
    }

    pub fn output_written(&mut self, bytes: usize) {
        assert!(bytes <= self.output().len(), "more bytes written than were queued");
        self.written += bytes;
        if self.written == self.output.len() {
            self.written = 0;
            reset(&mut self.output);
        }
    }

    #[inline]
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        if !self.over {
            self.input.extend_from_slice(bytes);
        }
    }

    pub fn handle_end(&mut self) {
        self.ended = true;
    }

    pub fn topics(&self) -> impl Iterator<Item = (TopicId, &TopicStats)> {
        self.seen.iter()
    }

    #[inline]
    pub fn poll_event(&mut self) -> Result<Option<Event<'_>>, FeedError> {
        let parsed = match self.next() {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return Ok(None),
            Err(error) => {
                (self.over, self.input, self.consumed) = (true, Vec::new(), 0);
                return Err(error);
            }
        };
        Ok(Some(match parsed {
            Parsed::Tick { mark, missed, payload } => Event::Tick(Tick {
                topic: "",
                topic_id: TopicId(mark.topic),
                epoch: 0,
                sequence: Sequence(mark.n),
                missed,
                producer_time_ns: mark.at_ns,
                ingest_time_ns: 0,
                schema: 0,
                key: 0,
                snapshot: false,
                payload_is_json: false,
                payload: &self.input[payload],
            }),
            Parsed::Acknowledged => Event::Pong { token: 0 },
            Parsed::Closed => Event::Closed,
        }))
    }

    #[inline]
    fn next(&mut self) -> Result<Option<Parsed>, FeedError> {
        while !self.over {
            let start = self.consumed;
            let Step::Complete(used, item) = self.protocol.step(&self.input[start..], &mut self.output)?
            else {
                self.compact();
                if !self.ended {
                    break;
                }
                if !self.input.is_empty() {
                    return Err(FeedError::Truncated);
                }
                self.over = true;
                return Ok(Some(Parsed::Closed));
            };
            self.consumed += used;
            if self.output().len() > self.output_bytes_max {
                return Err(FeedError::Unread);
            }
            match item {
                Item::Nothing => {}
                Item::Acknowledged => return Ok(Some(Parsed::Acknowledged)),
                Item::Payload(range) => {
                    let payload = start + range.start..start + range.end;
                    let mark = Mark::read(&self.input[payload.clone()]).ok_or(FeedError::Unmarked)?;
                    let missed = self.seen.count(mark)?;
                    return Ok(Some(Parsed::Tick { mark, missed, payload }));
                }
            }
        }
        Ok(None)
    }

    /// Moves an incomplete message to the front, and frees the memory of a burst.
    fn compact(&mut self) {
        if self.consumed == self.input.len() {
            reset(&mut self.input);
        } else {
            self.input.drain(..self.consumed);
        }
        self.consumed = 0;
    }
}

/// Clears a buffer and keeps at most [`IDLE_BUFFER_BYTES_MAX`] of its capacity.
fn reset(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > IDLE_BUFFER_BYTES_MAX {
        *buffer = Vec::new();
    }
}
