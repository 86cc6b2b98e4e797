//! The client side of the protocol as a state machine over bytes, without I/O.

mod fast_path;
mod requests;
mod subscribe;
mod websocket;

use std::collections::VecDeque;

use tungstenite::Message as WebSocketMessage;

use crate::{
    CLIENT_NAME_BYTES_MAX, ClientToken, ConnectOptions, Event, IDLE_BUFFER_BYTES_MAX, MESSAGE_OVERHEAD_BYTES,
    OUTPUT_BYTES_MAX, ProtocolError, Tick, TopicStats,
    acknowledgements::Unacknowledged,
    handshake::Handshake,
    reply::{self, Buffer, Span, StoredEvent, StoredRecovered, StoredTick},
    request::{Outgoing, REFRESH_REQUEST, RequestNumbers},
    topics::{SkipReason, Topics},
};
use tickcast_proto::{
    Step, WireFormat,
    codec::Codec,
    features::Features,
    frame::{self, HeaderFields, HelloParts, Kind, Received},
    framing::{Framing, websocket::WebSocket},
    identity,
    ids::{Sequence, TopicId},
    limits::FRAME_BYTES_MAX_DEFAULT,
    records::Token,
    subscription::Position,
};

/// One connection as a sans-IO state machine: requests and received bytes in, events and bytes to send out.
///
/// It has no socket, clock or thread; any thread may drive it, one at a time. The driver calls, in this order:
///
/// 1. [`Connection::poll_transmit`]: write what it returns, then report it with [`Connection::handle_transmitted`].
/// 2. [`Connection::handle_bytes`] with what was read, or [`Connection::handle_eof`] at the end of the stream.
/// 3. [`Connection::poll_event`] until it returns `None`, then from 1 again. The connection answers the server's pings
///    without an event, and the server closes clients that do not answer in time.
///
/// After an error, the connection returns the same error from every call: drop the socket.
///
/// Memory: about 1.3 KB, or 2.3 KB over a WebSocket (10,000 connections of the load client, one topic each), at most
/// [`IDLE_BUFFER_BYTES_MAX`] of input between calls unless a longer message is incomplete, about 170 bytes a topic, and
/// some 80 bytes for each resume position until it is answered.
///
/// Invariant: `consumed <= input.len()`, `written <= output.len()`, and `message_left > 0` only on a WebSocket.
#[derive(Debug)]
pub struct Connection {
    encoding: WireFormat,
    frame_bytes_max: usize,
    message_bytes_max: usize,
    phase: Phase,
    /// The stream has ended: no more input will come.
    eof: bool,
    welcomed: bool,

    input: Vec<u8>,
    /// Bytes of `input` that are already decoded.
    consumed: usize,
    /// The next event, decoded but not polled yet.
    ready: Option<StoredEvent>,
    scratch: Vec<u8>,
    topics: Topics,
    /// Further events of the last decoded message. Bounded by the message's length.
    queue: VecDeque<StoredEvent>,
    /// Positions for the next subscription that resumes. Bound: `RESUME_POSITIONS_MAX`.
    resume_positions: Vec<(Box<str>, Position)>,

    /// Decodes fragments and control frames. Whole data frames are decoded in place.
    websocket: Option<Box<WebSocket>>,
    /// In the middle of a fragmented message.
    fragmented: bool,
    /// Bytes of the current WebSocket message that are not decoded yet.
    message_left: usize,
    json: JsonState,

    output: Vec<u8>,
    written: usize,
    /// Requests that wait until the handshake is over.
    deferred: Vec<u8>,
    server_frame_bytes_max: usize,
    server_epoch: Option<u64>,
    /// Features that the server has granted.
    pub(super) features: Features,
    /// In JSON, until the welcome: the name in the hello, which is sent again without features if the server refuses it.
    hello_name: Option<String>,
    requests: RequestNumbers,
    /// Whether the server has not taken the last token for now.
    refresh_refused: bool,
    last_token: u64,
    pub(super) unacknowledged: Unacknowledged,
}

#[derive(Debug)]
enum Phase {
    Handshake(Handshake),
    Open,
    /// This side sent a close frame. The server's messages before its answer still arrive.
    CloseSent,
    /// The server sent CLOSING, its last message.
    ClosingReceived,
    /// A close frame or the end of the stream was received; [`Event::Closed`] is still to be polled.
    Closed,
    /// [`Event::Closed`] was polled.
    Finished,
    Failed(ProtocolError),
}

/// Position within a JSON message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JsonState {
    Start,
    FirstOfArray,
    RestOfArray,
    End,
}

/// Result of one decoding step.
enum Progress {
    Event(StoredEvent),
    /// Input was consumed without an event.
    Consumed,
    NeedMore,
}

impl Connection {
    /// A new connection whose opening (HELLO, or the WebSocket handshake) is ready to be sent. If the identity in the
    /// options breaks a rule, or the client does not speak the encoding, the connection has failed and sends nothing.
    pub fn new(options: &ConnectOptions) -> Connection {
        if !options.client.is_empty()
            && let Err(error) = identity::check(options.client.as_bytes())
        {
            let mut connection =
                Connection::new(&ConnectOptions { client: String::new(), ..options.clone() });
            connection.output.clear();
            connection.phase = Phase::Failed(ProtocolError::Identity(error));
            return connection;
        }
        let encoding = options.encoding;
        if encoding == WireFormat::WEBSOCKET_PROTOBUF {
            let others = ConnectOptions { encoding: WireFormat::WEBSOCKET_JSON, ..options.clone() };
            let mut connection = Connection::new(&others);
            connection.output.clear();
            connection.phase = Phase::Failed(ProtocolError::Encoding(encoding.name()));
            return connection;
        }
        let frame_bytes_max = options.frame_bytes_max;
        let message_bytes_max = frame_bytes_max / 3 * 4 + MESSAGE_OVERHEAD_BYTES;
        let mut output = Vec::new();
        let (phase, websocket) = if encoding == WireFormat::TCP_NATIVE {
            (Phase::Open, None)
        } else {
            // With a bound above the default, the decoder allocates 64 KiB of read buffer: only connections with larger
            // frames pay for that. Whole data frames bypass the decoder.
            let bound = if frame_bytes_max > FRAME_BYTES_MAX_DEFAULT {
                message_bytes_max
            } else {
                FRAME_BYTES_MAX_DEFAULT
            };
            let handshake = Handshake::start(options, &mut output);
            (Phase::Handshake(handshake), Some(Box::new(WebSocket::client(bound))))
        };
        let mut connection = Connection {
            encoding,
            frame_bytes_max,
            message_bytes_max,
            phase,
            eof: false,
            welcomed: false,
            input: Vec::new(),
            consumed: 0,
            ready: None,
            scratch: Vec::new(),
            topics: Topics::new(),
            queue: VecDeque::new(),
            resume_positions: Vec::new(),
            websocket,
            fragmented: false,
            message_left: 0,
            json: JsonState::Start,
            output,
            written: 0,
            deferred: Vec::new(),
            server_frame_bytes_max: FRAME_BYTES_MAX_DEFAULT,
            server_epoch: None,
            features: Features::NONE,
            hello_name: None,
            requests: RequestNumbers::default(),
            refresh_refused: false,
            last_token: 0,
            unacknowledged: Unacknowledged::new(
                options.acknowledgements && encoding != WireFormat::WEBSOCKET_RAW,
            ),
        };
        if encoding != WireFormat::WEBSOCKET_RAW {
            let request = connection.requests.next();
            let name = if options.name.len() <= CLIENT_NAME_BYTES_MAX { &options.name } else { "" };
            // A WebSocket has both in its handshake.
            let (client, token) = match encoding {
                WireFormat::TCP_NATIVE => {
                    (&*options.client, options.token.as_ref().map_or("", ClientToken::as_str))
                }
                _ => ("", ""),
            };
            let features = match encoding.codec {
                Codec::Native => Features::COUNTS,
                _ => Features::COUNTS.union(Features::STRING_KEYS).union(Features::POSITIONS),
            };
            let features = features.union(Features::NODES).union(Features::PREVIOUS).union(Features::SINCE);
            let with = |wanted: bool, feature| if wanted { feature } else { Features::NONE };
            let features = features
                .union(with(options.batches && encoding.framing == Framing::WebSocket, Features::BATCHES))
                .union(with(options.acknowledgements, Features::PUBLISHED.union(Features::MESSAGE_IDS)))
                .union(with(options.token.is_some(), Features::TOKENS));
            connection.hello_name = (encoding == WireFormat::WEBSOCKET_JSON).then(|| name.to_owned());
            let hello = HelloParts { request, client, name, features };
            // Enqueuing fails only for long requests, and a hello is never one.
            let _ = connection.enqueue(&Outgoing::Hello(hello, token));
        }
        connection
    }

    /// The encoding of this connection.
    pub fn encoding(&self) -> WireFormat {
        self.encoding
    }

    /// Whether ticks may arrive: the server has accepted the connection, and neither side has closed it.
    pub fn is_open(&self) -> bool {
        match self.phase {
            Phase::Open => self.welcomed || self.encoding == WireFormat::WEBSOCKET_RAW,
            _ => false,
        }
    }

    /// The topics announced so far with their statistics, in no particular order.
    pub fn topics(&self) -> impl Iterator<Item = (TopicId, &TopicStats)> {
        self.topics.iter().map(|(id, topic)| (TopicId(id), topic))
    }

    /// Starts the closing handshake of a WebSocket by queueing a close frame. To close a native connection, shut its
    /// socket down.
    pub fn close(&mut self) {
        if let (Some(websocket), Phase::Open) = (&mut self.websocket, &self.phase) {
            websocket.write_masked(&mut self.output, WebSocketMessage::Close(None));
            self.phase = Phase::CloseSent;
        }
    }

    /// The bytes to write to the socket; empty: nothing to write.
    pub fn poll_transmit(&self) -> &[u8] {
        &self.output[self.written..]
    }

    /// Handles the write of the first `bytes` of [`Connection::poll_transmit`].
    ///
    /// # Panics
    /// If fewer bytes were waiting: a driver that miscounts would corrupt the stream.
    pub fn handle_transmitted(&mut self, bytes: usize) {
        assert!(bytes <= self.poll_transmit().len(), "more bytes written than were waiting");
        self.written += bytes;
        if self.written == self.output.len() {
            self.written = 0;
            reset(&mut self.output);
        }
    }

    /// Handles bytes read from the socket; copies them once. Poll all events before the next call: then the input holds
    /// at most one incomplete message and `bytes`.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        if !matches!(self.phase, Phase::Failed(_) | Phase::Closed | Phase::Finished) {
            self.input.extend_from_slice(bytes);
        }
    }

    /// Handles the end of the stream: no more bytes will come.
    pub fn handle_eof(&mut self) {
        self.eof = true;
    }

    /// The next event; `None` when more bytes are needed. Native ticks cost no allocation.
    ///
    /// # Errors
    /// [`ProtocolError`] if the server broke the protocol; every later call returns it again. Drop the socket.
    #[inline]
    pub fn poll_event(&mut self) -> Result<Option<Event<'_>>, ProtocolError> {
        if let Some((index, tick)) = self.poll_in_order_tick() {
            return Ok(Some(self.tick(tick, self.topics.at(index))));
        }
        if !self.has_event()? {
            return Ok(None);
        }
        Ok(self.ready.take().map(|stored| self.event(stored)))
    }

    /// Whether [`Connection::poll_event`] has an event.
    ///
    /// # Errors
    /// As [`Connection::poll_event`].
    pub fn has_event(&mut self) -> Result<bool, ProtocolError> {
        while self.ready.is_none() {
            match self.step() {
                // The token is given again.
                Ok(Progress::Event(StoredEvent::Error { request: REFRESH_REQUEST, .. })) => {}
                Ok(Progress::Event(stored)) => self.ready = Some(stored),
                Ok(Progress::Consumed) => {}
                Ok(Progress::NeedMore) => {
                    self.compact();
                    return Ok(false);
                }
                Err(error) => {
                    self.phase = Phase::Failed(error.clone());
                    self.input = Vec::new();
                    self.consumed = 0;
                    return Err(error);
                }
            }
        }
        Ok(true)
    }

    /// Whether the next event is [`Event::Closed`]. Valid after [`Connection::has_event`].
    pub(super) fn is_at_end(&self) -> bool {
        matches!(self.ready, Some(StoredEvent::Closed))
    }

    /// Whether the stream has ended, even if earlier events are still to be polled.
    pub(super) fn has_eof(&self) -> bool {
        self.eof
    }

    /// Bytes received but not decoded yet.
    pub(super) fn input_waiting_bytes(&self) -> usize {
        self.input.len() - self.consumed
    }

    fn step(&mut self) -> Result<Progress, ProtocolError> {
        if let Some(stored) = self.queue.pop_front() {
            return Ok(Progress::Event(stored));
        }
        let progress = match &self.phase {
            Phase::Failed(error) => return Err(error.clone()),
            Phase::Finished => return Ok(Progress::NeedMore),
            Phase::Closed => {
                self.phase = Phase::Finished;
                return Ok(Progress::Event(StoredEvent::Closed));
            }
            Phase::Handshake(handshake) => match handshake.step(&self.input[self.consumed..])? {
                Step::Complete(used, ()) => {
                    self.consumed += used;
                    self.phase = Phase::Open;
                    self.output.append(&mut self.deferred);
                    Progress::Consumed
                }
                Step::Partial if self.eof => {
                    let text =
                        "the connection ended before the response; check that this is the server's HTTP port";
                    return Err(ProtocolError::Handshake(text.into()));
                }
                Step::Partial => Progress::NeedMore,
            },
            Phase::Open | Phase::CloseSent | Phase::ClosingReceived => match self.encoding {
                WireFormat::TCP_NATIVE => self.step_frame(self.input.len())?,
                _ => self.step_websocket()?,
            },
        };
        self.invariants();
        if !matches!(progress, Progress::NeedMore) || !self.eof {
            return Ok(progress);
        }
        if self.input_waiting_bytes() > 0 || self.message_left > 0 || self.fragmented {
            return Err(ProtocolError::Truncated);
        }
        self.phase = Phase::Closed;
        Ok(Progress::Consumed)
    }

    /// Decodes a native frame that ends at or before `end` in the input.
    #[inline]
    fn step_frame(&mut self, end: usize) -> Result<Progress, ProtocolError> {
        let received = frame::decode_received(&self.input[self.consumed..end], self.frame_bytes_max)?;
        let (used, frame) = match received {
            Step::Partial => return Ok(Progress::NeedMore),
            Step::Complete(used, Received::Frame(frame)) => (used, frame),
            // From a newer server: this client has not asked for it.
            Step::Complete(used, Received::Unknown(_)) => {
                self.consumed += used;
                return Ok(Progress::Consumed);
            }
        };
        if matches!(self.phase, Phase::ClosingReceived) {
            return Err(ProtocolError::AfterClosing);
        }
        if frame.kind == Kind::Ping {
            let token = frame.record::<Token>()?.token;
            self.consumed += used;
            return self.answer_ping(token);
        }
        let stored = reply::from_frame(&frame, self.consumed, &mut self.topics, &mut self.queue)?;
        self.consumed += used;
        let Some(stored) = stored else { return Ok(Progress::Consumed) };
        self.apply(&stored)?;
        Ok(Progress::Event(stored))
    }

    /// Queues the answer to the server's ping, unless much is waiting to be written: any byte shows the server that the client
    /// is alive. The WebSocket decoder answers WebSocket pings.
    fn answer_ping(&mut self, token: u64) -> Result<Progress, ProtocolError> {
        if !self.welcomed && self.encoding == WireFormat::TCP_NATIVE {
            return Err(ProtocolError::WelcomeExpected);
        }
        if self.poll_transmit().len() <= OUTPUT_BYTES_MAX {
            let mut pong = Vec::new();
            frame::encode(&mut pong, Kind::Pong, HeaderFields::default(), &Token { token }, &[]);
            match &mut self.websocket {
                None => self.output.append(&mut pong),
                Some(websocket) => websocket.write_masked(&mut self.output, WebSocketMessage::binary(pong)),
            }
        }
        Ok(Progress::Consumed)
    }

    /// Applies an event to the connection's own state.
    #[inline]
    fn apply(&mut self, stored: &StoredEvent) -> Result<(), ProtocolError> {
        match stored {
            StoredEvent::Welcome { frame_bytes_max, epoch, features, .. } => {
                self.welcomed = true;
                self.hello_name = None;
                self.features = *features;
                self.unacknowledged.handle_welcome(*features);
                self.server_epoch = Some(*epoch);
                self.server_frame_bytes_max = *frame_bytes_max as usize;
            }
            StoredEvent::Closing { .. } => self.phase = Phase::ClosingReceived,
            StoredEvent::Error { request: REFRESH_REQUEST, .. } => self.refresh_refused = true,
            StoredEvent::Error { request, .. } => self.unacknowledged.handle_answer(*request),
            _ if !self.welcomed && self.encoding == WireFormat::TCP_NATIVE => {
                return Err(ProtocolError::WelcomeExpected);
            }
            StoredEvent::Published { request, .. } => self.unacknowledged.handle_answer(*request),
            _ => {}
        }
        Ok(())
    }

    #[inline]
    fn event(&self, stored: StoredEvent) -> Event<'_> {
        match stored {
            StoredEvent::Tick(tick) => self.tick(tick, self.topics.topic(tick.topic_id)),
            StoredEvent::Skipped { reason, topic_id, from, to, count } => {
                let ((topic, epoch), topic_id) = (self.name_and_epoch(topic_id), TopicId(topic_id));
                match reason {
                    SkipReason::Conflated => Event::Conflated { topic, topic_id, epoch, from, to, count },
                    SkipReason::Gap => Event::Gap { topic, topic_id, epoch, from, to, count },
                }
            }
            StoredEvent::Recovered(recovered) => self.recovered(recovered),
            StoredEvent::Payload(payload) => Event::Payload(self.bytes(payload)),
            StoredEvent::Welcome { server, epoch, session, frame_bytes_max, .. } => {
                Event::Welcome { server: self.text(server), epoch, session, frame_bytes_max }
            }
            StoredEvent::Subscribed { request, pattern } => {
                Event::Subscribed { request, pattern: self.text(pattern) }
            }
            StoredEvent::Topic { topic_id } => {
                let (name, epoch) = self.name_and_epoch(topic_id);
                Event::Topic { id: TopicId(topic_id), name, epoch }
            }
            StoredEvent::Unsubscribed { request, pattern } => {
                Event::Unsubscribed { request, pattern: self.text(pattern) }
            }
            StoredEvent::Published { request, topic, epoch, sequence, is_duplicate } => {
                Event::Published { request, topic: self.text(topic), epoch, sequence, is_duplicate }
            }
            StoredEvent::Nodes { node, addresses } => {
                Event::Nodes { node: self.text(node), addresses: self.text(addresses) }
            }
            StoredEvent::Pong { token } => Event::Pong { token },
            StoredEvent::Error { request, code, text } => {
                Event::Error { request, code, text: self.text(text) }
            }
            StoredEvent::Closing { code, text, reconnect_after_ms } => {
                Event::Closing { code, text: self.text(text), reconnect_after_ms }
            }
            StoredEvent::Closed => Event::Closed,
        }
    }

    #[inline]
    fn tick<'a>(&'a self, tick: StoredTick, topic: Option<&'a TopicStats>) -> Event<'a> {
        debug_assert!(topic.is_some(), "a tick of an unknown topic fails when it is decoded: {tick:?}");
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

    fn recovered(&self, stored: StoredRecovered) -> Event<'_> {
        let StoredRecovered { topic_id, name, requested, epoch, sequence, recovered } = stored;
        let (known, known_epoch) = self.name_and_epoch(topic_id);
        let topic = if name.len == 0 { known } else { self.text(name) };
        let (topic_id, epoch) = (TopicId(topic_id), epoch.unwrap_or(known_epoch));
        Event::Recovered { topic, topic_id, requested, epoch, sequence, recovered }
    }

    /// A topic's name and epoch; empty and 0 for a topic that is not announced.
    #[inline]
    fn name_and_epoch(&self, topic_id: u32) -> (&str, u64) {
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

    /// Text that was validated when it was decoded.
    fn text(&self, span: Span) -> &str {
        let text = simdutf8::basic::from_utf8(self.bytes(span));
        debug_assert!(text.is_ok(), "decoding rejects text that is not UTF-8: {span:?}");
        text.unwrap_or_default()
    }

    /// Moves incomplete input to the front, and frees the memory of a burst.
    fn compact(&mut self) {
        if self.consumed == self.input.len() {
            reset(&mut self.input);
        } else {
            self.input.drain(..self.consumed);
        }
        self.consumed = 0;
        if self.scratch.capacity() > IDLE_BUFFER_BYTES_MAX {
            self.scratch = Vec::new();
        }
    }

    #[inline]
    fn invariants(&self) {
        debug_assert!(self.consumed <= self.input.len(), "no more was decoded than received");
        debug_assert!(self.written <= self.output.len(), "no more was written than queued");
        debug_assert!(self.message_left == 0 || self.websocket.is_some(), "only WebSockets have messages");
    }
}

/// Empties a buffer, keeping at most [`IDLE_BUFFER_BYTES_MAX`] of its capacity.
fn reset(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > IDLE_BUFFER_BYTES_MAX {
        *buffer = Vec::new();
    }
}

#[cfg(test)]
mod tests;
