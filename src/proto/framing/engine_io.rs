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

use serde::Serialize;

use super::websocket;
use crate::{DecodeError, codec::MessageType};

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

/// The name of a session for its client. `key` has bits that nobody can guess.
pub fn sid(shard: u16, key: u128) -> String {
    format!("{shard:x}.{key:032x}")
}

/// Appends the first packet.
pub fn encode_open(out: &mut Vec<u8>, open: &Open<'_>) {
    let json = serde_json::to_string(open);
    debug_assert!(json.is_ok(), "strings and numbers are JSON");
    websocket::encode(out, MessageType::Text, format!("0{}", json.unwrap_or_default()).as_bytes());
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
}
