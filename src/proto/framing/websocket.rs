//! The server's side of RFC 6455 over bytes: tungstenite's state machine for what comes in, shared frame bytes for
//! what goes out.

use std::io::{self, Cursor, Read, Write};

use tungstenite::{
    Bytes, Error, Message, Utf8Bytes,
    error::{CapacityError, ProtocolError},
    protocol::{
        Role, WebSocketConfig, WebSocketContext,
        frame::{
            FrameHeader,
            coding::{Control, Data, OpCode},
        },
    },
};

use crate::{DecodeError, Step, codec::MessageType};

/// Bytes tungstenite copies at a time. It allocates them eagerly for each connection: 128 KiB by default.
const READ_BYTES: usize = 128;
/// The same for connections that are few and talk much.
const LONG_READ_BYTES: usize = 64 << 10;

/// What one complete frame from the peer brought.
#[derive(Debug)]
pub enum Incoming {
    /// A fragment, a ping (its pong is in the replies) or a pong.
    Nothing,
    /// A whole text message, UTF-8 checked.
    Text(Utf8Bytes),
    /// A whole binary message.
    Binary(Bytes),
    /// The peer closes; the answer is in the replies, and nothing may follow it. The peer's code, 1005 for none.
    Close(u16),
}

/// A decoder. Under 300 bytes, and its read buffer: between two messages it knows nothing of its connection, so one can serve
/// many ([`WebSocket::is_between_messages`]).
#[derive(Debug)]
pub struct WebSocket {
    context: WebSocketContext,
    message_bytes_max: usize,
    /// A message has begun, and its last fragment has not come.
    within_message: bool,
    /// A close came, or a frame that is refused: nothing may follow it.
    is_over: bool,
}

impl WebSocket {
    /// A decoder that refuses messages past `message_bytes_max`.
    pub fn server(message_bytes_max: usize) -> WebSocket {
        WebSocket::new(Role::Server, message_bytes_max, READ_BYTES)
    }

    /// The same for few connections with long messages: it copies, and allocates eagerly, 64 KiB at a time.
    pub fn server_of_long_messages(message_bytes_max: usize) -> WebSocket {
        WebSocket::new(Role::Server, message_bytes_max, LONG_READ_BYTES)
    }

    /// The client's side of the same: what the client library decodes with.
    pub fn client(message_bytes_max: usize) -> WebSocket {
        WebSocket::new(Role::Client, message_bytes_max, READ_BYTES)
    }

    fn new(role: Role, message_bytes_max: usize, read_bytes: usize) -> WebSocket {
        let config = WebSocketConfig::default()
            .read_buffer_size(read_bytes)
            .write_buffer_size(0)
            .max_message_size(Some(message_bytes_max))
            .max_frame_size(Some(message_bytes_max));
        let context = WebSocketContext::new(role, Some(config));
        WebSocket { context, message_bytes_max, within_message: false, is_over: false }
    }

    /// Whether what comes next needs nothing of what came before: only whole frames are taken, so a decoder keeps a
    /// message's fragments and nothing else.
    pub fn is_between_messages(&self) -> bool {
        !self.within_message && !self.is_over
    }

    /// Takes the frame that `bytes` begin with; pongs and close answers are appended to `replies`.
    ///
    /// Only whole frames reach tungstenite, which reserves what a header announces: so a peer's announcement
    /// allocates nothing here.
    ///
    /// # Errors
    /// A [`DecodeError`] whose close code the peer is to be sent.
    pub fn step(&mut self, bytes: &[u8], replies: &mut Vec<u8>) -> Result<Step<Incoming>, DecodeError> {
        // Unless it goes well.
        let was_over = std::mem::replace(&mut self.is_over, true);
        let mut cursor = Cursor::new(bytes);
        let Some((header, payload_len)) = FrameHeader::parse(&mut cursor).map_err(refuse)? else {
            self.is_over = was_over;
            return Ok(Step::Partial);
        };
        if payload_len > self.message_bytes_max as u64 {
            return Err(DecodeError::TooLarge { bytes: payload_len, bytes_max: self.message_bytes_max });
        }
        let frame_len = cursor.position() as usize + payload_len as usize;
        let Some(frame) = bytes.get(..frame_len) else {
            self.is_over = was_over;
            return Ok(Step::Partial);
        };
        let mut pipe = Pipe { input: frame, output: replies };
        if matches!(header.opcode, OpCode::Data(_)) {
            self.within_message = !header.is_final;
        }
        let incoming = match self.context.read(&mut pipe) {
            Ok(Message::Text(text)) => Incoming::Text(text),
            Ok(Message::Binary(bytes)) => Incoming::Binary(bytes),
            Ok(Message::Close(close)) => Incoming::Close(close.map_or(1005, |close| close.code.into())),
            Ok(_) => Incoming::Nothing,
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Incoming::Nothing,
            Err(error) => return Err(refuse(error)),
        };
        // A pong or close answer is only queued by read().
        match self.context.flush(&mut pipe) {
            Ok(()) | Err(Error::ConnectionClosed) => {}
            Err(error) => return Err(refuse(error)),
        }
        self.is_over = was_over || matches!(incoming, Incoming::Close(_));
        Ok(Step::Complete(frame_len, incoming))
    }

    /// Appends one masked message to `out`: the client's side, whose frames are its own and not shared.
    pub fn write_masked(&mut self, out: &mut Vec<u8>, message: Message) {
        let mut pipe = Pipe { input: &[], output: out };
        // The pipe takes everything; what can fail is a write after a close, and then nobody reads it.
        let _ = self.context.write(&mut pipe, message);
        let _ = self.context.flush(&mut pipe);
    }
}

fn refuse(error: Error) -> DecodeError {
    match error {
        Error::Utf8(_) => DecodeError::NotUtf8,
        Error::Capacity(CapacityError::MessageTooLong { size, max_size }) => {
            DecodeError::TooLarge { bytes: size as u64, bytes_max: max_size }
        }
        Error::Protocol(ProtocolError::UnmaskedFrameFromClient) => {
            DecodeError::WebSocket("frame is not masked".into())
        }
        other => DecodeError::WebSocket(other.to_string()),
    }
}

/// One frame in, replies out; never blocks on output.
struct Pipe<'a> {
    input: &'a [u8],
    output: &'a mut Vec<u8>,
}

impl Read for Pipe<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(into)
    }
}

impl Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Appends one unmasked frame: the bytes are the same for every client, so they are made once.
pub fn encode(out: &mut Vec<u8>, message_type: MessageType, payload: &[u8]) {
    encode_header(out, message_type, payload.len());
    out.extend_from_slice(payload);
}

/// Appends the header of an unmasked frame whose `payload_len` bytes of payload follow.
pub fn encode_header(out: &mut Vec<u8>, message_type: MessageType, payload_len: usize) {
    let data = if message_type == MessageType::Text { Data::Text } else { Data::Binary };
    let header = FrameHeader { opcode: OpCode::Data(data), ..FrameHeader::default() };
    // Writing to a Vec cannot fail.
    let _ = header.format(payload_len as u64, out);
}

/// Appends a ping without a payload (RFC 6455, section 5.5.2).
pub fn encode_ping(out: &mut Vec<u8>) {
    let header = FrameHeader { opcode: OpCode::Control(Control::Ping), ..FrameHeader::default() };
    // Writing to a Vec cannot fail.
    let _ = header.format(0, out);
}

/// Appends a close frame (RFC 6455, section 5.5.1); `reason` is cut to the 123 bytes that fit.
pub fn encode_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let mut payload = code.to_be_bytes().to_vec();
    let end = (0..=reason.len().min(123)).rev().find(|&end| reason.is_char_boundary(end)).unwrap_or(0);
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    let header = FrameHeader { opcode: OpCode::Control(Control::Close), ..FrameHeader::default() };
    let _ = header.format(payload.len() as u64, out);
    out.extend_from_slice(&payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            len @ 0..=125 => frame.push(0x80 | len as u8),
            len => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(len as u16).to_be_bytes());
            }
        }
        frame.extend_from_slice(&[1, 2, 3, 4]);
        frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ [1, 2, 3, 4][at % 4]));
        frame
    }

    fn refused(bytes: &[u8]) -> DecodeError {
        WebSocket::server(1 << 10).step(bytes, &mut Vec::new()).unwrap_err()
    }

    #[test]
    fn a_ping_between_fragments_is_answered_and_the_message_is_whole() {
        let mut socket = WebSocket::server(1 << 10);
        let mut replies = Vec::new();
        let input = [masked(0x01, b"he"), masked(0x89, b"p"), masked(0x80, b"llo")].concat();
        let mut at = 0;
        let mut text = None;
        while let Step::Complete(used, incoming) = socket.step(&input[at..], &mut replies).unwrap() {
            at += used;
            if let Incoming::Text(got) = incoming {
                text = Some(got);
            }
        }
        assert_eq!((at, text.as_deref()), (input.len(), Some("hello")));
        assert_eq!(replies, [0x8a, 1, b'p']);
    }

    #[test]
    fn between_messages_a_decoder_serves_any_connection() {
        let mut socket = WebSocket::server(1 << 10);
        let mut after = |frame: &[u8]| {
            let _ = socket.step(frame, &mut Vec::new());
            socket.is_between_messages()
        };
        assert!(after(&masked(0x82, b"whole")) && after(&masked(0x89, b"ping")));
        assert!(!after(&masked(0x01, b"he")) && !after(&masked(0x89, b"p")) && !after(&masked(0x00, b"ll")));
        assert!(after(&masked(0x80, b"o")));
        assert!(!after(&masked(0x88, &1000u16.to_be_bytes())));
        let mut refused = WebSocket::server(1 << 10);
        assert!(refused.step(&masked(0x80, b"a rest of nothing"), &mut Vec::new()).is_err());
        assert!(!refused.is_between_messages());
    }

    #[test]
    fn what_a_header_announces_is_refused_before_it_arrives() {
        let announce = [0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4];
        assert_eq!(refused(&announce), DecodeError::TooLarge { bytes: 1 << 32, bytes_max: 1 << 10 });
    }

    #[test]
    fn broken_frames_name_the_close_code() {
        assert_eq!(refused(&[0x81, 1, b'x']).close_code(), 1002);
        assert_eq!(refused(&masked(0x81, &[0xff])).close_code(), 1007);
        assert_eq!(refused(&masked(0xc1, b"x")).close_code(), 1002);
        assert_eq!(refused(&masked(0x83, b"x")).close_code(), 1002);
        assert_eq!(refused(&masked(0x80, b"x")).close_code(), 1002);
        assert_eq!(refused(&masked(0x89, &[0; 126])).close_code(), 1002);
        assert_eq!(refused(&masked(0x82, &[0; 2000])).close_code(), 1009);
    }

    #[test]
    fn every_truncation_of_a_frame_is_partial() {
        let frame = masked(0x82, &[7; 300]);
        for len in 0..frame.len() {
            let step = WebSocket::server(1 << 10).step(&frame[..len], &mut Vec::new());
            assert!(matches!(step, Ok(Step::Partial)), "{len}");
        }
    }

    #[test]
    fn a_close_is_answered_with_its_code() {
        let mut replies = Vec::new();
        let step = WebSocket::server(1 << 10).step(&masked(0x88, &1000u16.to_be_bytes()), &mut replies);
        assert!(matches!(step, Ok(Step::Complete(_, Incoming::Close(1000)))));
        assert_eq!(replies, [0x88, 2, 0x03, 0xe8]);
    }
}
