//! Errors in what a peer sends: those that close its session and those that fail a request.

use std::fmt;

use crate::{frame, identity::IdentityError};

/// Why a request failed. The session stays open. The numbers are the same in every codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ErrorCode {
    /// The server does not know the request, or a field has an invalid value.
    BadRequest = 100,
    /// The topic name is invalid.
    BadTopic = 101,
    /// The subscription pattern is invalid, or has too many wildcards.
    BadPattern = 102,
    /// The session has reached its limit of subscriptions, or a bound on the memory of patterns is reached.
    TooManySubscriptions = 103,
    /// The server has reached its limit of topics.
    TooManyTopics = 104,
    /// The session has no such subscription.
    NotSubscribed = 105,
    /// The session already has this subscription.
    AlreadySubscribed = 106,
    /// The published tick does not fit into the largest frame allowed.
    TooLarge = 107,
    /// The session's principal may not do that.
    NotAllowed = 108,
    /// The session, or all clients of its address, ask for more a second than they may.
    RateLimited = 109,
    /// A durable log feeds the topic, so that only ticks of the log are accepted.
    FedByLog = 110,
    /// The engine that takes the topic's ticks has not taken this one: it is away, refuses it, or too many wait for it.
    EngineUnavailable = 111,
    /// The engine that takes the topic's ticks has not confirmed this one in time. It may have it.
    Unconfirmed = 112,
}

impl ErrorCode {
    /// Converts a code from the wire; `None` if it is unknown.
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
            NotAllowed,
            RateLimited,
            FedByLog,
            EngineUnavailable,
            Unconfirmed,
        ]
        .into_iter()
        .find(|known| *known as u16 == code)
    }
}

/// Why a peer's bytes cannot be decoded. The peer's session is closed; no other session is affected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The magic number is wrong: another protocol, or a stream that lost its frame boundaries.
    BadMagic(u16),
    /// An unsupported version of the frame layout.
    UnknownVersion(u8),
    /// A kind that does not exist or is not sent in this direction.
    UnknownKind(u16),
    /// `frame_len` does not match the frame's parts, or a binary message ends in the middle of a frame.
    BadLength(u32),
    /// A header announces a frame or message larger than allowed.
    TooLarge {
        /// Bytes announced.
        bytes: u64,
        /// Bytes allowed.
        bytes_max: usize,
    },
    /// The record is too short for the frame's kind or has an invalid field. Contains the kind.
    BadRecord(u16),
    /// A text that is not UTF-8.
    NotUtf8,
    /// A violation of RFC 6455, with its description.
    WebSocket(String),
    /// A WebSocket message of the wrong type (text or binary) for the subprotocol.
    WrongMessageType(&'static str),
    /// The first request of a native connection is not HELLO.
    HelloExpected,
    /// The identity in a HELLO is invalid.
    BadIdentity(IdentityError),
    /// The client of a one-way stream has sent something.
    OneWay,
    /// A violation of Engine.IO or Socket.IO, with its description.
    SocketIo(&'static str),
    /// There was not enough memory for a fragmented message. Not the peer's fault.
    OutOfMemory,
}

impl DecodeError {
    /// The close code for this error (RFC 6455, section 7.4.1).
    pub fn close_code(&self) -> u16 {
        match self {
            DecodeError::TooLarge { .. } => 1009,
            DecodeError::NotUtf8 => 1007,
            DecodeError::WrongMessageType(_) => 1003,
            DecodeError::OutOfMemory => 3012,
            _ => 1002,
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::BadMagic(magic) => {
                write!(f, "not a tickcast frame: its magic is {magic:#06x}, not {:#06x}", frame::MAGIC)
            }
            DecodeError::UnknownVersion(version) => {
                write!(f, "unsupported frame version {version}; only version {} is supported", frame::VERSION)
            }
            DecodeError::UnknownKind(kind) => write!(f, "unexpected frame kind {kind}"),
            DecodeError::BadLength(len) => {
                write!(
                    f,
                    "frame length {len} does not match header, record and payload, padded to a multiple of 16"
                )
            }
            DecodeError::TooLarge { bytes, bytes_max } => {
                write!(f, "{bytes} bytes announced, {bytes_max} allowed")
            }
            DecodeError::BadRecord(kind) => write!(f, "invalid record in a frame of kind {kind}"),
            DecodeError::NotUtf8 => write!(f, "text is not UTF-8"),
            DecodeError::WebSocket(text) => write!(f, "{text}"),
            DecodeError::WrongMessageType(text) => write!(f, "{text}"),
            DecodeError::HelloExpected => write!(f, "the first frame must be HELLO"),
            DecodeError::BadIdentity(error) => write!(f, "{error}"),
            DecodeError::SocketIo(text) => write!(f, "Socket.IO: {text}"),
            DecodeError::OneWay => write!(f, "nothing may follow the request for a stream on its connection"),
            DecodeError::OutOfMemory => write!(f, "no memory for the message"),
        }
    }
}

impl std::error::Error for DecodeError {}
