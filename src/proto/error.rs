//! What can be wrong with what a peer sends.

use std::fmt;

use crate::{frame, identity::IdentityError};

/// Why a request failed; the session lives on. The same numbers in every encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ErrorCode {
    /// The message is well-formed but not a request this server knows, or a field of it is wrong.
    BadRequest = 100,
    /// The topic name breaks a rule of names.
    BadTopic = 101,
    /// The subscription pattern breaks a rule of patterns.
    BadPattern = 102,
    /// The session holds as many subscriptions as it may.
    TooManySubscriptions = 103,
    /// The server has as many topics as it may.
    TooManyTopics = 104,
    /// The session holds no such subscription.
    NotSubscribed = 105,
    /// The session holds this subscription already.
    AlreadySubscribed = 106,
    /// The published tick does not fit a frame.
    TooLarge = 107,
    /// The session publishes faster than it may.
    RateLimited = 109,
}

impl ErrorCode {
    /// The code of a number from the wire.
    pub fn from_wire(code: u16) -> Option<ErrorCode> {
        use ErrorCode::*;
        [
            BadRequest,
            BadTopic,
            BadPattern,
            TooManySubscriptions,
            TooManyTopics,
            NotSubscribed,
            AlreadySubscribed,
            TooLarge,
            RateLimited,
        ]
        .into_iter()
        .find(|known| *known as u16 == code)
    }
}

/// What a peer sent cannot be understood. The session it came from is closed; no other is touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The frame does not begin with the magic number: not this protocol, or out of step.
    BadMagic(u16),
    /// A version this server does not speak.
    UnknownVersion(u8),
    /// A kind that does not exist, or that this side does not take.
    UnknownKind(u16),
    /// The frame's length is not a multiple of 16 or shorter than its parts.
    BadLength(u32),
    /// The frame or message announces more bytes than may be sent.
    TooLarge {
        /// What it announced.
        bytes: u64,
        /// What is allowed.
        bytes_max: usize,
    },
    /// The record is shorter than its kind demands or holds values that cannot be.
    BadRecord(u16),
    /// Text that is not UTF-8.
    NotUtf8,
    /// A WebSocket frame against RFC 6455.
    WebSocket(String),
    /// A message of the wrong type for the subprotocol.
    WrongMessageType(&'static str),
    /// A request other than HELLO before HELLO.
    HelloExpected,
    /// A HELLO whose identity breaks a rule.
    BadIdentity(IdentityError),
}

impl DecodeError {
    /// The WebSocket close code that says the same (RFC 6455, section 7.4.1).
    pub fn close_code(&self) -> u16 {
        match self {
            DecodeError::TooLarge { .. } => 1009,
            DecodeError::NotUtf8 => 1007,
            DecodeError::WrongMessageType(_) => 1003,
            _ => 1002,
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::BadMagic(magic) => {
                write!(f, "not a tickcast frame: magic {magic:#06x}, expected {:#06x}", frame::MAGIC)
            }
            DecodeError::UnknownVersion(version) => {
                write!(f, "unknown frame version {version}, this server speaks {}", frame::VERSION)
            }
            DecodeError::UnknownKind(kind) => write!(f, "unknown frame kind {kind}"),
            DecodeError::BadLength(len) => {
                write!(f, "bad frame length {len}: a multiple of 16, parts included")
            }
            DecodeError::TooLarge { bytes, bytes_max } => {
                write!(f, "{bytes} bytes announced, {bytes_max} allowed")
            }
            DecodeError::BadRecord(kind) => write!(f, "bad record in a frame of kind {kind}"),
            DecodeError::NotUtf8 => write!(f, "text is not UTF-8"),
            DecodeError::WebSocket(text) => write!(f, "{text}"),
            DecodeError::WrongMessageType(text) => write!(f, "{text}"),
            DecodeError::HelloExpected => write!(f, "the first frame must be HELLO"),
            DecodeError::BadIdentity(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for DecodeError {}
