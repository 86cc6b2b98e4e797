//! Why a client stops: by who can act on it.

use std::{fmt, io};

use crate::RequestError;
use tickcast_proto::{DecodeError, identity::IdentityError};

/// What the server sent cannot be right. The session is over: drop the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionError {
    /// Bytes against the protocol.
    Decode(DecodeError),
    /// JSON against the protocol: what and where.
    Json(String),
    /// The HTTP answer to the WebSocket handshake is not an acceptance: what it says.
    Handshake(String),
    /// The identity asked for breaks a rule: nothing was sent.
    BadIdentity(IdentityError),
    /// The first native frame is not a welcome.
    WelcomeExpected,
    /// A tick of a topic that was never announced: its number, or its name in JSON.
    UnknownTopic(String),
    /// A topic's number was announced again under another name.
    TopicRenamed {
        /// The number.
        topic_id: u32,
        /// The name it had.
        from: String,
        /// The name announced now.
        to: String,
    },
    /// More than [`crate::SESSION_TOPICS_MAX`] topics.
    TooManyTopics,
    /// A sequence that does not increase.
    OutOfOrder {
        /// The topic.
        topic: String,
        /// The sequence before.
        previous: u64,
        /// The sequence that came.
        sequence: u64,
    },
    /// Ticks announced as left out that came, or that were announced before, or none.
    BadRange {
        /// The topic.
        topic: String,
        /// The first of them.
        from: u64,
        /// The one after the last.
        to: u64,
    },
    /// A message after the one that is the last.
    AfterClosing,
    /// The connection ended in the middle of a message.
    Truncated,
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionError::Decode(error) => write!(f, "the server sent what this client cannot read: {error}"),
            SessionError::Json(text) => write!(f, "the server sent what this client cannot read: {text}"),
            SessionError::Handshake(text) => write!(f, "the WebSocket handshake failed: {text}"),
            SessionError::BadIdentity(error) => write!(f, "{error}"),
            SessionError::WelcomeExpected => {
                write!(f, "the server did not begin with a welcome: is it a tickcast port?")
            }
            SessionError::UnknownTopic(topic) => {
                write!(f, "a tick of topic {topic}, which was not announced")
            }
            SessionError::TopicRenamed { topic_id, from, to } => {
                write!(f, "topic {topic_id} was {from:?} and is now {to:?}")
            }
            SessionError::TooManyTopics => {
                write!(f, "more than {} topics on one session", super::SESSION_TOPICS_MAX)
            }
            SessionError::OutOfOrder { topic, previous, sequence } => {
                write!(f, "sequence {sequence} after {previous} in topic {topic}: it must increase")
            }
            SessionError::BadRange { topic, from, to } => {
                write!(f, "ticks [{from}, {to}) of topic {topic} are announced as left out: that cannot be")
            }
            SessionError::AfterClosing => write!(f, "a message after the closing one"),
            SessionError::Truncated => write!(f, "the connection ended in the middle of a message"),
        }
    }
}

impl std::error::Error for SessionError {}

impl From<DecodeError> for SessionError {
    fn from(error: DecodeError) -> SessionError {
        SessionError::Decode(error)
    }
}

/// Why a [`crate::Client`] could not do what it was asked.
#[derive(Debug)]
pub enum ClientError {
    /// The address is not of a form that is known: what is.
    Address(String),
    /// No connection.
    Connect {
        /// The address tried.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// The connection broke.
    Io(io::Error),
    /// The server broke the protocol.
    Session(SessionError),
    /// The server closed.
    Closed {
        /// Its close code; 0 when it gave none.
        code: u16,
        /// Its reason.
        text: String,
    },
    /// No answer in time: to what, and how many milliseconds were waited.
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// For how long, milliseconds.
        waited_ms: u64,
    },
    /// The request was not sent: it cannot be valid, or too much is waiting already.
    Request(RequestError),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Address(text) => write!(f, "{text}"),
            ClientError::Connect { address, error } => write!(
                f,
                "cannot connect to {address}: {error}; is `tickcast serve` running there? --server names another"
            ),
            ClientError::Io(error) => write!(f, "the connection broke: {error}"),
            ClientError::Session(error) => write!(f, "{error}"),
            ClientError::Closed { code: 0, text } if text.is_empty() => {
                write!(f, "the server closed the connection without a word: its log says why")
            }
            ClientError::Closed { code, text } => {
                let advice = match code {
                    1001 | 3000..=3499 => "; connect again",
                    _ => "",
                };
                write!(f, "the server closed the connection: {text} (code {code}){advice}")
            }
            ClientError::TimedOut { what, waited_ms } => {
                write!(f, "no {what} within {waited_ms} ms: is it a tickcast port?")
            }
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

impl From<SessionError> for ClientError {
    fn from(error: SessionError) -> ClientError {
        ClientError::Session(error)
    }
}

impl From<RequestError> for ClientError {
    fn from(error: RequestError) -> ClientError {
        ClientError::Request(error)
    }
}
