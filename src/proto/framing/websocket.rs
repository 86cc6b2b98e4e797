//! WebSocket framing (RFC 6455).
//! tungstenite's state machine decodes frames, and this module joins fragments. So a decoder keeps no state of its connection
//! between two frames, and a message's memory grows fallibly. Output is unmasked frames, which sessions share.

pub mod deflate;
mod fragments;

pub use self::fragments::Fragments;

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

use self::deflate::Inflater;
use crate::{DecodeError, Step, codec::MessageType};

/// tungstenite's read buffer, in bytes. It is allocated eagerly; the default would be 128 KiB per connection.
const READ_BYTES: usize = 128;
/// Size of the read buffer for the few connections with long messages, in bytes.
const LONG_READ_BYTES: usize = 64 << 10;

/// Contents of one complete frame from the peer.
#[derive(Debug)]
pub enum Incoming {
    /// A fragment, a pong, or a ping, whose pong was appended to the replies.
    Nothing,
    /// A complete text message, validated as UTF-8.
    Text(Utf8Bytes),
    /// A complete binary message.
    Binary(Bytes),
    /// A close frame with its code, or 1005 without one. The answer was appended to the replies; nothing may follow it.
    Close(u16),
}

/// A WebSocket decoder: less than 300 bytes and a read buffer.
/// Apart from `fragments` it keeps no state of its connection, so one decoder can serve many: see [`WebSocket::is_over`].
#[derive(Debug)]
pub struct WebSocket {
    context: WebSocketContext,
    message_bytes_max: usize,
    /// The unfinished message of the connection whose frames come next; `None` between messages.
    pub fragments: Option<Box<Fragments>>,
    /// Whether the connection whose frames come next may compress messages.
    pub inflates: bool,
    /// `None` until first needed.
    inflater: Option<Box<Inflater>>,
    /// A close frame or an invalid frame has arrived: nothing may follow it.
    is_over: bool,
}

impl WebSocket {
    /// A server's decoder. Rejects messages longer than `message_bytes_max`.
    pub fn server(message_bytes_max: usize) -> WebSocket {
        WebSocket::new(Role::Server, message_bytes_max, READ_BYTES)
    }

    /// The same for a few connections with long messages: with a read buffer of 64 KiB.
    pub fn server_for_long_messages(message_bytes_max: usize) -> WebSocket {
        WebSocket::new(Role::Server, message_bytes_max, LONG_READ_BYTES)
    }

    /// A client's decoder.
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
        WebSocket {
            context,
            message_bytes_max,
            fragments: None,
            inflates: false,
            inflater: None,
            is_over: false,
        }
    }

    /// Bytes inflated since the last call.
    pub fn take_inflated(&mut self) -> usize {
        self.inflater.as_deref_mut().map_or(0, Inflater::take_inflated)
    }

    /// Whether a close frame or an invalid frame has arrived. If so, the decoder can serve no other connection.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Decodes the frame at the start of `bytes`. Pongs and close answers are appended to `replies`.
    /// tungstenite allocates the length that a header announces, so it only gets whole frames: a header alone does not allocate.
    ///
    /// # Errors
    /// A [`DecodeError`], after which the decoder must not be used again. The peer should be sent its close code.
    pub fn step(&mut self, bytes: &[u8], replies: &mut Vec<u8>) -> Result<Step<Incoming>, DecodeError> {
        // Reset below unless decoding fails.
        let was_over = std::mem::replace(&mut self.is_over, true);
        let mut cursor = Cursor::new(bytes);
        let Some((header, payload_len)) = FrameHeader::parse(&mut cursor).map_err(decode_error)? else {
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
        let part = self.part_of(&header)?;
        // To tungstenite a fragment, or a compressed message, is a whole binary message: only FIN, the opcode and the bit that
        // says so differ.
        let (first, rest) = match part {
            Part::Whole => (None, frame),
            Part::Fragment { is_compressed: true, .. } => {
                (Some(frame[0] & (RESERVED_BITS & !COMPRESSED_BIT) | WHOLE_BINARY), &frame[1..])
            }
            Part::Fragment { .. } => (Some(frame[0] & RESERVED_BITS | WHOLE_BINARY), &frame[1..]),
        };
        let mut pipe = Pipe { first, input: rest, output: replies };
        let incoming = match self.context.read(&mut pipe) {
            Ok(Message::Binary(bytes)) if let Part::Fragment { is_last, .. } = part => {
                self.join(&bytes, is_last)?
            }
            Ok(Message::Text(text)) => Incoming::Text(text),
            Ok(Message::Binary(bytes)) => Incoming::Binary(bytes),
            Ok(Message::Close(close)) => Incoming::Close(close.map_or(1005, |close| close.code.into())),
            Ok(_) => Incoming::Nothing,
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Incoming::Nothing,
            Err(error) => return Err(decode_error(error)),
        };
        // read() only queues pongs and close answers.
        match self.context.flush(&mut pipe) {
            Ok(()) | Err(Error::ConnectionClosed) => {}
            Err(error) => return Err(decode_error(error)),
        }
        debug_assert!(pipe.input.is_empty(), "tungstenite consumes the whole frame; a rest would be lost");
        self.is_over = was_over || matches!(incoming, Incoming::Close(_));
        Ok(Step::Complete(frame_len, incoming))
    }

    /// Whether a frame is part of a fragmented message. The first fragment begins one.
    fn part_of(&mut self, header: &FrameHeader) -> Result<Part, DecodeError> {
        let OpCode::Data(data) = header.opcode else { return Ok(Part::Whole) };
        // Only the first frame of a message says that it is compressed (RFC 7692, section 6.1).
        let is_compressed = self.inflates && header.rsv1;
        let is_text = match (data, &self.fragments) {
            (Data::Continue, Some(_)) => {
                return Ok(Part::Fragment { is_last: header.is_final, is_compressed: false });
            }
            (Data::Text | Data::Binary, Some(_)) => {
                return Err(decode_error(Error::Protocol(ProtocolError::ExpectedFragment(data))));
            }
            (Data::Text | Data::Binary, None) if !header.is_final || is_compressed => data == Data::Text,
            // tungstenite rejects a continuation of nothing and a reserved opcode.
            _ => return Ok(Part::Whole),
        };
        self.fragments = Some(Box::new(Fragments::new(is_text, is_compressed)));
        Ok(Part::Fragment { is_last: header.is_final, is_compressed })
    }

    fn join(&mut self, bytes: &[u8], is_last: bool) -> Result<Incoming, DecodeError> {
        let Some(fragments) = &mut self.fragments else {
            debug_assert!(false, "a fragment belongs to a message that has begun");
            return Ok(Incoming::Nothing);
        };
        fragments.push(bytes, self.message_bytes_max)?;
        match self.fragments.take_if(|_| is_last) {
            Some(message) => {
                let inflater = self.inflater.get_or_insert_default();
                message.complete(|bytes| inflater.inflate(bytes, self.message_bytes_max))
            }
            None => Ok(Incoming::Nothing),
        }
    }

    /// Appends one masked message to `out`, as a client sends it.
    pub fn write_masked(&mut self, out: &mut Vec<u8>, message: Message) {
        let mut pipe = Pipe { first: None, input: &[], output: out };
        // The pipe accepts everything. A write after a close fails, but then the peer reads nothing more.
        let _ = self.context.write(&mut pipe, message);
        let _ = self.context.flush(&mut pipe);
    }
}

fn decode_error(error: Error) -> DecodeError {
    match error {
        Error::Utf8(_) => DecodeError::NotUtf8,
        Error::Capacity(CapacityError::MessageTooLong { size, max_size }) => {
            DecodeError::TooLarge { bytes: size as u64, bytes_max: max_size }
        }
        Error::Protocol(ProtocolError::UnmaskedFrameFromClient) => {
            DecodeError::WebSocket("a frame from the client is not masked".into())
        }
        other => DecodeError::WebSocket(other.to_string()),
    }
}

/// The part that a frame plays in its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// A whole message, or a control frame.
    Whole,
    /// One of several frames of a message, or of a compressed one.
    Fragment {
        /// Whether it ends the message.
        is_last: bool,
        /// Whether it begins a compressed message.
        is_compressed: bool,
    },
}

/// The reserved bits of a frame's first byte (RFC 6455, section 5.2).
const RESERVED_BITS: u8 = 0x70;
/// The reserved bit that marks a compressed message (RFC 7692, section 6).
const COMPRESSED_BIT: u8 = 0x40;
/// FIN and the opcode of a binary message in a frame's first byte.
const WHOLE_BINARY: u8 = 0x82;

/// tungstenite's stream: reads one frame, and writes replies without ever blocking.
struct Pipe<'a> {
    /// Bytes to read before `input`.
    first: Option<u8>,
    input: &'a [u8],
    output: &'a mut Vec<u8>,
}

impl Read for Pipe<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Some(slot) = into.first_mut()
            && let Some(first) = self.first.take()
        {
            *slot = first;
            return Ok(1);
        }
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

/// Appends one unmasked frame. Its bytes are the same for every client, so sessions share them.
pub fn encode(out: &mut Vec<u8>, message_type: MessageType, payload: &[u8]) {
    encode_header(out, message_type, payload.len());
    out.extend_from_slice(payload);
}

/// Appends the header of an unmasked frame. The caller appends the payload of `payload_len` bytes.
pub fn encode_header(out: &mut Vec<u8>, message_type: MessageType, payload_len: usize) {
    let data = if message_type == MessageType::Text { Data::Text } else { Data::Binary };
    let header = FrameHeader { opcode: OpCode::Data(data), ..FrameHeader::default() };
    append_header(&header, payload_len, out);
}

/// Appends the header of an unmasked frame with a compressed payload of `payload_len` bytes.
fn encode_compressed_header(out: &mut Vec<u8>, message_type: MessageType, payload_len: usize) {
    let start = out.len();
    encode_header(out, message_type, payload_len);
    out[start] |= COMPRESSED_BIT;
}

fn append_header(header: &FrameHeader, payload_len: usize, out: &mut Vec<u8>) {
    let written = header.format(payload_len as u64, out);
    debug_assert!(written.is_ok(), "writing to a Vec does not fail");
}

/// Appends a ping without a payload (RFC 6455, section 5.5.2).
pub fn encode_ping(out: &mut Vec<u8>) {
    let header = FrameHeader { opcode: OpCode::Control(Control::Ping), ..FrameHeader::default() };
    append_header(&header, 0, out);
}

/// Appends a close frame (RFC 6455, section 5.5.1). `reason` is cut to the 123 bytes that fit.
pub fn encode_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let mut payload = code.to_be_bytes().to_vec();
    let end = (0..=reason.len().min(123)).rev().find(|&end| reason.is_char_boundary(end)).unwrap_or(0);
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    let header = FrameHeader { opcode: OpCode::Control(Control::Close), ..FrameHeader::default() };
    append_header(&header, payload.len(), out);
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

    fn error_of(bytes: &[u8]) -> DecodeError {
        WebSocket::server(1 << 10).step(bytes, &mut Vec::new()).unwrap_err()
    }

    #[test]
    fn ping_between_fragments_is_answered_and_the_message_is_complete() {
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
    fn only_fragments_of_an_unfinished_message_outlast_a_frame() {
        let mut socket = WebSocket::server(1 << 10);
        let mut after = |frame: &[u8]| {
            let _ = socket.step(frame, &mut Vec::new());
            (socket.fragments.is_some(), socket.is_over())
        };
        for whole in [masked(0x82, b"whole"), masked(0x89, b"ping")] {
            assert_eq!(after(&whole), (false, false));
        }
        for part in [masked(0x01, b"he"), masked(0x89, b"p"), masked(0x00, b"ll")] {
            assert_eq!(after(&part), (true, false));
        }
        assert_eq!(after(&masked(0x80, b"o")), (false, false));
        assert_eq!(after(&masked(0x88, &1000u16.to_be_bytes())), (false, true));
        let mut failed = WebSocket::server(1 << 10);
        assert!(failed.step(&masked(0x80, b"the end of no message"), &mut Vec::new()).is_err());
        assert!(failed.is_over());
    }

    #[test]
    fn one_decoder_joins_the_fragments_of_two_connections() {
        let mut socket = WebSocket::server(1 << 10);
        let mut unfinished = [None, None];
        let mut joined = Vec::new();
        for (of, frame) in [
            (0, masked(0x01, "gr\u{fc}".as_bytes().split_at(3).0)),
            (1, masked(0x02, b"\xff")),
            (0, masked(0x80, &"gr\u{fc}\u{df}e".as_bytes()[3..])),
            (1, masked(0x00, b"")),
            (1, masked(0x80, b"\xfe")),
        ] {
            socket.fragments = unfinished[of].take();
            match socket.step(&frame, &mut Vec::new()).unwrap() {
                Step::Complete(_, Incoming::Text(text)) => joined.push(text.as_bytes().to_vec()),
                Step::Complete(_, Incoming::Binary(bytes)) => joined.push(bytes.to_vec()),
                _ => {}
            }
            unfinished[of] = socket.fragments.take();
        }
        assert_eq!(joined, ["gr\u{fc}\u{df}e".as_bytes().to_vec(), b"\xff\xfe".to_vec()]);
    }

    /// A server's decoder of a client that may compress messages.
    fn inflating(message_bytes_max: usize) -> WebSocket {
        let mut socket = WebSocket::server(message_bytes_max);
        socket.inflates = true;
        socket
    }

    #[test]
    fn compressed_messages_are_inflated_whole_or_in_fragments_with_pings_between() {
        // RFC 7692, section 7.2.3.1.
        let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        let mut socket = inflating(7);
        let input = [
            masked(0xc1, &hello),
            masked(0x41, &hello[..3]),
            masked(0x89, b"p"),
            masked(0x80, &hello[3..]),
            masked(0x82, b"plain"),
            masked(0xc2, &hello),
        ]
        .concat();
        let (mut at, mut got, mut replies) = (0, Vec::new(), Vec::new());
        while let Step::Complete(used, incoming) = socket.step(&input[at..], &mut replies).unwrap() {
            at += used;
            match incoming {
                Incoming::Text(text) => got.push(text.as_str().to_owned()),
                Incoming::Binary(bytes) => got.push(format!("binary {}", String::from_utf8_lossy(&bytes))),
                _ => {}
            }
        }
        assert_eq!(got, ["Hello", "Hello", "binary plain", "binary Hello"]);
        assert_eq!((at, &replies[..]), (input.len(), &[0x8a, 1, b'p'][..]));
        assert!(socket.take_inflated() >= 15);
        assert!(!socket.is_over() && socket.fragments.is_none());
    }

    #[test]
    fn invalid_compressed_messages_have_their_close_code() {
        let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        let not_utf8 = [0xfa, 0x0f, 0x00];
        let fails = |mut socket: WebSocket, frames: &[Vec<u8>]| {
            let (last, first) = frames.split_last().unwrap();
            for frame in first {
                socket.step(frame, &mut Vec::new()).unwrap();
            }
            socket.step(last, &mut Vec::new()).unwrap_err().close_code()
        };
        assert_eq!(fails(WebSocket::server(9), &[masked(0xc1, &hello)]), 1002, "nobody agreed on it");
        assert_eq!(fails(inflating(4), &[masked(0xc1, &hello)]), 1009);
        assert_eq!(fails(inflating(9), &[masked(0xc1, &not_utf8)]), 1007);
        assert_eq!(fails(inflating(9), &[masked(0xc1, &[0x06])]), 1002);
        assert_eq!(fails(inflating(9), &[masked(0xa1, b"x")]), 1002, "another reserved bit");
        assert_eq!(fails(inflating(9), &[masked(0xc9, b"x")]), 1002, "a compressed ping");
        assert_eq!(fails(inflating(9), &[masked(0x41, &hello), masked(0xc0, &[])]), 1002);
        assert_eq!(fails(inflating(9), &[masked(0x01, b"a"), masked(0xc0, &hello)]), 1002);
    }

    #[test]
    fn too_long_message_is_rejected_by_its_header() {
        let announce = [0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4];
        assert_eq!(error_of(&announce), DecodeError::TooLarge { bytes: 1 << 32, bytes_max: 1 << 10 });
    }

    #[test]
    fn invalid_fragments_have_their_close_code() {
        for (frames, code) in [
            ([masked(0x01, b"a"), masked(0x81, b"b")], 1002),
            ([masked(0x02, b"a"), masked(0x02, b"b")], 1002),
            ([masked(0x01, b"a"), masked(0xc0, b"b")], 1002),
            ([masked(0x01, b"a"), vec![0x80, 1, b'b']], 1002),
            ([masked(0x01, b"a"), masked(0x83, b"b")], 1002),
            ([masked(0x01, &[b'a'; 600]), masked(0x80, &[b'b'; 600])], 1009),
            ([masked(0x01, b"\xc3"), masked(0x00, b"\x28")], 1007),
            ([masked(0x01, b"\xc3"), masked(0x80, b"")], 1007),
        ] {
            let mut socket = WebSocket::server(1 << 10);
            socket.step(&frames[0], &mut Vec::new()).unwrap();
            let error = socket.step(&frames[1], &mut Vec::new()).unwrap_err();
            assert_eq!(error.close_code(), code, "{frames:02x?}: {error}");
        }
        assert_eq!(error_of(&masked(0x01, b"\xff")).close_code(), 1007);
        assert_eq!(error_of(&masked(0x41, b"x")).close_code(), 1002);
    }

    #[test]
    fn invalid_frames_have_their_close_code() {
        assert_eq!(error_of(&[0x81, 1, b'x']).close_code(), 1002);
        assert_eq!(error_of(&masked(0x81, &[0xff])).close_code(), 1007);
        assert_eq!(error_of(&masked(0xc1, b"x")).close_code(), 1002);
        assert_eq!(error_of(&masked(0x83, b"x")).close_code(), 1002);
        assert_eq!(error_of(&masked(0x80, b"x")).close_code(), 1002);
        assert_eq!(error_of(&masked(0x89, &[0; 126])).close_code(), 1002);
        assert_eq!(error_of(&masked(0x82, &[0; 2000])).close_code(), 1009);
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
    fn close_frame_is_answered_with_its_code() {
        let mut replies = Vec::new();
        let step = WebSocket::server(1 << 10).step(&masked(0x88, &1000u16.to_be_bytes()), &mut replies);
        assert!(matches!(step, Ok(Step::Complete(_, Incoming::Close(1000)))));
        assert_eq!(replies, [0x88, 2, 0x03, 0xe8]);
    }
}
