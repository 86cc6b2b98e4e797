//! Errors of the client library, one type per party that can act on them.

use std::{fmt, io, time::Duration};

use crate::{PublishFailure, PublishOutcome, RequestError, TlsError};
use tickcast_proto::{DecodeError, identity::IdentityError};

/// The answer that [`ClientError::TimedOut`] awaited before the connection was open. Perhaps no tickcast server is there.
pub(super) const WELCOME_AWAITED: &str = "welcome";
/// The answer that it awaited while the server read nothing.
pub(super) const ROOM_AWAITED: &str = "room for a write";
/// The answer that it awaited while the server did not answer the TLS handshake.
pub(super) const HANDSHAKE_AWAITED: &str = "TLS handshake";
/// Text of [`ClientError::Address`] from clients that speak JSON and native frames only.
pub(super) const UNSUITABLE_ENCODING: &str =
    "this client needs answers that it can read: use JSON or native frames";

/// Why a [`Connection`](crate::Connection) failed. It stays failed: drop the socket and connect again.
///
/// All but [`ProtocolError::Identity`] and [`ProtocolError::Encoding`] mean that the server, or what answered in its place, broke the
/// protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// Bytes that violate the protocol.
    Decode(DecodeError),
    /// JSON that violates the protocol. Contains what is wrong, and where.
    Json(String),
    /// The HTTP response refuses the WebSocket handshake. Contains the reason.
    Handshake(String),
    /// The identity in the options breaks a rule. Nothing was sent.
    Identity(IdentityError),
    /// This client does not speak the encoding in the options. Nothing was sent.
    Encoding(&'static str),
    /// The first native frame is not WELCOME: probably not a tickcast port.
    WelcomeExpected,
    /// A tick of a topic that was not announced. Contains the topic's number, or its name in JSON.
    UnknownTopic(String),
    /// A topic's number was announced again with another name.
    TopicRenamed {
        /// The topic's number.
        topic_id: u32,
        /// The name it had.
        from: String,
        /// The new name.
        to: String,
    },
    /// More than [`crate::CONNECTION_TOPICS_MAX`] topics.
    TooManyTopics,
    /// A tick whose sequence does not increase.
    OutOfOrder {
        /// The topic.
        topic: String,
        /// The last sequence before.
        previous: u64,
        /// The sequence received.
        sequence: u64,
    },
    /// An announced range `[from, to)` of skipped ticks that is empty, or includes ticks received or announced before.
    BadRange {
        /// The topic.
        topic: String,
        /// First sequence of the range.
        from: u64,
        /// First sequence after the range.
        to: u64,
    },
    /// A message after CLOSING, which must be the last one.
    AfterClosing,
    /// The connection ended in the middle of a message.
    Truncated,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::Decode(error @ DecodeError::BadMagic(_)) => {
                write!(f, "{error}; check that this is the server's native port")
            }
            ProtocolError::Decode(error) => write!(f, "cannot decode the server's message: {error}"),
            ProtocolError::Json(text) => write!(f, "cannot decode the server's JSON: {text}"),
            ProtocolError::Handshake(text) => write!(f, "the WebSocket handshake failed: {text}"),
            ProtocolError::Identity(error) => write!(f, "{error}"),
            ProtocolError::Encoding(name) => {
                write!(f, "this client does not speak {name}: use native frames, JSON or raw payloads")
            }
            ProtocolError::WelcomeExpected => {
                write!(f, "the server did not start with WELCOME; check that this is a tickcast port")
            }
            ProtocolError::UnknownTopic(topic) => {
                write!(f, "the server sent a tick of topic {topic}, which it had not announced")
            }
            ProtocolError::TopicRenamed { topic_id, from, to } => {
                write!(f, "the server renamed topic {topic_id} from {from:?} to {to:?}")
            }
            ProtocolError::TooManyTopics => write!(
                f,
                "the server announced more than {} topics on one connection",
                crate::CONNECTION_TOPICS_MAX
            ),
            ProtocolError::OutOfOrder { topic, previous, sequence } => write!(
                f,
                "the server sent sequence {sequence} after {previous} in topic {topic}; sequences must increase"
            ),
            ProtocolError::BadRange { topic, from, to } => write!(
                f,
                "the server announced [{from}, {to}) of topic {topic} as skipped; the range is empty or was already \
                 received"
            ),
            ProtocolError::AfterClosing => write!(f, "the server sent a message after CLOSING"),
            ProtocolError::Truncated => write!(f, "the connection ended in the middle of a message"),
        }
    }
}

impl std::error::Error for ProtocolError {}

impl From<DecodeError> for ProtocolError {
    fn from(error: DecodeError) -> ProtocolError {
        ProtocolError::Decode(error)
    }
}

/// Why a [`Client`](crate::Client) or [`ReconnectingClient`](crate::ReconnectingClient) call failed.
#[derive(Debug)]
pub enum ClientError {
    /// The address has an unknown form. Contains the known forms.
    Address(String),
    /// No connection could be made.
    Connect {
        /// The address tried.
        address: String,
        /// The system's error for the last of its socket addresses.
        error: io::Error,
    },
    /// A file of [`ConnectOptions::tls`](crate::ConnectOptions) cannot be used. Contains the file and the reason.
    TlsSettings(String),
    /// There is no token in [`ConnectOptions::token_file`](crate::ConnectOptions): which file, and why.
    TokenFile(String),
    /// TLS failed, in its handshake or later.
    Tls {
        /// The server's address.
        address: String,
        /// Why.
        error: TlsError,
    },
    /// The connection broke. Connect again.
    Io(io::Error),
    /// The server broke the protocol, or the identity in the options breaks a rule.
    Protocol(ProtocolError),
    /// The server closed the connection. [`ClientError::is_retryable`] tells whether to
    /// connect again.
    Closed {
        /// The server's close code; 0: none was sent.
        code: u16,
        /// The server's reason, for a person.
        text: String,
    },
    /// The server refused a tick. The connection stays open.
    Refused {
        /// A [`tickcast_proto::ErrorCode`], or one of a newer server.
        code: u16,
        /// The server's reason, for a person.
        text: String,
    },
    /// The server did not answer in time.
    TimedOut {
        /// The answer that the client waited for.
        awaited: &'static str,
        /// How long the client waited for it.
        waited: Duration,
    },
    /// The request was not sent: it is invalid, or too much is waiting to be written.
    Request(RequestError),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Address(text) => write!(f, "{text}"),
            ClientError::Connect { address, error } => {
                write!(f, "cannot connect to {address}: {error}; is a tickcast server listening there?")
            }
            ClientError::TlsSettings(text) | ClientError::TokenFile(text) => write!(f, "{text}"),
            ClientError::Tls { address, error } => write!(f, "no TLS connection to {address}: {error}"),
            ClientError::Io(error) => write!(f, "the connection broke: {error}"),
            ClientError::Protocol(error) => write!(f, "{error}"),
            ClientError::Closed { code: 0, text } if text.is_empty() => {
                write!(f, "the server closed the connection without a reason; see the server's log")
            }
            ClientError::Closed { code, text } => {
                write!(f, "the server closed the connection: {text} (code {code})")
            }
            ClientError::Refused { code, text } => {
                write!(f, "the server refused the tick: {text} (code {code})")
            }
            ClientError::TimedOut { awaited: awaited @ WELCOME_AWAITED, waited } => {
                write!(f, "no {awaited} within {waited:?}; check that this is a tickcast port")
            }
            ClientError::TimedOut { awaited: awaited @ HANDSHAKE_AWAITED, waited } => {
                write!(f, "no {awaited} within {waited:?}; check that this port speaks TLS")
            }
            ClientError::TimedOut { awaited: awaited @ ROOM_AWAITED, waited } => {
                write!(f, "no {awaited} within {waited:?}: the server does not read what is sent")
            }
            ClientError::TimedOut { awaited, waited } => write!(f, "no {awaited} within {waited:?}"),
            ClientError::Request(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for ClientError {}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> ClientError {
        ClientError::Io(error)
    }
}

impl From<ProtocolError> for ClientError {
    fn from(error: ProtocolError) -> ClientError {
        ClientError::Protocol(error)
    }
}

impl From<RequestError> for ClientError {
    fn from(error: RequestError) -> ClientError {
        ClientError::Request(error)
    }
}

/// Why a publish through a session failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishError {
    /// It is invalid, or too much waits for the socket. Nothing was sent.
    Request(RequestError),
    /// It was refused or not sent, or the answer did not arrive.
    Failed(PublishFailure),
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PublishError::Request(error) => write!(f, "{error}"),
            PublishError::Failed(PublishFailure { outcome, code, reason }) => match outcome {
                PublishOutcome::Refused => write!(f, "the server refused the tick: {reason} (code {code})"),
                PublishOutcome::NotSent => write!(f, "the tick was not sent: {reason} (code {code})"),
                PublishOutcome::Unknown => {
                    write!(f, "the tick may have been published or not: {reason} (code {code})")
                }
            },
        }
    }
}

impl std::error::Error for PublishError {}
