//! The bytes of one connection as messages of a [`Session`](crate::Session), without I/O.

use bytes::{Buf, Bytes, BytesMut};
use tungstenite::{
    Message as WebSocketMessage, Utf8Bytes,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use crate::{
    ConnectOptions, MESSAGE_OVERHEAD_BYTES, Message, OUTPUT_BYTES_MAX, ProtocolError,
    handshake::{self, Handshake},
};
use tickcast_proto::{
    DecodeError, Step, WireFormat, frame,
    framing::websocket::{Incoming, WebSocket},
};

/// Close code of a connection that was cut, or could not be made.
pub(super) const CLOSE_CUT: u16 = 1006;
/// Close code with which a server does not admit the client now.
const CLOSE_NOT_ADMITTED: u16 = 3504;
/// Close code after which a client needs another token.
const CLOSE_TOKEN_EXPIRED: u16 = 3005;
/// Close code after which a client does not come back.
const CLOSE_FORBIDDEN: u16 = 3500;
/// Close code after bytes that violate the protocol of WebSockets.
const CLOSE_PROTOCOL: u16 = 1002;
/// First byte of a pong (RFC 6455, section 5.2).
const PONG: u8 = 0x8a;
/// Characters of the reason for an end that are kept.
const REASON_CHARS_MAX: usize = 512;
/// Capacity that an idle connection's buffers keep, in bytes.
const IDLE_BYTES_MAX: usize = 64 << 10;

/// What has become of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LinkEvent {
    /// It is open, with this subprotocol; none over native TCP.
    Open(Option<&'static str>),
    /// A message of the server.
    Message(Message),
    /// It has ended, or could not be opened. The last event.
    Closed { code: u16, reason: String, reconnect_after_ms: u32 },
}

#[derive(Debug)]
enum Phase {
    /// The TCP connection is open; [`LinkEvent::Open`] is still to be polled.
    Connected,
    Handshake(Handshake),
    Open,
    Closed,
}

/// One connection, from the time when its socket is connected: a WebSocket, or native frames over TCP.
///
/// Call [`Link::poll_event`] until it returns `None` after each [`Link::handle_bytes`]: then the input holds at most one incomplete
/// message. A message's payloads share its memory.
pub(super) struct Link {
    encoding: WireFormat,
    message_bytes_max: usize,
    phase: Phase,
    eof: bool,
    input: BytesMut,
    output: BytesMut,
    websocket: Option<Box<WebSocket>>,
}

impl Link {
    /// A connection whose opening is ready to be sent. Over a WebSocket, the token goes into the hello: `options` have none.
    pub(super) fn new(options: &ConnectOptions) -> Link {
        let encoding = options.encoding;
        let message_bytes_max = options.frame_bytes_max / 3 * 4 + MESSAGE_OVERHEAD_BYTES;
        let mut opening = Vec::new();
        let (phase, websocket, message_bytes_max) = match encoding {
            WireFormat::TCP_NATIVE => (Phase::Connected, None, options.frame_bytes_max),
            _ => {
                let handshake = Handshake::start(options, &mut opening);
                // The decoder sees only fragments and control frames.
                let websocket = Some(Box::new(WebSocket::client(message_bytes_max)));
                (Phase::Handshake(handshake), websocket, message_bytes_max)
            }
        };
        let (input, output) = (BytesMut::new(), BytesMut::from(&opening[..]));
        Link { encoding, message_bytes_max, phase, eof: false, input, output, websocket }
    }

    /// Handles bytes read from the socket; copies them once.
    pub(super) fn handle_bytes(&mut self, bytes: &[u8]) {
        if !matches!(self.phase, Phase::Closed) {
            self.input.extend_from_slice(bytes);
        }
    }

    /// Handles the end of the stream: no more bytes will come.
    pub(super) fn handle_eof(&mut self) {
        self.eof = true;
    }

    /// The bytes to write to the socket; empty: nothing to write.
    pub(super) fn poll_transmit(&self) -> &[u8] {
        &self.output
    }

    /// Handles the write of the first bytes of [`Link::poll_transmit`].
    pub(super) fn handle_transmitted(&mut self, bytes: usize) {
        self.output.advance(bytes.min(self.output.len()));
        if self.output.is_empty() && self.output.capacity() > IDLE_BYTES_MAX {
            self.output = BytesMut::new();
        }
    }

    /// Queues a message. Costs one copy.
    pub(super) fn send(&mut self, message: Message) {
        match &mut self.websocket {
            None => {
                let (Message::Text(bytes) | Message::Binary(bytes)) = message;
                self.output.extend_from_slice(&bytes);
            }
            Some(_) => {
                let message = match message {
                    Message::Binary(bytes) => WebSocketMessage::Binary(bytes),
                    Message::Text(bytes) => match Utf8Bytes::try_from(bytes) {
                        Ok(text) => WebSocketMessage::Text(text),
                        Err(_) => {
                            debug_assert!(false, "this client encodes valid UTF-8");
                            return;
                        }
                    },
                };
                self.write(message);
            }
        }
    }

    /// Queues the end of a WebSocket that is open. Nothing can be sent afterwards.
    pub(super) fn hang_up(&mut self, code: u16) {
        if matches!(self.phase, Phase::Open) && self.websocket.is_some() {
            let frame = CloseFrame { code: CloseCode::from(code), reason: Utf8Bytes::from_static("") };
            self.write(WebSocketMessage::Close(Some(frame)));
        }
        self.phase = Phase::Closed;
    }

    fn write(&mut self, message: WebSocketMessage) {
        let Some(websocket) = &mut self.websocket else { return };
        let mut bytes = Vec::new();
        websocket.write_masked(&mut bytes, message);
        self.output.extend_from_slice(&bytes);
    }

    /// The next event; `None` when more bytes are needed, and after [`LinkEvent::Closed`].
    pub(super) fn poll_event(&mut self) -> Option<LinkEvent> {
        let event = match &self.phase {
            Phase::Closed => return None,
            Phase::Connected => {
                self.phase = Phase::Open;
                return Some(LinkEvent::Open(None));
            }
            Phase::Handshake(handshake) => match handshake.step(&self.input) {
                Ok(Step::Complete(used, ())) => {
                    self.input.advance(used);
                    self.phase = Phase::Open;
                    return Some(LinkEvent::Open(self.encoding.subprotocol()));
                }
                Ok(Step::Partial) => None,
                Err(error) => Some(self.refused(&error)),
            },
            Phase::Open if self.websocket.is_none() => self.step_frames().map(LinkEvent::Message),
            Phase::Open => self.step_websocket(),
        };
        let event = match event {
            None if self.eof => Some(closed(CLOSE_CUT, "the connection was cut")),
            event => event,
        };
        if matches!(event, Some(LinkEvent::Closed { .. })) {
            self.phase = Phase::Closed;
            self.input = BytesMut::new();
        } else if event.is_none() && self.input.is_empty() && self.input.capacity() > IDLE_BYTES_MAX {
            self.input = BytesMut::new();
        }
        event
    }

    /// The end of a handshake that the server has refused, with the close code that its HTTP status stands for.
    fn refused(&self, error: &ProtocolError) -> LinkEvent {
        let reason = error.to_string();
        match handshake::refusal(&self.input) {
            Some((429 | 503, reconnect_after_ms)) => {
                LinkEvent::Closed { code: CLOSE_NOT_ADMITTED, reason, reconnect_after_ms }
            }
            Some((401, _)) => closed(CLOSE_TOKEN_EXPIRED, &reason),
            Some((403, _)) => closed(CLOSE_FORBIDDEN, &reason),
            // No tickcast server, or another path.
            Some((404, _)) => closed(CLOSE_PROTOCOL, &reason),
            // A proxy answers for a server that is down.
            _ => closed(CLOSE_CUT, &reason),
        }
    }

    /// All whole frames of the input as one message. The session rejects what is malformed.
    fn step_frames(&mut self) -> Option<Message> {
        let mut end = 0;
        loop {
            match frame::decode_received(&self.input[end..], self.message_bytes_max) {
                Ok(Step::Complete(used, _)) => end += used,
                Ok(Step::Partial) => break,
                // Whole frames before it come first.
                Err(_) if end > 0 => break,
                Err(_) => end = self.input.len(),
            }
        }
        (end > 0).then(|| Message::Binary(self.input.split_to(end).freeze()))
    }

    fn step_websocket(&mut self) -> Option<LinkEvent> {
        loop {
            if let Some(taken) = self.step_whole_message() {
                return match taken {
                    Ok(message) => message.map(LinkEvent::Message),
                    Err(error) => Some(failed(&error)),
                };
            }
            let websocket = self.websocket.as_mut()?;
            let mut replies = Vec::new();
            let stepped = websocket.step(&self.input, &mut replies);
            // A server that pings and never reads gets no more pongs; an answer to its close is sent in any case.
            if replies.first() != Some(&PONG) || self.output.len() <= OUTPUT_BYTES_MAX {
                self.output.extend_from_slice(&replies);
            }
            let (used, incoming) = match stepped {
                Ok(Step::Partial) => return None,
                Ok(Step::Complete(used, incoming)) => (used, incoming),
                Err(error) => return Some(failed(&error)),
            };
            let bytes = self.input.split_to(used).freeze();
            match incoming {
                Incoming::Nothing => {}
                Incoming::Text(text) => return Some(LinkEvent::Message(Message::Text(text.into()))),
                Incoming::Binary(bytes) => return Some(LinkEvent::Message(Message::Binary(bytes))),
                // Two bytes of header, two of code if there is one, then the reason.
                Incoming::Close(code) => {
                    let reason = bytes.get(4..).unwrap_or_default();
                    return Some(closed(code, &String::from_utf8_lossy(reason)));
                }
            }
        }
    }

    /// Takes a whole data frame in place. `None`: the WebSocket decoder must look at it.
    fn step_whole_message(&mut self) -> Option<Result<Option<Message>, DecodeError>> {
        let websocket = self.websocket.as_ref().filter(|websocket| websocket.fragments.is_none())?;
        debug_assert!(!websocket.is_over(), "a closed WebSocket is not polled");
        let is_text = match self.input.first()? {
            0x81 => true,
            0x82 => false,
            _ => return None,
        };
        let (header_len, payload_len) = match *self.input.get(1)? {
            short @ 0..=125 => (2, u64::from(short)),
            126 => (4, u64::from(u16::from_be_bytes(*self.input.get(2..)?.first_chunk()?))),
            127 => (10, u64::from_be_bytes(*self.input.get(2..)?.first_chunk()?)),
            _ => return None,
        };
        if payload_len > self.message_bytes_max as u64 {
            let bytes_max = self.message_bytes_max;
            return Some(Err(DecodeError::TooLarge { bytes: payload_len, bytes_max }));
        }
        let len = payload_len as usize;
        if self.input.len() < header_len + len {
            return Some(Ok(None));
        }
        self.input.advance(header_len);
        let payload: Bytes = self.input.split_to(len).freeze();
        Some(Ok(Some(if is_text { Message::Text(payload) } else { Message::Binary(payload) })))
    }
}

fn closed(code: u16, reason: &str) -> LinkEvent {
    let reason = reason.chars().take(REASON_CHARS_MAX).collect();
    LinkEvent::Closed { code, reason, reconnect_after_ms: 0 }
}

/// The server has broken the protocol of WebSockets.
fn failed(error: &DecodeError) -> LinkEvent {
    closed(CLOSE_PROTOCOL, &format!("the server broke the protocol: {error}"))
}

#[cfg(test)]
mod tests;
