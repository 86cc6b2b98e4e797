//! The client's side of the protocol over bytes.

mod plain;
mod subscribe;
mod websocket;

use std::collections::VecDeque;

use tungstenite::Message as WebSocketMessage;

use crate::{
    CLIENT_NAME_BYTES_MAX, Event, MESSAGE_OVERHEAD_BYTES, OUTPUT_BYTES_MAX, PublishRequest, RequestError,
    SESSION_BUFFER_KEEP_BYTES, SessionError, SessionOptions, Tick, TopicStats,
    handshake::Handshake,
    reply::{self, Buffer, Item, RecoveredItem, Span, TickItem},
    request::Outgoing,
    topics::{Skip, Topics},
};
use tickcast_proto::{
    Encoding, Step,
    frame::{self, Kind, Meta},
    framing::websocket::WebSocket,
    identity,
    ids::{Sequence, TopicId},
    limits::FRAME_BYTES_MAX_DEFAULT,
    records::Token,
    subscription::Position,
};

/// Frames of one request in one WebSocket message, in bytes: many places to resume from go in several messages, each
/// of which every server takes.
const MESSAGE_FRAMES_BYTES: usize = 32 << 10;

/// One session: bytes in, events out; requests in, bytes out. No socket, no clock.
///
/// The order to call: write [`Session::output`] whenever it is not empty; for what was read, call
/// [`Session::handle_bytes`], then [`Session::poll_event`] until it gives `None`, and write again: the server's pings are
/// answered without an event, and who does not answer in time is closed; at the end of the connection
/// [`Session::handle_end`], and poll again. After an error the session gives the same error for ever: drop the
/// connection.
///
/// Memory: about 1.3 KB, 2.3 KB over a WebSocket (10,000 sessions of the load client, one topic each), at most [`SESSION_BUFFER_KEEP_BYTES`] of input between calls unless a longer message is
/// incomplete, about 170 bytes a topic, and some 80 bytes for each place until it is answered.
///
/// Invariant: `taken <= input.len()`, `written <= output.len()`, and `message_left > 0` only on a WebSocket.
#[derive(Debug)]
pub struct Session {
    encoding: Encoding,
    frame_bytes_max: usize,
    message_bytes_max: usize,
    phase: Phase,
    /// The connection gives no more bytes.
    ended: bool,
    welcomed: bool,

    input: Vec<u8>,
    /// Bytes of `input` that are done with.
    taken: usize,
    /// The next event, read but not yet asked for.
    ready: Option<Item>,
    scratch: Vec<u8>,
    topics: Topics,
    /// What a message brought besides its own event. Bounded by the message's length.
    later: VecDeque<Item>,
    /// Places for the next subscription that resumes. Bound: `RESUME_POSITIONS_MAX`.
    resuming: Vec<(Box<str>, Position)>,

    /// Decodes what is not a whole data frame: fragments and control frames.
    websocket: Option<Box<WebSocket>>,
    /// Within a fragmented message.
    fragmented: bool,
    /// Bytes of the current WebSocket message that are still to be read.
    message_left: usize,
    json: JsonPlace,

    output: Vec<u8>,
    written: usize,
    /// Requests that wait for the end of the handshake.
    deferred: Vec<u8>,
    server_frame_bytes_max: usize,
    server_epoch: Option<u64>,
    request_last: u32,
    token_last: u64,
}

#[derive(Debug)]
enum Phase {
    Handshake(Handshake),
    Open,
    /// This side has sent its close frame; what the server sent before its answer still comes.
    Leaving,
    /// The server has said its last message.
    Closing,
    /// A close frame came, or the end of the stream: one event is left.
    Closed,
    /// The last event was given.
    Over,
    Failed(SessionError),
}

/// Where in a JSON message the next value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JsonPlace {
    Start,
    FirstOfArray,
    RestOfArray,
    End,
}

/// How far one step came.
enum Progress {
    Item(Item),
    /// Something was taken, but no event came of it.
    Taken,
    NeedMore,
}

impl Session {
    /// A session that has its opening (hello, or the WebSocket handshake) in [`Session::output`]; one that has failed
    /// where the options' identity breaks a rule.
    pub fn new(options: &SessionOptions) -> Session {
        if !options.client.is_empty()
            && let Err(error) = identity::check(options.client.as_bytes())
        {
            let mut session = Session::new(&SessionOptions { client: String::new(), ..options.clone() });
            session.output.clear();
            session.phase = Phase::Failed(SessionError::BadIdentity(error));
            return session;
        }
        let encoding = options.encoding;
        let frame_bytes_max = options.frame_bytes_max;
        let message_bytes_max = frame_bytes_max / 3 * 4 + MESSAGE_OVERHEAD_BYTES;
        let mut output = Vec::new();
        let (phase, websocket) = if encoding == Encoding::Native {
            (Phase::Open, None)
        } else {
            // Past the default bound the decoder takes 64 KiB of read buffer for itself: only who asks for more
            // than the default pays that. Whole data frames do not go through it.
            let bound = if frame_bytes_max > FRAME_BYTES_MAX_DEFAULT {
                message_bytes_max
            } else {
                FRAME_BYTES_MAX_DEFAULT
            };
            let handshake = Handshake::start(options, &mut output);
            (Phase::Handshake(handshake), Some(Box::new(WebSocket::client(bound))))
        };
        let mut session = Session {
            encoding,
            frame_bytes_max,
            message_bytes_max,
            phase,
            ended: false,
            welcomed: false,
            input: Vec::new(),
            taken: 0,
            ready: None,
            scratch: Vec::new(),
            topics: Topics::new(encoding == Encoding::WebSocketJson),
            later: VecDeque::new(),
            resuming: Vec::new(),
            websocket,
            fragmented: false,
            message_left: 0,
            json: JsonPlace::Start,
            output,
            written: 0,
            deferred: Vec::new(),
            server_frame_bytes_max: FRAME_BYTES_MAX_DEFAULT,
            server_epoch: None,
            request_last: 0,
            token_last: 0,
        };
        if encoding != Encoding::WebSocketRaw {
            let request = session.next_request();
            let name = if options.name.len() <= CLIENT_NAME_BYTES_MAX { &options.name } else { "" };
            // A request can only fail for its length, and this one is short.
            let client = if encoding == Encoding::Native { &options.client } else { "" };
            let _ = session.enqueue(&Outgoing::Hello { request, client, name });
        }
        session
    }

    /// How this session speaks.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Whether ticks may come: the handshake is done, and the server has not closed.
    pub fn is_open(&self) -> bool {
        match self.phase {
            Phase::Open => self.welcomed || self.encoding == Encoding::WebSocketRaw,
            _ => false,
        }
    }

    /// The topics announced so far and what was seen of each, in no order.
    pub fn topics(&self) -> impl Iterator<Item = (TopicId, &TopicStats)> {
        self.topics.iter().map(|(id, topic)| (TopicId(id), topic))
    }

    /// Publishes one tick. It is not acknowledged: a [`Session::ping`] after it tells that the server has it, and a
    /// failure is an [`Event::Error`] that names the number returned. Numbers go up by one with each request.
    ///
    /// # Errors
    /// [`RequestError`]: nothing was queued.
    pub fn publish(&mut self, publish: PublishRequest<'_>) -> Result<u32, RequestError> {
        let request = self.next_request();
        self.request(&Outgoing::Publish { request, publish }).map(|()| request)
    }

    /// Asks for an [`Event::Pong`] with the token returned. A raw session has no replies and sends a WebSocket ping
    /// instead, whose pong comes in the same order.
    ///
    /// # Errors
    /// [`RequestError`]: nothing was queued.
    pub fn ping(&mut self) -> Result<u64, RequestError> {
        self.token_last += 1;
        let token = self.token_last;
        self.request(&Outgoing::Ping { token }).map(|()| token)
    }

    /// Ends a WebSocket politely: queues its close frame. A native session is ended by shutting its socket down.
    pub fn close(&mut self) {
        if let (Some(websocket), Phase::Open) = (&mut self.websocket, &self.phase) {
            websocket.write_masked(&mut self.output, WebSocketMessage::Close(None));
            self.phase = Phase::Leaving;
        }
    }

    /// Bytes to write to the socket, from the first not yet written.
    pub fn output(&self) -> &[u8] {
        &self.output[self.written..]
    }

    /// Takes note that the first `bytes` of [`Session::output`] were written.
    ///
    /// # Panics
    /// When that is more than there are: a driver that counts wrong would corrupt the stream.
    pub fn output_written(&mut self, bytes: usize) {
        assert!(bytes <= self.output().len(), "more bytes written than there were");
        self.written += bytes;
        if self.written == self.output.len() {
            self.written = 0;
            reset(&mut self.output);
        }
    }

    /// Takes bytes read from the socket. Poll events until there are none before the next call: that bounds what
    /// waits here to one incomplete message and `bytes`.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        if !matches!(self.phase, Phase::Failed(_) | Phase::Closed | Phase::Over) {
            self.input.extend_from_slice(bytes);
        }
    }

    /// The connection gives no more bytes.
    pub fn handle_end(&mut self) {
        self.ended = true;
    }

    /// The next event, or `None` when more bytes are needed. No allocation for native ticks.
    ///
    /// # Errors
    /// [`SessionError`] when the server broke the protocol; from then on always.
    #[inline]
    pub fn poll_event(&mut self) -> Result<Option<Event<'_>>, SessionError> {
        if let Some((at, tick)) = self.plain_tick() {
            return Ok(Some(self.tick(tick, self.topics.at(at))));
        }
        if !self.has_event()? {
            return Ok(None);
        }
        Ok(self.ready.take().map(|item| self.event(item)))
    }

    /// Whether [`Session::poll_event`] has an event.
    ///
    /// # Errors
    /// As [`Session::poll_event`].
    pub fn has_event(&mut self) -> Result<bool, SessionError> {
        while self.ready.is_none() {
            match self.step() {
                Ok(Progress::Item(item)) => self.ready = Some(item),
                Ok(Progress::Taken) => {}
                Ok(Progress::NeedMore) => {
                    self.compact();
                    return Ok(false);
                }
                Err(error) => {
                    self.phase = Phase::Failed(error.clone());
                    self.input = Vec::new();
                    self.taken = 0;
                    return Err(error);
                }
            }
        }
        Ok(true)
    }

    /// Whether the next event is the end. Asked after [`Session::has_event`].
    pub(super) fn is_at_end(&self) -> bool {
        matches!(self.ready, Some(Item::Closed))
    }

    /// Whether the connection has ended, be it that events of before still wait.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Bytes received that wait to be polled.
    pub(super) fn input_waiting_bytes(&self) -> usize {
        self.input.len() - self.taken
    }

    fn next_request(&mut self) -> u32 {
        // 0 stands for "no request".
        self.request_last = self.request_last.checked_add(1).unwrap_or(1);
        self.request_last
    }

    fn request(&mut self, outgoing: &Outgoing<'_>) -> Result<(), RequestError> {
        if !matches!(self.phase, Phase::Open | Phase::Handshake(_)) || self.ended {
            return Err(RequestError::Ended);
        }
        if self.output.len() + self.deferred.len() - self.written > OUTPUT_BYTES_MAX {
            return Err(RequestError::Backpressure);
        }
        outgoing.check(self.server_frame_bytes_max)?;
        self.enqueue(outgoing)
    }

    fn enqueue(&mut self, outgoing: &Outgoing<'_>) -> Result<(), RequestError> {
        let out =
            if matches!(self.phase, Phase::Handshake(_)) { &mut self.deferred } else { &mut self.output };
        let Some(websocket) = &mut self.websocket else {
            outgoing.encode_frame(out);
            return Ok(());
        };
        let message = match (self.encoding, outgoing) {
            (Encoding::WebSocketRaw, Outgoing::Ping { token }) => {
                WebSocketMessage::Ping(token.to_le_bytes().to_vec().into())
            }
            (Encoding::WebSocketJson, _) => {
                let text = outgoing.to_json();
                if text.len() > self.server_frame_bytes_max {
                    let (bytes, bytes_max) = (text.len(), self.server_frame_bytes_max);
                    return Err(RequestError::TooLarge { bytes, bytes_max });
                }
                WebSocketMessage::text(text)
            }
            _ => {
                let mut bytes = Vec::new();
                outgoing.encode_frame(&mut bytes);
                while let Some(end) = whole_frames(&bytes, MESSAGE_FRAMES_BYTES) {
                    let rest = bytes.split_off(end);
                    websocket
                        .write_masked(out, WebSocketMessage::binary(std::mem::replace(&mut bytes, rest)));
                }
                WebSocketMessage::binary(bytes)
            }
        };
        websocket.write_masked(out, message);
        Ok(())
    }

    fn step(&mut self) -> Result<Progress, SessionError> {
        if let Some(item) = self.later.pop_front() {
            return Ok(Progress::Item(item));
        }
        let progress = match &self.phase {
            Phase::Failed(error) => return Err(error.clone()),
            Phase::Over => return Ok(Progress::NeedMore),
            Phase::Closed => {
                self.phase = Phase::Over;
                return Ok(Progress::Item(Item::Closed));
            }
            Phase::Handshake(handshake) => match handshake.step(&self.input[self.taken..])? {
                Step::Complete(used, ()) => {
                    self.taken += used;
                    self.phase = Phase::Open;
                    self.output.append(&mut self.deferred);
                    Progress::Taken
                }
                Step::Partial if self.ended => {
                    let text = "the connection ended before the answer: is this the server's HTTP port?";
                    return Err(SessionError::Handshake(text.into()));
                }
                Step::Partial => Progress::NeedMore,
            },
            Phase::Open | Phase::Leaving | Phase::Closing => match self.encoding {
                Encoding::Native => self.step_frame(self.input.len())?,
                _ => self.step_websocket()?,
            },
        };
        if !matches!(progress, Progress::NeedMore) || !self.ended {
            return Ok(progress);
        }
        if self.input_waiting_bytes() > 0 || self.message_left > 0 || self.fragmented {
            return Err(SessionError::Truncated);
        }
        self.phase = Phase::Closed;
        Ok(Progress::Taken)
    }

    /// Reads a native frame that ends before `end` in the input.
    #[inline]
    fn step_frame(&mut self, end: usize) -> Result<Progress, SessionError> {
        let (used, frame) = match frame::decode(&self.input[self.taken..end], self.frame_bytes_max)? {
            Step::Partial => return Ok(Progress::NeedMore),
            Step::Complete(used, frame) => (used, frame),
        };
        if matches!(self.phase, Phase::Closing) {
            return Err(SessionError::AfterClosing);
        }
        if frame.kind == Kind::Ping {
            let token = frame.record::<Token>()?.token;
            self.taken += used;
            return self.answer_ping(token);
        }
        let item = reply::from_frame(&frame, self.taken, &mut self.topics, &mut self.later)?;
        self.taken += used;
        self.note(&item)?;
        Ok(Progress::Item(item))
    }

    /// Queues the answer to a ping of the server's, unless so much waits to be written that it is answered anyway: any
    /// byte is a sign of life. A WebSocket's own pings are answered by its decoder.
    fn answer_ping(&mut self, token: u64) -> Result<Progress, SessionError> {
        if !self.welcomed && self.encoding == Encoding::Native {
            return Err(SessionError::WelcomeExpected);
        }
        if self.output().len() <= OUTPUT_BYTES_MAX {
            let mut pong = Vec::new();
            frame::encode(&mut pong, Kind::Pong, Meta::default(), &Token { token }, &[]);
            match &mut self.websocket {
                None => self.output.append(&mut pong),
                Some(websocket) => websocket.write_masked(&mut self.output, WebSocketMessage::binary(pong)),
            }
        }
        Ok(Progress::Taken)
    }

    /// What an item means for the session itself.
    #[inline]
    fn note(&mut self, item: &Item) -> Result<(), SessionError> {
        match item {
            Item::Welcome { frame_bytes_max, epoch, .. } => {
                self.welcomed = true;
                self.server_epoch = Some(*epoch);
                self.server_frame_bytes_max = *frame_bytes_max as usize;
            }
            Item::Closing { .. } => self.phase = Phase::Closing,
            Item::Error { .. } => {}
            _ if !self.welcomed && self.encoding == Encoding::Native => {
                return Err(SessionError::WelcomeExpected);
            }
            _ => {}
        }
        Ok(())
    }

    #[inline]
    fn event(&self, item: Item) -> Event<'_> {
        match item {
            Item::Tick(tick) => self.tick(tick, self.topics.topic(tick.topic_id)),
            Item::Skipped { skip, topic_id, from, to } => {
                let ((topic, epoch), topic_id) = (self.name(topic_id), TopicId(topic_id));
                match skip {
                    Skip::Conflated => Event::Conflated { topic, topic_id, epoch, from, to },
                    Skip::Gap => Event::Gap { topic, topic_id, epoch, from, to },
                }
            }
            Item::Recovered(recovered) => self.recovered(recovered),
            Item::Payload(payload) => Event::Payload(self.bytes(payload)),
            Item::Welcome { server, epoch, session, frame_bytes_max } => {
                Event::Welcome { server: self.text(server), epoch, session, frame_bytes_max }
            }
            Item::Subscribed { request, pattern } => {
                Event::Subscribed { request, pattern: self.text(pattern) }
            }
            Item::Topic { topic_id } => {
                let (name, epoch) = self.name(topic_id);
                Event::Topic { id: TopicId(topic_id), name, epoch }
            }
            Item::Unsubscribed { request, pattern } => {
                Event::Unsubscribed { request, pattern: self.text(pattern) }
            }
            Item::Pong { token } => Event::Pong { token },
            Item::Error { request, code, text } => Event::Error { request, code, text: self.text(text) },
            Item::Closing { code, text, reconnect_after_ms } => {
                Event::Closing { code, text: self.text(text), reconnect_after_ms }
            }
            Item::Closed => Event::Closed,
        }
    }

    #[inline]
    fn tick<'a>(&'a self, tick: TickItem, topic: Option<&'a TopicStats>) -> Event<'a> {
        let (topic, epoch) = topic.map_or(("", 0), |topic| (&*topic.name, topic.epoch));
        Event::Tick(Tick {
            topic,
            topic_id: TopicId(tick.topic_id),
            epoch,
            sequence: Sequence(tick.sequence),
            missed: tick.missed,
            producer_time_ns: tick.times.producer_time_ns,
            ingest_time_ns: tick.times.ingest_time_ns,
            schema: tick.schema,
            key: tick.key,
            snapshot: tick.snapshot,
            payload_is_json: tick.payload_is_json,
            payload: self.bytes(tick.payload),
        })
    }

    fn recovered(&self, item: RecoveredItem) -> Event<'_> {
        let RecoveredItem { topic_id, name, place, epoch, sequence, recovered } = item;
        let (known, known_epoch) = self.name(topic_id);
        let topic = if name.len == 0 { known } else { self.text(name) };
        let (topic_id, epoch) = (TopicId(topic_id), epoch.unwrap_or(known_epoch));
        Event::Recovered { topic, topic_id, place, epoch, sequence, recovered }
    }

    /// A topic's name and epoch.
    #[inline]
    fn name(&self, topic_id: u32) -> (&str, u64) {
        self.topics.topic(topic_id).map_or(("", 0), |topic| (&*topic.name, topic.epoch))
    }

    #[inline]
    fn bytes(&self, span: Span) -> &[u8] {
        let buffer = match span.buffer {
            Buffer::Input => &self.input,
            Buffer::Scratch => &self.scratch,
        };
        &buffer[span.start..span.start + span.len]
    }

    /// Text that was checked when it was read.
    fn text(&self, span: Span) -> &str {
        simdutf8::basic::from_utf8(self.bytes(span)).unwrap_or_default()
    }

    /// Moves what is incomplete to the front, and gives back what a burst needed.
    fn compact(&mut self) {
        if self.taken == self.input.len() {
            reset(&mut self.input);
        } else {
            self.input.drain(..self.taken);
        }
        self.taken = 0;
        if self.scratch.capacity() > SESSION_BUFFER_KEEP_BYTES {
            self.scratch = Vec::new();
        }
    }
}

/// Where the last of the frames ends that fit `bytes_max`; `None` when all fit, or the first does not.
fn whole_frames(bytes: &[u8], bytes_max: usize) -> Option<usize> {
    let mut end = 0;
    while let Some(&len) = bytes.get(end..).and_then(|rest| rest.first_chunk::<4>()) {
        let len = u32::from_le_bytes(len) as usize;
        if end + len > bytes_max {
            return Some(end).filter(|&end| end > 0);
        }
        end += len;
    }
    None
}

/// Empties a buffer, keeping at most [`SESSION_BUFFER_KEEP_BYTES`] of it.
fn reset(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > SESSION_BUFFER_KEEP_BYTES {
        *buffer = Vec::new();
    }
}

#[cfg(test)]
mod tests;
