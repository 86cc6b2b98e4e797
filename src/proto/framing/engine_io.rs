//! Engine.IO 4 over WebSocket, and the payloads of its long-polling (socket.io/docs/v4/engine-io-protocol).
//!
//! ```text
//!  text message     TYPE DATA         0 open  1 close  2 ping  3 pong  4 message  5 upgrade  6 noop
//!  binary message   BYTES             an attachment of the message before it
//!
//!  body of a queued message     2["tick",{...}]                 a Socket.IO packet
//!                               51-["tick",{...}] 0x1e BYTES    one with an attachment: both are one frame of the log
//! ```
//! The separator cannot be part of the packet: JSON escapes control characters.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::Serialize;
use tungstenite::{Bytes, Utf8Bytes};

use super::{Incoming, websocket};
use crate::{
    DecodeError, Step,
    codec::{Message, MessageType},
};

/// Separates an attachment from its packet; in polling, a packet from the next one.
pub const SEPARATOR: u8 = 0x1e;

/// The type of a message, which precedes each Socket.IO packet.
const MESSAGE: u8 = b'4';

/// The first packet of the server.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Open<'a> {
    /// Names the session in later requests: only its client may know it.
    pub sid: &'a str,
    /// Transports that the client may upgrade to.
    pub upgrades: &'a [&'a str],
    /// Interval of the server's pings, milliseconds.
    pub ping_interval: u32,
    /// Time after a missing ping until a client gives up, milliseconds.
    pub ping_timeout: u32,
    /// Largest body of a POST, in bytes.
    pub max_payload: usize,
}

/// A packet from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// The client ends the session.
    Close,
    /// Asks whether a new transport works, with `probe`.
    Ping(&'a str),
    /// Answers a ping.
    Pong,
    /// A Socket.IO packet.
    Message(&'a str),
    /// The client goes on with this transport.
    Upgrade,
    /// Nothing.
    Noop,
}

/// Decodes the text of a packet.
///
/// # Errors
/// [`DecodeError::SocketIo`] for types that do not exist or that only servers send.
pub fn decode(text: &str) -> Result<Packet<'_>, DecodeError> {
    let mut characters = text.chars();
    let packet_type = characters.next();
    let data = characters.as_str();
    match packet_type {
        Some('1') => Ok(Packet::Close),
        Some('2') => Ok(Packet::Ping(data)),
        Some('3') => Ok(Packet::Pong),
        Some('4') => Ok(Packet::Message(data)),
        Some('5') => Ok(Packet::Upgrade),
        Some('6') => Ok(Packet::Noop),
        Some('0') => Err(DecodeError::SocketIo("only the server opens a session")),
        Some(_) => Err(DecodeError::SocketIo("unknown type of Engine.IO packet")),
        None => Err(DecodeError::SocketIo("an Engine.IO packet is empty")),
    }
}

/// Whether a queued message has an attachment.
#[inline]
pub fn has_attachment(body: &[u8]) -> bool {
    body.first() == Some(&b'5')
}

/// A packet and its attachment.
fn split(body: &[u8]) -> (&[u8], Option<&[u8]>) {
    let at = match has_attachment(body) {
        true => body.iter().position(|&byte| byte == SEPARATOR),
        false => None,
    };
    match at.and_then(|at| body.split_at_checked(at)) {
        Some((packet, rest)) => (packet, rest.get(1..)),
        None => (body, None),
    }
}

/// Appends what precedes a Socket.IO packet of `len` bytes: the header of a text message, and the packet's type.
#[inline]
pub fn encode_header(out: &mut Vec<u8>, len: usize) {
    websocket::encode_header(out, MessageType::Text, len + 1);
    out.push(MESSAGE);
}

/// Appends a Socket.IO packet and its attachment, if any, as WebSocket messages.
pub fn encode_message(out: &mut Vec<u8>, body: &[u8]) {
    let (packet, attachment) = split(body);
    encode_header(out, packet.len());
    out.extend_from_slice(packet);
    if let Some(attachment) = attachment {
        websocket::encode(out, MessageType::Binary, attachment);
    }
}

/// The name of a session for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sid {
    /// The shard that serves it.
    pub shard: u16,
    /// Names it there, and has bits that nobody can guess.
    pub key: u128,
}

impl Sid {
    /// Decodes a name; `None` if no server has given it.
    pub fn decode(text: &str) -> Option<Sid> {
        let (shard, key) = text.split_once('.')?;
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex(shard) || !is_hex(key) || key.len() != 32 {
            return None;
        }
        Some(Sid { shard: u16::from_str_radix(shard, 16).ok()?, key: u128::from_str_radix(key, 16).ok()? })
    }
}

impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:032x}", self.shard, self.key)
    }
}

/// The first packet.
pub fn open_packet(open: &Open<'_>) -> String {
    let json = serde_json::to_string(open);
    debug_assert!(json.is_ok(), "strings and numbers are JSON");
    format!("0{}", json.unwrap_or_default())
}

/// Appends the answer to a probe.
pub fn encode_probed(out: &mut Vec<u8>) {
    websocket::encode(out, MessageType::Text, b"3probe");
}

/// Decodes the packet at the front of what a client has sent by long-polling, each of which ends with [`SEPARATOR`]: text, or `b` and
/// an attachment as base64.
///
/// # Errors
/// [`DecodeError`] for text that is not UTF-8, and for other base64.
pub fn step<'a>(bytes: &[u8]) -> Result<Step<Incoming<'a>>, DecodeError> {
    let Some(len) = bytes.iter().position(|&byte| byte == SEPARATOR) else { return Ok(Step::Partial) };
    let message = match &bytes[..len] {
        [b'b', attachment @ ..] => match BASE64.decode(attachment) {
            Ok(attachment) => Message::Binary(attachment.into()),
            Err(_) => return Err(DecodeError::SocketIo("an attachment is not base64")),
        },
        text => Message::Text(
            Utf8Bytes::try_from(Bytes::copy_from_slice(text)).map_err(|_| DecodeError::NotUtf8)?,
        ),
    };
    Ok(Step::Complete(len + 1, Incoming::Message(message)))
}

/// Appends WebSocket messages of the server, as they lie in the log, as packets of long-polling. The messages are whole.
///
/// The end of the session is a packet only if nothing precedes it: socket.io-client acts on it at once, and on the packets before
/// it afterwards, so it would not know why it was disconnected. Its next request finds that the session has ended.
pub fn append_polled(out: &mut Vec<u8>, mut messages: &[u8]) {
    while let Some((opcode, payload, rest)) = next_message(messages) {
        messages = rest;
        let is_end = !matches!(opcode, OPCODE_TEXT | OPCODE_BINARY);
        if !out.is_empty() && is_end {
            continue;
        }
        if !out.is_empty() {
            out.push(SEPARATOR);
        }
        match opcode {
            OPCODE_TEXT => out.extend_from_slice(payload),
            OPCODE_BINARY => {
                out.push(b'b');
                out.extend_from_slice(BASE64.encode(payload).as_bytes());
            }
            _ => out.push(b'1'),
        }
    }
    debug_assert!(messages.is_empty(), "whole messages");
}

const OPCODE_TEXT: u8 = 1;
const OPCODE_BINARY: u8 = 2;

/// Opcode and payload of the first of the server's messages, which have no masks (RFC 6455, section 5.2).
fn next_message(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[first, second], rest) = bytes.split_first_chunk::<2>()?;
    let (len, rest) = match second {
        126 => {
            let (len, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*len)), rest)
        }
        127 => {
            let (len, rest) = rest.split_first_chunk()?;
            (usize::try_from(u64::from_be_bytes(*len)).ok()?, rest)
        }
        len => (usize::from(len), rest),
    };
    let (payload, rest) = rest.split_at_checked(len)?;
    Some((first & 0x0f, payload, rest))
}

/// Appends a ping.
pub fn encode_ping(out: &mut Vec<u8>) {
    websocket::encode(out, MessageType::Text, b"2");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_clients_decode_and_others_are_refused() {
        for (text, packet) in [
            ("1", Packet::Close),
            ("2probe", Packet::Ping("probe")),
            ("3", Packet::Pong),
            ("3probe", Packet::Pong),
            ("40", Packet::Message("0")),
            ("4", Packet::Message("")),
            ("4\u{20ac}", Packet::Message("\u{20ac}")),
            ("5", Packet::Upgrade),
            ("6", Packet::Noop),
        ] {
            assert_eq!(decode(text), Ok(packet), "{text}");
        }
        for text in ["", "0{}", "7", "x", "\u{20ac}", " 4"] {
            assert!(matches!(decode(text), Err(DecodeError::SocketIo(_))), "{text:?}");
        }
    }

    #[test]
    fn an_attachment_is_a_binary_message_after_its_packet() {
        let mut out = Vec::new();
        encode_message(&mut out, b"2[\"a\"]");
        assert_eq!(out, b"\x81\x0742[\"a\"]");
        out.clear();
        encode_message(&mut out, b"51-[]\x1e\x00\x1e\xff");
        assert_eq!(out, b"\x81\x06451-[]\x82\x03\x00\x1e\xff");
        out.clear();
        // The payload of an event without an attachment is JSON, which may contain anything but the separator.
        encode_message(&mut out, b"2[\"5\"]");
        assert_eq!(out, b"\x81\x0742[\"5\"]");
        out.clear();
        encode_message(&mut out, b"51-[]\x1e");
        assert_eq!(out, b"\x81\x06451-[]\x82\x00", "an empty payload");
    }

    #[test]
    fn packets_of_polling_decode_one_by_one() {
        let decoded = |bytes: &[u8]| match step(bytes) {
            Ok(Step::Complete(used, Incoming::Message(Message::Text(text)))) => {
                Some((used, text.to_string()))
            }
            Ok(Step::Complete(used, Incoming::Message(Message::Binary(bytes)))) => {
                Some((used, format!("{:?}", &bytes[..])))
            }
            Ok(_) => None,
            Err(error) => Some((0, error.to_string())),
        };
        assert_eq!(decoded(b"40"), None, "each packet ends with a separator");
        assert_eq!(decoded(b"40\x1e3\x1e"), Some((3, "40".into())));
        assert_eq!(decoded(b"bAB7/\x1e"), Some((6, "[0, 30, 255]".into())));
        assert_eq!(decoded(b"b\x1e"), Some((2, "[]".into())));
        assert_eq!(decoded(b"\x1e"), Some((1, String::new())));
        assert!(decoded(b"b?\x1e").unwrap().1.contains("base64"));
        assert!(decoded(b"4\xff\x1e").unwrap().1.contains("UTF-8"));
    }

    #[test]
    fn messages_of_the_log_are_packets_of_polling() {
        let (mut messages, mut polled) = (Vec::new(), Vec::new());
        encode_message(&mut messages, b"51-[]\x1e\x00\x1e\xff");
        encode_message(&mut messages, &[b'7'; 200]);
        encode_message(&mut messages, &[b'7'; 70_000]);
        encode_ping(&mut messages);
        websocket::encode_close(&mut messages, 1000, "bye");
        append_polled(&mut polled, &messages);
        let (short, long) = ("7".repeat(200), "7".repeat(70_000));
        assert_eq!(
            String::from_utf8(polled).unwrap(),
            format!("451-[]\x1ebAB7/\x1e4{short}\x1e4{long}\x1e2")
        );
        let (mut end, mut polled) = (Vec::new(), Vec::new());
        websocket::encode_close(&mut end, 1000, "bye");
        append_polled(&mut polled, &end);
        assert_eq!(polled, b"1");
    }

    #[test]
    fn a_name_reads_back_and_others_do_not() {
        let sid = Sid { shard: 18, key: 0xfe };
        assert_eq!(sid.to_string(), "12.000000000000000000000000000000fe");
        assert_eq!(Sid::decode(&sid.to_string()), Some(sid));
        for text in [
            "",
            "1",
            "1.2",
            ".00000000000000000000000000000001",
            "12345.000000000000000000000000000000fe",
            "+1.000000000000000000000000000000fe",
        ] {
            assert_eq!(Sid::decode(text), None, "{text}");
        }
    }
}
