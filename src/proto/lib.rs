//! What goes over the wire: pure bytes in, values out, and back. No socket, no clock, no session.
//!
//! `PROTOCOL.md` beside this file is the specification; `tests/golden.rs` holds the code to its bytes.

pub mod codec;
pub mod command;
mod error;
pub mod frame;
pub mod framing;
pub mod http;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod pattern;
pub mod records;
pub mod reply;
pub mod subscription;
pub mod units;

pub use self::error::{DecodeError, ErrorCode};

/// How far a decoder came: needing more bytes is a value, not an error.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// The bytes end before the message does.
    Partial,
    /// One message, and how many bytes it took.
    Complete(usize, T),
}

/// How a session's server-to-client messages are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encoding {
    /// Native frames over TCP.
    Native = 0,
    /// `tickcast.v1.rkyv`: native frames in WebSocket binary messages.
    WebSocketRkyv = 1,
    /// `tickcast.v1.json`: one JSON object a tick in WebSocket text messages.
    WebSocketJson = 2,
    /// `tickcast.v1.raw`: the tick's payload alone in WebSocket binary messages.
    WebSocketRaw = 3,
}

impl Encoding {
    /// How many there are: the length of arrays indexed by encoding.
    pub const COUNT: usize = 4;
    /// All of them, in index order.
    pub const ALL: [Encoding; Self::COUNT] =
        [Encoding::Native, Encoding::WebSocketRkyv, Encoding::WebSocketJson, Encoding::WebSocketRaw];

    /// The WebSocket subprotocol's name; `None` for native TCP.
    pub fn subprotocol(self) -> Option<&'static str> {
        match self {
            Encoding::Native => None,
            Encoding::WebSocketRkyv => Some("tickcast.v1.rkyv"),
            Encoding::WebSocketJson => Some("tickcast.v1.json"),
            Encoding::WebSocketRaw => Some("tickcast.v1.raw"),
        }
    }
}
