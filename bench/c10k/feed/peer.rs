//! What the peers' protocols share: buffers, the end of the stream, and the step from payloads to ticks.

use std::ops::Range;

use tickcast::sources::payload::Mark;
use tickcast_client::{Event, IDLE_BUFFER_BYTES_MAX, Tick, TopicStats};
use tickcast_proto::{
    Step,
    ids::{Sequence, TopicId},
};

use super::{ANSWER_BYTES_MAX, FeedError, seen::Seen};

/// What one message of a peer brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// Nothing for the one who counts; what it asks for is in the output.
    Nothing,
    /// A tick: where in the bytes of the step its payload stands.
    Payload(Range<usize>),
    /// Subscriptions took effect.
    Acknowledged,
}

/// A peer's protocol after its opening.
pub trait Protocol {
    /// Takes the message that `input` begins with; answers are appended to `output`. Partial for no bytes. Bounds
    /// what is waited for: an announcement past the bounds is an error as soon as it is read.
    ///
    /// # Errors
    /// [`FeedError`]: the connection is over.
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<Step<Item>, FeedError>;
}

/// One connection to a peer.
///
/// Invariant: `taken <= input.len()` and `written <= output.len()`.
#[derive(Debug)]
pub struct Peer<P> {
    protocol: P,
    input: Vec<u8>,
    /// Bytes of `input` that are done with.
    taken: usize,
    output: Vec<u8>,
    /// What may wait in `output`: the opening, and answers.
    output_bytes_max: usize,
    written: usize,
    seen: Seen,
    /// The connection gives no more bytes.
    ended: bool,
    /// The end was told, or an error given: nothing more comes.
    over: bool,
}

/// An event before it borrows.
enum Found {
    Tick { mark: Mark, missed: u64, payload: Range<usize> },
    Acknowledged,
    Closed,
}

impl<P: Protocol> Peer<P> {
    /// A connection that begins with what `open` writes.
    pub fn open(open: impl FnOnce(&mut Vec<u8>) -> P) -> Peer<P> {
        let mut output = Vec::new();
        let protocol = open(&mut output);
        Peer {
            protocol,
            output_bytes_max: output.len() + ANSWER_BYTES_MAX,
            input: Vec::new(),
            taken: 0,
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
        assert!(bytes <= self.output().len(), "more bytes written than there were");
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
        let found = match self.next() {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(error) => {
                (self.over, self.input, self.taken) = (true, Vec::new(), 0);
                return Err(error);
            }
        };
        Ok(Some(match found {
            Found::Tick { mark, missed, payload } => Event::Tick(Tick {
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
            Found::Acknowledged => Event::Pong { token: 0 },
            Found::Closed => Event::Closed,
        }))
    }

    #[inline]
    fn next(&mut self) -> Result<Option<Found>, FeedError> {
        while !self.over {
            let start = self.taken;
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
                return Ok(Some(Found::Closed));
            };
            self.taken += used;
            if self.output().len() > self.output_bytes_max {
                return Err(FeedError::Unread);
            }
            match item {
                Item::Nothing => {}
                Item::Acknowledged => return Ok(Some(Found::Acknowledged)),
                Item::Payload(range) => {
                    let payload = start + range.start..start + range.end;
                    let mark = Mark::read(&self.input[payload.clone()]).ok_or(FeedError::Unmarked)?;
                    let missed = self.seen.count(mark)?;
                    return Ok(Some(Found::Tick { mark, missed, payload }));
                }
            }
        }
        Ok(None)
    }

    /// Moves what is incomplete to the front, and gives back what a burst needed.
    fn compact(&mut self) {
        if self.taken == self.input.len() {
            reset(&mut self.input);
        } else {
            self.input.drain(..self.taken);
        }
        self.taken = 0;
    }
}

/// Empties a buffer, keeping at most [`IDLE_BUFFER_BYTES_MAX`] of it.
fn reset(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > IDLE_BUFFER_BYTES_MAX {
        *buffer = Vec::new();
    }
}
