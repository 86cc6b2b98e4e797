//! A WebSocket (RFC 6455) whose messages, text or binary, are bare payloads.
//!
//! The handshake offers no subprotocol unless it is that of another feed. A ping follows the upgrade, and its pong counts as
//! the acknowledgement: by then the server has read all that this side sent.

use std::io::{Cursor, Write};

use tickcast::limits::{FRAME_BYTES_MAX_DEFAULT, HTTP_HEAD_BYTES_MAX_DEFAULT, HTTP_HEADERS_MAX};
use tickcast_proto::{
    Step,
    framing::websocket::{Incoming, WebSocket as Decoder},
};
use tungstenite::{
    Bytes, Message,
    handshake::{client::generate_key, derive_accept_key},
    protocol::frame::{
        FrameHeader,
        coding::{Control, Data, OpCode},
    },
};

use super::{
    FeedError, PAYLOAD_BYTES_MAX,
    peer::{Item, Protocol},
};

/// Most bytes of a refusal's body to show.
const REFUSAL_TEXT_BYTES_MAX: usize = 512;

/// One connection.
#[derive(Debug)]
pub struct WebSocket {
    /// Expected `Sec-WebSocket-Accept`; empty once the upgrade is complete.
    accept_key: String,
    /// Handles control frames; data messages are parsed in place.
    decoder: Box<Decoder>,
}

impl WebSocket {
    /// Appends the upgrade request.
    pub fn open(host: &str, path: &str, subprotocol: Option<&str>, output: &mut Vec<u8>) -> WebSocket {
        let key = generate_key();
        // Writing to a Vec cannot fail.
        let _ = write!(
            output,
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        );
        if let Some(subprotocol) = subprotocol {
            let _ = write!(output, "Sec-WebSocket-Protocol: {subprotocol}\r\n");
        }
        output.extend_from_slice(b"\r\n");
        WebSocket {
            accept_key: derive_accept_key(key.as_bytes()),
            decoder: Box::new(Decoder::client(FRAME_BYTES_MAX_DEFAULT)),
        }
    }

    /// Whether the upgrade is complete.
    pub fn is_open(&self) -> bool {
        self.accept_key.is_empty()
    }

    /// Appends a message to the server.
    pub fn send(&mut self, message: Message, output: &mut Vec<u8>) {
        self.decoder.write_masked(output, message);
    }

    fn step_upgrade(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<Step<Item>, FeedError> {
        let head = &input[..input.len().min(HTTP_HEAD_BYTES_MAX_DEFAULT)];
        let mut headers = [httparse::EMPTY_HEADER; HTTP_HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let used = match response.parse(head) {
            Ok(httparse::Status::Complete(used)) => used,
            Ok(httparse::Status::Partial) if input.len() < HTTP_HEAD_BYTES_MAX_DEFAULT => {
                return Ok(Step::Partial);
            }
            Ok(httparse::Status::Partial) => return Err(FeedError::LongLine),
            Err(_) => return Err(FeedError::Protocol("a response that is not HTTP")),
        };
        if response.code != Some(101) {
            let body = &input[used..];
            let body = String::from_utf8_lossy(&body[..body.len().min(REFUSAL_TEXT_BYTES_MAX)]);
            let (code, reason) = (response.code.unwrap_or_default(), response.reason.unwrap_or_default());
            return Err(FeedError::Refused(format!("{code} {reason} {}", body.trim()).trim().into()));
        }
        let accepted = response.headers.iter().any(|header| {
            header.name.eq_ignore_ascii_case("sec-websocket-accept")
                && header.value.trim_ascii() == self.accept_key.as_bytes()
        });
        if !accepted {
            return Err(FeedError::Protocol("an upgrade with the wrong Sec-WebSocket-Accept"));
        }
        self.accept_key = String::new();
        self.decoder.write_masked(output, Message::Ping(Bytes::new()));
        Ok(Step::Complete(used, Item::Nothing))
    }

    fn step_control(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        is_pong: bool,
    ) -> Result<Step<Item>, FeedError> {
        let not_websocket = |_| FeedError::Protocol("bytes that are not a WebSocket frame");
        match self.decoder.step(input, output).map_err(not_websocket)? {
            Step::Partial => Ok(Step::Partial),
            Step::Complete(_, Incoming::Close(code)) => {
                Err(FeedError::Refused(format!("it closed the WebSocket with code {code}")))
            }
            Step::Complete(used, _) if is_pong => Ok(Step::Complete(used, Item::Acknowledged)),
            Step::Complete(used, _) => Ok(Step::Complete(used, Item::Nothing)),
        }
    }
}

impl Protocol for WebSocket {
    #[inline]
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<Step<Item>, FeedError> {
        if !self.is_open() {
            return self.step_upgrade(input, output);
        }
        let mut cursor = Cursor::new(input);
        let not_websocket = |_| FeedError::Protocol("bytes that are not a WebSocket frame");
        let Some((header, len)) = FrameHeader::parse(&mut cursor).map_err(not_websocket)? else {
            return Ok(Step::Partial);
        };
        match header.opcode {
            OpCode::Control(kind) => return self.step_control(input, output, kind == Control::Pong),
            OpCode::Data(Data::Text | Data::Binary) if header.is_final => {}
            OpCode::Data(_) => return Err(FeedError::Protocol("a fragmented message")),
        }
        if header.mask.is_some() || header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(FeedError::Protocol("a masked frame or one with extension bits"));
        }
        if len > PAYLOAD_BYTES_MAX as u64 {
            return Err(FeedError::LongPayload(len));
        }
        let start = cursor.position() as usize;
        let end = start + len as usize;
        Ok(if input.len() < end { Step::Partial } else { Step::Complete(end, Item::Payload(start..end)) })
    }
}
